//! Annotations asked for by attributes and metadata: `annotation[-<kind>][[<platform>]].<key>`.

use std::collections::BTreeMap;

use base::Platform;

use crate::ExportError;

/// Where an annotation goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum AnnotationKind {
    /// The image manifest.
    Manifest,
    /// Its descriptor in the index.
    ManifestDescriptor,
    /// The index.
    Index,
    /// The descriptor of the index.
    IndexDescriptor,
}

/// All annotations of an export.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Annotations(BTreeMap<(String, AnnotationKind), BTreeMap<String, String>>);

impl Annotations {
    /// Takes an attribute if it is one; `false` if it is something else.
    pub fn take(&mut self, attribute: &str, value: &str) -> Result<bool, ExportError> {
        let Some((kind, platform, key)) = split(attribute) else { return Ok(false) };
        let kind = match kind {
            "" | "manifest" => AnnotationKind::Manifest,
            "manifest-descriptor" => AnnotationKind::ManifestDescriptor,
            "index" => AnnotationKind::Index,
            "index-descriptor" => AnnotationKind::IndexDescriptor,
            other => {
                return Err(ExportError::Conflict(format!("unrecognized annotation type {other}")));
            }
        };
        let platform = match platform {
            "" => String::new(),
            text => match Platform::parse(text) {
                Ok(platform) => platform.format_all(),
                Err(error) => return Err(ExportError::Conflict(format!("{attribute}: {error}"))),
            },
        };
        self.0.entry((platform, kind)).or_default().insert(key.to_owned(), value.to_owned());
        Ok(true)
    }

    /// Adds all of `other`, which wins.
    pub fn merge(&mut self, other: Self) {
        for (place, entries) in other.0 {
            self.0.entry(place).or_default().extend(entries);
        }
    }

    /// Platforms that annotations name.
    pub fn platforms(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(|(platform, _)| platform.as_str()).filter(|platform| !platform.is_empty())
    }

    /// Whether anything is asked for on the index, its descriptor, or manifests' descriptors.
    pub fn needs_oci(&self) -> bool {
        self.0.keys().any(|(_, kind)| *kind != AnnotationKind::Manifest)
    }

    /// Whether anything is asked for on the index or its descriptor.
    pub fn needs_index(&self) -> bool {
        let of_index = [AnnotationKind::Index, AnnotationKind::IndexDescriptor];
        self.0.keys().any(|(_, kind)| of_index.contains(kind))
    }

    /// What goes to `kind`, for an image of `platform` (its own words after those for all).
    pub fn get(
        &self,
        kind: AnnotationKind,
        platform: Option<&Platform>,
    ) -> BTreeMap<String, String> {
        let of_index = matches!(kind, AnnotationKind::Index | AnnotationKind::IndexDescriptor);
        let own = platform.map(Platform::format_all).unwrap_or_default();
        let mut all = BTreeMap::new();
        for ((place, of), entries) in &self.0 {
            if *of == kind && (of_index || place.is_empty() || *place == own) {
                all.extend(entries.iter().map(|(key, value)| (key.clone(), value.clone())));
            }
        }
        all
    }
}

/// Kind, platform and key of an attribute's name.
fn split(attribute: &str) -> Option<(&str, &str, &str)> {
    let rest = attribute.strip_prefix("annotation")?;
    let (kind, rest) = match rest.strip_prefix('-') {
        Some(rest) => {
            let end = rest.find(|c: char| !c.is_ascii_lowercase() && c != '-')?;
            (&rest[..end], &rest[end..])
        }
        None => ("", rest),
    };
    let (platform, rest) = match rest.strip_prefix('[') {
        Some(rest) => rest.split_once(']')?,
        None => ("", rest),
    };
    let key = rest.strip_prefix('.')?;
    let wrong = key.is_empty() || key.contains(char::is_whitespace);
    (!wrong).then_some((kind, platform, key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys() {
        assert_eq!(split("annotation.a.b"), Some(("", "", "a.b")));
        assert_eq!(split("annotation-index.k"), Some(("index", "", "k")));
        assert_eq!(
            split("annotation-manifest-descriptor[linux/arm64].k"),
            Some(("manifest-descriptor", "linux/arm64", "k"))
        );
        assert_eq!(split("annotations.k"), None);
        assert_eq!(split("annotation."), None);
        let mut all = Annotations::default();
        assert!(all.take("annotation.k", "all").unwrap());
        assert!(all.take("annotation[linux/amd64].k", "amd").unwrap());
        assert!(all.take("annotation-other.k", "x").is_err());
        assert!(!all.take("name", "x").unwrap());
        let amd = Platform::parse("linux/amd64").unwrap();
        assert_eq!(all.get(AnnotationKind::Manifest, Some(&amd))["k"], "amd");
        assert_eq!(all.get(AnnotationKind::Manifest, None)["k"], "all");
    }
}
