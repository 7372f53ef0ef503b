//! The launcher: the helper process that makes all others.
//!
//! Copying the page tables of a grown daemon costs 100 ms, and threads must not be alive across a
//! fork, so the daemon never forks. It starts itself again, once and early, with a hidden argument
//! ([`spawn`], [`main_if_requested`]); that process has one thread and little memory, and clones
//! itself for each container in a fraction of a millisecond.
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

/// A running launcher. Clones share it; it ends, and all containers with it, when the last is
/// dropped. Should it end before that, it is started again by the next run.
#[derive(Debug, Clone)]
pub struct Launcher {
    current: Arc<Mutex<Arc<Shared>>>,
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

/// Starts the launcher: the running program again, with a hidden argument. To be called early,
/// while the daemon is small; [`main_if_requested`] must be the first thing its `main` does.
pub fn spawn() -> io::Result<Launcher> {
    Ok(Launcher { current: Arc::new(Mutex::new(Arc::new(Shared::spawn()?))) })
}

impl Shared {
    fn spawn() -> io::Result<Self> {
        let (control, launcher_control) = sys::socketpair()?;
        let (guard, launcher_guard) = sys::socketpair()?;
        let process = Process::new("/proc/self/exe")
            .arg(ARGUMENT)
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
    if std::env::args_os().nth(1).is_some_and(|argument| argument == ARGUMENT) {
        guard::main()
    }
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

impl Launcher {
    fn current(&self) -> Arc<Shared> {
        self.current.lock().expect("no panic while the lock is held").clone()
    }

    /// Starts another launcher in place of one that ended.
    fn replace(&self, ended: &Arc<Shared>) -> io::Result<Arc<Shared>> {
        let mut current = self.current.lock().expect("no panic while the lock is held");
        if Arc::ptr_eq(&current, ended) {
            tracing::error!("the launcher ended; starting another");
            *current = Arc::new(Shared::spawn()?);
        }
        Ok(current.clone())
    }

    /// What the launcher found; waits for it to be ready.
    pub(crate) fn hello(&self) -> io::Result<Hello> {
        let shared = self.current();
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
        sys::send(&self.current().control, &wire::encode(&command), &all)?;
        Ok(Asked { reports, progress, terminal: None, runtime_terminal: None, started_file: None })
    }

    /// Leaves word of a control group, to be removed if the daemon dies.
    pub(crate) fn announce_group(&self, folder: &Path) {
        if let Some(text) = folder.to_str().filter(|text| text.len() < sys::MAX_MESSAGE) {
            _ = sys::send(&self.current().guard, text.as_bytes(), &[]);
        }
    }

    /// Lets a subnet out under the host's address; waits for the first answer, then remembers it.
    pub(crate) fn start_nat(&self, subnet: &str) -> Result<(), String> {
        let shared = self.current();
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

    /// Process number of the guard.
    pub fn id(&self) -> u32 {
        self.current().process.lock().expect("no panic while the lock is held").id()
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
