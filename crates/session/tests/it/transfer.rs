//! Trees of files over a session, both ways.

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink},
    path::Path,
    sync::{Arc, Mutex},
};

use base::{Digest, Hasher};
use session::{
    SendTree, SyncRequest,
    client::{Outputs, SessionServer, SyncedDir, SyncedDirs, Target},
    fsutil::{
        Change, ChangeSink, Differ, DirTree, MemoryTree, MergedTree, ReceiveOptions, Received,
        Stat, SubTree,
    },
};

use crate::{Pair, connect, show, soon};

fn write(root: &Path, path: &str, text: &str, time: i64) {
    let path = root.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    touch(&path, time);
}

/// Sets the time, in nanoseconds.
fn touch(path: &Path, time: i64) {
    let at = base::time::from_unix_nanos(time);
    let file = fs::File::open(path).unwrap();
    file.set_times(fs::FileTimes::new().set_modified(at).set_accessed(at)).unwrap();
}

async fn serving(root: &Path) -> Pair {
    let mut server = SessionServer::new("");
    let mut dirs = SyncedDirs::new();
    dirs.insert("context", SyncedDir::new(root));
    let mut memory = MemoryTree::new();
    memory.file("Dockerfile", 5, "FROM scratch");
    memory.file("other", 5, "x");
    dirs.insert("memory", SyncedDir::of_tree(Arc::new(memory)));
    server.add_dirs(dirs);
    connect(server).await
}

async fn sync(pair: &Pair, request: SyncRequest, to: &Path) -> Received {
    let request = SyncRequest {
        name: if request.name.is_empty() { "context".into() } else { request.name },
        ..request
    };
    let folder = fs::File::open(to).unwrap().into();
    soon(pair.session.sync_dir(request, folder)).await.unwrap()
}

/// The root owns everything that arrives, which only root can give.
fn can_own() -> bool {
    rustix::process::geteuid().is_root()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_follows_its_original() {
    if !can_own() {
        return;
    }
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let root = from.path();
    write(root, "a", "one", 10);
    write(root, "dir/b", "two", 20);
    write(root, "dir/sub/c", "", 30);
    write(root, "dir-x", "after dir", 40);
    fs::hard_link(root.join("a"), root.join("dir/z-link")).unwrap();
    symlink("../nowhere", root.join("link")).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        root.join("pipe"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o600),
        0,
    )
    .unwrap();
    fs::set_permissions(root.join("dir"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(root.join("dir/sub"), fs::Permissions::from_mode(0o500)).unwrap();
    touch(&root.join("dir/sub"), 50);
    touch(&root.join("dir"), 60);
    let pair = serving(root).await;

    let first = sync(&pair, SyncRequest::default(), to.path()).await;
    assert_eq!((first.entries, first.changed, first.files), (9, 9, 4));
    assert_eq!(show(to.path()), show(root));
    let ino = |path: &str| fs::metadata(to.path().join(path)).unwrap().ino();
    assert_eq!(ino("a"), ino("dir/z-link"));

    let again = sync(&pair, SyncRequest::default(), to.path()).await;
    assert_eq!((again.entries, again.changed, again.files), (9, 0, 0));

    // Edits of every kind.
    write(root, "a", "ONE!", 11);
    fs::remove_file(root.join("dir/b")).unwrap();
    fs::create_dir(root.join("dir/b")).unwrap();
    write(root, "dir/b/inside", "new", 70);
    fs::remove_dir_all(root.join("dir/sub")).unwrap();
    write(root, "dir/sub", "now a file", 80);
    fs::remove_file(root.join("link")).unwrap();
    symlink("a", root.join("link")).unwrap();
    fs::remove_file(root.join("pipe")).unwrap();
    touch(&root.join("dir/b"), 90);
    touch(&root.join("dir"), 100);
    let third = sync(&pair, SyncRequest::default(), to.path()).await;
    assert_eq!(show(to.path()), show(root));
    assert_eq!(third.files, 3);
    assert_eq!(ino("a"), ino("dir/z-link"));
    let last = sync(&pair, SyncRequest::default(), to.path()).await;
    assert_eq!(last.changed, 0);

    // Differ `none` fetches all again; the copy stays the same.
    let options = ReceiveOptions { differ: Differ::None, ..ReceiveOptions::default() };
    let full = sync(&pair, SyncRequest { options, ..SyncRequest::default() }, to.path()).await;
    assert_eq!(full.files, 4);
    assert_eq!(show(to.path()), show(root));
    pair.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_to_a_changed_file_is_made_again() {
    if !can_own() {
        return;
    }
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    write(from.path(), "a", "one", 10);
    fs::hard_link(from.path().join("a"), from.path().join("b")).unwrap();
    let pair = serving(from.path()).await;
    sync(&pair, SyncRequest::default(), to.path()).await;
    // Same time, other size: the second name looks unchanged.
    write(from.path(), "a", "longer", 10);
    sync(&pair, SyncRequest::default(), to.path()).await;
    assert_eq!(fs::read_to_string(to.path().join("b")).unwrap(), "longer");
    pair.close().await;
}

async fn selected(include: &[&str], exclude: &[&str], follow: &[&str]) -> String {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for path in ["a/x.go", "a/y.txt", "b/c/x.go", "b/c/d/z", "keep/é", "real/file", "top"] {
        write(from.path(), path, "", 10);
    }
    symlink("real", from.path().join("link")).unwrap();
    symlink("/link/file", from.path().join("deep")).unwrap();
    let pair = serving(from.path()).await;
    let owned = |list: &[&str]| list.iter().map(|&text| text.to_owned()).collect::<Vec<_>>();
    let request = SyncRequest {
        include_patterns: owned(include),
        exclude_patterns: owned(exclude),
        follow_paths: owned(follow),
        ..SyncRequest::default()
    };
    sync(&pair, request, to.path()).await;
    pair.close().await;
    let paths = show(to.path());
    let paths = paths.lines().map(|line| line.split(' ').nth(2).unwrap());
    paths.collect::<Vec<_>>().join(" ")
}

#[tokio::test(flavor = "multi_thread")]
async fn filters_choose_what_is_sent() {
    if !can_own() {
        return;
    }
    let all =
        "a a/x.go a/y.txt b b/c b/c/d b/c/d/z b/c/x.go deep keep keep/é link real real/file top";
    assert_eq!(selected(&[], &[], &[]).await, all);
    assert_eq!(selected(&["**/*.go"], &[], &[]).await, "a a/x.go b b/c b/c/x.go");
    assert_eq!(selected(&["b/c/d"], &[], &[]).await, "b b/c b/c/d b/c/d/z");
    assert_eq!(selected(&["keep/é"], &[], &[]).await, "keep keep/é");
    assert_eq!(selected(&[], &["*", "!b/c/x.go"], &[]).await, "b b/c b/c/x.go");
    assert_eq!(selected(&["a", "b"], &["**/*.go"], &[]).await, "a a/y.txt b b/c b/c/d b/c/d/z");
    assert_eq!(selected(&[], &[], &["deep"]).await, "deep link real real/file");
    assert_eq!(selected(&[], &[], &["d*p", "top"]).await, "deep link real real/file top");
    assert_eq!(selected(&["top"], &[], &["link/file"]).await, "link real real/file top");
    assert_eq!(selected(&[], &[], &["missing"]).await, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_folders_and_bad_patterns_are_refused() {
    let from = tempfile::tempdir().unwrap();
    let to = tempfile::tempdir().unwrap();
    let pair = serving(from.path()).await;
    let ask = async |request: SyncRequest| {
        let folder = fs::File::open(to.path()).unwrap().into();
        soon(pair.session.sync_dir(request, folder)).await.unwrap_err()
    };
    let error = ask(SyncRequest { name: "other".into(), ..SyncRequest::default() }).await;
    assert_eq!(error.to_string(), r#"no access allowed to dir "other""#);
    assert_eq!(error.code(), Some(tonic::Code::NotFound));
    let bad = SyncRequest {
        name: "context".into(),
        include_patterns: vec!["[".into()],
        ..SyncRequest::default()
    };
    let error = ask(bad).await;
    assert_eq!(error.to_string(), r#"invalid includepatterns: ["["]: syntax error in pattern"#);
    pair.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn made_up_trees_pass_filters_too() {
    if !can_own() {
        return;
    }
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let pair = serving(from.path()).await;
    let request = SyncRequest {
        name: "memory".into(),
        follow_paths: vec!["Dockerfile".into()],
        ..SyncRequest::default()
    };
    sync(&pair, request, to.path()).await;
    assert_eq!(show(to.path()), "f 0644 Dockerfile \"FROM scratch\" @5\n");
    pair.close().await;
}

#[derive(Default)]
struct Log(Mutex<Vec<String>>);

impl ChangeSink for Log {
    fn hasher(&self, stat: &Stat) -> Hasher {
        let mut hasher = Hasher::new();
        hasher.update(stat.path.as_bytes());
        hasher
    }

    fn changed(&self, change: Change<'_>) {
        let line = match change {
            Change::Put { stat, digest } => {
                let content = match stat.path.as_str() {
                    "a" => "one",
                    "dir/b" => "two",
                    _ => "",
                };
                assert_eq!(digest, Digest::of(format!("{}{content}", stat.path)));
                format!("put {}", stat.path)
            }
            Change::Link { stat } => format!("link {} {}", stat.path, stat.linkname),
            Change::Remove { path } => format!("remove {path}"),
        };
        self.0.lock().unwrap().push(line);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_are_told_with_digests() {
    if !can_own() {
        return;
    }
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    write(from.path(), "a", "one", 10);
    write(from.path(), "dir/b", "two", 20);
    fs::hard_link(from.path().join("a"), from.path().join("l")).unwrap();
    symlink("a", from.path().join("s")).unwrap();
    let pair = serving(from.path()).await;
    let log = Arc::new(Log::default());
    let run = async || {
        log.0.lock().unwrap().clear();
        let options = ReceiveOptions { changes: Some(log.clone()), ..ReceiveOptions::default() };
        sync(&pair, SyncRequest { options, ..SyncRequest::default() }, to.path()).await;
        let mut lines = log.0.lock().unwrap().clone();
        lines.sort();
        lines.join(", ")
    };
    assert_eq!(run().await, "link l a, put a, put dir, put dir/b, put s");
    assert_eq!(run().await, "");
    log.0.lock().unwrap().clear();
    let options = ReceiveOptions {
        changes: Some(log.clone()),
        tell_unchanged: true,
        ..ReceiveOptions::default()
    };
    let kept = sync(&pair, SyncRequest { options, ..SyncRequest::default() }, to.path()).await;
    assert_eq!(kept.changed, 0);
    assert_eq!(log.0.lock().unwrap().join(", "), "put a, put dir, put dir/b, put s, link l a");
    fs::remove_dir_all(from.path().join("dir")).unwrap();
    fs::remove_file(from.path().join("s")).unwrap();
    fs::create_dir(from.path().join("s")).unwrap();
    assert_eq!(run().await, "put s, remove dir, remove s");
    pair.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn metadata_only_keeps_the_listing_and_the_exceptions() {
    if !can_own() {
        return;
    }
    use prost::Message as _;
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    write(from.path(), ".fsutil-metadata", "mine", 1);
    write(from.path(), "a", "one", 10);
    write(from.path(), "dir/b", "two", 20);
    write(from.path(), "dir/sub/go.mod", "three", 30);
    write(to.path(), "stale", "old", 1);
    let pair = serving(from.path()).await;
    let run = async || {
        let options = ReceiveOptions {
            content_of: Some(Arc::new(|path, _| path.ends_with("go.mod"))),
            ..ReceiveOptions::default()
        };
        sync(&pair, SyncRequest { options, ..SyncRequest::default() }, to.path()).await
    };
    let first = run().await;
    assert_eq!(first.files, 1);
    let paths = show(to.path());
    let paths: Vec<_> = paths.lines().map(|line| line.split(' ').nth(2).unwrap()).collect();
    assert_eq!(paths, [".fsutil-metadata", "dir", "dir/sub", "dir/sub/go.mod"]);
    assert_eq!(fs::read_to_string(to.path().join("dir/sub/go.mod")).unwrap(), "three");
    let listing = fs::read(to.path().join(".fsutil-metadata")).unwrap();
    let mut rest = listing.as_slice();
    let mut listed = Vec::new();
    while !rest.is_empty() {
        let (length, tail) = rest.split_at(4);
        let length = u32::from_le_bytes(length.try_into().unwrap()) as usize;
        listed.push(Stat::decode(&tail[..length]).unwrap().path);
        rest = &tail[length..];
    }
    assert_eq!(listed, ["a", "dir", "dir/b", "dir/sub", "dir/sub/go.mod"]);
    assert_eq!(run().await.changed, 0);
    pair.close().await;
}

async fn taking(root: &Path, delete: bool) -> Pair {
    let mut server = SessionServer::new("");
    let target = Target::Folder { path: root.join("out"), delete };
    server.add_outputs(Outputs::new([(3, target)]));
    connect(server).await
}

#[tokio::test(flavor = "multi_thread")]
async fn outputs_are_merged_or_mirrored() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    write(from.path(), "a", "one", 10);
    write(from.path(), "dir/b", "two", 20);
    write(from.path(), "dir/link-target", "three", 30);
    fs::hard_link(from.path().join("dir/link-target"), from.path().join("dir/second")).unwrap();
    fs::set_permissions(from.path().join("dir"), fs::Permissions::from_mode(0o555)).unwrap();
    touch(&from.path().join("dir"), 40);
    write(to.path(), "out/kept", "kept", 1);
    write(to.path(), "out/a/was-a-folder", "x", 1);
    let tree = || -> Arc<DirTree> { Arc::new(DirTree::open(from.path()).unwrap()) };
    let mut extra = MemoryTree::new();
    extra.file("provenance.json", 9, "{}");
    let extra = Arc::new(extra);

    let pair = taking(to.path(), false).await;
    let platform = SubTree::named("linux_amd64", 50, tree());
    let merged = MergedTree::new(vec![tree(), extra, Arc::new(platform)]);
    let send =
        |tree, multi_platform| SendTree { exporter: 3, tree, multi_platform, progress: None };
    soon(pair.session.send_tree(send(Arc::new(merged), false))).await.unwrap();
    pair.close().await;
    assert_eq!(
        show(&to.path().join("out")),
        "f 0644 a \"one\" @10
d 0555 dir @40
f 0644 dir/b \"two\" @20
f 0644 dir/link-target \"three\" @30
f 0644 dir/second -> dir/link-target @30
f 0644 kept \"kept\" @1
d 0755 linux_amd64 @50
f 0644 linux_amd64/a \"one\" @10
d 0555 linux_amd64/dir @40
f 0644 linux_amd64/dir/b \"two\" @20
f 0644 linux_amd64/dir/link-target \"three\" @30
f 0644 linux_amd64/dir/second -> linux_amd64/dir/link-target @30
f 0644 provenance.json \"{}\" @9
"
    );

    let pair = taking(to.path(), true).await;
    let error = soon(pair.session.send_tree(send(tree(), false))).await.unwrap_err();
    assert!(error.to_string().contains("mode=delete requires"), "{error}");
    soon(pair.session.send_tree(send(tree(), true))).await.unwrap();
    pair.close().await;
    assert_eq!(show(&to.path().join("out")), show(from.path()));
}

#[tokio::test(flavor = "multi_thread")]
async fn trouble_at_the_client_reaches_the_daemon() {
    let to = tempfile::tempdir().unwrap();
    write(to.path(), "out", "a file in the way", 1);
    let pair = taking(to.path(), false).await;
    let mut tree = MemoryTree::new();
    tree.file("a", 1, "x");
    let send =
        SendTree { exporter: 3, tree: Arc::new(tree), multi_platform: false, progress: None };
    let error = soon(pair.session.send_tree(send)).await.unwrap_err();
    assert!(error.to_string().contains("out"), "{error}");
    pair.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_big_file_keeps_its_bytes() {
    if !can_own() {
        return;
    }
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let data: Vec<u8> = (0..50_000_000u32).map(|index| (index / 251) as u8).collect();
    fs::write(from.path().join("big"), &data).unwrap();
    let pair = serving(from.path()).await;
    let received = sync(&pair, SyncRequest::default(), to.path()).await;
    assert!(received.bytes > data.len() as u64);
    assert!(fs::read(to.path().join("big")).unwrap() == data);
    pair.close().await;
}
