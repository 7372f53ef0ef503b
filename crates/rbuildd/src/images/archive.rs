//! `save` and `load`: images as one tar that is both an OCI layout and what docker reads.
//!
//! A save writes blobs straight from the store into the answer. A load puts each blob of the tar
//! straight into the store, where it is held until its image has a name; what no image speaks of is
//! garbage then. Blobs that are here already are passed over.

use std::{
    collections::{BTreeSet, HashMap},
    io::{self, Read as _, Write},
    sync::Arc,
};

use base::{Digest, gojson, gotar};
use engine::run::LocalImage;
use oci::{
    Descriptor, Index, Manifest, Reference,
    compress::Limits,
    layout::{self, Found, SavedImage},
    media, types,
};
use proto::rbuild::v1 as wire;
use snapshot::layer::compression::{self, Compression};
use store::{Blob, BlobInfo, Store};
use tokio::sync::mpsc;
use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};
use tonic::{Status, Streaming};

use super::{DANGLING, Images, failed, parse_name, platform, view::Member};
use crate::pipe::{self, Answers, Owning};

/// Indexes inside indexes that are followed.
const MAX_DEPTH: usize = 4;

/// What goes into a tar.
#[derive(Default)]
struct Plan {
    blobs: BTreeSet<(Digest, u64)>,
    entries: Vec<Descriptor>,
    docker: Vec<SavedImage>,
    holds: Vec<Blob>,
}

impl Plan {
    fn blob(&mut self, store: &Store, descriptor: &Descriptor) -> Result<(), Status> {
        // Foreign layers are named, not carried.
        if !descriptor.urls.is_empty() || !self.blobs.insert((descriptor.digest, descriptor.size)) {
            return Ok(());
        }
        let hold = store.content().hold(&descriptor.digest).ok_or_else(|| {
            Status::not_found(format!("blob {} of the image is not here", descriptor.digest))
        })?;
        self.holds.push(hold);
        Ok(())
    }

    fn member(&mut self, store: &Store, member: &Member) -> Result<(), Status> {
        let Some(manifest) = &member.manifest else { return Ok(()) };
        self.blob(store, &member.descriptor)?;
        for blob in manifest.layers.iter().chain([&manifest.config]) {
            self.blob(store, blob)?;
        }
        Ok(())
    }

    fn write(&self, out: &mut dyn Write, store: &Store) -> io::Result<()> {
        gotar::Header::folder("blobs/", 0o755).write(out)?;
        gotar::Header::folder("blobs/sha256/", 0o755).write(out)?;
        for (digest, size) in &self.blobs {
            let name = format!("blobs/sha256/{}", digest.hex());
            gotar::Header::file(name, 0o644, *size).write(out)?;
            let file = store.content().open(digest).map_err(io::Error::other)?;
            let copied = io::copy(&mut file.take(*size), out)?;
            if copied != *size {
                let text = format!("blob {digest} is shorter than its descriptor says");
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, text));
            }
            gotar::write_padding(out, *size)?;
        }
        let index = gojson::to_vec(&Index::new(true, self.entries.clone()));
        let docker = gojson::to_vec(&self.docker);
        for (name, mode, data) in [
            ("index.json", 0o644, index.as_slice()),
            ("manifest.json", 0o644, &docker),
            ("oci-layout", 0o444, layout::MARKER),
        ] {
            gotar::Header::file(name, mode, data.len() as u64).write(out)?;
            out.write_all(data)?;
            gotar::write_padding(out, data.len() as u64)?;
        }
        gotar::write_end(out)?;
        out.flush()
    }
}

impl Images {
    pub(super) fn start_save(
        &self,
        request: wire::SaveRequest,
    ) -> Result<Answers<wire::Chunk>, Status> {
        let plan = self.plan(&request)?;
        let store = self.engine.store().clone();
        let busy = self.idle.work();
        let (sender, mut data) = mpsc::channel(pipe::QUEUE);
        let (answers, receiver) = mpsc::channel(pipe::QUEUE);
        let writing =
            tokio::task::spawn_blocking(move || plan.write(&mut pipe::Sender::new(sender), &store));
        tokio::spawn(async move {
            while let Some(data) = data.recv().await {
                if answers.send(Ok(wire::Chunk { data })).await.is_err() {
                    return;
                }
            }
            let outcome = writing.await.map_err(io::Error::other).and_then(|written| written);
            if let Err(error) = outcome {
                _ = answers.send(Err(Status::unknown(format!("save images: {error}")))).await;
            }
            drop(busy);
        });
        Ok(Box::pin(ReceiverStream::new(receiver)))
    }

    fn plan(&self, request: &wire::SaveRequest) -> Result<Plan, Status> {
        let (view, store) = (self.view(), self.engine.store());
        let wanted = platform(&request.platform)?;
        let mut plan = Plan::default();
        let mut seen = BTreeSet::new();
        for text in &request.references {
            for (name, root) in self.saved(text)? {
                if !seen.insert((name.clone(), root.digest)) {
                    continue;
                }
                let mut members = view.members(&root);
                let mut root = Descriptor { annotations: Default::default(), ..root };
                if let Some(wanted) = &wanted {
                    let best = view.best(&members, wanted).map(|member| member.descriptor.digest);
                    members.retain(|member| Some(member.descriptor.digest) == best);
                    let [member] = &members[..] else {
                        return Err(Status::not_found(format!(
                            "image {text} was found but does not provide the specified platform ({})",
                            wanted.format()
                        )));
                    };
                    root = member.descriptor.clone();
                }
                // Of an index that is here in part, that part.
                members.retain(|member| view.is_complete(member));
                let Some(shown) = view.shown(&members) else {
                    let text = format!("image {text} is not complete: pull it again");
                    return Err(Status::failed_precondition(text));
                };
                plan.blob(store, &root)?;
                let tags = name.iter().map(Reference::familiar).collect::<Vec<_>>();
                plan.docker_entry(shown, tags);
                for member in &members {
                    plan.member(store, member)?;
                }
                plan.entries.push(match &name {
                    None => root,
                    Some(name) => {
                        let tag = name.tag().unwrap_or("latest").to_owned();
                        root.annotate(types::ANNOTATION_IMAGE_NAME, name.to_string())
                            .annotate(types::ANNOTATION_REF_NAME, tag)
                    }
                });
            }
        }
        Ok(plan)
    }

    /// What an argument stands for: a name, all tags of a repository, or an id.
    fn saved(&self, text: &str) -> Result<Vec<(Option<Reference>, Descriptor)>, Status> {
        let reference = Reference::parse(text).ok();
        if let Some(reference) = &reference
            && reference.tag().is_none()
            && reference.digest().is_none()
        {
            let repository = reference.repository();
            let all = self.images().list().into_iter().filter_map(|image| {
                let name = Reference::parse(&image.name).ok()?;
                let tagged = name.tag().is_some() && name.repository() == repository;
                tagged.then_some((Some(name), image.descriptor))
            });
            let all: Vec<_> = all.collect();
            if !all.is_empty() {
                return Ok(all);
            }
        }
        let image = self.find(text)?;
        let by_name = reference
            .filter(|name| name.digest().is_none())
            .filter(|name| name.clone().with_default_tag().to_string() == image.name);
        Ok(vec![(by_name.map(Reference::with_default_tag), image.descriptor)])
    }

    pub(super) fn start_load(
        &self,
        mut request: Streaming<wire::Chunk>,
    ) -> Answers<wire::LoadEvent> {
        let (data, incoming) = mpsc::channel(pipe::QUEUE);
        let (answers, receiver) = mpsc::channel(pipe::QUEUE);
        let this = self.clone();
        tokio::spawn(async move {
            while let Some(message) = request.next().await {
                if data.send(message.map(|chunk| chunk.data)).await.is_err() {
                    return;
                }
            }
        });
        let task = tokio::spawn(async move {
            let _busy = this.idle.work();
            if let Err(status) = this.load(incoming, &answers).await {
                _ = answers.send(Err(status)).await;
            }
        });
        Box::pin(Owning::new(ReceiverStream::new(receiver), task.abort_handle()))
    }

    async fn load(
        &self,
        incoming: mpsc::Receiver<Result<bytes::Bytes, Status>>,
        answers: &mpsc::Sender<Result<wire::LoadEvent, Status>>,
    ) -> Result<(), Status> {
        let mut taken = Taken { store: self.engine.store().clone(), holds: HashMap::new() };
        let reading = tokio::task::spawn_blocking(move || {
            let mut reader = pipe::Receiver::new(incoming);
            let tar = whole(&mut reader)
                .map_err(|source| oci::Error::Io { what: "read image tar".into(), source })?;
            let index = layout::read_tar(tar, Limits::default(), &mut taken)?;
            // What follows the tar (padding) is read, so that the sender can end.
            let mut rest = [0; 64 << 10];
            while matches!(reader.read(&mut rest), Ok(1..)) {}
            Ok::<_, oci::Error>((index, taken))
        });
        let read = reading.await.map_err(|error| Status::internal(error.to_string()))?;
        let (index, mut taken) =
            read.map_err(|error| Status::invalid_argument(format!("invalid tar: {error}")))?;
        let images = layout::images(&index);
        if images.is_empty() {
            return Err(Status::invalid_argument("invalid tar: it holds no images"));
        }
        for image in images {
            let _hold = taken.manifest(&image.descriptor, MAX_DEPTH)?;
            self.loaded(&image, answers).await?;
        }
        Ok(())
    }

    /// Names an image whose blobs are here, and unpacks it.
    async fn loaded(
        &self,
        image: &Found,
        answers: &mpsc::Sender<Result<wire::LoadEvent, Status>>,
    ) -> Result<(), Status> {
        let root = Descriptor { annotations: Default::default(), ..image.descriptor.clone() };
        let shown = image.names.first().map_or("the loaded image", String::as_str);
        let store = self.engine.store();
        let local = {
            let view = self.view();
            let members = view.members(&root);
            let member = view.shown(&members);
            member.map(|member| (member.platform.clone(), member.descriptor.clone()))
        };
        let Some((platform, member)) = local else {
            let text = format!("invalid tar: {shown} has no manifest in it");
            return Err(Status::invalid_argument(text));
        };
        let wrong = |error| gateway::status::to_tonic(&error);
        let local = LocalImage::read(store, shown, &member, &platform).map_err(wrong)?;
        let _tree = local.unpack(&self.engine, shown, store::no_progress()).await.map_err(wrong)?;
        let id = local.manifest.config.digest.to_string();
        let mut named = false;
        for name in &image.names {
            let Ok(name) = parse_name(name) else { continue };
            let name = name.with_default_tag().to_string();
            let replaced = self.name(&name, root.clone()).await?;
            let view = self.view();
            let replaced = replaced.map(|before| {
                let members = view.members(&before);
                let manifest = view.shown(&members).and_then(|member| member.manifest.as_ref());
                manifest.map_or(before.digest, |manifest| manifest.config.digest).to_string()
            });
            named = true;
            let event =
                wire::LoadEvent { name, id: id.clone(), replaced: replaced.unwrap_or_default() };
            _ = answers.send(Ok(event)).await;
        }
        if !named {
            let has_name =
                self.images().list().iter().any(|it| it.descriptor.digest == root.digest);
            if !has_name {
                let nameless = format!("{DANGLING}{}", root.digest);
                self.images().tag(&nameless, root).await.map_err(failed)?;
            }
            let event = wire::LoadEvent { id, ..Default::default() };
            _ = answers.send(Ok(event)).await;
        }
        Ok(())
    }
}

impl Plan {
    fn docker_entry(&mut self, member: &Member, tags: Vec<String>) {
        let Some(manifest) = &member.manifest else { return };
        let image = SavedImage::new(&manifest.config, &manifest.layers, tags);
        // One entry an image, with all of its names.
        match self.docker.iter_mut().find(|entry| entry.config == image.config) {
            Some(known) => {
                let names = image.repo_tags.unwrap_or_default();
                known.repo_tags.get_or_insert_default().extend(names);
            }
            None => self.docker.push(image),
        }
    }
}

/// The blobs of a tar, held in the store.
struct Taken {
    store: Arc<Store>,
    holds: HashMap<Digest, Blob>,
}

impl layout::Sink for Taken {
    fn has(&mut self, digest: &Digest) -> Option<u64> {
        let held = self.store.content().hold(digest)?;
        let size = held.size();
        self.holds.insert(*digest, held);
        Some(size)
    }

    fn keep(&mut self, data: &mut dyn io::Read) -> io::Result<(Digest, u64)> {
        let mut writer = self.store.content().writer().map_err(io::Error::other)?;
        layout::copy(data, &mut writer)?;
        let blob = writer.commit(None, None, BlobInfo::default()).map_err(io::Error::other)?;
        let (digest, size) = (blob.digest(), blob.size());
        self.holds.insert(digest, blob);
        Ok((digest, size))
    }

    fn open(&self, digest: &Digest) -> io::Result<std::fs::File> {
        self.store.content().open(digest).map_err(io::Error::other)
    }
}

impl Taken {
    /// Notes what a manifest or index is, what it speaks of, and what its blobs are.
    fn manifest(&mut self, descriptor: &Descriptor, depth: usize) -> Result<Blob, Status> {
        let invalid = |text: String| Status::invalid_argument(format!("invalid tar: {text}"));
        let wrong = |error: oci::Error| invalid(error.to_string());
        if depth == 0 {
            return Err(invalid("indexes are nested too deeply".into()));
        }
        let what = format!("manifest {}", descriptor.digest);
        let size = self.length(&descriptor.digest);
        let size = size.ok_or_else(|| invalid(format!("{what} is not in it")))?;
        if size > types::MAX_MANIFEST {
            return Err(invalid(format!("{what} is too large")));
        }
        let store = self.store.clone();
        let content = store.content();
        let body = content.read(&descriptor.digest, types::MAX_MANIFEST).map_err(failed)?;
        let kind = media::detect_manifest(&body).unwrap_or_else(|| descriptor.media_type.clone());
        let mut children = Vec::new();
        if media::is_index(&kind) {
            let index = Index::parse(&what, &body).map_err(wrong)?;
            // Tars of one platform hold only its part of the index.
            for child in index.manifests {
                if self.holds.contains_key(&child.digest) {
                    self.manifest(&child, depth - 1)?;
                    children.push(child.digest);
                }
            }
        } else {
            let manifest = Manifest::parse(&what, &body).map_err(wrong)?;
            for blob in manifest.layers.iter().chain([&manifest.config]) {
                children.push(blob.digest);
                if !blob.urls.is_empty() {
                    continue;
                }
                match self.length(&blob.digest) {
                    Some(size) if size == blob.size => {}
                    Some(size) => {
                        let text = format!("blob {} is {size} bytes long", blob.digest);
                        return Err(invalid(format!("{text}, not {}", blob.size)));
                    }
                    None => return Err(invalid(format!("blob {} is not in it", blob.digest))),
                }
                content.describe(&blob.digest, |info| info.media_type.clone_from(&blob.media_type));
            }
        }
        let info = BlobInfo::of_type(&kind).referencing(children);
        content.put(&body, info).map_err(failed)
    }

    /// Length of a blob that was in the tar or is in the store, and is held from now on.
    fn length(&mut self, digest: &Digest) -> Option<u64> {
        match self.holds.get(digest) {
            Some(held) => Some(held.size()),
            None => layout::Sink::has(self, digest),
        }
    }
}

/// Undoes the compressions in which only whole tars come; layers have others.
fn whole<'a>(stream: &'a mut (impl io::Read + Send)) -> io::Result<Box<dyn io::Read + Send + 'a>> {
    const MAGIC: u64 = 6;
    let mut start = Vec::new();
    stream.by_ref().take(MAGIC).read_to_end(&mut start)?;
    let found = Compression::detect(&start);
    let stream = io::Cursor::new(start).chain(stream);
    match found {
        Compression::Bzip2 | Compression::Xz => compression::decompress(stream),
        Compression::None | Compression::Gzip | Compression::Zstd => Ok(Box::new(stream)),
    }
}
