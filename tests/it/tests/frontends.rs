//! Frontends that are images, given as named contexts so that no registry is needed; and sources
//! under policies.

use std::{fs, os::unix::fs::PermissionsExt as _};

use it::{BUSYBOX, Context, Daemon, can_run};

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
