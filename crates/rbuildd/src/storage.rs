//! The state folder, for `rbuildctl du` and `verify`.

use std::sync::Arc;

use async_trait::async_trait;
use engine::Engine;
use proto::rbuild::v1::{self as wire, storage_server::Storage as StorageService};
use tonic::{Request, Response, Status};

use crate::idle::Idle;

/// Serves the state folder of one engine's store.
#[derive(Clone)]
pub struct Storage {
    pub engine: Arc<Engine>,
    pub idle: Arc<Idle>,
}

fn number(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

#[async_trait]
impl StorageService for Storage {
    async fn usage(
        &self,
        _: Request<wire::StorageUsageRequest>,
    ) -> Result<Response<wire::StorageUsageResponse>, Status> {
        let store = self.engine.store().clone();
        let measured = tokio::task::spawn_blocking(move || {
            let records = store.disk_usage(&[]).iter().map(|usage| usage.size).sum();
            (records, store.overhead(), store.ceiling())
        });
        let (records, overhead, ceiling) =
            measured.await.map_err(|error| Status::internal(format!("measure: {error}")))?;
        Ok(Response::new(wire::StorageUsageResponse {
            records: number(records),
            blobs: number(overhead.blobs),
            metadata: number(overhead.meta),
            other: number(overhead.in_flight + overhead.other),
            ceiling: number(ceiling.unwrap_or(0)),
            volumes: number(overhead.volumes),
        }))
    }

    async fn verify(
        &self,
        request: Request<wire::VerifyRequest>,
    ) -> Result<Response<wire::VerifyResponse>, Status> {
        let _busy = self.idle.busy();
        let repair = request.into_inner().repair;
        let verified = self.engine.store().verify(repair).await;
        let verified = verified.map_err(|error| Status::internal(error.to_string()))?;
        if repair {
            self.engine.evicted(&verified.broken);
        }
        Ok(Response::new(wire::VerifyResponse {
            records: number(verified.records),
            blobs: number(verified.blobs),
            blob_bytes: number(verified.bytes),
            files: number(verified.files),
            damaged: verified.damaged.iter().map(ToString::to_string).collect(),
            broken: verified.broken.iter().map(ToString::to_string).collect(),
            notes: verified.notes,
        }))
    }
}
