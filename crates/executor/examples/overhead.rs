//! Measures what a container costs from start to exit: `overhead [runs] [options…]`, with options
//! `isolated`, `limits`, `bare` (no executor: clone and exec only) and `parallel`.

use std::{sync::Arc, time::Instant};

use executor::{Executor as _, Hooks, Io, Native, NativeConfig, Network, Process, Root, Spec};

fn main() {
    executor::launcher::main_if_requested();
    let launcher = executor::launcher::spawn().expect("start the launcher");
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let runs = arguments.first().and_then(|text| text.parse().ok()).unwrap_or(200);
    let has = |name: &str| arguments.iter().any(|argument| argument == name);

    let folder = tempfile::tempdir().expect("make a folder");
    for name in ["bin", "etc", "proc", "sys", "dev"] {
        std::fs::create_dir(folder.path().join(name)).expect("make a folder");
    }
    for name in ["hosts", "resolv.conf"] {
        std::fs::write(folder.path().join("etc").join(name), "").expect("make a file");
    }
    std::fs::copy("/bin/busybox", folder.path().join("bin/true")).expect("copy busybox");
    let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC;
    let tree = rustix::fs::open(folder.path(), flags, rustix::fs::Mode::empty());
    let tree = Arc::new(tree.expect("open the folder"));

    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("start the runtime");
    let native = Native::new(launcher, NativeConfig::default());
    let spec = |number: usize| {
        let root = Root { tree: tree.clone(), readonly: false };
        let mut spec = Spec::new(format!("run-{number}"), root, Process::new(["/bin/true"]));
        if has("isolated") {
            spec.network = Network::None;
        }
        if has("limits") {
            spec.resources.memory = 1 << 30;
        }
        spec
    };
    runtime.block_on(async {
        let begin = Instant::now();
        native.run(spec(runs), Io::default(), Hooks::default()).await.expect("run");
        println!("first: {:.2} ms", begin.elapsed().as_secs_f64() * 1e3);
        let mut times = Vec::new();
        let begin = Instant::now();
        if has("parallel") {
            let all: Vec<_> = (0..runs)
                .map(|number| {
                    let (native, spec) = (native.clone(), spec(number));
                    tokio::spawn(async move {
                        native.run(spec, Io::default(), Hooks::default()).await.expect("run");
                    })
                })
                .collect();
            for run in all {
                run.await.expect("join");
            }
        } else if has("bare") {
            for _ in 0..runs {
                let begin = Instant::now();
                let mut command = std::process::Command::new("/bin/busybox");
                command.arg("true").status().expect("run");
                times.push(begin.elapsed());
            }
        } else {
            for number in 0..runs {
                let begin = Instant::now();
                native.run(spec(number), Io::default(), Hooks::default()).await.expect("run");
                times.push(begin.elapsed());
            }
        }
        let total = begin.elapsed().as_secs_f64() * 1e3;
        println!("{runs} runs: {:.2} ms each", total / runs as f64);
        times.sort();
        if let (Some(least), Some(most)) = (times.first(), times.last()) {
            let middle = times[times.len() / 2];
            println!("least {least:.2?}, median {middle:.2?}, most {most:.2?}");
        }
    });
}
