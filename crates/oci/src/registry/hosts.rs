//! Which servers stand behind a registry's name, and how to talk to each.
//!
//! The tables are `registry."<host>"` of `buildkitd.toml`. Mirrors come first and are only pulled
//! from; the registry itself comes last. Plain HTTP is used where configured, and for localhost.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use crate::{Error, Reference, Result, reference::DOCKER_HUB_HOST};

/// How long a connection may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);

/// One `registry."<host>"` table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostConfig {
    /// `host[:port][/path]`, asked first when pulling.
    pub mirrors: Vec<String>,
    /// Plain HTTP; absent: only for localhost.
    pub http: Option<bool>,
    /// Accept any certificate, and plain HTTP if TLS does not work.
    pub insecure: Option<bool>,
    /// Files with certificate authorities to trust besides the machine's.
    pub ca: Vec<PathBuf>,
    /// Folders with `*.crt` (authorities) and `*.cert` + `*.key` (client certificates).
    pub tls_config_dirs: Vec<PathBuf>,
    /// Client certificates.
    pub key_pairs: Vec<KeyPair>,
}

/// A client certificate and its key, PEM files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyPair {
    /// Private key.
    pub key: PathBuf,
    /// Certificate chain.
    pub cert: PathBuf,
}

/// Tables by host as written in names (`docker.io`, `localhost:5000`).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hosts(pub BTreeMap<String, HostConfig>);

/// One way to reach (a mirror of) a registry.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Endpoint {
    /// Host and port to connect to.
    pub host: String,
    /// Name under which the host's table is found.
    pub config: String,
    pub plain: bool,
    pub insecure: bool,
    /// Path of a mirror in front of the repository, without slashes at the ends.
    pub prefix: String,
    /// The registry's own name, if this is a mirror of it.
    pub mirror_of: Option<String>,
}

impl Endpoint {
    /// URL of `rest` below the repository: `/v2/<repository>/<rest>`.
    pub(super) fn url(&self, path: &str, rest: &str) -> Result<reqwest::Url> {
        let scheme = if self.plain { "http" } else { "https" };
        let slash = if self.prefix.is_empty() { "" } else { "/" };
        let text = format!("{scheme}://{}/v2/{}{slash}{path}/{rest}", self.host, self.prefix);
        let mut url = reqwest::Url::parse(&text).map_err(|error| Error::invalid(&text, error))?;
        if let Some(namespace) = &self.mirror_of {
            url.query_pairs_mut().append_pair("ns", namespace);
        }
        Ok(url)
    }
}

impl Hosts {
    /// Ways to reach the registry of `reference`, to be tried in turn.
    pub(super) fn endpoints(
        &self,
        reference: &Reference,
        insecure: bool,
        pull: bool,
    ) -> Vec<Endpoint> {
        let domain = reference.domain();
        let mut endpoints = Vec::new();
        let mirrors = self.0.get(domain).map_or(&[][..], |config| &config.mirrors);
        for mirror in mirrors.iter().filter(|_| pull) {
            let (host, prefix) = mirror.split_once('/').unwrap_or((mirror, ""));
            let prefix = prefix.trim_matches('/').to_owned();
            self.add(&mut endpoints, host, host, false, prefix, Some(domain.to_owned()));
        }
        let host = if domain == "docker.io" { DOCKER_HUB_HOST } else { domain };
        self.add(&mut endpoints, domain, host, insecure, String::new(), None);
        endpoints
    }

    fn add(
        &self,
        endpoints: &mut Vec<Endpoint>,
        config: &str,
        host: &str,
        insecure: bool,
        prefix: String,
        mirror_of: Option<String>,
    ) {
        let table = self.0.get(config);
        let insecure = insecure || table.and_then(|table| table.insecure).unwrap_or(false);
        let http = table.and_then(|table| table.http);
        let base = Endpoint {
            host: host.into(),
            config: config.into(),
            plain: false,
            insecure,
            prefix,
            mirror_of,
        };
        let plain = || Endpoint { plain: true, insecure: false, ..base.clone() };
        match http {
            Some(true) => endpoints.push(plain()),
            Some(false) => endpoints.push(base),
            // People run TLS on localhost too, but rarely.
            None if is_localhost(host) => endpoints.extend([plain(), base]),
            None if insecure => endpoints.extend([base.clone(), plain()]),
            None => endpoints.push(base),
        }
    }

    /// An HTTP client with the trust and certificates of the endpoint's table, which gives up when
    /// it reads nothing for as long as `patience`.
    pub(super) fn client(
        &self,
        endpoint: &Endpoint,
        user_agent: &str,
        patience: Option<Duration>,
    ) -> Result<reqwest::Client> {
        install_crypto_provider();
        let mut builder = reqwest::Client::builder()
            .user_agent(user_agent)
            .connect_timeout(CONNECT_TIMEOUT)
            .pool_idle_timeout(Duration::from_secs(30));
        if let Some(patience) = patience {
            builder = builder.read_timeout(patience);
        }
        if endpoint.insecure {
            builder = builder.tls_danger_accept_invalid_certs(true);
        }
        let what = || format!("set up TLS for {}", endpoint.config);
        if let Some(table) = self.0.get(&endpoint.config).filter(|_| !endpoint.plain) {
            let (mut authorities, mut pairs) = (table.ca.clone(), table.key_pairs.clone());
            for folder in &table.tls_config_dirs {
                let (more_authorities, more_pairs) =
                    read_tls_folder(folder).map_err(|error| Error::io(what(), error))?;
                authorities.extend(more_authorities);
                pairs.extend(more_pairs);
            }
            for file in &authorities {
                let pem = base::fs::read(file).map_err(|error| Error::io(what(), error))?;
                let certificates =
                    reqwest::Certificate::from_pem_bundle(&pem).map_err(|error| {
                        Error::invalid(what(), format!("{}: {error}", file.display()))
                    })?;
                builder = builder.tls_certs_merge(certificates);
            }
            if let Some(pair) = pairs.first() {
                let mut pem =
                    base::fs::read(&pair.cert).map_err(|error| Error::io(what(), error))?;
                pem.push(b'\n');
                pem.extend(base::fs::read(&pair.key).map_err(|error| Error::io(what(), error))?);
                let identity = reqwest::Identity::from_pem(&pem).map_err(|error| {
                    Error::invalid(what(), format!("{}: {error}", pair.cert.display()))
                })?;
                builder = builder.identity(identity);
            }
        }
        builder.build().map_err(|error| Error::invalid(what(), innermost(&error)))
    }
}

/// Makes ring the process's TLS provider, once. Programs may have chosen another one before.
pub fn install_crypto_provider() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        _ = rustls::crypto::ring::default_provider().install_default();
    });
}

fn is_localhost(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or(rest),
        None => host.split(':').next().unwrap_or(host),
    };
    name == "localhost" || name.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// `*.crt` are authorities, `*.cert` with a `*.key` of the same name are client certificates.
fn read_tls_folder(folder: &Path) -> std::io::Result<(Vec<PathBuf>, Vec<KeyPair>)> {
    let entries = fs::read_dir(folder).map_err(|error| base::fs::context(error, "list", folder))?;
    let mut files = entries.map(|entry| Ok(entry?.path())).collect::<std::io::Result<Vec<_>>>()?;
    files.sort();
    let with = |extension: &str| {
        let has = move |file: &&PathBuf| file.extension().is_some_and(|e| e == extension);
        files.iter().filter(has).cloned().collect::<Vec<_>>()
    };
    let pairs =
        with("cert").into_iter().map(|cert| KeyPair { key: cert.with_extension("key"), cert });
    Ok((with("crt"), pairs.collect()))
}

/// The last cause in a chain of errors: reqwest's own text says only which URL failed.
pub(super) fn innermost(error: &dyn std::error::Error) -> String {
    let mut last = error;
    while let Some(source) = last.source() {
        last = source;
    }
    last.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(config: &[(&str, HostConfig)], name: &str, insecure: bool) -> Vec<String> {
        let hosts = Hosts(config.iter().map(|(host, c)| ((*host).to_owned(), c.clone())).collect());
        let reference = Reference::parse(name).unwrap();
        let show = |endpoint: &Endpoint| {
            let trust = if endpoint.insecure { " any certificate" } else { "" };
            format!("{}{trust}", endpoint.url(reference.path(), "tags/list").unwrap())
        };
        hosts.endpoints(&reference, insecure, true).iter().map(show).collect()
    }

    #[test]
    fn order_of_endpoints() {
        let mirrored =
            HostConfig { mirrors: vec!["m.local:80/hub".into()], ..HostConfig::default() };
        let plain = HostConfig { http: Some(true), ..HostConfig::default() };
        let config = [("docker.io", mirrored), ("m.local:80", plain)];
        assert_eq!(
            check(&config, "alpine", false),
            [
                "http://m.local/v2/hub/library/alpine/tags/list?ns=docker.io",
                "https://registry-1.docker.io/v2/library/alpine/tags/list"
            ]
        );
        assert_eq!(
            check(&[], "localhost:5000/x", false),
            ["http://localhost:5000/v2/x/tags/list", "https://localhost:5000/v2/x/tags/list"]
        );
        assert_eq!(check(&[], "127.0.0.1:5/x", false).len(), 2);
        assert_eq!(check(&[], "[::1]:5/x", false).len(), 2);
        assert_eq!(
            check(&[], "r.example/x", true),
            ["https://r.example/v2/x/tags/list any certificate", "http://r.example/v2/x/tags/list"]
        );
        assert_eq!(check(&[], "r.example/x", false).len(), 1);
    }
}
