//! Load and time: many clients at once, many builds in a row.
//!
//! Each run here is short; `RBUILD_STRESS=long` makes it the one that releases are judged by (see
//! CONTRIBUTING.md). Figures are printed.

use std::{
    collections::BTreeMap,
    fs,
    process::Stdio,
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use it::{Context, Daemon, can_run, long, text};

/// A step that leaves its name in a folder that all steps share, each time it runs.
fn counted(name: &str) -> String {
    format!(
        "RUN --mount=type=cache,id=ran,target=/ran echo {name} >> /ran/log; echo {name} > /{name}\n"
    )
}

/// How often each of those steps ran.
fn ran(daemon: &Daemon, context: &Context) -> BTreeMap<String, usize> {
    let out = tempfile::tempdir().unwrap();
    let copy = "RUN --mount=type=cache,id=ran,target=/ran cp /ran/log /log\nFROM scratch\nCOPY --from=base /log /\n";
    context.write("Dockerfile.log", format!("{}{copy}", it::BASE).as_bytes());
    let file = context.path().join("Dockerfile.log").display().to_string();
    let output = format!("type=local,dest={}", out.path().display());
    daemon.ok(&["build", "-f", &file, "-o", &output, &context.arg()]);
    let mut times = BTreeMap::new();
    for name in fs::read_to_string(out.path().join("log")).unwrap().lines() {
        *times.entry(name.to_owned()).or_default() += 1;
    }
    times
}

#[test]
fn clients_at_once_share_their_work() {
    if !can_run() {
        return;
    }
    let (clients, time, pauses) = if long() { (200, 300, 5) } else { (24, 8, 1) };
    let daemon = Daemon::start();
    let context = Context::new("");
    // Groups of steps that many clients have in common, and leaves that few have. A round's graphs
    // are new to the daemon.
    let graph = |client: usize, round: usize| {
        let (group, leaf) = (client % 10, client % 40);
        format!(
            "{}{}{}{}",
            it::BASE,
            counted(&format!("all-{round}")),
            counted(&format!("group-{round}-{group}")),
            counted(&format!("leaf-{round}-{leaf}")),
        )
    };
    daemon.ok(&["build", &context.arg()]);
    let started = Instant::now();
    let builds = AtomicUsize::new(0);
    let mut memory = Vec::new();
    std::thread::scope(|scope| {
        for client in 0..clients {
            let (daemon, context, builds) = (&daemon, &context, &builds);
            scope.spawn(move || {
                let name = format!("Dockerfile.{client}");
                let file = context.path().join(&name).display().to_string();
                while started.elapsed().as_secs() < time {
                    // Clients that come late join in the round that the others are in.
                    let round = started.elapsed().as_secs() as usize / 4;
                    context.write(&name, graph(client, round).as_bytes());
                    let done =
                        daemon.ctl(&["build", "-f", &file, "--progress", "plain", &context.arg()]);
                    assert!(done.status.success(), "{}", text(&done));
                    builds.fetch_add(1, Ordering::Relaxed);
                    std::thread::sleep(Duration::from_millis(100 * pauses));
                }
            });
        }
        for quarter in 1..=4 {
            std::thread::sleep(Duration::from_secs(time / 4));
            memory.push((quarter, daemon.memory()));
        }
    });
    let times = ran(&daemon, &context);
    let twice: Vec<_> = times.iter().filter(|(_, times)| **times != 1).collect();
    println!(
        "{} builds by {clients} clients in {} s, {} different steps; memory by quarter: {memory:?}",
        builds.load(Ordering::Relaxed),
        started.elapsed().as_secs(),
        times.len()
    );
    assert!(twice.is_empty(), "ran more than once: {twice:?}");
    assert!(times.len() >= 1 + 10.min(clients) + 40.min(clients), "{times:?}");
    if long() {
        let (half, end) = (memory[1].1, memory[3].1);
        assert!(end < half + half / 5, "memory grew: {memory:?}");
    }
    daemon.left_clean();
}

#[test]
fn builds_in_a_row_do_not_grow_the_daemon() {
    if !can_run() {
        return;
    }
    let (early, late) = if long() { (100, 1000) } else { (30, 90) };
    let daemon = Daemon::start();
    let context = Context::new("");
    let started = Instant::now();
    let mut first = 0;
    for build in 1..=late {
        context.dockerfile(&format!("RUN echo {build} > /number\nRUN cat /number\n"));
        let tag = format!("app:{}", build % 5);
        daemon.ok(&["build", "--progress", "plain", "-t", &tag, &context.arg()]);
        if build == early {
            first = daemon.memory();
        }
    }
    let last = daemon.memory();
    println!(
        "{} builds in {} s: {first} KiB resident after {early}, {last} KiB after {late}",
        late,
        started.elapsed().as_secs()
    );
    // The short run is over before allocations have settled.
    let slack = if long() { first / 10 } else { first / 4 };
    assert!(last < first + slack, "{first} KiB grew to {last} KiB");
    assert!(daemon.open_files() < 100, "{} open files", daemon.open_files());
    daemon.left_clean();
}

#[test]
fn dropped_clients_leave_nothing_behind() {
    if !can_run() {
        return;
    }
    let rounds = if long() { 200 } else { 12 };
    let daemon = Daemon::start();
    let context = Context::new("");
    daemon.ok(&["build", &context.arg()]);
    let mut random = it::Random::new();
    for round in 0..rounds {
        context.dockerfile(&format!("RUN echo {round} > /a\nRUN sleep 0.2\nRUN echo b > /b\n"));
        let mut clients: Vec<_> = (0..3)
            .map(|_| {
                let mut command = daemon.command(&["build", "--progress", "plain", &context.arg()]);
                command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
            })
            .collect();
        for client in &mut clients {
            std::thread::sleep(Duration::from_millis(random.below(150)));
            client.kill().unwrap();
            client.wait().unwrap();
        }
    }
    daemon.left_clean();
    println!("after {} dropped clients: {} open files", rounds * 3, daemon.open_files());
    assert!(daemon.open_files() < 100, "{} open files", daemon.open_files());
    daemon.ok(&["build", &Context::new("RUN true\n").arg()]);
}
