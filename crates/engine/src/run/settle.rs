//! From what was asked and what the image says to what a container is.
//!
//! Everything that can be wrong with a request is found here, before anything is made.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use base::Platform;
use executor::{
    Dns, Mount, MountOptions, MountSource, Network, Process, Resources, Rlimit, Security,
    spec::Capabilities,
};
use frontend_api::{Code, FrontendError};
use oci::{ImageConfig, config::RunConfig};
use proto::rbuild::v1 as wire;

use super::{Port, Volumes, health::Check, volumes::make_folder};
use crate::{Engine, failure};

/// Microseconds over which a share of the processors is measured.
const CPU_PERIOD: u64 = 100_000;
/// Less memory than this does not even start a program.
const LEAST_MEMORY: u64 = 6 << 20;

/// A container in every detail but its files.
pub(super) struct Settled {
    pub process: Process,
    pub mounts: Vec<Mounted>,
    pub hostname: String,
    pub network: Network,
    pub security: Security,
    pub capabilities: Capabilities,
    pub resources: Resources,
    pub oom_score_adj: Option<i32>,
    pub extra_hosts: Vec<executor::ExtraHost>,
    pub dns: Dns,
    pub shm_size: Option<u64>,
    pub emulator: Option<std::path::PathBuf>,
    pub readonly: bool,
    pub ports: Vec<Port>,
    /// Volumes that have to be filled from the image: name and place.
    pub fresh: Vec<(String, String)>,
    /// Volumes without a name of the user's, which go with the container.
    pub anonymous: Vec<String>,
    /// How it is asked whether it is well.
    pub check: Option<Check>,
}

/// A mount and where it comes from, for people.
pub(super) struct Mounted {
    pub mount: Mount,
    pub shown: wire::ContainerMount,
}

fn bad(text: impl Into<String>) -> FrontendError {
    FrontendError::with_code(Code::InvalidArgument, text)
}

impl Settled {
    pub(super) fn new(
        engine: &Engine,
        volumes: &Volumes,
        id: &str,
        request: &wire::RunRequest,
        image: &ImageConfig,
        platform: &Platform,
    ) -> Result<Self, FrontendError> {
        let config = &image.config;
        let pick = |asked: &str, image: &str| {
            if asked.is_empty() { image.to_owned() } else { asked.to_owned() }
        };
        let network = network(&request.network)?;
        let hostname = match (network, request.hostname.as_str()) {
            (Network::Host, "") => {
                rustix::system::uname().nodename().to_string_lossy().into_owned()
            }
            _ => pick(&request.hostname, &id[..12]),
        };
        if !request.workdir.is_empty() && !request.workdir.starts_with('/') {
            return Err(bad(format!(
                "the working directory '{}' is invalid, it needs to be an absolute path",
                request.workdir
            )));
        }
        let rlimits = request.ulimits.iter().map(|limit| Rlimit {
            name: limit.name.clone(),
            soft: limit.soft,
            hard: limit.hard,
        });
        let process = Process {
            args: arguments(request, config)?,
            env: environment(request, config, &hostname),
            cwd: pick(&request.workdir, &config.working_dir),
            user: pick(&request.user, &config.user),
            rlimits: rlimits.collect(),
            terminal: request.tty,
        };
        let ports = ports(request, config)?;
        if network != Network::Isolated && !ports.is_empty() {
            return Err(bad(format!(
                "ports cannot be published with --network {}",
                request.network
            )));
        }
        let capabilities =
            Capabilities::parse(&request.cap_add, &request.cap_drop).map_err(|name| {
                bad(format!("invalid CapAdd or CapDrop: unknown capability: {name:?}"))
            })?;
        let security = match request.privileged {
            false => Security::Sandbox,
            true if engine.settings.entitlements.contains("security.insecure") => {
                Security::Insecure
            }
            true => {
                return Err(FrontendError::with_code(
                    Code::PermissionDenied,
                    "privileged containers are not allowed: start the daemon with \
                     --allow-insecure-entitlement security.insecure, or use --cap-add",
                ));
            }
        };
        let emulator =
            engine.machine().emulator(platform).map_err(|error| failure::from_op(&error))?;
        let mut settled = Self {
            process,
            mounts: Vec::new(),
            hostname,
            network,
            security,
            capabilities,
            resources: resources(request)?,
            oom_score_adj: oom_score_adj(request)?,
            extra_hosts: extra_hosts(&request.extra_hosts)?,
            dns: dns(engine, request)?,
            shm_size: (request.shm_size > 0).then_some(request.shm_size),
            emulator,
            readonly: request.read_only,
            ports,
            fresh: Vec::new(),
            anonymous: Vec::new(),
            check: Check::of(request.healthcheck.as_ref(), image),
        };
        for tmpfs in &request.tmpfs {
            settled.tmpfs(tmpfs)?;
        }
        let asked = request.volumes.iter().map(|text| VolumeSpec::parse(text));
        let asked = asked.chain(request.mounts.iter().map(VolumeSpec::of));
        for spec in asked.collect::<Result<Vec<_>, _>>()? {
            if settled.is_taken(&spec.target) {
                return Err(bad(format!("Duplicate mount point: {}", spec.target)));
            }
            settled.volume(volumes, spec)?;
        }
        for target in config.volumes.keys().map(|target| base::path::absolute(target)) {
            if target != "/" && !settled.is_taken(&target) {
                settled.volume(volumes, VolumeSpec { target, ..VolumeSpec::default() })?;
            }
        }
        // What lies deeper goes on top.
        settled.mounts.sort_by_key(|it| base::path::absolute(&it.mount.dest).matches('/').count());
        Ok(settled)
    }

    /// Whether something is mounted at a place.
    fn is_taken(&self, target: &str) -> bool {
        let target = base::path::absolute(target);
        self.mounts.iter().any(|it| base::path::absolute(&it.mount.dest) == target)
    }

    fn tmpfs(&mut self, tmpfs: &wire::Tmpfs) -> Result<(), FrontendError> {
        if !tmpfs.path.starts_with('/') {
            return Err(bad(format!("tmpfs {:?}: mount path must be absolute", tmpfs.path)));
        }
        let size = (tmpfs.size > 0).then_some(tmpfs.size);
        let options = MountOptions { nosuid: true, nodev: true, noexec: !tmpfs.exec };
        let source = MountSource::Tmpfs { size };
        self.mounts.push(Mounted {
            mount: Mount { dest: tmpfs.path.clone(), source, readonly: tmpfs.read_only, options },
            shown: wire::ContainerMount {
                kind: "tmpfs".into(),
                target: tmpfs.path.clone(),
                read_only: tmpfs.read_only,
                ..Default::default()
            },
        });
        Ok(())
    }

    fn volume(&mut self, volumes: &Volumes, spec: VolumeSpec) -> Result<(), FrontendError> {
        let VolumeSpec { source, target, readonly, must_exist } = spec;
        let (kind, name, path) = match source {
            Some(path) if path.starts_with('/') => {
                let exists = std::path::Path::new(&path).exists();
                if must_exist && !exists {
                    return Err(bad(format!(
                        "invalid mount config for type \"bind\": bind source path does not exist: \
                         {path}"
                    )));
                }
                if !exists {
                    make_folder(path.as_ref()).map_err(|error| {
                        bad(format!("error while creating mount source path '{path}': {error}"))
                    })?;
                }
                ("bind", String::new(), path)
            }
            source => {
                let name = source.unwrap_or_else(|| {
                    let name = base::id::random_hex(32);
                    self.anonymous.push(name.clone());
                    name
                });
                let (volume, _) = volumes.ensure(&name)?;
                let empty =
                    std::fs::read_dir(&volume.path).is_ok_and(|mut dir| dir.next().is_none());
                if empty {
                    self.fresh.push((name.clone(), target.clone()));
                }
                ("volume", name, volume.path.display().to_string())
            }
        };
        self.mounts.push(Mounted {
            mount: Mount {
                dest: target.clone(),
                source: MountSource::HostPath(path.clone().into()),
                readonly,
                options: MountOptions::default(),
            },
            shown: wire::ContainerMount {
                kind: kind.into(),
                name,
                source: path,
                target,
                read_only: readonly,
            },
        });
        Ok(())
    }
}

/// A `-v` argument taken apart: `HOST:CONTAINER[:OPTIONS]`, `NAME:CONTAINER[:OPTIONS]` or
/// `CONTAINER`.
#[derive(Debug, Default, PartialEq, Eq)]
struct VolumeSpec {
    /// Absent: a volume without name.
    source: Option<String>,
    target: String,
    readonly: bool,
    /// A folder of the host is not made.
    must_exist: bool,
}

impl VolumeSpec {
    fn parse(text: &str) -> Result<Self, FrontendError> {
        let wrong = |why: &str| bad(format!("invalid volume specification: '{text}': {why}"));
        let parts: Vec<&str> = text.split(':').collect();
        let (source, target, options) = match parts.as_slice() {
            [target] => (None, *target, ""),
            [source, target] => (Some(*source), *target, ""),
            [source, target, options] => (Some(*source), *target, *options),
            _ => return Err(wrong("too many colons")),
        };
        if !target.starts_with('/') {
            return Err(wrong("mount path must be absolute"));
        }
        if base::path::absolute(target) == "/" {
            return Err(wrong("destination can't be '/'"));
        }
        let mut readonly = false;
        for option in options.split(',').filter(|option| !option.is_empty()) {
            match option {
                "ro" | "readonly" => readonly = true,
                // Nothing is relabelled, and mounts are private here.
                "rw" | "z" | "Z" | "rprivate" | "private" | "nocopy" => {}
                other => return Err(wrong(&format!("invalid mode: {other}"))),
            }
        }
        if source == Some("") {
            return Err(wrong("empty section between colons"));
        }
        let source = source.map(str::to_owned);
        Ok(Self { source, target: target.to_owned(), readonly, must_exist: false })
    }

    /// A `--mount`, which nothing has to be split of.
    fn of(asked: &wire::MountAsked) -> Result<Self, FrontendError> {
        let wire::MountAsked { kind, source, target, read_only } = asked.clone();
        let wrong = |why: &str| bad(format!("invalid mount config for type {kind:?}: {why}"));
        if !target.starts_with('/') {
            return Err(wrong(&format!(
                "invalid mount path: '{target}' mount path must be absolute"
            )));
        }
        if base::path::absolute(&target) == "/" {
            return Err(wrong("invalid specification: destination can't be '/'"));
        }
        let bind = match kind.as_str() {
            "bind" => true,
            "volume" => false,
            _ => return Err(wrong("unknown type: use bind or volume")),
        };
        if bind && !source.starts_with('/') {
            return Err(wrong(&format!("invalid mount path: '{source}' must be absolute")));
        }
        if !bind && source.contains('/') {
            return Err(wrong(&format!("{source:?} is not the name of a volume")));
        }
        let source = Some(source).filter(|source| !source.is_empty());
        Ok(Self { source, target, readonly: read_only, must_exist: true })
    }
}

fn arguments(request: &wire::RunRequest, config: &RunConfig) -> Result<Vec<String>, FrontendError> {
    let entrypoint = request.entrypoint.as_ref().map(|entrypoint| entrypoint.args.clone());
    let own = entrypoint.is_some();
    let mut args = entrypoint.unwrap_or_else(|| config.entrypoint.clone());
    if !request.args.is_empty() {
        args.extend(request.args.iter().cloned());
    } else if !own {
        args.extend(config.cmd.iter().cloned());
    }
    if args.is_empty() {
        return Err(bad("no command specified: the image names none, give one after the image"));
    }
    Ok(args)
}

fn environment(request: &wire::RunRequest, config: &RunConfig, hostname: &str) -> Vec<String> {
    let mut env = vec![format!("HOSTNAME={hostname}")];
    if request.tty {
        env.push("TERM=xterm".into());
    }
    env.extend(config.env.iter().chain(&request.env).cloned());
    executor::env::with_default_path("linux", &mut env);
    executor::env::unique(&env)
}

fn network(name: &str) -> Result<Network, FrontendError> {
    match name {
        "" | "bridge" | "default" => Ok(Network::Isolated),
        "host" => Ok(Network::Host),
        "none" => Ok(Network::None),
        other => {
            Err(bad(format!("network {other} not found: use bridge (the default), host or none")))
        }
    }
}

fn ports(request: &wire::RunRequest, config: &RunConfig) -> Result<Vec<Port>, FrontendError> {
    let mut ports = request.ports.iter().map(Port::from_wire).collect::<Result<Vec<_>, _>>()?;
    if request.publish_all {
        let exposed = config.exposed_ports.keys().chain(&request.expose).filter_map(|text| {
            let (number, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
            let udp = protocol == "udp";
            (udp || protocol == "tcp").then(|| Some((number.parse::<u16>().ok()?, udp)))?
        });
        for (container, udp) in exposed {
            if !ports.iter().any(|port| port.container == container && port.udp == udp) {
                let host = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0);
                ports.push(Port { host, container, udp });
            }
        }
    }
    Ok(ports)
}

fn resources(request: &wire::RunRequest) -> Result<Resources, FrontendError> {
    let number = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
    if (1..LEAST_MEMORY).contains(&request.memory) {
        return Err(bad("Minimum memory limit allowed is 6MB"));
    }
    let swap = request.memory_swap;
    if swap != 0 && request.memory == 0 {
        return Err(bad("You should always set the Memory limit when using Memoryswap limit"));
    }
    if swap > 0 && swap < number(request.memory) {
        return Err(bad("Minimum memoryswap limit should be larger than memory limit, see usage"));
    }
    let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get) as u64;
    if request.cpu_millis > processors * 1000 {
        return Err(bad(format!(
            "range of CPUs is from 0.01 to {processors}.00, as there are only {processors} CPUs \
             available"
        )));
    }
    if request.cpu_millis > 0 && (request.cpu_period > 0 || request.cpu_quota > 0) {
        return Err(bad("Conflicting options: CPUs and CPU period or quota cannot both be set"));
    }
    let mut resources = Resources {
        memory: number(request.memory),
        memory_swap: swap,
        cpu_shares: request.cpu_shares,
        cpu_quota: request.cpu_quota,
        cpu_period: request.cpu_period,
        cpuset_cpus: request.cpuset_cpus.clone(),
        cpuset_mems: request.cpuset_mems.clone(),
        pids: number(request.pids),
    };
    if request.cpu_millis > 0 {
        resources.cpu_period = CPU_PERIOD;
        resources.cpu_quota = number(request.cpu_millis.saturating_mul(CPU_PERIOD / 1000));
    }
    Ok(resources)
}

fn oom_score_adj(request: &wire::RunRequest) -> Result<Option<i32>, FrontendError> {
    match request.oom_score_adj {
        0 => Ok(None),
        score @ -1000..=1000 => Ok(Some(score)),
        score => {
            Err(bad(format!("Invalid value {score}, range for oom score adj is [-1000, 1000]")))
        }
    }
}

fn extra_hosts(lines: &[String]) -> Result<Vec<executor::ExtraHost>, FrontendError> {
    let line = |line: &String| {
        let parts = line.split_once(['=', ':']);
        let (host, address) =
            parts.ok_or_else(|| bad(format!("bad format for add-host: {line:?}")))?;
        if address == "host-gateway" {
            return Err(bad(format!(
                "--add-host {line}: host-gateway is not supported, give the address"
            )));
        }
        let address = address.trim_start_matches('[').trim_end_matches(']');
        let ip = address
            .parse()
            .map_err(|_| bad(format!("invalid IP address in add-host: {address:?}")))?;
        Ok(executor::ExtraHost { host: host.to_owned(), ip })
    };
    lines.iter().map(line).collect()
}

fn dns(engine: &Engine, request: &wire::RunRequest) -> Result<Dns, FrontendError> {
    let mut dns = engine.machine().config.dns.clone();
    if !request.dns.is_empty() {
        let parse = |text: &String| {
            text.parse::<IpAddr>().map_err(|_| bad(format!("invalid IP address in dns: {text:?}")))
        };
        dns.nameservers = request.dns.iter().map(parse).collect::<Result<_, _>>()?;
    }
    if !request.dns_search.is_empty() {
        dns.search_domains.clone_from(&request.dns_search);
    }
    if !request.dns_options.is_empty() {
        dns.options.clone_from(&request.dns_options);
    }
    Ok(dns)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volume_arguments() {
        let parse = |text: &str| match VolumeSpec::parse(text) {
            Ok(spec) => format!("{:?} {} {}", spec.source, spec.target, spec.readonly),
            Err(error) => error.message,
        };
        assert_eq!(parse("/a:/b:ro"), "Some(\"/a\") /b true");
        assert_eq!(parse("data:/b"), "Some(\"data\") /b false");
        assert_eq!(parse("/cache"), "None /cache false");
        for wrong in ["a:b", "a:/", ":/b", "a:/b:fast", "a:/b:ro:x"] {
            assert!(parse(wrong).starts_with("invalid volume"), "{wrong}");
        }
    }

    #[test]
    fn mount_arguments() {
        let parse = |kind: &str, source: &str, target: &str| {
            let (kind, source, target) = (kind.into(), source.into(), target.into());
            let asked = wire::MountAsked { kind, source, target, read_only: true };
            match VolumeSpec::of(&asked) {
                Ok(spec) => format!("{:?} {} {}", spec.source, spec.target, spec.must_exist),
                Err(error) => error.message,
            }
        };
        assert_eq!(parse("bind", "/a:b", "/c:d"), "Some(\"/a:b\") /c:d true");
        assert_eq!(parse("volume", "", "/c"), "None /c true");
        for (kind, source, target) in
            [("bind", "a", "/b"), ("volume", "/a", "/b"), ("image", "a", "/b"), ("bind", "/a", "b")]
        {
            assert!(parse(kind, source, target).starts_with("invalid mount config"), "{source}");
        }
    }

    #[test]
    fn limits() {
        let check = |request: wire::RunRequest| match resources(&request) {
            Ok(resources) => format!("{} {}", resources.memory, resources.memory_swap),
            Err(error) => error.message,
        };
        let memory = |memory: u64, memory_swap: i64| {
            check(wire::RunRequest { memory, memory_swap, ..Default::default() })
        };
        assert_eq!(memory(64 << 20, -1), "67108864 -1");
        assert_eq!(memory(1 << 20, 0), "Minimum memory limit allowed is 6MB");
        assert!(memory(64 << 20, 32 << 20).starts_with("Minimum memoryswap"));
        assert!(memory(0, -1).starts_with("You should always set the Memory limit"));
        let many = wire::RunRequest { cpu_millis: 1_000_000_000, ..Default::default() };
        assert!(check(many).starts_with("range of CPUs is from 0.01 to"));
        let both = wire::RunRequest { cpu_millis: 100, cpu_quota: 1, ..Default::default() };
        assert!(check(both).starts_with("Conflicting options"));
    }

    #[test]
    fn entrypoint_and_command() {
        let config = RunConfig {
            entrypoint: vec!["e".into()],
            cmd: vec!["c".into()],
            ..RunConfig::default()
        };
        let args = |entrypoint: Option<&[&str]>, args: &[&str]| {
            let owned = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect();
            let request = wire::RunRequest {
                entrypoint: entrypoint.map(|list| wire::Entrypoint { args: owned(list) }),
                args: owned(args),
                ..Default::default()
            };
            arguments(&request, &config).map(|args| args.join(" ")).unwrap_or_default()
        };
        assert_eq!(args(None, &[]), "e c");
        assert_eq!(args(None, &["x"]), "e x");
        assert_eq!(args(Some(&["n"]), &[]), "n");
        assert_eq!(args(Some(&[]), &["x"]), "x");
        assert_eq!(args(Some(&[]), &[]), "");
    }
}
