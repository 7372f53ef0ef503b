//! What a git op asks for: address, ref, folder and attributes.

use base::{Digest, path};

use crate::{SourceError, SourceRequest, http_text::percent_decode};

const PROTOCOLS: [&str; 4] = ["http", "https", "ssh", "git"];

/// A git source, checked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// Address as git takes it.
    pub(crate) remote: String,
    /// Branch, tag, full ref or commit; empty is the default branch.
    pub(crate) reference: String,
    /// Clean, without a leading slash; empty is everything.
    pub(crate) folder: String,
    pub(crate) checksum: String,
    pub(crate) keep_git_dir: bool,
    pub(crate) header_secret: String,
    pub(crate) token_secret: String,
    pub(crate) ssh_agent: Option<String>,
    pub(crate) known_hosts: String,
    pub(crate) skip_submodules: bool,
    pub(crate) mtime: String,
    pub(crate) fetch_by_commit: bool,
    /// Where commits come from instead of the remote.
    pub(crate) bundle: Option<Bundle>,
    /// Address of the unpacked bundle.
    pub(crate) from: Option<String>,
    /// The tree is one file with the commit and what led to it, instead of its files.
    pub(crate) as_bundle: bool,
}

impl Wanted {
    pub(crate) fn parse(request: &SourceRequest) -> Result<Self, SourceError> {
        let mut wanted = Self::from_address(request.rest())?;
        for (key, value) in &request.op.attrs {
            match key.as_str() {
                "git.keepgitdir" => wanted.keep_git_dir = value == "true",
                "git.fullurl" => wanted.remote = with_transport(value),
                "git.authheadersecret" => wanted.header_secret.clone_from(value),
                "git.authtokensecret" => wanted.token_secret.clone_from(value),
                "git.knownsshhosts" => wanted.known_hosts.clone_from(value),
                "git.mountsshsock" if !value.is_empty() => wanted.ssh_agent = Some(value.clone()),
                "git.checksum" => wanted.checksum.clone_from(value),
                "git.skipsubmodules" => wanted.skip_submodules = value == "true",
                "git.mtime" => wanted.mtime.clone_from(value),
                "git.fetchbycommit" => wanted.fetch_by_commit = value == "true",
                "git.bundle" if !value.is_empty() => {
                    wanted.bundle = Some(Bundle::parse(value, request)?);
                }
                "git.checkoutbundle" => wanted.as_bundle = value == "true",
                _ if key.starts_with("git.sig.") => {
                    return Err(SourceError::Attribute(format!(
                        "{key}: signatures of git sources are not verified by this daemon; \
                         pin the commit with git.checksum"
                    )));
                }
                _ => {}
            }
        }
        check_reference(&wanted.reference)?;
        wanted.check_bundles()?;
        if !wanted.checksum.chars().all(|char| char.is_ascii_hexdigit()) {
            return Err(SourceError::Attribute(format!(
                "invalid checksum {} for Git URL, expected hex commit hash",
                wanted.checksum
            )));
        }
        Ok(wanted)
    }

    fn check_bundles(&self) -> Result<(), SourceError> {
        let refused = |text: &str| Err(SourceError::Attribute(text.to_owned()));
        if self.bundle.is_some() {
            if self.checksum.is_empty() {
                return refused("git.bundle requires git.checksum to be set");
            }
            if is_commit(&self.reference) && !self.reference.starts_with(&self.checksum) {
                let (checksum, got) = (&self.checksum, &self.reference);
                return refused(&format!("expected checksum to match {checksum}, got {got}"));
            }
        }
        if self.as_bundle && self.keep_git_dir {
            return refused("git.checkoutbundle is incompatible with git.keepgitdir");
        }
        if self.as_bundle && !self.folder.is_empty() {
            return refused("git.checkoutbundle is incompatible with git.subdir");
        }
        Ok(())
    }

    fn from_address(text: &str) -> Result<Self, SourceError> {
        let address = with_transport(text);
        let protocol = protocol(&address);
        if let Some(other) = &protocol
            && !PROTOCOLS.contains(&other.as_str())
        {
            return Err(SourceError::Attribute(format!("{other}: invalid protocol")));
        }
        let (remote, fragment) = address.split_once('#').unwrap_or((&address, ""));
        let (remote, _) = remote.split_once('?').unwrap_or((remote, ""));
        if remote.contains(char::is_control) || remote.starts_with('-') {
            return Err(SourceError::Attribute(format!("invalid git address {remote:?}")));
        }
        let fragment = match protocol {
            Some(_) => percent_decode(fragment),
            None => fragment.to_owned(),
        };
        let (reference, folder) = fragment.split_once(':').unwrap_or((&fragment, ""));
        Ok(Self {
            remote: remote.to_owned(),
            reference: reference.to_owned(),
            folder: path::absolute(folder).trim_start_matches('/').to_owned(),
            ..Self::default()
        })
    }

    /// Where git fetches from.
    pub(crate) fn origin(&self) -> &str {
        self.from.as_deref().unwrap_or(&self.remote)
    }

    /// The remote without user and password.
    pub(crate) fn shown_remote(&self) -> String {
        redact(&self.remote)
    }

    /// `host[:port]` of the remote; empty for the short ssh form.
    pub(crate) fn host(&self) -> &str {
        let Some((_, rest)) = self.remote.split_once("://") else { return "" };
        let authority = rest.split(['/', '?']).next().unwrap_or(rest);
        authority.rsplit_once('@').map_or(authority, |(_, host)| host)
    }

    /// Secrets that may hold credentials, in the order they are tried, and whether it is a token.
    pub(crate) fn secrets(&self) -> Vec<(String, bool)> {
        let mut list = Vec::new();
        for suffix in [format!(".{}", self.host()), String::new()] {
            for (name, token) in [(&self.header_secret, false), (&self.token_secret, true)] {
                if !name.is_empty() {
                    list.push((format!("{name}{suffix}"), token));
                }
            }
        }
        list
    }

    /// The addresses that credentials are sent to.
    pub(crate) fn credential_scope(&self) -> &str {
        let github = ["https://github.com/", "https://www.github.com/"];
        github.into_iter().find(|prefix| self.remote.starts_with(prefix)).unwrap_or(&self.remote)
    }
}

/// A blob that is a git bundle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Bundle {
    pub(crate) digest: Digest,
    /// Reference as written.
    pub(crate) name: String,
    pub(crate) place: BundlePlace,
}

/// Where a bundle is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum BundlePlace {
    Registry(oci::Reference),
    /// A layout at the client; without a session any of the build's is asked.
    Layout {
        session: String,
        store: String,
    },
}

impl Bundle {
    fn parse(locator: &str, request: &SourceRequest) -> Result<Self, SourceError> {
        let bad = |reason: &str| {
            SourceError::Attribute(format!(
                "failed to parse git.bundle locator {locator:?}: {reason}"
            ))
        };
        let (scheme, name) = locator.split_once("://").ok_or_else(|| bad("missing scheme"))?;
        let (place, digest) = name.rsplit_once('@').ok_or_else(|| bad("invalid digest"))?;
        let digest: Digest = digest.parse().map_err(|_| bad("invalid digest"))?;
        let place = match scheme {
            "docker-image+blob" => {
                let reference = oci::Reference::parse(name);
                BundlePlace::Registry(reference.map_err(|error| bad(&error.to_string()))?)
            }
            "oci-layout+blob" => BundlePlace::Layout {
                session: request.attr("oci.session").to_owned(),
                store: match request.attr("oci.store") {
                    "" => place.to_owned(),
                    store => store.to_owned(),
                },
            },
            other => {
                return Err(SourceError::Attribute(format!(
                    "git.bundle locator scheme {other:?} is not supported; expected \
                     \"docker-image+blob\" or \"oci-layout+blob\""
                )));
            }
        };
        Ok(Self { digest, name: name.to_owned(), place })
    }
}

/// Refuses a ref that git would take for an option.
pub(crate) fn check_reference(reference: &str) -> Result<(), SourceError> {
    if reference.starts_with('-') || reference.contains(char::is_control) {
        return Err(SourceError::Attribute(format!("invalid git ref {reference:?}")));
    }
    Ok(())
}

/// Whether the text is a full commit id.
pub(crate) fn is_commit(text: &str) -> bool {
    matches!(text.len(), 40 | 64)
        && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// `https://` in front of what has no transport of git.
fn with_transport(text: &str) -> String {
    let known = match protocol(text) {
        Some(protocol) => PROTOCOLS.contains(&protocol.as_str()),
        None => is_short_ssh(text),
    };
    if known { text.to_owned() } else { format!("https://{text}") }
}

fn protocol(text: &str) -> Option<String> {
    let (protocol, _) = text.split_once("://")?;
    let plain = !protocol.is_empty() && protocol.chars().all(|char| char.is_ascii_alphanumeric());
    plain.then(|| protocol.to_ascii_lowercase())
}

/// `user@host:path`.
fn is_short_ssh(text: &str) -> bool {
    let Some((user, rest)) = text.split_once('@') else { return false };
    let Some((host, _)) = rest.split_once(':') else { return false };
    let word = |text: &str, extra: &[char]| {
        !text.is_empty()
            && text.chars().all(|char| char.is_ascii_alphanumeric() || extra.contains(&char))
    };
    word(user, &['-', '_']) && word(host, &['-', '.'])
}

/// The address with user and password blotted out.
pub(crate) fn redact(address: &str) -> String {
    let Some((protocol, rest)) = address.split_once("://") else { return address.to_owned() };
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let Some((user, host)) = rest[..end].rsplit_once('@') else { return address.to_owned() };
    let user = match user.split_once(':') {
        Some(("", _)) => ":xxxxx",
        Some(_) => "xxxxx:xxxxx",
        None if user.is_empty() => "",
        None => "xxxxx",
    };
    format!("{protocol}://{user}@{host}{}", &rest[end..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_split_into_remote_ref_and_folder() {
        for (text, remote, reference, folder) in [
            ("github.com/a/b.git", "https://github.com/a/b.git", "", ""),
            ("github.com/a/b#main:x/../y/", "https://github.com/a/b", "main", "y"),
            ("https://h/a?ref=x#v1", "https://h/a", "v1", ""),
            ("git@h:a/b.git#dev:/d", "git@h:a/b.git", "dev", "d"),
            ("ssh://git@h:22/a#feature%2Fx", "ssh://git@h:22/a", "feature/x", ""),
            ("git://h/a#:d", "git://h/a", "", "d"),
        ] {
            let wanted = Wanted::from_address(text).unwrap();
            assert_eq!(
                (wanted.remote.as_str(), wanted.reference.as_str(), wanted.folder.as_str()),
                (remote, reference, folder),
                "{text}"
            );
        }
        assert_eq!(Wanted::from_address("file:///etc").unwrap().remote, "https://file:///etc");
        assert!(check_reference("-x").is_err());
    }

    #[test]
    fn credentials_are_scoped_and_hidden() {
        let wanted = Wanted {
            header_secret: "H".into(),
            token_secret: "T".into(),
            ..Wanted::from_address("https://u:p@h:8443/a").unwrap()
        };
        assert_eq!(wanted.host(), "h:8443");
        assert_eq!(wanted.shown_remote(), "https://xxxxx:xxxxx@h:8443/a");
        let names: Vec<_> = wanted.secrets().into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["H.h:8443", "T.h:8443", "H", "T"]);
        assert_eq!(wanted.credential_scope(), "https://u:p@h:8443/a");
        let github = Wanted::from_address("github.com/a/b").unwrap();
        assert_eq!(github.credential_scope(), "https://github.com/");
        assert_eq!(redact("https://u@h/a@b"), "https://xxxxx@h/a@b");
    }
}
