//! From the keys of a build's result to a cache.
//!
//! Starting at the key of a result, every key it is built on is visited once: first what it is (is
//! there a result, are there layers, may they be made?), then, when all its inputs are done, how it
//! is reached, by the build's own keys and by every other way that the key stores know. A key that
//! cannot be reached from outside this daemon (it stands on private files alone) is left out, and
//! with it whatever has no other way.
//!
//! Chains of keys may be tens of thousands long, hence nothing here recurses.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    time::SystemTime,
};

use async_trait::async_trait;
use base::{Digest, time};
use oci::{Compression, Descriptor, types};
use solver::{CacheKey, KeyDigest, KeyId, Link, RecordId, Solver, StoreIndex, Worker};
use store::{BlobOptions, LayerBlob, Ref};

use crate::{CacheError, Chain, Chains, ItemId, Layer, Mode};

/// Annotations of layer blobs that a cache keeps, besides those of estargz.
const KEPT: &[&str] = &[types::ANNOTATION_UNCOMPRESSED];
const KEPT_PREFIX: &str = "containerd.io/snapshot/stargz/";

/// Who brings back stored results.
#[async_trait]
pub trait Records: Send + Sync {
    /// The result, able to give its layer blobs; `None` if it is gone or empty.
    async fn load(&self, record: &RecordId) -> Option<Ref>;
}

/// How results become layers.
#[derive(Debug, Clone, Copy)]
pub struct WalkOptions {
    /// How much.
    pub mode: Mode,
    /// Compression of layers that are made.
    pub compression: Compression,
    /// Its level.
    pub level: Option<i32>,
    /// Convert layers that exist.
    pub force: bool,
}

/// For which results layers may be made.
#[derive(Clone, Copy, PartialEq)]
enum Reach {
    All,
    UntilFound,
    Existing,
}

enum Frame {
    Enter(CacheKey, Reach),
    Leave(CacheKey, Option<Chain>),
}

type Name = (StoreIndex, KeyId);
type Way = (Option<Digest>, ItemId);

/// A walk under way. Several results may be added, then the cache is taken.
pub struct Walk<'a, W: Worker> {
    solver: &'a Solver<W>,
    records: &'a dyn Records,
    options: WalkOptions,
    chains: Chains,
    done: HashMap<usize, Option<ItemId>>,
    // Addresses tell keys apart only while the keys live.
    visited: Vec<CacheKey>,
    by_name: HashMap<Name, Option<ItemId>>,
}

impl<'a, W: Worker> Walk<'a, W> {
    /// A walk over a solver's keys; imports are seen while their job lasts.
    pub fn new(solver: &'a Solver<W>, records: &'a dyn Records, options: WalkOptions) -> Self {
        Self {
            solver,
            records,
            options,
            chains: Chains::default(),
            done: HashMap::new(),
            visited: Vec::new(),
            by_name: HashMap::new(),
        }
    }

    /// What was gathered.
    pub fn finish(self) -> Chains {
        self.chains
    }

    /// Adds a result by its main key; `record` is its stored form.
    pub async fn add(
        &mut self,
        key: &CacheKey,
        record: Option<&RecordId>,
    ) -> Result<(), CacheError> {
        let reach = match self.options.mode {
            Mode::Max => Reach::All,
            Mode::Min => Reach::UntilFound,
        };
        let mut stack = vec![Frame::Enter(key.clone(), reach)];
        let mut record = record;
        while let Some(frame) = stack.pop() {
            match frame {
                Frame::Enter(key, reach) => {
                    if self.done.contains_key(&key.address()) {
                        continue;
                    }
                    self.visited.push(key.clone());
                    self.done.insert(key.address(), None);
                    let companions = key.companions().into_iter();
                    stack.extend(companions.map(|companion| Frame::Enter(companion, reach)));
                    if key.digest().is_random() {
                        continue;
                    }
                    let result = self.result(&key, record.take(), reach).await?;
                    let below = match reach {
                        Reach::UntilFound if result.is_some() => Reach::Existing,
                        reach => reach,
                    };
                    stack.push(Frame::Leave(key.clone(), result));
                    let inputs = key.inputs().iter().flatten().rev();
                    stack.extend(inputs.map(|input| Frame::Enter(input.key.clone(), below)));
                }
                Frame::Leave(key, result) => {
                    let item = self.item(&key, result);
                    self.done.insert(key.address(), item);
                    for name in key.ids() {
                        self.by_name.insert(name, item);
                    }
                }
            }
        }
        Ok(())
    }

    /// The newest result of a key that can be had.
    async fn result(
        &self,
        key: &CacheKey,
        preferred: Option<&RecordId>,
        reach: Reach,
    ) -> Result<Option<Chain>, CacheError> {
        if key.is_root() || key.is_unexported() {
            return Ok(None);
        }
        let mut names = key.ids();
        names.sort();
        let mut found: Vec<(RecordId, SystemTime)> = self.solver.with_stores(|stores| {
            let known =
                names.iter().filter_map(|(store, id)| Some(stores.get(*store)?.results(*id)));
            known.flatten().collect()
        });
        found.sort_by_key(|(record, at)| (Some(record) != preferred, std::cmp::Reverse(*at)));
        for (record, created_at) in found {
            let Some(tree) = self.records.load(&record).await else { continue };
            let Some(blobs) = self.blobs(&tree, reach).await? else { return Ok(None) };
            if blobs.is_empty() {
                return Ok(None);
            }
            let layers = blobs.into_iter().map(|blob| layer(&tree, blob));
            return Ok(Some(Chain { layers: layers.collect(), created_at }));
        }
        Ok(None)
    }

    async fn blobs(&self, tree: &Ref, reach: Reach) -> Result<Option<Vec<LayerBlob>>, CacheError> {
        let WalkOptions { compression, level, force, .. } = self.options;
        let options = BlobOptions { compression, level, force, create: false };
        if let Ok(blobs) = tree.blobs(options).await {
            return Ok(Some(blobs));
        }
        if reach == Reach::Existing {
            return Ok(None);
        }
        let made = tree.blobs(BlobOptions { create: true, ..options }).await;
        made.map(Some).map_err(CacheError::store("make layers for the cache"))
    }

    /// The item of a key whose inputs are done.
    fn item(&mut self, key: &CacheKey, result: Option<Chain>) -> Option<ItemId> {
        let KeyDigest::Sha256(digest) = key.export_digest() else { return None };
        let inputs = key.inputs().iter().map(|alternatives| {
            let ways = alternatives.iter().flat_map(|selected| {
                let keys = std::iter::once(selected.key.clone()).chain(selected.key.companions());
                let items = keys.filter_map(|key| self.done.get(&key.address()).copied().flatten());
                items.map(|item| (selected.selector, item)).collect::<Vec<_>>()
            });
            ways.collect()
        });
        let mut inputs: Vec<Vec<Way>> = inputs.collect();
        for name in key.ids() {
            self.learn(name);
            for (source, link) in self.sources(name) {
                let item = self.known(name.0, source);
                let (Some(item), Some(ways)) = (item, inputs.get_mut(link.input as usize)) else {
                    continue;
                };
                ways.push((link.selector, item));
            }
        }
        if inputs.iter().any(Vec::is_empty) {
            return None;
        }
        Some(self.chains.add(digest, &inputs, result.into_iter().collect()))
    }

    fn sources(&self, (store, id): Name) -> Vec<(KeyId, Link)> {
        self.solver
            .with_stores(|stores| stores.get(store).map(|keys| keys.sources(id)))
            .unwrap_or_default()
    }

    /// The item that stands for a stored key, if it was learnt and can be reached.
    fn known(&mut self, store: StoreIndex, id: KeyId) -> Option<ItemId> {
        match id {
            KeyId::Root(KeyDigest::Sha256(digest)) => {
                Some(self.chains.add(digest, &[], Vec::new()))
            }
            KeyId::Root(KeyDigest::Random(_)) => None,
            KeyId::Chain(_) => self.by_name.get(&(store, id)).copied().flatten(),
        }
    }

    /// Makes items of all that leads to a stored key.
    fn learn(&mut self, (store, start): Name) {
        let above = self.sources((store, start));
        let mut stack: Vec<(KeyId, bool)> = above.iter().map(|(id, _)| (*id, false)).collect();
        let mut open = HashSet::from([start]);
        while let Some((id, leaving)) = stack.pop() {
            if leaving {
                let item = self.stored_item((store, id));
                self.by_name.insert((store, id), item);
                continue;
            }
            let is_new = matches!(id, KeyId::Chain(_)) && !self.by_name.contains_key(&(store, id));
            if is_new && open.insert(id) {
                stack.push((id, true));
                let sources = self.sources((store, id));
                stack.extend(sources.into_iter().map(|(source, _)| (source, false)));
            }
        }
    }

    /// The item of a stored key that the build did not use itself.
    fn stored_item(&mut self, name: Name) -> Option<ItemId> {
        let mut ways: BTreeMap<KeyDigest, BTreeMap<u32, Vec<Way>>> = BTreeMap::new();
        for (source, link) in self.sources(name) {
            let digest = match name.0 {
                StoreIndex::MAIN => link.digest.root(link.output),
                _ => link.digest,
            };
            let inputs = ways.entry(digest).or_default();
            let input = inputs.entry(link.input).or_default();
            if let Some(item) = self.known(name.0, source) {
                input.push((link.selector, item));
            }
        }
        let mut made = None;
        for (digest, inputs) in ways {
            let complete = inputs.keys().copied().eq(0..inputs.len() as u32)
                && inputs.values().all(|ways| !ways.is_empty());
            let KeyDigest::Sha256(digest) = digest else { continue };
            if complete {
                let inputs: Vec<Vec<Way>> = inputs.into_values().collect();
                made = Some(self.chains.add(digest, &inputs, Vec::new()));
            }
        }
        made
    }
}

fn layer(tree: &Ref, blob: LayerBlob) -> Layer {
    let mut descriptor = Descriptor::new(
        blob.descriptor.media_type.clone(),
        blob.descriptor.digest,
        blob.descriptor.size,
    );
    let kept = blob.descriptor.annotations.iter();
    let kept = kept.filter(|(key, _)| KEPT.contains(&key.as_str()) || key.starts_with(KEPT_PREFIX));
    descriptor.annotations.extend(kept.map(|(key, value)| (key.clone(), value.clone())));
    let created = time::rfc3339_nano(blob.created_at);
    let descriptor = descriptor
        .annotate(types::ANNOTATION_UNCOMPRESSED, blob.diff_id.to_string())
        .annotate(types::ANNOTATION_CREATED_AT, created);
    Layer { descriptor, origin: Some((tree.clone(), blob)) }
}
