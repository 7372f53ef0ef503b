//! Between asynchronous streams and code that blocks: bytes through bounded channels, and streams
//! whose work ends when nobody reads them any more.

use std::{
    io::{self, Read, Write},
    pin::Pin,
    task::{Context, Poll},
};

use bytes::{Buf as _, Bytes, BytesMut};
use tokio::{sync::mpsc, task::AbortHandle};
use tokio_stream::Stream;
use tonic::Status;

/// Bytes in one message.
const CHUNK: usize = 512 << 10;
/// Messages on the way.
pub const QUEUE: usize = 8;

/// Writes into a channel. [`flush`](Write::flush) it at the end.
pub struct Sender {
    channel: mpsc::Sender<Bytes>,
    buffer: BytesMut,
}

impl Sender {
    /// Over `channel`; for threads that may block.
    pub fn new(channel: mpsc::Sender<Bytes>) -> Self {
        Self { channel, buffer: BytesMut::with_capacity(CHUNK) }
    }

    fn send(&mut self) -> io::Result<()> {
        let data = self.buffer.split().freeze();
        self.buffer.reserve(CHUNK);
        self.channel.blocking_send(data).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

impl Write for Sender {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let taken = data.len().min(CHUNK - self.buffer.len());
        self.buffer.extend_from_slice(&data[..taken]);
        if self.buffer.len() == CHUNK {
            self.send()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() { Ok(()) } else { self.send() }
    }
}

/// Reads from a channel; an error in it is the reader's.
pub struct Receiver {
    channel: mpsc::Receiver<Result<Bytes, Status>>,
    rest: Bytes,
}

impl Receiver {
    /// Over `channel`; for threads that may block.
    pub fn new(channel: mpsc::Receiver<Result<Bytes, Status>>) -> Self {
        Self { channel, rest: Bytes::new() }
    }
}

impl Read for Receiver {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.rest.is_empty() {
            match self.channel.blocking_recv() {
                None => return Ok(0),
                Some(Ok(data)) => self.rest = data,
                Some(Err(status)) => return Err(io::Error::other(status.message().to_owned())),
            }
        }
        let taken = self.rest.len().min(buffer.len());
        buffer[..taken].copy_from_slice(&self.rest[..taken]);
        self.rest.advance(taken);
        Ok(taken)
    }
}

/// An answer of many messages.
pub type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// A stream that ends its task when it is dropped.
pub struct Owning<S> {
    stream: S,
    task: AbortHandle,
}

impl<S> Owning<S> {
    /// `stream` is fed by `task`.
    pub fn new(stream: S, task: AbortHandle) -> Self {
        Self { stream, task }
    }
}

impl<S: Stream + Unpin> Stream for Owning<S> {
    type Item = S::Item;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<S::Item>> {
        Pin::new(&mut self.stream).poll_next(context)
    }
}

impl<S> Drop for Owning<S> {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn bytes_pass_both_ways() {
        let (out, mut taken) = mpsc::channel(QUEUE);
        let (given, into) = mpsc::channel(QUEUE);
        let worker = tokio::task::spawn_blocking(move || {
            let mut from = Receiver::new(into);
            let mut to = Sender::new(out);
            io::copy(&mut from, &mut to).unwrap();
            to.flush().unwrap();
        });
        given.send(Ok(Bytes::from_static(b"one "))).await.unwrap();
        given.send(Ok(Bytes::from_static(b"two"))).await.unwrap();
        drop(given);
        worker.await.unwrap();
        assert_eq!(taken.recv().await.unwrap(), "one two");
        assert!(taken.recv().await.is_none());
    }
}
