//! The solver against the naive evaluator, on random graphs and in random orders.
//!
//! Each seed makes a world: up to 200 vertices with shared and private sources, content keys,
//! selectors, equal commands under different digests, failures, nested builds, vertices that ignore
//! the cache; then a random sequence of jobs opening, asking, withdrawing and ending, tasks ending in
//! any order (well, badly, cancelled), records vanishing. Checked all along, in `world`:
//!
//! * every answer equals the naive evaluation, every failure is one that the evaluation has too
//! * one execution of a vertex at a time, none after one that succeeded
//! * no request waits when no task is left; the `stuck` report is printed if one does
//! * outputs are released exactly once, and nothing is left when all jobs are gone
//! * asking again afterwards executes nothing that has a stored result
//!
//! `RBUILD_SIM_SEEDS` sets the number of seeds, `RBUILD_SIM_SEED` runs a single one.
//!
//! Planted bugs that were tried, and how many seeds it took to find each, are listed in
//! `tests/README.md`.

mod world;

use std::{
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Mutex,
};

use base::Digest;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng, seq::IndexedRandom as _};
use solver::{Edge, JobId, KeyDigest, RecordId, graph::Owner};
use world::{How, Input, Recipe, World};

const SEEDS: u64 = 2000;

#[test]
fn agrees_with_the_naive_evaluator() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seeds = match number("RBUILD_SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("RBUILD_SIM_SEEDS").unwrap_or(SEEDS),
    };
    let met: Mutex<BTreeMap<&str, usize>> = Mutex::default();
    let threads = std::thread::available_parallelism().map_or(2, usize::from).min(8) as u64;
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let (seeds, met) = (seeds.clone(), &met);
            scope.spawn(move || {
                for seed in seeds.filter(|seed| seed % threads == thread) {
                    let Ok(seen) = catch_unwind(AssertUnwindSafe(|| simulate(seed))) else {
                        panic!("failed with RBUILD_SIM_SEED={seed}");
                    };
                    let mut met = met.lock().expect("not poisoned");
                    for (what, count) in seen {
                        *met.entry(what).or_default() += count;
                    }
                }
            });
        }
    });
    let met = met.into_inner().expect("not poisoned");
    println!("{met:#?}");
    if seeds.end - seeds.start >= SEEDS {
        let missing: Vec<_> =
            CASES.iter().filter(|case| met.get(*case).is_none_or(|count| *count < 20)).collect();
        assert!(missing.is_empty(), "the worlds hardly ever meet {missing:?}");
    }
}

/// What the worlds must run into.
const CASES: &[&str] = &[
    "bad luck",
    "cache map cancelled",
    "content changed",
    "digest cancelled",
    "evicted",
    "execution cancelled",
    "follower",
    "imported hit",
    "load cancelled",
    "local hit",
    "miss",
    "nested build",
    "record gone before its load",
    "second cache map",
    "skipped",
    "success after cancellation",
];

/// Some jobs may not execute as much as they would.
fn limit(seed: u64, job: usize) -> u32 {
    match (seed + job as u64) % 5 {
        0 => 1,
        1 => 2,
        _ => 0,
    }
}

fn simulate(seed: u64) -> BTreeMap<&'static str, usize> {
    let mut rng = StdRng::seed_from_u64(seed);
    // Most worlds are small: they reach odd states sooner and are easier to look at.
    let size =
        if rng.random_bool(0.05) { rng.random_range(50..200) } else { rng.random_range(2..25) };
    let mut world = World::new(rng.random_range(0..4));
    let edges = grow(&mut world, &mut rng, size);
    world.generous = rng.random_bool(0.5);
    let imports = if rng.random_bool(0.3) { import(&mut world, &edges, &mut rng) } else { vec![] };

    let mut jobs: Vec<JobId> = Vec::new();
    let mut opened = 0;
    let flaky = rng.random_bool(0.3);
    let evicting = rng.random_bool(0.4);
    let mut budget = 40 + size * 4;
    while budget > 0 {
        budget -= 1;
        match rng.random_range(0..100) {
            0..8 if jobs.len() < 4 => {
                opened += 1;
                jobs.push(world.open_limited(&format!("job {opened}"), limit(seed, opened)));
            }
            8..30 if !jobs.is_empty() => {
                let job = jobs.choose(&mut rng).expect("there is one").clone();
                let edge = *edges.choose(&mut rng).expect("there is one");
                world.solve(Owner::Job(job), edge, imports.clone());
            }
            30..34 => {
                let open = world.open_requests();
                let of_jobs: Vec<_> =
                    open.into_iter().filter(|request| world.job_of(*request).is_some()).collect();
                if let Some(request) = of_jobs.choose(&mut rng) {
                    world.withdraw(*request);
                }
            }
            34..37 if !jobs.is_empty() => {
                let job = jobs.swap_remove(rng.random_range(0..jobs.len()));
                world.discard(&job);
            }
            37..40 if evicting => {
                let mut records: Vec<RecordId> = world.records.keys().cloned().collect();
                records.sort();
                if let Some(record) = records.choose(&mut rng) {
                    world.evict(record, rng.random_bool(0.5));
                }
            }
            _ => end_one(&mut world, &mut rng, flaky),
        }
    }
    while !world.tasks.is_empty() {
        end_one(&mut world, &mut rng, flaky);
        world.assert_not_stuck();
    }
    world.assert_not_stuck();
    assert!(world.open_requests().is_empty());
    for job in jobs {
        world.discard(&job);
    }
    world.run();
    world.assert_empty();
    ask_again(&mut world, &edges, &mut rng);
    world.met
}

fn end_one(world: &mut World, rng: &mut StdRng, flaky: bool) {
    let ready: Vec<usize> =
        (0..world.tasks.len()).filter(|position| world.can_end(*position)).collect();
    let Some(position) = ready.choose(rng) else { return };
    let how = match world.tasks[*position].cancelled {
        true if rng.random_bool(0.8) => How::Cancelled,
        _ if flaky && rng.random_bool(0.03) => How::Badly,
        _ => How::Well,
    };
    world.end(*position, how);
}

/// What has a result is not executed again, and only the last step of it is loaded.
fn ask_again(world: &mut World, edges: &[Edge], rng: &mut StdRng) {
    let edge = *edges.choose(rng).expect("there is one");
    let cone = world.cone(edge);
    if world.naive[&edge].is_none() {
        return;
    }
    let mut runs = Vec::new();
    for round in 0..2 {
        world.trace.push(format!("ask again {round}"));
        let job = world.open(&format!("again {round}"));
        let request = world.solve(Owner::Job(job.clone()), edge, Vec::new());
        let before = (world.executed, world.loads);
        world.run();
        assert!(world.answers[&request].is_ok());
        runs.push((world.executed - before.0, world.loads - before.1));
        world.discard(&job);
        world.run();
        world.assert_empty();
    }
    // Behind a vertex that must run results are known by content at best, and behind a private one
    // as long as its own record lives.
    if cone.iter().all(|digest| world.strict[digest].is_some()) {
        // A known result is loaded and nothing else happens.
        assert_eq!(runs[1], (0, 1), "{}\n{}", world.describe(edge), world.trace.join("\n"));
    }
}

fn grow(world: &mut World, rng: &mut StdRng, size: usize) -> Vec<Edge> {
    let mut edges: Vec<Edge> = Vec::new();
    let commands = rng.random_range(1..12);
    let failing = rng.random_bool(0.3);
    let forcing = rng.random_bool(0.5);
    for index in 0..size {
        let root = edges.is_empty() || rng.random_bool(0.15);
        let count = match (root, rng.random_range(0..20)) {
            (true, _) => 0,
            (_, 0) => rng.random_range(1..=edges.len().min(12)),
            (_, roll) => 1 + roll % 3,
        };
        let inputs = (0..count).map(|_| {
            // Often a recent one, so that graphs are deep as well as wide.
            let edge = match rng.random_bool(0.5) {
                true => edges[edges.len() - 1 - rng.random_range(0..edges.len().min(4))],
                false => *edges.choose(rng).expect("roots come first"),
            };
            let file = rng.random_bool(0.5).then(|| rng.random_range(0..3));
            let content = rng.random_bool(0.4);
            Input { edge, file, content, preprocess: content || rng.random_bool(0.2) }
        });
        let inputs: Vec<Input> = inputs.collect();
        let nested = (count > 0 && rng.random_bool(0.03))
            .then(|| *edges.choose(rng).expect("not the first"));
        let command = format!("c{}", rng.random_range(0..commands));
        // Whether a vertex fails and what it gives must follow from its key alone.
        let fails = failing && world::number(&command) % 7 == 0 && count > 0;
        let recipe = Recipe {
            name: format!("v{index}"),
            digest: Digest::of(format!("vertex {index}")),
            command,
            inputs,
            ignore: forcing && rng.random_bool(0.1),
            fails,
            maps: if root { source(rng) } else { Vec::new() },
            // Sources have one output: private ones are stored without its number.
            outputs: if !root && rng.random_bool(0.1) { 2 } else { 1 },
            nested,
            weight: rng.random_range(0..3),
        };
        let (vertex, outputs) = (recipe.digest, recipe.outputs);
        world.define(recipe);
        edges.extend((0..outputs).map(|output| Edge { vertex, output }));
    }
    edges
}

/// Cache maps of a source: few distinct ones, so that vertices share them.
fn source(rng: &mut StdRng) -> Vec<KeyDigest> {
    let content = rng.random_range(0..4);
    let chain = KeyDigest::Sha256(Digest::of(format!("chain {content}")));
    let manifest = rng.random_range(0..3);
    let manifest = KeyDigest::Sha256(Digest::of(format!("manifest {manifest} of {content}")));
    match rng.random_range(0..4) {
        0 => vec![manifest, chain],
        1 => vec![KeyDigest::Random(Digest::of(format!("private {content}")))],
        _ => vec![chain],
    }
}

/// Builds something in another daemon and imports its cache.
fn import(
    world: &mut World,
    edges: &[Edge],
    rng: &mut StdRng,
) -> Vec<std::sync::Arc<solver::Import>> {
    let mut other = World::new(0);
    let mut recipes: Vec<Recipe> = world.recipes.values().cloned().collect();
    recipes.sort_by_key(|recipe| recipe.name[1..].parse::<usize>().expect("v<number>"));
    for recipe in recipes {
        other.define(recipe);
    }
    let job = other.open("elsewhere");
    for _ in 0..2 {
        let edge = *edges.choose(rng).expect("there is one");
        other.solve(Owner::Job(job.clone()), edge, Vec::new());
        other.run();
    }
    let (import, records) = other.as_import("import");
    world.imported = records;
    vec![import]
}
