//! Life of records: written, committed, found, shown, shared.

use expect_test::expect;
use store::{Crash, NewRecord, RecordKind, StoreError};

use crate::*;

#[tokio::test]
async fn committed_records_stack() {
    let folder = folder();
    let store = open(folder.path());
    let base = with_file(&store, None, "etc/a", "1").await;
    let top = with_file(&store, Some(&base), "etc/b", "2").await;
    expect![[r#"
        etc/
        etc/a 1
        etc/b 2"#]]
    .assert_eq(&list(&top.tree().unwrap()));
    assert_eq!(top.layers().len(), 2);
    assert_eq!(top.parents(), [base.id().clone()]);
    assert!(std::fs::write(top.tree().unwrap().path().join("x"), "").is_err());

    let id = top.id().clone();
    drop((base, top));
    let again = store.get(&id).expect("it stays without being held");
    assert_eq!(again.description(), "etc/b");
    let usage = store.disk_usage(&[]);
    assert_eq!(usage.iter().map(|usage| usage.usage_count).collect::<Vec<_>>(), [1, 1]);
    assert_eq!(usage.iter().map(|usage| usage.in_use).collect::<Vec<_>>(), [true, true]);
}

#[tokio::test]
async fn dropped_writers_leave_nothing_unless_retained() {
    let folder = folder();
    let store = open(folder.path());
    let lost = begin(&store, None, "lost");
    write(&lost.tree().unwrap(), "f", "x");
    drop(lost);
    assert!(store.disk_usage(&[]).is_empty());

    let cache = |store: &Arc<Store>| {
        store.create(NewRecord {
            kind: RecordKind::CacheMount,
            retain: true,
            index_keys: vec!["cache-dir:k".into()],
            ..NewRecord::default()
        })
    };
    let mount = cache(&store).unwrap();
    let id = mount.id().clone();
    write(&mount.tree().unwrap(), "f", "kept");
    assert!(matches!(store.take_mutable(&id), Err(StoreError::InUse(_))));
    drop(mount);
    store.settle().await;
    assert_eq!(store.find("cache-dir:k"), std::slice::from_ref(&id));
    assert!(store.get(&id).is_none(), "a mutable record is not had as a committed one");
    let usage = &store.disk_usage(&[])[0];
    assert!(usage.mutable && usage.size > 0, "{usage:?}");

    store.close().await.unwrap();
    drop(store);
    let store = open(folder.path());
    assert!(store.recovery().is_empty(), "{:?}", store.recovery());
    let mount = store.take_mutable(&store.find("cache-dir:k")[0]).unwrap();
    assert_eq!(list(&mount.tree().unwrap()), "f kept");
    mount.discard();
    assert!(store.find("cache-dir:k").is_empty());
}

#[tokio::test]
async fn a_view_shares_the_folder_and_excludes_writers() {
    let folder = folder();
    let store = open(folder.path());
    let new = NewRecord {
        kind: RecordKind::LocalSource,
        retain: true,
        index_keys: vec!["local".into()],
        ..NewRecord::default()
    };
    let source = store.create(new).unwrap();
    let id = source.id().clone();
    write(&source.tree().unwrap(), "f", "1");
    let view = source.into_view(true).await.unwrap();
    let first = view.id().clone();
    assert_eq!(list(&view.tree().unwrap()), "f 1");
    assert!(matches!(store.take_mutable(&id), Err(StoreError::InUse(_))));
    assert_eq!(store.view_of(&id), Some(view.clone()), "others may look too");
    assert_eq!(store.disk_usage(&[]).len(), 1, "one folder, one record");
    drop(view);

    // Nothing changed: the same view again.
    let source = store.take_mutable(&id).unwrap();
    assert!(store.get(&first).is_none(), "not while somebody writes");
    let view = source.into_view(false).await.unwrap();
    assert_eq!(*view.id(), first);
    drop(view);

    // Something changed: another one, and the first is no more.
    let source = store.take_mutable(&id).unwrap();
    write(&source.tree().unwrap(), "f", "2");
    let view = source.into_view(true).await.unwrap();
    assert_ne!(*view.id(), first);
    assert!(!store.contains(&first));
    assert_eq!(list(&view.tree().unwrap()), "f 2");

    // Built upon, it takes the folder over.
    let child = with_file(&store, Some(&view), "g", "3").await;
    let shown = view.id().clone();
    drop(view);
    assert!(store.find("local").is_empty());
    assert!(matches!(store.take_mutable(&id), Err(StoreError::NoRecord(_))));
    assert!(store.contains(&shown));
    expect![[r#"
        f 2
        g 3"#]]
    .assert_eq(&list(&child.tree().unwrap()));
    drop(child);
    store.close().await.unwrap();
    drop(store);
    let store = open(folder.path());
    assert!(store.recovery().is_empty(), "{:?}", store.recovery());
    assert!(store.contains(&shown));
}

#[tokio::test]
async fn content_digests_live_with_the_record() {
    let folder = folder();
    let store = open(folder.path());
    let made = with_file(&store, None, "d/f", "text").await;
    let digest = {
        let (index, tree) = (made.index(), made.tree().unwrap());
        let digest = index.lock().unwrap().checksum(&tree, "d/f", true);
        digest.unwrap()
    };
    let id = made.id().clone();
    drop(made);
    store.close().await.unwrap();
    drop(store);
    let store = open(folder.path());
    let made = store.get(&id).unwrap();
    let index = made.index();
    let mut index = index.lock().unwrap();
    assert!(!index.is_empty() && !index.is_dirty());
    assert_eq!(index.checksum(&made.tree().unwrap(), "d/f", true).unwrap(), digest);
}

#[tokio::test]
async fn unwanted_records_go_when_released() {
    let folder = folder();
    let store = open(folder.path());
    let base = with_file(&store, None, "a", "1").await;
    let failed = with_file(&store, Some(&base), "b", "2").await;
    base.discard_when_released();
    failed.discard_when_released();
    drop(base);
    assert_eq!(store.disk_usage(&[]).len(), 2, "the base is built upon");
    drop(failed);
    assert!(store.disk_usage(&[]).is_empty(), "both went");
}

#[tokio::test]
async fn tables_and_images_survive() {
    let folder = folder();
    let store = open(folder.path());
    let table = store.table("history");
    table.put("b/1", "one");
    table.put("b/2", "two");
    table.put("c", "three");
    table.remove("b/1");
    let found = |table: &store::Table, prefix: &str| {
        let found = table.scan(prefix).unwrap().into_iter();
        let lines = found.map(|(key, value)| {
            format!("{}={}", String::from_utf8(key).unwrap(), String::from_utf8_lossy(&value))
        });
        lines.collect::<Vec<_>>().join(" ")
    };
    assert_eq!(found(&table, "b/"), "b/2=two");
    let manifest = oci::Manifest::new(true, Descriptor::of("config", b"{}"), Vec::new()).to_json();
    let media_type = oci::media::OCI_MANIFEST;
    let descriptor = Descriptor::of(media_type, &manifest);
    assert!(store.images().tag("x:1", descriptor.clone()).await.is_err(), "bytes first");
    let info = store::BlobInfo::of_type(media_type);
    let held = store.content().put(&manifest, info).unwrap();
    store.images().tag("x:1", descriptor.clone()).await.unwrap();
    drop((held, table));
    // What was told to be done is there even if the daemon dies now.
    store.crash(Crash::Killed);
    drop(store);
    let store = open(folder.path());
    assert_eq!(store.images().get("x:1").unwrap().descriptor, descriptor);
    assert_eq!(found(&store.table("history"), ""), "b/2=two c=three");
    store.images().remove("x:1").await.unwrap();
    assert!(store.images().list().is_empty());
}

#[tokio::test]
async fn blobs_are_checked_and_atomic() {
    let folder = folder();
    let store = open(folder.path());
    let content = store.content();
    let mut writer = content.writer().unwrap();
    writer.write_all(b"hello").unwrap();
    let other = Digest::of("other");
    let error = writer.commit(Some(other), None, Default::default()).unwrap_err();
    assert!(matches!(error, StoreError::WrongDigest { .. }), "{error}");
    let mut writer = content.writer().unwrap();
    writer.write_all(b"hello").unwrap();
    let error = writer.commit(None, Some(4), Default::default()).unwrap_err();
    assert_eq!(error.to_string(), "blob has 5 bytes instead of 4");
    assert!(content.list().is_empty());
    assert_eq!(std::fs::read_dir(folder.path().join("content/ingest")).unwrap().count(), 0);

    let mut writer = content.writer().unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut writer, b"hello").await.unwrap();
    let blob = writer.commit(Some(Digest::of("hello")), Some(5), Default::default()).unwrap();
    let twice = content.put(b"hello", store::BlobInfo::of_type("text/plain")).unwrap();
    assert_eq!(blob.digest(), twice.digest());
    assert_eq!(content.info(&blob.digest()).unwrap().media_type, "text/plain");
    assert_eq!(&content.read(&blob.digest(), 10).unwrap()[..], b"hello");
    assert!(content.read(&blob.digest(), 4).is_err());
}
