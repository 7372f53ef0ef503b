//! Image configs: what a container of the image runs, and which layers it has.
//!
//! [`RawConfig`] keeps every top-level member as it came, for those who change one and must lose
//! nothing; [`ImageConfig`] is the reading view with the fields everybody knows.

use std::collections::BTreeMap;

use base::{Digest, Platform};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::{Error, Result, types::MAX_CONFIG, types::nullable};

/// The reading view of an image config. Unknown fields are not kept: see [`RawConfig`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageConfig {
    /// RFC 3339, as written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// Whom to ask.
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "String::is_empty")]
    pub author: String,
    /// GOARCH.
    #[serde(default, deserialize_with = "nullable")]
    pub architecture: String,
    /// E.g. `v7`.
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "String::is_empty")]
    pub variant: String,
    /// GOOS.
    #[serde(default, deserialize_with = "nullable")]
    pub os: String,
    /// Windows build.
    #[serde(
        rename = "os.version",
        default,
        deserialize_with = "nullable",
        skip_serializing_if = "String::is_empty"
    )]
    pub os_version: String,
    /// Mostly empty.
    #[serde(
        rename = "os.features",
        default,
        deserialize_with = "nullable",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub os_features: Vec<String>,
    /// How containers run.
    #[serde(default, deserialize_with = "nullable")]
    pub config: RunConfig,
    /// Which layers there are.
    #[serde(default, deserialize_with = "nullable")]
    pub rootfs: RootFs,
    /// How each layer came to be.
    #[serde(default, deserialize_with = "nullable")]
    pub history: Vec<History>,
}

/// How containers of the image run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct RunConfig {
    /// User (and group) of the process.
    #[serde(deserialize_with = "nullable", skip_serializing_if = "String::is_empty")]
    pub user: String,
    /// `port/protocol` the image listens on.
    #[serde(deserialize_with = "nullable", skip_serializing_if = "BTreeMap::is_empty")]
    pub exposed_ports: BTreeMap<String, Empty>,
    /// `K=V` pairs.
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<String>,
    /// What runs, first part.
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub entrypoint: Vec<String>,
    /// What runs, replaceable part.
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub cmd: Vec<String>,
    /// Paths that are volumes.
    #[serde(deserialize_with = "nullable", skip_serializing_if = "BTreeMap::is_empty")]
    pub volumes: BTreeMap<String, Empty>,
    /// Where it runs.
    #[serde(deserialize_with = "nullable", skip_serializing_if = "String::is_empty")]
    pub working_dir: String,
    /// Notes.
    #[serde(deserialize_with = "nullable", skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Signal that ends it.
    #[serde(deserialize_with = "nullable", skip_serializing_if = "String::is_empty")]
    pub stop_signal: String,
    /// Shell of shell-form instructions.
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub shell: Vec<String>,
    /// Instructions for images built on this one.
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub on_build: Vec<String>,
    /// How a container is asked whether it is well.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub healthcheck: Option<Healthcheck>,
}

/// How a container is asked whether it is well; times are nanoseconds, 0 is the default.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct Healthcheck {
    /// `CMD` and arguments, `CMD-SHELL` and a line, or `NONE`.
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub test: Vec<String>,
    /// Between checks.
    pub interval: i64,
    /// For one check.
    pub timeout: i64,
    /// While failures do not count.
    pub start_period: i64,
    /// Between checks of that time.
    pub start_interval: i64,
    /// Failures in a row until it is unhealthy.
    pub retries: i64,
}

/// `{}` as a map's value.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Empty {}

/// The layers of an image by the digests of their uncompressed tars.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootFs {
    /// `layers`.
    #[serde(rename = "type", default, deserialize_with = "nullable")]
    pub kind: String,
    /// Bottom first.
    #[serde(default, deserialize_with = "nullable")]
    pub diff_ids: Vec<Digest>,
}

/// One line of an image's history.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct History {
    /// RFC 3339, as written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// The instruction.
    #[serde(deserialize_with = "nullable", skip_serializing_if = "String::is_empty")]
    pub created_by: String,
    /// Whom to ask.
    #[serde(deserialize_with = "nullable", skip_serializing_if = "String::is_empty")]
    pub author: String,
    /// Which program wrote it.
    #[serde(deserialize_with = "nullable", skip_serializing_if = "String::is_empty")]
    pub comment: String,
    /// Whether the line changed metadata only.
    #[serde(deserialize_with = "nullable", skip_serializing_if = "std::ops::Not::not")]
    pub empty_layer: bool,
}

impl ImageConfig {
    /// Reads a config; `what` names it in errors.
    pub fn parse(what: &str, body: &[u8]) -> Result<Self> {
        if body.len() as u64 > MAX_CONFIG {
            return Err(Error::invalid(what, format!("larger than {MAX_CONFIG} bytes")));
        }
        serde_json::from_slice(body).map_err(|error| Error::invalid(what, error))
    }

    /// Platform of the image.
    pub fn platform(&self) -> Platform {
        Platform {
            architecture: self.architecture.clone(),
            os: self.os.clone(),
            os_version: self.os_version.clone(),
            os_features: self.os_features.clone(),
            variant: self.variant.clone(),
        }
    }
}

/// A config as an object of raw members, written sorted by key, as BuildKit's exporter does.
#[derive(Debug, Clone, Default)]
pub struct RawConfig(BTreeMap<String, Box<RawValue>>);

impl RawConfig {
    /// Reads an object; `what` names it in errors.
    pub fn parse(what: &str, body: &[u8]) -> Result<Self> {
        if body.len() as u64 > MAX_CONFIG {
            return Err(Error::invalid(what, format!("larger than {MAX_CONFIG} bytes")));
        }
        serde_json::from_slice(body).map(Self).map_err(|error| Error::invalid(what, error))
    }

    /// Reads one member; `None` if absent. `what` names the config in errors.
    pub fn get<T: for<'de> Deserialize<'de>>(&self, what: &str, key: &str) -> Result<Option<T>> {
        let Some(raw) = self.0.get(key) else { return Ok(None) };
        serde_json::from_str(raw.get())
            .map(Some)
            .map_err(|error| Error::invalid(format!("{what}, member `{key}`"), error))
    }

    /// Whether the member is there (even as `null`).
    pub fn contains(&self, key: &str) -> bool {
        self.0.contains_key(key)
    }

    /// Sets one member.
    pub fn set<T: Serialize + ?Sized>(&mut self, key: &str, value: &T) {
        let text = base::gojson::to_string(value);
        let raw = RawValue::from_string(text).expect("our own JSON is JSON");
        self.0.insert(key.to_owned(), raw);
    }

    /// Removes one member.
    pub fn remove(&mut self, key: &str) {
        self.0.remove(key);
    }

    /// Compact JSON with sorted members, each as it came apart from white space and the
    /// characters Go escapes.
    pub fn to_json(&self) -> Vec<u8> {
        let mut out = Vec::from(b"{");
        for (at, (key, value)) in self.0.iter().enumerate() {
            if at > 0 {
                out.push(b',');
            }
            out.extend(base::gojson::to_vec(key));
            out.push(b':');
            base::gojson::compact(value.get(), &mut out);
        }
        out.push(b'}');
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn raw_members_survive() {
        let body = br#"{ "z": {"q": "a \" <b>", "n": 1.50},
            "os":"linux", "config":{"Env":null,"Future":{"b":1,"a":2}} }"#;
        let mut raw = RawConfig::parse("c", body).unwrap();
        raw.set("rootfs", &RootFs { kind: "layers".into(), diff_ids: vec![] });
        assert_eq!(
            String::from_utf8(raw.to_json()).unwrap(),
            r#"{"config":{"Env":null,"Future":{"b":1,"a":2}},"os":"linux","#.to_owned()
                + r#""rootfs":{"type":"layers","diff_ids":[]},"z":{"q":"a \" \u003cb\u003e","n":1.50}}"#
        );
        let read = ImageConfig::parse("c", body).unwrap();
        assert_eq!((read.os.as_str(), read.config.env.len()), ("linux", 0));
    }
}
