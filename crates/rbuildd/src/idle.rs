//! Whether anybody uses the daemon, and whether it is about to end.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use tokio::sync::watch;

/// Counts what goes on; shared by all services.
pub struct Idle {
    busy: watch::Sender<usize>,
    stopping: watch::Sender<bool>,
    /// When each work that goes on began.
    works: Mutex<Vec<Instant>>,
}

/// Something going on; dropping it is its end.
pub struct Busy {
    idle: Arc<Idle>,
    work: Option<Instant>,
}

impl Idle {
    /// Nothing goes on.
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            busy: watch::Sender::new(0),
            stopping: watch::Sender::new(false),
            works: Mutex::default(),
        })
    }

    /// Something begins.
    pub fn busy(self: &Arc<Self>) -> Busy {
        self.begin(None)
    }

    /// Something begins that may bring content of which the store hears later whose it is.
    pub fn work(self: &Arc<Self>) -> Busy {
        let begun = Instant::now();
        self.works.lock().unwrap().push(begun);
        self.begin(Some(begun))
    }

    fn begin(self: &Arc<Self>, work: Option<Instant>) -> Busy {
        self.busy.send_modify(|count| *count += 1);
        Busy { idle: self.clone(), work }
    }

    /// How long the oldest work goes on; zero when there is none.
    pub fn working_for(&self) -> Duration {
        let works = self.works.lock().unwrap();
        works.iter().min().map_or(Duration::ZERO, Instant::elapsed)
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
        if let Some(begun) = self.work {
            let mut works = self.idle.works.lock().unwrap();
            if let Some(at) = works.iter().position(|work| *work == begun) {
                works.swap_remove(at);
            }
        }
        self.idle.busy.send_modify(|count| *count -= 1);
    }
}
