//! Type `tar`: the result's files as one tar at the client.

use std::{
    collections::BTreeMap,
    io::{self, Read as _, Write},
    sync::Arc,
};

use async_trait::async_trait;
use base::{
    gomode,
    gotar::{self, Header, Kind},
};
use session::fsutil::{FileTree, MergedTree, Stat, SubTree};

use crate::{
    ExportError, ExportRequest, Exported, Exporter, Step,
    assemble::platforms,
    attrs::Attrs,
    files::{self, FileOptions, blocking, files, folder_name, nanos},
    request::client,
};

/// See the module.
pub(crate) struct Tar {
    attrs: BTreeMap<String, String>,
    options: FileOptions,
}

impl Tar {
    pub(crate) fn new(attrs: BTreeMap<String, String>) -> Result<Self, ExportError> {
        let mut left = Attrs::new("tar", attrs.clone());
        let options = FileOptions::load(&mut left)?;
        Ok(Self { attrs, options })
    }
}

#[async_trait]
impl Exporter for Tar {
    fn kind(&self) -> &'static str {
        "tar"
    }

    fn name(&self) -> &'static str {
        "exporting to client tarball"
    }

    fn attrs(&self) -> &BTreeMap<String, String> {
        &self.attrs
    }

    async fn export(&self, request: ExportRequest) -> Result<Exported, ExportError> {
        const DOING: &str = "send tarball to the client";
        let is_map = !request.result.by_platform.is_empty();
        let mut trees: Vec<Arc<dyn FileTree>> = Vec::new();
        for platform in &platforms(&request.result, &request.platform)? {
            let tree = files(&request, platform, &self.options, false).await?;
            if !is_map {
                trees.push(tree);
                continue;
            }
            let time = files::epoch_of(&request, platform, &self.options)?.map_or(0, nanos);
            trees.push(Arc::new(SubTree::named(folder_name(&platform.id), time, tree)));
        }
        let tree: Arc<dyn FileTree> = match trees.len() {
            1 => trees.remove(0),
            _ => Arc::new(MergedTree::new(trees)),
        };
        let session = client(&request).await?;
        let mut file = session
            .send_file(request.index, &BTreeMap::new())
            .await
            .map_err(ExportError::session(DOING))?;
        let step = Step::begin(&request.progress, "sending tarball");
        let file = blocking(move || {
            let written = write_tar(&*tree, &mut file);
            match written {
                Err(ExportError::Io { source, .. })
                    if source.kind() == io::ErrorKind::BrokenPipe => {}
                other => other?,
            }
            Ok(file)
        })
        .await?;
        file.finish().await.map_err(ExportError::session(DOING))?;
        drop(step);
        Ok(Exported::default())
    }
}

/// Writes all files of a tree.
pub(crate) fn write_tar(tree: &dyn FileTree, out: &mut dyn Write) -> Result<(), ExportError> {
    let mut failed = None;
    let walked = tree.walk(&mut |stat| {
        let path = stat.path.clone();
        match write_entry(tree, stat, out) {
            Ok(()) => Ok(()),
            Err(error) => {
                failed = Some(ExportError::io(format!("write {path} to the tar"))(error));
                Err(session::fsutil::TransferError::Worker("writing the tar failed".into()))
            }
        }
    });
    if let Some(error) = failed {
        return Err(error);
    }
    walked.map_err(files::transfer("list the files of the result"))?;
    let end = gotar::write_end(out).and_then(|()| out.flush());
    end.map_err(ExportError::io("write the end of the tar"))
}

fn write_entry(tree: &dyn FileTree, stat: Stat, out: &mut dyn Write) -> io::Result<()> {
    let header = header(&stat);
    header.write(out)?;
    if header.size == 0 {
        return Ok(());
    }
    let mut file = tree.open(&stat.path)?.take(header.size);
    let mut buffer = vec![0; usize::try_from(header.size.min(1 << 20)).unwrap_or(1 << 20)];
    let mut left = header.size;
    while left > 0 {
        match file.read(&mut buffer)? {
            0 => {
                return Err(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    "the file became shorter",
                ));
            }
            read => {
                out.write_all(&buffer[..read])?;
                left -= read as u64;
            }
        }
    }
    gotar::write_padding(out, header.size)
}

/// The header Go's client libraries make of an entry: times rounded to the nearest second.
fn header(stat: &Stat) -> Header {
    let kind = match stat.mode & gomode::TYPE_MASK {
        gomode::DIR => Kind::Folder,
        gomode::SYMLINK => Kind::Symlink,
        gomode::NAMED_PIPE => Kind::Fifo,
        bits if bits & gomode::CHAR_DEVICE != 0 => Kind::CharDevice,
        bits if bits & gomode::DEVICE != 0 => Kind::BlockDevice,
        _ if !stat.linkname.is_empty() => Kind::HardLink,
        _ => Kind::File,
    };
    let mut name = stat.path.clone();
    if kind == Kind::Folder {
        name.push('/');
    }
    let device = |number: i64| u32::try_from(number).unwrap_or(0);
    Header {
        name: name.into_bytes(),
        mode: gomode::permissions(stat.mode),
        uid: stat.uid,
        gid: stat.gid,
        size: if kind == Kind::File { u64::try_from(stat.size).unwrap_or(0) } else { 0 },
        mtime: stat.mod_time.saturating_add(500_000_000).div_euclid(1_000_000_000),
        kind,
        link: stat.linkname.clone().into_bytes(),
        device: (device(stat.devmajor), device(stat.devminor)),
        xattrs: stat.xattrs.iter().map(|(key, value)| (key.clone(), value.to_vec())).collect(),
    }
}
