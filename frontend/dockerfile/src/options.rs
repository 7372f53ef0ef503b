//! Frontend options: a string map, read once.
//!
//! [`Options::parse`] checks everything that can be checked without asking; the rest of the crate
//! looks at typed fields only, except for named contexts, whose keys are open.
//!
//! Source: Dockerfile notes §2.1–2.2.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use base::Platform;
use frontend_api::CacheImport;
use llb::build::ResolveMode;
use llb::pb;

use crate::error::{Error, Kind, Result};
use crate::lint;
use crate::reference::Reference;
use crate::text;

/// What a client asked for.
#[derive(Debug, Clone, Default)]
pub struct Options {
    raw: BTreeMap<String, String>,
    /// Target stage, empty for the last.
    pub target: String,
    /// Target platforms; none means the build platform, chosen by the images used.
    pub platforms: Vec<Platform>,
    /// Several platforms may be returned.
    pub multi_platform: bool,
    /// Build args.
    pub build_args: BTreeMap<String, String>,
    /// Labels of the result.
    pub labels: BTreeMap<String, String>,
    /// Stages that must not use caches; empty means all.
    pub no_cache: Option<Vec<String>>,
    /// How images are looked up.
    pub resolve_mode: ResolveMode,
    /// Lines for `/etc/hosts`.
    pub extra_hosts: Vec<pb::HostIp>,
    /// Size of `/dev/shm`, 0 for the default.
    pub shm_size: i64,
    /// Resource limits.
    pub ulimits: Vec<pb::Ulimit>,
    /// Control group limits.
    pub resources: Option<pb::LinuxResources>,
    /// Parent control group.
    pub cgroup_parent: String,
    /// Host name of processes.
    pub hostname: String,
    /// Network of processes that do not say.
    pub network: pb::NetMode,
    /// Prefix of cache mount ids.
    pub cache_namespace: String,
    /// Remote caches.
    pub cache_imports: Vec<CacheImport>,
    /// Lint settings that replace the file's.
    pub lint: Option<lint::Config>,
    /// SBOM scanner.
    pub sbom: Option<Sbom>,
    /// Path of the Dockerfile.
    pub filename: Option<String>,
}

/// Which scanner lists the contents of the result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sbom {
    /// Its image.
    pub generator: String,
    /// Its options.
    pub parameters: BTreeMap<String, String>,
}

const DEFAULT_GENERATOR: &str = "docker/buildkit-syft-scanner:stable-1";

const RLIMITS: &[&str] = &[
    "core",
    "cpu",
    "data",
    "fsize",
    "locks",
    "memlock",
    "msgqueue",
    "nice",
    "nofile",
    "nproc",
    "rss",
    "rtprio",
    "rttime",
    "sigpending",
    "stack",
];

impl Options {
    /// Reads the map; `caps` are the LLB capabilities of the daemon.
    pub fn parse(raw: &BTreeMap<String, String>, caps: &BTreeSet<String>) -> Result<Self> {
        let mut options = Self { raw: raw.clone(), ..Self::default() };
        options.check_removed(caps)?;
        let get = |key: &str| raw.get(key).map(String::as_str).filter(|value| !value.is_empty());
        options.platforms = match get("platform") {
            Some(list) => list.split(',').map(platform).collect::<Result<_>>()?,
            None => Vec::new(),
        };
        options.resolve_mode = match get("image-resolve-mode") {
            None | Some("default") => ResolveMode::Default,
            Some("pull") => ResolveMode::ForcePull,
            Some("local") => ResolveMode::PreferLocal,
            Some(other) => return Err(Error::new(Kind::BadResolveMode, [other])),
        };
        options.extra_hosts = get("add-hosts").map_or(Ok(Vec::new()), extra_hosts)?;
        options.shm_size = match get("shm-size") {
            Some(value) => value.parse().map_err(|_| invalid("shm-size", value))?,
            None => 0,
        };
        options.ulimits = get("ulimit").map_or(Ok(Vec::new()), ulimits)?;
        options.resources = resources(raw)?;
        options.network = match get("force-network-mode") {
            None | Some("sandbox") => pb::NetMode::Unset,
            Some("none") => pb::NetMode::None,
            Some("host") => pb::NetMode::Host,
            Some(other) => return Err(Error::new(Kind::BadNetmode, [other])),
        };
        options.no_cache = raw.get("no-cache").map(|list| match list.as_str() {
            "" => Vec::new(),
            list => list.split(',').map(str::to_owned).collect(),
        });
        options.multi_platform = options.platforms.len() > 1;
        if let Some(value) = get("build-arg:BUILDKIT_MULTI_PLATFORM").or(get("multi-platform")) {
            let wanted = text::parse_bool(value).ok_or_else(|| invalid("multi-platform", value))?;
            if !wanted && options.multi_platform {
                return Err(Error::plain(Kind::MultiPlatformConflict));
            }
            options.multi_platform = wanted;
        }
        options.cache_imports = cache_imports(get("cache-imports"), get("cache-from"))?;
        options.sbom = sbom(raw)?;
        options.build_args = options.with_prefix("build-arg:");
        options.labels = options.with_prefix("label:");
        let owned = |key: &str| get(key).unwrap_or_default().to_owned();
        options.cache_namespace = owned("build-arg:BUILDKIT_CACHE_MOUNT_NS");
        options.cgroup_parent = owned("cgroup-parent");
        options.target = owned("target");
        options.hostname = match get("build-arg:BUILDKIT_SANDBOX_HOSTNAME") {
            Some(name) => name.to_owned(),
            None => owned("hostname"),
        };
        options.lint = match raw.get("build-arg:BUILDKIT_DOCKERFILE_CHECK") {
            Some(value) => Some(lint::Config::parse(value)?),
            None => None,
        };
        options.filename = raw.get("filename").cloned();
        Ok(options)
    }

    /// An option by its key.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.raw.get(key).map(String::as_str)
    }

    /// The map as it was given.
    pub fn raw(&self) -> &BTreeMap<String, String> {
        &self.raw
    }

    /// Whether the stage of this name must not use caches.
    pub fn ignores_cache(&self, stage: &str) -> bool {
        match &self.no_cache {
            None => false,
            Some(list) => list.is_empty() || list.iter().any(|name| text::equal_fold(name, stage)),
        }
    }

    fn with_prefix(&self, prefix: &str) -> BTreeMap<String, String> {
        let strip = |(key, value): (&String, &String)| {
            Some((key.strip_prefix(prefix)?.to_owned(), value.clone()))
        };
        self.raw.iter().filter_map(strip).collect()
    }

    fn check_removed(&self, caps: &BTreeSet<String>) -> Result<()> {
        if !caps.contains("file.base") {
            return Err(Error::new(Kind::MissingCap, ["file.base"]));
        }
        if self.get("override-copy-image").is_some_and(|value| !value.is_empty()) {
            return Err(Error::new(Kind::RemovedOption, ["override-copy-image"]));
        }
        let disabled = self.get("build-arg:BUILDKIT_DISABLE_FILEOP").and_then(text::parse_bool);
        if disabled == Some(true) {
            return Err(Error::new(Kind::RemovedOption, ["BUILDKIT_DISABLE_FILEOP"]));
        }
        Ok(())
    }
}

fn invalid(key: &str, value: &str) -> Error {
    Error::new(Kind::InvalidOption, [key, value])
}

fn platform(value: &str) -> Result<Platform> {
    let platform = Platform::parse(value);
    platform.map(|p| p.normalize()).map_err(|_| Error::new(Kind::TargetPlatformInvalid, [value]))
}

fn extra_hosts(list: &str) -> Result<Vec<pb::HostIp>> {
    let bad = |field: &str| invalid("add-hosts", field);
    let fields = text::csv_fields(list).ok_or_else(|| bad(list))?;
    let host = |field: &String| {
        let field = text::lower(field);
        let (host, ip) = field.split_once('=').ok_or_else(|| bad(&field))?;
        let ip: IpAddr = ip.parse().map_err(|_| bad(&field))?;
        Ok(pb::HostIp { host: host.to_owned(), ip: show_ip(ip) })
    };
    fields.iter().map(host).collect()
}

/// IPv4 addresses written as IPv6 are shown as IPv4.
fn show_ip(ip: IpAddr) -> String {
    ip.to_canonical().to_string()
}

fn ulimits(list: &str) -> Result<Vec<pb::Ulimit>> {
    let bad = |field: &str| invalid("ulimit", field);
    let fields = text::csv_fields(list).ok_or_else(|| bad(list))?;
    let limit = |field: &String| {
        let parse = || {
            let (name, values) = field.split_once('=')?;
            let (soft, hard) = match values.split_once(':') {
                Some((soft, hard)) => (soft.parse().ok()?, hard.parse().ok()?),
                None => (values.parse().ok()?, values.parse().ok()?),
            };
            let fits = hard == -1 || (soft != -1 && soft <= hard);
            let limit = pb::Ulimit { name: name.to_owned(), soft, hard };
            (RLIMITS.contains(&name) && fits).then_some(limit)
        };
        parse().ok_or_else(|| bad(field))
    };
    fields.iter().map(limit).collect()
}

fn resources(raw: &BTreeMap<String, String>) -> Result<Option<pb::LinuxResources>> {
    let given = |key: &str| raw.get(key).map(String::as_str).filter(|value| !value.is_empty());
    let number = |key: &str, least: i64| match given(key) {
        None => Ok(0),
        Some(value) => match value.parse::<i64>() {
            Ok(number) if number != 0 && number >= least => Ok(number),
            _ => Err(invalid(key, value)),
        },
    };
    let unsigned = |key: &str| match given(key) {
        None => Ok(0),
        Some(value) => match value.parse::<u64>() {
            Ok(number) if number != 0 => Ok(number),
            _ => Err(invalid(key, value)),
        },
    };
    let set = |key: &str| match given(key) {
        None => Ok(String::new()),
        Some(value) if is_cpuset(value) => Ok(value.to_owned()),
        Some(value) => Err(invalid(key, value)),
    };
    let resources = pb::LinuxResources {
        memory: number("memory", 1)?,
        memory_swap: number("memswap", -1)?,
        cpu_shares: unsigned("cpushares")?,
        cpu_period: unsigned("cpuperiod")?,
        cpu_quota: number("cpuquota", 1)?,
        cpuset_cpus: set("cpusetcpus")?,
        cpuset_mems: set("cpusetmems")?,
    };
    Ok((resources != pb::LinuxResources::default()).then_some(resources))
}

/// `0-3,5`, no index above 8192; empty parts are passed over.
fn is_cpuset(value: &str) -> bool {
    let index = |text: &str| text.trim().parse::<u32>().ok().filter(|index| *index <= 8192);
    let parts = value.split(',').map(str::trim).filter(|part| !part.is_empty());
    parts.into_iter().all(|part| match part.split_once('-') {
        None => index(part).is_some(),
        Some((first, last)) => matches!((index(first), index(last)), (Some(a), Some(b)) if a <= b),
    })
}

fn cache_imports(json: Option<&str>, registry: Option<&str>) -> Result<Vec<CacheImport>> {
    #[derive(serde::Deserialize)]
    struct Entry {
        #[serde(rename = "Type", alias = "type", default)]
        kind: String,
        #[serde(rename = "Attrs", alias = "attrs", default)]
        attrs: Option<BTreeMap<String, String>>,
    }
    let mut imports = Vec::new();
    if let Some(json) = json {
        let entries: Vec<Entry> =
            serde_json::from_str(json).map_err(|_| invalid("cache-imports", json))?;
        imports.extend(
            entries.into_iter().map(|entry| CacheImport {
                kind: entry.kind,
                attrs: entry.attrs.unwrap_or_default(),
            }),
        );
    }
    for reference in registry.into_iter().flat_map(|list| list.split(',')) {
        let attrs = BTreeMap::from([("ref".to_owned(), reference.to_owned())]);
        imports.push(CacheImport { kind: "registry".to_owned(), attrs });
    }
    Ok(imports)
}

fn sbom(raw: &BTreeMap<String, String>) -> Result<Option<Sbom>> {
    let mut found = None;
    for (key, value) in raw {
        let kind = key.strip_prefix("attest:").or(key.strip_prefix("build-arg:BUILDKIT_ATTEST_"));
        let Some(kind) = kind.map(text::lower) else { continue };
        let fields = match value.as_str() {
            "" => Vec::new(),
            value => text::csv_fields(value).ok_or_else(|| invalid(key, value))?,
        };
        match kind.as_str() {
            "provenance" => {}
            "sbom" => found = Some((key, fields)),
            _ => return Err(invalid(key, value)),
        }
    }
    let Some((key, fields)) = found else { return Ok(None) };
    let mut generator = DEFAULT_GENERATOR.to_owned();
    let mut parameters = BTreeMap::new();
    for field in fields {
        match field.split_once('=').unwrap_or((&field, "")) {
            ("generator", image) => generator = image.to_owned(),
            (name, value) => _ = parameters.insert(name.to_owned(), value.to_owned()),
        }
    }
    let reference = Reference::parse(&generator).map_err(|_| invalid(key, &generator))?;
    Ok(Some(Sbom { generator: reference.tagged().to_string(), parameters }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(pairs: &[(&str, &str)]) -> Result<Options> {
        let raw = pairs.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
        Options::parse(&raw, &BTreeSet::from(["file.base".to_owned()]))
    }

    #[test]
    fn reads_values() {
        let options = parse(&[
            ("platform", "linux/amd64,linux/arm64/v8"),
            ("add-hosts", "Foo=1.2.3.4"),
            ("ulimit", "nofile=10:20,nproc=5"),
            ("memory", "1024"),
            ("no-cache", ""),
            ("cache-from", "a,b"),
            ("attest:sbom", ""),
        ])
        .unwrap();
        assert!(options.multi_platform && options.ignores_cache("any"));
        assert_eq!(options.platforms[1].format(), "linux/arm64");
        assert_eq!(options.extra_hosts[0].host, "foo");
        assert_eq!((options.ulimits[0].hard, options.ulimits[1].hard), (20, 5));
        assert_eq!(options.cache_imports.len(), 2);
        assert_eq!(
            options.sbom.unwrap().generator,
            "docker.io/docker/buildkit-syft-scanner:stable-1"
        );
    }

    #[test]
    fn refuses_what_makes_no_sense() {
        for (key, value, kind) in [
            ("platform", "a/b/c/d", Kind::TargetPlatformInvalid),
            ("image-resolve-mode", "never", Kind::BadResolveMode),
            ("force-network-mode", "weird", Kind::BadNetmode),
            ("add-hosts", "a=b", Kind::InvalidOption),
            ("ulimit", "nofile=5:1", Kind::InvalidOption),
            ("memory", "0", Kind::InvalidOption),
            ("cpusetcpus", "3-1", Kind::InvalidOption),
            ("attest:other", "", Kind::InvalidOption),
            ("override-copy-image", "x", Kind::RemovedOption),
        ] {
            assert_eq!(parse(&[(key, value)]).unwrap_err().kind, kind, "{key}");
        }
    }
}
