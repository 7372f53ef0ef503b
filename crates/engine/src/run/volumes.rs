//! Named folders that outlive containers: `volumes/<name>/_data` below the state folder.
//!
//! No collector touches them: only their owner removes them.

use std::{
    io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    time::SystemTime,
};

use frontend_api::{Code, FrontendError};

use crate::failure;

/// Folder of a volume's files, inside the volume's own.
const DATA: &str = "_data";

/// All volumes.
pub struct Volumes {
    folder: PathBuf,
}

/// One volume.
#[derive(Debug, Clone)]
pub struct Volume {
    /// Its name.
    pub name: String,
    /// Where its files are.
    pub path: PathBuf,
    /// When it was made.
    pub created: SystemTime,
}

impl Volumes {
    pub(super) fn new(root: &Path) -> Self {
        Self { folder: root.join("volumes") }
    }

    /// All of them by name.
    pub fn list(&self) -> Result<Vec<Volume>, FrontendError> {
        let failed = |error| failure::internal("list volumes", error);
        let entries = match std::fs::read_dir(&self.folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(failed)?,
        };
        let mut all = Vec::new();
        for entry in entries {
            let entry = entry.map_err(failed)?;
            if let Some(volume) = entry.file_name().to_str().and_then(|name| self.get(name)) {
                all.push(volume);
            }
        }
        all.sort_by(|left, right| left.name.cmp(&right.name));
        Ok(all)
    }

    /// The volume of that name.
    pub fn get(&self, name: &str) -> Option<Volume> {
        check(name).ok()?;
        let path = self.folder.join(name).join(DATA);
        let found = std::fs::metadata(&path).ok()?;
        // The folder's own time changes with its entries; its parent's does not.
        let parent = std::fs::metadata(path.parent()?).and_then(|parent| parent.modified());
        let created = parent.or_else(|_| found.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
        Some(Volume { name: name.to_owned(), path, created })
    }

    /// The volume of that name, made if there is none; says whether it was made.
    pub fn ensure(&self, name: &str) -> Result<(Volume, bool), FrontendError> {
        check(name)?;
        if let Some(volume) = self.get(name) {
            return Ok((volume, false));
        }
        let path = self.folder.join(name).join(DATA);
        let failed = |error| failure::internal("make a volume", error);
        if !self.folder.exists() {
            std::fs::DirBuilder::new()
                .mode(0o711)
                .recursive(true)
                .create(&self.folder)
                .map_err(failed)?;
        }
        make_folder(&path).map_err(failed)?;
        self.get(name)
            .map(|volume| (volume, true))
            .ok_or_else(|| FrontendError::new(format!("volume {name} vanished")))
    }

    /// Removes a volume with its files.
    pub fn remove(&self, name: &str) -> Result<(), FrontendError> {
        if self.get(name).is_none() {
            let text = format!("get {name}: no such volume");
            return Err(FrontendError::with_code(Code::NotFound, text));
        }
        std::fs::remove_dir_all(self.folder.join(name))
            .map_err(|error| failure::internal("remove a volume", error))
    }
}

/// Makes a folder that all may enter.
pub(super) fn make_folder(path: &Path) -> io::Result<()> {
    std::fs::DirBuilder::new().mode(0o755).recursive(true).create(path)
}

/// `[a-zA-Z0-9][a-zA-Z0-9_.-]+`, as docker has it.
fn check(name: &str) -> Result<(), FrontendError> {
    let mut bytes = name.bytes();
    let first = bytes.next().is_some_and(|byte| byte.is_ascii_alphanumeric());
    let rest = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
    if first && name.len() > 1 && name.len() <= 255 && bytes.all(rest) {
        return Ok(());
    }
    Err(FrontendError::with_code(
        Code::InvalidArgument,
        format!(
            "{name:?} includes invalid characters for a local volume name, only \
             \"[a-zA-Z0-9][a-zA-Z0-9_.-]\" are allowed. If you intended to pass a host folder, use an absolute path"
        ),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volumes_come_and_go() {
        let folder = tempfile::tempdir().unwrap();
        let volumes = Volumes::new(folder.path());
        assert!(volumes.list().unwrap().is_empty());
        assert!(volumes.ensure("data").unwrap().1);
        assert!(!volumes.ensure("data").unwrap().1);
        assert_eq!(volumes.list().unwrap()[0].name, "data");
        for bad in ["", "x", "../x", ".hidden", "a/b"] {
            assert!(volumes.ensure(bad).is_err(), "{bad}");
        }
        volumes.remove("data").unwrap();
        assert!(volumes.remove("data").unwrap_err().message.contains("no such volume"));
    }
}
