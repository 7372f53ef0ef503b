//! Writes tar headers the way Go's `archive/tar` does for headers without a format preference:
//! USTAR when everything fits, else a PAX header with just the records needed.

use std::io::{self, Write};

/// Size of everything in a tar.
pub(crate) const BLOCK: usize = 512;

/// What goes into one header.
#[derive(Debug, Clone, Default)]
pub(crate) struct Header {
    /// Path without leading slash; folders end in one.
    pub name: Vec<u8>,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub size: u64,
    /// Whole seconds.
    pub mtime: i64,
    /// Type flag, one of `0` to `6`.
    pub kind: u8,
    pub link: Vec<u8>,
    pub device: (u32, u32),
    /// Value of `security.capability`.
    pub capability: Option<Vec<u8>>,
}

/// Writes one header with what has to precede it.
pub(crate) fn write_header(out: &mut dyn Write, header: &Header) -> io::Result<()> {
    let (records, ustar) = records(header);
    if ustar {
        let mut block = template(header, |text| text.to_vec());
        if let Some(at) = split(&header.name) {
            block[0..100].fill(0);
            put_text(&mut block[0..100], &header.name[at + 1..]);
            put_text(&mut block[345..500], &header.name[..at]);
        }
        return out.write_all(&finished(block));
    }
    let mut data = Vec::new();
    for (key, value) in &records {
        push_record(&mut data, key, value);
    }
    let (folder, base) = match header.name.iter().rposition(|byte| *byte == b'/') {
        Some(at) => header.name.split_at(at + 1),
        None => (&b""[..], &header.name[..]),
    };
    let mut name = ascii(&[folder, b"PaxHeaders.0/", base].concat());
    name.truncate(100);
    while name.ends_with(b"/") {
        name.pop();
    }
    let mut block = [0u8; BLOCK];
    put_text(&mut block[0..100], &name);
    for field in [100..108, 108..116, 116..124] {
        put_octal(&mut block[field], 0);
    }
    put_octal(&mut block[124..136], data.len() as u64);
    put_octal(&mut block[136..148], 0);
    block[156] = b'x';
    out.write_all(&finished(block))?;
    out.write_all(&data)?;
    write_padding(out, data.len() as u64)?;
    out.write_all(&finished(template(header, ascii)))
}

/// Fills the last block of data of `length` bytes.
pub(crate) fn write_padding(out: &mut dyn Write, length: u64) -> io::Result<()> {
    let rest = (length % BLOCK as u64) as usize;
    if rest == 0 { Ok(()) } else { out.write_all(&[0u8; BLOCK][rest..]) }
}

/// Ends a tar.
pub(crate) fn write_end(out: &mut dyn Write) -> io::Result<()> {
    out.write_all(&[0u8; 2 * BLOCK])
}

/// PAX records for what is long or odd, sorted by key, and whether USTAR can do without them.
fn records(header: &Header) -> (Vec<(String, Vec<u8>)>, bool) {
    let mut records: Vec<(String, Vec<u8>)> = Vec::new();
    let mut ustar = true;
    let odd = |text: &[u8]| text.len() > 100 || !is_ascii(text);
    if odd(&header.link) {
        records.push(("linkpath".into(), header.link.clone()));
        ustar = false;
    }
    if odd(&header.name) {
        records.push(("path".into(), header.name.clone()));
        ustar &= split(&header.name).is_some();
    }
    let mut number = |key: &str, value: i128, limit: i128| {
        if value < 0 || value >= limit {
            records.push((key.into(), value.to_string().into_bytes()));
            ustar = false;
        }
    };
    number("uid", header.uid.into(), 1 << 21);
    number("gid", header.gid.into(), 1 << 21);
    number("size", header.size.into(), 1 << 33);
    number("mtime", header.mtime.into(), 1 << 33);
    if let Some(value) = &header.capability {
        records.push(("SCHILY.xattr.security.capability".into(), value.clone()));
        ustar = false;
    }
    records.sort();
    (records, ustar)
}

/// `LENGTH KEY=VALUE\n`, where the length counts itself.
fn push_record(data: &mut Vec<u8>, key: &str, value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + rest.to_string().len();
    if rest + length.to_string().len() != length {
        length = rest + length.to_string().len();
    }
    data.extend_from_slice(format!("{length} {key}=").as_bytes());
    data.extend_from_slice(value);
    data.push(b'\n');
}

/// Where a long name can be split into prefix and name: the slash between them.
fn split(name: &[u8]) -> Option<usize> {
    let mut length = name.len();
    if length <= 100 || !is_ascii(name) {
        return None;
    }
    if length > 156 {
        length = 156;
    } else if name[length - 1] == b'/' {
        length -= 1;
    }
    let at = name[..length].iter().rposition(|byte| *byte == b'/')?;
    let rest = name.len() - at - 1;
    (at > 0 && at <= 155 && rest > 0 && rest <= 100).then_some(at)
}

fn is_ascii(text: &[u8]) -> bool {
    text.iter().all(|byte| (1..0x80).contains(byte))
}

fn ascii(text: &[u8]) -> Vec<u8> {
    text.iter().copied().filter(|byte| (1..0x80).contains(byte)).collect()
}

fn template(header: &Header, text: impl Fn(&[u8]) -> Vec<u8>) -> [u8; BLOCK] {
    let mut block = [0u8; BLOCK];
    put_text(&mut block[0..100], &text(&header.name));
    put_octal(&mut block[100..108], header.mode.into());
    put_octal(&mut block[108..116], header.uid.into());
    put_octal(&mut block[116..124], header.gid.into());
    put_octal(&mut block[124..136], header.size);
    put_octal(&mut block[136..148], u64::try_from(header.mtime).unwrap_or(0));
    block[156] = header.kind;
    put_text(&mut block[157..257], &text(&header.link));
    put_octal(&mut block[329..337], header.device.0.into());
    put_octal(&mut block[337..345], header.device.1.into());
    block
}

/// Adds magic and checksum.
fn finished(mut block: [u8; BLOCK]) -> [u8; BLOCK] {
    block[257..265].copy_from_slice(b"ustar\x0000");
    block[148..156].fill(b' ');
    let sum: u64 = block.iter().map(|byte| u64::from(*byte)).sum();
    put_octal(&mut block[148..155], sum);
    block
}

fn put_text(field: &mut [u8], text: &[u8]) {
    let length = text.len().min(field.len());
    field[..length].copy_from_slice(&text[..length]);
    // Some readers take a cut name ending in a slash for a folder.
    if text.len() > field.len() {
        let mut end = length;
        while end > 0 && field[end - 1] == b'/' {
            end -= 1;
            field[end] = 0;
        }
    }
}

/// Octal digits filling all but the last byte; a number that does not fit becomes 0.
fn put_octal(field: &mut [u8], value: u64) {
    let digits = field.len() - 1;
    let fits = digits * 3 >= 64 || value < 1 << (digits * 3);
    let text = format!("{:0digits$o}", if fits { value } else { 0 });
    field[..digits].copy_from_slice(text.as_bytes());
    field[digits] = 0;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn record_lengths_count_themselves() {
        for length in [1, 85, 86, 87, 88, 89, 90, 980, 981, 982, 983, 984, 985, 986] {
            let mut data = Vec::new();
            push_record(&mut data, "path", &vec![b'x'; length]);
            let text = String::from_utf8(data.clone()).unwrap();
            assert_eq!(text.split(' ').next().unwrap().parse(), Ok(data.len()), "{length}");
        }
    }
}
