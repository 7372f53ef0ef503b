//! The solver's keys on disk.

use solver::{Change, KeyStore};

use crate::{Store, StoreError};

impl Store {
    /// The solver's key store as it was when the daemon ended, without results whose records are
    /// gone.
    pub fn load_keys(&self) -> Result<KeyStore, StoreError> {
        unreachable!("not built yet")
    }

    /// Makes the solver's changes durable, in order, with the next group.
    pub fn save_keys(&self, changes: Vec<Change>) {
        _ = changes;
        unreachable!("not built yet")
    }

    /// What the solver calls a record: `<worker id>::<record id>`, or `<worker id>::` for nothing.
    pub fn result_id(&self, result: Option<&crate::RecordId>) -> solver::RecordId {
        let record = result.map(crate::RecordId::as_str).unwrap_or_default();
        format!("{}::{record}", self.worker_id()).into()
    }

    /// The record a solver's name means: `Some(None)` for nothing, `None` if it is not of this
    /// store.
    pub fn parse_result_id(&self, id: &solver::RecordId) -> Option<Option<crate::RecordId>> {
        let record = id.0.strip_prefix(self.worker_id())?.strip_prefix("::")?;
        Some((!record.is_empty()).then(|| record.into()))
    }
}
