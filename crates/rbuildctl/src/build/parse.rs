//! Values of flags that both forms of `build` share.

use std::{collections::BTreeMap, path::Path};

use anyhow::{Context as _, bail};
use client::{CacheEntry, Secret, SecretSource, SshForward};

use crate::csv;

/// `id=NAME,src=FILE`, `id=NAME,env=VARIABLE`, `id=NAME` (variable or file of that name).
pub fn secret(text: &str) -> anyhow::Result<Secret> {
    let (mut id, mut file, mut env, mut kind) = (None, None, None, None);
    for field in csv::fields(text)? {
        let (key, value) = csv::split_pair(&field).context("invalid --secret")?;
        let value = value.to_owned();
        match key.to_lowercase().as_str() {
            "type" if value == "file" || value == "env" => kind = Some(value),
            "type" => bail!("unsupported secret type {value:?}: use file or env"),
            "id" => id = Some(value),
            "source" | "src" => file = Some(value),
            "env" => env = Some(value),
            other => {
                bail!("unexpected key '{other}' in --secret '{field}': use id, src, env, type")
            }
        }
    }
    let id = id.filter(|id| !id.is_empty()).context("--secret needs an id")?;
    if kind.as_deref() == Some("env") && env.is_none() {
        env = file.take();
    }
    let source = match (file, env) {
        (_, Some(env)) => SecretSource::Env(env),
        (Some(file), None) => SecretSource::File(file.into()),
        // Without a source the id names a variable, else a file.
        (None, None) if std::env::var_os(&id).is_some() => SecretSource::Env(id.clone()),
        (None, None) => SecretSource::File(id.clone().into()),
    };
    if let SecretSource::File(path) = &source
        && !path.is_file()
    {
        bail!("--secret {id}: there is no file {}", path.display());
    }
    if let SecretSource::Env(name) = &source
        && std::env::var_os(name).is_none()
    {
        bail!("--secret {id}: the environment has no variable {name}");
    }
    Ok(Secret { id, source })
}

/// `default`, `ID=SOCKET`, `ID=KEY,KEY`, with `raw=true` for a socket of any protocol.
pub fn ssh(text: &str) -> anyhow::Result<SshForward> {
    let (id, rest) = text.split_once('=').unwrap_or((text, ""));
    let mut forward = SshForward { id: id.to_owned(), paths: Vec::new(), raw: false };
    for part in rest.split(',').filter(|part| !part.is_empty()) {
        match part.split_once('=') {
            Some(("raw", value)) => {
                let value = csv::parse_bool(value);
                forward.raw =
                    value.with_context(|| format!("invalid value for raw in --ssh {text}"))?;
            }
            _ => forward.paths.push(part.into()),
        }
    }
    if forward.raw && forward.paths.len() != 1 {
        bail!("--ssh {id}: raw mode needs exactly one socket");
    }
    if forward.paths.is_empty() && std::env::var_os("SSH_AUTH_SOCK").is_none() {
        bail!("--ssh {id}: no agent is running (SSH_AUTH_SOCK is not set); name a socket or a key");
    }
    Ok(forward)
}

/// `type=…,key=value`; a bare reference is a registry cache.
pub fn cache(flag: &str, text: &str, export: bool) -> anyhow::Result<CacheEntry> {
    let mut entry = if text.contains('=') {
        let mut attrs = csv::pairs(text).with_context(|| format!("invalid {flag}"))?;
        let kind = attrs.remove("type").with_context(|| format!("{flag} needs type=TYPE"))?;
        CacheEntry { kind, attrs }
    } else {
        let attrs = BTreeMap::from([("ref".to_owned(), text.to_owned())]);
        CacheEntry { kind: "registry".into(), attrs }
    };
    if export {
        entry.attrs.entry("mode".into()).or_insert_with(|| "min".into());
    }
    let needs = match (entry.kind.as_str(), export) {
        ("registry", _) => Some("ref"),
        ("local", true) => Some("dest"),
        ("local", false) => Some("src"),
        _ => None,
    };
    if let Some(key) = needs
        && entry.attrs.get(key).is_none_or(String::is_empty)
    {
        bail!("{flag} type={} needs {key}=…", entry.kind);
    }
    if entry.kind == "gha" {
        github(&mut entry.attrs)?;
    }
    if entry.kind == "s3" {
        amazon(&mut entry.attrs);
    }
    Ok(entry)
}

fn from_env(attrs: &mut BTreeMap<String, String>, key: &str, variables: &[&str]) {
    if !attrs.contains_key(key)
        && let Some(value) = variables.iter().find_map(|name| std::env::var(name).ok())
    {
        attrs.insert(key.to_owned(), value);
    }
}

/// Address and token that a GitHub runner leaves in the environment.
fn github(attrs: &mut BTreeMap<String, String>) -> anyhow::Result<()> {
    let second = std::env::var("ACTIONS_CACHE_SERVICE_V2")
        .is_ok_and(|value| csv::parse_bool(&value) == Some(true));
    if attrs.get("version").is_some_and(|version| version == "2") || second {
        from_env(attrs, "url_v2", &["ACTIONS_RESULTS_URL"]);
    }
    from_env(attrs, "url", &["ACTIONS_CACHE_URL", "ACTIONS_RESULTS_URL"]);
    from_env(attrs, "token", &["ACTIONS_RUNTIME_TOKEN"]);
    if !attrs.contains_key("url") && !attrs.contains_key("url_v2") {
        bail!("a cache of type gha needs url=… or $ACTIONS_CACHE_URL");
    }
    if !attrs.contains_key("token") {
        bail!("a cache of type gha needs token=… or $ACTIONS_RUNTIME_TOKEN");
    }
    Ok(())
}

/// Keys of the environment: the daemon does not have this machine's.
fn amazon(attrs: &mut BTreeMap<String, String>) {
    from_env(attrs, "access_key_id", &["AWS_ACCESS_KEY_ID"]);
    from_env(attrs, "secret_access_key", &["AWS_SECRET_ACCESS_KEY"]);
    from_env(attrs, "session_token", &["AWS_SESSION_TOKEN"]);
}

/// `network.host`, `security.insecure`, `device[=…]`.
pub fn entitlement(text: &str) -> anyhow::Result<String> {
    match text.split(['=', ',']).next() {
        Some("network.host" | "security.insecure" | "device") => Ok(text.to_owned()),
        _ => bail!("unknown --allow {text}: use network.host, security.insecure or device"),
    }
}

/// `NAME=DIR` pairs whose folders exist.
pub fn folders(
    flag: &str,
    texts: &[String],
) -> anyhow::Result<BTreeMap<String, std::path::PathBuf>> {
    let mut folders = BTreeMap::new();
    for text in texts {
        let (name, folder) = csv::split_pair(text).with_context(|| format!("invalid {flag}"))?;
        if !Path::new(folder).is_dir() {
            bail!("{flag} {name}: {folder} is not a folder");
        }
        folders.insert(name.to_owned(), folder.into());
    }
    Ok(folders)
}

/// A source policy file.
pub fn source_policy(path: &Path) -> anyhow::Result<client::SourcePolicy> {
    let text = std::fs::read(path).with_context(|| format!("reading {}", path.display()))?;
    client::parse_source_policy(&text).with_context(|| format!("reading {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets() {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
        let found = secret(&format!("id=a,src={file}")).unwrap();
        assert_eq!(found.source, SecretSource::File(file.into()));
        assert_eq!(
            secret("type=env,id=a,src=PATH").unwrap().source,
            SecretSource::Env("PATH".into())
        );
        assert_eq!(secret("id=PATH").unwrap().source, SecretSource::Env("PATH".into()));
        for bad in ["src=x", "id=a,src=/none", "id=a,env=NO_SUCH_VARIABLE_", "id=a,x=y", "a"] {
            assert!(secret(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn agents() {
        let keys = ssh("work=/a,/b").unwrap();
        assert_eq!((keys.id.as_str(), keys.paths.len(), keys.raw), ("work", 2, false));
        assert!(ssh("s=/sock,raw=true").unwrap().raw);
        assert!(ssh("s=/a,/b,raw=true").is_err());
    }

    #[test]
    fn caches() {
        let entry = cache("--cache-to", "user/app:cache", true).unwrap();
        assert_eq!((entry.kind.as_str(), entry.attrs["mode"].as_str()), ("registry", "min"));
        assert!(cache("--cache-to", "type=local,src=x", true).is_err());
        assert_eq!(cache("--cache-from", "type=local,src=x", false).unwrap().attrs["src"], "x");
    }
}
