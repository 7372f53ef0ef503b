//! Finds what runs programs of other machines.
//!
//! Either the kernel starts an emulator by itself (`binfmt_misc`, as Debian's `qemu-user-static`
//! registers it), or a helper is bound into the container and put before the arguments: BuildKit's
//! own (`buildkit-qemu-…`), which also runs what the program starts, or a static QEMU, which runs
//! the program alone. Invariant: a helper is never used where the kernel knows what to do.

use std::{
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

/// Where the kernel tells what it starts emulators for.
const REGISTERED: &str = "/proc/sys/fs/binfmt_misc";

/// Whether the kernel starts an emulator for this architecture (by its name in platforms).
pub fn is_registered(architecture: &str) -> bool {
    is_registered_in(architecture, Path::new(REGISTERED))
}

/// The helper for an architecture in these folders, to be used as
/// [`Spec::emulator`](crate::Spec::emulator).
pub fn find(architecture: &str, folders: &[PathBuf]) -> Option<PathBuf> {
    let name = qemu_name(architecture);
    let names = [format!("buildkit-qemu-{name}"), format!("qemu-{name}-static")];
    let mut candidates =
        names.iter().flat_map(|name| folders.iter().map(move |folder| folder.join(name)));
    candidates.find(|path| is_program(path))
}

fn is_registered_in(architecture: &str, folder: &Path) -> bool {
    let entry = folder.join(format!("qemu-{}", qemu_name(architecture)));
    std::fs::read_to_string(entry).is_ok_and(|text| text.starts_with("enabled"))
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
        let folders = [folder.path().to_owned()];
        let make = |name: &str, mode| {
            let path = folder.path().join(name);
            std::fs::write(&path, "").unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            path
        };
        make("buildkit-qemu-aarch64", 0o644);
        assert_eq!(find("arm64", &folders), None);
        let plain = make("qemu-aarch64-static", 0o755);
        assert_eq!(find("arm64", &folders), Some(plain));
        let own = make("buildkit-qemu-aarch64", 0o755);
        assert_eq!(find("arm64", &folders), Some(own));
        assert_eq!(find("riscv64", &folders), None);
    }

    #[test]
    fn disabled_entries_do_not_count() {
        let folder = tempfile::tempdir().unwrap();
        let entry = folder.path().join("qemu-aarch64");
        assert!(!is_registered_in("arm64", folder.path()));
        std::fs::write(&entry, "enabled\ninterpreter /usr/bin/qemu-aarch64-static\n").unwrap();
        assert!(is_registered_in("arm64", folder.path()));
        std::fs::write(&entry, "disabled\n").unwrap();
        assert!(!is_registered_in("arm64", folder.path()));
    }
}
