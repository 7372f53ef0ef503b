//! What a tree was made of: its sources, the secrets its steps could see, whether they had a network.

use std::{collections::BTreeMap, sync::Arc};

use base::Platform;
use frontend_api::{FrontendError, FrontendResult, RefHandle, Refs};
use llb::pb::{self, op::Op};
use serde_json::{Map, Value};
use source::{MetaRequest, SourceRequest};

use super::{
    ImageSource, Scope, Trace,
    json::Object as _,
    request::{Grant, Parameters, Request, redact, shown_options},
};
use crate::{Engine, Job, bridge, failure};

/// Sources with what they led to.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sources {
    pub images: Vec<ImageSource>,
    /// Single blobs of registries and layouts.
    pub blobs: Vec<ImageSource>,
    pub git: Vec<GitSource>,
    /// Address and digest.
    pub http: Vec<(String, String)>,
    pub locals: Vec<String>,
}

/// A git repository.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct GitSource {
    /// Address`#`reference.
    pub url: String,
    pub commit: String,
    /// Locator of the bundle that the commit came from.
    pub bundle: Option<String>,
}

impl GitSource {
    pub(crate) fn digest(&self) -> BTreeMap<String, String> {
        let algorithm = if self.commit.len() == 64 { "sha256" } else { "sha1" };
        [(algorithm.to_owned(), self.commit.clone())].into()
    }
}

impl Sources {
    /// The source that a context names, with its digest.
    pub(crate) fn find(&self, context: &str) -> Option<(String, BTreeMap<String, String>)> {
        let git = dockerfile::git::GitRef::parse(context).ok().flatten();
        let address = |subdir: &str| match &git {
            None => context.to_owned(),
            Some(git) if git.reference.is_empty() && subdir.is_empty() => git.remote.clone(),
            Some(git) if subdir.is_empty() => format!("{}#{}", git.remote, git.reference),
            Some(git) => format!("{}#{}:{subdir}", git.remote, git.reference),
        };
        let plain = address("");
        if let Some(found) = self.git.iter().find(|source| source.url == plain) {
            let subdir = git.as_ref().map_or("", |git| git.subdir.as_str());
            return Some((address(subdir), found.digest()));
        }
        let (url, digest) = self.http.iter().find(|(url, _)| *url == plain)?;
        Some((url.clone(), digest_set(digest)))
    }

    fn add_image(&mut self, image: ImageSource) {
        let same_platform = |known: &Option<Platform>| match (known, &image.platform) {
            (None, None) => true,
            (Some(known), Some(platform)) => {
                known.architecture == platform.architecture
                    && known.os == platform.os
                    && known.os_version == platform.os_version
                    && known.variant == platform.variant
            }
            _ => false,
        };
        let known = self.images.iter().any(|known| {
            known.reference == image.reference
                && known.local == image.local
                && same_platform(&known.platform)
        });
        if !known {
            self.images.push(image);
        }
    }

    /// Images named by digest only repeat what is there under the tag.
    fn drop_repeated_images(&mut self) {
        let parse = |image: &ImageSource| oci::Reference::parse(&image.reference).ok();
        let name = |reference: &oci::Reference| {
            format!("{}:{}", reference.repository(), reference.tag().unwrap_or("latest"))
        };
        let by_tag: Vec<String> = self
            .images
            .iter()
            .filter_map(parse)
            .filter(|reference| reference.digest().is_none())
            .map(|reference| name(&reference))
            .collect();
        self.images.retain(|image| {
            parse(image).is_none_or(|reference| {
                reference.digest().is_none() || !by_tag.contains(&name(&reference))
            })
        });
    }
}

pub(crate) fn digest_set(digest: &str) -> BTreeMap<String, String> {
    let parts = digest.split_once(':');
    parts.map(|(algorithm, hex)| (algorithm.to_owned(), hex.to_owned())).into_iter().collect()
}

/// See the module.
#[derive(Debug, Clone, Default)]
pub(crate) struct Capture {
    pub request: Request,
    pub sources: Sources,
    /// A step had a network.
    pub network: bool,
    /// Steps had their network through a recording proxy.
    pub proxied: bool,
    /// What steps were given through it that is not known by content.
    pub unrecorded: Vec<Unrecorded>,
    /// Something could not be followed.
    pub incomplete: bool,
}

/// A request of a step whose content is not known.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Unrecorded {
    /// The step's vertex.
    pub op: String,
    pub url: String,
    pub method: String,
    pub reason: &'static str,
    /// The step's command.
    pub name: String,
}

impl Unrecorded {
    pub(crate) fn to_json(&self) -> Value {
        let mut object = Map::new();
        object.text("op", &self.op);
        object.text("name", &self.name);
        object.text("method", &self.method);
        object.text("uri", &self.url);
        object.text("reason", self.reason);
        Value::Object(object)
    }
}

impl Capture {
    fn merge(&mut self, other: Self) {
        for image in other.sources.images {
            self.sources.add_image(image);
        }
        for blob in other.sources.blobs {
            self.add_blob(blob);
        }
        other.sources.locals.into_iter().for_each(|local| self.add_local(local));
        other.sources.git.into_iter().for_each(|git| self.add_git(git));
        for (url, digest) in other.sources.http {
            self.add_http(url, digest);
        }
        let from = other.request.parameters;
        let to = &mut self.request.parameters;
        from.secrets.into_iter().for_each(|secret| add_grant(&mut to.secrets, secret));
        from.ssh.into_iter().for_each(|ssh| add_grant(&mut to.ssh, ssh));
        self.network |= other.network;
        self.proxied |= other.proxied;
        self.unrecorded.extend(other.unrecorded);
        self.incomplete |= other.incomplete;
    }

    fn sort(&mut self) {
        let sources = &mut self.sources;
        sources.images.sort_by(|left, right| left.reference.cmp(&right.reference));
        sources.blobs.sort_by(|left, right| left.reference.cmp(&right.reference));
        sources.locals.sort();
        sources.git.sort_by(|left, right| left.url.cmp(&right.url));
        sources.http.sort_by(|left, right| left.0.cmp(&right.0));
        self.unrecorded.sort();
        self.unrecorded.dedup();
        let Parameters { secrets, ssh, .. } = &mut self.request.parameters;
        secrets.sort_by(|left, right| left.id.cmp(&right.id));
        ssh.sort_by(|left, right| left.id.cmp(&right.id));
    }

    fn add_blob(&mut self, blob: ImageSource) {
        let blobs = &mut self.sources.blobs;
        if !blobs.iter().any(|known| known.reference == blob.reference && known.local == blob.local)
        {
            blobs.push(blob);
        }
    }

    fn add_local(&mut self, name: String) {
        if !self.sources.locals.contains(&name) {
            self.sources.locals.push(name);
        }
    }

    fn add_git(&mut self, mut git: GitSource) {
        git.url = redact(&git.url);
        let same = |known: &GitSource| known.url == git.url && known.bundle == git.bundle;
        if !self.sources.git.iter().any(same) {
            self.sources.git.push(git);
        }
    }

    fn add_http(&mut self, url: String, digest: String) {
        let url = redact(&url);
        if !self.sources.http.iter().any(|(known, _)| *known == url) {
            self.sources.http.push((url, digest));
        }
    }

    fn add_secret(&mut self, id: &str, optional: bool) {
        let grant = Grant { id: id.to_owned(), optional };
        add_grant(&mut self.request.parameters.secrets, grant);
    }

    fn add_ssh(&mut self, id: &str, optional: bool) {
        let id = if id.is_empty() { "default" } else { id };
        let grant = Grant { id: id.to_owned(), optional };
        add_grant(&mut self.request.parameters.ssh, grant);
    }

    fn add_exec(&mut self, exec: &pb::ExecOp) {
        for mount in &exec.mounts {
            match pb::MountType::try_from(mount.mount_type) {
                Ok(pb::MountType::Secret) => {
                    let given = mount.secret_opt.as_ref();
                    let (id, optional) = given.map_or(("", false), |it| (&it.id, it.optional));
                    self.add_secret(id, optional);
                }
                Ok(pb::MountType::Ssh) => {
                    let given = mount.ssh_opt.as_ref();
                    let (id, optional) = given.map_or(("", false), |it| (&it.id, it.optional));
                    self.add_ssh(id, optional);
                }
                _ => {}
            }
        }
        for secret in &exec.secretenv {
            self.add_secret(&secret.id, secret.optional);
        }
        self.network |= exec.network != pb::NetMode::None as i32;
    }

    /// What a step asked for through its proxy; nothing is known if it did not have to run.
    fn add_requests(&mut self, op: String, exec: &pb::ExecOp, record: &netproxy::Record) {
        for material in record.all_materials() {
            self.add_http(material.url, material.digest.to_string());
        }
        self.incomplete |= !record.incomplete.is_empty();
        let name = exec.meta.as_ref().map(|meta| meta.args.join(" ")).unwrap_or_default();
        self.unrecorded.extend(record.incomplete.iter().map(|request| Unrecorded {
            op: op.clone(),
            url: request.url.clone(),
            method: request.method.clone(),
            reason: request.reason,
            name: name.clone(),
        }));
    }
}

fn add_grant(list: &mut Vec<Grant>, grant: Grant) {
    match list.iter_mut().find(|known| known.id == grant.id) {
        Some(known) => known.optional &= grant.optional,
        None => list.push(grant),
    }
}

/// Address and reference of a git source.
fn git_url(source: &pb::SourceOp) -> String {
    let rest = source.identifier.split_once("://").map_or("", |(_, rest)| rest);
    let with_scheme = |address: &str| {
        let known = ["http://", "https://", "ssh://", "git://"];
        let scp = address.split_once(':').is_some_and(|(host, path)| {
            host.contains('@') && !host.contains('/') && !path.starts_with("//")
        });
        match scp || known.iter().any(|scheme| address.starts_with(scheme)) {
            true => address.to_owned(),
            false => format!("https://{address}"),
        }
    };
    let (address, fragment) = rest.split_once('#').unwrap_or((rest, ""));
    let remote = match source.attrs.get("git.fullurl") {
        Some(full) => with_scheme(full),
        None => with_scheme(address),
    };
    match fragment.split(':').next().unwrap_or_default() {
        "" => remote,
        reference => format!("{remote}#{reference}"),
    }
}

impl Engine {
    /// What the tree of `trace` was made of, and what else the scope it belongs to looked at.
    /// `others` are the result's trees; of images that are there for each of `platforms`, only
    /// those of `platform` count.
    pub(super) async fn capture(
        &self,
        job: &Arc<Job>,
        scope: &Arc<Scope>,
        trace: &Arc<Trace>,
        others: &[Arc<Trace>],
        platform: Option<(&str, &[exporter::PlatformResult])>,
    ) -> Result<Capture, FrontendError> {
        let scope = scope.find(trace).ok_or_else(|| {
            failure::internal("capture provenance", "a result that no frontend asked for")
        })?;
        let mut capture = self.sources_of(job, trace).await?;
        if let Some(asked) = &scope.asked {
            let parameters = std::mem::take(&mut capture.request.parameters);
            let args = shown_options(&asked.options);
            // The source is taken out of the arguments once all sources are known.
            capture.request.parameters = Parameters {
                frontend: asked.frontend.clone(),
                args: args.clone(),
                inputs: self.requests.inputs(asked),
                ..parameters
            };
            let mut request = Request::new(&asked.frontend, args, &capture.sources);
            request.parameters.inputs.clone_from(&capture.request.parameters.inputs);
            let root = self.requests.root(&scope, &capture.sources, &request);
            capture.request.parameters.root = root.map(Box::new);
        }
        for other in scope.traces() {
            let known = |known: &Arc<Trace>| Arc::ptr_eq(known, &other);
            if Arc::ptr_eq(&other, trace) || others.iter().any(known) || !other.is_built() {
                continue;
            }
            capture.merge(self.sources_of(job, &other).await?);
        }
        let mut images = scope.images();
        if let Some((id, platforms)) = platform {
            images = of_platform(id, platforms, images);
        }
        for image in images {
            capture.sources.add_image(image);
        }
        capture.sources.drop_repeated_images();
        capture.sort();
        Ok(capture)
    }

    /// Remembers what led to a result, for builds that take it as an input.
    pub(crate) async fn remember_request(
        &self,
        job: &Arc<Job>,
        scope: &Arc<Scope>,
        result: &FrontendResult,
        evaluated: bool,
    ) {
        let handles: Vec<&RefHandle> = match &result.refs {
            Refs::Single(single) => single.iter().collect(),
            Refs::Map(map) => map.values().flatten().collect(),
        };
        for handle in handles {
            let Ok(lazy) = bridge::lazy(handle) else { continue };
            let Some(owner) = scope.find(lazy.trace()) else { continue };
            let Some(asked) = &owner.asked else { continue };
            // Sources only matter for where a context came from.
            let has_context = asked.options.keys().any(|key| key.contains("context"));
            let sources = match evaluated && has_context {
                true => self.sources_of(job, lazy.trace()).await.unwrap_or_default().sources,
                false => Sources::default(),
            };
            self.requests.add(lazy.trace().definition(), &owner, &sources);
        }
    }

    /// The sources of one graph.
    pub(super) async fn sources_of(
        &self,
        job: &Arc<Job>,
        trace: &Trace,
    ) -> Result<Capture, FrontendError> {
        let default = bridge::default_platform(self);
        let options = llb::ParseOptions {
            default_platform: &default,
            capabilities: None,
            proxy_network: job.proxy_network,
        };
        let definition = llb::Definition::parse(trace.definition(), &options)
            .map_err(|error| FrontendError::new(error.to_string()))?;
        let mut capture = Capture::default();
        for vertex in definition.vertices() {
            match &vertex.op.op {
                Some(Op::Source(source)) => {
                    let platform = vertex.op.platform.as_ref().map(Platform::from);
                    let platform = platform.unwrap_or_else(|| default.clone());
                    self.add_source(job, source, platform, &mut capture).await?;
                }
                Some(Op::Exec(exec)) => {
                    capture.add_exec(exec);
                    capture.proxied |= vertex.proxied;
                    let record = self.jobs.requested_by(&vertex.digest);
                    if let Some(record) = record.filter(|_| vertex.proxied) {
                        capture.add_requests(vertex.digest.to_string(), exec, &record);
                    }
                }
                // What a nested build used is not known.
                Some(Op::Build(_)) => capture.incomplete = true,
                _ => {}
            }
        }
        Ok(capture)
    }

    async fn add_source(
        &self,
        job: &Arc<Job>,
        source: &pb::SourceOp,
        platform: Platform,
        capture: &mut Capture,
    ) -> Result<(), FrontendError> {
        let (scheme, rest) = source.identifier.split_once("://").unwrap_or_default();
        let named = rest.rsplit_once('@').map(|(_, digest)| digest);
        let pinned = named.filter(|digest| digest.parse::<base::Digest>().is_ok());
        match scheme {
            "docker-image" | "oci-layout" => {
                let digest = match pinned {
                    Some(digest) => digest.to_owned(),
                    None => {
                        let meta = self.source_meta(job, source, &platform).await?;
                        meta.image.map(|image| image.digest).unwrap_or_default()
                    }
                };
                capture.sources.add_image(ImageSource {
                    reference: rest.to_owned(),
                    platform: Some(platform.normalize()),
                    digest,
                    local: scheme == "oci-layout",
                });
            }
            "docker-image+blob" | "oci-layout+blob" => capture.add_blob(ImageSource {
                reference: rest.to_owned(),
                platform: None,
                digest: pinned.unwrap_or_default().to_owned(),
                local: scheme == "oci-layout+blob",
            }),
            "git" => {
                let meta = self.source_meta(job, source, &platform).await?;
                let commit = meta.git.map(|git| git.checksum).unwrap_or_default();
                let bundle = source.attrs.get("git.bundle").filter(|it| !it.is_empty()).cloned();
                capture.add_git(GitSource { url: git_url(source), commit, bundle });
                for key in ["git.authtokensecret", "git.authheadersecret"] {
                    if let Some(id) = source.attrs.get(key).filter(|id| !id.is_empty()) {
                        capture.add_secret(id, true);
                    }
                }
                if let Some(id) = source.attrs.get("git.mountsshsock").filter(|id| !id.is_empty()) {
                    capture.add_ssh(id, true);
                }
            }
            "http" | "https" => {
                let meta = self.source_meta(job, source, &platform).await?;
                let digest = meta.http.map(|http| http.checksum).unwrap_or_default();
                capture.add_http(source.identifier.clone(), digest);
            }
            "local" => capture.add_local(rest.to_owned()),
            _ => capture.incomplete = true,
        }
        Ok(())
    }

    /// Where a source led in this build: what the build resolved is remembered.
    async fn source_meta(
        &self,
        job: &Arc<Job>,
        source: &pb::SourceOp,
        platform: &Platform,
    ) -> Result<source::Meta, FrontendError> {
        let request = MetaRequest {
            source: SourceRequest {
                op: source.clone(),
                platform: platform.normalize(),
                group: self.machine.sessions.group([job.session.clone()]),
                memo: job.memo.clone(),
                progress: source::Progress::new(|_| {}),
            },
            resolve_mode: String::new(),
            no_config: true,
            attestations: None,
            git_objects: false,
            http_checksum: None,
        };
        let meta = self.machine.sources.metadata(request).await;
        meta.map_err(|error| {
            failure::from_op(&error.into())
                .context(format!("failed to capture provenance of {}", redact(&source.identifier)))
        })
    }
}

/// Leaves out images for other platforms, if there is one for every platform of the result.
fn of_platform(
    id: &str,
    platforms: &[exporter::PlatformResult],
    images: Vec<ImageSource>,
) -> Vec<ImageSource> {
    let is_for = |image: &ImageSource, platform: &Platform| {
        image.platform.as_ref().is_some_and(|own| own.normalize().matches(&platform.normalize()))
    };
    let of_all = |reference: &str| {
        platforms.iter().all(|platform| {
            images
                .iter()
                .any(|image| image.reference == reference && is_for(image, &platform.platform))
        })
    };
    let current = platforms.iter().find(|platform| platform.id == id).map(|it| &it.platform);
    let wanted = |image: &&ImageSource| match (&image.platform, current) {
        (Some(own), Some(current)) if of_all(&image.reference) => {
            own.os == current.os && own.architecture == current.architecture
        }
        _ => true,
    };
    images.iter().filter(wanted).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn git_addresses() {
        let url = |identifier: &str, full: Option<&str>| {
            git_url(&pb::SourceOp {
                identifier: identifier.into(),
                attrs: full.map(|full| ("git.fullurl".into(), full.into())).into_iter().collect(),
            })
        };
        assert_eq!(url("git://h.io/a.git#main:sub", None), "https://h.io/a.git#main");
        assert_eq!(url("git://h.io/a.git", Some("git@h.io:a.git")), "git@h.io:a.git");
        assert_eq!(url("git://h.io/a#v1", Some("ssh://h.io/a")), "ssh://h.io/a#v1");
    }

    #[test]
    fn images_by_digest_repeat_those_by_tag() {
        let image = |reference: &str| ImageSource {
            reference: reference.into(),
            platform: None,
            digest: String::new(),
            local: false,
        };
        let digest = base::Digest::of("x");
        let mut sources = Sources::default();
        for reference in [format!("docker.io/library/a:1@{digest}"), "docker.io/library/a:1".into()]
        {
            sources.add_image(image(&reference));
        }
        sources.add_image(image(&format!("docker.io/library/b@{digest}")));
        sources.drop_repeated_images();
        let left: Vec<_> = sources.images.iter().map(|image| image.reference.clone()).collect();
        assert_eq!(
            left,
            ["docker.io/library/a:1".to_owned(), format!("docker.io/library/b@{digest}")]
        );
    }
}
