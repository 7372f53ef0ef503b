//! Who gets ready first when many builds begin at once.
//!
//! Until its first step runs, a build is a talk with its client: sessions, files, questions. Twenty
//! builds that talk side by side are all ready at the end of it, and nothing was built until then; one
//! after the other, the first is ready at once, and the others get ready while its step runs. So
//! builds come in few at a time. Invariant: nobody waits longer than [`PATIENCE`], whatever others do,
//! and nobody is in others' way longer than that.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Longer than getting ready takes, and too short to be noticed.
const PATIENCE: Duration = Duration::from_millis(50);

/// The builds that are getting ready.
pub(crate) struct Turns(Arc<Semaphore>);

/// A build's turn, until it is given up, dropped, or [`PATIENCE`] is over.
#[derive(Default)]
pub(crate) struct Turn(Arc<Mutex<Option<OwnedSemaphorePermit>>>);

impl Default for Turns {
    /// As many at a time as there are processors.
    fn default() -> Self {
        let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Self(Arc::new(Semaphore::new(processors.max(2))))
    }
}

impl Turns {
    /// Waits for a turn, or as long as it is worth.
    pub(crate) async fn wait(&self) -> Turn {
        let turn = Turn::default();
        if let Ok(Ok(place)) = tokio::time::timeout(PATIENCE, self.0.clone().acquire_owned()).await
        {
            *turn.place() = Some(place);
            let held = Arc::downgrade(&turn.0);
            tokio::spawn(async move {
                tokio::time::sleep(PATIENCE).await;
                if let Some(held) = held.upgrade() {
                    Turn(held).end();
                }
            });
        }
        turn
    }
}

impl Turn {
    fn place(&self) -> std::sync::MutexGuard<'_, Option<OwnedSemaphorePermit>> {
        self.0.lock().expect("no panic while holding a turn")
    }

    /// The build is ready, or over.
    pub(crate) fn end(&self) {
        drop(self.place().take());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_is_ready_makes_room() {
        let turns = Turns(Arc::new(Semaphore::new(2)));
        let (first, second) = (turns.wait().await, turns.wait().await);
        // Two have come in, unless a very slow machine took their time already.
        drop(second);
        first.end();
        while turns.0.available_permits() < 2 {
            tokio::task::yield_now().await;
        }
        // Who never is ready does so after a while, and nobody waits for longer.
        let held = [turns.wait().await, turns.wait().await, turns.wait().await];
        while turns.0.available_permits() < 2 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert!(held.iter().all(|turn| turn.place().is_none()));
    }
}
