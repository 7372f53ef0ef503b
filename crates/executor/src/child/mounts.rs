//! Makes a container's view of files: its root, what is mounted in it, what is hidden from it.
//!
//! Every mount is made detached, gets its flags, and is moved onto a destination that the kernel
//! resolved inside the new root. Nothing is ever mounted by path, so a hostile tree cannot redirect
//! it, and nothing outside this mount namespace changes.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
};

use rustix::{
    fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, Uid},
    io::Errno,
    mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags,
        fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount,
        open_tree, unmount,
    },
};

use super::Fds;
use crate::{
    launcher::serve::Ready,
    rootfs::{self, Kind, New},
    sys,
    wire::{Container, Content, Failure, Host, PlannedDevice, PlannedMount, Source},
};

const READONLY: u64 = libc::MOUNT_ATTR_RDONLY;
const NODEV: u64 = libc::MOUNT_ATTR_NODEV;

/// Devices found in every container.
const DEVICES: [(&str, u32, u32); 6] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
];
const LINKS: [(&str, &str); 5] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
];

struct Maker<'a> {
    fds: &'a Fds,
    root: OwnedFd,
    root_inode: (u64, u64),
    nodev: bool,
    /// Files in memory made so far, in `/s`.
    files: usize,
}

/// Makes everything and moves into it.
pub fn make_root(container: &Container, fds: &Fds) -> Result<(), Failure> {
    let attach = || -> io::Result<OwnedFd> {
        let root = fds.get(container.root)?;
        attach(root, CWD, "/r")?;
        sys::mount_setattr(
            root,
            true,
            if container.nodev { NODEV } else { 0 },
            0,
            libc::MS_PRIVATE,
        )?;
        root.try_clone_to_owned()
    };
    let root = attach().map_err(Failure::setup("attach the root"))?;
    let stat = rustix::fs::fstat(&root)
        .map_err(|error| Failure::setup("look at the root")(error.into()))?;
    let root_inode = (stat.st_dev as u64, stat.st_ino as u64);
    let mut maker = Maker { fds, root, root_inode, nodev: container.nodev, files: 0 };
    for mount in &container.mounts {
        let failure = |error: io::Error| Failure::Mount {
            dest: mount.dest.clone(),
            reason: error.to_string(),
        };
        maker.mount(mount).map_err(failure)?;
    }
    for device in &container.devices {
        maker.device(device).map_err(Failure::setup(format!("make device {}", device.path)))?;
    }
    for path in &container.masked {
        maker.mask(path).map_err(Failure::setup(format!("hide {path}")))?;
    }
    for path in &container.readonly {
        maker.protect(path).map_err(Failure::setup(format!("protect {path}")))?;
    }
    if container.root_readonly {
        sys::mount_setattr(&maker.root, false, READONLY, 0, 0)
            .map_err(Failure::setup("make the root read-only"))?;
    }
    enter(&maker.root).map_err(Failure::setup("enter the root"))
}

/// Swaps the small root of the launcher for the container's.
fn enter(root: &OwnedFd) -> io::Result<()> {
    rustix::process::fchdir(root)?;
    rustix::process::pivot_root(".", ".")?;
    unmount(".", UnmountFlags::DETACH)?;
    Ok(rustix::process::chdir("/")?)
}

fn attach(mount: impl AsFd, to: impl AsFd, path: &str) -> io::Result<()> {
    let mut flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    if path.is_empty() {
        flags |= MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    }
    Ok(move_mount(mount, "", to, path, flags)?)
}

fn clone_tree(at: impl AsFd, path: &str) -> io::Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_RECURSIVE;
    if path.is_empty() {
        flags |= OpenTreeFlags::AT_EMPTY_PATH;
    }
    Ok(open_tree(at, path, flags)?)
}

fn new_file_system(
    kind: &str,
    options: &[(&str, Option<&str>)],
    attributes: u64,
) -> io::Result<OwnedFd> {
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    if !options.iter().any(|(name, _)| *name == "source") {
        fsconfig_set_string(&context, "source", kind)?;
    }
    for (name, value) in options {
        match value {
            Some(value) => fsconfig_set_string(&context, *name, *value)?,
            None => fsconfig_set_flag(&context, *name)?,
        }
    }
    fsconfig_create(&context)?;
    let attributes = MountAttrFlags::from_bits_retain(attributes as _);
    Ok(fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?)
}

fn is_folder(fd: impl AsFd) -> io::Result<bool> {
    Ok(FileType::from_raw_mode(rustix::fs::fstat(fd)?.st_mode).is_dir())
}

impl Maker<'_> {
    fn mount(&mut self, mount: &PlannedMount) -> io::Result<()> {
        let attributes = mount.attributes;
        // What a new file system gets at birth, others get afterwards.
        let (source, pending) = match &mount.source {
            Source::New { kind, options } => {
                let options: Vec<_> =
                    options.iter().map(|(key, value)| (key.as_str(), value.as_deref())).collect();
                (new_file_system(kind, &options, attributes)?, 0)
            }
            Source::Devices => (self.devices(attributes)?, 0),
            Source::Terminals => {
                let options = [
                    ("newinstance", None),
                    ("ptmxmode", Some("0666")),
                    ("mode", Some("0620")),
                    ("gid", Some("5")),
                ];
                (new_file_system("devpts", &options, attributes)?, 0)
            }
            Source::Tree { tree, path } => {
                let nodev = if self.nodev { NODEV } else { 0 };
                (self.tree(*tree, path.as_deref())?, attributes | nodev)
            }
            Source::File { data, uid, gid, mode } => {
                (self.file(data, *uid, *gid, *mode)?, attributes)
            }
            Source::SharedProc => (clone_tree(CWD, "/proc")?, attributes),
            Source::Cgroups(None) => (clone_tree(CWD, "/cg")?, attributes),
            Source::Cgroups(Some(groups)) => return self.cgroups(&mount.dest, groups, attributes),
        };
        if pending != 0 {
            sys::mount_setattr(&source, true, pending, 0, libc::MS_PRIVATE)?;
        }
        self.place(source, &mount.dest)
    }

    /// Moves a mount to its destination, making that if needed.
    fn place(&self, mount: OwnedFd, dest: &str) -> io::Result<()> {
        let kind = if is_folder(&mount)? { Kind::Folder } else { Kind::File };
        let target = rootfs::ensure(self.root.as_fd(), dest, New::mount_point(kind))?;
        let stat = rustix::fs::fstat(&target)?;
        if (stat.st_dev as u64, stat.st_ino as u64) == self.root_inode {
            return Err(io::Error::other("the destination is the root"));
        }
        if FileType::from_raw_mode(stat.st_mode).is_dir() != (kind == Kind::Folder) {
            return Err(io::Error::from_raw_os_error(libc::ENOTDIR));
        }
        attach(mount, &target, "")
    }

    fn tree(&self, index: usize, path: Option<&str>) -> io::Result<OwnedFd> {
        let tree = self.fds.get(index)?;
        let Some(path) = path else { return tree.try_clone_to_owned() };
        // On a kernel that cannot clone what is detached: attach it out of sight. Failing means
        // that an earlier mount did this.
        _ = attach(tree, CWD, "/t");
        let part = rootfs::open(tree, path, OFlags::PATH)?;
        clone_tree(part, "")
    }

    fn file(&mut self, data: &Content, uid: u32, gid: u32, mode: u32) -> io::Result<OwnedFd> {
        if self.files == 0 {
            let options = [("mode", Some("0711"))];
            let attributes = libc::MOUNT_ATTR_NOSUID | NODEV;
            attach(new_file_system("tmpfs", &options, attributes)?, CWD, "/s")?;
        }
        let path = format!("/s/{}", self.files);
        self.files += 1;
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
        let file = rustix::fs::open(path.as_str(), flags, Mode::from_raw_mode(0o600))?;
        let mut file = std::fs::File::from(file);
        match data {
            Content::Text(text) => io::Write::write_all(&mut file, text.as_bytes())?,
            Content::File(index) => {
                let source = self.fds.get(*index)?.try_clone_to_owned()?;
                io::copy(&mut std::fs::File::from(source), &mut file)?;
            }
        }
        rustix::fs::fchown(&file, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
        rustix::fs::fchmod(&file, Mode::from_raw_mode(mode & 0o777))?;
        clone_tree(CWD, &path)
    }

    /// A `/dev` with the standard devices.
    fn devices(&self, attributes: u64) -> io::Result<OwnedFd> {
        let options = [("mode", Some("755")), ("size", Some("65536k"))];
        let dev = new_file_system("tmpfs", &options, attributes)?;
        for (name, major, minor) in DEVICES {
            let device = rustix::fs::makedev(major, minor);
            rustix::fs::mknodat(&dev, name, FileType::CharacterDevice, 0o666.into(), device)?;
        }
        for (name, target) in LINKS {
            rustix::fs::symlinkat(target, &dev, name)?;
        }
        if rootfs::open(&self.root, "/proc/kcore", OFlags::PATH).is_ok() {
            rustix::fs::symlinkat("/proc/kcore", &dev, "core")?;
        }
        Ok(dev)
    }

    fn device(&self, device: &PlannedDevice) -> io::Result<()> {
        let (folder, name) = device.path.rsplit_once('/').ok_or(io::ErrorKind::InvalidInput)?;
        let folder = rootfs::ensure(self.root.as_fd(), folder, New::mount_point(Kind::Folder))?;
        // Beside an O_PATH descriptor, mknodat needs a real one.
        let folder =
            rustix::fs::openat(&folder, ".", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        let kind = if device.block { FileType::BlockDevice } else { FileType::CharacterDevice };
        let number = rustix::fs::makedev(device.major, device.minor);
        match rustix::fs::mknodat(&folder, name, kind, Mode::from_raw_mode(device.mode), number) {
            Err(Errno::EXIST) => return Ok(()),
            result => result?,
        }
        let (uid, gid) = (Uid::from_raw(device.uid), Gid::from_raw(device.gid));
        Ok(rustix::fs::chownat(&folder, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?)
    }

    fn cgroups(&self, dest: &str, groups: &[(String, usize)], attributes: u64) -> io::Result<()> {
        if let [(name, only)] = groups
            && name.is_empty()
        {
            let tree = self.fds.get(*only)?;
            sys::mount_setattr(tree, true, attributes, 0, libc::MS_PRIVATE)?;
            return self.place(tree.try_clone_to_owned()?, dest);
        }
        let folder = new_file_system("tmpfs", &[("mode", Some("755"))], attributes & !READONLY)?;
        self.place(folder.try_clone()?, dest)?;
        for (name, index) in groups {
            let tree = self.fds.get(*index)?;
            sys::mount_setattr(tree, true, attributes, 0, libc::MS_PRIVATE)?;
            rustix::fs::mkdirat(&folder, name.as_str(), Mode::from_raw_mode(0o755))?;
            attach(tree, &folder, name)?;
        }
        sys::mount_setattr(&folder, false, attributes, 0, 0)
    }

    fn mask(&self, path: &str) -> io::Result<()> {
        let Some(target) = self.present(path)? else { return Ok(()) };
        let cover = if is_folder(&target)? { "/e" } else { "/null" };
        let cover = clone_tree(CWD, cover)?;
        sys::mount_setattr(&cover, false, READONLY, 0, 0)?;
        attach(cover, &target, "")
    }

    fn protect(&self, path: &str) -> io::Result<()> {
        let Some(target) = self.present(path)? else { return Ok(()) };
        let same = clone_tree(&target, "")?;
        sys::mount_setattr(&same, true, READONLY, 0, 0)?;
        attach(same, &target, "")
    }

    fn present(&self, path: &str) -> io::Result<Option<OwnedFd>> {
        match rootfs::open(&self.root, path, OFlags::PATH) {
            Ok(target) => Ok(Some(target)),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

/// Goes back to the host's mounts, in a copy, and attaches trees in it.
pub fn prepare_host(host: &Host, fds: &Fds, ready: &Ready) -> Result<(), Failure> {
    let go = || -> io::Result<()> {
        let namespace = ready.host.as_ref().ok_or(io::ErrorKind::Unsupported)?;
        sys::setns(namespace, libc::CLONE_NEWNS)?;
        sys::unshare(libc::CLONE_NEWNS)?;
        let root = rustix::fs::open("/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
        sys::mount_setattr(&root, true, 0, 0, libc::MS_PRIVATE)?;
        // We are the first of a process namespace.
        attach(new_file_system("proc", &[], 0)?, CWD, "/proc")?;
        for path in &host.hide {
            unmount(path.as_str(), UnmountFlags::DETACH)?;
        }
        Ok(())
    };
    go().map_err(Failure::setup("make a copy of the host's mounts"))?;
    for (tree, path) in &host.mounts {
        fds.get(*tree)
            .and_then(|tree| attach(tree, CWD, path))
            .map_err(|error| Failure::Mount { dest: path.clone(), reason: error.to_string() })?;
    }
    Ok(())
}
