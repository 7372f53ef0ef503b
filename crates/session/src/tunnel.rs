//! A byte stream over messages of bytes: the carrier of a session's inner HTTP/2 connection.
//!
//! Reading takes whatever messages arrive, writing sends messages of bounded size; message borders
//! mean nothing. An end or an error of the incoming messages is an end of file.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf as _, Bytes, BytesMut};
use futures_util::{Sink as _, Stream, stream::BoxStream};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::mpsc,
};
use tokio_util::sync::{CancellationToken, PollSender, WaitForCancellationFutureOwned};

/// Large enough to amortise the outer framing, small enough to stay below any message limit.
const CHUNK: usize = 64 << 10;
/// Messages of the outer stream that may wait for a slow peer.
pub(crate) const QUEUE: usize = 32;

pub(crate) struct Tunnel {
    incoming: BoxStream<'static, io::Result<Bytes>>,
    unread: Bytes,
    outgoing: PollSender<Bytes>,
    /// Cancelled when the incoming side is over; cancelled by others it ends both sides.
    over: CancellationToken,
    cancelled: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl Tunnel {
    pub(crate) fn new(
        incoming: impl Stream<Item = io::Result<Bytes>> + Send + 'static,
        outgoing: mpsc::Sender<Bytes>,
        over: CancellationToken,
    ) -> Self {
        Self {
            incoming: Box::pin(incoming),
            unread: Bytes::new(),
            outgoing: PollSender::new(outgoing),
            cancelled: Box::pin(over.clone().cancelled_owned()),
            over,
        }
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        self.over.cancel();
    }
}

impl AsyncRead for Tunnel {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.cancelled.as_mut().poll(context).is_ready() {
            return Poll::Ready(Ok(()));
        }
        while this.unread.is_empty() {
            match ready!(this.incoming.as_mut().poll_next(context)) {
                Some(Ok(bytes)) => this.unread = bytes,
                Some(Err(error)) => {
                    this.over.cancel();
                    return Poll::Ready(Err(error));
                }
                None => {
                    this.over.cancel();
                    return Poll::Ready(Ok(()));
                }
            }
        }
        let length = this.unread.len().min(buffer.remaining());
        buffer.put_slice(&this.unread[..length]);
        this.unread.advance(length);
        Poll::Ready(Ok(()))
    }
}

fn closed() -> io::Error {
    io::Error::new(io::ErrorKind::BrokenPipe, "session stream is closed")
}

impl AsyncWrite for Tunnel {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(context, &[io::IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.over.is_cancelled() {
            return Poll::Ready(Err(closed()));
        }
        ready!(this.outgoing.poll_reserve(context)).map_err(|_| closed())?;
        let total: usize = slices.iter().map(|slice| slice.len()).sum();
        if total == 0 {
            return Poll::Ready(Ok(0));
        }
        let mut message = BytesMut::with_capacity(total.min(CHUNK));
        for slice in slices {
            let room = CHUNK - message.len();
            message.extend_from_slice(&slice[..slice.len().min(room)]);
        }
        let length = message.len();
        this.outgoing.send_item(message.freeze()).map_err(|_| closed())?;
        Poll::Ready(Ok(length))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().outgoing).poll_close(context).map_err(|_| closed())
    }
}
