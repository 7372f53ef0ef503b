//! Docker's `config.json`: credentials in the file, or held by a helper program.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
};

use base64::{Engine as _, prelude::BASE64_STANDARD as BASE64};
use serde::Deserialize;

use super::helper;

/// Docker Hub under the name registries are contacted by, and the name credentials are kept under.
const HUB_HOST: &str = "registry-1.docker.io";
pub(super) const HUB_KEY: &str = "https://index.docker.io/v1/";

/// What is known for one registry; all empty means anonymous.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct AuthEntry {
    /// User name.
    pub username: String,
    /// Password.
    pub password: String,
    /// Refresh token; used in place of name and password.
    #[serde(rename = "identitytoken")]
    pub identity_token: String,
    /// Bearer token to send as it is.
    #[serde(rename = "registrytoken")]
    pub registry_token: String,
    auth: String,
}

impl AuthEntry {
    /// User and secret as a registry expects them; a refresh token has no user.
    pub fn login(&self) -> (&str, &str) {
        match self.identity_token.as_str() {
            "" => (&self.username, &self.password),
            token => ("", token),
        }
    }

    /// Splits the combined form `base64(user:password)`.
    fn resolve(mut self) -> Self {
        if self.auth.is_empty() {
            return self;
        }
        let decoded = BASE64.decode(self.auth.trim()).unwrap_or_default();
        let text = String::from_utf8_lossy(&decoded).trim_end_matches('\0').to_owned();
        if let Some((user, password)) = text.split_once(':') {
            self.username = user.to_owned();
            self.password = password.to_owned();
        }
        self.auth.clear();
        self
    }
}

/// The parts of the configuration that concern registries.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct DockerConfig {
    auths: BTreeMap<String, AuthEntry>,
    creds_store: String,
    cred_helpers: BTreeMap<String, String>,
    proxies: BTreeMap<String, Proxies>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Proxies {
    http_proxy: String,
    https_proxy: String,
    no_proxy: String,
    ftp_proxy: String,
    all_proxy: String,
}

impl DockerConfig {
    /// The folder of docker's configuration.
    pub fn folder() -> PathBuf {
        match std::env::var_os("DOCKER_CONFIG").filter(|path| !path.is_empty()) {
            Some(folder) => folder.into(),
            None => PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".docker"),
        }
    }

    /// Reads the user's configuration; an absent file is an empty configuration.
    pub fn load() -> io::Result<Self> {
        let mut config = Self::load_from(&Self::folder())?;
        // Newer docker clients take the same document from the environment, over the file.
        if let Ok(text) = std::env::var("DOCKER_AUTH_CONFIG")
            && let Ok(over) = serde_json::from_str::<Self>(&text)
        {
            config.auths.extend(over.auths);
        }
        Ok(config)
    }

    /// Reads `config.json` in `folder`.
    pub fn load_from(folder: &Path) -> io::Result<Self> {
        let path = folder.join("config.json");
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(base::fs::context(error, "read", &path)),
        };
        serde_json::from_slice(&text)
            .map_err(|error| base::fs::context(io::Error::other(error), "read", &path))
    }

    /// A configuration with one login, kept under `key` ([`super::login_key`]).
    pub fn of_login(key: &str, username: &str, password: &str) -> Self {
        let entry = AuthEntry {
            username: username.to_owned(),
            password: password.to_owned(),
            ..AuthEntry::default()
        };
        Self { auths: [(key.to_owned(), entry)].into(), ..Self::default() }
    }

    /// The helper program's name for a registry's login, if one keeps it.
    pub(super) fn helper(&self, key: &str) -> Option<&str> {
        let helper = self.cred_helpers.get(key).unwrap_or(&self.creds_store);
        (!helper.is_empty()).then_some(helper)
    }

    /// Build arguments for the proxies configured for daemons reached at `address`.
    pub fn proxy_args(&self, address: &str) -> Vec<(String, String)> {
        let Some(found) = self.proxies.get(address).or_else(|| self.proxies.get("default")) else {
            return Vec::new();
        };
        let pairs = [
            ("HTTP_PROXY", &found.http_proxy),
            ("HTTPS_PROXY", &found.https_proxy),
            ("NO_PROXY", &found.no_proxy),
            ("FTP_PROXY", &found.ftp_proxy),
            ("ALL_PROXY", &found.all_proxy),
        ];
        let set = pairs.into_iter().filter(|(_, value)| !value.is_empty());
        set.flat_map(|(name, value)| {
            [(name.to_owned(), value.clone()), (name.to_lowercase(), value.clone())]
        })
        .collect()
    }

    /// Credentials for the registry `host`.
    pub async fn lookup(&self, host: &str) -> io::Result<AuthEntry> {
        let key = if host == HUB_HOST { HUB_KEY } else { host };
        let helper = match self.cred_helpers.get(key).or_else(|| self.cred_helpers.get(host)) {
            Some(helper) => helper,
            None => &self.creds_store,
        };
        if !helper.is_empty()
            && let Some(entry) = ask_helper(helper, key).await?
        {
            return Ok(entry);
        }
        Ok(self.in_file(key))
    }

    fn in_file(&self, key: &str) -> AuthEntry {
        if let Some(entry) = self.auths.get(key) {
            return entry.clone().resolve();
        }
        // Entries may be written as URLs; docker compares the host names.
        let wanted = host_of(key);
        let found = self.auths.iter().find(|(name, _)| host_of(name) == wanted);
        found.map(|(_, entry)| entry.clone().resolve()).unwrap_or_default()
    }
}

fn host_of(key: &str) -> &str {
    let rest = key.split_once("://").map_or(key, |(_, rest)| rest);
    rest.split('/').next().unwrap_or(rest)
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct HelperAnswer {
    username: String,
    secret: String,
}

/// Asks `docker-credential-<helper>`; `None` when it has nothing for the registry.
async fn ask_helper(helper: &str, key: &str) -> io::Result<Option<AuthEntry>> {
    let output = match helper::call(helper, "get", key).await? {
        Ok(output) => output,
        // The helpers' agreed text for "not mine".
        Err(text) if text.contains("credentials not found") => return Ok(None),
        Err(text) => return Err(io::Error::other(format!("{}: {text}", helper::program(helper)))),
    };
    let answer: HelperAnswer = serde_json::from_slice(&output).map_err(|error| {
        let program = helper::program(helper);
        io::Error::other(format!("{program} answered something else: {error}"))
    })?;
    let mut entry = AuthEntry::default();
    if answer.username == "<token>" {
        entry.identity_token = answer.secret;
    } else {
        entry.username = answer.username;
        entry.password = answer.secret;
    }
    Ok(Some(entry))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> DockerConfig {
        serde_json::from_str(text).unwrap()
    }

    #[tokio::test]
    async fn finds_entries_by_host_name() {
        let config = config(
            r#"{"auths": {
                "https://index.docker.io/v1/": {"auth": "bWU6YTpi"},
                "https://reg.example/v2/": {"username": "u", "password": "p"},
                "tok.example": {"identitytoken": "t"}
            }, "other": 1}"#,
        );
        let login = async |host: &str| {
            let entry = config.lookup(host).await.unwrap();
            let (user, secret) = entry.login();
            format!("{user}/{secret}")
        };
        assert_eq!(login("registry-1.docker.io").await, "me/a:b");
        assert_eq!(login("reg.example").await, "u/p");
        assert_eq!(login("tok.example").await, "/t");
        assert_eq!(login("unknown.example").await, "/");
    }

    #[test]
    fn proxies_become_build_arguments() {
        let config = config(r#"{"proxies": {"default": {"httpProxy": "http://p"}}}"#);
        let args = config.proxy_args("unix:///x");
        assert_eq!(args[0], ("HTTP_PROXY".to_owned(), "http://p".to_owned()));
        assert_eq!(args[1].0, "http_proxy");
        assert_eq!(args.len(), 2);
    }
}
