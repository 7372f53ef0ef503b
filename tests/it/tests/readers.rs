//! Images as other programs read them.

use std::{
    fs,
    process::{Child, Command},
    time::Duration,
};

use it::{Context, Daemon, can_run, eventually, has, text};

fn succeeds(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?} failed:\n{}", text(&output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn app() -> Context {
    let context = Context::new(
        "RUN mkdir -p /app && echo content > /app/file && ln -s file /app/link\nENV COLOUR=blue\nCMD [\"cat\", \"/app/file\"]\n",
    );
    context.write("x", b"x");
    context
}

#[test]
fn an_oci_tar_is_read_by_skopeo_umoci_and_buildah() {
    if !can_run() || !has("skopeo") || !has("umoci") || !has("buildah") {
        return;
    }
    let daemon = Daemon::start();
    let context = app();
    let tar = context.path().join("image.tar");
    for compression in ["gzip", "zstd"] {
        let output =
            format!("type=oci,dest={},name=app:1,compression={compression}", tar.display());
        daemon.ok(&["build", "-o", &output, &context.arg()]);
        let archive = format!("oci-archive:{}", tar.display());
        let inspected = succeeds(Command::new("skopeo").args(["inspect", &archive]));
        assert!(inspected.contains("COLOUR=blue"), "{inspected}");
    }
    let output = format!("type=oci,dest={},name=app:1", tar.display());
    daemon.ok(&["build", "-o", &output, &context.arg()]);
    let layout = context.path().join("layout");
    let target = format!("oci:{}:1", layout.display());
    let archive = format!("oci-archive:{}", tar.display());
    succeeds(Command::new("skopeo").args(["copy", "--insecure-policy", &archive, &target]));
    let bundle = context.path().join("bundle");
    succeeds(
        Command::new("umoci")
            .args(["unpack", "--image", &format!("{}:1", layout.display())])
            .arg(&bundle),
    );
    assert_eq!(fs::read_to_string(bundle.join("rootfs/app/file")).unwrap(), "content\n");
    assert_eq!(fs::read_link(bundle.join("rootfs/app/link")).unwrap().to_str(), Some("file"));

    let storage = context.path().join("storage");
    let buildah = || {
        let mut command = Command::new("buildah");
        command.arg("--root").arg(storage.join("root")).arg("--runroot").arg(storage.join("run"));
        command.args(["--storage-driver", "vfs"]);
        command
    };
    let policy = context.path().join("policy.json");
    fs::write(&policy, r#"{"default": [{"type": "insecureAcceptAnything"}]}"#).unwrap();
    let name = succeeds(buildah().args(["from", "--signature-policy"]).arg(&policy).arg(&archive));
    let ran = succeeds(buildah().args([
        "run",
        "--isolation",
        "chroot",
        name.trim(),
        "--",
        "cat",
        "/app/file",
    ]));
    assert_eq!(ran, "content\n");
    succeeds(buildah().args(["rm", name.trim()]));
}

#[test]
fn a_docker_tar_is_read_by_skopeo() {
    if !can_run() || !has("skopeo") {
        return;
    }
    let daemon = Daemon::start();
    let context = app();
    let tar = context.path().join("image.tar");
    daemon.ok(&[
        "build",
        "-o",
        &format!("type=docker,dest={},name=app:1", tar.display()),
        &context.arg(),
    ]);
    let inspected = succeeds(
        Command::new("skopeo").args(["inspect", &format!("docker-archive:{}", tar.display())]),
    );
    assert!(inspected.contains("COLOUR=blue"), "{inspected}");
}

/// A registry on a free port.
struct Registry(Child, u16);

impl Registry {
    fn start(folder: &std::path::Path) -> Self {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let config = format!(
            "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: 127.0.0.1:{port}\n",
            folder.join("registry").display()
        );
        fs::write(folder.join("registry.yml"), config).unwrap();
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(folder.join("registry.yml"))
            .spawn()
            .unwrap();
        let registry = Self(child, port);
        eventually(Duration::from_secs(10), "the registry answers", || {
            std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()
        });
        registry
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

#[test]
fn an_image_goes_to_a_registry_and_comes_back() {
    if !can_run() || !has("docker-registry") {
        return;
    }
    let context = app();
    let registry = Registry::start(context.path());
    let name = format!("127.0.0.1:{}/team/app:1", registry.1);
    let pusher = Daemon::start();
    pusher.ok(&["build", "-o", &format!("type=image,name={name},push=true"), &context.arg()]);
    let puller = Daemon::start();
    let again = Context::new("");
    again.write(
        "Dockerfile",
        format!("FROM {name}\nRUN test \"$(cat /app/file)\" = content && test $COLOUR = blue\n")
            .as_bytes(),
    );
    puller.ok(&["build", "-t", "again:1", &again.arg()]);
    assert_eq!(puller.ok(&["run", "--rm", "again:1"]), "content\n");
}

#[test]
fn what_skopeo_writes_is_read() {
    if !can_run() || !has("docker-registry") || !has("skopeo") {
        return;
    }
    let context = app();
    let registry = Registry::start(context.path());
    let writer = Daemon::start();
    writer.ok(&["build", "-t", "app:1", &context.arg()]);
    let tar = context.path().join("app.tar");
    writer.ok(&["save", "-o", &tar.display().to_string(), "app:1"]);
    let source = format!("docker-archive:{}:app:1", tar.display());
    let reader = Daemon::start();
    let forms: [&[&str]; 3] =
        [&["--format", "v2s2"], &["--format", "oci", "--dest-compress-format", "zstd"], &[]];
    for (number, form) in forms.into_iter().enumerate() {
        let name = format!("127.0.0.1:{}/team/app:{number}", registry.1);
        succeeds(
            Command::new("skopeo")
                .args(["copy", "--insecure-policy", "--dest-tls-verify=false"])
                .args(form)
                .args([&source, &format!("docker://{name}")]),
        );
        let ran = reader.ok(&["run", "--rm", "-q", &name]);
        assert_eq!(ran, "content\n", "{form:?}");
        reader.ok(&["rmi", &name]);
    }
    let archive = context.path().join("again.tar");
    let target = format!("oci-archive:{}:again:1", archive.display());
    succeeds(Command::new("skopeo").args(["copy", "--insecure-policy", &source, &target]));
    reader.ok(&["load", "-i", &archive.display().to_string()]);
    assert_eq!(reader.ok(&["run", "--rm", "again:1"]), "content\n");
}
