//! Statements that frontends and scanners left in trees, read for exporters.

use std::io::Read as _;

use bytes::Bytes;
use exporter::{Predicate, Subject};
use frontend_api::{Attestation, AttestationKind, FrontendError, SubjectKind};
use serde::Deserialize;
use serde_json::value::RawValue;
use snapshot::Tree;

use crate::{bridge, failure};

/// Largest statement.
const MAX_STATEMENT: u64 = 40 << 20;
/// Most files of a bundle.
const MAX_FILES: usize = 10_000;
const PROVENANCE: &str = "https://slsa.dev/provenance/";

/// A complete statement.
#[derive(Deserialize)]
struct Statement {
    #[serde(rename = "predicateType", default)]
    predicate_type: String,
    #[serde(default)]
    subject: Option<Vec<RawSubject>>,
    predicate: Option<Box<RawValue>>,
}

#[derive(Deserialize)]
struct RawSubject {
    #[serde(default)]
    name: String,
    #[serde(default)]
    digest: std::collections::BTreeMap<String, String>,
}

/// Reads the statements of one platform, the main list of contents first.
pub(crate) async fn attestations(
    given: &[Attestation],
) -> Result<Vec<exporter::Attestation>, FrontendError> {
    let mut all = Vec::new();
    for item in given {
        let Some(reference) = &item.reference else {
            return Err(FrontendError::new(match item.kind {
                AttestationKind::Bundle => "no ref provided for attestation bundle",
                AttestationKind::InToto => "attestation does not have available content",
            }));
        };
        let tree = bridge::lazy(reference)?.tree().await?;
        let item = item.clone();
        let read = tokio::task::spawn_blocking(move || {
            let Some((keep, tree)) = tree else {
                return Err(FrontendError::new("an attestation's tree is empty"));
            };
            let read = read(&tree, &item);
            drop((tree, keep));
            read
        });
        all.extend(read.await.map_err(|error| failure::internal("read attestations", error))??);
    }
    all.sort_by_key(|item| !item.is_core());
    Ok(all)
}

fn read(tree: &Tree, item: &Attestation) -> Result<Vec<exporter::Attestation>, FrontendError> {
    let text =
        |key: &str| item.metadata.get(key).map(|value| String::from_utf8_lossy(value).into_owned());
    let core = text("sbom-core");
    let inline_only = text("inline-only").as_deref() == Some("true");
    let make =
        |predicate_type: String, predicate: Bytes, subjects, path: String| exporter::Attestation {
            predicate_type,
            predicate: Predicate::from(predicate),
            subjects,
            path,
            inline_only,
            core: core.clone(),
        };
    match item.kind {
        AttestationKind::InToto => {
            if item.path.is_empty() {
                return Err(FrontendError::new("attestation does not have set path"));
            }
            if item.predicate_type.starts_with(PROVENANCE) {
                return Err(FrontendError::new("frontend may not set provenance attestations"));
            }
            let predicate = file(tree, &item.path)?;
            let subjects = item.subjects.iter().map(|subject| match subject.kind {
                SubjectKind::Own => Subject::Own { name: subject.name.clone() },
                SubjectKind::Raw => {
                    Subject::Raw { name: subject.name.clone(), digests: subject.digests.clone() }
                }
            });
            let predicate_type = item.predicate_type.clone();
            Ok(vec![make(predicate_type, predicate, subjects.collect(), item.path.clone())])
        }
        AttestationKind::Bundle => {
            let mut all = Vec::new();
            for name in names(tree, &item.path)? {
                let path = base::path::join([item.path.as_str(), name.as_str()]);
                let (statement, predicate) = statement(&file(tree, &path)?, &path)?;
                let wanted = &item.predicate_type;
                if !wanted.is_empty() && statement.predicate_type != *wanted {
                    return Err(FrontendError::new(format!(
                        "bundle entry {} does not match required predicate type {wanted}",
                        statement.predicate_type
                    )));
                }
                if statement.predicate_type.starts_with(PROVENANCE) {
                    return Err(FrontendError::new(
                        "frontend may not bundle provenance attestations",
                    ));
                }
                let subjects = statement.subject.unwrap_or_default().into_iter().map(|subject| {
                    let digests = subject.digest.into_iter();
                    Subject::Raw {
                        name: subject.name,
                        digests: digests.map(|(kind, hex)| format!("{kind}:{hex}")).collect(),
                    }
                });
                all.push(make(statement.predicate_type, predicate, subjects.collect(), path));
            }
            Ok(all)
        }
    }
}

fn statement(body: &[u8], path: &str) -> Result<(Statement, Bytes), FrontendError> {
    let statement: Statement = serde_json::from_slice(body).map_err(|error| {
        FrontendError::new(format!("cannot decode in-toto statement {path}: {error}"))
    })?;
    // The predicate as a program reads and writes it, not byte by byte.
    let predicate = statement.predicate.as_deref().map_or("null", RawValue::get);
    let value = serde_json::from_str(predicate).map_err(|error| {
        FrontendError::new(format!("cannot decode the predicate of {path}: {error}"))
    })?;
    let predicate = base::gojson::to_vec(&super::json::untyped(value));
    Ok((statement, predicate.into()))
}

fn names(tree: &Tree, path: &str) -> Result<Vec<String>, FrontendError> {
    let entries = bridge::read_dir(tree, path, "")?;
    if entries.len() > MAX_FILES {
        return Err(FrontendError::new(format!(
            "attestation bundle {path} has {} files, more than {MAX_FILES}",
            entries.len()
        )));
    }
    Ok(entries.into_iter().map(|entry| entry.path).collect())
}

fn file(tree: &Tree, path: &str) -> Result<Bytes, FrontendError> {
    let file = bridge::open_file(tree, path)?;
    let mut body = Vec::new();
    file.take(MAX_STATEMENT + 1)
        .read_to_end(&mut body)
        .map_err(|error| FrontendError::new(format!("cannot read in-toto attestation: {error}")))?;
    if body.len() as u64 > MAX_STATEMENT {
        return Err(FrontendError::new(format!("{path} exceeds {MAX_STATEMENT} bytes")));
    }
    Ok(body.into())
}
