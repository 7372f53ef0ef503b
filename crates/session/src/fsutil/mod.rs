//! Trees of files over a stream of packets. See the session protocol, "fsutil transfer protocol".
//!
//! The *sender* owns a tree ([`FileTree`]) and lists it in order; the *receiver* walks what it
//! already has in the same order, asks for the content it lacks and ends with an equal copy. Both
//! ends run on either machine: local sources come to the daemon, local outputs go to the client.
//! Paths on the wire are hostile until [`validate::Order`] has seen them, and the receiver works
//! only below the folder it was given, one name at a time, never through a link.

mod error;
mod filter;
mod follow;
mod links;
mod receive;
mod send;
mod stat;
mod tree;
mod validate;
mod walk;
mod write;

pub use error::TransferError;
pub use filter::Filter;
pub use proto::fsutil::types::{Packet, Stat, packet::PacketType};
pub use receive::{Change, ChangeSink, Differ, ReceiveOptions, Received, receive};
pub use send::send;
pub(crate) use send::{send_until_fin, send_with};
pub use tree::{DirTree, FileTree, MapStat, MemoryTree, MergedTree, SubTree};
pub use walk::walk;

/// Called with the bytes of packets moved so far.
pub type Progress = std::sync::Arc<dyn Fn(u64) + Send + Sync>;

/// Name of the file that holds the listing of a metadata-only transfer.
pub const METADATA_FILE: &str = ".fsutil-metadata";

pub(crate) fn packet(kind: PacketType, id: u32, data: impl Into<bytes::Bytes>) -> Packet {
    Packet { r#type: kind.into(), stat: None, id, data: data.into() }
}
