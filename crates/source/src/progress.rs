//! Progress of the parts of a source: transfers, layers.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant, SystemTime},
};

use store::{LayerProgress, LayerStage};

/// State of one part; a later status with the same id replaces it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Status {
    /// Names the part within its vertex.
    pub id: String,
    /// What is shown; the id if empty.
    pub name: String,
    /// Bytes done.
    pub current: u64,
    /// Bytes to do; 0 if unknown.
    pub total: u64,
    /// When it began.
    pub started: Option<SystemTime>,
    /// When it ended.
    pub completed: Option<SystemTime>,
}

/// Where progress goes; clones share it.
#[derive(Clone)]
pub struct Progress(Arc<dyn Fn(Status) + Send + Sync>);

impl Progress {
    /// Calls `tell`, which hands the status on and returns.
    pub fn new(tell: impl Fn(Status) + Send + Sync + 'static) -> Self {
        Self(Arc::new(tell))
    }

    /// Tells nobody.
    pub fn silent() -> Self {
        Self::new(|_| {})
    }

    /// Tells the state of a part.
    pub fn status(&self, status: Status) {
        (self.0)(status);
    }
}

/// Updates of a transfer are told this often at most.
const PAUSE: Duration = Duration::from_millis(100);

/// Shows layers being fetched and unpacked, each under its digest.
pub fn layer_progress(progress: Progress) -> LayerProgress {
    struct Layer {
        started: SystemTime,
        told: Instant,
        stage: u8,
    }
    let layers: Mutex<HashMap<String, Layer>> = Mutex::default();
    Arc::new(move |descriptor, stage| {
        let id = descriptor.digest.to_string();
        let number = match stage {
            LayerStage::Waiting => 0,
            LayerStage::Downloading { .. } => 1,
            LayerStage::Extracting => 2,
            LayerStage::Done => 3,
        };
        let mut layers = layers.lock().expect("no panic while holding layer progress");
        let now = Instant::now();
        let is_new = !layers.contains_key(&id);
        let layer = layers.entry(id.clone()).or_insert_with(|| Layer {
            started: SystemTime::now(),
            told: now,
            stage: number,
        });
        if !is_new && layer.stage == number && now.duration_since(layer.told) < PAUSE {
            return;
        }
        (layer.told, layer.stage) = (now, number);
        let started = Some(layer.started);
        let status = |id: String, current, total, completed| Status {
            id,
            current,
            total,
            started,
            completed,
            ..Status::default()
        };
        match stage {
            LayerStage::Waiting => {}
            LayerStage::Downloading { current, total } => {
                progress.status(status(id, current, total, None))
            }
            LayerStage::Extracting => {
                let size = descriptor.size;
                progress.status(status(id.clone(), size, size, Some(SystemTime::now())));
                progress.status(status(format!("extracting {id}"), 0, 0, None));
            }
            LayerStage::Done => {
                progress.status(status(format!("extracting {id}"), 0, 0, Some(SystemTime::now())))
            }
        }
    })
}
