//! Lists a folder on disk in wire order, skipping what a filter shuts out.
//!
//! Names are read per folder and sorted; a file is looked at only if the filter lets it through,
//! a folder is entered only if something below it can pass. What vanishes meanwhile is left out.

use std::{
    ffi::{CStr, CString},
    mem::MaybeUninit,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
};

use base::gomode;
use rustix::{
    fs::{FileType, Mode, OFlags, RawDir},
    io::Errno,
};

use super::{
    Filter, Stat, TransferError,
    filter::{Matched, Verdict},
    stat::{self, SeenFiles},
};

/// One name in a folder.
pub(crate) struct Name {
    pub(crate) name: CString,
    pub(crate) kind: FileType,
}

/// All names in a folder, in byte order.
pub(crate) fn read_names(folder: BorrowedFd<'_>) -> Result<Vec<Name>, Errno> {
    let mut buffer = [MaybeUninit::uninit(); 32 << 10];
    let mut names = Vec::new();
    let mut entries = RawDir::new(folder, &mut buffer);
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        names.push(Name { name: name.to_owned(), kind: entry.file_type() });
    }
    names.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    Ok(names)
}

/// Opens a folder by its name in another one, never through a link.
pub(crate) fn open_folder(folder: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(folder, name, flags, Mode::empty())
}

struct Frame {
    folder: OwnedFd,
    /// Path with a trailing slash; empty for the root.
    prefix: String,
    names: std::vec::IntoIter<Name>,
    matched: Option<Matched>,
    /// The folder's own entry, until it is sent.
    unsent: Option<Stat>,
}

/// Lists everything below `root` that passes `filter`.
pub fn walk(
    root: BorrowedFd<'_>,
    filter: &Filter,
    visit: &mut dyn FnMut(Stat) -> Result<(), TransferError>,
) -> Result<(), TransferError> {
    let mut seen = SeenFiles::new();
    // A descriptor of our own: reading a folder moves its position.
    let root = open_folder(root, c".").map_err(TransferError::os("open folder to send"))?;
    let names = read_names(root.as_fd()).map_err(TransferError::os("list folder to send"))?;
    let mut frames = vec![Frame {
        folder: root,
        prefix: String::new(),
        names: names.into_iter(),
        matched: None,
        unsent: None,
    }];
    while let Some(frame) = frames.last_mut() {
        let Some(name) = frame.names.next() else {
            frames.pop();
            continue;
        };
        let text = name
            .name
            .to_str()
            .map_err(|_| TransferError::NotText(name.name.to_string_lossy().into()))?;
        let path = format!("{}{text}", frame.prefix);
        let mut is_dir = name.kind == FileType::Directory;
        if name.kind == FileType::Unknown {
            match stat::statx(&frame.folder, &name.name) {
                Ok(found) => is_dir = u32::from(found.stx_mode) & 0o170_000 == 0o040_000,
                Err(Errno::NOENT) => continue,
                Err(errno) => return Err(TransferError::os(format!("stat {path}"))(errno)),
            }
        }
        let (verdict, matched) = filter.judge(&path, is_dir, frame.matched.as_ref());
        if verdict == Verdict::Skip || verdict == Verdict::Look && !is_dir {
            continue;
        }
        let folder = frame.folder.as_fd();
        let mut entry = match stat::build(folder, &name.name, path.clone(), &mut seen) {
            Ok((entry, _)) => entry,
            Err(TransferError::Io { source, .. }) if vanished(&source) => continue,
            Err(error) => return Err(error),
        };
        entry.xattrs = stat::xattrs(folder, &name.name)
            .map_err(TransferError::os(format!("read extended attributes of {path}")))?;
        let entered = if is_dir { Some(open_folder(folder, &name.name)) } else { None };
        // A folder that only may hold something is sent together with the first such entry.
        let unsent = if verdict == Verdict::Take {
            for frame in &mut frames {
                if let Some(parent) = frame.unsent.take() {
                    visit(parent)?;
                }
            }
            let is_dir = entry.mode & gomode::DIR != 0;
            visit(entry)?;
            if !is_dir {
                continue;
            }
            None
        } else {
            Some(entry)
        };
        match entered {
            Some(Ok(folder)) => {
                let names = read_names(folder.as_fd())
                    .map_err(TransferError::os(format!("list folder {path}")))?;
                frames.push(Frame {
                    folder,
                    prefix: format!("{path}/"),
                    names: names.into_iter(),
                    matched: Some(matched),
                    unsent,
                });
            }
            Some(Err(Errno::NOENT | Errno::NOTDIR)) | None => {}
            // What is shut out need not be readable.
            Some(Err(Errno::ACCESS | Errno::PERM)) if unsent.is_some() => {}
            Some(Err(errno)) => {
                return Err(TransferError::os(format!("open folder {path}"))(errno));
            }
        }
    }
    Ok(())
}

fn vanished(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory)
}
