//! Files to and from the client: local sources come in, outputs go out.

use std::{collections::BTreeMap, io, os::fd::OwnedFd, sync::Arc};

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;
use proto::moby::filesync::v1::{
    BytesMessage, file_send_client::FileSendClient, file_sync_client::FileSyncClient,
};
use tokio::{sync::mpsc, task::JoinHandle};
use tokio_stream::wrappers::{ReceiverStream, UnboundedReceiverStream};
use tonic::{Code, Request, metadata::MetadataMap};

use crate::{
    Session, SessionError,
    fsutil::{self, FileTree, Packet, Progress, ReceiveOptions, Received, TransferError},
    header,
    session::{MESSAGE_LIMIT, require},
};

const SYNC_METHOD: &str = "/moby.filesync.v1.FileSync/DiffCopy";
const SEND_METHOD: &str = "/moby.filesync.v1.FileSend/DiffCopy";
pub(crate) const KEY_EXPORTER: &str = "buildkit-attachable-exporter-id";
pub(crate) const KEY_MULTI_PLATFORM: &str = "buildkit-exporter-multi-platform";
pub(crate) const KEY_RESULT: &str = "exporter-md-";
/// Go clients refuse messages above 4 MiB.
pub(crate) const OUTPUT_CHUNK: usize = 3 << 20;
/// Small writes are gathered up to this.
const WRITE_BUFFER: usize = 256 << 10;

/// Asks for a copy of one of the client's folders.
#[derive(Default)]
pub struct SyncRequest {
    /// The name the client exposes it under.
    pub name: String,
    /// Only matching paths and their parents.
    pub include_patterns: Vec<String>,
    /// Ignore-file patterns, applied after the includes.
    pub exclude_patterns: Vec<String>,
    /// Paths whose links are resolved at the client and added to the includes.
    pub follow_paths: Vec<String>,
    /// How to receive.
    pub options: ReceiveOptions,
}

/// Writes a tree to the client.
pub struct SendTree {
    /// Index of the exporter in the build request.
    pub exporter: usize,
    /// What to send.
    pub tree: Arc<dyn FileTree>,
    /// All platforms travel in this one stream (needed by clients that delete what is not sent).
    pub multi_platform: bool,
    /// Bytes sent so far.
    pub progress: Option<Progress>,
}

/// How an output to the client ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutputEnd {
    /// The client has it all.
    Written,
    /// The client had it already and took nothing.
    AlreadyExists,
}

impl Session {
    /// Makes `folder` an equal copy of one of the client's folders.
    pub async fn sync_dir(
        &self,
        request: SyncRequest,
        folder: OwnedFd,
    ) -> Result<Received, SessionError> {
        if !self.supports(SYNC_METHOD) {
            return Err(SessionError::NoLocalSources);
        }
        let mut metadata = MetadataMap::new();
        header::append(&mut metadata, "dir-name", &[request.name])?;
        header::append(&mut metadata, "include-patterns", &request.include_patterns)?;
        header::append(&mut metadata, "exclude-patterns", &request.exclude_patterns)?;
        header::append(&mut metadata, "followpaths", &request.follow_paths)?;
        // Unbounded on purpose: only small requests go out, and the side that produces them must
        // never wait for a peer that waits for us to read.
        let (sender, receiver) = mpsc::unbounded_channel();
        let mut call = Request::new(UnboundedReceiverStream::new(receiver));
        *call.metadata_mut() = metadata;
        let mut client =
            FileSyncClient::new(self.channel()).max_decoding_message_size(MESSAGE_LIMIT);
        self.during(async {
            let incoming = client.diff_copy(call).await?.into_inner();
            fsutil::receive(folder, request.options, incoming, sender).await
        })
        .await
    }

    /// Sends a tree of files to the client's folder for an exporter.
    pub async fn send_tree(&self, request: SendTree) -> Result<(), SessionError> {
        require(self, SEND_METHOD)?;
        let (sender, receiver) = mpsc::channel::<Packet>(128);
        let mut call = Request::new(ReceiverStream::new(receiver));
        let metadata = call.metadata_mut();
        metadata.insert(KEY_EXPORTER, header::ascii(KEY_EXPORTER, &request.exporter.to_string())?);
        if request.multi_platform {
            metadata.insert(KEY_MULTI_PLATFORM, header::ascii(KEY_MULTI_PLATFORM, "1")?);
        }
        // The contract says bytes here, but trees travel as packets on the same method.
        let mut client =
            tonic::client::Grpc::new(self.channel()).max_decoding_message_size(MESSAGE_LIMIT);
        let path = http::uri::PathAndQuery::from_static(SEND_METHOD);
        self.during(async {
            client.ready().await.map_err(|error| tonic::Status::unavailable(error.to_string()))?;
            let codec = tonic_prost::ProstCodec::<Packet, Packet>::default();
            // A server may hold its headers back until it has something to say.
            let incoming = fsutil::send_with(request.tree, sender, request.progress, async move {
                Ok(client.streaming(call, path, codec).await?.into_inner())
            });
            incoming.await
        })
        .await
    }

    /// Opens a file at the client for an exporter; `result` is what the exporter knows to tell so
    /// far (keys as in the exporter's response).
    pub async fn send_file(
        &self,
        exporter: usize,
        result: &BTreeMap<String, String>,
    ) -> Result<FileWriter, SessionError> {
        require(self, SEND_METHOD)?;
        let (sender, receiver) = mpsc::channel(4);
        let (complete, completed) = tokio::sync::oneshot::channel();
        // Without the word that the file is complete its stream must not end like one that is.
        let end = futures_util::stream::once(async {
            if completed.await.is_err() {
                std::future::pending::<()>().await;
            }
        });
        let end = end.filter_map(|()| std::future::ready(None));
        let mut call = Request::new(ReceiverStream::new(receiver).chain(end));
        let metadata = call.metadata_mut();
        metadata.insert(KEY_EXPORTER, header::ascii(KEY_EXPORTER, &exporter.to_string())?);
        for (key, value) in result {
            let name = format!("{KEY_RESULT}{key}");
            let name =
                tonic::metadata::AsciiMetadataKey::from_bytes(name.as_bytes()).map_err(|_| {
                    SessionError::BadRequest {
                        what: format!("exporter response key `{key}`"),
                        why: "it is not a metadata key".to_owned(),
                    }
                })?;
            metadata.insert(name, header::ascii(key, value)?);
        }
        let mut client = FileSendClient::new(self.channel());
        let session = self.clone();
        let call = tokio::spawn(async move {
            session
                .during(async {
                    let mut answers = client.diff_copy(call).await?.into_inner();
                    while answers.message().await?.is_some() {}
                    Ok::<_, tonic::Status>(())
                })
                .await
        });
        Ok(FileWriter {
            sender: Some(sender),
            buffer: BytesMut::new(),
            complete: Some(complete),
            call: Some(call),
        })
    }
}

/// A file being written at the client.
///
/// Feed it with [`FileWriter::write_chunk`] from async code or as an [`io::Write`] from a blocking
/// thread, then call [`FileWriter::finish`]. Dropping it instead breaks the stream off.
pub struct FileWriter {
    sender: Option<mpsc::Sender<BytesMessage>>,
    buffer: BytesMut,
    complete: Option<tokio::sync::oneshot::Sender<()>>,
    call: Option<JoinHandle<Result<(), SessionError>>>,
}

impl FileWriter {
    /// Sends bytes, in messages the client accepts. Once the client has said that it needs nothing
    /// more, further bytes are dropped; [`FileWriter::finish`] tells.
    pub async fn write_chunk(&mut self, data: Bytes) -> Result<(), SessionError> {
        let pending = self.buffer.split().freeze();
        for mut part in [pending, data] {
            while !part.is_empty() {
                let data = part.split_to(part.len().min(OUTPUT_CHUNK));
                let Some(sender) = &self.sender else { return Ok(()) };
                if sender.send(BytesMessage { data }).await.is_err() {
                    // The call is over; its outcome is told once, at the end.
                    self.sender = None;
                }
            }
        }
        Ok(())
    }

    /// Ends the file and waits until the client has closed it.
    pub async fn finish(mut self) -> Result<OutputEnd, SessionError> {
        self.write_chunk(Bytes::new()).await?;
        let complete = self.sender.take().is_some();
        if let Some(tell) = self.complete.take() {
            _ = tell.send(());
        }
        let call = self.call.take().expect("the call is taken only here");
        match call.await {
            Ok(Ok(())) if complete => Ok(OutputEnd::Written),
            Ok(Ok(())) => Err(SessionError::BadAnswer {
                call: "FileSend/DiffCopy",
                why: "the file was closed before all of it was sent".to_owned(),
            }),
            Ok(Err(error)) if error.code() == Some(Code::AlreadyExists) => {
                Ok(OutputEnd::AlreadyExists)
            }
            Ok(Err(error)) => Err(error),
            Err(error) => Err(SessionError::Transfer(TransferError::Worker(error.to_string()))),
        }
    }

    /// Whether the client already ended the call, so that more bytes are pointless.
    pub fn is_over(&self) -> bool {
        self.sender.as_ref().is_none_or(mpsc::Sender::is_closed)
    }

    fn send_buffer(&mut self) {
        while !self.buffer.is_empty() {
            let data = self.buffer.split_to(self.buffer.len().min(OUTPUT_CHUNK)).freeze();
            let Some(sender) = &self.sender else { return };
            if sender.blocking_send(BytesMessage { data }).is_err() {
                self.sender = None;
            }
        }
    }
}

/// For blocking threads only; panics inside an async task.
impl io::Write for FileWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let length = bytes.len().min(OUTPUT_CHUNK);
        self.buffer.extend_from_slice(&bytes[..length]);
        if self.buffer.len() >= WRITE_BUFFER {
            self.send_buffer();
        }
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.send_buffer();
        Ok(())
    }
}

impl Drop for FileWriter {
    fn drop(&mut self) {
        if let Some(call) = self.call.take() {
            call.abort();
        }
    }
}
