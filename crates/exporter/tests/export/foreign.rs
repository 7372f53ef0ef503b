//! What other programs make of our layouts; each is skipped with a word if it is not installed.

use std::process::Command;

use crate::{World, single, two_platforms};

/// Output of a program, or `None` if it is not there.
fn run(program: &str, args: &[&str]) -> Option<String> {
    match Command::new(program).args(args).output() {
        Ok(output) => {
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            let error = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{program} {args:?}: {error}");
            Some(text)
        }
        Err(_) => {
            eprintln!("skipped: {program} is not installed");
            None
        }
    }
}

#[tokio::test]
async fn skopeo_reads_tars() {
    let world = World::new().await;
    let lower = world.layer(None, "x", &[("etc/a", "a")]).await;
    let tree = world.layer(Some(&lower), "x", &[("b", "b")]).await;
    for (kind, transport, compression) in [
        ("oci", "oci-archive", "gzip"),
        ("oci", "oci-archive", "zstd"),
        ("docker", "docker-archive", "gzip"),
        ("docker", "docker-archive", "uncompressed"),
    ] {
        let attrs = [("name", "h.io/app:1"), ("compression", compression)];
        world.export(kind, &attrs, 0, single(&tree)).await.unwrap();
        let image = format!("{transport}:{}", world.at("out.file").display());
        let Some(text) = run("skopeo", &["inspect", "--config", &image]) else { return };
        assert!(
            text.contains("\"architecture\":\"amd64\"")
                || text.contains("\"architecture\": \"amd64\""),
            "{text}"
        );
        let target = format!("dir:{}", world.at(&format!("copied-{kind}-{compression}")).display());
        run("skopeo", &["copy", &image, &target]);
    }
    // All platforms of an index.
    let both = two_platforms(&tree, &lower);
    world.export("oci", &[("name", "h.io/app:1")], 0, both).await.unwrap();
    let image = format!("oci-archive:{}", world.at("out.file").display());
    let target = format!("oci:{}:all", world.at("all").display());
    run("skopeo", &["copy", "--all", &image, &target]);
    let arm = ["--override-arch", "arm64", "inspect", "--config", &image];
    assert!(run("skopeo", &arm).is_some_and(|text| text.contains("arm64")));
}

#[tokio::test]
async fn umoci_unpacks_layouts() {
    let world = World::new().await;
    let lower = world.layer(None, "x", &[("etc/a", "a"), ("etc/gone", "x")]).await;
    let tree = world.layer(Some(&lower), "x", &[("b", "b")]).await;
    world.export("oci", &[("name", "h.io/app:1")], 0, single(&tree)).await.unwrap();
    let layout = world.at("unpacked");
    std::fs::create_dir_all(&layout).unwrap();
    let (file, folder) = (world.at("out.file").display().to_string(), layout.display().to_string());
    run("tar", &["-xf", &file, "-C", &folder]);
    let (image, bundle) = (format!("{folder}:1"), world.at("bundle").display().to_string());
    if run("umoci", &["unpack", "--image", &image, &bundle]).is_none() {
        return;
    }
    assert_eq!(std::fs::read_to_string(world.at("bundle/rootfs/etc/a")).unwrap(), "a");
    assert_eq!(std::fs::read_to_string(world.at("bundle/rootfs/b")).unwrap(), "b");
}
