//! A small server on loopback and what the source makes of its answers.

use std::{collections::BTreeMap, sync::Mutex};

use llb::pb;
use session::Sessions;
use store::Config;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpListener,
};

use super::*;
use crate::Sources;

/// Answers by path: status line, headers and body as text after an empty line.
#[derive(Default)]
struct Server {
    answers: Mutex<BTreeMap<String, String>>,
    /// Method, path and the headers of interest of every request.
    log: Mutex<Vec<String>>,
}

async fn serve(server: Arc<Server>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(answer(server.clone(), stream));
        }
    });
    address
}

async fn answer(server: Arc<Server>, stream: tokio::net::TcpStream) {
    let mut stream = BufReader::new(stream);
    let mut request = String::new();
    while !request.ends_with("\r\n\r\n") {
        if stream.read_line(&mut request).await.unwrap_or(0) == 0 {
            return;
        }
    }
    let mut lines = request.lines();
    let mut first = lines.next().unwrap().split(' ');
    let (method, path) = (first.next().unwrap(), first.next().unwrap());
    let mut told = format!("{method} {path}");
    let mut tag = String::new();
    for line in lines {
        let lower = line.to_ascii_lowercase();
        for name in ["if-none-match", "authorization", "accept", "user-agent"] {
            let boring = lower == "accept: */*" || lower.starts_with("user-agent: rbuild/");
            if lower.starts_with(&format!("{name}:")) && !boring {
                told.push_str(&format!(" [{line}]"));
                if name == "if-none-match" {
                    line.split_once(": ").unwrap().1.clone_into(&mut tag);
                }
            }
        }
    }
    server.log.lock().unwrap().push(told);
    let text = server.answers.lock().unwrap().get(path).cloned();
    let text = text.unwrap_or_else(|| "404 Not Found\n\n".to_owned());
    let (head, body) = text.split_once("\n\n").unwrap();
    let same = !tag.is_empty() && head.contains(&tag) && !head.contains("X-Ignore-Tags");
    let (head, body) = match same {
        true => (head.replacen("200 OK", "304 Not Modified", 1), ""),
        false => (head.to_owned(), body),
    };
    let head = head.replace('\n', "\r\n");
    let length = if same { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
    let body = if method == "HEAD" { "" } else { body };
    let whole = format!("HTTP/1.1 {head}\r\n{length}Connection: close\r\n\r\n{body}");
    _ = stream.write_all(whole.as_bytes()).await;
    let mut rest = Vec::new();
    _ = stream.read_to_end(&mut rest).await;
}

struct Bench {
    _state: tempfile::TempDir,
    sources: Sources,
    server: Arc<Server>,
    address: String,
    memo: Mutex<Arc<Memo>>,
}

impl Bench {
    async fn new(answers: &[(&str, &str)]) -> Self {
        let state = tempfile::tempdir().unwrap();
        let mut config = Config::new(state.path());
        config.snapshotter = snapshot::Choice::Native;
        let store = Store::open(config).unwrap();
        let server = Arc::new(Server::default());
        let address = serve(server.clone()).await;
        let http: Arc<dyn Source> = Arc::new(HttpSource::new(store));
        let sources = Sources::new([http], Arc::default());
        let bench = Self { _state: state, sources, server, address, memo: Mutex::default() };
        answers.iter().for_each(|(path, answer)| bench.answer(path, answer));
        bench
    }

    fn answer(&self, path: &str, answer: &str) {
        let answer = answer.replace("BASE", &self.address);
        self.server.answers.lock().unwrap().insert(path.to_owned(), answer);
    }

    fn request(&self, path: &str, attrs: &[(&str, &str)]) -> SourceRequest {
        let attrs = attrs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        let identifier = format!("{}{path}", self.address);
        SourceRequest {
            op: pb::SourceOp { identifier, attrs: attrs.collect() },
            platform: base::Platform::host(),
            group: Sessions::new().group(Vec::<String>::new()),
            memo: self.memo.lock().unwrap().clone(),
            progress: Progress::silent(),
        }
    }

    fn next_build(&self) {
        *self.memo.lock().unwrap() = Arc::default();
    }

    /// The file's name, mode, time and content, or the error.
    async fn run(&self, path: &str, attrs: &[(&str, &str)]) -> String {
        let run = async {
            let request = self.request(path, attrs);
            let mut instance = self.sources.resolve(request).await?;
            instance.cache_key(0, &Progress::silent()).await?;
            instance.snapshot(&Progress::silent()).await
        };
        match run.await {
            Ok(record) => show(&record.unwrap()),
            Err(error) => error.to_string().replace(&self.address, "BASE"),
        }
    }

    async fn key(&self, path: &str, attrs: &[(&str, &str)]) -> String {
        let mut instance = self.sources.resolve(self.request(path, attrs)).await.unwrap();
        instance.cache_key(0, &Progress::silent()).await.unwrap().key
    }

    fn log(&self) -> String {
        std::mem::take(&mut *self.server.log.lock().unwrap()).join(", ")
    }
}

fn show(record: &Ref) -> String {
    use std::os::unix::fs::MetadataExt as _;
    let tree = record.tree().unwrap();
    let entry = std::fs::read_dir(tree.path()).unwrap().next().unwrap().unwrap();
    let metadata = entry.metadata().unwrap();
    let text = std::fs::read_to_string(entry.path()).unwrap();
    format!(
        "{} {:o} {}:{} @{} {text:?}",
        entry.file_name().to_string_lossy(),
        metadata.mode() & 0o7777,
        metadata.uid(),
        metadata.gid(),
        metadata.mtime()
    )
}

const DATED: &str = "200 OK\nETag: \"v1\"\nLast-Modified: Sun, 06 Nov 1994 08:49:37 GMT\n\nhello";

#[tokio::test(flavor = "multi_thread")]
async fn a_file_is_fetched_once_and_then_only_asked_about() {
    let bench = Bench::new(&[("/dir/f.txt", DATED)]).await;
    let expected = "f.txt 600 0:0 @784111777 \"hello\"";
    assert_eq!(bench.run("/dir/f.txt", &[]).await, expected);
    assert_eq!(bench.run("/dir/f.txt", &[]).await, expected);
    assert_eq!(bench.log(), "GET /dir/f.txt");
    bench.next_build();
    assert_eq!(bench.run("/dir/f.txt", &[]).await, expected);
    assert_eq!(bench.log(), "HEAD /dir/f.txt [if-none-match: \"v1\"]");
    bench.next_build();
    bench.answer("/dir/f.txt", "200 OK\nETag: W/\"v2\"\n\nnew");
    assert_eq!(bench.run("/dir/f.txt", &[]).await, "f.txt 600 0:0 @0 \"new\"");
    assert!(bench.log().ends_with("GET /dir/f.txt [if-none-match: \"v1\"]"));
    bench.next_build();
    // A server that sends it all again all the same.
    bench.answer("/dir/f.txt", "200 OK\nX-Ignore-Tags: 1\nETag: \"v2\"\n\nnew");
    assert_eq!(bench.run("/dir/f.txt", &[]).await, "f.txt 600 0:0 @0 \"new\"");
    let log = bench.log();
    assert!(log.starts_with("HEAD") && !log.contains("GET"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn attributes_shape_the_file() {
    let bench = Bench::new(&[
        ("/", "200 OK\n\nroot"),
        ("/a%20b", "200 OK\n\nx"),
        ("/named", "200 OK\nContent-Disposition: attachment; filename=\"../n.tgz\"\n\nx"),
        ("/moved", "302 Found\nLocation: BASE/named\n\n"),
        ("/broken", "500 Oops\n\nx"),
    ])
    .await;
    assert_eq!(bench.run("/", &[]).await, "download 600 0:0 @0 \"root\"");
    assert_eq!(bench.run("/a%20b", &[]).await, "a b 600 0:0 @0 \"x\"");
    assert_eq!(bench.run("/named", &[]).await, "n.tgz 600 0:0 @0 \"x\"");
    assert_eq!(bench.run("/moved", &[("http.perm", "0755")]).await, "n.tgz 755 0:0 @0 \"x\"");
    assert_eq!(bench.run("/named", &[("http.filename", "d/f")]).await, "f 600 0:0 @0 \"x\"");
    if rustix::process::geteuid().is_root() {
        let attrs = [("http.uid", "5"), ("http.gid", "0x10")];
        assert_eq!(bench.run("/named", &attrs).await, "n.tgz 600 5:16 @0 \"x\"");
    }
    assert_eq!(bench.run("/broken", &[]).await, "invalid response status 500");
    assert_eq!(bench.run("/gone", &[]).await, "invalid response status 404");
    assert_eq!(bench.run("/", &[("http.perm", "x")]).await, "invalid value for http.perm \"x\"");
    let error = bench.run("/", &[("http.sig.pubkey", "x")]).await;
    assert!(error.contains("http.checksum"), "{error}");
    let error = bench.run("/", &[("http.authheadersecret", "s")]).await;
    assert_eq!(error, "failed to retrieve HTTP auth secret s: no active sessions");
    bench.log();
    bench.next_build();
    let attrs = [("http.header.accept", "a/b"), ("http.header.x-other", "c")];
    bench.run("/named", &attrs).await;
    assert_eq!(bench.log(), "GET /named [accept: a/b]");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checksum_is_the_key_and_is_checked() {
    let bench = Bench::new(&[("/f", DATED)]).await;
    let good = Digest::of("hello").to_string();
    let attrs = [("http.checksum", good.as_str())];
    let key = bench.key("/f", &attrs).await;
    assert_eq!(bench.log(), "");
    let json = format!(r#"{{"Filename":"f","Perm":0,"UID":0,"GID":0,"Checksum":"{good}"}}"#);
    assert_eq!(key, Digest::of(json).to_string());
    assert_eq!(bench.run("/f", &attrs).await, "f 600 0:0 @784111777 \"hello\"");
    assert_eq!(bench.log(), "GET /f");
    bench.next_build();
    assert_eq!(bench.run("/f", &attrs).await, "f 600 0:0 @784111777 \"hello\"");
    assert_eq!(bench.log(), "", "a verified file is good for ever");

    let bad = Digest::of("other").to_string();
    bench.answer("/g", "200 OK\n\nhello");
    assert_eq!(
        bench.run("/g", &[("http.checksum", &bad)]).await,
        format!("digest mismatch for BASE/g: {good} (expected: {bad})")
    );
    let key = bench.key("/f", &[("http.header.user-agent", "me"), ("http.perm", "0644")]).await;
    let json = format!(
        r#"{{"Filename":"f","Perm":420,"UID":0,"GID":0,"Checksum":"{good}","LastModTime":"Sun, 06 Nov 1994 08:49:37 GMT","Header":[{{"Name":"User-Agent","Value":"me"}}]}}"#
    );
    assert_eq!(key, Digest::of(json).to_string());

    let source = bench.request("/f", &[]);
    let request = MetaRequest {
        source,
        resolve_mode: String::new(),
        no_config: false,
        attestations: None,
        git_objects: false,
        http_checksum: None,
    };
    let meta = bench.sources.metadata(request).await.unwrap().http.unwrap();
    assert_eq!((meta.checksum, meta.filename.as_str()), (good, "f"));
    assert_eq!(meta.last_modified, Some(base::time::from_unix_seconds(784_111_777)));
}

#[test]
fn a_body_is_unpacked_on_the_way() {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(b"content").unwrap();
    let zipped = encoder.finish().unwrap();
    let plain = Plain { file: tempfile::tempfile().unwrap(), hasher: Hasher::new() };
    let mut target = Target::Zipped(Box::new(flate2::write::MultiGzDecoder::new(plain)));
    for piece in zipped.chunks(5) {
        target.write(piece).unwrap();
    }
    assert_eq!(target.finish().unwrap().hasher.finish(), Digest::of("content"));
    let plain = Plain { file: tempfile::tempfile().unwrap(), hasher: Hasher::new() };
    let mut cut = Target::Zipped(Box::new(flate2::write::MultiGzDecoder::new(plain)));
    cut.write(&zipped[..zipped.len() - 6]).unwrap();
    assert!(cut.finish().is_err());
}
