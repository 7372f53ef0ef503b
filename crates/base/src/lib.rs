//! What every other crate stands on: digests, platforms, patterns, Go-compatible text forms.
//!
//! Nothing here does IO beyond small file helpers, knows the wire, or holds state. A helper moves
//! here when two crates need it.

pub mod digest;
pub mod fs;
pub mod gojson;
pub mod gomode;
pub mod goquote;
pub mod gotar;
pub mod id;
pub mod path;
pub mod pattern;
pub mod platform;
pub mod time;

pub use digest::{Digest, Hasher, ParseDigestError};
pub use platform::Platform;
