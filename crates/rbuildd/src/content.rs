//! The content service: blobs of images and history, read-only.

use std::{collections::BTreeMap, os::unix::fs::FileExt as _, pin::Pin, sync::Arc};

use async_trait::async_trait;
use base::Digest;
use bytes::BytesMut;
use proto::containerd::services::content::v1::{
    self as wire, content_server::Content as ContentService,
};
use store::Store;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

/// Bytes in one answer.
const CHUNK: u64 = 1 << 20;

/// Serves the blobs of a store.
#[derive(Clone)]
pub struct Content {
    pub store: Arc<Store>,
}

type Answers<T> = Pin<Box<dyn tokio_stream::Stream<Item = Result<T, Status>> + Send>>;

fn parse(digest: &str) -> Result<Digest, Status> {
    digest
        .parse()
        .map_err(|error: base::ParseDigestError| Status::invalid_argument(error.to_string()))
}

fn read_only<T>() -> Result<T, Status> {
    Err(Status::unimplemented("read-only content store"))
}

impl Content {
    fn describe(&self, digest: &Digest) -> Result<wire::Info, Status> {
        let content = self.store.content();
        let not_found = || Status::not_found(format!("content {digest}: not found"));
        let size = content.size(digest).ok_or_else(not_found)?;
        let at = content.created_at(digest).map(Into::into);
        let labels: BTreeMap<String, String> =
            content.info(digest).map(|info| info.labels).unwrap_or_default();
        Ok(wire::Info {
            digest: digest.to_string(),
            size: i64::try_from(size).unwrap_or(i64::MAX),
            created_at: at,
            updated_at: at,
            labels,
        })
    }
}

#[async_trait]
impl ContentService for Content {
    async fn info(
        &self,
        request: Request<wire::InfoRequest>,
    ) -> Result<Response<wire::InfoResponse>, Status> {
        let digest = parse(&request.into_inner().digest)?;
        Ok(Response::new(wire::InfoResponse { info: Some(self.describe(&digest)?) }))
    }

    type ListStream = Answers<wire::ListContentResponse>;

    async fn list(
        &self,
        _: Request<wire::ListContentRequest>,
    ) -> Result<Response<Self::ListStream>, Status> {
        let store = self.store.clone();
        let all = tokio::task::spawn_blocking(move || store.blobs_of_builds());
        let all = all.await.map_err(|error| Status::internal(error.to_string()))?;
        let info: Vec<wire::Info> =
            all.iter().filter_map(|digest| self.describe(digest).ok()).collect();
        let answers: Vec<_> = info
            .chunks(100)
            .map(|part| Ok(wire::ListContentResponse { info: part.to_vec() }))
            .collect();
        Ok(Response::new(Box::pin(tokio_stream::iter(answers))))
    }

    type ReadStream = Answers<wire::ReadContentResponse>;

    async fn read(
        &self,
        request: Request<wire::ReadContentRequest>,
    ) -> Result<Response<Self::ReadStream>, Status> {
        let request = request.into_inner();
        let digest = parse(&request.digest)?;
        let file = self
            .store
            .content()
            .open(&digest)
            .map_err(|_| Status::not_found(format!("content {digest}: not found")))?;
        let size = file.metadata().map_err(|error| Status::internal(error.to_string()))?.len();
        let start =
            u64::try_from(request.offset).map_err(|_| Status::out_of_range("negative offset"))?;
        if start > size {
            return Err(Status::out_of_range(format!(
                "offset {start} is beyond the {size} bytes of {digest}"
            )));
        }
        let wanted = u64::try_from(request.size).ok().filter(|size| *size > 0).unwrap_or(u64::MAX);
        let end = start.saturating_add(wanted).min(size);
        let (sender, receiver) = mpsc::channel(4);
        tokio::task::spawn_blocking(move || {
            let mut offset = start;
            while offset < end {
                let mut data = BytesMut::zeroed(CHUNK.min(end - offset) as usize);
                let answer = match file.read_exact_at(&mut data, offset) {
                    Ok(()) => {
                        Ok(wire::ReadContentResponse { offset: offset as i64, data: data.freeze() })
                    }
                    Err(error) => Err(Status::internal(format!("read {digest}: {error}"))),
                };
                let broken = answer.is_err();
                offset += CHUNK;
                if sender.blocking_send(answer).is_err() || broken {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn update(
        &self,
        _: Request<wire::UpdateRequest>,
    ) -> Result<Response<wire::UpdateResponse>, Status> {
        read_only()
    }

    async fn delete(&self, _: Request<wire::DeleteContentRequest>) -> Result<Response<()>, Status> {
        read_only()
    }

    async fn status(
        &self,
        _: Request<wire::StatusRequest>,
    ) -> Result<Response<wire::StatusResponse>, Status> {
        read_only()
    }

    async fn list_statuses(
        &self,
        _: Request<wire::ListStatusesRequest>,
    ) -> Result<Response<wire::ListStatusesResponse>, Status> {
        read_only()
    }

    type WriteStream = Answers<wire::WriteContentResponse>;

    async fn write(
        &self,
        _: Request<Streaming<wire::WriteContentRequest>>,
    ) -> Result<Response<Self::WriteStream>, Status> {
        read_only()
    }

    async fn abort(&self, _: Request<wire::AbortRequest>) -> Result<Response<()>, Status> {
        read_only()
    }
}
