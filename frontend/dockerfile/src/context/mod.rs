//! Where the Dockerfile and the build context come from.
//!
//! A [`Client`] wraps the bridge for one run of the frontend: it finds the main context, reads the
//! Dockerfile and the ignore file, resolves images (the same question is asked once) and loads
//! named contexts. What it returns are descriptions; graphs are made elsewhere.
//!
//! Source: Dockerfile notes §2.3 and §13.

mod ignore;
mod images;
mod main;
mod named;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use base::Platform;
use frontend_api::{Bridge, FrontendError, RefHandle, SolveRequest};
use llb::build::{Graph, LocalOptions, MarshalOptions, Meta, Output, Source};
use llb::pb;

use crate::error::{Error, Result};
use crate::options::Options;

pub use ignore::patterns as ignore_patterns;
pub use images::{Resolve, ResolvedImage};
pub use main::{MainContext, MainSource};
pub use named::{Loaded, LocalFolder, NamedContext, NamedSource};

/// Name of the local folder with the build context.
pub const CONTEXT: &str = "context";

/// The side that answers questions, for one run of the frontend.
pub struct Client {
    /// The bridge.
    pub bridge: Arc<dyn Bridge>,
    /// What the client asked for.
    pub options: Options,
    /// Platforms the daemon runs; the first is the build platform.
    pub build_platforms: Vec<Platform>,
    /// `RUN --device` is understood.
    pub devices: bool,
    main: MainContext,
    images: images::Cache,
    ignore: Mutex<Option<ignore::Found>>,
    redirects: Mutex<BTreeMap<String, String>>,
}

/// The Dockerfile.
#[derive(Debug, Clone)]
pub struct DockerfileSource {
    /// Its bytes.
    pub data: bytes::Bytes,
    /// How clients are told of it.
    pub info: pb::SourceInfo,
    /// The vertex it was read from, for warnings.
    pub vertex: String,
}

/// The inputs of this run. One without any graph is a client's mistake, not an empty folder.
async fn inputs(bridge: &dyn Bridge) -> Result<BTreeMap<String, pb::Definition>> {
    let inputs = bridge.inputs().await.map_err(Error::bridge)?;
    if inputs.values().any(|input| input.def.is_empty() && input.metadata.is_empty()) {
        let error = FrontendError::new("invalid nil input definition to definition op");
        return Err(Error::bridge(error).context("failed to get frontend inputs"));
    }
    Ok(inputs)
}

impl Client {
    /// Looks at the options and finds the main context.
    pub async fn new(bridge: Arc<dyn Bridge>, devices: bool) -> Result<Self> {
        let options = Options::parse(bridge.options(), bridge.llb_caps())?;
        let first = bridge.workers().first().and_then(|worker| worker.platforms.first());
        let build_platforms = vec![first.cloned().unwrap_or_else(Platform::host)];
        let main = MainContext::find(&*bridge, &options).await?;
        Ok(Self {
            bridge,
            options,
            build_platforms,
            devices,
            main,
            images: images::Cache::default(),
            ignore: Mutex::default(),
            redirects: Mutex::default(),
        })
    }

    /// The main context.
    pub fn main(&self) -> &MainContext {
        &self.main
    }

    /// The session that serves a local folder.
    fn session_of(&self, local: &str) -> &str {
        let key = format!("local-sessionid:{local}");
        self.options.get(&key).unwrap_or_else(|| self.bridge.session_id())
    }

    /// Reads the Dockerfile, and the ignore file beside it if there is one.
    pub async fn read_dockerfile(&self) -> Result<DockerfileSource> {
        let filename = &self.main.filename;
        let mut graph = Graph::new();
        let output = match self.main.dockerfile_source() {
            Some(source) => source.add_to(&mut graph)?,
            None => Some(self.add_dockerfile(&mut graph)),
        };
        let definition = marshal(&graph, output)?;
        let vertex = head(&definition);
        let words = "failed to read dockerfile";
        let found =
            solve(&*self.bridge, definition.clone(), false).await.map_err(|e| e.context(words))?;
        let data = match self.bridge.read_file(&found, filename, None).await {
            Ok(data) => data,
            Err(error) => match lower_case(filename) {
                Some(other) => match self.bridge.read_file(&found, &other, None).await {
                    Ok(data) => data,
                    Err(_) => return Err(Error::bridge(error).context(words)),
                },
                None => return Err(Error::bridge(error).context(words)),
            },
        };
        let name = format!("{filename}.dockerignore");
        if let Ok(data) = self.bridge.read_file(&found, &name, None).await {
            *self.ignore.lock().expect("no holder panics") = Some(ignore::Found { name, data });
        }
        let info = pb::SourceInfo {
            filename: filename.clone(),
            data: data.clone(),
            definition: Some(definition),
            language: "Dockerfile".to_owned(),
        };
        Ok(DockerfileSource { data, info, vertex })
    }

    fn add_dockerfile(&self, graph: &mut Graph) -> Output {
        let (local, filename) = (&self.main.dockerfile_local, &self.main.filename);
        let mut follow = vec![filename.clone(), format!("{filename}.dockerignore")];
        follow.extend(lower_case(filename));
        let options = LocalOptions {
            session: self.session_of(local).to_owned(),
            follow_paths: follow,
            shared_key_hint: local.clone(),
            differ: "none",
            ..LocalOptions::default()
        };
        let name = format!("[internal] load build definition from {filename}");
        graph.source(Source::local(local, &options), Meta::named(name))
    }

    /// Patterns of what the local main context leaves out; none if it is not local.
    pub async fn ignore_patterns(&self) -> Result<Vec<String>> {
        if self.main.source.is_some() {
            return Ok(Vec::new());
        }
        let known = self.ignore.lock().expect("no holder panics").clone();
        let found = match known {
            Some(found) => found,
            None => {
                let options = LocalOptions {
                    session: self.session_of(CONTEXT).to_owned(),
                    follow_paths: vec![ignore::NAME.to_owned()],
                    shared_key_hint: format!("{CONTEXT}-{}", ignore::NAME),
                    differ: "none",
                    ..LocalOptions::default()
                };
                let name = format!("[internal] load {}", ignore::NAME);
                let data = self.read_ignore(CONTEXT, &options, name, false).await?;
                let found = ignore::Found { name: ignore::NAME.to_owned(), data };
                *self.ignore.lock().expect("no holder panics") = Some(found.clone());
                found
            }
        };
        ignore::patterns(&found.name, &found.data)
    }

    /// The ignore file of a local folder; empty if there is none.
    async fn read_ignore(
        &self,
        local: &str,
        options: &LocalOptions,
        name: String,
        evaluate: bool,
    ) -> Result<bytes::Bytes> {
        let mut graph = Graph::new();
        let output = graph.source(Source::local(local, options), Meta::named(name));
        let found = solve(&*self.bridge, marshal(&graph, Some(output))?, evaluate).await?;
        Ok(self.bridge.read_file(&found, ignore::NAME, None).await.unwrap_or_default())
    }

    /// The local main context as a source that takes only `paths`, or all if there are none.
    pub fn local_context(&self, exclude: Vec<String>, paths: Vec<String>) -> (Source, Meta) {
        let options = LocalOptions {
            session: self.session_of(CONTEXT).to_owned(),
            exclude_patterns: exclude,
            follow_paths: paths,
            shared_key_hint: CONTEXT.to_owned(),
            ..LocalOptions::default()
        };
        (Source::local(CONTEXT, &options), Meta::named("[internal] load build context"))
    }

    /// Whether the daemon has an LLB capability.
    pub fn has_cap(&self, cap: &str) -> bool {
        self.bridge.llb_caps().contains(cap)
    }
}

/// For the default file name in any folder, the same in lower case.
fn lower_case(filename: &str) -> Option<String> {
    let folder = base::path::dir(filename);
    (base::path::base(filename) == "Dockerfile")
        .then(|| base::path::join([folder.as_str(), "dockerfile"]))
}

/// A definition for a small question.
pub(crate) fn marshal(graph: &Graph, output: Option<Output>) -> Result<pb::Definition> {
    graph.marshal(output, &MarshalOptions::default()).map_err(|error| {
        // Sources and copies are complete by construction.
        Error::bridge(FrontendError::new(error.to_string()))
    })
}

/// The vertex a definition leads to.
pub(crate) fn head(definition: &pb::Definition) -> String {
    use prost::Message as _;
    let terminal = definition.def.last().and_then(|bytes| pb::Op::decode(bytes.clone()).ok());
    terminal.and_then(|op| op.inputs.first().map(|input| input.digest.clone())).unwrap_or_default()
}

/// A ref for a definition.
pub(crate) async fn solve(
    bridge: &dyn Bridge,
    definition: pb::Definition,
    evaluate: bool,
) -> Result<RefHandle> {
    let request = SolveRequest { evaluate, ..SolveRequest::definition(definition) };
    let result = bridge.solve(request).await.map_err(Error::bridge)?;
    let missing = || Error::bridge(FrontendError::new("the daemon returned no reference"));
    result.single_ref().cloned().ok_or_else(missing)
}
