//! Giving to a registry: blobs that it does not have, then manifests.
//!
//! A blob is sent in one request. If that breaks in the middle, the registry is asked how far it
//! got and the rest follows in parts; a server that refuses large requests gets parts at once.

use bytes::Bytes;
use http::{HeaderValue, Method, StatusCode, header};
use reqwest::{Response, Url};

use super::{
    Pushed,
    auth::Scopes,
    client::{Direction, Remote, Request, unexpected},
    hosts::Endpoint,
    pull::described,
    retry,
};
use crate::{Descriptor, Error, Provider, Reference, Result, content, media};

/// Times an upload is taken up again.
const RESUMES: u32 = 4;

impl Remote {
    pub(super) async fn do_push_blob(
        &self,
        repository: &Reference,
        blob: &Descriptor,
        from: &dyn Provider,
        mount_from: &[Reference],
    ) -> Result<Pushed> {
        let what = format!("push blob {} to {}", blob.digest, repository.repository());
        let endpoint = self.own_endpoint(repository, &what).await?;
        let mut push = Push {
            remote: self,
            endpoint: &endpoint,
            scopes: Scopes::push(repository.path()),
            repository,
            blob,
            what: &what,
        };
        if push.exists().await? {
            return Ok(Pushed::Exists);
        }
        let mut mounted = None;
        for source in mount_from.iter().filter(|source| source.domain() == repository.domain()) {
            match push.start(Some(source)).await? {
                Started::Mounted => return Ok(Pushed::Mounted(source.clone())),
                Started::Upload(location) => mounted = Some(location),
            }
        }
        let _permit = self.client.limit(repository.host(), Direction::Push).acquire_owned().await;
        let location = match mounted {
            Some(location) => location,
            None => match push.start(None).await? {
                Started::Upload(location) => location,
                Started::Mounted => return Ok(Pushed::Exists),
            },
        };
        push.upload(location, from).await?;
        Ok(Pushed::Uploaded)
    }

    pub(super) async fn do_has_manifest(
        &self,
        reference: &Reference,
        manifest: &Descriptor,
    ) -> Result<bool> {
        let what = format!("look for manifest {} as {reference}", manifest.digest);
        let endpoint = self.own_endpoint(reference, &what).await?;
        let url = manifest_url(&endpoint, reference, manifest)?;
        let mut look = Request::new(&what, Method::HEAD, url, Scopes::push(reference.path()));
        look.headers.insert(header::ACCEPT, HeaderValue::from_static(media::ACCEPT_MANIFESTS));
        let there = self.send(&endpoint, look).await?;
        // Some registries let only pushers look; the push will tell.
        Ok(there.status().is_success()
            && described(&there).is_some_and(|found| {
                found.digest == manifest.digest && found.media_type == manifest.media_type
            }))
    }

    pub(super) async fn do_push_manifest(
        &self,
        reference: &Reference,
        manifest: &Descriptor,
        body: Bytes,
    ) -> Result<()> {
        // What is there already need not be sent: a repeated push costs looks only.
        if self.do_has_manifest(reference, manifest).await? {
            return Ok(());
        }
        let what = format!("push manifest {} as {reference}", manifest.digest);
        let endpoint = self.own_endpoint(reference, &what).await?;
        let url = manifest_url(&endpoint, reference, manifest)?;
        let mut request = Request::new(&what, Method::PUT, url, Scopes::push(reference.path()));
        let media_type = HeaderValue::from_str(&manifest.media_type)
            .map_err(|error| Error::invalid(&what, error))?;
        request.headers.insert(header::CONTENT_TYPE, media_type);
        request.body = Some(body);
        let answer = self.send(&endpoint, request).await?;
        if answer.status().is_success() {
            return Ok(());
        }
        Err(unexpected(&what, &endpoint, answer).await)
    }
}

/// Where a manifest is under the tag of `reference`, or under its digest if it has none.
fn manifest_url(endpoint: &Endpoint, reference: &Reference, manifest: &Descriptor) -> Result<Url> {
    let object = reference.tag().map_or_else(|| manifest.digest.to_string(), str::to_owned);
    endpoint.url(reference.path(), &format!("manifests/{object}"))
}

enum Started {
    Mounted,
    Upload(Url),
}

struct Push<'a> {
    remote: &'a Remote,
    endpoint: &'a Endpoint,
    scopes: Scopes,
    repository: &'a Reference,
    blob: &'a Descriptor,
    what: &'a str,
}

impl Push<'_> {
    fn request(&self, method: Method, url: Url) -> Request<'_> {
        Request::new(self.what, method, url, self.scopes.clone())
    }

    async fn exists(&self) -> Result<bool> {
        let path = format!("blobs/{}", self.blob.digest);
        let url = self.endpoint.url(self.repository.path(), &path)?;
        let answer = self.remote.send(self.endpoint, self.request(Method::HEAD, url)).await?;
        match answer.status() {
            status if status.is_success() => Ok(true),
            StatusCode::NOT_FOUND => Ok(false),
            // Some registries let only pushers look; the upload will tell.
            StatusCode::FORBIDDEN | StatusCode::METHOD_NOT_ALLOWED => Ok(false),
            _ => Err(unexpected(self.what, self.endpoint, answer).await),
        }
    }

    async fn start(&mut self, mount: Option<&Reference>) -> Result<Started> {
        let mut url = self.endpoint.url(self.repository.path(), "blobs/uploads/")?;
        let mut scopes = self.scopes.clone();
        if let Some(source) = mount {
            url.query_pairs_mut()
                .append_pair("mount", &self.blob.digest.to_string())
                .append_pair("from", source.path());
            scopes.add(&format!("repository:{}:pull", source.path()));
        }
        let mut request = Request::new(self.what, Method::POST, url.clone(), scopes);
        request.body = Some(Bytes::new());
        let answer = match self.remote.send(self.endpoint, request).await {
            // No access to the repository to mount from: go on without it.
            Err(Error::Unauthorized { .. } | Error::Credentials { .. }) if mount.is_some() => {
                return Box::pin(self.start(None)).await;
            }
            answer => answer?,
        };
        match answer.status() {
            StatusCode::CREATED => Ok(Started::Mounted),
            StatusCode::ACCEPTED => Ok(Started::Upload(self.location(&answer, &url)?)),
            _ if mount.is_some() => Box::pin(self.start(None)).await,
            _ => Err(unexpected(self.what, self.endpoint, answer).await),
        }
    }

    fn location(&self, answer: &Response, base: &Url) -> Result<Url> {
        answer
            .headers()
            .get(header::LOCATION)
            .and_then(|value| base.join(value.to_str().ok()?).ok())
            .ok_or_else(|| Error::invalid(self.what, "the registry named no place for the upload"))
    }

    fn with_digest(&self, location: &Url) -> Url {
        let mut url = location.clone();
        url.query_pairs_mut().append_pair("digest", &self.blob.digest.to_string());
        url
    }

    async fn upload(&self, mut location: Url, from: &dyn Provider) -> Result<()> {
        let mut failures = 0;
        let mut done = 0;
        let mut in_parts = false;
        loop {
            let result = if done == 0 && !in_parts {
                self.put_whole(&location, from).await
            } else {
                self.put_parts(&mut location, from, done).await
            };
            let failure = match result {
                Ok(()) => return Ok(()),
                Err(Error::Status { status: 413, .. }) if !in_parts => {
                    in_parts = true;
                    location = self.fresh_location().await?;
                    continue;
                }
                Err(error) => error,
            };
            failures += 1;
            let temporary = match &failure {
                Error::Unreachable { .. } => true,
                Error::Status { status, .. } => retry::is_temporary(*status),
                _ => false,
            };
            if !temporary || failures > RESUMES {
                return Err(failure);
            }
            tracing::debug!(what = self.what, error = %failure, "resume upload");
            tokio::time::sleep(retry::wait(failures)).await;
            // It may have arrived although the answer did not.
            if self.exists().await? {
                return Ok(());
            }
            match self.progress(&location).await? {
                Some((at, got)) => (location, done) = (at, got),
                None => (location, done) = (self.fresh_location().await?, 0),
            }
        }
    }

    async fn fresh_location(&self) -> Result<Url> {
        let url = self.endpoint.url(self.repository.path(), "blobs/uploads/")?;
        let mut request = self.request(Method::POST, url.clone());
        request.body = Some(Bytes::new());
        let answer = self.remote.send(self.endpoint, request).await?;
        match answer.status() {
            StatusCode::ACCEPTED => self.location(&answer, &url),
            _ => Err(unexpected(self.what, self.endpoint, answer).await),
        }
    }

    async fn put_whole(&self, location: &Url, from: &dyn Provider) -> Result<()> {
        let body =
            content::verified(self.what.to_owned(), self.blob, from.open(self.blob, 0).await?);
        let mut request = self.request(Method::PUT, self.with_digest(location));
        let binary = HeaderValue::from_static("application/octet-stream");
        request.headers.insert(header::CONTENT_TYPE, binary);
        let answer = self.remote.send_stream(self.endpoint, request, self.blob.size, body).await?;
        self.accept(answer).await.map(|_| ())
    }

    async fn put_parts(
        &self,
        location: &mut Url,
        from: &dyn Provider,
        mut done: u64,
    ) -> Result<()> {
        let part = self.remote.client.chunk_size();
        while done < self.blob.size {
            let length = part.min(self.blob.size - done);
            let body = content::take(from.open(self.blob, done).await?, length);
            let mut request = self.request(Method::PATCH, location.clone());
            let binary = HeaderValue::from_static("application/octet-stream");
            request.headers.insert(header::CONTENT_TYPE, binary);
            let range = HeaderValue::from_str(&format!("{done}-{}", done + length - 1));
            request.headers.insert(header::CONTENT_RANGE, range.expect("digits and a dash"));
            let answer = self.remote.send_stream(self.endpoint, request, length, body).await?;
            let answer = self.accept(answer).await?;
            *location = self.location(&answer, location)?;
            done += length;
        }
        let mut request = self.request(Method::PUT, self.with_digest(location));
        request.body = Some(Bytes::new());
        let answer = self.remote.send(self.endpoint, request).await?;
        self.accept(answer).await.map(|_| ())
    }

    async fn accept(&self, answer: Response) -> Result<Response> {
        match answer.status() {
            status if status.is_success() => Ok(answer),
            // Tokens expire during long uploads; the next attempt asks for a new one.
            StatusCode::UNAUTHORIZED => {
                let mut scopes = self.scopes.clone();
                self.remote.refused(self.endpoint, &answer, None, &mut scopes).await?;
                Err(Error::Status {
                    what: self.what.to_owned(),
                    host: self.endpoint.host.clone(),
                    status: 503,
                    message: "the token expired during the upload".into(),
                })
            }
            _ => Err(unexpected(self.what, self.endpoint, answer).await),
        }
    }

    /// How many bytes the registry has, and where to send the rest; `None`: start again.
    async fn progress(&self, location: &Url) -> Result<Option<(Url, u64)>> {
        let answer =
            self.remote.send(self.endpoint, self.request(Method::GET, location.clone())).await?;
        if !answer.status().is_success() {
            return Ok(None);
        }
        let end = answer.headers().get(header::RANGE).and_then(|value| {
            value.to_str().ok()?.trim_start_matches("bytes=").split_once('-')?.1.parse::<u64>().ok()
        });
        // `0-0` means nothing or one byte; sending that byte again would be refused, starting
        // again costs one request.
        match end {
            Some(end) if end > 0 && end < self.blob.size => {
                let next = self.location(&answer, location).unwrap_or_else(|_| location.clone());
                Ok(Some((next, end + 1)))
            }
            _ => Ok(None),
        }
    }
}
