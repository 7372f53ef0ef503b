//! The native driver: prepares on the daemon's side, lets the launcher do the rest, cleans up.
//!
//! A run is: note missing mount points, look up the user, make the working directory, clone the
//! trees, make control groups if asked for; send the plan; follow the process; read the groups,
//! remove them and the mount points. What blocks happens on a thread for blocking work.

use std::{
    collections::HashMap,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    sync::{Arc, Mutex},
};

use async_trait::async_trait;

use self::addresses::Addresses;
use crate::{
    ExecError, Executor, Exit, Freezer, Hooks, Io, Network, Process, Security, Spec,
    cgroup::{Policy, Request, StepGroup},
    launcher::Launcher,
    net::{NetNs, Outlet},
    rootfs::{self, Kind, New, Stubs},
    supervise::{self, Asked},
    sys, user,
    wire::{Command, Confinement, Place},
};

mod addresses;
pub(crate) mod plan;

pub(crate) use addresses::Address;
pub use addresses::{Subnet, SubnetError};

/// Settings of the native driver.
#[derive(Debug, Clone, Default)]
pub struct NativeConfig {
    /// Parent of control groups of specs that name none.
    pub default_cgroup_parent: Option<String>,
    /// Make a control group for every container, even when it has no limits, for exact accounting.
    pub always_cgroup: bool,
    /// Connects containers with [`Network::Isolated`](crate::Network) to the host, with addresses
    /// from this range, and lets them out under the host's address. Without it, or when the host
    /// has no tools for it, they have nothing but a loopback interface.
    pub subnet: Option<Subnet>,
}

/// Runs containers with our own launcher.
#[derive(Debug, Clone)]
pub struct Native {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    launcher: Launcher,
    config: NativeConfig,
    addresses: Option<Arc<Addresses>>,
    running: Mutex<HashMap<String, Option<Running>>>,
}

/// What a second process in a container needs to know.
#[derive(Debug)]
struct Running {
    pidfd: Arc<OwnedFd>,
    root: Arc<OwnedFd>,
    confinement: Confinement,
    emulator: bool,
    into: Option<OwnedFd>,
    join: Vec<OwnedFd>,
}

/// A name that is taken as long as this lives.
struct Name {
    shared: Arc<Shared>,
    id: String,
}

impl Drop for Name {
    fn drop(&mut self) {
        self.shared.running().remove(&self.id);
    }
}

impl Shared {
    fn running(&self) -> std::sync::MutexGuard<'_, HashMap<String, Option<Running>>> {
        self.running.lock().expect("no panic while the lock is held")
    }

    fn take_name(self: &Arc<Self>, id: &str) -> Result<Name, ExecError> {
        check_name(id)?;
        let mut running = self.running();
        if running.contains_key(id) {
            return Err(ExecError::AlreadyRunning(id.to_owned()));
        }
        running.insert(id.to_owned(), None);
        Ok(Name { shared: self.clone(), id: id.to_owned() })
    }
}

/// Names become names of folders.
pub(crate) fn check_name(id: &str) -> Result<(), ExecError> {
    let valid = |byte: u8| byte.is_ascii_alphanumeric() || b"_+-.".contains(&byte);
    if id.is_empty() || id.starts_with('.') || !id.bytes().all(valid) {
        return Err(ExecError::Invalid(format!("`{id}` is no name for a container")));
    }
    Ok(())
}

/// Tells a freezer that its container is gone.
pub(crate) struct Ends(pub Freezer);

impl Drop for Ends {
    fn drop(&mut self) {
        self.0.ended();
    }
}

/// What is to be undone after a run, and what was asked.
struct Prepared {
    asked: Asked,
    running: Running,
    after: After,
}

struct After {
    root: Arc<OwnedFd>,
    stubs: Stubs,
    group: StepGroup,
    oom_kills: u64,
    /// Kept as long as the container runs.
    _address: Option<Address>,
    /// The container shares a process namespace, so that its first process does not end the others.
    kill_group: bool,
}

impl Native {
    /// A driver that uses this launcher.
    pub fn new(launcher: Launcher, config: NativeConfig) -> Self {
        let addresses = config.subnet.map(|subnet| Arc::new(Addresses::new(subnet, somewhere())));
        let shared = Shared { launcher, config, addresses, running: Mutex::default() };
        Self { shared: Arc::new(shared) }
    }
}

impl Shared {
    fn prepare(&self, spec: Spec, io: Io) -> Result<Prepared, ExecError> {
        let hello =
            self.launcher.hello().map_err(|error| ExecError::setup("start the launcher", error))?;
        let layout = &hello.cgroups;
        let root = spec.root.tree.clone();
        let stubs = note_stubs(&spec);
        let user = user::find(&root, &spec.process.user)?;
        make_cwd(&root, &spec.process.cwd, &user)?;
        let group = self.make_group(&spec, layout)?;
        if let Some(freezer) = &spec.freezer {
            freezer.attach(group.freezer());
        }
        let mut fds = plan::Fds::default();
        let confinement = plan::confinement(&spec, layout);
        let emulator = spec.emulator.is_some();
        let address = self.address(&spec)?;
        let link = address.as_ref().map(Address::link);
        let container = plan::container(&spec, layout, &group, link, &mut fds)?;
        let (program, terminal) = plan::program(&spec.process, user, emulator, io, &mut fds)?;
        let setup = |error| ExecError::setup("keep control groups", error);
        let (into, join) = group.clone_join().map_err(setup)?;
        let mut joined = Vec::new();
        for fd in &join {
            joined.push(fds.add(fd.try_clone().map_err(setup)?));
        }
        let plan = plan::plan(program, confinement.clone(), joined, Place::New(container));
        let command = Command::Run { cgroup: into.is_some(), share_pids: spec.no_process_sandbox };
        let extra: Vec<BorrowedFd<'_>> = into.iter().map(|fd| fd.as_fd()).collect();
        let oom_kills = oom_kills();
        let mut asked = self.launcher.ask(command, &plan, &fds.0, &extra).map_err(ask)?;
        asked.terminal = terminal;
        // Replaced by the real one before anybody can see it.
        let pidfd = Arc::new(sys::memfd("none", b"").map_err(setup)?);
        let running = Running { pidfd, root: root.clone(), confinement, emulator, into, join };
        let kill_group = spec.no_process_sandbox;
        Ok(Prepared {
            asked,
            running,
            after: After { root, stubs, group, oom_kills, _address: address, kill_group },
        })
    }

    /// An address for a container that wants one and can have one.
    fn address(&self, spec: &Spec) -> Result<Option<Address>, ExecError> {
        match spec.namespace.is_none() && spec.network == Network::Isolated {
            true => self.take_address(),
            false => Ok(None),
        }
    }

    /// An address with a way out, if there can be one.
    fn take_address(&self) -> Result<Option<Address>, ExecError> {
        let Some(pool) = &self.addresses else { return Ok(None) };
        if let Err(reason) = self.launcher.start_nat(&pool.subnet().to_string()) {
            tracing::warn!(reason, "containers with their own network have no way out");
            return Ok(None);
        }
        let address = pool.take().ok_or_else(|| {
            ExecError::Invalid(format!("all addresses of {} are in use", pool.subnet()))
        })?;
        Ok(Some(address))
    }

    fn make_group(
        &self,
        spec: &Spec,
        layout: &crate::cgroup::Layout,
    ) -> Result<StepGroup, ExecError> {
        let parent = match spec.cgroup_parent.as_str() {
            "" => self.config.default_cgroup_parent.as_deref().unwrap_or(""),
            parent => parent,
        };
        let insecure = spec.security == Security::Insecure;
        let request = Request {
            id: &spec.id,
            parent,
            resources: &spec.resources,
            policy: Policy { all: insecure, devices: plan::devices(spec) },
            always: self.config.always_cgroup || spec.no_process_sandbox,
            freezable: spec.freezer.is_some(),
        };
        StepGroup::create(layout, &request, |folder| self.launcher.announce_group(folder))
            .map_err(|error| ExecError::setup("make control groups", error))
    }
}

/// A number that other daemons of this machine are unlikely to have too.
fn somewhere() -> u32 {
    u32::from_str_radix(&base::id::random_hex(3), 16).unwrap_or_default()
}

fn ask(error: std::io::Error) -> ExecError {
    ExecError::setup("ask the launcher", error)
}

/// Notes the mount points to be removed afterwards.
pub(crate) fn note_stubs(spec: &Spec) -> Stubs {
    let own = spec.mounts.iter().map(|mount| mount.dest.as_str());
    Stubs::note(
        spec.root.tree.as_fd(),
        ["/etc/resolv.conf", "/etc/hosts"].into_iter().chain(own),
        spec.remove_mount_stubs_recursive,
    )
}

/// Makes the working directory in the root tree, owned by the user.
pub(crate) fn make_cwd(root: &OwnedFd, cwd: &str, user: &user::User) -> Result<(), ExecError> {
    let cwd = base::path::absolute(cwd);
    let owner = Some((user.uid, user.gid));
    rootfs::ensure(root.as_fd(), &cwd, New { kind: Kind::Folder, owner, keep_times: false })
        .map(drop)
        .map_err(|error| ExecError::setup(format!("make working directory {cwd}"), error))
}

impl After {
    /// Completes what is known of the exit, and leaves nothing behind.
    fn finish(self, mut result: Result<Exit, ExecError>) -> Result<Exit, ExecError> {
        if self.kill_group {
            self.group.kill();
        }
        if let Ok(exit) = &mut result {
            exit.oom_killed = match self.group.oom_killed() {
                Some(killed) => killed,
                // Without a group of its own: somebody was killed for memory meanwhile, and we
                // look like it.
                None => exit.code == 128 + libc::SIGKILL && oom_kills() > self.oom_kills,
            };
            self.group.account(&mut exit.usage);
        }
        drop(self.group);
        self.stubs.clear(self.root.as_fd());
        result
    }
}

/// How often the kernel has killed a process for want of memory.
fn oom_kills() -> u64 {
    let text = std::fs::read_to_string("/proc/vmstat").unwrap_or_default();
    let count = text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.parse().ok());
    count.unwrap_or(0)
}

pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ExecError> + Send + 'static,
) -> Result<T, ExecError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(ExecError::setup("prepare", std::io::Error::other(error))),
    }
}

#[async_trait]
impl Executor for Native {
    async fn run(&self, spec: Spec, io: Io, hooks: Hooks) -> Result<Exit, ExecError> {
        let name = self.shared.take_name(&spec.id)?;
        if hooks.cancel.is_cancelled() {
            return Err(ExecError::Cancelled);
        }
        let shared = self.shared.clone();
        let freezer = spec.freezer.clone();
        let _end = freezer.clone().map(Ends);
        let Prepared { asked, mut running, after } =
            blocking(move || shared.prepare(spec, io)).await?;
        let result = supervise::follow(asked, hooks, |pidfd| {
            if let Some(freezer) = &freezer {
                freezer.spawned(pidfd);
            }
            running.pidfd = pidfd.clone();
            self.shared.running().insert(name.id.clone(), Some(running));
        })
        .await;
        drop(name);
        blocking(move || after.finish(result)).await
    }

    async fn exec(
        &self,
        container: &str,
        process: Process,
        io: Io,
        hooks: Hooks,
    ) -> Result<Exit, ExecError> {
        let shared = self.shared.clone();
        let id = container.to_owned();
        let asked = blocking(move || shared.join(&id, &process, io)).await?;
        supervise::follow(asked, hooks, |_| {}).await
    }

    async fn outlet(&self) -> Result<Outlet, ExecError> {
        let shared = self.shared.clone();
        let address = blocking(move || shared.take_address()).await?;
        let network = NetNs::create_with(address.as_ref().map(Address::link)).await;
        let network = network.map_err(|error| ExecError::setup("make a network", error))?;
        Ok(Outlet::new(network, address))
    }

    fn warm(&self) {
        // Should it fail, the run will say so.
        _ = self.shared.launcher.start();
    }

    fn network(&self, container: &str) -> Result<NetNs, ExecError> {
        match self.shared.running().get(container) {
            Some(Some(running)) => Ok(NetNs::of(running.pidfd.clone())),
            _ => Err(ExecError::NotRunning(container.to_owned())),
        }
    }
}

impl Shared {
    fn join(&self, id: &str, process: &Process, io: Io) -> Result<Asked, ExecError> {
        let setup = |error| ExecError::setup("join the container", error);
        let mut fds = plan::Fds::default();
        let (root, pidfd, confinement, emulator, into);
        let mut joined = Vec::new();
        {
            let running = self.running();
            let Some(Some(found)) = running.get(id) else {
                return Err(ExecError::NotRunning(id.to_owned()));
            };
            root = found.root.clone();
            pidfd = found.pidfd.clone();
            confinement = found.confinement.clone();
            emulator = found.emulator;
            into = found.into.as_ref().map(OwnedFd::try_clone).transpose().map_err(setup)?;
            for fd in &found.join {
                joined.push(fds.add(fd.try_clone().map_err(setup)?));
            }
        }
        let user = user::find(&root, &process.user)?;
        let place = Place::Join { pidfd: fds.add(pidfd.try_clone().map_err(setup)?) };
        let (program, terminal) = plan::program(process, user, emulator, io, &mut fds)?;
        let plan = plan::plan(program, confinement, joined, place);
        let mut extra: Vec<BorrowedFd<'_>> = into.iter().map(|fd| fd.as_fd()).collect();
        extra.push(pidfd.as_fd());
        let command = Command::Join { cgroup: into.is_some() };
        let mut asked = self.launcher.ask(command, &plan, &fds.0, &extra).map_err(ask)?;
        asked.terminal = terminal;
        Ok(asked)
    }
}
