//! What was decided about a vertex, and why: the answer to "why did this run again?".
//!
//! Decisions are made by the graph when it stops looking for a cached result, and are plain data:
//! progress shows them, history keeps them, tests assert on them.

use std::{fmt, sync::Arc};

use base::Digest;

use crate::keys::RecordId;

/// Where a cached result came from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Origin {
    /// This daemon's own store.
    Local,
    /// A cache import, by its id.
    Import(Arc<str>),
}

/// The outcome of looking for a cached result.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Decision {
    /// A stored result is used.
    Hit {
        /// the store that knew it
        origin: Origin,
        /// the result
        record: RecordId,
    },
    /// Another vertex with equal keys was already at work or done; its outcome is used.
    Shared {
        /// digest of that vertex
        leader: Digest,
    },
    /// The vertex has to run.
    Miss(Miss),
}

/// Why no stored result could be used.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Miss {
    /// No result of this operation is known, whatever the inputs.
    NoSuchKey,
    /// The operation is known, but not on top of this input.
    InputChanged {
        /// number of the input
        input: usize,
    },
    /// The operation is known, but not with the content that this input has.
    ContentChanged {
        /// number of the input
        input: usize,
    },
    /// Each input was seen before, but never all of them together.
    NewCombination,
    /// The build asked for it to run.
    IgnoredByRequest,
    /// The key is known, its result was removed.
    Evicted {
        /// the result that turned out to be gone, none if nothing was left of it
        record: Option<RecordId>,
    },
    /// Nothing known here, and the cache imports did not have it either.
    ImportMiss,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local => f.write_str("local"),
            Self::Import(id) => write!(f, "import {id}"),
        }
    }
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hit { origin, record } => write!(f, "hit {origin} {record}"),
            Self::Shared { leader } => write!(f, "shared with {}", leader.short()),
            Self::Miss(miss) => write!(f, "miss: {miss}"),
        }
    }
}

impl fmt::Display for Miss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSuchKey => f.write_str("no such key"),
            Self::InputChanged { input } => write!(f, "input {input} changed"),
            Self::ContentChanged { input } => write!(f, "content of input {input} changed"),
            Self::NewCombination => f.write_str("inputs not seen together"),
            Self::IgnoredByRequest => f.write_str("cache ignored by request"),
            Self::Evicted { record: Some(record) } => write!(f, "record {record} is gone"),
            Self::Evicted { record: None } => f.write_str("record was removed"),
            Self::ImportMiss => f.write_str("not in the imported caches either"),
        }
    }
}
