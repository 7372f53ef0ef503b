//! What a cache entry of a build request means.
//!
//! Attributes are checked before the build starts; what is wrong with an export fails the build,
//! what is wrong with an import only that import.

use std::collections::BTreeMap;

use base::Digest;
use oci::{Compression, Reference};

use crate::CacheError;

type Attrs = BTreeMap<String, String>;

/// Where a cache comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImportFrom {
    /// A cache (or an image with an inline one) in a registry.
    Registry {
        /// As given, for people.
        name: String,
        /// Complete.
        reference: Reference,
        /// Plain HTTP and any certificate will do.
        insecure: bool,
    },
    /// A folder at the client.
    Local {
        /// As the client calls it.
        src: String,
        /// Its manifest.
        digest: Digest,
    },
}

/// How much is exported.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// The last result, and what has layers anyway.
    #[default]
    Min,
    /// The results of all steps.
    Max,
}

/// Where a cache goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExportTo {
    /// A registry.
    Registry {
        /// Complete, with a tag.
        reference: Reference,
        /// Plain HTTP and any certificate will do.
        insecure: bool,
    },
    /// A folder at the client.
    Local {
        /// As the client calls it.
        dest: String,
    },
    /// Into the config of every exported image.
    Inline,
}

/// A cache export.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportOptions {
    /// Where to.
    pub to: ExportTo,
    /// How much.
    pub mode: Mode,
    /// Whether the build goes on without it.
    pub ignore_error: bool,
    /// OCI's media types, not docker's.
    pub oci: bool,
    /// An image manifest, not an index.
    pub image_manifest: bool,
    /// Compression of layers that are made.
    pub compression: Compression,
    /// Convert layers that exist.
    pub force_compression: bool,
    /// Compression level.
    pub level: Option<i32>,
}

impl ImportFrom {
    /// Checks an entry.
    pub fn parse(kind: &str, attrs: &Attrs) -> Result<Self, CacheError> {
        match kind {
            "registry" => {
                let (name, reference, insecure) = registry(attrs)?;
                Ok(Self::Registry { name, reference, insecure })
            }
            "local" => {
                let src = required(attrs, "src", "local cache importer requires src")?;
                let digest =
                    required(attrs, "digest", "local cache importer requires explicit digest")?;
                let digest = digest.parse().map_err(|error| {
                    CacheError::Attribute(format!("digest of the local cache: {error}"))
                })?;
                Ok(Self::Local { src, digest })
            }
            other => Err(CacheError::UnknownImporter(other.to_owned())),
        }
    }
}

/// Names an import in progress and hits; equal names are one import within a build.
pub fn import_id(kind: &str, attrs: &Attrs) -> String {
    match (kind, attrs.get("ref")) {
        ("registry", Some(reference)) => reference.clone(),
        _ => {
            let text = attrs.iter().map(|(key, value)| format!("{key}={value}\n"));
            format!("{kind}:{}", Digest::of(text.collect::<String>()).short())
        }
    }
}

impl ExportOptions {
    /// Checks an entry.
    pub fn parse(kind: &str, attrs: &Attrs) -> Result<Self, CacheError> {
        let to = match kind {
            "registry" => {
                let (_, reference, insecure) = registry(attrs)?;
                ExportTo::Registry { reference, insecure }
            }
            "local" => {
                let dest = required(attrs, "dest", "local cache exporter requires dest")?;
                ExportTo::Local { dest }
            }
            "inline" => ExportTo::Inline,
            other => return Err(CacheError::UnknownExporter(other.to_owned())),
        };
        let inline = to == ExportTo::Inline;
        let oci = flag(attrs, "oci-mediatypes")?.unwrap_or(true);
        let image_manifest = flag(attrs, "image-manifest")?.unwrap_or(oci);
        if image_manifest && !oci && !inline {
            return Err(CacheError::Attribute(
                "invalid configuration for remote cache, OCI mediatypes are required for \
                 image-manifest cache format"
                    .into(),
            ));
        }
        let mode = match attrs.get("mode").map(String::as_str) {
            Some("max") if !inline => Mode::Max,
            _ => Mode::Min,
        };
        let ignore_error = flag(attrs, "ignore-error")?.unwrap_or(false);
        let mut options = Self {
            to,
            mode,
            ignore_error,
            oci,
            image_manifest,
            compression: Compression::Gzip,
            force_compression: false,
            level: None,
        };
        if !inline {
            options.compression(attrs)?;
        }
        Ok(options)
    }

    fn compression(&mut self, attrs: &Attrs) -> Result<(), CacheError> {
        if let Some(name) = attrs.get("compression") {
            self.compression = Compression::parse(name).ok_or_else(|| {
                CacheError::Attribute(format!("unsupported compression type: {name}"))
            })?;
        }
        self.force_compression = match attrs.get("force-compression").map(String::as_str) {
            Some("") => true,
            _ => flag(attrs, "force-compression")?.unwrap_or(false),
        };
        if let Some(level) = attrs.get("compression-level") {
            let number = level.parse().map_err(|_| {
                CacheError::Attribute(format!("compression-level {level:?} is not a number"))
            })?;
            self.level = Some(number);
        }
        Ok(())
    }

    /// What its vertex is called.
    pub fn name(&self) -> &'static str {
        match self.to {
            ExportTo::Registry { .. } => "exporting cache to registry",
            ExportTo::Local { .. } => "exporting cache to client directory",
            ExportTo::Inline => "preparing layers for inline cache",
        }
    }
}

fn registry(attrs: &Attrs) -> Result<(String, Reference, bool), CacheError> {
    let name = required(attrs, "ref", "missing ref")?;
    let reference = Reference::parse(&name)
        .map_err(|error| CacheError::Attribute(format!("cache reference {name}: {error}")))?;
    let insecure = flag(attrs, "registry.insecure")?.unwrap_or(false);
    Ok((name, reference.with_default_tag(), insecure))
}

fn required(attrs: &Attrs, key: &str, otherwise: &str) -> Result<String, CacheError> {
    let value = attrs.get(key).filter(|value| !value.is_empty());
    value.cloned().ok_or_else(|| CacheError::Attribute(otherwise.to_owned()))
}

/// A switch as Go's `strconv.ParseBool` reads it.
fn flag(attrs: &Attrs, key: &str) -> Result<Option<bool>, CacheError> {
    let Some(value) = attrs.get(key) else { return Ok(None) };
    match value.as_str() {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(Some(true)),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(Some(false)),
        other => Err(CacheError::Attribute(format!("failed to parse {key}: {other:?}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(kind: &str, attrs: &[(&str, &str)]) -> String {
        let attrs =
            attrs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        match ExportOptions::parse(kind, &attrs) {
            Ok(options) => format!(
                "{:?} oci={} manifest={} {:?} force={}",
                options.mode,
                options.oci,
                options.image_manifest,
                options.compression,
                options.force_compression
            ),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn exports() {
        let dest = ("dest", "d");
        assert_eq!(check("local", &[dest]), "Min oci=true manifest=true Gzip force=false");
        assert_eq!(
            check("local", &[dest, ("mode", "max"), ("oci-mediatypes", "false")]),
            "Max oci=false manifest=false Gzip force=false"
        );
        assert!(
            check("local", &[dest, ("oci-mediatypes", "false"), ("image-manifest", "true")])
                .starts_with("invalid configuration for remote cache")
        );
        assert_eq!(
            check("local", &[dest, ("compression", "zstd"), ("force-compression", "")]),
            "Min oci=true manifest=true Zstd force=true"
        );
        assert_eq!(check("local", &[]), "local cache exporter requires dest");
        assert_eq!(check("registry", &[]), "missing ref");
        assert!(check("s3", &[]).starts_with("unknown cache exporter: \"s3\"; this daemon"));
        assert_eq!(
            check("inline", &[("mode", "max")]),
            "Min oci=true manifest=true Gzip force=false"
        );
    }
}
