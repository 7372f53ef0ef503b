//! The driver with a real runtime: what the graph cannot show by itself.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use base::Digest;
use solver::{
    BuildError, CacheMap, CacheMapStep, Change, Decision, Edge, FoundRecord, InputKey, JobId,
    KeyStore, LoadFailure, Miss, Options, Progress, RecordId, Solver, Vertex, VertexContext,
    VertexEvent, Worker, progress::Silent,
};
use tokio::sync::Notify;

/// What a vertex does when it runs.
#[derive(Clone)]
enum Step {
    Run,
    Fail,
    Panic,
    /// Waits for `release` or cancellation.
    Wait,
    Nested(Vec<Vertex<Payload>>, Edge),
}

type Payload = Arc<(String, Step)>;

#[derive(Default)]
struct Workshop {
    records: Mutex<HashMap<RecordId, String>>,
    executed: AtomicUsize,
    cancelled: AtomicUsize,
    at_once: AtomicUsize,
    most_at_once: AtomicUsize,
    release: Notify,
    started: Notify,
}

struct Shop(Arc<Workshop>);

#[async_trait::async_trait]
impl Worker for Shop {
    type Vertex = Payload;
    type Output = String;
    type Error = String;

    async fn cache_map(
        &self,
        context: &VertexContext<Self>,
        _step: usize,
    ) -> Result<CacheMapStep, String> {
        let (command, _) = &**context.vertex();
        let inputs = vec![InputKey::default(); command.matches('+').count()];
        let map = CacheMap { digest: Digest::of(command).into(), inputs };
        Ok(CacheMapStep { map, last: true })
    }

    async fn content_digest(
        &self,
        _context: &VertexContext<Self>,
        _input: usize,
        output: &String,
    ) -> Result<Option<Digest>, String> {
        Ok(Some(Digest::of(output)))
    }

    async fn execute(
        &self,
        context: &VertexContext<Self>,
        inputs: Vec<String>,
    ) -> Result<Vec<String>, String> {
        self.0.executed.fetch_add(1, Ordering::SeqCst);
        let now = self.0.at_once.fetch_add(1, Ordering::SeqCst) + 1;
        self.0.most_at_once.fetch_max(now, Ordering::SeqCst);
        let (command, step) = &**context.vertex();
        let outcome = match step {
            Step::Run => {
                tokio::task::yield_now().await;
                Ok(vec![format!("{command}({})", inputs.len())])
            }
            Step::Fail => Err(format!("{command} went wrong")),
            Step::Panic => panic!("{command} broke"),
            Step::Wait => {
                self.0.started.notify_one();
                tokio::select! {
                    () = self.0.release.notified() => Ok(vec![command.clone()]),
                    () = context.cancelled().cancelled() => {
                        self.0.cancelled.fetch_add(1, Ordering::SeqCst);
                        Err("cancelled".to_owned())
                    }
                }
            }
            Step::Nested(vertices, edge) => {
                let nested = context.nested();
                nested.load(vertices.clone(), &[]).map_err(|error| error.to_string())?;
                let built = nested.build(*edge).await.map_err(|error| error.to_string())?;
                Ok(vec![format!("{command}[{}]", built.output)])
            }
        };
        self.0.at_once.fetch_sub(1, Ordering::SeqCst);
        outcome
    }

    async fn load(
        &self,
        _context: &VertexContext<Self>,
        record: &FoundRecord,
    ) -> Result<String, LoadFailure> {
        let records = self.0.records.lock().expect("not poisoned");
        let missing = || LoadFailure { gone: true, reason: "no such record".to_owned() };
        records.get(&record.record).cloned().ok_or_else(missing)
    }

    fn save(&self, output: &String) -> Option<RecordId> {
        let record = RecordId::from(Digest::of(output).short());
        self.0.records.lock().expect("not poisoned").insert(record.clone(), output.clone());
        Some(record)
    }

    fn record_exists(&self, record: &RecordId) -> bool {
        self.0.records.lock().expect("not poisoned").contains_key(record)
    }

    fn weight(&self, _vertex: &Payload) -> u32 {
        1
    }
}

fn edge(name: &str) -> Edge {
    Edge { vertex: Digest::of(name), output: 0 }
}

/// A vertex whose command tells its number of inputs by plus signs.
fn vertex(name: &str, inputs: &[&str], step: Step) -> Vertex<Payload> {
    Vertex {
        digest: Digest::of(name),
        inputs: inputs.iter().map(|input| edge(input)).collect(),
        name: name.into(),
        ignore_cache: false,
        export_cache: None,
        payload: Arc::new((format!("{name}{}", "+".repeat(inputs.len())), step)),
    }
}

fn solver(shop: &Arc<Workshop>, max_parallelism: u32, keys: KeyStore) -> Solver<Shop> {
    Solver::new(Shop(Arc::clone(shop)), Options { max_parallelism }, keys)
}

fn job(solver: &Solver<Shop>, id: &str) -> solver::Job<Shop> {
    solver.job(JobId::from(id), Arc::new(Silent))
}

#[tokio::test]
async fn keys_survive_a_restart() {
    let shop = Arc::new(Workshop::default());
    let graph = || vec![vertex("base", &[], Step::Run), vertex("out", &["base"], Step::Run)];
    let first = solver(&shop, 0, KeyStore::new());
    let build = job(&first, "one");
    build.load(graph(), &[]).expect("a whole graph");
    let built = build.build(edge("out")).await.expect("it runs");
    assert_eq!(built.output, "out+(1)");
    assert_eq!(built.decision, Decision::Miss(Miss::NoSuchKey));
    drop(build);
    tokio::time::timeout(Duration::from_secs(5), first.changed()).await.expect("keys were added");
    let changes: Vec<Change> = first.take_changes();
    assert!(first.is_idle());

    let second = solver(&shop, 0, KeyStore::restore(changes));
    let build = job(&second, "one");
    build.load(graph(), &[]).expect("a whole graph");
    let built = build.build(edge("out")).await.expect("it is loaded");
    assert!(matches!(built.decision, Decision::Hit { .. }), "{}", built.decision);
    assert_eq!(shop.executed.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn dropping_the_last_request_cancels_the_work() {
    let shop = Arc::new(Workshop::default());
    let solver = solver(&shop, 0, KeyStore::new());
    let (one, two) = (job(&solver, "one"), job(&solver, "two"));
    for build in [&one, &two] {
        build.load(vec![vertex("slow", &[], Step::Wait)], &[]).expect("a whole graph");
    }
    let mut first = Box::pin(one.build(edge("slow")));
    let mut second = Box::pin(two.build(edge("slow")));
    tokio::select! {
        biased;
        _ = &mut first => unreachable!("nobody released it"),
        _ = &mut second => unreachable!("nobody released it"),
        () = shop.started.notified() => {}
    }
    drop(first);
    drop(one);
    // The other job still wants it.
    let done = tokio::join!(second, async {
        tokio::task::yield_now().await;
        shop.release.notify_one();
    });
    assert_eq!(done.0.expect("it runs").output, "slow");
    assert_eq!(shop.cancelled.load(Ordering::SeqCst), 0);

    let three = job(&solver, "three");
    three.load(vec![vertex("lone", &[], Step::Wait)], &[]).expect("a whole graph");
    tokio::select! {
        _ = three.build(edge("lone")) => unreachable!("nobody released it"),
        () = shop.started.notified() => {}
    }
    drop((two, three));
    for _ in 0..100 {
        if solver.is_idle() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(solver.is_idle(), "{}", solver.stuck());
    assert_eq!(shop.cancelled.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn failures_and_panics_name_the_vertex() {
    let shop = Arc::new(Workshop::default());
    let solver = solver(&shop, 0, KeyStore::new());
    let build = job(&solver, "one");
    let graph = vec![
        vertex("bad", &[], Step::Fail),
        vertex("worse", &[], Step::Panic),
        vertex("above", &["bad"], Step::Run),
        vertex("beside", &["worse"], Step::Run),
    ];
    build.load(graph, &[]).expect("a whole graph");
    let error = build.build(edge("above")).await.expect_err("it fails");
    match &*error {
        BuildError::Vertex { vertex, name, cause } => {
            assert_eq!((*vertex, &**name), (Digest::of("bad"), "bad"));
            assert_eq!(cause, "bad went wrong");
        }
        other => panic!("{other}"),
    }
    let error = build.build(edge("beside")).await.expect_err("it panics");
    assert_eq!(error.to_string(), "`worse` broke off: worse broke");
    let error = build.build(edge("nowhere")).await.expect_err("it was not loaded");
    assert!(matches!(&*error, BuildError::NotLoaded { .. }));
    let missing = build.load(vec![vertex("x", &["nowhere"], Step::Run)], &[]);
    assert!(missing.is_err());
}

#[tokio::test]
async fn nested_builds_run_inside_the_limit_and_end_with_their_vertex() {
    let shop = Arc::new(Workshop::default());
    let solver = solver(&shop, 1, KeyStore::new());
    let build = job(&solver, "one");
    let inner = vec![vertex("inner", &[], Step::Run)];
    let outer = vertex("outer", &[], Step::Nested(inner, edge("inner")));
    build.load(vec![outer], &[]).expect("a whole graph");
    let built = build.build(edge("outer")).await.expect("it runs");
    assert_eq!(built.output, "outer[inner(0)]");
    drop(build);
    assert!(solver.is_idle(), "{}", solver.stuck());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parallelism_is_limited() {
    let shop = Arc::new(Workshop::default());
    let solver = solver(&shop, 3, KeyStore::new());
    let build = job(&solver, "one");
    let names: Vec<String> = (0..50).map(|number| format!("v{number}")).collect();
    let mut graph: Vec<_> = names.iter().map(|name| vertex(name, &[], Step::Run)).collect();
    let inputs: Vec<&str> = names.iter().map(String::as_str).collect();
    graph.push(vertex("all", &inputs, Step::Run));
    build.load(graph, &[]).expect("a whole graph");
    assert_eq!(build.build(edge("all")).await.expect("it runs").output.len(), 3 + 50 + 4);
    assert!(shop.most_at_once.load(Ordering::SeqCst) <= 3);
    assert_eq!(shop.executed.load(Ordering::SeqCst), 51);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_may_have_a_limit_of_its_own() {
    let shop = Arc::new(Workshop::default());
    let solver = solver(&shop, 0, KeyStore::new());
    let progress = Arc::new(Seen::default()) as Arc<dyn Progress>;
    let build = solver.limited_job(JobId::from("one"), 2, progress.clone());
    let names: Vec<String> = (0..50).map(|number| format!("v{number}")).collect();
    let mut graph: Vec<_> = names.iter().map(|name| vertex(name, &[], Step::Run)).collect();
    let inputs: Vec<&str> = names.iter().map(String::as_str).collect();
    graph.push(vertex("all", &inputs, Step::Run));
    build.load(graph, &[]).expect("a whole graph");
    build.build(edge("all")).await.expect("it runs");
    let most = shop.most_at_once.load(Ordering::SeqCst);
    assert!(most <= 2, "{most} at once");

    // A step that builds others lends its place, and what is parked does not outlive its job.
    let inner = vec![vertex("inner", &[], Step::Run)];
    let outer = vertex("outer", &[], Step::Nested(inner, edge("inner")));
    let single = solver.limited_job(JobId::from("two"), 1, progress);
    single.load(vec![outer], &[]).expect("a whole graph");
    single.build(edge("outer")).await.expect("it runs");
    drop((build, single));
    assert!(solver.is_idle(), "{}", solver.stuck());
}

#[derive(Default)]
struct Seen(Mutex<Vec<(String, VertexEvent)>>);

impl Progress for Seen {
    fn event(&self, job: &JobId, _vertex: Digest, event: VertexEvent) {
        self.0.lock().expect("not poisoned").push((job.to_string(), event));
    }
}

#[tokio::test]
async fn progress_arrives_in_order() {
    let shop = Arc::new(Workshop::default());
    let solver = solver(&shop, 0, KeyStore::new());
    let seen = Arc::new(Seen::default());
    let build = solver.job(JobId::from("one"), Arc::clone(&seen) as Arc<dyn Progress>);
    build.load(vec![vertex("bad", &[], Step::Fail)], &[]).expect("a whole graph");
    build.build(edge("bad")).await.expect_err("it fails");
    let seen = seen.0.lock().expect("not poisoned");
    let last = seen.last().expect("something was told");
    let error = Some("bad went wrong".into());
    assert_eq!(*last, ("one".to_owned(), VertexEvent::Completed { cached: false, error }));
    assert!(matches!(seen[0].1, VertexEvent::Loaded { .. }));
}

/// Time per vertex must not grow with the size of the graph, whatever its shape. Prints times;
/// `RBUILD_SOLVER_SIZE` sets the number of vertices.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_graphs_take_time_in_proportion() {
    let chain = |length: usize| {
        let names: Vec<String> = (0..length).map(|number| format!("c{number}")).collect();
        let link = |number: usize| match number {
            0 => vertex(&names[0], &[], Step::Run),
            _ => vertex(&names[number], &[&names[number - 1]], Step::Run),
        };
        (0..length).map(link).collect::<Vec<_>>()
    };
    let join = |width: usize| {
        let names: Vec<String> = (0..width).map(|number| format!("j{number}")).collect();
        let inputs: Vec<&str> = names.iter().map(String::as_str).collect();
        let mut graph: Vec<_> = inputs.iter().map(|name| vertex(name, &[], Step::Run)).collect();
        graph.push(vertex("join", &inputs, Step::Run));
        graph
    };
    let size = std::env::var("RBUILD_SOLVER_SIZE").ok().and_then(|size| size.parse().ok());
    let size = size.unwrap_or(10_000);
    let limit = Duration::from_secs(60);
    for (shape, graph) in [("chain", chain(size)), ("join", join(size))] {
        let shop = Arc::new(Workshop::default());
        let solver = solver(&shop, 0, KeyStore::new());
        let count = graph.len();
        let top = Edge { vertex: graph[count - 1].digest, output: 0 };
        for round in ["cold", "cached"] {
            let began = Instant::now();
            let build = job(&solver, round);
            build.load(graph.clone(), &[]).expect("a whole graph");
            build.build(top).await.expect("it runs");
            drop(build);
            println!("{shape} of {count}, {round}: {:?}", began.elapsed());
            assert!(began.elapsed() < limit);
        }
        assert!(solver.is_idle());
        assert_eq!(shop.executed.load(Ordering::SeqCst), count);
    }
}
