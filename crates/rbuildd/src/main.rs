//! The build daemon.
//!
//! Reads settings, opens the state folder, puts the engine together and serves it. Only here are
//! drivers chosen and the environment read. A first SIGTERM or SIGINT ends it gracefully, a second
//! one no longer waits, a third ends it at once.

mod builds;
mod config;
mod containers;
mod content;
mod control;
mod debug;
mod flags;
mod idle;
mod images;
mod listen;
mod logs;
mod memory;
mod pipe;
mod reflection;
mod registries;
mod serve;
mod setup;
mod storage;
mod trace;
mod volumes;

use std::{process::ExitCode, time::Duration};

use anyhow::Context as _;
use clap::Parser as _;

use crate::{config::Config, flags::Flags, idle::Idle, listen::Listener};

/// What the daemon calls itself, as four words.
pub struct Version {
    program: &'static str,
    package: &'static str,
    version: &'static str,
    revision: &'static str,
    dockerfile: &'static str,
}

/// Clients take `version` for the protocol's age; `revision` says which program this is.
pub const VERSION: Version = Version {
    program: "rbuildd",
    package: "github.com/moby/buildkit",
    version: "v0.31.0",
    revision: concat!("rbuild-", env!("CARGO_PKG_VERSION")),
    dockerfile: "1.26.0",
};

/// Most threads for work that blocks; they are started when needed and end when idle.
const MOST_THREADS: usize = 2048;
/// How long calls that are no builds may take to end after the builds did.
const LAST_CALLS: Duration = Duration::from_secs(10);

fn main() -> ExitCode {
    // The launcher is this program again: it must not become a daemon first.
    executor::launcher::main_if_requested();
    memory::set_up();
    let flags = Flags::parse();
    if flags.version {
        println!(
            "{} {} {} {}",
            VERSION.program, VERSION.package, VERSION.version, VERSION.revision
        );
        return ExitCode::SUCCESS;
    }
    match start(&flags) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("rbuildd: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start(flags: &Flags) -> anyhow::Result<()> {
    let config = Config::load(flags)?;
    setup::logging(&config)?;
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    if !rustix::process::geteuid().is_root() {
        anyhow::bail!("rbuildd must run as root (also a mapped one)");
    }
    rustix::process::umask(rustix::fs::Mode::empty());
    if std::env::var_os("RBUILD_KEEP_MOUNTS").is_some_and(|value| value == "1") {
        // For trying out here what kernels before 6.15 need.
        snapshot::keeper::force();
    }
    // It remembers the limit that steps inherit, so it comes before the daemon raises its own: trees
    // and deep copies need many descriptors.
    let launcher = executor::launcher::Launcher::new();
    raise_open_files();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        // Each transfer of files has threads of its own, and hundreds of clients may come at once.
        .max_blocking_threads(MOST_THREADS)
        .build()
        .context("start the runtime")?;
    let outcome = runtime.block_on(run(&config, launcher));
    runtime.shutdown_timeout(Duration::from_secs(2));
    outcome
}

fn raise_open_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        tracing::warn!(%error, "cannot raise the number of open files");
    }
}

async fn run(config: &Config, launcher: executor::launcher::Launcher) -> anyhow::Result<()> {
    let mut listeners = Vec::new();
    for address in &config.addresses {
        listeners.push(Listener::open(address, config).await?);
    }
    let idle = Idle::new();
    let services = setup::services(config, launcher, idle.clone()).await?;
    if let Some(address) = &config.debug_address {
        let (engine, builds) = (services.engine.clone(), services.builds.clone());
        let since = std::time::Instant::now();
        debug::serve(address, debug::Debug { engine, builds, since }).await?;
    }
    notify("READY=1");
    tracing::info!(addresses = ?config.addresses, root = %config.root.display(), "ready");
    let ending = {
        let (idle, runner, quiet) = (idle.clone(), services.runner.clone(), config.idle_timeout);
        async move {
            match quiet {
                Some(quiet) => {
                    tokio::select! {
                        () = signalled() => {}
                        () = idle.wait(quiet, || runner.is_busy()) => tracing::info!("idle for long enough"),
                    }
                }
                None => signalled().await,
            }
        }
    };
    let builds = services.builds.clone();
    let ending = async {
        ending.await;
        notify("STOPPING=1");
        let running = builds.running().len();
        tracing::info!(running, "stopping");
        // Builds go on making calls until they end; nothing is closed before.
        tokio::select! {
            drained = tokio::time::timeout(config.drain_timeout, builds.drain()) => {
                if drained.is_err() {
                    let left = builds.running().len();
                    tracing::warn!(left, "builds still run after {:?}; cancelling them", config.drain_timeout);
                }
                true
            }
            () = signalled() => {
                tracing::warn!("stopping without waiting");
                false
            }
        }
    };
    let serving = services.serve(listeners, config);
    tokio::pin!(serving);
    tokio::select! {
        served = &mut serving => served?,
        drained = ending => {
            idle.stop();
            let patience = if drained && builds.running().is_empty() { LAST_CALLS } else { Duration::ZERO };
            tokio::select! {
                served = tokio::time::timeout(patience, &mut serving) => match served {
                    Ok(served) => served?,
                    Err(_) => tracing::warn!("calls still run; cancelling them"),
                },
                () = signalled() => tracing::warn!("stopping without waiting"),
            }
        }
    }
    services.runner.shut_down().await;
    services.engine.history().settled().await;
    services.engine.close().await.context("write the state down")
}

/// SIGTERM or SIGINT; the third one ends the process.
async fn signalled() {
    use std::sync::atomic::{AtomicU32, Ordering};
    use tokio::signal::unix::{SignalKind, signal};
    static SEEN: AtomicU32 = AtomicU32::new(0);
    let (Ok(mut term), Ok(mut int)) =
        (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
    if SEEN.fetch_add(1, Ordering::Relaxed) + 1 >= 3 {
        std::process::exit(1);
    }
}

/// Tells a supervisor that asked to be told.
fn notify(state: &str) {
    let Ok(path) = std::env::var("NOTIFY_SOCKET") else { return };
    let Ok(socket) = std::os::unix::net::UnixDatagram::unbound() else { return };
    let sent = match path.strip_prefix('@') {
        Some(name) => {
            use std::os::linux::net::SocketAddrExt as _;
            std::os::unix::net::SocketAddr::from_abstract_name(name)
                .and_then(|address| socket.send_to_addr(state.as_bytes(), &address))
        }
        None => socket.send_to(state.as_bytes(), path),
    };
    if let Err(error) = sent {
        tracing::debug!(%error, "cannot tell the supervisor");
    }
}
