//! Pruning: on request, by policy, and to stay below the ceiling.

use std::{sync::Arc, time::Duration};

use crate::{Filter, Store, StoreError, Usage};

/// What may go, and how much has to stay.
#[derive(Debug, Clone, Default)]
pub struct PruneOptions {
    /// Only what matches one of these; empty is everything.
    pub filters: Vec<Filter>,
    /// Internal, frontend and shared records too.
    pub all: bool,
    /// Keep what was used within this time.
    pub keep_duration: Option<Duration>,
    /// Never go below this many bytes.
    pub reserved_space: u64,
    /// Go below this many bytes.
    pub max_used_space: u64,
    /// Leave this many bytes of the disk free.
    pub min_free_space: u64,
}

/// One entry of a policy list: [`PruneOptions`] applied after each build.
pub type GcPolicy = PruneOptions;

/// The policies used unless others are configured. Zero for a limit means its default.
pub fn default_policies(reserved: u64, max_used: u64, min_free: u64) -> Vec<GcPolicy> {
    _ = (reserved, max_used, min_free);
    unreachable!("not built yet")
}

/// What a prune did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pruned {
    /// Records removed.
    pub records: u64,
    /// Bytes freed by them.
    pub bytes: u64,
    /// Blobs nobody named, removed afterwards.
    pub blobs: u64,
    /// Bytes freed by those.
    pub blob_bytes: u64,
}

/// How close the store is to its ceiling.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pressure {
    /// Bytes in use, work in flight included.
    pub used: u64,
    /// The ceiling.
    pub ceiling: u64,
}

/// Room set aside for work about to start; dropping it gives it back.
#[derive(Debug)]
pub struct Reservation {
    _todo: (),
}

impl Store {
    /// Removes records by these rules, telling each, then blobs nobody names.
    pub async fn prune(
        self: &Arc<Self>,
        options: PruneOptions,
        on_removed: impl FnMut(Usage) + Send + 'static,
    ) -> Result<Pruned, StoreError> {
        _ = (options, on_removed);
        unreachable!("not built yet")
    }

    /// Applies the configured policies in order.
    pub async fn collect(self: &Arc<Self>) -> Result<Pruned, StoreError> {
        unreachable!("not built yet")
    }

    /// Room for `bytes` more below the ceiling, collecting if need be. Call before starting work;
    /// without a ceiling, or far below it, this costs nothing.
    pub async fn reserve(self: &Arc<Self>, bytes: u64) -> Result<Reservation, StoreError> {
        _ = bytes;
        unreachable!("not built yet")
    }
}
