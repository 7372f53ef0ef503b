//! `save` and `load`: images as one tar that is both an OCI layout and what docker reads.
//!
//! A save writes blobs straight from the store into the answer. A load unpacks the tar by content
//! into a folder aside, checks what it finds and takes only blobs that an image speaks of.

use std::{
    collections::BTreeSet,
    io::{self, Read as _, Write},
    path::Path,
    sync::Arc,
};

use base::{Digest, gojson, gotar};
use engine::run::LocalImage;
use oci::{
    Descriptor, Index, Manifest, Reference,
    compress::Limits,
    layout::{self, Found, Layout, SavedImage},
    media, types,
};
use proto::rbuild::v1 as wire;
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
        let busy = self.idle.busy();
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
            let _busy = this.idle.busy();
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
        let store = self.engine.store().clone();
        let aside = Aside::new(&self.engine.machine().config.run_folder)?;
        let folder = aside.0.clone();
        let reading = tokio::task::spawn_blocking(move || {
            let mut reader = pipe::Receiver::new(incoming);
            let layout = Layout::unpack(&mut reader, &folder, Limits::default())?;
            // What follows the tar (padding) is read, so that the sender can end.
            let mut rest = [0; 64 << 10];
            while matches!(reader.read(&mut rest), Ok(1..)) {}
            Ok::<_, oci::Error>(layout)
        });
        let layout = reading.await.map_err(|error| Status::internal(error.to_string()))?;
        let layout =
            layout.map_err(|error| Status::invalid_argument(format!("invalid tar: {error}")))?;
        let images = layout.images();
        if images.is_empty() {
            return Err(Status::invalid_argument("invalid tar: it holds no images"));
        }
        for image in images {
            let (layout, from) = (layout.clone(), image.descriptor.clone());
            let to = store.clone();
            let taking = tokio::task::spawn_blocking(move || take(&to, &layout, &from, MAX_DEPTH));
            let holds = taking.await.map_err(|error| Status::internal(error.to_string()))??;
            self.loaded(&image, answers).await?;
            drop(holds);
        }
        drop(aside);
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

/// Copies a manifest or index with what is there of its blobs into the store.
fn take(
    store: &Arc<Store>,
    layout: &Layout,
    descriptor: &Descriptor,
    depth: usize,
) -> Result<Vec<Blob>, Status> {
    let wrong = |error: oci::Error| Status::invalid_argument(format!("invalid tar: {error}"));
    if depth == 0 {
        return Err(Status::invalid_argument("invalid tar: indexes are nested too deeply"));
    }
    let path = layout.blob_path(&descriptor.digest);
    let what = format!("manifest {}", descriptor.digest);
    let size = std::fs::metadata(&path)
        .map_err(|error| Status::invalid_argument(format!("invalid tar: {what}: {error}")))?;
    if size.len() > types::MAX_MANIFEST {
        return Err(Status::invalid_argument(format!("invalid tar: {what} is too large")));
    }
    let body = base::fs::read(&path).map_err(|error| Status::unknown(error.to_string()))?;
    if Digest::of(&body) != descriptor.digest {
        return Err(Status::invalid_argument(format!("invalid tar: {what} is damaged")));
    }
    let kind = media::detect_manifest(&body).unwrap_or_else(|| descriptor.media_type.clone());
    let mut holds = Vec::new();
    let mut children = Vec::new();
    if media::is_index(&kind) {
        let index = Index::parse(&what, &body).map_err(wrong)?;
        // Tars of one platform hold only its part of the index.
        for child in index.manifests {
            if layout.blob_path(&child.digest).exists() {
                holds.extend(take(store, layout, &child, depth - 1)?);
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
            holds.push(take_blob(store, &layout.blob_path(&blob.digest), blob)?);
        }
    }
    let info = BlobInfo::of_type(&kind).referencing(children);
    holds.push(store.content().put(&body, info).map_err(failed)?);
    Ok(holds)
}

fn take_blob(store: &Store, path: &Path, blob: &Descriptor) -> Result<Blob, Status> {
    if let Some(held) = store.content().hold(&blob.digest) {
        return Ok(held);
    }
    let doing = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => {
            Status::invalid_argument(format!("invalid tar: blob {} is not in it", blob.digest))
        }
        _ => Status::unknown(format!("load blob {}: {error}", blob.digest)),
    };
    let mut file = std::fs::File::open(path).map_err(doing)?;
    let mut writer = store.content().writer().map_err(failed)?;
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer).map_err(doing)? {
            0 => break,
            read => writer.write_all(&buffer[..read]).map_err(doing)?,
        }
    }
    drop(file);
    // Its room is needed for what follows.
    _ = std::fs::remove_file(path);
    writer
        .commit(Some(blob.digest), Some(blob.size), BlobInfo::of_type(&blob.media_type))
        .map_err(failed)
}

/// A folder that goes when it is dropped.
struct Aside(std::path::PathBuf);

impl Aside {
    fn new(below: &Path) -> Result<Self, Status> {
        let path = below.join(format!("load-{}", base::id::random_id()));
        base::fs::create_dir_all(&path).map_err(|error| Status::unknown(error.to_string()))?;
        Ok(Self(path))
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        _ = std::fs::remove_dir_all(&self.0);
    }
}
