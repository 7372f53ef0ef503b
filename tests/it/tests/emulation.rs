//! Steps for another machine than this one, and on older kernels than this one.

use std::{fs, os::unix::fs::PermissionsExt as _};

use it::{Context, Daemon, can_run, has};

const SAID: &[u8; 14] = b"from aarch64!\n";

/// A program for 64-bit ARM that writes [`SAID`] and ends.
fn program() -> Vec<u8> {
    const BASE: u64 = 0x40_0000;
    let code: [u32; 8] = [
        0xd280_0020, // x0 = 1, standard output
        0x1000_00e1, // x1 = what follows the code
        0xd280_01c2, // x2 = 14
        0xd280_0808, // x8 = write
        0xd400_0001,
        0xd280_0000, // x0 = 0
        0xd280_0ba8, // x8 = exit
        0xd400_0001,
    ];
    let headers = 64 + 56;
    let size = (headers + 4 * code.len() + SAID.len()) as u64;
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(16, 0);
    for (value, width) in [(2_u64, 2), (183, 2), (1, 4), (BASE + headers as u64, 8), (64, 8)] {
        file.extend(&value.to_le_bytes()[..width]);
    }
    for (value, width) in [(0_u64, 8), (0, 4), (64, 2), (56, 2), (1, 2), (0, 2), (0, 2), (0, 2)] {
        file.extend(&value.to_le_bytes()[..width]);
    }
    // One segment: the whole file, readable and executable.
    for (value, width) in
        [(1_u64, 4), (5, 4), (0, 8), (BASE, 8), (BASE, 8), (size, 8), (size, 8), (0x1000, 8)]
    {
        file.extend(&value.to_le_bytes()[..width]);
    }
    assert_eq!(file.len(), headers);
    file.extend(code.iter().flat_map(|word| word.to_le_bytes()));
    file.extend(SAID);
    file
}

#[test]
fn foreign_programs_run_by_an_emulator_or_say_what_is_missing() {
    if !can_run() || std::env::consts::ARCH != "x86_64" {
        return;
    }
    let context = Context::new("");
    context.write("Dockerfile", b"FROM scratch\nCOPY --chmod=755 said /said\nRUN [\"/said\"]\n");
    context.write("said", &program());
    let mode = fs::Permissions::from_mode(0o755);
    fs::set_permissions(context.path().join("said"), mode).expect("make it a program");
    let daemon = Daemon::start();
    let build = ["build", "--platform", "linux/arm64", "--progress", "plain", &context.arg()];
    let platforms = daemon.ok(&["debug", "workers"]);
    if platforms.contains("linux/arm64") {
        let text = daemon.ok(&build);
        assert!(text.contains("from aarch64!"), "{text}");
    } else if !has("qemu-aarch64-static") {
        let text = daemon.fails(&build);
        assert!(text.contains("install an emulator"), "{text}");
    } else {
        panic!("an emulator is installed, but the daemon does not know it: {platforms}");
    }
}

#[test]
fn steps_share_trees_on_kernels_that_cannot_clone_detached_mounts() {
    if !can_run() {
        return;
    }
    let daemon = Daemon::start_with_env(&[("RBUILD_KEEP_MOUNTS", "1")]);
    let context = Context::new(
        "FROM base AS one\n\
         RUN --mount=type=cache,target=/c echo one >> /c/x; sleep 1; cat /c/x > /seen\n\
         FROM base AS two\n\
         RUN --mount=type=cache,target=/c echo two >> /c/x; sleep 1; cat /c/x > /seen\n\
         FROM base\n\
         COPY --from=one /seen /one\n\
         COPY --link --from=two /seen /two\n\
         RUN --mount=type=bind,from=one,source=/seen,target=/f --mount=type=bind,from=one,target=/d \\\n\
         cmp /f /d/seen && grep one /one && grep two /two && mkdir /made && rm /bin/cat\n\
         RUN test -d /made && test ! -e /bin/cat\n",
    );
    daemon.ok(&["build", "--progress", "plain", &context.arg()]);
    daemon.ok(&["build", "--progress", "plain", "--no-cache", &context.arg()]);
    assert!(daemon.log().contains("kept in a namespace"), "{}", daemon.log());
    daemon.left_clean();
}
