//! Metadata of sources, asked without fetching content.

use std::{collections::BTreeMap, time::SystemTime};

use base::Platform;
use bytes::Bytes;
use llb::{pb, policy::Policy};

/// Asks what a source leads to now.
#[derive(Debug, Clone, Default)]
pub struct SourceMetaRequest {
    /// The source as it would stand in a graph; for `oci-layout://` session and store are in its
    /// attributes.
    pub source: pb::SourceOp,
    /// Whose image config; the daemon's own if absent.
    pub platform: Option<Platform>,
    /// Name of the progress vertex.
    pub log_name: String,
    /// `default` (or empty), `pull` or `local`, for images.
    pub resolve_mode: String,
    /// Images: only the digest is wanted.
    pub no_config: bool,
    /// Images: the documents that prove where the image comes from are wanted, with the text of
    /// statements of these predicate types.
    pub attestations: Option<Vec<String>>,
    /// Git: the raw commit and tag objects are wanted.
    pub git_objects: bool,
    /// Http: a further checksum is wanted.
    pub http_checksum: Option<ChecksumRequest>,
    /// Rules the source has to pass, before those of the build.
    pub policies: Vec<Policy>,
}

/// A checksum of a body with something behind it, as signatures are made of.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ChecksumRequest {
    /// `sha256`, `sha384` or `sha512`.
    pub algorithm: &'static str,
    /// Hashed after the body.
    pub suffix: Bytes,
}

/// Where a source leads.
#[derive(Debug, Clone, Default)]
pub struct SourceMeta {
    /// The source, possibly rewritten by a policy, even to another scheme.
    pub source: pb::SourceOp,
    /// Present for images and OCI layouts.
    pub image: Option<ImageMeta>,
    /// Present for git.
    pub git: Option<GitMeta>,
    /// Present for http.
    pub http: Option<HttpMeta>,
}

/// An image.
#[derive(Debug, Clone, Default)]
pub struct ImageMeta {
    /// Digest of the top manifest or index; empty if only the config was wanted.
    pub digest: String,
    /// Raw image config; empty with `no_config`.
    pub config: Bytes,
    /// The documents that prove where it comes from, if they were asked for and it is an index.
    pub chain: Option<AttestationChain>,
}

/// From an index to the statements about one of its images and their signature.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AttestationChain {
    /// Digest of the index.
    pub root: String,
    /// Digest of the image's manifest; its body is not in `blobs`.
    pub image: String,
    /// Digest of the manifest of statements; empty if there is none.
    pub attestation: String,
    /// Digests of manifests that sign it.
    pub signatures: Vec<String>,
    /// Bodies by digest.
    pub blobs: BTreeMap<String, ChainBlob>,
}

/// A document of a chain.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ChainBlob {
    /// Its type where it is referred to.
    pub media_type: String,
    /// Annotations there.
    pub annotations: BTreeMap<String, String>,
    /// The body.
    pub data: Bytes,
}

/// A git ref.
#[derive(Debug, Clone, Default)]
pub struct GitMeta {
    /// Object the ref points to, maybe an annotated tag.
    pub checksum: String,
    /// Full ref name.
    pub reference: String,
    /// The commit, only if `checksum` is a tag object.
    pub commit_checksum: String,
    /// Raw commit, if asked for.
    pub commit_object: Bytes,
    /// Raw tag, if asked for and there is one.
    pub tag_object: Bytes,
}

/// An http body.
#[derive(Debug, Clone, Default)]
pub struct HttpMeta {
    /// Digest of the body.
    pub checksum: String,
    /// Name it would be stored under.
    pub filename: String,
    /// `Last-Modified`, if the server said so.
    pub last_modified: Option<SystemTime>,
    /// The further checksum, with the suffix it was made with, if asked for.
    pub checksum_response: Option<(String, Bytes)>,
}
