//! The launcher.
use std::io;

/// A running launcher. Clones share it; it ends, and all containers with it, when the last is dropped.
#[derive(Debug, Clone)]
pub struct Launcher {}

/// Starts the launcher: the running program again, with a hidden argument. To be called early,
/// before the daemon is big; [`main_if_requested`] must be the first thing its `main` does.
pub fn spawn() -> io::Result<Launcher> {
    unreachable!("not built yet")
}

/// Becomes the launcher, never to return, when the process was started as one. Call it first in
/// `main`, before threads, arguments and logging.
pub fn main_if_requested() {}
