//! Replaces ops of a definition, with everything that names them.
//!
//! An op is named by the digest of its bytes, so a replaced one changes the bytes of all that use
//! it. Metadata and source locations move along. Invariant: what depends on nothing replaced keeps
//! its bytes and so its digest.

use std::collections::HashMap;

use base::Digest;
use bytes::Bytes;
use prost::Message as _;

use crate::{DefinitionError, encode, pb};

/// `definition` with the ops at these positions replaced.
pub fn replace_ops(
    definition: &pb::Definition,
    mut replaced: HashMap<usize, pb::Op>,
) -> Result<pb::Definition, DefinitionError> {
    let undecodable =
        |error: &dyn std::fmt::Display| DefinitionError::Undecodable(error.to_string());
    let mut ops = Vec::with_capacity(definition.def.len());
    let mut positions = HashMap::with_capacity(definition.def.len());
    for (at, bytes) in definition.def.iter().enumerate() {
        ops.push(pb::Op::decode(bytes.clone()).map_err(|error| undecodable(&error))?);
        positions.insert(Digest::of(bytes).to_string(), at);
    }
    let mut rewritten = Rewritten { bytes: definition.def.clone(), renamed: HashMap::new() };
    // Inputs first; each position is entered once, so a cycle ends too.
    let mut entered = vec![false; ops.len()];
    for start in 0..ops.len() {
        let mut stack = vec![(start, false)];
        while let Some((at, inputs_done)) = stack.pop() {
            if inputs_done {
                rewritten.settle(at, &ops[at], replaced.remove(&at))?;
                continue;
            }
            if std::mem::replace(&mut entered[at], true) {
                continue;
            }
            stack.push((at, true));
            let inputs = ops[at].inputs.iter().filter_map(|input| positions.get(&input.digest));
            stack.extend(inputs.map(|input| (*input, false)));
        }
    }
    let Rewritten { bytes, renamed } = rewritten;
    let name = |old: &String| renamed.get(old).unwrap_or(old).clone();
    let metadata = definition.metadata.iter().map(|(key, value)| (name(key), value.clone()));
    let source = definition.source.as_ref().map(|source| pb::Source {
        locations: source.locations.iter().map(|(key, at)| (name(key), at.clone())).collect(),
        ..source.clone()
    });
    Ok(pb::Definition { def: bytes, metadata: metadata.collect(), source })
}

struct Rewritten {
    bytes: Vec<Bytes>,
    /// Digests that changed.
    renamed: HashMap<String, String>,
}

impl Rewritten {
    fn settle(
        &mut self,
        at: usize,
        op: &pb::Op,
        replacement: Option<pb::Op>,
    ) -> Result<(), DefinitionError> {
        let uses_renamed = op.inputs.iter().any(|input| self.renamed.contains_key(&input.digest));
        let base = match &replacement {
            None if !uses_renamed => return Ok(()),
            None => self.bytes[at].to_vec(),
            Some(op) => op.encode_to_vec(),
        };
        let inputs = op
            .inputs
            .iter()
            .map(|input| self.renamed.get(&input.digest).unwrap_or(&input.digest).clone());
        let bytes = encode::canonical_op_with_inputs(&base, inputs)
            .map_err(|error| DefinitionError::Undecodable(error.to_string()))?;
        let (old, new) = (Digest::of(&self.bytes[at]).to_string(), Digest::of(&bytes).to_string());
        self.bytes[at] = bytes.into();
        if old != new {
            self.renamed.insert(old, new);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use base::Platform;

    use super::*;
    use crate::{
        Definition, ParseOptions,
        build::{FileAction, Graph, MarshalOptions, Meta, Mkdir, Source},
    };

    fn graph(image: &str) -> pb::Definition {
        let mut graph = Graph::new();
        let base = graph.source(Source::image(image), Meta::named("the base"));
        let other = graph.source(Source::image("docker.io/library/other:1"), Meta::default());
        let made =
            graph.file(Some(base), vec![FileAction::Mkdir(Mkdir::new("/a"))], Meta::named("made"));
        let both = graph.merge([Some(made), Some(other)], Meta::default());
        graph.marshal(both, &MarshalOptions::default()).unwrap()
    }

    #[test]
    fn a_replaced_source_is_as_if_it_had_been_written_so() {
        let (before, wanted) = (graph("docker.io/library/old:1"), graph("docker.io/library/new:2"));
        let changed = before.def.iter().enumerate().filter_map(|(at, bytes)| {
            let mut op = pb::Op::decode(bytes.clone()).unwrap();
            let Some(pb::op::Op::Source(source)) = &mut op.op else { return None };
            if !source.identifier.ends_with("old:1") {
                return None;
            }
            source.identifier = "docker-image://docker.io/library/new:2".into();
            Some((at, op))
        });
        let after = replace_ops(&before, changed.collect()).unwrap();
        let platform = Platform::parse("linux/amd64").unwrap();
        let options =
            ParseOptions { default_platform: &platform, capabilities: None, proxy_network: false };
        let parse = |definition| Definition::parse(definition, &options).unwrap();
        let (after, wanted) = (parse(&after), parse(&wanted));
        assert_eq!(after.result(), wanted.result());
        let names = |definition: &Definition| {
            let names = definition.vertices().iter().map(|vertex| vertex.name.clone());
            names.collect::<Vec<_>>()
        };
        assert_eq!(names(&after), names(&wanted));
    }

    #[test]
    fn without_replacements_nothing_changes() {
        let before = graph("docker.io/library/old:1");
        assert_eq!(replace_ops(&before, HashMap::new()).unwrap(), before);
    }
}
