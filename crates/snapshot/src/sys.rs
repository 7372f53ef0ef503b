//! The few system calls everything here is made of, over raw names and descriptors.
//!
//! Names are bytes, because file systems know no encoding. Nothing here follows a symlink in the
//! last component, and multi-component paths go through [`crate::scoped`].

use std::{
    mem::MaybeUninit,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::PathBuf,
};

use rustix::{
    fs::{AtFlags, FileType, Mode, OFlags, RawDir, StatxFlags, Timespec, Timestamps, XattrFlags},
    io::Errno,
};

pub(crate) type SysResult<T> = rustix::io::Result<T>;

/// Folders nested deeper than this are refused by everything that recurses, because each level
/// holds descriptors and stack.
pub(crate) const MAX_DEPTH: usize = 500;

/// Space for reading folder entries.
const DIR_BUFFER: usize = 32 << 10;

pub(crate) const TYPE_MASK: u32 = 0o170_000;
pub(crate) const DIR: u32 = 0o040_000;
pub(crate) const FILE: u32 = 0o100_000;
pub(crate) const SYMLINK: u32 = 0o120_000;
pub(crate) const CHAR: u32 = 0o020_000;
pub(crate) const BLOCK: u32 = 0o060_000;
pub(crate) const FIFO: u32 = 0o010_000;
pub(crate) const SOCKET: u32 = 0o140_000;

/// Metadata of one entry.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Meta {
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub size: u64,
    pub links: u32,
    pub dev: (u32, u32),
    pub ino: u64,
    pub rdev: (u32, u32),
    pub blocks: u64,
    pub mtime: Time,
    pub atime: Time,
}

/// Seconds and nanoseconds since the epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) struct Time {
    pub sec: i64,
    pub nsec: u32,
}

impl Time {
    pub fn from_nanos(nanos: i64) -> Self {
        let nsec = nanos.rem_euclid(1_000_000_000);
        Self { sec: nanos.div_euclid(1_000_000_000), nsec: nsec as u32 }
    }

    fn spec(self) -> Timespec {
        Timespec { tv_sec: self.sec, tv_nsec: self.nsec.into() }
    }
}

impl Meta {
    pub fn kind(&self) -> u32 {
        self.mode & TYPE_MASK
    }

    pub fn is_dir(&self) -> bool {
        self.kind() == DIR
    }

    pub fn is_file(&self) -> bool {
        self.kind() == FILE
    }

    pub fn is_symlink(&self) -> bool {
        self.kind() == SYMLINK
    }

    /// The twelve permission bits.
    pub fn permissions(&self) -> u32 {
        self.mode & 0o7777
    }

    /// How overlay marks a removed name.
    pub fn is_whiteout(&self) -> bool {
        self.kind() == CHAR && self.rdev == (0, 0)
    }
}

fn meta(stat: rustix::fs::Statx) -> Meta {
    let time = |at: rustix::fs::StatxTimestamp| Time { sec: at.tv_sec, nsec: at.tv_nsec };
    Meta {
        mode: stat.stx_mode.into(),
        uid: stat.stx_uid,
        gid: stat.stx_gid,
        size: stat.stx_size,
        links: stat.stx_nlink,
        dev: (stat.stx_dev_major, stat.stx_dev_minor),
        ino: stat.stx_ino,
        rdev: (stat.stx_rdev_major, stat.stx_rdev_minor),
        blocks: stat.stx_blocks,
        mtime: time(stat.stx_mtime),
        atime: time(stat.stx_atime),
    }
}

/// Metadata of `name` in `dir`, of a link itself.
pub(crate) fn stat_at(dir: impl AsFd, name: &[u8]) -> SysResult<Meta> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    rustix::fs::statx(dir, name, flags, StatxFlags::BASIC_STATS).map(meta)
}

/// As [`stat_at`], `None` if there is no such name.
pub(crate) fn try_stat_at(dir: impl AsFd, name: &[u8]) -> SysResult<Option<Meta>> {
    match stat_at(dir, name) {
        Ok(meta) => Ok(Some(meta)),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Metadata of what is open.
pub(crate) fn stat_fd(fd: impl AsFd) -> SysResult<Meta> {
    rustix::fs::statx(fd, c"", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS).map(meta)
}

/// Opens the folder `name` for reading; a symlink is `NOTDIR` or `LOOP`.
pub(crate) fn open_dir(dir: impl AsFd, name: &[u8]) -> SysResult<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(dir, name, flags, Mode::empty())
}

/// Opens the regular file `name` for reading. A fifo put there meanwhile does not block.
pub(crate) fn open_file(dir: impl AsFd, name: &[u8]) -> SysResult<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    rustix::fs::openat(dir, name, flags, Mode::empty())
}

/// One name in a folder. The kind is a hint: `Unknown` on some file systems.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub name: Box<[u8]>,
    pub kind: FileType,
}

/// All names in a folder opened for reading, in no order.
pub(crate) fn read_dir(dir: impl AsFd) -> SysResult<Vec<Entry>> {
    rustix::fs::seek(&dir, rustix::fs::SeekFrom::Start(0))?;
    let mut space = [MaybeUninit::uninit(); DIR_BUFFER];
    let mut list = Vec::new();
    let mut iter = RawDir::new(dir, &mut space);
    while let Some(entry) = iter.next() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            list.push(Entry { name: name.into(), kind: entry.file_type() });
        }
    }
    Ok(list)
}

/// All names in a folder, by byte order.
pub(crate) fn read_dir_sorted(dir: impl AsFd) -> SysResult<Vec<Entry>> {
    let mut list = read_dir(dir)?;
    list.sort_unstable_by(|left, right| left.name.cmp(&right.name));
    Ok(list)
}

/// Text of the symlink `name`.
pub(crate) fn read_link(dir: impl AsFd, name: &[u8]) -> SysResult<Vec<u8>> {
    Ok(rustix::fs::readlinkat(dir, name, Vec::new())?.into_bytes())
}

/// A path of this process to `name` in `dir`, for the calls that take no folder descriptor. The
/// `l…` forms of those calls do not follow `name` itself.
pub(crate) fn proc_path(dir: impl AsFd, name: &[u8]) -> Vec<u8> {
    let mut path = format!("/proc/self/fd/{}/", dir.as_fd().as_raw_fd()).into_bytes();
    path.extend_from_slice(name);
    path
}

/// `/proc/self/fd/N`, which leads to what is open even if it is only a path.
pub(crate) fn fd_path(fd: impl AsFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd()))
}

/// Where extended attributes are read from or written to.
#[derive(Clone, Copy)]
pub(crate) enum At<'a> {
    /// An open file or folder.
    Fd(BorrowedFd<'a>),
    /// A name in a folder; a link itself.
    Name(BorrowedFd<'a>, &'a [u8]),
}

/// Names of all extended attributes, sorted; none where the file system has none.
pub(crate) fn list_xattrs(at: At) -> SysResult<Vec<Vec<u8>>> {
    let mut space = [MaybeUninit::<u8>::uninit(); 1024];
    let listed = match at {
        At::Fd(fd) => rustix::fs::flistxattr(fd, &mut space[..]).map(|(names, _)| names.to_vec()),
        At::Name(dir, name) => rustix::fs::llistxattr(&proc_path(dir, name)[..], &mut space[..])
            .map(|(names, _)| names.to_vec()),
    };
    let listed = match listed {
        Ok(listed) => listed,
        Err(Errno::NOTSUP | Errno::NOSYS) => return Ok(Vec::new()),
        Err(Errno::RANGE) => list_long(at)?,
        Err(error) => return Err(error),
    };
    let mut names: Vec<Vec<u8>> = listed
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
        .map(<[u8]>::to_vec)
        .collect();
    names.sort_unstable();
    Ok(names)
}

fn list_long(at: At) -> SysResult<Vec<u8>> {
    // 64 KiB is the kernel's own bound on a list and on a value.
    let mut space = vec![0u8; 64 << 10];
    let length = match at {
        At::Fd(fd) => rustix::fs::flistxattr(fd, &mut space[..])?,
        At::Name(dir, name) => rustix::fs::llistxattr(&proc_path(dir, name)[..], &mut space[..])?,
    };
    space.truncate(length);
    Ok(space)
}

/// Value of one extended attribute, `None` if it is not set or not supported.
pub(crate) fn get_xattr(at: At, key: &[u8]) -> SysResult<Option<Vec<u8>>> {
    let read = |space: &mut [u8]| match at {
        At::Fd(fd) => rustix::fs::fgetxattr(fd, key, space),
        At::Name(dir, name) => rustix::fs::lgetxattr(&proc_path(dir, name)[..], key, space),
    };
    let mut small = [0u8; 256];
    match read(&mut small) {
        Ok(length) => Ok(Some(small[..length].to_vec())),
        Err(Errno::NODATA | Errno::NOTSUP | Errno::NOSYS) => Ok(None),
        Err(Errno::RANGE) => {
            let mut large = vec![0u8; 64 << 10];
            let length = read(&mut large)?;
            large.truncate(length);
            Ok(Some(large))
        }
        Err(error) => Err(error),
    }
}

/// Sets one extended attribute.
pub(crate) fn set_xattr(at: At, key: &[u8], value: &[u8]) -> SysResult<()> {
    match at {
        At::Fd(fd) => rustix::fs::fsetxattr(fd, key, value, XattrFlags::empty()),
        At::Name(dir, name) => {
            rustix::fs::lsetxattr(&proc_path(dir, name)[..], key, value, XattrFlags::empty())
        }
    }
}

/// Sets access and modification time of `name`, of a link itself.
pub(crate) fn set_times(dir: impl AsFd, name: &[u8], atime: Time, mtime: Time) -> SysResult<()> {
    let times = Timestamps { last_access: atime.spec(), last_modification: mtime.spec() };
    rustix::fs::utimensat(dir, name, &times, AtFlags::SYMLINK_NOFOLLOW)
}

/// Sets the times of what is open for reading or writing.
pub(crate) fn set_times_fd(fd: impl AsFd, atime: Time, mtime: Time) -> SysResult<()> {
    let times = Timestamps { last_access: atime.spec(), last_modification: mtime.spec() };
    rustix::fs::futimens(fd, &times)
}

/// Changes the owner of `name`, of a link itself.
pub(crate) fn chown(dir: impl AsFd, name: &[u8], uid: u32, gid: u32) -> SysResult<()> {
    let (uid, gid) = ids(uid, gid);
    rustix::fs::chownat(dir, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)
}

/// Changes the owner of what is open.
pub(crate) fn chown_fd(fd: impl AsFd, uid: u32, gid: u32) -> SysResult<()> {
    let (uid, gid) = ids(uid, gid);
    rustix::fs::fchown(fd, uid, gid)
}

fn ids(uid: u32, gid: u32) -> (Option<rustix::process::Uid>, Option<rustix::process::Gid>) {
    // The all-ones id means "leave" to the kernel and is no owner a file can have.
    let uid = (uid != u32::MAX).then(|| rustix::process::Uid::from_raw(uid));
    let gid = (gid != u32::MAX).then(|| rustix::process::Gid::from_raw(gid));
    (uid, gid)
}

/// Changes the permission bits of `name`, which must not be a symlink (it would be followed; the
/// callers have just made or checked the name).
pub(crate) fn chmod(dir: impl AsFd, name: &[u8], mode: u32) -> SysResult<()> {
    rustix::fs::chmodat(dir, name, mode_bits(mode), AtFlags::empty())
}

/// Changes the permission bits of what is open for reading or writing.
pub(crate) fn chmod_fd(fd: impl AsFd, mode: u32) -> SysResult<()> {
    rustix::fs::fchmod(fd, mode_bits(mode))
}

/// The twelve permission bits as the call wants them.
pub(crate) fn mode_bits(mode: u32) -> Mode {
    Mode::from_raw_mode(mode & 0o7777)
}

/// Makes a fifo, device, socket or empty file.
pub(crate) fn make_node(
    dir: impl AsFd,
    name: &[u8],
    kind: u32,
    mode: u32,
    rdev: (u32, u32),
) -> SysResult<()> {
    let device = rustix::fs::makedev(rdev.0, rdev.1);
    rustix::fs::mknodat(dir, name, FileType::from_raw_mode(kind), mode_bits(mode), device)
}

/// Makes what overlay takes as a removed name.
pub(crate) fn make_whiteout(dir: impl AsFd, name: &[u8]) -> SysResult<()> {
    make_node(dir, name, CHAR, 0, (0, 0))
}

/// Removes `name`, whatever it is, with everything below it. Missing is fine.
pub(crate) fn remove_all(dir: BorrowedFd<'_>, name: &[u8]) -> SysResult<()> {
    match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(error) => return Err(error),
    }
    match rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::NOTEMPTY | Errno::EXIST) => {}
        Err(error) => return Err(error),
    }
    empty_dir(dir, name)?;
    match rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR) {
        Err(Errno::NOENT) => Ok(()),
        other => other,
    }
}

/// Folders deeper than this are lifted up by renaming, so that the depth of a tree costs neither
/// stack nor descriptors.
const REMOVE_DEPTH: usize = 64;

/// Removes everything in the folder `name`, of any depth.
fn empty_dir(dir: BorrowedFd<'_>, name: &[u8]) -> SysResult<()> {
    let top = open_dir(dir, name)?;
    let mut lifted = 0u64;
    let mut stack: Vec<(OwnedFd, Vec<Box<[u8]>>, Box<[u8]>)> = Vec::new();
    let subfolders = unlink_files(&top)?;
    stack.push((rustix::io::fcntl_dupfd_cloexec(&top, 0)?, subfolders, Box::from(&b""[..])));
    loop {
        let depth = stack.len();
        let Some((fd, subfolders, _)) = stack.last_mut() else { return Ok(()) };
        let Some(next) = subfolders.pop() else {
            let (fd, _, own) = stack.pop().expect("just seen");
            drop(fd);
            match stack.last() {
                Some((parent, ..)) => {
                    match rustix::fs::unlinkat(parent, &own[..], AtFlags::REMOVEDIR) {
                        Ok(()) | Err(Errno::NOENT) => {}
                        Err(error) => return Err(error),
                    }
                }
                None => {
                    // The folder itself is done unless something was lifted into it meanwhile.
                    let rest = unlink_files(&top)?;
                    if !rest.is_empty() {
                        let again = rustix::io::fcntl_dupfd_cloexec(&top, 0)?;
                        stack.push((again, rest, Box::from(&b""[..])));
                    }
                }
            }
            continue;
        };
        match rustix::fs::unlinkat(&*fd, &next[..], AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => continue,
            Err(Errno::NOTEMPTY | Errno::EXIST) => {}
            Err(error) => return Err(error),
        }
        if depth >= REMOVE_DEPTH {
            lifted += 1;
            let aside = format!(".lifted-{lifted}-{}", base::id::random_hex(4));
            rustix::fs::renameat(&*fd, &next[..], &top, aside.as_bytes())?;
            continue;
        }
        let child = open_dir(&*fd, &next)?;
        let below = unlink_files(&child)?;
        stack.push((child, below, next));
    }
}

/// Removes all non-folders in a folder and names its sub folders.
fn unlink_files(dir: &OwnedFd) -> SysResult<Vec<Box<[u8]>>> {
    let mut folders = Vec::new();
    for entry in read_dir(dir)? {
        if entry.kind == FileType::Directory {
            folders.push(entry.name);
            continue;
        }
        match rustix::fs::unlinkat(dir, &entry.name[..], AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(Errno::ISDIR | Errno::PERM) if entry.kind == FileType::Unknown => {
                folders.push(entry.name);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(folders)
}
