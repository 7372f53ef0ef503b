//! What to build, from what, and where the result goes.

use std::{collections::BTreeMap, path::PathBuf};

use llb::{pb::Definition, policy::Policy};

/// One build.
#[derive(Debug, Clone)]
pub struct BuildRequest {
    /// Identifies the build at the daemon; random by default.
    pub reference: String,
    /// A graph to build instead of asking a frontend.
    pub definition: Option<Definition>,
    /// The frontend, e.g. `dockerfile.v0`; ignored with a definition.
    pub frontend: String,
    /// Options of the frontend.
    pub frontend_attrs: BTreeMap<String, String>,
    /// Graphs offered to the frontend by name.
    pub frontend_inputs: BTreeMap<String, Definition>,
    /// Folders of this machine by the name the build knows them by.
    pub locals: BTreeMap<String, PathBuf>,
    /// OCI layout folders by store name.
    pub oci_layouts: BTreeMap<String, PathBuf>,
    /// Streams served to the build; the key is the frontend option that is set to the address.
    pub uploads: BTreeMap<String, Upload>,
    /// Where the result goes; may be nowhere.
    pub exports: Vec<Export>,
    /// Caches to write.
    pub cache_exports: Vec<CacheEntry>,
    /// Caches to read.
    pub cache_imports: Vec<CacheEntry>,
    /// Secrets offered to the build.
    pub secrets: Vec<Secret>,
    /// Agents or sockets offered to the build.
    pub ssh: Vec<SshForward>,
    /// Privileges the build may use, e.g. `network.host`.
    pub entitlements: Vec<String>,
    /// Rules for sources.
    pub source_policy: Option<Policy>,
    /// Send the network traffic of all steps through the daemon's recording proxy.
    pub proxy_network: bool,
    /// Leave no record in the daemon's history.
    pub internal: bool,
    /// Names this client's folders across builds, so that only changes are sent.
    pub shared_key: String,
    /// Who drives the frontend.
    pub drive: Drive,
}

/// Who drives the frontend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Drive {
    /// This client, through the bridge; the frontend's metadata comes back.
    #[default]
    Client,
    /// The daemon; one call less for a program that wants only the export.
    Daemon,
}

/// A stream the daemon may fetch once.
#[derive(Debug, Clone)]
pub enum Upload {
    /// Bytes already read, then the rest of standard input.
    Stdin {
        /// What was read to look at the content's kind.
        head: bytes::Bytes,
    },
    /// A file.
    File(PathBuf),
}

/// One place for the result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Export {
    /// Exporter: `image`, `oci`, `docker`, `local`, `tar`.
    pub kind: String,
    /// Its attributes.
    pub attrs: BTreeMap<String, String>,
    /// Where this client puts what the exporter sends.
    pub target: Target,
}

/// The client's end of an exporter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// The exporter sends nothing here.
    None,
    /// A tree of files below a folder.
    Folder(PathBuf),
    /// One file.
    File(PathBuf),
    /// One file, on standard output.
    Stdout,
    /// Blobs into an OCI layout folder.
    Store(PathBuf),
}

/// A remote cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheEntry {
    /// `registry`, `local`, `inline`, `gha`, `s3`, `azblob`.
    pub kind: String,
    /// Its attributes.
    pub attrs: BTreeMap<String, String>,
}

/// A secret by its id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Secret {
    /// Name the build asks for.
    pub id: String,
    /// Where the value is.
    pub source: SecretSource,
}

/// Where a secret's value is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SecretSource {
    /// In a file, read when asked for.
    File(PathBuf),
    /// In an environment variable.
    Env(String),
}

/// An SSH agent, or a socket, by its id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SshForward {
    /// Name the build asks for; `default` unless told otherwise.
    pub id: String,
    /// Sockets or key files; empty is `$SSH_AUTH_SOCK`.
    pub paths: Vec<PathBuf>,
    /// Forward the socket without looking at what travels.
    pub raw: bool,
}

impl BuildRequest {
    /// A build by `frontend` with nothing else set.
    pub fn new(frontend: impl Into<String>) -> Self {
        Self {
            reference: base::id::random_id(),
            definition: None,
            frontend: frontend.into(),
            frontend_attrs: BTreeMap::new(),
            frontend_inputs: BTreeMap::new(),
            locals: BTreeMap::new(),
            oci_layouts: BTreeMap::new(),
            uploads: BTreeMap::new(),
            exports: Vec::new(),
            cache_exports: Vec::new(),
            cache_imports: Vec::new(),
            secrets: Vec::new(),
            ssh: Vec::new(),
            entitlements: Vec::new(),
            source_policy: None,
            proxy_network: false,
            internal: false,
            shared_key: String::new(),
            drive: Drive::Client,
        }
    }

    /// A build of `definition`.
    pub fn of(definition: Definition) -> Self {
        Self { definition: Some(definition), ..Self::new("") }
    }
}
