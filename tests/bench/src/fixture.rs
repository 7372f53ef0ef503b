//! Folders with what a build reads.

use std::{
    fs::{self, File},
    io::{BufWriter, Write as _},
    path::Path,
};

use anyhow::Context as _;
use tempfile::TempDir;

/// A root file system out of busybox alone.
pub const BASE: &str = "FROM scratch AS base\n\
                        COPY busybox /bin/busybox\n\
                        RUN [\"/bin/busybox\", \"--install\", \"-s\", \"/bin\"]\n\
                        ENV PATH=/bin\n";

/// A context with busybox and `BASE` followed by `rest` as its Dockerfile.
pub fn tools(busybox: &Path, rest: &str) -> anyhow::Result<TempDir> {
    let folder = tempfile::tempdir()?;
    let copy = folder.path().join("busybox");
    fs::copy(busybox, &copy).with_context(|| format!("copying {}", busybox.display()))?;
    // One time for all folders, so that daemons see one file.
    let at = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_700_000_000);
    File::options().write(true).open(&copy)?.set_modified(at)?;
    fs::write(folder.path().join("Dockerfile"), format!("{BASE}{rest}"))?;
    Ok(folder)
}

/// A context of `count` small files in folders of a hundred.
pub fn many_files(count: usize) -> anyhow::Result<TempDir> {
    let folder = tempfile::tempdir()?;
    for index in 0..count {
        let sub = folder.path().join(format!("d{}", index / 100));
        if index % 100 == 0 {
            fs::create_dir_all(&sub)?;
        }
        fs::write(sub.join(format!("f{index}")), format!("content of file {index}\n").repeat(40))?;
    }
    fs::write(folder.path().join("Dockerfile"), "FROM scratch\nCOPY . /\n")?;
    Ok(folder)
}

/// A context with one file of `mib` MiB that compresses to about half, different for each `seed`.
pub fn big_file(mib: usize, seed: u64) -> anyhow::Result<TempDir> {
    let folder = tempfile::tempdir()?;
    let mut out = BufWriter::with_capacity(1 << 20, File::create(folder.path().join("big"))?);
    let mut state = seed | 1;
    let mut block = vec![0u8; 64 << 10];
    for _ in 0..mib * 16 {
        // Random bytes, then text-like repetition: gzip has work to do and something to win.
        let half = block.len() / 2;
        for word in block[..half].chunks_exact_mut(8) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            word.copy_from_slice(&state.to_le_bytes());
        }
        for (index, byte) in block[half..].iter_mut().enumerate() {
            *byte = b"the quick brown fox jumps over the lazy dog "[index % 44];
        }
        out.write_all(&block)?;
    }
    out.flush()?;
    fs::write(folder.path().join("Dockerfile"), "FROM scratch\nCOPY big /\n")?;
    Ok(folder)
}
