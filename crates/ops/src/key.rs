//! What an op's result depends on: its cache map.
//!
//! [`cache_map`] is pure; each op file says which fields count. Source: cache key notes §4.

use base::{Digest, Platform, gojson, path};
use llb::{Vertex, pb};
use serde::Serialize;

use crate::{exec, file, keyjson};

/// One cache map of a vertex other than a source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheMap {
    /// Text whose digest stands for the op itself.
    pub preimage: Vec<u8>,
    /// One entry an input.
    pub inputs: Vec<InputKey>,
}

/// How an input counts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct InputKey {
    /// Which part of the input is used, for keys made from definitions.
    pub selector: Option<Digest>,
    /// Which paths' contents stand for the input once it exists; `None`: the input's own key only.
    pub content: Option<Vec<Selector>>,
    /// Whether the input's lazy layers must be fetched before the op runs.
    pub unlazy: bool,
}

/// Paths of an input whose content is hashed together.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selector {
    /// As in the op.
    pub path: String,
    /// Follow a symlink in the last component.
    pub follow: bool,
    /// `path` is a shell glob.
    pub wildcard: bool,
    /// Only matching paths below.
    pub include: Vec<String>,
    /// Leave out matching paths below.
    pub exclude: Vec<String>,
    /// Must be met, or the key cannot be computed.
    pub required: Vec<String>,
}

impl Selector {
    /// Whether this is a plain path without patterns.
    pub fn is_plain(&self) -> bool {
        !self.wildcard && self.include.is_empty() && self.exclude.is_empty()
    }
}

/// An op that has no meaning.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// A content cache was forced where the mount may be written.
    #[error("invalid mount cache content {dest}")]
    ContentCache {
        /// Where the mount is.
        dest: String,
    },
    /// An owner's file comes from nowhere.
    #[error("invalid input index {index} in file op with {inputs} inputs")]
    OwnerInput {
        /// As in the op.
        index: i64,
        /// How many inputs there are.
        inputs: usize,
    },
}

impl CacheMap {
    /// Digest of the pre-image.
    pub fn digest(&self) -> Digest {
        Digest::of(&self.preimage)
    }
}

/// The cache map of `vertex`, or `None` for a source, whose keys come from resolving it.
pub fn cache_map(vertex: &Vertex) -> Option<Result<CacheMap, KeyError>> {
    use pb::op::Op;
    let count = vertex.inputs.len();
    Some(match vertex.op.op.as_ref()? {
        Op::Source(_) => return None,
        Op::Exec(op) => exec::cache_map(op, &platform(vertex), count),
        Op::File(op) => file::cache_map(op, count),
        Op::Build(op) => Ok(plain(&BuildKey { kind: "buildkit.build.v0", op: op.into() }, count)),
        Op::Merge(op) => Ok(plain(&MergeKey { kind: "buildkit.merge.v0", op: op.into() }, count)),
        Op::Diff(op) => Ok(plain(&DiffKey { kind: "buildkit.diff.v0", op: op.into() }, count)),
        Op::Passthrough(op) => {
            Ok(plain(&PassthroughKey { kind: "buildkit.passthrough.v0", op: op.into() }, count))
        }
    })
}

/// The vertex's platform; parsing made sure there is one.
pub(crate) fn platform(vertex: &Vertex) -> Platform {
    vertex.op.platform.as_ref().map(Platform::from).unwrap_or_else(Platform::host)
}

fn plain(key: &impl Serialize, inputs: usize) -> CacheMap {
    CacheMap { preimage: gojson::to_vec(key), inputs: vec![InputKey::default(); inputs] }
}

#[derive(Serialize)]
struct BuildKey {
    #[serde(rename = "Type")]
    kind: &'static str,
    #[serde(rename = "Exec")]
    op: keyjson::Build,
}

#[derive(Serialize)]
struct MergeKey {
    #[serde(rename = "Type")]
    kind: &'static str,
    #[serde(rename = "Merge")]
    op: keyjson::Merge,
}

#[derive(Serialize)]
struct DiffKey {
    #[serde(rename = "Type")]
    kind: &'static str,
    #[serde(rename = "Diff")]
    op: keyjson::Diff,
}

#[derive(Serialize)]
struct PassthroughKey {
    #[serde(rename = "Type")]
    kind: &'static str,
    #[serde(rename = "Passthrough")]
    op: keyjson::Passthrough,
}

/// Drops plain selectors that others cover: equal paths and paths below another one.
fn cover(paths: &mut Vec<Selector>) {
    paths.sort_by(|left, right| left.path.cmp(&right.path));
    let mut kept: Vec<Selector> = Vec::new();
    for selector in paths.drain(..) {
        let covered = kept.iter().any(|outer| {
            let folder = if outer.path.ends_with('/') {
                outer.path.clone()
            } else {
                format!("{}/", outer.path)
            };
            selector.path == outer.path || selector.path.starts_with(&folder)
        });
        if !covered {
            kept.push(selector);
        }
    }
    *paths = kept;
}

/// The reduced list a content function runs over. Source: cache key notes §4.6.
pub(crate) fn reduce(selectors: Vec<Selector>) -> Vec<Selector> {
    let (plain, filtered): (Vec<_>, Vec<_>) = selectors.into_iter().partition(Selector::is_plain);
    let (mut follow, mut stay): (Vec<_>, Vec<_>) =
        plain.into_iter().partition(|selector| selector.follow);
    cover(&mut follow);
    cover(&mut stay);
    let mut all: Vec<Selector> = stay.into_iter().chain(follow).chain(filtered).collect();
    all.sort_by(|left, right| left.path.cmp(&right.path));
    all
}

/// `/` + path, cleaned.
pub(crate) fn rooted(path: &str) -> String {
    path::absolute(path)
}
