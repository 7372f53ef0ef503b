//! The file actions, as text: a source, a target, what is done, and the target afterwards.

use std::{fs, io::Write as _, os::unix::fs::MetadataExt as _, time::Instant};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use expect_test::{Expect, expect};

use super::*;
use crate::{Tree, testing};

struct Case {
    source: tempfile::TempDir,
    target: tempfile::TempDir,
}

impl Case {
    fn new(source: &str, target: &str) -> Self {
        let case =
            Self { source: tempfile::tempdir().unwrap(), target: tempfile::tempdir().unwrap() };
        testing::build(case.source.path(), source);
        testing::build(case.target.path(), target);
        case
    }

    fn source(&self) -> Tree {
        Tree::of_folder(self.source.path(), false).unwrap()
    }

    fn target(&self) -> Tree {
        Tree::of_folder(self.target.path(), true).unwrap()
    }

    fn copy(&self, src: &str, dest: &str, options: &CopyOptions) -> Result<(), FileError> {
        copy(Some(&self.source()), src, &self.target(), dest, options)
    }
}

fn plain() -> CopyOptions {
    CopyOptions { create_dest_path: true, allow_wildcard: true, ..CopyOptions::default() }
}

/// What COPY of a Dockerfile sends.
fn contents() -> CopyOptions {
    CopyOptions { copy_dir_contents: true, follow_symlink: true, ..plain() }
}

/// Copies and shows the target, or the error.
fn check(
    source: &str,
    target: &str,
    (src, dest): (&str, &str),
    options: CopyOptions,
    expect: Expect,
) {
    if !testing::is_root() {
        return;
    }
    let case = Case::new(source, target);
    match case.copy(src, dest, &options) {
        Ok(()) => expect.assert_eq(&testing::show(&case.target())),
        Err(error) => expect.assert_eq(&error.to_string()),
    }
}

const SOURCE: &str = r#"
    d 0711 1:2 a
    - 0640 3:4 a/x "x"
    - 0600 5:6 a/y.go "y"
    d 2755 0:0 a/sub
    - 4755 7:8 a/sub/z.go "z"
    l link -> a
    l broken -> nowhere
    - 0644 0:0 top "top"
"#;

#[test]
fn folders_go_in_or_become_the_destination() {
    check(
        SOURCE,
        "",
        ("/a", "/b"),
        plain(),
        expect![[r#"
        d 0711 1:2 b
        d 2755 0:0 b/sub
        - 4755 7:8 b/sub/z.go "z"
        - 0640 3:4 b/x "x"
        - 0600 5:6 b/y.go "y"
    "#]],
    );
    check(
        SOURCE,
        "d 0700 9:9 b",
        ("/a", "/b"),
        plain(),
        expect![[r#"
        d 0700 9:9 b
        d 0711 1:2 b/a
        d 2755 0:0 b/a/sub
        - 4755 7:8 b/a/sub/z.go "z"
        - 0640 3:4 b/a/x "x"
        - 0600 5:6 b/a/y.go "y"
    "#]],
    );
    check(
        SOURCE,
        "d 0700 9:9 b",
        ("/a", "/b/"),
        contents(),
        expect![[r#"
        d 0700 9:9 b
        d 2755 0:0 b/sub
        - 4755 7:8 b/sub/z.go "z"
        - 0640 3:4 b/x "x"
        - 0600 5:6 b/y.go "y"
    "#]],
    );
    check(
        SOURCE,
        "",
        ("/a/sub/.", "/new/deep"),
        plain(),
        expect![[r#"
        d 0755 0:0 new
        d 2755 0:0 new/deep
        - 4755 7:8 new/deep/z.go "z"
    "#]],
    );
    check(
        SOURCE,
        "",
        ("/", "/"),
        contents(),
        expect![[r#"
        d 0711 1:2 a
        d 2755 0:0 a/sub
        - 4755 7:8 a/sub/z.go "z"
        - 0640 3:4 a/x "x"
        - 0600 5:6 a/y.go "y"
        l 0777 0:0 broken -> nowhere
        l 0777 0:0 link -> a
        - 0644 0:0 top "top"
    "#]],
    );
}

#[test]
fn files_go_in_or_become_the_destination() {
    check(
        SOURCE,
        "",
        ("top", "dir/"),
        plain(),
        expect![[r#"
        d 0755 0:0 dir
        - 0644 0:0 dir/top "top"
    "#]],
    );
    check(
        SOURCE,
        "",
        ("/x/../top", "dir/name"),
        plain(),
        expect![[r#"
        d 0755 0:0 dir
        - 0644 0:0 dir/name "top"
    "#]],
    );
    check(
        SOURCE,
        "d 0755 0:0 dir",
        ("/top", "/dir"),
        plain(),
        expect![[r#"
        d 0755 0:0 dir
        - 0644 0:0 dir/top "top"
    "#]],
    );
    // Through symlinks in the target, but never out of it.
    check(
        SOURCE,
        "d 0755 0:0 dir\nl way -> /dir\nl out -> ../../../../dir/new",
        ("/top", "/way/out"),
        plain(),
        expect![[r#"
        d 0755 0:0 dir
        - 0644 0:0 dir/out "top"
        l 0777 0:0 out -> ../../../../dir/new
        l 0777 0:0 way -> /dir
    "#]],
    );
    check(
        SOURCE,
        "d 0755 0:0 dir\nl out -> ../../../../dir/new",
        ("/top", "/out"),
        plain(),
        expect![[r#"
        d 0755 0:0 dir
        - 0644 0:0 dir/new "top"
        l 0777 0:0 out -> ../../../../dir/new
    "#]],
    );
}

#[test]
fn symlinks_are_followed_when_asked() {
    check(
        SOURCE,
        "",
        ("/link", "/b"),
        plain(),
        expect![[r#"
        l 0777 0:0 b -> a
    "#]],
    );
    check(
        SOURCE,
        "",
        ("/link/x", "/b"),
        plain(),
        expect![[r#"
        - 0640 3:4 b "x"
    "#]],
    );
    let options = CopyOptions { follow_symlink: true, ..plain() };
    check(
        SOURCE,
        "",
        ("/link", "/b"),
        options.clone(),
        expect![[r#"
        d 0711 1:2 b
        d 2755 0:0 b/sub
        - 4755 7:8 b/sub/z.go "z"
        - 0640 3:4 b/x "x"
        - 0600 5:6 b/y.go "y"
    "#]],
    );
    check(
        SOURCE,
        "",
        ("/broken", "/b"),
        options,
        expect!["lstat /broken: no such file or directory"],
    );
    check(
        SOURCE,
        "",
        ("/broken", "/b"),
        plain(),
        expect![[r#"
        l 0777 0:0 b -> nowhere
    "#]],
    );
}

#[test]
fn wildcards_match_in_order() {
    check(
        SOURCE,
        "",
        ("/a/*.go", "/b/"),
        plain(),
        expect![[r#"
        d 0755 0:0 b
        - 0600 5:6 b/y.go "y"
    "#]],
    );
    check(
        SOURCE,
        "",
        ("/link/s*", "/b/"),
        contents(),
        expect![[r#"
        d 0755 0:0 b
        - 4755 7:8 b/z.go "z"
    "#]],
    );
    check(
        SOURCE,
        "",
        ("/[at]*", "/b/"),
        plain(),
        expect![[r#"
        d 0755 0:0 b
        d 0711 1:2 b/a
        d 2755 0:0 b/a/sub
        - 4755 7:8 b/a/sub/z.go "z"
        - 0640 3:4 b/a/x "x"
        - 0600 5:6 b/a/y.go "y"
        - 0644 0:0 b/top "top"
    "#]],
    );
    check(SOURCE, "", ("/*.none", "/b/"), plain(), expect!["/*.none not found"]);
    let fine = CopyOptions { allow_empty_wildcard: true, ..plain() };
    check(SOURCE, "", ("/*.none", "/b/"), fine, expect![""]);
    check(SOURCE, "", ("/no/*", "/b/"), plain(), expect!["lstat /no: no such file or directory"]);
    let literal = CopyOptions { allow_wildcard: false, ..plain() };
    check(
        SOURCE,
        "",
        ("/a/*.go", "/b/"),
        literal,
        expect!["lstat /a/*.go: no such file or directory"],
    );
}

#[test]
fn patterns_select() {
    let include = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
    let options = CopyOptions { include: include(&["**/*.go"]), ..contents() };
    check(
        SOURCE,
        "",
        ("/", "/b"),
        options,
        expect![[r#"
            d 0755 0:0 b
            d 0711 1:2 b/a
            d 2755 0:0 b/a/sub
            - 4755 7:8 b/a/sub/z.go "z"
            - 0600 5:6 b/a/y.go "y"
        "#]],
    );
    let options = CopyOptions { include: include(&["a/nothing"]), ..contents() };
    check(
        SOURCE,
        "",
        ("/", "/b"),
        options,
        expect![[r#"
            d 0755 0:0 b
        "#]],
    );
    let options =
        CopyOptions { exclude: include(&["a/*", "!a/sub", "t*", "broken"]), ..contents() };
    check(
        SOURCE,
        "",
        ("/", "/b"),
        options,
        expect![[r#"
            d 0755 0:0 b
            d 0711 1:2 b/a
            d 2755 0:0 b/a/sub
            - 4755 7:8 b/a/sub/z.go "z"
            l 0777 0:0 b/link -> a
        "#]],
    );
    let options = CopyOptions {
        include: include(&["a/sub", "top"]),
        exclude: include(&["**/z*"]),
        ..contents()
    };
    check(
        SOURCE,
        "",
        ("/", "/b"),
        options,
        expect![[r#"
            d 0755 0:0 b
            d 0711 1:2 b/a
            d 2755 0:0 b/a/sub
            - 0644 0:0 b/top "top"
        "#]],
    );
    // A single file is not asked.
    let options = CopyOptions { exclude: include(&["*"]), ..plain() };
    check(
        SOURCE,
        "",
        ("/top", "/b"),
        options,
        expect![[r#"
        - 0644 0:0 b "top"
    "#]],
    );
    let options = CopyOptions { include: include(&["a["]), ..plain() };
    check(
        SOURCE,
        "",
        ("/", "/b"),
        options,
        expect!["invalid includepatterns: [a[]: syntax error in pattern"],
    );
}

#[test]
fn owner_mode_and_time_can_be_given() {
    let options = CopyOptions {
        owner: Some(Owner { uid: 11, gid: 12 }),
        mode: Some(0o4750),
        timestamp: Some(1_500_000_000_123_456_789),
        ..plain()
    };
    if !testing::is_root() {
        return;
    }
    let case = Case::new(SOURCE, "");
    case.copy("/a", "/deep/b/", &options).unwrap();
    expect![[r#"
        d 0750 11:12 deep
        d 0750 11:12 deep/b
        d 4750 11:12 deep/b/a
        d 4750 11:12 deep/b/a/sub
        - 4750 11:12 deep/b/a/sub/z.go "z"
        - 4750 11:12 deep/b/a/x "x"
        - 4750 11:12 deep/b/a/y.go "y"
    "#]]
    .assert_eq(&testing::show(&case.target()));
    for path in ["deep", "deep/b", "deep/b/a", "deep/b/a/sub", "deep/b/a/sub/z.go"] {
        let meta = fs::metadata(case.target.path().join(path)).unwrap();
        assert_eq!((meta.mtime(), meta.mtime_nsec()), (1_500_000_000, 123_456_789), "{path}");
    }
    let options = CopyOptions { mode_text: "u=rwX,go=rX".into(), ..plain() };
    check(
        SOURCE,
        "",
        ("/a", "/b"),
        options,
        expect![[r#"
        d 0755 1:2 b
        d 0755 0:0 b/sub
        - 0755 7:8 b/sub/z.go "z"
        - 0644 3:4 b/x "x"
        - 0644 5:6 b/y.go "y"
    "#]],
    );
    let options = CopyOptions { mode_text: "u=q".into(), ..plain() };
    check(SOURCE, "", ("/a", "/b"), options, expect!["invalid mode `u=q`: invalid syntax"]);
}

#[test]
fn times_are_kept() {
    if !testing::is_root() {
        return;
    }
    let case = Case::new(SOURCE, "d 0700 0:0 b");
    case.copy("/a", "/b", &contents()).unwrap();
    let time = |path: &str| {
        let meta = fs::symlink_metadata(case.target.path().join(path)).unwrap();
        (meta.mtime(), meta.mtime_nsec())
    };
    // The top folder existed and still takes the source's times.
    for (path, line) in [("b", 1), ("b/x", 2), ("b/sub", 4), ("b/sub/z.go", 5)] {
        assert_eq!(time(path), (line, 5), "{path}");
    }
}

#[test]
fn what_exists_is_merged_replaced_or_refused() {
    let target = r#"
        d 0700 9:9 a
        - 0400 9:9 a/x "old"
        d 0700 9:9 a/sub
        - 0400 9:9 a/sub/kept "kept"
    "#;
    check(
        SOURCE,
        target,
        ("/", "/"),
        contents(),
        expect![[r#"
        d 0711 1:2 a
        d 2755 0:0 a/sub
        - 0400 9:9 a/sub/kept "kept"
        - 4755 7:8 a/sub/z.go "z"
        - 0640 3:4 a/x "x"
        - 0600 5:6 a/y.go "y"
        l 0777 0:0 broken -> nowhere
        l 0777 0:0 link -> a
        - 0644 0:0 top "top"
    "#]],
    );
    let replace = CopyOptions { always_replace: true, ..contents() };
    let wrong = "d 0700 9:9 a\n- 0600 0:0 a/sub \"file\"\nd 0755 0:0 a/x\n- 0644 0:0 a/x/y \"\"";
    check(
        SOURCE,
        wrong,
        ("/a/sub", "/a/sub"),
        contents(),
        expect!["cannot copy to non-directory: /a/sub"],
    );
    check(SOURCE, wrong, ("/", "/"), contents(), expect!["cannot copy to non-directory: /a/sub"]);
    check(
        SOURCE,
        "d 0700 9:9 b\nd 0755 0:0 b/x",
        ("/a", "/b"),
        contents(),
        expect!["cannot replace to directory /b/x with file"],
    );
    check(
        SOURCE,
        wrong,
        ("/a", "/a"),
        replace,
        expect![[r#"
        d 0700 9:9 a
        d 2755 0:0 a/sub
        - 4755 7:8 a/sub/z.go "z"
        - 0640 3:4 a/x "x"
        - 0600 5:6 a/y.go "y"
    "#]],
    );
    check(
        SOURCE,
        "- 0644 0:0 file \"\"",
        ("/top", "/file/x"),
        plain(),
        expect!["mkdir /file: not a directory"],
    );
    let strict = CopyOptions { create_dest_path: false, ..plain() };
    check(
        SOURCE,
        "",
        ("/top", "/no/x"),
        strict,
        expect!["failed to stat /no/x: lstat /no: no such file or directory"],
    );
}

#[test]
fn special_files_and_links() {
    let source = r#"
        - 0644 0:0 one "data"
        h two = one
        p 0622 1:1 fifo
        s 0600 1:1 socket
        b 0660 1:1 block
    "#;
    if !testing::is_root() {
        return;
    }
    let case = Case::new(source, "- 0644 0:0 two \"old\"");
    case.copy("/", "/", &contents()).unwrap();
    expect![[r#"
        c 0660 1:1 block
        p 0622 1:1 fifo
        - 0644 0:0 one "data"
        - 0600 1:1 socket ""
        - 0644 0:0 two "data"
    "#]]
    .assert_eq(&testing::show(&case.target()));
    let inode = |path: &str| fs::metadata(case.target.path().join(path)).unwrap().ino();
    assert_eq!(inode("one"), inode("two"));
}

#[test]
fn content_arrives_whole() {
    let case = Case::new("", "");
    let large: Vec<u8> = (0..3_000_001u32).map(|at| (at / 7) as u8).collect();
    fs::write(case.source.path().join("large"), &large).unwrap();
    let mut sparse = fs::File::create(case.source.path().join("sparse")).unwrap();
    sparse.set_len(10 << 20).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&sparse, b"middle", 5 << 20).unwrap();
    sparse.flush().unwrap();
    for number in 0..40 {
        fs::write(case.source.path().join(format!("n{number}")), number.to_string()).unwrap();
    }
    case.copy("/", "/", &contents()).unwrap();
    let read = |path: &str| fs::read(case.target.path().join(path)).unwrap();
    assert!(read("large") == large);
    assert!(read("sparse") == fs::read(case.source.path().join("sparse")).unwrap());
    assert_eq!((read("n7"), read("n39")), (b"7".to_vec(), b"39".to_vec()));
    let blocks = fs::metadata(case.target.path().join("sparse")).unwrap().blocks();
    assert!(blocks * 512 < 1 << 20, "holes stay holes");
}

/// The tar of the next test as the xz tool packs it.
const XZ: &str = "\
    /Td6WFoAAATm1rRGAgAhARYAAAB0L+Wj4Cf/AIRdADILyMbUDKmGEX3z8uV27EYCqmbfW78M\
    8HWTfF0alw8u0WajkpxTYYW84gaxA9Ld6qpifiYbm9ZEFHxgwaf5degEMUk9Jo4fmUybgQRW\
    +Bq0kcPWppmRP5cpS2gcKneeZBwOh5H/ZCM28dNJ2eZIjh6wWHQNZatzs6vZeq0yXkE4bo5j\
    AAB//2F4+ih1yQABoAGAUAAACHTMZrHEZ/sCAAAAAARZWg==";

#[test]
fn tars_are_unpacked() {
    if !testing::is_root() {
        return;
    }
    let mut tar = tar::Builder::new(Vec::new());
    for (name, data) in [("d/file", "data"), ("d/.wh.name", "not special")] {
        let mut header = tar::Header::new_gnu();
        header.set_size(data.len() as u64);
        header.set_mode(0o640);
        header.set_uid(1);
        header.set_gid(2);
        tar.append_data(&mut header, name, data.as_bytes()).unwrap();
    }
    let tar = tar.into_inner().unwrap();
    let gzip = |data: &[u8]| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    };
    let bzip = |data: &[u8]| {
        let mut encoder = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    };
    let zstd = zstd::encode_all(&tar[..], 1).unwrap();
    let xz = BASE64_STANDARD.decode(XZ).unwrap();
    for (name, data) in
        [("tar", tar.clone()), ("gz", gzip(&tar)), ("bz2", bzip(&tar)), ("zst", zstd), ("xz", xz)]
    {
        let case = Case::new("", "");
        fs::write(case.source.path().join(name), data).unwrap();
        let options = CopyOptions { unpack: true, ..contents() };
        case.copy(&format!("/{name}"), "/out/", &options).unwrap();
        expect![[r#"
            d 0755 0:0 out
            d 0755 0:0 out/d
            - 0640 1:2 out/d/.wh.name "not special"
            - 0640 1:2 out/d/file "data"
        "#]]
        .assert_eq(&testing::show(&case.target()));
    }
    let case = Case::new("- 0644 0:0 empty \"\"\n- 0644 0:0 text \"no tar\"", "");
    fs::write(case.source.path().join("zeros"), [0; 2048]).unwrap();
    fs::write(case.source.path().join("gz"), gzip(b"no tar in here")).unwrap();
    let owner = Some(Owner { uid: 5, gid: 6 });
    let options = CopyOptions { unpack: true, owner, ..plain() };
    case.copy("/*", "/", &options).unwrap();
    assert_eq!(testing::show(&case.target()).lines().count(), 4);
    fs::write(case.source.path().join("cut"), &tar[..514]).unwrap();
    let error = case.copy("/cut", "/", &options).unwrap_err();
    assert_eq!(
        error.to_string(),
        "unpack /cut: malformed tar at offset 514: it ends in the middle of an entry"
    );
}

#[test]
fn small_actions() {
    if !testing::is_root() {
        return;
    }
    let case = Case::new(
        "",
        "d 0700 1:1 d\nl way -> /d\nl dangling -> d/new\nl out -> ../../../tmp/escaped",
    );
    let tree = case.target();
    let owner = Some(Owner { uid: 3, gid: 4 });
    let fails = |result: Result<(), FileError>| result.unwrap_err().to_string();
    mkdir(&tree, "/way/sub", 0o711, false, owner, Some(5)).unwrap();
    mkdir(&tree, "/way/sub", 0o777, false, None, None).unwrap();
    mkdir(&tree, "/d/p/q", 0o770, true, owner, Some(5_000_000_000)).unwrap();
    for path in ["d/p", "d/p/q"] {
        assert_eq!(fs::metadata(case.target.path().join(path)).unwrap().mtime(), 5, "{path}");
    }
    assert_eq!(
        fails(mkdir(&tree, "no/x", 0o755, false, None, None)),
        "mkdir /no/x: no such file or directory"
    );
    mkdir(&tree, "/", 0o755, false, None, None).unwrap();
    mkfile(&tree, "/dangling", 0o640, b"one", owner, None).unwrap();
    mkfile(&tree, "/d/new", 0o600, b"2", None, Some(7)).unwrap();
    assert_eq!(
        fails(mkfile(&tree, "/no/x", 0o600, b"", None, None)),
        "open /no/x: no such file or directory"
    );
    assert_eq!(fails(mkfile(&tree, "/d", 0o600, b"", None, None)), "open /d: is a directory");
    symlink(&tree, "anything at all", "/way/link", owner, Some(9)).unwrap();
    assert_eq!(fails(symlink(&tree, "x", "/d/new", None, None)), "symlink x /d/new: file exists");
    mkdir(&tree, "/out", 0o700, true, None, None).unwrap();
    expect![[r#"
        d 0700 1:1 d
        l 0777 3:4 d/link -> anything at all
        - 0640 3:4 d/new "2"
        d 0770 3:4 d/p
        d 0770 3:4 d/p/q
        d 0711 3:4 d/sub
        l 0777 0:0 dangling -> d/new
        l 0777 0:0 out -> ../../../tmp/escaped
        d 0700 0:0 tmp
        d 0700 0:0 tmp/escaped
        l 0777 0:0 way -> /d
    "#]]
    .assert_eq(&testing::show(&tree));

    rm(&tree, "/way/new", false, false).unwrap();
    assert_eq!(
        fails(rm(&tree, "/dangling", false, false)),
        "stat /dangling: no such file or directory"
    );
    rm(&tree, "/dangling", true, false).unwrap();
    rm(&tree, "/none/x", true, false).unwrap();
    assert_eq!(fails(rm(&tree, "/none", false, false)), "stat /none: no such file or directory");
    assert_eq!(fails(rm(&tree, "/x/..", true, false)), "rmPath: invalid empty path");
    rm(&tree, "/d/*", false, true).unwrap_err();
    rm(&tree, "/d/*", true, true).unwrap();
    rm(&tree, "/nothing*", false, true).unwrap();
    rm(&tree, "way", false, false).unwrap();
    rm(&tree, "/tmp", false, false).unwrap();
    expect![[r#"
        d 0700 1:1 d
        l 0777 0:0 out -> ../../../tmp/escaped
    "#]]
    .assert_eq(&testing::show(&tree));
}

#[test]
fn an_empty_source_has_a_root() {
    let case = Case::new("", "");
    let none = copy(None, "/x", &case.target(), "/y", &plain()).unwrap_err();
    assert_eq!(none.to_string(), "lstat /x: no such file or directory");
    copy(None, "/", &case.target(), "/y", &contents()).unwrap();
    assert_eq!(fs::read_dir(case.target.path().join("y")).unwrap().count(), 0);
}

/// `cargo test -p snapshot --release -- --ignored --nocapture copying_speed`
#[test]
#[ignore = "measures"]
fn copying_speed() {
    let case = Case::new("", "");
    for number in 0..20_000 {
        let below = case.source.path().join(format!("d{}", number / 50));
        if number % 50 == 0 {
            fs::create_dir(&below).unwrap();
        }
        fs::write(below.join(format!("f{number}")), vec![b'x'; 4000]).unwrap();
    }
    for round in 0..3 {
        let start = Instant::now();
        case.copy("/", &format!("/{round}"), &contents()).unwrap();
        println!("copy of 20,000 files of 4 kB: {:.1} ms", start.elapsed().as_secs_f64() * 1e3);
    }
}
