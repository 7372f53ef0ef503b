//! The exec op: runs a process over its inputs; each writable mount may become an output.
//!
//! | field | in the key | why |
//! |---|---|---|
//! | args, env, cwd, user, hostname, ulimit, cgroup parent, exit codes | yes | they change what the process does |
//! | extra hosts | names only | addresses differ between machines that mean the same |
//! | proxy settings | no | the same step behind another proxy is still the same step |
//! | mount destinations, types, inputs, outputs | yes | they are the process's world |
//! | mount selectors | through the input's selector | the part that is used is what counts |
//! | cache mount id and sharing | only a default id with shared access | contents are never part of a result |
//! | secret and ssh values | no | they must not be needed to tell results apart |
//! | recording proxy | no | what a step may reach is as before; only its vertex has another name |
//! | platform | yes | the same command means other programs |
//! | resources | no | they change how fast, not what |

pub(crate) mod ceiling;
pub(crate) mod mounts;
pub(crate) mod run;

use base::{Digest, Platform, gojson};
use llb::pb::{self, CacheSharingOpt, MountContentCache, MountType};
use serde::Serialize;

use crate::{
    key::{CacheMap, InputKey, KeyError, Selector, reduce, rooted},
    keyjson,
};

#[derive(Serialize)]
struct Key {
    #[serde(rename = "Type")]
    kind: &'static str,
    #[serde(rename = "Exec")]
    exec: keyjson::Exec,
    #[serde(rename = "OS")]
    os: String,
    #[serde(rename = "Arch")]
    arch: String,
    #[serde(rename = "Variant", skip_serializing_if = "String::is_empty")]
    variant: String,
    #[serde(rename = "OSVersion", skip_serializing_if = "String::is_empty")]
    os_version: String,
    #[serde(rename = "OSFeatures", skip_serializing_if = "Vec::is_empty")]
    os_features: Vec<String>,
}

/// Source: cache key notes §4.4.
pub(crate) fn cache_map(
    op: &pb::ExecOp,
    platform: &Platform,
    inputs: usize,
) -> Result<CacheMap, KeyError> {
    let mut exec = keyjson::Exec::from(op);
    if let Some(meta) = &mut exec.meta {
        for host in &mut meta.extra_hosts {
            host.ip.clear();
        }
    }
    for mount in &mut exec.mounts {
        mount.selector.clear();
        if let Some(cache) = &mut mount.cache {
            let default_id = cache.id == mount.dest
                || cache.id.split_once('/').is_some_and(|(_, rest)| rest == mount.dest);
            if cache.sharing != CacheSharingOpt::Shared as i32 || !default_id {
                *cache = keyjson::Cache::default();
            }
        }
    }
    if let [mount] = exec.mounts.as_slice() {
        let plain = mount.dest == "/"
            && !mount.readonly
            && mount.mount_type == MountType::Bind as i32
            && mount.cache.is_none()
            && mount.ssh.is_none()
            && mount.secret.is_none()
            && mount.result_id.is_empty();
        if plain {
            exec.mounts.clear();
        }
    }
    let key = Key {
        kind: "buildkit.exec.v0",
        exec,
        os: platform.os.clone(),
        arch: platform.architecture.clone(),
        variant: platform.variant.clone(),
        os_version: platform.os_version.clone(),
        os_features: platform.os_features.clone(),
    };
    Ok(CacheMap { preimage: gojson::to_vec(&key), inputs: input_keys(op, inputs)? })
}

fn input_keys(op: &pb::ExecOp, inputs: usize) -> Result<Vec<InputKey>, KeyError> {
    let mut selectors: Vec<Vec<String>> = vec![Vec::new(); inputs];
    let mut by_content = vec![false; inputs];
    for mount in &op.mounts {
        let no_input =
            matches!(mount.mount_type(), MountType::Secret | MountType::Ssh | MountType::Tmpfs);
        let Some(input) =
            usize::try_from(mount.input).ok().filter(|input| !no_input && *input < inputs)
        else {
            continue;
        };
        let selector = rooted(&mount.selector);
        let safe = mount.output == -1 || mount.readonly || selector == "/";
        // The last mount of an input decides for all of them.
        by_content[input] = match mount.content_cache() {
            MountContentCache::Off => false,
            MountContentCache::On if safe => true,
            MountContentCache::On => {
                return Err(KeyError::ContentCache { dest: mount.dest.clone() });
            }
            MountContentCache::Default => safe && mount.dest != "/",
        };
        selectors[input].push(selector);
    }
    let keys = selectors.into_iter().zip(by_content).map(|(paths, content)| {
        if paths.is_empty() {
            return InputKey::default();
        }
        let selector = Some(Digest::of(paths.join("\0")));
        let content = content.then(|| {
            if paths.iter().any(|path| path == "/") {
                return vec![Selector::default()];
            }
            reduce(
                paths
                    .into_iter()
                    .map(|path| Selector { path, follow: true, ..Default::default() })
                    .collect(),
            )
        });
        InputKey { selector, content, unlazy: true }
    });
    Ok(keys.collect())
}
