//! What the store knows of an image, as clients see it.

use std::collections::{BTreeMap, HashMap};

use base::{Digest, Platform};
use oci::{Descriptor, ImageConfig, Index, Manifest, select};
use proto::rbuild::v1 as wire;
use store::{Image, Store};

/// Manifests and configs are small; anything larger is damaged.
const MAX_DOCUMENT: u64 = 16 << 20;
/// How names of images without a name begin.
pub const DANGLING: &str = "<none>@";

/// Reads images of a store; sizes are as of its making.
pub struct View<'a> {
    pub store: &'a Store,
    /// The daemon's own platform.
    pub host: &'a Platform,
    /// Bytes of unpacked layers.
    pub sizes: HashMap<Digest, u64>,
    /// Containers by image id.
    pub containers: BTreeMap<String, u32>,
}

/// One manifest of an image with what is here of it.
pub struct Member {
    pub platform: Platform,
    pub descriptor: Descriptor,
    /// Absent if it is not here.
    pub manifest: Option<Manifest>,
    pub config: ImageConfig,
    pub attestation: bool,
}

impl View<'_> {
    fn document<T: serde::de::DeserializeOwned>(&self, digest: &Digest) -> Option<T> {
        let bytes = self.store.content().read(digest, MAX_DOCUMENT).ok()?;
        serde_json::from_slice(&bytes).ok()
    }

    /// The manifests behind a descriptor.
    pub fn members(&self, root: &Descriptor) -> Vec<Member> {
        let entries = match oci::media::is_index(&root.media_type) {
            true => self.document::<Index>(&root.digest).map(|index| index.manifests),
            false => Some(vec![root.clone()]),
        };
        entries.unwrap_or_default().into_iter().map(|entry| self.member(entry)).collect()
    }

    fn member(&self, descriptor: Descriptor) -> Member {
        let manifest: Option<Manifest> = self.document(&descriptor.digest);
        let config = manifest.as_ref().and_then(|it| self.document(&it.config.digest));
        let config: ImageConfig = config.unwrap_or_default();
        let platform = descriptor.platform.clone().unwrap_or_else(|| config.platform());
        let kind = descriptor.annotations.get(select::ANNOTATION_REFERENCE_TYPE);
        let attestation = kind.is_some_and(|kind| kind == "attestation-manifest");
        Member { platform, descriptor, manifest, config, attestation }
    }

    /// Whether all blobs of a member are here.
    pub fn is_complete(&self, member: &Member) -> bool {
        let content = self.store.content();
        member.manifest.as_ref().is_some_and(|manifest| {
            let blobs = manifest.layers.iter().chain([&manifest.config]);
            blobs.filter(|blob| blob.urls.is_empty()).all(|blob| content.contains(&blob.digest))
        })
    }

    /// The member that suits a platform best, of those that are here if there are any.
    pub fn best<'m>(&self, members: &'m [Member], wanted: &Platform) -> Option<&'m Member> {
        let images = || members.iter().filter(|member| !member.attestation);
        let ranked = images().filter_map(|member| {
            let rank = member.platform.rank_for(wanted)?;
            Some(((member.manifest.is_none(), rank), member))
        });
        ranked.min_by_key(|(rank, _)| *rank).map(|(_, member)| member)
    }

    /// The member that stands for the image in lists: the daemon's, else any that is here.
    pub fn shown<'m>(&self, members: &'m [Member]) -> Option<&'m Member> {
        let usual = self.best(members, self.host).filter(|member| member.manifest.is_some());
        usual.or_else(|| {
            members.iter().find(|member| !member.attestation && member.manifest.is_some())
        })
    }

    /// Bytes of each layer: unpacked, or of its blob.
    pub fn layer_sizes(&self, member: &Member) -> Vec<u64> {
        let Some(manifest) = &member.manifest else { return Vec::new() };
        let diff_ids = &member.config.rootfs.diff_ids;
        let unpacked = |at: usize| diff_ids.get(at).and_then(|id| self.sizes.get(id)).copied();
        let layers = manifest.layers.iter().enumerate();
        layers.map(|(at, layer)| unpacked(at).unwrap_or(layer.size)).collect()
    }

    fn member_to_wire(&self, member: &Member) -> wire::ImageMember {
        let blobs = member.manifest.iter().flat_map(|it| it.layers.iter().chain([&it.config]));
        let content: u64 = blobs.map(|blob| blob.size).sum::<u64>() + member.descriptor.size;
        let config = member.manifest.as_ref().map(|it| it.config.digest.to_string());
        wire::ImageMember {
            platform: Some((&member.platform).into()),
            digest: member.descriptor.digest.to_string(),
            config_digest: config.unwrap_or_default(),
            size: number(self.layer_sizes(member).into_iter().sum()),
            complete: self.is_complete(member),
            attestation: member.attestation,
            content_size: number(content),
        }
    }

    /// An image as listed.
    pub fn describe(&self, image: &Image) -> wire::Image {
        let members = self.members(&image.descriptor);
        let shown = self.shown(&members);
        let config = shown.and_then(|member| member.manifest.as_ref()).map(|it| it.config.digest);
        let config_digest = config.map(|digest| digest.to_string()).unwrap_or_default();
        let created = shown.and_then(|member| member.config.created.as_deref());
        let created = created.and_then(base::time::parse_rfc3339);
        let labels = shown.map(|member| member.config.config.labels.clone()).unwrap_or_default();
        let size = shown.map(|member| self.layer_sizes(member).into_iter().sum()).unwrap_or(0);
        let images = members.iter().filter(|member| !member.attestation);
        wire::Image {
            name: if is_dangling(&image.name) { String::new() } else { image.name.clone() },
            digest: image.descriptor.digest.to_string(),
            created: Some(created.unwrap_or_else(|| image.created_at()).into()),
            size: number(size),
            platforms: images.map(|member| (&member.platform).into()).collect(),
            labels,
            containers: self.containers.get(&config_digest).copied().unwrap_or(0),
            members: members.iter().map(|member| self.member_to_wire(member)).collect(),
            config_digest,
        }
    }
}

/// Names made up for images without one.
pub fn is_dangling(name: &str) -> bool {
    name.starts_with("<none>") || name.split('@').next().is_some_and(|head| head.is_empty())
}

/// The id of an image as docker shows it: that of its config.
pub fn id_of(image: &wire::Image) -> &str {
    if image.config_digest.is_empty() { &image.digest } else { &image.config_digest }
}

pub fn number(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
