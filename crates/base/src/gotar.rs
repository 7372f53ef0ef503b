//! Tar headers as Go's `archive/tar` writes them when no format is asked for: USTAR if everything
//! fits, else a PAX header with just the records needed.

use std::{
    collections::BTreeMap,
    io::{self, Write},
};

/// Size of everything in a tar.
pub const BLOCK: usize = 512;

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(u8)]
pub enum Kind {
    /// A regular file.
    #[default]
    File = b'0',
    /// A further name of an earlier entry.
    HardLink = b'1',
    /// A symbolic link.
    Symlink = b'2',
    /// A character device.
    CharDevice = b'3',
    /// A block device.
    BlockDevice = b'4',
    /// A folder.
    Folder = b'5',
    /// A named pipe.
    Fifo = b'6',
}

/// One entry's header.
#[derive(Debug, Clone, Default)]
pub struct Header {
    /// Path without leading slash; folders end in one.
    pub name: Vec<u8>,
    /// Permissions with setuid, setgid and sticky.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Bytes that follow; zero unless it is a file.
    pub size: u64,
    /// Whole seconds since the epoch.
    pub mtime: i64,
    /// What it is.
    pub kind: Kind,
    /// Target of links.
    pub link: Vec<u8>,
    /// Major and minor number of devices.
    pub device: (u32, u32),
    /// Extended attributes.
    pub xattrs: BTreeMap<String, Vec<u8>>,
}

impl Header {
    /// A regular file.
    pub fn file(name: impl Into<Vec<u8>>, mode: u32, size: u64) -> Self {
        Self { name: name.into(), mode, size, ..Self::default() }
    }

    /// A folder; `name` ends in a slash.
    pub fn folder(name: impl Into<Vec<u8>>, mode: u32) -> Self {
        Self { name: name.into(), mode, kind: Kind::Folder, ..Self::default() }
    }

    /// Writes the header with what has to precede it.
    pub fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        let (records, split_at) = self.records();
        let mut main = self.block(&self.name, &self.link);
        if records.is_empty() {
            if let Some(at) = split_at {
                main[..100].fill(0);
                put_text(&mut main[..100], &self.name[at + 1..]);
                put_text(&mut main[345..500], &self.name[..at]);
            }
            return out.write_all(&finished(main));
        }
        let mut data = Vec::new();
        for (key, value) in &records {
            push_record(&mut data, key, value);
        }
        let at = self.name.iter().rposition(|byte| *byte == b'/').map_or(0, |at| at + 1);
        let (folder, base) = self.name.split_at(at);
        let mut name = ascii(&[folder, b"PaxHeaders.0/", base].concat());
        name.truncate(100);
        while name.ends_with(b"/") {
            name.pop();
        }
        let mut extended = [0u8; BLOCK];
        put_text(&mut extended[..100], &name);
        for field in [100..108, 108..116, 116..124] {
            put_octal(&mut extended[field], 0);
        }
        put_octal(&mut extended[124..136], data.len() as u64);
        put_octal(&mut extended[136..148], 0);
        extended[156] = b'x';
        out.write_all(&finished(extended))?;
        out.write_all(&data)?;
        write_padding(out, data.len() as u64)?;
        let main = self.block(&ascii(&self.name), &ascii(&self.link));
        out.write_all(&finished(main))
    }

    /// PAX records sorted by key (none: USTAR will do), and where a long name is split for USTAR.
    fn records(&self) -> (BTreeMap<String, Vec<u8>>, Option<usize>) {
        let mut records = BTreeMap::new();
        let odd = |text: &[u8]| text.len() > 100 || !text.is_ascii() || text.contains(&0);
        let mut number = |key: &str, value: i128, limit: i128| {
            if value < 0 || value >= limit {
                records.insert(key.to_owned(), value.to_string().into_bytes());
            }
        };
        number("uid", self.uid.into(), 1 << 21);
        number("gid", self.gid.into(), 1 << 21);
        number("size", self.size.into(), 1 << 33);
        number("mtime", self.mtime.into(), 1 << 33);
        for (key, value) in &self.xattrs {
            records.insert(format!("SCHILY.xattr.{key}"), value.clone());
        }
        if odd(&self.link) {
            records.insert("linkpath".into(), self.link.clone());
        }
        let split_at = odd(&self.name).then(|| split(&self.name)).flatten();
        if odd(&self.name) && (split_at.is_none() || !records.is_empty()) {
            records.insert("path".into(), self.name.clone());
        }
        (records, split_at)
    }

    fn block(&self, name: &[u8], link: &[u8]) -> [u8; BLOCK] {
        let mut block = [0u8; BLOCK];
        put_text(&mut block[..100], name);
        put_octal(&mut block[100..108], self.mode.into());
        put_octal(&mut block[108..116], self.uid.into());
        put_octal(&mut block[116..124], self.gid.into());
        put_octal(&mut block[124..136], self.size);
        put_octal(&mut block[136..148], u64::try_from(self.mtime).unwrap_or(0));
        block[156] = self.kind as u8;
        put_text(&mut block[157..257], link);
        put_octal(&mut block[329..337], self.device.0.into());
        put_octal(&mut block[337..345], self.device.1.into());
        block
    }
}

/// Fills the last block of data of `length` bytes.
pub fn write_padding(out: &mut dyn Write, length: u64) -> io::Result<()> {
    match usize::try_from(length % BLOCK as u64).unwrap_or(0) {
        0 => Ok(()),
        rest => out.write_all(&[0u8; BLOCK][rest..]),
    }
}

/// Ends a tar.
pub fn write_end(out: &mut dyn Write) -> io::Result<()> {
    out.write_all(&[0u8; 2 * BLOCK])
}

/// Where USTAR splits a long name: at the last slash within the first 156 bytes.
fn split(name: &[u8]) -> Option<usize> {
    if !name.is_ascii() || name.contains(&0) {
        return None;
    }
    let mut end = name.len();
    if end > 156 {
        end = 156;
    } else if name.ends_with(b"/") {
        end -= 1;
    }
    let at = name[..end].iter().rposition(|byte| *byte == b'/')?;
    let rest = name.len() - at - 1;
    (at > 0 && at <= 155 && rest > 0 && rest <= 100).then_some(at)
}

/// `LENGTH KEY=VALUE\n`, where the length counts itself.
fn push_record(data: &mut Vec<u8>, key: &str, value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + rest.to_string().len();
    length = rest + length.to_string().len();
    data.extend_from_slice(format!("{length} {key}=").as_bytes());
    data.extend_from_slice(value);
    data.push(b'\n');
}

fn ascii(text: &[u8]) -> Vec<u8> {
    text.iter().copied().filter(|byte| byte.is_ascii() && *byte != 0).collect()
}

fn put_text(field: &mut [u8], text: &[u8]) {
    let length = text.len().min(field.len());
    field[..length].copy_from_slice(&text[..length]);
    // Some readers take a cut name that ends in a slash for a folder.
    if text.len() > field.len() {
        field.iter_mut().rev().take_while(|byte| **byte == b'/').for_each(|byte| *byte = 0);
    }
}

/// Zero-padded octal and NUL; what does not fit becomes zero (a PAX record has it).
fn put_octal(field: &mut [u8], value: u64) {
    let width = field.len() - 1;
    let text = format!("{value:0width$o}");
    let text = if text.len() > width { format!("{:0width$o}", 0) } else { text };
    field[..width].copy_from_slice(text.as_bytes());
    field[width] = 0;
}

fn finished(mut block: [u8; BLOCK]) -> [u8; BLOCK] {
    block[257..265].copy_from_slice(b"ustar\x0000");
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blocks(header: &Header) -> (usize, Vec<u8>) {
        let mut out = Vec::new();
        header.write(&mut out).unwrap();
        (out.len() / BLOCK, out)
    }

    #[test]
    fn short_names_are_plain() {
        let (count, out) = blocks(&Header::file("blobs/x", 0o444, 5));
        assert_eq!(count, 1);
        assert_eq!(&out[..8], b"blobs/x\0");
        assert_eq!(&out[100..108], b"0000444\0");
        assert_eq!(&out[124..136], b"00000000005\0");
        assert_eq!(&out[257..265], b"ustar\x0000");
        assert_eq!(&out[329..337], b"0000000\0");
    }

    #[test]
    fn long_names_are_split_or_recorded() {
        let folder = "d".repeat(90);
        let (count, out) = blocks(&Header::file(format!("{folder}/{}", "f".repeat(60)), 0o644, 0));
        assert_eq!((count, &out[345..347]), (1, &b"dd"[..]));
        let (count, out) = blocks(&Header::file("f".repeat(101), 0o644, 0));
        assert_eq!(count, 3);
        assert!(String::from_utf8_lossy(&out[512..]).starts_with("111 path=fff"));
        let mut odd = Header::file("é", 0o644, 0);
        odd.xattrs.insert("user.a".into(), b"\0b".to_vec());
        let (count, out) = blocks(&odd);
        assert_eq!(count, 3);
        assert!(out[512..].starts_with(b"26 SCHILY.xattr.user.a=\0b\n11 path=\xc3\xa9\n"));
    }
}
