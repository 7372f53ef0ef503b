//! The same input gives the same image, wherever and whenever it is built.

use std::{
    fs,
    path::Path,
    process::Command,
    time::{Duration, SystemTime},
};

use it::{Context, Daemon, can_run, has, text};

/// Everything that likes to differ: times of files and folders, kinds of files, links, whiteouts.
const STEPS: &str = "WORKDIR /deep/er
COPY src /src/
COPY --chmod=751 src/one /chmod/
RUN date > /dev/null && mkdir /new && echo hi > /new/file && ln /new/file /new/hard && \\
    ln -s file /new/soft && mkfifo /new/fifo && touch -d '2040-01-01 00:00:00' /new/later && \\
    touch -d '2001-01-01 00:00:00' /new/earlier && chmod 4755 /new/later
RUN rm /src/one && mkdir -p /src/made/by && echo x >> /src/two
COPY --link src /linked/
COPY <<EOF /here
text
EOF
CMD [\"cat\", \"/here\"]
";

/// A context whose files have times of their own.
fn context(age: u64) -> Context {
    let context = Context::new(STEPS);
    let at = SystemTime::now() - Duration::from_secs(age);
    for name in ["src/two", "src/one"] {
        context.write(name, name.as_bytes());
        fs::File::open(context.path().join(name)).unwrap().set_modified(at).unwrap();
    }
    fs::File::open(context.path().join("src")).unwrap().set_modified(at).unwrap();
    context
}

fn git(folder: &Path, args: &[&str]) {
    let output = Command::new("git")
        .arg("-C")
        .arg(folder)
        .args(["-c", "user.name=someone", "-c", "user.email=someone@example.com"])
        .args(args)
        .env("GIT_COMMITTER_DATE", "2024-02-03T04:05:06Z")
        .output()
        .unwrap();
    assert!(output.status.success(), "git {args:?}: {}", text(&output));
}

#[test]
fn two_daemons_at_two_times_build_the_same_bytes() {
    if !can_run() {
        return;
    }
    let (first, second) = (Daemon::start_with_umask("022"), Daemon::start_with_umask("077"));
    let (one, two) = (context(10), context(100_000));
    let exports = ["gzip", "zstd", "estargz", "uncompressed"].map(|compression| {
        format!("type=oci,name=app:1,rewrite-timestamp=true,force-compression=true,compression={compression}")
    });
    let exports =
        exports.into_iter().chain(["type=docker,name=app:1,rewrite-timestamp=true".into()]);
    for (number, export) in exports.enumerate() {
        let built = [(&first, &one), (&second, &two)].map(|(daemon, context)| {
            let tar = context.path().join("image.tar");
            let output = format!("{export},dest={}", tar.display());
            daemon.ok(&[
                "build",
                "--build-arg",
                "SOURCE_DATE_EPOCH=1700000000",
                "-o",
                &output,
                &context.arg(),
            ]);
            // Once is enough: the layers are the same ones for all exports.
            if number == 0 {
                std::thread::sleep(Duration::from_millis(1100));
            }
            let data = fs::read(&tar).unwrap();
            fs::remove_file(tar).unwrap();
            data
        });
        assert!(built[0] == built[1], "{export} differs");
    }
}

#[test]
fn the_date_of_the_commit_makes_builds_reproducible() {
    if !can_run() || !has("git") {
        return;
    }
    let daemon = Daemon::start();
    let context = context(10);
    let outside = daemon.fails(&["build", "--reproducible", &context.arg()]);
    assert!(outside.contains("is not in a git checkout"), "{outside}");
    git(context.path(), &["init", "-q"]);
    git(context.path(), &["add", "."]);
    git(context.path(), &["commit", "-q", "-m", "first"]);
    daemon.ok(&["build", "--reproducible", "-t", "app:1", &context.arg()]);
    let created = daemon.ok(&["inspect", "-f", "{{.Created}} {{.Id}}", "app:1"]);
    assert!(created.starts_with("2024-02-03T04:05:06Z sha256:"), "{created}");
    let verified = daemon.ok(&["build", "--verify", "-t", "app:2", &context.arg()]);
    assert!(verified.contains("reproducible: sha256:"), "{verified}");
    assert!(!daemon.ok(&["images"]).contains("app   2"));

    let random = "RUN head -c 8 /dev/urandom > /random && mkdir /same && echo x > /same/file\n";
    context.dockerfile(&format!("{STEPS}{random}"));
    let differs = daemon.ctl(&["build", "--verify", &context.arg()]);
    assert_eq!(differs.status.code(), Some(1), "{}", text(&differs));
    let list = String::from_utf8_lossy(&differs.stdout);
    assert!(list.starts_with("not reproducible:"), "{list}");
    assert!(list.contains("random: content ") && !list.contains("same/file"), "{list}");
}
