//! Sources: images, git, http, local folders, OCI layouts.
//!
//! Each constructor gives the identifier, attributes and capabilities the standard client writes.

use std::collections::BTreeMap;

use super::Caps;

/// Where a tree comes from.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Source {
    /// `<scheme>://<rest>`.
    pub identifier: String,
    /// Options.
    pub attrs: BTreeMap<String, String>,
    pub(super) caps: Caps,
}

/// When an image reference is looked up at its registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ResolveMode {
    /// As the daemon sees fit.
    #[default]
    Default,
    /// Always.
    ForcePull,
    /// Only if there is no local image.
    PreferLocal,
}

impl ResolveMode {
    /// The word on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::ForcePull => "pull",
            Self::PreferLocal => "local",
        }
    }
}

/// Options of [`Source::local`]; empty ones are left out.
#[derive(Debug, Clone, Default)]
pub struct LocalOptions {
    /// Session that has the folder.
    pub session: String,
    /// Patterns of what to take.
    pub include_patterns: Vec<String>,
    /// Patterns of what to leave out.
    pub exclude_patterns: Vec<String>,
    /// Paths to take with what their links point to.
    pub follow_paths: Vec<String>,
    /// Keeps transfers of the same folder for different uses apart.
    pub shared_key_hint: String,
    /// `none` or `metadata`: how the receiver decides what to fetch.
    pub differ: &'static str,
}

/// Options of [`Source::git`].
#[derive(Debug, Clone, Default)]
pub struct GitOptions {
    /// Host of the remote, as it stands in the identifier.
    pub host: String,
    /// Path on the host.
    pub path: String,
    /// What git is given.
    pub full_url: String,
    /// Branch, tag or commit.
    pub reference: String,
    /// Folder inside.
    pub subdir: String,
    /// Expected commit.
    pub checksum: String,
    /// Keep `.git`.
    pub keep_git_dir: bool,
    /// Leave submodules out.
    pub skip_submodules: bool,
    /// `checkout` or `commit`, or empty.
    pub mtime: String,
    /// Fetch the checksum, not the ref.
    pub fetch_by_commit: bool,
    /// The remote speaks ssh.
    pub ssh: bool,
    /// `known_hosts` lines.
    pub known_ssh_hosts: String,
}

impl Source {
    /// A source of any kind, without capabilities.
    pub fn new(
        identifier: impl Into<String>,
        attrs: impl IntoIterator<Item = (String, String)>,
    ) -> Self {
        Self {
            identifier: identifier.into(),
            attrs: attrs.into_iter().collect(),
            caps: Caps::new(),
        }
    }

    /// An image by its full reference.
    pub fn image(reference: &str) -> Self {
        Self::image_with_mode(reference, ResolveMode::Default)
    }

    /// An image by its full reference.
    pub fn image_with_mode(reference: &str, mode: ResolveMode) -> Self {
        let mut source = Self::new(format!("docker-image://{reference}"), []);
        source.caps.insert("source.image");
        if mode != ResolveMode::Default {
            source.attr("image.resolvemode", mode.as_str());
        }
        if mode == ResolveMode::ForcePull {
            source.caps.insert("source.image.resolvemode");
        }
        source
    }

    /// An image in a layout that a session serves.
    pub fn oci_layout(reference: &str, session: &str, store: &str) -> Self {
        let mut source = Self::new(format!("oci-layout://{reference}"), []);
        source.caps.insert("source.ocilayout");
        if !session.is_empty() {
            source.attr("oci.session", session);
        }
        if !store.is_empty() {
            source.attr("oci.store", store);
        }
        source
    }

    /// A folder of the client.
    pub fn local(name: &str, options: &LocalOptions) -> Self {
        let mut source = Self::new(format!("local://{name}"), []);
        source.caps.insert("source.local");
        let lists = [
            ("local.includepattern", "source.local.includepatterns", &options.include_patterns),
            ("local.followpaths", "source.local.followpaths", &options.follow_paths),
            ("local.excludepatterns", "source.local.excludepatterns", &options.exclude_patterns),
        ];
        if !options.session.is_empty() {
            source.attr("local.session", &options.session);
            source.caps.insert("source.local.sessionid");
        }
        for (key, cap, list) in lists {
            if !list.is_empty() {
                source.attr(key, &json_list(list));
                source.caps.insert(cap);
            }
        }
        if !options.shared_key_hint.is_empty() {
            source.attr("local.sharedkeyhint", &options.shared_key_hint);
            source.caps.insert("source.local.sharedkeyhint");
        }
        if !options.differ.is_empty() {
            source.attr("local.differ", options.differ);
        }
        source
    }

    /// A file behind a URL; `filename` is what it is called in the tree.
    pub fn http(url: &str, filename: &str, checksum: &str) -> Self {
        let mut source = Self::new(url, []);
        source.caps.insert("source.http");
        if !checksum.is_empty() {
            source.attr("http.checksum", checksum);
            source.caps.insert("source.http.checksum");
        }
        if !filename.is_empty() {
            source.attr("http.filename", filename);
        }
        source
    }

    /// A git repository.
    pub fn git(options: &GitOptions) -> Self {
        let mut identifier =
            format!("git://{}{}", options.host, base::path::absolute(&options.path));
        if !options.reference.is_empty() || !options.subdir.is_empty() {
            identifier.push('#');
            identifier.push_str(&options.reference);
            if !options.subdir.is_empty() {
                identifier.push(':');
                identifier.push_str(&options.subdir);
            }
        }
        let mut source = Self::new(identifier, []);
        source.caps.insert("source.git");
        source.attr("git.authheadersecret", "GIT_AUTH_HEADER");
        source.attr("git.authtokensecret", "GIT_AUTH_TOKEN");
        let texts = [
            ("git.fullurl", "source.git.fullurl", options.full_url.as_str()),
            ("git.checksum", "source.git.checksum", &options.checksum),
            ("git.mtime", "source.git.mtime", &options.mtime),
        ];
        for (key, cap, value) in texts {
            if !value.is_empty() {
                source.attr(key, value);
                source.caps.insert(cap);
            }
        }
        let switches = [
            ("git.keepgitdir", "source.git.keepgitdir", options.keep_git_dir),
            ("git.skipsubmodules", "source.git.skipsubmodules", options.skip_submodules),
            ("git.fetchbycommit", "source.git.fetchbycommit", options.fetch_by_commit),
        ];
        for (key, cap, on) in switches {
            if on {
                source.attr(key, "true");
                source.caps.insert(cap);
            }
        }
        if options.ssh {
            if !options.known_ssh_hosts.is_empty() {
                source.attr("git.knownsshhosts", &options.known_ssh_hosts);
            }
            source.attr("git.mountsshsock", "default");
            source.caps.insert("source.git.knownsshhosts");
            source.caps.insert("source.git.mountsshsock");
        }
        source
    }

    /// Sets an attribute.
    pub fn attr(&mut self, key: &str, value: &str) {
        self.attrs.insert(key.to_owned(), value.to_owned());
    }

    /// Declares that the daemon must have a capability.
    pub fn require(&mut self, cap: &'static str) {
        self.caps.insert(cap);
    }

    /// Whether the op of such a source carries a platform.
    pub(super) fn has_platform(&self) -> bool {
        self.identifier.starts_with("docker-image://")
            || self.identifier.starts_with("oci-layout://")
    }
}

fn json_list(list: &[String]) -> String {
    base::gojson::to_string(list)
}
