//! `ps` and what is done to containers by name: `stop`, `restart`, `kill`, `rm`, `wait`, `port`,
//! `rename`, `logs`.

use std::{collections::BTreeMap, process::ExitCode, time::SystemTime};

use anyhow::{Context as _, bail};
use clap::Args;
use client::Client;
use proto::rbuild::v1::{
    Container, InspectContainerRequest, ListContainersRequest, LogsRequest, Port,
    RemoveContainerRequest, RenameContainerRequest, SignalContainerRequest, StartContainerRequest,
    StopContainerRequest, WaitContainerRequest,
};
use serde_json::Value;
use tonic::Status;

use super::{
    attach,
    docker_only::{DockerOnly, Flag, docker_only},
    filters::PruneFilters,
    images, refused,
};
use crate::{
    connection::ConnectionArgs,
    format::{Format, eval::sorted},
    table::Table,
    text,
};

/// List containers
#[derive(Args, Debug)]
pub struct PsArgs {
    /// Also containers that do not run
    #[arg(long, short = 'a')]
    all: bool,
    /// Print ids only
    #[arg(long, short = 'q')]
    quiet: bool,
    /// Do not shorten ids and commands
    #[arg(long)]
    no_trunc: bool,
    /// Only containers with: id=…, name=…, status=…, ancestor=…, label=KEY[=VALUE], exited=CODE,
    /// before=…, since=…, volume=…, publish=PORT, expose=PORT, health=…, network=…
    #[arg(long, short = 'f', value_name = "FILTER")]
    filter: Vec<String>,
    /// table TEMPLATE, json, or a template such as '{{.Names}}'
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
    /// The newest containers, whatever their state
    #[arg(long, short = 'n', value_name = "NUMBER")]
    last: Option<usize>,
    /// The newest container, whatever its state
    #[arg(long, short = 'l')]
    latest: bool,
    #[command(flatten)]
    docker_only: DockerOnly<PsOnly>,
}

docker_only! { PsOnly:
    Flag::switch("size", "use exec CONTAINER du -x /, or du -v for all layers").short('s'),
}

fn created(container: &Container) -> (i64, i32) {
    container.created.map_or((0, 0), |at| (at.seconds, at.nanos))
}

/// Filters by key; values of one key are alternatives, keys have to hold at once.
struct Filters(BTreeMap<String, Vec<String>>);

impl Filters {
    fn parse(texts: &[String]) -> anyhow::Result<Self> {
        const KNOWN: [&str; 13] = [
            "id", "name", "status", "ancestor", "label", "exited", "before", "since", "volume",
            "publish", "expose", "health", "network",
        ];
        let mut all: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for text in texts {
            let (key, value) = text
                .split_once('=')
                .with_context(|| format!("invalid filter '{text}': expected KEY=VALUE"))?;
            if !KNOWN.contains(&key) {
                bail!("invalid filter '{key}': use {}", KNOWN.join(", "));
            }
            let states =
                ["created", "running", "exited", "paused", "restarting", "dead", "removing"];
            if key == "status" && !states.contains(&value) {
                bail!("invalid filter 'status={value}'");
            }
            if key == "health" && !["starting", "healthy", "unhealthy", "none"].contains(&value) {
                bail!("invalid filter 'health={value}'");
            }
            all.entry(key.to_owned()).or_default().push(value.to_owned());
        }
        Ok(Self(all))
    }

    /// Whether containers that do not run are looked at.
    fn wants_all(&self) -> bool {
        self.0.contains_key("status") || self.0.contains_key("exited")
    }

    fn holds(&self, container: &Container, all: &[Container]) -> bool {
        let other = |name: &str| {
            let found = all.iter().find(|it| it.name == name || it.id.starts_with(name));
            found.map(created)
        };
        let one = |key: &str, value: &String| match key {
            "id" => container.id.starts_with(value),
            // An expression, of which people mostly write parts of names, and anchors.
            "name" => match regex::Regex::new(value) {
                Ok(wanted) => {
                    wanted.is_match(&container.name)
                        || wanted.is_match(&format!("/{}", container.name))
                }
                Err(_) => container.name == *value,
            },
            "status" => container.state == *value,
            "ancestor" => {
                let hex = value.strip_prefix("sha256:").unwrap_or(value);
                let shown = images::familiar(&container.image);
                let name = oci::Reference::parse(value).map(|it| it.with_default_tag().familiar());
                let own = oci::Reference::parse(&shown).map(|it| it.with_default_tag().familiar());
                shown == *value
                    || name.is_ok() && name.ok() == own.ok()
                    || hex.len() >= 4
                        && container.image_id.trim_start_matches("sha256:").starts_with(hex)
            }
            "exited" => {
                let code = container.exit.as_ref().map(|exit| exit.code.to_string());
                code.as_ref() == Some(value)
            }
            "before" => other(value).is_some_and(|at| created(container) < at),
            "since" => other(value).is_some_and(|at| created(container) > at),
            "volume" => container.mounts.iter().any(|it| it.name == *value || it.target == *value),
            "health" => {
                let health = container.health.as_ref().map_or("none", |it| it.status.as_str());
                health == value
            }
            "network" => network(container) == value,
            "expose" => {
                let wanted =
                    if value.contains('/') { value.clone() } else { format!("{value}/tcp") };
                container.exposed.contains(&wanted)
            }
            _ => {
                let (port, protocol) = value.split_once('/').unwrap_or((value, "tcp"));
                let same = |it: &Port| {
                    it.container_port.to_string() == port && protocol_of(it) == protocol
                };
                container.ports.iter().any(same)
            }
        };
        self.0.iter().all(|(key, values)| match key.as_str() {
            "label" => values.iter().all(|text| images::has_label(&container.labels, text)),
            key => values.iter().any(|value| one(key, value)),
        })
    }
}

const HEADER: [(&str, &str); 14] = [
    ("ID", "CONTAINER ID"),
    ("Names", "NAMES"),
    ("Image", "IMAGE"),
    ("Command", "COMMAND"),
    ("CreatedAt", "CREATED AT"),
    ("RunningFor", "CREATED"),
    ("Status", "STATUS"),
    ("State", "STATE"),
    ("Ports", "PORTS"),
    ("Labels", "LABELS"),
    ("Mounts", "MOUNTS"),
    ("Networks", "NETWORKS"),
    ("LocalVolumes", "LOCAL VOLUMES"),
    ("Size", "SIZE"),
];

impl PsArgs {
    /// Prints the table.
    pub async fn run(&self, connection: &ConnectionArgs) -> anyhow::Result<ExitCode> {
        self.docker_only.check()?;
        let format = self.format.as_deref().filter(|format| *format != "table");
        let format = format.map(Format::parse).transpose()?;
        let filters = Filters::parse(&self.filter)?;
        let last = if self.latest { Some(1) } else { self.last };
        let mut service = connection.connect().await?.containers();
        let answer = service.list(ListContainersRequest { all: true }).await;
        let mut all = answer.map_err(refused("failed to list containers"))?.into_inner().containers;
        all.sort_by_key(|container| std::cmp::Reverse(created(container)));
        let any_state = self.all || last.is_some() || filters.wants_all();
        let mut shown: Vec<Container> = all
            .iter()
            .filter(|container| any_state || container.state == "running")
            .filter(|container| filters.holds(container, &all))
            .cloned()
            .collect();
        shown.truncate(last.unwrap_or(usize::MAX));
        let id = |container: &Container| {
            if self.no_trunc { container.id.clone() } else { images::short(&container.id) }
        };
        if let Some(format) = format {
            let row = |container| {
                (container_json(container, id(container), self.no_trunc), &container.labels)
            };
            let rows: Vec<(Value, &BTreeMap<_, _>)> = shown.iter().map(row).collect();
            print!("{}", format.labelled_rows(&HEADER, &rows)?);
            return Ok(ExitCode::SUCCESS);
        }
        if self.quiet {
            shown.iter().for_each(|container| println!("{}", id(container)));
            return Ok(ExitCode::SUCCESS);
        }
        let header = ["CONTAINER ID", "IMAGE", "COMMAND", "CREATED", "STATUS", "PORTS", "NAMES"];
        let mut table = Table::new(header);
        for container in &shown {
            table.row([
                id(container),
                images::familiar(&container.image),
                command(container, self.no_trunc),
                container.created.as_ref().map(text::ago).unwrap_or_default(),
                status(container),
                shown_ports(container),
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
    match (&container.exit, &container.started) {
        (Some(exit), _) => {
            let when = container.finished.as_ref().map(text::ago).unwrap_or_default();
            format!("Exited ({}) {when}", exit.code)
        }
        (None, Some(at)) => {
            let up = SystemTime::now().duration_since(text::instant(at)).unwrap_or_default();
            let health = match container.health.as_ref().map(|health| health.status.as_str()) {
                None => String::new(),
                Some("starting") => " (health: starting)".to_owned(),
                Some(status) => format!(" ({status})"),
            };
            format!("Up {}{health}", text::age(up))
        }
        (None, None) => "Created".into(),
    }
}

/// `0.0.0.0:8080->80/tcp`, comma-separated.
pub fn ports(ports: &[Port]) -> String {
    let one =
        |port: &Port| format!("{}->{}/{}", address(port), port.container_port, protocol_of(port));
    ports.iter().map(one).collect::<Vec<_>>().join(", ")
}

fn protocol_of(port: &Port) -> &str {
    if port.protocol.is_empty() { "tcp" } else { &port.protocol }
}

/// Ports that are published, and while it runs those that only the container has.
fn shown_ports(container: &Container) -> String {
    let published = |text: &&String| {
        let own = |it: &Port| format!("{}/{}", it.container_port, protocol_of(it)) == **text;
        container.ports.iter().any(own)
    };
    let running = container.state == "running" && network(container) == "bridge";
    let rest = container.exposed.iter().filter(|text| running && !published(text)).cloned();
    let first = Some(ports(&container.ports)).filter(|text| !text.is_empty());
    first.into_iter().chain(rest).collect::<Vec<_>>().join(", ")
}

fn network(container: &Container) -> &str {
    let asked = container.request.as_ref().map(|request| request.network.as_str());
    asked.filter(|name| !name.is_empty()).unwrap_or("bridge")
}

fn address(port: &Port) -> String {
    let host = if port.host_ip.is_empty() { "0.0.0.0" } else { &port.host_ip };
    let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
    format!("{host}:{}", port.host_port)
}

fn container_json(container: &Container, id: String, whole: bool) -> Value {
    let mounts: Vec<&str> = container
        .mounts
        .iter()
        .filter(|mount| mount.kind != "tmpfs")
        .map(|mount| if mount.name.is_empty() { mount.source.as_str() } else { &mount.name })
        .collect();
    let volumes = container.mounts.iter().filter(|mount| mount.kind == "volume").count();
    let at = container.created.as_ref();
    sorted([
        ("ID", id.into()),
        ("Names", container.name.clone().into()),
        ("Image", images::familiar(&container.image).into()),
        ("Command", command(container, whole).into()),
        ("CreatedAt", at.map(text::docker_time).into()),
        ("RunningFor", at.map(text::ago).into()),
        ("Status", status(container).into()),
        ("State", container.state.clone().into()),
        ("Ports", shown_ports(container).into()),
        ("Labels", images::labels_text(&container.labels).into()),
        ("Mounts", mounts.join(",").into()),
        ("LocalVolumes", volumes.to_string().into()),
        ("Networks", network(container).into()),
        ("Size", "0B".into()),
    ])
}

/// Show what a container wrote
#[derive(Args, Debug)]
pub struct LogsArgs {
    /// Id or name
    container: String,
    /// Go on until the container ends
    #[arg(long, short = 'f')]
    follow: bool,
    /// Only the last lines
    #[arg(long, short = 'n', visible_alias = "lines", value_name = "LINES", default_value = "all")]
    tail: String,
    /// Only what was written since a time or for so long: 2026-01-02T15:04:05, 1767366245 or 10m
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Only what was written until a time
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
    /// Begin each line with its time
    #[arg(long, short = 't')]
    timestamps: bool,
    /// Accepted for scripts: there are no details
    #[arg(long, hide = true)]
    details: bool,
}

/// A point in time as docker's flags take it.
pub fn point(text: &str) -> anyhow::Result<prost_types::Timestamp> {
    if let Some(ago) = base::time::parse_go_duration(text) {
        return Ok(prost_types::Timestamp::from(SystemTime::now() - ago));
    }
    if let Ok(seconds) = text.parse::<f64>() {
        let nanos = (seconds * 1e9) as i64;
        return Ok(base::time::from_unix_nanos(nanos).into());
    }
    // Docker leaves out what it can: the zone, the time of day, the seconds.
    let full = match text.len() {
        10 => format!("{text}T00:00:00Z"),
        16 => format!("{text}:00Z"),
        _ if text.ends_with('Z') || text.rfind(['+', '-']).is_some_and(|at| at > 10) => {
            text.to_owned()
        }
        _ => format!("{text}Z"),
    };
    let at = base::time::parse_rfc3339(&full);
    Ok(at.with_context(|| format!("invalid value for a time: {text:?}"))?.into())
}

impl LogsArgs {
    /// Copies the output.
    pub async fn run(&self, connection: &ConnectionArgs) -> anyhow::Result<ExitCode> {
        let tail = match self.tail.as_str() {
            "all" | "-1" => None,
            lines => {
                Some(lines.parse().with_context(|| format!("invalid number of lines: {lines}"))?)
            }
        };
        let request = LogsRequest {
            container: self.container.clone(),
            follow: self.follow,
            tail,
            since: self.since.as_deref().map(point).transpose()?,
            until: self.until.as_deref().map(point).transpose()?,
            timestamps: self.timestamps,
        };
        let mut service = connection.connect().await?.containers();
        let answer = service.logs(request).await;
        let output = answer.map_err(refused("failed to read the logs"))?.into_inner();
        attach::output(output, attach::Streams::default()).await?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Does something to each container and prints its name; goes on after a failure.
async fn each(
    containers: &[String],
    what: &'static str,
    act: impl AsyncFnMut(&str) -> Result<(), Status>,
) -> ExitCode {
    each_but(containers, what, None, act).await
}

/// As [`each`]; errors of one kind are said and do not count.
async fn each_but(
    containers: &[String],
    what: &'static str,
    forgiven: Option<tonic::Code>,
    mut act: impl AsyncFnMut(&str) -> Result<(), Status>,
) -> ExitCode {
    let mut code = ExitCode::SUCCESS;
    for container in containers {
        match act(container).await {
            Ok(()) => println!("{container}"),
            Err(status) => {
                if forgiven != Some(status.code()) {
                    code = ExitCode::FAILURE;
                }
                eprintln!("error: {:#}", refused(what)(status));
            }
        }
    }
    code
}

/// Ask containers to end
#[derive(Args, Debug)]
pub struct StopArgs {
    /// Ids or names
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
    /// Seconds until they are killed, also --timeout; -1 is never
    #[arg(long = "time", short = 't', value_name = "SECONDS", allow_negative_numbers = true)]
    time: Option<i64>,
    /// Signal to send in place of the image's
    #[arg(long, short = 's', value_name = "SIGNAL", default_value = "", hide_default_value = true)]
    signal: String,
}

impl StopArgs {
    /// Docker calls it `--timeout`, which here is also the connection's.
    fn timeout_s(&self, connection: &ConnectionArgs) -> Option<u32> {
        let asked = self.time.or_else(|| connection.timeout.map(u64::cast_signed));
        asked.map(|seconds| u32::try_from(seconds).unwrap_or(u32::MAX))
    }

    /// Stops one after the other.
    pub async fn run(&self, connection: &ConnectionArgs) -> anyhow::Result<ExitCode> {
        let mut service = connection.connect().await?.containers();
        let what = "failed to stop the container";
        Ok(each(&self.containers, what, async |container| {
            let request = StopContainerRequest {
                container: container.to_owned(),
                timeout_s: self.timeout_s(connection),
                signal: self.signal.clone(),
            };
            service.stop(request).await.map(drop)
        })
        .await)
    }

    /// Stops and starts one after the other.
    pub async fn restart(&self, connection: &ConnectionArgs) -> anyhow::Result<ExitCode> {
        let mut service = connection.connect().await?.containers();
        let what = "failed to restart the container";
        Ok(each(&self.containers, what, async |container| {
            let container = container.to_owned();
            let request = StopContainerRequest {
                container: container.clone(),
                timeout_s: self.timeout_s(connection),
                signal: self.signal.clone(),
            };
            service.stop(request).await?;
            service.start(StartContainerRequest { container }).await.map(drop)
        })
        .await)
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
    /// Signals one after the other.
    pub async fn run(&self, connection: &ConnectionArgs) -> anyhow::Result<ExitCode> {
        let mut service = connection.connect().await?.containers();
        let what = "failed to signal the container";
        Ok(each(&self.containers, what, async |container| {
            let (container, signal) = (container.to_owned(), self.signal.clone());
            service.signal(SignalContainerRequest { container, signal }).await.map(drop)
        })
        .await)
    }
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
    /// Also its volumes that have no name
    #[arg(long, short = 'v')]
    volumes: bool,
    #[command(flatten)]
    docker_only: DockerOnly<RmOnly>,
}

docker_only! { RmOnly:
    Flag::switch("link", "there are no links").short('l'),
}

impl RmArgs {
    /// Removes one after the other.
    pub async fn run(&self, connection: &ConnectionArgs) -> anyhow::Result<ExitCode> {
        self.docker_only.check()?;
        let mut service = connection.connect().await?.containers();
        let what = "failed to remove the container";
        let forgiven = self.force.then_some(tonic::Code::NotFound);
        Ok(each_but(&self.containers, what, forgiven, async |container| {
            let request = RemoveContainerRequest {
                container: container.to_owned(),
                force: self.force,
                volumes: self.volumes,
            };
            service.remove(request).await.map(drop)
        })
        .await)
    }
}

/// Wait for containers to end, and print their exit codes
#[derive(Args, Debug)]
pub struct WaitArgs {
    /// Ids or names
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

impl WaitArgs {
    /// Waits for one after the other.
    pub async fn run(&self, connection: &ConnectionArgs) -> anyhow::Result<ExitCode> {
        let mut service = connection.connect().await?.containers();
        let mut code = ExitCode::SUCCESS;
        for container in &self.containers {
            let request = WaitContainerRequest { container: container.clone() };
            match service.wait(request).await {
                Ok(exit) => println!("{}", exit.into_inner().code),
                Err(status) => {
                    eprintln!("error: {:#}", refused("failed to wait for the container")(status));
                    code = ExitCode::FAILURE;
                }
            }
        }
        Ok(code)
    }
}

/// Show where a container's ports are published
#[derive(Args, Debug)]
pub struct PortArgs {
    /// Id or name
    container: String,
    /// Only this port: PORT[/tcp|/udp]
    port: Option<String>,
}

impl PortArgs {
    /// Prints the addresses.
    pub async fn run(&self, connection: &ConnectionArgs) -> anyhow::Result<ExitCode> {
        let mut service = connection.connect().await?.containers();
        let request = InspectContainerRequest { container: self.container.clone() };
        let answer = service.inspect(request).await;
        let container = answer.map_err(refused("failed to read the ports"))?.into_inner();
        let Some(wanted) = &self.port else {
            for port in &container.ports {
                println!("{}/{} -> {}", port.container_port, protocol_of(port), address(port));
            }
            return Ok(ExitCode::SUCCESS);
        };
        let (number, protocol) = wanted.split_once('/').unwrap_or((wanted, "tcp"));
        let found = container
            .ports
            .iter()
            .filter(|it| it.container_port.to_string() == number && protocol_of(it) == protocol);
        let found: Vec<String> = found.map(address).collect();
        if found.is_empty() {
            let shown = if wanted.contains('/') { wanted.clone() } else { format!("{wanted}/tcp") };
            bail!("no public port '{shown}' published for {}", self.container);
        }
        found.iter().for_each(|address| println!("{address}"));
        Ok(ExitCode::SUCCESS)
    }
}

/// Give a container another name
#[derive(Args, Debug)]
pub struct RenameArgs {
    /// Id or name
    container: String,
    /// The new name
    name: String,
}

impl RenameArgs {
    /// Renames it.
    pub async fn run(&self, connection: &ConnectionArgs) -> anyhow::Result<ExitCode> {
        let mut service = connection.connect().await?.containers();
        let request =
            RenameContainerRequest { container: self.container.clone(), name: self.name.clone() };
        service.rename(request).await.map_err(refused("failed to rename the container"))?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Forget all containers that do not run
#[derive(Args, Debug)]
pub struct ContainerPruneArgs {
    /// Do not ask
    #[arg(long, short = 'f')]
    force: bool,
    /// Only containers with: until=24h, label=KEY[=VALUE], label!=KEY[=VALUE]
    #[arg(long, value_name = "FILTER")]
    filter: Vec<String>,
}

impl ContainerPruneArgs {
    /// Removes them.
    pub async fn run(&self, connection: &ConnectionArgs) -> anyhow::Result<ExitCode> {
        let filters = PruneFilters::parse(&self.filter)?;
        if !self.force && !super::confirm("WARNING! This will remove all stopped containers.")? {
            return Ok(ExitCode::SUCCESS);
        }
        let client = connection.connect().await?;
        let gone = prune(&client, &filters).await?;
        if !gone.is_empty() {
            println!("Deleted Containers:\n{}\n", gone.join("\n"));
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Forgets all containers that do not run; their ids.
pub async fn prune(client: &Client, filters: &PruneFilters) -> anyhow::Result<Vec<String>> {
    let mut service = client.containers();
    let fail = refused("failed to remove containers");
    let answer = service.list(ListContainersRequest { all: true }).await.map_err(&fail)?;
    let mut gone = Vec::new();
    for container in answer.into_inner().containers {
        if container.state == "running" || !filters.hold(created(&container), &container.labels) {
            continue;
        }
        let request =
            RemoveContainerRequest { container: container.id.clone(), ..Default::default() };
        service.remove(request).await.map_err(&fail)?;
        gone.push(container.id);
    }
    Ok(gone)
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

    #[test]
    fn filters_and_times() {
        let container = Container {
            id: "abcd".into(),
            name: "web".into(),
            image: "app".into(),
            state: "running".into(),
            ..Container::default()
        };
        let holds = |texts: &[&str]| {
            let texts: Vec<String> = texts.iter().map(|text| (*text).to_owned()).collect();
            Filters::parse(&texts).map(|filters| filters.holds(&container, &[]))
        };
        assert!(holds(&["name=we", "status=running", "ancestor=app:latest"]).unwrap());
        assert!(holds(&["name=^web$", "id=ab"]).unwrap());
        assert!(holds(&["name=^/web$"]).unwrap() && holds(&["name=^(db|web)$"]).unwrap());
        assert!(holds(&["name=x", "name=web"]).unwrap());
        assert!(!holds(&["name=^eb"]).unwrap());
        assert!(holds(&["health=none", "network=bridge"]).unwrap());
        assert!(holds(&["health=good"]).is_err());
        assert!(holds(&["colour=red"]).is_err());
        assert_eq!(point("1970-01-01T00:00:10").unwrap().seconds, 10);
        assert_eq!(point("10.5").unwrap().nanos, 500_000_000);
        assert!(point("yesterday").is_err());
    }
}
