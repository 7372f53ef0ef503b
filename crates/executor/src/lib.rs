//! Runs processes of build steps and containers.
//!
//! A caller describes a container as a [`Spec`], hands descriptors for its output as [`Io`], and
//! awaits [`Executor::run`]. The native driver ([`Native`]) passes everything to the *launcher*, a
//! small single-threaded helper process started before the daemon has threads; the daemon itself
//! never forks. [`Runc`] writes an OCI bundle for `runc` or `crun` instead, with the same meaning.
//! [`Scripted`] is the fake of tests.
//!
//! Nothing a container leaves behind outlives it: when `run` returns, its processes, mounts and
//! control groups are gone and empty mount points are removed from the root tree. When the daemon
//! is killed, the launcher ends all of them.

use std::{io, os::fd::OwnedFd, sync::Arc, time::Duration};

use async_trait::async_trait;
use tokio::sync::{mpsc, oneshot};
pub use tokio_util::sync::CancellationToken;

pub mod emulator;
pub mod env;
pub mod launcher;
pub mod net;
pub mod spec;

mod cgroup;
mod child;
mod freezer;
mod hosts;
mod native;
mod rootfs;
mod runc;
mod scripted;
mod seccomp;
mod supervise;
mod sys;
mod user;
mod wire;

pub use freezer::Freezer;
pub use native::{Native, NativeConfig, Subnet, SubnetError};
pub use runc::{Runc, RuncConfig};
pub use scripted::{Script, Scripted};
pub use spec::{
    DEFAULT_HOSTNAME, Device, DeviceKind, Dns, ExtraHost, Mount, MountOptions, MountSource,
    Network, Process, Resources, Rlimit, Root, Secret, Security, Spec,
};

/// Runs containers.
///
/// Both methods return when the process has ended and nothing of it is left. An exit code other
/// than 0 is a success here: what it means is the caller's business.
#[async_trait]
pub trait Executor: Send + Sync {
    /// Runs a container until its first process ends.
    ///
    /// Dropping the future kills the container without waiting for it; prefer
    /// [`Hooks::cancel`], after which the trees are no longer in use.
    async fn run(&self, spec: Spec, io: Io, hooks: Hooks) -> Result<Exit, ExecError>;

    /// Runs one more process in a container that is running ([`ExecError::NotRunning`] otherwise).
    /// It is killed when the container's first process ends.
    async fn exec(
        &self,
        container: &str,
        process: Process,
        io: Io,
        hooks: Hooks,
    ) -> Result<Exit, ExecError>;

    /// The network of a running container.
    fn network(&self, container: &str) -> Result<net::NetNs, ExecError>;

    /// A network as containers with [`Network::Isolated`] have, for connections of the daemon. Here:
    /// one that leads nowhere.
    async fn outlet(&self) -> Result<net::Outlet, ExecError> {
        net::Outlet::closed().await
    }

    /// Says that a run is likely soon, so that what it needs can be made ready meanwhile. Quick.
    fn warm(&self) {}
}

/// Where a process reads and writes: descriptors given to it as they are. What is `None` is
/// `/dev/null`. The executor closes them at the end, so the reader of a pipe sees its end then.
#[derive(Debug, Default)]
pub struct Io {
    /// Read by the process.
    pub stdin: Option<OwnedFd>,
    /// Written by the process.
    pub stdout: Option<OwnedFd>,
    /// Written by the process; unused with a terminal.
    pub stderr: Option<OwnedFd>,
}

/// The daemon's ends of a process's pipes.
#[derive(Debug)]
pub struct Pipes {
    /// Drop it to signal the end of input.
    pub stdin: tokio::net::unix::pipe::Sender,
    /// Output as it is written.
    pub stdout: tokio::net::unix::pipe::Receiver,
    /// Errors as they are written.
    pub stderr: tokio::net::unix::pipe::Receiver,
}

impl Io {
    /// Three pipes. Whoever does not read the output stops the process once a pipe is full.
    /// Needs a tokio runtime.
    pub fn piped() -> io::Result<(Io, Pipes)> {
        let pipe = || rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC);
        let ((stdin, in_writer), (out_reader, stdout), (err_reader, stderr)) =
            (pipe()?, pipe()?, pipe()?);
        let pipes = Pipes {
            stdin: tokio::net::unix::pipe::Sender::from_owned_fd(in_writer)?,
            stdout: tokio::net::unix::pipe::Receiver::from_owned_fd(out_reader)?,
            stderr: tokio::net::unix::pipe::Receiver::from_owned_fd(err_reader)?,
        };
        Ok((Io { stdin: Some(stdin), stdout: Some(stdout), stderr: Some(stderr) }, pipes))
    }

    /// No input, two pipes for output: `(io, stdout, stderr)`.
    pub fn output()
    -> io::Result<(Io, tokio::net::unix::pipe::Receiver, tokio::net::unix::pipe::Receiver)> {
        let (mut io, pipes) = Self::piped()?;
        io.stdin = None;
        Ok((io, pipes.stdout, pipes.stderr))
    }
}

/// How a caller follows and steers a process. `Hooks::default()` does neither.
#[derive(Debug, Default)]
pub struct Hooks {
    /// Told once the program has replaced the launcher's code, so never when the start fails.
    pub started: Option<oneshot::Sender<Started>>,
    /// Resizes and signals for the process. Closing it changes nothing.
    pub events: Option<mpsc::Receiver<Event>>,
    /// Kills the container (for `exec`, the process); the call then returns
    /// [`ExecError::Cancelled`] when everything is gone.
    pub cancel: CancellationToken,
}

/// What is known of a process that has started.
#[derive(Debug, Clone)]
pub struct Started {
    /// Refers to the process (for `runc`, to the runtime), whatever becomes of its number.
    pub pidfd: Arc<OwnedFd>,
}

/// Something done to a running process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// The terminal has a new size; ignored without a terminal.
    Resize {
        /// Lines.
        rows: u16,
        /// Characters in a line.
        columns: u16,
    },
    /// A signal by its number.
    Signal(i32),
}

/// How a process ended.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Exit {
    /// Its exit code, or 128 + the signal that ended it.
    pub code: i32,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// The kernel killed a process of the container for want of memory.
    pub oom_killed: bool,
    /// What it used.
    pub usage: Usage,
}

/// Resources used by a process and its waited-for children, or by its control group.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Usage {
    /// CPU time in the program.
    pub cpu_user: Duration,
    /// CPU time in the kernel.
    pub cpu_system: Duration,
    /// Peak of memory in bytes: of the control group if there is one, else of the largest process.
    pub memory_peak: u64,
    /// Bytes read from and written to block devices.
    pub io_read: u64,
    /// Bytes written to block devices.
    pub io_write: u64,
}

/// Why a process did not run, or not to its end.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// The caller cancelled; the container is gone.
    #[error("the process was cancelled")]
    Cancelled,
    /// The program could not be started; shells give 127 or 126 for this.
    #[error("could not start `{program}`: {reason}")]
    Start {
        /// First argument.
        program: String,
        /// What the kernel or the search said.
        reason: String,
        /// 127 when the program was not found, otherwise 126.
        code: i32,
    },
    /// The user or group is not known in the container.
    #[error("unable to find user {user}: {reason}")]
    User {
        /// As given.
        user: String,
        /// Why.
        reason: String,
    },
    /// Part of the specification makes no sense.
    #[error("container cannot be made: {0}")]
    Invalid(String),
    /// A mount could not be prepared.
    #[error("could not mount `{dest}`: {reason}")]
    Mount {
        /// Destination in the container.
        dest: String,
        /// Why.
        reason: String,
    },
    /// Another step of preparation failed.
    #[error("could not set up the container: {doing}: {source}")]
    Setup {
        /// What was being done.
        doing: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// No container of this name is running.
    #[error("container `{0}` not found")]
    NotRunning(String),
    /// A container of this name is running already.
    #[error("container `{0}` is running already")]
    AlreadyRunning(String),
    /// The launcher ended; the container with it.
    #[error("the launcher process ended unexpectedly")]
    LauncherGone,
    /// The configured runtime failed.
    #[error("`{binary}` failed: {message}")]
    Runtime {
        /// Program of the runtime.
        binary: String,
        /// What it said.
        message: String,
    },
}

impl ExecError {
    pub(crate) fn setup(doing: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Self::Setup { doing: doing.into(), source: source.into() }
    }
}
