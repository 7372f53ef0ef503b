//! From a layer's tar to its blob: both digests and the compression at once.

use std::{
    io::{self, Write},
    sync::{Arc, mpsc},
    thread::JoinHandle,
};

use base::{Digest, Hasher};

use super::{Compression, Encoder, estargz};

/// Data goes to a hashing thread in pieces of this size.
const PIECE: usize = 256 << 10;
/// The thread is started when a layer grows beyond this.
const INLINE: u64 = 2 << 20;
/// Pieces that may wait for the thread.
const WAITING: usize = 8;

/// Compresses a tar to `out` while computing the digests of tar and blob.
pub struct LayerWriter<W: Write> {
    encoder: Encoder<Hashed<W>>,
    diff: HashLane,
    size: u64,
}

/// A finished layer blob.
#[derive(Debug)]
pub struct Written<W> {
    /// Where the blob went.
    pub out: W,
    /// Digest of the tar.
    pub diff_id: Digest,
    /// Bytes of the tar.
    pub uncompressed_size: u64,
    /// Digest of the blob.
    pub digest: Digest,
    /// Bytes of the blob.
    pub size: u64,
    /// What an estargz blob is known by; its own diff id is there.
    pub estargz: Option<estargz::Table>,
}

impl<W: Write> LayerWriter<W> {
    /// Starts a layer; see [`Encoder::new`] for `level`.
    pub fn new(compression: Compression, level: Option<i32>, out: W) -> io::Result<Self> {
        let out = Hashed { out, hasher: Hasher::new(), size: 0 };
        let encoder = Encoder::new(compression, level, out)?;
        Ok(Self { encoder, diff: HashLane::new(), size: 0 })
    }

    /// Completes blob and digests.
    pub fn finish(self) -> io::Result<Written<W>> {
        let plain = matches!(self.encoder.0, super::Inner::Plain(_));
        let (out, estargz) = self.encoder.finish()?;
        let digest = out.hasher.finish();
        let diff_id = if plain { digest } else { self.diff.finish() };
        Ok(Written {
            diff_id,
            uncompressed_size: self.size,
            digest,
            size: out.size,
            out: out.out,
            estargz,
        })
    }
}

impl<W: Write> Write for LayerWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.encoder.write(bytes)?;
        if !matches!(self.encoder.0, super::Inner::Plain(_)) {
            self.diff.update(&bytes[..written]);
        }
        self.size += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Hashed<W> {
    out: W,
    hasher: Hasher,
    size: u64,
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        self.size += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// A hash computed beside the writer once there is enough to hash.
enum HashLane {
    Inline { hasher: Hasher, seen: u64 },
    Thread { held: Vec<u8>, pieces: mpsc::SyncSender<Arc<[u8]>>, thread: JoinHandle<Digest> },
}

impl HashLane {
    fn new() -> Self {
        Self::Inline { hasher: Hasher::new(), seen: 0 }
    }

    fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Inline { hasher, seen } => {
                hasher.update(bytes);
                *seen += bytes.len() as u64;
                if *seen > INLINE {
                    let hasher = std::mem::take(hasher);
                    let (pieces, receiver) = mpsc::sync_channel::<Arc<[u8]>>(WAITING);
                    let thread =
                        std::thread::Builder::new().name("diff-id".into()).spawn(move || {
                            let mut hasher = hasher;
                            while let Ok(piece) = receiver.recv() {
                                hasher.update(&piece);
                            }
                            hasher.finish()
                        });
                    let thread = thread.expect("threads can be started");
                    *self = Self::Thread { held: Vec::with_capacity(PIECE), pieces, thread };
                }
            }
            Self::Thread { held, pieces, .. } => {
                held.extend_from_slice(bytes);
                if held.len() >= PIECE {
                    let piece = Arc::from(held.as_slice());
                    held.clear();
                    pieces.send(piece).expect("the hashing thread runs until the sender is gone");
                }
            }
        }
    }

    fn finish(self) -> Digest {
        match self {
            Self::Inline { hasher, .. } => hasher.finish(),
            Self::Thread { held, pieces, thread } => {
                pieces
                    .send(Arc::from(held))
                    .expect("the hashing thread runs until the sender is gone");
                drop(pieces);
                thread.join().expect("hashing does not panic")
            }
        }
    }
}
