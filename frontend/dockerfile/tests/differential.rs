//! Builds of generated and mutated files, run here and by the official frontend, ask the same of
//! the daemon and return the same.
//!
//! Runs only if `RBUILD_DFDIFF` names the program of `differential/main.go`, built inside a
//! BuildKit source tree:
//!
//! ```text
//! echo '{"Replace":{"<tree>/cmd/dfdiff/main.go":"<here>/differential/main.go"}}' > overlay.json
//! cd <tree> && go build -mod=vendor -overlay overlay.json -o dfdiff ./cmd/dfdiff
//! RBUILD_DFDIFF=dfdiff cargo test -p dockerfile --test differential -- --nocapture
//! ```
//!
//! `RBUILD_SEED` and `RBUILD_CASES` choose the cases; `RBUILD_GIVEN` names a file of others. Differences are listed, at most
//! `RBUILD_SHOW` of each sort; with `RBUILD_KINDS` the pairs of error kinds and official messages
//! are listed too.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use base::{Digest, Platform};
use base64::Engine as _;
use common::generate::{self, Case, Maker};
use common::mutate::{Random, mutate, seeds};
use common::record::{Graphs, Recorder, lines};
use common::{Images, block_on};
use dockerfile::Dockerfile;
use dockerfile::git::GitRef;
use dockerfile::protojson;
use dockerfile::reference::Reference;
use dockerfile::shell::{Lexer, Variables};
use dockerfile::text;
use frontend_api::{AttestationKind, Frontend as _, Refs};
use llb::pb;
use prost::Message as _;
use serde_json::{Map, Value, json};

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
}

/// With `RBUILD_LABS` the labs channel is compared, whose program is built with its tag.
fn frontend() -> Dockerfile {
    Dockerfile { devices: std::env::var_os("RBUILD_LABS").is_some() }
}

fn images() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus/stub-images.json")
}

fn base64(data: &[u8]) -> String {
    base64::engine::general_purpose::STANDARD.encode(data)
}

/// Asks the official program, one line a question.
fn ask(program: &std::ffi::OsStr, questions: &[Value]) -> Vec<Value> {
    let folder = std::env::temp_dir().join(format!("dfdiff-{}", base::id::random_id()));
    std::fs::create_dir_all(&folder).unwrap();
    let asked = folder.join("questions");
    let mut file = std::io::BufWriter::new(std::fs::File::create(&asked).unwrap());
    for question in questions {
        writeln!(file, "{question}").unwrap();
    }
    file.flush().unwrap();
    let output = Command::new(program)
        .arg(images())
        .stdin(std::fs::File::open(&asked).unwrap())
        .stderr(Stdio::inherit())
        .output()
        .expect("the official frontend starts");
    assert!(output.status.success());
    std::fs::remove_dir_all(&folder).unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// What differs, sorted by where.
#[derive(Default)]
struct Report {
    sorts: BTreeMap<String, (usize, String)>,
    kinds: BTreeMap<(String, String), (usize, String)>,
}

impl Report {
    fn add(&mut self, sort: &str, text: impl FnOnce() -> String) {
        let (count, shown) = self.sorts.entry(sort.to_owned()).or_default();
        *count += 1;
        if *count <= number("RBUILD_SHOW", 2) as usize {
            writeln!(shown, "{}", text()).unwrap();
        }
    }

    fn finish(self, all: usize, good: usize) {
        if std::env::var_os("RBUILD_KINDS").is_some() {
            for ((ours, official), (count, example)) in &self.kinds {
                println!("{count:5} {ours} <> {official}\n        {example}");
            }
        }
        let differ: usize = self.sorts.values().map(|(count, _)| count).sum();
        println!("{all} cases, {good} succeed, {differ} differ");
        for (sort, (count, shown)) in &self.sorts {
            println!("== {sort}: {count}\n{shown}");
        }
        assert!(self.sorts.is_empty(), "{differ} differences");
    }
}

fn case_json(case: &Case) -> Value {
    let files: Map<String, Value> = case
        .files
        .iter()
        .map(|(source, files)| {
            let files: Map<String, Value> =
                files.iter().map(|(path, data)| (path.clone(), base64(data).into())).collect();
            (source.clone(), files.into())
        })
        .collect();
    json!({"opts": case.options, "files": files, "inputs": case.inputs})
}

#[test]
fn builds_are_alike() {
    let Some(program) = std::env::var_os("RBUILD_DFDIFF") else { return };
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus");
    let corpus = std::env::var_os("RBUILD_CORPUS").map_or(root, Into::into);
    let seeds = seeds(&corpus);
    let mut random = Random(number("RBUILD_SEED", 1));
    let stubs = Arc::new(Images::read(&images()));
    let unused = Arc::default();
    let accepts = |case: &Case| {
        let recorder =
            Arc::new(Recorder::new(case.clone(), Arc::clone(&stubs), Arc::clone(&unused)));
        block_on(frontend().solve(recorder)).is_ok()
    };
    let cases: Vec<Case> = (0..number("RBUILD_CASES", 2_000))
        .map(|number| {
            let mutated = (number % 5 == 0).then(|| mutate(&mut random, &seeds));
            let mut maker = Maker::new(&mut random, &accepts);
            let mut case = Case::new(mutated.unwrap_or_else(|| generate::dockerfile(&mut maker)));
            if number % 3 > 0 {
                generate::options(&mut maker, &mut case);
            }
            case
        })
        .collect();
    compare(&program, &cases);
}

/// Cases of a file, one JSON object a line as the official program reads them, each also as the
/// sub-requests that look at it.
#[test]
fn given_builds_are_alike() {
    let Some(program) = std::env::var_os("RBUILD_DFDIFF") else { return };
    let Some(given) = std::env::var_os("RBUILD_GIVEN") else { return };
    let text = std::fs::read_to_string(given).expect("read the given cases");
    let mut cases = Vec::new();
    for line in text.lines() {
        let case = given_case(&serde_json::from_str(line).expect("a case is JSON"));
        for request in ["frontend.lint", "frontend.outline", "frontend.targets"] {
            let mut case = case.clone();
            case.option("requestid", request);
            cases.push(case);
        }
        cases.push(case);
    }
    compare(&program, &cases);
}

fn given_case(value: &Value) -> Case {
    let mut case = Case::default();
    let text = |value: &Value| value.as_str().expect("values are text").to_owned();
    let members = |name: &str| value[name].as_object().into_iter().flatten();
    for (key, value) in members("opts") {
        case.option(key, text(value));
    }
    for (name, value) in members("inputs") {
        case.inputs.insert(name.clone(), text(value));
    }
    for (source, files) in members("files") {
        for (path, data) in files.as_object().into_iter().flatten() {
            let data = base64::engine::general_purpose::STANDARD.decode(text(data));
            case.file(source, path, data.expect("files are base64"));
        }
    }
    case
}

fn compare(program: &std::ffi::OsStr, cases: &[Case]) {
    let questions: Vec<Value> = cases.iter().map(case_json).collect();
    let answers = ask(program, &questions);
    let images = Arc::new(Images::read(&images()));
    let graphs = Arc::new(Mutex::new(Graphs::default()));
    let mut report = Report::default();
    let mut good = 0;
    for (number, (case, mut wanted)) in cases.iter().zip(answers).enumerate() {
        graphs.lock().unwrap().0.clear();
        name_graphs(&mut wanted, &graphs);
        let (got, kind) = build(case, &images, &graphs);
        good += usize::from(wanted["error"].is_null());
        let show = |what: String| {
            let file = String::from_utf8_lossy(&case.files["local://dockerfile"]["Dockerfile"])
                .into_owned();
            format!("#{number} {:?} {:?}\n{file}\n-- {what}\n", case.options, case.inputs)
        };
        match (got["error"].as_str(), wanted["error"].as_str()) {
            (None, None) => {}
            (Some(ours), Some(official)) => {
                let key = (kind.unwrap_or_default(), template(official));
                report
                    .kinds
                    .entry(key)
                    .or_insert_with(|| (0, format!("{ours} <> {official}")))
                    .0 += 1;
                // Sub-requests tell the place as well, other than there.
                let told =
                    got["sources"] != wanted["sources"] && !case.options.contains_key("requestid");
                // Bases are looked up all at once there, and any of several errors comes first.
                if told && !ours.contains("stub: ") && !ours.contains("invalid image reference") {
                    report.add("error places", || {
                        show(format!(
                            "{ours}\n   {}\n   {official}\n   {}",
                            got["sources"], wanted["sources"]
                        ))
                    });
                }
                if got["warns"] != wanted["warns"] && !ours.contains("stub: ") {
                    report.add("warnings beside an error", || {
                        show(format!(
                            "{ours}\n{}",
                            explain(&got["warns"], &wanted["warns"], &graphs)
                        ))
                    });
                }
                continue;
            }
            (ours, official) => {
                let sort = match (ours, official) {
                    (Some(_), _) => "refused here only",
                    _ => "refused there only",
                };
                report.add(sort, || show(format!("ours {ours:?}\n   official {official:?}")));
                continue;
            }
        }
        for field in ["metadata", "refs", "attestations", "metas", "solves", "warns"] {
            let mut path = Vec::new();
            let found = match field {
                "metas" | "solves" | "warns" => (got[field] != wanted[field])
                    .then(|| (got[field].clone(), wanted[field].clone())),
                _ => difference(&got[field], &wanted[field], &mut path),
            };
            if let Some((ours, official)) = found {
                report.add(
                    &format!(
                        "{field}: {}",
                        path.first().map_or("", |key| key.trim_matches(char::is_numeric))
                    ),
                    || {
                        show(format!(
                            "{field}/{}\n{}",
                            path.join("/"),
                            explain(&ours, &official, &graphs)
                        ))
                    },
                );
                break;
            }
        }
    }
    report.finish(cases.len(), good);
}

/// An official message without its values.
fn template(message: &str) -> String {
    let mut out = String::new();
    let mut quoted = false;
    for char in message.chars() {
        match char {
            '"' => quoted = !quoted,
            _ if quoted => continue,
            _ if char.is_ascii_digit() => continue,
            _ => {}
        }
        out.push(char);
    }
    out.chars().take(60).collect()
}

/// Puts names in the place of graphs, and sorts what has no order.
fn name_graphs(answer: &mut Value, graphs: &Mutex<Graphs>) {
    let name = |value: &mut Value| {
        if let Some(text) = value.as_str() {
            let bytes = base64::engine::general_purpose::STANDARD.decode(text).unwrap();
            let definition = pb::Definition::decode(bytes.as_slice()).unwrap();
            *value = graphs.lock().unwrap().name(definition).into();
        }
    };
    for solve in answer["solves"].as_array_mut().into_iter().flatten() {
        name(&mut solve["definition"]);
        for import in solve["imports"].as_array_mut().into_iter().flatten() {
            if import["attrs"].is_null() {
                import["attrs"] = json!({});
            }
        }
        solve["inputs"].as_object_mut().into_iter().flatten().for_each(|(_, input)| name(input));
    }
    answer["refs"]
        .as_object_mut()
        .into_iter()
        .flatten()
        .for_each(|(_, definition)| name(definition));
    for (_, list) in answer["attestations"].as_object_mut().into_iter().flatten() {
        list.as_array_mut().unwrap().iter_mut().for_each(|entry| name(&mut entry["definition"]));
    }
    sort_lists(answer);
}

fn build(
    case: &Case,
    images: &Arc<Images>,
    graphs: &Arc<Mutex<Graphs>>,
) -> (Value, Option<String>) {
    let recorder = Arc::new(Recorder::new(case.clone(), Arc::clone(images), Arc::clone(graphs)));
    let result = block_on(frontend().solve(Arc::clone(&recorder) as _));
    let take = |list: &Mutex<Vec<Value>>| Value::from(std::mem::take(&mut *list.lock().unwrap()));
    let mut out = json!({
        "solves": take(&recorder.solves), "metas": take(&recorder.metas), "warns": take(&recorder.warns),
    });
    let graph = |reference: &frontend_api::RefHandle| {
        let definition = reference.definition().expect("refs are made of graphs");
        Value::from(graphs.lock().unwrap().name((**definition).clone()))
    };
    let mut kind = None;
    match result {
        Err(error) => {
            out["error"] = error.message.clone().into();
            let source = |source: &frontend_api::ErrorSource| json!({"file": source.info.filename, "lines": lines(&source.ranges)});
            out["sources"] = error.sources.iter().map(source).collect();
            kind = Some(error.message.chars().take(40).collect());
        }
        Ok(result) => {
            let refs: Map<String, Value> = match &result.refs {
                Refs::Single(None) => Map::new(),
                Refs::Single(Some(reference)) => {
                    Map::from_iter([(String::new(), graph(reference))])
                }
                Refs::Map(map) => map
                    .iter()
                    .map(|(name, reference)| {
                        (name.clone(), reference.as_ref().map_or(Value::Null, graph))
                    })
                    .collect(),
            };
            let texts = |map: &BTreeMap<String, bytes::Bytes>| -> BTreeMap<String, String> {
                map.iter()
                    .map(|(key, value)| (key.clone(), String::from_utf8_lossy(value).into_owned()))
                    .collect()
            };
            let attestation = |entry: &frontend_api::Attestation| {
                let kind = match entry.kind {
                    AttestationKind::InToto => "InToto",
                    AttestationKind::Bundle => "Bundle",
                };
                json!({
                    "kind": kind, "metadata": texts(&entry.metadata), "path": entry.path, "predicate": entry.predicate_type,
                    "subjects": entry.subjects.len(), "definition": entry.reference.as_ref().map_or(Value::Null, graph),
                })
            };
            let attestations: Map<String, Value> = result
                .attestations
                .iter()
                .map(|(key, list)| (key.clone(), list.iter().map(attestation).collect()))
                .collect();
            out["refs"] = refs.into();
            out["metadata"] = json!(texts(&result.metadata));
            out["attestations"] = attestations.into();
        }
    }
    sort_lists(&mut out);
    (out, kind)
}

/// What was asked has no order.
fn sort_lists(answer: &mut Value) {
    for field in ["solves", "metas", "warns"] {
        let list = answer[field].as_array().cloned().unwrap_or_default();
        let sorted: BTreeMap<String, Value> =
            list.into_iter().map(|note| (ordered(&note), note)).collect();
        answer[field] = sorted.into_values().collect();
    }
}

/// A value as text, members by name.
fn ordered(value: &Value) -> String {
    match value {
        Value::Object(map) => {
            let members: BTreeMap<&String, String> =
                map.iter().map(|(key, value)| (key, ordered(value))).collect();
            format!("{members:?}")
        }
        Value::Array(list) => format!("{:?}", list.iter().map(ordered).collect::<Vec<_>>()),
        other => other.to_string(),
    }
}

/// The first place where two values differ.
fn difference(left: &Value, right: &Value, path: &mut Vec<String>) -> Option<(Value, Value)> {
    match (left, right) {
        (Value::Object(a), Value::Object(b)) => {
            let keys: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
            for key in keys {
                path.push(key.clone());
                let null = Value::Null;
                let (a, b) = (a.get(key).unwrap_or(&null), b.get(key).unwrap_or(&null));
                // Messages are our own.
                let found = match path.iter().any(|key| key == "buildError") && key == "message" {
                    true => None,
                    false => difference(a, b, path),
                };
                if found.is_some() {
                    return found;
                }
                path.pop();
            }
            None
        }
        // Lists in no order, or in that of an unstable sort.
        (Value::String(a), Value::String(b))
            if path.last().is_some_and(|key| key == "result.txt") =>
        {
            let sorted =
                |text: &str| -> BTreeSet<String> { text.lines().map(str::to_owned).collect() };
            (sorted(a) != sorted(b)).then(|| (left.clone(), right.clone()))
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            let (mut a, mut b) = (a.clone(), b.clone());
            if path.first().is_some_and(|key| key == "result.json")
                && a.iter().any(|entry| entry.get("location").is_some())
            {
                // Equal places come in the order of a map there.
                for list in [&mut a, &mut b] {
                    list.sort_by_key(ordered);
                }
            }
            for (number, (a, b)) in a.iter().zip(&b).enumerate() {
                path.push(number.to_string());
                let found = difference(a, b, path);
                if found.is_some() {
                    return found;
                }
                path.pop();
            }
            None
        }
        // Documents inside documents.
        (Value::String(a), Value::String(b)) if a != b && a.starts_with('{') => {
            let parsed: (Result<Value, _>, Result<Value, _>) =
                (serde_json::from_str(a), serde_json::from_str(b));
            match parsed {
                (Ok(a), Ok(b)) => difference(&a, &b, path),
                _ => Some((left.clone(), right.clone())),
            }
        }
        (a, b) => (a != b).then(|| (a.clone(), b.clone())),
    }
}

fn explain(ours: &Value, official: &Value, graphs: &Mutex<Graphs>) -> String {
    let graphs = graphs.lock().unwrap();
    let find = |value: &Value| value.as_str().and_then(|name| graphs.0.get(name)).cloned();
    if let (Some(a), Some(b)) = (find(ours), find(official)) {
        return explain_graphs(&a, &b);
    }
    if let (Value::Array(a), Value::Array(b)) = (ours, official) {
        let only = |a: &[Value], b: &[Value]| -> String {
            a.iter()
                .filter(|entry| !b.contains(entry))
                .map(|entry| {
                    let graph =
                        find(&entry["definition"]).map(|graph| show(&graph)).unwrap_or_default();
                    format!("      {entry}\n{graph}")
                })
                .collect()
        };
        return format!("   ours only:\n{}   official only:\n{}", only(a, b), only(b, a));
    }
    format!("   ours     {ours}\n   official {official}")
}

fn show(graph: &pb::Definition) -> String {
    let op = |bytes: &bytes::Bytes| {
        format!("      {}\n", protojson::op(&pb::Op::decode(bytes.clone()).unwrap()))
    };
    graph.def.iter().map(op).collect()
}

fn explain_graphs(ours: &pb::Definition, official: &pb::Definition) -> String {
    let mut out = String::new();
    let op = |bytes: &bytes::Bytes| protojson::op(&pb::Op::decode(bytes.clone()).unwrap());
    // Later ones differ because their inputs do.
    let list = |out: &mut String, a: &pb::Definition, b: &pb::Definition| {
        for bytes in a.def.iter().filter(|bytes| !b.def.contains(bytes)).take(1) {
            writeln!(out, "      {} {}", Digest::of(bytes), op(bytes)).unwrap();
        }
    };
    out.push_str("   ours only:\n");
    list(&mut out, ours, official);
    out.push_str("   official only:\n");
    list(&mut out, official, ours);
    if ours.def != official.def {
        let same: BTreeSet<_> = ours.def.iter().collect();
        if same == official.def.iter().collect() {
            out.push_str("   (order)\n");
        }
        return out;
    }
    if ours.metadata != official.metadata {
        for (digest, metadata) in &ours.metadata {
            if official.metadata.get(digest) != Some(metadata) {
                writeln!(
                    out,
                    "   metadata of {digest}\n   {metadata:?}\n   {:?}",
                    official.metadata.get(digest)
                )
                .unwrap();
            }
        }
        return out;
    }
    let source = |graph: &pb::Definition| graph.source.clone().unwrap_or_default();
    let (a, b) = (source(ours), source(official));
    if a.infos != b.infos {
        writeln!(out, "   infos {:?}\n   {:?}", a.infos, b.infos).unwrap();
    }
    for digest in a.locations.keys().chain(b.locations.keys()).collect::<BTreeSet<_>>() {
        if a.locations.get(digest) != b.locations.get(digest) {
            writeln!(
                out,
                "   places of {digest}\n   {:?}\n   {:?}",
                a.locations.get(digest),
                b.locations.get(digest)
            )
            .unwrap();
        }
    }
    out
}

struct Env(BTreeMap<String, String>);

impl Variables for Env {
    fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }
}

const ENV: &[&str] = &[
    "A=value",
    "B=a*b/c",
    "E=",
    "PATH=/usr/local/bin:/usr/bin",
    "foo=a b  c",
    "VER=1.2.3",
    "HOME=/é",
    "LANG=aaa",
];

#[test]
fn functions_are_alike() {
    let Some(program) = std::env::var_os("RBUILD_DFDIFF") else { return };
    let mut random = Random(number("RBUILD_SEED", 1));
    let questions: Vec<Value> =
        (0..number("RBUILD_CASES", 2_000) * 10).map(|_| function(&mut random)).collect();
    let answers = ask(&program, &questions);
    let mut report = Report::default();
    let mut good = 0;
    for (question, mut wanted) in questions.iter().zip(answers) {
        let mut got = answer(question);
        good += usize::from(wanted["error"].is_null());
        // Messages are our own; that there is one is what counts.
        for answer in [&mut got, &mut wanted] {
            for (key, value) in answer.as_object_mut().unwrap() {
                if key.ends_with("error") {
                    *value = true.into();
                }
            }
        }
        // What is wrong with a pattern shows here when it is read, there when it is first used.
        if wanted["matches"].is_array() && got["error"] == true {
            continue;
        }
        let mut path = Vec::new();
        if let Some((ours, official)) = difference(&got, &wanted, &mut path) {
            let decode = |text: &str| {
                base64::engine::general_purpose::STANDARD.decode(text).unwrap_or_default()
            };
            let text = decode(question["text"].as_str().unwrap());
            let readable = |value: &Value| match value.as_str() {
                Some(text) if !path.last().is_some_and(|key| key.contains("error")) => {
                    String::from_utf8_lossy(&decode(text)).into_owned()
                }
                _ => value.to_string(),
            };
            let sort = format!("{} {}", question["fn"], path.join("/"));
            report.add(&sort, || {
                format!(
                    "{:?} {}\n   ours     {ours} {}\n   official {official} {}",
                    String::from_utf8_lossy(&text),
                    question["mode"],
                    readable(&ours),
                    readable(&official)
                )
            });
        }
    }
    report.finish(questions.len(), good);
}

const REMOTES: &[&str] = &[
    "https://",
    "http://",
    "git://",
    "ssh://",
    "git@",
    "github.com/",
    "user@",
    "h.example",
    "/",
    ":",
    "a/b",
    ".git",
    "#",
    "?",
    "ref=x",
    "&",
    "subdir=d",
    "tag=v1",
    "branch=m",
    "checksum=01234567",
    "keep-git-dir",
    "submodules=false",
    "mtime=commit",
    "fetch-by-commit=1",
    "=",
    "..",
    "%20",
    "@",
    "22",
    "A",
    "~",
    "v1:sub/dir",
    "./",
    "\\",
    "[::1]",
    "é",
    " ",
    "commit=0123456789012345678901234567890123456789",
    "//",
];
const NAMES: &[&str] = &[
    "alpine",
    "docker.io",
    "/",
    ":",
    "@",
    "library",
    "latest",
    "index.docker.io",
    "localhost",
    "5000",
    "A",
    "a-b",
    "a__b",
    "a.b",
    "_",
    "-",
    ".",
    "sha256:9999999999999999999999999999999999999999999999999999999999999999",
    "sha512:12",
    "[::1]",
    "x",
    "é",
    "3.12",
    "9999999999999999999999999999999999999999999999999999999999999999",
];
const PLATFORMS: &[&str] = &[
    "linux", "/", "amd64", "arm", "arm64", "v7", "v8", "v6", "aarch64", "x86_64", "i386", "386",
    "windows", "darwin", "macos", "wasi", "wasm", "(", ")", "10.0.1", "+feat", "*", "ARM64",
    "armhf", "armel", "riscv64", "s390x", "ppc64le", "unknown", "%2B", "v2", "5", "any", "local",
];
const PATTERNS: &[&str] = &[
    "*", "**", "/", "a", "b.txt", "!", "?", "[ab]", "[^a]", "[a-c]", "\\", ".", "..", "#", " ",
    "\n", "dir", "*.go", "**/", "/**", "é", "$", "+", "(", "{", "|", "^", "]", "[", "-", "\t",
    "\r", "\u{feff}",
];
const FILES: &[&str] = &[
    "a",
    "b.txt",
    "dir/a",
    "dir/b.txt",
    "a/b/c/d.go",
    "x.go",
    "dir/x/y",
    ".a",
    "é",
    "a b",
    "dir",
    "a/b",
    "aa",
    "a+b",
    "(a)",
    "a.b",
    "#a",
    "dir/.hidden",
    "a]b",
    "a\\b",
    "$",
    "^",
    "a-b",
    "{a}",
];

fn joined(random: &mut Random, pieces: &[&str], most: usize) -> String {
    (0..=random.below(most)).map(|_| pieces[random.below(pieces.len())]).collect()
}

fn function(random: &mut Random) -> Value {
    let (name, text) = match random.below(10) {
        0..5 => ("lex", generate::word(&mut Maker::new(random, &|_| true))),
        5 => ("git", joined(random, REMOTES, 9)),
        6 => ("reference", joined(random, NAMES, 7)),
        7 => ("platform", joined(random, PLATFORMS, 6)),
        _ => ("ignore", joined(random, PATTERNS, 8)),
    };
    json!({"fn": name, "text": base64(text.as_bytes()), "mode": random.below(32), "list": FILES, "env": ENV})
}

fn answer(question: &Value) -> Value {
    let data = base64::engine::general_purpose::STANDARD
        .decode(question["text"].as_str().unwrap())
        .unwrap();
    let input = text::from_bytes(&data);
    let mut out = json!({});
    match question["fn"].as_str().unwrap() {
        "lex" => {
            let mode = question["mode"].as_u64().unwrap();
            let lexer = Lexer {
                escape: if mode & 1 > 0 { '`' } else { '\\' },
                raw_quotes: mode & 2 > 0,
                raw_escapes: mode & 4 > 0,
                skip_quotes: mode & 8 > 0,
                skip_unset: mode & 16 > 0,
            };
            let pair = |entry: &&str| {
                entry
                    .split_once('=')
                    .map(|(name, value)| (name.to_owned(), value.to_owned()))
                    .unwrap()
            };
            let env = Env(ENV.iter().map(pair).collect());
            match lexer.expand(&input, &env) {
                Ok(expanded) => {
                    out["word"] = base64(&text::to_bytes(&expanded.text)).into();
                    out["matched"] = json!(expanded.matched);
                    out["unmatched"] = json!(expanded.unmatched);
                }
                Err(error) => out["word_error"] = error.to_string().into(),
            }
            match lexer.words(&input, &env) {
                Ok(words) => {
                    out["words"] = words.iter().map(|word| base64(&text::to_bytes(word))).collect()
                }
                Err(error) => out["words_error"] = error.to_string().into(),
            }
        }
        "ignore" => match dockerfile::context::ignore_patterns("x", &data) {
            Ok(list) => {
                match base::pattern::Patterns::new(&list) {
                    Ok(patterns) => {
                        out["matches"] = FILES.iter().map(|name| patterns.matches(name)).collect()
                    }
                    Err(error) => out["error"] = error.to_string().into(),
                }
                out["patterns"] = json!(list);
            }
            Err(error) => out["error"] = error.to_string().into(),
        },
        "git" => match GitRef::parse(&input) {
            Err(error) => out["error"] = error.to_string().into(),
            Ok(None) => out["git"] = false.into(),
            Ok(Some(git)) => {
                out["git"] = true.into();
                out["ref"] = json!({
                    "Remote": git.remote, "Ref": git.reference, "Checksum": git.checksum, "SubDir": git.subdir,
                    "IndistinguishableFromLocal": git.looks_local, "KeepGitDir": git.keep_git_dir, "Submodules": git.submodules,
                    "MTime": git.mtime, "FetchByCommit": git.fetch_by_commit, "ShortName": "", "UnencryptedTCP": false,
                })
                .to_string()
                .into();
            }
        },
        "reference" => match Reference::parse(&input) {
            Err(error) => out["error"] = error.to_string().into(),
            Ok(reference) => {
                out["familiar"] = reference.familiar().into();
                out["full"] = reference.tagged().to_string().into();
            }
        },
        _ => match Platform::parse(&input) {
            Err(error) => out["error"] = error.to_string().into(),
            Ok(platform) => {
                out["full"] = platform.format_all().into();
                out["normal"] = platform.normalize().format_all().into();
                out["plain"] = platform.format().into();
            }
        },
    }
    out
}
