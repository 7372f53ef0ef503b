//! The way to registries: one trait, the real client, and what it needs to know of hosts and
//! users.
//!
//! A [`Client`] lives as long as the daemon and owns connections, limits and the token cache.
//! [`Client::session`] binds it to whoever's credentials a build may use; that is a [`Registry`].

mod auth;
mod client;
mod credentials;
mod hosts;
mod login;
mod pull;
mod push;
mod retry;

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

pub use client::{Client, Options, Remote};
pub use credentials::{
    Anonymous, Credentials, CredentialsError, FetchedToken, Login, Refused, StaticLogin,
    TokenRequest,
};
pub use hosts::{HostConfig, Hosts, KeyPair, install_crypto_provider};

use crate::{BlobStream, Descriptor, Index, Provider, Reference, Result};

/// Images by name, somewhere else. Implemented by [`Remote`] (HTTP) and [`crate::memory::Memory`].
///
/// Bytes are returned as they are stored: manifests checked against the descriptor's digest, blob
/// streams to be checked by the reader ([`crate::content::verified`]). All calls may run at once.
#[async_trait]
pub trait Registry: Send + Sync {
    /// Descriptor of the manifest or index that `reference` leads to.
    async fn resolve(&self, reference: &Reference) -> Result<Descriptor>;

    /// Body of a manifest or index, checked against its digest.
    async fn manifest(&self, repository: &Reference, manifest: &Descriptor) -> Result<Bytes>;

    /// Streams a blob from `offset` on.
    async fn blob(
        &self,
        repository: &Reference,
        blob: &Descriptor,
        offset: u64,
    ) -> Result<BlobStream>;

    /// Makes sure the repository has the blob: checks, mounts from one of `mount_from` (other
    /// repositories of the same host), or uploads what `from` provides.
    async fn push_blob(
        &self,
        repository: &Reference,
        blob: &Descriptor,
        from: &dyn Provider,
        mount_from: &[Reference],
    ) -> Result<Pushed>;

    /// Whether `reference` leads to this very manifest or index already, by its tag or, if it has
    /// none, by digest. A registry takes a manifest only after all that it names, so that nothing
    /// below it needs to be pushed then.
    async fn has_manifest(&self, reference: &Reference, manifest: &Descriptor) -> Result<bool>;

    /// Stores a manifest or index under the tag of `reference`, or under its digest alone if
    /// there is none.
    async fn push_manifest(
        &self,
        reference: &Reference,
        manifest: &Descriptor,
        body: Bytes,
    ) -> Result<()>;

    /// All tags of the repository, sorted.
    async fn tags(&self, repository: &Reference) -> Result<Vec<String>>;

    /// Manifests whose subject is `subject`'s digest, of one artifact type if given.
    async fn referrers(
        &self,
        repository: &Reference,
        subject: base::Digest,
        artifact_type: Option<&str>,
    ) -> Result<Vec<Descriptor>>;
}

/// Makes sure that those who ask what refers to `image` find `referrer`, which the repository has:
/// registries before distribution 1.1 keep an index for that, which clients write.
pub async fn refer(
    registry: &dyn Registry,
    repository: &Reference,
    referrer: Descriptor,
    image: base::Digest,
) -> Result<()> {
    let mut all = registry.referrers(repository, image, None).await?;
    if all.iter().any(|known| known.digest == referrer.digest) {
        return Ok(());
    }
    all.push(Descriptor { platform: None, ..referrer });
    let index = Index::new(true, all);
    let body = index.to_json();
    let tag = repository.clone().with_tag(&format!("sha256-{}", image.hex()))?;
    let descriptor = Descriptor::of(&index.media_type, &body);
    registry.push_manifest(&tag, &descriptor, body.into()).await
}

/// What [`Registry::push_blob`] had to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pushed {
    /// It was there.
    Exists,
    /// The registry took it from this repository.
    Mounted(Reference),
    /// It was sent.
    Uploaded,
}

/// The blobs of one repository as a [`Provider`].
pub struct RepositoryProvider {
    registry: Arc<dyn Registry>,
    repository: Reference,
}

impl RepositoryProvider {
    /// Blobs of `repository`.
    pub fn new(registry: Arc<dyn Registry>, repository: Reference) -> Self {
        Self { registry, repository }
    }
}

#[async_trait]
impl Provider for RepositoryProvider {
    async fn open(&self, blob: &Descriptor, offset: u64) -> Result<BlobStream> {
        self.registry.blob(&self.repository, blob, offset).await
    }

    fn describe(&self) -> String {
        self.repository.repository()
    }
}

#[async_trait]
impl Registry for Remote {
    async fn resolve(&self, reference: &Reference) -> Result<Descriptor> {
        self.do_resolve(reference).await
    }

    async fn manifest(&self, repository: &Reference, manifest: &Descriptor) -> Result<Bytes> {
        self.do_manifest(repository, manifest).await
    }

    async fn blob(
        &self,
        repository: &Reference,
        blob: &Descriptor,
        offset: u64,
    ) -> Result<BlobStream> {
        self.do_blob(repository, blob, offset).await
    }

    async fn push_blob(
        &self,
        repository: &Reference,
        blob: &Descriptor,
        from: &dyn Provider,
        mount_from: &[Reference],
    ) -> Result<Pushed> {
        self.do_push_blob(repository, blob, from, mount_from).await
    }

    async fn has_manifest(&self, reference: &Reference, manifest: &Descriptor) -> Result<bool> {
        self.do_has_manifest(reference, manifest).await
    }

    async fn push_manifest(
        &self,
        reference: &Reference,
        manifest: &Descriptor,
        body: Bytes,
    ) -> Result<()> {
        self.do_push_manifest(reference, manifest, body).await
    }

    async fn tags(&self, repository: &Reference) -> Result<Vec<String>> {
        self.do_tags(repository).await
    }

    async fn referrers(
        &self,
        repository: &Reference,
        subject: base::Digest,
        artifact_type: Option<&str>,
    ) -> Result<Vec<Descriptor>> {
        self.do_referrers(repository, subject, artifact_type).await
    }
}
