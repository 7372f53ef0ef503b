//! Where blobs of resolved images can be fetched.
//!
//! A cached result may stand on image layers that were never fetched. Whoever resolves an image
//! leaves its blobs' provider here, so that such a result can be completed later, in this build or
//! another one. Only as many images as [`LIMIT`] says are remembered, oldest forgotten first.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex},
};

use base::Digest;
use oci::{BlobStream, Descriptor, Provider, Reference, registry::RepositoryProvider, types};
use session::Group;

use crate::Registries;

/// Blobs remembered.
const LIMIT: usize = 20_000;

/// A pool of providers by blob.
#[derive(Default)]
pub struct Providers {
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    by_blob: HashMap<Digest, Arc<dyn Provider>>,
    order: VecDeque<Digest>,
}

impl Providers {
    /// Remembers that `provider` has these blobs.
    pub fn add(&self, blobs: impl IntoIterator<Item = Digest>, provider: &Arc<dyn Provider>) {
        let mut known = self.known.lock().expect("no panic while holding providers");
        for blob in blobs {
            if known.by_blob.insert(blob, provider.clone()).is_none() {
                known.order.push_back(blob);
            }
        }
        while known.order.len() > LIMIT {
            if let Some(oldest) = known.order.pop_front() {
                known.by_blob.remove(&oldest);
            }
        }
    }

    /// Who has `blob`.
    pub fn find(&self, blob: &Digest) -> Option<Arc<dyn Provider>> {
        self.known.lock().expect("no panic while holding providers").by_blob.get(blob).cloned()
    }
}

/// The repositories that blobs say they came from, asked with the credentials of builds that want
/// them now: whoever found them first may be gone.
pub struct Origins {
    registries: Registries,
    group: Group,
}

impl Origins {
    /// Asks in the name of `group`.
    pub fn new(registries: Registries, group: Group) -> Self {
        Self { registries, group }
    }
}

#[async_trait::async_trait]
impl Provider for Origins {
    async fn open(&self, blob: &Descriptor, offset: u64) -> oci::Result<BlobStream> {
        let mut failure = None;
        for (key, paths) in &blob.annotations {
            let Some(host) = key.strip_prefix(types::ANNOTATION_DISTRIBUTION_SOURCE) else {
                continue;
            };
            for path in paths.split(',') {
                let Ok(repository) = Reference::parse(&format!("{host}/{path}")) else { continue };
                let registry = (self.registries)(&self.group);
                let provider = RepositoryProvider::new(registry, repository);
                match provider.open(blob, offset).await {
                    Ok(stream) => return Ok(stream),
                    Err(error) => failure = Some(error),
                }
            }
        }
        Err(failure.unwrap_or_else(|| oci::Error::NotFound {
            what: format!("a repository that blob {} came from", blob.digest),
        }))
    }

    fn describe(&self) -> String {
        "the repositories it came from".into()
    }
}

#[async_trait::async_trait]
impl Provider for Providers {
    async fn open(&self, blob: &Descriptor, offset: u64) -> oci::Result<BlobStream> {
        match self.find(&blob.digest) {
            Some(provider) => provider.open(blob, offset).await,
            None => Err(oci::Error::NotFound {
                what: format!("blob {} in the images resolved lately", blob.digest),
            }),
        }
    }

    fn describe(&self) -> String {
        "images resolved lately".into()
    }
}
