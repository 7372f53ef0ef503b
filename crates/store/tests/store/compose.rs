//! Merges and diffs.

use expect_test::expect;
use store::BlobOptions;

use crate::*;

#[tokio::test]
async fn merges_concatenate() {
    let folder = folder();
    let store = open(folder.path());
    let base = with_file(&store, None, "a", "1").await;
    let left = with_file(&store, Some(&base), "d/l", "2").await;
    let right = with_file(&store, Some(&base), "d/r", "3").await;
    assert_eq!(store.merge(&[]).unwrap(), None);
    assert_eq!(store.merge(std::slice::from_ref(&left)).unwrap(), Some(left.clone()));
    let merged = store.merge(&[left.clone(), right.clone()]).unwrap().unwrap();
    assert_eq!(merged.layers().len(), 4);
    assert_eq!(merged.size(), 0);
    expect![[r#"
        a 1
        d/
        d/l 2
        d/r 3"#]]
    .assert_eq(&list(&merged.tree().unwrap()));
    assert_eq!(store.merge(&[left.clone(), right.clone()]).unwrap().unwrap(), merged);
    let more = store.merge(&[merged.clone(), base.clone()]).unwrap().unwrap();
    assert_eq!(more.parents().len(), 3, "merges in merges are flattened");
    assert_eq!(more.blobs(BlobOptions::default()).await.unwrap().len(), 5);
    let built = with_file(&store, Some(&merged), "e", "4").await;
    assert_eq!(list(&built.tree().unwrap()).lines().count(), 5);
}

#[tokio::test]
async fn diffs_use_the_layers_that_are_there() {
    let folder = folder();
    let store = open(folder.path());
    let base = with_file(&store, None, "a", "1").await;
    let one = with_file(&store, Some(&base), "b", "2").await;
    let two = with_file(&store, Some(&one), "c", "3").await;
    assert_eq!(store.diff(None, Some(&two)).await.unwrap(), Some(two.clone()));
    assert_eq!(store.diff(Some(&two), Some(&two)).await.unwrap(), None);
    assert_eq!(store.diff(None, None).await.unwrap(), None);
    let single = store.diff(Some(&one), Some(&two)).await.unwrap().unwrap();
    assert_eq!(list(&single.tree().unwrap()), "c 3");
    assert_eq!(single.layers(), &two.layers()[2..]);
    let double = store.diff(Some(&base), Some(&two)).await.unwrap().unwrap();
    assert_eq!(list(&double.tree().unwrap()), "b 2\nc 3");
    assert_eq!(double.layers(), &two.layers()[1..]);
    let blobs = double.blobs(BlobOptions::default()).await.unwrap();
    let whole = two.blobs(BlobOptions::default()).await.unwrap();
    assert_eq!(blobs[0].descriptor, whole[1].descriptor);
    assert_eq!(blobs[0].description, "b");
}

#[tokio::test]
async fn diffs_of_merges_use_their_members_layers() {
    let folder = folder();
    let store = open(folder.path());
    let base = with_file(&store, None, "a", "1").await;
    let one = with_file(&store, Some(&base), "b", "2").await;
    let two = with_file(&store, Some(&one), "c", "3").await;
    let apart = with_file(&store, None, "d", "4").await;
    let merged = store.merge(&[two.clone(), apart.clone()]).unwrap().unwrap();
    let diff = store.diff(Some(&base), Some(&merged)).await.unwrap().unwrap();
    assert_eq!(list(&diff.tree().unwrap()), "b 2\nc 3\nd 4");
    assert_eq!(diff.layers(), &merged.layers()[1..]);
    let built = with_file(&store, Some(&merged), "e", "5").await;
    let diff = store.diff(Some(&one), Some(&built)).await.unwrap().unwrap();
    assert_eq!(diff.layers(), &built.layers()[2..]);
    // What was built on another member did not begin with this one.
    let diff = store.diff(Some(&apart), Some(&merged)).await.unwrap().unwrap();
    assert_eq!(list(&diff.tree().unwrap()), "a 1\nb 2\nc 3");
    assert_eq!(diff.layers().len(), 1);
}

#[tokio::test]
async fn other_diffs_compare_trees() {
    let folder = folder();
    let store = open(folder.path());
    let lower = with_file(&store, None, "gone", "1").await;
    let upper = with_file(&store, None, "new", "2").await;
    let diff = store.diff(Some(&lower), Some(&upper)).await.unwrap().unwrap();
    assert_eq!(list(&diff.tree().unwrap()), "new 2");
    let merged = store.merge(&[lower.clone(), diff.clone()]).unwrap().unwrap();
    assert_eq!(list(&merged.tree().unwrap()), "new 2");
    let nothing = store.diff(Some(&lower), None).await.unwrap().unwrap();
    let merged = store.merge(&[upper, lower.clone(), nothing]).unwrap().unwrap();
    assert_eq!(list(&merged.tree().unwrap()), "new 2");
    let blobs = diff.blobs(BlobOptions::default()).await.unwrap();
    let file = store.content().open(&blobs[0].descriptor.digest).unwrap();
    let mut tar = tar::Archive::new(flate2::read::GzDecoder::new(file));
    let names = tar
        .entries()
        .unwrap()
        .map(|entry| entry.unwrap().path().unwrap().to_string_lossy().into_owned());
    assert_eq!(names.collect::<Vec<_>>(), [".wh.gone", "new"]);
}

#[tokio::test]
async fn removed_folders_hide_only_what_they_held() {
    let folder = folder();
    let store = open(folder.path());
    let base = with_file(&store, None, "d/a", "1").await;
    let record = begin(&store, Some(&base), "again");
    let tree = record.tree().unwrap();
    std::fs::remove_dir_all(tree.path().join("d")).unwrap();
    write(&tree, "d/b", "2");
    drop(tree);
    let again = record.commit().await.unwrap();
    assert_eq!(list(&again.tree().unwrap()), "d/\nd/b 2");
    let other = with_file(&store, None, "d/c", "3").await;
    let expected = "d/\nd/b 2\nd/c 3";
    let diff = store.diff(Some(&base), Some(&again)).await.unwrap().unwrap();
    assert_eq!(list(&diff.tree().unwrap()), "d/\nd/b 2");
    let merged = store.merge(&[other.clone(), diff.clone()]).unwrap().unwrap();
    assert_eq!(list(&merged.tree().unwrap()), expected);
    let merged = store.merge(&[other.clone(), again.clone()]).unwrap().unwrap();
    assert_eq!(list(&merged.tree().unwrap()), expected);
    let merged = store.merge(&[base.clone(), diff.clone()]).unwrap().unwrap();
    assert_eq!(list(&merged.tree().unwrap()), "d/\nd/b 2");
    // The blob is that of the layer as it was built, and a child exports it too.
    let whole = again.blobs(BlobOptions::default()).await.unwrap();
    let merged = store.merge(&[other, again]).unwrap().unwrap();
    let child = with_file(&store, Some(&merged), "e", "4").await;
    let blobs = child.blobs(BlobOptions::default()).await.unwrap();
    assert_eq!(blobs.len(), 4);
    assert_eq!(blobs[2].descriptor, whole[1].descriptor);
    assert_eq!(diff.blobs(BlobOptions::default()).await.unwrap()[0].diff_id, whole[1].diff_id);
}
