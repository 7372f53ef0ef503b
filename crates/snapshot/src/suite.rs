//! What every snapshot driver must do. A driver's test is one call of [`suite`].

use std::{
    fs, io,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink},
    path::Path,
    time::Instant,
};

use crate::{
    LayerId, Limits, SnapshotError, Snapshotter, Tree, native::Native, overlay::Overlay, testing,
};

fn id(name: &str) -> LayerId {
    LayerId::new(name).unwrap()
}

/// Makes a layer, lets `fill` write to it, and freezes it.
fn layer(
    driver: &dyn Snapshotter,
    name: &str,
    lowers: &[LayerId],
    fill: impl FnOnce(&Path),
) -> LayerId {
    let layer = id(name);
    driver.create(&layer, lowers).unwrap();
    let tree = driver.mount(lowers, Some(&layer)).unwrap();
    assert!(tree.writable());
    fill(&tree.path());
    drop(tree);
    driver.freeze(&layer).unwrap();
    layer
}

fn names(tree: &Tree, path: &str) -> String {
    let mut names: Vec<_> = fs::read_dir(tree.path().join(path))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names.join(" ")
}

fn read(tree: &Tree, path: &str) -> String {
    fs::read_to_string(tree.path().join(path)).unwrap()
}

/// Runs everything against drivers opened by `make` on fresh folders.
fn suite(make: &dyn Fn(&Path) -> Box<dyn Snapshotter>) {
    if !testing::is_root() {
        return;
    }
    for case in [
        empty_trees,
        layers_stack,
        removals_stay_in_their_layer,
        roots_follow_the_parent,
        merges_and_diffs,
        merges_take_changes_only,
        names_are_unique_and_lists_are_whole,
        a_crash_leaves_no_layer,
        usage_counts_blocks_once,
        deep_trees_are_removed,
        tars_apply,
        clones_of_mounts,
    ] {
        let folder = tempfile::tempdir().unwrap();
        case(make, folder.path());
    }
}

type Make<'a> = &'a dyn Fn(&Path) -> Box<dyn Snapshotter>;

fn empty_trees(make: Make, root: &Path) {
    let driver = make(root);
    let tree = driver.mount(&[], None).unwrap();
    assert_eq!(names(&tree, ""), "");
    assert_eq!(
        fs::write(tree.path().join("x"), "").unwrap_err().kind(),
        io::ErrorKind::ReadOnlyFilesystem
    );
    let one = layer(&*driver, "one", &[], |_| {});
    let tree = driver.mount(std::slice::from_ref(&one), None).unwrap();
    assert_eq!(names(&tree, ""), "");
    assert!(!tree.writable());
    assert!(fs::write(tree.path().join("x"), "").is_err());
    let missing = driver.mount(&[id("nothing")], None).unwrap_err();
    assert!(matches!(&missing, SnapshotError::Missing(layer) if layer.as_str() == "nothing"));
    assert!(matches!(driver.create(&id("two"), &[id("no")]), Err(SnapshotError::Missing(_))));
}

fn layers_stack(make: Make, root: &Path) {
    let driver = make(root);
    let one = layer(&*driver, "one", &[], |root| {
        fs::create_dir(root.join("d")).unwrap();
        fs::write(root.join("d/a"), "one").unwrap();
        fs::write(root.join("b"), "b").unwrap();
    });
    let two = layer(&*driver, "two", std::slice::from_ref(&one), |root| {
        fs::write(root.join("d/a"), "two").unwrap();
        fs::write(root.join("d/c"), "c").unwrap();
    });
    let tree = driver.mount(&[one.clone(), two.clone()], None).unwrap();
    assert_eq!((names(&tree, "d"), read(&tree, "d/a")), ("a c".into(), "two".into()));
    let below = driver.mount(&[one], None).unwrap();
    assert_eq!((names(&below, "d"), read(&below, "d/a")), ("a".into(), "one".into()));
    assert_eq!(read(&below, "b"), "b");
    assert!(driver.layer_path(&two).join("d/c").exists());
    let wrong = driver.mount(&[], Some(&two)).unwrap_err();
    assert!(matches!(wrong, SnapshotError::OtherLowers { .. }));
}

/// More layers than an option string could name.
fn many_layers(make: Make, root: &Path) {
    let driver = make(root);
    let mut all = Vec::new();
    for number in 0..160 {
        let next = layer(&*driver, &format!("a-rather-long-name-{number}"), &all, |root| {
            fs::write(root.join("count"), number.to_string()).unwrap();
        });
        all.push(next);
    }
    let tree = driver.mount(&all, None).unwrap();
    assert_eq!(read(&tree, "count"), "159");
}

fn removals_stay_in_their_layer(make: Make, root: &Path) {
    let driver = make(root);
    let one = layer(&*driver, "one", &[], |root| {
        fs::create_dir_all(root.join("d/sub")).unwrap();
        fs::write(root.join("d/sub/old"), "").unwrap();
        fs::write(root.join("gone"), "").unwrap();
    });
    let two = layer(&*driver, "two", std::slice::from_ref(&one), |root| {
        fs::remove_file(root.join("gone")).unwrap();
        fs::remove_dir_all(root.join("d")).unwrap();
        fs::create_dir(root.join("d")).unwrap();
        fs::write(root.join("d/new"), "").unwrap();
    });
    let tree = driver.mount(&[one.clone(), two.clone()], None).unwrap();
    assert_eq!((names(&tree, ""), names(&tree, "d")), ("d".into(), "new".into()));
    let lowers = [one, two];
    let three = layer(&*driver, "three", &lowers, |root| {
        assert!(!root.join("gone").exists());
        fs::write(root.join("gone"), "back").unwrap();
    });
    let tree = driver.mount(&[&lowers[..], &[three]].concat(), None).unwrap();
    assert_eq!((names(&tree, ""), names(&tree, "d")), ("d gone".into(), "new".into()));
}

fn roots_follow_the_parent(make: Make, root: &Path) {
    let driver = make(root);
    let one = layer(&*driver, "one", &[], |root| {
        assert_eq!(fs::metadata(root).unwrap().mode() & 0o7777, 0o755);
        std::os::unix::fs::chown(root, Some(7), Some(8)).unwrap();
    });
    layer(&*driver, "two", &[one], |root| {
        let meta = fs::metadata(root).unwrap();
        assert_eq!((meta.uid(), meta.gid(), meta.mode() & 0o7777), (7, 8, 0o755));
    });
}

fn merges_and_diffs(make: Make, root: &Path) {
    let driver = make(root);
    let base = layer(&*driver, "base", &[], |root| {
        fs::create_dir(root.join("d")).unwrap();
        fs::write(root.join("d/base"), "base").unwrap();
        fs::write(root.join("gone"), "").unwrap();
        fs::write(root.join("kept"), "kept").unwrap();
    });
    let left = layer(&*driver, "left", std::slice::from_ref(&base), |root| {
        fs::write(root.join("d/left"), "left").unwrap();
        fs::remove_file(root.join("gone")).unwrap();
    });
    let right = layer(&*driver, "right", std::slice::from_ref(&base), |root| {
        fs::write(root.join("d/right"), "right").unwrap();
        fs::write(root.join("d/base"), "changed").unwrap();
        fs::hard_link(root.join("d/right"), root.join("link")).unwrap();
    });
    let list = [base.clone(), left.clone(), right.clone()];
    let merged = driver.mount(&list, None).unwrap();
    assert_eq!(names(&merged, ""), "d kept link");
    assert_eq!(
        (names(&merged, "d"), read(&merged, "d/base")),
        ("base left right".into(), "changed".into())
    );
    // Writing on top of a merge.
    let top = layer(&*driver, "top", &list, |root| {
        fs::write(root.join("d/left"), "top").unwrap();
    });
    let tree = driver.mount(&[&list[..], &[top]].concat(), None).unwrap();
    assert_eq!((read(&tree, "d/left"), read(&tree, "d/right")), ("top".into(), "right".into()));

    // A single layer by itself shows what it changed, and no whiteouts.
    let right_tree = [base.clone(), right.clone()];
    driver.diff_layer(&id("diff"), std::slice::from_ref(&base), &right_tree).unwrap();
    let diff = driver.mount(&[id("diff")], None).unwrap();
    assert_eq!((names(&diff, ""), names(&diff, "d")), ("d link".into(), "base right".into()));
    assert_eq!(fs::metadata(diff.path().join("link")).unwrap().nlink(), 2);
    // What one removed is removed from whatever it is put on.
    let left_tree = [base.clone(), left];
    driver.diff_layer(&id("undo"), &right_tree, &left_tree).unwrap();
    let undo = driver.mount(&[id("undo")], None).unwrap();
    assert_eq!((names(&undo, ""), names(&undo, "d")), ("d".into(), "base left".into()));
    let undone = driver.mount(&[base, right, id("undo")], None).unwrap();
    let left = driver.mount(&left_tree, None).unwrap();
    assert_eq!(testing::show(&undone), testing::show(&left));
}

fn merges_take_changes_only(make: Make, root: &Path) {
    let driver = make(root);
    let base = layer(&*driver, "base", &[], |root| {
        fs::create_dir(root.join("d")).unwrap();
        fs::write(root.join("d/x"), "base").unwrap();
        fs::write(root.join("d/y"), "base").unwrap();
        fs::write(root.join("touched"), "base").unwrap();
    });
    let left = layer(&*driver, "left", std::slice::from_ref(&base), |root| {
        fs::write(root.join("d/left"), "left").unwrap();
        fs::write(root.join("touched"), "left").unwrap();
    });
    let right = layer(&*driver, "right", std::slice::from_ref(&base), |root| {
        // Made anew: what base had is gone, but what left added is not known here.
        fs::remove_dir_all(root.join("d")).unwrap();
        fs::create_dir(root.join("d")).unwrap();
        fs::write(root.join("d/right"), "right").unwrap();
        // Opened for writing and left as it was.
        let file = fs::OpenOptions::new().append(true).open(root.join("touched")).unwrap();
        drop(file);
    });
    let list = [base, left, right];
    let merged = driver.mount(&list, None).unwrap();
    assert_eq!(names(&merged, "d"), "left right");
    assert_eq!(read(&merged, "touched"), "left");
    let alone = driver.mount(&list[2..], None).unwrap();
    assert_eq!((names(&alone, ""), names(&alone, "d")), ("d".into(), "right".into()));
    // On its own base nothing is different.
    let own = driver.mount(&[list[0].clone(), list[2].clone()], None).unwrap();
    assert_eq!((names(&own, "d"), read(&own, "touched")), ("right".into(), "base".into()));
}

fn names_are_unique_and_lists_are_whole(make: Make, root: &Path) {
    let driver = make(root);
    assert_eq!(driver.list().unwrap(), []);
    driver.create(&id("b"), &[]).unwrap();
    driver.create(&id("a"), &[]).unwrap();
    assert!(matches!(driver.create(&id("a"), &[]), Err(SnapshotError::Exists(_))));
    assert_eq!(driver.list().unwrap(), [id("a"), id("b")]);
    driver.remove(&id("a")).unwrap();
    driver.remove(&id("a")).unwrap();
    assert_eq!(driver.list().unwrap(), [id("b")]);
    driver.create(&id("a"), &[]).unwrap();
    drop(driver);
    assert_eq!(make(root).list().unwrap(), [id("a"), id("b")]);
}

fn a_crash_leaves_no_layer(make: Make, root: &Path) {
    let driver = make(root);
    driver.create(&id("whole"), &[]).unwrap();
    let extracted =
        driver.extract(&id("half"), &[], &mut &[0u8; 1024][..], &Limits::default()).unwrap();
    assert_eq!(driver.list().unwrap(), [id("whole")]);
    // As after a kill: nothing of it is dropped properly.
    std::mem::forget(extracted);
    std::mem::forget(driver);
    let driver = make(root);
    assert_eq!(driver.list().unwrap(), [id("whole")]);
    driver.wait_removed();
    assert_eq!(fs::read_dir(root.join(".new")).unwrap().count(), 0);
    assert_eq!(fs::read_dir(root.join(".trash")).unwrap().count(), 0);
}

fn usage_counts_blocks_once(make: Make, root: &Path) {
    let driver = make(root);
    let empty = layer(&*driver, "empty", &[], |_| {});
    let none = driver.usage(&empty).unwrap();
    let full = layer(&*driver, "full", &[], |root| {
        fs::write(root.join("a"), vec![1; 1 << 20]).unwrap();
        fs::hard_link(root.join("a"), root.join("b")).unwrap();
    });
    let some = driver.usage(&full).unwrap();
    assert_eq!(some.inodes, none.inodes + 1);
    let added = some.bytes - none.bytes;
    assert!((1 << 20..(1 << 20) + 8192).contains(&added), "{added}");
    assert!(matches!(driver.usage(&id("no")), Err(SnapshotError::Missing(_))));
}

fn deep_trees_are_removed(make: Make, root: &Path) {
    let driver = make(root);
    let deep = layer(&*driver, "deep", &[], |root| {
        let mut at = fs::File::open(root).unwrap();
        for _ in 0..3000 {
            rustix::fs::mkdirat(&at, c"folder", 0o755.into()).unwrap();
            rustix::fs::mknodat(&at, c"file", rustix::fs::FileType::RegularFile, 0o644.into(), 0)
                .unwrap();
            at = crate::sys::open_dir(&at, b"folder").unwrap().into();
        }
    });
    // Too deep for anything that recurses, and said so instead of overflowing.
    let failure = driver.write_layer(&[], &deep, &mut io::sink()).unwrap_err();
    assert!(failure.to_string().ends_with("nested too deeply"), "{failure}");
    assert!(matches!(driver.usage(&deep), Err(SnapshotError::TooDeep { .. })));
    driver.remove(&deep).unwrap();
    driver.wait_removed();
    assert_eq!(fs::read_dir(root.join(".trash")).unwrap().count(), 0);
}

fn tars_apply(make: Make, root: &Path) {
    let driver = make(root);
    let base = layer(&*driver, "base", &[], |root| {
        fs::create_dir_all(root.join("usr/bin")).unwrap();
        fs::set_permissions(root.join("usr"), fs::Permissions::from_mode(0o711)).unwrap();
        std::os::unix::fs::chown(root.join("usr"), Some(3), Some(4)).unwrap();
        fs::write(root.join("usr/bin/old"), "").unwrap();
        fs::create_dir(root.join("o")).unwrap();
        fs::write(root.join("o/below"), "").unwrap();
        fs::create_dir(root.join("r")).unwrap();
        fs::write(root.join("r/below"), "").unwrap();
    });
    let mut tar = tar::Builder::new(Vec::new());
    let mut add = |name: &str, kind: tar::EntryType, data: &str| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(0o750);
        header.set_uid(1);
        header.set_gid(2);
        header.set_size(data.len() as u64);
        tar.append_data(&mut header, name, data.as_bytes()).unwrap();
    };
    // No entries for `usr` and `usr/bin`: they stay as they are below.
    add("usr/bin/new", tar::EntryType::Regular, "new");
    add("usr/bin/.wh.old", tar::EntryType::Regular, "");
    add("o/mine", tar::EntryType::Regular, "");
    add("o/.wh..wh..opq", tar::EntryType::Regular, "");
    // Removed and made again: what lies below must not shine in.
    add(".wh.r", tar::EntryType::Regular, "");
    add("r/", tar::EntryType::Directory, "");
    add("fresh/deep/file", tar::EntryType::Regular, "");
    let tar = tar.into_inner().unwrap();
    let next = id("next");
    let lowers = [base];
    driver.apply_layer(&next, &lowers, &mut &tar[..], &Limits::default()).unwrap();
    let tree = driver.mount(&[lowers[0].clone(), next], None).unwrap();
    expect_test::expect![[r#"
        d 0755 0:0 fresh
        d 0755 0:0 fresh/deep
        - 0750 1:2 fresh/deep/file ""
        d 0755 0:0 o
        - 0750 1:2 o/mine ""
        d 0750 1:2 r
        d 0711 3:4 usr
        d 0755 0:0 usr/bin
        - 0750 1:2 usr/bin/new "new"
    "#]]
    .assert_eq(&testing::show(&tree));

    // A tar that empties the root.
    let mut tar = tar::Builder::new(Vec::new());
    for name in ["o/only", ".wh..wh..opq"] {
        let mut header = tar::Header::new_gnu();
        header.set_size(0);
        tar.append_data(&mut header, name, &b""[..]).unwrap();
    }
    let tar = tar.into_inner().unwrap();
    driver.apply_layer(&id("wiped"), &lowers, &mut &tar[..], &Limits::default()).unwrap();
    let tree = driver.mount(&[lowers[0].clone(), id("wiped")], None).unwrap();
    assert_eq!((names(&tree, ""), names(&tree, "o")), ("o".into(), "only".into()));
}

fn clones_of_mounts(make: Make, root: &Path) {
    let driver = make(root);
    driver.create(&id("one"), &[]).unwrap();
    let tree = driver.mount(&[], Some(&id("one"))).unwrap();
    symlink("x", tree.path().join("link")).unwrap();
    let copy = tree.clone_mount(true).unwrap();
    let path = crate::sys::fd_path(&copy);
    assert_eq!(fs::read_link(path.join("link")).unwrap(), Path::new("x"));
    assert!(fs::write(path.join("file"), "").is_err());
    fs::write(tree.path().join("file"), "").unwrap();
    assert!(path.join("file").exists());
}

#[test]
fn overlay() {
    suite(&|root| Box::new(Overlay::open(root).unwrap()));
    if testing::is_root() {
        let folder = tempfile::tempdir().unwrap();
        many_layers(&|root| Box::new(Overlay::open(root).unwrap()), folder.path());
    }
}

#[test]
fn overlay_on_old_kernels() {
    suite(&|root| Box::new(Overlay::open(root).unwrap().without_appending()));
}

#[test]
fn native() {
    suite(&|root| Box::new(Native::open(root).unwrap()));
}

/// `cargo test -p snapshot --release -- --ignored --nocapture speed`
#[test]
#[ignore = "measures"]
fn speed() {
    let folder = tempfile::tempdir().unwrap();
    let driver = Overlay::open(folder.path()).unwrap();
    let mut lowers = Vec::new();
    for number in 0..10 {
        lowers.push(layer(&driver, &format!("l{number}"), &lowers, |root| {
            fs::write(root.join(format!("f{number}")), "x").unwrap();
        }));
    }
    let rounds = 200;
    let mut times = [0.0; 6];
    for round in 0..rounds {
        let name = id(&format!("r{round}"));
        let mut lap = Instant::now();
        let mut next = |at: usize| {
            times[at] += lap.elapsed().as_secs_f64() * 1e3 / f64::from(rounds);
            lap = Instant::now();
        };
        driver.create(&name, &lowers).unwrap();
        next(0);
        let tree = driver.mount(&lowers, Some(&name)).unwrap();
        next(1);
        fs::write(tree.path().join("file"), "x").unwrap();
        next(2);
        drop(tree);
        next(3);
        driver.freeze(&name).unwrap();
        next(4);
        driver.remove(&name).unwrap();
        next(5);
    }
    let [create, mount, write, drop, freeze, remove] = times;
    println!(
        "ms: create {create:.3} mount {mount:.3} write {write:.3} drop {drop:.3} freeze {freeze:.3} remove {remove:.3}"
    );
}
