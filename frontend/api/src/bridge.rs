//! The questions a frontend may ask, and what a frontend is.
//!
//! The daemon makes one bridge per frontend run; it ends with the run, and so do the refs it gave.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use async_trait::async_trait;
use base::Platform;
use bytes::Bytes;
use llb::{pb, policy::Policy};

use crate::{FrontendError, FrontendResult, RefHandle, SourceMeta, SourceMetaRequest};

/// Turns options and sources into a result by asking a [`Bridge`].
#[async_trait]
pub trait Frontend: Send + Sync {
    /// Runs once; the options are [`Bridge::options`].
    async fn solve(&self, bridge: Arc<dyn Bridge>) -> Result<FrontendResult, FrontendError>;
}

/// Everything a frontend may ask of the side that runs it.
#[async_trait]
pub trait Bridge: Send + Sync {
    /// The frontend options exactly as the client sent them.
    fn options(&self) -> &BTreeMap<String, String>;

    /// The client's session, empty if there is none.
    fn session_id(&self) -> &str;

    /// Workers, the default one first; its first platform is the build platform.
    fn workers(&self) -> &[WorkerInfo];

    /// Identifiers of the LLB capabilities that are known and enabled.
    fn llb_caps(&self) -> &BTreeSet<String>;

    /// Name of the product in messages about missing capabilities.
    fn exported_product(&self) -> &str {
        "rbuild"
    }

    /// Definitions given under a name beside the options.
    async fn inputs(&self) -> Result<BTreeMap<String, pb::Definition>, FrontendError>;

    /// Makes refs of a graph or runs another frontend. Lazy unless `evaluate` is set: nothing runs
    /// before a ref is read, and what is wrong with the graph shows there.
    async fn solve(&self, request: SolveRequest) -> Result<FrontendResult, FrontendError>;

    /// What a source leads to now: image digest and config, git commit, http headers.
    async fn resolve_source_meta(
        &self,
        request: SourceMetaRequest,
    ) -> Result<SourceMeta, FrontendError>;

    /// Bytes of a regular file; links are followed inside the ref.
    async fn read_file(
        &self,
        reference: &RefHandle,
        path: &str,
        range: Option<FileRange>,
    ) -> Result<Bytes, FrontendError>;

    /// Direct children of a folder in name order, `include` being an ignore-file pattern or empty.
    async fn read_dir(
        &self,
        reference: &RefHandle,
        path: &str,
        include: &str,
    ) -> Result<Vec<FileStat>, FrontendError>;

    /// One file, links followed inside the ref.
    async fn stat_file(&self, reference: &RefHandle, path: &str)
    -> Result<FileStat, FrontendError>;

    /// Solves a ref without looking at its content.
    async fn evaluate(&self, reference: &RefHandle) -> Result<(), FrontendError>;

    /// Attaches a warning to a vertex of this build.
    async fn warn(&self, warning: Warning) -> Result<(), FrontendError>;
}

/// A worker as frontends see it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WorkerInfo {
    /// Stable identifier.
    pub id: String,
    /// Free labels.
    pub labels: BTreeMap<String, String>,
    /// What it runs, native platform first.
    pub platforms: Vec<Platform>,
}

/// What to solve, with which caches, and when.
#[derive(Debug, Clone, Default)]
pub struct SolveRequest {
    /// The work.
    pub what: SolveWhat,
    /// Remote caches to look into.
    pub cache_imports: Vec<CacheImport>,
    /// Solve every ref before answering.
    pub evaluate: bool,
    /// Rules that sources have to pass after those of the build.
    pub policies: Vec<Policy>,
}

/// The work of a [`SolveRequest`].
#[derive(Debug, Clone, Default)]
pub enum SolveWhat {
    /// No work: an empty result.
    #[default]
    Nothing,
    /// One graph, one ref.
    Definition(pb::Definition),
    /// Another frontend.
    Frontend {
        /// `dockerfile.v0`, `gateway.v0`.
        name: String,
        /// Its options.
        options: BTreeMap<String, String>,
        /// Its inputs.
        inputs: BTreeMap<String, pb::Definition>,
    },
}

impl SolveRequest {
    /// Solves a graph lazily and without remote caches.
    pub fn definition(definition: pb::Definition) -> Self {
        Self { what: SolveWhat::Definition(definition), ..Self::default() }
    }
}

/// One remote cache to import from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CacheImport {
    /// `registry`, `local`, …
    pub kind: String,
    /// Options of that kind.
    pub attrs: BTreeMap<String, String>,
}

/// A piece of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileRange {
    /// First byte.
    pub offset: u64,
    /// At most this many.
    pub length: u64,
}

/// Attributes of a file, mode in Go's bits as on the wire.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FileStat {
    /// Relative to the listed folder, or the base name.
    pub path: String,
    /// Go's `fs.FileMode` bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Bytes.
    pub size: i64,
    /// Unix nanoseconds.
    pub mod_time: i64,
    /// Target of a symbolic or hard link.
    pub linkname: String,
    /// Device numbers.
    pub dev_major: i64,
    /// Device numbers.
    pub dev_minor: i64,
    /// Extended attributes.
    pub xattrs: BTreeMap<String, Bytes>,
}

impl FileStat {
    const GO_MODE_DIR: u32 = 1 << 31;

    /// Whether this is a folder.
    pub fn is_dir(&self) -> bool {
        self.mode & Self::GO_MODE_DIR != 0
    }
}

/// A remark about a vertex, shown to people.
#[derive(Debug, Clone, Default)]
pub struct Warning {
    /// The vertex, `sha256:…`.
    pub vertex: String,
    /// 1 is what frontends use.
    pub level: i32,
    /// One line.
    pub short: String,
    /// More lines.
    pub detail: Vec<String>,
    /// Documentation.
    pub url: String,
    /// The file the ranges are in.
    pub source_info: Option<pb::SourceInfo>,
    /// Where.
    pub ranges: Vec<pb::Range>,
}
