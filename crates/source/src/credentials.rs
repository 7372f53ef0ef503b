//! Registry credentials, asked of a build's sessions.

use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use oci::registry::{Credentials, CredentialsError, FetchedToken, Login, Refused, TokenRequest};
use session::{FetchToken, Group, SessionError};

/// The sessions of a build as [`Credentials`]; a build without sessions is anonymous.
pub struct SessionCredentials {
    group: Group,
}

impl SessionCredentials {
    /// Asks the sessions of `group`, in turn.
    pub fn new(group: Group) -> Self {
        Self { group }
    }

    fn nobody(&self) -> bool {
        self.group.ids().iter().all(String::is_empty)
    }
}

#[async_trait]
impl Credentials for SessionCredentials {
    fn id(&self) -> String {
        self.group.ids().join(",")
    }

    async fn login(&self, host: &str) -> Result<Login, CredentialsError> {
        if self.nobody() {
            return Ok(Login::default());
        }
        let answer = self.group.any(|session| async move { session.credentials(host).await });
        let found: Result<_, SessionError> = answer.await;
        let found = found?;
        Ok(Login { username: found.username, secret: found.secret })
    }

    async fn token_authority(
        &self,
        host: &str,
        salt: &[u8; 32],
    ) -> Result<Option<[u8; 32]>, CredentialsError> {
        if self.nobody() {
            return Ok(None);
        }
        let answer =
            self.group.any(|session| async move { session.token_authority(host, salt).await });
        let key: Result<_, SessionError> = answer.await;
        Ok(key?)
    }

    async fn sign(
        &self,
        host: &str,
        payload: &[u8; 32],
        salt: &[u8; 32],
    ) -> Result<Option<Vec<u8>>, CredentialsError> {
        let answer = self.group.any(|session| async move {
            session.verify_token_authority(host, salt, payload).await
        });
        let signed: Result<_, SessionError> = answer.await;
        Ok(Some(signed?.to_vec()))
    }

    async fn fetch_token(&self, request: &TokenRequest) -> Result<FetchedToken, CredentialsError> {
        let answer = self.group.any(|session| {
            let request = FetchToken {
                client_id: request.client_id.clone(),
                host: request.host.clone(),
                realm: request.realm.clone(),
                service: request.service.clone(),
                scopes: request.scopes.clone(),
            };
            async move { session.fetch_token(request).await }
        });
        let token: Result<_, SessionError> = answer.await;
        let token = token.map_err(|error| match error.is_unauthenticated() {
            true => CredentialsError::from(Refused(error.to_string())),
            false => error.into(),
        })?;
        let issued_at = u64::try_from(token.issued_at).ok().filter(|seconds| *seconds > 0);
        Ok(FetchedToken {
            token: token.token,
            expires_in: Duration::from_secs(u64::try_from(token.expires_in).unwrap_or(0)),
            issued_at: issued_at
                .map(|seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)),
        })
    }
}
