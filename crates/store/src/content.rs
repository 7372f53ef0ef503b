//! Blobs by digest: `content/sha256/<hex>`, written aside and renamed into place.
//!
//! A blob is *held* ([`Blob`]), *named* (by a layer, an image, a record, a pin or another blob
//! that is itself kept), or garbage. Garbage younger than a few minutes stays, so that what one
//! request stores the next can still name. Only the collector deletes.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, Write as _},
    path::{Path, PathBuf},
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use base::{Digest, Hasher};
use bytes::Bytes;
use rustix::fs::{FallocateFlags, fallocate};
use snapshot::Brake;

use crate::{
    BlobInfo, StoreError,
    error::Doing as _,
    meta::{Meta, T},
    model::{ContentRow, now},
    packed::Packed,
};

/// How long garbage stays after it was last touched.
pub(crate) const GRACE: Duration = Duration::from_secs(300);
/// So much of a blob is written even at the ceiling: manifests, logs of builds that failed there.
const SMALL: u64 = 1 << 20;
/// How long it stays when somebody wants the room.
pub(crate) const SHORT_GRACE: Duration = Duration::from_secs(2);
/// Largest part of a blob that is reserved on disk before it arrives.
const RESERVE_LIMIT: u64 = 16 << 30;

/// The blobs of a store. Cloning shares.
#[derive(Clone)]
pub struct Content {
    inner: Arc<Inner>,
}

struct Inner {
    folder: PathBuf,
    ingest: PathBuf,
    meta: Arc<Meta>,
    blobs: Mutex<HashMap<Digest, Entry>>,
    brake: Brake,
    /// There is a ceiling: nothing is set aside that may never be written.
    bounded: bool,
}

/// What is in memory of every blob; there may be hundreds of thousands.
struct Entry {
    size: u64,
    allocated: u64,
    created: i64,
    info: Packed,
    holds: usize,
    touched: Instant,
}

impl Entry {
    fn new(row: &ContentRow, holds: usize, touched: Instant) -> Self {
        let ContentRow { size, allocated, created, info } = row;
        let (size, allocated, created) = (*size, *allocated, *created);
        Self { size, allocated, created, info: Packed::new(info), holds, touched }
    }

    /// Changes what is known of the blob; the row to be stored, if that made a difference.
    fn change(&mut self, change: impl FnOnce(&mut BlobInfo)) -> Option<ContentRow> {
        let before = self.info.unpack();
        let mut info = before.clone();
        change(&mut info);
        if info == before {
            return None;
        }
        self.info = Packed::new(&info);
        let Self { size, allocated, created, .. } = *self;
        Some(ContentRow { size, allocated, created, info })
    }
}

/// Holds a blob: it stays while this lives. Cloning holds it once more.
pub struct Blob {
    digest: Digest,
    size: u64,
    inner: Arc<Inner>,
}

impl Blob {
    /// Its digest.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// Its length in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }
}

impl Clone for Blob {
    fn clone(&self) -> Self {
        if let Some(entry) = self.inner.blobs.lock().unwrap().get_mut(&self.digest) {
            entry.holds += 1;
        }
        Self { digest: self.digest, size: self.size, inner: self.inner.clone() }
    }
}

impl Drop for Blob {
    fn drop(&mut self) {
        if let Some(entry) = self.inner.blobs.lock().unwrap().get_mut(&self.digest) {
            // A condemned blob may have come back meanwhile, without this hold.
            entry.holds = entry.holds.saturating_sub(1);
            entry.touched = Instant::now();
        }
    }
}

impl std::fmt::Debug for Blob {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({} bytes)", self.digest, self.size)
    }
}

impl Content {
    /// Takes over the folder with the rows that were stored; see [`crate::Recovery`] for what
    /// happens to rows and files that do not match.
    pub(crate) fn new(
        root: &Path,
        meta: Arc<Meta>,
        rows: HashMap<Digest, ContentRow>,
        brake: Brake,
        bounded: bool,
    ) -> Self {
        // What was young when the last daemon ended is no longer anybody's.
        let now = Instant::now();
        let touched = now.checked_sub(GRACE).unwrap_or(now);
        let entries = rows.iter().map(|(digest, row)| (*digest, Entry::new(row, 0, touched)));
        Self {
            inner: Arc::new(Inner {
                folder: folder(root),
                ingest: ingest(root),
                meta,
                blobs: Mutex::new(entries.collect()),
                brake,
                bounded,
            }),
        }
    }

    /// Starts a new blob.
    pub fn writer(&self) -> Result<ContentWriter, StoreError> {
        let path = self.inner.ingest.join(base::id::random_id());
        let file = File::options()
            .write(true)
            .read(true)
            .create_new(true)
            .open(&path)
            .doing(|| format!("create {}", path.display()))?;
        Ok(ContentWriter {
            partial: Some(Partial { path, inner: self.inner.clone() }),
            file,
            hasher: Hasher::new(),
            size: 0,
        })
    }

    /// Stores `bytes` as a blob.
    pub fn put(&self, bytes: &[u8], info: BlobInfo) -> Result<Blob, StoreError> {
        let digest = Digest::of(bytes);
        if let Some(blob) = self.hold(&digest) {
            self.describe(&digest, |known| merge_info(known, info));
            return Ok(blob);
        }
        let mut writer = self.writer()?;
        writer.write_all(bytes).doing(|| format!("write blob {digest}"))?;
        writer.commit(Some(digest), None, info)
    }

    /// Opens a blob for reading. The open file stays readable even if the blob is collected.
    pub fn open(&self, digest: &Digest) -> Result<File, StoreError> {
        self.touch(digest)?;
        let path = self.path(digest);
        match File::open(&path) {
            Ok(file) => Ok(file),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(StoreError::NoBlob(*digest))
            }
            Err(error) => Err(StoreError::io(format!("open blob {digest}"), error)),
        }
    }

    /// Opens a blob for asynchronous reading.
    pub fn reader(&self, digest: &Digest) -> Result<ContentReader, StoreError> {
        Ok(tokio::fs::File::from_std(self.open(digest)?))
    }

    /// Reads a whole blob of at most `limit` bytes.
    pub fn read(&self, digest: &Digest, limit: u64) -> Result<Bytes, StoreError> {
        let size = self.size(digest).ok_or(StoreError::NoBlob(*digest))?;
        if size > limit {
            return Err(StoreError::Damaged {
                what: format!("blob {digest}"),
                reason: format!("{size} bytes are more than the {limit} allowed here"),
            });
        }
        let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or(0));
        io::Read::read_to_end(&mut self.open(digest)?, &mut bytes)
            .doing(|| format!("read blob {digest}"))?;
        Ok(bytes.into())
    }

    /// Length of a blob that is here.
    pub fn size(&self, digest: &Digest) -> Option<u64> {
        self.inner.blobs.lock().unwrap().get(digest).map(|entry| entry.size)
    }

    /// Whether a blob is here.
    pub fn contains(&self, digest: &Digest) -> bool {
        self.inner.blobs.lock().unwrap().contains_key(digest)
    }

    /// What is known of a blob besides its bytes.
    pub fn info(&self, digest: &Digest) -> Option<BlobInfo> {
        self.inner.blobs.lock().unwrap().get(digest).map(|entry| entry.info.unpack())
    }

    /// When the blob was stored.
    pub fn created_at(&self, digest: &Digest) -> Option<std::time::SystemTime> {
        let blobs = self.inner.blobs.lock().unwrap();
        blobs.get(digest).map(|entry| base::time::from_unix_nanos(entry.created))
    }

    /// Changes what is known of a blob; false if it is not here.
    pub fn describe(&self, digest: &Digest, change: impl FnOnce(&mut BlobInfo)) -> bool {
        let mut blobs = self.inner.blobs.lock().unwrap();
        let Some(entry) = blobs.get_mut(digest) else { return false };
        if let Some(row) = entry.change(change) {
            self.inner.save(digest, &row);
        }
        true
    }

    /// Holds a blob that is here.
    pub fn hold(&self, digest: &Digest) -> Option<Blob> {
        let mut blobs = self.inner.blobs.lock().unwrap();
        let entry = blobs.get_mut(digest)?;
        entry.holds += 1;
        Some(Blob { digest: *digest, size: entry.size, inner: self.inner.clone() })
    }

    /// All blobs, in no order.
    pub fn list(&self) -> Vec<(Digest, u64)> {
        let blobs = self.inner.blobs.lock().unwrap();
        blobs.iter().map(|(digest, entry)| (*digest, entry.size)).collect()
    }

    /// Where a blob's bytes are; the file may go away unless the blob is held.
    pub fn path(&self, digest: &Digest) -> PathBuf {
        self.inner.folder.join(digest.hex())
    }

    fn touch(&self, digest: &Digest) -> Result<(), StoreError> {
        let mut blobs = self.inner.blobs.lock().unwrap();
        let entry = blobs.get_mut(digest).ok_or(StoreError::NoBlob(*digest))?;
        entry.touched = Instant::now();
        Ok(())
    }

    /// Bytes each blob takes on disk.
    pub(crate) fn allocated(&self) -> HashMap<Digest, u64> {
        let blobs = self.inner.blobs.lock().unwrap();
        blobs.iter().map(|(digest, entry)| (*digest, entry.allocated)).collect()
    }

    /// Blobs that somebody holds.
    pub(crate) fn held(&self) -> Vec<Digest> {
        let blobs = self.inner.blobs.lock().unwrap();
        let held = blobs.iter().filter(|(_, entry)| entry.holds > 0);
        held.map(|(digest, _)| *digest).collect()
    }

    /// Blobs touched within `grace`.
    pub(crate) fn young(&self, grace: Duration) -> Vec<Digest> {
        let blobs = self.inner.blobs.lock().unwrap();
        let young = blobs.iter().filter(|(_, entry)| entry.touched.elapsed() < grace);
        young.map(|(digest, _)| *digest).collect()
    }

    /// Removes a blob unless somebody holds it or has just let it go. Returns the bytes freed.
    pub(crate) fn remove(&self, digest: &Digest, grace: Duration) -> Option<u64> {
        let mut blobs = self.inner.blobs.lock().unwrap();
        let known = blobs.get(digest)?;
        if known.holds > 0 || known.touched.elapsed() < grace {
            return None;
        }
        let entry = blobs.remove(digest)?;
        self.inner.meta.set(T::Content, digest.raw().to_vec(), None);
        // Unlinked under the lock: a writer of the same bytes must not lose its new file.
        if let Err(error) = std::fs::remove_file(self.path(digest))
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!("remove blob {digest}: {error}");
        }
        Some(entry.allocated)
    }

    /// Forgets a blob whose bytes turned out to be damaged.
    pub(crate) fn condemn(&self, digest: &Digest) {
        let mut blobs = self.inner.blobs.lock().unwrap();
        blobs.remove(digest);
        self.inner.meta.set(T::Content, digest.raw().to_vec(), None);
        _ = std::fs::remove_file(self.path(digest));
    }
}

impl Inner {
    fn save(&self, digest: &Digest, row: &ContentRow) {
        let bytes = serde_json::to_vec(row).expect("a content row has a JSON form");
        self.meta.set(T::Content, digest.raw().to_vec(), Some(bytes.into()));
    }
}

/// The folder of finished blobs.
pub(crate) fn folder(root: &Path) -> PathBuf {
    root.join("content").join("sha256")
}

/// The folder of blobs being written.
pub(crate) fn ingest(root: &Path) -> PathBuf {
    root.join("content").join("ingest")
}

fn merge_info(known: &mut BlobInfo, more: BlobInfo) {
    if !more.media_type.is_empty() {
        known.media_type = more.media_type;
    }
    known.annotations.extend(more.annotations);
    known.labels.extend(more.labels);
    for digest in more.references {
        if !known.references.contains(&digest) {
            known.references.push(digest);
        }
    }
}

/// Reads a blob.
pub type ContentReader = tokio::fs::File;

/// A blob being written: an [`io::Write`] and an [`tokio::io::AsyncWrite`] that digests on the
/// way. Writes go to the page cache and are therefore done at once, also in asynchronous code.
/// Dropping it without [`commit`](Self::commit) removes what was written.
pub struct ContentWriter {
    partial: Option<Partial>,
    file: File,
    hasher: Hasher,
    size: u64,
}

/// The file of an unfinished blob; dropping it removes the file.
struct Partial {
    path: PathBuf,
    inner: Arc<Inner>,
}

impl Drop for Partial {
    fn drop(&mut self) {
        _ = std::fs::remove_file(&self.path);
    }
}

impl ContentWriter {
    /// Bytes written so far.
    pub fn written(&self) -> u64 {
        self.size
    }

    /// Digest of the bytes written so far.
    pub fn digest(&self) -> Digest {
        self.hasher.clone().finish()
    }

    /// Reserves room for a blob of `size` bytes, so that a full disk shows before the download.
    pub fn reserve(&mut self, size: u64) -> Result<(), StoreError> {
        let bounded = self.partial.as_ref().is_some_and(|partial| partial.inner.bounded);
        if size == 0 || size > RESERVE_LIMIT || bounded {
            return Ok(());
        }
        match fallocate(&self.file, FallocateFlags::KEEP_SIZE, 0, size) {
            Err(errno @ (rustix::io::Errno::NOSPC | rustix::io::Errno::DQUOT)) => {
                Err(errno).doing(|| format!("reserve {size} bytes for a blob"))
            }
            // Not every file system can; writing will tell.
            _ => Ok(()),
        }
    }

    /// Makes the blob available under its digest. With `expected` or `expected_size` given,
    /// anything else is an error and the bytes are dropped. A blob that exists already is kept.
    pub fn commit(
        mut self,
        expected: Option<Digest>,
        expected_size: Option<u64>,
        info: BlobInfo,
    ) -> Result<Blob, StoreError> {
        let digest = std::mem::take(&mut self.hasher).finish();
        if let Some(expected) = expected_size
            && expected != self.size
        {
            return Err(StoreError::WrongSize { expected, actual: self.size });
        }
        if let Some(expected) = expected
            && expected != digest
        {
            return Err(StoreError::WrongDigest { expected, actual: digest });
        }
        let partial = self.partial.take().expect("a writer has its file until it is committed");
        let inner = partial.inner.clone();
        // Room reserved beyond the end is given back, and blobs are not to be written any more.
        self.file.set_len(self.size).doing(|| format!("cut blob {digest}"))?;
        rustix::fs::fchmod(&self.file, rustix::fs::Mode::from_raw_mode(0o444))
            .doing(|| format!("protect blob {digest}"))?;
        let stat = rustix::fs::fstat(&self.file).doing(|| format!("measure blob {digest}"))?;
        let mut blobs = inner.blobs.lock().unwrap();
        if let Some(entry) = blobs.get_mut(&digest) {
            entry.holds += 1;
            if let Some(row) = entry.change(|known| merge_info(known, info)) {
                inner.save(&digest, &row);
            }
        } else {
            let path = inner.folder.join(digest.hex());
            std::fs::rename(&partial.path, &path).doing(|| format!("store blob {digest}"))?;
            let row = ContentRow {
                size: self.size,
                allocated: u64::try_from(stat.st_blocks).unwrap_or(0) * 512,
                created: now(),
                info,
            };
            inner.save(&digest, &row);
            blobs.insert(digest, Entry::new(&row, 1, Instant::now()));
        }
        drop(blobs);
        Ok(Blob { digest, size: self.size, inner })
    }
}

impl ContentWriter {
    /// What to ask before more is written.
    fn brake(&self) -> Option<&Brake> {
        self.partial.as_ref().filter(|_| self.size > SMALL).map(|partial| &partial.inner.brake)
    }

    fn write_now(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        self.size += written as u64;
        Ok(written)
    }
}

impl io::Write for ContentWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.brake().map_or(Ok(()), Brake::check)?;
        self.write_now(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl tokio::io::AsyncWrite for ContentWriter {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if let Some(brake) = self.brake() {
            ready!(brake.poll(context))?;
        }
        Poll::Ready(self.write_now(bytes))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
