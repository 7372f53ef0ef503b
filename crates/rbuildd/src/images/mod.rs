//! The image store for `rbuildctl images`, `pull`, `push`, `save`, `load`, `tag`, `rmi`, `inspect`.
//!
//! A name points at a manifest or index; docker's image id is the digest of the config. A name that
//! moves away by `tag`, `pull` or `load` leaves its old image behind without a name, as docker does;
//! one that a build moves does not, so that builds cannot fill the disk with what no collector may
//! take.

mod archive;
mod remove;
mod transfer;
mod view;

use std::{collections::BTreeMap, sync::Arc};

use async_trait::async_trait;
use base::Platform;
use engine::{Engine, run::Runner};
use oci::{Descriptor, Reference, registry::Client};
use proto::rbuild::v1::{self as wire, images_server::Images as ImagesService};
use store::Image;
use tonic::{Request, Response, Status, Streaming};

use self::view::{DANGLING, View, id_of, is_dangling, number};
use crate::{idle::Idle, pipe::Answers};

/// Shortest prefix of an id that is looked for.
const SHORTEST_ID: usize = 4;

/// Serves the images of one engine's store.
#[derive(Clone)]
pub struct Images {
    pub engine: Arc<Engine>,
    pub runner: Arc<Runner>,
    pub idle: Arc<Idle>,
    /// The way to registries.
    pub client: Client,
}

impl Images {
    fn images(&self) -> store::Images<'_> {
        self.engine.store().images()
    }

    fn host(&self) -> &Platform {
        &self.engine.worker().platforms[0]
    }

    fn view(&self) -> View<'_> {
        let mut containers = BTreeMap::new();
        for container in self.runner.list(true) {
            *containers.entry(container.image_id.clone()).or_default() += 1;
        }
        let store = self.engine.store();
        View { store, host: self.host(), sizes: store.unpacked_sizes(), containers }
    }

    /// All names whose image has this id: a config or manifest digest, or a prefix of one.
    fn by_id(&self, wanted: &str) -> Vec<(Image, wire::Image)> {
        let hex = wanted.strip_prefix("sha256:").unwrap_or(wanted);
        if hex.len() < SHORTEST_ID || !hex.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Vec::new();
        }
        let view = self.view();
        let described = self.images().list().into_iter().map(|image| {
            let wire = view.describe(&image);
            (image, wire)
        });
        let starts = |digest: &str| {
            digest.strip_prefix("sha256:").is_some_and(|digest| digest.starts_with(hex))
        };
        described
            .filter(|(_, wire)| {
                let members = wire.members.iter();
                let members = members.flat_map(|member| [&member.digest, &member.config_digest]);
                [&wire.config_digest, &wire.digest].into_iter().chain(members).any(|it| starts(it))
            })
            .collect()
    }

    /// The image of exactly this name.
    fn by_name(&self, wanted: &str) -> Option<Image> {
        let reference = Reference::parse(wanted).ok()?.with_default_tag();
        if let Some(image) = self.images().get(&reference.to_string()) {
            return Some(image);
        }
        // `name@digest` is also any tag of that repository that leads there.
        let digest = reference.digest()?;
        let repository = reference.repository();
        self.images().list().into_iter().find(|image| {
            image.descriptor.digest == digest
                && Reference::parse(&image.name).is_ok_and(|name| name.repository() == repository)
        })
    }

    /// The image that a name or an id means.
    pub fn find(&self, wanted: &str) -> Result<Image, Status> {
        if let Some(image) = self.by_name(wanted) {
            return Ok(image);
        }
        let mut ids: BTreeMap<String, Image> = BTreeMap::new();
        for (image, wire) in self.by_id(wanted) {
            let known = ids.entry(id_of(&wire).to_owned()).or_insert_with(|| image.clone());
            if is_dangling(&known.name) {
                *known = image;
            }
        }
        match ids.len() {
            0 => Err(Status::not_found(format!("No such image: {}", with_tag(wanted)))),
            1 => Ok(ids.into_values().next().expect("there is one")),
            _ => Err(Status::invalid_argument(format!(
                "multiple IDs found with provided prefix: {wanted}"
            ))),
        }
    }

    /// The platform as which a container of an image runs, and what there is to say about it.
    pub fn runs_as(
        &self,
        image: &Image,
        request: &wire::RunRequest,
    ) -> Result<(Platform, Option<String>), Status> {
        let asked = platform(&request.platform)?;
        let view = self.view();
        let members = view.members(&image.descriptor);
        let wanted = asked.as_ref().unwrap_or(self.host());
        if view.best(&members, wanted).is_some() {
            return Ok((wanted.clone(), None));
        }
        match (&asked, view.shown(&members)) {
            (None, Some(member)) => {
                let (own, host) = (member.platform.format(), wanted.format());
                let warning = format!(
                    "The requested image's platform ({own}) does not match the detected host \
                     platform ({host}) and no specific platform was requested"
                );
                Ok((member.platform.clone(), Some(warning)))
            }
            _ => Err(Status::not_found(mismatch(
                &request.image,
                wanted,
                members.first().map(|member| &member.platform),
            ))),
        }
    }

    /// Points a name at an image; the image it pointed at before stays, without a name. Returns the
    /// one that was replaced.
    async fn name(&self, name: &str, descriptor: Descriptor) -> Result<Option<Descriptor>, Status> {
        let before = self.images().get(name).map(|image| image.descriptor);
        let digest = descriptor.digest;
        self.images().tag(name, descriptor).await.map_err(failed)?;
        let nameless = format!("{DANGLING}{digest}");
        if nameless != name && self.images().get(&nameless).is_some() {
            self.images().remove(&nameless).await.map_err(failed)?;
        }
        let Some(before) = before.filter(|before| before.digest != digest) else {
            return Ok(None);
        };
        let named =
            self.images().list().iter().any(|image| image.descriptor.digest == before.digest);
        if !named && self.engine.store().content().contains(&before.digest) {
            let nameless = format!("{DANGLING}{}", before.digest);
            self.images().tag(&nameless, before.clone()).await.map_err(failed)?;
        }
        Ok(Some(before))
    }

    fn inspect_image(
        &self,
        request: &wire::InspectImageRequest,
    ) -> Result<wire::InspectImageResponse, Status> {
        let image = self.find(&request.reference)?;
        let view = self.view();
        let members = view.members(&image.descriptor);
        let wanted = platform(&request.platform)?;
        let member = match &wanted {
            None => view.shown(&members),
            Some(wanted) => view.best(&members, wanted).filter(|member| member.manifest.is_some()),
        };
        let member = member.ok_or_else(|| {
            Status::not_found(format!(
                "image with reference {} was found but does not provide {}",
                request.reference,
                wanted.map_or_else(
                    || "any platform that is here".to_owned(),
                    |platform| format!("the specified platform ({})", platform.format())
                )
            ))
        })?;
        let manifest = member.manifest.as_ref().expect("members without one were left out");
        let content = self.engine.store().content();
        let read = |digest: &base::Digest| {
            content.read(digest, oci::types::MAX_CONFIG).map_err(|error| {
                Status::not_found(format!("image {} is not complete: {error}", request.reference))
            })
        };
        let mut described = view.describe(&image);
        described.config_digest = manifest.config.digest.to_string();
        let id = described.config_digest.clone();
        let names = self.images().list().into_iter().filter(|other| {
            !is_dangling(&other.name)
                && (other.descriptor.digest == image.descriptor.digest
                    || view.describe(other).config_digest == id)
        });
        let is_index = oci::media::is_index(&image.descriptor.media_type);
        Ok(wire::InspectImageResponse {
            names: names.map(|image| image.name).collect(),
            media_type: image.descriptor.media_type.clone(),
            manifest_digest: member.descriptor.digest.to_string(),
            manifest: read(&member.descriptor.digest)?,
            config: read(&manifest.config.digest)?,
            layer_sizes: view.layer_sizes(member).into_iter().map(number).collect(),
            tagged: Some(image.updated_at().into()),
            index: if is_index { read(&image.descriptor.digest)? } else { Default::default() },
            image: Some(described),
        })
    }
}

/// What is said of an image for another platform than was asked for.
fn mismatch(name: &str, wanted: &Platform, actual: Option<&Platform>) -> String {
    let actual = actual.map_or_else(|| "none".to_owned(), Platform::format);
    format!(
        "image with reference {name} was found but does not match the specified platform: wanted \
         {}, actual: {actual}",
        wanted.format()
    )
}

fn with_tag(wanted: &str) -> String {
    match Reference::parse(wanted) {
        Ok(reference) => reference.with_default_tag().familiar(),
        Err(_) => wanted.to_owned(),
    }
}

fn failed(error: store::StoreError) -> Status {
    Status::unknown(error.to_string())
}

/// A platform as asked for; `None` if nothing was.
pub fn platform(text: &str) -> Result<Option<Platform>, Status> {
    if text.is_empty() {
        return Ok(None);
    }
    let platform =
        Platform::parse(text).map_err(|error| Status::invalid_argument(error.to_string()))?;
    Ok(Some(platform.normalize()))
}

fn parse_name(text: &str) -> Result<Reference, Status> {
    Reference::parse(text).map_err(|error| Status::invalid_argument(error.to_string()))
}

#[async_trait]
impl ImagesService for Images {
    async fn list(
        &self,
        _: Request<wire::ListImagesRequest>,
    ) -> Result<Response<wire::ListImagesResponse>, Status> {
        let view = self.view();
        let mut images: Vec<wire::Image> =
            self.images().list().iter().map(|image| view.describe(image)).collect();
        let key = |image: &wire::Image| image.created.map(|at| (at.seconds, at.nanos));
        images.sort_by_key(|image| std::cmp::Reverse(key(image)));
        Ok(Response::new(wire::ListImagesResponse { images }))
    }

    async fn tag(
        &self,
        request: Request<wire::TagImageRequest>,
    ) -> Result<Response<wire::TagImageResponse>, Status> {
        let _busy = self.idle.work();
        let request = request.into_inner();
        let image = self.find(&request.source)?;
        let target = parse_name(&request.target)?.with_default_tag();
        if target.digest().is_some() {
            return Err(Status::invalid_argument(
                "refusing to create a tag with a digest reference",
            ));
        }
        self.name(&target.to_string(), image.descriptor).await?;
        Ok(Response::new(wire::TagImageResponse {}))
    }

    async fn remove(
        &self,
        request: Request<wire::RemoveImageRequest>,
    ) -> Result<Response<wire::RemoveImageResponse>, Status> {
        let _busy = self.idle.work();
        self.remove_image(request.into_inner()).await.map(Response::new)
    }

    async fn inspect(
        &self,
        request: Request<wire::InspectImageRequest>,
    ) -> Result<Response<wire::InspectImageResponse>, Status> {
        self.inspect_image(request.get_ref()).map(Response::new)
    }

    type PullStream = Answers<wire::TransferEvent>;

    async fn pull(
        &self,
        request: Request<wire::PullRequest>,
    ) -> Result<Response<Self::PullStream>, Status> {
        self.start_pull(request.into_inner()).map(Response::new)
    }

    type PushStream = Answers<wire::TransferEvent>;

    async fn push(
        &self,
        request: Request<wire::PushRequest>,
    ) -> Result<Response<Self::PushStream>, Status> {
        self.start_push(request.into_inner()).map(Response::new)
    }

    type SaveStream = Answers<wire::Chunk>;

    async fn save(
        &self,
        request: Request<wire::SaveRequest>,
    ) -> Result<Response<Self::SaveStream>, Status> {
        self.start_save(request.into_inner()).map(Response::new)
    }

    type LoadStream = Answers<wire::LoadEvent>;

    async fn load(
        &self,
        request: Request<Streaming<wire::Chunk>>,
    ) -> Result<Response<Self::LoadStream>, Status> {
        Ok(Response::new(self.start_load(request.into_inner())))
    }
}
