//! Finding and storing keys.
//!
//! To look up an edge, each key of each input is *probed*: which keys does it lead to by this
//! operation? A key that every input leads to is the edge's own, and its records are results.
//! Alternatives met on the way are tied together: what one of them leads to, all lead to.

use std::collections::{BTreeSet, HashSet};

use super::{
    edge::{Candidate, Phase, StoredKey},
    *,
};
use crate::{
    decision::{Miss, Origin},
    keys::{KeyDigest, KeyId, SelectedKey},
    store::Link,
};

impl Graph {
    /// The main store or an attached import.
    pub(crate) fn store(&self, store: StoreIndex) -> Option<&KeyStore> {
        if store == StoreIndex::MAIN {
            return Some(&self.keys);
        }
        self.imports.get(&store).map(|state| &state.import.store)
    }

    fn link(&self, edge: EdgeIx, input: usize, selector: Option<Digest>) -> Link {
        let state = &self.edges[edge];
        let digest = self.vertices[state.vertex].operation();
        Link { input: input as u32, output: state.output as i32, digest, selector }
    }

    /// Probes keys of an input. Whether that led to keys not known before.
    pub(super) fn probe(
        &mut self,
        edge: EdgeIx,
        input: usize,
        keys: &[CacheKey],
        selector: Option<Digest>,
    ) -> bool {
        let vertex = &self.vertices[self.edges[edge].vertex];
        if vertex.ignore_cache {
            return false;
        }
        let stores: Vec<StoreIndex> = vertex.stores().collect();
        let link = self.link(edge, input, selector);
        let mut found = false;
        for store in stores {
            let reached = if store == StoreIndex::MAIN {
                let alternatives: Vec<_> = keys.iter().map(|key| (key, link)).collect();
                self.tie(&alternatives)
            } else {
                let known = self.store(store);
                let ids = keys.iter().filter_map(|key| key.id(store));
                let link = link.exported();
                ids.flat_map(|id| known.map_or_else(Vec::new, |known| known.targets(id, &link)))
                    .collect()
            };
            for id in reached {
                found |= self.add_match(edge, input, (store, id));
            }
        }
        found
    }

    fn add_match(&mut self, edge: EdgeIx, input: usize, key: StoredKey) -> bool {
        let state = &mut self.edges[edge];
        let inputs = state.deps.len();
        let matches = &mut state.deps[input].matches;
        if matches.contains(&key) {
            return false;
        }
        matches.push(key);
        let reached = state.reached.entry(key).or_default();
        *reached += 1;
        if *reached == inputs {
            state.fresh.push(key);
        }
        true
    }

    /// What any of the alternatives leads to in the main store, all lead to from now on.
    fn tie(&mut self, alternatives: &[(&CacheKey, Link)]) -> BTreeSet<KeyId> {
        let named = alternatives
            .iter()
            .filter_map(|(key, link)| key.id(StoreIndex::MAIN).map(|id| (id, *link)));
        let named: Vec<(KeyId, Link)> = named.collect();
        let mut reached = BTreeSet::new();
        for (id, link) in &named {
            reached.extend(self.keys.targets(*id, link));
        }
        if named.len() > 1 {
            for (id, link) in &named {
                for target in &reached {
                    self.keys.add_link(*id, *link, *target);
                }
            }
        }
        reached
    }

    /// Takes in the content digest of an input: one more key, which holds without selector, and
    /// stands for all that the keys by definition stand for.
    pub(super) fn take_content(
        &mut self,
        edge: EdgeIx,
        input: usize,
        digest: Digest,
        selector: Option<Digest>,
    ) {
        let key = CacheKey::content(digest);
        let found = self.probe(edge, input, std::slice::from_ref(&key), None);
        let dep = &mut self.edges[edge].deps[input];
        dep.content_key = Some(key.clone());
        dep.content_found = found;
        let child = dep.child;
        if self.vertices[self.edges[child].vertex].ignore_cache {
            // Its key leads to what was built on an earlier result, of other content: tied to that,
            // the new content would be taken for the old one by the next look.
            return;
        }
        let by_definition = self.edges[child].result_keys.clone();
        let link = self.link(edge, input, selector);
        let mut alternatives: Vec<_> = by_definition.iter().map(|key| (key, link)).collect();
        alternatives.push((&key, self.link(edge, input, None)));
        self.tie(&alternatives);
    }

    /// Looks up a cache map of an edge without inputs.
    pub(super) fn find_root(&mut self, edge: EdgeIx, digest: KeyDigest) {
        let state = &self.edges[edge];
        let vertex = &self.vertices[state.vertex];
        let id = KeyId::Root(digest.root(state.output as i32));
        let stores = vertex.stores();
        let knowing: Vec<StoreIndex> = stores
            .filter(|store| self.store(*store).is_some_and(|store| store.contains(id)))
            .collect();
        if knowing.is_empty() {
            return;
        }
        let key = CacheKey::root(digest, state.output as i32, Some(vertex.digest));
        self.edges[edge].offered.push(key.clone());
        for store in knowing {
            self.edges[edge].own.insert((store, id));
            self.add_records(edge, store, id, &key);
        }
    }

    /// Stored keys that all inputs lead to become keys of the edge.
    pub(super) fn take_fresh_keys(&mut self, edge: EdgeIx) {
        for (store, id) in std::mem::take(&mut self.edges[edge].fresh) {
            if !self.edges[edge].own.insert((store, id)) {
                continue;
            }
            let key = self.merged_key(edge);
            key.set_id(store, id);
            self.edges[edge].offered.push(key.clone());
            self.add_records(edge, store, id, &key);
        }
    }

    /// The key of the edge as far as its inputs are known.
    fn merged_key(&self, edge: EdgeIx) -> CacheKey {
        let state = &self.edges[edge];
        let vertex = &self.vertices[state.vertex];
        let inputs = state.deps.iter().enumerate().map(|(input, dep)| {
            let selector = vertex.input_key(input).selector;
            let by_definition = self.edges[dep.child].current_keys().iter();
            let content = dep.content_key.iter().cloned();
            by_definition
                .map(|key| SelectedKey { key: key.clone(), selector })
                .chain(content.map(|key| SelectedKey { key, selector: None }))
                .collect()
        });
        let inputs = inputs.collect();
        CacheKey::new(vertex.operation(), state.output as i32, Some(vertex.digest), inputs)
    }

    fn add_records(&mut self, edge: EdgeIx, store: StoreIndex, id: KeyId, key: &CacheKey) {
        let vertex = &self.vertices[self.edges[edge].vertex];
        key.set_unexported(vertex.export_cache == Some(false));
        let Some(known) = self.store(store) else { return };
        let origin = match self.imports.get(&store) {
            Some(state) => Origin::Import(Arc::clone(&state.import.id)),
            None => Origin::Local,
        };
        let results = known.results(id);
        let state = &mut self.edges[edge];
        for (record, created_at) in results {
            let known = state
                .records
                .iter()
                .any(|other| other.store == store && other.found.record == record);
            if known || state.tried.contains(&record) {
                continue;
            }
            let found = FoundRecord { origin: origin.clone(), key: id, record, created_at };
            state.records.push(Candidate { found, store, key: key.clone() });
        }
    }

    /// The newest; of equally old ones an imported one, of those the one found first.
    pub(super) fn best_record(&self, edge: EdgeIx) -> Candidate {
        let records = self.edges[edge].records.iter().rev();
        let best = records.max_by_key(|candidate| {
            (candidate.found.created_at, candidate.store != StoreIndex::MAIN)
        });
        best.expect("called with records in hand").clone()
    }

    /// Looks up once more, now that all inputs are complete; whether there are results.
    pub(super) fn look_again(&mut self, edge: EdgeIx) -> bool {
        let number = self.edges[edge].vertex;
        if self.vertices[number].ignore_cache {
            return false;
        }
        if self.edges[edge].deps.is_empty() {
            for digest in self.edges[edge].roots.clone() {
                let output = self.edges[edge].output as i32;
                let id = KeyId::Root(digest.root(output));
                let key = CacheKey::root(digest, output, Some(self.vertices[number].digest));
                self.add_found(edge, id, key);
            }
            return !self.edges[edge].records.is_empty();
        }
        // Result keys of an input that was forced to run are not offered: they lead to what was
        // built on its earlier results.
        for id in self.stored_ids(self.alternatives(edge, |child| &child.offered)) {
            let key = self.merged_key(edge);
            key.set_id(StoreIndex::MAIN, id);
            self.add_found(edge, id, key);
        }
        !self.edges[edge].records.is_empty()
    }

    /// A key that appeared in the main store since the edge was looked up.
    fn add_found(&mut self, edge: EdgeIx, id: KeyId, key: CacheKey) {
        self.add_records(edge, StoreIndex::MAIN, id, &key);
        let state = &mut self.edges[edge];
        if !state.records.is_empty() && state.own.insert((StoreIndex::MAIN, id)) {
            state.offered.push(key);
        }
    }

    /// Per input, the named alternatives in the main store.
    fn alternatives(
        &self,
        edge: EdgeIx,
        keys: fn(&EdgeState) -> &[CacheKey],
    ) -> impl Iterator<Item = Vec<(KeyId, Link)>> + use<'_> {
        self.edges[edge].deps.iter().enumerate().map(move |(input, dep)| {
            let selector = self.vertices[self.edges[edge].vertex].input_key(input).selector;
            let link = self.link(edge, input, selector);
            let exact = self.link(edge, input, None);
            let by_definition = keys(&self.edges[dep.child]).iter().map(|key| (key, link));
            let content = dep.content_key.iter().map(|key| (key, exact));
            by_definition
                .chain(content)
                .filter_map(|(key, link)| Some((key.id(StoreIndex::MAIN)?, link)))
                .collect()
        })
    }

    /// The keys of the main store that every input leads to.
    fn stored_ids(&self, inputs: impl Iterator<Item = Vec<(KeyId, Link)>>) -> BTreeSet<KeyId> {
        let mut common: Option<BTreeSet<KeyId>> = None;
        for alternatives in inputs {
            let reached: BTreeSet<KeyId> = alternatives
                .iter()
                .flat_map(|(id, link)| self.keys.targets(*id, link))
                .filter(|id| common.as_ref().is_none_or(|common| common.contains(id)))
                .collect();
            if reached.is_empty() {
                return reached;
            }
            common = Some(reached);
        }
        common.unwrap_or_default()
    }

    /// Stores the result of an execution and returns its keys.
    pub(super) fn save(
        &mut self,
        edge: EdgeIx,
        record: Option<RecordId>,
        at: SystemTime,
    ) -> Vec<CacheKey> {
        let state = &self.edges[edge];
        let vertex = Some(self.vertices[state.vertex].digest);
        let output = state.output as i32;
        let keys = if state.deps.is_empty() {
            let roots = state.roots.iter();
            roots.map(|digest| CacheKey::root(*digest, output, vertex)).collect()
        } else {
            vec![self.merged_key(edge)]
        };
        for key in &keys {
            let id = self.store_key(key);
            if let Some(record) = &record {
                self.keys.add_result(id, record.clone(), at);
            }
        }
        keys
    }

    /// Stores results that came along with an import's record under the keys it is built on.
    pub(super) fn store_inputs(&mut self, loaded: &Candidate, came_along: &[(RecordId, RecordId)]) {
        let Some(import) = self.imports.get(&loaded.store).map(|state| Arc::clone(&state.import))
        else {
            return;
        };
        let mut seen = HashSet::new();
        let mut stack = if came_along.is_empty() { Vec::new() } else { vec![loaded.key.clone()] };
        while let Some(key) = stack.pop() {
            let below = key.inputs().iter().flatten().map(|selected| &selected.key);
            for key in below {
                if seen.insert(key.address()) {
                    stack.push(key.clone());
                }
            }
            let Some(id) = key.id(loaded.store) else { continue };
            for (record, created_at) in import.store.results(id) {
                let ours = came_along.iter().find(|(theirs, _)| *theirs == record);
                if let Some((_, ours)) = ours {
                    let id = self.store_key(&key);
                    self.keys.add_result(id, ours.clone(), created_at);
                }
            }
        }
    }

    /// The name of a key in the main store; makes it known there, and its inputs if they are not.
    pub(super) fn store_key(&mut self, key: &CacheKey) -> KeyId {
        // Chains are long, so this walks with a stack of (key, input, alternative) of its own.
        let mut stack = vec![(key.clone(), 0, 0)];
        let mut last = None;
        while let Some((key, mut input, mut alternative)) = stack.pop() {
            let mut unknown = None;
            while let Some(alternatives) = key.inputs().get(input) {
                let Some(selected) = alternatives.get(alternative) else {
                    (input, alternative) = (input + 1, 0);
                    continue;
                };
                alternative += 1;
                // Also keys whose result was evicted meanwhile: they were forgotten, and a link
                // from them alone could never be reached.
                let id = selected.key.id(StoreIndex::MAIN);
                let known = id.is_some_and(|id| self.keys.is_led_to(id));
                if !known && !selected.key.is_root() {
                    unknown = Some(selected.key.clone());
                    break;
                }
            }
            match unknown {
                Some(below) => stack.extend([(key, input, alternative), (below, 0, 0)]),
                None => last = Some(self.store_one(&key)),
            }
        }
        last.expect("the stack starts with one key")
    }

    /// Like `store_key`, when all inputs are known in the main store.
    fn store_one(&mut self, key: &CacheKey) -> KeyId {
        if key.is_root() {
            return KeyId::Root(key.digest().root(key.output()));
        }
        let inputs = key.inputs().iter().enumerate().map(|(input, alternatives)| {
            let named = alternatives.iter().filter_map(|selected| {
                let (output, digest, selector) = (key.output(), key.digest(), selected.selector);
                let link = Link { input: input as u32, output, digest, selector };
                Some((selected.key.id(StoreIndex::MAIN)?, link))
            });
            named.collect::<Vec<_>>()
        });
        let inputs: Vec<Vec<(KeyId, Link)>> = inputs.collect();
        let known = key.id(StoreIndex::MAIN);
        let found = known.or_else(|| self.stored_ids(inputs.iter().cloned()).first().copied());
        let id = found.unwrap_or_else(|| self.keys.fresh_id());
        for (from, link) in inputs.into_iter().flatten() {
            self.keys.add_link(from, link, id);
        }
        key.set_id(StoreIndex::MAIN, id);
        id
    }

    /// Makes the inputs of a follower lead to the leader's key.
    ///
    /// A follower without inputs adds nothing: were the leader's result stored under another name
    /// of the source (another manifest of equal layers), look-ups would stop at that name, which
    /// does not lead to what was built on the first.
    fn adopt_links(&mut self, edge: EdgeIx, leader: EdgeIx) {
        let keys = self.edges[leader].result_keys.iter();
        let Some(stored) = keys.filter_map(|key| key.id(StoreIndex::MAIN)).next() else { return };
        let ways: Vec<_> = self.alternatives(edge, EdgeState::current_keys).flatten().collect();
        for (from, link) in ways {
            self.keys.add_link(from, link, stored);
        }
    }

    /// Why the edge has to be executed.
    pub(super) fn explain_miss(&self, edge: EdgeIx) -> Miss {
        let state = &self.edges[edge];
        let vertex = &self.vertices[state.vertex];
        if vertex.ignore_cache {
            return Miss::IgnoredByRequest;
        }
        if let Some(record) = state.tried.last() {
            return Miss::Evicted { record: Some(record.clone()) };
        }
        if !state.own.is_empty() {
            return Miss::Evicted { record: None };
        }
        let known = state.deps.is_empty() || {
            let operation = vertex.operation();
            vertex.stores().any(|store| {
                let operation = match store {
                    StoreIndex::MAIN => operation,
                    _ => operation.root(state.output as i32),
                };
                self.store(store).is_some_and(|store| store.knows_operation(operation))
            })
        };
        if state.deps.is_empty() || !known {
            let imported = !vertex.imports.is_empty();
            return if imported { Miss::ImportMiss } else { Miss::NoSuchKey };
        }
        let unmatched = state.deps.iter().position(|dep| dep.matches.is_empty());
        match unmatched {
            Some(input) if state.deps[input].content_key.is_some() => {
                Miss::ContentChanged { input }
            }
            Some(input) => Miss::InputChanged { input },
            None => Miss::NewCombination,
        }
    }

    /// Ends the edge with the result of another one that is done.
    pub(super) fn take_result(&mut self, edge: EdgeIx, leader: EdgeIx) {
        let Phase::Done { output, record } = &self.edges[leader].phase else {
            unreachable!("only results of finished edges are taken")
        };
        let (output, record) = (*output, record.clone());
        self.adopt_links(edge, leader);
        let keys = self.edges[leader].result_keys.clone();
        let offered = self.edges[leader].offered.clone();
        let state = &mut self.edges[edge];
        for key in offered {
            if !state.offered.iter().any(|known| known.same(&key)) {
                state.offered.push(key);
            }
        }
        state.result_keys = keys;
        self.finish(edge, output, record);
    }
}
