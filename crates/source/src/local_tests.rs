//! Folders served by a client in the same process.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

use futures_util::StreamExt as _;
use llb::pb;
use session::{
    SessionRequest, Sessions,
    client::{SessionServer, SyncedDir, SyncedDirs},
};
use store::Config;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::{Memo, Sources};

struct Bench {
    _state: tempfile::TempDir,
    context: tempfile::TempDir,
    store: Arc<Store>,
    sources: Sources,
    sessions: Sessions,
    session: String,
    _stop: tokio_util::sync::DropGuard,
    shown: Arc<Mutex<Vec<Status>>>,
}

impl Bench {
    async fn new() -> Self {
        let (state, context) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut config = Config::new(state.path());
        config.snapshotter = snapshot::Choice::Native;
        let store = Store::open(config).unwrap();
        let mut server = SessionServer::new("shared");
        let mut dirs = SyncedDirs::new();
        dirs.insert("context", SyncedDir::new(context.path()));
        server.add_dirs(dirs);
        let sessions = Sessions::new();
        let request = SessionRequest::from_metadata(&server.metadata().unwrap()).unwrap();
        let session = request.id.clone();
        let (to_client, from_daemon) = mpsc::channel(32);
        let (to_daemon, from_client) = mpsc::channel(32);
        let stop = CancellationToken::new();
        let incoming = ReceiverStream::new(from_client).map(Ok);
        let daemon = sessions.serve(request, incoming, to_client).await;
        tokio::spawn(daemon);
        let incoming = ReceiverStream::new(from_daemon).map(Ok);
        tokio::spawn(server.serve(incoming, to_daemon, stop.clone()));
        let local: Arc<dyn Source> = Arc::new(LocalSource::new(store.clone()));
        let sources = Sources::new([local], Arc::default());
        let _stop = stop.drop_guard();
        let shown = Arc::default();
        Self { _state: state, context, store, sources, sessions, session, _stop, shown }
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.context.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    }

    fn request(&self, identifier: &str, attrs: &[(&str, &str)]) -> SourceRequest {
        let attrs = attrs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        SourceRequest {
            op: pb::SourceOp { identifier: identifier.to_owned(), attrs: attrs.collect() },
            platform: base::Platform::host(),
            group: self.sessions.group([self.session.as_str()]),
            memo: Arc::new(Memo::default()),
            progress: Progress::silent(),
        }
    }

    async fn run(&self, attrs: &[(&str, &str)]) -> Result<Ref, SourceError> {
        let mut instance = self.sources.resolve(self.request("local://context", attrs)).await?;
        let shown = self.shown.clone();
        shown.lock().unwrap().clear();
        let progress = Progress::new(move |status| shown.lock().unwrap().push(status));
        instance.cache_key(0, &progress).await?;
        Ok(instance.snapshot(&progress).await?.expect("a folder is never nothing"))
    }
}

fn checksum(record: &Ref, path: &str) -> String {
    let tree = record.tree().unwrap();
    let index = record.index();
    let digest = index.lock().unwrap().checksum(&tree, path, false);
    digest.unwrap().to_string()
}

fn read(record: &Ref, path: &str) -> Option<String> {
    let bytes = fs::read(record.tree().unwrap().path().join(Path::new(path))).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

fn skip() -> bool {
    !rustix::process::geteuid().is_root()
}

#[tokio::test(flavor = "multi_thread")]
async fn builds_share_one_growing_copy() {
    if skip() {
        return;
    }
    let bench = Bench::new().await;
    bench.write("a", "one");
    bench.write("dir/b", "two");
    let first = bench.run(&[]).await.unwrap();
    assert_eq!(read(&first, "dir/b").unwrap(), "two");
    assert_eq!(first.description(), "local source for context");
    assert_eq!(first.kind(), RecordKind::LocalSource);
    let (whole, folder) = (checksum(&first, "/"), checksum(&first, "/dir"));
    {
        let shown = bench.shown.lock().unwrap();
        let last = shown.last().unwrap();
        assert_eq!(
            (last.id.as_str(), last.name.as_str()),
            ("transferring context:", "transferring")
        );
        assert!(last.completed.is_some() && last.current > 0);
    }
    let id = first.id().clone();

    // While a build holds the view, the next one gets a record of its own.
    let second = bench.run(&[]).await.unwrap();
    assert_ne!(second.id(), &id);
    assert_eq!(checksum(&second, "/"), whole);
    drop((first, second));

    let again = bench.run(&[]).await.unwrap();
    assert_eq!(checksum(&again, "/"), whole);
    drop(again);

    bench.write("dir/b", "three!");
    bench.write("c", "new");
    fs::remove_file(bench.context.path().join("a")).unwrap();
    let changed = bench.run(&[]).await.unwrap();
    assert_eq!(read(&changed, "dir/b").unwrap(), "three!");
    assert_eq!(read(&changed, "a"), None);
    assert_ne!(checksum(&changed, "/"), whole);
    assert_ne!(checksum(&changed, "/dir"), folder);
    let incremental = checksum(&changed, "/");
    drop(changed);

    // Another hint is another record; what is learnt from scratch equals what was learnt bit by bit.
    let fresh = bench.run(&[("local.sharedkeyhint", "other")]).await.unwrap();
    assert_eq!(checksum(&fresh, "/"), incremental);
    drop(fresh);

    bench.write("dir/b", "two");
    bench.write("a", "one");
    fs::remove_file(bench.context.path().join("c")).unwrap();
    let back = bench.run(&[]).await.unwrap();
    assert_eq!((checksum(&back, "/"), checksum(&back, "/dir")), (whole, folder));
}

#[tokio::test(flavor = "multi_thread")]
async fn filters_and_modes() {
    if skip() {
        return;
    }
    let bench = Bench::new().await;
    bench.write("a.go", "one");
    bench.write("dir/b.txt", "two");
    let go = bench.run(&[("local.includepattern", r#"["**/*.go"]"#)]).await.unwrap();
    assert_eq!((read(&go, "a.go"), read(&go, "dir/b.txt")), (Some("one".into()), None));
    drop(go);
    let listed = bench
        .run(&[
            ("local.metadatatransfer", "true"),
            ("local.metadatatransferexclude", r#"["dir/*.txt"]"#),
        ])
        .await
        .unwrap();
    assert_eq!((read(&listed, "a.go"), read(&listed, "dir/b.txt")), (None, Some("two".into())));
    assert!(read(&listed, ".fsutil-metadata").unwrap().contains("a.go"));
    let before = checksum(&listed, "/");
    drop(listed);
    bench.write("new", "x");
    let listed = bench
        .run(&[
            ("local.metadatatransfer", "true"),
            ("local.metadatatransferexclude", r#"["dir/*.txt"]"#),
        ])
        .await
        .unwrap();
    assert_ne!(checksum(&listed, "/"), before);

    for (attrs, expected) in [
        (vec![("local.includepattern", "x")], r#"invalid value for local.includepattern "x""#),
        (vec![("local.metadatatransfer", "x")], r#"invalid value for local.metadatatransfer "x""#),
        (vec![("local.session", "prefix:SESSION")], r#"no access allowed to dir "prefix-context""#),
        (vec![("local.excludepatterns", r#"["["]"#)], "syntax error in pattern"),
    ] {
        let attrs: Vec<(&str, &str)> = attrs
            .iter()
            .map(|(key, value)| match *value {
                "prefix:SESSION" => (*key, &*format!("prefix:{}", bench.session).leak()),
                value => (*key, value),
            })
            .collect();
        let error = bench.run(&attrs).await.unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    // Failed transfers leave nothing behind.
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(bench.store.find("local-shared-key::prefix-context::shared").is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_are_per_session_and_filter() {
    let bench = Bench::new().await;
    let key = async |attrs: &[(&str, &str)]| {
        let request = bench.request("local://context", attrs);
        let mut instance = bench.sources.resolve(request).await.unwrap();
        instance.cache_key(0, &Progress::silent()).await.unwrap().key
    };
    let expected = |json: String| format!("session:context:{}", Digest::of(json));
    let session = &bench.session;
    let plain = format!(
        r#"{{"SessionID":"{session}","IncludePatterns":null,"ExcludePatterns":null,"FollowPaths":null}}"#
    );
    assert_eq!(key(&[]).await, expected(plain.clone()));
    assert_eq!(
        key(&[("local.sharedkeyhint", "h"), ("local.differ", "none")]).await,
        expected(plain)
    );
    let full = r#"{"SessionID":"s","IncludePatterns":["a"],"ExcludePatterns":[],"FollowPaths":["\u003cf"],"MetadataTransfer":true,"MetadataExceptions":["m"]}"#;
    let attrs = [
        ("local.session", "s"),
        ("local.includepattern", r#"["a"]"#),
        ("local.excludepatterns", "[]"),
        ("local.followpaths", r#"["<f"]"#),
        ("local.metadatatransfer", "1"),
        ("local.metadatatransferexclude", r#"["m"]"#),
    ];
    assert_eq!(key(&attrs).await, expected(full.to_owned()));
    let unknown = bench.sources.resolve(bench.request("nope://x", &[])).await.err().unwrap();
    assert_eq!(unknown.to_string(), "unknown scheme nope");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_session_is_replaced_by_another() {
    if skip() {
        return;
    }
    let bench = Bench::new().await;
    bench.write("a", "one");
    let record = bench.run(&[("local.session", "gone")]).await.unwrap();
    assert_eq!(read(&record, "a").unwrap(), "one");
}
