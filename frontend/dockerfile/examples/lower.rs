//! Measures converting a large Dockerfile: 100 stages, 1,000 instructions.
//!
//! ```text
//! cargo run --release -p dockerfile --example lower
//! ```

#[path = "../tests/common/mod.rs"]
mod common;

use std::fmt::Write as _;
use std::path::Path;
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
    }
    // The best round counts: whatever else the machine does only adds.
    let best = times.map(|list| list.into_iter().min().unwrap_or_default());
    let whole = best[1] + best[2];
    println!(
        "{STAGES} stages, {INSTRUCTIONS} instructions, {} bytes, {ops} ops",
        source.data.len()
    );
    println!("parse   {:>10.2?}", best[0]);
    println!("convert {:>10.2?} (parsing included)", best[1]);
    println!("write   {:>10.2?}", best[2]);
    println!("whole   {whole:>10.2?} (goal: below {GOAL:?} in release builds)");
    assert!(cfg!(debug_assertions) || whole < GOAL, "converting takes too long");
}
