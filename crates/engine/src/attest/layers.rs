//! Layer blobs of the steps behind a result, as far as they exist: nothing is made for this.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use base::Digest;
use llb::pb;
use oci::Descriptor;
use serde_json::{Map, Value};
use solver::{CacheKey, RecordId};

use super::steps::Steps;
use crate::{Engine, bridge, bridge::BuiltRef, cache::StoredResults};

/// `"stepN:I"` → lists of layers.
pub(super) async fn of(
    engine: &Arc<Engine>,
    definition: &pb::Definition,
    built: &BuiltRef,
    steps: &Steps,
    proxy_network: bool,
) -> Option<Value> {
    use remotecache::Records as _;
    let numbers = by_canonical_digest(engine, definition, steps, proxy_network)?;
    let records = StoredResults(engine);
    let mut found: BTreeMap<String, Vec<Vec<Descriptor>>> = BTreeMap::new();
    let mut seen = HashSet::new();
    let mut open: Vec<(CacheKey, Option<RecordId>)> =
        built.keys.first().map(|key| (key.clone(), built.record.clone())).into_iter().collect();
    while let Some((key, record)) = open.pop() {
        if !seen.insert(key.address()) {
            continue;
        }
        let inputs = key.inputs().iter().flatten();
        open.extend(inputs.map(|input| (input.key.clone(), None)));
        let Some(step) = key.vertex().and_then(|vertex| numbers.get(&vertex)) else { continue };
        let record = record.or_else(|| newest(engine, &key));
        let Some(record) = record else { continue };
        let Some(tree) = records.load(&record).await else { continue };
        let Some(blobs) = tree.blobs_known().filter(|blobs| !blobs.is_empty()) else { continue };
        let chain: Vec<Descriptor> =
            blobs.into_iter().map(|blob| public(blob.descriptor)).collect();
        let chains = found.entry(format!("step{step}:{}", key.output())).or_default();
        if !chains.contains(&chain) {
            chains.push(chain);
        }
    }
    let members: Map<String, Value> = found
        .into_iter()
        .filter_map(|(name, chains)| Some((name, serde_json::to_value(chains).ok()?)))
        .collect();
    (!members.is_empty()).then_some(Value::Object(members))
}

/// Steps by the digests under which the solver knows vertices.
fn by_canonical_digest(
    engine: &Engine,
    definition: &pb::Definition,
    steps: &Steps,
    proxy_network: bool,
) -> Option<HashMap<Digest, usize>> {
    let default = bridge::default_platform(engine);
    let options =
        llb::ParseOptions { default_platform: &default, capabilities: None, proxy_network };
    let definition = llb::Definition::parse(definition, &options).ok()?;
    let each = definition.vertices().iter().filter_map(|vertex| {
        Some((vertex.digest, *steps.numbers.get(&vertex.received.to_string())?))
    });
    Some(each.collect())
}

fn newest(engine: &Engine, key: &CacheKey) -> Option<RecordId> {
    let mut names = key.ids();
    if names.is_empty() {
        names.extend(key.id(solver::StoreIndex::MAIN).map(|id| (solver::StoreIndex::MAIN, id)));
    }
    engine.solver.with_stores(|stores| {
        let known = names.iter().filter_map(|(store, id)| Some(stores.get(*store)?.results(*id)));
        known.flatten().max_by_key(|(_, at)| *at).map(|(record, _)| record)
    })
}

/// The descriptor without what only concerns this store.
fn public(descriptor: Descriptor) -> Descriptor {
    let mut shown = Descriptor::new(&descriptor.media_type, descriptor.digest, descriptor.size);
    shown.urls = descriptor.urls;
    shown
}
