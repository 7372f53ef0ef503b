//! From a bare repository to a tree of files.

use std::{
    fs,
    os::fd::{AsFd as _, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags, Timespec, Timestamps};

use super::{
    address::{Wanted, is_commit},
    command::Git,
    repository::{Fetched, explain},
};
use crate::SourceError;

/// Fills the empty folder `tree` with what was fetched.
pub(crate) fn checkout(
    git: &Git,
    repository: &Path,
    tree: &Path,
    wanted: &Wanted,
    fetched: &Fetched,
    sha256: bool,
) -> Result<(), SourceError> {
    let shown = wanted.shown_remote();
    let (folder, git) = if wanted.keep_git_dir && wanted.folder.is_empty() {
        (tree.to_owned(), with_git_dir(git, repository, tree, wanted, fetched, sha256)?)
    } else {
        let folder = match wanted.folder.as_str() {
            "" => tree.to_owned(),
            _ => tree.join(format!("checkout{}", base::id::random_id())),
        };
        fs::create_dir_all(&folder)
            .map_err(|error| SourceError::io("make checkout folder", error))?;
        let mut git = git.at(repository, Some(&folder));
        git.index = Some(git.home.join("index"));
        git.run(&["checkout", "--no-overlay", &fetched.target, "--", "."])
            .map_err(explain(format!("failed to checkout remote {shown}")))?;
        (folder, git)
    };
    if !wanted.skip_submodules {
        git.run(&["submodule", "update", "--init", "--recursive", "--depth=1"])
            .map_err(explain(format!("failed to update submodules for {shown}")))?;
    }
    if !wanted.folder.is_empty() {
        lift(&folder, &wanted.folder, tree)?;
    }
    if wanted.mtime == "commit" {
        let commit = format!("{}^{{commit}}", fetched.target);
        let text = git
            .run(&["log", "-1", "--format=%ct", &commit])
            .map_err(explain(format!("failed to get commit time for {shown}")))?;
        let seconds = text.trim().parse().map_err(|_| {
            SourceError::Remote(format!("failed to parse commit timestamp {text:?}"))
        })?;
        set_times(tree, seconds)
            .map_err(|error| SourceError::io("set times of checkout", error))?;
    }
    Ok(())
}

/// A checkout with a repository of its own, shallow and without traces of this machine.
fn with_git_dir(
    git: &Git,
    repository: &Path,
    tree: &Path,
    wanted: &Wanted,
    fetched: &Fetched,
    sha256: bool,
) -> Result<Git, SourceError> {
    let shown = wanted.shown_remote();
    let own_dir = tree.join(".git");
    let own = git.at(&own_dir, Some(tree));
    let bare = git.at(repository, None);
    let mut arguments = vec!["-c", "init.defaultBranch=master", "init"];
    if sha256 {
        arguments.push("--object-format=sha256");
    }
    own.run(&arguments)?;
    // By the file protocol, since local clones have been talked into copying foreign files.
    let origin = format!("file://{}", repository.display());
    own.run(&["remote", "add", "origin", &origin])?;
    let (name, target) = (&fetched.reference, &fetched.target);
    let kind = bare.run(&["cat-file", "-t", target])?;
    let spec = if kind.trim() == "tag" {
        let tag = name.strip_prefix("refs/tags/").unwrap_or(name);
        format!("{name}:refs/tags/{tag}")
    } else if wanted.fetch_by_commit && name != target {
        format!("{target}:{name}")
    } else if is_commit(name) {
        let temporary = format!("refs/rbuild/{}", base::id::random_id());
        bare.run(&["update-ref", &temporary, name])?;
        temporary
    } else {
        format!("{name}:{name}")
    };
    own.run(&["fetch", "-u", "--depth=1", "--", "origin", &spec])?;
    own.run(&["checkout", "FETCH_HEAD"])
        .map_err(explain(format!("failed to checkout remote {shown}")))?;
    own.run(&["remote", "set-url", "origin", &shown])
        .map_err(explain(format!("failed to set remote origin to {shown}")))?;
    own.run(&["reflog", "expire", "--all", "--expire=now"])
        .map_err(explain(format!("failed to expire reflog for remote {shown}")))?;
    match fs::remove_file(own_dir.join("FETCH_HEAD")) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(SourceError::io("remove FETCH_HEAD", error))
        }
        _ => Ok(own),
    }
}

/// Moves the members of `name` inside `checkout` to `tree` and removes the rest. Links on the way
/// are refused: they could lead anywhere.
fn lift(checkout: &Path, name: &str, tree: &Path) -> Result<(), SourceError> {
    let failed = |error: std::io::Error| SourceError::io(format!("open subdir {name}"), error);
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let open = |path: &Path| rustix::fs::open(path, flags, Mode::empty());
    let (from, to): (OwnedFd, OwnedFd) = (
        open(checkout).map_err(|errno| failed(errno.into()))?,
        open(tree).map_err(|errno| failed(errno.into()))?,
    );
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let folder = rustix::fs::openat2(from.as_fd(), name, flags, Mode::empty(), resolve).map_err(
        |errno| match errno {
            rustix::io::Errno::LOOP | rustix::io::Errno::NOTDIR => SourceError::Remote(format!(
                "invalid subdir {name}: it is not a path of real folders"
            )),
            errno => failed(errno.into()),
        },
    )?;
    let mut names = Vec::new();
    for entry in rustix::fs::Dir::read_from(&folder).map_err(|errno| failed(errno.into()))? {
        let entry = entry.map_err(|errno| failed(errno.into()))?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            names.push(entry.file_name().to_owned());
        }
    }
    for member in names {
        rustix::fs::renameat(&folder, &member, &to, &member)
            .map_err(|errno| SourceError::io(format!("move files of subdir {name}"), errno))?;
    }
    fs::remove_dir_all(checkout).map_err(|error| SourceError::io("remove the rest", error))
}

/// Gives everything in `tree`, itself included, one time.
fn set_times(tree: &Path, seconds: i64) -> std::io::Result<()> {
    let at = Timespec { tv_sec: seconds, tv_nsec: 0 };
    let times = Timestamps { last_access: at, last_modification: at };
    let set = |path: &Path| {
        rustix::fs::utimensat(rustix::fs::CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)
    };
    let mut folders: Vec<PathBuf> = vec![tree.to_owned()];
    let mut at = 0;
    while at < folders.len() {
        for entry in fs::read_dir(&folders[at])? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                folders.push(entry.path());
            } else {
                set(&entry.path())?;
            }
        }
        at += 1;
    }
    folders.iter().rev().try_for_each(|folder| Ok(set(folder)?))
}
