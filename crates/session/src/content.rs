//! A content store at the client: local caches, OCI layouts as input, OCI layouts as output.

use std::{collections::BTreeMap, io};

use base::Digest;
use bytes::{Bytes, BytesMut};
use futures_util::{Stream, StreamExt as _, stream::BoxStream};
use proto::containerd::services::content::v1::{
    InfoRequest, ReadContentRequest, WriteAction, WriteContentRequest, WriteContentResponse,
    content_client::ContentClient,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Status, Streaming, transport::Channel};

use crate::{Session, SessionError, header, session::MESSAGE_LIMIT};

pub(crate) const KEY_STORE: &str = "buildkit-attachable-store-id";
/// Bytes in one write message.
const CHUNK: usize = 1 << 20;

/// One of the client's content stores.
#[derive(Clone)]
pub struct RemoteContent {
    session: Session,
    store: String,
}

/// What the client knows about a blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContentInfo {
    /// Its digest.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// Labels.
    pub labels: BTreeMap<String, String>,
}

/// How a write ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WriteOutcome {
    /// The client took the blob.
    Written,
    /// The client had it already.
    AlreadyExists,
}

impl Session {
    /// A content store of the client, e.g. `oci:<name>`, `local:<path>` or `export`.
    pub fn content(&self, store: impl Into<String>) -> RemoteContent {
        RemoteContent { session: self.clone(), store: store.into() }
    }
}

impl RemoteContent {
    /// The session it belongs to.
    pub fn session(&self) -> &Session {
        &self.session
    }

    fn client(&self) -> ContentClient<Channel> {
        ContentClient::new(self.session.channel()).max_decoding_message_size(MESSAGE_LIMIT)
    }

    fn request<T>(&self, message: T) -> Result<Request<T>, SessionError> {
        let mut request = Request::new(message);
        request.metadata_mut().insert(KEY_STORE, header::ascii(KEY_STORE, &self.store)?);
        Ok(request)
    }

    /// Size and labels of a blob; `None` if the store does not have it.
    pub async fn info(&self, digest: &Digest) -> Result<Option<ContentInfo>, SessionError> {
        let request = self.request(InfoRequest { digest: digest.to_string() })?;
        let answer = match self.session.during(self.client().info(request)).await {
            Ok(answer) => answer.into_inner().info.unwrap_or_default(),
            // An unknown store is not found either; only the blob's absence is an answer.
            Err(error)
                if error.code() == Some(Code::NotFound)
                    && !error.to_string().contains("unknown store") =>
            {
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        let bad = |why: String| SessionError::BadAnswer { call: "Content/Info", why };
        Ok(Some(ContentInfo {
            digest: answer.digest.parse().map_err(|error| bad(format!("{error}")))?,
            size: u64::try_from(answer.size).map_err(|_| bad("negative size".to_owned()))?,
            labels: answer.labels,
        }))
    }

    /// Bytes of a blob from `offset` on, `size` of them or all. The caller verifies the digest.
    pub async fn read(
        &self,
        digest: &Digest,
        offset: u64,
        size: Option<u64>,
    ) -> Result<BoxStream<'static, Result<Bytes, SessionError>>, SessionError> {
        let number = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        let request = self.request(ReadContentRequest {
            digest: digest.to_string(),
            offset: number(offset),
            size: size.map_or(0, number),
        })?;
        let messages = self.session.during(self.client().read(request)).await?.into_inner();
        let session = self.session.clone();
        let ended = {
            let session = session.clone();
            async move { session.ended().await }
        };
        let lost = futures_util::stream::once(ended)
            .map(move |()| Err(SessionError::Ended { id: session.id().to_owned() }));
        let reader = self.session.clone();
        let data = messages.map(move |message| match message {
            Ok(message) => Some(Ok(message.data)),
            // A broken tunnel shows up as some transport error; the reason is the session.
            Err(_) if reader.is_ended() => {
                Some(Err(SessionError::Ended { id: reader.id().to_owned() }))
            }
            Err(status) => Some(Err(status.into())),
        });
        let data = data.chain(futures_util::stream::once(async { None }));
        // Whichever comes first: the blob's end, or the session's.
        let both = futures_util::stream::select(data, lost.map(Some));
        Ok(Box::pin(
            both.take_while(|item| std::future::ready(item.is_some()))
                .filter_map(std::future::ready),
        ))
    }

    /// A whole small blob; more than `limit` bytes is an error. Not verified.
    pub async fn read_all(&self, digest: &Digest, limit: usize) -> Result<Bytes, SessionError> {
        let mut stream = self.read(digest, 0, None).await?;
        let mut all = BytesMut::new();
        while let Some(chunk) = stream.next().await {
            all.extend_from_slice(&chunk?);
            if all.len() > limit {
                return Err(SessionError::BadAnswer {
                    call: "Content/Read",
                    why: format!("blob {digest} is larger than {limit} bytes"),
                });
            }
        }
        Ok(all.freeze())
    }

    /// Writes a blob of known digest and size; `data` is not read when the client has it already.
    pub async fn write(
        &self,
        digest: &Digest,
        size: u64,
        labels: BTreeMap<String, String>,
        data: impl Stream<Item = io::Result<Bytes>> + Send,
    ) -> Result<WriteOutcome, SessionError> {
        let work = self.write_inner(digest, size, labels, data);
        match self.session.during(work).await {
            Err(error) if error.code() == Some(Code::AlreadyExists) => {
                Ok(WriteOutcome::AlreadyExists)
            }
            other => other,
        }
    }

    async fn write_inner(
        &self,
        digest: &Digest,
        size: u64,
        labels: BTreeMap<String, String>,
        data: impl Stream<Item = io::Result<Bytes>> + Send,
    ) -> Result<WriteOutcome, SessionError> {
        let total = i64::try_from(size).unwrap_or(i64::MAX);
        let message = |action: WriteAction, offset: i64, data: Bytes| WriteContentRequest {
            action: action.into(),
            r#ref: format!("push-{digest}"),
            total,
            expected: digest.to_string(),
            offset,
            data,
            labels: BTreeMap::new(),
        };
        let (sender, receiver) = mpsc::channel(4);
        let send = async |message| sender.send(message).await.map_err(|_| ());
        _ = send(message(WriteAction::Stat, 0, Bytes::new())).await;
        let call = self.request(ReceiverStream::new(receiver))?;
        let mut answers = self.client().write(call).await?.into_inner();
        let start = next(&mut answers).await?.offset;
        if start < 0 || start > total {
            return Err(SessionError::BadAnswer {
                call: "Content/Write",
                why: format!("offset {start} of a blob of {size} bytes"),
            });
        }

        // Answers are read while data is sent, so that an early refusal is seen.
        let pump = async {
            let mut position = 0i64;
            let mut data = std::pin::pin!(data);
            while let Some(chunk) = data.next().await {
                let mut chunk = chunk.map_err(|source| SessionError::Io {
                    doing: format!("read blob {digest} for the client"),
                    source,
                })?;
                // The part the client kept from an earlier try.
                let known = (start - position).clamp(0, chunk.len() as i64);
                position += known;
                _ = chunk.split_to(known as usize);
                while !chunk.is_empty() {
                    let part = chunk.split_to(chunk.len().min(CHUNK));
                    let length = part.len() as i64;
                    if send(message(WriteAction::Write, position, part)).await.is_err() {
                        return Ok(false);
                    }
                    position += length;
                }
            }
            let mut commit = message(WriteAction::Commit, position, Bytes::new());
            commit.labels = labels;
            Ok::<_, SessionError>(send(commit).await.is_ok())
        };
        let drain = async {
            loop {
                let answer = next(&mut answers).await?;
                if answer.action == i32::from(WriteAction::Commit) {
                    return Ok::<_, SessionError>(());
                }
            }
        };
        let mut pump = std::pin::pin!(pump);
        let mut drain = std::pin::pin!(drain);
        tokio::select! {
            pumped = &mut pump => {
                pumped?;
                drain.await?;
            }
            drained = &mut drain => {
                drained?;
            }
        }
        Ok(WriteOutcome::Written)
    }
}

async fn next(
    answers: &mut Streaming<WriteContentResponse>,
) -> Result<WriteContentResponse, SessionError> {
    match answers.message().await? {
        Some(answer) => Ok(answer),
        None => Err(Status::unavailable("content write stream ended early").into()),
    }
}
