//! `debug`: the daemon's workers, version and content; its builds are in `histories`.

use std::{io::Write as _, process::ExitCode};

use anyhow::{Context as _, bail};
use base::{Digest, Platform};
use clap::{Args, Subcommand};
use client::{Client, ClientError};
use llb::pb;
use proto::{
    containerd::services::content::v1::ReadContentRequest,
    control::{InfoRequest, ListWorkersRequest},
    moby::buildkit::v1::types::WorkerRecord,
};
use serde_json::{Value, json};

use crate::{
    commands::{
        dump::DumpLlbArgs,
        histories::{CtlArgs, HistoriesArgs, LogsArgs, MonitorArgs},
    },
    connection::ConnectionArgs,
    format::Format,
    table::{cells, tabbed},
    text,
};

/// What to look at.
#[derive(Subcommand)]
pub enum DebugCommand {
    Workers(WorkersArgs),
    Info(InfoArgs),
    DumpLlb(DumpLlbArgs),
    Histories(HistoriesArgs),
    Logs(LogsArgs),
    Monitor(MonitorArgs),
    Ctl(CtlArgs),
    Get(GetArgs),
    /// Print the daemon's tables
    #[command(hide = true)]
    DumpMetadata {
        #[arg(long)]
        root: Option<String>,
    },
}

impl DebugCommand {
    /// Runs the chosen one.
    pub async fn run(&self, connection: &ConnectionArgs) -> anyhow::Result<ExitCode> {
        match self {
            Self::Workers(args) => args.run(connection).await?,
            Self::Info(args) => return args.run(connection).await,
            Self::DumpLlb(args) => args.run()?,
            Self::Histories(args) => args.run(connection).await?,
            Self::Logs(args) => args.run(connection).await?,
            Self::Monitor(args) => args.run(connection).await?,
            Self::Ctl(args) => args.run(connection).await?,
            Self::Get(args) => args.run(connection).await?,
            Self::DumpMetadata { .. } => bail!(
                "debug dump-metadata is not supported: the tables are the daemon's own; look at \
                 records with du -v, at builds with debug histories, at consistency with verify"
            ),
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// List workers
#[derive(Args, Debug)]
pub struct WorkersArgs {
    /// Only workers that match, e.g. labels.a==b
    #[arg(long, short = 'f', value_name = "FILTER")]
    filter: Vec<String>,
    /// Labels and policies too
    #[arg(long, short = 'v')]
    verbose: bool,
    /// Print with a template, e.g. json
    #[arg(long, value_name = "TEMPLATE")]
    format: Option<String>,
}

impl WorkersArgs {
    async fn run(&self, connection: &ConnectionArgs) -> anyhow::Result<()> {
        let format = self.format.as_deref().map(Format::parse).transpose()?;
        let mut control = connection.connect().await?.control();
        let request = ListWorkersRequest { filter: self.filter.clone() };
        let workers = control.list_workers(request).await;
        let workers =
            workers.map_err(ClientError::rpc("failed to list workers"))?.into_inner().record;
        if let Some(format) = format {
            println!("{}", format.apply(&workers.iter().map(worker_json).collect())?);
        } else if self.verbose {
            workers.iter().for_each(|worker| print!("{}", verbose(worker)));
        } else {
            let mut lines = vec![cells(["ID", "PLATFORMS"])];
            lines.extend(workers.iter().map(|worker| vec![worker.id.clone(), platforms(worker)]));
            print!("{}", tabbed(&lines));
        }
        Ok(())
    }
}

fn platform(wire: &pb::Platform) -> Platform {
    Platform {
        os: wire.os.clone(),
        architecture: wire.architecture.clone(),
        variant: wire.variant.clone(),
        os_version: wire.os_version.clone(),
        os_features: wire.os_features.clone(),
    }
}

fn platforms(worker: &WorkerRecord) -> String {
    let all = worker.platforms.iter().map(|wire| platform(wire).normalize().format());
    all.collect::<Vec<_>>().join(",")
}

fn verbose(worker: &WorkerRecord) -> String {
    let mut lines =
        vec![vec!["ID:".into(), worker.id.clone()], vec!["Platforms:".into(), platforms(worker)]];
    if let Some(version) = &worker.buildkit_version {
        let text = format!("{} {} {}", version.package, version.version, version.revision);
        lines.push(vec!["BuildKit:".into(), text]);
        if !version.dockerfile_version.is_empty() {
            lines.push(vec!["Dockerfile:".into(), version.dockerfile_version.clone()]);
        }
    }
    lines.push(cells(["Labels:"]));
    let mut put = |key: &str, value: String| lines.push(vec![String::new(), key.to_owned(), value]);
    for (key, value) in &worker.labels {
        put(&format!("{key}:"), value.clone());
    }
    for (number, rule) in worker.gc_policy.iter().enumerate() {
        lines.push(vec![format!("GC Policy rule#{number}:")]);
        let mut put =
            |key: &str, value: String| lines.push(vec![String::new(), key.to_owned(), value]);
        put("All:", rule.all.to_string());
        if !rule.filters.is_empty() {
            put("Filters:", rule.filters.join(" "));
        }
        if rule.keep_duration > 0 {
            put("Keep duration:", text::go_duration(rule.keep_duration));
        }
        let sizes = [
            ("Reserved space:", rule.reserved_space),
            ("Minimum free space:", rule.min_free_space),
            ("Maximum used space:", rule.max_used_space),
        ];
        for (key, size) in sizes.into_iter().filter(|(_, size)| *size > 0) {
            put(key, text::plain_size(size));
        }
    }
    tabbed(&lines) + "\n"
}

fn worker_json(worker: &WorkerRecord) -> Value {
    let version = worker.buildkit_version.clone().unwrap_or_default();
    let platforms = worker.platforms.iter().map(|wire| {
        let mut object = json!({"architecture": wire.architecture, "os": wire.os});
        if !wire.variant.is_empty() {
            object["variant"] = wire.variant.as_str().into();
        }
        object
    });
    let policies = worker.gc_policy.iter().map(|rule| {
        json!({
            "all": rule.all,
            "filter": if rule.filters.is_empty() { Value::Null } else { json!(rule.filters) },
            "keepDuration": rule.keep_duration,
            "reservedSpace": rule.reserved_space,
            "maxUsedSpace": rule.max_used_space,
            "minFreeSpace": rule.min_free_space,
        })
    });
    json!({
        "id": worker.id,
        "labels": worker.labels,
        "platforms": platforms.collect::<Value>(),
        "gcPolicy": policies.collect::<Value>(),
        "buildkitVersion": {
            "package": version.package,
            "version": version.version,
            "revision": version.revision,
            "dockerfileVersion": version.dockerfile_version,
        },
        "cdiDevices": null,
    })
}

/// Show the daemon's version
#[derive(Args, Debug)]
pub struct InfoArgs {
    /// Print with a template, e.g. json
    #[arg(long, value_name = "TEMPLATE")]
    format: Option<String>,
}

impl InfoArgs {
    /// Prints them.
    pub async fn run(&self, connection: &ConnectionArgs) -> anyhow::Result<ExitCode> {
        let format = self.format.as_deref().map(Format::parse).transpose()?;
        let mut control = connection.connect().await?.control();
        let info = control.info(InfoRequest {}).await;
        let info = info.map_err(ClientError::rpc("failed to call info"))?.into_inner();
        let version = info.buildkit_version.unwrap_or_default();
        match format {
            Some(format) => println!(
                "{}",
                format.apply(&json!({"buildkitVersion": {
                    "package": version.package,
                    "version": version.version,
                    "revision": version.revision,
                    "dockerfileVersion": version.dockerfile_version,
                }}))?
            ),
            None => {
                println!(
                    "BuildKit:   {} {} {}",
                    version.package, version.version, version.revision
                );
                if !version.dockerfile_version.is_empty() {
                    println!("Dockerfile: {}", version.dockerfile_version);
                }
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Print a blob of the daemon's content store
#[derive(Args, Debug)]
pub struct GetArgs {
    /// Its digest, such as sha256:…
    digest: String,
}

impl GetArgs {
    async fn run(&self, connection: &ConnectionArgs) -> anyhow::Result<()> {
        let digest: Digest = self.digest.parse().with_context(|| {
            format!("invalid digest {}: expected sha256: and 64 hex digits", self.digest)
        })?;
        print_blob(&connection.connect().await?, &digest.to_string()).await
    }
}

/// Copies a blob of the daemon's content store to standard output.
pub async fn print_blob(client: &Client, digest: &str) -> anyhow::Result<()> {
    let fail = ClientError::rpc("failed to read the blob");
    let request = ReadContentRequest { digest: digest.to_owned(), offset: 0, size: 0 };
    let mut data = client.content().read(request).await.map_err(&fail)?.into_inner();
    let mut out = std::io::stdout().lock();
    while let Some(piece) = data.message().await.map_err(&fail)? {
        out.write_all(&piece.data)?;
    }
    Ok(out.flush()?)
}
