//! Where an image's blobs come from: a repository, the content store, a layout at the client.

use std::sync::Arc;

use async_trait::async_trait;
use base::Digest;
use oci::{
    BlobStream, Descriptor, Provider, Reference, Registry, content, media,
    registry::RepositoryProvider,
};
use session::Group;
use store::Store;

use crate::SourceRequest;

/// Documents and blobs of one repository.
pub(super) struct ImageProvider {
    pub(super) registry: Arc<dyn Registry>,
    pub(super) blobs: RepositoryProvider,
    pub(super) repository: Reference,
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
pub(super) struct StoreProvider {
    pub(super) store: Arc<Store>,
    pub(super) otherwise: Arc<dyn Provider>,
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
pub struct LayoutProvider {
    /// Sessions to ask.
    pub group: Group,
    /// The session that has it; empty: any of the group's.
    pub session: String,
    /// The layout's name there.
    pub store: String,
}

impl LayoutProvider {
    pub(super) fn of(request: &SourceRequest) -> Self {
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
