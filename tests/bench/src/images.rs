//! Images on their way: to a registry, from one, into tars, out of layouts.
//!
//! Making an image is never measured; it is made once a daemon, and found again by later rounds.
//! With each time comes the daemon's highest resident memory meanwhile, if its process is known.
//! Between rounds everything is pruned where it must be absent, and what a registry has sent is
//! checked, so that nobody is faster by not having pulled.

use std::{
    collections::{BTreeMap, HashMap},
    fmt::Write as _,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use client::{BuildRequest, Client, Export, Target};
use llb::build::{Copy, FileAction, Graph, LocalOptions, Meta, Output, Source};
use proto::{
    control::{DiskUsageRequest, PruneRequest},
    rbuild::v1::{Chunk, RemoveImageRequest},
};

use crate::{
    fixture,
    graphs::{definition, file},
    memory::Watch,
    registry::Registry,
    table::Value,
    workloads::{Scale, Times, attrs, build, send},
};

/// Layers of the image that is pushed; two of them make the root file system.
const PUSHED_LAYERS: usize = 20;
/// Layers of the image that is pulled and loaded.
const PULLED_LAYERS: usize = 10;
/// Repetitions of a push that has nothing to send; one is too short to be measured alone.
const NOOPS: u32 = 5;
/// Bytes of a load sent at once.
const CHUNK: usize = 512 << 10;

/// Less than this is nothing.
const PRUNED: i64 = 1 << 20;
/// What is still in use then, stays.
const PRUNE_WITHIN: Duration = Duration::from_secs(10);

/// A daemon and its process, if that is known.
pub struct Daemon {
    /// The connection.
    pub client: Client,
    /// The process.
    pub pid: Option<i32>,
}

/// What is made once and used by several rounds.
pub struct Shelf {
    /// The image that is pushed is another one in each run of this program.
    nonce: String,
    pushed: HashMap<String, Registry>,
    pulled: Option<Pulled>,
}

/// The image that is pulled and loaded.
struct Pulled {
    registry: Registry,
    reference: String,
    digest: String,
    /// Compressed bytes.
    size: u64,
    /// `image.tar` and `layout`.
    folder: tempfile::TempDir,
}

impl Shelf {
    /// An empty one.
    pub fn new() -> Self {
        Self { nonce: base::id::random_id(), pushed: HashMap::new(), pulled: None }
    }

    /// All layers go to an empty registry.
    pub async fn push_cold(&mut self, daemon: &Daemon, scale: &Scale) -> anyhow::Result<Times> {
        // The blobs are made here, so that the push finds them.
        let nameless =
            Export { kind: "image".into(), attrs: BTreeMap::new(), target: Target::None };
        self.image(daemon, scale, nameless).await?;
        let registry = Registry::start().await?;
        let watch = Watch::start(daemon.pid);
        let took = self.image(daemon, scale, push(&pushed_to(&registry))).await?;
        Ok(with_peak("push-cold: 20 layers", took, "push-cold: peak memory", watch))
    }

    /// The registry has everything already.
    pub async fn push_noop(&mut self, daemon: &Daemon, scale: &Scale) -> anyhow::Result<Times> {
        let key = daemon.client.address().to_string();
        let registry = match self.pushed.remove(&key) {
            Some(registry) => registry,
            None => {
                let registry = Registry::start().await?;
                self.image(daemon, scale, push(&pushed_to(&registry))).await?;
                registry
            }
        };
        let before = registry.moved()?;
        let watch = Watch::start(daemon.pid);
        let mut took = Duration::ZERO;
        for _ in 0..NOOPS {
            took += self.image(daemon, scale, push(&pushed_to(&registry))).await?;
        }
        let took = took / NOOPS;
        ensure!(registry.moved()? - before < 16 << 20, "layers were sent once more");
        self.pushed.insert(key, registry);
        Ok(with_peak("push-noop: the same again", took, "push-noop: peak memory", watch))
    }

    /// Builds the image to be pushed; the first time takes a while.
    async fn image(
        &self,
        daemon: &Daemon,
        scale: &Scale,
        export: Export,
    ) -> anyhow::Result<Duration> {
        let mib = scale.image_mib / (PUSHED_LAYERS - 2);
        let steps = (2..PUSHED_LAYERS).fold(String::new(), |mut text, number| {
            let (nonce, dd) = (&self.nonce, "dd if=/dev/urandom bs=1M");
            let _ = writeln!(text, "RUN {dd} count={mib} of=/f{number} # {nonce}");
            text
        });
        let folder = fixture::tools(&scale.busybox, &steps)?;
        build(&daemon.client, folder.path(), "bench", vec![export]).await
    }

    /// A build on an image that is not here.
    pub async fn pull(&mut self, daemon: &Daemon, scale: &Scale) -> anyhow::Result<Times> {
        let pulled = self.pulled(daemon, scale).await?;
        prune(&daemon.client).await?;
        let before = pulled.registry.moved()?;
        let mut graph = Graph::new();
        let base = graph.source(Source::image(&pulled.reference), Meta::default());
        let request = one_file(&mut graph, base)?;
        let watch = Watch::start(daemon.pid);
        let took = send(&daemon.client, request).await?;
        let times = with_peak("pull-unpack: 10 layers", took, "pull-unpack: peak memory", watch);
        let sent = pulled.registry.moved()? - before;
        ensure!(sent >= pulled.size, "only {sent} of {} bytes were pulled", pulled.size);
        prune(&daemon.client).await?;
        Ok(times)
    }

    /// An image out of a file of the client. Every daemon can build on an OCI layout; only rbuild
    /// takes a tar into an image store.
    pub async fn load(&mut self, daemon: &Daemon, scale: &Scale) -> anyhow::Result<Times> {
        let pulled = self.pulled(daemon, scale).await?;
        prune(&daemon.client).await?;
        let mut graph = Graph::new();
        let reference = format!("bench/layout@{}", pulled.digest);
        let source = Source::oci_layout(&reference, "", "image");
        let base = graph.source(source, Meta::default());
        let mut request = one_file(&mut graph, base)?;
        request.oci_layouts.insert("image".into(), pulled.folder.path().join("layout"));
        let watch = Watch::start(daemon.pid);
        let took = send(&daemon.client, request).await?;
        let label = "load: OCI layout as base, unpacked";
        let mut times = with_peak(label, took, "load: peak memory, layout", watch);
        prune(&daemon.client).await?;

        let watch = Watch::start(daemon.pid);
        if let Some(took) =
            load_tar(&daemon.client, &pulled.folder.path().join("image.tar")).await?
        {
            let label = "load: tar into the image store, unpacked";
            times.extend(with_peak(label, took, "load: peak memory, tar", watch));
            forget(&daemon.client, &pulled.reference).await?;
            prune(&daemon.client).await?;
        }
        Ok(times)
    }

    /// The image to pull and load, made by the first daemon that is asked.
    async fn pulled(&mut self, daemon: &Daemon, scale: &Scale) -> anyhow::Result<&Pulled> {
        if self.pulled.is_none() {
            self.pulled = Some(Pulled::make(daemon, scale).await.context("making the image")?);
        }
        Ok(self.pulled.as_ref().expect("just made"))
    }
}

impl Pulled {
    async fn make(daemon: &Daemon, scale: &Scale) -> anyhow::Result<Self> {
        let registry = Registry::start().await?;
        let reference = format!("{}/bench/pulled:1", registry.address);
        let folder = tempfile::tempdir()?;
        let context = fixture::layers(scale.image_mib, PULLED_LAYERS)?;
        let layout = folder.path().join("layout");
        let key = base::id::random_id();
        let oci = |attrs, target| Export { kind: "oci".into(), attrs, target };
        let named = attrs(&[("name", &reference)]);
        for export in [
            push(&reference),
            oci(attrs(&[("tar", "false")]), Target::Store(layout.clone())),
            oci(named, Target::File(folder.path().join("image.tar"))),
        ] {
            build(&daemon.client, context.path(), &key, vec![export]).await?;
        }
        let digest = client::layout_digest(&layout, "latest")?.context("the layout is empty")?;
        let mut size = 0;
        for entry in std::fs::read_dir(layout.join("blobs/sha256"))? {
            size += entry?.metadata()?.len();
        }
        Ok(Self { registry, reference, digest, size, folder })
    }
}

/// A tree of many files as a tar, compressed in two ways.
pub async fn export_tree(daemon: &Daemon, scale: &Scale) -> anyhow::Result<Times> {
    let folder = fixture::many_files(scale.tree_files)?;
    let mut times = Times::new();
    for (compression, label, peak) in [
        ("gzip", "export-tree: gzip", "export-tree: peak memory, gzip"),
        ("zstd", "export-tree: zstd", "export-tree: peak memory, zstd"),
    ] {
        // A tree of its own each time: a layer that has a blob is not compressed anew.
        let nonce = base::id::random_id();
        let mut graph = Graph::new();
        let local = graph.source(Source::local("files", &LocalOptions::default()), Meta::default());
        let mut actions = vec![FileAction::Copy(Copy {
            from: Some(local).into(),
            src: "/".into(),
            dest: "/".into(),
            dir_copy_contents: true,
            ..Copy::default()
        })];
        actions.extend(file(&nonce, "/nonce".into()));
        let tree = graph.file(None, actions, Meta::default());
        let request = |exports| -> anyhow::Result<BuildRequest> {
            let mut request = BuildRequest::new("");
            request.definition = Some(definition(&graph, tree)?);
            request.locals.insert("files".into(), folder.path().to_owned());
            request.shared_key = nonce.clone();
            request.exports = exports;
            Ok(request)
        };
        send(&daemon.client, request(Vec::new())?).await?;
        let export = Export {
            kind: "oci".into(),
            attrs: attrs(&[("compression", compression)]),
            target: Target::File("/dev/null".into()),
        };
        let request = request(vec![export])?;
        let watch = Watch::start(daemon.pid);
        let took = send(&daemon.client, request).await?;
        times.extend(with_peak(label, took, peak, watch));
    }
    Ok(times)
}

/// One file out of `base`, for which all of it has to be there.
fn one_file(graph: &mut Graph, base: Output) -> anyhow::Result<BuildRequest> {
    let copy = FileAction::Copy(Copy {
        from: Some(base).into(),
        src: "/l0/d0/f0".into(),
        dest: "/".into(),
        ..Copy::default()
    });
    let copied = graph.file(None, vec![copy], Meta::default());
    let mut request = BuildRequest::new("");
    request.definition = Some(definition(graph, copied)?);
    Ok(request)
}

/// Sends a tar to the image store; `None` if the daemon has no such service.
async fn load_tar(client: &Client, tar: &Path) -> anyhow::Result<Option<Duration>> {
    let mut tar = tokio::fs::File::open(tar).await?;
    let (sender, receiver) = tokio::sync::mpsc::channel(4);
    let began = Instant::now();
    let sending = tokio::spawn(async move {
        loop {
            let mut data = bytes::BytesMut::with_capacity(CHUNK);
            while data.len() < CHUNK
                && tokio::io::AsyncReadExt::read_buf(&mut tar, &mut data).await? > 0
            {}
            if data.is_empty() || sender.send(Chunk { data: data.freeze() }).await.is_err() {
                return Ok::<_, std::io::Error>(());
            }
        }
    });
    let chunks = tokio_stream::wrappers::ReceiverStream::new(receiver);
    let mut events = match client.images().load(chunks).await {
        Ok(answer) => answer.into_inner(),
        Err(status) if status.code() == tonic::Code::Unimplemented => return Ok(None),
        Err(status) => return Err(status.into()),
    };
    while events.message().await?.is_some() {}
    let took = began.elapsed();
    sending.await??;
    Ok(Some(took))
}

/// Removes a name from the image store.
async fn forget(client: &Client, name: &str) -> anyhow::Result<()> {
    let request = RemoveImageRequest { reference: name.to_owned(), force: true };
    client.images().remove(request).await?;
    Ok(())
}

/// Makes the daemon forget all that has no name. What a build held is free only a moment after its
/// client has the answer.
pub async fn prune(client: &Client) -> anyhow::Result<()> {
    let began = Instant::now();
    loop {
        let everything = PruneRequest { all: true, ..PruneRequest::default() };
        let mut freed = client.control().prune(everything).await?.into_inner();
        while freed.message().await?.is_some() {}
        let used = client.control().disk_usage(DiskUsageRequest::default()).await?.into_inner();
        let left: i64 = used.record.iter().map(|record| record.size).sum();
        if left < PRUNED || began.elapsed() > PRUNE_WITHIN {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn pushed_to(registry: &Registry) -> String {
    format!("{}/bench/pushed:1", registry.address)
}

fn push(name: &str) -> Export {
    // BuildKit by itself has no image store, and what is in one is not pruned.
    let attrs = attrs(&[("name", name), ("push", "true"), ("store", "false")]);
    Export { kind: "image".into(), attrs, target: Target::None }
}

fn with_peak(
    label: &'static str,
    took: Duration,
    peak_label: &'static str,
    watch: Option<Watch>,
) -> Times {
    let mut times: Times = vec![(label, took.into())];
    times.extend(watch.map(|watch| (peak_label, Value::Bytes(watch.peak()))));
    times
}
