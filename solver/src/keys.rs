//! Cache keys: what a result depends on.
//!
//! A key is the digest of an operation, the output meant, and per input a list of alternative keys
//! that would do equally well. Keys without inputs are *roots*. A key is built once, when an edge
//! learns it, and never changes, except that stores remember in it under which id they know it.
//!
//! Invariant: inputs of a key are older than the key, so keys form a graph without cycles. Chains
//! may be tens of thousands long, hence nothing here recurses, not even dropping.

use std::{
    fmt,
    str::FromStr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use base::{Digest, ParseDigestError};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A digest in a key: ordinary, or marked as meaningless outside this daemon.
///
/// Local files are keyed by a `random:` digest: it matches nothing stored by anybody else, and
/// keys built on it are never exported.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum KeyDigest {
    /// `sha256:…`
    Sha256(Digest),
    /// `random:…`, the hex digits of a hash over something private
    Random(Digest),
}

impl KeyDigest {
    /// Whether keys with this digest stay in this daemon.
    pub fn is_random(&self) -> bool {
        matches!(self, Self::Random(_))
    }

    /// Id of the key without inputs that has this digest and output: `H(digest + "@" + output)`.
    pub fn root(&self, output: i32) -> KeyDigest {
        match self {
            Self::Random(_) => *self,
            Self::Sha256(digest) => Self::Sha256(Digest::of(format!("{digest}@{output}"))),
        }
    }

    /// The digit-only form, as error messages and logs quote it.
    pub fn short(&self) -> String {
        match self {
            Self::Sha256(digest) | Self::Random(digest) => digest.short(),
        }
    }
}

impl From<Digest> for KeyDigest {
    fn from(digest: Digest) -> Self {
        Self::Sha256(digest)
    }
}

impl fmt::Display for KeyDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sha256(digest) => digest.fmt(f),
            Self::Random(digest) => write!(f, "random:{}", digest.hex()),
        }
    }
}

impl fmt::Debug for KeyDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for KeyDigest {
    type Err = ParseDigestError;

    fn from_str(text: &str) -> Result<Self, ParseDigestError> {
        match text.strip_prefix("random:") {
            Some(hex) => match format!("sha256:{hex}").parse() {
                Ok(digest) => Ok(Self::Random(digest)),
                Err(_) => Err(ParseDigestError(text.to_owned())),
            },
            None => text.parse().map(Self::Sha256),
        }
    }
}

impl Serialize for KeyDigest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for KeyDigest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// Name of a key inside one store. Roots have the same name everywhere, others are numbered.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum KeyId {
    /// A key without inputs, see [`KeyDigest::root`].
    Root(KeyDigest),
    /// Any other key, found through links only.
    Chain(u64),
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root(digest) => digest.fmt(f),
            Self::Chain(number) => write!(f, "key:{number}"),
        }
    }
}

/// The text names no key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid key id `{0}`: expected key:<number>, sha256:<hex> or random:<hex>")]
pub struct ParseKeyIdError(pub String);

impl FromStr for KeyId {
    type Err = ParseKeyIdError;

    fn from_str(text: &str) -> Result<Self, ParseKeyIdError> {
        let bad = || ParseKeyIdError(text.to_owned());
        match text.strip_prefix("key:") {
            Some(number) => number.parse().map(Self::Chain).map_err(|_| bad()),
            None => text.parse().map(Self::Root).map_err(|_| bad()),
        }
    }
}

impl Serialize for KeyId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for KeyId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// Name of a stored result, chosen by the [`Worker`](crate::Worker) and opaque here.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RecordId(pub Arc<str>);

impl From<&str> for RecordId {
    fn from(text: &str) -> Self {
        Self(text.into())
    }
}

impl From<String> for RecordId {
    fn from(text: String) -> Self {
        Self(text.into())
    }
}

impl fmt::Display for RecordId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One way to satisfy an input: a key, seen through a selector (the part of the input that counts).
#[derive(Clone, Debug)]
pub struct SelectedKey {
    /// The key of the input.
    pub key: CacheKey,
    /// Digest of the paths used; none for content keys, which cover just those paths.
    pub selector: Option<Digest>,
}

/// Where an attached store stands in a graph: 0 is the main one, imports follow.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct StoreIndex(pub u32);

impl StoreIndex {
    /// The persistent, writable store.
    pub const MAIN: StoreIndex = StoreIndex(0);
    /// No store: marks keys that mean one particular run.
    pub(crate) const RUN: StoreIndex = StoreIndex(u32::MAX);
}

/// A cache key; cloning shares it.
#[derive(Clone)]
pub struct CacheKey(Arc<Inner>);

struct Inner {
    digest: KeyDigest,
    output: i32,
    vertex: Option<Digest>,
    inputs: Vec<Vec<SelectedKey>>,
    ids: Mutex<Vec<(StoreIndex, KeyId)>>,
    companions: Mutex<Vec<CacheKey>>,
    unexported: AtomicBool,
}

impl CacheKey {
    /// A key without inputs.
    pub fn root(digest: KeyDigest, output: i32, vertex: Option<Digest>) -> Self {
        Self::new(digest, output, vertex, Vec::new())
    }

    /// A key with the given alternatives per input.
    pub fn new(
        digest: KeyDigest,
        output: i32,
        vertex: Option<Digest>,
        inputs: Vec<Vec<SelectedKey>>,
    ) -> Self {
        let (ids, companions) = Default::default();
        let unexported = AtomicBool::new(false);
        Self(Arc::new(Inner { digest, output, vertex, inputs, ids, companions, unexported }))
    }

    /// The key of content: no operation, just the digest of what was read.
    pub fn content(digest: Digest) -> Self {
        Self::root(KeyDigest::Sha256(digest), -1, None)
    }

    /// Digest of the operation (or of the content).
    pub fn digest(&self) -> KeyDigest {
        self.0.digest
    }

    /// Which output of the operation; −1 for content.
    pub fn output(&self) -> i32 {
        self.0.output
    }

    /// The vertex in whose place the key was made, none for content.
    pub fn vertex(&self) -> Option<Digest> {
        self.0.vertex
    }

    /// Per input, the keys that do equally well.
    pub fn inputs(&self) -> &[Vec<SelectedKey>] {
        &self.0.inputs
    }

    /// Whether the key has no inputs.
    pub fn is_root(&self) -> bool {
        self.0.inputs.is_empty()
    }

    /// Digest of the record that stands for this key in an exported cache: `H(digest@output)`.
    pub fn export_digest(&self) -> KeyDigest {
        self.0.digest.root(self.0.output)
    }

    /// The name of this key in `store`, if it has one there.
    pub fn id(&self, store: StoreIndex) -> Option<KeyId> {
        if self.is_root() {
            return Some(KeyId::Root(self.0.digest.root(self.0.output)));
        }
        let ids = self.0.ids.lock().expect("no panic while holding key ids");
        ids.iter().find(|(known, _)| *known == store).map(|(_, id)| *id)
    }

    /// All names of this key that were learnt so far (none for roots: they need no learning).
    pub fn ids(&self) -> Vec<(StoreIndex, KeyId)> {
        self.0.ids.lock().expect("no panic while holding key ids").clone()
    }

    /// Remembers how `store` calls this key; the first name stays.
    pub fn set_id(&self, store: StoreIndex, id: KeyId) {
        let mut ids = self.0.ids.lock().expect("no panic while holding key ids");
        if !self.is_root() && !ids.iter().any(|(known, _)| *known == store) {
            ids.push((store, id));
        }
    }

    /// Keys of what the vertex built while it ran. An exported cache that holds this key holds
    /// them too, and whoever is built on this key may be reached through them.
    pub fn companions(&self) -> Vec<CacheKey> {
        self.0.companions.lock().expect("no panic while holding companions").clone()
    }

    pub(crate) fn add_companions(&self, keys: &[CacheKey]) {
        let mut companions = self.0.companions.lock().expect("no panic while holding companions");
        for key in keys {
            if !key.same(self) && !companions.iter().any(|known| known.same(key)) {
                companions.push(key.clone());
            }
        }
    }

    /// Whether an exported cache leaves out the results of this key: its vertex asked for that, and
    /// was matched without being loaded or executed.
    pub fn is_unexported(&self) -> bool {
        self.0.unexported.load(Ordering::Relaxed)
    }

    pub(crate) fn set_unexported(&self, unexported: bool) {
        self.0.unexported.store(unexported, Ordering::Relaxed);
    }

    /// Whether both are the very same object (not merely equal).
    pub fn same(&self, other: &CacheKey) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// An address that tells this object from all others alive, for visiting each key once.
    pub fn address(&self) -> usize {
        Arc::as_ptr(&self.0) as usize
    }
}

impl fmt::Debug for CacheKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}/{}", self.0.digest, self.0.output, self.0.inputs.len())
    }
}

impl Inner {
    fn take_keys(&mut self) -> Vec<CacheKey> {
        let mut keys =
            std::mem::take(self.companions.get_mut().expect("no panic while holding companions"));
        keys.extend(self.inputs.drain(..).flatten().map(|selected| selected.key));
        keys
    }
}

impl Drop for Inner {
    // Freeing a chain link by link: the derived way would recurse once per ancestor.
    fn drop(&mut self) {
        let mut doomed = self.take_keys();
        while let Some(next) = doomed.pop() {
            if let Some(mut inner) = Arc::into_inner(next.0) {
                doomed.extend(inner.take_keys());
            }
        }
    }
}
