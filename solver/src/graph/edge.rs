//! One edge: what is known of it, and one round of moving it on.
//!
//! [`Graph::advance`] is the only place where an edge decides anything. It takes in what became
//! known (cache maps, inputs), derives keys and level from it, and then either starts work, follows
//! somebody who works, or asks its inputs for more (see `ask`).

use std::collections::BTreeSet;

use super::{vertex::Content, *};
use crate::keys::{KeyDigest, KeyId};

pub(super) struct EdgeState {
    pub(super) vertex: VertexIx,
    pub(super) output: u32,
    pub(super) phase: Phase,
    pub(super) level: Level,
    pub(super) asks: Asks,
    pub(super) requests: Vec<RequestId>,
    pub(super) followers: BTreeSet<EdgeIx>,
    /// Edges built on this one, and which of their inputs it is.
    pub(super) consumers: Vec<(EdgeIx, u32)>,
    pub(super) queued: bool,

    /// Keys for consumers to look up with; only ever grows.
    pub(super) offered: Vec<CacheKey>,
    /// Keys of the result, once there is one.
    pub(super) result_keys: Vec<CacheKey>,
    /// Keys in stores that were found to be this edge's.
    pub(super) own: BTreeSet<StoredKey>,
    /// How many inputs lead to a stored key.
    pub(super) reached: HashMap<StoredKey, usize>,
    /// Stored keys that all inputs lead to, not yet taken in.
    pub(super) fresh: Vec<StoredKey>,
    /// Results to try.
    pub(super) records: Vec<Candidate>,
    /// Results that could not be loaded.
    pub(super) tried: Vec<RecordId>,
    /// Digests of all cache maps, for an edge without inputs.
    pub(super) roots: Vec<KeyDigest>,
    /// Number of cache maps taken in.
    pub(super) maps: usize,

    pub(super) deps: Vec<Dep>,
    pub(super) joined: bool,
    /// Inputs that changed since they were last taken in.
    pub(super) dirty: Vec<u32>,
    /// Inputs taken in in this round.
    pub(super) touched: Vec<u32>,
    pub(super) totals: [u32; Fact::COUNT],
    /// What the last look at all inputs was based on.
    pub(super) view: Option<ask::View>,
    pub(super) hopeless: bool,
    pub(super) forced: bool,
    /// Whether it waited for an execution once.
    pub(super) left: bool,
    /// Whether the index is still to be looked into before any work is in sight.
    pub(super) unindexed: bool,
    /// Entries of this edge in the index.
    pub(super) indexed: Vec<index::Entry>,
}

/// A key in one of the stores.
pub(super) type StoredKey = (StoreIndex, KeyId);

/// A stored result and the key that led to it.
#[derive(Clone)]
pub(super) struct Candidate {
    pub(super) found: FoundRecord,
    pub(super) store: StoreIndex,
    pub(super) key: CacheKey,
}

/// What an edge is doing.
pub(super) enum Phase {
    /// Looking for a result, or waiting for inputs.
    Searching,
    /// Waiting for an edge with an equal key.
    Follows { leader: EdgeIx },
    /// Bringing back a stored result.
    Loading { task: TaskId, candidate: Candidate },
    /// Waiting for the vertex to be executed.
    Executing,
    /// There is a result.
    Done { output: OutputId, record: Option<RecordId> },
    /// There will be none.
    Failed(Arc<Failure>),
}

/// How many ask for each level.
#[derive(Default)]
pub(super) struct Asks([u32; 4]);

impl Asks {
    pub(super) fn add(&mut self, level: Level) {
        self.0[level as usize] += 1;
    }

    pub(super) fn remove(&mut self, level: Level) {
        self.0[level as usize] -= 1;
    }

    /// The highest level asked for.
    pub(super) fn want(&self) -> Level {
        let levels = [Level::Complete, Level::Slow, Level::Fast];
        levels.into_iter().find(|level| self.0[*level as usize] > 0).unwrap_or(Level::Initial)
    }
}

/// One input of an edge.
pub(super) struct Dep {
    pub(super) child: EdgeIx,
    /// Position in the child's list of consumers.
    pub(super) slot: u32,
    pub(super) asked: Level,
    /// How many of the child's keys were looked up.
    pub(super) probed: usize,
    /// Stored keys that the child's keys lead to.
    pub(super) matches: Vec<StoredKey>,
    /// Whether the content digest was taken in.
    pub(super) content_done: bool,
    pub(super) content_key: Option<CacheKey>,
    pub(super) content_found: bool,
    /// Which facts hold, as bits; see [`Fact`].
    pub(super) facts: u32,
}

/// Facts about an input that an edge keeps totals of.
#[derive(Clone, Copy)]
pub(super) enum Fact {
    /// It offers no key at all yet.
    NoKey,
    /// It leads to no stored key, has no content key and no result.
    NoMatchOrResult,
    /// It is below `Fast`.
    BelowFast,
    /// It is below `Slow`, or its content digest is still to come.
    BelowSlow,
    /// It is below `Slow` and leads to no stored key.
    BelowSlowUnmatched,
    /// Its result, or what is to be done with it before execution, is missing.
    Unready,
    /// It leads to no stored key, but its content or level may still change that.
    HopefulSlow,
    /// It leads to no stored key, but its content or completion may still change that.
    HopefulFast,
    /// It leads to no stored key and has reached `Fast` for good.
    SpentFast,
    /// It leads to no stored key and has reached `Slow` for good.
    SpentSlow,
    /// It was asked for more than it has reached.
    Outstanding,
    /// Its content digest or preparation is under way.
    Digesting,
}

impl Fact {
    pub(super) const COUNT: usize = 12;

    fn bit(self) -> u32 {
        1 << self as u32
    }
}

impl EdgeState {
    pub(super) fn new(vertex: VertexIx, output: u32) -> Self {
        Self {
            vertex,
            output,
            phase: Phase::Searching,
            level: Level::Initial,
            asks: Asks::default(),
            requests: Vec::new(),
            followers: BTreeSet::new(),
            consumers: Vec::new(),
            queued: false,
            offered: Vec::new(),
            result_keys: Vec::new(),
            own: BTreeSet::new(),
            reached: HashMap::new(),
            fresh: Vec::new(),
            records: Vec::new(),
            tried: Vec::new(),
            roots: Vec::new(),
            maps: 0,
            deps: Vec::new(),
            joined: false,
            dirty: Vec::new(),
            touched: Vec::new(),
            totals: [0; Fact::COUNT],
            view: None,
            hopeless: false,
            forced: false,
            left: false,
            unindexed: false,
            indexed: Vec::new(),
        }
    }

    pub(super) fn total(&self, fact: Fact) -> u32 {
        self.totals[fact as usize]
    }

    /// Keys to build the keys of consumers from.
    pub(super) fn current_keys(&self) -> &[CacheKey] {
        if self.result_keys.is_empty() { &self.offered } else { &self.result_keys }
    }

    pub(super) fn is_over(&self) -> bool {
        matches!(self.phase, Phase::Done { .. } | Phase::Failed(_))
    }
}

impl Graph {
    /// One round for one edge.
    pub(super) fn advance(&mut self, edge: EdgeIx) {
        if self.edges.get(edge).is_none() {
            return;
        }
        self.edges[edge].queued = false;
        let want = self.edges[edge].asks.want();
        match self.edges[edge].phase {
            Phase::Done { .. } | Phase::Failed(_) => return,
            Phase::Loading { task, .. } => {
                if want < Level::Complete {
                    self.cancel(task);
                }
                return;
            }
            Phase::Follows { .. } if want == Level::Complete => return,
            Phase::Executing if want == Level::Complete => return,
            Phase::Follows { .. } => self.unfollow(edge),
            Phase::Executing => self.leave_execution(edge),
            Phase::Searching => {}
        }
        if want == Level::Initial {
            self.drop_asks(edge);
            self.cancel_unwanted(self.edges[edge].vertex);
            return;
        }
        if let Some(failure) = self.vertices[self.edges[edge].vertex].failure.clone() {
            self.fail(edge, failure);
            return;
        }
        self.join_inputs(edge);
        self.take_maps(edge);
        if !self.take_inputs(edge) {
            return;
        }
        self.raise(edge);
        if want == Level::Complete && self.start(edge) {
            return;
        }
        if want > self.edges[edge].level {
            self.ask_for_more(edge, want);
        } else {
            // Whoever wants more later looks at all inputs first.
            self.edges[edge].view = None;
        }
    }

    /// Starts work if there is enough to start it, or follows somebody who did.
    fn start(&mut self, edge: EdgeIx) -> bool {
        let state = &self.edges[edge];
        if state.maps == 0 {
            return false;
        }
        let vertex = &self.vertices[state.vertex];
        let loadable = !state.records.is_empty();
        let ready =
            vertex.last_map && state.maps == vertex.maps.len() && state.total(Fact::Unready) == 0;
        let early = state.unindexed && state.total(Fact::NoKey) == 0;
        if (early || loadable || ready) && self.follow(edge) {
            return true;
        }
        if loadable {
            self.start_load(edge);
            return true;
        }
        if ready {
            // Somebody else may have stored a result since the inputs were looked up.
            if self.look_again(edge) {
                self.start_load(edge);
            } else {
                self.start_execution(edge);
            }
            return true;
        }
        false
    }

    /// Registers with the inputs, once.
    fn join_inputs(&mut self, edge: EdgeIx) {
        if self.edges[edge].joined {
            return;
        }
        self.edges[edge].joined = true;
        let count = self.vertices[self.edges[edge].vertex].inputs.len();
        self.edges[edge].deps.reserve_exact(count);
        for input in 0..count {
            let (vertex, output) = self.vertices[self.edges[edge].vertex].inputs[input];
            let child = self.edge_of(vertex, output);
            let consumers = &mut self.edges[child].consumers;
            let slot = consumers.len() as u32;
            consumers.push((edge, input as u32));
            self.edges[edge].dirty.push(input as u32);
            self.edges[edge].deps.push(Dep {
                child,
                slot,
                asked: Level::Initial,
                probed: 0,
                matches: Vec::new(),
                content_done: false,
                content_key: None,
                content_found: false,
                facts: 0,
            });
        }
    }

    /// Lets go of the inputs for good.
    pub(super) fn leave_inputs(&mut self, edge: EdgeIx) {
        self.drop_asks(edge);
        // One by one: the entry that fills the gap may belong to another input of this edge.
        while let Some(dep) = self.edges[edge].deps.pop() {
            let consumers = &mut self.edges[dep.child].consumers;
            consumers.swap_remove(dep.slot as usize);
            if let Some((moved, input)) = consumers.get(dep.slot as usize).copied() {
                self.edges[moved].deps[input as usize].slot = dep.slot;
            }
        }
        self.edges[edge].deps = Vec::new();
        let state = &mut self.edges[edge];
        state.dirty = Vec::new();
        state.touched = Vec::new();
        state.totals = [0; Fact::COUNT];
        state.view = None;
        state.reached = HashMap::new();
        state.fresh = Vec::new();
        state.records = Vec::new();
    }

    fn take_maps(&mut self, edge: EdgeIx) {
        let vertex = self.edges[edge].vertex;
        let count = self.vertices[vertex].maps.len();
        if self.edges[edge].maps == count {
            return;
        }
        if self.vertices[vertex].inputs.is_empty() {
            for number in self.edges[edge].maps..count {
                let digest = self.vertices[vertex].maps[number].digest;
                self.edges[edge].roots.push(digest);
                if !self.vertices[vertex].ignore_cache {
                    self.find_root(edge, digest);
                }
            }
        }
        let state = &mut self.edges[edge];
        state.maps = count;
        state.unindexed = true;
        state.hopeless = false;
        state.view = None;
        // With another operation digest all keys of the inputs lead elsewhere.
        for dep in &mut state.deps {
            dep.probed = 0;
        }
        state.dirty = (0..state.deps.len() as u32).collect();
    }

    /// Takes in what changed at the inputs; false if one of them failed and with it this edge.
    fn take_inputs(&mut self, edge: EdgeIx) -> bool {
        let dirty = std::mem::take(&mut self.edges[edge].dirty);
        for input in &dirty {
            let child = self.edges[edge].deps[*input as usize].child;
            if let Phase::Failed(failure) = &self.edges[child].phase {
                let failure = Arc::clone(failure);
                self.fail(edge, failure);
                return false;
            }
            self.take_input(edge, *input as usize);
        }
        self.edges[edge].touched = dirty;
        true
    }

    fn take_input(&mut self, edge: EdgeIx, input: usize) {
        let state = &self.edges[edge];
        if state.maps > 0 {
            let dep = &state.deps[input];
            let child = &self.edges[dep.child];
            let vertex = &self.vertices[state.vertex];
            let key = vertex.input_key(input);
            if child.offered.len() > dep.probed {
                let new = child.offered[dep.probed..].to_vec();
                let count = child.offered.len();
                self.edges[edge].deps[input].probed = count;
                self.probe(edge, input, &new, key.selector);
            }
            if let Content::Known(digest) = self.vertices[self.edges[edge].vertex].contents[input]
                && !self.edges[edge].deps[input].content_done
            {
                self.edges[edge].deps[input].content_done = true;
                if key.content
                    && let Some(digest) = digest
                {
                    self.take_content(edge, input, digest, key.selector);
                }
            }
        }
        self.refresh_facts(edge, input);
    }

    /// Recomputes what the totals count.
    pub(super) fn refresh_facts(&mut self, edge: EdgeIx, input: usize) {
        let state = &self.edges[edge];
        let dep = &state.deps[input];
        let child = &self.edges[dep.child];
        let level = child.level;
        let vertex = &self.vertices[state.vertex];
        let mut facts = 0;
        let mut set = |fact: Fact, holds: bool| facts |= if holds { fact.bit() } else { 0 };
        set(Fact::Outstanding, dep.asked > level);
        if state.maps > 0 {
            let key = vertex.input_key(input);
            let complete = level == Level::Complete;
            let matched = !dep.matches.is_empty();
            let known = dep.content_key.is_some() || complete;
            let waits = level >= Level::Slow && !dep.content_done;
            let content_to_come = key.content && waits;
            let step_to_come = (key.content || key.preprocess) && waits;
            set(Fact::NoKey, child.offered.is_empty() && !known);
            set(Fact::NoMatchOrResult, !matched && !known);
            set(Fact::BelowFast, level < Level::Fast);
            set(Fact::BelowSlow, level < Level::Slow || content_to_come);
            set(Fact::BelowSlowUnmatched, level < Level::Slow && !matched);
            set(Fact::Unready, !complete || step_to_come);
            let undigested = key.content && !dep.content_done;
            set(Fact::HopefulSlow, !matched && (undigested || level < Level::Slow));
            set(Fact::HopefulFast, !matched && (undigested || (!key.content && !complete)));
            set(Fact::SpentFast, !matched && !step_to_come && level >= Level::Fast);
            set(Fact::SpentSlow, !matched && !step_to_come && level >= Level::Slow);
            let asked = matches!(vertex.contents[input], Content::Asked(_));
            set(Fact::Digesting, asked && !dep.content_done);
            let spent = if key.content {
                dep.content_done && !dep.content_found
            } else {
                level >= Level::Slow
            };
            if !matched && spent {
                self.edges[edge].hopeless = true;
            }
        }
        let state = &mut self.edges[edge];
        let before = std::mem::replace(&mut state.deps[input].facts, facts);
        let mut changed = before ^ facts;
        while changed != 0 {
            let fact = changed.trailing_zeros() as usize;
            changed &= changed - 1;
            if facts & (1 << fact) != 0 {
                state.totals[fact] += 1;
            } else {
                state.totals[fact] -= 1;
            }
        }
    }

    /// Derives keys and level, and tells consumers if they changed.
    fn raise(&mut self, edge: EdgeIx) {
        let before = (self.edges[edge].level, self.edges[edge].offered.len());
        self.take_fresh_keys(edge);
        let state = &self.edges[edge];
        if state.maps == 0 {
            return;
        }
        let vertex = &self.vertices[state.vertex];
        let last = vertex.last_map && state.maps == vertex.maps.len();
        let mut level = state.level;
        if state.deps.is_empty() {
            // A further map is asked for only while there is no record.
            if last || !state.records.is_empty() {
                level = level.max(Level::Slow);
            }
        } else {
            let low = match (state.total(Fact::SpentSlow), state.total(Fact::SpentFast)) {
                (0, 0) => Level::Initial,
                (0, _) => Level::Fast,
                _ => Level::Slow,
            };
            let high = match (state.total(Fact::BelowFast), state.total(Fact::BelowSlow)) {
                (0, 0) => Level::Slow,
                (0, _) => Level::Fast,
                _ => Level::Initial,
            };
            level = level.max(low).max(high);
            if !last && state.offered.is_empty() {
                level = Level::Initial;
            }
            let settled = last
                && level == Level::Fast
                && !state.records.is_empty()
                && state.total(Fact::BelowSlowUnmatched) == 0;
            if settled && !self.may_find_more(edge) {
                level = Level::Slow;
            }
        }
        self.edges[edge].level = level;
        if before != (level, self.edges[edge].offered.len()) {
            self.tell_consumers(edge);
        }
    }

    /// Whether some stored key could still become this edge's: all inputs whose search is over
    /// lead to it.
    fn may_find_more(&self, edge: EdgeIx) -> bool {
        let state = &self.edges[edge];
        let vertex = &self.vertices[state.vertex];
        let mut open: Option<Vec<StoredKey>> = None;
        for (input, dep) in state.deps.iter().enumerate() {
            let level = self.edges[dep.child].level;
            if vertex.input_key(input).content && level >= Level::Slow && !dep.content_done {
                continue;
            }
            let mut left = match open.take() {
                Some(left) => left,
                None => {
                    dep.matches.iter().filter(|key| !state.own.contains(*key)).copied().collect()
                }
            };
            left.retain(|key| dep.matches.contains(key));
            if left.is_empty() {
                return false;
            }
            open = Some(left);
        }
        true
    }

    pub(super) fn tell_consumers(&mut self, edge: EdgeIx) {
        for position in 0..self.edges[edge].consumers.len() {
            let (consumer, input) = self.edges[edge].consumers[position];
            self.edges[consumer].dirty.push(input);
            if matches!(self.edges[consumer].phase, Phase::Searching) {
                self.enqueue(consumer);
            }
        }
    }

    /// Ends the edge with a result.
    pub(super) fn finish(&mut self, edge: EdgeIx, output: OutputId, record: Option<RecordId>) {
        self.hold(output);
        self.leave_inputs(edge);
        let state = &mut self.edges[edge];
        state.phase = Phase::Done { output, record };
        state.level = Level::Complete;
        state.own = BTreeSet::new();
        self.tell_consumers(edge);
        self.answer_all(edge);
        for follower in std::mem::take(&mut self.edges[edge].followers) {
            self.finish_follower(follower, edge);
        }
    }

    /// Ends the edge without one.
    pub(super) fn fail(&mut self, edge: EdgeIx, failure: Arc<Failure>) {
        self.unregister(edge);
        self.leave_inputs(edge);
        let state = &mut self.edges[edge];
        state.phase = Phase::Failed(Arc::clone(&failure));
        let vertex = state.vertex;
        self.tell_consumers(edge);
        self.answer_all(edge);
        let followers = std::mem::take(&mut self.edges[edge].followers);
        for follower in followers {
            self.fail_follower(follower, edge, &failure);
        }
        self.cancel_unwanted(vertex);
    }

    /// How the edge ended, if it did.
    pub(super) fn outcome(&self, edge: EdgeIx) -> Option<Result<Answer, Arc<Failure>>> {
        let state = &self.edges[edge];
        match &state.phase {
            Phase::Done { output, record } => {
                let decision = self.vertices[state.vertex].decision.clone();
                Some(Ok(Answer {
                    output: *output,
                    keys: state.result_keys.clone(),
                    record: record.clone(),
                    decision: decision.expect("decided before any result came"),
                }))
            }
            Phase::Failed(failure) => Some(Err(Arc::clone(failure))),
            _ => None,
        }
    }

    fn answer_all(&mut self, edge: EdgeIx) {
        for request in self.edges[edge].requests.clone() {
            if let Some(outcome) = self.outcome(edge) {
                self.answer(request, outcome);
            }
        }
    }
}
