//! Block-parallel gzip.
//!
//! The input is cut into blocks of 128 KiB. Each is deflated on its own with the 32 KiB before it
//! as dictionary and ends on a byte boundary, so the pieces put together are one ordinary deflate
//! stream of nearly the usual size. Blocks run on a pool of their own; at most a few per thread
//! wait in memory.
//!
//! ```text
//!  write → [block n+1 fills] … [block n: deflate] [block n-1: done] → out, in order
//! ```

use std::{
    io::{self, Write},
    sync::{Arc, OnceLock, mpsc},
};

use flate2::{Compress, Compression as Level, Crc, FlushCompress, Status};
use std::collections::VecDeque;

/// Size of the independently compressed pieces. Part of the format: changing it changes digests.
const BLOCK: usize = 128 << 10;
/// Deflate's window.
const WINDOW: usize = 32 << 10;
/// What Go calls the default level.
pub(super) const DEFAULT_LEVEL: i32 = 6;
/// Blocks per thread that may wait, full or done.
const BLOCKS_PER_THREAD: usize = 4;

/// No flags, no time, no extra flags, unknown operating system.
const HEADER: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];

/// Threads for compression alone: whoever writes may be on any other pool and wait here.
pub(super) fn pool() -> &'static rayon::ThreadPool {
    static POOL: OnceLock<rayon::ThreadPool> = OnceLock::new();
    POOL.get_or_init(|| {
        rayon::ThreadPoolBuilder::new()
            .thread_name(|at| format!("compress-{at}"))
            .build()
            .expect("threads can be started")
    })
}

struct Block {
    bytes: Vec<u8>,
    crc: Crc,
}

pub(super) struct Writer<W: Write> {
    out: W,
    level: Level,
    header_written: bool,
    /// Block being filled, and the one before it (for its last 32 KiB).
    current: Vec<u8>,
    previous: Arc<Vec<u8>>,
    running: VecDeque<mpsc::Receiver<io::Result<Block>>>,
    crc: Crc,
}

impl<W: Write> Writer<W> {
    pub(super) fn new(level: Option<i32>, out: W) -> io::Result<Self> {
        let level = u32::try_from(level.unwrap_or(DEFAULT_LEVEL)).unwrap_or(6);
        Ok(Self {
            out,
            level: Level::new(level),
            header_written: false,
            current: Vec::new(),
            previous: Arc::default(),
            running: VecDeque::new(),
            crc: Crc::new(),
        })
    }

    /// Hands the full block to the pool; it is never the last one.
    fn start(&mut self) -> io::Result<()> {
        let block = Arc::new(std::mem::replace(&mut self.current, Vec::with_capacity(BLOCK)));
        let dictionary = std::mem::replace(&mut self.previous, block.clone());
        let (sender, receiver) = mpsc::sync_channel(1);
        let level = self.level;
        pool().spawn_fifo(move || {
            _ = sender.send(deflate(&dictionary, &block, level, false));
        });
        self.running.push_back(receiver);
        while self.running.len() > pool().current_num_threads() * BLOCKS_PER_THREAD {
            self.collect_one()?;
        }
        Ok(())
    }

    fn collect_one(&mut self) -> io::Result<()> {
        let Some(receiver) = self.running.pop_front() else { return Ok(()) };
        let block = receiver.recv().map_err(|_| io::Error::other("compression was stopped"))??;
        self.put(&block)
    }

    fn put(&mut self, block: &Block) -> io::Result<()> {
        if !std::mem::replace(&mut self.header_written, true) {
            self.out.write_all(&HEADER)?;
        }
        self.crc.combine(&block.crc);
        self.out.write_all(&block.bytes)
    }

    pub(super) fn finish(mut self) -> io::Result<W> {
        // The last block is done here: small layers never meet the pool.
        let last = deflate(&self.previous, &self.current, self.level, true)?;
        while !self.running.is_empty() {
            self.collect_one()?;
        }
        self.put(&last)?;
        self.out.write_all(&self.crc.sum().to_le_bytes())?;
        self.out.write_all(&self.crc.amount().to_le_bytes())?;
        Ok(self.out)
    }
}

impl<W: Write> Write for Writer<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // A full block is sent only when more follows, so that the last one is never empty
        // unless everything is.
        if self.current.len() == BLOCK {
            self.start()?;
        }
        let taken = bytes.len().min(BLOCK - self.current.len());
        self.current.extend_from_slice(&bytes[..taken]);
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// All of `bytes` as one gzip member.
pub(super) fn member(bytes: &[u8], level: Level) -> io::Result<Vec<u8>> {
    let block = deflate(&[], bytes, level, true)?;
    let mut out = Vec::with_capacity(block.bytes.len() + HEADER.len() + 8);
    out.extend_from_slice(&HEADER);
    out.extend_from_slice(&block.bytes);
    out.extend_from_slice(&block.crc.sum().to_le_bytes());
    out.extend_from_slice(&block.crc.amount().to_le_bytes());
    Ok(out)
}

/// Deflates one block: ended by an empty stored block (byte boundary) or, if last, by the end mark.
fn deflate(before: &[u8], block: &[u8], level: Level, last: bool) -> io::Result<Block> {
    let mut state = Compress::new(level, false);
    if !before.is_empty() {
        let dictionary = &before[before.len().saturating_sub(WINDOW)..];
        state.set_dictionary(dictionary).map_err(io::Error::other)?;
    }
    let flush = if last { FlushCompress::Finish } else { FlushCompress::Sync };
    let mut bytes = Vec::with_capacity(block.len() / 2 + 64);
    loop {
        let consumed = usize::try_from(state.total_in()).expect("a block fits memory");
        let status =
            state.compress_vec(&block[consumed..], &mut bytes, flush).map_err(io::Error::other)?;
        let all_in = state.total_in() == block.len() as u64;
        let room = bytes.len() < bytes.capacity();
        match status {
            Status::StreamEnd => break,
            // Room left over after a sync flush means that the flush is complete.
            Status::Ok | Status::BufError if all_in && !last && room => break,
            _ => bytes.reserve(block.len() / 4 + 1024),
        }
    }
    let mut crc = Crc::new();
    crc.update(block);
    Ok(Block { bytes, crc })
}
