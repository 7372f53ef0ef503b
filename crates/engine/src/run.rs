//! Containers that people run from images: `rbuildctl run`.
//!
//! A container has a writable layer over its image, its own network namespace (unless asked
//! otherwise) and published ports. Its output goes to a file that any number of readers follow.
//! Containers end with the daemon. Invariant: a container that ended holds no process, mount or
//! port; its log stays until it is removed.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Write as _},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    os::unix::fs::FileExt as _,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};

use base::Platform;
use bytes::Bytes;
use executor::{
    Event, ExecError, Hooks, Io, Mount, MountOptions, MountSource, Network, Pipes, Root, Spec,
    net::PortProxy,
};
use frontend_api::{Code, FrontendError};
use llb::pb;
use store::{NewRecord, Ref};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    sync::{mpsc, oneshot, watch},
};
use tokio_util::sync::CancellationToken;

use crate::{Engine, failure};

/// Signal sent to stop a container whose image names none.
const STOP_SIGNAL: i32 = 15;
/// How long the output of a container that is to be forgotten can still be read.
const LINGER: Duration = Duration::from_secs(10);
/// Signal that cannot be ignored.
const KILL: i32 = 9;

/// A container as it was asked for.
#[derive(Debug, Clone, Default)]
pub struct RunRequest {
    /// Image name as the user wrote it.
    pub image: String,
    /// Replaces the image's command when not empty.
    pub args: Vec<String>,
    /// Over the image's environment.
    pub env: Vec<String>,
    /// Ports to publish.
    pub ports: Vec<Port>,
    /// Forget it when it ends.
    pub remove: bool,
    /// Replaces the image's working directory.
    pub workdir: String,
    /// Replaces the image's user.
    pub user: String,
    /// A name besides the id.
    pub name: String,
    /// Replaces the image's entrypoint.
    pub entrypoint: Option<Vec<String>>,
    /// `host`, `none` or empty.
    pub network: String,
    /// On a terminal.
    pub tty: bool,
    /// Keep standard input open.
    pub stdin: bool,
    /// Platform of the image.
    pub platform: Option<Platform>,
    /// Host name; empty is the short id.
    pub hostname: String,
    /// `HOST:CONTAINER[:ro]`.
    pub volumes: Vec<String>,
}

/// A published port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    /// Address on the host.
    pub host: SocketAddr,
    /// Port in the container.
    pub container: u16,
}

/// How a container ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exit {
    /// Exit code.
    pub code: i32,
    /// Why it did not run, if it did not.
    pub error: String,
    /// When.
    pub at: SystemTime,
}

/// A container, running or ended.
pub struct Container {
    /// 64 hex digits.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Image as asked for.
    pub image: String,
    /// What it runs.
    pub command: Vec<String>,
    /// When it was made.
    pub created: SystemTime,
    ports: Mutex<Vec<PortProxy>>,
    published: Vec<u16>,
    exit: watch::Sender<Option<Exit>>,
    output: Arc<Output>,
    events: mpsc::Sender<Event>,
    stdin: mpsc::Sender<Option<Bytes>>,
    cancel: CancellationToken,
    stop_signal: i32,
    /// It was to be forgotten when it ended, and it has ended.
    forgotten: AtomicBool,
}

impl Container {
    /// The ports published, while it runs.
    pub fn ports(&self) -> Vec<Port> {
        let proxies = self.ports.lock().expect("no panic while holding ports");
        let with = proxies.iter().zip(&self.published);
        with.map(|(proxy, container)| Port { host: proxy.address(), container: *container })
            .collect()
    }

    /// How it ended, if it did.
    pub fn exit(&self) -> Option<Exit> {
        self.exit.borrow().clone()
    }

    /// Waits for the end.
    pub async fn wait(&self) -> Exit {
        let mut exit = self.exit.subscribe();
        match exit.wait_for(Option::is_some).await {
            Ok(exit) => exit.clone().expect("waited for it"),
            Err(_) => Exit {
                code: 255,
                error: "the container was forgotten".into(),
                at: SystemTime::now(),
            },
        }
    }

    /// Its output from the beginning or from now on.
    pub fn output(&self, from_start: bool) -> io::Result<OutputReader> {
        self.output.reader(from_start)
    }

    /// Sends bytes to its standard input, `None` for the end; dropped if it reads none.
    pub async fn write(&self, data: Option<Bytes>) {
        _ = self.stdin.send(data).await;
    }

    /// A signal or a new terminal size.
    pub async fn event(&self, event: Event) {
        _ = self.events.send(event).await;
    }
}

/// All containers of the daemon.
pub struct Runner {
    engine: Arc<Engine>,
    folder: PathBuf,
    containers: Mutex<BTreeMap<String, Arc<Container>>>,
}

impl Runner {
    /// A runner whose logs go to `folder`.
    pub fn new(engine: Arc<Engine>, folder: PathBuf) -> Arc<Self> {
        Arc::new(Self { engine, folder, containers: Mutex::default() })
    }

    fn containers(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Container>>> {
        self.containers.lock().expect("no panic while holding containers")
    }

    /// Whether any container runs.
    pub fn is_busy(&self) -> bool {
        self.containers().values().any(|container| container.exit().is_none())
    }

    /// All containers, or only those that run; newest first.
    pub fn list(&self, all: bool) -> Vec<Arc<Container>> {
        let shown = |container: &&Arc<Container>| {
            container.exit().is_none() || all && !container.forgotten.load(Ordering::Relaxed)
        };
        let mut list: Vec<_> = self.containers().values().filter(shown).cloned().collect();
        list.sort_by_key(|container| std::cmp::Reverse(container.created));
        list
    }

    /// By name, id or unique prefix of an id.
    pub fn find(&self, wanted: &str) -> Result<Arc<Container>, FrontendError> {
        let containers = self.containers();
        if let Some(container) = containers.values().find(|container| container.name == wanted) {
            return Ok(container.clone());
        }
        let mut matching = containers.values().filter(|container| container.id.starts_with(wanted));
        match (matching.next(), matching.next()) {
            (Some(container), None) if !wanted.is_empty() => Ok(container.clone()),
            (Some(_), Some(_)) => Err(FrontendError::with_code(
                Code::InvalidArgument,
                format!("{wanted} is the beginning of several container ids; give more of it"),
            )),
            _ => Err(FrontendError::with_code(
                Code::NotFound,
                format!("no such container: {wanted}"),
            )),
        }
    }

    /// Names of the images that running containers use.
    pub fn images_in_use(&self) -> Vec<String> {
        self.list(false).iter().map(|container| container.image.clone()).collect()
    }

    /// Ends a container: its stop signal, then KILL after `timeout`. Returns when it has ended.
    pub async fn stop(&self, container: &Container, signal: Option<i32>, timeout: Duration) {
        let signal = signal.unwrap_or(container.stop_signal);
        container.event(Event::Signal(signal)).await;
        if tokio::time::timeout(timeout, container.wait()).await.is_err() {
            container.event(Event::Signal(KILL)).await;
            if tokio::time::timeout(Duration::from_secs(5), container.wait()).await.is_err() {
                container.cancel.cancel();
                container.wait().await;
            }
        }
    }

    /// Forgets a container that has ended; with `force` ends it first.
    pub async fn remove(
        &self,
        container: &Arc<Container>,
        force: bool,
    ) -> Result<(), FrontendError> {
        if container.exit().is_none() {
            if !force {
                return Err(FrontendError::with_code(
                    Code::FailedPrecondition,
                    format!(
                        "container {} is running; stop it first or use --force",
                        container.name
                    ),
                ));
            }
            self.stop(container, Some(KILL), Duration::from_secs(5)).await;
        }
        self.containers().remove(&container.id);
        Ok(())
    }

    /// Ends all containers.
    pub async fn shut_down(&self) {
        let all = self.list(false);
        futures_util::future::join_all(
            all.iter().map(|one| self.stop(one, None, Duration::from_secs(3))),
        )
        .await;
    }

    /// Makes and starts a container; returns when its process runs.
    pub async fn run(
        self: &Arc<Self>,
        request: RunRequest,
    ) -> Result<Arc<Container>, FrontendError> {
        let id = base::id::random_hex(32);
        let name = match request.name.as_str() {
            "" => format!("{}_{}", adjective(&id), &id[..6]),
            name => name.to_owned(),
        };
        let taken = self.containers().values().find(|container| container.name == name).cloned();
        if let Some(taken) = taken.filter(|taken| !taken.forgotten.load(Ordering::Relaxed)) {
            return Err(FrontendError::with_code(
                Code::AlreadyExists,
                format!("the container name {name} is in use by container {}", &taken.id[..12]),
            ));
        }
        for port in &request.ports {
            // Better now than after the process has started.
            std::net::TcpListener::bind(port.host)
                .map_err(|error| port_error(port.host, &error))?;
        }
        let (image, config) = self.image(&request).await?;
        let spec = self.spec(&id, &request, &config.config).await?;
        let (spec, written) = self.with_root(spec, image.as_ref(), &request)?;
        let command = spec.process.args.clone();
        let (io, pipes) =
            Io::piped().map_err(|error| failure::internal("make pipes for a container", error))?;
        let (events, events_out) = mpsc::channel(16);
        let (stdin, stdin_out) = mpsc::channel(16);
        let (started, has_started) = oneshot::channel();
        let cancel = CancellationToken::new();
        let output = Output::create(&self.folder, &id)
            .map_err(|error| failure::internal("open a container's log", error))?;
        let container = Arc::new(Container {
            id: id.clone(),
            name,
            image: request.image.clone(),
            command,
            created: SystemTime::now(),
            ports: Mutex::default(),
            published: request.ports.iter().map(|port| port.container).collect(),
            exit: watch::Sender::new(None),
            output: output.clone(),
            events,
            stdin,
            cancel: cancel.clone(),
            stop_signal: signal(&config.config.stop_signal).unwrap_or(STOP_SIGNAL),
            forgotten: AtomicBool::new(false),
        });
        let hooks = Hooks { started: Some(started), events: Some(events_out), cancel };
        let executor = self.engine.machine().executor.clone();
        let (this, running, remove) = (self.clone(), container.clone(), request.remove);
        let keep_input = request.stdin;
        let tty = request.tty;
        self.containers().insert(id.clone(), container.clone());
        tokio::spawn(async move {
            let relayed = relay(pipes, stdin_out, keep_input, tty, &output);
            let (exit, ()) = tokio::join!(executor.run(spec, io, hooks), relayed);
            drop((written, image));
            running.ports.lock().expect("no panic while holding ports").clear();
            output.close();
            running.exit.send_replace(Some(ended(exit)));
            if remove {
                // Whoever started it may still be on the way to its output.
                running.forgotten.store(true, Ordering::Relaxed);
                tokio::time::sleep(LINGER).await;
                this.containers().remove(&running.id);
            }
        });
        if has_started.await.is_err() {
            let exit = container.wait().await;
            self.containers().remove(&id);
            let code = if exit.code == 127 { Code::NotFound } else { Code::Unknown };
            return Err(FrontendError::with_code(
                code,
                format!("container did not start: {}", exit.error),
            ));
        }
        if let Err(error) = self.publish(&container, &request.ports).await {
            container.cancel.cancel();
            container.wait().await;
            self.containers().remove(&id);
            return Err(error);
        }
        Ok(container)
    }

    async fn publish(&self, container: &Container, ports: &[Port]) -> Result<(), FrontendError> {
        if ports.is_empty() {
            return Ok(());
        }
        let network = self.engine.machine().executor.network(&container.id);
        let network =
            network.map_err(|error| failure::internal("enter a container's network", error))?;
        for port in ports {
            let proxy = PortProxy::start(port.host, network.clone(), port.container)
                .await
                .map_err(|error| {
                    FrontendError::with_code(Code::Unavailable, format!("publish port: {error}"))
                })?;
            container.ports.lock().expect("no panic while holding ports").push(proxy);
        }
        Ok(())
    }

    /// The image's tree and config; pulled if the store does not have it.
    async fn image(
        &self,
        request: &RunRequest,
    ) -> Result<(Option<Ref>, oci::ImageConfig), FrontendError> {
        let machine = self.engine.machine();
        let reference = oci::Reference::parse(&request.image)
            .map_err(|error| FrontendError::with_code(Code::InvalidArgument, error.to_string()))?;
        let source = source::SourceRequest {
            op: pb::SourceOp {
                identifier: format!("docker-image://{reference}"),
                attrs: [("image.resolvemode".to_owned(), "local".to_owned())].into(),
            },
            platform: request
                .platform
                .clone()
                .unwrap_or_else(|| self.engine.worker().platforms[0].clone())
                .normalize(),
            group: machine.sessions.group(Vec::<String>::new()),
            memo: Arc::default(),
            progress: source::Progress::silent(),
        };
        let failed = |error: source::SourceError| failure::from_op(&error.into());
        let question = source::MetaRequest {
            source: source.clone(),
            resolve_mode: "local".into(),
            no_config: false,
            git_objects: false,
            http_checksum: None,
        };
        let meta = machine.sources.metadata(question).await.map_err(failed)?;
        let config = meta.image.map(|image| image.config).unwrap_or_default();
        let config: oci::ImageConfig = serde_json::from_slice(&config).map_err(|error| {
            FrontendError::new(format!("config of image {}: {error}", request.image))
        })?;
        let progress = source::Progress::silent();
        let mut instance = machine.sources.resolve(source).await.map_err(failed)?;
        instance.cache_key(0, &progress).await.map_err(failed)?;
        let tree = instance.snapshot(&progress).await.map_err(failed)?;
        if let Some(tree) = &tree {
            self.engine.ensure_local(tree).await?;
        }
        Ok((tree, config))
    }

    async fn spec(
        &self,
        id: &str,
        request: &RunRequest,
        config: &oci::config::RunConfig,
    ) -> Result<Unrooted, FrontendError> {
        let pick = |asked: &str, image: &str| {
            if asked.is_empty() { image.to_owned() } else { asked.to_owned() }
        };
        let mut args = request.entrypoint.clone().unwrap_or_else(|| config.entrypoint.clone());
        if !request.args.is_empty() {
            args.extend(request.args.iter().cloned());
        } else if request.entrypoint.is_none() {
            args.extend(config.cmd.iter().cloned());
        }
        if args.is_empty() {
            return Err(FrontendError::with_code(
                Code::InvalidArgument,
                format!("image {} names no command; give one after the image", request.image),
            ));
        }
        let hostname = pick(&request.hostname, &id[..12]);
        let mut env = vec![format!("HOSTNAME={hostname}")];
        if request.tty {
            env.push("TERM=xterm".into());
        }
        env.extend(config.env.iter().chain(&request.env).cloned());
        executor::env::with_default_path(&mut env);
        let network = match request.network.as_str() {
            "" | "bridge" | "default" => Network::Isolated,
            "host" => Network::Host,
            "none" => Network::None,
            other => {
                return Err(FrontendError::with_code(
                    Code::InvalidArgument,
                    format!("unknown network {other}; use bridge (the default), host or none"),
                ));
            }
        };
        if network != Network::Isolated && !request.ports.is_empty() {
            return Err(FrontendError::with_code(
                Code::InvalidArgument,
                format!("ports cannot be published with --network {}", request.network),
            ));
        }
        let mounts =
            request.volumes.iter().map(|volume| volume_mount(volume)).collect::<Result<_, _>>()?;
        let process = executor::Process {
            args,
            env: executor::env::unique(&env),
            cwd: pick(&request.workdir, &config.working_dir),
            user: pick(&request.user, &config.user),
            rlimits: Vec::new(),
            terminal: request.tty,
        };
        let platform = request.platform.clone().unwrap_or_else(Platform::host);
        let emulator =
            self.engine.machine().emulator(&platform).map_err(|error| failure::from_op(&error))?;
        Ok(Unrooted { id: id.to_owned(), process, mounts, hostname, network, emulator })
    }

    fn with_root(
        &self,
        parts: Unrooted,
        image: Option<&Ref>,
        request: &RunRequest,
    ) -> Result<(Spec, store::MutRef), FrontendError> {
        let failed = |error| failure::internal("make a container's tree", error);
        let description = format!("container of {}", request.image);
        let written = self
            .engine
            .store()
            .create(NewRecord { parent: image, description, ..NewRecord::default() })
            .map_err(failed)?;
        let tree = written.tree().map_err(failed)?;
        let fd = tree.fd().try_clone_to_owned();
        let fd = Arc::new(fd.map_err(|error| failure::internal("duplicate a descriptor", error))?);
        let mut spec = Spec::new(parts.id, Root { tree: fd, readonly: false }, parts.process);
        spec.mounts = parts.mounts;
        spec.hostname = parts.hostname;
        spec.network = parts.network;
        spec.emulator = parts.emulator;
        spec.dns = self.engine.machine().config.dns.clone();
        Ok((spec, written))
    }
}

struct Unrooted {
    id: String,
    process: executor::Process,
    mounts: Vec<Mount>,
    hostname: String,
    network: Network,
    emulator: Option<PathBuf>,
}

fn ended(exit: Result<executor::Exit, ExecError>) -> Exit {
    let at = SystemTime::now();
    match exit {
        Ok(exit) => Exit { code: exit.code, error: String::new(), at },
        Err(ExecError::Cancelled) => Exit { code: 137, error: String::new(), at },
        Err(ExecError::Start { program, reason, code }) => {
            Exit { code, error: format!("{program}: {reason}"), at }
        }
        Err(error) => Exit { code: 125, error: error.to_string(), at },
    }
}

fn port_error(address: SocketAddr, error: &io::Error) -> FrontendError {
    let text = match error.kind() {
        io::ErrorKind::AddrInUse => format!("publish port: address {address} is already in use"),
        _ => format!("publish port: listen on {address}: {error}"),
    };
    FrontendError::with_code(Code::Unavailable, text)
}

/// The host side of a port as the wire has it: an empty address is all of IPv4.
pub fn host_address(ip: &str, port: u32) -> Result<SocketAddr, FrontendError> {
    let bad = |what: String| FrontendError::with_code(Code::InvalidArgument, what);
    let ip: IpAddr = match ip {
        "" => Ipv4Addr::UNSPECIFIED.into(),
        text => {
            text.parse().map_err(|_| bad(format!("{text} is not an IP address to publish on")))?
        }
    };
    let port = u16::try_from(port).map_err(|_| bad(format!("{port} is not a port")))?;
    Ok(SocketAddr::new(ip, port))
}

fn volume_mount(volume: &str) -> Result<Mount, FrontendError> {
    let bad = || {
        FrontendError::with_code(
            Code::InvalidArgument,
            format!(
                "volume {volume:?} is not HOST:CONTAINER[:ro] with absolute paths; named volumes are not supported"
            ),
        )
    };
    let parts: Vec<&str> = volume.split(':').collect();
    let (host, dest, readonly) = match parts.as_slice() {
        [host, dest] | [host, dest, "rw"] => (*host, *dest, false),
        [host, dest, "ro"] => (*host, *dest, true),
        _ => return Err(bad()),
    };
    if !host.starts_with('/') || !dest.starts_with('/') {
        return Err(bad());
    }
    let source = MountSource::HostPath(host.into());
    Ok(Mount { dest: dest.into(), source, readonly, options: MountOptions::default() })
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

async fn relay(
    pipes: Pipes,
    mut input: mpsc::Receiver<Option<Bytes>>,
    keep_input: bool,
    tty: bool,
    output: &Arc<Output>,
) {
    let Pipes { stdin, stdout, stderr } = pipes;
    let outputs = async {
        if tty {
            // A terminal has one output, and the process never gets the second pipe.
            drop(stderr);
            copy_output(stdout, 1, output).await;
        } else {
            tokio::join!(copy_output(stdout, 1, output), copy_output(stderr, 2, output));
        }
    };
    let inputs = async {
        let mut stdin = (keep_input || tty).then_some(stdin);
        while let Some(message) = input.recv().await {
            match (message, &mut stdin) {
                (Some(data), Some(pipe)) => {
                    if pipe.write_all(&data).await.is_err() {
                        stdin = None;
                    }
                }
                (None, _) => stdin = None,
                (Some(_), None) => {}
            }
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = outputs => {}
        () = inputs => {}
    }
}

async fn copy_output(mut pipe: tokio::net::unix::pipe::Receiver, stream: u8, output: &Output) {
    let mut buffer = vec![0; 32 << 10];
    loop {
        match pipe.read(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(length) => output.append(stream, &buffer[..length]),
        }
    }
}

/// A container's output on disk: frames of stream number, length, bytes.
struct Output {
    path: PathBuf,
    file: Mutex<File>,
    written: watch::Sender<(u64, bool)>,
}

impl Output {
    fn create(folder: &std::path::Path, id: &str) -> io::Result<Arc<Self>> {
        let path = folder.join(format!("{id}.log"));
        let file = File::options().create_new(true).append(true).open(&path)?;
        Ok(Arc::new(Self { path, file: Mutex::new(file), written: watch::Sender::new((0, false)) }))
    }

    fn append(&self, stream: u8, data: &[u8]) {
        let mut file = self.file.lock().expect("no panic while holding a log");
        let mut frame = Vec::with_capacity(data.len() + 5);
        frame.push(stream);
        frame.extend_from_slice(&(data.len() as u32).to_le_bytes());
        frame.extend_from_slice(data);
        let before = self.written.borrow().0;
        match file.write_all(&frame) {
            Ok(()) => self.written.send_modify(|written| written.0 += frame.len() as u64),
            Err(error) => {
                tracing::error!(%error, path = %self.path.display(), "cannot write a container's log");
                _ = file.set_len(before);
            }
        }
    }

    fn close(&self) {
        self.written.send_modify(|written| written.1 = true);
    }

    fn reader(&self, from_start: bool) -> io::Result<OutputReader> {
        let written = self.written.subscribe();
        let offset = if from_start { 0 } else { written.borrow().0 };
        Ok(OutputReader { file: File::open(&self.path)?, offset, written })
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        _ = std::fs::remove_file(&self.path);
    }
}

/// Follows a container's output.
pub struct OutputReader {
    file: File,
    offset: u64,
    written: watch::Receiver<(u64, bool)>,
}

impl OutputReader {
    /// The next piece as (1 or 2, bytes); `None` at the end. Without `follow`, the end is what has
    /// been written so far.
    pub async fn next(&mut self, follow: bool) -> io::Result<Option<(u8, Bytes)>> {
        loop {
            let (end, closed) = *self.written.borrow_and_update();
            if self.offset < end {
                break;
            }
            if closed || !follow || self.written.changed().await.is_err() {
                return Ok(None);
            }
        }
        let mut header = [0; 5];
        self.file.read_exact_at(&mut header, self.offset)?;
        let length = u32::from_le_bytes([header[1], header[2], header[3], header[4]]);
        let mut data = vec![0; length as usize];
        self.file.read_exact_at(&mut data, self.offset + 5)?;
        self.offset += 5 + u64::from(length);
        Ok(Some((header[0], data.into())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn output_is_followed_to_its_end() {
        let folder = tempfile::tempdir().unwrap();
        let output = Output::create(folder.path(), "x").unwrap();
        output.append(1, b"one");
        let (mut all, mut late) = (output.reader(true).unwrap(), output.reader(false).unwrap());
        output.append(2, b"two");
        assert_eq!(late.next(false).await.unwrap(), Some((2, Bytes::from_static(b"two"))));
        output.close();
        let mut seen = Vec::new();
        while let Some(piece) = all.next(true).await.unwrap() {
            seen.push(piece);
        }
        assert_eq!(seen, [(1, Bytes::from_static(b"one")), (2, Bytes::from_static(b"two"))]);
        assert_eq!(late.next(true).await.unwrap(), None);
    }

    #[test]
    fn signals_and_volumes() {
        assert_eq!(
            (signal("SIGTERM"), signal("QUIT"), signal("9"), signal("NO")),
            (Some(15), Some(3), Some(9), None)
        );
        assert!(volume_mount("/a:/b:ro").unwrap().readonly);
        assert!(volume_mount("name:/b").is_err());
    }
}
