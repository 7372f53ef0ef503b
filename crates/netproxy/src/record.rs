//! What a step asked for: requests in order, what of them is known by content and what is not.
//!
//! Memory is bounded: past [`MOST_BYTES`] of addresses nothing more is noted but that something is
//! missing, so that a record never claims to be complete when it is not.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    mem,
    sync::{Mutex, MutexGuard},
};

use base::Digest;
use http::{Method, Uri};

/// Addresses of one step that are remembered.
const MOST_BYTES: usize = 16 << 20;

/// Content that a step was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Material {
    /// Its address, without credentials.
    pub url: String,
    /// Of the whole body.
    pub digest: Digest,
}

/// A request of a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Such as `GET`.
    pub method: String,
    /// Its address, without credentials.
    pub url: String,
    /// Where the answer leads on to.
    pub redirect: Option<String>,
    /// What was answered.
    pub status: u16,
}

/// A request whose content is not known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Incomplete {
    /// Such as `GET`; empty where no single request is meant.
    pub method: String,
    /// Its address, without credentials.
    pub url: String,
    /// One word.
    pub reason: &'static str,
}

/// All of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Record {
    /// In order.
    pub requests: Vec<Request>,
    /// In order of arrival.
    pub materials: Vec<Material>,
    /// What is missing among the materials.
    pub incomplete: Vec<Incomplete>,
    /// How much is noted.
    bytes: usize,
    /// Requests that are not noted.
    omitted: u64,
}

impl Record {
    /// Whether more may be noted of an address that long.
    fn has_room(&mut self, length: usize) -> bool {
        self.bytes += length + mem::size_of::<Request>();
        if self.bytes <= MOST_BYTES {
            return true;
        }
        let reason = "too_many_requests";
        if self.incomplete.last().is_none_or(|last| last.reason != reason) {
            self.incomplete.push(Incomplete { method: String::new(), url: String::new(), reason });
        }
        false
    }

    /// The materials, and those that redirects led to under the addresses they came from.
    pub fn all_materials(&self) -> Vec<Material> {
        let mut all = self.materials.clone();
        let mut known: BTreeMap<&str, Digest> =
            all_pairs(&self.materials).map(|(url, digest)| (url, *digest)).collect();
        let mut redirects: BTreeMap<&str, &str> = BTreeMap::new();
        for request in &self.requests {
            if let Some(to) = request.redirect.as_deref().filter(|to| *to != request.url) {
                redirects.insert(&request.url, to);
            }
        }
        loop {
            let before = known.len();
            redirects.retain(|from, to| {
                let Some(digest) = known.get(to).copied() else { return true };
                if !known.contains_key(from) {
                    known.insert(from, digest);
                    all.push(Material { url: (*from).to_owned(), digest });
                }
                false
            });
            if known.len() == before {
                return all;
            }
        }
    }

    /// What the log of a step shows; empty if nothing was asked for.
    pub fn log(&self) -> String {
        if self.requests.is_empty() {
            return String::new();
        }
        let mut text = "proxy network requests:\n".to_owned();
        for Request { method, url, status, .. } in &self.requests {
            _ = writeln!(text, "- {method} {url} -> {status}");
        }
        if self.omitted > 0 {
            _ = writeln!(text, "- {} more", self.omitted);
        }
        text
    }
}

fn all_pairs(materials: &[Material]) -> impl Iterator<Item = (&str, &Digest)> {
    materials.iter().map(|material| (material.url.as_str(), &material.digest))
}

/// Collects a [`Record`] from all connections of a step.
#[derive(Debug, Default)]
pub(crate) struct Recorder(Mutex<Record>);

impl Recorder {
    fn record(&self) -> MutexGuard<'_, Record> {
        self.0.lock().expect("no panic while noting a request")
    }

    pub(crate) fn request(&self, method: &Method, url: &str, status: u16, to: Option<String>) {
        let mut record = self.record();
        if !record.has_room(url.len() + to.as_ref().map_or(0, String::len)) {
            record.omitted += 1;
            return;
        }
        let (method, url) = (method.to_string(), url.to_owned());
        record.requests.push(Request { method, url, redirect: to, status });
    }

    pub(crate) fn material(&self, url: &str, digest: Digest) {
        let mut record = self.record();
        if record.has_room(url.len()) {
            record.materials.push(Material { url: url.to_owned(), digest });
        }
    }

    pub(crate) fn incomplete(&self, method: &Method, url: &str, reason: &'static str) {
        let mut record = self.record();
        if record.has_room(url.len()) {
            let (method, url) = (method.to_string(), url.to_owned());
            record.incomplete.push(Incomplete { method, url, reason });
        }
    }

    pub(crate) fn take(&self) -> Record {
        mem::take(&mut self.record())
    }
}

/// An address as it is written down: without credentials and ports that go without saying.
pub(crate) fn shown(uri: &Uri) -> String {
    let scheme = uri.scheme_str().unwrap_or("http");
    let authority = uri.authority().map_or("", |authority| authority.as_str());
    let (credentials, place) = match authority.rsplit_once('@') {
        None => ("", authority),
        Some((user, place)) if user.contains(':') => ("xxxxx:xxxxx@", place),
        Some((_, place)) => ("xxxxx@", place),
    };
    let usual = if scheme == "https" { ":443" } else { ":80" };
    let place = place.strip_suffix(usual).unwrap_or(place);
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let path = if path.starts_with('?') { format!("/{path}") } else { path.to_owned() };
    format!("{scheme}://{credentials}{place}{path}")
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    #[test]
    fn addresses_are_shown() {
        let shown = |text: &str| super::shown(&text.parse().unwrap());
        assert_eq!(shown("http://a/b?c"), "http://a/b?c");
        assert_eq!(shown("http://a:80"), "http://a/");
        assert_eq!(shown("https://a:443/b"), "https://a/b");
        assert_eq!(shown("https://a:80/b"), "https://a:80/b");
        assert_eq!(shown("https://[::1]:443/b"), "https://[::1]/b");
        assert_eq!(shown("https://u:p@a/b"), "https://xxxxx:xxxxx@a/b");
    }

    /// Requests as `METHOD URL STATUS [REDIRECT]`; `=` after one that was digested.
    fn check(requests: &[&str], expected: Expect) {
        let recorder = Recorder::default();
        for line in requests {
            let words: Vec<&str> = line.split_whitespace().collect();
            let method = words[0].parse().unwrap();
            let to = words.get(3).filter(|to| **to != "=").map(|to| (*to).to_owned());
            recorder.request(&method, words[1], words[2].parse().unwrap(), to);
            if words.last() == Some(&"=") {
                recorder.material(words[1], Digest::of(words[1]));
            }
        }
        let record = recorder.take();
        let materials = record.all_materials();
        let mut text = record.log();
        for Material { url, digest } in materials {
            let of = ["http://a", "http://c"].into_iter().find(|name| Digest::of(name) == digest);
            text += &format!("{url} is that of {}\n", of.unwrap_or("nobody"));
        }
        expected.assert_eq(&text);
    }

    #[test]
    fn redirects_name_what_they_led_to() {
        check(&[], expect![""]);
        check(
            &["GET http://a 302 http://b", "GET http://b 302 http://c", "GET http://c 200 ="],
            expect![[r#"
                proxy network requests:
                - GET http://a -> 302
                - GET http://b -> 302
                - GET http://c -> 200
                http://c is that of http://c
                http://b is that of http://c
                http://a is that of http://c
            "#]],
        );
        check(
            &["GET http://a 302 http://b", "GET http://b 302 http://a"],
            expect![[r#"
                proxy network requests:
                - GET http://a -> 302
                - GET http://b -> 302
            "#]],
        );
    }

    #[test]
    fn memory_is_bounded() {
        let recorder = Recorder::default();
        let url = format!("http://a/{}", "x".repeat(1 << 20));
        for _ in 0..40 {
            recorder.request(&Method::GET, &url, 200, None);
            recorder.material(&url, Digest::of(""));
        }
        let record = recorder.take();
        assert!(record.requests.len() < 20);
        assert_eq!(record.requests.len() as u64 + record.omitted, 40);
        let reasons: Vec<_> = record.incomplete.iter().map(|it| it.reason).collect();
        assert_eq!(reasons, ["too_many_requests"]);
    }
}
