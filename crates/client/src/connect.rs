//! A connection to a daemon.
//!
//! One HTTP/2 connection carries every call; it is opened lazily by tonic and probed once in
//! [`Client::connect`], so that an absent daemon is reported as such and not as a failed build.

use std::{io, path::PathBuf, time::Duration};

use hyper_util::rt::TokioIo;
use proto::{
    containerd::services::content::v1::content_client::ContentClient,
    control::{InfoRequest, control_client::ControlClient},
    frontend::llb_bridge_client::LlbBridgeClient,
    rbuild::v1::{
        containers_client::ContainersClient, images_client::ImagesClient,
        registries_client::RegistriesClient, storage_client::StorageClient,
        volumes_client::VolumesClient,
    },
};
use tonic::{
    Code, Request, Status,
    metadata::{Ascii, MetadataValue},
    service::interceptor::InterceptedService,
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity},
};

use crate::{address::Address, error::ClientError};

/// Largest message either way.
pub const MESSAGE_LIMIT: usize = 16 << 20;
/// Flow-control windows; HTTP/2's default of 64 KiB makes file transfer crawl.
const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;

/// Files for mutual TLS over TCP.
#[derive(Debug, Clone, Default)]
pub struct TlsFiles {
    /// Name the server's certificate must carry, if not the host of the address.
    pub server_name: Option<String>,
    /// Authority that signed the server's certificate.
    pub ca: Option<PathBuf>,
    /// Our certificate.
    pub cert: Option<PathBuf>,
    /// Our key.
    pub key: Option<PathBuf>,
}

impl TlsFiles {
    /// Whether any file was named; without one TCP is plain.
    pub fn is_empty(&self) -> bool {
        self.ca.is_none() && self.cert.is_none() && self.key.is_none()
    }
}

/// How to reach a daemon.
#[derive(Debug, Clone)]
pub struct ConnectOptions {
    /// Where it listens.
    pub address: Address,
    /// TLS, for TCP.
    pub tls: TlsFiles,
    /// How long to wait for the connection.
    pub timeout: Duration,
}

impl ConnectOptions {
    /// Plain connection to `address`, waiting five seconds.
    pub fn new(address: Address) -> Self {
        Self { address, tls: TlsFiles::default(), timeout: Duration::from_secs(5) }
    }
}

/// Tags every call of a client-side frontend with its build.
#[derive(Clone)]
pub struct BuildId(MetadataValue<Ascii>);

impl tonic::service::Interceptor for BuildId {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert("buildkit-controlapi-buildid", self.0.clone());
        Ok(request)
    }
}

/// The bridge of one build.
pub type Bridge = LlbBridgeClient<InterceptedService<Channel, BuildId>>;

/// A daemon that answers.
#[derive(Clone, Debug)]
pub struct Client {
    channel: Channel,
    address: Address,
}

impl Client {
    /// Opens the connection and checks that the other end speaks the protocol.
    pub async fn connect(options: &ConnectOptions) -> Result<Self, ClientError> {
        let connect =
            |why: String| ClientError::Connect { address: options.address.to_string(), why };
        let channel = open(options).await?;
        let client = Self { channel, address: options.address.clone() };
        let probe = client.control().info(InfoRequest {}).await;
        match probe {
            Ok(_) => Ok(client),
            // Daemons before `Info` exist; one that refuses us says so in the call that matters.
            Err(status) if status.code() == Code::Unimplemented => Ok(client),
            Err(status) => Err(connect(root_cause(&status))),
        }
    }

    /// Where the daemon listens.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// The raw channel, for services this crate does not wrap.
    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// Builds, status, sessions, workers, disk usage, history.
    pub fn control(&self) -> ControlClient<Channel> {
        ControlClient::new(self.channel())
            .max_decoding_message_size(MESSAGE_LIMIT)
            .max_encoding_message_size(MESSAGE_LIMIT)
    }

    /// The frontend's side of the build `build`.
    pub fn bridge(&self, build: &str) -> Result<Bridge, ClientError> {
        let value =
            build.parse().map_err(|_| ClientError::Invalid(format!("invalid ref `{build}`")))?;
        Ok(LlbBridgeClient::with_interceptor(self.channel(), BuildId(value))
            .max_decoding_message_size(MESSAGE_LIMIT)
            .max_encoding_message_size(MESSAGE_LIMIT))
    }

    /// The daemon's content store, read-only.
    pub fn content(&self) -> ContentClient<Channel> {
        ContentClient::new(self.channel())
            .max_decoding_message_size(MESSAGE_LIMIT)
            .max_encoding_message_size(MESSAGE_LIMIT)
    }

    /// rbuild's image store.
    pub fn images(&self) -> ImagesClient<Channel> {
        ImagesClient::new(self.channel()).max_decoding_message_size(MESSAGE_LIMIT)
    }

    /// rbuild's state folder.
    pub fn storage(&self) -> StorageClient<Channel> {
        StorageClient::new(self.channel()).max_decoding_message_size(MESSAGE_LIMIT)
    }

    /// Registries as the daemon reaches them.
    pub fn registries(&self) -> RegistriesClient<Channel> {
        RegistriesClient::new(self.channel())
            .max_decoding_message_size(MESSAGE_LIMIT)
            .max_encoding_message_size(MESSAGE_LIMIT)
    }

    /// rbuild's named volumes.
    pub fn volumes(&self) -> VolumesClient<Channel> {
        VolumesClient::new(self.channel())
    }

    /// rbuild's containers.
    pub fn containers(&self) -> ContainersClient<Channel> {
        ContainersClient::new(self.channel()).max_decoding_message_size(MESSAGE_LIMIT)
    }
}

async fn open(options: &ConnectOptions) -> Result<Channel, ClientError> {
    let fail = |error: tonic::transport::Error| {
        let mut why = error.to_string();
        let mut cause = std::error::Error::source(&error);
        while let Some(inner) = cause {
            why = inner.to_string();
            cause = inner.source();
        }
        ClientError::Connect { address: options.address.to_string(), why }
    };
    let endpoint = |uri: String| -> Result<Endpoint, ClientError> {
        Endpoint::from_shared(uri)
            .map_err(fail)?
            .connect_timeout(options.timeout)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .tcp_nodelay(true)
            .user_agent(concat!("rbuild/", env!("CARGO_PKG_VERSION")))
            .map_err(fail)
    };
    match &options.address {
        Address::Unix(path) => {
            let path = path.clone();
            let connector = tower::service_fn(move |_| {
                let path = path.clone();
                async move {
                    Ok::<_, io::Error>(TokioIo::new(tokio::net::UnixStream::connect(path).await?))
                }
            });
            endpoint("http://localhost".into())?
                .connect_with_connector(connector)
                .await
                .map_err(fail)
        }
        Address::Command { args, .. } => {
            let args = args.clone();
            let connector = tower::service_fn(move |_| {
                let args = args.clone();
                async move { Ok::<_, io::Error>(TokioIo::new(pipe_to(&args)?)) }
            });
            endpoint("http://localhost".into())?
                .connect_with_connector(connector)
                .await
                .map_err(fail)
        }
        Address::Tcp { host, port } => {
            let host_text = if host.contains(':') { format!("[{host}]") } else { host.clone() };
            if options.tls.is_empty() {
                return endpoint(format!("http://{host_text}:{port}"))?
                    .connect()
                    .await
                    .map_err(fail);
            }
            let tls = tls_config(&options.tls, host)?;
            endpoint(format!("https://{host_text}:{port}"))?
                .tls_config(tls)
                .map_err(fail)?
                .connect()
                .await
                .map_err(fail)
        }
    }
}

fn tls_config(files: &TlsFiles, host: &str) -> Result<ClientTlsConfig, ClientError> {
    let read = |path: &PathBuf| {
        std::fs::read(path).map_err(|source| ClientError::Tls { path: path.clone(), source })
    };
    let name = files.server_name.clone().unwrap_or_else(|| host.to_owned());
    let mut config = ClientTlsConfig::new().domain_name(name);
    match &files.ca {
        Some(ca) => config = config.ca_certificate(Certificate::from_pem(read(ca)?)),
        None => {
            return Err(ClientError::Invalid(
                "TLS needs the authority's certificate: name it with --tlscacert".into(),
            ));
        }
    }
    match (&files.cert, &files.key) {
        (Some(cert), Some(key)) => {
            config = config.identity(Identity::from_pem(read(cert)?, read(key)?));
        }
        (None, None) => {}
        _ => {
            return Err(ClientError::Invalid(
                "a client certificate needs both --tlscert and --tlskey".into(),
            ));
        }
    }
    Ok(config)
}

/// The command's standard streams as one connection; it ends with the connection.
fn pipe_to(
    args: &[String],
) -> io::Result<tokio::io::Join<tokio::process::ChildStdout, tokio::process::ChildStdin>> {
    let mut child = tokio::process::Command::new(&args[0])
        .args(&args[1..])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| {
            io::Error::new(error.kind(), format!("cannot run {}: {error}", args[0]))
        })?;
    let input = child.stdin.take().expect("standard input is piped");
    let output = child.stdout.take().expect("standard output is piped");
    tokio::spawn(async move { child.wait().await });
    Ok(tokio::io::join(output, input))
}

/// The innermost message of a transport failure.
fn root_cause(status: &Status) -> String {
    let mut why = status.message().to_owned();
    let mut cause = std::error::Error::source(status);
    while let Some(inner) = cause {
        why = inner.to_string();
        cause = inner.source();
    }
    why
}
