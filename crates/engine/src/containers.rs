//! Containers of frontend runs: a debugger's shell, an SDK's service.
//!
//! Mounts are prepared once, as throw-away copies where they may be written; the first process
//! makes the container, later ones join it. Source: gateway notes §3.9.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, OnceLock},
};

use async_trait::async_trait;
use executor::{Event, ExecError, Hooks, Io, Mount, MountOptions, MountSource, Pipes, Root, Spec};
use frontend_api::{Code, FrontendError, RefHandle};
use gateway::{Container, NewContainer, Process, ProcessEvent, ProcessInput};
use llb::pb::{self, MountType};
use ops::Mounter;
use store::{MutRef, NewRecord, Ref, Room};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    sync::{mpsc, watch},
};
use tokio_util::sync::CancellationToken;

use crate::{Engine, Job, bridge, failure};

/// A pipe read.
const CHUNK: usize = 32 << 10;

/// Makes containers for the frontend runs of one build.
pub(crate) struct Containers {
    engine: Arc<Engine>,
    job: Arc<Job>,
}

impl Containers {
    pub(crate) fn new(engine: Arc<Engine>, job: Arc<Job>) -> Self {
        Self { engine, job }
    }
}

/// A mount that keeps its data while the container lives.
struct Prepared {
    mount: pb::Mount,
    handle: Option<RefHandle>,
    tree: Option<snapshot::Tree>,
    _written: Option<MutRef>,
    _read: Option<Ref>,
}

struct Running {
    engine: Arc<Engine>,
    /// What it writes counts from the start on.
    room: Room,
    job: Arc<Job>,
    request: NewContainer,
    id: String,
    mounts: Vec<Prepared>,
    cancel: CancellationToken,
    state: Arc<State>,
    /// Folders of mounts that are made ready when the container starts, by where they are.
    live: Mutex<HashMap<String, snapshot::Tree>>,
    /// How its processes find the proxy that the first one was given, if any.
    proxy_env: OnceLock<Vec<String>>,
    /// What mounts need until the container ends.
    keep: Mutex<Vec<Box<dyn Send + Sync>>>,
}

/// How far the first process is: later ones can join while it runs.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum First {
    Missing,
    Starting,
    Running,
    Ended,
}

struct State {
    first: watch::Sender<First>,
    failed: Mutex<Option<FrontendError>>,
}

/// The process that makes the container; its end is the container's.
struct FirstProcess(Arc<State>);

impl FirstProcess {
    /// The caller's, if nobody was first before.
    fn claim(state: &Arc<State>) -> Option<Self> {
        let claimed = state.first.send_if_modified(|first| {
            let is_free = *first == First::Missing;
            if is_free {
                *first = First::Starting;
            }
            is_free
        });
        claimed.then(|| Self(state.clone()))
    }
}

impl Drop for FirstProcess {
    fn drop(&mut self) {
        self.0.first.send_replace(First::Ended);
    }
}

impl Default for State {
    fn default() -> Self {
        Self { first: watch::Sender::new(First::Missing), failed: Mutex::default() }
    }
}

#[async_trait]
impl gateway::Containers for Containers {
    async fn create(&self, mut request: NewContainer) -> Result<Arc<dyn Container>, FrontendError> {
        let room = self.engine.store().reserve(0).await;
        let room = room.map_err(|error| failure::internal("make a container", error))?;
        let mut mounts = Vec::with_capacity(request.mounts.len());
        for (mount, handle) in std::mem::take(&mut request.mounts) {
            mounts.push(room.scope(self.prepare(mount, handle)).await?);
        }
        if !mounts.iter().any(|mount| mount.mount.dest == "/") {
            return Err(FrontendError::with_code(
                Code::InvalidArgument,
                "container needs a mount at /",
            ));
        }
        Ok(Arc::new(Running {
            engine: self.engine.clone(),
            room,
            job: self.job.clone(),
            id: base::id::random_id(),
            request,
            mounts,
            cancel: CancellationToken::new(),
            state: Arc::default(),
            live: Mutex::default(),
            proxy_env: OnceLock::new(),
            keep: Mutex::default(),
        }))
    }
}

impl Containers {
    async fn prepare(
        &self,
        mount: pb::Mount,
        handle: Option<RefHandle>,
    ) -> Result<Prepared, FrontendError> {
        if mount.mount_type() != MountType::Bind {
            if mount.dest == "/" {
                return Err(FrontendError::with_code(
                    Code::InvalidArgument,
                    "the mount at / must be a bind mount",
                ));
            }
            return Ok(Prepared { mount, handle, tree: None, _written: None, _read: None });
        }
        let reference = bridge::resolve(handle.as_ref()).await?;
        if let Some(reference) = &reference {
            self.engine.ensure_local(reference).await?;
        }
        let store = self.engine.store();
        let failed = |error| failure::internal("prepare a container's mount", error);
        // A root is written to when mount points are made, even where the process may not write.
        let (tree, written) = match &reference {
            Some(reference) if mount.readonly && mount.dest != "/" => {
                (reference.tree().map_err(failed)?, None)
            }
            parent => {
                let description = format!("mount {} of a container", mount.dest);
                let written = store
                    .create(NewRecord {
                        parent: parent.as_ref(),
                        description,
                        ..NewRecord::default()
                    })
                    .map_err(failed)?;
                (written.tree().map_err(failed)?, Some(written))
            }
        };
        Ok(Prepared { mount, handle, tree: Some(tree), _written: written, _read: reference })
    }
}

#[async_trait]
impl Container for Running {
    async fn start(
        &self,
        process: Process,
        input: mpsc::Receiver<ProcessInput>,
    ) -> Result<mpsc::Receiver<ProcessEvent>, FrontendError> {
        let first = FirstProcess::claim(&self.state);
        if first.is_none() {
            // The first one may have been asked for a moment ago.
            let mut state = self.state.first.subscribe();
            _ = state.wait_for(|first| *first >= First::Running).await;
        }
        let wanted = |fd: u32| process.fds.contains(&fd);
        let (mut io, pipes) =
            Io::piped().map_err(|error| failure::internal("make pipes for a process", error))?;
        if !wanted(0) && !process.tty {
            io.stdin = None;
        }
        let pty = process.tty;
        let described = self.process(&process).await?;
        let (events_in, events) = mpsc::channel(16);
        let cancel = self.cancel.child_token();
        let (started, has_started) = tokio::sync::oneshot::channel();
        let hooks = Hooks { started: Some(started), events: Some(events), cancel: cancel.clone() };
        let (out, receiver) = mpsc::channel(64);
        let mut described = described;
        let (mut spec, mut proxy) = (None, None);
        if first.is_some() {
            let mut made = self.room.scope(self.spec(described.clone(), &process)).await?;
            if self.request.network != pb::NetMode::None {
                let own = made.process.env.len();
                proxy = self.engine.behind_proxy(&self.job, &mut made).await?;
                _ = self.proxy_env.set(made.process.env[own..].to_vec());
            }
            spec = Some(made);
        } else if let Some(env) = self.proxy_env.get() {
            described.env.extend_from_slice(env);
        }
        let (executor, id) = (self.engine.machine.executor.clone(), self.id.clone());
        let (names, room) = (process.meta.args.join(" "), self.room.clone());
        let to = |fd: u32| wanted(fd).then(|| out.clone());
        let told = [to(1), to(2)];
        tokio::spawn(async move {
            let run = async {
                match spec {
                    Some(spec) => executor.run(spec, io, hooks).await,
                    None => executor.exec(&id, described, io, hooks).await,
                }
            };
            let running = async {
                if let (Ok(_), Some(first)) = (has_started.await, &first) {
                    first.0.first.send_replace(First::Running);
                }
            };
            let (exit, (), ()) =
                tokio::join!(run, relay(pipes, input, events_in, told, pty, cancel), running);
            if let Some(proxy) = proxy {
                proxy.finish().await;
            }
            let event = match room.is_withdrawn() {
                Some(full) => ProcessEvent::Exit {
                    code: 137,
                    error: Some(failure::internal("run a container", full)),
                },
                None => exit_event(exit, &names),
            };
            if let (Some(first), ProcessEvent::Exit { error: Some(error), .. }) = (first, &event) {
                *first.0.failed.lock().expect("no panic with the error") = Some(error.clone());
            }
            _ = out.send(event).await;
        });
        Ok(receiver)
    }

    async fn release(&self) -> Result<(), FrontendError> {
        self.cancel.cancel();
        let mut first = self.state.first.subscribe();
        _ = first.wait_for(|first| matches!(first, First::Missing | First::Ended)).await;
        match self.state.failed.lock().expect("no panic with the error").take() {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    async fn mount(&self, index: usize) -> Result<Option<RefHandle>, FrontendError> {
        let available = self.mounts.len();
        let mount = self.mounts.get(index).ok_or_else(|| {
            FrontendError::with_code(
                Code::InvalidArgument,
                format!("mount index {index} is out of bounds ({available} available)"),
            )
        })?;
        let late =
            || self.live.lock().expect("no panic with trees").get(&mount.mount.dest).cloned();
        let live = mount.tree.clone().or_else(late);
        Ok(live.map(bridge::Live::handle).or_else(|| mount.handle.clone()))
    }
}

impl Running {
    async fn process(&self, process: &Process) -> Result<executor::Process, FrontendError> {
        let group = self.engine.machine.sessions.group([self.job.session.clone()]);
        let secrets = ops::secret_env(&group, &process.secret_env)
            .await
            .map_err(|error| failure::from_op(&error))?;
        let os = self.request.platform.as_ref().map_or("linux", |platform| &platform.os);
        let mut env = executor::env::finalise(os, &process.meta.env, None, secrets, &[]);
        if process.tty && executor::env::get(&env, "TERM").is_none() {
            env.push("TERM=xterm".into());
        }
        Ok(executor::Process {
            args: process.meta.args.clone(),
            env,
            cwd: process.meta.cwd.clone(),
            user: process.meta.user.clone(),
            rlimits: ops::rlimits(&process.meta.ulimit),
            terminal: process.tty,
        })
    }

    async fn spec(
        &self,
        described: executor::Process,
        process: &Process,
    ) -> Result<Spec, FrontendError> {
        let machine = &self.engine.machine;
        let security = process.security;
        if security == pb::SecurityMode::Insecure
            && !self.job.entitlements.contains("security.insecure")
        {
            return Err(FrontendError::new("security.insecure is not allowed"));
        }
        if self.request.network == pb::NetMode::Host
            && !self.job.entitlements.contains("network.host")
        {
            return Err(FrontendError::new("network.host is not allowed"));
        }
        let op = |error: ops::OpError| failure::from_op(&error);
        let sessions = machine.sessions.group([self.job.session.clone()]);
        let mut others = Mounter::new(machine, &sessions, &self.cancel);
        let mut root = None;
        let (mut mounts, mut keep) = (Vec::new(), Vec::new());
        let mut take = |ready: ops::Ready| {
            keep.extend(ready.keep);
            ready.mount
        };
        for prepared in &self.mounts {
            let mount = &prepared.mount;
            let dest = base::path::absolute(&mount.dest);
            let mount = match mount.mount_type() {
                MountType::Bind => {
                    let tree = prepared.tree.as_ref().expect("bind mounts have trees");
                    let fd = tree.fd().try_clone_to_owned();
                    let tree = Arc::new(
                        fd.map_err(|error| failure::internal("duplicate a descriptor", error))?,
                    );
                    if dest == "/" {
                        root = Some(Root { tree, readonly: mount.readonly });
                        continue;
                    }
                    let source = MountSource::Tree { tree, path: mount.selector.clone() };
                    let (readonly, options) = (mount.readonly, MountOptions::default());
                    Some(Mount { dest, source, readonly, options })
                }
                MountType::Tmpfs => Mounter::memory(mount, dest).mount,
                MountType::Secret => take(others.secret(mount, dest).await.map_err(op)?),
                MountType::Ssh => take(others.agent(mount, dest).await.map_err(op)?),
                MountType::Cache => {
                    let start = bridge::resolve(prepared.handle.as_ref()).await?;
                    let user = format!("container {}", self.id);
                    let ready = others.cache(mount, dest, start.as_ref(), &user).await;
                    let ready = ready.map_err(op)?;
                    if let Some(tree) = ready.tree.clone() {
                        let mut live = self.live.lock().expect("no panic with trees");
                        live.insert(mount.dest.clone(), tree);
                    }
                    take(ready)
                }
            };
            mounts.extend(mount);
        }
        self.keep.lock().expect("no panic with what is kept").extend(keep);
        let root = root.ok_or_else(|| FrontendError::new("container needs a mount at /"))?;
        let mut spec = Spec::new(self.id.clone(), root, described);
        spec.mounts = mounts;
        spec.hostname = self.request.hostname.clone();
        spec.network = ops::network(self.request.network as i32, &machine.config).map_err(op)?;
        spec.security = ops::security(security as i32).map_err(op)?;
        spec.extra_hosts = ops::extra_hosts(&self.request.extra_hosts).map_err(op)?;
        spec.dns = machine.config.dns.clone();
        spec.cgroup_parent = machine.config.cgroup_parent.clone();
        let platform = self.request.platform.clone().unwrap_or_else(base::Platform::host);
        if platform.os == base::Platform::host().os {
            spec.emulator = machine.emulator(&platform).map_err(op)?;
        }
        spec.remove_mount_stubs_recursive = process.meta.remove_mount_stubs_recursive;
        ops::below_ceiling(self.engine.store(), &mut spec);
        Ok(spec)
    }
}

/// How a process's end is told.
fn exit_event(exit: Result<executor::Exit, ExecError>, args: &str) -> ProcessEvent {
    match exit {
        Ok(exit) if exit.code == 0 => ProcessEvent::Exit { code: 0, error: None },
        Ok(exit) => {
            let error = FrontendError::new(format!("exit code: {}", exit.code));
            ProcessEvent::Exit { code: exit.code as u32, error: Some(error) }
        }
        Err(ExecError::Cancelled) => ProcessEvent::Exit {
            code: 137,
            error: Some(FrontendError::with_code(Code::Canceled, "context canceled")),
        },
        Err(ExecError::Start { program, reason, code }) => ProcessEvent::Exit {
            code: code as u32,
            error: Some(FrontendError::new(format!("{program}: {reason}"))),
        },
        Err(error) => ProcessEvent::Exit {
            code: 255,
            error: Some(FrontendError::new(format!("process \"{args}\": {error}"))),
        },
    }
}

/// Carries bytes both ways until the process has closed its output. `told` are those who want its
/// first and second output; a client that did not ask for one takes it as an error.
async fn relay(
    pipes: Pipes,
    mut input: mpsc::Receiver<ProcessInput>,
    events: mpsc::Sender<Event>,
    told: [Option<mpsc::Sender<ProcessEvent>>; 2],
    terminal: bool,
    cancel: CancellationToken,
) {
    let Pipes { stdin, stdout, stderr } = pipes;
    let [first, second] = told;
    let outputs = async {
        if terminal {
            drop(stderr);
            read(stdout, 1, first.as_ref()).await;
        } else {
            tokio::join!(read(stdout, 1, first.as_ref()), read(stderr, 2, second.as_ref()));
        }
    };
    let inputs = async {
        let mut stdin = Some(stdin);
        while let Some(message) = input.recv().await {
            match message {
                ProcessInput::Stdin(data) => {
                    if let Some(pipe) = &mut stdin
                        && pipe.write_all(&data).await.is_err()
                    {
                        stdin = None;
                    }
                }
                ProcessInput::StdinEof => stdin = None,
                ProcessInput::Resize { rows, cols } => {
                    let (rows, columns) = (clamp(rows), clamp(cols));
                    _ = events.send(Event::Resize { rows, columns }).await;
                }
                ProcessInput::Signal(number) => _ = events.send(Event::Signal(number)).await,
            }
        }
        // The client is gone.
        cancel.cancel();
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = outputs => {}
        () = inputs => {}
    }
}

fn clamp(size: u32) -> u16 {
    u16::try_from(size).unwrap_or(u16::MAX)
}

async fn read(
    mut pipe: tokio::net::unix::pipe::Receiver,
    fd: u32,
    out: Option<&mpsc::Sender<ProcessEvent>>,
) {
    let mut buffer = bytes::BytesMut::with_capacity(CHUNK);
    loop {
        match pipe.read_buf(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {
                let data = buffer.split().freeze();
                if let Some(out) = out
                    && out.send(ProcessEvent::Output { fd, data }).await.is_err()
                {
                    return;
                }
            }
        }
        buffer.reserve(CHUNK);
    }
}
