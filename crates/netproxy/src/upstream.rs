//! The proxy's own connections, made where the step's would have been.

use std::{
    future::Future,
    io,
    net::{IpAddr, SocketAddr},
    os::fd::OwnedFd,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use executor::net::Outlet;
use http::Uri;
use hyper::body::Incoming;
use hyper_rustls::HttpsConnector;
use hyper_util::{
    client::legacy::Client,
    rt::{TokioExecutor, TokioIo, TokioTimer},
};
use rustix::net::{AddressFamily, SocketFlags, SocketType, ipproto};
use rustls::ClientConfig;
use rustls_platform_verifier::BuilderVerifierExt as _;
use tokio::net::{TcpSocket, TcpStream};

/// Longest wait for one address of a host.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
/// Connections that nobody uses end.
const IDLE: Duration = Duration::from_secs(60);
/// Connections to one host that are kept for further requests.
const MOST_IDLE: usize = 16;

pub(crate) type Upstream = Client<HttpsConnector<Connector>, Incoming>;

/// Trust in servers: that of the machine.
pub(crate) fn trust() -> Result<ClientConfig, rustls::Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_platform_verifier()?;
    Ok(config.with_no_client_auth())
}

/// A client with connections of its own, made in `outlet`, or on the host.
pub(crate) fn client(outlet: Option<Arc<Outlet>>, trust: ClientConfig) -> Upstream {
    let connector = hyper_rustls::HttpsConnectorBuilder::new()
        .with_tls_config(trust)
        .https_or_http()
        .enable_http1()
        .wrap_connector(Connector { outlet });
    Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(IDLE)
        .pool_max_idle_per_host(MOST_IDLE)
        .set_host(true)
        .build(connector)
}

/// Makes connections.
#[derive(Clone)]
pub(crate) struct Connector {
    outlet: Option<Arc<Outlet>>,
}

impl Connector {
    async fn connect(self, uri: Uri) -> io::Result<TokioIo<TcpStream>> {
        let host = uri.host().unwrap_or_default();
        let usual = if uri.scheme_str() == Some("https") { 443 } else { 80 };
        let port = uri.port_u16().unwrap_or(usual);
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        // Names mean what they mean to the daemon.
        let addresses: Vec<SocketAddr> = match bare.parse::<IpAddr>() {
            Ok(address) => vec![(address, port).into()],
            Err(_) => {
                let found = tokio::net::lookup_host((bare, port)).await;
                let failed = |error| io::Error::other(format!("look up {bare}: {error}"));
                found.map_err(failed)?.collect()
            }
        };
        let mut last = io::Error::other(format!("{bare} has no address"));
        for address in addresses {
            let connect = async { self.socket(address).await?.connect(address).await };
            let failed = |error| io::Error::other(format!("connect to {address}: {error}"));
            match tokio::time::timeout(CONNECT_TIMEOUT, connect).await {
                Ok(Ok(stream)) => {
                    stream.set_nodelay(true)?;
                    return Ok(TokioIo::new(stream));
                }
                Ok(Err(error)) => last = failed(error),
                Err(elapsed) => last = failed(elapsed.into()),
            }
        }
        Err(last)
    }

    async fn socket(&self, address: SocketAddr) -> io::Result<TcpSocket> {
        let make = move || -> io::Result<OwnedFd> {
            let family = match address {
                SocketAddr::V4(_) => AddressFamily::INET,
                SocketAddr::V6(_) => AddressFamily::INET6,
            };
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let tcp = Some(ipproto::TCP);
            Ok(rustix::net::socket_with(family, SocketType::STREAM, flags, tcp)?)
        };
        let socket = match &self.outlet {
            None => make()?,
            Some(outlet) => outlet.network().inside(make).await?,
        };
        Ok(TcpSocket::from_std_stream(socket.into()))
    }
}

impl tower::Service<Uri> for Connector {
    type Response = TokioIo<TcpStream>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        Box::pin(self.clone().connect(uri))
    }
}
