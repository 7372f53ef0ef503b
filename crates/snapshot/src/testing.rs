//! Trees from descriptions and descriptions from trees, for the tests of this crate.

use std::{
    fs,
    os::{fd::AsFd as _, unix::ffi::OsStrExt as _, unix::fs::symlink},
    path::{Path, PathBuf},
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use rustix::fs::CWD;
use serde_json::Value;

use crate::{
    Tree,
    sys::{self, At, Time},
};

/// Whether the tests run as root, without which most of them can do nothing.
pub(crate) fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("skipped: needs root");
    }
    root
}

/// A file of `tests/golden`.
pub(crate) fn golden(folder: &str) -> Vec<(String, Value)> {
    let path =
        PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden")).join(folder);
    let mut files: Vec<_> =
        fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
        .iter()
        .map(|path| {
            let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
            (name, serde_json::from_slice(&fs::read(path).unwrap()).unwrap())
        })
        .collect()
}

fn number(entry: &Value, key: &str) -> Option<u32> {
    entry[key].as_u64().map(|number| u32::try_from(number).unwrap())
}

pub(crate) fn mode(entry: &Value) -> Option<u32> {
    entry["mode"].as_str().map(|mode| u32::from_str_radix(mode, 8).unwrap())
}

pub(crate) fn content(entry: &Value) -> Vec<u8> {
    let times = entry["content_repeat"].as_u64().unwrap_or(1);
    entry["content"].as_str().unwrap_or("").repeat(usize::try_from(times).unwrap()).into_bytes()
}

pub(crate) fn xattrs(entry: &Value) -> Vec<(Vec<u8>, Vec<u8>)> {
    let Some(map) = entry["xattrs_base64"].as_object() else { return Vec::new() };
    map.iter()
        .map(|(key, value)| {
            (key.clone().into_bytes(), BASE64_STANDARD.decode(value.as_str().unwrap()).unwrap())
        })
        .collect()
}

/// Makes the entries of a golden description below `root`; `keep` only re-stamps.
pub(crate) fn make(root: &Path, entries: &Value) {
    let entries = entries.as_array().unwrap();
    for entry in entries {
        let name = entry["path"].as_str().unwrap();
        let path = root.join(name.trim_start_matches('/'));
        let raw = path.as_os_str().as_bytes();
        let link = || entry["linkname"].as_str().unwrap();
        let device =
            || (number(entry, "devmajor").unwrap_or(0), number(entry, "devminor").unwrap_or(0));
        let node = |kind: u32| sys::make_node(CWD, raw, kind, 0o600, device()).unwrap();
        match entry["type"].as_str().unwrap() {
            "dir" => match fs::create_dir(&path) {
                Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                    panic!("{error}")
                }
                _ => {}
            },
            "file" => fs::write(&path, content(entry)).unwrap(),
            "symlink" => symlink(link(), &path).unwrap(),
            "hardlink" => {
                fs::hard_link(root.join(link()), &path).unwrap();
                continue;
            }
            "fifo" => node(sys::FIFO),
            "char" => node(sys::CHAR),
            "block" => node(sys::BLOCK),
            "socket" => node(sys::SOCKET),
            "keep" => continue,
            other => panic!("{other}"),
        }
        if let Some(uid) = number(entry, "uid") {
            sys::chown(CWD, raw, uid, number(entry, "gid").unwrap()).unwrap();
        }
        let folder = fs::File::open(root).unwrap();
        for (key, value) in xattrs(entry) {
            let inside = name.trim_start_matches('/').as_bytes();
            let inside = if inside.is_empty() { &b"."[..] } else { inside };
            sys::set_xattr(At::Name(folder.as_fd(), inside), &key, &value).unwrap();
        }
        if let (Some(mode), false) = (mode(entry), entry["type"] == "symlink") {
            sys::chmod(CWD, raw, mode).unwrap();
        }
    }
    for entry in entries.iter().rev() {
        if let Some(nanos) = entry["mtime_ns"].as_i64() {
            let path = root.join(entry["path"].as_str().unwrap());
            let time = Time::from_nanos(nanos);
            sys::set_times(CWD, path.as_os_str().as_bytes(), time, time).unwrap();
        }
    }
}

/// Makes what lines like those of [`show`] say: `d 0755 1:2 path`, `- 0644 1:2 path "text"`,
/// `l path -> target`, `h path = target`, `p 0600 1:2 path`, `s …`, `b 0600 1:2 path 8,1`. Every
/// modification time is the number of the line, in seconds.
pub(crate) fn build(root: &Path, text: &str) {
    let mut stamps = Vec::new();
    for (number, line) in text.lines().map(str::trim).filter(|line| !line.is_empty()).enumerate() {
        let (kind, rest) = line.split_once(' ').unwrap();
        let path = match kind {
            "l" => {
                let (path, target) = rest.split_once(" -> ").unwrap();
                symlink(target, root.join(path)).unwrap();
                path
            }
            "h" => {
                let (path, target) = rest.split_once(" = ").unwrap();
                fs::hard_link(root.join(target), root.join(path)).unwrap();
                path
            }
            _ => {
                let mut fields = rest.splitn(4, ' ');
                let mode = u32::from_str_radix(fields.next().unwrap(), 8).unwrap();
                let (uid, gid) = fields.next().unwrap().split_once(':').unwrap();
                let path = fields.next().unwrap();
                let more = fields.next().unwrap_or("");
                let place = root.join(path);
                let raw = place.as_os_str().as_bytes();
                match kind {
                    "d" => fs::create_dir(&place).unwrap(),
                    "-" => fs::write(&place, more.trim_matches('"')).unwrap(),
                    "p" => sys::make_node(CWD, raw, sys::FIFO, 0o600, (0, 0)).unwrap(),
                    "s" => sys::make_node(CWD, raw, sys::SOCKET, 0o600, (0, 0)).unwrap(),
                    "b" => sys::make_node(CWD, raw, sys::BLOCK, 0o600, (8, 1)).unwrap(),
                    other => panic!("{other}"),
                }
                sys::chown(CWD, raw, uid.parse().unwrap(), gid.parse().unwrap()).unwrap();
                sys::chmod(CWD, raw, mode).unwrap();
                path
            }
        };
        stamps.push((path.to_owned(), Time { sec: number as i64 + 1, nsec: 5 }));
    }
    for (path, time) in stamps.into_iter().rev() {
        sys::set_times(CWD, root.join(path).as_os_str().as_bytes(), time, time).unwrap();
    }
}

/// One line per entry: kind, mode, owner, size or target, path.
pub(crate) fn show(tree: &Tree) -> String {
    let mut lines = String::new();
    show_folder(&tree.path(), Path::new(""), &mut lines);
    lines
}

fn show_folder(root: &Path, below: &Path, lines: &mut String) {
    use std::{fmt::Write as _, os::unix::fs::MetadataExt as _};
    let mut names: Vec<_> =
        fs::read_dir(root.join(below)).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    for name in names {
        let path = below.join(name);
        let meta = fs::symlink_metadata(root.join(&path)).unwrap();
        let kind = match meta.mode() & sys::TYPE_MASK {
            sys::DIR => 'd',
            sys::FILE => '-',
            sys::SYMLINK => 'l',
            sys::CHAR => 'c',
            sys::BLOCK => 'b',
            sys::FIFO => 'p',
            _ => 's',
        };
        let (mode, uid, gid) = (meta.mode() & 0o7777, meta.uid(), meta.gid());
        write!(lines, "{kind} {mode:04o} {uid}:{gid} {}", path.display()).unwrap();
        if meta.is_symlink() {
            let target = fs::read_link(root.join(&path)).unwrap();
            write!(lines, " -> {}", target.display()).unwrap();
        } else if meta.is_file() {
            let content = fs::read(root.join(&path)).unwrap();
            let text = String::from_utf8_lossy(&content[..content.len().min(40)]).into_owned();
            write!(lines, " {text:?}").unwrap();
        }
        lines.push('\n');
        if meta.is_dir() {
            show_folder(root, &path, lines);
        }
    }
}
