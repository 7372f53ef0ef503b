//! Arguments of `run` that have a form of their own: ports, mounts, variables, limits.

use std::path::Path;

use anyhow::{Context as _, bail};
use proto::rbuild::v1::{Limit, MountAsked, Port, Tmpfs};

use crate::{csv, text};

/// Most ports of one range.
const MAX_RANGE: u32 = 1000;

/// `[IP:][HOST:]CONTAINER[/PROTOCOL]`, with ranges; an IPv6 address stands in brackets.
pub fn ports(text: &str) -> anyhow::Result<Vec<Port>> {
    let bad = || format!("invalid --publish {text}: expected [IP:][HOST:]CONTAINER[/tcp]");
    let (rest, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    if !matches!(protocol, "tcp" | "udp" | "sctp") {
        bail!("invalid --publish {text}: unknown protocol {protocol}");
    }
    let (left, container) = rest.rsplit_once(':').unwrap_or(("", rest));
    let (ip, host) = match left.rsplit_once(':') {
        Some((ip, host)) => (ip.trim_start_matches('[').trim_end_matches(']'), host),
        None => ("", left),
    };
    if !ip.is_empty() {
        ip.parse::<std::net::IpAddr>().with_context(bad)?;
    }
    let container = range(container).filter(|(from, _)| *from > 0).with_context(bad)?;
    let host = match host {
        "" => None,
        host => Some(range(host).with_context(bad)?),
    };
    let count = container.1 - container.0;
    if host.is_some_and(|(from, to)| to - from != count) || count >= MAX_RANGE {
        bail!("invalid --publish {text}: ranges of different length, or too long");
    }
    Ok((0..=count)
        .map(|at| Port {
            host_ip: ip.to_owned(),
            host_port: host.map_or(0, |(from, _)| from + at),
            container_port: container.0 + at,
            protocol: protocol.to_owned(),
        })
        .collect())
}

fn range(text: &str) -> Option<(u32, u32)> {
    let number = |text: &str| text.parse::<u16>().ok().map(u32::from);
    match text.split_once('-') {
        None => number(text).map(|port| (port, port)),
        Some((from, to)) => {
            let (from, to) = (number(from)?, number(to)?);
            (from <= to).then_some((from, to))
        }
    }
}

/// Completes a relative host folder of `-v`; names of volumes stay.
pub fn volume(text: &str) -> anyhow::Result<String> {
    let Some((source, rest)) = text.split_once(':') else { return Ok(text.to_owned()) };
    if source.starts_with('.') || source.starts_with('~') {
        let source = match source.strip_prefix('~') {
            Some(below) => {
                format!("{}{below}", std::env::var("HOME").unwrap_or_default())
            }
            None => source.to_owned(),
        };
        return Ok(format!("{}:{rest}", std::path::absolute(source)?.display()));
    }
    Ok(text.to_owned())
}

/// `PORT[-PORT][/PROTOCOL]`, each port with its protocol.
pub fn exposed(text: &str) -> anyhow::Result<Vec<String>> {
    let (ports, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let found = range(ports).filter(|(from, to)| *from > 0 && to - from < MAX_RANGE);
    let known = matches!(protocol, "tcp" | "udp" | "sctp");
    let (from, to) = found.filter(|_| known).with_context(|| {
        format!("invalid range format for --expose: {text}: expected PORT[-PORT][/tcp]")
    })?;
    Ok((from..=to).map(|port| format!("{port}/{protocol}")).collect())
}

/// A `--mount`: what it adds to the volumes, or to the folders in memory.
pub enum Mounted {
    Volume(MountAsked),
    Memory(Tmpfs),
}

/// `type=bind,source=…,target=…[,readonly]`.
pub fn mount(text: &str) -> anyhow::Result<Mounted> {
    let bad =
        |why: String| anyhow::anyhow!("invalid argument {text:?} for \"--mount\" flag: {why}");
    let (mut kind, mut source, mut target) = ("volume".to_owned(), String::new(), String::new());
    let (mut readonly, mut size) = (false, 0);
    for field in csv::fields(text)? {
        let key = field.split_once('=').map_or(field.as_str(), |(key, _)| key).to_lowercase();
        let value = match (field.split_once('='), key.as_str()) {
            (Some((_, value)), _) => value,
            (None, "readonly" | "ro" | "volume-nocopy") => "true",
            (None, _) => {
                return Err(bad(format!("invalid field '{field}' must be a key=value pair")));
            }
        };
        match key.as_str() {
            "type" => kind = value.to_lowercase(),
            "source" | "src" => source = value.to_owned(),
            "target" | "dst" | "destination" => target = value.to_owned(),
            "readonly" | "ro" => {
                readonly = csv::parse_bool(value)
                    .ok_or_else(|| bad(format!("invalid value for {key}: {value}")))?;
            }
            "tmpfs-size" => {
                let bytes = text::parse_size(value);
                let bytes =
                    bytes.ok_or_else(|| bad(format!("invalid value for {key}: {value}")))?;
                size = bytes.try_into()?;
            }
            "tmpfs-mode" if matches!(value, "1777" | "01777") => {}
            // Mounts are private here, and a volume is filled only while it is empty.
            "bind-propagation" if matches!(value, "" | "rprivate" | "private") => {}
            "consistency" => {}
            "volume-driver" if matches!(value, "" | "local") => {}
            "bind-propagation" | "bind-nonrecursive" | "bind-recursive" | "volume-driver"
            | "volume-opt" | "volume-label" | "volume-nocopy" | "volume-subpath"
            | "image-subpath" | "tmpfs-mode" => {
                return Err(bad(format!("{key}={value} is not supported: leave it out")));
            }
            _ => return Err(bad(format!("unexpected key '{key}' in '{field}'"))),
        }
    }
    if target.is_empty() {
        return Err(bad("target is required".into()));
    }
    match kind.as_str() {
        "bind" if source.is_empty() => return Err(bad("source is required".into())),
        "bind" => source = std::path::absolute(&source)?.display().to_string(),
        "volume" => {}
        "tmpfs" if !source.is_empty() => {
            return Err(bad("a folder in memory has no source".into()));
        }
        "tmpfs" => {
            let memory = Tmpfs { path: target, size, read_only: readonly, exec: false };
            return Ok(Mounted::Memory(memory));
        }
        "image" => {
            return Err(bad("type image is not supported: copy with COPY --from, or cp".into()));
        }
        other => return Err(bad(format!("use type bind, volume or tmpfs, not {other}"))),
    }
    Ok(Mounted::Volume(MountAsked { kind, source, target, read_only: readonly }))
}

/// `PATH[:OPTIONS]`.
pub fn tmpfs(text: &str) -> anyhow::Result<Tmpfs> {
    let (path, options) = text.split_once(':').unwrap_or((text, ""));
    let mut tmpfs = Tmpfs { path: path.to_owned(), ..Tmpfs::default() };
    for option in options.split(',').filter(|option| !option.is_empty()) {
        match option.split_once('=') {
            Some(("size", size)) => {
                let bytes =
                    text::parse_size(size).with_context(|| format!("invalid size {size}"))?;
                tmpfs.size = bytes.try_into()?;
            }
            Some(("mode", "1777" | "01777")) => {}
            None if option == "ro" => tmpfs.read_only = true,
            None if option == "exec" => tmpfs.exec = true,
            None if matches!(option, "rw" | "noexec" | "nosuid" | "nodev") => {}
            _ => bail!("--tmpfs {text}: option {option} is not supported: use size, ro and exec"),
        }
    }
    Ok(tmpfs)
}

/// `NAME=VALUE`, or `NAME` for this environment's value; unset ones are left out.
pub fn variables(texts: &[String]) -> anyhow::Result<Vec<String>> {
    let mut env = Vec::new();
    for variable in texts {
        if variable.is_empty() || variable.starts_with('=') {
            bail!("invalid environment variable: {variable}");
        }
        match (variable.contains('='), std::env::var(variable)) {
            (true, _) => env.push(variable.clone()),
            (false, Ok(value)) => env.push(format!("{variable}={value}")),
            (false, Err(_)) => {}
        }
    }
    Ok(env)
}

/// The lines of a file with variables or labels: comments and empty lines are left out.
pub fn lines_of(path: &Path) -> anyhow::Result<Vec<String>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("open {}", path.display()))?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    let lines = text.lines().map(str::trim_start).filter(|line| {
        let line = line.trim_end();
        !line.is_empty() && !line.starts_with('#')
    });
    let mut all = Vec::new();
    for line in lines {
        let key = line.split('=').next().unwrap_or_default();
        if key.contains(char::is_whitespace) {
            bail!("invalid env file ({}): variable '{key}' contains whitespaces", path.display());
        }
        all.push(line.to_owned());
    }
    Ok(all)
}

/// `nofile=1024:2048`.
pub fn ulimit(text: &str) -> anyhow::Result<Limit> {
    let bad = || format!("invalid ulimit argument: {text}");
    let (name, values) = text.split_once('=').with_context(bad)?;
    let (soft, hard) = values.split_once(':').unwrap_or((values, values));
    let number = |text: &str| text.parse::<i64>().ok();
    let (soft, hard) = (number(soft).with_context(bad)?, number(hard).with_context(bad)?);
    Ok(Limit { name: name.to_owned(), soft, hard })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn port_arguments() {
        let show = |text: &str| match ports(text) {
            Ok(ports) => ports
                .iter()
                .map(|port| {
                    let Port { host_ip, host_port, container_port, protocol } = port;
                    format!("{host_ip}|{host_port}|{container_port}|{protocol}")
                })
                .collect::<Vec<_>>()
                .join(" "),
            Err(error) => format!("{error:#}"),
        };
        assert_eq!(show("80"), "|0|80|tcp");
        assert_eq!(show("8080:80"), "|8080|80|tcp");
        assert_eq!(show("127.0.0.1:8080:80/udp"), "127.0.0.1|8080|80|udp");
        assert_eq!(show("[::1]:8080:80"), "::1|8080|80|tcp");
        assert_eq!(show("81-82:1-2"), "|81|1|tcp |82|2|tcp");
        for bad in ["", "x", "1:2:3", "80/foo", "70000", "1-3:1-2", "5-4"] {
            assert!(show(bad).starts_with("invalid --publish"), "{bad}");
        }
    }

    #[test]
    fn mounts() {
        let show = |text: &str| match mount(text) {
            Ok(Mounted::Volume(it)) => {
                format!("{} {}:{}:{}", it.kind, it.source, it.target, it.read_only)
            }
            Ok(Mounted::Memory(tmpfs)) => {
                format!("{} {} {}", tmpfs.path, tmpfs.size, tmpfs.read_only)
            }
            Err(error) => error.to_string(),
        };
        assert_eq!(show("type=bind,src=/a,target=/b,readonly"), "bind /a:/b:true");
        assert_eq!(show("source=data,dst=/b"), "volume data:/b:false");
        assert_eq!(show("type=bind,\"src=/a,b\",dst=/c,ro=0"), "bind /a,b:/c:false");
        assert_eq!(show("type=tmpfs,target=/t,tmpfs-size=1m"), "/t 1048576 false");
        assert!(show("type=npipe,target=/x").contains("use type bind"));
        assert!(show("type=bind,src=/a").contains("target is required"));
        assert!(show("type=bind,dst=/a").contains("source is required"));
        assert!(show("type=bind,src=/a,dst=/b,bind-propagation=shared").contains("not supported"));
        assert!(show("typ=bind").contains("unexpected key 'typ' in 'typ=bind'"));
        assert!(show("bind").contains("must be a key=value pair"));
        assert_eq!(exposed("80").unwrap(), ["80/tcp"]);
        assert_eq!(exposed("7-8/udp").unwrap(), ["7/udp", "8/udp"]);
        assert!(exposed("0").is_err() && exposed("8-7").is_err() && exposed("80/x").is_err());
        assert_eq!(tmpfs("/t:size=1k,exec").unwrap().size, 1024);
        assert!(tmpfs("/t:uid=5").is_err());
        assert_eq!(ulimit("nofile=1:2").unwrap().hard, 2);
    }
}
