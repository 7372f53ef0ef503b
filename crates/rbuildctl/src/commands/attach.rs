//! A container's or process's streams on this terminal.
//!
//! Without a terminal, standard input goes along with `-i`, and signals that reach this program are
//! passed on. With `-t` the terminal is switched to raw mode, so that the container's own terminal
//! sees every key; it is restored however this program ends.

use std::io::Write as _;

use anyhow::{Context as _, bail};
use proto::rbuild::v1::{
    AttachRequest, AttachResponse, ExecRequest, ExecStart, Exit, WindowSize,
    containers_client::ContainersClient,
};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use tokio::{
    io::AsyncReadExt as _,
    signal::unix::{SignalKind, signal},
    sync::mpsc,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming, transport::Channel};

use super::refused;

/// Input waiting for the daemon, in messages.
const WAITING_INPUT: usize = 16;
/// Keys that leave a container running: Ctrl-P, Ctrl-Q.
const DETACH: &[u8] = &[16, 17];

/// Puts the terminal back when dropped.
struct RawMode(Termios);

impl RawMode {
    fn enter() -> anyhow::Result<Self> {
        let before = tcgetattr(std::io::stdin()).context("reading the terminal's mode")?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(std::io::stdin(), OptionalActions::Now, &raw)
            .context("setting the terminal's mode")?;
        Ok(Self(before))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, &self.0);
    }
}

/// `ctrl-p,ctrl-q` as bytes.
pub fn detach_keys(text: &str) -> anyhow::Result<Vec<u8>> {
    let key = |key: &str| match (key.strip_prefix("ctrl-"), key.as_bytes()) {
        (Some(letter), _) => match letter.as_bytes() {
            [c @ (b'a'..=b'z' | b'@' | b'['..=b'_')] => Ok(c & 0x1f),
            _ => bail!("invalid detach keys: unknown key {key:?}"),
        },
        (None, [c]) => Ok(*c),
        _ => bail!("invalid detach keys: unknown key {key:?}"),
    };
    text.split(',').filter(|it| !it.is_empty()).map(key).collect()
}

/// Something this program may tell a process.
enum Input {
    Bytes(Vec<u8>),
    End,
    Size(WindowSize),
    Signal(&'static str),
}

/// Which streams are followed.
#[derive(Debug, Clone, Copy)]
pub struct Streams {
    /// Standard input is passed on, if it is kept open at all.
    pub stdin: bool,
    /// Output is shown.
    pub stdout: bool,
    /// Errors are shown.
    pub stderr: bool,
}

impl Default for Streams {
    fn default() -> Self {
        Self { stdin: true, stdout: true, stderr: true }
    }
}

impl Streams {
    /// Those that are named; all if none is.
    pub fn parse(names: &[String]) -> anyhow::Result<Self> {
        if names.is_empty() {
            return Ok(Self::default());
        }
        let mut streams = Self { stdin: false, stdout: false, stderr: false };
        for name in names {
            match name.to_lowercase().as_str() {
                "stdin" => streams.stdin = true,
                "stdout" => streams.stdout = true,
                "stderr" => streams.stderr = true,
                _ => bail!("valid streams are STDIN, STDOUT and STDERR, not {name}"),
            }
        }
        Ok(streams)
    }
}

/// How this terminal takes part.
#[derive(Debug, Clone)]
pub struct Terminal {
    /// Standard input is passed on.
    pub stdin: bool,
    /// The process has a terminal.
    pub tty: bool,
    /// Signals are passed on.
    pub signals: bool,
    /// Keys that leave the process running.
    pub detach: Vec<u8>,
    /// What is followed.
    pub streams: Streams,
}

impl Terminal {
    /// With docker's keys to detach.
    pub fn new(stdin: bool, tty: bool) -> Self {
        let streams = Streams::default();
        Self { stdin, tty, signals: true, detach: DETACH.to_vec(), streams }
    }
}

/// How following ended.
#[derive(Debug)]
pub enum Outcome {
    /// The process ended.
    Ended(Exit),
    /// The person left.
    Detached,
    /// The streams ended before the process.
    Lost,
}

/// The exit status for a program that followed a process, after the reason was told.
pub fn exit_code(exit: &Exit) -> u8 {
    if !exit.error.is_empty() {
        eprintln!("error: {}", exit.error);
    }
    u8::try_from(exit.code).unwrap_or(1)
}

/// A connection to a container's streams.
pub struct Attach {
    /// Id or name.
    pub container: String,
    /// Start with what was written before.
    pub logs: bool,
    /// Start the container.
    pub start: bool,
}

impl Attach {
    /// Copies both ways until the container ends.
    pub async fn follow(
        &self,
        mut service: ContainersClient<Channel>,
        terminal: &Terminal,
    ) -> Result<anyhow::Result<Outcome>, Status> {
        let first = AttachRequest {
            container: self.container.clone(),
            logs: self.logs,
            follow: true,
            start: self.start,
            ..AttachRequest::default()
        };
        let (sender, receiver) = mpsc::channel(WAITING_INPUT);
        _ = sender.send(first).await;
        let answer = service.attach(ReceiverStream::new(receiver)).await?.into_inner();
        Ok(follow(answer, terminal, sender, |input| {
            let empty = AttachRequest::default();
            match input {
                Input::Bytes(stdin) => AttachRequest { stdin: stdin.into(), ..empty },
                Input::End => AttachRequest { stdin_eof: true, ..empty },
                Input::Size(size) => AttachRequest { resize: Some(size), ..empty },
                Input::Signal(name) => AttachRequest { signal: name.into(), ..empty },
            }
        })
        .await)
    }
}

/// Runs one more process in a container and follows it, unless it is detached.
pub async fn exec(
    mut service: ContainersClient<Channel>,
    start: ExecStart,
    terminal: &Terminal,
) -> Result<anyhow::Result<Outcome>, Status> {
    let detach = start.detach;
    let first = ExecRequest { start: Some(start), ..ExecRequest::default() };
    let (sender, receiver) = mpsc::channel(WAITING_INPUT);
    _ = sender.send(first).await;
    let answer = service.exec(ReceiverStream::new(receiver)).await?.into_inner();
    if detach {
        return Ok(Ok(Outcome::Detached));
    }
    Ok(follow(answer, terminal, sender, |input| {
        let empty = ExecRequest::default();
        match input {
            Input::Bytes(stdin) => ExecRequest { stdin: stdin.into(), ..empty },
            Input::End => ExecRequest { stdin_eof: true, ..empty },
            Input::Size(size) => ExecRequest { resize: Some(size), ..empty },
            Input::Signal(name) => ExecRequest { signal: name.into(), ..empty },
        }
    })
    .await)
}

async fn follow<R: Send + 'static>(
    answer: Streaming<AttachResponse>,
    terminal: &Terminal,
    sender: mpsc::Sender<R>,
    message: fn(Input) -> R,
) -> anyhow::Result<Outcome> {
    let raw = if terminal.tty && terminal.stdin { Some(RawMode::enter()?) } else { None };
    if terminal.tty
        && let Some(size) = window()
    {
        _ = sender.send(message(Input::Size(size))).await;
    }
    let (left, mut has_left) = mpsc::channel(1);
    if terminal.stdin {
        let keys = if terminal.tty { terminal.detach.clone() } else { Vec::new() };
        tokio::spawn(input(sender.clone(), message, keys, left));
    } else {
        // Kept open: nobody leaves.
        std::mem::forget(left);
    }
    if terminal.signals || terminal.tty {
        tokio::spawn(signals(sender.clone(), message, terminal.clone()));
    }
    let outcome = tokio::select! {
        exit = output(answer, terminal.streams) => exit.map(|exit| exit.map_or(Outcome::Lost, Outcome::Ended)),
        Some(()) = has_left.recv() => Ok(Outcome::Detached),
    };
    drop(raw);
    outcome
}

/// Copies output until it ends.
pub async fn output(
    mut answer: Streaming<AttachResponse>,
    streams: Streams,
) -> anyhow::Result<Option<Exit>> {
    let fail = refused("lost the container");
    let mut exit = None;
    while let Some(message) = answer.message().await.map_err(&fail)? {
        // A reader that went away ends this program, not the container.
        if streams.stdout {
            std::io::stdout().write_all(&message.stdout)?;
            std::io::stdout().flush()?;
        }
        if streams.stderr {
            std::io::stderr().write_all(&message.stderr)?;
        }
        exit = message.exit.or(exit);
    }
    Ok(exit)
}

async fn input<R: Send>(
    sender: mpsc::Sender<R>,
    message: fn(Input) -> R,
    keys: Vec<u8>,
    left: mpsc::Sender<()>,
) {
    let mut stdin = tokio::io::stdin();
    let mut buffer = vec![0; 32 << 10];
    let mut matched = 0;
    while let Ok(length @ 1..) = stdin.read(&mut buffer).await {
        let mut bytes = Vec::with_capacity(length);
        for byte in &buffer[..length] {
            if keys.get(matched) == Some(byte) {
                matched += 1;
                if matched == keys.len() {
                    _ = left.send(()).await;
                    return;
                }
                continue;
            }
            // What looked like the beginning of the keys was typed for the process.
            bytes.extend_from_slice(&keys[..matched]);
            matched = 0;
            bytes.push(*byte);
        }
        if !bytes.is_empty() && sender.send(message(Input::Bytes(bytes))).await.is_err() {
            return;
        }
    }
    _ = sender.send(message(Input::End)).await;
    // The end of input is not leaving.
    std::mem::forget(left);
}

fn window() -> Option<WindowSize> {
    let size = tcgetwinsize(std::io::stdout()).ok()?;
    Some(WindowSize { rows: u32::from(size.ws_row), cols: u32::from(size.ws_col) })
}

async fn signals<R>(sender: mpsc::Sender<R>, message: fn(Input) -> R, terminal: Terminal) {
    let kinds = (
        signal(SignalKind::interrupt()),
        signal(SignalKind::terminate()),
        signal(SignalKind::hangup()),
        signal(SignalKind::quit()),
        signal(SignalKind::user_defined1()),
        signal(SignalKind::user_defined2()),
        signal(SignalKind::window_change()),
    );
    let (
        Ok(mut interrupt),
        Ok(mut terminate),
        Ok(mut hangup),
        Ok(mut quit),
        Ok(mut first),
        Ok(mut second),
        Ok(mut resize),
    ) = kinds
    else {
        return;
    };
    loop {
        let told = tokio::select! {
            _ = interrupt.recv() => Input::Signal("INT"),
            _ = terminate.recv() => Input::Signal("TERM"),
            _ = hangup.recv() => Input::Signal("HUP"),
            _ = quit.recv() => Input::Signal("QUIT"),
            _ = first.recv() => Input::Signal("USR1"),
            _ = second.recv() => Input::Signal("USR2"),
            _ = resize.recv(), if terminal.tty => match window() {
                Some(size) => Input::Size(size),
                None => continue,
            },
        };
        if sender.send(message(told)).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_to_detach() {
        assert_eq!(detach_keys("ctrl-p,ctrl-q").unwrap(), DETACH);
        assert_eq!(detach_keys("a,ctrl-@").unwrap(), [b'a', 0]);
        let streams = |names: &[&str]| {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            Streams::parse(&names).map(|it| [it.stdin, it.stdout, it.stderr]).ok()
        };
        assert_eq!(streams(&[]), Some([true; 3]));
        assert_eq!(streams(&["STDERR", "stdin"]), Some([true, false, true]));
        assert_eq!(streams(&["x"]), None);
        assert!(detach_keys("ctrl-ä").is_err() && detach_keys("ab").is_err());
    }
}
