//! `/etc/hosts` and `/etc/resolv.conf` of containers.

use std::{fmt::Write as _, io, net::IpAddr, path::Path};

use crate::{DEFAULT_HOSTNAME, Dns, ExtraHost, Network};

const HOST_FILE: &str = "/etc/resolv.conf";
/// Where systemd's resolver keeps the addresses it forwards to.
const SYSTEMD_FILE: &str = "/run/systemd/resolve/resolv.conf";
/// Address of systemd's resolver, which a container's own network cannot reach.
const SYSTEMD_STUB: &str = "127.0.0.53";
/// Used when the host has no name server that a container could reach.
const FALLBACK: [&str; 4] = ["8.8.8.8", "8.8.4.4", "2001:4860:4860::8888", "2001:4860:4860::8844"];

/// The hosts file.
pub fn hosts(hostname: &str, extra: &[ExtraHost]) -> String {
    let hostname = if hostname.is_empty() { DEFAULT_HOSTNAME } else { hostname };
    let mut text =
        format!("127.0.0.1\tlocalhost {hostname}\n::1\tlocalhost ip6-localhost ip6-loopback\n");
    for ExtraHost { host, ip } in extra {
        _ = writeln!(text, "{ip}\t{host}");
    }
    text
}

/// The resolver configuration, made from the host's at this moment.
pub fn resolv_conf(dns: &Dns, network: Network) -> io::Result<String> {
    let mut config = Config::read(Path::new(HOST_FILE))?;
    if network != Network::Host && config.nameservers == [SYSTEMD_STUB] {
        config = Config::read(Path::new(SYSTEMD_FILE))?;
    }
    Ok(config.for_container(dns, network))
}

/// An address that may name its interface (`fe80::1%eth0`).
fn address(text: &str) -> Option<IpAddr> {
    text.split('%').next()?.parse().ok()
}

#[derive(Debug, Default)]
struct Config {
    nameservers: Vec<String>,
    search: Vec<String>,
    options: Vec<String>,
    other: Vec<String>,
}

impl Config {
    fn read(path: &Path) -> io::Result<Self> {
        match std::fs::read(path) {
            Ok(data) => Ok(Self::parse(&String::from_utf8_lossy(&data))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(base::fs::context(error, "read", path)),
        }
    }

    fn parse(text: &str) -> Self {
        let mut config = Self::default();
        for line in text.lines().filter(|line| !line.starts_with(['#', ';'])) {
            let mut words = line.split_whitespace();
            match words.next() {
                None => {}
                Some("nameserver") => {
                    let valid = words.next().filter(|word| address(word).is_some());
                    config.nameservers.extend(valid.map(str::to_owned));
                }
                Some("search" | "domain") => {
                    let words: Vec<_> = words.map(str::to_owned).collect();
                    if !words.is_empty() {
                        config.search = words;
                    }
                }
                Some("options") => config.options.extend(words.map(str::to_owned)),
                Some(_) => config.other.push(line.to_owned()),
            }
        }
        config
    }

    fn for_container(mut self, dns: &Dns, network: Network) -> String {
        if !dns.nameservers.is_empty() {
            self.nameservers = dns.nameservers.iter().map(IpAddr::to_string).collect();
        }
        if !dns.search_domains.is_empty() {
            self.search = dns.search_domains.iter().filter(|name| *name != ".").cloned().collect();
        }
        if !dns.options.is_empty() {
            self.options = dns.options.clone();
        }
        let reachable = network == Network::Host && !self.nameservers.is_empty();
        if !reachable && dns.nameservers.is_empty() {
            self.nameservers.retain(|text| !address(text).is_some_and(|ip| ip.is_loopback()));
            if self.nameservers.is_empty() {
                self.nameservers = FALLBACK.map(str::to_owned).into();
            }
        }
        let mut text = String::new();
        for address in &self.nameservers {
            _ = writeln!(text, "nameserver {address}");
        }
        for (word, values) in [("search", &self.search), ("options", &self.options)] {
            if !values.is_empty() {
                _ = writeln!(text, "{word} {}", values.join(" "));
            }
        }
        for line in &self.other {
            _ = writeln!(text, "{line}");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    fn check(host: &str, dns: Dns, network: Network, expected: Expect) {
        expected.assert_eq(&Config::parse(host).for_container(&dns, network));
    }

    #[test]
    fn loopback_servers_are_replaced() {
        let host =
            "# made by hand\nnameserver 127.0.0.1\nsearch a b\noptions ndots:2\nsortlist x\n";
        check(
            host,
            Dns::default(),
            Network::Isolated,
            expect![[r#"
                nameserver 8.8.8.8
                nameserver 8.8.4.4
                nameserver 2001:4860:4860::8888
                nameserver 2001:4860:4860::8844
                search a b
                options ndots:2
                sortlist x
            "#]],
        );
        check(
            host,
            Dns::default(),
            Network::Host,
            expect![[r#"
                nameserver 127.0.0.1
                search a b
                options ndots:2
                sortlist x
            "#]],
        );
    }

    #[test]
    fn configuration_replaces() {
        let dns = Dns {
            nameservers: vec!["127.0.0.9".parse().unwrap()],
            search_domains: vec!["c".into()],
            options: vec!["edns0".into()],
        };
        check(
            "nameserver 1.1.1.1\nsearch a\n",
            dns,
            Network::None,
            expect![[r#"
                nameserver 127.0.0.9
                search c
                options edns0
            "#]],
        );
    }

    #[test]
    fn hosts_file() {
        let extra = [ExtraHost { host: "db".into(), ip: "10.0.0.2".parse().unwrap() }];
        expect![[r#"
            127.0.0.1	localhost box
            ::1	localhost ip6-localhost ip6-loopback
            10.0.0.2	db
        "#]]
        .assert_eq(&hosts("box", &extra));
    }
}
