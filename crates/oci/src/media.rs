//! Media types of manifests, configs and layers, docker's and OCI's, and how they pair up.

use crate::Compression;

/// OCI image index.
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// OCI image manifest.
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// OCI image config.
pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// The empty JSON object as config of artifacts.
pub const OCI_EMPTY: &str = "application/vnd.oci.empty.v1+json";
/// OCI layer without compression.
pub const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
/// OCI layer, gzip.
pub const OCI_LAYER_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
/// OCI layer, zstd.
pub const OCI_LAYER_ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
/// OCI layers that are not to be redistributed (deprecated by the specification, still in use).
pub const OCI_FOREIGN_PREFIX: &str = "application/vnd.oci.image.layer.nondistributable.v1.tar";
/// Docker manifest list.
pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
/// Docker manifest, schema 2.
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// Docker manifest, schema 1: refused.
pub const DOCKER_MANIFEST_V1: &str = "application/vnd.docker.distribution.manifest.v1+json";
/// Docker manifest, schema 1, signed: refused.
pub const DOCKER_MANIFEST_V1_SIGNED: &str =
    "application/vnd.docker.distribution.manifest.v1+prettyjws";
/// Docker image config.
pub const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
/// Docker layer without compression.
pub const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar";
/// Docker layer, gzip.
pub const DOCKER_LAYER_GZIP: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";
/// Docker layer, zstd (not standard, written by some tools).
pub const DOCKER_LAYER_ZSTD: &str = "application/vnd.docker.image.rootfs.diff.tar.zstd";
/// Docker layer that is not to be redistributed, gzip.
pub const DOCKER_FOREIGN_GZIP: &str = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip";
/// Docker layer that is not to be redistributed.
pub const DOCKER_FOREIGN: &str = "application/vnd.docker.image.rootfs.foreign.diff.tar";
/// An in-toto statement.
pub const IN_TOTO: &str = "application/vnd.in-toto+json";

/// `Accept` header of manifest requests.
pub const ACCEPT_MANIFESTS: &str = "application/vnd.docker.distribution.manifest.v2+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, \
    application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json, */*";

/// Whether the type is an index or manifest list.
pub fn is_index(media_type: &str) -> bool {
    matches!(media_type, OCI_INDEX | DOCKER_LIST)
}

/// Whether the type is an image manifest.
pub fn is_manifest(media_type: &str) -> bool {
    matches!(media_type, OCI_MANIFEST | DOCKER_MANIFEST)
}

/// Whether the type is an image config.
pub fn is_config(media_type: &str) -> bool {
    matches!(media_type, OCI_CONFIG | DOCKER_CONFIG)
}

/// Whether the type belongs to a layer of files.
pub fn is_layer(media_type: &str) -> bool {
    media_type.starts_with("application/vnd.oci.image.layer.")
        || media_type.starts_with("application/vnd.docker.image.rootfs.")
}

/// Whether the type marks a layer whose bytes are elsewhere (its `urls`).
pub fn is_foreign_layer(media_type: &str) -> bool {
    media_type.starts_with(OCI_FOREIGN_PREFIX)
        || media_type.starts_with("application/vnd.docker.image.rootfs.foreign.diff.tar")
}

/// Compression a layer's media type tells of; `None` if it is not a layer's type.
pub fn compression(media_type: &str) -> Option<Compression> {
    if !is_layer(media_type) {
        return None;
    }
    Some(match media_type.rsplit(['+', '.']).next() {
        Some("gzip") => Compression::Gzip,
        Some("zstd") => Compression::Zstd,
        _ => Compression::Uncompressed,
    })
}

/// Media type of a layer of this compression.
pub fn layer(compression: Compression, oci: bool) -> &'static str {
    match (compression, oci) {
        (Compression::Uncompressed, true) => OCI_LAYER,
        (Compression::Uncompressed, false) => DOCKER_LAYER,
        (Compression::Gzip | Compression::Estargz, true) => OCI_LAYER_GZIP,
        (Compression::Gzip | Compression::Estargz, false) => DOCKER_LAYER_GZIP,
        (Compression::Zstd, true) => OCI_LAYER_ZSTD,
        (Compression::Zstd, false) => DOCKER_LAYER_ZSTD,
    }
}

/// The same kind of layer in OCI's or docker's words; foreign layers stay foreign only with
/// `keep_foreign`. Types that belong to no layer are returned as they are.
pub fn convert_layer(media_type: &str, oci: bool, keep_foreign: bool) -> String {
    let Some(compression) = compression(media_type) else {
        return media_type.to_owned();
    };
    if !(keep_foreign && is_foreign_layer(media_type)) {
        return layer(compression, oci).to_owned();
    }
    match (compression, oci) {
        (Compression::Uncompressed, true) => OCI_FOREIGN_PREFIX.to_owned(),
        (Compression::Uncompressed, false) => DOCKER_FOREIGN.to_owned(),
        (Compression::Zstd, true) => format!("{OCI_FOREIGN_PREFIX}+zstd"),
        (Compression::Zstd, false) => DOCKER_LAYER_ZSTD.to_owned(),
        (_, true) => format!("{OCI_FOREIGN_PREFIX}+gzip"),
        (_, false) => DOCKER_FOREIGN_GZIP.to_owned(),
    }
}

/// Media type of a manifest or index body, from its own `mediaType` or its shape. `None` if it is
/// neither.
pub fn detect_manifest(body: &[u8]) -> Option<String> {
    #[derive(serde::Deserialize)]
    struct Shape {
        #[serde(rename = "schemaVersion", default)]
        schema_version: u32,
        #[serde(rename = "mediaType", default)]
        media_type: String,
        config: Option<serde::de::IgnoredAny>,
        layers: Option<serde::de::IgnoredAny>,
        manifests: Option<serde::de::IgnoredAny>,
        #[serde(rename = "fsLayers")]
        fs_layers: Option<serde::de::IgnoredAny>,
    }
    let shape: Shape = serde_json::from_slice(body).ok()?;
    if !shape.media_type.is_empty() {
        return Some(shape.media_type);
    }
    match (shape.schema_version, shape.manifests, shape.config, shape.layers, shape.fs_layers) {
        (1, ..) | (_, None, None, None, Some(_)) => Some(DOCKER_MANIFEST_V1.to_owned()),
        (_, Some(_), None, None, None) => Some(OCI_INDEX.to_owned()),
        (_, None, Some(_), _, None) | (_, None, None, Some(_), None) => {
            Some(OCI_MANIFEST.to_owned())
        }
        _ => None,
    }
}
