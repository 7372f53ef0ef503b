//! Files of a container in and out, as tars.
//!
//! Paths are resolved beneath the container's root (or beneath a mounted folder of the machine), so
//! that no link leads out of it.

use std::{
    ffi::OsStr,
    fs::File,
    io::{self, Read, Write},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::{ffi::OsStrExt as _, fs::PermissionsExt as _},
    },
    path::Path,
};

use base::gotar::{self, Header, Kind};
use rustix::{
    fs::{
        AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Stat, openat, openat2, readlinkat,
        statat,
    },
    io::Errno,
};
use snapshot::{LayerError, Limits, Tree};

/// Folders inside folders that are followed.
const MAX_DEPTH: usize = 256;

/// What is at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathInfo {
    /// Last part of the path.
    pub name: String,
    /// Whether it is a folder.
    pub folder: bool,
    /// Whether there is anything.
    pub exists: bool,
}

/// A path taken apart and found: its folder, and its name in it.
pub struct Found {
    parent: OwnedFd,
    name: Vec<u8>,
    stat: Option<Stat>,
}

impl Found {
    /// Looks for `path` beneath `root`. A link in the last place is followed only if asked for.
    pub fn at(root: BorrowedFd<'_>, path: &str, follow: bool) -> io::Result<Self> {
        let mut path = base::path::absolute(path);
        // Bounded, as links may lead to links.
        for _ in 0..40 {
            let (folder, name) = path.rsplit_once('/').unwrap_or(("", &path));
            let folder = if folder.is_empty() { "/" } else { folder };
            let parent = open(root, folder, OFlags::PATH | OFlags::DIRECTORY)?;
            if name.is_empty() {
                let stat = statat(&parent, ".", AtFlags::empty())?;
                return Ok(Self { parent, name: b".".to_vec(), stat: Some(stat) });
            }
            let stat = match statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => Some(stat),
                Err(Errno::NOENT) => None,
                Err(error) => return Err(error.into()),
            };
            let link = stat.is_some_and(|stat| kind(&stat) == FileType::Symlink);
            if link && follow {
                let target = readlinkat(&parent, name, Vec::new())?;
                let target = String::from_utf8_lossy(target.as_bytes()).into_owned();
                path = match target.starts_with('/') {
                    true => base::path::absolute(&target),
                    false => base::path::absolute(&format!("{folder}/{target}")),
                };
                continue;
            }
            return Ok(Self { parent, name: name.as_bytes().to_vec(), stat });
        }
        Err(Errno::LOOP.into())
    }

    /// What it is.
    pub fn info(&self) -> PathInfo {
        PathInfo {
            name: String::from_utf8_lossy(&self.name).into_owned(),
            folder: self.stat.is_some_and(|stat| kind(&stat) == FileType::Directory),
            exists: self.stat.is_some(),
        }
    }

    /// Gives a folder of ours the owner and mode of what was found.
    pub fn dress(&self, folder: &Path) -> io::Result<()> {
        let Some(stat) = &self.stat else { return Ok(()) };
        std::os::unix::fs::chown(folder, Some(stat.st_uid), Some(stat.st_gid))?;
        let mode = std::fs::Permissions::from_mode(stat.st_mode & 0o7777);
        std::fs::set_permissions(folder, mode)
    }

    /// Writes it with all that is below it; names begin with its own.
    pub fn pack(&self, out: &mut dyn Write) -> io::Result<()> {
        pack(self.parent.as_fd(), &self.name, &self.name, out, 0)?;
        gotar::write_end(out)?;
        out.flush()
    }
}

/// Writes the content of the folder at `path`, without the folder itself.
pub fn pack_content(root: BorrowedFd<'_>, path: &str, out: &mut dyn Write) -> io::Result<()> {
    let folder = open(root, path, OFlags::RDONLY | OFlags::DIRECTORY)?;
    for name in names(&folder)? {
        pack(folder.as_fd(), &name, &name, out, 0)?;
    }
    gotar::write_end(out)?;
    out.flush()
}

/// Unpacks a tar into the folder `path`, which exists.
pub fn unpack(tree: &Tree, path: &str, tar: &mut dyn Read) -> Result<(), LayerError> {
    let path = base::path::absolute(path);
    let inner = path.trim_start_matches('/');
    snapshot::layer::unpack(tree, inner.as_bytes(), tar, &Limits::default(), None)?;
    // Whoever sends wants to be read to the end.
    _ = io::copy(tar, &mut io::sink());
    Ok(())
}

fn open(root: BorrowedFd<'_>, path: &str, flags: OFlags) -> io::Result<OwnedFd> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    Ok(openat2(root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve)?)
}

fn kind(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

fn names(folder: &OwnedFd) -> io::Result<Vec<Vec<u8>>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(folder)? {
        let name = entry?.file_name().to_bytes().to_vec();
        if name != b"." && name != b".." {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

fn pack(
    parent: BorrowedFd<'_>,
    name: &[u8],
    shown: &[u8],
    out: &mut dyn Write,
    depth: usize,
) -> io::Result<()> {
    if depth > MAX_DEPTH {
        return Err(io::Error::other("folders are nested too deeply"));
    }
    let path = OsStr::from_bytes(name);
    let stat = statat(parent, path, AtFlags::SYMLINK_NOFOLLOW)?;
    let mut header = Header::file(shown, stat.st_mode & 0o7777, 0);
    (header.uid, header.gid, header.mtime) = (stat.st_uid, stat.st_gid, stat.st_mtime as i64);
    let nofollow = OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match kind(&stat) {
        FileType::Directory => {
            header.kind = Kind::Folder;
            header.name.push(b'/');
            header.write(out)?;
            let folder =
                openat(parent, path, nofollow | OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())?;
            for name in names(&folder)? {
                let shown = [shown, b"/", &name].concat();
                pack(folder.as_fd(), &name, &shown, out, depth + 1)?;
            }
        }
        FileType::RegularFile => {
            // Never a device or pipe that took the name meanwhile.
            let flags = nofollow | OFlags::RDONLY | OFlags::NONBLOCK;
            let file = File::from(openat(parent, path, flags, Mode::empty())?);
            let size = file.metadata()?.len();
            header.size = size;
            header.write(out)?;
            let copied = io::copy(&mut file.take(size), out)?;
            // A file that shrank while it was read.
            io::copy(&mut io::repeat(0).take(size - copied), out)?;
            gotar::write_padding(out, size)?;
        }
        FileType::Symlink => {
            header.kind = Kind::Symlink;
            header.link = readlinkat(parent, path, Vec::new())?.into_bytes();
            header.write(out)?;
        }
        other => {
            header.kind = match other {
                FileType::CharacterDevice => Kind::CharDevice,
                FileType::BlockDevice => Kind::BlockDevice,
                FileType::Fifo => Kind::Fifo,
                // Sockets mean nothing elsewhere.
                _ => return Ok(()),
            };
            let device = stat.st_rdev as u64;
            header.device = (rustix::fs::major(device), rustix::fs::minor(device));
            header.write(out)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn out_and_in_again_without_leaving_the_root() {
        let folder = tempfile::tempdir().unwrap();
        let from = folder.path().join("from");
        std::fs::create_dir_all(from.join("a/b")).unwrap();
        std::fs::write(from.join("a/b/file"), "text").unwrap();
        std::os::unix::fs::symlink("/etc", from.join("a/out")).unwrap();
        std::os::unix::fs::symlink("b/file", from.join("a/link")).unwrap();
        let root = File::open(&from).unwrap();
        let info = |path: &str, follow| {
            let found = Found::at(root.as_fd(), path, follow).map(|found| found.info());
            found.map(|info| (info.name, info.folder, info.exists)).map_err(|error| error.kind())
        };
        assert_eq!(info("/a/link", true), Ok(("file".into(), false, true)));
        assert_eq!(info("a/link", false), Ok(("link".into(), false, true)));
        assert_eq!(info("/a/nothing", true), Ok(("nothing".into(), false, false)));
        // There is no /etc in the root that the link leads to.
        assert_eq!(info("/a/out/passwd", true), Err(io::ErrorKind::NotFound));
        assert_eq!(info("/", true), Ok((".".into(), true, true)));

        let mut tar = Vec::new();
        Found::at(root.as_fd(), "/a", true).unwrap().pack(&mut tar).unwrap();
        let to = folder.path().join("to");
        std::fs::create_dir(&to).unwrap();
        let tree = Tree::of_folder(&to, true).unwrap();
        unpack(&tree, "/", &mut &tar[..]).unwrap();
        assert_eq!(std::fs::read_to_string(to.join("a/b/file")).unwrap(), "text");
        assert_eq!(std::fs::read_link(to.join("a/link")).unwrap().to_str(), Some("b/file"));
    }
}
