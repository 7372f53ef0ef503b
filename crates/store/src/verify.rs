//! Checks that everything on disk is what its name says, and repairs what it can.

use std::{collections::HashSet, io::Read as _, sync::Arc};

use base::{Digest, Hasher};
use futures_util::{StreamExt as _, stream};
use snapshot::LayerId;

use crate::{RecordId, Store, StoreError, error::Doing as _, record::blocking};

/// Blobs hashed at the same time.
const HASHING: usize = 4;

/// What a check found and did.
#[derive(Debug, Clone, Default)]
pub struct Verified {
    /// Blobs whose bytes were hashed.
    pub blobs: u64,
    /// Bytes hashed.
    pub bytes: u64,
    /// Records looked at.
    pub records: u64,
    /// Blobs with other bytes than promised; removed. Layers that have files here get new ones
    /// when they are exported, others are fetched again.
    pub damaged: Vec<Digest>,
    /// Records that lost their files for good; removed.
    pub dropped: Vec<RecordId>,
    /// Other findings and repairs, in words.
    pub notes: Vec<String>,
}

impl Store {
    /// Hashes every blob, looks for every layer, and repairs: see [`Verified`].
    pub async fn verify(self: &Arc<Self>) -> Result<Verified, StoreError> {
        let mut verified = Verified::default();
        let hashes = self.content().list().into_iter().map(|(digest, size)| {
            let store = self.clone();
            blocking("hash a blob", move || Ok((digest, size, store.hash_blob(&digest, size)?)))
        });
        let mut hashes = stream::iter(hashes).buffer_unordered(HASHING);
        while let Some(outcome) = hashes.next().await {
            let (digest, size, good) = outcome?;
            verified.blobs += 1;
            verified.bytes += size;
            if !good {
                self.content().condemn(&digest);
                verified.damaged.push(digest);
            }
        }
        verified.damaged.sort();
        let store = self.clone();
        let verified = blocking("check layers", move || {
            store.verify_layers(&mut verified)?;
            Ok(verified)
        })
        .await?;
        self.flush().await?;
        Ok(verified)
    }

    /// Whether a blob's bytes are right. One that was collected meanwhile is.
    fn hash_blob(&self, digest: &Digest, size: u64) -> Result<bool, StoreError> {
        let Some(_held) = self.content().hold(digest) else { return Ok(true) };
        let mut file = match self.content().open(digest) {
            Ok(file) => file,
            Err(StoreError::NoBlob(_)) => return Ok(false),
            Err(error) => return Err(error),
        };
        let (mut hasher, mut seen) = (Hasher::new(), 0);
        let mut buffer = vec![0; 1 << 20];
        loop {
            let read = file.read(&mut buffer).doing(|| format!("read blob {digest}"))?;
            if read == 0 {
                return Ok(seen == size && hasher.finish() == *digest);
            }
            hasher.update(&buffer[..read]);
            seen += read as u64;
        }
    }

    fn verify_layers(&self, verified: &mut Verified) -> Result<(), StoreError> {
        let on_disk: HashSet<LayerId> = self.snapshotter().list()?.into_iter().collect();
        let known: Vec<(LayerId, u64, bool)> = {
            let state = self.state();
            verified.records = state.records.len() as u64;
            let here = state.layers.iter().filter(|(_, layer)| layer.row.here);
            here.map(|(id, layer)| (id.clone(), layer.row.size, layer.row.writing)).collect()
        };
        for (layer, size, writing) in known {
            if !on_disk.contains(&layer) {
                self.lost_layer(&layer, verified);
                continue;
            }
            // A layer being written has no size yet.
            let measured = self.snapshotter().usage(&layer).map_or(size, |usage| usage.bytes);
            if !writing && measured != size {
                let mut state = self.state();
                if let Some(known) = state.layers.get_mut(&layer) {
                    known.row.size = measured;
                    state.save_layer(&layer, self.meta());
                }
                verified.notes.push(format!("layer {layer} takes {measured} bytes, not {size}"));
            }
        }
        let state = self.state();
        for layer in on_disk.iter().filter(|id| !state.layers.contains_key(*id)) {
            // It may belong to work under way; the next start tells.
            verified.notes.push(format!("layer {layer} belongs to no record"));
        }
        Ok(())
    }

    /// The folder is gone: the layer is lazy again if it has a blob, else its records go with all
    /// that was built on them.
    fn lost_layer(&self, layer: &LayerId, verified: &mut Verified) {
        let mut state = self.state();
        let Some(known) = state.layers.get_mut(layer) else { return };
        known.row.here = false;
        known.row.size = 0;
        let has_blob = !known.row.blobs.is_empty();
        state.save_layer(layer, self.meta());
        if has_blob {
            verified.notes.push(format!("layer {layer} is gone and will be unpacked again"));
            return;
        }
        let mut doomed: Vec<RecordId> = Vec::new();
        let mut queue: Vec<RecordId> = state
            .records
            .iter()
            .filter(|(_, record)| record.row.layers.contains(layer))
            .map(|(id, _)| id.clone())
            .collect();
        while let Some(id) = queue.pop() {
            if doomed.contains(&id) {
                continue;
            }
            let children =
                state.records.iter().filter(|(_, it)| it.row.needs().any(|need| *need == id));
            queue.extend(children.map(|(child, _)| child.clone()));
            doomed.push(id);
        }
        // Children first, until nothing more goes.
        loop {
            let before = doomed.len();
            doomed.retain(|id| {
                let gone = state.records.get(id).is_none_or(crate::state::Record::idle);
                if gone {
                    state.remove_idle(id, self.meta());
                    verified.dropped.push(id.clone());
                }
                !gone
            });
            if doomed.len() == before {
                break;
            }
        }
        for id in doomed {
            verified.notes.push(format!("record {id} lost its files and is in use"));
        }
    }
}
