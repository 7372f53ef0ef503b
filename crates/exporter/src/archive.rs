//! Types `oci` and `docker`: an image as one tar, or blob by blob into the client's content store.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read as _, Write},
    sync::Arc,
};

use async_trait::async_trait;
use base::{gojson, gotar};
use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use oci::{
    Descriptor, Index, Provider as _, Reference,
    layout::{self, SavedImage},
    types,
};
use session::OutputEnd;
use store::Store;

use crate::{
    ExportError, ExportRequest, Exported, Exporter, ImageOptions, Step,
    assemble::{Assembled, Assembly, Member, response},
    attrs::Attrs,
    blobs::Blobs,
    options::annotations_and_metadata,
    request::client,
};

/// Name of the client's content store for `tar=false`.
const CONTENT_STORE: &str = "export";
const UPLOADS: usize = 4;

/// See the module.
pub(crate) struct Archive {
    store: Arc<Store>,
    docker: bool,
    attrs: BTreeMap<String, String>,
    options: ImageOptions,
    metadata: BTreeMap<String, Bytes>,
    tar: bool,
}

impl Archive {
    pub(crate) fn new(
        store: Arc<Store>,
        docker: bool,
        attrs: BTreeMap<String, String>,
        compatibility: u32,
    ) -> Result<Self, ExportError> {
        let mut left = Attrs::new(if docker { "docker" } else { "oci" }, attrs.clone());
        let mut options = ImageOptions::load(&mut left, compatibility, false)?;
        if options.referrers {
            let text = "exporter option \"attestation-referrers\" needs type \"image\": what refers \
                        to an image is kept by registries alone";
            return Err(ExportError::Conflict(text.into()));
        }
        let tar = left.bool("tar", Some(true))?.unwrap_or(true);
        let metadata = annotations_and_metadata(left, &mut options.annotations)?;
        if options.names != "*" {
            normal_names(&options.names)?;
        }
        Ok(Self { store, docker, attrs, options, metadata, tar })
    }
}

#[async_trait]
impl Exporter for Archive {
    fn kind(&self) -> &'static str {
        if self.docker { "docker" } else { "oci" }
    }

    fn name(&self) -> &'static str {
        if self.docker {
            "exporting to docker image format"
        } else {
            "exporting to oci image format"
        }
    }

    fn attrs(&self) -> &BTreeMap<String, String> {
        &self.attrs
    }

    fn is_image(&self) -> bool {
        true
    }

    async fn export(&self, mut request: ExportRequest) -> Result<Exported, ExportError> {
        if self.docker && !request.result.by_platform.is_empty() {
            let text = "docker exporter does not currently support exporting manifest lists";
            return Err(ExportError::Conflict(text.into()));
        }
        request.result.metadata.extend(self.metadata.clone());
        let has_attestations = request.result.attestations.values().any(|list| !list.is_empty());
        let settled = self.options.settle(!self.docker, has_attestations)?;
        let names = self.options.names(&request.result.metadata);
        let normal = normal_names(&names)?;
        let assembly = Assembly {
            store: &self.store,
            request: &request,
            options: &self.options,
            names: &names,
            settled,
        };
        let (assembled, _holds) = assembly.run().await?;
        let mut root = assembled.root.clone();
        root.annotations.entry(types::ANNOTATION_CREATED.to_owned()).or_insert_with(|| {
            let at = assembled.epoch.map(base::time::from_unix_seconds);
            base::time::rfc3339_seconds(at.unwrap_or_else(std::time::SystemTime::now))
        });
        let mut response = response(&assembled, &root);
        if !normal.is_empty() {
            let list: Vec<_> = normal.iter().map(Reference::to_string).collect();
            response.insert("image.name".to_owned(), list.join(","));
        }
        let blobs = Blobs::new(self.store.clone(), &assembled);
        let _fetched = blobs.fetch_all().await?;
        if self.tar {
            self.send_tar(&request, &assembled, &root, &normal, &response).await?;
        } else {
            self.send_blobs(&request, &assembled, blobs).await?;
        }
        Ok(Exported { response, descriptor: Some(root), finish: None })
    }
}

impl Archive {
    async fn send_tar(
        &self,
        request: &ExportRequest,
        assembled: &Assembled,
        root: &Descriptor,
        names: &[Reference],
        response: &BTreeMap<String, String>,
    ) -> Result<(), ExportError> {
        const DOING: &str = "send tarball to the client";
        let session = client(request).await?;
        let file = session
            .send_file(request.index, response)
            .await
            .map_err(ExportError::session(DOING))?;
        let plan = Plan::new(assembled, root, names, self.docker);
        let (store, progress) = (self.store.clone(), request.progress.clone());
        let written = tokio::task::spawn_blocking(move || {
            let mut out = Output { file, sent: 0, step: Step::begin(&progress, "sending tarball") };
            let open = |digest: &base::Digest| {
                store.content().open(digest).map_err(|error| io::Error::other(error.to_string()))
            };
            match plan.write(&mut out, open) {
                // The client said that it needs no more; the end of the call tells why.
                Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error),
                _ => Ok((out.file, out.step)),
            }
        });
        let (file, step) = written
            .await
            .expect("writing a tar does not panic")
            .map_err(ExportError::io("write image tar"))?;
        let end: OutputEnd = file.finish().await.map_err(ExportError::session(DOING))?;
        tracing::debug!(?end, "image tar sent");
        drop(step);
        Ok(())
    }

    async fn send_blobs(
        &self,
        request: &ExportRequest,
        assembled: &Assembled,
        blobs: Blobs,
    ) -> Result<(), ExportError> {
        let session = client(request).await?;
        let content = session.content(CONTENT_STORE);
        let _step = Step::begin(&request.progress, "copying to the client's content store");
        let all = assembled.blobs();
        // Layers in parallel, then what speaks of them, one after the other.
        let (layers, others): (Vec<_>, Vec<_>) = all
            .into_iter()
            .map(|layer| layer.descriptor)
            .partition(|descriptor| oci::media::is_layer(&descriptor.media_type));
        let sends: Vec<_> = layers.iter().map(|layer| send_blob(&content, &blobs, layer)).collect();
        stream::iter(sends).buffer_unordered(UPLOADS).try_collect::<()>().await?;
        for descriptor in &others {
            send_blob(&content, &blobs, descriptor).await?;
        }
        Ok(())
    }
}

async fn send_blob(
    content: &session::RemoteContent,
    blobs: &Blobs,
    descriptor: &Descriptor,
) -> Result<(), ExportError> {
    let data = blobs.open(descriptor, 0).await?;
    let sent = content.write(&descriptor.digest, descriptor.size, BTreeMap::new(), data).await;
    let doing = format!("send blob {} to the client", descriptor.digest);
    sent.map(|_| ()).map_err(ExportError::session(doing))
}

/// The client's file with progress; ends early when the client wants no more.
struct Output {
    file: session::FileWriter,
    sent: u64,
    step: Step,
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.file.is_over() {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let written = self.file.write(bytes)?;
        self.sent += written as u64;
        self.step.at(self.sent, 0);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// What goes into the tar.
pub(crate) struct Plan {
    blobs: Vec<Descriptor>,
    /// Name, mode and content of the other files, in order.
    files: Vec<(&'static str, u32, Vec<u8>)>,
}

impl Plan {
    pub(crate) fn new(
        assembled: &Assembled,
        root: &Descriptor,
        names: &[Reference],
        docker: bool,
    ) -> Self {
        let mut blobs: Vec<_> =
            assembled.blobs().into_iter().map(|layer| layer.descriptor).collect();
        // Foreign layers are named, not carried.
        blobs.retain(|blob| blob.urls.is_empty());
        blobs.sort_by_key(|blob| blob.digest);
        let mut entries: Vec<_> = names.iter().map(|name| named(root, name)).collect();
        if entries.is_empty() {
            entries.push(root.clone());
        }
        let mut files = vec![("index.json", 0o644, gojson::to_vec(&Index::new(true, entries)))];
        if docker && !assembled.is_index {
            files.push(("manifest.json", 0o644, docker_manifest(assembled, names)));
        }
        files.push(("oci-layout", 0o444, layout::MARKER.to_vec()));
        Self { blobs, files }
    }

    /// Writes the tar; `open` gives the blobs.
    pub(crate) fn write(
        &self,
        out: &mut dyn Write,
        open: impl Fn(&base::Digest) -> io::Result<File>,
    ) -> io::Result<()> {
        gotar::Header::folder("blobs/", 0o755).write(out)?;
        gotar::Header::folder("blobs/sha256/", 0o755).write(out)?;
        for blob in &self.blobs {
            let name = format!("blobs/sha256/{}", blob.digest.hex());
            gotar::Header::file(name, 0o444, blob.size).write(out)?;
            copy_exactly(open(&blob.digest)?, blob, out)?;
            gotar::write_padding(out, blob.size)?;
        }
        for (name, mode, content) in &self.files {
            gotar::Header::file(*name, *mode, content.len() as u64).write(out)?;
            out.write_all(content)?;
            gotar::write_padding(out, content.len() as u64)?;
        }
        gotar::write_end(out)?;
        out.flush()
    }
}

/// Copies a blob in large pieces; a blob of another length would garble the tar.
fn copy_exactly(file: File, blob: &Descriptor, out: &mut dyn Write) -> io::Result<()> {
    let mut buffer = vec![0; 1 << 20];
    let mut left = blob.size;
    let mut file = file.take(blob.size);
    while left > 0 {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            let text = format!("blob {} is shorter than its descriptor says", blob.digest);
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, text));
        }
        out.write_all(&buffer[..read])?;
        left -= read as u64;
    }
    Ok(())
}

fn named(root: &Descriptor, name: &Reference) -> Descriptor {
    let tag = match (name.tag(), name.digest()) {
        (Some(tag), Some(digest)) => format!("{tag}@{digest}"),
        (Some(tag), None) => tag.to_owned(),
        (None, Some(digest)) => format!("@{digest}"),
        (None, None) => "latest".to_owned(),
    };
    root.clone()
        .annotate(types::ANNOTATION_IMAGE_NAME, name.to_string())
        .annotate(types::ANNOTATION_REF_NAME, tag)
}

fn docker_manifest(assembled: &Assembled, names: &[Reference]) -> Vec<u8> {
    let entry = |member: &Member| {
        let names = names.iter().map(Reference::familiar).collect();
        SavedImage::new(&member.config, member.layers.iter().map(|layer| &layer.descriptor), names)
    };
    let entries: Vec<_> = assembled.members.iter().map(entry).collect();
    gojson::to_vec(&entries)
}

/// Complete references of a comma-separated list.
fn normal_names(names: &str) -> Result<Vec<Reference>, ExportError> {
    let names = names.split(',').filter(|name| !name.is_empty());
    names.map(|name| Ok(Reference::parse(name)?.with_default_tag())).collect()
}
