//! Which daemon to talk to, from flags and environment.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use clap::Args;
use client::{Address, Client, ClientError, ConnectOptions, TlsFiles, embedded};

/// Seconds to wait for the connection.
const CONNECT_TIMEOUT_S: u64 = 5;

/// Flags that every command takes.
#[derive(Args, Debug, Clone)]
pub struct ConnectionArgs {
    /// Daemon's address: unix://PATH, tcp://HOST:PORT, ssh://HOST or docker-container://NAME
    /// [default: $RBUILD_HOST, $BUILDKIT_HOST, a running daemon, else one started for you]
    #[arg(long, global = true, value_name = "ADDRESS")]
    pub addr: Option<String>,
    /// Name the daemon's certificate must carry
    #[arg(long, global = true, value_name = "NAME")]
    pub tlsservername: Option<String>,
    /// Certificate of the authority that signed the daemon's
    #[arg(long, global = true, value_name = "FILE")]
    pub tlscacert: Option<PathBuf>,
    /// Certificate of this client
    #[arg(long, global = true, value_name = "FILE")]
    pub tlscert: Option<PathBuf>,
    /// Key of this client
    #[arg(long, global = true, value_name = "FILE")]
    pub tlskey: Option<PathBuf>,
    /// Folder with ca.pem, cert.pem, key.pem (or ca.crt, tls.crt, tls.key)
    #[arg(long, global = true, value_name = "DIR")]
    pub tlsdir: Option<PathBuf>,
    /// Seconds to wait for the connection [default: 5]
    #[arg(long, global = true, value_name = "SECONDS")]
    pub timeout: Option<u64>,
    /// Wait until the daemon answers, within --timeout
    #[arg(long, global = true)]
    pub wait: bool,
}

impl ConnectionArgs {
    /// The daemon the person named, if one was named.
    pub fn named(&self) -> anyhow::Result<Option<Address>> {
        Ok(match &self.addr {
            Some(addr) => Some(addr.parse()?),
            None => Address::from_env()?,
        })
    }

    fn timeout_s(&self) -> u64 {
        self.timeout.unwrap_or(CONNECT_TIMEOUT_S).max(1)
    }

    fn options(&self, address: Address) -> anyhow::Result<ConnectOptions> {
        let timeout = Duration::from_secs(self.timeout_s());
        Ok(ConnectOptions { address, tls: self.tls()?, timeout })
    }

    fn tls(&self) -> anyhow::Result<TlsFiles> {
        let server_name = self.tlsservername.clone();
        let Some(folder) = &self.tlsdir else {
            let (ca, cert, key) = (&self.tlscacert, &self.tlscert, &self.tlskey);
            return Ok(TlsFiles {
                server_name,
                ca: ca.clone(),
                cert: cert.clone(),
                key: key.clone(),
            });
        };
        if self.tlscacert.is_some() || self.tlscert.is_some() || self.tlskey.is_some() {
            bail!("--tlsdir cannot be combined with --tlscacert, --tlscert or --tlskey");
        }
        Ok(TlsFiles {
            server_name,
            ca: Some(one_of(folder, ["ca.pem", "ca.crt"])?),
            cert: Some(one_of(folder, ["cert.pem", "tls.crt"])?),
            key: Some(one_of(folder, ["key.pem", "tls.key"])?),
        })
    }

    /// Connects to the named daemon, a running one, or one started for this user.
    pub async fn connect(&self) -> anyhow::Result<Client> {
        if let Some(address) = self.named()? {
            return self.connect_to(&self.options(address)?).await;
        }
        for address in Address::defaults() {
            let Address::Unix(path) = &address else { continue };
            if path.exists()
                && let Ok(client) = Client::connect(&self.options(address)?).await
            {
                return Ok(client);
            }
        }
        Ok(embedded::connect(|line| eprintln!("rbuildctl: {line}")).await?)
    }

    async fn connect_to(&self, options: &ConnectOptions) -> anyhow::Result<Client> {
        let began = Instant::now();
        loop {
            match Client::connect(options).await {
                Err(ClientError::Connect { .. })
                    if self.wait && began.elapsed().as_secs() < self.timeout_s() =>
                {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                result => return Ok(result?),
            }
        }
    }
}

fn one_of(folder: &Path, names: [&str; 2]) -> anyhow::Result<PathBuf> {
    let found = names.iter().map(|name| folder.join(name)).find(|path| path.is_file());
    found.with_context(|| format!("{} has neither {} nor {}", folder.display(), names[0], names[1]))
}
