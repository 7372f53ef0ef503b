//! Networks and servers for tests.
//!
//! Recorded definitions name servers by port. A test that serves them runs in a network namespace
//! of its own, where every port is free: processes that it starts are in there too.

use std::{
    collections::HashMap,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
};

use crate::{BUSYBOX, eventually};

/// Runs `test` in a network of its own that has nothing but a loopback interface.
pub fn in_own_network(test: impl FnOnce() + Send + 'static) {
    let thread = std::thread::spawn(move || {
        // SAFETY: only this thread's network changes, and nothing was opened on it before.
        unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }
            .expect("make a network namespace");
        let up = Command::new(BUSYBOX).args(["ip", "link", "set", "lo", "up"]).status();
        assert!(up.is_ok_and(|status| status.success()), "bring the loopback interface up");
        test();
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// What a path is answered with.
#[derive(Clone)]
pub struct Page {
    /// `Content-Type` and other headers, as lines.
    pub headers: String,
    /// The body.
    pub body: Vec<u8>,
}

/// Pages by path, over plain HTTP, and what was asked for. It serves until the process ends.
pub struct Server {
    /// `HOST:PORT`.
    pub address: String,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Server {
    /// Serves pages on an address; port 0 takes any.
    pub fn start(address: &str, pages: HashMap<String, Page>) -> Self {
        let listener = TcpListener::bind(address).expect("listen");
        let address = listener.local_addr().expect("a listener has an address").to_string();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (pages, log) = (Arc::new(pages), asked.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (pages, log) = (pages.clone(), log.clone());
                std::thread::spawn(move || _ = answer(stream, &pages, &log));
            }
        });
        Self { address, asked }
    }

    /// A registry that holds one OCI layout as `NAME:TAG`.
    pub fn registry(address: &str, name: &str, tag: &str, layout: &Path) -> Self {
        let read = |path: &Path| std::fs::read(path).expect("read the layout");
        let index: serde_json::Value =
            serde_json::from_slice(&read(&layout.join("index.json"))).expect("parse index.json");
        let manifest = index["manifests"][0].clone();
        let digest = manifest["digest"].as_str().expect("a manifest has a digest").to_owned();
        let blobs = layout.join("blobs/sha256");
        let page = |kind: &str, digest: &str| Page {
            headers: format!("Content-Type: {kind}\r\nDocker-Content-Digest: {digest}\r\n"),
            body: read(&blobs.join(digest.trim_start_matches("sha256:"))),
        };
        let kind = manifest["mediaType"].as_str().expect("a manifest has a type");
        let mut pages = HashMap::from([(
            "/v2/".to_owned(),
            Page { headers: String::new(), body: b"{}".to_vec() },
        )]);
        for reference in [tag, &digest] {
            pages.insert(format!("/v2/{name}/manifests/{reference}"), page(kind, &digest));
        }
        for entry in std::fs::read_dir(&blobs).expect("list the layout").flatten() {
            let digest = format!("sha256:{}", entry.file_name().to_string_lossy());
            let path = format!("/v2/{name}/blobs/{digest}");
            pages.insert(path, page("application/octet-stream", &digest));
        }
        Self::start(address, pages)
    }

    /// Methods and paths asked for so far.
    pub fn asked(&self) -> Vec<String> {
        self.asked.lock().expect("no panic while holding the log").clone()
    }
}

fn answer(
    stream: TcpStream,
    pages: &HashMap<String, Page>,
    log: &Mutex<Vec<String>>,
) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut stream = stream;
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let mut header = String::new();
    while reader.read_line(&mut header)? > 2 {
        header.clear();
    }
    let mut words = line.split_whitespace();
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let path = path.split('?').next().unwrap_or_default();
    log.lock().expect("no panic while holding the log").push(format!("{method} {path}"));
    let (status, headers, body) = match pages.get(path) {
        Some(page) => ("200 OK", page.headers.as_str(), page.body.as_slice()),
        None => ("404 Not Found", "", &b"{}"[..]),
    };
    let length = body.len();
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n{headers}\r\n"
    )?;
    if method != "HEAD" {
        stream.write_all(body)?;
    }
    stream.flush()
}

/// A `docker-registry` on a free port, empty at first.
pub struct Registry {
    /// `HOST:PORT`.
    pub address: String,
    process: Child,
    _folder: tempfile::TempDir,
}

impl Registry {
    /// Starts one and waits until it answers.
    pub fn start() -> Self {
        let folder = tempfile::tempdir().expect("make a folder");
        let port = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr());
        let address = format!("127.0.0.1:{}", port.expect("find a free port").port());
        let config = format!(
            "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: \
             {}\nhttp:\n  addr: {address}\n",
            folder.path().join("blobs").display()
        );
        std::fs::write(folder.path().join("config.yml"), config).expect("write the settings");
        let process = Command::new("docker-registry")
            .arg("serve")
            .arg(folder.path().join("config.yml"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("start docker-registry");
        let registry = Self { address, process, _folder: folder };
        eventually(Duration::from_secs(10), "the registry answers", || {
            TcpStream::connect(&registry.address).is_ok()
        });
        registry
    }

    /// The manifest that `name` (with its tag) means, as it is stored.
    pub fn manifest(&self, name: &str) -> serde_json::Value {
        let (name, tag) = name.rsplit_once(':').expect("a name with a tag");
        let body = self.get(&format!("/v2/{name}/manifests/{tag}"));
        serde_json::from_slice(&body).expect("a manifest is JSON")
    }

    /// The body of a page.
    pub fn get(&self, path: &str) -> Vec<u8> {
        let mut stream = TcpStream::connect(&self.address).expect("connect");
        let kinds = "application/vnd.oci.image.manifest.v1+json, \
                     application/vnd.oci.image.index.v1+json, \
                     application/vnd.docker.distribution.manifest.v2+json, \
                     application/vnd.docker.distribution.manifest.list.v2+json";
        write!(stream, "GET {path} HTTP/1.0\r\nHost: {}\r\nAccept: {kinds}\r\n\r\n", self.address)
            .expect("ask");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).expect("read the answer");
        let text = String::from_utf8_lossy(&answer);
        assert!(text.starts_with("HTTP/1.0 200"), "{path}: {text}");
        let end = answer.windows(4).position(|four| four == b"\r\n\r\n").expect("an empty line");
        answer.split_off(end + 4)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        _ = self.process.kill();
        _ = self.process.wait();
    }
}
