//! The recording proxy: the only way out of a step that has a network.
//!
//! [`Provider::attach`] makes a network namespace with nothing but a loopback interface, listens
//! there, and describes the step's container accordingly: it joins that namespace, finds the proxy in
//! its environment and the proxy's certificate authority among those it trusts. What the step asks for
//! over http, or https, which ends here and begins again, passes the build's source policy and is
//! noted with its digest while it streams through. [`Attached::finish`] ends all of that and
//! gives the [`Record`].
//!
//! Connections to the outside are made where the step itself would have made them: on the host, or in
//! a network such as isolated containers have. Invariant: whatever becomes of the step, its sockets,
//! tasks and namespaces are gone with its [`Attached`].

use std::{
    io,
    net::{Ipv4Addr, SocketAddr, TcpListener as StdListener},
    sync::{Arc, OnceLock},
};

use async_trait::async_trait;
use executor::{ExecError, Executor, Network, Spec, net::NetNs};
use tokio::net::TcpListener;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

mod authority;
mod body;
mod record;
mod serve;
mod trust;
mod upstream;

use authority::Authority;
use record::Recorder;
use trust::Trust;

pub use record::{Incomplete, Material, Record, Request};

/// Decides about requests of a step.
#[async_trait]
pub trait Policy: Send + Sync {
    /// What becomes of a request for `url`. An error says why it is refused.
    async fn check(&self, url: &str) -> Result<Verdict, String>;
}

/// What a [`Policy`] says of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It may pass.
    Allow,
    /// Another address takes its place; possible for GET.
    Convert {
        /// The other address.
        url: String,
        /// It comes with attributes, which a request cannot have.
        has_attributes: bool,
    },
}

/// Why a step cannot be put behind a proxy.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    /// The step's network or the way out could not be made.
    #[error("make a network for the proxy: {0}")]
    Network(#[from] ExecError),
    /// Nobody can listen in the step's network.
    #[error("listen in the network of a step: {0}")]
    Listen(io::Error),
    /// The certificate authority, or the trust in others, could not be made.
    #[error("make certificates for the proxy: {0}")]
    Certificates(String),
    /// The step's trusted certificates cannot be completed.
    #[error("add the proxy's certificate to {path}: {source}")]
    Trust {
        /// The file of the step.
        path: &'static str,
        /// What happened.
        source: io::Error,
    },
}

/// Makes proxies; one for a daemon, whose steps all trust its certificate authority.
pub struct Provider {
    executor: Arc<dyn Executor>,
    /// Made when first needed.
    certificates: OnceLock<Result<Certificates, String>>,
}

/// What proxies share.
#[derive(Clone)]
struct Certificates {
    authority: Arc<Authority>,
    /// How servers are verified.
    upstream: rustls::ClientConfig,
}

/// A running proxy and the step that it belongs to.
pub struct Attached {
    stop: CancellationToken,
    tasks: TaskTracker,
    recorder: Arc<Recorder>,
    trust: Option<Trust>,
}

impl Provider {
    /// Proxies for containers of this executor.
    pub fn new(executor: Arc<dyn Executor>) -> Self {
        Self { executor, certificates: OnceLock::new() }
    }

    fn certificates(&self) -> Result<Certificates, ProxyError> {
        let make = || {
            let authority = Authority::generate().map_err(|error| error.to_string())?;
            let upstream = upstream::trust().map_err(|error| error.to_string())?;
            Ok(Certificates { authority: Arc::new(authority), upstream })
        };
        self.certificates.get_or_init(make).clone().map_err(ProxyError::Certificates)
    }

    /// Puts a container that is about to be made behind a proxy of its own. The way out is that of
    /// `spec.network`.
    pub async fn attach(
        &self,
        spec: &mut Spec,
        policy: Option<Arc<dyn Policy>>,
    ) -> Result<Attached, ProxyError> {
        let Certificates { authority, upstream } = self.certificates()?;
        let outlet = match spec.network {
            Network::Host => None,
            Network::Isolated => Some(self.executor.outlet().await?),
            Network::None => Some(executor::net::Outlet::closed().await?),
        };
        let network = NetNs::create().await.map_err(ProxyError::Listen)?;
        let (listener, address) = listen(&network).await.map_err(ProxyError::Listen)?;
        let root = spec.root.tree.clone();
        let trusted = authority.clone();
        let trust = tokio::task::spawn_blocking(move || Trust::add(root, trusted.pem()));
        let trust = trust.await.map_err(|error| ProxyError::Trust {
            path: "the step's files",
            source: io::Error::other(error),
        })??;
        let attached = Attached {
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
            recorder: Arc::default(),
            trust,
        };
        let shared = serve::Shared {
            client: upstream::client(outlet.map(Arc::new), upstream),
            authority,
            policy,
            recorder: attached.recorder.clone(),
            stop: attached.stop.clone(),
            tasks: attached.tasks.clone(),
        };
        attached.tasks.spawn(serve::listen(listener, Arc::new(shared)));
        spec.namespace = Some(network);
        spec.process.env.extend(environment(address));
        Ok(attached)
    }
}

/// The variables by which programs find a proxy.
fn environment(address: SocketAddr) -> impl Iterator<Item = String> {
    let proxy = format!("http://{address}");
    let none = "127.0.0.1,localhost,::1".to_owned();
    [
        ("HTTP_PROXY", &proxy),
        ("HTTPS_PROXY", &proxy),
        ("http_proxy", &proxy),
        ("https_proxy", &proxy),
        ("NO_PROXY", &none),
        ("no_proxy", &none),
    ]
    .map(|(name, value)| format!("{name}={value}"))
    .into_iter()
}

async fn listen(network: &NetNs) -> io::Result<(TcpListener, SocketAddr)> {
    let listener = network.inside(|| {
        let listener = StdListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    });
    let listener = TcpListener::from_std(listener.await?)?;
    let address = listener.local_addr()?;
    Ok((listener, address))
}

impl Attached {
    /// Ends the proxy after the container, and takes back what it changed in the container's files.
    /// Gives what was asked for meanwhile.
    pub async fn finish(mut self) -> Record {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        let trust = self.trust.take();
        // It shows only in what the step leaves behind, which the step could have written as well.
        _ = tokio::task::spawn_blocking(move || drop(trust)).await;
        self.recorder.take()
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}
