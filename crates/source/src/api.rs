//! The seam every source fills, and the list of sources.

use std::{
    any::Any,
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex},
    time::SystemTime,
};

use base::{Digest, Platform};
use bytes::Bytes;
use llb::pb;
use oci::Descriptor;
use session::Group;
use store::Ref;
use tokio::sync::OnceCell;

use crate::{Origins, Progress, Providers, Registries, SourceError};

/// A source op to resolve.
#[derive(Clone)]
pub struct SourceRequest {
    /// Identifier `scheme://…` and attributes.
    pub op: pb::SourceOp,
    /// The vertex's platform, normalised.
    pub platform: Platform,
    /// Sessions of the builds that want it.
    pub group: Group,
    /// What this build resolved already.
    pub memo: Arc<Memo>,
    /// Where progress goes.
    pub progress: Progress,
}

impl SourceRequest {
    /// The identifier without its scheme.
    pub fn rest(&self) -> &str {
        self.op.identifier.split_once("://").map_or("", |(_, rest)| rest)
    }

    /// An attribute, empty if absent.
    pub fn attr(&self, name: &str) -> &str {
        self.op.attrs.get(name).map_or("", String::as_str)
    }
}

/// A question about what a source leads to now, without fetching its content.
#[derive(Clone)]
pub struct MetaRequest {
    /// The source.
    pub source: SourceRequest,
    /// Images: `default` (or empty), `pull`, `local`; overrides the attribute when not empty.
    pub resolve_mode: String,
    /// Images: only the digest is wanted.
    pub no_config: bool,
    /// Images: the documents that prove where the image comes from are wanted, with the text of
    /// statements of these predicate types.
    pub attestations: Option<Vec<String>>,
    /// Git: raw commit and tag objects are wanted.
    pub git_objects: bool,
    /// Http: a further checksum is wanted.
    pub http_checksum: Option<ChecksumRequest>,
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
pub struct Meta {
    /// Images and OCI layouts.
    pub image: Option<ImageMeta>,
    /// Git.
    pub git: Option<GitMeta>,
    /// Http.
    pub http: Option<HttpMeta>,
}

/// An image.
#[derive(Debug, Clone, Default)]
pub struct ImageMeta {
    /// Digest of the top manifest or index.
    pub digest: String,
    /// Raw image config for the platform; empty if not wanted.
    pub config: Bytes,
    /// Who vouches for it, if that was asked and the name leads to an OCI index.
    pub chain: Option<AttestationChain>,
}

/// From an index to the statements about one of its images and what signs them.
#[derive(Debug, Clone)]
pub struct AttestationChain {
    /// The index.
    pub root: Digest,
    /// The image's manifest; its body is not among the blobs.
    pub image: Digest,
    /// The manifest of statements about it.
    pub attestation: Option<Digest>,
    /// Manifests that sign the statements.
    pub signatures: Vec<Digest>,
    /// Bodies of the others, checked against their digests.
    pub blobs: Vec<(Descriptor, Bytes)>,
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
    /// `Last-Modified`.
    pub last_modified: Option<SystemTime>,
    /// The further checksum, with the suffix it was made with, if asked for.
    pub checksum_response: Option<(String, Bytes)>,
}

/// A kind of source.
#[async_trait::async_trait]
pub trait Source: Send + Sync {
    /// The schemes it serves, without `://`.
    fn schemes(&self) -> &'static [&'static str];

    /// Checks identifier and attributes. Cheap: the network is asked by [`Instance::cache_key`].
    async fn resolve(&self, request: SourceRequest) -> Result<Box<dyn Instance>, SourceError>;

    /// What the source leads to now.
    async fn metadata(&self, request: MetaRequest) -> Result<Meta, SourceError>;
}

/// One resolved source op.
#[async_trait::async_trait]
pub trait Instance: Send {
    /// Key number `step`: the text that is hashed behind `buildkit.source.v0:` (cache key notes
    /// §4.1–4.3). Asked in order, the next only if the one before found no result.
    async fn cache_key(&mut self, step: usize, progress: &Progress)
    -> Result<KeyStep, SourceError>;

    /// Makes the tree, lazily where that is possible; `None` is an empty one. The key was asked
    /// for before.
    async fn snapshot(&mut self, progress: &Progress) -> Result<Option<Ref>, SourceError>;

    /// Makes a cached result of this op usable whose layers are not here: says where they can be
    /// fetched.
    async fn attach(&mut self, reference: &Ref) -> Result<(), SourceError> {
        let _ = reference;
        Ok(())
    }
}

/// One of the keys of a source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyStep {
    /// The text to hash.
    pub key: String,
    /// Whether there is no further one.
    pub last: bool,
}

impl KeyStep {
    /// The only key.
    pub fn only(key: impl Into<String>) -> Self {
        Self { key: key.into(), last: true }
    }
}

/// What one build resolved, so that a name means the same everywhere in it.
#[derive(Default)]
pub struct Memo {
    cells: Mutex<HashMap<String, Arc<dyn Any + Send + Sync>>>,
}

impl Memo {
    /// The value remembered under `key`, made on first use; whoever asks meanwhile waits. Failures
    /// are not remembered. A key always holds the same type.
    pub async fn get<T: Clone + Send + Sync + 'static, E, F: Future<Output = Result<T, E>>>(
        &self,
        key: &str,
        make: impl FnOnce() -> F,
    ) -> Result<T, E> {
        let cell: Arc<OnceCell<T>> = {
            let mut cells = self.cells.lock().expect("no panic while holding the memo");
            let cell = cells
                .entry(format!("{key}\0{}", std::any::type_name::<T>()))
                .or_insert_with(|| Arc::new(OnceCell::<T>::new()));
            cell.clone().downcast().expect("the type's name is part of the key")
        };
        cell.get_or_try_init(make).await.cloned()
    }

    /// Forgets all, and lets go of the content that was kept for it.
    pub fn clear(&self) {
        self.cells.lock().expect("no panic while holding the memo").clear();
    }
}

/// All sources, by scheme.
#[derive(Clone)]
pub struct Sources {
    by_scheme: Arc<BTreeMap<&'static str, Arc<dyn Source>>>,
    providers: Arc<Providers>,
    registries: Option<Registries>,
}

impl Sources {
    /// A list of sources that share a pool of blob providers.
    pub fn new(
        sources: impl IntoIterator<Item = Arc<dyn Source>>,
        providers: Arc<Providers>,
    ) -> Self {
        let mut by_scheme = BTreeMap::new();
        for source in sources {
            for scheme in source.schemes() {
                by_scheme.insert(*scheme, source.clone());
            }
        }
        Self { by_scheme: Arc::new(by_scheme), providers, registries: None }
    }

    /// Where blobs of images that were resolved can be fetched.
    pub fn providers(&self) -> Arc<Providers> {
        self.providers.clone()
    }

    /// Registries with the credentials of sessions, for layers whose finder is gone.
    pub fn with_registries(mut self, registries: Registries) -> Self {
        self.registries = Some(registries);
        self
    }

    /// The repositories that blobs came from, asked in the name of `group`.
    pub fn origins(&self, group: Group) -> Option<Arc<dyn oci::Provider>> {
        let registries = self.registries.clone()?;
        Some(Arc::new(Origins::new(registries, group)))
    }

    /// Resolves a source op.
    pub async fn resolve(&self, request: SourceRequest) -> Result<Box<dyn Instance>, SourceError> {
        self.find(&request.op.identifier)?.resolve(request).await
    }

    /// What a source leads to now; nothing for sources without metadata.
    pub async fn metadata(&self, request: MetaRequest) -> Result<Meta, SourceError> {
        self.find(&request.source.op.identifier)?.metadata(request).await
    }

    fn find(&self, identifier: &str) -> Result<&Arc<dyn Source>, SourceError> {
        let (scheme, _) = identifier
            .split_once("://")
            .ok_or_else(|| SourceError::BadIdentifier(identifier.to_owned()))?;
        self.by_scheme.get(scheme).ok_or_else(|| SourceError::UnknownScheme(scheme.to_owned()))
    }
}
