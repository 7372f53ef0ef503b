//! Prints the graph of a Dockerfile, without a daemon.
//!
//! ```text
//! cargo run -p dockerfile --example llb -- path/to/Dockerfile [--target STAGE] [--platform OS/ARCH] [KEY=VALUE…]
//! ```
//!
//! `KEY=VALUE` are build args, or other options if the key holds a colon (`context:alpine=local:x`).
//! Images are not looked up: each is taken to be an empty one for the wanted platform, with a
//! made-up digest. A mistake in the file is shown with its place.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;

use base::Digest;
use dockerfile::offline::{Offline, lower};
use dockerfile::{protojson, report};
use llb::pb;
use prost::Message as _;

const USAGE: &str = "usage: llb DOCKERFILE [--target STAGE] [--platform OS/ARCH] [KEY=VALUE…]";

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let Some(path) = args.next() else {
        eprintln!("{USAGE}");
        return ExitCode::FAILURE;
    };
    let mut options = BTreeMap::new();
    while let Some(arg) = args.next() {
        let (key, value) = match (arg.strip_prefix("--"), arg.split_once('=')) {
            (Some(option @ ("target" | "platform")), None) => (option.to_owned(), args.next()),
            (None, Some((key, value))) if key.contains(':') => {
                (key.to_owned(), Some(value.to_owned()))
            }
            (None, Some((key, value))) => (format!("build-arg:{key}"), Some(value.to_owned())),
            _ => {
                eprintln!("{USAGE}");
                return ExitCode::FAILURE;
            }
        };
        options.insert(key, value.unwrap_or_default());
    }
    let path = Path::new(&path);
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    options.insert("filename".to_owned(), name.clone());
    let mut offline = Offline::new(options);
    match std::fs::read(path) {
        Ok(data) => offline = offline.with_file(&name, data),
        Err(error) => {
            eprintln!("read {}: {error}", path.display());
            return ExitCode::FAILURE;
        }
    }
    for ignore in [format!("{name}.dockerignore"), ".dockerignore".to_owned()] {
        if let Ok(data) = std::fs::read(path.with_file_name(&ignore)) {
            offline = offline.with_file(&ignore, data);
        }
    }
    let found = lower(offline);
    for finding in &found.findings {
        eprintln!("{name}:{}: {}: {}", finding.lines.first, finding.rule.name(), finding.message);
    }
    match found.definition {
        Ok(definition) => {
            for bytes in &definition.def {
                let op = pb::Op::decode(bytes.clone()).expect("we wrote an op");
                println!("{} {}", Digest::of(bytes), protojson::op(&op));
            }
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprint!("{}", report::explain(&error, &name, &found.dockerfile));
            ExitCode::FAILURE
        }
    }
}
