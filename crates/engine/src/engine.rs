//! Builds, from request to exported result.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use base::Platform;
use bytes::Bytes;
use exporter::{ExportRequest, ExportResult, Exporter, Exporters};
use frontend_api::{Code, Frontend as _, FrontendError, FrontendResult, Refs, WorkerInfo};
use gateway::Run;
use llb::{pb, policy::Policy};
use ops::Machine;
use remotecache::{ExportOptions, ExportTo};
use solver::{JobId, Solver};
use store::Ref;

use crate::{
    CacheEntry, Containers, History, Job, Jobs, Journal, LogLimit, TraceContext,
    attest::{self, Asked, BuildFacts, Provenance, Scope, Wanted},
    bridge::{self, JobBridge},
    cache, capabilities, failure, frontend_image,
    history::Ended,
    journal::made_up_digest,
    policy, verify,
};

/// How long an ended build can still be asked about as if it ran.
const LINGER: Duration = Duration::from_secs(3);
/// The newest 1.x release of the Dockerfile language that the built-in frontend equals.
const DOCKERFILE_MINOR: u32 = 26;
/// The same, as provenance says it.
pub(crate) const DOCKERFILE_VERSION: &str = "1.26.0";
/// How long a bridge call may come before its build.
const REGISTRATION: Duration = Duration::from_secs(3);

/// The attribute with which clients say how many steps of their build may run at once. It is no option
/// of frontends: none is told of it.
pub const JOBS_ATTR: &str = "rbuild.jobs";

/// A build as it was asked for.
#[derive(Debug, Clone, Default)]
pub struct SolveRequest {
    /// Its name, chosen by the client.
    pub reference: String,
    /// Session for call-backs.
    pub session: String,
    /// What makes the result.
    pub work: Work,
    /// Frontend attributes; kept for history even when the client runs the frontend.
    pub attrs: BTreeMap<String, String>,
    /// Where the result goes: types with attributes.
    pub exporters: Vec<(String, BTreeMap<String, String>)>,
    /// Remote caches to look into; frontends of the daemon are told of theirs by attributes.
    pub cache_imports: Vec<CacheEntry>,
    /// Remote caches to write.
    pub cache_exports: Vec<CacheEntry>,
    /// Entitlements the client asks for.
    pub entitlements: Vec<String>,
    /// Rules that sources have to pass.
    pub policy: Option<Policy>,
    /// Session that is asked about each source; empty if none is.
    pub policy_session: String,
    /// Let its steps reach the network through a recording proxy only.
    pub proxy_network: bool,
    /// Leave no history.
    pub internal: bool,
    /// 10, 20 or 30.
    pub compatibility: u32,
    /// Ask the client for further exporters when the result is known, and tell it when all are done.
    pub session_exporter: bool,
    /// Most steps of this build that run at once; 0 is no limit of its own.
    pub jobs: u32,
    /// The client's span that it belongs to, if the client traces.
    pub trace: Option<TraceContext>,
}

/// What makes a build's result.
#[derive(Debug, Clone, Default)]
pub enum Work {
    /// A frontend on the client's side, over the bridge.
    #[default]
    ClientSide,
    /// A graph.
    Definition(pb::Definition),
    /// A frontend of the daemon.
    Frontend(String),
    /// Inputs offered to the frontend come with it.
    FrontendWithInputs(String, BTreeMap<String, pb::Definition>),
    /// Client-side with inputs.
    ClientSideWithInputs(BTreeMap<String, pb::Definition>),
}

/// Which images may be run as frontends.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum FrontendImages {
    /// Any.
    #[default]
    All,
    /// Those of these repositories, such as `docker.io/docker/dockerfile`.
    Only(Vec<String>),
    /// None.
    Disabled,
}

/// How an [`Engine`] is set up.
pub struct Settings {
    /// Describes the worker; its first platform is the default.
    pub worker: WorkerInfo,
    /// Entitlements clients may be granted.
    pub entitlements: BTreeSet<String>,
    /// Most weight that runs at once; 0 is no limit.
    pub max_parallelism: u32,
    /// Cap of a step's log.
    pub log_limit: LogLimit,
    /// Records kept in history and for how long.
    pub history: crate::HistoryLimits,
    /// All builds' steps reach the network through a recording proxy only.
    pub proxy_network: bool,
    /// Whether the Dockerfile frontend may be used.
    pub dockerfile: bool,
    /// Added to what provenance tells of the builder.
    pub provenance: BTreeMap<String, serde_json::Value>,
    /// Whether frontends may be images, and which.
    pub frontend_images: FrontendImages,
    /// Folder for journals of builds under way; emptied at start.
    pub journals: PathBuf,
    /// Makes a registry client with the credentials of a build's sessions.
    pub registries: Arc<dyn Fn(session::Group) -> exporter::Registries + Send + Sync>,
}

/// The builder: everything a build needs, and the builds under way.
pub struct Engine {
    pub(crate) machine: Arc<Machine>,
    pub(crate) jobs: Arc<Jobs>,
    pub(crate) history: Arc<History>,
    pub(crate) solver: Solver<ops::Worker>,
    exporters: Exporters,
    pub(crate) settings: Settings,
    pub(crate) requests: attest::Requests,
    caps: Arc<BTreeSet<String>>,
    runs: Mutex<BTreeMap<String, Arc<Run>>>,
    run_added: tokio::sync::Notify,
    ended: tokio::sync::Notify,
}

impl Engine {
    /// An engine over a machine. Needs a tokio runtime.
    /// `jobs` are those that the machine's ops are told of.
    pub fn new(
        machine: Arc<Machine>,
        jobs: Arc<Jobs>,
        settings: Settings,
    ) -> Result<Arc<Self>, store::StoreError> {
        let keys = machine.store.load_keys()?;
        let options = solver::Options { max_parallelism: settings.max_parallelism };
        let solver = Solver::new(ops::Worker(machine.clone()), options, keys);
        let history = History::open(machine.store.clone(), settings.history)?;
        let engine = Arc::new(Self {
            exporters: Exporters::new(machine.store.clone()),
            history,
            solver,
            jobs,
            caps: Arc::new(capabilities::LLB.iter().map(|cap| (*cap).to_owned()).collect()),
            requests: attest::Requests::default(),
            runs: Mutex::default(),
            run_added: tokio::sync::Notify::new(),
            ended: tokio::sync::Notify::new(),
            settings,
            machine,
        });
        engine.jobs.belong_to(&engine);
        tokio::spawn(persist_keys(Arc::downgrade(&engine)));
        Ok(engine)
    }

    /// The store behind it.
    pub fn store(&self) -> &Arc<store::Store> {
        &self.machine.store
    }

    /// What ops run on.
    pub fn machine(&self) -> &Arc<Machine> {
        &self.machine
    }

    /// Sessions of clients.
    pub fn sessions(&self) -> &session::Sessions {
        &self.machine.sessions
    }

    /// The worker as clients see it.
    pub fn worker(&self) -> &WorkerInfo {
        &self.settings.worker
    }

    /// Builds of the past and present.
    pub fn history(&self) -> &Arc<History> {
        &self.history
    }

    /// Builds under way.
    pub fn jobs(&self) -> &Arc<Jobs> {
        &self.jobs
    }

    /// Who waits for whom among unfinished steps.
    pub fn stuck(&self) -> String {
        self.solver.stuck()
    }

    /// Writes everything down and stops writing.
    pub async fn close(&self) -> Result<(), store::StoreError> {
        self.machine.store.save_keys(self.solver.take_changes());
        self.machine.store.close().await
    }

    /// Puts a container that has a network behind a proxy, if the build wants that.
    pub(crate) async fn behind_proxy(
        self: &Arc<Self>,
        job: &Arc<Job>,
        spec: &mut executor::Spec,
    ) -> Result<Option<netproxy::Attached>, FrontendError> {
        if !job.proxy_network {
            return Ok(None);
        }
        let policy = policy::of_requests(self.clone(), vec![job.clone()]);
        let attached = self.machine.proxies.attach(spec, policy).await;
        attached.map(Some).map_err(|error| failure::internal("make a container", error))
    }

    /// Fires each time a build ended; for collectors.
    pub async fn build_ended(&self) {
        self.ended.notified().await;
    }

    /// Tells the solver that records are gone.
    pub fn evicted(&self, records: &[store::RecordId]) {
        let ids: Vec<solver::RecordId> =
            records.iter().map(|id| self.machine.store.result_id(Some(id))).collect();
        self.solver.evicted(&ids);
    }

    /// Builds and exports. Dropping the future cancels the build.
    pub async fn solve(
        self: &Arc<Self>,
        request: SolveRequest,
    ) -> Result<BTreeMap<String, String>, FrontendError> {
        let exporters = self.check(&request)?;
        let caches = cache::exports(&request.cache_exports)?;
        let wanted = Wanted::parse(&request.attrs)?;
        self.machine.executor.warm();
        let journal = Journal::create(&self.settings.journals, self.settings.log_limit)
            .map_err(|error| failure::internal("open the journal of a build", error))?;
        let id = JobId::from(request.reference.as_str());
        let granted = request.entitlements.iter().map(|name| granted(name).to_owned()).collect();
        if let Some(policy) = &request.policy {
            policy::validate(policy)?;
        }
        let job = Job::new(
            id.clone(),
            request.session.clone(),
            journal,
            granted,
            request.policy.clone(),
            request.policy_session.clone(),
            request.proxy_network || self.settings.proxy_network,
            request.trace.clone(),
        );
        self.jobs.add(&job)?;
        let solving = self.solver.limited_job(id, request.jobs, job.clone());
        let scope = Scope::of_build(request.work.asked(&request.attrs));
        let facts = BuildFacts::new(request.compatibility);
        let mut ending =
            Ending { engine: self.clone(), job: job.clone(), started: None, statements: None };
        let outcome = async {
            let running = self.start(&request, &job, &solving, &scope);
            if !request.internal {
                ending.started = Some(self.history.started(&request));
            }
            self.jobs.turn(&job).await;
            let (mut result, run) = running.await?;
            bridge::evaluate(&result).await?;
            if let Some(sbom) = wanted.sbom.as_ref().filter(|_| !attest::has_sbom(&result)) {
                let platforms = self.result_platforms(&result).await?;
                let scanning = Scope::of_build(Asked::default());
                let bridge = self.bridge(&request, &job, &solving, &scanning, BTreeMap::new());
                self.scan(&bridge, sbom, &platforms, &mut result).await?;
            }
            let statements = Statements {
                engine: self.clone(),
                job: job.clone(),
                scope: scope.clone(),
                facts,
                result: result.clone(),
                builder_id: wanted.provenance.as_ref().map(|given| given.builder_id.clone()),
                made: tokio::sync::OnceCell::new(),
            };
            let statements = Arc::new(statements);
            if !request.internal {
                ending.statements = Some(statements.clone());
            }
            let mut exporters = exporters;
            if request.session_exporter {
                exporters.extend(self.session_exporters(&request, &result, run.as_ref()).await?);
            }
            let done = self
                .export(&job, &request, exporters, caches, result, &wanted, &statements)
                .await?;
            if request.session_exporter {
                let session = self.exporting_session(&request).await?;
                let told = session.finalize_export(done.response.clone()).await;
                told.map_err(|error| {
                    FrontendError::new(format!(
                        "tell the client that its exports are done: {error}"
                    ))
                })?;
            }
            if let Some(run) = run {
                run.close().await;
            }
            Ok(done)
        }
        .await;
        solving.discard();
        ending.end(&outcome);
        outcome.map(|done| done.response)
    }

    fn check(&self, request: &SolveRequest) -> Result<Vec<Arc<dyn Exporter>>, FrontendError> {
        for entitlement in &request.entitlements {
            if !self.settings.entitlements.contains(entitlement_name(entitlement)) {
                return Err(FrontendError::new(format!(
                    "granting entitlement {entitlement} is not allowed by build daemon configuration"
                )));
            }
        }
        let exporters = request.exporters.iter();
        exporters.map(|(kind, attrs)| self.exporter(request, kind, attrs.clone())).collect()
    }

    fn exporter(
        &self,
        request: &SolveRequest,
        kind: &str,
        mut attrs: BTreeMap<String, String>,
    ) -> Result<Arc<dyn Exporter>, FrontendError> {
        let epoch = request.attrs.get("build-arg:SOURCE_DATE_EPOCH");
        let epoch = epoch.filter(|text| text.is_empty() || text.parse::<i64>().is_ok());
        if let Some(epoch) = epoch {
            attrs.entry("source-date-epoch".into()).or_insert_with(|| epoch.clone());
        }
        let found = self.exporters.resolve(kind, attrs, request.compatibility);
        found.map_err(|error| failure::from_export(&error))
    }

    /// The session of a client that chooses exporters.
    async fn exporting_session(
        &self,
        request: &SolveRequest,
    ) -> Result<session::Session, FrontendError> {
        let session = self.machine.sessions.get(&request.session).await;
        session.map_err(|error| {
            FrontendError::new(format!("reach the client that chooses exporters: {error}"))
        })
    }

    /// Exporters that the client adds once it knows what was built. It may look into the trees by the
    /// ids it is told, as long as the build's run is open.
    async fn session_exporters(
        &self,
        request: &SolveRequest,
        result: &FrontendResult,
        run: Option<&Registered>,
    ) -> Result<Vec<Arc<dyn Exporter>>, FrontendError> {
        let refs: Vec<&frontend_api::RefHandle> = match &result.refs {
            Refs::Single(reference) => reference.iter().collect(),
            Refs::Map(map) => map.values().flatten().collect(),
        };
        let name = |reference| match run {
            Some(registered) => registered.run.register(Some(reference)).id,
            None => base::id::random_id(),
        };
        let ids = refs.into_iter().map(name).collect();
        let session = self.exporting_session(request).await?;
        let found = session.find_exporters(result.metadata.clone(), ids).await;
        let found = found.map_err(|error| {
            FrontendError::new(format!("ask the client for its exporters: {error}"))
        })?;
        let exporters = found.into_iter();
        exporters.map(|wanted| self.exporter(request, &wanted.r#type, wanted.attrs)).collect()
    }

    /// Registers what must be known before anything slow happens, then runs it. A client that chooses
    /// exporters gets its run back open.
    fn start<'a>(
        self: &'a Arc<Self>,
        request: &'a SolveRequest,
        job: &'a Arc<Job>,
        solving: &solver::Job<ops::Worker>,
        scope: &Arc<Scope>,
    ) -> impl Future<Output = Result<(FrontendResult, Option<Registered>), FrontendError>> + 'a
    {
        let inputs = match &request.work {
            Work::FrontendWithInputs(_, inputs) | Work::ClientSideWithInputs(inputs) => {
                inputs.clone()
            }
            _ => BTreeMap::new(),
        };
        let bridge = self.bridge(request, job, solving, scope, inputs);
        let client_side = match &request.work {
            Work::ClientSide | Work::ClientSideWithInputs(_) => {
                let containers = Containers::new(self.clone(), job.clone());
                let (run, returned) = Run::new(bridge.clone(), Arc::new(containers));
                Some((Registered::new(self.clone(), request.reference.clone(), run), returned))
            }
            _ => None,
        };
        async move {
            if let Some((registered, returned)) = client_side {
                let outcome = returned.await.unwrap_or_else(|_| {
                    Err(FrontendError::with_code(
                        Code::Canceled,
                        "the frontend went away without a result",
                    ))
                });
                let result = match outcome {
                    Ok(result) if request.session_exporter => {
                        return Ok((result, Some(registered)));
                    }
                    outcome => outcome,
                };
                // The result's refs live on in the result; the ids die here.
                registered.close().await;
                return result.map(|result| (result, None));
            }
            let result = match &request.work {
                Work::Definition(definition) => {
                    use frontend_api::Bridge as _;
                    let cache_imports = request.cache_imports.iter().map(CacheEntry::import);
                    let cache_imports = cache_imports.collect();
                    let work = frontend_api::SolveRequest::definition(definition.clone());
                    bridge.solve(frontend_api::SolveRequest { cache_imports, ..work }).await
                }
                Work::Frontend(name) | Work::FrontendWithInputs(name, _) => {
                    let (name, options) = canonical_frontend(name, &bridge.options);
                    let child = bridge.child(&name, options, bridge.inputs.clone());
                    let result = self.run_frontend(&name, child.clone()).await?;
                    bridge.scope.add_child(child.scope.clone());
                    Ok(result)
                }
                Work::ClientSide | Work::ClientSideWithInputs(_) => unreachable!("handled above"),
            };
            result.map(|result| (result, None))
        }
    }

    /// The bridge of a build as a whole.
    fn bridge(
        self: &Arc<Self>,
        request: &SolveRequest,
        job: &Arc<Job>,
        solving: &solver::Job<ops::Worker>,
        scope: &Arc<Scope>,
        inputs: BTreeMap<String, pb::Definition>,
    ) -> Arc<JobBridge> {
        Arc::new(JobBridge {
            engine: self.clone(),
            job: job.clone(),
            builder: (**solving).clone(),
            options: request.attrs.clone(),
            inputs,
            caps: self.caps.clone(),
            scope: scope.clone(),
        })
    }

    /// The platforms of a result, as exporters see them.
    async fn result_platforms(
        &self,
        result: &FrontendResult,
    ) -> Result<Vec<exporter::PlatformResult>, FrontendError> {
        let trees = export_result(result).await?;
        let found = exporter::platforms(&trees, &bridge::default_platform(self));
        found.map_err(|error| failure::from_export(&error))
    }

    pub(crate) async fn run_frontend(
        &self,
        name: &str,
        bridge: Arc<JobBridge>,
    ) -> Result<FrontendResult, FrontendError> {
        let source = bridge.options.get("source").map_or("", String::as_str);
        let replaced = bridge.options.keys().any(|key| key.starts_with("context:dockerfile.v0"));
        let builtin = match name {
            "dockerfile.v0" => Some(dockerfile::Dockerfile::default()),
            "gateway.v0" if source == "dockerfile.v0" && !replaced => {
                Some(dockerfile::Dockerfile::default())
            }
            "gateway.v0" => official_frontend(source, &bridge.options),
            _ => None,
        };
        if let (Some(frontend), true) = (builtin, self.settings.dockerfile) {
            return Box::pin(frontend.solve(bridge)).await;
        }
        if name == "gateway.v0" && self.settings.frontend_images != FrontendImages::Disabled {
            return Box::pin(frontend_image::run(bridge)).await;
        }
        Err(FrontendError::new(format!("invalid frontend: {name}")))
    }

    /// Whether the settings let this image be a frontend.
    pub(crate) fn allow_frontend(&self, source: &str) -> Result<(), FrontendError> {
        let FrontendImages::Only(allowed) = &self.settings.frontend_images else { return Ok(()) };
        let repository = oci::Reference::parse(source).map(|reference| reference.repository());
        match repository {
            Ok(repository) if allowed.contains(&repository) => Ok(()),
            _ => Err(FrontendError::with_code(
                Code::PermissionDenied,
                format!("'{source}' is not an allowed gateway source"),
            )),
        }
    }

    /// Fetches the lazy layers of a result.
    pub(crate) async fn ensure_local(&self, reference: &Ref) -> Result<(), FrontendError> {
        if reference.is_local() {
            return Ok(());
        }
        if reference.needs_provider() {
            reference.attach_provider(self.machine.sources.providers());
        }
        let fetched = reference.ensure_local(store::no_progress()).await;
        fetched.map_err(|error| failure::from_op(&error.into()))
    }

    async fn export(
        self: &Arc<Self>,
        job: &Arc<Job>,
        request: &SolveRequest,
        exporters: Vec<Arc<dyn Exporter>>,
        caches: Vec<ExportOptions>,
        result: FrontendResult,
        wanted: &Wanted,
        statements: &Arc<Statements>,
    ) -> Result<Done, FrontendError> {
        let metadata = result.metadata.clone();
        let built = Arc::new(bridge::built(&result).await?);
        let attestations = result.attestations;
        let result = FrontendResult { attestations: BTreeMap::new(), ..result };
        let mut result = export_result(&result).await?;
        let warnings = self.verify(request, &result, job, exporters.is_empty())?;
        for (platform, list) in &attestations {
            result.attestations.insert(platform.clone(), attest::attestations(list).await?);
        }
        if let Some(options) = &wanted.provenance {
            statements.add_to(&mut result, options).await?;
        }
        let (inline, caches): (Vec<_>, Vec<_>) =
            caches.into_iter().partition(|options| options.to == ExportTo::Inline);
        let inline = inline.first().map(|_| self.inline_cache(&built));
        let sessions = self.machine.sessions.group([request.session.clone()]);
        let mut parts = Vec::with_capacity(exporters.len());
        for (index, exporter) in exporters.iter().enumerate() {
            let digest = made_up_digest(&format!("{}-export-{index}", request.session));
            parts.push(self.export_one(
                job,
                index,
                digest,
                exporter,
                &result,
                &sessions,
                inline.clone(),
                if index == 0 { &warnings } else { &[] },
            ));
        }
        let exported = futures_util::future::try_join_all(parts).await?;
        let mut done = Done { metadata, ..Done::default() };
        let mut finishing = Vec::new();
        for (index, (digest, exported)) in exported.into_iter().enumerate() {
            done.response.extend(exported.response);
            if let Some(descriptor) = exported.descriptor {
                done.descriptors.insert(index as i64, descriptor);
            }
            if let Some(finish) = exported.finish {
                finishing.push(async move {
                    job.journal.started(&digest);
                    let outcome = finish.await.map_err(|error| failure::from_export(&error));
                    job.journal.completed(
                        &digest,
                        false,
                        outcome.as_ref().err().map(|error| error.message.as_str()),
                    );
                    outcome
                });
            }
        }
        let caches = caches.iter().enumerate();
        let caches = caches.map(|(index, options)| self.export_cache(job, index, options, &built));
        let (caches, _) = futures_util::future::try_join(
            futures_util::future::try_join_all(caches),
            futures_util::future::try_join_all(finishing),
        )
        .await?;
        done.response.extend(caches.into_iter().flatten());
        let shown = done.metadata.iter().filter(|(key, _)| key.starts_with("frontend."));
        done.response.extend(
            shown.map(|(key, value)| (key.clone(), String::from_utf8_lossy(value).into_owned())),
        );
        Ok(done)
    }

    /// Warnings about the platforms of a result. Without exporters a vertex of its own shows them;
    /// otherwise the first exporter's does.
    fn verify(
        &self,
        request: &SolveRequest,
        result: &ExportResult,
        job: &Job,
        alone: bool,
    ) -> Result<Vec<String>, FrontendError> {
        let native = bridge::default_platform(self);
        let warnings = verify::platforms(&request.attrs, result, &native)
            .map_err(|error| failure::from_export(&error))?;
        if alone && !warnings.is_empty() {
            let digest = made_up_digest(&format!("{}-verify", request.session));
            job.journal.loaded(&digest, "Verifying build result", Vec::new(), None);
            job.journal.started(&digest);
            warn(&job.journal, &digest, &warnings);
            job.journal.completed(&digest, false, None);
        }
        Ok(warnings)
    }

    async fn export_one(
        self: &Arc<Self>,
        job: &Arc<Job>,
        index: usize,
        digest: String,
        exporter: &Arc<dyn Exporter>,
        result: &ExportResult,
        sessions: &session::Group,
        inline_cache: Option<exporter::InlineCache>,
        warnings: &[String],
    ) -> Result<(String, exporter::Exported), FrontendError> {
        let journal = job.journal.clone();
        journal.loaded(&digest, exporter.name(), Vec::new(), None);
        journal.started(&digest);
        warn(&journal, &digest, warnings);
        let needs_files = matches!(exporter.kind(), "local" | "tar");
        let outcome = async {
            for reference in result.single.iter().chain(result.by_platform.values().flatten()) {
                if needs_files {
                    self.ensure_local(reference).await?;
                } else if reference.needs_provider() {
                    reference.attach_provider(self.machine.sources.providers());
                }
            }
            let request = ExportRequest {
                result: result.clone(),
                sessions: sessions.clone(),
                index,
                progress: Arc::new(ExportProgress {
                    journal: journal.clone(),
                    digest: digest.clone(),
                }),
                registries: (self.settings.registries)(sessions.clone()),
                inline_cache,
                platform: bridge::default_platform(self),
            };
            exporter.export(request).await.map_err(|error| failure::from_export(&error))
        }
        .await;
        journal.completed(
            &digest,
            false,
            outcome.as_ref().err().map(|error| error.message.as_str()),
        );
        Ok((digest, outcome?))
    }

    /// The frontend run of the client-side build `id`, waiting a little for one about to start.
    pub async fn client_run(&self, id: &str) -> Option<Arc<Run>> {
        let deadline = tokio::time::Instant::now() + REGISTRATION;
        loop {
            let added = self.run_added.notified();
            if let Some(run) = self.runs.lock().expect("no panic while holding runs").get(id) {
                return Some(run.clone());
            }
            tokio::time::timeout_at(deadline, added).await.ok()?;
        }
    }
}

/// What a successful build leaves.
#[derive(Default)]
pub(crate) struct Done {
    pub response: BTreeMap<String, String>,
    pub metadata: BTreeMap<String, Bytes>,
    pub descriptors: BTreeMap<i64, oci::Descriptor>,
}

/// A client-side run that bridge calls find by the build's name.
struct Registered {
    engine: Arc<Engine>,
    id: String,
    run: Arc<Run>,
}

impl Registered {
    fn new(engine: Arc<Engine>, id: String, run: Arc<Run>) -> Self {
        engine.runs.lock().expect("no panic while holding runs").insert(id.clone(), run.clone());
        engine.run_added.notify_waiters();
        Self { engine, id, run }
    }

    async fn close(self) {
        self.run.close().await;
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.engine.runs.lock().expect("no panic while holding runs").remove(&self.id);
        let run = self.run.clone();
        tokio::spawn(async move { run.close().await });
    }
}

/// Ends a build in any case, also when its future is dropped.
struct Ending {
    engine: Arc<Engine>,
    job: Arc<Job>,
    started: Option<crate::history::Started>,
    statements: Option<Arc<Statements>>,
}

impl Ending {
    fn end(mut self, outcome: &Result<Done, FrontendError>) {
        self.finish(Some(outcome));
    }

    fn finish(&mut self, outcome: Option<&Result<Done, FrontendError>>) {
        self.job.close();
        if let Some(started) = self.started.take() {
            let cancelled = FrontendError::with_code(Code::Canceled, "context canceled");
            let ended = match outcome {
                Some(Ok(done)) => Ended::Success {
                    metadata: done.metadata.clone(),
                    descriptors: done.descriptors.clone(),
                },
                Some(Err(error)) => Ended::Failure(error.clone()),
                None => Ended::Failure(cancelled),
            };
            let statements = self.statements.take();
            self.engine.history.ended(started, &self.job, ended, statements);
        } else {
            self.job.memo.clear();
        }
        // Kept for a collector that pauses.
        self.engine.ended.notify_one();
        let (jobs, job) = (self.engine.jobs.clone(), self.job.clone());
        tokio::spawn(async move {
            tokio::time::sleep(LINGER).await;
            jobs.remove(&Arc::downgrade(&job));
        });
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        if !self.job.journal.is_closed() {
            self.finish(None);
        }
    }
}

/// Warnings of a vertex of the daemon's own.
fn warn(journal: &Journal, digest: &str, warnings: &[String]) {
    for text in warnings {
        journal.warning(proto::control::VertexWarning {
            vertex: digest.to_owned(),
            level: 1,
            short: text.clone().into(),
            ..Default::default()
        });
    }
}

struct ExportProgress {
    journal: Arc<Journal>,
    digest: String,
}

impl exporter::Progress for ExportProgress {
    fn status(&self, status: exporter::Status) {
        self.journal.status(proto::control::VertexStatus {
            id: status.id,
            vertex: self.digest.clone(),
            current: i64::try_from(status.current).unwrap_or(i64::MAX),
            total: i64::try_from(status.total).unwrap_or(i64::MAX),
            timestamp: Some(SystemTime::now().into()),
            started: Some(status.started.into()),
            completed: status.completed.map(Into::into),
            ..Default::default()
        });
    }

    fn warn(&self, text: &str) {
        self.journal.warning(proto::control::VertexWarning {
            vertex: self.digest.clone(),
            level: 1,
            short: text.to_owned().into(),
            ..Default::default()
        });
    }
}

/// The trees of a result with its metadata.
async fn export_result(result: &FrontendResult) -> Result<ExportResult, FrontendError> {
    let metadata = result.metadata.clone();
    let mut exported = ExportResult { metadata, ..ExportResult::default() };
    match &result.refs {
        Refs::Single(reference) => exported.single = bridge::resolve(reference.as_ref()).await?,
        Refs::Map(map) => {
            if !exported.metadata.contains_key("refs.platforms") {
                return Err(FrontendError::new(
                    "build result contains multiple refs without platforms mapping",
                ));
            }
            for (platform, reference) in map {
                exported
                    .by_platform
                    .insert(platform.clone(), bridge::resolve(reference.as_ref()).await?);
            }
        }
    }
    Ok(exported)
}

/// The Dockerfile frontend by its short name, if it was asked for the long way.
fn canonical_frontend(
    name: &str,
    options: &BTreeMap<String, String>,
) -> (String, BTreeMap<String, String>) {
    let mut options = options.clone();
    let replaced = options
        .keys()
        .any(|key| key == "context:dockerfile.v0" || key.starts_with("context:dockerfile.v0::"));
    let source = options.get("source").map(String::as_str);
    if name == "gateway.v0" && source == Some("dockerfile.v0") && !replaced {
        options.remove("source");
        return ("dockerfile.v0".to_owned(), options);
    }
    (name.to_owned(), options)
}

impl Work {
    /// What is asked for, as provenance notes it.
    fn asked(&self, attrs: &BTreeMap<String, String>) -> Asked {
        let (frontend, inputs) = match self {
            Self::ClientSide | Self::Definition(_) => ("", BTreeMap::new()),
            Self::Frontend(name) => (name.as_str(), BTreeMap::new()),
            Self::FrontendWithInputs(name, inputs) => (name.as_str(), inputs.clone()),
            Self::ClientSideWithInputs(inputs) => ("", inputs.clone()),
        };
        let (frontend, options) = canonical_frontend(frontend, attrs);
        Asked { frontend, options, inputs }
    }
}

/// What the daemon itself has to say of a build's result.
pub(crate) struct Statements {
    engine: Arc<Engine>,
    job: Arc<Job>,
    scope: Arc<Scope>,
    facts: Arc<BuildFacts>,
    result: FrontendResult,
    builder_id: Option<String>,
    made: tokio::sync::OnceCell<BTreeMap<Option<String>, Arc<Provenance>>>,
}

impl Statements {
    /// By platform; the only tree of a result is under `None`.
    async fn provenance(
        &self,
    ) -> Result<&BTreeMap<Option<String>, Arc<Provenance>>, FrontendError> {
        let make = || async {
            let platforms = match &self.result.refs {
                Refs::Map(_) => self.engine.result_platforms(&self.result).await?,
                Refs::Single(_) => Vec::new(),
            };
            let Self { engine, job, scope, facts, result, .. } = self;
            engine.provenance(job, scope, facts, result, &platforms).await
        };
        self.made.get_or_try_init(make).await
    }

    /// Provenance beside every tree of the result.
    async fn add_to(
        &self,
        result: &mut ExportResult,
        options: &attest::ProvenanceOptions,
    ) -> Result<(), FrontendError> {
        let all = self.provenance().await?;
        let native = bridge::default_platform(&self.engine);
        let platforms =
            exporter::platforms(result, &native).map_err(|error| failure::from_export(&error))?;
        for platform in platforms {
            let found = all.get(&Some(platform.id.clone())).or_else(|| all.get(&None));
            let Some(provenance) = found.cloned() else { continue };
            provenance.check(options)?;
            let written = options.clone();
            let predicate = exporter::Predicate::later(move || {
                let (provenance, options) = (provenance.clone(), written.clone());
                async move {
                    let written = provenance.predicate(&options).await;
                    written.map_err(|error| exporter::ExportError::Result {
                        what: "provenance".into(),
                        reason: error.message,
                    })
                }
            });
            result.attestations.entry(platform.id).or_default().push(exporter::Attestation {
                predicate_type: options.predicate_type().to_owned(),
                predicate,
                subjects: Vec::new(),
                path: options.file_name.clone(),
                inline_only: options.inline_only,
                core: None,
            });
        }
        Ok(())
    }

    /// What history keeps: everything, of every tree.
    pub(crate) async fn for_history(&self) -> Vec<(Option<String>, Bytes)> {
        let builder_id = self.builder_id.clone().unwrap_or_default();
        let options = attest::ProvenanceOptions { builder_id, ..Default::default() };
        let mut written = Vec::new();
        let all = match self.provenance().await {
            Ok(all) => all,
            Err(error) => {
                tracing::warn!(build = %self.job.id, %error, "no provenance for history");
                return written;
            }
        };
        for (platform, provenance) in all {
            match provenance.predicate(&options).await {
                Ok(body) => written.push((platform.clone(), body)),
                Err(error) => {
                    tracing::warn!(build = %self.job.id, %error, "no provenance for history");
                }
            }
        }
        written
    }
}

/// The built-in frontend, if `source` names a released version of the official Dockerfile frontend
/// that it equals or is newer than. An image by digest, another tag, or one that the build replaces
/// by a context of its own is taken at its word.
fn official_frontend(
    source: &str,
    options: &BTreeMap<String, String>,
) -> Option<dockerfile::Dockerfile> {
    let reference = oci::Reference::parse(source).ok()?;
    if reference.repository() != "docker.io/docker/dockerfile" || reference.digest().is_some() {
        return None;
    }
    if options.keys().any(|key| key.starts_with(&format!("context:{source}"))) {
        return None;
    }
    let tag = reference.tag().unwrap_or("latest");
    let (version, devices) = match tag.strip_suffix("labs") {
        Some(version) => (version.trim_end_matches('-'), true),
        None => (tag, false),
    };
    let mut numbers = version.split('.').map(str::parse::<u32>);
    let known = match (numbers.next(), numbers.next()) {
        _ if matches!(version, "" | "latest") => true,
        (Some(Ok(1)), None) => true,
        (Some(Ok(1)), Some(Ok(minor))) => minor <= DOCKERFILE_MINOR,
        _ => false,
    };
    known.then_some(dockerfile::Dockerfile { devices })
}

/// What a build is granted: devices are named, the rest is all or nothing.
fn granted(entitlement: &str) -> &str {
    match entitlement_name(entitlement) {
        "device" => entitlement,
        name => name,
    }
}

fn entitlement_name(entitlement: &str) -> &str {
    entitlement.split_once('=').map_or(entitlement, |(name, _)| name)
}

/// Hands the solver's key changes to the store as they come.
async fn persist_keys(engine: std::sync::Weak<Engine>) {
    loop {
        let Some(strong) = engine.upgrade() else { return };
        let solver = strong.solver.clone();
        drop(strong);
        solver.changed().await;
        let Some(strong) = engine.upgrade() else { return };
        strong.machine.store.save_keys(solver.take_changes());
        drop(strong);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The platforms this machine runs, native first.
pub fn host_platforms(emulator_folders: &[PathBuf]) -> Vec<Platform> {
    let host = Platform::host();
    let mut platforms = vec![host.clone()];
    if host.architecture == "amd64" {
        let features = cpu_features();
        let has = |names: &[&str]| names.iter().all(|name| features.contains(*name));
        let with = |variant: &str| Platform { variant: variant.into(), ..host.clone() };
        if has(&["sse4_2", "popcnt", "ssse3", "cx16"]) {
            platforms.push(with("v2"));
            if has(&["avx2", "bmi1", "bmi2", "fma", "movbe", "f16c"]) {
                platforms.push(with("v3"));
                if has(&["avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"]) {
                    platforms.push(with("v4"));
                }
            }
        }
        platforms.push(Platform::new("linux", "386"));
    }
    for platform in [
        "linux/arm64",
        "linux/amd64",
        "linux/arm/v7",
        "linux/riscv64",
        "linux/ppc64le",
        "linux/s390x",
        "linux/loong64",
    ] {
        let platform = Platform::parse(platform).expect("the list names platforms").normalize();
        let architecture = &platform.architecture;
        let known = executor::emulator::is_registered(architecture)
            || executor::emulator::find(architecture, emulator_folders).is_some();
        if known && !platforms.contains(&platform) {
            platforms.push(platform);
        }
    }
    platforms
}

fn cpu_features() -> BTreeSet<String> {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = info.lines().find(|line| line.starts_with("flags")).unwrap_or_default();
    line.split_whitespace().map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn released_versions_of_the_official_frontend_are_built_in() {
        let builtin = |source: &str| {
            official_frontend(source, &BTreeMap::new()).map(|frontend| frontend.devices)
        };
        for source in [
            "docker/dockerfile",
            "docker/dockerfile:1",
            "docker.io/docker/dockerfile:1.4",
            "docker/dockerfile:1.7.0",
        ] {
            assert_eq!(builtin(source), Some(false), "{source}");
        }
        assert_eq!(builtin("docker/dockerfile:1-labs"), Some(true));
        for source in [
            "docker/dockerfile:2",
            "docker/dockerfile:1.99",
            "docker/dockerfile:master",
            "other/dockerfile:1",
        ] {
            assert_eq!(builtin(source), None, "{source}");
        }
        let replaced =
            [("context:docker/dockerfile:1".to_owned(), "docker-image://x".to_owned())].into();
        assert!(official_frontend("docker/dockerfile:1", &replaced).is_none());
    }
}
