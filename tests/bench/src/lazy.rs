//! A build that finds all its steps in a registry's cache, on a base image in that registry.

use client::{BuildRequest, CacheEntry, Client, Export, Target};
use llb::build::{Graph, Meta, Output, Source};

use crate::{
    fixture,
    graphs::{definition, step},
    images::prune,
    registry::Registry,
    workloads::{Scale, Times, attrs, build, send},
};

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

    prune(client).await?;

    let mut cached = request(&graph, last)?;
    cached.cache_imports = entry(&[]);
    let took = send(client, cached).await?;
    Ok(vec![("lazy: 10 steps cached in a registry, 64 MiB base", took.into())])
}

fn request(graph: &Graph, output: Output) -> anyhow::Result<BuildRequest> {
    let mut request = BuildRequest::new("");
    request.definition = Some(definition(graph, output)?);
    Ok(request)
}
