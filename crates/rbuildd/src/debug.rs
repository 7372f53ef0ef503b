//! The debugging address: plain text over HTTP, for people and for harnesses that ask when they
//! think we hang.

use std::sync::Arc;

use anyhow::Context as _;
use engine::Engine;
use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncWrite, AsyncWriteExt as _, BufReader};

/// Longest request line that is read.
const MAX_LINE: u64 = 8 << 10;

/// Answers any path with who waits for whom.
pub async fn serve(address: &str, engine: Arc<Engine>) -> anyhow::Result<()> {
    if let Some(path) = address.strip_prefix("unix://") {
        _ = std::fs::remove_file(path);
        let listener =
            tokio::net::UnixListener::bind(path).with_context(|| format!("listen on {address}"))?;
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(answer(stream, engine.clone()));
            }
        });
        return Ok(());
    }
    let tcp = address.strip_prefix("tcp://").unwrap_or(address);
    let listener =
        tokio::net::TcpListener::bind(tcp).await.with_context(|| format!("listen on {address}"))?;
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(answer(stream, engine.clone()));
        }
    });
    Ok(())
}

async fn answer(stream: impl AsyncRead + AsyncWrite + Unpin, engine: Arc<Engine>) {
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    use tokio::io::AsyncReadExt as _;
    if (&mut stream).take(MAX_LINE).read_line(&mut line).await.is_err() {
        return;
    }
    let stuck = engine.stuck();
    let body = if stuck.is_empty() { "nothing is waiting\n".to_owned() } else { stuck };
    let head = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    _ = stream.write_all(head.as_bytes()).await;
    _ = stream.write_all(body.as_bytes()).await;
    _ = stream.shutdown().await;
}
