//! Fetching a registry's bearer token.
//!
//! With a secret the OAuth form (POST) is tried first and the older GET with basic authentication
//! where a registry does not know it; without a secret an anonymous GET.

use std::time::Duration;

use proto::moby::filesync::v1::{FetchTokenRequest, FetchTokenResponse};
use reqwest::{Client, StatusCode, Url};
use serde::Deserialize;

/// Registries that do not say otherwise mean this many seconds.
const DEFAULT_LIFETIME_S: i64 = 60;
const TIMEOUT: Duration = Duration::from_secs(30);
/// A token document is small; anything larger is not one.
const ANSWER_LIMIT: usize = 1 << 20;

#[derive(Debug, thiserror::Error)]
pub(super) enum TokenError {
    #[error("invalid realm `{0}`")]
    Realm(String),
    #[error("{0}")]
    Http(#[from] reqwest::Error),
    #[error("{url}: unexpected status {status}")]
    Status { url: Url, status: StatusCode },
    #[error("{0} answered without a token")]
    Empty(Url),
    #[error("{0} answered something that is not a token")]
    Unreadable(Url),
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Answer {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<i64>,
    issued_at: Option<String>,
}

/// Gets a token for `request` with `user` and `secret`; both empty is anonymous.
pub(super) async fn fetch(
    http: &Client,
    request: &FetchTokenRequest,
    user: &str,
    secret: &str,
) -> Result<FetchTokenResponse, TokenError> {
    if secret.is_empty() {
        return by_get(http, request, "", "").await;
    }
    match by_post(http, request, user, secret).await {
        Err(TokenError::Status { status, .. })
            if status == StatusCode::NOT_FOUND
                || status == StatusCode::UNAUTHORIZED
                || (status == StatusCode::METHOD_NOT_ALLOWED && !user.is_empty()) =>
        {
            by_get(http, request, user, secret).await
        }
        answer => answer,
    }
}

fn realm(request: &FetchTokenRequest) -> Result<Url, TokenError> {
    Url::parse(&request.realm).map_err(|_| TokenError::Realm(request.realm.clone()))
}

async fn by_post(
    http: &Client,
    request: &FetchTokenRequest,
    user: &str,
    secret: &str,
) -> Result<FetchTokenResponse, TokenError> {
    let url = realm(request)?;
    let mut form = url.clone();
    form.set_query(None);
    {
        let mut pairs = form.query_pairs_mut();
        if !request.scopes.is_empty() {
            pairs.append_pair("scope", &request.scopes.join(" "));
        }
        pairs.append_pair("service", &request.service);
        let id = if request.client_id.is_empty() { "buildkit-client" } else { &request.client_id };
        pairs.append_pair("client_id", id);
        if user.is_empty() {
            pairs.append_pair("grant_type", "refresh_token").append_pair("refresh_token", secret);
        } else {
            pairs.append_pair("grant_type", "password");
            pairs.append_pair("username", user).append_pair("password", secret);
        }
    }
    let body = form.query().unwrap_or_default().to_owned();
    let post = http
        .post(url.clone())
        .header("content-type", "application/x-www-form-urlencoded; charset=utf-8")
        .body(body);
    read(url, post).await
}

async fn by_get(
    http: &Client,
    request: &FetchTokenRequest,
    user: &str,
    secret: &str,
) -> Result<FetchTokenResponse, TokenError> {
    let mut url = realm(request)?;
    {
        let mut pairs = url.query_pairs_mut();
        if !request.service.is_empty() {
            pairs.append_pair("service", &request.service);
        }
        for scope in &request.scopes {
            pairs.append_pair("scope", scope);
        }
    }
    let mut get = http.get(url.clone());
    if !secret.is_empty() {
        get = get.basic_auth(user, Some(secret));
    }
    read(url, get).await
}

async fn read(
    url: Url,
    request: reqwest::RequestBuilder,
) -> Result<FetchTokenResponse, TokenError> {
    let mut response = request.timeout(TIMEOUT).send().await?;
    let status = response.status();
    if !status.is_success() {
        return Err(TokenError::Status { url, status });
    }
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        if body.len() + chunk.len() > ANSWER_LIMIT {
            return Err(TokenError::Unreadable(url));
        }
        body.extend_from_slice(&chunk);
    }
    let Ok(answer) = serde_json::from_slice::<Answer>(&body) else {
        return Err(TokenError::Unreadable(url));
    };
    let tokens = [answer.access_token, answer.token];
    let Some(token) = tokens.into_iter().flatten().find(|token| !token.is_empty()) else {
        return Err(TokenError::Empty(url));
    };
    let issued = answer.issued_at.as_deref().and_then(base::time::parse_rfc3339);
    Ok(FetchTokenResponse {
        token,
        expires_in: answer.expires_in.filter(|seconds| *seconds > 0).unwrap_or(DEFAULT_LIFETIME_S),
        issued_at: issued.map_or(0, |at| base::time::unix_nanos(at) / 1_000_000_000),
    })
}
