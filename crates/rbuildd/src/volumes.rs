//! Named volumes for `rbuildctl volume`.

use std::{collections::BTreeMap, sync::Arc};

use async_trait::async_trait;
use engine::run::{Runner, Volume};
use frontend_api::FrontendError;
use proto::rbuild::v1::{self as wire, volumes_server::Volumes as VolumesService};
use tonic::{Request, Response, Status};

/// Serves the volumes of one runner.
#[derive(Clone)]
pub struct Volumes {
    pub runner: Arc<Runner>,
}

fn status(error: FrontendError) -> Status {
    gateway::status::to_tonic(&error)
}

impl Volumes {
    fn describe(&self, volume: Volume) -> wire::Volume {
        wire::Volume {
            used_by: self.runner.users_of_volume(&volume.name),
            mountpoint: volume.path.display().to_string(),
            created: Some(volume.created.into()),
            name: volume.name,
            labels: BTreeMap::new(),
        }
    }
}

#[async_trait]
impl VolumesService for Volumes {
    async fn list(
        &self,
        _: Request<wire::ListVolumesRequest>,
    ) -> Result<Response<wire::ListVolumesResponse>, Status> {
        let all = self.runner.volumes().list().map_err(status)?;
        let volumes = all.into_iter().map(|volume| self.describe(volume)).collect();
        Ok(Response::new(wire::ListVolumesResponse { volumes }))
    }

    async fn create(
        &self,
        request: Request<wire::CreateVolumeRequest>,
    ) -> Result<Response<wire::Volume>, Status> {
        let name = match request.into_inner().name {
            name if name.is_empty() => base::id::random_hex(32),
            name => name,
        };
        let (volume, _) = self.runner.volumes().ensure(&name).map_err(status)?;
        Ok(Response::new(self.describe(volume)))
    }

    async fn remove(
        &self,
        request: Request<wire::RemoveVolumeRequest>,
    ) -> Result<Response<wire::RemoveVolumeResponse>, Status> {
        let name = request.into_inner().name;
        let users = self.runner.users_of_volume(&name);
        if !users.is_empty() {
            return Err(Status::failed_precondition(format!(
                "remove {name}: volume is in use - [{}]",
                users.join(", ")
            )));
        }
        self.runner.volumes().remove(&name).map_err(status)?;
        Ok(Response::new(wire::RemoveVolumeResponse {}))
    }
}
