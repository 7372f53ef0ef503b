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

/// A real registry, where `docker-registry` and `skopeo` are installed.
#[tokio::test]
async fn pushed_images_are_read_from_a_real_registry() {
    let folder = tempfile::tempdir().unwrap();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let address = format!("127.0.0.1:{port}");
    let root = folder.path().display();
    let config = format!(
        "version: 0.1\nlog: {{level: error}}\nstorage:\n  filesystem: {{rootdirectory: {root}/data}}\nhttp:\n  addr: {address}\n"
    );
    std::fs::write(folder.path().join("config.yml"), config).unwrap();
    let serve = Command::new("docker-registry")
        .arg("serve")
        .arg(folder.path().join("config.yml"))
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn();
    let Ok(mut child) = serve else {
        eprintln!("skipped: docker-registry is not installed");
        return;
    };
    while std::net::TcpStream::connect(&address).is_err() {
        assert!(child.try_wait().unwrap().is_none(), "docker-registry ended");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    let world = World::new().await;
    let amd = world.layer(None, "x", &[("amd", "a")]).await;
    let arm = world.layer(None, "x", &[("arm", "b")]).await;
    let client = oci::registry::Client::new(oci::registry::Options::default());
    let registries: exporter::Registries = std::sync::Arc::new(move |insecure| {
        let anonymous = std::sync::Arc::new(oci::registry::Anonymous);
        std::sync::Arc::new(client.session(anonymous, insecure))
    });
    for (name, result, types) in [
        ("single:1", single(&amd), "true"),
        ("single:docker", single(&amd), "false"),
        ("multi:1", two_platforms(&amd, &arm), "true"),
        ("multi:docker", two_platforms(&amd, &arm), "false"),
    ] {
        let name = format!("{address}/{name}");
        let attrs = [("name", name.as_str()), ("push", "true"), ("oci-mediatypes", types)];
        let exporters = exporter::Exporters::new(world.store.clone());
        let exporter = exporters.resolve("image", crate::map(&attrs), 30).unwrap();
        let mut request = world.request(0, result);
        request.registries = registries.clone();
        let exported = exporter.export(request).await.unwrap();
        exported.finish.unwrap().await.unwrap();
        let image = format!("docker://{name}");
        let args = ["inspect", "--tls-verify=false", "--format", "{{.Digest}}", &image];
        let Some(text) = run("skopeo", &args) else { break };
        assert_eq!(text.trim(), exported.response["containerimage.digest"]);
        let target = format!("oci:{}:x", folder.path().join("copied").display());
        run("skopeo", &["copy", "--src-tls-verify=false", "--all", &image, &target]);
    }
    _ = child.kill();
    _ = child.wait();
}

/// What skopeo writes in docker's form, with links between layers, is read as the same image.
#[tokio::test]
async fn tars_of_skopeo_are_read() {
    let world = World::new().await;
    let lower = world.layer(None, "x", &[("etc/a", "a")]).await;
    let tree = world.layer(Some(&lower), "x", &[("b", "b")]).await;
    world.export("oci", &[("name", "h.io/app:1")], 0, single(&tree)).await.unwrap();
    let source = format!("oci-archive:{}", world.at("out.file").display());
    let saved = world.at("saved.tar");
    let target = format!("docker-archive:{}:h.io/app:2", saved.display());
    if run("skopeo", &["copy", &source, &target]).is_none() {
        return;
    }
    let file = std::fs::File::open(&saved).unwrap();
    let layout =
        oci::layout::Layout::unpack(file, &world.at("read"), oci::compress::Limits::default());
    let layout = layout.unwrap();
    let images = layout.images();
    assert_eq!(images.len(), 1);
    assert_eq!(images[0].names, ["h.io/app:2"]);
    let read = |digest: &base::Digest| std::fs::read(layout.blob_path(digest)).unwrap();
    let manifest = oci::Manifest::parse("m", &read(&images[0].descriptor.digest)).unwrap();
    let config = oci::ImageConfig::parse("c", &read(&manifest.config.digest)).unwrap();
    let diff_ids: Vec<_> = manifest.layers.iter().map(|layer| layer.digest).collect();
    assert_eq!(diff_ids, config.rootfs.diff_ids);
}
