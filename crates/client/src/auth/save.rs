//! Writing logins into docker's `config.json`, or to the helper program that keeps them.
//!
//! Whatever else is in the file stays as it is.

use std::{
    io,
    path::{Path, PathBuf},
};

use base64::{Engine as _, prelude::BASE64_STANDARD as BASE64};
use serde_json::{Map, Value, json};

use super::{
    config::{DockerConfig, HUB_KEY},
    helper,
};

/// Where a login was put.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Saved {
    /// In the file, as it is.
    File(PathBuf),
    /// With this helper program.
    Helper(String),
}

/// The name under which a registry's login is kept; empty and `docker.io` are Docker Hub.
pub fn login_key(registry: &str) -> String {
    let rest = registry.split_once("://").map_or(registry, |(_, rest)| rest);
    let host = rest.split('/').next().unwrap_or(rest);
    match host {
        "" | "docker.io" | "index.docker.io" | "registry-1.docker.io" => HUB_KEY.to_owned(),
        host => host.to_owned(),
    }
}

fn path(folder: &Path) -> PathBuf {
    folder.join("config.json")
}

fn read(folder: &Path) -> io::Result<Map<String, Value>> {
    let path = path(folder);
    let text = match std::fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Map::new()),
        Err(error) => return Err(base::fs::context(error, "read", &path)),
    };
    serde_json::from_slice(&text)
        .map_err(|error| base::fs::context(io::Error::other(error), "read", &path))
}

fn write(folder: &Path, config: &Map<String, Value>) -> io::Result<()> {
    use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
    std::fs::DirBuilder::new().mode(0o700).recursive(true).create(folder)?;
    // People link this file to where they keep their settings.
    let path = path(folder);
    let target = std::fs::canonicalize(&path).unwrap_or(path);
    let mut text = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b"\t");
    let mut serializer = serde_json::Serializer::with_formatter(&mut text, formatter);
    serde::Serialize::serialize(config, &mut serializer)?;
    let folder = target.parent().unwrap_or(Path::new("."));
    let temporary = folder.join(format!(".config-{}", base::id::random_id()));
    let mut options = std::fs::File::options();
    std::os::unix::fs::OpenOptionsExt::mode(options.write(true).create_new(true), 0o600);
    let written = options.open(&temporary).and_then(|mut file| {
        io::Write::write_all(&mut file, &text)?;
        if let Ok(before) = std::fs::metadata(&target) {
            file.set_permissions(std::fs::Permissions::from_mode(
                before.permissions().mode() & 0o600 | 0o600,
            ))?;
        }
        std::fs::rename(&temporary, &target)
    });
    if written.is_err() {
        _ = std::fs::remove_file(&temporary);
    }
    written.map_err(|error| base::fs::context(error, "write", &target))
}

fn auths(config: &mut Map<String, Value>) -> io::Result<&mut Map<String, Value>> {
    let auths = config.entry("auths").or_insert_with(|| json!({}));
    auths.as_object_mut().ok_or_else(|| io::Error::other("`auths` in config.json is no object"))
}

/// Keeps a login for `registry`.
pub async fn save_login(
    folder: &Path,
    registry: &str,
    username: &str,
    password: &str,
) -> io::Result<Saved> {
    let key = login_key(registry);
    let mut config = read(folder)?;
    let helper = DockerConfig::load_from(folder)?.helper(&key).map(str::to_owned);
    let saved = match helper {
        Some(helper) => {
            let login = json!({"ServerURL": key, "Username": username, "Secret": password});
            run_helper(&helper, "store", &login.to_string()).await?;
            auths(&mut config)?.insert(key, json!({}));
            Saved::Helper(helper)
        }
        None => {
            let both = BASE64.encode(format!("{username}:{password}"));
            auths(&mut config)?.insert(key, json!({"auth": both}));
            Saved::File(path(folder))
        }
    };
    write(folder, &config)?;
    Ok(saved)
}

/// Forgets the login for `registry`; false if there was none.
pub async fn erase_login(folder: &Path, registry: &str) -> io::Result<bool> {
    let key = login_key(registry);
    let mut config = read(folder)?;
    let helper = DockerConfig::load_from(folder)?.helper(&key).map(str::to_owned);
    let mut known = auths(&mut config)?.shift_remove(&key).is_some();
    if let Some(helper) = helper {
        match run_helper(&helper, "erase", &key).await {
            Ok(()) => known = true,
            Err(error) if error.to_string().contains("credentials not found") => {}
            Err(error) => return Err(error),
        }
    }
    if known {
        write(folder, &config)?;
    }
    Ok(known)
}

async fn run_helper(helper: &str, action: &str, input: &str) -> io::Result<()> {
    let done = helper::call(helper, action, input).await?;
    let refused = |text| io::Error::other(format!("{} {action}: {text}", helper::program(helper)));
    done.map(drop).map_err(refused)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn logins_come_and_go_and_the_rest_stays() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(path(folder.path()), r#"{"proxies": {"default": {}}, "auths": {"h": {}}}"#)
            .unwrap();
        let saved = save_login(folder.path(), "reg.example:5000", "u", "p").await.unwrap();
        assert_eq!(saved, Saved::File(path(folder.path())));
        let entry = DockerConfig::load_from(folder.path()).unwrap();
        let entry = entry.lookup("reg.example:5000").await.unwrap();
        assert_eq!(entry.login(), ("u", "p"));
        assert!(read(folder.path()).unwrap().contains_key("proxies"));
        assert!(erase_login(folder.path(), "reg.example:5000").await.unwrap());
        assert!(!erase_login(folder.path(), "reg.example:5000").await.unwrap());
        assert_eq!(login_key("docker.io"), "https://index.docker.io/v1/");
        assert_eq!(login_key("https://reg.example/v2/"), "reg.example");
    }
}
