//! What is known of blobs, in little memory: there may be hundreds of thousands.
//!
//! A [`BlobInfo`] is kept as its JSON, in which digests and the usual phrases are replaced by a few
//! bytes: maps of a single entry would take ten times as much. JSON has no bytes below 32, so those
//! mark what was replaced.

use base::Digest;

use crate::BlobInfo;

/// Replaced by their place in this list, plus one; longer ones first where one begins another.
const PHRASES: [&str; 18] = [
    r#"{"t":"application/vnd.oci.image.layer.v1.tar+gzip","n":{"containerd.io/uncompressed":""#,
    r#"{"t":"application/vnd.oci.image.manifest.v1+json","#,
    r#"{"t":"application/vnd.oci.image.config.v1+json","#,
    "application/vnd.oci.image.layer.v1.tar+zstd",
    "application/vnd.oci.image.layer.v1.tar+gzip",
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.oci.image.",
    "application/vnd.docker.",
    "application/vnd.buildkit.",
    "containerd.io/distribution.source.",
    "containerd.io/uncompressed",
    r#"{"t":""#,
    r#"","n":{""#,
    r#"","l":{""#,
    r#"","r":["#,
    r#"":""#,
    r#"",""#,
    r#""}}"#,
];
/// Marks a digest; its raw bytes follow.
const DIGEST: u8 = 31;
const PREFIX: &[u8] = b"sha256:";
const HEX: usize = 64;

/// A [`BlobInfo`].
pub(crate) struct Packed(Box<[u8]>);

impl Packed {
    pub(crate) fn new(info: &BlobInfo) -> Self {
        if *info == BlobInfo::default() {
            return Self(Box::default());
        }
        let json = serde_json::to_vec(info).expect("a blob's info has a JSON form");
        Self(squeeze(&json).into())
    }

    pub(crate) fn unpack(&self) -> BlobInfo {
        if self.0.is_empty() {
            return BlobInfo::default();
        }
        serde_json::from_slice(&swell(&self.0)).expect("was packed by us")
    }
}

fn squeeze(mut text: &[u8]) -> Vec<u8> {
    let mut packed = Vec::with_capacity(text.len() / 2);
    while let [first, rest @ ..] = text {
        let phrase = PHRASES.iter().position(|phrase| text.starts_with(phrase.as_bytes()));
        if let Some(number) = phrase {
            packed.push(number as u8 + 1);
            text = &text[PHRASES[number].len()..];
        } else if let Some(digest) = digest_at(text) {
            packed.push(DIGEST);
            packed.extend_from_slice(digest.raw());
            text = &text[PREFIX.len() + HEX..];
        } else {
            packed.push(*first);
            text = rest;
        }
    }
    packed
}

fn digest_at(text: &[u8]) -> Option<Digest> {
    if !text.starts_with(PREFIX) {
        return None;
    }
    std::str::from_utf8(text.get(..PREFIX.len() + HEX)?).ok()?.parse().ok()
}

fn swell(mut packed: &[u8]) -> Vec<u8> {
    let mut text = Vec::with_capacity(packed.len() * 4);
    while let [first, rest @ ..] = packed {
        packed = rest;
        if *first == DIGEST {
            let (raw, rest) = packed.split_first_chunk().expect("a digest follows its mark");
            text.extend_from_slice(Digest::from_raw(*raw).to_string().as_bytes());
            packed = rest;
        } else if let Some(phrase) = (*first as usize).checked_sub(1).and_then(|at| PHRASES.get(at))
        {
            text.extend_from_slice(phrase.as_bytes());
        } else {
            text.push(*first);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(info: &BlobInfo, bytes: usize) {
        let packed = Packed::new(info);
        assert_eq!(packed.unpack(), *info);
        assert_eq!(packed.0.len(), bytes);
    }

    #[test]
    fn little_is_left_and_nothing_is_lost() {
        check(&BlobInfo::default(), 0);
        let mut info = BlobInfo::of_type(oci::media::OCI_LAYER_GZIP);
        check(&info, 4);
        let digest = Digest::of("tar");
        info.annotations.insert("containerd.io/uncompressed".into(), digest.to_string());
        check(&info, 35);
        info.labels.insert("\u{1f}\n\u{0}é".into(), "sha256:0123".into());
        info.labels.insert("upper".into(), digest.to_string().to_uppercase());
        let length = Packed::new(&info).0.len();
        check(&info.referencing([digest, Digest::of("other")]), length + 12 + 66);
    }
}
