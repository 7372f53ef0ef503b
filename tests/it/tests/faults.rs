//! Bad input, broken connections, killed processes, full disks: a clear error, and nothing left.

use std::{
    fs,
    io::Write as _,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use it::{Context, Daemon, can_run, eventually, text};

/// Builds `dockerfile` (after the base), which must fail, and gives what was printed.
fn refused(daemon: &Daemon, dockerfile: &str) -> String {
    let context = Context::new(dockerfile);
    daemon.fails(&["build", "--progress", "plain", &context.arg()])
}

#[test]
fn mistakes_in_the_dockerfile_are_named_with_their_line() {
    if !can_run() {
        return;
    }
    let daemon = Daemon::start();
    let unknown = refused(&daemon, "RNU echo\n");
    assert!(
        unknown.contains("RNU") && unknown.contains("RUN") && unknown.contains("Dockerfile:4"),
        "{unknown}"
    );
    let missing = refused(&daemon, "COPY no/such/file /\n");
    assert!(missing.contains("no/such/file") && missing.contains("Dockerfile:4"), "{missing}");
    let failing = refused(&daemon, "RUN echo last words; exit 7\n");
    assert!(failing.contains("exit code: 7") && failing.contains("last words"), "{failing}");
    assert!(failing.contains("Dockerfile:4"), "{failing}");
    let command = refused(&daemon, "RUN no-such-program\n");
    assert!(command.contains("not found") && command.contains("127"), "{command}");
    // Without a shell nobody gives its codes.
    let missing = refused(&daemon, "RUN [\"/no/such/program\"]\n");
    assert!(missing.contains("\"/no/such/program\": stat"), "{missing}");
    assert!(missing.contains("exit code: 1\n"), "{missing}");
    daemon.left_clean();
}

#[test]
fn an_unknown_base_image_is_named() {
    if !can_run() {
        return;
    }
    let daemon = Daemon::start();
    let context = Context::new("");
    context.write("Dockerfile", b"FROM 127.0.0.1:1/no/such:image\nRUN true\n");
    let failed = daemon.fails(&["build", "--progress", "plain", &context.arg()]);
    assert!(
        failed.contains("127.0.0.1:1/no/such:image") && failed.contains("Dockerfile:1"),
        "{failed}"
    );
    daemon.left_clean();
}

#[test]
fn graphs_that_are_none_are_refused() {
    if !can_run() {
        return;
    }
    let daemon = Daemon::start();
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../golden/llb/10-exec.pb");
    let good = fs::read(golden).unwrap();
    for broken in [&b"not a graph"[..], &good[..good.len() / 2], &[0x0a, 0x00]] {
        let mut child = daemon
            .command(&["build"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(broken).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(!output.status.success(), "{}", text(&output));
    }
    daemon.left_clean();
}

/// A tar made of raw entries: name, type, link name, data.
fn tar(entries: &[(&str, u8, &str, &[u8])]) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, kind, link, data) in entries {
        let mut header = [0u8; 512];
        header[..name.len()].copy_from_slice(name.as_bytes());
        header[100..107].copy_from_slice(b"0000644");
        header[108..115].copy_from_slice(b"0000000");
        header[116..123].copy_from_slice(b"0000000");
        header[124..135].copy_from_slice(format!("{:011o}", data.len()).as_bytes());
        header[136..147].copy_from_slice(b"00000000000");
        header[156] = *kind;
        header[157..157 + link.len()].copy_from_slice(link.as_bytes());
        header[257..265].copy_from_slice(b"ustar\x0000");
        header[148..156].copy_from_slice(b"        ");
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        out.extend_from_slice(&header);
        out.extend_from_slice(data);
        out.resize(out.len().next_multiple_of(512), 0);
    }
    out.extend_from_slice(&[0; 1024]);
    out
}

#[test]
fn hostile_tars_stay_inside() {
    if !can_run() {
        return;
    }
    let daemon = Daemon::start();
    let context = Context::new("ADD evil.tar /\n");
    let outside = context.path().join("outside");
    fs::create_dir(&outside).unwrap();
    let link = outside.display().to_string();
    for evil in [
        tar(&[("../../../../../../tmp/rbuild-escaped", b'0', "", b"x")]),
        tar(&[("door", b'2', &link, b""), ("door/escaped", b'0', "", b"x")]),
        tar(&[("hard", b'1', "/etc/passwd", b"")]),
    ] {
        context.write("evil.tar", &evil);
        let output = daemon.ctl(&["build", "--progress", "plain", &context.arg()]);
        println!("{}", text(&output));
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
        assert!(!Path::new("/tmp/rbuild-escaped").exists());
    }
    let whole = tar(&[("a", b'0', "", &[7; 5000])]);
    context.write("evil.tar", &whole[..2000]);
    let cut = daemon.fails(&["build", "--progress", "plain", &context.arg()]);
    assert!(cut.contains("evil.tar"), "{cut}");
    daemon.left_clean();
}

#[test]
fn a_client_that_goes_away_stops_its_steps() {
    if !can_run() {
        return;
    }
    let daemon = Daemon::start();
    let context = Context::new("RUN sleep 31415\n");
    let mut client = daemon
        .command(&["build", "--progress", "plain", &context.arg()])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    eventually(Duration::from_secs(30), "the step runs", || {
        !Daemon::processes("sleep 31415").is_empty()
    });
    client.kill().unwrap();
    client.wait().unwrap();
    eventually(Duration::from_secs(10), "the step is gone", || {
        Daemon::processes("sleep 31415").is_empty()
    });
    daemon.left_clean();
    daemon.ok(&["build", &Context::new("RUN true\n").arg()]);
}

#[test]
fn a_killed_daemon_leaves_nothing_and_starts_again() {
    if !can_run() {
        return;
    }
    let mut daemon = Daemon::start();
    let context = Context::new("RUN echo kept > /kept\nRUN sleep 27182\n");
    let mut client = daemon
        .command(&["build", "--progress", "plain", &context.arg()])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    eventually(Duration::from_secs(30), "the step runs", || {
        !Daemon::processes("sleep 27182").is_empty()
    });
    daemon.kill();
    client.wait().unwrap();
    eventually(Duration::from_secs(10), "the step died with its daemon", || {
        Daemon::processes("sleep 27182").is_empty()
    });
    daemon.restart();
    daemon.left_clean();
    context.dockerfile("RUN echo kept > /kept\nRUN cat /kept > /again\n");
    daemon.ok(&["build", "-t", "app:1", &context.arg()]);
    assert_eq!(daemon.ok(&["run", "--rm", "app:1", "cat", "/again"]), "kept\n");
}

#[test]
fn one_state_folder_has_one_daemon() {
    if !can_run() {
        return;
    }
    let daemon = Daemon::start();
    let second = Command::new(it::program("rbuildd"))
        .arg("--root")
        .arg(daemon.state())
        .args(["--addr", &format!("unix://{}/other.sock", daemon.state().display())])
        .output()
        .unwrap();
    let said = text(&second);
    assert!(!second.status.success() && said.contains("could not lock"), "{said}");
    assert!(said.contains(&daemon.pid().to_string()), "the holder is named: {said}");
    daemon.ok(&["debug", "workers"]);
}

#[test]
fn a_full_disk_fails_the_build_and_not_the_daemon() {
    if !can_run() {
        return;
    }
    let disk = it::SmallDisk::new("96m");
    let daemon = Daemon::with_state(&disk.path().join("state"));
    let full = refused(&daemon, "RUN dd if=/dev/zero of=/big bs=1M count=200\n");
    assert!(full.to_lowercase().contains("no space left"), "{full}");
    daemon.left_clean();
    daemon.ok(&["prune", "--all"]);
    daemon.ok(&["build", &Context::new("RUN echo fits > /small\n").arg()]);
}

#[test]
fn a_daemon_that_is_asked_to_end_lets_builds_finish() {
    if !can_run() {
        return;
    }
    let mut daemon = Daemon::start_with(&["--drain-timeout", "30s"]);
    let context = Context::new("RUN sleep 2.7182\nRUN echo done > /done\n");
    let client = daemon
        .command(&["build", "--progress", "plain", &context.arg()])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    eventually(Duration::from_secs(30), "the step runs", || {
        !Daemon::processes("sleep 2.7182").is_empty()
    });
    let asked = Command::new("kill").arg(daemon.pid().to_string()).status().unwrap();
    assert!(asked.success());
    eventually(Duration::from_secs(5), "no more builds are taken", || {
        let refused = daemon.ctl(&["build", "--progress", "plain", &context.arg()]);
        !refused.status.success() && text(&refused).contains("takes no more builds")
    });
    let output = client.wait_with_output().unwrap();
    assert!(output.status.success(), "{}\n{}", text(&output), daemon.log());
    daemon.ended();
}

#[test]
fn where_overlay_is_not_wanted_files_are_copied() {
    if !can_run() {
        return;
    }
    let mut daemon = Daemon::start_with(&["--oci-worker-snapshotter", "native"]);
    let context = Context::new(
        "RUN echo 1 > /one && rm /bin/ls\nRUN test ! -e /bin/ls && echo 2 > /two\n\
         FROM scratch\nCOPY --link --from=base /one /one\nCOPY --link --from=base /two /two\n",
    );
    let out = tempfile::tempdir().unwrap();
    let output = format!("type=local,dest={}", out.path().display());
    daemon.ok(&["build", "-o", &output, &context.arg()]);
    assert_eq!(fs::read_to_string(out.path().join("two")).unwrap(), "2\n");
    daemon.stop();
    daemon.restart();
    let again = daemon.ok(&["build", "--progress", "plain", "-t", "app:1", &context.arg()]);
    // The last merge is found, so nobody asks for its first part.
    assert_eq!(again.matches("CACHED").count(), 5, "{again}");
    daemon.ok(&["verify"]);
    daemon.left_clean();
}
