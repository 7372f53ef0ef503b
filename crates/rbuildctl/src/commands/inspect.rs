//! `inspect` and `history`: images and containers in detail, shaped as docker shapes them.

use std::process::ExitCode;

use anyhow::{Context as _, bail};
use clap::{Args, ValueEnum};
use client::Client;
use proto::rbuild::v1::{
    Container, InspectContainerRequest, InspectImageRequest, InspectImageResponse,
};
use serde_json::{Map, Value, json};

use super::{images, refused};
use crate::{
    connection::ConnectionArgs,
    format::{Format, eval::sorted},
    table::Table,
    text,
};

/// What an argument names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    Image,
    Container,
    Volume,
}

/// Show images and containers in detail
#[derive(Args, Debug)]
pub struct InspectArgs {
    /// Names or ids
    #[arg(required = true, value_name = "NAME|ID")]
    names: Vec<String>,
    /// json or a template such as '{{json .Config}}'
    #[arg(long, short = 'f', value_name = "FORMAT")]
    format: Option<String>,
    /// Only objects of this kind
    #[arg(long = "type", value_name = "KIND")]
    kind: Option<Kind>,
    /// Platform of a multi-platform image
    #[arg(long, value_name = "PLATFORM")]
    platform: Option<String>,
    /// Accepted for scripts
    #[arg(long, short = 's', hide = true)]
    size: bool,
}

impl InspectArgs {
    /// Prints what is found; goes on after a failure.
    pub async fn run(&self, connection: &ConnectionArgs) -> anyhow::Result<ExitCode> {
        self.run_as(connection, self.kind).await
    }

    /// As `image inspect`.
    pub async fn run_image(&self, connection: &ConnectionArgs) -> anyhow::Result<ExitCode> {
        self.run_as(connection, Some(Kind::Image)).await
    }

    /// As `container inspect`.
    pub async fn run_container(&self, connection: &ConnectionArgs) -> anyhow::Result<ExitCode> {
        self.run_as(connection, Some(Kind::Container)).await
    }

    async fn run_as(
        &self,
        connection: &ConnectionArgs,
        kind: Option<Kind>,
    ) -> anyhow::Result<ExitCode> {
        let format = self.format.as_deref().map(Format::parse).transpose()?;
        let client = connection.connect().await?;
        let mut found = Vec::new();
        let mut code = ExitCode::SUCCESS;
        for name in &self.names {
            match self.one(&client, name, kind).await {
                Ok(value) => found.push(value),
                Err(error) => {
                    eprintln!("error: {error:#}");
                    code = ExitCode::FAILURE;
                }
            }
        }
        match format {
            Some(format) => {
                for value in &found {
                    println!("{}", format.apply(value)?);
                }
            }
            None => {
                let mut text = Vec::new();
                let formatter = serde_json::ser::PrettyFormatter::with_indent(b"    ");
                let mut serializer = serde_json::Serializer::with_formatter(&mut text, formatter);
                serde::Serialize::serialize(&found, &mut serializer)?;
                println!("{}", String::from_utf8_lossy(&text));
            }
        }
        Ok(code)
    }

    async fn one(&self, client: &Client, name: &str, kind: Option<Kind>) -> anyhow::Result<Value> {
        if matches!(kind, None | Some(Kind::Container)) {
            let request = InspectContainerRequest { container: name.to_owned() };
            match client.containers().inspect(request).await {
                Ok(answer) => return Ok(container_json(&answer.into_inner())),
                Err(status) if kind.is_none() && status.code() == tonic::Code::NotFound => {}
                Err(status) => return Err(refused("failed to inspect")(status)),
            }
        }
        if matches!(kind, None | Some(Kind::Image)) {
            let request = InspectImageRequest {
                reference: name.to_owned(),
                platform: self.platform.clone().unwrap_or_default(),
            };
            match client.images().inspect(request).await {
                Ok(answer) => return image_json(&answer.into_inner()),
                Err(status) if kind.is_none() && status.code() == tonic::Code::NotFound => {}
                Err(status) => return Err(refused("failed to inspect")(status)),
            }
        }
        if matches!(kind, None | Some(Kind::Volume))
            && let Some(volume) = super::volume::find(client, name).await?
        {
            return Ok(volume);
        }
        bail!("No such object: {name}")
    }
}

fn or_null<T: Into<Value>>(items: Vec<T>) -> Value {
    if items.is_empty() { Value::Null } else { Value::from(items) }
}

fn parse(what: &str, body: &[u8]) -> anyhow::Result<Value> {
    serde_json::from_slice(body).with_context(|| format!("the daemon's {what} is unreadable"))
}

/// An image as docker's `inspect` shows it.
fn image_json(answer: &InspectImageResponse) -> anyhow::Result<Value> {
    let image = answer.image.clone().unwrap_or_default();
    let config = parse("image config", &answer.config)?;
    let mut tags = Vec::new();
    let mut digests = Vec::new();
    for name in &answer.names {
        let Ok(name) = oci::Reference::parse(name) else { continue };
        let pinned = format!("{}@{}", name.familiar_repository(), image.digest);
        if !digests.contains(&pinned) {
            digests.push(pinned);
        }
        if name.tag().is_some() && name.digest().is_none() {
            tags.push(name.familiar());
        }
    }
    let run = config.get("config").cloned().unwrap_or_else(|| json!({}));
    let text = |key: &str| config.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let history = config.get("history").and_then(Value::as_array);
    let comment =
        history.and_then(|history| history.last()?.get("comment")?.as_str()).unwrap_or_default();
    let mut value = json!({
        "Id": image.config_digest,
        "RepoTags": tags,
        "RepoDigests": digests,
        "Parent": "",
        "Comment": comment,
        "Created": text("created"),
        "DockerVersion": text("docker_version"),
        "Author": text("author"),
        "Architecture": text("architecture"),
    });
    let fields = value.as_object_mut().expect("an object was just made");
    for (key, from) in [("Variant", "variant"), ("OsVersion", "os.version")] {
        let value = text(from);
        if !value.is_empty() {
            fields.insert(key.into(), value.into());
        }
    }
    fields.insert("Os".into(), text("os").into());
    fields.insert("Size".into(), image.size.into());
    fields.insert(
        "RootFS".into(),
        json!({
            "Type": config.pointer("/rootfs/type").cloned().unwrap_or_else(|| "layers".into()),
            "Layers": config.pointer("/rootfs/diff_ids").cloned().unwrap_or_default(),
        }),
    );
    let tagged = answer.tagged.as_ref().map(text::rfc3339_nano);
    fields.insert("Metadata".into(), json!({ "LastTagTime": tagged }));
    fields.insert("Descriptor".into(), json!({
        "mediaType": answer.media_type,
        "digest": image.digest,
        "size": if answer.index.is_empty() { answer.manifest.len() } else { answer.index.len() },
    }));
    fields.insert("Config".into(), image_config(&run));
    Ok(value)
}

/// The run config with the fields that docker always shows.
fn image_config(config: &Value) -> Value {
    let field = |key: &str| config.get(key).cloned();
    let mut shown = Map::new();
    for (key, default) in [
        ("User", json!("")),
        ("ExposedPorts", Value::Null),
        ("Env", Value::Null),
        ("Cmd", Value::Null),
        ("Healthcheck", Value::Null),
        ("ArgsEscaped", Value::Null),
        ("Volumes", Value::Null),
        ("WorkingDir", json!("")),
        ("Entrypoint", Value::Null),
        ("OnBuild", Value::Null),
        ("Labels", Value::Null),
        ("StopSignal", Value::Null),
        ("Shell", Value::Null),
    ] {
        let optional = ["ExposedPorts", "Healthcheck", "ArgsEscaped", "StopSignal", "Shell"];
        match field(key) {
            Some(value) if !value.is_null() => _ = shown.insert(key.into(), value),
            _ if optional.contains(&key) => {}
            _ => _ = shown.insert(key.into(), default),
        }
    }
    Value::Object(shown)
}

/// A container as docker's `inspect` shows it.
fn container_json(container: &Container) -> Value {
    let request = container.request.clone().unwrap_or_default();
    let time = |at: &Option<prost_types::Timestamp>| {
        at.as_ref().map_or_else(|| "0001-01-01T00:00:00Z".to_owned(), text::rfc3339_nano)
    };
    let exit = container.exit.clone().unwrap_or_default();
    let running = container.state == "running";
    let mut ports = Map::new();
    if running {
        ports.extend(container.exposed.iter().map(|port| (port.clone(), Value::Null)));
    }
    let bindings = |ports: &mut Map<String, Value>, list: &[proto::rbuild::v1::Port]| {
        for port in list {
            let protocol = if port.protocol.is_empty() { "tcp" } else { &port.protocol };
            let binding = json!({
                "HostIp": if port.host_ip.is_empty() { "0.0.0.0" } else { &port.host_ip },
                "HostPort": port.host_port.to_string(),
            });
            let entry = ports.entry(format!("{}/{protocol}", port.container_port));
            let entry = entry.or_insert_with(|| json!([]));
            if entry.is_null() {
                *entry = json!([]);
            }
            entry.as_array_mut().expect("made above").push(binding);
        }
    };
    bindings(&mut ports, &container.ports);
    let mut asked = Map::new();
    bindings(&mut asked, &request.ports);
    let mounts: Vec<Value> = container
        .mounts
        .iter()
        .map(|mount| {
            let mut value = json!({ "Type": mount.kind });
            let fields = value.as_object_mut().expect("an object was just made");
            if !mount.name.is_empty() {
                fields.insert("Name".into(), mount.name.clone().into());
            }
            fields.insert("Source".into(), mount.source.clone().into());
            fields.insert("Destination".into(), mount.target.clone().into());
            if mount.kind == "volume" {
                fields.insert("Driver".into(), "local".into());
            }
            fields.insert("Mode".into(), if mount.read_only { "ro" } else { "" }.into());
            fields.insert("RW".into(), (!mount.read_only).into());
            fields.insert("Propagation".into(), "".into());
            value
        })
        .collect();
    let (path, args) = match container.command.split_first() {
        Some((path, args)) => (path.clone(), args.to_vec()),
        None => (String::new(), Vec::new()),
    };
    let hostname = match request.hostname.as_str() {
        "" => images::short(&container.id),
        name => name.to_owned(),
    };
    let network = if request.network.is_empty() { "bridge" } else { &request.network };
    // What every container gets is not part of what it was told.
    let given = |variable: &&String| {
        let is_own = variable.starts_with("HOSTNAME=") || *variable == "TERM=xterm";
        !is_own || request.env.contains(variable)
    };
    let env: Vec<&String> = container.env.iter().filter(given).collect();
    let asked_mounts: Vec<Value> = request
        .mounts
        .iter()
        .map(|it| {
            json!({
                "Type": it.kind,
                "Source": it.source,
                "Target": it.target,
                "ReadOnly": it.read_only,
            })
        })
        .collect();
    let ulimits: Vec<Value> = request
        .ulimits
        .iter()
        .map(|it| json!({"Name": it.name, "Hard": it.hard, "Soft": it.soft}))
        .collect();
    let tmpfs: Map<String, Value> =
        request.tmpfs.iter().map(|tmpfs| (tmpfs.path.clone(), "".into())).collect();
    let endpoint = container.endpoint.clone().unwrap_or_default();
    let place = json!({
        "Gateway": endpoint.gateway,
        "IPAddress": endpoint.address,
        "IPPrefixLen": endpoint.prefix,
        "MacAddress": "",
        "IPv6Gateway": "",
        "GlobalIPv6Address": "",
        "GlobalIPv6PrefixLen": 0,
    });
    let mut networks = Map::new();
    let mut own = place.clone();
    for (key, value) in
        [("Aliases", Value::Null), ("Links", Value::Null), ("NetworkID", network.into())]
    {
        own[key] = value;
    }
    networks.insert(network.to_owned(), own);
    let mut settings = place;
    settings["Ports"] = ports.into();
    settings["Networks"] = networks.into();
    let exposed: Map<String, Value> =
        container.exposed.iter().map(|port| (port.clone(), json!({}))).collect();
    let mut value = json!({
        "Id": container.id,
        "Created": time(&container.created),
        "Path": path,
        "Args": args,
        "State": {
            "Status": container.state,
            "Running": running,
            "Paused": false,
            "Restarting": false,
            "OOMKilled": exit.oom_killed,
            "Dead": false,
            "Pid": container.pid,
            "ExitCode": exit.code,
            "Error": exit.error,
            "StartedAt": time(&container.started),
            "FinishedAt": time(&container.finished),
        },
        "Image": container.image_id,
        "Name": format!("/{}", container.name),
        "RestartCount": 0,
        "Platform": container.platform.split('/').next(),
        "HostConfig": {
            "Binds": or_null(request.volumes.clone()),
            "NetworkMode": network,
            "PortBindings": asked,
            "RestartPolicy": {"Name": "no", "MaximumRetryCount": 0},
            "AutoRemove": request.remove,
            "CapAdd": or_null(request.cap_add.clone()),
            "CapDrop": or_null(request.cap_drop.clone()),
            "Dns": request.dns,
            "ExtraHosts": or_null(request.extra_hosts.clone()),
            "Privileged": request.privileged,
            "ReadonlyRootfs": request.read_only,
            "Tmpfs": tmpfs,
            "ShmSize": if request.shm_size > 0 { request.shm_size } else { 64 << 20 },
            "Memory": request.memory,
            "MemorySwap": request.memory_swap,
            "NanoCpus": request.cpu_millis * 1_000_000,
            "CpuShares": request.cpu_shares,
            "CpuPeriod": request.cpu_period,
            "CpuQuota": request.cpu_quota,
            "CpusetCpus": request.cpuset_cpus,
            "CpusetMems": request.cpuset_mems,
            "PidsLimit": request.pids,
            "OomScoreAdj": request.oom_score_adj,
            "PublishAllPorts": request.publish_all,
            "Mounts": asked_mounts,
            "Ulimits": ulimits,
            "LogConfig": {"Type": "json-file", "Config": {}},
        },
        "Mounts": mounts,
        "Config": {
            "Hostname": hostname,
            "Domainname": "",
            "User": container.user,
            "AttachStdin": request.stdin,
            "AttachStdout": true,
            "AttachStderr": true,
            "Tty": request.tty,
            "OpenStdin": request.stdin,
            "Env": env,
            "Cmd": or_null(container.cmd.clone()),
            "ExposedPorts": if exposed.is_empty() { Value::Null } else { exposed.into() },
            "Image": images::familiar(&container.image),
            "WorkingDir": container.workdir,
            "Entrypoint": or_null(container.entrypoint.clone()),
            "Labels": container.labels,
            "StopSignal": container.stop_signal,
            "StopTimeout": request.stop_timeout_s,
        },
        "NetworkSettings": settings,
    });
    if let Some(health) = &container.health {
        let log = health.log.iter().map(|result| {
            json!({
                "Start": time(&result.start),
                "End": time(&result.end),
                "ExitCode": result.code,
                "Output": result.output,
            })
        });
        value["State"]["Health"] = json!({
            "Status": health.status,
            "FailingStreak": health.failing,
            "Log": log.collect::<Vec<_>>(),
        });
    }
    value
}

/// Show how an image was made
#[derive(Args, Debug)]
pub struct HistoryArgs {
    /// Name or id
    image: String,
    /// Do not shorten
    #[arg(long)]
    no_trunc: bool,
    /// Print ids only
    #[arg(long, short = 'q')]
    quiet: bool,
    /// Sizes and dates for people
    #[arg(long, short = 'H', value_name = "BOOL", default_value_t = true, num_args = 0..=1,
        default_missing_value = "true", require_equals = true, action = clap::ArgAction::Set)]
    human: bool,
    /// table TEMPLATE, json, or a template such as '{{.CreatedBy}}'
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
    /// Platform of a multi-platform image
    #[arg(long, value_name = "PLATFORM")]
    platform: Option<String>,
}

/// A line of the history, newest first.
struct Line {
    id: String,
    created: Option<prost_types::Timestamp>,
    created_by: String,
    size: i64,
    comment: String,
}

impl HistoryArgs {
    /// Prints the table.
    pub async fn run(&self, connection: &ConnectionArgs) -> anyhow::Result<ExitCode> {
        let format = self.format.as_deref().filter(|format| *format != "table");
        let format = format.map(Format::parse).transpose()?;
        let client = connection.connect().await?;
        let request = InspectImageRequest {
            reference: self.image.clone(),
            platform: self.platform.clone().unwrap_or_default(),
        };
        let answer = client.images().inspect(request).await;
        let answer = answer.map_err(refused("failed to read the history"))?.into_inner();
        let lines = lines(&answer)?;
        let id = |line: &Line| match (self.no_trunc, line.id.as_str()) {
            (false, id) if id != "<missing>" => images::short(id),
            (_, id) => id.to_owned(),
        };
        let by = |line: &Line| match self.no_trunc || line.created_by.chars().count() <= 45 {
            true => line.created_by.clone(),
            false => format!("{}…", line.created_by.chars().take(44).collect::<String>()),
        };
        let since = |line: &Line| match (&line.created, self.human) {
            (None, _) => "N/A".to_owned(),
            (Some(at), true) => text::ago(at),
            (Some(at), false) => text::rfc3339(at),
        };
        let size = |line: &Line| match self.human {
            true => text::docker_size(line.size),
            false => line.size.to_string(),
        };
        if self.quiet {
            lines.iter().for_each(|line| println!("{}", id(line)));
            return Ok(ExitCode::SUCCESS);
        }
        if let Some(format) = format {
            let header = [
                ("ID", "IMAGE"),
                ("CreatedSince", "CREATED"),
                ("CreatedAt", "CREATED AT"),
                ("CreatedBy", "CREATED BY"),
                ("Size", "SIZE"),
                ("Comment", "COMMENT"),
            ];
            let rows: Vec<Value> = lines
                .iter()
                .map(|line| {
                    sorted([
                        ("ID", id(line).into()),
                        ("CreatedSince", since(line).into()),
                        ("CreatedAt", line.created.as_ref().map(text::rfc3339).into()),
                        ("CreatedBy", by(line).into()),
                        ("Size", size(line).into()),
                        ("Comment", line.comment.clone().into()),
                    ])
                })
                .collect();
            print!("{}", format.rows(&header, &rows)?);
            return Ok(ExitCode::SUCCESS);
        }
        let created = if self.human { "CREATED" } else { "CREATED AT" };
        let mut table = Table::new(["IMAGE", created, "CREATED BY", "SIZE", "COMMENT"]);
        for line in &lines {
            table.row([id(line), since(line), by(line), size(line), line.comment.clone()]);
        }
        print!("{}", table.text());
        Ok(ExitCode::SUCCESS)
    }
}

fn lines(answer: &InspectImageResponse) -> anyhow::Result<Vec<Line>> {
    let config = oci::ImageConfig::parse("the daemon's image config", &answer.config)?;
    let mut sizes = answer.layer_sizes.iter();
    let mut lines: Vec<Line> = config
        .history
        .iter()
        .map(|step| Line {
            id: "<missing>".into(),
            created: step.created.as_deref().and_then(base::time::parse_rfc3339).map(Into::into),
            created_by: step.created_by.replace(['\n', '\t'], " "),
            size: if step.empty_layer { 0 } else { sizes.next().copied().unwrap_or(0) },
            comment: step.comment.clone(),
        })
        .collect();
    // Layers that no step speaks of are part of the image all the same.
    lines.extend(sizes.map(|size| Line {
        id: "<missing>".into(),
        created: None,
        created_by: String::new(),
        size: *size,
        comment: String::new(),
    }));
    if let (Some(last), Some(image)) = (lines.last_mut(), &answer.image) {
        last.id.clone_from(&image.config_digest);
    }
    lines.reverse();
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn history_gives_layers_to_steps() {
        let config = r#"{"history":[{"created_by":"ADD a"},{"created_by":"ENV x","empty_layer":true},
            {"created_by":"RUN b"}]}"#;
        let answer = InspectImageResponse {
            config: config.into(),
            layer_sizes: vec![10, 20],
            image: Some(proto::rbuild::v1::Image {
                config_digest: "sha256:abc".into(),
                ..Default::default()
            }),
            ..Default::default()
        };
        let shown: Vec<String> = lines(&answer)
            .unwrap()
            .iter()
            .map(|line| format!("{} {} {}", line.id, line.created_by, line.size))
            .collect();
        assert_eq!(shown, ["sha256:abc RUN b 20", "<missing> ENV x 0", "<missing> ADD a 10"]);
    }

    #[test]
    fn containers_are_shaped_as_docker_shapes_them() {
        let container = Container {
            id: "abcdefabcdefabcdef".into(),
            name: "web".into(),
            state: "running".into(),
            cmd: vec!["sh".into()],
            exposed: vec!["80/tcp".into(), "81/tcp".into()],
            ports: vec![proto::rbuild::v1::Port {
                host_port: 8080,
                container_port: 80,
                ..Default::default()
            }],
            endpoint: Some(proto::rbuild::v1::Endpoint {
                address: "10.0.0.2".into(),
                prefix: 32,
                gateway: "10.0.0.1".into(),
            }),
            ..Container::default()
        };
        let check = |container: &Container, template: &str, expected: &str| {
            let shown = Format::parse(template).unwrap().apply(&container_json(container));
            assert_eq!(shown.unwrap_or_else(|error| error.to_string()), expected, "{template}");
        };
        let one = |template, expected| check(&container, template, expected);
        one("{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", "10.0.0.2");
        one("{{.NetworkSettings.IPAddress}}", "10.0.0.2");
        one("{{.NetworkSettings.Networks.bridge.Gateway}}", "10.0.0.1");
        one("{{(index (index .NetworkSettings.Ports \"80/tcp\") 0).HostPort}}", "8080");
        one("{{json (index .NetworkSettings.Ports \"81/tcp\")}}", "null");
        one("{{range $p, $c := .Config.ExposedPorts}}{{$p}} {{end}}", "80/tcp 81/tcp ");
        one("{{.Name}} {{.Config.Cmd}} {{.State.OOMKilled}}", "/web [sh] false");
        let ended = Container { state: "exited".into(), endpoint: None, ..container.clone() };
        let address = "{{range .NetworkSettings.Networks}}<{{.IPAddress}}>{{end}}";
        check(&ended, address, "<>");
    }

    #[test]
    fn images_are_shaped_as_docker_shapes_them() {
        let answer = InspectImageResponse {
            config: r#"{"architecture":"amd64","os":"linux","config":{"Cmd":["sh"]},
                "rootfs":{"type":"layers","diff_ids":["sha256:1"]}}"#
                .into(),
            names: vec!["docker.io/library/app:1".into()],
            image: Some(proto::rbuild::v1::Image {
                digest: "sha256:d".into(),
                config_digest: "sha256:c".into(),
                ..Default::default()
            }),
            ..Default::default()
        };
        let value = image_json(&answer).unwrap();
        assert_eq!(value["RepoTags"], json!(["app:1"]));
        assert_eq!(value["RepoDigests"], json!(["app@sha256:d"]));
        assert_eq!(value["Config"]["Cmd"], json!(["sh"]));
        assert_eq!(value["Config"]["Env"], Value::Null);
        assert_eq!(value["RootFS"]["Layers"], json!(["sha256:1"]));
    }
}
