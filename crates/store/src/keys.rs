//! The solver's keys on disk: one row per link and per result, the row's key holding all of it.
//!
//! Changes are rows put or removed, so replaying them in any order gives the same store, and a
//! link that comes and goes within one group never reaches the disk.

use std::time::SystemTime;

use base::Digest;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use solver::{Change, KeyId, KeyStore, keys::KeyDigest, store::Link};

use crate::{RecordId, Store, StoreError, meta::T, state::json};

/// The key of a row.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
enum Row {
    #[serde(rename = "l")]
    Link {
        #[serde(rename = "f")]
        from: KeyId,
        #[serde(rename = "i", default)]
        input: u32,
        #[serde(rename = "o", default)]
        output: i32,
        #[serde(rename = "d")]
        digest: KeyDigest,
        #[serde(rename = "s", default, skip_serializing_if = "Option::is_none")]
        selector: Option<Digest>,
        #[serde(rename = "t")]
        to: KeyId,
    },
    #[serde(rename = "r")]
    Result {
        #[serde(rename = "k")]
        key: KeyId,
        #[serde(rename = "r")]
        record: solver::RecordId,
    },
}

impl Row {
    fn of(change: Change) -> (Self, Option<Bytes>) {
        let link = |from, link: Link, to| {
            let Link { input, output, digest, selector } = link;
            Row::Link { from, input, output, digest, selector, to }
        };
        match change {
            Change::PutLink { from, link: how, to } => (link(from, how, to), Some(Bytes::new())),
            Change::RemoveLink { from, link: how, to } => (link(from, how, to), None),
            Change::PutResult { key, record, created_at } => {
                let at = base::time::unix_nanos(created_at).to_le_bytes();
                (Row::Result { key, record }, Some(Bytes::copy_from_slice(&at)))
            }
            Change::RemoveResult { key, record } => (Row::Result { key, record }, None),
        }
    }

    fn change(self, value: &[u8]) -> Change {
        match self {
            Row::Link { from, input, output, digest, selector, to } => {
                Change::PutLink { from, link: Link { input, output, digest, selector }, to }
            }
            Row::Result { key, record } => {
                let at = value.try_into().map(i64::from_le_bytes);
                let created_at = at.map_or(SystemTime::UNIX_EPOCH, base::time::from_unix_nanos);
                Change::PutResult { key, record, created_at }
            }
        }
    }
}

impl Store {
    /// The solver's key store as it was when the daemon ended, without results whose records are
    /// gone.
    pub fn load_keys(&self) -> Result<KeyStore, StoreError> {
        let mut changes = Vec::new();
        for (key, value) in self.meta().scan(T::Solver, b"")? {
            match serde_json::from_slice::<Row>(&key) {
                Ok(row) => changes.push(row.change(&value)),
                Err(error) => {
                    tracing::warn!("unreadable cache key dropped: {error}");
                    self.meta().set(T::Solver, key, None);
                }
            }
        }
        let mut keys = KeyStore::restore(changes);
        keys.retain_records(|record| self.result_exists(record));
        self.save_keys(keys.take_changes());
        Ok(keys)
    }

    /// Makes the solver's changes durable with the next group.
    pub fn save_keys(&self, changes: Vec<Change>) {
        self.meta().set_all(changes.into_iter().map(|change| {
            let (row, value) = Row::of(change);
            (T::Solver, json(&row).to_vec(), value)
        }));
    }

    /// Whether the record behind a solver's result is still here; of other stores' results nothing
    /// is.
    pub fn result_exists(&self, result: &solver::RecordId) -> bool {
        match self.parse_result_id(result) {
            Some(Some(record)) => self.contains(&record),
            Some(None) => true,
            None => false,
        }
    }

    /// What the solver calls a record: `<worker id>::<record id>`, or `<worker id>::` for nothing.
    pub fn result_id(&self, result: Option<&RecordId>) -> solver::RecordId {
        let record = result.map(RecordId::as_str).unwrap_or_default();
        format!("{}::{record}", self.worker_id()).into()
    }

    /// The record a solver's name means: `Some(None)` for nothing, `None` if it is not of this
    /// store.
    pub fn parse_result_id(&self, id: &solver::RecordId) -> Option<Option<RecordId>> {
        let record = id.0.strip_prefix(self.worker_id())?.strip_prefix("::")?;
        Some((!record.is_empty()).then(|| record.into()))
    }
}
