//! Recognises and undoes the compressions a tar may come in.

use std::io::{self, BufRead, BufReader, Read};

/// How a tar is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Not at all, as far as its first bytes tell.
    None,
    /// gzip, of any number of members.
    Gzip,
    /// bzip2.
    Bzip2,
    /// xz.
    Xz,
    /// Zstandard, of any number of frames.
    Zstd,
}

/// Most memory an xz stream may ask for; the tool's highest preset needs 65 MiB.
const XZ_MEMORY_KIB: u32 = 256 << 10;

/// Bytes needed to recognise a compression.
const MAGIC: usize = 6;

impl Compression {
    /// Recognises the compression from the first bytes.
    pub fn detect(start: &[u8]) -> Self {
        let skippable = |start: &[u8]| {
            start.len() >= 4 && start[0] & 0xf0 == 0x50 && start[1..4] == [0x2a, 0x4d, 0x18]
        };
        match start {
            [0x1f, 0x8b, 0x08, ..] => Self::Gzip,
            [b'B', b'Z', b'h', ..] => Self::Bzip2,
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Self::Xz,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Self::Zstd,
            start if skippable(start) => Self::Zstd,
            _ => Self::None,
        }
    }
}

/// Undoes the compression of a stream, whichever it is.
pub fn decompress<'a>(stream: impl Read + Send + 'a) -> io::Result<Box<dyn Read + Send + 'a>> {
    let mut stream = BufReader::with_capacity(64 << 10, stream);
    let mut start = Vec::with_capacity(MAGIC);
    stream.by_ref().take(MAGIC as u64).read_to_end(&mut start)?;
    let compression = Compression::detect(&start);
    let stream = io::Cursor::new(start).chain(stream);
    Ok(match compression {
        Compression::None => Box::new(stream),
        Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(stream)),
        Compression::Bzip2 => Box::new(bzip2::bufread::MultiBzDecoder::new(stream)),
        Compression::Xz => {
            Box::new(lzma_rust2::XzReader::new_mem_limit(stream, true, XZ_MEMORY_KIB))
        }
        Compression::Zstd => Box::new(zstd(stream)?),
    })
}

fn zstd<R: BufRead>(stream: R) -> io::Result<zstd::Decoder<'static, R>> {
    let mut decoder = zstd::Decoder::with_buffer(stream)?;
    // What the zstd tool itself accepts without being asked for more.
    decoder.window_log_max(27)?;
    Ok(decoder)
}
