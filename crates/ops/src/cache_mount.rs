//! Folders that steps keep between runs.
//!
//! A cache mount's folder is a mutable record found by its key. *Shared* ones are handed to
//! everybody who asks while somebody holds them; *private* ones go to one step at a time, others
//! get a new folder; *locked* ones go to one step at a time, others wait.
//! Source: LLB notes §4.3. Invariant: search and creation are serialised per key.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, Weak},
};

use llb::pb::CacheSharingOpt;
use store::{MutRef, NewRecord, RecordKind, Ref, Store, StoreError};
use tokio_util::sync::CancellationToken;

use crate::OpError;

/// The cache mounts of a store.
pub struct CacheMounts {
    store: Arc<Store>,
    shared: Mutex<HashMap<String, Weak<MutRef>>>,
    searching: Mutex<HashMap<String, Weak<tokio::sync::Mutex<()>>>>,
}

/// A cache mount that is asked for.
pub(crate) struct Wanted<'a> {
    /// Id, or destination if it has none.
    pub id: &'a str,
    /// What the folder starts from.
    pub input: Option<&'a Ref>,
    pub sharing: CacheSharingOpt,
    pub description: String,
}

impl CacheMounts {
    /// Over the records of `store`.
    pub fn new(store: Arc<Store>) -> Self {
        Self { store, shared: Mutex::default(), searching: Mutex::default() }
    }

    /// Forgets shared folders, so that the next step starts a new one. Called when cache mounts are
    /// pruned.
    pub fn forget_shared(&self) {
        self.shared.lock().expect("no panic while holding shared mounts").clear();
    }

    /// Gets the folder, waiting for a locked one.
    pub(crate) async fn take(
        &self,
        wanted: Wanted<'_>,
        cancelled: &CancellationToken,
    ) -> Result<Arc<MutRef>, OpError> {
        let key = match wanted.input {
            Some(input) => format!("{}:{}", wanted.id, input.id()),
            None => wanted.id.to_owned(),
        };
        let index = format!("cache-dir:{key}");
        let gate = self.gate(&key);
        loop {
            let searching = gate.lock().await;
            if wanted.sharing == CacheSharingOpt::Shared {
                let held = self
                    .shared
                    .lock()
                    .expect("no panic while holding shared mounts")
                    .get(&key)
                    .cloned();
                if let Some(held) = held.and_then(|weak| weak.upgrade()) {
                    return Ok(held);
                }
            }
            let mut busy = false;
            for id in self.store.find(&index) {
                match self.store.take_mutable(&id) {
                    Ok(folder) => return Ok(self.hand_out(&key, folder, wanted.sharing)),
                    Err(StoreError::InUse(_)) => busy = true,
                    Err(StoreError::NoRecord(_)) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            if busy && wanted.sharing == CacheSharingOpt::Locked {
                drop(searching);
                tokio::select! {
                    () = self.store.wait_released() => continue,
                    () = cancelled.cancelled() => return Err(OpError::Cancelled),
                }
            }
            let folder = self.store.create(NewRecord {
                parent: wanted.input,
                description: wanted.description.clone(),
                kind: RecordKind::CacheMount,
                retain: true,
                index_keys: vec![index.clone()],
                ..NewRecord::default()
            })?;
            return Ok(self.hand_out(&key, folder, wanted.sharing));
        }
    }

    /// Drops the folders of an id: they are not found again and go when nobody uses them.
    pub fn prune_id(&self, id: &str) {
        self.forget_shared();
        for record in self.store.find(&format!("cache-dir:{id}")) {
            if let Ok(folder) = self.store.take_mutable(&record) {
                folder.discard();
            }
        }
    }

    fn hand_out(&self, key: &str, folder: MutRef, sharing: CacheSharingOpt) -> Arc<MutRef> {
        let folder = Arc::new(folder);
        if sharing == CacheSharingOpt::Shared {
            let mut shared = self.shared.lock().expect("no panic while holding shared mounts");
            shared.retain(|_, weak| weak.strong_count() > 0);
            shared.insert(key.to_owned(), Arc::downgrade(&folder));
        }
        folder
    }

    fn gate(&self, key: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut gates = self.searching.lock().expect("no panic while holding gates");
        gates.retain(|_, weak| weak.strong_count() > 0);
        if let Some(gate) = gates.get(key).and_then(Weak::upgrade) {
            return gate;
        }
        let gate = Arc::new(tokio::sync::Mutex::new(()));
        gates.insert(key.to_owned(), Arc::downgrade(&gate));
        gate
    }
}
