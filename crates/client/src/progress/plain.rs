//! Progress as lines: `#3 [base 1/2] RUN make`, its output, `#3 DONE 1.2s`.
//!
//! One step is in front at a time. Steps that ended are printed at once; among the running ones the
//! front changes when another has waited long or is much busier, so that output of parallel steps
//! stays readable.

use std::{io::Write, time::Duration};

use super::{
    format_bytes,
    trace::{Nanos, Trace, nanos, now},
};

/// A busier step takes the front after about this long.
const STAY_IN_FRONT: Duration = Duration::from_secs(5);
/// A step with news waits at most about this long.
const WAIT_AT_MOST: Duration = Duration::from_secs(10);
/// A transfer prints again after this much progress or time.
const PART_SHARE: f64 = 0.05;
const PART_EVERY: Nanos = 5_000_000_000;

#[derive(Default)]
pub(super) struct Plain {
    front: Option<usize>,
    began: bool,
    numbers: usize,
}

impl Plain {
    /// Prints the news of `trace`.
    pub fn print(&mut self, trace: &mut Trace, out: &mut Vec<u8>) {
        let shown = trace.updates.iter().copied().filter(|&index| !trace.steps[index].hidden);
        let (mut ended, mut running): (Vec<usize>, Vec<usize>) =
            shown.partition(|&index| trace.steps[index].is_completed());
        let before = self.front;
        ended.sort_by_key(|&index| (Some(index) != before, trace.steps[index].last_stop()));
        for &index in &ended {
            self.print_step(trace, index, out);
        }
        if running.is_empty() {
            let busy = |index: usize| {
                let step = &trace.steps[index];
                step.is_started() && !step.is_completed()
            };
            if before.is_none_or(|front| !busy(front))
                && let Some(next) =
                    (0..trace.steps.len()).find(|&index| busy(index) && !trace.steps[index].hidden)
            {
                self.print_step(trace, next, out);
            }
            return;
        }
        if let Some(front) = before.filter(|front| running.contains(front)) {
            self.print_step(trace, front, out);
        }
        if let Some(next) = next_front(trace, before, &mut running, &ended) {
            self.print_step(trace, next, out);
        }
    }

    fn print_step(&mut self, trace: &mut Trace, index: usize, out: &mut Vec<u8>) {
        if self.front != Some(index) {
            self.bring_to_front(trace, index, out);
        }
        let step = &mut trace.steps[index];
        let number = step.index;
        let mut open = false;
        for part in step.parts.iter_mut().filter(|part| part.listed) {
            if std::mem::take(&mut part.changed) {
                let record = &part.record;
                let at = record.timestamp.as_ref().map_or_else(now, nanos);
                if let (Some((bytes, when)), None) = (part.printed, &record.completed) {
                    let share = match record.total {
                        total if total > 0 => (record.current - bytes) as f64 / total as f64,
                        _ => 0.0,
                    };
                    if share < PART_SHARE && at - when < PART_EVERY {
                        continue;
                    }
                }
                part.printed = Some((record.current, at));
                open |= record.completed.is_none();
                let amount = match (record.current, record.total) {
                    (0, 0) => String::new(),
                    (current, 0) => format!(" {}", format_bytes(current)),
                    (current, total) => {
                        format!(" {} / {}", format_bytes(current), format_bytes(total))
                    }
                };
                let end = record.completed.as_ref().map_or(at, nanos);
                let took = record.started.as_ref().map_or(0, |started| end - nanos(started));
                let took = match took as f64 / 1e9 {
                    seconds if seconds > 0.01 => format!(" {seconds:.1}s"),
                    _ => String::new(),
                };
                let done = if record.completed.is_some() { " done" } else { "" };
                let _ = writeln!(out, "#{number} {}{amount}{took}{done}", record.id);
            }
        }
        for warning in &step.warnings[step.warnings_printed..] {
            let _ = writeln!(out, "#{number} WARN: {warning}");
        }
        step.warnings_printed = step.warnings.len();
        for (position, line) in step.lines.iter().enumerate() {
            if position == 0 && step.partial_printed > 0 {
                out.extend_from_slice(&line[step.partial_printed..]);
            } else {
                let _ = write!(out, "#{number} ");
                out.extend_from_slice(line);
            }
            if position + 1 < step.lines.len() || !step.partial {
                out.push(b'\n');
            }
        }
        step.lines_printed();
        self.front = Some(index);
        if step.is_completed() && !open {
            self.front = None;
            step.count = 0;
            if step.partial {
                out.push(b'\n');
            }
            if step.is_canceled() {
                let _ = writeln!(out, "#{number} CANCELED");
            } else if !step.error.is_empty() {
                let _ = writeln!(out, "#{number} ERROR: {}", step.error);
            } else if step.cached {
                let _ = writeln!(out, "#{number} CACHED");
            } else {
                let now = now();
                let seconds: f64 = step.merged().iter().map(|span| span.seconds(now)).sum();
                let _ = writeln!(out, "#{number} DONE {seconds:.1}s");
            }
        }
        trace.updates.remove(&index);
    }

    fn bring_to_front(&mut self, trace: &mut Trace, index: usize, out: &mut Vec<u8>) {
        if let Some(front) = self.front {
            let old = &mut trace.steps[front];
            if old.partial {
                out.push(b'\n');
            }
            // What was printed of an unfinished line is repeated with a new number in front.
            old.partial_printed = 0;
            old.count = 0;
            let _ = writeln!(out, "#{} ...", old.index);
        }
        if std::mem::replace(&mut self.began, true) {
            out.push(b'\n');
        }
        let step = &mut trace.steps[index];
        if step.index == 0 {
            self.numbers += 1;
            step.index = self.numbers;
        }
        let _ = writeln!(out, "#{} {}", step.index, step.name);
    }
}

/// Which running step deserves the front now, if not the one that has it.
fn next_front(
    trace: &Trace,
    front: Option<usize>,
    running: &mut Vec<usize>,
    ended: &[usize],
) -> Option<usize> {
    if let Some(front) = front.filter(|front| !running.contains(front)) {
        running.push(front);
    }
    let mut sum = 0.0;
    let mut busiest: Option<(usize, f64)> = None;
    let mut waited_too_long = None;
    let mut mine = None;
    for &index in running.iter() {
        let step = &trace.steps[index];
        let Some(since) = step.waiting_since else { continue };
        let waited = since.elapsed();
        let speed = f64::from(step.count) / waited.as_secs_f64().max(1e-9);
        sum += speed;
        if Some(index) == front {
            mine = Some((speed, waited));
        } else if waited > WAIT_AT_MOST {
            waited_too_long.get_or_insert(index);
        }
        if busiest.is_none_or(|(_, best)| best < speed) {
            busiest = Some((index, speed));
        }
    }
    let busiest = waited_too_long.or(busiest.map(|(index, _)| index));
    match front {
        None => busiest,
        Some(front) if ended.contains(&front) => busiest,
        Some(_) if waited_too_long.is_some() => waited_too_long,
        Some(_) => {
            let (speed, waited) = mine?;
            let patience = STAY_IN_FRONT.as_secs_f64() / (1.0 - speed / sum).max(1e-9);
            if patience < waited.as_secs_f64() { busiest } else { None }
        }
    }
}
