//! Attributes common to `image`, `oci` and `docker`.

use std::collections::BTreeMap;

use oci::Compression;
use store::BlobOptions;

use crate::{Annotations, ExportError, attrs::Attrs};

/// How an image is put together.
#[derive(Debug, Clone)]
pub struct ImageOptions {
    /// Comma-separated names as given; `*`: from the result.
    pub names: String,
    /// OCI or docker media types; absent: by compatibility version.
    pub oci_types: Option<bool>,
    /// Attestations as OCI artifacts; absent: by compatibility version and media types.
    pub oci_artifact: Option<bool>,
    /// Attestations refer to their image instead of being members of its index.
    pub referrers: bool,
    /// Compression of new layers.
    pub compression: Compression,
    /// Its level.
    pub level: Option<i32>,
    /// Convert existing layers too.
    pub force_compression: bool,
    /// Keep media types of foreign layers.
    pub prefer_nondist_layers: bool,
    /// Include statements that are for inlining only.
    pub inline_attestations: bool,
    /// Absent: look at the result; `Some(None)`: none, whatever the result says.
    pub epoch: Option<Option<i64>>,
    /// Cut file times in layers to the epoch.
    pub rewrite_timestamp: bool,
    /// Annotations.
    pub annotations: Annotations,
    /// Compatibility version of the build.
    pub compatibility: u32,
}

impl ImageOptions {
    /// Takes the common attributes out of `attrs`.
    pub(crate) fn load(
        attrs: &mut Attrs,
        compatibility: u32,
        inline: bool,
    ) -> Result<Self, ExportError> {
        let compression = attrs.take("compression").unwrap_or_default();
        let parsed = Compression::parse(&compression);
        let compression = match parsed {
            Some(parsed) => parsed,
            None => {
                let reason = "expected uncompressed, gzip, estargz or zstd";
                return Err(attrs.bad("compression", compression, reason));
            }
        };
        if compression == Compression::Zstd && compatibility <= 10 {
            let feature = format!("{} exporter compression=zstd", attrs.exporter());
            return Err(ExportError::Compatibility { version: compatibility, feature });
        }
        let level = match attrs.integer("compression-level")? {
            None => None,
            Some(level) => {
                let levels = compression.levels();
                match i32::try_from(level)
                    .ok()
                    .filter(|l| levels.as_ref().is_none_or(|r| r.contains(l)))
                {
                    Some(level) => Some(level).filter(|_| levels.is_some()),
                    None => {
                        let range = levels.unwrap_or(0..=0);
                        let name = compression.name();
                        let reason =
                            format!("{name} has levels {} to {}", range.start(), range.end());
                        return Err(attrs.bad("compression-level", level.to_string(), reason));
                    }
                }
            }
        };
        let options = Self {
            names: attrs.take("name").unwrap_or_default(),
            oci_types: attrs.bool("oci-mediatypes", None)?,
            oci_artifact: attrs.bool("oci-artifact", None)?,
            referrers: attrs.flag("attestation-referrers")?,
            compression,
            level,
            force_compression: attrs.flag("force-compression")?,
            prefer_nondist_layers: attrs.bool("prefer-nondist-layers", None)?.unwrap_or(false),
            inline_attestations: attrs.bool("attestation-inline", None)?.unwrap_or(inline),
            epoch: attrs.epoch()?,
            rewrite_timestamp: attrs.bool("rewrite-timestamp", None)?.unwrap_or(false),
            annotations: Annotations::default(),
            compatibility,
        };
        options.validate()?;
        Ok(options)
    }

    fn validate(&self) -> Result<(), ExportError> {
        for (off, name) in [(self.oci_types, "oci-mediatypes"), (self.oci_artifact, "oci-artifact")]
        {
            if self.referrers && off == Some(false) {
                let text = "exporter option \"attestation-referrers=true\" conflicts with";
                return Err(ExportError::Conflict(format!("{text} \"{name}=false\"")));
            }
        }
        if self.oci_types != Some(false) {
            return Ok(());
        }
        if self.compression == Compression::Estargz {
            return Err(ExportError::Conflict(format!(
                "exporter option \"compression={}\" conflicts with \"oci-mediatypes=false\"",
                self.compression.name()
            )));
        }
        if self.oci_artifact == Some(true) {
            let text =
                "exporter option \"oci-artifact=true\" conflicts with \"oci-mediatypes=false\"";
            return Err(ExportError::Conflict(text.into()));
        }
        Ok(())
    }

    /// Fills in what depends on the result; `always_oci` for layouts.
    pub(crate) fn settle(
        &self,
        always_oci: bool,
        has_attestations: bool,
    ) -> Result<Settled, ExportError> {
        let oci =
            self.oci_types.unwrap_or(always_oci || self.compatibility >= 30 || has_attestations);
        let settled = Self { oci_types: Some(oci), ..self.clone() };
        settled.validate()?;
        let artifact = self.referrers || oci && self.compatibility >= 30;
        Ok(Settled { oci, artifact: self.oci_artifact.unwrap_or(artifact) })
    }

    pub(crate) fn blob_options(&self) -> BlobOptions {
        BlobOptions {
            compression: self.compression,
            level: self.level,
            force: self.force_compression,
            create: true,
        }
    }

    /// Names given, split; none if there are none.
    pub(crate) fn names(&self, metadata: &BTreeMap<String, bytes::Bytes>) -> String {
        match metadata.get("image.name") {
            Some(name) if self.names == "*" => String::from_utf8_lossy(name).into_owned(),
            _ => self.names.clone(),
        }
    }
}

/// Choices that depend on the result.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Settled {
    /// OCI media types.
    pub oci: bool,
    /// Attestations as artifacts.
    pub artifact: bool,
}

/// Splits the attributes nobody took into annotations and metadata.
pub(crate) fn annotations_and_metadata(
    attrs: Attrs,
    annotations: &mut Annotations,
) -> Result<BTreeMap<String, bytes::Bytes>, ExportError> {
    let mut metadata = BTreeMap::new();
    for (key, value) in attrs.rest() {
        if !annotations.take(&key, &value)? {
            metadata.insert(key, bytes::Bytes::from(value));
        }
    }
    Ok(metadata)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(attrs: &[(&str, &str)], compatibility: u32) -> String {
        let attrs = attrs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let mut attrs = Attrs::new("image", attrs);
        match ImageOptions::load(&mut attrs, compatibility, true) {
            Ok(o) => format!(
                "{} {:?} {} {:?}",
                o.compression.name(),
                o.level,
                o.force_compression,
                o.epoch
            ),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn values() {
        assert_eq!(check(&[], 30), "gzip None false None");
        assert_eq!(
            check(
                &[("compression", "zstd"), ("compression-level", "22"), ("force-compression", "")],
                30
            ),
            "zstd Some(22) true None"
        );
        assert_eq!(check(&[("source-date-epoch", "")], 30), "gzip None false Some(None)");
        assert_eq!(
            check(&[("compression-level", "10")], 30),
            "invalid value `10` for image exporter attribute `compression-level`: gzip has levels 0 to 9"
        );
        assert_eq!(
            check(&[("compression", "estargz"), ("oci-mediatypes", "false")], 30),
            "exporter option \"compression=estargz\" conflicts with \"oci-mediatypes=false\""
        );
        assert_eq!(
            check(&[("compression", "zstd"), ("oci-mediatypes", "false")], 30),
            "zstd None false None"
        );
        assert_eq!(
            check(&[("compression", "zstd")], 10),
            "unsupported compatibility-version 10 feature image exporter compression=zstd"
        );
        assert!(check(&[("compression", "lz4")], 30).contains("expected uncompressed, gzip"));
        assert!(check(&[("rewrite-timestamp", "yes")], 30).contains("expected true or false"));
    }
}
