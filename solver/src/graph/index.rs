//! The index of edges at work or done, by key: how equal work is found before it starts.
//!
//! It has the same link structure as a store. An edge enters when it starts to load or execute, and
//! leaves when that comes to nothing or the edge is released; while it is in, others with an equal
//! key follow it. Two keys are equal if for every input some alternative of one is some alternative
//! of the other.

use super::{edge::Phase, *};
use crate::keys::{KeyDigest, KeyId, StoreIndex};

/// One alternative of one input of an operation; no input for operations without.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct Entry {
    store: StoreIndex,
    key: KeyId,
    input: Option<u32>,
    output: u32,
    operation: KeyDigest,
    selector: Option<Digest>,
}

#[derive(Default)]
pub(super) struct ActiveIndex {
    edges: HashMap<Entry, Vec<EdgeIx>>,
}

impl ActiveIndex {
    pub(super) fn is_empty(&self) -> bool {
        self.edges.is_empty()
    }
}

impl Graph {
    /// Entries for the operation without inputs.
    fn root_entries(&self, edge: EdgeIx) -> Vec<Entry> {
        let state = &self.edges[edge];
        let entry = |digest: &KeyDigest| Entry {
            store: StoreIndex::MAIN,
            key: KeyId::Root(digest.root(state.output as i32)),
            input: None,
            output: state.output,
            operation: *digest,
            selector: None,
        };
        state.roots.iter().map(entry).collect()
    }

    /// Entries for all alternatives of one input.
    fn input_entries(&self, edge: EdgeIx, input: usize, entries: &mut Vec<Entry>) {
        let state = &self.edges[edge];
        let vertex = &self.vertices[state.vertex];
        let dep = &state.deps[input];
        let child = &self.edges[dep.child];
        let selector = vertex.input_key(input).selector;
        let ignored = self.vertices[child.vertex].ignore_cache;
        if ignored {
            // What was forced to run equals no other run of the same operation, only itself.
            entries.push(Entry {
                store: StoreIndex::RUN,
                key: KeyId::Chain(u64::from(dep.child)),
                input: Some(input as u32),
                output: state.output,
                operation: vertex.operation(),
                selector,
            });
        }
        let result_keys = if ignored { &[][..] } else { &child.result_keys };
        let by_definition = child.offered.iter().chain(result_keys);
        let alternatives = by_definition
            .map(|key| (key, selector))
            .chain(dep.content_key.iter().map(|key| (key, None)));
        for (key, selector) in alternatives {
            let named = if key.is_root() {
                key.id(StoreIndex::MAIN).map(|id| (StoreIndex::MAIN, id)).into_iter().collect()
            } else {
                key.ids()
            };
            entries.extend(named.into_iter().map(|(store, key)| Entry {
                store,
                key,
                input: Some(input as u32),
                output: state.output,
                operation: vertex.operation(),
                selector,
            }));
        }
    }

    /// Enters the edge.
    pub(super) fn register(&mut self, edge: EdgeIx) {
        self.unregister(edge);
        let mut entries = self.root_entries(edge);
        for input in 0..self.edges[edge].deps.len() {
            self.input_entries(edge, input, &mut entries);
        }
        for entry in &entries {
            let edges = self.index.edges.entry(entry.clone()).or_default();
            if !edges.contains(&edge) {
                edges.push(edge);
            }
        }
        self.edges[edge].indexed = entries;
    }

    /// Takes the edge out.
    pub(super) fn unregister(&mut self, edge: EdgeIx) {
        for entry in std::mem::take(&mut self.edges[edge].indexed) {
            if let Some(edges) = self.index.edges.get_mut(&entry) {
                edges.retain(|known| *known != edge);
                if edges.is_empty() {
                    self.index.edges.remove(&entry);
                }
            }
        }
    }

    /// Lets the edge follow another one with an equal key that is at work or done, if there is one.
    pub(super) fn follow(&mut self, edge: EdgeIx) -> bool {
        self.edges[edge].unindexed = false;
        let Some(leader) = self.find_leader(edge) else { return false };
        self.drop_asks(edge);
        let (number, leading) = (self.edges[edge].vertex, self.edges[leader].vertex);
        let decision = Decision::Shared { leader: self.vertices[leading].digest };
        self.vertices[number].decision = Some(decision);
        self.announce_decision(number);
        if matches!(self.edges[leader].phase, Phase::Done { .. }) {
            self.copy_progress(leading, number);
            self.take_result(edge, leader);
            self.cancel_unwanted(number);
            return true;
        }
        self.edges[edge].phase = Phase::Follows { leader };
        self.edges[leader].followers.insert(edge);
        self.edges[leader].asks.add(Level::Complete);
        self.vertices[leading].holders += 1;
        self.cancel_unwanted(number);
        if self.vertices[leading].active {
            self.show_started(number);
        }
        true
    }

    fn find_leader(&self, edge: EdgeIx) -> Option<EdgeIx> {
        if self.edges[edge].deps.is_empty() {
            let entries = self.root_entries(edge);
            let known = entries.iter().filter_map(|entry| self.index.edges.get(entry));
            return known.flatten().copied().find(|leader| self.may_follow(edge, *leader));
        }
        let mut leaders: Vec<EdgeIx> = Vec::new();
        let mut entries = Vec::new();
        for input in 0..self.edges[edge].deps.len() {
            entries.clear();
            self.input_entries(edge, input, &mut entries);
            let known = entries.iter().filter_map(|entry| self.index.edges.get(entry)).flatten();
            if input == 0 {
                leaders = known.copied().collect();
            } else {
                let here: Vec<EdgeIx> = known.copied().collect();
                leaders.retain(|leader| here.contains(leader));
            }
            if leaders.is_empty() {
                return None;
            }
        }
        leaders.into_iter().find(|leader| self.may_follow(edge, *leader))
    }

    fn may_follow(&self, edge: EdgeIx, leader: EdgeIx) -> bool {
        let (own, other) = (&self.edges[edge], &self.edges[leader]);
        let at_work =
            matches!(other.phase, Phase::Loading { .. } | Phase::Executing | Phase::Done { .. });
        let ignoring = self.vertices[own.vertex].ignore_cache;
        at_work
            && own.vertex != other.vertex
            && (!ignoring || self.vertices[other.vertex].ignore_cache)
            && !self.waits_for(leader, edge)
    }

    /// Whether `edge` waits for `other`, directly or through others.
    fn waits_for(&self, edge: EdgeIx, other: EdgeIx) -> bool {
        let mut seen = std::collections::HashSet::from([edge]);
        let mut stack = vec![edge];
        while let Some(edge) = stack.pop() {
            if edge == other {
                return true;
            }
            for next in self.awaited(edge) {
                if seen.insert(next) {
                    stack.push(next);
                }
            }
        }
        false
    }

    /// The edges that `edge` waits for right now.
    pub(super) fn awaited(&self, edge: EdgeIx) -> Vec<EdgeIx> {
        let state = &self.edges[edge];
        match state.phase {
            Phase::Follows { leader } => vec![leader],
            Phase::Searching => {
                let asked = state.deps.iter().filter(|dep| {
                    let child = &self.edges[dep.child];
                    dep.asked > child.level && !child.is_over()
                });
                asked.map(|dep| dep.child).collect()
            }
            Phase::Executing if !self.vertices[state.vertex].children.is_empty() => {
                let own = RequestOwner::Vertex(state.vertex);
                let nested = self.requests.values().filter(|request| request.owner == own);
                nested.map(|request| request.edge).collect()
            }
            _ => Vec::new(),
        }
    }
}
