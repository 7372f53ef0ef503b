//! What is put right when a store is opened.

use base::Digest;

use crate::RecordId;

/// What start-up found and did after a daemon that did not end properly.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Recovery {
    /// Layers no record names; removed.
    pub layers: Vec<String>,
    /// Blobs not known; removed.
    pub blobs: Vec<Digest>,
    /// Records whose data is missing; dropped.
    pub records: Vec<RecordId>,
    /// Images whose manifest is missing; dropped.
    pub images: Vec<String>,
}
