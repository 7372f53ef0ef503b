//! The guard: outlives the daemon by the moment it takes to clean up after it.

use std::{
    collections::BTreeSet,
    io,
    os::fd::{AsFd as _, OwnedFd},
    path::PathBuf,
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
    process::{Resource, Rlimit, setrlimit},
};

use super::{nat::Nat, serve, take_sockets};
use crate::{
    cgroup::{self, Layout},
    sys::{self, Cloned},
};

/// The answer when the rules for a subnet are made; anything else is the reason why not.
pub const NAT_DONE: &str = "done";

/// Runs the guard, and in its child the server.
pub fn main(open_files: Rlimit) -> ! {
    let code = match run(open_files) {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("rbuild launcher: {error}");
            1
        }
    };
    std::process::exit(code)
}

fn run(open_files: Rlimit) -> io::Result<()> {
    let (control, guard) = take_sockets()?;
    // The daemon raised its own; steps start with what it was given.
    _ = setrlimit(Resource::Nofile, open_files);
    // A terminal's interrupt is for the daemon, which ends us when it is done.
    _ = rustix::process::setsid();
    _ = rustix::thread::set_name(c"rbuild-guard");
    // Without it a process in a container could look into ours through /proc.
    sys::prctl(libc::PR_SET_DUMPABLE, 0, 0)?;
    let layout = Layout::prepare();
    let folders = layout.launcher_folders();
    // SAFETY: this process has a single thread.
    let cloned = unsafe { sys::clone3(libc::CLONE_NEWPID as u64, None) };
    let (cloned, own_pids) = match cloned {
        Ok(cloned) => (cloned, true),
        // SAFETY: as above.
        Err(_) => (unsafe { sys::clone3(0, None) }?, false),
    };
    let (pid, pidfd) = match cloned {
        Cloned::Child => {
            drop(guard);
            serve::main(control, layout, own_pids)
        }
        Cloned::Parent { pid, pidfd } => (pid, pidfd),
    };
    drop(control);
    let mut groups = watch(&guard, &pidfd);
    sys::pidfd_signal(&pidfd, libc::SIGKILL)?;
    // The server's end is the end of its process namespace: nothing is left after this.
    // SAFETY: plain system call with valid pointer arguments.
    while unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) } < 0
        && io::Error::last_os_error().kind() == io::ErrorKind::Interrupted
    {}
    groups.extend(folders);
    for group in groups.into_iter().rev() {
        cgroup::remove_tree(&group);
    }
    Ok(())
}

/// Waits for the daemon or the server to end; gives the control groups that may exist.
fn watch(guard: &OwnedFd, server: &OwnedFd) -> BTreeSet<PathBuf> {
    let mut groups = BTreeSet::new();
    let mut nat = Nat::default();
    loop {
        let mut fds = [
            PollFd::from_borrowed_fd(guard.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(server.as_fd(), PollFlags::IN),
        ];
        match poll(&mut fds, None) {
            Err(Errno::INTR) => continue,
            Err(_) => return groups,
            Ok(_) => {}
        }
        if !fds[1].revents().is_empty() {
            return groups;
        }
        match sys::receive(guard, true) {
            Ok(Some((data, _))) if data.starts_with(b"nat ") => {
                let answer = match nat.start(&String::from_utf8_lossy(&data[4..])) {
                    Ok(()) => NAT_DONE.to_owned(),
                    Err(reason) => reason.chars().take(1000).collect(),
                };
                _ = sys::send(guard, answer.as_bytes(), &[]);
            }
            Ok(Some((data, _))) => {
                groups.insert(PathBuf::from(String::from_utf8_lossy(&data).into_owned()));
                // Most are long gone.
                if groups.len() > 1000 {
                    groups.retain(|group| group.exists());
                }
            }
            Ok(None) => return groups,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => return groups,
        }
    }
}
