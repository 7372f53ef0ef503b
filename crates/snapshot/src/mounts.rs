//! Detached mounts: made, held and dropped by descriptor, shown in nobody's namespace.
//!
//! With the new mount API each lower folder is handed over by itself, so there is no limit on the
//! length of the list. Kernels before 6.8 take the list as one string; there the mount is made the
//! old way in a throw-away namespace and a detached copy of it is brought out.

use std::{
    ffi::CString,
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
};

use rustix::{
    fs::{CWD, Mode, OFlags},
    io::Errno,
    mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags,
        OpenTreeFlags, UnmountFlags,
    },
};

/// The kernel's bound on one configuration string, its end included.
const LONGEST_STRING: usize = 255;

/// The kernel's bound on lower folders of one overlay.
pub(crate) const MOST_LOWERS: usize = 500;

/// How overlay is driven on this machine, found out once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct OverlayForm {
    /// `lowerdir+` is understood.
    pub append: bool,
    /// Marks live in `user.overlay.*` instead of `trusted.overlay.*`.
    pub user_xattrs: bool,
    /// `volatile` is understood: no syncing of the upper folder at every unmount and fsync.
    pub volatile: bool,
}

/// Folders of one overlay, lowers topmost first.
pub(crate) struct OverlayFolders<'a> {
    pub lowers: &'a [PathBuf],
    pub upper: Option<(&'a Path, &'a Path)>,
}

/// Mounts an overlay, detached.
pub(crate) fn overlay(form: OverlayForm, folders: &OverlayFolders) -> io::Result<OwnedFd> {
    if folders.lowers.len() > MOST_LOWERS {
        let count = folders.lowers.len();
        let text = format!("{count} layers, but overlay takes at most {MOST_LOWERS}");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    if form.append { overlay_appending(form, folders) } else { overlay_by_string(form, folders) }
}

fn flags(form: OverlayForm, writable: bool) -> Vec<(&'static str, Option<&'static str>)> {
    let mut flags =
        vec![("index", Some("off")), ("redirect_dir", Some("off")), ("metacopy", Some("off"))];
    if form.user_xattrs {
        flags.push(("userxattr", None));
    }
    if form.volatile && writable {
        flags.push(("volatile", None));
    }
    flags
}

fn overlay_appending(form: OverlayForm, folders: &OverlayFolders) -> io::Result<OwnedFd> {
    let context = rustix::mount::fsopen(c"overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    let explain = |error: Errno| with_kernel_message(&context, error);
    // Held until the mount exists, where a path was too long to be said.
    let mut held = Vec::new();
    let mut set = |key: &str, path: &Path| -> io::Result<()> {
        let bytes = path.as_os_str().as_bytes();
        if bytes.len() <= LONGEST_STRING {
            return rustix::mount::fsconfig_set_string(&context, key, bytes).map_err(explain);
        }
        let fd = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
        let short = crate::sys::fd_path(&fd);
        held.push(fd);
        rustix::mount::fsconfig_set_string(&context, key, short.as_os_str().as_bytes())
            .map_err(explain)
    };
    // The first word of the mount's line in /proc/mounts.
    set("source", Path::new("overlay"))?;
    for lower in folders.lowers {
        set("lowerdir+", lower)?;
    }
    if let Some((upper, work)) = folders.upper {
        set("upperdir", upper)?;
        set("workdir", work)?;
    }
    for (key, value) in flags(form, folders.upper.is_some()) {
        match value {
            Some(value) => rustix::mount::fsconfig_set_string(&context, key, value),
            None => rustix::mount::fsconfig_set_flag(&context, key),
        }
        .map_err(explain)?;
    }
    rustix::mount::fsconfig_create(&context).map_err(explain)?;
    let attributes = match folders.upper {
        Some(_) => MountAttrFlags::empty(),
        None => MountAttrFlags::MOUNT_ATTR_RDONLY | MountAttrFlags::MOUNT_ATTR_NOATIME,
    };
    Ok(rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?)
}

/// Joins the error with what the kernel says about it on the context.
fn with_kernel_message(context: &OwnedFd, error: Errno) -> io::Error {
    let mut said = Vec::new();
    let mut line = [0u8; 512];
    while let Ok(length) = rustix::io::read(context, &mut line) {
        if length == 0 || said.len() > 4096 {
            break;
        }
        let text = String::from_utf8_lossy(&line[..length]);
        let text = text.trim_end();
        said.push(text.split_once(' ').map_or(text, |(_, rest)| rest).to_owned());
    }
    let error = io::Error::from(error);
    match said.is_empty() {
        true => error,
        false => io::Error::new(error.kind(), format!("{error} ({})", said.join("; "))),
    }
}

/// The old way: one string of relative paths, mounted by a thread in a namespace of its own.
fn overlay_by_string(form: OverlayForm, folders: &OverlayFolders) -> io::Result<OwnedFd> {
    let all = || {
        let upper = folders.upper.iter().flat_map(|(upper, work)| [*upper, *work]);
        folders.lowers.iter().map(PathBuf::as_path).chain(upper)
    };
    let shared = common_parent(all());
    let relative = |path: &Path| -> Vec<u8> {
        let path = path.strip_prefix(&shared).unwrap_or(path);
        let mut escaped = Vec::new();
        for byte in path.as_os_str().as_bytes() {
            if matches!(byte, b':' | b',' | b'\\') {
                escaped.push(b'\\');
            }
            escaped.push(*byte);
        }
        escaped
    };
    let mut options = b"lowerdir=".to_vec();
    options
        .extend(folders.lowers.iter().map(|path| relative(path)).collect::<Vec<_>>().join(&b':'));
    if let Some((upper, work)) = folders.upper {
        options
            .extend([b",upperdir=", &relative(upper)[..], b",workdir=", &relative(work)].concat());
    }
    for (key, value) in flags(form, folders.upper.is_some()) {
        options.extend(format!(",{key}").into_bytes());
        if let Some(value) = value {
            options.extend(format!("={value}").into_bytes());
        }
    }
    if options.len() >= 4096 {
        let text =
            format!("{} layers do not fit this kernel's mount options", folders.lowers.len());
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    let options = CString::new(options)?;
    let read_only = folders.upper.is_none();
    in_private_namespace(move || {
        rustix::process::chdir(&shared)?;
        let flags =
            if read_only { MountFlags::RDONLY | MountFlags::NOATIME } else { MountFlags::empty() };
        // Any folder serves as the place; nobody else sees this namespace.
        rustix::mount::mount(c"overlay", c"/proc", c"overlay", flags, options.as_c_str())?;
        let clone = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let tree = rustix::mount::open_tree(CWD, c"/proc", clone)?;
        rustix::mount::unmount(c"/proc", UnmountFlags::DETACH)?;
        Ok(tree)
    })
}

fn common_parent<'a>(mut paths: impl Iterator<Item = &'a Path>) -> PathBuf {
    let mut shared = paths.next().and_then(Path::parent).unwrap_or(Path::new("/")).to_owned();
    for path in paths {
        while !path.starts_with(&shared) {
            shared.pop();
        }
    }
    shared
}

/// Runs `work` on a thread with its own mount namespace and working folder.
fn in_private_namespace<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let thread = std::thread::Builder::new().name("overlay-mount".into()).spawn(move || {
        // SAFETY: unshare has no memory effects; the thread leaves nothing behind when it ends.
        if unsafe { libc::unshare(libc::CLONE_FS | libc::CLONE_NEWNS) } != 0 {
            return Err(io::Error::last_os_error());
        }
        let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        rustix::mount::mount_change(c"/", private)?;
        work()
    })?;
    thread.join().map_err(|_| io::Error::other("the mounting thread panicked"))?
}

/// A detached mount of one folder.
pub(crate) fn bind(path: &Path, read_only: bool) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = rustix::mount::open_tree(CWD, path, flags)?;
    if read_only {
        set_read_only(&tree)?;
    }
    Ok(tree)
}

/// A second detached mount of what `tree` is the root of.
pub(crate) fn clone_of(tree: impl AsFd, read_only: bool) -> io::Result<OwnedFd> {
    let copy = crate::keeper::clone_tree(tree.as_fd(), false)?;
    if read_only {
        set_read_only(&copy)?;
    }
    Ok(copy)
}

#[repr(C)]
struct MountAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    userns: u64,
}

/// Refuses writes through a detached mount, and stops the writing of access times.
fn set_read_only(tree: &OwnedFd) -> io::Result<()> {
    let read_only = MountAttrFlags::MOUNT_ATTR_RDONLY | MountAttrFlags::MOUNT_ATTR_NOATIME;
    let attr = MountAttr {
        set: read_only.bits().into(),
        clear: MountAttrFlags::MOUNT_ATTR__ATIME.bits().into(),
        propagation: 0,
        userns: 0,
    };
    // SAFETY: the structure is laid out as the kernel wants it and outlives the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attr,
            size_of::<MountAttr>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
