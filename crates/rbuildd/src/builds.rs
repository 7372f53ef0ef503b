//! The builds that run: how many, since when, and how those before them ended.
//!
//! A build is entered when its request comes and leaves with its answer. A daemon that ends takes
//! no more builds and lets those that run finish: their clients still make calls meanwhile, so
//! listening goes on until the last one left.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use tokio::sync::watch;
use tonic::{Code, Status};

/// All builds of this daemon.
pub struct Builds {
    running: Mutex<BTreeMap<u64, (String, Instant)>>,
    count: watch::Sender<usize>,
    next: AtomicU64,
    draining: watch::Sender<bool>,
    ended: Mutex<Ended>,
}

/// How builds ended.
#[derive(Debug, Clone, Copy, Default)]
pub struct Ended {
    /// With a result.
    pub succeeded: u64,
    /// With an error.
    pub failed: u64,
    /// Because nobody waited any more, or the daemon ended.
    pub cancelled: u64,
    /// Seconds that all of them took together.
    pub seconds: f64,
}

/// A build that runs; dropping it without an outcome is a cancellation.
pub struct Running {
    builds: Arc<Builds>,
    number: u64,
    outcome: Option<Code>,
}

impl Builds {
    /// None yet.
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            running: Mutex::default(),
            count: watch::Sender::new(0),
            next: AtomicU64::new(0),
            draining: watch::Sender::new(false),
            ended: Mutex::default(),
        })
    }

    /// Enters a build; refused while the daemon ends.
    pub fn enter(self: &Arc<Self>, reference: &str) -> Result<Running, Status> {
        if *self.draining.borrow() {
            return Err(Status::unavailable("the daemon is ending and takes no more builds"));
        }
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let mut running = self.running.lock().expect("no panic while counting builds");
        running.insert(number, (reference.to_owned(), Instant::now()));
        self.count.send_replace(running.len());
        drop(running);
        Ok(Running { builds: self.clone(), number, outcome: None })
    }

    /// Takes no more builds and waits until none runs.
    pub async fn drain(&self) {
        self.draining.send_replace(true);
        let mut count = self.count.subscribe();
        _ = count.wait_for(|count| *count == 0).await;
    }

    /// The builds that run, oldest first, with their age in seconds.
    pub fn running(&self) -> Vec<(String, f64)> {
        let running = self.running.lock().expect("no panic while counting builds");
        let running = running.values();
        running.map(|(name, since)| (name.clone(), since.elapsed().as_secs_f64())).collect()
    }

    /// How those before them ended.
    pub fn ended(&self) -> Ended {
        *self.ended.lock().expect("no panic while counting builds")
    }
}

impl Running {
    /// The build has an answer.
    pub fn end<T>(mut self, answer: &Result<T, Status>) {
        self.outcome = Some(answer.as_ref().err().map_or(Code::Ok, Status::code));
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let mut running = self.builds.running.lock().expect("no panic while counting builds");
        let since = running.remove(&self.number).map(|(_, since)| since);
        self.builds.count.send_replace(running.len());
        drop(running);
        let mut ended = self.builds.ended.lock().expect("no panic while counting builds");
        ended.seconds += since.map_or(0.0, |since| since.elapsed().as_secs_f64());
        match self.outcome {
            Some(Code::Ok) => ended.succeeded += 1,
            None | Some(Code::Cancelled) => ended.cancelled += 1,
            Some(_) => ended.failed += 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn drains() {
        let builds = Builds::new();
        let first = builds.enter("first").unwrap();
        let second = builds.enter("second").unwrap();
        assert_eq!(builds.running().len(), 2);
        let draining = tokio::spawn({
            let builds = builds.clone();
            async move { builds.drain().await }
        });
        tokio::task::yield_now().await;
        let refused = builds.enter("third").err().map(|status| status.code());
        assert_eq!(refused, Some(Code::Unavailable));
        first.end(&Ok(()));
        assert!(!draining.is_finished());
        drop(second);
        draining.await.unwrap();
        let ended = builds.ended();
        assert_eq!((ended.succeeded, ended.failed, ended.cancelled), (1, 0, 1));
    }
}
