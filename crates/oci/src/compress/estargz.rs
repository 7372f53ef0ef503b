//! eStargz: gzip in which every file can be found and fetched on its own.
//!
//! The tar is cut before the content of each file (and every 4 MiB inside of large ones); the pieces
//! are gzip members of their own. A table of contents with offsets and digests follows as one more
//! tar, then a footer that says where the table begins. What comes out of all members together is
//! the tar as it came, and the table's tar behind it: the digest of *that* is the layer's diff id.
//!
//! ```text
//!  headers │ content of a, headers │ content of b, headers, end │ table │ footer
//! ```
//!
//! Members are compressed in parallel and written in order. Invariant: an entry's offset is set when
//! its member is written, so the table is complete when all members are.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    io::{self, Write},
    sync::mpsc,
};

use base::{Digest, Hasher, gotar, time};
use flate2::{Compression as Level, Crc};
use serde::{Serialize, ser::SerializeMap};

use super::gzip;

/// Annotation of a layer: digest of its table.
pub const ANNOTATION_TOC_DIGEST: &str = "containerd.io/snapshot/stargz/toc.digest";
/// Annotation of a layer: bytes of everything decompressed.
pub const ANNOTATION_SIZE: &str = "io.containers.estargz.uncompressed-size";

const TABLE_NAME: &str = "stargz.index.json";
/// Largest piece of a file.
const CHUNK: u64 = 4 << 20;
const BLOCK: usize = 512;
/// Largest extended header.
const MAX_EXTENDED: u64 = 1 << 20;
const XATTR_PREFIX: &str = "SCHILY.xattr.";

/// What an eStargz blob is known by besides its digest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// Digest of the table of contents.
    pub digest: Digest,
    /// Digest of everything decompressed.
    pub diff_id: Digest,
    /// Bytes of everything decompressed.
    pub uncompressed_size: u64,
}

impl Table {
    /// As annotations of the layer.
    pub fn annotations(&self) -> [(String, String); 3] {
        [
            (ANNOTATION_TOC_DIGEST.to_owned(), self.digest.to_string()),
            (ANNOTATION_SIZE.to_owned(), self.uncompressed_size.to_string()),
            (crate::types::ANNOTATION_UNCOMPRESSED.to_owned(), self.diff_id.to_string()),
        ]
    }
}

/// One line of the table.
#[derive(Debug, Default, Serialize)]
struct Entry {
    name: String,
    #[serde(rename = "type")]
    kind: &'static str,
    #[serde(skip_serializing_if = "is_zero")]
    size: u64,
    #[serde(rename = "modtime", skip_serializing_if = "String::is_empty")]
    modified: String,
    #[serde(rename = "linkName", skip_serializing_if = "String::is_empty")]
    link: String,
    #[serde(skip_serializing_if = "is_zero")]
    mode: u64,
    #[serde(skip_serializing_if = "is_zero")]
    uid: u64,
    #[serde(skip_serializing_if = "is_zero")]
    gid: u64,
    #[serde(rename = "userName", skip_serializing_if = "String::is_empty")]
    user: String,
    #[serde(rename = "groupName", skip_serializing_if = "String::is_empty")]
    group: String,
    #[serde(skip_serializing_if = "is_zero")]
    offset: u64,
    #[serde(rename = "devMajor", skip_serializing_if = "is_zero")]
    major: u64,
    #[serde(rename = "devMinor", skip_serializing_if = "is_zero")]
    minor: u64,
    #[serde(serialize_with = "xattrs", skip_serializing_if = "BTreeMap::is_empty")]
    xattrs: BTreeMap<String, Vec<u8>>,
    #[serde(skip_serializing_if = "String::is_empty")]
    digest: String,
    #[serde(rename = "chunkOffset", skip_serializing_if = "is_zero")]
    chunk_offset: u64,
    #[serde(rename = "chunkSize", skip_serializing_if = "is_zero")]
    chunk_size: u64,
    #[serde(rename = "chunkDigest", skip_serializing_if = "String::is_empty")]
    chunk_digest: String,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

fn xattrs<S: serde::Serializer>(map: &BTreeMap<String, Vec<u8>>, to: S) -> Result<S::Ok, S::Error> {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    let mut out = to.serialize_map(Some(map.len()))?;
    for (key, value) in map {
        out.serialize_entry(key, &STANDARD.encode(value))?;
    }
    out.end()
}

/// What extended headers say of the next member.
#[derive(Default)]
struct Extended {
    name: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    records: HashMap<String, Vec<u8>>,
}

enum State {
    /// Collecting a header.
    Header(Vec<u8>),
    /// Collecting the data of an extended header.
    Extended { kind: u8, data: Vec<u8>, left: u64, padding: u64 },
    /// Inside a file.
    Content(Content),
    /// Bytes to pass on.
    Padding(u64),
    /// After the end mark.
    End,
}

struct Content {
    /// Entry of the file, and of the piece.
    file: usize,
    piece: usize,
    left: u64,
    left_of_piece: u64,
    padding: u64,
    whole: Hasher,
    part: Hasher,
    done: u64,
}

/// A member being compressed, and the entry whose content it begins with.
struct Member {
    entry: Option<usize>,
    bytes: mpsc::Receiver<io::Result<Vec<u8>>>,
}

pub(super) struct Writer<W: Write> {
    out: W,
    level: Level,
    state: State,
    extended: Extended,
    entries: Vec<Entry>,
    users: HashMap<u64, String>,
    groups: HashMap<u64, String>,
    /// The member being filled.
    member: Vec<u8>,
    member_entry: Option<usize>,
    running: VecDeque<Member>,
    written: u64,
    diff: Hasher,
    uncompressed: u64,
}

impl<W: Write> Writer<W> {
    pub(super) fn new(level: Option<i32>, out: W) -> Self {
        let level = u32::try_from(level.unwrap_or(gzip::DEFAULT_LEVEL)).unwrap_or(6);
        Self {
            out,
            level: Level::new(level),
            state: State::Header(Vec::with_capacity(BLOCK)),
            extended: Extended::default(),
            entries: Vec::new(),
            users: HashMap::new(),
            groups: HashMap::new(),
            member: Vec::new(),
            member_entry: None,
            running: VecDeque::new(),
            written: 0,
            diff: Hasher::new(),
            uncompressed: 0,
        }
    }

    pub(super) fn finish(mut self) -> io::Result<(W, Table)> {
        match &self.state {
            State::End | State::Padding(0) => {}
            State::Header(header) if header.is_empty() => {}
            _ => return Err(io::ErrorKind::UnexpectedEof.into()),
        }
        self.close_member()?;
        while !self.running.is_empty() {
            self.collect_one()?;
        }
        #[derive(Serialize)]
        struct Document<'a> {
            version: u32,
            entries: &'a [Entry],
        }
        let mut json = Vec::new();
        let formatter = serde_json::ser::PrettyFormatter::with_indent(b"\t");
        let mut serializer = serde_json::Serializer::with_formatter(&mut json, formatter);
        Document { version: 1, entries: &self.entries }.serialize(&mut serializer)?;
        let mut tar = Vec::new();
        gotar::Header::file(TABLE_NAME, 0, json.len() as u64).write(&mut tar)?;
        tar.extend_from_slice(&json);
        gotar::write_padding(&mut tar, json.len() as u64)?;
        gotar::write_end(&mut tar)?;
        self.diff.update(&tar);
        self.uncompressed += tar.len() as u64;
        let offset = self.written;
        self.out.write_all(&gzip::member(&tar, self.level)?)?;
        self.out.write_all(&footer(offset))?;
        let table = Table {
            digest: Digest::of(&json),
            diff_id: self.diff.finish(),
            uncompressed_size: self.uncompressed,
        };
        Ok((self.out, table))
    }

    /// Hands the bytes so far to the pool.
    fn close_member(&mut self) -> io::Result<()> {
        let entry = self.member_entry.take();
        if self.member.is_empty() {
            return Ok(());
        }
        let bytes = std::mem::take(&mut self.member);
        let (sender, receiver) = mpsc::sync_channel(1);
        let level = self.level;
        gzip::pool().spawn_fifo(move || {
            _ = sender.send(gzip::member(&bytes, level));
        });
        self.running.push_back(Member { entry, bytes: receiver });
        while self.running.len() > gzip::pool().current_num_threads() * 2 {
            self.collect_one()?;
        }
        Ok(())
    }

    fn collect_one(&mut self) -> io::Result<()> {
        let Some(member) = self.running.pop_front() else { return Ok(()) };
        let bytes =
            member.bytes.recv().map_err(|_| io::Error::other("compression was stopped"))??;
        if let Some(entry) = member.entry {
            self.entries[entry].offset = self.written;
        }
        self.out.write_all(&bytes)?;
        self.written += bytes.len() as u64;
        Ok(())
    }

    /// A complete header: what follows it.
    fn header(&mut self, header: &[u8]) -> io::Result<State> {
        if header.iter().all(|byte| *byte == 0) {
            return Ok(State::End);
        }
        let number = |range: std::ops::Range<usize>| {
            number(&header[range]).ok_or_else(|| bad("a field of a tar header is no number"))
        };
        let kind = header[156];
        let size = number(124..136)?;
        if matches!(kind, b'x' | b'L' | b'K') {
            if size > MAX_EXTENDED {
                return Err(bad("an extended tar header is too large"));
            }
            let padding = padding(size);
            return Ok(State::Extended { kind, data: Vec::new(), left: size, padding });
        }
        let extended = std::mem::take(&mut self.extended);
        let record = |key: &str| extended.records.get(key);
        let recorded = |key: &str, otherwise: u64| match record(key) {
            None => Ok(otherwise),
            Some(value) => std::str::from_utf8(value)
                .ok()
                .and_then(|text| text.parse().ok())
                .ok_or_else(|| bad("a record of a tar header is no number")),
        };
        let size = recorded("size", size)?;
        let ustar = &header[257..263] == b"ustar\0";
        let mut name = field(&header[..100]);
        if ustar && header[345] != 0 {
            name = [field(&header[345..500]).as_slice(), b"/", &name].concat();
        }
        let name = record("path").or(extended.name.as_ref()).cloned().unwrap_or(name);
        let link = record("linkpath").or(extended.link.as_ref()).cloned();
        let link = link.unwrap_or_else(|| field(&header[157..257]));
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let name = text(&name);
        if base::path::clean(&name).trim_start_matches('/') == TABLE_NAME {
            let reason = "a layer with a file named stargz.index.json cannot become estargz";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, reason));
        }
        let words = |key: &str, range: std::ops::Range<usize>| match record(key) {
            Some(value) => text(value),
            None => text(&field(&header[range])),
        };
        let (uid, gid) = (recorded("uid", number(108..116)?)?, recorded("gid", number(116..124)?)?);
        let kind = match kind {
            b'0' | 0 if name.ends_with('/') => "dir",
            b'0' | 0 | b'7' => "reg",
            b'1' => "hardlink",
            b'2' => "symlink",
            b'3' => "char",
            b'4' => "block",
            b'5' => "dir",
            b'6' => "fifo",
            other => {
                return Err(bad(&format!(
                    "tar entries of type {:?} are not for estargz",
                    other as char
                )));
            }
        };
        let is_link = matches!(kind, "hardlink" | "symlink");
        let is_device = matches!(kind, "char" | "block");
        let entry = Entry {
            kind,
            size: if kind == "reg" { size } else { 0 },
            modified: modified(record("mtime"), number(136..148)?),
            link: if is_link { text(&link) } else { String::new() },
            mode: number(100..108)?,
            user: changed(&mut self.users, uid, words("uname", 265..297)),
            group: changed(&mut self.groups, gid, words("gname", 297..329)),
            uid,
            gid,
            major: if is_device { number(329..337)? } else { 0 },
            minor: if is_device { number(337..345)? } else { 0 },
            xattrs: extended
                .records
                .iter()
                .filter_map(|(key, value)| {
                    Some((key.strip_prefix(XATTR_PREFIX)?.to_owned(), value.clone()))
                })
                .collect(),
            name,
            ..Entry::default()
        };
        self.entries.push(entry);
        let file = self.entries.len() - 1;
        if kind != "reg" {
            // Links and folders have no data, whatever their header says, except as Go reads them.
            return Ok(State::Header(Vec::with_capacity(BLOCK)));
        }
        if size == 0 {
            self.entries[file].digest = Digest::of("").to_string();
            return Ok(State::Header(Vec::with_capacity(BLOCK)));
        }
        let mut content = Content {
            file,
            piece: file,
            left: size,
            left_of_piece: 0,
            padding: padding(size),
            whole: Hasher::new(),
            part: Hasher::new(),
            done: 0,
        };
        self.begin_piece(&mut content)?;
        Ok(State::Content(content))
    }

    /// The next piece of a file begins a member.
    fn begin_piece(&mut self, content: &mut Content) -> io::Result<()> {
        if content.done > 0 {
            let name = self.entries[content.file].name.clone();
            self.entries.push(Entry { name, kind: "chunk", ..Entry::default() });
            content.piece = self.entries.len() - 1;
        }
        self.close_member()?;
        self.member_entry = Some(content.piece);
        content.left_of_piece = content.left.min(CHUNK);
        let entry = &mut self.entries[content.piece];
        entry.chunk_offset = content.done;
        if content.left >= CHUNK {
            entry.chunk_size = CHUNK;
        }
        Ok(())
    }

    fn content(&mut self, mut content: Content, bytes: &[u8]) -> io::Result<(usize, State)> {
        let taken = usize::try_from(content.left_of_piece).unwrap_or(usize::MAX).min(bytes.len());
        content.whole.update(&bytes[..taken]);
        content.part.update(&bytes[..taken]);
        self.member.extend_from_slice(&bytes[..taken]);
        content.left -= taken as u64;
        content.left_of_piece -= taken as u64;
        content.done += taken as u64;
        if content.left_of_piece > 0 {
            return Ok((taken, State::Content(content)));
        }
        let part = std::mem::replace(&mut content.part, Hasher::new());
        self.entries[content.piece].chunk_digest = part.finish().to_string();
        if content.left > 0 {
            self.begin_piece(&mut content)?;
            return Ok((taken, State::Content(content)));
        }
        self.entries[content.file].digest = content.whole.finish().to_string();
        Ok((taken, State::Padding(content.padding)))
    }

    fn step(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let state = std::mem::replace(&mut self.state, State::End);
        let (taken, next) = match state {
            State::Header(mut header) => {
                let taken = (BLOCK - header.len()).min(bytes.len());
                header.extend_from_slice(&bytes[..taken]);
                self.member.extend_from_slice(&bytes[..taken]);
                match header.len() == BLOCK {
                    true => (taken, self.header(&header)?),
                    false => (taken, State::Header(header)),
                }
            }
            State::Extended { kind, mut data, left, padding } => {
                let taken = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
                data.extend_from_slice(&bytes[..taken]);
                self.member.extend_from_slice(&bytes[..taken]);
                let left = left - taken as u64;
                if left > 0 {
                    (taken, State::Extended { kind, data, left, padding })
                } else {
                    self.extend(kind, &data)?;
                    (taken, State::Padding(padding))
                }
            }
            State::Content(content) => self.content(content, bytes)?,
            State::Padding(left) => {
                let taken = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
                self.member.extend_from_slice(&bytes[..taken]);
                match left - taken as u64 {
                    0 => (taken, State::Header(Vec::with_capacity(BLOCK))),
                    left => (taken, State::Padding(left)),
                }
            }
            State::End => {
                self.member.extend_from_slice(bytes);
                (bytes.len(), State::End)
            }
        };
        self.state = next;
        Ok(taken)
    }

    fn extend(&mut self, kind: u8, data: &[u8]) -> io::Result<()> {
        let text = || data.split(|byte| *byte == 0).next().unwrap_or_default().to_vec();
        match kind {
            b'L' => self.extended.name = Some(text()),
            b'K' => self.extended.link = Some(text()),
            _ => {
                let records = records(data).ok_or_else(|| bad("malformed PAX record"))?;
                self.extended.records.extend(records);
            }
        }
        Ok(())
    }
}

impl<W: Write> Write for Writer<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut rest = bytes;
        while !rest.is_empty() {
            let taken = self.step(rest)?;
            rest = &rest[taken..];
        }
        self.diff.update(bytes);
        self.uncompressed += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Where the table begins, in the header of an empty gzip member of 51 bytes.
fn footer(offset: u64) -> Vec<u8> {
    let field = format!("{offset:016x}STARGZ");
    let mut out = vec![0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 255];
    out.extend_from_slice(&(field.len() as u16 + 4).to_le_bytes());
    out.extend_from_slice(b"SG");
    out.extend_from_slice(&(field.len() as u16).to_le_bytes());
    out.extend_from_slice(field.as_bytes());
    // One empty stored block, then sum and length of nothing.
    out.extend_from_slice(&[1, 0, 0, 0xff, 0xff]);
    out.extend_from_slice(&Crc::new().sum().to_le_bytes());
    out.extend_from_slice(&[0; 4]);
    out
}

fn bad(reason: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason.to_owned())
}

fn padding(size: u64) -> u64 {
    size.wrapping_neg() % BLOCK as u64
}

fn field(bytes: &[u8]) -> Vec<u8> {
    bytes.split(|byte| *byte == 0).next().unwrap_or_default().to_vec()
}

/// A number of a header: octal text or, with the top bit, big-endian. Negative ones count as 0.
fn number(bytes: &[u8]) -> Option<u64> {
    if bytes.first()? & 0x80 != 0 {
        if bytes[0] & 0x40 != 0 {
            return Some(0);
        }
        let rest = bytes[1..].iter().try_fold(u64::from(bytes[0] & 0x3f), |sum, byte| {
            (sum >> 56 == 0).then_some(sum << 8 | u64::from(*byte))
        });
        return rest;
    }
    let text = std::str::from_utf8(bytes).ok()?.trim_matches([' ', '\0']);
    if text.is_empty() { Some(0) } else { u64::from_str_radix(text, 8).ok() }
}

fn records(mut data: &[u8]) -> Option<Vec<(String, Vec<u8>)>> {
    let mut all = Vec::new();
    while !data.is_empty() && data[0] != 0 {
        let space = data.iter().position(|byte| *byte == b' ')?;
        let length: usize = std::str::from_utf8(&data[..space]).ok()?.parse().ok()?;
        if length <= space + 2 || length > data.len() {
            return None;
        }
        let record = &data[space + 1..length - 1];
        let equals = record.iter().position(|byte| *byte == b'=')?;
        let key = String::from_utf8_lossy(&record[..equals]).into_owned();
        all.push((key, record[equals + 1..].to_vec()));
        data = &data[length..];
    }
    Some(all)
}

/// A name, unless the last entry of that id had the same.
fn changed(known: &mut HashMap<u64, String>, id: u64, name: String) -> String {
    if known.get(&id).is_some_and(|last| *last == name) || name.is_empty() {
        return String::new();
    }
    known.insert(id, name.clone());
    name
}

/// RFC 3339 to the nearest second; nothing for the epoch itself.
fn modified(record: Option<&Vec<u8>>, seconds: u64) -> String {
    let text = record.and_then(|value| std::str::from_utf8(value).ok());
    let seconds = i64::try_from(seconds).unwrap_or(0);
    let seconds = match text.and_then(|text| text.parse::<f64>().ok()) {
        Some(exact) if exact.is_finite() => exact.round() as i64,
        _ => seconds,
    };
    if seconds == 0 {
        return String::new();
    }
    time::rfc3339_seconds(time::from_unix_seconds(seconds))
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    /// A tar with folders, links, an empty file and one of several pieces.
    fn sample() -> (Vec<u8>, Vec<u8>) {
        let large: Vec<u8> =
            (0..(CHUNK as usize + 70_001)).map(|at| (at / 7 % 251) as u8).collect();
        let mut tar = Vec::new();
        let mut add = |header: gotar::Header, data: &[u8]| {
            header.write(&mut tar).unwrap();
            tar.extend_from_slice(data);
            gotar::write_padding(&mut tar, data.len() as u64).unwrap();
        };
        let file = |name: &str, data: &[u8]| gotar::Header {
            mtime: 1_700_000_000,
            ..gotar::Header::file(name, 0o644, data.len() as u64)
        };
        add(gotar::Header::folder("d/", 0o755), b"");
        add(file("d/empty", b""), b"");
        let mut small = file("d/small", b"small");
        small.xattrs.insert("user.x".into(), b"v".to_vec());
        add(small, b"small");
        add(file(&"long/".repeat(40), b""), b"");
        add(file("d/large", &large), &large);
        let link = gotar::Header {
            kind: gotar::Kind::Symlink,
            link: b"small".to_vec(),
            ..gotar::Header::file("d/link", 0o777, 0)
        };
        add(link, b"");
        gotar::write_end(&mut tar).unwrap();
        (tar, large)
    }

    fn encode(tar: &[u8], step: usize) -> (Vec<u8>, Table) {
        let mut writer = Writer::new(None, Vec::new());
        for piece in tar.chunks(step) {
            writer.write_all(piece).unwrap();
        }
        writer.finish().unwrap()
    }

    fn gunzip_member(bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        flate2::bufread::GzDecoder::new(bytes).read_to_end(&mut out).unwrap();
        out
    }

    #[test]
    fn every_file_is_found_by_the_table() {
        let (tar, large) = sample();
        let (blob, table) = encode(&tar, 1000);
        assert_eq!(encode(&tar, tar.len()), (blob.clone(), table.clone()));
        // Everything decompressed: the tar, then the table.
        let mut all = Vec::new();
        flate2::bufread::MultiGzDecoder::new(&blob[..]).read_to_end(&mut all).unwrap();
        assert_eq!(&all[..tar.len()], &tar[..]);
        assert_eq!(Digest::of(&all), table.diff_id);
        assert_eq!(all.len() as u64, table.uncompressed_size);
        // The footer leads to the table.
        let footer = &blob[blob.len() - 51..];
        assert_eq!(&footer[12..16], b"SG\x16\0");
        let text = std::str::from_utf8(&footer[16..38]).unwrap();
        let at = usize::from_str_radix(text.strip_suffix("STARGZ").unwrap(), 16).unwrap();
        let index = gunzip_member(&blob[at..]);
        assert!(index.starts_with(TABLE_NAME.as_bytes()));
        let size = number(&index[124..136]).unwrap() as usize;
        let json = &index[512..512 + size];
        assert_eq!(Digest::of(json), table.digest);
        let document: serde_json::Value = serde_json::from_slice(json).unwrap();
        let entries = document["entries"].as_array().unwrap();
        let kinds: Vec<_> = entries.iter().map(|entry| entry["type"].as_str().unwrap()).collect();
        assert_eq!(kinds, ["dir", "reg", "reg", "dir", "reg", "chunk", "symlink"]);
        assert_eq!(entries[2]["xattrs"]["user.x"], "dg==");
        assert_eq!(entries[2]["modtime"], "2023-11-14T22:13:20Z");
        assert_eq!(entries[6]["linkName"], "small");
        for (entry, data) in [
            (&entries[2], &b"small"[..]),
            (&entries[4], &large[..CHUNK as usize]),
            (&entries[5], &large[CHUNK as usize..]),
        ] {
            let at = entry["offset"].as_u64().unwrap() as usize;
            assert_eq!(&gunzip_member(&blob[at..])[..data.len()], data);
            assert_eq!(entry["chunkDigest"], Digest::of(data).to_string());
        }
        assert_eq!(entries[4]["digest"], Digest::of(&large).to_string());
        assert_eq!(entries[4]["chunkSize"], CHUNK);
        assert_eq!(entries[5]["chunkOffset"], CHUNK);
    }

    #[test]
    fn what_cannot_be_said_in_a_table_is_refused() {
        let mut tar = Vec::new();
        gotar::Header::file(TABLE_NAME, 0o644, 0).write(&mut tar).unwrap();
        let mut writer = Writer::new(None, Vec::new());
        assert_eq!(writer.write_all(&tar).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        let (tar, _) = sample();
        let mut writer = Writer::new(None, Vec::new());
        writer.write_all(&tar[..5000]).unwrap();
        assert!(writer.finish().is_err());
    }
}
