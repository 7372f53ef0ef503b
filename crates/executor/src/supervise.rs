//! Follows one process from the launcher's clone to its end: start, terminal, signals, cancelling.
//!
//! Two sockets tell what happens (see [`crate::wire`]): the launcher's reports and the process's own
//! progress. As long as the returned future lives, the process is watched; when it is dropped the
//! process is killed.

use std::{
    io,
    os::fd::{AsFd as _, OwnedFd},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use rustix::event::{PollFd, PollFlags, poll};
use tokio::{io::unix::AsyncFd, sync::oneshot};

use crate::{
    Event, ExecError, Exit, Hooks, Io, Started, sys,
    wire::{self, Progress, Report},
};

/// How often to look whether a runtime has started its program.
const LOOK_AGAIN: Duration = Duration::from_millis(3);

/// The daemon's ends of the sockets of a process that was asked for.
pub struct Asked {
    pub reports: OwnedFd,
    pub progress: OwnedFd,
    /// What the terminal is connected to; `None` without a terminal.
    pub terminal: Option<Io>,
    /// A terminal made for a runtime, which passes on what it carries; without it, the process
    /// hands over its own.
    pub runtime_terminal: Option<OwnedFd>,
    /// Appears when a runtime has started the program; without it, the launcher's clone is it.
    pub started_file: Option<PathBuf>,
}

/// Kills the process when dropped.
struct Alive(Arc<OwnedFd>);

impl Drop for Alive {
    fn drop(&mut self) {
        _ = sys::pidfd_signal(&*self.0, libc::SIGKILL);
    }
}

/// Waits for the end of the process. `spawned` learns of it before it runs.
pub async fn follow(
    asked: Asked,
    hooks: Hooks,
    spawned: impl FnOnce(&Arc<OwnedFd>),
) -> Result<Exit, ExecError> {
    let Hooks { started, mut events, cancel } = hooks;
    let socket = |fd: OwnedFd| -> io::Result<AsyncFd<OwnedFd>> {
        // SAFETY: an owned descriptor stays open, and nobody replaces it.
        unsafe { AsyncFd::register_with_interest(fd, tokio::io::Interest::READABLE) }
            .map_err(|error| error.into_parts().1)
    };
    let listen = |error: io::Error| ExecError::setup("listen to the launcher", error);
    let reports = socket(asked.reports).map_err(listen)?;
    let progress = socket(asked.progress).map_err(listen)?;

    let pidfd = match next(&reports).await.map_err(listen)? {
        Some((Report::Spawned, mut fds)) if fds.len() == 1 => Arc::new(fds.remove(0)),
        Some((Report::Failed { errno }, _)) => {
            let error = io::Error::from_raw_os_error(errno);
            return Err(ExecError::setup("make the process", error));
        }
        _ => return Err(ExecError::LauncherGone),
    };
    let alive = Alive(pidfd.clone());
    spawned(&pidfd);

    let for_runtime = asked.runtime_terminal.is_some();
    let mut terminal = asked.runtime_terminal;
    let mut failure = None;
    let mut killed = false;
    loop {
        let message = tokio::select! {
            message = next::<Progress>(&progress) => message.map_err(listen)?,
            _ = cancel.cancelled(), if !killed => {
                killed = true;
                _ = sys::pidfd_signal(&*pidfd, libc::SIGKILL);
                continue;
            }
        };
        match message {
            Some((Progress::Terminal, mut fds)) if fds.len() == 1 => {
                terminal = Some(fds.remove(0));
            }
            Some((Progress::Terminal, _)) => {}
            Some((Progress::Failed(reason), _)) => failure = Some(reason),
            None => break,
        }
    }
    let copying = connect(&terminal, asked.terminal)?;
    let mut started = started.filter(|_| failure.is_none() && !killed);
    let begun = asked.started_file;
    if begun.is_none() {
        tell(&mut started, &pidfd);
    }

    let exit = loop {
        tokio::select! {
            report = next::<Report>(&reports) => match report.map_err(listen)? {
                Some((report, _)) => match report.exit() {
                    Some(exit) => break exit,
                    None => continue,
                },
                None => return Err(ExecError::LauncherGone),
            },
            _ = cancel.cancelled(), if !killed => {
                killed = true;
                _ = sys::pidfd_signal(&*pidfd, libc::SIGKILL);
            }
            _ = tokio::time::sleep(LOOK_AGAIN), if started.is_some() => {
                if begun.as_ref().is_some_and(|file| file.exists()) {
                    tell(&mut started, &pidfd);
                }
            }
            event = receive(&mut events) => match event {
                None => events = None,
                Some(Event::Signal(signal)) => _ = sys::pidfd_signal(&*pidfd, signal),
                Some(Event::Resize { rows, columns }) => if let Some(master) = &terminal {
                    let size = rustix::termios::Winsize {
                        ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0,
                    };
                    _ = rustix::termios::tcsetwinsize(master, size);
                        if for_runtime {
                            // It is not its controlling terminal.
                            _ = sys::pidfd_signal(&*pidfd, libc::SIGWINCH);
                        }
                }
            },
        }
    };
    drop(alive);
    if let Some(copying) = copying {
        copying.finish().await;
    }
    match failure {
        _ if killed => Err(ExecError::Cancelled),
        Some(reason) => Err(reason.into()),
        None => Ok(exit),
    }
}

fn tell(started: &mut Option<oneshot::Sender<Started>>, pidfd: &Arc<OwnedFd>) {
    if let Some(started) = started.take() {
        _ = started.send(Started { pidfd: pidfd.clone() });
    }
}

/// Starts to copy, if there is a terminal.
fn connect(terminal: &Option<OwnedFd>, io: Option<Io>) -> Result<Option<Copying>, ExecError> {
    let (Some(master), Some(io)) = (terminal, io) else { return Ok(None) };
    let copying = Copying::start(master, io);
    copying.map(Some).map_err(|error| ExecError::setup("connect the terminal", error))
}

async fn receive(events: &mut Option<tokio::sync::mpsc::Receiver<Event>>) -> Option<Event> {
    match events {
        Some(events) => events.recv().await,
        None => std::future::pending().await,
    }
}

/// The next message with its descriptors; `None` at the end.
async fn next<T: serde::de::DeserializeOwned>(
    socket: &AsyncFd<OwnedFd>,
) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    loop {
        let mut ready = socket.readable().await?;
        match ready.try_io(|socket| sys::receive(socket.as_fd(), true)) {
            Ok(Ok(Some((data, fds)))) => return Ok(Some((wire::decode(&data)?, fds))),
            Ok(result) => return result.map(|_| None),
            Err(_would_block) => {}
        }
    }
}

/// Two threads that carry bytes between a terminal and the caller's descriptors.
struct Copying {
    /// Closing it tells them that the process has ended.
    ended: OwnedFd,
    written: oneshot::Receiver<()>,
}

impl Copying {
    fn start(master: &OwnedFd, io: Io) -> io::Result<Self> {
        let (end, ended) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        let (tell, written) = oneshot::channel();
        if let Some(stdin) = io.stdin {
            let (end, master) = (end.try_clone()?, master.try_clone()?);
            let copy = move || copy(&stdin, &master, &end, false);
            std::thread::Builder::new().name("terminal-in".to_owned()).spawn(copy)?;
        }
        let master = master.try_clone()?;
        // Output that nobody wants is read all the same, lest the process waits for ever.
        let sink = match io.stdout {
            Some(stdout) => stdout,
            None => std::fs::File::options().write(true).open("/dev/null")?.into(),
        };
        let copy = move || {
            copy(&master, &sink, &end, true);
            drop(sink);
            _ = tell.send(());
        };
        std::thread::Builder::new().name("terminal-out".to_owned()).spawn(copy)?;
        Ok(Self { ended, written })
    }

    /// Waits until all output has been passed on.
    async fn finish(self) {
        drop(self.ended);
        _ = self.written.await;
    }
}

/// Copies until either side ends, or `end` is closed and (if `drain`) nothing more is there.
fn copy(from: &OwnedFd, to: &OwnedFd, end: &OwnedFd, drain: bool) {
    let mut buffer = vec![0; 16 << 10];
    loop {
        let mut fds = [
            PollFd::from_borrowed_fd(from.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(end.as_fd(), PollFlags::IN),
        ];
        match poll(&mut fds, None) {
            Err(rustix::io::Errno::INTR) => continue,
            Err(_) => return,
            Ok(_) => {}
        }
        let ended = !fds[1].revents().is_empty();
        if ended && (!drain || !fds[0].revents().contains(PollFlags::IN)) {
            return;
        }
        if fds[0].revents().is_empty() {
            continue;
        }
        // A terminal whose last user is gone gives an error rather than an end.
        let Ok(count @ 1..) = rustix::io::read(from, &mut buffer) else { return };
        let mut rest = &buffer[..count];
        while !rest.is_empty() {
            match rustix::io::write(to, rest) {
                Ok(written) => rest = &rest[written..],
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => {
                    _ = poll(&mut [PollFd::from_borrowed_fd(to.as_fd(), PollFlags::OUT)], None);
                }
                Err(_) => return,
            }
        }
    }
}
