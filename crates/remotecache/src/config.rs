//! The cache config: keys, how they follow from each other, and which layers are their results.
//!
//! The JSON is that of `application/vnd.buildkit.cacheconfig.v0`, field order included. A layer
//! names the one below by its place in the list; `parent` 0 is left out and −1 is "none".

use std::time::SystemTime;

use base::{Digest, gojson::is_zero, time};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Media type of the config blob.
pub const MEDIA_TYPE: &str = "application/vnd.buildkit.cacheconfig.v0";

/// A whole cache.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheConfig {
    /// Layers of all results.
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub layers: Vec<LayerEntry>,
    /// Keys.
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub records: Vec<Record>,
}

/// A layer on top of another one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerEntry {
    /// Its blob.
    pub blob: Digest,
    /// Number of the layer below; −1: none.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub parent: i64,
}

/// A key.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Results, by their topmost layer.
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub layers: Vec<TopLayer>,
    /// Results, layer by layer.
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub chains: Vec<LayerList>,
    /// Digest of operation and output.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<Digest>,
    /// Per input, the keys that do.
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub inputs: Vec<Vec<Source>>,
}

/// A result by its topmost layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TopLayer {
    /// Number of the layer.
    pub layer: i64,
    /// When the result was made.
    #[serde(default)]
    pub created_at: Moment,
}

/// A result by all its layers, bottom first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LayerList {
    /// Numbers of the layers.
    #[serde(deserialize_with = "nullable")]
    pub layers: Vec<i64>,
    /// When the result was made.
    #[serde(default)]
    pub created_at: Moment,
}

/// One way to an input.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// The part of the input that counts.
    #[serde(default, deserialize_with = "empty_is_none", skip_serializing_if = "Option::is_none")]
    pub selector: Option<Digest>,
    /// Number of the key.
    #[serde(default)]
    pub link: i64,
}

/// A time as Go writes it; the default is Go's zero time, the beginning of the year 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(pub SystemTime);

impl Default for Moment {
    fn default() -> Self {
        Self(time::parse_rfc3339("0001-01-01T00:00:00Z").expect("a time"))
    }
}

impl Serialize for Moment {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&time::rfc3339_nano(self.0))
    }
}

impl<'de> Deserialize<'de> for Moment {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let at = time::parse_rfc3339(&text);
        at.map(Self).ok_or_else(|| de::Error::custom(format!("{text:?} is not a time")))
    }
}

fn nullable<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

fn empty_is_none<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Digest>, D::Error> {
    match Option::<String>::deserialize(deserializer)?.as_deref() {
        None | Some("") => Ok(None),
        Some(text) => text.parse().map(Some).map_err(de::Error::custom),
    }
}
