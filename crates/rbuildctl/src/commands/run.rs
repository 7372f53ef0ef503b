//! `run`: starts a container from an image and stays with it unless told otherwise.
//!
//! Without a terminal, standard input goes to the container with `-i`, and signals that reach this
//! program are passed on. With `-t` the terminal is switched to raw mode, so that the container's
//! own terminal sees every key; it is restored before this program ends, however it ends.

use std::{
    io::{IsTerminal as _, Write as _},
    process::ExitCode,
};

use anyhow::{Context as _, bail};
use clap::Args;
use proto::rbuild::v1::{
    AttachRequest, Entrypoint, Exit, Port, RunRequest, WindowSize,
    containers_client::ContainersClient,
};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use tokio::{
    io::AsyncReadExt as _,
    signal::unix::{SignalKind, signal},
    sync::mpsc,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

use super::refused;
use crate::connection::ConnectionArgs;

/// Exit status for a container that could not be started, as docker's.
const FAILED_TO_START: u8 = 125;
/// Input waiting for the daemon, in messages.
const WAITING_INPUT: usize = 16;

/// Run a container from an image of the store
#[derive(Args, Debug)]
pub struct RunArgs {
    /// Print the container's id and leave it running
    #[arg(long, short = 'd')]
    detach: bool,
    /// Publish a port: [IP:][HOST:]CONTAINER[/PROTOCOL]
    #[arg(long, short = 'p', value_name = "PORT")]
    publish: Vec<String>,
    /// Forget the container when it ends
    #[arg(long)]
    rm: bool,
    /// Environment variable; without a value, this environment's
    #[arg(long, short = 'e', value_name = "NAME[=VALUE]")]
    env: Vec<String>,
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
    /// host, none, or a network of its own
    #[arg(long, visible_alias = "net", value_name = "MODE")]
    network: Option<String>,
    /// Folder of the daemon's machine: HOST:CONTAINER[:ro]
    #[arg(long, short = 'v', value_name = "VOLUME")]
    volume: Vec<String>,
    /// Host name inside
    #[arg(long, value_name = "NAME")]
    hostname: Option<String>,
    /// Which image of several platforms
    #[arg(long)]
    platform: Option<String>,
    /// Name or id
    image: String,
    /// Command in place of the image's
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

impl RunArgs {
    /// Starts the container; without `-d`, ends with its exit status.
    pub async fn run(&self, connection: &ConnectionArgs) -> anyhow::Result<ExitCode> {
        if self.tty && !self.detach && !std::io::stdin().is_terminal() {
            bail!("the input device is not a TTY: leave -t away");
        }
        let request = self.request()?;
        let mut service = connection.connect().await?.containers();
        let started =
            match service.run(request).await.map_err(refused("failed to run the container")) {
                Ok(started) => started.into_inner(),
                Err(error) => {
                    eprintln!("error: {error:#}");
                    return Ok(ExitCode::from(FAILED_TO_START));
                }
            };
        if self.detach {
            println!("{}", started.id);
            return Ok(ExitCode::SUCCESS);
        }
        let attach = Attach { container: started.id, logs: true, follow: true };
        let exit = attach.interact(service, self.interactive, self.tty).await?;
        if !exit.error.is_empty() {
            eprintln!("error: {}", exit.error);
        }
        Ok(ExitCode::from(u8::try_from(exit.code).unwrap_or(1)))
    }

    fn request(&self) -> anyhow::Result<RunRequest> {
        let text = |value: &Option<String>| value.clone().unwrap_or_default();
        let mut env = Vec::new();
        for variable in &self.env {
            match (variable.contains('='), std::env::var(variable)) {
                (true, _) => env.push(variable.clone()),
                (false, Ok(value)) => env.push(format!("{variable}={value}")),
                (false, Err(_)) => {}
            }
        }
        let network = match self.network.as_deref() {
            None | Some("bridge" | "default" | "") => String::new(),
            Some(mode @ ("host" | "none")) => mode.to_owned(),
            Some(mode) => bail!("--network {mode} is not supported: use host, none or bridge"),
        };
        let entrypoint = self.entrypoint.as_ref().map(|program| Entrypoint {
            args: if program.is_empty() { Vec::new() } else { vec![program.clone()] },
        });
        let ports: anyhow::Result<Vec<Port>> = self.publish.iter().map(|text| port(text)).collect();
        let volumes: anyhow::Result<Vec<String>> =
            self.volume.iter().map(|text| volume(text)).collect();
        Ok(RunRequest {
            image: self.image.clone(),
            args: self.command.clone(),
            env,
            ports: ports?,
            remove: self.rm,
            workdir: text(&self.workdir),
            user: text(&self.user),
            name: text(&self.name),
            entrypoint,
            network,
            tty: self.tty,
            stdin: self.interactive,
            platform: text(&self.platform),
            hostname: text(&self.hostname),
            volumes: volumes?,
            ..RunRequest::default()
        })
    }
}

/// `[IP:][HOST:]CONTAINER[/PROTOCOL]`; an IPv6 address stands in brackets.
fn port(text: &str) -> anyhow::Result<Port> {
    let bad = || format!("invalid --publish {text}: expected [IP:][HOST:]CONTAINER[/tcp]");
    let (rest, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    if !matches!(protocol, "tcp" | "udp") {
        bail!("invalid --publish {text}: unknown protocol {protocol}");
    }
    let number = |text: &str| text.parse::<u16>().ok().map(u32::from);
    let (left, container) = rest.rsplit_once(':').unwrap_or(("", rest));
    let (ip, host) = match left.rsplit_once(':') {
        Some((ip, host)) => (ip.trim_start_matches('[').trim_end_matches(']'), host),
        None => ("", left),
    };
    if !ip.is_empty() {
        ip.parse::<std::net::IpAddr>().with_context(bad)?;
    }
    Ok(Port {
        host_ip: ip.to_owned(),
        host_port: if host.is_empty() { 0 } else { number(host).with_context(bad)? },
        container_port: number(container).filter(|port| *port > 0).with_context(bad)?,
        protocol: protocol.to_owned(),
    })
}

/// Completes a relative host folder; named volumes do not exist.
fn volume(text: &str) -> anyhow::Result<String> {
    let (host, rest) = text
        .split_once(':')
        .with_context(|| format!("invalid --volume {text}: expected HOST:CONTAINER[:ro]"))?;
    if !host.starts_with(['/', '.']) {
        bail!("--volume {text}: named volumes are not supported, give a folder such as ./{host}");
    }
    let host = std::path::absolute(host)?;
    Ok(format!("{}:{rest}", host.display()))
}

/// Puts the terminal back when dropped.
struct RawMode(Termios);

impl RawMode {
    fn enter() -> anyhow::Result<Self> {
        let before = tcgetattr(std::io::stdin()).context("reading the terminal's mode")?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(std::io::stdin(), OptionalActions::Now, &raw)
            .context("setting the terminal's mode")?;
        Ok(Self(before))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, &self.0);
    }
}

/// A connection to a container's streams.
pub struct Attach {
    /// Id or name.
    pub container: String,
    /// Start with what was written before.
    pub logs: bool,
    /// Stay until it ends.
    pub follow: bool,
}

impl Attach {
    fn first(&self) -> AttachRequest {
        AttachRequest {
            container: self.container.clone(),
            logs: self.logs,
            follow: self.follow,
            ..AttachRequest::default()
        }
    }

    /// Copies output only.
    pub async fn copy_output(
        &self,
        service: ContainersClient<Channel>,
    ) -> anyhow::Result<Option<Exit>> {
        let (sender, receiver) = mpsc::channel(1);
        sender.send(self.first()).await.expect("the receiver is at hand");
        let exit = output(service, receiver).await;
        drop(sender);
        exit
    }

    /// Copies both ways, passes signals and window sizes on, and returns how it ended.
    pub async fn interact(
        &self,
        service: ContainersClient<Channel>,
        stdin: bool,
        tty: bool,
    ) -> anyhow::Result<Exit> {
        let raw = if tty && stdin { Some(RawMode::enter()?) } else { None };
        let (sender, receiver) = mpsc::channel(WAITING_INPUT);
        sender.send(self.first()).await.expect("the receiver is at hand");
        if tty {
            let _ = sender.send(window()).await;
        }
        if stdin {
            tokio::spawn(input(sender.clone()));
        }
        tokio::spawn(signals(sender, tty));
        let exit = output(service, receiver).await;
        drop(raw);
        exit?.context("the container's streams ended before it did")
    }
}

async fn output(
    mut service: ContainersClient<Channel>,
    requests: mpsc::Receiver<AttachRequest>,
) -> anyhow::Result<Option<Exit>> {
    let fail = refused("failed to attach to the container");
    let answer = service.attach(ReceiverStream::new(requests)).await.map_err(&fail)?;
    let mut answer = answer.into_inner();
    let mut exit = None;
    while let Some(message) = answer.message().await.map_err(&fail)? {
        // A reader that went away ends this program, not the container.
        std::io::stdout().write_all(&message.stdout)?;
        std::io::stdout().flush()?;
        std::io::stderr().write_all(&message.stderr)?;
        exit = message.exit.or(exit);
    }
    Ok(exit)
}

async fn input(sender: mpsc::Sender<AttachRequest>) {
    let mut stdin = tokio::io::stdin();
    let mut buffer = vec![0; 32 << 10];
    while let Ok(length @ 1..) = stdin.read(&mut buffer).await {
        let stdin = buffer[..length].to_vec().into();
        if sender.send(AttachRequest { stdin, ..AttachRequest::default() }).await.is_err() {
            return;
        }
    }
    let _ = sender.send(AttachRequest { stdin_eof: true, ..AttachRequest::default() }).await;
}

fn window() -> AttachRequest {
    let resize = tcgetwinsize(std::io::stdout())
        .ok()
        .map(|size| WindowSize { rows: u32::from(size.ws_row), cols: u32::from(size.ws_col) });
    AttachRequest { resize, ..AttachRequest::default() }
}

async fn signals(sender: mpsc::Sender<AttachRequest>, tty: bool) {
    let kinds = (
        signal(SignalKind::interrupt()),
        signal(SignalKind::terminate()),
        signal(SignalKind::hangup()),
        signal(SignalKind::window_change()),
    );
    let (Ok(mut interrupt), Ok(mut terminate), Ok(mut hangup), Ok(mut resize)) = kinds else {
        return;
    };
    loop {
        let named = |name: &str| AttachRequest { signal: name.into(), ..AttachRequest::default() };
        let message = tokio::select! {
            _ = interrupt.recv() => named("INT"),
            _ = terminate.recv() => named("TERM"),
            _ = hangup.recv() => named("HUP"),
            _ = resize.recv(), if tty => window(),
        };
        if sender.send(message).await.is_err() {
            return;
        }
    }
}

/// Sends one signal to a container.
pub async fn send_signal(
    mut service: ContainersClient<Channel>,
    container: &str,
    name: &str,
) -> anyhow::Result<()> {
    let request = AttachRequest {
        container: container.to_owned(),
        signal: name.to_owned(),
        ..AttachRequest::default()
    };
    let fail = refused("failed to signal the container");
    let answer = service.attach(tokio_stream::iter([request])).await.map_err(&fail)?;
    let mut answer = answer.into_inner();
    while answer.message().await.map_err(&fail)?.is_some() {}
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports() {
        let show = |text: &str| match port(text) {
            Ok(port) => format!(
                "{}|{}|{}|{}",
                port.host_ip, port.host_port, port.container_port, port.protocol
            ),
            Err(error) => format!("{error:#}"),
        };
        assert_eq!(show("80"), "|0|80|tcp");
        assert_eq!(show("8080:80"), "|8080|80|tcp");
        assert_eq!(show("127.0.0.1:8080:80/udp"), "127.0.0.1|8080|80|udp");
        assert_eq!(show("[::1]:8080:80"), "::1|8080|80|tcp");
        for bad in ["", "x", "1:2:3", "80/foo", "70000"] {
            assert!(show(bad).starts_with("invalid --publish"), "{bad}");
        }
    }
}
