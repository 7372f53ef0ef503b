//! Which entries of a folder are sent: include patterns, exclude patterns, followed paths.
//!
//! Includes are applied first, excludes to what remains. A folder that does not match is still
//! looked into when something below it could, and is then sent as a parent.

use std::os::fd::BorrowedFd;

use base::pattern::{MatchInfo, Patterns};

use super::{Stat, TransferError, follow};

/// A set of rules; the default lets everything through.
#[derive(Debug, Default, Clone)]
pub struct Filter {
    include: Option<Rules>,
    exclude: Option<Rules>,
}

#[derive(Debug, Clone)]
struct Rules {
    patterns: Patterns,
    /// Literal path prefixes (with trailing slash) of the patterns that can make a difference below
    /// a folder; `None` if some pattern is no mere prefix.
    prefixes: Option<Vec<String>>,
}

/// What to do with an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Send it.
    Take,
    /// Not itself, but something below it may pass.
    Look,
    /// Neither it nor anything below.
    Skip,
}

/// What the rules said about a folder, for its children.
#[derive(Debug, Default)]
pub(crate) struct Matched {
    include: Option<MatchInfo>,
    exclude: Option<MatchInfo>,
}

impl Filter {
    /// Rules from pattern lists; an empty list is no rule.
    pub fn new(include: &[String], exclude: &[String]) -> Result<Self, TransferError> {
        let rules =
            |which, patterns: &[String], exceptions| -> Result<_, TransferError> {
                if patterns.is_empty() {
                    return Ok(None);
                }
                let compiled = Patterns::new(patterns).map_err(|source| {
                    TransferError::Pattern { which, patterns: patterns.to_vec(), source }
                })?;
                let prefixes = prefixes(&compiled, exceptions);
                Ok(Some(Rules { patterns: compiled, prefixes }))
            };
        Ok(Self {
            include: rules("includepatterns", include, false)?,
            exclude: rules("excludepatterns", exclude, true)?,
        })
    }

    /// The same, with the paths that `follow` leads to inside `root` added to the includes.
    pub fn following(
        root: BorrowedFd<'_>,
        include: &[String],
        exclude: &[String],
        follow: &[String],
    ) -> Result<Self, TransferError> {
        if follow.is_empty() {
            return Self::new(include, exclude);
        }
        let mut all = include.to_vec();
        // `None`: some path leads to the root, so links restrict nothing.
        if let Some(found) = follow::follow_links(root, follow)? {
            all.extend(found);
            all = follow::without_nested(all).unwrap_or_default();
        }
        Self::new(&all, exclude)
    }

    /// Judges a listing entry by entry.
    pub(crate) fn listing(&self) -> Listing<'_> {
        Listing { filter: self, folders: Vec::new() }
    }

    pub(crate) fn judge(
        &self,
        path: &str,
        is_dir: bool,
        parent: Option<&Matched>,
    ) -> (Verdict, Matched) {
        let mut verdict = Verdict::Take;
        let mut matched = Matched::default();
        if let Some(rules) = &self.include {
            let above = parent.and_then(|parent| parent.include.as_ref());
            let (hit, info) = rules.patterns.matches_below(path, above);
            matched.include = Some(info);
            if !hit {
                if is_dir && !rules.reach_below(path) {
                    return (Verdict::Skip, matched);
                }
                verdict = Verdict::Look;
            }
        }
        if let Some(rules) = &self.exclude {
            let above = parent.and_then(|parent| parent.exclude.as_ref());
            let (hit, info) = rules.patterns.matches_below(path, above);
            matched.exclude = Some(info);
            if hit {
                if is_dir && !(rules.patterns.has_exceptions() && rules.reach_below(path)) {
                    return (Verdict::Skip, matched);
                }
                verdict = Verdict::Look;
            }
        }
        (verdict, matched)
    }
}

/// A filter applied to a listing that somebody else makes.
pub(crate) struct Listing<'a> {
    filter: &'a Filter,
    folders: Vec<Open>,
}

struct Open {
    /// With a trailing slash.
    path: String,
    matched: Matched,
    skipped: bool,
    unsent: Option<Stat>,
}

impl Listing<'_> {
    /// Hands `stat` on if `path` passes, after those of its folders that were held back.
    pub(crate) fn pass(
        &mut self,
        path: String,
        is_dir: bool,
        stat: Stat,
        visit: &mut dyn FnMut(Stat) -> Result<(), TransferError>,
    ) -> Result<(), TransferError> {
        while self.folders.last().is_some_and(|open| !path.starts_with(&open.path)) {
            self.folders.pop();
        }
        let parent = self.folders.last();
        if parent.is_some_and(|open| open.skipped) {
            return Ok(());
        }
        let (verdict, matched) = self.filter.judge(&path, is_dir, parent.map(|open| &open.matched));
        let mut unsent = None;
        if verdict == Verdict::Take {
            for open in &mut self.folders {
                if let Some(folder) = open.unsent.take() {
                    visit(folder)?;
                }
            }
            visit(stat)?;
        } else {
            unsent = Some(stat);
        }
        if is_dir {
            let skipped = verdict == Verdict::Skip;
            self.folders.push(Open { path: format!("{path}/"), matched, skipped, unsent });
        }
        Ok(())
    }
}

impl Rules {
    /// Whether a pattern could apply to something below `folder`.
    fn reach_below(&self, folder: &str) -> bool {
        let Some(prefixes) = &self.prefixes else { return true };
        prefixes
            .iter()
            .any(|prefix| prefix.strip_prefix(folder).is_some_and(|rest| rest.starts_with('/')))
    }
}

fn prefixes(patterns: &Patterns, exceptions: bool) -> Option<Vec<String>> {
    patterns
        .texts()
        .filter(|(_, exception)| *exception == exceptions)
        .map(|(text, _)| {
            let text = text.strip_suffix("/**").unwrap_or(text);
            let text = text.strip_suffix("/*").unwrap_or(text);
            (!text.contains(['*', '[', ']', '?', '^', '\\'])).then(|| format!("{text}/"))
        })
        .collect()
}
