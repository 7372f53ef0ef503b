//! Exporters end to end: a real store, a real session, and foreign programs reading the outputs.

mod files;
mod foreign;
mod images;
mod pushes;

use std::{
    collections::BTreeMap,
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use base::Platform;
use bytes::Bytes;
use exporter::{
    ExportError, ExportRequest, ExportResult, Exported, Exporters, Progress, Registries, Status,
};
use futures_util::StreamExt as _;
use oci::{Registry, memory::Memory};
use session::{
    SessionRequest, Sessions,
    client::{ContentStores, LayoutStore, Outputs, SessionServer, Target},
};
use store::{Config, NewRecord, Ref, Store};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

/// A daemon's store with a client's session beside it.
pub struct World {
    pub folder: tempfile::TempDir,
    pub store: Arc<Store>,
    pub sessions: Sessions,
    pub session: String,
    pub memory: Arc<Memory>,
    pub seen: Arc<Seen>,
    /// What the file output was told about its result.
    pub told: Arc<Mutex<BTreeMap<String, String>>>,
    stop: CancellationToken,
}

/// Progress as lines.
#[derive(Default)]
pub struct Seen {
    pub lines: Mutex<Vec<String>>,
}

impl Progress for Seen {
    fn status(&self, status: Status) {
        if status.completed.is_some() {
            self.lines.lock().unwrap().push(status.id);
        }
    }

    fn warn(&self, text: &str) {
        self.lines.lock().unwrap().push(format!("warning: {text}"));
    }
}

impl World {
    /// Outputs of index 0 go to `out.file`, of 1 to the folder `out` (copy), of 2 (delete).
    pub async fn new() -> Self {
        let folder = tempfile::Builder::new().prefix("export-").tempdir().unwrap();
        let store = Store::open(Config::new(folder.path().join("state"))).unwrap();
        let told: Arc<Mutex<BTreeMap<String, String>>> = Arc::default();
        let (hear, file) = (told.clone(), folder.path().join("out.file"));
        let open = move |result| {
            *hear.lock().unwrap() = result;
            let file: Box<dyn session::client::OutputFile> = Box::new(fs::File::create(&file)?);
            Ok(Some(file))
        };
        let path = folder.path().join("out");
        fs::create_dir_all(folder.path().join("layout")).unwrap();
        let mut server = SessionServer::new("");
        server.add_outputs(Outputs::new([
            (0, Target::File(Arc::new(open))),
            (1, Target::Folder { path: path.clone(), delete: false }),
            (2, Target::Folder { path, delete: true }),
        ]));
        let layout = LayoutStore::writable(folder.path().join("layout"));
        server.add_content(ContentStores::new([("export".to_owned(), layout)]));
        let sessions = Sessions::new();
        let request = SessionRequest::from_metadata(&server.metadata().unwrap()).unwrap();
        let session = request.id.clone();
        let (to_client, from_daemon) = mpsc::channel::<Bytes>(32);
        let (to_daemon, from_client) = mpsc::channel::<Bytes>(32);
        let stop = CancellationToken::new();
        let incoming = ReceiverStream::new(from_client).map(Ok);
        tokio::spawn(sessions.serve(request, incoming, to_client).await);
        let incoming = ReceiverStream::new(from_daemon).map(Ok);
        tokio::spawn(server.serve(incoming, to_daemon, stop.clone()));
        sessions.get(&session).await.unwrap();
        let (memory, seen) = (Arc::new(Memory::new()), Arc::default());
        Self { folder, store, sessions, session, memory, seen, told, stop }
    }

    pub fn at(&self, path: &str) -> PathBuf {
        self.folder.path().join(path)
    }

    /// A tree of one layer on `parent`; files as `(path, text)`.
    pub async fn layer(
        &self,
        parent: Option<&Ref>,
        description: &str,
        files: &[(&str, &str)],
    ) -> Ref {
        let record = NewRecord { parent, description: description.into(), ..NewRecord::default() };
        let writer = self.store.create(record).unwrap();
        {
            let tree = writer.tree().unwrap();
            for (path, text) in files {
                let path = tree.path().join(path);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::File::create(path).unwrap().write_all(text.as_bytes()).unwrap();
            }
        }
        writer.commit().await.unwrap()
    }

    pub fn request(&self, index: usize, result: ExportResult) -> ExportRequest {
        let memory = self.memory.clone();
        let registries: Registries = Arc::new(move |_| memory.clone() as Arc<dyn Registry>);
        ExportRequest {
            result,
            sessions: self.sessions.group([self.session.clone()]),
            index,
            progress: self.seen.clone(),
            registries,
            inline_cache: None,
            platform: Platform::new("linux", "amd64"),
        }
    }

    /// Runs an exporter; pushes included.
    pub async fn export(
        &self,
        kind: &str,
        attrs: &[(&str, &str)],
        index: usize,
        result: ExportResult,
    ) -> Result<Exported, ExportError> {
        let exporter = Exporters::new(self.store.clone()).resolve(kind, map(attrs), 30)?;
        let mut exported = exporter.export(self.request(index, result)).await?;
        if let Some(finish) = exported.finish.take() {
            finish.await?;
        }
        Ok(exported)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

pub fn map(attrs: &[(&str, &str)]) -> BTreeMap<String, String> {
    attrs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

pub fn single(tree: &Ref) -> ExportResult {
    ExportResult { single: Some(tree.clone()), ..ExportResult::default() }
}

/// One tree for two platforms, with the mapping frontends send.
pub fn two_platforms(amd: &Ref, arm: &Ref) -> ExportResult {
    let mut result = ExportResult::default();
    result.by_platform.insert("linux/amd64".into(), Some(amd.clone()));
    result.by_platform.insert("linux/arm64".into(), Some(arm.clone()));
    let platforms = br#"{"Platforms":[{"ID":"linux/amd64","Platform":{"architecture":"amd64","os":"linux"}},{"ID":"linux/arm64","Platform":{"architecture":"arm64","os":"linux"}}]}"#;
    result.metadata.insert("refs.platforms".into(), Bytes::from_static(platforms));
    for id in ["amd64", "arm64"] {
        let config =
            format!(r#"{{"os":"linux","architecture":"{id}","config":{{"Cmd":["/{id}"]}}}}"#);
        result.metadata.insert(format!("containerimage.config/linux/{id}"), config.into());
    }
    result
}

/// An error with its causes.
pub fn text(error: &ExportError) -> String {
    let mut text = error.to_string();
    let mut next = std::error::Error::source(error);
    while let Some(cause) = next {
        let more = cause.to_string();
        if !text.ends_with(&more) {
            text += &format!(": {more}");
        }
        next = cause.source();
    }
    text
}

/// Entries of a tar: name, mode, size.
pub fn tar_list(path: &Path) -> Vec<String> {
    let mut archive = tar::Archive::new(fs::File::open(path).unwrap());
    let entries = archive.entries().unwrap().map(|entry| {
        let entry = entry.unwrap();
        let header = entry.header();
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let times = header.mtime().unwrap();
        format!("{:04o} {} {times} {name}", header.mode().unwrap(), header.size().unwrap())
    });
    entries.collect()
}
