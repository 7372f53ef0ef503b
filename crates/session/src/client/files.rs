//! Serves folders of this machine as local sources.

use std::{collections::BTreeMap, io::Read, path::PathBuf, sync::Arc};

use base::gomode;
use futures_util::{StreamExt as _, stream::BoxStream};
use proto::moby::filesync::v1::file_sync_server::{FileSync, FileSyncServer};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::MESSAGE_LIMIT;
use crate::{
    fsutil::{self, DirTree, FileTree, Filter, MapStat, Packet, Progress, Stat, TransferError},
    header,
};

/// A folder (or a made-up tree) under a name.
#[derive(Clone)]
pub struct SyncedDir {
    content: Content,
    map: MapStat,
    progress: Option<Progress>,
}

#[derive(Clone)]
enum Content {
    Folder(PathBuf),
    Tree(Arc<dyn FileTree>),
}

impl SyncedDir {
    /// A folder; its files are sent as owned by root, so that who builds does not matter.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { content: Content::Folder(path.into()), map: root_owns(), progress: None }
    }

    /// Files made up in memory, or any other tree.
    pub fn of_tree(tree: Arc<dyn FileTree>) -> Self {
        Self { content: Content::Tree(tree), map: root_owns(), progress: None }
    }

    /// Replaces the change made to each entry on its way (owned by root).
    #[must_use]
    pub fn with_map(mut self, map: MapStat) -> Self {
        self.map = map;
        self
    }

    /// Tells bytes sent, per transfer.
    #[must_use]
    pub fn with_progress(mut self, progress: Progress) -> Self {
        self.progress = Some(progress);
        self
    }
}

fn root_owns() -> MapStat {
    Arc::new(|stat| {
        (stat.uid, stat.gid) = (0, 0);
        true
    })
}

/// The folders of one session by name.
#[derive(Clone, Default)]
pub struct SyncedDirs(BTreeMap<String, SyncedDir>);

impl SyncedDirs {
    /// None.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds or replaces one.
    pub fn insert(&mut self, name: impl Into<String>, dir: SyncedDir) {
        self.0.insert(name.into(), dir);
    }

    pub(super) fn into_service(self) -> FileSyncServer<Self> {
        FileSyncServer::new(self).max_decoding_message_size(MESSAGE_LIMIT)
    }

    fn tree(
        &self,
        request: &Request<Streaming<Packet>>,
    ) -> Result<(Arc<dyn FileTree>, Option<Progress>), Status> {
        let values = |key| header::values(request.metadata(), key);
        let name = values("dir-name").into_iter().next().unwrap_or_default();
        let dir = self
            .0
            .get(&name)
            .ok_or_else(|| Status::not_found(format!("no access allowed to dir {name:?}")))?;
        let (include, exclude) = (values("include-patterns"), values("exclude-patterns"));
        let mut follow = values("followpaths");
        let failed = |error: TransferError| Status::unknown(error.to_string());
        let tree: Arc<dyn FileTree> = match &dir.content {
            Content::Folder(path) => {
                let root = std::fs::File::open(path).map_err(|error| {
                    Status::unknown(format!("open folder {}: {error}", path.display()))
                })?;
                use std::os::fd::AsFd as _;
                let filter = Filter::following(root.as_fd(), &include, &exclude, &follow);
                let tree = DirTree::new(root.into()).with_filter(filter.map_err(failed)?);
                Arc::new(tree.with_map(dir.map.clone()))
            }
            Content::Tree(inner) => {
                // Made-up trees hold no links worth following.
                let mut all = include;
                all.append(&mut follow);
                let filter = Filter::new(&all, &exclude).map_err(failed)?;
                Arc::new(Filtered { inner: inner.clone(), filter, map: dir.map.clone() })
            }
        };
        Ok((tree, dir.progress.clone()))
    }
}

#[tonic::async_trait]
impl FileSync for SyncedDirs {
    type DiffCopyStream = BoxStream<'static, Result<Packet, Status>>;
    type TarStreamStream = BoxStream<'static, Result<Packet, Status>>;

    async fn diff_copy(
        &self,
        request: Request<Streaming<Packet>>,
    ) -> Result<Response<Self::DiffCopyStream>, Status> {
        let dirs = self.clone();
        // Following links reads the disk.
        let (request, found) = tokio::task::spawn_blocking(move || {
            let found = dirs.tree(&request);
            (request, found)
        })
        .await
        .map_err(|error| Status::internal(error.to_string()))?;
        let (tree, progress) = found?;
        Ok(Response::new(answer(tree, progress, request.into_inner())))
    }

    async fn tar_stream(
        &self,
        _: Request<Streaming<Packet>>,
    ) -> Result<Response<Self::TarStreamStream>, Status> {
        Err(Status::unimplemented("folders travel by DiffCopy"))
    }
}

/// Runs the sender as the answering side: the stream ends with success once the receiver has all.
fn answer(
    tree: Arc<dyn FileTree>,
    progress: Option<Progress>,
    incoming: Streaming<Packet>,
) -> BoxStream<'static, Result<Packet, Status>> {
    let (sender, receiver) = mpsc::channel(64);
    let (result, outcome) = tokio::sync::oneshot::channel();
    tokio::spawn(async move {
        let sent = fsutil::send_until_fin(tree, incoming, sender, progress).await;
        _ = result.send(sent);
    });
    let last = futures_util::stream::once(outcome).filter_map(|outcome| {
        std::future::ready(match outcome {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(Err(Status::unknown(error.to_string()))),
            Err(_) => Some(Err(Status::internal("sender of files went away"))),
        })
    });
    Box::pin(ReceiverStream::new(receiver).map(Ok).chain(last))
}

/// Any tree behind a filter.
struct Filtered {
    inner: Arc<dyn FileTree>,
    filter: Filter,
    map: MapStat,
}

impl FileTree for Filtered {
    fn walk(
        &self,
        visit: &mut dyn FnMut(Stat) -> Result<(), TransferError>,
    ) -> Result<(), TransferError> {
        let mut judged = self.filter.listing();
        self.inner.walk(&mut |mut stat| {
            let is_dir = stat.mode & gomode::DIR != 0;
            let path = stat.path.clone();
            if (self.map)(&mut stat) { judged.pass(path, is_dir, stat, visit) } else { Ok(()) }
        })
    }

    fn open(&self, path: &str) -> std::io::Result<Box<dyn Read + Send>> {
        self.inner.open(path)
    }
}
