//! Serves content stores: OCI layout folders, for reading or writing.
//!
//! Blobs lie at `blobs/sha256/<hex>`. A blob being written lies at `ingest/` under the digest of
//! its reference and is put in its place once its digest is right. The index of a layout is not
//! touched here: what to list in it is told by the build's answer.

use std::{
    collections::BTreeMap,
    fs::{File, OpenOptions},
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use base::{Digest, Hasher};
use futures_util::stream::BoxStream;
use proto::containerd::services::content::v1::{
    AbortRequest, DeleteContentRequest, Info, InfoRequest, InfoResponse, ListContentRequest,
    ListContentResponse, ListStatusesRequest, ListStatusesResponse, ReadContentRequest,
    ReadContentResponse, Status as WriteStatus, StatusRequest, StatusResponse, UpdateRequest,
    UpdateResponse, WriteAction, WriteContentRequest, WriteContentResponse,
    content_server::{Content, ContentServer},
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming, metadata::MetadataMap};

use super::MESSAGE_LIMIT;
use crate::content::KEY_STORE;

const CHUNK: usize = 256 << 10;

/// One OCI layout folder.
#[derive(Debug, Clone)]
pub struct LayoutStore {
    root: PathBuf,
    writable: bool,
}

impl LayoutStore {
    /// For reading.
    pub fn read_only(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into(), writable: false }
    }

    /// For reading and writing; made when first written.
    pub fn writable(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into(), writable: true }
    }

    /// Where a blob is or would be.
    pub fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.root.join("blobs/sha256").join(digest.hex())
    }

    fn ingest_path(&self, reference: &str) -> PathBuf {
        self.root.join("ingest").join(Digest::of(reference).hex())
    }

    fn info(&self, digest: &Digest) -> Result<Info, Status> {
        let metadata = std::fs::metadata(self.blob_path(digest))
            .map_err(|error| failed(&error, format!("content {digest}")))?;
        let time = metadata.modified().ok().map(prost_types::Timestamp::from);
        Ok(Info {
            digest: digest.to_string(),
            size: i64::try_from(metadata.len()).unwrap_or(i64::MAX),
            created_at: time,
            updated_at: time,
            labels: BTreeMap::new(),
        })
    }
}

fn failed(error: &io::Error, what: String) -> Status {
    match error.kind() {
        io::ErrorKind::NotFound => Status::not_found(format!("{what}: not found")),
        _ => Status::unknown(format!("{what}: {error}")),
    }
}

fn digest(text: &str) -> Result<Digest, Status> {
    text.parse().map_err(|error| Status::invalid_argument(format!("{error}")))
}

/// The stores of one session by id (`oci:<name>`, `local:<path>`, `export`).
#[derive(Clone, Default)]
pub struct ContentStores(Arc<BTreeMap<String, LayoutStore>>);

impl ContentStores {
    /// These stores.
    pub fn new(stores: impl IntoIterator<Item = (String, LayoutStore)>) -> Self {
        Self(Arc::new(stores.into_iter().collect()))
    }

    pub(super) fn into_service(self) -> ContentServer<Self> {
        ContentServer::new(self).max_decoding_message_size(MESSAGE_LIMIT)
    }

    fn store(&self, metadata: &MetadataMap) -> Result<LayoutStore, Status> {
        let id = metadata.get(KEY_STORE).and_then(|id| id.to_str().ok());
        let id =
            id.ok_or_else(|| Status::invalid_argument(format!("request has no {KEY_STORE}")))?;
        self.0.get(id).cloned().ok_or_else(|| Status::not_found(format!("unknown store {id}")))
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Status> + Send + 'static,
) -> Result<T, Status> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| Status::internal(error.to_string()))?
}

type Answers<T> = BoxStream<'static, Result<T, Status>>;

#[tonic::async_trait]
impl Content for ContentStores {
    type ListStream = Answers<ListContentResponse>;
    type ReadStream = Answers<ReadContentResponse>;
    type WriteStream = Answers<WriteContentResponse>;

    async fn info(&self, request: Request<InfoRequest>) -> Result<Response<InfoResponse>, Status> {
        let store = self.store(request.metadata())?;
        let digest = digest(&request.get_ref().digest)?;
        let info = blocking(move || store.info(&digest)).await?;
        Ok(Response::new(InfoResponse { info: Some(info) }))
    }

    /// Labels are not kept; the blob must exist.
    async fn update(
        &self,
        request: Request<UpdateRequest>,
    ) -> Result<Response<UpdateResponse>, Status> {
        let store = self.store(request.metadata())?;
        let asked = request.into_inner().info.unwrap_or_default();
        let digest = digest(&asked.digest)?;
        let info = blocking(move || store.info(&digest)).await?;
        Ok(Response::new(UpdateResponse { info: Some(info) }))
    }

    async fn list(
        &self,
        request: Request<ListContentRequest>,
    ) -> Result<Response<Self::ListStream>, Status> {
        let store = self.store(request.metadata())?;
        let info = blocking(move || {
            let folder = store.root.join("blobs/sha256");
            let names = match std::fs::read_dir(&folder) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
                other => other.map_err(|error| failed(&error, "list blobs".to_owned()))?,
            };
            let digests = names.filter_map(|entry| {
                let name = entry.ok()?.file_name().into_string().ok()?;
                format!("sha256:{name}").parse::<Digest>().ok()
            });
            digests.map(|digest| store.info(&digest)).collect::<Result<Vec<_>, _>>()
        })
        .await?;
        let chunks: Vec<_> =
            info.chunks(1000).map(|info| Ok(ListContentResponse { info: info.to_vec() })).collect();
        Ok(Response::new(Box::pin(futures_util::stream::iter(chunks))))
    }

    async fn delete(&self, request: Request<DeleteContentRequest>) -> Result<Response<()>, Status> {
        self.store(request.metadata())?;
        Err(Status::unimplemented("blobs of a layout are not deleted by builds"))
    }

    async fn read(
        &self,
        request: Request<ReadContentRequest>,
    ) -> Result<Response<Self::ReadStream>, Status> {
        let store = self.store(request.metadata())?;
        let asked = request.into_inner();
        let digest = digest(&asked.digest)?;
        let (mut file, mut left) = blocking(move || {
            let failed = |error| failed(&error, format!("content {digest}"));
            let mut file = File::open(store.blob_path(&digest)).map_err(failed)?;
            let size = file.metadata().map_err(failed)?.len();
            let offset =
                u64::try_from(asked.offset).ok().filter(|offset| *offset <= size).ok_or_else(
                    || Status::out_of_range(format!("read past object length {size} bytes")),
                )?;
            file.seek(SeekFrom::Start(offset)).map_err(failed)?;
            let left = match u64::try_from(asked.size) {
                Ok(0) | Err(_) => size - offset,
                Ok(wanted) => wanted.min(size - offset),
            };
            Ok((file, left))
        })
        .await?;
        let (sender, receiver) = mpsc::channel(8);
        let mut offset = asked.offset;
        tokio::task::spawn_blocking(move || {
            while left > 0 {
                let mut data = vec![0; CHUNK.min(usize::try_from(left).unwrap_or(CHUNK))];
                let answer = match file.read_exact(&mut data) {
                    Ok(()) => Ok(ReadContentResponse { offset, data: data.into() }),
                    Err(error) => Err(failed(&error, format!("content {digest}"))),
                };
                let step = CHUNK.min(usize::try_from(left).unwrap_or(CHUNK)) as u64;
                (left, offset) = (left - step, offset + step as i64);
                let ends = answer.is_err();
                if sender.blocking_send(answer).is_err() || ends {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn status(
        &self,
        request: Request<StatusRequest>,
    ) -> Result<Response<StatusResponse>, Status> {
        let store = self.store(request.metadata())?;
        let reference = request.into_inner().r#ref;
        let metadata = std::fs::metadata(store.ingest_path(&reference))
            .map_err(|error| failed(&error, format!("ref {reference}")))?;
        let offset = i64::try_from(metadata.len()).unwrap_or(i64::MAX);
        let status = WriteStatus { r#ref: reference, offset, ..WriteStatus::default() };
        Ok(Response::new(StatusResponse { status: Some(status) }))
    }

    async fn list_statuses(
        &self,
        request: Request<ListStatusesRequest>,
    ) -> Result<Response<ListStatusesResponse>, Status> {
        self.store(request.metadata())?;
        Ok(Response::new(ListStatusesResponse::default()))
    }

    async fn write(
        &self,
        request: Request<Streaming<WriteContentRequest>>,
    ) -> Result<Response<Self::WriteStream>, Status> {
        let store = self.store(request.metadata())?;
        if !store.writable {
            return Err(Status::permission_denied("the store is read-only"));
        }
        let mut messages = request.into_inner();
        let (sender, receiver) = mpsc::channel(8);
        let (feed, mut queue) = mpsc::channel::<WriteContentRequest>(8);
        tokio::task::spawn_blocking(move || {
            let mut ingest = Ingest { store, state: None };
            while let Some(message) = queue.blocking_recv() {
                let answer = ingest.take(message);
                let ends = answer.is_err();
                if sender.blocking_send(answer).is_err() || ends {
                    return;
                }
            }
        });
        tokio::spawn(async move {
            while let Ok(Some(message)) = messages.message().await {
                if feed.send(message).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn abort(&self, request: Request<AbortRequest>) -> Result<Response<()>, Status> {
        let store = self.store(request.metadata())?;
        let reference = request.into_inner().r#ref;
        std::fs::remove_file(store.ingest_path(&reference))
            .map_err(|error| failed(&error, format!("ref {reference}")))?;
        Ok(Response::new(()))
    }
}

/// One write in progress.
struct Ingest {
    store: LayoutStore,
    state: Option<State>,
}

struct State {
    path: PathBuf,
    file: File,
    offset: u64,
    hasher: Hasher,
    total: i64,
    expected: String,
}

impl Ingest {
    fn take(&mut self, message: WriteContentRequest) -> Result<WriteContentResponse, Status> {
        let failed = |error: io::Error| Status::unknown(format!("write content: {error}"));
        if self.state.is_none() {
            self.state = Some(self.open(&message)?);
        }
        let state = self.state.as_mut().expect("it was just set");
        if message.total > 0 {
            state.total = message.total;
        }
        if !message.expected.is_empty() {
            state.expected.clone_from(&message.expected);
        }
        let action = message.action();
        if action == WriteAction::Write || !message.data.is_empty() {
            if message.offset as u64 != state.offset {
                return Err(Status::out_of_range(format!(
                    "write at {} while the blob has {} bytes",
                    message.offset, state.offset
                )));
            }
            state.file.write_all(&message.data).map_err(failed)?;
            state.hasher.update(&message.data);
            state.offset += message.data.len() as u64;
        }
        let mut answer = WriteContentResponse {
            action: message.action,
            offset: state.offset as i64,
            total: state.total,
            ..WriteContentResponse::default()
        };
        if action == WriteAction::Commit {
            answer.digest = self.commit()?.to_string();
        }
        Ok(answer)
    }

    fn open(&self, message: &WriteContentRequest) -> Result<State, Status> {
        let failed = |error: io::Error| Status::unknown(format!("write content: {error}"));
        if message.r#ref.is_empty() {
            return Err(Status::invalid_argument("first message must have a reference"));
        }
        if !message.expected.is_empty() {
            let wanted = digest(&message.expected)?;
            if self.store.blob_path(&wanted).exists() {
                return Err(Status::already_exists(format!("content {wanted}: already exists")));
            }
        }
        let path = self.store.ingest_path(&message.r#ref);
        let folder = path.parent().unwrap_or(Path::new("."));
        std::fs::create_dir_all(folder).map_err(failed)?;
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(&path)
            .map_err(failed)?;
        // What an interrupted write left is taken up again.
        let mut hasher = Hasher::new();
        let offset = io::copy(&mut file, &mut hasher).map_err(failed)?;
        Ok(State { path, file, offset, hasher, total: 0, expected: String::new() })
    }

    fn commit(&mut self) -> Result<Digest, Status> {
        let failed = |error: io::Error| Status::unknown(format!("write content: {error}"));
        let state = self.state.take().expect("a commit comes once");
        let actual = state.hasher.finish();
        let discard = |why: String| {
            _ = std::fs::remove_file(&state.path);
            Status::failed_precondition(why)
        };
        if state.total > 0 && state.total as u64 != state.offset {
            return Err(discard(format!(
                "unexpected commit size {}, expected {}",
                state.offset, state.total
            )));
        }
        if !state.expected.is_empty() && digest(&state.expected)? != actual {
            return Err(discard(format!(
                "unexpected commit digest {actual}, expected {}",
                state.expected
            )));
        }
        let target = self.store.blob_path(&actual);
        std::fs::create_dir_all(target.parent().unwrap_or(Path::new("."))).map_err(failed)?;
        std::fs::rename(&state.path, &target).map_err(failed)?;
        Ok(actual)
    }
}
