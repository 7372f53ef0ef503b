//! Pushes, to the strict registry in memory.

use bytes::Bytes;
use exporter::Attestation;
use oci::{Index, Manifest, Reference, Registry as _};

use crate::{World, single, text, two_platforms};

#[tokio::test]
async fn single_image_by_tag_and_by_digest() {
    let world = World::new().await;
    let tree = world.layer(None, "x", &[("a", "a")]).await;
    let attrs = [("name", "h.io/app:1,h.io/app"), ("push", "true")];
    let exported = world.export("image", &attrs, 0, single(&tree)).await.unwrap();
    let digest = &exported.response["containerimage.digest"];
    for name in ["h.io/app:1", "h.io/app:latest"] {
        let found = world.memory.resolve(&Reference::parse(name).unwrap()).await.unwrap();
        assert_eq!(found.digest.to_string(), *digest);
    }
    let lines = world.seen.lines.lock().unwrap().join("\n");
    assert!(lines.contains(&format!("pushing manifest for h.io/app:latest@{digest}")), "{lines}");

    let attrs = [("name", "h.io/other"), ("push-by-digest", "true"), ("push", "true")];
    let exported = world.export("image", &attrs, 0, single(&tree)).await.unwrap();
    let other = Reference::parse("h.io/other").unwrap();
    assert!(world.memory.tags(&other).await.unwrap().is_empty());
    let digest = exported.response["containerimage.digest"].parse().unwrap();
    assert!(world.memory.resolve(&other.with_digest(digest)).await.is_ok());
}

#[tokio::test]
async fn index_with_everything_below_it() {
    let world = World::new().await;
    let amd = world.layer(None, "x", &[("amd", "a")]).await;
    let arm = world.layer(None, "x", &[("arm", "b")]).await;
    let mut result = two_platforms(&amd, &arm);
    let statement = Attestation {
        predicate_type: "t".into(),
        predicate: Bytes::from_static(b"{}").into(),
        subjects: Vec::new(),
        path: "s".into(),
        inline_only: false,
        core: None,
    };
    result.attestations.insert("linux/arm64".into(), vec![statement]);
    let attrs = [("name", "h.io/multi:1"), ("push", "")];
    world.export("image", &attrs, 0, result).await.unwrap();
    let name = Reference::parse("h.io/multi:1").unwrap();
    let root = world.memory.resolve(&name).await.unwrap();
    let index = Index::parse("i", &world.memory.manifest(&name, &root).await.unwrap()).unwrap();
    assert_eq!(index.manifests.len(), 3);
    for entry in &index.manifests {
        let body = world.memory.manifest(&name, entry).await.unwrap();
        let manifest = Manifest::parse("m", &body).unwrap();
        assert!(!manifest.layers.is_empty());
    }
}

#[tokio::test]
async fn an_unchanged_image_costs_one_look() {
    let world = World::new().await;
    let tree = world.layer(None, "x", &[("a", "a")]).await;
    let attrs = [("name", "h.io/app:1"), ("push", "true")];
    world.export("image", &attrs, 0, single(&tree)).await.unwrap();
    world.memory.take_log();
    world.export("image", &attrs, 0, single(&tree)).await.unwrap();
    assert_eq!(world.memory.take_log(), ["look for h.io/app:1"]);
}

#[tokio::test]
async fn a_failed_push_names_what_and_where() {
    let world = World::new().await;
    let tree = world.layer(None, "x", &[("a", "a")]).await;
    world.memory.set_offline(true);
    let attrs = [("name", "h.io/app:1"), ("push", "true")];
    let error = world.export("image", &attrs, 0, single(&tree)).await.err().unwrap();
    let error = text(&error);
    assert!(error.starts_with("failed to push h.io/app:1: look for h.io/app:1:"), "{error}");
    assert!(error.ends_with("registry h.io did not answer: connection refused"), "{error}");
    // The image is in the store all the same.
    assert!(world.store.images().get("h.io/app:1").is_some());
}

#[tokio::test]
async fn layers_of_the_base_are_mounted_not_sent() {
    let world = World::new().await;
    let source = Reference::parse("h.io/base:1").unwrap();
    let mut body = Vec::new();
    base::gotar::write_end(&mut body).unwrap();
    let blob = world.memory.add_blob(&source, oci::media::OCI_LAYER, &body);
    let descriptor = blob
        .annotate(oci::types::ANNOTATION_UNCOMPRESSED, base::Digest::of(&body).to_string())
        .annotate(&format!("{}h.io", oci::types::ANNOTATION_DISTRIBUTION_SOURCE), "base");
    let lower = world
        .store
        .image(store::ImageLayers {
            layers: vec![store::ImageLayer {
                descriptor: descriptor.clone(),
                diff_id: base::Digest::of(&body),
                created_at: None,
                description: None,
            }],
            provider: Some(world.memory.clone()),
            description: "pulled from h.io/base:1".into(),
            kind: store::RecordKind::Regular,
            image_name: None,
            keeps: Vec::new(),
        })
        .unwrap()
        .unwrap();
    let attrs = [("name", "h.io/new:1"), ("push", "true"), ("store", "false")];
    world.export("image", &attrs, 0, single(&lower)).await.unwrap();
    let log = world.memory.take_log();
    // The lazy layer was neither fetched nor sent.
    assert!(!log.contains(&format!("blob {}", descriptor.digest)), "{log:?}");
    let new = Reference::parse("h.io/new:1").unwrap();
    assert!(world.memory.resolve(&new).await.is_ok());
    // Unpacked and built upon, it is mounted all the same.
    lower.ensure_local(store::no_progress()).await.unwrap();
    let tree = world.layer(Some(&lower), "x", &[("a", "a")]).await;
    let attrs = [("name", "h.io/newer:1"), ("push", "true")];
    world.export("image", &attrs, 0, single(&tree)).await.unwrap();
    let log = world.memory.take_log();
    assert!(log.contains(&format!("mount {} from h.io/base", descriptor.digest)), "{log:?}");
}
