//! Git references in contexts and ADD: URLs with fragments and queries, and `user@host:path`.
//!
//! Source: Dockerfile notes §14.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use llb::build::GitOptions;
use regex::Regex;

use crate::error::{Error, Kind, Result};
use crate::text;
use crate::url::{self, Url};

/// A reference to a Git repository.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GitRef {
    /// What git is given.
    pub remote: String,
    /// Branch, tag or commit.
    pub reference: String,
    /// Folder inside.
    pub subdir: String,
    /// Expected commit.
    pub checksum: String,
    /// Written without scheme, as a path could be; meant only as a context.
    pub looks_local: bool,
    /// Keep `.git`.
    pub keep_git_dir: Option<bool>,
    /// Fetch submodules.
    pub submodules: Option<bool>,
    /// `checkout` or `commit`.
    pub mtime: String,
    /// Fetch the checksum itself.
    pub fetch_by_commit: bool,
}

/// A remote taken apart.
struct Remote {
    ssh: bool,
    http: bool,
    host: String,
    path: String,
    query: BTreeMap<String, Vec<String>>,
    fragment: String,
    /// Without query and fragment.
    text: String,
}

static SCP: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"^([a-zA-Z0-9_-]+)@([a-zA-Z0-9.-]+):(.*?)(?:\?(.*?))?(?:#(.*))?$")
        .expect("a fixed pattern is valid")
});

impl GitRef {
    /// Reads a reference; nothing if the text is something else.
    pub fn parse(input: &str) -> Result<Option<Self>> {
        if input.starts_with("./") || input.starts_with("../") {
            return Ok(None);
        }
        let looks_local = input.starts_with("github.com/");
        let remote = if looks_local {
            Remote::parse(&format!("https://{input}"))
        } else {
            Remote::parse(input)
        };
        let Some(remote) = remote else { return Ok(None) };
        if remote.http && !looks_local && !remote.path.ends_with(".git") {
            return Ok(None);
        }
        let mut git = Self { remote: remote.text, looks_local, ..Self::default() };
        if looks_local {
            git.remote = git.remote.trim_start_matches("https://").to_owned();
        }
        let (reference, subdir) = remote.fragment.split_once(':').unwrap_or((&remote.fragment, ""));
        git.reference = reference.to_owned();
        git.subdir = base::path::absolute(subdir).trim_start_matches('/').to_owned();
        git.load_query(&remote.query)?;
        Ok(Some(git))
    }

    fn load_query(&mut self, query: &BTreeMap<String, Vec<String>>) -> Result<()> {
        let (mut tag, mut branch) = (String::new(), String::new());
        for (key, values) in query {
            let key = key.as_str();
            let quoted = || text::quote(key);
            let value = match values.as_slice() {
                [value] => value.as_str(),
                [] => "",
                _ => return Err(Error::new(Kind::GitQueryMulti, [quoted()])),
            };
            let is_switch = matches!(key, "submodules" | "keep-git-dir" | "fetch-by-commit");
            if value.is_empty() && !is_switch {
                return Err(Error::new(Kind::GitQueryNoValue, [quoted()]));
            }
            let bad = || Error::new(Kind::GitQueryValue, [key.to_owned(), text::quote(value)]);
            let switch = || match value {
                "" => Ok(true),
                value => text::parse_bool(value).ok_or_else(bad),
            };
            match key {
                "ref" => unify("ref", &mut self.reference, value)?,
                "tag" => tag = prefixed("refs/tags/", value),
                "branch" => branch = prefixed("refs/heads/", value),
                "subdir" => unify("subdir", &mut self.subdir, value)?,
                "checksum" | "commit" => self.checksum = value.to_owned(),
                "keep-git-dir" => self.keep_git_dir = Some(switch()?),
                "submodules" => self.submodules = Some(switch()?),
                "fetch-by-commit" => self.fetch_by_commit = switch()?,
                "mtime" if matches!(value, "checkout" | "commit") => self.mtime = value.to_owned(),
                "mtime" => return Err(bad()),
                _ => return Err(Error::new(Kind::GitQueryUnknown, [quoted()])),
            }
        }
        if !tag.is_empty() {
            unify("ref", &mut self.reference, &tag)?;
        }
        if !branch.is_empty() {
            if !tag.is_empty() {
                return Err(Error::plain(Kind::GitBranchAndTag));
            }
            unify("ref", &mut self.reference, &branch)?;
        }
        Ok(())
    }

    /// The source of this repository, with what the reference itself says.
    pub fn options(&self) -> GitOptions {
        let remote = Remote::parse(&self.remote)
            .or_else(|| Remote::parse(&format!("https://{}", self.remote)));
        let mut options = GitOptions {
            full_url: self.remote.clone(),
            reference: self.reference.clone(),
            subdir: self.subdir.clone(),
            checksum: self.checksum.clone(),
            keep_git_dir: self.keep_git_dir == Some(true),
            skip_submodules: self.submodules == Some(false),
            mtime: self.mtime.clone(),
            fetch_by_commit: self.fetch_by_commit,
            ..GitOptions::default()
        };
        if let Some(remote) = remote {
            options.full_url = remote.text;
            options.host = remote.host;
            options.path = remote.path;
            options.ssh = remote.ssh;
        }
        options
    }
}

/// Sets a value that must agree with what is set already.
fn unify(name: &str, known: &mut String, value: &str) -> Result<()> {
    if !known.is_empty() && known != value {
        let params = [name.to_owned(), text::quote(known), text::quote(value)];
        return Err(Error::new(Kind::GitRefConflict, params));
    }
    *known = value.to_owned();
    Ok(())
}

fn prefixed(prefix: &str, value: &str) -> String {
    if value.starts_with(prefix) { value.to_owned() } else { format!("{prefix}{value}") }
}

impl Remote {
    fn parse(input: &str) -> Option<Self> {
        let word = input.find("://").map(|at| &input[..at]);
        let is_word =
            |word: &&str| !word.is_empty() && word.bytes().all(|b| b.is_ascii_alphanumeric());
        if let Some(scheme) = word.filter(is_word) {
            let scheme = scheme.to_ascii_lowercase();
            if !matches!(scheme.as_str(), "http" | "https" | "ssh" | "git") {
                return None;
            }
            let url = Url::parse(input)?;
            return Some(Self {
                ssh: url.scheme == "ssh",
                http: matches!(url.scheme.as_str(), "http" | "https"),
                text: url.without_query_and_fragment(),
                host: url.host,
                path: url.path,
                query: url.query,
                fragment: url.fragment,
            });
        }
        let parts = SCP.captures(input)?;
        let part = |number| parts.get(number).map_or("", |part| part.as_str());
        Some(Self {
            ssh: true,
            http: false,
            host: part(2).to_owned(),
            path: part(3).to_owned(),
            query: url::parse_query(part(4))?,
            fragment: part(5).to_owned(),
            text: format!("{}@{}:{}", part(1), part(2), part(3)),
        })
    }
}

/// Whether ADD takes the source from a web server.
pub fn is_http_source(source: &str) -> bool {
    (source.starts_with("http://") || source.starts_with("https://")) && !is_git_source(source)
}

/// Whether ADD takes the source from a Git repository.
pub fn is_git_source(source: &str) -> bool {
    matches!(GitRef::parse(source), Ok(Some(_)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(input: &str, expected: &str) {
        let got = match GitRef::parse(input) {
            Ok(None) => "no".to_owned(),
            Ok(Some(git)) => {
                let options = git.options();
                format!(
                    "{} {}{} #{}:{}",
                    options.full_url, options.host, options.path, git.reference, git.subdir
                )
            }
            Err(error) => format!("{} {}", error.kind.name(), error.params.join(" ")),
        };
        assert_eq!(got, expected, "{input}");
    }

    #[test]
    fn reads_references() {
        check("https://h/r.git#v1:a/../b", "https://h/r.git h/r.git #v1:b");
        check("https://h:8/r.git?branch=x&subdir=d", "https://h:8/r.git h:8/r.git #refs/heads/x:d");
        check("git@h:o/r.git#v", "git@h:o/r.git ho/r.git #v:");
        check("ssh://u@h/r", "ssh://u@h/r h/r #:");
        check("github.com/o/r#v", "https://github.com/o/r github.com/o/r #v:");
        check("https://h/x", "no");
        check("./a.git", "no");
        check("https://h/r.git?x=1", "git-query-unknown \"x\"");
        check("https://h/r.git?ref=a&ref=b", "git-query-multi \"ref\"");
        check("https://h/r.git?ref=a#b", "git-ref-conflict ref \"b\" \"a\"");
        check("https://h/r.git?tag=a&branch=b", "git-branch-and-tag ");
        check("https://h/r.git?mtime=now", "git-query-value mtime \"now\"");
    }
}
