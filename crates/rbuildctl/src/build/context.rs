//! Where the Dockerfile and its files come from: a folder, standard input, or a URL.
//!
//! [`Prepared`] keeps temporary files alive; it must outlive the build.

use std::{
    collections::BTreeMap,
    io::{IsTerminal as _, Read as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use bytes::Bytes;
use client::{BuildRequest, Upload};
use tempfile::TempDir;

/// Bytes looked at to tell an archive from a Dockerfile; a tar header is 512 long.
const HEAD: usize = 512;
/// A Dockerfile on standard input larger than this is something else.
const DOCKERFILE_LIMIT: u64 = 16 << 20;

/// Temporary files the build reads.
#[derive(Default)]
pub struct Prepared {
    folders: Vec<TempDir>,
}

impl Prepared {
    /// Puts `text` as `Dockerfile` into a new folder.
    fn dockerfile(&mut self, text: &[u8]) -> anyhow::Result<PathBuf> {
        let folder = tempfile::Builder::new().prefix("rbuildctl-").tempdir()?;
        std::fs::write(folder.path().join("Dockerfile"), text)?;
        let path = folder.path().to_owned();
        self.folders.push(folder);
        Ok(path)
    }

    /// A new empty folder.
    fn empty(&mut self) -> anyhow::Result<PathBuf> {
        let folder = tempfile::Builder::new().prefix("rbuildctl-").tempdir()?;
        let path = folder.path().to_owned();
        self.folders.push(folder);
        Ok(path)
    }
}

/// Sets folders, uploads and options of `request` for a context and a Dockerfile.
pub fn prepare(
    context: &str,
    file: Option<&str>,
    request: &mut BuildRequest,
) -> anyhow::Result<Prepared> {
    let mut prepared = Prepared::default();
    let stdin_file = file == Some("-");
    if context == "-" {
        if stdin_file {
            bail!("only one of context and Dockerfile can come from standard input");
        }
        from_stdin(file, request, &mut prepared)?;
        return Ok(prepared);
    }
    if Path::new(context).is_dir() {
        from_folder(Path::new(context), file, request, &mut prepared)?;
        return Ok(prepared);
    }
    if !is_remote(context) {
        bail!("unable to prepare context: path {context:?} not found");
    }
    request.frontend_attrs.insert("context".into(), context.to_owned());
    match file {
        Some("-") => {
            let folder = prepared.dockerfile(&read_dockerfile()?)?;
            request.locals.insert("dockerfile".into(), folder);
            request.frontend_attrs.insert("dockerfilekey".into(), "dockerfile".into());
        }
        Some(file) => {
            request.frontend_attrs.insert("filename".into(), file.to_owned());
        }
        None => {}
    }
    Ok(prepared)
}

/// How the Dockerfile is named to people: as they gave it, or in the context.
pub fn shown_dockerfile(context: &str, file: Option<&str>) -> Option<String> {
    match file {
        Some("-") => Some("stdin".to_owned()),
        Some(file) => Some(file.to_owned()),
        None if context == "-" => Some("stdin".to_owned()),
        None if is_remote(context) => None,
        None => Some(base::path::join([context, "Dockerfile"])),
    }
}

fn from_folder(
    context: &Path,
    file: Option<&str>,
    request: &mut BuildRequest,
    prepared: &mut Prepared,
) -> anyhow::Result<()> {
    request.locals.insert("context".into(), context.to_owned());
    let folder = match file {
        None => context.to_owned(),
        Some("-") => prepared.dockerfile(&read_dockerfile()?)?,
        Some(url) if url.starts_with("http://") || url.starts_with("https://") => {
            bail!("--file does not take a URL: download it first, or give the URL as context")
        }
        Some(file) => {
            let path = Path::new(file);
            if !path.is_file() {
                bail!("failed to read dockerfile: there is no file {file}");
            }
            let name = path.file_name().context("--file names no file")?.to_string_lossy();
            request.frontend_attrs.insert("filename".into(), name.into_owned());
            match path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
                Some(parent) => parent.to_owned(),
                None => ".".into(),
            }
        }
    };
    request.locals.insert("dockerfile".into(), folder);
    Ok(())
}

/// An archive becomes the context, anything else is a Dockerfile without one.
fn from_stdin(
    file: Option<&str>,
    request: &mut BuildRequest,
    prepared: &mut Prepared,
) -> anyhow::Result<()> {
    let mut stdin = std::io::stdin();
    if stdin.is_terminal() {
        bail!("context `-` needs a Dockerfile or an archive on standard input");
    }
    let mut head = Vec::with_capacity(HEAD);
    stdin.by_ref().take(HEAD as u64).read_to_end(&mut head).context("reading standard input")?;
    if is_archive(&head) {
        if let Some(file) = file {
            request.frontend_attrs.insert("filename".into(), file.to_owned());
        }
        request.uploads.insert("context".into(), Upload::Stdin { head: Bytes::from(head) });
        return Ok(());
    }
    if file.is_some() {
        bail!("with a Dockerfile as context on standard input, --file cannot be used");
    }
    stdin.take(DOCKERFILE_LIMIT).read_to_end(&mut head).context("reading standard input")?;
    let folder = prepared.dockerfile(&head)?;
    request.locals.insert("dockerfile".into(), folder);
    let empty = prepared.empty()?;
    request.locals.insert("context".into(), empty);
    Ok(())
}

fn read_dockerfile() -> anyhow::Result<Vec<u8>> {
    let mut text = Vec::new();
    std::io::stdin()
        .take(DOCKERFILE_LIMIT)
        .read_to_end(&mut text)
        .context("reading the Dockerfile from standard input")?;
    Ok(text)
}

/// Magic numbers of tar, gzip, bzip2, xz and zstd.
fn is_archive(head: &[u8]) -> bool {
    let compressed: [&[u8]; 4] = [b"\x1f\x8b\x08", b"BZh", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd"];
    compressed.iter().any(|magic| head.starts_with(magic))
        || head.get(257..262).is_some_and(|magic| magic == b"ustar")
}

/// Whether the daemon is to fetch the context.
pub fn is_remote(context: &str) -> bool {
    let schemes = ["http://", "https://", "git://", "ssh://", "git@", "github.com/"];
    let scp_like = || {
        let user_host = context.split_once(':').map(|(left, _)| left);
        user_host.is_some_and(|left| left.contains('@') && !left.contains('/'))
    };
    schemes.iter().any(|scheme| context.starts_with(scheme)) || scp_like()
}

/// Adds `--build-context` values.
pub fn named(values: &[String], request: &mut BuildRequest) -> anyhow::Result<()> {
    let mut named: BTreeMap<String, String> = BTreeMap::new();
    for value in values {
        let Some((name, context)) = value.split_once('=').filter(|(name, _)| !name.is_empty())
        else {
            bail!("invalid --build-context {value}: expected NAME=CONTEXT");
        };
        let name = context_name(name)?;
        let text = one_named(&name, context, request)?;
        named.insert(format!("context:{name}"), text);
    }
    request.frontend_attrs.extend(named);
    Ok(())
}

/// Image names are compared without the parts docker fills in, and with them the platform that a
/// context may be for: `NAME::PLATFORM`.
fn context_name(written: &str) -> anyhow::Result<String> {
    let (name, platform) = match written.split_once("::") {
        Some((name, platform)) => (name, Some(platform)),
        None => (written, None),
    };
    let name = match oci::Reference::parse(name) {
        Ok(reference) => reference.familiar(),
        Err(error) => bail!("invalid --build-context {written}: {error}"),
    };
    let name = name.strip_suffix(":latest").unwrap_or(&name).to_owned();
    let Some(platform) = platform else { return Ok(name) };
    match base::Platform::parse(platform) {
        Ok(platform) => Ok(format!("{name}::{}", platform.normalize().format_all())),
        Err(error) => bail!("invalid --build-context {written}: {error}"),
    }
}

fn one_named(name: &str, context: &str, request: &mut BuildRequest) -> anyhow::Result<String> {
    if context.starts_with("docker-image://") || context.starts_with("target:") {
        return Ok(context.to_owned());
    }
    if let Some(layout) = context.strip_prefix("oci-layout://") {
        let (rest, digest) = match layout.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest.to_owned())),
            None => (layout, None),
        };
        let slash = rest.rfind('/').map_or(0, |at| at + 1);
        let (folder, tag) = match rest[slash..].split_once(':') {
            Some((last, tag)) => (&rest[..slash + last.len()], tag),
            None => (rest, "latest"),
        };
        let digest = match digest {
            Some(digest) => digest,
            None => client::layout_digest(Path::new(folder), tag)?
                .with_context(|| format!("OCI layout {folder} has no image called {tag}"))?,
        };
        let store = base::id::random_id();
        request.oci_layouts.insert(store.clone(), folder.into());
        return Ok(format!("oci-layout://{store}:{tag}@{digest}"));
    }
    if Path::new(context).is_dir() {
        // These two names are taken by the build's own folders.
        let local =
            if matches!(name, "context" | "dockerfile") { format!("_{name}") } else { name.into() };
        request.locals.insert(local.clone(), context.into());
        return Ok(format!("local:{local}"));
    }
    if is_remote(context) {
        return Ok(context.to_owned());
    }
    bail!(
        "--build-context {name}: {context} is neither a folder nor docker-image://REF, \
         oci-layout://DIR or a URL"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn context_names_are_written_in_one_way() {
        let name = |text: &str| context_name(text).map_err(|error| error.to_string());
        assert_eq!(name("docker.io/library/alpine:latest").as_deref(), Ok("alpine"));
        assert_eq!(name("alpine:3::linux/aarch64").as_deref(), Ok("alpine:3::linux/arm64"));
        assert_eq!(name("tool::linux/arm/v7").as_deref(), Ok("tool::linux/arm/v7"));
        assert!(name("tool::a/b/c/d").unwrap_err().starts_with("invalid --build-context tool::a"));
        assert!(name("UP::linux/arm64").unwrap_err().starts_with("invalid --build-context UP"));
    }

    #[test]
    fn tells_archives_from_dockerfiles() {
        let mut tar = vec![0; 512];
        tar[257..262].copy_from_slice(b"ustar");
        assert!(is_archive(&tar) && is_archive(b"\x1f\x8b\x08\x00"));
        assert!(!is_archive(b"FROM scratch\n") && !is_archive(b""));
    }

    #[test]
    fn tells_urls_from_folders() {
        for url in ["https://x/y.git#main:sub", "git@github.com:a/b.git", "me@host:repo"] {
            assert!(is_remote(url), "{url}");
        }
        for path in [".", "a/b", "/x", "./a@b:c"] {
            assert!(!is_remote(path), "{path}");
        }
    }

    #[test]
    fn folders_and_files() {
        let mut request = BuildRequest::new("dockerfile.v0");
        let folder = env!("CARGO_MANIFEST_DIR");
        let file = format!("{folder}/Cargo.toml");
        prepare(folder, Some(&file), &mut request).unwrap();
        assert_eq!(request.locals["context"], Path::new(folder));
        assert_eq!(request.locals["dockerfile"], Path::new(folder));
        assert_eq!(request.frontend_attrs["filename"], "Cargo.toml");
        assert!(prepare("no-such-folder", None, &mut request).is_err());
        named(
            &[format!("src={folder}"), "docker.io/library/alpine:latest=docker-image://x".into()],
            &mut request,
        )
        .unwrap();
        assert_eq!(request.frontend_attrs["context:src"], "local:src");
        assert_eq!(request.frontend_attrs["context:alpine"], "docker-image://x");
    }
}
