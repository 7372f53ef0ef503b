//! Load and time: many clients at once, many builds in a row, kills and full disks in the middle.
//!
//! Each run here is short; `RBUILD_STRESS=long` makes it the one that releases are judged by (see
//! CONTRIBUTING.md). Figures are printed.

use std::{
    collections::BTreeMap,
    fs,
    io::Write as _,
    process::Stdio,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use it::{Context, Daemon, can_run, eventually, long, text};

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
    // How many there are in a short run depends on the machine.
    assert!(times.len() > 10, "{times:?}");
    if long() {
        assert!(times.len() >= 1 + 10.min(clients) + 40.min(clients), "{times:?}");
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
    // Progress stays open for a while, for clients that ask late.
    let ended = Instant::now();
    while daemon.open_files() >= 60 {
        assert!(ended.elapsed() < Duration::from_secs(30), "{} open files", daemon.open_files());
        std::thread::sleep(Duration::from_millis(200));
    }
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

/// One client of the mixed workload: builds, exports, images, containers, prunes, until told to
/// stop. Some fail when the daemon is killed or the disk is full; what they say is kept.
fn busy_client(
    daemon: &Daemon,
    context: &Context,
    client: u64,
    stop: &AtomicBool,
    said: &Mutex<String>,
) {
    let mut random = it::Random::seeded(client);
    let name = format!("Dockerfile.busy-{client}");
    let file = context.path().join(&name).display().to_string();
    let out = tempfile::tempdir().unwrap();
    let folder = format!("type=local,dest={}", out.path().display());
    let archive = format!("type=oci,dest={}", out.path().join("image.tar").display());
    while !stop.load(Ordering::Relaxed) {
        let (number, kilobytes) = (random.below(1 << 40), random.below(3000));
        let dockerfile = format!(
            "{}FROM base\nRUN echo {} > /few\n\
             RUN --mount=type=cache,target=/c,id=c{} dd if=/dev/zero of=/c/f bs=1k count={kilobytes}\n\
             RUN dd if=/dev/urandom of=/big bs=1k count={kilobytes} && echo {number} > /number\n\
             COPY busybox /copied/{number}\n\
             FROM base\nCOPY --from=1 /number /big /made/\nCOPY --link --from=1 /few /few\n",
            it::BASE,
            random.below(5),
            random.below(3),
        );
        context.write(&name, dockerfile.as_bytes());
        let tag = format!("busy:{}", random.below(6));
        let context = context.arg();
        let build = ["build", "--progress", "plain", "-f", &file, &context];
        let with = |more: &[&str]| daemon.ctl(&[&build[..], more].concat());
        let done = match random.below(10) {
            0 => daemon.ctl(&["prune", "--filter", "type==exec.cachemount"]),
            1 => daemon.ctl(&["prune", "--all", "--keep-storage", "20"]),
            // Often nobody has built that yet.
            2 => {
                let run = ["run", "--rm", "--pull", "never", &tag, "sh", "-c"];
                daemon.ctl(&[&run[..], &["echo x > /x; sleep 0.1"]].concat())
            }
            3 | 4 => with(&["-o", &folder]),
            5 => with(&["-o", &archive]),
            _ => with(&["-t", &tag]),
        };
        let told = text(&done);
        if !done.status.success() && !told.contains("No such image") {
            said.lock().unwrap().push_str(&told);
        }
    }
}

#[test]
fn kills_at_any_moment_lose_nothing_that_was_told() {
    if !can_run() {
        return;
    }
    let kills = if long() { 200 } else { 6 };
    let mut daemon = Daemon::start();
    let context = Context::new("");
    let mut random = it::Random::new();
    let mut slowest = Duration::ZERO;
    let known = Context::new("RUN echo known > /known\n");
    let mut tag = String::new();
    for kill in 0..kills {
        let stop = AtomicBool::new(false);
        let said = Mutex::new(String::new());
        let pid = daemon.pid();
        std::thread::scope(|scope| {
            for client in 0..4 {
                let (daemon, context, stop, said) = (&daemon, &context, &stop, &said);
                scope.spawn(move || busy_client(daemon, context, kill * 4 + client, stop, said));
            }
            std::thread::sleep(Duration::from_millis(100 + random.below(1900)));
            stop.store(true, Ordering::Relaxed);
            it::kill(pid);
        });
        daemon.kill();
        assert!(!said.lock().unwrap().contains("panicked"), "{}", said.lock().unwrap());
        eventually(Duration::from_secs(5), "no process of a step outlives its daemon", || {
            Daemon::processes("bs=1k count=").is_empty()
        });
        let started = Instant::now();
        daemon.restart();
        slowest = slowest.max(started.elapsed());
        let verified = daemon.ok(&["verify"]);
        assert!(verified.contains("everything is as it should be"), "kill {kill}: {verified}");
        assert_eq!(daemon.strange_groups(), Vec::<String>::new(), "kill {kill}");
        daemon.left_clean();
        // A tag that a client was told of is there, and the same build gives the same files.
        if !tag.is_empty() {
            assert!(daemon.ok(&["images"]).contains(&tag), "{tag}");
            let out = tempfile::tempdir().unwrap();
            let folder = format!("type=local,dest={}", out.path().display());
            daemon.ok(&["build", "-o", &folder, &known.arg()]);
            let said = |name: &str| fs::read_to_string(out.path().join(name)).unwrap();
            assert_eq!(
                (said("known"), said("kill")),
                ("known\n".into(), format!("{}\n", kill - 1))
            );
        }
        tag = format!("known-{kill}");
        known.dockerfile(&format!("RUN echo known > /known\nRUN echo {kill} > /kill\n"));
        daemon.ok(&["build", "-t", &tag, &known.arg()]);
        assert!(!daemon.log().contains("panicked"), "{}", daemon.log());
    }
    println!("{kills} kills; the slowest start took {} ms", slowest.as_millis());
    assert!(slowest < Duration::from_secs(if long() { 1 } else { 3 }), "{slowest:?}");
}

#[test]
fn a_disk_that_fills_up_now_and_then_fails_builds_only() {
    if !can_run() {
        return;
    }
    let rounds = if long() { 60 } else { 4 };
    let disk = it::SmallDisk::new("200m");
    let daemon = Daemon::with_state(&disk.path().join("state"));
    let context = Context::new("");
    let mut random = it::Random::new();
    let mut failed = 0;
    for round in 0..rounds {
        let (stop, said) = (AtomicBool::new(false), Mutex::new(String::new()));
        std::thread::scope(|scope| {
            for client in 0..3 {
                let (daemon, context, stop, said) = (&daemon, &context, &stop, &said);
                scope.spawn(move || busy_client(daemon, context, round * 3 + client, stop, said));
            }
            std::thread::sleep(Duration::from_millis(random.below(1500)));
            // Somebody else takes what is left.
            let hog = disk.path().join("hog");
            let mut file = fs::File::create(&hog).unwrap();
            while file.write_all(&[7; 64 << 10]).is_ok() {}
            std::thread::sleep(Duration::from_millis(500 + random.below(1000)));
            stop.store(true, Ordering::Relaxed);
            drop(file);
            fs::remove_file(&hog).unwrap();
        });
        let said = said.into_inner().unwrap();
        let lower = said.to_lowercase();
        if !said.is_empty() {
            failed += 1;
            let told = lower.contains("no space left") || lower.contains("not found");
            assert!(told, "round {round}: {said}");
        }
        assert!(!daemon.log().contains("panicked"), "{}", daemon.log());
        // What was stored just now is spared for a moment.
        std::thread::sleep(Duration::from_secs(3));
        daemon.ok(&["prune", "--all"]);
        let next = Context::new(&format!("RUN echo {round} > /round\n"));
        daemon.ok(&["build", "-t", "next:1", &next.arg()]);
        let out = tempfile::tempdir().unwrap();
        let folder = format!("type=local,dest={}", out.path().display());
        daemon.ok(&["build", "-o", &folder, &next.arg()]);
        assert_eq!(fs::read_to_string(out.path().join("round")).unwrap(), format!("{round}\n"));
        let verified = daemon.ok(&["verify"]);
        assert!(verified.contains("everything is as it should be"), "round {round}: {verified}");
    }
    daemon.left_clean();
    println!("{rounds} rounds, in {failed} of them builds failed");
}
