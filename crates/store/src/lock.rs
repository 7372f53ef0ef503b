//! One daemon per state folder.
//!
//! The lock is held by an open file (`flock`), so it ends with the process however that ends. The
//! file's text is the holder's process id, for people and for the error message only.

use std::{
    fs::File,
    io::{Read as _, Seek as _, Write as _},
    path::Path,
};

use rustix::fs::{FlockOperation, flock};

use crate::{StoreError, error::Doing as _};

/// Holds the state folder while it lives.
#[derive(Debug)]
pub(crate) struct FolderLock {
    _file: File,
}

impl FolderLock {
    /// Takes the lock at `path` without waiting.
    pub(crate) fn take(path: &Path) -> Result<Self, StoreError> {
        let mut file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .doing(|| format!("open lock file {}", path.display()))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let mut text = String::new();
                _ = file.read_to_string(&mut text);
                return Err(StoreError::Locked {
                    path: path.to_owned(),
                    holder: text.trim().parse().ok(),
                });
            }
            Err(errno) => return Err(errno).doing(|| format!("lock {}", path.display())),
        }
        // A full disk must not keep the daemon from starting: the text is a courtesy.
        _ = file
            .set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| write!(file, "{}", std::process::id()));
        Ok(Self { _file: file })
    }
}
