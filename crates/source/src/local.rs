//! Folders of the client: `local://NAME`.
//!
//! Received files live in a mutable record that is found again by name, hint and the client's
//! shared key, so that the next build transfers only what changed. Each build sees a committed view
//! of it; when nothing changed that is the view of last time, content digests included.
//!
//! ```text
//! field                      in the key   why
//! session id                 yes          a folder belongs to one client
//! name, filters, mode        yes          they choose what is sent
//! shared key hint, differ    no           they only say how to transfer
//! ```
//! The key never leaves the daemon; what follows depends on the content digests.

use std::{
    sync::{Arc, Mutex, Weak},
    time::{Duration, Instant, SystemTime},
};

use base::{Digest, Hasher, gojson, gomode, pattern::Patterns};
use serde::Serialize;
use session::{
    Group, Session, SessionError, SyncRequest,
    fsutil::{Change, ChangeSink, Differ, ReceiveOptions, Stat},
};
use snapshot::contenthash::{self, Index};
use store::{MutRef, NewRecord, RecordKind, Ref, Store, StoreError};

use crate::{
    Instance, KeyStep, Meta, MetaRequest, Progress, Source, SourceError, SourceRequest, Status,
    attrs,
};

/// Progress is told this often at most.
const PAUSE: Duration = Duration::from_millis(100);

/// The source of `local://` folders.
pub struct LocalSource {
    store: Arc<Store>,
}

impl LocalSource {
    /// Keeps received files in `store`.
    pub fn new(store: Arc<Store>) -> Self {
        Self { store }
    }
}

#[async_trait::async_trait]
impl Source for LocalSource {
    fn schemes(&self) -> &'static [&'static str] {
        &["local"]
    }

    async fn resolve(&self, request: SourceRequest) -> Result<Box<dyn Instance>, SourceError> {
        let folder = Folder::parse(&request)?;
        Ok(Box::new(Local { store: self.store.clone(), folder, group: request.group }))
    }

    async fn metadata(&self, _: MetaRequest) -> Result<Meta, SourceError> {
        Ok(Meta::default())
    }
}

/// What the op asks for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Folder {
    name: String,
    session: String,
    include: Option<Vec<String>>,
    exclude: Option<Vec<String>>,
    follow: Option<Vec<String>>,
    hint: String,
    differ: Differ,
    metadata_only: bool,
    exceptions: Option<Vec<String>>,
}

impl Folder {
    fn parse(request: &SourceRequest) -> Result<Self, SourceError> {
        let mut folder = Self { name: request.rest().to_owned(), ..Self::default() };
        for (key, value) in &request.op.attrs {
            match key.as_str() {
                "local.session" => match value.split_once(':') {
                    Some((prefix, id)) => {
                        folder.name = format!("{prefix}-{}", folder.name);
                        id.clone_into(&mut folder.session);
                    }
                    None => folder.session.clone_from(value),
                },
                "local.includepattern" => folder.include = attrs::list(key, value)?,
                "local.excludepatterns" => folder.exclude = attrs::list(key, value)?,
                "local.followpaths" => folder.follow = attrs::list(key, value)?,
                "local.sharedkeyhint" => folder.hint.clone_from(value),
                "local.differ" if value == "none" => folder.differ = Differ::None,
                "local.metadatatransfer" => folder.metadata_only = attrs::boolean(key, value)?,
                "local.metadatatransferexclude" => folder.exceptions = attrs::list(key, value)?,
                _ => {}
            }
        }
        Ok(folder)
    }

    fn key(&self, session: &str) -> String {
        #[derive(Serialize)]
        #[serde(rename_all = "PascalCase")]
        struct Key<'a> {
            #[serde(rename = "SessionID")]
            session: &'a str,
            include_patterns: &'a Option<Vec<String>>,
            exclude_patterns: &'a Option<Vec<String>>,
            follow_paths: &'a Option<Vec<String>>,
            #[serde(skip_serializing_if = "std::ops::Not::not")]
            metadata_transfer: bool,
            #[serde(skip_serializing_if = "is_empty")]
            metadata_exceptions: &'a Option<Vec<String>>,
        }
        fn is_empty(list: &Option<Vec<String>>) -> bool {
            list.as_ref().is_none_or(Vec::is_empty)
        }
        let json = gojson::to_vec(&Key {
            session,
            include_patterns: &self.include,
            exclude_patterns: &self.exclude,
            follow_paths: &self.follow,
            metadata_transfer: self.metadata_only,
            metadata_exceptions: &self.exceptions,
        });
        format!("session:{}:{}", self.name, Digest::of(json))
    }

    fn shared_key(&self, session: &Session) -> String {
        let suffix = if self.metadata_only { ":metadata" } else { "" };
        format!("{}:{}:{}{suffix}", self.name, self.hint, session.shared_key())
    }
}

struct Local {
    store: Arc<Store>,
    folder: Folder,
    group: Group,
}

#[async_trait::async_trait]
impl Instance for Local {
    async fn cache_key(&mut self, _: usize, _: &Progress) -> Result<KeyStep, SourceError> {
        let mut session = self.folder.session.clone();
        if session.is_empty() {
            let any = self.group.ids().into_iter().find(|id| !id.is_empty());
            session = any.ok_or_else(|| {
                SourceError::Attribute("could not access local files without session".to_owned())
            })?;
        }
        Ok(KeyStep::only(self.folder.key(&session)))
    }

    async fn snapshot(&mut self, progress: &Progress) -> Result<Option<Ref>, SourceError> {
        let named = match self.folder.session.as_str() {
            "" => None,
            id => self.group.sessions().get(id).await.ok(),
        };
        if let Some(session) = named {
            match self.transfer(&session, progress).await {
                Err(error) if is_wrong_session(&error) => {}
                done => return done.map(Some),
            }
        }
        self.group.any(async |session| self.transfer(&session, progress).await).await.map(Some)
    }
}

/// Whether another session may do better.
fn is_wrong_session(error: &SourceError) -> bool {
    let SourceError::Session(error) = error else { return false };
    error.is_session_lost()
        || matches!(error, SessionError::NoLocalSources)
        || error.code().is_some() && error.to_string().contains("no access allowed to dir")
}

impl Local {
    async fn transfer(&self, session: &Session, progress: &Progress) -> Result<Ref, SourceError> {
        let folder = &self.folder;
        let exceptions = folder.exceptions.clone().unwrap_or_default();
        let exceptions = Patterns::new(&exceptions).map_err(|error| {
            SourceError::Attribute(format!("invalid local.metadatatransferexclude: {error}"))
        })?;
        let mut transfer = Transfer::begin(self.take(&folder.shared_key(session))?);
        let shown = Shown::new(&folder.name, progress);
        let counter = shown.counter();
        transfer.writers = Some(Arc::downgrade(&counter));
        let mut options = ReceiveOptions {
            differ: folder.differ,
            progress: Some(counter),
            ..ReceiveOptions::default()
        };
        if folder.metadata_only {
            // The listing file is part of the tree but not of what is told, so the index is made
            // by scanning.
            options.content_of = Some(Arc::new(move |path, _| exceptions.matches(path)));
        } else {
            // An empty index of a tree that is not empty has to be filled from what is kept.
            let index = transfer.sink.0.lock().expect("no panic in the index");
            options.tell_unchanged = index.is_empty();
            drop(index);
            options.changes = Some(transfer.sink.clone());
        }
        let list = |list: &Option<Vec<String>>| list.clone().unwrap_or_default();
        let request = SyncRequest {
            name: folder.name.clone(),
            include_patterns: list(&folder.include),
            exclude_patterns: list(&folder.exclude),
            follow_paths: list(&folder.follow),
            options,
        };
        let destination = transfer.record().tree()?;
        let root = rustix::io::fcntl_dupfd_cloexec(destination.fd(), 0)
            .map_err(|errno| SourceError::io("share the folder for received files", errno))?;
        let received = session.sync_dir(request, root).await?;
        drop(destination);
        shown.finish();
        tracing::debug!(name = folder.name, ?received, "received local files");
        Ok(transfer.end(received.changed > 0, folder.metadata_only).await?)
    }

    /// A record with earlier files of the same folder, or an empty one. Records in use are passed
    /// over.
    fn take(&self, shared_key: &str) -> Result<MutRef, SourceError> {
        let index_key = format!("local-shared-key::{shared_key}");
        for id in self.store.find(&index_key) {
            match self.store.take_mutable(&id) {
                Ok(record) => return Ok(record),
                Err(StoreError::InUse(_) | StoreError::NoRecord(_)) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(self.store.create(NewRecord {
            description: format!("local source for {}", self.folder.name),
            kind: RecordKind::LocalSource,
            retain: true,
            index_keys: vec![index_key],
            ..NewRecord::default()
        })?)
    }
}

/// A record being received into. Given up half-way it is removed, after the last writer is gone:
/// neither its files nor its digests can be trusted.
struct Transfer {
    record: Option<MutRef>,
    sink: Arc<Digests>,
    /// Alive as long as some thread may still write.
    writers: Option<Weak<dyn Fn(u64) + Send + Sync>>,
}

impl Transfer {
    fn begin(record: MutRef) -> Self {
        let sink = Arc::new(Digests(record.index()));
        Self { record: Some(record), sink, writers: None }
    }

    fn record(&self) -> &MutRef {
        self.record.as_ref().expect("a transfer has its record until it ends")
    }

    async fn end(mut self, changed: bool, scan: bool) -> Result<Ref, StoreError> {
        if changed && scan {
            *self.sink.0.lock().expect("no panic in the index") = Index::default();
        }
        let record = self.record.take().expect("a transfer ends once");
        record.into_view(changed).await
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        let Some(record) = self.record.take() else { return };
        let writers = self.writers.take();
        let gone = move || writers.as_ref().is_none_or(|writers| writers.strong_count() == 0);
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return record.discard() };
        runtime.spawn(async move {
            // Threads of a transfer that was broken off stop within moments.
            for _ in 0..500 {
                if gone() {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            record.discard();
        });
    }
}

/// Keeps a content index up to date while files arrive.
struct Digests(Arc<Mutex<Index>>);

impl ChangeSink for Digests {
    fn hasher(&self, stat: &Stat) -> Hasher {
        entry(stat).hasher()
    }

    fn changed(&self, change: Change<'_>) {
        let mut index = self.0.lock().expect("no panic in the index");
        match change {
            Change::Put { stat, digest } => index.put(stat.path.as_bytes(), &entry(stat), digest),
            Change::Link { stat } => {
                if !index.put_link(stat.path.as_bytes(), stat.linkname.as_bytes()) {
                    // A target unknown to the index: only a scan can tell now.
                    *index = Index::default();
                }
            }
            Change::Remove { path } => index.remove(path.as_bytes()),
        }
    }
}

fn entry(stat: &Stat) -> contenthash::Stat {
    let number = |value: i64| u32::try_from(value).unwrap_or_default();
    let is_link = stat.mode & gomode::SYMLINK != 0;
    contenthash::Stat {
        mode: gomode::to_unix(stat.mode),
        uid: stat.uid,
        gid: stat.gid,
        size: u64::try_from(stat.size).unwrap_or_default(),
        link: if is_link { stat.linkname.clone().into_bytes() } else { Vec::new() },
        device: (number(stat.devmajor), number(stat.devminor)),
        xattrs: stat
            .xattrs
            .iter()
            .map(|(name, value)| (name.clone().into_bytes(), value.to_vec()))
            .collect(),
    }
}

/// The transfer as a progress line.
struct Shown(Arc<ShownState>);

struct ShownState {
    progress: Progress,
    base: Status,
    /// Last update and the bytes so far.
    told: Mutex<(Instant, u64)>,
}

impl Shown {
    fn new(name: &str, progress: &Progress) -> Self {
        let base = Status {
            id: format!("transferring {name}:"),
            name: "transferring".to_owned(),
            started: Some(SystemTime::now()),
            ..Status::default()
        };
        progress.status(base.clone());
        let told = Mutex::new((Instant::now(), 0));
        Self(Arc::new(ShownState { progress: progress.clone(), base, told }))
    }

    fn counter(&self) -> session::fsutil::Progress {
        let state = self.0.clone();
        Arc::new(move |bytes| {
            let mut told = state.told.lock().expect("no panic while telling progress");
            told.1 = bytes;
            if told.0.elapsed() >= PAUSE {
                told.0 = Instant::now();
                state.progress.status(Status { current: bytes, ..state.base.clone() });
            }
        })
    }

    fn finish(&self) {
        let current = self.0.told.lock().expect("no panic while telling progress").1;
        let completed = Some(SystemTime::now());
        self.0.progress.status(Status { current, completed, ..self.0.base.clone() });
    }
}

#[cfg(test)]
#[path = "local_tests.rs"]
mod tests;
