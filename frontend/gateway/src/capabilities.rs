//! What the daemon says it can do. Source: control notes §17, gateway notes §3.1.

use proto::moby::buildkit::v1::apicaps::ApiCap;

/// Capabilities of the frontend API, sorted.
pub const FRONTEND: &[&str] = &[
    "frontend.caps",
    "frontend.inputs",
    "gateway.evaluate",
    "gateway.exec",
    "gateway.exec.extrahosts",
    "gateway.exec.filesystem",
    "gateway.exec.secretenv",
    "gateway.exec.signals",
    "gateway.solve.evaluate",
    "gateway.solve.metadata",
    "gateway.warnings",
    "importcaches",
    "proto.refarray",
    "readdir",
    "readfile",
    "reference.attestations",
    "reference.output",
    "resolveimage",
    "resolveimage.resolvemode",
    "return",
    "returnmap",
    "solve.base",
    "solve.inlinereturn",
    "source.metaresolver",
    "source.metaresolver.http.checksumrequest",
    "source.metaresolver.image.attestations",
    "statfile",
];

/// Wire form of capability names, all enabled.
pub fn wire(names: &[&str]) -> Vec<ApiCap> {
    names
        .iter()
        .map(|name| ApiCap { id: (*name).to_owned(), enabled: true, ..Default::default() })
        .collect()
}
