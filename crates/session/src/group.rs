//! The sessions interested in one step, tried in turn.

use std::sync::Arc;

use bytes::Bytes;

use crate::{Session, SessionError, Sessions};

/// A list of session ids that may grow while a build runs; clones share the list.
#[derive(Clone)]
pub struct Group {
    sessions: Sessions,
    ids: Arc<dyn Fn() -> Vec<String> + Send + Sync>,
}

impl Group {
    pub(crate) fn new(sessions: Sessions, ids: Arc<dyn Fn() -> Vec<String> + Send + Sync>) -> Self {
        Self { sessions, ids }
    }

    /// The ids as they are now, in order.
    pub fn ids(&self) -> Vec<String> {
        (self.ids)()
    }

    /// The registry the ids are looked up in.
    pub fn sessions(&self) -> &Sessions {
        &self.sessions
    }

    /// Calls `call` with one session after another until one succeeds. The last error is returned
    /// when none does; a look-up that times out counts as an error and the next one is tried.
    pub async fn any<T, E, F, R>(&self, mut call: F) -> Result<T, E>
    where
        F: FnMut(Session) -> R,
        R: Future<Output = Result<T, E>>,
        E: From<SessionError>,
    {
        let mut last = None;
        for id in self.ids() {
            if id.is_empty() {
                continue;
            }
            let failed = match self.sessions.get(&id).await {
                Ok(session) => match call(session).await {
                    Ok(value) => return Ok(value),
                    Err(error) => error,
                },
                Err(error) => error.into(),
            };
            last = Some(failed);
        }
        Err(last.unwrap_or_else(|| SessionError::NoSessions.into()))
    }

    /// A secret of any session: `None` if no session has it.
    pub async fn secret(&self, id: &str) -> Result<Option<Bytes>, SessionError> {
        let mut last = None;
        let mut asked = false;
        for session_id in self.ids().into_iter().filter(|id| !id.is_empty()) {
            let answer = match self.sessions.get(&session_id).await {
                Ok(session) => session.secret(id).await,
                Err(error) => Err(error),
            };
            match answer {
                Ok(Some(data)) => return Ok(Some(data)),
                Ok(None) => asked = true,
                Err(error) => last = Some(error),
            }
        }
        match last {
            Some(error) if !asked => Err(error),
            None if !asked => Err(SessionError::NoSessions),
            _ => Ok(None),
        }
    }
}
