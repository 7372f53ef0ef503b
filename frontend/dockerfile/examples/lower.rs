//! Measures converting a large Dockerfile: 100 stages, 1,000 instructions.
//!
//! ```text
//! cargo run --release -p dockerfile --example lower [-- --official]
//! ```
//!
//! With `--official` the library of BuildKit converts the same file in the same run (it needs Go; the
//! program is in `tests/interop/lower`), and a table compares the two.

#[path = "../tests/common/mod.rs"]
mod common;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{FolderBridge, Images, block_on};
use dockerfile::context::{Client, DockerfileSource};
use dockerfile::lint::Linter;
use dockerfile::lower::{self, Request};
use dockerfile::parser;
use llb::pb;

const STAGES: usize = 100;
const INSTRUCTIONS: usize = 1_000;
const ROUNDS: usize = 50;
const GOAL: Duration = Duration::from_millis(20);

fn dockerfile() -> String {
    let mut text = String::from("ARG BASE=alpine\n");
    for stage in 0..STAGES {
        let base = if stage % 10 == 0 { "$BASE".to_owned() } else { format!("s{}", stage - 1) };
        writeln!(text, "FROM {base} AS s{stage}").unwrap();
        for number in 0..INSTRUCTIONS / STAGES - 1 {
            match number % 6 {
                0 => writeln!(text, "WORKDIR /work/s{stage}"),
                1 => writeln!(text, "ENV V{stage}_{number}=\"value $PATH\" OTHER=x"),
                2 => writeln!(text, "COPY --chown=1000:1000 src/{stage} lib/*.c /out/"),
                3 => writeln!(text, "RUN --mount=type=cache,target=/cache make V=$V{stage}_1 all"),
                4 if stage > 0 => writeln!(text, "COPY --from=s{} /out /in", stage - 1),
                _ => writeln!(text, "RUN echo one \\\n && echo two"),
            }
            .unwrap();
        }
    }
    text
}

fn main() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus");
    let images = Arc::new(Images::read(&here.join("stub-images.json")));
    let bridge = Arc::new(FolderBridge::new(&here, images));
    let client = block_on(Client::new(bridge, false)).expect("no option is wrong");
    let data = bytes::Bytes::from(dockerfile());
    let info =
        pb::SourceInfo { filename: "Dockerfile".into(), data: data.clone(), ..Default::default() };
    let source = DockerfileSource { data, info, vertex: String::new() };
    let request = Request::default();
    let mut times = [Vec::new(), Vec::new(), Vec::new()];
    let mut whole = Vec::new();
    let mut ops = 0;
    for _ in 0..ROUNDS {
        let start = Instant::now();
        let file = parser::parse(&source.data).expect("the file is right");
        assert!(file.nodes.len() >= INSTRUCTIONS);
        times[0].push(start.elapsed());
        let start = Instant::now();
        let mut linter = Linter::new(Default::default());
        let converted = block_on(lower::convert(&client, &source, &request, &mut linter)).unwrap();
        times[1].push(start.elapsed());
        let begin = Instant::now();
        ops = converted.definition().unwrap().def.len();
        times[2].push(begin.elapsed());
        whole.push(start.elapsed());
    }
    let [parse, convert, write] = times.map(Times::of);
    let whole = Times::of(whole);
    println!(
        "{STAGES} stages, {INSTRUCTIONS} instructions, {} bytes, {ops} ops, {ROUNDS} rounds",
        source.data.len()
    );
    let official = std::env::args().any(|arg| arg == "--official");
    let official = official.then(|| run_official(&source.data));
    println!("\n| phase | rbuild, best | median | BuildKit, best | median | ratio of medians |");
    println!("| --- | ---: | ---: | ---: | ---: | ---: |");
    for (name, ours) in [("parse", parse), ("convert", convert), ("write", write), ("whole", whole)]
    {
        let theirs = official.as_ref().and_then(|official| official.get(name));
        let shown = theirs.map(|theirs| {
            let ratio = theirs.median.as_secs_f64() / ours.median.as_secs_f64();
            (
                format!("{:.2?}", theirs.best),
                format!("{:.2?}", theirs.median),
                format!("{ratio:.1}×"),
            )
        });
        let (best, median, ratio) = shown.unwrap_or_default();
        println!(
            "| {name} | {:.2?} | {:.2?} | {best} | {median} | {ratio} |",
            ours.best, ours.median
        );
    }
    println!("\n(convert includes parse; the goal is a whole below {GOAL:?} in release builds)");
    // Whatever else the machine does only adds, so the best round counts.
    assert!(cfg!(debug_assertions) || whole.best < GOAL, "converting takes too long");
}

/// Times of all rounds in short.
#[derive(Clone, Copy)]
struct Times {
    best: Duration,
    median: Duration,
}

impl Times {
    fn of(mut list: Vec<Duration>) -> Self {
        list.sort();
        Self { best: list[0], median: list[list.len() / 2] }
    }
}

/// The official library's times for the same file, by phase.
fn run_official(data: &[u8]) -> BTreeMap<String, Times> {
    let folder = std::env::temp_dir().join(format!("lower-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("make a folder");
    let file = folder.join("Dockerfile");
    std::fs::write(&file, data).expect("write the Dockerfile");
    let output = Command::new("go")
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/interop"))
        .args(["run", "./lower"])
        .arg(&file)
        .arg(ROUNDS.to_string())
        .stderr(Stdio::inherit())
        .output()
        .expect("start go");
    std::fs::remove_dir_all(&folder).expect("remove the folder");
    assert!(output.status.success(), "the official library failed");
    let found: serde_json::Value = serde_json::from_slice(&output.stdout).expect("it prints JSON");
    println!("BuildKit's library makes {} ops of it", found["ops"]);
    let phases = found.as_object().expect("an object").iter();
    let time = |value: &serde_json::Value| Duration::from_nanos(value.as_u64().unwrap_or(0));
    let phase = |(name, value): (&String, &serde_json::Value)| {
        let [best, median] = value.as_array()?.as_slice() else { return None };
        Some((name.clone(), Times { best: time(best), median: time(median) }))
    };
    phases.filter_map(phase).collect()
}
