//! No input makes the frontend panic, hang or grow without bound.
//!
//! Mutates corpus files and runs all phases on each. The seed is fixed, or taken from
//! `RBUILD_SEED`; `RBUILD_MUTATIONS` sets how many. All memory that is taken is counted: a file may
//! use [`MEMORY`], one made to use much [`HOSTILE_MEMORY`].

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::mutate::{Random, mutate, seeds};
use common::{FolderBridge, Images, block_on};
use dockerfile::context::{Client, DockerfileSource};
use dockerfile::lint::Linter;
use dockerfile::lower::{self, Request};
use dockerfile::shell::{Empty, Lexer};
use dockerfile::{report, requests, text};
use llb::pb;

/// Bytes that converting a mutated file may use at a time; the files are below 100 KiB.
const MEMORY: usize = 16 << 20;

/// The same for files that are made to use as much as possible.
const HOSTILE_MEMORY: usize = 1 << 30;

/// The system's allocator, counting.
struct Counting;

static USED: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);
/// The count is the process's, so tests take turns.
static TURN: Mutex<()> = Mutex::new(());

// SAFETY: every call is handed to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let used = USED.fetch_add(layout.size(), Relaxed) + layout.size();
        PEAK.fetch_max(used, Relaxed);
        // SAFETY: the caller's promise is the system's requirement.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        USED.fetch_sub(layout.size(), Relaxed);
        // SAFETY: as above; `place` came from `alloc`.
        unsafe { System.dealloc(place, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The most memory that `work` used at a time.
fn peak(work: impl FnOnce()) -> usize {
    let before = USED.load(Relaxed);
    PEAK.store(before, Relaxed);
    work();
    PEAK.load(Relaxed).saturating_sub(before)
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
}

#[test]
fn mutated_files_are_handled() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus");
    let seeds = seeds(&root);
    let images = Arc::new(Images::read(&root.join("stub-images.json")));
    let mut random = Random(number("RBUILD_SEED", 1));
    let clients: Vec<Client> = ["linux/amd64", "windows/amd64"]
        .into_iter()
        .map(|platform| {
            let mut bridge = FolderBridge::new(&root, Arc::clone(&images));
            bridge.options.insert("platform".to_owned(), platform.to_owned());
            bridge.options.insert("build-arg:A".to_owned(), "x".to_owned());
            block_on(Client::new(Arc::new(bridge), false)).unwrap()
        })
        .collect();
    let _turn = TURN.lock().unwrap();
    let mut most = 0;
    for round in 0..number("RBUILD_MUTATIONS", 1_000) {
        let before = random.0;
        let data = mutate(&mut random, &seeds);
        let started = Instant::now();
        let used = peak(|| run(&clients[(round % 2) as usize], &data));
        let took = started.elapsed();
        assert!(took < Duration::from_secs(120), "state {before}: {took:?}");
        assert!(used < MEMORY, "state {before}: {used} bytes");
        most = most.max(used);
    }
    println!("a mutated file uses at most {} KiB", most >> 10);
}

fn run(client: &Client, data: &[u8]) {
    let data = bytes::Bytes::copy_from_slice(data);
    let info = pb::SourceInfo { data: data.clone(), ..Default::default() };
    let source = DockerfileSource { data, info, vertex: String::new() };
    let request =
        Request { platform: client.options.platforms.first().cloned(), all_stages: false };
    let mut linter = Linter::new(Default::default());
    let result = block_on(lower::convert(client, &source, &request, &mut linter));
    match result.and_then(|converted| Ok((converted.definition()?, converted))) {
        Ok((definition, converted)) => {
            llb_is_well_formed(&definition);
            serde_json::from_slice::<serde_json::Value>(&converted.image.to_json()).unwrap();
        }
        Err(error) => assert!(!report::explain(&error, "Dockerfile", &source.data).is_empty()),
    }
    block_on(requests::lint(client, &source));
    let decoded = text::from_bytes(&source.data);
    assert_eq!(text::to_bytes(&decoded), source.data);
    for mode in 0..8 {
        let lexer = Lexer {
            raw_quotes: mode & 1 > 0,
            raw_escapes: mode & 2 > 0,
            skip_unset: mode & 4 > 0,
            ..Lexer::new('\\')
        };
        let _ = lexer.words(&decoded, &Empty);
    }
    let _ = dockerfile::lint::Config::of_file(&source.data);
}

fn llb_is_well_formed(definition: &pb::Definition) {
    if !definition.def.is_empty() {
        let platform = base::Platform::new("linux", "amd64");
        let options = llb::ParseOptions {
            default_platform: &platform,
            capabilities: None,
            proxy_network: false,
        };
        llb::Definition::parse(definition, &options).expect("the graph can be loaded");
    }
}

#[test]
fn hostile_files_are_bounded() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus");
    let images = Arc::new(Images::read(&root.join("stub-images.json")));
    let client = block_on(Client::new(Arc::new(FolderBridge::new(&root, images)), false)).unwrap();
    let doubling = (0..64).map(|_| "ENV A=${A:-xxxxxxxx}$A$A\n").collect::<String>();
    let files = [
        // A variable that doubles itself.
        format!("FROM scratch\n{doubling}"),
        // Each process repeats a large variable.
        format!("FROM scratch\nENV A={}\n{}", "x".repeat(60_000), "RUN x\n".repeat(5_000)),
        // Deep nesting.
        format!("FROM scratch\nENV A={}{}\n", "${B:-".repeat(10_000), "}".repeat(10_000)),
        format!("FROM scratch\n{}\n", "ONBUILD ".repeat(8_000)),
        format!("FROM scratch\nRUN {}", "[".repeat(60_000)),
        // Long chains.
        format!("FROM scratch\n{}", "RUN x\n".repeat(5_000)),
        (0..2_000).map(|n| format!("FROM scratch AS s{n}\nCOPY --from=s{n} a b\n")).collect(),
        (0..500).map(|n| format!("FROM s{} AS s{n}\nENV V{n}=1\n", n.max(1) - 1)).collect(),
        format!("FROM scratch\n{}", "EXPOSE 1-65535\n".repeat(8)),
    ];
    let _turn = TURN.lock().unwrap();
    for file in files {
        let started = Instant::now();
        let used = peak(|| run(&client, file.as_bytes()));
        let took = started.elapsed();
        println!("{:?}: {took:.1?}, {} KiB", &file[..30], used >> 10);
        assert!(took < Duration::from_secs(300), "{file:.60}: {took:?}");
        assert!(used < HOSTILE_MEMORY, "{file:.60}: {used} bytes");
    }
}
