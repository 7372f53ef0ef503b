//! The step's side of the proxy: plain requests, and tunnels, which end here.

use std::{convert::Infallible, error::Error, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, Version, header,
    uri::Authority as Place,
};
use http_body_util::{BodyExt as _, Full, combinators::UnsyncBoxBody};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
    sync::Semaphore,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    Policy, Verdict,
    authority::Authority,
    body::{Digested, Note},
    record::{Recorder, shown},
    upstream::Upstream,
};

/// Connections of a step at once; further ones wait.
const MOST_CONNECTIONS: usize = 512;
/// Longest wait for the head of a request, or a greeting.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest head.
const MOST_HEAD: usize = 128 << 10;
/// Pause after an error of the listener.
const PAUSE: Duration = Duration::from_millis(100);

type Body = UnsyncBoxBody<Bytes, hyper::Error>;

/// What all connections of one step use.
pub(crate) struct Shared {
    pub client: Upstream,
    pub authority: Arc<Authority>,
    pub policy: Option<Arc<dyn Policy>>,
    pub recorder: Arc<Recorder>,
    pub stop: CancellationToken,
    pub tasks: TaskTracker,
}

/// Serves until told to stop.
pub(crate) async fn listen(listener: TcpListener, shared: Arc<Shared>) {
    let room = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    let accept = async {
        loop {
            let place = room.clone().acquire_owned().await.expect("nobody closes it");
            match listener.accept().await {
                Ok((stream, _)) => {
                    let serving = shared.clone();
                    shared.spawn(async move {
                        serving.serve(stream, None).await;
                        drop(place);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "accept a connection of a step");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    };
    shared.stop.run_until_cancelled(accept).await;
}

impl Shared {
    fn spawn(self: &Arc<Self>, work: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        self.tasks.spawn(async move { stop.run_until_cancelled_owned(work).await });
    }

    /// Serves one connection. Inside of a tunnel, all requests are for the place it leads to.
    async fn serve(
        self: Arc<Self>,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        tunnel: Option<Place>,
    ) {
        let shared = self.clone();
        let service = service_fn(move |request| {
            let (shared, tunnel) = (shared.clone(), tunnel.clone());
            async move { Ok::<_, Infallible>(shared.answer(request, tunnel).await) }
        });
        let served = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .max_buf_size(MOST_HEAD)
            // Some programs say that they have asked all they want before they listen.
            .half_close(true)
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades();
        if let Err(error) = served.await {
            tracing::debug!(%error, "a step's connection to its proxy ended");
        }
    }

    async fn answer(
        self: Arc<Self>,
        request: Request<Incoming>,
        tunnel: Option<Place>,
    ) -> Response<Body> {
        if request.method() == Method::CONNECT && tunnel.is_none() {
            return self.open_tunnel(request);
        }
        let Some(uri) = destination(&request, tunnel) else {
            return text(StatusCode::BAD_REQUEST, "the request names no host");
        };
        match self.check(request.method(), uri).await {
            Ok(uri) => self.pass(request, uri).await,
            Err(reason) => {
                tracing::debug!(reason, "a step's request is refused");
                text(StatusCode::FORBIDDEN, "Forbidden")
            }
        }
    }

    /// The proxy is the other end of the tunnel.
    fn open_tunnel(self: Arc<Self>, request: Request<Incoming>) -> Response<Body> {
        let Some(place) = request.uri().authority().cloned() else {
            return text(StatusCode::BAD_REQUEST, "the request names no host");
        };
        let shared = self.clone();
        self.spawn(async move {
            if let Err(error) = shared.tunnel(request, place).await {
                tracing::debug!(%error, "a step's tunnel broke");
            }
        });
        Response::new(empty())
    }

    async fn tunnel(
        self: Arc<Self>,
        request: Request<Incoming>,
        place: Place,
    ) -> Result<(), Box<dyn Error + Send + Sync>> {
        let host = place.host().trim_start_matches('[').trim_end_matches(']');
        let acceptor = tokio_rustls::TlsAcceptor::from(self.authority.server(host)?);
        let stream = TokioIo::new(hyper::upgrade::on(request).await?);
        let stream = tokio::time::timeout(HEAD_TIMEOUT, acceptor.accept(stream)).await??;
        // Not to be awaited by its own type for ever: a tunnel holds no other tunnels.
        let serving: std::pin::Pin<Box<dyn Future<Output = ()> + Send>> =
            Box::pin(self.serve(stream, Some(place)));
        serving.await;
        Ok(())
    }

    /// The address to ask instead, or why the policy refuses.
    async fn check(&self, method: &Method, uri: Uri) -> Result<Uri, String> {
        let Some(policy) = &self.policy else { return Ok(uri) };
        let asked = shown(&uri);
        match policy.check(&asked).await? {
            Verdict::Allow => Ok(uri),
            Verdict::Convert { .. } if method != Method::GET => Err(format!(
                "the source policy converts {asked}, which is possible for GET alone, not {method}"
            )),
            Verdict::Convert { has_attributes: true, .. } => Err(format!(
                "the source policy converts {asked} to something with attributes, which a request \
                 of a step cannot have"
            )),
            Verdict::Convert { url, .. } => {
                let uri: Uri = url.parse().map_err(|error| {
                    format!("the source policy converts {asked} to {url:?}, no address: {error}")
                })?;
                match (uri.scheme_str(), uri.host()) {
                    (Some("http" | "https"), Some(_)) => Ok(uri),
                    _ => Err(format!(
                        "the source policy converts {asked} to {url:?}, neither http nor https"
                    )),
                }
            }
        }
    }

    async fn pass(&self, request: Request<Incoming>, uri: Uri) -> Response<Body> {
        let (mut head, body) = request.into_parts();
        let (method, url) = (head.method.clone(), shown(&uri));
        let partial = head.headers.contains_key(header::RANGE);
        strip(&mut head.headers);
        // What arrives is what is digested.
        head.headers.remove(header::ACCEPT_ENCODING);
        if let Some(host) = uri.authority().and_then(host_header) {
            head.headers.insert(header::HOST, host);
        }
        head.version = Version::HTTP_11;
        head.uri = uri.clone();
        let answer = match self.client.request(Request::from_parts(head, body)).await {
            Ok(answer) => answer,
            Err(error) => {
                let status = StatusCode::BAD_GATEWAY;
                self.recorder.request(&method, &url, status.as_u16(), None);
                self.recorder.incomplete(&method, &url, "upstream_error");
                return text(status, &chain(&error));
            }
        };
        let (mut head, body) = answer.into_parts();
        let redirect = head.headers.get(header::LOCATION).and_then(|to| redirect(&uri, to));
        self.recorder.request(&method, &url, head.status.as_u16(), redirect);
        strip(&mut head.headers);
        head.version = Version::HTTP_11;
        let recorder = self.recorder.clone();
        let note = Note { recorder, method, url, status: head.status, partial };
        Response::from_parts(head, Digested::new(body, note).boxed_unsync())
    }
}

/// The whole address of a request.
fn destination(request: &Request<Incoming>, tunnel: Option<Place>) -> Option<Uri> {
    let uri = request.uri();
    let (scheme, place) = match (tunnel, uri.scheme_str()) {
        (Some(place), _) => ("https", place),
        (None, Some(_)) => return Some(uri.clone()),
        (None, None) => {
            let host = request.headers().get(header::HOST)?.as_bytes();
            ("http", Place::try_from(host).ok()?)
        }
    };
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    Uri::builder().scheme(scheme).authority(place).path_and_query(path).build().ok()
}

/// What a server is told that it is called: no credentials, and no port that goes without saying.
fn host_header(place: &Place) -> Option<HeaderValue> {
    let place = place.as_str();
    let place = place.rsplit_once('@').map_or(place, |(_, place)| place);
    HeaderValue::from_str(place).ok()
}

/// Takes out what belongs to one connection.
fn strip(headers: &mut HeaderMap) {
    for name in [
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    ] {
        headers.remove(name);
    }
}

/// Where an answer leads on to, as it is written down.
fn redirect(from: &Uri, to: &HeaderValue) -> Option<String> {
    let to = to.to_str().ok()?;
    let to = to.split('#').next().unwrap_or_default();
    if let Some(rest) = to.strip_prefix("//") {
        let uri = format!("{}://{rest}", from.scheme_str()?);
        return Some(shown(&uri.parse().ok()?));
    }
    let uri: Uri = match to.parse::<Uri>() {
        Ok(uri) if uri.scheme().is_some() => uri,
        _ => {
            let path = match to.starts_with('/') {
                true => to.to_owned(),
                false => {
                    let folder = from.path().rsplit_once('/').map_or("", |(folder, _)| folder);
                    let (path, query) =
                        to.split_once('?').map_or((to, None), |(path, query)| (path, Some(query)));
                    let path = base::path::clean(&format!("{folder}/{path}"));
                    query.map_or(path.clone(), |query| format!("{path}?{query}"))
                }
            };
            let mut parts = from.clone().into_parts();
            parts.path_and_query = Some(path.parse().ok()?);
            Uri::from_parts(parts).ok()?
        }
    };
    Some(shown(&uri))
}

/// The causes of an error, without the client's own words around them.
fn chain(error: &dyn Error) -> String {
    let first = error.source().unwrap_or(error);
    let mut text = first.to_string();
    let mut cause = first.source();
    while let Some(next) = cause {
        text += &format!(": {next}");
        cause = next.source();
    }
    text
}

fn empty() -> Body {
    Full::new(Bytes::new()).map_err(|never| match never {}).boxed_unsync()
}

fn text(status: StatusCode, text: &str) -> Response<Body> {
    let body = Full::new(Bytes::from(format!("{text}\n")));
    let mut response = Response::new(body.map_err(|never| match never {}).boxed_unsync());
    *response.status_mut() = status;
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, plain);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_are_resolved() {
        let from: Uri = "http://a:8080/b/c?d".parse().unwrap();
        for (to, expected) in [
            ("https://x:443/y#z", "https://x/y"),
            ("//x/y", "http://x/y"),
            ("/y?z", "http://a:8080/y?z"),
            ("y?z", "http://a:8080/b/y?z"),
            ("../y", "http://a:8080/y"),
        ] {
            let found = redirect(&from, &HeaderValue::from_static(to));
            assert_eq!(found.as_deref(), Some(expected), "{to}");
        }
    }
}
