//! Carries one entry over: content, owner, mode, times, extended attributes.

use std::{
    cell::RefCell,
    fs::File,
    io::{self, Read as _, Write as _},
    os::fd::{AsFd, BorrowedFd},
};

use rustix::{
    fs::{Mode, OFlags, SeekFrom},
    io::Errno,
};

use crate::{
    Brake,
    layer::is_overlay_private,
    sys::{self, At, Meta, SysResult},
};

/// Largest piece of content in memory. Reading and writing in such pieces beats
/// `copy_file_range` on ext4, which falls back to page-sized splicing there.
const PIECE: usize = 1 << 20;

thread_local! {
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Copies the content of `source` into the empty file `target`: shared blocks where the file system
/// can, else bytes, keeping the holes of sparse files.
pub(crate) fn content(
    source: &File,
    target: &File,
    meta: &Meta,
    brake: Option<&Brake>,
) -> io::Result<()> {
    if meta.size == 0 {
        return Ok(());
    }
    if rustix::fs::ioctl_ficlone(target, source).is_ok() {
        return Ok(());
    }
    if meta.blocks.saturating_mul(512) < meta.size {
        return sparse(source, target, meta.size, brake);
    }
    copy_bytes(source, target, (u64::MAX, meta.size), brake).map(drop)
}

/// Copies at most `most` bytes from where both stand; `hint` sizes the buffer.
fn copy_bytes(
    mut source: &File,
    mut target: &File,
    (most, hint): (u64, u64),
    brake: Option<&Brake>,
) -> io::Result<u64> {
    BUFFER.with_borrow_mut(|buffer| {
        // One byte more than the file has, so that a single read sees its end.
        let size = usize::try_from(hint.min(most).saturating_add(1)).unwrap_or(PIECE).min(PIECE);
        if buffer.len() < size {
            buffer.resize(size, 0);
        }
        let mut copied = 0;
        while copied < most {
            let piece = usize::try_from(most - copied).unwrap_or(usize::MAX).min(buffer.len());
            let length = match source.read(&mut buffer[..piece]) {
                Ok(0) => break,
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            brake.map_or(Ok(()), Brake::check)?;
            target.write_all(&buffer[..length])?;
            copied += length as u64;
            if length < piece && copied == hint {
                break;
            }
        }
        Ok(copied)
    })
}

fn sparse(source: &File, target: &File, size: u64, brake: Option<&Brake>) -> io::Result<()> {
    target.set_len(size)?;
    let mut at = 0;
    while at < size {
        let data = match rustix::fs::seek(source, SeekFrom::Data(at)) {
            Ok(data) => data,
            Err(Errno::NXIO) => return Ok(()),
            // No knowledge of holes: everything is data.
            Err(Errno::INVAL) => at,
            Err(error) => return Err(error.into()),
        };
        let end = rustix::fs::seek(source, SeekFrom::Hole(data)).unwrap_or(size).max(data + 1);
        rustix::fs::seek(source, SeekFrom::Start(data))?;
        rustix::fs::seek(target, SeekFrom::Start(data))?;
        copy_bytes(source, target, (end - data, end - data), brake)?;
        at = end;
    }
    Ok(())
}

/// Copies extended attributes. The first that fails ends it silently, as the peer does; those that
/// belong to overlay itself are left out.
pub(crate) fn xattrs(source: At, target: At) {
    let Ok(names) = sys::list_xattrs(source) else { return };
    for key in names {
        if is_overlay_private(&key) {
            continue;
        }
        let Ok(Some(value)) = sys::get_xattr(source, &key) else { return };
        if let Err(error) = sys::set_xattr(target, &key, &value) {
            tracing::debug!("xattr {} is left out: {error}", String::from_utf8_lossy(&key));
            return;
        }
    }
}

/// Makes the file `name` for writing; the name must be free.
pub(crate) fn create_file(folder: impl AsFd, name: &[u8]) -> SysResult<File> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(folder, name, flags, Mode::from_raw_mode(0o600)).map(File::from)
}

/// Copies anything but a folder exactly as it is; the target's name must be free.
pub(crate) fn entry_as_is(
    (source, from, meta): (BorrowedFd<'_>, &[u8], &Meta),
    (target, to): (BorrowedFd<'_>, &[u8]),
) -> SysResult<()> {
    let raw = |error: io::Error| Errno::from_io_error(&error).unwrap_or(Errno::IO);
    match meta.kind() {
        sys::FILE => {
            let input = File::from(sys::open_file(source, from)?);
            let output = create_file(target, to)?;
            content(&input, &output, meta, None).map_err(raw)?;
            sys::chown_fd(&output, meta.uid, meta.gid)?;
            sys::chmod_fd(&output, meta.mode)?;
            xattrs(At::Fd(input.as_fd()), At::Fd(output.as_fd()));
            return sys::set_times_fd(&output, meta.atime, meta.mtime);
        }
        sys::SYMLINK => {
            rustix::fs::symlinkat(&sys::read_link(source, from)?[..], target, to)?;
        }
        kind => sys::make_node(target, to, kind, 0o600, meta.rdev)?,
    }
    sys::chown(target, to, meta.uid, meta.gid)?;
    if !meta.is_symlink() {
        sys::chmod(target, to, meta.mode)?;
    }
    xattrs(At::Name(source, from), At::Name(target, to));
    sys::set_times(target, to, meta.atime, meta.mtime)
}
