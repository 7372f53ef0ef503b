//! The golden layer tars, both ways, written and read back by both drivers.

use std::{fs, os::unix::fs::symlink, path::Path};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde_json::Value;

use crate::{LayerId, Limits, Snapshotter, native::Native, overlay::Overlay, testing};

fn id(name: &str) -> LayerId {
    LayerId::new(name).unwrap()
}

/// What the vectors describe in words.
fn steps(name: &str, root: &Path) {
    let at = |path: &str| root.join(path);
    let remove = |path: &str| fs::remove_file(at(path)).unwrap();
    let remove_tree = |path: &str| fs::remove_dir_all(at(path)).unwrap();
    match name {
        "05-delete" => {
            remove("a/1");
            remove_tree("b");
            remove("top");
        }
        "06-modify" => {
            fs::write(at("d/content"), "new!").unwrap();
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
            fs::set_permissions(at("d/mode"), mode).unwrap();
            std::os::unix::fs::lchown(at("d/owner"), Some(5), Some(6)).unwrap();
            fs::write(at("d/touchsame"), "s").unwrap();
            remove("sl");
            symlink("e", at("sl")).unwrap();
        }
        "07-opaque" => remove_tree("o"),
        "08-type-change" => {
            remove_tree("d2f");
            remove_tree("d2l");
            remove("f2d");
        }
        "10-link-to-lower" => {
            fs::hard_link(at("d/orig"), at("new")).unwrap();
            fs::hard_link(at("d/orig"), at("a-first")).unwrap();
        }
        _ => {}
    }
}

fn check(driver: &dyn Snapshotter, name: &str, vector: &Value, fast: bool) {
    let has_lower = !vector["lower"].as_array().unwrap().is_empty();
    let (lower, upper) = (id(&format!("{name}-lower")), id(&format!("{name}-upper")));
    let mut lowers = Vec::new();
    if has_lower {
        driver.create(&lower, &[]).unwrap();
        testing::make(&driver.mount(&[], Some(&lower)).unwrap().path(), &vector["lower"]);
        driver.freeze(&lower).unwrap();
        lowers.push(lower);
    }
    driver.create(&upper, &lowers).unwrap();
    let tree = driver.mount(&lowers, Some(&upper)).unwrap();
    steps(name, &tree.path());
    testing::make(&tree.path(), &vector["upper"]);
    let folder = tree.path().join("e");
    if name == "06-modify" {
        assert!(folder.exists());
    }
    drop(tree);
    driver.freeze(&upper).unwrap();

    let text = |key: &str| vector[key].as_str().map(str::to_owned);
    let double = text("double_walk_tar_digest").or(text("tar_digest")).unwrap();
    let mut tar = Vec::new();
    let info = driver.write_layer(&lowers, &upper, &mut tar).unwrap();
    assert_eq!(info.diff_id, base::Digest::of(&tar));
    assert_eq!(info.size, tar.len() as u64);
    if fast {
        let expected = BASE64_STANDARD.decode(text("tar_base64").unwrap()).unwrap();
        assert_eq!(String::from_utf8_lossy(&tar), String::from_utf8_lossy(&expected), "{name}");
        assert!(tar == expected, "{name}");
        assert_eq!(info.diff_id.to_string(), text("tar_digest").unwrap(), "{name}");
        let count = vector["tar_headers"].as_array().unwrap().len() as u64;
        assert_eq!(info.entries, count, "{name}");
    } else {
        assert_eq!(info.diff_id.to_string(), double, "{name}");
    }
    let all = [&lowers[..], std::slice::from_ref(&upper)].concat();
    let walked = driver.write_diff(&lowers, &all, &mut Vec::new()).unwrap();
    assert_eq!(walked.diff_id.to_string(), double, "{name}");

    // Read back, it is the same tree again.
    let again = id(&format!("{name}-again"));
    let applied = driver.apply_layer(&again, &lowers, &mut &tar[..], &Limits::default()).unwrap();
    assert_eq!((applied.diff_id, applied.size), (info.diff_id, info.size), "{name}");
    if name == "03-special" {
        // Sockets do not travel.
        fs::remove_file(driver.layer_path(&upper).join("sock")).unwrap();
    }
    let same = [&lowers[..], std::slice::from_ref(&again)].concat();
    let expected = testing::show(&driver.mount(&all, None).unwrap());
    assert_eq!(testing::show(&driver.mount(&same, None).unwrap()), expected, "{name}");
    let mut rewritten = Vec::new();
    driver.write_layer(&lowers, &again, &mut rewritten).unwrap();
    assert_eq!(String::from_utf8_lossy(&rewritten), String::from_utf8_lossy(&tar), "{name}");
}

#[test]
fn golden_layers_by_overlay() {
    if !testing::is_root() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let driver = Overlay::open(folder.path()).unwrap();
    for (name, vector) in testing::golden("layers") {
        check(&driver, &name, &vector, true);
    }
}

#[test]
fn golden_layers_by_double_walk() {
    if !testing::is_root() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let driver = Native::open(folder.path()).unwrap();
    for (name, vector) in testing::golden("layers") {
        check(&driver, &name, &vector, false);
    }
}
