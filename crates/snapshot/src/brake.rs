//! Stops writing when the store must not grow any more.
//!
//! Writers of this process (copying, unpacking) ask before each piece of content; those of others
//! (steps) are stopped by whoever runs them. Set and taken back by whoever watches the disk; once
//! set, everybody who still writes fails as on a full disk.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

/// Shared by a driver and all its trees. The default one is never set.
#[derive(Debug, Clone, Default)]
pub struct Brake(Arc<AtomicBool>);

impl Brake {
    /// Stops writers, or lets them go on.
    pub fn set(&self, stop: bool) {
        self.0.store(stop, Ordering::Relaxed);
    }

    /// Whether writers are to stop.
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// An error as of a full disk while it is set.
    pub fn check(&self) -> io::Result<()> {
        match self.is_set() {
            true => Err(io::Error::from_raw_os_error(rustix::io::Errno::NOSPC.raw_os_error())),
            false => Ok(()),
        }
    }
}
