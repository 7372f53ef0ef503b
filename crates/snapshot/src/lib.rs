//! Trees of files: snapshots on disk, their content hashes, their layer tars, and the file engine.
//!
//! A *layer* is one folder of the state directory, written once and then frozen; a *tree* is an
//! ordered list of layers seen as one. Drivers ([`overlay`], [`native`]) know nothing of images,
//! keys or records; `store` adds those. Everything here works through descriptors of detached
//! mounts, so nothing foreign (a symlink, a tar, a container) can lead it outside a tree.

pub mod brake;
pub mod contenthash;
pub mod copy;
pub mod driver;
pub mod error;
mod folders;
pub mod id;
pub mod keeper;
pub mod layer;
mod mounts;
pub mod native;
pub mod overlay;
mod scoped;
mod skeleton;
#[cfg(test)]
mod suite;
mod sys;
#[cfg(test)]
mod testing;
mod trash;
pub mod tree;
mod usage;

pub use brake::{Brake, Pedal};
pub use driver::{Choice, Extracted, Snapshotter, Usage, open};
pub use error::SnapshotError;
pub use id::LayerId;
pub use layer::{LayerError, LayerInfo, Limits};
pub use tree::Tree;
