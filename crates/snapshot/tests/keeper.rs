//! Trees as kernels need them that cannot clone detached mounts, on whatever kernel runs this.
//! In a binary of its own, since it is decided once for a process.

use std::{fs, os::fd::AsFd as _, path::Path};

use snapshot::{Choice, LayerId, keeper};

/// Mounts of the thread that keeps them.
fn kept() -> usize {
    let tasks = fs::read_dir("/proc/self/task").unwrap().flatten();
    let keeper = tasks.map(|task| task.path()).find(|task| {
        fs::read_to_string(task.join("comm")).is_ok_and(|name| name.trim() == "mounts")
    });
    let keeper = keeper.expect("the thread that keeps mounts runs");
    // One of them is its root.
    fs::read_to_string(keeper.join("mountinfo")).unwrap().lines().count() - 1
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap().flatten();
    let mut names: Vec<_> =
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[test]
fn kept_trees_are_cloned_any_number_of_times() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: needs root");
        return;
    }
    keeper::force();
    let folder = tempfile::tempdir().unwrap();
    let driver = snapshot::open(&folder.path().join("s"), Choice::Auto).unwrap();
    let (base, top) = (LayerId::random(), LayerId::random());
    driver.create(&base, &[]).unwrap();
    let tree = driver.mount(&[], Some(&base)).unwrap();
    fs::create_dir(tree.path().join("folder")).unwrap();
    fs::write(tree.path().join("folder/below"), "text").unwrap();
    drop(tree);
    driver.freeze(&base).unwrap();
    driver.create(&top, std::slice::from_ref(&base)).unwrap();
    let tree = driver.mount(std::slice::from_ref(&base), Some(&top)).unwrap();
    assert_eq!(kept(), 1);
    let clones: Vec<_> = (0..3).map(|_| tree.clone_mount(false).unwrap()).collect();
    for (number, clone) in clones.iter().enumerate() {
        let path = format!("/proc/self/fd/{}/{number}", std::os::fd::AsRawFd::as_raw_fd(clone));
        fs::write(path, "").unwrap();
    }
    assert_eq!(names(&tree.path()), ["0", "1", "2", "folder"]);
    let again = tree.clone();
    drop(tree);
    // A part of it; the last holder is still there.
    let part = fs::File::open(again.path().join("folder")).unwrap();
    let part = keeper::clone_tree(part.as_fd(), true).unwrap();
    let part = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&part));
    assert_eq!(names(Path::new(&part)), ["below"]);
    assert_eq!(kept(), 1);
    drop((again, clones));
    assert_eq!(kept(), 0);
}
