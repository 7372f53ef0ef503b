//! The gateway protocol: frontends on the other side of a connection.
//!
//! A [`Run`] is one frontend run as its far side sees it: refs by id, the result it returns, its
//! containers. [`Service`] serves the wire calls of any number of runs; which run a call belongs
//! to is the business of [`Runs`]. Invariant: ids given out die with their run.

pub mod capabilities;
mod protojson;
mod run;
mod service;
pub mod status;
pub mod stdio;
pub mod wire;

pub use run::{Container, Containers, NewContainer, Process, ProcessEvent, ProcessInput, Run};
pub use service::{Runs, Service, signal_number};
