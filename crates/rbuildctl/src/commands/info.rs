//! `info` and `version`: what this program and the daemon are.
//!
//! Fields have docker's names where docker has them, so that scripts that ask for the server's
//! version or the number of containers find them.

use std::process::ExitCode;

use clap::Args;
use client::{Client, ClientError};
use proto::{
    control::{InfoRequest, ListWorkersRequest},
    moby::buildkit::v1::types::BuildkitVersion,
    rbuild::v1::{ListContainersRequest, ListImagesRequest},
};
use serde_json::{Value, json};
use tonic::{Code, Status};

use super::{images, refused};
use crate::{connection::ConnectionArgs, format::Format};

async fn daemons_version(client: &Client) -> anyhow::Result<BuildkitVersion> {
    let info = client.control().info(InfoRequest {}).await;
    let info = info.map_err(ClientError::rpc("failed to call info"))?.into_inner();
    Ok(info.buildkit_version.unwrap_or_default())
}

/// Operating system and architecture of the daemon's machine.
async fn machine(client: &Client) -> anyhow::Result<(String, String)> {
    let workers = client.control().list_workers(ListWorkersRequest { filter: Vec::new() }).await;
    let workers = workers.map_err(ClientError::rpc("failed to list workers"))?.into_inner().record;
    let first = workers.first().and_then(|worker| worker.platforms.first());
    Ok(first.map(|it| (it.os.clone(), it.architecture.clone())).unwrap_or_default())
}

/// The machine's own word for an architecture, as docker's `info` has it.
fn uname(architecture: &str) -> &str {
    match architecture {
        "amd64" => "x86_64",
        "arm64" => "aarch64",
        other => other,
    }
}

/// Show this program's version and the daemon's
#[derive(Args, Debug)]
pub struct VersionArgs {
    /// json or a template such as '{{.Server.Version}}'
    #[arg(long, short = 'f', value_name = "FORMAT")]
    format: Option<String>,
}

impl VersionArgs {
    /// Prints both.
    pub async fn run(&self, connection: &ConnectionArgs) -> anyhow::Result<ExitCode> {
        let format = self.format.as_deref().map(Format::parse).transpose()?;
        let own = env!("CARGO_PKG_VERSION");
        if format.is_none() {
            // This much is known without a daemon.
            println!("Client:\n Version:    {own}");
        }
        let client = connection.connect().await?;
        let version = daemons_version(&client).await?;
        let Some(format) = format else {
            println!("Server:\n Package:    {}\n Version:    {}", version.package, version.version);
            if !version.revision.is_empty() {
                println!(" Revision:   {}", version.revision);
            }
            if !version.dockerfile_version.is_empty() {
                println!(" Dockerfile: {}", version.dockerfile_version);
            }
            return Ok(ExitCode::SUCCESS);
        };
        let (os, architecture) = machine(&client).await?;
        let value = json!({
            "Client": {"Version": own, "Os": "linux", "Arch": client_architecture()},
            "Server": {
                "Version": version.version,
                "Package": version.package,
                "GitCommit": version.revision,
                "DockerfileVersion": version.dockerfile_version,
                "Os": os,
                "Arch": architecture,
            },
        });
        println!("{}", format.apply(&value)?);
        Ok(ExitCode::SUCCESS)
    }
}

/// As images name it.
fn client_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Show what the daemon is and has
#[derive(Args, Debug)]
pub struct InfoArgs {
    /// json or a template such as '{{.ServerVersion}}'
    #[arg(long, short = 'f', value_name = "FORMAT")]
    format: Option<String>,
}

/// What a daemon answers, nothing if it is none of ours.
fn or_nothing<T: Default>(answer: Result<tonic::Response<T>, Status>) -> anyhow::Result<Option<T>> {
    match answer {
        Ok(answer) => Ok(Some(answer.into_inner())),
        Err(status) if status.code() == Code::Unimplemented => Ok(None),
        Err(status) => Err(refused("failed to look at images and containers")(status)),
    }
}

impl InfoArgs {
    /// Prints it.
    pub async fn run(&self, connection: &ConnectionArgs) -> anyhow::Result<ExitCode> {
        let format = self.format.as_deref().map(Format::parse).transpose()?;
        let client = connection.connect().await?;
        let version = daemons_version(&client).await?;
        let (os, architecture) = machine(&client).await?;
        let containers = client.containers().list(ListContainersRequest { all: true }).await;
        let containers = or_nothing(containers)?.map(|answer| answer.containers);
        let images = client.images().list(ListImagesRequest { all: true }).await;
        let images = or_nothing(images)?.map(|answer| {
            let mut ids: Vec<_> =
                answer.images.iter().map(|it| images::id_of(it).to_owned()).collect();
            ids.sort_unstable();
            ids.dedup();
            ids.len()
        });
        let running =
            containers.as_ref().map(|all| all.iter().filter(|it| it.state == "running").count());
        let all = containers.as_ref().map(Vec::len);
        let stopped = all.zip(running).map(|(all, running)| all - running);
        let value = json!({
            "Containers": all,
            "ContainersRunning": running,
            "ContainersPaused": 0,
            "ContainersStopped": stopped,
            "Images": images,
            "ServerVersion": version.version,
            "OSType": os,
            "Architecture": uname(&architecture),
            "BuildkitVersion": {
                "package": version.package,
                "version": version.version,
                "revision": version.revision,
                "dockerfileVersion": version.dockerfile_version,
            },
        });
        match format {
            Some(format) => println!("{}", format.apply(&value)?),
            None => print!("{}", shown(&value)),
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// The lines of docker's `info` that mean something here.
fn shown(value: &Value) -> String {
    let mut lines = Vec::new();
    let mut put = |name: &str, value: &Value| match value {
        Value::Null => {}
        Value::String(text) => lines.push(format!("{name}: {text}\n")),
        other => lines.push(format!("{name}: {other}\n")),
    };
    put("Containers", &value["Containers"]);
    put(" Running", &value["ContainersRunning"]);
    put(" Stopped", &value["ContainersStopped"]);
    put("Images", &value["Images"]);
    put("Server Version", &value["ServerVersion"]);
    let version = &value["BuildkitVersion"];
    let word = |key: &str| version[key].as_str().unwrap_or_default();
    let package = format!("{} {} {}", word("package"), word("version"), word("revision"));
    put("BuildKit", &package.trim_end().into());
    if !word("dockerfileVersion").is_empty() {
        put("Dockerfile", &version["dockerfileVersion"]);
    }
    put("OSType", &value["OSType"]);
    put("Architecture", &value["Architecture"]);
    lines.concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_known_is_left_out() {
        let mut value = json!({
            "Containers": null, "ContainersRunning": null, "ContainersStopped": null,
            "Images": null, "ServerVersion": "v1", "OSType": "linux", "Architecture": "x86_64",
            "BuildkitVersion": {"package": "p", "version": "v1", "revision": ""},
        });
        let rest = "Server Version: v1\nBuildKit: p v1\nOSType: linux\nArchitecture: x86_64\n";
        assert_eq!(shown(&value), rest);
        value["Images"] = 3.into();
        assert_eq!(shown(&value), format!("Images: 3\n{rest}"));
    }
}
