//! Who may pull and push: asked per host, answered by the client's session (or a constant).

use std::time::{Duration, SystemTime};

use async_trait::async_trait;

/// A user's name and secret for a host.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Login {
    /// Empty with a secret: the secret is an identity (refresh) token.
    pub username: String,
    /// Password or token; empty: anonymous.
    pub secret: String,
}

impl std::fmt::Debug for Login {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Login").field("username", &self.username).finish_non_exhaustive()
    }
}

/// What is wanted from a token server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenRequest {
    /// Registry host the token is for.
    pub host: String,
    /// URL of the token server.
    pub realm: String,
    /// Its name for the registry.
    pub service: String,
    /// E.g. `repository:library/alpine:pull`, sorted and merged.
    pub scopes: Vec<String>,
    /// How the daemon introduces itself.
    pub client_id: String,
}

/// A bearer token and how long it is good for.
#[derive(Clone)]
pub struct FetchedToken {
    /// The token.
    pub token: String,
    /// Its life from `issued_at` on; zero: unknown.
    pub expires_in: Duration,
    /// When it was made, if known.
    pub issued_at: Option<SystemTime>,
}

/// Asking failed (as opposed to: there are no credentials).
pub type CredentialsError = Box<dyn std::error::Error + Send + Sync>;

/// A [`CredentialsError`] that says more: the token server was asked and wants other credentials.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Refused(pub String);

/// Whoever knows the user's credentials. In the daemon: the sessions of a build.
///
/// The token authority methods let the other side keep its secrets: it fetches tokens itself and
/// proves with a signature that two sessions belong to the same user. Not having them is normal.
#[async_trait]
pub trait Credentials: Send + Sync {
    /// Tells askers apart in the token cache; equal ids share tokens without further proof.
    fn id(&self) -> String;

    /// User and secret for `host`; empty if there are none.
    async fn login(&self, host: &str) -> Result<Login, CredentialsError>;

    /// Ed25519 public key of the token authority for `host`; `None` if there is none.
    async fn token_authority(
        &self,
        host: &str,
        salt: &[u8; 32],
    ) -> Result<Option<[u8; 32]>, CredentialsError> {
        _ = (host, salt);
        Ok(None)
    }

    /// Signature (64 bytes) and then the payload, by the key of [`Credentials::token_authority`].
    async fn sign(
        &self,
        host: &str,
        payload: &[u8; 32],
        salt: &[u8; 32],
    ) -> Result<Option<Vec<u8>>, CredentialsError> {
        _ = (host, payload, salt);
        Ok(None)
    }

    /// A token fetched by the other side. Called only if there is a token authority.
    async fn fetch_token(&self, request: &TokenRequest) -> Result<FetchedToken, CredentialsError> {
        Err(format!("no token authority for {}", request.host).into())
    }
}

/// Nobody: public images only.
#[derive(Debug, Clone, Copy, Default)]
pub struct Anonymous;

#[async_trait]
impl Credentials for Anonymous {
    fn id(&self) -> String {
        String::new()
    }

    async fn login(&self, _host: &str) -> Result<Login, CredentialsError> {
        Ok(Login::default())
    }
}

/// One login for one host (`login` command, tests).
#[derive(Debug, Clone)]
pub struct StaticLogin {
    /// Host it is for.
    pub host: String,
    /// The login.
    pub login: Login,
}

#[async_trait]
impl Credentials for StaticLogin {
    fn id(&self) -> String {
        let secret = base::Digest::of(&self.login.secret);
        format!("static:{}:{}:{secret}", self.host, self.login.username)
    }

    async fn login(&self, host: &str) -> Result<Login, CredentialsError> {
        Ok(if host == self.host { self.login.clone() } else { Login::default() })
    }
}
