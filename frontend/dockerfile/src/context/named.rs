//! Named contexts: what takes the place of a stage or an image.
//!
//! Source: Dockerfile notes §13.4.

use std::collections::BTreeMap;

use base::Platform;
use base64::Engine as _;
use llb::build::{LocalOptions, Source};
use llb::pb;
use prost::Message as _;

use super::images::Resolve;
use super::main::MainSource;
use super::{Client, ignore};
use crate::error::{Error, Kind, Result};
use crate::git::GitRef;
use crate::image::Image;
use crate::reference::{Plain, Reference};
use crate::text;

/// Redirections by policies that are followed.
const MAX_REDIRECTS: usize = 10;

/// A named context that exists; nothing has been asked yet.
#[derive(Debug, Clone)]
pub struct NamedContext {
    value: String,
    name: String,
    /// As in its key, with the platform if that was given.
    full_name: String,
    platform: Option<Platform>,
}

/// A named context ready to be used.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The tree; nothing is an empty one.
    pub source: Option<NamedSource>,
    /// Its config.
    pub image: Option<Image>,
    /// Platform the tree is for, if known.
    pub platform: Option<Platform>,
}

/// The tree of a named context.
#[derive(Debug, Clone)]
pub enum NamedSource {
    /// A source that is complete.
    Fixed(MainSource),
    /// An image, for a platform.
    Image {
        /// The source.
        source: Source,
        /// Progress name.
        name: String,
    },
    /// A local folder, of which only the paths used are taken.
    Local(LocalFolder),
}

/// A local folder with a name.
#[derive(Debug, Clone)]
pub struct LocalFolder {
    local: String,
    options: LocalOptions,
    /// Progress name.
    pub name: String,
}

impl LocalFolder {
    /// The source that takes `paths`, or all if there are none.
    pub fn source(&self, paths: Vec<String>) -> Source {
        let options = LocalOptions { follow_paths: paths, ..self.options.clone() };
        Source::local(&self.local, &options)
    }
}

impl Client {
    /// Finds the context of a name, for a platform first.
    pub fn named_context(
        &self,
        name: &str,
        platform: Option<&Platform>,
    ) -> Result<Option<NamedContext>> {
        let reference = Reference::parse(name)
            .map_err(|_| Error::new(Kind::ContextName, [text::quote(name)]))?;
        let familiar = reference.familiar();
        let name = familiar.strip_suffix(":latest").unwrap_or(&familiar);
        let wanted = platform.cloned().unwrap_or_else(Platform::host).normalize();
        let with_platform = format!("{name}::{}", wanted.format_all());
        for full_name in [with_platform.as_str(), name] {
            if let Some(value) = self.context_value(full_name) {
                return Ok(Some(NamedContext {
                    value,
                    name: name.to_owned(),
                    full_name: full_name.to_owned(),
                    platform: platform.cloned(),
                }));
            }
        }
        Ok(None)
    }

    fn context_value(&self, full_name: &str) -> Option<String> {
        let redirected = self.redirects.lock().expect("no holder panics").get(full_name).cloned();
        redirected.or_else(|| self.options.get(&format!("context:{full_name}")).map(str::to_owned))
    }

    /// Asks what has to be known to use a named context.
    pub async fn load_context(&self, context: &NamedContext) -> Result<Loaded> {
        let mut context = context.clone();
        for _ in 0..=MAX_REDIRECTS {
            match self.load_once(&context).await? {
                Ok(loaded) => return Ok(loaded),
                Err(target) => {
                    let Some((scheme, rest)) = target.split_once("://") else {
                        return Err(Error::new(Kind::BadImageReference, [text::quote(&target)]));
                    };
                    context.value = format!("{scheme}:{rest}");
                    let mut redirects = self.redirects.lock().expect("no holder panics");
                    redirects.insert(context.full_name.clone(), context.value.clone());
                }
            }
        }
        Err(Error::new(Kind::ContextRecursion, [context.full_name]))
    }

    /// The context, or where a policy leads instead.
    async fn load_once(&self, context: &NamedContext) -> Result<Result<Loaded, String>> {
        let NamedContext { value, full_name, .. } = context;
        let Some((scheme, rest)) = value.split_once(':') else {
            return Err(Error::new(Kind::ContextNoScheme, [value, full_name]));
        };
        let rest = rest.strip_prefix("//").unwrap_or(rest);
        let fixed = |source, name| {
            let source = NamedSource::Fixed(MainSource::from_source(source, name));
            Ok(Ok(Loaded { source: Some(source), image: None, platform: None }))
        };
        match scheme {
            "docker-image" if rest == "scratch" => {
                Ok(Ok(Loaded { source: None, image: None, platform: None }))
            }
            "docker-image" => self.load_image(context, rest).await,
            "oci-layout" => self.load_oci_layout(context, rest).await.map(Ok),
            "local" => {
                let local = value.split_once(':').map_or("", |(_, local)| local);
                self.load_local(context, local).await.map(Ok)
            }
            "input" => {
                let key = value.split_once(':').map_or("", |(_, key)| key);
                self.load_input(context, key).await.map(Ok)
            }
            "http" | "https" | "git" => match GitRef::parse(value)? {
                Some(git) => {
                    let name = format!("[internal] load git source {value}");
                    fixed(Source::git(&git.options()), name)
                }
                None if scheme == "git" => Err(Error::new(Kind::GitContext, [value])),
                None => fixed(
                    Source::http(value, "context", ""),
                    format!("[context {full_name}] {value}"),
                ),
            },
            _ if scheme.starts_with("git@") => match GitRef::parse(value)? {
                Some(git) => {
                    let name = format!("[internal] load git source {value}");
                    fixed(Source::git(&git.options()), name)
                }
                None => Err(Error::new(Kind::GitContext, [value])),
            },
            _ => Err(Error::new(Kind::ContextUnsupported, [scheme, full_name])),
        }
    }

    async fn load_image(
        &self,
        context: &NamedContext,
        written: &str,
    ) -> Result<Result<Loaded, String>> {
        let full_name = &context.full_name;
        let bad = || Error::new(Kind::BadImageReference, [text::quote(written)]);
        let reference = Reference::parse(written).map_err(|_| bad())?.tagged().to_string();
        let found = self
            .resolve(Resolve {
                reference,
                platform: context.platform.clone(),
                log_name: format!("[context {full_name}] load metadata for {written}"),
                mode: self.options.resolve_mode.as_str(),
                store: None,
            })
            .await?;
        if let Some(target) = found.redirect {
            return Ok(Err(target));
        }
        let mut image = found.image;
        image.created.clear();
        let reference = Reference::parse(&found.reference).map_err(|_| bad())?.tagged();
        let source = NamedSource::Image {
            source: Source::image(&reference.to_string()),
            name: format!("[context {full_name}] {written}"),
        };
        let platform = context.platform.clone();
        Ok(Ok(Loaded { source: Some(source), image: Some(image), platform }))
    }

    async fn load_oci_layout(&self, context: &NamedContext, written: &str) -> Result<Loaded> {
        let full_name = &context.full_name;
        let bad = || Error::noted(Kind::OciLayoutRef, text::quote(written));
        let layout = Plain::parse(written).map_err(|_| bad())?;
        let digest = layout.digest.as_deref().ok_or_else(bad)?;
        // The store is told apart by name; the reference only has to be readable.
        let reference = Reference::parse(&context.name).map_err(|_| bad())?.with_digest(digest);
        let (reference, session) = (reference.to_string(), self.bridge.session_id());
        let found = self
            .resolve(Resolve {
                reference: reference.clone(),
                platform: context.platform.clone(),
                log_name: format!("[context {full_name}] load metadata for {reference}"),
                mode: "",
                store: Some((session.to_owned(), layout.name())),
            })
            .await?;
        let source = NamedSource::Image {
            source: Source::oci_layout(&reference, session, &layout.name()),
            name: format!("[context {full_name}] OCI load from client"),
        };
        let platform = context.platform.clone();
        Ok(Loaded { source: Some(source), image: Some(found.image), platform })
    }

    async fn load_local(&self, context: &NamedContext, local: &str) -> Result<Loaded> {
        let full_name = &context.full_name;
        let session = self.session_of(local).to_owned();
        let options = LocalOptions {
            session: session.clone(),
            follow_paths: vec![ignore::NAME.to_owned()],
            shared_key_hint: format!("context:{full_name}-{}", ignore::NAME),
            differ: "none",
            ..LocalOptions::default()
        };
        let name = format!("[context {full_name}] load {}", ignore::NAME);
        let data = self.read_ignore(local, &options, name, true).await?;
        let key = self.options.get(&format!("sharedkey:localdir:{full_name}")).unwrap_or_default();
        let folder = LocalFolder {
            local: local.to_owned(),
            options: LocalOptions {
                session,
                exclude_patterns: ignore::patterns(ignore::NAME, &data)?,
                shared_key_hint: format!("context:{full_name}-{key}"),
                ..LocalOptions::default()
            },
            name: format!("[context {full_name}] load from client"),
        };
        Ok(Loaded { source: Some(NamedSource::Local(folder)), image: None, platform: None })
    }

    async fn load_input(&self, context: &NamedContext, key: &str) -> Result<Loaded> {
        let full_name = &context.full_name;
        let mut inputs = super::inputs(&*self.bridge).await?;
        let missing = || Error::new(Kind::ContextInputMissing, [key, full_name]);
        let definition = inputs.remove(key).ok_or_else(missing)?;
        let image = match self.options.get(&format!("input-metadata:{key}")) {
            Some(metadata) => input_image(metadata)
                .ok_or_else(|| Error::new(Kind::ContextInput, [key, full_name]))?,
            None => None,
        };
        let platform = platform_of(&definition);
        let source = NamedSource::Fixed(MainSource::from_input(definition));
        Ok(Loaded { source: Some(source), image, platform })
    }
}

/// The image config in the metadata of an input; the outer nothing means it cannot be read.
fn input_image(metadata: &str) -> Option<Option<Image>> {
    let map: BTreeMap<String, String> = serde_json::from_str(metadata).ok()?;
    let Some(config) = map.get("containerimage.config") else { return Some(None) };
    let config = base64::engine::general_purpose::STANDARD.decode(config).ok()?;
    Image::parse(&config).map(Some)
}

/// Platform of the op a definition leads to.
fn platform_of(definition: &pb::Definition) -> Option<Platform> {
    let digest = super::head(definition);
    let bytes =
        definition.def.iter().find(|bytes| base::Digest::of(bytes).to_string() == digest)?;
    let platform = pb::Op::decode(bytes.clone()).ok()?.platform?;
    Some(Platform {
        architecture: platform.architecture,
        os: platform.os,
        os_version: platform.os_version,
        os_features: platform.os_features,
        variant: platform.variant,
    })
}
