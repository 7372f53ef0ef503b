//! Small named tables for other parts of the daemon: resolutions, ETags, history records.
//!
//! A table is ordered by key and read by prefix. Changes are visible at once and durable as all of the
//! store's are (see [`Store::flush`](crate::Store::flush)).

use std::sync::Arc;

use bytes::Bytes;
use serde::{Serialize, de::DeserializeOwned};

use crate::{
    StoreError,
    meta::{Meta, T},
};

/// A named table of bytes by key.
#[derive(Clone)]
pub struct Table {
    meta: Arc<Meta>,
    /// Name and a zero byte, in front of every key.
    prefix: Arc<[u8]>,
}

impl Table {
    pub(crate) fn new(meta: Arc<Meta>, name: &str) -> Self {
        assert!(!name.contains('\0'), "table names have no zero bytes");
        Self { meta, prefix: values_key(name, b"").into() }
    }

    fn key(&self, key: &[u8]) -> Vec<u8> {
        [&self.prefix, key].concat()
    }

    /// The value under `key`.
    pub fn get(&self, key: impl AsRef<[u8]>) -> Result<Option<Bytes>, StoreError> {
        self.meta.get(T::Values, &self.key(key.as_ref()))
    }

    /// Sets the value under `key`.
    pub fn put(&self, key: impl AsRef<[u8]>, value: impl Into<Bytes>) {
        self.meta.set(T::Values, self.key(key.as_ref()), Some(value.into()));
    }

    /// Removes `key`.
    pub fn remove(&self, key: impl AsRef<[u8]>) {
        self.meta.set(T::Values, self.key(key.as_ref()), None);
    }

    /// Several changes that are kept together, or lost together; `None` removes.
    pub fn apply<K: AsRef<[u8]>>(&self, changes: impl IntoIterator<Item = (K, Option<Bytes>)>) {
        let changes = changes.into_iter();
        self.meta.set_all(changes.map(|(key, value)| (T::Values, self.key(key.as_ref()), value)));
    }

    /// All entries whose keys start with `prefix`, in key order.
    pub fn scan(&self, prefix: impl AsRef<[u8]>) -> Result<Vec<(Vec<u8>, Bytes)>, StoreError> {
        let mut found = self.meta.scan(T::Values, &self.key(prefix.as_ref()))?;
        for (key, _) in &mut found {
            key.drain(..self.prefix.len());
        }
        Ok(found)
    }

    /// The value under `key`, read as JSON; a value that cannot be read counts as absent.
    pub fn get_json<V: DeserializeOwned>(
        &self,
        key: impl AsRef<[u8]>,
    ) -> Result<Option<V>, StoreError> {
        Ok(self.get(key)?.and_then(|bytes| serde_json::from_slice(&bytes).ok()))
    }

    /// Sets the value under `key` to the JSON of `value`.
    pub fn put_json<V: Serialize>(&self, key: impl AsRef<[u8]>, value: &V) {
        let bytes = serde_json::to_vec(value).expect("table values have a JSON form");
        self.put(key, bytes);
    }
}

/// How tables share one tree of the database: name, zero byte, key.
pub(crate) fn values_key(table: &str, key: &[u8]) -> Vec<u8> {
    [table.as_bytes(), b"\0", key].concat()
}
