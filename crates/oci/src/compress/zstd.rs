//! zstd with its own threads.
//!
//! The library cuts the input into jobs whose size depends on the level alone; the number of
//! workers does not change the output as long as there is at least one. Input up to a
//! fixed size is compressed in one go on the caller's thread, so small layers start no threads.

use std::io::{self, Write};

use ::zstd::stream::{raw::CParameter, write::Encoder as Frame};

/// Up to here, one-shot. Part of the format: changing it changes digests.
const SMALL: usize = 512 << 10;

pub(super) struct Writer<W: Write> {
    level: i32,
    state: State<W>,
}

enum State<W: Write> {
    /// Not known yet whether it will be more than [`SMALL`].
    Small {
        out: W,
        held: Vec<u8>,
    },
    Large(Frame<'static, W>),
    /// Starting the frame failed.
    Broken,
}

/// The four speeds of the peer's compressor as levels of the reference implementation.
fn library_level(level: Option<i32>) -> i32 {
    match level {
        Some(..=2) => 1,
        None | Some(3..=5) => 3,
        Some(6..=9) => 7,
        Some(10..) => 11,
    }
}

impl<W: Write> Writer<W> {
    pub(super) fn new(level: Option<i32>, out: W) -> Self {
        Self { level: library_level(level), state: State::Small { out, held: Vec::new() } }
    }

    fn grow(&mut self) -> io::Result<()> {
        let State::Small { out, held } = std::mem::replace(&mut self.state, State::Broken) else {
            return Err(io::Error::other("zstd frame could not be started"));
        };
        let workers = std::thread::available_parallelism().map_or(1, usize::from).min(64);
        let mut frame = Frame::new(out, self.level)?;
        frame.set_parameter(CParameter::NbWorkers(u32::try_from(workers).unwrap_or(1)))?;
        frame.write_all(&held)?;
        self.state = State::Large(frame);
        Ok(())
    }

    pub(super) fn finish(self) -> io::Result<W> {
        match self.state {
            State::Small { mut out, held } => {
                out.write_all(&::zstd::bulk::compress(&held, self.level)?)?;
                Ok(out)
            }
            State::Large(frame) => frame.finish(),
            State::Broken => Err(io::Error::other("zstd frame could not be started")),
        }
    }
}

impl<W: Write> Write for Writer<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let State::Small { held, .. } = &mut self.state {
            if held.len() + bytes.len() <= SMALL {
                held.extend_from_slice(bytes);
                return Ok(bytes.len());
            }
            self.grow()?;
        }
        match &mut self.state {
            State::Large(frame) => frame.write(bytes),
            _ => Err(io::Error::other("zstd frame could not be started")),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
