//! Recorded definitions: parsing gives the recorded digests, names and result edge.

use std::{fs, path::Path};

use base::{Digest, Platform};
use llb::{Definition, ParseOptions, encode, pb};
use prost::Message as _;
use serde_json::Value;

#[test]
fn recorded_definitions_parse_to_the_recorded_vertices() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/llb");
    let mut checked = 0;
    for entry in fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "pb") {
            continue;
        }
        let expected: Value =
            serde_json::from_slice(&fs::read(path.with_extension("json")).unwrap()).unwrap();
        let wire = pb::Definition::decode(fs::read(&path).unwrap().as_slice()).unwrap();
        check(&path.file_stem().unwrap().to_string_lossy(), &wire, &expected);
        checked += 1;
    }
    assert!(checked >= 28, "only {checked} recorded definitions found");
}

fn check(name: &str, wire: &pb::Definition, expected: &Value) {
    let platform = Platform::new("linux", "amd64");
    let options =
        ParseOptions { default_platform: &platform, capabilities: None, proxy_network: false };
    let parsed =
        Definition::parse(wire, &options).unwrap_or_else(|error| panic!("{name}: {error}"));
    assert_eq!(
        parsed.result().vertex.to_string(),
        expected["result_vertex"].as_str().unwrap(),
        "{name}"
    );
    assert_eq!(parsed.result().index as u64, expected["result_index"].as_u64().unwrap(), "{name}");
    for (bytes, vertex) in wire.def.iter().zip(expected["vertices"].as_array().unwrap()) {
        let received = Digest::of(bytes);
        assert_eq!(received.to_string(), vertex["wire_digest"].as_str().unwrap(), "{name}");
        if vertex["terminal"].as_bool() == Some(true) {
            continue;
        }
        let Some(ours) = parsed.vertices().iter().find(|ours| ours.received == received) else {
            continue;
        };
        assert_eq!(ours.digest.to_string(), vertex["vertex_digest"].as_str().unwrap(), "{name}");
        assert_eq!(ours.name, vertex["name"].as_str().unwrap(), "{name}");
        let again = encode::canonical_op(bytes).unwrap();
        assert_eq!(
            encode::canonical_op(&again).unwrap(),
            again,
            "{name}: canonical bytes are stable"
        );
    }
}

#[test]
fn mutated_definitions_never_panic() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/llb");
    let platform = Platform::new("linux", "amd64");
    let options =
        ParseOptions { default_platform: &platform, capabilities: None, proxy_network: false };
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    for entry in fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "pb") {
            continue;
        }
        let bytes = fs::read(&path).unwrap();
        for _ in 0..200 {
            let mut mutated = bytes.clone();
            for _ in 0..3 {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let at = (state >> 33) as usize % mutated.len();
                mutated[at] = state as u8;
            }
            if let Ok(wire) = pb::Definition::decode(mutated.as_slice()) {
                _ = Definition::parse(&wire, &options);
            }
        }
    }
}
