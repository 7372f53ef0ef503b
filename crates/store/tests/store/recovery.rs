//! Crashes, damage, and two daemons on one folder.

use store::{BlobOptions, Crash, NewRecord, RecordKind, StoreError, no_progress};

use crate::*;

#[tokio::test]
async fn one_daemon_per_folder() {
    let folder = folder();
    let store = open(folder.path());
    let error = Store::open(Config::new(folder.path())).unwrap_err();
    let path = folder.path().join("buildkitd.lock");
    assert_eq!(
        error.to_string(),
        format!(
            "could not lock {}, another instance running? (process {})",
            path.display(),
            std::process::id()
        )
    );
    let id = store.worker_id().to_owned();
    drop(store);
    assert_eq!(open(folder.path()).worker_id(), id);
}

#[tokio::test]
async fn a_loss_of_power_loses_the_last_moments_only() {
    let folder = folder();
    let store = open(folder.path());
    let early = with_file(&store, None, "early", "1").await;
    let mount = NewRecord {
        kind: RecordKind::CacheMount,
        retain: true,
        index_keys: vec!["m".into()],
        ..NewRecord::default()
    };
    let mount = store.create(mount).unwrap();
    store.close().await.unwrap();
    write(&mount.tree().unwrap(), "f", "written by the killed");
    let late = with_file(&store, Some(&early), "late", "2").await;
    let lost_blob = store.content().put(b"late", Default::default()).unwrap().digest();
    let unfinished = begin(&store, None, "unfinished");
    store.crash(Crash::PowerLost);
    let (early_id, late_id) = (early.id().clone(), late.id().clone());
    // Handles end without anything being written down.
    drop((mount, early, late, unfinished, store));

    // What the killed process would have left behind.
    std::fs::write(folder.path().join("content/ingest/half"), "x").unwrap();
    let store = open(folder.path());
    let recovery = store.recovery();
    assert!(store.get(&early_id).is_some());
    assert!(store.get(&late_id).is_none());
    assert_eq!(recovery.blobs, [lost_blob]);
    assert!(!recovery.layers.is_empty());
    assert!(recovery.records.is_empty(), "{recovery:?}");
    let mount = store.take_mutable(&store.find("m")[0]).unwrap();
    assert_eq!(list(&mount.tree().unwrap()), "f written by the killed");
    assert!(mount.index().lock().unwrap().is_empty());
    drop(mount);
    store.settle().await;
    assert!(store.disk_usage(&[]).iter().all(|usage| usage.size > 0), "measured anew");
    assert_eq!(std::fs::read_dir(folder.path().join("content/ingest")).unwrap().count(), 0);
    assert_eq!(store.snapshotter().list().unwrap().len(), 2);
}

#[tokio::test]
async fn a_killed_daemon_loses_nothing_that_was_done() {
    let folder = folder();
    let store = open(folder.path());
    let base = with_file(&store, None, "base", "1").await;
    let top = with_file(&store, Some(&base), "top", "2").await;
    let blob = store.content().put(b"blob", Default::default()).unwrap().digest();
    let unfinished = begin(&store, None, "unfinished");
    store.crash(Crash::Killed);
    let top_id = top.id().clone();
    drop((base, top, unfinished, store));
    let store = open(folder.path());
    assert!(store.recovery().is_empty(), "{:?}", store.recovery());
    assert_eq!(list(&store.get(&top_id).unwrap().tree().unwrap()), "base 1\ntop 2");
    assert!(store.content().info(&blob).is_some());
    assert!(store.verify(false).await.unwrap().is_clean());
}

#[tokio::test]
async fn records_without_data_are_dropped_with_what_is_built_on_them() {
    let folder = folder();
    let store = open(folder.path());
    let base = with_file(&store, None, "base", "1").await;
    let top = with_file(&store, Some(&base), "top", "2").await;
    let other = with_file(&store, None, "other", "3").await;
    let exported = with_file(&store, None, "exported", "4").await;
    exported.blobs(BlobOptions::default()).await.unwrap();
    store.close().await.unwrap();
    let ids = [&base, &top, &other, &exported].map(|made| made.id().clone());
    let lost = [&base, &exported].map(|made| made.layers()[0].clone());
    drop((base, top, other, exported));
    for layer in &lost {
        store.snapshotter().remove(layer).unwrap();
    }
    store.settle().await;
    drop(store);

    let store = open(folder.path());
    let mut dropped = store.recovery().records.clone();
    dropped.sort();
    let mut expected = vec![ids[0].clone(), ids[1].clone()];
    expected.sort();
    assert_eq!(dropped, expected);
    assert!(store.get(&ids[2]).is_some());
    // The one with a blob is unpacked again.
    let exported = store.get(&ids[3]).unwrap();
    assert!(!exported.is_local() && !exported.needs_provider());
    exported.ensure_local(no_progress()).await.unwrap();
    assert_eq!(list(&exported.tree().unwrap()), "exported 4");
}

#[tokio::test]
async fn verify_finds_damage_and_repairs() {
    let folder = folder();
    let store = open(folder.path());
    let made = with_file(&store, None, "a", "1").await;
    let lost = with_file(&store, None, "b", "2").await;
    let blobs = made.blobs(BlobOptions::default()).await.unwrap();
    let below = with_file(&store, None, "e/d/f", "nested").await;
    below.index().lock().unwrap().checksum(&below.tree().unwrap(), "/", false).unwrap();
    drop(below);
    let changed = with_file(&store, None, "c", "3").await;
    changed.index().lock().unwrap().checksum(&changed.tree().unwrap(), "/", false).unwrap();
    let (changed_id, file) = (changed.id().clone(), changed.layers()[0].clone());
    drop(changed);
    let clean = store.verify(false).await.unwrap();
    assert_eq!((clean.blobs, clean.records, clean.files), (1, 4, 2));
    assert!(clean.is_clean(), "{clean:?}");

    let digest = blobs[0].descriptor.digest;
    let path = store.content().path(&digest);
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, "rubbish").unwrap();
    let (lost_id, layer) = (lost.id().clone(), lost.layers()[0].clone());
    drop(lost);
    store.snapshotter().remove(&layer).unwrap();
    let file = store.snapshotter().layer_path(&file).join("c");
    std::fs::write(file, "4").unwrap();
    for repair in [false, true] {
        let found = store.verify(repair).await.unwrap();
        assert_eq!(found.damaged, [digest]);
        assert_eq!(found.broken, [lost_id.clone(), changed_id.clone()]);
        assert_eq!(
            found.notes,
            [format!("record {changed_id}: /c has another content than it had")]
        );
        assert_eq!(store.contains(&lost_id), !repair);
        assert_eq!(store.contains(&changed_id), !repair);
    }
    assert!(store.verify(false).await.unwrap().is_clean());
    // The blob is made again from the files.
    let again = made.blobs(BlobOptions::default()).await.unwrap();
    assert_eq!(again[0].descriptor.digest, digest);
    assert!(again[0].local, "{again:?}");
}

#[tokio::test]
async fn keys_survive_and_forget_what_is_gone() {
    use solver::{Change, KeyDigest, KeyId, store::Link};
    let folder = folder();
    let store = open(folder.path());
    let made = with_file(&store, None, "a", "1").await;
    let root = KeyId::Root(KeyDigest::from(Digest::of("root")));
    let link = Link { input: 0, output: 0, digest: Digest::of("op").into(), selector: None };
    let created_at = std::time::SystemTime::now();
    let kept = store.result_id(Some(made.id()));
    let gone = store.result_id(Some(&"nosuchrecord".into()));
    store.save_keys(vec![
        Change::PutLink { from: root, link, to: KeyId::Chain(7) },
        Change::PutResult { key: KeyId::Chain(7), record: kept.clone(), created_at },
        Change::PutResult { key: root, record: gone.clone(), created_at },
    ]);
    drop(made);
    store.close().await.unwrap();
    drop(store);
    let store = open(folder.path());
    let keys = store.load_keys().unwrap();
    assert_eq!(keys.targets(root, &link), [KeyId::Chain(7)]);
    assert_eq!(keys.results(KeyId::Chain(7))[0].0, kept);
    assert!(keys.results(root).is_empty());
    assert_eq!(store.parse_result_id(&store.result_id(None)), Some(None));
    assert_eq!(store.parse_result_id(&"elsewhere::x".into()), None);
}

#[tokio::test]
async fn a_closed_store_says_so() {
    let folder = folder();
    let store = open(folder.path());
    store.crash(Crash::Killed);
    assert!(matches!(store.flush().await, Err(StoreError::Closed)));
}

#[tokio::test]
async fn files_changed_just_before_a_crash_are_not_shown_as_they_were() {
    let folder = folder();
    let store = open(folder.path());
    let new = NewRecord { retain: true, ..NewRecord::default() };
    let made = store.create(new).unwrap();
    write(&made.tree().unwrap(), "f", "1");
    let id = made.id().clone();
    let view = made.into_view(true).await.unwrap();
    view.index().lock().unwrap().checksum(&view.tree().unwrap(), "/", false).unwrap();
    let shown = view.id().clone();
    drop(view);
    store.close().await.unwrap();
    drop(store);

    let store = open(folder.path());
    assert!(store.contains(&shown), "nothing happened to it");
    store.close().await.unwrap();
    let again = store.take_mutable(&id).unwrap();
    // From here on the rows do not reach the disk.
    store.crash(Crash::PowerLost);
    write(&again.tree().unwrap(), "f", "2");
    drop((again, store));

    let store = open(folder.path());
    assert!(!store.contains(&shown), "it would show the new file under the old digest");
    let again = store.take_mutable(&id).unwrap();
    assert_eq!(list(&again.tree().unwrap()), "f 2");
    assert!(again.index().lock().unwrap().is_empty());
    drop(again);
    store.settle().await;
    assert!(store.verify(false).await.unwrap().is_clean());
}
