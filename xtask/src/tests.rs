//! All tests, as CI and people run them.

use std::{
    io::{BufRead as _, BufReader, Read, Write},
    process::{Command, Stdio},
};

use anyhow::{Context as _, bail};

use crate::{cargo, fuzz, packages, root, run, show, target, tidy};

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
    whole_workspace(args)?;
    interop()
}

/// Name of the target with the whole-system tests, as cargo names it when it failed.
const SYSTEM: &str = "`-p it --test system`";

/// All Rust tests. Whole-system tests run many daemons, registries and containers side by side; if
/// only some of those fail, each has to pass alone, and is named as unsteady.
fn whole_workspace(args: &[String]) -> anyhow::Result<()> {
    let mut command = cargo();
    command.args(["test", "--workspace", "--no-fail-fast"]).args(args);
    let shown = show(&command);
    eprintln!("$ {shown}");
    let mut child =
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().context("run cargo")?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let errors = std::thread::spawn(move || copy(stderr, std::io::stderr()));
    let results = copy(stdout, std::io::stdout());
    let errors = errors.join().expect("copying does not panic");
    let status = child.wait().context("wait for cargo")?;
    if status.success() {
        return Ok(());
    }
    let targets: Vec<&str> = errors.iter().filter_map(|line| failed_target(line)).collect();
    let unsteady = failed_tests(&results);
    if targets != [SYSTEM] || unsteady.is_empty() {
        bail!("{shown}: {status}");
    }
    for name in &unsteady {
        run(cargo().args(["test", "--workspace", "--test", "system", "--", "--exact", name]))?;
    }
    println!("unsteady, passed alone: {}", unsteady.join(" "));
    Ok(())
}

/// Passes lines on and keeps them.
fn copy(from: Option<impl Read>, mut to: impl Write) -> Vec<String> {
    let mut lines = Vec::new();
    for line in from.into_iter().flat_map(|from| BufReader::new(from).split(b'\n')) {
        let Ok(mut line) = line else { break };
        line.push(b'\n');
        _ = to.write_all(&line);
        lines.push(String::from_utf8_lossy(&line).trim_end().to_owned());
    }
    lines
}

/// The target that a line of cargo's says to have failed: the lines of its closing list.
fn failed_target(line: &str) -> Option<&str> {
    line.strip_prefix("    ").filter(|name| name.starts_with("`-p ") && name.ends_with('`'))
}

/// The tests that failed: those that a test program lists just before its result.
fn failed_tests(lines: &[String]) -> Vec<&str> {
    let mut failed = Vec::new();
    for (at, line) in lines.iter().enumerate() {
        if line.starts_with("test result: FAILED") {
            let listed = lines[..at].iter().rev().skip_while(|line| line.is_empty());
            failed.extend(listed.map_while(|line| line.strip_prefix("    ")));
        }
    }
    failed
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_read() {
        let lines = "test a ... FAILED\n\nfailures:\n\n---- a stdout ----\n    no\n\nfailures:\n    gc::a\n    b\n\n\
                     test result: FAILED. 1 passed; 2 failed";
        let lines: Vec<String> = lines.lines().map(str::to_owned).collect();
        assert_eq!(failed_tests(&lines), ["b", "gc::a"]);
        assert_eq!(failed_target("    `-p it --test system`"), Some(SYSTEM));
        assert_eq!(failed_target("error: 1 target failed:"), None);
    }
}
