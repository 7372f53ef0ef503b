//! Layers whose files are no younger than a given epoch.
//!
//! The tar is copied as it is; only times later than the epoch are cut, in headers and in PAX
//! records. Everything else keeps its bytes, so the result depends on the layer and the epoch
//! alone.

use std::io::{self, Read, Write};

use base::gotar::BLOCK;

/// Largest extended header.
const MAX_EXTENDED: u64 = 1 << 20;

/// Copies a tar, cutting times to `epoch` seconds.
pub(crate) fn rewrite(input: &mut dyn Read, epoch: i64, out: &mut dyn Write) -> io::Result<()> {
    let mut header = [0u8; BLOCK];
    // An extended header whose time record was removed, with what the main header has to say.
    let mut cut_main = false;
    // Size of the next member, if an extended header knows it better.
    let mut real_size = None;
    loop {
        if !read_block(input, &mut header)? {
            return Ok(());
        }
        if header.iter().all(|byte| *byte == 0) {
            out.write_all(&header)?;
            return finish(input, out);
        }
        let kind = header[156];
        let size = number(&header[124..136]).ok_or_else(|| bad("size is not a number"))?;
        let size = u64::try_from(size).map_err(|_| bad("negative size"))?;
        if kind == b'x' {
            if size > MAX_EXTENDED {
                return Err(bad("extended header is too large"));
            }
            let mut data = vec![0; usize::try_from(padded(size)).map_err(|_| bad("size"))?];
            input.read_exact(&mut data)?;
            data.truncate(usize::try_from(size).map_err(|_| bad("size"))?);
            let records = parse_records(&data)?;
            real_size = records
                .iter()
                .find(|(key, _)| key == b"size")
                .and_then(|(_, value)| std::str::from_utf8(value).ok()?.parse().ok());
            let (records, cut, changed) = cut_records(records, epoch);
            cut_main = cut;
            if !changed {
                out.write_all(&header)?;
                out.write_all(&data)?;
                pad(out, data.len() as u64)?;
            } else if !records.is_empty() {
                let data = print_records(&records);
                put_octal(&mut header[124..136], data.len() as u64);
                checksum(&mut header);
                out.write_all(&header)?;
                out.write_all(&data)?;
                pad(out, data.len() as u64)?;
            }
            continue;
        }
        let is_member = !matches!(kind, b'g' | b'L' | b'K');
        if is_member {
            let late = number(&header[136..148]).is_none_or(|mtime| mtime > i128::from(epoch));
            if std::mem::take(&mut cut_main) || late {
                put_octal(&mut header[136..148], u64::try_from(epoch).unwrap_or(0));
                checksum(&mut header);
            }
        }
        let length = if is_member { real_size.take().unwrap_or(size) } else { size };
        out.write_all(&header)?;
        let has_data = !matches!(kind, b'1'..=b'6') || (kind == b'1' && length > 0);
        if has_data {
            let total = padded(length);
            let copied = io::copy(&mut (&mut *input).take(total), out)?;
            if copied != total {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
}

/// Copies the padding after the last member. What else comes there no reader of tars sees: the index
/// of an estargz layer, with times of before, in whose place comes a new one.
fn finish(input: &mut dyn Read, out: &mut dyn Write) -> io::Result<()> {
    let mut block = [0u8; BLOCK];
    while read_block(input, &mut block)? {
        if block.iter().any(|byte| *byte != 0) {
            io::copy(input, &mut io::sink())?;
            break;
        }
        out.write_all(&block)?;
    }
    Ok(())
}

type Record = (Vec<u8>, Vec<u8>);

/// The records with times cut, whether the main header's time has to be, and whether anything
/// changed.
fn cut_records(records: Vec<Record>, epoch: i64) -> (Vec<Record>, bool, bool) {
    let (mut kept, mut cut_main, mut changed) = (Vec::new(), false, false);
    for (key, value) in records {
        let is_time = matches!(key.as_slice(), b"mtime" | b"atime" | b"ctime");
        if !is_time || !is_later(&value, epoch) {
            kept.push((key, value));
            continue;
        }
        changed = true;
        if key == b"mtime" {
            cut_main = true;
        } else {
            kept.push((key, epoch.to_string().into_bytes()));
        }
    }
    (kept, cut_main, changed)
}

/// Whether a PAX time (`seconds[.fraction]`) is later than the epoch.
fn is_later(value: &[u8], epoch: i64) -> bool {
    let text = String::from_utf8_lossy(value);
    let (seconds, fraction) = text.split_once('.').unwrap_or((&text, ""));
    let Ok(seconds) = seconds.parse::<i64>() else { return true };
    let rest = fraction.bytes().any(|digit| digit != b'0');
    seconds > epoch || (seconds == epoch && rest && !text.starts_with('-'))
}

fn parse_records(mut data: &[u8]) -> io::Result<Vec<Record>> {
    let mut records = Vec::new();
    while !data.is_empty() && data[0] != 0 {
        let wrong = || bad("malformed PAX record");
        let space = data.iter().position(|byte| *byte == b' ').ok_or_else(wrong)?;
        let length: usize = std::str::from_utf8(&data[..space])
            .ok()
            .and_then(|text| text.parse().ok())
            .filter(|length| *length > space + 2 && *length <= data.len())
            .ok_or_else(wrong)?;
        let record = &data[space + 1..length - 1];
        let equals = record.iter().position(|byte| *byte == b'=').ok_or_else(wrong)?;
        records.push((record[..equals].to_vec(), record[equals + 1..].to_vec()));
        data = &data[length..];
    }
    Ok(records)
}

fn print_records(records: &[Record]) -> Vec<u8> {
    let mut data = Vec::new();
    for (key, value) in records {
        let rest = key.len() + value.len() + 3;
        let first = rest + rest.to_string().len();
        let length = rest + first.to_string().len();
        data.extend(format!("{length} ").bytes());
        data.extend_from_slice(key);
        data.push(b'=');
        data.extend_from_slice(value);
        data.push(b'\n');
    }
    data
}

/// False at the end of input between members.
fn read_block(input: &mut dyn Read, block: &mut [u8; BLOCK]) -> io::Result<bool> {
    let mut filled = 0;
    while filled < BLOCK {
        match input.read(&mut block[filled..]) {
            Ok(0) if filled == 0 => return Ok(false),
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}

/// A number field: octal text, or base 256 with the high bit set.
fn number(field: &[u8]) -> Option<i128> {
    if field[0] & 0x80 != 0 {
        let negative = field[0] & 0x40 != 0;
        let mut value: i128 = if negative { -1 } else { 0 };
        for (at, byte) in field.iter().enumerate() {
            let byte = if at == 0 && !negative { byte & 0x7f } else { *byte };
            value = value << 8 | i128::from(byte);
        }
        return Some(value);
    }
    let text = std::str::from_utf8(field).ok()?;
    let text = text.trim_matches(|c| c == ' ' || c == '\0');
    if text.is_empty() { Some(0) } else { i128::from_str_radix(text, 8).ok() }
}

fn put_octal(field: &mut [u8], value: u64) {
    let width = field.len() - 1;
    let text = format!("{value:0width$o}");
    field[..width].copy_from_slice(&text.as_bytes()[..width]);
    field[width] = 0;
}

fn checksum(header: &mut [u8; BLOCK]) {
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

fn padded(size: u64) -> u64 {
    size.div_ceil(BLOCK as u64).saturating_mul(BLOCK as u64)
}

fn pad(out: &mut dyn Write, length: u64) -> io::Result<()> {
    base::gotar::write_padding(out, length)
}

fn bad(reason: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("malformed tar: {reason}"))
}

#[cfg(test)]
mod tests {
    use base::{Digest, gotar::Header};
    use oci::compress::{Decoder, Limits};

    use super::*;

    /// The base image's layer becomes the very bytes a real export recorded.
    #[test]
    fn equal_to_the_recorded_rewrite() {
        let blob = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../tests/golden/cache-export/base-image/blobs/sha256/",
            "153b8ae522ef187517823cc25526499d38e92b87c95a95916856b1289da5b4ea"
        );
        let blob = std::fs::read(blob).unwrap();
        let mut input = Decoder::new(&blob[..], Limits::default()).unwrap();
        let mut out = Vec::new();
        rewrite(&mut input, 1_700_000_000, &mut out).unwrap();
        assert_eq!(
            Digest::of(&out).to_string(),
            "sha256:5cad1997436170a0e49ba86ccb60025f3115b8876f4502f3cee228f2b173e37d"
        );
    }

    #[test]
    fn only_late_times_change() {
        let mut tar = Vec::new();
        for (name, mtime) in [("old", 5), ("new", 5_000), ("x".repeat(120).as_str(), 1 << 34)] {
            let header = Header { mtime, ..Header::file(name, 0o644, 3) };
            header.write(&mut tar).unwrap();
            tar.extend(b"abc");
            base::gotar::write_padding(&mut tar, 3).unwrap();
        }
        base::gotar::write_end(&mut tar).unwrap();
        let mut out = Vec::new();
        rewrite(&mut &tar[..], 100, &mut out).unwrap();
        assert_eq!(out.len(), tar.len());
        let mut longer = Vec::new();
        let index = [&tar[..], &tar[..]].concat();
        rewrite(&mut &index[..], 100, &mut longer).unwrap();
        assert_eq!(longer, out);
        assert_eq!(out[..1024], tar[..1024]);
        assert_eq!(&out[1024 + 136..1024 + 148], b"00000000144\0");
        let mut again = Vec::new();
        rewrite(&mut &out[..], 100, &mut again).unwrap();
        assert_eq!(again, out);
        assert!(rewrite(&mut &tar[..700], 100, &mut io::sink()).is_err());
    }
}
