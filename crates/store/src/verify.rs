//! Checks that everything on disk is what its name says, and repairs what it can if asked to.

use std::{collections::HashSet, io::Read as _, sync::Arc};

use base::{Digest, Hasher};
use futures_util::{StreamExt as _, stream};
use snapshot::LayerId;

use crate::{
    RecordId, Store, StoreError, error::Doing as _, layers::Chore, model::RecordRow,
    record::blocking, state::State,
};

/// Blobs hashed at the same time.
const HASHING: usize = 4;
/// Files of one record that are named when they are wrong.
const TOLD: usize = 20;

/// What a check found and, if asked to, did.
#[derive(Debug, Clone, Default)]
pub struct Verified {
    /// Blobs whose bytes were hashed.
    pub blobs: u64,
    /// Bytes hashed.
    pub bytes: u64,
    /// Records looked at.
    pub records: u64,
    /// Files whose content was compared with what was known of it.
    pub files: u64,
    /// Blobs with other bytes than promised; removed by a repair. Layers that have files here get
    /// new ones when they are exported, others are fetched again.
    pub damaged: Vec<Digest>,
    /// Records that lost their files for good, or have others than they had; removed by a repair,
    /// and all that is built on them.
    pub broken: Vec<RecordId>,
    /// Other findings, in words.
    pub notes: Vec<String>,
}

impl Verified {
    /// Whether nothing was found.
    pub fn is_clean(&self) -> bool {
        self.damaged.is_empty() && self.broken.is_empty() && self.notes.is_empty()
    }
}

impl Store {
    /// Hashes every blob, looks for every layer, compares files with what is known of their
    /// content; with `repair` drops what is broken. See [`Verified`].
    pub async fn verify(self: &Arc<Self>, repair: bool) -> Result<Verified, StoreError> {
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
                if repair {
                    self.content().condemn(&digest);
                }
                verified.damaged.push(digest);
            }
        }
        verified.damaged.sort();
        let store = self.clone();
        let mut verified = blocking("check layers", move || {
            store.tidy().wait();
            store.verify_layers(repair, &mut verified)?;
            store.verify_names(&mut verified);
            Ok(verified)
        })
        .await?;
        self.verify_files(repair, &mut verified).await?;
        self.flush().await?;
        Ok(verified)
    }

    /// What records and images name must be here.
    fn verify_names(&self, verified: &mut Verified) {
        let state = self.state();
        for (id, record) in &state.records {
            for parent in record.row.needs().filter(|parent| !state.records.contains_key(*parent)) {
                verified.notes.push(format!("record {id} is built on {parent}, which is gone"));
            }
            for layer in record.row.layers.iter().filter(|it| !state.layers.contains_key(*it)) {
                verified.notes.push(format!("record {id} has layer {layer}, which is gone"));
            }
        }
        drop(state);
        for image in self.images().list() {
            if !self.content().contains(&image.descriptor.digest) {
                let digest = image.descriptor.digest;
                verified
                    .notes
                    .push(format!("image {} names blob {digest}, which is gone", image.name));
            }
        }
    }

    /// Hashes the files whose digests are known.
    async fn verify_files(
        self: &Arc<Self>,
        repair: bool,
        verified: &mut Verified,
    ) -> Result<(), StoreError> {
        let ids: Vec<RecordId> = {
            let state = self.state();
            let known = |row: &RecordRow| !row.mutable || row.view.is_some();
            let records = state.records.iter().filter(|(_, record)| known(&record.row));
            records
                .map(|(id, record)| record.row.view.clone().unwrap_or_else(|| id.clone()))
                .collect()
        };
        for id in ids {
            if verified.broken.contains(&id) {
                continue;
            }
            // Lazy ones have no files; those gone meanwhile are nobody's.
            let Some(held) = self.get(&id).filter(|held| held.is_local()) else { continue };
            let checked = blocking("compare files", move || {
                let index = held.stored_index();
                let (files, wrong) = match held.tree() {
                    Ok(tree) => index.wrong_files(&tree),
                    Err(error) => (0, vec![error.to_string()]),
                };
                // Not a use of the record.
                held.forget_use();
                Ok((files, wrong))
            });
            let (files, wrong) = checked.await?;
            verified.files += files;
            if wrong.is_empty() {
                continue;
            }
            for wrong in wrong.into_iter().take(TOLD) {
                verified.notes.push(format!("record {id}: {wrong}"));
            }
            match repair {
                true => self.drop_with_children(&mut self.state(), vec![id], verified),
                false => verified.broken.push(id),
            }
        }
        Ok(())
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

    fn verify_layers(&self, repair: bool, verified: &mut Verified) -> Result<(), StoreError> {
        let on_disk: HashSet<LayerId> = self.snapshotter().list()?.into_iter().collect();
        let known: Vec<(LayerId, u64, bool)> = {
            let state = self.state();
            verified.records = state.records.len() as u64;
            let here = state.layers.iter().filter(|(_, layer)| layer.row.here);
            here.map(|(id, layer)| (id.clone(), layer.row.size, layer.row.writing)).collect()
        };
        for (layer, size, writing) in known {
            if !on_disk.contains(&layer) {
                self.lost_layer(&layer, repair, verified);
                continue;
            }
            // A layer being written has no size yet.
            let measured = self.snapshotter().usage(&layer).map_or(size, |usage| usage.bytes);
            if !writing && measured != size {
                verified.notes.push(format!("layer {layer} takes {measured} bytes, not {size}"));
                if !repair {
                    continue;
                }
                let mut state = self.state();
                if let Some(known) = state.layers.get_mut(&layer) {
                    known.row.size = measured;
                    state.save_layer(&layer, self.meta());
                }
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
    fn lost_layer(&self, layer: &LayerId, repair: bool, verified: &mut Verified) {
        let mut state = self.state();
        let Some(known) = state.layers.get_mut(layer) else { return };
        let has_blob = !known.row.blobs.is_empty();
        if repair {
            known.row.here = false;
            known.row.size = 0;
            state.save_layer(layer, self.meta());
        }
        if has_blob {
            verified.notes.push(format!("the files of layer {layer} are gone; it has a blob"));
            return;
        }
        let records = state.records.iter().filter(|(_, it)| it.row.layers.contains(layer));
        let records: Vec<RecordId> = records.map(|(id, _)| id.clone()).collect();
        match repair {
            true => self.drop_with_children(&mut state, records, verified),
            false => verified.broken.extend(records),
        }
    }

    /// Removes records and all that is built on them, as far as nobody uses them.
    fn drop_with_children(
        &self,
        state: &mut State,
        mut queue: Vec<RecordId>,
        verified: &mut Verified,
    ) {
        let mut doomed: Vec<RecordId> = Vec::new();
        while let Some(id) = queue.pop() {
            let id = state.keeper(&id).unwrap_or(id);
            if doomed.contains(&id) {
                continue;
            }
            let children =
                state.records.iter().filter(|(_, it)| it.row.needs().any(|need| *need == id));
            queue.extend(children.map(|(child, _)| child.clone()));
            doomed.push(id);
        }
        // Children first, until nothing more goes.
        let mut layers = Vec::new();
        loop {
            let before = doomed.len();
            doomed.retain(|id| {
                let gone = state.records.get(id).is_none_or(|record| record.idle());
                if gone {
                    layers.extend(state.remove_idle(id, self.meta()));
                    verified.broken.push(id.clone());
                }
                !gone
            });
            if doomed.len() == before {
                break;
            }
        }
        self.tidy().add(Chore::Remove(layers));
        for id in doomed {
            verified.notes.push(format!("record {id} is broken and in use"));
        }
    }
}
