//! What an export is given and what it gives back.

use std::{
    collections::BTreeMap,
    future::Future,
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use base::Platform;
use bytes::Bytes;
use oci::{Descriptor, Registry};
use session::Group;
use store::Ref;

use crate::ExportError;

/// The result of a build and everything needed to take it somewhere.
pub struct ExportRequest {
    /// The result.
    pub result: ExportResult,
    /// Sessions of the build; files go to the first of them.
    pub sessions: Group,
    /// Position of the exporter in the solve request; clients tell their outputs apart by it.
    pub index: usize,
    /// Told what happens.
    pub progress: Arc<dyn Progress>,
    /// Registries with the credentials of the build's sessions; the argument is
    /// `registry.insecure`.
    pub registries: Registries,
    /// Makes the inline cache, if one was asked for.
    pub inline_cache: Option<InlineCache>,
    /// Default platform of the daemon, for results that do not say.
    pub platform: Platform,
}

/// See [`ExportRequest::registries`].
pub type Registries = Arc<dyn Fn(bool) -> Arc<dyn Registry> + Send + Sync>;

/// Given a result's ref and its final layers, the JSON for `moby.buildkit.cache.v0`.
pub type InlineCache = Arc<
    dyn Fn(
            Option<Ref>,
            Vec<Descriptor>,
        ) -> Pin<Box<dyn Future<Output = Result<Option<Bytes>, ExportError>> + Send>>
        + Send
        + Sync,
>;

/// What a build gave: one tree or one per platform, with metadata and statements.
#[derive(Clone, Default)]
pub struct ExportResult {
    /// The tree of a single result; `None`: empty.
    pub single: Option<Ref>,
    /// Trees by platform id; empty for single results.
    pub by_platform: BTreeMap<String, Option<Ref>>,
    /// Frontend metadata: `containerimage.config`, `refs.platforms`, ….
    pub metadata: BTreeMap<String, Bytes>,
    /// Statements by platform id (also for single results).
    pub attestations: BTreeMap<String, Vec<Attestation>>,
}

/// One platform's part of a result.
#[derive(Clone)]
pub struct PlatformResult {
    /// Key in the result's maps.
    pub id: String,
    /// Parsed form.
    pub platform: Platform,
    /// The tree.
    pub tree: Option<Ref>,
}

/// A statement about a result.
#[derive(Debug, Clone)]
pub struct Attestation {
    /// E.g. `https://slsa.dev/provenance/v1`.
    pub predicate_type: String,
    /// The predicate, JSON.
    pub predicate: Predicate,
    /// Whom it is about; empty: the exported artifact.
    pub subjects: Vec<Subject>,
    /// File name in `local` and `tar` outputs.
    pub path: String,
    /// Only for images that inline it.
    pub inline_only: bool,
    /// Lists of contents: the name that marks the main one.
    pub core: Option<String>,
}

impl Attestation {
    /// Whether it is the main list of contents.
    pub fn is_core(&self) -> bool {
        let name = base::path::base(&self.path);
        let stem = name.split_once('.').map_or(name, |(stem, _)| stem);
        self.core.as_deref() == Some(stem)
    }
}

/// JSON that may be written late: some statements tell of blobs that the export makes.
#[derive(Clone)]
pub struct Predicate(Arc<dyn Fn() -> Reading + Send + Sync>);

type Reading = Pin<Box<dyn Future<Output = Result<Bytes, ExportError>> + Send>>;

impl Predicate {
    /// Written by `make` when it is needed, perhaps several times.
    pub fn later<F>(make: impl Fn() -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<Bytes, ExportError>> + Send + 'static,
    {
        Self(Arc::new(move || Box::pin(make())))
    }

    /// The JSON.
    pub async fn read(&self) -> Result<Bytes, ExportError> {
        (self.0)().await
    }
}

impl From<Bytes> for Predicate {
    fn from(json: Bytes) -> Self {
        Self::later(move || std::future::ready(Ok(json.clone())))
    }
}

impl std::fmt::Debug for Predicate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Predicate")
    }
}

/// What a statement is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subject {
    /// The artifact being exported.
    Own {
        /// A further name for it; mostly empty.
        name: String,
    },
    /// Something else, by digests.
    Raw {
        /// Its name.
        name: String,
        /// `algorithm:hex`.
        digests: Vec<String>,
    },
}

/// The rest of an export, to run after all exporters have exported: pushes.
pub type Finish = Pin<Box<dyn Future<Output = Result<(), ExportError>> + Send>>;

/// What an export gave.
#[derive(Default)]
pub struct Exported {
    /// For the client, keys as in the control protocol.
    pub response: BTreeMap<String, String>,
    /// Root of what was exported, for history.
    pub descriptor: Option<Descriptor>,
    /// Pushes still to be done; the export counts as failed if they fail.
    pub finish: Option<Finish>,
}

/// Progress of one part of an export.
#[derive(Debug, Clone, PartialEq)]
pub struct Status {
    /// What: `exporting layers`, `naming to docker.io/library/x:latest`.
    pub id: String,
    /// Bytes (or other units) done.
    pub current: u64,
    /// Of how many; zero: unknown.
    pub total: u64,
    /// Since when.
    pub started: SystemTime,
    /// Until when.
    pub completed: Option<SystemTime>,
}

/// Whoever shows the exporter's vertex.
pub trait Progress: Send + Sync {
    /// A part began, moved or ended.
    fn status(&self, status: Status);

    /// Something people should know that does not fail the export.
    fn warn(&self, text: &str);
}

/// Shows nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Progress for Silent {
    fn status(&self, _status: Status) {}

    fn warn(&self, _text: &str) {}
}

/// A part under way: reported when made, and as complete when dropped.
pub struct Step {
    progress: Arc<dyn Progress>,
    status: Status,
    shown: Instant,
}

impl Step {
    /// Begins a part.
    pub fn begin(progress: &Arc<dyn Progress>, id: impl Into<String>) -> Self {
        let started = SystemTime::now();
        let status = Status { id: id.into(), current: 0, total: 0, started, completed: None };
        progress.status(status.clone());
        Self { progress: progress.clone(), status, shown: Instant::now() }
    }

    /// Tells how far it is; shown at most ten times a second.
    pub fn at(&mut self, current: u64, total: u64) {
        (self.status.current, self.status.total) = (current, total);
        if self.shown.elapsed() >= Duration::from_millis(100) {
            self.shown = Instant::now();
            self.progress.status(self.status.clone());
        }
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        self.status.completed = Some(SystemTime::now());
        self.progress.status(self.status.clone());
    }
}

/// The session that receives an export's files: the first of the build's.
pub(crate) async fn client(request: &ExportRequest) -> Result<session::Session, ExportError> {
    const DOING: &str = "reach the client that receives the output";
    let ids = request.sessions.ids();
    let Some(id) = ids.iter().find(|id| !id.is_empty()) else {
        return Err(ExportError::session(DOING)(session::SessionError::NoSessions));
    };
    request.sessions.sessions().get(id).await.map_err(ExportError::session(DOING))
}
