//! The driver for OCI runtimes: `runc`, `crun` and what behaves like them.
//!
//! It writes a bundle and lets the launcher start `runc run` in a mount namespace of its own, where
//! the trees are attached below the bundle, and as the first process of a process namespace, so
//! that killing the runtime kills the container. The daemon's own mounts never change. What a
//! killed runtime leaves (its state, control groups) is removed here.

use std::{
    collections::HashMap,
    fs, io,
    io::Write as _,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    },
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use async_trait::async_trait;
use rustix::{
    fs::{FileType, Gid, Mode, OFlags, Uid},
    mount::{
        FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_string, fsmount,
        fsopen,
    },
};

use crate::{
    ExecError, Executor, Exit, Hooks, Io, MountSource, Process, Spec, cgroup, hosts,
    launcher::Launcher,
    native::{Ends, blocking, check_name, make_cwd, note_stubs, plan},
    net::NetNs,
    rootfs::{self, Stubs},
    supervise::{self, Asked},
    user,
    wire::{self, Command, Confinement, Host, Place, Plan, Program},
};

mod config;

/// Settings of the OCI runtime driver.
#[derive(Debug, Clone, Default)]
pub struct RuncConfig {
    /// Path of the runtime, such as `/usr/bin/runc`.
    pub binary: PathBuf,
    /// Folder for bundles and the runtime's state.
    pub state: PathBuf,
    /// Parent of control groups of specs that name none.
    pub default_cgroup_parent: Option<String>,
}

/// Runs containers with `runc` or `crun`.
#[derive(Debug, Clone)]
pub struct Runc {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    launcher: Launcher,
    config: RuncConfig,
    running: Mutex<HashMap<String, Option<Running>>>,
}

#[derive(Debug, Clone)]
struct Running {
    pidfd: Arc<OwnedFd>,
    spec: Arc<Spec>,
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

/// One call of the runtime that runs a process.
struct Call {
    asked: Asked,
    log: PathBuf,
    /// Written by the runtime when the process has started.
    pid_file: PathBuf,
    program: String,
}

/// What is to be removed after a run.
struct After {
    bundle: PathBuf,
    state: PathBuf,
    groups: Vec<PathBuf>,
    memory_group: Option<PathBuf>,
    spec: Arc<Spec>,
    stubs: Stubs,
}

impl Runc {
    /// A driver that starts the runtime through this launcher.
    pub fn new(launcher: Launcher, config: RuncConfig) -> Self {
        let shared = Shared { launcher, config, running: Mutex::default() };
        Self { shared: Arc::new(shared) }
    }
}

#[async_trait]
impl Executor for Runc {
    async fn run(&self, spec: Spec, io: Io, hooks: Hooks) -> Result<Exit, ExecError> {
        check_name(&spec.id)?;
        let name = self.shared.take_name(&spec.id)?;
        if hooks.cancel.is_cancelled() {
            return Err(ExecError::Cancelled);
        }
        let spec = Arc::new(spec);
        let (shared, given) = (self.shared.clone(), spec.clone());
        // The groups are the runtime's own, so that it can only be killed.
        let freezer = spec.freezer.clone();
        let _end = freezer.clone().map(Ends);
        let (Call { asked, log, pid_file, program }, after) =
            blocking(move || shared.prepare(given, io)).await?;
        let result = supervise::follow(asked, hooks, |pidfd| {
            if let Some(freezer) = &freezer {
                freezer.spawned(pidfd);
            }
            let running = Running { pidfd: pidfd.clone(), spec };
            self.shared.running().insert(name.id.clone(), Some(running));
        })
        .await;
        drop(name);
        let shared = self.shared.clone();
        blocking(move || {
            let result = shared.explain(result, &log, &pid_file, &program);
            after.finish(result)
        })
        .await
    }

    async fn exec(
        &self,
        container: &str,
        process: Process,
        io: Io,
        hooks: Hooks,
    ) -> Result<Exit, ExecError> {
        let running = self.shared.find(container)?;
        let (shared, id) = (self.shared.clone(), container.to_owned());
        let Call { asked, log, pid_file, program } =
            blocking(move || shared.join(&id, running, &process, io)).await?;
        let result = supervise::follow(asked, hooks, |_| {}).await;
        let shared = self.shared.clone();
        blocking(move || shared.explain(result, &log, &pid_file, &program)).await
    }

    fn warm(&self) {
        // Should it fail, the run will say so.
        _ = self.shared.launcher.start();
    }

    fn network(&self, container: &str) -> Result<NetNs, ExecError> {
        Ok(NetNs::of(self.shared.find(container)?.pidfd))
    }
}

impl Shared {
    fn running(&self) -> std::sync::MutexGuard<'_, HashMap<String, Option<Running>>> {
        self.running.lock().expect("no panic while the lock is held")
    }

    fn take_name(self: &Arc<Self>, id: &str) -> Result<Name, ExecError> {
        let mut running = self.running();
        if running.contains_key(id) {
            return Err(ExecError::AlreadyRunning(id.to_owned()));
        }
        running.insert(id.to_owned(), None);
        Ok(Name { shared: self.clone(), id: id.to_owned() })
    }

    fn find(&self, id: &str) -> Result<Running, ExecError> {
        let found = self.running().get(id).cloned().flatten();
        found.ok_or_else(|| ExecError::NotRunning(id.to_owned()))
    }

    /// The runtime's own folder of states.
    fn states(&self) -> PathBuf {
        self.config.state.join("runtime")
    }

    fn prepare(&self, spec: Arc<Spec>, io: Io) -> Result<(Call, After), ExecError> {
        let hello =
            self.launcher.hello().map_err(|error| ExecError::setup("start the launcher", error))?;
        let layout = &hello.cgroups;
        let stubs = note_stubs(&spec);
        let user = user::find(&spec.root.tree, &spec.process.user)?;
        make_cwd(&spec.root.tree, &spec.process.cwd, &user)?;
        let bundle = self.config.state.join("bundles").join(&spec.id);
        let parent = match spec.cgroup_parent.as_str() {
            "" => self.config.default_cgroup_parent.as_deref().unwrap_or(""),
            parent => parent,
        };
        let cgroup = match parent {
            "" => format!("/{}/{}", layout.instance, spec.id),
            slice if slice.contains(".slice") && slice.ends_with(':') => {
                format!("/{slice}{}", spec.id)
            }
            parent => base::path::absolute(&format!("{parent}/buildkit/{}", spec.id)),
        };
        let hierarchies =
            layout.v1.iter().map(|hierarchy| &hierarchy.path).chain(layout.v2.as_ref());
        let groups: Vec<PathBuf> =
            hierarchies.map(|path| path.join(cgroup.trim_start_matches('/'))).collect();
        for group in &groups {
            self.launcher.announce_group(group);
        }
        let memory = layout.hierarchy("memory").map(|found| &found.path).or(layout.v2.as_ref());
        let memory_group = memory.map(|path| path.join(cgroup.trim_start_matches('/')));
        let after = After {
            bundle: bundle.clone(),
            state: self.states().join(&spec.id),
            groups,
            memory_group,
            spec: spec.clone(),
            stubs,
        };
        let made = self.make_bundle(&spec, &user, &bundle, cgroup, layout);
        let call = made.and_then(|(mut fds, mounts)| {
            let network = match &spec.namespace {
                None => None,
                Some(network) => {
                    let fd = network.fd().try_clone();
                    let failed = |error| ExecError::setup("hand over a network", error);
                    Some(fds.add(fd.map_err(failed)?))
                }
            };
            let call = Invocation {
                verb: vec!["run".into(), "--bundle".into(), bundle.display().to_string()],
                last: vec![spec.id.clone()],
                name: "run".into(),
                bundle: &bundle,
                program: &spec.process,
                place: Host {
                    mounts,
                    own_network: spec.has_own_network(),
                    network,
                    join: None,
                    hide: self.hidden(layout),
                },
            };
            self.call(call, Command::Run { cgroup: false, share_pids: false }, fds, &[], io)
        });
        match call {
            Ok(call) => Ok((call, after)),
            Err(error) => after.finish(Err(error)).and(Err(ExecError::LauncherGone)),
        }
    }

    /// `crun` refuses machines with both kinds of control groups; it does not see the second.
    fn hidden(&self, layout: &cgroup::Layout) -> Vec<String> {
        let name = self.config.binary.file_name().and_then(|name| name.to_str()).unwrap_or("");
        let hybrid = !layout.v1.is_empty() && name.contains("crun");
        let v2 = layout.v2.as_ref().filter(|_| hybrid);
        v2.map(|path| path.display().to_string()).into_iter().collect()
    }

    /// Makes the bundle; the trees to be attached in it.
    fn make_bundle(
        &self,
        spec: &Spec,
        user: &user::User,
        bundle: &Path,
        cgroup: String,
        layout: &cgroup::Layout,
    ) -> Result<(plan::Fds, Vec<(wire::Fd, String)>), ExecError> {
        let setup = |error: io::Error| ExecError::setup("make the bundle", error);
        let folder = |path: &Path| {
            fs::DirBuilder::new().recursive(true).mode(0o711).create(path).map_err(setup)
        };
        folder(bundle)?;
        folder(&self.states())?;
        for name in ["rootfs", "memory", "mounts"] {
            folder(&bundle.join(name))?;
        }
        let at = |name: &str| bundle.join(name).display().to_string();
        let mut fds = plan::Fds::default();
        let (root, _) = plan::tree(&spec.root.tree, "").map_err(setup)?;
        let mut mounts = vec![(fds.add(root), at("rootfs"))];
        let memory = Memory::new().map_err(setup)?;
        let resolv_conf = hosts::resolv_conf(&spec.dns, spec.network).map_err(setup)?;
        memory.add("resolv.conf", resolv_conf.as_bytes(), 0, 0, 0o644).map_err(setup)?;
        let hosts = hosts::hosts(&spec.hostname, &spec.extra_hosts);
        memory.add("hosts", hosts.as_bytes(), 0, 0, 0o644).map_err(setup)?;
        let mut paths = Vec::new();
        for (number, mount) in spec.mounts.iter().enumerate() {
            let failed = |error: io::Error| ExecError::Mount {
                dest: mount.dest.clone(),
                reason: error.to_string(),
            };
            paths.push(match &mount.source {
                MountSource::Tmpfs { .. } => String::new(),
                MountSource::HostPath(path) => path.display().to_string(),
                MountSource::File { data, uid, gid, mode } => {
                    let name = format!("file-{number}");
                    memory.add(&name, &data.0, *uid, *gid, *mode).map_err(failed)?;
                    at(&format!("memory/{name}"))
                }
                MountSource::Tree { tree, path } => {
                    let target = bundle.join("mounts").join(number.to_string());
                    let (clone, inner) = plan::tree(tree, path).map_err(failed)?;
                    let stat = rustix::fs::fstat(&clone).map_err(|error| failed(error.into()))?;
                    if FileType::from_raw_mode(stat.st_mode).is_dir() {
                        folder(&target)?;
                    } else {
                        fs::write(&target, "").map_err(setup)?;
                    }
                    let mut source = target.display().to_string();
                    if let Some(inner) = inner {
                        source += &rootfs::real_path(tree, &inner)
                            .map_err(|error| failed(error.into()))?;
                    }
                    mounts.push((fds.add(clone), target.display().to_string()));
                    source
                }
            });
        }
        mounts.push((fds.add(memory.tree), at("memory")));
        let places = config::Places {
            mounts: paths,
            hosts: at("memory/hosts"),
            resolv_conf: at("memory/resolv.conf"),
            cgroup,
            unified: layout.v1.is_empty() && layout.v2.is_some(),
        };
        let config = config::bundle(spec, user, &places)?;
        fs::write(bundle.join("config.json"), config.to_string()).map_err(setup)?;
        Ok((fds, mounts))
    }

    /// Starts another process in a container.
    fn join(
        &self,
        id: &str,
        running: Running,
        process: &Process,
        io: Io,
    ) -> Result<Call, ExecError> {
        let setup = |error: io::Error| ExecError::setup("describe the process", error);
        let bundle = self.config.state.join("bundles").join(id);
        let user = user::find(&running.spec.root.tree, &process.user)?;
        let name = format!("exec-{}", base::id::random_id());
        let file = bundle.join(format!("{name}.json"));
        let text = config::process(&running.spec, process, &user)?.to_string();
        fs::write(&file, text).map_err(setup)?;
        let mut fds = plan::Fds::default();
        let pidfd = fds.add(running.pidfd.try_clone().map_err(setup)?);
        let call = Invocation {
            verb: vec!["exec".into(), "--process".into(), file.display().to_string()],
            last: vec![id.to_owned()],
            name,
            bundle: &bundle,
            program: process,
            place: Host {
                mounts: Vec::new(),
                own_network: false,
                network: None,
                join: Some(pidfd),
                hide: Vec::new(),
            },
        };
        let extra = [running.pidfd.as_fd()];
        self.call(call, Command::Join { cgroup: false }, fds, &extra, io)
    }

    fn call(
        &self,
        call: Invocation<'_>,
        command: Command,
        mut fds: plan::Fds,
        extra: &[std::os::fd::BorrowedFd<'_>],
        io: Io,
    ) -> Result<Call, ExecError> {
        let setup = |error: io::Error| ExecError::setup("call the runtime", error);
        let file = |ending: &str| call.bundle.join(format!("{}.{ending}", call.name));
        let (log, pid_file) = (file("log"), file("pid"));
        let text = |path: &Path| path.display().to_string();
        let mut args = vec![text(&self.config.binary), "--root".into(), text(&self.states())];
        args.extend(["--log".into(), text(&log), "--log-format".into(), "json".into()]);
        args.extend(call.verb);
        args.extend(["--pid-file".into(), text(&pid_file)]);
        let mut master = None;
        let (streams, terminal) = if call.program.terminal {
            let (ours, theirs) = terminal().map_err(setup)?;
            master = Some(ours);
            let theirs = fds.add(theirs);
            ([Some(theirs); 3], Some(io))
        } else {
            let mut add = |fd: Option<OwnedFd>| fd.map(|fd| fds.add(fd));
            ([add(io.stdin), add(io.stdout), add(io.stderr)], None)
        };
        args.extend(call.last);
        let env = std::env::var("PATH").unwrap_or_else(|_| crate::env::DEFAULT_PATH.to_owned());
        let plan = Plan {
            program: Program {
                args,
                env: vec![format!("PATH={env}"), "XDG_RUNTIME_DIR=/run".to_owned()],
                cwd: text(call.bundle),
                user: user::User { uid: 0, gid: 0, groups: Vec::new() },
                rlimits: Vec::new(),
                io: streams,
                terminal: false,
            },
            confinement: Confinement {
                capabilities: None,
                seccomp: false,
                apparmor: None,
                oom_score_adj: None,
                most_allocated: None,
            },
            join_cgroups: Vec::new(),
            place: Place::Host(call.place),
        };
        let mut asked = self
            .launcher
            .ask(command, &plan, &fds.0, extra)
            .map_err(|error| ExecError::setup("ask the launcher", error))?;
        asked.terminal = terminal;
        asked.runtime_terminal = master;
        asked.started_file = Some(pid_file.clone());
        let program = call.program.args.first().cloned().unwrap_or_default();
        Ok(Call { asked, log, pid_file, program })
    }

    /// Tells failures of the runtime from those of the program.
    fn explain(
        &self,
        result: Result<Exit, ExecError>,
        log: &Path,
        pid_file: &Path,
        program: &str,
    ) -> Result<Exit, ExecError> {
        let exit = match result {
            Ok(exit) if !pid_file.exists() => exit,
            other => return other,
        };
        let text = fs::read_to_string(log).unwrap_or_default();
        let message = text
            .lines()
            .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
            .filter(|entry| entry["level"] == "error")
            .filter_map(|entry| entry["msg"].as_str().map(str::to_owned))
            .next_back()
            .unwrap_or_else(|| format!("exit code {} without a message", exit.code));
        let missing = ["executable file not found", "no such file or directory", "No such file"];
        let about_program = message.contains("exec") || message.contains(program);
        let code = if missing.iter().any(|text| message.contains(text)) {
            127
        } else if message.to_lowercase().contains("permission denied") {
            126
        } else {
            0
        };
        Err(if code != 0 && about_program {
            ExecError::Start { program: program.to_owned(), reason: message, code }
        } else {
            ExecError::Runtime { binary: self.config.binary.display().to_string(), message }
        })
    }
}

/// Both sides of a new terminal of the host.
fn terminal() -> io::Result<(OwnedFd, OwnedFd)> {
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let master = openpt(flags)?;
    grantpt(&master)?;
    unlockpt(&master)?;
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let slave = rustix::fs::open(ptsname(&master, Vec::new())?, flags, Mode::empty())?;
    Ok((master, slave))
}

/// How the runtime is called.
struct Invocation<'a> {
    verb: Vec<String>,
    last: Vec<String>,
    /// Of the files that belong to the call.
    name: String,
    bundle: &'a Path,
    program: &'a Process,
    place: Host,
}

impl After {
    fn finish(self, mut result: Result<Exit, ExecError>) -> Result<Exit, ExecError> {
        if let (Ok(exit), Some(group)) = (&mut result, &self.memory_group) {
            // Usually the runtime has removed it already.
            exit.oom_killed = cgroup::oom_killed(group).unwrap_or(false);
        }
        for group in &self.groups {
            cgroup::remove_tree(group);
        }
        for folder in [&self.state, &self.bundle] {
            if let Err(error) = fs::remove_dir_all(folder)
                && error.kind() != io::ErrorKind::NotFound
            {
                tracing::warn!(folder = %folder.display(), %error, "could not remove");
            }
        }
        self.stubs.clear(self.spec.root.tree.as_fd());
        result
    }
}

/// A file system in memory that is attached nowhere yet.
struct Memory {
    tree: OwnedFd,
}

impl Memory {
    fn new() -> io::Result<Self> {
        let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_set_string(&context, "mode", "0711")?;
        fsconfig_create(&context)?;
        let flags = MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOSUID;
        Ok(Self { tree: fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, flags)? })
    }

    fn add(&self, name: &str, data: &[u8], uid: u32, gid: u32, mode: u32) -> io::Result<()> {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&self.tree, name, flags, Mode::from_raw_mode(0o600))?;
        let mut file = fs::File::from(file);
        file.write_all(data)?;
        rustix::fs::fchown(&file, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
        file.set_permissions(fs::Permissions::from_mode(mode & 0o777))
    }
}
