//! The graph of a file as a document.

use std::collections::BTreeMap;

use base::Digest;
use frontend_api::FrontendResult;
use llb::pb;
use prost::Message as _;
use serde_json::{Map, Value, json as object};

use super::{Metadata, documents, json};
use crate::context::{Client, DockerfileSource};
use crate::error::Result;
use crate::frontend::warn;
use crate::lint::Linter;
use crate::lower::{self, Request};
use crate::protojson;

pub(super) async fn answer(client: &Client, source: &DockerfileSource) -> Result<FrontendResult> {
    let config = lower::lint_config(client, &source.data)?;
    let mut linter = Linter::new(config);
    let converted = lower::convert(client, source, &Request::default(), &mut linter).await;
    warn(client, source, &linter).await;
    let definition = converted?.definition()?;
    let mut ops = BTreeMap::new();
    for bytes in &definition.def {
        if let Ok(op) = pb::Op::decode(bytes.clone()) {
            ops.insert(Digest::of(bytes).to_string(), protojson::op(&op));
        }
    }
    let metadata: BTreeMap<&String, Value> = definition
        .metadata
        .iter()
        .map(|(digest, metadata)| (digest, show_metadata(metadata)))
        .collect();
    let source =
        definition.source.as_ref().map_or_else(|| Value::Object(Map::new()), protojson::source);
    let document = object!({ "def": ops, "metadata": metadata, "source": source });
    Ok(documents("0.1.0", vec![("result.json", json(&document))]))
}

/// Metadata in the form of the official document, which differs from that of ops.
fn show_metadata(metadata: &pb::OpMetadata) -> Value {
    let plain = Metadata {
        ignore_cache: metadata.ignore_cache,
        description: metadata.description.clone(),
        caps: metadata.caps.clone(),
    };
    let mut value = serde_json::to_value(plain).unwrap_or_default();
    if let (Some(limits), Value::Object(map)) = (&metadata.linux_resources, &mut value) {
        let mut entry = Map::new();
        for (name, number) in [
            ("memory", Value::from(limits.memory)),
            ("memorySwap", limits.memory_swap.into()),
            ("cpuShares", limits.cpu_shares.into()),
            ("cpuPeriod", limits.cpu_period.into()),
            ("cpuQuota", limits.cpu_quota.into()),
            ("cpusetCpus", limits.cpuset_cpus.as_str().into()),
            ("cpusetMems", limits.cpuset_mems.as_str().into()),
        ] {
            if number != 0 && number != "" {
                entry.insert(name.to_owned(), number);
            }
        }
        map.insert("linux_resources".to_owned(), entry.into());
    }
    if let (Some(group), Value::Object(map)) = (&metadata.progress_group, &mut value) {
        let mut entry = Map::new();
        entry.insert("id".to_owned(), group.id.clone().into());
        entry.insert("name".to_owned(), group.name.clone().into());
        if group.weak {
            entry.insert("weak".to_owned(), true.into());
        }
        map.insert("progress_group".to_owned(), entry.into());
    }
    value
}
