//! Looking up image configs, each once.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use base::Platform;
use frontend_api::{Bridge, FrontendError, SourceMeta, SourceMetaRequest};
use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, Shared};
use llb::pb;

use super::Client;
use crate::error::{Error, Kind, Result};
use crate::image::Image;

type Answer = Shared<BoxFuture<'static, Result<SourceMeta, FrontendError>>>;

/// Questions asked in this run.
#[derive(Default)]
pub struct Cache(Mutex<HashMap<String, Answer>>);

/// Which image to look up.
#[derive(Debug, Clone, Default)]
pub struct Resolve {
    /// Its full reference.
    pub reference: String,
    /// Whose config.
    pub platform: Option<Platform>,
    /// Progress name.
    pub log_name: String,
    /// When to ask the registry.
    pub mode: &'static str,
    /// Session and store of an OCI layout.
    pub store: Option<(String, String)>,
}

/// An image that was looked up.
#[derive(Debug, Clone)]
pub struct ResolvedImage {
    /// Its reference, maybe another one.
    pub reference: String,
    /// Digest of its top manifest.
    pub digest: String,
    /// Its config.
    pub image: Image,
    /// Set if a policy leads elsewhere than to an image.
    pub redirect: Option<String>,
}

impl Client {
    /// Looks up an image.
    pub async fn resolve(&self, request: Resolve) -> Result<ResolvedImage> {
        let (scheme, attrs) = match &request.store {
            None => ("docker-image", Vec::new()),
            Some((session, store)) => (
                "oci-layout",
                vec![
                    ("oci.session".to_owned(), session.clone()),
                    ("oci.store".to_owned(), store.clone()),
                ],
            ),
        };
        let attrs = attrs.into_iter().filter(|(_, value)| !value.is_empty()).collect();
        let identifier = format!("{scheme}://{}", request.reference);
        let meta = self
            .ask(SourceMetaRequest {
                source: pb::SourceOp { identifier, attrs },
                platform: request.platform,
                log_name: request.log_name,
                resolve_mode: request.mode.to_owned(),
                ..SourceMetaRequest::default()
            })
            .await
            .map_err(Error::bridge)?;
        let prefix = format!("{scheme}://");
        let Some(image) = meta.image else {
            return Ok(ResolvedImage {
                reference: request.reference,
                digest: String::new(),
                image: Image::default(),
                redirect: Some(meta.source.identifier),
            });
        };
        // A source without identifier means that it was not rewritten.
        let reference = match meta.source.identifier.strip_prefix(&prefix) {
            Some(reference) => reference.to_owned(),
            None => request.reference,
        };
        let parsed = Image::parse(&image.config);
        let parsed = parsed.ok_or_else(|| Error::new(Kind::ImageConfig, [&reference]))?;
        Ok(ResolvedImage { reference, digest: image.digest, image: parsed, redirect: None })
    }

    async fn ask(&self, request: SourceMetaRequest) -> Result<SourceMeta, FrontendError> {
        let key = format!("{request:?}");
        let answer = {
            let mut cache = self.images.0.lock().expect("no holder panics");
            cache.entry(key).or_insert_with(|| answer(Arc::clone(&self.bridge), request)).clone()
        };
        answer.await
    }
}

fn answer(bridge: Arc<dyn Bridge>, request: SourceMetaRequest) -> Answer {
    async move { bridge.resolve_source_meta(request).await }.boxed().shared()
}
