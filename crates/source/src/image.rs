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

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use base::{Digest, Platform, gojson};
use bytes::Bytes;
use oci::{
    BlobStream, Descriptor, ImageConfig, Index, Manifest, Provider, Reference, Registry, content,
    media,
    registry::{Client, RepositoryProvider},
    select, types,
};
use serde::Serialize;
use session::Group;
use store::{Blob, BlobInfo, ImageLayer, ImageLayers, RecordKind, Ref, Store};

use crate::{
    ImageMeta, Instance, KeyStep, Meta, MetaRequest, Progress, Providers, Source, SourceError,
    SourceRequest, Status, blob::BlobInstance, credentials::SessionCredentials,
};

/// How long a registry may take to resolve a name that the image store knows as well.
const PATIENCE_WITH_LOCAL: Duration = Duration::from_secs(10);
/// Annotations of layers that mean something wherever the layer goes. Others are the business of
/// the manifest they came in.
const KEPT_ANNOTATIONS: [&str; 2] =
    ["containerd.io/snapshot/stargz/toc.digest", "io.containers.estargz.uncompressed-size"];
/// Indexes inside indexes that are followed.
const MAX_DEPTH: usize = 4;

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
        let registries = Arc::new(move |group: &Group| {
            let credentials = Arc::new(SessionCredentials::new(group.clone()));
            Arc::new(client.session(credentials, false)) as Arc<dyn Registry>
        });
        Self::with_registries(store, registries, providers)
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
        if request.no_config {
            let root = self.root(&request.source, &reference(&request.source)?, mode).await?;
            return Ok(image_meta(root.descriptor.digest, Bytes::new()));
        }
        if is_blob(&request.source) {
            return Ok(Meta::default());
        }
        let resolved = self.image(&request.source, mode).await?;
        Ok(image_meta(resolved.root.digest, resolved.config.clone()))
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
    Meta { image: Some(ImageMeta { digest: digest.to_string(), config }), ..Meta::default() }
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

/// An image for one platform: everything but its layers.
struct Resolved {
    /// For people: the name or layout.
    name: String,
    /// What the name leads to.
    root: Descriptor,
    platform: Platform,
    config: Bytes,
    layers: Vec<ImageLayer>,
    provider: Arc<dyn Provider>,
    /// Manifests and config, kept while the build may need them.
    holds: Vec<Blob>,
}

impl Resolved {
    fn leave(&self, providers: &Providers) {
        providers.add(self.layers.iter().map(|layer| layer.descriptor.digest), &self.provider);
    }

    /// The key of step 0.
    fn manifest_key(&self, limit: Option<usize>) -> Digest {
        #[derive(Serialize)]
        #[serde(rename_all = "PascalCase")]
        struct Key<'a> {
            digest: Digest,
            #[serde(rename = "OS")]
            os: &'a str,
            arch: &'a str,
            #[serde(skip_serializing_if = "str::is_empty")]
            variant: &'a str,
            #[serde(rename = "OSVersion", skip_serializing_if = "str::is_empty")]
            os_version: &'a str,
            #[serde(rename = "OSFeatures", skip_serializing_if = "<[_]>::is_empty")]
            os_features: &'a [String],
            #[serde(skip_serializing_if = "Option::is_none")]
            limit: Option<usize>,
        }
        Digest::of(gojson::to_vec(&Key {
            digest: self.root.digest,
            os: &self.platform.os,
            arch: &self.platform.architecture,
            variant: &self.platform.variant,
            os_version: &self.platform.os_version,
            os_features: &self.platform.os_features,
            limit,
        }))
    }

    /// The key of step 1: by content, whatever the compression.
    fn config_key(&self, limit: Option<usize>) -> Digest {
        let Ok(config) = ImageConfig::parse("image config", &self.config) else {
            return Digest::of(&self.config);
        };
        let diff_ids = &config.rootfs.diff_ids;
        let diff_ids = &diff_ids[..limit.unwrap_or(diff_ids.len()).min(diff_ids.len())];
        let chain =
            diff_ids.iter().copied().reduce(|chain, id| Digest::of(format!("{chain} {id}")));
        match chain {
            Some(chain) if config.rootfs.kind == "layers" => chain,
            _ => self.manifest_key(limit),
        }
    }
}

/// Reads manifests and config through the content store.
struct Reader<'a> {
    store: &'a Store,
    provider: Arc<dyn Provider>,
    /// Repository to remember the documents' origin by.
    source: Option<&'a Reference>,
}

impl Reader<'_> {
    async fn read(
        self,
        name: &str,
        root: Descriptor,
        platform: &Platform,
    ) -> Result<Resolved, SourceError> {
        let mut holds = Vec::new();
        let mut manifest_descriptor = root.clone();
        let mut path = Vec::new();
        let mut manifest = None;
        for _ in 0..MAX_DEPTH {
            let descriptor = &manifest_descriptor;
            let what = format!("manifest {} of {name}", descriptor.digest);
            if descriptor
                .media_type
                .starts_with(media::DOCKER_MANIFEST_V1.trim_end_matches("+json"))
            {
                return Err(SourceError::Remote(format!(
                    "{name} has a schema 1 manifest, which is no longer supported: push the image \
                     again with a newer docker"
                )));
            }
            let body = self.document(descriptor, types::MAX_MANIFEST).await?;
            let is_index = match media::detect_manifest(&body) {
                Some(kind) => media::is_index(&kind),
                None => media::is_index(&descriptor.media_type),
            };
            if !is_index {
                manifest = Some((Manifest::parse(&what, &body)?, body));
                break;
            }
            let index = Index::parse(&what, &body)?;
            let next = select::best(name, &index, platform)?.clone();
            path.push((manifest_descriptor, body));
            manifest_descriptor = next;
        }
        let Some((manifest, body)) = manifest else {
            return Err(SourceError::Remote(format!("indexes of {name} are nested too deeply")));
        };
        let config_descriptor = &manifest.config;
        let config = self.document(config_descriptor, types::MAX_CONFIG).await?;
        holds.push(self.keep(config_descriptor, &config, [])?);
        let layers = layers(name, &manifest, &config, self.source)?;
        let children = manifest.layers.iter().map(|layer| layer.digest);
        holds.push(self.keep(
            &manifest_descriptor,
            &body,
            children.chain([config_descriptor.digest]),
        )?);
        let mut child = manifest_descriptor.digest;
        for (descriptor, body) in path.into_iter().rev() {
            // Only the chosen image is named: the others are not here.
            holds.push(self.keep(&descriptor, &body, [child])?);
            child = descriptor.digest;
        }
        Ok(Resolved {
            name: name.to_owned(),
            root,
            platform: platform.clone(),
            config,
            layers,
            provider: self.provider,
            holds,
        })
    }

    async fn document(&self, descriptor: &Descriptor, limit: u64) -> Result<Bytes, SourceError> {
        if let Ok(body) = self.store.content().read(&descriptor.digest, limit) {
            return Ok(body);
        }
        Ok(content::read_all(&*self.provider, descriptor, limit).await?)
    }

    fn keep(
        &self,
        descriptor: &Descriptor,
        body: &[u8],
        children: impl IntoIterator<Item = Digest>,
    ) -> Result<Blob, SourceError> {
        let mut info = BlobInfo::of_type(&descriptor.media_type).referencing(children);
        if let Some(source) = self.source {
            let key = format!("{}{}", types::ANNOTATION_DISTRIBUTION_SOURCE, source.domain());
            let known = self.store.content().info(&descriptor.digest).unwrap_or_default().labels;
            let mut paths: Vec<_> = known
                .get(&key)
                .map(|all| all.split(',').map(str::to_owned).collect())
                .unwrap_or_default();
            if !paths.iter().any(|path| path == source.path()) {
                paths.push(source.path().to_owned());
            }
            info.labels.insert(key, paths.join(","));
        }
        Ok(self.store.content().put(body, info)?)
    }
}

/// The layers of a manifest with the diff ids of its config. `source` is remembered with them, so
/// that a push to the same registry can mount instead of sending.
fn layers(
    name: &str,
    manifest: &Manifest,
    config: &[u8],
    source: Option<&Reference>,
) -> Result<Vec<ImageLayer>, SourceError> {
    // Files are layers; an artifact's other blobs are not part of the tree.
    let blobs: Vec<_> = manifest.layers.iter().filter(|l| media::is_layer(&l.media_type)).collect();
    if blobs.is_empty() {
        return Ok(Vec::new());
    }
    let parsed = ImageConfig::parse(&format!("config of {name}"), config)?;
    let diff_ids = parsed.rootfs.diff_ids;
    if blobs.len() != diff_ids.len() {
        return Err(SourceError::Remote(format!(
            "{name} is inconsistent: the manifest has {} layers, the config {}",
            blobs.len(),
            diff_ids.len()
        )));
    }
    let layer = |(blob, diff_id): (&Descriptor, Digest)| {
        let mut descriptor = blob.clone();
        descriptor.annotations.retain(|key, _| KEPT_ANNOTATIONS.contains(&key.as_str()));
        descriptor = descriptor.annotate(types::ANNOTATION_UNCOMPRESSED, diff_id.to_string());
        if let Some(source) = source {
            let key = format!("{}{}", types::ANNOTATION_DISTRIBUTION_SOURCE, source.domain());
            descriptor = descriptor.annotate(&key, source.path());
        }
        ImageLayer { descriptor, diff_id, created_at: None, description: None }
    };
    Ok(blobs.into_iter().zip(diff_ids).map(layer).collect())
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

/// Documents and blobs of one repository.
struct ImageProvider {
    registry: Arc<dyn Registry>,
    blobs: RepositoryProvider,
    repository: Reference,
}

#[async_trait]
impl Provider for ImageProvider {
    async fn open(&self, blob: &Descriptor, offset: u64) -> oci::Result<BlobStream> {
        if media::is_index(&blob.media_type) || media::is_manifest(&blob.media_type) {
            let body = self.registry.manifest(&self.repository, blob).await?;
            let offset = usize::try_from(offset).unwrap_or(usize::MAX).min(body.len());
            return Ok(content::once(body.slice(offset..)));
        }
        self.blobs.open(blob, offset).await
    }

    fn describe(&self) -> String {
        self.blobs.describe()
    }
}

/// Blobs of the content store; what is missing (lazy layers) from elsewhere.
struct StoreProvider {
    store: Arc<Store>,
    otherwise: Arc<dyn Provider>,
}

#[async_trait]
impl Provider for StoreProvider {
    async fn open(&self, blob: &Descriptor, offset: u64) -> oci::Result<BlobStream> {
        use tokio::io::AsyncSeekExt as _;
        let Ok(mut reader) = self.store.content().reader(&blob.digest) else {
            return self.otherwise.open(blob, offset).await;
        };
        let sought = reader.seek(std::io::SeekFrom::Start(offset)).await;
        let what = || format!("read blob {} of the image store", blob.digest);
        sought.map_err(|source| oci::Error::Io { what: what(), source })?;
        Ok(content::from_reader(reader))
    }

    fn describe(&self) -> String {
        "the image store".into()
    }
}

/// Blobs of a layout at the client.
struct LayoutProvider {
    group: Group,
    /// The session that has it; empty: any of the build's.
    session: String,
    store: String,
}

impl LayoutProvider {
    fn of(request: &SourceRequest) -> Self {
        Self {
            group: request.group.clone(),
            session: request.attr("oci.session").to_owned(),
            store: format!("oci:{}", request.attr("oci.store")),
        }
    }

    async fn read(&self, digest: Digest, offset: u64) -> Result<BlobStream, session::SessionError> {
        use futures_util::StreamExt as _;
        let open = |session: session::Session| async move {
            let stream = session.content(&self.store).read(&digest, offset, None).await?;
            Ok::<BlobStream, session::SessionError>(
                stream.map(|piece| piece.map_err(std::io::Error::other)).boxed(),
            )
        };
        match self.session.as_str() {
            "" => self.group.any(open).await,
            id => open(self.group.sessions().get(id).await?).await,
        }
    }
}

#[async_trait]
impl Provider for LayoutProvider {
    async fn open(&self, blob: &Descriptor, offset: u64) -> oci::Result<BlobStream> {
        self.read(blob.digest, offset).await.map_err(|error| oci::Error::Io {
            what: format!("read blob {} of {}", blob.digest, self.store),
            source: std::io::Error::other(error),
        })
    }

    fn describe(&self) -> String {
        format!("the client's layout {}", self.store)
    }
}
