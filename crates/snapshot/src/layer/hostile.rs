//! Tars nobody should send: what is unpacked of them, or how they are refused.

use std::{fs, io::Read, os::unix::ffi::OsStrExt as _};

use expect_test::{Expect, expect};

use super::{Limits, tar_read::fuzz_tar, unpack, unpack_overlay, unpack_plain};
use crate::{Tree, layer::Marks, testing};

/// A tar of lines `kind name [-> link | data]`; kinds are type flags, and `x` gives an extended
/// record for the next entry.
fn tar(lines: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut extended = Vec::new();
    for line in lines.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let (kind, rest) = line.split_once(' ').unwrap();
        if kind == "x" {
            let mut length = rest.len() + 3;
            while length != rest.len() + 2 + length.to_string().len() {
                length += 1;
            }
            extended.extend(format!("{length} {rest}\n").into_bytes());
            continue;
        }
        if !extended.is_empty() {
            entry(&mut bytes, b'x', "pax", "", &std::mem::take(&mut extended));
        }
        let (name, link, data) = match rest.split_once(" -> ") {
            Some((name, link)) => (name, link, ""),
            None => {
                let (name, data) = rest.split_once(' ').unwrap_or((rest, ""));
                (name, "", data)
            }
        };
        entry(&mut bytes, kind.as_bytes()[0], name, link, data.as_bytes());
    }
    bytes.resize(bytes.len() + 1024, 0);
    bytes
}

fn entry(bytes: &mut Vec<u8>, kind: u8, name: &str, link: &str, data: &[u8]) {
    let mut header = tar::Header::new_gnu();
    header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
    header.as_mut_bytes()[157..157 + link.len()].copy_from_slice(link.as_bytes());
    header.as_mut_bytes()[156] = kind;
    header.set_mode(if kind == b'5' { 0o755 } else { 0o644 });
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(1);
    header.set_size(data.len() as u64);
    if matches!(kind, b'3' | b'4') {
        header.set_device_major(1).unwrap();
        header.set_device_minor(3).unwrap();
    }
    header.set_cksum();
    bytes.extend_from_slice(header.as_bytes());
    bytes.extend_from_slice(data);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
}

fn small() -> Limits {
    Limits {
        entries: 20,
        name_length: 200,
        total_size: 10_000,
        header_size: 4096,
        ..Limits::default()
    }
}

fn check_bytes(bytes: &[u8], expect: Expect) {
    if !testing::is_root() {
        return;
    }
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("secret"), "secret").unwrap();
    let inside = outside.path().join("root");
    fs::create_dir(&inside).unwrap();
    let marks = Marks::overlay(false);
    let text = match unpack_overlay(&inside, &mut &bytes[..], &small(), &marks) {
        Ok(_) => testing::show(&Tree::of_folder(&inside, false).unwrap()),
        Err(error) => error.to_string(),
    };
    expect.assert_eq(&text);
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 2, "something went outside");
    assert_eq!(fs::read_to_string(outside.path().join("secret")).unwrap(), "secret");
    // The other ways of unpacking get as far, inside.
    for plain in [true, false] {
        fs::remove_dir_all(&inside).unwrap();
        fs::create_dir(&inside).unwrap();
        let other = match plain {
            true => unpack_plain(&inside, &mut &bytes[..], &small()).map(drop),
            false => {
                let tree = Tree::of_folder(outside.path(), true).unwrap();
                unpack(&tree, b"root", &mut &bytes[..], &small(), None).map(drop)
            }
        };
        if let Err(error) = other {
            assert_eq!(error.to_string(), text);
        }
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 2, "something went outside");
    }
}

fn check(lines: &str, expect: Expect) {
    check_bytes(&tar(lines), expect);
}

#[test]
fn names_stay_inside() {
    check("0 ../secret owned", expect!["unpack tar entry `../secret`: it leads outside the root"]);
    check(
        "0 a/../../secret owned",
        expect!["unpack tar entry `a/../../secret`: it leads outside the root"],
    );
    check(
        "0 /abs/./x/../file data",
        expect![[r#"
        d 0755 0:0 abs
        - 0644 0:0 abs/file "data"
    "#]],
    );
    check(
        "5 ./\n0 ./file data",
        expect![[r#"
        - 0644 0:0 file "data"
    "#]],
    );
    check("0 . data", expect!["unpack tar entry `.`: the root can only be a folder"]);
    check("0 .. data", expect!["unpack tar entry `..`: it leads outside the root"]);
    check(
        "x path=../secret\n0 a data",
        expect!["unpack tar entry `../secret`: it leads outside the root"],
    );
}

#[test]
fn links_do_not_lead_out() {
    check(
        "2 out -> ../\n0 out/new data",
        expect![[r#"
        - 0644 0:0 new "data"
        l 0777 0:0 out -> ../
    "#]],
    );
    check(
        "2 out -> /etc\n0 out/new data",
        expect![[r#"
        d 0755 0:0 etc
        - 0644 0:0 etc/new "data"
        l 0777 0:0 out -> /etc
    "#]],
    );
    check(
        "2 secret -> ../secret\n0 secret data",
        expect![[r#"
        - 0644 0:0 secret "data"
    "#]],
    );
    check(
        "2 up -> ../..\n1 mine -> up/secret",
        expect![
            "unpack tar entry `mine`: link to `up/secret`: No such file or directory (os error 2)"
        ],
    );
    check(
        "1 mine -> ../secret",
        expect!["unpack tar entry `mine`: its link target leads outside the root"],
    );
    check(
        "2 loop -> loop\n0 loop/x data",
        expect![
            "unpack tar entry `loop/x`: make the folder it is in: Too many levels of symbolic links (os error 40)"
        ],
    );
    check(
        "0 a data\n1 a -> a",
        expect![[r#"
        - 0644 0:0 a "data"
    "#]],
    );
    check(
        "5 d\n1 e -> d",
        expect!["unpack tar entry `e`: link to `d`: Operation not permitted (os error 1)"],
    );
    // A link to a device is made, and nothing is ever written through it.
    check(
        "3 null\n1 also -> null\n0 null data",
        expect![[r#"
        c 0644 0:0 also
        - 0644 0:0 null "data"
    "#]],
    );
    check(
        "2 d -> e\n5 e\n5 d\n0 d/f data",
        expect![[r#"
        d 0755 0:0 d
        - 0644 0:0 d/f "data"
        d 0755 0:0 e
    "#]],
    );
}

#[test]
fn odd_entries() {
    check("9 a", expect!["unpack tar entry `a`: entries of type `9` are not supported"]);
    check("2 a", expect!["unpack tar entry `a`: a symlink to nothing"]);
    check(
        "0 f data\n0 f/below data",
        expect![
            "unpack tar entry `f/below`: make the folder it is in: Not a directory (os error 20)"
        ],
    );
    check(
        "0 d/x data\n0 d file",
        expect![[r#"
        - 0644 0:0 d "file"
    "#]],
    );
    check(
        "x SCHILY.xattr.trusted.overlay.redirect=/etc\nx SCHILY.xattr.user.fine=1\n5 d",
        expect![[r#"
        d 0755 0:0 d
    "#]],
    );
    check(
        "x SCHILY.xattr.nonsense=1\n5 d",
        expect![[r#"
        d 0755 0:0 d
    "#]],
    );
    check(
        "g global\n0 a data",
        expect![[r#"
        - 0644 0:0 a "data"
    "#]],
    );
    check("0 .wh.", expect!["unpack tar entry `.wh.`: it removes no proper name"]);
    check("0 .wh...", expect!["unpack tar entry `.wh...`: it removes no proper name"]);
}

#[test]
fn bounds_hold() {
    let many: String = (0..21).map(|number| format!("0 f{number}\n")).collect();
    check(&many, expect!["tar entry `f20` exceeds the limit: at most 20 entries"]);
    check(
        &format!("0 big {}\n", "x".repeat(10_001)),
        expect!["tar entry `big` exceeds the limit: at most 10000 bytes of content"],
    );
    let long = "n".repeat(201);
    check(
        &format!("x path={long}\n0 a data"),
        expect![
            "tar entry `nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn` exceeds the limit: names of at most 200 bytes"
        ],
    );
    check(
        &format!("x comment={}\n0 a data", "c".repeat(5000)),
        expect![
            "tar entry `extended header at offset 512` exceeds the limit: 5014 bytes of at most 4096"
        ],
    );
    let headers = "x comment=1\n0 a\n".repeat(20) + "x comment=1\n0 b";
    check(&headers, expect!["tar entry `b` exceeds the limit: at most 20 entries"]);
    // A file of a petabyte that is all hole.
    let mut bytes = tar(
        "x GNU.sparse.major=1\nx GNU.sparse.minor=0\nx GNU.sparse.realsize=1000000000000000\n0 hole 0",
    );
    check_bytes(&bytes, expect!["unpack tar entry `hole`: its sparse map is broken"]);
    bytes = tar("x GNU.sparse.size=1000000000000000\nx GNU.sparse.map=0,4\n0 hole data");
    check_bytes(
        &bytes,
        expect!["tar entry `hole` exceeds the limit: at most 10000 bytes of content"],
    );
    // An endless tail.
    let mut endless = bytes_then_zeros(tar("0 a data"));
    let folder = tempfile::tempdir().unwrap();
    let error = unpack_plain(folder.path(), &mut endless, &small()).err().unwrap();
    assert!(error.to_string().ends_with("too much data after its end"), "{error}");
}

fn bytes_then_zeros(bytes: Vec<u8>) -> impl Read {
    std::io::Cursor::new(bytes).chain(std::io::repeat(0))
}

#[test]
fn broken_bytes_are_told() {
    check_bytes(b"", expect![""]);
    check_bytes(&[0; 1024], expect![""]);
    check_bytes(b"short", expect!["malformed tar at offset 5: it ends in the middle of a header"]);
    check_bytes(&[b'x'; 1024], expect!["malformed tar at offset 512: a number that is not octal"]);
    let good = tar("x path=some/name\n5 d\n0 d/f data\n2 l -> d");
    let mut wrong = good.clone();
    wrong[3] ^= 1;
    check_bytes(&wrong, expect!["malformed tar at offset 512: a header whose checksum is wrong"]);
    check_bytes(
        &good[..1030],
        expect!["malformed tar at offset 1030: it ends in the middle of a header"],
    );
    let mut negative = tar("0 a data");
    negative[124] = 0xff;
    negative[125..136].fill(0xff);
    let sum: u32 =
        (0..512).map(|at| if (148..156).contains(&at) { 32 } else { negative[at].into() }).sum();
    negative[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    check_bytes(&negative, expect!["malformed tar at offset 512: an entry of negative size"]);
    // Every cut and every flipped byte is refused or unpacked, but never more than that.
    let sparse = tar("x GNU.sparse.size=100\nx GNU.sparse.map=10,4\n0 hole data\nL long name\n0 x");
    for bytes in [good, sparse] {
        for cut in 0..bytes.len() {
            fuzz_tar(&bytes[..cut]);
        }
        for at in 0..bytes.len() {
            let mut bytes = bytes.clone();
            bytes[at] = bytes[at].wrapping_add(0x81);
            let block = at / 512 * 512;
            let sum: u32 = (0..512)
                .map(|at| if (148..156).contains(&at) { 32 } else { bytes[block + at].into() })
                .sum();
            bytes[block + 148..block + 156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
            fuzz_tar(&bytes);
        }
    }
}

#[test]
fn other_dialects_are_read() {
    let unpacked = |bytes: &[u8]| {
        let folder = tempfile::tempdir().unwrap();
        unpack_plain(folder.path(), &mut &bytes[..], &Limits::default()).unwrap();
        let mut found = Vec::new();
        for entry in fs::read_dir(folder.path()).unwrap() {
            let entry = entry.unwrap();
            let name = String::from_utf8_lossy(entry.file_name().as_bytes()).into_owned();
            found.push((name, fs::read(entry.path()).unwrap_or_default()));
        }
        found.sort();
        found
    };
    let hole = |at: usize, data: &[u8], size: usize| {
        let mut bytes = vec![0; size];
        bytes[at..at + data.len()].copy_from_slice(data);
        bytes
    };
    let bytes =
        tar("x GNU.sparse.size=100\nx GNU.sparse.map=10,4\nx GNU.sparse.name=real\n0 hole data");
    assert_eq!(unpacked(&bytes), [("real".into(), hole(10, b"data", 100))]);
    let bytes =
        tar("x GNU.sparse.offset=10\nx GNU.sparse.numbytes=4\nx GNU.sparse.size=20\n0 hole data");
    assert_eq!(unpacked(&bytes), [("hole".into(), hole(10, b"data", 20))]);
    // Version 1.0 keeps the map before the data.
    let mut map = b"1\n10\n4\n".to_vec();
    map.resize(512, 0);
    map.extend_from_slice(b"data");
    let mut bytes =
        tar("x GNU.sparse.major=1\nx GNU.sparse.minor=0\nx GNU.sparse.realsize=100\n0 hole");
    bytes.truncate(1024);
    entry(&mut bytes, b'0', "hole", "", &map);
    assert_eq!(unpacked(&bytes), [("hole".into(), hole(10, b"data", 100))]);
    // The old GNU form keeps it in the header.
    let mut bytes = Vec::new();
    entry(&mut bytes, b'S', "hole", "", b"data");
    bytes[386..398].copy_from_slice(b"00000000012\0");
    bytes[398..410].copy_from_slice(b"00000000004\0");
    bytes[483..495].copy_from_slice(b"00000000144\0");
    let sum: u32 =
        (0..512).map(|at| if (148..156).contains(&at) { 32 } else { bytes[at].into() }).sum();
    bytes[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    assert_eq!(unpacked(&bytes), [("hole".into(), hole(10, b"data", 100))]);
    // Long names, the GNU way; V7 folders.
    let name = "n".repeat(150);
    let mut bytes = Vec::new();
    entry(&mut bytes, b'L', "././@LongLink", "", format!("{name}\0").as_bytes());
    entry(&mut bytes, b'0', "cut", "", b"data");
    entry(&mut bytes, 0, "folder/", "", b"");
    assert_eq!(unpacked(&bytes), [("folder".into(), Vec::new()), (name, b"data".to_vec())]);
}
