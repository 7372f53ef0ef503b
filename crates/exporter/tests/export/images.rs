//! Images in the store, as layouts and tars: what they hold and what the client is told.

use base64::Engine as _;
use bytes::Bytes;
use expect_test::expect;
use exporter::Attestation;
use oci::{Descriptor, ImageConfig, Index, Manifest, compress::Limits, layout::Layout};

use crate::{World, map, single, tar_list, text, two_platforms};

fn keys(response: &std::collections::BTreeMap<String, String>) -> Vec<&str> {
    response.keys().map(String::as_str).collect()
}

fn descriptor(response: &std::collections::BTreeMap<String, String>) -> Descriptor {
    let json = base64::engine::general_purpose::STANDARD
        .decode(&response["containerimage.descriptor"])
        .unwrap();
    serde_json::from_slice(&json).unwrap()
}

#[tokio::test]
async fn docker_tar_as_recorded() {
    let world = World::new().await;
    let lower = world.layer(None, "pulled from x", &[("etc/a", "a")]).await;
    let tree = world.layer(Some(&lower), "mount / from exec /bin/w", &[("out/b", "b")]).await;
    let exported =
        world.export("docker", &[("name", "golden/app:2")], 0, single(&tree)).await.unwrap();
    assert_eq!(
        keys(&exported.response),
        [
            "containerimage.config.digest",
            "containerimage.descriptor",
            "containerimage.digest",
            "image.name"
        ]
    );
    assert_eq!(exported.response["image.name"], "docker.io/golden/app:2");
    let root = descriptor(&exported.response);
    assert_eq!(root.platform.as_ref().unwrap().format(), "linux/amd64");
    assert!(root.annotations.contains_key("org.opencontainers.image.created"));
    assert_eq!(root.annotations.len(), 1);
    // What the receiver of the file is told is what the caller is told.
    assert_eq!(*world.told.lock().unwrap(), exported.response);

    let layout = Layout::unpack(
        std::fs::File::open(world.at("out.file")).unwrap(),
        &world.at("unpacked"),
        Limits::NONE,
    )
    .unwrap();
    let list = tar_list(&world.at("out.file"));
    let names: Vec<_> = list.iter().map(|line| line.rsplit(' ').next().unwrap()).collect();
    assert!(names.is_sorted(), "{names:?}");
    assert_eq!(list[0], "0755 0 0 blobs/");
    assert_eq!(list[1], "0755 0 0 blobs/sha256/");
    assert!(list[2].starts_with("0444 "));
    assert_eq!(names[names.len() - 3..], ["index.json", "manifest.json", "oci-layout"]);
    assert!(list[list.len() - 1].starts_with("0444 30 0 "));
    assert!(list[list.len() - 2].starts_with("0644 "));
    let images = layout.images();
    assert_eq!(images[0].names, ["docker.io/golden/app:2"]);
    let body = std::fs::read(layout.blob_path(&root.digest)).unwrap();
    let manifest = Manifest::parse("m", &body).unwrap();
    assert_eq!(manifest.layers.len(), 2);
    assert!(manifest.layers.iter().all(|layer| layer.annotations.is_empty()));
    let config = std::fs::read(layout.blob_path(&manifest.config.digest)).unwrap();
    let config = ImageConfig::parse("c", &config).unwrap();
    let lines: Vec<_> =
        config.history.iter().map(|h| format!("{} {}", h.created_by, h.comment)).collect();
    assert_eq!(
        lines,
        [
            "pulled from x buildkit.exporter.image.v0",
            "mount / from exec /bin/w buildkit.exporter.image.v0"
        ]
    );
    assert_eq!(config.created, config.history[1].created);
    let steps = world.seen.lines.lock().unwrap().join("\n");
    let steps = steps
        .replace(&root.digest.to_string(), "M")
        .replace(&manifest.config.digest.to_string(), "C");
    expect![[r#"
        exporting layers
        exporting config C
        exporting manifest M
        sending tarball"#]]
    .assert_eq(&steps);
}

#[tokio::test]
async fn image_is_named_in_the_store() {
    let world = World::new().await;
    let tree = world.layer(None, "x", &[("a", "a")]).await;
    let attrs = [
        ("name", "myapp,other.io/x:2"),
        ("name-canonical", "true"),
        ("dangling-name-prefix", "none.io/d"),
    ];
    let exported = world.export("image", &attrs, 0, single(&tree)).await.unwrap();
    let digest = &exported.response["containerimage.digest"];
    assert_eq!(exported.response["image.name"], format!("myapp,other.io/x:2,none.io/d@{digest}"));
    let mut names: Vec<_> =
        world.store.images().list().into_iter().map(|image| image.name).collect();
    names.sort();
    assert_eq!(
        names,
        [
            "docker.io/library/myapp:latest".to_owned(),
            format!("docker.io/library/myapp:latest@{digest}"),
            format!("none.io/d@{digest}"),
            "other.io/x:2".to_owned(),
            format!("other.io/x:2@{digest}"),
        ]
    );
    // The descriptor has no annotations and names the platform.
    let root = descriptor(&exported.response);
    assert!(root.annotations.is_empty());
    assert_eq!(root.platform.unwrap().format(), "linux/amd64");
    // Collecting garbage keeps what the names need.
    drop(tree);
    let kept = world.store.images().get("other.io/x:2").unwrap();
    let body = world.store.content().read(&kept.descriptor.digest, 1 << 20).unwrap();
    let manifest = Manifest::parse("m", &body).unwrap();
    assert!(manifest.layers.iter().all(|layer| world.store.content().contains(&layer.digest)));

    let nameless = world.export("image", &[], 0, exporter::ExportResult::default()).await.unwrap();
    assert!(!nameless.response.contains_key("image.name"));
}

#[tokio::test]
async fn platforms_and_statements_make_an_index() {
    let world = World::new().await;
    let amd = world.layer(None, "x", &[("amd", "a")]).await;
    let arm = world.layer(None, "x", &[("arm", "b")]).await;
    let mut result = two_platforms(&amd, &arm);
    let statement = Attestation {
        predicate_type: "https://slsa.dev/provenance/v1".into(),
        predicate: Bytes::from_static(br#"{ "b": 1, "a": "<" }"#).into(),
        subjects: Vec::new(),
        path: "provenance.json".into(),
        inline_only: true,
        core: None,
    };
    result.attestations.insert("linux/amd64".into(), vec![statement]);
    let attrs = [
        ("name", "h.io/app:1"),
        ("annotation-index.k", "index"),
        ("annotation[linux/arm64].k", "arm"),
        ("annotation-manifest-descriptor.d", "all"),
        ("annotation-index-descriptor.r", "root"),
        ("compression", "zstd"),
    ];
    let exported = world.export("image", &attrs, 0, result.clone()).await.unwrap();
    assert_eq!(
        keys(&exported.response),
        ["containerimage.descriptor", "containerimage.digest", "image.name"]
    );
    let root = descriptor(&exported.response);
    assert_eq!(root.annotations["r"], "root");
    let read = |digest: &base::Digest| world.store.content().read(digest, 1 << 20).unwrap();
    let index = Index::parse("i", &read(&root.digest)).unwrap();
    assert_eq!(index.annotations["k"], "index");
    let shape: Vec<_> = index
        .manifests
        .iter()
        .map(|entry| {
            let manifest = Manifest::parse("m", &read(&entry.digest)).unwrap();
            format!(
                "{} {:?} {} {:?}",
                entry.platform.as_ref().unwrap().format(),
                entry.annotations.keys().collect::<Vec<_>>(),
                manifest.layers[0].media_type,
                manifest.annotations,
            )
        })
        .collect();
    expect![[r#"
        linux/amd64 ["d"] application/vnd.oci.image.layer.v1.tar+zstd {}
        linux/arm64 ["d"] application/vnd.oci.image.layer.v1.tar+zstd {"k": "arm"}
        unknown/unknown ["vnd.docker.reference.digest", "vnd.docker.reference.type"] application/vnd.in-toto+json {}"#]]
    .assert_eq(&shape.join("\n"));
    let attestation = Manifest::parse("m", &read(&index.manifests[2].digest)).unwrap();
    let body = read(&attestation.layers[0].digest);
    let expected = format!(
        r#"{{"_type":"https://in-toto.io/Statement/v1","predicateType":"https://slsa.dev/provenance/v1","subject":[{{"name":"pkg:docker/h.io/app@1?platform=linux%2Famd64","digest":{{"sha256":"{}"}}}}],"predicate":{{"b":1,"a":"\u003c"}}}}"#,
        index.manifests[0].digest.hex()
    );
    assert_eq!(String::from_utf8_lossy(&body), expected);
    // An index has all statements; an image alone is no index because of inline-only ones;
    // docker's takes no index of platforms.
    let exported = world.export("oci", &[], 0, result.clone()).await.unwrap();
    let layout = Layout::unpack(
        std::fs::File::open(world.at("out.file")).unwrap(),
        &world.at("u"),
        Limits::NONE,
    )
    .unwrap();
    let root = descriptor(&exported.response);
    let index = Index::parse("i", &std::fs::read(layout.blob_path(&root.digest)).unwrap()).unwrap();
    assert_eq!(index.manifests.len(), 3);
    let mut alone = single(&amd);
    alone.attestations.clone_from(&result.attestations);
    let exported = world.export("oci", &[], 0, alone).await.unwrap();
    assert!(exported.response.contains_key("containerimage.config.digest"));
    let error = world.export("docker", &[], 0, result).await.err().unwrap();
    assert_eq!(text(&error), "docker exporter does not currently support exporting manifest lists");
}

#[tokio::test]
async fn content_store_instead_of_tar() {
    let world = World::new().await;
    let tree = world.layer(None, "x", &[("a", "a")]).await;
    let exported = world.export("oci", &[("tar", "false")], 0, single(&tree)).await.unwrap();
    let digest: base::Digest = exported.response["containerimage.digest"].parse().unwrap();
    let blob = |digest: &base::Digest| {
        std::fs::read(world.at("layout/blobs/sha256").join(digest.hex())).unwrap()
    };
    let manifest = Manifest::parse("m", &blob(&digest)).unwrap();
    assert_eq!(base::Digest::of(blob(&manifest.layers[0].digest)), manifest.layers[0].digest);
    assert_eq!(base::Digest::of(blob(&manifest.config.digest)), manifest.config.digest);
    // Once more: the client has everything.
    world.export("oci", &[("tar", "false")], 0, single(&tree)).await.unwrap();
}

#[tokio::test]
async fn equal_input_gives_equal_digests_under_an_epoch() {
    let mut digests = Vec::new();
    for _ in 0..2 {
        let world = World::new().await;
        let lower = world.layer(None, "a", &[("etc/a", "a")]).await;
        let tree = world.layer(Some(&lower), "b", &[("out/b", "b")]).await;
        let attrs = [("source-date-epoch", "1700000000"), ("rewrite-timestamp", "true")];
        let exported = world.export("oci", &attrs, 0, single(&tree)).await.unwrap();
        let root = descriptor(&exported.response);
        assert_eq!(root.annotations["org.opencontainers.image.created"], "2023-11-14T22:13:20Z");
        let layout = Layout::unpack(
            std::fs::File::open(world.at("out.file")).unwrap(),
            &world.at("u"),
            Limits::NONE,
        )
        .unwrap();
        let body = std::fs::read(layout.blob_path(&root.digest)).unwrap();
        let manifest = Manifest::parse("m", &body).unwrap();
        for layer in &manifest.layers {
            assert_eq!(layer.annotations["buildkit/rewritten-timestamp"], "1700000000");
        }
        digests.push(exported.response);
        std::thread::sleep(std::time::Duration::from_millis(1100));
    }
    assert_eq!(digests[0], digests[1]);
    let world = World::new().await;
    let tree = world.layer(None, "a", &[("a", "a")]).await;
    world.export("oci", &[("rewrite-timestamp", "true")], 0, single(&tree)).await.unwrap();
    let warning = "warning: rewrite-timestamp is specified, but no source-date-epoch was found";
    assert!(world.seen.lines.lock().unwrap().iter().any(|line| line == warning));
}

#[tokio::test]
async fn bad_requests_are_refused_before_the_build() {
    let world = World::new().await;
    let exporters = exporter::Exporters::new(world.store.clone());
    let check = |kind: &str, attrs: &[(&str, &str)]| {
        text(&exporters.resolve(kind, map(attrs), 30).err().expect("refused"))
    };
    assert_eq!(check("moby", &[]), "exporter \"moby\" could not be found");
    assert!(check("image", &[("push", "perhaps")]).contains("expected true or false"));
    assert!(check("image", &[("push", ""), ("name", "BAD")]).contains("must be lowercase"));
    assert!(check("oci", &[("name", "a b")]).contains("invalid reference format"));
    assert!(check("local", &[("mode", "move")]).contains("expected copy or delete"));
    assert!(check("image", &[("unpack", ""), ("rewrite-timestamp", "1")]).contains("conflicts"));
    assert!(
        check("image", &[("annotation-foo.x", "1")]).contains("unrecognized annotation type foo")
    );

    let tree = world.layer(None, "x", &[("a", "a")]).await;
    let check = async |attrs: &[(&str, &str)], metadata: &[(&str, &str)]| {
        let mut result = single(&tree);
        for (key, value) in metadata {
            result.metadata.insert((*key).to_owned(), (*value).to_owned().into());
        }
        text(&world.export("image", attrs, 0, result).await.err().expect("refused"))
    };
    expect!["index annotations not supported for single platform export"]
        .assert_eq(&check(&[("annotation-index.k", "v")], &[]).await);
    expect!["invalid annotation: no platform linux/s390x found in source"]
        .assert_eq(&check(&[("annotation[linux/s390x].k", "v")], &[]).await);
    expect!["invalid image config: os and architecture must be specified together"]
        .assert_eq(&check(&[], &[("containerimage.config", "{\"architecture\":\"x\"}")]).await);
    expect!["image config for export: missing os"]
        .assert_eq(&check(&[], &[("containerimage.config", "{}")]).await);
    expect!["refs.platforms: invalid empty platforms index for exporter"]
        .assert_eq(&check(&[], &[("refs.platforms", "{}")]).await);
}
