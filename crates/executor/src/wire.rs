//! What the daemon, the launcher and a process about to become a container's say to each other.
//!
//! Over the launcher's socket go [`Command`]s, each with two sockets of its own: one on which the
//! launcher reports ([`Report`]), one that ends in the new process. On the latter the daemon has put
//! a [`Plan`] (in a file in memory) and its descriptors before the process exists; the process says
//! what it has to ([`Progress`]), and the socket closes by itself when the program takes over.

use std::{
    io::{self, Read as _},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::Duration,
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{ExecError, Usage, sys, user::User};

/// What the launcher shall start. Sent with `[report, process]` sockets, then what is named here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// A container in its own process namespace.
    Run {
        /// A v2 control group follows.
        cgroup: bool,
        /// Start in the launcher's process namespace.
        share_pids: bool,
    },
    /// A process in a running container, whose pidfd follows.
    Join {
        /// A v2 control group follows.
        cgroup: bool,
    },
}

/// First message of the launcher: what it found when it started.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Hello {
    /// Control groups as set up for this launcher.
    pub cgroups: crate::cgroup::Layout,
    /// The launcher has its own process namespace, so that nothing survives it.
    pub own_pids: bool,
}

/// From the launcher, about one process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Report {
    /// It exists; its pidfd is attached.
    Spawned,
    /// It could not be made.
    Failed { errno: i32 },
    /// It ended. CPU times in microseconds, memory in bytes, blocks of 512 bytes.
    Exited {
        code: i32,
        signal: Option<i32>,
        user: u64,
        system: u64,
        memory: u64,
        blocks_read: u64,
        blocks_written: u64,
    },
}

/// From the process on its way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Progress {
    /// Its terminal's other side is attached.
    Terminal,
    /// It gives up.
    Failed(Failure),
}

/// Why a process could not become the program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Failure {
    Start { program: String, reason: String, code: i32 },
    Mount { dest: String, reason: String },
    Setup { doing: String, errno: i32 },
}

impl Failure {
    pub fn setup(doing: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let doing = doing.into();
        move |error| Self::Setup { doing, errno: error.raw_os_error().unwrap_or(libc::EIO) }
    }
}

impl From<Failure> for ExecError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Start { program, reason, code } => Self::Start { program, reason, code },
            Failure::Mount { dest, reason } => Self::Mount { dest, reason },
            Failure::Setup { doing, errno } => {
                Self::Setup { doing, source: io::Error::from_raw_os_error(errno) }
            }
        }
    }
}

/// Index into the descriptors that come with a plan.
pub type Fd = usize;

/// All that a process has to do before it runs its program.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Plan {
    pub program: Program,
    pub confinement: Confinement,
    /// Writing `0` to these joins the container's v1 control groups.
    pub join_cgroups: Vec<Fd>,
    pub place: Place,
}

/// Where the process finds itself.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Place {
    /// A new container.
    New(Container),
    /// A running one, by its pidfd.
    Join { pidfd: Fd },
    /// The host, with trees attached below a folder (for another runtime).
    Host(Host),
}

/// The program and its own properties.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Program {
    pub args: Vec<String>,
    pub env: Vec<String>,
    pub cwd: String,
    pub user: User,
    /// Kind, soft and hard limit.
    pub rlimits: Vec<(u32, u64, u64)>,
    /// Standard input, output and errors.
    pub io: [Option<Fd>; 3],
    pub terminal: bool,
}

/// What is taken from a process.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Confinement {
    /// Capabilities that remain, as bits; `None` for all.
    pub capabilities: Option<u64>,
    pub seccomp: bool,
    pub apparmor: Option<String>,
    pub oom_score_adj: Option<i32>,
    pub most_allocated: Option<u64>,
}

/// A container to be made.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Container {
    pub hostname: String,
    pub own_network: bool,
    /// One that was made before.
    pub network: Option<Fd>,
    /// How its own is connected to the host's.
    pub link: Option<Link>,
    pub own_pids: bool,
    /// A mount; attached as it is.
    pub root: Fd,
    pub root_readonly: bool,
    /// Device nodes in trees are of no use.
    pub nodev: bool,
    /// In order.
    pub mounts: Vec<PlannedMount>,
    pub masked: Vec<String>,
    pub readonly: Vec<String>,
    pub devices: Vec<PlannedDevice>,
}

/// A pair of virtual interfaces.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// Of the host's side.
    pub name: String,
    /// Address of the host's side.
    pub gateway: [u8; 4],
    /// Address of the container's side.
    pub address: [u8; 4],
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PlannedMount {
    pub dest: String,
    pub source: Source,
    /// `MOUNT_ATTR_*`.
    pub attributes: u64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Source {
    /// A new file system with these options.
    New { kind: String, options: Vec<(String, Option<String>)> },
    /// `/dev` with its devices.
    Devices,
    /// A terminal namespace.
    Terminals,
    /// The mount that a descriptor refers to; with `path` a part of it.
    Tree { tree: Fd, path: Option<String> },
    /// A file in memory.
    File { data: Content, uid: u32, gid: u32, mode: u32 },
    /// The control groups: all hierarchies (by name) in one folder, or the only one (empty name);
    /// none for those of the launcher.
    Cgroups(Option<Vec<(String, Fd)>>),
    /// `/proc` of the launcher.
    SharedProc,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Content {
    Text(String),
    File(Fd),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedDevice {
    pub path: String,
    pub block: bool,
    pub major: u32,
    pub minor: u32,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
}

/// A place on the host.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Host {
    /// Trees attached to folders or files that exist.
    pub mounts: Vec<(Fd, String)>,
    pub own_network: bool,
    /// A network that was made before.
    pub network: Option<Fd>,
    /// Join the mount namespace of this process rather than the host's.
    pub join: Option<Fd>,
    /// Mounts of the host to be taken away.
    pub hide: Vec<String>,
}

/// Encodes a message.
pub fn encode(message: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(message).expect("messages are plain data")
}

/// Decodes a message.
pub fn decode<T: DeserializeOwned>(data: &[u8]) -> io::Result<T> {
    serde_json::from_slice(data).map_err(io::Error::other)
}

/// Puts a plan and its descriptors on the socket of a process.
pub fn send_plan(socket: impl AsFd, plan: &Plan, fds: &[OwnedFd]) -> io::Result<()> {
    let file = sys::memfd("plan", &encode(plan))?;
    let all: Vec<BorrowedFd<'_>> =
        std::iter::once(file.as_fd()).chain(fds.iter().map(AsFd::as_fd)).collect();
    let mut chunks = all.chunks(sys::MAX_FDS).peekable();
    while let Some(chunk) = chunks.next() {
        sys::send(&socket, if chunks.peek().is_some() { b"+" } else { b"." }, chunk)?;
    }
    Ok(())
}

/// Takes them from it.
pub fn receive_plan(socket: impl AsFd) -> io::Result<(Plan, Vec<Option<OwnedFd>>)> {
    let mut all = Vec::new();
    loop {
        let (data, fds) = sys::receive(&socket, false)?.ok_or(io::ErrorKind::UnexpectedEof)?;
        all.extend(fds);
        if data == b"." {
            break;
        }
    }
    if all.is_empty() {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut data = Vec::new();
    // The file's position is shared with the sender, who left it at the start.
    std::fs::File::from(all.remove(0)).read_to_end(&mut data)?;
    Ok((decode(&data)?, all.into_iter().map(Some).collect()))
}

impl Report {
    /// What `wait4` said.
    pub fn exited(status: i32, usage: &libc::rusage) -> Self {
        let signal = libc::WIFSIGNALED(status).then(|| libc::WTERMSIG(status));
        let micros = |time: libc::timeval| time.tv_sec as u64 * 1_000_000 + time.tv_usec as u64;
        Self::Exited {
            code: signal.map_or_else(|| libc::WEXITSTATUS(status), |signal| 128 + signal),
            signal,
            user: micros(usage.ru_utime),
            system: micros(usage.ru_stime),
            memory: usage.ru_maxrss as u64 * 1024,
            blocks_read: usage.ru_inblock as u64,
            blocks_written: usage.ru_oublock as u64,
        }
    }

    /// The public form of an exit.
    pub fn exit(&self) -> Option<crate::Exit> {
        let Self::Exited { code, signal, user, system, memory, blocks_read, blocks_written } =
            *self
        else {
            return None;
        };
        Some(crate::Exit {
            code,
            signal,
            oom_killed: false,
            usage: Usage {
                cpu_user: Duration::from_micros(user),
                cpu_system: Duration::from_micros(system),
                memory_peak: memory,
                io_read: blocks_read * 512,
                io_write: blocks_written * 512,
            },
        })
    }
}
