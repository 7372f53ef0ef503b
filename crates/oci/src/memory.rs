//! A registry in memory, strict as the best real ones: for tests here and elsewhere.
//!
//! It refuses manifests whose blobs it does not have, blobs whose bytes are not their digest, and
//! everything while it is [`Memory::set_offline`]. What was asked of it can be read back as lines.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Mutex,
};

use async_trait::async_trait;
use base::Digest;
use bytes::Bytes;

use crate::{
    BlobStream, Descriptor, Error, Index, Manifest, Provider, Pushed, Reference, Registry, Result,
    content, media,
};

/// A registry (all hosts at once) or a set of blobs, in memory.
#[derive(Debug, Default)]
pub struct Memory(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    blobs: BTreeMap<Digest, Bytes>,
    /// Which repository has which blobs.
    members: BTreeSet<(String, Digest)>,
    manifests: BTreeMap<(String, Digest), (String, Bytes)>,
    tags: BTreeMap<(String, String), Digest>,
    log: Vec<String>,
    offline: bool,
}

impl Memory {
    /// Nothing at all.
    pub fn new() -> Self {
        Self::default()
    }

    /// From now on (not) answering.
    pub fn set_offline(&self, offline: bool) {
        self.state().offline = offline;
    }

    /// What was asked since the last call, one line each: `resolve NAME`, `blob DIGEST`, ….
    pub fn take_log(&self) -> Vec<String> {
        std::mem::take(&mut self.state().log)
    }

    /// Adds a blob to a repository, and describes it.
    pub fn add_blob(&self, repository: &Reference, media_type: &str, bytes: &[u8]) -> Descriptor {
        let descriptor = Descriptor::of(media_type, bytes);
        let mut state = self.state();
        state.blobs.insert(descriptor.digest, Bytes::copy_from_slice(bytes));
        state.members.insert((repository.repository(), descriptor.digest));
        descriptor
    }

    /// Adds an image of a config and layers (as `(media type, bytes)`) under `reference`.
    pub fn add_image(
        &self,
        reference: &Reference,
        config: &[u8],
        layers: &[(&str, &[u8])],
    ) -> Descriptor {
        let config = self.add_blob(reference, media::OCI_CONFIG, config);
        let layers = layers.iter().map(|(kind, bytes)| self.add_blob(reference, kind, bytes));
        let body = Manifest::new(true, config, layers.collect()).to_json();
        let descriptor = Descriptor::of(media::OCI_MANIFEST, &body);
        self.put(reference, &descriptor, body.into()).expect("its blobs were just added");
        descriptor
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().expect("no panics while held")
    }

    /// Logs, and refuses if offline.
    fn ask(&self, line: String, host: &str) -> Result<std::sync::MutexGuard<'_, State>> {
        let mut state = self.state();
        if state.offline {
            return Err(Error::Unreachable {
                what: line,
                host: host.to_owned(),
                message: "connection refused".into(),
                hint: "",
            });
        }
        state.log.push(line);
        Ok(state)
    }

    fn put(&self, reference: &Reference, manifest: &Descriptor, body: Bytes) -> Result<()> {
        let what = format!("push manifest {} as {reference}", manifest.digest);
        let actual = Digest::of(&body);
        if actual != manifest.digest {
            return Err(Error::corrupt(what, manifest.digest, actual));
        }
        let repository = reference.repository();
        let mut state = self.state();
        let missing = if media::is_index(&manifest.media_type) {
            let entries = Index::parse(&what, &body)?.manifests;
            let known = |entry: &&Descriptor| {
                state.manifests.contains_key(&(repository.clone(), entry.digest))
            };
            entries.iter().find(|entry| !known(entry)).map(|entry| entry.digest)
        } else {
            let parsed = Manifest::parse(&what, &body)?;
            let needed = parsed.layers.iter().filter(|layer| layer.urls.is_empty());
            let known = |d: &&Descriptor| state.members.contains(&(repository.clone(), d.digest));
            needed.chain([&parsed.config]).find(|d| !known(d)).map(|d| d.digest)
        };
        if let Some(missing) = missing {
            return Err(Error::Status {
                what,
                host: reference.host().to_owned(),
                status: 400,
                message: format!("manifest_blob_unknown: {missing}"),
            });
        }
        let key = (repository.clone(), manifest.digest);
        state.manifests.insert(key, (manifest.media_type.clone(), body));
        if let Some(tag) = reference.tag() {
            state.tags.insert((repository, tag.to_owned()), manifest.digest);
        }
        Ok(())
    }
}

#[async_trait]
impl Registry for Memory {
    async fn resolve(&self, reference: &Reference) -> Result<Descriptor> {
        let state = self.ask(format!("resolve {reference}"), reference.host())?;
        let repository = reference.repository();
        let tag = reference.tag().unwrap_or("latest").to_owned();
        let digest = reference
            .digest()
            .or_else(|| state.tags.get(&(repository.clone(), tag)).copied())
            .ok_or_else(|| Error::not_found(reference.to_string()))?;
        let (media_type, body) = state
            .manifests
            .get(&(repository, digest))
            .ok_or_else(|| Error::not_found(reference.to_string()))?;
        Ok(Descriptor::of(media_type, body))
    }

    async fn manifest(&self, repository: &Reference, manifest: &Descriptor) -> Result<Bytes> {
        let state = self.ask(format!("manifest {}", manifest.digest), repository.host())?;
        match state.manifests.get(&(repository.repository(), manifest.digest)) {
            Some((_, body)) => Ok(body.clone()),
            None => Err(Error::not_found(format!("manifest {}", manifest.digest))),
        }
    }

    async fn blob(
        &self,
        repository: &Reference,
        blob: &Descriptor,
        offset: u64,
    ) -> Result<BlobStream> {
        let state = self.ask(format!("blob {}", blob.digest), repository.host())?;
        let what = || format!("blob {} of {}", blob.digest, repository.repository());
        if !state.members.contains(&(repository.repository(), blob.digest)) {
            return Err(Error::not_found(what()));
        }
        slice(&state.blobs[&blob.digest], offset).ok_or_else(|| Error::not_found(what()))
    }

    async fn push_blob(
        &self,
        repository: &Reference,
        blob: &Descriptor,
        from: &dyn Provider,
        mount_from: &[Reference],
    ) -> Result<Pushed> {
        {
            let mut state = self.ask(format!("push {}", blob.digest), repository.host())?;
            let key = (repository.repository(), blob.digest);
            if state.members.contains(&key) {
                return Ok(Pushed::Exists);
            }
            let same_host = mount_from.iter().filter(|from| from.domain() == repository.domain());
            for source in same_host {
                if state.members.contains(&(source.repository(), blob.digest)) {
                    state.members.insert(key);
                    state.log.push(format!("mount {} from {}", blob.digest, source.repository()));
                    return Ok(Pushed::Mounted(source.clone()));
                }
            }
        }
        let bytes = content::read_all(from, blob, u64::MAX).await?;
        self.add_blob(repository, &blob.media_type, &bytes);
        Ok(Pushed::Uploaded)
    }

    async fn has_manifest(&self, reference: &Reference, manifest: &Descriptor) -> Result<bool> {
        let state = self.ask(format!("look for {reference}"), reference.host())?;
        let repository = reference.repository();
        Ok(match reference.tag() {
            Some(tag) => state.tags.get(&(repository, tag.to_owned())) == Some(&manifest.digest),
            None => state.manifests.contains_key(&(repository, manifest.digest)),
        })
    }

    async fn push_manifest(
        &self,
        reference: &Reference,
        manifest: &Descriptor,
        body: Bytes,
    ) -> Result<()> {
        drop(self.ask(format!("put {reference}"), reference.host())?);
        self.put(reference, manifest, body)
    }

    async fn tags(&self, repository: &Reference) -> Result<Vec<String>> {
        let state = self.ask(format!("tags {}", repository.repository()), repository.host())?;
        let of = |(name, _): &&(String, String)| *name == repository.repository();
        Ok(state.tags.keys().filter(of).map(|(_, tag)| tag.clone()).collect())
    }

    async fn referrers(
        &self,
        repository: &Reference,
        subject: Digest,
        artifact_type: Option<&str>,
    ) -> Result<Vec<Descriptor>> {
        let state = self.ask(format!("referrers {subject}"), repository.host())?;
        let mut found = Vec::new();
        for ((name, _), (media_type, body)) in &state.manifests {
            if *name != repository.repository() || !media::is_manifest(media_type) {
                continue;
            }
            let manifest = Manifest::parse("manifest", body)?;
            let kind = artifact_type.is_none_or(|kind| manifest.artifact_type == kind);
            if kind && manifest.subject.as_ref().is_some_and(|s| s.digest == subject) {
                found.push(Descriptor {
                    artifact_type: manifest.artifact_type,
                    annotations: manifest.annotations,
                    ..Descriptor::of(media_type, body)
                });
            }
        }
        Ok(found)
    }
}

/// All blobs, whatever repository they are in.
#[async_trait]
impl Provider for Memory {
    async fn open(&self, blob: &Descriptor, offset: u64) -> Result<BlobStream> {
        let state = self.ask(format!("blob {}", blob.digest), "memory")?;
        let bytes = state.blobs.get(&blob.digest).and_then(|bytes| slice(bytes, offset));
        bytes.ok_or_else(|| Error::not_found(format!("blob {}", blob.digest)))
    }

    fn describe(&self) -> String {
        "memory".into()
    }
}

fn slice(bytes: &Bytes, offset: u64) -> Option<BlobStream> {
    let offset = usize::try_from(offset).ok().filter(|offset| *offset <= bytes.len())?;
    Some(content::once(bytes.slice(offset..)))
}
