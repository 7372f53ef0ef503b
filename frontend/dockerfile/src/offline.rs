//! Lowering without a daemon, for tools that want the graph of a Dockerfile.
//!
//! [`Offline`] answers what a daemon would be asked: files come from a map, and every image is taken
//! to be an empty one for the wanted platform, with a digest made from its name. So the graph has
//! the shape of a real build's while the contents of images are unknown.
//!
//! ```
//! use dockerfile::offline::{Offline, lower};
//!
//! let found = lower(Offline::default().with_file("Dockerfile", "FROM alpine\nRUN make\n"));
//! assert_eq!(found.definition.unwrap().def.len(), 3);
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use async_trait::async_trait;
use base::{Digest, Platform};
use bytes::Bytes;
use frontend_api::{
    Bridge, FileRange, FileStat, FrontendError, FrontendResult, ImageMeta, RefHandle, SolveRequest,
    SourceMeta, SourceMetaRequest, Warning, WorkerInfo,
};
use futures_util::FutureExt as _;
use llb::pb;

use crate::context::Client;
use crate::error::Result;
use crate::image::Image;
use crate::lint::{Finding, Linter};
use crate::lower::{self, Request};

/// What graphs may use: all that this frontend knows.
const CAPS: &[&str] = &[
    "exec.meta.cdi",
    "exec.meta.cgroup.parent",
    "exec.meta.linux.resources",
    "exec.meta.setsdefaultpath",
    "exec.meta.ulimit",
    "exec.mount.bind.readwrite-nooutput",
    "exec.mount.tmpfs.size",
    "file.base",
    "mergeop",
];

/// Stands in for a daemon.
#[derive(Debug, Clone)]
pub struct Offline {
    options: BTreeMap<String, String>,
    files: BTreeMap<String, Bytes>,
    workers: Vec<WorkerInfo>,
    caps: BTreeSet<String>,
}

impl Default for Offline {
    fn default() -> Self {
        Self::new(BTreeMap::new())
    }
}

impl Offline {
    /// Options as a client sends them: `target`, `platform`, `build-arg:NAME`, `context:NAME` and so
    /// on. Without a platform it is built for this machine.
    pub fn new(options: BTreeMap<String, String>) -> Self {
        let platforms = vec![Platform::host()];
        Self {
            options,
            files: BTreeMap::new(),
            workers: vec![WorkerInfo { platforms, ..WorkerInfo::default() }],
            caps: CAPS.iter().map(|cap| (*cap).to_owned()).collect(),
        }
    }

    /// Adds a file of the context: the Dockerfile, an ignore file.
    pub fn with_file(mut self, path: &str, data: impl Into<Bytes>) -> Self {
        self.files.insert(base::path::clean(path), data.into());
        self
    }
}

/// What became of a Dockerfile.
#[derive(Debug)]
pub struct Lowered {
    /// The graph, or what is wrong.
    pub definition: Result<pb::Definition>,
    /// The image config, if there is a graph.
    pub image: Option<Image>,
    /// What lint found on the way.
    pub findings: Vec<Finding>,
    /// The Dockerfile, if it was found; [`report::explain`](crate::report::explain) shows errors in
    /// it.
    pub dockerfile: Bytes,
}

/// Lowers the Dockerfile for the first platform asked for.
pub fn lower(offline: Offline) -> Lowered {
    let mut found = Lowered {
        definition: Ok(pb::Definition::default()),
        image: None,
        findings: Vec::new(),
        dockerfile: Bytes::new(),
    };
    let run = run(offline, &mut found).now_or_never();
    found.definition = run.expect("nothing is waited for: all answers are at hand");
    found
}

async fn run(offline: Offline, found: &mut Lowered) -> Result<pb::Definition> {
    let client = Client::new(Arc::new(offline), false).await?;
    let source = client.read_dockerfile().await?;
    found.dockerfile = source.data.clone();
    let mut linter = Linter::new(lower::lint_config(&client, &source.data)?);
    let platform = client.options.platforms.first().cloned();
    let request = Request { platform, all_stages: false };
    let converted = lower::convert(&client, &source, &request, &mut linter).await;
    found.findings = linter.into_findings();
    let converted = converted?;
    let definition = converted.definition()?;
    found.image = Some(converted.image);
    Ok(definition)
}

#[async_trait]
impl Bridge for Offline {
    fn options(&self) -> &BTreeMap<String, String> {
        &self.options
    }

    fn session_id(&self) -> &str {
        "offline"
    }

    fn workers(&self) -> &[WorkerInfo] {
        &self.workers
    }

    fn llb_caps(&self) -> &BTreeSet<String> {
        &self.caps
    }

    async fn inputs(&self) -> Result<BTreeMap<String, pb::Definition>, FrontendError> {
        Ok(BTreeMap::new())
    }

    /// Graphs are only solved to read files, and all files are in one folder.
    async fn solve(&self, _: SolveRequest) -> Result<FrontendResult, FrontendError> {
        Ok(FrontendResult::single(Some(RefHandle::new(Arc::new(()), None))))
    }

    async fn resolve_source_meta(
        &self,
        request: SourceMetaRequest,
    ) -> Result<SourceMeta, FrontendError> {
        let is_image = request.source.identifier.starts_with("docker-image://")
            || request.source.identifier.starts_with("oci-layout://");
        let image = is_image.then(|| {
            let platform = request.platform.unwrap_or_else(Platform::host);
            let mut image = Image::empty(&platform);
            let digest = Digest::of(&request.source.identifier).to_string();
            image.rootfs.diff_ids = Some(vec![digest.clone()]);
            ImageMeta { digest, config: image.to_json().into(), chain: None }
        });
        Ok(SourceMeta { source: request.source, image, ..SourceMeta::default() })
    }

    async fn read_file(
        &self,
        _: &RefHandle,
        path: &str,
        range: Option<FileRange>,
    ) -> Result<Bytes, FrontendError> {
        let data = self.files.get(base::path::absolute(path).trim_start_matches('/')).cloned();
        let missing = || FrontendError::new(format!("open {path}: no such file or directory"));
        let data = data.ok_or_else(missing)?;
        let Some(FileRange { offset, length }) = range else { return Ok(data) };
        let at = |number: u64| usize::try_from(number).unwrap_or(usize::MAX).min(data.len());
        Ok(data.slice(at(offset)..at(offset.saturating_add(length))))
    }

    async fn read_dir(
        &self,
        _: &RefHandle,
        path: &str,
        _: &str,
    ) -> Result<Vec<FileStat>, FrontendError> {
        Err(FrontendError::new(format!("open {path}: folders are not read without a daemon")))
    }

    async fn stat_file(&self, _: &RefHandle, path: &str) -> Result<FileStat, FrontendError> {
        Err(FrontendError::new(format!("lstat {path}: no file is looked at without a daemon")))
    }

    async fn evaluate(&self, _: &RefHandle) -> Result<(), FrontendError> {
        Ok(())
    }

    async fn warn(&self, _: Warning) -> Result<(), FrontendError> {
        Ok(())
    }
}
