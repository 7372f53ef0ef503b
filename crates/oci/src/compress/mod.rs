//! Layers in and out of their compressed forms, on all cores, with the same bytes every time.
//!
//! [`Encoder`] compresses what is written to it; [`LayerWriter`] also computes the digests on both
//! sides. Output depends on the input and the level alone, not on threads or write sizes, so equal
//! layers have equal blobs within one version of this program. [`Decoder`] refuses input that
//! expands beyond all measure.

mod decode;
pub mod estargz;
mod gzip;
mod layer;
mod zstd;

use std::io::{self, Write};

pub use decode::{Decoder, Limits};
pub use layer::{LayerWriter, Written};

/// How a layer blob is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Compression {
    /// A plain tar.
    Uncompressed,
    /// gzip: what everybody reads.
    Gzip,
    /// gzip whose members can be fetched one by one.
    Estargz,
    /// zstd: faster and smaller.
    Zstd,
}

impl Compression {
    /// By the name used in attributes; the empty name is gzip.
    pub fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "uncompressed" => Self::Uncompressed,
            "" | "gzip" => Self::Gzip,
            "estargz" => Self::Estargz,
            "zstd" => Self::Zstd,
            _ => return None,
        })
    }

    /// Name used in attributes.
    pub fn name(self) -> &'static str {
        match self {
            Self::Uncompressed => "uncompressed",
            Self::Gzip => "gzip",
            Self::Estargz => "estargz",
            Self::Zstd => "zstd",
        }
    }

    /// From the first bytes of a blob (six are enough).
    pub fn detect(head: &[u8]) -> Self {
        match head {
            [0x1f, 0x8b, 0x08, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Self::Zstd,
            // A skippable frame may come first, e.g. from a parallel compressor.
            [b, 0x2a, 0x4d, 0x18, ..] if (0x50..=0x5f).contains(b) => Self::Zstd,
            _ => Self::Uncompressed,
        }
    }

    /// Allowed levels; `None`: the level means nothing here.
    pub fn levels(self) -> Option<std::ops::RangeInclusive<i32>> {
        match self {
            Self::Uncompressed => None,
            Self::Gzip | Self::Estargz => Some(0..=9),
            Self::Zstd => Some(0..=22),
        }
    }
}

/// Compresses to `out` what is written to it. [`Encoder::finish`] must be called at the end.
pub struct Encoder<W: Write>(Inner<W>);

enum Inner<W: Write> {
    Plain(W),
    Gzip(gzip::Writer<W>),
    Zstd(zstd::Writer<W>),
    Estargz(Box<estargz::Writer<W>>),
}

impl<W: Write> Encoder<W> {
    /// Compresses with `level`, or with the usual one. What becomes estargz must be a tar.
    pub fn new(compression: Compression, level: Option<i32>, out: W) -> io::Result<Self> {
        if let (Some(level), Some(levels)) = (level, compression.levels())
            && !levels.contains(&level)
        {
            let name = compression.name();
            let text = format!("compression level {level} is not one of {name}'s ({levels:?})");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        Ok(Self(match compression {
            Compression::Uncompressed => Inner::Plain(out),
            Compression::Gzip => Inner::Gzip(gzip::Writer::new(level, out)?),
            Compression::Zstd => Inner::Zstd(zstd::Writer::new(level, out)),
            Compression::Estargz => Inner::Estargz(Box::new(estargz::Writer::new(level, out))),
        }))
    }

    /// Writes what is left and returns the output; of estargz also what it is known by.
    pub fn finish(self) -> io::Result<(W, Option<estargz::Table>)> {
        Ok(match self.0 {
            Inner::Plain(out) => (out, None),
            Inner::Gzip(writer) => (writer.finish()?, None),
            Inner::Zstd(writer) => (writer.finish()?, None),
            Inner::Estargz(writer) => {
                let (out, table) = writer.finish()?;
                (out, Some(table))
            }
        })
    }
}

impl<W: Write> Write for Encoder<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.0 {
            Inner::Plain(out) => out.write(bytes),
            Inner::Gzip(writer) => writer.write(bytes),
            Inner::Zstd(writer) => writer.write(bytes),
            Inner::Estargz(writer) => writer.write(bytes),
        }
    }

    /// Does nothing: flushing in the middle would change the output.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use base::Digest;
    use proptest::prelude::*;

    use super::*;

    fn encode(kind: Compression, level: Option<i32>, data: &[u8], step: usize) -> Vec<u8> {
        let mut writer = LayerWriter::new(kind, level, Vec::new()).unwrap();
        for piece in data.chunks(step.max(1)) {
            writer.write_all(piece).unwrap();
        }
        let written = writer.finish().unwrap();
        assert_eq!(written.diff_id, Digest::of(data));
        assert_eq!(written.digest, Digest::of(&written.out));
        assert_eq!(written.size, written.out.len() as u64);
        assert_eq!(written.uncompressed_size, data.len() as u64);
        written.out
    }

    fn decode(data: &[u8], limits: Limits) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        Decoder::new(data, limits)?.read_to_end(&mut out)?;
        Ok(out)
    }

    /// Text-like data that compresses a little.
    fn sample(length: usize) -> Vec<u8> {
        let mut state = 0x2545_f491_4f6c_dd1du64;
        let mut step = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        let words: Vec<String> = (0..500).map(|_| format!("{:x} ", step() % 0xff_ffff)).collect();
        let mut out = Vec::with_capacity(length + 16);
        while out.len() < length {
            out.extend(words[usize::try_from(step() % 500).unwrap()].bytes());
        }
        out.truncate(length);
        out
    }

    #[test]
    fn bytes_survive_and_do_not_depend_on_write_sizes() {
        for kind in [Compression::Uncompressed, Compression::Gzip, Compression::Zstd] {
            for length in [0, 1, 1000, 128 << 10, (128 << 10) + 1, 3 << 20] {
                let data = sample(length);
                let whole = encode(kind, None, &data, data.len());
                assert_eq!(whole, encode(kind, None, &data, 4093), "{kind:?} {length}");
                assert_eq!(decode(&whole, Limits::default()).unwrap(), data, "{kind:?} {length}");
                if length > 6 {
                    assert_eq!(Compression::detect(&whole), kind);
                }
            }
        }
    }

    #[test]
    fn gzip_header_and_level_range() {
        let out = encode(Compression::Gzip, Some(9), b"abc", 1);
        assert_eq!(out[..10], [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255]);
        let error = Encoder::new(Compression::Gzip, Some(10), Vec::new()).err().unwrap();
        assert_eq!(error.to_string(), "compression level 10 is not one of gzip's (0..=9)");
        for level in 0..=9 {
            let data = sample(300_000);
            assert_eq!(
                decode(&encode(Compression::Gzip, Some(level), &data, 999), Limits::NONE).unwrap(),
                data
            );
        }
    }

    #[test]
    fn bombs_are_refused() {
        let zeros = vec![0; 64 << 20];
        let limits = Limits { free: 1 << 20, ratio: 200 };
        for kind in [Compression::Gzip, Compression::Zstd] {
            let bomb = encode(kind, None, &zeros, 1 << 20);
            assert!(bomb.len() < 200_000);
            let error = decode(&bomb, limits).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{error}");
            assert_eq!(decode(&bomb, Limits::default()).unwrap().len(), zeros.len());
        }
    }

    #[test]
    fn truncated_input_is_an_error() {
        let data = sample(1 << 20);
        for kind in [Compression::Gzip, Compression::Zstd] {
            let whole = encode(kind, None, &data, 1 << 16);
            assert!(decode(&whole[..whole.len() - 5], Limits::default()).is_err(), "{kind:?}");
            assert!(decode(&whole[..whole.len() / 2], Limits::default()).is_err(), "{kind:?}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn any_bytes(data in proptest::collection::vec(any::<u8>(), 0..400_000), step in 1usize..70_000) {
            for kind in [Compression::Gzip, Compression::Zstd] {
                let out = encode(kind, Some(1), &data, step);
                prop_assert_eq!(decode(&out, Limits::default()).unwrap(), data.clone());
            }
        }
    }
}
