//! Runs the fuzz targets for a while, with the stable compiler.
//!
//! `fuzz/` is compiled with coverage counters (options that stable compilers have; no sanitizer, our
//! code being safe) and linked with libFuzzer, which `libfuzzer-sys` brings as C++. Seeds are test
//! data of the crates. What is found stays in the target folder; an input that fails is shown with
//! the command that repeats it.

use std::{
    collections::VecDeque,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};

use crate::{cargo, packages, root, run, target};

/// Options of cargo-fuzz that need no nightly compiler.
const FLAGS: &[&str] = &[
    "--cfg=fuzzing",
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
];
/// Seconds one input may take.
const INPUT_TIMEOUT: u32 = 10;
/// Memory of a target, the fuzzer's own included.
const MEMORY_MIB: u32 = 1024;
/// How much longer than asked a target may run before it is ended.
const GRACE: Duration = Duration::from_secs(60);

/// A target, where its seeds are, and the longest input.
struct Target {
    name: &'static str,
    seeds: &'static [Seeds],
    longest: u32,
}

enum Seeds {
    /// Files below a folder whose names end like this.
    Files { folder: &'static str, ending: &'static str },
    /// An archive of a folder.
    Archive { folder: &'static str },
}

const DOCKERFILES: Seeds =
    Seeds::Files { folder: "frontend/dockerfile/tests/corpus", ending: "Dockerfile" };
const IGNORE_FILES: Seeds =
    Seeds::Files { folder: "frontend/dockerfile/tests/corpus", ending: ".dockerignore" };
const GRAPHS: Seeds = Seeds::Files { folder: "frontend/dockerfile/tests/corpus", ending: ".pb" };
const LAYERS: Seeds = Seeds::Archive { folder: "xtask/demo" };

const TARGETS: &[Target] = &[
    Target { name: "dockerfile_parser", seeds: &[DOCKERFILES], longest: 4096 },
    Target { name: "dockerfile_lower", seeds: &[DOCKERFILES], longest: 4096 },
    Target { name: "shell_lexer", seeds: &[], longest: 512 },
    Target { name: "ignore_patterns", seeds: &[IGNORE_FILES], longest: 512 },
    Target { name: "definition", seeds: &[GRAPHS], longest: 16384 },
    Target { name: "layer_tar", seeds: &[LAYERS], longest: 16384 },
    Target { name: "content_index", seeds: &[], longest: 4096 },
];

/// `cargo xtask fuzz [--seconds N] [TARGET…]`.
pub fn command(args: &[String]) -> anyhow::Result<()> {
    let mut seconds = 60;
    let mut wanted = Vec::new();
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--seconds" => {
                let value = args.next().context("--seconds needs a number")?;
                seconds = value.parse().with_context(|| format!("--seconds {value}"))?;
            }
            name => {
                let known = || TARGETS.iter().map(|target| target.name).collect::<Vec<_>>();
                let target = TARGETS.iter().find(|target| target.name == name);
                wanted.push(target.with_context(|| {
                    format!("no fuzz target {name}: there are {}", known().join(", "))
                })?);
            }
        }
    }
    if wanted.is_empty() {
        wanted.extend(TARGETS);
    }
    fuzz(&wanted, seconds)
}

/// Runs every target for `seconds`, as many at once as there are processors.
pub fn all(seconds: u64) -> anyhow::Result<()> {
    fuzz(&TARGETS.iter().collect::<Vec<_>>(), seconds)
}

fn fuzz(wanted: &[&'static Target], seconds: u64) -> anyhow::Result<()> {
    if !packages::ensure(&[("c++", "g++")]).is_empty() {
        println!("fuzz: skipped, it needs a C++ compiler for libFuzzer");
        return Ok(());
    }
    let triple = host()?;
    let folder = target().join("fuzz");
    build(&folder, &triple)?;
    let programs = folder.join(&triple).join("release");
    let most = std::thread::available_parallelism().map_or(1, usize::from);
    let mut waiting: VecDeque<_> = wanted.iter().collect();
    let mut running: Vec<Run> = Vec::new();
    let mut failed = Vec::new();
    while !(waiting.is_empty() && running.is_empty()) {
        while running.len() < most
            && let Some(target) = waiting.pop_front()
        {
            running.push(Run::start(target, &programs, &folder, seconds)?);
        }
        std::thread::sleep(Duration::from_millis(200));
        let mut left = Vec::new();
        for mut run in running {
            match run.poll(seconds)? {
                None => left.push(run),
                Some(Ok(summary)) => println!("fuzz: {summary}"),
                Some(Err(report)) => {
                    println!("fuzz: {report}");
                    failed.push(run.target.name);
                }
            }
        }
        running = left;
    }
    if !failed.is_empty() {
        bail!("fuzzing found mistakes: {}", failed.join(", "));
    }
    Ok(())
}

/// The triple has to be named, so that build scripts and macros are compiled without counters.
fn host() -> anyhow::Result<String> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let text = crate::output(Command::new(rustc).arg("-vV"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(line.context("rustc does not name its host")?.to_owned())
}

fn build(folder: &Path, triple: &str) -> anyhow::Result<()> {
    let manifest = root().join("fuzz/Cargo.toml");
    run(cargo()
        .args(["build", "--release", "--target", triple, "--manifest-path"])
        .arg(manifest)
        .env("CARGO_TARGET_DIR", folder)
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env("RUSTFLAGS", FLAGS.join(" ")))
}

/// A target that runs.
struct Run {
    target: &'static Target,
    child: Child,
    started: Instant,
    log: PathBuf,
    program: PathBuf,
}

impl Run {
    fn start(
        target: &'static Target,
        programs: &Path,
        folder: &Path,
        seconds: u64,
    ) -> anyhow::Result<Self> {
        let program = programs.join(target.name);
        let place = folder.join("runs").join(target.name);
        let (found, seeds) = (place.join("corpus"), place.join("seeds"));
        for path in [&found, &seeds] {
            std::fs::create_dir_all(path).with_context(|| format!("create {}", path.display()))?;
        }
        for seed in target.seeds {
            match seed {
                Seeds::Files { folder, ending } => {
                    copy_seeds(&root().join(folder), ending, &seeds)?;
                }
                Seeds::Archive { folder } => {
                    let archive = seeds.join("archive.tar");
                    let mut tar = Command::new("tar");
                    tar.arg("-cf").arg(archive).arg("-C").arg(root().join(folder)).arg(".");
                    crate::output(&mut tar)?;
                }
            }
        }
        let log = place.join("log");
        let output = std::fs::File::create(&log)?;
        let child = Command::new(&program)
            .args([
                format!("-max_total_time={seconds}"),
                format!("-timeout={INPUT_TIMEOUT}"),
                format!("-rss_limit_mb={MEMORY_MIB}"),
                format!("-max_len={}", target.longest),
                format!("-artifact_prefix={}/", place.display()),
                "-print_final_stats=1".to_owned(),
            ])
            .args([&found, &seeds])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(output)
            .spawn()
            .with_context(|| format!("start {}", program.display()))?;
        println!("fuzz: {} for {seconds} s", target.name);
        Ok(Self { target, child, started: Instant::now(), log, program })
    }

    /// What came of it, once it has ended: what to say, or what is wrong.
    fn poll(&mut self, seconds: u64) -> anyhow::Result<Option<Result<String, String>>> {
        let name = self.target.name;
        let Some(status) = self.child.try_wait()? else {
            if self.started.elapsed() < Duration::from_secs(seconds) + GRACE {
                return Ok(None);
            }
            self.child.kill()?;
            self.child.wait()?;
            return Ok(Some(Err(format!("{name} does not end"))));
        };
        let text = String::from_utf8_lossy(&std::fs::read(&self.log)?).into_owned();
        let value = |key: &str| {
            let line = text.lines().rev().find_map(|line| line.strip_prefix(key));
            line.unwrap_or("?").trim().to_owned()
        };
        if status.success() {
            let coverage = text.lines().rev().find_map(|line| {
                let (_, rest) = line.split_once("cov: ")?;
                rest.split(' ').next().map(str::to_owned)
            });
            return Ok(Some(Ok(format!(
                "{name}: {} inputs, {} edges, peak {} MiB",
                value("stat::number_of_executed_units:"),
                coverage.unwrap_or_else(|| "?".to_owned()),
                value("stat::peak_rss_mb:"),
            ))));
        }
        let lines: Vec<&str> = text.lines().collect();
        let tail = lines[lines.len().saturating_sub(40)..].join("\n");
        let input = text
            .lines()
            .rev()
            .find_map(|line| line.split_once("Test unit written to ").map(|(_, path)| path));
        Ok(Some(Err(format!(
            "{name} failed:\n{tail}\nrepeat with: {} {}",
            self.program.display(),
            input.unwrap_or("INPUT")
        ))))
    }
}

/// Copies the files below `from` whose names end in `ending` into one folder.
fn copy_seeds(from: &Path, ending: &str, to: &Path) -> anyhow::Result<()> {
    let Ok(entries) = std::fs::read_dir(from) else { return Ok(()) };
    for entry in entries {
        let path = entry?.path();
        if path.is_dir() {
            copy_seeds(&path, ending, to)?;
        } else if path.to_string_lossy().ends_with(ending) {
            let parent = path.parent().and_then(Path::file_name).unwrap_or_default();
            let name = path.file_name().unwrap_or_default();
            let name = format!("{}-{}", parent.to_string_lossy(), name.to_string_lossy());
            std::fs::copy(&path, to.join(name))
                .with_context(|| format!("copy {}", path.display()))?;
        }
    }
    Ok(())
}
