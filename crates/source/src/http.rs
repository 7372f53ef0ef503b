//! Files from the web: `http://…`, `https://…`, and what a client uploads.
//!
//! A body is stored as one file in a record of its own, found again by everything that shaped it
//! (address, name, owner, mode, headers). The server's ETag tells whether a record is still good.
//! Within one build an address is asked once.
//!
//! ```text
//! field                    in the key   why
//! digest of the body       yes          it is the content
//! file name, mode, owner   yes          they are part of the tree
//! Last-Modified            if fetched   it becomes the file's time
//! header secret, headers   yes          as the reference implementation has it
//! address                  no           where content came from does not matter
//! ```

use std::{
    collections::BTreeMap,
    fs::File,
    io::{Read as _, Write as _},
    sync::{Arc, OnceLock},
    time::{Duration, SystemTime},
};

use base::{Digest, Hasher, gojson};
use bytes::Bytes;
use futures_util::{StreamExt as _, stream::BoxStream};
use reqwest::{
    Method, Response, StatusCode, Url,
    header::{self, HeaderMap, HeaderName, HeaderValue},
};
use rustix::fs::{Gid, Mode, OFlags, Timespec, Timestamps, Uid};
use serde::Serialize;
use session::Group;
use store::{NewRecord, Ref, Store};

use crate::{
    ChecksumRequest, HttpMeta, Instance, KeyStep, Memo, Meta, MetaRequest, Progress, Source,
    SourceError, SourceRequest, attrs,
    http_text::{disposition_name, etag, format_date, parse_date, percent_decode, safe_name},
};

/// Stands for the client in an address.
const UPLOAD_HOST: &str = "buildkit-session";
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
/// Longest silence of a server.
const READ_TIMEOUT: Duration = Duration::from_secs(300);
const DEFAULT_MODE: u32 = 0o600;

/// The source of web files.
pub struct HttpSource {
    shared: Arc<Shared>,
}

struct Shared {
    store: Arc<Store>,
    client: OnceLock<reqwest::Client>,
}

impl Shared {
    /// Made on first use: reading the machine's certificate authorities takes longer than the
    /// daemon's whole start, and memory that most builds never need.
    fn client(&self) -> Result<&reqwest::Client, SourceError> {
        if let Some(client) = self.client.get() {
            return Ok(client);
        }
        // Somebody may have installed it before; it is the same one everywhere.
        _ = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::builder()
            // Some servers tell clients apart by what they are compatible with.
            .user_agent(concat!("rbuild/", env!("CARGO_PKG_VERSION"), " buildkit/v0.31"))
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(READ_TIMEOUT)
            .build()
            .map_err(|error| {
                SourceError::Remote(format!("set up http client: {}", text(&error)))
            })?;
        Ok(self.client.get_or_init(|| client))
    }
}

impl HttpSource {
    /// Keeps files in `store`. Proxies are taken from the daemon's environment.
    pub fn new(store: Arc<Store>) -> Self {
        Self { shared: Arc::new(Shared { store, client: OnceLock::new() }) }
    }

    fn instance(&self, request: SourceRequest) -> Result<Http, SourceError> {
        let wanted = Wanted::parse(&request)?;
        let (group, memo) = (request.group, request.memo);
        Ok(Http { shared: self.shared.clone(), wanted, group, memo, resolved: None })
    }
}

#[async_trait::async_trait]
impl Source for HttpSource {
    fn schemes(&self) -> &'static [&'static str] {
        &["http", "https"]
    }

    async fn resolve(&self, request: SourceRequest) -> Result<Box<dyn Instance>, SourceError> {
        Ok(Box::new(self.instance(request)?))
    }

    async fn metadata(&self, request: MetaRequest) -> Result<Meta, SourceError> {
        let mut instance = self.instance(request.source)?;
        let checksum_response = match request.http_checksum {
            None => None,
            Some(asked) => Some(instance.checksum(asked).await?),
        };
        let found = instance.identify().await?;
        let http = HttpMeta {
            checksum: found.digest.to_string(),
            filename: found.name,
            last_modified: found.modified.as_deref().and_then(parse_date).map(SystemTime::from),
            checksum_response,
        };
        Ok(Meta { http: Some(http), ..Meta::default() })
    }
}

/// What the op asks for.
#[derive(Debug, Clone)]
struct Wanted {
    /// As the op has it.
    address: String,
    url: Url,
    checksum: Option<Digest>,
    name: String,
    mode: i64,
    uid: i64,
    gid: i64,
    secret: String,
    /// Sorted by name.
    headers: Vec<Field>,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Field {
    name: String,
    value: String,
}

impl Wanted {
    fn parse(request: &SourceRequest) -> Result<Self, SourceError> {
        let address = request.op.identifier.clone();
        let url = Url::parse(&address)
            .map_err(|error| SourceError::Attribute(format!("parse {address}: {error}")))?;
        let mut wanted = Self {
            address,
            url,
            checksum: None,
            name: String::new(),
            mode: 0,
            uid: 0,
            gid: 0,
            secret: String::new(),
            headers: Vec::new(),
        };
        for (key, value) in &request.op.attrs {
            match key.as_str() {
                "http.checksum" => {
                    let digest = value.parse::<Digest>();
                    let digest =
                        digest.map_err(|error| SourceError::Attribute(error.to_string()))?;
                    wanted.checksum = Some(digest);
                }
                "http.filename" => wanted.name.clone_from(value),
                "http.perm" => wanted.mode = attrs::integer(key, value)?,
                "http.uid" => wanted.uid = attrs::integer(key, value)?,
                "http.gid" => wanted.gid = attrs::integer(key, value)?,
                "http.authheadersecret" => wanted.secret.clone_from(value),
                "http.sig.pubkey" | "http.sig.signature" => {
                    return Err(SourceError::Attribute(format!(
                        "{key}: signatures of http sources are not verified by this daemon; \
                         give the expected digest with http.checksum"
                    )));
                }
                _ => {
                    let name = key.strip_prefix("http.header.").map(str::to_ascii_lowercase);
                    let name = match name.as_deref() {
                        Some("accept") => "Accept",
                        Some("user-agent") => "User-Agent",
                        _ => continue,
                    };
                    wanted.headers.push(Field { name: name.to_owned(), value: value.clone() });
                }
            }
        }
        wanted.headers.sort_by(|left, right| left.name.cmp(&right.name));
        Ok(wanted)
    }

    /// Under what bodies of this request are found again.
    fn index_key(&self) -> Digest {
        #[derive(Serialize)]
        struct Key<'a> {
            #[serde(rename = "Filename", serialize_with = "gojson::base64_bytes")]
            filename: Vec<u8>,
            #[serde(rename = "Perm")]
            mode: i64,
            #[serde(rename = "UID")]
            uid: i64,
            #[serde(rename = "GID")]
            gid: i64,
            #[serde(rename = "AuthHeaderSecret", skip_serializing_if = "str::is_empty")]
            secret: &'a str,
            #[serde(rename = "Header")]
            headers: Option<&'a [Field]>,
        }
        let filename = [self.address.as_bytes(), self.name.as_bytes()].join(&0);
        Digest::of(gojson::to_vec(&Key {
            filename,
            mode: self.mode,
            uid: self.uid,
            gid: self.gid,
            secret: &self.secret,
            headers: (!self.headers.is_empty()).then_some(&self.headers),
        }))
    }

    fn cache_key(&self, found: &Found) -> String {
        #[derive(Serialize)]
        struct Key<'a> {
            #[serde(rename = "Filename")]
            filename: &'a str,
            #[serde(rename = "Perm")]
            mode: i64,
            #[serde(rename = "UID")]
            uid: i64,
            #[serde(rename = "GID")]
            gid: i64,
            #[serde(rename = "Checksum")]
            checksum: String,
            #[serde(rename = "LastModTime", skip_serializing_if = "str::is_empty")]
            modified: &'a str,
            #[serde(rename = "AuthHeaderSecret", skip_serializing_if = "str::is_empty")]
            secret: &'a str,
            #[serde(rename = "Header", skip_serializing_if = "<[_]>::is_empty")]
            headers: &'a [Field],
        }
        let modified = found.modified.as_deref().and_then(parse_date).map(format_date);
        let json = gojson::to_vec(&Key {
            filename: &found.name,
            mode: self.mode,
            uid: self.uid,
            gid: self.gid,
            checksum: found.digest.to_string(),
            modified: modified.as_deref().unwrap_or_default(),
            secret: &self.secret,
            headers: &self.headers,
        });
        Digest::of(json).to_string()
    }

    /// The file's name, given what the server says about it.
    fn file_name(&self, disposition: Option<&str>) -> String {
        if !self.name.is_empty() {
            return safe_name(&self.name);
        }
        if let Some(name) = disposition.and_then(disposition_name)
            && !name.is_empty()
            && !name.ends_with('/')
        {
            return safe_name(&name);
        }
        safe_name(&percent_decode(self.url.path()))
    }

    fn check(&self, digest: Digest) -> Result<(), SourceError> {
        match self.checksum {
            Some(wanted) if wanted != digest => Err(SourceError::Remote(format!(
                "digest mismatch for {}: {digest} (expected: {wanted})",
                self.address
            ))),
            _ => Ok(()),
        }
    }
}

/// What the key is made of.
#[derive(Debug, Clone)]
struct Found {
    digest: Digest,
    name: String,
    /// As the server wrote it.
    modified: Option<String>,
}

/// A body in the store.
#[derive(Clone)]
struct Stored {
    found: Found,
    record: Ref,
}

struct Http {
    shared: Arc<Shared>,
    wanted: Wanted,
    group: Group,
    memo: Arc<Memo>,
    resolved: Option<Found>,
}

#[async_trait::async_trait]
impl Instance for Http {
    async fn cache_key(&mut self, _: usize, _: &Progress) -> Result<KeyStep, SourceError> {
        let found = self.identify().await?;
        Ok(KeyStep::only(self.wanted.cache_key(&found)))
    }

    async fn snapshot(&mut self, _: &Progress) -> Result<Option<Ref>, SourceError> {
        if let Some(wanted) = self.wanted.checksum
            && let Some(stored) = self.stored().into_iter().find(|it| it.found.digest == wanted)
        {
            return Ok(Some(stored.record));
        }
        let stored = self.fetched().await?;
        self.wanted.check(stored.found.digest)?;
        if let Some(known) = &self.resolved
            && known.digest != stored.found.digest
        {
            return Err(SourceError::Remote(format!(
                "digest mismatch for {}: {} (expected: {})",
                self.wanted.address, stored.found.digest, known.digest
            )));
        }
        Ok(Some(stored.record))
    }
}

impl Http {
    /// What is known of the body; with a checksum nothing is fetched for it.
    async fn identify(&mut self) -> Result<Found, SourceError> {
        if let Some(found) = &self.resolved {
            return Ok(found.clone());
        }
        let found = match self.wanted.checksum {
            Some(digest) => Found { digest, name: self.wanted.file_name(None), modified: None },
            None => self.fetched().await?.found,
        };
        self.resolved = Some(found.clone());
        Ok(found)
    }

    /// The body, fetched once in this build.
    async fn fetched(&self) -> Result<Stored, SourceError> {
        let key = format!("http:{}", self.wanted.index_key());
        self.memo.get(&key, || self.fetch()).await
    }

    /// A checksum of the body and something behind it.
    async fn checksum(&self, asked: ChecksumRequest) -> Result<(String, Bytes), SourceError> {
        let stored = self.fetched().await?;
        self.wanted.check(stored.found.digest)?;
        let name = stored.found.name.clone();
        let hashed = tokio::task::spawn_blocking(move || {
            let tree = stored.record.tree()?;
            let failed = |error: std::io::Error| SourceError::io(format!("read {name}"), error);
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let file = rustix::fs::openat(tree.fd(), name.as_str(), flags, Mode::empty());
            let file = File::from(file.map_err(|errno| failed(errno.into()))?);
            let digest = match asked.algorithm {
                "sha384" => hash::<sha2::Sha384>(file, &asked.suffix),
                "sha512" => hash::<sha2::Sha512>(file, &asked.suffix),
                _ => hash::<sha2::Sha256>(file, &asked.suffix),
            };
            let digest = format!("{}:{}", asked.algorithm, digest.map_err(failed)?);
            Ok((digest, asked.suffix))
        });
        hashed.await.map_err(|error| SourceError::Remote(format!("hash a body: {error}")))?
    }

    fn stored(&self) -> Vec<Stored> {
        let store = &self.shared.store;
        let records = store.find(&self.record_key());
        let records = records.iter().filter_map(|id| store.get(id));
        records
            .filter_map(|record| {
                let digest = record.metadata("http.checksum")?.parse().ok()?;
                let name = record.metadata("http.name")?;
                let modified = record.metadata("http.modtime");
                Some(Stored { found: Found { digest, name, modified }, record })
            })
            .collect()
    }

    fn record_key(&self) -> String {
        format!("http-url::{}", self.wanted.index_key())
    }

    async fn fetch(&self) -> Result<Stored, SourceError> {
        if self.wanted.url.host_str() == Some(UPLOAD_HOST) {
            return self.fetch_upload().await;
        }
        let headers = self.headers().await?;
        let tagged: BTreeMap<String, Stored> = self
            .stored()
            .into_iter()
            .filter_map(|stored| Some((stored.record.metadata("http.etag")?, stored)))
            .collect();
        // Some servers do not repeat the only ETag they were asked about.
        let only = (tagged.len() == 1).then(|| tagged.keys().next().cloned()).flatten();
        let mut conditional = headers;
        if !tagged.is_empty() {
            let list = tagged.keys().cloned().collect::<Vec<_>>().join(", ");
            if let Ok(list) = HeaderValue::from_str(&list) {
                conditional.insert(header::IF_NONE_MATCH, list);
            }
            // Some answer If-None-Match with a full body although the tag is the same.
            if let Ok(answer) = self.ask(Method::HEAD, conditional.clone()).await
                && matches!(answer.status(), StatusCode::OK | StatusCode::NOT_MODIFIED)
                && let Some(known) = known(&answer, &tagged, only.as_deref())
            {
                return Ok(self.again(known, &answer));
            }
        }
        let answer = self.ask(Method::GET, conditional).await?;
        let status = answer.status();
        if status == StatusCode::NOT_MODIFIED {
            return match known(&answer, &tagged, only.as_deref()) {
                Some(known) => Ok(self.again(known, &answer)),
                None => Err(SourceError::Remote(format!(
                    "invalid not-modified ETag: {}",
                    value(&answer, header::ETAG).unwrap_or_default()
                ))),
            };
        }
        if !(200..400).contains(&status.as_u16()) {
            return Err(SourceError::Remote(format!(
                "invalid response status {}",
                status.as_u16()
            )));
        }
        let tag = value(&answer, header::ETAG).map(|tag| etag(&tag));
        let modified = value(&answer, header::LAST_MODIFIED);
        let coding = value(&answer, header::CONTENT_ENCODING).unwrap_or_default();
        let zipped = coding.trim().eq_ignore_ascii_case("gzip");
        let name = self.wanted.file_name(value(&answer, header::CONTENT_DISPOSITION).as_deref());
        let address = self.wanted.address.clone();
        let body = answer.bytes_stream().map(move |chunk| {
            chunk.map_err(|error| SourceError::Remote(format!("read {address}: {}", text(&error))))
        });
        self.save(Box::pin(body), name, tag, modified, zipped).await
    }

    /// A record that the server confirmed; the name may come from this answer.
    fn again(&self, known: &Stored, answer: &Response) -> Stored {
        let mut stored = known.clone();
        if let Some(disposition) = value(answer, header::CONTENT_DISPOSITION) {
            stored.found.name = self.wanted.file_name(Some(&disposition));
        }
        stored
    }

    async fn fetch_upload(&self) -> Result<Stored, SourceError> {
        let url = &self.wanted.url;
        let path = match url.query() {
            Some(query) => format!("{}?{query}", url.path()),
            None => url.path().to_owned(),
        };
        let chunks = self.group.any(async |session| session.upload(&path).await).await?;
        let body = chunks.map(|chunk| chunk.map_err(SourceError::from));
        self.save(Box::pin(body), self.wanted.file_name(None), None, None, false).await
    }

    async fn headers(&self) -> Result<HeaderMap, SourceError> {
        let mut headers = HeaderMap::new();
        // Compressed on the way only: what is stored is the body itself.
        headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("gzip"));
        for field in &self.wanted.headers {
            let name = HeaderName::from_bytes(field.name.as_bytes());
            let (Ok(name), Ok(value)) = (name, HeaderValue::from_str(&field.value)) else {
                return Err(SourceError::Attribute(format!(
                    "invalid value of http header {}",
                    field.name
                )));
            };
            headers.insert(name, value);
        }
        if let Some(value) = self.authorization().await? {
            headers.insert(header::AUTHORIZATION, value);
        }
        Ok(headers)
    }

    async fn authorization(&self) -> Result<Option<HeaderValue>, SourceError> {
        let secret_value = |text: String, id: &str| {
            let mut value =
                HeaderValue::from_str(text.trim_end_matches(['\r', '\n'])).map_err(|_| {
                    SourceError::Remote(format!("HTTP auth secret {id} is not a header value"))
                })?;
            value.set_sensitive(true);
            Ok::<_, SourceError>(value)
        };
        let plain = |data: Bytes| String::from_utf8_lossy(&data).into_owned();
        let id = &self.wanted.secret;
        if !id.is_empty() {
            let why = match self.group.secret(id).await {
                Ok(Some(data)) => return secret_value(plain(data), id).map(Some),
                Ok(None) => format!("secret {id}: not found"),
                Err(error) => error.to_string(),
            };
            return Err(SourceError::Remote(format!(
                "failed to retrieve HTTP auth secret {id}: {why}"
            )));
        }
        let Some(host) = self.wanted.url.host_str() else { return Ok(None) };
        let token = format!("HTTP_AUTH_TOKEN_{host}");
        if let Ok(Some(data)) = self.group.secret(&token).await {
            return secret_value(format!("Bearer {}", plain(data)), &token).map(Some);
        }
        let whole = format!("HTTP_AUTH_HEADER_{host}");
        match self.group.secret(&whole).await {
            Ok(Some(data)) => secret_value(plain(data), &whole).map(Some),
            _ => Ok(None),
        }
    }

    async fn ask(&self, method: Method, headers: HeaderMap) -> Result<Response, SourceError> {
        let request =
            self.shared.client()?.request(method, self.wanted.url.clone()).headers(headers);
        request.send().await.map_err(|error| {
            SourceError::Remote(format!("get {}: {}", self.wanted.address, text(&error)))
        })
    }

    /// Stores a body as a tree of one file.
    async fn save(
        &self,
        mut body: BoxStream<'_, Result<Bytes, SourceError>>,
        name: String,
        tag: Option<String>,
        modified: Option<String>,
        zipped: bool,
    ) -> Result<Stored, SourceError> {
        let record = self.shared.store.create(NewRecord {
            description: format!("http url {}", self.wanted.address),
            index_keys: vec![self.record_key()],
            ..NewRecord::default()
        })?;
        let tree = record.tree()?;
        let failed = |error: std::io::Error| SourceError::io(format!("write {name}"), error);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let file = rustix::fs::openat(tree.fd(), name.as_str(), flags, Mode::from_raw_mode(0o600))
            .map_err(|errno| failed(errno.into()))?;
        let plain = Plain { file: File::from(file), hasher: Hasher::new() };
        let mut target = match zipped {
            true => Target::Zipped(Box::new(flate2::write::MultiGzDecoder::new(plain))),
            false => Target::Plain(plain),
        };
        while let Some(chunk) = body.next().await {
            let chunk = chunk?;
            let written = tokio::task::spawn_blocking(move || {
                let result = target.write(&chunk);
                (target, result)
            });
            let (back, result) = written
                .await
                .map_err(|error| SourceError::Remote(format!("write {name}: {error}")))?;
            target = back;
            result.map_err(failed)?;
        }
        let Plain { file, hasher } = target.finish().map_err(failed)?;
        let digest = hasher.finish();
        self.wanted.check(digest)?;
        self.finish_file(&file, modified.as_deref()).map_err(failed)?;
        drop((file, tree));
        record.set_metadata("http.checksum", Some(digest.to_string()));
        record.set_metadata("http.name", Some(name.clone()));
        record.set_metadata("http.etag", tag.filter(|tag| !tag.is_empty()));
        record.set_metadata("http.modtime", modified.clone());
        let record = record.commit().await?;
        Ok(Stored { found: Found { digest, name, modified }, record })
    }

    fn finish_file(&self, file: &File, modified: Option<&str>) -> std::io::Result<()> {
        let wanted = &self.wanted;
        let number = |value: i64| {
            u32::try_from(value).map_err(|_| std::io::Error::other("owner out of range"))
        };
        let (uid, gid) = (number(wanted.uid)?, number(wanted.gid)?);
        rustix::fs::fchown(file, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
        let mode = match wanted.mode {
            0 => DEFAULT_MODE,
            other => (other & 0o777) as u32,
        };
        rustix::fs::fchmod(file, Mode::from_raw_mode(mode))?;
        let seconds = modified.and_then(parse_date).map_or(0, time::OffsetDateTime::unix_timestamp);
        let at = Timespec { tv_sec: seconds, tv_nsec: 0 };
        let times = Timestamps { last_access: at, last_modification: at };
        Ok(rustix::fs::futimens(file, &times)?)
    }
}

/// Where a body goes.
struct Plain {
    file: File,
    hasher: Hasher,
}

impl std::io::Write for Plain {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.file.write_all(bytes)?;
        self.hasher.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.file.flush()
    }
}

/// What the server's coding makes of it on the way there.
enum Target {
    Plain(Plain),
    Zipped(Box<flate2::write::MultiGzDecoder<Plain>>),
}

impl Target {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        match self {
            Self::Plain(plain) => plain.write_all(bytes),
            Self::Zipped(decoder) => decoder.write_all(bytes),
        }
    }

    fn finish(self) -> std::io::Result<Plain> {
        match self {
            Self::Plain(plain) => Ok(plain),
            Self::Zipped(decoder) => decoder.finish(),
        }
    }
}

/// Hex digest of a file and what comes behind it.
fn hash<H: sha2::Digest>(mut file: File, suffix: &[u8]) -> std::io::Result<String> {
    let mut hasher = H::new();
    let mut buffer = vec![0; 256 << 10];
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            length => hasher.update(&buffer[..length]),
        }
    }
    hasher.update(suffix);
    Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

fn value(answer: &Response, name: HeaderName) -> Option<String> {
    Some(String::from_utf8_lossy(answer.headers().get(name)?.as_bytes()).into_owned())
}

/// The record an answer says is still good.
fn known<'a>(
    answer: &Response,
    tagged: &'a BTreeMap<String, Stored>,
    only: Option<&str>,
) -> Option<&'a Stored> {
    let mut tag = value(answer, header::ETAG).map(|tag| etag(&tag)).unwrap_or_default();
    if tag.is_empty() && answer.status() == StatusCode::NOT_MODIFIED {
        only?.clone_into(&mut tag);
    }
    tagged.get(&tag)
}

/// The error with its causes, without the address (it may hold a password).
fn text(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    cause.to_string()
}

#[cfg(test)]
#[path = "http_tests.rs"]
mod tests;
