//! Small work on layer folders: lists for mounting, and a thread for what nobody waits for.

use std::{
    collections::HashSet,
    path::Path,
    sync::{Arc, Condvar, Mutex, mpsc},
    thread::JoinHandle,
};

use snapshot::{LayerId, Snapshotter};

use crate::{StoreError, error::Doing as _, meta::Meta, state::State};

/// The list as it is mounted: of a layer that occurs several times the topmost counts, since
/// everything an earlier one shows, the later one shows again above it.
pub(crate) fn distinct(layers: &[LayerId]) -> Vec<LayerId> {
    let mut seen = HashSet::new();
    let mut kept: Vec<_> = layers.iter().rev().filter(|id| seen.insert(*id)).cloned().collect();
    kept.reverse();
    kept
}

/// Names of the mark that makes a folder hide what lies below it.
const OPAQUE: [&str; 2] = ["trusted.overlay.opaque", "user.overlay.opaque"];

/// Whether a folder of the layer's files hides all that lies below it.
pub(crate) fn has_opaque(files: &Path) -> std::io::Result<bool> {
    let mut queue = vec![files.to_owned()];
    while let Some(folder) = queue.pop() {
        for entry in std::fs::read_dir(&folder)? {
            let entry = entry?;
            if !entry.file_type()?.is_dir() {
                continue;
            }
            let mut value = [0; 4];
            let path = entry.path();
            let marked = OPAQUE.iter().any(|name| {
                rustix::fs::lgetxattr(&path, *name, &mut value)
                    .is_ok_and(|length| value.get(..length) == Some(b"y"))
            });
            if marked {
                return Ok(true);
            }
            queue.push(path);
        }
    }
    Ok(false)
}

/// Work on folders that nobody waits for.
pub(crate) enum Chore {
    /// Measure a layer that a writer let go.
    Measure(LayerId),
    /// Delete layers.
    Remove(Vec<LayerId>),
}

/// The thread that does chores in order.
pub(crate) struct Tidy {
    chores: Mutex<Option<mpsc::Sender<Chore>>>,
    open: Arc<(Mutex<usize>, Condvar)>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Tidy {
    pub(crate) fn start(
        state: Arc<Mutex<State>>,
        meta: Arc<Meta>,
        snapshotter: Arc<dyn Snapshotter>,
    ) -> Result<Self, StoreError> {
        let (sender, receiver) = mpsc::channel();
        let open = Arc::new((Mutex::new(0usize), Condvar::new()));
        let thread = std::thread::Builder::new()
            .name("store-tidy".into())
            .spawn({
                let open = open.clone();
                move || {
                    for chore in receiver {
                        perform(chore, &state, &meta, &*snapshotter);
                        *open.0.lock().unwrap() -= 1;
                        open.1.notify_all();
                    }
                }
            })
            .doing(|| "start the tidying thread".into())?;
        let (chores, thread) = (Mutex::new(Some(sender)), Mutex::new(Some(thread)));
        Ok(Self { chores, open, thread })
    }

    pub(crate) fn add(&self, chore: Chore) {
        if let Some(chores) = &*self.chores.lock().unwrap() {
            *self.open.0.lock().unwrap() += 1;
            _ = chores.send(chore);
        }
    }

    /// Whether something is left to do.
    pub(crate) fn is_busy(&self) -> bool {
        *self.open.0.lock().unwrap() > 0
    }

    /// Waits until nothing is left to do.
    pub(crate) fn wait(&self) {
        let mut open = self.open.0.lock().unwrap();
        while *open > 0 {
            open = self.open.1.wait(open).unwrap();
        }
    }

    /// Does what is left and ends the thread.
    pub(crate) fn stop(&self) {
        drop(self.chores.lock().unwrap().take());
        if let Some(thread) = self.thread.lock().unwrap().take() {
            _ = thread.join();
        }
    }
}

fn perform(chore: Chore, state: &Mutex<State>, meta: &Meta, snapshotter: &dyn Snapshotter) {
    match chore {
        Chore::Measure(layer) => match snapshotter.usage(&layer) {
            Ok(usage) => {
                let mut state = state.lock().unwrap();
                let owner = state.owner(&layer).and_then(|id| state.records.get(id));
                let written = owner.is_some_and(|owner| owner.writer);
                // A writer who came in between measures again when it goes.
                if let Some(known) = state.layers.get_mut(&layer) {
                    known.row.size = usage.bytes;
                    known.row.writing = written;
                    state.save_layer(&layer, meta);
                }
            }
            Err(error) => tracing::debug!("measure layer {layer}: {error}"),
        },
        Chore::Remove(layers) => remove_layers(&layers, snapshotter),
    }
}

/// Deletes layers; what cannot be deleted now is garbage that the next start removes.
pub(crate) fn remove_layers(layers: &[LayerId], snapshotter: &dyn Snapshotter) {
    for layer in layers {
        if let Err(error) = snapshotter.remove(layer) {
            tracing::warn!("remove layer {layer}: {error}");
        }
    }
}
