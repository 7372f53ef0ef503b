//! The store through its public face, on real folders with a real snapshot driver.

mod compose;
mod gc;
mod hostile;
mod layers;
mod numbers;
mod records;
mod recovery;

use std::{
    collections::HashMap,
    io::Write as _,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use base::Digest;
use bytes::Bytes;
use futures_util::StreamExt as _;
use oci::{BlobStream, Descriptor, Provider};
use snapshot::Tree;
use store::{Config, ImageLayer, ImageLayers, MutRef, NewRecord, RecordKind, Ref, Store};

/// A store in a folder of its own.
fn open(folder: &Path) -> Arc<Store> {
    // A program that another test just starts holds a copy of the lock until it runs.
    for _ in 0..100 {
        match Store::open(Config::new(folder)) {
            Err(store::StoreError::Locked { .. }) => {
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
            opened => return opened.expect("the store opens"),
        }
    }
    panic!("the store stays locked");
}

fn folder() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("store-").tempdir().expect("a temporary folder")
}

fn write(tree: &Tree, path: &str, text: &str) {
    let path = tree.path().join(path);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
}

/// Paths and contents of a tree, one a line.
fn list(tree: &Tree) -> String {
    fn walk(at: &Path, prefix: &str, out: &mut Vec<String>) {
        for entry in std::fs::read_dir(at).unwrap() {
            let entry = entry.unwrap();
            let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
            if entry.file_type().unwrap().is_dir() {
                out.push(format!("{name}/"));
                walk(&entry.path(), &format!("{name}/"), out);
            } else {
                let text = std::fs::read_to_string(entry.path()).unwrap();
                out.push(format!("{name} {text}"));
            }
        }
    }
    let mut out = Vec::new();
    walk(&tree.path(), "", &mut out);
    out.sort();
    out.join("\n")
}

fn begin(store: &Arc<Store>, parent: Option<&Ref>, description: &str) -> MutRef {
    let record = NewRecord { parent, description: description.into(), ..NewRecord::default() };
    store.create(record).expect("a record is made")
}

/// A committed record over `parent` with one more file.
async fn with_file(store: &Arc<Store>, parent: Option<&Ref>, path: &str, text: &str) -> Ref {
    let record = begin(store, parent, path);
    write(&record.tree().unwrap(), path, text);
    record.commit().await.expect("the record is committed")
}

/// A small uncompressed tar.
fn tar(files: &[(&str, &str)]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, text) in files {
        let mut header = tar::Header::new_ustar();
        header.set_mode(0o644);
        header.set_size(text.len() as u64);
        tar.append_data(&mut header, name, text.as_bytes()).unwrap();
    }
    tar.into_inner().unwrap()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Blobs in memory that count how often they are asked for.
#[derive(Default)]
struct Memory {
    blobs: HashMap<Digest, Vec<u8>>,
    opened: AtomicUsize,
    /// Bytes after which the first opening of any blob breaks.
    breaks: Option<usize>,
}

impl Memory {
    fn opened(&self) -> usize {
        self.opened.load(Ordering::Relaxed)
    }

    fn layer(&mut self, files: &[(&str, &str)]) -> ImageLayer {
        let tar = tar(files);
        let blob = gzip(&tar);
        let descriptor = Descriptor::of(oci::media::OCI_LAYER_GZIP, &blob);
        self.blobs.insert(descriptor.digest, blob);
        let diff_id = Digest::of(&tar);
        ImageLayer { descriptor, diff_id, created_at: None, description: None }
    }
}

#[async_trait::async_trait]
impl Provider for Memory {
    async fn open(&self, blob: &Descriptor, offset: u64) -> oci::Result<BlobStream> {
        let first = self.opened.fetch_add(1, Ordering::Relaxed) == 0;
        let missing = || oci::Error::NotFound { what: blob.digest.to_string() };
        let bytes = self.blobs.get(&blob.digest).ok_or_else(missing)?;
        let bytes = Bytes::copy_from_slice(&bytes[usize::try_from(offset).unwrap()..]);
        let pieces: Vec<std::io::Result<Bytes>> = match self.breaks {
            Some(after) if first => vec![
                Ok(bytes.slice(..after.min(bytes.len()))),
                Err(std::io::Error::other("the line went dead")),
            ],
            _ => bytes.chunks(7).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect(),
        };
        Ok(futures_util::stream::iter(pieces).boxed())
    }

    fn describe(&self) -> String {
        "memory".into()
    }
}

fn image(store: &Arc<Store>, layers: Vec<ImageLayer>, provider: Option<Arc<Memory>>) -> Ref {
    let image = ImageLayers {
        layers,
        provider: provider.map(|it| it as Arc<dyn Provider>),
        description: "pulled from x".into(),
        kind: RecordKind::Regular,
        image_name: Some("x".into()),
        keeps: Vec::new(),
    };
    store.image(image).expect("an image").expect("it has layers")
}

/// Bytes that files and folders below `path` take, hard links counted once; as `du` counts.
fn disk_usage(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    fn walk(path: &Path, seen: &mut std::collections::HashSet<u64>) -> u64 {
        let metadata = std::fs::symlink_metadata(path).unwrap();
        if !seen.insert(metadata.ino()) {
            return 0;
        }
        let mut sum = metadata.blocks() * 512;
        if metadata.is_dir() {
            for entry in std::fs::read_dir(path).unwrap() {
                sum += walk(&entry.unwrap().path(), seen);
            }
        }
        sum
    }
    walk(path, &mut Default::default())
}
