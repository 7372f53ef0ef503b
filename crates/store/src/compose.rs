//! Records made of others without writing files: merges and diffs.

use std::sync::Arc;

use crate::{Ref, Store, StoreError};

impl Store {
    /// One tree of several, later ones on top. Of nothing: `None`; of one: that one.
    pub fn merge(self: &Arc<Self>, refs: &[Ref]) -> Result<Option<Ref>, StoreError> {
        _ = refs;
        unreachable!("not built yet")
    }

    /// What `upper` adds to `lower`. `None` if that is nothing. Layers of `upper` are used where
    /// it was built on `lower`; else both trees are compared (they must be local).
    pub async fn diff(
        self: &Arc<Self>,
        lower: Option<&Ref>,
        upper: Option<&Ref>,
    ) -> Result<Option<Ref>, StoreError> {
        _ = (lower, upper);
        unreachable!("not built yet")
    }
}
