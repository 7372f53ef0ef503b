//! Descriptors, manifests and indexes with Go's field order.
//!
//! Written out by [`Manifest::to_json`] and [`Index::to_json`] they have the bytes, and so the
//! digests, that BuildKit gives them. Documents that came from elsewhere are passed on as the
//! bytes they arrived in; these types only read them.

use std::collections::BTreeMap;

use base::{Digest, Platform, gojson};
use serde::{Deserialize, Deserializer, Serialize};

use crate::{Error, Result, media};

/// Largest manifest or index that is read.
pub const MAX_MANIFEST: u64 = 4 << 20;
/// Largest image config that is read.
pub const MAX_CONFIG: u64 = 16 << 20;

/// Digest of the uncompressed tar, on descriptors of layers inside the daemon.
pub const ANNOTATION_UNCOMPRESSED: &str = "containerd.io/uncompressed";
/// Creation time of the layer, inside the daemon and in caches.
pub const ANNOTATION_CREATED_AT: &str = "buildkit/createdat";
/// Prefix of annotations that say which repositories of a host have the blob.
pub const ANNOTATION_DISTRIBUTION_SOURCE: &str = "containerd.io/distribution.source.";
/// Epoch that a layer's times were cut to.
pub const ANNOTATION_REWRITTEN: &str = "buildkit/rewritten-timestamp";
/// Complete image name in layouts.
pub const ANNOTATION_IMAGE_NAME: &str = "io.containerd.image.name";
/// Tag (or what a layout calls the image).
pub const ANNOTATION_REF_NAME: &str = "org.opencontainers.image.ref.name";
/// When the image was made.
pub const ANNOTATION_CREATED: &str = "org.opencontainers.image.created";

/// A pointer to content: what it is, its digest, its size.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What the bytes are.
    #[serde(default)]
    pub media_type: String,
    /// Their digest.
    pub digest: Digest,
    /// Their number.
    pub size: u64,
    /// Other places to get them from.
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub urls: Vec<String>,
    /// Free-form notes.
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// The bytes themselves in base64, for very small content.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<String>,
    /// Platform, on entries of an index.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    /// Kind of artifact, on entries of an index.
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "String::is_empty")]
    pub artifact_type: String,
}

impl Descriptor {
    /// Describes `size` bytes with this digest.
    pub fn new(media_type: impl Into<String>, digest: Digest, size: u64) -> Self {
        Self {
            media_type: media_type.into(),
            digest,
            size,
            urls: Vec::new(),
            annotations: BTreeMap::new(),
            data: None,
            platform: None,
            artifact_type: String::new(),
        }
    }

    /// Describes `bytes`.
    pub fn of(media_type: impl Into<String>, bytes: &[u8]) -> Self {
        Self::new(media_type, Digest::of(bytes), bytes.len() as u64)
    }

    /// Adds an annotation.
    #[must_use]
    pub fn annotate(mut self, key: &str, value: impl Into<String>) -> Self {
        self.annotations.insert(key.to_owned(), value.into());
        self
    }

    /// Digest of the uncompressed tar, if the annotation is there and well formed.
    pub fn diff_id(&self) -> Option<Digest> {
        self.annotations.get(ANNOTATION_UNCOMPRESSED)?.parse().ok()
    }
}

/// An image (or artifact) manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// Always 2.
    pub schema_version: u32,
    /// Docker's or OCI's manifest type; may be empty in documents of others.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub media_type: String,
    /// Kind of artifact; empty for images.
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "String::is_empty")]
    pub artifact_type: String,
    /// The image config.
    pub config: Descriptor,
    /// Layers, bottom first.
    #[serde(default, deserialize_with = "nullable")]
    pub layers: Vec<Descriptor>,
    /// The manifest this one is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<Descriptor>,
    /// Free-form notes.
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

impl Manifest {
    /// A manifest of docker's or OCI's type over these.
    pub fn new(oci: bool, config: Descriptor, layers: Vec<Descriptor>) -> Self {
        Self {
            schema_version: 2,
            media_type: if oci { media::OCI_MANIFEST } else { media::DOCKER_MANIFEST }.to_owned(),
            artifact_type: String::new(),
            config,
            layers,
            subject: None,
            annotations: BTreeMap::new(),
        }
    }

    /// Reads a manifest; `what` names it in errors.
    pub fn parse(what: &str, body: &[u8]) -> Result<Self> {
        let manifest: Self = read(what, body)?;
        if manifest.schema_version != 2 {
            return Err(Error::invalid(what, "only manifests of schema version 2 are supported"));
        }
        Ok(manifest)
    }

    /// The bytes to be stored: indented by two spaces.
    pub fn to_json(&self) -> Vec<u8> {
        gojson::to_vec_indented(self)
    }
}

/// An image index or manifest list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Index {
    /// Always 2.
    pub schema_version: u32,
    /// Docker's or OCI's index type; may be empty in documents of others.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub media_type: String,
    /// Kind of artifact; mostly empty.
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "String::is_empty")]
    pub artifact_type: String,
    /// Members in order of preference.
    #[serde(default, deserialize_with = "nullable")]
    pub manifests: Vec<Descriptor>,
    /// What the index is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<Descriptor>,
    /// Free-form notes.
    #[serde(default, deserialize_with = "nullable", skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

impl Index {
    /// An index of docker's or OCI's type over these.
    pub fn new(oci: bool, manifests: Vec<Descriptor>) -> Self {
        Self {
            schema_version: 2,
            media_type: if oci { media::OCI_INDEX } else { media::DOCKER_LIST }.to_owned(),
            artifact_type: String::new(),
            manifests,
            subject: None,
            annotations: BTreeMap::new(),
        }
    }

    /// Reads an index; `what` names it in errors.
    pub fn parse(what: &str, body: &[u8]) -> Result<Self> {
        read(what, body)
    }

    /// The bytes to be stored: indented by two spaces.
    pub fn to_json(&self) -> Vec<u8> {
        gojson::to_vec_indented(self)
    }
}

fn read<T: for<'de> Deserialize<'de>>(what: &str, body: &[u8]) -> Result<T> {
    if body.len() as u64 > MAX_MANIFEST {
        return Err(Error::invalid(what, format!("larger than {MAX_MANIFEST} bytes")));
    }
    serde_json::from_slice(body).map_err(|error| Error::invalid(what, error))
}

/// Go writes nil lists and maps as `null`; we read that as empty.
pub(crate) fn nullable<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    #[test]
    fn field_order_is_gos() {
        let layer = Descriptor {
            urls: vec!["https://x/?a&b".into()],
            platform: Some(Platform::new("linux", "amd64")),
            data: Some("e30=".into()),
            artifact_type: "a/b".into(),
            ..Descriptor::of(media::OCI_LAYER, b"x").annotate("k", "v")
        };
        let mut manifest =
            Manifest::new(true, Descriptor::of(media::OCI_EMPTY, b"{}"), vec![layer]);
        manifest.annotations.insert("a".into(), "b".into());
        expect![[r#"
            {
              "schemaVersion": 2,
              "mediaType": "application/vnd.oci.image.manifest.v1+json",
              "config": {
                "mediaType": "application/vnd.oci.empty.v1+json",
                "digest": "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a",
                "size": 2
              },
              "layers": [
                {
                  "mediaType": "application/vnd.oci.image.layer.v1.tar",
                  "digest": "sha256:2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881",
                  "size": 1,
                  "urls": [
                    "https://x/?a\u0026b"
                  ],
                  "annotations": {
                    "k": "v"
                  },
                  "data": "e30=",
                  "platform": {
                    "architecture": "amd64",
                    "os": "linux"
                  },
                  "artifactType": "a/b"
                }
              ],
              "annotations": {
                "a": "b"
              }
            }"#]]
        .assert_eq(std::str::from_utf8(&manifest.to_json()).unwrap());
        let back = Manifest::parse("m", &manifest.to_json()).unwrap();
        assert_eq!(back, manifest);
    }

    #[test]
    fn nulls_are_empty() {
        let index =
            Index::parse("i", br#"{"schemaVersion":2,"manifests":null,"annotations":null}"#);
        assert!(index.unwrap().manifests.is_empty());
        assert!(Manifest::parse("m", b"{\"schemaVersion\":1,\"config\":{}}").is_err());
    }
}
