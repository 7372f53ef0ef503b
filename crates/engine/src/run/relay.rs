//! Bytes between the pipes of a process and whoever follows it.

use std::sync::Arc;

use bytes::Bytes;
use executor::Pipes;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::unix::pipe,
    sync::mpsc,
};

use super::output::Output;

/// Where output goes.
pub(super) enum Sink {
    /// To a container's log.
    Log(Arc<Output>),
    /// To whoever listens; if nobody does, nowhere.
    Follower(mpsc::Sender<(u8, Bytes)>),
}

impl Sink {
    async fn put(&self, stream: u8, data: &[u8]) {
        match self {
            Self::Log(output) => output.append(stream, data),
            Self::Follower(sender) => {
                _ = sender.send((stream, Bytes::copy_from_slice(data))).await;
            }
        }
    }
}

/// A pipe read.
const CHUNK: usize = 32 << 10;

/// Carries bytes both ways until the process has closed its output. Without `keep_input` its input
/// has ended.
pub(super) async fn relay(
    pipes: Pipes,
    mut input: mpsc::Receiver<Option<Bytes>>,
    keep_input: bool,
    tty: bool,
    sink: Sink,
) {
    let Pipes { stdin, stdout, stderr } = pipes;
    let outputs = async {
        if tty {
            // A terminal has one output, and the process never gets the second pipe.
            drop(stderr);
            copy(stdout, 1, &sink).await;
        } else {
            tokio::join!(copy(stdout, 1, &sink), copy(stderr, 2, &sink));
        }
    };
    let inputs = async {
        let mut stdin = (keep_input || tty).then_some(stdin);
        while let Some(message) = input.recv().await {
            match (message, &mut stdin) {
                (Some(data), Some(pipe)) => {
                    if pipe.write_all(&data).await.is_err() {
                        stdin = None;
                    }
                }
                (None, _) => stdin = None,
                (Some(_), None) => {}
            }
        }
        // The pipe stays open: the process outlives who typed into it.
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = outputs => {}
        () = inputs => {}
    }
}

async fn copy(mut pipe: pipe::Receiver, stream: u8, sink: &Sink) {
    let mut buffer = vec![0; CHUNK];
    loop {
        match pipe.read(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(length) => sink.put(stream, &buffer[..length]).await,
        }
    }
}
