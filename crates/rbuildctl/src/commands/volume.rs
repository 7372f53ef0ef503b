//! `volume`: named folders that outlive containers.

use std::{collections::BTreeMap, process::ExitCode};

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};
use client::Client;
use proto::rbuild::v1::{CreateVolumeRequest, ListVolumesRequest, RemoveVolumeRequest, Volume};
use serde_json::{Value, json};

use super::{
    docker_only::{DockerOnly, Flag, docker_only},
    filters::PruneFilters,
    refused,
};
use crate::{
    connection::ConnectionArgs,
    format::{Format, eval::sorted},
    table::Table,
    text,
};

/// Manage named volumes
#[derive(Subcommand, Debug)]
pub enum VolumeCommand {
    #[command(visible_alias = "list")]
    Ls(LsArgs),
    Create(CreateArgs),
    #[command(visible_alias = "remove")]
    Rm(RmArgs),
    Inspect(InspectArgs),
    Prune(PruneArgs),
}

/// List volumes
#[derive(Args, Debug)]
pub struct LsArgs {
    /// Print names only
    #[arg(long, short = 'q')]
    quiet: bool,
    /// table TEMPLATE, json, or a template such as '{{.Name}}'
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
    /// Only volumes with: name=PART, dangling=BOOL, driver=local, label=KEY[=VALUE]
    #[arg(long, short = 'f', value_name = "FILTER")]
    filter: Vec<String>,
    #[command(flatten)]
    docker_only: DockerOnly<LsOnly>,
}

/// Whether a volume is to be listed; alternatives of one key, as docker has them.
fn is_listed(volume: &Volume, filters: &[(String, String)]) -> bool {
    let holds = |key: &str, value: &str| match key {
        "name" => volume.name.contains(value),
        "driver" => value == "local",
        "label" => super::images::has_label(&volume.labels, value),
        _ => crate::csv::parse_bool(value) == Some(volume.used_by.is_empty()),
    };
    filters.iter().all(|(key, value)| match key.as_str() {
        "label" => holds(key, value),
        _ => filters.iter().any(|(other, value)| other == key && holds(key, value)),
    })
}

/// Keys and values of `--filter`.
fn filters(texts: &[String]) -> anyhow::Result<Vec<(String, String)>> {
    let parse = |text: &String| {
        let (key, value) = text
            .split_once('=')
            .with_context(|| format!("invalid filter '{text}': expected KEY=VALUE"))?;
        match key {
            "dangling" if crate::csv::parse_bool(value).is_none() => {
                bail!("invalid filter '{text}'")
            }
            "name" | "dangling" | "driver" | "label" => Ok((key.to_owned(), value.to_owned())),
            _ => bail!("invalid filter '{key}': use name, dangling, driver or label"),
        }
    };
    texts.iter().map(parse).collect()
}

docker_only! { LsOnly:
    Flag::switch("cluster", "swarm is not supported"),
}

docker_only! { CreateOnly:
    Flag::value("availability", "swarm is not supported"),
    Flag::value("group", "swarm is not supported"),
    Flag::value("limit-bytes", "swarm is not supported"),
    Flag::value("required-bytes", "swarm is not supported"),
    Flag::value("scope", "swarm is not supported"),
    Flag::value("secret", "swarm is not supported"),
    Flag::value("sharing", "swarm is not supported"),
    Flag::value("topology-preferred", "swarm is not supported"),
    Flag::value("topology-required", "swarm is not supported"),
    Flag::value("type", "swarm is not supported"),
    Flag::unless("driver", &["local"], "volumes are folders of the daemon's machine").short('d'),
    Flag::value("label", "volumes have no labels; give them a telling name"),
    Flag::value("opt", "mount it on the daemon's machine, and use run -v FOLDER:TARGET").short('o'),
}

/// Make a volume
#[derive(Args, Debug)]
pub struct CreateArgs {
    /// Its name; a random one if none is given
    name: Option<String>,
    #[command(flatten)]
    docker_only: DockerOnly<CreateOnly>,
}

/// Remove volumes and what is in them
#[derive(Args, Debug)]
pub struct RmArgs {
    /// Names
    #[arg(required = true)]
    names: Vec<String>,
    /// No error for volumes that are not there
    #[arg(long, short = 'f')]
    force: bool,
}

/// Show volumes in detail
#[derive(Args, Debug)]
pub struct InspectArgs {
    /// Names
    #[arg(required = true)]
    names: Vec<String>,
    /// A template such as '{{.Mountpoint}}'
    #[arg(long, short = 'f', value_name = "FORMAT")]
    format: Option<String>,
}

/// Remove volumes that no container uses
#[derive(Args, Debug)]
pub struct PruneArgs {
    /// Also volumes with a name of yours
    #[arg(long, short = 'a')]
    all: bool,
    /// Do not ask
    #[arg(long, short = 'f')]
    force: bool,
    /// Only volumes with: label=KEY[=VALUE], label!=KEY[=VALUE], all=BOOL
    #[arg(long, value_name = "FILTER")]
    filter: Vec<String>,
}

async fn list(client: &Client) -> anyhow::Result<Vec<Volume>> {
    let answer = client.volumes().list(ListVolumesRequest {}).await;
    Ok(answer.map_err(refused("failed to list volumes"))?.into_inner().volumes)
}

fn to_json(volume: &Volume) -> Value {
    json!({
        "CreatedAt": volume.created.as_ref().map(text::rfc3339),
        "Driver": "local",
        "Labels": volume.labels,
        "Mountpoint": volume.mountpoint,
        "Name": volume.name,
        "Options": null,
        "Scope": "local",
    })
}

/// The volume of that name as `inspect` shows it.
pub async fn find(client: &Client, name: &str) -> anyhow::Result<Option<Value>> {
    Ok(list(client).await?.iter().find(|volume| volume.name == name).map(to_json))
}

impl VolumeCommand {
    /// Runs it.
    pub async fn run(&self, connection: &ConnectionArgs) -> anyhow::Result<ExitCode> {
        let client = connection.connect().await?;
        match self {
            Self::Ls(args) => args.run(&client).await,
            Self::Create(args) => {
                args.docker_only.check()?;
                let name = args.name.clone().unwrap_or_default();
                let made = client.volumes().create(CreateVolumeRequest { name }).await;
                println!("{}", made.map_err(refused("failed to make a volume"))?.into_inner().name);
                Ok(ExitCode::SUCCESS)
            }
            Self::Rm(args) => args.run(&client).await,
            Self::Inspect(args) => args.run(&client).await,
            Self::Prune(args) => args.run(&client).await,
        }
    }
}

impl LsArgs {
    async fn run(&self, client: &Client) -> anyhow::Result<ExitCode> {
        let format = self.format.as_deref().filter(|format| *format != "table");
        let format = format.map(Format::parse).transpose()?;
        self.docker_only.check()?;
        let filters = filters(&self.filter)?;
        let mut volumes = list(client).await?;
        volumes.retain(|volume| is_listed(volume, &filters));
        if self.quiet {
            volumes.iter().for_each(|volume| println!("{}", volume.name));
            return Ok(ExitCode::SUCCESS);
        }
        if let Some(format) = format {
            let row = |volume: &Volume| {
                sorted([
                    ("Name", volume.name.clone().into()),
                    ("Driver", "local".into()),
                    ("Mountpoint", volume.mountpoint.clone().into()),
                    ("Scope", "local".into()),
                    ("Labels", super::images::labels_text(&volume.labels).into()),
                ])
            };
            let rows: Vec<(Value, &BTreeMap<String, String>)> =
                volumes.iter().map(|volume| (row(volume), &volume.labels)).collect();
            let header = [
                ("Name", "VOLUME NAME"),
                ("Driver", "DRIVER"),
                ("Mountpoint", "MOUNTPOINT"),
                ("Scope", "SCOPE"),
                ("Labels", "LABELS"),
            ];
            print!("{}", format.labelled_rows(&header, &rows)?);
            return Ok(ExitCode::SUCCESS);
        }
        let mut table = Table::new(["DRIVER", "VOLUME NAME"]);
        volumes.iter().for_each(|volume| table.row(["local".into(), volume.name.clone()]));
        print!("{}", table.text());
        Ok(ExitCode::SUCCESS)
    }
}

impl RmArgs {
    async fn run(&self, client: &Client) -> anyhow::Result<ExitCode> {
        let mut code = ExitCode::SUCCESS;
        for name in &self.names {
            let removed = client.volumes().remove(RemoveVolumeRequest { name: name.clone() }).await;
            match removed {
                Ok(_) => println!("{name}"),
                Err(status) if self.force && status.code() == tonic::Code::NotFound => {}
                Err(status) => {
                    eprintln!("error: {:#}", refused("failed to remove the volume")(status));
                    code = ExitCode::FAILURE;
                }
            }
        }
        Ok(code)
    }
}

impl InspectArgs {
    async fn run(&self, client: &Client) -> anyhow::Result<ExitCode> {
        let format = self.format.as_deref().map(Format::parse).transpose()?;
        let mut code = ExitCode::SUCCESS;
        let mut found = Vec::new();
        for name in &self.names {
            match find(client, name).await? {
                Some(volume) => found.push(volume),
                None => {
                    eprintln!("error: get {name}: no such volume");
                    code = ExitCode::FAILURE;
                }
            }
        }
        match format {
            Some(format) => {
                for volume in &found {
                    println!("{}", format.apply(volume)?);
                }
            }
            None => println!("{}", serde_json::to_string_pretty(&found)?),
        }
        Ok(code)
    }
}

impl PruneArgs {
    async fn run(&self, client: &Client) -> anyhow::Result<ExitCode> {
        let (every, rest): (Vec<_>, Vec<_>) =
            self.filter.iter().cloned().partition(|text| text.starts_with("all="));
        let filters = PruneFilters::parse(&rest)?;
        let every = every.iter().any(|text| crate::csv::parse_bool(&text[4..]) == Some(true));
        let all = self.all || every;
        let what = if all { "all local volumes" } else { "anonymous local volumes" };
        let text = format!("WARNING! This will remove {what} not used by at least one container.");
        if !self.force && !super::confirm(&text)? {
            return Ok(ExitCode::SUCCESS);
        }
        let gone = prune(client, all, &filters).await?;
        if !gone.is_empty() {
            println!("Deleted Volumes:\n{}\n", gone.join("\n"));
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Removes volumes that no container mounts, those with a name of the user's only with `all`;
/// their names.
pub async fn prune(
    client: &Client,
    all: bool,
    filters: &PruneFilters,
) -> anyhow::Result<Vec<String>> {
    let mut gone = Vec::new();
    for volume in list(client).await? {
        let anonymous =
            volume.name.len() == 64 && volume.name.bytes().all(|b| b.is_ascii_hexdigit());
        let at = volume.created.map_or((0, 0), |at| (at.seconds, at.nanos));
        let wanted = (anonymous || all) && filters.hold(at, &volume.labels);
        if !volume.used_by.is_empty() || !wanted {
            continue;
        }
        let request = RemoveVolumeRequest { name: volume.name.clone() };
        client.volumes().remove(request).await.map_err(refused("failed to remove a volume"))?;
        gone.push(volume.name);
    }
    Ok(gone)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_hold() {
        let volume = Volume { name: "data".into(), ..Volume::default() };
        let check = |texts: &[&str]| {
            let texts: Vec<String> = texts.iter().map(|text| (*text).to_owned()).collect();
            filters(&texts).map(|filters| is_listed(&volume, &filters)).ok()
        };
        assert_eq!(check(&[]), Some(true));
        assert_eq!(check(&["name=x", "name=at"]), Some(true));
        assert_eq!(check(&["dangling=1", "driver=local"]), Some(true));
        assert_eq!(check(&["dangling=false"]), Some(false));
        assert_eq!(check(&["label=a"]), Some(false));
        assert_eq!(check(&["dangling=x"]), None);
        assert_eq!(check(&["size=1"]), None);
    }
}
