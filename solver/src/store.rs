//! Where keys, their links and their results are kept.
//!
//! A store is a graph: a *link* (operation, input number, selector) leads from the key of an input
//! to the key of what was built on it. It is held in memory whole and does no IO; what changes is
//! noted as a list of [`Change`]s that somebody else makes durable and replays at start-up.
//!
//! Invariant: a key is present exactly while it has a result or leads somewhere.

use std::{sync::Arc, time::SystemTime};

use base::Digest;

use crate::keys::{KeyDigest, KeyId, RecordId};

/// How a key follows from the key of one of its inputs.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Link {
    /// Number of the input.
    pub input: u32,
    /// Output of the operation.
    pub output: i32,
    /// Digest of the operation.
    pub digest: KeyDigest,
    /// The part of the input that counts; none for content keys.
    pub selector: Option<Digest>,
}

/// One change to the main store, to be made durable in order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Change {
    /// `from` leads to `to`.
    PutLink {
        /// key of the input
        from: KeyId,
        /// how
        link: Link,
        /// key of the result
        to: KeyId,
    },
    /// It no longer does.
    RemoveLink {
        /// key of the input
        from: KeyId,
        /// how
        link: Link,
        /// key of the result
        to: KeyId,
    },
    /// `record` is a result of `key`.
    PutResult {
        /// the key
        key: KeyId,
        /// the result
        record: RecordId,
        /// when it was made
        created_at: SystemTime,
    },
    /// It no longer is.
    RemoveResult {
        /// the key
        key: KeyId,
        /// the result
        record: RecordId,
    },
}

/// A read-only store that came from elsewhere, attached to the vertices of a load.
pub struct Import {
    /// Names it; equal ids are taken to be the same import.
    pub id: Arc<str>,
    /// What it knows.
    pub store: KeyStore,
}

/// Keys, links and results; see the module's page.
#[derive(Default)]
pub struct KeyStore {}

impl KeyStore {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    /// A store in which `changes` have happened.
    pub fn restore(_changes: impl IntoIterator<Item = Change>) -> Self {
        unreachable!("not built yet")
    }

    /// What happened since the last call, in order.
    pub fn take_changes(&mut self) -> Vec<Change> {
        unreachable!("not built yet")
    }

    /// Notes that `from` leads to `to`.
    pub fn add_link(&mut self, _from: KeyId, _link: Link, _to: KeyId) {
        unreachable!("not built yet")
    }

    /// Notes that `record` is a result of `key`.
    pub fn add_result(&mut self, _key: KeyId, _record: RecordId, _created_at: SystemTime) {
        unreachable!("not built yet")
    }

    /// A name for a new key that has inputs.
    pub fn fresh_id(&mut self) -> KeyId {
        unreachable!("not built yet")
    }

    /// Forgets a result, and keys that are left with nothing.
    pub fn remove_record(&mut self, _record: &RecordId) {
        unreachable!("not built yet")
    }

    /// Forgets all results that `keep` refuses.
    pub fn retain_records(&mut self, _keep: impl FnMut(&RecordId) -> bool) {
        unreachable!("not built yet")
    }

    /// Results of `key`, newest first.
    pub fn results(&self, _key: KeyId) -> Vec<(RecordId, SystemTime)> {
        unreachable!("not built yet")
    }

    /// Keys that hold `record`.
    pub fn keys_of(&self, _record: &RecordId) -> Vec<KeyId> {
        unreachable!("not built yet")
    }

    /// The keys that `from` leads to by `link`.
    pub fn targets(&self, _from: KeyId, _link: &Link) -> Vec<KeyId> {
        unreachable!("not built yet")
    }

    /// All ways that lead to `key`.
    pub fn sources(&self, _key: KeyId) -> Vec<(KeyId, Link)> {
        unreachable!("not built yet")
    }

    /// Whether `key` is present.
    pub fn contains(&self, _key: KeyId) -> bool {
        unreachable!("not built yet")
    }
}
