//! Images as data: names, manifests, configs, layouts, compression, and the way to registries.
//!
//! A [`Reference`] names an image, a [`Registry`] turns it into a [`Descriptor`], and a
//! [`Provider`] streams the bytes a descriptor speaks of. Nothing here knows snapshots, records or
//! sessions; credentials are asked for through [`registry::Credentials`]. Bytes that leave this
//! crate as a blob of some digest have that digest: they are hashed while they stream.

pub mod compress;
pub mod config;
pub mod content;
mod error;
pub mod layout;
pub mod media;
pub mod memory;
pub mod reference;
pub mod registry;
pub mod select;
pub mod types;

pub use compress::Compression;
pub use config::ImageConfig;
pub use content::{BlobStream, Provider};
pub use error::{Error, Result};
pub use reference::{ParseReferenceError, Reference};
pub use registry::{Pushed, Registry};
pub use types::{Descriptor, Index, Manifest};
