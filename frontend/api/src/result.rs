//! What a frontend returns: refs with metadata and attestations.

use std::any::Any;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use llb::pb;

/// Result of a frontend, or of a solve asked by one.
#[derive(Debug, Clone, Default)]
pub struct FrontendResult {
    /// The trees.
    pub refs: Refs,
    /// Image configs and more, keys as in the gateway protocol.
    pub metadata: BTreeMap<String, Bytes>,
    /// By platform id.
    pub attestations: BTreeMap<String, Vec<Attestation>>,
}

/// One ref or one per platform; a missing ref is an empty tree.
#[derive(Debug, Clone)]
pub enum Refs {
    /// A single tree.
    Single(Option<RefHandle>),
    /// Trees by platform id such as `linux/arm64`.
    Map(BTreeMap<String, Option<RefHandle>>),
}

impl Default for Refs {
    fn default() -> Self {
        Self::Single(None)
    }
}

impl FrontendResult {
    /// A result of one ref without metadata.
    pub fn single(reference: Option<RefHandle>) -> Self {
        Self { refs: Refs::Single(reference), ..Self::default() }
    }

    /// The single ref; `None` for an empty tree and for a map.
    pub fn single_ref(&self) -> Option<&RefHandle> {
        match &self.refs {
            Refs::Single(reference) => reference.as_ref(),
            Refs::Map(_) => None,
        }
    }
}

/// A tree that can be read or built upon. Opaque to frontends; the bridge that made it knows what
/// is inside. The tree lives at least as long as the handle.
#[derive(Clone)]
pub struct RefHandle {
    inner: Arc<dyn Any + Send + Sync>,
    definition: Option<Arc<pb::Definition>>,
}

impl RefHandle {
    /// Wraps the bridge's own value.
    pub fn new(inner: Arc<dyn Any + Send + Sync>, definition: Option<Arc<pb::Definition>>) -> Self {
        Self { inner, definition }
    }

    /// The bridge's own value, if it is a `T`.
    pub fn downcast<T: Any + Send + Sync>(&self) -> Option<Arc<T>> {
        Arc::clone(&self.inner).downcast().ok()
    }

    /// The graph that makes this tree, if known.
    pub fn definition(&self) -> Option<&Arc<pb::Definition>> {
        self.definition.as_ref()
    }
}

impl fmt::Debug for RefHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RefHandle({:p})", Arc::as_ptr(&self.inner))
    }
}

/// A statement about a result, to be stored beside the image.
#[derive(Debug, Clone)]
pub struct Attestation {
    /// How to read the ref.
    pub kind: AttestationKind,
    /// `reason`, `sbom-core`, `inline-only`.
    pub metadata: BTreeMap<String, Bytes>,
    /// The tree holding the statement.
    pub reference: Option<RefHandle>,
    /// File or folder in that tree.
    pub path: String,
    /// Predicate type.
    pub predicate_type: String,
    /// Subjects; empty means the exported artifact.
    pub subjects: Vec<InTotoSubject>,
}

/// Form of an [`Attestation`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttestationKind {
    /// The file is a predicate.
    InToto,
    /// The folder holds complete statements.
    Bundle,
}

/// What an attestation is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InTotoSubject {
    /// The artifact itself, or something named.
    pub kind: SubjectKind,
    /// Digests of a named subject.
    pub digests: Vec<String>,
    /// Its name.
    pub name: String,
}

/// Kind of an [`InTotoSubject`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SubjectKind {
    /// The exported artifact.
    Own,
    /// Named with digests.
    Raw,
}
