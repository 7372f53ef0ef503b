//! What is measured. Each run prepares, measures one or more named times, and cleans up.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use clap::ValueEnum;
use client::{BuildRequest, Cancel, Client, Export, Target};

use crate::{
    crowds, fixture, graphs,
    images::{self, Daemon, Shelf},
    lazy,
    table::Value,
};

/// The workloads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Workload {
    /// Time to the first answer of a fresh daemon (needs --daemon)
    Start,
    /// Resident memory of the daemons, before the others if named first
    Memory,
    /// 30 steps, all cached
    Noop,
    /// 50 steps of `true`, one after the other
    Run50,
    /// 64 stages side by side, joined
    Wide,
    /// A context of many files: new, unchanged, one file changed
    Ctx,
    /// A large file as gzip OCI archive
    BigOci,
    /// A graph of 10,000 files, each made on the one before
    LlbDeep,
    /// A graph of 10,000 files, joined
    LlbWide,
    /// 100 layers laid over each other, then a step
    Merge,
    /// 20 clients that want the same step of one second
    Dedupe,
    /// 40 clients, 5 steps each
    Clients,
    /// All steps cached remotely, on a base image that nothing needs to fetch
    Lazy,
    /// An image of 20 layers and 1 GiB to an empty registry
    PushCold,
    /// The same image to the same registry again
    PushNoop,
    /// A build on an image of 1 GiB that has to be pulled
    PullUnpack,
    /// A tree of 50,000 files as OCI archive, gzip and zstd
    ExportTree,
    /// An image of 1 GiB out of an OCI layout, and out of a tar
    Load,
}

impl Workload {
    /// Whether it leaves gigabytes in the daemon, to be removed at the end.
    pub fn leaves_images(self) -> bool {
        matches!(
            self,
            Self::PushCold | Self::PushNoop | Self::PullUnpack | Self::ExportTree | Self::Load
        )
    }
}

/// Sizes of the workloads.
pub struct Scale {
    /// Files of `ctx`.
    pub files: usize,
    /// MiB of `big-oci`.
    pub mib: usize,
    /// Vertices of `llb-deep` and `llb-wide`.
    pub vertices: usize,
    /// Size of the images that are pushed, pulled and loaded.
    pub image_mib: usize,
    /// Files of `export-tree`.
    pub tree_files: usize,
    /// Static busybox.
    pub busybox: PathBuf,
}

/// Measurements of one round.
pub type Times = Vec<(&'static str, Value)>;

/// One round.
pub async fn run(
    workload: Workload,
    daemon: &Daemon,
    shelf: &mut Shelf,
    scale: &Scale,
) -> anyhow::Result<Times> {
    let client = &daemon.client;
    match workload {
        Workload::Start | Workload::Memory => Ok(Vec::new()),
        Workload::Noop => noop(client, scale).await,
        Workload::Run50 => run50(client, scale).await,
        Workload::Wide => wide(client, scale).await,
        Workload::Ctx => ctx(client, scale).await,
        Workload::BigOci => big_oci(client, scale).await,
        Workload::LlbDeep => graphs::deep(client, scale).await,
        Workload::LlbWide => graphs::wide(client, scale).await,
        Workload::Merge => graphs::merge(client, scale).await,
        Workload::Dedupe => crowds::dedupe(client, scale).await,
        Workload::Clients => crowds::clients(client, scale).await,
        Workload::Lazy => lazy::lazy(client, scale).await,
        Workload::PushCold => shelf.push_cold(daemon, scale).await,
        Workload::PushNoop => shelf.push_noop(daemon, scale).await,
        Workload::PullUnpack => shelf.pull(daemon, scale).await,
        Workload::ExportTree => images::export_tree(daemon, scale).await,
        Workload::Load => shelf.load(daemon, scale).await,
    }
}

/// Builds `folder`.
pub async fn build(
    client: &Client,
    folder: &Path,
    shared_key: &str,
    exports: Vec<Export>,
) -> anyhow::Result<Duration> {
    let mut request = BuildRequest::new("dockerfile.v0");
    for name in ["context", "dockerfile"] {
        request.locals.insert(name.into(), folder.to_owned());
    }
    request.shared_key = shared_key.to_owned();
    request.exports = exports;
    send(client, request).await
}

/// Sends a request; progress is read and thrown away, as every client reads it.
pub async fn send(client: &Client, request: BuildRequest) -> anyhow::Result<Duration> {
    let (sender, mut statuses) = tokio::sync::mpsc::channel(1024);
    let reader = tokio::spawn(async move { while statuses.recv().await.is_some() {} });
    let began = Instant::now();
    client.build(request, Some(sender), Cancel::new()).await?;
    let took = began.elapsed();
    reader.await?;
    Ok(took)
}

/// Attributes of an exporter or a cache.
pub fn attrs(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

async fn noop(client: &Client, scale: &Scale) -> anyhow::Result<Times> {
    let steps: String = (0..30).fold(String::new(), |mut text, step| {
        let _ = writeln!(text, "RUN echo noop {step} > /step");
        text
    });
    let folder = fixture::tools(&scale.busybox, &steps)?;
    build(client, folder.path(), "bench-noop", Vec::new()).await?;
    let took = build(client, folder.path(), "bench-noop", Vec::new()).await?;
    Ok(vec![("noop: 30 cached steps", took.into())])
}

async fn run50(client: &Client, scale: &Scale) -> anyhow::Result<Times> {
    let base = fixture::tools(&scale.busybox, "")?;
    build(client, base.path(), "bench", Vec::new()).await?;
    let nonce = base::id::random_id();
    let steps: String = (0..50).fold(String::new(), |mut text, step| {
        let _ = writeln!(text, "RUN true # {nonce} {step}");
        text
    });
    let folder = fixture::tools(&scale.busybox, &steps)?;
    let took = build(client, folder.path(), "bench", Vec::new()).await?;
    Ok(vec![("run50: 50 × `RUN true`", took.into()), ("run50: per step", (took / 50).into())])
}

async fn wide(client: &Client, scale: &Scale) -> anyhow::Result<Times> {
    let base = fixture::tools(&scale.busybox, "")?;
    build(client, base.path(), "bench", Vec::new()).await?;
    let nonce = base::id::random_id();
    let mut text = String::new();
    for stage in 0..64 {
        let _ = writeln!(text, "FROM base AS s{stage}\nRUN echo {nonce} {stage} > /o{stage}");
    }
    text.push_str("FROM scratch\n");
    for stage in 0..64 {
        let _ = writeln!(text, "COPY --from=s{stage} /o{stage} /");
    }
    let folder = fixture::tools(&scale.busybox, &text)?;
    let took = build(client, folder.path(), "bench", Vec::new()).await?;
    Ok(vec![("wide: 64 stages joined", took.into())])
}

async fn ctx(client: &Client, scale: &Scale) -> anyhow::Result<Times> {
    let folder = fixture::many_files(scale.files)?;
    let key = base::id::random_id();
    let cold = build(client, folder.path(), &key, Vec::new()).await?;
    let unchanged = build(client, folder.path(), &key, Vec::new()).await?;
    std::fs::write(folder.path().join("d0/f0"), base::id::random_id())?;
    let changed = build(client, folder.path(), &key, Vec::new()).await?;
    Ok(vec![
        ("ctx: new files", cold.into()),
        ("ctx: unchanged", unchanged.into()),
        ("ctx: one file changed", changed.into()),
    ])
}

async fn big_oci(client: &Client, scale: &Scale) -> anyhow::Result<Times> {
    let seed = base::time::unix_nanos(std::time::SystemTime::now()).cast_unsigned();
    let folder = fixture::big_file(scale.mib, seed)?;
    let key = base::id::random_id();
    let transfer = build(client, folder.path(), &key, Vec::new()).await?;
    let export = Export {
        kind: "oci".into(),
        attrs: BTreeMap::new(),
        target: Target::File("/dev/null".into()),
    };
    let export = build(client, folder.path(), &key, vec![export]).await?;
    Ok(vec![("big-oci: send and copy", transfer.into()), ("big-oci: export gzip", export.into())])
}
