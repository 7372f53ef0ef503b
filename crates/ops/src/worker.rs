//! The solver's outside: keys, content digests, execution and loading of every op.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, OnceLock},
};

use base::{Digest, Platform};
use frontend_api::Subject;
use llb::pb::{self, op::Op};
use snapshot::contenthash::Query;
use solver::{
    CacheMap, CacheMapStep, FoundRecord, InputKey, LoadFailure, Origin, RecordId, VertexContext,
};
use store::{Ref, Store};

use crate::{
    Jobs, OpError, Remains, StepLog,
    cache_mount::CacheMounts,
    exec, file,
    key::{self, Selector},
};

/// Everything ops run on.
pub struct Machine {
    /// Where results live.
    pub store: Arc<Store>,
    /// What runs processes.
    pub executor: Arc<dyn executor::Executor>,
    /// What steps reach the network through, where a build wants to know what they ask for.
    pub proxies: netproxy::Provider,
    /// What fetches sources.
    pub sources: source::Sources,
    /// Where clients are reached.
    pub sessions: session::Sessions,
    /// The builds ops work for.
    pub jobs: Arc<dyn Jobs>,
    /// Remote caches that builds import from.
    pub imports: Arc<remotecache::Imports>,
    /// Folders kept between steps.
    pub cache_mounts: CacheMounts,
    /// Settings.
    pub config: Config,
}

/// Settings of a [`Machine`].
#[derive(Debug, Clone)]
pub struct Config {
    /// Network of steps that ask for none in particular.
    pub network: executor::Network,
    /// Resolver settings over the host's.
    pub dns: executor::Dns,
    /// Parent of steps' control groups; empty for the executor's own.
    pub cgroup_parent: String,
    /// Run without a process namespace.
    pub no_process_sandbox: bool,
    /// Profile of every step.
    pub apparmor_profile: Option<String>,
    /// Private folder for sockets.
    pub run_folder: PathBuf,
    /// Folders searched for emulators.
    pub emulator_folders: Vec<PathBuf>,
    /// Where processes of steps may send spans, if somebody collects them.
    pub trace_socket: Option<PathBuf>,
    /// Devices that steps may ask for.
    pub devices: crate::cdi::Devices,
}

/// A vertex as the solver carries it.
pub type Payload = Arc<Bound>;

/// A graph vertex, with the source it was resolved to.
pub struct Bound {
    /// The vertex.
    pub vertex: Arc<llb::Vertex>,
    /// Its cache map, made on first use; a source has none.
    map: OnceLock<Option<Result<key::CacheMap, key::KeyError>>>,
    instance: Arc<tokio::sync::Mutex<Option<Box<dyn source::Instance>>>>,
    /// What it wrote when it ran.
    log: Mutex<Option<Arc<dyn StepLog>>>,
    /// What it asked for when it ran behind a proxy.
    requested: Mutex<Option<Arc<netproxy::Record>>>,
}

impl Bound {
    /// Wraps a vertex for the solver.
    pub fn new(vertex: Arc<llb::Vertex>) -> Payload {
        let (map, instance, log, requested) = Default::default();
        Arc::new(Self { vertex, map, instance, log, requested })
    }

    fn keep_log(&self, log: Arc<dyn StepLog>) {
        *self.log.lock().expect("no panic while assigning a log") = Some(log);
    }

    fn keep_requested(&self, record: Arc<netproxy::Record>) {
        *self.requested.lock().expect("no panic while assigning a record") = Some(record);
    }

    fn map(&self) -> Option<Result<&key::CacheMap, OpError>> {
        let map = self.map.get_or_init(|| key::cache_map(&self.vertex)).as_ref()?;
        Some(map.as_ref().map_err(|error| error.clone().into()))
    }
}

/// A source that was resolved, for one caller at a time.
struct Resolved(tokio::sync::OwnedMutexGuard<Option<Box<dyn source::Instance>>>);

impl Resolved {
    fn get(&mut self) -> &mut dyn source::Instance {
        self.0.as_mut().expect("a resolved source stays resolved").as_mut()
    }
}

/// A definition's vertices as the solver loads them.
pub fn bind(definition: &llb::Definition) -> Vec<solver::Vertex<Payload>> {
    definition.vertices().iter().map(bind_vertex).collect()
}

fn bind_vertex(vertex: &Arc<llb::Vertex>) -> solver::Vertex<Payload> {
    solver::Vertex {
        digest: vertex.digest,
        inputs: vertex.inputs.iter().map(|edge| self::edge(*edge)).collect(),
        name: vertex.name.as_str().into(),
        ignore_cache: vertex.metadata.ignore_cache,
        export_cache: vertex.metadata.export_cache.as_ref().map(|export| export.value),
        payload: Bound::new(vertex.clone()),
    }
}

/// The solver's form of an edge.
pub fn edge(edge: llb::Edge) -> solver::Edge {
    solver::Edge { vertex: edge.vertex, output: u32::try_from(edge.index).unwrap_or(u32::MAX) }
}

type Context = VertexContext<Worker>;

/// The machine as the solver's worker.
#[derive(Clone)]
pub struct Worker(pub Arc<Machine>);

impl std::ops::Deref for Worker {
    type Target = Machine;

    fn deref(&self) -> &Machine {
        &self.0
    }
}

impl Worker {
    fn group(&self, context: &Context) -> session::Group {
        self.sessions.group(self.jobs.sessions(&context.jobs()))
    }

    /// The vertex's source, resolved on first use.
    async fn source(&self, context: &Context, op: &pb::SourceOp) -> Result<Resolved, OpError> {
        let mut instance = context.vertex().instance.clone().lock_owned().await;
        if instance.is_none() {
            *instance = Some(self.resolve(context, op).await?);
        }
        Ok(Resolved(instance))
    }

    async fn resolve(
        &self,
        context: &Context,
        source: &pb::SourceOp,
    ) -> Result<Box<dyn source::Instance>, OpError> {
        let job = context.jobs().into_iter().next();
        let memo = job.map_or_else(Arc::default, |job| self.jobs.memo(&job));
        let request = source::SourceRequest {
            op: source.clone(),
            platform: key::platform(&context.vertex().vertex),
            group: self.group(context),
            memo,
            progress: self.progress(context),
        };
        Ok(self.sources.resolve(request).await?)
    }

    fn progress(&self, context: &Context) -> source::Progress {
        let (jobs, watching) = (self.jobs.clone(), context.watching());
        source::Progress::new(move |status| jobs.status(&watching(), status))
    }
}

#[async_trait::async_trait]
impl solver::Worker for Worker {
    type Vertex = Payload;
    type Output = Option<Ref>;
    type Error = OpError;

    async fn cache_map(&self, context: &Context, step: usize) -> Result<CacheMapStep, OpError> {
        let vertex = &context.vertex().vertex;
        if let Some(Op::Source(source)) = &vertex.op.op {
            let progress = self.progress(context);
            let mut resolved = self.source(context, source).await.map_err(OpError::in_key)?;
            let key = resolved.get().cache_key(step, &progress).await;
            let key = key.map_err(|error| OpError::from(error).in_key())?;
            let map = CacheMap { digest: source_digest(&key.key), inputs: Vec::new() };
            return Ok(CacheMapStep { map, last: key.last });
        }
        let map = context
            .vertex()
            .map()
            .ok_or_else(|| OpError::invalid("an op without a kind has no key"))??;
        let inputs = map.inputs.iter().map(|input| InputKey {
            selector: input.selector,
            content: input.content.is_some(),
            preprocess: input.unlazy,
        });
        Ok(CacheMapStep {
            map: CacheMap { digest: map.digest().into(), inputs: inputs.collect() },
            last: true,
        })
    }

    async fn content_digest(
        &self,
        context: &Context,
        input: usize,
        output: &Option<Ref>,
    ) -> Result<Option<Digest>, OpError> {
        let map =
            context.vertex().map().ok_or_else(|| OpError::invalid("a source has no inputs"))??;
        let wanted = map.inputs.get(input).cloned().unwrap_or_default();
        if let (true, Some(reference)) = (wanted.unlazy, output) {
            self.ensure_local(context, reference).await?;
        }
        let Some(selectors) = wanted.content else { return Ok(None) };
        let (reference, worker) = (output.clone(), self.0.store.worker_id().to_owned());
        let digest = tokio::task::spawn_blocking(move || {
            content_digest(reference.as_ref(), &selectors, &worker)
        });
        let digest = digest
            .await
            .map_err(|error| OpError::invalid(format!("content digest broke off: {error}")))?;
        digest.map(Some).map_err(|error| {
            let (inputs, subject) = (vec![output.clone()], Some(Subject::Input(input)));
            error.leaving(Remains { inputs, mounts: Vec::new(), subject })
        })
    }

    async fn execute(
        &self,
        context: &Context,
        inputs: Vec<Option<Ref>>,
    ) -> Result<Vec<Option<Ref>>, OpError> {
        let room = self.store.reserve(0).await?;
        let stop = context.cancelled().child_token();
        let mut work = std::pin::pin!(room.scope(self.perform(context, inputs, stop.clone())));
        let full = tokio::select! {
            biased;
            outcome = &mut work => {
                return outcome.map_err(|error| match room.is_withdrawn() {
                    // Its processes were killed.
                    Some(full) => full.into(),
                    None => self.at_ceiling(error),
                });
            }
            full = room.withdrawn() => full,
        };
        stop.cancel();
        // Fetching can be dropped in the middle; the others clean up behind them.
        if !matches!(context.vertex().vertex.op.op, Some(Op::Source(_))) {
            _ = work.await;
        }
        Err(full.into())
    }

    async fn load(
        &self,
        context: &Context,
        record: &FoundRecord,
    ) -> Result<Option<Ref>, LoadFailure> {
        let failure = |gone, reason: String| LoadFailure { gone, reason };
        if let Origin::Import(_) = record.origin {
            let opened = self.imports.open(&self.store, &record.record).await;
            let tree = opened.map_err(|error| failure(false, error.to_string()))?;
            if let Some(import) = self.imports.find(&record.record) {
                // So that later builds can complete it too.
                self.sources.providers().add(import.blobs(), import.provider());
            }
            return Ok(Some(tree));
        }
        let id = self.store.parse_result_id(&record.record).ok_or_else(|| {
            failure(true, format!("record {} is of another store", record.record))
        })?;
        let Some(id) = id else { return Ok(None) };
        let reference =
            self.store.get(&id).ok_or_else(|| failure(true, format!("record {id} is gone")))?;
        if reference.needs_provider() {
            if let Some(Op::Source(source)) = &context.vertex().vertex.op.op {
                let mut instance = self
                    .source(context, source)
                    .await
                    .map_err(|error| failure(false, error.to_string()))?;
                instance
                    .get()
                    .attach(&reference)
                    .await
                    .map_err(|error| failure(false, error.to_string()))?;
            } else {
                let providers = self.sources.providers();
                let blobs = reference.blobs_known().unwrap_or_default();
                let lost = |blob: &&store::LayerBlob| {
                    !blob.local && providers.find(&blob.descriptor.digest).is_none()
                };
                if let Some(blob) = blobs.iter().find(lost) {
                    // E.g. imported by a daemon that has restarted since.
                    let digest = blob.descriptor.digest;
                    return Err(failure(false, format!("nobody known has the layer {digest}")));
                }
                reference.attach_provider(providers);
            }
        }
        Ok(Some(reference))
    }

    fn came_along(&self, record: &FoundRecord, _output: &Option<Ref>) -> Vec<(RecordId, RecordId)> {
        self.imports.came_along(&self.store, &record.record)
    }

    fn save(&self, output: &Option<Ref>) -> Option<RecordId> {
        if let Some(reference) = output {
            reference.keep();
        }
        Some(self.store.result_id(output.as_ref().map(Ref::id)))
    }

    fn record_exists(&self, record: &RecordId) -> bool {
        match self.store.parse_result_id(record) {
            Some(Some(id)) => self.store.contains(&id),
            Some(None) => true,
            None => false,
        }
    }

    fn weight(&self, vertex: &Payload) -> u32 {
        match vertex.vertex.op.op {
            Some(Op::Exec(_) | Op::File(_) | Op::Source(_)) => 1,
            _ => 0,
        }
    }
}

impl Worker {
    /// Runs an op; `stop` ends processes.
    async fn perform(
        &self,
        context: &Context,
        inputs: Vec<Option<Ref>>,
        stop: tokio_util::sync::CancellationToken,
    ) -> Result<Vec<Option<Ref>>, OpError> {
        let vertex = context.vertex().vertex.clone();
        match vertex.op.op.as_ref() {
            Some(Op::Source(source)) => {
                let progress = self.progress(context);
                Ok(vec![self.source(context, source).await?.get().snapshot(&progress).await?])
            }
            Some(Op::Exec(op)) => {
                if vertex.metadata.ignore_cache {
                    self.forget_cache_mounts(op, &inputs);
                }
                let log = self.jobs.step_log(context.digest());
                let watching = context.watching();
                context.vertex().keep_log(log.clone());
                let proxy = vertex.proxied.then(|| exec::run::Proxy {
                    policy: self.jobs.request_policy(&context.jobs()),
                    requested: Box::new(|record| {
                        self.jobs.requested(context.digest(), &record);
                        context.vertex().keep_requested(record);
                    }),
                });
                let run = exec::run::Run {
                    machine: &self.0,
                    op,
                    platform: key::platform(&vertex),
                    resources: vertex.metadata.linux_resources.as_ref(),
                    inputs: &inputs,
                    sessions: self.group(context),
                    traceparent: self.jobs.traceparent(&context.jobs(), context.digest()),
                    cancelled: stop,
                    proxy,
                    log: {
                        let (log, watching) = (log.clone(), watching.clone());
                        Arc::new(move |stream, data| log.write(&watching(), stream, data))
                    },
                };
                let outcome = run.run().await;
                log.settle(&watching());
                outcome
            }
            Some(Op::File(op)) => {
                let (store, op, name) = (self.store.clone(), op.clone(), vertex.name.clone());
                tokio::task::spawn_blocking(move || file::run::run(&store, &op, &inputs, &name))
                    .await
                    .map_err(|error| OpError::invalid(format!("file op broke off: {error}")))?
            }
            Some(Op::Merge(op)) => {
                let parts: Vec<Ref> =
                    op.inputs.iter().filter_map(|side| input(&inputs, side.input)).collect();
                // Mostly concatenation, but layers with opaque folders are compared.
                let store = self.store.clone();
                let merged = tokio::task::spawn_blocking(move || store.merge(&parts)).await;
                let merged = merged
                    .map_err(|error| OpError::invalid(format!("merge broke off: {error}")))?;
                Ok(vec![merged?])
            }
            Some(Op::Diff(op)) => {
                let lower = op.lower.as_ref().and_then(|side| input(&inputs, side.input));
                let upper = op.upper.as_ref().and_then(|side| input(&inputs, side.input));
                if let Some(lower) = &lower {
                    self.ensure_local(context, lower).await?;
                }
                if let Some(upper) = &upper {
                    self.ensure_local(context, upper).await?;
                }
                Ok(vec![self.store.diff(lower.as_ref(), upper.as_ref()).await?])
            }
            Some(Op::Passthrough(op)) => {
                Ok(op.outputs.iter().map(|index| input(&inputs, *index)).collect())
            }
            Some(Op::Build(op)) => self.build(context, op, &inputs).await,
            None => Err(OpError::invalid("an op without a kind cannot run")),
        }
    }

    /// Writers of this process fail as on a full disk while the store is at its ceiling.
    fn at_ceiling(&self, error: OpError) -> OpError {
        match (error.cause(), self.store.at_ceiling()) {
            (OpError::Exit { .. } | OpError::Cancelled, _) | (_, None) => error,
            (_, Some(store::Pressure { used, ceiling })) => {
                store::StoreError::Ceiling { used, ceiling }.into()
            }
        }
    }

    /// Fetches and unpacks the lazy layers of `reference`, showing it as progress of the vertex.
    pub async fn ensure_local(&self, context: &Context, reference: &Ref) -> Result<(), OpError> {
        if reference.is_local() {
            return Ok(());
        }
        if reference.needs_provider() {
            reference.attach_provider(self.sources.providers());
        }
        // Whoever found these layers may have left, and with it the right to fetch them.
        if let Some(origins) = self.sources.origins(self.group(context)) {
            reference.attach_last(origins);
        }
        let progress = source::layer_progress(self.progress(context));
        Ok(reference.ensure_local(progress).await?)
    }

    /// Solves the definition that an input's file holds, in the same build.
    async fn build(
        &self,
        context: &Context,
        op: &pb::BuildOp,
        inputs: &[Option<Ref>],
    ) -> Result<Vec<Option<Ref>>, OpError> {
        use prost::Message as _;
        const DEFINITION: &str = "buildkit.llb.definition";
        if op.builder != -1 {
            return Err(OpError::invalid("only LLB builder is currently allowed"));
        }
        let side = op
            .inputs
            .get(DEFINITION)
            .ok_or_else(|| OpError::invalid(format!("no {DEFINITION} input")))?;
        let reference = input(inputs, side.input)
            .ok_or_else(|| OpError::invalid(format!("no {DEFINITION} input found")))?;
        self.ensure_local(context, &reference).await?;
        let path = op.attrs.get("llbbuild.filename").map_or(DEFINITION, String::as_str).to_owned();
        let bytes = tokio::task::spawn_blocking(move || read_file(&reference, &path))
            .await
            .map_err(|error| {
                OpError::invalid(format!("reading the nested definition broke off: {error}"))
            })??;
        let wire = pb::Definition::decode(bytes.as_slice()).map_err(|error| {
            OpError::invalid(format!("failed to parse llb definition: {error}"))
        })?;
        // Nobody has seen this graph yet: it passes what graphs of the build pass.
        let job = context.jobs().into_iter().next().ok_or(OpError::Cancelled)?;
        let definition = self.jobs.admit(&job, &wire).await?;
        let nested = context.nested();
        let loaded = nested
            .load(bind(&definition), &[])
            .map_err(|error| OpError::invalid(error.to_string()))?;
        let built = nested.build(loaded.edge(edge(definition.result()))).await;
        match built {
            Ok(built) => Ok(vec![built.output]),
            Err(error) => match &*error {
                solver::BuildError::Vertex { cause, .. } => Err(cause.clone()),
                solver::BuildError::Cancelled => Err(OpError::Cancelled),
                other => Err(OpError::invalid(other.to_string())),
            },
        }
    }

    /// A step that must not use the cache starts with fresh cache mounts too.
    fn forget_cache_mounts(&self, op: &pb::ExecOp, inputs: &[Option<Ref>]) {
        for mount in op.mounts.iter().filter(|mount| mount.mount_type() == pb::MountType::Cache) {
            let id = match mount.cache_opt.as_ref().map(|cache| cache.id.as_str()) {
                Some("") | None => mount.dest.clone(),
                Some(id) => id.to_owned(),
            };
            self.cache_mounts.prune_id(&id);
            if let Some(reference) = input(inputs, mount.input) {
                self.cache_mounts.prune_id(&format!("{id}:{}", reference.id()));
            }
        }
    }
}

impl Machine {
    /// The emulator for `platform`, none if it runs natively; an error if it cannot run at all.
    pub fn emulator(&self, platform: &Platform) -> Result<Option<PathBuf>, OpError> {
        let host = Platform::host();
        if platform.os != host.os {
            return Err(OpError::invalid(format!("cannot run {platform} processes on {host}")));
        }
        if platform.rank_for(&host).is_some() || platform.architecture == host.architecture {
            return Ok(None);
        }
        if executor::emulator::is_registered(&platform.architecture) {
            return Ok(None);
        }
        // The kernel may know what to do with foreign programs under another name; if not, starting
        // the process says so.
        Ok(executor::emulator::find(&platform.architecture, &self.config.emulator_folders))
    }
}

/// The entitlement a vertex needs, if any.
pub fn needed_entitlement(vertex: &llb::Vertex) -> Option<&'static str> {
    let Some(Op::Exec(op)) = &vertex.op.op else { return None };
    if op.network() == pb::NetMode::Host {
        return Some("network.host");
    }
    (op.security() == pb::SecurityMode::Insecure).then_some("security.insecure")
}

fn input(inputs: &[Option<Ref>], index: i64) -> Option<Ref> {
    inputs.get(usize::try_from(index).ok()?)?.clone()
}

/// Source: cache key notes §4.1.
fn source_digest(key: &str) -> solver::KeyDigest {
    let digest = Digest::of_parts([b"buildkit.source.v0:".as_slice(), key.as_bytes()]);
    if key.starts_with("session:") {
        return solver::KeyDigest::Random(digest);
    }
    digest.into()
}

/// Source: cache key notes §4.6.
fn content_digest(
    reference: Option<&Ref>,
    selectors: &[Selector],
    worker: &str,
) -> Result<Digest, OpError> {
    let Some(reference) = reference else {
        let named = selectors.iter().map(|it| key::rooted(&it.path)).find(|path| path != "/");
        return match (named, selectors) {
            (None, [_]) => Ok(Digest::of("")),
            (Some(path), _) => Err(OpError::invalid(format!(
                "failed to calculate checksum of an empty input: {path}: no such file or directory"
            ))),
            _ => Err(OpError::invalid("failed to calculate checksum of an empty input: not found")),
        };
    };
    let tree = reference.tree()?;
    let index = reference.index();
    let mut index = index.lock().expect("no panic while hashing");
    let mut digests = Vec::with_capacity(selectors.len());
    for selector in selectors {
        let path = key::rooted(&selector.path);
        let digest = if selector.is_plain() && selector.required.is_empty() {
            index.checksum(&tree, &path, selector.follow)
        } else {
            let query = Query {
                path: &path,
                follow: selector.follow,
                wildcard: selector.wildcard,
                include: &selector.include,
                exclude: &selector.exclude,
                required: &selector.required,
            };
            index.checksum_filtered(&tree, &query)
        };
        let digest = digest.map_err(|cause| OpError::Checksum {
            record: format!("{worker}::{}", reference.id()),
            cause: Arc::new(cause),
        })?;
        digests.push(digest.to_string());
    }
    Ok(Digest::of(digests.join("\0")))
}

/// The largest nested definition that is read.
const MAX_DEFINITION: u64 = 64 << 20;

fn read_file(reference: &Ref, path: &str) -> Result<Vec<u8>, OpError> {
    use std::io::Read as _;
    let tree = reference.tree()?;
    let failed = |error: std::io::Error| OpError::invalid(format!("open {path}: {error}"));
    let file = rustix::fs::openat2(
        tree.fd(),
        path.trim_start_matches('/'),
        rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC,
        rustix::fs::Mode::empty(),
        rustix::fs::ResolveFlags::IN_ROOT,
    )
    .map_err(|error| failed(error.into()))?;
    let file = std::fs::File::from(file);
    if !file.metadata().map_err(failed)?.is_file() {
        return Err(OpError::invalid(format!("{path} is not a regular file")));
    }
    let mut bytes = Vec::new();
    file.take(MAX_DEFINITION).read_to_end(&mut bytes).map_err(failed)?;
    Ok(bytes)
}
