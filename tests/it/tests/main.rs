//! The whole system: real daemon, real containers, real readers, real faults.

mod builds;
mod cachekeys;
mod caches;
mod commands;
mod daily;
mod dockerfiles;
mod emulation;
mod faults;
mod frontends;
mod gc;
mod proxy;
mod readers;
mod reproducible;
mod sources;
mod stress;
mod wire;
