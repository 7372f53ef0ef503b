//! What a container and a process in it look like, in plain types.
//!
//! A [`Spec`] is made by `ops` (a build step) or the gateway (an interactive container) and handed
//! to an [`Executor`](crate::Executor), which only reads it. Trees of files arrive as descriptors
//! of (usually detached) mounts, never as paths in the daemon's namespace; the executor attaches a
//! clone of each, so that one tree can serve several containers at once and outlives them all.

use std::{net::IpAddr, os::fd::OwnedFd, path::PathBuf, sync::Arc};

use crate::{Freezer, net::NetNs};

/// A container: its file tree, its surroundings and its first process.
#[derive(Debug, Clone)]
pub struct Spec {
    /// Name of the container, unique among those running; letters, digits, `_`, `.`, `-`, `+`.
    pub id: String,
    /// The first process. The container lives exactly as long as it.
    pub process: Process,
    /// The root file system.
    pub root: Root,
    /// Further mounts, in any order: they are sorted by destination.
    pub mounts: Vec<Mount>,
    /// Host name; empty means [`DEFAULT_HOSTNAME`].
    pub hostname: String,
    /// The network seen by the container.
    pub network: Network,
    /// Put the container into this network instead of what `network` says; that still tells which
    /// name servers it is shown.
    pub namespace: Option<NetNs>,
    /// What the container may do to the machine.
    pub security: Security,
    /// Changes of the capabilities that sandboxed processes have.
    pub capabilities: Capabilities,
    /// Limits of memory, CPU and processes. All-default means none.
    pub resources: Resources,
    /// Parent of the container's control group, as in LLB's `cgroupParent`; empty for the default.
    pub cgroup_parent: String,
    /// Lines added to `/etc/hosts`.
    pub extra_hosts: Vec<ExtraHost>,
    /// Replaces parts of the host's resolver configuration.
    pub dns: Dns,
    /// Size of `/dev/shm` in bytes; `None` means 64 MiB.
    pub shm_size: Option<u64>,
    /// Use the launcher's process namespace and `/proc` instead of the container's own.
    pub no_process_sandbox: bool,
    /// Also remove missing ancestors that were made for mount points, when they stay empty.
    pub remove_mount_stubs_recursive: bool,
    /// An emulator of foreign machine code that is bound into the container and put before the
    /// arguments of every process.
    pub emulator: Option<PathBuf>,
    /// Devices beside the standard ones.
    pub devices: Vec<Device>,
    /// Name of an AppArmor profile that must be loaded on this machine.
    pub apparmor_profile: Option<String>,
    /// Adjustment of the badness by which the kernel picks a process when memory runs out.
    pub oom_score_adj: Option<i32>,
    /// Learns how to freeze the container, from before its first process exists.
    pub freezer: Option<Freezer>,
    /// The most bytes that one `fallocate` may set aside; programs are told that the file system
    /// cannot do more, and write instead.
    pub most_allocated: Option<u64>,
}

/// The host name of containers that ask for none.
pub const DEFAULT_HOSTNAME: &str = "buildkitsandbox";

impl Spec {
    /// A sandboxed container with the host's network, no further mounts and no limits.
    pub fn new(id: impl Into<String>, root: Root, process: Process) -> Self {
        Self {
            id: id.into(),
            process,
            root,
            mounts: Vec::new(),
            hostname: String::new(),
            network: Network::Host,
            namespace: None,
            security: Security::Sandbox,
            capabilities: Capabilities::default(),
            resources: Resources::default(),
            cgroup_parent: String::new(),
            extra_hosts: Vec::new(),
            dns: Dns::default(),
            shm_size: None,
            no_process_sandbox: false,
            remove_mount_stubs_recursive: false,
            emulator: None,
            devices: Vec::new(),
            apparmor_profile: None,
            oom_score_adj: None,
            freezer: None,
            most_allocated: None,
        }
    }

    /// Whether a network is to be made for it.
    pub(crate) fn has_own_network(&self) -> bool {
        self.namespace.is_none() && self.network != Network::Host
    }
}

/// A process to start.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Process {
    /// Program and arguments, verbatim. A program without a slash is searched in `PATH`.
    pub args: Vec<String>,
    /// `KEY=VALUE` lines, complete: see [`crate::env::finalise`]. Of equal keys the last wins. The
    /// executor adds `HOME` from the container's `/etc/passwd` where it is missing or empty.
    pub env: Vec<String>,
    /// Working directory; empty means `/`. Made, owned by the user, when it is missing.
    pub cwd: String,
    /// `user[:group]`, names or numbers, as in LLB's `meta.user`; empty means root.
    pub user: String,
    /// Limits set on the process.
    pub rlimits: Vec<Rlimit>,
    /// Run on a pseudo terminal: [`Io::stdin`](crate::Io) is typed, all output goes to
    /// [`Io::stdout`](crate::Io).
    pub terminal: bool,
}

impl Process {
    /// A process with these arguments, no environment, in `/`, as root.
    pub fn new(args: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self { args: args.into_iter().map(Into::into).collect(), ..Self::default() }
    }
}

/// The root file system of a container.
#[derive(Debug, Clone)]
pub struct Root {
    /// Descriptor of a directory: the root of a mount (detached or not). It has to be writable
    /// even when `readonly`, so that mount points can be prepared in it.
    pub tree: Arc<OwnedFd>,
    /// Show it read-only to the container.
    pub readonly: bool,
}

/// Something placed over a path of the container.
#[derive(Debug, Clone)]
pub struct Mount {
    /// Where, in the container. Absolute after cleaning; symbolic links stay inside the root.
    pub dest: String,
    /// What.
    pub source: MountSource,
    /// Whether the container may write to it.
    pub readonly: bool,
    /// Flags restricting its use.
    pub options: MountOptions,
}

impl Mount {
    /// A writable mount without restrictions.
    pub fn new(dest: impl Into<String>, source: MountSource) -> Self {
        Self { dest: dest.into(), source, readonly: false, options: MountOptions::default() }
    }

    /// The same, read-only.
    pub fn readonly(mut self) -> Self {
        self.readonly = true;
        self
    }
}

/// Flags of a mount.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MountOptions {
    /// Ignore set-user-id bits.
    pub nosuid: bool,
    /// Make device nodes unusable.
    pub nodev: bool,
    /// Refuse to run programs.
    pub noexec: bool,
}

/// What a mount shows.
#[derive(Debug, Clone)]
pub enum MountSource {
    /// A tree of files, or with `path` a file or folder in it, resolved without leaving it.
    Tree {
        /// Descriptor of a directory or file: the root of a mount (detached or not).
        tree: Arc<OwnedFd>,
        /// Sub path; empty or `/` for the whole.
        path: String,
    },
    /// A fresh folder in memory, mode 1777.
    Tmpfs {
        /// Largest size in bytes; `None` for the kernel's default (half of the memory).
        size: Option<u64>,
    },
    /// A file in memory that vanishes with the container.
    File {
        /// Contents.
        data: Secret,
        /// Owner.
        uid: u32,
        /// Group.
        gid: u32,
        /// Permission bits; only `0o777` of it is used.
        mode: u32,
    },
    /// A file or folder of the host (also a Unix socket), with the mounts below it.
    HostPath(PathBuf),
}

/// Bytes that are not printed.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret(pub bytes::Bytes);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "({} hidden bytes)", self.0.len())
    }
}

/// The network of a container.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Network {
    /// The daemon's own.
    #[default]
    Host,
    /// Nothing but a loopback interface.
    None,
    /// Its own; reachable from the host through [`NetNs`](crate::net::NetNs) and
    /// [`PortProxy`](crate::net::PortProxy).
    Isolated,
}

/// How far a container is trusted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Security {
    /// Few capabilities, filtered system calls, hidden paths.
    #[default]
    Sandbox,
    /// As the daemon itself, apart from its namespaces.
    Insecure,
}

/// Capabilities by number, without `CAP_`.
pub const CAPABILITIES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// Capabilities given beside the usual ones or taken from them, as bits by number. What is given
/// wins over what is taken.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Capabilities {
    /// Given.
    pub add: u64,
    /// Taken.
    pub drop: u64,
}

impl Capabilities {
    /// Reads names with or without `CAP_` in any case; `ALL` is all of them. The name that is not
    /// known is the error.
    pub fn parse(add: &[String], drop: &[String]) -> Result<Self, String> {
        let bits = |names: &[String]| {
            names.iter().try_fold(0_u64, |bits, name| {
                let upper = name.to_ascii_uppercase();
                let short = upper.strip_prefix("CAP_").unwrap_or(&upper);
                if short == "ALL" {
                    return Ok::<u64, String>((1 << CAPABILITIES.len()) - 1);
                }
                let number = CAPABILITIES.iter().position(|known| *known == short);
                Ok(bits | 1 << number.ok_or_else(|| name.clone())?)
            })
        };
        let (add, mut drop) = (bits(add)?, bits(drop)?);
        if add.count_ones() as usize == CAPABILITIES.len() {
            // All but these: what is taken counts.
            return Ok(Self { add: add & !drop, drop });
        }
        drop &= !add;
        Ok(Self { add, drop })
    }

    /// The set that `usual` becomes.
    pub fn apply(self, usual: u64) -> u64 {
        usual & !self.drop | self.add
    }
}

/// A limit as in `setrlimit`; `name` without `RLIMIT_`, in any case (`nofile`). A negative value
/// means unlimited.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rlimit {
    /// Which.
    pub name: String,
    /// Limit in force.
    pub soft: i64,
    /// Limit up to which the process may raise it.
    pub hard: i64,
}

/// Limits enforced by control groups. Zero or empty means no limit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resources {
    /// Bytes of memory.
    pub memory: i64,
    /// Bytes of memory and swap together; −1 for unlimited swap.
    pub memory_swap: i64,
    /// Relative weight, 2–262144.
    pub cpu_shares: u64,
    /// Microseconds of CPU time per period.
    pub cpu_quota: i64,
    /// Length of a period in microseconds.
    pub cpu_period: u64,
    /// CPUs that may be used, such as `0-2,7`.
    pub cpuset_cpus: String,
    /// Memory nodes that may be used.
    pub cpuset_mems: String,
    /// Number of processes.
    pub pids: i64,
}

/// A line of `/etc/hosts`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExtraHost {
    /// Name.
    pub host: String,
    /// Address.
    pub ip: IpAddr,
}

/// Configured resolver settings; an empty list leaves the host's in place.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Dns {
    /// Addresses of name servers.
    pub nameservers: Vec<IpAddr>,
    /// Search domains.
    pub search_domains: Vec<String>,
    /// Options such as `ndots:1`.
    pub options: Vec<String>,
}

/// A device node to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// Path in the container.
    pub path: String,
    /// Character or block device.
    pub kind: DeviceKind,
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// Kind of a device node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceKind {
    /// Character device.
    Char,
    /// Block device.
    Block,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_given_and_taken() {
        let set = |add: &[&str], drop: &[&str]| {
            let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
            let (add, drop): (Vec<String>, Vec<String>) = (owned(add), owned(drop));
            Capabilities::parse(&add, &drop).map(|change| change.apply(0b11))
        };
        assert_eq!(set(&[], &["CHOWN"]), Ok(0b10));
        assert_eq!(set(&["cap_net_admin"], &["ALL"]), Ok(1 << 12));
        assert_eq!(set(&["ALL"], &["CHOWN"]), Ok((1 << 41) - 2));
        assert_eq!(set(&["FLY"], &[]), Err("FLY".to_owned()));
    }
}
