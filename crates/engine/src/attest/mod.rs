//! Statements about results: provenance, and what scanners and frontends bring.
//!
//! While a build runs, each frontend's bridge notes in a [`Scope`] what was asked of it: graphs,
//! images looked up, further frontends. When the result is complete a [`capture::Capture`] is taken
//! of every tree in it: the sources behind the tree and everything else its frontend looked at. A
//! predicate is written from that as late as possible, because it names the blobs that exporters
//! made. Source: control notes §7, layer notes §5.4–5.6.
//!
//! Invariant: provenance is the daemon's own word; what frontends call provenance is refused.

mod bundle;
mod capture;
mod json;
mod layers;
mod options;
mod predicate;
mod request;
mod sbom;
mod scope;
mod steps;

pub(crate) use bundle::attestations;
pub(crate) use options::Wanted;
pub(crate) use predicate::{BuildFacts, PROVENANCE_1, Provenance, ProvenanceOptions};
pub(crate) use request::Requests;
pub(crate) use sbom::has_sbom;
pub(crate) use scope::{Asked, ImageSource, Scope, Trace};
