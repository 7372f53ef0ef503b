//! Images in folders and tars: OCI layouts, and what `docker save` writes.
//!
//! A tar is read by content: each of its files goes to a [`Sink`] (a layout's folder, a content
//! store) and is known by the digest its bytes have, whatever it was called. So no name in a tar
//! reaches the file system, and a blob whose name lies is found out.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Read, Write},
    path::{Path, PathBuf},
};

use async_trait::async_trait;
use base::{Digest, Hasher};
use serde::{Deserialize, Serialize};
use tokio::io::AsyncSeekExt as _;

use crate::{
    BlobStream, Compression, Descriptor, Error, Index, Manifest, Provider, Reference, Result,
    compress::{Decoder, Limits},
    content, media,
    types::{self, MAX_CONFIG, MAX_MANIFEST},
};

/// Entries of one tar.
const MAX_ENTRIES: usize = 100_000;
/// Links from one old-style layer to another that are followed.
const MAX_LINKS: usize = 128;

/// Pieces in which blobs are copied.
const PIECE: usize = 1 << 20;
/// Files of a tar that are about it and no blobs.
const DOCUMENTS: [&str; 4] = ["index.json", "manifest.json", "oci-layout", "repositories"];
/// What is done while a tar is read.
const READING: &str = "read image tar";

/// What the file `oci-layout` says.
pub const MARKER: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;

/// An image in docker's `manifest.json`, which lists those of a tar.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct SavedImage {
    /// Path of the image config in the tar.
    pub config: String,
    /// Short names with tags.
    pub repo_tags: Option<Vec<String>>,
    /// Paths of the layers in the tar, bottom first.
    #[serde(default, deserialize_with = "types::nullable")]
    pub layers: Vec<String>,
}

impl SavedImage {
    /// Lists an image whose blobs stand under their digests.
    pub fn new<'a>(
        config: &Descriptor,
        layers: impl IntoIterator<Item = &'a Descriptor>,
        names: Vec<String>,
    ) -> Self {
        let path = |blob: &Descriptor| format!("blobs/sha256/{}", blob.digest.hex());
        Self {
            config: path(config),
            repo_tags: (!names.is_empty()).then_some(names),
            layers: layers.into_iter().map(path).collect(),
        }
    }
}

/// An image found in a layout.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Names it is known by there, complete where they can be completed; may be empty.
    pub names: Vec<String>,
    /// Its manifest or index.
    pub descriptor: Descriptor,
}

/// A folder with `blobs/sha256/…`, `index.json` and `oci-layout`.
#[derive(Debug, Clone)]
pub struct Layout {
    folder: PathBuf,
    index: Index,
}

impl Layout {
    /// Opens an existing layout.
    pub fn open(folder: &Path) -> Result<Self> {
        #[derive(Deserialize)]
        struct Marker {
            #[serde(rename = "imageLayoutVersion")]
            version: String,
        }
        let read = |name: &str| -> Result<Vec<u8>> {
            let path = folder.join(name);
            let what = || format!("open image layout {}", folder.display());
            let size = fs::metadata(&path).map_err(|error| Error::io(what(), error))?.len();
            if size > MAX_MANIFEST {
                return Err(Error::invalid(
                    what(),
                    format!("{name} is larger than {MAX_MANIFEST} bytes"),
                ));
            }
            base::fs::read(&path).map_err(|error| Error::io(what(), error))
        };
        let what = format!("{}/oci-layout", folder.display());
        let marker: Marker = serde_json::from_slice(&read("oci-layout")?)
            .map_err(|error| Error::invalid(&what, error))?;
        if !marker.version.starts_with("1.") {
            return Err(Error::invalid(what, format!("unknown layout version {}", marker.version)));
        }
        let index =
            Index::parse(&format!("{}/index.json", folder.display()), &read("index.json")?)?;
        Ok(Self { folder: folder.to_owned(), index })
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// `index.json`.
    pub fn index(&self) -> &Index {
        &self.index
    }

    /// Images by digest, each with its names.
    pub fn images(&self) -> Vec<Found> {
        images(&self.index)
    }

    /// The image called `tag` (or only there): by full name or by its tag annotation.
    pub fn find(&self, tag: Option<&str>) -> Option<&Descriptor> {
        match tag {
            None if self.index.manifests.len() == 1 => self.index.manifests.first(),
            None => None,
            Some(tag) => self.index.manifests.iter().find(|entry| {
                let keys = [types::ANNOTATION_REF_NAME, types::ANNOTATION_IMAGE_NAME];
                keys.iter().any(|key| entry.annotations.get(*key).is_some_and(|name| name == tag))
            }),
        }
    }

    /// Where a blob is (if it is).
    pub fn blob_path(&self, digest: &Digest) -> PathBuf {
        blob_path(&self.folder, digest)
    }

    /// Unpacks a tar, compressed or not, into the empty folder `into` and opens what it holds.
    pub fn unpack(tar: impl Read, into: &Path, limits: Limits) -> Result<Self> {
        let io_error = |error| Error::io(READING, error);
        base::fs::create_dir_all(&into.join("blobs/sha256")).map_err(io_error)?;
        let index = read_tar(tar, limits, &mut Folder(into))?;
        let write = |name: &str, data: &[u8]| {
            base::fs::write_atomic(&into.join(name), data, false).map_err(io_error)
        };
        write("index.json", &base::gojson::to_vec(&index))?;
        write("oci-layout", MARKER)?;
        Ok(Self { folder: into.to_owned(), index })
    }
}

#[async_trait]
impl Provider for Layout {
    async fn open(&self, blob: &Descriptor, offset: u64) -> Result<BlobStream> {
        let what = || format!("read blob {} of {}", blob.digest, self.folder.display());
        let mut file = match tokio::fs::File::open(self.blob_path(&blob.digest)).await {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(Error::not_found(what()));
            }
            Err(error) => return Err(Error::io(what(), error)),
        };
        file.seek(io::SeekFrom::Start(offset)).await.map_err(|error| Error::io(what(), error))?;
        Ok(content::from_reader(file))
    }

    fn describe(&self) -> String {
        self.folder.display().to_string()
    }
}

/// Images of an index by digest, each with its names.
pub fn images(index: &Index) -> Vec<Found> {
    let mut found: Vec<Found> = Vec::new();
    for entry in &index.manifests {
        let complete = entry.annotations.get(types::ANNOTATION_IMAGE_NAME);
        // The tag alone says nothing of the name; some tools write the whole name there.
        let name = complete.or_else(|| {
            entry
                .annotations
                .get(types::ANNOTATION_REF_NAME)
                .filter(|name| name.contains([':', '/']))
        });
        let name = name.map(|name| match Reference::parse(name) {
            Ok(reference) => reference.with_default_tag().to_string(),
            Err(_) => name.clone(),
        });
        match found.iter_mut().find(|image| image.descriptor.digest == entry.digest) {
            Some(image) => image.names.extend(name),
            None => {
                found.push(Found { names: name.into_iter().collect(), descriptor: entry.clone() })
            }
        }
    }
    found
}

/// Keeps the blobs of a tar that is read.
pub trait Sink {
    /// Length of a blob that is here; it is then not read.
    fn has(&mut self, digest: &Digest) -> Option<u64>;

    /// Keeps the bytes until the end under their digest; says digest and length.
    fn keep(&mut self, data: &mut dyn Read) -> io::Result<(Digest, u64)>;

    /// Reads what was kept.
    fn open(&self, digest: &Digest) -> io::Result<File>;
}

/// A layout's folder. Tars go into empty ones, so nothing is there before.
struct Folder<'a>(&'a Path);

impl Sink for Folder<'_> {
    fn has(&mut self, _: &Digest) -> Option<u64> {
        None
    }

    fn keep(&mut self, data: &mut dyn Read) -> io::Result<(Digest, u64)> {
        let temporary = self.0.join(format!(".tmp-{}", base::id::random_id()));
        let mut out = Hashing { out: File::create(&temporary)?, hasher: Hasher::new() };
        let copied = copy(data, &mut out);
        let digest = out.hasher.finish();
        let done = copied.and_then(|size| {
            fs::rename(&temporary, blob_path(self.0, &digest))?;
            Ok((digest, size))
        });
        if done.is_err() {
            _ = fs::remove_file(&temporary);
        }
        done
    }

    fn open(&self, digest: &Digest) -> io::Result<File> {
        File::open(blob_path(self.0, digest))
    }
}

struct Hashing {
    out: File,
    hasher: Hasher,
}

impl Write for Hashing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Copies in large pieces.
pub fn copy(from: &mut dyn Read, to: &mut dyn Write) -> io::Result<u64> {
    let mut buffer = vec![0; PIECE];
    let mut size = 0;
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(size),
            Ok(read) => {
                to.write_all(&buffer[..read])?;
                size += read as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Reads a tar, compressed or not; its blobs go to `sink`, its index is returned.
pub fn read_tar(tar: impl Read, limits: Limits, sink: &mut dyn Sink) -> Result<Index> {
    let io_error = |error| Error::io(READING, error);
    let decoder = Decoder::new(tar, limits).map_err(io_error)?;
    let mut files = Files::default();
    let mut archive = tar::Archive::new(decoder);
    for (count, entry) in archive.entries().map_err(io_error)?.enumerate() {
        if count > MAX_ENTRIES {
            return Err(Error::invalid(READING, format!("more than {MAX_ENTRIES} entries")));
        }
        let mut entry = entry.map_err(io_error)?;
        let name = base::path::clean(&String::from_utf8_lossy(&entry.path_bytes()));
        match entry.header().entry_type() {
            tar::EntryType::Regular | tar::EntryType::Continuous => {
                let found = files.take(&name, &mut entry, sink)?;
                files.names.insert(name, found);
            }
            tar::EntryType::Symlink | tar::EntryType::Link => {
                let target = entry.link_name_bytes().unwrap_or_default();
                let target = String::from_utf8_lossy(&target).into_owned();
                let symbolic = entry.header().entry_type() == tar::EntryType::Symlink;
                let base = if symbolic { base::path::dir(&name) } else { String::new() };
                let target = base::path::join([base.as_str(), target.as_str()]);
                files.names.insert(name, Entry::Link(target));
            }
            _ => {}
        }
    }
    match (files.document(sink, "index.json")?, files.document(sink, "manifest.json")?) {
        (Some(body), _) => Index::parse("index.json", &body),
        (None, Some(body)) => saved(sink, &files, &body),
        (None, None) => {
            let reason = "neither index.json nor manifest.json: not an image";
            Err(Error::invalid(READING, reason))
        }
    }
}

/// What the names of a tar stand for.
#[derive(Default)]
struct Files {
    names: BTreeMap<String, Entry>,
    /// Content of the names in [`DOCUMENTS`].
    documents: BTreeMap<Digest, Vec<u8>>,
}

enum Entry {
    Blob { digest: Digest, size: u64 },
    Document(Digest),
    Link(String),
}

impl Files {
    fn take(
        &mut self,
        name: &str,
        entry: &mut tar::Entry<'_, impl Read>,
        sink: &mut dyn Sink,
    ) -> Result<Entry> {
        let io_error = |error| Error::io(READING, error);
        if DOCUMENTS.contains(&name) {
            if entry.size() > MAX_CONFIG {
                return Err(Error::invalid(name, format!("larger than {MAX_CONFIG} bytes")));
            }
            let mut body = Vec::new();
            entry.read_to_end(&mut body).map_err(io_error)?;
            let digest = Digest::of(&body);
            self.documents.insert(digest, body);
            return Ok(Entry::Document(digest));
        }
        let called = name.strip_prefix("blobs/sha256/");
        if let Some(digest) = called.and_then(|hex| format!("sha256:{hex}").parse().ok())
            && sink.has(&digest) == Some(entry.size())
        {
            return Ok(Entry::Blob { digest, size: entry.size() });
        }
        let (digest, size) = sink.keep(entry).map_err(io_error)?;
        match called {
            Some(hex) if hex != digest.hex() => Err(Error::Corrupt {
                what: format!("{READING}: {name}"),
                expected: format!("sha256:{hex}"),
                actual: digest.to_string(),
            }),
            _ => Ok(Entry::Blob { digest, size }),
        }
    }

    fn lookup(&self, name: &str) -> Option<&Entry> {
        let mut name = base::path::clean(name);
        for _ in 0..MAX_LINKS {
            match self.names.get(&name)? {
                Entry::Link(target) => name.clone_from(target),
                found => return Some(found),
            }
        }
        None
    }

    /// Content of a small file.
    fn document(&self, sink: &dyn Sink, name: &str) -> Result<Option<Vec<u8>>> {
        let io_error = |error| Error::io(format!("read {name}"), error);
        match self.lookup(name) {
            Some(Entry::Document(digest)) => Ok(self.documents.get(digest).cloned()),
            Some(Entry::Blob { size, .. }) if *size > MAX_CONFIG => {
                Err(Error::invalid(name, format!("larger than {MAX_CONFIG} bytes")))
            }
            Some(Entry::Blob { digest, .. }) => {
                let mut body = Vec::new();
                let mut file = sink.open(digest).map_err(io_error)?;
                file.read_to_end(&mut body).map_err(io_error)?;
                Ok(Some(body))
            }
            Some(Entry::Link(_)) | None => Ok(None),
        }
    }
}

fn blob_path(folder: &Path, digest: &Digest) -> PathBuf {
    folder.join("blobs/sha256").join(digest.hex())
}

/// An index over the images of `docker save`'s `manifest.json`, whose manifests are made here.
fn saved(sink: &mut dyn Sink, files: &Files, body: &[u8]) -> Result<Index> {
    const WHAT: &str = "manifest.json";
    let list: Vec<SavedImage> =
        serde_json::from_slice(body).map_err(|error| Error::invalid(WHAT, error))?;
    let find = |name: &str| match files.lookup(name) {
        Some(Entry::Blob { digest, size }) => Ok((*digest, *size)),
        _ => Err(Error::invalid(WHAT, format!("`{name}` is not in the tar"))),
    };
    let mut entries = Vec::new();
    for image in list {
        let (digest, size) = find(&image.config)?;
        let config = Descriptor::new(media::OCI_CONFIG, digest, size);
        let mut layers = Vec::new();
        for name in &image.layers {
            let (digest, size) = find(name)?;
            let mut head = Vec::new();
            sink.open(&digest)
                .and_then(|file| file.take(6).read_to_end(&mut head))
                .map_err(|error| Error::io(format!("read {name}"), error))?;
            let compression: Compression = Compression::detect(&head);
            layers.push(Descriptor::new(media::layer(compression, true), digest, size));
        }
        let body = Manifest::new(true, config, layers).to_json();
        let descriptor = Descriptor::of(media::OCI_MANIFEST, &body);
        sink.keep(&mut &body[..]).map_err(|error| Error::io("write manifest", error))?;
        let names = image.repo_tags.unwrap_or_default();
        if names.is_empty() {
            entries.push(descriptor.clone());
        }
        for name in names {
            let name = Reference::parse(&name)?.with_default_tag();
            let tag = name.tag().unwrap_or("latest").to_owned();
            entries.push(
                descriptor
                    .clone()
                    .annotate(types::ANNOTATION_IMAGE_NAME, name.to_string())
                    .annotate(types::ANNOTATION_REF_NAME, tag),
            );
        }
    }
    Ok(Index::new(true, entries))
}

#[cfg(test)]
mod tests {
    use base::gotar::{self, Header, Kind};

    use super::*;

    fn tar(entries: &[(&str, &[u8])], links: &[(&str, &str)]) -> Vec<u8> {
        let mut out = Vec::new();
        for (name, body) in entries {
            Header::file(*name, 0o644, body.len() as u64).write(&mut out).unwrap();
            out.extend_from_slice(body);
            gotar::write_padding(&mut out, body.len() as u64).unwrap();
        }
        for (name, target) in links {
            let link = target.as_bytes().to_vec();
            Header { kind: Kind::Symlink, link, ..Header::file(*name, 0o777, 0) }
                .write(&mut out)
                .unwrap();
        }
        gotar::write_end(&mut out).unwrap();
        out
    }

    #[tokio::test]
    async fn docker_save_old_and_new() {
        let layer = tar(&[("a", b"x")], &[]);
        let manifest = br#"[{"Config":"c.json","RepoTags":["app:1","h.io/x"],"Layers":["l1/layer.tar","l2/layer.tar"]}]"#;
        let body = tar(
            &[("c.json", b"{}"), ("l1/layer.tar", &layer), ("manifest.json", manifest)],
            &[("l2/layer.tar", "../l1/layer.tar")],
        );
        let folder = tempfile::tempdir().unwrap();
        let layout = Layout::unpack(&body[..], folder.path(), Limits::default()).unwrap();
        let images = layout.images();
        assert_eq!(images.len(), 1);
        assert_eq!(images[0].names, ["docker.io/library/app:1", "h.io/x:latest"]);
        let again = Layout::open(folder.path()).unwrap();
        assert_eq!(again.images(), images);
        assert!(again.find(Some("1")).is_some() && again.find(None).is_none());
        let body = content::read_all(&again, &images[0].descriptor, 1 << 20).await.unwrap();
        let manifest = Manifest::parse("m", &body).unwrap();
        assert_eq!(manifest.layers.len(), 2);
        assert_eq!(manifest.layers[0].digest, Digest::of(&layer));
        let missing = Descriptor::of("x", b"nothing");
        assert!(again.open(&missing, 0).await.err().unwrap().is_not_found());
    }

    #[test]
    fn lies_and_rubbish() {
        let check = |body: &[u8]| {
            let folder = tempfile::tempdir().unwrap();
            Layout::unpack(body, folder.path(), Limits::default()).unwrap_err().to_string()
        };
        let lie = format!("blobs/sha256/{}", Digest::of("y").hex());
        assert!(check(&tar(&[(&lie, b"x")], &[])).contains("arrived damaged"));
        assert!(check(&tar(&[("../../etc/passwd", b"x")], &[])).contains("not an image"));
        let loops = tar(
            &[("manifest.json", br#"[{"Config":"a","Layers":[]}]"#)],
            &[("a", "b"), ("b", "a")],
        );
        assert!(check(&loops).contains("`a` is not in the tar"));
        let whole = tar(&[("index.json", b"{\"schemaVersion\":2}")], &[]);
        assert!(check(&whole[..600]).contains("read image tar"));
    }
}
