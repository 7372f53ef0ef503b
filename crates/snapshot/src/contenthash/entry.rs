//! The digest of one entry: a header of its metadata, then its content.

use std::collections::BTreeMap;

use base::Hasher;

use crate::sys;

/// Metadata of one entry as it is hashed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stat {
    /// Unix `st_mode`: type and twelve permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Length of a regular file.
    pub size: u64,
    /// Target of a symlink.
    pub link: Vec<u8>,
    /// Device numbers (major, minor).
    pub device: (u32, u32),
    /// Extended attributes; those that are not hashed are skipped.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Stat {
    /// A hasher that has taken the header in. For a regular file its content follows; then
    /// `finish()` gives the digest for [`Index::put`](super::Index::put).
    pub fn hasher(&self) -> Hasher {
        let mut hasher = Hasher::new();
        hasher.update(self.header());
        hasher
    }

    /// The hashed header.
    pub(crate) fn header(&self) -> Vec<u8> {
        let kind = self.mode & sys::TYPE_MASK;
        let mut mode = self.mode & 0o7777;
        if kind == sys::SYMLINK {
            mode |= 0o777;
        }
        let flag = match kind {
            sys::SYMLINK => '2',
            sys::CHAR => '3',
            sys::BLOCK => '4',
            sys::DIR => '5',
            sys::FIFO => '6',
            _ => '0',
        };
        let size = if kind == sys::FILE { self.size } else { 0 };
        let (uid, gid) = (self.uid, self.gid);
        let (major, minor) = match kind {
            sys::CHAR | sys::BLOCK => self.device,
            _ => (0, 0),
        };
        let mut header =
            format!("namemode{mode}uid{uid}gid{gid}size{size}typeflag{flag}linkname").into_bytes();
        if kind == sys::SYMLINK {
            header.extend_from_slice(&self.link);
        }
        header.extend(format!("unamegnamedevmajor{major}devminor{minor}").into_bytes());
        for (name, value) in self.xattrs.iter().filter(|(name, _)| is_hashed(name)) {
            header.extend_from_slice(name);
            header.extend_from_slice(value);
        }
        header
    }
}

/// Whether an xattr belongs to an entry's identity.
pub(crate) fn is_hashed(name: &[u8]) -> bool {
    name == b"security.capability"
        || !(name.starts_with(b"security.") || name.starts_with(b"system."))
}
