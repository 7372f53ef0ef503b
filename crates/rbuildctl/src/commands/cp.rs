//! `cp`: files between this machine and containers.
//!
//! What a container sends is unpacked name by name below the target; a name that leads through a
//! link of the same copy is refused.

use std::{
    collections::HashSet,
    io::{self, Read, Write as _},
    os::unix::fs::{
        DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _,
    },
    path::{Component, Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, bail};
use base::gotar::{self, Header, Kind};
use clap::Args;
use client::Client;
use proto::rbuild::v1::{CopyFromRequest, CopyFromResponse, CopyToRequest, PathInfo};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::refused;
use crate::connection::ConnectionArgs;

/// Bytes in one message.
const CHUNK: usize = 512 << 10;
/// Messages on the way.
const QUEUE: usize = 8;

/// Copy files between a container and this machine
#[derive(Args, Debug)]
pub struct CpArgs {
    /// CONTAINER:PATH, a path here, or - for a tar on standard input
    source: String,
    /// CONTAINER:PATH, a path here, or - for a tar on standard output
    target: String,
    /// Keep owner and group
    #[arg(long, short = 'a')]
    archive: bool,
    /// Copy what a link at the source points to
    #[arg(long, short = 'L')]
    follow_link: bool,
    /// Accepted for scripts
    #[arg(long, short = 'q', hide = true)]
    quiet: bool,
}

/// A container and a path in it; `None` for a path here.
fn place(text: &str) -> Option<(&str, &str)> {
    if text.starts_with(['/', '.']) || text == "-" {
        return None;
    }
    text.split_once(':').filter(|(container, _)| !container.is_empty())
}

impl CpArgs {
    /// Copies in the direction that the arguments name.
    pub async fn run(&self, connection: &ConnectionArgs) -> anyhow::Result<ExitCode> {
        let client = connection.connect().await?;
        match (place(&self.source), place(&self.target)) {
            (Some((container, path)), None) => self.out(&client, container, path).await?,
            (None, Some((container, path))) => self.into(&client, container, path).await?,
            (Some(_), Some(_)) => bail!("copying between containers is not supported"),
            (None, None) => bail!("must specify at least one container source"),
        }
        Ok(ExitCode::SUCCESS)
    }

    async fn out(&self, client: &Client, container: &str, path: &str) -> anyhow::Result<()> {
        let content_only = path.ends_with("/.") || path == ".";
        let (info, mut data) =
            ask(client, container, path, self.follow_link || content_only).await?;
        if !info.exists {
            bail!("Could not find the file {path} in container {container}");
        }
        if self.target == "-" {
            let mut out = io::stdout().lock();
            while let Some(message) = data.message().await.map_err(refused("failed to copy"))? {
                out.write_all(&message.data)?;
            }
            out.flush()?;
            return Ok(());
        }
        let target = PathBuf::from(&self.target);
        let found = std::fs::metadata(&target);
        let is_folder = found.as_ref().is_ok_and(std::fs::Metadata::is_dir);
        if !info.folder && self.target.ends_with('/') && !is_folder {
            bail!("no such directory: {}", self.target);
        }
        if info.folder && found.is_ok() && !is_folder {
            bail!("cannot copy directory: {} is a file", self.target);
        }
        // The first part of each name is the source's own name.
        let (below, name) = match (is_folder, content_only || info.name == ".") {
            (true, true) => (target, None),
            (true, false) => (target, Some(info.name.clone())),
            (false, _) => {
                let name = target.file_name().context("the target has no name")?;
                let name = name.to_string_lossy().into_owned();
                let parent = target.parent().filter(|it| !it.as_os_str().is_empty());
                let parent = parent.unwrap_or(Path::new(".")).to_owned();
                if !parent.is_dir() {
                    bail!("no such directory: {}", parent.display());
                }
                (parent, Some(name))
            }
        };
        let (sender, receiver) = mpsc::channel::<bytes::Bytes>(QUEUE);
        let keep_owner = self.archive;
        let unpacking = tokio::task::spawn_blocking(move || {
            unpack(
                Incoming { channel: receiver, rest: bytes::Bytes::new() },
                &below,
                name,
                keep_owner,
            )
        });
        while let Some(message) = data.message().await.map_err(refused("failed to copy"))? {
            if sender.send(message.data).await.is_err() {
                break;
            }
        }
        drop(sender);
        unpacking.await??;
        Ok(())
    }

    async fn into(&self, client: &Client, container: &str, path: &str) -> anyhow::Result<()> {
        let (info, data) = ask(client, container, path, true).await?;
        drop(data);
        let clean = base::path::absolute(path);
        let (parent, last) = clean.rsplit_once('/').unwrap_or(("", &clean));
        let parent = if parent.is_empty() { "/" } else { parent };
        if self.source == "-" {
            if !info.folder {
                bail!("destination \"{container}:{path}\" must be a directory");
            }
            return send(client, container, &clean, |out| {
                io::copy(&mut io::stdin().lock(), out).map(drop)
            })
            .await;
        }
        let source = PathBuf::from(&self.source);
        let found = match self.follow_link {
            true => std::fs::metadata(&source),
            false => std::fs::symlink_metadata(&source),
        };
        let found = found.with_context(|| format!("lstat {}", source.display()))?;
        let content_only = self.source.ends_with("/.") || self.source == ".";
        let is_folder = found.is_dir() || content_only && source.is_dir();
        let own_name = std::fs::canonicalize(&source).ok();
        let own_name = source
            .file_name()
            .map(|name| name.to_string_lossy().into_owned())
            .or_else(|| Some(own_name?.file_name()?.to_string_lossy().into_owned()))
            .unwrap_or_else(|| "/".to_owned());
        let (folder, name) = match (info.exists, info.folder) {
            (true, true) if content_only => (clean.clone(), None),
            (true, true) => (clean.clone(), Some(own_name)),
            (true, false) if is_folder => bail!("cannot copy directory"),
            (false, _) if !is_folder && path.ends_with('/') => {
                bail!("no such directory: {container}:{path}")
            }
            _ => (parent.to_owned(), Some(last.to_owned())),
        };
        let (follow, keep_owner) = (self.follow_link, self.archive);
        send(client, container, &folder, move |out| {
            match name {
                None => pack_content(&source, Path::new(""), keep_owner, out)?,
                Some(name) => pack(&source, Path::new(&name), follow, keep_owner, out)?,
            }
            gotar::write_end(out)
        })
        .await
    }
}

async fn ask(
    client: &Client,
    container: &str,
    path: &str,
    follow_link: bool,
) -> anyhow::Result<(PathInfo, Streaming<CopyFromResponse>)> {
    let request =
        CopyFromRequest { container: container.to_owned(), path: path.to_owned(), follow_link };
    let fail = refused("failed to copy");
    let mut data = client.containers().copy_from(request).await.map_err(&fail)?.into_inner();
    let first = data.message().await.map_err(&fail)?.unwrap_or_default();
    Ok((first.info.unwrap_or_default(), data))
}

/// Sends the tar that `write` makes.
async fn send(
    client: &Client,
    container: &str,
    folder: &str,
    write: impl FnOnce(&mut dyn io::Write) -> io::Result<()> + Send + 'static,
) -> anyhow::Result<()> {
    let (sender, receiver) = mpsc::channel(QUEUE);
    let first = CopyToRequest {
        container: container.to_owned(),
        path: folder.to_owned(),
        ..CopyToRequest::default()
    };
    _ = sender.send(first).await;
    let packing = tokio::task::spawn_blocking(move || {
        let mut out = Outgoing { channel: sender, buffer: bytes::BytesMut::with_capacity(CHUNK) };
        write(&mut out)?;
        out.flush()
    });
    let sent = client.containers().copy_to(ReceiverStream::new(receiver)).await;
    let packed = packing.await?;
    sent.map_err(refused("failed to copy"))?;
    packed.context("packing the files")?;
    Ok(())
}

struct Outgoing {
    channel: mpsc::Sender<CopyToRequest>,
    buffer: bytes::BytesMut,
}

impl io::Write for Outgoing {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let taken = data.len().min(CHUNK - self.buffer.len());
        self.buffer.extend_from_slice(&data[..taken]);
        if self.buffer.len() == CHUNK {
            self.flush()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let data = self.buffer.split().freeze();
        self.buffer.reserve(CHUNK);
        let message = CopyToRequest { data, ..CopyToRequest::default() };
        self.channel.blocking_send(message).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

struct Incoming {
    channel: mpsc::Receiver<bytes::Bytes>,
    rest: bytes::Bytes,
}

impl Read for Incoming {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.rest.is_empty() {
            match self.channel.blocking_recv() {
                None => return Ok(0),
                Some(data) => self.rest = data,
            }
        }
        let taken = self.rest.len().min(buffer.len());
        buffer[..taken].copy_from_slice(&self.rest[..taken]);
        self.rest = self.rest.slice(taken..);
        Ok(taken)
    }
}

fn pack_content(
    folder: &Path,
    below: &Path,
    owner: bool,
    out: &mut dyn io::Write,
) -> io::Result<()> {
    let mut entries: Vec<_> = std::fs::read_dir(folder)?.collect::<Result<_, _>>()?;
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        pack(&entry.path(), &below.join(entry.file_name()), false, owner, out)?;
    }
    Ok(())
}

fn pack(
    path: &Path,
    name: &Path,
    follow: bool,
    owner: bool,
    out: &mut dyn io::Write,
) -> io::Result<()> {
    let named = |error| base::fs::context(error, "copy", path);
    let found = match follow {
        true => std::fs::metadata(path),
        false => std::fs::symlink_metadata(path),
    };
    let found = found.map_err(named)?;
    let mut header =
        Header::file(name.as_os_str().as_encoded_bytes(), found.permissions().mode() & 0o7777, 0);
    header.mtime = found.mtime();
    if owner {
        (header.uid, header.gid) = (found.uid(), found.gid());
    }
    if found.is_dir() {
        header.kind = Kind::Folder;
        header.name.push(b'/');
        header.write(out)?;
        return pack_content(path, name, owner, out);
    }
    if found.file_type().is_symlink() {
        header.kind = Kind::Symlink;
        header.link =
            std::fs::read_link(path).map_err(named)?.into_os_string().into_encoded_bytes();
        return header.write(out);
    }
    if !found.is_file() {
        // Devices and pipes of this machine are not copied.
        return Ok(());
    }
    let file = std::fs::File::open(path).map_err(named)?;
    header.size = file.metadata()?.len();
    header.write(out)?;
    let copied = io::copy(&mut file.take(header.size), out)?;
    io::copy(&mut io::repeat(0).take(header.size - copied), out)?;
    gotar::write_padding(out, header.size)
}

/// Unpacks below `below`; the first part of each name becomes `name`, or goes.
fn unpack(
    tar: impl Read,
    below: &Path,
    name: Option<String>,
    keep_owner: bool,
) -> anyhow::Result<()> {
    let mut archive = tar::Archive::new(tar);
    let mut links: HashSet<PathBuf> = HashSet::new();
    let mut folders = Vec::new();
    for entry in archive.entries()? {
        let mut entry = entry?;
        let path = entry.path()?.into_owned();
        let mut parts: Vec<_> = path
            .components()
            .filter(|part| !matches!(part, Component::CurDir))
            .map(|part| match part {
                Component::Normal(part) => Ok(part.to_owned()),
                _ => bail!("the container sent the name {}", path.display()),
            })
            .collect::<Result<_, _>>()?;
        // A root is packed as `.`, and its content without a first part.
        let root = path.components().next().is_some_and(|it| matches!(it, Component::CurDir));
        if !root && !parts.is_empty() {
            parts.remove(0);
        }
        let mut target = below.to_owned();
        target.extend(name.as_deref());
        for part in &parts {
            if links.contains(&target) {
                bail!("the container sent {} through a link of its own", path.display());
            }
            target.push(part);
        }
        let header = entry.header();
        let mode = header.mode()? & 0o7777;
        match header.entry_type() {
            tar::EntryType::Directory => {
                match std::fs::DirBuilder::new().mode(0o700).create(&target) {
                    Err(error)
                        if error.kind() == io::ErrorKind::AlreadyExists && target.is_dir() => {}
                    made => {
                        made.with_context(|| format!("make {}", target.display()))?;
                        folders.push((target.clone(), mode));
                    }
                }
            }
            tar::EntryType::Regular => {
                let doing = || format!("write {}", target.display());
                // A link in the way is replaced, not written through.
                if std::fs::symlink_metadata(&target).is_ok_and(|it| !it.is_dir()) {
                    std::fs::remove_file(&target).with_context(doing)?;
                }
                let mut options = std::fs::File::options();
                let options = options.write(true).create_new(true).mode(0o600);
                let mut file = options.open(&target).with_context(doing)?;
                io::copy(&mut entry, &mut file).with_context(doing)?;
                file.set_permissions(std::fs::Permissions::from_mode(mode)).with_context(doing)?;
            }
            tar::EntryType::Symlink => {
                let doing = || format!("link {}", target.display());
                let to = entry.link_name()?.context("a link without target")?.into_owned();
                if std::fs::symlink_metadata(&target).is_ok_and(|it| !it.is_dir()) {
                    std::fs::remove_file(&target).with_context(doing)?;
                }
                std::os::unix::fs::symlink(to, &target).with_context(doing)?;
                links.insert(target.clone());
            }
            _ => {
                eprintln!("warning: {} is a device or pipe and was not copied", path.display());
                continue;
            }
        }
        if keep_owner {
            let header = entry.header();
            let (user, group) = (header.uid()?, header.gid()?);
            std::os::unix::fs::lchown(&target, Some(user as u32), Some(group as u32))
                .with_context(|| format!("give {} its owner", target.display()))?;
        }
    }
    // Folders get their mode last: they may not be writable.
    for (folder, mode) in folders.into_iter().rev() {
        std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(mode))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places() {
        assert_eq!(place("web:/etc"), Some(("web", "/etc")));
        for here in ["./web:x", "/a:b", "-", "file", ":x"] {
            assert_eq!(place(here), None, "{here}");
        }
    }

    #[test]
    fn a_tar_cannot_leave_the_target() {
        let folder = tempfile::tempdir().unwrap();
        let mut tar = Vec::new();
        Header::folder("a/", 0o755).write(&mut tar).unwrap();
        let link =
            Header { kind: Kind::Symlink, link: b"/tmp".to_vec(), ..Header::file("a/l", 0o777, 0) };
        link.write(&mut tar).unwrap();
        Header::file("a/l/x", 0o644, 0).write(&mut tar).unwrap();
        gotar::write_end(&mut tar).unwrap();
        let error = unpack(&tar[..], folder.path(), Some("b".into()), false).unwrap_err();
        assert!(error.to_string().contains("through a link"), "{error}");
        let mut tar = Vec::new();
        Header::file("a/../../x", 0o644, 0).write(&mut tar).unwrap();
        assert!(unpack(&tar[..], folder.path(), None, false).is_err());
    }

    #[test]
    fn files_go_out_and_in() {
        let folder = tempfile::tempdir().unwrap();
        let from = folder.path().join("from");
        std::fs::create_dir_all(from.join("sub")).unwrap();
        std::fs::write(from.join("sub/file"), "text").unwrap();
        std::os::unix::fs::symlink("sub/file", from.join("link")).unwrap();
        let mut tar = Vec::new();
        pack(&from, Path::new("from"), false, false, &mut tar).unwrap();
        gotar::write_end(&mut tar).unwrap();
        unpack(&tar[..], folder.path(), Some("to".into()), false).unwrap();
        let to = folder.path().join("to");
        assert_eq!(std::fs::read_to_string(to.join("link")).unwrap(), "text");
    }
}
