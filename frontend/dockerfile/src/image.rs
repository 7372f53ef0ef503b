//! Image configs, in the order and form of the official ones.
//!
//! Reading is lenient (absent and null members are empty), writing is exact, since the bytes end
//! up in images.

use std::collections::BTreeMap;
use std::sync::Arc;

use base::Platform;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::text;

/// `PATH` of images that set none.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// An image config.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Image {
    /// When it was made.
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "String::is_empty")]
    pub created: String,
    /// Who made it.
    #[serde(
        default,
        deserialize_with = "nullable",
        serialize_with = "text_of",
        skip_serializing_if = "String::is_empty"
    )]
    pub author: String,
    /// Architecture.
    #[serde(default, deserialize_with = "nullable")]
    pub architecture: String,
    /// Operating system.
    #[serde(default, deserialize_with = "nullable")]
    pub os: String,
    /// Its version.
    #[serde(
        rename = "os.version",
        default,
        deserialize_with = "nullable",
        skip_serializing_if = "String::is_empty"
    )]
    pub os_version: String,
    /// Its features.
    #[serde(
        rename = "os.features",
        default,
        deserialize_with = "nullable",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub os_features: Vec<String>,
    /// Variant of the architecture.
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "String::is_empty")]
    pub variant: String,
    /// Layers.
    #[serde(default, deserialize_with = "nullable")]
    pub rootfs: RootFs,
    /// How it was made.
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub history: Vec<Arc<History>>,
    /// How containers run.
    #[serde(default, deserialize_with = "nullable")]
    pub config: Config,
}

/// Layers of an image.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct RootFs {
    /// `layers`.
    #[serde(rename = "type", default, deserialize_with = "nullable")]
    pub kind: String,
    /// Digests of uncompressed layers, bottom first.
    #[serde(default)]
    pub diff_ids: Option<Vec<String>>,
}

/// A step of making an image.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct History {
    /// When.
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "String::is_empty")]
    pub created: String,
    /// What.
    #[serde(
        default,
        deserialize_with = "nullable",
        serialize_with = "text_of",
        skip_serializing_if = "String::is_empty"
    )]
    pub created_by: String,
    /// Who.
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "String::is_empty")]
    pub author: String,
    /// Remark.
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "String::is_empty")]
    pub comment: String,
    /// It made no layer.
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "std::ops::Not::not")]
    pub empty_layer: bool,
}

/// How containers of an image run.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Config {
    /// `user[:group]`.
    #[serde(
        deserialize_with = "nullable",
        serialize_with = "text_of",
        skip_serializing_if = "String::is_empty"
    )]
    pub user: String,
    /// Ports.
    #[serde(deserialize_with = "nullable", skip_serializing_if = "BTreeMap::is_empty")]
    pub exposed_ports: BTreeMap<String, Empty>,
    /// Variables, `name=value`.
    #[serde(
        deserialize_with = "nullable",
        serialize_with = "texts_of",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub env: Vec<String>,
    /// Program.
    #[serde(
        deserialize_with = "nullable",
        serialize_with = "texts_of",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub entrypoint: Vec<String>,
    /// Its arguments.
    #[serde(
        deserialize_with = "nullable",
        serialize_with = "texts_of",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub cmd: Vec<String>,
    /// Paths of volumes.
    #[serde(
        deserialize_with = "nullable",
        serialize_with = "keys_of",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub volumes: BTreeMap<String, Empty>,
    /// Working folder.
    #[serde(
        deserialize_with = "nullable",
        serialize_with = "text_of",
        skip_serializing_if = "String::is_empty"
    )]
    pub working_dir: String,
    /// Labels.
    #[serde(
        deserialize_with = "nullable",
        serialize_with = "map_of",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub labels: BTreeMap<String, String>,
    /// Signal to stop with.
    #[serde(
        deserialize_with = "nullable",
        serialize_with = "text_of",
        skip_serializing_if = "String::is_empty"
    )]
    pub stop_signal: String,
    /// Only Windows looks at this.
    #[serde(deserialize_with = "nullable", skip_serializing_if = "std::ops::Not::not")]
    pub args_escaped: bool,
    /// How to tell whether it is well.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub healthcheck: Option<Health>,
    /// Instructions for images built on it.
    #[serde(
        deserialize_with = "nullable",
        serialize_with = "texts_of",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub on_build: Vec<String>,
    /// Shell of shell forms.
    #[serde(
        deserialize_with = "nullable",
        serialize_with = "texts_of",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub shell: Vec<String>,
}

/// `{}`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Empty {}

/// How to tell whether a container is well; times in nanoseconds.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
#[allow(missing_docs)]
pub struct Health {
    #[serde(
        deserialize_with = "nullable",
        serialize_with = "texts_of",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub test: Vec<String>,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "base::gojson::is_zero")]
    pub interval: i64,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "base::gojson::is_zero")]
    pub timeout: i64,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "base::gojson::is_zero")]
    pub start_period: i64,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "base::gojson::is_zero")]
    pub start_interval: i64,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "base::gojson::is_zero")]
    pub retries: i64,
}

fn nullable<'de, T: Deserialize<'de> + Default, D: Deserializer<'de>>(
    from: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

fn text_of<S: Serializer>(value: &str, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&text::lossy(value))
}

fn texts_of<S: Serializer>(values: &[String], to: S) -> Result<S::Ok, S::Error> {
    to.collect_seq(values.iter().map(|value| text::lossy(value)))
}

fn keys_of<S: Serializer>(map: &BTreeMap<String, Empty>, to: S) -> Result<S::Ok, S::Error> {
    to.collect_map(map.iter().map(|(key, value)| (text::lossy(key), value)))
}

fn map_of<S: Serializer>(map: &BTreeMap<String, String>, to: S) -> Result<S::Ok, S::Error> {
    to.collect_map(map.iter().map(|(key, value)| (text::lossy(key), text::lossy(value))))
}

impl Image {
    /// Reads a config.
    pub fn parse(json: &[u8]) -> Option<Self> {
        serde_json::from_slice(json).ok()
    }

    /// The config of an image made from nothing.
    pub fn empty(platform: &Platform) -> Self {
        let mut image = Self::default();
        image.set_platform(platform);
        image.rootfs.kind = "layers".to_owned();
        image.config.working_dir = "/".to_owned();
        if platform.os != "windows" {
            image.config.env.push(format!("PATH={DEFAULT_PATH}"));
        }
        image
    }

    /// The config as it is stored.
    pub fn to_json(&self) -> Vec<u8> {
        base::gojson::to_vec(self)
    }

    /// What it runs on.
    pub fn platform(&self) -> Platform {
        Platform {
            architecture: self.architecture.clone(),
            os: self.os.clone(),
            os_version: self.os_version.clone(),
            os_features: self.os_features.clone(),
            variant: self.variant.clone(),
        }
    }

    /// Sets what it runs on.
    pub fn set_platform(&mut self, platform: &Platform) {
        self.architecture = platform.architecture.clone();
        self.os = platform.os.clone();
        self.os_version = platform.os_version.clone();
        self.os_features = platform.os_features.clone();
        self.variant = platform.variant.clone();
    }

    /// Whether it has no layer at all.
    pub fn is_scratch(&self) -> bool {
        self.rootfs.diff_ids.as_ref().is_none_or(Vec::is_empty)
            && self.history.iter().all(|step| step.empty_layer)
    }
}

impl Config {
    /// Sets a variable in its place, or at the end.
    pub fn set_env(&mut self, name: &str, value: &str) {
        let entry = format!("{name}={value}");
        let same = |known: &&mut String| {
            known.split_once('=').map_or(known.as_str(), |(key, _)| key) == name
        };
        match self.env.iter_mut().find(same) {
            Some(known) => *known = entry,
            None => self.env.push(entry),
        }
    }

    /// Whether a variable is set.
    pub fn has_env(&self, name: &str) -> bool {
        self.env
            .iter()
            .any(|known| known.split_once('=').map_or(known.as_str(), |(key, _)| key) == name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_leniently_writes_exactly() {
        let text = r#"{"os":"linux","config":{"Env":null,"Volumes":{"/d":{}},"Healthcheck":{"Test":["NONE"],"Interval":5}},"rootfs":null}"#;
        let image = Image::parse(text.as_bytes()).unwrap();
        assert_eq!(
            String::from_utf8(image.to_json()).unwrap(),
            r#"{"architecture":"","os":"linux","rootfs":{"type":"","diff_ids":null},"config":{"Volumes":{"/d":{}},"Healthcheck":{"Test":["NONE"],"Interval":5}}}"#
        );
        assert!(image.is_scratch());
    }
}
