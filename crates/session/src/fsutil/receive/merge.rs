//! Compares a listing with what the destination has, folder by folder.
//!
//! The listing is in order, and so are the names of each folder on disk: names that the listing
//! passes over are deleted, equal entries are kept, the rest is made anew. Links and folder
//! metadata are only noted here and applied by [`Merged::complete`], children before parents.

use std::{
    cmp::Ordering,
    collections::HashSet,
    ffi::CStr,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    sync::Arc,
};

use base::gomode;
use bytes::Bytes;
use rustix::{
    fs::{AtFlags, Mode, OFlags},
    io::Errno,
};
use tokio::sync::mpsc;

use super::{
    super::{
        METADATA_FILE, PacketType, Stat, TransferError, packet,
        stat::{self, SeenFiles},
        walk::{Name, open_folder, read_names},
        write::{self, FolderCache},
    },
    Change, Differ, Job, Listed, Shared,
};

/// What remains to be done once all content is written.
#[derive(Default)]
pub(crate) struct Merged {
    /// Files asked for.
    pub(crate) requested: u64,
    /// Entries changed so far.
    pub(crate) changed: u64,
    links: Vec<Stat>,
    kept_links: Vec<Stat>,
    folders: Vec<Finish>,
}

/// A folder to finish.
struct Finish {
    stat: Stat,
    /// Owner and mode too, not only the time.
    metadata: bool,
    /// Nothing else would count it as a change.
    only_time: bool,
}

struct Frame {
    /// With a trailing slash; empty for the root.
    prefix: String,
    folder: OwnedFd,
    existing: std::iter::Peekable<std::vec::IntoIter<Name>>,
    stat: Option<Stat>,
    metadata: bool,
    /// Its time is not the listed one, or was disturbed by us.
    time: bool,
    touched: bool,
}

struct Merge<'a> {
    shared: &'a Shared,
    frames: Vec<Frame>,
    seen: SeenFiles,
    /// Files made anew: links to them must be made anew too.
    renewed: HashSet<String>,
    out: Merged,
}

pub(crate) fn run(
    shared: &Shared,
    mut listing: mpsc::Receiver<Listed>,
) -> Result<Merged, TransferError> {
    let root = open_folder(shared.root.as_fd(), c".")
        .map_err(TransferError::os("open destination folder"))?;
    let mut merge = Merge {
        shared,
        frames: Vec::new(),
        seen: SeenFiles::new(),
        renewed: HashSet::new(),
        out: Merged::default(),
    };
    merge.enter(String::new(), root, None, false, false, false)?;
    loop {
        match listing.blocking_recv() {
            Some(Listed::Entry { id, stat }) => merge.entry(id, stat)?,
            Some(Listed::End) => break,
            None => return Err(TransferError::Closed),
        }
        if shared.stopped() {
            return Err(TransferError::Closed);
        }
    }
    while !merge.frames.is_empty() {
        merge.leave()?;
    }
    Ok(merge.out)
}

impl Merge<'_> {
    fn enter(
        &mut self,
        prefix: String,
        folder: OwnedFd,
        stat: Option<Stat>,
        is_new: bool,
        metadata: bool,
        time: bool,
    ) -> Result<(), TransferError> {
        let mut names = Vec::new();
        // In merge mode what exists is of interest only where something arrives.
        if !self.shared.options.merge && !is_new {
            names = read_names(folder.as_fd())
                .map_err(TransferError::os(format!("list folder {prefix:?}")))?;
        }
        let existing = names.into_iter().peekable();
        self.frames.push(Frame { prefix, folder, existing, stat, metadata, time, touched: false });
        Ok(())
    }

    /// Finishes the innermost folder: what is left on disk was not listed.
    fn leave(&mut self) -> Result<(), TransferError> {
        self.delete_before(None)?;
        let frame = self.frames.pop().expect("a folder is left once");
        if let Some(stat) = frame.stat
            && (frame.metadata || frame.time || frame.touched)
        {
            let only_time = frame.time && !frame.metadata && !frame.touched;
            self.out.folders.push(Finish { stat, metadata: frame.metadata, only_time });
        }
        Ok(())
    }

    fn frame(&mut self) -> &mut Frame {
        self.frames.last_mut().expect("the root stays until the listing ends")
    }

    fn entry(&mut self, id: u32, stat: Stat) -> Result<(), TransferError> {
        let (folder, _) = write::split(&stat.path);
        while !is_prefix(&self.frame().prefix, folder) {
            self.leave()?;
        }
        let name = write::c_name(&stat.path)?;
        let found = if self.shared.options.merge {
            let folder = self.frame().folder.as_fd();
            match stat::statx(folder, &name) {
                Ok(_) => true,
                Err(Errno::NOENT) => false,
                Err(errno) => {
                    return Err(TransferError::os(format!("stat {}", stat.path))(errno));
                }
            }
        } else {
            self.delete_before(Some(&name))?;
            self.frame().existing.next_if(|next| *next.name == *name).is_some()
        };
        let old = match found {
            false => None,
            true => {
                let path = stat.path.clone();
                let folder = self.frames.last().expect("a folder is open").folder.as_fd();
                let (mut old, _) = stat::build(folder, &name, path, &mut self.seen)?;
                if old.mode & gomode::SYMLINK == 0 && !old.linkname.is_empty() {
                    old.size = 0;
                }
                Some(old)
            }
        };
        if stat.mode & gomode::DIR != 0 {
            return self.folder(&name, stat, old);
        }
        if let Some(old) = &old
            && !self.shared.options.merge
            && self.shared.options.differ == Differ::Metadata
            && same(old, &stat)
            && !(is_hard_link(&stat) && self.renewed.contains(&stat.linkname))
        {
            return self.keep(&name, &stat);
        }
        self.frame().touched = true;
        self.out.changed += 1;
        let replaces = match old {
            Some(old) if old.mode & gomode::DIR != 0 => {
                self.remove(&name, &stat.path)?;
                false
            }
            old => old.is_some(),
        };
        if is_hard_link(&stat) {
            self.renewed.insert(stat.path.clone());
            self.out.links.push(stat);
            Ok(())
        } else if gomode::is_regular(stat.mode) {
            self.request(id, stat, replaces);
            Ok(())
        } else {
            self.special(&name, &stat, replaces)
        }
    }

    fn request(&mut self, id: u32, stat: Stat, replaces: bool) {
        self.renewed.insert(stat.path.clone());
        self.out.requested += 1;
        self.shared.requested.insert(id, Arc::new(Job { stat, replaces }));
        _ = self.shared.outgoing.send(packet(PacketType::PacketReq, id, Bytes::new()));
    }

    fn folder(&mut self, name: &CStr, stat: Stat, old: Option<Stat>) -> Result<(), TransferError> {
        let path = stat.path.clone();
        let is_new = match &old {
            Some(old) if old.mode & gomode::DIR != 0 => false,
            Some(_) => {
                self.remove(name, &path)?;
                true
            }
            None => true,
        };
        let parent = self.frame();
        if is_new {
            parent.touched = true;
            // The listed mode might forbid what is still to be written inside.
            rustix::fs::mkdirat(&parent.folder, name, Mode::RWXU)
                .map_err(TransferError::os(format!("create folder {path}")))?;
        }
        let folder = open_folder(parent.folder.as_fd(), name)
            .map_err(TransferError::os(format!("open folder {path}")))?;
        let differs = old.as_ref().is_none_or(|old| {
            is_new
                || self.shared.options.merge
                || self.shared.options.differ == Differ::None
                || !same(old, &stat)
        });
        let time = old.is_none_or(|old| old.mod_time != stat.mod_time);
        if differs {
            self.out.changed += 1;
        }
        if differs || self.shared.options.tell_unchanged {
            self.shared.tell_put(&stat, self.shared.hasher(&stat));
        }
        self.enter(format!("{path}/"), folder, Some(stat), is_new, differs, time)
    }

    fn special(&mut self, name: &CStr, stat: &Stat, replaces: bool) -> Result<(), TransferError> {
        let folder = self.frame().folder.as_fd();
        let make = || {
            if !replaces {
                return write::create_special(folder, name, stat);
            }
            let temporary = write::temporary();
            write::create_special(folder, &temporary, stat)?;
            write::replace(folder, &temporary, name)
        };
        make().map_err(TransferError::os(format!("create {}", stat.path)))?;
        self.shared.tell_put(stat, self.shared.hasher(stat));
        Ok(())
    }

    /// An entry that is equal already.
    fn keep(&mut self, name: &CStr, stat: &Stat) -> Result<(), TransferError> {
        if !self.shared.options.tell_unchanged {
            return Ok(());
        }
        if is_hard_link(stat) {
            // After those links whose target is told only when its content is written.
            self.out.kept_links.push(stat.clone());
            return Ok(());
        }
        let Some(mut hasher) = self.shared.hasher(stat) else { return Ok(()) };
        if gomode::is_regular(stat.mode) {
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let doing = || format!("read {}", stat.path);
            let file = rustix::fs::openat(&self.frame().folder, name, flags, Mode::empty())
                .map_err(TransferError::os(doing()))?;
            std::io::copy(&mut std::fs::File::from(file), &mut hasher)
                .map_err(TransferError::io(doing()))?;
        }
        self.shared.tell_put(stat, Some(hasher));
        Ok(())
    }

    /// Deletes existing names before `name` (or all).
    fn delete_before(&mut self, name: Option<&CStr>) -> Result<(), TransferError> {
        loop {
            let is_root = self.frames.len() == 1;
            let frame = self.frame();
            let before =
                |next: &Name| name.is_none_or(|name| (*next.name).cmp(name) == Ordering::Less);
            let Some(gone) = frame.existing.next_if(before) else { return Ok(()) };
            // Our own listing file is compared and replaced at the end.
            let keep = is_root
                && gone.name.to_bytes() == METADATA_FILE.as_bytes()
                && self.shared.options.content_of.is_some();
            if keep {
                continue;
            }
            let frame = self.frame();
            frame.touched = true;
            let path = format!("{}{}", frame.prefix, gone.name.to_string_lossy());
            self.out.changed += 1;
            self.remove(&gone.name, &path)?;
        }
    }

    fn remove(&mut self, name: &CStr, path: &str) -> Result<(), TransferError> {
        write::remove_all(self.frame().folder.as_fd(), name)
            .map_err(TransferError::os(format!("remove {path}")))?;
        self.shared.tell(Change::Remove { path });
        Ok(())
    }
}

fn is_prefix(prefix: &str, folder: &str) -> bool {
    match prefix.strip_suffix('/') {
        Some(open) => open == folder,
        None => folder.is_empty(),
    }
}

fn is_hard_link(stat: &Stat) -> bool {
    gomode_plain(stat) && !stat.linkname.is_empty()
}

fn gomode_plain(stat: &Stat) -> bool {
    stat.mode & (gomode::DIR | gomode::SYMLINK) == 0
}

/// Equal for the metadata differ; extended attributes do not count.
fn same(old: &Stat, new: &Stat) -> bool {
    let metadata = old.mode == new.mode
        && old.uid == new.uid
        && old.gid == new.gid
        && old.devmajor == new.devmajor
        && old.devminor == new.devminor
        && old.linkname == new.linkname;
    metadata
        && (new.mode & gomode::DIR != 0 || old.size == new.size && old.mod_time == new.mod_time)
}

impl Merged {
    /// Makes the links, finishes the folders and stores the listing if there is one to store.
    /// Returns how many more entries changed.
    pub(crate) fn complete(
        mut self,
        shared: &Shared,
        listing: Option<&[u8]>,
    ) -> Result<u64, TransferError> {
        let root = shared.root.as_fd();
        let mut folders = FolderCache::new();
        let mut targets = FolderCache::new();
        for stat in &self.links {
            let doing = || format!("link {} to {}", stat.path, stat.linkname);
            let folder = folders.open(root, write::split(&stat.path).0)?;
            let target_folder = targets.open(root, write::split(&stat.linkname).0)?;
            link(folder, stat, target_folder).map_err(|errno| TransferError::os(doing())(errno))?;
            shared.tell(Change::Link { stat });
        }
        for stat in &self.kept_links {
            shared.tell(Change::Link { stat });
        }
        let mut changed = 0;
        if let Some(listing) = listing {
            changed += u64::from(store_listing(root, listing)?);
        }
        // A folder is noted when it is left, so children come before their parents.
        let mut folders = FolderCache::new();
        for Finish { stat, metadata, only_time } in self.folders.drain(..) {
            let folder = folders.open(root, write::split(&stat.path).0)?;
            let name = write::c_name(&stat.path)?;
            let done = match metadata {
                true => write::finish_other(folder, &name, &stat, true),
                false => write::set_time(folder, &name, stat.mod_time),
            };
            done.map_err(TransferError::os(format!("set metadata of {}", stat.path)))?;
            changed += u64::from(only_time);
        }
        Ok(changed)
    }
}

fn link(folder: BorrowedFd<'_>, stat: &Stat, target_folder: BorrowedFd<'_>) -> Result<(), Errno> {
    let c_string = |path: &str| write::c_name(path).map_err(|_| Errno::INVAL);
    let (name, target) = (c_string(&stat.path)?, c_string(&stat.linkname)?);
    let flags = AtFlags::empty();
    match rustix::fs::linkat(target_folder, &target, folder, &name, flags) {
        Err(Errno::EXIST) => {}
        other => return other,
    }
    let temporary = write::temporary();
    rustix::fs::linkat(target_folder, &target, folder, &temporary, flags)?;
    write::replace(folder, &temporary, &name)?;
    // Renaming onto another name of the same file does nothing and leaves both.
    match rustix::fs::unlinkat(folder, &temporary, AtFlags::empty()) {
        Err(Errno::NOENT) => Ok(()),
        other => other,
    }
}

/// Stores the listing beside the tree; false if it is there already.
fn store_listing(root: BorrowedFd<'_>, listing: &[u8]) -> Result<bool, TransferError> {
    use std::{fs::File, io::Read as _, io::Write as _};

    let name = c".fsutil-metadata";
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    if let Ok(old) = rustix::fs::openat(root, name, flags, Mode::empty()) {
        let mut bytes = Vec::new();
        let read = File::from(old).take(listing.len() as u64 + 1).read_to_end(&mut bytes);
        if read.is_ok() && bytes == listing {
            return Ok(false);
        }
    }
    let temporary = write::temporary();
    let make = || -> std::io::Result<()> {
        let mut file = File::from(write::create_file(root, &temporary)?);
        file.write_all(listing)?;
        rustix::fs::fchmod(&file, Mode::from_raw_mode(0o644))?;
        Ok(write::replace(root, &temporary, name)?)
    };
    make().map_err(TransferError::io(format!("write {METADATA_FILE}")))?;
    Ok(true)
}
