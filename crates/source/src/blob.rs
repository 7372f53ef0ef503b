//! `docker-image+blob://` and `oci-layout+blob://`: one blob as one file of a new tree.
//!
//! | key | in the key |
//! |---|---|
//! | digest, file name, permissions, owner, group (as asked for) | yes |
//! | repository, layout, session | no: the digest says it all |

use std::{fs::File, sync::Arc};

use async_trait::async_trait;
use base::{Digest, Hasher, gojson};
use futures_util::StreamExt as _;
use oci::{Descriptor, Provider};
use rustix::fs::{Gid, Mode, OFlags, Timespec, Timestamps, Uid};
use serde::Serialize;
use store::{NewRecord, Ref, Store};
use tokio::io::AsyncWriteExt as _;

use crate::{
    Instance, KeyStep, Progress, SourceError, SourceRequest, attrs, http_text::safe_name,
    image::kind_of_record, image::shown,
};

const DEFAULT_MODE: u32 = 0o600;

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Wanted {
    digest: Digest,
    filename: String,
    perm: i64,
    #[serde(rename = "UID")]
    uid: i64,
    #[serde(rename = "GID")]
    gid: i64,
}

/// One blob source.
pub(crate) struct BlobInstance {
    store: Arc<Store>,
    name: String,
    wanted: Wanted,
    kind: store::RecordKind,
    provider: Arc<dyn Provider>,
}

impl BlobInstance {
    /// Checks the attributes; `digest` is the reference's.
    pub(crate) fn new(
        store: Arc<Store>,
        request: &SourceRequest,
        digest: Digest,
        provider: Arc<dyn Provider>,
    ) -> Result<Self, SourceError> {
        let integer = |key: &str| match request.attr(key) {
            "" => Ok(0),
            value => attrs::integer(key, value),
        };
        let filename = match request.attr("http.filename") {
            "" => String::new(),
            name => safe_name(name),
        };
        let (perm, uid, gid) = (integer("http.perm")?, integer("http.uid")?, integer("http.gid")?);
        for (key, value) in [("http.perm", perm), ("http.uid", uid), ("http.gid", gid)] {
            let most = if key == "http.perm" { 0o7777 } else { i64::from(u32::MAX) - 1 };
            if !(0..=most).contains(&value) {
                return Err(SourceError::Attribute(format!("{key} {value} is out of range")));
            }
        }
        Ok(Self {
            store,
            name: request.rest().to_owned(),
            wanted: Wanted { digest, filename, perm, uid, gid },
            kind: kind_of_record(request)?,
            provider,
        })
    }

    async fn fetch(&self) -> Result<Ref, SourceError> {
        let record = self.store.create(NewRecord {
            description: format!("blob {}", self.name),
            kind: self.kind,
            ..NewRecord::default()
        })?;
        let name = match self.wanted.filename.as_str() {
            "" => self.wanted.digest.hex(),
            name => name.to_owned(),
        };
        let failed = |error: std::io::Error| SourceError::io(format!("write {name}"), error);
        {
            let tree = record.tree()?;
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            let mode = Mode::from_raw_mode(DEFAULT_MODE);
            let file = rustix::fs::openat(tree.fd(), name.as_str(), flags, mode)
                .map_err(|errno| failed(errno.into()))?;
            let mut file = tokio::fs::File::from_std(File::from(file));
            let mut hasher = Hasher::new();
            let unsized_blob = Descriptor::new("application/octet-stream", self.wanted.digest, 0);
            let mut body = self.provider.open(&unsized_blob, 0).await?;
            while let Some(piece) = body.next().await {
                let piece =
                    piece.map_err(|error| SourceError::io(format!("read {}", self.name), error))?;
                hasher.update(&piece);
                file.write_all(&piece).await.map_err(failed)?;
            }
            file.flush().await.map_err(failed)?;
            let actual = hasher.finish();
            if actual != self.wanted.digest {
                let text = format!("blob {} arrived as {actual}", self.name);
                return Err(SourceError::Remote(text));
            }
            self.finish_file(&file.into_std().await).map_err(failed)?;
        }
        Ok(record.commit().await?)
    }

    /// Owner, then permissions (changing the owner clears some), then the epoch as time.
    fn finish_file(&self, file: &File) -> std::io::Result<()> {
        let number = |value: i64| u32::try_from(value).unwrap_or(0);
        let (uid, gid) = (number(self.wanted.uid), number(self.wanted.gid));
        if (uid, gid) != (0, 0) {
            rustix::fs::fchown(file, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
        }
        let mode = if self.wanted.perm == 0 { DEFAULT_MODE } else { number(self.wanted.perm) };
        rustix::fs::fchmod(file, Mode::from_raw_mode(mode))?;
        let epoch = Timespec { tv_sec: 0, tv_nsec: 0 };
        let times = Timestamps { last_access: epoch, last_modification: epoch };
        rustix::fs::futimens(file, &times)?;
        Ok(())
    }
}

#[async_trait]
impl Instance for BlobInstance {
    async fn cache_key(&mut self, _: usize, _: &Progress) -> Result<KeyStep, SourceError> {
        Ok(KeyStep::only(Digest::of(gojson::to_vec(&self.wanted)).to_string()))
    }

    async fn snapshot(&mut self, progress: &Progress) -> Result<Option<Ref>, SourceError> {
        let work = self.fetch();
        shown(progress, format!("fetch {}", self.name), work).await.map(Some)
    }
}
