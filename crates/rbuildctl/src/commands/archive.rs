//! `save` and `load`: images as tars.

use std::{
    io::{IsTerminal as _, Write as _},
    path::PathBuf,
    process::ExitCode,
};

use anyhow::{Context as _, bail};
use clap::Args;
use proto::rbuild::v1::{Chunk, SaveRequest};
use tokio::{io::AsyncReadExt as _, sync::mpsc};
use tokio_stream::wrappers::ReceiverStream;

use super::{
    docker_only::{DockerOnly, Flag, docker_only},
    images::familiar,
    refused,
};
use crate::connection::ConnectionArgs;

/// Bytes in one message.
const CHUNK: usize = 512 << 10;

/// Save images to a tar, which is also an OCI layout
#[derive(Args, Debug)]
pub struct SaveArgs {
    /// Names or ids
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
    /// Write to a file
    #[arg(long, short = 'o', value_name = "FILE")]
    output: Option<PathBuf>,
    /// Save one platform of multi-platform images
    #[arg(long, value_name = "PLATFORM")]
    platform: Option<String>,
}

impl SaveArgs {
    /// Streams the tar.
    pub async fn run(&self, connection: &ConnectionArgs) -> anyhow::Result<ExitCode> {
        if self.output.is_none() && std::io::stdout().is_terminal() {
            bail!("cowardly refusing to save to a terminal. Use the -o flag or redirect");
        }
        let client = connection.connect().await?;
        let request = SaveRequest {
            references: self.images.clone(),
            platform: self.platform.clone().unwrap_or_default(),
        };
        let fail = refused("failed to save");
        let mut data = client.images().save(request).await.map_err(&fail)?.into_inner();
        let Some(path) = &self.output else {
            let mut out = std::io::stdout().lock();
            while let Some(chunk) = data.message().await.map_err(&fail)? {
                out.write_all(&chunk.data)?;
            }
            out.flush()?;
            return Ok(ExitCode::SUCCESS);
        };
        // The file appears when it is whole, unless it is a pipe or device.
        let special = std::fs::metadata(path).is_ok_and(|found| !found.is_file());
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        let folder = folder.unwrap_or(std::path::Path::new("."));
        let doing = || format!("writing {}", path.display());
        if special {
            let mut file = std::fs::File::options().write(true).open(path).with_context(doing)?;
            while let Some(chunk) = data.message().await.map_err(&fail)? {
                file.write_all(&chunk.data).with_context(doing)?;
            }
            return Ok(ExitCode::SUCCESS);
        }
        let mut file = tempfile::NamedTempFile::new_in(folder).with_context(doing)?;
        while let Some(chunk) = data.message().await.map_err(&fail)? {
            file.write_all(&chunk.data).with_context(doing)?;
        }
        file.persist(path).with_context(doing)?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Load images from a tar
#[derive(Args, Debug)]
pub struct LoadArgs {
    /// Read from a file in place of standard input
    #[arg(long, short = 'i', value_name = "FILE")]
    input: Option<PathBuf>,
    /// Print less
    #[arg(long, short = 'q')]
    quiet: bool,
    #[command(flatten)]
    docker_only: DockerOnly<LoadOnly>,
}

docker_only! { LoadOnly:
    Flag::value("platform", "load all, and choose with run --platform or save --platform"),
}

impl LoadArgs {
    /// Streams the tar to the daemon.
    pub async fn run(&self, connection: &ConnectionArgs) -> anyhow::Result<ExitCode> {
        self.docker_only.check()?;
        if self.input.is_none() && std::io::stdin().is_terminal() {
            bail!("requested load from stdin, but stdin is empty");
        }
        let mut file: Box<dyn tokio::io::AsyncRead + Send + Unpin> = match &self.input {
            Some(path) => {
                let file = tokio::fs::File::open(path).await;
                Box::new(file.with_context(|| format!("open {}", path.display()))?)
            }
            None => Box::new(tokio::io::stdin()),
        };
        let client = connection.connect().await?;
        let (sender, receiver) = mpsc::channel(8);
        let reading = tokio::spawn(async move {
            loop {
                let mut data = bytes::BytesMut::with_capacity(CHUNK);
                while data.len() < CHUNK {
                    if file.read_buf(&mut data).await? == 0 {
                        break;
                    }
                }
                let end = data.is_empty();
                if end || sender.send(Chunk { data: data.freeze() }).await.is_err() {
                    return Ok::<(), std::io::Error>(());
                }
            }
        });
        let fail = refused("failed to load");
        let answer = client.images().load(ReceiverStream::new(receiver)).await.map_err(&fail)?;
        let mut events = answer.into_inner();
        let mut failure = None;
        loop {
            match events.message().await {
                Ok(None) => break,
                Ok(Some(event)) if event.name.is_empty() => {
                    println!("Loaded image ID: {}", event.id);
                }
                Ok(Some(event)) => {
                    if !event.replaced.is_empty() && !self.quiet {
                        println!(
                            "The image {} already exists, renaming the old one with ID {} to empty string",
                            familiar(&event.name),
                            event.replaced
                        );
                    }
                    println!("Loaded image: {}", familiar(&event.name));
                }
                Err(status) => {
                    failure = Some(status);
                    break;
                }
            }
        }
        // A file that could not be read explains a tar that ended early.
        if reading.is_finished() || failure.is_none() {
            reading.await?.context("reading the tar")?;
        }
        match failure {
            Some(status) => Err(fail(status)),
            None => Ok(ExitCode::SUCCESS),
        }
    }
}
