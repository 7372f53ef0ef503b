//! Images in folders and tars: OCI layouts, and what `docker save` writes.
//!
//! A tar is unpacked by content: each of its files becomes a blob of the layout's folder, under
//! the digest its bytes have, whatever it was called. So no name in a tar reaches the file system,
//! and a blob whose name lies is found out.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, BufWriter, Read, Write as _},
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
        let mut found: Vec<Found> = Vec::new();
        for entry in &self.index.manifests {
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
                None => found
                    .push(Found { names: name.into_iter().collect(), descriptor: entry.clone() }),
            }
        }
        found
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
        const WHAT: &str = "read image tar";
        let io_error = |error| Error::io(WHAT, error);
        let decoder = Decoder::new(tar, limits).map_err(io_error)?;
        base::fs::create_dir_all(&into.join("blobs/sha256")).map_err(io_error)?;
        let mut files: BTreeMap<String, Entry> = BTreeMap::new();
        let mut archive = tar::Archive::new(decoder);
        for (count, entry) in archive.entries().map_err(io_error)?.enumerate() {
            if count > MAX_ENTRIES {
                return Err(Error::invalid(WHAT, format!("more than {MAX_ENTRIES} entries")));
            }
            let mut entry = entry.map_err(io_error)?;
            let name = base::path::clean(&String::from_utf8_lossy(&entry.path_bytes()));
            match entry.header().entry_type() {
                tar::EntryType::Regular | tar::EntryType::Continuous => {
                    let (digest, size) = store(&mut entry, into).map_err(io_error)?;
                    if let Some(hex) = name.strip_prefix("blobs/sha256/")
                        && hex != digest.hex()
                    {
                        return Err(Error::Corrupt {
                            what: format!("{WHAT}: {name}"),
                            expected: format!("sha256:{hex}"),
                            actual: digest.to_string(),
                        });
                    }
                    files.insert(name, Entry::File { digest, size });
                }
                tar::EntryType::Symlink | tar::EntryType::Link => {
                    let target = entry.link_name_bytes().unwrap_or_default();
                    let target = String::from_utf8_lossy(&target).into_owned();
                    let symbolic = entry.header().entry_type() == tar::EntryType::Symlink;
                    let base = if symbolic { base::path::dir(&name) } else { String::new() };
                    let target = base::path::join([base.as_str(), target.as_str()]);
                    files.insert(name, Entry::Link(target));
                }
                _ => {}
            }
        }
        let index = match (lookup(&files, "index.json"), lookup(&files, "manifest.json")) {
            (Some((digest, size)), _) => {
                Index::parse("index.json", &read_small(into, "index.json", digest, size)?)?
            }
            (None, Some((digest, size))) => {
                saved(into, &files, &read_small(into, "manifest.json", digest, size)?)?
            }
            (None, None) => {
                let reason = "neither index.json nor manifest.json: not an image";
                return Err(Error::invalid(WHAT, reason));
            }
        };
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

/// What a name in the tar stands for.
enum Entry {
    File { digest: Digest, size: u64 },
    Link(String),
}

fn lookup(files: &BTreeMap<String, Entry>, name: &str) -> Option<(Digest, u64)> {
    let mut name = base::path::clean(name);
    for _ in 0..MAX_LINKS {
        match files.get(&name)? {
            Entry::File { digest, size } => return Some((*digest, *size)),
            Entry::Link(target) => name.clone_from(target),
        }
    }
    None
}

fn blob_path(folder: &Path, digest: &Digest) -> PathBuf {
    folder.join("blobs/sha256").join(digest.hex())
}

/// Writes an entry's bytes and names them by digest.
fn store(entry: &mut impl Read, into: &Path) -> io::Result<(Digest, u64)> {
    let temporary = into.join(format!(".tmp-{}", base::id::random_id()));
    let mut out = BufWriter::with_capacity(256 << 10, File::create(&temporary)?);
    let mut hasher = Hasher::new();
    let mut buffer = vec![0; 256 << 10];
    let mut size = 0;
    let copied = loop {
        match entry.read(&mut buffer) {
            Ok(0) => break out.flush(),
            Ok(read) => {
                hasher.update(&buffer[..read]);
                size += read as u64;
                if let Err(error) = out.write_all(&buffer[..read]) {
                    break Err(error);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => break Err(error),
        }
    };
    let digest = hasher.finish();
    let done = copied.and_then(|()| fs::rename(&temporary, blob_path(into, &digest)));
    if done.is_err() {
        _ = fs::remove_file(&temporary);
    }
    done.map(|()| (digest, size))
}

fn read_small(folder: &Path, name: &str, digest: Digest, size: u64) -> Result<Vec<u8>> {
    if size > MAX_CONFIG {
        return Err(Error::invalid(name, format!("larger than {MAX_CONFIG} bytes")));
    }
    base::fs::read(&blob_path(folder, &digest))
        .map_err(|error| Error::io(format!("read {name}"), error))
}

/// An index over the images of `docker save`'s `manifest.json`, whose manifests are made here.
fn saved(folder: &Path, files: &BTreeMap<String, Entry>, body: &[u8]) -> Result<Index> {
    const WHAT: &str = "manifest.json";
    let list: Vec<SavedImage> =
        serde_json::from_slice(body).map_err(|error| Error::invalid(WHAT, error))?;
    let find = |name: &str| {
        lookup(files, name)
            .ok_or_else(|| Error::invalid(WHAT, format!("`{name}` is not in the tar")))
    };
    let mut entries = Vec::new();
    for image in list {
        let (digest, size) = find(&image.config)?;
        let config = Descriptor::new(media::OCI_CONFIG, digest, size);
        let mut layers = Vec::new();
        for name in &image.layers {
            let (digest, size) = find(name)?;
            let mut head = Vec::new();
            File::open(blob_path(folder, &digest))
                .and_then(|file| file.take(6).read_to_end(&mut head))
                .map_err(|error| Error::io(format!("read {name}"), error))?;
            let compression: Compression = Compression::detect(&head);
            layers.push(Descriptor::new(media::layer(compression, true), digest, size));
        }
        let body = Manifest::new(true, config, layers).to_json();
        let descriptor = Descriptor::of(media::OCI_MANIFEST, &body);
        base::fs::write_atomic(&blob_path(folder, &descriptor.digest), &body, false)
            .map_err(|error| Error::io("write manifest", error))?;
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
