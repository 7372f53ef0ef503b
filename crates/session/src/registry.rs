//! The sessions that are open right now.
//!
//! A session is in the registry from the start of its RPC until the client half-closes, the stream
//! breaks or two health checks in a row fail; then every call in flight fails and the RPC ends with
//! success, because clients wait for that. The same id again replaces the entry.

use std::{
    collections::{BTreeSet, HashMap},
    io,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _, future::BoxFuture, stream::BoxStream};
use hyper_util::rt::TokioIo;
use proto::control::BytesMessage;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tonic::{
    Request, Response, Status, Streaming,
    metadata::MetadataMap,
    transport::{Channel, Endpoint},
};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use crate::{
    Group, Session, SessionError,
    session::Inner,
    tunnel::{QUEUE, Tunnel},
};

/// How long a look-up waits for a session that has not appeared yet; clients open the session and
/// ask for the build at the same time.
const LOOKUP_WAIT: Duration = Duration::from_secs(5);
/// Windows of the inner connection: wide enough that one transfer fills a fast link.
const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;

pub(crate) const KEY_ID: &str = "x-docker-expose-session-uuid";
pub(crate) const KEY_SHARED: &str = "x-docker-expose-session-sharedkey";
pub(crate) const KEY_METHOD: &str = "x-docker-expose-session-grpc-method";
const KEY_HEALTH: &str = "x-buildkit-session-health-custom-timeout";

/// What a client says when it opens a session.
#[derive(Debug, Clone, Default)]
pub struct SessionRequest {
    /// Opaque id, chosen by the client.
    pub id: String,
    /// Part of the key under which local files are kept between builds.
    pub shared_key: String,
    /// `/<service>/<Method>` of everything the client serves.
    pub methods: Vec<String>,
    /// Keep-alive rules.
    pub health: Health,
}

/// When a silent client counts as gone.
#[derive(Debug, Clone, Copy)]
pub struct Health {
    /// Pause between checks.
    pub interval: Duration,
    /// Least time a check may take; a slow previous check stretches it by half.
    pub timeout: Duration,
    /// Failures in a row that end the session.
    pub failures: u32,
}

impl Default for Health {
    fn default() -> Self {
        Self { interval: Duration::from_secs(5), timeout: Duration::from_secs(15), failures: 2 }
    }
}

impl SessionRequest {
    /// Reads the metadata of a Session RPC.
    pub fn from_metadata(metadata: &MetadataMap) -> Result<Self, Status> {
        let first =
            |key: &str| metadata.get(key).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let id = first(KEY_ID)
            .filter(|id| !id.is_empty())
            .ok_or_else(|| Status::invalid_argument(format!("session request has no {KEY_ID}")))?;
        let methods = metadata.get_all(KEY_METHOD).iter();
        let custom = first(KEY_HEALTH).and_then(|text| text.parse::<u64>().ok());
        let health = match custom {
            Some(millis) if millis > 0 => {
                let pause = Duration::from_millis(millis).max(Duration::from_secs(1));
                Health { interval: pause, timeout: pause, failures: 1 }
            }
            _ => Health::default(),
        };
        Ok(Self {
            id,
            shared_key: first(KEY_SHARED).unwrap_or_default(),
            methods: methods.filter_map(|value| Some(value.to_str().ok()?.to_owned())).collect(),
            health,
        })
    }
}

/// Registry of open sessions; clones share it.
#[derive(Clone, Default)]
pub struct Sessions {
    shared: Arc<Shared>,
}

struct Shared {
    open: Mutex<HashMap<String, Session>>,
    /// Bumped whenever a session appears.
    arrivals: watch::Sender<u64>,
}

impl Default for Shared {
    fn default() -> Self {
        Self { open: Mutex::default(), arrivals: watch::channel(0).0 }
    }
}

impl Sessions {
    /// No sessions yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// The session with this id, waiting up to five seconds for it to appear. Everything up to the
    /// first colon of `id` is ignored.
    pub async fn get(&self, id: &str) -> Result<Session, SessionError> {
        let id = strip_prefix(id);
        if id.is_empty() {
            return Err(SessionError::NoSessions);
        }
        let mut arrivals = self.shared.arrivals.subscribe();
        let appears = async {
            loop {
                arrivals.mark_unchanged();
                if let Some(session) = self.try_get(id) {
                    return session;
                }
                if arrivals.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        };
        tokio::time::timeout(LOOKUP_WAIT, appears)
            .await
            .map_err(|_| SessionError::NotFound { id: id.to_owned() })
    }

    /// The session with this id if it is open now.
    pub fn try_get(&self, id: &str) -> Option<Session> {
        self.shared.open.lock().expect("nobody panics here").get(strip_prefix(id)).cloned()
    }

    /// Ids of all open sessions, sorted.
    pub fn ids(&self) -> Vec<String> {
        let mut ids: Vec<String> =
            self.shared.open.lock().expect("nobody panics here").keys().cloned().collect();
        ids.sort();
        ids
    }

    /// A fixed list of sessions to try.
    pub fn group(&self, ids: impl IntoIterator<Item = impl Into<String>>) -> Group {
        let ids: Vec<String> = ids.into_iter().map(Into::into).collect();
        Group::new(self.clone(), Arc::new(move || ids.clone()))
    }

    /// A list of sessions that may grow: `ids` is asked each time the group is used.
    pub fn growing_group(&self, ids: Arc<dyn Fn() -> Vec<String> + Send + Sync>) -> Group {
        Group::new(self.clone(), ids)
    }

    /// Answers a Session RPC: registers the session and returns the stream to the client, which
    /// ends as soon as the session does.
    pub async fn serve_rpc(
        &self,
        request: Request<Streaming<BytesMessage>>,
    ) -> Result<Response<BoxStream<'static, Result<BytesMessage, Status>>>, Status> {
        let (metadata, _, incoming) = request.into_parts();
        let open = SessionRequest::from_metadata(&metadata)?;
        let (sender, receiver) = mpsc::channel(QUEUE);
        let bytes = incoming.map(|message| message.map(|message| message.data));
        let run = self.serve(open, bytes, sender).await;
        let outgoing = tokio_stream::wrappers::ReceiverStream::new(receiver)
            .map(|data| Ok(BytesMessage { data }));
        // The session lives inside the answer: dropping the RPC drops it, and its end ends the RPC.
        let ended = async move {
            if let Err(error) = run.await {
                tracing::debug!(%error, "session ended");
            }
        };
        Ok(Response::new(Box::pin(outgoing.take_until(Box::pin(ended)))))
    }

    /// Opens a session over a pair of byte message streams. It is registered when this returns; the
    /// returned future runs it until it ends.
    pub async fn serve(
        &self,
        request: SessionRequest,
        incoming: impl Stream<Item = Result<Bytes, Status>> + Send + 'static,
        outgoing: mpsc::Sender<Bytes>,
    ) -> BoxFuture<'static, Result<(), SessionError>> {
        let ended = CancellationToken::new();
        let incoming = incoming.map(|message| message.map_err(io::Error::other));
        let tunnel = Tunnel::new(incoming, outgoing, ended.clone());
        let id = request.id.clone();
        let channel = match channel(tunnel).await {
            Ok(channel) => channel,
            Err(error) => {
                let why = format!("cannot be spoken to: {error}");
                return Box::pin(async move { Err(SessionError::Broken { id, why }) });
            }
        };
        let session = Session(Arc::new(Inner {
            id: request.id,
            shared_key: request.shared_key,
            methods: request.methods.iter().map(|m| m.to_lowercase()).collect::<BTreeSet<_>>(),
            channel,
            settled: CancellationToken::new(),
            ended: ended.clone(),
        }));
        let entry = Entry::insert(self.shared.clone(), session.clone());
        Box::pin(async move {
            let _entry = entry;
            tokio::select! {
                () = ended.cancelled() => Ok(()),
                why = keep_alive(&session, request.health) => {
                    Err(SessionError::Broken { id, why })
                }
            }
        })
    }
}

fn strip_prefix(id: &str) -> &str {
    id.split_once(':').map_or(id, |(_, rest)| rest)
}

/// A registration, taken back on drop; dropping also ends the session's calls.
struct Entry {
    shared: Arc<Shared>,
    session: Session,
}

impl Entry {
    fn insert(shared: Arc<Shared>, session: Session) -> Self {
        let id = session.id().to_owned();
        shared.open.lock().expect("nobody panics here").insert(id, session.clone());
        shared.arrivals.send_modify(|count| *count += 1);
        Self { shared, session }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.session.0.ended.cancel();
        let mut open = self.shared.open.lock().expect("nobody panics here");
        // A newer session may have taken the id over.
        if open.get(self.session.id()).is_some_and(|now| Arc::ptr_eq(&now.0, &self.session.0)) {
            open.remove(self.session.id());
        }
    }
}

/// A channel whose only connection is `tunnel`: a lost session fails its calls at once, since a
/// second connection is refused. It is greeted now and not with the first call: Go's server
/// complains about a connection that ends before a greeting, as that of a refused build would.
async fn channel(tunnel: Tunnel) -> Result<Channel, tonic::transport::Error> {
    let tunnel = Arc::new(Mutex::new(Some(tunnel)));
    let connector = tower::service_fn(move |_: http::Uri| {
        let once = tunnel.lock().expect("nobody panics here").take();
        async move {
            once.map(TokioIo::new)
                .ok_or_else(|| io::Error::new(io::ErrorKind::NotConnected, "session is closed"))
        }
    });
    Endpoint::from_static("http://localhost")
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .buffer_size(1024)
        .connect_with_connector(connector)
        .await
}

/// Checks the client's health for ever; returns why it counts as dead.
async fn keep_alive(session: &Session, health: Health) -> String {
    let mut client = HealthClient::new(session.channel());
    let mut failures = 0;
    let mut last = Duration::ZERO;
    // Whatever the first answer is, the client has read all that was sent before.
    let first = client.check(HealthCheckRequest::default());
    _ = tokio::time::timeout(health.timeout, first).await;
    session.0.settled.cancel();
    loop {
        tokio::time::sleep(health.interval).await;
        let limit = health.timeout.max(last + last / 2);
        let begun = Instant::now();
        let check = client.check(HealthCheckRequest::default());
        let failure = match tokio::time::timeout(limit, check).await {
            Ok(Ok(_)) => None,
            Ok(Err(status)) => Some(status.message().to_owned()),
            Err(_) => Some(format!("no answer within {limit:?}")),
        };
        last = begun.elapsed();
        match failure {
            None => failures = 0,
            Some(why) => {
                failures += 1;
                if failures >= health.failures {
                    return format!("health check failed: {why}");
                }
            }
        }
    }
}
