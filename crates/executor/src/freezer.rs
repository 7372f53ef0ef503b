//! Freezing a container: all its processes stay where they are until they are let go on.
//!
//! A caller makes a [`Freezer`], hands it to a run in its [`Spec`](crate::Spec), and may freeze
//! before the first process exists: then that one starts frozen. A frozen container can be killed.
//! It works by the container's own v2 control group; where there is none, [`Freezer::freeze`] says
//! so. A process in the middle of a system call freezes when that ends, which for a large write
//! takes as long as writing does.

use std::{
    fs,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
};

use crate::{cgroup::write, sys};

/// Freezes, thaws and kills one container; clones do so with the same one.
#[derive(Debug, Clone, Default)]
pub struct Freezer(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// What is wanted; held while the group is told, which can wait for others of the machine.
    frozen: Mutex<bool>,
    killed: AtomicBool,
    ended: AtomicBool,
    /// The container's v2 group, once that is known; `None` if there is none.
    group: OnceLock<Option<PathBuf>>,
    /// Its first process, the one that the others die with.
    pidfd: OnceLock<Arc<OwnedFd>>,
}

impl Freezer {
    /// One for a container that is not made yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Freezes it, where that can be done; see [`Freezer::is_still`].
    pub fn freeze(&self) {
        self.set(true);
    }

    /// Lets it go on.
    pub fn thaw(&self) {
        self.set(false);
    }

    /// Whether nothing in it runs now: all is frozen, has ended, or does not exist yet. Never waits.
    pub fn is_still(&self) -> bool {
        if self.0.ended.load(SeqCst) {
            return true;
        }
        let Some(group) = self.group() else { return self.0.pidfd.get().is_none() };
        let events = fs::read_to_string(group.join("cgroup.events")).unwrap_or_default();
        events.lines().any(|line| line == "frozen 1" || line == "populated 0")
    }

    /// Kills it, frozen or not; a container that is not made yet dies at its start. Never waits.
    pub fn kill(&self) {
        self.0.killed.store(true, SeqCst);
        if let Some(pidfd) = self.0.pidfd.get() {
            // It may have ended meanwhile.
            _ = sys::pidfd_signal(&**pidfd, libc::SIGKILL);
        }
    }

    fn group(&self) -> Option<&Path> {
        self.0.group.get()?.as_deref()
    }

    fn set(&self, wanted: bool) {
        let mut frozen = self.0.frozen.lock().expect("no panic while the lock is held");
        *frozen = wanted;
        self.tell(wanted);
    }

    fn tell(&self, frozen: bool) {
        if let Some(group) = self.group() {
            // It is gone when the container has ended.
            _ = write(group, "cgroup.freeze", if frozen { "1" } else { "0" });
        }
    }

    /// The group in which it will be made.
    pub(crate) fn attach(&self, group: Option<&Path>) {
        let frozen = self.0.frozen.lock().expect("no panic while the lock is held");
        _ = self.0.group.set(group.map(Path::to_owned));
        if *frozen {
            self.tell(true);
        }
    }

    /// Its first process exists.
    pub(crate) fn spawned(&self, pidfd: &Arc<OwnedFd>) {
        _ = self.0.pidfd.set(pidfd.clone());
        if self.0.killed.load(SeqCst) {
            self.kill();
        }
    }

    /// Nothing of it is left.
    pub(crate) fn ended(&self) {
        self.0.ended.store(true, SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_group_nothing_can_be_frozen() {
        let freezer = Freezer::new();
        freezer.freeze();
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
        fs::write(folder.path().join("cgroup.freeze"), "").unwrap();
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
    }
}
