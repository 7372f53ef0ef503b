//! Reads tars of any origin: V7, USTAR, GNU and PAX, sparse files included.
//!
//! Everything that is kept in memory is bounded by [`Limits`] before it is read. Names come out as
//! they stand; making sense of them safely is `unpack`'s part.

use std::io::{self, Read};

use base::{Hasher, gotar::BLOCK};

use super::{LayerError, Limits};
use crate::sys::Time;

/// Most zeros and other bytes after the end of a tar, which only count for its digest.
const MOST_TRAILING: u64 = 64 << 20;

/// Most pieces of a sparse file.
const MOST_PIECES: usize = 1 << 20;

/// One entry.
#[derive(Debug, Clone, Default)]
pub(crate) struct Entry {
    pub name: Vec<u8>,
    pub link: Vec<u8>,
    /// Type flag; a regular file is always `0`.
    pub kind: u8,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Length of the file, holes included.
    pub size: u64,
    pub mtime: Time,
    pub atime: Option<Time>,
    pub device: (u32, u32),
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Pieces (offset, length) of a sparse file that the data consists of.
    pub sparse: Option<Vec<(u64, u64)>>,
}

impl Entry {
    /// Name for messages.
    pub fn shown(&self) -> String {
        String::from_utf8_lossy(&self.name).into_owned()
    }
}

pub(crate) struct TarReader<'a> {
    source: Source<'a>,
    limits: &'a Limits,
    /// Data of the current entry that was not read yet, and its padding.
    data_left: u64,
    padding: u64,
    entries: u64,
    extended_headers: u64,
    total: u64,
}

struct Source<'a> {
    inner: &'a mut dyn Read,
    hasher: Hasher,
    offset: u64,
}

/// What extended headers say about the entry that follows.
#[derive(Default, Clone)]
struct Extended {
    name: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    uid: Option<u32>,
    gid: Option<u32>,
    size: Option<u64>,
    mtime: Option<Time>,
    atime: Option<Time>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    sparse_version: Option<(Vec<u8>, Vec<u8>)>,
    sparse_name: Option<Vec<u8>>,
    sparse_size: Option<u64>,
    sparse_numbers: Vec<u64>,
}

impl Source<'_> {
    fn fill(&mut self, buffer: &mut [u8]) -> Result<usize, LayerError> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.inner.read(&mut buffer[filled..]) {
                Ok(0) => break,
                Ok(length) => filled += length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(cause) => return Err(LayerError::Stream { doing: "read", cause }),
            }
        }
        self.hasher.update(&buffer[..filled]);
        self.offset += filled as u64;
        Ok(filled)
    }

    fn exact(&mut self, buffer: &mut [u8]) -> Result<(), LayerError> {
        let wanted = buffer.len();
        match self.fill(buffer)? {
            filled if filled == wanted => Ok(()),
            _ => Err(self.malformed("it ends in the middle of an entry")),
        }
    }

    fn malformed(&self, reason: impl Into<String>) -> LayerError {
        LayerError::Malformed { offset: self.offset, reason: reason.into() }
    }
}

impl<'a> TarReader<'a> {
    pub fn new(inner: &'a mut dyn Read, limits: &'a Limits) -> Self {
        let source = Source { inner, hasher: Hasher::new(), offset: 0 };
        Self { source, limits, data_left: 0, padding: 0, entries: 0, extended_headers: 0, total: 0 }
    }

    /// The next entry; what was not read of the one before is skipped.
    pub fn next(&mut self) -> Result<Option<Entry>, LayerError> {
        self.skip()?;
        let mut extended = Extended::default();
        loop {
            let mut block = [0u8; BLOCK];
            match self.source.fill(&mut block)? {
                BLOCK => {}
                0 => return Ok(None),
                _ => return Err(self.source.malformed("it ends in the middle of a header")),
            }
            if block.iter().all(|byte| *byte == 0) {
                return match self.source.fill(&mut block)? {
                    0 => Ok(None),
                    BLOCK if block.iter().all(|byte| *byte == 0) => Ok(None),
                    _ => Err(self.source.malformed("a lone zero block before a header")),
                };
            }
            let raw = RawHeader(&block);
            raw.check().map_err(|reason| self.source.malformed(reason))?;
            let size = raw.number(124..136).map_err(|reason| self.source.malformed(reason))?;
            let size = u64::try_from(size)
                .map_err(|_| self.source.malformed("an entry of negative size"))?;
            match raw.0[156] {
                b'x' => {
                    let data = self.extended_data(size)?;
                    self.parse_records(&data, &mut extended)?;
                }
                b'g' => drop(self.extended_data(size)?),
                b'L' => extended.name = Some(until_nul(&self.extended_data(size)?)),
                b'K' => extended.link = Some(until_nul(&self.extended_data(size)?)),
                _ => return self.entry(&block, size, extended).map(Some),
            }
        }
    }

    /// Reads data of the current entry; 0 at its end. Holes of sparse files are left out.
    pub fn read(&mut self, buffer: &mut [u8]) -> Result<usize, LayerError> {
        let most = usize::try_from(self.data_left).unwrap_or(usize::MAX).min(buffer.len());
        if most == 0 {
            return Ok(0);
        }
        self.source.exact(&mut buffer[..most])?;
        self.data_left -= most as u64;
        Ok(most)
    }

    /// Reads to the end of the stream and gives digest and length of all of it.
    pub fn finish(mut self) -> Result<super::LayerInfo, LayerError> {
        let mut buffer = vec![0u8; 64 << 10];
        let end = self.source.offset;
        loop {
            if self.source.fill(&mut buffer)? == 0 {
                break;
            }
            if self.source.offset - end > MOST_TRAILING {
                return Err(self.source.malformed("too much data after its end"));
            }
        }
        let Source { hasher, offset, .. } = self.source;
        Ok(super::LayerInfo { diff_id: hasher.finish(), size: offset, entries: self.entries })
    }

    fn skip(&mut self) -> Result<(), LayerError> {
        let mut buffer = [0u8; 16 << 10];
        while self.data_left > 0 {
            self.read(&mut buffer)?;
        }
        let padding = usize::try_from(self.padding).expect("padding is less than a block");
        self.padding = 0;
        // Go and GNU tar accept an archive that is cut within its last padding.
        self.source.fill(&mut buffer[..padding]).map(drop)
    }

    fn extended_data(&mut self, size: u64) -> Result<Vec<u8>, LayerError> {
        if size > self.limits.header_size as u64 {
            return Err(LayerError::Limit {
                entry: format!("extended header at offset {}", self.source.offset),
                limit: format!("{size} bytes of at most {}", self.limits.header_size),
            });
        }
        let mut data = vec![0u8; usize::try_from(size).expect("it is below a limit of memory")];
        self.source.exact(&mut data)?;
        self.padding = padding(size);
        self.skip()?;
        self.count_extended()?;
        Ok(data)
    }

    fn count_extended(&mut self) -> Result<(), LayerError> {
        self.extended_headers += 1;
        // They count by themselves, or an endless run of them would never meet a limit.
        if self.extended_headers > self.limits.entries.saturating_mul(2) {
            let entry = format!("extended header at offset {}", self.source.offset);
            let limit = format!("at most {} entries", self.limits.entries);
            return Err(LayerError::Limit { entry, limit });
        }
        Ok(())
    }

    fn parse_records(&self, data: &[u8], extended: &mut Extended) -> Result<(), LayerError> {
        for record in pax_records(data) {
            let (key, value) = record.map_err(|reason| self.source.malformed(reason))?;
            extended.take(key, value).map_err(|()| {
                let key = String::from_utf8_lossy(key).into_owned();
                self.source.malformed(format!("an extended header with a bad value of {key}"))
            })?;
        }
        Ok(())
    }

    fn entry(
        &mut self,
        block: &[u8; BLOCK],
        size: u64,
        extended: Extended,
    ) -> Result<Entry, LayerError> {
        let raw = RawHeader(block);
        let mut entry = self.plain(&raw).map_err(|reason| self.source.malformed(reason))?;
        let stored = extended.size.unwrap_or(size);
        let header_only = matches!(entry.kind, b'1'..=b'6');
        entry.size = if header_only { 0 } else { stored };
        let Extended { name, link, uid, gid, mtime, atime, xattrs, sparse_name, .. } = &extended;
        if let Some(name) = sparse_name.as_ref().or(name.as_ref()) {
            entry.name.clone_from(name);
        }
        if let Some(link) = link {
            entry.link.clone_from(link);
        }
        entry.uid = uid.unwrap_or(entry.uid);
        entry.gid = gid.unwrap_or(entry.gid);
        entry.mtime = mtime.unwrap_or(entry.mtime);
        entry.atime = atime.or(entry.atime);
        entry.xattrs.clone_from(xattrs);
        // In V7 tars a folder is a file whose name ends in a slash.
        if entry.kind == 0 {
            entry.kind = if entry.name.ends_with(b"/") { b'5' } else { b'0' };
        }
        self.data_left = entry.size;
        self.padding = padding(entry.size);
        if entry.kind == b'S' || extended.is_sparse() {
            let map = self.sparse_map(&raw, &extended, &mut entry)?;
            self.check_map(&entry, &map)?;
            entry.kind = b'0';
            entry.sparse = Some(map);
        }
        if entry.kind == b'7' {
            entry.kind = b'0';
        }
        self.check(&entry)?;
        Ok(entry)
    }

    fn check(&mut self, entry: &Entry) -> Result<(), LayerError> {
        self.entries += 1;
        self.total = self.total.saturating_add(entry.size);
        let over = |limit: String| Err(LayerError::Limit { entry: cut(&entry.name), limit });
        if self.entries > self.limits.entries {
            return over(format!("at most {} entries", self.limits.entries));
        }
        if entry.name.len().max(entry.link.len()) > self.limits.name_length {
            return over(format!("names of at most {} bytes", self.limits.name_length));
        }
        if self.total > self.limits.total_size || self.data_left > self.limits.total_size {
            return over(format!("at most {} bytes of content", self.limits.total_size));
        }
        let has_nul = |text: &[u8]| text.contains(&0);
        if entry.name.is_empty() || has_nul(&entry.name) || has_nul(&entry.link) {
            let reason = "its name is no path".to_owned();
            return Err(LayerError::Entry { entry: cut(&entry.name), reason });
        }
        Ok(())
    }

    fn plain(&self, raw: &RawHeader) -> Result<Entry, &'static str> {
        let id = |number: i64| u32::try_from(number).map_err(|_| "an owner that is no number");
        let device = |number: i64| u32::try_from(number).unwrap_or(0);
        let mut entry = Entry {
            name: until_nul(&raw.0[0..100]),
            link: until_nul(&raw.0[157..257]),
            kind: raw.0[156],
            mode: (raw.number(100..108)? & 0o7777) as u32,
            uid: id(raw.number(108..116)?)?,
            gid: id(raw.number(116..124)?)?,
            mtime: Time { sec: raw.number(136..148)?, nsec: 0 },
            ..Entry::default()
        };
        if matches!(entry.kind, b'3' | b'4') {
            entry.device = (device(raw.number(329..337)?), device(raw.number(337..345)?));
        }
        if &raw.0[257..263] == b"ustar\0" && raw.0[345] != 0 {
            let end = if &raw.0[508..512] == b"tar\0" { 476 } else { 500 };
            let prefix = until_nul(&raw.0[345..end]);
            entry.name = [&prefix[..], b"/", &entry.name].concat();
        }
        Ok(entry)
    }

    /// Finds the map of a sparse file, wherever its format keeps it.
    fn sparse_map(
        &mut self,
        raw: &RawHeader<'_>,
        extended: &Extended,
        entry: &mut Entry,
    ) -> Result<Vec<(u64, u64)>, LayerError> {
        let mut numbers = extended.sparse_numbers.clone();
        if entry.kind == b'S' {
            let bad =
                |reason: &'static str| LayerError::Malformed { offset: 0, reason: reason.into() };
            let unsigned =
                |number: i64| u64::try_from(number).map_err(|_| bad("a negative offset"));
            entry.size = unsigned(raw.number(483..495).map_err(bad)?)?;
            let mut block = *raw.0;
            let (mut fields, mut more) = (386..482, 482);
            loop {
                for at in fields.clone().step_by(24) {
                    if block[at] == 0 {
                        break;
                    }
                    let raw = RawHeader(&block);
                    numbers.push(unsigned(raw.number(at..at + 12).map_err(bad)?)?);
                    numbers.push(unsigned(raw.number(at + 12..at + 24).map_err(bad)?)?);
                }
                if block[more] == 0 || numbers.len() > 2 * MOST_PIECES {
                    break;
                }
                self.source.exact(&mut block)?;
                (fields, more) = (0..504, 504);
            }
        } else if extended.sparse_in_data() {
            let count = self.map_number(entry)?;
            if count > MOST_PIECES as u64 {
                return Err(self.source.malformed("a sparse file of too many pieces"));
            }
            for _ in 0..2 * count {
                let number = self.map_number(entry)?;
                numbers.push(number);
            }
            // The map fills whole blocks.
            while !(entry.size - self.data_left).is_multiple_of(BLOCK as u64) && self.data_left > 0
            {
                self.read(&mut [0])?;
            }
            entry.size = extended.sparse_size.unwrap_or(entry.size);
        } else {
            entry.size = extended.sparse_size.unwrap_or(entry.size);
        }
        if numbers.len() > 2 * MOST_PIECES || !numbers.len().is_multiple_of(2) {
            return Err(self.source.malformed("a sparse file with a broken map"));
        }
        Ok(numbers.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect())
    }

    /// One decimal number of a map that stands before the data.
    fn map_number(&mut self, entry: &Entry) -> Result<u64, LayerError> {
        let mut number = 0u64;
        for _ in 0..20 {
            let mut byte = [0];
            if self.read(&mut byte)? == 0 {
                break;
            }
            match byte[0] {
                b'\n' => return Ok(number),
                digit @ b'0'..=b'9' => {
                    number = number.saturating_mul(10).saturating_add(u64::from(digit - b'0'));
                }
                _ => break,
            }
        }
        Err(LayerError::Entry { entry: entry.shown(), reason: "its sparse map is broken".into() })
    }

    fn check_map(&self, entry: &Entry, map: &[(u64, u64)]) -> Result<(), LayerError> {
        let mut end = 0u64;
        let mut sum = 0u64;
        for (offset, length) in map {
            let next = offset.checked_add(*length).filter(|next| *next <= entry.size);
            match next {
                Some(next) if *offset >= end => end = next,
                _ => return Err(self.source.malformed("a sparse file with a broken map")),
            }
            sum = sum.saturating_add(*length);
        }
        if sum != self.data_left {
            return Err(self.source.malformed("a sparse file whose map does not fit its data"));
        }
        Ok(())
    }
}

impl Extended {
    fn is_sparse(&self) -> bool {
        self.sparse_in_data() || !self.sparse_numbers.is_empty()
    }

    fn sparse_in_data(&self) -> bool {
        matches!(&self.sparse_version, Some((major, minor)) if major == b"1" && minor == b"0")
    }

    fn take(&mut self, key: &[u8], value: &[u8]) -> Result<(), ()> {
        let text = || str::from_utf8(value).map_err(drop);
        let number = || text()?.parse::<u64>().map_err(drop);
        let version = |extended: &mut Self| {
            extended.sparse_version.get_or_insert_with(Default::default).clone()
        };
        match key {
            // An empty value takes the record back.
            b"path" => self.name = Some(value.to_vec()).filter(|name| !name.is_empty()),
            b"linkpath" => self.link = Some(value.to_vec()).filter(|link| !link.is_empty()),
            b"uid" if !value.is_empty() => self.uid = Some(text()?.parse().map_err(drop)?),
            b"gid" if !value.is_empty() => self.gid = Some(text()?.parse().map_err(drop)?),
            b"size" if !value.is_empty() => self.size = Some(number()?),
            b"mtime" if !value.is_empty() => self.mtime = Some(pax_time(text()?)?),
            b"atime" if !value.is_empty() => self.atime = Some(pax_time(text()?)?),
            b"GNU.sparse.major" => self.sparse_version = Some((value.to_vec(), version(self).1)),
            b"GNU.sparse.minor" => self.sparse_version = Some((version(self).0, value.to_vec())),
            b"GNU.sparse.name" => self.sparse_name = Some(value.to_vec()),
            b"GNU.sparse.size" | b"GNU.sparse.realsize" => self.sparse_size = Some(number()?),
            b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => self.sparse_numbers.push(number()?),
            b"GNU.sparse.map" => {
                self.sparse_numbers = text()?
                    .split(',')
                    .map(|number| number.parse().map_err(drop))
                    .collect::<Result<_, ()>>()?;
            }
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    self.xattrs.push((name.to_vec(), value.to_vec()));
                }
            }
        }
        Ok(())
    }
}

/// Splits `LENGTH KEY=VALUE\n` records.
fn pax_records(mut data: &[u8]) -> impl Iterator<Item = Result<(&[u8], &[u8]), &'static str>> {
    std::iter::from_fn(move || {
        if data.is_empty() {
            return None;
        }
        let record = next_record(data);
        data = record.map_or(&[][..], |(_, _, rest)| rest);
        Some(record.map(|(key, value, _)| (key, value)).ok_or("a broken extended header"))
    })
}

fn next_record(data: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = data.iter().take(20).position(|byte| *byte == b' ')?;
    let length: usize = str::from_utf8(&data[..space]).ok()?.parse().ok()?;
    if length < space + 3 || length > data.len() || data[length - 1] != b'\n' {
        return None;
    }
    let record = &data[space + 1..length - 1];
    let equals = record.iter().position(|byte| *byte == b'=')?;
    Some((&record[..equals], &record[equals + 1..], &data[length..]))
}

/// Seconds with an optional fraction.
fn pax_time(text: &str) -> Result<Time, ()> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let sec: i64 = whole.parse().map_err(drop)?;
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(());
    }
    let digits: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    let nsec: u32 = digits.parse().map_err(drop)?;
    if whole.starts_with('-') && nsec > 0 {
        let sec = sec.checked_sub(1).ok_or(())?;
        return Ok(Time { sec, nsec: 1_000_000_000 - nsec });
    }
    Ok(Time { sec, nsec })
}

struct RawHeader<'a>(&'a [u8; BLOCK]);

impl RawHeader<'_> {
    fn check(&self) -> Result<(), &'static str> {
        let wanted = self.number(148..156)?;
        let sum = |signed: bool| -> i64 {
            let value = |(at, byte): (usize, &u8)| match at {
                148..156 => i64::from(b' '),
                _ if signed => i64::from(*byte as i8),
                _ => i64::from(*byte),
            };
            self.0.iter().enumerate().map(value).sum()
        };
        if wanted == sum(false) || wanted == sum(true) {
            Ok(())
        } else {
            Err("a header whose checksum is wrong")
        }
    }

    /// A number in octal, or in GNU's binary form.
    fn number(&self, field: std::ops::Range<usize>) -> Result<i64, &'static str> {
        let field = &self.0[field];
        if field[0] & 0x80 != 0 {
            let negative = field[0] & 0x40 != 0;
            let mut value: i128 = if negative { -1 } else { 0 };
            for (at, byte) in field.iter().enumerate() {
                let byte = if at == 0 && !negative { byte & 0x7f } else { *byte };
                if value.unsigned_abs() >= 1 << 100 {
                    return Err("a number that is too large");
                }
                value = value << 8 | i128::from(byte);
            }
            return i64::try_from(value).map_err(|_| "a number that is too large");
        }
        let text = field.split(|byte| *byte == 0).next().unwrap_or_default();
        let text = text.trim_ascii();
        let mut value = 0i64;
        for digit in text {
            if !(b'0'..=b'7').contains(digit) {
                return Err("a number that is not octal");
            }
            value = value
                .checked_mul(8)
                .and_then(|value| value.checked_add(i64::from(digit - b'0')))
                .ok_or("a number that is too large")?;
        }
        Ok(value)
    }
}

fn until_nul(text: &[u8]) -> Vec<u8> {
    text.split(|byte| *byte == 0).next().unwrap_or_default().to_vec()
}

fn padding(size: u64) -> u64 {
    size.wrapping_neg() % BLOCK as u64
}

/// A name short enough for a message.
fn cut(name: &[u8]) -> String {
    String::from_utf8_lossy(&name[..name.len().min(200)]).into_owned()
}

/// Parses any bytes as a tar and reads all its data; for fuzzing.
pub fn fuzz_tar(bytes: &[u8]) {
    let limits = Limits { entries: 1000, header_size: 1 << 16, ..Limits::default() };
    let mut source = bytes;
    let mut reader = TarReader::new(&mut source, &limits);
    let mut buffer = [0u8; 4096];
    while let Ok(Some(_)) = reader.next() {
        while reader.read(&mut buffer).is_ok_and(|length| length > 0) {}
    }
}
