//! Image names: `registry.example:5000/team/app:1.2@sha256:…`.
//!
//! People write short names; [`Reference::parse`] completes them as docker does (`alpine` is
//! `docker.io/library/alpine`), and everything else in the project handles complete names.
//! [`Reference::familiar`] is the way back. A value of this type is always well formed.

use std::{fmt, str::FromStr};

use base::Digest;

const DEFAULT_DOMAIN: &str = "docker.io";
const LEGACY_DOMAIN: &str = "index.docker.io";
const OFFICIAL: &str = "library/";
/// Host that serves [`DEFAULT_DOMAIN`].
pub const DOCKER_HUB_HOST: &str = "registry-1.docker.io";
/// Longest repository name (domain and path) the distribution rules allow.
const MAX_NAME: usize = 255;

/// A complete image name: domain, path, and optionally tag and digest.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reference {
    domain: String,
    path: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// Why a text is not an image name; the wording is docker's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseReferenceError {
    /// Characters or structure outside the grammar.
    #[error("invalid reference format: `{0}`")]
    Format(String),
    /// Nothing before the tag.
    #[error("repository name must have at least one component: `{0}`")]
    Empty(String),
    /// Upper-case letters in the repository path.
    #[error("invalid reference format: repository name ({0}) must be lowercase")]
    Uppercase(String),
    /// More than 255 characters.
    #[error("repository name must not be more than 255 characters: `{0}`")]
    TooLong(String),
    /// A bare image id where a name is needed.
    #[error("invalid repository name ({0}), cannot specify 64-byte hexadecimal strings")]
    Identifier(String),
    /// A digest that is not sha256, or malformed.
    #[error(
        "invalid reference format: `{0}`: unsupported or malformed digest, expected sha256:<64 hex digits>"
    )]
    Digest(String),
}

impl Reference {
    /// Parses a name as people write it, completing registry and `library/`. The tag stays absent
    /// if it is absent; see [`Reference::with_default_tag`].
    pub fn parse(text: &str) -> Result<Self, ParseReferenceError> {
        if text.len() == 64
            && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
        {
            return Err(ParseReferenceError::Identifier(text.into()));
        }
        let (domain, rest) = split_domain(text);
        Self::assemble(text, &domain, &rest)
    }

    /// Parses a complete name, whose first component is the registry.
    pub fn parse_complete(text: &str) -> Result<Self, ParseReferenceError> {
        match text.split_once('/') {
            Some((domain, rest)) => Self::assemble(text, domain, rest),
            None => Err(ParseReferenceError::Format(text.into())),
        }
    }

    fn assemble(text: &str, domain: &str, rest: &str) -> Result<Self, ParseReferenceError> {
        use ParseReferenceError as E;
        let (rest, digest) = match rest.split_once('@') {
            Some((rest, digest)) => {
                (rest, Some(digest.parse().map_err(|_| E::Digest(text.to_owned()))?))
            }
            None => (rest, None),
        };
        let (path, tag) = match rest.split_once(':') {
            Some((path, tag)) => (path, Some(tag)),
            None => (rest, None),
        };
        if path.is_empty() || path == OFFICIAL {
            return Err(if text.is_empty() || text.starts_with([':', '@']) {
                E::Empty(text.into())
            } else {
                E::Format(text.into())
            });
        }
        if !path.split('/').all(valid_component) {
            let lower = path.to_ascii_lowercase();
            return Err(if lower != path && lower.split('/').all(valid_component) {
                E::Uppercase(path.into())
            } else {
                E::Format(text.into())
            });
        }
        if !valid_domain(domain) || tag.is_some_and(|tag| !valid_tag(tag)) {
            return Err(E::Format(text.into()));
        }
        if domain.len() + 1 + path.len() > MAX_NAME {
            return Err(E::TooLong(text.into()));
        }
        Ok(Self { domain: domain.into(), path: path.into(), tag: tag.map(Into::into), digest })
    }

    /// Registry as named, e.g. `docker.io`.
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// Host (and port) to connect to, e.g. `registry-1.docker.io`.
    pub fn host(&self) -> &str {
        if self.domain == DEFAULT_DOMAIN { DOCKER_HUB_HOST } else { &self.domain }
    }

    /// Path inside the registry, e.g. `library/alpine`.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Domain and path, without tag and digest.
    pub fn repository(&self) -> String {
        format!("{}/{}", self.domain, self.path)
    }

    /// The tag, if there is one.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, if there is one.
    pub fn digest(&self) -> Option<Digest> {
        self.digest
    }

    /// Adds `:latest` if there is neither tag nor digest.
    #[must_use]
    pub fn with_default_tag(mut self) -> Self {
        if self.tag.is_none() && self.digest.is_none() {
            self.tag = Some("latest".into());
        }
        self
    }

    /// The same repository with this tag and no digest.
    pub fn with_tag(&self, tag: &str) -> Result<Self, ParseReferenceError> {
        if !valid_tag(tag) {
            return Err(ParseReferenceError::Format(format!("{}:{tag}", self.repository())));
        }
        Ok(Self { tag: Some(tag.into()), digest: None, ..self.clone() })
    }

    /// The same name, pinned to `digest`.
    #[must_use]
    pub fn with_digest(&self, digest: Digest) -> Self {
        Self { digest: Some(digest), ..self.clone() }
    }

    /// The repository alone.
    #[must_use]
    pub fn without_tag_and_digest(&self) -> Self {
        Self { tag: None, digest: None, ..self.clone() }
    }

    /// What the registry is asked for: the digest, else the tag, else `latest`.
    pub fn object(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, Some(tag)) => tag.clone(),
            (None, None) => "latest".into(),
        }
    }

    /// The shortest text that [`Reference::parse`] reads back as this: `alpine:3`, `user/app`.
    pub fn familiar(&self) -> String {
        format!("{}{}", self.familiar_repository(), self.suffix())
    }

    /// As [`Reference::familiar`], without tag and digest.
    pub fn familiar_repository(&self) -> String {
        if self.domain != DEFAULT_DOMAIN {
            return self.repository();
        }
        match self.path.strip_prefix(OFFICIAL) {
            // `library/a/b` keeps its prefix, `library/localhost` would read as a host only with
            // a slash behind it and is fine.
            Some(official) if !official.contains('/') => official.to_owned(),
            _ => self.path.clone(),
        }
    }

    fn suffix(&self) -> String {
        let tag = self.tag.as_ref().map(|tag| format!(":{tag}"));
        let digest = self.digest.map(|digest| format!("@{digest}"));
        tag.unwrap_or_default() + &digest.unwrap_or_default()
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}{}", self.domain, self.path, self.suffix())
    }
}

impl FromStr for Reference {
    type Err = ParseReferenceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text)
    }
}

/// Splits a short name into registry and rest: the part before the first slash is a registry if
/// it looks like a host (a dot, a colon, `localhost`, or upper-case letters).
fn split_domain(text: &str) -> (String, String) {
    let (domain, mut rest) = match text.split_once('/') {
        Some((first, rest)) if first == LEGACY_DOMAIN => (DEFAULT_DOMAIN, rest.to_owned()),
        Some((first, rest))
            if first == "localhost"
                || first.contains(['.', ':'])
                || first.bytes().any(|b| b.is_ascii_uppercase()) =>
        {
            (first, rest.to_owned())
        }
        _ => (DEFAULT_DOMAIN, text.to_owned()),
    };
    let name_end = rest.find([':', '@']).unwrap_or(rest.len());
    if domain == DEFAULT_DOMAIN && !rest[..name_end].contains('/') {
        rest.insert_str(0, OFFICIAL);
    }
    (domain.to_owned(), rest)
}

/// `[a-z0-9]+` joined by `.`, `_`, `__` or dashes.
fn valid_component(part: &str) -> bool {
    let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = part.as_bytes();
    if !bytes.first().is_some_and(|b| alphanumeric(*b))
        || !bytes.last().is_some_and(|b| alphanumeric(*b))
    {
        return false;
    }
    part.split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit()).all(|separator| {
        matches!(separator, "" | "." | "_" | "__") || separator.bytes().all(|b| b == b'-')
    })
}

/// Host name or bracketed IPv6 address, optionally with a port.
fn valid_domain(domain: &str) -> bool {
    let (host, port) = match domain.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((address, rest)) => {
                if !address.bytes().all(|b| b.is_ascii_hexdigit() || b == b':')
                    || address.is_empty()
                {
                    return false;
                }
                ("v6", rest.strip_prefix(':').or((!rest.is_empty()).then_some("x")))
            }
            None => return false,
        },
        None => match domain.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (domain, None),
        },
    };
    let valid_label = |label: &str| {
        !label.is_empty()
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    host.split('.').all(valid_label)
        && port.is_none_or(|port| !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()))
}

/// `[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}`.
fn valid_tag(tag: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    tag.len() <= 128
        && tag.as_bytes().first().is_some_and(|b| word(*b))
        && tag.bytes().all(|b| word(b) || b == b'.' || b == b'-')
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    fn check(names: &str, expected: Expect) {
        let mut out = String::new();
        for name in names.lines().map(str::trim) {
            out += &match Reference::parse(name) {
                Ok(parsed) => {
                    let complete = parsed.to_string();
                    assert_eq!(Reference::parse(&parsed.familiar()).as_ref(), Ok(&parsed));
                    assert_eq!(Reference::parse_complete(&complete).as_ref(), Ok(&parsed));
                    format!("{complete} | {} | {}\n", parsed.familiar(), parsed.host())
                }
                Err(error) => format!("{error}\n"),
            };
        }
        expected.assert_eq(&out);
    }

    #[test]
    fn completes_short_names() {
        check(
            "alpine
             alpine:3.20
             user/app
             docker.io/alpine
             index.docker.io/user/app:v1
             localhost/app
             localhost:5000/app:1
             Host/app
             ghcr.io/a/b/c@sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855
             a.b/c__d/e---f:x@sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855
             [::1]:5000/x
             docker.io/library/a/b",
            expect![[r#"
                docker.io/library/alpine | alpine | registry-1.docker.io
                docker.io/library/alpine:3.20 | alpine:3.20 | registry-1.docker.io
                docker.io/user/app | user/app | registry-1.docker.io
                docker.io/library/alpine | alpine | registry-1.docker.io
                docker.io/user/app:v1 | user/app:v1 | registry-1.docker.io
                localhost/app | localhost/app | localhost
                localhost:5000/app:1 | localhost:5000/app:1 | localhost:5000
                Host/app | Host/app | Host
                ghcr.io/a/b/c@sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855 | ghcr.io/a/b/c@sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855 | ghcr.io
                a.b/c__d/e---f:x@sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855 | a.b/c__d/e---f:x@sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855 | a.b
                [::1]:5000/x | [::1]:5000/x | [::1]:5000
                docker.io/library/a/b | library/a/b | registry-1.docker.io
            "#]],
        );
    }

    #[test]
    fn refuses_as_docker() {
        check(
            "
             :tag
             UPPER
             a/Upper:x
             a..b
             a/-b
             a:b:c
             a:-x
             a@sha512:00
             a/
             e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855
             a b
             ex-.com/a.b/x",
            expect![[r#"
                repository name must have at least one component: ``
                repository name must have at least one component: `:tag`
                invalid reference format: repository name (library/UPPER) must be lowercase
                invalid reference format: repository name (a/Upper) must be lowercase
                invalid reference format: `a..b`
                invalid reference format: `a/-b`
                invalid reference format: `a:b:c`
                invalid reference format: `a:-x`
                invalid reference format: `a@sha512:00`: unsupported or malformed digest, expected sha256:<64 hex digits>
                invalid reference format: `a/`
                invalid repository name (e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855), cannot specify 64-byte hexadecimal strings
                invalid reference format: `a b`
                invalid reference format: `ex-.com/a.b/x`
            "#]],
        );
        let long = format!("h.io/{}", "a".repeat(252));
        assert!(matches!(Reference::parse(&long), Err(ParseReferenceError::TooLong(_))));
    }
}
