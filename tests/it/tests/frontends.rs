//! Frontends that are images, given as named contexts so that no registry is needed, or pulled from
//! one; and images of a registry as named contexts.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path, process::Command};

use it::{BUSYBOX, Context, Daemon, can_run, has, net::Registry};

/// A folder that is a frontend image: what runs is the script `/run`.
fn frontend(script: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("make a folder");
    let at = |name: &str| folder.path().join(name);
    fs::create_dir(at("bin")).expect("make a folder");
    fs::copy(BUSYBOX, at("bin/busybox")).expect("copy busybox");
    for name in ["sh", "env", "sleep"] {
        std::os::unix::fs::symlink("busybox", at("bin").join(name)).expect("link a program");
    }
    fs::write(at("run"), format!("#!/bin/sh\n{script}\n")).expect("write the script");
    fs::set_permissions(at("run"), fs::Permissions::from_mode(0o755)).expect("make it a program");
    folder
}

fn build(daemon: &Daemon, script: &str) -> String {
    let image = frontend(script);
    let context = Context::new("");
    context.write("Dockerfile", b"# syntax=some/frontend:1 and words\n");
    let given = format!("some/frontend:1={}", image.path().display());
    daemon.fails(&["build", "--progress", "plain", "--build-context", &given, &context.arg()])
}

#[test]
fn a_frontend_that_fails_is_told() {
    if !can_run() {
        return;
    }
    let daemon = Daemon::start();
    let text = build(&daemon, "env >&2; echo $BUILDKIT_EXPORTEDPRODUCT: last words >&2; exit 7");
    assert!(text.contains("frontend image some/frontend:1 failed: exit code: 7"), "{text}");
    assert!(text.contains("buildkit: last words"), "{text}");
    assert!(text.contains("# syntax=some/frontend:1 and words"), "{text}");
    let text = build(&daemon, "echo \"$BUILDKIT_WORKERS\" >&2; exit 1");
    assert!(text.contains("\"platforms\":[{\"architecture\":"), "{text}");
    let text = build(&daemon, "exit 0");
    assert!(text.contains("no result for incomplete build"), "{text}");
    let text = build(&daemon, "exec /bin/none");
    assert!(text.contains("exit code: 127"), "{text}");
    daemon.left_clean();
}

#[test]
fn frontends_can_be_restricted() {
    if !can_run() {
        return;
    }
    let folder = tempfile::tempdir().expect("make a folder");
    let config = folder.path().join("buildkitd.toml");
    let settings = "[frontend.\"gateway.v0\"]\nallowedRepositories = [\"docker/dockerfile\"]\n";
    fs::write(&config, settings).expect("write the configuration");
    let daemon = Daemon::start_with(&["--config", &config.display().to_string()]);
    let text = build(&daemon, "exit 7");
    assert!(text.contains("'some/frontend:1' is not an allowed gateway source"), "{text}");
    fs::write(&config, "[frontend.\"gateway.v0\"]\nenabled = false\n").expect("write it anew");
    let daemon = Daemon::start_with(&["--config", &config.display().to_string()]);
    let text = build(&daemon, "exit 7");
    assert!(text.contains("invalid frontend: gateway.v0"), "{text}");
}

#[test]
fn a_cancelled_build_ends_its_frontend() {
    if !can_run() {
        return;
    }
    let daemon = Daemon::start();
    let image = frontend("exec sleep 9173");
    let context = Context::new("");
    context.write("Dockerfile", b"# syntax=some/frontend:1\n");
    let given = format!("some/frontend:1={}", image.path().display());
    let mut client = daemon
        .command(&["build", "--build-context", &given, &context.arg()])
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .expect("start rbuildctl");
    let limit = std::time::Duration::from_secs(20);
    it::eventually(limit, "the frontend runs", || !Daemon::processes("sleep 9173").is_empty());
    client.kill().expect("kill the client");
    client.wait().expect("wait for the client");
    it::eventually(limit, "the frontend ended", || Daemon::processes("sleep 9173").is_empty());
    daemon.left_clean();
}

/// Copies a program and the libraries it is linked to, to where it looks for them.
fn with_libraries(program: &Path, folder: &Path, name: &str) {
    fs::copy(program, folder.join(name)).expect("copy the program");
    let list = Command::new("ldd").arg(program).output().expect("start ldd");
    let list = String::from_utf8(list.stdout).expect("ldd writes text");
    for library in list.split_whitespace().filter(|word| word.starts_with('/')) {
        let to = folder.join(library.trim_start_matches('/'));
        fs::create_dir_all(to.parent().expect("a file has a folder")).expect("make a folder");
        fs::copy(library, to).expect("copy a library");
    }
}

#[test]
fn a_syntax_line_pulls_a_frontend_from_a_registry() {
    if !can_run() || !has("docker-registry") || !has("ldd") {
        return;
    }
    let (registry, first) = (Registry::start(), Daemon::start());
    let image = Context::new("");
    image.write("Dockerfile", b"FROM scratch\nCOPY root /\nENTRYPOINT [\"/frontend\", \"-x\"]\n");
    fs::create_dir(image.path().join("root")).expect("make a folder");
    let program = Path::new(env!("CARGO_BIN_EXE_frontend"));
    with_libraries(program, &image.path().join("root"), "frontend");
    let name = format!("{}/lang/lines:2", registry.address);
    first.ok(&["build", "-o", &format!("type=image,name={name},push=true"), &image.arg()]);
    // Another daemon, which has to pull it.
    let daemon = Daemon::start();
    let context = Context::new("");
    let text =
        "file /text some words\nopt /arg build-arg:A\nopt /cmd cmdline\nopt /src source\ntree /t\n";
    context.write("Dockerfile", format!("# syntax={name} and words\n{text}").as_bytes());
    context.write("dir/one", b"1");
    let out = tempfile::tempdir().expect("make a folder");
    let dest = format!("type=local,dest={}", out.path().display());
    let said = daemon.ok(&[
        "build",
        "--progress",
        "plain",
        "--build-arg",
        "A=b c",
        "-o",
        &dest,
        &context.arg(),
    ]);
    let read = |path: &str| fs::read_to_string(out.path().join(path)).expect("read a file");
    assert_eq!(read("text"), "some words");
    assert_eq!(read("arg"), "b c");
    assert_eq!(read("cmd"), format!("{name} and words"));
    assert_eq!(read("src"), name);
    assert_eq!(read("t/dir/one"), "1");
    assert!(said.contains(&format!("docker-image://{name}")), "{said}");
    assert!(said.contains("made by an image"), "{said}");
    // The same by an argument, and what the frontend says of a mistake.
    context.write("Dockerfile", b"file /text other words\n");
    let syntax = format!("BUILDKIT_SYNTAX={name}");
    daemon.ok(&["build", "--build-arg", &syntax, "-o", &dest, &context.arg()]);
    assert_eq!(read("text"), "other words");
    context.write("Dockerfile", b"fiel /text other words\n");
    let said = daemon.fails(&["build", "--build-arg", &syntax, "-o", &dest, &context.arg()]);
    assert!(said.contains("unknown word \"fiel\""), "{said}");
    daemon.left_clean();
}

#[test]
fn images_of_a_registry_are_named_contexts() {
    if !can_run() || !has("docker-registry") {
        return;
    }
    let (registry, first) = (Registry::start(), Daemon::start());
    let made = Context::new("");
    made.write("Dockerfile", b"FROM scratch\nARG TARGETARCH\nCOPY <<E /who\n$TARGETARCH\nE\n");
    let name = format!("{}/team/base:1", registry.address);
    let push = format!("type=image,name={name},push=true");
    first.ok(&["build", "--platform", "linux/amd64,linux/arm64", "-o", &push, &made.arg()]);
    made.write("Dockerfile", b"FROM scratch\nCOPY <<E /who\nspecial\nE\n");
    let special = format!("{}/team/special:1", registry.address);
    let push = format!("type=image,name={special},push=true");
    first.ok(&["build", "--platform", "linux/arm64", "-o", &push, &made.arg()]);
    let daemon = Daemon::start();
    let context = Context::new("");
    let text = b"FROM unknown.example/base:3 AS one\nFROM scratch\nCOPY --from=one /who /stage\n\
                 COPY --from=other /who /image\nCOPY <<E /env\n$FROM\nE\n";
    context.write("Dockerfile", text);
    let build = |contexts: &[String], file: &str| {
        let out = tempfile::tempdir().expect("make a folder");
        let dest = format!("type=local,dest={}", out.path().display());
        let place = context.arg();
        let mut args = vec!["build", "--platform", "linux/amd64,linux/arm64", "-o", &dest, &place];
        args.extend(contexts.iter().flat_map(|given| ["--build-context", given]));
        daemon.ok(&args);
        ["linux_amd64", "linux_arm64"].map(|platform| {
            let text = fs::read_to_string(out.path().join(platform).join(file));
            text.expect("read a file").trim_end().to_owned()
        })
    };
    let base = format!("unknown.example/base:3=docker-image://{name}");
    let other = format!("other=docker-image://{name}");
    assert_eq!(build(&[base.clone(), other.clone()], "stage"), ["amd64", "arm64"]);
    assert_eq!(build(&[base.clone(), other.clone()], "image"), ["amd64", "arm64"]);
    // One platform has its own.
    let only = format!("other::linux/arm64=docker-image://{special}");
    assert_eq!(build(&[base.clone(), other, only], "image"), ["amd64", "special"]);
    // By digest, with the tag gone.
    let digest = base::Digest::of(registry.get("/v2/team/base/manifests/1"));
    let repository = name.trim_end_matches(":1");
    let other = format!("other=docker-image://{repository}@{digest}");
    assert_eq!(build(&[base, other], "image"), ["amd64", "arm64"]);
    daemon.left_clean();
}
