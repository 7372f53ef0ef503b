//! The other end of the wire: connecting to a daemon, building with it, showing what it does.
//!
//! [`Client`] is a connection; [`build`](Client::build) runs one build with a session that serves
//! files, secrets and credentials from this machine; [`progress`] shows its status stream;
//! [`embedded`] starts a daemon when none runs. Works with any daemon that speaks BuildKit's API.

pub mod address;
pub mod auth;
mod connect;
pub mod embedded;
pub mod error;
pub mod progress;

pub use address::Address;
pub use connect::{Bridge, BuildId, Client, ConnectOptions, MESSAGE_LIMIT, TlsFiles};
pub use error::{ClientError, Detail, RpcError, SourceLines};
