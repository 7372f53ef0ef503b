//! The golden corpus: what the official frontend makes of Dockerfiles, and we must, too.
//!
//! Reads the folder in `RBUILD_CORPUS`, else `../shared/corpus` beside the repository, else the
//! synthetic cases committed here. Prints one line of counts and fails, naming every case that
//! differs. No case is treated specially.

mod common;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use common::{FolderBridge, Images, block_on};
use dockerfile::context::Client;
use dockerfile::error::{Error, Kind, Lines};
use dockerfile::instructions::{self, Program};
use dockerfile::lint::Linter;
use dockerfile::lower::{self, Converted, Request};
use dockerfile::parser::{self, File, Node};
use dockerfile::requests::{self, Target};
use dockerfile::text;
use frontend_api::Bridge;
use llb::build::{Graph, MarshalOptions, Meta, Source};
use llb::pb;
use serde_json::{Map, Value, json};

const KINDS: [&str; 6] = ["parse", "llb", "config", "lint", "requests", "error"];

#[derive(Default)]
struct Score {
    counts: BTreeMap<&'static str, (usize, usize)>,
    failures: String,
}

impl Score {
    fn check(&mut self, id: &str, kind: &'static str, got: &str, wanted: &str) {
        let count = self.counts.entry(kind).or_default();
        count.1 += 1;
        if got == wanted {
            count.0 += 1;
            return;
        }
        let at = got.bytes().zip(wanted.bytes()).take_while(|(a, b)| a == b).count();
        let from = at.saturating_sub(120);
        let cut = |text: &str| {
            let bytes = &text.as_bytes()[from.min(text.len())..(at + 200).min(text.len())];
            String::from_utf8_lossy(bytes).into_owned()
        };
        writeln!(self.failures, "{id} {kind}\n  got    {}\n  wanted {}", cut(got), cut(wanted))
            .unwrap();
    }
}

fn folder() -> PathBuf {
    if let Some(folder) = std::env::var_os("RBUILD_CORPUS") {
        return folder.into();
    }
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let shared = here.join("../../../shared/corpus");
    if shared.join("index.jsonl").exists() { shared } else { here.join("tests/corpus") }
}

#[test]
fn corpus() {
    let root = folder();
    let index = std::fs::read_to_string(root.join("index.jsonl")).expect("the corpus has an index");
    let images = Arc::new(Images::read(&root.join("stub-images.json")));
    let only = std::env::var("RBUILD_CORPUS_CASE").ok();
    let mut score = Score::default();
    let mut skipped = 0;
    for line in index.lines() {
        let entry: Value = serde_json::from_str(line).expect("the index is JSON lines");
        let id = entry["id"].as_str().expect("a case has an id");
        if only.as_deref().is_some_and(|only| only != id) {
            continue;
        }
        let case = root.join(id);
        if !case.exists() {
            skipped += 1;
            continue;
        }
        check_case(id, &case, &images, &mut score);
    }
    let counts = KINDS.map(|kind| {
        let (good, all) = score.counts.get(kind).copied().unwrap_or_default();
        format!("{kind} {good}/{all}")
    });
    // Written past the test runner, which keeps what passing tests print to itself.
    let mut out = std::io::stdout().lock();
    if skipped > 0 {
        let _ = writeln!(out, "{skipped} real-world cases are not in {}", root.display());
    }
    let _ = writeln!(out, "corpus: {}", counts.join(" "));
    drop(out);
    assert!(score.failures.is_empty(), "cases that differ:\n{}", score.failures);
}

fn check_case(id: &str, case: &Path, images: &Arc<Images>, score: &mut Score) {
    let source = std::fs::read(case.join("Dockerfile")).expect("a case has a Dockerfile");
    let about = read_json(&case.join("case.json")).unwrap_or(Value::Null);
    let bridge = || bridge(case, images, &about);
    let labs = about["channel"] == "labs";
    check_parse(id, case, &source, score);
    let asked = Arc::new(bridge());
    let client = match block_on(Client::new(Arc::clone(&asked) as Arc<dyn Bridge>, labs)) {
        Ok(client) => client,
        Err(error) => return check_error(id, case, "setup", &error, score),
    };
    check_build(id, case, &source, &client, score);
    check_questions(id, case, &asked, score);
    // These run without a target platform.
    let mut plain = bridge();
    plain.options.remove("platform");
    let plain = block_on(Client::new(Arc::new(plain), labs)).expect("the options are valid");
    check_lint(id, case, &source, &plain, score);
    check_requests(id, case, &source, &plain, score);
}

fn bridge(case: &Path, images: &Arc<Images>, about: &Value) -> FolderBridge {
    let mut bridge = FolderBridge::new(case, Arc::clone(images));
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    bridge.options.insert("platform".to_owned(), "linux/amd64".to_owned());
    bridge.options.insert("cmdline".to_owned(), "corpus".to_owned());
    for (key, value) in about["opts"].as_object().unwrap_or(&Map::new()) {
        bridge.options.insert(key.clone(), text(value));
    }
    for (key, value) in about["inputs"].as_object().unwrap_or(&Map::new()) {
        let mut graph = Graph::new();
        let reference = dockerfile::reference::Reference::parse(&text(value)).unwrap().tagged();
        let image = graph.source(Source::image(&reference.to_string()), Meta::default());
        let options = MarshalOptions {
            platform: Some(base::Platform::new("linux", "amd64")),
            ..MarshalOptions::default()
        };
        bridge.inputs.insert(key.clone(), graph.marshal(Some(image), &options).unwrap());
    }
    bridge.http = text(&about["http"]);
    bridge
}

fn read_json(path: &Path) -> Option<Value> {
    let text = std::fs::read(path).ok()?;
    Some(
        serde_json::from_slice(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display())),
    )
}

/// Equal JSON gives equal text.
fn canonical(value: &Value) -> String {
    fn sort(value: &Value) -> Value {
        match value {
            Value::Object(map) => {
                let mut pairs: Vec<_> = map.iter().collect();
                pairs.sort_by_key(|(key, _)| *key);
                pairs.into_iter().map(|(key, value)| (key.clone(), sort(value))).collect()
            }
            Value::Array(list) => list.iter().map(sort).collect(),
            other => other.clone(),
        }
    }
    sort(value).to_string()
}

// Parsing.

fn check_parse(id: &str, case: &Path, source: &[u8], score: &mut Score) {
    let wanted = read_json(&case.join("parse.json"));
    let got = parser::parse(source).ok().map(|file| {
        let program = instructions::parse(&file, &mut Linter::silent()).ok();
        show_parse(source, &file, program.as_ref())
    });
    if wanted.is_some() || got.is_some() {
        let show = |value: &Option<Value>| value.as_ref().map_or("nothing".to_owned(), canonical);
        score.check(id, "parse", &show(&got), &show(&wanted));
    }
}

fn show_parse(source: &[u8], file: &File, program: Option<&Program>) -> Value {
    let mut out = Map::new();
    let mut put = |key: &str, value: Value| _ = out.insert(key.to_owned(), value);
    put("escape", file.escape.to_string().into());
    if let Some(syntax) = parser::detect_syntax(source) {
        let (reference, cmdline) = (syntax.reference, syntax.cmdline);
        put("syntax", json!({"ref": reference, "cmdline": cmdline, "line": syntax.line}));
    }
    if !file.directives.is_empty() {
        let show =
            |d: &parser::Directive| json!({"name": d.name, "value": d.value, "line": d.line});
        put("directives", file.directives.iter().map(show).collect());
    }
    if !file.empty_continuations.is_empty() {
        put("empty_continuation", json!(file.empty_continuations));
    }
    put("nodes", file.nodes.iter().map(|node| show_node(node, true)).collect());
    let Some(program) = program else { return Value::Object(out) };
    let put_text = |map: &mut Map<String, Value>, key: &str, value: &str| {
        if !value.is_empty() {
            map.insert(key.to_owned(), text::lossy(value).into());
        }
    };
    let stages: Vec<Value> = program
        .stages
        .iter()
        .map(|stage| {
            let mut map = Map::new();
            put_text(&mut map, "name", &stage.name);
            put_text(&mut map, "base", &stage.base);
            put_text(&mut map, "platform", &stage.platform);
            put_text(&mut map, "doc", &stage.description);
            map.insert("commands".to_owned(), stage.instructions.len().into());
            map.insert("line".to_owned(), stage.lines.first.into());
            Value::Object(map)
        })
        .collect();
    put("stages", stages.into());
    let mut globals = Vec::new();
    for instruction in &program.globals {
        let instructions::Command::Arg(args) = &instruction.command else { continue };
        for arg in args {
            let mut map = Map::new();
            put_text(&mut map, "key", &arg.key);
            map.insert("value".to_owned(), arg.value.as_deref().map(text::lossy).into());
            put_text(&mut map, "doc", &arg.description);
            globals.push(Value::Object(map));
        }
    }
    if !globals.is_empty() {
        put("meta_args", globals.into());
    }
    Value::Object(out)
}

fn show_node(node: &Node, top: bool) -> Value {
    let mut map = Map::new();
    let texts = |list: &[String]| list.iter().map(|item| text::lossy(item)).collect::<Value>();
    map.insert("cmd".to_owned(), text::lossy(&node.word).into());
    map.insert("orig".to_owned(), text::lossy(&node.original).into());
    if !node.flags.is_empty() {
        map.insert("flags".to_owned(), texts(&node.flags));
    }
    map.insert("args".to_owned(), texts(&node.args));
    if node.json {
        map.insert("json".to_owned(), true.into());
    }
    if !node.heredocs.is_empty() {
        let show = |doc: &parser::Heredoc| {
            json!({
                "name": text::lossy(&doc.name), "fd": doc.descriptor, "expand": doc.expand,
                "chomp": doc.chomp, "content": text::lossy(&doc.content),
            })
        };
        map.insert("heredocs".to_owned(), node.heredocs.iter().map(show).collect());
    }
    if top {
        map.insert("lines".to_owned(), json!([node.lines.first, node.lines.last]));
    }
    if !node.comments.is_empty() {
        map.insert("comments".to_owned(), texts(&node.comments));
    }
    if let Some(sub) = &node.sub {
        map.insert("sub".to_owned(), show_node(sub, false));
    }
    Value::Object(map)
}

// Building.

fn check_build(id: &str, case: &Path, source: &[u8], client: &Client, score: &mut Score) {
    let targets: Vec<Option<base::Platform>> = match client.options.platforms.as_slice() {
        [] => vec![None],
        list => list.iter().cloned().map(Some).collect(),
    };
    for (number, platform) in targets.into_iter().enumerate() {
        let suffix = match (&platform, number) {
            (Some(platform), 1..) => format!(".{}", platform.format().replace('/', "-")),
            _ => String::new(),
        };
        let request = Request { platform, all_stages: false };
        let built = convert(source, client, &request);
        let built = built.and_then(|converted| Ok((converted.definition()?, converted)));
        match built {
            Ok((definition, converted)) => {
                check_llb(id, case, &suffix, &definition, &converted, score);
            }
            Err(error) => return check_error(id, case, phase(source, &error), &error, score),
        }
    }
}

fn convert(source: &[u8], client: &Client, request: &Request) -> Result<Converted, Error> {
    block_on(async {
        let file = client.read_dockerfile().await?;
        assert!(file.data == source || !client.options.raw().contains_key("context"));
        let mut linter = Linter::new(lower::lint_config(client, source)?);
        lower::convert(client, &file, request, &mut linter).await
    })
}

/// The outline was asked for without anybody listening to lint.
fn convert_silently(client: &Client, request: &Request) -> Result<Converted, Error> {
    block_on(async {
        let file = client.read_dockerfile().await?;
        lower::lint_config(client, &file.data)?;
        lower::convert(client, &file, request, &mut Linter::silent()).await
    })
}

fn phase(source: &[u8], error: &Error) -> &'static str {
    match error.kind {
        Kind::BadExec | Kind::InvalidUtf8 => return "marshal",
        _ => {}
    }
    match parser::parse(source) {
        Err(_) => "syntax",
        Ok(file) => match instructions::parse(&file, &mut Linter::silent()) {
            Err(_) => "instruction",
            Ok(_) => "convert",
        },
    }
}

fn check_llb(
    id: &str,
    case: &Path,
    suffix: &str,
    definition: &pb::Definition,
    converted: &Converted,
    score: &mut Score,
) {
    let name = |stem: &str, end: &str| case.join(format!("{stem}{suffix}.{end}"));
    let Ok(wanted) = std::fs::read(name("llb", "pb")) else {
        return score.check(id, "error", "success", "an error");
    };
    let got = encode(definition);
    if got == wanted {
        score.check(id, "llb", "", "");
    } else {
        let decoded: pb::Definition = prost::Message::decode(wanted.as_slice()).unwrap();
        score.check(id, "llb", &show_definition(definition), &show_definition(&decoded));
    }
    let config = serde_json::from_slice(&converted.image.to_json()).unwrap();
    let wanted = read_json(&name("config", "json")).expect("a case that builds has a config");
    score.check(id, "config", &canonical(&config), &canonical(&wanted));
    let details = read_json(&name("llb", "json")).expect("a case that builds has a graph");
    if let Some(wanted) = details["ops"].as_array() {
        for (bytes, wanted) in definition.def.iter().zip(wanted) {
            let op: pb::Op = prost::Message::decode(bytes.clone()).unwrap();
            let (got, wanted) =
                (canonical(&dockerfile::protojson::op(&op)), canonical(&wanted["op"]));
            if got != wanted {
                score.check(id, "llb", &got, &wanted);
            }
        }
    }
    let epoch = converted.epoch.map(|epoch| epoch.seconds());
    let got = json!({"epoch": epoch, "base_image": converted.base_image.is_some()});
    let base_image = details["base_image"] == true;
    let wanted = json!({"epoch": details["epoch"].as_i64(), "base_image": base_image});
    if got != wanted {
        score.check(id, "llb", &got.to_string(), &wanted.to_string());
    }
}

/// The definition without source, progress groups named in order, as Go encodes it.
fn encode(definition: &pb::Definition) -> Vec<u8> {
    let mut out = Vec::new();
    let mut groups: Vec<String> = Vec::new();
    for op in &definition.def {
        field(&mut out, 1, op);
        let digest = base::Digest::of(op).to_string();
        if let Some(group) =
            definition.metadata.get(&digest).and_then(|m| m.progress_group.as_ref())
            && !groups.contains(&group.id)
        {
            groups.push(group.id.clone());
        }
    }
    for (digest, metadata) in &definition.metadata {
        let mut metadata = metadata.clone();
        if let Some(group) = &mut metadata.progress_group {
            let at = groups.iter().position(|id| *id == group.id).unwrap();
            group.id = format!("pg{at}");
        }
        let mut entry = Vec::new();
        field(&mut entry, 1, digest.as_bytes());
        field(&mut entry, 2, &encode_metadata(&metadata));
        field(&mut out, 2, &entry);
    }
    out
}

fn encode_metadata(metadata: &pb::OpMetadata) -> Vec<u8> {
    use prost::Message as _;
    let mut out = Vec::new();
    if metadata.ignore_cache {
        out.extend([1 << 3, 1]);
    }
    for (key, value) in &metadata.description {
        let mut entry = Vec::new();
        field(&mut entry, 1, key.as_bytes());
        field(&mut entry, 2, value.as_bytes());
        field(&mut out, 2, &entry);
    }
    for (key, value) in &metadata.caps {
        let mut entry = Vec::new();
        field(&mut entry, 1, key.as_bytes());
        entry.extend([2 << 3, u8::from(*value)]);
        field(&mut out, 5, &entry);
    }
    if let Some(group) = &metadata.progress_group {
        field(&mut out, 6, &group.encode_to_vec());
    }
    if let Some(resources) = &metadata.linux_resources {
        field(&mut out, 7, &resources.encode_to_vec());
    }
    out
}

fn field(out: &mut Vec<u8>, number: u8, bytes: &[u8]) {
    out.push(number << 3 | 2);
    prost::encoding::encode_varint(bytes.len() as u64, out);
    out.extend_from_slice(bytes);
}

fn show_definition(definition: &pb::Definition) -> String {
    use prost::Message as _;
    let mut out = String::new();
    for bytes in &definition.def {
        let op = pb::Op::decode(bytes.clone()).unwrap();
        let digest = base::Digest::of(bytes).to_string();
        let metadata = definition.metadata.get(&digest);
        writeln!(out, "{op:?} {metadata:?}").unwrap();
    }
    out
}

/// The image look-ups that were made.
fn check_questions(id: &str, case: &Path, bridge: &FolderBridge, score: &mut Score) {
    let Some(details) = read_json(&case.join("llb.json")) else { return };
    let mut got = std::collections::BTreeSet::new();
    for asked in bridge.asked.lock().unwrap().iter() {
        let (scheme, reference) = asked.source.identifier.split_once("://").unwrap();
        if !matches!(scheme, "docker-image" | "oci-layout") {
            continue;
        }
        let mut entry = Map::new();
        let mut put = |key: &str, value: &str| {
            if !value.is_empty() {
                entry.insert(key.to_owned(), value.into());
            }
        };
        put("ref", reference);
        put("platform", &asked.platform.as_ref().map(|p| p.format_all()).unwrap_or_default());
        put("mode", &asked.resolve_mode);
        put("log", &asked.log_name);
        put("store", asked.source.attrs.get("oci.store").map_or("", String::as_str));
        got.insert(canonical(&Value::Object(entry)));
    }
    let empty = Vec::new();
    let listed = details["resolve"].as_array().unwrap_or(&empty);
    let wanted: std::collections::BTreeSet<String> = listed.iter().map(canonical).collect();
    if got != wanted && !case.join("llb.linux-arm64.json").exists() {
        score.check(id, "llb", &format!("{got:?}"), &format!("{wanted:?}"));
    }
}

// Errors.

fn check_error(id: &str, case: &Path, phase: &str, error: &Error, score: &mut Score) {
    let wanted = read_json(&case.join("error.json")).unwrap_or(Value::Null);
    let got = show_error(phase, error);
    score.check(id, "error", &canonical(&got), &canonical(&wanted));
}

fn show_error(phase: &str, error: &Error) -> Value {
    let mut map = Map::new();
    map.insert("phase".to_owned(), phase.into());
    let (kind, params) = match &error.cause {
        Some(cause) if cause.message.starts_with("stub: ") => ("image-not-found", Vec::new()),
        _ => (error.kind.name(), error.params.clone()),
    };
    map.insert("kind".to_owned(), kind.into());
    if !params.is_empty() {
        map.insert("params".to_owned(), json!(params));
    }
    if let Some(word) = &error.suggestion {
        map.insert("suggest".to_owned(), word.as_str().into());
    }
    map.insert("lines".to_owned(), show_lines(&error.locations));
    Value::Object(map)
}

fn show_lines(lines: &[Lines]) -> Value {
    lines.iter().map(|lines| json!([lines.first, lines.last.max(lines.first)])).collect()
}

// Lint and requests.

fn check_lint(id: &str, case: &Path, source: &[u8], client: &Client, score: &mut Score) {
    let Some(wanted) = read_json(&case.join("lint.json")) else { return };
    let result = block_on(async {
        let file = client.read_dockerfile().await.expect("the case has a Dockerfile");
        requests::lint(client, &file).await
    });
    let mut findings: Vec<(u32, String, String, Value)> = result
        .findings
        .iter()
        .map(|finding| {
            let Lines { first, last } = finding.lines;
            let rule = finding.rule.name().to_owned();
            (first, rule, finding.message.clone(), json!([[first, last.max(first)]]))
        })
        .collect();
    findings.sort_by(|a, b| (a.0, &a.1, &a.2).cmp(&(b.0, &b.1, &b.2)));
    let list: Vec<Value> = findings
        .into_iter()
        .map(|(_, rule, message, lines)| json!({"rule": rule, "lines": lines, "message": message}))
        .collect();
    let mut got = json!({ "warnings": list });
    if let Some(error) = &result.error {
        let _ = source;
        let shown = show_error("", error);
        got["error"] = json!({"kind": shown["kind"], "lines": merged(&error.locations)});
    }
    score.check(id, "lint", &canonical(&got), &canonical(&wanted));
}

/// Touching lines as one range.
fn merged(locations: &[Lines]) -> Value {
    let mut sorted = locations.to_vec();
    sorted.sort();
    let mut out: Vec<Lines> = Vec::new();
    for lines in sorted {
        match out.last_mut() {
            Some(before) if lines.first <= before.last => before.last = before.last.max(lines.last),
            _ => out.push(lines),
        }
    }
    show_lines(&out)
}

fn check_requests(id: &str, case: &Path, source: &[u8], client: &Client, score: &mut Score) {
    let wanted = read_json(&case.join("requests.json"));
    let targets = requests::targets(source).ok();
    let (Some(targets), Some(wanted)) = (&targets, &wanted) else {
        if wanted.is_some() || targets.is_some() {
            let show = |there: bool| if there { "an answer" } else { "nothing" };
            score.check(id, "requests", show(targets.is_some()), show(wanted.is_some()));
        }
        return;
    };
    let mut got = json!({ "targets": targets.iter().map(show_target).collect::<Vec<_>>() });
    let unordered: Vec<&str> = wanted["outline"]["unordered"]
        .as_array()
        .map(|list| list.iter().filter_map(Value::as_str).collect())
        .unwrap_or_default();
    if let Ok(converted) = convert_silently(client, &Request::default()) {
        got["outline"] = show_outline(&converted, &unordered);
    }
    score.check(id, "requests", &canonical(&got), &canonical(wanted));
}

fn show_target(target: &Target) -> Value {
    let mut map = Map::new();
    let mut put = |key: &str, value: &str| {
        if !value.is_empty() {
            map.insert(key.to_owned(), value.into());
        }
    };
    put("name", &target.name);
    put("description", &target.description);
    put("base", &target.base);
    put("platform", &target.platform);
    if target.default {
        map.insert("default".to_owned(), true.into());
    }
    map.insert("line".to_owned(), target.line.into());
    Value::Object(map)
}

fn show_outline(converted: &Converted, unordered: &[&str]) -> Value {
    let outline = &converted.outline;
    let mut map = Map::new();
    let mut put = |key: &str, value: &str| {
        if !value.is_empty() {
            map.insert(key.to_owned(), text::lossy(value).into());
        }
    };
    put("name", &outline.name);
    put("description", &outline.description);
    let mut args: Vec<(u32, String, Value)> = Vec::new();
    for (name, info) in &outline.args {
        let mut entry = Map::new();
        entry.insert("name".to_owned(), text::lossy(name).into());
        for (key, value) in [("value", &info.value), ("description", &info.description)] {
            if !value.is_empty() {
                entry.insert(key.to_owned(), text::lossy(value).into());
            }
        }
        entry.insert("line".to_owned(), info.lines.first.into());
        args.push((info.lines.first, name.clone(), Value::Object(entry)));
    }
    let needs = |list: &[(String, lower::outline::Required)]| {
        list.iter()
            .map(|(name, info)| {
                let mut entry = Map::new();
                entry.insert("name".to_owned(), text::lossy(name).into());
                if info.required {
                    entry.insert("required".to_owned(), true.into());
                }
                entry.insert("line".to_owned(), info.lines.first.into());
                (info.lines.first, name.clone(), Value::Object(entry))
            })
            .collect::<Vec<_>>()
    };
    if !unordered.is_empty() {
        map.insert("unordered".to_owned(), json!(unordered));
    }
    let lists =
        [("args", args), ("secrets", needs(&outline.secrets)), ("ssh", needs(&outline.ssh))];
    for (key, mut list) in lists {
        list.retain(|(_, name, _)| !unordered.contains(&name.as_str()));
        list.sort_by(|a, b| (a.0, &a.1).cmp(&(b.0, &b.1)));
        if !list.is_empty() {
            map.insert(key.to_owned(), list.into_iter().map(|(_, _, entry)| entry).collect());
        }
    }
    Value::Object(map)
}
