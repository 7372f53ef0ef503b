//! `--reproducible` and `--verify`: the same input gives the same image.
//!
//! Reproducible builds take their date from the commit that is built and cut all times to it. To
//! verify, the build runs twice without cached results into layouts of its own; the layers are then
//! compared file by file. Nothing but the comparison is left behind.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read},
    path::Path,
    process::{Command, ExitCode},
};

use anyhow::{Context as _, bail};
use base::{Digest, Hasher};
use client::{BuildRequest, Client, Export, Target, progress::Mode};
use oci::{
    Descriptor, Index, Manifest,
    compress::{Decoder, Limits},
    layout::Layout,
    media,
};

use super::{BuildArgs, execute::execute};

const EPOCH: &str = "build-arg:SOURCE_DATE_EPOCH";
/// Differences of one layer that are printed.
const MAX_SHOWN: usize = 50;

/// Sets date and time cutting of a request, for a context given as `context`.
pub fn apply(args: &BuildArgs, context: &str, request: &mut BuildRequest) -> anyhow::Result<()> {
    if !args.reproducible && !args.verify {
        return Ok(());
    }
    let given = request.frontend_attrs.get(EPOCH).cloned();
    let epoch = match given.or_else(|| std::env::var("SOURCE_DATE_EPOCH").ok()) {
        Some(epoch) => epoch,
        None => commit_date(Path::new(context))?,
    };
    request.frontend_attrs.insert(EPOCH.to_owned(), epoch);
    for export in &mut request.exports {
        if matches!(export.kind.as_str(), "image" | "oci" | "docker") {
            export.attrs.entry("rewrite-timestamp".into()).or_insert_with(|| "true".into());
        }
    }
    Ok(())
}

/// Seconds of the commit that is checked out in a folder.
fn commit_date(folder: &Path) -> anyhow::Result<String> {
    const INSTEAD: &str = "give the date with --build-arg SOURCE_DATE_EPOCH=SECONDS";
    if !folder.is_dir() {
        bail!("--reproducible: the context is no folder with a commit; {INSTEAD}");
    }
    let output = Command::new("git")
        .arg("-C")
        .arg(folder)
        .args(["log", "-1", "--format=%ct"])
        .output()
        .with_context(|| format!("asking git for the date of the commit; {INSTEAD}"))?;
    let date = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    if !output.status.success() || date.parse::<i64>().is_err() {
        bail!("--reproducible: {} is not in a git checkout; {INSTEAD}", folder.display());
    }
    Ok(date)
}

/// Builds twice and says what differs; fails if anything does.
pub async fn verify(
    client: &Client,
    request: &BuildRequest,
    args: &BuildArgs,
    mode: Mode,
    debug: bool,
) -> anyhow::Result<ExitCode> {
    let folder = tempfile::Builder::new().prefix("rbuildctl-verify-").tempdir()?;
    let mut layouts = Vec::new();
    for name in ["first", "second"] {
        let target = folder.path().join(name);
        std::fs::create_dir(&target)?;
        let mut again = request.clone();
        again.reference = base::id::random_id();
        again.frontend_attrs.insert("no-cache".into(), String::new());
        again.cache_exports.clear();
        let attrs = [("tar", "false"), ("rewrite-timestamp", "true")];
        again.exports = vec![Export {
            kind: "oci".into(),
            attrs: attrs.map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
            target: Target::Store(target.clone()),
        }];
        execute(client, again, args, mode, debug).await?;
        layouts.push(target);
    }
    let differences = compare(&layouts[0], &layouts[1])?;
    if differences.is_empty() {
        let layout = Layout::open(&layouts[0])?;
        let digest = layout.index().manifests.first().map(|top| top.digest.to_string());
        println!("reproducible: {}", digest.unwrap_or_default());
        return Ok(ExitCode::SUCCESS);
    }
    println!("not reproducible:");
    for line in differences {
        println!("{line}");
    }
    Ok(ExitCode::FAILURE)
}

/// What differs between two layouts, line by line.
fn compare(left: &Path, right: &Path) -> anyhow::Result<Vec<String>> {
    let (left, right) = (Layout::open(left)?, Layout::open(right)?);
    let (before, after) = (images(&left)?, images(&right)?);
    let mut lines = Vec::new();
    if before.len() != after.len() {
        lines.push(format!("  {} images, then {}", before.len(), after.len()));
    }
    for (one, two) in before.iter().zip(&after) {
        if one.digest == two.digest {
            continue;
        }
        let platform = one.platform.as_ref().map(base::Platform::format).unwrap_or_default();
        lines.push(format!("  {platform} {} then {}", one.digest.short(), two.digest.short()));
        let (first, second) = (manifest(&left, one)?, manifest(&right, two)?);
        if first.layers.len() != second.layers.len() {
            let (first, second) = (first.layers.len(), second.layers.len());
            lines.push(format!("    {first} layers, then {second}"));
        }
        let mut same = true;
        for (number, (one, two)) in first.layers.iter().zip(&second.layers).enumerate() {
            if one.digest == two.digest {
                continue;
            }
            same = false;
            lines.push(format!("    layer {}:", number + 1));
            let before = files(&left, one)?;
            lines.extend(differences(&before, &files(&right, two)?));
        }
        if same {
            lines.push("    all layers are the same, the image's config differs".to_owned());
        }
    }
    Ok(lines)
}

/// The images of a layout, statements about them left out.
fn images(layout: &Layout) -> anyhow::Result<Vec<Descriptor>> {
    let Some(top) = layout.index().manifests.first() else { bail!("the layout is empty") };
    if !media::is_index(&top.media_type) {
        return Ok(vec![top.clone()]);
    }
    let body = std::fs::read(layout.blob_path(&top.digest))?;
    let index = Index::parse("the index of the image", &body)?;
    let is_image = |entry: &Descriptor| {
        !entry.annotations.contains_key(oci::select::ANNOTATION_REFERENCE_TYPE)
    };
    Ok(index.manifests.into_iter().filter(is_image).collect())
}

fn manifest(layout: &Layout, image: &Descriptor) -> anyhow::Result<Manifest> {
    let body = std::fs::read(layout.blob_path(&image.digest))?;
    Ok(Manifest::parse("the image's manifest", &body)?)
}

/// What is compared of a file.
#[derive(PartialEq)]
struct Entry {
    kind: u8,
    mode: u32,
    owner: (u64, u64),
    modified: u64,
    link: String,
    size: u64,
    content: Digest,
}

/// The entries of a layer by path.
fn files(layout: &Layout, layer: &Descriptor) -> anyhow::Result<BTreeMap<String, Entry>> {
    let file = File::open(layout.blob_path(&layer.digest))?;
    let mut archive = tar::Archive::new(Decoder::new(file, Limits::default())?);
    let read = |entry: io::Result<tar::Entry<'_, Decoder<File>>>| -> io::Result<_> {
        let mut entry = entry?;
        let path = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let link = entry.link_name_bytes().map(|link| String::from_utf8_lossy(&link).into_owned());
        let header = entry.header();
        let mut found = Entry {
            kind: header.entry_type().as_byte(),
            mode: header.mode()?,
            owner: (header.uid()?, header.gid()?),
            modified: header.mtime()?,
            link: link.unwrap_or_default(),
            size: entry.size(),
            content: Digest::of(""),
        };
        let mut hasher = Hasher::new();
        let mut buffer = vec![0; 64 << 10];
        loop {
            match entry.read(&mut buffer)? {
                0 => break,
                read => hasher.update(&buffer[..read]),
            }
        }
        found.content = hasher.finish();
        Ok((path, found))
    };
    let entries: io::Result<BTreeMap<_, _>> = archive.entries()?.map(read).collect();
    entries.with_context(|| format!("reading layer {}", layer.digest))
}

fn differences(before: &BTreeMap<String, Entry>, after: &BTreeMap<String, Entry>) -> Vec<String> {
    let mut lines = Vec::new();
    for (path, one) in before {
        let Some(two) = after.get(path) else {
            lines.push(format!("      {path}: only the first time"));
            continue;
        };
        let mut what = Vec::new();
        let mut note = |name: &str, differs: bool, before: String, after: String| {
            if differs {
                what.push(format!("{name} {before} then {after}"));
            }
        };
        let kind = |entry: &Entry| (entry.kind as char).to_string();
        note("type", one.kind != two.kind, kind(one), kind(two));
        note("mode", one.mode != two.mode, format!("{:o}", one.mode), format!("{:o}", two.mode));
        let owner = |entry: &Entry| format!("{}:{}", entry.owner.0, entry.owner.1);
        note("owner", one.owner != two.owner, owner(one), owner(two));
        let (first, second) = (one.modified.to_string(), two.modified.to_string());
        note("time", one.modified != two.modified, first, second);
        note("link", one.link != two.link, one.link.clone(), two.link.clone());
        let size = |entry: &Entry| format!("{} ({} bytes)", entry.content.short(), entry.size);
        note("content", one.content != two.content, size(one), size(two));
        if !what.is_empty() {
            lines.push(format!("      {path}: {}", what.join(", ")));
        }
    }
    let new = after.keys().filter(|path| !before.contains_key(*path));
    lines.extend(new.map(|path| format!("      {path}: only the second time")));
    if lines.is_empty() {
        lines.push("      the same files in another order".to_owned());
    }
    if lines.len() > MAX_SHOWN {
        let more = lines.len() - MAX_SHOWN;
        lines.truncate(MAX_SHOWN);
        lines.push(format!("      and {more} more"));
    }
    lines
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    #[test]
    fn what_differs_is_told() {
        let entry = |content: &str| Entry {
            kind: b'0',
            mode: 0o644,
            owner: (0, 0),
            modified: 1,
            link: String::new(),
            size: content.len() as u64,
            content: Digest::of(content),
        };
        let before = [("a", entry("x")), ("b", entry("")), ("c", entry(""))];
        let before = before.map(|(path, entry)| (path.to_owned(), entry)).into();
        let after = [
            ("a", entry("yy")),
            ("b", Entry { mode: 0o600, modified: 2, ..entry("") }),
            ("d", entry("")),
        ];
        let after = after.map(|(path, entry)| (path.to_owned(), entry)).into();
        expect![[r#"
            a: content 2d711642b726 (1 bytes) then ef90d9c1ec76 (2 bytes)
            b: mode 644 then 600, time 1 then 2
            c: only the first time
            d: only the second time"#]]
        .assert_eq(&differences(&before, &after).join("\n").replace("      ", ""));
    }
}
