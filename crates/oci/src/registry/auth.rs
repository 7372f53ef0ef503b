//! From a `401` to the header that gets a `200`.
//!
//! What works for a host and an asker is remembered for the daemon's lifetime (tokens: until they
//! expire). Tokens of one asker serve another one only after proof that both are the same user: a
//! signature by the same token authority, or the same login.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::Deserialize;
use tokio::time::timeout;

use super::{
    Credentials, CredentialsError, FetchedToken, Login, Refused, TokenRequest, hosts::innermost,
};
use crate::{Error, Result};

/// Limit of each question to the asker.
const ASK_TIMEOUT: Duration = Duration::from_secs(60);
/// Life of a token that does not say.
const DEFAULT_LIFE: Duration = Duration::from_secs(60);
const CLIENT_ID: &str = "buildkit-client";

/// Access wanted, by `repository:<path>` or other resource.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Scopes(BTreeMap<String, BTreeSet<String>>);

impl Scopes {
    pub(super) fn pull(path: &str) -> Self {
        let mut scopes = Self::default();
        scopes.add(&format!("repository:{path}:pull"));
        scopes
    }

    pub(super) fn push(path: &str) -> Self {
        let mut scopes = Self::default();
        scopes.add(&format!("repository:{path}:pull,push"));
        scopes
    }

    /// Adds one or several (space separated) scopes; says whether that was news.
    pub(super) fn add(&mut self, text: &str) -> bool {
        let mut news = false;
        for scope in text.split_whitespace() {
            let (resource, actions) = scope.rsplit_once(':').unwrap_or((scope, ""));
            let known = self.0.entry(resource.to_owned()).or_default();
            for action in actions.split(',') {
                news |= known.insert(action.to_owned());
            }
        }
        news
    }

    fn list(&self) -> Vec<String> {
        let text = |(resource, actions): (&String, &BTreeSet<String>)| {
            let actions: Vec<_> = actions.iter().map(String::as_str).collect();
            format!("{resource}:{}", actions.join(","))
        };
        self.0.iter().map(text).collect()
    }
}

/// One challenge of a `WWW-Authenticate` header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Challenge {
    pub(super) scheme: String,
    pub(super) parameters: BTreeMap<String, String>,
}

impl Challenge {
    pub(super) fn get(&self, key: &str) -> &str {
        self.parameters.get(key).map_or("", String::as_str)
    }

    /// Parses one header value (with one challenge, as registries send).
    pub(super) fn parse(header: &str) -> Option<Self> {
        let (scheme, mut rest) = header.trim().split_once(' ').unwrap_or((header.trim(), ""));
        let mut parameters = BTreeMap::new();
        loop {
            rest = rest.trim_start_matches([' ', ',']);
            let Some((key, after)) = rest.split_once('=') else { break };
            let mut value = String::new();
            rest = match after.strip_prefix('"') {
                Some(quoted) => {
                    let mut characters = quoted.char_indices();
                    let mut end = quoted.len();
                    while let Some((at, c)) = characters.next() {
                        match c {
                            '"' => {
                                end = at + 1;
                                break;
                            }
                            '\\' => value.extend(characters.next().map(|(_, c)| c)),
                            c => value.push(c),
                        }
                    }
                    &quoted[end..]
                }
                None => {
                    let end = after.find([',', ' ']).unwrap_or(after.len());
                    value.push_str(&after[..end]);
                    &after[end..]
                }
            };
            parameters.insert(key.trim().to_ascii_lowercase(), value);
        }
        (!scheme.is_empty()).then(|| Self { scheme: scheme.to_ascii_lowercase(), parameters })
    }
}

/// What is remembered of all hosts and askers.
pub(super) struct Authorizer {
    salt: [u8; 32],
    states: Mutex<HashMap<(String, String), Arc<tokio::sync::Mutex<State>>>>,
}

/// What is remembered of one host for one asker.
#[derive(Default)]
struct State {
    method: Option<Method>,
}

enum Method {
    Basic { header: String },
    Bearer { realm: String, service: String, proof: Proof, tokens: Vec<(Vec<String>, Token)> },
}

/// By what an asker is known.
#[derive(Clone, PartialEq, Eq)]
enum Proof {
    Authority([u8; 32]),
    Login(Login),
}

#[derive(Clone)]
struct Token {
    text: String,
    good_until: SystemTime,
}

/// Whether a request refused with `401` should be sent again.
pub(super) enum Verdict {
    Again,
    Final,
}

impl Authorizer {
    pub(super) fn new() -> Self {
        let mut salt = [0; 32];
        let random = rustls::crypto::ring::default_provider().secure_random;
        random.fill(&mut salt).expect("the machine has random numbers");
        Self { salt, states: Mutex::default() }
    }

    fn state(&self, host: &str, credentials: &dyn Credentials) -> Arc<tokio::sync::Mutex<State>> {
        let mut states = self.states.lock().expect("no panics while held");
        // Askers come and go with their builds; what they left is cheap, but not for ever.
        if states.len() > 512 {
            states.retain(|_, state| Arc::strong_count(state) > 1);
        }
        states.entry((host.to_owned(), credentials.id())).or_default().clone()
    }

    /// The header to send, if it is known by now which kind the host wants.
    pub(super) async fn header(
        &self,
        http: &reqwest::Client,
        host: &str,
        credentials: &dyn Credentials,
        scopes: &Scopes,
    ) -> Result<Option<String>> {
        let state = self.state(host, credentials);
        let mut state = state.lock().await;
        match &mut state.method {
            None => Ok(None),
            Some(Method::Basic { header }) => Ok(Some(header.clone())),
            Some(Method::Bearer { realm, service, proof, tokens }) => {
                let list = scopes.list();
                let now = SystemTime::now();
                tokens.retain(|(_, token)| token.good_until > now);
                if let Some((_, token)) = tokens.iter().find(|(known, _)| *known == list) {
                    return Ok(Some(format!("Bearer {}", token.text)));
                }
                let request = TokenRequest {
                    host: host.to_owned(),
                    realm: realm.clone(),
                    service: service.clone(),
                    scopes: list.clone(),
                    client_id: CLIENT_ID.to_owned(),
                };
                let token = fetch(http, credentials, proof, &request).await?;
                let header = format!("Bearer {}", token.text);
                tokens.push((list, token));
                Ok(Some(header))
            }
        }
    }

    /// Learns from a refusal. `sent` is the header that was refused.
    pub(super) async fn refused(
        &self,
        host: &str,
        credentials: &dyn Credentials,
        challenges: &[Challenge],
        sent: Option<&str>,
        scopes: &mut Scopes,
    ) -> Result<Verdict> {
        let state = self.state(host, credentials);
        let mut state = state.lock().await;
        let Some(challenge) = challenges
            .iter()
            .find(|c| c.scheme == "bearer")
            .or_else(|| challenges.iter().find(|c| c.scheme == "basic"))
        else {
            return Ok(Verdict::Final);
        };
        let news = scopes.add(challenge.get("scope"));
        if challenge.scheme == "basic" {
            let login = ask(host, credentials.login(host)).await?;
            if login.username.is_empty() || login.secret.is_empty() {
                return Ok(Verdict::Final);
            }
            let header = basic(&login);
            let again = sent != Some(header.as_str());
            state.method = Some(Method::Basic { header });
            return Ok(if again { Verdict::Again } else { Verdict::Final });
        }
        let (realm, service) =
            (challenge.get("realm").to_owned(), challenge.get("service").to_owned());
        if realm.is_empty() {
            return Ok(Verdict::Final);
        }
        if let Some(Method::Bearer { tokens, .. }) = &mut state.method
            && let Some(sent) = sent
        {
            let known = tokens.len();
            tokens.retain(|(_, token)| sent.strip_prefix("Bearer ") != Some(&token.text));
            // A token that does not cover what was asked, and nothing more to ask for.
            if challenge.get("error") == "insufficient_scope" && !news {
                return Ok(Verdict::Final);
            }
            // Expired or revoked: get a new one. One that nobody remembers was replaced meanwhile.
            _ = known;
            return Ok(Verdict::Again);
        }
        if state.method.is_some() && sent.is_none() {
            return Ok(Verdict::Again);
        }
        let proof = self.prove(host, credentials).await?;
        let tokens = self.tokens_of_same_user(host, credentials, &proof).await?;
        state.method = Some(Method::Bearer { realm, service, proof, tokens });
        Ok(Verdict::Again)
    }

    async fn prove(&self, host: &str, credentials: &dyn Credentials) -> Result<Proof> {
        match ask(host, credentials.token_authority(host, &self.salt)).await? {
            Some(key) => Ok(Proof::Authority(key)),
            None => Ok(Proof::Login(ask(host, credentials.login(host)).await?)),
        }
    }

    /// Tokens another asker got with the same key or login. The key's owner signs a challenge:
    /// public keys are no secret.
    async fn tokens_of_same_user(
        &self,
        host: &str,
        credentials: &dyn Credentials,
        proof: &Proof,
    ) -> Result<Vec<(Vec<String>, Token)>> {
        let own = credentials.id();
        let others: Vec<_> = {
            let states = self.states.lock().expect("no panics while held");
            let of_host = states.iter().filter(|((h, id), _)| h == host && *id != own);
            of_host.map(|(_, state)| state.clone()).collect()
        };
        let same = others.iter().find_map(|other| match &other.try_lock().ok()?.method {
            Some(Method::Bearer { proof: theirs, tokens, .. }) if theirs == proof => {
                Some(tokens.clone())
            }
            _ => None,
        });
        match (same, proof) {
            (None, _) => Ok(Vec::new()),
            (Some(tokens), Proof::Login(_)) => Ok(tokens),
            (Some(tokens), Proof::Authority(key)) => {
                let mut payload = [0; 32];
                let random = rustls::crypto::ring::default_provider().secure_random;
                random.fill(&mut payload).expect("the machine has random numbers");
                let signed = ask(host, credentials.sign(host, &payload, &self.salt)).await?;
                let good = signed.is_some_and(|signed| is_signed_by(key, &payload, &signed));
                Ok(if good { tokens } else { Vec::new() })
            }
        }
    }
}

/// Whether `signed` is an Ed25519 signature by `key` followed by exactly `payload`.
fn is_signed_by(key: &[u8], payload: &[u8], signed: &[u8]) -> bool {
    signed.split_at_checked(64).is_some_and(|(signature, message)| {
        let key = ring::signature::UnparsedPublicKey::new(&ring::signature::ED25519, key);
        message == payload && key.verify(message, signature).is_ok()
    })
}

async fn ask<T>(
    host: &str,
    question: impl Future<Output = Result<T, CredentialsError>>,
) -> Result<T> {
    let answer = match timeout(ASK_TIMEOUT, question).await {
        Ok(answer) => answer,
        Err(_) => Err(format!("no answer within {} s", ASK_TIMEOUT.as_secs()).into()),
    };
    answer.map_err(|source| match source.downcast::<Refused>() {
        Ok(refused) => Error::Unauthorized {
            what: format!("authorize with {host}"),
            message: refused.0,
            hint: super::client::LOGIN_HINT,
        },
        Err(source) => Error::Credentials { host: host.to_owned(), source },
    })
}

fn basic(login: &Login) -> String {
    format!("Basic {}", STANDARD.encode(format!("{}:{}", login.username, login.secret)))
}

async fn fetch(
    http: &reqwest::Client,
    credentials: &dyn Credentials,
    proof: &Proof,
    request: &TokenRequest,
) -> Result<Token> {
    let fetched = match proof {
        Proof::Authority(_) => ask(&request.host, credentials.fetch_token(request)).await?,
        Proof::Login(login) => fetch_here(http, login, request).await?,
    };
    let life = if fetched.expires_in.is_zero() { DEFAULT_LIFE } else { fetched.expires_in };
    let issued = fetched.issued_at.unwrap_or_else(SystemTime::now);
    Ok(Token { text: fetched.token, good_until: issued + life * 9 / 10 })
}

/// Asks the token server: GET as everybody understands it, then OAuth's POST.
async fn fetch_here(
    http: &reqwest::Client,
    login: &Login,
    request: &TokenRequest,
) -> Result<FetchedToken> {
    let what = || format!("fetch a token from {} for {}", request.realm, request.scopes.join(" "));
    let mut url =
        reqwest::Url::parse(&request.realm).map_err(|error| Error::invalid(what(), error))?;
    if !login.username.is_empty() || login.secret.is_empty() {
        let mut get_url = url.clone();
        {
            let mut query = get_url.query_pairs_mut();
            if !request.service.is_empty() {
                query.append_pair("service", &request.service);
            }
            for scope in &request.scopes {
                query.append_pair("scope", scope);
            }
        }
        let mut get = http.get(get_url);
        if !login.secret.is_empty() {
            get = get.header(http::header::AUTHORIZATION, basic(login));
        }
        let answer = send_token_request(get, request, &what()).await?;
        match answer.status().as_u16() {
            200..300 => return read_token(answer, &what()).await,
            401 | 404 | 405 if !login.secret.is_empty() => {}
            _ => return Err(token_refused(answer, request, &what()).await),
        }
    }
    let mut form = url.clone();
    form.set_query(None);
    {
        let mut pairs = form.query_pairs_mut();
        if login.username.is_empty() {
            pairs.append_pair("grant_type", "refresh_token");
            pairs.append_pair("refresh_token", &login.secret);
        } else {
            pairs.append_pair("grant_type", "password");
            pairs.append_pair("username", &login.username);
            pairs.append_pair("password", &login.secret);
        }
        pairs.append_pair("service", &request.service);
        pairs.append_pair("client_id", &request.client_id);
        if !request.scopes.is_empty() {
            pairs.append_pair("scope", &request.scopes.join(" "));
        }
    }
    url.set_fragment(None);
    let post = http
        .post(url)
        .header(http::header::CONTENT_TYPE, "application/x-www-form-urlencoded; charset=utf-8")
        .body(form.query().unwrap_or_default().to_owned());
    let answer = send_token_request(post, request, &what()).await?;
    if answer.status().is_success() {
        return read_token(answer, &what()).await;
    }
    Err(token_refused(answer, request, &what()).await)
}

async fn send_token_request(
    builder: reqwest::RequestBuilder,
    request: &TokenRequest,
    what: &str,
) -> Result<reqwest::Response> {
    builder.send().await.map_err(|error| Error::Unreachable {
        what: what.to_owned(),
        host: request.realm.clone(),
        message: innermost(&error),
        hint: "",
    })
}

async fn token_refused(answer: reqwest::Response, request: &TokenRequest, what: &str) -> Error {
    let status = answer.status().as_u16();
    let body = answer.text().await.unwrap_or_default();
    let body: String = body.trim().chars().take(300).collect();
    match status {
        400 | 401 | 403 => Error::Unauthorized {
            what: what.to_owned(),
            message: format!("token server answered {status}: {body}"),
            hint: super::client::LOGIN_HINT,
        },
        _ => Error::Status {
            what: what.to_owned(),
            host: request.realm.clone(),
            status,
            message: body,
        },
    }
}

async fn read_token(answer: reqwest::Response, what: &str) -> Result<FetchedToken> {
    #[derive(Deserialize)]
    struct Body {
        #[serde(default)]
        token: String,
        #[serde(default)]
        access_token: String,
        #[serde(default)]
        expires_in: u64,
        #[serde(default)]
        issued_at: String,
    }
    let bytes = answer.bytes().await.map_err(|error| Error::invalid(what, innermost(&error)))?;
    let body: Body = serde_json::from_slice(&bytes).map_err(|error| Error::invalid(what, error))?;
    let token = if body.token.is_empty() { body.access_token } else { body.token };
    if token.is_empty() {
        return Err(Error::invalid(what, "the answer has no token"));
    }
    Ok(FetchedToken {
        token,
        expires_in: Duration::from_secs(body.expires_in),
        issued_at: base::time::parse_rfc3339(&body.issued_at),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges() {
        let challenge = Challenge::parse(
            r#"Bearer realm="https://a.b/t?x=1",service="re\"g", scope="repository:a/b:pull,push",error=insufficient_scope"#,
        )
        .unwrap();
        assert_eq!(challenge.scheme, "bearer");
        assert_eq!(challenge.get("realm"), "https://a.b/t?x=1");
        assert_eq!(challenge.get("service"), "re\"g");
        assert_eq!(challenge.get("scope"), "repository:a/b:pull,push");
        assert_eq!(challenge.get("error"), "insufficient_scope");
        assert_eq!(Challenge::parse("Basic realm=x").unwrap().get("realm"), "x");
        assert_eq!(Challenge::parse(""), None);
    }

    #[test]
    fn scopes_merge() {
        let mut scopes = Scopes::push("a/b");
        assert!(scopes.add("repository:c:pull repository:a/b:delete"));
        assert!(!scopes.add("repository:c:pull"));
        assert_eq!(scopes.list(), ["repository:a/b:delete,pull,push", "repository:c:pull"]);
    }

    #[test]
    fn signatures() {
        use ring::signature::{Ed25519KeyPair, KeyPair as _};
        let pair = Ed25519KeyPair::from_seed_unchecked(&[7; 32]).unwrap();
        let mut signed = pair.sign(b"payload").as_ref().to_vec();
        signed.extend(b"payload");
        let key = pair.public_key().as_ref();
        assert!(is_signed_by(key, b"payload", &signed));
        assert!(!is_signed_by(key, b"other", &signed));
        assert!(!is_signed_by(&[1; 32], b"payload", &signed));
        assert!(!is_signed_by(key, b"payload", &signed[..10]));
    }
}
