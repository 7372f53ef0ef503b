//! A response's body on its way to the step, digested while it passes.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use base::digest::Hasher;
use bytes::Bytes;
use http::{Method, StatusCode};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;

use crate::record::Recorder;

/// What is written down once the body is over.
pub(crate) struct Note {
    pub recorder: Arc<Recorder>,
    pub method: Method,
    pub url: String,
    pub status: StatusCode,
    /// The step asked for a part.
    pub partial: bool,
}

impl Note {
    /// Why the content of this answer is not that of its address.
    fn reason(&self, whole: bool) -> Option<&'static str> {
        if self.method != Method::GET {
            Some("method_not_materializable")
        } else if self.partial || self.status == StatusCode::PARTIAL_CONTENT {
            Some("partial_response")
        } else if !whole {
            Some("body_read_failed")
        } else if self.status.as_u16() >= 400 {
            Some("unsuccessful_response")
        } else {
            None
        }
    }
}

/// See the module. Noted exactly once: at the end, at an error, or when dropped before.
pub(crate) struct Digested {
    inner: Incoming,
    passing: Option<(Hasher, Note)>,
}

impl Digested {
    pub(crate) fn new(inner: Incoming, note: Note) -> Self {
        let mut body = Self { inner, passing: Some((Hasher::new(), note)) };
        body.settle_if_over();
        body
    }

    /// Nobody asks for the end of a body whose length was told.
    fn settle_if_over(&mut self) {
        if self.inner.is_end_stream() {
            self.settle(true);
        }
    }

    fn settle(&mut self, whole: bool) {
        let Some((hash, note)) = self.passing.take() else { return };
        match note.reason(whole) {
            Some(reason) => note.recorder.incomplete(&note.method, &note.url, reason),
            None if note.status.is_success() => {
                note.recorder.material(&note.url, hash.finish());
            }
            None => {}
        }
    }
}

impl Body for Digested {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = ready!(Pin::new(&mut self.inner).poll_frame(context));
        match &frame {
            Some(Ok(frame)) => {
                if let (Some(data), Some((hash, _))) = (frame.data_ref(), &mut self.passing) {
                    hash.update(data);
                }
                self.settle_if_over();
            }
            Some(Err(_)) => self.settle(false),
            None => self.settle(true),
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

impl Drop for Digested {
    fn drop(&mut self) {
        // A body of an answer to HEAD, and the like, is never looked at.
        let whole = self.inner.is_end_stream();
        self.settle(whole);
    }
}
