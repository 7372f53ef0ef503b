//! Usage, prune, policies, the ceiling, a full disk.

use std::sync::Mutex;

use store::{BlobOptions, Filter, NewRecord, PruneOptions, Pruned, RecordKind, StoreError};

use crate::*;

/// Prunes and returns the descriptions of what went.
async fn prune(store: &Arc<Store>, options: PruneOptions) -> (Vec<String>, Pruned) {
    let gone = Arc::new(Mutex::new(Vec::new()));
    let names = gone.clone();
    let pruned = store.prune(options, move |usage| names.lock().unwrap().push(usage.description));
    let pruned = pruned.await.unwrap();
    let gone = gone.lock().unwrap().clone();
    (gone, pruned)
}

fn filters(texts: &[&str]) -> Vec<Filter> {
    Filter::parse_all(texts).unwrap()
}

#[tokio::test]
async fn children_go_before_parents_and_held_records_stay() {
    let folder = folder();
    let store = open(folder.path());
    let base = with_file(&store, None, "base", "1").await;
    drop(with_file(&store, Some(&base), "top", "2").await);
    let held = with_file(&store, Some(&base), "held", "3").await;
    drop(base);
    let (gone, _) = prune(&store, PruneOptions::default()).await;
    assert_eq!(gone, ["top"]);
    drop(held);
    let (gone, pruned) = prune(&store, PruneOptions::default()).await;
    assert_eq!(gone, ["held", "base"]);
    assert!(pruned.bytes > 0);
    assert!(store.snapshotter().list().unwrap().is_empty());
}

#[tokio::test]
async fn filters_select() {
    let folder = folder();
    let store = open(folder.path());
    let one = with_file(&store, None, "one", "1").await;
    let two = with_file(&store, Some(&one), "two", "2").await;
    for kind in [RecordKind::CacheMount, RecordKind::Frontend] {
        let description = kind.to_string();
        let new = NewRecord { kind, retain: true, description, ..NewRecord::default() };
        let made = store.create(new).unwrap();
        if kind == RecordKind::Frontend {
            drop(made.commit().await.unwrap());
        }
    }
    let check = |text: &str| {
        let usages = store.disk_usage(&filters(&[text]));
        usages.iter().map(|usage| usage.description.clone()).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(check("type==regular"), "one two");
    assert_eq!(check("type!=regular"), "exec.cachemount frontend");
    assert_eq!(check("type~=^f"), "frontend");
    assert_eq!(check("inuse"), "one two");
    assert_eq!(check("mutable"), "exec.cachemount");
    assert_eq!(check("immutable,description~=o"), "one two frontend");
    assert_eq!(check(&format!("id=={}", one.id())), "one");
    assert_eq!(check(&format!("parents=={}", one.id())), "two");
    assert_eq!(check("description==\"one\""), "one");
    assert_eq!(check("shared"), "");
    assert_eq!(check("unknown"), "");
    for bad in ["a==", "==b", "a,", "a~=(", "a=b", "a==\"b"] {
        assert!(matches!(Filter::parse(bad), Err(StoreError::Filter { .. })), "{bad}");
    }
    drop((one, two));
    let only = PruneOptions { filters: filters(&["type==exec.cachemount"]), ..Default::default() };
    assert_eq!(prune(&store, only).await.0, ["exec.cachemount"]);
    assert_eq!(prune(&store, PruneOptions::default()).await.0, ["two", "one"]);
    let all = PruneOptions { all: true, ..Default::default() };
    assert_eq!(prune(&store, all).await.0, ["frontend"]);
}

#[tokio::test]
async fn limits_remove_the_least_used() {
    let folder = folder();
    let store = open(folder.path());
    let text = "x".repeat(100_000);
    let mut ids = Vec::new();
    for name in ["a", "b", "c"] {
        ids.push(with_file(&store, None, name, &text).await.id().clone());
    }
    // `a` is used most and last, `c` next.
    for id in [&ids[2], &ids[0], &ids[0]] {
        drop(store.get(id).unwrap());
    }
    let sizes: Vec<u64> = store.disk_usage(&[]).iter().map(|usage| usage.size).collect();
    let total: u64 = sizes.iter().sum();
    let below = |max_used_space| PruneOptions { max_used_space, ..Default::default() };
    assert!(prune(&store, below(total + 1)).await.0.is_empty());
    assert_eq!(prune(&store, below(total)).await.0, ["b"]);
    let recent =
        PruneOptions { keep_duration: Some(std::time::Duration::from_secs(60)), ..below(1) };
    assert!(prune(&store, recent).await.0.is_empty());
    let reserved = PruneOptions { reserved_space: sizes[0] + 1, ..below(1) };
    assert_eq!(prune(&store, reserved).await.0, ["c"]);
    assert_eq!(prune(&store, below(1)).await.0, ["a"]);
}

#[tokio::test]
async fn the_sum_is_what_the_disk_says() {
    let folder = folder();
    let store = open(folder.path());
    let mut memory = Memory::default();
    let text = "some text ".repeat(2000);
    let layers = vec![memory.layer(&[("a", &text)]), memory.layer(&[("b/c", "2"), ("b/d", &text)])];
    let base = image(&store, layers, Some(Arc::new(memory)));
    base.ensure_local(store::no_progress()).await.unwrap();
    let record = begin(&store, Some(&base), "links");
    let tree = record.tree().unwrap();
    write(&tree, "e/f", &text);
    std::fs::hard_link(tree.path().join("e/f"), tree.path().join("e/g")).unwrap();
    drop(tree);
    let top = record.commit().await.unwrap();
    let merged = store.merge(&[base.clone(), top.clone()]).unwrap().unwrap();
    merged.blobs(BlobOptions::default()).await.unwrap();
    let mount = store.create(NewRecord { retain: true, ..NewRecord::default() }).unwrap();
    write(&mount.tree().unwrap(), "cached", &text);
    drop(mount);
    drop(store.content().put(b"loose", Default::default()).unwrap());

    let check = async |store: &Arc<Store>| {
        store.settle().await;
        store.flush().await.unwrap();
        let records: u64 = store.disk_usage(&[]).iter().map(|usage| usage.size).sum();
        let overhead = store.overhead();
        let counted = records + overhead.meta + overhead.blobs;
        let disk = disk_usage(folder.path());
        // Fixed: the folders of the layout, the lock, and a folder for each layer.
        let layers = store.snapshotter().list().unwrap().len() as u64;
        let fixed = 64 * 1024 + layers * 16 * 1024;
        let range = counted..=counted + fixed;
        assert!(range.contains(&disk), "{counted} counted, {disk} on disk, {records} in records");
        records
    };
    assert!(check(&store).await > 0);
    drop((base, top, merged));
    prune(&store, PruneOptions { all: true, ..Default::default() }).await;
    assert_eq!(check(&store).await, 0);
}

#[tokio::test]
async fn blobs_go_with_what_speaks_of_them() {
    let folder = folder();
    let store = open(folder.path());
    let made = with_file(&store, None, "a", "1").await;
    let blobs = made.blobs(BlobOptions::default()).await.unwrap();
    let layer = blobs[0].descriptor.clone();
    let config = store.content().put(b"{}", store::BlobInfo::of_type("c")).unwrap();
    let manifest = oci::Manifest::new(true, Descriptor::of("c", b"{}"), vec![layer.clone()]);
    let bytes = manifest.to_json();
    let info = store::BlobInfo::of_type(oci::media::OCI_MANIFEST);
    let blob = store.content().put(&bytes, info).unwrap();
    let descriptor = Descriptor::of(oci::media::OCI_MANIFEST, &bytes);
    store.images().tag("x", descriptor).await.unwrap();
    drop((made, blobs, config, blob));
    assert!(store.disk_usage(&[])[0].shared);
    assert!(prune(&store, PruneOptions::default()).await.0.is_empty(), "shared is kept");
    let all = || PruneOptions { all: true, ..Default::default() };
    assert_eq!(prune(&store, all()).await.0, ["a"]);
    assert_eq!(store.content().list().len(), 3, "the image keeps them");
    store.images().remove("x").await.unwrap();
    store.pin("history", &[layer.digest]);
    store.close().await.unwrap();
    drop(store);
    let store = open(folder.path());
    prune(&store, all()).await;
    let left: Vec<Digest> = store.content().list().into_iter().map(|(digest, _)| digest).collect();
    assert_eq!(left, [layer.digest], "pinned, over restarts");
    store.unpin("history");
    let young = store.content().put(b"young", Default::default()).unwrap().digest();
    prune(&store, all()).await;
    let left: Vec<Digest> = store.content().list().into_iter().map(|(digest, _)| digest).collect();
    assert_eq!(left, [young]);

    // A manifest made just now does not keep a layer whose record goes.
    let made = with_file(&store, None, "b", "2").await;
    let layer = made.blobs(BlobOptions::default()).await.unwrap()[0].descriptor.clone();
    let manifest = oci::Manifest::new(true, Descriptor::of("c", b"{}"), vec![layer.clone()]);
    let info = store::BlobInfo::of_type(oci::media::OCI_MANIFEST);
    let manifest = store.content().put(&manifest.to_json(), info).unwrap();
    let digest = manifest.digest();
    prune(&store, all()).await;
    assert!(store.content().contains(&layer.digest), "the manifest is held");
    drop(manifest);
    drop(made);
    prune(&store, all()).await;
    assert!(!store.content().contains(&layer.digest) && store.content().contains(&digest));
}

#[tokio::test]
async fn the_ceiling_collects_and_then_refuses() {
    // Where the other tests do not write: for a moment that would be taken for ours.
    let folder = tempfile::tempdir_in("/dev/shm").unwrap_or_else(|_| folder());
    let ceiling = 16 << 20;
    let config = Config { ceiling: Some(ceiling), ..Config::new(folder.path()) };
    let store = Store::open(config).unwrap();
    let text = "x".repeat(6 << 20);
    for name in ["a", "b"] {
        drop(with_file(&store, None, name, &text).await);
    }
    let room = store.reserve(1 << 16).await.unwrap();
    drop(room);
    assert_eq!(store.disk_usage(&[]).len(), 2);
    let room = store.reserve(6 << 20).await.unwrap();
    assert_eq!(store.disk_usage(&[]).len(), 1, "one had to go");
    drop(room);
    let error = store.reserve(ceiling).await.unwrap_err();
    assert!(matches!(error, StoreError::Ceiling { .. }), "{error}");
    assert!(error.is_no_space());

    let rooms = [store.reserve(0).await.unwrap(), store.reserve(0).await.unwrap()];
    let modest = rooms[0].scope(async { begin(&store, None, "modest") }).await;
    write(&modest.tree().unwrap(), "f", "x");
    let greedy = rooms[1].scope(async { begin(&store, None, "greedy") }).await;
    write(&greedy.tree().unwrap(), "f", &"x".repeat(17 << 20));
    let error = rooms[1].withdrawn().await;
    assert!(matches!(error, StoreError::Ceiling { .. }), "{error}");
    let mut writer = store.content().writer().unwrap();
    writer.write_all(&[0; 2 << 20]).unwrap();
    let full = writer.write_all(&[0; 1 << 20]).unwrap_err();
    drop(writer);
    assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
    let within = std::time::Duration::from_millis(20);
    assert!(tokio::time::timeout(within, rooms[0].withdrawn()).await.is_err(), "wrote little");
    drop((greedy, rooms));
    store.settle().await;
    while store.at_ceiling().is_some() {
        tokio::time::sleep(within).await;
    }
    let mut writer = store.content().writer().unwrap();
    writer.write_all(&[0; 2 << 20]).unwrap();
    writer.write_all(&[0; 1 << 20]).unwrap();
    drop(modest);
}

#[tokio::test]
async fn a_full_disk_is_an_error_of_its_own() {
    let folder = folder();
    let mount = std::process::Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=24m", "tmpfs"])
        .arg(folder.path())
        .status();
    if !mount.is_ok_and(|status| status.success()) {
        eprintln!("skipped: cannot mount a tmpfs here");
        return;
    }
    struct Unmount<'a>(&'a Path);
    impl Drop for Unmount<'_> {
        fn drop(&mut self) {
            _ = std::process::Command::new("umount").arg("-l").arg(self.0).status();
        }
    }
    let unmount = Unmount(folder.path());
    let store = open(folder.path());
    let kept = with_file(&store, None, "kept", "1").await;
    let mut writer = store.content().writer().unwrap();
    let error = writer.reserve(1 << 30).unwrap_err();
    assert!(matches!(error, StoreError::NoSpace { .. }), "{error}");
    let full = loop {
        if let Err(error) = writer.write_all(&[7; 1 << 20]) {
            break error;
        }
    };
    assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
    let error = kept.blobs(BlobOptions::default()).await.unwrap_err();
    assert!(error.is_no_space(), "{error:?}");
    assert!(kept.blobs_known().is_none(), "nothing half-recorded");
    drop(writer);
    kept.blobs(BlobOptions::default()).await.unwrap();
    store.flush().await.unwrap();
    assert!(matches!(store.reserve(1 << 30).await, Err(StoreError::NoSpace { .. })));
    let id = kept.id().clone();
    drop((kept, store));
    let store = open(folder.path());
    assert!(store.recovery().is_empty(), "{:?}", store.recovery());
    assert!(store.get(&id).is_some());
    drop(store);
    drop(unmount);
}
