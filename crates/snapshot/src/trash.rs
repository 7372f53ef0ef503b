//! Removes folders in the background, so that no build waits for it.
//!
//! A removed folder is first renamed into the trash folder, which is quick and final: whatever is
//! in there after a crash is removed at the next start.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex, PoisonError, mpsc},
};

use rustix::fs::CWD;

use crate::{SnapshotError, sys};

/// The trash folder and the thread that empties it.
#[derive(Debug)]
pub(crate) struct Trash {
    folder: PathBuf,
    sender: Option<mpsc::Sender<PathBuf>>,
    pending: Arc<Pending>,
}

#[derive(Debug, Default)]
struct Pending {
    count: Mutex<u64>,
    changed: Condvar,
}

impl Trash {
    /// Uses `folder`, makes it if missing, and begins to empty it.
    pub fn open(folder: PathBuf) -> Result<Self, SnapshotError> {
        base::fs::create_dir_all(&folder)
            .map_err(|error| SnapshotError::io("make", &folder, error))?;
        let (sender, receiver) = mpsc::channel::<PathBuf>();
        let pending = Arc::new(Pending::default());
        let worker = Arc::clone(&pending);
        std::thread::Builder::new()
            .name("snapshot-trash".into())
            .spawn(move || {
                for path in receiver {
                    if let Err(error) = delete(&path) {
                        tracing::warn!("remove {}: {error}", path.display());
                    }
                    worker.add(-1);
                }
            })
            .map_err(|error| SnapshotError::io("start the thread that empties", &folder, error))?;
        let trash = Self { folder, sender: Some(sender), pending };
        let left = std::fs::read_dir(&trash.folder)
            .map_err(|error| SnapshotError::io("list", &trash.folder, error))?;
        for entry in left.flatten() {
            trash.queue(entry.path());
        }
        Ok(trash)
    }

    /// Takes `path` away at once and removes it later. False if it does not exist.
    pub fn throw(&self, path: &Path) -> Result<bool, SnapshotError> {
        let target = self.folder.join(base::id::random_id());
        match rustix::fs::rename(path, &target) {
            Ok(()) => {}
            Err(rustix::io::Errno::NOENT) => return Ok(false),
            Err(error) => return Err(SnapshotError::io("remove", path, error)),
        }
        self.queue(target);
        Ok(true)
    }

    /// Whether something is left to remove.
    pub fn is_pending(&self) -> bool {
        *self.pending.count.lock().unwrap_or_else(PoisonError::into_inner) > 0
    }

    /// Waits until nothing is left to remove.
    pub fn wait(&self) {
        let mut count = self.pending.count.lock().unwrap_or_else(PoisonError::into_inner);
        while *count > 0 {
            count = self.pending.changed.wait(count).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn queue(&self, path: PathBuf) {
        self.pending.add(1);
        let sent = self.sender.as_ref().is_some_and(|sender| sender.send(path).is_ok());
        if !sent {
            self.pending.add(-1);
        }
    }
}

impl Drop for Trash {
    fn drop(&mut self) {
        // The thread ends after what is queued; nobody needs to wait for it.
        self.sender = None;
    }
}

impl Pending {
    fn add(&self, by: i64) {
        let mut count = self.count.lock().unwrap_or_else(PoisonError::into_inner);
        *count = count.saturating_add_signed(by);
        self.changed.notify_all();
    }
}

fn delete(path: &Path) -> io::Result<()> {
    use std::os::unix::ffi::OsStrExt as _;
    Ok(sys::remove_all(CWD, path.as_os_str().as_bytes())?)
}
