//! What is known of a build so far, step by step.
//!
//! A step is a vertex, or a progress group that stands for several. Steps are never removed; a later
//! record of the same digest replaces name, error and cached mark and adds to the time intervals.
//! Arrival order is kept everywhere, so equal streams give equal text.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    io::Write,
    time::{Duration, Instant},
};

use prost_types::Timestamp;
use proto::control::{StatusResponse, Vertex, VertexLog, VertexStatus};

use super::screen::Screen;

/// Lines shown again when a step failed and its output was already printed.
const TAIL_LINES: usize = 10;
/// Lines kept for a failed step whose output was painted over.
const TAIL_LINES_TTY: usize = 2000;

/// Nanoseconds since the Unix epoch, daemon's clock.
pub(super) type Nanos = i64;

pub(super) fn nanos(at: &Timestamp) -> Nanos {
    at.seconds.saturating_mul(1_000_000_000).saturating_add(i64::from(at.nanos))
}

pub(super) fn now() -> Nanos {
    base::time::unix_nanos(std::time::SystemTime::now())
}

/// A stretch of work; open when `stop` is `None`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Interval {
    pub start: Nanos,
    pub stop: Option<Nanos>,
}

impl Interval {
    pub fn seconds(&self, now: Nanos) -> f64 {
        (self.stop.unwrap_or(now) - self.start) as f64 / 1e9
    }
}

/// A sub-step: a transfer, a layer, a push.
pub(super) struct Part {
    pub record: VertexStatus,
    pub changed: bool,
    /// Shown in the list; a part joins it once it has started.
    pub listed: bool,
    /// What the plain form last printed: bytes and time.
    pub printed: Option<(i64, Nanos)>,
}

struct Member {
    vertex: Vertex,
    weak: bool,
}

/// One line of the display and everything below it.
pub(super) struct Step {
    pub name: String,
    pub error: String,
    pub cached: bool,
    /// In a group whose members so far are only weak ones.
    pub hidden: bool,
    intervals: BTreeMap<Nanos, Option<Nanos>>,
    pub parts: Vec<Part>,
    part_by_id: HashMap<String, usize>,
    pub warnings: Vec<String>,
    pub warnings_printed: usize,
    /// Lines not yet printed by the plain form, or all kept lines for the terminal form.
    pub lines: Vec<Vec<u8>>,
    /// The last of `lines` has no end yet.
    pub partial: bool,
    /// Bytes of the partial line already printed.
    pub partial_printed: usize,
    /// Last printed lines, for the failure report.
    pub tail: std::collections::VecDeque<Vec<u8>>,
    pub screen: Screen,
    /// Number in plain output, 0 until printed.
    pub index: usize,
    /// Events since it was last in front, and since when.
    pub count: u32,
    pub waiting_since: Option<Instant>,
    group: Option<BTreeMap<String, Member>>,
    in_order: bool,
    seen: bool,
}

impl Step {
    fn new(name: String, group: bool) -> Self {
        Self {
            name,
            error: String::new(),
            cached: false,
            hidden: group,
            intervals: BTreeMap::new(),
            parts: Vec::new(),
            part_by_id: HashMap::new(),
            warnings: Vec::new(),
            warnings_printed: 0,
            lines: Vec::new(),
            partial: false,
            partial_printed: 0,
            tail: Default::default(),
            screen: Screen::default(),
            index: 0,
            count: 0,
            waiting_since: None,
            group: group.then(BTreeMap::new),
            in_order: false,
            seen: false,
        }
    }

    /// Intervals with overlaps joined, oldest first.
    pub fn merged(&self) -> Vec<Interval> {
        let mut merged: Vec<Interval> = Vec::new();
        for (&start, &stop) in &self.intervals {
            match merged.last_mut() {
                Some(last) => match (last.stop, stop) {
                    (None, _) => break,
                    (Some(end), _) if end < start => merged.push(Interval { start, stop }),
                    (Some(_), None) => last.stop = None,
                    (Some(end), Some(next)) => last.stop = Some(end.max(next)),
                },
                None => merged.push(Interval { start, stop }),
            }
        }
        merged
    }

    pub fn is_started(&self) -> bool {
        !self.intervals.is_empty()
    }

    pub fn is_completed(&self) -> bool {
        self.last_stop().is_some()
    }

    /// End of the latest interval, if it has ended.
    pub fn last_stop(&self) -> Option<Nanos> {
        self.merged().last().and_then(|last| last.stop)
    }

    pub fn is_canceled(&self) -> bool {
        self.error.ends_with("context canceled")
    }

    fn touch(&mut self) {
        if self.count == 0 {
            self.waiting_since = Some(Instant::now());
        }
        self.count += 1;
    }

    fn keep_tail(&mut self, line: Vec<u8>) {
        if self.tail.len() == TAIL_LINES {
            self.tail.pop_front();
        }
        self.tail.push_back(line);
    }

    /// The plain form printed all of `lines`: remember them and keep only an unfinished one.
    pub fn lines_printed(&mut self) {
        let open = if self.partial { self.lines.pop() } else { None };
        for line in std::mem::take(&mut self.lines) {
            self.keep_tail(line);
        }
        self.partial_printed = open.as_ref().map_or(0, Vec::len);
        self.lines.extend(open);
    }
}

/// All steps of a build.
pub(super) struct Trace {
    pub steps: Vec<Step>,
    by_digest: HashMap<String, usize>,
    groups: HashMap<String, usize>,
    /// Started steps, in the order they are listed.
    pub order: Vec<usize>,
    /// Steps with news since they were last printed.
    pub updates: BTreeSet<usize>,
    /// Daemon's clock of the first start, and ours minus the daemon's.
    pub started: Option<Nanos>,
    pub clock_ahead: Nanos,
    keep_all_logs: bool,
}

impl Trace {
    pub fn new(keep_all_logs: bool) -> Self {
        Self {
            steps: Vec::new(),
            by_digest: HashMap::new(),
            groups: HashMap::new(),
            order: Vec::new(),
            updates: BTreeSet::new(),
            started: None,
            clock_ahead: 0,
            keep_all_logs,
        }
    }

    pub fn update(&mut self, status: StatusResponse) {
        let mut touched_groups = BTreeSet::new();
        for vertex in status.vertexes {
            match vertex.progress_group.clone() {
                Some(group) => {
                    let index = self.group(&group.id, &group.name);
                    self.by_digest.insert(vertex.digest.clone(), index);
                    self.note_start(&vertex);
                    if let Some(members) = &mut self.steps[index].group {
                        members.insert(vertex.digest.clone(), Member { vertex, weak: group.weak });
                    }
                    touched_groups.insert(index);
                }
                None => self.update_vertex(vertex),
            }
        }
        for index in touched_groups {
            self.refresh_group(index);
        }
        for status in status.statuses {
            self.update_part(status);
        }
        for warning in status.warnings {
            if let Some(&index) = self.by_digest.get(&warning.vertex) {
                let text = String::from_utf8_lossy(&warning.short).into_owned();
                self.steps[index].warnings.push(text);
                self.steps[index].touch();
                self.updates.insert(index);
            }
        }
        for log in status.logs {
            self.update_log(log);
        }
    }

    fn note_start(&mut self, vertex: &Vertex) {
        if let (None, Some(started)) = (self.started, &vertex.started) {
            self.started = Some(nanos(started));
            self.clock_ahead = now() - nanos(started);
        }
    }

    fn group(&mut self, id: &str, name: &str) -> usize {
        if let Some(&index) = self.groups.get(id) {
            return index;
        }
        self.steps.push(Step::new(name.to_owned(), true));
        self.groups.insert(id.to_owned(), self.steps.len() - 1);
        self.steps.len() - 1
    }

    fn update_vertex(&mut self, vertex: Vertex) {
        self.note_start(&vertex);
        let index = match self.by_digest.get(&vertex.digest) {
            Some(&index) => index,
            None => {
                self.steps.push(Step::new(vertex.name.clone(), false));
                self.by_digest.insert(vertex.digest.clone(), self.steps.len() - 1);
                self.steps.len() - 1
            }
        };
        let step = &mut self.steps[index];
        let Some(started) = &vertex.started else {
            // A record without times announces a step; it must not undo what is known of one.
            if !step.is_started() {
                step.name = vertex.name;
            }
            return;
        };
        let start = nanos(started);
        let stop = vertex.completed.as_ref().map(nanos);
        let news = !step.seen
            || step.name != vertex.name
            || step.error != vertex.error
            || step.cached != vertex.cached
            || step.intervals.get(&start) != Some(&stop);
        step.seen = true;
        step.name = vertex.name;
        step.error = vertex.error;
        step.cached = vertex.cached;
        step.intervals.insert(start, stop);
        if !std::mem::replace(&mut step.in_order, true) {
            self.order.push(index);
        }
        if news {
            step.touch();
            self.updates.insert(index);
        }
    }

    /// Recomputes a group from its members: cached if all are, failed if one is.
    fn refresh_group(&mut self, index: usize) {
        let step = &mut self.steps[index];
        let members = step.group.as_ref().into_iter().flat_map(BTreeMap::values);
        let (mut cached, mut error, mut hidden) = (true, String::new(), true);
        let mut intervals = BTreeMap::new();
        for Member { vertex, weak } in members {
            if let Some(started) = &vertex.started {
                intervals.insert(nanos(started), vertex.completed.as_ref().map(nanos));
                hidden &= *weak;
            }
            cached &= vertex.cached;
            if error.is_empty() {
                error.clone_from(&vertex.error);
            }
        }
        hidden &= error.is_empty();
        let changed = step.cached != cached
            || step.error != error
            || step.hidden != hidden
            || step.intervals != intervals;
        step.cached = cached;
        step.error = error;
        step.hidden = hidden;
        step.intervals = intervals;
        if hidden || !changed {
            return;
        }
        step.touch();
        if !std::mem::replace(&mut step.in_order, true) {
            self.order.push(index);
        }
        self.updates.insert(index);
    }

    fn update_part(&mut self, record: VertexStatus) {
        let Some(&index) = self.by_digest.get(&record.vertex) else { return };
        let step = &mut self.steps[index];
        let started = record.started.is_some();
        let part = match step.part_by_id.get(&record.id) {
            Some(&part) => {
                step.parts[part].record = record;
                part
            }
            None => {
                step.part_by_id.insert(record.id.clone(), step.parts.len());
                step.parts.push(Part { record, changed: false, listed: false, printed: None });
                step.parts.len() - 1
            }
        };
        step.parts[part].changed = true;
        step.parts[part].listed |= started;
        step.touch();
        self.updates.insert(index);
    }

    fn update_log(&mut self, log: VertexLog) {
        let Some(&index) = self.by_digest.get(&log.vertex) else { return };
        let keep_all = self.keep_all_logs;
        let step = &mut self.steps[index];
        let offset = match (step.merged().last(), &log.timestamp) {
            (Some(last), Some(at)) => (nanos(at) - last.start) as f64 / 1e9,
            _ => 0.0,
        };
        let stamp = match offset {
            offset if offset < 10.0 => format!("{offset:.3} "),
            offset if offset < 100.0 => format!("{offset:.2} "),
            offset => format!("{offset:.1} "),
        };
        if keep_all {
            step.screen.write(&log.msg);
        }
        for piece in log.msg.split_inclusive(|byte| *byte == b'\n') {
            let ended = piece.ends_with(b"\n");
            let text = piece.strip_suffix(b"\n").unwrap_or(piece);
            match step.lines.last_mut() {
                Some(last) if step.partial => last.extend_from_slice(text),
                _ => step.lines.push([stamp.as_bytes(), text].concat()),
            }
            step.partial = !ended;
        }
        if keep_all && step.lines.len() > 2 * TAIL_LINES_TTY {
            step.lines.drain(..step.lines.len() - TAIL_LINES_TTY);
        }
        step.touch();
        self.updates.insert(index);
    }

    /// Shown steps, and how many of them have ended.
    pub fn counts(&self) -> (usize, usize) {
        let shown = self.steps.iter().filter(|step| !step.hidden);
        shown.fold((0, 0), |(all, done), step| (all + 1, done + usize::from(step.is_completed())))
    }

    /// Time since the build began, on the daemon's clock.
    pub fn elapsed(&self) -> Duration {
        let started = self.started.map_or_else(now, |started| started + self.clock_ahead);
        Duration::from_nanos(u64::try_from(now() - started).unwrap_or(0))
    }

    /// The last output of every step that failed.
    pub fn write_failed_logs(&self, out: &mut Vec<u8>) {
        for step in self.order.iter().map(|&index| &self.steps[index]) {
            if step.error.is_empty() || step.is_canceled() {
                continue;
            }
            let _ = writeln!(out, "------\n > {}:", step.name);
            for line in step.tail.iter().chain(&step.lines) {
                out.extend_from_slice(line);
                out.push(b'\n');
            }
            out.extend_from_slice(b"------\n");
        }
    }
}
