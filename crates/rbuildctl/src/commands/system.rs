//! `system` and `builder`: docker's names for looks at the whole, and for tidying up.

use std::process::ExitCode;

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};
use client::ClientError;
use proto::{
    control::{DiskUsageRequest, PruneRequest},
    rbuild::v1::{
        ListContainersRequest, ListImagesRequest, ListVolumesRequest, StorageUsageRequest,
    },
};

use super::{containers, du, filters::PruneFilters, images, prune, refused, volume};
use serde_json::Value;

use crate::{
    connection::ConnectionArgs,
    format::{Format, eval::sorted},
    table::Table,
    text,
};

/// Look at the whole daemon, and tidy it up
#[derive(Subcommand)]
pub enum SystemCommand {
    Df(DfArgs),
    Info(super::info::InfoArgs),
    Prune(SystemPruneArgs),
    #[command(external_subcommand)]
    Unknown(Vec<String>),
}

impl SystemCommand {
    /// Runs the chosen one.
    pub async fn run(&self, connection: &ConnectionArgs) -> anyhow::Result<ExitCode> {
        match self {
            Self::Df(args) => args.run(connection).await,
            Self::Info(args) => args.run(connection).await,
            Self::Prune(args) => args.run(connection).await,
            Self::Unknown(words) => super::unknown::run(words),
        }
    }
}

/// Show what takes how much of the disk
#[derive(Args, Debug)]
pub struct DfArgs {
    /// Every record of the build cache too
    #[arg(long, short = 'v')]
    verbose: bool,
    /// table TEMPLATE, json, or a template such as '{{.Type}}: {{.Size}}'
    #[arg(long, value_name = "FORMAT", conflicts_with = "verbose")]
    format: Option<String>,
}

const DF_HEADER: [(&str, &str); 5] = [
    ("Type", "TYPE"),
    ("TotalCount", "TOTAL"),
    ("Active", "ACTIVE"),
    ("Size", "SIZE"),
    ("Reclaimable", "RECLAIMABLE"),
];

impl DfArgs {
    async fn run(&self, connection: &ConnectionArgs) -> anyhow::Result<ExitCode> {
        let format = self.format.as_deref().filter(|format| *format != "table");
        let format = format.map(Format::parse).transpose()?;
        let client = connection.connect().await?;
        let fail = refused("failed to look at images and containers");
        let images = client.images().list(ListImagesRequest { all: true }).await;
        let images = images.map_err(&fail)?.into_inner().images;
        let containers = client.containers().list(ListContainersRequest { all: true }).await;
        let containers = containers.map_err(&fail)?.into_inner().containers;
        let volumes = client.volumes().list(ListVolumesRequest {}).await;
        let volumes = volumes.map_err(&fail)?.into_inner().volumes;
        let request = DiskUsageRequest { filter: Vec::new(), age_limit: 0 };
        let records = client.control().disk_usage(request).await;
        let records =
            records.map_err(ClientError::rpc("failed to get disk usage"))?.into_inner().record;
        let usage = client.storage().usage(StorageUsageRequest {}).await.map_err(&fail)?;
        let usage = usage.into_inner();

        // One image may have many names.
        let mut ids: Vec<_> =
            images.iter().map(|it| (images::id_of(it), it.size, it.containers > 0)).collect();
        ids.sort_unstable();
        ids.dedup();
        let sum = |of: &[(&str, i64, bool)]| of.iter().map(|(_, size, _)| size).sum::<i64>();
        let idle: Vec<_> = ids.iter().filter(|(_, _, used)| !used).copied().collect();
        let running = containers.iter().filter(|it| it.state == "running").count();
        let mounted = volumes.iter().filter(|it| !it.used_by.is_empty()).count();
        let active = records.iter().filter(|record| record.in_use).count();
        let free: i64 = records.iter().filter(|it| !it.in_use).map(|it| it.size.max(0)).sum();
        let part = |free: i64, all: i64| match all {
            0 => text::docker_size(free),
            all => format!("{} ({}%)", text::docker_size(free), free * 100 / all),
        };
        let mut rows: Vec<[String; 5]> = Vec::new();
        rows.push([
            "Images".into(),
            ids.len().to_string(),
            (ids.len() - idle.len()).to_string(),
            text::docker_size(sum(&ids)),
            part(sum(&idle), sum(&ids)),
        ]);
        // What containers write is in the build cache's sum: a layer like any other.
        let unknown = || "-".to_owned();
        rows.push([
            "Containers".into(),
            containers.len().to_string(),
            running.to_string(),
            unknown(),
            unknown(),
        ]);
        rows.push([
            "Local Volumes".into(),
            volumes.len().to_string(),
            mounted.to_string(),
            text::docker_size(usage.volumes),
            unknown(),
        ]);
        rows.push([
            "Build Cache".into(),
            records.len().to_string(),
            active.to_string(),
            text::docker_size(usage.records),
            text::docker_size(free),
        ]);
        if let Some(format) = format {
            let rows: Vec<Value> = rows
                .into_iter()
                .map(|row| {
                    let keys = DF_HEADER.into_iter().map(|(key, _)| key);
                    sorted(keys.zip(row.into_iter().map(Value::from)))
                })
                .collect();
            print!("{}", format.rows(&DF_HEADER, &rows)?);
            return Ok(ExitCode::SUCCESS);
        }
        let mut table = Table::new(DF_HEADER.map(|(_, title)| title));
        rows.into_iter().for_each(|row| table.row(row));
        print!("{}", table.text());
        if self.verbose {
            println!();
            records.iter().for_each(|record| print!("{}", du::verbose(record)));
            print!("{}", du::rest(&usage));
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Remove containers that ended, images without a name and unused cached results
#[derive(Args, Debug)]
pub struct SystemPruneArgs {
    /// Also images with a name that no container uses, and all cached results
    #[arg(long, short = 'a')]
    all: bool,
    /// Also volumes without a name that no container uses
    #[arg(long)]
    volumes: bool,
    /// Do not ask
    #[arg(long, short = 'f')]
    force: bool,
    /// Only what has: until=24h, label=KEY[=VALUE], label!=KEY[=VALUE]
    #[arg(long, value_name = "FILTER")]
    filter: Vec<String>,
}

impl SystemPruneArgs {
    async fn run(&self, connection: &ConnectionArgs) -> anyhow::Result<ExitCode> {
        let filters = PruneFilters::parse(&self.filter)?;
        if self.volumes && filters.age().is_some() {
            bail!("the \"until\" filter is not supported with \"--volumes\"");
        }
        if !self.force {
            let mut lines = vec!["all stopped containers"];
            if self.volumes {
                lines.push("all anonymous volumes not used by at least one container");
            }
            lines.push(match self.all {
                true => "all images without at least one container associated to them",
                false => "all dangling images",
            });
            lines.push(if self.all { "all build cache" } else { "unused build cache" });
            let list: String = lines.iter().map(|line| format!("\n  - {line}")).collect();
            if !super::confirm(&format!("WARNING! This will remove:{list}\n"))? {
                return Ok(ExitCode::SUCCESS);
            }
        }
        let client = connection.connect().await?;
        let fail = refused("failed to look at the disk");
        let taken = async || -> anyhow::Result<i64> {
            let usage = client.storage().usage(StorageUsageRequest {}).await.map_err(&fail)?;
            let it = usage.into_inner();
            Ok(it.records + it.blobs + it.volumes + it.other)
        };
        let before = taken().await?;
        print_all("Deleted Containers:", containers::prune(&client, &filters).await?);
        if self.volumes {
            print_all("Deleted Volumes:", volume::prune(&client, false, &filters).await?);
        }
        print_all("Deleted Images:", images::prune(&client, self.all, &filters).await?.0);
        // Cached results have no labels: where those are asked for, none is meant.
        if !filters.has_labels() {
            let age = filters.age().unwrap_or_default().as_nanos();
            let keep_duration = i64::try_from(age).unwrap_or(i64::MAX);
            let request = PruneRequest { all: self.all, keep_duration, ..PruneRequest::default() };
            let fail = ClientError::rpc("failed to prune");
            let mut records = client.control().prune(request).await.map_err(&fail)?.into_inner();
            let mut gone = Vec::new();
            while let Some(record) = records.message().await.map_err(&fail)? {
                gone.push(record.id);
            }
            print_all("Deleted build cache objects:", gone);
        }
        let freed = before - taken().await?;
        println!("Total reclaimed space: {}", text::docker_size(freed.max(0)));
        Ok(ExitCode::SUCCESS)
    }
}

fn print_all(title: &str, lines: Vec<String>) {
    if !lines.is_empty() {
        println!("{title}\n{}\n", lines.join("\n"));
    }
}

/// Manage builds' cached results
#[derive(Subcommand)]
pub enum BuilderCommand {
    Build(Box<crate::build::BuildArgs>),
    Prune(BuilderPruneArgs),
}

impl BuilderCommand {
    /// Runs the chosen one.
    pub async fn run(self, connection: &ConnectionArgs, debug: bool) -> anyhow::Result<ExitCode> {
        match self {
            Self::Build(args) => crate::build::run(*args, connection, debug).await,
            Self::Prune(args) => args.run(connection).await,
        }
    }
}

/// Remove cached results that nothing uses
#[derive(Args, Debug)]
pub struct BuilderPruneArgs {
    /// Also frontends' images and what the image store shares
    #[arg(long, short = 'a')]
    all: bool,
    /// Do not ask
    #[arg(long, short = 'f')]
    force: bool,
    /// Only records of a kind, or not used for some time: until=24h, type=source.local
    #[arg(long, value_name = "FILTER")]
    filter: Vec<String>,
    /// Most that may stay, e.g. 10GB
    #[arg(long, visible_alias = "max-used-space", value_name = "SIZE")]
    keep_storage: Option<String>,
}

impl BuilderPruneArgs {
    async fn run(&self, connection: &ConnectionArgs) -> anyhow::Result<ExitCode> {
        let what = if self.all { "all build cache" } else { "all dangling build cache" };
        if !self.force && !super::confirm(&format!("WARNING! This will remove {what}."))? {
            return Ok(ExitCode::SUCCESS);
        }
        prune::records(connection, self.request()?, &prune::Show::Table).await
    }

    fn request(&self) -> anyhow::Result<PruneRequest> {
        let mut request = PruneRequest { all: self.all, ..PruneRequest::default() };
        if let Some(size) = &self.keep_storage {
            request.max_used_space =
                text::parse_size(size).with_context(|| format!("invalid --keep-storage {size}"))?;
        }
        for filter in &self.filter {
            match filter.split_once('=') {
                Some(("until" | "unused-for", age)) => {
                    let age = base::time::parse_go_duration(age)
                        .with_context(|| format!("invalid filter '{filter}': expected e.g. 24h"))?;
                    request.keep_duration = i64::try_from(age.as_nanos()).unwrap_or(i64::MAX);
                }
                // The daemon's language has two of them; docker's people write one.
                Some((key, value)) if !value.starts_with('=') && !key.ends_with(['~', '!']) => {
                    request.filter.push(format!("{key}=={value}"));
                }
                _ => request.filter.push(filter.clone()),
            }
        }
        Ok(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dockers_filters_become_the_daemons() {
        let args = BuilderPruneArgs {
            all: false,
            force: true,
            filter: ["until=2h", "type=source.local", "id~=x", "inuse==true"]
                .map(Into::into)
                .into(),
            keep_storage: Some("1GB".into()),
        };
        let request = args.request().unwrap();
        assert_eq!(request.keep_duration, 7_200_000_000_000);
        assert_eq!(request.filter, ["type==source.local", "id~=x", "inuse==true"]);
        assert!(request.max_used_space >= 1_000_000_000);
    }
}
