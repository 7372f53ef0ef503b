//! Type `local`: the result's files in the client's folder. Also the trees that `tar` writes.

use std::{
    collections::{BTreeMap, HashMap},
    io::{self, Read},
    os::fd::OwnedFd,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use async_trait::async_trait;
use base::{Hasher, gojson, gomode};
use bytes::Bytes;
use futures_util::future::try_join_all;
use session::{
    SendTree, Session,
    fsutil::{DirTree, FileTree, MemoryTree, MergedTree, Stat, SubTree, TransferError},
};
use store::Ref;

use crate::{
    Attestation, ExportError, ExportRequest, Exported, Exporter, PlatformResult, Step,
    assemble::{metadata_epoch, platforms},
    attest::{StatementSubject, statement},
    attrs::Attrs,
    request::client,
};

/// Attributes of `local` and `tar`.
#[derive(Debug, Clone)]
pub(crate) struct FileOptions {
    pub epoch: Option<Option<i64>>,
    pub attestation_prefix: String,
    pub platform_split: Option<bool>,
}

impl FileOptions {
    pub(crate) fn load(attrs: &mut Attrs) -> Result<Self, ExportError> {
        Ok(Self {
            epoch: attrs.epoch()?,
            attestation_prefix: attrs.take("attestation-prefix").unwrap_or_default(),
            platform_split: attrs.bool("platform-split", None)?,
        })
    }
}

/// See the module.
pub(crate) struct Local {
    attrs: BTreeMap<String, String>,
    options: FileOptions,
    mirror: bool,
}

impl Local {
    pub(crate) fn new(attrs: BTreeMap<String, String>) -> Result<Self, ExportError> {
        let mut left = Attrs::new("local", attrs.clone());
        let options = FileOptions::load(&mut left)?;
        let mirror = match left.take("mode").as_deref() {
            None | Some("" | "copy") => false,
            Some("delete") => true,
            Some(other) => return Err(left.bad("mode", other, "expected copy or delete")),
        };
        Ok(Self { attrs, options, mirror })
    }
}

#[async_trait]
impl Exporter for Local {
    fn kind(&self) -> &'static str {
        "local"
    }

    fn name(&self) -> &'static str {
        "exporting to client directory"
    }

    fn attrs(&self) -> &BTreeMap<String, String> {
        &self.attrs
    }

    async fn export(&self, request: ExportRequest) -> Result<Exported, ExportError> {
        let session = client(&request).await?;
        let is_map = !request.result.by_platform.is_empty();
        let split = self.options.platform_split.unwrap_or(is_map);
        let list = platforms(&request.result, &request.platform)?;
        let mut trees = Vec::new();
        for platform in &list {
            trees.push(files(&request, platform, &self.options, is_map && !split).await?);
        }
        if !split && trees.len() > 1 {
            let ids: Vec<_> = list.iter().map(|p| p.id.clone()).collect();
            let trees = trees.clone();
            blocking(move || refuse_collisions(&trees, &ids)).await?;
        }
        if split {
            for (tree, platform) in trees.iter_mut().zip(&list) {
                let time = self.folder_time(&request, platform)?;
                *tree = Arc::new(SubTree::named(folder_name(&platform.id), time, tree.clone()));
            }
        }
        if self.mirror {
            let tree = match trees.len() {
                1 => trees.remove(0),
                _ => Arc::new(MergedTree::new(trees)),
            };
            send(&session, &request, tree, "copying files".into(), true).await?;
        } else {
            let sends = trees.into_iter().zip(&list).map(|(tree, platform)| {
                let label = match split {
                    true => format!("copying files {}", platform.id),
                    false => "copying files".to_owned(),
                };
                send(&session, &request, tree, label, false)
            });
            try_join_all(sends).await?;
        }
        Ok(Exported::default())
    }
}

impl Local {
    fn folder_time(
        &self,
        request: &ExportRequest,
        platform: &PlatformResult,
    ) -> Result<i64, ExportError> {
        let epoch = epoch_of(request, platform, &self.options)?;
        Ok(epoch.map_or(0, nanos))
    }
}

async fn send(
    session: &Session,
    request: &ExportRequest,
    tree: Arc<dyn FileTree>,
    label: String,
    multi_platform: bool,
) -> Result<(), ExportError> {
    let step = Arc::new(std::sync::Mutex::new(Step::begin(&request.progress, label)));
    let shown = step.clone();
    let progress = Arc::new(move |bytes| {
        if let Ok(mut step) = shown.lock() {
            step.at(bytes, 0);
        }
    });
    let send = SendTree { exporter: request.index, tree, multi_platform, progress: Some(progress) };
    let sent = session.send_tree(send).await;
    drop(step);
    sent.map_err(ExportError::session("copy files to the client"))
}

/// The folder of one platform in a split output.
pub(crate) fn folder_name(platform: &str) -> String {
    platform.replace('/', "_")
}

pub(crate) fn nanos(seconds: i64) -> i64 {
    seconds.saturating_mul(1_000_000_000)
}

pub(crate) fn epoch_of(
    request: &ExportRequest,
    platform: &PlatformResult,
    options: &FileOptions,
) -> Result<Option<i64>, ExportError> {
    match options.epoch {
        Some(epoch) => Ok(epoch),
        None => metadata_epoch(&request.result, Some(&platform.id)),
    }
}

/// One platform's files, with its statements beside them.
pub(crate) async fn files(
    request: &ExportRequest,
    platform: &PlatformResult,
    options: &FileOptions,
    platform_in_names: bool,
) -> Result<Arc<dyn FileTree>, ExportError> {
    let epoch = epoch_of(request, platform, options)?;
    let tree: Arc<dyn FileTree> = match &platform.tree {
        Some(tree) => {
            let fetched = tree.ensure_local(store::no_progress()).await;
            fetched.map_err(ExportError::store("fetch the layers of the result"))?;
            Arc::new(HeldTree::new(tree.clone(), epoch)?)
        }
        None => Arc::new(MemoryTree::new()),
    };
    let attestations = request.result.attestations.get(&platform.id).cloned().unwrap_or_default();
    let attestations: Vec<_> = attestations.into_iter().filter(|a| !a.inline_only).collect();
    if attestations.is_empty() {
        return Ok(tree);
    }
    let extension = platform_in_names.then(|| folder_name(&platform.id));
    let prefix = options.attestation_prefix.clone();
    let inner = tree.clone();
    let mut predicates = Vec::with_capacity(attestations.len());
    for attestation in attestations {
        let predicate = attestation.predicate.read().await?;
        predicates.push((attestation, predicate));
    }
    let statements =
        blocking(move || statement_files(&*inner, &predicates, &prefix, extension, epoch));
    Ok(Arc::new(MergedTree::new(vec![tree, Arc::new(statements.await?)])))
}

/// Statement files about all regular files of a tree.
fn statement_files(
    tree: &dyn FileTree,
    attestations: &[(Attestation, Bytes)],
    prefix: &str,
    platform: Option<String>,
    epoch: Option<i64>,
) -> Result<MemoryTree, ExportError> {
    let io = |doing: &str, path: &str| ExportError::io(format!("{doing} {path}"));
    let mut paths = Vec::new();
    list(tree, &mut |stat| {
        if gomode::is_regular(stat.mode) {
            paths.push(stat.path);
        }
    })?;
    let mut own = Vec::new();
    for path in paths {
        // A further name of a file is read through its own path all the same.
        let mut file = tree.open(&path).map_err(io("open", &path))?;
        let mut hasher = Hasher::new();
        io::copy(&mut file, &mut hasher).map_err(io("read", &path))?;
        own.push(StatementSubject::new(path, hasher.finish()));
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let time = nanos(epoch.unwrap_or(i64::try_from(now).unwrap_or(0)));
    let (mut made, mut names) = (MemoryTree::new(), std::collections::BTreeSet::new());
    for (attestation, predicate) in attestations {
        let mut name = format!("{prefix}{}", base::path::base(&attestation.path));
        if let Some(platform) = &platform {
            let (stem, extension) = match name.rfind('.') {
                Some(at) => name.split_at(at),
                None => (name.as_str(), ""),
            };
            name = format!("{stem}.{platform}{extension}");
        }
        if !names.insert(name.clone()) {
            return Err(ExportError::Conflict(format!("duplicate attestation path name {name}")));
        }
        let body = gojson::to_vec(&statement(attestation, predicate, &own)?);
        let body: serde_json::Value =
            serde_json::from_slice(&body).map_err(|error| ExportError::result(&name, error))?;
        let stat = Stat { path: name, mode: 0o600, mod_time: time, ..Stat::default() };
        made.add(stat, gojson::to_vec_indented(&body));
    }
    Ok(made)
}

fn refuse_collisions(trees: &[Arc<dyn FileTree>], ids: &[String]) -> Result<(), ExportError> {
    let mut owners: HashMap<String, &String> = HashMap::new();
    for (tree, id) in trees.iter().zip(ids) {
        let mut clash = None;
        list(&**tree, &mut |stat| {
            if stat.mode & gomode::DIR != 0 || clash.is_some() {
                return;
            }
            if let Some(other) = owners.insert(stat.path.clone(), id) {
                clash = Some((stat.path, other.clone()));
            }
        })?;
        if let Some((path, other)) = clash {
            return Err(ExportError::Conflict(format!(
                "cannot overwrite {path} from {other} with {id} when split option is disabled"
            )));
        }
    }
    Ok(())
}

pub(crate) fn list(tree: &dyn FileTree, visit: &mut dyn FnMut(Stat)) -> Result<(), ExportError> {
    let walked = tree.walk(&mut |stat| {
        visit(stat);
        Ok(())
    });
    walked.map_err(transfer("list the files of the result"))
}

pub(crate) fn transfer(doing: &'static str) -> impl FnOnce(TransferError) -> ExportError {
    move |error| ExportError::session(doing)(error.into())
}

pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ExportError> + Send + 'static,
) -> Result<T, ExportError> {
    tokio::task::spawn_blocking(work).await.expect("reading files does not panic")
}

/// The files of a ref, which stays as long as this does.
struct HeldTree {
    inner: DirTree,
    _mounted: snapshot::Tree,
    _tree: Ref,
}

impl HeldTree {
    fn new(tree: Ref, epoch: Option<i64>) -> Result<Self, ExportError> {
        let mounted = tree.tree().map_err(ExportError::store("mount the result"))?;
        let root = open_root(&mounted).map_err(ExportError::io("open the result's root"))?;
        let mut inner = DirTree::new(root);
        if let Some(epoch) = epoch {
            inner = inner.with_map(Arc::new(move |stat: &mut Stat| {
                stat.mod_time = nanos(epoch);
                true
            }));
        }
        Ok(Self { inner, _mounted: mounted, _tree: tree })
    }
}

fn open_root(tree: &snapshot::Tree) -> io::Result<OwnedFd> {
    use rustix::fs::{Mode, OFlags};
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(tree.fd(), c".", flags, Mode::empty())?)
}

impl FileTree for HeldTree {
    fn walk(
        &self,
        visit: &mut dyn FnMut(Stat) -> Result<(), TransferError>,
    ) -> Result<(), TransferError> {
        self.inner.walk(visit)
    }

    fn open(&self, path: &str) -> io::Result<Box<dyn Read + Send>> {
        self.inner.open(path)
    }
}
