//! The debugging address: plain text over HTTP, for people, for Prometheus, and for harnesses that
//! ask when they think we hang.
//!
//! Every answer is one of [`PAGES`]; the first of them lists the others.

use std::{fmt::Write as _, sync::Arc, time::Instant};

use anyhow::Context as _;
use engine::Engine;
use tokio::io::{
    AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader,
};

use crate::{VERSION, builds::Builds};

/// Longest request line that is read.
const MAX_LINE: u64 = 8 << 10;

/// What can be asked for, and what it is.
const PAGES: &[(&str, &str)] = &[
    ("/", "this list"),
    ("/metrics", "figures for Prometheus"),
    ("/debug/vars", "the same figures as JSON"),
    ("/debug/requests", "builds that run, and for how long"),
    ("/debug/waiting", "who waits for whom among unfinished steps"),
    ("/debug/gc", "apply the cache policies now"),
];

/// What is told about.
#[derive(Clone)]
pub struct Debug {
    pub engine: Arc<Engine>,
    pub builds: Arc<Builds>,
    pub since: Instant,
}

struct Page {
    status: &'static str,
    kind: &'static str,
    body: String,
}

impl Page {
    fn text(body: impl Into<String>) -> Self {
        Self { status: "200 OK", kind: "text/plain; charset=utf-8", body: body.into() }
    }
}

/// Listens on `address` and answers for as long as the daemon runs.
pub async fn serve(address: &str, debug: Debug) -> anyhow::Result<()> {
    if let Some(path) = address.strip_prefix("unix://") {
        _ = std::fs::remove_file(path);
        let listener =
            tokio::net::UnixListener::bind(path).with_context(|| format!("listen on {address}"))?;
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(answer(stream, debug.clone()));
            }
        });
        return Ok(());
    }
    let tcp = address.strip_prefix("tcp://").unwrap_or(address);
    let listener =
        tokio::net::TcpListener::bind(tcp).await.with_context(|| format!("listen on {address}"))?;
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(answer(stream, debug.clone()));
        }
    });
    Ok(())
}

async fn answer(stream: impl AsyncRead + AsyncWrite + Unpin, debug: Debug) {
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    if (&mut stream).take(MAX_LINE).read_line(&mut line).await.is_err() {
        return;
    }
    // The rest of the request says nothing of interest; unread, it would reset the connection.
    let mut header = String::new();
    while let Ok(1..) = (&mut stream).take(MAX_LINE).read_line(&mut header).await {
        if header.trim().is_empty() {
            break;
        }
        header.clear();
    }
    let path = line.split(' ').nth(1).unwrap_or("/");
    let path = path.split('?').next().unwrap_or("/");
    let Page { status, kind, body } = debug.page(path).await;
    let head = format!(
        "HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    _ = stream.write_all(head.as_bytes()).await;
    _ = stream.write_all(body.as_bytes()).await;
    _ = stream.shutdown().await;
}

impl Debug {
    async fn page(&self, path: &str) -> Page {
        match path.trim_end_matches('/') {
            "" | "/debug" => Page::text(
                PAGES.iter().map(|(path, what)| format!("{path:<18}{what}\n")).collect::<String>(),
            ),
            "/metrics" => Page {
                kind: "text/plain; version=0.0.4; charset=utf-8",
                ..Page::text(metrics(&self.figures().await))
            },
            "/debug/vars" => {
                Page { kind: "application/json", ..Page::text(vars(&self.figures().await)) }
            }
            "/debug/requests" => {
                let running = self.builds.running();
                if running.is_empty() {
                    return Page::text("no build runs\n");
                }
                let lines = running.iter().map(|(name, age)| format!("{age:>10.3} s  {name}\n"));
                Page::text(lines.collect::<String>())
            }
            "/debug/waiting" | "/debug/stuck" => {
                let stuck = self.engine.stuck();
                Page::text(if stuck.is_empty() { "nothing is waiting\n".to_owned() } else { stuck })
            }
            "/debug/gc" => match self.engine.store().collect().await {
                Ok(pruned) => Page::text(format!(
                    "{} records, {} bytes removed\n",
                    pruned.records, pruned.bytes
                )),
                Err(error) => {
                    Page { status: "500 Internal Server Error", ..Page::text(format!("{error}\n")) }
                }
            },
            _ => Page {
                status: "404 Not Found",
                ..Page::text("no such page; / lists those there are\n")
            },
        }
    }

    async fn figures(&self) -> Vec<Figure> {
        let store = self.engine.store().clone();
        let measured = tokio::task::spawn_blocking(move || {
            let usage = store.disk_usage(&[]);
            let reclaimable = usage.iter().filter(|it| !it.in_use).map(|it| it.size).sum::<u64>();
            let total = usage.iter().map(|it| it.size).sum::<u64>();
            (usage.len(), total, reclaimable, store.overhead(), store.ceiling())
        });
        let ended = self.builds.ended();
        let waiting = self.engine.stuck().lines().count();
        let mut figures = vec![
            Figure::counter("rbuild_builds_total", "outcome", "succeeded", ended.succeeded as f64)
                .about("Builds that ended, by how they did."),
            Figure::counter("rbuild_builds_total", "outcome", "failed", ended.failed as f64),
            Figure::counter("rbuild_builds_total", "outcome", "cancelled", ended.cancelled as f64),
            Figure::counter("rbuild_build_seconds_total", "", "", ended.seconds)
                .about("Seconds that builds took together."),
            Figure::gauge("rbuild_builds_running", self.builds.running().len() as f64)
                .about("Builds that run."),
            Figure::gauge("rbuild_edges_unfinished", waiting as f64)
                .about("Results that running builds wait for."),
            Figure::gauge("rbuild_sessions", self.engine.sessions().ids().len() as f64)
                .about("Clients' sessions that are open."),
            Figure::gauge("rbuild_uptime_seconds", self.since.elapsed().as_secs_f64())
                .about("Seconds since the daemon started."),
        ];
        if let Ok((records, bytes, reclaimable, overhead, ceiling)) = measured.await {
            let part = |name, bytes: u64| Figure {
                label: Some(("kind", name)),
                ..Figure::gauge("rbuild_store_bytes", bytes as f64)
            };
            figures.extend([
                Figure::gauge("rbuild_store_records", records as f64)
                    .about("Records of the cache."),
                part("records", bytes).about("Bytes of the state folder."),
                part("blobs", overhead.blobs),
                part("metadata", overhead.meta),
                part("other", overhead.in_flight + overhead.other),
                Figure::gauge("rbuild_store_reclaimable_bytes", reclaimable as f64)
                    .about("Bytes of records that nobody uses."),
            ]);
            figures.extend(ceiling.map(|ceiling| {
                Figure::gauge("rbuild_store_ceiling_bytes", ceiling as f64)
                    .about("The most that the state folder may take.")
            }));
        }
        figures.extend(process());
        figures
    }
}

/// One number.
struct Figure {
    name: &'static str,
    about: &'static str,
    counts_up: bool,
    label: Option<(&'static str, &'static str)>,
    value: f64,
}

impl Figure {
    fn gauge(name: &'static str, value: f64) -> Self {
        Self { name, about: "", counts_up: false, label: None, value }
    }

    fn counter(name: &'static str, label: &'static str, of: &'static str, value: f64) -> Self {
        let label = (!label.is_empty()).then_some((label, of));
        Self { counts_up: true, label, ..Self::gauge(name, value) }
    }

    fn about(self, about: &'static str) -> Self {
        Self { about, ..self }
    }
}

/// This process, under the names that Prometheus' own libraries use.
fn process() -> Vec<Figure> {
    let mut figures = Vec::new();
    let page = rustix::param::page_size() as f64;
    let ticks = rustix::param::clock_ticks_per_second() as f64;
    if let Ok(text) = std::fs::read_to_string("/proc/self/stat")
        && let Some((_, rest)) = text.rsplit_once(") ")
    {
        let fields: Vec<f64> = rest.split(' ').map(|it| it.trim().parse().unwrap_or(0.0)).collect();
        // Counted from the third field on: user and system time, size, resident pages.
        if let (Some(user), Some(system), Some(size), Some(resident)) =
            (fields.get(11), fields.get(12), fields.get(20), fields.get(21))
        {
            figures.extend([
                Figure::counter("process_cpu_seconds_total", "", "", (user + system) / ticks)
                    .about("Processor time used."),
                Figure::gauge("process_virtual_memory_bytes", *size).about("Address space."),
                Figure::gauge("process_resident_memory_bytes", resident * page)
                    .about("Resident memory."),
            ]);
        }
    }
    let files = std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
    figures.push(Figure::gauge("process_open_fds", files as f64).about("Open files."));
    let threads = std::fs::read_dir("/proc/self/task").map_or(0, Iterator::count);
    figures.push(Figure::gauge("process_threads", threads as f64).about("Threads."));
    figures
}

/// The text format of Prometheus.
fn metrics(figures: &[Figure]) -> String {
    let mut text = String::new();
    let mut last = "";
    for figure in figures {
        if figure.name != last {
            last = figure.name;
            let kind = if figure.counts_up { "counter" } else { "gauge" };
            _ = writeln!(text, "# HELP {last} {}\n# TYPE {last} {kind}", figure.about);
        }
        _ = match figure.label {
            Some((key, of)) => writeln!(text, "{last}{{{key}=\"{of}\"}} {}", figure.value),
            None => writeln!(text, "{last} {}", figure.value),
        };
    }
    _ = writeln!(
        text,
        "# HELP rbuild_build_info What runs.\n# TYPE rbuild_build_info gauge\n\
         rbuild_build_info{{version=\"{}\",revision=\"{}\"}} 1",
        VERSION.version, VERSION.revision
    );
    text
}

fn vars(figures: &[Figure]) -> String {
    let key = |figure: &Figure| match figure.label {
        Some((_, of)) => format!("{}_{of}", figure.name),
        None => figure.name.to_owned(),
    };
    let all = figures.iter().map(|figure| (key(figure), figure.value.into()));
    let map: serde_json::Map<String, serde_json::Value> = all.collect();
    format!("{:#}\n", serde_json::Value::Object(map))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_printed_once_with_their_help() {
        let figures = [
            Figure::counter("a_total", "by", "x", 1.0).about("Things."),
            Figure::counter("a_total", "by", "y", 2.5),
            Figure::gauge("b", 3.0).about("More."),
        ];
        let text = metrics(&figures);
        let expected = "# HELP a_total Things.\n# TYPE a_total counter\na_total{by=\"x\"} 1\na_total{by=\"y\"} 2.5\n\
                        # HELP b More.\n# TYPE b gauge\nb 3\n";
        assert!(text.starts_with(expected), "{text}");
        assert!(vars(&figures).contains("\"a_total_y\": 2.5"));
    }
}
