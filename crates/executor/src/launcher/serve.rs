//! The server: clones itself for each command and reports how the clones end.
//!
//! It lives in a mount namespace of its own that holds next to nothing, since every container
//! starts with a copy of it: `/r` (where a root is attached), `/s` (small files), `/t` (passing
//! place), `/e` (an empty folder), `/null` (a device), `/proc` (its own) and `/cg` (its control
//! groups).

use std::{
    collections::HashMap,
    fs::File,
    io,
    os::fd::{AsFd as _, FromRawFd as _, OwnedFd},
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    fs::{FileType, Mode, OFlags},
    io::Errno,
    mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags,
        fsconfig_create, fsconfig_set_string, fsmount, fsopen, move_mount, open_tree, unmount,
    },
};

use super::report;
use crate::{
    cgroup::Layout,
    child,
    seccomp::Filter,
    sys::{self, Cloned},
    wire::{self, Command, Hello, Report},
};

/// What clones of the server find ready.
pub struct Ready {
    /// System calls of sandboxed containers; `None` on machines without the feature.
    pub filter: Option<Filter>,
    /// The mount namespace of the host.
    pub host: Option<OwnedFd>,
    /// Everything ends with the server, the first process of a namespace.
    pub own_pids: bool,
}

struct Server {
    control: OwnedFd,
    ready: Ready,
    own_pid_namespace: Option<OwnedFd>,
    /// Sockets on which ends are reported, by process number.
    running: HashMap<i32, OwnedFd>,
}

/// Serves until the daemon is gone.
pub fn main(control: OwnedFd, layout: Layout, own_pids: bool) -> ! {
    let code = match run(control, layout, own_pids) {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("rbuild launcher: {error}");
            1
        }
    };
    std::process::exit(code)
}

fn run(control: OwnedFd, mut layout: Layout, own_pids: bool) -> io::Result<()> {
    sys::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as _, 0)?;
    _ = rustix::thread::set_name(c"rbuild-launcher");
    layout.join();
    let open = |path: &str| File::open(path).map(OwnedFd::from);
    let own_pid_namespace = open("/proc/self/ns/pid").ok();
    let host = open("/proc/self/ns/mnt").ok();
    make_small_root(&layout).map_err(|error| named(error, "make the launcher's root"))?;
    let filter = Filter::load();
    let hello = wire::encode(&Hello { cgroups: layout, own_pids });
    sys::send(&control, b"hello", &[sys::memfd("hello", &hello)?.as_fd()])?;
    let ended = child_signals()?;
    let mut server = Server {
        control,
        ready: Ready { filter, host, own_pids },
        own_pid_namespace,
        running: HashMap::new(),
    };
    loop {
        let mut fds = [
            PollFd::from_borrowed_fd(server.control.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(ended.as_fd(), PollFlags::IN),
        ];
        match poll(&mut fds, None) {
            Err(Errno::INTR) => continue,
            result => result?,
        };
        let (asked, ended_now) = (!fds[0].revents().is_empty(), !fds[1].revents().is_empty());
        if ended_now {
            let mut buffer = [0; 1024];
            _ = rustix::io::read(&ended, &mut buffer);
            server.reap();
        }
        if asked {
            match sys::receive(&server.control, true) {
                Ok(Some((data, fds))) => server.start(&data, fds),
                Ok(None) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }
}

fn named(error: io::Error, doing: &str) -> io::Error {
    io::Error::new(error.kind(), format!("{doing}: {error}"))
}

/// A descriptor that tells of ended children; the signal itself stays blocked.
fn child_signals() -> io::Result<OwnedFd> {
    // SAFETY: the set is initialised by sigemptyset before use; plain system calls.
    let fd = unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, libc::SIGCHLD);
        libc::sigprocmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
        libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK)
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a new descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

impl Server {
    fn start(&mut self, data: &[u8], fds: Vec<OwnedFd>) {
        let mut fds = fds.into_iter();
        let (Some(reports), Some(process)) = (fds.next(), fds.next()) else { return };
        let command = match wire::decode(data) {
            Ok(command) => command,
            Err(_) => {
                return report(&reports, &Report::Failed { errno: libc::EPROTO }, &[]);
            }
        };
        match self.clone_for(command, fds) {
            Ok(Cloned::Child) => {
                drop(reports);
                child::main(process, &self.ready)
            }
            Ok(Cloned::Parent { pid, pidfd }) => {
                report(&reports, &Report::Spawned, &[pidfd.as_fd()]);
                self.running.insert(pid, reports);
            }
            Err(error) => {
                let errno = error.raw_os_error().unwrap_or(libc::EIO);
                report(&reports, &Report::Failed { errno }, &[]);
            }
        }
    }

    fn clone_for(
        &self,
        command: Command,
        mut fds: impl Iterator<Item = OwnedFd>,
    ) -> io::Result<Cloned> {
        let mut next = || fds.next().ok_or(io::ErrorKind::InvalidInput);
        match command {
            Command::Run { cgroup, share_pids } => {
                let cgroup = if cgroup { Some(next()?) } else { None };
                let flags = if share_pids { 0 } else { libc::CLONE_NEWPID };
                // SAFETY: this process has a single thread.
                unsafe { sys::clone3(flags as u64, cgroup.as_ref().map(|fd| fd.as_fd())) }
            }
            Command::Join { cgroup } => {
                let cgroup = if cgroup { Some(next()?) } else { None };
                let container = next()?;
                let own = self.own_pid_namespace.as_ref().ok_or(io::ErrorKind::Unsupported)?;
                // Decides where the next child goes; we stay where we are.
                sys::setns(&container, libc::CLONE_NEWPID)?;
                // SAFETY: this process has a single thread.
                let cloned = unsafe { sys::clone3(0, cgroup.as_ref().map(|fd| fd.as_fd())) };
                if !matches!(cloned, Ok(Cloned::Child)) {
                    sys::setns(own, libc::CLONE_NEWPID)?;
                }
                cloned
            }
        }
    }

    /// Collects ended children, also those that are only ours because their parent is gone.
    fn reap(&mut self) {
        loop {
            let mut status = 0;
            // SAFETY: an all-zero rusage is valid.
            let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
            // SAFETY: pointers are valid for the call.
            let pid = unsafe { libc::wait4(-1, &mut status, libc::WNOHANG, &mut usage) };
            if pid <= 0 {
                return;
            }
            if let Some(reports) = self.running.remove(&pid) {
                report(&reports, &Report::exited(status, &usage), &[]);
            }
        }
    }
}

/// Leaves the host's mounts for a root that holds only what containers need to start with.
fn make_small_root(layout: &Layout) -> io::Result<()> {
    sys::unshare(libc::CLONE_NEWNS)?;
    // Mounting and unmounting here must not reach the host.
    let old = rustix::fs::open("/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    sys::mount_setattr(&old, true, 0, 0, libc::MS_PRIVATE)?;
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&context, "source", "tmpfs")?;
    fsconfig_set_string(&context, "mode", "0755")?;
    fsconfig_set_string(&context, "size", "1m")?;
    fsconfig_create(&context)?;
    let root = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
    for name in ["r", "s", "t", "e", "proc", "cg"] {
        rustix::fs::mkdirat(&root, name, Mode::from_raw_mode(0o755))?;
    }
    let device = rustix::fs::makedev(1, 3);
    if rustix::fs::mknodat(&root, "null", FileType::CharacterDevice, 0o666.into(), device).is_err()
    {
        bind(&rustix::fs::CWD, "/dev/null", &root, "null")?;
    }
    let empty = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    // Anything that surely is a folder; the new root covers it for the moment.
    move_mount(&root, "", rustix::fs::CWD, "/proc", empty)?;
    make_cgroups(layout, &root)?;
    rustix::process::fchdir(&root)?;
    match rustix::process::pivot_root(".", ".") {
        Ok(()) => unmount(".", UnmountFlags::DETACH)?,
        // The host runs from its initial ramdisk, which cannot be exchanged, only covered.
        Err(_) => {
            rustix::mount::mount_move(".", "/")?;
            rustix::process::chroot(".")?;
        }
    }
    rustix::process::chdir("/")?;
    let proc = || -> io::Result<()> {
        let context = fsopen("proc", FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_create(&context)?;
        let flags = MountAttrFlags::MOUNT_ATTR_NOSUID
            | MountAttrFlags::MOUNT_ATTR_NODEV
            | MountAttrFlags::MOUNT_ATTR_NOEXEC;
        let mount = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, flags)?;
        Ok(move_mount(mount, "", rustix::fs::CWD, "/proc", empty)?)
    };
    // Where it is not permitted, only containers without a process sandbox miss it.
    _ = proc();
    Ok(())
}

fn bind(
    from: &impl std::os::fd::AsFd,
    path: &str,
    to: &impl std::os::fd::AsFd,
    name: &str,
) -> io::Result<()> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = open_tree(from, path, flags)?;
    let empty =
        rustix::fs::openat(to, name, OFlags::CREATE | OFlags::CLOEXEC, Mode::from_raw_mode(0o666));
    drop(empty);
    Ok(move_mount(&tree, "", to, name, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?)
}

/// Shows the launcher's own control groups below `/cg`, to be cloned into containers.
fn make_cgroups(layout: &Layout, root: &OwnedFd) -> io::Result<()> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let attach = |source: &std::path::Path, dest: &str| -> io::Result<()> {
        let tree = open_tree(rustix::fs::CWD, source, flags)?;
        move_mount(&tree, "", root, dest, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
        Ok(())
    };
    if layout.v1.is_empty() {
        if let Some(v2) = &layout.v2 {
            let own = v2.join(&layout.instance).join("launcher");
            _ = attach(&own, "cg").or_else(|_| attach(v2, "cg"));
        }
        return Ok(());
    }
    for hierarchy in &layout.v1 {
        let name = hierarchy.path.file_name().and_then(|name| name.to_str()).unwrap_or("other");
        let dest = format!("cg/{name}");
        rustix::fs::mkdirat(root, &dest, Mode::from_raw_mode(0o755))?;
        let own = hierarchy.path.join(hierarchy.own.trim_start_matches('/'));
        // The daemon's group may be out of sight; then there is nothing to show.
        _ = attach(&own, &dest);
    }
    Ok(())
}
