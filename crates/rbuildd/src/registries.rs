//! Registries as this daemon reaches them, for `login` and `imagetools`.

use std::{collections::BTreeSet, sync::Arc};

use async_trait::async_trait;
use base::Digest;
use bytes::Bytes;
use engine::Engine;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use oci::{
    BlobStream, Descriptor, Index, Manifest, Provider, Reference, Registry, content, media,
    registry::{Client, Pushed, RepositoryProvider},
    types::{MAX_CONFIG, MAX_MANIFEST},
};
use proto::rbuild::v1::{self as wire, registries_server::Registries as RegistriesService};
use tonic::{Request, Response, Status};

use crate::idle::Idle;

/// How content stores of the client are named beside repositories.
const LAYOUT: &str = "oci-layout://";
/// Blobs copied at once.
const COPIES: usize = 8;
/// Manifests of one copy.
const MAX_MANIFESTS: usize = 10_000;

/// Serves registries with the logins of a client's session.
#[derive(Clone)]
pub struct Registries {
    pub engine: Arc<Engine>,
    pub idle: Arc<Idle>,
    pub client: Client,
}

fn wrong(error: oci::Error) -> Status {
    match &error {
        oci::Error::NotFound { .. } => Status::not_found(error.to_string()),
        oci::Error::Unauthorized { .. } => Status::permission_denied(error.to_string()),
        oci::Error::Reference(_) => Status::invalid_argument(error.to_string()),
        _ => Status::unknown(error.to_string()),
    }
}

fn parse(text: &str) -> Result<Reference, Status> {
    Reference::parse(text).map_err(|error| Status::invalid_argument(error.to_string()))
}

impl Registries {
    fn group(&self, session: &str) -> session::Group {
        let ids: Vec<String> =
            Some(session.to_owned()).filter(|id| !id.is_empty()).into_iter().collect();
        self.engine.sessions().group(ids)
    }

    fn remote(&self, session: &str) -> oci::registry::Remote {
        let credentials = Arc::new(source::SessionCredentials::new(self.group(session)));
        self.client.session(credentials, false)
    }

    fn registry(&self, session: &str) -> Arc<dyn Registry> {
        Arc::new(self.remote(session))
    }
}

/// Where a copy comes from.
struct From {
    blobs: Box<dyn Provider>,
    registry: Option<(Arc<dyn Registry>, Reference)>,
}

impl From {
    async fn manifest(&self, descriptor: &Descriptor) -> oci::Result<Bytes> {
        match &self.registry {
            Some((registry, repository)) => registry.manifest(repository, descriptor).await,
            None => content::read_all(&*self.blobs, descriptor, MAX_MANIFEST).await,
        }
    }
}

/// Where a copy goes.
enum To {
    Registry {
        registry: Arc<dyn Registry>,
        repository: Reference,
        mounts: Vec<Reference>,
    },
    /// A content store of the client.
    Layout(session::RemoteContent),
}

impl To {
    async fn blob(&self, blob: &Descriptor, from: &dyn Provider) -> oci::Result<Pushed> {
        match self {
            Self::Registry { registry, repository, mounts } => {
                registry.push_blob(repository, blob, from, mounts).await
            }
            Self::Layout(content) => store(content, blob, from.open(blob, 0).await?).await,
        }
    }

    async fn manifest(&self, manifest: &Descriptor, body: Bytes) -> oci::Result<()> {
        match self {
            Self::Registry { registry, repository, .. } => {
                registry.push_manifest(repository, manifest, body).await
            }
            Self::Layout(content) => {
                let body = stream::iter([Ok(body)]).boxed();
                store(content, manifest, body).await.map(drop)
            }
        }
    }
}

async fn store(
    content: &session::RemoteContent,
    blob: &Descriptor,
    data: BlobStream,
) -> oci::Result<Pushed> {
    match content.write(&blob.digest, blob.size, Default::default(), data).await {
        Ok(session::WriteOutcome::AlreadyExists) => Ok(Pushed::Exists),
        Ok(_) => Ok(Pushed::Uploaded),
        Err(error) => {
            let what = format!("send blob {} to the client", blob.digest);
            Err(oci::Error::Io { what, source: std::io::Error::other(error) })
        }
    }
}

#[async_trait]
impl RegistriesService for Registries {
    async fn login(
        &self,
        request: Request<wire::LoginRequest>,
    ) -> Result<Response<wire::LoginResponse>, Status> {
        let _busy = self.idle.busy();
        let request = request.into_inner();
        let domain = match request.registry.as_str() {
            "" => "docker.io",
            registry => registry,
        };
        let reference = Reference::parse_complete(&format!("{domain}/login/check"))
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let host = self.remote(&request.session).check_login(&reference).await;
        let host = host.map_err(|error| match error {
            oci::Error::Unauthorized { message, .. } => Status::unauthenticated(format!(
                "login attempt to {domain} failed: unauthorized: incorrect username or password \
                 ({message})"
            )),
            oci::Error::NotFound { .. } => {
                Status::unknown(format!("login attempt to {domain} failed: it is no registry"))
            }
            other => wrong(other),
        })?;
        Ok(Response::new(wire::LoginResponse { host }))
    }

    async fn fetch(
        &self,
        request: Request<wire::FetchRequest>,
    ) -> Result<Response<wire::FetchResponse>, Status> {
        let _busy = self.idle.busy();
        let request = request.into_inner();
        let reference = parse(&request.reference)?.with_default_tag();
        let registry = self.registry(&request.session);
        if request.blob {
            let digest = reference
                .digest()
                .ok_or_else(|| Status::invalid_argument("a blob is asked for by its digest"))?;
            let provider = RepositoryProvider::new(registry, reference.clone());
            let body = read_unsized(&provider, digest).await.map_err(wrong)?;
            let (media_type, digest) = (String::new(), digest.to_string());
            return Ok(Response::new(wire::FetchResponse { media_type, digest, body }));
        }
        let descriptor = registry.resolve(&reference).await.map_err(wrong)?;
        let body = registry.manifest(&reference, &descriptor).await.map_err(wrong)?;
        let media_type = media::detect_manifest(&body).unwrap_or(descriptor.media_type);
        let digest = descriptor.digest.to_string();
        Ok(Response::new(wire::FetchResponse { media_type, digest, body }))
    }

    async fn referrers(
        &self,
        request: Request<wire::ReferrersRequest>,
    ) -> Result<Response<wire::ReferrersResponse>, Status> {
        let _busy = self.idle.busy();
        let request = request.into_inner();
        let repository = parse(&request.repository)?;
        let digest: Digest = request
            .digest
            .parse()
            .map_err(|error: base::ParseDigestError| Status::invalid_argument(error.to_string()))?;
        let kind = Some(request.artifact_type.as_str()).filter(|kind| !kind.is_empty());
        let found = self.registry(&request.session).referrers(&repository, digest, kind).await;
        let found = found.map_err(wrong)?;
        let descriptors =
            found.iter().map(|descriptor| base::gojson::to_vec(descriptor).into()).collect();
        Ok(Response::new(wire::ReferrersResponse { descriptors }))
    }

    async fn copy(
        &self,
        request: Request<wire::CopyRequest>,
    ) -> Result<Response<wire::CopyResponse>, Status> {
        let _busy = self.idle.work();
        let request = request.into_inner();
        let root: Descriptor = serde_json::from_slice(&request.descriptor)
            .map_err(|error| Status::invalid_argument(format!("descriptor: {error}")))?;
        let registry = self.registry(&request.session);
        let mut to = match request.target.strip_prefix(LAYOUT) {
            Some(name) => {
                let session = self.engine.sessions().get(&request.session).await;
                let session =
                    session.map_err(|error| Status::failed_precondition(error.to_string()))?;
                To::Layout(session.content(format!("oci:{name}")))
            }
            None => To::Registry {
                registry: registry.clone(),
                repository: parse(&request.target)?.without_tag_and_digest(),
                mounts: Vec::new(),
            },
        };
        let from = match request.source.strip_prefix(LAYOUT) {
            Some(name) => {
                let group = self.group(&request.session);
                let store = format!("oci:{name}");
                let blobs = source::LayoutProvider { group, session: String::new(), store };
                From { blobs: Box::new(blobs), registry: None }
            }
            None => {
                let source = parse(&request.source)?.without_tag_and_digest();
                if let To::Registry { repository, mounts, .. } = &mut to {
                    if source == *repository {
                        return Ok(Response::new(wire::CopyResponse::default()));
                    }
                    if source.domain() == repository.domain() {
                        mounts.push(source.clone());
                    }
                }
                let blobs = RepositoryProvider::new(registry.clone(), source.clone());
                From { blobs: Box::new(blobs), registry: Some((registry.clone(), source)) }
            }
        };
        let copied = copy(&from, &to, root).await;
        copied.map(Response::new).map_err(wrong)
    }

    async fn put_manifest(
        &self,
        request: Request<wire::PutManifestRequest>,
    ) -> Result<Response<wire::PutManifestResponse>, Status> {
        let _busy = self.idle.work();
        let request = request.into_inner();
        let reference = parse(&request.reference)?;
        let descriptor = Descriptor::of(request.media_type, &request.body);
        let digest = descriptor.digest.to_string();
        let registry = self.registry(&request.session);
        registry.push_manifest(&reference, &descriptor, request.body).await.map_err(wrong)?;
        Ok(Response::new(wire::PutManifestResponse { digest }))
    }
}

/// Copies everything below `root` and the manifests that are not `root` itself, children first.
async fn copy(from: &From, to: &To, root: Descriptor) -> oci::Result<wire::CopyResponse> {
    let mut waiting = vec![root];
    let mut manifests = Vec::new();
    let (mut blobs, mut seen) = (Vec::new(), BTreeSet::new());
    while let Some(descriptor) = waiting.pop() {
        if !seen.insert(descriptor.digest) || seen.len() > MAX_MANIFESTS {
            continue;
        }
        let body = from.manifest(&descriptor).await?;
        let what = format!("manifest {}", descriptor.digest);
        let kind = media::detect_manifest(&body).unwrap_or(descriptor.media_type.clone());
        if media::is_index(&kind) {
            waiting.extend(Index::parse(&what, &body)?.manifests);
        } else {
            let manifest = Manifest::parse(&what, &body)?;
            let parts = manifest.layers.into_iter().chain([manifest.config]);
            blobs.extend(parts.filter(|blob| blob.urls.is_empty() && seen.insert(blob.digest)));
        }
        manifests.push((Descriptor::of(kind, &body), body));
    }
    let pushes: Vec<_> = blobs.iter().map(|blob| to.blob(blob, &*from.blobs)).collect();
    let pushed: Vec<Pushed> = stream::iter(pushes).buffer_unordered(COPIES).try_collect().await?;
    let mut response = wire::CopyResponse::default();
    for one in pushed {
        match one {
            Pushed::Exists => response.existed += 1,
            Pushed::Mounted(_) => response.mounted += 1,
            Pushed::Uploaded => response.uploaded += 1,
        }
    }
    for (descriptor, body) in manifests.into_iter().rev() {
        to.manifest(&descriptor, body).await?;
    }
    Ok(response)
}

/// Reads a small blob whose size nobody told.
async fn read_unsized(from: &dyn Provider, digest: Digest) -> oci::Result<Bytes> {
    let what = format!("blob {digest}");
    let mut stream = from.open(&Descriptor::new("", digest, 0), 0).await?;
    let mut body = bytes::BytesMut::new();
    while let Some(piece) = stream.next().await {
        let piece = piece.map_err(|source| oci::Error::Io { what: what.clone(), source })?;
        body.extend_from_slice(&piece);
        if body.len() as u64 > MAX_CONFIG {
            let reason = format!("larger than {MAX_CONFIG} bytes");
            return Err(oci::Error::Invalid { what, reason });
        }
    }
    let actual = Digest::of(&body);
    if actual != digest {
        let (expected, actual) = (digest.to_string(), actual.to_string());
        return Err(oci::Error::Corrupt { what, expected, actual });
    }
    Ok(body.freeze())
}
