//! `pull` and `push`: images from and to registries.
//!
//! On a terminal every layer has a line that is redrawn; otherwise each change of state is a line.

use std::{
    collections::HashMap,
    io::{IsTerminal as _, Write},
    process::ExitCode,
};

use anyhow::Context as _;
use clap::Args;
use client::Client;
use proto::rbuild::v1::{PullRequest, PushRequest, TransferDone, TransferEvent};
use tonic::Streaming;

use super::{images::familiar, refused};
use crate::{connection::ConnectionArgs, text};

/// Width of a progress bar.
const BAR: usize = 50;

/// Download an image from a registry
#[derive(Args, Debug)]
pub struct PullArgs {
    /// Name of the image; without a registry, Docker Hub's
    #[arg(value_name = "NAME[:TAG|@DIGEST]")]
    name: String,
    /// Download all tagged images in the repository
    #[arg(long, short = 'a')]
    all_tags: bool,
    /// Platform of the image, such as linux/arm64
    #[arg(long, value_name = "PLATFORM")]
    platform: Option<String>,
    /// Print the name only
    #[arg(long, short = 'q')]
    quiet: bool,
    /// Accepted for scripts: nothing is signed here anyway
    #[arg(long, hide = true, value_name = "BOOL", num_args = 0..=1, require_equals = true)]
    disable_content_trust: Option<Option<String>>,
}

impl PullArgs {
    /// Pulls and prints what happens.
    pub async fn run(&self, connection: &ConnectionArgs) -> anyhow::Result<ExitCode> {
        let client = connection.connect().await?;
        let show = if self.quiet { Show::Quiet } else { Show::Stdout };
        if !self.quiet && !self.all_tags {
            say_default_tag(&self.name)?;
        }
        let platform = platform(self.platform.as_deref());
        pull(&client, &self.name, &platform, self.all_tags, show).await?;
        Ok(ExitCode::SUCCESS)
    }
}

/// The platform asked for, or the one that docker's variable names.
pub fn platform(asked: Option<&str>) -> String {
    let variable = || std::env::var("DOCKER_DEFAULT_PLATFORM").unwrap_or_default();
    asked.map_or_else(variable, str::to_owned)
}

fn say_default_tag(name: &str) -> anyhow::Result<()> {
    let reference = oci::Reference::parse(name)?;
    if reference.tag().is_none() && reference.digest().is_none() {
        println!("Using default tag: latest");
    }
    Ok(())
}

/// Where progress is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Show {
    /// As the command's result.
    Stdout,
    /// Beside another result.
    Stderr,
    /// Names only.
    Quiet,
    /// Nowhere.
    Nothing,
}

/// Pulls an image with this user's logins.
pub async fn pull(
    client: &Client,
    name: &str,
    platform: &str,
    all_tags: bool,
    show: Show,
) -> anyhow::Result<()> {
    let logins = client.serve_logins()?;
    let request = PullRequest {
        reference: name.to_owned(),
        platform: platform.to_owned(),
        session: logins.session(),
        all_tags,
    };
    let fail = refused("failed to pull the image");
    let events = client.images().pull(request).await.map_err(&fail)?.into_inner();
    for done in follow(events, show).await.map_err(&fail)?? {
        let short = familiar(&done.name);
        let lines = match done.unchanged {
            true => format!("Digest: {}\nStatus: Image is up to date for {short}", done.digest),
            false => {
                format!("Digest: {}\nStatus: Downloaded newer image for {short}", done.digest)
            }
        };
        match show {
            Show::Stdout => println!("{lines}\n{}", done.name),
            Show::Stderr => eprintln!("{lines}"),
            Show::Quiet => println!("{}", done.name),
            Show::Nothing => {}
        }
        if !done.warning.is_empty() {
            eprintln!("WARNING: {}", done.warning);
        }
    }
    Ok(())
}

/// Upload an image to a registry
#[derive(Args, Debug)]
pub struct PushArgs {
    /// Name of the image
    #[arg(value_name = "NAME[:TAG]")]
    name: String,
    /// Push all tags of the repository that the store has
    #[arg(long, short = 'a')]
    all_tags: bool,
    /// Push one platform of a multi-platform image
    #[arg(long, value_name = "PLATFORM")]
    platform: Option<String>,
    /// Print the name only
    #[arg(long, short = 'q')]
    quiet: bool,
    /// Accepted for scripts: nothing is signed here anyway
    #[arg(long, hide = true, value_name = "BOOL", num_args = 0..=1, require_equals = true)]
    disable_content_trust: Option<Option<String>>,
}

impl PushArgs {
    /// Pushes and prints what happens.
    pub async fn run(&self, connection: &ConnectionArgs) -> anyhow::Result<ExitCode> {
        let client = connection.connect().await?;
        if !self.quiet && !self.all_tags {
            say_default_tag(&self.name)?;
        }
        let logins = client.serve_logins()?;
        let request = PushRequest {
            reference: self.name.clone(),
            session: logins.session(),
            all_tags: self.all_tags,
            platform: self.platform.clone().unwrap_or_default(),
        };
        let fail = refused("failed to push the image");
        let events = client.images().push(request).await.map_err(&fail)?.into_inner();
        let show = if self.quiet { Show::Quiet } else { Show::Stdout };
        for done in follow(events, show).await.map_err(&fail)?? {
            let name = oci::Reference::parse(&done.name).context("the daemon's name")?;
            match self.quiet {
                true => println!("{}", done.name),
                false => println!("{}: digest: {} size: {}", name.object(), done.digest, done.size),
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Shows events until the end; what was done is the result.
async fn follow(
    mut events: Streaming<TransferEvent>,
    show: Show,
) -> Result<anyhow::Result<Vec<TransferDone>>, tonic::Status> {
    let mut display = Display::new(show);
    let mut done = Vec::new();
    while let Some(event) = events.message().await? {
        if let Some(one) = event.done {
            done.push(one);
        } else if let Err(error) = display.show(&event) {
            return Ok(Err(error.into()));
        }
    }
    Ok(Ok(done))
}

/// Lines on a terminal or in a file.
struct Display {
    out: Option<Box<dyn Write + Send>>,
    terminal: bool,
    lines: usize,
    places: HashMap<String, usize>,
    last: HashMap<String, String>,
}

impl Display {
    fn new(show: Show) -> Self {
        let (out, terminal): (Option<Box<dyn Write + Send>>, bool) = match show {
            Show::Stdout => (Some(Box::new(std::io::stdout())), std::io::stdout().is_terminal()),
            Show::Stderr => (Some(Box::new(std::io::stderr())), std::io::stderr().is_terminal()),
            Show::Quiet | Show::Nothing => (None, false),
        };
        Self { out, terminal, lines: 0, places: HashMap::new(), last: HashMap::new() }
    }

    fn show(&mut self, event: &TransferEvent) -> std::io::Result<()> {
        let Some(out) = &mut self.out else { return Ok(()) };
        let is_layer = event.id.len() == 12 && event.id.bytes().all(|b| b.is_ascii_hexdigit());
        if !self.terminal || !is_layer {
            let same = self.last.get(&event.id) == Some(&event.status);
            if same || event.total > 0 && !self.terminal && is_layer {
                return Ok(());
            }
            self.last.insert(event.id.clone(), event.status.clone());
            self.lines += 1;
            match event.id.as_str() {
                "" => writeln!(out, "{}", event.status)?,
                id => writeln!(out, "{id}: {}", event.status)?,
            }
            return out.flush();
        }
        let line = format!("{}: {}{}", event.id, event.status, bar(event.current, event.total));
        match self.places.get(&event.id) {
            Some(place) => {
                let up = self.lines - place;
                write!(out, "\x1b[{up}A\r\x1b[2K{line}\x1b[{up}B\r")?;
            }
            None => {
                self.places.insert(event.id.clone(), self.lines);
                self.lines += 1;
                writeln!(out, "{line}")?;
            }
        }
        out.flush()
    }
}

/// ` [=====>     ]  1.2MB/3.4MB`; nothing without numbers.
fn bar(current: i64, total: i64) -> String {
    if total <= 0 {
        return String::new();
    }
    let share = (current.clamp(0, total) as f64 / total as f64 * BAR as f64) as usize;
    let mut bar = "=".repeat(share.min(BAR));
    if share < BAR {
        bar.push('>');
    }
    let (current, total) = (text::docker_size(current), text::docker_size(total));
    format!(" [{bar:<BAR$}] {current:>8}/{total}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars() {
        assert_eq!(bar(0, 0), "");
        assert_eq!(bar(5, 10).matches('=').count(), 25);
        assert!(bar(10, 10).ends_with("     10B/10B"));
    }
}
