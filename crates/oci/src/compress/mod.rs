//! Layers in and out of their compressed forms, on all cores, with the same bytes every time.
//!
//! [`Encoder`] compresses what is written to it; [`LayerWriter`] also computes the digests on both
//! sides. Output depends on the input and the level alone, not on threads or write sizes, so equal
//! layers have equal blobs within one version of this program. [`Decoder`] refuses input that
//! expands beyond all measure.

mod decode;
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
}

impl<W: Write> Encoder<W> {
    /// Compresses with `level`, or with the usual one. Estargz is not made here: its table of
    /// contents needs the tar's structure.
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
            Compression::Estargz => {
                let text = "estargz layers cannot be written yet; gzip and zstd can";
                return Err(io::Error::new(io::ErrorKind::Unsupported, text));
            }
        }))
    }

    /// Writes what is left and returns the output.
    pub fn finish(self) -> io::Result<W> {
        match self.0 {
            Inner::Plain(out) => Ok(out),
            Inner::Gzip(writer) => writer.finish(),
            Inner::Zstd(writer) => writer.finish(),
        }
    }
}

impl<W: Write> Write for Encoder<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.0 {
            Inner::Plain(out) => out.write(bytes),
            Inner::Gzip(writer) => writer.write(bytes),
            Inner::Zstd(writer) => writer.write(bytes),
        }
    }

    /// Does nothing: flushing in the middle would change the output.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
