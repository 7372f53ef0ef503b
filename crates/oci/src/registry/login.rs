//! Checking a login: the one request that every registry answers.

use http::Method;

use super::{
    auth::Scopes,
    client::{Remote, Request, unexpected},
};
use crate::{Error, Reference, Result};

impl Remote {
    /// Asks the registry that serves `reference` whether it takes our credentials. Returns the host
    /// that answered.
    pub async fn check_login(&self, reference: &Reference) -> Result<String> {
        let what = format!("log in to {}", reference.domain());
        let mut failure = None;
        for endpoint in self.endpoints(reference, false) {
            let mut url = endpoint.url("", "")?;
            url.set_path("/v2/");
            let request = Request::new(&what, Method::GET, url, Scopes::default());
            let error = match self.send(&endpoint, request).await {
                Ok(answer) if answer.status().is_success() => return Ok(endpoint.host),
                Ok(answer) => unexpected(&what, &endpoint, answer).await,
                Err(error) => error,
            };
            let definite = !matches!(error, Error::Unreachable { .. });
            if definite || failure.is_none() {
                failure = Some(error);
            }
            if definite {
                break;
            }
        }
        Err(failure.expect("every registry has an endpoint"))
    }
}
