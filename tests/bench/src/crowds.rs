//! Many clients at once, each with a connection and a session of its own.

use std::{
    fmt::Write as _,
    path::Path,
    time::{Duration, Instant},
};

use client::{Client, ConnectOptions};

use crate::{
    fixture,
    workloads::{Scale, Times, build},
};

/// Builds each folder with a client of its own, all at once; the time until the last is done.
async fn all(client: &Client, folders: &[&Path]) -> anyhow::Result<Duration> {
    let mut clients = Vec::new();
    for _ in folders {
        clients.push(Client::connect(&ConnectOptions::new(client.address().clone())).await?);
    }
    let began = Instant::now();
    let builds = folders.iter().zip(clients).map(|(folder, client)| {
        let folder = folder.to_path_buf();
        tokio::spawn(async move { build(&client, &folder, "bench", Vec::new()).await })
    });
    for build in builds.collect::<Vec<_>>() {
        build.await??;
    }
    Ok(began.elapsed())
}

/// A step, wanted by one, and another one, wanted by twenty.
pub async fn dedupe(client: &Client, scale: &Scale) -> anyhow::Result<Times> {
    let base = fixture::tools(&scale.busybox, "")?;
    build(client, base.path(), "bench", Vec::new()).await?;
    let step = || {
        let step = format!("RUN sleep 1 # {}\n", base::id::random_id());
        fixture::tools(&scale.busybox, &step)
    };
    let alone = all(client, &[step()?.path()]).await?;
    let together = all(client, &[step()?.path(); 20]).await?;
    Ok(vec![
        ("dedupe: one client, one step of 1 s", alone.into()),
        ("dedupe: 20 clients, one step of 1 s", together.into()),
    ])
}

/// Different steps, wanted by forty.
pub async fn clients(client: &Client, scale: &Scale) -> anyhow::Result<Times> {
    let base = fixture::tools(&scale.busybox, "")?;
    build(client, base.path(), "bench", Vec::new()).await?;
    let mut folders = Vec::new();
    for _ in 0..40 {
        let nonce = base::id::random_id();
        let steps = (0..5).fold(String::new(), |mut text, step| {
            let _ = writeln!(text, "RUN true # {nonce} {step}");
            text
        });
        folders.push(fixture::tools(&scale.busybox, &steps)?);
    }
    let paths: Vec<&Path> = folders.iter().map(|folder| folder.path()).collect();
    let took = all(client, &paths).await?;
    Ok(vec![("clients: 40 clients, 5 steps each", took.into())])
}
