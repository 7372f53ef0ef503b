//! Records made of others: merges and diffs, mostly without writing a file.
//!
//! Since a record is a list of layers, a merge is the concatenation of lists and the diff of a
//! chain is its own layers. Only a diff of trees that were not built on each other has to be
//! computed and becomes a layer of its own.

use std::sync::Arc;

use snapshot::LayerId;

use crate::{
    RecordId, Ref, Store, StoreError,
    layers::distinct,
    model::{LayerRow, RecordRow, Shape, now},
    record::blocking,
    state::{Layer, Record},
};

impl Store {
    /// One tree of several, later ones on top. Of nothing: `None`; of one: that one. Merging the
    /// same records again gives the same record.
    pub fn merge(self: &Arc<Self>, refs: &[Ref]) -> Result<Option<Ref>, StoreError> {
        let refs = self.flatten(refs);
        if refs.len() < 2 {
            return Ok(refs.into_iter().next());
        }
        let key = format!("merge::{}", ids(&refs));
        if let Some(known) = self.find_committed(&key) {
            return Ok(Some(known));
        }
        let row = RecordRow {
            description: "merge".into(),
            shape: Shape::Merge,
            created: now(),
            parents: refs.iter().map(|part| part.id().clone()).collect(),
            layers: refs.iter().flat_map(|part| part.layers()).cloned().collect(),
            index_keys: vec![key],
            ..RecordRow::default()
        };
        Ok(Some(self.add_composed(row, None, &refs)))
    }

    /// What `upper` adds to `lower`; `None` if that is nothing. Layers of `upper` are used where
    /// it was built on `lower`; else both trees are compared, and must be local.
    pub async fn diff(
        self: &Arc<Self>,
        lower: Option<&Ref>,
        upper: Option<&Ref>,
    ) -> Result<Option<Ref>, StoreError> {
        let (lower, upper) = match (lower, upper) {
            (None, upper) => return Ok(upper.cloned()),
            (Some(lower), Some(upper)) if lower == upper => return Ok(None),
            (Some(lower), Some(upper)) => match self.chain_between(lower, upper) {
                Some(chain) => return self.diff_of_chain(lower, &chain),
                None => (lower, Some(upper)),
            },
            (Some(lower), None) => (lower, None),
        };
        let refs: Vec<Ref> = [lower].into_iter().chain(upper).cloned().collect();
        for part in &refs {
            if !part.is_local() {
                return Err(StoreError::NotLocal(part.id().clone()));
            }
        }
        let key = format!("diff::{}{}", ids(&refs), if upper.is_none() { "," } else { "" });
        if let Some(known) = self.find_committed(&key) {
            return Ok(Some(known));
        }
        let layer = LayerId::random();
        let lower_layers = distinct(lower.layers());
        let upper_layers = upper.map(|upper| distinct(upper.layers())).unwrap_or_default();
        let (store, made) = (self.clone(), layer.clone());
        let bytes = blocking("compare trees", move || {
            let snapshotter = store.snapshotter();
            let measured = snapshotter
                .diff_layer(&made, &lower_layers, &upper_layers)
                .and_then(|()| snapshotter.usage(&made));
            if measured.is_err() {
                crate::layers::remove_layers(&[made], &**snapshotter);
            }
            Ok(measured?.bytes)
        });
        let row = RecordRow {
            description: "diff".into(),
            shape: Shape::Diff,
            created: now(),
            parents: refs.iter().map(|part| part.id().clone()).collect(),
            layers: vec![layer.clone()],
            own: Some(layer),
            index_keys: vec![key],
            ..RecordRow::default()
        };
        let layer_row = LayerRow { here: true, size: bytes.await?, ..LayerRow::default() };
        Ok(Some(self.add_composed(row, Some(layer_row), &refs)))
    }

    /// The single-layer records above `lower` up to `upper`, if `upper` was built on `lower`.
    fn chain_between(self: &Arc<Self>, lower: &Ref, upper: &Ref) -> Option<Vec<RecordId>> {
        let state = self.state();
        let mut chain = Vec::new();
        let mut at = upper.id().clone();
        while at != *lower.id() {
            let row = state.row(&at).filter(|row| row.shape == Shape::Layer)?;
            chain.push(at);
            at = row.parents.first()?.clone();
        }
        chain.reverse();
        Some(chain)
    }

    fn diff_of_chain(
        self: &Arc<Self>,
        lower: &Ref,
        chain: &[RecordId],
    ) -> Result<Option<Ref>, StoreError> {
        let mut below = lower.clone();
        let mut parts = Vec::new();
        for id in chain {
            let upper = self.get(id).ok_or_else(|| StoreError::NoRecord(id.clone()))?;
            let refs = [below, upper.clone()];
            let key = format!("diff::{}", ids(&refs));
            let part = self.find_committed(&key).unwrap_or_else(|| {
                let row = RecordRow {
                    description: upper.description(),
                    shape: Shape::Diff,
                    created: now(),
                    parents: refs.iter().map(|part| part.id().clone()).collect(),
                    layers: upper.layers().last().cloned().into_iter().collect(),
                    index_keys: vec![key],
                    ..RecordRow::default()
                };
                self.add_composed(row, None, &refs)
            });
            parts.push(part);
            below = upper;
        }
        self.merge(&parts)
    }

    /// Members of merges instead of the merges.
    fn flatten(self: &Arc<Self>, refs: &[Ref]) -> Vec<Ref> {
        let mut flat = Vec::new();
        for part in refs {
            let members = part.row(|row| (row.shape == Shape::Merge).then(|| row.parents.clone()));
            match members {
                None => flat.push(part.clone()),
                Some(members) => flat.extend(members.iter().map(|id| {
                    let member = self.get(id).expect("a merge keeps its members");
                    // What the merge can fetch, its members can.
                    member.adopt_providers(part);
                    member
                })),
            }
        }
        flat
    }

    fn add_composed(self: &Arc<Self>, row: RecordRow, own: Option<LayerRow>, of: &[Ref]) -> Ref {
        let id = RecordId::random();
        let mut state = self.state();
        for part in of {
            state.settle_parent(part.id(), self.meta());
        }
        if let (Some(layer), Some(own)) = (&row.own, own) {
            state.layers.insert(layer.clone(), Layer { row: own, owners: 0 });
        }
        state.insert(id.clone(), Record::new(row));
        state.save_both(&id, self.meta());
        let made = Ref::attach(self, &mut state, &id).expect("the record was just made");
        drop(state);
        made.handle.inputs.lock().unwrap().extend(of.iter().cloned());
        made
    }
}

fn ids(refs: &[Ref]) -> String {
    refs.iter().map(|part| part.id().as_str()).collect::<Vec<_>>().join(",")
}
