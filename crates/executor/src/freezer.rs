//! Freezing a container: all its processes stay where they are until they are let go on.
//!
//! A caller makes a [`Freezer`], hands it to a run in its [`Spec`](crate::Spec), and may freeze
//! before the first process exists: then that one starts frozen. A frozen container can be killed.
//! It works by the container's own v2 control group; where there is none, [`Freezer::freeze`] says
//! so. A process in the middle of a system call freezes when that ends, which for a large write
//! takes as long as writing does.

use std::{
    fs, io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard},
};

use crate::sys;

/// Freezes, thaws and kills one container; clones do so with the same one.
#[derive(Debug, Clone, Default)]
pub struct Freezer(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    frozen: bool,
    killed: bool,
    ended: bool,
    /// The container's v2 group.
    group: Option<PathBuf>,
    /// Its first process.
    pidfd: Option<Arc<OwnedFd>>,
}

impl Freezer {
    /// One for a container that is not made yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Freezes it; whether that can be done. It may take a moment to take effect.
    pub fn freeze(&self) -> bool {
        let mut state = self.state();
        state.frozen = true;
        state.apply()
    }

    /// Lets it go on.
    pub fn thaw(&self) {
        let mut state = self.state();
        state.frozen = false;
        state.apply();
    }

    /// Whether nothing in it runs now: all is frozen, has ended, or does not exist yet.
    pub fn is_still(&self) -> bool {
        let state = self.state();
        let Some(group) = &state.group else {
            return state.ended || state.pidfd.is_none();
        };
        let events = fs::read_to_string(group.join("cgroup.events"));
        events.map_or(state.ended, |text| {
            text.lines().any(|line| line == "frozen 1" || line == "populated 0")
        })
    }

    /// Kills it, frozen or not; a container that is not made yet dies at its start.
    pub fn kill(&self) {
        let mut state = self.state();
        state.killed = true;
        state.kill();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("no panic while the lock is held")
    }

    /// The group in which it will be made.
    pub(crate) fn attach(&self, group: Option<&Path>) {
        let mut state = self.state();
        state.group = group.map(Path::to_owned);
        if state.frozen {
            state.apply();
        }
    }

    /// Its first process exists.
    pub(crate) fn spawned(&self, pidfd: &Arc<OwnedFd>) {
        let mut state = self.state();
        state.pidfd = Some(pidfd.clone());
        if state.killed {
            state.kill();
        }
    }

    /// Nothing of it is left.
    pub(crate) fn ended(&self) {
        *self.state() = State { ended: true, ..State::default() };
    }
}

impl State {
    fn apply(&self) -> bool {
        let Some(group) = &self.group else { return self.ended };
        write(&group.join("cgroup.freeze"), if self.frozen { "1" } else { "0" }).is_ok()
    }

    fn kill(&self) {
        if let Some(pidfd) = &self.pidfd {
            // The others of its process namespace die with it. It may have ended meanwhile.
            _ = sys::pidfd_signal(&**pidfd, libc::SIGKILL);
        }
        if let Some(group) = &self.group {
            // Unknown to kernels before 5.14.
            _ = write(&group.join("cgroup.kill"), "1");
        }
    }
}

fn write(path: &Path, value: &str) -> io::Result<()> {
    let mut file = fs::OpenOptions::new().write(true).open(path)?;
    io::Write::write_all(&mut file, value.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_group_nothing_can_be_frozen() {
        let freezer = Freezer::new();
        assert!(!freezer.freeze());
        assert!(freezer.is_still(), "nothing runs yet");
        freezer.spawned(&Arc::new(sys::memfd("none", b"").unwrap()));
        assert!(!freezer.is_still());
        freezer.kill();
        freezer.ended();
        assert!(freezer.is_still());
    }

    #[test]
    fn a_group_learns_what_was_wanted_before_it_was_there() {
        let folder = tempfile::tempdir().unwrap();
        let text = |name: &str| fs::read_to_string(folder.path().join(name)).unwrap();
        for name in ["cgroup.freeze", "cgroup.kill"] {
            fs::write(folder.path().join(name), "").unwrap();
        }
        let freezer = Freezer::new();
        freezer.freeze();
        freezer.attach(Some(folder.path()));
        assert_eq!(text("cgroup.freeze"), "1");
        fs::write(folder.path().join("cgroup.events"), "populated 1\nfrozen 0\n").unwrap();
        assert!(!freezer.is_still());
        fs::write(folder.path().join("cgroup.events"), "populated 1\nfrozen 1\n").unwrap();
        assert!(freezer.is_still());
        freezer.thaw();
        assert_eq!(text("cgroup.freeze"), "0");
        freezer.kill();
        assert_eq!(text("cgroup.kill"), "1");
    }
}
