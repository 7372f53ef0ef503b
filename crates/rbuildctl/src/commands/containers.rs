//! `ps`, `logs`, `stop`, `kill`, `rm`: containers the daemon runs.

use std::{process::ExitCode, time::SystemTime};

use clap::Args;
use proto::rbuild::v1::{
    Container, ListContainersRequest, Port, RemoveContainerRequest, StopContainerRequest,
};
use serde_json::{Value, json};

use super::{images, refused, run};
use crate::{connection::ConnectionArgs, format::Format, table::Table, text};

/// List containers
#[derive(Args, Debug)]
pub struct PsArgs {
    /// Also containers that ended
    #[arg(long, short = 'a')]
    all: bool,
    /// Print ids only
    #[arg(long, short = 'q')]
    quiet: bool,
    /// Do not shorten ids and commands
    #[arg(long)]
    no_trunc: bool,
    /// Print each container with a template, e.g. json or '{{.Names}}'
    #[arg(long, value_name = "TEMPLATE")]
    format: Option<String>,
}

impl PsArgs {
    /// Prints the table.
    pub async fn run(&self, connection: &ConnectionArgs) -> anyhow::Result<ExitCode> {
        let format = self.format.as_deref().map(Format::parse).transpose()?;
        let mut service = connection.connect().await?.containers();
        let answer = service.list(ListContainersRequest { all: self.all }).await;
        let mut all = answer.map_err(refused("failed to list containers"))?.into_inner().containers;
        let created =
            |container: &Container| container.created.map_or((0, 0), |at| (at.seconds, at.nanos));
        all.sort_by_key(|container| std::cmp::Reverse(created(container)));
        let id = |container: &Container| {
            if self.no_trunc { container.id.clone() } else { images::short(&container.id) }
        };
        if let Some(format) = format {
            for container in &all {
                println!("{}", format.apply(&container_json(container, id(container)))?);
            }
            return Ok(ExitCode::SUCCESS);
        }
        if self.quiet {
            all.iter().for_each(|container| println!("{}", id(container)));
            return Ok(ExitCode::SUCCESS);
        }
        let header = ["CONTAINER ID", "IMAGE", "COMMAND", "CREATED", "STATUS", "PORTS", "NAMES"];
        let mut table = Table::new(header);
        for container in &all {
            table.row([
                id(container),
                images::familiar(&container.image),
                command(container, self.no_trunc),
                container.created.as_ref().map(text::ago).unwrap_or_default(),
                status(container),
                ports(&container.ports),
                container.name.clone(),
            ]);
        }
        print!("{}", table.text());
        Ok(ExitCode::SUCCESS)
    }
}

/// The command in quotes, cut to twenty characters unless `whole`.
fn command(container: &Container, whole: bool) -> String {
    let text = container.command.join(" ");
    if whole || text.chars().count() <= 20 {
        return format!("\"{text}\"");
    }
    format!("\"{}…\"", text.chars().take(19).collect::<String>())
}

fn status(container: &Container) -> String {
    match (&container.exit, &container.created) {
        (Some(exit), _) => {
            let when = container.finished.as_ref().map(text::ago).unwrap_or_default();
            format!("Exited ({}) {when}", exit.code)
        }
        (None, Some(at)) => {
            let up = SystemTime::now().duration_since(text::instant(at)).unwrap_or_default();
            format!("Up {}", text::age(up))
        }
        (None, None) => "Up".into(),
    }
}

/// `0.0.0.0:8080->80/tcp`, comma-separated.
pub fn ports(ports: &[Port]) -> String {
    let one = |port: &Port| {
        let protocol = if port.protocol.is_empty() { "tcp" } else { &port.protocol };
        let host = if port.host_ip.is_empty() { "0.0.0.0" } else { &port.host_ip };
        let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
        format!("{host}:{}->{}/{protocol}", port.host_port, port.container_port)
    };
    ports.iter().map(one).collect::<Vec<_>>().join(", ")
}

fn container_json(container: &Container, id: String) -> Value {
    json!({
        "ID": id,
        "Names": container.name,
        "Image": images::familiar(&container.image),
        "Command": command(container, true),
        "CreatedAt": container.created.as_ref().map(text::rfc3339),
        "RunningFor": container.created.as_ref().map(text::ago),
        "Status": status(container),
        "State": if container.exit.is_some() { "exited" } else { "running" },
        "Ports": ports(&container.ports),
    })
}

/// Show what a container wrote
#[derive(Args, Debug)]
pub struct LogsArgs {
    /// Id or name
    container: String,
    /// Go on until the container ends
    #[arg(long, short = 'f')]
    follow: bool,
}

impl LogsArgs {
    /// Copies the output.
    pub async fn run(&self, connection: &ConnectionArgs) -> anyhow::Result<ExitCode> {
        let service = connection.connect().await?.containers();
        let attach =
            run::Attach { container: self.container.clone(), logs: true, follow: self.follow };
        attach.copy_output(service).await?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Ask containers to end
#[derive(Args, Debug)]
pub struct StopArgs {
    /// Ids or names
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
    /// Seconds until they are killed
    #[arg(long = "time", short = 't', value_name = "SECONDS")]
    time: Option<u32>,
    /// Signal to send in place of the image's
    #[arg(long, short = 's', value_name = "SIGNAL", default_value = "", hide_default_value = true)]
    signal: String,
}

impl StopArgs {
    /// Stops one after the other; goes on after a failure.
    pub async fn run(&self, connection: &ConnectionArgs) -> anyhow::Result<ExitCode> {
        stop(connection, &self.containers, self.time, &self.signal).await
    }
}

/// Send a signal to containers
#[derive(Args, Debug)]
pub struct KillArgs {
    /// Ids or names
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
    /// The signal
    #[arg(long, short = 's', value_name = "SIGNAL", default_value = "KILL")]
    signal: String,
}

impl KillArgs {
    /// Ends containers at once with the default signal; any other is only sent.
    pub async fn run(&self, connection: &ConnectionArgs) -> anyhow::Result<ExitCode> {
        let signal = self.signal.trim_start_matches("SIG");
        if signal == "KILL" || signal == "9" {
            return stop(connection, &self.containers, None, "KILL").await;
        }
        let service = connection.connect().await?.containers();
        for container in &self.containers {
            run::send_signal(service.clone(), container, signal).await?;
            println!("{container}");
        }
        Ok(ExitCode::SUCCESS)
    }
}

async fn stop(
    connection: &ConnectionArgs,
    containers: &[String],
    timeout_s: Option<u32>,
    signal: &str,
) -> anyhow::Result<ExitCode> {
    let mut service = connection.connect().await?.containers();
    let mut code = ExitCode::SUCCESS;
    for container in containers {
        let signal = signal.trim_start_matches("SIG").to_owned();
        let request = StopContainerRequest { container: container.clone(), timeout_s, signal };
        match service.stop(request).await.map_err(refused("failed to stop the container")) {
            Ok(_) => println!("{container}"),
            Err(error) => {
                eprintln!("error: {error:#}");
                code = ExitCode::FAILURE;
            }
        }
    }
    Ok(code)
}

/// Forget containers
#[derive(Args, Debug)]
pub struct RmArgs {
    /// Ids or names
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
    /// Kill those that run
    #[arg(long, short = 'f')]
    force: bool,
}

impl RmArgs {
    /// Removes one after the other; goes on after a failure.
    pub async fn run(&self, connection: &ConnectionArgs) -> anyhow::Result<ExitCode> {
        let mut service = connection.connect().await?.containers();
        let mut code = ExitCode::SUCCESS;
        for container in &self.containers {
            let request =
                RemoveContainerRequest { container: container.clone(), force: self.force };
            match service.remove(request).await.map_err(refused("failed to remove the container")) {
                Ok(_) => println!("{container}"),
                Err(error) => {
                    eprintln!("error: {error:#}");
                    code = ExitCode::FAILURE;
                }
            }
        }
        Ok(code)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn port_texts() {
        let port = |ip: &str| Port {
            host_ip: ip.into(),
            host_port: 8080,
            container_port: 80,
            protocol: String::new(),
        };
        assert_eq!(ports(&[port(""), port("::1")]), "0.0.0.0:8080->80/tcp, [::1]:8080->80/tcp");
    }

    #[test]
    fn long_commands_are_cut() {
        let container = Container {
            command: vec!["/bin/sh".into(), "-c".into(), "sleep 1000".into()],
            ..Container::default()
        };
        assert_eq!(command(&container, false), "\"/bin/sh -c sleep 10…\"");
        assert_eq!(command(&container, true), "\"/bin/sh -c sleep 1000\"");
    }
}
