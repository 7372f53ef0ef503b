//! The other end of the wire: connecting to a daemon, building with it, showing what it does.
//!
//! [`Client`] is a connection; [`Client::build`] runs one build with a session that serves
//! files, secrets and credentials from this machine; [`progress`] shows its status stream;
//! [`embedded`] starts a daemon when none runs. Works with any daemon that speaks BuildKit's API.

pub mod address;
pub mod auth;
mod build;
mod connect;
pub mod embedded;
pub mod error;
mod logins;
mod ociindex;
mod policy;
pub mod progress;
mod request;
mod serve;

pub use address::Address;
pub use build::{BuildOutcome, Cancel};
pub use connect::{Bridge, BuildId, Client, ConnectOptions, MESSAGE_LIMIT, TlsFiles};
pub use error::{ClientError, Detail, RpcError, SourceLines};
pub use llb::policy::Policy as SourcePolicy;
pub use logins::{LayoutFolder, Logins};
pub use policy::parse_source_policy;
pub use request::{
    BuildRequest, CacheEntry, Drive, Export, Secret, SecretSource, SshForward, Target, Upload,
};
pub use serve::{layout_digest, name_in_layout};
