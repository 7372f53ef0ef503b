//! The store: records of file trees, blobs, images and small tables; durable, exact, bounded.
//!
//! A [`Store`] owns one state folder. Trees are *records* ([`Ref`], [`MutRef`]) made of layers of
//! the snapshot driver; bytes are *blobs* of [`Content`]; names are [`Images`]; everything others
//! want remembered goes to a [`Table`]. Holding a handle keeps the data; what nobody holds or
//! names is garbage for [`Store::prune`] and the policies.
//!
//! Invariant: data is on disk before the record that names it. A killed daemon loses nothing that was
//! done, a loss of power the last moments, never consistency.

mod blobs;
mod ceiling;
mod compose;
mod content;
mod error;
mod filter;
mod gc;
mod images;
mod journal;
mod keys;
mod layers;
mod lock;
mod meta;
mod model;
mod packed;
mod pull;
mod record;
mod recover;
mod sizes;
mod space;
mod state;
mod store;
mod table;
mod turns;
mod usage;
mod verify;

pub use blobs::{BlobOptions, LayerBlob};
pub use content::{Blob, Content, ContentReader, ContentWriter};
pub use error::{BoxError, StoreError};
pub use filter::{Fields, Filter};
pub use gc::{GcPolicy, PruneOptions, Pruned, default_policies, disk_total, percent_of_disk};
pub use images::Images;
pub use meta::Crash;
pub use model::{BlobInfo, Image, RecordId, RecordKind};
pub use pull::{ImageLayer, ImageLayers, LayerProgress, LayerStage, no_progress};
pub use record::{MutRef, NewRecord, Ref};
pub use recover::Recovery;
pub use space::{Pressure, Room, Writer};
pub use store::{Config, Store};
pub use table::Table;
pub use usage::{Overhead, Usage};
pub use verify::Verified;
