//! Records made of others: merges and diffs, mostly without writing a file.
//!
//! Since a record is a list of layers, a merge is the concatenation of lists and the diff of a
//! chain is its own layers. A layer has to be computed only where that would be wrong: for the
//! diff of trees that were not built on each other, and for a layer with *opaque* folders (they
//! hide whatever lies below, which is right over the tree it was made on, but elsewhere it must
//! only remove what it removed there). Such a layer is replaced by a diff that names each removal;
//! its blob stays the one of the original.

use std::sync::Arc;

use snapshot::LayerId;

use crate::{
    RecordId, Ref, Store, StoreError,
    error::Doing as _,
    layers::{distinct, has_opaque, remove_layers},
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
        let mut layers = refs[0].layers().to_vec();
        let mut stand_ins = Vec::new();
        for part in &refs[1..] {
            for layer in part.layers() {
                let stand_in = self.stand_in(part, layer)?;
                let used = stand_in.as_ref().map_or(layer, |it| &it.layers()[0]);
                layers.push(used.clone());
                stand_ins.extend(stand_in);
            }
        }
        let row = RecordRow {
            description: "merge".into(),
            shape: Shape::Merge,
            created: now(),
            parents: refs.iter().map(|part| part.id().clone()).collect(),
            also: stand_ins.iter().map(|it| it.id().clone()).collect(),
            layers,
            index_keys: vec![key],
            ..RecordRow::default()
        };
        Ok(Some(self.add_composed(row, None, &refs)))
    }

    /// A record whose only layer does what `layer`, found at or below `part`, does, but hides
    /// nothing else; `None` where the layer itself will do. Lazy layers cannot be looked at and
    /// have to do.
    fn stand_in(self: &Arc<Self>, part: &Ref, layer: &LayerId) -> Result<Option<Ref>, StoreError> {
        let (upper, lower) = {
            let state = self.state();
            let Some(owner) = state.owner_below(layer, part.id()) else { return Ok(None) };
            let row = &state.records[&owner].row;
            let Some(parent) = row.parents.first().filter(|_| row.shape == Shape::Layer) else {
                return Ok(None);
            };
            (row.view.clone().unwrap_or(owner), parent.clone())
        };
        if !self.is_opaque(layer)? {
            return Ok(None);
        }
        let (Some(lower), Some(upper)) = (self.get(&lower), self.get(&upper)) else {
            return Ok(None);
        };
        if !lower.is_local() {
            return Ok(None);
        }
        self.computed_diff(&lower, Some(&upper)).map(Some)
    }

    /// Whether the layer has opaque folders, as far as it can be looked at.
    fn is_opaque(&self, layer: &LayerId) -> Result<bool, StoreError> {
        match self.state().layers.get(layer) {
            Some(known) if known.row.here => {
                if let Some(opaque) = known.row.opaque {
                    return Ok(opaque);
                }
            }
            _ => return Ok(false),
        }
        let path = self.snapshotter().layer_path(layer);
        let opaque = has_opaque(&path).doing(|| format!("look at layer {layer}"))?;
        let mut state = self.state();
        if let Some(known) = state.layers.get_mut(layer) {
            known.row.opaque = Some(opaque);
            state.save_layer(layer, self.meta());
        }
        Ok(opaque)
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
                Some(chain) => return self.diff_of_chain(&chain),
                None => (lower, Some(upper)),
            },
            (Some(lower), None) => (lower, None),
        };
        let (store, lower, upper) = (self.clone(), lower.clone(), upper.cloned());
        blocking("compare trees", move || store.computed_diff(&lower, upper.as_ref()).map(Some))
            .await
    }

    /// The diff of two trees as a layer of its own.
    fn computed_diff(
        self: &Arc<Self>,
        lower: &Ref,
        upper: Option<&Ref>,
    ) -> Result<Ref, StoreError> {
        let refs: Vec<Ref> = [lower].into_iter().chain(upper).cloned().collect();
        for part in &refs {
            if !part.is_local() {
                return Err(StoreError::NotLocal(part.id().clone()));
            }
        }
        let key = format!("computed-diff::{}", ids(&refs));
        if let Some(known) = self.find_committed(&key) {
            return Ok(known);
        }
        let layer = LayerId::random();
        let upper_layers = upper.map(|upper| distinct(upper.layers())).unwrap_or_default();
        let snapshotter = self.snapshotter();
        let measured = snapshotter
            .diff_layer(&layer, &distinct(lower.layers()), &upper_layers)
            .and_then(|()| snapshotter.usage(&layer));
        if measured.is_err() {
            remove_layers(std::slice::from_ref(&layer), &**snapshotter);
        }
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
        let size = measured?.bytes;
        let layer_row = LayerRow { here: true, size, ..LayerRow::default() };
        Ok(self.add_composed(row, Some(layer_row), &refs))
    }

    /// The records above `lower` up to `upper` that add one layer each, if `upper` was built on
    /// `lower`, or on a merge that begins with all that `lower` is made of.
    fn chain_between(self: &Arc<Self>, lower: &Ref, upper: &Ref) -> Option<Vec<RecordId>> {
        let state = self.state();
        let below = state.layer_chain(lower.id());
        let above = state.layer_chain(upper.id()).strip_prefix(below.as_slice())?.to_vec();
        // One record more may be a member of a merge, made on something else.
        let on_lower = |id: &RecordId| {
            let row = state.row(id).filter(|row| row.shape == Shape::Layer);
            row.is_some_and(|row| row.parents.first() == Some(lower.id()))
        };
        (above.len() != 1 || on_lower(&above[0])).then_some(above)
    }

    fn diff_of_chain(self: &Arc<Self>, chain: &[RecordId]) -> Result<Option<Ref>, StoreError> {
        let known = |id: &RecordId| self.get(id).ok_or_else(|| StoreError::NoRecord(id.clone()));
        let mut parts = Vec::new();
        for id in chain {
            let upper = known(id)?;
            let below = upper.row(|row| match row.shape {
                Shape::Layer => row.parents.first().cloned(),
                _ => None,
            });
            let Some(below) = below else {
                parts.push(upper);
                continue;
            };
            let refs = [known(&below)?, upper.clone()];
            let key = format!("diff::{}", ids(&refs));
            let stand_in = match upper.layers().last() {
                Some(own) => self.stand_in(&upper, own)?,
                None => None,
            };
            let part = stand_in.or_else(|| self.find_committed(&key)).unwrap_or_else(|| {
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
            state.layers.insert(layer.clone(), Layer::new(own));
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
