//! One open session and the short calls on it; files, content and agents have their own files.
//!
//! Every call fails with [`SessionError::Ended`] the moment the session ends, whatever the inner
//! connection still believes.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use bytes::Bytes;
use proto::moby::{
    buildkit::{
        secrets::v1::{GetSecretRequest, secrets_client::SecretsClient},
        v1::sourcepolicy::policysession::{
            CheckPolicyRequest, CheckPolicyResponse, policy_verifier_client::PolicyVerifierClient,
        },
    },
    exporter::v1::{
        ExporterRequest, FinalizeExportRequest, FindExportersRequest,
        exporter_client::ExporterClient,
    },
    filesync::v1::{
        CredentialsRequest, FetchTokenRequest, GetTokenAuthorityRequest,
        VerifyTokenAuthorityRequest, auth_client::AuthClient,
    },
};
use tokio_util::sync::CancellationToken;
use tonic::{Code, transport::Channel};

use crate::SessionError;

/// Largest message either way.
pub(crate) const MESSAGE_LIMIT: usize = 16 << 20;

/// An open session; clones are the same session.
#[derive(Clone)]
pub struct Session(pub(crate) Arc<Inner>);

pub(crate) struct Inner {
    pub(crate) id: String,
    pub(crate) shared_key: String,
    /// In lower case.
    pub(crate) methods: BTreeSet<String>,
    pub(crate) channel: Channel,
    /// The client has answered something.
    pub(crate) settled: CancellationToken,
    pub(crate) ended: CancellationToken,
}

/// A user name and a secret for a registry; both empty means anonymous, an empty name with a secret
/// is a refresh token.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Credentials {
    /// User name.
    pub username: String,
    /// Password or token.
    pub secret: String,
}

/// Asks the client to get a registry token itself.
#[derive(Debug, Clone, Default)]
pub struct FetchToken {
    /// Name of the asking program.
    pub client_id: String,
    /// Registry host.
    pub host: String,
    /// Token server.
    pub realm: String,
    /// Service name of the challenge.
    pub service: String,
    /// Scopes, sorted and merged.
    pub scopes: Vec<String>,
}

/// A registry token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    /// The bearer token.
    pub token: String,
    /// Seconds it lives; 0 is unknown.
    pub expires_in: i64,
    /// Unix seconds of its birth; 0 is unknown.
    pub issued_at: i64,
}

impl Session {
    /// The client's id for it.
    pub fn id(&self) -> &str {
        &self.0.id
    }

    /// The client's part of the key for local files.
    pub fn shared_key(&self) -> &str {
        &self.0.shared_key
    }

    /// Whether the client listed `/<service>/<Method>`; letter case does not matter.
    pub fn supports(&self, method: &str) -> bool {
        self.0.methods.contains(&method.to_lowercase())
    }

    /// Resolves when the session is over.
    pub async fn ended(&self) {
        self.0.ended.cancelled().await;
    }

    /// Resolves when the client has read the connection's greeting, or the session is over. Go clients
    /// that hang up sooner log a broken connection: what they have not read by then is mixed with
    /// left-overs of their buffers.
    pub async fn settled(&self) {
        tokio::select! {
            () = self.0.settled.cancelled() => {}
            () = self.0.ended.cancelled() => {}
        }
    }

    /// Whether the session is over.
    pub fn is_ended(&self) -> bool {
        self.0.ended.is_cancelled()
    }

    /// The gRPC channel into the client, for services this crate does not know.
    pub fn channel(&self) -> Channel {
        self.0.channel.clone()
    }

    /// Runs `call` until it finishes or the session ends.
    pub(crate) async fn during<T, E>(
        &self,
        call: impl Future<Output = Result<T, E>>,
    ) -> Result<T, SessionError>
    where
        E: Into<SessionError>,
    {
        tokio::select! {
            biased;
            answer = call => match answer {
                // A broken tunnel shows up as some transport error; the reason is the session.
                Err(_) if self.is_ended() => Err(SessionError::Ended { id: self.0.id.clone() }),
                answer => answer.map_err(Into::into),
            },
            () = self.0.ended.cancelled() => Err(SessionError::Ended { id: self.0.id.clone() }),
        }
    }

    fn auth(&self) -> AuthClient<Channel> {
        AuthClient::new(self.channel())
    }

    /// Credentials for a registry host; a client without that service is anonymous.
    pub async fn credentials(&self, host: &str) -> Result<Credentials, SessionError> {
        let request = CredentialsRequest { host: host.to_owned() };
        match self.during(self.auth().credentials(request)).await {
            Ok(answer) => {
                let answer = answer.into_inner();
                Ok(Credentials { username: answer.username, secret: answer.secret })
            }
            Err(error) if error.is_unimplemented() => Ok(Credentials::default()),
            Err(error) => Err(error),
        }
    }

    /// The public key that stands for the client's credentials for `host`; `None` when the client
    /// does not fetch tokens itself.
    pub async fn token_authority(
        &self,
        host: &str,
        salt: &[u8; 32],
    ) -> Result<Option<[u8; 32]>, SessionError> {
        let request =
            GetTokenAuthorityRequest { host: host.to_owned(), salt: Bytes::copy_from_slice(salt) };
        match self.during(self.auth().get_token_authority(request)).await {
            Ok(answer) => {
                let key = answer.into_inner().public_key;
                let length = key.len();
                key.as_ref().try_into().map(Some).map_err(|_| SessionError::BadAnswer {
                    call: "GetTokenAuthority",
                    why: format!("public key of {length} bytes instead of 32"),
                })
            }
            Err(error) if absent(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Lets the client sign `payload` with the key for `host` and `salt`: 64 bytes of signature,
    /// then the payload. The caller checks both.
    pub async fn verify_token_authority(
        &self,
        host: &str,
        salt: &[u8; 32],
        payload: &[u8; 32],
    ) -> Result<Bytes, SessionError> {
        let request = VerifyTokenAuthorityRequest {
            host: host.to_owned(),
            payload: Bytes::copy_from_slice(payload),
            salt: Bytes::copy_from_slice(salt),
        };
        let answer = self.during(self.auth().verify_token_authority(request)).await?;
        Ok(answer.into_inner().signed)
    }

    /// Lets the client get a token, so that its secrets stay with it.
    pub async fn fetch_token(&self, request: FetchToken) -> Result<Token, SessionError> {
        let request = FetchTokenRequest {
            client_id: request.client_id,
            host: request.host,
            realm: request.realm,
            service: request.service,
            scopes: request.scopes,
        };
        let answer = self.during(self.auth().fetch_token(request)).await?.into_inner();
        Ok(Token {
            token: answer.token,
            expires_in: answer.expires_in,
            issued_at: answer.issued_at,
        })
    }

    /// A secret; `None` when the client has none of that id or keeps no secrets.
    pub async fn secret(&self, id: &str) -> Result<Option<Bytes>, SessionError> {
        let mut client =
            SecretsClient::new(self.channel()).max_decoding_message_size(MESSAGE_LIMIT);
        let request = GetSecretRequest { id: id.to_owned(), ..Default::default() };
        match self.during(client.get_secret(request)).await {
            Ok(answer) => Ok(Some(answer.into_inner().data)),
            Err(error) if matches!(error.code(), Some(Code::NotFound | Code::Unimplemented)) => {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Exporters the client wants added, given the result's metadata and snapshot ids.
    pub async fn find_exporters(
        &self,
        metadata: BTreeMap<String, Bytes>,
        refs: Vec<String>,
    ) -> Result<Vec<ExporterRequest>, SessionError> {
        let mut client =
            ExporterClient::new(self.channel()).max_decoding_message_size(MESSAGE_LIMIT);
        let request = FindExportersRequest { metadata, refs };
        match self.during(client.find_exporters(request)).await {
            Ok(answer) => Ok(answer.into_inner().exporters),
            Err(error) if absent(&error) => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    /// Tells the client that all exports are done, with everything they answered.
    pub async fn finalize_export(
        &self,
        exporter_response: BTreeMap<String, String>,
    ) -> Result<(), SessionError> {
        let mut client = ExporterClient::new(self.channel());
        let request = FinalizeExportRequest { exporter_response };
        match self.during(client.finalize_export(request)).await {
            Ok(_) => Ok(()),
            Err(error) if absent(&error) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Asks the client's policy about one source.
    pub async fn check_policy(
        &self,
        request: CheckPolicyRequest,
    ) -> Result<CheckPolicyResponse, SessionError> {
        let mut client = PolicyVerifierClient::new(self.channel())
            .max_decoding_message_size(MESSAGE_LIMIT)
            .max_encoding_message_size(MESSAGE_LIMIT);
        Ok(self.during(client.check_policy(request)).await?.into_inner())
    }
}

/// Whether the answer says that the client has no such service.
fn absent(error: &SessionError) -> bool {
    matches!(error.code(), Some(Code::Unavailable | Code::Unimplemented))
}

/// Fails with [`SessionError::Unsupported`] unless the client listed the method.
pub(crate) fn require(session: &Session, method: &str) -> Result<(), SessionError> {
    match session.supports(method) {
        true => Ok(()),
        false => Err(SessionError::Unsupported { method: method.to_owned() }),
    }
}
