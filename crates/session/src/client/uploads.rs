//! Streams that the daemon may fetch once each, as if from a web server.

use std::{
    collections::HashMap,
    pin::Pin,
    sync::{Arc, Mutex},
};

use bytes::BytesMut;
use futures_util::stream::BoxStream;
use proto::moby::upload::v1::{
    BytesMessage,
    upload_server::{Upload, UploadServer},
};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tonic::{Request, Response, Status, Streaming};

use crate::upload::UPLOAD_HOST;

type Reader = Pin<Box<dyn AsyncRead + Send>>;

const CHUNK: usize = 256 << 10;

/// The uploads of one session; clones share them.
#[derive(Clone, Default)]
pub struct Uploads(Arc<Mutex<HashMap<String, Reader>>>);

impl Uploads {
    /// None.
    pub fn new() -> Self {
        Self::default()
    }

    /// Offers `reader` once; returns its address for the build (`http://…`).
    pub fn offer(&self, reader: impl AsyncRead + Send + 'static) -> String {
        let id = base::id::random_id();
        self.0.lock().expect("nobody panics here").insert(format!("/{id}"), Box::pin(reader));
        format!("http://{UPLOAD_HOST}/{id}")
    }

    pub(super) fn into_service(self) -> UploadServer<Self> {
        UploadServer::new(self)
    }
}

#[tonic::async_trait]
impl Upload for Uploads {
    type PullStream = BoxStream<'static, Result<BytesMessage, Status>>;

    async fn pull(
        &self,
        request: Request<Streaming<BytesMessage>>,
    ) -> Result<Response<Self::PullStream>, Status> {
        let path = request.metadata().get("urlpath").and_then(|path| path.to_str().ok());
        let path = path.ok_or_else(|| Status::invalid_argument("no urlpath in request"))?;
        let reader = self.0.lock().expect("nobody panics here").remove(path);
        let reader = reader.ok_or_else(|| Status::not_found(format!("no upload at {path}")))?;
        let chunks = futures_util::stream::unfold(Some(reader), |reader| async {
            let mut reader = reader?;
            let mut buffer = BytesMut::with_capacity(CHUNK);
            match reader.read_buf(&mut buffer).await {
                Ok(0) => None,
                Ok(_) => Some((Ok(BytesMessage { data: buffer.freeze() }), Some(reader))),
                Err(error) => Some((Err(Status::unknown(format!("read upload: {error}"))), None)),
            }
        });
        Ok(Response::new(Box::pin(chunks)))
    }
}
