//! `logs`: a container's output as lines, cut by number and time.

use std::{
    io,
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use engine::run::{Container, Piece};
use proto::rbuild::v1 as wire;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::{
    idle::Busy,
    pipe::{Answers, Owning},
};

/// What is shown of each piece.
struct Shown {
    since: Option<SystemTime>,
    until: Option<SystemTime>,
    timestamps: bool,
    /// By stream: the next byte begins a line.
    at_start: [bool; 3],
}

fn time(at: &Option<prost_types::Timestamp>) -> Option<SystemTime> {
    let at = at.as_ref()?;
    let nanos = at.seconds.saturating_mul(1_000_000_000).saturating_add(i64::from(at.nanos));
    Some(base::time::from_unix_nanos(nanos))
}

impl Shown {
    fn is_past(&self, piece: &Piece) -> bool {
        self.until.is_some_and(|until| piece.at > until)
    }

    fn of(&mut self, piece: &Piece) -> Bytes {
        if self.since.is_some_and(|since| piece.at < since) {
            return Bytes::new();
        }
        if !self.timestamps {
            return piece.data.clone();
        }
        let at = base::time::rfc3339_nano(piece.at);
        let fresh = &mut self.at_start[usize::from(piece.stream.min(2))];
        let mut shown = Vec::with_capacity(piece.data.len() + at.len() + 1);
        for line in piece.data.split_inclusive(|byte| *byte == b'\n') {
            if *fresh {
                shown.extend_from_slice(at.as_bytes());
                shown.push(b' ');
            }
            shown.extend_from_slice(line);
            *fresh = line.ends_with(b"\n");
        }
        shown.into()
    }
}

/// Answers a request; `busy` is held until the end.
pub fn stream(
    container: &Arc<Container>,
    request: &wire::LogsRequest,
    busy: Busy,
) -> io::Result<Answers<wire::AttachResponse>> {
    let mut output = container.output(true)?;
    if let Some(lines) = request.tail {
        output.tail(lines)?;
    }
    let mut shown = Shown {
        since: time(&request.since),
        until: time(&request.until),
        timestamps: request.timestamps,
        at_start: [true; 3],
    };
    let follow = request.follow;
    let (sender, receiver) = mpsc::channel(16);
    let until = shown.until.filter(|_| follow);
    let task = tokio::spawn(async move {
        let _busy = busy;
        loop {
            let next = match until {
                None => output.next(follow).await,
                Some(until) => {
                    let left = until.duration_since(SystemTime::now()).unwrap_or(Duration::ZERO);
                    match tokio::time::timeout(left, output.next(follow)).await {
                        Ok(next) => next,
                        Err(_) => output.next(false).await,
                    }
                }
            };
            let answer = match next {
                Ok(None) => return,
                Ok(Some(piece)) if shown.is_past(&piece) => return,
                Ok(Some(piece)) => {
                    let data = shown.of(&piece);
                    if data.is_empty() {
                        continue;
                    }
                    Ok(match piece.stream {
                        1 => wire::AttachResponse { stdout: data, ..Default::default() },
                        _ => wire::AttachResponse { stderr: data, ..Default::default() },
                    })
                }
                Err(error) => {
                    Err(tonic::Status::internal(format!("read a container's log: {error}")))
                }
            };
            let failed = answer.is_err();
            if sender.send(answer).await.is_err() || failed {
                return;
            }
        }
    });
    Ok(Box::pin(Owning::new(ReceiverStream::new(receiver), task.abort_handle())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_stamped_where_they_begin() {
        let mut shown = Shown { since: None, until: None, timestamps: true, at_start: [true; 3] };
        let mut text = |data: &'static str| {
            let at = base::time::from_unix_seconds(0);
            let piece = Piece { stream: 1, at, data: Bytes::from_static(data.as_bytes()) };
            String::from_utf8(shown.of(&piece).to_vec()).unwrap()
        };
        let at = base::time::rfc3339_nano(base::time::from_unix_seconds(0));
        assert_eq!(text("a\nb"), format!("{at} a\n{at} b"));
        assert_eq!(text("c\n"), "c\n");
        assert_eq!(text("d\n"), format!("{at} d\n"));
    }
}
