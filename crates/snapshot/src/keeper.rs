//! Keeps mounts where kernels that cannot clone detached ones can clone them.
//!
//! Kernels before 6.15 clone only what is attached in the caller's own mount namespace, and move a
//! detached mount only once. There, a thread of ours lives in a mount namespace that shows nothing
//! else, keeps every tree attached in it as long as somebody holds the tree, and makes the clones. On
//! newer kernels the thread is never started. Either way nobody else's namespace shows a mount, and
//! all of them die with the process.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{
        OnceLock,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
};

use rustix::{
    fs::{CWD, Mode, OFlags},
    io::Errno,
    mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags,
        OpenTreeFlags, UnmountFlags,
    },
    thread::UnshareFlags,
};

static FORCED: AtomicBool = AtomicBool::new(false);
static KEEPER: OnceLock<Option<Keeper>> = OnceLock::new();

/// Works as on an old kernel from now on. To be called before the first tree is mounted.
pub fn force() {
    FORCED.store(true, Ordering::Relaxed);
}

/// A second detached mount of the tree or file that `fd` refers to, whatever kernel this is.
pub fn clone_tree(fd: BorrowedFd<'_>, recursive: bool) -> io::Result<OwnedFd> {
    match open_tree(fd, recursive) {
        Err(Errno::INVAL) => {}
        result => return Ok(result?),
    }
    // Not ours to clone, or a kernel that cannot: the thread may.
    let Some(keeper) = keeper() else { return Err(Errno::INVAL.into()) };
    keeper.ask(|reply| Ask::Clone { fd: fd.try_clone_to_owned(), recursive, reply })
}

/// Keeps the mount that `fd` is the root of until the answer is dropped. Nothing on kernels that do
/// not need it, and for what is no mount of our own.
pub(crate) fn keep(fd: &OwnedFd) -> Option<Kept> {
    let keeper = keeper()?;
    let kept = keeper.ask(|reply| Ask::Attach { fd: fd.try_clone(), reply });
    kept.map(|name| Kept { name }).ok()
}

/// A mount in the thread's namespace; unmounted when dropped.
#[derive(Debug)]
pub(crate) struct Kept {
    name: u64,
}

impl Drop for Kept {
    fn drop(&mut self) {
        if let Some(keeper) = keeper()
            && let Err(error) = keeper.ask(|reply| Ask::Detach { name: self.name, reply })
        {
            tracing::warn!(%error, "could not unmount a tree");
        }
    }
}

type Reply<T> = mpsc::SyncSender<io::Result<T>>;

enum Ask {
    Attach { fd: io::Result<OwnedFd>, reply: Reply<u64> },
    Clone { fd: io::Result<OwnedFd>, recursive: bool, reply: Reply<OwnedFd> },
    Detach { name: u64, reply: Reply<()> },
}

struct Keeper {
    asks: mpsc::Sender<Ask>,
}

impl Keeper {
    fn ask<T>(&self, ask: impl FnOnce(Reply<T>) -> Ask) -> io::Result<T> {
        let gone = || io::Error::other("the thread that keeps mounts ended");
        let (reply, answer) = mpsc::sync_channel(1);
        self.asks.send(ask(reply)).map_err(|_| gone())?;
        answer.recv().map_err(|_| gone())?
    }
}

/// The thread, where it is needed.
fn keeper() -> Option<&'static Keeper> {
    let start = || {
        if !FORCED.load(Ordering::Relaxed) && clones_detached().unwrap_or(true) {
            return None;
        }
        match start() {
            Ok(keeper) => Some(keeper),
            Err(error) => {
                tracing::warn!(%error, "cannot keep mounts in a namespace of their own");
                None
            }
        }
    };
    KEEPER.get_or_init(start).as_ref()
}

/// Whether this kernel clones detached mounts; an error where mounting is not allowed at all.
fn clones_detached() -> io::Result<bool> {
    let root = rustix::fs::open("/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    let detached = open_tree(root.as_fd(), false)?;
    match open_tree(detached.as_fd(), false) {
        Ok(_) => Ok(true),
        Err(Errno::INVAL) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn open_tree(fd: BorrowedFd<'_>, recursive: bool) -> rustix::io::Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    rustix::mount::open_tree(fd, c"", flags)
}

fn start() -> io::Result<Keeper> {
    let (asks, asked) = mpsc::channel();
    let (ready, is_ready) = mpsc::sync_channel(1);
    std::thread::Builder::new().name("mounts".into()).spawn(move || {
        let prepared = enter();
        let works = prepared.is_ok();
        _ = ready.send(prepared);
        if works {
            serve(&asked);
        }
    })?;
    is_ready.recv().map_err(|_| io::Error::other("the thread that keeps mounts panicked"))??;
    tracing::info!("this kernel does not clone detached mounts; they are kept in a namespace");
    Ok(Keeper { asks })
}

/// Leaves the host's mounts for an empty place.
fn enter() -> io::Result<()> {
    // SAFETY: descriptors stay shared; only this thread's folders and mounts part from the process,
    // and it lives for nothing else.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::FS | UnshareFlags::NEWNS)? };
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    rustix::mount::mount_change(c"/", private)?;
    let context = rustix::mount::fsopen(c"tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_set_string(&context, "mode", "0700")?;
    rustix::mount::fsconfig_create(&context)?;
    let flags = FsMountFlags::FSMOUNT_CLOEXEC;
    let place = rustix::mount::fsmount(&context, flags, MountAttrFlags::empty())?;
    // Anything that surely is a folder.
    let empty = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    rustix::mount::move_mount(&place, c"", CWD, c"/proc", empty)?;
    rustix::process::fchdir(&place)?;
    match rustix::process::pivot_root(c".", c".") {
        Ok(()) => rustix::mount::unmount(c".", UnmountFlags::DETACH)?,
        // The machine runs from its initial ramdisk, which cannot be exchanged, only covered.
        Err(_) => {
            rustix::mount::mount_move(c".", c"/")?;
            rustix::process::chroot(c".")?;
        }
    }
    Ok(rustix::process::chdir(c"/")?)
}

fn serve(asked: &mpsc::Receiver<Ask>) {
    let mut next = 0_u64;
    while let Ok(ask) = asked.recv() {
        // Whoever asked may be gone; then the answer is dropped.
        match ask {
            Ask::Attach { fd, reply } => {
                next += 1;
                _ = reply.send(fd.and_then(|fd| attach(&fd, next)));
            }
            Ask::Clone { fd, recursive, reply } => {
                let cloned = fd.and_then(|fd| Ok(open_tree(fd.as_fd(), recursive)?));
                _ = reply.send(cloned);
            }
            Ask::Detach { name, reply } => _ = reply.send(detach(name)),
        }
    }
}

fn attach(fd: &OwnedFd, name: u64) -> io::Result<u64> {
    let path = format!("/{name}");
    rustix::fs::mkdir(&path, Mode::from_raw_mode(0o700))?;
    let moved = rustix::mount::move_mount(
        fd,
        c"",
        CWD,
        path.as_str(),
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    );
    if let Err(error) = moved {
        _ = rustix::fs::rmdir(&path);
        return Err(error.into());
    }
    Ok(name)
}

fn detach(name: u64) -> io::Result<()> {
    let path = format!("/{name}");
    rustix::mount::unmount(path.as_str(), UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)?;
    Ok(rustix::fs::rmdir(&path)?)
}
