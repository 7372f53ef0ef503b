//! A build that finds all its steps in a registry's cache, on a base image in that registry.

use std::{
    collections::BTreeMap,
    net::TcpListener,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::Context as _;
use client::{BuildRequest, CacheEntry, Client, Export, Target};
use llb::build::{Graph, Meta, Output, Source};
use proto::control::PruneRequest;

use crate::{
    fixture,
    graphs::{definition, step},
    workloads::{Scale, Times, build, send},
};

/// A `docker-registry` of our own.
struct Registry {
    address: String,
    process: Child,
    _folder: tempfile::TempDir,
}

impl Registry {
    async fn start() -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let address = format!("127.0.0.1:{port}");
        let config = folder.path().join("config.yml");
        let blobs = folder.path().join("blobs");
        let text = format!(
            "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: {address}\n",
            blobs.display()
        );
        std::fs::write(&config, text)?;
        let process = Command::new("docker-registry")
            .arg("serve")
            .arg(&config)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("starting docker-registry (Debian package docker-registry)")?;
        let registry = Self { address, process, _folder: folder };
        for _ in 0..200 {
            if std::net::TcpStream::connect(&registry.address).is_ok() {
                return Ok(registry);
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        anyhow::bail!("docker-registry does not answer")
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        _ = self.process.kill();
        _ = self.process.wait();
    }
}

/// Pushes a base of some size, builds on it into a registry's cache, forgets everything, and
/// builds again.
pub async fn lazy(client: &Client, scale: &Scale) -> anyhow::Result<Times> {
    let registry = Registry::start().await?;
    let image = format!("{}/base:1", registry.address);
    let folder = fixture::tools(&scale.busybox, "RUN dd if=/dev/urandom of=/big bs=1M count=64\n")?;
    let push = Export {
        kind: "image".into(),
        attrs: attrs(&[("name", &image), ("push", "true")]),
        target: Target::None,
    };
    build(client, folder.path(), "bench", vec![push]).await?;

    let mut graph = Graph::new();
    let mut last = graph.source(Source::image(&image), Meta::default());
    for number in 0..10 {
        last = step(&mut graph, last, &format!("echo {image} {number} > /f{number}"));
    }
    let cache = format!("{}/cache:1", registry.address);
    let entry = |more: &[(&str, &str)]| {
        let mut all = attrs(&[("ref", &cache)]);
        all.extend(attrs(more));
        vec![CacheEntry { kind: "registry".into(), attrs: all }]
    };
    let mut filled = request(&graph, last)?;
    filled.cache_exports = entry(&[("mode", "max")]);
    send(client, filled).await?;

    let everything = PruneRequest { all: true, ..PruneRequest::default() };
    let mut freed = client.control().prune(everything).await?.into_inner();
    while freed.message().await?.is_some() {}

    let mut cached = request(&graph, last)?;
    cached.cache_imports = entry(&[]);
    let took = send(client, cached).await?;
    Ok(vec![("lazy: 10 steps cached in a registry, 64 MiB base", took)])
}

fn request(graph: &Graph, output: Output) -> anyhow::Result<BuildRequest> {
    let mut request = BuildRequest::new("");
    request.definition = Some(definition(graph, output)?);
    Ok(request)
}

fn attrs(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}
