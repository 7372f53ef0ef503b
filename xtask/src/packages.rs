//! What tests and the demo use beside a compiler, and how to get it on Debian.

use std::process::{Command, Stdio};

/// Whether a program is on the path.
pub fn has(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .any(|folder| folder.join(program).is_file())
}

/// Makes the programs available: pairs of program and Debian package. As root on Debian missing
/// ones are installed; else they are named. Returns those that are still missing.
pub fn ensure<'a>(wanted: &[(&'a str, &'a str)]) -> Vec<&'a str> {
    let missing = |wanted: &[(&'a str, &'a str)]| -> Vec<(&'a str, &'a str)> {
        wanted.iter().copied().filter(|(program, _)| !has(program)).collect()
    };
    let absent = missing(wanted);
    if absent.is_empty() {
        return Vec::new();
    }
    let packages: Vec<&str> = absent.iter().map(|(_, package)| *package).collect();
    if has("apt-get") && is_root() {
        eprintln!("installing {}", packages.join(" "));
        let apt = |args: &[&str]| {
            let mut command = Command::new("apt-get");
            command
                .env("DEBIAN_FRONTEND", "noninteractive")
                .args(args)
                .stdout(Stdio::null())
                .stdin(Stdio::null());
            command.status().is_ok_and(|status| status.success())
        };
        apt(&["update", "-q"]);
        let mut install = vec!["install", "-y", "-q", "--no-install-recommends"];
        install.extend(&packages);
        if !apt(&install) {
            // One package that cannot be had must not keep the others away.
            for package in &packages {
                apt(&["install", "-y", "-q", "--no-install-recommends", package]);
            }
        }
    }
    let left: Vec<&str> = missing(wanted).into_iter().map(|(program, _)| program).collect();
    if !left.is_empty() {
        eprintln!("missing: {} (Debian packages: {})", left.join(", "), packages.join(" "));
    }
    left
}

/// Whether we may install packages, mount and run containers.
pub fn is_root() -> bool {
    std::fs::read_to_string("/proc/self/status")
        .is_ok_and(|status| status.lines().any(|line| line.starts_with("Uid:\t0\t")))
}
