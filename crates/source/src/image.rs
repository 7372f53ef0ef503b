//! `docker-image://` and `oci-layout://`: images become chains of lazy layers.
//!
//! A name is resolved once per build to a digest, at a registry, in the image store or in one of
//! the client's layouts; manifest and config are fetched, layers are not. Whatever the way, an
//! image with the same digest and platform has the same key.
//!
//! | key step | of | in | not in |
//! |---|---|---|---|
//! | 0 | digest the name led to, platform, layer limit | all three | name, resolve mode, session |
//! | 1 | chain of the config's diff ids, cut to the limit | | manifest, compression |

mod chain;
mod providers;
mod read;

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use base::{Digest, Platform};
use bytes::Bytes;
use oci::{
    Descriptor, Provider, Reference, Registry, media,
    registry::{Client, RepositoryProvider},
    types,
};
use session::Group;
use store::{Blob, ImageLayers, RecordKind, Ref, Store};

pub use self::providers::LayoutProvider;
use self::{
    providers::{ImageProvider, StoreProvider},
    read::{Reader, Resolved},
};
use crate::{
    ImageMeta, Instance, KeyStep, Meta, MetaRequest, Progress, Providers, Source, SourceError,
    SourceRequest, Status, blob::BlobInstance, credentials::SessionCredentials,
};

/// How long a registry may take to resolve a name that the image store knows as well.
const PATIENCE_WITH_LOCAL: Duration = Duration::from_secs(10);

/// Where to look for a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// The registry; if that fails, the image store.
    Default,
    /// The registry only.
    Pull,
    /// The image store; if it has no such name, the registry.
    Local,
}

impl Mode {
    fn parse(text: &str) -> Result<Self, SourceError> {
        match text {
            "" | "default" => Ok(Self::Default),
            "pull" => Ok(Self::Pull),
            "local" => Ok(Self::Local),
            other => Err(SourceError::Attribute(format!("invalid resolvemode: {other}"))),
        }
    }
}

/// Gives the registries as the sessions of a build may use them.
pub type Registries = Arc<dyn Fn(&Group) -> Arc<dyn Registry> + Send + Sync>;

/// The registries of `client` with the credentials that each build's sessions give.
pub fn session_registries(client: Client) -> Registries {
    Arc::new(move |group: &Group| {
        let credentials = Arc::new(SessionCredentials::new(group.clone()));
        Arc::new(client.session(credentials, false)) as Arc<dyn Registry>
    })
}

/// Images by name.
#[derive(Clone)]
pub struct Images {
    store: Arc<Store>,
    registries: Registries,
    providers: Arc<Providers>,
}

/// Images in folders of the client.
#[derive(Clone)]
pub struct Layouts {
    store: Arc<Store>,
    providers: Arc<Providers>,
}

impl Images {
    /// Images of these registries and of the store. What is resolved is added to `providers`.
    pub fn new(store: Arc<Store>, client: Client, providers: Arc<Providers>) -> Self {
        Self::with_registries(store, session_registries(client), providers)
    }

    /// As [`Images::new`], with registries of any kind.
    pub fn with_registries(
        store: Arc<Store>,
        registries: Registries,
        providers: Arc<Providers>,
    ) -> Self {
        Self { store, registries, providers }
    }

    /// Resolves a name for a platform, or takes what this build resolved it to before.
    async fn image(
        &self,
        request: &SourceRequest,
        mode: Mode,
    ) -> Result<Arc<Resolved>, SourceError> {
        let reference = reference(request)?;
        let platform = request.platform.normalize();
        let key = format!("image {reference} {mode:?} {}", platform.format_all());
        request.memo.get(&key, || self.fetch(request, reference.clone(), mode, &platform)).await
    }

    async fn fetch(
        &self,
        request: &SourceRequest,
        reference: Reference,
        mode: Mode,
        platform: &Platform,
    ) -> Result<Arc<Resolved>, SourceError> {
        let root = self.root(request, &reference, mode).await?;
        match self.read(request, &reference, root.clone(), platform).await {
            // The name is there, but its manifests cannot be had: the local image will do.
            Err(error) if mode == Mode::Default && root.origin == Origin::Registry => {
                let Some(descriptor) = self.local(&reference) else { return Err(error) };
                let root = Root { descriptor, origin: Origin::Store };
                self.read(request, &reference, root, platform).await.map_err(|_| error)
            }
            other => other,
        }
    }

    async fn read(
        &self,
        request: &SourceRequest,
        reference: &Reference,
        root: Root,
        platform: &Platform,
    ) -> Result<Arc<Resolved>, SourceError> {
        let remote: Arc<dyn Provider> = Arc::new(ImageProvider {
            registry: (self.registries)(&request.group),
            blobs: RepositoryProvider::new((self.registries)(&request.group), reference.clone()),
            repository: reference.clone(),
        });
        let provider: Arc<dyn Provider> = match root.origin {
            Origin::Registry => remote.clone(),
            Origin::Store => {
                Arc::new(StoreProvider { store: self.store.clone(), otherwise: remote })
            }
        };
        let reader = Reader { store: &self.store, provider, source: Some(reference) };
        let resolved = reader.read(&reference.to_string(), root.descriptor, platform).await?;
        resolved.leave(&self.providers);
        Ok(Arc::new(resolved))
    }

    /// What the name leads to; the same for all platforms of a build.
    async fn root(
        &self,
        request: &SourceRequest,
        reference: &Reference,
        mode: Mode,
    ) -> Result<Root, SourceError> {
        let key = format!("image root {reference} {mode:?}");
        let ask = || async {
            let id = format!("resolve {reference}");
            shown(&request.progress, id, self.find(request, reference, mode)).await
        };
        request.memo.get(&key, ask).await
    }

    async fn find(
        &self,
        request: &SourceRequest,
        reference: &Reference,
        mode: Mode,
    ) -> Result<Root, SourceError> {
        let of_store = |descriptor| Root { descriptor, origin: Origin::Store };
        let local = (mode != Mode::Pull).then(|| self.local(reference)).flatten();
        if mode == Mode::Local
            && let Some(descriptor) = local
        {
            return Ok(of_store(descriptor));
        }
        if let Some(descriptor) = self.known(reference) {
            return Ok(Root { descriptor, origin: Origin::Registry });
        }
        let registry = (self.registries)(&request.group);
        let asking = registry.resolve(reference);
        let Some(local) = local else {
            let descriptor = asking.await?;
            return Ok(Root { descriptor, origin: Origin::Registry });
        };
        match tokio::time::timeout(PATIENCE_WITH_LOCAL, asking).await {
            Ok(Ok(descriptor)) => Ok(Root { descriptor, origin: Origin::Registry }),
            Ok(Err(error)) => {
                tracing::debug!(%reference, %error, "using the image of that name in the store");
                Ok(of_store(local))
            }
            Err(_) => {
                tracing::debug!(%reference, "registry is slow, using the image in the store");
                Ok(of_store(local))
            }
        }
    }

    /// The image of that name in the store, if its manifest is whole.
    fn local(&self, reference: &Reference) -> Option<Descriptor> {
        let images = self.store.images();
        let name = |reference: &Reference| {
            images.get(&reference.to_string()).map(|image| image.descriptor)
        };
        let found = name(reference).or_else(|| {
            // `name:tag@digest` and `name@digest` are also found under the tag, if it agrees.
            let digest = reference.digest()?;
            let tag = reference.tag().unwrap_or("latest");
            let found = name(&reference.with_tag(tag).ok()?)?;
            (found.digest == digest).then_some(found)
        })?;
        self.store.content().contains(&found.digest).then_some(found)
    }

    /// A pinned manifest that was fetched from this repository before: no need to ask again.
    fn known(&self, reference: &Reference) -> Option<Descriptor> {
        let digest = reference.digest()?;
        let info = self.store.content().info(&digest)?;
        let key = format!("{}{}", types::ANNOTATION_DISTRIBUTION_SOURCE, reference.domain());
        let from = info.labels.get(&key)?;
        let here = from.split(',').any(|path| path == reference.path());
        let size = self.store.content().size(&digest)?;
        here.then(|| Descriptor::new(info.media_type, digest, size))
    }
}

#[async_trait]
impl Source for Images {
    fn schemes(&self) -> &'static [&'static str] {
        &["docker-image", "docker-image+blob"]
    }

    async fn resolve(&self, request: SourceRequest) -> Result<Box<dyn Instance>, SourceError> {
        let mode = Mode::parse(request.attr("image.resolvemode"))?;
        reference(&request)?;
        if is_blob(&request) {
            let reference = reference(&request)?;
            let Some(digest) = reference.digest() else {
                return Err(needs_digest(request.rest()));
            };
            let registry = (self.registries)(&request.group);
            let provider = Arc::new(RepositoryProvider::new(registry, reference));
            let instance = BlobInstance::new(self.store.clone(), &request, digest, provider)?;
            return Ok(Box::new(instance));
        }
        let kind = kind_of_record(&request)?;
        let checksum = match request.attr("image.checksum") {
            "" => None,
            text => Some(text.parse().map_err(|error| {
                SourceError::Attribute(format!("invalid image checksum: {error}"))
            })?),
        };
        let wanted = Wanted { limit: limit(&request, "image.layerlimit")?, checksum, kind };
        let this = self.clone();
        Ok(Box::new(ImageInstance {
            store: self.store.clone(),
            wanted,
            resolve: Box::new(move |progress| {
                let request = SourceRequest { progress, ..request.clone() };
                let this = this.clone();
                Box::pin(async move { this.image(&request, mode).await })
            }),
            resolved: None,
        }))
    }

    async fn metadata(&self, request: MetaRequest) -> Result<Meta, SourceError> {
        let mode = match request.resolve_mode.as_str() {
            "" => request.source.attr("image.resolvemode"),
            given => given,
        };
        let mode = Mode::parse(mode)?;
        let mut meta = if request.no_config {
            let root = self.root(&request.source, &reference(&request.source)?, mode).await?;
            image_meta(root.descriptor.digest, Bytes::new())
        } else {
            if is_blob(&request.source) {
                return Ok(Meta::default());
            }
            let resolved = self.image(&request.source, mode).await?;
            image_meta(resolved.root.digest, resolved.config.clone())
        };
        if let (Some(types), Some(image)) = (&request.attestations, &mut meta.image) {
            image.chain = self.chain(&request.source, mode, types).await?;
        }
        Ok(meta)
    }
}

impl Layouts {
    /// Layouts that clients offer. What is resolved is added to `providers`.
    pub fn new(store: Arc<Store>, providers: Arc<Providers>) -> Self {
        Self { store, providers }
    }

    async fn image(&self, request: &SourceRequest) -> Result<Arc<Resolved>, SourceError> {
        let (name, digest) = layout_reference(request)?;
        let platform = request.platform.normalize();
        let (session, store) = (request.attr("oci.session"), request.attr("oci.store"));
        let key = format!("layout {session} {store} {digest} {}", platform.format_all());
        request.memo.get(&key, || self.fetch(request, name.clone(), digest, &platform)).await
    }

    async fn fetch(
        &self,
        request: &SourceRequest,
        name: String,
        digest: Digest,
        platform: &Platform,
    ) -> Result<Arc<Resolved>, SourceError> {
        let provider: Arc<dyn Provider> = Arc::new(LayoutProvider::of(request));
        let work = async {
            let root = self.root(&*provider, &name, digest).await?;
            let reader = Reader { store: &self.store, provider: provider.clone(), source: None };
            reader.read(&name, root, platform).await
        };
        let resolved = shown(&request.progress, format!("resolve {name}"), work).await?;
        resolved.leave(&self.providers);
        Ok(Arc::new(resolved))
    }

    /// Describes the root object, whose size and type only its bytes tell.
    async fn root(
        &self,
        from: &dyn Provider,
        name: &str,
        digest: Digest,
    ) -> Result<Descriptor, SourceError> {
        let body = match self.store.content().read(&digest, types::MAX_MANIFEST) {
            Ok(body) => body,
            Err(_) => {
                use futures_util::StreamExt as _;
                let unknown = Descriptor::new("", digest, 0);
                let mut stream = from.open(&unknown, 0).await?;
                let mut body = bytes::BytesMut::new();
                while let Some(piece) = stream.next().await {
                    let piece =
                        piece.map_err(|error| SourceError::io(format!("read {name}"), error))?;
                    body.extend_from_slice(&piece);
                    if body.len() as u64 > types::MAX_MANIFEST {
                        let text =
                            format!("root of {name} is larger than {} bytes", types::MAX_MANIFEST);
                        return Err(SourceError::Remote(text));
                    }
                }
                let actual = Digest::of(&body);
                if actual != digest {
                    return Err(SourceError::Remote(format!("{name} arrived as {actual}")));
                }
                body.freeze()
            }
        };
        let media_type = media::detect_manifest(&body).ok_or_else(|| {
            SourceError::Remote(format!(
                "reference \"{name}\" contains neither an index nor a manifest"
            ))
        })?;
        Ok(Descriptor::new(media_type, digest, body.len() as u64))
    }
}

#[async_trait]
impl Source for Layouts {
    fn schemes(&self) -> &'static [&'static str] {
        &["oci-layout", "oci-layout+blob"]
    }

    async fn resolve(&self, request: SourceRequest) -> Result<Box<dyn Instance>, SourceError> {
        let (_, digest) = layout_reference(&request)?;
        if is_blob(&request) {
            if request.attr("oci.store").is_empty() {
                let text = "oci-layout blob source requires store id";
                return Err(SourceError::Attribute(text.into()));
            }
            let provider = Arc::new(LayoutProvider::of(&request));
            let instance = BlobInstance::new(self.store.clone(), &request, digest, provider)?;
            return Ok(Box::new(instance));
        }
        let limit = limit(&request, "oci.layerlimit")?;
        let wanted = Wanted { limit, checksum: None, kind: RecordKind::Regular };
        let this = self.clone();
        Ok(Box::new(ImageInstance {
            store: self.store.clone(),
            wanted,
            resolve: Box::new(move |progress| {
                let request = SourceRequest { progress, ..request.clone() };
                let this = this.clone();
                Box::pin(async move { this.image(&request).await })
            }),
            resolved: None,
        }))
    }

    async fn metadata(&self, request: MetaRequest) -> Result<Meta, SourceError> {
        if is_blob(&request.source) {
            return Ok(Meta::default());
        }
        let resolved = self.image(&request.source).await?;
        let config = if request.no_config { Bytes::new() } else { resolved.config.clone() };
        Ok(image_meta(resolved.root.digest, config))
    }
}

fn image_meta(digest: Digest, config: Bytes) -> Meta {
    let image = ImageMeta { digest: digest.to_string(), config, chain: None };
    Meta { image: Some(image), ..Meta::default() }
}

/// The reference of a `docker-image` source. Identifiers of clients are complete; people's are
/// completed.
fn reference(request: &SourceRequest) -> Result<Reference, SourceError> {
    let reference = Reference::parse(request.rest());
    Ok(reference.map_err(oci::Error::from)?.with_default_tag())
}

/// Name and digest of an `oci-layout` source.
fn layout_reference(request: &SourceRequest) -> Result<(String, Digest), SourceError> {
    let name = request.rest();
    let digest = match name.rsplit_once('@') {
        Some((_, digest)) => digest
            .parse()
            .map_err(|error| SourceError::Attribute(format!("reference \"{name}\": {error}")))?,
        None => {
            return Err(needs_digest(name));
        }
    };
    Ok((name.to_owned(), digest))
}

fn needs_digest(name: &str) -> SourceError {
    SourceError::Attribute(format!("reference \"{name}\" must have digest"))
}

/// Whether a single blob is asked for rather than the image.
fn is_blob(request: &SourceRequest) -> bool {
    request.op.identifier.split_once("://").is_some_and(|(scheme, _)| scheme.ends_with("+blob"))
}

/// What the records of a source are for.
pub(crate) fn kind_of_record(request: &SourceRequest) -> Result<RecordKind, SourceError> {
    match request.attr("image.recordtype") {
        "" | "regular" => Ok(RecordKind::Regular),
        "internal" => Ok(RecordKind::Internal),
        "frontend" => Ok(RecordKind::Frontend),
        other => Err(SourceError::Attribute(format!("invalid record type {other}"))),
    }
}

fn limit(request: &SourceRequest, attr: &str) -> Result<Option<usize>, SourceError> {
    match request.attr(attr) {
        "" => Ok(None),
        text => match text.parse() {
            Ok(limit) if limit > 0 => Ok(Some(limit)),
            _ => Err(SourceError::Attribute(format!("invalid layer limit {text}"))),
        },
    }
}

/// Shows a piece of work as a part of its vertex.
pub(crate) async fn shown<T>(
    progress: &Progress,
    id: String,
    work: impl Future<Output = Result<T, SourceError>>,
) -> Result<T, SourceError> {
    let started = Some(std::time::SystemTime::now());
    progress.status(Status { id: id.clone(), started, ..Status::default() });
    let result = work.await;
    let completed = Some(std::time::SystemTime::now());
    progress.status(Status { id, started, completed, ..Status::default() });
    result
}

/// What a name leads to, and who said so.
#[derive(Debug, Clone)]
struct Root {
    descriptor: Descriptor,
    origin: Origin,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Origin {
    Registry,
    Store,
}

/// What an op asks of an image besides its name.
#[derive(Debug, Clone, Copy)]
struct Wanted {
    limit: Option<usize>,
    checksum: Option<Digest>,
    kind: RecordKind,
}

type Resolving = std::pin::Pin<Box<dyn Future<Output = Result<Arc<Resolved>, SourceError>> + Send>>;

struct ImageInstance {
    store: Arc<Store>,
    wanted: Wanted,
    resolve: Box<dyn Fn(Progress) -> Resolving + Send + Sync>,
    resolved: Option<Arc<Resolved>>,
}

impl ImageInstance {
    async fn resolved(&mut self, progress: &Progress) -> Result<Arc<Resolved>, SourceError> {
        if let Some(resolved) = &self.resolved {
            return Ok(resolved.clone());
        }
        let resolved = (self.resolve)(progress.clone()).await?;
        if let Some(expected) = self.wanted.checksum
            && expected != resolved.root.digest
        {
            return Err(SourceError::Remote(format!(
                "image digest {} for {} does not match expected checksum {expected}",
                resolved.root.digest, resolved.name
            )));
        }
        if let Some(limit) = self.wanted.limit
            && limit > resolved.layers.len()
        {
            return Err(SourceError::Attribute(format!(
                "layer limit {limit} is greater than the number of layers in the image {}",
                resolved.layers.len()
            )));
        }
        self.resolved = Some(resolved.clone());
        Ok(resolved)
    }
}

#[async_trait]
impl Instance for ImageInstance {
    async fn cache_key(
        &mut self,
        step: usize,
        progress: &Progress,
    ) -> Result<KeyStep, SourceError> {
        let limit = self.wanted.limit;
        let resolved = self.resolved(progress).await?;
        Ok(match step {
            0 => KeyStep { key: resolved.manifest_key(limit).to_string(), last: false },
            _ => KeyStep { key: resolved.config_key(limit).to_string(), last: true },
        })
    }

    async fn snapshot(&mut self, progress: &Progress) -> Result<Option<Ref>, SourceError> {
        let resolved = self.resolved(progress).await?;
        let count = self.wanted.limit.unwrap_or(resolved.layers.len());
        let image = ImageLayers {
            layers: resolved.layers[..count].to_vec(),
            provider: Some(resolved.provider.clone()),
            description: format!("pulled from {}", resolved.name),
            kind: self.wanted.kind,
            image_name: Some(resolved.name.clone()),
            keeps: resolved.holds.iter().map(Blob::digest).collect(),
        };
        Ok(self.store.image(image)?)
    }

    async fn attach(&mut self, reference: &Ref) -> Result<(), SourceError> {
        if let Some(resolved) = &self.resolved {
            reference.attach_provider(resolved.provider.clone());
        }
        Ok(())
    }
}
