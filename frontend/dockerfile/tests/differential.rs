//! Mutated files, converted here and by the official frontend, give the same.
//!
//! Runs only if `RBUILD_DFDIFF` names the program of `differential/main.go`, built inside a
//! BuildKit source tree:
//!
//! ```text
//! echo '{"Replace":{"<tree>/cmd/dfdiff/main.go":"<here>/differential/main.go"}}' > overlay.json
//! cd <tree> && go build -mod=vendor -overlay overlay.json -o dfdiff ./cmd/dfdiff
//! RBUILD_DFDIFF=dfdiff cargo test -p dockerfile --test differential
//! ```
//!
//! `RBUILD_SEED` and `RBUILD_MUTATIONS` choose the files. Differences are listed, at most 20.

mod common;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use common::mutate::{Random, mutate, seeds};
use common::{FolderBridge, Images, block_on};
use dockerfile::context::{Client, DockerfileSource};
use dockerfile::error::Kind;
use dockerfile::lint::Linter;
use dockerfile::lower::{self, Request};
use llb::pb;
use serde_json::{Value, json};

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
}

/// Options that the files are converted with in turn.
const OPTIONS: [&[(&str, &str)]; 7] = [
    &[("platform", "linux/amd64"), ("build-arg:A", "x")],
    &[("platform", "windows/amd64")],
    &[("no-cache", ""), ("build-arg:HTTP_PROXY", "p"), ("image-resolve-mode", "pull")],
    &[("platform", "linux/arm/v7"), ("multi-platform", "true"), ("label:a", "b")],
    &[("platform", "linux/arm64"), ("build-arg:SOURCE_DATE_EPOCH", "5"), ("hostname", "h")],
    &[
        ("platform", "linux/amd64"),
        ("context:a", "docker-image://stub.example/full"),
        ("context:alpine", "https://h/r.git#b"),
        ("context:build", "local:dir"),
        ("add-hosts", "x=1.2.3.4"),
        ("shm-size", "1024"),
        ("ulimit", "nofile=1"),
    ],
    &[
        ("platform", "linux/amd64"),
        ("build-arg:BUILDKIT_CACHE_MOUNT_NS", "ns"),
        ("build-arg:TARGETARCH", "mips"),
        ("force-network-mode", "host"),
        ("memory", "4096"),
        ("cgroup-parent", "g"),
        ("build-arg:BUILDKIT_DOCKERFILE_CHECK", "experimental=all"),
    ],
];

fn options(number: u64) -> BTreeMap<String, String> {
    let list = OPTIONS[number as usize % OPTIONS.len()];
    list.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

#[test]
fn mutated_files_convert_alike() {
    let Some(program) = std::env::var_os("RBUILD_DFDIFF") else { return };
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus");
    let corpus = std::env::var_os("RBUILD_CORPUS").map_or(root.clone(), Into::into);
    let seeds = seeds(&corpus);
    let mut random = Random(number("RBUILD_SEED", 1));
    let folder = std::env::temp_dir().join(format!("dfdiff-{}", base::id::random_id()));
    std::fs::create_dir_all(&folder).unwrap();
    let mut names = String::new();
    for number in 0..number("RBUILD_MUTATIONS", 2_000) {
        let path = folder.join(format!("{number:06}"));
        std::fs::write(&path, mutate(&mut random, &seeds)).unwrap();
        let options = serde_json::to_string(&options(number)).unwrap();
        writeln!(names, "{}\t{options}", path.display()).unwrap();
    }
    let list = root.join("stub-images.json");
    // The list is a file, since the program answers while it reads.
    let listed = folder.join("list");
    std::fs::write(&listed, names).unwrap();
    let output = Command::new(program)
        .arg(&list)
        .stdin(std::fs::File::open(&listed).unwrap())
        .stderr(Stdio::null())
        .output()
        .expect("the official frontend starts");
    assert!(output.status.success());
    let images = Arc::new(Images::read(&list));
    let clients: Vec<Client> = (0..OPTIONS.len() as u64)
        .map(|number| {
            let mut bridge = FolderBridge::new(&folder, Arc::clone(&images));
            bridge.options = options(number);
            block_on(Client::new(Arc::new(bridge), false)).unwrap()
        })
        .collect();
    let (mut all, mut good, mut report) = (0, 0, String::new());
    let mut differences = 0;
    for (number, line) in String::from_utf8(output.stdout).unwrap().lines().enumerate() {
        let wanted: Value = serde_json::from_str(line).unwrap();
        let data = std::fs::read(wanted["name"].as_str().unwrap()).unwrap();
        let client = &clients[number % clients.len()];
        let got = convert(client, &data);
        all += 1;
        good += usize::from(wanted["ok"] == true);
        let field = ["ok", "lines", "ops", "config", "lint"]
            .into_iter()
            .find(|field| got[field] != wanted[field])
            // Bases are looked up all at once there, and any of several errors comes first.
            .filter(|field| *field != "lines" || got["base"] != true);
        let Some(field) = field else { continue };
        differences += 1;
        if differences <= 20 {
            writeln!(
                report,
                "{} {number} {field}\n  got    {} {}\n  wanted {} {}",
                wanted["name"], got[field], got["error"], wanted[field], wanted["error"]
            )
            .unwrap();
        }
    }
    println!("{all} files, {good} convert, {differences} differ\n{report}");
    assert_eq!(differences, 0, "{report}");
    std::fs::remove_dir_all(&folder).unwrap();
}

fn convert(client: &Client, data: &[u8]) -> Value {
    let data = bytes::Bytes::copy_from_slice(data);
    let info = pb::SourceInfo { data: data.clone(), ..Default::default() };
    let source = DockerfileSource { data, info, vertex: String::new() };
    let platform = client.options.platforms.first().cloned();
    let request = Request { platform, all_stages: false };
    let (result, findings) = match lower::lint_config(client, &source.data) {
        Err(error) => (Err(error), Vec::new()),
        Ok(config) => {
            let mut linter = Linter::new(config);
            let result = block_on(lower::convert(client, &source, &request, &mut linter));
            (result, linter.into_findings())
        }
    };
    let mut lint: Vec<Value> = findings
        .iter()
        .map(|f| json!({"rule": f.rule.name(), "line": f.lines.first, "message": f.message}))
        .collect();
    let key = |f: &Value| {
        let text = |name: &str| f[name].as_str().unwrap().to_owned();
        (f["line"].as_u64(), text("rule"), text("message"))
    };
    lint.sort_by_key(key);
    let written = result.and_then(|converted| Ok((converted.definition()?, converted)));
    match written {
        Ok((definition, converted)) => {
            let digest = |bytes: &bytes::Bytes| base::Digest::of(bytes).to_string();
            let ops: Vec<String> = definition.def.iter().map(digest).collect();
            let config: Value = serde_json::from_slice(&converted.image.to_json()).unwrap();
            json!({"ok": true, "lines": [], "ops": ops, "config": config, "lint": lint})
        }
        Err(error) => {
            let lines: Vec<Value> = error
                .locations
                .iter()
                .map(|lines| json!([lines.first, lines.last.max(lines.first)]))
                .collect();
            let text = error.to_string();
            let base = error.kind == Kind::BadImageReference || error.cause.is_some();
            json!({"ok": false, "lines": lines, "ops": [], "lint": lint, "error": text, "base": base})
        }
    }
}
