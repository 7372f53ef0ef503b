//! Repositories made on the spot, fetched and checked out.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::Path,
    process::{Child, Command, Stdio},
    sync::Mutex,
    time::Duration,
};

use llb::pb;
use session::Sessions;
use store::Config;

use super::*;
use crate::Sources;

/// A git server of its own with the repositories `main` and `sub`.
struct Bench {
    folder: tempfile::TempDir,
    server: Child,
    address: String,
    sources: Sources,
    memo: Mutex<Arc<Memo>>,
}

impl Drop for Bench {
    fn drop(&mut self) {
        _ = self.server.kill();
        _ = self.server.wait();
    }
}

impl Bench {
    /// `None` where git, its server or the right to mount is missing.
    async fn new() -> Option<Self> {
        let has_server = Path::new("/usr/lib/git-core/git-daemon").exists();
        if !rustix::process::geteuid().is_root() || !has_server {
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("served")).unwrap();
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let server = Command::new("/usr/lib/git-core/git-daemon")
            .args(["--reuseaddr", "--export-all", "--listen=127.0.0.1"])
            .arg(format!("--port={port}"))
            .arg(format!("--base-path={}", folder.path().join("served").display()))
            .arg("--informative-errors")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let address = format!("127.0.0.1:{port}");
        for _ in 0..500 {
            if std::net::TcpStream::connect(&address).is_ok() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let mut config = Config::new(folder.path().join("state"));
        config.snapshotter = snapshot::Choice::Native;
        let store = Store::open(config).unwrap();
        let git: Arc<dyn Source> = Arc::new(GitSource::new(store));
        let sources = Sources::new([git], Arc::default());
        let bench = Self { folder, server, address, sources, memo: Mutex::default() };
        for name in ["main", "sub"] {
            fs::create_dir_all(bench.path(name)).unwrap();
            bench.git(name, &["init", "-q", "-b", "trunk"]);
            bench.git(name, &["config", "uploadpack.allowAnySHA1InWant", "true"]);
        }
        Some(bench)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join("served").join(name)
    }

    fn git(&self, name: &str, arguments: &[&str]) -> String {
        let output = Command::new("git")
            .args(["-c", "user.name=n", "-c", "user.email=e", "-c", "protocol.file.allow=always"])
            .args(arguments)
            .current_dir(self.path(name))
            .env("GIT_COMMITTER_DATE", "1000000000 +0000")
            .env("GIT_AUTHOR_DATE", "1000000000 +0000")
            .output()
            .unwrap();
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// Writes a file and commits it; the commit's id.
    fn commit(&self, name: &str, file: &str, text: &str) -> String {
        let path = self.path(name).join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
        self.git(name, &["add", "-A"]);
        self.git(name, &["commit", "-q", "-m", file]);
        self.git(name, &["rev-parse", "HEAD"])
    }

    fn request(&self, fragment: &str, attrs: &[(&str, &str)]) -> SourceRequest {
        let attrs = attrs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        let mut attrs: std::collections::BTreeMap<String, String> = attrs.collect();
        attrs.insert("git.fullurl".into(), format!("git://{}/main", self.address));
        let identifier = format!("git://{}/main{fragment}", self.address);
        SourceRequest {
            op: pb::SourceOp { identifier, attrs },
            platform: base::Platform::host(),
            group: Sessions::new().group(Vec::<String>::new()),
            memo: self.memo.lock().unwrap().clone(),
            progress: Progress::silent(),
        }
    }

    fn next_build(&self) {
        *self.memo.lock().unwrap() = Arc::default();
    }

    async fn run(&self, fragment: &str, attrs: &[(&str, &str)]) -> Result<(String, Ref), String> {
        let run = async {
            let mut instance = self.sources.resolve(self.request(fragment, attrs)).await?;
            let key = instance.cache_key(0, &Progress::silent()).await?.key;
            let record = instance.snapshot(&Progress::silent()).await?;
            Ok::<_, SourceError>((key, record.unwrap()))
        };
        run.await.map_err(|error| error.to_string())
    }
}

/// Paths and short contents.
fn show(record: &Ref) -> String {
    fn walk(root: &Path, below: &Path, out: &mut Vec<String>) {
        for entry in fs::read_dir(root.join(below)).unwrap() {
            let path = below.join(entry.unwrap().file_name());
            if path.ends_with(".git") {
                out.push(".git".to_owned());
            } else if root.join(&path).symlink_metadata().unwrap().is_dir() {
                walk(root, &path, out);
            } else {
                let text = fs::read_to_string(root.join(&path)).unwrap_or_default();
                out.push(format!("{}={text}", path.display()));
            }
        }
    }
    let (tree, mut out) = (record.tree().unwrap(), Vec::new());
    walk(&tree.path(), Path::new(""), &mut out);
    out.sort();
    out.join(" ")
}

#[tokio::test(flavor = "multi_thread")]
async fn refs_become_commits_and_trees() {
    let Some(bench) = Bench::new().await else { return };
    let first = bench.commit("main", "a", "one");
    bench.git("main", &["tag", "-a", "v1", "-m", "v1"]);
    let tag = bench.git("main", &["rev-parse", "v1"]);
    let second = bench.commit("main", "dir/b", "two");

    let (key, record) = bench.run("", &[]).await.unwrap();
    assert_eq!((key.as_str(), show(&record).as_str()), (second.as_str(), "a=one dir/b=two"));
    assert_eq!(record.kind(), RecordKind::GitCheckout);
    let (key, again) = bench.run("#trunk", &[]).await.unwrap();
    assert_eq!((key.as_str(), again.id()), (second.as_str(), record.id()));
    let (key, record) = bench.run("#v1", &[]).await.unwrap();
    assert_eq!((key.as_str(), show(&record).as_str()), (first.as_str(), "a=one"));
    let (key, record) = bench.run("#refs/tags/v1", &[("git.keepgitdir", "true")]).await.unwrap();
    assert_eq!(key, format!("{tag}.git#refs/tags/v1"));
    assert_eq!(show(&record), ".git a=one");
    let config = fs::read_to_string(record.tree().unwrap().path().join(".git/config")).unwrap();
    assert!(config.contains(&format!("git://{}/main", bench.address)), "{config}");
    let (key, record) = bench.run("#trunk:dir", &[]).await.unwrap();
    assert_eq!((key, show(&record)), (format!("{second}:dir"), "b=two".to_owned()));
    let (key, record) = bench.run(&format!("#{first}"), &[]).await.unwrap();
    assert_eq!((key.as_str(), show(&record).as_str()), (first.as_str(), "a=one"));
    let (key, record) = bench.run("#trunk", &[("git.mtime", "commit")]).await.unwrap();
    assert_eq!(key, format!("{second}(mtime=commit)"));
    let mtime =
        |path: &str| record.tree().unwrap().path().join(path).symlink_metadata().unwrap().mtime();
    assert_eq!((mtime("dir"), mtime("dir/b")), (1_000_000_000, 1_000_000_000));

    for (fragment, attrs, expected) in [
        ("#nope", vec![], "repository does not contain ref nope"),
        ("#-x", vec![], "invalid git ref \"-x\""),
        ("#trunk:gone", vec![], "open subdir gone"),
        ("#trunk:a", vec![], "invalid subdir a"),
        ("#trunk", vec![("git.checksum", "zz")], "invalid checksum zz for Git URL"),
        ("#trunk", vec![("git.checksum", "0000")], "expected checksum to match 0000, got"),
        ("#trunk", vec![("git.fetchbycommit", "true")], "fetch-by-commit requires a checksum"),
        ("#trunk", vec![("git.bundle", "x")], "missing scheme"),
    ] {
        let error = bench.run(fragment, &attrs).await.unwrap_err();
        assert!(error.contains(expected), "{fragment}: {error}");
    }
    let attrs = [("git.checksum", &second[..8])];
    assert_eq!(bench.run("#trunk", &attrs).await.unwrap().0, second);

    let request = MetaRequest {
        source: bench.request("#v1", &[]),
        resolve_mode: String::new(),
        no_config: false,
        attestations: None,
        git_objects: true,
        http_checksum: None,
    };
    let meta = bench.sources.metadata(request).await.unwrap().git.unwrap();
    assert_eq!((meta.checksum, meta.commit_checksum), (tag, first));
    assert_eq!(meta.reference, "refs/tags/v1");
    assert!(meta.tag_object.starts_with(b"object ") && meta.commit_object.starts_with(b"tree "));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_build_sees_one_commit() {
    let Some(bench) = Bench::new().await else { return };
    let first = bench.commit("main", "a", "one");
    let mut early = bench.sources.resolve(bench.request("#trunk", &[])).await.unwrap();
    assert_eq!(early.cache_key(0, &Progress::silent()).await.unwrap().key, first);
    let second = bench.commit("main", "a", "two");
    // The key was made of the first commit, so that is what is checked out.
    let record = early.snapshot(&Progress::silent()).await.unwrap().unwrap();
    assert_eq!(show(&record), "a=one");
    assert_eq!(
        bench.run("#trunk", &[("git.skipsubmodules", "true")]).await.unwrap().0,
        format!("{first}(skip-submodules)")
    );
    bench.next_build();
    let (key, record) = bench.run("#trunk", &[]).await.unwrap();
    assert_eq!((key.as_str(), show(&record).as_str()), (second.as_str(), "a=two"));

    let attrs = [("git.fetchbycommit", "true"), ("git.checksum", first.as_str())];
    let (key, _) = bench.run("#trunk", &attrs).await.unwrap();
    assert_eq!(key, first);

    // A tag that moved: the kept repository refuses it and is made anew.
    bench.git("main", &["tag", "-f", "v", &first]);
    bench.next_build();
    assert_eq!(show(&bench.run("#v", &[]).await.unwrap().1), "a=one");
    bench.git("main", &["tag", "-f", "v", &second]);
    bench.next_build();
    assert_eq!(show(&bench.run("#v", &[]).await.unwrap().1), "a=two");
    // A branch in the place of a folder of branches.
    bench.git("main", &["branch", "topic/x"]);
    bench.next_build();
    assert_eq!(
        bench.run("#topic/x", &[("git.keepgitdir", "true")]).await.unwrap().0,
        format!("{second}.git#refs/heads/topic/x")
    );
    bench.git("main", &["branch", "-D", "topic/x"]);
    let third = bench.commit("main", "c", "three");
    bench.git("main", &["branch", "topic"]);
    bench.next_build();
    assert_eq!(bench.run("#topic", &[]).await.unwrap().0, third);
}

#[tokio::test(flavor = "multi_thread")]
async fn submodules_come_along_and_links_do_not_lead_out() {
    let Some(bench) = Bench::new().await else { return };
    bench.commit("sub", "s", "inner");
    bench.commit("main", "a", "one");
    let address = format!("git://{}/sub", bench.address);
    bench.git("main", &["submodule", "add", "-q", &address, "mod"]);
    std::os::unix::fs::symlink("/etc", bench.path("main").join("out")).unwrap();
    bench.commit("main", "b", "two");
    let (_, record) = bench.run("", &[]).await.unwrap();
    let shown = show(&record);
    assert!(shown.contains("a=one b=two mod/s=inner"), "{shown}");
    let (key, record) = bench.run("", &[("git.skipsubmodules", "true")]).await.unwrap();
    assert!(key.ends_with("(skip-submodules)"));
    assert!(!show(&record).contains("mod/s"));
    let error = bench.run("#trunk:out", &[]).await.unwrap_err();
    assert!(error.contains("invalid subdir out"), "{error}");
    let (_, record) = bench.run("#trunk:mod", &[]).await.unwrap();
    assert!(show(&record).contains("s=inner"));
}

#[tokio::test(flavor = "multi_thread")]
async fn giving_up_stops_git_and_the_remote_stays_usable() {
    let Some(bench) = Bench::new().await else { return };
    bench.commit("main", "a", "one");
    for wait in [0, 5, 20, 60] {
        bench.next_build();
        let run = bench.run("#trunk", &[]);
        _ = tokio::time::timeout(Duration::from_millis(wait), run).await;
    }
    bench.next_build();
    let (_, record) = bench.run("#trunk", &[]).await.unwrap();
    assert_eq!(show(&record), "a=one");
}

/// Even where only the newest commit was fetched before, a bundle carries all that led to it.
#[tokio::test(flavor = "multi_thread")]
async fn a_commit_becomes_a_bundle() {
    let Some(bench) = Bench::new().await else { return };
    bench.commit("main", "a", "one");
    let second = bench.commit("main", "b", "two");
    bench.run("#trunk", &[]).await.unwrap();
    let as_bundle = ("git.checkoutbundle", "true");
    let (key, record) = bench.run("#trunk", &[as_bundle]).await.unwrap();
    assert_eq!(key, format!("{second}(bundle)"));
    let bundle = record.tree().unwrap().path().join("bundle");
    fs::copy(bundle, bench.path("main").join(".git/made.bundle")).unwrap();
    let heads = bench.git("main", &["bundle", "list-heads", ".git/made.bundle"]);
    assert_eq!(heads, format!("{second} refs/heads/trunk"));
    bench.git("main", &["clone", "-q", "-b", "trunk", ".git/made.bundle", ".git/copy"]);
    let log = bench.git("main", &["-C", ".git/copy", "log", "--format=%s"]);
    assert_eq!(log, "b\na");

    for (attrs, expected) in [
        (
            &[as_bundle, ("git.keepgitdir", "true")][..],
            "git.checkoutbundle is incompatible with git.keepgitdir",
        ),
        (
            &[("git.bundle", "docker-image+blob://h/a@sha256:00")],
            "failed to parse git.bundle locator \"docker-image+blob://h/a@sha256:00\": invalid digest",
        ),
    ] {
        assert_eq!(bench.run("#trunk", attrs).await.err().as_deref(), Some(expected));
    }
}
