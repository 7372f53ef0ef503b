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
    #[error("{url}: unexpected status {status}{}", said(.message))]
    Status { url: Url, status: StatusCode, message: String },
    #[error("{0} answered without a token")]
    Empty(Url),
    #[error("{0} answered something that is not a token")]
    Unreadable(Url),
}

impl TokenError {
    /// Whether the server wants other credentials, rather than being in trouble.
    pub(super) fn is_refusal(&self) -> bool {
        let refusals = [StatusCode::UNAUTHORIZED, StatusCode::FORBIDDEN];
        matches!(self, Self::Status { status, .. } if refusals.contains(status))
    }
}

fn said(message: &str) -> String {
    if message.is_empty() { String::new() } else { format!(": {message}") }
}

/// What a server says of a refusal: as registries do, or as Docker's does.
fn message(body: &[u8]) -> String {
    #[derive(Deserialize, Default)]
    #[serde(default)]
    struct Entry {
        message: String,
    }
    #[derive(Deserialize, Default)]
    #[serde(default)]
    struct Refusal {
        errors: Vec<Entry>,
        details: String,
        message: String,
    }
    let Ok(refusal) = serde_json::from_slice::<Refusal>(body) else { return String::new() };
    let texts = refusal.errors.into_iter().map(|entry| entry.message);
    let mut texts = texts.chain([refusal.details, refusal.message]);
    texts.find(|text| !text.is_empty()).unwrap_or_default().chars().take(300).collect()
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
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        if body.len() + chunk.len() > ANSWER_LIMIT {
            return Err(TokenError::Unreadable(url));
        }
        body.extend_from_slice(&chunk);
    }
    if !status.is_success() {
        return Err(TokenError::Status { url, status, message: message(&body) });
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

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
    };

    use super::*;

    /// A token server that refuses POST if told so; answers with what it was asked.
    async fn serve(refuse_post: bool) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = Vec::new();
                let mut buffer = [0; 4096];
                loop {
                    let length = stream.read(&mut buffer).await.unwrap();
                    request.extend_from_slice(&buffer[..length]);
                    let text = String::from_utf8_lossy(&request).into_owned();
                    let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
                    let head = head.to_lowercase();
                    let expected =
                        head.lines().find_map(|line| line.strip_prefix("content-length: "));
                    if body.len() < expected.map_or(0, |length| length.parse().unwrap()) {
                        continue;
                    }
                    let line = text.lines().next().unwrap();
                    let basic = if head.contains("authorization: basic ") { " basic" } else { "" };
                    let (status, token) = if line.starts_with("POST") && refuse_post {
                        ("404 Not Found", String::new())
                    } else {
                        ("200 OK", format!("{line}|{body}{basic}"))
                    };
                    let json = serde_json::json!({"token": token, "expires_in": 5}).to_string();
                    let answer = format!(
                        "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{json}",
                        json.len()
                    );
                    stream.write_all(answer.as_bytes()).await.unwrap();
                    break;
                }
            }
        });
        format!("http://{address}/token?x=1")
    }

    async fn ask(refuse_post: bool, user: &str, secret: &str) -> String {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let request = FetchTokenRequest {
            client_id: "c".into(),
            host: "h".into(),
            realm: serve(refuse_post).await,
            service: "s".into(),
            scopes: vec!["repository:a:pull".into(), "repository:b:pull".into()],
        };
        let http = Client::builder().no_proxy().build().unwrap();
        let answer = fetch(&http, &request, user, secret).await.unwrap();
        assert_eq!(answer.expires_in, 5);
        answer.token
    }

    #[tokio::test]
    async fn anonymous_by_get() {
        let scopes = "scope=repository%3Aa%3Apull&scope=repository%3Ab%3Apull";
        let expected = format!("GET /token?x=1&service=s&{scopes} HTTP/1.1|");
        assert_eq!(ask(false, "", "").await, expected);
    }

    #[tokio::test]
    async fn login_by_post_or_else_get() {
        let form = "scope=repository%3Aa%3Apull+repository%3Ab%3Apull&service=s&client_id=c";
        let asked = ask(false, "u", "p").await;
        let expected =
            format!("POST /token?x=1 HTTP/1.1|{form}&grant_type=password&username=u&password=p");
        assert_eq!(asked, expected);
        let asked = ask(false, "", "t").await;
        assert!(asked.ends_with("&grant_type=refresh_token&refresh_token=t"), "{asked}");
        let asked = ask(true, "u", "p").await;
        assert!(asked.starts_with("GET") && asked.ends_with(" basic"), "{asked}");
    }

    #[test]
    fn refusals_in_the_servers_words() {
        for (body, expected) in [
            (
                r#"{"errors":[{"code":"UNAUTHORIZED","message":"wrong password"}]}"#,
                "wrong password",
            ),
            (r#"{"details":"incorrect username or password"}"#, "incorrect username or password"),
            (r#"{"message":"no"}"#, "no"),
            ("<html>", ""),
            ("{}", ""),
        ] {
            assert_eq!(message(body.as_bytes()), expected);
        }
        let url = Url::parse("https://h.io/token").expect("a URL");
        let status = StatusCode::UNAUTHORIZED;
        let error = TokenError::Status { url: url.clone(), status, message: "no".into() };
        assert!(error.is_refusal());
        assert_eq!(error.to_string(), "https://h.io/token: unexpected status 401 Unauthorized: no");
        let status = StatusCode::BAD_GATEWAY;
        assert!(!TokenError::Status { url, status, message: String::new() }.is_refusal());
    }
}
