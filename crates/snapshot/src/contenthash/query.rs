//! Questions to an index: the digest of a path, or of what wildcards and patterns select.

use base::{
    Digest, Hasher,
    pattern::{MatchInfo, Patterns, glob_match},
};

use super::{
    HashError, Index,
    index::{Node, parts},
    scan::{Task, TaskKind},
};
use crate::{Tree, copy::has_wildcard, scoped};

/// Symlinks followed in one path before it counts as a loop.
const MOST_LINKS: usize = 255;

/// A filtered query; see the cache key notes §5.4.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Query<'a> {
    /// Path, possibly with wildcards.
    pub path: &'a str,
    /// Follow a symlink in the last component.
    pub follow: bool,
    /// Take `*`, `?` and `[` in the path as wildcards.
    pub wildcard: bool,
    /// Only what matches one of these.
    pub include: &'a [String],
    /// Not what matches these.
    pub exclude: &'a [String],
    /// Each must be a prefix of something listed.
    pub required: &'a [String],
}

impl Index {
    /// Digest of the file or folder at `path`.
    pub fn checksum(&mut self, tree: &Tree, path: &str, follow: bool) -> Result<Digest, HashError> {
        let path = base::path::absolute(path);
        let real = self.resolve(tree, path.as_bytes(), follow)?;
        match self.entry_digest(tree, &real)? {
            Some(digest) => Ok(digest),
            None => Err(HashError::NotFound(path)),
        }
    }

    /// Digest of what the query selects. Without wildcard and patterns it is [`Index::checksum`].
    pub fn checksum_filtered(&mut self, tree: &Tree, query: &Query) -> Result<Digest, HashError> {
        if !query.wildcard && query.include.is_empty() && query.exclude.is_empty() {
            return self.checksum(tree, query.path, query.follow);
        }
        let include = patterns(query.include, "includepatterns")?;
        let exclude = patterns(query.exclude, "excludepatterns")?;
        let cleaned = base::path::absolute(query.path);
        let path = if cleaned == "/" { "" } else { &cleaned[..] };
        let (front, rest) = if query.wildcard { split_wildcard(path) } else { (path, "") };
        let follow_front = !rest.is_empty();
        let start = self.resolve(tree, front.as_bytes(), follow_front)?;
        let mut selection = Selection {
            query,
            path,
            origin: front.to_owned(),
            include,
            exclude,
            last_matched: None,
            parents: Vec::new(),
            listed: Vec::new(),
        };
        if self.knows(tree, &start)? {
            self.select(tree, &mut selection, start, front.as_bytes())?;
        }
        self.digest_of_listed(tree, selection)
    }

    fn digest_of_listed(&mut self, tree: &Tree, selection: Selection) -> Result<Digest, HashError> {
        let Selection { query, path, origin, listed, .. } = selection;
        for required in query.required {
            if !listed.iter().any(|item| item.shown.starts_with(required.as_bytes())) {
                return Err(HashError::NotFound(required.clone()));
            }
        }
        let tasks = listed.iter().filter_map(|item| self.task(item)).collect();
        self.fill_each(tree, tasks)?;
        let mut digests = Vec::new();
        for item in &listed {
            let known = match item.followed {
                true => Some(self.checksum(tree, &lossy(&item.shown), true)?),
                false => self.known_digest(item),
            };
            digests.push(known.ok_or_else(|| HashError::NotFound(lossy(&item.shown)))?);
        }
        if let ([item], [digest]) = (&listed[..], &digests[..]) {
            let base = |path: &[u8]| base::path::base(&lossy(path)).to_owned();
            let asked = if path.is_empty() { "/" } else { path };
            let shown = if item.shown.is_empty() { &b"/"[..] } else { &item.shown };
            if base(asked.as_bytes()) == base(shown) {
                return Ok(*digest);
            }
        }
        let mut hasher = Hasher::new();
        for (item, digest) in listed.iter().zip(&digests) {
            let rest = item.shown.strip_prefix(origin.as_bytes()).unwrap_or(&item.shown);
            let key: Vec<u8> = match rest {
                b"" => vec![0],
                rest => rest.iter().map(|byte| if *byte == b'/' { 0 } else { *byte }).collect(),
            };
            hasher.update(key);
            hasher.update(digest.to_string());
        }
        Ok(hasher.finish())
    }

    /// Follows symlinks in all components but the last, and there too with `follow`. What does not
    /// exist is kept as it is.
    pub(super) fn resolve(
        &mut self,
        tree: &Tree,
        path: &[u8],
        follow: bool,
    ) -> Result<Vec<u8>, HashError> {
        let mut pending: Vec<Vec<u8>> =
            scoped::components(path).rev().map(<[u8]>::to_vec).collect();
        let mut real: Vec<u8> = Vec::new();
        let mut links = 0;
        while let Some(part) = pending.pop() {
            if part == b".." {
                real.truncate(real.iter().rposition(|byte| *byte == b'/').unwrap_or(0));
                continue;
            }
            self.learn(tree, &real, &part)?;
            let node = self.folder(&parts(&real)).and_then(|folder| folder.children.get(&part[..]));
            if let (Some(Node::Symlink { target, .. }), true) =
                (node, follow || !pending.is_empty())
            {
                links += 1;
                if links > MOST_LINKS {
                    return Err(HashError::TooManyLinks);
                }
                if target.starts_with(b"/") {
                    real.clear();
                }
                pending.extend(scoped::components(target).rev().map(<[u8]>::to_vec));
                continue;
            }
            real.push(b'/');
            real.extend_from_slice(&part);
        }
        Ok(real)
    }

    /// Whether the resolved path `real` exists.
    fn knows(&mut self, tree: &Tree, real: &[u8]) -> Result<bool, HashError> {
        if real.is_empty() {
            return Ok(true);
        }
        let (parent, name) = scoped::split(real);
        self.learn(tree, parent, name)?;
        Ok(self.find(&parts(real)).is_some())
    }

    /// Digest of the resolved path `real`, `None` if it does not exist.
    pub(super) fn entry_digest(
        &mut self,
        tree: &Tree,
        real: &[u8],
    ) -> Result<Option<Digest>, HashError> {
        if !self.knows(tree, real)? {
            return Ok(None);
        }
        if self.folder(&parts(real)).is_some() {
            return self.fill(tree, real).map(Some);
        }
        let item = Item { real: real.to_vec(), shown: Vec::new(), folder: false, followed: false };
        if let Some(task) = self.task(&item) {
            self.fill_each(tree, vec![task])?;
        }
        Ok(self.known_digest(&item))
    }

    fn known_digest(&self, item: &Item) -> Option<Digest> {
        let parts = parts(&item.real);
        if item.folder { self.folder(&parts)?.header } else { self.find(&parts)?.digest() }
    }

    /// What has to be hashed for an item, if anything.
    fn task(&self, item: &Item) -> Option<Task> {
        if item.followed || self.known_digest(item).is_some() {
            return None;
        }
        let kind = match self.find(&parts(&item.real)) {
            _ if item.folder => TaskKind::Folder,
            Some(Node::File { regular: true, .. }) => TaskKind::File,
            _ => TaskKind::Other,
        };
        Some(Task { path: item.real.clone(), kind })
    }

    /// Visits the entry at the resolved path `real`, shown as `shown`, and everything below it.
    fn select(
        &mut self,
        tree: &Tree,
        selection: &mut Selection,
        real: Vec<u8>,
        shown: &[u8],
    ) -> Result<(), HashError> {
        let mut stack = vec![(real, shown.to_vec())];
        while let Some((real, shown)) = stack.pop() {
            if self.folder(&parts(&real)).is_none() {
                let is_link = matches!(self.find(&parts(&real)), Some(Node::Symlink { .. }));
                selection.visit(real, &shown, Visit::Entry { is_link })?;
                continue;
            }
            selection.visit(real.clone(), &shown, Visit::Content)?;
            selection.visit(real.clone(), &shown, Visit::Header)?;
            if !selection.may_match_below(&shown) {
                continue;
            }
            self.learn_all(tree, &real)?;
            let Some(folder) = self.folder(&parts(&real)) else { continue };
            for name in folder.children.keys().rev() {
                let below = |path: &[u8]| [path, b"/", name].concat();
                stack.push((below(&real), below(&shown)));
            }
        }
        Ok(())
    }
}

/// A filtered query under way.
struct Selection<'q> {
    query: &'q Query<'q>,
    /// Cleaned path, empty for the root.
    path: &'q str,
    /// The part of the path before wildcards, as asked for.
    origin: String,
    include: Option<Patterns>,
    exclude: Option<Patterns>,
    last_matched: Option<Vec<u8>>,
    parents: Vec<Parent>,
    listed: Vec<Item>,
}

/// Something whose digest goes into the result.
#[derive(Clone)]
struct Item {
    /// Where it is.
    real: Vec<u8>,
    /// Its path as asked for.
    shown: Vec<u8>,
    /// Stands for a folder's own metadata.
    folder: bool,
    /// Stands for what the symlink leads to.
    followed: bool,
}

/// The header of a folder that the visited path is in.
struct Parent {
    item: Item,
    listed: bool,
    include: Option<MatchInfo>,
    exclude: Option<MatchInfo>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Visit {
    Content,
    Header,
    Entry { is_link: bool },
}

impl Selection<'_> {
    fn visit(&mut self, real: Vec<u8>, shown: &[u8], visit: Visit) -> Result<(), HashError> {
        while self.parents.last().is_some_and(|parent| !is_below(shown, &parent.item.shown)) {
            self.parents.pop();
        }
        let ends_in_slash = self.query.path.ends_with('/');
        if visit == Visit::Header && shown == self.path.as_bytes() && ends_in_slash {
            return Ok(());
        }
        let Some(candidate) = self.candidate(shown)? else { return Ok(()) };
        if visit == Visit::Content {
            return Ok(());
        }
        let (included, include, exclude) = self.check(&candidate);
        let header = visit == Visit::Header;
        if !included && !header {
            return Ok(());
        }
        let followed =
            self.query.follow && self.parents.is_empty() && visit == Visit::Entry { is_link: true };
        let item = Item { real, shown: shown.to_vec(), folder: header, followed };
        if included {
            for parent in &mut self.parents {
                if !std::mem::replace(&mut parent.listed, true) {
                    self.listed.push(parent.item.clone());
                }
            }
            self.listed.push(item.clone());
        }
        if header {
            self.parents.push(Parent { item, listed: included, include, exclude });
        }
        Ok(())
    }

    /// The path the patterns are asked about; `None` if the wildcard does not match.
    fn candidate(&mut self, shown: &[u8]) -> Result<Option<String>, HashError> {
        let base = if self.query.wildcard && self.path.is_empty() {
            b""
        } else if self.query.wildcard {
            let known = self.last_matched.as_ref().is_some_and(|last| is_below(shown, last));
            if !known {
                let matches = glob_match(self.path, &lossy(shown))
                    .map_err(|error| HashError::Pattern(error.to_string()))?;
                if !matches {
                    return Ok(None);
                }
                self.last_matched = Some(shown.to_vec());
            }
            self.last_matched.as_deref().unwrap_or_default()
        } else {
            self.path.as_bytes()
        };
        let rest = shown.strip_prefix(base).unwrap_or(shown);
        Ok(Some(lossy(rest.strip_prefix(b"/").unwrap_or(rest))))
    }

    fn check(&self, candidate: &str) -> (bool, Option<MatchInfo>, Option<MatchInfo>) {
        let parent = self.parents.last();
        let mut info = (None, None);
        if let Some(include) = &self.include {
            let above = parent.and_then(|parent| parent.include.as_ref());
            let (matched, found) = include.matches_below(candidate, above);
            info.0 = Some(found);
            if !matched {
                return (false, info.0, info.1);
            }
        }
        if let Some(exclude) = &self.exclude {
            let above = parent.and_then(|parent| parent.exclude.as_ref());
            let (matched, found) = exclude.matches_below(candidate, above);
            info.1 = Some(found);
            if matched {
                return (false, info.0, info.1);
            }
        }
        (true, info.0, info.1)
    }

    /// Whether something in the folder `shown` can still be selected, so that it must be read.
    fn may_match_below(&self, shown: &[u8]) -> bool {
        if !self.query.wildcard || self.path.is_empty() {
            return true;
        }
        let matched = self.last_matched.as_ref().is_some_and(|last| is_below(shown, last));
        let depth = |path: &[u8]| path.iter().filter(|byte| **byte == b'/').count();
        // A wildcard never crosses a slash, so nothing deeper than the pattern matches it.
        matched || depth(shown) < depth(self.path.as_bytes())
    }
}

/// Whether `path` is `folder` or in it.
fn is_below(path: &[u8], folder: &[u8]) -> bool {
    path.strip_prefix(folder).is_some_and(|rest| rest.is_empty() || rest[0] == b'/')
}

fn lossy(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}

/// Splits before the first component with a wildcard; escapes count as no wildcard.
fn split_wildcard(path: &str) -> (&str, &str) {
    let mut start = 0;
    for part in path.split('/') {
        let end = start + part.len();
        if has_wildcard(part) {
            return (path[..start].trim_end_matches('/'), &path[start..]);
        }
        start = end + 1;
    }
    (path, "")
}

fn patterns(list: &[String], name: &str) -> Result<Option<Patterns>, HashError> {
    if list.is_empty() {
        return Ok(None);
    }
    Patterns::new(list).map(Some).map_err(|error| {
        HashError::Pattern(format!("invalid {name}: [{}]: {error}", list.join(" ")))
    })
}
