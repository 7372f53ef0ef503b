//! Builds of the past: what was asked, how it ended, its log.
//!
//! A record is visible from the moment its build starts; when the build ends its journal becomes a
//! blob and the record is stored. Listeners are told of every change. Source: control notes §12.
//! Invariant: a stored record's blobs are pinned as long as it exists.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, SystemTime},
};

use base::Digest;
use bytes::Bytes;
use frontend_api::{Code, FrontendError};
use prost::Message as _;
use proto::control::{
    self, BuildHistoryEvent, BuildHistoryEventType, BuildHistoryRecord, BuildHistoryRequest,
    UpdateBuildHistoryRequest,
};
use store::{BlobInfo, Store, Table};
use tokio::sync::{broadcast, watch};

use crate::{Job, SolveRequest, TraceContext, Work, engine::Statements, failure, spans};

/// Media type of a stored journal.
const JOURNAL_TYPE: &str = "application/vnd.buildkit.status.v0";
/// Media type of a stored error; misspelt on the wire.
const ERROR_TYPE: &str = "application/vnd.googeapis.google.rpc.status+proto";

/// Media type of a stored predicate.
const STATEMENT_TYPE: &str = "application/vnd.in-toto+json";
/// Predicate type of those.
const PROVENANCE: &str = crate::attest::PROVENANCE_1;

/// How much history is kept.
#[derive(Debug, Clone, Copy)]
pub struct HistoryLimits {
    /// Beyond this many records, old ones go.
    pub max_entries: usize,
    /// Records younger than this stay whatever their number.
    pub max_age: Duration,
}

impl Default for HistoryLimits {
    fn default() -> Self {
        Self { max_entries: 50, max_age: Duration::from_secs(48 * 3600) }
    }
}

/// All builds known.
pub struct History {
    store: Arc<Store>,
    table: Table,
    limits: HistoryLimits,
    state: Mutex<State>,
    events: broadcast::Sender<BuildHistoryEvent>,
    pending: watch::Sender<usize>,
}

#[derive(Default)]
struct State {
    active: HashMap<String, BuildHistoryRecord>,
    stored: BTreeMap<String, Kept>,
}

/// Bytes of a record's blob that are written at once.
const BUFFER: usize = 64 << 10;

/// What is in memory of a stored record: there may be thousands, and they are rarely asked for.
struct Kept {
    completed: Option<SystemTime>,
    pinned: bool,
}

impl Kept {
    fn new(record: &BuildHistoryRecord) -> Self {
        let completed = record.completed_at.and_then(|at| SystemTime::try_from(at).ok());
        Self { completed, pinned: record.pinned }
    }
}

/// A build that was entered into history.
pub(crate) struct Started {
    reference: String,
    trace: TraceContext,
}

/// How a build ended.
pub(crate) enum Ended {
    /// With a result.
    Success { metadata: BTreeMap<String, Bytes>, descriptors: BTreeMap<i64, oci::Descriptor> },
    /// With an error.
    Failure(FrontendError),
}

impl History {
    /// Reads the stored records; those whose blobs are gone are dropped.
    pub(crate) fn open(
        store: Arc<Store>,
        limits: HistoryLimits,
    ) -> Result<Arc<Self>, store::StoreError> {
        let table = store.table("history");
        let mut stored = BTreeMap::new();
        for (key, value) in table.scan("")? {
            let record = BuildHistoryRecord::decode(value).ok().filter(|record| {
                let log = record.logs.as_ref().and_then(|log| log.digest.parse::<Digest>().ok());
                log.is_none_or(|log| store.content().contains(&log))
            });
            match record {
                Some(record) => _ = stored.insert(record.r#ref.clone(), Kept::new(&record)),
                None => table.remove(&key),
            }
        }
        Ok(Arc::new(Self {
            store,
            table,
            limits,
            state: Mutex::new(State { stored, ..State::default() }),
            events: broadcast::channel(1024).0,
            pending: watch::Sender::new(0),
        }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic while holding history")
    }

    fn tell(&self, kind: BuildHistoryEventType, record: BuildHistoryRecord) {
        _ = self.events.send(BuildHistoryEvent { r#type: kind as i32, record: Some(record) });
    }

    pub(crate) fn started(&self, request: &SolveRequest) -> Started {
        let frontend = match &request.work {
            Work::Frontend(name) | Work::FrontendWithInputs(name, _) => name.clone(),
            _ => String::new(),
        };
        let exporters = request
            .exporters
            .iter()
            .map(|(kind, attrs)| control::Exporter { r#type: kind.clone(), attrs: attrs.clone() })
            .collect();
        let record = BuildHistoryRecord {
            r#ref: request.reference.clone(),
            frontend,
            frontend_attrs: request.attrs.clone(),
            exporters,
            created_at: Some(SystemTime::now().into()),
            ..BuildHistoryRecord::default()
        };
        self.state().active.insert(request.reference.clone(), record.clone());
        self.tell(BuildHistoryEventType::Started, record);
        // A build of a client that does not trace begins a trace of its own.
        let begin = || TraceContext { trace: base::id::random_hex(16), parent: String::new() };
        let trace = request.trace.clone().unwrap_or_else(begin);
        Started { reference: request.reference.clone(), trace }
    }

    /// Stores the record in the background; [`History::settled`] waits for it.
    pub(crate) fn ended(
        self: &Arc<Self>,
        started: Started,
        job: &Arc<Job>,
        ended: Ended,
        statements: Option<Arc<Statements>>,
    ) {
        self.pending.send_modify(|pending| *pending += 1);
        let (history, journal) = (self.clone(), job.journal.clone());
        let memo = job.memo.clone();
        tokio::spawn(async move {
            let written = match &statements {
                Some(statements) => statements.for_history().await,
                None => Vec::new(),
            };
            // These hold the build's results and what its sources resolved.
            drop(statements);
            memo.clear();
            let keeper = history.clone();
            let kept = tokio::task::spawn_blocking(move || {
                keeper.store_record(&started, &journal, ended, &written);
            });
            if kept.await.is_err() {
                tracing::error!("keeping a build's record broke off");
            }
            history.pending.send_modify(|pending| *pending -= 1);
        });
    }

    fn store_record(
        &self,
        started: &Started,
        journal: &crate::Journal,
        ended: Ended,
        provenance: &[(Option<String>, Bytes)],
    ) {
        let Some(mut record) = self.state().active.get(&started.reference).cloned() else { return };
        record.completed_at = Some(SystemTime::now().into());
        let counts = journal.counts();
        record.num_total_steps = counts.total;
        record.num_cached_steps = counts.cached;
        record.num_completed_steps = counts.completed;
        record.num_warnings = counts.warnings;
        let mut pins = Vec::new();
        match self.blob(JOURNAL_TYPE, |out| {
            std::io::copy(&mut std::fs::File::open(journal.path())?, out).map(|_| ())
        }) {
            Ok((descriptor, digest)) => {
                record.logs = Some(descriptor);
                pins.push(digest);
            }
            Err(error) => {
                tracing::error!(%error, build = started.reference, "cannot keep a build's log")
            }
        }
        let begun = record.created_at.and_then(|at| at.try_into().ok());
        let error = match &ended {
            Ended::Failure(error) => Some(error.message.as_str()),
            Ended::Success { .. } => None,
        };
        match self.blob(spans::TRACE_TYPE, |out| {
            let (context, begun) = (&started.trace, begun.unwrap_or_else(SystemTime::now));
            spans::write(out, context, &started.reference, begun, error, &journal.vertices())
        }) {
            Ok((descriptor, digest)) => {
                record.trace = Some(descriptor);
                pins.push(digest);
            }
            Err(error) => {
                tracing::error!(%error, build = started.reference, "cannot keep a build's trace")
            }
        }
        match ended {
            Ended::Success { metadata, descriptors } => {
                record.exporter_response = metadata
                    .iter()
                    .map(|(key, value)| (key.clone(), String::from_utf8_lossy(value).into_owned()))
                    .collect();
                let results: BTreeMap<i64, control::Descriptor> = descriptors
                    .iter()
                    .map(|(index, descriptor)| (*index, wire_descriptor(descriptor)))
                    .collect();
                let result_deprecated = results.values().next().cloned();
                record.result = Some(control::BuildResultInfo {
                    result_deprecated,
                    results,
                    ..Default::default()
                });
            }
            Ended::Failure(error) => {
                let status = gateway::status::to_wire(&error);
                let whole = status.encode_to_vec();
                record.error = Some(proto::google::rpc::Status { details: Vec::new(), ..status });
                match self.blob(ERROR_TYPE, |out| std::io::Write::write_all(out, &whole)) {
                    Ok((descriptor, digest)) => {
                        record.external_error = Some(descriptor);
                        pins.push(digest);
                    }
                    Err(error) => {
                        tracing::error!(%error, build = started.reference, "cannot keep a build's error")
                    }
                }
            }
        }
        for (platform, body) in provenance {
            let kept = self.blob(STATEMENT_TYPE, |out| std::io::Write::write_all(out, body));
            let (descriptor, digest) = match kept {
                Ok(kept) => kept,
                Err(error) => {
                    tracing::error!(%error, build = started.reference, "cannot keep provenance");
                    continue;
                }
            };
            pins.push(digest);
            let kind = ("in-toto.io/predicate-type".to_owned(), PROVENANCE.to_owned());
            let descriptor = control::Descriptor { annotations: [kind].into(), ..descriptor };
            let of = match platform {
                Some(platform) => record.results.entry(platform.clone()).or_default(),
                None => record.result.get_or_insert_default(),
            };
            of.attestations.push(descriptor);
        }
        journal.slim();
        self.store.pin(&pin(&started.reference), &pins);
        {
            let mut state = self.state();
            state.active.remove(&started.reference);
            self.table.put(&started.reference, record.encode_to_vec());
            state.stored.insert(started.reference.clone(), Kept::new(&record));
        }
        self.tell(BuildHistoryEventType::Complete, record);
        self.collect();
    }

    fn blob(
        &self,
        media_type: &str,
        write: impl FnOnce(&mut dyn std::io::Write) -> std::io::Result<()>,
    ) -> Result<(control::Descriptor, Digest), String> {
        let writer = self.store.content().writer().map_err(|error| error.to_string())?;
        let mut writer = std::io::BufWriter::with_capacity(BUFFER, writer);
        write(&mut writer).map_err(|error| error.to_string())?;
        let writer = writer.into_inner().map_err(|error| error.to_string())?;
        let blob = writer
            .commit(None, None, BlobInfo::of_type(media_type))
            .map_err(|error| error.to_string())?;
        let descriptor = control::Descriptor {
            media_type: media_type.to_owned(),
            digest: blob.digest().to_string(),
            size: blob.size() as i64,
            annotations: BTreeMap::new(),
        };
        Ok((descriptor, blob.digest()))
    }

    /// Waits until every build that ended is stored.
    pub async fn settled(&self) {
        let mut pending = self.pending.subscribe();
        _ = pending.wait_for(|pending| *pending == 0).await;
    }

    /// The stored record of a build.
    pub async fn get(&self, reference: &str) -> Option<BuildHistoryRecord> {
        if self.state().active.contains_key(reference) && *self.pending.borrow() > 0 {
            self.settled().await;
        }
        let stored = self.state().stored.contains_key(reference);
        if stored { self.read(reference) } else { None }
    }

    /// A stored record, from disk.
    fn read(&self, reference: &str) -> Option<BuildHistoryRecord> {
        let record = self.table.get(reference).map_err(|error| error.to_string());
        let record = record.and_then(|bytes| match bytes {
            Some(bytes) => BuildHistoryRecord::decode(bytes).map_err(|error| error.to_string()),
            None => Err("it is gone".to_owned()),
        });
        record
            .inspect_err(|error| {
                tracing::error!(%error, build = reference, "cannot read a build's record");
            })
            .ok()
    }

    /// The file with a stored build's journal.
    pub async fn journal(&self, reference: &str) -> Option<std::fs::File> {
        let record = self.get(reference).await?;
        let digest: Digest = record.logs?.digest.parse().ok()?;
        self.store.content().open(&digest).ok()
    }

    /// What a listener is told at once, and (unless it wants only that) what follows.
    pub async fn listen(
        &self,
        request: &BuildHistoryRequest,
    ) -> Result<(Vec<BuildHistoryEvent>, broadcast::Receiver<BuildHistoryEvent>), FrontendError>
    {
        if request.limit < 0 {
            return Err(FrontendError::with_code(
                Code::InvalidArgument,
                "history limit must not be negative",
            ));
        }
        let filters = crate::history_filter::parse(&request.filter)?;
        self.settled().await;
        let state = self.state();
        let events = self.events.subscribe();
        let wanted = |record: &&BuildHistoryRecord| {
            request.r#ref.is_empty() || record.r#ref == request.r#ref
        };
        let mut now: Vec<BuildHistoryEvent> = state
            .active
            .values()
            .filter(wanted)
            .map(|record| event(BuildHistoryEventType::Started, record))
            .collect();
        if !request.active_only {
            let mut stored: Vec<BuildHistoryRecord> = state
                .stored
                .keys()
                .filter(|reference| request.r#ref.is_empty() || **reference == request.r#ref)
                .filter_map(|reference| self.read(reference))
                .filter(|record| {
                    filters.is_empty() || filters.iter().any(|filter| filter.matches(record))
                })
                .collect();
            if request.limit > 0 {
                stored.sort_by_key(|record| {
                    std::cmp::Reverse(record.created_at.map(|at| (at.seconds, at.nanos)))
                });
                stored.truncate(request.limit as usize);
            }
            now.extend(stored.iter().map(|record| event(BuildHistoryEventType::Complete, record)));
        }
        Ok((now, events))
    }

    /// Deletes, pins or unpins a record.
    pub async fn update(&self, request: &UpdateBuildHistoryRequest) -> Result<(), FrontendError> {
        self.settled().await;
        if request.finalize {
            return match self.state().stored.contains_key(&request.r#ref) {
                true => Ok(()),
                false => Err(missing(&request.r#ref)),
            };
        }
        if request.delete {
            return match self.remove(&request.r#ref) {
                true => Ok(()),
                false => Err(missing(&request.r#ref)),
            };
        }
        let record = {
            let mut state = self.state();
            let kept =
                state.stored.get_mut(&request.r#ref).ok_or_else(|| missing(&request.r#ref))?;
            let mut record = self.read(&request.r#ref).ok_or_else(|| missing(&request.r#ref))?;
            record.pinned = request.pinned;
            record.generation += 1;
            *kept = Kept::new(&record);
            self.table.put(&request.r#ref, record.encode_to_vec());
            record
        };
        self.tell(BuildHistoryEventType::Complete, record);
        self.store.flush().await.map_err(|error| failure::internal("store a history record", error))
    }

    fn remove(&self, reference: &str) -> bool {
        let removed = self.state().stored.remove(reference);
        if removed.is_none() {
            return false;
        }
        self.table.remove(reference);
        self.store.unpin(&pin(reference));
        let gone = BuildHistoryRecord { r#ref: reference.to_owned(), ..Default::default() };
        self.tell(BuildHistoryEventType::Deleted, gone);
        true
    }

    /// Drops what the limits say.
    pub fn collect(&self) {
        let is_old = |at: SystemTime| at.elapsed().is_ok_and(|age| age > self.limits.max_age);
        let mut ages: Vec<(SystemTime, String)> = {
            let state = self.state();
            // Asked after each build, and nearly always there is nothing to do.
            if state.stored.len() <= self.limits.max_entries
                || !state.stored.values().any(|kept| kept.completed.is_some_and(is_old))
            {
                return;
            }
            let unpinned = state.stored.iter().filter(|(_, kept)| !kept.pinned);
            let ages = unpinned.filter_map(|(name, kept)| Some((kept.completed?, name.clone())));
            ages.collect()
        };
        ages.sort_by(|left, right| right.cmp(left));
        for (at, reference) in ages.into_iter().skip(self.limits.max_entries) {
            if is_old(at) {
                self.remove(&reference);
            }
        }
    }
}

fn event(kind: BuildHistoryEventType, record: &BuildHistoryRecord) -> BuildHistoryEvent {
    BuildHistoryEvent { r#type: kind as i32, record: Some(record.clone()) }
}

fn missing(reference: &str) -> FrontendError {
    FrontendError::with_code(Code::NotFound, format!("failed to retrieve ref {reference}"))
}

fn pin(reference: &str) -> String {
    format!("history:{reference}")
}

fn wire_descriptor(descriptor: &oci::Descriptor) -> control::Descriptor {
    control::Descriptor {
        media_type: descriptor.media_type.clone(),
        digest: descriptor.digest.to_string(),
        size: descriptor.size as i64,
        annotations: descriptor.annotations.clone(),
    }
}
