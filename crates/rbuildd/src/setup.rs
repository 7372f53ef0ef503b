//! Puts the daemon together: store, sources, executor, engine, collector.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use engine::{Engine, Jobs, LogLimit, Settings, run::Runner};
use executor::launcher::Launcher;
use frontend_api::WorkerInfo;
use ops::{Machine, cache_mount::CacheMounts};
use source::{Providers, Source, Sources};
use store::Store;

use crate::{builds::Builds, config::Config, idle::Idle, serve::Services, trace::Traces};

/// The collector runs this long after a build, and at most once in [`COLLECT_PAUSE`].
const COLLECT_DELAY: Duration = Duration::from_secs(1);
const COLLECT_PAUSE: Duration = Duration::from_secs(60);
/// Within that, free memory goes back to the system this often, as long as that takes no more than a
/// part of the time.
const TRIM_PAUSE: Duration = Duration::from_secs(1);
const TRIM_PART: u32 = 200;
/// Folders where emulators of foreign processors are looked for besides PATH.
const EMULATORS: &[&str] = &["/usr/bin", "/usr/local/bin", "/usr/libexec/rbuild"];

/// Logs to standard error.
pub fn logging(config: &Config) -> anyhow::Result<()> {
    use tracing_subscriber::{EnvFilter, fmt};
    let filter = match std::env::var("RBUILD_LOG") {
        Ok(text) => EnvFilter::try_new(text).context("RBUILD_LOG is not a log filter")?,
        // Libraries speak up only when they must.
        Err(_) => EnvFilter::try_new(format!("warn,{}", ours(&config.log_level)))?,
    };
    let builder = fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false);
    match config.log_json {
        true => builder.json().init(),
        false => builder.init(),
    }
    Ok(())
}

fn ours(level: &str) -> String {
    const CRATES: &[&str] = &[
        "rbuildd",
        "engine",
        "ops",
        "store",
        "snapshot",
        "executor",
        "session",
        "source",
        "exporter",
        "oci",
        "solver",
        "gateway",
        "dockerfile",
    ];
    CRATES.iter().map(|name| format!("{name}={level}")).collect::<Vec<_>>().join(",")
}

/// Everything behind the services.
pub async fn services(
    config: &Config,
    launcher: Launcher,
    idle: Arc<Idle>,
) -> anyhow::Result<Services> {
    let mut policies = match config.policies.is_empty() {
        true => {
            let given = |space: u64| (space > 0).then_some(space);
            store::default_policies(
                given(config.spaces.reserved),
                given(config.spaces.max_used),
                given(config.spaces.min_free),
                existing(&config.root).and_then(store::disk_total),
            )
        }
        false => config.policies.clone(),
    };
    for policy in &mut policies {
        // Collecting begins before work has to wait for it.
        let most = config.ceiling.map_or(u64::MAX, |ceiling| ceiling / 10 * 8);
        policy.max_used_space = policy.max_used_space.min(most);
        policy.reserved_space = policy.reserved_space.min(most);
    }
    let root = config.root.clone();
    let store_config = store::Config {
        snapshotter: config.snapshotter,
        policies: policies.clone(),
        ceiling: config.ceiling,
        root: root.clone(),
    };
    let store = tokio::task::spawn_blocking(move || Store::open(store_config)).await??;
    let recovery = store.recovery();
    tracing::info!(?recovery, snapshotter = store.snapshotter().name(), "state opened");

    let run_folder = private_folder(&root, "run")?;
    let journals = private_folder(&root, "journals")?;
    let logs = private_folder(&root, "container-logs")?;

    let traces = Traces::from_environment()?;
    let trace_socket = match &traces {
        Some(traces) => Some(traces.listen(&run_folder)?),
        None => None,
    };

    let executor = executor(config, launcher);
    let sessions = session::Sessions::new();
    let client = oci::registry::Client::new(oci::registry::Options {
        hosts: config.registries.clone(),
        concurrency_per_host: config.registry_concurrency,
        ..Default::default()
    });
    let providers = Arc::new(Providers::default());
    let all: Vec<Arc<dyn Source>> = vec![
        Arc::new(source::LocalSource::new(store.clone())),
        Arc::new(source::HttpSource::new(store.clone())),
        Arc::new(source::GitSource::with_registries(
            store.clone(),
            source::session_registries(client.clone()),
        )),
        Arc::new(source::Images::new(store.clone(), client.clone(), providers.clone())),
        Arc::new(source::Layouts::new(store.clone(), providers.clone())),
    ];
    let registry = client.clone();
    let emulator_folders = emulator_folders();
    let jobs = Arc::new(Jobs::default());
    let machine = Arc::new(Machine {
        store: store.clone(),
        proxies: netproxy::Provider::new(executor.clone()),
        executor,
        sources: Sources::new(all, providers)
            .with_registries(source::session_registries(client.clone())),
        sessions,
        jobs: jobs.clone(),
        imports: Arc::default(),
        cache_mounts: CacheMounts::new(store.clone()),
        config: ops::Config {
            network: config.network,
            dns: config.dns.clone(),
            cgroup_parent: config.cgroup_parent.clone(),
            no_process_sandbox: config.no_process_sandbox,
            apparmor_profile: config.apparmor_profile.clone(),
            run_folder,
            emulator_folders: emulator_folders.clone(),
            trace_socket,
            devices: config.devices.clone(),
        },
    });
    let platforms = match config.platforms.is_empty() {
        true => engine::host_platforms(&emulator_folders),
        false => config.platforms.clone(),
    };
    let settings = Settings {
        worker: WorkerInfo {
            id: store.worker_id().to_owned(),
            labels: labels(config, store.snapshotter().name()),
            platforms,
        },
        entitlements: config.entitlements.clone(),
        max_parallelism: config.max_parallelism,
        log_limit: log_limit()?,
        history: config.history,
        proxy_network: config.proxy_network,
        dockerfile: config.dockerfile,
        provenance: config.provenance.clone(),
        frontend_images: config.frontend_images.clone(),
        journals,
        registries: Arc::new(move |group| registries(client.clone(), group)),
    };
    let engine = Engine::new(machine, jobs, settings)?;
    let runner = Runner::new(engine.clone(), logs);
    if config.gc {
        tokio::spawn(collect(Arc::downgrade(&engine)));
    }
    Ok(Services {
        engine,
        runner,
        idle,
        policies: Arc::new(policies),
        client: registry,
        builds: Builds::new(),
        traces,
    })
}

/// The folder itself, or the nearest one above it that exists.
fn existing(folder: &Path) -> Option<&Path> {
    folder.ancestors().find(|folder| folder.exists())
}

/// An empty folder below the state folder that nobody else may enter.
fn private_folder(root: &Path, name: &str) -> anyhow::Result<PathBuf> {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = root.join(name);
    match std::fs::remove_dir_all(&folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("empty {}", folder.display()));
        }
        _ => {}
    }
    std::fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
    std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o711))?;
    Ok(folder)
}

fn executor(config: &Config, launcher: Launcher) -> Arc<dyn executor::Executor> {
    let parent = Some(config.cgroup_parent.clone()).filter(|parent| !parent.is_empty());
    match &config.runtime {
        None => {
            let native = executor::NativeConfig {
                default_cgroup_parent: parent,
                subnet: Some(config.bridge_subnet),
                ..Default::default()
            };
            Arc::new(executor::Native::new(launcher, native))
        }
        Some(binary) => {
            let runtime = executor::RuncConfig {
                binary: binary.clone(),
                state: config.root.join("runtime"),
                default_cgroup_parent: parent,
            };
            Arc::new(executor::Runc::new(launcher, runtime))
        }
    }
}

/// Registries reached with the credentials of a build's sessions.
fn registries(client: oci::registry::Client, group: session::Group) -> exporter::Registries {
    let credentials = Arc::new(source::SessionCredentials::new(group));
    Arc::new(move |insecure| Arc::new(client.session(credentials.clone(), insecure)))
}

fn labels(config: &Config, snapshotter: &str) -> BTreeMap<String, String> {
    const PREFIX: &str = "org.mobyproject.buildkit.worker";
    let hostname = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let network = match config.network {
        executor::Network::Host => "host",
        executor::Network::None => "none",
        executor::Network::Isolated => "bridge",
    };
    let process_mode = if config.no_process_sandbox { "no-sandbox" } else { "sandbox" };
    let mut labels: BTreeMap<String, String> = [
        ("executor", "oci"),
        ("snapshotter", snapshotter),
        ("hostname", hostname.as_str()),
        ("network", network),
        ("oci.process-mode", process_mode),
        ("selinux.enabled", "false"),
    ]
    .into_iter()
    .map(|(key, value)| (format!("{PREFIX}.{key}"), value.to_owned()))
    .collect();
    if let Some(profile) = &config.apparmor_profile {
        labels.insert(format!("{PREFIX}.apparmor.profile"), profile.clone());
    }
    labels.extend(config.labels.clone());
    labels
}

/// The original clips a step's log at 2 MiB; here logs are whole unless somebody asks otherwise.
fn log_limit() -> anyhow::Result<LogLimit> {
    let max_bytes = match std::env::var("BUILDKIT_STEP_LOG_MAX_SIZE") {
        Ok(text) if text == "-1" || text.is_empty() => None,
        Ok(text) => {
            Some(text.parse().context("BUILDKIT_STEP_LOG_MAX_SIZE is not a number of bytes")?)
        }
        Err(_) => None,
    };
    Ok(LogLimit { max_bytes })
}

fn emulator_folders() -> Vec<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).chain(EMULATORS.iter().map(PathBuf::from)).collect()
}

/// Applies the policies at start and after builds.
async fn collect(engine: std::sync::Weak<Engine>) {
    loop {
        tokio::time::sleep(COLLECT_DELAY).await;
        let Some(strong) = engine.upgrade() else { return };
        match strong.store().collect().await {
            Ok(pruned) if pruned.records > 0 => tracing::info!(?pruned, "collected garbage"),
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, "cannot collect garbage"),
        }
        strong.history().collect();
        drop(strong);
        // What builds leave for a moment is gone some seconds after them, or others come.
        let collected = Instant::now();
        while collected.elapsed() < COLLECT_PAUSE {
            let before = Instant::now();
            crate::memory::trim();
            tokio::time::sleep(TRIM_PAUSE.max(before.elapsed() * TRIM_PART)).await;
        }
        let Some(strong) = engine.upgrade() else { return };
        strong.build_ended().await;
    }
}
