//! Results and metadata between the frontend API and the gateway messages.

use std::{collections::BTreeMap, time::SystemTime};

use frontend_api::{
    Attestation, AttestationChain, AttestationKind, ChainBlob, ChecksumRequest, FileStat,
    FrontendResult, InTotoSubject, RefHandle, Refs, SourceMeta, SourceMetaRequest, SubjectKind,
    WorkerInfo,
};
use llb::pb;
use proto::{control, frontend, fsutil::types::Stat};

/// The wire form of a result; `id_of` names its refs.
pub fn result_to_wire(
    result: &FrontendResult,
    mut id_of: impl FnMut(Option<&RefHandle>) -> frontend::Ref,
) -> frontend::Result {
    use frontend::result::Result as Wire;
    let refs = match &result.refs {
        Refs::Single(reference) => Wire::Ref(id_of(reference.as_ref())),
        Refs::Map(map) => Wire::Refs(frontend::RefMap {
            refs: map
                .iter()
                .map(|(key, reference)| frontend::ref_map::Entry {
                    key: key.clone(),
                    value: Some(id_of(reference.as_ref())),
                })
                .collect(),
        }),
    };
    let attestations = result
        .attestations
        .iter()
        .map(|(key, list)| {
            let attestation =
                list.iter().map(|item| attestation_to_wire(item, &mut id_of)).collect();
            (key.clone(), frontend::Attestations { attestation })
        })
        .collect();
    frontend::Result { metadata: result.metadata.clone(), attestations, result: Some(refs) }
}

fn attestation_to_wire(
    item: &Attestation,
    id_of: &mut impl FnMut(Option<&RefHandle>) -> frontend::Ref,
) -> frontend::Attestation {
    frontend::Attestation {
        kind: match item.kind {
            AttestationKind::InToto => frontend::AttestationKind::InToto,
            AttestationKind::Bundle => frontend::AttestationKind::Bundle,
        } as i32,
        metadata: item.metadata.clone(),
        r#ref: Some(id_of(item.reference.as_ref())),
        path: item.path.clone(),
        in_toto_predicate_type: item.predicate_type.clone(),
        in_toto_subjects: item
            .subjects
            .iter()
            .map(|subject| frontend::InTotoSubject {
                kind: match subject.kind {
                    SubjectKind::Own => frontend::InTotoSubjectKind::Self_,
                    SubjectKind::Raw => frontend::InTotoSubjectKind::Raw,
                } as i32,
                digest: subject.digests.clone(),
                name: subject.name.clone(),
            })
            .collect(),
    }
}

/// A returned result; `find` turns ids into refs (an empty id is the empty tree).
pub fn result_from_wire<E>(
    wire: frontend::Result,
    mut find: impl FnMut(&str) -> Result<Option<RefHandle>, E>,
) -> Result<FrontendResult, E> {
    use frontend::result::Result as Wire;
    let refs = match wire.result {
        None => Refs::Single(None),
        Some(Wire::RefDeprecated(id)) => Refs::Single(find(&id)?),
        Some(Wire::Ref(reference)) => Refs::Single(find(&reference.id)?),
        Some(Wire::RefsDeprecated(map)) => {
            let refs: Result<BTreeMap<_, _>, E> =
                map.refs.into_iter().map(|(key, id)| Ok((key, find(&id)?))).collect();
            Refs::Map(refs?)
        }
        Some(Wire::Refs(map)) => {
            let refs: Result<BTreeMap<_, _>, E> = map
                .refs
                .into_iter()
                .map(|entry| Ok((entry.key, find(&entry.value.unwrap_or_default().id)?)))
                .collect();
            Refs::Map(refs?)
        }
    };
    let mut attestations = BTreeMap::new();
    for (key, list) in wire.attestations {
        let list: Result<Vec<_>, E> = list
            .attestation
            .into_iter()
            .map(|item| attestation_from_wire(item, &mut find))
            .collect();
        attestations.insert(key, list?);
    }
    Ok(FrontendResult { refs, metadata: wire.metadata, attestations })
}

fn attestation_from_wire<E>(
    item: frontend::Attestation,
    find: &mut impl FnMut(&str) -> Result<Option<RefHandle>, E>,
) -> Result<Attestation, E> {
    let kind = match item.kind() {
        frontend::AttestationKind::InToto => AttestationKind::InToto,
        frontend::AttestationKind::Bundle => AttestationKind::Bundle,
    };
    let reference = match &item.r#ref {
        Some(reference) => find(&reference.id)?,
        None => None,
    };
    let subjects = item
        .in_toto_subjects
        .iter()
        .map(|subject| InTotoSubject {
            kind: match subject.kind() {
                frontend::InTotoSubjectKind::Self_ => SubjectKind::Own,
                frontend::InTotoSubjectKind::Raw => SubjectKind::Raw,
            },
            digests: subject.digest.clone(),
            name: subject.name.clone(),
        })
        .collect();
    Ok(Attestation {
        kind,
        metadata: item.metadata,
        reference,
        path: item.path,
        predicate_type: item.in_toto_predicate_type,
        subjects,
    })
}

/// A file's attributes on the wire.
pub fn stat_to_wire(stat: FileStat) -> Stat {
    Stat {
        path: stat.path,
        mode: stat.mode,
        uid: stat.uid,
        gid: stat.gid,
        size: stat.size,
        mod_time: stat.mod_time,
        linkname: stat.linkname,
        devmajor: stat.dev_major,
        devminor: stat.dev_minor,
        xattrs: stat.xattrs,
    }
}

/// A metadata question from the wire.
pub fn meta_request(
    wire: frontend::ResolveSourceMetaRequest,
    source: pb::SourceOp,
) -> SourceMetaRequest {
    let checksum = wire.http.as_ref().and_then(|http| http.checksum_request.as_ref());
    SourceMetaRequest {
        source,
        platform: wire.platform.as_ref().map(base::Platform::from),
        log_name: wire.log_name,
        resolve_mode: wire.resolve_mode,
        no_config: wire.image.as_ref().is_some_and(|image| image.no_config),
        attestations: wire.image.as_ref().and_then(|image| {
            // Whoever asks for statements means the chain that leads to them.
            let wanted = image.attestation_chain || !image.resolve_attestations.is_empty();
            wanted.then(|| image.resolve_attestations.clone())
        }),
        git_objects: wire.git.as_ref().is_some_and(|git| git.return_object),
        http_checksum: checksum.map(|asked| ChecksumRequest {
            algorithm: match asked.algo() {
                frontend::checksum_request::ChecksumAlgo::Sha256 => "sha256",
                frontend::checksum_request::ChecksumAlgo::Sha384 => "sha384",
                frontend::checksum_request::ChecksumAlgo::Sha512 => "sha512",
            },
            suffix: asked.suffix.clone(),
        }),
        policies: wire.source_policies,
    }
}

/// Its answer.
pub fn meta_response(meta: SourceMeta) -> frontend::ResolveSourceMetaResponse {
    frontend::ResolveSourceMetaResponse {
        source: Some(meta.source),
        image: meta.image.map(|image| frontend::ResolveSourceImageResponse {
            digest: image.digest,
            config: image.config,
            attestation_chain: image.chain.map(chain_to_wire),
        }),
        git: meta.git.map(|git| frontend::ResolveSourceGitResponse {
            checksum: git.checksum,
            r#ref: git.reference,
            commit_checksum: git.commit_checksum,
            commit_object: git.commit_object,
            tag_object: git.tag_object,
        }),
        http: meta.http.map(|http| frontend::ResolveSourceHttpResponse {
            checksum: http.checksum,
            filename: http.filename,
            last_modified: http.last_modified.map(timestamp),
            checksum_response: http
                .checksum_response
                .map(|(digest, suffix)| frontend::ChecksumResponse { digest, suffix }),
        }),
    }
}

fn chain_to_wire(chain: AttestationChain) -> frontend::AttestationChain {
    let blob = |(digest, blob): (String, ChainBlob)| {
        let descriptor = frontend::Descriptor {
            media_type: blob.media_type,
            digest: digest.clone(),
            size: i64::try_from(blob.data.len()).unwrap_or(i64::MAX),
            annotations: blob.annotations,
        };
        (digest, frontend::Blob { descriptor: Some(descriptor), data: blob.data })
    };
    frontend::AttestationChain {
        root: chain.root,
        image_manifest: chain.image,
        attestation_manifest: chain.attestation,
        signature_manifests: chain.signatures,
        blobs: chain.blobs.into_iter().map(blob).collect(),
    }
}

/// A protobuf timestamp.
pub fn timestamp(at: SystemTime) -> prost_types::Timestamp {
    at.into()
}

/// A worker as `Ping` and `ListWorkers` describe it.
pub fn worker(info: &WorkerInfo) -> control::types::WorkerRecord {
    control::types::WorkerRecord {
        id: info.id.clone(),
        labels: info.labels.clone(),
        platforms: info.platforms.iter().map(pb::Platform::from).collect(),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;

    #[test]
    fn an_empty_tree_has_a_value_in_the_map() {
        let refs = BTreeMap::from([("linux/amd64".to_owned(), None)]);
        let result = FrontendResult { refs: Refs::Map(refs), ..FrontendResult::default() };
        let wire = result_to_wire(&result, |_| frontend::Ref::default());
        let Some(frontend::result::Result::Refs(map)) = &wire.result else { panic!("{wire:?}") };
        // One entry: the key, and a reference of no bytes.
        assert_eq!(map.encode_to_vec(), b"\x0a\x0f\x0a\x0blinux/amd64\x12\x00");
        let back = result_from_wire(wire, |id| {
            assert_eq!(id, "");
            Ok::<_, ()>(None)
        });
        let Refs::Map(refs) = back.unwrap().refs else { panic!("there are several") };
        assert!(refs["linux/amd64"].is_none());
    }
}
