//! Whether anybody uses the daemon, and whether it is about to end.

use std::{sync::Arc, time::Duration};

use tokio::sync::watch;

/// Counts what goes on; shared by all services.
pub struct Idle {
    busy: watch::Sender<usize>,
    stopping: watch::Sender<bool>,
}

/// Something going on; dropping it is its end.
pub struct Busy(Arc<Idle>);

impl Idle {
    /// Nothing goes on.
    pub fn new() -> Arc<Self> {
        Arc::new(Self { busy: watch::Sender::new(0), stopping: watch::Sender::new(false) })
    }

    /// Something begins.
    pub fn busy(self: &Arc<Self>) -> Busy {
        self.busy.send_modify(|count| *count += 1);
        Busy(self.clone())
    }

    /// Tells that the daemon ends.
    pub fn stop(&self) {
        self.stopping.send_replace(true);
    }

    /// Changes to true when the daemon ends.
    pub fn stopping(&self) -> watch::Receiver<bool> {
        self.stopping.subscribe()
    }

    /// Returns once nothing went on for `quiet`; `also_busy` is asked too.
    pub async fn wait(&self, quiet: Duration, also_busy: impl Fn() -> bool) {
        let mut busy = self.busy.subscribe();
        loop {
            if busy.wait_for(|count| *count == 0).await.is_err() {
                return;
            }
            let woken = tokio::time::timeout(quiet, busy.wait_for(|count| *count > 0)).await;
            if woken.is_err() && !also_busy() {
                return;
            }
        }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.busy.send_modify(|count| *count -= 1);
    }
}
