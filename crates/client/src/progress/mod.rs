//! Shows a build's status stream to a person or a program.
//!
//! A [`Display`] is fed [`StatusResponse`] messages in the order they arrive and writes text to any
//! [`Write`]. All state lives in one [`Trace`]; the plain and the terminal form are two readers of
//! it. The text forms equal those of the peer's clients, because scripts and people read both.

mod plain;
mod rawjson;
mod screen;
mod trace;
mod tty;

use std::{
    io::{self, IsTerminal as _, Write},
    time::{Duration, Instant},
};

use proto::control::{StatusResponse, VertexWarning};
use tokio::sync::mpsc;

use plain::Plain;
use trace::Trace;
use tty::Tty;

/// Least time between two repaints.
const REPAINT_EVERY: Duration = Duration::from_millis(100);
/// Repaint this often even when nothing arrives, so that timers move.
const TICK: Duration = Duration::from_millis(150);

/// How progress is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// A terminal is painted, anything else gets plain lines.
    #[default]
    Auto,
    /// One line an event.
    Plain,
    /// Several lines, repainted in place.
    Tty,
    /// One JSON object a status message.
    RawJson,
    /// Nothing.
    Quiet,
}

/// The text is not the name of a progress mode.
#[derive(Debug, thiserror::Error)]
#[error("invalid progress mode `{0}`: use auto, plain, tty, rawjson or quiet")]
pub struct ParseModeError(String);

impl std::str::FromStr for Mode {
    type Err = ParseModeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "" | "auto" => Ok(Self::Auto),
            "plain" => Ok(Self::Plain),
            "tty" => Ok(Self::Tty),
            "rawjson" => Ok(Self::RawJson),
            "quiet" | "none" => Ok(Self::Quiet),
            other => Err(ParseModeError(other.to_owned())),
        }
    }
}

/// Where and how to paint a terminal.
#[derive(Debug, Clone)]
pub struct TtyOptions {
    /// First word of the header line, e.g. `Building`.
    pub phase: String,
    /// Emit colours.
    pub color: bool,
    /// Columns and rows; `None` asks the terminal behind standard error each time.
    pub size: Option<(usize, usize)>,
}

impl Default for TtyOptions {
    fn default() -> Self {
        let color = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Self { phase: "Building".to_owned(), color, size: None }
    }
}

enum Form {
    Plain(Plain),
    Tty(Tty),
    RawJson,
    Quiet,
}

/// One build's progress on its way to an output.
pub struct Display {
    out: Box<dyn Write + Send>,
    trace: Trace,
    form: Form,
    painted: Option<Instant>,
    warnings: Vec<VertexWarning>,
}

impl Display {
    /// A display on standard error; [`Mode::Tty`] is an error when that is no terminal.
    pub fn stderr(mode: Mode) -> io::Result<Self> {
        let terminal = io::stderr().is_terminal();
        let mode = match mode {
            Mode::Auto if terminal => Mode::Tty,
            Mode::Auto => Mode::Plain,
            Mode::Tty if !terminal => {
                return Err(io::Error::other("progress `tty` needs a terminal on standard error"));
            }
            mode => mode,
        };
        Ok(Self::new(Box::new(io::stderr()), mode, TtyOptions::default()))
    }

    /// A display on `out`; here [`Mode::Auto`] means plain.
    pub fn new(out: Box<dyn Write + Send>, mode: Mode, tty: TtyOptions) -> Self {
        let form = match mode {
            Mode::Auto | Mode::Plain => Form::Plain(Plain::default()),
            Mode::Tty => Form::Tty(Tty::new(tty)),
            Mode::RawJson => Form::RawJson,
            Mode::Quiet => Form::Quiet,
        };
        let keep_all_logs = matches!(form, Form::Tty(_));
        Self { out, trace: Trace::new(keep_all_logs), form, painted: None, warnings: Vec::new() }
    }

    /// Shows everything that arrives until the sender is dropped; returns the warnings seen.
    pub async fn follow(
        mut self,
        mut statuses: mpsc::Receiver<StatusResponse>,
    ) -> Vec<VertexWarning> {
        loop {
            match tokio::time::timeout(TICK, statuses.recv()).await {
                Ok(Some(status)) => self.update(status),
                Ok(None) => return self.finish(),
                Err(_) => self.repaint(),
            }
        }
    }

    /// Takes one message; paints unless that happened a moment ago.
    pub fn update(&mut self, status: StatusResponse) {
        self.warnings.extend(status.warnings.iter().cloned());
        match self.form {
            Form::RawJson => {
                // A closed output must not end the build: the result matters, not its echo.
                let _ = self.out.write_all(&rawjson::line(&status));
                return;
            }
            Form::Quiet => return,
            Form::Plain(_) | Form::Tty(_) => self.trace.update(status),
        }
        if self.painted.is_none_or(|at| at.elapsed() >= REPAINT_EVERY) {
            self.repaint();
        }
    }

    /// Paints what changed since the last time.
    pub fn repaint(&mut self) {
        self.painted = Some(Instant::now());
        let mut text = Vec::new();
        match &mut self.form {
            Form::Plain(plain) => plain.print(&mut self.trace, &mut text),
            Form::Tty(tty) => tty.print(&mut self.trace, &mut text, false),
            Form::RawJson | Form::Quiet => {}
        }
        let _ = self.out.write_all(&text).and_then(|()| self.out.flush());
    }

    /// Paints the final state and the logs of failed steps; returns the warnings seen.
    pub fn finish(mut self) -> Vec<VertexWarning> {
        let mut text = Vec::new();
        match &mut self.form {
            Form::Plain(plain) => plain.print(&mut self.trace, &mut text),
            Form::Tty(tty) => tty.print(&mut self.trace, &mut text, true),
            Form::RawJson | Form::Quiet => {}
        }
        self.trace.write_failed_logs(&mut text);
        let _ = self.out.write_all(&text).and_then(|()| self.out.flush());
        self.warnings
    }
}

/// The summary printed after a build: one line a warning, or with `expand` everything known.
pub fn warnings_summary(warnings: &[VertexWarning], expand: bool, color: bool) -> String {
    use std::fmt::Write as _;
    if warnings.is_empty() {
        return String::new();
    }
    let noun = if warnings.len() == 1 { "warning" } else { "warnings" };
    let hint = if expand { "" } else { " (use --debug to expand)" };
    let head = format!("{} {noun} found{hint}:", warnings.len());
    let mut text =
        if color { format!("\n \x1b[33m{head}\n\x1b[0m") } else { format!("\n {head}\n") };
    for warning in warnings {
        let _ = writeln!(text, " - {}", String::from_utf8_lossy(&warning.short));
        if !expand {
            continue;
        }
        for detail in &warning.detail {
            let _ = writeln!(text, "{}", String::from_utf8_lossy(detail));
        }
        if !warning.url.is_empty() {
            let _ = writeln!(text, "More info: {}", warning.url);
        }
        if let Some(info) = &warning.info {
            text.push_str(&crate::error::excerpt(&info.filename, &info.data, &warning.ranges));
        }
        text.push('\n');
    }
    text
}

/// A status message as one line of JSON.
pub fn status_json(status: &StatusResponse) -> Vec<u8> {
    rawjson::line(status)
}

/// `size` in decimal units with two decimals; plain bytes have none.
pub fn format_bytes(size: i64) -> String {
    const UNITS: [&str; 6] = ["kB", "MB", "GB", "TB", "PB", "EB"];
    let mut value = size as f64;
    let mut unit = "B";
    for next in UNITS {
        if value.abs() < 1000.0 {
            break;
        }
        value /= 1000.0;
        unit = next;
    }
    if unit == "B" { format!("{size}B") } else { format!("{value:.2}{unit}") }
}

#[cfg(test)]
mod tests;
