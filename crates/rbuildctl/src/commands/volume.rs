//! `volume`: named folders that outlive containers.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use client::Client;
use proto::rbuild::v1::{CreateVolumeRequest, ListVolumesRequest, RemoveVolumeRequest, Volume};
use serde_json::{Value, json};

use super::refused;
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
}

/// Make a volume
#[derive(Args, Debug)]
pub struct CreateArgs {
    /// Its name; a random one if none is given
    name: Option<String>,
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
        let volumes = list(client).await?;
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
                    ("Labels", "".into()),
                ])
            };
            let rows: Vec<Value> = volumes.iter().map(row).collect();
            let header = [
                ("Name", "VOLUME NAME"),
                ("Driver", "DRIVER"),
                ("Mountpoint", "MOUNTPOINT"),
                ("Scope", "SCOPE"),
                ("Labels", "LABELS"),
            ];
            print!("{}", format.rows(&header, &rows)?);
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
        let what = if self.all { "all local volumes" } else { "anonymous local volumes" };
        let text = format!("WARNING! This will remove {what} not used by at least one container.");
        if !self.force && !super::confirm(&text)? {
            return Ok(ExitCode::SUCCESS);
        }
        prune(client, self.all).await?.iter().for_each(|name| println!("{name}"));
        Ok(ExitCode::SUCCESS)
    }
}

/// Removes volumes that no container mounts, those with a name of the user's only with `all`;
/// their names.
pub async fn prune(client: &Client, all: bool) -> anyhow::Result<Vec<String>> {
    let mut gone = Vec::new();
    for volume in list(client).await? {
        let anonymous =
            volume.name.len() == 64 && volume.name.bytes().all(|b| b.is_ascii_hexdigit());
        if !volume.used_by.is_empty() || !(anonymous || all) {
            continue;
        }
        let request = RemoveVolumeRequest { name: volume.name.clone() };
        client.volumes().remove(request).await.map_err(refused("failed to remove a volume"))?;
        gone.push(volume.name);
    }
    Ok(gone)
}
