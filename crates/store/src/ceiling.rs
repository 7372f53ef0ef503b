//! Keeps the store below its ceiling: who watches the disk, and who makes room.
//!
//! Three threads share the work. The *watcher* runs before everything else on the machine, looks at
//! the disk's free space (the closer to the ceiling the more often), wants all writers held when
//! little room is left, and let go on when there is room again; it never waits for anything. The
//! *holder* does that to their processes, also before everything else; control groups make it wait
//! at times. The *keeper* counts what the folder takes, collects garbage, and when nothing more can
//! go has whoever wrote most end. All end with the store.
//!
//! ```text
//!             soft          resume    hard        last      ceiling
//!   ───────────┼───────────────┼────────┼───────────┼───────────┤
//!              collect                  hold all    end those that cannot be held
//! ```

use std::{
    sync::{Arc, Weak},
    thread::{Builder, Thread},
    time::{Duration, Instant},
};

use snapshot::Pedal;

use crate::{
    Store, StoreError,
    space::{Ending, Pressure, RECOUNT, free, hard, last, soft},
};

/// A count this old is good enough far from the ceiling.
const COUNT_EVERY: Duration = Duration::from_secs(5);
/// An older count is too old to end anybody: what others wrote since then was taken for ours.
const TRUSTED: Duration = Duration::from_secs(2);
/// Faster than one processor fills a disk's page cache.
const BYTES_PER_MS: u64 = 4 << 20;
/// Shortest and longest pause between looks at the disk.
const SHORTEST: Duration = Duration::from_micros(500);
const LONGEST: Duration = Duration::from_millis(250);
/// Pause between looks while writers are held.
const HELD: Duration = Duration::from_millis(2);
/// Pause between collections that found nothing to free.
const COLLECT_AGAIN: Duration = Duration::from_millis(200);
/// How long a withdrawn room may take to end before the next one is withdrawn too.
const ENDING: Duration = Duration::from_secs(2);
/// How long writers of this process wait for room.
const PATIENCE: Duration = Duration::from_secs(5);
/// The highest priority of a thread without a right to more.
const FIRST: i32 = -20;

/// Where things happen.
#[derive(Debug, Clone, Copy)]
struct Lines {
    ceiling: u64,
    collect: u64,
    resume: u64,
    hold: u64,
    end: u64,
}

impl Lines {
    fn new(ceiling: u64) -> Self {
        let (hold, last) = (hard(ceiling), last(ceiling));
        Self {
            ceiling,
            collect: soft(ceiling),
            resume: hold - last / 4,
            hold,
            end: hold + last / 2,
        }
    }
}

/// Starts the threads for a store with a ceiling.
pub(crate) fn watch(store: &Arc<Store>) -> Result<(), StoreError> {
    let Some(ceiling) = store.ceiling() else { return Ok(()) };
    let lines = Lines::new(ceiling);
    let failed = |error| StoreError::io("start the threads that watch the ceiling", error);
    let (weak, builder) = (Arc::downgrade(store), Builder::new().name("store-keeper".into()));
    let keeper = builder.spawn(move || keep(&weak, lines)).map_err(failed)?.thread().clone();
    let (weak, builder) = (Arc::downgrade(store), Builder::new().name("store-holder".into()));
    let holder = builder.spawn(move || hold(&weak)).map_err(failed)?.thread().clone();
    let (weak, builder) = (Arc::downgrade(store), Builder::new().name("store-ceiling".into()));
    builder.spawn(move || look(&weak, lines, &holder, &keeper)).map_err(failed)?;
    Ok(())
}

// ---- the watcher ----

/// Runs this thread before those that it watches: on a busy machine they would write for longer
/// than what is kept for that lasts.
fn hurry() {
    let parameters = libc::sched_param { sched_priority: 1 };
    // SAFETY: the parameters live through the call; 0 is this thread.
    if unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const parameters) } != 0 {
        // Without the right to do either it is as good as it was.
        _ = rustix::process::setpriority_process(Some(rustix::thread::gettid()), FIRST);
    }
}

fn look(store: &Weak<Store>, lines: Lines, holder: &Thread, keeper: &Thread) {
    hurry();
    let per_ms = BYTES_PER_MS * std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
    loop {
        let Some(store) = store.upgrade() else {
            holder.unpark();
            keeper.unpark();
            return;
        };
        let free = free(store.root());
        let space = store.space();
        // Nobody works before there was a first count.
        let (used, old) = space.estimate(free).unwrap_or_default();
        if used > lines.collect {
            keeper.unpark();
        }
        let pause = match space.held() {
            None if used > lines.hold => {
                space.want_held(true);
                holder.unpark();
                store.snapshotter().brake().set(Pedal::Wait);
                SHORTEST
            }
            None => pause_before(lines.hold - used, per_ms),
            Some(_) if used <= lines.resume => {
                space.want_held(false);
                holder.unpark();
                store.snapshotter().brake().set(Pedal::Go);
                SHORTEST
            }
            Some(since) => {
                let pressure = Pressure { used, ceiling: lines.ceiling };
                if used > lines.end && old < TRUSTED {
                    space.end_unheld(pressure);
                }
                let waits = store.snapshotter().brake().get() == Pedal::Wait;
                if waits && since.elapsed() > PATIENCE && !store.is_removing() {
                    store.fail_writers();
                }
                HELD.min(pause_before(lines.end.saturating_sub(used), per_ms))
            }
        };
        drop(store);
        std::thread::sleep(pause);
    }
}

/// The next look comes when at most half of the room can be filled.
fn pause_before(room: u64, per_ms: u64) -> Duration {
    Duration::from_micros(room * 1000 / per_ms / 2).clamp(SHORTEST, LONGEST)
}

// ---- the holder ----

fn hold(store: &Weak<Store>) {
    hurry();
    let mut done = None;
    loop {
        let Some(store) = store.upgrade() else { return };
        store.space().carry_out(&mut done);
        drop(store);
        std::thread::park_timeout(LONGEST);
    }
}

// ---- the keeper ----

/// What the keeper remembers.
#[derive(Default)]
struct Keeper {
    /// When nothing could be collected.
    exhausted: Option<Instant>,
    /// Who has to end.
    ending: Option<Ending>,
}

fn keep(store: &Weak<Store>, lines: Lines) {
    let mut keeper = Keeper::default();
    loop {
        let Some(store) = store.upgrade() else { return };
        keeper.tend(&store, lines);
        drop(store);
        std::thread::park_timeout(LONGEST);
    }
}

impl Keeper {
    /// Counts if it is time to, collects if little room is left, and has somebody end if there is
    /// none and nothing is being removed.
    fn tend(&mut self, store: &Store, lines: Lines) {
        let space = store.space();
        let used = self.count(store, lines);
        let held = space.held().is_some();
        let waiting = self.exhausted.is_some_and(|at| at.elapsed() < COLLECT_AGAIN);
        if used > lines.collect && (held || !waiting) {
            let found = store.collect_below_blocking(lines.collect);
            self.exhausted = (!found).then(Instant::now);
            if found {
                return;
            }
        }
        if !held || self.ending.as_ref().is_some_and(|ending| ending.goes_on(ENDING)) {
            return;
        }
        // All are held, or as good as held: this is exact.
        let used = store.measure();
        if used <= lines.hold {
            // Whoever writes on will be held again, and then it is clear who.
            space.want_held(false);
            return store.snapshotter().brake().set(Pedal::Go);
        }
        if store.is_removing() {
            // There will be room without ending anybody.
            return store.wait_removed();
        }
        let pressure = Pressure { used, ceiling: lines.ceiling };
        self.ending = store.withdraw(pressure);
        if self.ending.is_none() {
            // What writes belongs to no room.
            store.fail_writers();
        }
    }

    fn count(&self, store: &Store, lines: Lines) -> u64 {
        let fresh = |used: u64| if used < lines.collect { COUNT_EVERY } else { RECOUNT };
        let known = store.space().exact(free(store.root()), fresh);
        known.unwrap_or_else(|| store.measure())
    }
}
