//! Who vouches for an image: from its index to the statements about it and their signature.
//!
//! An index names manifests of statements beside its images; signatures refer to such a manifest and
//! are found by asking the registry. Documents are handed out as they are, for the client to judge:
//! nothing is verified here but digests.

use base::Platform;
use bytes::Bytes;
use oci::{
    Descriptor, Index, Manifest, Provider, Reference, Registry, content, media, select, types,
};

use super::{Images, Mode, Origin, providers::ImageProvider, reference};
use crate::{AttestationChain, SourceError, SourceRequest};

/// Signatures in a file of their own.
const SIGSTORE_BUNDLE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";
/// The older form.
const COSIGN_SIGNATURE: &str = "application/vnd.dev.cosign.artifact.sig.v1+json";
const ANNOTATION_PREDICATE: &str = "in-toto.io/predicate-type";
const IN_TOTO: &str = media::IN_TOTO;
const PROVENANCE: [&str; 2] =
    ["https://slsa.dev/provenance/v0.2", "https://slsa.dev/provenance/v1"];
/// Largest statement that is handed out: it has to fit into an answer.
const MAX_STATEMENT: u64 = 8 << 20;

impl Images {
    /// The chain of the image that a name leads to for a platform; `None` if it leads to no OCI index.
    /// `statements` are predicate types whose text is wanted.
    pub(super) async fn chain(
        &self,
        request: &SourceRequest,
        mode: Mode,
        statements: &[String],
    ) -> Result<Option<AttestationChain>, SourceError> {
        let reference = reference(request)?;
        let root = self.root(request, &reference, mode).await?;
        if root.descriptor.media_type != media::OCI_INDEX {
            return Ok(None);
        }
        let registry = (self.registries)(&request.group);
        let remote = ImageProvider {
            registry: registry.clone(),
            blobs: oci::registry::RepositoryProvider::new(registry.clone(), reference.clone()),
            repository: reference.clone(),
        };
        let reading = Reading { images: self, remote: &remote, reference: &reference };
        let platform = request.platform.normalize();
        let strict = root.origin == Origin::Registry;
        reading.chain(&*registry, root.descriptor, &platform, statements, strict).await.map(Some)
    }
}

struct Reading<'a> {
    images: &'a Images,
    remote: &'a ImageProvider,
    reference: &'a Reference,
}

impl Reading<'_> {
    async fn chain(
        &self,
        registry: &dyn Registry,
        root: Descriptor,
        platform: &Platform,
        statements: &[String],
        strict: bool,
    ) -> Result<AttestationChain, SourceError> {
        let name = self.reference.to_string();
        let body = self.document(&root, types::MAX_MANIFEST).await?;
        let index = Index::parse(&format!("index of {name}"), &body)?;
        let image = select::best(&name, &index, platform)?.clone();
        let mut chain = AttestationChain {
            root: root.digest,
            image: image.digest,
            attestation: None,
            signatures: Vec::new(),
            blobs: vec![(root, body)],
        };
        let referrers = async |subject| match registry
            .referrers(self.reference, subject, None)
            .await
        {
            // An image that only the store has is signed by nobody; nor is one whose registry is away.
            Err(error) if !strict => {
                tracing::debug!(%name, %error, "cannot ask who refers to an image of the store");
                Ok(Vec::new())
            }
            found => found,
        };
        let about = match is_hardened(&index) {
            true => {
                let found = referrers(image.digest).await?;
                Some(found.into_iter().find(is_provenance).ok_or_else(|| {
                    SourceError::Remote(format!(
                        "no provenance refers to {} of {name}",
                        image.digest
                    ))
                })?)
            }
            false => index.manifests.into_iter().find(|entry| is_about(entry, &image)),
        };
        let Some(about) = about else { return Ok(chain) };
        let body = self.document(&about, types::MAX_MANIFEST).await?;
        let manifest = Manifest::parse(&format!("manifest {} of {name}", about.digest), &body)?;
        chain.attestation = Some(about.digest);
        let signature = signature(referrers(about.digest).await?);
        chain.blobs.push((about, body));
        if let Some(signature) = signature {
            let body = self.document(&signature, types::MAX_MANIFEST).await?;
            let what = format!("signature {} of {name}", signature.digest);
            let layers = Manifest::parse(&what, &body)?.layers;
            chain.signatures.push(signature.digest);
            chain.blobs.push((signature, body));
            for layer in layers {
                let body = self.document(&layer, types::MAX_MANIFEST).await?;
                chain.blobs.push((layer, body));
            }
        }
        for layer in manifest.layers {
            let kind = layer.annotations.get(ANNOTATION_PREDICATE);
            let wanted = kind.is_some_and(|kind| !kind.is_empty() && statements.contains(kind));
            if wanted && !chain.blobs.iter().any(|(known, _)| known.digest == layer.digest) {
                let body = self.document(&layer, MAX_STATEMENT).await?;
                chain.blobs.push((layer, body));
            }
        }
        Ok(chain)
    }

    async fn document(&self, descriptor: &Descriptor, limit: u64) -> Result<Bytes, SourceError> {
        if let Ok(body) = self.images.store.content().read(&descriptor.digest, limit) {
            return Ok(body);
        }
        Ok(content::read_all(self.remote as &dyn Provider, descriptor, limit).await?)
    }
}

/// Whether an entry of an index holds statements about `image`.
fn is_about(entry: &Descriptor, image: &Descriptor) -> bool {
    let annotation = |name| entry.annotations.get(name).map_or("", String::as_str);
    annotation(select::ANNOTATION_REFERENCE_TYPE) == "attestation-manifest"
        && annotation(select::ANNOTATION_REFERENCE_DIGEST) == image.digest.to_string()
}

/// Docker's hardened images: their statements refer to the images instead of standing in the index.
fn is_hardened(index: &Index) -> bool {
    let built = |entry: &Descriptor| {
        entry.annotations.get("com.docker.dhi.build.id").is_some_and(|id| !id.is_empty())
    };
    let title = index.annotations.get("org.opencontainers.image.title");
    title.is_some_and(|title| title.starts_with("dhi/")) && index.manifests.iter().all(built)
}

fn is_provenance(entry: &Descriptor) -> bool {
    let kind = entry.annotations.get(ANNOTATION_PREDICATE);
    entry.artifact_type == IN_TOTO && kind.is_some_and(|kind| PROVENANCE.contains(&kind.as_str()))
}

/// The signature to hand out: one, in the newer form if there is one.
fn signature(referrers: Vec<Descriptor>) -> Option<Descriptor> {
    let mut older = None;
    for entry in referrers {
        match entry.artifact_type.as_str() {
            SIGSTORE_BUNDLE => return Some(entry),
            COSIGN_SIGNATURE if older.is_none() => older = Some(entry),
            _ => {}
        }
    }
    older
}
