//! Prints the graph of a Dockerfile, without a daemon.
//!
//! ```text
//! cargo run -p dockerfile --example llb -- path/to/Dockerfile [--target STAGE] [KEY=VALUE…]
//! ```
//!
//! `KEY=VALUE` are build args. Images are not looked up: each is taken to be an empty one for the
//! wanted platform, with a made-up digest. A mistake in the file is shown with its place.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use base::{Digest, Platform};
use bytes::Bytes;
use dockerfile::context::Client;
use dockerfile::image::Image;
use dockerfile::lint::Linter;
use dockerfile::lower::{self, Request};
use dockerfile::{protojson, report};
use frontend_api::{
    Bridge, FileRange, FileStat, FrontendError, FrontendResult, ImageMeta, RefHandle, SolveRequest,
    SourceMeta, SourceMetaRequest, Warning, WorkerInfo,
};
use llb::pb;
use prost::Message as _;

/// Answers from the folder of the Dockerfile.
struct Folder {
    path: PathBuf,
    options: BTreeMap<String, String>,
    workers: Vec<WorkerInfo>,
    caps: BTreeSet<String>,
}

#[async_trait::async_trait]
impl Bridge for Folder {
    fn options(&self) -> &BTreeMap<String, String> {
        &self.options
    }

    fn session_id(&self) -> &str {
        "example"
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
        let platform = request.platform.unwrap_or_else(Platform::host);
        let mut image = Image::empty(&platform);
        let digest = Digest::of(&request.source.identifier);
        image.rootfs.diff_ids = Some(vec![digest.to_string()]);
        let image = ImageMeta { digest: digest.to_string(), config: image.to_json().into() };
        Ok(SourceMeta { source: request.source, image: Some(image), ..SourceMeta::default() })
    }

    async fn read_file(
        &self,
        _: &RefHandle,
        path: &str,
        _: Option<FileRange>,
    ) -> Result<Bytes, FrontendError> {
        let read = std::fs::read(self.path.join(path));
        read.map(Bytes::from).map_err(|error| FrontendError::new(format!("open {path}: {error}")))
    }

    async fn read_dir(
        &self,
        _: &RefHandle,
        path: &str,
        _: &str,
    ) -> Result<Vec<FileStat>, FrontendError> {
        Err(FrontendError::new(format!("open {path}: folders are not read here")))
    }

    async fn stat_file(&self, _: &RefHandle, path: &str) -> Result<FileStat, FrontendError> {
        Err(FrontendError::new(format!("lstat {path}: files are not looked at here")))
    }

    async fn evaluate(&self, _: &RefHandle) -> Result<(), FrontendError> {
        Ok(())
    }

    async fn warn(&self, _: Warning) -> Result<(), FrontendError> {
        Ok(())
    }
}

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

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let Some(file) = args.next() else {
        eprintln!("usage: llb DOCKERFILE [--target STAGE] [KEY=VALUE…]");
        return ExitCode::FAILURE;
    };
    let file = Path::new(&file);
    let name =
        file.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    let mut options = BTreeMap::from([("filename".to_owned(), name.clone())]);
    while let Some(arg) = args.next() {
        match arg.split_once('=') {
            Some((key, value)) => _ = options.insert(format!("build-arg:{key}"), value.to_owned()),
            None => _ = options.insert("target".to_owned(), args.next().unwrap_or_default()),
        }
    }
    let platforms = vec![Platform::host()];
    let bridge = Arc::new(Folder {
        path: file.parent().unwrap_or(Path::new(".")).to_owned(),
        options,
        workers: vec![WorkerInfo { platforms, ..WorkerInfo::default() }],
        caps: CAPS.iter().map(|cap| (*cap).to_owned()).collect(),
    });
    let mut linter = Linter::default();
    let mut data = Bytes::new();
    let converted = async {
        let client = Client::new(bridge, false).await?;
        let source = client.read_dockerfile().await?;
        data = source.data.clone();
        linter = Linter::new(lower::lint_config(&client, &data)?);
        lower::convert(&client, &source, &Request::default(), &mut linter).await
    };
    let written = converted.await.and_then(|converted| converted.definition());
    for finding in linter.findings() {
        eprintln!("{name}:{}: {}: {}", finding.lines.first, finding.rule.name(), finding.message);
    }
    match written {
        Ok(definition) => {
            for bytes in &definition.def {
                let op = pb::Op::decode(bytes.clone()).expect("we wrote an op");
                println!("{} {}", Digest::of(bytes), protojson::op(&op));
            }
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprint!("{}", report::explain(&error, &name, &data));
            ExitCode::FAILURE
        }
    }
}
