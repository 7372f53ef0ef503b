//! Blobs as streams, checked against their digests on the way.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use base::{Digest, Hasher};
use bytes::{Bytes, BytesMut};
use futures_util::{Stream, StreamExt as _, stream::BoxStream};
use tokio::io::AsyncRead;

use crate::{Descriptor, Error, Result};

/// Pieces of a blob in order.
pub type BlobStream = BoxStream<'static, io::Result<Bytes>>;

/// Where blobs come from: a registry, a session's content store, a folder, memory.
///
/// `open` streams the bytes of `blob` from `offset` on; fewer or other bytes than the descriptor
/// promises are the reader's to detect, see [`verified`]. Opening may happen several times at once.
#[async_trait::async_trait]
pub trait Provider: Send + Sync {
    /// Starts reading at `offset`.
    async fn open(&self, blob: &Descriptor, offset: u64) -> Result<BlobStream>;

    /// In words, for progress and errors: `docker.io/library/alpine`.
    fn describe(&self) -> String;
}

/// Ends with an error unless the pieces have exactly the size and digest of `blob`.
pub fn verified(what: String, blob: &Descriptor, inner: BlobStream) -> BlobStream {
    let check = Verify {
        what,
        expected: blob.digest,
        size: blob.size,
        seen: 0,
        hasher: Some(Hasher::new()),
        inner,
    };
    check.boxed()
}

/// Reads a whole small blob and checks it.
pub async fn read_all(from: &dyn Provider, blob: &Descriptor, limit: u64) -> Result<Bytes> {
    let what = format!("blob {} of {}", blob.digest, from.describe());
    if blob.size > limit {
        let reason = format!("{} bytes are more than the {limit} allowed here", blob.size);
        return Err(Error::invalid(what, reason));
    }
    let mut stream = verified(what.clone(), blob, from.open(blob, 0).await?);
    let mut body = BytesMut::with_capacity(usize::try_from(blob.size).unwrap_or(0));
    while let Some(piece) = stream.next().await {
        body.extend_from_slice(&piece.map_err(|error| Error::read(&what, error))?);
    }
    Ok(body.freeze())
}

/// A stream of one piece.
pub fn once(bytes: Bytes) -> BlobStream {
    futures_util::stream::once(async { Ok(bytes) }).boxed()
}

/// A stream of what an async reader gives, in pieces of up to 128 KiB.
pub fn from_reader(reader: impl AsyncRead + Send + 'static) -> BlobStream {
    tokio_util::io::ReaderStream::with_capacity(reader, 128 << 10).boxed()
}

/// The stream as an async reader.
pub fn into_reader(stream: BlobStream) -> impl tokio::io::AsyncBufRead + Send + Unpin {
    tokio_util::io::StreamReader::new(stream)
}

/// The first `length` bytes of a stream.
pub fn take(inner: BlobStream, length: u64) -> BlobStream {
    let state = (inner, length);
    futures_util::stream::unfold(state, |(mut inner, left)| async move {
        if left == 0 {
            return None;
        }
        let piece = inner.next().await?.map(|piece| {
            let most = usize::try_from(left).unwrap_or(usize::MAX);
            piece.slice(..piece.len().min(most))
        });
        let left = left - piece.as_ref().map_or(left, |piece| piece.len() as u64);
        Some((piece, (inner, left)))
    })
    .boxed()
}

struct Verify {
    what: String,
    expected: Digest,
    size: u64,
    seen: u64,
    hasher: Option<Hasher>,
    inner: BlobStream,
}

impl Verify {
    fn fail(&mut self, expected: String, actual: String) -> Poll<Option<io::Result<Bytes>>> {
        self.hasher = None;
        let what = self.what.clone();
        let error = Error::Corrupt { what, expected, actual };
        Poll::Ready(Some(Err(io::Error::new(io::ErrorKind::InvalidData, error))))
    }
}

impl Stream for Verify {
    type Item = io::Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.hasher.is_none() {
            return Poll::Ready(None);
        }
        match std::task::ready!(self.inner.poll_next_unpin(context)) {
            Some(Ok(piece)) => {
                self.seen += piece.len() as u64;
                if self.seen > self.size {
                    let expected = format!("{} bytes", self.size);
                    return self.fail(expected, "more".into());
                }
                if let Some(hasher) = &mut self.hasher {
                    hasher.update(&piece);
                }
                Poll::Ready(Some(Ok(piece)))
            }
            Some(Err(error)) => {
                self.hasher = None;
                Poll::Ready(Some(Err(error)))
            }
            None if self.seen != self.size => {
                let (expected, actual) =
                    (format!("{} bytes", self.size), format!("{} bytes", self.seen));
                self.fail(expected, actual)
            }
            None => {
                let actual = self.hasher.take().expect("checked above").finish();
                if actual == self.expected {
                    return Poll::Ready(None);
                }
                let expected = self.expected.to_string();
                self.fail(expected, actual.to_string())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn check(promised: &[u8], sent: &[&'static str]) -> String {
        let blob = Descriptor::of("x", promised);
        let pieces: Vec<_> =
            sent.iter().map(|piece| Ok(Bytes::from_static(piece.as_bytes()))).collect();
        let mut stream = verified("b".into(), &blob, futures_util::stream::iter(pieces).boxed());
        let mut text = String::new();
        while let Some(piece) = stream.next().await {
            match piece {
                Ok(bytes) => text += std::str::from_utf8(&bytes).unwrap(),
                Err(error) => return error.to_string().replace(&blob.digest.to_string(), "D"),
            }
        }
        text
    }

    #[tokio::test]
    async fn streams_are_checked() {
        assert_eq!(check(b"hello", &["he", "llo"]).await, "hello");
        assert_eq!(
            check(b"hello", &["he"]).await,
            "b arrived damaged: expected 5 bytes, got 2 bytes"
        );
        assert_eq!(
            check(b"hello", &["hello", "!"]).await,
            "b arrived damaged: expected 5 bytes, got more"
        );
        assert!(
            check(b"hello", &["hellx"])
                .await
                .starts_with("b arrived damaged: expected D, got sha256:")
        );
    }
}
