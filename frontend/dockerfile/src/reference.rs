//! Image references and their normal form.
//!
//! `alpine` is `docker.io/library/alpine`; a reference without tag and digest means `latest`.
//! Holding a [`Reference`] is proof that it can be written into a graph.

use std::fmt;
use std::sync::LazyLock;

use regex::Regex;

/// Longest repository path.
const MAX_PATH: usize = 255;

const DEFAULT_DOMAIN: &str = "docker.io";

/// A normalised image reference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    /// Empty if the first part looks like one and is none.
    domain: String,
    path: String,
    tag: Option<String>,
    digest: Option<String>,
}

/// The text is no image reference.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("invalid image reference")]
pub struct ParseReferenceError;

static PARTS: LazyLock<Regex> = LazyLock::new(|| {
    let label = "(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])";
    let domain = format!(r"(?:{label}(?:\.{label})*|\[(?:[a-fA-F0-9:]+)\])(?::[0-9]+)?");
    let component = r"[a-z0-9]+(?:(?:[._]|__|[-]+)[a-z0-9]+)*";
    let path = format!("{component}(?:/{component})*");
    let tag = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}";
    let digest = r"[A-Za-z][A-Za-z0-9]*(?:[-_+.][A-Za-z][A-Za-z0-9]*)*:[0-9a-fA-F]{32,}";
    Regex::new(&format!("^(?:({domain})/)?({path})(?::({tag}))?(?:@({digest}))?$"))
        .expect("a fixed pattern is valid")
});

impl Reference {
    /// Reads a reference as people write it.
    pub fn parse(input: &str) -> Result<Self, ParseReferenceError> {
        if is_hex(input, 64) {
            return Err(ParseReferenceError);
        }
        let (domain, rest) = split_domain(input);
        let name = rest.split_once(':').map_or(rest.as_str(), |(name, _)| name);
        if name.chars().any(char::is_uppercase) {
            return Err(ParseReferenceError);
        }
        let parsed = Plain::parse(&format!("{domain}/{rest}"))?;
        Ok(Self {
            domain: parsed.domain.unwrap_or_default(),
            path: parsed.path,
            tag: parsed.tag,
            digest: parsed.digest,
        })
    }

    /// Adds the tag `latest` if there is neither tag nor digest.
    pub fn tagged(mut self) -> Self {
        if self.tag.is_none() && self.digest.is_none() {
            self.tag = Some("latest".to_owned());
        }
        self
    }

    /// Sets the digest.
    pub fn with_digest(mut self, digest: &str) -> Self {
        self.digest = Some(digest.to_owned());
        self
    }

    /// The digest, if it has one.
    pub fn digest(&self) -> Option<&str> {
        self.digest.as_deref()
    }

    /// The short form people write.
    pub fn familiar(&self) -> String {
        let full = self.to_string();
        match full.strip_prefix("docker.io/") {
            Some(rest) if self.domain == DEFAULT_DOMAIN => {
                let only = self.path.strip_prefix("library/").filter(|name| !name.contains('/'));
                rest[if only.is_some() { "library/".len() } else { 0 }..].to_owned()
            }
            _ => full,
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.domain.is_empty() {
            write!(f, "{}/", self.domain)?;
        }
        f.write_str(&self.path)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

/// A reference without normalisation, as names of OCI layouts are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plain {
    domain: Option<String>,
    path: String,
    tag: Option<String>,
    /// The digest, if it has one.
    pub digest: Option<String>,
}

impl Plain {
    /// Reads `name[:tag][@digest]`.
    pub fn parse(input: &str) -> Result<Self, ParseReferenceError> {
        let parts = PARTS.captures(input).ok_or(ParseReferenceError)?;
        let part = |number| parts.get(number).map(|part| part.as_str().to_owned());
        let path = part(2).ok_or(ParseReferenceError)?;
        let digest = part(4);
        if path.len() > MAX_PATH || digest.as_deref().is_some_and(|digest| !is_digest(digest)) {
            return Err(ParseReferenceError);
        }
        Ok(Self { domain: part(1), path, tag: part(3), digest })
    }

    /// The part before tag and digest.
    pub fn name(&self) -> String {
        match &self.domain {
            Some(domain) => format!("{domain}/{}", self.path),
            None => self.path.clone(),
        }
    }
}

/// Whether `text` is a digest of a known algorithm: `sha256:` and 64 lower-case hex digits, or
/// the longer siblings.
pub fn is_digest(text: &str) -> bool {
    match text.split_once(':') {
        Some(("sha256", hex)) => is_hex(hex, 64),
        Some(("sha384", hex)) => is_hex(hex, 96),
        Some(("sha512", hex)) => is_hex(hex, 128),
        _ => false,
    }
}

fn is_hex(text: &str, length: usize) -> bool {
    text.len() == length && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

fn split_domain(input: &str) -> (&str, String) {
    let (domain, rest) = match input.split_once('/') {
        Some(("index.docker.io", rest)) => (DEFAULT_DOMAIN, rest),
        Some((first, rest))
            if first == "localhost"
                || first.contains(['.', ':'])
                || first.chars().any(char::is_uppercase) =>
        {
            (first, rest)
        }
        _ => (DEFAULT_DOMAIN, input),
    };
    if domain == DEFAULT_DOMAIN && !rest.contains('/') {
        return (domain, format!("library/{rest}"));
    }
    (domain, rest.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normalises() {
        let hex = "a".repeat(64);
        for (input, full, familiar) in [
            ("alpine", "docker.io/library/alpine:latest", "alpine:latest"),
            ("a/b:1", "docker.io/a/b:1", "a/b:1"),
            ("localhost/x", "localhost/x:latest", "localhost/x:latest"),
            ("h.io:5000/x/y", "h.io:5000/x/y:latest", "h.io:5000/x/y:latest"),
            ("index.docker.io/x", "docker.io/library/x:latest", "x:latest"),
        ] {
            let reference = Reference::parse(input).unwrap().tagged();
            assert_eq!(
                (reference.to_string().as_str(), reference.familiar().as_str()),
                (full, familiar)
            );
        }
        let pinned = format!("x:1@sha256:{hex}");
        assert_eq!(Reference::parse(&pinned).unwrap().tagged().familiar(), pinned);
        for bad in ["", "Alpine", "a:", "a/B", "a@sha256:00", "a b", "-a", hex.as_str()] {
            assert!(Reference::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn plain_names() {
        let plain = Plain::parse(&format!("store/two:t@sha256:{}", "e".repeat(64))).unwrap();
        assert_eq!(plain.name(), "store/two");
        assert_eq!(Plain::parse("store:tag").unwrap().digest, None);
    }
}
