//! Time from starting a daemon to its first answer.

use std::{
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use client::{Address, Client, ConnectOptions};
use proto::control::ListWorkersRequest;
use tokio::process::Command;

const GIVE_UP: Duration = Duration::from_secs(60);
const STOP_WITHIN: Duration = Duration::from_secs(10);

/// Starts `command` over an empty state folder and waits for an answered `ListWorkers`.
pub async fn measure(command: &str) -> anyhow::Result<Duration> {
    let folder = tempfile::tempdir()?;
    let socket = folder.path().join("d.sock");
    let root = folder.path().join("root");
    let address = Address::Unix(socket.clone());
    let words: Vec<String> = command
        .split_whitespace()
        .map(|word| {
            let word = word.replace("{addr}", &address.to_string());
            word.replace("{root}", &root.display().to_string())
        })
        .collect();
    let (program, args) = words.split_first().context("--daemon is empty")?;
    let began = Instant::now();
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("starting {program}"))?;
    let options = ConnectOptions::new(address);
    let took = loop {
        if let Ok(client) = Client::connect(&options).await
            && client.control().list_workers(ListWorkersRequest::default()).await.is_ok()
        {
            break began.elapsed();
        }
        if let Some(status) = child.try_wait()? {
            bail!("{program} ended with {status}");
        }
        if began.elapsed() > GIVE_UP {
            bail!("{program} did not answer within {GIVE_UP:?}");
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    };
    let pid = child.id().and_then(|id| rustix::process::Pid::from_raw(id.cast_signed()));
    if let Some(pid) = pid {
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
    }
    if tokio::time::timeout(STOP_WITHIN, child.wait()).await.is_err() {
        child.kill().await?;
    }
    Ok(took)
}
