//! One container: what it is, and its run if it runs.
//!
//! `Created → Running → Ended`, and from there to `Running` again. The writable layer stays until
//! the container is removed; processes, mounts and ports exist only while it runs.

use std::{
    collections::BTreeSet,
    io,
    sync::{Arc, Mutex, atomic::AtomicBool},
    time::{Duration, SystemTime},
};

use base::Platform;
use bytes::Bytes;
use executor::{
    Event,
    net::{Endpoint, PortProxy},
};
use oci::ImageConfig;
use proto::rbuild::v1 as wire;
use snapshot::Tree;
use store::{MutRef, Ref};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::{
    Port,
    health::Health,
    output::{Output, OutputReader},
    settle::Settled,
};

/// How a container ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exit {
    /// Exit code.
    pub code: i32,
    /// Why it did not run, if it did not.
    pub error: String,
    /// The kernel ended a process of it for want of memory.
    pub oom_killed: bool,
    /// When.
    pub at: SystemTime,
}

impl Exit {
    /// An end just now.
    pub(super) fn now(code: i32, error: String) -> Self {
        Self { code, error, oom_killed: false, at: SystemTime::now() }
    }
}

/// How far a container is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Phase {
    /// It has not run yet.
    Created,
    /// It runs.
    Running {
        /// Since when.
        since: SystemTime,
        /// Number of its first process.
        pid: u32,
    },
    /// It ran.
    Ended {
        /// From when.
        since: SystemTime,
        /// To when and how.
        exit: Exit,
    },
}

/// A container.
pub struct Container {
    /// 64 hex digits.
    pub id: String,
    /// Image as asked for.
    pub image: String,
    /// Digest of its image's config.
    pub image_id: String,
    /// As it was asked for.
    pub request: wire::RunRequest,
    /// When it was made.
    pub created: SystemTime,
    /// Platform of its image.
    pub platform: Platform,
    /// Config of its image.
    pub config: ImageConfig,
    pub(super) name: Mutex<String>,
    pub(super) settled: Settled,
    pub(super) phase: watch::Sender<Phase>,
    pub(super) output: Arc<Output>,
    pub(super) live: Mutex<Option<Live>>,
    /// What the checks of this run found so far.
    pub(super) health: Mutex<Health>,
    /// One start at a time.
    pub(super) starting: tokio::sync::Mutex<()>,
    pub(super) kept: Mutex<Option<Kept>>,
    pub(super) stop_signal: i32,
    /// It was removed.
    pub(super) removed: AtomicBool,
}

/// What exists while it runs.
pub(super) struct Live {
    pub events: mpsc::Sender<Event>,
    pub stdin: mpsc::Sender<Option<Bytes>>,
    pub cancel: CancellationToken,
    pub ports: Vec<PortProxy>,
    pub endpoint: Option<Endpoint>,
    pub tree: Tree,
}

/// What stays until it is removed.
pub(super) struct Kept {
    pub written: MutRef,
    pub _image: Option<Ref>,
}

impl Container {
    /// Its name.
    pub fn name(&self) -> String {
        self.name.lock().expect("no panic while holding a name").clone()
    }

    /// How far it is.
    pub fn phase(&self) -> Phase {
        self.phase.borrow().clone()
    }

    /// Whether it runs.
    pub fn is_running(&self) -> bool {
        matches!(*self.phase.borrow(), Phase::Running { .. })
    }

    /// How it ended, if it did.
    pub fn exit(&self) -> Option<Exit> {
        match &*self.phase.borrow() {
            Phase::Ended { exit, .. } => Some(exit.clone()),
            _ => None,
        }
    }

    /// What it runs.
    pub fn command(&self) -> &[String] {
        &self.settled.process.args
    }

    /// Its first process.
    pub fn process(&self) -> &executor::Process {
        &self.settled.process
    }

    /// Its mounts.
    pub fn mounts(&self) -> impl Iterator<Item = &wire::ContainerMount> {
        self.settled.mounts.iter().map(|mounted| &mounted.shown)
    }

    /// The ports published, while it runs.
    pub fn ports(&self) -> Vec<Port> {
        let live = self.live.lock().expect("no panic while holding a run");
        let proxies = live.iter().flat_map(|live| &live.ports).zip(&self.settled.ports);
        proxies.map(|(proxy, port)| Port { host: proxy.address(), ..port.clone() }).collect()
    }

    /// Its place in a network of its own, while it runs.
    pub fn endpoint(&self) -> Option<Endpoint> {
        self.with_live(|live| live.endpoint).flatten()
    }

    /// The ports that it offers: the image's, those that were named, those that are published.
    pub fn exposed(&self) -> BTreeSet<String> {
        let published = self
            .settled
            .ports
            .iter()
            .map(|port| format!("{}/{}", port.container, if port.udp { "udp" } else { "tcp" }));
        let own = self.config.config.exposed_ports.keys().chain(&self.request.expose);
        let own = own.map(|text| match text.contains('/') {
            true => text.clone(),
            false => format!("{text}/tcp"),
        });
        own.chain(published).collect()
    }

    /// What its checks found; `None` if it has none.
    pub(super) fn health(&self) -> Option<Health> {
        self.settled.check.as_ref()?;
        Some(self.health.lock().expect("no panic while holding health").clone())
    }

    /// What its checks found, as clients see it.
    pub fn health_to_wire(&self) -> Option<wire::Health> {
        Some(self.health()?.to_wire())
    }

    pub(super) fn set_health(&self, health: Health) {
        *self.health.lock().expect("no panic while holding health") = health;
    }

    /// Waits until it does not run; a container that never ran has ended well.
    pub async fn wait(&self) -> Exit {
        let mut phase = self.phase.subscribe();
        let ended = phase.wait_for(|phase| !matches!(phase, Phase::Running { .. })).await;
        match ended.as_deref() {
            Ok(Phase::Ended { exit, .. }) => exit.clone(),
            _ => Exit::now(0, String::new()),
        }
    }

    /// Whether it ends within `limit`.
    pub(super) async fn ends_within(&self, limit: Duration) -> bool {
        tokio::time::timeout(limit, self.wait()).await.is_ok()
    }

    /// Its output from the beginning or from now on.
    pub fn output(&self, from_start: bool) -> io::Result<OutputReader> {
        self.output.reader(from_start)
    }

    /// Sends bytes to its standard input, `None` for the end; dropped if it reads none.
    pub async fn write(&self, data: Option<Bytes>) {
        let stdin = self.with_live(|live| live.stdin.clone());
        if let Some(stdin) = stdin {
            _ = stdin.send(data).await;
        }
    }

    /// A signal or a new terminal size; false if it does not run.
    pub async fn event(&self, event: Event) -> bool {
        let events = self.with_live(|live| live.events.clone());
        match events {
            Some(events) => events.send(event).await.is_ok(),
            None => false,
        }
    }

    pub(super) fn with_live<T>(&self, use_it: impl FnOnce(&Live) -> T) -> Option<T> {
        self.live.lock().expect("no panic while holding a run").as_ref().map(use_it)
    }

    pub(super) fn cancel(&self) {
        self.with_live(|live| live.cancel.cancel());
    }

    /// The files as they are now.
    pub(super) fn tree(&self) -> Option<Result<Tree, store::StoreError>> {
        // A second mount of a layer that is being written would not see the same files.
        if let Some(tree) = self.with_live(|live| live.tree.clone()) {
            return Some(Ok(tree));
        }
        let kept = self.kept.lock().expect("no panic while holding a layer");
        kept.as_ref().map(|kept| kept.written.tree())
    }

    /// Its layer is written in the room that the caller works in.
    pub(super) fn enter_room(&self) {
        let kept = self.kept.lock().expect("no panic while holding a layer");
        if let Some(kept) = &*kept {
            kept.written.enter_room();
        }
    }
}
