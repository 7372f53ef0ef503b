//! Marks in the folders of layers that are written again and again.
//!
//! Rows reach the disk a moment after what they say has happened. That is right for what is added,
//! but files that are *changed* must not be described by rows of before: after a crash a build would
//! find them under the digests of what they were. So whoever begins to write to a retained layer
//! first counts its *turn* up, in the row and in the name of an empty file beside the layer's files.
//! A layer whose row has another turn than its folder is taken for one whose writer was killed.
//! Counting is a rename: it needs no room on a full disk and no sync, since the file system keeps
//! the order of what happens in one folder.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use snapshot::{LayerId, Snapshotter};

/// How names of the marks begin.
const PREFIX: &str = "turn-";

fn folder(snapshotter: &dyn Snapshotter, layer: &LayerId) -> PathBuf {
    let files = snapshotter.layer_path(layer);
    files.parent().map_or_else(|| files.clone(), Path::to_owned)
}

/// The turn that a layer's folder is in.
pub(crate) fn read(snapshotter: &dyn Snapshotter, layer: &LayerId) -> u64 {
    let entries = fs::read_dir(folder(snapshotter, layer)).into_iter().flatten().flatten();
    let turns =
        entries.filter_map(|entry| entry.file_name().to_str()?.strip_prefix(PREFIX)?.parse().ok());
    turns.max().unwrap_or(0)
}

/// Counts from `turn - 1` to `turn`.
pub(crate) fn advance(snapshotter: &dyn Snapshotter, layer: &LayerId, turn: u64) -> io::Result<()> {
    let folder = folder(snapshotter, layer);
    let mark = |turn: u64| folder.join(format!("{PREFIX}{turn}"));
    match fs::rename(mark(turn - 1), mark(turn)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            fs::File::create(mark(turn)).map(drop)
        }
        other => other,
    }
}
