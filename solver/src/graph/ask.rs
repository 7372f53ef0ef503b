//! What an edge asks of its inputs.
//!
//! Of each input an edge wants one level more only when that can still help: see
//! [`Graph::desired`], the table at the heart of lazy evaluation. Two rules of postponement apply
//! while some input without a match by definition may still get one: inputs that have a match are
//! left alone, first before they are evaluated at all, later before their content is digested.

use super::{
    edge::{Fact, Phase},
    vertex::Content,
    *,
};

/// The facts about an edge that decide what it asks; if they change, all inputs are looked at.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct View {
    want: Level,
    give_up: bool,
    mapped: bool,
    has_keys: bool,
    has_records: bool,
    all_fast: bool,
    all_slow: bool,
    all_matched: bool,
    hopeful_fast: bool,
    hopeful_slow: bool,
}

impl Graph {
    fn view(&self, edge: EdgeIx, want: Level) -> View {
        let state = &self.edges[edge];
        let vertex = &self.vertices[state.vertex];
        let mapped = state.maps > 0;
        let last = mapped && vertex.last_map && state.maps == vertex.maps.len();
        View {
            want,
            give_up: state.hopeless || state.forced,
            mapped,
            has_keys: !state.offered.is_empty(),
            has_records: !state.records.is_empty(),
            all_fast: last && state.total(Fact::BelowFast) == 0,
            all_slow: last && state.total(Fact::BelowSlow) == 0,
            all_matched: mapped && state.total(Fact::NoMatchOrResult) == 0,
            hopeful_fast: state.total(Fact::HopefulFast) > 0,
            hopeful_slow: state.total(Fact::HopefulSlow) > 0,
        }
    }

    /// The level to ask of an input that is at `level`; that level itself means nothing is asked.
    fn desired(&self, edge: EdgeIx, input: usize, view: &View) -> Level {
        let state = &self.edges[edge];
        let dep = &state.deps[input];
        let level = self.edges[dep.child].level;
        if view.give_up {
            return Level::Complete;
        }
        let matched = !dep.matches.is_empty();
        let content = view.mapped && self.vertices[state.vertex].input_key(input).content;
        let wait_fast = view.hopeful_fast && matched;
        let wait_slow = view.hopeful_slow && matched && content && !dep.content_done;
        match level {
            Level::Initial => Level::Fast.min(view.want),
            Level::Fast if view.want > Level::Fast && view.mapped => {
                let settled = view.all_fast && !view.has_keys;
                let useful = settled || !matched || view.all_matched;
                if useful && !wait_fast { Level::Slow } else { level }
            }
            Level::Slow if view.want == Level::Complete && view.mapped => {
                let useful = !matched || view.all_slow || (!wait_fast && content);
                if useful && !view.has_records && !wait_slow { Level::Complete } else { level }
            }
            Level::Slow if view.want == Level::Slow && content => {
                if wait_slow {
                    level
                } else {
                    Level::Complete
                }
            }
            _ => level,
        }
    }

    /// Asks the inputs for what is needed next, and for the next cache map.
    pub(super) fn ask_for_more(&mut self, edge: EdgeIx, want: Level) {
        self.ask_map(edge);
        self.ask_inputs(edge, want);
        let state = &self.edges[edge];
        let idle = state.total(Fact::Outstanding) == 0
            && state.total(Fact::Digesting) == 0
            && self.vertices[state.vertex].map_task.is_none()
            && matches!(state.phase, Phase::Searching);
        if idle && !state.forced {
            // No rule wants anything, yet somebody waits: do it the plain way.
            self.edges[edge].forced = true;
            self.ask_inputs(edge, want);
        }
    }

    fn ask_inputs(&mut self, edge: EdgeIx, want: Level) {
        let view = self.view(edge, want);
        let before = self.edges[edge].view.replace(view);
        let touched = std::mem::take(&mut self.edges[edge].touched);
        if before == Some(view) {
            for input in touched {
                self.ask_input(edge, input as usize, &view, false);
            }
            return;
        }
        // Asking for less than before only happens when less is wanted of this edge.
        let fewer = before.is_none_or(|before| before.want > want);
        for input in 0..self.edges[edge].deps.len() {
            self.ask_input(edge, input, &view, fewer);
        }
    }

    fn ask_input(&mut self, edge: EdgeIx, input: usize, view: &View, fewer: bool) {
        let desired = self.desired(edge, input, view);
        let asked = self.edges[edge].deps[input].asked;
        self.set_ask(edge, input, if fewer { desired } else { desired.max(asked) });
        self.ask_content(edge, input);
    }

    fn set_ask(&mut self, edge: EdgeIx, input: usize, level: Level) {
        let dep = &mut self.edges[edge].deps[input];
        let (child, before) = (dep.child, dep.asked);
        if before == level {
            return;
        }
        dep.asked = level;
        let asks = &mut self.edges[child].asks;
        let want = asks.want();
        if level > Level::Initial {
            asks.add(level);
        }
        if before > Level::Initial {
            asks.remove(before);
        }
        if asks.want() != want {
            self.enqueue(child);
        }
        self.refresh_facts(edge, input);
    }

    /// Wants nothing of the inputs any more.
    pub(super) fn drop_asks(&mut self, edge: EdgeIx) {
        for input in 0..self.edges[edge].deps.len() {
            self.set_ask(edge, input, Level::Initial);
        }
        self.edges[edge].view = None;
    }

    fn ask_map(&mut self, edge: EdgeIx) {
        let state = &self.edges[edge];
        let number = state.vertex;
        let vertex = &self.vertices[number];
        let more = state.maps == 0 || (state.records.is_empty() && !vertex.last_map);
        if !more || vertex.map_task.is_some() || state.maps < vertex.maps.len() {
            return;
        }
        let (step, digest) = (vertex.maps.len(), vertex.digest);
        let task = self.start_task(number, Task::CacheMap { vertex: number, cancelled: false });
        self.vertices[number].map_task = Some(task);
        if self.vertices[number].inputs.is_empty() {
            self.started(number);
        }
        self.actions.push(Action::AskCacheMap { task, vertex: digest, step });
    }

    fn ask_content(&mut self, edge: EdgeIx, input: usize) {
        let state = &self.edges[edge];
        if state.maps == 0 {
            return;
        }
        let Phase::Done { output, .. } = self.edges[state.deps[input].child].phase else { return };
        let number = state.vertex;
        let vertex = &self.vertices[number];
        let key = vertex.input_key(input);
        let needed = key.content || key.preprocess;
        if !needed || !matches!(vertex.contents[input], Content::Unknown) {
            return;
        }
        let digest = vertex.digest;
        let cancelled = false;
        let task = self.start_task(number, Task::Content { vertex: number, input, cancelled });
        self.vertices[number].contents[input] = Content::Asked(task);
        self.actions.push(Action::AskContent { task, vertex: digest, input, output });
        self.refresh_facts(edge, input);
    }
}
