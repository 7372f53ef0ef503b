//! `run`, `create`, `start`, `attach`, `exec`: processes in containers.
//!
//! An image that the store lacks is pulled first, with this user's logins. `run` without `-d` makes
//! the container, attaches and only then starts it, so that no output is missed.

use std::{io::IsTerminal as _, path::PathBuf, process::ExitCode};

use anyhow::{Context as _, bail};
use clap::{Args, ValueEnum};
use client::Client;
use proto::rbuild::v1::{
    Entrypoint, ExecStart, Healthcheck, InspectContainerRequest, InspectImageRequest, RunRequest,
    StartContainerRequest,
};

use super::{
    attach::{self, Attach, Outcome, Streams, Terminal, exit_code},
    docker_only::{DockerOnly, Flag, docker_only},
    refused,
    run_parse::{self, Mounted},
    transfer::{self, Show},
};
use crate::{connection::ConnectionArgs, text};

/// Exit status for a container that could not be started, as docker's.
const FAILED_TO_START: u8 = 125;
/// Metadata of the daemon's refusal: 126 or 127.
const EXIT_CODE: &str = "rbuild-exit-code";

/// When an image is pulled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Pull {
    Always,
    Missing,
    Never,
}

/// What a container is made of.
#[derive(Args, Debug)]
pub struct ContainerArgs {
    /// Publish a port: [IP:][HOST:]CONTAINER[/tcp|/udp]
    #[arg(long, short = 'p', value_name = "PORT")]
    publish: Vec<String>,
    /// Publish every exposed port on a free one
    #[arg(long, short = 'P')]
    publish_all: bool,
    /// A port that others may want: PORT[-PORT][/tcp|/udp]
    #[arg(long, value_name = "PORT")]
    expose: Vec<String>,
    /// Streams to follow: stdin, stdout, stderr
    #[arg(long, short = 'a', value_name = "STREAM")]
    attach: Vec<String>,
    /// Forget the container when it ends
    #[arg(long)]
    rm: bool,
    /// Environment variable; without a value, this environment's
    #[arg(long, short = 'e', value_name = "NAME[=VALUE]")]
    env: Vec<String>,
    /// File of environment variables
    #[arg(long, value_name = "FILE")]
    env_file: Vec<PathBuf>,
    /// Keep standard input open
    #[arg(long, short = 'i')]
    interactive: bool,
    /// Give the container a terminal
    #[arg(long, short = 't')]
    tty: bool,
    /// Folder to start in
    #[arg(long, short = 'w', value_name = "DIR")]
    workdir: Option<String>,
    /// User to run as
    #[arg(long, short = 'u', value_name = "USER[:GROUP]")]
    user: Option<String>,
    /// Name of the container
    #[arg(long)]
    name: Option<String>,
    /// Program in place of the image's entrypoint; empty is none
    #[arg(long, value_name = "PROGRAM")]
    entrypoint: Option<String>,
    /// host, none, or a network of its own (bridge)
    #[arg(long, visible_alias = "net", value_name = "MODE")]
    network: Option<String>,
    /// A folder of the daemon's machine or a named volume: SOURCE:TARGET[:ro]
    #[arg(long, short = 'v', value_name = "VOLUME")]
    volume: Vec<String>,
    /// type=bind|volume|tmpfs,source=…,target=…[,readonly]
    #[arg(long, value_name = "MOUNT")]
    mount: Vec<String>,
    /// A folder in memory: PATH[:size=…,ro,exec]
    #[arg(long, value_name = "PATH")]
    tmpfs: Vec<String>,
    /// Host name inside
    #[arg(long, short = 'h', value_name = "NAME")]
    hostname: Option<String>,
    /// Which image of several platforms
    #[arg(long)]
    platform: Option<String>,
    /// When to pull the image
    #[arg(long, value_name = "WHEN", default_value = "missing")]
    pull: Pull,
    /// Do not show the pull
    #[arg(long, short = 'q')]
    quiet: bool,
    /// Metadata: KEY[=VALUE]
    #[arg(long, short = 'l', value_name = "LABEL")]
    label: Vec<String>,
    /// File of labels
    #[arg(long, value_name = "FILE")]
    label_file: Vec<PathBuf>,
    /// Nothing but volumes can be written
    #[arg(long)]
    read_only: bool,
    /// Give a capability, such as NET_ADMIN or ALL
    #[arg(long, value_name = "NAME")]
    cap_add: Vec<String>,
    /// Take a capability
    #[arg(long, value_name = "NAME")]
    cap_drop: Vec<String>,
    /// All privileges, if the daemon allows them
    #[arg(long)]
    privileged: bool,
    /// A line for /etc/hosts: NAME:ADDRESS
    #[arg(long, value_name = "HOST")]
    add_host: Vec<String>,
    /// Name server
    #[arg(long, value_name = "ADDRESS")]
    dns: Vec<String>,
    /// Search domain
    #[arg(long, value_name = "DOMAIN")]
    dns_search: Vec<String>,
    /// Resolver option
    #[arg(long, visible_alias = "dns-opt", value_name = "OPTION")]
    dns_option: Vec<String>,
    /// Size of /dev/shm
    #[arg(long, value_name = "SIZE")]
    shm_size: Option<String>,
    /// Most memory
    #[arg(long, short = 'm', value_name = "SIZE")]
    memory: Option<String>,
    /// Most memory and swap together; -1 is as much swap as there is
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    memory_swap: Option<String>,
    /// Most processors
    #[arg(long, value_name = "NUMBER")]
    cpus: Option<f64>,
    /// Weight beside other containers; 1024 is usual
    #[arg(long, short = 'c', value_name = "NUMBER")]
    cpu_shares: Option<u64>,
    /// Processors that it may use: 0-3,7
    #[arg(long, value_name = "NUMBERS")]
    cpuset_cpus: Option<String>,
    /// Memory nodes that it may use: 0-3,7
    #[arg(long, value_name = "NUMBERS")]
    cpuset_mems: Option<String>,
    /// Microseconds of processor time in each period
    #[arg(long, value_name = "MICROSECONDS", allow_hyphen_values = true)]
    cpu_quota: Option<i64>,
    /// Length of a period
    #[arg(long, value_name = "MICROSECONDS")]
    cpu_period: Option<u64>,
    /// How gladly the kernel ends it when memory runs out: -1000 to 1000
    #[arg(long, value_name = "NUMBER", allow_hyphen_values = true)]
    oom_score_adj: Option<i32>,
    /// Most processes
    #[arg(long, value_name = "NUMBER", allow_hyphen_values = true)]
    pids_limit: Option<i64>,
    /// Limit of a process: NAME=SOFT[:HARD]
    #[arg(long, value_name = "LIMIT")]
    ulimit: Vec<String>,
    /// Signal that asks it to end
    #[arg(long, value_name = "SIGNAL")]
    stop_signal: Option<String>,
    /// Seconds until it is killed after that
    #[arg(long, value_name = "SECONDS")]
    stop_timeout: Option<u32>,
    /// Write the container's id to a file, which must not exist
    #[arg(long, value_name = "FILE")]
    cidfile: Option<PathBuf>,
    #[command(flatten)]
    health: HealthArgs,
    #[command(flatten)]
    docker_only: DockerOnly<RunOnly>,
    /// Accepted for scripts: nothing is signed here anyway
    #[arg(long, hide = true, value_name = "BOOL", num_args = 0..=1, require_equals = true)]
    disable_content_trust: Option<Option<String>>,
    /// Name or id of the image, and a command in place of its own. One list, because no flag
    /// follows the image.
    #[arg(required = true, trailing_var_arg = true, value_name = "IMAGE [COMMAND]")]
    words: Vec<String>,
}

/// How the container is asked whether it is well.
#[derive(Args, Debug)]
struct HealthArgs {
    /// Run no health checks
    #[arg(long)]
    no_healthcheck: bool,
    /// Command that tells whether the container is well
    #[arg(long, value_name = "COMMAND", conflicts_with = "no_healthcheck")]
    health_cmd: Option<String>,
    /// Time between checks, e.g. 30s
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    health_interval: Option<i64>,
    /// Most time of one check
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    health_timeout: Option<i64>,
    /// Time in which failures do not count
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    health_start_period: Option<i64>,
    /// Time between checks of the start period
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    health_start_interval: Option<i64>,
    /// Failures in a row that make it unhealthy
    #[arg(long, value_name = "NUMBER")]
    health_retries: Option<u32>,
}

/// Nanoseconds of a duration.
fn duration(text: &str) -> Result<i64, String> {
    let parsed = base::time::parse_go_duration(text);
    let nanos = parsed.and_then(|duration| i64::try_from(duration.as_nanos()).ok());
    nanos.ok_or_else(|| "expected a duration such as 30s".to_owned())
}

impl HealthArgs {
    /// `None` if the image's check is left as it is.
    fn request(&self) -> Option<Healthcheck> {
        let test = match &self.health_cmd {
            _ if self.no_healthcheck => vec!["NONE".to_owned()],
            Some(command) => vec!["CMD-SHELL".to_owned(), command.clone()],
            None => Vec::new(),
        };
        let check = Healthcheck {
            test,
            interval: self.health_interval.unwrap_or_default(),
            timeout: self.health_timeout.unwrap_or_default(),
            start_period: self.health_start_period.unwrap_or_default(),
            start_interval: self.health_start_interval.unwrap_or_default(),
            retries: self.health_retries.unwrap_or_default(),
        };
        (check != Healthcheck::default()).then_some(check)
    }
}

docker_only! { RunOnly:
    Flag::switch("init", "put an init such as tini into the image's entrypoint"),
    Flag::unless("restart", &["no", ""], "have a service manager run it in the foreground"),
    Flag::value("device", "use --privileged with a daemon that allows it"),
    Flag::value("gpus", "use --privileged with a daemon that allows it"),
    Flag::value("device-cgroup-rule", "use --privileged with a daemon that allows it"),
    Flag::value("device-read-bps", "limit the daemon's control group"),
    Flag::value("device-read-iops", "limit the daemon's control group"),
    Flag::value("device-write-bps", "limit the daemon's control group"),
    Flag::value("device-write-iops", "limit the daemon's control group"),
    Flag::unless("blkio-weight", &["0"], "limit the daemon's control group"),
    Flag::value("blkio-weight-device", "limit the daemon's control group"),
    Flag::unless("memory-reservation", &["0"], "use --memory"),
    Flag::unless("memory-swappiness", &["-1"], "use --memory-swap"),
    Flag::unless("kernel-memory", &["0"], "use --memory, which counts it too"),
    Flag::switch("oom-kill-disable", "use --oom-score-adj -1000"),
    Flag::unless("cpu-rt-period", &["0"], "use --cpus or --cpu-shares"),
    Flag::unless("cpu-rt-runtime", &["0"], "use --cpus or --cpu-shares"),
    Flag::value("cpu-count", "use --cpus"),
    Flag::value("cpu-percent", "use --cpus"),
    Flag::value("io-maxbandwidth", "limit the daemon's control group"),
    Flag::value("io-maxiops", "limit the daemon's control group"),
    Flag::value("security-opt", "the sandbox is docker's default; see --cap-add, --privileged"),
    Flag::unless("pid", &["", "private"], "containers have namespaces of their own"),
    Flag::unless("ipc", &["", "private", "shareable"], "containers have namespaces of their own"),
    Flag::unless("uts", &["", "private"], "containers have namespaces of their own"),
    Flag::unless("userns", &["", "host"], "the daemon's own user namespace is used"),
    Flag::unless("cgroupns", &["", "private"], "containers have namespaces of their own"),
    Flag::value("cgroup-parent", "set defaultCgroupParent in buildkitd.toml"),
    Flag::value("link", "publish ports, or use --network host"),
    Flag::value("network-alias", "publish ports, or use --network host"),
    Flag::value("net-alias", "publish ports, or use --network host"),
    Flag::value("ip", "addresses are given out; inspect shows them"),
    Flag::value("ip6", "containers have IPv4 addresses; inspect shows them"),
    Flag::value("link-local-ip", "addresses are given out; inspect shows them"),
    Flag::value("mac-address", "addresses are given out"),
    Flag::value("domainname", "give the whole name with --hostname"),
    Flag::value("volumes-from", "name the volumes with -v"),
    Flag::unless("volume-driver", &["", "local"], "volumes are folders of the daemon's machine"),
    Flag::value("group-add", "give the group with --user USER:GROUP"),
    Flag::value("sysctl", "set it on the daemon's machine"),
    Flag::unless("log-driver", &["json-file", "local"], "read the output with logs -f"),
    Flag::value("log-opt", "logs are kept whole until the container is removed"),
    Flag::value("storage-opt", "limit the daemon's disk with --oci-worker-ceiling"),
    Flag::unless("runtime", &["", "runc"], "the daemon's --oci-worker-binary chooses one for all"),
    Flag::unless("isolation", &["", "default"], "it is for Windows"),
    Flag::value("annotation", "use --label"),
    Flag::switch("use-api-socket", "mount what the container needs with -v"),
}

/// Run a container from an image
#[derive(Args, Debug)]
#[command(
    disable_help_flag = true,
    override_usage = "rbuildctl run [OPTIONS] IMAGE [COMMAND] [ARG...]"
)]
pub struct RunArgs {
    /// Print the container's id and leave it running
    #[arg(long, short = 'd')]
    detach: bool,
    /// Pass signals on
    #[arg(long, value_name = "BOOL", default_value_t = true, num_args = 0..=1,
        default_missing_value = "true", require_equals = true, action = clap::ArgAction::Set)]
    sig_proxy: bool,
    /// Keys that leave the container running
    #[arg(long, value_name = "KEYS", default_value = "ctrl-p,ctrl-q")]
    detach_keys: String,
    /// Print help
    #[arg(long, action = clap::ArgAction::Help)]
    help: Option<bool>,
    #[command(flatten)]
    container: ContainerArgs,
}

/// Make a container without starting it
#[derive(Args, Debug)]
#[command(
    disable_help_flag = true,
    override_usage = "rbuildctl create [OPTIONS] IMAGE [COMMAND] [ARG...]"
)]
pub struct CreateArgs {
    /// Print help
    #[arg(long, action = clap::ArgAction::Help)]
    help: Option<bool>,
    #[command(flatten)]
    container: ContainerArgs,
}

impl ContainerArgs {
    fn image(&self) -> &str {
        &self.words[0]
    }

    fn request(&self) -> anyhow::Result<RunRequest> {
        self.docker_only.check()?;
        let text = |value: &Option<String>| value.clone().unwrap_or_default();
        let mut env = Vec::new();
        for file in &self.env_file {
            env.extend(run_parse::variables(&run_parse::lines_of(file)?)?);
        }
        env.extend(run_parse::variables(&self.env)?);
        let mut labels = std::collections::BTreeMap::new();
        let mut lines = Vec::new();
        for file in &self.label_file {
            lines.extend(run_parse::lines_of(file)?);
        }
        for label in lines.iter().chain(&self.label) {
            let (key, value) = label.split_once('=').unwrap_or((label, ""));
            labels.insert(key.to_owned(), value.to_owned());
        }
        let network = match self.network.as_deref() {
            None | Some("bridge" | "default" | "") => String::new(),
            Some(mode @ ("host" | "none")) => mode.to_owned(),
            Some(mode) if mode.starts_with("container:") => bail!(
                "--network {mode} is not supported: publish ports, or use --network host for both"
            ),
            Some(mode) => bail!(
                "network {mode} not found: networks cannot be made here, use host, none or bridge"
            ),
        };
        let entrypoint = self.entrypoint.as_ref().map(|program| Entrypoint {
            args: if program.is_empty() { Vec::new() } else { vec![program.clone()] },
        });
        let mut ports = Vec::new();
        for text in &self.publish {
            ports.extend(run_parse::ports(text)?);
        }
        let volumes: Vec<String> =
            self.volume.iter().map(|text| run_parse::volume(text)).collect::<Result<_, _>>()?;
        let mut tmpfs: Vec<_> =
            self.tmpfs.iter().map(|text| run_parse::tmpfs(text)).collect::<Result<_, _>>()?;
        let mut mounts = Vec::new();
        for text in &self.mount {
            match run_parse::mount(text)? {
                Mounted::Volume(volume) => mounts.push(volume),
                Mounted::Memory(memory) => tmpfs.push(memory),
            }
        }
        let mut expose = Vec::new();
        for text in &self.expose {
            expose.extend(run_parse::exposed(text)?);
        }
        let size = |flag: &str, text: &Option<String>| -> anyhow::Result<u64> {
            let Some(text) = text else { return Ok(0) };
            let bytes = text::parse_size(text).with_context(|| format!("invalid {flag} {text}"))?;
            Ok(bytes.try_into()?)
        };
        let ulimits = self.ulimit.iter().map(|text| run_parse::ulimit(text));
        Ok(RunRequest {
            image: self.image().to_owned(),
            args: self.words[1..].to_vec(),
            env,
            ports,
            remove: self.rm,
            workdir: text(&self.workdir),
            user: text(&self.user),
            name: text(&self.name),
            entrypoint,
            network,
            tty: self.tty,
            stdin: self.interactive,
            platform: transfer::platform(self.platform.as_deref()),
            hostname: text(&self.hostname),
            volumes,
            labels,
            read_only: self.read_only,
            tmpfs,
            cap_add: self.cap_add.clone(),
            cap_drop: self.cap_drop.clone(),
            extra_hosts: self.add_host.clone(),
            create_only: false,
            session: String::new(),
            publish_all: self.publish_all,
            stop_signal: text(&self.stop_signal),
            stop_timeout_s: self.stop_timeout,
            shm_size: size("--shm-size", &self.shm_size)?,
            memory: size("--memory", &self.memory)?,
            cpu_millis: self.cpus.map_or(0, |cpus| (cpus.max(0.0) * 1000.0).round() as u64),
            pids: self.pids_limit.and_then(|pids| u64::try_from(pids).ok()).unwrap_or(0),
            ulimits: ulimits.collect::<Result<_, _>>()?,
            dns: self.dns.clone(),
            dns_search: self.dns_search.clone(),
            dns_options: self.dns_option.clone(),
            privileged: self.privileged,
            healthcheck: self.health.request(),
            memory_swap: match self.memory_swap.as_deref() {
                Some("-1") => -1,
                _ => size("--memory-swap", &self.memory_swap)?.try_into()?,
            },
            cpu_shares: self.cpu_shares.unwrap_or_default(),
            cpuset_cpus: text(&self.cpuset_cpus),
            cpuset_mems: text(&self.cpuset_mems),
            cpu_quota: self.cpu_quota.unwrap_or_default(),
            cpu_period: self.cpu_period.unwrap_or_default(),
            oom_score_adj: self.oom_score_adj.unwrap_or_default(),
            expose,
            mounts,
        })
    }

    /// Makes sure that the image is there.
    async fn bring(&self, client: &Client, request: &RunRequest) -> anyhow::Result<()> {
        let show = if self.quiet { Show::Nothing } else { Show::Stderr };
        if self.pull == Pull::Always {
            return transfer::pull(client, self.image(), &request.platform, false, show).await;
        }
        let question = InspectImageRequest {
            reference: self.image().to_owned(),
            platform: request.platform.clone(),
        };
        match client.images().inspect(question).await {
            Ok(_) => Ok(()),
            Err(status) if status.code() == tonic::Code::NotFound && self.pull == Pull::Missing => {
                let name = oci::Reference::parse(self.image())?.with_default_tag().familiar();
                if !self.quiet {
                    eprintln!("Unable to find image '{name}' locally");
                }
                transfer::pull(client, self.image(), &request.platform, false, show).await
            }
            Err(status) => Err(refused("failed to find the image")(status)),
        }
    }

    fn note_id(&self, id: &str) -> anyhow::Result<()> {
        let Some(path) = &self.cidfile else { return Ok(()) };
        std::fs::write(path, id).with_context(|| format!("writing {}", path.display()))
    }

    fn check_cidfile(&self) -> anyhow::Result<()> {
        match &self.cidfile {
            Some(path) if path.exists() => bail!(
                "container ID file found, make sure the other container isn't running or delete {}",
                path.display()
            ),
            _ => Ok(()),
        }
    }
}

fn warn(warnings: &[String]) {
    warnings.iter().for_each(|warning| eprintln!("WARNING: {warning}"));
}

/// Tells why a process did not start; 125, 126 or 127.
fn not_started(what: &'static str, status: tonic::Status) -> ExitCode {
    let code = status.metadata().get(EXIT_CODE).and_then(|code| code.to_str().ok()?.parse().ok());
    eprintln!("error: {:#}", refused(what)(status));
    ExitCode::from(code.unwrap_or(FAILED_TO_START))
}

fn check_terminal(tty: bool, stdin: bool) -> anyhow::Result<()> {
    if tty && stdin && !std::io::stdin().is_terminal() {
        bail!("the input device is not a TTY");
    }
    Ok(())
}

fn ended(outcome: anyhow::Result<Outcome>) -> anyhow::Result<ExitCode> {
    match outcome? {
        Outcome::Ended(exit) => Ok(ExitCode::from(exit_code(&exit))),
        Outcome::Detached => Ok(ExitCode::SUCCESS),
        Outcome::Lost => bail!("the container's streams ended before it did"),
    }
}

#[cfg(test)]
impl RunArgs {
    /// Some of what was asked for, for tests of the command line.
    pub fn gist(&self) -> String {
        let it = &self.container;
        let flags = [(self.detach, "-d"), (it.rm, "rm"), (it.interactive, "-i"), (it.tty, "-t")];
        let flags = flags.into_iter().filter(|(is, _)| *is).map(|(_, name)| name.to_owned());
        let name = it.name.iter().map(|name| format!("name={name}"));
        let env = Some(format!("env={}", it.env.join(","))).filter(|_| !it.env.is_empty());
        let image = Some(format!("image={}", it.image()));
        let command = Some(format!("[{}]", it.words[1..].join(" ")));
        let command = command.filter(|_| it.words.len() > 1);
        flags.chain(name).chain(env).chain(image).chain(command).collect::<Vec<_>>().join(" ")
    }
}

impl RunArgs {
    /// Starts the container; without `-d`, ends with its exit status.
    pub async fn run(&self, connection: &ConnectionArgs) -> anyhow::Result<ExitCode> {
        // Whatever goes wrong before the container runs is 125.
        match self.try_run(connection).await {
            Ok(code) => Ok(code),
            Err(error) => {
                eprintln!("error: {error:#}");
                Ok(ExitCode::from(FAILED_TO_START))
            }
        }
    }

    async fn try_run(&self, connection: &ConnectionArgs) -> anyhow::Result<ExitCode> {
        let args = &self.container;
        if !self.detach {
            check_terminal(args.tty, args.interactive)?;
        }
        args.check_cidfile()?;
        let detach = attach::detach_keys(&self.detach_keys)?;
        let streams = Streams::parse(&args.attach)?;
        if self.detach && !args.attach.is_empty() {
            bail!("Conflicting options: -a and -d");
        }
        let mut request = args.request()?;
        let client = connection.connect().await?;
        args.bring(&client, &request).await?;
        request.create_only = !self.detach;
        let mut service = client.containers();
        let started = match service.run(request).await {
            Ok(started) => started.into_inner(),
            Err(status) => return Ok(not_started("failed to run the container", status)),
        };
        warn(&started.warnings);
        args.note_id(&started.id)?;
        if self.detach {
            println!("{}", started.id);
            return Ok(ExitCode::SUCCESS);
        }
        let attach = Attach { container: started.id, logs: true, start: true };
        let stdin = args.interactive && streams.stdin;
        let tty = args.tty;
        let terminal = Terminal { stdin, tty, signals: self.sig_proxy, detach, streams };
        match attach.follow(service, &terminal).await {
            Ok(outcome) => ended(outcome),
            Err(status) => Ok(not_started("failed to run the container", status)),
        }
    }
}

impl CreateArgs {
    /// Makes the container and prints its id.
    pub async fn run(&self, connection: &ConnectionArgs) -> anyhow::Result<ExitCode> {
        let args = &self.container;
        args.check_cidfile()?;
        let mut request = args.request()?;
        let client = connection.connect().await?;
        args.bring(&client, &request).await?;
        request.create_only = true;
        let made = client.containers().run(request).await;
        let made = made.map_err(refused("failed to create the container"))?.into_inner();
        warn(&made.warnings);
        args.note_id(&made.id)?;
        println!("{}", made.id);
        Ok(ExitCode::SUCCESS)
    }
}

/// Start containers that were created or have ended
#[derive(Args, Debug)]
pub struct StartArgs {
    /// Ids or names
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
    /// Stay with the container
    #[arg(long, short = 'a')]
    attach: bool,
    /// Pass standard input on
    #[arg(long, short = 'i')]
    interactive: bool,
    /// Keys that leave the container running
    #[arg(long, value_name = "KEYS", default_value = "ctrl-p,ctrl-q")]
    detach_keys: String,
    #[command(flatten)]
    docker_only: DockerOnly<StartOnly>,
}

docker_only! { StartOnly:
    Flag::value("checkpoint", "containers are not checkpointed"),
    Flag::value("checkpoint-dir", "containers are not checkpointed"),
}

impl StartArgs {
    /// Starts one after the other; goes on after a failure.
    pub async fn run(&self, connection: &ConnectionArgs) -> anyhow::Result<ExitCode> {
        self.docker_only.check()?;
        let detach = attach::detach_keys(&self.detach_keys)?;
        let mut service = connection.connect().await?.containers();
        if self.attach || self.interactive {
            let [container] = &self.containers[..] else {
                bail!("you cannot start and attach multiple containers at once");
            };
            let asked = InspectContainerRequest { container: container.clone() };
            let known = service.inspect(asked).await;
            let known = known.map_err(refused("failed to start the container"))?.into_inner();
            let request = known.request.unwrap_or_default();
            let mut terminal = Terminal::new(self.interactive && request.stdin, request.tty);
            terminal.detach = detach;
            check_terminal(terminal.tty, terminal.stdin)?;
            let attach = Attach { container: container.clone(), logs: false, start: true };
            return match attach.follow(service, &terminal).await {
                Ok(outcome) => ended(outcome),
                Err(status) => Ok(not_started("failed to start the container", status)),
            };
        }
        let mut code = ExitCode::SUCCESS;
        for container in &self.containers {
            let request = StartContainerRequest { container: container.clone() };
            match service.start(request).await {
                Ok(_) => println!("{container}"),
                Err(status) => {
                    eprintln!("error: {:#}", refused("failed to start the container")(status));
                    code = ExitCode::FAILURE;
                }
            }
        }
        Ok(code)
    }
}

/// Follow a running container's streams
#[derive(Args, Debug)]
pub struct AttachArgs {
    /// Id or name
    container: String,
    /// Do not pass standard input on
    #[arg(long)]
    no_stdin: bool,
    /// Pass signals on
    #[arg(long, value_name = "BOOL", default_value_t = true, num_args = 0..=1,
        default_missing_value = "true", require_equals = true, action = clap::ArgAction::Set)]
    sig_proxy: bool,
    /// Keys that leave the container running
    #[arg(long, value_name = "KEYS", default_value = "ctrl-p,ctrl-q")]
    detach_keys: String,
}

impl AttachArgs {
    /// Stays until the container ends.
    pub async fn run(&self, connection: &ConnectionArgs) -> anyhow::Result<ExitCode> {
        let detach = attach::detach_keys(&self.detach_keys)?;
        let mut service = connection.connect().await?.containers();
        let fail = refused("failed to attach to the container");
        let asked = InspectContainerRequest { container: self.container.clone() };
        let known = service.inspect(asked).await.map_err(&fail)?.into_inner();
        let request = known.request.unwrap_or_default();
        let stdin = request.stdin && !self.no_stdin;
        check_terminal(request.tty, stdin)?;
        let (tty, signals, streams) = (request.tty, self.sig_proxy, Streams::default());
        let terminal = Terminal { stdin, tty, signals, detach, streams };
        let attach = Attach { container: self.container.clone(), logs: false, start: false };
        ended(attach.follow(service, &terminal).await.map_err(fail)?)
    }
}

/// Run a further process in a running container
#[derive(Args, Debug)]
#[command(override_usage = "rbuildctl exec [OPTIONS] CONTAINER COMMAND [ARG...]")]
pub struct ExecArgs {
    /// Leave it running
    #[arg(long, short = 'd')]
    detach: bool,
    /// Pass standard input on
    #[arg(long, short = 'i')]
    interactive: bool,
    /// Give the process a terminal
    #[arg(long, short = 't')]
    tty: bool,
    /// Environment variable; without a value, this environment's
    #[arg(long, short = 'e', value_name = "NAME[=VALUE]")]
    env: Vec<String>,
    /// File of environment variables
    #[arg(long, value_name = "FILE")]
    env_file: Vec<PathBuf>,
    /// Folder to start in
    #[arg(long, short = 'w', value_name = "DIR")]
    workdir: Option<String>,
    /// User to run as
    #[arg(long, short = 'u', value_name = "USER[:GROUP]")]
    user: Option<String>,
    /// Keys that leave the process running
    #[arg(long, value_name = "KEYS", default_value = "ctrl-p,ctrl-q")]
    detach_keys: String,
    #[arg(long, hide = true)]
    privileged: bool,
    /// Id or name, and what to run. One list, because no flag follows the container.
    #[arg(required = true, num_args = 2.., trailing_var_arg = true,
        value_name = "CONTAINER COMMAND")]
    words: Vec<String>,
}

impl ExecArgs {
    /// Ends with the process's exit status.
    pub async fn run(&self, connection: &ConnectionArgs) -> anyhow::Result<ExitCode> {
        if self.privileged {
            bail!("exec --privileged is not supported: run the container with --privileged");
        }
        if !self.detach {
            check_terminal(self.tty, self.interactive)?;
        }
        let mut env = Vec::new();
        for file in &self.env_file {
            env.extend(run_parse::variables(&run_parse::lines_of(file)?)?);
        }
        env.extend(run_parse::variables(&self.env)?);
        let mut terminal = Terminal::new(self.interactive && !self.detach, self.tty);
        terminal.detach = attach::detach_keys(&self.detach_keys)?;
        // Docker's exec leaves signals to its own end.
        terminal.signals = false;
        let start = ExecStart {
            container: self.words[0].clone(),
            args: self.words[1..].to_vec(),
            env,
            workdir: self.workdir.clone().unwrap_or_default(),
            user: self.user.clone().unwrap_or_default(),
            tty: self.tty,
            stdin: self.interactive,
            detach: self.detach,
        };
        let service = connection.connect().await?.containers();
        match attach::exec(service, start, &terminal).await {
            Ok(outcome) => ended(outcome),
            Err(status) => {
                let code = not_started("failed to run the process", status);
                // Of a daemon that refused, exec ends with 1.
                Ok(if code == ExitCode::from(FAILED_TO_START) { ExitCode::FAILURE } else { code })
            }
        }
    }
}
