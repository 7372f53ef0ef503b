//! A bridge that answers from a folder: images by fixed rules, files from disk, no daemon.
//!
//! It follows the rules of the corpus' README, keeps every graph it is asked to solve, and is what
//! tests, the example and the benchmark share.

#![allow(dead_code)]

pub mod generate;
pub mod mutate;
pub mod record;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, UNIX_EPOCH};

use base::{Digest, Platform};
use bytes::Bytes;
use frontend_api::{
    Bridge, FileRange, FileStat, FrontendError, FrontendResult, GitMeta, HttpMeta, ImageMeta,
    RefHandle, SolveRequest, SolveWhat, SourceMeta, SourceMetaRequest, Warning, WorkerInfo,
};
use llb::pb;
use prost::Message as _;
use serde_json::Value;

/// What tests know of images.
pub struct Images {
    entries: Vec<Value>,
    default: Value,
    default_windows: Value,
}

impl Images {
    /// Reads `stub-images.json`.
    pub fn read(path: &Path) -> Self {
        let text =
            std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let value: Value = serde_json::from_slice(&text).expect("the image list is JSON");
        Self {
            entries: value["entries"].as_array().cloned().unwrap_or_default(),
            default: value["default"].clone(),
            default_windows: value["default_windows"].clone(),
        }
    }

    pub fn resolve(
        &self,
        reference: &str,
        platform: &Platform,
    ) -> Result<ImageMeta, FrontendError> {
        let digest = match reference.split_once('@') {
            Some((_, digest)) => digest.to_owned(),
            None => Digest::of(reference).to_string(),
        };
        let name = reference.split('@').next().unwrap_or_default();
        let name = match name.rsplit_once(':') {
            Some((before, tag)) if !tag.contains('/') => before,
            _ => name,
        };
        let entry = self.entries.iter().find(|entry| entry["name"] == name);
        if let Some(error) = entry.and_then(|entry| entry["error"].as_str()) {
            return Err(FrontendError::new(error));
        }
        let mut config = match entry {
            Some(entry) => entry["config"].clone(),
            None if platform.os == "windows" => self.default_windows.clone(),
            None => self.default.clone(),
        };
        if platform.variant.is_empty()
            && config["variant"] == "${variant}"
            && let Some(map) = config.as_object_mut()
        {
            map.remove("variant");
        }
        let text = config
            .to_string()
            .replace("${os}", &platform.os)
            .replace("${arch}", &platform.architecture)
            .replace("${variant}", &platform.variant);
        Ok(ImageMeta { digest, config: text.into(), chain: None })
    }
}

/// The folder of one case, and what was asked of it.
pub struct FolderBridge {
    pub folder: PathBuf,
    pub images: Arc<Images>,
    pub options: BTreeMap<String, String>,
    pub inputs: BTreeMap<String, pb::Definition>,
    /// `archive` or `dockerfile`: what a downloaded main context is.
    pub http: String,
    pub workers: Vec<WorkerInfo>,
    pub caps: BTreeSet<String>,
    pub solved: Mutex<Vec<pb::Definition>>,
    pub asked: Mutex<Vec<SourceMetaRequest>>,
    pub warnings: Mutex<Vec<Warning>>,
    pub forwarded: Mutex<Vec<BTreeMap<String, String>>>,
}

/// The tree a graph leads to: its source, if it is a single one.
struct Tree {
    source: Option<pb::SourceOp>,
}

/// LLB capabilities of a present-day server.
pub const CAPS: &[&str] = &[
    "constraints",
    "diffop",
    "exec.cgroup",
    "exec.meta.base",
    "exec.meta.cdi",
    "exec.meta.cgroup.parent",
    "exec.meta.linux.resources",
    "exec.meta.network",
    "exec.meta.proxyenv",
    "exec.meta.security",
    "exec.meta.setsdefaultpath",
    "exec.meta.ulimit",
    "exec.mount.bind",
    "exec.mount.bind.readwrite-nooutput",
    "exec.mount.cache",
    "exec.mount.cache.sharing",
    "exec.mount.secret",
    "exec.mount.selector",
    "exec.mount.ssh",
    "exec.mount.tmpfs",
    "exec.mount.tmpfs.size",
    "exec.secretenv",
    "file.base",
    "mergeop",
    "platform",
    "source.git",
    "source.http",
    "source.image",
    "source.local",
    "source.ocilayout",
];

impl FolderBridge {
    pub fn new(folder: &Path, images: Arc<Images>) -> Self {
        let worker = WorkerInfo {
            id: "0".to_owned(),
            platforms: vec![Platform::new("linux", "amd64")],
            ..WorkerInfo::default()
        };
        Self {
            folder: folder.to_owned(),
            images,
            options: BTreeMap::new(),
            inputs: BTreeMap::new(),
            http: String::new(),
            workers: vec![worker],
            caps: CAPS.iter().map(|cap| (*cap).to_owned()).collect(),
            solved: Mutex::default(),
            asked: Mutex::default(),
            warnings: Mutex::default(),
            forwarded: Mutex::default(),
        }
    }

    fn file(&self, source: &pb::SourceOp, path: &str) -> Option<PathBuf> {
        let (scheme, rest) = source.identifier.split_once("://")?;
        let name = base::path::base(path);
        let is_dockerfile = name
            == base::path::base(self.options.get("filename").map_or("Dockerfile", String::as_str));
        let own = |name: &str| Some(self.folder.join(name));
        match (scheme, rest) {
            ("local", "dockerfile" | "context") | ("git", _) => match name {
                ".dockerignore" => own(".dockerignore"),
                _ if name.ends_with(".dockerignore") => own("Dockerfile.dockerignore"),
                _ if is_dockerfile => own("Dockerfile"),
                _ => None,
            },
            ("local", other) => Some(self.folder.join("locals").join(other).join(name)),
            ("http" | "https", _) => own("Dockerfile"),
            _ => None,
        }
    }
}

#[async_trait::async_trait]
impl Bridge for FolderBridge {
    fn options(&self) -> &BTreeMap<String, String> {
        &self.options
    }

    fn session_id(&self) -> &str {
        "corpus"
    }

    fn workers(&self) -> &[WorkerInfo] {
        &self.workers
    }

    fn llb_caps(&self) -> &BTreeSet<String> {
        &self.caps
    }

    async fn inputs(&self) -> Result<BTreeMap<String, pb::Definition>, FrontendError> {
        Ok(self.inputs.clone())
    }

    async fn solve(&self, request: SolveRequest) -> Result<FrontendResult, FrontendError> {
        let definition = match request.what {
            SolveWhat::Definition(definition) => definition,
            SolveWhat::Frontend { options, .. } => {
                self.forwarded.lock().unwrap().push(options);
                return Ok(FrontendResult::default());
            }
            SolveWhat::Nothing => return Ok(FrontendResult::default()),
        };
        let ops = definition.def.iter().map(|bytes| pb::Op::decode(bytes.clone()).unwrap());
        let mut sources = ops.filter_map(|op| match op.op {
            Some(pb::op::Op::Source(source)) => Some(source),
            _ => None,
        });
        let source = sources.next().filter(|_| sources.next().is_none());
        self.solved.lock().unwrap().push(definition.clone());
        let handle = RefHandle::new(Arc::new(Tree { source }), Some(Arc::new(definition)));
        Ok(FrontendResult::single(Some(handle)))
    }

    async fn resolve_source_meta(
        &self,
        request: SourceMetaRequest,
    ) -> Result<SourceMeta, FrontendError> {
        self.asked.lock().unwrap().push(request.clone());
        let platform = request.platform.clone().unwrap_or_else(|| Platform::new("linux", "amd64"));
        let (scheme, rest) = request.source.identifier.split_once("://").unwrap();
        let mut meta = SourceMeta { source: request.source.clone(), ..SourceMeta::default() };
        match scheme {
            "docker-image" | "oci-layout" => {
                meta.image = Some(self.images.resolve(rest, &platform)?)
            }
            "git" => {
                let commit_object = "tree 0\ncommitter a <a@b> 1600000001 +0000\n\nx".into();
                meta.git = Some(GitMeta { commit_object, ..GitMeta::default() });
            }
            _ => {
                let last_modified = Some(UNIX_EPOCH + Duration::from_secs(1_600_000_002));
                meta.http = Some(HttpMeta { last_modified, ..HttpMeta::default() });
            }
        }
        Ok(meta)
    }

    async fn read_file(
        &self,
        reference: &RefHandle,
        path: &str,
        range: Option<FileRange>,
    ) -> Result<Bytes, FrontendError> {
        let tree = reference.downcast::<Tree>().expect("refs are trees");
        let missing = || FrontendError::new(format!("open {path}: no such file or directory"));
        let source = tree.source.as_ref().ok_or_else(missing)?;
        if range.is_some() && self.http == "archive" {
            return Ok(Bytes::from_static(b"\x1f\x8b\x08\0"));
        }
        let file = self.file(source, path).ok_or_else(missing)?;
        std::fs::read(file).map(Bytes::from).map_err(|_| missing())
    }

    async fn read_dir(
        &self,
        _: &RefHandle,
        _: &str,
        _: &str,
    ) -> Result<Vec<FileStat>, FrontendError> {
        Ok(Vec::new())
    }

    async fn stat_file(&self, _: &RefHandle, path: &str) -> Result<FileStat, FrontendError> {
        Err(FrontendError::new(format!("lstat {path}: no such file or directory")))
    }

    async fn evaluate(&self, _: &RefHandle) -> Result<(), FrontendError> {
        Ok(())
    }

    async fn warn(&self, warning: Warning) -> Result<(), FrontendError> {
        self.warnings.lock().unwrap().push(warning);
        Ok(())
    }
}

/// Runs a future that never waits.
pub fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread()
        .build()
        .expect("a runtime starts")
        .block_on(future)
}
