//! Remote caches: what one daemon built, another one need not.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
};

use it::{Context, Daemon, can_run, text};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../golden").join(name)
}

/// Builds a recorded definition with a recorded cache; gives what was printed and the files.
fn import(cache: &str) -> (String, tempfile::TempDir) {
    let daemon = Daemon::start();
    let out = tempfile::tempdir().expect("make a folder");
    let definition = fs::File::open(golden("llb/35-cache-chain-ocilayout.pb")).expect("open");
    let output = daemon
        .command(&["build", "--progress", "plain"])
        .args(["--oci-layout", &format!("tiny={}", golden("cache-export/base-image").display())])
        .args(["--import-cache", &format!("type=local,src={}", golden(cache).display())])
        .args(["--output", &format!("type=local,dest={}", out.path().display())])
        .stdin(Stdio::from(definition))
        .output()
        .expect("run rbuildctl");
    let printed = text(&output);
    assert!(output.status.success(), "{printed}\n{}", daemon.log());
    (printed, out)
}

#[test]
fn recorded_caches_make_every_step_hit() {
    if !can_run() {
        return;
    }
    for cache in ["cache-export/image-chain-min", "cache-export/image-chain-max"] {
        let (printed, out) = import(cache);
        assert_eq!(printed.matches("CACHED").count(), 4, "{cache}:\n{printed}");
        let read = |name: &str| fs::read_to_string(out.path().join(name)).expect("read a file");
        assert_eq!((read("one"), read("two")), ("step one\n".into(), "step two\n".into()));
    }
}

/// A build whose second run elsewhere would give another file.
fn context() -> Context {
    let context = Context::new(
        "COPY early /early\nRUN cat /proc/sys/kernel/random/uuid > /id\nRUN cp /id /copy\n\
         FROM scratch\nCOPY --from=1 /id /copy /\n",
    );
    context.write("early", b"1");
    let file = context.path().join("Dockerfile");
    let text = fs::read_to_string(&file).unwrap();
    let text = text.replace("COPY early", "FROM base AS work\nCOPY early");
    fs::write(&file, text.replace("--from=1", "--from=work")).unwrap();
    context
}

fn build(daemon: &Daemon, context: &Context, args: &[&str]) -> (String, String) {
    let out = tempfile::tempdir().expect("make a folder");
    let output = format!("type=local,dest={}", out.path().display());
    let arg = context.arg();
    let mut all = vec!["build", "--progress", "plain", "-o", &output];
    all.extend(args);
    all.push(&arg);
    let printed = daemon.ok(&all);
    (printed, fs::read_to_string(out.path().join("copy")).expect("read a file"))
}

#[test]
fn what_one_daemon_exports_another_imports() {
    if !can_run() {
        return;
    }
    let (first, context) = (Daemon::start(), context());
    let forms = [
        ("", 5),
        ("mode=max,", 5),
        ("mode=max,compression=zstd,force-compression=true,", 5),
        ("mode=max,oci-mediatypes=false,", 5),
        ("image-manifest=false,", 5),
    ];
    let mut id = None;
    for (number, (form, hits)) in forms.into_iter().enumerate() {
        let cache = context.path().join(format!("cache{number}"));
        let to = format!("type=local,{form}dest={}", cache.display());
        let from = format!("type=local,src={}", cache.display());
        let (printed, made) = build(&first, &context, &["--cache-to", &to]);
        assert!(printed.contains("exporting cache to client directory"), "{printed}");
        let id = id.get_or_insert(made);
        let (printed, got) = build(&Daemon::start(), &context, &["--cache-from", &from]);
        assert_eq!(&got, id, "{form}:\n{printed}");
        assert!(printed.matches("CACHED").count() >= hits, "{form}:\n{printed}");
    }
}

#[test]
fn a_cache_that_cannot_be_read_or_is_of_an_unknown_kind() {
    if !can_run() {
        return;
    }
    let (daemon, context) = (Daemon::start(), context());
    let nowhere = "type=registry,ref=127.0.0.1:1/none:latest";
    let (printed, _) = build(&daemon, &context, &["--cache-from", nowhere]);
    assert!(printed.contains("importing cache manifest from 127.0.0.1:1/none:latest"), "{printed}");
    let arg = context.arg();
    let printed = daemon.fails(&["build", "--cache-to", "type=s3,bucket=b,region=r", &arg]);
    assert!(printed.contains("registry, local and inline"), "{printed}");
    let to = "type=registry,ref=127.0.0.1:1/none:latest,ignore-error=true";
    build(&daemon, &context, &["--cache-to", to]);
    daemon.fails(&["build", "--cache-to", "type=registry,ref=127.0.0.1:1/none:latest", &arg]);
}
