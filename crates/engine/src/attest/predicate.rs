//! Provenance predicates: SLSA v1, and v0.2 with the same content under older names.

use std::{
    collections::BTreeMap,
    sync::{Arc, OnceLock},
    time::SystemTime,
};

use base::{Platform, gojson, time};
use bytes::Bytes;
use frontend_api::{FrontendError, FrontendResult, RefHandle, Refs};
use llb::pb;
use serde_json::{Map, Value, json};

use super::{
    Scope, Trace,
    capture::{Capture, Unrecorded, digest_set},
    json::{Object, untyped},
    layers,
    request::{ConfigSource, Parameters, Request, redact},
    steps::{Steps, source_json},
};
use crate::{Engine, Job, bridge};

/// Predicate types.
pub(crate) const PROVENANCE_1: &str = "https://slsa.dev/provenance/v1";
const PROVENANCE_02: &str = "https://slsa.dev/provenance/v0.2";
const BUILD_TYPE_1: &str =
    "https://github.com/moby/buildkit/blob/master/docs/attestations/slsa-definitions.md";
const BUILD_TYPE_02: &str = "https://mobyproject.org/buildkit@v1";

/// How provenance is written.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ProvenanceOptions {
    /// Everything, also what may be private: build arguments, steps, files of the frontend.
    pub max: bool,
    /// Version 0.2.
    pub old: bool,
    pub builder_id: String,
    /// The user's word for it.
    pub reproducible: bool,
    /// Fail rather than leave something out.
    pub complete_materials: bool,
    /// Only for outputs that carry it inside.
    pub inline_only: bool,
    /// Name beside files.
    pub file_name: String,
}

impl Default for ProvenanceOptions {
    fn default() -> Self {
        Self {
            max: true,
            old: false,
            builder_id: String::new(),
            reproducible: false,
            complete_materials: false,
            inline_only: false,
            file_name: "provenance.json".to_owned(),
        }
    }
}

impl ProvenanceOptions {
    pub(crate) fn predicate_type(&self) -> &'static str {
        if self.old { PROVENANCE_02 } else { PROVENANCE_1 }
    }
}

/// What is the same for all trees of a build.
#[derive(Debug)]
pub(crate) struct BuildFacts {
    id: String,
    started: SystemTime,
    completed: OnceLock<SystemTime>,
    compatibility: u32,
}

impl BuildFacts {
    pub(crate) fn new(compatibility: u32) -> Arc<Self> {
        Arc::new(Self {
            id: base::id::random_id(),
            started: SystemTime::now(),
            completed: OnceLock::new(),
            compatibility,
        })
    }
}

/// What there is to say of one tree.
pub(crate) struct Provenance {
    engine: Arc<Engine>,
    facts: Arc<BuildFacts>,
    capture: Capture,
    definition: Arc<pb::Definition>,
    built: bridge::BuiltRef,
    /// The build's steps have other names.
    proxy_network: bool,
}

/// Content addressed outside the build: uri and digests.
struct Material {
    uri: String,
    digest: BTreeMap<String, String>,
}

impl Engine {
    /// The provenance of every tree of a result: by platform, or of the only one under `None`.
    /// `platforms` are those of the result.
    pub(crate) async fn provenance(
        self: &Arc<Self>,
        job: &Arc<Job>,
        scope: &Arc<Scope>,
        facts: &Arc<BuildFacts>,
        result: &FrontendResult,
        platforms: &[exporter::PlatformResult],
    ) -> Result<BTreeMap<Option<String>, Arc<Provenance>>, FrontendError> {
        let refs: Vec<(Option<&str>, &RefHandle)> = match &result.refs {
            Refs::Single(single) => single.iter().map(|handle| (None, handle)).collect(),
            Refs::Map(map) => map
                .iter()
                .filter_map(|(id, handle)| Some((Some(id.as_str()), handle.as_ref()?)))
                .collect(),
        };
        let attested =
            result.attestations.values().flatten().filter_map(|item| item.reference.as_ref());
        let mut traces = Vec::new();
        for handle in refs.iter().map(|(_, handle)| *handle).chain(attested) {
            traces.push(bridge::lazy(handle)?.trace().clone());
        }
        let mut all = BTreeMap::new();
        for (id, handle) in refs {
            let lazy = bridge::lazy(handle)?;
            let trace: &Arc<Trace> = lazy.trace();
            let platform = id.map(|id| (id, platforms));
            let provenance = Provenance {
                engine: self.clone(),
                facts: facts.clone(),
                capture: self.capture(job, scope, trace, &traces, platform).await?,
                definition: trace.definition().clone(),
                built: lazy.built().await?.clone(),
                proxy_network: job.proxy_network,
            };
            all.insert(id.map(str::to_owned), Arc::new(provenance));
        }
        Ok(all)
    }
}

impl Provenance {
    /// Whether everything that went in is named.
    fn is_complete(&self) -> bool {
        !self.capture.incomplete && self.capture.sources.locals.is_empty()
    }

    /// Fails if everything must be named and is not.
    pub(crate) fn check(&self, options: &ProvenanceOptions) -> Result<(), FrontendError> {
        if !options.complete_materials || self.is_complete() {
            return Ok(());
        }
        let mut text = "provenance materials are incomplete\n\nThe build requested complete \
                        provenance materials, but not all dependencies could be captured."
            .to_owned();
        let mut incomplete = Vec::new();
        if !self.capture.sources.locals.is_empty() {
            text += "\n\nUncaptured local sources:";
            for name in &self.capture.sources.locals {
                text += &format!("\n  - {name}\n    reason: local_source");
                incomplete.push(json!({ "name": name, "reason": "local_source" }));
            }
        }
        if !self.capture.unrecorded.is_empty() {
            text += "\n\nUncaptured requests:";
        }
        for request in &self.capture.unrecorded {
            let name = [&request.name, &request.op, &request.url];
            let name = name.into_iter().find(|name| !name.is_empty());
            text += &format!("\n  - {}", name.map_or("", String::as_str));
            for (what, value) in [
                ("method", request.method.as_str()),
                ("url", &request.url),
                ("reason", request.reason),
            ] {
                if !value.is_empty() {
                    text += &format!("\n    {what}: {value}");
                }
            }
            incomplete.push(request.to_json());
        }
        let error = FrontendError::new(text);
        let kind = "github.com/moby/buildkit/errdefs.ProvenanceMaterialsIncomplete+json";
        Err(error.detail(kind, json!({ "incomplete": incomplete }).to_string()))
    }

    /// The predicate's JSON, indented. The first call ends the build's time.
    pub(crate) async fn predicate(
        &self,
        options: &ProvenanceOptions,
    ) -> Result<Bytes, FrontendError> {
        let completed = *self.facts.completed.get_or_init(SystemTime::now);
        let Capture { request, sources, .. } = &self.capture;
        let mut parameters = request.parameters.clone();
        let asked = Request::new(&parameters.frontend, parameters.args, sources);
        parameters.args = asked.parameters.args;
        let source_control = version_control(&mut parameters.args);
        parameters.locals.clone_from(&sources.locals);
        let mut request_complete = !parameters.frontend.is_empty();
        if !options.max && parameters.scrub() {
            request_complete = false;
        }
        parameters.compatibility = self.facts.compatibility;
        let mut metadata = Map::new();
        metadata.texts("vcs", &source_control);
        let mut config = None;
        if options.max {
            let steps = Steps::of(&self.definition)?;
            metadata.maybe("source", source_json(&self.definition, &steps)?);
            metadata.maybe(
                "layers",
                layers::of(&self.engine, &self.definition, &self.built, &steps, self.proxy_network)
                    .await,
            );
            let mut object = Map::new();
            steps.add_to(&mut object);
            config = Some(Value::Object(object));
        }
        metadata.maybe("network", self.network());
        let document = Document {
            materials: self.materials()?,
            source: asked.source,
            config,
            environment: self.environment(&parameters.frontend),
            parameters,
            metadata,
            request_complete,
            materials_complete: self.is_complete(),
            hermetic: self.is_complete() && !self.capture.network,
            started: time::rfc3339_nano(self.facts.started),
            finished: time::rfc3339_nano(completed),
            id: &self.facts.id,
            options,
        };
        let value = if options.old { document.version_02() } else { document.version_1() };
        Ok(gojson::to_vec_indented(&value).into())
    }

    /// How steps had a network, where that is worth a word.
    fn network(&self) -> Option<Value> {
        if !self.capture.proxied {
            return None;
        }
        let mut network = Map::new();
        network.text("mode", "proxy");
        if !self.capture.unrecorded.is_empty() {
            let each = self.capture.unrecorded.iter().map(Unrecorded::to_json);
            network.insert("proxy".into(), json!({ "incomplete": each.collect::<Vec<_>>() }));
        }
        Some(Value::Object(network))
    }

    /// What is told of the builder, besides the platform's name.
    fn environment(&self, frontend: &str) -> Map<String, Value> {
        let mut object = Map::new();
        if frontend == "dockerfile.v0" {
            object.text("dockerfileVersion", crate::engine::DOCKERFILE_VERSION);
        }
        for (key, value) in &self.engine.settings.provenance {
            object.insert(key.clone(), value.clone());
        }
        object
    }

    fn materials(&self) -> Result<Vec<Material>, FrontendError> {
        let sources = &self.capture.sources;
        let mut all = Vec::new();
        let images = sources.images.iter().map(|image| (image, ""));
        let blobs = sources.blobs.iter().map(|blob| (blob, "&ref_type=blob"));
        for (image, suffix) in images.chain(blobs) {
            let kind = if image.local { "oci" } else { "docker" };
            let uri = exporter::package_url(kind, &image.reference, image.platform.as_ref());
            let uri = uri.map_err(|error| FrontendError::new(error.to_string()))?;
            all.push(Material { uri: uri + suffix, digest: digest_set(&image.digest) });
        }
        for git in &sources.git {
            all.push(Material { uri: git.url.clone(), digest: git.digest() });
            let locator = git.bundle.as_deref().and_then(|bundle| bundle.split_once("://"));
            let Some((scheme, name)) = locator else { continue };
            let Some((place, digest)) = name.rsplit_once('@') else { continue };
            let kind = if scheme == "oci-layout+blob" { "oci" } else { "docker" };
            let uri = exporter::package_url(kind, place, None)
                .map_err(|error| FrontendError::new(error.to_string()))?;
            let vcs = exporter::escape_qualifier(&git.url);
            let uri = format!("{uri}?ref_type=bundle&vcs_url={vcs}");
            all.push(Material { uri, digest: digest_set(digest) });
        }
        for (url, digest) in &sources.http {
            all.push(Material { uri: url.clone(), digest: digest_set(digest) });
        }
        Ok(all)
    }
}

/// `vcs:*` arguments, taken out.
fn version_control(args: &mut BTreeMap<String, String>) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    args.retain(|key, value| {
        let Some(name) = key.strip_prefix("vcs:") else { return true };
        if !value.is_empty() {
            let value = if name == "source" { redact(value) } else { value.clone() };
            found.insert(name.to_owned(), value);
        }
        false
    });
    found
}

/// Everything a predicate says, under whatever names.
struct Document<'a> {
    materials: Vec<Material>,
    source: ConfigSource,
    parameters: Parameters,
    config: Option<Value>,
    environment: Map<String, Value>,
    metadata: Map<String, Value>,
    request_complete: bool,
    materials_complete: bool,
    hermetic: bool,
    started: String,
    finished: String,
    id: &'a str,
    options: &'a ProvenanceOptions,
}

impl Document<'_> {
    fn materials(&self) -> Vec<Value> {
        let each = self.materials.iter().map(|material| {
            let mut object = Map::new();
            object.text("uri", &material.uri);
            object.texts("digest", &material.digest);
            Value::Object(object)
        });
        each.collect()
    }

    fn version_1(self) -> Value {
        let mut definition = Map::new();
        definition.text("buildType", BUILD_TYPE_1);
        definition.list("resolvedDependencies", self.materials());
        definition.insert(
            "externalParameters".into(),
            json!({
                "configSource": self.source.to_json("path"),
                "request": self.parameters.to_json(),
            }),
        );
        let mut internal = self.environment;
        internal.maybe("buildConfig", self.config);
        internal.text("builderPlatform", &Platform::host().format());
        definition.insert("internalParameters".into(), untyped(Value::Object(internal)));
        let mut metadata = Map::new();
        metadata.text("invocationId", self.id);
        metadata.text("startedOn", &self.started);
        metadata.text("finishedOn", &self.finished);
        metadata.insert("buildkit_metadata".into(), Value::Object(self.metadata));
        metadata.flag("buildkit_hermetic", self.hermetic);
        metadata.insert(
            "buildkit_completeness".into(),
            json!({
                "request": self.request_complete,
                "resolvedDependencies": self.materials_complete,
            }),
        );
        metadata.flag("buildkit_reproducible", self.options.reproducible);
        json!({
            "buildDefinition": definition,
            "runDetails": { "builder": { "id": self.options.builder_id }, "metadata": metadata },
        })
    }

    fn version_02(self) -> Value {
        let mut document = Map::new();
        document.insert("builder".into(), json!({ "id": self.options.builder_id }));
        document.text("buildType", BUILD_TYPE_02);
        document.list("materials", self.materials());
        let mut environment = self.environment;
        environment.text("platform", &Platform::host().format());
        document.insert(
            "invocation".into(),
            json!({
                "configSource": self.source.to_json("entryPoint"),
                "parameters": self.parameters.to_json(),
                "environment": untyped(Value::Object(environment)),
            }),
        );
        document.maybe("buildConfig", self.config);
        let mut metadata = Map::new();
        metadata.text("buildInvocationID", self.id);
        metadata.text("buildStartedOn", &self.started);
        metadata.text("buildFinishedOn", &self.finished);
        metadata.insert(
            "completeness".into(),
            json!({
                "parameters": self.request_complete,
                "environment": true,
                "materials": self.materials_complete,
            }),
        );
        metadata.insert("reproducible".into(), self.options.reproducible.into());
        metadata.insert(
            "https://mobyproject.org/buildkit@v1#metadata".into(),
            Value::Object(self.metadata),
        );
        metadata.flag("https://mobyproject.org/buildkit@v1#hermetic", self.hermetic);
        document.insert("metadata".into(), Value::Object(metadata));
        Value::Object(document)
    }
}
