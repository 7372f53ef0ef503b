//! The index as bytes, to be kept with its record.
//!
//! ```text
//! 01  folder
//! folder = flags [header] [content] count (name node)*    flags: 1 header, 2 content, 4 complete
//! node   = 0 folder | 1 [digest] target | 2 [digest] | 3 [digest]     symlink, file, other
//! ```
//! Kinds of nodes without digest have bit 4 set. Lengths and counts are variable-length integers.

use base::Digest;

use super::{
    HashError, Index,
    index::{DEEPEST, Folder, Node},
};

const VERSION: u8 = 1;

const NO_DIGEST: u8 = 16;

impl Index {
    /// Compact binary form; marks the index as clean.
    pub fn to_bytes(&mut self) -> Vec<u8> {
        let mut bytes = vec![VERSION];
        write_folder(&self.root, &mut bytes);
        self.dirty = false;
        bytes
    }

    /// Reads the form written by [`Index::to_bytes`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, HashError> {
        let mut reader = Reader(bytes);
        if reader.byte()? != VERSION {
            return Err(HashError::Damaged("unknown version"));
        }
        let root = reader.folder(0)?;
        match reader.0 {
            [] => Ok(Self { root, dirty: false }),
            _ => Err(HashError::Damaged("it goes on after its end")),
        }
    }
}

fn write_folder(folder: &Folder, bytes: &mut Vec<u8>) {
    let flag = |set: bool, flag: u8| if set { flag } else { 0 };
    bytes.push(
        flag(folder.header.is_some(), 1)
            | flag(folder.content.is_some(), 2)
            | flag(folder.complete, 4),
    );
    for digest in [&folder.header, &folder.content].into_iter().flatten() {
        bytes.extend_from_slice(digest.raw());
    }
    write_number(folder.children.len(), bytes);
    for (name, node) in &folder.children {
        write_text(name, bytes);
        let (kind, digest) = match node {
            Node::Folder(folder) => {
                bytes.push(0);
                write_folder(folder, bytes);
                continue;
            }
            Node::Symlink { digest, .. } => (1, digest),
            Node::File { digest, regular: true } => (2, digest),
            Node::File { digest, regular: false } => (3, digest),
        };
        bytes.push(kind | flag(digest.is_none(), NO_DIGEST));
        bytes.extend(digest.iter().flat_map(|digest| digest.raw()));
        if let Node::Symlink { target, .. } = node {
            write_text(target, bytes);
        }
    }
}

fn write_text(text: &[u8], bytes: &mut Vec<u8>) {
    write_number(text.len(), bytes);
    bytes.extend_from_slice(text);
}

fn write_number(mut number: usize, bytes: &mut Vec<u8>) {
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], HashError> {
        let (taken, rest) =
            self.0.split_at_checked(length).ok_or(HashError::Damaged("it is cut off"))?;
        self.0 = rest;
        Ok(taken)
    }

    fn byte(&mut self) -> Result<u8, HashError> {
        Ok(self.take(1)?[0])
    }

    fn digest(&mut self, present: bool) -> Result<Option<Digest>, HashError> {
        if !present {
            return Ok(None);
        }
        let raw = self.take(32)?.try_into().expect("32 bytes were taken");
        Ok(Some(Digest::from_raw(raw)))
    }

    fn number(&mut self) -> Result<usize, HashError> {
        let mut number = 0;
        for shift in (0..28).step_by(7) {
            let byte = self.byte()?;
            number |= usize::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(number);
            }
        }
        Err(HashError::Damaged("a number is too large"))
    }

    fn text(&mut self) -> Result<&'a [u8], HashError> {
        let length = self.number()?;
        self.take(length)
    }

    fn folder(&mut self, depth: usize) -> Result<Folder, HashError> {
        if depth > DEEPEST {
            return Err(HashError::Damaged("folders are nested too deeply"));
        }
        let flags = self.byte()?;
        let mut folder = Folder {
            header: self.digest(flags & 1 != 0)?,
            content: self.digest(flags & 2 != 0)?,
            complete: flags & 4 != 0,
            ..Folder::default()
        };
        for _ in 0..self.number()? {
            let name = self.text()?;
            let kind = self.byte()?;
            let node = if kind == 0 {
                Node::Folder(Box::new(self.folder(depth + 1)?))
            } else {
                self.leaf(kind)?
            };
            folder.children.insert(name.into(), node);
        }
        Ok(folder)
    }

    fn leaf(&mut self, kind: u8) -> Result<Node, HashError> {
        let digest = self.digest(kind & NO_DIGEST == 0)?;
        match kind & !NO_DIGEST {
            1 => Ok(Node::Symlink { digest, target: self.text()?.into() }),
            2 => Ok(Node::File { digest, regular: true }),
            3 => Ok(Node::File { digest, regular: false }),
            _ => Err(HashError::Damaged("an entry of unknown kind")),
        }
    }
}

/// Reads any bytes as a stored index; for fuzzing.
pub fn fuzz_index(bytes: &[u8]) {
    if let Ok(mut index) = Index::from_bytes(bytes) {
        drop(index.to_bytes());
    }
}
