//! Taking over definitions made elsewhere.
//!
//! The ops keep their bytes and so their digests; only the terminal op is dropped.

use std::collections::HashMap;

use base::Digest;
use bytes::Bytes;
use prost::Message as _;

use super::{FileId, Graph, Meta, Op, Output};
use crate::pb;

/// An op of another definition.
#[derive(Debug, Clone)]
pub(super) struct Imported {
    pub bytes: Bytes,
    pub digest: Digest,
    pub metadata: pb::OpMetadata,
    pub inputs: Vec<Output>,
}

/// The definition cannot be taken over.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ImportError {
    /// An element is not an op.
    #[error("definition holds bytes that are no op")]
    Undecodable,
    /// An op names an input that is not there, or comes later.
    #[error("definition does not hold input {0} before its user")]
    MissingInput(String),
    /// The last op names no result.
    #[error("definition names no result")]
    NoResult,
    /// A location names a file that is not there.
    #[error("definition has no source file {0}")]
    MissingFile(i32),
}

pub(super) fn import(
    graph: &mut Graph,
    definition: &pb::Definition,
) -> Result<Option<Output>, ImportError> {
    let Some((terminal, ops)) = definition.def.split_last() else { return Ok(None) };
    let locations = locations(graph, definition)?;
    let mut nodes: HashMap<String, u32> = HashMap::new();
    for bytes in ops {
        let op = pb::Op::decode(bytes.clone()).map_err(|_| ImportError::Undecodable)?;
        let inputs = op
            .inputs
            .iter()
            .map(|input| find(&nodes, input))
            .collect::<Result<Vec<Output>, _>>()?;
        let digest = Digest::of(bytes);
        let name = digest.to_string();
        let imported = Imported {
            bytes: bytes.clone(),
            digest,
            metadata: definition.metadata.get(&name).cloned().unwrap_or_default(),
            inputs,
        };
        let meta = Meta {
            locations: locations.get(&name).cloned().unwrap_or_default(),
            ..Meta::default()
        };
        let output = graph.push(Op::Imported(Box::new(imported)), meta);
        nodes.insert(name, output.node);
    }
    let terminal = pb::Op::decode(terminal.clone()).map_err(|_| ImportError::Undecodable)?;
    let result = terminal.inputs.first().ok_or(ImportError::NoResult)?;
    find(&nodes, result).map(Some)
}

fn find(nodes: &HashMap<String, u32>, input: &pb::Input) -> Result<Output, ImportError> {
    let missing = || ImportError::MissingInput(input.digest.clone());
    let node = *nodes.get(&input.digest).ok_or_else(missing)?;
    Ok(Output { node, index: u32::try_from(input.index).map_err(|_| missing())? })
}

type Locations = HashMap<String, Vec<(FileId, Vec<pb::Range>)>>;

fn locations(graph: &mut Graph, definition: &pb::Definition) -> Result<Locations, ImportError> {
    let Some(source) = &definition.source else { return Ok(Locations::new()) };
    let files: Vec<FileId> =
        source.infos.iter().map(|info| graph.add_source_file(info.clone())).collect();
    let mut all = Locations::new();
    for (digest, list) in &source.locations {
        for location in &list.locations {
            let file = usize::try_from(location.source_index)
                .ok()
                .and_then(|index| files.get(index))
                .ok_or(ImportError::MissingFile(location.source_index))?;
            all.entry(digest.clone()).or_default().push((*file, location.ranges.clone()));
        }
    }
    Ok(all)
}
