//! Numbers, not checks: `cargo test -p store --test store numbers -- --ignored --nocapture`.

use std::time::Instant;

use crate::*;

#[tokio::test(flavor = "multi_thread")]
#[ignore = "measures"]
async fn numbers() {
    let folder = folder();
    let at = Instant::now();
    let store = open(folder.path());
    println!("open, empty: {:?}", at.elapsed());
    let mut parent: Option<Ref> = None;
    let mut create = std::time::Duration::ZERO;
    let mut mount = create;
    let mut commit = create;
    let steps = 200;
    for step in 0..steps {
        let at = Instant::now();
        let record = begin(&store, parent.as_ref(), "step");
        create += at.elapsed();
        let at = Instant::now();
        write(&record.tree().unwrap(), &format!("f{step}"), "x");
        mount += at.elapsed();
        let at = Instant::now();
        let made = record.commit().await.unwrap();
        commit += at.elapsed();
        parent = (step % 20 != 19).then_some(made);
    }
    drop(parent);
    println!(
        "a step: create {:?}, mount and write {:?}, commit {:?}",
        create / steps,
        mount / steps,
        commit / steps
    );
    let at = Instant::now();
    store.flush().await.unwrap();
    println!("flush: {:?}", at.elapsed());
    let at = Instant::now();
    store.flush().await.unwrap();
    println!("flush, nothing to do: {:?}", at.elapsed());
    store.table("t").put("k", "v");
    let at = Instant::now();
    store.flush().await.unwrap();
    println!("flush, one value: {:?}", at.elapsed());
    let mut memory = Memory::default();
    let layers: Vec<_> =
        (0..5000).map(|layer| memory.layer(&[(&format!("f{layer}"), "x")])).collect();
    let at = Instant::now();
    for layer in layers {
        drop(image(&store, vec![layer], None));
    }
    println!("5000 images: {:?}", at.elapsed());
    let at = Instant::now();
    store.flush().await.unwrap();
    println!("flush: {:?}", at.elapsed());
    println!("overhead: {:?}", store.overhead());
    let at = Instant::now();
    let count = store.disk_usage(&[]).len();
    println!("usage of {count} records: {:?}", at.elapsed());
    drop(store);
    let at = Instant::now();
    let store = open(folder.path());
    println!("open, {count} records: {:?}", at.elapsed());
    let at = Instant::now();
    drop(store);
    println!("close: {:?}", at.elapsed());

    let store = open(folder.path());
    let record = begin(&store, None, "many files");
    let tree = record.tree().unwrap();
    for file in 0..20_000 {
        write(&tree, &format!("d{}/f{file}", file % 200), "x");
    }
    drop(tree);
    let at = Instant::now();
    let made = record.commit().await.unwrap();
    println!("commit of 20,000 files: {:?}", at.elapsed());
    let at = Instant::now();
    made.blobs(store::BlobOptions::default()).await.unwrap();
    println!("blob of 20,000 files: {:?}", at.elapsed());
}
