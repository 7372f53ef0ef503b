//! Remote caches: what one daemon built, another one need not.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
};

use it::{
    Context, Daemon, can_run, has,
    net::{Registry, Server},
    text,
};

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

#[test]
fn caches_in_a_registry() {
    if !can_run() || !has("docker-registry") {
        return;
    }
    let (registry, first, context) = (Registry::start(), Daemon::start(), context());
    let oci = "application/vnd.oci.image.manifest.v1+json";
    let index = "application/vnd.oci.image.index.v1+json";
    let list = "application/vnd.docker.distribution.manifest.list.v2+json";
    let (gzip, zstd) = ("layer.v1.tar+gzip", "layer.v1.tar+zstd");
    let forms = [
        ("", oci, gzip, 1),
        ("mode=max,", oci, gzip, 4),
        ("mode=max,image-manifest=false,", index, gzip, 4),
        ("mode=max,oci-mediatypes=false,", list, "rootfs.diff.tar.gzip", 4),
        ("mode=max,compression=zstd,force-compression=true,", oci, zstd, 4),
        ("mode=max,compression=uncompressed,force-compression=true,", oci, "layer.v1.tar", 4),
        ("mode=max,compression=zstd,force-compression=true,compression-level=9,", oci, zstd, 4),
    ];
    let mut id = None;
    for (number, (form, kind, layer, least)) in forms.into_iter().enumerate() {
        let name = format!("team/cache:{number}");
        let reference = format!("{}/{name}", registry.address);
        let to = format!("type=registry,{form}ref={reference}");
        let (_, made) = build(&first, &context, &["--cache-to", &to]);
        let id = id.get_or_insert(made);
        let manifest = registry.manifest(&name);
        assert_eq!(manifest["mediaType"], kind, "{form}");
        let parts = if kind == oci { &manifest["layers"] } else { &manifest["manifests"] };
        let kinds = parts.as_array().unwrap().iter().map(|part| part["mediaType"].as_str());
        let layers = kinds.flatten().filter(|kind| kind.ends_with(layer)).count();
        assert!(layers >= least, "{form}: {manifest}");
        // Nothing but the cache is there to take the result from.
        let fresh = Daemon::start();
        let from = format!("type=registry,ref={reference}");
        let (printed, got) = build(&fresh, &context, &["--cache-from", &from]);
        assert_eq!(&got, id, "{form}:\n{printed}");
        assert!(printed.matches("CACHED").count() >= 5, "{form}:\n{printed}");
    }
}

#[test]
fn caches_inside_images() {
    if !can_run() || !has("docker-registry") {
        return;
    }
    let (registry, first) = (Registry::start(), Daemon::start());
    let context = Context::new(
        "COPY early /early\nRUN cat /proc/sys/kernel/random/uuid > /id\nRUN cp /id /copy\n",
    );
    context.write("early", b"1");
    let arg = context.arg();
    let image = format!("{}/team/app:1", registry.address);
    let push = format!("type=image,name={image},push=true");
    first.ok(&["build", "-o", &push, "--cache-to", "type=inline", &arg]);
    let manifest = registry.manifest("team/app:1");
    let digest = manifest["config"]["digest"].as_str().unwrap();
    let config = registry.get(&format!("/v2/team/app/blobs/{digest}"));
    assert!(String::from_utf8_lossy(&config).contains("moby.buildkit.cache.v0"));
    let (_, id) = build(&first, &context, &[]);
    for from in [format!("type=registry,ref={image}"), image.clone()] {
        let (printed, got) = build(&Daemon::start(), &context, &["--cache-from", &from]);
        assert_eq!(got, id, "{printed}");
        assert!(printed.matches("CACHED").count() >= 5, "{printed}");
    }
    // Without the option there is no cache to find.
    first.ok(&["build", "-o", &push, &arg]);
    let from = format!("type=registry,ref={image}");
    let (printed, _) = build(&Daemon::start(), &context, &["--cache-from", &from]);
    assert!(!printed.contains("CACHED"), "{printed}");
}

#[test]
fn a_cached_build_pulls_no_layer() {
    if !can_run() {
        return;
    }
    let layout = golden("cache-export/base-image");
    let server = Server::registry("127.0.0.1:0", "golden/tiny", "1", &layout);
    let cache = tempfile::tempdir().unwrap();
    let context = tempfile::tempdir().unwrap();
    let lines = "RUN [\"/bin/w\", \"/f\", \"text\"]\nCOPY Dockerfile /d\n";
    let text = format!("FROM {}/golden/tiny:1\n{lines}", server.address);
    fs::write(context.path().join("Dockerfile"), text).unwrap();
    let (to, from) = (
        format!("type=local,mode=max,dest={}", cache.path().display()),
        format!("type=local,src={}", cache.path().display()),
    );
    let arg = context.path().display().to_string();
    let layer = "blobs/sha256:153b8ae522ef187517823cc25526499d38e92b87c95a95916856b1289da5b4ea";
    let pulls = || server.asked().iter().filter(|asked| asked.ends_with(layer)).count();
    let first = Daemon::start();
    first.ok(&["build", "-o", "type=cacheonly", "--cache-to", &to, &arg]);
    assert_eq!(pulls(), 1, "{:?}", server.asked());
    let mut second = Daemon::start();
    for round in 0..3 {
        let build = ["build", "--progress", "plain", "-o", "type=cacheonly"];
        // Later on the keys are its own, after a restart too.
        let import = ["--cache-from", &from, &arg];
        let args = if round == 0 { &import[..] } else { &import[2..] };
        let printed = second.ok(&[&build[..], args].concat());
        assert_eq!(printed.matches("CACHED").count(), 2, "round {round}:\n{printed}");
        assert_eq!(pulls(), 1, "round {round}: {:?}", server.asked());
        if round == 1 {
            second.stop();
            second.restart();
        }
    }
}
