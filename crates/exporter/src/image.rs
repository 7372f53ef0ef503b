//! Type `image`: names in the image store, and pushes to registries.

use std::{collections::BTreeMap, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use oci::{
    Descriptor, Reference, Registry, select::ANNOTATION_REFERENCE_DIGEST, types::MAX_CONFIG,
};
use store::{Blob, Store};

use crate::{
    ExportError, ExportRequest, Exported, Exporter, Finish, ImageOptions, Progress, Step,
    assemble::{Assembled, Assembly, response},
    attest::ARTIFACT_TYPE,
    attrs::Attrs,
    blobs::Blobs,
    options::annotations_and_metadata,
};

/// Blobs of one push in flight; the registry client has its own limit per host.
const PUSHES: usize = 8;

/// See the module.
pub(crate) struct Image {
    store: Arc<Store>,
    attrs: BTreeMap<String, String>,
    options: ImageOptions,
    metadata: BTreeMap<String, Bytes>,
    keep: bool,
    push: bool,
    push_by_digest: bool,
    insecure: bool,
    unpack: bool,
    allow_incomplete: bool,
    name_canonical: bool,
    dangling_prefix: String,
    dangling_empty_only: bool,
}

impl Image {
    pub(crate) fn new(
        store: Arc<Store>,
        attrs: BTreeMap<String, String>,
        compatibility: u32,
    ) -> Result<Self, ExportError> {
        let mut left = Attrs::new("image", attrs.clone());
        let mut options = ImageOptions::load(&mut left, compatibility, true)?;
        let image = Self {
            store,
            attrs,
            keep: left.bool("store", Some(true))?.unwrap_or(true),
            push: left.flag("push")?,
            push_by_digest: left.flag("push-by-digest")?,
            insecure: left.flag("registry.insecure")?,
            unpack: left.flag("unpack")?,
            allow_incomplete: left.flag("unsafe-internal-store-allow-incomplete")?,
            name_canonical: left.flag("name-canonical")?,
            dangling_prefix: left.take("dangling-name-prefix").unwrap_or_default(),
            dangling_empty_only: left.flag("danging-name-empty-only")?,
            metadata: annotations_and_metadata(left, &mut options.annotations)?,
            options,
        };
        if image.unpack && image.options.rewrite_timestamp {
            let text = "exporter option \"rewrite-timestamp\" conflicts with \"unpack\"";
            return Err(ExportError::Conflict(text.into()));
        }
        if image.options.referrers && !image.push && !image.is_kept() {
            let text = "exporter option \"attestation-referrers\" needs \"push=true\" or a name: \
                        nobody else keeps what refers to an image";
            return Err(ExportError::Conflict(text.into()));
        }
        if image.push && image.options.names != "*" {
            for name in image.options.names.split(',').filter(|name| !name.is_empty()) {
                push_target(name, image.push_by_digest)?;
            }
        }
        Ok(image)
    }

    /// Whether the store will know it by some name.
    fn is_kept(&self) -> bool {
        self.keep && !(self.options.names.is_empty() && self.dangling_prefix.is_empty())
    }

    /// Names of the export, the dangling one included, and whether canonical ones are wanted.
    fn all_names(&self, names: String, root: &Descriptor) -> (String, bool) {
        let dangling =
            !self.dangling_prefix.is_empty() && (!self.dangling_empty_only || names.is_empty());
        if !dangling {
            return (names, self.name_canonical);
        }
        let extra = format!("{}@{}", self.dangling_prefix, root.digest);
        match names.is_empty() {
            true => (extra, false),
            false => (format!("{names},{extra}"), self.name_canonical),
        }
    }

    async fn tag(&self, name: &str, canonical: bool, root: &Descriptor) -> Result<(), ExportError> {
        let mut keys = vec![stored_name(name)];
        if canonical && !name.contains('@') {
            keys.push(canonical_name(name, root));
        }
        for key in keys {
            let descriptor = Descriptor { annotations: BTreeMap::new(), ..root.clone() };
            let tagged = self.store.images().tag(&key, descriptor).await;
            tagged.map_err(ExportError::store(format!("name image {key}")))?;
        }
        Ok(())
    }

    async fn unpack_trees(&self, request: &ExportRequest, name: &str) -> Result<(), ExportError> {
        let _step = Step::begin(&request.progress, format!("unpacking to {name}"));
        let platforms = crate::assemble::platforms(&request.result, &request.platform)?;
        let ranked = platforms
            .iter()
            .filter_map(|p| Some((p.platform.rank_for(&request.platform)?, p)))
            .min_by_key(|(rank, _)| *rank);
        let Some((_, platform)) = ranked else { return Ok(()) };
        let Some(tree) = &platform.tree else { return Ok(()) };
        let unpacked = tree.ensure_local(store::no_progress()).await;
        unpacked.map_err(ExportError::store(format!("unpack {name}")))
    }
}

#[async_trait]
impl Exporter for Image {
    fn kind(&self) -> &'static str {
        "image"
    }

    fn name(&self) -> &'static str {
        "exporting to image"
    }

    fn attrs(&self) -> &BTreeMap<String, String> {
        &self.attrs
    }

    fn is_image(&self) -> bool {
        true
    }

    async fn export(&self, mut request: ExportRequest) -> Result<Exported, ExportError> {
        request.result.metadata.extend(self.metadata.clone());
        let has_attestations = request.result.attestations.values().any(|list| !list.is_empty());
        let settled = self.options.settle(false, has_attestations)?;
        let names = self.options.names(&request.result.metadata);
        let assembly = Assembly {
            store: &self.store,
            request: &request,
            options: &self.options,
            names: &names,
            settled,
        };
        let (assembled, mut holds) = assembly.run().await?;
        let blobs = Blobs::new(self.store.clone(), &assembled);
        let root = assembled.root.clone();
        let (names, canonical) = self.all_names(names, &root);
        let targets: Vec<_> =
            names.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect();
        if self.keep && !targets.is_empty() {
            if !self.allow_incomplete {
                holds.extend(blobs.fetch_all().await?);
            }
            for name in &targets {
                {
                    let _step = Step::begin(&request.progress, format!("naming to {name}"));
                    self.tag(name, canonical, &root).await?;
                }
                if self.unpack {
                    self.unpack_trees(&request, name).await?;
                }
            }
        }
        let mut response = response(&assembled, &root);
        if !targets.is_empty() {
            response.insert("image.name".to_owned(), names);
        }
        let finish = (self.push && !targets.is_empty()).then(|| {
            let push = Push {
                registry: (request.registries)(self.insecure),
                progress: request.progress.clone(),
                assembled,
                blobs,
                by_digest: self.push_by_digest,
                _holds: holds,
            };
            Box::pin(async move { push.all(&targets).await }) as Finish
        });
        Ok(Exported { response, descriptor: Some(root), finish })
    }
}

/// The name under which the image store knows an image: complete where it can be completed.
fn stored_name(name: &str) -> String {
    match Reference::parse(name) {
        Ok(reference) => reference.with_default_tag().to_string(),
        Err(_) => name.to_owned(),
    }
}

fn canonical_name(name: &str, root: &Descriptor) -> String {
    format!("{}@{}", stored_name(name), root.digest)
}

/// The reference to push to; by digest there may be no tag.
fn push_target(name: &str, by_digest: bool) -> Result<Reference, ExportError> {
    let reference = Reference::parse(name)?;
    if !by_digest {
        return Ok(reference.with_default_tag());
    }
    if reference.tag().is_some() || reference.digest().is_some() {
        return Err(ExportError::Conflict(format!("can't push tagged ref {name} by digest")));
    }
    Ok(reference)
}

/// A push with everything it needs, after the request is gone.
struct Push {
    registry: Arc<dyn Registry>,
    progress: Arc<dyn Progress>,
    assembled: Assembled,
    blobs: Blobs,
    by_digest: bool,
    _holds: Vec<Blob>,
}

impl Push {
    async fn all(&self, names: &[String]) -> Result<(), ExportError> {
        for name in names {
            let target = push_target(name, self.by_digest)?;
            self.one(&target)
                .await
                .map_err(|source| ExportError::Push { name: name.clone(), source })?;
        }
        Ok(())
    }

    async fn one(&self, target: &Reference) -> oci::Result<()> {
        let repository = target.without_tag_and_digest();
        let root = &self.assembled.root;
        let unchanged;
        {
            let mut step = Step::begin(&self.progress, "pushing layers");
            unchanged = self.registry.has_manifest(target, root).await?;
            let members = self.assembled.members.iter().filter(|_| !unchanged);
            let members = members.chain(&self.assembled.referrers);
            let all =
                members.flat_map(|m| m.layers.iter().map(|l| &l.descriptor).chain([&m.config]));
            let mut seen = std::collections::BTreeSet::new();
            // Foreign layers stay where they are.
            let wanted: Vec<_> =
                all.filter(|blob| blob.urls.is_empty() && seen.insert(blob.digest)).collect();
            let total = wanted.iter().map(|blob| blob.size).sum();
            let pushes: Vec<_> = wanted.iter().map(|blob| self.blob(&repository, blob)).collect();
            let mut pushes = stream::iter(pushes).buffer_unordered(PUSHES);
            let mut done = 0;
            while let Some(size) = pushes.try_next().await? {
                done += size;
                step.at(done, total);
            }
        }
        let id = format!("pushing manifest for {target}@{}", root.digest);
        let _step = Step::begin(&self.progress, id);
        if self.assembled.is_index && !unchanged {
            let members = self.assembled.members.iter();
            let pushes = members.map(|member| self.manifest(&repository, &member.manifest));
            let pushes: Vec<_> = pushes.collect();
            let mut pushes = stream::iter(pushes).buffer_unordered(PUSHES);
            while let Some(()) = pushes.try_next().await? {}
        }
        if !unchanged {
            self.manifest(target, root).await?;
        }
        for referrer in &self.assembled.referrers {
            let about = referrer.manifest.annotations.get(ANNOTATION_REFERENCE_DIGEST);
            let image = self.assembled.members.iter().map(|member| member.manifest.digest);
            let mut image = image.filter(|digest| about == Some(&digest.to_string()));
            let image = image.next().expect("a statement is about a member");
            self.manifest(&repository, &referrer.manifest).await?;
            let descriptor = Descriptor {
                artifact_type: ARTIFACT_TYPE.to_owned(),
                annotations: BTreeMap::new(),
                ..referrer.manifest.clone()
            };
            oci::registry::refer(&*self.registry, &repository, descriptor, image).await?;
        }
        Ok(())
    }

    async fn blob(&self, repository: &Reference, blob: &Descriptor) -> oci::Result<u64> {
        let sources = self.blobs.sources(&blob.digest);
        self.registry.push_blob(repository, blob, &self.blobs, &sources).await?;
        Ok(blob.size)
    }

    async fn manifest(&self, target: &Reference, manifest: &Descriptor) -> oci::Result<()> {
        let body = oci::content::read_all(&self.blobs, manifest, MAX_CONFIG).await?;
        self.registry.push_manifest(target, manifest, body).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_the_store_and_on_registries() {
        assert_eq!(stored_name("myapp"), "docker.io/library/myapp:latest");
        assert_eq!(stored_name("x@y"), "x@y");
        assert_eq!(push_target("h:5000/a", false).unwrap().to_string(), "h:5000/a:latest");
        assert_eq!(push_target("h:5000/a", true).unwrap().to_string(), "h:5000/a");
        let error = push_target("h:5000/a:1", true).unwrap_err();
        assert_eq!(error.to_string(), "can't push tagged ref h:5000/a:1 by digest");
    }
}
