//! Git bundles: a repository's commits in one file.
//!
//! As a source, a bundle is a blob of a registry or of a client's layout. It is fetched once in a
//! build and unpacked into a bare repository of its own, from which commits then come as from any
//! remote. As a result it is a file named `bundle` that carries one commit, with what led to it, under
//! the name that was asked for. Invariant: nothing of an unpacked bundle reaches the repository kept
//! for the remote but what git fetches from it by name.

use std::{
    fs::File,
    io::Write as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use base::Hasher;
use futures_util::StreamExt as _;
use oci::{Descriptor, Provider, registry::RepositoryProvider};
use rustix::fs::{Mode, OFlags};
use store::{MutRef, NewRecord};

use super::{
    GitTree,
    address::{Bundle, BundlePlace, Wanted, is_commit},
    command::{Git, isolated},
    mount,
    repository::{Fetched, explain},
};
use crate::{LayoutProvider, SourceError};

/// The file in a tree that is a bundle.
const FILE: &str = "bundle";
/// What the blob is called beside the repository it becomes.
const BLOB: &str = "blob";
const REPOSITORY: &str = "repository.git";

/// A bundle unpacked for the time of a build.
#[derive(Clone)]
pub(crate) struct Staged {
    pub(crate) record: Arc<MutRef>,
    pub(crate) sha256: bool,
}

impl Staged {
    /// Address of the repository once the record is mounted at `place`.
    pub(crate) fn address(place: &Path) -> String {
        format!("file://{}", place.join(REPOSITORY).display())
    }
}

impl GitTree {
    /// The bundle that commits come from, if that is asked for; fetched once in this build.
    pub(crate) async fn staged(&self) -> Result<Option<Staged>, SourceError> {
        let Some(bundle) = &self.wanted.bundle else { return Ok(None) };
        let key = format!("git-bundle:{}", bundle.digest);
        self.memo.get(&key, || self.stage(bundle)).await.map(Some)
    }

    async fn stage(&self, bundle: &Bundle) -> Result<Staged, SourceError> {
        let record = self.shared.store.create(NewRecord {
            description: format!("git bundle {}", bundle.name),
            ..NewRecord::default()
        })?;
        self.download(bundle, &record).await?;
        let desk = self.desk().await?;
        let place = desk.folder.path().join("bundle");
        let mounts = vec![mount(&record, place.clone())?];
        let (git, checksum) = (desk.git.clone(), self.wanted.checksum.clone());
        let name = bundle.name.clone();
        let unpack = move || unpack(&git, &place, &name, &checksum);
        let sha256 = isolated(desk.git.stop.clone(), mounts, unpack).await??;
        Ok(Staged { record: Arc::new(record), sha256 })
    }

    async fn download(&self, bundle: &Bundle, record: &MutRef) -> Result<(), SourceError> {
        let provider: Box<dyn Provider> = match &bundle.place {
            BundlePlace::Registry(reference) => {
                let registries = self.shared.registries.as_ref().ok_or_else(|| {
                    SourceError::Attribute("git.bundle: no registries are set up".to_owned())
                })?;
                Box::new(RepositoryProvider::new(registries(&self.group), reference.clone()))
            }
            BundlePlace::Layout { session, store } => Box::new(LayoutProvider {
                group: self.group.clone(),
                session: session.clone(),
                store: format!("oci:{store}"),
            }),
        };
        let doing = || format!("failed to fetch git bundle {}", bundle.name);
        let failed = |error: std::io::Error| SourceError::io(doing(), error);
        let tree = record.tree()?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let file = rustix::fs::openat(tree.fd(), BLOB, flags, Mode::from_raw_mode(0o600))
            .map_err(|errno| failed(errno.into()))?;
        let (mut file, mut hasher) = (File::from(file), Hasher::new());
        let blob = Descriptor::new("application/octet-stream", bundle.digest, 0);
        let mut body = provider.open(&blob, 0).await?;
        while let Some(piece) = body.next().await {
            let piece = piece.map_err(failed)?;
            let written = tokio::task::spawn_blocking(move || {
                hasher.update(&piece);
                let result = file.write_all(&piece);
                (file, hasher, result)
            });
            let (back, hash, result) = written
                .await
                .map_err(|error| SourceError::Remote(format!("{}: {error}", doing())))?;
            (file, hasher) = (back, hash);
            result.map_err(failed)?;
        }
        let got = hasher.finish();
        match got == bundle.digest {
            true => Ok(()),
            false => Err(SourceError::Remote(format!(
                "expected checksum to match {}, got {got}",
                bundle.digest
            ))),
        }
    }
}

/// Makes the repository beside the blob, which goes. Tells whether its ids are SHA-256.
fn unpack(git: &Git, place: &Path, name: &str, commit: &str) -> Result<bool, SourceError> {
    let blob = place.join(BLOB).display().to_string();
    let inspecting = || explain(format!("failed to inspect git bundle {name}"));
    let listed = git.run(&["ls-remote", "--", &blob]).map_err(inspecting())?;
    let id = listed.split_whitespace().next().unwrap_or_default();
    if !is_commit(id) {
        let text = format!("failed to inspect git bundle {name}: no refs found");
        return Err(SourceError::Remote(text));
    }
    let sha256 = id.len() == 64;
    let git = init(git, &place.join(REPOSITORY), sha256)?;
    git.run(&["fetch", &blob, "+refs/*:refs/*"])
        .map_err(explain(format!("failed to import git bundle {name}")))?;
    if git.run(&["cat-file", "-e", &format!("{commit}^{{commit}}")]).is_err() {
        return Err(SourceError::NotFound(format!("commit {commit} not found in bundle {name}")));
    }
    std::fs::remove_file(&blob)
        .map_err(|error| SourceError::io(format!("remove git bundle {name}"), error))?;
    Ok(sha256)
}

/// An empty bare repository at `path`.
fn init(git: &Git, path: &Path, sha256: bool) -> Result<Git, SourceError> {
    std::fs::create_dir(path)
        .map_err(|error| SourceError::io("make a repository for a bundle", error))?;
    let git = git.at(path, None);
    let mut arguments = vec!["-c", "init.defaultBranch=master", "init", "--bare"];
    if sha256 {
        arguments.push("--object-format=sha256");
    }
    git.run(&arguments).map_err(explain("failed to init temp bare repo".to_owned()))?;
    Ok(git)
}

/// Writes the fetched commit as a bundle into the empty folder `tree`.
pub(crate) fn write(
    git: &Git,
    repository: &Path,
    tree: &Path,
    wanted: &Wanted,
    fetched: &Fetched,
    commit: &str,
) -> Result<(), SourceError> {
    let name = tip(&wanted.reference);
    let own = init(git, &git.home.join("out.git"), commit.len() == 64)?;
    let from = format!("file://{}", repository.display());
    let target = if is_commit(commit) { commit } else { &fetched.target };
    own.run(&["fetch", &from, target]).map_err(explain(format!(
        "failed to fetch commit {target} from shared repo for bundle creation"
    )))?;
    own.run(&["update-ref", &name, target])
        .map_err(explain(format!("failed to create target ref for bundle {target}")))?;
    let out: PathBuf = tree.join(FILE);
    own.run(&["bundle", "create", &out.display().to_string(), &name])
        .map_err(explain(format!("failed to create git bundle for {target}")))?;
    Ok(())
}

/// The name that a bundle gives its commit: tags stay tags, all else is a branch, and what has no
/// name is `main`.
fn tip(reference: &str) -> String {
    if reference.is_empty() || is_commit(reference) {
        return "refs/heads/main".to_owned();
    }
    if reference.starts_with("refs/tags/") {
        return reference.to_owned();
    }
    let name = reference.strip_prefix("refs/").unwrap_or(reference);
    format!("refs/heads/{}", name.strip_prefix("heads/").unwrap_or(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tips_have_full_names() {
        for (reference, name) in [
            ("", "refs/heads/main"),
            ("0123456789abcdef0123456789abcdef01234567", "refs/heads/main"),
            ("v1", "refs/heads/v1"),
            ("heads/dev", "refs/heads/dev"),
            ("refs/heads/a/b", "refs/heads/a/b"),
            ("refs/tags/v1", "refs/tags/v1"),
        ] {
            assert_eq!(tip(reference), name, "{reference}");
        }
    }
}
