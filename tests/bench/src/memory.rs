//! A daemon's resident memory, children included.

use std::{
    os::unix::net::UnixStream,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use anyhow::{Context as _, bail};
use client::Address;

/// Time between two looks of a [`Watch`].
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Follows a process from now on.
pub struct Watch {
    over: Arc<AtomicBool>,
    thread: JoinHandle<u64>,
}

impl Watch {
    /// Starts looking, if the process is known.
    pub fn start(pid: Option<i32>) -> Option<Self> {
        let pid = pid?;
        let over = Arc::new(AtomicBool::new(false));
        let seen = over.clone();
        let thread = std::thread::spawn(move || {
            let mut peak = 0;
            loop {
                peak = resident(pid).unwrap_or(0).max(peak);
                if seen.load(Ordering::Relaxed) {
                    return peak;
                }
                std::thread::sleep(LOOK_EVERY);
            }
        });
        Some(Self { over, thread })
    }

    /// The highest amount seen.
    pub fn peak(self) -> u64 {
        self.over.store(true, Ordering::Relaxed);
        self.thread.join().unwrap_or(0)
    }
}

/// The process that listens on a Unix socket.
pub fn daemon_of(address: &Address) -> anyhow::Result<i32> {
    let Address::Unix(path) = address else {
        bail!("memory of {address}: give its --pid");
    };
    let stream = UnixStream::connect(path)?;
    let peer = rustix::net::sockopt::socket_peercred(&stream)?;
    Ok(peer.pid.as_raw_nonzero().get())
}

/// Resident bytes of `pid` and everything below it.
pub fn resident(pid: i32) -> anyhow::Result<u64> {
    let mut total = own(pid)?;
    for entry in std::fs::read_dir(format!("/proc/{pid}/task"))?.flatten() {
        let children = std::fs::read_to_string(entry.path().join("children")).unwrap_or_default();
        for child in children.split_whitespace() {
            // A child may have ended meanwhile.
            total += child.parse().ok().and_then(|child| resident(child).ok()).unwrap_or(0);
        }
    }
    Ok(total)
}

fn own(pid: i32) -> anyhow::Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    Ok(kib.with_context(|| format!("process {pid} has no resident memory"))? << 10)
}
