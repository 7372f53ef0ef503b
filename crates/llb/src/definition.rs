//! A checked build graph.
//!
//! [`Definition::parse`] turns what a client sent into vertices named by their canonical digests;
//! holding a [`Definition`] is proof that every input exists, every op is well formed and the
//! result edge is known. Source: LLB notes §1.1–1.5.

use std::{collections::HashMap, sync::Arc};

use base::{Digest, Platform};
use prost::Message as _;

use crate::{encode, name, pb};

/// One output of one vertex.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Edge {
    /// The vertex, by canonical digest.
    pub vertex: Digest,
    /// Which of its outputs.
    pub index: usize,
}

/// One operation of the graph with everything that belongs to it.
#[derive(Debug, Clone)]
pub struct Vertex {
    /// Digest of the canonical encoding with recomputed inputs: the vertex's name everywhere.
    pub digest: Digest,
    /// Digest of the bytes as received, by which metadata and source locations are keyed.
    pub received: Digest,
    /// The operation; its platform is normalised and never absent.
    pub op: pb::Op,
    /// Inputs in order, by canonical digest.
    pub inputs: Vec<Edge>,
    /// What is not part of the digest.
    pub metadata: pb::OpMetadata,
    /// What progress shows.
    pub name: String,
    /// Its process reaches the network through a recording proxy only.
    pub proxied: bool,
}

/// A graph in which every input precedes its users.
#[derive(Debug, Clone)]
pub struct Definition {
    vertices: Vec<Arc<Vertex>>,
    result: Edge,
    source: Option<Arc<pb::Source>>,
}

/// Why a definition cannot be solved.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DefinitionError {
    /// No elements.
    #[error("invalid empty definition")]
    Empty,
    /// An element is not an op.
    #[error("failed to parse llb proto op: {0}")]
    Undecodable(String),
    /// Only the terminal op.
    #[error("invalid LLB with {0} vertexes")]
    TooFew(usize),
    /// The last op names no result.
    #[error("invalid LLB with no inputs on last vertex")]
    NoResult,
    /// An input's digest is not in the definition.
    #[error("invalid missing input digest {0}")]
    MissingInput(String),
    /// An input's output number is negative.
    #[error("invalid input {input} output index {index}")]
    InputIndex {
        /// Position among the vertex's inputs.
        input: usize,
        /// The number sent.
        index: i64,
    },
    /// The inputs lead back to their user.
    #[error("invalid LLB with a cycle through {0}")]
    Cycle(Digest),
    /// An op lacks something it needs.
    #[error("{0}")]
    InvalidOp(String),
    /// A vertex needs a capability this daemon does not have.
    #[error(
        "requested experimental feature {0} is not supported by build server, please update buildkit"
    )]
    UnsupportedCapability(String),
    /// A step wants a network that no proxy can stand in for.
    #[error("network mode {0} is not allowed when proxy network is enabled")]
    NetworkMode(i32),
}

/// What [`Definition::parse`] needs to know beyond the bytes.
#[derive(Debug, Clone)]
pub struct ParseOptions<'a> {
    /// Platform of vertices that name none.
    pub default_platform: &'a Platform,
    /// Capabilities this daemon has; a vertex that needs another is refused. `None` skips the check.
    pub capabilities: Option<&'a [&'a str]>,
    /// Steps reach the network through a recording proxy only, which is part of their names.
    pub proxy_network: bool,
}

/// What the names of steps behind a proxy end with, before they are digested.
const PROXIED: &[u8] = b"\0buildkit.proxy-network.v0";

struct Raw<'a> {
    op: pb::Op,
    bytes: &'a [u8],
    received: Digest,
}

impl Definition {
    /// Checks `definition` and names its vertices.
    pub fn parse(
        definition: &pb::Definition,
        options: &ParseOptions<'_>,
    ) -> Result<Self, DefinitionError> {
        if definition.def.is_empty() {
            return Err(DefinitionError::Empty);
        }
        let mut raws = Vec::with_capacity(definition.def.len());
        let mut positions = HashMap::with_capacity(definition.def.len());
        for bytes in &definition.def {
            let op = pb::Op::decode(bytes.clone())
                .map_err(|error| DefinitionError::Undecodable(error.to_string()))?;
            let received = Digest::of(bytes);
            positions.insert(received.to_string(), raws.len());
            raws.push(Raw { op, bytes, received });
        }
        if raws.len() < 2 {
            return Err(DefinitionError::TooFew(raws.len()));
        }
        let terminal = &raws[raws.len() - 1].op;
        let Some(result) = terminal.inputs.first() else { return Err(DefinitionError::NoResult) };
        let result_index = usize::try_from(result.index)
            .map_err(|_| DefinitionError::InputIndex { input: 0, index: result.index })?;
        let root = position(&positions, &result.digest)?;

        let order = order(&raws, &positions, root)?;
        let mut done: HashMap<usize, Arc<Vertex>> = HashMap::with_capacity(order.len());
        let mut vertices = Vec::with_capacity(order.len());
        for at in order {
            let raw = &raws[at];
            let vertex = Arc::new(vertex(raw, &positions, &done, definition, options)?);
            done.insert(at, vertex.clone());
            vertices.push(vertex);
        }
        let result = Edge { vertex: done[&root].digest, index: result_index };
        let mut seen = std::collections::HashSet::with_capacity(vertices.len());
        vertices.retain(|vertex| seen.insert(vertex.digest));
        Ok(Self { vertices, result, source: definition.source.clone().map(Arc::new) })
    }

    /// The vertices the result depends on, inputs first.
    pub fn vertices(&self) -> &[Arc<Vertex>] {
        &self.vertices
    }

    /// The edge the definition stands for.
    pub fn result(&self) -> Edge {
        self.result
    }

    /// Source texts and where each vertex stands in them, keyed by received digest.
    pub fn source(&self) -> Option<&Arc<pb::Source>> {
        self.source.as_ref()
    }

    /// Where `vertex` came from, if the client said so: (file, ranges) pairs.
    pub fn locations(&self, vertex: &Vertex) -> Vec<(pb::SourceInfo, Vec<pb::Range>)> {
        let Some(source) = &self.source else { return Vec::new() };
        let Some(locations) = source.locations.get(&vertex.received.to_string()) else {
            return Vec::new();
        };
        locations
            .locations
            .iter()
            .filter_map(|location| {
                let info = source.infos.get(usize::try_from(location.source_index).ok()?)?;
                Some((info.clone(), location.ranges.clone()))
            })
            .collect()
    }
}

fn position(positions: &HashMap<String, usize>, digest: &str) -> Result<usize, DefinitionError> {
    positions.get(digest).copied().ok_or_else(|| DefinitionError::MissingInput(digest.to_owned()))
}

/// Positions of everything `root` needs, inputs first, without recursion.
fn order(
    raws: &[Raw<'_>],
    positions: &HashMap<String, usize>,
    root: usize,
) -> Result<Vec<usize>, DefinitionError> {
    #[derive(Clone, Copy, PartialEq)]
    enum Mark {
        New,
        Open,
        Done,
    }
    let mut marks = vec![Mark::New; raws.len()];
    let mut order = Vec::new();
    let mut stack = vec![(root, 0)];
    marks[root] = Mark::Open;
    while let Some((at, next)) = stack.pop() {
        match raws[at].op.inputs.get(next) {
            Some(input) => {
                stack.push((at, next + 1));
                let child = position(positions, &input.digest)?;
                match marks[child] {
                    Mark::New => {
                        marks[child] = Mark::Open;
                        stack.push((child, 0));
                    }
                    Mark::Open => return Err(DefinitionError::Cycle(raws[child].received)),
                    Mark::Done => {}
                }
            }
            None => {
                marks[at] = Mark::Done;
                order.push(at);
            }
        }
    }
    Ok(order)
}

fn vertex(
    raw: &Raw<'_>,
    positions: &HashMap<String, usize>,
    done: &HashMap<usize, Arc<Vertex>>,
    definition: &pb::Definition,
    options: &ParseOptions<'_>,
) -> Result<Vertex, DefinitionError> {
    let mut op = raw.op.clone();
    let mut inputs = Vec::with_capacity(op.inputs.len());
    let mut names = Vec::with_capacity(op.inputs.len());
    for (number, input) in op.inputs.iter_mut().enumerate() {
        let index = usize::try_from(input.index)
            .map_err(|_| DefinitionError::InputIndex { input: number, index: input.index })?;
        let vertex = &done[&position(positions, &input.digest)?];
        input.digest = vertex.digest.to_string();
        inputs.push(Edge { vertex: vertex.digest, index });
        names.push(vertex.name.clone());
    }
    let mut canonical = encode::canonical_op_with_inputs(
        raw.bytes,
        inputs.iter().map(|edge| edge.vertex.to_string()),
    )
    .map_err(|error| DefinitionError::Undecodable(error.to_string()))?;
    check(&op)?;
    let proxied = options.proxy_network && is_proxied(&op)?;
    if proxied {
        canonical.extend_from_slice(PROXIED);
    }
    let metadata = definition.metadata.get(&raw.received.to_string()).cloned().unwrap_or_default();
    if let Some(known) = options.capabilities {
        let missing =
            metadata.caps.iter().find(|(cap, needed)| **needed && !known.contains(&cap.as_str()));
        if let Some((cap, _)) = missing {
            return Err(DefinitionError::UnsupportedCapability(cap.clone()));
        }
    }
    let platform = match &op.platform {
        Some(platform) => Platform::from(platform).normalize(),
        None => options.default_platform.clone(),
    };
    op.platform = Some((&platform).into());
    let name =
        name::vertex_name(&op, &metadata, |index| names.get(index).map_or("", String::as_str));
    let digest = Digest::of(canonical);
    Ok(Vertex { digest, received: raw.received, op, inputs, metadata, name, proxied })
}

/// Whether the op is a step that has a network.
fn is_proxied(op: &pb::Op) -> Result<bool, DefinitionError> {
    let Some(pb::op::Op::Exec(exec)) = &op.op else { return Ok(false) };
    match pb::NetMode::try_from(exec.network) {
        Ok(pb::NetMode::Unset | pb::NetMode::Host) => Ok(true),
        Ok(pb::NetMode::None) => Ok(false),
        Err(_) => Err(DefinitionError::NetworkMode(exec.network)),
    }
}

fn check(op: &pb::Op) -> Result<(), DefinitionError> {
    use pb::op::Op;
    let fail = |text: String| Err(DefinitionError::InvalidOp(text));
    let bad_input = |index: i64| index < -1 || index >= op.inputs.len() as i64;
    match &op.op {
        Some(Op::Exec(exec)) => {
            let Some(meta) = &exec.meta else { return fail("invalid exec op with no meta".into()) };
            if meta.args.is_empty() {
                return fail("invalid exec op with no args".into());
            }
            if exec.mounts.is_empty() {
                return fail("invalid exec op with no mounts".into());
            }
            if !exec.mounts.iter().any(|mount| mount.dest == "/") {
                return fail("invalid exec op with no rootfs".into());
            }
            match exec.mounts.iter().find(|mount| bad_input(mount.input)) {
                Some(mount) => fail(format!(
                    "invalid exec op mount {} input index {}",
                    mount.dest, mount.input
                )),
                None => Ok(()),
            }
        }
        Some(Op::File(file)) if file.actions.is_empty() => {
            fail("invalid file op with no actions".into())
        }
        Some(Op::Diff(diff)) => {
            let (Some(lower), Some(upper)) = (&diff.lower, &diff.upper) else {
                return fail("invalid diff op with nil lower or upper input".into());
            };
            match [lower.input, upper.input].into_iter().find(|index| bad_input(*index)) {
                Some(index) => fail(format!("invalid diff input index {index}")),
                None => Ok(()),
            }
        }
        Some(Op::Merge(merge)) => match merge.inputs.iter().find(|side| bad_input(side.input)) {
            Some(side) => fail(format!("invalid merge input index {}", side.input)),
            None => Ok(()),
        },
        Some(Op::Passthrough(pass)) => {
            if pass.id.is_empty() {
                return fail("invalid passthrough op with no id".into());
            }
            if pass.outputs.is_empty() {
                return fail("invalid passthrough op with no outputs".into());
            }
            match pass.outputs.iter().find(|index| **index < 0 || bad_input(**index)) {
                Some(index) => fail(format!("invalid passthrough output input index {index}")),
                None => Ok(()),
            }
        }
        Some(_) => Ok(()),
        None => fail("invalid op with no kind".into()),
    }
}

impl From<&pb::Platform> for Platform {
    fn from(wire: &pb::Platform) -> Self {
        Self {
            architecture: wire.architecture.clone(),
            os: wire.os.clone(),
            os_version: wire.os_version.clone(),
            os_features: wire.os_features.clone(),
            variant: wire.variant.clone(),
        }
    }
}

impl From<&Platform> for pb::Platform {
    fn from(platform: &Platform) -> Self {
        Self {
            architecture: platform.architecture.clone(),
            os: platform.os.clone(),
            variant: platform.variant.clone(),
            os_version: platform.os_version.clone(),
            os_features: platform.os_features.clone(),
        }
    }
}
impl pb::Definition {
    /// Takes out places of vertices that have none, also in the graphs its files come from. They
    /// mean nothing, but an empty value in a map is left out on the wire, and Go clients take it for
    /// nil there.
    pub fn drop_empty_locations(&mut self) {
        let Some(source) = &mut self.source else { return };
        source.locations.retain(|_, places| !places.locations.is_empty());
        for info in &mut source.infos {
            if let Some(definition) = &mut info.definition {
                definition.drop_empty_locations();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The name of a step with this network, behind a proxy or not, before it was digested.
    fn check(network: i32, proxy_network: bool, expected: Result<&[u8], &str>) {
        let exec = pb::ExecOp {
            meta: Some(pb::Meta { args: vec!["true".into()], ..Default::default() }),
            mounts: vec![pb::Mount { input: -1, dest: "/".into(), ..Default::default() }],
            network,
            ..Default::default()
        };
        let op = pb::Op { op: Some(pb::op::Op::Exec(exec)), ..Default::default() };
        let op = op.encode_to_vec();
        let digest = Digest::of(&op).to_string();
        let terminal =
            pb::Op { inputs: vec![pb::Input { digest, index: 0 }], ..Default::default() };
        let mut name = encode::canonical_op(&op).unwrap();
        let def = vec![op.into(), terminal.encode_to_vec().into()];
        let definition = pb::Definition { def, ..Default::default() };
        let platform = Platform::new("linux", "amd64");
        let options =
            ParseOptions { default_platform: &platform, capabilities: None, proxy_network };
        let parsed = Definition::parse(&definition, &options).map_err(|error| error.to_string());
        match expected {
            Ok(end) => {
                name.extend_from_slice(end);
                let parsed = parsed.unwrap();
                assert_eq!(parsed.result().vertex, Digest::of(name), "{network} {proxy_network}");
                assert_eq!(parsed.vertices()[0].proxied, !end.is_empty());
            }
            Err(text) => assert_eq!(parsed.unwrap_err(), text),
        }
    }

    #[test]
    fn steps_behind_a_proxy_have_other_names() {
        let [unset, host, none] =
            [pb::NetMode::Unset, pb::NetMode::Host, pb::NetMode::None].map(|mode| mode as i32);
        let end = b"\0buildkit.proxy-network.v0";
        check(unset, false, Ok(b""));
        check(unset, true, Ok(end));
        check(host, true, Ok(end));
        check(none, true, Ok(b""));
        check(7, false, Ok(b""));
        check(7, true, Err("network mode 7 is not allowed when proxy network is enabled"));
    }
}
