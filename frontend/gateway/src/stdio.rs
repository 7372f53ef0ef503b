//! The bridge over a byte stream: what a frontend in a container has for its standard streams.
//!
//! One connection, of which the container is the client, so no call has to say which run it belongs
//! to. It is over when the container's ends are closed. Invariant: when [`serve`] returns or is
//! dropped, no call of the run is being answered any more.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use async_trait::async_trait;
use proto::frontend::llb_bridge_server::LlbBridgeServer;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_stream::StreamExt as _;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::{
    Status,
    metadata::MetadataMap,
    transport::{Server, server::Connected},
};

use crate::{Run, Runs, Service};

/// Bound on one message, as the official client has it.
const MAX_MESSAGE: usize = 16 << 20;

/// The only run there is.
struct Only {
    run: Arc<Run>,
    llb: &'static [&'static str],
}

#[async_trait]
impl Runs for Only {
    async fn find(&self, _: &MetadataMap) -> Result<Arc<Run>, Status> {
        Ok(self.run.clone())
    }

    fn llb_capabilities(&self) -> &'static [&'static str] {
        self.llb
    }
}

/// Serves `run` to whoever reads `output` and writes `input`, until that side is gone. `llb` are
/// the names of the LLB capabilities to advertise.
pub async fn serve(
    run: Arc<Run>,
    llb: &'static [&'static str],
    input: impl AsyncRead + Send + Unpin + 'static,
    output: impl AsyncWrite + Send + Unpin + 'static,
) -> Result<(), tonic::transport::Error> {
    let over = CancellationToken::new();
    // Ends the connection's own task when we are dropped.
    let _ends = over.clone().drop_guard();
    let streams =
        Streams { input, output, over: Box::pin(over.clone().cancelled_owned()), told: over };
    let gone = streams.told.clone();
    let connections =
        tokio_stream::once(Ok::<_, io::Error>(streams)).chain(tokio_stream::pending());
    let bridge = LlbBridgeServer::new(Service::new(Arc::new(Only { run, llb })))
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE);
    let (_, health) = tonic_health::server::health_reporter();
    Server::builder()
        .add_service(bridge)
        .add_service(health)
        .serve_with_incoming_shutdown(connections, gone.cancelled_owned())
        .await
}

/// Two one-way streams as one connection.
struct Streams<I, O> {
    input: I,
    output: O,
    /// Others may end it.
    over: Pin<Box<WaitForCancellationFutureOwned>>,
    /// Cancelled when the far side has closed.
    told: CancellationToken,
}

impl<I, O> Drop for Streams<I, O> {
    fn drop(&mut self) {
        self.told.cancel();
    }
}

impl<I, O> Connected for Streams<I, O> {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl<I: AsyncRead + Unpin, O: Unpin> AsyncRead for Streams<I, O> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.over.as_mut().poll(context).is_ready() {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut this.input).poll_read(context, buffer)
    }
}

impl<I: Unpin, O: AsyncWrite + Unpin> AsyncWrite for Streams<I, O> {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().output).poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().output).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().output).poll_shutdown(context)
    }
}
