//! The bare repository kept for each remote, and how a commit gets into it.
//!
//! Fetched names are kept under `refs/tags/…` whatever they are at the remote, so that they are
//! advertised to the next fetch, which then transfers only what is new.

use std::path::Path;

use super::{
    Resolved,
    address::{Wanted, check_reference, is_commit},
    command::{Failure, Git},
};
use crate::SourceError;

/// Why a fetch failed.
pub(crate) enum FetchError {
    /// A fresh repository may do.
    Restart(String),
    /// It would fail again.
    Final(SourceError),
}

impl From<Failure> for FetchError {
    fn from(failure: Failure) -> Self {
        Self::Final(failure.into())
    }
}

impl From<SourceError> for FetchError {
    fn from(error: SourceError) -> Self {
        Self::Final(error)
    }
}

/// Puts an explanation in front.
pub(crate) fn explain(doing: String) -> impl FnOnce(Failure) -> SourceError {
    move |failure| SourceError::Remote(format!("{doing}: {}", failure.text))
}

/// The branch that HEAD of the remote points to.
pub(crate) fn default_branch(git: &Git, wanted: &Wanted) -> Result<String, SourceError> {
    let shown = wanted.shown_remote();
    let listed = git
        .run(&["ls-remote", "--symref", "--", wanted.origin(), "HEAD"])
        .map_err(explain(format!("error fetching default branch for repository {shown}")))?;
    let branch = listed.split_whitespace().find_map(|word| word.strip_prefix("refs/heads/"));
    let branch = branch.ok_or_else(|| {
        SourceError::NotFound(format!("could not find default branch for repository: {shown}"))
    })?;
    check_reference(branch)?;
    Ok(branch.to_owned())
}

/// Asks the remote what a ref is.
pub(crate) fn list(git: &Git, wanted: &Wanted) -> Result<Resolved, SourceError> {
    let reference = match wanted.reference.as_str() {
        "" => default_branch(git, wanted)?,
        other => other.to_owned(),
    };
    let shown = wanted.shown_remote();
    let peeled = format!("{reference}^{{}}");
    let listed = git
        .run(&["ls-remote", "--", wanted.origin(), &reference, &peeled])
        .map_err(explain(format!("failed to fetch remote {shown}")))?;
    choose(&reference, &listed)
}

/// Picks from a listing: the exact ref, else the branch, else the tag of that name.
fn choose(reference: &str, listed: &str) -> Result<Resolved, SourceError> {
    let within =
        |folder: &str| format!("{folder}{}", reference.strip_prefix(folder).unwrap_or(reference));
    let find = |name: &str| {
        listed.lines().find_map(|line| {
            let (id, listed) = line.split_once('\t')?;
            (listed == name).then(|| id.to_owned())
        })
    };
    let (exact, branch, tag) = (within("refs/"), within("refs/heads/"), within("refs/tags/"));
    let (name, checksum, commit) =
        if let Some(id) = find(&exact).filter(|_| exact != branch && exact != tag) {
            (exact, id, None)
        } else if let Some(id) = find(&branch) {
            (branch, id, None)
        } else if let Some(id) = find(&tag) {
            let commit = find(&format!("{tag}^{{}}"));
            (tag, id, commit)
        } else {
            return Err(SourceError::NotFound(format!(
                "repository does not contain ref {reference}, output: {listed:?}"
            )));
        };
    if !is_commit(&checksum) {
        return Err(SourceError::Remote(format!("invalid commit sha {checksum:?}")));
    }
    Ok(Resolved { reference: name, checksum, commit })
}

/// Makes the bare repository.
pub(crate) fn init(git: &Git, wanted: &Wanted, sha256: bool) -> Result<(), SourceError> {
    let mut arguments = vec!["-c", "init.defaultBranch=master", "init", "--bare"];
    if sha256 {
        arguments.push("--object-format=sha256");
    }
    git.run(&arguments).map_err(explain("failed to init repo".to_owned()))?;
    // Submodules with relative addresses start from this one.
    git.run(&["config", "remote.origin.url", &wanted.remote])
        .map_err(explain("failed add origin repo".to_owned()))?;
    Ok(())
}

/// Where a fetched name ends up.
pub(crate) struct Fetched {
    /// What was asked for; the default branch's name if nothing was.
    pub(crate) reference: String,
    /// What to check out.
    pub(crate) target: String,
}

/// Brings the commit that the key was made of into the repository.
pub(crate) fn fetch(
    git: &Git,
    repository: &Path,
    wanted: &Wanted,
    resolved: &Resolved,
) -> Result<Fetched, FetchError> {
    for leftover in ["shallow.lock", "index.lock"] {
        _ = std::fs::remove_file(repository.join(leftover));
    }
    let reference = match wanted.reference.as_str() {
        "" if wanted.fetch_by_commit => wanted.checksum.clone(),
        "" => default_branch(git, wanted)?,
        other => other.to_owned(),
    };
    let by_commit = wanted.fetch_by_commit && !wanted.checksum.is_empty();
    let target = if by_commit { wanted.checksum.clone() } else { reference.clone() };
    // A bundle carries the commit with all that led to it.
    let cut = wanted.as_bundle && repository.join("shallow").exists();
    let there = is_commit(&target)
        && !cut
        && git.run(&["cat-file", "-e", &format!("{target}^{{commit}}")]).is_ok();
    if !there {
        fetch_missing(git, repository, wanted, resolved, &reference, &target)?;
    }
    check(git, wanted, &target)?;
    Ok(Fetched { reference, target })
}

fn fetch_missing(
    git: &Git,
    repository: &Path,
    wanted: &Wanted,
    resolved: &Resolved,
    reference: &str,
    target: &str,
) -> Result<(), FetchError> {
    let shown = wanted.shown_remote();
    let is_shallow = || repository.join("shallow").exists();
    let local = match reference.starts_with("refs/tags/") {
        true => reference.to_owned(),
        false => format!("tags/{reference}"),
    };
    let spec = format!("{target}:{local}");
    let mut arguments = vec!["fetch"];
    let by_name = wanted.fetch_by_commit || !is_commit(target);
    arguments.push(if by_name { "--no-tags" } else { "--tags" });
    if by_name && !wanted.as_bundle {
        arguments.push("--depth=1");
    } else if is_shallow() {
        arguments.push("--unshallow");
    }
    if is_commit(reference) {
        arguments.extend([wanted.origin(), reference]);
    } else {
        arguments.extend(["--force", "--", wanted.origin(), &spec]);
    }
    git.run(&arguments).map_err(|failure| {
        let text = format!("failed to fetch remote {shown}: {}", failure.text);
        if is_stale(&text) { FetchError::Restart(text) } else { SourceError::Remote(text).into() }
    })?;

    let found = git.run(&["rev-parse", target])?;
    if found.trim() == resolved.checksum {
        return Ok(());
    }
    // The ref moved since the key was made. The keyed commit is what counts.
    let commit = &resolved.checksum;
    let name = match local.starts_with("refs/") {
        true => local,
        false => format!("refs/{local}"),
    };
    if git.run(&["cat-file", "-e", commit]).is_err() {
        let mut arguments = vec!["fetch", "--tags"];
        if is_shallow() {
            arguments.push("--unshallow");
        }
        arguments.extend([wanted.origin(), commit]);
        git.run(&arguments).map_err(explain(format!("failed to fetch remote {shown}")))?;
        git.run(&["reflog", "expire", "--all", "--expire=now"])
            .map_err(explain(format!("failed to expire reflog for remote {shown}")))?;
        if git.run(&["cat-file", "-e", commit]).is_err() {
            return Err(SourceError::Remote(format!(
                "fetched ref {reference} does not match expected commit {commit} and commit can \
                 not be found in the repository"
            ))
            .into());
        }
    }
    git.run(&["update-ref", &name, commit, "--no-deref"]).map_err(|failure| {
        if is_stale(&failure.text) { FetchError::Restart(failure.text) } else { failure.into() }
    })?;
    Ok(())
}

/// Whether the local repository, not the remote, stands in the way.
fn is_stale(text: &str) -> bool {
    let clobber = text.contains("rejected") && text.contains("(would clobber existing tag)");
    let names = text.contains("some local refs could not be updated;")
        && (text.contains("(unable to update local ref)") || text.contains("refname conflict"));
    // Left by a git that was killed.
    let locked = text.contains(".lock': File exists");
    clobber || names || locked
}

fn check(git: &Git, wanted: &Wanted, target: &str) -> Result<(), SourceError> {
    if wanted.checksum.is_empty() {
        return Ok(());
    }
    let parse = |name: &str| git.run(&["rev-parse", name]).map(|id| id.trim().to_owned());
    let shown = wanted.shown_remote();
    let found =
        parse(target).map_err(explain(format!("failed to rev-parse {target} for {shown}")))?;
    if found.starts_with(&wanted.checksum) {
        return Ok(());
    }
    let expected = &wanted.checksum;
    let mut got = found.clone();
    if let Ok(peeled) = parse(&format!("{target}^{{}}"))
        && peeled != found
    {
        if peeled.starts_with(expected) {
            return Ok(());
        }
        got = format!("{found} or {peeled}");
    }
    Err(SourceError::Remote(format!("expected checksum to match {expected}, got {got}")))
}

/// Raw commit and tag of what was resolved.
pub(crate) struct Objects {
    pub(crate) commit_checksum: String,
    pub(crate) commit: String,
    pub(crate) tag: String,
}

pub(crate) fn objects(git: &Git, resolved: &Resolved) -> Result<Objects, SourceError> {
    let id = resolved.checksum.as_str();
    let kind = git.run(&["cat-file", "-t", id])?;
    let (commit_id, tag) = match kind.trim() {
        "commit" => (id.to_owned(), String::new()),
        "tag" => {
            let commit = git.run(&["rev-parse", &format!("{id}^{{commit}}")])?;
            (commit.trim().to_owned(), git.run(&["cat-file", "tag", id])?)
        }
        other => {
            return Err(SourceError::Remote(format!("expected commit or tag object, got {other}")));
        }
    };
    let commit = git.run(&["cat-file", "commit", &commit_id])?;
    let commit_checksum = if tag.is_empty() { String::new() } else { commit_id };
    Ok(Objects { commit_checksum, commit, tag })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exact_ref_wins_then_the_branch_then_the_tag() {
        let id = |digit: char| digit.to_string().repeat(40);
        let listing = |lines: &[(char, &str)]| {
            lines
                .iter()
                .map(|(digit, name)| format!("{}\t{name}\n", id(*digit)))
                .collect::<String>()
        };
        let all = listing(&[
            ('1', "refs/heads/x"),
            ('2', "refs/tags/x"),
            ('3', "refs/tags/x^{}"),
            ('4', "refs/pull/7/head"),
        ]);
        let pick = |reference: &str, listed: &str| {
            let found = choose(reference, listed).map_err(|error| error.to_string())?;
            Ok::<_, String>((found.reference, found.checksum, found.commit))
        };
        assert_eq!(pick("x", &all), Ok(("refs/heads/x".into(), id('1'), None)));
        assert_eq!(pick("refs/heads/x", &all), Ok(("refs/heads/x".into(), id('1'), None)));
        let tag = Ok(("refs/tags/x".into(), id('2'), Some(id('3'))));
        assert_eq!(pick("refs/tags/x", &all), tag);
        assert_eq!(pick("x", &listing(&[('2', "refs/tags/x"), ('3', "refs/tags/x^{}")])), tag);
        assert_eq!(pick("pull/7/head", &all), Ok(("refs/pull/7/head".into(), id('4'), None)));
        assert!(pick("y", &all).unwrap_err().starts_with("repository does not contain ref y"));
    }
}
