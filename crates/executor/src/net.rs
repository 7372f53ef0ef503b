//! Reaching into the network of a container from the host, without touching the host's own.
//!
//! A container with [`Network::Isolated`](crate::Network) or `None` has its own network namespace.
//! A socket belongs to the namespace its thread was in when it was made, so [`NetNs::connect`] makes
//! it on a thread that enters the namespace and ends there. [`PortProxy`] copies bytes between a
//! listener on the host and such sockets; for UDP, each client of the host's socket has one.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream as StdStream, UdpSocket as StdSocket},
    os::fd::{AsFd as _, OwnedFd},
    sync::Arc,
    time::Duration,
};

use tokio::net::{TcpListener, TcpStream, UdpSocket};

/// A client that gets no answers for so long is forgotten.
const UDP_IDLE: Duration = Duration::from_secs(90);
/// Most clients of one UDP port at once; what further ones send is lost.
const MAX_CLIENTS: usize = 1024;
/// No datagram is longer.
const MAX_DATAGRAM: usize = 64 << 10;
/// Pause after an error of a listener.
const PAUSE: Duration = Duration::from_millis(100);

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
        let connect = move || {
            let v4 = StdStream::connect((IpAddr::from(Ipv4Addr::LOCALHOST), port));
            let stream = v4.or_else(|error| {
                StdStream::connect((IpAddr::from(Ipv6Addr::LOCALHOST), port)).map_err(|_| error)
            })?;
            stream.set_nonblocking(true)?;
            Ok(stream)
        };
        TcpStream::from_std(self.inside(connect).await?)
    }

    /// A UDP socket that talks to a port on the container's loopback interface.
    pub async fn datagrams(&self, port: u16) -> io::Result<UdpSocket> {
        let connect = move || {
            let socket = StdSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
            socket.connect((Ipv4Addr::LOCALHOST, port))?;
            socket.set_nonblocking(true)?;
            Ok(socket)
        };
        UdpSocket::from_std(self.inside(connect).await?)
    }

    async fn inside<T: Send + 'static>(
        &self,
        make: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let pidfd = self.pidfd.clone();
        let (answer, made) = tokio::sync::oneshot::channel();
        // Not from the runtime's pool: a thread that changed its namespace must not be used again.
        std::thread::Builder::new()
            .name("connect-netns".to_owned())
            .spawn(move || _ = answer.send(enter(&pidfd).and_then(|()| make())))?;
        made.await.map_err(|_| io::Error::other("connecting thread panicked"))?
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

impl PublishError {
    fn listen(address: SocketAddr, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::AddrInUse => Self::AddressInUse(address),
            _ => Self::Listen { address, source },
        }
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
        let listen = |source| PublishError::listen(address, source);
        let listener = TcpListener::bind(address).await.map_err(listen)?;
        let address = listener.local_addr().map_err(listen)?;
        let task = tokio::spawn(serve(listener, network, container_port));
        Ok(Self { address, task })
    }

    /// Like [`PortProxy::start`], for datagrams.
    pub async fn start_udp(
        address: SocketAddr,
        network: NetNs,
        container_port: u16,
    ) -> Result<Self, PublishError> {
        let listen = |source| PublishError::listen(address, source);
        let socket = UdpSocket::bind(address).await.map_err(listen)?;
        let address = socket.local_addr().map_err(listen)?;
        let task = tokio::spawn(serve_udp(socket, network, container_port));
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
                    tokio::time::sleep(PAUSE).await;
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

async fn serve_udp(socket: UdpSocket, network: NetNs, port: u16) {
    let socket = Arc::new(socket);
    let mut clients: HashMap<SocketAddr, Arc<UdpSocket>> = HashMap::new();
    // Answers live in the set, so that they end with the task.
    let mut answering = tokio::task::JoinSet::new();
    let mut buffer = vec![0; MAX_DATAGRAM];
    loop {
        tokio::select! {
            received = socket.recv_from(&mut buffer) => {
                let (size, client) = match received {
                    Ok(received) => received,
                    Err(error) => {
                        tracing::debug!(port, %error, "receive a datagram for a container");
                        tokio::time::sleep(PAUSE).await;
                        continue;
                    }
                };
                let inner = match clients.get(&client) {
                    Some(inner) => inner.clone(),
                    None if clients.len() >= MAX_CLIENTS => continue,
                    None => match network.datagrams(port).await {
                        Ok(inner) => {
                            let inner = Arc::new(inner);
                            clients.insert(client, inner.clone());
                            answering.spawn(answer(socket.clone(), inner.clone(), client));
                            inner
                        }
                        Err(error) => {
                            tracing::debug!(port, %error, "reach into a container");
                            continue;
                        }
                    },
                };
                // Datagrams may get lost; whoever sent it knows.
                _ = inner.send(&buffer[..size]).await;
            }
            Some(ended) = answering.join_next(), if !answering.is_empty() => {
                if let Ok(client) = ended {
                    clients.remove(&client);
                }
            }
        }
    }
}

/// Passes what comes back to a client until nothing comes any more.
async fn answer(outer: Arc<UdpSocket>, inner: Arc<UdpSocket>, client: SocketAddr) -> SocketAddr {
    let mut buffer = vec![0; MAX_DATAGRAM];
    while let Ok(Ok(size)) = tokio::time::timeout(UDP_IDLE, inner.recv(&mut buffer)).await {
        if outer.send_to(&buffer[..size], client).await.is_err() {
            break;
        }
    }
    client
}
