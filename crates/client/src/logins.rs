//! A session for calls that are no build: pulls, pushes, logins.

use std::{collections::BTreeMap, path::PathBuf};

use proto::moby::filesync::v1::auth_server::AuthServer;
use session::client::{ContentStores, LayoutStore, SessionServer};
use tokio_util::sync::CancellationToken;

use crate::{auth::AuthProvider, connect::Client, error::ClientError};

/// An OCI layout that is served to the daemon.
#[derive(Debug, Clone)]
pub struct LayoutFolder {
    /// Where it is.
    pub folder: PathBuf,
    /// Whether blobs may be added.
    pub writable: bool,
}

/// Serves this user's registry logins to the daemon until it is dropped.
pub struct Logins {
    id: String,
    stop: CancellationToken,
}

impl Logins {
    /// Name of the session.
    pub fn session(&self) -> String {
        self.id.clone()
    }
}

impl Drop for Logins {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Client {
    /// Serves the logins of the user's own docker configuration.
    pub fn serve_logins(&self) -> Result<Logins, ClientError> {
        self.serve_logins_and(BTreeMap::new())
    }

    /// The same with OCI layouts by name.
    pub fn serve_logins_and(
        &self,
        layouts: BTreeMap<String, LayoutFolder>,
    ) -> Result<Logins, ClientError> {
        let auth =
            AuthProvider::from_user().map_err(ClientError::io("reading docker's configuration"))?;
        Ok(self.serve_login_of(auth, layouts))
    }

    /// Serves `auth`.
    pub fn serve_login_of(
        &self,
        auth: AuthProvider,
        layouts: BTreeMap<String, LayoutFolder>,
    ) -> Logins {
        let mut server = SessionServer::new("");
        let methods = ["Credentials", "FetchToken", "GetTokenAuthority", "VerifyTokenAuthority"];
        server.add(AuthServer::new(auth), &methods);
        if !layouts.is_empty() {
            let stores = layouts.into_iter().map(|(name, LayoutFolder { folder, writable })| {
                let store = match writable {
                    false => LayoutStore::read_only(folder),
                    true => LayoutStore::writable(folder),
                };
                (format!("oci:{name}"), store)
            });
            server.add_content(ContentStores::new(stores));
        }
        let id = server.id().to_owned();
        let stop = CancellationToken::new();
        tokio::spawn(server.run(self.control(), stop.clone()));
        Logins { id, stop }
    }
}
