//! Layer tars: what they hold, byte for byte, and how they become folders again.
//!
//! Out: [`changes`] finds what changed, [`write`] puts it into a tar or into another folder. In:
//! [`tar_read`] parses foreign bytes within [`Limits`], [`unpack`] makes files of them. Uncompressed
//! bytes are the same on every machine and the same as the peer's, because their digest is the
//! identity of a layer.

pub(crate) mod changes;
pub mod compression;
mod delta;
#[cfg(test)]
mod hostile;
pub(crate) mod settle;
pub(crate) mod tar_read;
#[cfg(test)]
mod tests;
pub(crate) mod unpack;
mod write;

use std::{
    io::{Read, Write},
    os::fd::AsFd as _,
    path::Path,
};

use base::Digest;
use rustix::fs::CWD;

use crate::{Brake, SnapshotError, Tree, folders::bytes, sys};

pub use tar_read::fuzz_tar;
pub(crate) use unpack::Unpacked;
pub use unpack::unpack;

/// What a layer tar was, measured while it was written or read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerInfo {
    /// Digest of the uncompressed tar.
    pub diff_id: Digest,
    /// Its length in bytes.
    pub size: u64,
    /// Number of entries.
    pub entries: u64,
}

/// Bounds on a tar from outside.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Most entries.
    pub entries: u64,
    /// Longest name or link target in bytes.
    pub name_length: usize,
    /// Most bytes of file content in total, holes of sparse files included.
    pub total_size: u64,
    /// Most bytes in one extended header.
    pub header_size: usize,
    /// Asked before content is written.
    pub brake: Brake,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            entries: 10_000_000,
            name_length: 4095,
            total_size: 1 << 40,
            header_size: 1 << 20,
            brake: Brake::default(),
        }
    }
}

/// A layer tar could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// A snapshot operation failed.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// The reader or writer given failed.
    #[error("{doing} layer tar: {cause}")]
    Stream {
        /// `read` or `write`.
        doing: &'static str,
        /// Why.
        cause: std::io::Error,
    },
    /// The bytes are no proper tar.
    #[error("malformed tar at offset {offset}: {reason}")]
    Malformed {
        /// Where in the uncompressed stream.
        offset: u64,
        /// What is wrong.
        reason: String,
    },
    /// A bound of [`Limits`] is exceeded.
    #[error("tar entry `{entry}` exceeds the limit: {limit}")]
    Limit {
        /// Name of the entry.
        entry: String,
        /// Which bound.
        limit: String,
    },
    /// An entry cannot be unpacked.
    #[error("unpack tar entry `{entry}`: {reason}")]
    Entry {
        /// Name of the entry.
        entry: String,
        /// Why not.
        reason: String,
    },
}

/// Names of the marks by which overlay folders say more than their files.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Marks {
    /// Xattr of a folder that hides everything below it.
    pub opaque: &'static str,
}

impl Marks {
    pub fn overlay(user_xattrs: bool) -> Self {
        Self { opaque: if user_xattrs { "user.overlay.opaque" } else { "trusted.overlay.opaque" } }
    }

    pub fn is_opaque(&self, at: sys::At) -> sys::SysResult<bool> {
        Ok(sys::get_xattr(at, self.opaque.as_bytes())?.is_some_and(|value| value == b"y"))
    }

    pub fn set_opaque(&self, at: sys::At) -> sys::SysResult<()> {
        sys::set_xattr(at, self.opaque.as_bytes(), b"y")
    }
}

/// Whether an xattr belongs to overlay itself and must neither be copied nor taken from outside.
pub(crate) fn is_overlay_private(key: &[u8]) -> bool {
    key.starts_with(b"trusted.overlay.") || key.starts_with(b"user.overlay.")
}

/// Writes the layer tar of the raw upper folder `upper`, made over `base`.
pub(crate) fn write_overlay(
    base: Option<&Tree>,
    upper: &Path,
    marks: &Marks,
    out: &mut dyn Write,
) -> Result<LayerInfo, LayerError> {
    let upper_fd = sys::open_dir(CWD, &bytes(upper))
        .map_err(|error| SnapshotError::io("open", upper, error))?;
    let base = base.map(open_root).transpose()?;
    let mut writer = write::LayerWriter::new(upper_fd.as_fd(), out);
    let base = base.as_ref().map(|fd| fd.as_fd());
    changes::overlay(base, upper_fd.as_fd(), marks, &mut writer)?;
    writer.finish()
}

/// Writes the layer tar that turns `lower` into `upper`.
pub(crate) fn write_double(
    lower: Option<&Tree>,
    upper: &Tree,
    out: &mut dyn Write,
) -> Result<LayerInfo, LayerError> {
    let upper = open_root(upper)?;
    let lower = lower.map(open_root).transpose()?;
    let mut writer = write::LayerWriter::new(upper.as_fd(), out);
    changes::double(lower.as_ref().map(|fd| fd.as_fd()), upper.as_fd(), &mut writer)?;
    writer.finish()
}

/// Fills the empty folder `target` with what turns `lower` into `upper`, as an overlay layer.
pub(crate) fn write_delta(lower: &Tree, upper: &Tree, target: &Path) -> Result<(), SnapshotError> {
    delta::write(lower, upper, target, delta::Form::Overlay)
}

/// Fills the empty folder `target` with just the changes of the raw overlay layer `upper`.
pub(crate) fn loosen(
    base: &Tree,
    upper: &Path,
    target: &Path,
    marks: &Marks,
) -> Result<(), SnapshotError> {
    delta::loosen(base, upper, target, marks)
}

/// Changes the plain folder `target` by what turns `lower` into `upper`.
pub(crate) fn apply_difference(
    lower: &Tree,
    upper: &Tree,
    target: &Path,
) -> Result<(), SnapshotError> {
    delta::write(lower, upper, target, delta::Form::Plain)
}

/// Changes the plain folder `target` by the overlay layer `delta`.
pub(crate) fn apply_delta(delta: &Path, target: &Path, marks: &Marks) -> Result<(), SnapshotError> {
    delta::apply(delta, target, marks)
}

/// Unpacks a layer tar into the empty overlay folder `target`.
pub(crate) fn unpack_overlay(
    target: &Path,
    tar: &mut dyn Read,
    limits: &Limits,
    marks: &Marks,
) -> Result<Unpacked, LayerError> {
    unpack::run(target, tar, limits, &unpack::Options::layer(unpack::Whiteouts::Overlay(*marks)))
}

/// Unpacks a layer tar over the files in the plain folder `target`.
pub(crate) fn unpack_plain(
    target: &Path,
    tar: &mut dyn Read,
    limits: &Limits,
) -> Result<Unpacked, LayerError> {
    unpack::run(target, tar, limits, &unpack::Options::layer(unpack::Whiteouts::Remove))
}

fn open_root(tree: &Tree) -> Result<std::os::fd::OwnedFd, SnapshotError> {
    tree.open_root().map_err(|error| SnapshotError::io("open", tree.path(), error))
}
