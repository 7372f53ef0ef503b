//! Serves secrets of this machine by id.

use std::{collections::BTreeMap, path::PathBuf};

use bytes::Bytes;
use proto::moby::buildkit::secrets::v1::{
    GetSecretRequest, GetSecretResponse,
    secrets_server::{Secrets as Service, SecretsServer},
};
use tonic::{Request, Response, Status};

/// Larger secrets are refused.
const LIMIT: usize = 500 << 10;

#[derive(Clone)]
enum Source {
    Value(Bytes),
    File(PathBuf),
}

/// The secrets of one session.
#[derive(Clone, Default)]
pub struct Secrets(BTreeMap<String, Source>);

impl Secrets {
    /// None.
    pub fn new() -> Self {
        Self::default()
    }

    /// A secret given as bytes.
    pub fn value(&mut self, id: impl Into<String>, data: impl Into<Bytes>) {
        self.0.insert(id.into(), Source::Value(data.into()));
    }

    /// A secret read from a file each time it is asked for.
    pub fn file(&mut self, id: impl Into<String>, path: impl Into<PathBuf>) {
        self.0.insert(id.into(), Source::File(path.into()));
    }

    pub(super) fn into_service(self) -> SecretsServer<Self> {
        SecretsServer::new(self)
    }
}

#[tonic::async_trait]
impl Service for Secrets {
    async fn get_secret(
        &self,
        request: Request<GetSecretRequest>,
    ) -> Result<Response<GetSecretResponse>, Status> {
        let id = request.into_inner().id;
        let data = match self.0.get(&id) {
            None => return Err(Status::not_found(format!("secret {id}: not found"))),
            Some(Source::Value(data)) => data.clone(),
            Some(Source::File(path)) => tokio::fs::read(path)
                .await
                .map_err(|error| Status::unknown(format!("read secret {id}: {error}")))?
                .into(),
        };
        if data.len() > LIMIT {
            return Err(Status::unknown(format!("invalid secret {id}, max size {LIMIT}")));
        }
        Ok(Response::new(GetSecretResponse { data }))
    }
}
