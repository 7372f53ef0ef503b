//! Recorded builds, replayed: the keys, links and caches that the original made of each definition.
//!
//! Every definition of `golden/cachekeys` is built by a fresh daemon, exporting a local cache with
//! mode `min` and then with mode `max`, as the recording was made; then both caches are imported by
//! further fresh daemons. Compared are, and nothing is left out for any definition:
//!
//! * the exported cache config, record by record in its order: digests, inputs, alternatives in
//!   their order, selectors, and per result its layers, each as "base" (equal digest of the
//!   uncompressed layer, that of the recorded image) or "made" (layers with times of the run in
//!   them: digests cannot be equal). That nothing is exported where nothing was;
//! * the manifest: its media types and the number of layers with their annotations' names (their
//!   order follows digests of the run). One annotation is left out: where the original has not
//!   fetched a layer yet, it tells under `containerd.io/distribution.source.*` whence it would;
//! * what each vertex reports as cached when the build is repeated with the import;
//! * the key store after the two builds, read from the daemon's state: every link (from, input,
//!   output, operation, selector, to) and every key with a result. Names of keys that have inputs
//!   are arbitrary, so a key is named by the set of ways that lead to it; keys made of session ids
//!   are all called "private". How many results a key has is not compared: it tells how often a
//!   private source was transferred anew.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use base::Digest;
use it::{
    Daemon, can_run, eventually, has,
    net::{Page, Server, in_own_network},
    text,
};
use serde_json::Value;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../golden").join(name)
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).expect("read a file")).expect("parse a file")
}

#[test]
fn recorded_builds_give_the_recorded_keys() {
    if !can_run() || !has("git") {
        return;
    }
    in_own_network(|| {
        let servers = Servers::start();
        let mut names: Vec<String> = fs::read_dir(golden("cachekeys"))
            .expect("list the recordings")
            .map(|entry| entry.unwrap().path().file_stem().unwrap().to_string_lossy().into_owned())
            .collect();
        names.sort();
        assert_eq!(names.len(), 28);
        if let Ok(only) = std::env::var("RBUILD_GOLDEN") {
            names.retain(|name| name.contains(&only));
        }
        let mut wrong = Vec::new();
        for name in &names {
            let differences = replay(name, &servers);
            if !differences.is_empty() {
                wrong.push(format!("== {name}\n{}", differences.join("\n")));
            }
        }
        assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
    });
}

/// What the definitions read: an image, a page, a repository and a folder.
struct Servers {
    folder: tempfile::TempDir,
    git: Child,
}

impl Servers {
    fn start() -> Self {
        Server::registry("127.0.0.1:5917", "golden/tiny", "1", &golden("cache-export/base-image"));
        let page = Page {
            headers: "Last-Modified: Tue, 02 Jan 2024 03:04:05 GMT\r\n".into(),
            body: b"hello over http\n".to_vec(),
        };
        Server::start("127.0.0.1:5918", HashMap::from([("/hello.txt".into(), page)]));
        let folder = tempfile::tempdir().expect("make a folder");
        client_folder(&folder.path().join("ctx"));
        repository(&folder.path().join("git/repo"));
        let programs = Command::new("git").arg("--exec-path").output().expect("run git");
        let programs = String::from_utf8(programs.stdout).expect("a path is text");
        // Not through `git`, whose end would leave the server behind.
        let git = Command::new(Path::new(programs.trim()).join("git-daemon"))
            .args(["--export-all", "--reuseaddr", "--listen=127.0.0.1", "--port=5919"])
            .arg(format!("--base-path={}", folder.path().join("git").display()))
            .args(["--base-path-relaxed", "--log-destination=none"])
            .stdin(Stdio::null())
            .spawn()
            .expect("start git daemon");
        eventually(Duration::from_secs(10), "git answers", || {
            std::net::TcpStream::connect("127.0.0.1:5919").is_ok()
        });
        Self { folder, git }
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        _ = self.git.kill();
        _ = self.git.wait();
    }
}

fn client_folder(folder: &Path) {
    fs::create_dir_all(folder).expect("make a folder");
    let tree = json(&golden("cache-export/context.json"));
    for entry in tree["entries"].as_array().expect("a list") {
        let path = folder.join(entry["path"].as_str().expect("a path"));
        match entry["type"].as_str() {
            Some("dir") => fs::create_dir(&path).expect("make a folder"),
            Some("symlink") => symlink(entry["linkname"].as_str().unwrap(), &path).expect("link"),
            _ => fs::write(&path, entry["content"].as_str().unwrap()).expect("write a file"),
        }
        if entry["type"] != "symlink" {
            let mode = u32::from_str_radix(entry["mode"].as_str().unwrap(), 8).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("change a mode");
        }
    }
}

fn repository(folder: &Path) {
    fs::create_dir_all(folder.join("sub")).expect("make a folder");
    fs::write(folder.join("README"), "readme\n").expect("write a file");
    fs::write(folder.join("sub/f"), "sub\n").expect("write a file");
    let git = |args: &[&str]| {
        let mut command = Command::new("git");
        for person in ["AUTHOR", "COMMITTER"] {
            command
                .env(format!("GIT_{person}_NAME"), "g")
                .env(format!("GIT_{person}_EMAIL"), "g@example.com")
                .env(format!("GIT_{person}_DATE"), "2024-01-02T03:04:05Z");
        }
        let output = command.current_dir(folder).args(args).output().expect("run git");
        assert!(output.status.success(), "git {args:?}: {}", text(&output));
        text(&output)
    };
    git(&["init", "-q", "-b", "main"]);
    git(&["add", "."]);
    git(&["commit", "-q", "-m", "one"]);
    assert_eq!(git(&["rev-parse", "HEAD"]).trim(), "2b10d3fb6bf6ac155f31520ac9b77cce3b559c15");
}

/// Builds and imports one recording; gives what differs.
fn replay(name: &str, servers: &Servers) -> Vec<String> {
    let recorded = json(&golden(&format!("cachekeys/{name}.json")));
    let mut differences = Vec::new();
    let mut check = |what: &str, recorded: Vec<String>, ours: Vec<String>| {
        if recorded != ours {
            let minus = recorded.iter().filter(|line| !ours.contains(line));
            let plus = ours.iter().filter(|line| !recorded.contains(line));
            let lines: Vec<String> = minus
                .map(|line| format!("  - {line}"))
                .chain(plus.map(|line| format!("  + {line}")))
                .collect();
            differences.push(format!(" {what}:\n{}", lines.join("\n")));
        }
    };
    let caches = tempfile::tempdir().expect("make a folder");
    let mut first = fresh();
    for mode in ["min", "max"] {
        let folder = caches.path().join(mode);
        let to = format!("type=local,mode={mode},dest={}", folder.display());
        build(&first, name, servers, &["--export-cache", &to]);
        let (config, manifest) = exported(&folder);
        let there = &recorded[format!("exported_{mode}")];
        let (their_config, their_manifest) = (&there["config"], &there["manifest"]);
        check(
            &format!("{mode} config"),
            describe_config(their_config, their_manifest),
            describe_config(&config, &manifest),
        );
        check(
            &format!("{mode} manifest"),
            describe_manifest(their_manifest),
            describe_manifest(&manifest),
        );
    }
    first.stop();
    let theirs = recorded_keys(&recorded["solver_db"]);
    let ours = stored_keys(first.state());
    check("links", theirs.links(), ours.links());
    check("keys with results", theirs.results(), ours.results());
    drop(first);
    for mode in ["min", "max"] {
        let from = format!("type=local,src={}", caches.path().join(mode).display());
        let daemon = fresh();
        // A cache of nothing is not written; the recording then imported nothing either.
        let nothing = recorded[format!("exported_{mode}")].is_null();
        let args = ["--import-cache", from.as_str()];
        let seen = build(&daemon, name, servers, if nothing { &[] } else { &args });
        let theirs = recorded[format!("hits_when_{mode}_is_imported")].as_array();
        let theirs = theirs.map_or(&[][..], Vec::as_slice).iter().map(|vertex| {
            let digest = vertex["vertex"].as_str().expect("a digest");
            (digest.to_owned(), vertex["cached"] == true)
        });
        let theirs: BTreeMap<String, bool> = theirs.collect();
        let ours = seen.into_iter().filter(|(digest, _)| theirs.contains_key(digest));
        let lines = |hits: BTreeMap<String, bool>| {
            hits.into_iter().map(|(digest, cached)| format!("{digest} {cached}")).collect()
        };
        check(&format!("hits with {mode}"), lines(theirs.clone()), lines(ours.collect()));
    }
    differences
}

fn fresh() -> Daemon {
    Daemon::start_with(&["--oci-worker-net", "host"])
}

/// Builds the definition and tells which vertices were cached.
fn build(daemon: &Daemon, name: &str, servers: &Servers, args: &[&str]) -> BTreeMap<String, bool> {
    let definition = fs::File::open(golden(&format!("llb/{name}.pb"))).expect("open");
    let layout = format!("tiny={}", golden("cache-export/base-image").display());
    let context = format!("ctx={}", servers.folder.path().join("ctx").display());
    let output = daemon
        .command(&["build", "--progress", "rawjson", "--oci-layout", &layout, "--local", &context])
        .args(args)
        .stdin(Stdio::from(definition))
        .output()
        .expect("run rbuildctl");
    let printed = text(&output);
    assert!(output.status.success(), "{name}: {printed}\n{}", daemon.log());
    let mut cached = BTreeMap::new();
    for line in printed.lines() {
        let Ok(status) = serde_json::from_str::<Value>(line) else { continue };
        for vertex in status["vertexes"].as_array().into_iter().flatten() {
            let digest = vertex["digest"].as_str().expect("a digest").to_owned();
            cached.insert(digest, vertex["cached"] == true);
        }
    }
    cached
}

/// Config and manifest of a cache in a client's folder; null if there is none.
fn exported(folder: &Path) -> (Value, Value) {
    let blob = |descriptor: &Value| {
        let digest = descriptor["digest"].as_str().expect("a digest");
        json(&folder.join("blobs/sha256").join(digest.trim_start_matches("sha256:")))
    };
    let index = folder.join("index.json");
    if !index.exists() {
        return (Value::Null, Value::Null);
    }
    let manifest = blob(&json(&index)["manifests"][0]);
    (blob(&manifest["config"]), manifest)
}

fn describe_config(config: &Value, manifest: &Value) -> Vec<String> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let image = json(&golden("cache-export/base-image/index.json"));
    let image = text(&image["manifests"][0]["digest"]);
    let image = golden("cache-export/base-image/blobs/sha256").join(&image[7..]);
    let base = text(&json(&image)["layers"][0]["digest"]);
    let diff_ids: BTreeMap<String, String> = list(&manifest["layers"])
        .iter()
        .map(|layer| {
            let diff_id = text(&layer["annotations"]["containerd.io/uncompressed"]);
            (text(&layer["digest"]), diff_id)
        })
        .collect();
    let base_diff_id = diff_id_of(&base);
    let layers = list(&config["layers"]);
    let chain = |top: &Value| {
        let (mut names, mut next) = (Vec::new(), top["layer"].as_i64().unwrap_or(0));
        while let Ok(number) = usize::try_from(next) {
            let layer = &layers[number];
            let diff_id = &diff_ids[&text(&layer["blob"])];
            names.push(if *diff_id == base_diff_id { "base" } else { "made" });
            next = layer["parent"].as_i64().unwrap_or(0);
        }
        names.reverse();
        names.join("+")
    };
    let records = list(&config["records"]);
    let records = records.iter().enumerate().map(|(number, record)| {
        let results: Vec<String> = list(&record["layers"]).iter().map(chain).collect();
        let inputs: Vec<String> = list(&record["inputs"])
            .iter()
            .map(|ways| {
                let ways = list(ways);
                let ways = ways.iter().map(|way| {
                    format!("{}>{}", way["link"].as_i64().unwrap_or(0), text(&way["selector"]))
                });
                format!("[{}]", ways.collect::<Vec<_>>().join(" "))
            })
            .collect();
        format!("{number}: {} {results:?} {}", text(&record["digest"]), inputs.join(""))
    });
    records.collect()
}

/// The recorded image has one layer, whose diff id its config tells.
fn diff_id_of(layer: &str) -> String {
    let blobs = golden("cache-export/base-image/blobs/sha256");
    let configs = fs::read_dir(&blobs).expect("list blobs").flatten().filter_map(|entry| {
        let value: Value = serde_json::from_slice(&fs::read(entry.path()).ok()?).ok()?;
        value["rootfs"]["diff_ids"][0].as_str().map(str::to_owned)
    });
    let all: Vec<String> = configs.collect();
    assert_eq!(all.len(), 1, "one config beside layer {layer}");
    all[0].clone()
}

fn describe_manifest(manifest: &Value) -> Vec<String> {
    if manifest.is_null() {
        return Vec::new();
    }
    let mut layers: Vec<String> = manifest["layers"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|layer| {
            let names = layer["annotations"].as_object().expect("annotations").keys();
            let names = names.filter(|name| !name.contains("distribution.source"));
            format!("{} {:?}", layer["mediaType"], names.collect::<BTreeSet<_>>())
        })
        .collect();
    layers.sort();
    layers.push(format!("{} {}", manifest["mediaType"], manifest["config"]["mediaType"]));
    layers
}

/// A key store, with keys by any unique name.
#[derive(Default)]
struct Keys {
    /// from, how, to
    links: Vec<(String, String, String)>,
    with_result: BTreeSet<String>,
}

impl Keys {
    /// A name that tells keys apart in any store.
    fn name(&self, key: &str, known: &mut BTreeMap<String, String>) -> String {
        if key.starts_with("random:") {
            return "private".into();
        }
        if key.starts_with("sha256:") {
            return key.into();
        }
        if let Some(name) = known.get(key) {
            return name.clone();
        }
        known.insert(key.into(), "itself".into());
        let ways = self.links.iter().filter(|(_, _, to)| to == key);
        let ways: BTreeSet<String> =
            ways.map(|(from, how, _)| format!("{} {how}", self.name(from, known))).collect();
        let name = format!("{ways:?}");
        let name = Digest::of(name).to_string()[..19].replace("sha256", "key");
        known.insert(key.into(), name.clone());
        name
    }

    fn links(&self) -> Vec<String> {
        let mut known = BTreeMap::new();
        let links = self.links.iter().map(|(from, how, to)| {
            format!("{} {how} {}", self.name(from, &mut known), self.name(to, &mut known))
        });
        links.collect::<BTreeSet<_>>().into_iter().collect()
    }

    fn results(&self) -> Vec<String> {
        let mut known = BTreeMap::new();
        let keys = self.with_result.iter().map(|key| self.name(key, &mut known));
        keys.collect::<BTreeSet<_>>().into_iter().collect()
    }
}

fn how(input: u64, output: i64, operation: &str, selector: &str) -> String {
    format!("-{input}/{output}/{operation}/{selector}->")
}

fn recorded_keys(buckets: &Value) -> Keys {
    let mut keys = Keys::default();
    for (from, entries) in buckets["_links"].as_object().expect("links") {
        for entry in entries.as_object().expect("links of a key").keys() {
            let (link, to) = entry.rsplit_once('@').expect("a link has a target");
            let link: Value = serde_json::from_str(link).expect("a link is JSON");
            let how = how(
                link["Input"].as_u64().unwrap_or(0),
                link["Output"].as_i64().unwrap_or(0),
                link["Digest"].as_str().unwrap_or_default(),
                link["Selector"].as_str().unwrap_or_default(),
            );
            keys.links.push((from.clone(), how, to.to_owned()));
        }
    }
    for (key, results) in buckets["_result"].as_object().expect("results") {
        if results.as_object().is_some_and(|results| !results.is_empty()) {
            keys.with_result.insert(key.clone());
        }
    }
    keys
}

/// The key store in the state folder of a daemon that has ended.
fn stored_keys(state: &Path) -> Keys {
    let store = store::Store::open(store::Config::new(state_of(state))).expect("open the state");
    let mut keys = Keys::default();
    let name = |id: solver::KeyId| match id {
        solver::KeyId::Root(digest) => digest.to_string(),
        solver::KeyId::Chain(number) => format!("chain:{number}"),
    };
    for change in store.load_keys().expect("read the keys").snapshot() {
        match change {
            solver::Change::PutLink { from, link, to } => {
                let selector = link.selector.map(|digest| digest.to_string()).unwrap_or_default();
                let operation = link.digest.to_string();
                let how = how(link.input.into(), link.output.into(), &operation, &selector);
                keys.links.push((name(from), how, name(to)));
            }
            solver::Change::PutResult { key, .. } => _ = keys.with_result.insert(name(key)),
            solver::Change::RemoveLink { .. } | solver::Change::RemoveResult { .. } => {}
        }
    }
    keys
}

fn state_of(root: &Path) -> PathBuf {
    let locks = |folder: &Path| folder.join("buildkitd.lock").exists();
    if locks(root) {
        return root.to_owned();
    }
    let inner = fs::read_dir(root).expect("list the state").flatten().map(|entry| entry.path());
    inner.into_iter().find(|path| locks(path)).expect("a state folder")
}
