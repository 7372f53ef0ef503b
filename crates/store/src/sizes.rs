//! How large the unpacked layers of images are.

use std::collections::HashMap;

use base::Digest;

use crate::Store;

impl Store {
    /// Bytes allocated by each unpacked layer, by the digest of its uncompressed tar.
    pub fn unpacked_sizes(&self) -> HashMap<Digest, u64> {
        let state = self.state();
        let here = state.layers.values().filter(|layer| layer.row.here);
        here.filter_map(|layer| Some((layer.row.diff_id?, layer.row.size))).collect()
    }
}
