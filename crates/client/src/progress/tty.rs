//! Progress painted in place on a terminal: a header and a line a step.
//!
//! Every repaint moves the cursor up over what was painted last, writes the new lines and blanks
//! what is left over; the painting never exceeds the terminal's height except for the final one.

use std::io::Write;

use super::{
    TtyOptions, format_bytes,
    trace::{Interval, Trace, nanos, now},
};

/// Rows of live output below a running step.
const LOG_ROWS: usize = 6;
/// Columns left of live output.
const LOG_MARGIN: usize = 10;

const BLUE: &str = "\x1b[34m";
const RED: &str = "\x1b[31m";
const YELLOW: &str = "\x1b[33m";
const FAINT: &str = "\x1b[2m";
const PLAIN: &str = "\x1b[0m";

pub(super) struct Tty {
    options: TtyOptions,
    painted_lines: usize,
    painted: bool,
}

struct Line {
    name: String,
    amount: String,
    spans: Vec<Interval>,
    done: bool,
    color: &'static str,
    /// The step whose output may be shown below.
    step: Option<usize>,
    show_log: bool,
}

impl Tty {
    pub fn new(options: TtyOptions) -> Self {
        Self { options, painted_lines: 0, painted: false }
    }

    fn size(&self) -> (usize, usize) {
        if let Some(size) = self.options.size {
            return size;
        }
        match rustix::termios::tcgetwinsize(std::io::stderr()) {
            Ok(size) if size.ws_col > 0 && size.ws_row > 0 => {
                (usize::from(size.ws_col), usize::from(size.ws_row))
            }
            _ => (80, 10),
        }
    }

    /// Repaints; `all` is the last time, when nothing needs to be hidden.
    pub fn print(&mut self, trace: &mut Trace, out: &mut Vec<u8>, all: bool) {
        let (width, height) = self.size();
        let lines = choose(trace, lines(trace), height, all);
        let up = if self.painted { self.painted_lines + 1 } else { self.painted_lines };
        self.painted = true;
        if up > 0 {
            let _ = write!(out, "\x1b[{up}A");
        }
        let _ = write!(out, "\x1b[0G\x1b[?25l");
        let (total, completed) = trace.counts();
        let finished = if all && completed > 0 && completed == total { "FINISHED" } else { "" };
        let seconds = trace.elapsed().as_secs_f64();
        let phase = &self.options.phase;
        let head = format!("[+] {phase} {seconds:.1}s ({completed}/{total}) {finished}");
        put_line(out, &format!("{head:<0$.0$}", width.saturating_sub(1)));
        let now = now() - trace.clock_ahead;
        let mut count = 0;
        for line in &lines {
            if line.spans.is_empty() {
                continue;
            }
            let Some(text) = format_line(line, width, now) else { continue };
            match line.color {
                color if line.done && self.options.color => {
                    put_line(out, &format!("{color}{text}{PLAIN}"));
                }
                _ => put_line(out, &text),
            }
            count += 1;
            let Some(step) = line.step.filter(|_| line.show_log) else { continue };
            for row in trace.steps[step].screen.rows(width.saturating_sub(LOG_MARGIN)) {
                let row = format!(" => => # {row:<0$}", width.saturating_sub(LOG_MARGIN));
                if self.options.color {
                    put_line(out, &format!("{FAINT}{row}{PLAIN}"));
                } else {
                    put_line(out, &row);
                }
                count += 1;
            }
        }
        let left_over = self.painted_lines.saturating_sub(count);
        for _ in 0..left_over {
            put_line(out, &" ".repeat(width.saturating_sub(1)));
        }
        if left_over > 0 {
            let _ = write!(out, "\x1b[{left_over}A\x1b[0G");
        }
        let _ = write!(out, "\x1b[?25h");
        self.painted_lines = count;
        trace.updates.clear();
    }
}

fn put_line(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(text.as_bytes());
    out.push(b'\n');
}

/// ` => name 1.2MB / 3MB      0.4s`, or `None` when the terminal is too narrow.
fn format_line(line: &Line, width: usize, now: i64) -> Option<String> {
    let mut seconds: f64 = line.spans.iter().map(|span| span.seconds(now)).sum();
    if seconds < 0.05 {
        seconds = 0.0;
    }
    let timer = format!("{seconds:3.1}s");
    // Prefix, a blank before the timer, and the last column, which stays free.
    let mut left = width.checked_sub(" => ".len() + timer.len() + 3)?;
    let show_amount = !line.amount.is_empty() && left + line.amount.len() > 20;
    if show_amount {
        left = left.checked_sub(line.amount.len() + 1)?;
    }
    if left < 12 {
        return None;
    }
    let mut text: String = line.name.chars().take(left).collect();
    if show_amount {
        text = format!("{text} {}", line.amount);
    }
    let room = width - timer.len() - 7;
    Some(format!(" => {text:<room$}  {timer}"))
}

fn lines(trace: &Trace) -> Vec<Line> {
    let mut lines = Vec::new();
    for &index in &trace.order {
        let step = &trace.steps[index];
        if step.hidden {
            continue;
        }
        let spans = step.merged();
        let (mark, color) = match () {
            () if step.is_canceled() => ("CANCELED ", YELLOW),
            () if !step.error.is_empty() => ("ERROR ", RED),
            () if step.cached => ("CACHED ", BLUE),
            () => ("", BLUE),
        };
        lines.push(Line {
            name: format!("{mark}{}", step.name.replace('\t', " ")),
            amount: String::new(),
            done: step.is_completed(),
            spans: spans.clone(),
            color,
            step: Some(index),
            show_log: false,
        });
        for part in step.parts.iter().filter(|part| part.listed) {
            let record = &part.record;
            let Some(started) = &record.started else { continue };
            let amount = match (record.current, record.total) {
                (0, 0) => String::new(),
                (current, 0) => format_bytes(current),
                (current, total) => format!("{} / {}", format_bytes(current), format_bytes(total)),
            };
            let stop = record.completed.as_ref().map(nanos);
            lines.push(Line {
                name: format!("=> {}", record.id),
                amount,
                spans: vec![Interval { start: nanos(started), stop }],
                done: stop.is_some(),
                color: BLUE,
                step: None,
                show_log: false,
            });
        }
        for warning in &step.warnings {
            lines.push(Line {
                name: format!("WARN: {warning}"),
                amount: String::new(),
                spans: spans.last().copied().into_iter().collect(),
                done: true,
                color: YELLOW,
                step: None,
                show_log: false,
            });
        }
    }
    lines
}

/// Picks steps whose output is shown and drops lines that do not fit, finished ones first.
fn choose(trace: &Trace, mut lines: Vec<Line>, height: usize, all: bool) -> Vec<Line> {
    let running = lines.iter().filter(|line| !line.done).count();
    let mut free = (height.saturating_sub(2)).saturating_sub(running);
    let written = |line: &Line| line.step.map_or(0, |step| trace.steps[step].screen.written);
    let mut talking: Vec<usize> =
        (0..lines.len()).filter(|&at| !lines[at].done && written(&lines[at]) > 0).collect();
    talking.sort_by_key(|&at| std::cmp::Reverse(written(&lines[at])));
    let mut log_rows = 0;
    for at in talking {
        if free <= LOG_ROWS + 3 {
            break;
        }
        lines[at].show_log = true;
        let step = lines[at].step.expect("only steps talk");
        log_rows += trace.steps[step].screen.rows(usize::MAX).len();
        free -= LOG_ROWS + 3;
    }
    if all {
        return lines;
    }
    let limit = height.saturating_sub(2 + log_rows);
    let surplus = lines.len().saturating_sub(limit);
    if surplus == 0 {
        return lines;
    }
    let mut tail = lines.split_off(surplus);
    // Running lines that scrolled out replace finished ones that did not.
    let mut cut: Vec<Line> = lines.into_iter().filter(|line| !line.done).collect();
    let mut replace = cut.len();
    let before = tail.len();
    tail.retain(|line| {
        let keep = !line.done || replace == 0;
        replace -= usize::from(!keep);
        keep
    });
    let room = before - tail.len();
    let mut chosen = cut.split_off(cut.len() - room);
    chosen.extend(tail);
    chosen
}
