//! `local` and `tar`.

use std::os::unix::fs::MetadataExt as _;

use bytes::Bytes;
use exporter::Attestation;

use crate::{World, single, tar_list, text, two_platforms};

#[tokio::test]
async fn folder_copy_and_mirror() {
    let world = World::new().await;
    let lower = world.layer(None, "x", &[("a/one", "1"), ("gone", "x")]).await;
    let tree = world.layer(Some(&lower), "x", &[("a/two", "2")]).await;
    std::fs::create_dir_all(world.at("out")).unwrap();
    std::fs::write(world.at("out/mine"), "m").unwrap();
    world.export("local", &[], 1, single(&tree)).await.unwrap();
    let read = |path: &str| std::fs::read_to_string(world.at(path)).unwrap_or_default();
    assert_eq!(
        (read("out/a/one"), read("out/a/two"), read("out/mine")),
        ("1".into(), "2".into(), "m".into())
    );
    let attrs = [("mode", "delete"), ("source-date-epoch", "1000")];
    let response = world.export("local", &attrs, 2, single(&tree)).await.unwrap().response;
    assert!(response.is_empty());
    assert!(!world.at("out/mine").exists());
    assert_eq!(std::fs::metadata(world.at("out/a/two")).unwrap().mtime(), 1000);
    // An empty result mirrors to nothing.
    world
        .export("local", &[("mode", "delete")], 2, exporter::ExportResult::default())
        .await
        .unwrap();
    assert!(!world.at("out/a").exists());
}

#[tokio::test]
async fn platforms_split_or_merged() {
    let world = World::new().await;
    let amd = world.layer(None, "x", &[("same", "a"), ("amd", "a")]).await;
    let arm = world.layer(None, "x", &[("same", "b")]).await;
    let both = two_platforms(&amd, &arm);
    world.export("local", &[], 1, both.clone()).await.unwrap();
    assert!(world.at("out/linux_amd64/amd").exists() && world.at("out/linux_arm64/same").exists());
    let error =
        world.export("local", &[("platform-split", "false")], 1, both.clone()).await.err().unwrap();
    assert_eq!(
        text(&error),
        "cannot overwrite same from linux/amd64 with linux/arm64 when split option is disabled"
    );
    let other = world.layer(None, "x", &[("arm", "b")]).await;
    let disjoint = two_platforms(&amd, &other);
    let attrs = [("platform-split", "false"), ("mode", "delete")];
    world.export("local", &attrs, 2, disjoint).await.unwrap();
    assert!(world.at("out/amd").exists() && world.at("out/arm").exists());
    assert!(!world.at("out/linux_amd64").exists());
    world.export("tar", &[], 0, both).await.unwrap();
    let names: Vec<_> = tar_list(&world.at("out.file"))
        .iter()
        .map(|line| line.split(' ').nth(3).unwrap().to_owned())
        .collect();
    assert_eq!(
        names,
        ["linux_amd64/", "linux_amd64/amd", "linux_amd64/same", "linux_arm64/", "linux_arm64/same"]
    );
}

#[tokio::test]
async fn tar_with_statements() {
    let world = World::new().await;
    let tree = world.layer(None, "x", &[("dir/file", "text")]).await;
    {
        let names = tree.tree().unwrap();
        assert!(names.path().join("dir/file").exists());
    }
    let mut result = single(&tree);
    result.attestations.insert(
        "linux/amd64".into(),
        vec![Attestation {
            predicate_type: "t".into(),
            predicate: Bytes::from_static(b"{}").into(),
            subjects: Vec::new(),
            path: "/deep/statement.json".into(),
            inline_only: false,
            core: None,
        }],
    );
    let attrs = [("attestation-prefix", "p-"), ("source-date-epoch", "7")];
    world.export("tar", &attrs, 0, result).await.unwrap();
    assert!(world.told.lock().unwrap().is_empty());
    let list = tar_list(&world.at("out.file"));
    assert_eq!(list[..2], ["0755 0 7 dir/", "0644 4 7 dir/file"]);
    assert!(list[2].starts_with("0600 ") && list[2].ends_with(" 7 p-statement.json"), "{list:?}");
    let mut archive = tar::Archive::new(std::fs::File::open(world.at("out.file")).unwrap());
    let mut body = String::new();
    for entry in archive.entries().unwrap() {
        body.clear();
        std::io::Read::read_to_string(&mut entry.unwrap(), &mut body).unwrap();
    }
    let hex = base::Digest::of("text").hex();
    assert!(
        body.contains(&format!(
            "\"name\": \"dir/file\",\n      \"digest\": {{\n        \"sha256\": \"{hex}\""
        )),
        "{body}"
    );
}

#[tokio::test]
async fn no_client_is_a_clear_error() {
    let world = World::new().await;
    let tree = world.layer(None, "x", &[("a", "a")]).await;
    for kind in ["oci", "tar", "local"] {
        let exporter = exporter::Exporters::new(world.store.clone())
            .resolve(kind, Default::default(), 30)
            .unwrap();
        let mut request = world.request(0, single(&tree));
        request.sessions = world.sessions.group(Vec::<String>::new());
        let error = exporter.export(request).await.err().unwrap();
        assert_eq!(text(&error), "reach the client that receives the output: no active sessions");
    }
}
