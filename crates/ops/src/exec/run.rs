//! Running an exec op: mounts from inputs, a process, outputs from what it wrote.
//! Source: LLB notes §4.

use std::sync::Arc;

use base::goquote::Quoted;
use executor::{
    ExecError, Hooks, Io, Mount, MountOptions, MountSource, Network, Root, Security, Spec,
};
use llb::pb::{self, MountType, NetMode, SecurityMode};
use session::Group;
use snapshot::Tree;
use store::{MutRef, NewRecord, Ref};
use tokio::io::AsyncReadExt as _;
use tokio_util::sync::CancellationToken;

use super::{
    ceiling::below_ceiling,
    mounts::{Mounter, Ready, secret_env},
};
use crate::{LogStream, Machine, OpError, Remains};

/// Where a step finds the socket that takes its spans.
const TRACE_SOCKET: &str = "/dev/otel-grpc.sock";
/// Exit code of a step whose program could not be started, as clients know it: that of the runtime,
/// not 126 or 127, which a shell in the step gives.
const NOT_STARTED: i32 = 1;
/// A pipe read.
const CHUNK: usize = 32 << 10;

/// What one run works for.
pub(crate) struct Run<'a> {
    pub machine: &'a Machine,
    pub op: &'a pb::ExecOp,
    pub platform: base::Platform,
    pub resources: Option<&'a pb::LinuxResources>,
    pub inputs: &'a [Option<Ref>],
    pub sessions: Group,
    /// Of the step's span, if its build is traced.
    pub traceparent: Option<String>,
    pub cancelled: CancellationToken,
    pub log: Arc<dyn Fn(LogStream, bytes::Bytes) + Send + Sync>,
    /// The step reaches the network through a recording proxy.
    pub proxy: Option<Proxy<'a>>,
}

/// What goes with a step's proxy.
pub(crate) struct Proxy<'a> {
    /// Decides about requests.
    pub policy: Option<Arc<dyn netproxy::Policy>>,
    /// Told at the end what was asked for.
    pub requested: Box<dyn Fn(Arc<netproxy::Record>) + Send + Sync + 'a>,
}

/// What becomes of a mount once the process has ended.
enum After {
    /// Nothing to give back.
    Nothing,
    /// The input as it is.
    Input(usize),
    /// Commit what was written.
    Commit(MutRef),
    /// Was written, is thrown away.
    Scratch(MutRef),
}

/// A mount made ready; the values keep its data alive while the process runs.
struct Prepared {
    output: bool,
    after: After,
    mount: Option<Mount>,
    _keep: Vec<Box<dyn Send + Sync>>,
}

impl Prepared {
    fn fill(&mut self, ready: Ready) {
        self.mount = ready.mount;
        self._keep.extend(ready.keep);
    }
}

impl Run<'_> {
    /// Runs the process and gives the op's outputs in order.
    pub(crate) async fn run(self) -> Result<Vec<Option<Ref>>, OpError> {
        let meta = self.op.meta.clone().unwrap_or_default();
        let args = meta.args.join(" ");
        let mut root = None;
        let mut prepared = Vec::with_capacity(self.op.mounts.len());
        let mut others = Mounter::new(self.machine, &self.sessions, &self.cancelled);
        for mount in &self.op.mounts {
            let one = self.prepare(mount, &meta, &args, &mut root, &mut others).await?;
            prepared.push(one);
        }
        drop(others);
        let root = root.ok_or_else(|| OpError::invalid("mount / has no input"))?;
        let spec = self.spec(&meta, root, &mut prepared).await?;
        let ended = match &self.proxy {
            None => self.process(spec, &meta, args).await,
            Some(proxy) => self.behind(proxy, spec, &meta, args).await,
        };
        if let Err(error) = ended {
            return Err(self.leave(error, prepared).await);
        }
        let mut outputs = Vec::new();
        for one in prepared {
            match (one.output, one.after) {
                (true, After::Commit(tree)) => outputs.push(Some(tree.commit().await?)),
                (true, After::Input(input)) => outputs.push(self.inputs[input].clone()),
                (true, After::Nothing | After::Scratch(_)) => outputs.push(None),
                (false, _) => {}
            }
        }
        Ok(outputs)
    }

    /// Adds the trees to a failure, with what the process wrote; source: LLB notes §4.10.
    async fn leave(&self, error: OpError, prepared: Vec<Prepared>) -> OpError {
        if matches!(error, OpError::Cancelled) {
            return error;
        }
        let count = prepared.len();
        let (mut inputs, mut mounts) = (Vec::with_capacity(count), Vec::with_capacity(count));
        for (mount, one) in self.op.mounts.iter().zip(prepared) {
            let input = usize::try_from(mount.input).ok();
            let input = input.and_then(|index| self.inputs.get(index).cloned().flatten());
            mounts.push(match one.after {
                After::Commit(tree) | After::Scratch(tree) => match tree.commit().await {
                    Ok(reference) => {
                        reference.discard_when_released();
                        Some(reference)
                    }
                    // Then that tree cannot be looked at; the failure counts.
                    Err(_) => None,
                },
                After::Nothing | After::Input(_) => input.clone(),
            });
            inputs.push(input);
        }
        error.leaving(Remains { inputs, mounts, subject: None })
    }

    fn input(&self, mount: &pb::Mount) -> Result<Option<(usize, Option<&Ref>)>, OpError> {
        let Ok(index) = usize::try_from(mount.input) else { return Ok(None) };
        match self.inputs.get(index) {
            Some(input) => Ok(Some((index, input.as_ref()))),
            None => Err(OpError::invalid(format!("mount {} has no input {index}", mount.dest))),
        }
    }

    async fn prepare(
        &self,
        mount: &pb::Mount,
        meta: &pb::Meta,
        args: &str,
        root: &mut Option<Root>,
        others: &mut Mounter<'_>,
    ) -> Result<Prepared, OpError> {
        let kind = MountType::try_from(mount.mount_type).map_err(|_| {
            OpError::invalid(format!("unknown mount type {} for {}", mount.mount_type, mount.dest))
        })?;
        let dest = destination(mount, meta);
        let is_root = dest == "/";
        if is_root && kind != MountType::Bind {
            return Err(OpError::invalid(format!(
                "invalid mount type {} for /",
                kind.as_str_name()
            )));
        }
        let mut ready = Prepared {
            output: mount.output >= 0,
            after: After::Nothing,
            mount: None,
            _keep: Vec::new(),
        };
        let description = || format!("mount {} from exec {args}", mount.dest);
        match kind {
            MountType::Bind => {
                let input = self.input(mount)?;
                let (source, after) = self.bind(mount, is_root, input, description())?;
                ready.after = after;
                if is_root {
                    *root = Some(Root { tree: descriptor(&source)?, readonly: mount.readonly });
                } else {
                    let source = MountSource::Tree {
                        tree: descriptor(&source)?,
                        path: mount.selector.clone(),
                    };
                    ready.mount =
                        Some(placed(dest, source, mount.readonly, MountOptions::default()));
                }
                ready._keep.push(Box::new(source));
            }
            MountType::Cache => {
                let input = self.input(mount)?;
                let start = input.and_then(|(_, reference)| reference);
                ready.fill(others.cache(mount, dest, start, &format!("exec {args}")).await?);
                if let Some((index, _)) = input {
                    ready.after = After::Input(index);
                }
            }
            MountType::Tmpfs => ready.fill(Mounter::memory(mount, dest)),
            MountType::Secret => ready.fill(others.secret(mount, dest).await?),
            MountType::Ssh => ready.fill(others.agent(mount, dest).await?),
        }
        Ok(ready)
    }

    /// The table of LLB notes §4.2.
    fn bind(
        &self,
        mount: &pb::Mount,
        is_root: bool,
        input: Option<(usize, Option<&Ref>)>,
        description: String,
    ) -> Result<(Tree, After), OpError> {
        let reference = input.and_then(|(_, reference)| reference);
        let writable = || -> Result<MutRef, OpError> {
            Ok(self.machine.store.create(NewRecord {
                parent: reference,
                description,
                ..NewRecord::default()
            })?)
        };
        if mount.output >= 0 {
            if let (true, false, Some(reference), Some((index, _))) =
                (mount.readonly, is_root, reference, input)
            {
                return Ok((reference.tree()?, After::Input(index)));
            }
            let tree = writable()?;
            return Ok((tree.tree()?, After::Commit(tree)));
        }
        match (mount.readonly, is_root, reference) {
            (true, false, Some(reference)) => Ok((reference.tree()?, After::Nothing)),
            (false, true, None) => Err(OpError::invalid("mount / has no input")),
            // A root without an output is never written back; its mount points need a place though.
            _ => {
                let tree = writable()?;
                Ok((tree.tree()?, After::Scratch(tree)))
            }
        }
    }

    async fn spec(
        &self,
        meta: &pb::Meta,
        root: Root,
        prepared: &mut [Prepared],
    ) -> Result<Spec, OpError> {
        let secrets = secret_env(&self.sessions, &self.op.secretenv).await?;
        let proxy = meta.proxy_env.as_ref().map(|proxy| executor::env::Proxy {
            http: proxy.http_proxy.clone(),
            https: proxy.https_proxy.clone(),
            ftp: proxy.ftp_proxy.clone(),
            no: proxy.no_proxy.clone(),
            all: proxy.all_proxy.clone(),
        });
        let process = executor::Process {
            args: meta.args.clone(),
            env: executor::env::finalise(
                &self.platform.os,
                &meta.env,
                proxy.as_ref(),
                secrets,
                &self.trace_env(),
            ),
            cwd: meta.cwd.clone(),
            user: meta.user.clone(),
            rlimits: rlimits(&meta.ulimit),
            terminal: false,
        };
        let mut spec = Spec::new(base::id::random_id(), root, process);
        spec.mounts = prepared.iter_mut().filter_map(|one| one.mount.take()).collect();
        if let Some(socket) = &self.machine.config.trace_socket {
            let source = MountSource::HostPath(socket.clone());
            spec.mounts.push(placed(TRACE_SOCKET.into(), source, true, MountOptions::default()));
        }
        spec.hostname = meta.hostname.clone();
        spec.network = network(self.op.network, &self.machine.config)?;
        spec.security = security(self.op.security)?;
        spec.resources = self.resources.map(resources).unwrap_or_default();
        spec.cgroup_parent = if meta.cgroup_parent.is_empty() {
            self.machine.config.cgroup_parent.clone()
        } else {
            meta.cgroup_parent.clone()
        };
        spec.extra_hosts = extra_hosts(&meta.extra_hosts)?;
        spec.dns = self.machine.config.dns.clone();
        spec.no_process_sandbox = self.machine.config.no_process_sandbox;
        spec.remove_mount_stubs_recursive = meta.remove_mount_stubs_recursive;
        spec.emulator = self.machine.emulator(&self.platform)?;
        spec.apparmor_profile = self.machine.config.apparmor_profile.clone();
        below_ceiling(&self.machine.store, &mut spec);
        let devices = &self.machine.config.devices;
        devices
            .inject(&self.op.cdi_devices, &mut spec)
            .map_err(|error| OpError::invalid(error.to_string()))?;
        Ok(spec)
    }

    /// Variables by which a process finds where its spans go; the step's own come first.
    fn trace_env(&self) -> Vec<String> {
        if self.machine.config.trace_socket.is_none() {
            return Vec::new();
        }
        let parent = self.traceparent.iter().map(|parent| format!("TRACEPARENT={parent}"));
        [
            "OTEL_TRACES_EXPORTER=otlp".to_owned(),
            format!("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=unix://{TRACE_SOCKET}"),
            "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL=grpc".to_owned(),
        ]
        .into_iter()
        .chain(parent)
        .collect()
    }

    /// Runs the process with a proxy as its network.
    async fn behind(
        &self,
        proxy: &Proxy<'_>,
        mut spec: Spec,
        meta: &pb::Meta,
        args: String,
    ) -> Result<(), OpError> {
        let attached = self.machine.proxies.attach(&mut spec, proxy.policy.clone()).await;
        let attached = attached.map_err(|error| OpError::invalid(error.to_string()))?;
        let ended = self.process(spec, meta, args).await;
        let record = attached.finish().await;
        let text = record.log();
        if !text.is_empty() {
            (self.log)(LogStream::Stderr, text.into());
        }
        (proxy.requested)(Arc::new(record));
        ended
    }

    async fn process(&self, spec: Spec, meta: &pb::Meta, args: String) -> Result<(), OpError> {
        let run = |cause: ExecError| match cause {
            ExecError::Cancelled => OpError::Cancelled,
            cause => OpError::Run { args: args.clone(), cause: Arc::new(cause) },
        };
        let (io, stdout, stderr) = Io::output().map_err(|error| {
            OpError::invalid(format!("make pipes for the output of \"{args}\": {error}"))
        })?;
        let hooks = Hooks { cancel: self.cancelled.child_token(), ..Hooks::default() };
        let (exit, (), ()) = tokio::join!(
            self.machine.executor.run(spec, io, hooks),
            pump(stdout, LogStream::Stdout, &*self.log),
            pump(stderr, LogStream::Stderr, &*self.log),
        );
        let exit = match exit {
            Ok(exit) => exit,
            // The program is not there, or cannot be run.
            Err(ExecError::Start { program, reason, .. }) => {
                let mut text = format!("exec: {}: {reason}\n", Quoted(&program));
                let host = base::Platform::host();
                if reason.contains("exec format") && self.platform.architecture != host.architecture
                {
                    text += &format!(
                        "this machine ({host}) cannot run programs for {}; install an emulator \
                         there, such as Debian's qemu-user-static, and start the daemon again\n",
                        self.platform
                    );
                }
                (self.log)(LogStream::Stderr, text.into());
                executor::Exit { code: NOT_STARTED, ..Default::default() }
            }
            Err(error) => return Err(run(error)),
        };
        let success = match meta.valid_exit_codes.as_slice() {
            [] => exit.code == 0,
            codes => codes.contains(&exit.code),
        };
        if success {
            return Ok(());
        }
        if self.cancelled.is_cancelled() {
            return Err(OpError::Cancelled);
        }
        Err(OpError::Exit { args, code: exit.code, out_of_memory: exit.oom_killed })
    }
}

async fn pump(
    mut from: tokio::net::unix::pipe::Receiver,
    stream: LogStream,
    to: &(dyn Fn(LogStream, bytes::Bytes) + Send + Sync),
) {
    let mut buffer = bytes::BytesMut::with_capacity(CHUNK);
    loop {
        match from.read_buf(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(_) => to(stream, buffer.split().freeze()),
        }
        buffer.reserve(CHUNK);
    }
}

fn destination(mount: &pb::Mount, meta: &pb::Meta) -> String {
    if base::path::is_absolute(&mount.dest) {
        return base::path::clean(&mount.dest);
    }
    base::path::absolute(&format!("{}/{}", meta.cwd, mount.dest))
}

fn placed(dest: String, source: MountSource, readonly: bool, options: MountOptions) -> Mount {
    Mount { dest, source, readonly, options }
}

/// A descriptor of the tree that the executor may hold by itself.
pub(crate) fn descriptor(tree: &Tree) -> Result<Arc<std::os::fd::OwnedFd>, OpError> {
    let fd = tree.fd().try_clone_to_owned();
    fd.map(Arc::new)
        .map_err(|error| OpError::invalid(format!("duplicate the descriptor of a tree: {error}")))
}

/// Limits of a process.
pub fn rlimits(limits: &[pb::Ulimit]) -> Vec<executor::Rlimit> {
    limits
        .iter()
        .map(|limit| executor::Rlimit {
            name: limit.name.clone(),
            soft: limit.soft,
            hard: limit.hard,
        })
        .collect()
}

/// Lines of `/etc/hosts`.
pub fn extra_hosts(hosts: &[pb::HostIp]) -> Result<Vec<executor::ExtraHost>, OpError> {
    hosts
        .iter()
        .map(|host| {
            let ip = host.ip.parse().map_err(|_| {
                OpError::invalid(format!(
                    "failed to parse IP {:?} of extra host {:?}",
                    host.ip, host.host
                ))
            })?;
            Ok(executor::ExtraHost { host: host.host.clone(), ip })
        })
        .collect()
}

/// The network a mode means here.
pub fn network(mode: i32, config: &crate::Config) -> Result<Network, OpError> {
    match NetMode::try_from(mode) {
        Ok(NetMode::Unset) => Ok(config.network),
        Ok(NetMode::Host) => Ok(Network::Host),
        Ok(NetMode::None) => Ok(Network::None),
        Err(_) => Err(OpError::invalid(format!("unknown network mode {mode}"))),
    }
}

/// How far a mode trusts the process.
pub fn security(mode: i32) -> Result<Security, OpError> {
    match SecurityMode::try_from(mode) {
        Ok(SecurityMode::Sandbox) => Ok(Security::Sandbox),
        Ok(SecurityMode::Insecure) => Ok(Security::Insecure),
        Err(_) => Err(OpError::invalid(format!("invalid security mode {mode}"))),
    }
}

fn resources(limits: &pb::LinuxResources) -> executor::Resources {
    executor::Resources {
        memory: limits.memory,
        memory_swap: limits.memory_swap,
        cpu_shares: limits.cpu_shares,
        cpu_quota: limits.cpu_quota,
        cpu_period: limits.cpu_period,
        cpuset_cpus: limits.cpuset_cpus.clone(),
        cpuset_mems: limits.cpuset_mems.clone(),
        pids: 0,
    }
}
