//! The image names of the store, for `rbuildctl images`, `tag` and `rmi`.

use std::{collections::BTreeMap, sync::Arc};

use async_trait::async_trait;
use base::{Digest, Platform};
use engine::{Engine, run::Runner};
use oci::{Descriptor, ImageConfig, Index, Manifest, Reference};
use proto::rbuild::v1::{self as wire, images_server::Images as ImagesService};
use store::Image;
use tonic::{Request, Response, Status};

use crate::idle::Idle;

/// Manifests and configs are small; anything larger is damaged.
const MAX_DOCUMENT: u64 = 16 << 20;

/// Serves the image names of one engine's store.
#[derive(Clone)]
pub struct Images {
    pub engine: Arc<Engine>,
    pub runner: Arc<Runner>,
    pub idle: Arc<Idle>,
}

impl Images {
    fn images(&self) -> store::Images<'_> {
        self.engine.store().images()
    }

    fn document<T: serde::de::DeserializeOwned>(&self, digest: &Digest) -> Option<T> {
        let bytes = self.engine.store().content().read(digest, MAX_DOCUMENT).ok()?;
        serde_json::from_slice(&bytes).ok()
    }

    /// The manifests behind a descriptor, each with its platform.
    fn manifests(&self, descriptor: &Descriptor) -> Vec<(Option<Platform>, Digest)> {
        if !oci::media::is_index(&descriptor.media_type) {
            return vec![(descriptor.platform.clone(), descriptor.digest)];
        }
        let index: Option<Index> = self.document(&descriptor.digest);
        let members = index.into_iter().flat_map(|index| index.manifests);
        members
            .filter(|member| {
                member.annotations.get("vnd.docker.reference.type").map(String::as_str)
                    != Some("attestation-manifest")
            })
            .map(|member| (member.platform.clone(), member.digest))
            .collect()
    }

    fn describe(&self, image: &Image) -> wire::Image {
        let host = &self.engine.worker().platforms[0];
        let manifests = self.manifests(&image.descriptor);
        let mut platforms = Vec::new();
        let mut chosen: Option<(usize, Manifest, ImageConfig)> = None;
        for (platform, digest) in manifests {
            let Some(manifest) = self.document::<Manifest>(&digest) else { continue };
            let config: ImageConfig = self.document(&manifest.config.digest).unwrap_or_default();
            let platform = platform.unwrap_or_else(|| Platform {
                os: config.os.clone(),
                architecture: config.architecture.clone(),
                variant: config.variant.clone(),
                ..Platform::default()
            });
            let rank = platform.rank_for(host).unwrap_or(usize::MAX);
            platforms.push((&platform).into());
            if chosen.as_ref().is_none_or(|(best, _, _)| rank < *best) {
                chosen = Some((rank, manifest, config));
            }
        }
        let (config_digest, created, size) = match chosen {
            Some((_, manifest, config)) => {
                let created = config.created.as_deref().and_then(base::time::parse_rfc3339);
                let size = manifest.layers.iter().map(|layer| layer.size).sum::<u64>();
                let size = i64::try_from(size).unwrap_or(i64::MAX);
                (manifest.config.digest.to_string(), created, size)
            }
            None => (String::new(), None, 0),
        };
        wire::Image {
            name: if is_dangling(&image.name) { String::new() } else { image.name.clone() },
            digest: image.descriptor.digest.to_string(),
            config_digest,
            created: Some(created.unwrap_or_else(|| image.created_at()).into()),
            size,
            platforms,
        }
    }

    /// All names whose image has this id: a config or manifest digest, or a prefix of one.
    fn by_id(&self, wanted: &str) -> Vec<(Image, wire::Image)> {
        let hex = wanted.strip_prefix("sha256:").unwrap_or(wanted);
        if hex.len() < 4 || !hex.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Vec::new();
        }
        let described = self.images().list().into_iter().map(|image| {
            let wire = self.describe(&image);
            (image, wire)
        });
        let starts = |digest: &str| {
            digest.strip_prefix("sha256:").is_some_and(|digest| digest.starts_with(hex))
        };
        described.filter(|(_, wire)| starts(&wire.config_digest) || starts(&wire.digest)).collect()
    }

    /// The image that a name or an id means.
    fn find(&self, wanted: &str) -> Result<Image, Status> {
        if let Ok(reference) = Reference::parse(wanted)
            && let Some(image) = self.images().get(&reference.with_default_tag().to_string())
        {
            return Ok(image);
        }
        let matching = self.by_id(wanted);
        let mut ids: BTreeMap<String, Image> = BTreeMap::new();
        for (image, wire) in matching {
            ids.insert(wire.config_digest, image);
        }
        match ids.len() {
            0 => Err(Status::not_found(format!("no such image: {wanted}"))),
            1 => Ok(ids.into_values().next().expect("there is one")),
            _ => Err(Status::invalid_argument(format!(
                "{wanted} is the beginning of several image ids; give more of it"
            ))),
        }
    }
}

/// Names made up for images without one.
fn is_dangling(name: &str) -> bool {
    name.starts_with("<none>") || name.split('@').next().is_some_and(|head| head.is_empty())
}

fn failed(error: store::StoreError) -> Status {
    Status::unknown(error.to_string())
}

#[async_trait]
impl ImagesService for Images {
    async fn list(
        &self,
        _: Request<wire::ListImagesRequest>,
    ) -> Result<Response<wire::ListImagesResponse>, Status> {
        let mut images: Vec<wire::Image> =
            self.images().list().iter().map(|image| self.describe(image)).collect();
        let key = |image: &wire::Image| image.created.map(|at| (at.seconds, at.nanos));
        images.sort_by_key(|image| std::cmp::Reverse(key(image)));
        Ok(Response::new(wire::ListImagesResponse { images }))
    }

    async fn tag(
        &self,
        request: Request<wire::TagImageRequest>,
    ) -> Result<Response<wire::TagImageResponse>, Status> {
        let _busy = self.idle.busy();
        let request = request.into_inner();
        let image = self.find(&request.source)?;
        let target = Reference::parse(&request.target).map_err(|error| {
            Status::invalid_argument(format!(
                "{:?} is not a valid image name: {error}",
                request.target
            ))
        })?;
        self.images().tag(&target.to_string(), image.descriptor).await.map_err(failed)?;
        Ok(Response::new(wire::TagImageResponse {}))
    }

    async fn remove(
        &self,
        request: Request<wire::RemoveImageRequest>,
    ) -> Result<Response<wire::RemoveImageResponse>, Status> {
        let _busy = self.idle.busy();
        let request = request.into_inner();
        let named = Reference::parse(&request.reference)
            .ok()
            .and_then(|name| self.images().get(&name.with_default_tag().to_string()));
        let by_id = named.is_none();
        let going: Vec<Image> = match named {
            Some(image) => vec![image],
            None => self.by_id(&request.reference).into_iter().map(|(image, _)| image).collect(),
        };
        let Some(first) = going.first() else {
            return Err(Status::not_found(format!("no such image: {}", request.reference)));
        };
        let id = self.describe(first).config_digest;
        if by_id && going.len() > 1 && !request.force {
            let names: Vec<&str> = going.iter().map(|image| image.name.as_str()).collect();
            return Err(Status::failed_precondition(format!(
                "image {} has several names ({}); remove them by name or use --force",
                request.reference,
                names.join(", ")
            )));
        }
        if !request.force {
            let used = self.runner.images_in_use();
            let in_use = going.iter().find(|image| {
                used.iter().any(|name| {
                    Reference::parse(name).is_ok_and(|name| name.to_string() == image.name)
                })
            });
            if let Some(image) = in_use {
                return Err(Status::failed_precondition(format!(
                    "image {} is used by a running container; stop it first or use --force",
                    image.name
                )));
            }
        }
        let mut response = wire::RemoveImageResponse::default();
        for image in &going {
            self.images().remove(&image.name).await.map_err(failed)?;
            response.untagged.push(image.name.clone());
        }
        let digest = first.descriptor.digest;
        if !self.images().list().iter().any(|image| image.descriptor.digest == digest) {
            response.deleted.push(if id.is_empty() { digest.to_string() } else { id });
        }
        Ok(Response::new(response))
    }
}
