//! The image for a platform: from an index to a manifest and its config.

use base::Platform;

use crate::{Descriptor, Error, Index, Result};

/// Annotation of attestation manifests inside an index.
pub const ANNOTATION_REFERENCE_TYPE: &str = "vnd.docker.reference.type";
/// Digest of the image an attestation manifest belongs to.
pub const ANNOTATION_REFERENCE_DIGEST: &str = "vnd.docker.reference.digest";

/// The entry of `index` that suits `wanted` best: the best ranking platform, the first of equals.
/// An entry without platform (layouts of one image) suits only if nothing else does. Attestation
/// manifests are never chosen.
pub fn best<'a>(what: &str, index: &'a Index, wanted: &Platform) -> Result<&'a Descriptor> {
    let images = || {
        index.manifests.iter().filter(|entry| {
            entry.annotations.get(ANNOTATION_REFERENCE_TYPE).is_none_or(|kind| kind.is_empty())
                && entry.platform.as_ref().is_none_or(|platform| platform.os != "unknown")
        })
    };
    images()
        .filter_map(|entry| Some((entry.platform.as_ref()?.rank_for(wanted)?, entry)))
        .min_by_key(|(rank, _)| *rank)
        .map(|(_, entry)| entry)
        .or_else(|| images().find(|entry| entry.platform.is_none()))
        .ok_or_else(|| Error::NoPlatform {
            what: what.to_owned(),
            wanted: wanted.format_all(),
            available: images()
                .filter_map(|entry| entry.platform.as_ref().map(Platform::format_all))
                .collect(),
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::media;

    #[test]
    fn picks_best_and_names_what_there_is() {
        let entry = |platform: &str| Descriptor {
            platform: Some(Platform::parse(platform).unwrap()),
            ..Descriptor::of(media::OCI_MANIFEST, platform.as_bytes())
        };
        let mut attestation = entry("linux/amd64");
        attestation
            .annotations
            .insert(ANNOTATION_REFERENCE_TYPE.into(), "attestation-manifest".into());
        let index = Index::new(
            true,
            vec![
                attestation,
                entry("linux/386"),
                entry("linux/arm/v6"),
                entry("linux/arm/v7"),
                entry("linux/amd64"),
            ],
        );
        let pick = |wanted: &str| {
            best("img", &index, &Platform::parse(wanted).unwrap().normalize())
                .map(|entry| entry.platform.as_ref().unwrap().format())
                .map_err(|error| error.to_string())
        };
        assert_eq!(pick("linux/amd64"), Ok("linux/amd64".into()));
        assert_eq!(pick("linux/arm64"), Ok("linux/arm/v7".into()));
        assert_eq!(
            pick("linux/s390x"),
            Err("img: no match for platform linux/s390x (there are: linux/386, linux/arm/v6, linux/arm/v7, linux/amd64)".into())
        );
    }
}
