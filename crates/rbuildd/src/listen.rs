//! Sockets: Unix, TCP with mutual TLS, and those a supervisor hands over.

use std::{
    net::ToSocketAddrs as _,
    os::{fd::FromRawFd as _, unix::fs::PermissionsExt as _},
    path::{Path, PathBuf},
    pin::Pin,
    task::{Context as TaskContext, Poll},
};

use anyhow::{Context as _, bail};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
};
use tonic::transport::{Certificate, Identity, ServerTlsConfig, server::Connected};

use crate::config::{Config, Tls};

/// First descriptor a supervisor passes.
const FIRST_PASSED: i32 = 3;

/// A socket that is listened on.
pub enum Listener {
    /// With the path to remove at the end.
    Unix(UnixListener, Option<PathBuf>),
    /// TCP, with TLS unless it is a loopback address that may do without.
    Tcp(TcpListener, bool),
}

impl Listener {
    /// Opens `address`.
    pub async fn open(address: &str, config: &Config) -> anyhow::Result<Self> {
        let (scheme, rest) = address.split_once("://").with_context(|| {
            format!("address {address:?} is not unix://PATH, tcp://HOST:PORT or fd://")
        })?;
        match scheme {
            "unix" => Self::unix(Path::new(rest), config.socket_owner),
            "tcp" => Self::tcp(rest, config).await,
            "fd" => passed(),
            other => bail!("address {address:?}: {other} is not supported; use unix, tcp or fd"),
        }
        .with_context(|| format!("listen on {address}"))
    }

    fn unix(path: &Path, owner: (u32, u32)) -> anyhow::Result<Self> {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)
                .with_context(|| format!("create folder {}", folder.display()))?;
        }
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).context("remove the socket of an earlier daemon");
            }
            _ => {}
        }
        let listener = UnixListener::bind(path)?;
        std::os::unix::fs::chown(path, Some(owner.0), Some(owner.1))
            .context("set the socket's owner")?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))
            .context("set the socket's mode")?;
        Ok(Self::Unix(listener, Some(path.to_owned())))
    }

    async fn tcp(address: &str, config: &Config) -> anyhow::Result<Self> {
        let secure = config.tls.is_some();
        if !secure {
            let all_local = address.to_socket_addrs()?.all(|address| address.ip().is_loopback());
            if !(config.allow_plain_loopback && all_local) {
                bail!(
                    "TCP needs --tlscert, --tlskey and --tlscacert \
                     (or --allow-plain-loopback on a loopback address)"
                );
            }
        } else if config.tls.as_ref().is_some_and(|tls| tls.ca.is_none()) {
            bail!("TCP needs --tlscacert too: clients must show a certificate");
        }
        Ok(Self::Tcp(TcpListener::bind(address).await?, secure))
    }
}

fn passed() -> anyhow::Result<Listener> {
    let for_us = std::env::var("LISTEN_PID").ok().and_then(|pid| pid.parse::<u32>().ok());
    if for_us != Some(std::process::id()) || std::env::var("LISTEN_FDS").is_err() {
        bail!("no socket was passed to this process");
    }
    // SAFETY: the supervisor says that this descriptor is ours, and nobody else takes it.
    let listener = unsafe { std::os::unix::net::UnixListener::from_raw_fd(FIRST_PASSED) };
    listener.set_nonblocking(true)?;
    Ok(Listener::Unix(UnixListener::from_std(listener)?, None))
}

/// TLS as tonic wants it; clients must show a certificate of the authority.
pub fn tls_config(tls: &Tls) -> anyhow::Result<ServerTlsConfig> {
    let read =
        |path: &Path| std::fs::read(path).with_context(|| format!("read {}", path.display()));
    let identity = Identity::from_pem(read(&tls.cert)?, read(&tls.key)?);
    let config = ServerTlsConfig::new().identity(identity);
    Ok(match &tls.ca {
        Some(ca) => config.client_ca_root(Certificate::from_pem(read(ca)?)),
        None => config,
    })
}

/// A connection of either kind.
pub enum Connection {
    /// Unix.
    Unix(UnixStream),
    /// TCP.
    Tcp(TcpStream),
}

impl Connected for Connection {
    // Nobody asks who is on the other end: what counts is the certificate, checked before.
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for Connection {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut TaskContext<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        match self.get_mut() {
            Self::Unix(stream) => Pin::new(stream).poll_read(context, buffer),
            Self::Tcp(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut TaskContext<'_>,
        data: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        match self.get_mut() {
            Self::Unix(stream) => Pin::new(stream).poll_write(context, data),
            Self::Tcp(stream) => Pin::new(stream).poll_write(context, data),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut TaskContext<'_>,
        data: &[std::io::IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        match self.get_mut() {
            Self::Unix(stream) => Pin::new(stream).poll_write_vectored(context, data),
            Self::Tcp(stream) => Pin::new(stream).poll_write_vectored(context, data),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(
        self: Pin<&mut Self>,
        context: &mut TaskContext<'_>,
    ) -> Poll<std::io::Result<()>> {
        match self.get_mut() {
            Self::Unix(stream) => Pin::new(stream).poll_flush(context),
            Self::Tcp(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(
        self: Pin<&mut Self>,
        context: &mut TaskContext<'_>,
    ) -> Poll<std::io::Result<()>> {
        match self.get_mut() {
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(context),
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}
