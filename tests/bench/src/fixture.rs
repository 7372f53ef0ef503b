//! Folders with what a build reads.

use std::{
    fmt::Write as _,
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

/// A context of `layers` folders with `mib` MiB in all, each of which becomes a layer: files of
/// 50 KiB, a quarter of them random, the rest words, as programs and texts are.
pub fn layers(mib: usize, layers: usize) -> anyhow::Result<TempDir> {
    const SIZE: usize = 50 << 10;
    let folder = tempfile::tempdir()?;
    let mut state = base::time::unix_nanos(std::time::SystemTime::now()).cast_unsigned() | 1;
    let mut random = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let words: Vec<String> = (0..512).map(|_| format!("{:x} ", random() % 0xff_ffff)).collect();
    let mut dockerfile = String::from("FROM scratch\n");
    for layer in 0..layers {
        for number in 0..(mib << 20) / layers / SIZE {
            let sub = folder.path().join(format!("l{layer}/d{}", number / 100));
            if number % 100 == 0 {
                fs::create_dir_all(&sub)?;
            }
            let mut text = Vec::with_capacity(SIZE + 16);
            while text.len() < SIZE / 4 {
                text.extend_from_slice(&random().to_le_bytes());
            }
            while text.len() < SIZE {
                let mut bits = random();
                for _ in 0..7 {
                    let word = usize::try_from(bits % 512).expect("below 512");
                    text.extend_from_slice(words[word].as_bytes());
                    bits >>= 9;
                }
            }
            fs::write(sub.join(format!("f{number}")), text)?;
        }
        let _ = writeln!(dockerfile, "COPY l{layer} /l{layer}");
    }
    fs::write(folder.path().join("Dockerfile"), dockerfile)?;
    Ok(folder)
}
