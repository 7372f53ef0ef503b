//! What the store knows of a record, a layer, a blob and an image: plain data, as stored.
//!
//! A *record* is one state of a file system with its metadata. A *layer* is one folder of the
//! snapshot driver; records list layers bottom first, and at most one record's own layer is a
//! given folder's home (records of re-compressed images share one). Rows are stored as JSON with
//! short names; absent fields mean their default, so rows of older versions stay readable.

use std::{fmt, str::FromStr, time::SystemTime};

use base::Digest;
use oci::{Descriptor, media};
use serde::{Deserialize, Serialize};
use snapshot::LayerId;

/// Id of a record: 25 characters of base 36.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RecordId(std::sync::Arc<str>);

impl RecordId {
    /// A fresh random id.
    pub fn random() -> Self {
        base::id::random_id().into()
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<String> for RecordId {
    fn from(text: String) -> Self {
        Self(text.into())
    }
}

impl From<&str> for RecordId {
    fn from(text: &str) -> Self {
        Self(text.into())
    }
}

impl fmt::Display for RecordId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for RecordId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What a record is for; policies and filters select by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub enum RecordKind {
    /// A step's result or a pulled layer.
    #[default]
    #[serde(rename = "regular")]
    Regular,
    /// Something the daemon needs for itself.
    #[serde(rename = "internal")]
    Internal,
    /// A layer of a frontend image.
    #[serde(rename = "frontend")]
    Frontend,
    /// Files received from a client.
    #[serde(rename = "source.local")]
    LocalSource,
    /// A git repository or work tree.
    #[serde(rename = "source.git.checkout")]
    GitCheckout,
    /// A cache mount's folder.
    #[serde(rename = "exec.cachemount")]
    CacheMount,
}

impl RecordKind {
    /// The name clients see and filters compare.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Regular => "regular",
            Self::Internal => "internal",
            Self::Frontend => "frontend",
            Self::LocalSource => "source.local",
            Self::GitCheckout => "source.git.checkout",
            Self::CacheMount => "exec.cachemount",
        }
    }
}

impl fmt::Display for RecordKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for RecordKind {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        Ok(match text {
            "regular" => Self::Regular,
            "internal" => Self::Internal,
            "frontend" => Self::Frontend,
            "source.local" => Self::LocalSource,
            "source.git.checkout" => Self::GitCheckout,
            "exec.cachemount" => Self::CacheMount,
            _ => return Err(()),
        })
    }
}

/// Where a record's layers come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) enum Shape {
    /// The parent's layers (none for a base), then its own.
    #[default]
    #[serde(rename = "layer")]
    Layer,
    /// The parents' layers, one parent after the other.
    #[serde(rename = "merge")]
    Merge,
    /// What the second parent adds to the first (which may be absent).
    #[serde(rename = "diff")]
    Diff,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// A record as stored.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct RecordRow {
    #[serde(rename = "d", default, skip_serializing_if = "is_default")]
    pub description: String,
    #[serde(rename = "k", default, skip_serializing_if = "is_default")]
    pub kind: RecordKind,
    #[serde(rename = "s", default, skip_serializing_if = "is_default")]
    pub shape: Shape,
    /// Nanoseconds since the epoch.
    #[serde(rename = "c")]
    pub created: i64,
    #[serde(rename = "u", default, skip_serializing_if = "is_default")]
    pub last_used: Option<i64>,
    #[serde(rename = "n", default, skip_serializing_if = "is_default")]
    pub usage_count: u64,
    #[serde(rename = "m", default, skip_serializing_if = "is_default")]
    pub mutable: bool,
    /// Kept by their children while those live.
    #[serde(rename = "p", default, skip_serializing_if = "is_default")]
    pub parents: Vec<RecordId>,
    /// Records whose layers stand in for those of parents; kept like parents.
    #[serde(rename = "a", default, skip_serializing_if = "is_default")]
    pub also: Vec<RecordId>,
    /// All layers, bottom first; for merges with repetitions.
    #[serde(rename = "l", default, skip_serializing_if = "is_default")]
    pub layers: Vec<LayerId>,
    /// The layer among them that is this record's own.
    #[serde(rename = "o", default, skip_serializing_if = "is_default")]
    pub own: Option<LayerId>,
    /// The blob that the own layer came from, preferred on export.
    #[serde(rename = "b", default, skip_serializing_if = "is_default")]
    pub blob: Option<Box<KnownBlob>>,
    /// Identity among image layers: digest over blobs and diff ids from the bottom.
    #[serde(rename = "bc", default, skip_serializing_if = "is_default")]
    pub blob_chain: Option<Digest>,
    /// Identity by content: digest over diff ids from the bottom.
    #[serde(rename = "ch", default, skip_serializing_if = "is_default")]
    pub chain: Option<Digest>,
    /// Names of images that this layer was pulled for.
    #[serde(rename = "i", default, skip_serializing_if = "is_default")]
    pub images: Vec<String>,
    /// Further blobs kept while the record lives (manifests, configs).
    #[serde(rename = "r", default, skip_serializing_if = "is_default")]
    pub keeps: Vec<Digest>,
    /// Keys by which others find the record.
    #[serde(rename = "x", default, skip_serializing_if = "is_default")]
    pub index_keys: Vec<String>,
    /// For mutable records: id of the committed view of the same folder.
    #[serde(rename = "v", default, skip_serializing_if = "is_default")]
    pub view: Option<RecordId>,
    /// Free metadata of whoever made the record.
    #[serde(rename = "md", default, skip_serializing_if = "is_default")]
    pub metadata: std::collections::BTreeMap<String, String>,
}

impl RecordRow {
    /// Records that must stay while this one does.
    pub(crate) fn needs(&self) -> impl Iterator<Item = &RecordId> {
        self.parents.iter().chain(&self.also)
    }
}

/// A layer as stored.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct LayerRow {
    /// Whether the folder exists and is whole; else only blobs are known.
    #[serde(rename = "h", default, skip_serializing_if = "is_default")]
    pub here: bool,
    /// Somebody may be writing: after a crash the size has to be measured anew.
    #[serde(rename = "w", default, skip_serializing_if = "is_default")]
    pub writing: bool,
    /// How often somebody began to write to it again. The folder has it too (see `turns`): after a
    /// crash the two differ if files were changed and the rows do not know yet.
    #[serde(rename = "t", default, skip_serializing_if = "is_default")]
    pub turn: u64,
    /// Whether folders of it hide all that lies below them; `None` if nobody looked yet.
    #[serde(rename = "q", default, skip_serializing_if = "is_default")]
    pub opaque: Option<bool>,
    /// Bytes allocated by the folder, hard links counted once.
    #[serde(rename = "s", default, skip_serializing_if = "is_default")]
    pub size: u64,
    #[serde(rename = "d", default, skip_serializing_if = "is_default")]
    pub diff_id: Option<Digest>,
    /// Blobs that unpack to this layer.
    #[serde(rename = "b", default, skip_serializing_if = "is_default")]
    pub blobs: Vec<KnownBlob>,
}

/// A layer's blob, as its descriptor says: nearly always what, which and how much and no more, which
/// takes a fifth of the memory.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(from = "Descriptor", into = "Descriptor")]
pub(crate) struct KnownBlob {
    pub digest: Digest,
    size: u64,
    says: Says,
}

#[derive(Debug, Clone, PartialEq)]
enum Says {
    /// This media type, and nothing else.
    Only(&'static str),
    /// All of this.
    All(Box<Descriptor>),
}

/// Media types that layers have.
const LAYER_TYPES: [&str; 6] = [
    media::OCI_LAYER_GZIP,
    media::OCI_LAYER_ZSTD,
    media::OCI_LAYER,
    media::DOCKER_LAYER_GZIP,
    media::DOCKER_LAYER_ZSTD,
    media::DOCKER_LAYER,
];

impl KnownBlob {
    pub(crate) fn descriptor(&self) -> Descriptor {
        match &self.says {
            Says::Only(media_type) => Descriptor::new(*media_type, self.digest, self.size),
            Says::All(descriptor) => descriptor.as_ref().clone(),
        }
    }
}

impl From<Descriptor> for KnownBlob {
    fn from(descriptor: Descriptor) -> Self {
        let Descriptor { digest, size, .. } = descriptor;
        let usual = LAYER_TYPES.into_iter().find(|usual| *usual == descriptor.media_type);
        let usual = usual.filter(|usual| Descriptor::new(*usual, digest, size) == descriptor);
        let says = usual.map_or_else(|| Says::All(Box::new(descriptor)), Says::Only);
        Self { digest, size, says }
    }
}

impl From<KnownBlob> for Descriptor {
    fn from(blob: KnownBlob) -> Self {
        blob.descriptor()
    }
}

/// A blob of the content folder as stored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct ContentRow {
    #[serde(rename = "s")]
    pub size: u64,
    /// Bytes allocated on disk.
    #[serde(rename = "a")]
    pub allocated: u64,
    #[serde(rename = "c")]
    pub created: i64,
    #[serde(flatten)]
    pub info: BlobInfo,
}

/// What is known of a blob besides its bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlobInfo {
    /// Media type, or empty.
    #[serde(rename = "t", default, skip_serializing_if = "is_default")]
    pub media_type: String,
    /// Annotations of the descriptor it was stored under.
    #[serde(rename = "n", default, skip_serializing_if = "is_default")]
    pub annotations: std::collections::BTreeMap<String, String>,
    /// Free labels.
    #[serde(rename = "l", default, skip_serializing_if = "is_default")]
    pub labels: std::collections::BTreeMap<String, String>,
    /// Blobs this one speaks of, kept while it is kept.
    #[serde(rename = "r", default, skip_serializing_if = "is_default")]
    pub references: Vec<Digest>,
}

impl BlobInfo {
    /// Only a media type.
    pub fn of_type(media_type: impl Into<String>) -> Self {
        Self { media_type: media_type.into(), ..Self::default() }
    }

    /// The same with these references.
    #[must_use]
    pub fn referencing(mut self, digests: impl IntoIterator<Item = Digest>) -> Self {
        self.references.extend(digests);
        self
    }
}

/// A named image as stored and as listed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Image {
    /// Its full name.
    #[serde(skip)]
    pub name: String,
    /// Its manifest or index.
    pub descriptor: Descriptor,
    /// When the name was first given; nanoseconds since the epoch.
    pub created_ns: i64,
    /// When it was last pointed elsewhere.
    pub updated_ns: i64,
    /// Free labels.
    #[serde(default, skip_serializing_if = "is_default")]
    pub labels: std::collections::BTreeMap<String, String>,
}

impl Image {
    /// When the name was first given.
    pub fn created_at(&self) -> SystemTime {
        base::time::from_unix_nanos(self.created_ns)
    }

    /// When it was last pointed elsewhere.
    pub fn updated_at(&self) -> SystemTime {
        base::time::from_unix_nanos(self.updated_ns)
    }
}

/// Now, as rows store it.
pub(crate) fn now() -> i64 {
    base::time::unix_nanos(SystemTime::now())
}
