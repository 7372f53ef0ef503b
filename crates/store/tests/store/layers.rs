//! Lazy image layers and layer blobs.

use expect_test::expect;
use oci::Compression;
use store::{BlobOptions, LayerStage, StoreError, no_progress};

use crate::*;

#[tokio::test]
async fn layers_are_fetched_once_and_in_parallel() {
    let folder = folder();
    let store = open(folder.path());
    let mut memory = Memory::default();
    let layers = vec![
        memory.layer(&[("etc/a", "1"), ("etc/b", "1")]),
        memory.layer(&[("etc/.wh.a", ""), ("etc/c", "2")]),
        memory.layer(&[("etc/b", "3")]),
    ];
    let memory = Arc::new(memory);
    let first = image(&store, layers.clone(), Some(memory.clone()));
    let second = image(&store, layers.clone(), Some(memory.clone()));
    assert_eq!(first, second, "known layers are shared");
    assert!(!first.is_local() && !first.needs_provider());
    assert!(matches!(first.tree(), Err(StoreError::NotLocal(_))));

    let stages = Arc::new(std::sync::Mutex::new(Vec::new()));
    let seen = stages.clone();
    let progress: store::LayerProgress =
        Arc::new(move |blob, stage| seen.lock().unwrap().push((blob.digest, stage)));
    let (left, right) =
        tokio::join!(first.ensure_local(progress), second.ensure_local(no_progress()));
    left.unwrap();
    right.unwrap();
    assert_eq!(memory.opened(), 3);
    expect![[r#"
        etc/
        etc/b 3
        etc/c 2"#]]
    .assert_eq(&list(&first.tree().unwrap()));
    let stages = stages.lock().unwrap();
    let done = stages.iter().filter(|(_, stage)| *stage == LayerStage::Done).count();
    assert!(done >= 3, "{stages:?}");

    // A part of the image is there already.
    let below = image(&store, layers[..2].to_vec(), None);
    assert!(below.is_local());
    assert_eq!(store.disk_usage(&[]).len(), 3);
}

#[tokio::test]
async fn recompressed_layers_share_the_folder() {
    let folder = folder();
    let store = open(folder.path());
    let mut memory = Memory::default();
    let gzipped = memory.layer(&[("f", "1")]);
    let plain = tar(&[("f", "1")]);
    let descriptor = Descriptor::of(oci::media::OCI_LAYER, &plain);
    let uncompressed = ImageLayer { descriptor, ..gzipped.clone() };
    let first = image(&store, vec![gzipped], Some(Arc::new(memory)));
    first.ensure_local(no_progress()).await.unwrap();
    let second = image(&store, vec![uncompressed.clone()], None);
    assert_ne!(first, second);
    assert!(second.is_local(), "not unpacked again");
    assert_eq!(first.layers(), second.layers());
    // Each keeps its own blob.
    let blobs = second.blobs_known().unwrap();
    assert_eq!(blobs[0].descriptor.digest, uncompressed.descriptor.digest);
    assert!(!blobs[0].local);
    let sizes: Vec<u64> = store.disk_usage(&[]).iter().map(|usage| usage.size).collect();
    assert!(sizes.iter().filter(|size| **size > 0).count() == 1, "{sizes:?}");
}

#[tokio::test]
async fn damaged_layers_leave_nothing() {
    let folder = folder();
    let store = open(folder.path());
    let mut memory = Memory::default();
    let good = memory.layer(&[("f", "1")]);
    let bad = memory.layer(&[("g", "2")]);
    let short = memory.layer(&[("h", "3")]);
    // Other bytes under a known digest, of the same length.
    *memory.blobs.get_mut(&bad.descriptor.digest).unwrap().last_mut().unwrap() ^= 1;
    memory.blobs.get_mut(&short.descriptor.digest).unwrap().pop();
    let wrong = ImageLayer { diff_id: Digest::of("x"), ..good.clone() };
    let memory = Arc::new(memory);
    for (layer, expected) in [(bad, "crc"), (short, "bytes instead of"), (wrong, "unpacks to")] {
        let lazy = image(&store, vec![layer], Some(memory.clone()));
        let error = lazy.ensure_local(no_progress()).await.unwrap_err();
        let text = format!("{error} {:?}", std::error::Error::source(&error));
        let damaged = matches!(&error, StoreError::Shared(inner) if matches!(**inner, StoreError::WrongDigest { .. }));
        assert!(damaged || text.contains(expected), "{expected}: {text}");
        assert!(!lazy.is_local());
    }
    store.settle().await;
    let left = std::fs::read_dir(folder.path().join("content/ingest")).unwrap().count();
    assert_eq!(left, 0);
    assert!(store.snapshotter().list().unwrap().is_empty());
}

#[tokio::test]
async fn another_provider_continues_a_broken_download() {
    let folder = folder();
    let store = open(folder.path());
    let mut dead = Memory { breaks: Some(20), ..Memory::default() };
    let layer = dead.layer(&[("f", "some text")]);
    let alive = Memory { blobs: dead.blobs.clone(), ..Memory::default() };
    let lazy = image(&store, vec![layer], Some(Arc::new(alive)));
    lazy.attach_provider(Arc::new(dead));
    lazy.ensure_local(no_progress()).await.unwrap();
    assert_eq!(list(&lazy.tree().unwrap()), "f some text");
}

#[tokio::test]
async fn reloaded_lazy_records_need_a_provider() {
    let folder = folder();
    let store = open(folder.path());
    let mut memory = Memory::default();
    let layer = memory.layer(&[("f", "1")]);
    let lazy = image(&store, vec![layer], None);
    let id = lazy.id().clone();
    assert!(lazy.needs_provider());
    let error = lazy.ensure_local(no_progress()).await.unwrap_err();
    assert!(error.to_string().contains("no provider"), "{error}");
    drop(lazy);
    store.close().await.unwrap();
    drop(store);
    let store = open(folder.path());
    let lazy = store.get(&id).unwrap();
    assert!(lazy.needs_provider());
    lazy.attach_provider(Arc::new(memory));
    assert!(!lazy.needs_provider());
    lazy.ensure_local(no_progress()).await.unwrap();
    assert_eq!(list(&lazy.tree().unwrap()), "f 1");
}

#[tokio::test]
async fn blobs_are_made_once_and_can_be_pulled_back() {
    let folder = folder();
    let store = open(folder.path());
    let base = with_file(&store, None, "a", "1").await;
    let top = with_file(&store, Some(&base), "b", "2").await;
    assert!(top.blobs_known().is_none());
    let refused = top.blobs(BlobOptions { create: false, ..Default::default() }).await;
    assert!(matches!(refused, Err(StoreError::NoLayerBlob(_))));
    let options = BlobOptions::default();
    let (left, right) = tokio::join!(top.blobs(options), top.blobs(options));
    let (blobs, again) = (left.unwrap(), right.unwrap());
    assert_eq!(blobs.len(), 2);
    assert_eq!(blobs[1].descriptor, again[1].descriptor);
    assert_eq!(blobs[1].description, "b");
    assert_eq!(store.content().list().len(), 2);
    let held = store.content().hold(&blobs[0].descriptor.digest).unwrap();
    let mut text = Vec::new();
    let file = store.content().open(&held.digest()).unwrap();
    std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(file), &mut text).unwrap();
    assert_eq!(Digest::of(&text), blobs[0].diff_id);

    // Not forced: what exists serves. Forced: the same tar in another form.
    let zstd = BlobOptions { compression: Compression::Zstd, ..options };
    assert_eq!(top.blobs(zstd).await.unwrap()[0].descriptor, blobs[0].descriptor);
    let forced = top.blobs(BlobOptions { force: true, ..zstd }).await.unwrap();
    assert_eq!(forced[0].diff_id, blobs[0].diff_id);
    assert_eq!(forced[0].descriptor.media_type, oci::media::OCI_LAYER_ZSTD);
    assert_eq!(top.blobs(options).await.unwrap()[0].descriptor, blobs[0].descriptor);

    // An image of these blobs is the record they were made of.
    let layers = blobs.iter().map(|blob| ImageLayer {
        descriptor: blob.descriptor.clone(),
        diff_id: blob.diff_id,
        created_at: None,
        description: None,
    });
    assert_eq!(image(&store, layers.collect(), None), top);
}

#[tokio::test]
async fn lazy_blobs_stay_where_they_are_until_asked_for() {
    let folder = folder();
    let store = open(folder.path());
    let mut memory = Memory::default();
    let layer = memory.layer(&[("f", "1")]);
    let memory = Arc::new(memory);
    let lazy = image(&store, vec![layer.clone()], Some(memory.clone()));
    let blobs = lazy.blobs(BlobOptions::default()).await.unwrap();
    assert_eq!(blobs[0].descriptor.digest, layer.descriptor.digest);
    assert!(!blobs[0].local);
    assert_eq!(memory.opened(), 0);
    lazy.fetch_blob(&blobs[0]).await.unwrap();
    assert!(lazy.blobs_known().unwrap()[0].local);
    // Unpacking takes the bytes from here.
    lazy.ensure_local(no_progress()).await.unwrap();
    assert_eq!(memory.opened(), 1);
}

#[tokio::test]
async fn an_abandoned_pull_leaves_nothing() {
    let folder = folder();
    let store = open(folder.path());
    let mut memory = Memory::default();
    let layer = memory.layer(&[("f", "1")]);
    struct Stuck;
    #[async_trait::async_trait]
    impl Provider for Stuck {
        async fn open(&self, _: &Descriptor, _: u64) -> oci::Result<BlobStream> {
            Ok(futures_util::stream::pending().boxed())
        }
        fn describe(&self) -> String {
            "stuck".into()
        }
    }
    let lazy = image(&store, vec![layer], None);
    lazy.attach_provider(Arc::new(Stuck));
    let pull = lazy.ensure_local(no_progress());
    let waited = tokio::time::timeout(std::time::Duration::from_millis(50), pull).await;
    assert!(waited.is_err());
    let left = std::fs::read_dir(folder.path().join("content/ingest")).unwrap().count();
    assert_eq!(left, 0, "the partial blob went with the last who waited");
    lazy.attach_provider(Arc::new(memory));
    lazy.ensure_local(no_progress()).await.unwrap();
}
