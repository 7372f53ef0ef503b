//! All tests, as CI and people run them.

use std::process::Command;

use anyhow::{Context as _, bail};

use crate::{cargo, fuzz, packages, root, run, target, tidy};

/// Programs that tests use, with their Debian packages. Tests that need a missing one say that they
/// were skipped.
const PROGRAMS: &[(&str, &str)] = &[
    ("busybox", "busybox-static"),
    ("runc", "runc"),
    ("crun", "crun"),
    ("skopeo", "skopeo"),
    ("umoci", "umoci"),
    ("buildah", "buildah"),
    ("docker-registry", "docker-registry"),
    ("git", "git"),
    ("openssl", "openssl"),
    ("sshd", "openssh-server"),
    ("ssh", "openssh-client"),
    ("qemu-aarch64-static", "qemu-user-static"),
];

/// How long CI runs each fuzz target.
const FUZZ_SECONDS: u64 = 60;

/// Unit, integration and whole-system tests, then the official Go client.
pub fn test(args: &[String]) -> anyhow::Result<()> {
    if !packages::is_root() {
        eprintln!("not root: tests of mounts and containers will be skipped");
    }
    packages::ensure(PROGRAMS);
    // The whole-system tests drive the real programs.
    run(cargo().args(["build", "-p", "rbuildd", "-p", "rbuildctl"]))?;
    run(cargo().args(["test", "--workspace", "--no-fail-fast"]).args(args))?;
    interop()
}

/// The Go client against our daemon.
fn interop() -> anyhow::Result<()> {
    if !packages::has("go") || !packages::is_root() {
        println!("interop: skipped, it needs Go and root");
        return Ok(());
    }
    let folder = std::env::temp_dir().join(format!("rbuild-interop-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let address = format!("unix://{}", folder.join("rbuildd.sock").display());
    let mut daemon = Command::new(target().join("debug/rbuildd"))
        .args(["--root", &folder.join("state").display().to_string(), "--addr", &address])
        .args([
            "--allow-insecure-entitlement",
            "network.host",
            "--allow-insecure-entitlement",
            "security.insecure",
        ])
        .spawn()
        .context("start rbuildd")?;
    let tested = run(Command::new("go")
        .current_dir(root().join("tests/interop"))
        .args(["test", "-count=1", "-timeout=20m", "./..."])
        .env("RBUILD_ADDR", &address));
    let stopped =
        Command::new("kill").arg(daemon.id().to_string()).status().and_then(|_| daemon.wait());
    _ = std::fs::remove_dir_all(&folder);
    tested?;
    match stopped {
        Ok(status) if status.success() => Ok(()),
        other => bail!("rbuildd did not end well after the interop tests: {other:?}"),
    }
}

/// What CI runs.
pub fn ci() -> anyhow::Result<()> {
    run(cargo().args(["fmt", "--all", "--check"]))?;
    tidy::check(&root())?;
    // Lints that the workspace denies fail here; the rest are shown.
    run(cargo().args(["clippy", "--workspace", "--all-targets"]))?;
    test(&[])?;
    fuzz::all(FUZZ_SECONDS)
}
