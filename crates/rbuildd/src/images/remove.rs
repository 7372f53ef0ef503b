//! `rmi`: which names go, and what stands in the way.
//!
//! A name can always go while the image has another. The last name goes with the image, unless a
//! container uses it; `force` overrides containers that ended. An id stands for all names of its
//! image, which have to be of one repository unless forced.

use std::collections::BTreeSet;

use oci::Reference;
use proto::rbuild::v1 as wire;
use store::Image;
use tonic::Status;

use super::{
    DANGLING, Images, failed,
    view::{id_of, is_dangling},
};

fn short(id: &str) -> &str {
    let hex = id.strip_prefix("sha256:").unwrap_or(id);
    &hex[..hex.len().min(12)]
}

impl Images {
    pub(super) async fn remove_image(
        &self,
        request: wire::RemoveImageRequest,
    ) -> Result<wire::RemoveImageResponse, Status> {
        let wanted = &request.reference;
        let view = self.view();
        let named = self.by_name(wanted);
        let chosen = match &named {
            Some(image) => image.clone(),
            None => self.find(wanted)?,
        };
        let id = id_of(&view.describe(&chosen)).to_owned();
        // The names of the image, and one that has none.
        let all: Vec<Image> = self
            .images()
            .list()
            .into_iter()
            .filter(|image| {
                image.descriptor.digest == chosen.descriptor.digest
                    || id_of(&view.describe(image)) == id
            })
            .collect();
        let going: Vec<&Image> = match &named {
            Some(image) => vec![image],
            None => all.iter().collect(),
        };
        let last = going.len() == all.len();
        if named.is_none() && !request.force {
            let repositories: BTreeSet<String> = going
                .iter()
                .filter(|image| !is_dangling(&image.name))
                .map(|image| repository(&image.name))
                .collect();
            if repositories.len() > 1 {
                return Err(Status::failed_precondition(format!(
                    "conflict: unable to delete {} (must be forced) - image is referenced in \
                     multiple repositories",
                    short(&id)
                )));
            }
        }
        if last {
            self.check_containers(&request, named.is_some(), &id)?;
        }
        let mut response = wire::RemoveImageResponse::default();
        let running = self.runner.list(false).iter().any(|one| one.image_id == id);
        for image in &going {
            self.images().remove(&image.name).await.map_err(failed)?;
            if is_dangling(&image.name) {
                continue;
            }
            response.untagged.push(familiar(&image.name));
            let digest = image.descriptor.digest;
            let repository = repository(&image.name);
            let others = self.images().list().into_iter().any(|other| {
                other.descriptor.digest == digest && self::repository(&other.name) == repository
            });
            if !others && !image.name.contains('@') {
                response.untagged.push(format!("{}@{digest}", familiar(&repository)));
            }
        }
        if last && running {
            // Forced: the containers go on, and so does their image, without a name.
            let nameless = format!("{DANGLING}{}", chosen.descriptor.digest);
            self.images().tag(&nameless, chosen.descriptor).await.map_err(failed)?;
        } else if last {
            response.deleted.push(id);
            // Layers that no other image has; the collector takes them when nothing else needs them.
            let members = view.members(&chosen.descriptor);
            let gone = view.shown(&members).map(|member| member.config.rootfs.diff_ids.clone());
            let mut kept = BTreeSet::new();
            for image in self.images().list() {
                for member in view.members(&image.descriptor) {
                    kept.extend(member.config.rootfs.diff_ids);
                }
            }
            let gone = gone.unwrap_or_default().into_iter().rev();
            response.deleted.extend(
                gone.filter(|diff_id| !kept.contains(diff_id)).map(|diff_id| diff_id.to_string()),
            );
        }
        Ok(response)
    }

    fn check_containers(
        &self,
        request: &wire::RemoveImageRequest,
        by_name: bool,
        id: &str,
    ) -> Result<(), Status> {
        let users = self.runner.list(true);
        let users = users.iter().filter(|container| container.image_id == id);
        // Those that run matter most.
        let Some(user) = users.max_by_key(|container| container.is_running()) else {
            return Ok(());
        };
        let (running, container) = (user.is_running(), &user.id[..12]);
        let text = match (by_name, running) {
            _ if request.force && (by_name || !running) => return Ok(()),
            (true, _) => format!(
                "conflict: unable to remove repository reference \"{}\" (must force) - container \
                 {container} is using its referenced image {}",
                request.reference,
                short(id)
            ),
            (false, true) => format!(
                "conflict: unable to delete {} (cannot be forced) - image is being used by running \
                 container {container}",
                short(id)
            ),
            (false, false) => format!(
                "conflict: unable to delete {} (must be forced) - image is being used by stopped \
                 container {container}",
                short(id)
            ),
        };
        Err(Status::failed_precondition(text))
    }
}

fn repository(name: &str) -> String {
    Reference::parse(name).map_or_else(|_| name.to_owned(), |name| name.repository())
}

fn familiar(name: &str) -> String {
    Reference::parse(name).map_or_else(|_| name.to_owned(), |name| name.familiar())
}
