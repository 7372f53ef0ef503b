//! Trees from git repositories: `git://HOST/PATH[#REF[:FOLDER]]`.
//!
//! A bare repository per remote is kept as a mutable record, so that later fetches are small. A ref
//! is resolved to a commit once in a build; the commit makes the key, and what is checked out is
//! that commit even if the ref moves meanwhile. A finished checkout is found again by its key.
//!
//! ```text
//! field                               in the key   why
//! commit (tag object with .git kept)  yes          it is the content
//! .git kept, and the full ref then    yes          they are part of the tree
//! folder, submodules, times           yes          they choose and shape files
//! address, secrets, hosts, agents     no           where content came from does not matter
//! ```

mod address;
mod bundle;
mod checkout;
mod command;
mod repository;

use std::{
    collections::HashMap,
    os::fd::OwnedFd,
    path::PathBuf,
    sync::{Arc, Mutex, Weak},
};

use base::Digest;
use base64::Engine as _;
use session::{AgentSocket, AgentSocketOptions, Group, SessionError};
use store::{MutRef, NewRecord, RecordKind, Ref, Store, StoreError};

use self::{
    address::{Wanted, is_commit},
    bundle::Staged,
    command::{Git, Stop, isolated},
    repository::{FetchError, Fetched},
};
use crate::{
    GitMeta, Instance, KeyStep, Memo, Meta, MetaRequest, Progress, Registries, Source, SourceError,
    SourceRequest,
};

/// Metadata of a repository's record, once git has made the repository.
const READY: &str = "git.ready";

/// The source of git trees.
pub struct GitSource {
    shared: Arc<Shared>,
}

struct Shared {
    store: Arc<Store>,
    /// For bundles.
    registries: Option<Registries>,
    /// One fetch a remote, one checkout a key at a time.
    locks: Mutex<HashMap<String, Weak<tokio::sync::Mutex<()>>>>,
}

impl Shared {
    async fn lock(&self, name: String) -> tokio::sync::OwnedMutexGuard<()> {
        let lock = {
            let mut locks = self.locks.lock().expect("no panic while looking for a lock");
            locks.retain(|_, lock| lock.strong_count() > 0);
            match locks.get(&name).and_then(Weak::upgrade) {
                Some(lock) => lock,
                None => {
                    let lock = Arc::new(tokio::sync::Mutex::new(()));
                    locks.insert(name, Arc::downgrade(&lock));
                    lock
                }
            }
        };
        lock.lock_owned().await
    }
}

impl GitSource {
    /// Keeps repositories and checkouts in `store`; bundles come from clients only.
    pub fn new(store: Arc<Store>) -> Self {
        Self { shared: Arc::new(Shared { store, registries: None, locks: Mutex::default() }) }
    }

    /// As [`GitSource::new`], with bundles from registries too.
    pub fn with_registries(store: Arc<Store>, registries: Registries) -> Self {
        let registries = Some(registries);
        Self { shared: Arc::new(Shared { store, registries, locks: Mutex::default() }) }
    }

    /// The installed git's version; an error if there is none, and with it no git source.
    pub async fn git_version() -> Result<String, SourceError> {
        let output = tokio::process::Command::new("git")
            .arg("version")
            .output()
            .await
            .map_err(|error| SourceError::io("find git", error))?;
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    fn instance(&self, request: SourceRequest) -> Result<GitTree, SourceError> {
        let wanted = Wanted::parse(&request)?;
        let (group, memo) = (request.group, request.memo);
        Ok(GitTree { shared: self.shared.clone(), wanted, group, memo, resolved: None })
    }
}

#[async_trait::async_trait]
impl Source for GitSource {
    fn schemes(&self) -> &'static [&'static str] {
        &["git"]
    }

    async fn resolve(&self, request: SourceRequest) -> Result<Box<dyn Instance>, SourceError> {
        Ok(Box::new(self.instance(request)?))
    }

    async fn metadata(&self, request: MetaRequest) -> Result<Meta, SourceError> {
        let with_objects = request.git_objects;
        let mut instance = self.instance(request.source)?;
        let resolved = instance.identify().await?;
        let mut meta = GitMeta {
            checksum: resolved.checksum.clone(),
            reference: resolved.reference.clone(),
            commit_checksum: match instance.wanted.keep_git_dir {
                true => String::new(),
                false => resolved.commit.clone().unwrap_or_default(),
            },
            ..GitMeta::default()
        };
        if with_objects {
            let _remote = instance.lock_remote().await;
            let objects = instance
                .with_repository(&resolved, None, move |work| {
                    repository::objects(&work.git, &work.resolved)
                })
                .await?
                .0;
            meta.commit_checksum = objects.commit_checksum;
            meta.commit_object = objects.commit.into();
            meta.tag_object = objects.tag.into();
        }
        Ok(Meta { git: Some(meta), ..Meta::default() })
    }
}

/// What a ref is at the remote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Resolved {
    /// Full name; the commit id if that was asked for.
    pub(crate) reference: String,
    /// What it points to: a commit, or an annotated tag.
    pub(crate) checksum: String,
    /// The commit behind an annotated tag.
    pub(crate) commit: Option<String>,
}

struct GitTree {
    shared: Arc<Shared>,
    wanted: Wanted,
    group: Group,
    memo: Arc<Memo>,
    resolved: Option<Resolved>,
}

#[async_trait::async_trait]
impl Instance for GitTree {
    async fn cache_key(&mut self, _: usize, _: &Progress) -> Result<KeyStep, SourceError> {
        Ok(KeyStep::only(self.key().await?))
    }

    async fn snapshot(&mut self, _: &Progress) -> Result<Option<Ref>, SourceError> {
        let key = self.key().await?;
        let resolved = self.identify().await?;
        let index_key = format!("git-snapshot::{key}:{}", self.wanted.folder);
        let _checkout = self.shared.lock(index_key.clone()).await;
        if let Some(found) = self.shared.store.find_committed(&index_key) {
            return Ok(Some(found));
        }
        let _remote = self.lock_remote().await;
        let tree = || {
            self.shared.store.create(NewRecord {
                description: format!(
                    "git snapshot for {}#{}",
                    self.wanted.shown_remote(),
                    self.wanted.reference
                ),
                kind: RecordKind::GitCheckout,
                index_keys: vec![index_key.clone()],
                ..NewRecord::default()
            })
        };
        let (_, tree) = self
            .with_repository(&resolved, Some(&tree), |work| {
                let sha256 = work.resolved.checksum.len() == 64;
                let tree = work.tree.as_ref().expect("a checkout has a tree");
                let (git, repository) = (&work.git, &work.repository);
                if work.wanted.as_bundle {
                    let resolved = &work.resolved;
                    let commit = resolved.commit.as_ref().unwrap_or(&resolved.checksum);
                    let (wanted, fetched) = (&work.wanted, &work.fetched);
                    return bundle::write(git, repository, tree, wanted, fetched, commit);
                }
                checkout::checkout(git, repository, tree, &work.wanted, &work.fetched, sha256)
            })
            .await?;
        let tree = tree.expect("it was asked for");
        Ok(Some(tree.commit().await?))
    }
}

/// What runs beside git.
struct Work {
    git: Git,
    repository: PathBuf,
    tree: Option<PathBuf>,
    wanted: Wanted,
    resolved: Resolved,
    fetched: Fetched,
}

/// Files git needs for one run; removed afterwards.
struct Desk {
    folder: tempfile::TempDir,
    _agent: Option<AgentSocket>,
    git: Git,
}

impl GitTree {
    async fn lock_remote(&self) -> tokio::sync::OwnedMutexGuard<()> {
        self.shared.lock(format!("git-remote::{}", self.wanted.remote)).await
    }

    async fn key(&mut self) -> Result<String, SourceError> {
        let resolved = self.identify().await?;
        let wanted = &self.wanted;
        let id = match (&resolved.commit, wanted.keep_git_dir) {
            (Some(commit), false) => commit,
            _ => &resolved.checksum,
        };
        let mut key = id.clone();
        if wanted.keep_git_dir {
            key.push_str(".git");
            if !resolved.reference.is_empty() {
                key = format!("{key}#{}", resolved.reference);
            }
        }
        if !wanted.folder.is_empty() {
            key = format!("{key}:{}", wanted.folder);
        }
        if wanted.skip_submodules {
            key.push_str("(skip-submodules)");
        }
        if !matches!(wanted.mtime.as_str(), "" | "checkout") {
            key = format!("{key}(mtime={})", wanted.mtime);
        }
        if wanted.as_bundle {
            key.push_str("(bundle)");
        }
        Ok(key)
    }

    async fn identify(&mut self) -> Result<Resolved, SourceError> {
        if let Some(resolved) = &self.resolved {
            return Ok(resolved.clone());
        }
        let resolved = self.resolve().await?;
        self.resolved = Some(resolved.clone());
        Ok(resolved)
    }

    async fn resolve(&mut self) -> Result<Resolved, SourceError> {
        let wanted = &mut self.wanted;
        if wanted.bundle.is_some() && wanted.reference.is_empty() {
            wanted.reference.clone_from(&wanted.checksum);
        }
        let mismatch = |checksum: &str, got: String| {
            SourceError::Remote(format!("expected checksum to match {checksum}, got {got}"))
        };
        if is_commit(&wanted.reference) {
            let id = wanted.reference.clone();
            if !id.starts_with(&wanted.checksum) {
                return Err(mismatch(&wanted.checksum, id));
            }
            return Ok(Resolved { reference: id.clone(), checksum: id, commit: None });
        }
        if wanted.fetch_by_commit {
            if !is_commit(&wanted.checksum) {
                return Err(SourceError::Attribute(match wanted.checksum.as_str() {
                    "" => "fetch-by-commit requires a checksum or a commit SHA ref".to_owned(),
                    other => format!(
                        "fetch-by-commit requires a full commit SHA checksum, got {other:?}"
                    ),
                }));
            }
            if wanted.reference.is_empty() {
                wanted.reference.clone_from(&wanted.checksum);
            } else if !wanted.reference.starts_with("refs/") {
                wanted.reference = format!("refs/heads/{}", wanted.reference);
            }
            let (reference, checksum) = (wanted.reference.clone(), wanted.checksum.clone());
            return Ok(Resolved { reference, checksum, commit: None });
        }
        let memo = self.memo.clone();
        let bundle = self.wanted.bundle.as_ref();
        let from = bundle.map_or(self.wanted.remote.clone(), |bundle| bundle.digest.to_string());
        let key = format!("git:{from}#{}", self.wanted.reference);
        let resolved = memo.get(&key, || self.list()).await?;
        let checksum = &self.wanted.checksum;
        let commit = resolved.commit.as_deref().unwrap_or_default();
        if !resolved.checksum.starts_with(checksum) && !commit.starts_with(checksum) {
            let got = match commit {
                "" => resolved.checksum,
                commit => format!("{} or {commit}", resolved.checksum),
            };
            return Err(mismatch(checksum, got));
        }
        Ok(resolved)
    }

    async fn list(&self) -> Result<Resolved, SourceError> {
        let staged = self.staged().await?;
        let desk = self.desk().await?;
        let (git, mut wanted) = (desk.git.clone(), self.wanted.clone());
        let mut mounts = Vec::new();
        if let Some(staged) = &staged {
            mounts.push(self.mount_bundle(staged, &desk, &mut wanted)?);
        }
        isolated(git.stop.clone(), mounts, move || repository::list(&git, &wanted)).await?
    }

    /// Lets commits come from the bundle, once the mount is attached.
    fn mount_bundle(
        &self,
        staged: &Staged,
        desk: &Desk,
        wanted: &mut Wanted,
    ) -> Result<(OwnedFd, PathBuf), SourceError> {
        let place = desk.folder.path().join("bundle");
        wanted.from = Some(Staged::address(&place));
        mount(&staged.record, place)
    }

    /// Credentials, hosts and agent for one run of git.
    async fn desk(&self) -> Result<Desk, SourceError> {
        let failed = |error| SourceError::io("make a folder for git", error);
        let folder = tempfile::tempdir().map_err(failed)?;
        let mut git =
            Git { home: folder.path().to_owned(), stop: Stop::default(), ..Git::default() };
        if let Some(value) = self.authorization().await? {
            let key = format!("http.{}.extraheader", self.wanted.credential_scope());
            git.settings.push((key, format!("Authorization: {value}")));
        }
        if !self.wanted.known_hosts.is_empty() {
            let path = folder.path().join("known_hosts");
            std::fs::write(&path, &self.wanted.known_hosts).map_err(failed)?;
            git.known_hosts = Some(path);
        }
        let mut agent = None;
        if let Some(id) = &self.wanted.ssh_agent {
            let session = self
                .group
                .any(async |session| {
                    session.check_agent(id).await?;
                    Ok::<_, SessionError>(session)
                })
                .await?;
            let place = folder.path().join("agent");
            std::fs::create_dir(&place).map_err(failed)?;
            let options = AgentSocketOptions {
                uid: rustix::process::geteuid().as_raw(),
                gid: rustix::process::getegid().as_raw(),
                mode: 0o700,
            };
            let socket = AgentSocket::listen(&place, session, id, options)?;
            git.ssh_socket = Some(socket.path().to_owned());
            agent = Some(socket);
        }
        Ok(Desk { folder, _agent: agent, git })
    }

    /// The value of the Authorization header, if some secret gives one.
    async fn authorization(&self) -> Result<Option<String>, SourceError> {
        for (id, is_token) in self.wanted.secrets() {
            // A client without sessions or secrets simply has no credentials.
            let Ok(Some(data)) = self.group.secret(&id).await else { continue };
            let text = String::from_utf8_lossy(&data);
            let value = match is_token {
                true => {
                    let pair = format!("x-access-token:{text}");
                    format!("basic {}", base64::engine::general_purpose::STANDARD.encode(pair))
                }
                false => text.into_owned(),
            };
            if value.contains(char::is_control) {
                return Err(SourceError::Remote(format!(
                    "git auth secret {id} is not a header value"
                )));
            }
            return Ok(Some(value));
        }
        Ok(None)
    }

    /// Runs `work` once the resolved commit is in the remote's repository. The caller holds the
    /// remote's lock. With `tree` an empty record is made and handed back filled.
    async fn with_repository<T: Send + 'static>(
        &self,
        resolved: &Resolved,
        tree: Option<&(dyn Fn() -> Result<MutRef, StoreError> + Sync)>,
        work: impl Fn(&Work) -> Result<T, SourceError> + Send + Sync + 'static,
    ) -> Result<(T, Option<MutRef>), SourceError> {
        let work = Arc::new(work);
        let staged = self.staged().await?;
        let (desk, staged) = (self.desk().await?, staged.as_ref());
        match self.attempt(&desk, staged, resolved, tree, work.clone(), false).await {
            Err(FetchError::Restart(why)) => {
                tracing::debug!(remote = self.wanted.shown_remote(), why, "starting git afresh");
                self.attempt(&desk, staged, resolved, tree, work, true).await
            }
            done => done,
        }
        .map_err(|error| match error {
            FetchError::Restart(text) => SourceError::Remote(text),
            FetchError::Final(error) => error,
        })
    }

    async fn attempt<T: Send + 'static>(
        &self,
        desk: &Desk,
        staged: Option<&Staged>,
        resolved: &Resolved,
        tree: Option<&(dyn Fn() -> Result<MutRef, StoreError> + Sync)>,
        work: Arc<impl Fn(&Work) -> Result<T, SourceError> + Send + Sync + 'static>,
        fresh: bool,
    ) -> Result<(T, Option<MutRef>), FetchError> {
        let store = |error: StoreError| FetchError::Final(error.into());
        let (repository, is_new) = self.repository(fresh).map_err(store)?;
        let tree = tree.map(|make| make()).transpose().map_err(store)?;
        let home = desk.folder.path();
        let repository_path = home.join("repository");
        let tree_path = tree.is_some().then(|| home.join("tree"));
        let mut mounts = vec![mount(&repository, repository_path.clone())?];
        if let (Some(tree), Some(path)) = (&tree, &tree_path) {
            mounts.push(mount(tree, path.clone())?);
        }
        let git = desk.git.at(&repository_path, None);
        let (mut wanted, resolved) = (self.wanted.clone(), resolved.clone());
        if let Some(staged) = staged {
            mounts.push(self.mount_bundle(staged, desk, &mut wanted)?);
        }
        let sha256 = staged.map_or(resolved.checksum.len() == 64, |staged| staged.sha256);
        let run = move || {
            let run = || {
                if is_new {
                    repository::init(&git, &wanted, sha256)?;
                    repository.set_metadata(READY, Some("1".to_owned()));
                }
                let fetched = repository::fetch(&git, &repository_path, &wanted, &resolved)?;
                let all = Work {
                    git,
                    repository: repository_path,
                    tree: tree_path,
                    wanted,
                    resolved,
                    fetched,
                };
                Ok(work(&all)?)
            };
            // The records come along, so that they outlive every write even if nobody waits.
            let result = run();
            (result, repository, tree)
        };
        let (result, repository, tree) = isolated(desk.git.stop.clone(), mounts, run).await?;
        match result {
            Ok(value) => {
                drop(repository);
                Ok((value, tree))
            }
            Err(error) => {
                // Half-initialised, it would be taken for a whole one.
                if is_new {
                    repository.discard();
                }
                Err(error)
            }
        }
    }

    /// The remote's bare repository, and whether it is new and empty.
    fn repository(&self, fresh: bool) -> Result<(MutRef, bool), StoreError> {
        let store = &self.shared.store;
        // Addresses may hold passwords; their digest does not.
        let index_key = format!("git-remote::{}", Digest::of(&self.wanted.remote));
        for id in store.find(&index_key) {
            match store.take_mutable(&id) {
                // What was cut off in its making holds git's locks.
                Ok(old) if fresh || old.metadata(READY).is_none() => old.discard(),
                Ok(repository) => return Ok((repository, false)),
                Err(StoreError::InUse(_) | StoreError::NoRecord(_)) => {}
                Err(error) => return Err(error),
            }
        }
        let made = store.create(NewRecord {
            description: format!("shared git repo for {}", self.wanted.shown_remote()),
            retain: true,
            index_keys: vec![index_key],
            ..NewRecord::default()
        })?;
        Ok((made, true))
    }
}

/// A mount of the record's tree for the folder `path`, which is made.
fn mount(record: &MutRef, path: PathBuf) -> Result<(OwnedFd, PathBuf), SourceError> {
    match std::fs::create_dir(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
            return Err(SourceError::io("make a folder for git", error));
        }
        _ => {}
    }
    Ok((record.tree()?.clone_mount(false)?, path))
}

#[cfg(test)]
mod tests;
