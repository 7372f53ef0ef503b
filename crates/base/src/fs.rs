//! Small file helpers whose errors name the path.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::Path,
};

/// Adds the path and what was being done to an IO error's text, keeping its kind.
pub fn context(error: io::Error, doing: &str, path: &Path) -> io::Error {
    io::Error::new(error.kind(), format!("{doing} {}: {error}", path.display()))
}

/// Reads a whole file.
pub fn read(path: &Path) -> io::Result<Vec<u8>> {
    fs::read(path).map_err(|error| context(error, "read", path))
}

/// Makes a folder and its parents.
pub fn create_dir_all(path: &Path) -> io::Result<()> {
    fs::create_dir_all(path).map_err(|error| context(error, "create folder", path))
}

/// Replaces `path` by `data` in one step: readers see the old file or the new one, whole.
/// With `durable`, both the data and the name are on disk when this returns.
pub fn write_atomic(path: &Path, data: &[u8], durable: bool) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let temporary = folder.join(format!(".tmp-{}", crate::id::random_id()));
    let write = || -> io::Result<()> {
        let mut file = File::create(&temporary)?;
        file.write_all(data)?;
        if durable {
            file.sync_data()?;
        }
        fs::rename(&temporary, path)?;
        if durable {
            File::open(folder)?.sync_all()?;
        }
        Ok(())
    };
    write().map_err(|error| {
        _ = fs::remove_file(&temporary);
        context(error, "write", path)
    })
}
