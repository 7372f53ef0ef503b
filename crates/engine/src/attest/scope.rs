//! What one frontend asked of its bridge.
//!
//! Scopes form a tree, as frontends run frontends; a graph belongs to the scope of the bridge that
//! it was given to. Graphs are kept as definitions, not as results: noting them keeps no files.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
};

use base::Platform;
use llb::pb;

/// A frontend with its options: what a scope serves.
#[derive(Debug, Clone, Default)]
pub(crate) struct Asked {
    pub frontend: String,
    pub options: BTreeMap<String, String>,
    pub inputs: BTreeMap<String, pb::Definition>,
}

impl Asked {
    /// Whether anything was asked for.
    fn says_something(&self) -> bool {
        !self.frontend.is_empty() || !self.options.is_empty() || !self.inputs.is_empty()
    }
}

/// A graph that somebody gave to a bridge.
#[derive(Debug)]
pub(crate) struct Trace {
    /// As it was given.
    pub sent: Arc<pb::Definition>,
    /// With the sources that policies put in.
    replaced: OnceLock<Arc<pb::Definition>>,
    built: AtomicBool,
}

impl Trace {
    pub(crate) fn new(definition: Arc<pb::Definition>) -> Arc<Self> {
        let (replaced, built) = (OnceLock::new(), AtomicBool::new(false));
        Arc::new(Self { sent: definition, replaced, built })
    }

    /// The graph as it is built.
    pub(crate) fn definition(&self) -> &Arc<pb::Definition> {
        self.replaced.get().unwrap_or(&self.sent)
    }

    /// Remembers that policies made this of it.
    pub(crate) fn set_replaced(&self, definition: pb::Definition) {
        _ = self.replaced.set(Arc::new(definition));
    }

    /// Remembers that its result was made.
    pub(crate) fn set_built(&self) {
        self.built.store(true, Ordering::Relaxed);
    }

    /// Whether its result was ever made.
    pub(crate) fn is_built(&self) -> bool {
        self.built.load(Ordering::Relaxed)
    }
}

/// An image that a build looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ImageSource {
    /// As it was named.
    pub reference: String,
    pub platform: Option<Platform>,
    pub digest: String,
    /// From a layout of the client.
    pub local: bool,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Scope {
    /// `None` is the build itself.
    pub asked: Option<Arc<Asked>>,
    /// What the first to ask asked for.
    pub root: Option<Arc<Asked>>,
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    traces: Vec<Arc<Trace>>,
    images: Vec<ImageSource>,
    inner: Vec<Arc<Scope>>,
}

impl Scope {
    /// The scope of a build as a whole.
    pub(crate) fn of_build(root: Asked) -> Arc<Self> {
        Arc::new(Self { root: Some(Arc::new(root)), ..Self::default() })
    }

    /// The scope of a frontend that this scope's owner runs.
    pub(crate) fn child(&self, asked: Asked) -> Arc<Self> {
        let root = self.root.as_ref().filter(|root| root.says_something()).or(self.asked.as_ref());
        Arc::new(Self { asked: Some(Arc::new(asked)), root: root.cloned(), seen: Mutex::default() })
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().expect("no panic while holding a scope")
    }

    /// A frontend of this scope came to its end.
    pub(crate) fn add_child(&self, child: Arc<Self>) {
        self.seen().inner.push(child);
    }

    pub(crate) fn add_trace(&self, trace: Arc<Trace>) {
        self.seen().traces.push(trace);
    }

    pub(crate) fn add_image(&self, image: ImageSource) {
        self.seen().images.push(image);
    }

    /// All graphs in it and below it.
    pub(crate) fn traces(&self) -> Vec<Arc<Trace>> {
        let (mut all, inner) = {
            let seen = self.seen();
            (seen.traces.clone(), seen.inner.clone())
        };
        all.extend(inner.iter().flat_map(|scope| scope.traces()));
        all
    }

    /// All images looked up in it and below it.
    pub(crate) fn images(&self) -> Vec<ImageSource> {
        let (mut all, inner) = {
            let seen = self.seen();
            (seen.images.clone(), seen.inner.clone())
        };
        all.extend(inner.iter().flat_map(|scope| scope.images()));
        all
    }

    /// The scope that a graph was given to.
    pub(crate) fn find(self: &Arc<Self>, trace: &Arc<Trace>) -> Option<Arc<Self>> {
        let inner = self.seen().inner.clone();
        if let Some(found) = inner.iter().find_map(|scope| scope.find(trace)) {
            return Some(found);
        }
        let here = self.seen().traces.iter().any(|known| Arc::ptr_eq(known, trace));
        here.then(|| self.clone())
    }
}
