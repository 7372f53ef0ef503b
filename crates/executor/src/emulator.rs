//! Finds helpers that run programs of other machines.

use std::{
    env,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

/// The helper for an architecture (by its name in platforms) on the daemon's `PATH`. To be used,
/// as [`Spec::emulator`](crate::Spec::emulator), when this machine cannot run it natively.
pub fn find(architecture: &str) -> Option<PathBuf> {
    find_in(architecture, &env::var_os("PATH")?)
}

fn find_in(architecture: &str, path: &std::ffi::OsStr) -> Option<PathBuf> {
    let name = format!("buildkit-qemu-{}", qemu_name(architecture));
    env::split_paths(path).map(|folder| folder.join(&name)).find(|path| is_program(path))
}

/// What QEMU calls an architecture.
fn qemu_name(architecture: &str) -> &str {
    match architecture {
        "arm64" => "aarch64",
        "amd64" => "x86_64",
        "386" => "i386",
        other => other,
    }
}

fn is_program(path: &Path) -> bool {
    path.metadata().is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn helpers_are_found_by_their_own_names() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("buildkit-qemu-aarch64");
        std::fs::write(&path, "").unwrap();
        assert_eq!(find_in("arm64", folder.path().as_os_str()), None);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(find_in("arm64", folder.path().as_os_str()), Some(path));
        assert_eq!(find_in("riscv64", folder.path().as_os_str()), None);
    }
}
