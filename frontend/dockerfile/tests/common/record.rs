//! A bridge that answers from a case and writes down all it is asked.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, UNIX_EPOCH};

use base::{Digest, Platform};
use bytes::Bytes;
use frontend_api::{
    Bridge, FileRange, FileStat, FrontendError, FrontendResult, GitMeta, HttpMeta, RefHandle,
    SolveRequest, SolveWhat, SourceMeta, SourceMetaRequest, Warning, WorkerInfo,
};
use llb::build::{Graph, MarshalOptions, Meta, Source};
use llb::pb;
use prost::Message as _;
use serde_json::{Value, json};

use super::generate::Case;
use super::{CAPS, Images};

/// Answers as the official frontend's stand-in of a daemon does (`differential/main.go`).
pub struct Recorder {
    case: Case,
    images: Arc<Images>,
    workers: Vec<WorkerInfo>,
    caps: BTreeSet<String>,
    pub solves: Mutex<Vec<Value>>,
    pub metas: Mutex<Vec<Value>>,
    pub warns: Mutex<Vec<Value>>,
    /// Graphs by the name they have in what was written down.
    pub graphs: Arc<Mutex<Graphs>>,
}

/// Graphs by digest.
#[derive(Default)]
pub struct Graphs(pub BTreeMap<String, pb::Definition>);

impl Graphs {
    /// Names a graph; progress groups, whose names are random, are numbered.
    pub fn name(&mut self, mut definition: pb::Definition) -> String {
        let mut groups = BTreeMap::new();
        for bytes in &definition.def {
            let Some(metadata) = definition.metadata.get_mut(&Digest::of(bytes).to_string()) else {
                continue;
            };
            if let Some(group) = &mut metadata.progress_group {
                let number = groups.len();
                group.id =
                    groups.entry(group.id.clone()).or_insert_with(|| format!("pg{number}")).clone();
            }
        }
        let name = format!("graph {}", Digest::of(definition.encode_to_vec()));
        self.0.insert(name.clone(), definition);
        name
    }
}

struct Tree(Option<String>);

impl Recorder {
    pub fn new(case: Case, images: Arc<Images>, graphs: Arc<Mutex<Graphs>>) -> Self {
        let worker = WorkerInfo {
            id: "0".to_owned(),
            platforms: vec![Platform::new("linux", "amd64")],
            ..WorkerInfo::default()
        };
        Self {
            case,
            images,
            workers: vec![worker],
            caps: CAPS.iter().map(|cap| (*cap).to_owned()).collect(),
            solves: Mutex::default(),
            metas: Mutex::default(),
            warns: Mutex::default(),
            graphs,
        }
    }

    fn graph(&self, definition: &pb::Definition) -> String {
        self.graphs.lock().unwrap().name(definition.clone())
    }
}

/// Positions as the official program writes them.
pub fn lines(ranges: &[pb::Range]) -> Value {
    let at = |position: Option<pb::Position>| position.unwrap_or_default();
    ranges
        .iter()
        .map(|range| {
            let (start, end) = (at(range.start), at(range.end));
            json!([start.line, start.character, end.line, end.character])
        })
        .collect()
}

#[async_trait::async_trait]
impl Bridge for Recorder {
    fn options(&self) -> &BTreeMap<String, String> {
        &self.case.options
    }

    fn session_id(&self) -> &str {
        "corpus"
    }

    fn workers(&self) -> &[WorkerInfo] {
        &self.workers
    }

    fn llb_caps(&self) -> &BTreeSet<String> {
        &self.caps
    }

    async fn inputs(&self) -> Result<BTreeMap<String, pb::Definition>, FrontendError> {
        let input = |(name, image): (&String, &String)| {
            let identifier = format!("docker-image://{image}");
            let mut graph = Graph::new();
            let output = graph.source(Source::new(&identifier, []), Meta::default());
            let definition = graph.marshal(Some(output), &MarshalOptions::default()).unwrap();
            (name.clone(), definition)
        };
        Ok(self.case.inputs.iter().map(input).collect())
    }

    async fn solve(&self, request: SolveRequest) -> Result<FrontendResult, FrontendError> {
        let import =
            |entry: &frontend_api::CacheImport| json!({"type": entry.kind, "attrs": entry.attrs});
        let imports: Vec<Value> = request.cache_imports.iter().map(import).collect();
        let mut note = json!({
            "evaluate": request.evaluate, "definition": null, "frontend": "", "opts": null, "inputs": {},
            "imports": imports,
        });
        let result = match request.what {
            SolveWhat::Definition(definition) => {
                note["definition"] = self.graph(&definition).into();
                let ops = definition.def.iter().map(|bytes| pb::Op::decode(bytes.clone()).unwrap());
                let mut sources = ops.filter_map(|op| match op.op {
                    Some(pb::op::Op::Source(source)) => Some(source.identifier),
                    _ => None,
                });
                let source = sources.next().filter(|_| sources.next().is_none());
                let handle = RefHandle::new(Arc::new(Tree(source)), Some(Arc::new(definition)));
                FrontendResult::single(Some(handle))
            }
            SolveWhat::Frontend { name, options, inputs } => {
                note["frontend"] = name.into();
                note["opts"] = json!(options);
                note["inputs"] = inputs
                    .iter()
                    .map(|(name, input)| (name.clone(), self.graph(input).into()))
                    .collect::<serde_json::Map<_, _>>()
                    .into();
                FrontendResult::default()
            }
            SolveWhat::Nothing => FrontendResult::default(),
        };
        self.solves.lock().unwrap().push(note);
        Ok(result)
    }

    async fn resolve_source_meta(
        &self,
        request: SourceMetaRequest,
    ) -> Result<SourceMeta, FrontendError> {
        let (scheme, rest) = request.source.identifier.split_once("://").unwrap();
        let mut note = json!({"id": request.source.identifier, "log": request.log_name});
        let mut meta = SourceMeta { source: request.source.clone(), ..SourceMeta::default() };
        let platform = request.platform.clone().unwrap_or_else(|| Platform::new("linux", "amd64"));
        let attr = |name: &str| request.source.attrs.get(name).cloned().unwrap_or_default();
        match scheme {
            "docker-image" | "oci-layout" => {
                if let Some(platform) = &request.platform {
                    note["platform"] = platform.format_all().into();
                }
                if scheme == "docker-image" {
                    note["mode"] = request.resolve_mode.clone().into();
                    note["noconfig"] = request.no_config.into();
                } else {
                    note["store"] = attr("oci.store").into();
                    note["session"] = attr("oci.session").into();
                }
                note["attrs"] = Value::Null;
                self.metas.lock().unwrap().push(note);
                meta.image = Some(self.images.resolve(rest, &platform)?);
                return Ok(meta);
            }
            "git" => {
                note["object"] = request.git_objects.into();
                let commit_object = "tree 0\ncommitter a <a@b> 1600000001 +0000\n\nx".into();
                meta.git = Some(GitMeta { commit_object, ..GitMeta::default() });
            }
            _ => {
                let last_modified = Some(UNIX_EPOCH + Duration::from_secs(1_600_000_002));
                meta.http = Some(HttpMeta { last_modified, ..HttpMeta::default() });
            }
        }
        note["attrs"] = json!(request.source.attrs);
        self.metas.lock().unwrap().push(note);
        Ok(meta)
    }

    async fn read_file(
        &self,
        reference: &RefHandle,
        path: &str,
        range: Option<FileRange>,
    ) -> Result<Bytes, FrontendError> {
        let tree = reference.downcast::<Tree>().expect("refs are trees");
        let clean = base::path::absolute(path);
        let files = self.case.files.get(tree.0.as_deref().unwrap_or_default());
        let found = files.and_then(|files| files.get(clean.trim_start_matches('/')));
        let Some(data) = found else {
            return Err(FrontendError::new(format!("open {path}: no such file or directory")));
        };
        let data = Bytes::from(data.clone());
        Ok(match range {
            None => data,
            Some(FileRange { offset, length }) => {
                let first = data.len().min(offset as usize);
                data.slice(first..data.len().min(first + length as usize))
            }
        })
    }

    async fn read_dir(
        &self,
        _: &RefHandle,
        _: &str,
        _: &str,
    ) -> Result<Vec<FileStat>, FrontendError> {
        Ok(Vec::new())
    }

    async fn stat_file(&self, _: &RefHandle, path: &str) -> Result<FileStat, FrontendError> {
        Err(FrontendError::new(format!("lstat {path}: no such file or directory")))
    }

    async fn evaluate(&self, _: &RefHandle) -> Result<(), FrontendError> {
        Ok(())
    }

    async fn warn(&self, warning: Warning) -> Result<(), FrontendError> {
        let file = warning.source_info.as_ref().map_or("", |info| info.filename.as_str());
        self.warns.lock().unwrap().push(json!({
            "short": warning.short, "detail": warning.detail, "url": warning.url, "level": warning.level,
            "lines": lines(&warning.ranges), "file": file, "vertex": warning.vertex,
        }));
        Ok(())
    }
}
