//! From trees and metadata to configs, manifests and an index in the content store.

use std::{collections::BTreeMap, sync::Arc};

use base::{Digest, Platform};
use bytes::Bytes;
use futures_util::future::try_join_all;
use oci::{
    Descriptor, ImageConfig, Index, Manifest,
    compress::{Decoder, LayerWriter, Limits},
    media, types,
};
use serde::Deserialize;
use store::{Blob, BlobInfo, LayerBlob, Ref, Store};

use crate::{
    AnnotationKind, Annotations, Attestation, ExportError, ExportRequest, ExportResult,
    ImageOptions, PlatformResult, Step,
    attest::{self, StatementSubject},
    config::{self, LayerNote},
    contents,
    options::Settled,
    rewrite,
};

/// Label of an image's manifest in the content store: the digest of the manifest of statements that
/// refers to it.
pub const LABEL_REFERRERS: &str = "rbuild/referrers";
/// Metadata key of the image config.
pub const IMAGE_CONFIG: &str = "containerimage.config";
const BASE_CONFIG: &str = "containerimage.base.config";
const PLATFORMS: &str = "refs.platforms";
const EPOCH: &str = "source.date.epoch";

/// An image in the content store, apart from layers that may still be elsewhere.
pub(crate) struct Assembled {
    /// Manifest or index.
    pub root: Descriptor,
    /// Config of a single manifest.
    pub config: Option<Digest>,
    /// Epoch of the export as a whole.
    pub epoch: Option<i64>,
    /// Manifests in the order of the index.
    pub members: Vec<Member>,
    /// Manifests about members that no index lists.
    pub referrers: Vec<Member>,
    /// Whether `root` is an index over the members (else it is the only member).
    pub is_index: bool,
}

/// One manifest with everything below it.
pub(crate) struct Member {
    pub manifest: Descriptor,
    pub config: Descriptor,
    pub layers: Vec<Layer>,
}

/// A blob of a manifest.
#[derive(Clone)]
pub(crate) struct Layer {
    /// As in the manifest.
    pub descriptor: Descriptor,
    /// The layer's own description of where it comes from; absent for statements.
    pub origin: Option<(Ref, LayerBlob)>,
}

impl Assembled {
    /// All manifests, those that refer to others last.
    pub fn manifests(&self) -> impl Iterator<Item = &Member> {
        self.members.iter().chain(&self.referrers)
    }

    /// All blobs, each once, children before parents.
    pub fn blobs(&self) -> Vec<Layer> {
        let plain =
            |descriptor: &Descriptor| Layer { descriptor: descriptor.clone(), origin: None };
        let mut all = Vec::new();
        for member in self.manifests() {
            all.extend(member.layers.iter().cloned());
            all.push(plain(&member.config));
        }
        all.extend(self.manifests().map(|member| plain(&member.manifest)));
        if self.is_index {
            all.push(plain(&self.root));
        }
        let mut seen = std::collections::BTreeSet::new();
        all.retain(|layer| seen.insert(layer.descriptor.digest));
        all
    }
}

/// What the platforms of a result are called, in order; `native` is the one of results that do
/// not say.
pub fn platforms(
    result: &ExportResult,
    native: &Platform,
) -> Result<Vec<PlatformResult>, ExportError> {
    #[derive(Deserialize)]
    struct Entry {
        #[serde(rename = "ID", alias = "id", default)]
        id: String,
        #[serde(rename = "Platform", alias = "platform", default)]
        platform: Platform,
    }
    #[derive(Default, Deserialize)]
    struct List {
        #[serde(rename = "Platforms", alias = "platforms", default)]
        platforms: Vec<Entry>,
    }
    let bad = |reason: String| ExportError::result(PLATFORMS, reason);
    let entries = match result.metadata.get(PLATFORMS) {
        Some(json) => {
            let list: Option<List> =
                serde_json::from_slice(json).map_err(|error| bad(error.to_string()))?;
            let list = list.unwrap_or_default();
            if list.platforms.is_empty() {
                return Err(bad("invalid empty platforms index for exporter".into()));
            }
            list.platforms
        }
        None if !result.by_platform.is_empty() => {
            return Err(bad("unable to export multiple refs, missing platforms mapping".into()));
        }
        None => {
            // What is no config at all is refused later, in words of its own.
            let said = |body: &&bytes::Bytes| !matches!(body.trim_ascii(), b"" | b"null");
            let platform = match result.metadata.get(IMAGE_CONFIG).filter(said) {
                Some(body) => ImageConfig::parse(IMAGE_CONFIG, body)?.platform(),
                None => native.clone(),
            };
            let platform = match (platform.os.is_empty(), platform.architecture.is_empty()) {
                (false, false) => platform,
                // The config itself is refused later, in words of its own.
                (true, true) => native.clone(),
                _ => {
                    let reason = "os and architecture must be specified together";
                    return Err(ExportError::result("invalid image config", reason));
                }
            };
            vec![Entry { id: platform.normalize().format_all(), platform }]
        }
    };
    let mut found: Vec<PlatformResult> = Vec::new();
    for entry in entries {
        if entry.id.is_empty() {
            return Err(bad("invalid empty platform key for exporter".into()));
        }
        if entry.platform.os.is_empty() || entry.platform.architecture.is_empty() {
            return Err(bad(format!("invalid platform value of `{}` for exporter", entry.id)));
        }
        let tree = match result.by_platform.get(&entry.id) {
            Some(tree) => tree.clone(),
            None if result.by_platform.is_empty() => result.single.clone(),
            None => return Err(bad(format!("failed to find ref for ID {}", entry.id))),
        };
        found.push(PlatformResult { platform: entry.platform.normalize(), id: entry.id, tree });
    }
    if result.by_platform.is_empty() && found.len() > 1 {
        let reason = "cannot export multiple platforms without multi-platform enabled";
        return Err(bad(reason.into()));
    }
    Ok(found)
}

/// Metadata of one platform: its own value, else the one for all.
fn metadata<'a>(result: &'a ExportResult, key: &str, platform: &str) -> Option<&'a Bytes> {
    result.metadata.get(&format!("{key}/{platform}")).or_else(|| result.metadata.get(key))
}

/// The epoch that metadata asks for.
pub(crate) fn metadata_epoch(
    result: &ExportResult,
    platform: Option<&str>,
) -> Result<Option<i64>, ExportError> {
    let value = match platform {
        Some(platform) => metadata(result, EPOCH, platform),
        None => result.metadata.get(EPOCH),
    };
    let Some(value) = value.filter(|value| !value.is_empty()) else { return Ok(None) };
    let text = String::from_utf8_lossy(value);
    match text.parse() {
        Ok(seconds) => Ok(Some(seconds)),
        Err(_) => Err(ExportError::result(
            EPOCH,
            format!("invalid SOURCE_DATE_EPOCH from frontend: {text:?}"),
        )),
    }
}

/// Puts an image together.
pub(crate) struct Assembly<'a> {
    pub store: &'a Arc<Store>,
    pub request: &'a ExportRequest,
    pub options: &'a ImageOptions,
    /// Names it will have, as given; for the subjects of statements.
    pub names: &'a str,
    pub settled: Settled,
}

impl Assembly<'_> {
    /// Makes blobs, configs, manifests and, if needed, the index.
    pub async fn run(&self) -> Result<(Assembled, Vec<Blob>), ExportError> {
        let result = &self.request.result;
        let platforms = platforms(result, &self.request.platform)?;
        // Statements for inlining only do not make an index of a single image, but an index that
        // exists anyway has them all: so does the peer.
        let attestations: Vec<&[Attestation]> = platforms
            .iter()
            .map(|p| result.attestations.get(&p.id).map_or(&[][..], Vec::as_slice))
            .collect();
        let wanted = |a: &Attestation| self.options.inline_attestations || !a.inline_only;
        let refer = self.options.referrers;
        let is_index = !result.by_platform.is_empty()
            || !refer && attestations.iter().any(|list| list.iter().any(wanted));
        let annotations = self.annotations(&platforms, is_index)?;
        if (is_index || refer) && !self.settled.oci && attestations.iter().any(|a| !a.is_empty()) {
            let text = "cannot export attestations with \"oci-mediatypes=false\"";
            return Err(ExportError::Conflict(text.into()));
        }
        let layers = {
            let _step = Step::begin(&self.request.progress, "exporting layers");
            let each = platforms.iter().map(|p| self.layers(p.tree.as_ref()));
            try_join_all(each).await?
        };
        let mut holds = Vec::new();
        let (mut members, mut statements) = (Vec::new(), Vec::new());
        for ((platform, layers), attestations) in platforms.iter().zip(layers).zip(attestations) {
            let for_platform = is_index.then_some(&platform.platform);
            let member =
                self.image(platform, for_platform, layers, &annotations, &mut holds).await?;
            let stated = if refer { attestations.iter().any(wanted) } else { is_index };
            if stated && !attestations.is_empty() {
                let image = &member;
                let made = self.statements(&platform.platform, image, attestations, &mut holds);
                statements.push(made.await?);
            }
            members.push(member);
        }
        let mut referrers = Vec::new();
        match refer {
            true => {
                for statement in &statements {
                    self.remember(statement);
                }
                referrers = statements;
            }
            false => members.extend(statements),
        }
        let epoch = match self.options.epoch {
            Some(epoch) => epoch,
            None => metadata_epoch(result, None)?,
        };
        if !is_index {
            let member = members.first().expect("a result has at least one platform");
            let assembled = Assembled {
                root: member.manifest.clone(),
                config: Some(member.config.digest),
                epoch,
                members,
                referrers,
                is_index,
            };
            return Ok((assembled, holds));
        }
        let list = members.iter().map(|member| member.manifest.clone()).collect();
        let mut index = Index::new(self.settled.oci, list);
        index.annotations = annotations.get(AnnotationKind::Index, None);
        let body = index.to_json();
        let mut root = Descriptor::of(&index.media_type, &body);
        let _step =
            Step::begin(&self.request.progress, format!("exporting manifest list {}", root.digest));
        let children = members.iter().map(|member| member.manifest.digest);
        holds.push(self.put(&root, &body, children)?);
        root.annotations = annotations.get(AnnotationKind::IndexDescriptor, None);
        Ok((Assembled { root, config: None, epoch, members, referrers, is_index }, holds))
    }

    /// Attributes' annotations and those of the frontend, checked against the result.
    fn annotations(
        &self,
        platforms: &[PlatformResult],
        is_index: bool,
    ) -> Result<Annotations, ExportError> {
        let mut annotations = self.options.annotations.clone();
        let mut more = Annotations::default();
        for (key, value) in &self.request.result.metadata {
            more.take(key, &String::from_utf8_lossy(value))?;
        }
        annotations.merge(more);
        if let Some(unknown) =
            annotations.platforms().find(|id| !platforms.iter().any(|p| p.id == *id))
        {
            let text = format!("invalid annotation: no platform {unknown} found in source");
            return Err(ExportError::Conflict(text));
        }
        if !self.settled.oci && annotations.needs_oci() {
            let text = "cannot export annotations with \"oci-mediatypes=false\"";
            return Err(ExportError::Conflict(text.into()));
        }
        if !is_index && annotations.needs_index() {
            let text = "index annotations not supported for single platform export";
            return Err(ExportError::Conflict(text.into()));
        }
        Ok(annotations)
    }

    async fn layers(&self, tree: Option<&Ref>) -> Result<Vec<LayerBlob>, ExportError> {
        let Some(tree) = tree else { return Ok(Vec::new()) };
        let blobs = tree.blobs(self.options.blob_options()).await;
        blobs.map_err(ExportError::store("export layers"))
    }

    async fn image(
        &self,
        platform: &PlatformResult,
        for_platform: Option<&Platform>,
        blobs: Vec<LayerBlob>,
        annotations: &Annotations,
        holds: &mut Vec<Blob>,
    ) -> Result<Member, ExportError> {
        let result = &self.request.result;
        let base_config = metadata(result, BASE_CONFIG, &platform.id);
        let epoch = match self.options.epoch {
            Some(epoch) => epoch,
            None => metadata_epoch(result, Some(&platform.id))?,
        };
        let mut layers: Vec<_> = blobs
            .into_iter()
            .map(|blob| {
                // Made or fetched already: must not go before the image names it.
                holds.extend(self.store.content().hold(&blob.descriptor.digest));
                let tree = platform.tree.clone().expect("an empty tree has no layers");
                (
                    Layer {
                        descriptor: blob.descriptor.clone(),
                        origin: Some((tree, blob.clone())),
                    },
                    blob,
                )
            })
            .collect();
        if self.options.rewrite_timestamp {
            match epoch {
                Some(epoch) => self.rewrite(&mut layers, base_config, epoch, holds).await?,
                None => self
                    .request
                    .progress
                    .warn("rewrite-timestamp is specified, but no source-date-epoch was found"),
            }
        }
        let notes: Vec<_> = layers
            .iter()
            .map(|(_, blob)| LayerNote {
                diff_id: blob.diff_id,
                created_at: blob.created_at,
                description: blob.description.clone(),
            })
            .collect();
        let cache = match &self.request.inline_cache {
            Some(make) => {
                let list = layers.iter().map(|(layer, _)| layer.descriptor.clone()).collect();
                make(platform.tree.clone(), list).await?
            }
            None => None,
        };
        let given = metadata(result, IMAGE_CONFIG, &platform.id).filter(|body| !body.is_empty());
        let default = || config::default_config(&self.request.platform);
        let given = given.map_or_else(default, |body| body.to_vec());
        let body = config::patch(
            &given,
            base_config.map(|body| &body[..]),
            &notes,
            epoch,
            cache.as_deref(),
        )?;
        let oci = self.settled.oci;
        let config =
            Descriptor::of(if oci { media::OCI_CONFIG } else { media::DOCKER_CONFIG }, &body);
        let layers: Vec<_> = layers.into_iter().map(|(layer, _)| self.public(layer)).collect();
        let list = layers.iter().map(|layer| layer.descriptor.clone()).collect();
        let mut manifest = Manifest::new(oci, config.clone(), list);
        manifest.annotations = annotations.get(AnnotationKind::Manifest, for_platform);
        let manifest_body = manifest.to_json();
        let described = Descriptor {
            annotations: annotations.get(AnnotationKind::ManifestDescriptor, for_platform),
            platform: Some(platform.platform.clone()),
            ..Descriptor::of(&manifest.media_type, &manifest_body)
        };
        {
            let id = format!("exporting config {}", config.digest);
            let _step = Step::begin(&self.request.progress, id);
            holds.push(self.put(&config, &body, [])?);
        }
        let id = format!("exporting manifest {}", described.digest);
        let _step = Step::begin(&self.request.progress, id);
        let children = layers.iter().map(|layer| layer.descriptor.digest).chain([config.digest]);
        holds.push(self.put(&described, &manifest_body, children)?);
        Ok(Member { manifest: described, config, layers })
    }

    /// The layer as the manifest shows it: media type of the export, no notes to ourselves.
    fn public(&self, mut layer: Layer) -> Layer {
        let descriptor = &mut layer.descriptor;
        let keep = self.options.prefer_nondist_layers;
        descriptor.media_type =
            media::convert_layer(&descriptor.media_type, self.settled.oci, keep);
        if !media::is_foreign_layer(&descriptor.media_type) {
            descriptor.urls.clear();
        }
        if self.settled.oci {
            descriptor.annotations.retain(|key, _| {
                key != types::ANNOTATION_UNCOMPRESSED
                    && key != types::ANNOTATION_CREATED_AT
                    && !key.starts_with(types::ANNOTATION_DISTRIBUTION_SOURCE)
            });
        } else {
            descriptor.annotations.clear();
        }
        layer
    }

    async fn statements(
        &self,
        platform: &Platform,
        member: &Member,
        attestations: &[Attestation],
        holds: &mut Vec<Blob>,
    ) -> Result<Member, ExportError> {
        let image = &member.manifest;
        let names = self.names.split(',').filter(|name| !name.is_empty());
        let own = names
            .map(|name| {
                let name = attest::package_url("docker", name, Some(platform))?;
                Ok(StatementSubject::new(name, image.digest))
            })
            .collect::<Result<Vec<_>, ExportError>>()?;
        let mut statements = Vec::with_capacity(attestations.len());
        for attestation in attestations {
            let mut predicate = attestation.predicate.read().await?;
            if contents::is_list(attestation) {
                let layers = member.layers.iter();
                let layers: Vec<_> =
                    layers.map(|it| (it.descriptor.digest, it.origin.clone())).collect();
                let writers = contents::Writers::of(self.store.content(), &layers).await?;
                predicate = contents::complete(&predicate, &writers);
            }
            statements.push(attest::statement(attestation, &predicate, &own)?);
        }
        let made = attest::documents(&statements, image, self.settled.oci, self.settled.artifact);
        let id = format!("exporting attestation manifest {}", made.manifest.0.digest);
        let _step = Step::begin(&self.request.progress, id);
        for (descriptor, body) in made.layers.iter().chain([&made.config]) {
            holds.push(self.put(descriptor, body, [])?);
        }
        let children = made.layers.iter().chain([&made.config]).map(|(d, _)| d.digest);
        holds.push(self.put(&made.manifest.0, &made.manifest.1, children)?);
        let layers =
            made.layers.into_iter().map(|(descriptor, _)| Layer { descriptor, origin: None });
        Ok(Member { manifest: made.manifest.0, config: made.config.0, layers: layers.collect() })
    }

    /// Notes with the image what refers to it: that is kept and pushed wherever the image is.
    fn remember(&self, referrer: &Member) {
        let annotations = &referrer.manifest.annotations;
        let about = annotations.get(oci::select::ANNOTATION_REFERENCE_DIGEST);
        let image: Digest = about
            .and_then(|digest| digest.parse().ok())
            .expect("a statement says which image it is about");
        let digest = referrer.manifest.digest;
        self.store.content().describe(&image, |info| {
            // What an earlier build of the same image said is said anew.
            let before = info.labels.insert(LABEL_REFERRERS.to_owned(), digest.to_string());
            info.references.retain(|known| Some(known.to_string()) != before);
            info.references.push(digest);
        });
    }

    fn put(
        &self,
        descriptor: &Descriptor,
        body: &[u8],
        children: impl IntoIterator<Item = Digest>,
    ) -> Result<Blob, ExportError> {
        let info = BlobInfo::of_type(&descriptor.media_type).referencing(children);
        let doing = format!("write blob {}", descriptor.digest);
        self.store.content().put(body, info).map_err(ExportError::store(doing))
    }

    /// Replaces layers by ones whose times are cut, except those of the base image.
    async fn rewrite(
        &self,
        layers: &mut [(Layer, LayerBlob)],
        base_config: Option<&Bytes>,
        epoch: i64,
        holds: &mut Vec<Blob>,
    ) -> Result<(), ExportError> {
        let base = match base_config.filter(|body| !body.is_empty()) {
            Some(body) => ImageConfig::parse(BASE_CONFIG, body)?.rootfs.diff_ids,
            None => Vec::new(),
        };
        let kept =
            layers.iter().zip(&base).take_while(|((_, blob), id)| blob.diff_id == **id).count();
        let at = base::time::rfc3339_seconds(base::time::from_unix_seconds(epoch));
        let at = at.replace('T', " ").replace('Z', " +0000 UTC");
        let id = format!("rewriting layers with source-date-epoch {epoch} ({at})");
        let _step = Step::begin(&self.request.progress, id);
        let total = layers.len();
        let work = layers[kept..].iter().map(|(layer, blob)| self.rewrite_one(layer, blob, epoch));
        let rewritten = futures_util::future::join_all(work).await;
        for (number, ((layer, blob), outcome)) in
            layers[kept..].iter_mut().zip(rewritten).enumerate()
        {
            match outcome {
                Ok(Some((descriptor, diff_id, hold))) => {
                    holds.push(hold);
                    *layer = Layer { descriptor, origin: None };
                    blob.diff_id = diff_id;
                }
                Ok(None) => {}
                Err(error) => {
                    let number = kept + number + 1;
                    let why = chain(&error);
                    self.request.progress.warn(&format!(
                        "failed to rewrite layer {number}/{total} to match source-date-epoch {epoch}: {why}"
                    ));
                }
            }
        }
        Ok(())
    }

    async fn rewrite_one(
        &self,
        layer: &Layer,
        blob: &LayerBlob,
        epoch: i64,
    ) -> Result<Option<(Descriptor, Digest, Blob)>, ExportError> {
        let marked = layer.descriptor.annotations.get(types::ANNOTATION_REWRITTEN);
        if marked.is_some_and(|value| *value == epoch.to_string()) {
            return Ok(None);
        }
        let digest = layer.descriptor.digest;
        let doing = move || format!("rewrite layer {digest}");
        let _hold = match &layer.origin {
            Some((tree, lazy)) if !lazy.local => {
                Some(tree.fetch_blob(lazy).await.map_err(ExportError::store(doing()))?)
            }
            _ => None,
        };
        let (store, options) = (self.store.clone(), self.options.clone());
        let created = blob.created_at;
        let work = move || -> Result<_, ExportError> {
            let file = store.content().open(&digest).map_err(ExportError::store(doing()))?;
            let mut input = Decoder::new(file, Limits::NONE).map_err(ExportError::io(doing()))?;
            let out = store.content().writer().map_err(ExportError::store(doing()))?;
            let mut out = LayerWriter::new(options.compression, options.level, out)
                .map_err(ExportError::io(doing()))?;
            rewrite::rewrite(&mut input, epoch, &mut out).map_err(ExportError::io(doing()))?;
            let written = out.finish().map_err(ExportError::io(doing()))?;
            let diff_id = written.estargz.as_ref().map_or(written.diff_id, |table| table.diff_id);
            let mut descriptor = Descriptor::new(
                media::layer(options.compression, true),
                written.digest,
                written.size,
            )
            .annotate(types::ANNOTATION_UNCOMPRESSED, diff_id.to_string())
            .annotate(types::ANNOTATION_CREATED_AT, base::time::rfc3339_nano(created))
            .annotate(types::ANNOTATION_REWRITTEN, epoch.to_string());
            let known_by = written.estargz.iter().flat_map(|table| table.annotations());
            descriptor.annotations.extend(known_by);
            let info = BlobInfo {
                annotations: descriptor.annotations.clone(),
                ..BlobInfo::of_type(&descriptor.media_type)
            };
            let hold = written
                .out
                .commit(Some(written.digest), Some(written.size), info)
                .map_err(ExportError::store(doing()))?;
            Ok(Some((descriptor, diff_id, hold)))
        };
        tokio::task::spawn_blocking(work).await.expect("rewriting does not panic")
    }
}

/// An error with its causes on one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        // Some errors tell their cause themselves.
        let more = cause.to_string();
        if !text.ends_with(&more) {
            text += &format!(": {more}");
        }
        next = cause.source();
    }
    text
}

/// Answer keys common to all image exporters.
pub(crate) fn response(assembled: &Assembled, root: &Descriptor) -> BTreeMap<String, String> {
    use base64::Engine as _;
    let mut response = BTreeMap::new();
    response.insert("containerimage.digest".to_owned(), root.digest.to_string());
    if let Some(config) = assembled.config {
        response.insert("containerimage.config.digest".to_owned(), config.to_string());
    }
    let json = base::gojson::to_vec(root);
    let encoded = base64::engine::general_purpose::STANDARD.encode(json);
    response.insert("containerimage.descriptor".to_owned(), encoded);
    response
}
