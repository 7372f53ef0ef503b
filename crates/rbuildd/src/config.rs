//! Settings: the file `buildkitd.toml`, with flags over it.
//!
//! Keys that mean nothing here are named in a warning; values that cannot be read, or ask for
//! something that does not exist, are errors. Source: control notes §14–15.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, bail};
use base::Platform;
use engine::HistoryLimits;
use serde::Deserialize;
use store::{Filter, GcPolicy};
use toml::{Table, Value};

use crate::flags::Flags;

/// Everything the daemon is told.
#[derive(Debug)]
pub struct Config {
    /// State folder.
    pub root: PathBuf,
    /// Where to listen.
    pub addresses: Vec<String>,
    /// Owner of Unix sockets.
    pub socket_owner: (u32, u32),
    /// TLS of TCP listeners: certificate, key, authority.
    pub tls: Option<Tls>,
    /// TCP without TLS on loopback.
    pub allow_plain_loopback: bool,
    /// Debugging address.
    pub debug_address: Option<String>,
    /// `error` … `trace`.
    pub log_level: String,
    /// JSON instead of text.
    pub log_json: bool,
    /// Entitlements clients may be granted.
    pub entitlements: BTreeSet<String>,
    /// Devices that steps may ask for.
    pub devices: ops::cdi::Devices,
    /// Worker labels of the user.
    pub labels: BTreeMap<String, String>,
    /// Platforms offered; empty is detected.
    pub platforms: Vec<Platform>,
    /// Snapshot driver.
    pub snapshotter: snapshot::Choice,
    /// Network of steps.
    pub network: executor::Network,
    /// Addresses of containers with a network of their own.
    pub bridge_subnet: executor::Subnet,
    /// Resolver settings.
    pub dns: executor::Dns,
    /// Runtime instead of the built-in one.
    pub runtime: Option<PathBuf>,
    /// AppArmor profile.
    pub apparmor_profile: Option<String>,
    /// Parent of control groups.
    pub cgroup_parent: String,
    /// Without process namespaces.
    pub no_process_sandbox: bool,
    /// Steps at once.
    pub max_parallelism: u32,
    /// Collect garbage.
    pub gc: bool,
    /// Policies; empty is the default ones.
    pub policies: Vec<GcPolicy>,
    /// Limits of the default policies; 0 is their default.
    pub spaces: Spaces,
    /// The most the state folder may take.
    pub ceiling: Option<u64>,
    /// History kept.
    pub history: HistoryLimits,
    /// Whether the Dockerfile frontend is there.
    pub dockerfile: bool,
    /// Whether steps reach the network through a recording proxy only.
    pub proxy_network: bool,
    /// Added to what provenance tells of the builder.
    pub provenance: BTreeMap<String, serde_json::Value>,
    /// Which images may be frontends.
    pub frontend_images: engine::FrontendImages,
    /// Registries by host.
    pub registries: oci::registry::Hosts,
    /// Connections per registry.
    pub registry_concurrency: usize,
    /// How long builds may go on after SIGTERM.
    pub drain_timeout: Duration,
    /// End after idling.
    pub idle_timeout: Option<Duration>,
    /// Things to tell once logging works.
    pub warnings: Vec<String>,
}

/// TLS files.
#[derive(Debug, Clone)]
pub struct Tls {
    /// Certificate chain.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// Authority of clients' certificates; required.
    pub ca: Option<PathBuf>,
}

/// Where devices are described unless the settings say otherwise.
const CDI_FOLDERS: [&str; 3] = ["/etc/cdi", "/var/run/cdi", "/etc/buildkit/cdi"];

/// A lower ceiling is a mistake.
const LOWEST_CEILING: u64 = 64 << 20;

/// Limits of the default policies in bytes.
#[derive(Debug, Clone, Copy, Default)]
pub struct Spaces {
    /// Never collect below.
    pub reserved: u64,
    /// Collect above.
    pub max_used: u64,
    /// Keep free.
    pub min_free: u64,
}

/// Keys that are read, `*` standing for any name; and what to say of those that have no effect.
const KNOWN: &[&str] = &[
    "cdi.disabled",
    "cdi.specDirs",
    "cdi.autoAllowed",
    "debug",
    "drainTimeout",
    "trace",
    "root",
    "insecure-entitlements",
    "log.format",
    "log.level",
    "grpc.address",
    "grpc.debugAddress",
    "grpc.uid",
    "grpc.gid",
    "grpc.tls.cert",
    "grpc.tls.key",
    "grpc.tls.ca",
    "dns.nameservers",
    "dns.options",
    "dns.searchDomains",
    "history.maxAge",
    "history.maxEntries",
    "frontend.*.enabled",
    "frontend.gateway.v0.allowedRepositories",
    "system.maxRegistryConcurrency",
    "registry.*.mirrors",
    "registry.*.http",
    "registry.*.insecure",
    "registry.*.ca",
    "registry.*.tlsconfigdir",
    "registry.*.keypair",
    "worker.oci.enabled",
    "worker.oci.labels",
    "worker.oci.platforms",
    "worker.oci.snapshotter",
    "worker.oci.noProcessSandbox",
    "worker.oci.binary",
    "worker.oci.apparmor-profile",
    "worker.oci.defaultCgroupParent",
    "worker.oci.max-parallelism",
    "worker.oci.networkMode",
    "worker.oci.bridgeSubnet",
    "worker.oci.gc",
    "worker.oci.reservedSpace",
    "worker.oci.maxUsedSpace",
    "worker.oci.minFreeSpace",
    "worker.oci.gckeepstorage",
    "worker.oci.ceiling",
    "worker.oci.gcpolicy",
    "worker.containerd.enabled",
    "proxyNetwork",
    "otel.socketPath",
    "provenanceEnvDir",
];
/// Keys of the original that are read by it but not here.
const WITHOUT_EFFECT: &[&str] = &[
    "grpc.securityDescriptor",
    "system.platformsCacheMaxAge",
    "cache",
    "worker.containerd",
    "worker.oci.rootless",
    "worker.oci.selinux",
    "worker.oci.proxySnapshotterPath",
    "worker.oci.stargzSnapshotter",
    "worker.oci.cniConfigPath",
    "worker.oci.cniBinaryPath",
    "worker.oci.cniPoolSize",
    "worker.oci.bridgeName",
];

impl Config {
    /// Reads the file and puts the flags over it.
    pub fn load(flags: &Flags) -> anyhow::Result<Self> {
        let path = flags.config.clone().unwrap_or_else(|| "/etc/buildkit/buildkitd.toml".into());
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error)
                if error.kind() == std::io::ErrorKind::NotFound && flags.config.is_none() =>
            {
                String::new()
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                bail!("configuration file {} does not exist", path.display())
            }
            Err(error) => {
                return Err(error)
                    .with_context(|| format!("read configuration {}", path.display()));
            }
        };
        Self::from_text(&text, flags).with_context(|| format!("configuration {}", path.display()))
    }

    fn from_text(text: &str, flags: &Flags) -> anyhow::Result<Self> {
        let table: Table = text.parse().context("not valid TOML")?;
        let mut warnings = Vec::new();
        unknown_keys("", &table, &mut warnings);
        let file: File = table.try_into().context("value of the wrong kind")?;
        refuse(flags, &file)?;
        let oci = file.worker.oci;
        let root = flags.root.clone().or(file.root).unwrap_or_else(|| "/var/lib/buildkit".into());
        let mut addresses = flags.addr.clone();
        if addresses.is_empty() {
            addresses = file.grpc.address;
        }
        if addresses.is_empty() {
            addresses = vec!["unix:///run/buildkit/buildkitd.sock".into()];
        }
        let debug = flags.debug.unwrap_or(file.debug);
        let trace = flags.trace.unwrap_or(file.trace);
        let level = flags.log_level.clone().or(file.log.level);
        let log_level = match level {
            Some(level)
                if matches!(
                    level.as_str(),
                    "error" | "warn" | "warning" | "info" | "debug" | "trace"
                ) =>
            {
                level.replace("warning", "warn")
            }
            Some(level) if matches!(level.as_str(), "fatal" | "panic") => "error".into(),
            Some(level) => {
                bail!("unknown log level {level:?}; use error, warn, info, debug or trace")
            }
            None if trace => "trace".into(),
            None if debug => "debug".into(),
            None => "info".into(),
        };
        let log_json = match flags.log_format.clone().or(file.log.format).as_deref() {
            None | Some("text") => false,
            Some("json") => true,
            Some(other) => bail!("unknown log format {other:?}; use text or json"),
        };
        let names = if flags.allow_insecure_entitlement.is_empty() {
            file.insecure_entitlements
        } else {
            flags.allow_insecure_entitlement.clone()
        };
        let mut entitlements = BTreeSet::new();
        for name in names {
            match name.as_str() {
                "network.host" | "security.insecure" | "device" => _ = entitlements.insert(name),
                other => bail!(
                    "unknown entitlement {other:?}; there are network.host, security.insecure and device"
                ),
            }
        }
        let cdi_disabled = flags.cdi_disabled.or(file.cdi.disabled).unwrap_or(false);
        let mut devices = ops::cdi::Devices::default();
        if !cdi_disabled {
            entitlements.insert("device".into());
            devices.folders = [flags.cdi_spec_dir.clone(), file.cdi.folders]
                .into_iter()
                .find(|folders| !folders.is_empty())
                .unwrap_or_else(|| CDI_FOLDERS.map(PathBuf::from).to_vec());
            devices.auto_allowed = file.cdi.auto_allowed.into_iter().collect();
        }
        let mut labels = oci.labels;
        for label in &flags.oci_worker_labels {
            let (key, value) = label
                .split_once('=')
                .with_context(|| format!("worker label {label:?} is not KEY=VALUE"))?;
            labels.insert(key.to_owned(), value.to_owned());
        }
        let platforms = if flags.oci_worker_platform.is_empty() {
            oci.platforms
        } else {
            flags.oci_worker_platform.clone()
        };
        let platforms = platforms
            .iter()
            .map(|text| {
                Platform::parse(text).map(|platform| platform.normalize()).map_err(Into::into)
            })
            .collect::<anyhow::Result<_>>()?;
        let snapshotter = match flags.oci_worker_snapshotter.clone().or(oci.snapshotter).as_deref()
        {
            None | Some("auto" | "") => snapshot::Choice::Auto,
            Some("overlayfs" | "overlay") => snapshot::Choice::Overlay,
            Some("native") => snapshot::Choice::Native,
            Some(other) => {
                bail!("snapshotter {other:?} is not supported; use auto, overlayfs or native")
            }
        };
        let network = match flags.oci_worker_net.clone().or(oci.network_mode).as_deref() {
            None | Some("auto" | "" | "host") => executor::Network::Host,
            Some("none") => executor::Network::None,
            Some("bridge") => executor::Network::Isolated,
            Some(other) => {
                bail!("network mode {other:?} is not supported; use auto, host, bridge or none")
            }
        };
        let subnet = oci.bridge_subnet.as_deref().unwrap_or("10.10.0.0/16");
        let bridge_subnet = subnet
            .parse()
            .with_context(|| format!("bridgeSubnet {subnet:?} is not a range of IPv4 addresses"))?;
        let dns = executor::Dns {
            nameservers: file
                .dns
                .nameservers
                .iter()
                .map(|text| {
                    text.parse().with_context(|| format!("name server {text:?} is not an address"))
                })
                .collect::<anyhow::Result<_>>()?,
            search_domains: file.dns.search_domains,
            options: file.dns.options,
        };
        let disk = root.ancestors().find(|path| path.exists()).and_then(store::disk_total);
        let size =
            |value: &Option<Value>| value.as_ref().map_or(Ok(0), |value| disk_space(value, disk));
        let mut spaces = Spaces {
            reserved: size(&oci.reserved_space.or(oci.gckeepstorage))?,
            max_used: size(&oci.max_used_space)?,
            min_free: size(&oci.min_free_space)?,
        };
        if let Some(text) = &flags.oci_worker_gc_keepstorage {
            spaces = keep_storage(text)?;
        }
        let drain_timeout = match (&flags.drain_timeout, &file.drain_timeout) {
            (Some(text), _) => duration(&Value::String(text.clone()))?,
            (None, Some(value)) => duration(value)?,
            (None, None) => Duration::from_secs(10),
        };
        let ceiling = match &flags.oci_worker_ceiling {
            Some(text) => {
                disk_space(&Value::String(text.clone()), disk).context("--oci-worker-ceiling")?
            }
            None => size(&oci.ceiling)?,
        };
        if (1..LOWEST_CEILING).contains(&ceiling) {
            bail!("a ceiling of {ceiling} bytes leaves no room to build; give at least 64MB");
        }
        let policies = oci
            .gcpolicy
            .into_iter()
            .map(|policy| policy.read(disk))
            .collect::<anyhow::Result<Vec<_>>>()?;
        let mut history = HistoryLimits::default();
        if let Some(age) = &file.history.max_age {
            history.max_age = duration(age)?;
        }
        if let Some(entries) = file.history.max_entries {
            history.max_entries = entries;
        }
        let tls = tls(flags, file.grpc.tls, &addresses, &mut warnings)?;
        let gid = match &flags.group {
            Some(group) => group_id(group)?,
            None => file.grpc.gid.unwrap_or_else(|| rustix::process::getegid().as_raw()),
        };
        let concurrency = file.system.max_registry_concurrency.unwrap_or(4);
        if concurrency == 0 {
            bail!("system.maxRegistryConcurrency must be greater than 0");
        }
        Ok(Self {
            root,
            addresses,
            socket_owner: (
                file.grpc.uid.unwrap_or_else(|| rustix::process::geteuid().as_raw()),
                gid,
            ),
            tls,
            allow_plain_loopback: flags.allow_plain_loopback,
            debug_address: flags
                .debugaddr
                .clone()
                .or(file.grpc.debug_address)
                .filter(|text| !text.is_empty()),
            log_level,
            log_json,
            entitlements,
            devices,
            labels,
            platforms,
            snapshotter,
            network,
            bridge_subnet,
            dns,
            runtime: flags
                .oci_worker_binary
                .clone()
                .or(oci.binary)
                .filter(|name| !name.is_empty())
                .map(PathBuf::from),
            apparmor_profile: flags.oci_worker_apparmor_profile.clone().or(oci.apparmor_profile),
            cgroup_parent: oci.default_cgroup_parent.unwrap_or_default(),
            no_process_sandbox: flags
                .oci_worker_no_process_sandbox
                .or(oci.no_process_sandbox)
                .unwrap_or(false),
            max_parallelism: flags.oci_max_parallelism.or(oci.max_parallelism).unwrap_or(0),
            gc: flags.oci_worker_gc.or(oci.gc).unwrap_or(true),
            policies,
            spaces,
            ceiling: (ceiling > 0).then_some(ceiling),
            history,
            proxy_network: flags.proxy_network.unwrap_or(file.proxy_network),
            dockerfile: file
                .frontend
                .get("dockerfile.v0")
                .and_then(|one| one.enabled)
                .unwrap_or(true),
            provenance: provenance(file.provenance_folder.as_deref())?,
            frontend_images: match file.frontend.get("gateway.v0") {
                Some(FrontendFile { enabled: Some(false), .. }) => engine::FrontendImages::Disabled,
                Some(FrontendFile { allowed, .. }) if !allowed.is_empty() => {
                    engine::FrontendImages::Only(repositories(allowed)?)
                }
                _ => engine::FrontendImages::All,
            },
            registries: oci::registry::Hosts(
                file.registry.into_iter().map(|(host, table)| (host, table.read())).collect(),
            ),
            registry_concurrency: concurrency,
            drain_timeout,
            idle_timeout: flags
                .idle_timeout
                .as_ref()
                .map(|text| {
                    base::time::parse_go_duration(text)
                        .with_context(|| format!("{text:?} is not a duration"))
                })
                .transpose()?,
            warnings,
        })
    }
}

/// What the files of a folder add to provenance; later files win.
fn provenance(folder: Option<&Path>) -> anyhow::Result<BTreeMap<String, serde_json::Value>> {
    const BUILT_IN: [&str; 3] = ["buildConfig", "builderPlatform", "platform"];
    let folder = folder.unwrap_or(Path::new("/etc/buildkit/provenance.d"));
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        Err(error) => bail!("read {}: {error}", folder.display()),
    };
    let mut files = entries
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<Vec<_>, _>>()
        .with_context(|| format!("read {}", folder.display()))?;
    files.retain(|path| path.extension().is_some_and(|it| it == "json") && path.is_file());
    files.sort();
    let mut all = BTreeMap::new();
    for path in files {
        let text = std::fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        let more: BTreeMap<String, serde_json::Value> = serde_json::from_slice(&text)
            .with_context(|| format!("failed to parse {}", path.display()))?;
        all.extend(more);
    }
    if let Some(key) = BUILT_IN.iter().find(|key| all.contains_key(**key)) {
        bail!("key {key:?} is builtin and not allowed to be modified in provenance config");
    }
    Ok(all)
}

/// Settings that ask for something this daemon does not have.
fn refuse(flags: &Flags, file: &File) -> anyhow::Result<()> {
    let boolean = |name: &str, text: &str| match text {
        "true" | "1" => Ok(true),
        "false" | "0" | "auto" | "" => Ok(false),
        other => bail!("--{name} is true, false or auto, not {other:?}"),
    };
    if boolean("containerd-worker", &flags.containerd_worker)? {
        bail!("--containerd-worker=true: there is no containerd worker here; leave the flag out");
    }
    boolean("oci-worker", &flags.oci_worker)?;
    let disabled = matches!(flags.oci_worker.as_str(), "false" | "0")
        || flags.oci_worker == "auto" && file.worker.oci.enabled == Some(false);
    if disabled {
        bail!("--oci-worker=false leaves no worker; leave the flag out");
    }
    if flags.save_cache_debug == Some(true) {
        bail!("--save-cache-debug is not supported; look at the progress log instead");
    }
    if flags.oci_worker_selinux == Some(true) {
        bail!("--oci-worker-selinux is not supported; leave it out");
    }
    if flags.oci_worker_proxy_snapshotter_path.as_deref().is_some_and(|path| !path.is_empty()) {
        bail!(
            "--oci-worker-proxy-snapshotter-path is not supported; use --oci-worker-snapshotter=overlayfs"
        );
    }
    Ok(())
}

fn tls(
    flags: &Flags,
    file: TlsFile,
    addresses: &[String],
    warnings: &mut Vec<String>,
) -> anyhow::Result<Option<Tls>> {
    let cert = flags.tlscert.clone().or(file.cert);
    let key = flags.tlskey.clone().or(file.key);
    let ca = flags.tlscacert.clone().or(file.ca);
    let tls = match (cert, key) {
        (Some(cert), Some(key)) => Some(Tls { cert, key, ca }),
        (None, None) if ca.is_none() => None,
        _ => bail!("TLS needs --tlscert and --tlskey together"),
    };
    if tls.is_some() && !addresses.iter().any(|address| address.starts_with("tcp://")) {
        warnings.push("TLS settings have no effect on Unix sockets".into());
    }
    Ok(tls)
}

/// Repositories in full, whatever tag they are written with.
fn repositories(names: &[String]) -> anyhow::Result<Vec<String>> {
    let full = names.iter().map(|name| {
        let reference = oci::Reference::parse(name);
        let reference = reference.with_context(|| format!("allowedRepositories: {name:?}"))?;
        Ok(reference.repository())
    });
    full.collect()
}

fn unknown_keys(prefix: &str, table: &Table, warnings: &mut Vec<String>) {
    for (key, value) in table {
        let path = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
        let matching = |pattern: &&&str| same_path(pattern, &path);
        if KNOWN.iter().any(|pattern| matching(&pattern)) {
            continue;
        }
        if WITHOUT_EFFECT.iter().any(|pattern| matching(&pattern)) {
            warnings.push(format!("configuration key `{path}` has no effect in this daemon"));
            continue;
        }
        let inside = KNOWN.iter().chain(WITHOUT_EFFECT).any(|pattern| is_below(pattern, &path));
        match value {
            Value::Table(inner) if inside => unknown_keys(&path, inner, warnings),
            _ => warnings.push(format!("unknown configuration key `{path}`")),
        }
    }
}

/// Whether a pattern names `path`; `*` stands for one name, which may hold dots.
fn same_path(pattern: &str, path: &str) -> bool {
    match pattern.split_once(".*.") {
        Some((head, tail)) => {
            path.strip_prefix(head).and_then(|rest| rest.strip_prefix('.')).is_some_and(|rest| {
                rest.strip_suffix(tail).is_some_and(|name| name.ends_with('.') && name.len() > 1)
            })
        }
        None => pattern == path,
    }
}

fn is_below(pattern: &str, path: &str) -> bool {
    match pattern.split_once(".*.") {
        Some((head, _)) => path == head || path.starts_with(&format!("{head}.")),
        None => pattern.starts_with(&format!("{path}.")),
    }
}

fn duration(value: &Value) -> anyhow::Result<Duration> {
    match value {
        Value::Integer(seconds) => Ok(Duration::from_secs(
            u64::try_from(*seconds).context("durations cannot be negative")?,
        )),
        Value::String(text) => base::time::parse_go_duration(text)
            .with_context(|| format!("{text:?} is not a duration such as 48h")),
        other => bail!("{other} is not a duration"),
    }
}

/// Bytes, a number with a binary unit, or a percentage of the disk in whole GB.
fn disk_space(value: &Value, disk: Option<u64>) -> anyhow::Result<u64> {
    let text = match value {
        Value::Integer(bytes) => return u64::try_from(*bytes).context("sizes cannot be negative"),
        Value::String(text) => text.trim(),
        other => bail!("{other} is not a size"),
    };
    if let Some(percent) = text.strip_suffix('%') {
        let percent = percent.parse().with_context(|| format!("{text:?} is not a percentage"))?;
        return Ok(store::percent_of_disk(percent, disk));
    }
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let number: f64 =
        text[..end].parse().with_context(|| format!("{text:?} is not a size such as 10GB"))?;
    let unit = text[end..].trim().to_ascii_lowercase();
    let scale = match unit.trim_end_matches('b').trim_end_matches('i') {
        "" => 1u64,
        "k" => 1 << 10,
        "m" => 1 << 20,
        "g" => 1 << 30,
        "t" => 1 << 40,
        "p" => 1 << 50,
        _ => bail!("{text:?} has an unknown unit"),
    };
    Ok((number * scale as f64) as u64)
}

fn keep_storage(text: &str) -> anyhow::Result<Spaces> {
    let mut sizes = text.split(',').map(|part| {
        part.trim()
            .parse::<u64>()
            .map(|mb| mb * 1_000_000)
            .with_context(|| format!("{part:?} is not a number of MB"))
    });
    let mut next = || sizes.next().unwrap_or(Ok(0));
    Ok(Spaces { reserved: next()?, min_free: next()?, max_used: next()? })
}

fn group_id(group: &str) -> anyhow::Result<u32> {
    if let Ok(id) = group.parse() {
        return Ok(id);
    }
    let text = std::fs::read_to_string("/etc/group").context("read /etc/group")?;
    text.lines()
        .map(|line| line.split(':').collect::<Vec<_>>())
        .find(|parts| parts.first() == Some(&group))
        .and_then(|parts| parts.get(2)?.parse().ok())
        .with_context(|| format!("group {group:?} does not exist"))
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct File {
    debug: bool,
    trace: bool,
    root: Option<PathBuf>,
    #[serde(rename = "drainTimeout")]
    drain_timeout: Option<Value>,
    #[serde(rename = "insecure-entitlements")]
    insecure_entitlements: Vec<String>,
    #[serde(rename = "proxyNetwork")]
    proxy_network: bool,
    #[serde(rename = "provenanceEnvDir")]
    provenance_folder: Option<PathBuf>,
    log: LogFile,
    grpc: GrpcFile,
    dns: DnsFile,
    cdi: CdiFile,
    history: HistoryFile,
    frontend: BTreeMap<String, FrontendFile>,
    system: SystemFile,
    registry: BTreeMap<String, RegistryFile>,
    worker: WorkerFile,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct LogFile {
    format: Option<String>,
    level: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct GrpcFile {
    address: Vec<String>,
    #[serde(rename = "debugAddress")]
    debug_address: Option<String>,
    uid: Option<u32>,
    gid: Option<u32>,
    tls: TlsFile,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct TlsFile {
    cert: Option<PathBuf>,
    key: Option<PathBuf>,
    ca: Option<PathBuf>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct DnsFile {
    nameservers: Vec<String>,
    options: Vec<String>,
    #[serde(rename = "searchDomains")]
    search_domains: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct CdiFile {
    disabled: Option<bool>,
    #[serde(rename = "specDirs")]
    folders: Vec<PathBuf>,
    #[serde(rename = "autoAllowed")]
    auto_allowed: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct HistoryFile {
    #[serde(rename = "maxAge")]
    max_age: Option<Value>,
    #[serde(rename = "maxEntries")]
    max_entries: Option<usize>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct FrontendFile {
    enabled: Option<bool>,
    #[serde(rename = "allowedRepositories")]
    allowed: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct SystemFile {
    #[serde(rename = "maxRegistryConcurrency")]
    max_registry_concurrency: Option<usize>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RegistryFile {
    mirrors: Vec<String>,
    http: Option<bool>,
    insecure: Option<bool>,
    ca: Vec<PathBuf>,
    tlsconfigdir: Vec<PathBuf>,
    keypair: Vec<KeyPairFile>,
}

#[derive(Debug, Deserialize)]
struct KeyPairFile {
    key: PathBuf,
    cert: PathBuf,
}

impl RegistryFile {
    fn read(self) -> oci::registry::HostConfig {
        oci::registry::HostConfig {
            mirrors: self.mirrors,
            http: self.http,
            insecure: self.insecure,
            ca: self.ca,
            tls_config_dirs: self.tlsconfigdir,
            key_pairs: self
                .keypair
                .into_iter()
                .map(|pair| oci::registry::KeyPair { key: pair.key, cert: pair.cert })
                .collect(),
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct WorkerFile {
    oci: OciFile,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct OciFile {
    enabled: Option<bool>,
    labels: BTreeMap<String, String>,
    platforms: Vec<String>,
    snapshotter: Option<String>,
    #[serde(rename = "noProcessSandbox")]
    no_process_sandbox: Option<bool>,
    binary: Option<String>,
    #[serde(rename = "apparmor-profile")]
    apparmor_profile: Option<String>,
    #[serde(rename = "defaultCgroupParent")]
    default_cgroup_parent: Option<String>,
    #[serde(rename = "max-parallelism")]
    max_parallelism: Option<u32>,
    #[serde(rename = "networkMode")]
    network_mode: Option<String>,
    #[serde(rename = "bridgeSubnet")]
    bridge_subnet: Option<String>,
    gc: Option<bool>,
    #[serde(rename = "reservedSpace")]
    reserved_space: Option<Value>,
    #[serde(rename = "maxUsedSpace")]
    max_used_space: Option<Value>,
    #[serde(rename = "minFreeSpace")]
    min_free_space: Option<Value>,
    gckeepstorage: Option<Value>,
    ceiling: Option<Value>,
    gcpolicy: Vec<PolicyFile>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct PolicyFile {
    all: bool,
    filters: Vec<String>,
    #[serde(rename = "keepDuration")]
    keep_duration: Option<Value>,
    #[serde(rename = "reservedSpace")]
    reserved_space: Option<Value>,
    #[serde(rename = "maxUsedSpace")]
    max_used_space: Option<Value>,
    #[serde(rename = "minFreeSpace")]
    min_free_space: Option<Value>,
    #[serde(rename = "keepBytes")]
    keep_bytes: Option<Value>,
}

impl PolicyFile {
    fn read(self, disk: Option<u64>) -> anyhow::Result<GcPolicy> {
        let size =
            |value: &Option<Value>| value.as_ref().map_or(Ok(0), |value| disk_space(value, disk));
        Ok(GcPolicy {
            filters: self
                .filters
                .iter()
                .map(|text| Filter::parse(text))
                .collect::<Result<_, _>>()?,
            all: self.all,
            keep_duration: self.keep_duration.as_ref().map(duration).transpose()?,
            reserved_space: size(&self.reserved_space.or(self.keep_bytes))?,
            max_used_space: size(&self.max_used_space)?,
            min_free_space: size(&self.min_free_space)?,
            grace: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    fn load(text: &str, flags: &[&str]) -> anyhow::Result<Config> {
        let flags = Flags::try_parse_from(std::iter::once("rbuildd").chain(flags.iter().copied()))?;
        Config::from_text(text, &flags)
    }

    #[test]
    fn what_launchers_pass_is_accepted() {
        let flags = [
            "--oci-worker=true",
            "--containerd-worker=false",
            "--oci-worker-gc=false",
            "--oci-worker-labels=org.mobyproject.buildkit.worker.sandbox=true",
            "--root",
            "/tmp/x",
            "--addr",
            "unix:///tmp/x/buildkitd.sock",
            "--debug",
        ];
        let text = r#"
            insecure-entitlements = ["network.host"]
            [registry."docker.io"]
            mirrors = ["localhost:5000"]
            [otel]
            socketPath = "/tmp/x/otel.sock"
            [cdi]
            specDirs = ["/tmp/x/cdi"]
            [worker.containerd]
            networkMode = "host"
        "#;
        let config = load(text, &flags).unwrap();
        assert_eq!(config.labels["org.mobyproject.buildkit.worker.sandbox"], "true");
        assert_eq!(config.registries.0["docker.io"].mirrors, ["localhost:5000"]);
        assert!(
            !config.gc
                && config.log_level == "debug"
                && config.entitlements.contains("network.host")
        );
        assert_eq!(
            config.warnings,
            ["configuration key `worker.containerd` has no effect in this daemon"]
        );
    }

    #[test]
    fn unknown_keys_are_named() {
        let text = "colour = 1\n[grpc]\nadress = []\n[registry.\"a.b\"]\nmirror = []\nhttp = true";
        let mut warnings = load(text, &[]).unwrap().warnings;
        warnings.sort();
        let expected = ["`colour`", "`grpc.adress`", "`registry.a.b.mirror`"];
        assert_eq!(warnings, expected.map(|key| format!("unknown configuration key {key}")));
    }

    #[test]
    fn steps_are_put_behind_a_proxy() {
        let proxied = |text, flags| load(text, flags).unwrap().proxy_network;
        assert!(!proxied("", &[]));
        assert!(proxied("", &["--proxy-network"]));
        assert!(proxied("proxyNetwork = true", &[]));
        assert!(!proxied("proxyNetwork = true", &["--proxy-network=false"]));
    }

    #[test]
    fn what_does_not_exist_is_refused() {
        for flags in [
            &["--containerd-worker=true"][..],
            &["--oci-worker=false"],
            &["--oci-worker-net=cni"],
            &["--no-such-flag"],
            &["--oci-worker-snapshotter=stargz"],
            &["--allow-insecure-entitlement=everything"],
        ] {
            assert!(load("", flags).is_err(), "{flags:?}");
        }
        assert!(load("[worker.oci]\nnetworkMode = \"cni\"", &[]).is_err());
    }

    #[test]
    fn sizes_and_durations() {
        let text = r#"
            [history]
            maxAge = 60
            [worker.oci]
            reservedSpace = "1.5GB"
            maxUsedSpace = 1000
            [[worker.oci.gcpolicy]]
            filters = ["type==source.local"]
            keepDuration = "48h"
            maxUsedSpace = "512MB"
        "#;
        let config = load(text, &[]).unwrap();
        assert_eq!(config.history.max_age, Duration::from_secs(60));
        assert_eq!((config.spaces.reserved, config.spaces.max_used), (3 << 29, 1000));
        assert_eq!(config.policies[0].keep_duration, Some(Duration::from_secs(172_800)));
        assert_eq!(config.policies[0].max_used_space, 512 << 20);
        assert_eq!(
            disk_space(&Value::String("10%".into()), Some(100 << 30)).unwrap(),
            11_000_000_000
        );
    }
}
