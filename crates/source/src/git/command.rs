//! Runs git, in a thread that sees the trees it works on.
//!
//! Trees are detached mounts, but git wants paths. So a thread of its own leaves the daemon's mount
//! namespace, attaches the trees to empty folders there and runs git from it; with the thread the
//! namespace goes, and nobody else ever sees the mounts. No user or system configuration is read,
//! nothing is asked, and cancelling kills git with everything it started.

use std::{
    os::{fd::OwnedFd, unix::process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Arc, Mutex},
};

use rustix::{
    fs::Mode,
    mount::{MountPropagationFlags, MoveMountFlags},
    process::{Pid, Signal},
    thread::UnshareFlags,
};

use crate::SourceError;

/// Passed on to git, which may need them to reach a server.
const PROXIES: [&str; 8] = [
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "ALL_PROXY",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "all_proxy",
];

/// A git command that failed.
#[derive(Debug)]
pub(crate) struct Failure {
    /// Why, as people read it.
    pub(crate) text: String,
}

impl From<Failure> for SourceError {
    fn from(failure: Failure) -> Self {
        Self::Remote(failure.text)
    }
}

/// How git is run.
#[derive(Debug, Clone, Default)]
pub(crate) struct Git {
    /// An empty folder of ours to start in.
    pub(crate) home: PathBuf,
    pub(crate) git_dir: Option<PathBuf>,
    pub(crate) work_tree: Option<PathBuf>,
    /// Index file apart from the repository's.
    pub(crate) index: Option<PathBuf>,
    /// Settings; they travel in the environment, since arguments are everybody's to read.
    pub(crate) settings: Vec<(String, String)>,
    pub(crate) ssh_socket: Option<PathBuf>,
    pub(crate) known_hosts: Option<PathBuf>,
    pub(crate) stop: Stop,
}

impl Git {
    /// The same on other folders.
    pub(crate) fn at(&self, git_dir: &Path, work_tree: Option<&Path>) -> Self {
        Self {
            git_dir: Some(git_dir.to_owned()),
            work_tree: work_tree.map(Path::to_owned),
            index: None,
            ..self.clone()
        }
    }

    /// Runs one command and returns what it printed. Commands that a server refuses because of
    /// `--depth` or a bare commit id are run again without.
    pub(crate) fn run(&self, arguments: &[&str]) -> Result<String, Failure> {
        let mut arguments = arguments.to_vec();
        loop {
            let failure = match self.run_once(&arguments) {
                Ok(printed) => return Ok(printed),
                Err(failure) => failure,
            };
            let text = &failure.text;
            let before = arguments.len();
            if text.contains("--depth") || text.contains("shallow") {
                arguments.retain(|argument| *argument != "--depth=1");
            }
            let refused = text.contains("not our ref") || text.contains("unadvertised object");
            if arguments.len() == before
                && refused
                && before > 2
                && arguments[0] == "fetch"
                && super::address::is_commit(arguments[before - 1])
            {
                arguments.pop();
            }
            if arguments.len() == before {
                return Err(failure);
            }
        }
    }

    fn run_once(&self, arguments: &[&str]) -> Result<String, Failure> {
        let failed = |text: String| Failure { text };
        let mut command = Command::new("git");
        command.args(["-c", "protocol.file.allow=user"]);
        if let Some(folder) = &self.work_tree {
            command.arg("--work-tree").arg(folder);
        }
        if let Some(folder) = &self.git_dir {
            command.arg("--git-dir").arg(folder);
        }
        command.args(arguments);
        command.current_dir(self.work_tree.as_ref().unwrap_or(&self.home));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.process_group(0);
        self.environment(&mut command);
        let child =
            self.stop.spawn(&mut command).map_err(|error| failed(format!("run git: {error}")))?;
        let output = child.wait_with_output();
        self.stop.finished();
        let output = output.map_err(|error| failed(format!("run git: {error}")))?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let complaint = String::from_utf8_lossy(&output.stderr);
        Err(failed(format!("git stderr:\n{complaint}: {}", output.status)))
    }

    fn environment(&self, command: &mut Command) {
        let ssh = match &self.known_hosts {
            Some(path) => format!("-o UserKnownHostsFile={}", path.display()),
            None => "-o StrictHostKeyChecking=no".to_owned(),
        };
        command.env_clear();
        command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.env("LC_ALL", "C").env("HOME", "/dev/null");
        command.env("GIT_TERMINAL_PROMPT", "0").env("GIT_CONFIG_NOSYSTEM", "1");
        command.env("GIT_CONFIG_GLOBAL", "/dev/null");
        command.env("GIT_SSH_COMMAND", format!("ssh -F /dev/null {ssh}"));
        for name in PROXIES {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        if let Some(path) = &self.ssh_socket {
            command.env("SSH_AUTH_SOCK", path);
        }
        if let Some(path) = &self.index {
            command.env("GIT_INDEX_FILE", path);
        }
        command.env("GIT_CONFIG_COUNT", self.settings.len().to_string());
        for (index, (key, value)) in self.settings.iter().enumerate() {
            command.env(format!("GIT_CONFIG_KEY_{index}"), key);
            command.env(format!("GIT_CONFIG_VALUE_{index}"), value);
        }
    }
}

/// Ends the running command, and all later ones.
#[derive(Debug, Clone, Default)]
pub(crate) struct Stop(Arc<Mutex<StopState>>);

#[derive(Debug, Default)]
struct StopState {
    stopped: bool,
    running: Option<Pid>,
}

impl Stop {
    fn spawn(&self, command: &mut Command) -> std::io::Result<std::process::Child> {
        let mut state = self.0.lock().expect("no panic while git runs");
        if state.stopped {
            return Err(std::io::Error::other("cancelled"));
        }
        let child = command.spawn()?;
        state.running = Pid::from_raw(i32::try_from(child.id()).unwrap_or_default());
        Ok(child)
    }

    fn finished(&self) {
        self.0.lock().expect("no panic while git runs").running = None;
    }

    fn stop(&self) {
        let mut state = self.0.lock().expect("no panic while git runs");
        state.stopped = true;
        if let Some(group) = state.running {
            _ = rustix::process::kill_process_group(group, Signal::KILL);
        }
    }
}

/// Armed until the work has ended.
struct StopOnDrop(Option<Stop>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        if let Some(stop) = &self.0 {
            stop.stop();
        }
    }
}

/// Runs `work` in a thread where each of `mounts` is attached to its (empty, existing) folder.
/// Dropping the future stops git; `work` then ends with an error and drops what it holds itself.
pub(crate) async fn isolated<T: Send + 'static>(
    stop: Stop,
    mounts: Vec<(OwnedFd, PathBuf)>,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, SourceError> {
    let (sender, result) = tokio::sync::oneshot::channel();
    let thread = move || {
        let prepared = leave(mounts);
        _ = sender.send(prepared.map(|()| work()));
    };
    std::thread::Builder::new()
        .name("git".to_owned())
        .spawn(thread)
        .map_err(|error| SourceError::io("start a thread for git", error))?;
    let mut guard = StopOnDrop(Some(stop));
    let result = result.await;
    guard.0 = None;
    result.map_err(|_| SourceError::Remote("git thread ended early".to_owned()))?
}

/// Leaves the shared namespace and file mode mask, and attaches the mounts.
fn leave(mounts: Vec<(OwnedFd, PathBuf)>) -> Result<(), SourceError> {
    let flags = UnshareFlags::FS | UnshareFlags::NEWNS;
    // SAFETY: descriptors stay shared; only this thread's folders, mask and mounts part from the
    // process, and it lives for nothing else.
    unsafe { rustix::thread::unshare_unsafe(flags) }
        .map_err(|errno| SourceError::io("leave the mount namespace for git", errno))?;
    let receive_only = MountPropagationFlags::REC | MountPropagationFlags::DOWNSTREAM;
    rustix::mount::mount_change("/", receive_only)
        .map_err(|errno| SourceError::io("keep mounts for git private", errno))?;
    rustix::process::umask(Mode::from_raw_mode(0o022));
    for (mount, path) in mounts {
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        rustix::mount::move_mount(&mount, "", rustix::fs::CWD, &path, flags)
            .map_err(|errno| SourceError::io("attach a tree for git", errno))?;
    }
    Ok(())
}
