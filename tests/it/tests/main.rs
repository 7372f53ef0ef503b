//! The whole system: real daemon, real containers, real readers, real faults.

mod builds;
mod caches;
mod faults;
mod readers;
mod wire;
