//! Writes a graph as a definition.
//!
//! Depth first from the wanted output, inputs before users, each distinct op once. Nodes that
//! write equal bytes become one op whose metadata is united: descriptions of the later one win.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use base::{Digest, Platform};
use bytes::Bytes;
use prost::Message as _;

use super::{Graph, Node, Op, Output, exec::Placed, file};
use crate::{encode, pb};

/// What holds for the whole definition.
#[derive(Debug, Clone, Default)]
pub struct MarshalOptions {
    /// Platform of nodes that have none; the machine's own if absent.
    pub platform: Option<Platform>,
    /// Capabilities of the daemon, if known. One without `exec.meta.setsdefaultpath` gets `PATH`
    /// written into every process.
    pub caps: Option<BTreeSet<String>>,
    /// Makes local sources without a session distinct; random if absent.
    pub local_unique: Option<String>,
}

/// The graph cannot be written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MarshalError {
    /// A process has no program.
    #[error("arguments are required to run a process")]
    NoArguments,
    /// A process has no working folder.
    #[error("a working directory is required to run a process")]
    NoDirectory,
}

struct Writer<'a> {
    graph: &'a Graph,
    options: &'a MarshalOptions,
    platform: Platform,
    unique: String,
    digests: HashMap<u32, Digest>,
    written: HashMap<Digest, String>,
    def: Vec<Bytes>,
    metadata: BTreeMap<String, pb::OpMetadata>,
    locations: BTreeMap<String, pb::Locations>,
    infos: Vec<pb::SourceInfo>,
    files: HashMap<u32, i32>,
}

pub(super) fn marshal(
    graph: &Graph,
    output: Option<Output>,
    options: &MarshalOptions,
) -> Result<pb::Definition, MarshalError> {
    let Some(output) = output else { return Ok(pb::Definition::default()) };
    let mut writer = Writer {
        graph,
        options,
        platform: options.platform.clone().unwrap_or_else(Platform::host),
        unique: options.local_unique.clone().unwrap_or_else(base::id::random_id),
        digests: HashMap::new(),
        written: HashMap::new(),
        def: Vec::new(),
        metadata: BTreeMap::new(),
        locations: BTreeMap::new(),
        infos: Vec::new(),
        files: HashMap::new(),
    };
    writer.walk(output.node)?;
    Ok(writer.finish(output))
}

impl Writer<'_> {
    /// Visits what `node` needs, inputs first. An own stack, since chains can be very long.
    fn walk(&mut self, node: u32) -> Result<(), MarshalError> {
        let mut stack = vec![(node, self.graph.nodes[node as usize].op.inputs(), 0)];
        while let Some((node, inputs, next)) = stack.last_mut() {
            let (node, input) = (*node, inputs.get(*next).copied());
            *next += 1;
            match input {
                Some(input) if self.digests.contains_key(&input.node) => {}
                Some(input) => {
                    let op = &self.graph.nodes[input.node as usize].op;
                    stack.push((input.node, op.inputs(), 0));
                }
                None => {
                    stack.pop();
                    if !self.digests.contains_key(&node) {
                        self.write(node)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn write(&mut self, number: u32) -> Result<(), MarshalError> {
        let graph = self.graph;
        let node = &graph.nodes[number as usize];
        let (bytes, digest, metadata) = match &node.op {
            Op::Imported(imported) => {
                (imported.bytes.clone(), imported.digest, imported.metadata.clone())
            }
            _ => {
                let (op, caps) = self.op(node)?;
                let bytes = Bytes::from(encode(op));
                (bytes.clone(), Digest::of(&bytes), metadata(node, caps))
            }
        };
        self.digests.insert(number, digest);
        let new = !self.written.contains_key(&digest);
        let name = self.written.entry(digest).or_insert_with(|| digest.to_string()).clone();
        unite(self.metadata.entry(name.clone()).or_default(), metadata);
        for (file, ranges) in &node.meta.locations {
            let index = self.file(file.0);
            let location = pb::Location { source_index: index, ranges: ranges.clone() };
            self.locations.entry(name.clone()).or_default().locations.push(location);
        }
        self.locations.entry(name).or_default();
        if new {
            self.def.push(bytes);
        }
        Ok(())
    }

    fn op(&self, node: &Node) -> Result<(pb::Op, Vec<&'static str>), MarshalError> {
        let mut inputs = Vec::new();
        let mut platform = None;
        let (op, caps) = match &node.op {
            Op::Source(source) => {
                if source.has_platform() {
                    platform = Some(self.platform(node));
                }
                let mut attrs = source.attrs.clone();
                let mut caps: Vec<&'static str> = source.caps.iter().copied().collect();
                if source.identifier.starts_with("local://") && !attrs.contains_key("local.session")
                {
                    attrs.insert("local.unique".into(), self.unique.clone());
                    caps.push("source.local.unique");
                }
                let source = pb::SourceOp { identifier: source.identifier.clone(), attrs };
                (pb::op::Op::Source(source), caps)
            }
            Op::Exec(exec) => {
                platform = Some(self.platform(node));
                self.exec(exec, node, &mut inputs)?
            }
            Op::File { root, actions } => {
                let file = file::to_pb(*root, actions, |output| self.input(&mut inputs, output));
                (pb::op::Op::File(file), vec!["file.base"])
            }
            Op::Merge(list) => {
                let merged = list.iter().map(|output| {
                    // Unlike other ops a merge lists an input as often as it is used.
                    inputs.push(self.pb_input(*output));
                    pb::MergeInput { input: inputs.len() as i64 - 1 }
                });
                (pb::op::Op::Merge(pb::MergeOp { inputs: merged.collect() }), vec!["mergeop"])
            }
            Op::Diff { lower, upper } => {
                let mut side = |output: &Option<Output>| match output {
                    None => -1,
                    Some(output) => {
                        inputs.push(self.pb_input(*output));
                        inputs.len() as i64 - 1
                    }
                };
                let lower = Some(pb::LowerDiffInput { input: side(lower) });
                let upper = Some(pb::UpperDiffInput { input: side(upper) });
                (pb::op::Op::Diff(pb::DiffOp { lower, upper }), vec!["diffop"])
            }
            Op::Imported(_) => unreachable!("imported ops keep their bytes"),
        };
        let constraints = pb::WorkerConstraints { filter: node.meta.worker_filters.clone() };
        let platform = platform.map(|platform| to_pb(&platform));
        Ok((pb::Op { inputs, platform, constraints: Some(constraints), op: Some(op) }, caps))
    }

    fn exec(
        &self,
        placed: &Placed,
        node: &Node,
        inputs: &mut Vec<pb::Input>,
    ) -> Result<(pb::op::Op, Vec<&'static str>), MarshalError> {
        let exec = placed.exec();
        if exec.args.is_empty() {
            return Err(MarshalError::NoArguments);
        }
        if exec.cwd.is_empty() {
            return Err(MarshalError::NoDirectory);
        }
        let mut caps: Vec<&'static str> = exec.caps().into_iter().collect();
        let mut default_path = false;
        if let Some(known) = &self.options.caps {
            if known.contains("exec.meta.setsdefaultpath") {
                caps.push("exec.meta.setsdefaultpath");
            } else {
                default_path = self.platform.os != "windows";
            }
        }
        if node.meta.linux_resources.is_some() {
            caps.push("exec.meta.linux.resources");
        }
        let op = placed.to_pb(default_path, |output| self.input(inputs, output));
        Ok((pb::op::Op::Exec(op), caps))
    }

    fn platform(&self, node: &Node) -> Platform {
        node.meta.platform.clone().unwrap_or_else(|| self.platform.clone())
    }

    /// Number of `output` among `inputs`, where equal ones stand once.
    fn input(&self, inputs: &mut Vec<pb::Input>, output: Output) -> i64 {
        let input = self.pb_input(output);
        let at = inputs.iter().position(|known| *known == input).unwrap_or_else(|| {
            inputs.push(input);
            inputs.len() - 1
        });
        at as i64
    }

    fn pb_input(&self, output: Output) -> pb::Input {
        let digest = self.digests[&output.node];
        pb::Input { digest: self.written[&digest].clone(), index: i64::from(output.index) }
    }

    /// Number of a source file in the definition; equal files stand once.
    fn file(&mut self, file: u32) -> i32 {
        if let Some(known) = self.files.get(&file) {
            return *known;
        }
        let info = &self.graph.files[file as usize];
        let same = |other: &pb::SourceInfo| {
            other.filename == info.filename
                && other.language == info.language
                && other.data == info.data
        };
        let at = self.infos.iter().position(same).unwrap_or_else(|| {
            self.infos.push(info.clone());
            self.infos.len() - 1
        });
        self.files.insert(file, at as i32);
        at as i32
    }

    fn finish(mut self, output: Output) -> pb::Definition {
        let terminal = pb::Op { inputs: vec![self.pb_input(output)], ..Default::default() };
        let bytes = Bytes::from(terminal.encode_to_vec());
        let mut caps = vec!["constraints", "platform"];
        let mut need = |cap, when: &dyn Fn(&pb::OpMetadata) -> bool| {
            if self.metadata.values().any(when) {
                caps.push(cap);
            }
        };
        need("meta.ignorecache", &|metadata| metadata.ignore_cache);
        need("meta.description", &|metadata| !metadata.description.is_empty());
        need("meta.exportcache", &|metadata| metadata.export_cache.is_some());
        let caps = caps.into_iter().map(|cap| (cap.to_owned(), true)).collect();
        self.metadata
            .insert(Digest::of(&bytes).to_string(), pb::OpMetadata { caps, ..Default::default() });
        self.def.push(bytes);
        pb::Definition {
            def: self.def,
            metadata: self.metadata,
            source: Some(pb::Source { locations: self.locations, infos: self.infos }),
        }
    }
}

/// Canonical bytes. Of what we build ourselves prost only writes two things otherwise: the variant
/// of an op, which has to come last, and empty map values.
fn encode(mut op: pb::Op) -> Vec<u8> {
    let direct = match &op.op {
        Some(pb::op::Op::Source(source)) => {
            source.attrs.iter().all(|(key, value)| !key.is_empty() && !value.is_empty())
        }
        Some(pb::op::Op::Build(_)) => false,
        _ => true,
    };
    if !direct {
        return encode::encode_op(&op);
    }
    let variant = pb::Op { op: op.op.take(), ..Default::default() };
    let mut bytes = Vec::with_capacity(op.encoded_len() + variant.encoded_len());
    let fits = "a vector grows as needed";
    op.encode(&mut bytes).expect(fits);
    variant.encode(&mut bytes).expect(fits);
    debug_assert_eq!(bytes, encode::canonical_op(&bytes).expect("we wrote an op"));
    bytes
}

fn metadata(node: &Node, caps: Vec<&'static str>) -> pb::OpMetadata {
    let meta = &node.meta;
    pb::OpMetadata {
        ignore_cache: meta.ignore_cache,
        description: meta.description.clone(),
        export_cache: meta.export_cache.map(|value| pb::ExportCache { value }),
        caps: caps.into_iter().map(|cap| (cap.to_owned(), true)).collect(),
        progress_group: meta.progress_group.clone(),
        linux_resources: meta.linux_resources.clone(),
    }
}

fn unite(into: &mut pb::OpMetadata, from: pb::OpMetadata) {
    into.ignore_cache |= from.ignore_cache;
    into.description.extend(from.description);
    into.caps.extend(from.caps);
    into.export_cache = from.export_cache.or(into.export_cache.take());
    into.progress_group = from.progress_group.or(into.progress_group.take());
    into.linux_resources = from.linux_resources.or(into.linux_resources.take());
}

fn to_pb(platform: &Platform) -> pb::Platform {
    pb::Platform {
        architecture: platform.architecture.clone(),
        os: platform.os.clone(),
        variant: platform.variant.clone(),
        os_version: platform.os_version.clone(),
        os_features: platform.os_features.clone(),
    }
}
