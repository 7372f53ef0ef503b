//! Reading compressed layers within bounds.

use std::io::{self, BufRead, BufReader, Read};

use crate::Compression;

/// How far input may expand.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// This many bytes of output are always fine.
    pub free: u64,
    /// Beyond them, output may be this many times the input read so far.
    pub ratio: u64,
}

impl Default for Limits {
    /// Ordinary layers compress 2 to 20 times, text dumps 50; deflate can reach 1,030 and zstd
    /// much more, which only zeros do.
    fn default() -> Self {
        Self { free: 512 << 20, ratio: 200 }
    }
}

impl Limits {
    /// No bound at all, for input that we wrote ourselves.
    pub const NONE: Self = Self { free: u64::MAX, ratio: u64::MAX };
}

/// Decompresses what it reads; the format is found from the first bytes.
pub struct Decoder<R: Read> {
    inner: Inner<R>,
    limits: Limits,
    out: u64,
    /// zstd only: one frame must end where the next begins or the input ends.
    compression: Compression,
}

type Source<R> = BufReader<Counting<R>>;

enum Inner<R: Read> {
    Plain(Source<R>),
    Gzip(flate2::bufread::MultiGzDecoder<Source<R>>),
    Zstd(::zstd::stream::read::Decoder<'static, Source<R>>),
}

struct Counting<R> {
    inner: R,
    seen: u64,
}

impl<R: Read> Read for Counting<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.seen += read as u64;
        Ok(read)
    }
}

impl<R: Read> Decoder<R> {
    /// Looks at the first bytes and prepares.
    pub fn new(input: R, limits: Limits) -> io::Result<Self> {
        let mut input = BufReader::with_capacity(64 << 10, Counting { inner: input, seen: 0 });
        // A reader may give a byte at a time; a buffer of its own could not be filled twice.
        let head = input.fill_buf()?;
        let compression = if head.len() >= 4 || head.is_empty() {
            Compression::detect(head)
        } else {
            return Self::from_short_head(input, limits);
        };
        Self::with(compression, input, limits)
    }

    /// As [`Decoder::new`] for a format that is known.
    pub fn of(compression: Compression, input: R, limits: Limits) -> io::Result<Self> {
        let input = BufReader::with_capacity(64 << 10, Counting { inner: input, seen: 0 });
        Self::with(compression, input, limits)
    }

    fn from_short_head(input: Source<R>, limits: Limits) -> io::Result<Self> {
        // Fewer than four bytes at once: by the first byte, which no tar of ours shares.
        let compression = match input.buffer() {
            [0x1f, ..] => Compression::Gzip,
            [0x28 | 0x50..=0x5f, ..] => Compression::Zstd,
            _ => Compression::Uncompressed,
        };
        Self::with(compression, input, limits)
    }

    fn with(compression: Compression, input: Source<R>, limits: Limits) -> io::Result<Self> {
        let inner = match compression {
            Compression::Uncompressed => Inner::Plain(input),
            Compression::Gzip | Compression::Estargz => {
                Inner::Gzip(flate2::bufread::MultiGzDecoder::new(input))
            }
            Compression::Zstd => Inner::Zstd(::zstd::stream::read::Decoder::with_buffer(input)?),
        };
        Ok(Self { inner, limits, out: 0, compression })
    }

    /// What the input turned out to be.
    pub fn compression(&self) -> Compression {
        self.compression
    }

    /// Compressed bytes read so far.
    pub fn bytes_in(&self) -> u64 {
        match &self.inner {
            Inner::Plain(source) => source.get_ref().seen,
            Inner::Gzip(decoder) => decoder.get_ref().get_ref().seen,
            Inner::Zstd(decoder) => decoder.get_ref().get_ref().seen,
        }
    }
}

impl<R: Read> Read for Decoder<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = match &mut self.inner {
            Inner::Plain(source) => return source.read(buffer),
            Inner::Gzip(decoder) => decoder.read(buffer)?,
            Inner::Zstd(decoder) => decoder.read(buffer)?,
        };
        self.out += read as u64;
        if self.out > self.limits.free
            && self.out > self.bytes_in().saturating_mul(self.limits.ratio)
        {
            let text = format!(
                "refusing to decompress further: {} bytes became {}, more than {} times as many",
                self.bytes_in(),
                self.out,
                self.limits.ratio
            );
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        Ok(read)
    }
}
