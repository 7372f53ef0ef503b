//! One frontend run as its far side sees it.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use async_trait::async_trait;
use bytes::Bytes;
use frontend_api::{Bridge, FrontendError, FrontendResult, RefHandle, Remains};
use llb::pb;
use proto::frontend;
use tokio::sync::{mpsc, oneshot};

use crate::wire;

type Outcome = Result<FrontendResult, FrontendError>;

/// A run: its bridge, the refs it was given, its containers, and the result it owes.
pub struct Run {
    bridge: Arc<dyn Bridge>,
    makes_containers: Arc<dyn Containers>,
    refs: Mutex<HashMap<String, RefHandle>>,
    containers: Mutex<HashMap<String, Arc<dyn Container>>>,
    /// What failures that the far side was told of left behind, by the ids in them.
    remains: Mutex<HashMap<String, Arc<Remains>>>,
    outcome: Mutex<Option<oneshot::Sender<Outcome>>>,
}

impl Run {
    /// A run over `bridge`; the receiver yields what the far side returns, or closes when the run is
    /// dropped without a result.
    pub fn new(
        bridge: Arc<dyn Bridge>,
        containers: Arc<dyn Containers>,
    ) -> (Arc<Self>, oneshot::Receiver<Outcome>) {
        let (sender, receiver) = oneshot::channel();
        let run = Self {
            bridge,
            makes_containers: containers,
            refs: Mutex::default(),
            containers: Mutex::default(),
            remains: Mutex::default(),
            outcome: Mutex::new(Some(sender)),
        };
        (Arc::new(run), receiver)
    }

    /// What the run asks.
    pub fn bridge(&self) -> &Arc<dyn Bridge> {
        &self.bridge
    }

    /// The ref called `id`; an empty id is the empty tree.
    pub fn find(&self, id: &str) -> Result<Option<RefHandle>, tonic::Status> {
        if id.is_empty() {
            return Ok(None);
        }
        let refs = self.refs.lock().expect("no panic while holding refs");
        match refs.get(id) {
            Some(reference) => Ok(Some(reference.clone())),
            None => Err(tonic::Status::unknown(format!("no such ref: {id}"))),
        }
    }

    /// Gives `reference` a fresh id.
    pub fn register(&self, reference: Option<&RefHandle>) -> frontend::Ref {
        let Some(reference) = reference else { return frontend::Ref::default() };
        let id = base::id::random_id();
        self.refs
            .lock()
            .expect("no panic while holding refs")
            .insert(id.clone(), reference.clone());
        let definition = |definition: &Arc<pb::Definition>| {
            let mut definition = (**definition).clone();
            definition.drop_empty_locations();
            definition
        };
        frontend::Ref { id, def: reference.definition().map(definition) }
    }

    /// Tells the far side of a failure; it may look into the trees that are left.
    pub fn failure(&self, mut error: FrontendError) -> tonic::Status {
        if let Some(remains) = error.remains.clone() {
            let register = |refs: &[Option<RefHandle>]| -> Vec<String> {
                refs.iter().map(|one| self.register(one.as_ref()).id).collect()
            };
            let (inputs, mounts) = (register(&remains.inputs), register(&remains.mounts));
            crate::status::add_remains(&mut error, &remains, &inputs, &mounts);
            let mut known = self.remains.lock().expect("no panic while holding remains");
            let ids = inputs.into_iter().chain(mounts).filter(|id| !id.is_empty());
            known.extend(ids.map(|id| (id, remains.clone())));
        }
        crate::status::to_tonic(&error)
    }

    /// A failure that the far side passes on, with the trees that it was told of.
    fn returned(&self, error: &proto::google::rpc::Status) -> FrontendError {
        let mut error = crate::status::from_wire(error);
        let known = self.remains.lock().expect("no panic while holding remains");
        let mut ids = crate::status::remaining_ids(&error);
        error.remains = ids.find_map(|id| known.get(&id).cloned());
        error
    }

    /// Ends the run with what the far side returned.
    pub fn finish(&self, request: frontend::ReturnRequest) -> Result<(), tonic::Status> {
        let outcome = match request.error {
            Some(error) => Err(self.returned(&error)),
            None => Ok(wire::result_from_wire(request.result.unwrap_or_default(), |id| {
                self.find(id)
                    .map_err(|_| tonic::Status::unknown(format!("return reference {id} not found")))
            })?),
        };
        self.settle(outcome)
    }

    pub(crate) fn settle(&self, outcome: Outcome) -> Result<(), tonic::Status> {
        let sender = self.outcome.lock().expect("no panic while holding the outcome").take();
        match sender {
            Some(sender) => {
                _ = sender.send(outcome);
                Ok(())
            }
            None => Err(tonic::Status::unknown("gateway result is already set")),
        }
    }

    pub(crate) async fn create_container(
        &self,
        request: NewContainer,
    ) -> Result<(), tonic::Status> {
        let id = request.id.clone();
        if self.containers.lock().expect("no panic while holding containers").contains_key(&id) {
            return Err(tonic::Status::already_exists(format!("container {id} already exists")));
        }
        let container = self
            .makes_containers
            .create(request)
            .await
            .map_err(|error| crate::status::to_tonic(&error))?;
        self.containers.lock().expect("no panic while holding containers").insert(id, container);
        Ok(())
    }

    pub(crate) fn container(&self, id: &str) -> Result<Arc<dyn Container>, tonic::Status> {
        let containers = self.containers.lock().expect("no panic while holding containers");
        containers.get(id).cloned().ok_or_else(|| {
            tonic::Status::not_found(format!(
                "container \"{id}\" previously released or not created"
            ))
        })
    }

    pub(crate) fn take_container(&self, id: &str) -> Option<Arc<dyn Container>> {
        self.containers.lock().expect("no panic while holding containers").remove(id)
    }

    /// Kills what the run left behind.
    pub async fn close(&self) {
        let containers: Vec<_> = {
            let mut all = self.containers.lock().expect("no panic while holding containers");
            all.drain().map(|(_, container)| container).collect()
        };
        for container in containers {
            _ = container.release().await;
        }
        self.refs.lock().expect("no panic while holding refs").clear();
        self.remains.lock().expect("no panic while holding remains").clear();
    }
}

/// Makes containers for a run.
#[async_trait]
pub trait Containers: Send + Sync {
    /// Prepares mounts; nothing runs yet.
    async fn create(&self, request: NewContainer) -> Result<Arc<dyn Container>, FrontendError>;
}

/// What a container is made of.
pub struct NewContainer {
    /// Chosen by the frontend.
    pub id: String,
    /// Mounts with the ref each shows; `None` is an empty tree.
    pub mounts: Vec<(pb::Mount, Option<RefHandle>)>,
    /// Network mode.
    pub network: pb::NetMode,
    /// Platform to run.
    pub platform: Option<base::Platform>,
    /// Lines for `/etc/hosts`.
    pub extra_hosts: Vec<pb::HostIp>,
    /// Empty for the default.
    pub hostname: String,
}

/// A container of a run. The first process creates it, later ones join while the first runs.
#[async_trait]
pub trait Container: Send + Sync {
    /// Starts a process. Events end with [`ProcessEvent::Exit`]; dropping the receiver kills it.
    async fn start(
        &self,
        process: Process,
        input: mpsc::Receiver<ProcessInput>,
    ) -> Result<mpsc::Receiver<ProcessEvent>, FrontendError>;

    /// Kills everything and waits for the end; fails with the first process's error if it failed,
    /// or if it still ran.
    async fn release(&self) -> Result<(), FrontendError>;

    /// A readable view of mount number `index`.
    async fn mount(&self, index: usize) -> Result<Option<RefHandle>, FrontendError>;
}

/// A process to start.
pub struct Process {
    /// Args, env, cwd, user.
    pub meta: pb::Meta,
    /// Open descriptors among 0, 1, 2.
    pub fds: Vec<u32>,
    /// Give it a terminal.
    pub tty: bool,
    /// Sandbox or insecure.
    pub security: pb::SecurityMode,
    /// Secrets as environment.
    pub secret_env: Vec<pb::SecretEnv>,
}

/// Towards a process.
pub enum ProcessInput {
    /// Bytes for standard input.
    Stdin(Bytes),
    /// Standard input ends.
    StdinEof,
    /// Terminal size.
    Resize {
        /// Lines.
        rows: u32,
        /// Columns.
        cols: u32,
    },
    /// Signal number.
    Signal(i32),
}

/// From a process.
pub enum ProcessEvent {
    /// Bytes of descriptor 1 or 2.
    Output {
        /// 1 or 2.
        fd: u32,
        /// The bytes.
        data: Bytes,
    },
    /// It ended; 255 and an error text when it could not run.
    Exit {
        /// Exit code.
        code: u32,
        /// Why it is not 0.
        error: Option<FrontendError>,
    },
}
