//! The bridge of one frontend run: graphs become refs that are built when somebody looks.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Read as _,
    os::unix::fs::MetadataExt as _,
    sync::Arc,
};

use async_trait::async_trait;
use base::{Platform, gomode, pattern::Patterns};
use bytes::Bytes;
use frontend_api::{
    AttestationChain, Bridge, CacheImport, ChainBlob, Code, FileRange, FileStat, FrontendError,
    FrontendResult, GitMeta, HttpMeta, ImageMeta, RefHandle, Refs, SolveRequest, SolveWhat,
    SourceMeta, SourceMetaRequest, Warning, WorkerInfo,
};
use llb::{pb, policy::Policy};
use ops::{OpError, Worker};
use proto::control::VertexWarning;
use rustix::fs::{Mode, OFlags, ResolveFlags};
use snapshot::Tree;
use solver::Builder;
use store::Ref;
use tokio::sync::OnceCell;

use crate::{
    Engine, Job,
    attest::{Asked, ImageSource, Scope, Trace},
    failure,
    journal::made_up_digest,
    policy,
};

/// Largest file a frontend may read in one piece.
const MAX_FILE: u64 = 128 << 20;

/// One frontend's view of one build.
pub(crate) struct JobBridge {
    pub engine: Arc<Engine>,
    pub job: Arc<Job>,
    pub builder: Builder<Worker>,
    pub options: BTreeMap<String, String>,
    pub inputs: BTreeMap<String, pb::Definition>,
    pub caps: Arc<BTreeSet<String>>,
    pub scope: Arc<Scope>,
}

/// A tree that is built when it is first needed.
pub(crate) struct LazyRef {
    engine: Arc<Engine>,
    job: Arc<Job>,
    builder: Builder<Worker>,
    trace: Arc<Trace>,
    imports: Vec<CacheImport>,
    policies: Vec<Policy>,
    built: OnceCell<BuiltRef>,
}

/// A tree that was built, and its keys for exporting them.
#[derive(Clone, Default)]
pub(crate) struct BuiltRef {
    pub output: Option<Ref>,
    pub keys: Vec<solver::CacheKey>,
    pub record: Option<solver::RecordId>,
}

impl LazyRef {
    /// Builds it, or waits for whoever does.
    pub(crate) async fn result(&self) -> Result<Option<Ref>, FrontendError> {
        self.built().await.map(|built| built.output.clone())
    }

    /// Builds it, or waits for whoever does.
    pub(crate) async fn built(&self) -> Result<&BuiltRef, FrontendError> {
        let built = self.built.get_or_try_init(|| self.build()).await?;
        self.trace.set_built();
        Ok(built)
    }

    /// What provenance knows of it.
    pub(crate) fn trace(&self) -> &Arc<Trace> {
        &self.trace
    }

    async fn build(&self) -> Result<BuiltRef, FrontendError> {
        let sent = &self.trace.sent;
        let changed = policy::apply(&self.engine, &self.job, &self.policies, sent).await;
        if let Some(changed) = changed.map_err(|error| error.context("failed to load LLB"))? {
            self.trace.set_replaced(changed);
        }
        let definition = policy::parse(&self.engine, &self.job, self.trace.definition())
            .map_err(|error| error.context("failed to load LLB"))?;
        let imports = self.engine.imports(&self.job, &self.imports).await;
        let loaded = self
            .builder
            .load(ops::bind(&definition), &imports)
            .map_err(|error| FrontendError::with_code(Code::Canceled, error.to_string()))?;
        let built = self.builder.build(loaded.edge(ops::edge(definition.result()))).await;
        match built {
            Ok(built) => {
                Ok(BuiltRef { output: built.output, keys: built.keys, record: built.record })
            }
            Err(error) => Err(failure::from_build(&self.job, &error, |left| self.show(left))),
        }
    }

    /// A handle of a tree that is there already.
    fn show(&self, output: &Ref) -> RefHandle {
        let built = BuiltRef { output: Some(output.clone()), ..BuiltRef::default() };
        RefHandle::new(
            Arc::new(Self {
                engine: self.engine.clone(),
                job: self.job.clone(),
                builder: self.builder.clone(),
                trace: Trace::new(Arc::default()),
                imports: Vec::new(),
                policies: Vec::new(),
                built: OnceCell::new_with(Some(built)),
            }),
            None,
        )
    }

    /// The files, with all lazy layers fetched.
    pub(crate) async fn tree(&self) -> Result<Option<(Ref, Tree)>, FrontendError> {
        let Some(reference) = self.result().await? else { return Ok(None) };
        self.engine.ensure_local(&reference).await?;
        let tree = reference.tree().map_err(|error| failure::internal("mount a result", error))?;
        Ok(Some((reference, tree)))
    }
}

/// A folder that somebody may be writing to, for reading its files as they are.
pub(crate) struct Live(Tree);

impl Live {
    pub(crate) fn handle(tree: Tree) -> RefHandle {
        RefHandle::new(Arc::new(Self(tree)), None)
    }
}

/// What is behind a handle that an engine's bridge gave out.
pub(crate) async fn resolve(handle: Option<&RefHandle>) -> Result<Option<Ref>, FrontendError> {
    match handle {
        None => Ok(None),
        Some(handle) => lazy(handle)?.result().await,
    }
}

pub(crate) fn lazy(handle: &RefHandle) -> Result<Arc<LazyRef>, FrontendError> {
    handle
        .downcast::<LazyRef>()
        .ok_or_else(|| FrontendError::with_code(Code::Internal, "a ref of another bridge was used"))
}

impl JobBridge {
    /// A bridge for another frontend of the same build.
    pub(crate) fn child(
        &self,
        frontend: &str,
        options: BTreeMap<String, String>,
        inputs: BTreeMap<String, pb::Definition>,
    ) -> Arc<Self> {
        let asked = Asked {
            frontend: frontend.to_owned(),
            options: options.clone(),
            inputs: inputs.clone(),
        };
        Arc::new(Self {
            engine: self.engine.clone(),
            job: self.job.clone(),
            builder: self.builder.clone(),
            options,
            inputs,
            caps: self.caps.clone(),
            scope: self.scope.child(asked),
        })
    }

    fn handle(
        &self,
        definition: pb::Definition,
        imports: Vec<CacheImport>,
        policies: Vec<Policy>,
    ) -> RefHandle {
        let definition = Arc::new(definition);
        let trace = Trace::new(definition.clone());
        self.scope.add_trace(trace.clone());
        let lazy = LazyRef {
            engine: self.engine.clone(),
            job: self.job.clone(),
            builder: self.builder.clone(),
            trace,
            imports,
            policies,
            built: OnceCell::new(),
        };
        RefHandle::new(Arc::new(lazy), Some(definition))
    }

    async fn blocking<T: Send + 'static>(
        &self,
        reference: &RefHandle,
        path: &str,
        read: impl FnOnce(&Tree, &str) -> Result<T, FrontendError> + Send + 'static,
    ) -> Result<T, FrontendError> {
        let kept = match reference.downcast::<Live>() {
            Some(live) => Some((None, live.0.clone())),
            None => lazy(reference)?.tree().await?.map(|(keep, tree)| (Some(keep), tree)),
        };
        let path = path.to_owned();
        let done = tokio::task::spawn_blocking(move || {
            let Some((keep, tree)) = kept else {
                let empty = tempfile::tempdir();
                let empty = empty.map_err(|error| failure::internal("make a folder", error))?;
                let tree = Tree::of_folder(empty.path(), false);
                let tree = tree.map_err(|error| failure::internal("open a folder", error))?;
                return read(&tree, &path);
            };
            let answer = read(&tree, &path);
            drop((tree, keep));
            answer
        });
        done.await.map_err(|error| failure::internal("read a result", error))?
    }
}

#[async_trait]
impl Bridge for JobBridge {
    fn options(&self) -> &BTreeMap<String, String> {
        &self.options
    }

    fn session_id(&self) -> &str {
        &self.job.session
    }

    fn workers(&self) -> &[WorkerInfo] {
        std::slice::from_ref(self.engine.worker())
    }

    fn llb_caps(&self) -> &BTreeSet<String> {
        &self.caps
    }

    fn exported_product(&self) -> &str {
        "buildkit"
    }

    async fn inputs(&self) -> Result<BTreeMap<String, pb::Definition>, FrontendError> {
        Ok(self.inputs.clone())
    }

    async fn solve(&self, request: SolveRequest) -> Result<FrontendResult, FrontendError> {
        let result = match request.what {
            SolveWhat::Nothing => FrontendResult::default(),
            SolveWhat::Definition(definition) if definition.def.is_empty() => {
                FrontendResult::default()
            }
            SolveWhat::Definition(definition) => {
                for policy in &request.policies {
                    policy::validate(policy)?;
                }
                let (imports, policies) = (request.cache_imports, request.policies);
                FrontendResult::single(Some(self.handle(definition, imports, policies)))
            }
            SolveWhat::Frontend { name, mut options, inputs } => {
                options.remove(crate::JOBS_ATTR);
                let child = self.child(&name, options, inputs);
                let result = self.engine.run_frontend(&name, child.clone()).await?;
                self.scope.add_child(child.scope.clone());
                result
            }
        };
        if request.evaluate {
            evaluate(&result).await?;
        }
        self.engine.remember_request(&self.job, &self.scope, &result, request.evaluate).await;
        Ok(result)
    }

    async fn resolve_source_meta(
        &self,
        mut request: SourceMetaRequest,
    ) -> Result<SourceMeta, FrontendError> {
        for policy in &request.policies {
            policy::validate(policy)?;
        }
        let own = std::mem::take(&mut request.policies);
        let rules: Vec<&Policy> = own.iter().chain(&self.job.policy).collect();
        let platform = request.platform.as_ref().map(pb::Platform::from);
        policy::check(&self.engine, &self.job, &rules, &mut request.source, platform.as_ref())
            .await
            .map_err(|error| error.context("could not resolve image due to policy"))?;
        let platform = request.platform.clone();
        let meta = metadata(&self.engine, &self.job, request).await?;
        if let Some(image) = &meta.image {
            let (scheme, reference) = meta.source.identifier.split_once("://").unwrap_or_default();
            self.scope.add_image(ImageSource {
                reference: reference.to_owned(),
                platform,
                digest: image.digest.clone(),
                local: scheme != "docker-image",
            });
        }
        Ok(meta)
    }

    async fn read_file(
        &self,
        reference: &RefHandle,
        path: &str,
        range: Option<FileRange>,
    ) -> Result<Bytes, FrontendError> {
        self.blocking(reference, path, move |tree, path| read_file(tree, path, range)).await
    }

    async fn read_dir(
        &self,
        reference: &RefHandle,
        path: &str,
        include: &str,
    ) -> Result<Vec<FileStat>, FrontendError> {
        let include = include.to_owned();
        self.blocking(reference, path, move |tree, path| read_dir(tree, path, &include)).await
    }

    async fn stat_file(
        &self,
        reference: &RefHandle,
        path: &str,
    ) -> Result<FileStat, FrontendError> {
        self.blocking(reference, path, stat_file).await
    }

    async fn evaluate(&self, reference: &RefHandle) -> Result<(), FrontendError> {
        lazy(reference)?.result().await.map(|_| ())
    }

    async fn warn(&self, warning: Warning) -> Result<(), FrontendError> {
        self.job.journal.warning(VertexWarning {
            vertex: warning.vertex,
            level: i64::from(warning.level),
            short: warning.short.into(),
            detail: warning.detail.into_iter().map(Into::into).collect(),
            url: warning.url,
            info: warning.source_info,
            ranges: warning.ranges,
        });
        Ok(())
    }
}

/// What a source that passed the policies leads to now, as a vertex of its own.
pub(crate) async fn metadata(
    engine: &Engine,
    job: &Job,
    request: SourceMetaRequest,
) -> Result<SourceMeta, FrontendError> {
    let platform = request.platform.clone().unwrap_or_else(|| engine.worker().platforms[0].clone());
    let identifier = request.source.identifier.clone();
    let name = match request.log_name.as_str() {
        "" => format!("resolve image config for {identifier}"),
        name => name.to_owned(),
    };
    let digest = made_up_digest(&format!("{identifier}{}", platform.format_all()));
    let journal = job.journal.clone();
    journal.loaded(&digest, &name, Vec::new(), None);
    journal.started(&digest);
    let (told, vertex) = (journal.clone(), digest.clone());
    let progress = source::Progress::new(move |status| {
        told.status(crate::job::status_to_wire(&vertex, &status));
    });
    let question = source::MetaRequest {
        source: source::SourceRequest {
            op: request.source.clone(),
            platform: platform.normalize(),
            group: engine.machine.sessions.group([job.session.clone()]),
            memo: job.memo.clone(),
            progress,
        },
        resolve_mode: request.resolve_mode,
        no_config: request.no_config,
        attestations: request.attestations,
        git_objects: request.git_objects,
        http_checksum: request.http_checksum.map(|asked| source::ChecksumRequest {
            algorithm: asked.algorithm,
            suffix: asked.suffix,
        }),
    };
    let answer = engine.machine.sources.metadata(question).await;
    match answer {
        Ok(meta) => {
            journal.completed(&digest, false, None);
            Ok(SourceMeta {
                source: request.source,
                image: meta.image.map(|image| ImageMeta {
                    digest: image.digest,
                    config: image.config,
                    chain: image.chain.map(chain),
                }),
                git: meta.git.map(|git| GitMeta {
                    checksum: git.checksum,
                    reference: git.reference,
                    commit_checksum: git.commit_checksum,
                    commit_object: git.commit_object,
                    tag_object: git.tag_object,
                }),
                http: meta.http.map(|http| HttpMeta {
                    checksum: http.checksum,
                    filename: http.filename,
                    last_modified: http.last_modified,
                    checksum_response: http.checksum_response,
                }),
            })
        }
        Err(error) => {
            let error = OpError::from(error);
            journal.completed(&digest, false, Some(&error.to_string()));
            let reference =
                identifier.split_once("://").map_or(identifier.as_str(), |(_, rest)| rest);
            Err(failure::from_op(&error)
                .context(format!("failed to resolve source metadata for {reference}")))
        }
    }
}

fn chain(chain: source::AttestationChain) -> AttestationChain {
    let blob = |(descriptor, data): (oci::Descriptor, Bytes)| {
        let (media_type, annotations) = (descriptor.media_type, descriptor.annotations);
        (descriptor.digest.to_string(), ChainBlob { media_type, annotations, data })
    };
    AttestationChain {
        root: chain.root.to_string(),
        image: chain.image.to_string(),
        attestation: chain.attestation.map(|digest| digest.to_string()).unwrap_or_default(),
        signatures: chain.signatures.iter().map(ToString::to_string).collect(),
        blobs: chain.blobs.into_iter().map(blob).collect(),
    }
}

/// Builds all refs of a result at once.
pub(crate) async fn evaluate(result: &FrontendResult) -> Result<(), FrontendError> {
    let handles: Vec<&RefHandle> = match &result.refs {
        Refs::Single(reference) => reference.iter().collect(),
        Refs::Map(map) => map.values().flatten().collect(),
    };
    let attested =
        result.attestations.values().flatten().filter_map(|item| item.reference.as_ref());
    let all = handles.into_iter().chain(attested).map(|handle| resolve(Some(handle)));
    futures_util::future::try_join_all(all).await.map(|_| ())
}

/// All trees of a result, built.
pub(crate) async fn built(result: &FrontendResult) -> Result<Vec<BuiltRef>, FrontendError> {
    let handles: Vec<&RefHandle> = match &result.refs {
        Refs::Single(reference) => reference.iter().collect(),
        Refs::Map(map) => map.values().flatten().collect(),
    };
    let all = handles.into_iter().map(|handle| async { lazy(handle)?.built().await.cloned() });
    futures_util::future::try_join_all(all).await
}

fn io_error(doing: &str, path: &str, error: std::io::Error) -> FrontendError {
    let text = match error.kind() {
        std::io::ErrorKind::NotFound => "no such file or directory".to_owned(),
        std::io::ErrorKind::NotADirectory => "not a directory".to_owned(),
        _ => error.to_string(),
    };
    FrontendError::new(format!("{doing} {path}: {text}"))
}

fn open(tree: &Tree, path: &str, flags: OFlags) -> Result<std::fs::File, std::io::Error> {
    let inside = match path.trim_start_matches('/') {
        "" => ".",
        inside => inside,
    };
    let fd = rustix::fs::openat2(
        tree.fd(),
        inside,
        flags | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::IN_ROOT,
    )?;
    Ok(fd.into())
}

/// A regular file of a tree, to be read.
pub(crate) fn open_file(tree: &Tree, path: &str) -> Result<std::fs::File, FrontendError> {
    let failed = |error| io_error("open", path, error);
    let file = open(tree, path, OFlags::RDONLY | OFlags::NONBLOCK).map_err(failed)?;
    if !file.metadata().map_err(failed)?.is_file() {
        return Err(FrontendError::new(format!("{path} is not a regular file")));
    }
    Ok(file)
}

fn read_file(tree: &Tree, path: &str, range: Option<FileRange>) -> Result<Bytes, FrontendError> {
    let failed = |error| io_error("open", path, error);
    let mut file = open_file(tree, path)?;
    let metadata = file.metadata().map_err(failed)?;
    let range = range.unwrap_or(FileRange { offset: 0, length: 0 });
    let rest = metadata.len().saturating_sub(range.offset);
    let length = if range.length == 0 { rest } else { rest.min(range.length) };
    if length > MAX_FILE {
        return Err(FrontendError::with_code(
            Code::ResourceExhausted,
            format!(
                "{path} has {length} bytes, more than the {MAX_FILE} that can be read at once; read it by ranges"
            ),
        ));
    }
    std::io::Seek::seek(&mut file, std::io::SeekFrom::Start(range.offset)).map_err(failed)?;
    let mut data = Vec::with_capacity(length as usize);
    file.take(length).read_to_end(&mut data).map_err(failed)?;
    Ok(data.into())
}

fn stat_of(metadata: &std::fs::Metadata, path: String, linkname: String) -> FileStat {
    let device = metadata.rdev();
    let is_device =
        metadata.mode() & 0o170_000 == 0o020_000 || metadata.mode() & 0o170_000 == 0o060_000;
    FileStat {
        path,
        mode: gomode::from_unix(metadata.mode()),
        uid: metadata.uid(),
        gid: metadata.gid(),
        size: if metadata.is_dir() { 0 } else { metadata.size() as i64 },
        mod_time: metadata.mtime() * 1_000_000_000 + metadata.mtime_nsec(),
        linkname,
        dev_major: if is_device { i64::from(rustix::fs::major(device)) } else { 0 },
        dev_minor: if is_device { i64::from(rustix::fs::minor(device)) } else { 0 },
        xattrs: BTreeMap::new(),
    }
}

fn stat_file(tree: &Tree, path: &str) -> Result<FileStat, FrontendError> {
    let file = open(tree, path, OFlags::PATH).map_err(|error| io_error("lstat", path, error))?;
    let metadata = file.metadata().map_err(|error| io_error("lstat", path, error))?;
    Ok(stat_of(&metadata, base::path::base(&base::path::clean(path)).to_owned(), String::new()))
}

pub(crate) fn read_dir(
    tree: &Tree,
    path: &str,
    include: &str,
) -> Result<Vec<FileStat>, FrontendError> {
    use std::os::fd::AsRawFd as _;
    let failed = |error| io_error("open", path, error);
    let include = Patterns::new(Some(include)).map_err(|error| {
        FrontendError::new(format!("invalid include pattern {include:?}: {error}"))
    })?;
    let folder = open(tree, path, OFlags::RDONLY | OFlags::DIRECTORY).map_err(failed)?;
    // The descriptor is the folder: nothing below it is followed.
    let listed = std::path::PathBuf::from(format!("/proc/self/fd/{}", folder.as_raw_fd()));
    let mut entries = Vec::new();
    let mut links: BTreeMap<(u64, u64), String> = BTreeMap::new();
    let mut names = std::fs::read_dir(&listed)
        .and_then(|list| {
            list.map(|entry| entry.map(|entry| entry.file_name())).collect::<Result<Vec<_>, _>>()
        })
        .map_err(failed)?;
    names.sort();
    for name in names {
        let text = name.to_string_lossy().into_owned();
        if !include.is_empty() && !include.matches(&text) {
            continue;
        }
        let full = listed.join(&name);
        let metadata = std::fs::symlink_metadata(&full).map_err(failed)?;
        let mut linkname = String::new();
        if metadata.is_symlink() {
            linkname = std::fs::read_link(&full).map_err(failed)?.to_string_lossy().into_owned();
        } else if !metadata.is_dir() && metadata.nlink() > 1 {
            match links.get(&(metadata.dev(), metadata.ino())) {
                Some(first) => linkname = first.clone(),
                None => _ = links.insert((metadata.dev(), metadata.ino()), text.clone()),
            }
        }
        entries.push(stat_of(&metadata, text, linkname));
    }
    Ok(entries)
}

/// The platform a result's metadata key or the daemon's default names.
pub(crate) fn default_platform(engine: &Engine) -> Platform {
    engine.worker().platforms[0].clone()
}
