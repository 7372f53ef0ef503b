//! A cache under construction: keys as *items*, their results, and how they follow from each other.
//!
//! Imports fill it from configs, exports from the solver's keys; both through [`Chains::add`],
//! which finds out that two keys are the same item. It leaves as a key store, or as a config.
//!
//! Invariant: an item never leads to itself.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::SystemTime,
};

use base::Digest;
use oci::Descriptor;
use solver::{KeyDigest, KeyId, KeyStore, Link, RecordId};
use store::{LayerBlob, Ref};

use crate::{
    CacheError,
    config::{CacheConfig, LayerEntry, Moment, Record, Source, TopLayer},
};

/// Layers of one result. More is nothing that a build makes.
const MAX_LAYERS: usize = 1000;

/// Names an item of one [`Chains`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ItemId(usize);

/// A layer of a result.
#[derive(Debug, Clone)]
pub struct Layer {
    /// Its blob.
    pub descriptor: Descriptor,
    /// Where the bytes are, for exports.
    pub origin: Option<(Ref, LayerBlob)>,
}

/// A result: its layers, bottom first.
#[derive(Debug, Clone)]
pub struct Chain {
    /// The layers.
    pub layers: Vec<Layer>,
    /// When the result was made.
    pub created_at: SystemTime,
}

type Way = (Option<Digest>, ItemId);

#[derive(Default)]
struct Item {
    digest: Option<Digest>,
    results: Vec<Chain>,
    inputs: Vec<BTreeSet<Way>>,
    children: BTreeSet<ItemId>,
    /// What it turned out to be the same as.
    merged_into: Option<ItemId>,
}

/// A cache under construction; see the module's page.
#[derive(Default)]
pub struct Chains {
    items: Vec<Item>,
    by_digest: HashMap<Digest, Vec<ItemId>>,
}

/// Where a config's results stand, for forms that name layers in another way.
pub(crate) struct Written {
    pub config: CacheConfig,
    /// One per layer entry.
    pub layers: Vec<Layer>,
}

impl Chains {
    /// Whether it has no items.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    fn find(&self, mut id: ItemId) -> ItemId {
        while let Some(other) = self.items[id.0].merged_into {
            id = other;
        }
        id
    }

    /// Adds a key: `digest` is that of operation and output, `inputs` has per input the items that
    /// do, with selectors. A key that is here already gets the additional ways and results.
    pub fn add(&mut self, digest: Digest, inputs: &[Vec<Way>], results: Vec<Chain>) -> ItemId {
        let same = self.same(&digest, inputs);
        let id = match same.split_first() {
            Some((first, rest)) => {
                for other in rest {
                    self.merge(*other, *first);
                }
                *first
            }
            None => {
                let id = ItemId(self.items.len());
                let inputs = vec![BTreeSet::new(); inputs.len()];
                self.items.push(Item { digest: Some(digest), inputs, ..Item::default() });
                self.by_digest.entry(digest).or_default().push(id);
                id
            }
        };
        for result in results {
            self.add_result(id, result);
        }
        let below = self.descendants(id);
        for (input, ways) in inputs.iter().enumerate() {
            for (selector, from) in ways {
                let from = self.find(*from);
                if !below.contains(&from) {
                    self.items[id.0].inputs[input].insert((*selector, from));
                    self.items[from.0].children.insert(id);
                }
            }
        }
        id
    }

    fn add_result(&mut self, id: ItemId, result: Chain) {
        let results = &mut self.items[id.0].results;
        let known = results.iter().any(|known| {
            known.created_at == result.created_at && known.layers.len() == result.layers.len()
        });
        if !known {
            results.push(result);
        }
    }

    /// Items of this digest that every input leads to.
    fn same(&self, digest: &Digest, inputs: &[Vec<Way>]) -> Vec<ItemId> {
        let candidates = self.by_digest.get(digest).map_or(&[][..], Vec::as_slice);
        let same = candidates.iter().copied().filter(|id| {
            let item = &self.items[id.0];
            item.inputs.len() == inputs.len()
                && item.inputs.iter().zip(inputs).all(|(known, given)| {
                    let mut known =
                        known.iter().map(|(selector, from)| (selector, self.find(*from)));
                    known.any(|(selector, from)| {
                        given.iter().any(|(other, id)| other == selector && self.find(*id) == from)
                    })
                })
        });
        same.collect()
    }

    fn merge(&mut self, other: ItemId, into: ItemId) {
        let old = std::mem::take(&mut self.items[other.0]);
        self.items[other.0].merged_into = Some(into);
        if let Some(list) = old.digest.and_then(|digest| self.by_digest.get_mut(&digest)) {
            list.retain(|id| *id != other);
        }
        for result in old.results {
            self.add_result(into, result);
        }
        let item = &mut self.items[into.0];
        item.children.extend(old.children);
        for (ways, more) in item.inputs.iter_mut().zip(old.inputs) {
            ways.extend(more);
        }
    }

    /// The item and all that is built on it.
    fn descendants(&self, id: ItemId) -> BTreeSet<ItemId> {
        let mut seen = BTreeSet::from([id]);
        let mut stack = vec![id];
        while let Some(next) = stack.pop() {
            for child in &self.items[next.0].children {
                let child = self.find(*child);
                if seen.insert(child) {
                    stack.push(child);
                }
            }
        }
        seen
    }

    /// Live items, inputs before what is built on them, with their ways; links that would close a
    /// circle are left out.
    fn ordered(&self) -> Vec<(ItemId, Vec<BTreeSet<Way>>)> {
        #[derive(Clone, Copy, PartialEq)]
        enum Mark {
            New,
            Open,
            Done,
        }
        let mut marks = vec![Mark::New; self.items.len()];
        let mut order = Vec::new();
        for start in 0..self.items.len() {
            if self.items[start].merged_into.is_some() {
                continue;
            }
            let mut stack = vec![(ItemId(start), false)];
            while let Some((id, leaving)) = stack.pop() {
                let item = &self.items[id.0];
                let inputs = item.inputs.iter();
                let inputs = inputs
                    .map(|ways| ways.iter().map(|(selector, from)| (*selector, self.find(*from))));
                if leaving {
                    let kept = inputs
                        .map(|ways| ways.filter(|(_, from)| marks[from.0] == Mark::Done).collect());
                    order.push((id, kept.collect()));
                    marks[id.0] = Mark::Done;
                } else if marks[id.0] == Mark::New {
                    marks[id.0] = Mark::Open;
                    stack.push((id, true));
                    let new = inputs.flatten().filter(|(_, from)| marks[from.0] == Mark::New);
                    stack.extend(new.map(|(_, from)| (from, false)));
                }
            }
        }
        order
    }

    /// The keys as a store that the solver can look into, and the results by the names they have
    /// there; `prefix` makes the names unique.
    pub(crate) fn into_store(self, prefix: &str) -> (KeyStore, HashMap<RecordId, Vec<Descriptor>>) {
        let mut store = KeyStore::new();
        let mut records = HashMap::new();
        let mut names: HashMap<ItemId, KeyId> = HashMap::new();
        for (id, inputs) in self.ordered() {
            let item = &self.items[id.0];
            let digest = KeyDigest::Sha256(item.digest.expect("live items have digests"));
            let name = if inputs.is_empty() { KeyId::Root(digest) } else { store.fresh_id() };
            names.insert(id, name);
            for (input, ways) in inputs.iter().enumerate() {
                for (selector, from) in ways {
                    let input = input as u32;
                    let link = Link { input, output: 0, digest, selector: *selector };
                    store.add_link(names[from], link, name);
                }
            }
            for result in &item.results {
                let layers: Vec<Descriptor> =
                    result.layers.iter().map(|layer| layer.descriptor.clone()).collect();
                let texts: String = layers.iter().map(|layer| layer.digest.to_string()).collect();
                let record = RecordId::from(format!("{prefix}{}", Digest::of(texts)));
                store.add_result(name, record.clone(), result.created_at);
                records.insert(record, layers);
            }
        }
        store.take_changes();
        (store, records)
    }

    /// The cache as a config: only the newest result of each key, everything in a fixed order.
    pub(crate) fn write(&self) -> Written {
        let order = self.ordered();
        let numbers: HashMap<ItemId, usize> =
            order.iter().enumerate().map(|(number, (id, _))| (*id, number)).collect();
        // Layers, told apart by what they lie on.
        let mut known: HashMap<(Digest, i64), i64> = HashMap::new();
        let mut layers: Vec<(i64, Layer)> = Vec::new();
        let mut records: Vec<Record> = Vec::new();
        for (id, inputs) in &order {
            let item = &self.items[id.0];
            let newest = item.results.iter().rev().max_by_key(|result| result.created_at);
            let mut tops = Vec::new();
            if let Some(result) = newest.filter(|result| !result.layers.is_empty()) {
                let mut parent = -1;
                for layer in &result.layers {
                    let next = layers.len() as i64;
                    parent = *known.entry((layer.descriptor.digest, parent)).or_insert_with(|| {
                        layers.push((parent, layer.clone()));
                        next
                    });
                }
                let created_at = Moment(result.created_at);
                tops.push(TopLayer { layer: parent, created_at });
            }
            let inputs = inputs.iter().map(|ways| {
                let mut sources: Vec<Source> = ways
                    .iter()
                    .map(|(selector, from)| Source {
                        selector: *selector,
                        link: numbers[from] as i64,
                    })
                    .collect();
                sources.sort_by_key(|source| source.link);
                sources
            });
            let inputs = inputs.collect();
            records.push(Record { layers: tops, chains: Vec::new(), digest: item.digest, inputs });
        }
        let layers = sort_layers(layers, &mut records);
        let records = sort_records(records);
        let entries = layers
            .iter()
            .map(|(parent, layer)| LayerEntry { blob: layer.descriptor.digest, parent: *parent });
        let config = CacheConfig { layers: entries.collect(), records };
        Written { config, layers: layers.into_iter().map(|(_, layer)| layer).collect() }
    }

    /// Adds all that a config says; layers without a descriptor make their results absent.
    pub fn read(
        &mut self,
        config: &CacheConfig,
        descriptors: &BTreeMap<Digest, Descriptor>,
    ) -> Result<(), CacheError> {
        let mut items: Vec<Option<ItemId>> = vec![None; config.records.len()];
        let mut open = vec![false; config.records.len()];
        for start in 0..config.records.len() {
            let mut stack = vec![start];
            while let Some(number) = stack.last().copied() {
                if items[number].is_some() {
                    stack.pop();
                    continue;
                }
                let record = &config.records[number];
                let mut missing = Vec::new();
                let mut inputs = Vec::with_capacity(record.inputs.len());
                for (input, sources) in record.inputs.iter().enumerate() {
                    if sources.is_empty() {
                        return Err(invalid(format!("invalid empty input for record {number}")));
                    }
                    let mut ways = Vec::with_capacity(sources.len());
                    for source in sources {
                        let link = usize::try_from(source.link)
                            .ok()
                            .filter(|link| *link < items.len())
                            .ok_or_else(|| {
                                invalid(format!("invalid record ID: {}", source.link))
                            })?;
                        match items[link] {
                            Some(item) => ways.push((source.selector, item)),
                            None => missing.push(link),
                        }
                    }
                    inputs.insert(input, ways);
                }
                if !missing.is_empty() {
                    if std::mem::replace(&mut open[number], true)
                        || missing.iter().any(|link| open[*link])
                    {
                        return Err(invalid("invalid looping record"));
                    }
                    stack.extend(missing);
                    continue;
                }
                let results = results(config, record, descriptors)?;
                let digest = record.digest.ok_or_else(|| invalid("a record without a digest"))?;
                items[number] = Some(self.add(digest, &inputs, results));
                open[number] = false;
                stack.pop();
            }
        }
        Ok(())
    }
}

fn invalid(why: impl Into<String>) -> CacheError {
    CacheError::Invalid(why.into())
}

/// The results of a record whose layers are all known.
fn results(
    config: &CacheConfig,
    record: &Record,
    descriptors: &BTreeMap<Digest, Descriptor>,
) -> Result<Vec<Chain>, CacheError> {
    let entry = |number: i64| {
        let place = usize::try_from(number).ok();
        place
            .and_then(|place| config.layers.get(place))
            .ok_or_else(|| invalid(format!("invalid layer index {number}")))
    };
    let mut lists = Vec::new();
    for top in &record.layers {
        let mut digests = Vec::new();
        let mut next = top.layer;
        loop {
            let layer = entry(next)?;
            digests.push(layer.blob);
            if layer.parent == -1 {
                break;
            }
            if digests.len() > config.layers.len() {
                return Err(invalid("invalid looping layer"));
            }
            if digests.len() > MAX_LAYERS {
                return Err(invalid(format!("a result of more than {MAX_LAYERS} layers")));
            }
            next = layer.parent;
        }
        digests.reverse();
        lists.push((digests, top.created_at.0));
    }
    for list in &record.chains {
        if list.layers.len() > MAX_LAYERS {
            return Err(invalid(format!("a result of more than {MAX_LAYERS} layers")));
        }
        let digests = list.layers.iter().map(|number| Ok(entry(*number)?.blob));
        lists.push((digests.collect::<Result<_, CacheError>>()?, list.created_at.0));
    }
    let chains = lists.into_iter().filter_map(|(digests, created_at)| {
        let layers = digests.iter().map(|digest| {
            Some(Layer { descriptor: descriptors.get(digest)?.clone(), origin: None })
        });
        let layers = layers.collect::<Option<Vec<_>>>()?;
        (!layers.is_empty()).then_some(Chain { layers, created_at })
    });
    Ok(chains.collect())
}

/// By blob, then by the old number of the layer below; numbers in records follow.
fn sort_layers(layers: Vec<(i64, Layer)>, records: &mut [Record]) -> Vec<(i64, Layer)> {
    let mut order: Vec<usize> = (0..layers.len()).collect();
    order.sort_by_key(|number| (layers[*number].1.descriptor.digest, layers[*number].0));
    let mut places = vec![0i64; layers.len()];
    for (place, number) in order.iter().enumerate() {
        places[*number] = place as i64;
    }
    let moved = |old: i64| usize::try_from(old).map_or(-1, |old| places[old]);
    for top in records.iter_mut().flat_map(|record| &mut record.layers) {
        top.layer = moved(top.layer);
    }
    let sorted = order.iter().map(|number| (moved(layers[*number].0), layers[*number].1.clone()));
    sorted.collect()
}

/// By digest, then by what leads to them; numbers in links follow.
fn sort_records(mut records: Vec<Record>) -> Vec<Record> {
    type Order = (Option<Digest>, usize, Vec<(usize, Vec<(Option<Digest>, Option<Digest>)>)>);
    let order_of = |record: &Record| -> Order {
        let inputs = record.inputs.iter().map(|sources| {
            let pairs = sources
                .iter()
                .map(|source| (source.selector, records[source.link as usize].digest));
            (sources.len(), pairs.collect())
        });
        (record.digest, record.inputs.len(), inputs.collect())
    };
    let keys: Vec<Order> = records.iter().map(order_of).collect();
    let mut order: Vec<usize> = (0..records.len()).collect();
    order.sort_by(|left, right| keys[*left].cmp(&keys[*right]));
    let mut places = vec![0i64; records.len()];
    for (place, number) in order.iter().enumerate() {
        places[*number] = place as i64;
    }
    let sorted = order.iter().map(|number| {
        let mut record = std::mem::take(&mut records[*number]);
        for sources in &mut record.inputs {
            for source in sources.iter_mut() {
                source.link = places[source.link as usize];
            }
            sources.sort_by_key(|source| (source.link, source.selector));
        }
        record
    });
    sorted.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/cachekeys");

    /// Reads a recorded config and writes it again.
    fn again(config: &CacheConfig) -> CacheConfig {
        let blobs = config.layers.iter().map(|layer| {
            (layer.blob, Descriptor::new("application/vnd.oci.image.layer.v1.tar", layer.blob, 1))
        });
        let mut chains = Chains::default();
        chains.read(config, &blobs.collect()).expect("read a recorded config");
        chains.write().config
    }

    #[test]
    fn recorded_configs_come_out_as_they_went_in() {
        let mut seen = 0;
        for entry in std::fs::read_dir(GOLDEN).expect("the golden vectors are there") {
            let path = entry.unwrap().path();
            let text = std::fs::read(&path).unwrap();
            let value: serde_json::Value = serde_json::from_slice(&text).unwrap();
            for mode in ["exported_min", "exported_max"] {
                let config = &value[mode]["config"];
                if config.is_null() {
                    continue;
                }
                let config: CacheConfig = serde_json::from_value(config.clone()).unwrap();
                let (given, made) =
                    (base::gojson::to_string(&config), base::gojson::to_string(&again(&config)));
                assert_eq!(given, made, "{} {mode}", path.display());
                seen += 1;
            }
        }
        assert!(seen > 30, "{seen} configs");
    }

    fn refusal(json: &str) -> String {
        let config: CacheConfig = serde_json::from_str(json).unwrap();
        Chains::default().read(&config, &BTreeMap::new()).unwrap_err().to_string()
    }

    #[test]
    fn nonsense_is_refused() {
        let digest = Digest::of("x");
        let check = |inputs: &str, wanted: &str| {
            let text =
                refusal(&format!(r#"{{"records":[{{"digest":"{digest}","inputs":{inputs}}}]}}"#));
            assert_eq!(text, format!("invalid remote cache: {wanted}"));
        };
        check("[[{\"link\":3}]]", "invalid record ID: 3");
        check("[[{\"link\":-1}]]", "invalid record ID: -1");
        check("[[{\"link\":0}]]", "invalid looping record");
        check("[[]]", "invalid empty input for record 0");
        let layers = format!(r#""layers":[{{"blob":"{digest}"}}]"#);
        let record = format!(r#"{{"digest":"{digest}","layers":[{{"layer":0}}]}}"#);
        assert!(refusal(&format!("{{{layers},\"records\":[{record}]}}")).contains("looping layer"));
        assert!(refusal(&format!("{{\"records\":[{record}]}}")).contains("invalid layer index 0"));
    }
}
