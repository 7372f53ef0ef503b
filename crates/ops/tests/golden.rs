//! Recorded cache maps: our pre-images, selectors and content flags are the recorded ones.

use std::{fs, path::Path};

use base::{Digest, Platform};
use llb::{Definition, ParseOptions, pb};
use prost::Message as _;
use serde_json::Value;

#[test]
fn recorded_cache_maps_are_reproduced() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/llb");
    let (mut maps, mut failures) = (0, Vec::new());
    for entry in fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "pb") {
            continue;
        }
        let expected: Value =
            serde_json::from_slice(&fs::read(path.with_extension("json")).unwrap()).unwrap();
        let wire = pb::Definition::decode(fs::read(&path).unwrap().as_slice()).unwrap();
        let platform = Platform::new("linux", "amd64");
        let options =
            ParseOptions { default_platform: &platform, capabilities: None, proxy_network: false };
        let parsed = Definition::parse(&wire, &options).unwrap();
        for vertex in expected["vertices"].as_array().unwrap() {
            let recorded = &vertex["cache_map"];
            if recorded.is_null() {
                continue;
            }
            let digest = vertex["vertex_digest"].as_str().unwrap();
            let Some(ours) =
                parsed.vertices().iter().find(|ours| ours.digest.to_string() == digest)
            else {
                continue;
            };
            let map = ops::key::cache_map(ours).expect("only sources lack a map").unwrap();
            maps += 1;
            let preimage = String::from_utf8(map.preimage.clone()).unwrap();
            if recorded["preimage"].as_str().is_some_and(|text| text != preimage)
                || recorded["digest"].as_str() != Some(&map.digest().to_string())
            {
                failures.push(format!(
                    "{}: ours {preimage}\n  recorded {}",
                    path.display(),
                    recorded["preimage"]
                ));
            }
            let deps = recorded["deps"].as_array().unwrap();
            assert_eq!(deps.len(), map.inputs.len());
            for (dep, input) in deps.iter().zip(&map.inputs) {
                let selector = input.selector.as_ref().map_or(String::new(), Digest::to_string);
                if dep["selector"].as_str().unwrap_or("") != selector
                    || dep["content_based"].as_bool().unwrap_or(false) != input.content.is_some()
                {
                    failures.push(format!("{}: {dep} vs {input:?}", path.display()));
                }
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    assert!(maps > 30, "only {maps} cache maps checked");
    println!("{maps} cache maps checked");
}
