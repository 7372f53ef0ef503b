//! Remote caches of a build: imports are read once a build, exports written after the images.
//!
//! An import that cannot be read counts as empty and shows why on its own vertex; the build goes
//! on. Invariant: a job keeps its imports open until it has ended.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex},
    time::SystemTime,
};

use async_trait::async_trait;
use frontend_api::{CacheImport, FrontendError};
use proto::control::{VertexStatus, VertexWarning};
use remotecache::{
    Access, CacheError, Chains, ExportOptions, ExportTo, ImportFrom, Mode, Opened, Records, Walk,
    WalkOptions, import_id,
};
use store::Ref;
use tokio::sync::OnceCell;

use crate::{Engine, Job, Journal, bridge::BuiltRef, journal::made_up_digest};

/// A remote cache in a request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CacheEntry {
    /// `registry`, `local`, `inline`.
    pub kind: String,
    /// Options of that kind.
    pub attrs: BTreeMap<String, String>,
}

impl CacheEntry {
    pub(crate) fn import(&self) -> CacheImport {
        CacheImport { kind: self.kind.clone(), attrs: self.attrs.clone() }
    }
}

/// The imports of one job, by id.
#[derive(Default)]
pub(crate) struct JobImports(Mutex<HashMap<String, Arc<OnceCell<Option<Arc<Opened>>>>>>);

impl JobImports {
    fn place(&self, id: &str) -> Arc<OnceCell<Option<Arc<Opened>>>> {
        let mut known = self.0.lock().expect("no panic while holding imports");
        known.entry(id.to_owned()).or_default().clone()
    }
}

impl Engine {
    pub(crate) fn cache_access(&self, job: &Job) -> Access {
        let sessions = self.machine.sessions.group([job.session.clone()]);
        Access { registries: (self.settings.registries)(sessions.clone()), sessions }
    }

    /// The imports as the solver takes them; those that cannot be read are left out.
    pub(crate) async fn imports(
        &self,
        job: &Job,
        wanted: &[CacheImport],
    ) -> Vec<Arc<solver::Import>> {
        let all = wanted.iter().map(|entry| async move {
            let id = import_id(&entry.kind, &entry.attrs);
            let place = job.imports.place(&id);
            let opened = place.get_or_init(|| self.open_import(job, &id, entry)).await;
            opened.as_ref().map(|opened| opened.import.clone())
        });
        let all = futures_util::future::join_all(all).await;
        let mut distinct: Vec<Arc<solver::Import>> = Vec::new();
        for import in all.into_iter().flatten() {
            if !distinct.iter().any(|known| Arc::ptr_eq(known, &import)) {
                distinct.push(import);
            }
        }
        distinct
    }

    async fn open_import(&self, job: &Job, id: &str, entry: &CacheImport) -> Option<Arc<Opened>> {
        let journal = &job.journal;
        let name = format!("importing cache manifest from {id}");
        let digest = made_up_digest(&name);
        journal.loaded(&digest, &name, Vec::new(), None);
        journal.started(&digest);
        let read = async {
            let from = ImportFrom::parse(&entry.kind, &entry.attrs)?;
            remotecache::import(&from, &self.cache_access(job)).await
        };
        let read: Result<_, CacheError> = read.await;
        let cache = match read {
            Ok(cache) => cache,
            Err(error) => {
                tracing::debug!(id, %error, "a remote cache could not be imported");
                journal.completed(&digest, false, Some(&error.to_string()));
                return None;
            }
        };
        for warning in &cache.warnings {
            journal.warning(VertexWarning {
                vertex: digest.clone(),
                level: 1,
                short: warning.clone().into(),
                ..Default::default()
            });
        }
        journal.completed(&digest, false, None);
        Some(self.machine.imports.add(id, cache))
    }
}

/// The exports of a request, checked.
pub(crate) fn exports(entries: &[CacheEntry]) -> Result<Vec<ExportOptions>, FrontendError> {
    let mut exports: Vec<ExportOptions> = Vec::new();
    for entry in entries {
        let options = ExportOptions::parse(&entry.kind, &entry.attrs)
            .map_err(|error| FrontendError::new(error.to_string()))?;
        let known = exports.iter().any(|known| known.to == options.to);
        if known && options.to == ExportTo::Inline {
            continue;
        }
        if known {
            return Err(FrontendError::new(format!("duplicate cache exports [{}]", entry.kind)));
        }
        exports.push(options);
    }
    Ok(exports)
}

impl Engine {
    /// The keys of what was built, with the layers of their results.
    async fn walk<'a>(
        &self,
        built: impl Iterator<Item = &'a BuiltRef>,
        options: WalkOptions,
    ) -> Result<Chains, CacheError> {
        let records = StoredResults(self);
        let mut walk = Walk::new(&self.solver, &records, options);
        for result in built {
            if let Some(key) = result.keys.first() {
                walk.add(key, result.record.as_ref()).await?;
            }
        }
        Ok(walk.finish())
    }

    pub(crate) async fn export_cache(
        &self,
        job: &Job,
        index: usize,
        options: &ExportOptions,
        built: &[BuiltRef],
    ) -> Result<BTreeMap<String, String>, FrontendError> {
        let digest = made_up_digest(&format!("{}-cache-{index}", job.session));
        job.journal.loaded(&digest, options.name(), Vec::new(), None);
        job.journal.started(&digest);
        let progress = CacheProgress { journal: job.journal.clone(), digest: digest.clone() };
        let written = async {
            let walked = WalkOptions {
                mode: options.mode,
                compression: options.compression,
                level: options.level,
                force: options.force_compression,
            };
            let chains = self.walk(built.iter(), walked).await?;
            remotecache::export::export(&chains, options, &self.cache_access(job), &progress).await
        };
        let written: Result<_, CacheError> = written.await;
        let text = written.as_ref().err().map(ToString::to_string);
        job.journal.completed(&digest, false, text.as_deref());
        match written {
            Ok(response) => Ok(response),
            Err(error) if options.ignore_error => {
                tracing::warn!(%error, "a failed cache export is ignored as the build asked");
                Ok(BTreeMap::new())
            }
            Err(error) => Err(FrontendError::new(error.to_string())),
        }
    }

    /// Makes the caches that exported images carry.
    pub(crate) fn inline_cache(
        self: &Arc<Self>,
        built: &Arc<Vec<BuiltRef>>,
    ) -> exporter::InlineCache {
        let (engine, built) = (self.clone(), built.clone());
        Arc::new(move |tree: Option<Ref>, layers| {
            let (engine, built) = (engine.clone(), built.clone());
            Box::pin(async move {
                let Some(tree) = tree else { return Ok(None) };
                let options = WalkOptions {
                    mode: Mode::Min,
                    compression: oci::Compression::Gzip,
                    level: None,
                    force: false,
                };
                let is_it = |result: &&BuiltRef| {
                    result.output.as_ref().is_some_and(|output| output.id() == tree.id())
                };
                let chains = engine.walk(built.iter().filter(is_it), options).await;
                let chains = chains.map_err(|error| exporter::ExportError::Result {
                    what: "inline cache".into(),
                    reason: error.to_string(),
                })?;
                Ok(remotecache::inline(&chains, &layers))
            })
        })
    }
}

/// Results by their stored names, also of imports.
pub(crate) struct StoredResults<'a>(pub(crate) &'a Engine);

#[async_trait]
impl Records for StoredResults<'_> {
    async fn load(&self, record: &solver::RecordId) -> Option<Ref> {
        let machine = &self.0.machine;
        if machine.imports.find(record).is_some() {
            return machine.imports.open(&machine.store, record).await.ok();
        }
        let tree = machine.store.get(&machine.store.parse_result_id(record)??)?;
        if tree.needs_provider() {
            tree.attach_provider(machine.sources.providers());
        }
        Some(tree)
    }
}

struct CacheProgress {
    journal: Arc<Journal>,
    digest: String,
}

impl remotecache::export::Progress for CacheProgress {
    fn status(&self, id: &str, started: SystemTime, completed: Option<SystemTime>) {
        self.journal.status(VertexStatus {
            id: id.to_owned(),
            vertex: self.digest.clone(),
            timestamp: Some(SystemTime::now().into()),
            started: Some(started.into()),
            completed: completed.map(Into::into),
            ..Default::default()
        });
    }
}
