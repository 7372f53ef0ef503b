//! Containers below the store's ceiling: they can be held, and are ended with the room they write in.

use std::sync::Arc;

use executor::{Freezer, Spec};
use store::{Store, Writer};

struct Container(Freezer);

impl Writer for Container {
    fn hold(&self) {
        self.0.freeze();
    }

    fn resume(&self) {
        self.0.thaw();
    }

    fn is_still(&self) -> bool {
        self.0.is_still()
    }

    fn kill(&self) {
        self.0.kill();
    }
}

/// Puts a container that is about to be made below the ceiling of `store`, if that has one, in the
/// room that the caller works in.
pub fn below_ceiling(store: &Store, spec: &mut Spec) {
    if store.ceiling().is_none() {
        return;
    }
    let freezer = Freezer::new();
    store.writes_here(Arc::new(Container(freezer.clone())));
    spec.freezer = Some(freezer);
    spec.most_allocated = store.most_allocated();
}
