//! Streams a client uploads on request, such as a build context piped to its standard input.

use bytes::Bytes;
use futures_util::{StreamExt as _, stream::BoxStream};
use proto::moby::upload::v1::{BytesMessage, upload_client::UploadClient};
use tonic::Request;

use crate::{Session, SessionError, header, session::MESSAGE_LIMIT};

/// The host that stands for the client in addresses of HTTP sources.
pub(crate) const UPLOAD_HOST: &str = "buildkit-session";

impl Session {
    /// Reads the upload at `path` (begins with `/`). Each can be read once.
    pub async fn upload(
        &self,
        path: &str,
    ) -> Result<BoxStream<'static, Result<Bytes, SessionError>>, SessionError> {
        // The stream stays open while we read: clients take its end for a cancellation.
        let (hold, nothing) = tokio::sync::mpsc::channel::<BytesMessage>(1);
        let mut call = Request::new(tokio_stream::wrappers::ReceiverStream::new(nothing));
        let metadata = call.metadata_mut();
        metadata.insert("urlpath", header::ascii("urlpath", path)?);
        metadata.insert("urlhost", header::ascii("urlhost", UPLOAD_HOST)?);
        let mut client = UploadClient::new(self.channel()).max_decoding_message_size(MESSAGE_LIMIT);
        let messages = self.during(client.pull(call)).await?.into_inner();
        let session = self.clone();
        let state = (messages, session, Some(hold));
        Ok(Box::pin(
            futures_util::stream::unfold(state, |(mut messages, session, hold)| async {
                hold.as_ref()?;
                match session.during(messages.message()).await {
                    Ok(Some(message)) => Some((Ok(message.data), (messages, session, hold))),
                    Ok(None) => None,
                    Err(error) => Some((Err(error), (messages, session, None))),
                }
            })
            .filter(|item| std::future::ready(!matches!(item, Ok(data) if data.is_empty()))),
        ))
    }
}
