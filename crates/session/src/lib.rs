//! The channel back into a client: everything a build needs from the machine it was asked from.
//!
//! A client opens one byte stream to the daemon and the roles are reversed inside it: the daemon is
//! the one who calls. [`Sessions`] keeps the channels that are open, [`Session`] makes the calls
//! (files, outputs, credentials, secrets, agents, content), [`Group`] is the list of sessions that
//! take an interest in one step. The other end lives in [`client`]. Trees of files travel by the
//! protocol in [`fsutil`]. Nothing here knows builds, keys or stores.

pub mod client;
mod content;
mod error;
mod files;
pub mod fsutil;
mod group;
mod header;
mod registry;
mod session;
mod ssh;
mod tunnel;
mod upload;

pub use content::{ContentInfo, RemoteContent, WriteOutcome};
pub use error::SessionError;
pub use files::{FileWriter, OutputEnd, SendTree, SyncRequest};
pub use group::Group;
pub use registry::{Health, SessionRequest, Sessions};
pub use session::{Credentials, FetchToken, Session, Token};
pub use ssh::{AgentSocket, AgentSocketOptions};
