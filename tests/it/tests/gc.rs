//! Disk space: what is counted, what is collected, and the ceiling that holds in any case.

use std::{
    collections::HashSet,
    fs,
    io::{Read as _, Write as _},
    os::unix::{fs::MetadataExt as _, net::UnixStream},
    path::Path,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use it::{Context, Daemon, SmallDisk, can_run, long, text};

/// What the daemon answers on its debugging address.
fn debug(socket: &Path, page: &str) -> String {
    let mut stream = UnixStream::connect(socket).expect("the debugging address answers");
    write!(stream, "GET {page} HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    answer.split_once("\r\n\r\n").unwrap().1.to_owned()
}

/// Bytes the daemon says its state takes.
fn counted(socket: &Path) -> u64 {
    let metrics = debug(socket, "/metrics");
    let parts = metrics.lines().filter(|line| line.starts_with("rbuild_store_bytes{"));
    parts.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap() as u64).sum()
}

/// Bytes the file system says a folder takes, every hard-linked file once.
fn on_disk(path: &Path, seen: &mut HashSet<(u64, u64)>) -> u64 {
    let Ok(metadata) = fs::symlink_metadata(path) else { return 0 };
    if metadata.nlink() > 1 && !metadata.is_dir() && !seen.insert((metadata.dev(), metadata.ino()))
    {
        return 0;
    }
    let mut sum = metadata.blocks() * 512;
    if metadata.is_dir() {
        for entry in fs::read_dir(path).into_iter().flatten().flatten() {
            sum += on_disk(&entry.path(), seen);
        }
    }
    sum
}

#[test]
fn what_is_counted_is_what_the_disk_says() {
    if !can_run() {
        return;
    }
    let builds = if long() { 500 } else { 12 };
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("debug");
    let daemon = Daemon::start_with(&["--debugaddr", &format!("unix://{}", socket.display())]);
    let context = Context::new("");
    let mut random = it::Random::new();
    for build in 0..builds {
        let (few, many) = (random.below(40), random.below(900));
        context.dockerfile(&format!(
            "RUN --mount=type=cache,target=/c,id=c{few} dd if=/dev/zero of=/c/f bs=1k count={many}\n\
             RUN dd if=/dev/urandom of=/big bs=1k count={many}; ln /big /link; echo {build} > /b\n\
             RUN mkdir /few; for i in $(seq 1 {few}); do echo $i > /few/$i; done\n\
             RUN rm /big && chmod 700 /few\n\
             FROM scratch\nCOPY --from=base /few /few\nCOPY --link busybox /a/b/c\n",
        ));
        let tag = format!("app:{}", random.below(20));
        daemon.ok(&["build", "-t", &tag, &context.arg()]);
    }
    let check = |when: &str| {
        // Journals of builds linger, and removal goes on in the background.
        let close = |wanted: u64, found: u64| wanted.abs_diff(found) * 100 <= wanted;
        let mut last = (0, 0);
        for _ in 0..60 {
            last = (counted(&socket), on_disk(daemon.state(), &mut HashSet::new()));
            if close(last.1, last.0) {
                println!("{when}: {} bytes counted, {} on disk", last.0, last.1);
                return;
            }
            std::thread::sleep(Duration::from_millis(500));
        }
        panic!(
            "{when}: {} bytes counted, {} on disk\n{}",
            last.0,
            last.1,
            daemon.ok(&["du", "-v"])
        );
    };
    check("after the builds");
    daemon.ok(&["prune", "--all", "--keep-storage", "5"]);
    check("after a prune");
    daemon.ok(&["verify"]);
}

#[test]
fn policies_and_prunes_select() {
    if !can_run() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (socket, config) = (folder.path().join("debug"), folder.path().join("config.toml"));
    fs::write(
        &config,
        "[worker.oci]\n[[worker.oci.gcpolicy]]\nfilters = [\"type==exec.cachemount\"]\nall = true\n\
         [[worker.oci.gcpolicy]]\nkeepDuration = \"48h\"\nmaxUsedSpace = \"1MB\"\n",
    )
    .unwrap();
    let debug_address = format!("unix://{}", socket.display());
    let args = ["--debugaddr", &debug_address, "--config", &config.display().to_string()];
    let daemon = Daemon::start_with(&args);
    let context = Context::new("RUN --mount=type=cache,target=/c echo x > /c/f; echo y > /y\n");
    daemon.ok(&["build", &context.arg()]);
    let kinds = || {
        let verbose = daemon.ok(&["du", "-v"]);
        let kinds = verbose.lines().filter_map(|line| line.strip_prefix("Type:"));
        let mut kinds: Vec<String> = kinds.map(|kind| kind.trim().to_owned()).collect();
        kinds.sort();
        kinds.dedup();
        kinds.join(" ")
    };
    // The daemon may have collected by itself already.
    let made = kinds();
    assert!(made.ends_with("regular source.local"), "{made}");
    debug(&socket, "/debug/gc");
    assert_eq!(kinds(), "regular source.local", "only the first policy has something to do");
    daemon.ok(&["prune", "--filter", "type==source.local,private"]);
    assert_eq!(kinds(), "regular");
    daemon.ok(&["prune", "--keep-duration", "1h"]);
    assert_eq!(kinds(), "regular", "used just now");
    let refused = daemon.fails(&["prune", "--filter", "type=="]);
    assert!(refused.contains("filter"), "{refused}");
    daemon.ok(&["prune", "--all"]);
    assert_eq!(kinds(), "");
}

#[test]
fn the_ceiling_holds_whatever_builds_write() {
    if !can_run() {
        return;
    }
    const CEILING: u64 = 500_000_000;
    let rounds = if long() { 40 } else { 4 };
    let disk = SmallDisk::new("4g");
    let state = disk.path().join("state");
    let ceiling = CEILING.to_string();
    let daemon = Daemon::with_state_and(&state, &["--oci-worker-ceiling", &ceiling]);
    let context = Context::new("");
    daemon.ok(&["build", &context.arg()]);
    let (stop, most) = (AtomicBool::new(false), AtomicU64::new(0));
    let said = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                most.fetch_max(disk.used(), Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        for round in 0..rounds {
            // One that fits again and again, only if what was before it goes, and others that never
            // do: by small writes, by a single one, and by setting aside what may not be set aside.
            let builds = [
                ("fits", "dd if=/dev/zero of=/f bs=1M count=100"),
                ("small", "dd if=/dev/zero of=/f bs=16k count=200000"),
                ("single", "dd if=/dev/zero of=/f bs=600M count=6"),
                ("aside", "fallocate -l 2G /f || dd if=/dev/zero of=/f bs=1M count=3000"),
            ];
            let builds = builds.map(|(name, step)| {
                let file = format!("Dockerfile.{name}");
                let steps = format!("{}RUN echo {round}; {step}\n", it::BASE);
                context.write(&file, steps.as_bytes());
                let file = context.path().join(file).display().to_string();
                (
                    name,
                    daemon.command(&["build", "--progress", "plain", "-f", &file, &context.arg()]),
                )
            });
            let said = &said;
            let running: Vec<_> = builds
                .into_iter()
                .map(|(name, mut command)| scope.spawn(move || (name, command.output().unwrap())))
                .collect();
            for build in running {
                let (name, output) = build.join().unwrap();
                said.lock().unwrap().push((name, output.status.success(), text(&output)));
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    let most = most.into_inner();
    println!("with a ceiling of {CEILING} bytes at most {most} were used");
    for (name, success, output) in said.into_inner().unwrap() {
        match name {
            // It may be the victim while the others take all there is.
            "fits" => assert!(success || output.contains("ceiling"), "{output}"),
            _ => assert!(!success && output.contains("ceiling"), "{output}"),
        }
    }
    // Beside all the other tests the watcher itself may have to wait; what counts then is that nobody
    // comes to the end.
    let slack = if long() { CEILING / 100 } else { CEILING * 4 };
    assert!(most <= CEILING + slack, "{most} bytes were used");
    assert!(!daemon.log().contains("panicked"), "{}", daemon.log());
    let fits = Context::new("RUN dd if=/dev/zero of=/f bs=1M count=200\n");
    daemon.ok(&["build", &fits.arg()]);
    daemon.left_clean();
    daemon.ok(&["verify"]);
}
