//! Network namespaces seen from the daemon, whose own is never touched.
//!
//! A container with [`Network::Isolated`](crate::Network) or `None` has its own network namespace.
//! A socket belongs to the namespace its thread was in when it was made, so [`NetNs::connect`] makes
//! it on a thread that enters the namespace and ends there. [`PortProxy`] copies bytes between a
//! listener on the host and such sockets; for UDP, each client of the host's socket has one.
//! [`NetNs::create`] makes a namespace in the same way; it lives as long as somebody holds it.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream as StdStream, UdpSocket as StdSocket},
    os::fd::{AsFd as _, OwnedFd},
    sync::Arc,
    time::Duration,
};

use tokio::net::{TcpListener, TcpStream, UdpSocket};

use crate::{
    ExecError,
    child::{
        loopback_up,
        network::{self, Netlink},
    },
    native::Address,
    sys,
    wire::Link,
};

/// A client that gets no answers for so long is forgotten.
const UDP_IDLE: Duration = Duration::from_secs(90);
/// Most clients of one UDP port at once; what further ones send is lost.
const MAX_CLIENTS: usize = 1024;
/// No datagram is longer.
const MAX_DATAGRAM: usize = 64 << 10;
/// Pause after an error of a listener.
const PAUSE: Duration = Duration::from_millis(100);

/// A network namespace: a running process's, or one made for containers to be put in.
#[derive(Debug, Clone)]
pub struct NetNs {
    /// Refers to the process, or to the namespace itself.
    fd: Arc<OwnedFd>,
}

/// A network like that of containers with [`Network::Isolated`](crate::Network), for the daemon's
/// own connections. What connects it to the host ends with it.
#[derive(Debug)]
pub struct Outlet {
    network: NetNs,
    _address: Option<Address>,
}

impl Outlet {
    pub(crate) fn new(network: NetNs, address: Option<Address>) -> Self {
        Self { network, _address: address }
    }

    /// One that leads nowhere.
    pub async fn closed() -> Result<Self, ExecError> {
        let network = NetNs::create().await;
        let network = network.map_err(|error| ExecError::setup("make a network", error))?;
        Ok(Self::new(network, None))
    }

    /// Where to make sockets.
    pub fn network(&self) -> &NetNs {
        &self.network
    }
}

/// A container's place in its network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Endpoint {
    /// Its own address.
    pub address: Ipv4Addr,
    /// Who passes its packets on.
    pub gateway: Option<Ipv4Addr>,
}

/// The gateway of the default route in the kernel's table.
fn gateway(routes: &str) -> Option<Ipv4Addr> {
    routes.lines().skip(1).find_map(|line| {
        let mut fields = line.split_whitespace().skip(1);
        let (target, gateway) = (fields.next()?, fields.next()?);
        let number = u32::from_str_radix(gateway, 16).ok().filter(|number| *number != 0)?;
        (target == "00000000").then(|| Ipv4Addr::from(number.to_ne_bytes()))
    })
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
        Self { fd: pidfd }
    }

    /// A new one, in which only the loopback interface is up.
    pub async fn create() -> io::Result<Self> {
        Self::create_with(None).await
    }

    /// A new one, connected to the daemon's.
    pub(crate) async fn create_with(link: Option<Link>) -> io::Result<Self> {
        let fd = elsewhere(move || {
            let outside = Netlink::open()?;
            sys::unshare(libc::CLONE_NEWNET)?;
            loopback_up()?;
            if let Some(link) = &link {
                network::connect(&outside, link)?;
            }
            network::own_namespace()
        });
        Ok(Self { fd: Arc::new(fd.await?) })
    }

    pub(crate) fn fd(&self) -> &OwnedFd {
        &self.fd
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

    /// Where its packets to the world come from, and over whom they go; `None` if no way leads out.
    pub async fn endpoint(&self) -> io::Result<Option<Endpoint>> {
        self.inside(|| {
            let socket = StdSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
            // Nothing is sent: the kernel only chooses a route to an address nobody has.
            if socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9)).is_err() {
                return Ok(None);
            }
            let IpAddr::V4(address) = socket.local_addr()?.ip() else { return Ok(None) };
            let routes = std::fs::read_to_string("/proc/thread-self/net/route")?;
            Ok(Some(Endpoint { address, gateway: gateway(&routes) }))
        })
        .await
    }

    /// Makes something, such as a socket, in this namespace.
    pub async fn inside<T: Send + 'static>(
        &self,
        make: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let fd = self.fd.clone();
        elsewhere(move || {
            sys::setns(fd.as_fd(), libc::CLONE_NEWNET)?;
            make()
        })
        .await
    }
}

/// Runs `make` on a thread that may change its namespaces. Not one of the runtime's pool: it must
/// not be used again.
async fn elsewhere<T: Send + 'static>(
    make: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let (answer, made) = tokio::sync::oneshot::channel();
    std::thread::Builder::new()
        .name("connect-netns".to_owned())
        .spawn(move || _ = answer.send(make()))?;
    made.await.map_err(|_| io::Error::other("connecting thread panicked"))?
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
