//! Connections, limits and memory shared by all builds; and one build's view of them.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use futures_util::StreamExt as _;
use http::{HeaderMap, Method, StatusCode, header};
use reqwest::{Body, Response, Url};
use tokio::sync::Semaphore;

use super::{
    Credentials,
    auth::{Authorizer, Challenge, Scopes, Verdict},
    hosts::{Endpoint, Hosts, innermost},
    retry,
};
use crate::{Error, Reference, Result};

/// Most errors of one answer that are told.
const MOST_ERRORS: usize = 4;
pub(super) const LOGIN_HINT: &str = "log in to the registry first, or check name and password";
const TLS_HINT: &str = "if the registry speaks plain HTTP or has a private certificate authority, \
    say so in the daemon's configuration: registry.\"<host>\" http, insecure or ca";
/// Rounds of refusal and new credentials for one request.
const AUTH_ROUNDS: u32 = 4;

/// What a registry may have to copy to where it stays once it has arrived, which takes time.
const LARGE: u64 = 64 << 20;
/// So many times as patient with such an upload that has been sent whole.
const COMMIT: u32 = 10;

/// Settings of a [`Client`].
#[derive(Debug, Clone)]
pub struct Options {
    /// Tables of `buildkitd.toml`.
    pub hosts: Hosts,
    /// Blobs in transfer per host at once.
    pub concurrency_per_host: usize,
    /// `User-Agent` header.
    pub user_agent: String,
    /// Size of the parts of an upload where the server cannot take it in one request.
    pub chunk_size: u64,
    /// How long a server may keep an answer waiting. In the middle of one it may be silent for half
    /// as long: to ask for the rest again costs little.
    pub patience: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            hosts: Hosts::default(),
            concurrency_per_host: 4,
            user_agent: concat!("rbuild/", env!("CARGO_PKG_VERSION")).into(),
            chunk_size: 16 << 20,
            patience: Duration::from_secs(60),
        }
    }
}

/// The daemon's way to all registries. Cheap to clone.
#[derive(Clone)]
pub struct Client(Arc<Shared>);

struct Shared {
    options: Options,
    authorizer: Authorizer,
    clients: Mutex<HashMap<ClientKey, reqwest::Client>>,
    limits: Mutex<HashMap<(String, Direction), Arc<Semaphore>>>,
    /// Of registries with several ways to reach them, the one that answered.
    answering: Mutex<HashMap<Vec<Endpoint>, Endpoint>>,
}

/// Transfers are counted each way on their own: a push may have to pull what it sends, from the
/// same host, and must not wait for itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Direction {
    Pull,
    Push,
}

/// Endpoints with equal trust and certificates share connections.
#[derive(PartialEq, Eq, Hash)]
struct ClientKey {
    table: String,
    insecure: bool,
    plain: bool,
    upload: bool,
}

impl Client {
    /// Reads nothing yet: certificates are loaded when a host is first used.
    pub fn new(options: Options) -> Self {
        super::install_crypto_provider();
        Self(Arc::new(Shared {
            options,
            authorizer: Authorizer::new(),
            clients: Mutex::default(),
            limits: Mutex::default(),
            answering: Mutex::default(),
        }))
    }

    /// Registries as seen with these credentials. `insecure` is the exporters' and caches'
    /// `registry.insecure`: any certificate, or plain HTTP.
    pub fn session(&self, credentials: Arc<dyn Credentials>, insecure: bool) -> Remote {
        Remote { client: self.clone(), credentials, insecure }
    }

    pub(super) fn http(&self, endpoint: &Endpoint) -> Result<reqwest::Client> {
        self.http_for(endpoint, false)
    }

    /// Uploads have clients of their own, because the time in which something must be read would
    /// run while there is only something to send.
    fn http_for(&self, endpoint: &Endpoint, upload: bool) -> Result<reqwest::Client> {
        let known = self.0.options.hosts.0.contains_key(&endpoint.config);
        let key = ClientKey {
            table: if known { endpoint.config.clone() } else { String::new() },
            insecure: endpoint.insecure,
            plain: endpoint.plain,
            upload,
        };
        let mut clients = self.0.clients.lock().expect("no panics while held");
        if let Some(client) = clients.get(&key) {
            return Ok(client.clone());
        }
        let patience = (!upload).then_some(self.0.options.patience);
        let client = self.0.options.hosts.client(endpoint, &self.0.options.user_agent, patience)?;
        clients.insert(key, client.clone());
        Ok(client)
    }

    pub(super) fn limit(&self, host: &str, direction: Direction) -> Arc<Semaphore> {
        let mut limits = self.0.limits.lock().expect("no panics while held");
        let new = || Arc::new(Semaphore::new(self.0.options.concurrency_per_host.max(1)));
        limits.entry((host.to_owned(), direction)).or_insert_with(new).clone()
    }

    pub(super) fn answering(&self, ways: &[Endpoint]) -> Option<Endpoint> {
        self.0.answering.lock().expect("no panics while held").get(ways).cloned()
    }

    pub(super) fn set_answering(&self, ways: Vec<Endpoint>, endpoint: Endpoint) {
        self.0.answering.lock().expect("no panics while held").insert(ways, endpoint);
    }

    /// How long nothing may come in the middle of an answer.
    pub(super) fn stall(&self) -> Duration {
        self.0.options.patience / 2
    }

    pub(super) fn chunk_size(&self) -> u64 {
        self.0.options.chunk_size.max(1)
    }
}

/// [`Client`] with credentials: the [`super::Registry`] of one build.
#[derive(Clone)]
pub struct Remote {
    pub(super) client: Client,
    pub(super) credentials: Arc<dyn Credentials>,
    pub(super) insecure: bool,
}

/// A request that can be sent as often as needed.
pub(super) struct Request<'a> {
    /// In words, for errors: `pull docker.io/library/alpine:3`.
    pub what: &'a str,
    pub method: Method,
    pub url: Url,
    pub headers: HeaderMap,
    pub body: Option<bytes::Bytes>,
    pub scopes: Scopes,
}

impl<'a> Request<'a> {
    pub(super) fn new(what: &'a str, method: Method, url: Url, scopes: Scopes) -> Self {
        Self { what, method, url, headers: HeaderMap::new(), body: None, scopes }
    }
}

/// Outcome of one attempt that may be repeated.
enum Attempt {
    Answer(Response),
    Failed(reqwest::Error),
}

impl Remote {
    pub(super) fn endpoints(&self, reference: &Reference, pull: bool) -> Vec<Endpoint> {
        self.client.0.options.hosts.endpoints(reference, self.insecure, pull)
    }

    /// Sends until there is a final answer: authorises, waits for servers in trouble. Any status
    /// may be in the answer, except that `401` has become an error.
    pub(super) async fn send(
        &self,
        endpoint: &Endpoint,
        mut request: Request<'_>,
    ) -> Result<Response> {
        let http = self.client.http(endpoint)?;
        let (mut attempt, mut rounds) = (1, 0);
        loop {
            let header = self.authorization(&http, endpoint, &request.scopes).await?;
            let mut builder = http
                .request(request.method.clone(), request.url.clone())
                .headers(request.headers.clone());
            if let Some(value) = &header {
                builder = builder.header(header::AUTHORIZATION, value);
            }
            if let Some(body) = &request.body {
                builder = builder.body(body.clone());
            }
            let outcome = match builder.send().await {
                Ok(answer) => Attempt::Answer(answer),
                Err(error) => Attempt::Failed(error),
            };
            match outcome {
                Attempt::Answer(answer) if answer.status() == StatusCode::UNAUTHORIZED => {
                    rounds += 1;
                    let verdict = self
                        .refused(endpoint, &answer, header.as_deref(), &mut request.scopes)
                        .await?;
                    if matches!(verdict, Verdict::Final) || rounds >= AUTH_ROUNDS {
                        return Err(refusal(request.what, answer).await);
                    }
                }
                Attempt::Answer(answer)
                    if retry::is_temporary(answer.status().as_u16())
                        && attempt < retry::ATTEMPTS =>
                {
                    let Some(wait) = retry::wait_for(attempt, retry_after(&answer)) else {
                        return Ok(answer);
                    };
                    tracing::debug!(what = request.what, status = %answer.status(), ?wait, "retry");
                    attempt += 1;
                    tokio::time::sleep(wait).await;
                }
                Attempt::Answer(answer) => return Ok(answer),
                Attempt::Failed(error) => {
                    // Whoever was silent for so long will hardly speak if asked many times.
                    let most = match error.is_connect() || error.is_timeout() {
                        true => retry::CONNECT_ATTEMPTS,
                        false => retry::ATTEMPTS,
                    };
                    if attempt >= most || error.is_builder() || error.is_redirect() {
                        return Err(unreachable(request.what, endpoint, &error));
                    }
                    let wait = retry::wait(attempt);
                    tracing::debug!(what = request.what, %error, ?wait, "retry");
                    attempt += 1;
                    tokio::time::sleep(wait).await;
                }
            }
        }
    }

    /// Sends a body that streams, once. A temporary failure is the caller's to resume.
    pub(super) async fn send_stream(
        &self,
        endpoint: &Endpoint,
        request: Request<'_>,
        length: u64,
        body: crate::BlobStream,
    ) -> Result<Response> {
        let http = self.client.http_for(endpoint, true)?;
        let header = self.authorization(&http, endpoint, &request.scopes).await?;
        let patience = self.client.0.options.patience;
        let silence = Arc::new(Silence(Mutex::new((Instant::now(), patience))));
        let (heard, mut left) = (silence.clone(), length);
        let body = body.inspect(move |piece| {
            left = left.saturating_sub(piece.as_ref().map_or(0, |piece| piece.len() as u64));
            let commits = left == 0 && length >= LARGE;
            heard.moved(if commits { patience * COMMIT } else { patience });
        });
        let mut builder = http
            .request(request.method.clone(), request.url.clone())
            .headers(request.headers.clone())
            .header(header::CONTENT_LENGTH, length)
            .body(Body::wrap_stream(body));
        if let Some(value) = header {
            builder = builder.header(header::AUTHORIZATION, value);
        }
        tokio::select! {
            answer = builder.send() => {
                answer.map_err(|error| unreachable(request.what, endpoint, &error))
            }
            waited = silence.too_long() => Err(Error::Unreachable {
                what: request.what.to_owned(),
                host: endpoint.host.clone(),
                message: format!("it took nothing for {} seconds", waited.as_secs()),
                hint: "",
            }),
        }
    }

    async fn authorization(
        &self,
        http: &reqwest::Client,
        endpoint: &Endpoint,
        scopes: &Scopes,
    ) -> Result<Option<String>> {
        let authorizer = &self.client.0.authorizer;
        authorizer.header(http, &endpoint.host, &*self.credentials, scopes).await
    }

    pub(super) async fn refused(
        &self,
        endpoint: &Endpoint,
        answer: &Response,
        sent: Option<&str>,
        scopes: &mut Scopes,
    ) -> Result<Verdict> {
        let challenges: Vec<_> = answer
            .headers()
            .get_all(header::WWW_AUTHENTICATE)
            .iter()
            .filter_map(|value| Challenge::parse(value.to_str().ok()?))
            .collect();
        let authorizer = &self.client.0.authorizer;
        authorizer.refused(&endpoint.host, &*self.credentials, &challenges, sent, scopes).await
    }
}

/// When something last moved, and how long nothing may from then on.
struct Silence(Mutex<(Instant, Duration)>);

impl Silence {
    fn moved(&self, patience: Duration) {
        *self.0.lock().expect("no panics while held") = (Instant::now(), patience);
    }

    /// Ends when nothing has moved for too long; returns how long.
    async fn too_long(&self) -> Duration {
        loop {
            let (moved, patience) = *self.0.lock().expect("no panics while held");
            if moved.elapsed() >= patience {
                return patience;
            }
            tokio::time::sleep_until((moved + patience).into()).await;
        }
    }
}

pub(super) fn unreachable(what: &str, endpoint: &Endpoint, error: &reqwest::Error) -> Error {
    let mut message = innermost(error);
    // Scripts look for these words, which do not depend on the resolver.
    if message.starts_with("failed to lookup address information") {
        let host = endpoint.host.rsplit_once(':').map_or(&*endpoint.host, |(host, _)| host);
        message = format!("dial tcp: lookup {host}: no such host ({message})");
    }
    let about_tls =
        ["certificate", "Certificate", "tls", "TLS", "InvalidContentType", "corrupt message"];
    let tls = !endpoint.plain && about_tls.iter().any(|word| message.contains(word));
    Error::Unreachable {
        what: what.to_owned(),
        host: endpoint.host.clone(),
        message,
        hint: if tls { TLS_HINT } else { "" },
    }
}

/// The errors of a registry's JSON error body, else the start of the body.
async fn server_message(answer: Response) -> String {
    #[derive(serde::Deserialize)]
    struct Body {
        errors: Vec<Entry>,
    }
    #[derive(serde::Deserialize)]
    struct Entry {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let text = answer.text().await.unwrap_or_default();
    match serde_json::from_str::<Body>(&text) {
        Ok(body) if !body.errors.is_empty() => {
            let words = |entry: &Entry| match (entry.code.as_str(), entry.message.as_str()) {
                ("", message) => message.to_owned(),
                (code, "") => code.to_ascii_lowercase(),
                (code, message) => format!("{}: {message}", code.to_ascii_lowercase()),
            };
            // The first is often the least telling.
            let mut all: Vec<String> = body.errors.iter().take(MOST_ERRORS).map(words).collect();
            all.dedup();
            all.join("; ")
        }
        _ => text.trim().chars().take(300).collect(),
    }
}

async fn refusal(what: &str, answer: Response) -> Error {
    let message = server_message(answer).await;
    let message = if message.is_empty() { String::new() } else { format!(": {message}") };
    Error::Unauthorized {
        what: what.to_owned(),
        message: format!(
            "access denied, the repository does not exist or may require authorization{message}"
        ),
        hint: LOGIN_HINT,
    }
}

/// When the server wants to be asked again: seconds or a date.
fn retry_after(answer: &Response) -> Option<&str> {
    answer.headers().get(header::RETRY_AFTER)?.to_str().ok()
}

/// The error for an answer that is none of the expected ones.
pub(super) async fn unexpected(what: &str, endpoint: &Endpoint, answer: Response) -> Error {
    let status = answer.status();
    match status {
        StatusCode::NOT_FOUND => Error::not_found(what),
        StatusCode::FORBIDDEN => refusal(what, answer).await,
        _ => {
            let (what, host) = (what.to_owned(), endpoint.host.clone());
            let later =
                retry_after(&answer).filter(|when| retry::wait_for(1, Some(when)).is_none());
            let later = later.map(|when| format!(" (retry after: {when})"));
            let mut message = server_message(answer).await;
            // A TLS port spoken to in plain: not the registry's answer, another way may work.
            let tls_port = ["to an HTTPS server", "to HTTPS port"];
            if endpoint.plain && tls_port.iter().any(|text| message.contains(text)) {
                return Error::Unreachable { what, host, message, hint: TLS_HINT };
            }
            // A page for browsers, mostly of some proxy before the registry.
            if message.starts_with('<') {
                message.clear();
            }
            if let Some(later) = later {
                if message.is_empty() {
                    message = status.canonical_reason().unwrap_or_default().to_owned();
                }
                message += &later;
            }
            Error::Status { what, host, status: status.as_u16(), message }
        }
    }
}
