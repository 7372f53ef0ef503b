//! Paths inside a container's root, from outside of it.
//!
//! The tree is hostile: it may hold symbolic links to anywhere. Every function takes the root as a
//! descriptor and lets the kernel resolve beneath it (`RESOLVE_IN_ROOT`), so that `..` and absolute
//! links stay inside, whatever changes meanwhile.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::{
    fs::{AtFlags, Gid, Mode, OFlags, ResolveFlags, Timestamps, Uid},
    io::Errno,
};

/// Symbolic links followed in one path, as the kernel does.
const MAX_LINKS: usize = 40;

/// Opens a path inside `root`. The empty path and `/` are the root itself.
pub fn open(root: impl AsFd, path: &str, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let relative = path.trim_start_matches('/');
    let relative = if relative.is_empty() { "." } else { relative };
    loop {
        match rustix::fs::openat2(
            &root,
            relative,
            flags | OFlags::CLOEXEC,
            Mode::empty(),
            ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
        ) {
            // A rename elsewhere raced with the resolution.
            Err(Errno::AGAIN | Errno::INTR) => {}
            result => return result,
        }
    }
}

/// What to make where nothing is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Folder,
    File,
}

/// How to make it.
#[derive(Clone, Copy)]
pub struct New {
    pub kind: Kind,
    /// User and group; also of the folders above it that are missing.
    pub owner: Option<(u32, u32)>,
    /// Put back the times of the folder that gets it.
    pub keep_times: bool,
}

impl New {
    /// A mount point: it shall leave no trace.
    pub fn mount_point(kind: Kind) -> Self {
        Self { kind, owner: None, keep_times: true }
    }
}

/// Opens (`O_PATH`) what is at `path`, making it, and missing folders above it, with mode 0755.
pub fn ensure(root: BorrowedFd<'_>, path: &str, new: New) -> rustix::io::Result<OwnedFd> {
    match open(root, path, OFlags::PATH) {
        Err(Errno::NOENT) => {}
        result => return result,
    }
    let real = real_path(root, path)?;
    let (folder, name) = real.rsplit_once('/').ok_or(Errno::INVAL)?;
    let folder = ensure(root, folder, New { kind: Kind::Folder, ..new })?;
    let times = if new.keep_times { Some(rustix::fs::fstat(&folder)?) } else { None };
    let mode = Mode::from_raw_mode(0o755);
    let made = match new.kind {
        Kind::Folder => rustix::fs::mkdirat(&folder, name, mode),
        Kind::File => rustix::fs::openat(
            &folder,
            name,
            OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::WRONLY,
            mode,
        )
        .map(drop),
    };
    match made {
        Ok(()) => {
            if let Some((uid, gid)) = new.owner {
                rustix::fs::chownat(
                    &folder,
                    name,
                    Some(Uid::from_raw(uid)),
                    Some(Gid::from_raw(gid)),
                    AtFlags::SYMLINK_NOFOLLOW,
                )?;
            }
        }
        Err(Errno::EXIST) => {}
        Err(error) => return Err(error),
    }
    if let Some(times) = times {
        set_times(&folder, &times)?;
    }
    open(root, &real, OFlags::PATH)
}

/// The path without symbolic links, `.` and `..`, starting with `/`; parts that do not exist are
/// kept as they are.
pub fn real_path(root: impl AsFd, path: &str) -> rustix::io::Result<String> {
    let mut pending: Vec<String> = split(path);
    let mut done: Vec<String> = Vec::new();
    let mut links = 0;
    while let Some(part) = pending.pop() {
        if part == ".." {
            done.pop();
            continue;
        }
        done.push(part);
        let here = done.join("/");
        let Ok(fd) = open(&root, &here, OFlags::PATH | OFlags::NOFOLLOW) else { continue };
        match rustix::fs::readlinkat(&fd, "", Vec::new()) {
            Ok(target) => {
                links += 1;
                if links > MAX_LINKS {
                    return Err(Errno::LOOP);
                }
                let target = target.into_string().map_err(|_| Errno::ILSEQ)?;
                done.pop();
                if target.starts_with('/') {
                    done.clear();
                }
                pending.extend(split(&target));
            }
            // Not a link.
            Err(Errno::NOENT | Errno::INVAL) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(format!("/{}", done.join("/")))
}

/// The parts of a path, last first.
fn split(path: &str) -> Vec<String> {
    path.split('/')
        .rev()
        .filter(|part| !part.is_empty() && *part != ".")
        .map(str::to_owned)
        .collect()
}

/// Mount points that a run will make in a root tree, noted before it to be removed after it.
#[derive(Debug, Default)]
pub struct Stubs {
    paths: Vec<String>,
}

impl Stubs {
    /// Notes which of `dests` do not exist; with `recursive` also their missing ancestors.
    pub fn note<'a>(
        root: BorrowedFd<'_>,
        dests: impl IntoIterator<Item = &'a str>,
        recursive: bool,
    ) -> Self {
        let mut paths = Vec::new();
        for dest in dests {
            if split(dest).is_empty() || exists(root, dest) {
                continue;
            }
            let Ok(mut real) = real_path(root, dest) else { continue };
            while real != "/" && !exists(root, &real) {
                paths.push(real.clone());
                if !recursive {
                    break;
                }
                real.truncate(real.rfind('/').unwrap_or(0).max(1));
            }
        }
        // A folder's children sort behind it; they have to go first.
        paths.sort_unstable_by(|left, right| right.cmp(left));
        paths.dedup();
        Self { paths }
    }

    /// Removes what was noted where it is an empty file or folder, keeping the parents' times.
    pub fn clear(self, root: BorrowedFd<'_>) {
        for path in self.paths {
            if let Err(error) = clear_stub(root, &path) {
                tracing::warn!(path, %error, "could not remove a mount point");
            }
        }
    }
}

fn exists(root: BorrowedFd<'_>, path: &str) -> bool {
    !matches!(open(root, path, OFlags::PATH), Err(Errno::NOENT | Errno::NOTDIR))
}

fn clear_stub(root: BorrowedFd<'_>, path: &str) -> io::Result<()> {
    if real_path(root, path)? != path {
        return Ok(());
    }
    let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
    let Ok(folder) = open(root, folder, OFlags::RDONLY | OFlags::DIRECTORY) else { return Ok(()) };
    let Ok(stat) = rustix::fs::statat(&folder, name, AtFlags::SYMLINK_NOFOLLOW) else {
        return Ok(());
    };
    let is_folder = rustix::fs::FileType::from_raw_mode(stat.st_mode).is_dir();
    if !is_folder && stat.st_size != 0 {
        return Ok(());
    }
    let times = rustix::fs::fstat(&folder)?;
    let flags = if is_folder { AtFlags::REMOVEDIR } else { AtFlags::empty() };
    match rustix::fs::unlinkat(&folder, name, flags) {
        Err(Errno::NOTEMPTY | Errno::EXIST) => return Ok(()),
        result => result?,
    }
    Ok(set_times(&folder, &times)?)
}

/// Gives a folder (also one opened with `O_PATH`) the times it had.
fn set_times(folder: &OwnedFd, stat: &rustix::fs::Stat) -> rustix::io::Result<()> {
    let time = |tv_sec: i64, tv_nsec: u64| rustix::fs::Timespec { tv_sec, tv_nsec: tv_nsec as _ };
    let times = Timestamps {
        last_access: time(stat.st_atime as _, stat.st_atime_nsec as _),
        last_modification: time(stat.st_mtime as _, stat.st_mtime_nsec as _),
    };
    rustix::fs::utimensat(folder, ".", &times, AtFlags::SYMLINK_NOFOLLOW)
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink, time::SystemTime};

    use super::*;

    fn tree() -> (tempfile::TempDir, OwnedFd) {
        let folder = tempfile::tempdir().unwrap();
        let root = rustix::fs::open(folder.path(), OFlags::PATH, Mode::empty()).unwrap();
        (folder, root)
    }

    #[test]
    fn links_stay_inside() {
        let (folder, root) = tree();
        let at = |path: &str| folder.path().join(path);
        fs::create_dir_all(at("a/b")).unwrap();
        symlink("/a", at("absolute")).unwrap();
        symlink("../../../etc", at("a/up")).unwrap();
        symlink("loop", at("loop")).unwrap();
        assert_eq!(real_path(&root, "absolute/b/new").unwrap(), "/a/b/new");
        assert_eq!(real_path(&root, "/a/up/passwd").unwrap(), "/etc/passwd");
        assert_eq!(real_path(&root, "loop").unwrap_err(), Errno::LOOP);
        ensure(root.as_fd(), "a/up/x/y", New::mount_point(Kind::File)).unwrap();
        assert!(at("etc/x/y").is_file());
        ensure(root.as_fd(), "absolute/c", New::mount_point(Kind::Folder)).unwrap();
        assert!(at("a/c").is_dir());
    }

    #[test]
    fn stubs_vanish_and_times_stay() {
        let (folder, root) = tree();
        let at = |path: &str| folder.path().join(path);
        fs::create_dir(at("etc")).unwrap();
        fs::create_dir(at("kept")).unwrap();
        let old = SystemTime::UNIX_EPOCH + std::time::Duration::new(1_000_000, 5);
        fs::File::open(at("etc")).unwrap().set_modified(old).unwrap();
        let dests = ["/etc/hosts", "/etc/resolv.conf", "/x/y/z", "/kept", "/full"];
        for recursive in [false, true] {
            let stubs = Stubs::note(root.as_fd(), dests, recursive);
            fs::write(at("etc/hosts"), "").unwrap();
            fs::write(at("etc/resolv.conf"), "written").unwrap();
            fs::create_dir_all(at("x/y/z")).unwrap();
            fs::create_dir_all(at("full/of/things")).unwrap();
            stubs.clear(root.as_fd());
            assert!(!at("etc/hosts").exists() && at("etc/resolv.conf").exists());
            assert!(at("kept").exists() && at("full").exists());
            assert_eq!(at("x/y").exists(), !recursive);
            assert!(!at("x/y/z").exists());
            fs::remove_dir_all(at("full")).unwrap();
            fs::remove_dir_all(at("x")).ok();
            fs::remove_file(at("etc/resolv.conf")).unwrap();
        }
        let stubs = Stubs::note(root.as_fd(), ["/etc/hosts"], false);
        fs::write(at("etc/hosts"), "").unwrap();
        fs::File::open(at("etc")).unwrap().set_modified(old).unwrap();
        stubs.clear(root.as_fd());
        assert_eq!(fs::metadata(at("etc")).unwrap().modified().unwrap(), old);
    }
}
