//! Pruning: on request, by policy, and (see `space`) to stay below the ceiling.
//!
//! One rule removes records: they are idle (nobody holds, writes or builds on them) and the
//! options select them. A record that goes frees its parents, which may go next, so the store is
//! counted anew for each removal. Layers are deleted after the lock is given back; blobs nobody
//! speaks of follow at the end.

use std::{
    collections::HashSet,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use base::Digest;

use crate::{
    Filter, RecordId, RecordKind, Store, StoreError, Usage,
    content::{GRACE, SHORT_GRACE},
    layers::remove_layers,
    record::blocking,
    state::State,
    usage::{Census, usage},
};

/// Records removed in one go, at least, when there is no limit to watch.
const AT_ONCE: usize = 10;
/// Of what may be removed to free some bytes, this part is at a time.
const PART: usize = 32;

/// What may go, and how much has to stay.
#[derive(Debug, Clone, Default)]
pub struct PruneOptions {
    /// Only what matches one of these; empty is everything.
    pub filters: Vec<Filter>,
    /// Internal, frontend and shared records too.
    pub all: bool,
    /// Keep what was used within this time.
    pub keep_duration: Option<Duration>,
    /// Never go below this many bytes.
    pub reserved_space: u64,
    /// Go below this many bytes.
    pub max_used_space: u64,
    /// Leave this many bytes of the disk free.
    pub min_free_space: u64,
    /// Blobs nobody speaks of stay if they were touched within this time, because what runs may yet
    /// speak of them. Shortened to the store's own times; none is those.
    pub grace: Option<Duration>,
}

/// One entry of a policy list: [`PruneOptions`] applied by [`Store::collect`].
pub type GcPolicy = PruneOptions;

/// `percent` of a disk of `total` bytes as size settings mean it: whole units of 10^9 above the
/// exact value. An unknown disk counts as 2 GB.
pub fn percent_of_disk(percent: u64, total: Option<u64>) -> u64 {
    const GB: u64 = 1_000_000_000;
    total.map_or(2 * GB, |total| {
        let share = u128::from(total) * u128::from(percent) / 100;
        (u64::try_from(share >> 30).unwrap_or(u64::MAX / GB - 1) + 1).saturating_mul(GB)
    })
}

/// Size of the file system that holds `path`.
pub fn disk_total(path: &Path) -> Option<u64> {
    let stat = rustix::fs::statvfs(path).ok()?;
    Some(stat.f_blocks * stat.f_frsize)
}

/// The policies used unless others are configured. Limits not given have their default for a disk
/// of `total` bytes.
pub fn default_policies(
    reserved: Option<u64>,
    max_used: Option<u64>,
    min_free: Option<u64>,
    total: Option<u64>,
) -> Vec<GcPolicy> {
    const GB: u64 = 1_000_000_000;
    let limits = PruneOptions {
        reserved_space: reserved.unwrap_or_else(|| percent_of_disk(10, total).min(10 * GB)),
        max_used_space: max_used.unwrap_or_else(|| percent_of_disk(80, total).min(100 * GB)),
        min_free_space: min_free.unwrap_or_else(|| percent_of_disk(20, total)),
        ..PruneOptions::default()
    };
    let cheap = ["type==source.local", "type==exec.cachemount", "type==source.git.checkout"];
    let days = |days: u64| Some(Duration::from_secs(days * 24 * 3600));
    vec![
        PruneOptions {
            filters: Filter::parse_all(cheap).expect("these filters are well formed"),
            keep_duration: days(2),
            max_used_space: 512_000_000,
            ..PruneOptions::default()
        },
        PruneOptions { keep_duration: days(60), ..limits.clone() },
        limits.clone(),
        PruneOptions { all: true, ..limits },
    ]
}

/// What a prune did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pruned {
    /// Records removed.
    pub records: u64,
    /// Bytes freed by them.
    pub bytes: u64,
    /// Blobs nobody spoke of, removed afterwards.
    pub blobs: u64,
    /// Bytes freed by those that no removed record counted.
    pub blob_bytes: u64,
}

impl Store {
    /// Removes records by these rules, telling each, then blobs nobody speaks of.
    pub async fn prune(
        self: &Arc<Self>,
        options: PruneOptions,
        on_removed: impl FnMut(Usage) + Send + 'static,
    ) -> Result<Pruned, StoreError> {
        let store = self.clone();
        blocking("prune", move || Ok(store.prune_blocking(&[options], on_removed))).await
    }

    /// Applies the configured policies in order.
    pub async fn collect(self: &Arc<Self>) -> Result<Pruned, StoreError> {
        let store = self.clone();
        blocking("collect garbage", move || {
            let policies = store.policies().to_vec();
            Ok(store.prune_blocking(&policies, |_| {}))
        })
        .await
    }

    pub(crate) fn prune_blocking(
        &self,
        options: &[PruneOptions],
        mut on_removed: impl FnMut(Usage),
    ) -> Pruned {
        let _one = self.space().collecting.lock().unwrap();
        let mut pruned = Pruned::default();
        let mut released = HashSet::new();
        for options in options {
            self.prune_records(options, &mut released, |gone| {
                pruned.records += 1;
                pruned.bytes += gone.size;
                on_removed(gone);
            });
        }
        // Whoever asks for everything wants the room.
        let urgent = options.len() == 1 && options[0].all;
        let grace = if urgent { SHORT_GRACE } else { GRACE };
        let asked = options.iter().map(|options| options.grace.unwrap_or(grace)).max();
        let grace = asked.map_or(grace, |asked| asked.min(grace));
        self.sweep(&released, grace, &mut pruned);
        self.wait_removed();
        self.space().changed();
        pruned
    }

    fn prune_records(
        &self,
        options: &PruneOptions,
        released: &mut HashSet<Digest>,
        mut on_removed: impl FnMut(Usage),
    ) {
        let limited = options.max_used_space | options.min_free_space | options.reserved_space != 0;
        let imaged = self.image_blobs();
        let mut keep = None;
        loop {
            let (gone, layers) = {
                let mut state = self.state();
                let census = self.census(&state, &imaged);
                let mut excess = None;
                if limited {
                    let total = unshared(&state, &census);
                    let keep = *keep.get_or_insert_with(|| self.keep_bytes(options, total));
                    if total < keep {
                        return;
                    }
                    excess = Some(total - keep);
                }
                let mut candidates = candidates(&state, &census, options);
                rank(&mut candidates);
                let once = match excess {
                    Some(excess) => enough(&candidates, excess),
                    None => AT_ONCE.max(candidates.len() / PART),
                };
                candidates.truncate(once);
                let mut layers = Vec::new();
                for gone in &candidates {
                    released.extend(state.blobs_of(&gone.id));
                    layers.extend(state.remove_idle(&gone.id, self.meta()));
                }
                (candidates, layers)
            };
            if gone.is_empty() {
                return;
            }
            remove_layers(&layers, &**self.snapshotter());
            gone.into_iter().for_each(&mut on_removed);
        }
    }

    /// Bytes to stay: removing goes on while that many or more are in use.
    fn keep_bytes(&self, options: &PruneOptions, total: u64) -> u64 {
        let free =
            rustix::fs::statvfs(self.root()).map_or(u64::MAX, |stat| stat.f_bavail * stat.f_frsize);
        keep_bytes(options, total, free)
    }

    /// Removes blobs that nothing speaks of. Young ones stay, and what they speak of, unless a removed
    /// record had them.
    fn sweep(&self, released: &HashSet<Digest>, grace: Duration, pruned: &mut Pruned) {
        let mut marked = self.image_blobs();
        self.mark(self.spoken_for(), &HashSet::new(), &mut marked);
        self.mark(self.content().young(grace), released, &mut marked);
        for (digest, _) in self.content().list() {
            if marked.contains(&digest) {
                continue;
            }
            let grace = if released.contains(&digest) { Duration::ZERO } else { grace };
            if let Some(freed) = self.content().remove(&digest, grace) {
                pruned.blobs += 1;
                if !released.contains(&digest) {
                    pruned.blob_bytes += freed;
                }
            }
        }
    }
}

impl State {
    /// Blobs that only count because of this record's layer and keeps.
    fn blobs_of(&self, id: &RecordId) -> Vec<Digest> {
        let Some(record) = self.records.get(id) else { return Vec::new() };
        let layer = record.row.own.as_ref().and_then(|own| self.layers.get(own));
        let blobs = layer.into_iter().flat_map(|layer| layer.row.blobs.iter());
        let blobs = blobs.chain(record.row.blob.as_deref()).map(|blob| blob.digest);
        blobs.chain(record.row.keeps.iter().copied()).collect()
    }
}

fn keep_bytes(options: &PruneOptions, total: u64, free: u64) -> u64 {
    let mut keep = options.max_used_space;
    let missing = options.min_free_space.saturating_sub(free);
    if missing > 0 {
        let left = total.saturating_sub(missing);
        keep = if keep == 0 { left } else { keep.min(left) };
    } else if keep == 0 && options.min_free_space > 0 {
        // Enough is free and nothing else was asked.
        keep = u64::MAX;
    }
    keep.max(options.reserved_space)
}

/// Bytes of records that no image shares; mutable ones in use do not count.
fn unshared(state: &State, census: &Census) -> u64 {
    let counted = |(id, size): (&RecordId, &u64)| {
        let record = &state.records[id];
        let skip = census.shared.contains(id) || record.row.mutable && record.in_use();
        if skip { 0 } else { *size }
    };
    census.sizes.iter().map(counted).sum()
}

fn candidates(state: &State, census: &Census, options: &PruneOptions) -> Vec<Usage> {
    let oldest = options.keep_duration.and_then(|keep| SystemTime::now().checked_sub(keep));
    let idle = state.records.iter().filter(|(_, record)| record.idle());
    let usages = idle.map(|(id, record)| usage(id, record, census));
    let wanted = |usage: &Usage| {
        let recent =
            matches!((oldest, usage.last_used_at), (Some(oldest), Some(used)) if used > oldest);
        let protected =
            usage.shared || matches!(usage.kind, RecordKind::Internal | RecordKind::Frontend);
        !recent && (options.all || !protected) && Filter::any_matches(&options.filters, usage)
    };
    usages.filter(wanted).collect()
}

/// How many of the ranked candidates to remove before looking again: until enough is freed, and only
/// a part of them, because what they kept joins the ranking once they are gone. Looking again after
/// each one would take a census of all records for every record.
fn enough(candidates: &[Usage], excess: u64) -> usize {
    let mut freed = 0;
    let needed = candidates.iter().take_while(|usage| {
        let more = freed <= excess;
        freed += usage.size;
        more
    });
    needed.count().min(candidates.len() / PART).max(1)
}

/// First what is used least: by the sum of the normalized ranks of last use and of use count.
/// Equal values share a rank; never used comes first.
fn rank(candidates: &mut [Usage]) {
    fn ranks<K: Ord>(mut sorted: Vec<K>) -> impl Fn(&K) -> f64 {
        sorted.sort();
        sorted.dedup();
        let highest = sorted.len().max(1);
        move |value| {
            let rank = sorted.binary_search(value).unwrap_or(0) + 1;
            rank as f64 / highest as f64
        }
    }
    let by_time = ranks(candidates.iter().map(|usage| usage.last_used_at).collect());
    let by_count = ranks(candidates.iter().map(|usage| usage.usage_count).collect());
    let score = |usage: &Usage| by_time(&usage.last_used_at) + by_count(&usage.usage_count);
    candidates.sort_by(|a, b| {
        score(a)
            .total_cmp(&score(b))
            .then_with(|| (a.created_at, &a.id).cmp(&(b.created_at, &b.id)))
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_to_keep() {
        let check = |reserved_space, max_used_space, min_free_space, total, free| {
            let options = PruneOptions {
                reserved_space,
                max_used_space,
                min_free_space,
                ..PruneOptions::default()
            };
            keep_bytes(&options, total, free)
        };
        assert_eq!(check(0, 100, 0, 500, 0), 100);
        assert_eq!(check(0, 0, 50, 500, 20), 470);
        assert_eq!(check(0, 100, 50, 500, 20), 100);
        assert_eq!(check(0, 480, 50, 500, 20), 470);
        assert_eq!(check(490, 480, 50, 500, 20), 490);
        assert_eq!(check(0, 0, 50, 500, 60), u64::MAX);
        assert_eq!(check(30, 0, 0, 500, 60), 30);
    }

    #[test]
    fn disk_shares_are_whole_units() {
        assert_eq!(percent_of_disk(10, None), 2_000_000_000);
        assert_eq!(percent_of_disk(10, Some(100 << 30)), 11_000_000_000);
        assert_eq!(percent_of_disk(10, Some(1 << 30)), 1_000_000_000);
        let limits = &default_policies(None, None, None, Some(1 << 40))[2];
        assert_eq!(limits.reserved_space, 10_000_000_000);
        assert_eq!(limits.max_used_space, 100_000_000_000);
        assert_eq!(limits.min_free_space, 205_000_000_000);
    }
}
