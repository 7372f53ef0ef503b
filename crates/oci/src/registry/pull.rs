//! Asking a registry: names, manifests, blobs, tags, referrers.

use std::time::Duration;

use base::Digest;
use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt as _, stream};
use http::{HeaderValue, Method, StatusCode, header};
use reqwest::Response;

use super::{
    auth::Scopes,
    client::{Direction, Remote, Request, unexpected, unreachable},
    hosts::{Endpoint, innermost},
    retry,
};
use crate::{
    BlobStream, Descriptor, Error, Index, Reference, Result, media,
    types::{MAX_CONFIG, MAX_MANIFEST},
};

const CONTENT_DIGEST: &str = "docker-content-digest";
/// Times a broken download is taken up again without getting one byte further.
const RESUMES: u32 = 4;
/// Pages of tags that are followed.
const MAX_PAGES: usize = 1000;

/// Tries the endpoints in turn. Mirrors may fail in any way. The registry itself is done with the
/// first definite answer; if there is none, the first way of asking tells best what is wrong.
macro_rules! first_good {
    ($endpoints:expr, $endpoint:ident => $attempt:expr) => {{
        let (mut of_mirror, mut own) = (None, None);
        let mut found = None;
        for $endpoint in $endpoints {
            let error = match $attempt.await {
                Ok(value) => {
                    found = Some(value);
                    break;
                }
                Err(error) => error,
            };
            tracing::debug!(host = %$endpoint.host, %error, "endpoint failed");
            if $endpoint.mirror_of.is_some() {
                let silent = matches!(error, Error::Unreachable { .. });
                if !silent || of_mirror.is_none() {
                    of_mirror = Some(($endpoint.host, error));
                }
                continue;
            }
            let definite = !matches!(error, Error::Unreachable { .. });
            if definite || own.is_none() {
                own = Some(error);
            }
            if definite {
                break;
            }
        }
        match found {
            Some(value) => Ok(value),
            None => Err(most_telling(own, of_mirror)),
        }
    }};
}

/// A mirror's "there is no such thing" answers the question where the registry itself is silent.
fn most_telling(own: Option<Error>, of_mirror: Option<(String, Error)>) -> Error {
    match (own, of_mirror) {
        (Some(Error::Unreachable { what, host, message, .. }), Some((mirror, error)))
            if error.is_not_found() =>
        {
            let silent = format!("registry {host} did not answer: {message}");
            Error::not_found(format!("{what}: {silent}; mirror {mirror} says"))
        }
        (own, of_mirror) => {
            own.or(of_mirror.map(|(_, error)| error)).expect("every registry has an endpoint")
        }
    }
}

impl Remote {
    pub(super) async fn do_resolve(&self, reference: &Reference) -> Result<Descriptor> {
        let what = reference.to_string();
        first_good!(self.endpoints(reference, true), endpoint => self.resolve_at(&endpoint, reference, &what))
    }

    async fn resolve_at(
        &self,
        endpoint: &Endpoint,
        reference: &Reference,
        what: &str,
    ) -> Result<Descriptor> {
        let answer =
            self.ask_manifest(endpoint, Method::HEAD, reference, &reference.object(), what).await?;
        if answer.status().is_success()
            && let Some(descriptor) = described(&answer)
        {
            if let Some(expected) = reference.digest()
                && expected != descriptor.digest
            {
                return Err(Error::corrupt(what, expected, descriptor.digest));
            }
            return Ok(descriptor);
        }
        if answer.status() == StatusCode::NOT_FOUND {
            return Err(Error::not_found(what));
        }
        // HEAD is not served, or says too little: read the manifest itself.
        let answer =
            self.ask_manifest(endpoint, Method::GET, reference, &reference.object(), what).await?;
        if !answer.status().is_success() {
            return Err(unexpected(what, endpoint, answer).await);
        }
        let declared = content_type(&answer);
        let body = read_bounded(answer, self.client.stall(), MAX_MANIFEST, what).await?;
        let media_type = media::detect_manifest(&body).or(declared).unwrap_or_default();
        let descriptor = Descriptor::of(media_type, &body);
        match reference.digest() {
            Some(expected) if expected != descriptor.digest => {
                Err(Error::corrupt(what, expected, descriptor.digest))
            }
            _ => Ok(descriptor),
        }
    }

    async fn ask_manifest(
        &self,
        endpoint: &Endpoint,
        method: Method,
        repository: &Reference,
        object: &str,
        what: &str,
    ) -> Result<Response> {
        let url = endpoint.url(repository.path(), &format!("manifests/{object}"))?;
        let mut request = Request::new(what, method, url, Scopes::pull(repository.path()));
        request.headers.insert(header::ACCEPT, HeaderValue::from_static(media::ACCEPT_MANIFESTS));
        self.send(endpoint, request).await
    }

    pub(super) async fn do_manifest(
        &self,
        repository: &Reference,
        manifest: &Descriptor,
    ) -> Result<Bytes> {
        let what = format!("manifest {}@{}", repository.repository(), manifest.digest);
        let mut broken = 0;
        loop {
            let endpoints = self.endpoints(repository, true);
            let read = first_good!(
                endpoints, endpoint => self.manifest_at(&endpoint, repository, manifest, &what)
            );
            match read {
                // The connection broke in the middle of the body.
                Err(Error::Io { .. }) if broken < RESUMES => {
                    broken += 1;
                    tokio::time::sleep(retry::wait(broken)).await;
                }
                other => return other,
            }
        }
    }

    async fn manifest_at(
        &self,
        endpoint: &Endpoint,
        repository: &Reference,
        manifest: &Descriptor,
        what: &str,
    ) -> Result<Bytes> {
        let object = manifest.digest.to_string();
        let answer = self.ask_manifest(endpoint, Method::GET, repository, &object, what).await?;
        if !answer.status().is_success() {
            return Err(unexpected(what, endpoint, answer).await);
        }
        let body =
            read_bounded(answer, self.client.stall(), MAX_MANIFEST.max(MAX_CONFIG), what).await?;
        let actual = Digest::of(&body);
        if actual != manifest.digest {
            return Err(Error::corrupt(what, manifest.digest, actual));
        }
        Ok(body)
    }

    /// Streams a blob; a connection that breaks is replaced by one that continues at the same
    /// byte, as long as each gets further.
    pub(super) async fn do_blob(
        &self,
        repository: &Reference,
        blob: &Descriptor,
        offset: u64,
    ) -> Result<BlobStream> {
        let what = format!("blob {} of {}", blob.digest, repository.repository());
        let permit = self.client.limit(repository.host(), Direction::Pull).acquire_owned().await;
        let permit = permit.expect("the semaphore is never closed");
        let first = self.open_blob(repository, blob, offset, &what).await?;
        let state = Download {
            remote: self.clone(),
            repository: repository.clone(),
            blob: blob.clone(),
            what,
            offset,
            stuck: 0,
            inner: Some(first),
            permit: Some(permit),
        };
        Ok(stream::unfold(state, Download::next).boxed())
    }

    async fn open_blob(
        &self,
        repository: &Reference,
        blob: &Descriptor,
        offset: u64,
        what: &str,
    ) -> Result<BlobStream> {
        let result = first_good!(self.endpoints(repository, true), endpoint => self.blob_at(&endpoint, repository, blob, offset, what));
        match result {
            Err(Error::NotFound { .. }) if !blob.urls.is_empty() => {
                self.foreign_blob(blob, offset, what).await
            }
            other => other,
        }
    }

    async fn blob_at(
        &self,
        endpoint: &Endpoint,
        repository: &Reference,
        blob: &Descriptor,
        offset: u64,
        what: &str,
    ) -> Result<BlobStream> {
        let url = endpoint.url(repository.path(), &format!("blobs/{}", blob.digest))?;
        self.download(endpoint, url, Scopes::pull(repository.path()), offset, what).await
    }

    async fn download(
        &self,
        endpoint: &Endpoint,
        url: reqwest::Url,
        scopes: Scopes,
        offset: u64,
        what: &str,
    ) -> Result<BlobStream> {
        let mut request = Request::new(what, Method::GET, url, scopes);
        request.headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        if offset > 0 {
            let range = HeaderValue::from_str(&format!("bytes={offset}-"));
            request.headers.insert(header::RANGE, range.expect("digits are a header value"));
        }
        let answer = self.send(endpoint, request).await?;
        let stall = self.client.stall();
        match answer.status() {
            StatusCode::PARTIAL_CONTENT => Ok(pieces(answer, stall)),
            // Asked from the very end: nothing is left.
            StatusCode::RANGE_NOT_SATISFIABLE if offset > 0 => Ok(stream::empty().boxed()),
            status if status.is_success() => Ok(skip(pieces(answer, stall), offset)),
            _ => Err(unexpected(what, endpoint, answer).await),
        }
    }

    /// A foreign layer, from the places its descriptor names; without credentials.
    async fn foreign_blob(&self, blob: &Descriptor, offset: u64, what: &str) -> Result<BlobStream> {
        let anonymous = self.client.session(std::sync::Arc::new(super::Anonymous), self.insecure);
        let mut last = Error::not_found(what);
        for url in &blob.urls {
            let Ok(url) = reqwest::Url::parse(url) else { continue };
            let host = url.host_str().unwrap_or_default().to_owned();
            let endpoint = Endpoint {
                config: host.clone(),
                host,
                plain: url.scheme() == "http",
                insecure: false,
                prefix: String::new(),
                mirror_of: None,
            };
            match anonymous.download(&endpoint, url, Scopes::default(), offset, what).await {
                Ok(stream) => return Ok(stream),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    pub(super) async fn do_tags(&self, repository: &Reference) -> Result<Vec<String>> {
        #[derive(serde::Deserialize)]
        struct Page {
            #[serde(default, deserialize_with = "crate::types::nullable")]
            tags: Vec<String>,
        }
        let what = format!("tags of {}", repository.repository());
        let endpoint = self.own_endpoint(repository, &what).await?;
        let mut url = endpoint.url(repository.path(), "tags/list?n=1000")?;
        let mut tags = Vec::new();
        for _ in 0..MAX_PAGES {
            let request =
                Request::new(&what, Method::GET, url.clone(), Scopes::pull(repository.path()));
            let answer = self.send(&endpoint, request).await?;
            if !answer.status().is_success() {
                return Err(unexpected(&what, &endpoint, answer).await);
            }
            let next = next_page(&answer, &url);
            let body = read_bounded(answer, self.client.stall(), MAX_MANIFEST, &what).await?;
            let page: Page =
                serde_json::from_slice(&body).map_err(|error| Error::invalid(&what, error))?;
            tags.extend(page.tags);
            match next {
                Some(next) => url = next,
                None => break,
            }
        }
        tags.sort();
        tags.dedup();
        Ok(tags)
    }

    pub(super) async fn do_referrers(
        &self,
        repository: &Reference,
        subject: Digest,
        artifact_type: Option<&str>,
    ) -> Result<Vec<Descriptor>> {
        let what = format!("referrers of {}@{subject}", repository.repository());
        let endpoint = self.own_endpoint(repository, &what).await?;
        let mut url = endpoint.url(repository.path(), &format!("referrers/{subject}"))?;
        if let Some(kind) = artifact_type {
            url.query_pairs_mut().append_pair("artifactType", kind);
        }
        let request = Request::new(&what, Method::GET, url, Scopes::pull(repository.path()));
        let answer = self.send(&endpoint, request).await?;
        let body = match answer.status() {
            status if status.is_success() => {
                read_bounded(answer, self.client.stall(), MAX_MANIFEST, &what).await?
            }
            // Registries before distribution 1.1 keep an index under a tag made of the digest.
            StatusCode::NOT_FOUND => {
                let tag = format!("sha256-{}", subject.hex());
                let answer =
                    self.ask_manifest(&endpoint, Method::GET, repository, &tag, &what).await?;
                if !answer.status().is_success() {
                    return Ok(Vec::new());
                }
                read_bounded(answer, self.client.stall(), MAX_MANIFEST, &what).await?
            }
            _ => return Err(unexpected(&what, &endpoint, answer).await),
        };
        let mut found = Index::parse(&what, &body)?.manifests;
        found.retain(|entry| artifact_type.is_none_or(|kind| entry.artifact_type == kind));
        Ok(found)
    }

    /// The registry itself (no mirror), by the first of its endpoints that answers at all.
    pub(super) async fn own_endpoint(
        &self,
        repository: &Reference,
        what: &str,
    ) -> Result<Endpoint> {
        let mut ways = self.endpoints(repository, false);
        if ways.len() == 1 {
            return Ok(ways.remove(0));
        }
        if let Some(known) = self.client.answering(&ways) {
            return Ok(known);
        }
        let found = first_good!(ways.clone(), endpoint => self.probe(&endpoint, what))?;
        self.client.set_answering(ways, found.clone());
        Ok(found)
    }

    /// Whether anybody speaks the endpoint's protocol there; what it says does not matter.
    async fn probe(&self, endpoint: &Endpoint, what: &str) -> Result<Endpoint> {
        let mut url = endpoint.url("", "")?;
        url.set_path("/v2/");
        let answer = self.client.http(endpoint)?.get(url).send().await;
        let answer = answer.map_err(|error| unreachable(what, endpoint, &error))?;
        if answer.status() == StatusCode::BAD_REQUEST {
            let error = unexpected(what, endpoint, answer).await;
            if matches!(error, Error::Unreachable { .. }) {
                return Err(error);
            }
        }
        Ok(endpoint.clone())
    }
}

/// A download in progress.
struct Download {
    remote: Remote,
    repository: Reference,
    blob: Descriptor,
    what: String,
    offset: u64,
    stuck: u32,
    inner: Option<BlobStream>,
    permit: Option<tokio::sync::OwnedSemaphorePermit>,
}

impl Download {
    async fn next(mut self) -> Option<(std::io::Result<Bytes>, Self)> {
        loop {
            let failure = match self.inner.as_mut()?.next().await {
                Some(Ok(piece)) => {
                    self.offset += piece.len() as u64;
                    self.stuck = 0;
                    return Some((Ok(piece), self));
                }
                None if self.offset >= self.blob.size => {
                    self.permit = None;
                    return None;
                }
                // The server closed early without saying that anything is wrong.
                None => std::io::ErrorKind::UnexpectedEof.into(),
                Some(Err(error)) => error,
            };
            self.stuck += 1;
            if self.stuck > RESUMES {
                self.inner = None;
                let kind = failure.kind();
                let text = format!("broke off at byte {}: {failure}", self.offset);
                let error = Error::io(&self.what, std::io::Error::new(kind, text));
                return Some((Err(std::io::Error::new(kind, error)), self));
            }
            tracing::debug!(what = self.what, offset = self.offset, error = %failure, "resume download");
            tokio::time::sleep(retry::wait(self.stuck)).await;
            let reopened =
                self.remote.open_blob(&self.repository, &self.blob, self.offset, &self.what).await;
            match reopened {
                Ok(stream) => self.inner = Some(stream),
                Err(error) => {
                    self.inner = None;
                    return Some((Err(std::io::Error::other(error)), self));
                }
            }
        }
    }
}

/// The answer's body, in which nothing may come for as long as `stall`.
fn pieces(answer: Response, stall: Duration) -> BlobStream {
    let next = move |mut body: BlobStream| async move {
        let piece = match tokio::time::timeout(stall, body.next()).await {
            Ok(piece) => piece?,
            Err(_) => {
                let text = format!("nothing came for {} seconds", stall.as_secs());
                Err(std::io::Error::new(std::io::ErrorKind::TimedOut, text))
            }
        };
        Some((piece, body))
    };
    let text = |error: reqwest::Error| std::io::Error::other(innermost(&error));
    let body = answer.bytes_stream().map(move |piece| piece.map_err(text)).boxed();
    stream::unfold(body, next).boxed()
}

/// Leaves out the first bytes, for servers that do not know ranges.
fn skip(inner: BlobStream, mut offset: u64) -> BlobStream {
    if offset == 0 {
        return inner;
    }
    inner
        .filter_map(move |piece| {
            let rest = piece.map(|piece| {
                let cut = piece.len().min(usize::try_from(offset).unwrap_or(usize::MAX));
                offset -= cut as u64;
                piece.slice(cut..)
            });
            std::future::ready((!matches!(&rest, Ok(rest) if rest.is_empty())).then_some(rest))
        })
        .boxed()
}

fn content_type(answer: &Response) -> Option<String> {
    let value = answer.headers().get(header::CONTENT_TYPE)?.to_str().ok()?;
    Some(value.split(';').next()?.trim().to_owned())
}

/// The descriptor a response's headers tell of.
pub(super) fn described(answer: &Response) -> Option<Descriptor> {
    let media_type = content_type(answer)?;
    let known = media::is_index(&media_type)
        || media::is_manifest(&media_type)
        || media_type.starts_with(media::DOCKER_MANIFEST_V1.trim_end_matches("+json"));
    let digest = answer.headers().get(CONTENT_DIGEST)?.to_str().ok()?.parse().ok()?;
    let size = answer.headers().get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()?;
    (known && size > 0).then(|| Descriptor::new(media_type, digest, size))
}

async fn read_bounded(answer: Response, stall: Duration, limit: u64, what: &str) -> Result<Bytes> {
    let mut body = BytesMut::new();
    let mut stream = pieces(answer, stall);
    while let Some(piece) = stream.next().await {
        let piece = piece.map_err(|error| Error::io(format!("read {what}"), error))?;
        if (body.len() + piece.len()) as u64 > limit {
            return Err(Error::invalid(what, format!("larger than {limit} bytes")));
        }
        body.extend_from_slice(&piece);
    }
    Ok(body.freeze())
}

/// Target of `Link: <…>; rel="next"`, on the same server only.
fn next_page(answer: &Response, current: &reqwest::Url) -> Option<reqwest::Url> {
    let link = answer.headers().get(header::LINK)?.to_str().ok()?;
    let (target, rest) = link.trim().strip_prefix('<')?.split_once('>')?;
    let next = rest.contains("next").then(|| current.join(target).ok())??;
    (next.origin() == current.origin()).then_some(next)
}
