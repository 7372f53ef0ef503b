//! Builds graphs and writes them as definitions.
//!
//! A [`Graph`] owns nodes; adding one gives [`Output`]s, small handles that later nodes take as
//! inputs. Nothing is checked against the outside and nothing runs: [`Graph::marshal`] walks what
//! the wanted output needs, inputs first, and writes each distinct op once. The bytes are those of
//! the standard client library, so the same build made with either hits the same cache.
//!
//! An empty tree is `None` wherever an `Option<Output>` stands.
//!
//! ```
//! use llb::build::{Exec, FileAction, Graph, MarshalOptions, Meta, Mkdir, Source};
//!
//! let mut graph = Graph::new();
//! let alpine = graph.source(Source::image("docker.io/library/alpine:latest"), Meta::default());
//! let made = graph.file(Some(alpine), vec![FileAction::Mkdir(Mkdir::new("/out"))], Meta::default());
//! let run = graph.exec(Exec::shell(Some(made), "date > /out/now"), Meta::named("take the time"));
//! let definition = graph.marshal(Some(run.root), &MarshalOptions::default()).unwrap();
//! assert_eq!(definition.def.len(), 4);
//! ```
//!
//! Invariant: a node only refers to nodes added before it, so a graph has no cycles.

mod exec;
mod file;
mod import;
mod marshal;
mod source;

use std::collections::{BTreeMap, BTreeSet};

use base::Platform;

pub use exec::{Exec, ExecOutputs, Mount, MountKind, Secret, Ssh};
pub use file::{Copy, CopyFrom, FileAction, Mkdir, Mkfile, Mode, Owner, Rm, Symlink, User};
pub use import::ImportError;
pub use marshal::{MarshalError, MarshalOptions};
pub use source::{GitOptions, LocalOptions, ResolveMode, Source};

use crate::pb;

/// Nodes of one build, or of several that share parts.
#[derive(Debug, Clone, Default)]
pub struct Graph {
    nodes: Vec<Node>,
    files: Vec<pb::SourceInfo>,
}

/// One output of one node of the graph that gave it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Output {
    node: u32,
    index: u32,
}

/// A source file of a graph, to which nodes point with [`Meta::locations`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FileId(u32);

/// What belongs to a node beside its op. Nothing here is part of the cache key except `platform`
/// and `worker_filters`.
#[derive(Debug, Clone, Default)]
pub struct Meta {
    /// Free words; `llb.customname` is the name progress shows.
    pub description: BTreeMap<String, String>,
    /// The node must run even if its result is known.
    pub ignore_cache: bool,
    /// Whether cache exports carry the result; absent means yes.
    pub export_cache: Option<bool>,
    /// Groups nodes in progress displays.
    pub progress_group: Option<pb::ProgressGroup>,
    /// Limits for a process.
    pub linux_resources: Option<pb::LinuxResources>,
    /// Platform of an image or process; the marshal default if absent.
    pub platform: Option<Platform>,
    /// Workers that may run this.
    pub worker_filters: Vec<String>,
    /// Lines this node comes from.
    pub locations: Vec<(FileId, Vec<pb::Range>)>,
}

impl Meta {
    /// With a name for progress.
    pub fn named(name: impl Into<String>) -> Self {
        Self::default().with_name(name)
    }

    /// Sets the name for progress.
    pub fn with_name(mut self, name: impl Into<String>) -> Self {
        self.description.insert("llb.customname".into(), name.into());
        self
    }

    /// Sets the platform.
    pub fn with_platform(mut self, platform: Platform) -> Self {
        self.platform = Some(platform);
        self
    }
}

#[derive(Debug, Clone)]
struct Node {
    op: Op,
    meta: Meta,
}

#[derive(Debug, Clone)]
enum Op {
    Source(Source),
    Exec(Box<exec::Placed>),
    File { root: Option<Output>, actions: Vec<FileAction> },
    Merge(Vec<Output>),
    Diff { lower: Option<Output>, upper: Option<Output> },
    Imported(Box<import::Imported>),
}

impl Graph {
    /// An empty graph.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a source file.
    pub fn add_source_file(&mut self, info: pb::SourceInfo) -> FileId {
        self.files.push(info);
        FileId((self.files.len() - 1) as u32)
    }

    /// Adds a source.
    pub fn source(&mut self, source: Source, meta: Meta) -> Output {
        self.push(Op::Source(source), meta)
    }

    /// Replaces a source added before, for options known only at the end (such as the list of
    /// paths of a local folder that the graph came to use).
    ///
    /// # Panics
    /// If `output` is not a source's.
    pub fn replace_source(&mut self, output: Output, source: Source, meta: Meta) {
        let node = &mut self.nodes[output.node as usize];
        assert!(matches!(node.op, Op::Source(_)), "only a source is replaced");
        *node = Node { op: Op::Source(source), meta };
    }

    /// Adds a process.
    pub fn exec(&mut self, exec: Exec, meta: Meta) -> ExecOutputs {
        let (placed, outputs) = exec.place(self.nodes.len() as u32);
        self.push(Op::Exec(Box::new(placed)), meta);
        outputs
    }

    /// Adds file actions, each working on the result of the one before, the first on `root`.
    ///
    /// # Panics
    /// If there is no action.
    pub fn file(&mut self, root: Option<Output>, actions: Vec<FileAction>, meta: Meta) -> Output {
        assert!(!actions.is_empty(), "a file op has an action");
        self.push(Op::File { root, actions }, meta)
    }

    /// Lays trees over each other, later ones on top. Empty trees do not count, and what is left
    /// of one tree is that tree.
    pub fn merge(
        &mut self,
        inputs: impl IntoIterator<Item = Option<Output>>,
        meta: Meta,
    ) -> Option<Output> {
        let inputs: Vec<Output> = inputs.into_iter().flatten().collect();
        match inputs.as_slice() {
            [] => None,
            [only] => Some(*only),
            _ => Some(self.push(Op::Merge(inputs), meta)),
        }
    }

    /// What `upper` adds to `lower`.
    pub fn diff(
        &mut self,
        lower: Option<Output>,
        upper: Option<Output>,
        meta: Meta,
    ) -> Option<Output> {
        match lower {
            None => upper,
            Some(_) => Some(self.push(Op::Diff { lower, upper }, meta)),
        }
    }

    /// Takes over a marshalled definition, op bytes unchanged.
    pub fn import(&mut self, definition: &pb::Definition) -> Result<Option<Output>, ImportError> {
        import::import(self, definition)
    }

    /// Writes what `output` needs as a definition.
    pub fn marshal(
        &self,
        output: Option<Output>,
        options: &MarshalOptions,
    ) -> Result<pb::Definition, MarshalError> {
        marshal::marshal(self, output, options)
    }

    fn push(&mut self, op: Op, meta: Meta) -> Output {
        self.nodes.push(Node { op, meta });
        Output { node: (self.nodes.len() - 1) as u32, index: 0 }
    }
}

impl Op {
    /// Inputs in the order the definition is written.
    fn inputs(&self) -> Vec<Output> {
        match self {
            Self::Source(_) => Vec::new(),
            Self::Exec(exec) => exec.inputs(),
            Self::File { root, actions } => file::inputs(*root, actions),
            Self::Merge(inputs) => inputs.clone(),
            Self::Diff { lower, upper } => lower.iter().chain(upper).copied().collect(),
            Self::Imported(imported) => imported.inputs.clone(),
        }
    }
}

/// Capabilities an op needs.
type Caps = BTreeSet<&'static str>;

#[cfg(test)]
mod tests;
