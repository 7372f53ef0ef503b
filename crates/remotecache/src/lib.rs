//! Caches kept elsewhere: keys and layers in a registry, in a folder at the client, inside an image.
//!
//! An import is read ([`import`]) into [`Chains`], which become a key store that the solver looks
//! into besides its own; results found there are opened as lazy layer chains by [`Imports`]. An
//! export walks the keys of a build's result ([`Walk`]) into `Chains`, which are written
//! ([`export`]) as a cache config with its layers.
//!
//! Invariant: equal caches give equal bytes, whatever the order in which they were gathered.

mod attrs;
mod chains;
mod config;
mod error;
pub mod export;
mod fetch;
mod import;
mod inline;
mod opened;
mod walk;

pub use attrs::{ExportOptions, ExportTo, ImportFrom, Mode, import_id};
pub use chains::{Chain, Chains, ItemId, Layer};
pub use config::{CacheConfig, MEDIA_TYPE};
pub use error::CacheError;
pub use import::{Access, Cache, Registries, import};
pub use inline::inline;
pub use opened::{Imports, Opened};
pub use walk::{Records, Walk, WalkOptions};
