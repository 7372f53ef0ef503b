//! The launcher: the helper process that makes all others.
//!
//! Copying the page tables of a grown daemon costs 100 ms, and threads must not be alive across a
//! fork, so the daemon never forks. It starts itself again (by `posix_spawn`, which copies nothing)
//! with a hidden argument ([`Launcher::start`], [`main_if_requested`]); that process has one thread
//! and little memory, and clones itself for each container in a fraction of a millisecond. The first
//! run starts it, or whoever knows earlier that there will be one: an idle daemon has none.
//!
//! There are two of them. The *guard* only waits for the daemon's end of a socket to close, which
//! happens however the daemon dies, and for the *server*, its child and the first process of a
//! process namespace; ending the server ends every container, then the guard removes their control
//! groups. So nothing outlives the daemon.

use std::{
    fs::File,
    io::{self, Read as _},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
    process::{Command as Process, Stdio},
    sync::{Arc, Mutex, OnceLock},
};

use rustix::process::{Resource, Rlimit, getrlimit};

use crate::{
    supervise::Asked,
    sys,
    wire::{self, Command, Hello, Plan},
};

mod guard;
mod nat;
pub(crate) mod serve;

/// Tells [`main_if_requested`] what to become.
const ARGUMENT: &str = "rbuild-launcher-of-the-daemon";

/// The launcher, started when first used. Clones share it; it ends, and all containers with it,
/// when the last is dropped. Should it end before that, it is started again by the next run.
#[derive(Debug, Clone)]
pub struct Launcher {
    current: Arc<Mutex<Option<Arc<Shared>>>>,
    /// The number of open files that processes may have unless they ask for another.
    open_files: Rlimit,
}

#[derive(Debug)]
struct Shared {
    control: OwnedFd,
    /// Ends the guard when closed; learns of control groups.
    guard: OwnedFd,
    hello: OnceLock<Hello>,
    /// Whether containers can be let out.
    nat: OnceLock<Result<(), String>>,
    /// Held while waiting for the first message.
    greeting: Mutex<()>,
    process: Mutex<std::process::Child>,
}

/// A launcher that runs already.
pub fn spawn() -> io::Result<Launcher> {
    let launcher = Launcher::new();
    launcher.start()?;
    Ok(launcher)
}

impl Shared {
    /// Starts the running program again, with a hidden argument.
    fn spawn(open_files: &Rlimit) -> io::Result<Self> {
        let number = |limit: Option<u64>| limit.map_or("max".to_owned(), |limit| limit.to_string());
        let (control, launcher_control) = sys::socketpair()?;
        let (guard, launcher_guard) = sys::socketpair()?;
        let process = Process::new("/proc/self/exe")
            .arg(ARGUMENT)
            .args([number(open_files.current), number(open_files.maximum)])
            .stdin(Stdio::from(launcher_control))
            .stdout(Stdio::from(launcher_guard))
            .env_clear()
            .envs(std::env::vars_os().filter(|(name, _)| name == "PATH"))
            .spawn()?;
        Ok(Self {
            control,
            guard,
            hello: OnceLock::new(),
            nat: OnceLock::new(),
            greeting: Mutex::new(()),
            process: Mutex::new(process),
        })
    }

    fn hello(&self) -> io::Result<&Hello> {
        let _turn = self.greeting.lock().expect("no panic while the lock is held");
        if self.hello.get().is_none() {
            let (_, fds) =
                sys::receive(&self.control, false)?.ok_or(io::ErrorKind::UnexpectedEof)?;
            // It is too long for a message, so it comes in a file.
            let file = fds.into_iter().next().ok_or(io::ErrorKind::InvalidData)?;
            let mut text = Vec::new();
            File::from(file).read_to_end(&mut text)?;
            let hello: Hello = wire::decode(&text)?;
            if hello.cgroups.devices.is_none() {
                tracing::warn!(
                    "use of devices cannot be restricted by control groups; \
                     containers can neither make nor open device nodes in their trees"
                );
            }
            _ = self.hello.set(hello);
        }
        self.hello.get().ok_or_else(|| io::ErrorKind::InvalidData.into())
    }
}

/// Becomes the launcher, never to return, when the process was started as one. Call it first in
/// `main`, before threads, arguments and logging.
pub fn main_if_requested() {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().is_none_or(|argument| argument != ARGUMENT) {
        return;
    }
    let mut limit = || arguments.next().and_then(|text| text.to_str()?.parse().ok());
    let open_files = Rlimit { current: limit(), maximum: limit() };
    guard::main(open_files)
}

/// Lets a test binary start launchers: its `main` belongs to the test harness, so the hook goes
/// where the system's loader calls it before `main`. Use it once, at the top of a test file.
#[macro_export]
macro_rules! launcher_in_tests {
    () => {
        #[used]
        #[unsafe(link_section = ".init_array")]
        static RBUILD_LAUNCHER: extern "C" fn() = {
            extern "C" fn start() {
                $crate::launcher::main_if_requested()
            }
            start
        };
    };
}

impl Default for Launcher {
    fn default() -> Self {
        Self::new()
    }
}

impl Launcher {
    /// A launcher that is not started yet. Its processes will have this process's present limit of
    /// open files. [`main_if_requested`] must be the first thing that `main` does.
    pub fn new() -> Self {
        Self { current: Arc::default(), open_files: getrlimit(Resource::Nofile) }
    }

    /// Starts it if it does not run.
    pub fn start(&self) -> io::Result<()> {
        self.current().map(drop)
    }

    fn current(&self) -> io::Result<Arc<Shared>> {
        let mut current = self.current.lock().expect("no panic while the lock is held");
        if let Some(current) = &*current {
            return Ok(current.clone());
        }
        let shared = Arc::new(Shared::spawn(&self.open_files)?);
        Ok(current.insert(shared).clone())
    }

    /// Starts another launcher in place of one that ended.
    fn replace(&self, ended: &Arc<Shared>) -> io::Result<Arc<Shared>> {
        let mut current = self.current.lock().expect("no panic while the lock is held");
        match &*current {
            Some(other) if !Arc::ptr_eq(other, ended) => Ok(other.clone()),
            _ => {
                tracing::error!("the launcher ended; starting another");
                Ok(current.insert(Arc::new(Shared::spawn(&self.open_files)?)).clone())
            }
        }
    }

    /// What the launcher found; waits for it to be ready.
    pub(crate) fn hello(&self) -> io::Result<Hello> {
        let shared = self.current()?;
        let alive = !matches!(
            shared.process.lock().expect("no panic while the lock is held").try_wait(),
            Ok(Some(_))
        );
        if alive && let Ok(hello) = shared.hello() {
            return Ok(hello.clone());
        }
        self.replace(&shared)?.hello().cloned()
    }

    /// Asks for a process: a command, what it has to do, and what goes to the launcher itself. Gives
    /// the sockets on which to follow it.
    pub(crate) fn ask(
        &self,
        command: Command,
        plan: &Plan,
        fds: &[OwnedFd],
        extra: &[BorrowedFd<'_>],
    ) -> io::Result<Asked> {
        let (reports, their_reports) = sys::socketpair()?;
        let (progress, their_progress) = sys::socketpair()?;
        wire::send_plan(&progress, plan, fds)?;
        let mut all = vec![their_reports.as_fd(), their_progress.as_fd()];
        all.extend(extra);
        sys::send(&self.current()?.control, &wire::encode(&command), &all)?;
        Ok(Asked { reports, progress, terminal: None, runtime_terminal: None, started_file: None })
    }

    /// Leaves word of a control group, to be removed if the daemon dies.
    pub(crate) fn announce_group(&self, folder: &Path) {
        if let Some(text) = folder.to_str().filter(|text| text.len() < sys::MAX_MESSAGE) {
            _ = self.current().and_then(|shared| sys::send(&shared.guard, text.as_bytes(), &[]));
        }
    }

    /// Lets a subnet out under the host's address; waits for the first answer, then remembers it.
    pub(crate) fn start_nat(&self, subnet: &str) -> Result<(), String> {
        let shared = self.current().map_err(|error| error.to_string())?;
        let answer = shared.nat.get_or_init(|| {
            let ask = || -> io::Result<String> {
                sys::send(&shared.guard, format!("nat {subnet}").as_bytes(), &[])?;
                let (data, _) =
                    sys::receive(&shared.guard, false)?.ok_or(io::ErrorKind::UnexpectedEof)?;
                Ok(String::from_utf8_lossy(&data).into_owned())
            };
            match ask() {
                Ok(answer) if answer == guard::NAT_DONE => Ok(()),
                Ok(reason) => Err(reason),
                Err(error) => Err(error.to_string()),
            }
        });
        answer.clone()
    }

    /// Process number of the guard, if it was started.
    pub fn id(&self) -> Option<u32> {
        let current = self.current.lock().expect("no panic while the lock is held");
        let process = |shared: &Arc<Shared>| {
            shared.process.lock().expect("no panic while the lock is held").id()
        };
        current.as_ref().map(process)
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // Closing our side tells the guard; wait for it, so that it leaves no zombie and nothing
        // runs any more when we return.
        let (unused, _) = match sys::socketpair() {
            Ok(pair) => pair,
            Err(_) => return,
        };
        drop(std::mem::replace(&mut self.guard, unused));
        _ = self.process.get_mut().map(|process| process.wait());
    }
}

/// Moves the sockets that came as standard input and output away from there, so that nobody
/// writes to them by accident.
fn take_sockets() -> io::Result<(OwnedFd, OwnedFd)> {
    let control = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?;
    let guard = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdout(), 3)?;
    let null = File::options().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    Ok((control, guard))
}

/// The socket of a run, as the launcher and its children see it.
fn report(socket: impl AsFd, message: &impl serde::Serialize, fds: &[BorrowedFd<'_>]) {
    // The daemon may have lost interest.
    _ = sys::send(socket, &wire::encode(message), fds);
}
