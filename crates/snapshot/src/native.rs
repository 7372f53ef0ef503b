//! Layers as full copies, for file systems without overlay.
//!
//! `snapshots/<layer>/fs` is the whole tree up to and including the layer, copied (with shared
//! blocks where the file system can) when the layer is made; `snapshots/<layer>/lowers` names the
//! layers it was made over. A list of layers that is no such chain, as merging makes them, is put
//! together in a view of hard links, which lives as long as somebody looks at it.

use std::{
    collections::HashMap,
    fs, io,
    io::{Read, Seek as _, Write},
    os::fd::{AsFd as _, BorrowedFd},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, Weak},
};

use rustix::fs::{AtFlags, CWD, Mode};

use crate::{
    Brake, Extracted, LayerError, LayerId, LayerInfo, Limits, SnapshotError, Snapshotter, Tree,
    Usage,
    copy::transfer,
    folders::{Folders, Staged, bytes},
    layer::{self, Marks},
    sys::{self, At, Meta, SysResult},
};

/// File with the ids of the layers below, one a line.
const LOWERS: &str = "lowers";

/// Exists in a layer that holds only what differs, in the form of an overlay folder.
const DELTA: &str = "delta";

/// The copying driver on one folder.
#[derive(Debug)]
pub struct Native {
    folders: Arc<Folders>,
    views: Mutex<HashMap<Vec<LayerId>, Weak<View>>>,
}

/// A tree put together for reading; removed with the last one who looks at it.
#[derive(Debug)]
struct View {
    staged: Staged,
}

/// How a layer is kept.
enum Kept {
    /// As the whole tree over these lowers.
    Whole(Vec<LayerId>),
    /// As differences alone.
    Delta,
}

impl Native {
    /// Opens `root`.
    pub fn open(root: &Path) -> Result<Self, SnapshotError> {
        Ok(Self { folders: Arc::new(Folders::open(root)?), views: Mutex::default() })
    }

    fn kept(&self, layer: &LayerId) -> Result<Kept, SnapshotError> {
        let folder = self.folders.layer(layer);
        if folder.join(DELTA).exists() {
            return Ok(Kept::Delta);
        }
        let path = folder.join(LOWERS);
        match fs::read_to_string(&path) {
            Ok(text) => text.lines().map(LayerId::new).collect::<Result<_, _>>().map(Kept::Whole),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(SnapshotError::Missing(layer.clone()))
            }
            Err(error) => Err(SnapshotError::io("read", &path, error)),
        }
    }

    /// The folder that shows `layers`, and what keeps it alive if it is a view.
    fn shown(&self, layers: &[LayerId]) -> Result<(PathBuf, Option<Arc<View>>), SnapshotError> {
        let Some((top, below)) = layers.split_last() else {
            return Ok((self.folders.empty(), None));
        };
        if matches!(self.kept(top)?, Kept::Whole(lowers) if lowers == below) {
            return Ok((self.folders.files(top), None));
        }
        let view = self.view(layers)?;
        Ok((view.staged.files(), Some(view)))
    }

    fn view(&self, layers: &[LayerId]) -> Result<Arc<View>, SnapshotError> {
        let known =
            |views: &HashMap<Vec<LayerId>, Weak<View>>| views.get(layers).and_then(Weak::upgrade);
        if let Some(view) = known(&self.views.lock().unwrap_or_else(PoisonError::into_inner)) {
            return Ok(view);
        }
        // Two may build the same view at once; the second to finish throws its own away.
        let built = Arc::new(self.build_view(layers)?);
        let mut views = self.views.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(view) = known(&views) {
            return Ok(view);
        }
        views.retain(|_, view| view.strong_count() > 0);
        views.insert(layers.to_vec(), Arc::downgrade(&built));
        Ok(built)
    }

    fn build_view(&self, layers: &[LayerId]) -> Result<View, SnapshotError> {
        let (top, below) = layers.split_last().expect("the empty list needs no view");
        let staged = self.folders.stage()?;
        let files = staged.files();
        let (start, keeps) = self.shown(below)?;
        // Nobody writes through a view, so its files can be the layers' own.
        copy_tree(&start, &files, Copying::Link)?;
        drop(keeps);
        match self.kept(top)? {
            Kept::Delta => layer::apply_delta(&self.folders.files(top), &files, &marks())?,
            Kept::Whole(lowers) => {
                let lower = self.mount(&lowers, None)?;
                let upper = Tree::of_folder(&self.folders.files(top), false)?;
                layer::apply_difference(&lower, &upper, &files)?;
            }
        }
        Ok(View { staged })
    }

    /// A layer aside that starts as a copy of `lowers`.
    fn stage(&self, lowers: &[LayerId]) -> Result<Staged, SnapshotError> {
        let staged = self.folders.stage()?;
        let (start, keeps) = self.shown(lowers)?;
        copy_tree(&start, &staged.files(), Copying::Bytes)?;
        drop(keeps);
        let text: String = lowers.iter().map(|layer| format!("{layer}\n")).collect();
        write_note(&staged, LOWERS, &text)?;
        Ok(staged)
    }
}

fn marks() -> Marks {
    // Only this driver reads its deltas, and these marks can be set everywhere.
    Marks::overlay(true)
}

fn write_note(staged: &Staged, name: &str, text: &str) -> Result<(), SnapshotError> {
    let path = staged.path().join(name);
    fs::write(&path, text).map_err(|error| SnapshotError::io("write", &path, error))
}

/// A layer tar kept aside until the tree it goes onto exists.
struct Spooled {
    staged: Staged,
    limits: Limits,
}

const SPOOL: &str = "tar";

impl Snapshotter for Native {
    fn name(&self) -> &'static str {
        "native"
    }

    fn create(&self, layer: &LayerId, lowers: &[LayerId]) -> Result<(), SnapshotError> {
        if self.folders.exists(layer) {
            return Err(SnapshotError::Exists(layer.clone()));
        }
        self.stage(lowers)?.commit(layer)
    }

    fn mount(&self, lowers: &[LayerId], upper: Option<&LayerId>) -> Result<Tree, SnapshotError> {
        let mount = |path: &Path, writable: bool| Tree::of_folder(path, writable);
        let Some(upper) = upper else {
            let (path, view) = self.shown(lowers)?;
            let tree = mount(&path, false)?;
            return Ok(match view {
                Some(view) => tree.with_guard(view),
                None => tree,
            });
        };
        match self.kept(upper)? {
            Kept::Whole(known) if known == lowers => {
                let tree = mount(&self.folders.files(upper), true)?;
                Ok(tree.with_brake(self.folders.brake().clone()))
            }
            _ => Err(SnapshotError::OtherLowers { layer: upper.clone() }),
        }
    }

    fn freeze(&self, layer: &LayerId) -> Result<(), SnapshotError> {
        self.folders.check([layer])
    }

    fn remove(&self, layer: &LayerId) -> Result<(), SnapshotError> {
        self.folders.remove(layer)
    }

    fn usage(&self, layer: &LayerId) -> Result<Usage, SnapshotError> {
        self.folders.usage(layer)
    }

    fn list(&self) -> Result<Vec<LayerId>, SnapshotError> {
        self.folders.list()
    }

    fn layer_path(&self, layer: &LayerId) -> PathBuf {
        self.folders.files(layer)
    }

    fn write_layer(
        &self,
        lowers: &[LayerId],
        layer: &LayerId,
        out: &mut dyn Write,
    ) -> Result<LayerInfo, LayerError> {
        let upper = [lowers, std::slice::from_ref(layer)].concat();
        self.write_diff(lowers, &upper, out)
    }

    fn extract(
        &self,
        layer: &LayerId,
        lowers: &[LayerId],
        tar: &mut dyn Read,
        limits: &Limits,
    ) -> Result<Extracted, LayerError> {
        // Files can only go onto a copy of the lowers, which may not exist yet: the tar waits.
        let staged = self.folders.stage()?;
        let path = staged.path().join(SPOOL);
        let failed = |error| SnapshotError::io("write", &path, error);
        let mut spool = fs::File::create(&path).map_err(failed)?;
        let mut tee = Tee { from: tar, to: &mut spool };
        let mut reader = layer::tar_read::TarReader::new(&mut tee, limits);
        while reader.next()?.is_some() {}
        let info = reader.finish()?;
        let state = Box::new(Spooled { staged, limits: limits.clone() });
        Ok(Extracted { info, layer: layer.clone(), lowers: lowers.to_vec(), state })
    }

    fn adopt(&self, extracted: Extracted) -> Result<(), LayerError> {
        let Extracted { layer, lowers, state, .. } = extracted;
        let Spooled { staged: spooled, limits } = *state
            .downcast::<Spooled>()
            .expect("an extracted layer goes back to the driver that made it");
        let path = spooled.path().join(SPOOL);
        let failed = |error| SnapshotError::io("read", &path, error);
        let mut tar = fs::File::open(&path).map_err(failed)?;
        tar.rewind().map_err(failed)?;
        let staged = self.stage(&lowers)?;
        layer::unpack_plain(&staged.files(), &mut tar, &limits)?;
        Ok(staged.commit(&layer)?)
    }

    fn diff_layer(
        &self,
        layer: &LayerId,
        lower: &[LayerId],
        upper: &[LayerId],
    ) -> Result<(), SnapshotError> {
        let (lower, upper) = (self.mount(lower, None)?, self.mount(upper, None)?);
        let staged = self.folders.stage()?;
        layer::write_delta(&lower, &upper, &staged.files())?;
        write_note(&staged, DELTA, "")?;
        staged.commit(layer)
    }

    fn write_diff(
        &self,
        lower: &[LayerId],
        upper: &[LayerId],
        out: &mut dyn Write,
    ) -> Result<LayerInfo, LayerError> {
        let base = (!lower.is_empty()).then(|| self.mount(lower, None)).transpose()?;
        layer::write_double(base.as_ref(), &self.mount(upper, None)?, out)
    }

    fn being_made(&self) -> u64 {
        self.folders.being_made()
    }

    fn being_removed(&self) -> u64 {
        self.folders.being_removed()
    }

    fn brake(&self) -> &Brake {
        self.folders.brake()
    }

    fn sync(&self) -> Result<(), SnapshotError> {
        self.folders.sync()
    }

    fn is_removing(&self) -> bool {
        self.folders.is_removing()
    }

    fn wait_removed(&self) {
        self.folders.wait_removed();
    }
}

/// Passes on what is read and keeps a copy.
struct Tee<'a> {
    from: &'a mut dyn Read,
    to: &'a mut fs::File,
}

impl Read for Tee<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.from.read(buffer)?;
        self.to.write_all(&buffer[..length])?;
        Ok(length)
    }
}

/// How files get into a copy of a tree.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Copying {
    /// As files of their own, sharing blocks where possible.
    Bytes,
    /// As further names of the same files.
    Link,
}

/// Copies everything in the folder `source` into the empty folder `target`, the folder's own
/// metadata included.
fn copy_tree(source: &Path, target: &Path, copying: Copying) -> Result<(), SnapshotError> {
    let failed = |error| SnapshotError::io("copy", source, error);
    let from = sys::open_dir(CWD, &bytes(source)).map_err(failed)?;
    let to = sys::open_dir(CWD, &bytes(target)).map_err(failed)?;
    let mut copier = Copier { copying, links: HashMap::new(), root: to.as_fd(), path: Vec::new() };
    copier.folder(from.as_fd(), to.as_fd(), 0).map_err(failed)
}

struct Copier<'a> {
    copying: Copying,
    links: HashMap<((u32, u32), u64), Vec<u8>>,
    root: BorrowedFd<'a>,
    path: Vec<u8>,
}

impl Copier<'_> {
    fn folder(&mut self, from: BorrowedFd<'_>, to: BorrowedFd<'_>, depth: usize) -> SysResult<()> {
        if depth > sys::MAX_DEPTH {
            return Err(rustix::io::Errno::NAMETOOLONG);
        }
        for entry in sys::read_dir(from)? {
            let meta = sys::stat_at(from, &entry.name)?;
            let length = self.path.len();
            if length > 0 {
                self.path.push(b'/');
            }
            self.path.extend_from_slice(&entry.name);
            if meta.is_dir() {
                rustix::fs::mkdirat(to, &entry.name[..], Mode::from_raw_mode(0o700))?;
                let (from, to) =
                    (sys::open_dir(from, &entry.name)?, sys::open_dir(to, &entry.name)?);
                self.folder(from.as_fd(), to.as_fd(), depth + 1)?;
            } else {
                self.file((from, &entry.name, &meta), to)?;
            }
            self.path.truncate(length);
        }
        let meta = sys::stat_fd(from)?;
        sys::chown_fd(to, meta.uid, meta.gid)?;
        sys::chmod_fd(to, meta.mode)?;
        transfer::xattrs(At::Fd(from), At::Fd(to));
        sys::set_times_fd(to, meta.atime, meta.mtime)
    }

    fn file(
        &mut self,
        (from, name, meta): (BorrowedFd<'_>, &[u8], &Meta),
        to: BorrowedFd<'_>,
    ) -> SysResult<()> {
        if self.copying == Copying::Link {
            match rustix::fs::linkat(from, name, to, name, AtFlags::empty()) {
                Ok(()) => return Ok(()),
                // Across mounts, or too many names: a copy does as well.
                Err(rustix::io::Errno::XDEV | rustix::io::Errno::MLINK) => {}
                Err(error) => return Err(error),
            }
        }
        if meta.links > 1 {
            let inode = (meta.dev, meta.ino);
            if let Some(first) = self.links.get(&inode) {
                return rustix::fs::linkat(self.root, &first[..], to, name, AtFlags::empty());
            }
            self.links.insert(inode, self.path.clone());
        }
        transfer::entry_as_is((from, name, meta), (to, name))
    }
}
