//! Layers as overlay folders: a tree is one overlay mount over the folders of its layers.
//!
//! `snapshots/<layer>/fs` is the upper folder while the layer is written and a lower folder ever
//! after, whiteouts and opaque marks included. Merging trees is concatenating their lists; nothing
//! is ever copied. The work folder lives beside it for the time of a writable mount. A layer that
//! stands over other layers than it was written over is shown by its [`skeleton`](crate::skeleton) or
//! loose form.

use std::{
    fs, io,
    io::{Read, Write},
    path::{Path, PathBuf},
};

use rustix::fs::CWD;

use crate::{
    Brake, Extracted, LayerError, LayerId, LayerInfo, Limits, SnapshotError, Snapshotter, Tree,
    Usage,
    folders::{Folders, Staged, bytes},
    layer::{self, Marks, settle},
    mounts::{self, OverlayFolders, OverlayForm},
    skeleton::{self, Over, Skeletons},
    sys,
};

/// Name of the driver.
pub(crate) const NAME: &str = "overlayfs";

/// The overlay driver on one folder.
#[derive(Debug)]
pub struct Overlay {
    folders: Folders,
    form: OverlayForm,
    skeletons: Skeletons,
}

impl Overlay {
    /// Opens `root` and tries overlay out there.
    pub fn open(root: &Path) -> Result<Self, SnapshotError> {
        let folders = Folders::open(root)?;
        let form = probe(&folders)?;
        tracing::debug!(root = %root.display(), ?form, "overlay snapshotter");
        Ok(Self { folders, form, skeletons: Skeletons::default() })
    }

    /// The same driver as it works on kernels that take the lower folders as one string.
    #[cfg(test)]
    pub(crate) fn without_appending(mut self) -> Self {
        self.form.append = false;
        self
    }

    /// Names of the marks overlay uses on this machine.
    fn marks(&self) -> Marks {
        Marks::overlay(self.form.user_xattrs)
    }

    /// The folders that show `lowers`, topmost first.
    fn lower_folders(&self, lowers: &[LayerId]) -> Result<Vec<PathBuf>, SnapshotError> {
        let mut paths = Vec::with_capacity(lowers.len() + 1);
        for (at, layer) in lowers.iter().enumerate() {
            let mount = |lowers: &[LayerId]| self.mount_read_only(lowers);
            let standing = self.skeletons.standing(
                &self.folders,
                layer,
                &lowers[..at],
                &self.marks(),
                &mount,
            )?;
            paths.extend(standing.skeleton);
            paths.push(standing.files);
        }
        paths.reverse();
        Ok(paths)
    }

    fn mount_read_only(&self, lowers: &[LayerId]) -> Result<Tree, SnapshotError> {
        if lowers.is_empty() {
            let empty = self.folders.empty();
            let fd = mounts::bind(&empty, true)
                .map_err(|error| SnapshotError::io("mount", &empty, error))?;
            return Ok(Tree::new(fd, false));
        }
        let mut paths = self.lower_folders(lowers)?;
        if paths.len() == 1 {
            // Overlay wants two folders, and a plain bind would show the layer's marks.
            paths.push(self.folders.empty());
        }
        let folders = OverlayFolders { lowers: &paths, upper: None };
        let fd = mounts::overlay(self.form, &folders)
            .map_err(|error| SnapshotError::io("mount", &paths[0], error))?;
        Ok(Tree::new(fd, false))
    }

    fn mount_writable(&self, lowers: &[LayerId], layer: &LayerId) -> Result<Tree, SnapshotError> {
        self.skeletons.thaw(&self.folders, layer, lowers)?;
        let upper = self.folders.files(layer);
        let failed = |error| SnapshotError::io("mount", &upper, error);
        if lowers.is_empty() {
            return Ok(Tree::new(mounts::bind(&upper, false).map_err(failed)?, true));
        }
        // Always a fresh work folder: an earlier one may belong to a mount that is still dying, and
        // carries the mark with which `volatile` refuses to be used again.
        let layer = self.folders.layer(layer);
        self.remove_work_folders(&layer).map_err(failed)?;
        let work = layer.join(format!("{WORK}{}", base::id::random_hex(4)));
        rustix::fs::mkdir(&work, sys::mode_bits(0o700)).map_err(|error| failed(error.into()))?;
        let paths = self.lower_folders(lowers)?;
        let folders = OverlayFolders { lowers: &paths, upper: Some((&upper, &work)) };
        Ok(Tree::new(mounts::overlay(self.form, &folders).map_err(failed)?, true))
    }

    fn remove_work_folders(&self, layer: &Path) -> io::Result<()> {
        for entry in fs::read_dir(layer)? {
            let entry = entry?;
            if entry.file_name().as_encoded_bytes().starts_with(WORK.as_bytes()) {
                // Overlay leaves several folders in there; removing them can wait.
                self.folders.throw(&entry.path()).map_err(io::Error::other)?;
            }
        }
        Ok(())
    }

    /// An empty layer aside, with the root of the topmost lower.
    fn stage(&self, lowers: &[LayerId]) -> Result<Staged, SnapshotError> {
        let staged = self.folders.stage()?;
        let files = staged.files();
        let failed = |error| SnapshotError::io("set up", &files, error);
        sys::chmod(CWD, &bytes(&files), 0o755).map_err(failed)?;
        if let Some(top) = lowers.last() {
            let path = self.folders.files(top);
            let root = match sys::stat_at(CWD, &bytes(&path)) {
                Ok(root) => root,
                Err(rustix::io::Errno::NOENT) => return Err(SnapshotError::Missing(top.clone())),
                Err(error) => return Err(SnapshotError::io("look at", &path, error)),
            };
            let own = sys::stat_at(CWD, &bytes(&files)).map_err(failed)?;
            if (root.uid, root.gid) != (own.uid, own.gid) {
                sys::chown(CWD, &bytes(&files), root.uid, root.gid).map_err(failed)?;
            }
        }
        Ok(staged)
    }
}

/// How names of work folders begin.
const WORK: &str = "work-";

impl Snapshotter for Overlay {
    fn name(&self) -> &'static str {
        NAME
    }

    fn create(&self, layer: &LayerId, lowers: &[LayerId]) -> Result<(), SnapshotError> {
        self.folders.check(lowers)?;
        let staged = self.stage(lowers)?;
        Over::written(lowers).write(staged.path())?;
        staged.commit(layer)
    }

    fn mount(&self, lowers: &[LayerId], upper: Option<&LayerId>) -> Result<Tree, SnapshotError> {
        let mounted = match upper {
            None => self.mount_read_only(lowers),
            Some(upper) => self
                .mount_writable(lowers, upper)
                .map(|tree| tree.with_brake(self.folders.brake().clone())),
        };
        mounted.map_err(|error| match self.folders.check(lowers.iter().chain(upper)) {
            Err(missing) => missing,
            Ok(()) => error,
        })
    }

    fn freeze(&self, layer: &LayerId) -> Result<(), SnapshotError> {
        self.folders.check([layer])?;
        let folder = self.folders.layer(layer);
        self.remove_work_folders(&folder)
            .map_err(|error| SnapshotError::io("freeze", &folder, error))
    }

    fn remove(&self, layer: &LayerId) -> Result<(), SnapshotError> {
        self.skeletons.forget(&self.folders, layer)?;
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
        self.folders.check([layer])?;
        let base = (!lowers.is_empty()).then(|| self.mount(lowers, None)).transpose()?;
        let path = self.folders.files(layer);
        layer::write_overlay(base.as_ref(), &path, &self.marks(), out)
    }

    fn extract(
        &self,
        layer: &LayerId,
        lowers: &[LayerId],
        tar: &mut dyn Read,
        limits: &Limits,
    ) -> Result<Extracted, LayerError> {
        // The lowers may not exist yet; the owner of the root is settled when adopting.
        let staged = self.stage(&[])?;
        let unpacked = layer::unpack_overlay(&staged.files(), tar, limits, &self.marks())?;
        Ok(Extracted {
            info: unpacked.info,
            layer: layer.clone(),
            lowers: lowers.to_vec(),
            state: Box::new((staged, unpacked)),
        })
    }

    fn adopt(&self, extracted: Extracted) -> Result<(), LayerError> {
        let Extracted { layer, lowers, state, .. } = extracted;
        let (staged, unpacked) = *state
            .downcast::<(Staged, layer::Unpacked)>()
            .expect("an extracted layer goes back to the driver that made it");
        if let Some(top) = lowers.last() {
            settle::root_owner(&staged.files(), &self.folders.files(top), &unpacked, top)?;
        }
        if !lowers.is_empty() && (unpacked.root_emptied || !unpacked.implied.is_empty()) {
            let base = self.mount(&lowers, None)?;
            settle::implied_folders(&staged.files(), &base, &unpacked.implied)?;
            if unpacked.root_emptied {
                settle::emptied_root(&staged.files(), &base, &self.marks())?;
            }
        }
        let over = match unpacked.removes {
            true => {
                skeleton::make(&staged, &self.marks())?;
                Over::Unpacked(lowers.into())
            }
            false => Over::Plain,
        };
        over.write(staged.path())?;
        Ok(staged.commit(&layer)?)
    }

    fn diff_layer(
        &self,
        layer: &LayerId,
        lower: &[LayerId],
        upper: &[LayerId],
    ) -> Result<(), SnapshotError> {
        let (lower, upper) = (self.mount(lower, None)?, self.mount(upper, None)?);
        let staged = self.stage(&[])?;
        layer::write_delta(&lower, &upper, &staged.files())?;
        skeleton::make(&staged, &self.marks())?;
        Over::Delta.write(staged.path())?;
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

/// Finds out how overlay is driven here, by mounting one and writing through it.
fn probe(folders: &Folders) -> Result<OverlayForm, SnapshotError> {
    let staged = folders.stage()?;
    let unusable = |reason: String| SnapshotError::Unusable {
        driver: NAME,
        root: folders.root().to_owned(),
        reason,
    };
    // Outside the first user namespace the kernel keeps `trusted.*` to itself.
    let probe_mark = Marks::overlay(false).opaque;
    let top = fs::File::open(staged.path())
        .map_err(|error| SnapshotError::io("open", staged.path(), error))?;
    let at = sys::At::Fd(std::os::fd::AsFd::as_fd(&top));
    let user_xattrs = sys::set_xattr(at, probe_mark.as_bytes(), b"y").is_err();
    let mut last = String::new();
    for (append, volatile) in [(true, true), (true, false), (false, true), (false, false)] {
        let form = OverlayForm { append, user_xattrs, volatile };
        match try_form(&staged, form) {
            Ok(()) => return Ok(form),
            Err(error) => last = error.to_string(),
        }
    }
    Err(unusable(last))
}

/// Removes a lower folder and makes it again through a mount, which needs whiteouts and opaque marks
/// to work on this file system.
fn try_form(staged: &Staged, form: OverlayForm) -> io::Result<()> {
    let place = staged.path().join(base::id::random_hex(4));
    let names = ["lower", "second", "upper", "work"].map(|name| place.join(name));
    fs::create_dir(&place)?;
    for name in &names {
        fs::create_dir(name)?;
    }
    let [lower, second, upper, work] = names;
    fs::create_dir(lower.join("folder"))?;
    fs::write(lower.join("folder/file"), "")?;
    fs::write(lower.join("gone"), "")?;
    let lowers = [lower, second];
    let folders = OverlayFolders { lowers: &lowers, upper: Some((&upper, &work)) };
    let tree = Tree::new(mounts::overlay(form, &folders)?, true);
    fs::remove_dir_all(tree.path().join("folder"))?;
    fs::create_dir(tree.path().join("folder"))?;
    fs::remove_file(tree.path().join("gone"))?;
    let left =
        fs::read_dir(tree.path())?.count() + fs::read_dir(tree.path().join("folder"))?.count();
    if left != 1 {
        return Err(io::Error::other("removed files still show through an overlay mount"));
    }
    Ok(())
}
