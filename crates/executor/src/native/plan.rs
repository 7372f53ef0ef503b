//! Turns a [`Spec`] into the [`Plan`] that the new process follows: the default mounts, what is
//! hidden, which privileges remain.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
};

use rustix::{
    fs::{CWD, OFlags},
    mount::{OpenTreeFlags, open_tree},
};

use crate::{
    Device, DeviceKind, ExecError, Io, Mount, MountOptions, MountSource, Process, Security, Spec,
    cgroup::{Layout, StepGroup},
    child::sandbox_capabilities,
    hosts, rootfs, sys,
    user::User,
    wire::{
        Confinement, Container, Content, Fd, Link, Place, Plan, PlannedDevice, PlannedMount,
        Program, Source,
    },
};

const RO: u64 = libc::MOUNT_ATTR_RDONLY;
const NOSUID: u64 = libc::MOUNT_ATTR_NOSUID;
const NODEV: u64 = libc::MOUNT_ATTR_NODEV;
const NOEXEC: u64 = libc::MOUNT_ATTR_NOEXEC;
const STRICTATIME: u64 = libc::MOUNT_ATTR_STRICTATIME;

/// Where an emulator of foreign machine code is bound.
pub const EMULATOR: &str = "/dev/.buildkit_qemu_emulator";

/// Paths of which a sandboxed container sees nothing. Not every kernel has all.
pub const MASKED: [&str; 11] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
    "/proc/scsi",
];
/// Paths that a sandboxed container can only read.
pub const READONLY: [&str; 5] =
    ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Default size of `/dev/shm`.
pub const SHM_SIZE: u64 = 64 << 20;

/// Descriptors gathered for a plan.
#[derive(Default)]
pub struct Fds(pub Vec<OwnedFd>);

impl Fds {
    pub fn add(&mut self, fd: OwnedFd) -> Fd {
        self.0.push(fd);
        self.0.len() - 1
    }
}

/// A tree to be attached elsewhere, or with a path the tree it has to be taken from there: old
/// kernels cannot clone what is detached, unless its owner keeps it for that.
pub fn tree(tree: impl AsFd, path: &str) -> io::Result<(OwnedFd, Option<String>)> {
    let whole = path.trim_matches('/').is_empty();
    let part = if whole { None } else { Some(rootfs::open(&tree, path, OFlags::PATH)?) };
    let cloned =
        snapshot::keeper::clone_tree(part.as_ref().map_or(tree.as_fd(), AsFd::as_fd), true);
    match cloned {
        Ok(cloned) => Ok((cloned, None)),
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            Ok((tree.as_fd().try_clone_to_owned()?, Some(format!("/{path}"))))
        }
        Err(error) => Err(error),
    }
}

/// The mounts of a container in order, before any is prepared: defaults, then its own by
/// destination; a later one takes the place of an earlier one with the same destination.
fn mounts(spec: &Spec) -> Result<Vec<Item<'_>>, ExecError> {
    let insecure = spec.security == Security::Insecure;
    let kernel = if insecure { 0 } else { RO };
    let shm = spec.shm_size.unwrap_or(SHM_SIZE).to_string();
    let option = |key: &str, value: &str| (key.to_owned(), Some(value.to_owned()));
    let new = |kind: &str, options| Source::New { kind: kind.to_owned(), options };
    let proc = if spec.no_process_sandbox { Source::SharedProc } else { new("proc", Vec::new()) };
    let text =
        |text: String| Source::File { data: Content::Text(text), uid: 0, gid: 0, mode: 0o644 };
    let resolv_conf = hosts::resolv_conf(&spec.dns, spec.network)
        .map_err(|error| ExecError::setup("make /etc/resolv.conf", error))?;
    let hosts = hosts::hosts(&spec.hostname, &spec.extra_hosts);
    let default = [
        ("/proc", proc, NOSUID | NOEXEC | NODEV),
        ("/dev", Source::Devices, NOSUID | STRICTATIME),
        ("/dev/pts", Source::Terminals, NOSUID | NOEXEC),
        (
            "/dev/shm",
            new(
                "tmpfs",
                vec![option("source", "shm"), option("mode", "1777"), option("size", &shm)],
            ),
            NOSUID | NOEXEC | NODEV,
        ),
        ("/dev/mqueue", new("mqueue", Vec::new()), NOSUID | NOEXEC | NODEV),
        ("/sys", new("sysfs", Vec::new()), NOSUID | NOEXEC | NODEV | kernel),
        ("/etc/resolv.conf", text(resolv_conf), NOSUID | NOEXEC | NODEV | RO),
        ("/etc/hosts", text(hosts), NOSUID | NOEXEC | NODEV | RO),
        ("/sys/fs/cgroup", Source::Cgroups(None), NOSUID | NOEXEC | NODEV | kernel),
    ];
    let mut result: Vec<Item<'_>> = default
        .into_iter()
        .map(|(dest, source, attributes)| Item {
            dest: dest.to_owned(),
            what: What::Ready(source, attributes),
        })
        .collect();
    let mut own: Vec<(String, &Mount)> = Vec::new();
    for mount in &spec.mounts {
        let dest = base::path::absolute(&mount.dest);
        if dest == "/" {
            return Err(ExecError::Invalid("a mount cannot be at /".to_owned()));
        }
        if dest == "/proc" || dest.starts_with("/proc/") {
            return Err(ExecError::Invalid(format!("mount {dest} is inside of /proc")));
        }
        own.push((dest, mount));
    }
    own.sort_by(|left, right| left.0.cmp(&right.0));
    for (dest, mount) in own {
        let what = What::Given(mount);
        match result.iter_mut().find(|known| known.dest == dest) {
            Some(known) => known.what = what,
            None => result.push(Item { dest, what }),
        }
    }
    Ok(result)
}

struct Item<'a> {
    dest: String,
    what: What<'a>,
}

enum What<'a> {
    Ready(Source, u64),
    Given(&'a Mount),
}

fn attributes(mount: &Mount) -> u64 {
    let MountOptions { nosuid, nodev, noexec } = mount.options;
    let flag = |set, flag| if set { flag } else { 0 };
    let always = match &mount.source {
        MountSource::Tmpfs { .. } => NOSUID,
        MountSource::File { mode, .. } => RO | NOSUID | NODEV | flag(mode & 0o111 == 0, NOEXEC),
        MountSource::Tree { .. } | MountSource::HostPath(_) => 0,
    };
    always
        | flag(mount.readonly, RO)
        | flag(nosuid, NOSUID)
        | flag(nodev, NODEV)
        | flag(noexec, NOEXEC)
}

fn source(source: &MountSource, fds: &mut Fds) -> io::Result<Source> {
    Ok(match source {
        MountSource::Tree { tree: whole, path } => {
            let (tree, path) = tree(whole, path)
                .map_err(|error| base::fs::context(error, "open", path.as_ref()))?;
            Source::Tree { tree: fds.add(tree), path }
        }
        MountSource::Tmpfs { size } => {
            let size = size.map(|size| ("size".to_owned(), Some(size.to_string())));
            Source::New { kind: "tmpfs".to_owned(), options: size.into_iter().collect() }
        }
        MountSource::File { data, uid, gid, mode } => {
            let data = Content::File(fds.add(sys::memfd("file", &data.0)?));
            Source::File { data, uid: *uid, gid: *gid, mode: *mode }
        }
        MountSource::HostPath(path) => {
            let flags = OpenTreeFlags::OPEN_TREE_CLONE
                | OpenTreeFlags::OPEN_TREE_CLOEXEC
                | OpenTreeFlags::AT_RECURSIVE;
            let tree = open_tree(CWD, path, flags)
                .map_err(|error| base::fs::context(error.into(), "open", path))?;
            Source::Tree { tree: fds.add(tree), path: None }
        }
    })
}

/// The place of a new container.
pub fn container(
    spec: &Spec,
    layout: &Layout,
    group: &StepGroup,
    link: Option<Link>,
    fds: &mut Fds,
) -> Result<Container, ExecError> {
    let sandbox = spec.security == Security::Sandbox;
    let (root, _) =
        tree(&spec.root.tree, "").map_err(|error| ExecError::setup("clone the root", error))?;
    let root = fds.add(root);
    let mut planned = Vec::new();
    for Item { dest, what } in mounts(spec)? {
        let (source, attributes) = match what {
            What::Ready(Source::Cgroups(None), attributes) if !group.is_empty() => {
                let groups = group_trees(group, fds)
                    .map_err(|error| ExecError::setup("open control groups", error))?;
                (Source::Cgroups(Some(groups)), attributes)
            }
            What::Ready(source, attributes) => (source, attributes),
            What::Given(mount) => {
                let source = source(&mount.source, fds).map_err(|error| ExecError::Mount {
                    dest: mount.dest.clone(),
                    reason: error.to_string(),
                })?;
                (source, attributes(mount))
            }
        };
        planned.push(PlannedMount { dest, source, attributes });
    }
    if let Some(path) = &spec.emulator {
        let mount = Mount::new(EMULATOR, MountSource::HostPath(path.clone())).readonly();
        let source = source(&mount.source, fds).map_err(|error| ExecError::Mount {
            dest: EMULATOR.to_owned(),
            reason: error.to_string(),
        })?;
        planned.push(PlannedMount {
            dest: EMULATOR.to_owned(),
            source,
            attributes: attributes(&mount),
        });
    }
    let network = match &spec.namespace {
        None => None,
        Some(network) => {
            let fd = network.fd().try_clone();
            Some(fds.add(fd.map_err(|error| ExecError::setup("hand over a network", error))?))
        }
    };
    let visible = |path: &&&str| sandbox && !(spec.no_process_sandbox && path.starts_with("/proc"));
    let paths = |list: &[&str]| list.iter().filter(visible).map(|path| path.to_string()).collect();
    Ok(Container {
        hostname: hostname(spec).to_owned(),
        own_network: spec.has_own_network(),
        network,
        link,
        own_pids: !spec.no_process_sandbox,
        root,
        root_readonly: spec.root.readonly,
        nodev: sandbox && layout.devices.is_none(),
        mounts: planned,
        masked: paths(&MASKED),
        readonly: paths(&READONLY),
        devices: devices(spec),
    })
}

/// The host name shown.
pub fn hostname(spec: &Spec) -> &str {
    if spec.hostname.is_empty() { crate::DEFAULT_HOSTNAME } else { &spec.hostname }
}

/// Control groups as trees, by the name of their folder.
fn group_trees(group: &StepGroup, fds: &mut Fds) -> io::Result<Vec<(String, Fd)>> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let mut trees = Vec::new();
    for (name, folder) in group.folders() {
        trees.push((name.clone(), fds.add(open_tree(CWD, folder, flags)?)));
    }
    Ok(trees)
}

/// Devices beside the standard ones.
pub fn devices(spec: &Spec) -> Vec<PlannedDevice> {
    let given = spec.devices.iter().map(|device: &Device| PlannedDevice {
        path: base::path::absolute(&device.path),
        block: device.kind == DeviceKind::Block,
        major: device.major,
        minor: device.minor,
        mode: device.mode,
        uid: device.uid,
        gid: device.gid,
    });
    let mut all: Vec<PlannedDevice> = given.collect();
    if spec.security == Security::Insecure {
        let device = |path: String, block, major, minor| PlannedDevice {
            path,
            block,
            major,
            minor,
            mode: 0o666,
            uid: 0,
            gid: 0,
        };
        for (name, major, minor) in [
            ("kmsg", 1, 11),
            ("cuse", 10, 203),
            ("fuse", 10, 229),
            ("kvm", 10, 232),
            ("net/tun", 10, 200),
            ("loop-control", 10, 237),
        ] {
            all.push(device(format!("/dev/{name}"), false, major, minor));
        }
        if let Some(free) = free_loop_device() {
            all.extend((0..=free + 7).map(|n| device(format!("/dev/loop{n}"), true, 7, n)));
        }
    }
    all
}

fn free_loop_device() -> Option<u32> {
    use std::os::fd::AsRawFd as _;
    const LOOP_CTL_GET_FREE: libc::c_ulong = 0x4c82;
    let control = std::fs::File::open("/dev/loop-control").ok()?;
    // SAFETY: the request takes no argument.
    let free = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE as _) };
    u32::try_from(free).ok()
}

/// What the process gives up.
pub fn confinement(spec: &Spec, layout: &Layout) -> Confinement {
    let sandbox = spec.security == Security::Sandbox;
    Confinement {
        capabilities: sandbox
            .then(|| spec.capabilities.apply(sandbox_capabilities(layout.devices.is_some()))),
        seccomp: sandbox,
        apparmor: spec.apparmor_profile.clone().filter(|_| sandbox),
        oom_score_adj: spec.oom_score_adj,
        most_allocated: spec.most_allocated,
    }
}

/// The program with its streams. With a terminal these stay with the caller.
pub fn program(
    process: &Process,
    user: User,
    emulator: bool,
    io: Io,
    fds: &mut Fds,
) -> Result<(Program, Option<Io>), ExecError> {
    if process.args.is_empty() {
        return Err(ExecError::Invalid("no program is given".to_owned()));
    }
    let mut args = process.args.clone();
    if emulator {
        args.insert(0, EMULATOR.to_owned());
    }
    let (streams, terminal) = if process.terminal {
        ([None; 3], Some(io))
    } else {
        let mut add = |fd: Option<OwnedFd>| fd.map(|fd| fds.add(fd));
        ([add(io.stdin), add(io.stdout), add(io.stderr)], None)
    };
    let rlimits = process.rlimits.iter().map(rlimit).collect::<Result<_, _>>()?;
    let program = Program {
        args,
        env: process.env.clone(),
        cwd: base::path::absolute(&process.cwd),
        user,
        rlimits,
        io: streams,
        terminal: process.terminal,
    };
    Ok((program, terminal))
}

/// A whole plan.
pub fn plan(program: Program, confinement: Confinement, join: Vec<Fd>, place: Place) -> Plan {
    Plan { program, confinement, join_cgroups: join, place }
}

/// Names of limits by their numbers.
const RLIMITS: [(&str, u32); 16] = [
    ("CPU", libc::RLIMIT_CPU),
    ("FSIZE", libc::RLIMIT_FSIZE),
    ("DATA", libc::RLIMIT_DATA),
    ("STACK", libc::RLIMIT_STACK),
    ("CORE", libc::RLIMIT_CORE),
    ("RSS", libc::RLIMIT_RSS),
    ("NPROC", libc::RLIMIT_NPROC),
    ("NOFILE", libc::RLIMIT_NOFILE),
    ("MEMLOCK", libc::RLIMIT_MEMLOCK),
    ("AS", libc::RLIMIT_AS),
    ("LOCKS", libc::RLIMIT_LOCKS),
    ("SIGPENDING", libc::RLIMIT_SIGPENDING),
    ("MSGQUEUE", libc::RLIMIT_MSGQUEUE),
    ("NICE", libc::RLIMIT_NICE),
    ("RTPRIO", libc::RLIMIT_RTPRIO),
    ("RTTIME", libc::RLIMIT_RTTIME),
];

/// A limit by its number, soft and hard.
pub fn rlimit(limit: &crate::Rlimit) -> Result<(u32, u64, u64), ExecError> {
    let name = limit.name.to_uppercase();
    let number = RLIMITS.iter().find(|(known, _)| *known == name).map(|(_, number)| *number);
    let number =
        number.ok_or_else(|| ExecError::Invalid(format!("unknown limit `{}`", limit.name)))?;
    let value = |value: i64| u64::try_from(value).unwrap_or(libc::RLIM_INFINITY);
    Ok((number, value(limit.soft), value(limit.hard)))
}
