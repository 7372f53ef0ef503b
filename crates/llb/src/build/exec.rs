//! Processes and their mounts.
//!
//! Mounts are sorted by target when the node is added; outputs are numbered in that order over
//! the mounts that keep what was written.

use super::{Caps, Output};
use crate::pb;

/// A process to run.
#[derive(Debug, Clone, Default)]
pub struct Exec {
    /// Program and arguments.
    pub args: Vec<String>,
    /// Variables in order, names unique.
    pub env: Vec<(String, String)>,
    /// Working folder, absolute.
    pub cwd: String,
    /// `user[:group]`, empty for root.
    pub user: String,
    /// Host name, empty for the daemon's choice.
    pub hostname: String,
    /// Parent control group.
    pub cgroup_parent: String,
    /// Proxy variables that stay out of the cache key.
    pub proxy: Option<pb::ProxyEnv>,
    /// Lines for `/etc/hosts`.
    pub extra_hosts: Vec<pb::HostIp>,
    /// Resource limits.
    pub ulimits: Vec<pb::Ulimit>,
    /// Exit codes that count as success; empty means only 0.
    pub valid_exit_codes: Vec<i32>,
    /// Network access.
    pub network: pb::NetMode,
    /// Privileges.
    pub security: pb::SecurityMode,
    /// The root file system.
    pub root: Option<Output>,
    /// Whether the root cannot be written.
    pub readonly_root: bool,
    /// Further mounts.
    pub mounts: Vec<Mount>,
    /// Secrets as files or variables.
    pub secrets: Vec<Secret>,
    /// Forwarded ssh agents.
    pub ssh: Vec<Ssh>,
    /// Devices by CDI name.
    pub devices: Vec<pb::CdiDevice>,
}

/// A process in a graph, its mounts sorted.
#[derive(Debug, Clone)]
pub(super) struct Placed {
    exec: Exec,
    /// Positions in the sorted order: 0 is the root, `n` is `mounts[n - 1]`.
    order: Vec<usize>,
}

/// A folder or file of the process.
#[derive(Debug, Clone, Default)]
pub struct Mount {
    /// Where, absolute.
    pub target: String,
    /// What; nothing is an empty folder.
    pub source: Option<Output>,
    /// Path inside the source, empty for all of it.
    pub selector: String,
    /// Cannot be written.
    pub readonly: bool,
    /// Written data is thrown away.
    pub no_output: bool,
    /// Which kind of mount.
    pub kind: MountKind,
    /// Whether content, not origin, decides what can be reused.
    pub content_cache: pb::MountContentCache,
}

/// Kinds of [`Mount`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum MountKind {
    /// A tree.
    #[default]
    Bind,
    /// A folder kept between runs.
    Cache {
        /// Same id, same folder.
        id: String,
        /// What concurrent users get.
        sharing: pb::CacheSharingOpt,
    },
    /// Memory.
    Tmpfs {
        /// Bytes, 0 for the kernel's default.
        size: i64,
    },
}

/// A secret of the client.
#[derive(Debug, Clone, Default)]
pub struct Secret {
    /// Its id.
    pub id: String,
    /// File to appear at.
    pub target: Option<String>,
    /// Variable to appear in.
    pub env: Option<String>,
    /// Absence is no error.
    pub optional: bool,
    /// Owner of the file.
    pub uid: u32,
    /// Group of the file.
    pub gid: u32,
    /// Permission bits of the file.
    pub mode: u32,
}

/// A forwarded ssh agent.
#[derive(Debug, Clone, Default)]
pub struct Ssh {
    /// Its id, empty for the default one.
    pub id: String,
    /// Socket path; empty for `/run/buildkit/ssh_agent.<n>`.
    pub target: String,
    /// Absence is no error.
    pub optional: bool,
    /// Owner of the socket.
    pub uid: u32,
    /// Group of the socket.
    pub gid: u32,
    /// Permission bits of the socket.
    pub mode: u32,
}

/// Trees a process leaves behind.
#[derive(Debug, Clone)]
pub struct ExecOutputs {
    /// The root file system.
    pub root: Output,
    /// For each of [`Exec::mounts`]; nothing where writes are not kept.
    pub mounts: Vec<Option<Output>>,
}

impl Exec {
    /// `/bin/sh -c command` at `/`.
    pub fn shell(root: Option<Output>, command: &str) -> Self {
        Self {
            args: vec!["/bin/sh".into(), "-c".into(), command.into()],
            cwd: "/".into(),
            root,
            ..Self::default()
        }
    }

    /// Sorts the mounts and numbers the outputs.
    pub(super) fn place(self, node: u32) -> (Placed, ExecOutputs) {
        let mut order: Vec<usize> = (0..=self.mounts.len()).collect();
        order.sort_by(|a, b| self.target(*a).as_bytes().cmp(self.target(*b).as_bytes()));
        let mut outputs = ExecOutputs {
            root: self.root.unwrap_or(Output { node, index: 0 }),
            mounts: vec![None; self.mounts.len()],
        };
        let mut index = 0;
        for &position in &order {
            if self.keeps(position) {
                let output = Output { node, index };
                match position {
                    0 => outputs.root = output,
                    _ => outputs.mounts[position - 1] = Some(output),
                }
                index += 1;
            }
        }
        (Placed { exec: self, order }, outputs)
    }

    fn target(&self, position: usize) -> &str {
        if position == 0 { "/" } else { &self.mounts[position - 1].target }
    }

    fn source(&self, position: usize) -> Option<Output> {
        if position == 0 { self.root } else { self.mounts[position - 1].source }
    }

    fn keeps(&self, position: usize) -> bool {
        match position {
            0 => !self.readonly_root,
            _ => {
                let mount = &self.mounts[position - 1];
                !mount.no_output && !mount.readonly && mount.kind == MountKind::Bind
            }
        }
    }

    fn meta(&self, default_path: bool) -> pb::Meta {
        let mut env: Vec<String> =
            self.env.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let has = |name: &str| self.env.iter().any(|(key, _)| key == name);
        if let Some(first) = self.ssh.first()
            && !has("SSH_AUTH_SOCK")
        {
            env.push(format!("SSH_AUTH_SOCK={}", first.target(0)));
        }
        if default_path && !has("PATH") {
            env.push(
                "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned(),
            );
        }
        pb::Meta {
            args: self.args.clone(),
            env,
            cwd: self.cwd.clone(),
            user: self.user.clone(),
            proxy_env: self.proxy.clone(),
            extra_hosts: self.extra_hosts.clone(),
            hostname: self.hostname.clone(),
            ulimit: self.ulimits.clone(),
            cgroup_parent: self.cgroup_parent.clone(),
            remove_mount_stubs_recursive: true,
            valid_exit_codes: self.valid_exit_codes.clone(),
        }
    }

    pub(super) fn caps(&self) -> Caps {
        let mut caps = Caps::from(["exec.meta.base"]);
        let mut need = |when: bool, cap: &'static str| {
            if when {
                caps.insert(cap);
            }
        };
        need(!self.valid_exit_codes.is_empty(), "exec.validexitcode");
        need(!self.ulimits.is_empty(), "exec.meta.ulimit");
        need(self.network != pb::NetMode::Unset, "exec.meta.network");
        need(self.security == pb::SecurityMode::Insecure, "exec.meta.security");
        need(self.proxy.is_some(), "exec.meta.proxyenv");
        need(!self.devices.is_empty(), "exec.meta.cdi");
        need(!self.secrets.is_empty(), "exec.mount.secret");
        need(self.secrets.iter().any(|secret| secret.env.is_some()), "exec.secretenv");
        need(!self.ssh.is_empty(), "exec.mount.ssh");
        need(self.root.is_some(), "exec.mount.bind");
        for mount in &self.mounts {
            need(!mount.selector.is_empty(), "exec.mount.selector");
            let by_content = mount.content_cache != pb::MountContentCache::Default;
            need(by_content, "exec.mount.cache.content");
            match mount.kind {
                MountKind::Bind => need(mount.source.is_some(), "exec.mount.bind"),
                MountKind::Cache { .. } => {
                    need(true, "exec.mount.cache");
                    need(true, "exec.mount.cache.sharing");
                }
                MountKind::Tmpfs { size } => {
                    need(true, "exec.mount.tmpfs");
                    need(size > 0, "exec.mount.tmpfs.size");
                }
            }
        }
        caps
    }
}

impl Ssh {
    fn target(&self, number: usize) -> String {
        if self.target.is_empty() {
            format!("/run/buildkit/ssh_agent.{number}")
        } else {
            self.target.clone()
        }
    }
}

impl Placed {
    /// What runs.
    pub(super) fn exec(&self) -> &Exec {
        &self.exec
    }

    /// Inputs in mount order.
    pub(super) fn inputs(&self) -> Vec<Output> {
        self.order.iter().filter_map(|position| self.exec.source(*position)).collect()
    }

    /// The message; `input` numbers an output among the op's inputs.
    pub(super) fn to_pb(
        &self,
        default_path: bool,
        mut input: impl FnMut(Output) -> i64,
    ) -> pb::ExecOp {
        let mut index = 0;
        let mut mounts =
            Vec::with_capacity(self.order.len() + self.exec.secrets.len() + self.exec.ssh.len());
        for &position in &self.order {
            let output = if self.exec.keeps(position) {
                index += 1;
                index - 1
            } else {
                -1
            };
            let mut mount = pb::Mount {
                input: self.exec.source(position).map_or(-1, &mut input),
                dest: self.exec.target(position).to_owned(),
                output,
                readonly: if position == 0 {
                    self.exec.readonly_root
                } else {
                    self.exec.mounts[position - 1].readonly
                },
                ..Default::default()
            };
            if position > 0 {
                let from = &self.exec.mounts[position - 1];
                mount.selector = from.selector.clone();
                mount.set_content_cache(from.content_cache);
                match &from.kind {
                    MountKind::Bind => {}
                    MountKind::Cache { id, sharing } => {
                        mount.set_mount_type(pb::MountType::Cache);
                        mount.cache_opt =
                            Some(pb::CacheOpt { id: id.clone(), sharing: *sharing as i32 });
                    }
                    MountKind::Tmpfs { size } => {
                        mount.set_mount_type(pb::MountType::Tmpfs);
                        mount.tmpfs_opt = Some(pb::TmpfsOpt { size: *size });
                    }
                }
            }
            mounts.push(mount);
        }
        let mut secretenv = Vec::new();
        for secret in &self.exec.secrets {
            if let Some(name) = &secret.env {
                secretenv.push(pb::SecretEnv {
                    id: secret.id.clone(),
                    name: name.clone(),
                    optional: secret.optional,
                });
            }
            if let Some(target) = &secret.target {
                mounts.push(pb::Mount {
                    input: -1,
                    dest: target.clone(),
                    mount_type: pb::MountType::Secret as i32,
                    secret_opt: Some(pb::SecretOpt {
                        id: secret.id.clone(),
                        uid: secret.uid,
                        gid: secret.gid,
                        mode: secret.mode,
                        optional: secret.optional,
                    }),
                    ..Default::default()
                });
            }
        }
        for (number, ssh) in self.exec.ssh.iter().enumerate() {
            mounts.push(pb::Mount {
                input: -1,
                dest: ssh.target(number),
                mount_type: pb::MountType::Ssh as i32,
                ssh_opt: Some(pb::SshOpt {
                    id: ssh.id.clone(),
                    uid: ssh.uid,
                    gid: ssh.gid,
                    mode: ssh.mode,
                    optional: ssh.optional,
                }),
                ..Default::default()
            });
        }
        pb::ExecOp {
            meta: Some(self.exec.meta(default_path)),
            mounts,
            network: self.exec.network as i32,
            security: self.exec.security as i32,
            secretenv,
            cdi_devices: self.exec.devices.clone(),
        }
    }
}
