//! What takes how much space.

use std::time::SystemTime;

use crate::{Filter, RecordId, RecordKind, Store};

/// One record as `du` and `prune` show it.
#[derive(Debug, Clone)]
pub struct Usage {
    /// Its id.
    pub id: RecordId,
    /// Whether it can be written to.
    pub mutable: bool,
    /// Whether somebody holds it (or its view).
    pub in_use: bool,
    /// Whether a named image keeps its layer's blob too.
    pub shared: bool,
    /// Bytes on disk; 0 for a mutable record in use.
    pub size: u64,
    /// Records it is made of.
    pub parents: Vec<RecordId>,
    /// When it was made.
    pub created_at: SystemTime,
    /// When it was last let go; `None` is never.
    pub last_used_at: Option<SystemTime>,
    /// How often it was used.
    pub usage_count: u64,
    /// For people.
    pub description: String,
    /// What it is for.
    pub kind: RecordKind,
}

impl Store {
    /// All records that match one of `filters` (all, if there are none), oldest first.
    pub fn disk_usage(&self, filters: &[Filter]) -> Vec<Usage> {
        _ = filters;
        unreachable!("not built yet")
    }
}
