//! Stops writing when the store must not grow any more.
//!
//! Writers of this process (copying, unpacking) ask before each piece of content; those of others
//! (steps) are stopped by whoever runs them. Whoever watches the disk lets them wait while room is
//! made, and fail as on a full disk if there is none. Invariant: who sets [`Pedal::Wait`] sets
//! something else soon.

use std::{
    io,
    sync::{
        Arc, Condvar, Mutex, MutexGuard,
        atomic::{AtomicU8, Ordering},
    },
    task::{Context, Poll, Waker},
};

/// Shared by a driver and all its trees. The default one lets all pass, for ever.
#[derive(Debug, Clone, Default)]
pub struct Brake(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    pedal: AtomicU8,
    changed: Condvar,
    waiting: Mutex<Vec<Waker>>,
}

/// What writers are to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pedal {
    /// Go on.
    Go,
    /// Wait until this is over.
    Wait,
    /// Fail as on a full disk.
    Fail,
}

impl Brake {
    /// Tells writers what to do from now on.
    pub fn set(&self, pedal: Pedal) {
        let mut waiting = self.waiting();
        self.0.pedal.store(pedal as u8, Ordering::SeqCst);
        if pedal != Pedal::Wait {
            waiting.drain(..).for_each(Waker::wake);
            self.0.changed.notify_all();
        }
    }

    /// What writers do now.
    pub fn get(&self) -> Pedal {
        match self.0.pedal.load(Ordering::SeqCst) {
            0 => Pedal::Go,
            1 => Pedal::Wait,
            _ => Pedal::Fail,
        }
    }

    /// Waits as long as writers have to, then gives an error as of a full disk if they have to fail.
    pub fn check(&self) -> io::Result<()> {
        if self.get() == Pedal::Wait {
            let mut waiting = self.waiting();
            while self.get() == Pedal::Wait {
                waiting = self.0.changed.wait(waiting).expect("no panic while the lock is held");
            }
        }
        self.now()
    }

    /// As [`Brake::check`], without blocking the thread.
    pub fn poll(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.get() == Pedal::Wait {
            let mut waiting = self.waiting();
            if self.get() == Pedal::Wait {
                waiting.push(context.waker().clone());
                return Poll::Pending;
            }
        }
        Poll::Ready(self.now())
    }

    fn now(&self) -> io::Result<()> {
        match self.get() {
            Pedal::Fail => {
                Err(io::Error::from_raw_os_error(rustix::io::Errno::NOSPC.raw_os_error()))
            }
            Pedal::Go | Pedal::Wait => Ok(()),
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Vec<Waker>> {
        self.0.waiting.lock().expect("no panic while the lock is held")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writers_wait_and_then_go_on_or_fail() {
        let brake = Brake::default();
        brake.check().unwrap();
        for (pedal, fails) in [(Pedal::Go, false), (Pedal::Fail, true)] {
            brake.set(Pedal::Wait);
            let mut context = Context::from_waker(Waker::noop());
            assert!(brake.poll(&mut context).is_pending());
            let writer = std::thread::spawn({
                let brake = brake.clone();
                move || brake.check()
            });
            brake.set(pedal);
            let result = writer.join().unwrap();
            assert_eq!(result.is_err(), fails);
            assert!(brake.poll(&mut context).is_ready());
        }
        let full = brake.check().unwrap_err();
        assert_eq!(full.kind(), io::ErrorKind::StorageFull);
    }
}
