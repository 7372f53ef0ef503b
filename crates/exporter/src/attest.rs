//! Statements about an image as manifests of their own.

use std::collections::BTreeMap;

use base::{Digest, Platform, gojson};
use oci::{Descriptor, Manifest, Reference, media};
use serde::Serialize;
use serde_json::value::RawValue;

use crate::{Attestation, ExportError, Subject, config::compact};

/// Largest predicate.
const MAX_PREDICATE: usize = 40 << 20;
/// Type of manifests that hold statements about an image.
pub(crate) const ARTIFACT_TYPE: &str = "application/vnd.docker.attestation.manifest.v1+json";
const STATEMENT_TYPE: &str = "https://in-toto.io/Statement/v1";
/// How a subject without a name is called.
const NAMELESS: &str = "_";
const ANNOTATION_PREDICATE: &str = "in-toto.io/predicate-type";

/// A named thing a statement is about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct StatementSubject {
    pub name: String,
    pub digest: BTreeMap<String, String>,
}

impl StatementSubject {
    pub(crate) fn new(name: impl Into<String>, digest: Digest) -> Self {
        Self { name: name.into(), digest: [("sha256".to_owned(), digest.hex())].into() }
    }
}

/// An in-toto statement.
#[derive(Debug, Serialize)]
pub(crate) struct Statement {
    #[serde(rename = "_type")]
    kind: &'static str,
    #[serde(rename = "predicateType")]
    pub predicate_type: String,
    subject: Vec<StatementSubject>,
    predicate: Box<RawValue>,
}

/// Statement of one attestation; `own` are the names of the artifact being exported.
pub(crate) fn statement(
    attestation: &Attestation,
    predicate: &[u8],
    own: &[StatementSubject],
) -> Result<Statement, ExportError> {
    let what = || format!("attestation {}", attestation.path);
    if predicate.len() > MAX_PREDICATE {
        return Err(ExportError::result(what(), format!("exceeds {MAX_PREDICATE} bytes")));
    }
    let mut subject = Vec::new();
    if attestation.subjects.is_empty() {
        subject.extend_from_slice(own);
    }
    for entry in &attestation.subjects {
        match entry {
            Subject::Own { name } => {
                for entry in own {
                    subject.push(entry.clone());
                    if !name.is_empty() && name != NAMELESS {
                        subject.push(StatementSubject { name: name.clone(), ..entry.clone() });
                    }
                }
            }
            Subject::Raw { name, digests } => {
                let digest = digests
                    .iter()
                    .filter_map(|digest| digest.split_once(':'))
                    .map(|(algorithm, hex)| (algorithm.to_owned(), hex.to_owned()))
                    .collect();
                let name = if name.is_empty() { NAMELESS } else { name };
                subject.push(StatementSubject { name: name.to_owned(), digest });
            }
        }
    }
    Ok(Statement {
        kind: STATEMENT_TYPE,
        predicate_type: attestation.predicate_type.clone(),
        subject,
        // A file without content says nothing, which is something that can be said.
        predicate: compact(&what(), if predicate.is_empty() { b"null" } else { predicate })?,
    })
}

/// Documents to be stored for the attestations of one image.
pub(crate) struct AttestationDocuments {
    /// Statements, as layers.
    pub layers: Vec<(Descriptor, Vec<u8>)>,
    pub config: (Descriptor, Vec<u8>),
    pub manifest: (Descriptor, Vec<u8>),
}

/// The attestation manifest for `image`.
pub(crate) fn documents(
    statements: &[Statement],
    image: &Descriptor,
    oci: bool,
    artifact: bool,
) -> AttestationDocuments {
    let layers: Vec<_> = statements
        .iter()
        .map(|statement| {
            let body = gojson::to_vec(statement);
            let mut descriptor = Descriptor::of(media::IN_TOTO, &body);
            if oci {
                descriptor = descriptor.annotate(ANNOTATION_PREDICATE, &statement.predicate_type);
            }
            (descriptor, body)
        })
        .collect();
    let config = if artifact {
        let body = b"{}".to_vec();
        let inline = Some("e30=".to_owned());
        (Descriptor { data: inline, ..Descriptor::of(media::OCI_EMPTY, &body) }, body)
    } else {
        let body = image_config(&layers);
        let kind = if oci { media::OCI_CONFIG } else { media::DOCKER_CONFIG };
        (Descriptor::of(kind, &body), body)
    };
    let list = layers.iter().map(|(descriptor, _)| descriptor.clone()).collect();
    let mut manifest = Manifest::new(oci, config.0.clone(), list);
    if artifact {
        manifest.artifact_type = ARTIFACT_TYPE.into();
        manifest.subject = Some(Descriptor::new(&image.media_type, image.digest, image.size));
    }
    let body = manifest.to_json();
    let unknown =
        Platform { os: "unknown".into(), architecture: "unknown".into(), ..Platform::default() };
    let descriptor = Descriptor {
        platform: Some(unknown),
        ..Descriptor::of(&manifest.media_type, &body)
            .annotate(oci::select::ANNOTATION_REFERENCE_TYPE, "attestation-manifest")
            .annotate(oci::select::ANNOTATION_REFERENCE_DIGEST, image.digest.to_string())
    };
    AttestationDocuments { layers, config, manifest: (descriptor, body) }
}

fn image_config(layers: &[(Descriptor, Vec<u8>)]) -> Vec<u8> {
    #[derive(Serialize)]
    struct RootFs {
        #[serde(rename = "type")]
        kind: &'static str,
        diff_ids: Vec<Digest>,
    }
    #[derive(Serialize)]
    struct Config {
        architecture: &'static str,
        os: &'static str,
        config: oci::config::Empty,
        rootfs: RootFs,
    }
    let diff_ids = layers.iter().map(|(descriptor, _)| descriptor.digest).collect();
    gojson::to_vec(&Config {
        architecture: "unknown",
        os: "unknown",
        config: oci::config::Empty {},
        rootfs: RootFs { kind: "layers", diff_ids },
    })
}

/// `pkg:<kind>/NAME@TAG?digest=…&platform=…`: how statements name an image.
pub fn package_url(
    kind: &str,
    name: &str,
    platform: Option<&Platform>,
) -> Result<String, ExportError> {
    let reference = Reference::parse(name)?;
    let reference =
        if reference.digest().is_some() { reference } else { reference.with_default_tag() };
    let mut url = format!("pkg:{kind}");
    for part in reference.familiar_repository().split('/') {
        url = format!("{url}/{}", query_escape(part));
    }
    if let Some(tag) = reference.tag() {
        // Tags have no character that needs escaping in a path.
        url = format!("{url}@{tag}");
    }
    let digest = reference.digest().map(|digest| ("digest", digest.to_string()));
    let platform = platform.map(|platform| ("platform", platform.normalize().format()));
    for (at, (key, value)) in digest.into_iter().chain(platform).enumerate() {
        let mark = if at == 0 { '?' } else { '&' };
        url = format!("{url}{mark}{key}={}", escape_qualifier(&value));
    }
    Ok(url)
}

/// Text as the value of a package URL's qualifier.
pub fn escape_qualifier(text: &str) -> String {
    escape(text, b"-_.~$&+=:@")
}

fn query_escape(text: &str) -> String {
    escape(text, b"-_.~").replace("%20", "+")
}

fn escape(text: &str, plain: &[u8]) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        match byte {
            byte if byte.is_ascii_alphanumeric() || plain.contains(&byte) => out.push(byte as char),
            other => out += &format!("%{other:02X}"),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn package_urls() {
        let platform = Platform::new("linux", "amd64");
        let url = |name: &str| package_url("docker", name, Some(&platform)).unwrap();
        assert_eq!(url("alpine"), "pkg:docker/alpine@latest?platform=linux%2Famd64");
        assert_eq!(url("h:5000/a/b:1"), "pkg:docker/h%3A5000/a/b@1?platform=linux%2Famd64");
    }

    #[test]
    fn an_empty_predicate_is_null() {
        let attestation = Attestation {
            predicate_type: "https://example.com/x".into(),
            predicate: bytes::Bytes::new().into(),
            subjects: Vec::new(),
            path: "empty.json".into(),
            inline_only: false,
            core: None,
        };
        let made = statement(&attestation, b"", &[]).unwrap();
        assert_eq!(
            String::from_utf8(gojson::to_vec(&made)).unwrap(),
            r#"{"_type":"https://in-toto.io/Statement/v1","predicateType":"https://example.com/x","subject":[],"predicate":null}"#
        );
        let error = statement(&attestation, b"{", &[]).unwrap_err();
        assert!(error.to_string().starts_with("attestation empty.json: "), "{error}");
    }

    /// The old and the new form have the very bytes of the recorded exports.
    #[test]
    fn equal_to_recorded_manifests() {
        let image = Descriptor::new(
            media::OCI_MANIFEST,
            "sha256:644f025371831d31690b3c0e0aa495d98e27f6955409ee14cbaabfdaaff6c0e2"
                .parse()
                .unwrap(),
            476,
        );
        for (sample, statement_digest, manifest_digest, artifact) in [
            (
                "oci-provenance-v1-min-no-artifact",
                "c5c23693b4d77a08ea7ecd7d5672258ee9356638cb77cfad0dbb0029d8e34425",
                "998202d0e9a4391ebd011d5911f3aa4536dbed9f411e9e8cd1936842389d90f0",
                false,
            ),
            (
                "docker-provenance-v02-max",
                "74cb081c1ef064287059f666d1e439eb799c8d301f402605816a909ebee46443",
                "c13aa97565b833e116d7ec714371a6d7c1b1c03f9898ad46a58a03bc9c0b1fb7",
                true,
            ),
        ] {
            let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
                .join("../../tests/golden/export-samples")
                .join(sample)
                .join("blobs/sha256");
            let read = |hex: &str| std::fs::read(folder.join(hex)).unwrap();
            #[derive(serde::Deserialize)]
            struct Recorded {
                #[serde(rename = "predicateType")]
                predicate_type: String,
                predicate: Box<RawValue>,
            }
            let recorded: Recorded = serde_json::from_slice(&read(statement_digest)).unwrap();
            let attestation = Attestation {
                predicate_type: recorded.predicate_type,
                predicate: bytes::Bytes::new().into(),
                subjects: Vec::new(),
                path: "provenance.json".into(),
                inline_only: false,
                core: None,
            };
            let made = documents(
                &[statement(&attestation, recorded.predicate.get().as_bytes(), &[]).unwrap()],
                &image,
                true,
                artifact,
            );
            assert_eq!(made.layers[0].1, read(statement_digest));
            assert_eq!(made.config.1, read(&made.config.0.digest.hex()));
            assert_eq!(
                String::from_utf8(made.manifest.1).unwrap(),
                String::from_utf8(read(manifest_digest)).unwrap()
            );
        }
    }
}
