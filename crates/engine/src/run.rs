//! Containers that people run from images: `rbuildctl run`.
//!
//! A container has a writable layer over its image, its own network namespace (unless asked
//! otherwise) and published ports. Its output goes to a file that any number of readers follow.
//! Containers end with the daemon. Invariant: a container that ended holds no process, mount or
//! port; its log and its writable layer stay until it is removed.

mod container;
mod exec;
mod files;
mod health;
mod image;
mod output;
mod relay;
mod settle;
mod volumes;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    os::fd::{AsRawFd as _, OwnedFd},
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};

use base::Platform;
use executor::{Event, ExecError, Hooks, Io, Network, Root, Spec, net::PortProxy};
use frontend_api::{Code, FrontendError};
use proto::rbuild::v1 as wire;
use snapshot::Tree;
use store::NewRecord;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

pub use container::{Container, Exit, Phase};
pub use exec::Exec;
pub use files::PathInfo;
pub use image::LocalImage;
pub use output::{OutputReader, Piece};
pub use volumes::{Volume, Volumes};

use self::{
    container::{Kept, Live},
    files::Found,
    output::Output,
    relay::{Sink, relay},
    settle::Settled,
};
use crate::{Engine, failure};

/// Signal sent to stop a container whose image names none.
const STOP_SIGNAL: i32 = 15;
/// Signal that cannot be ignored.
const KILL: i32 = 9;
/// Time between the stop signal and [`KILL`] unless somebody says otherwise.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// A container to be made.
pub struct NewContainer {
    /// As it was asked for.
    pub request: wire::RunRequest,
    /// What the image's name leads to.
    pub image: oci::Descriptor,
    /// Platform of the image.
    pub platform: Platform,
}

/// A published port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    /// Address on the host.
    pub host: SocketAddr,
    /// Port in the container.
    pub container: u16,
    /// For datagrams, not for connections.
    pub udp: bool,
}

impl Port {
    /// Checks a port as it was asked for; an empty address is all of IPv4.
    pub fn from_wire(port: &wire::Port) -> Result<Self, FrontendError> {
        let bad = |what: String| FrontendError::with_code(Code::InvalidArgument, what);
        let udp = match port.protocol.as_str() {
            "" | "tcp" => false,
            "udp" => true,
            other => {
                return Err(bad(format!("{other} ports cannot be published: use tcp or udp")));
            }
        };
        let ip: IpAddr = match port.host_ip.as_str() {
            "" => Ipv4Addr::UNSPECIFIED.into(),
            text => text
                .parse()
                .map_err(|_| bad(format!("{text} is not an IP address to publish on")))?,
        };
        let number =
            |number: u32| u16::try_from(number).map_err(|_| bad(format!("invalid port: {number}")));
        let container = number(port.container_port)?;
        if container == 0 {
            return Err(bad("invalid port: 0".into()));
        }
        Ok(Self { host: SocketAddr::new(ip, number(port.host_port)?), container, udp })
    }

    /// As clients see it.
    pub fn to_wire(&self) -> wire::Port {
        wire::Port {
            host_ip: self.host.ip().to_string(),
            host_port: self.host.port().into(),
            container_port: self.container.into(),
            protocol: if self.udp { "udp" } else { "tcp" }.into(),
        }
    }

    /// Whether it is free now.
    fn probe(&self) -> io::Result<()> {
        match self.udp {
            true => std::net::UdpSocket::bind(self.host).map(drop),
            false => std::net::TcpListener::bind(self.host).map(drop),
        }
    }
}

/// Why a process did not start.
#[derive(Debug)]
pub struct StartFailure {
    /// 126 or 127 if it is the program's fault.
    pub code: Option<i32>,
    /// What happened.
    pub error: FrontendError,
}

impl StartFailure {
    fn of(exit: &Exit, doing: &str) -> Self {
        let code = Some(exit.code).filter(|code| matches!(code, 126 | 127));
        let kind = if code == Some(127) { Code::NotFound } else { Code::Unknown };
        let text = format!("{doing}: unable to start container process: {}", exit.error);
        Self { code, error: FrontendError::with_code(kind, text) }
    }
}

impl From<FrontendError> for StartFailure {
    fn from(error: FrontendError) -> Self {
        Self { code: None, error }
    }
}

/// All containers of the daemon.
pub struct Runner {
    engine: Arc<Engine>,
    folder: PathBuf,
    volumes: Volumes,
    containers: Mutex<BTreeMap<String, Arc<Container>>>,
}

impl Runner {
    /// A runner whose logs go to `folder`.
    pub fn new(engine: Arc<Engine>, folder: PathBuf) -> Arc<Self> {
        let volumes = Volumes::new(engine.store().root());
        Arc::new(Self { engine, folder, volumes, containers: Mutex::default() })
    }

    fn containers(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Container>>> {
        self.containers.lock().expect("no panic while holding containers")
    }

    /// Named volumes.
    pub fn volumes(&self) -> &Volumes {
        &self.volumes
    }

    /// Containers that mount a volume.
    pub fn users_of_volume(&self, name: &str) -> Vec<String> {
        let containers = self.containers();
        let using = containers.values().filter(|container| {
            container.mounts().any(|mount| mount.kind == "volume" && mount.name == name)
        });
        using.map(|container| container.id.clone()).collect()
    }

    /// Whether any container runs.
    pub fn is_busy(&self) -> bool {
        self.containers().values().any(|container| container.is_running())
    }

    /// All containers, or only those that run; newest first.
    pub fn list(&self, all: bool) -> Vec<Arc<Container>> {
        let shown = |container: &&Arc<Container>| all || container.is_running();
        let mut list: Vec<_> = self.containers().values().filter(shown).cloned().collect();
        list.sort_by_key(|container| std::cmp::Reverse(container.created));
        list
    }

    /// By id, name, or unique prefix of an id.
    pub fn find(&self, wanted: &str) -> Result<Arc<Container>, FrontendError> {
        let containers = self.containers();
        if let Some(container) = containers.get(wanted) {
            return Ok(container.clone());
        }
        let name = wanted.strip_prefix('/').unwrap_or(wanted);
        if let Some(container) = containers.values().find(|container| container.name() == name) {
            return Ok(container.clone());
        }
        let mut matching = containers.values().filter(|container| container.id.starts_with(wanted));
        match (matching.next(), matching.next()) {
            (Some(container), None) if !wanted.is_empty() => Ok(container.clone()),
            (Some(_), Some(_)) => Err(FrontendError::with_code(
                Code::InvalidArgument,
                format!("multiple IDs found with provided prefix: {wanted}"),
            )),
            _ => Err(FrontendError::with_code(
                Code::NotFound,
                format!("No such container: {wanted}"),
            )),
        }
    }

    /// Ends a container: its stop signal, then KILL after `timeout`. Returns when it has ended.
    pub async fn stop(
        &self,
        container: &Container,
        signal: Option<i32>,
        timeout: Option<Duration>,
    ) {
        if !container.is_running() {
            return;
        }
        let own = container.request.stop_timeout_s.map(|s| Duration::from_secs(s.into()));
        let timeout = timeout.or(own).unwrap_or(STOP_TIMEOUT);
        let signal = signal.unwrap_or(container.stop_signal);
        container.event(Event::Signal(signal)).await;
        if !container.ends_within(timeout).await {
            container.event(Event::Signal(KILL)).await;
            if !container.ends_within(Duration::from_secs(5)).await {
                container.cancel();
                container.wait().await;
            }
        }
    }

    /// Forgets a container that has ended; with `force` ends it first. Its volumes without a name
    /// stay unless `with_volumes`.
    pub async fn remove(
        &self,
        container: &Arc<Container>,
        force: bool,
        with_volumes: bool,
    ) -> Result<(), FrontendError> {
        if container.is_running() {
            if !force {
                return Err(FrontendError::with_code(
                    Code::FailedPrecondition,
                    format!(
                        "cannot remove container \"/{}\": container is running: stop the container \
                         before removing or force remove",
                        container.name()
                    ),
                ));
            }
            self.stop(container, Some(KILL), Some(Duration::from_secs(5))).await;
        }
        self.forget(container, with_volumes);
        Ok(())
    }

    /// Lets go of everything a container kept.
    fn forget(&self, container: &Container, with_volumes: bool) {
        container.removed.store(true, Ordering::Relaxed);
        container.kept.lock().expect("no panic while holding a layer").take();
        self.containers().remove(&container.id);
        if !with_volumes {
            return;
        }
        for name in &container.settled.anonymous {
            if self.users_of_volume(name).is_empty()
                && let Err(error) = self.volumes.remove(name)
            {
                tracing::warn!(%error, name, "cannot remove a container's volume");
            }
        }
    }

    /// Gives a container another name.
    pub fn rename(&self, container: &Container, name: &str) -> Result<(), FrontendError> {
        check_name(name)?;
        let containers = self.containers();
        check_free(&containers, name)?;
        *container.name.lock().expect("no panic while holding a name") = name.to_owned();
        Ok(())
    }

    /// Ends all containers.
    pub async fn shut_down(&self) {
        let all = self.list(false);
        let limit = Some(Duration::from_secs(3));
        futures_util::future::join_all(all.iter().map(|one| self.stop(one, None, limit))).await;
    }

    /// Makes a container without starting it.
    pub async fn create(&self, new: NewContainer) -> Result<Arc<Container>, FrontendError> {
        let NewContainer { request, image, platform } = new;
        let id = base::id::random_hex(32);
        let name = match request.name.as_str() {
            "" => format!("{}_{}", adjective(&id), &id[..6]),
            name => name.trim_start_matches('/').to_owned(),
        };
        check_name(&name)?;
        check_free(&self.containers(), &name)?;
        let local = LocalImage::read(self.engine.store(), &request.image, &image, &platform)?;
        let stop_signal = [&request.stop_signal, &local.config.config.stop_signal];
        let stop_signal = match stop_signal.into_iter().find(|text| !text.is_empty()) {
            None => STOP_SIGNAL,
            Some(text) => signal(text).ok_or_else(|| {
                FrontendError::with_code(Code::InvalidArgument, format!("invalid signal: {text}"))
            })?,
        };
        let config = &local.config;
        let settled = Settled::new(&self.engine, &self.volumes, &id, &request, config, &platform)?;
        let tree = local.unpack(&self.engine, &request.image, store::no_progress()).await?;
        let written = self
            .engine
            .store()
            .create(NewRecord {
                parent: tree.as_ref(),
                description: format!("container {name} of {}", request.image),
                ..NewRecord::default()
            })
            .map_err(|error| failure::internal("make a container's layer", error))?;
        let fresh = settled.fresh.clone();
        let output = Output::create(&self.folder, &id)
            .map_err(|error| failure::internal("open a container's log", error))?;
        let container = Arc::new(Container {
            id: id.clone(),
            image: request.image.clone(),
            image_id: local.manifest.config.digest.to_string(),
            request,
            created: SystemTime::now(),
            platform,
            config: local.config,
            name: Mutex::new(name.clone()),
            settled,
            phase: watch::Sender::new(Phase::Created),
            output,
            live: Mutex::default(),
            health: Mutex::default(),
            starting: tokio::sync::Mutex::default(),
            kept: Mutex::new(Some(Kept { written, _image: tree })),
            stop_signal,
            removed: AtomicBool::new(false),
        });
        for (volume, target) in fresh {
            self.fill_volume(&container, &volume, &target).await?;
        }
        let mut containers = self.containers();
        check_free(&containers, &name)?;
        containers.insert(id, container.clone());
        Ok(container)
    }

    /// Copies what the image has at `target` into an empty volume.
    async fn fill_volume(
        &self,
        container: &Container,
        volume: &str,
        target: &str,
    ) -> Result<(), FrontendError> {
        let failed = |error: String| failure::internal(&format!("fill volume {volume}"), error);
        let Some(volume) = self.volumes.get(volume) else { return Ok(()) };
        let Some(tree) = container.tree() else { return Ok(()) };
        let tree = tree.map_err(|error| failed(error.to_string()))?;
        let target = target.to_owned();
        let filling = tokio::task::spawn_blocking(move || -> Result<(), String> {
            match Found::at(tree.fd(), &target, true) {
                Ok(found) if found.info().folder => {
                    found.dress(&volume.path).map_err(|error| error.to_string())?;
                }
                _ => return Ok(()),
            }
            let (reader, writer) = io::pipe().map_err(|error| error.to_string())?;
            let packing = std::thread::spawn(move || {
                let mut writer = io::BufWriter::with_capacity(256 << 10, writer);
                files::pack_content(tree.fd(), &target, &mut writer)
            });
            let into = Tree::of_folder(&volume.path, true).map_err(|error| error.to_string())?;
            let mut reader = io::BufReader::with_capacity(256 << 10, reader);
            let unpacked = files::unpack(&into, "/", &mut reader);
            let packed = packing.join().map_err(|_| "packing panicked".to_owned())?;
            unpacked.map_err(|error| error.to_string())?;
            packed.map_err(|error| error.to_string())
        });
        filling.await.map_err(|error| failed(error.to_string()))?.map_err(failed)
    }

    /// Starts a container that does not run; returns when its process runs.
    pub async fn start(self: &Arc<Self>, container: &Arc<Container>) -> Result<(), StartFailure> {
        let _one = container.starting.lock().await;
        if container.is_running() {
            return Ok(());
        }
        for port in &container.settled.ports {
            // Better now than after the process has started.
            port.probe().map_err(|error| port_error(port.host, &error))?;
        }
        let tree = container.tree().ok_or_else(|| {
            let text = format!("container {} was removed", container.name());
            FrontendError::with_code(Code::NotFound, text)
        })?;
        let tree = tree.map_err(|error| failure::internal("mount a container's tree", error))?;
        let room = self.engine.store().reserve(0).await;
        let room = room.map_err(|error| failure::internal("start a container", error))?;
        let spec = room.scope(async { self.spec(container, &tree) }).await?;
        let (io, pipes) =
            Io::piped().map_err(|error| failure::internal("make pipes for a container", error))?;
        let (events, events_out) = mpsc::channel(16);
        let (stdin, stdin_out) = mpsc::channel(16);
        let (started, has_started) = oneshot::channel();
        let cancel = CancellationToken::new();
        let hooks =
            Hooks { started: Some(started), events: Some(events_out), cancel: cancel.clone() };
        let before = container.phase();
        let live = Live { events, stdin, cancel, ports: Vec::new(), endpoint: None, tree };
        *container.live.lock().expect("no panic while holding a run") = Some(live);
        container.output.open();
        let executor = self.engine.machine().executor.clone();
        let (this, running) = (self.clone(), container.clone());
        let (ended_in, has_ended) = oneshot::channel();
        tokio::spawn(async move {
            let output = running.output.clone();
            let (keep_input, tty) = (running.request.stdin, running.request.tty);
            let relayed = relay(pipes, stdin_out, keep_input, tty, Sink::Log(output));
            let (exit, ()) = tokio::join!(executor.run(spec, io, hooks), relayed);
            running.live.lock().expect("no panic while holding a run").take();
            let mut exit = ended(exit);
            if let Some(full) = room.is_withdrawn() {
                exit = Exit { code: 137, error: full.to_string(), ..exit };
            }
            drop(room);
            let mut was_running = false;
            running.phase.send_if_modified(|phase| {
                let Phase::Running { since, .. } = *phase else { return false };
                was_running = true;
                *phase = Phase::Ended { since, exit: exit.clone() };
                true
            });
            running.output.close();
            if was_running && running.request.remove {
                this.forget(&running, true);
            }
            _ = ended_in.send(exit);
        });
        let Ok(started) = has_started.await else {
            container.phase.send_replace(before);
            let exit = has_ended.await;
            let exit = exit.map_err(|_| failure::internal("start a container", "it vanished"))?;
            let doing = "failed to create task for container: OCI runtime create failed";
            return Err(StartFailure::of(&exit, doing));
        };
        let since = SystemTime::now();
        let pid = pid_of(&started.pidfd);
        if container.with_live(|_| ()).is_some() {
            container.phase.send_replace(Phase::Running { since, pid });
        }
        // It may have been quicker than this.
        if container.with_live(|_| ()).is_none() {
            let exit = has_ended.await;
            let exit = exit.map_err(|_| failure::internal("run a container", "it vanished"))?;
            let mut was_running = false;
            container.phase.send_if_modified(|phase| {
                was_running = !matches!(phase, Phase::Ended { .. });
                *phase = Phase::Ended { since, exit };
                true
            });
            if was_running && container.request.remove {
                self.forget(container, true);
            }
            return Ok(());
        }
        if let Err(error) = self.publish(container).await {
            container.cancel();
            container.wait().await;
            return Err(error.into());
        }
        if let Some(check) = container.settled.check.clone() {
            tokio::spawn(health::watch(self.clone(), container.clone(), check));
        }
        Ok(())
    }

    /// Learns the address of a network of its own, and publishes its ports.
    async fn publish(&self, container: &Container) -> Result<(), FrontendError> {
        let ports = &container.settled.ports;
        if container.settled.network != Network::Isolated {
            return Ok(());
        }
        let network = match self.engine.machine().executor.network(&container.id) {
            Ok(network) => network,
            // It may be over already.
            Err(_) if ports.is_empty() => return Ok(()),
            Err(error) => return Err(failure::internal("enter a container's network", error)),
        };
        if let Ok(endpoint) = network.endpoint().await
            && let Some(live) =
                container.live.lock().expect("no panic while holding a run").as_mut()
        {
            live.endpoint = endpoint;
        }
        for port in ports {
            let (host, network) = (port.host, network.clone());
            let proxy = match port.udp {
                false => PortProxy::start(host, network, port.container).await,
                true => PortProxy::start_udp(host, network, port.container).await,
            };
            let proxy = proxy.map_err(|error| {
                FrontendError::with_code(Code::Unavailable, format!("publish port: {error}"))
            })?;
            let mut live = container.live.lock().expect("no panic while holding a run");
            if let Some(live) = live.as_mut() {
                live.ports.push(proxy);
            }
        }
        Ok(())
    }

    fn spec(&self, container: &Container, tree: &Tree) -> Result<Spec, FrontendError> {
        let settled = &container.settled;
        let fd: OwnedFd = tree
            .fd()
            .try_clone_to_owned()
            .map_err(|error| failure::internal("duplicate a descriptor", error))?;
        let root = Root { tree: Arc::new(fd), readonly: settled.readonly };
        let mut spec = Spec::new(container.id.clone(), root, settled.process.clone());
        spec.mounts = settled.mounts.iter().map(|mounted| mounted.mount.clone()).collect();
        spec.hostname.clone_from(&settled.hostname);
        spec.network = settled.network;
        spec.security = settled.security;
        spec.capabilities = settled.capabilities;
        spec.resources = settled.resources.clone();
        spec.oom_score_adj = settled.oom_score_adj;
        spec.extra_hosts.clone_from(&settled.extra_hosts);
        spec.dns = settled.dns.clone();
        spec.shm_size = settled.shm_size;
        spec.emulator.clone_from(&settled.emulator);
        spec.cgroup_parent.clone_from(&self.engine.machine().config.cgroup_parent);
        container.enter_room();
        ops::below_ceiling(self.engine.store(), &mut spec);
        Ok(spec)
    }

    /// The tree in which a container's path lies, and the path in it.
    fn place(&self, container: &Container, path: &str) -> Result<(Tree, String), FrontendError> {
        let path = base::path::absolute(path);
        let failed = |error: String| failure::internal("open a container's files", error);
        let inside = |target: &str| {
            let rest = path.strip_prefix(target)?;
            (rest.is_empty() || rest.starts_with('/')).then(|| rest.to_owned())
        };
        let mounts = container.mounts();
        let mount = mounts
            .filter_map(|mount| Some((mount, inside(&base::path::absolute(&mount.target))?)))
            .max_by_key(|(mount, _)| mount.target.len());
        if let Some((mount, rest)) = mount {
            if mount.kind == "tmpfs" {
                return Err(FrontendError::with_code(
                    Code::InvalidArgument,
                    format!(
                        "{path} is in memory ({}): copy with exec and tar instead",
                        mount.target
                    ),
                ));
            }
            let source = PathBuf::from(&mount.source);
            if source.is_dir() {
                let tree = Tree::of_folder(&source, !mount.read_only)
                    .map_err(|error| failed(error.to_string()))?;
                return Ok((tree, format!("/{}", rest.trim_start_matches('/'))));
            }
        }
        let gone = || {
            let text = format!("container {} was removed", container.name());
            FrontendError::with_code(Code::NotFound, text)
        };
        let tree = container.tree().ok_or_else(gone)?;
        Ok((tree.map_err(|error| failed(error.to_string()))?, path))
    }

    /// What is at a path of a container.
    pub fn stat(
        &self,
        container: &Container,
        path: &str,
        follow: bool,
    ) -> Result<(PathInfo, Packer), FrontendError> {
        let (tree, inner) = self.place(container, path)?;
        let missing = |error: io::Error| {
            let code = match error.kind() {
                io::ErrorKind::NotFound => Code::NotFound,
                _ => Code::Unknown,
            };
            FrontendError::with_code(
                code,
                format!(
                    "could not find the file {path} in container {}: {error}",
                    container.name()
                ),
            )
        };
        let found = Found::at(tree.fd(), &inner, follow).map_err(missing)?;
        Ok((found.info(), Packer { found, _tree: tree }))
    }

    /// Unpacks a tar into a folder of a container.
    pub fn unpack(
        &self,
        container: &Container,
        path: &str,
        tar: &mut dyn io::Read,
    ) -> Result<(), FrontendError> {
        let (tree, inner) = self.place(container, path)?;
        if container.settled.readonly || !tree.writable() {
            return Err(FrontendError::with_code(
                Code::FailedPrecondition,
                "container rootfs is marked read-only",
            ));
        }
        files::unpack(&tree, &inner, tar).map_err(|error| {
            let text = format!("copy to {path} of container {}: {error}", container.name());
            FrontendError::with_code(Code::Unknown, text)
        })
    }
}

/// Something found in a container, ready to be packed.
pub struct Packer {
    found: Found,
    _tree: Tree,
}

impl Packer {
    /// Writes it as a tar.
    pub fn pack(&self, out: &mut dyn io::Write) -> io::Result<()> {
        self.found.pack(out)
    }
}

fn ended(exit: Result<executor::Exit, ExecError>) -> Exit {
    match exit {
        Ok(exit) => Exit { oom_killed: exit.oom_killed, ..Exit::now(exit.code, String::new()) },
        Err(ExecError::Cancelled) => Exit::now(137, String::new()),
        Err(ExecError::Start { program, reason, code }) => {
            let text = match code {
                127 => format!("exec: \"{program}\": executable file not found in $PATH"),
                _ => format!("exec: \"{program}\": {reason}"),
            };
            Exit::now(code, text)
        }
        Err(error) => Exit::now(125, error.to_string()),
    }
}

fn pid_of(pidfd: &OwnedFd) -> u32 {
    let path = format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd());
    let info = std::fs::read_to_string(path).unwrap_or_default();
    let line = info.lines().find_map(|line| line.strip_prefix("Pid:"));
    line.and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

fn port_error(address: SocketAddr, error: &io::Error) -> FrontendError {
    let text = match error.kind() {
        io::ErrorKind::AddrInUse => {
            format!("Bind for {address} failed: port is already allocated: address already in use")
        }
        _ => format!("publish port: listen on {address}: {error}"),
    };
    FrontendError::with_code(Code::Unavailable, text)
}

fn check_name(name: &str) -> Result<(), FrontendError> {
    let mut bytes = name.bytes();
    let first = bytes.next().is_some_and(|byte| byte.is_ascii_alphanumeric());
    let rest = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
    if first && name.len() > 1 && bytes.all(rest) {
        return Ok(());
    }
    Err(FrontendError::with_code(
        Code::InvalidArgument,
        format!("Invalid container name ({name}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed"),
    ))
}

fn check_free(
    containers: &BTreeMap<String, Arc<Container>>,
    name: &str,
) -> Result<(), FrontendError> {
    match containers.values().find(|container| container.name() == name) {
        None => Ok(()),
        Some(taken) => Err(FrontendError::with_code(
            Code::AlreadyExists,
            format!(
                "Conflict. The container name \"/{name}\" is already in use by container \"{}\". \
                 You have to remove (or rename) that container to be able to reuse that name.",
                taken.id
            ),
        )),
    }
}

/// Number of a signal as images name it: `SIGTERM`, `TERM` or `15`.
pub fn signal(name: &str) -> Option<i32> {
    name.parse()
        .ok()
        .filter(|number| (1..65).contains(number))
        .or_else(|| gateway::signal_number(name))
}

/// A word for a container nobody named.
fn adjective(id: &str) -> &'static str {
    const WORDS: &[&str] = &[
        "able", "brave", "calm", "deft", "eager", "fair", "glad", "keen", "kind", "lively",
        "merry", "neat", "quick", "sharp", "swift", "warm",
    ];
    let digit = id.bytes().last().and_then(|byte| (byte as char).to_digit(16)).unwrap_or(0);
    WORDS[digit as usize % WORDS.len()]
}

/// Ids of the images that containers were made of, by container; those that run are marked.
pub fn images_in_use(runner: &Runner) -> BTreeSet<(String, String, bool)> {
    let all = runner.list(true);
    all.iter().map(|one| (one.image_id.clone(), one.id.clone(), one.is_running())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_and_names() {
        assert_eq!(
            (signal("SIGTERM"), signal("QUIT"), signal("9"), signal("NO")),
            (Some(15), Some(3), Some(9), None)
        );
        assert!(check_name("web-1").is_ok());
        for bad in ["", "x", "-web", "a b", "a/b"] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
    }
}
