//! `login` and `logout`: who this user is at a registry.
//!
//! The daemon checks a login, because it is the daemon that reaches registries; it is kept on this
//! machine, in docker's configuration or by the helper program named there.

use std::{
    collections::BTreeMap,
    io::{BufRead as _, IsTerminal as _, Read as _, Write as _},
    process::ExitCode,
};

use anyhow::{Context as _, bail};
use clap::Args;
use client::auth::{AuthProvider, DockerConfig, Saved, erase_login, login_key, save_login};
use proto::rbuild::v1::LoginRequest;
use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};

use super::refused;
use crate::connection::ConnectionArgs;

/// Log in to a registry
#[derive(Args, Debug)]
pub struct LoginArgs {
    /// Registry; Docker Hub if none is given
    server: Option<String>,
    /// User name
    #[arg(long, short = 'u')]
    username: Option<String>,
    /// Password or token; others can read it from the process list
    #[arg(long, short = 'p')]
    password: Option<String>,
    /// Take the password from standard input
    #[arg(long)]
    password_stdin: bool,
}

impl LoginArgs {
    /// Checks the login, then keeps it.
    pub async fn run(&self, connection: &ConnectionArgs) -> anyhow::Result<ExitCode> {
        let server = server(self.server.as_deref());
        if self.password.is_some() {
            eprintln!("WARNING! Using --password via the CLI is insecure. Use --password-stdin.");
            if self.password_stdin {
                bail!("--password and --password-stdin are mutually exclusive");
            }
        }
        if self.password_stdin && self.username.is_none() {
            bail!("the --password-stdin option requires --username");
        }
        let (username, password) = self.ask(&server).await?;
        let client = connection.connect().await?;
        let key = login_key(&server);
        let config = DockerConfig::of_login(&key, &username, &password);
        let folder = DockerConfig::folder();
        let auth = AuthProvider::new(config, folder.clone());
        let logins = client.serve_login_of(auth, BTreeMap::new());
        let request = LoginRequest { registry: server.clone(), session: logins.session() };
        client.registries().login(request).await.map_err(refused("failed to log in"))?;
        let saved = save_login(&folder, &server, &username, &password).await;
        match saved.context("keeping the login")? {
            Saved::File(path) => eprintln!(
                "\nWARNING! Your credentials are stored unencrypted in '{}'.\nConfigure a \
                 credential helper (credsStore) in that file to remove this warning.\n",
                path.display()
            ),
            Saved::Helper(_) => {}
        }
        println!("Login Succeeded");
        Ok(ExitCode::SUCCESS)
    }

    async fn ask(&self, server: &str) -> anyhow::Result<(String, String)> {
        let known = DockerConfig::load()?.lookup(&login_key(server)).await.unwrap_or_default();
        let terminal = std::io::stdin().is_terminal();
        if !terminal && !self.password_stdin && (self.password.is_none() || self.username.is_none())
        {
            bail!(
                "cannot perform an interactive login from a non-TTY device: use --username and --password-stdin"
            );
        }
        let username = match &self.username {
            Some(username) => username.clone(),
            None => {
                let hint = match known.username.as_str() {
                    "" => String::new(),
                    known => format!(" ({known})"),
                };
                let typed = prompt(&format!("Username{hint}: "), true)?;
                if typed.is_empty() { known.username.clone() } else { typed }
            }
        };
        if username.is_empty() {
            bail!("username is empty");
        }
        let password = match &self.password {
            Some(password) => password.clone(),
            None if self.password_stdin => {
                let mut text = String::new();
                std::io::stdin().read_to_string(&mut text).context("reading the password")?;
                text.trim_end_matches(['\n', '\r']).to_owned()
            }
            None => prompt("Password: ", false)?,
        };
        if password.is_empty() {
            bail!("password is empty");
        }
        Ok((username, password))
    }
}

fn server(asked: Option<&str>) -> String {
    match asked {
        None | Some("docker.io" | "index.docker.io" | "registry-1.docker.io") => String::new(),
        Some(server) => {
            let rest = server.split_once("://").map_or(server, |(_, rest)| rest);
            rest.split('/').next().unwrap_or(rest).to_owned()
        }
    }
}

/// Asks on the terminal, without echo for secrets.
fn prompt(text: &str, echo: bool) -> anyhow::Result<String> {
    eprint!("{text}");
    std::io::stderr().flush()?;
    let before = match echo {
        true => None,
        false => {
            let before = tcgetattr(std::io::stdin()).context("reading the terminal's mode")?;
            let mut silent = before.clone();
            silent.local_modes.remove(LocalModes::ECHO);
            tcsetattr(std::io::stdin(), OptionalActions::Now, &silent)
                .context("setting the terminal's mode")?;
            Some(before)
        }
    };
    let mut line = String::new();
    let read = std::io::stdin().lock().read_line(&mut line);
    if let Some(before) = before {
        _ = tcsetattr(std::io::stdin(), OptionalActions::Now, &before);
        eprintln!();
    }
    read.context("reading from the terminal")?;
    Ok(line.trim_end_matches(['\n', '\r']).to_owned())
}

/// Log out from a registry
#[derive(Args, Debug)]
pub struct LogoutArgs {
    /// Registry; Docker Hub if none is given
    server: Option<String>,
}

impl LogoutArgs {
    /// Forgets the login; no daemon is needed.
    pub async fn run(&self) -> anyhow::Result<ExitCode> {
        let server = server(self.server.as_deref());
        let shown = login_key(&server);
        match erase_login(&DockerConfig::folder(), &server).await? {
            true => println!("Removing login credentials for {shown}"),
            false => println!("Not logged in to {shown}"),
        }
        Ok(ExitCode::SUCCESS)
    }
}
