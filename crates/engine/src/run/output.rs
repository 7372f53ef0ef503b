//! What a container wrote, on disk: frames of stream number, length, time, bytes.
//!
//! One writer appends; any number of readers follow at their own pace. A container that is started
//! again goes on in the same file. Invariant: what `written` counts are whole frames.

use std::{
    collections::VecDeque,
    fs::File,
    io::{self, Write as _},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::SystemTime,
};

use bytes::Bytes;
use tokio::sync::watch;

/// Bytes before each piece: stream, length, nanoseconds since the epoch.
const HEADER: usize = 13;

/// One container's output.
pub(super) struct Output {
    path: PathBuf,
    file: Mutex<File>,
    /// Bytes of whole frames, and whether no more will come for now.
    written: watch::Sender<(u64, bool)>,
}

impl Output {
    pub(super) fn create(folder: &Path, id: &str) -> io::Result<Arc<Self>> {
        let path = folder.join(format!("{id}.log"));
        let file = File::options().create_new(true).append(true).open(&path)?;
        Ok(Arc::new(Self { path, file: Mutex::new(file), written: watch::Sender::new((0, true)) }))
    }

    pub(super) fn append(&self, stream: u8, data: &[u8]) {
        self.append_at(stream, data, SystemTime::now());
    }

    fn append_at(&self, stream: u8, data: &[u8], at: SystemTime) {
        let mut file = self.file.lock().expect("no panic while holding a log");
        let mut frame = Vec::with_capacity(data.len() + HEADER);
        frame.push(stream);
        frame.extend_from_slice(&(data.len() as u32).to_le_bytes());
        frame.extend_from_slice(&base::time::unix_nanos(at).to_le_bytes());
        frame.extend_from_slice(data);
        let before = self.written.borrow().0;
        match file.write_all(&frame) {
            Ok(()) => self.written.send_modify(|written| written.0 += frame.len() as u64),
            Err(error) => {
                tracing::error!(%error, path = %self.path.display(), "cannot write a container's log");
                _ = file.set_len(before);
            }
        }
    }

    /// More will come.
    pub(super) fn open(&self) {
        self.written.send_modify(|written| written.1 = false);
    }

    /// Nothing comes until it is opened again.
    pub(super) fn close(&self) {
        self.written.send_modify(|written| written.1 = true);
    }

    pub(super) fn reader(&self, from_start: bool) -> io::Result<OutputReader> {
        let written = self.written.subscribe();
        let offset = if from_start { 0 } else { written.borrow().0 };
        Ok(OutputReader { file: File::open(&self.path)?, offset, skip: 0, written })
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        _ = std::fs::remove_file(&self.path);
    }
}

/// A piece of output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// 1 is standard output, 2 standard error.
    pub stream: u8,
    /// When it was written.
    pub at: SystemTime,
    /// The bytes.
    pub data: Bytes,
}

/// Follows a container's output.
pub struct OutputReader {
    file: File,
    offset: u64,
    /// Bytes of the next piece that are not wanted.
    skip: usize,
    written: watch::Receiver<(u64, bool)>,
}

impl OutputReader {
    /// The next piece; `None` at the end. Without `follow`, the end is what has been written so
    /// far.
    pub async fn next(&mut self, follow: bool) -> io::Result<Option<Piece>> {
        loop {
            let (end, closed) = *self.written.borrow_and_update();
            if self.offset < end {
                break;
            }
            if closed || !follow || self.written.changed().await.is_err() {
                return Ok(None);
            }
        }
        let (mut piece, next) = self.piece(self.offset)?;
        self.offset = next;
        let skip = std::mem::take(&mut self.skip).min(piece.data.len());
        piece.data = piece.data.slice(skip..);
        Ok(Some(piece))
    }

    /// Goes to where the last `lines` lines begin.
    pub fn tail(&mut self, lines: u64) -> io::Result<()> {
        let end = self.written.borrow().0;
        // Where the last lines begin: the piece and the byte in it.
        let mut starts: VecDeque<(u64, usize)> = VecDeque::new();
        let mut at_start = [true; 3];
        let mut offset = self.offset;
        while offset < end {
            let (piece, next) = self.piece(offset)?;
            let fresh = &mut at_start[usize::from(piece.stream.min(2))];
            for (index, byte) in piece.data.iter().enumerate() {
                if *fresh {
                    starts.push_back((offset, index));
                    if starts.len() as u64 > lines {
                        starts.pop_front();
                    }
                }
                *fresh = *byte == b'\n';
            }
            offset = next;
        }
        (self.offset, self.skip) = starts.front().copied().unwrap_or((end, 0));
        Ok(())
    }

    fn piece(&self, offset: u64) -> io::Result<(Piece, u64)> {
        let mut header = [0; HEADER];
        self.file.read_exact_at(&mut header, offset)?;
        let length = u32::from_le_bytes(header[1..5].try_into().expect("four bytes"));
        let nanos = i64::from_le_bytes(header[5..].try_into().expect("eight bytes"));
        let mut data = vec![0; length as usize];
        self.file.read_exact_at(&mut data, offset + HEADER as u64)?;
        let at = base::time::from_unix_nanos(nanos);
        let piece = Piece { stream: header[0], at, data: data.into() };
        Ok((piece, offset + HEADER as u64 + u64::from(length)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(pieces: &[Piece]) -> Vec<(u8, String)> {
        let text = |piece: &Piece| String::from_utf8_lossy(&piece.data).into_owned();
        pieces.iter().map(|piece| (piece.stream, text(piece))).collect()
    }

    async fn rest(reader: &mut OutputReader, follow: bool) -> Vec<(u8, String)> {
        let mut seen = Vec::new();
        while let Some(piece) = reader.next(follow).await.unwrap() {
            seen.push(piece);
        }
        texts(&seen)
    }

    #[tokio::test]
    async fn output_is_followed_to_its_end() {
        let folder = tempfile::tempdir().unwrap();
        let output = Output::create(folder.path(), "x").unwrap();
        output.open();
        output.append(1, b"one");
        let (mut all, mut late) = (output.reader(true).unwrap(), output.reader(false).unwrap());
        output.append(2, b"two");
        assert_eq!(rest(&mut late, false).await, [(2, "two".to_owned())]);
        output.close();
        assert_eq!(rest(&mut all, true).await, [(1, "one".to_owned()), (2, "two".to_owned())]);
        assert_eq!(late.next(true).await.unwrap(), None);
    }

    #[tokio::test]
    async fn the_last_lines() {
        let folder = tempfile::tempdir().unwrap();
        let output = Output::create(folder.path(), "x").unwrap();
        output.append(1, b"a\nb\nc");
        output.append(2, b"err\n");
        output.append(1, b"c\nd\n");
        for (lines, expected) in [
            (1, vec![(1, "d\n")]),
            (2, vec![(2, "err\n"), (1, "c\nd\n")]),
            (3, vec![(1, "c"), (2, "err\n"), (1, "c\nd\n")]),
            (9, vec![(1, "a\nb\nc"), (2, "err\n"), (1, "c\nd\n")]),
            (0, vec![]),
        ] {
            let mut reader = output.reader(true).unwrap();
            reader.tail(lines).unwrap();
            let expected: Vec<_> = expected.into_iter().map(|(s, t)| (s, t.to_owned())).collect();
            let seen = rest(&mut reader, false).await;
            assert_eq!(seen, expected, "{lines}");
        }
    }
}
