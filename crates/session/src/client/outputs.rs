//! Takes build outputs: trees into folders, streams into files.
//!
//! Trees and streams arrive at the same method with different message types; which one it is
//! depends on the exporter the client asked for, so the method is taken apart by hand.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    io,
    path::{Path, PathBuf},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
};

use futures_util::{StreamExt as _, future::BoxFuture, stream::BoxStream};
use http::{Request as HttpRequest, Response as HttpResponse};
use proto::moby::filesync::v1::BytesMessage;
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{
    Request, Response, Status, Streaming,
    body::Body,
    metadata::MetadataMap,
    server::{Grpc, NamedService, StreamingService},
};
use tonic_prost::ProstCodec;
use tower::Service;

use super::MESSAGE_LIMIT;
use crate::{
    files::{KEY_EXPORTER, KEY_MULTI_PLATFORM, KEY_RESULT},
    fsutil::{self, Differ, Packet, ReceiveOptions},
};

/// A file being written.
pub trait OutputFile: Send {
    /// Takes the next bytes.
    fn write(&mut self, bytes: &[u8]) -> io::Result<()>;

    /// All bytes are there. Dropped without this, the output is incomplete.
    fn close(self: Box<Self>) -> io::Result<()>;
}

impl<W: io::Write + Send> OutputFile for W {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.write_all(bytes)
    }

    fn close(mut self: Box<Self>) -> io::Result<()> {
        self.flush()
    }
}

/// Opens an output file, given what the exporter tells about its result; `None` says that the
/// output exists already.
pub type OpenFile =
    Arc<dyn Fn(BTreeMap<String, String>) -> io::Result<Option<Box<dyn OutputFile>>> + Send + Sync>;

/// Where an exporter's output goes.
#[derive(Clone)]
pub enum Target {
    /// Into a folder; made if absent.
    Folder {
        /// The folder.
        path: PathBuf,
        /// Remove everything else in it.
        delete: bool,
    },
    /// Into a file.
    File(OpenFile),
}

/// The targets of one build, by the exporter's index.
#[derive(Clone, Default)]
pub struct Outputs {
    targets: Arc<BTreeMap<usize, Target>>,
}

impl Outputs {
    /// These targets.
    pub fn new(targets: impl IntoIterator<Item = (usize, Target)>) -> Self {
        Self { targets: Arc::new(targets.into_iter().collect()) }
    }

    pub(super) fn into_service(self) -> OutputService {
        OutputService(self)
    }

    fn target(&self, metadata: &MetadataMap) -> Result<Target, Status> {
        let id = metadata.get(KEY_EXPORTER).and_then(|id| id.to_str().ok()?.parse().ok());
        let id: usize = id.unwrap_or(0);
        let target = self.targets.get(&id).cloned();
        target.ok_or_else(|| Status::unknown(format!("exporter {id} not found")))
    }
}

#[derive(Clone)]
pub(super) struct OutputService(Outputs);

impl NamedService for OutputService {
    const NAME: &'static str = "moby.filesync.v1.FileSend";
}

impl Service<HttpRequest<Body>> for OutputService {
    type Response = HttpResponse<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: HttpRequest<Body>) -> Self::Future {
        let outputs = self.0.clone();
        Box::pin(async move {
            if !request.uri().path().ends_with("/DiffCopy") {
                return Ok(Status::unimplemented("no such method").into_http());
            }
            let metadata = MetadataMap::from_headers(request.headers().clone());
            Ok(match outputs.target(&metadata) {
                Err(status) => status.into_http(),
                Ok(Target::Folder { path, delete }) => {
                    let codec = ProstCodec::<Packet, Packet>::default();
                    let mut grpc = Grpc::new(codec).max_decoding_message_size(MESSAGE_LIMIT);
                    grpc.streaming(TakeTree { path, delete }, request).await
                }
                Ok(Target::File(open)) => {
                    let broken = Arc::new(AtomicBool::new(false));
                    let notice = broken.clone();
                    let request = request.map(|body| Body::new(Watched { body, broken: notice }));
                    let codec = ProstCodec::<BytesMessage, BytesMessage>::default();
                    let mut grpc = Grpc::new(codec).max_decoding_message_size(MESSAGE_LIMIT);
                    grpc.streaming(TakeFile { open, broken }, request).await
                }
            })
        })
    }
}

/// Notices that a stream was cancelled: to its reader it ends like a complete one.
struct Watched {
    body: Body,
    broken: Arc<AtomicBool>,
}

impl http_body::Body for Watched {
    type Data = bytes::Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<bytes::Bytes>, Status>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        let whole = match &polled {
            Poll::Ready(None) => self.body.is_end_stream(),
            Poll::Ready(Some(Err(_))) => false,
            Poll::Ready(Some(Ok(_))) | Poll::Pending => true,
        };
        if !whole {
            self.broken.store(true, Ordering::Relaxed);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
}

struct TakeTree {
    path: PathBuf,
    delete: bool,
}

impl StreamingService<Packet> for TakeTree {
    type Response = Packet;
    type ResponseStream = BoxStream<'static, Result<Packet, Status>>;
    type Future = BoxFuture<'static, Result<Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, request: Request<Streaming<Packet>>) -> Self::Future {
        let (path, delete) = (self.path.clone(), self.delete);
        Box::pin(async move {
            let merged =
                request.metadata().get_all(KEY_MULTI_PLATFORM).iter().any(|value| value == "1");
            if delete && !merged {
                return Err(Status::unknown(
                    "local exporter mode=delete requires a BuildKit daemon with multi-platform \
                     local export support",
                ));
            }
            let folder = open_target(&path)
                .map_err(|error| Status::unknown(format!("open {}: {error}", path.display())))?;
            // What arrives belongs to who builds.
            let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
            let (uid, gid) = (uid.as_raw(), gid.as_raw());
            let options = ReceiveOptions {
                merge: !delete,
                differ: Differ::None,
                map: Some(Arc::new(move |stat| (stat.uid, stat.gid) = (uid, gid))),
                ..ReceiveOptions::default()
            };
            Ok(Response::new(receive_tree(folder, options, request.into_inner())))
        })
    }
}

fn open_target(path: &Path) -> io::Result<std::os::fd::OwnedFd> {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    Ok(std::fs::File::open(path)?.into())
}

/// Runs the receiver as the answering side.
fn receive_tree(
    folder: std::os::fd::OwnedFd,
    options: ReceiveOptions,
    incoming: Streaming<Packet>,
) -> BoxStream<'static, Result<Packet, Status>> {
    let (sender, receiver) = mpsc::unbounded_channel();
    let (result, outcome) = tokio::sync::oneshot::channel();
    tokio::spawn(async move {
        let received = fsutil::receive(folder, options, incoming, sender).await;
        _ = result.send(received);
    });
    let last = futures_util::stream::once(outcome).filter_map(|outcome| {
        std::future::ready(match outcome {
            Ok(Ok(_)) => None,
            Ok(Err(error)) => Some(Err(Status::unknown(error.to_string()))),
            Err(_) => Some(Err(Status::internal("receiver of files went away"))),
        })
    });
    Box::pin(UnboundedReceiverStream::new(receiver).map(Ok).chain(last))
}

struct TakeFile {
    open: OpenFile,
    broken: Arc<AtomicBool>,
}

impl StreamingService<BytesMessage> for TakeFile {
    type Response = BytesMessage;
    type ResponseStream = BoxStream<'static, Result<BytesMessage, Status>>;
    type Future = BoxFuture<'static, Result<Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, request: Request<Streaming<BytesMessage>>) -> Self::Future {
        let (open, broken) = (self.open.clone(), self.broken.clone());
        Box::pin(async move {
            let result = told(request.metadata());
            write_file(open, result, request.into_inner(), &broken).await?;
            let nothing: Self::ResponseStream = Box::pin(futures_util::stream::empty());
            Ok(Response::new(nothing))
        })
    }
}

/// What the exporter tells about its result.
fn told(metadata: &MetadataMap) -> BTreeMap<String, String> {
    let mut told: BTreeMap<String, String> = BTreeMap::new();
    for pair in metadata.iter() {
        let tonic::metadata::KeyAndValueRef::Ascii(key, value) = pair else { continue };
        let Some(key) = key.as_str().strip_prefix(KEY_RESULT) else { continue };
        let value = String::from_utf8_lossy(value.as_bytes());
        told.entry(key.to_owned())
            .and_modify(|known| {
                known.push(',');
                known.push_str(&value);
            })
            .or_insert_with(|| value.into_owned());
    }
    told
}

async fn write_file(
    open: OpenFile,
    result: BTreeMap<String, String>,
    mut incoming: Streaming<BytesMessage>,
    broken: &AtomicBool,
) -> Result<(), Status> {
    let failed = |error: io::Error| Status::unknown(format!("write output: {error}"));
    let stopped = |error: tokio::task::JoinError| Status::internal(error.to_string());
    let opened = tokio::task::spawn_blocking(move || open(result)).await.map_err(stopped)?;
    let Some(mut file) = opened.map_err(failed)? else {
        return Err(Status::already_exists("target already exists"));
    };
    let (sender, mut queue) = mpsc::channel::<Option<bytes::Bytes>>(8);
    let writing = tokio::task::spawn_blocking(move || {
        while let Some(data) = queue.blocking_recv() {
            match data {
                Some(data) => file.write(&data)?,
                None => return file.close(),
            }
        }
        // The stream broke: leave the file unfinished.
        Ok(())
    });
    let feeding = async {
        while let Some(message) = incoming.message().await? {
            if sender.send(Some(message.data)).await.is_err() {
                break;
            }
        }
        if broken.load(Ordering::Relaxed) {
            return Err(Status::cancelled("the output broke off"));
        }
        _ = sender.send(None).await;
        Ok::<_, Status>(())
    };
    let fed = feeding.await;
    drop(sender);
    let written = writing.await.map_err(stopped)?;
    fed?;
    written.map_err(failed)
}
