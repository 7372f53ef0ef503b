//! The golden content digests, both ways, and what changes do to an index.

use std::{fs, time::Instant};

use base::Digest;
use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde_json::Value;

use super::{
    HashError, Index, Query, Stat,
    index::{Folder, Node},
};
use crate::{Tree, sys, testing};

fn stat(entry: &Value) -> Stat {
    let kind = match entry["type"].as_str().unwrap() {
        "dir" => sys::DIR,
        "symlink" => sys::SYMLINK,
        "fifo" => sys::FIFO,
        "char" => sys::CHAR,
        "block" => sys::BLOCK,
        "socket" => sys::SOCKET,
        _ => sys::FILE,
    };
    let number = |key: &str| entry[key].as_u64().unwrap_or(0) as u32;
    Stat {
        mode: kind | testing::mode(entry).unwrap_or(0),
        uid: number("uid"),
        gid: number("gid"),
        size: testing::content(entry).len() as u64,
        link: entry["linkname"].as_str().unwrap_or("").into(),
        device: (number("devmajor"), number("devminor")),
        xattrs: testing::xattrs(entry).into_iter().collect(),
    }
}

fn transfer(vector: &Value) -> Index {
    let mut index = Index::new();
    for entry in vector["entries"].as_array().unwrap() {
        let path = entry["path"].as_str().unwrap().as_bytes();
        if entry["type"] == "hardlink" {
            assert!(index.put_link(path, entry["linkname"].as_str().unwrap().as_bytes()));
            continue;
        }
        let stat = stat(entry);
        let mut hasher = stat.hasher();
        hasher.update(testing::content(entry));
        index.put(path, &stat, hasher.finish());
    }
    index
}

/// All records as the vectors list them: key, kind, digest, link.
fn records(index: &Index) -> Vec<(String, &'static str, Digest, String)> {
    fn walk(folder: &Folder, key: String, list: &mut Vec<(String, &'static str, Digest, String)>) {
        list.push((key.clone(), "DIR", folder.content.unwrap(), String::new()));
        list.push((format!("{key}/"), "DIR_HEADER", folder.header.unwrap(), String::new()));
        for (name, node) in &folder.children {
            let key = format!("{key}/{}", String::from_utf8_lossy(name));
            match node {
                Node::Folder(folder) => walk(folder, key, list),
                Node::Symlink { digest, target } => {
                    let target = String::from_utf8_lossy(target).into_owned();
                    list.push((key, "SYMLINK", digest.unwrap(), target));
                }
                Node::File { digest, .. } => {
                    list.push((key, "FILE", digest.unwrap(), String::new()));
                }
            }
        }
    }
    let mut list = Vec::new();
    walk(&index.root, String::new(), &mut list);
    list
}

fn check_records(name: &str, index: &Index, expected: &Value) {
    let text = |record: &Value, key: &str| record[key].as_str().unwrap_or("").to_owned();
    let expected: Vec<_> = expected
        .as_array()
        .unwrap()
        .iter()
        .map(|record| {
            let (kind, link) = (text(record, "kind"), text(record, "linkname"));
            (text(record, "key"), kind, text(record, "digest"), link)
        })
        .collect();
    let found: Vec<_> = records(index)
        .into_iter()
        .map(|(key, kind, digest, link)| (key, kind.to_owned(), digest.to_string(), link))
        .collect();
    assert_eq!(found, expected, "{name}");
}

fn check_queries(name: &str, fresh: &dyn Fn() -> Index, tree: &Tree, vector: &Value, side: &str) {
    let mut kept = fresh();
    for query in vector["queries"].as_array().unwrap() {
        let list = |key: &str| -> Vec<String> {
            let texts = query[key].as_array().cloned().unwrap_or_default();
            texts.iter().map(|text| text.as_str().unwrap().to_owned()).collect()
        };
        let lists = [list("include"), list("exclude"), list("required")];
        let asked = Query {
            path: query["path"].as_str().unwrap(),
            follow: query["follow_links"].as_bool().unwrap(),
            wildcard: query["wildcard"].as_bool().unwrap(),
            include: &lists[0],
            exclude: &lists[1],
            required: &lists[2],
        };
        // Alone, after everything else, and after having been stored.
        let restored = Index::from_bytes(&kept.to_bytes()).unwrap();
        for (how, index) in
            [("alone", &mut fresh()), ("later", &mut kept), ("restored", &mut { restored })]
        {
            let found = match index.checksum_filtered(tree, &asked) {
                Ok(digest) => serde_json::json!({ "digest": digest }),
                Err(error) => serde_json::json!({ "error": error.to_string() }),
            };
            assert_eq!(found, query[side], "{name} {side} {how} {asked:?}");
        }
    }
}

#[test]
fn golden_transfers() {
    let nothing = tempfile::tempdir().unwrap();
    let nothing = Tree::of_folder(nothing.path(), false).unwrap();
    for (name, vector) in testing::golden("contenthash") {
        if vector["entries"].as_array().unwrap().is_empty() {
            // Nothing transferred means a scan; see the other test.
            continue;
        }
        for record in vector["records_transfer"].as_array().unwrap() {
            let Some(header) = record["header_base64"].as_str() else { continue };
            let key = record["key"].as_str().unwrap().trim_matches('/');
            let entries = vector["entries"].as_array().unwrap();
            let entry = entries.iter().find(|entry| entry["path"] == key).unwrap();
            if entry["type"] != "hardlink" {
                let header = BASE64_STANDARD.decode(header).unwrap();
                let found = stat(entry).header();
                assert_eq!(String::from_utf8_lossy(&found), String::from_utf8_lossy(&header));
            }
        }
        let mut index = transfer(&vector);
        index.checksum(&nothing, "/", false).unwrap();
        check_records(&name, &index, &vector["records_transfer"]);
        check_queries(&name, &|| transfer(&vector), &nothing, &vector, "transfer");
    }
}

#[test]
fn golden_scans() {
    if !testing::is_root() {
        return;
    }
    for (name, vector) in testing::golden("contenthash") {
        let folder = tempfile::tempdir().unwrap();
        let root = serde_json::json!([vector["root"]]);
        testing::make(folder.path(), &vector["entries"]);
        testing::make(folder.path(), &root);
        let tree = Tree::of_folder(folder.path(), false).unwrap();
        let mut index = Index::new();
        index.checksum(&tree, "/", false).unwrap();
        check_records(&name, &index, &vector["records_scan"]);
        check_queries(&name, &Index::new, &tree, &vector, "scan");
    }
}

#[test]
fn changes_are_noticed() {
    let nothing = tempfile::tempdir().unwrap();
    let tree = Tree::of_folder(nothing.path(), false).unwrap();
    let folder = Stat { mode: sys::DIR | 0o755, ..Stat::default() };
    let file = Stat { mode: sys::FILE | 0o644, size: 1, ..Stat::default() };
    let put = {
        move |index: &mut Index, path: &str, stat: &Stat, content: &str| {
            let mut hasher = stat.hasher();
            hasher.update(content);
            index.put(path.as_bytes(), stat, hasher.finish());
        }
    };
    let mut index = Index::new();
    assert!(index.is_empty() && !index.is_dirty());
    put(&mut index, "a", &folder, "");
    put(&mut index, "a/b", &folder, "");
    put(&mut index, "a/b/x", &file, "1");
    put(&mut index, "c", &file, "1");
    let ask = |index: &mut Index, path: &str| index.checksum(&tree, path, false);
    let before = ask(&mut index, "/").unwrap();
    let other = ask(&mut index, "c").unwrap();
    assert!(index.is_dirty());
    let bytes = index.to_bytes();
    let mut index = Index::from_bytes(&bytes).unwrap();
    assert!(!index.is_dirty());
    assert_eq!(ask(&mut index, "/").unwrap(), before);
    assert!(!index.is_dirty(), "asking for what is known learns nothing");

    put(&mut index, "a/b/x", &file, "2");
    let after = ask(&mut index, "/").unwrap();
    assert_ne!(after, before);
    assert_eq!(ask(&mut index, "c").unwrap(), other);
    put(&mut index, "a/b", &folder, "");
    assert_eq!(ask(&mut index, "/").unwrap(), after, "a folder sent again keeps its members");
    put(&mut index, "a/b/x", &file, "1");
    assert_eq!(ask(&mut index, "/").unwrap(), before);
    index.remove(b"a/b/x");
    assert!(matches!(ask(&mut index, "a/b/x"), Err(HashError::NotFound(path)) if path == "/a/b/x"));
    assert_ne!(ask(&mut index, "/").unwrap(), before);
    put(&mut index, "a", &file, "1");
    assert_eq!(ask(&mut index, "a").unwrap(), other, "a file in place of a folder");
    assert!(ask(&mut index, "a/b").is_err());
}

#[test]
fn hostile_trees_are_refused_or_hashed() {
    use std::{ffi::OsStr, os::unix::ffi::OsStrExt as _};
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join(OsStr::from_bytes(b"\xff\xfe*")), "x").unwrap();
    let tree = Tree::of_folder(folder.path(), false).unwrap();
    let mut index = Index::new();
    index.checksum(&tree, "/", false).unwrap();
    let query = Query { path: "/*", wildcard: true, follow: true, ..Query::default() };
    index.checksum_filtered(&tree, &query).unwrap();
    let mut at = fs::File::open(folder.path()).unwrap();
    for _ in 0..2000 {
        rustix::fs::mkdirat(&at, c"d", 0o755.into()).unwrap();
        at = sys::open_dir(&at, b"d").unwrap().into();
    }
    let error = Index::new().checksum(&tree, "/", false).unwrap_err();
    assert!(error.to_string().ends_with("nested too deeply"), "{error}");
    // A client that sends such a thing does not get far either.
    let mut index = Index::new();
    let stat = Stat { mode: sys::DIR, ..Stat::default() };
    index.put("x/".repeat(2000).as_bytes(), &stat, Digest::of(""));
    index.put("x/".repeat(200_000).as_bytes(), &stat, Digest::of(""));
    assert!(index.checksum(&tree, "/", false).is_err());
    crate::sys::remove_all(rustix::fs::CWD, folder.path().as_os_str().as_bytes()).unwrap();

    for bytes in
        [&b""[..], b"\x01", b"\x02\0\0", b"\x01\0\xff\xff\xff\xff\xff", b"\x01\0\x01\x01a\x07"]
    {
        assert!(Index::from_bytes(bytes).is_err());
    }
}

/// `cargo test -p snapshot --release -- --ignored --nocapture hashing_speed`
#[test]
#[ignore = "measures"]
fn hashing_speed() {
    let folder = tempfile::tempdir().unwrap();
    for number in 0..20_000 {
        let below = folder.path().join(format!("d{}", number / 50));
        if number % 50 == 0 {
            fs::create_dir(&below).unwrap();
        }
        fs::write(below.join(format!("f{number}")), vec![b'x'; 4000]).unwrap();
    }
    let tree = Tree::of_folder(folder.path(), false).unwrap();
    let timed = |what: &str, work: &mut dyn FnMut()| {
        let start = Instant::now();
        work();
        println!("{what}: {:.1} ms", start.elapsed().as_secs_f64() * 1e3);
    };
    let mut index = Index::new();
    timed("scan of 20,000 files of 4 kB", &mut || {
        index.checksum(&tree, "/", false).unwrap();
    });
    timed("asked again", &mut || {
        index.checksum(&tree, "/", false).unwrap();
    });
    let mut bytes = Vec::new();
    timed("store", &mut || bytes = index.to_bytes());
    println!("{} bytes", bytes.len());
    timed("restore", &mut || index = Index::from_bytes(&bytes).unwrap());
    let stat = Stat { mode: sys::FILE | 0o644, ..Stat::default() };
    timed("one change", &mut || {
        index.put(b"d3/f160", &stat, Digest::of("x"));
        index.checksum(&tree, "/", false).unwrap();
    });
    let pattern = ["**/f1*".to_owned()];
    let query = Query { path: "/", include: &pattern, ..Query::default() };
    timed("filtered", &mut || _ = index.checksum_filtered(&tree, &query).unwrap());
}
