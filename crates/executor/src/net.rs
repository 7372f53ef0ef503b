//! Reaching into the network of a container from the host, without touching the host's own.
//!
//! A container with [`Network::Isolated`](crate::Network) or `None` has its own network namespace.
//! A socket belongs to the namespace its thread was in when it was made, so [`NetNs::connect`] makes
//! it on a thread that enters the namespace and ends there. [`PortProxy`] copies bytes between a
//! listener on the host and such sockets.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream as StdStream},
    os::fd::{AsFd as _, OwnedFd},
    sync::Arc,
};

use tokio::net::{TcpListener, TcpStream};

/// The network namespace of a running process.
#[derive(Debug, Clone)]
pub struct NetNs {
    pidfd: Arc<OwnedFd>,
}

/// Why a port could not be published.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// Another program listens there.
    #[error("address {0} is already in use")]
    AddressInUse(SocketAddr),
    /// Anything else.
    #[error("listen on {address}: {source}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why not.
        source: io::Error,
    },
}

impl NetNs {
    /// The namespace of the process that `pidfd` refers to.
    pub fn of(pidfd: Arc<OwnedFd>) -> Self {
        Self { pidfd }
    }

    /// Connects to a port on the container's loopback interface, IPv4 first.
    pub async fn connect(&self, port: u16) -> io::Result<TcpStream> {
        let pidfd = self.pidfd.clone();
        let (answer, connected) = tokio::sync::oneshot::channel();
        // Not from the runtime's pool: a thread that changed its namespace must not be used again.
        std::thread::Builder::new().name("connect-netns".to_owned()).spawn(move || {
            let connect = || -> io::Result<StdStream> {
                enter(&pidfd)?;
                let v4 = StdStream::connect((IpAddr::from(Ipv4Addr::LOCALHOST), port));
                let stream = v4.or_else(|error| {
                    StdStream::connect((IpAddr::from(Ipv6Addr::LOCALHOST), port)).map_err(|_| error)
                })?;
                stream.set_nonblocking(true)?;
                Ok(stream)
            };
            _ = answer.send(connect());
        })?;
        let stream =
            connected.await.map_err(|_| io::Error::other("connecting thread panicked"))??;
        TcpStream::from_std(stream)
    }
}

fn enter(pidfd: &OwnedFd) -> io::Result<()> {
    use std::os::fd::AsRawFd as _;
    // SAFETY: plain system call on a descriptor we own; only this thread changes.
    match unsafe { libc::setns(pidfd.as_fd().as_raw_fd(), libc::CLONE_NEWNET) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Listens on an address of the host and passes connections to a port of a container. Stops, and
/// cuts its connections, when dropped.
#[derive(Debug)]
pub struct PortProxy {
    address: SocketAddr,
    task: tokio::task::JoinHandle<()>,
}

impl PortProxy {
    /// Starts listening. Port 0 of `address` picks a free one.
    pub async fn start(
        address: SocketAddr,
        network: NetNs,
        container_port: u16,
    ) -> Result<Self, PublishError> {
        let listen = |source: io::Error| match source.kind() {
            io::ErrorKind::AddrInUse => PublishError::AddressInUse(address),
            _ => PublishError::Listen { address, source },
        };
        let listener = TcpListener::bind(address).await.map_err(listen)?;
        let address = listener.local_addr().map_err(listen)?;
        let task = tokio::spawn(serve(listener, network, container_port));
        Ok(Self { address, task })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for PortProxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(listener: TcpListener, network: NetNs, port: u16) {
    // Connections live in the set, so that they end with the task.
    let mut connections = tokio::task::JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((client, _)) => {
                    let network = network.clone();
                    connections.spawn(async move {
                        if let Err(error) = relay(client, &network, port).await {
                            tracing::debug!(port, %error, "connection into a container ended");
                        }
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "accept a connection for a container");
                    // Out of descriptors, most likely: do not spin.
                    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                }
            },
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
        }
    }
}

async fn relay(mut client: TcpStream, network: &NetNs, port: u16) -> io::Result<()> {
    let mut inner = network.connect(port).await?;
    tokio::io::copy_bidirectional(&mut client, &mut inner).await?;
    Ok(())
}
