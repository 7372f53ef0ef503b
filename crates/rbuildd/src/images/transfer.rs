//! Pull and push: an image from or to the registry of its name, told as docker tells it.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use async_trait::async_trait;
use base::{Digest, Platform};
use engine::run::LocalImage;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use llb::pb;
use oci::{
    BlobStream, Descriptor, Manifest, Provider, Reference, Registry, content, media,
    registry::Pushed,
    types::{ANNOTATION_DISTRIBUTION_SOURCE, MAX_MANIFEST},
};
use proto::rbuild::v1 as wire;
use source::{MetaRequest, SourceError, SourceRequest};
use store::{LayerBlob, LayerStage, Store};
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::Status;

use super::{Images, failed, mismatch, number, parse_name, platform, view::Member};
use crate::pipe::{Answers, Owning};

/// Blobs of one push in flight; the registry client has its own limit per host.
const PUSHES: usize = 8;
/// Moving numbers are told this often at most.
const PAUSE: Duration = Duration::from_millis(100);

/// Where the events of a transfer go. A transfer tells few of them, so they may wait unboundedly.
#[derive(Clone)]
struct Events(mpsc::UnboundedSender<Result<wire::TransferEvent, Status>>);

impl Events {
    fn say(&self, id: impl Into<String>, status: impl Into<String>) {
        self.count(id, status, 0, 0);
    }

    fn count(&self, id: impl Into<String>, status: impl Into<String>, current: u64, total: u64) {
        _ = self.0.send(Ok(wire::TransferEvent {
            id: id.into(),
            status: status.into(),
            current: number(current),
            total: number(total),
            done: None,
        }));
    }

    fn done(&self, done: wire::TransferDone) {
        _ = self.0.send(Ok(wire::TransferEvent { done: Some(done), ..Default::default() }));
    }
}

/// Runs a transfer for as long as somebody listens to it.
fn stream_of<F>(work: impl FnOnce(Events) -> F) -> Answers<wire::TransferEvent>
where
    F: Future<Output = Result<(), Status>> + Send + 'static,
{
    let (sender, receiver) = mpsc::unbounded_channel();
    let working = work(Events(sender.clone()));
    let task = tokio::spawn(async move {
        if let Err(status) = working.await {
            _ = sender.send(Err(status));
        }
    });
    Box::pin(Owning::new(UnboundedReceiverStream::new(receiver), task.abort_handle()))
}

fn short(digest: &Digest) -> String {
    digest.hex()[..12].to_owned()
}

/// The error of a registry in the words people look for.
fn pull_error(reference: &Reference, error: &oci::Error) -> Status {
    let name = reference.familiar();
    match error {
        oci::Error::NotFound { .. } => Status::not_found(format!(
            "manifest for {name} not found: manifest unknown: manifest unknown"
        )),
        oci::Error::Unauthorized { message, .. } => Status::permission_denied(format!(
            "pull access denied for {}, repository does not exist or may require 'rbuildctl login': {message}",
            reference.familiar_repository()
        )),
        oci::Error::NoPlatform { wanted, available, .. } => Status::not_found(format!(
            "no matching manifest for {wanted} in the manifest list entries of {name} (there are: {})",
            available.join(", ")
        )),
        other => Status::unknown(other.to_string()),
    }
}

fn source_error(reference: &Reference, error: &SourceError) -> Status {
    match error {
        SourceError::Oci(error) => pull_error(reference, error),
        SourceError::Shared(error) => source_error(reference, error),
        other => Status::unknown(other.to_string()),
    }
}

fn push_error(reference: &Reference, error: oci::Error) -> Status {
    match error {
        oci::Error::Unauthorized { message, .. } => Status::permission_denied(format!(
            "push access denied for {}, repository does not exist or may require authorization \
             (rbuildctl login): {message}",
            reference.familiar_repository()
        )),
        other => Status::unknown(other.to_string()),
    }
}

impl Images {
    fn group(&self, session: &str) -> session::Group {
        let ids: Vec<String> =
            Some(session.to_owned()).filter(|id| !id.is_empty()).into_iter().collect();
        self.engine.sessions().group(ids)
    }

    fn registry(&self, session: &str) -> Arc<dyn Registry> {
        let credentials = Arc::new(source::SessionCredentials::new(self.group(session)));
        Arc::new(self.client.session(credentials, false))
    }

    pub(super) fn start_pull(
        &self,
        request: wire::PullRequest,
    ) -> Result<Answers<wire::TransferEvent>, Status> {
        let reference = parse_name(&request.reference)?;
        let platform = platform(&request.platform)?.unwrap_or_else(|| self.host().clone());
        if request.all_tags && (reference.tag().is_some() || reference.digest().is_some()) {
            return Err(Status::invalid_argument("tag can't be used with --all-tags/-a"));
        }
        let this = self.clone();
        Ok(stream_of(move |events| async move {
            let _busy = this.idle.work();
            if !request.all_tags {
                let reference = reference.with_default_tag();
                return this.pull_one(&reference, &platform, &request.session, &events).await;
            }
            let tags = this.registry(&request.session).tags(&reference).await;
            for tag in tags.map_err(|error| pull_error(&reference, &error))? {
                let reference =
                    reference.with_tag(&tag).map_err(|error| Status::unknown(error.to_string()))?;
                this.pull_one(&reference, &platform, &request.session, &events).await?;
            }
            Ok(())
        }))
    }

    async fn pull_one(
        &self,
        reference: &Reference,
        platform: &Platform,
        session: &str,
        events: &Events,
    ) -> Result<(), Status> {
        let name = reference.to_string();
        let object = reference.object();
        events.say(&object, format!("Pulling from {}", reference.path()));
        let source = SourceRequest {
            op: pb::SourceOp {
                identifier: format!("docker-image://{reference}"),
                attrs: [("image.resolvemode".to_owned(), "pull".to_owned())].into(),
            },
            platform: platform.clone(),
            group: self.group(session),
            // Holds manifests and config until the name does.
            memo: Arc::default(),
            progress: source::Progress::silent(),
        };
        let wrong = |error: SourceError| source_error(reference, &error);
        let sources = &self.engine.machine().sources;
        let question = MetaRequest {
            source: source.clone(),
            resolve_mode: "pull".into(),
            no_config: false,
            attestations: None,
            git_objects: false,
            http_checksum: None,
        };
        let meta = sources.metadata(question).await.map_err(wrong)?.image.unwrap_or_default();
        let store = self.engine.store();
        let digest: Digest =
            meta.digest.parse().map_err(|_| Status::internal("the image has no digest"))?;
        let gone = || Status::unknown(format!("the manifest of {name} vanished"));
        let info = store.content().info(&digest).ok_or_else(gone)?;
        let size = store.content().size(&digest).ok_or_else(gone)?;
        let kind = info.media_type.clone();
        let root = Descriptor::new(info.media_type, digest, size);
        let image = LocalImage::read(store, &name, &root, platform)
            .map_err(|error| gateway::status::to_tonic(&error))?;
        let unpacked = store.unpacked_sizes();
        let diff_ids = image.config.rootfs.diff_ids.iter();
        for (layer, diff_id) in image.manifest.layers.iter().zip(diff_ids) {
            let known = unpacked.contains_key(diff_id) && store.content().contains(&layer.digest);
            let status = if known { "Already exists" } else { "Pulling fs layer" };
            events.say(short(&layer.digest), status);
        }
        let progress = source::Progress::silent();
        let mut instance = sources.resolve(source.clone()).await.map_err(wrong)?;
        instance.cache_key(0, &progress).await.map_err(wrong)?;
        let tree = instance.snapshot(&progress).await.map_err(wrong)?;
        if let Some(tree) = &tree {
            tree.ensure_local(layer_events(events.clone())).await.map_err(failed)?;
            // Layers that were known unpacked still lack the bytes that a push or save needs.
            let diff_ids = image.config.rootfs.diff_ids.iter();
            for (layer, diff_id) in image.manifest.layers.iter().zip(diff_ids) {
                if store.content().contains(&layer.digest) || !layer.urls.is_empty() {
                    continue;
                }
                events.say(short(&layer.digest), "Downloading");
                let blob = LayerBlob {
                    descriptor: layer.clone(),
                    diff_id: *diff_id,
                    created_at: SystemTime::now(),
                    description: String::new(),
                    record: tree.id().clone(),
                    local: false,
                };
                tree.fetch_blob(&blob).await.map_err(failed)?;
                events.say(short(&layer.digest), "Download complete");
            }
        }
        let before = self.images().get(&name).map(|image| image.descriptor.digest);
        self.name(&name, root).await?;
        drop(source);
        let actual = image.config.platform();
        let other = !media::is_index(&kind) && actual.rank_for(platform).is_none();
        let warning = other.then(|| mismatch(&reference.familiar(), platform, Some(&actual)));
        events.done(wire::TransferDone {
            warning: warning.unwrap_or_default(),
            name,
            digest: digest.to_string(),
            size: number(size),
            unchanged: before == Some(digest),
        });
        Ok(())
    }

    pub(super) fn start_push(
        &self,
        request: wire::PushRequest,
    ) -> Result<Answers<wire::TransferEvent>, Status> {
        let reference = parse_name(&request.reference)?;
        let wanted = platform(&request.platform)?;
        if request.all_tags && (reference.tag().is_some() || reference.digest().is_some()) {
            return Err(Status::invalid_argument("tag can't be used with --all-tags/-a"));
        }
        let names: Vec<Reference> = match request.all_tags {
            false => vec![reference.with_default_tag()],
            true => {
                let all = self.images().list().into_iter();
                let all = all.filter_map(|image| Reference::parse(&image.name).ok());
                let repository = reference.repository();
                all.filter(|name| name.tag().is_some() && name.repository() == repository).collect()
            }
        };
        if names.is_empty() {
            return Err(Status::not_found(format!(
                "An image does not exist locally with the tag: {}",
                parse_name(&request.reference)?.familiar_repository()
            )));
        }
        let mut pushes = Vec::new();
        for name in names {
            let image = self.images().get(&name.to_string()).ok_or_else(|| {
                Status::not_found(format!(
                    "An image does not exist locally with the tag: {}",
                    name.familiar_repository()
                ))
            })?;
            pushes.push((name, image.descriptor));
        }
        let this = self.clone();
        Ok(stream_of(move |events| async move {
            let _busy = this.idle.work();
            let first = pushes[0].0.repository();
            events.say("", format!("The push refers to repository [{first}]"));
            for (name, root) in pushes {
                this.push_one(&name, root, wanted.as_ref(), &request.session, &events).await?;
            }
            Ok(())
        }))
    }

    /// What a push of `root` consists of: the manifest to be named and the members below it.
    fn push_plan(
        &self,
        name: &Reference,
        root: Descriptor,
        wanted: Option<&Platform>,
        events: &Events,
    ) -> Result<(Descriptor, Vec<Member>), Status> {
        let view = self.view();
        let mut members = view.members(&root);
        let incomplete = |member: &Member| !view.is_complete(member);
        let lacking: Vec<String> = members
            .iter()
            .filter(|member| incomplete(member))
            .map(|member| match member.attestation {
                true => "an attestation".to_owned(),
                false => member.platform.format(),
            })
            .collect();
        let is_index = media::is_index(&root.media_type);
        if wanted.is_none() && lacking.is_empty() {
            return Ok((root, members));
        }
        let complete: Vec<usize> = (0..members.len())
            .filter(|at| !incomplete(&members[*at]) && !members[*at].attestation)
            .collect();
        let chosen = match wanted {
            Some(platform) => complete
                .into_iter()
                .filter_map(|at| Some((members[at].platform.rank_for(platform)?, at)))
                .min()
                .map(|(_, at)| at),
            None if complete.len() == 1 && is_index => Some(complete[0]),
            None => None,
        };
        let Some(at) = chosen else {
            return Err(Status::failed_precondition(match wanted {
                Some(platform) => {
                    format!("image {} is not here for {}", name.familiar(), platform.format())
                }
                None => format!(
                    "image {} is not complete ({} missing): pull it again, or push one platform \
                     with --platform",
                    name.familiar(),
                    lacking.join(", ")
                ),
            }));
        };
        let member = members.swap_remove(at);
        if wanted.is_none() {
            events.say(
                "",
                format!(
                    "Info: not all of the multi-platform image is here: only {} is pushed",
                    member.platform.format()
                ),
            );
        }
        let descriptor = member.descriptor.clone();
        Ok((descriptor, vec![member]))
    }

    /// Statements of this daemon's builds that refer to the images: which one, and their manifests.
    fn referrers(&self, members: &[Member]) -> Vec<(Digest, Descriptor, Manifest)> {
        let content = self.engine.store().content();
        let images = members.iter().filter(|member| !member.attestation);
        let find = |image: Digest| {
            let noted = content.info(&image)?.labels.remove(exporter::LABEL_REFERRERS)?;
            let digest: Digest = noted.parse().ok()?;
            let body = content.read(&digest, MAX_MANIFEST).ok()?;
            let manifest = Manifest::parse("statements about an image", &body).ok()?;
            let here = manifest.layers.iter().chain([&manifest.config]);
            let whole = here.into_iter().all(|blob| content.contains(&blob.digest));
            let descriptor = Descriptor {
                artifact_type: manifest.artifact_type.clone(),
                ..Descriptor::new(&manifest.media_type, digest, body.len() as u64)
            };
            whole.then_some((image, descriptor, manifest))
        };
        images.filter_map(|member| find(member.descriptor.digest)).collect()
    }

    async fn push_one(
        &self,
        name: &Reference,
        root: Descriptor,
        wanted: Option<&Platform>,
        session: &str,
        events: &Events,
    ) -> Result<(), Status> {
        let (root, members) = self.push_plan(name, root, wanted, events)?;
        let store = self.engine.store();
        let statements = self.referrers(&members);
        let registry = self.registry(session);
        let repository = name.without_tag_and_digest();
        let wrong = |error| push_error(name, error);
        let mut seen = BTreeSet::new();
        let unchanged = registry.has_manifest(name, &root).await.map_err(wrong)?;
        let manifests = || members.iter().filter_map(|member| member.manifest.as_ref());
        let layers = manifests().flat_map(|it| &it.layers).map(|layer| (layer, true));
        let about = statements.iter().map(|(_, _, manifest)| manifest);
        let about = about.flat_map(|it| it.layers.iter().chain([&it.config]));
        let configs = manifests().filter(|_| !unchanged).map(|it| &it.config);
        let configs = configs.chain(about).map(|blob| (blob, false));
        // Foreign layers stay where they are.
        let blobs: Vec<(&Descriptor, bool)> = layers
            .chain(configs)
            .filter(|(blob, _)| blob.urls.is_empty() && seen.insert(blob.digest))
            .collect();
        for (blob, _) in blobs.iter().filter(|(_, shown)| *shown) {
            events.say(short(&blob.digest), "Preparing");
        }
        let (registry, repository_ref) = (&registry, &repository);
        let pushes: Vec<_> = blobs
            .iter()
            .map(|(blob, shown)| async move {
                let events = shown.then_some(events);
                let from = Told { store: store.clone(), events: events.cloned() };
                let sources = sources(store, &blob.digest, repository_ref.domain());
                let pushed = match unchanged && *shown {
                    true => Pushed::Exists,
                    false => registry.push_blob(repository_ref, blob, &from, &sources).await?,
                };
                if let Some(events) = events {
                    let status = match pushed {
                        Pushed::Exists => "Layer already exists".to_owned(),
                        Pushed::Mounted(from) => format!("Mounted from {}", from.path()),
                        Pushed::Uploaded => "Pushed".to_owned(),
                    };
                    events.say(short(&blob.digest), status);
                }
                Ok::<_, oci::Error>(blob.digest)
            })
            .collect();
        let pushed: Vec<Digest> =
            stream::iter(pushes).buffer_unordered(PUSHES).try_collect().await.map_err(wrong)?;
        for digest in pushed {
            note_source(store, &digest, &repository);
        }
        let body = |digest: &Digest| store.content().read(digest, MAX_MANIFEST).map_err(failed);
        if !unchanged {
            for member in members.iter().filter(|member| member.descriptor.digest != root.digest) {
                let text = body(&member.descriptor.digest)?;
                let pushed = registry.push_manifest(&repository, &member.descriptor, text);
                pushed.await.map_err(wrong)?;
            }
            registry.push_manifest(name, &root, body(&root.digest)?).await.map_err(wrong)?;
        }
        for (image, descriptor, _) in &statements {
            let text = body(&descriptor.digest)?;
            registry.push_manifest(&repository, descriptor, text).await.map_err(wrong)?;
            let referring =
                oci::registry::refer(&**registry, &repository, descriptor.clone(), *image);
            referring.await.map_err(wrong)?;
        }
        events.done(wire::TransferDone {
            name: name.to_string(),
            digest: root.digest.to_string(),
            size: number(root.size),
            unchanged: false,
            warning: String::new(),
        });
        Ok(())
    }
}

/// Layers being fetched and unpacked, as docker tells them.
fn layer_events(events: Events) -> store::LayerProgress {
    let told = std::sync::Mutex::new(std::collections::HashMap::<Digest, (u8, Instant)>::new());
    Arc::new(move |descriptor, stage| {
        let number = match stage {
            LayerStage::Waiting => 0,
            LayerStage::Downloading { .. } => 1,
            LayerStage::Extracting => 2,
            LayerStage::Done => 3,
        };
        let mut told = told.lock().expect("no panic while telling");
        let known = told.get(&descriptor.digest).copied();
        let news = known.is_none_or(|(before, at)| {
            number > before || number == 1 && before == 1 && at.elapsed() >= PAUSE
        });
        if !news {
            return;
        }
        told.insert(descriptor.digest, (number, Instant::now()));
        let id = short(&descriptor.digest);
        match stage {
            LayerStage::Waiting => events.say(id, "Waiting"),
            LayerStage::Downloading { current, total } => {
                events.count(id, "Downloading", current, total);
            }
            LayerStage::Extracting => {
                events.say(&id, "Download complete");
                events.say(id, "Extracting");
            }
            LayerStage::Done => events.say(id, "Pull complete"),
        }
    })
}

/// Repositories of `domain` that are known to have a blob.
fn sources(store: &Store, digest: &Digest, domain: &str) -> Vec<Reference> {
    let info = store.content().info(digest).unwrap_or_default();
    let key = format!("{ANNOTATION_DISTRIBUTION_SOURCE}{domain}");
    let notes = [info.labels.get(&key), info.annotations.get(&key)];
    let paths: BTreeSet<&str> =
        notes.into_iter().flatten().flat_map(|paths| paths.split(',')).collect();
    let complete = paths.into_iter().filter(|path| !path.is_empty());
    complete
        .filter_map(|path| Reference::parse_complete(&format!("{domain}/{path}")).ok())
        .collect()
}

/// Remembers that a repository has a blob, so that another one can mount it.
fn note_source(store: &Store, digest: &Digest, repository: &Reference) {
    let key = format!("{ANNOTATION_DISTRIBUTION_SOURCE}{}", repository.domain());
    store.content().describe(digest, |info| {
        let paths = info.labels.entry(key).or_default();
        if !paths.split(',').any(|path| path == repository.path()) {
            if !paths.is_empty() {
                paths.push(',');
            }
            paths.push_str(repository.path());
        }
    });
}

/// The blobs of the store; tells how much of each was read.
struct Told {
    store: Arc<Store>,
    events: Option<Events>,
}

#[async_trait]
impl Provider for Told {
    async fn open(&self, blob: &Descriptor, offset: u64) -> oci::Result<BlobStream> {
        use tokio::io::AsyncSeekExt as _;
        let io = |source| oci::Error::Io {
            what: format!("read blob {} of the image store", blob.digest),
            source,
        };
        let reader = self.store.content().reader(&blob.digest);
        let mut reader = reader.map_err(|error| io(std::io::Error::other(error)))?;
        reader.seek(std::io::SeekFrom::Start(offset)).await.map_err(io)?;
        let data = content::from_reader(reader);
        let Some(events) = self.events.clone() else { return Ok(data) };
        let (id, total) = (short(&blob.digest), blob.size);
        let (mut sent, mut told) = (offset, None::<Instant>);
        Ok(data
            .inspect_ok(move |piece| {
                sent += piece.len() as u64;
                if told.is_none_or(|at| at.elapsed() >= PAUSE) {
                    told = Some(Instant::now());
                    events.count(&id, "Pushing", sent, total);
                }
            })
            .boxed())
    }

    fn describe(&self) -> String {
        "the image store".into()
    }
}
