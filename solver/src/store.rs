//! Where keys, their links and their results are kept.
//!
//! A store is a graph: a *link* (operation, input number, selector) leads from the key of an input
//! to the key of what was built on it. It is held in memory whole and does no IO; what changes is
//! noted as a list of [`Change`]s that somebody else makes durable and replays at start-up.
//!
//! Invariant: a key that has no result and leads nowhere does not outlive the removal that left it
//! so; neither do the links to it.

use std::{
    cmp::Reverse,
    collections::{HashMap, VecDeque},
    fmt,
    sync::Arc,
    time::SystemTime,
};

use base::Digest;

use crate::{
    keys::{KeyDigest, KeyId, RecordId},
    pairs::Pairs,
    slab::Slab,
};

/// So many keys of private content are remembered. They come back only while their session lasts,
/// and every build brings new ones.
const MOST_PRIVATE: usize = 512;

/// How a key follows from the key of one of its inputs.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Link {
    /// Number of the input.
    pub input: u32,
    /// Output of the operation.
    pub output: i32,
    /// Digest of the operation.
    pub digest: KeyDigest,
    /// The part of the input that counts; none for content keys.
    pub selector: Option<Digest>,
}

impl Link {
    /// The link as imports have it: there an operation and its output are one digest.
    pub fn exported(self) -> Self {
        Self { output: 0, digest: self.digest.root(self.output), ..self }
    }
}

/// One change to the main store, to be made durable in order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Change {
    /// `from` leads to `to`.
    PutLink {
        /// key of the input
        from: KeyId,
        /// how
        link: Link,
        /// key of the result
        to: KeyId,
    },
    /// It no longer does.
    RemoveLink {
        /// key of the input
        from: KeyId,
        /// how
        link: Link,
        /// key of the result
        to: KeyId,
    },
    /// `record` is a result of `key`.
    PutResult {
        /// the key
        key: KeyId,
        /// the result
        record: RecordId,
        /// when it was made
        created_at: SystemTime,
    },
    /// It no longer is.
    RemoveResult {
        /// the key
        key: KeyId,
        /// the result
        record: RecordId,
    },
}

/// A read-only store that came from elsewhere, attached to the vertices of a load.
pub struct Import {
    /// Names it; equal ids are taken to be the same import.
    pub id: Arc<str>,
    /// What it knows; its links are [`exported`](Link::exported) ones.
    pub store: KeyStore,
}

/// Keys, links and results; see the module's page.
#[derive(Default)]
pub struct KeyStore {
    nodes: Slab<Node>,
    by_id: HashMap<KeyId, u32>,
    // Links repeat in every alternative of an input, so nodes hold numbers of them.
    links: Slab<(Link, usize)>,
    by_link: HashMap<Link, u32>,
    by_record: HashMap<RecordId, Vec<u32>>,
    operations: HashMap<KeyDigest, usize>,
    next_id: u64,
    /// Private keys, oldest first; some may be gone.
    private: VecDeque<KeyId>,
    changes: Vec<Change>,
}

struct Node {
    id: KeyId,
    // (link, target) and (source, link): the same pairs seen from both ends.
    forward: Pairs,
    backward: Pairs,
    results: Vec<(RecordId, SystemTime)>,
}

impl Node {
    /// Private keys come back only while their session lasts; without a result they are left-overs.
    fn is_spent(&self) -> bool {
        is_private(self.id) && self.results.is_empty()
    }
}

fn is_private(id: KeyId) -> bool {
    matches!(id, KeyId::Root(digest) if digest.is_random())
}

impl fmt::Debug for Import {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "import {} of {} keys", self.id, self.store.len())
    }
}

impl KeyStore {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    /// A store in which `changes` have happened.
    pub fn restore(changes: impl IntoIterator<Item = Change>) -> Self {
        let mut store = Self::new();
        for change in changes {
            match change {
                Change::PutLink { from, link, to } => store.add_link(from, link, to),
                Change::RemoveLink { from, link, to } => store.remove_link(from, link, to),
                Change::PutResult { key, record, created_at } => {
                    store.add_result(key, record, created_at);
                }
                Change::RemoveResult { key, record } => store.remove_result(key, &record),
            }
        }
        let private = store.nodes.iter().filter(|(_, node)| node.is_spent());
        for number in private.map(|(number, _)| number).collect::<Vec<_>>() {
            store.cut(number);
        }
        store.changes.clear();
        store
    }

    /// What happened since the last call, in order.
    pub fn take_changes(&mut self) -> Vec<Change> {
        std::mem::take(&mut self.changes)
    }

    /// Whether [`Self::take_changes`] would return anything.
    pub fn has_changes(&self) -> bool {
        !self.changes.is_empty()
    }

    /// The changes that lead from an empty store to this one, for writing it out whole.
    pub fn snapshot(&self) -> Vec<Change> {
        let mut changes = Vec::new();
        for (_, node) in self.nodes.iter() {
            for (link, target) in node.forward.iter() {
                let (link, to) = (self.links[link].0, self.nodes[target].id);
                changes.push(Change::PutLink { from: node.id, link, to });
            }
            for (record, created_at) in &node.results {
                let (record, created_at) = (record.clone(), *created_at);
                changes.push(Change::PutResult { key: node.id, record, created_at });
            }
        }
        changes
    }

    /// Notes that `from` leads to `to`.
    pub fn add_link(&mut self, from: KeyId, link: Link, to: KeyId) {
        let (source, target) = (self.node(from), self.node(to));
        self.insert_link((from, source), link, (to, target));
        self.forget_private();
    }

    fn insert_link(
        &mut self,
        (from, source): (KeyId, u32),
        link: Link,
        (to, target): (KeyId, u32),
    ) {
        let number = match self.by_link.get(&link) {
            Some(number) => *number,
            None => {
                *self.operations.entry(link.digest).or_default() += 1;
                let number = self.links.insert((link, 0));
                self.by_link.insert(link, number);
                number
            }
        };
        if self.nodes[source].forward.insert((number, target)) {
            self.nodes[target].backward.insert((source, number));
            self.links[number].1 += 1;
            self.changes.push(Change::PutLink { from, link, to });
        }
    }

    /// Notes that `record` is a result of `key`; a known one only gets its time corrected.
    pub fn add_result(&mut self, key: KeyId, record: RecordId, created_at: SystemTime) {
        let number = self.node(key);
        // Records are results of several keys: one text is enough.
        let record =
            self.by_record.get_key_value(&record).map_or(record, |(known, _)| known.clone());
        let results = &mut self.nodes[number].results;
        match results.iter_mut().find(|(known, _)| *known == record) {
            Some((_, known_at)) if *known_at == created_at => return,
            Some((_, known_at)) => *known_at = created_at,
            None => {
                // Nearly always the only one.
                results.reserve_exact(1);
                results.push((record.clone(), created_at));
                let holders = self.by_record.entry(record.clone()).or_default();
                holders.reserve_exact(1);
                holders.push(number);
            }
        }
        self.changes.push(Change::PutResult { key, record, created_at });
        self.forget_private();
    }

    /// Forgets the oldest private keys beyond the number that is kept, with their results.
    fn forget_private(&mut self) {
        while self.private.len() > MOST_PRIVATE {
            let Some(key) = self.private.pop_front() else { return };
            let Some(number) = self.by_id.get(&key).copied() else { continue };
            for (record, _) in self.nodes[number].results.clone() {
                self.remove_result(key, &record);
            }
            self.cut(number);
        }
    }

    /// A name for a new key that has inputs.
    pub fn fresh_id(&mut self) -> KeyId {
        self.next_id += 1;
        KeyId::Chain(self.next_id)
    }

    /// Forgets a result, and keys that are left with nothing.
    pub fn remove_record(&mut self, record: &RecordId) {
        for number in self.by_record.get(record).cloned().unwrap_or_default() {
            let key = self.nodes[number].id;
            self.remove_result(key, record);
            if self.nodes.get(number).is_some_and(Node::is_spent) {
                self.cut(number);
            }
            self.collect(number);
        }
    }

    /// Forgets all results that `keep` refuses.
    pub fn retain_records(&mut self, mut keep: impl FnMut(&RecordId) -> bool) {
        let mut gone: Vec<RecordId> =
            self.by_record.keys().filter(|record| !keep(record)).cloned().collect();
        gone.sort();
        for record in gone {
            self.remove_record(&record);
        }
    }

    /// Results of `key`, newest first.
    pub fn results(&self, key: KeyId) -> Vec<(RecordId, SystemTime)> {
        let Some(number) = self.by_id.get(&key) else { return Vec::new() };
        let mut results = self.nodes[*number].results.clone();
        results.sort_by_key(|(_, created_at)| Reverse(*created_at));
        results
    }

    /// All results, each once.
    pub fn records(&self) -> impl Iterator<Item = &RecordId> {
        self.by_record.keys()
    }

    /// Keys that hold `record`.
    pub fn keys_of(&self, record: &RecordId) -> Vec<KeyId> {
        let holders = self.by_record.get(record).map_or(&[][..], |holders| holders);
        holders.iter().map(|number| self.nodes[*number].id).collect()
    }

    /// The keys that `from` leads to by `link`.
    pub fn targets(&self, from: KeyId, link: &Link) -> Vec<KeyId> {
        let (Some(source), Some(link)) = (self.by_id.get(&from), self.by_link.get(link)) else {
            return Vec::new();
        };
        let reached = self.nodes[*source].forward.starting(*link);
        reached.map(|(_, target)| self.nodes[target].id).collect()
    }

    /// All ways that lead to `key`.
    pub fn sources(&self, key: KeyId) -> Vec<(KeyId, Link)> {
        let Some(number) = self.by_id.get(&key) else { return Vec::new() };
        let ways = self.nodes[*number].backward.iter();
        ways.map(|(source, link)| (self.nodes[source].id, self.links[link].0)).collect()
    }

    /// Whether `key` is present.
    pub fn contains(&self, key: KeyId) -> bool {
        self.by_id.contains_key(&key)
    }

    /// Whether any link leads to `key`.
    pub fn is_led_to(&self, key: KeyId) -> bool {
        self.by_id.get(&key).is_some_and(|number| !self.nodes[*number].backward.is_empty())
    }

    /// Whether anything was ever built by the operation with this digest (and is still known).
    pub fn knows_operation(&self, digest: KeyDigest) -> bool {
        self.operations.contains_key(&digest)
    }

    /// Number of keys.
    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    /// Whether there are no keys.
    pub fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    fn node(&mut self, id: KeyId) -> u32 {
        if let Some(number) = self.by_id.get(&id) {
            return *number;
        }
        if let KeyId::Chain(number) = id {
            self.next_id = self.next_id.max(number);
        }
        if is_private(id) {
            self.private.push_back(id);
        }
        let (forward, backward) = Default::default();
        let number = self.nodes.insert(Node { id, forward, backward, results: Vec::new() });
        self.by_id.insert(id, number);
        number
    }

    fn remove_result(&mut self, key: KeyId, record: &RecordId) {
        let Some(number) = self.by_id.get(&key).copied() else { return };
        let results = &mut self.nodes[number].results;
        let before = results.len();
        results.retain(|(known, _)| known != record);
        if results.len() == before {
            return;
        }
        if let Some(holders) = self.by_record.get_mut(record) {
            holders.retain(|holder| *holder != number);
            if holders.is_empty() {
                self.by_record.remove(record);
            }
        }
        self.changes.push(Change::RemoveResult { key, record: record.clone() });
        self.drop_if_isolated(number);
    }

    fn remove_link(&mut self, from: KeyId, link: Link, to: KeyId) {
        let ends = (self.by_id.get(&from), self.by_link.get(&link), self.by_id.get(&to));
        let (Some(source), Some(number), Some(target)) = ends else { return };
        let (source, number, target) = (*source, *number, *target);
        if !self.nodes[source].forward.remove((number, target)) {
            return;
        }
        self.nodes[target].backward.remove((source, number));
        self.links[number].1 -= 1;
        if self.links[number].1 == 0 {
            self.links.remove(number);
            self.by_link.remove(&link);
            if let Some(count) = self.operations.get_mut(&link.digest) {
                *count -= 1;
                if *count == 0 {
                    self.operations.remove(&link.digest);
                }
            }
        }
        self.changes.push(Change::RemoveLink { from, link, to });
        self.drop_if_isolated(source);
        self.drop_if_isolated(target);
    }

    /// Removes all links from a key.
    fn cut(&mut self, number: u32) {
        let Some(node) = self.nodes.get(number) else { return };
        let from = node.id;
        for (link, target) in node.forward.iter().collect::<Vec<_>>() {
            let (link, to) = (self.links[link].0, self.nodes[target].id);
            self.remove_link(from, link, to);
        }
    }

    /// Removes a key that has no results and leads nowhere, then its sources in the same state.
    fn collect(&mut self, number: u32) {
        let mut suspects = vec![number];
        while let Some(number) = suspects.pop() {
            let Some(node) = self.nodes.get(number) else { continue };
            if !node.results.is_empty() || !node.forward.is_empty() {
                continue;
            }
            let to = node.id;
            for (from, link) in self.sources(to) {
                let source = self.by_id[&from];
                self.remove_link(from, link, to);
                suspects.push(source);
            }
            self.drop_if_isolated(number);
        }
    }

    fn drop_if_isolated(&mut self, number: u32) {
        let Some(node) = self.nodes.get(number) else { return };
        if node.results.is_empty() && node.forward.is_empty() && node.backward.is_empty() {
            self.by_id.remove(&node.id);
            self.nodes.remove(number);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    fn root(name: &str) -> KeyId {
        KeyId::Root(KeyDigest::Sha256(Digest::of(name)))
    }

    fn link(operation: &str) -> Link {
        let digest = KeyDigest::Sha256(Digest::of(operation));
        Link { input: 0, output: 0, digest, selector: None }
    }

    #[test]
    fn what_leads_only_to_removed_results_is_removed() {
        let mut store = KeyStore::new();
        let (base, other) = (root("base"), root("other"));
        let (left, right) = (store.fresh_id(), store.fresh_id());
        store.add_link(base, link("left"), left);
        store.add_link(left, link("right"), right);
        store.add_link(other, link("right"), right);
        store.add_result(right, "r".into(), UNIX_EPOCH);
        assert_eq!(store.targets(left, &link("right")), [right]);
        assert_eq!(store.sources(right).len(), 2);
        assert!(store.knows_operation(link("left").digest));

        store.remove_record(&"r".into());
        assert!(store.is_empty());
        assert!(!store.knows_operation(link("left").digest));
    }

    #[test]
    fn a_key_in_use_keeps_its_sources() {
        let mut store = KeyStore::new();
        let (base, step) = (root("base"), store.fresh_id());
        store.add_result(base, "b".into(), UNIX_EPOCH);
        store.add_link(base, link("step"), step);
        store.add_result(step, "s".into(), UNIX_EPOCH);
        store.remove_record(&"b".into());
        assert!(store.contains(base));
        store.remove_record(&"s".into());
        assert!(store.is_empty());
    }

    #[test]
    fn a_private_key_leads_nowhere_without_its_result() {
        let mut store = KeyStore::new();
        let private = KeyId::Root(KeyDigest::Random(Digest::of("session")));
        let (content, step) = (root("content"), store.fresh_id());
        store.add_link(private, link("step"), step);
        store.add_link(content, link("step"), step);
        store.add_result(private, "files".into(), UNIX_EPOCH);
        store.add_result(step, "s".into(), UNIX_EPOCH);
        store.remove_record(&"files".into());
        assert!(!store.contains(private));
        assert_eq!(store.targets(content, &link("step")), [step]);
    }

    #[test]
    fn private_keys_of_old_sessions_are_forgotten() {
        let mut store = KeyStore::new();
        let content = root("content");
        let step = store.fresh_id();
        store.add_link(content, link("step"), step);
        store.add_result(step, "s".into(), UNIX_EPOCH);
        let private =
            |session: usize| KeyId::Root(KeyDigest::Random(Digest::of(session.to_string())));
        for session in 0..2 * MOST_PRIVATE {
            store.add_result(private(session), "files".into(), UNIX_EPOCH);
            store.add_link(private(session), link("step"), step);
        }
        // The content and the step stay beside them.
        assert_eq!(store.len(), MOST_PRIVATE + 2);
        assert!(!store.contains(private(0)));
        assert_eq!(store.targets(private(2 * MOST_PRIVATE - 1), &link("step")), [step]);
        assert_eq!(store.sources(step).len(), MOST_PRIVATE + 1);
        assert_eq!(store.keys_of(&"files".into()).len(), MOST_PRIVATE);
        let again = KeyStore::restore(store.take_changes());
        assert_eq!(again.len(), store.len());
        store.remove_record(&"files".into());
        assert_eq!(store.len(), 2);
    }

    #[test]
    fn replaying_changes_gives_the_same_store() {
        let mut store = KeyStore::new();
        let (base, step) = (root("base"), store.fresh_id());
        store.add_link(base, link("step"), step);
        store.add_result(step, "s1".into(), UNIX_EPOCH);
        store.add_result(step, "s2".into(), UNIX_EPOCH);
        store.remove_record(&"s1".into());
        let again = KeyStore::restore(store.take_changes());
        assert_eq!(again.snapshot(), store.snapshot());
        assert_eq!(KeyStore::restore(store.snapshot()).snapshot(), store.snapshot());
        let mut again = again;
        assert_ne!(again.fresh_id(), step);
    }
}
