//! Blobs of remote caches: in a registry, at the client, or of our own store.

use std::io;

use async_trait::async_trait;
use base::Digest;
use bytes::Bytes;
use futures_util::StreamExt as _;
use oci::{BlobStream, Descriptor, Provider, Reference, Registry, content, media};
use std::sync::Arc;
use store::{LayerBlob, Ref};
use tokio::io::AsyncSeekExt as _;

use crate::CacheError;

/// Largest manifest or config that is read.
const MAX_DOCUMENT: u64 = 1 << 20;

/// A repository: manifests and blobs.
pub(crate) struct Repository {
    pub registry: Arc<dyn Registry>,
    pub reference: Reference,
}

#[async_trait]
impl Provider for Repository {
    async fn open(&self, blob: &Descriptor, offset: u64) -> oci::Result<BlobStream> {
        if media::is_index(&blob.media_type) || media::is_manifest(&blob.media_type) {
            let body = self.registry.manifest(&self.reference, blob).await?;
            let offset = usize::try_from(offset).unwrap_or(usize::MAX).min(body.len());
            return Ok(content::once(body.slice(offset..)));
        }
        self.registry.blob(&self.reference, blob, offset).await
    }

    fn describe(&self) -> String {
        self.reference.repository()
    }
}

/// A folder at the client.
pub(crate) struct ClientFolder {
    pub sessions: session::Group,
    pub store: String,
}

impl ClientFolder {
    async fn read(&self, digest: Digest, offset: u64) -> Result<BlobStream, session::SessionError> {
        let open = |session: session::Session| async move {
            let stream = session.content(&self.store).read(&digest, offset, None).await?;
            Ok::<BlobStream, session::SessionError>(
                stream.map(|piece| piece.map_err(io::Error::other)).boxed(),
            )
        };
        self.sessions.any(open).await
    }

    /// A blob as the client knows it.
    pub(crate) async fn describe_blob(&self, digest: Digest) -> Result<Descriptor, CacheError> {
        let ask = |session: session::Session| async move {
            session.content(&self.store).info(&digest).await
        };
        let doing = format!("look up {digest} in the client's {}", self.store);
        let info = self.sessions.any(ask).await.map_err(CacheError::session(&doing))?;
        let info =
            info.ok_or_else(|| CacheError::Invalid(format!("{} has no {digest}", self.store)))?;
        Ok(Descriptor::new("", digest, info.size))
    }
}

#[async_trait]
impl Provider for ClientFolder {
    async fn open(&self, blob: &Descriptor, offset: u64) -> oci::Result<BlobStream> {
        self.read(blob.digest, offset).await.map_err(|error| oci::Error::Io {
            what: format!("read blob {} of the client's {}", blob.digest, self.store),
            source: io::Error::other(error),
        })
    }

    fn describe(&self) -> String {
        format!("the client's {}", self.store)
    }
}

/// One layer of a result here, fetched first if it is lazy.
pub(crate) struct OwnLayer {
    pub tree: Ref,
    pub blob: LayerBlob,
}

#[async_trait]
impl Provider for OwnLayer {
    async fn open(&self, blob: &Descriptor, offset: u64) -> oci::Result<BlobStream> {
        let failed = |error: Box<dyn std::error::Error + Send + Sync>| oci::Error::Io {
            what: format!("read layer {}", blob.digest),
            source: io::Error::other(error),
        };
        // Held until the file is open; an open file stays readable.
        let held =
            self.tree.fetch_blob(&self.blob).await.map_err(|error| failed(Box::new(error)))?;
        let reader = self.tree.store().content().reader(&held.digest());
        let mut reader = reader.map_err(|error| failed(Box::new(error)))?;
        reader.seek(io::SeekFrom::Start(offset)).await.map_err(|error| failed(Box::new(error)))?;
        Ok(content::from_reader(reader))
    }

    fn describe(&self) -> String {
        "the store".into()
    }
}

/// Bytes in memory.
pub(crate) struct InMemory(pub Bytes);

#[async_trait]
impl Provider for InMemory {
    async fn open(&self, _blob: &Descriptor, offset: u64) -> oci::Result<BlobStream> {
        let offset = usize::try_from(offset).unwrap_or(usize::MAX).min(self.0.len());
        Ok(content::once(self.0.slice(offset..)))
    }

    fn describe(&self) -> String {
        "memory".into()
    }
}

/// Reads a manifest or config.
pub(crate) async fn document(from: &dyn Provider, blob: &Descriptor) -> Result<Bytes, CacheError> {
    if blob.size > MAX_DOCUMENT {
        return Err(CacheError::TooLarge {
            digest: blob.digest,
            size: blob.size,
            limit: MAX_DOCUMENT,
        });
    }
    let doing = format!("read {} from {}", blob.digest, from.describe());
    content::read_all(from, blob, MAX_DOCUMENT).await.map_err(CacheError::registry(doing))
}
