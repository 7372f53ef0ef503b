//! `dial-stdio`: this program's standard streams as a connection to the daemon.

use std::process::ExitCode;

use anyhow::{Context as _, bail};
use clap::Args;
use client::Address;
use tokio::{
    io::{self, AsyncWriteExt as _},
    net::UnixStream,
};

use crate::connection::ConnectionArgs;

/// Connect standard input and output to the daemon's socket
#[derive(Args, Debug)]
pub struct DialStdioArgs {}

impl DialStdioArgs {
    /// Copies both ways until the daemon closes the connection.
    pub async fn run(&self, connection: &ConnectionArgs) -> anyhow::Result<ExitCode> {
        let address = match connection.named()? {
            Some(address) => address,
            // Finds or starts a daemon as every command does.
            None => connection.connect().await?.address().clone(),
        };
        let Address::Unix(path) = &address else {
            bail!("dial-stdio connects to unix:// sockets only, not {address}");
        };
        let stream = UnixStream::connect(path);
        let stream = stream.await.with_context(|| format!("connecting to {}", path.display()))?;
        let (mut from, mut to) = stream.into_split();
        let send = tokio::spawn(async move {
            let copied = io::copy(&mut io::stdin(), &mut to).await;
            // Half-closing tells the daemon that we are done; it still answers.
            let _ = to.shutdown().await;
            copied
        });
        let mut stdout = io::stdout();
        io::copy(&mut from, &mut stdout).await.context("copying from the daemon")?;
        stdout.flush().await?;
        send.abort();
        Ok(ExitCode::SUCCESS)
    }
}
