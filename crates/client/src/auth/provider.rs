//! The `Auth` service of a client's session.
//!
//! A token authority is an Ed25519 key derived from the daemon's salt and, for registries with a
//! login, from a seed kept beside docker's configuration. Two clients share the daemon's cached
//! token exactly if they derive the same key.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fs::File,
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::OnceLock,
    time::{Duration, Instant, SystemTime},
};

use base64::{Engine as _, prelude::BASE64_STANDARD as BASE64};
use proto::{
    control::{StatusResponse, Vertex},
    moby::filesync::v1::{
        CredentialsRequest, CredentialsResponse, FetchTokenRequest, FetchTokenResponse,
        GetTokenAuthorityRequest, GetTokenAuthorityResponse, VerifyTokenAuthorityRequest,
        VerifyTokenAuthorityResponse, auth_server::Auth,
    },
};
use ring::{
    hmac,
    signature::{Ed25519KeyPair, KeyPair as _},
};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex, mpsc};
use tonic::{Request, Response, Status};

use super::{
    config::{AuthEntry, DockerConfig},
    token,
};

/// Some clouds' tokens live five minutes; ask the helper again before that.
const KEEP_LOGIN: Duration = Duration::from_secs(4 * 60 + 50);

/// Answers the daemon's questions about registries.
pub struct AuthProvider {
    config: DockerConfig,
    folder: PathBuf,
    /// Made when the first token is fetched: it reads the machine's certificate authorities, which
    /// takes longer than everything else a session does at its start.
    http: OnceLock<Result<reqwest::Client, String>>,
    client_tokens: bool,
    state: Mutex<State>,
    progress: Option<mpsc::WeakSender<StatusResponse>>,
}

#[derive(Default)]
struct State {
    logins: HashMap<String, (Instant, AuthEntry)>,
    announced: HashSet<String>,
}

impl AuthProvider {
    /// A provider over `config`; seeds are kept in `folder`.
    pub fn new(config: DockerConfig, folder: PathBuf) -> Self {
        let disabled = std::env::var("BUILDKIT_NO_CLIENT_TOKEN");
        let client_tokens =
            !matches!(disabled.as_deref(), Ok("1" | "t" | "T" | "true" | "TRUE" | "True"));
        let (http, state) = (OnceLock::new(), Mutex::default());
        Self { config, folder, http, client_tokens, state, progress: None }
    }

    fn http(&self) -> Result<&reqwest::Client, Status> {
        let http = self.http.get_or_init(|| {
            // Fails only if another provider was installed first, which serves as well.
            let _ = rustls::crypto::ring::default_provider().install_default();
            reqwest::Client::builder().build().map_err(|error| error.to_string())
        });
        http.as_ref().map_err(|error| Status::unknown(error.clone()))
    }

    /// The provider over the user's own docker configuration.
    pub fn from_user() -> io::Result<Self> {
        Ok(Self::new(DockerConfig::load()?, DockerConfig::folder()))
    }

    /// Announces in the build's progress when a login is used.
    pub fn with_progress(mut self, progress: mpsc::WeakSender<StatusResponse>) -> Self {
        self.progress = Some(progress);
        self
    }

    /// Looks the host up once every few minutes; one helper program runs at a time, because some
    /// key chains hang otherwise.
    async fn login(&self, host: &str) -> Result<AuthEntry, Status> {
        let mut state = self.state.lock().await;
        if let Some((at, entry)) = state.logins.get(host)
            && at.elapsed() < KEEP_LOGIN
        {
            return Ok(entry.clone());
        }
        let entry =
            self.config.lookup(host).await.map_err(|error| Status::unknown(error.to_string()))?;
        state.logins.insert(host.to_owned(), (Instant::now(), entry.clone()));
        Ok(entry)
    }

    /// Shows `name` as a step that began and ended now, the first time it is called with it.
    async fn announce(&self, name: String) {
        // Weak, so that a session that lingers does not keep the display waiting.
        let Some(progress) = self.progress.as_ref().and_then(mpsc::WeakSender::upgrade) else {
            return;
        };
        if !self.state.lock().await.announced.insert(name.clone()) {
            return;
        }
        let now = prost_types::Timestamp::from(SystemTime::now());
        let digest = base::Digest::of(&name).to_string();
        let mut vertex = Vertex { digest, name, started: Some(now), ..Vertex::default() };
        vertex.completed = Some(now);
        let status = StatusResponse { vertexes: vec![vertex], ..StatusResponse::default() };
        // Nobody listening is fine: the announcement is a courtesy.
        let _ = progress.send(status).await;
    }

    async fn key(&self, host: &str, salt: &[u8]) -> Result<Ed25519KeyPair, Status> {
        if !self.client_tokens {
            return Err(Status::unavailable("client side tokens disabled"));
        }
        let entry = self.login(host).await?;
        let mut mac = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, salt));
        if !entry.login().1.is_empty() {
            let folder = self.folder.clone();
            let host = host.to_owned();
            let seed = tokio::task::spawn_blocking(move || seed(&folder, &host))
                .await
                .expect("reading a seed does not panic")
                .map_err(|error| Status::unknown(error.to_string()))?;
            mac.update(&seed);
        }
        Ed25519KeyPair::from_seed_unchecked(mac.sign().as_ref())
            .map_err(|error| Status::internal(error.to_string()))
    }
}

#[tonic::async_trait]
impl Auth for AuthProvider {
    async fn credentials(
        &self,
        request: Request<CredentialsRequest>,
    ) -> Result<Response<CredentialsResponse>, Status> {
        let host = request.into_inner().host;
        let entry = self.login(&host).await?;
        let (user, secret) = entry.login();
        if !secret.is_empty() {
            self.announce(format!("[auth] sharing credentials for {host}")).await;
        }
        let response = CredentialsResponse { username: user.to_owned(), secret: secret.to_owned() };
        Ok(Response::new(response))
    }

    async fn fetch_token(
        &self,
        request: Request<FetchTokenRequest>,
    ) -> Result<Response<FetchTokenResponse>, Status> {
        let request = request.into_inner();
        let entry = self.login(&request.host).await?;
        if !entry.registry_token.is_empty() {
            let token = entry.registry_token;
            return Ok(Response::new(FetchTokenResponse { token, expires_in: 60, issued_at: 0 }));
        }
        let (user, secret) = entry.login();
        if !secret.is_empty() {
            let scopes = request.scopes.iter();
            let scopes: Vec<&str> =
                scopes.map(|scope| scope.strip_prefix("repository:").unwrap_or(scope)).collect();
            let name = format!("[auth] {} token for {}", scopes.join(" "), request.host);
            self.announce(name).await;
        }
        let kind = if secret.is_empty() { "anonymous" } else { "oauth" };
        let token = token::fetch(self.http()?, &request, user, secret).await;
        let token = token.map_err(|error| {
            let text = format!("failed to fetch {kind} token: {error}");
            match error.is_refusal() {
                true => Status::unauthenticated(text),
                false => Status::unknown(text),
            }
        })?;
        Ok(Response::new(token))
    }

    async fn get_token_authority(
        &self,
        request: Request<GetTokenAuthorityRequest>,
    ) -> Result<Response<GetTokenAuthorityResponse>, Status> {
        let request = request.into_inner();
        let key = self.key(&request.host, &request.salt).await?;
        let public_key = key.public_key().as_ref().to_vec().into();
        Ok(Response::new(GetTokenAuthorityResponse { public_key }))
    }

    async fn verify_token_authority(
        &self,
        request: Request<VerifyTokenAuthorityRequest>,
    ) -> Result<Response<VerifyTokenAuthorityResponse>, Status> {
        let request = request.into_inner();
        let key = self.key(&request.host, &request.salt).await?;
        let mut signed = key.sign(&request.payload).as_ref().to_vec();
        signed.extend_from_slice(&request.payload);
        Ok(Response::new(VerifyTokenAuthorityResponse { signed: signed.into() }))
    }
}

#[derive(Serialize, Deserialize)]
struct Seed {
    #[serde(rename = "Seed")]
    seed: String,
}

/// The random bytes kept for `host`, made on first use. A read-only folder gives fresh ones.
fn seed(folder: &Path, host: &str) -> io::Result<Vec<u8>> {
    let tolerable = |error: &io::Error| {
        matches!(
            error.kind(),
            io::ErrorKind::PermissionDenied
                | io::ErrorKind::ReadOnlyFilesystem
                | io::ErrorKind::NotFound
                | io::ErrorKind::NotADirectory
        )
    };
    let _ = std::fs::create_dir_all(folder);
    let lock = match File::create(folder.join(".token_seed.lock")) {
        Ok(lock) => Some(lock),
        Err(error) if tolerable(&error) => None,
        Err(error) => return Err(error),
    };
    if let Some(lock) = &lock {
        flock(lock, FlockOperation::LockExclusive)?;
    }
    let path = folder.join(".token_seed");
    let mut seeds: BTreeMap<String, Seed> = match std::fs::read(&path) {
        // A file cut short by a crash only costs a token.
        Ok(text) => serde_json::from_slice(&text).unwrap_or_default(),
        Err(error) if tolerable(&error) => BTreeMap::new(),
        Err(error) => return Err(error),
    };
    if let Some(found) = seeds.get(host)
        && let Ok(bytes) = BASE64.decode(&found.seed)
    {
        return Ok(bytes);
    }
    let fresh = BASE64.encode(base::id::random_hex(16));
    let bytes = BASE64.decode(&fresh).expect("was just encoded");
    seeds.insert(host.to_owned(), Seed { seed: fresh });
    let text = base::gojson::to_vec_indented(&seeds);
    let mut options = File::options();
    let open = options.create(true).write(true).truncate(true).mode(0o600).open(&path);
    match open.and_then(|mut file| file.write_all(&text)) {
        Err(error) if !tolerable(&error) => Err(error),
        _ => Ok(bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        let first = seed(folder.path(), "a").unwrap();
        assert_eq!(first, seed(folder.path(), "a").unwrap());
        assert_ne!(first, seed(folder.path(), "b").unwrap());
        assert_eq!(first, seed(folder.path(), "a").unwrap());
    }

    #[tokio::test]
    async fn authority_proves_itself() {
        let folder = tempfile::tempdir().unwrap();
        let provider = AuthProvider::new(DockerConfig::default(), folder.path().into());
        let salt = bytes::Bytes::from_static(&[7; 32]);
        let ask = GetTokenAuthorityRequest { host: "h".into(), salt: salt.clone() };
        let key = provider.get_token_authority(Request::new(ask)).await.unwrap().into_inner();
        let payload = bytes::Bytes::from_static(b"payload");
        let ask = VerifyTokenAuthorityRequest { host: "h".into(), payload: payload.clone(), salt };
        let signed = provider.verify_token_authority(Request::new(ask)).await.unwrap().into_inner();
        let (signature, message) = signed.signed.split_at(64);
        assert_eq!(message, payload);
        ring::signature::UnparsedPublicKey::new(&ring::signature::ED25519, &key.public_key)
            .verify(message, signature)
            .unwrap();
    }
}
