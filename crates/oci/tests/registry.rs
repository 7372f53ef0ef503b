//! The registry client against a real registry (`docker-registry`, where installed) and against
//! servers that misbehave on purpose.

mod server;

use std::{
    path::Path,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use base::Digest;
use futures_util::StreamExt as _;
use oci::{
    Descriptor, Error, Manifest, Provider as _, Pushed, Reference, Registry as _, content, media,
    memory::Memory,
    registry::{
        Anonymous, Client, Credentials, HostConfig, Hosts, Login, Options, Remote,
        RepositoryProvider, StaticLogin,
    },
};
use server::{Answer, Server};

struct Real {
    child: Child,
    address: String,
    folder: tempfile::TempDir,
}

impl Drop for Real {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

impl Real {
    /// Starts a registry, or says why not. `http` is added to its `http` section, `more` at the end.
    fn start(http: &str, more: &str) -> Option<Self> {
        if Command::new("docker-registry").arg("--version").output().is_err() {
            eprintln!(
                "skipped: docker-registry is not installed (apt-get install docker-registry)"
            );
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let address = format!("127.0.0.1:{port}");
        let root = folder.path().display().to_string();
        let (http, more) = (http.replace("FOLDER", &root), more.replace("FOLDER", &root));
        let config = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage:\n  filesystem: {{rootdirectory: {root}/data}}\nhttp:\n  addr: {address}\n{http}{more}"
        );
        std::fs::write(folder.path().join("config.yml"), config).unwrap();
        Self::prepare(folder.path());
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(folder.path().join("config.yml"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let real = Self { child, address, folder };
        let begun = Instant::now();
        while std::net::TcpStream::connect(&real.address).is_err() {
            assert!(begun.elapsed() < Duration::from_secs(20), "docker-registry did not start");
            std::thread::sleep(Duration::from_millis(50));
        }
        Some(real)
    }

    /// Files that configurations may name: a password file and certificates.
    fn prepare(folder: &Path) {
        // user `alice`, password `secret` (bcrypt).
        let password = "alice:$2b$05$4fUQ7lartUcdIMMti2FwgOUfMxBN5F1acPFxWBmcvyR.O/BGbBfde\n";
        std::fs::write(folder.join("htpasswd"), password).unwrap();
    }

    fn name(&self, rest: &str) -> Reference {
        Reference::parse(&format!("{}/{rest}", self.address)).unwrap()
    }
}

fn client(credentials: impl Credentials + 'static, change: impl FnOnce(&mut Options)) -> Remote {
    let mut options = Options::default();
    change(&mut options);
    Client::new(options).session(Arc::new(credentials), false)
}

fn anonymous() -> Remote {
    client(Anonymous, |_| {})
}

/// An image in memory: config and one layer of `size` bytes.
fn image(size: usize) -> (Memory, Reference, Descriptor, Manifest) {
    let memory = Memory::new();
    let reference = Reference::parse("memory.test/source:1").unwrap();
    let layer: Vec<u8> = (0..size).map(|at| (at * 31 % 251) as u8).collect();
    let descriptor =
        memory.add_image(&reference, b"{\"os\":\"linux\"}", &[(media::OCI_LAYER, &layer)]);
    (memory, reference, descriptor, Manifest::new(true, Descriptor::of("", b""), vec![]))
}

async fn parse(
    memory: &Memory,
    reference: &Reference,
    root: &Descriptor,
) -> (bytes::Bytes, Manifest) {
    let body = memory.manifest(reference, root).await.unwrap();
    let manifest = Manifest::parse("image", &body).unwrap();
    (body, manifest)
}

async fn push(remote: &Remote, target: &Reference, size: usize) -> (Descriptor, Manifest) {
    let (memory, reference, root, _) = image(size);
    let (body, manifest) = parse(&memory, &reference, &root).await;
    for blob in manifest.layers.iter().chain([&manifest.config]) {
        remote.push_blob(target, blob, &memory, &[]).await.unwrap();
    }
    remote.push_manifest(target, &root, body).await.unwrap();
    (root, manifest)
}

#[tokio::test]
async fn push_pull_mount_tags() {
    let Some(real) = Real::start("", "") else { return };
    let remote = anonymous();
    let target = real.name("team/app:1");
    let (root, manifest) = push(&remote, &target, 3_000_000).await;
    let found = remote.resolve(&target).await.unwrap();
    assert_eq!(
        (found.digest, found.size, &found.media_type),
        (root.digest, root.size, &root.media_type)
    );
    let provider = RepositoryProvider::new(Arc::new(remote.clone()), target.clone());
    let layer = &manifest.layers[0];
    let bytes = content::read_all(&provider, layer, u64::MAX).await.unwrap();
    assert_eq!(bytes.len() as u64, layer.size);
    let rest = content::into_reader(provider.open(layer, layer.size - 10).await.unwrap());
    let mut rest = Box::pin(rest);
    let mut tail = Vec::new();
    tokio::io::AsyncReadExt::read_to_end(&mut rest, &mut tail).await.unwrap();
    assert_eq!(tail, bytes[bytes.len() - 10..]);

    // Again: nothing to do. Elsewhere on the same host: mounted.
    let (memory, ..) = image(3_000_000);
    assert_eq!(remote.push_blob(&target, layer, &memory, &[]).await.unwrap(), Pushed::Exists);
    let other = real.name("team/other");
    let mounted =
        remote.push_blob(&other, layer, &memory, std::slice::from_ref(&target)).await.unwrap();
    assert_eq!(mounted, Pushed::Mounted(target.clone()));
    // A repository to mount from that does not have the blob: uploaded.
    let third = real.name("third");
    let pushed = remote.push_blob(&third, layer, &memory, &[real.name("nothing")]).await.unwrap();
    assert_eq!(pushed, Pushed::Uploaded);

    let again = target.with_tag("2").unwrap();
    remote.push_manifest(&again, &root, memory_body(&root).await).await.unwrap();
    assert_eq!(remote.tags(&target).await.unwrap(), ["1", "2"]);
    let missing = remote.resolve(&real.name("team/app:3")).await.unwrap_err();
    assert_eq!(missing.to_string(), format!("{}/team/app:3: not found", real.address));
    assert!(missing.is_not_found());
    assert!(remote.resolve(&real.name("nothing:1")).await.unwrap_err().is_not_found());
    let by_digest = target.without_tag_and_digest().with_digest(root.digest);
    assert_eq!(remote.resolve(&by_digest).await.unwrap().digest, root.digest);
    let unknown = Descriptor::of("x", b"unknown");
    assert!(remote.blob(&target, &unknown, 0).await.err().unwrap().is_not_found());
    assert_eq!(remote.referrers(&target, root.digest, None).await.unwrap(), []);
}

async fn memory_body(root: &Descriptor) -> bytes::Bytes {
    let (memory, reference, ..) = image(3_000_000);
    memory.manifest(&reference, root).await.unwrap()
}

#[tokio::test]
async fn a_lying_provider_is_caught() {
    let Some(real) = Real::start("", "") else { return };
    let memory = Memory::new();
    let source = Reference::parse("memory.test/x").unwrap();
    let honest = memory.add_blob(&source, "x", b"honest bytes");
    struct Liar;
    #[async_trait::async_trait]
    impl oci::Provider for Liar {
        async fn open(&self, _: &Descriptor, _: u64) -> oci::Result<oci::BlobStream> {
            Ok(content::once(bytes::Bytes::from_static(b"foul bytes..")))
        }
        fn describe(&self) -> String {
            "liar".into()
        }
    }
    let target = real.name("x");
    assert!(anonymous().push_blob(&target, &honest, &Liar, &[]).await.is_err());
    assert!(anonymous().blob(&target, &honest, 0).await.err().unwrap().is_not_found());
}

#[tokio::test]
async fn passwords() {
    let auth = "auth:\n  htpasswd: {realm: test, path: FOLDER/htpasswd}\n";
    let Some(real) = Real::start("", auth) else { return };
    let login = |secret: &str| StaticLogin {
        host: real.address.clone(),
        login: Login { username: "alice".into(), secret: secret.into() },
    };
    let target = real.name("private:1");
    push(&client(login("secret"), |_| {}), &target, 1000).await;
    assert!(client(login("secret"), |_| {}).resolve(&target).await.is_ok());
    for remote in [client(login("wrong"), |_| {}), anonymous()] {
        let error = remote.resolve(&target).await.unwrap_err();
        assert!(matches!(error, Error::Unauthorized { .. }), "{error}");
        assert!(error.to_string().contains("log in to the registry"), "{error}");
    }
}

#[tokio::test]
async fn private_authority_and_client_certificate() {
    let folder = tempfile::tempdir().unwrap();
    if !server::make_certificates(folder.path()) {
        eprintln!("skipped: openssl is not installed");
        return;
    }
    let at = |name: &str| folder.path().join(name);
    let tls = format!(
        "  tls:\n    certificate: {}\n    key: {}\n    clientcas: [{}]\n",
        at("server.crt").display(),
        at("server.key").display(),
        at("ca.crt").display()
    );
    let Some(real) = Real::start(&tls, "") else { return };
    let with = |config: HostConfig| {
        client(Anonymous, |options| options.hosts = Hosts([(real.address.clone(), config)].into()))
    };
    let trusted = HostConfig {
        http: Some(false),
        ca: vec![at("ca.crt")],
        key_pairs: vec![oci::registry::KeyPair { key: at("client.key"), cert: at("client.crt") }],
        ..HostConfig::default()
    };
    let target = real.name("tls:1");
    push(&with(trusted.clone()), &target, 1000).await;
    // Certificates in one folder.
    let by_folder = HostConfig {
        tls_config_dirs: vec![at("folder")],
        http: Some(false),
        ..HostConfig::default()
    };
    assert!(with(by_folder).resolve(&target).await.is_ok());
    let untrusting = HostConfig { http: Some(false), ..HostConfig::default() };
    let error = with(untrusting).resolve(&target).await.unwrap_err();
    assert!(error.to_string().contains("insecure or ca"), "{error}");
    let anonymous = HostConfig { key_pairs: vec![], ..trusted };
    assert!(with(anonymous).resolve(&target).await.is_err());
    drop(real.folder.path().to_owned());
}

fn local(server: &Server, rest: &str) -> Reference {
    Reference::parse(&format!("{}/{rest}", server.address)).unwrap()
}

#[tokio::test]
async fn servers_in_trouble_are_asked_again() {
    let body = b"{\"schemaVersion\":2,\"manifests\":[]}";
    let count = Arc::new(AtomicUsize::new(0));
    let seen = count.clone();
    let server = Server::start(move |request| {
        assert_eq!(request.path, "/v2/x/manifests/1");
        match seen.fetch_add(1, Ordering::Relaxed) {
            0 => Answer::new(429).header("Retry-After", "0"),
            1 => Answer::new(503),
            _ if request.method == "HEAD" => Answer::new(405),
            _ => Answer::new(200).body(body.to_vec()),
        }
    });
    let found = anonymous().resolve(&local(&server, "x:1")).await.unwrap();
    assert_eq!((found.digest, found.media_type.as_str()), (Digest::of(body), media::OCI_INDEX));
    assert_eq!(count.load(Ordering::Relaxed), 4);
    // For ever in trouble: the last answer, in words.
    let server = Server::start(|_| {
        Answer::new(500)
            .header("Retry-After", "0")
            .body(b"{\"errors\":[{\"code\":\"UNKNOWN\",\"message\":\"disk on fire\"}]}".to_vec())
    });
    let reference = local(&server, "x:1");
    let error = anonymous().resolve(&reference).await.unwrap_err().to_string();
    assert_eq!(
        error,
        format!("{reference}: {} answered 500: unknown: disk on fire", server.address)
    );
}

#[tokio::test]
async fn cut_downloads_are_resumed() {
    let data: Vec<u8> = (0..1_000_000usize).map(|at| (at % 241) as u8).collect();
    let blob = Descriptor::of("x", &data);
    let served = data.clone();
    let count = Arc::new(AtomicUsize::new(0));
    let seen = count.clone();
    let server = Server::start(move |request| {
        let offset: usize = request
            .header("range")
            .and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok())
            .unwrap_or(0);
        let part = served[offset..].to_vec();
        let cut = seen.fetch_add(1, Ordering::Relaxed) < 3;
        let answer = Answer::new(if offset > 0 { 206 } else { 200 }).body(part);
        if cut { answer.cut_after(300_000) } else { answer }
    });
    let provider = RepositoryProvider::new(Arc::new(anonymous()), local(&server, "x"));
    let read = content::read_all(&provider, &blob, u64::MAX).await.unwrap();
    assert_eq!(&read[..], &data[..]);
    assert_eq!(count.load(Ordering::Relaxed), 4);
    // Wrong bytes end in an error, not in a blob.
    let server = Server::start(|_| Answer::new(200).body(vec![1; 1_000_000]));
    let provider = RepositoryProvider::new(Arc::new(anonymous()), local(&server, "x"));
    let error = content::read_all(&provider, &blob, u64::MAX).await.unwrap_err();
    assert!(
        format!("{error:?}").contains("arrived damaged")
            || format!("{error:?}").contains("Corrupt")
    );
}

#[tokio::test]
async fn cut_manifests_are_read_again() {
    let body = format!("{{\"schemaVersion\":2,\"manifests\":[],\"x\":\"{}\"}}", "y".repeat(50_000));
    let manifest = Descriptor::of(media::OCI_INDEX, body.as_bytes());
    let count = AtomicUsize::new(0);
    let served = body.clone().into_bytes();
    let server = Server::start(move |_| {
        let answer = Answer::new(200).body(served.clone());
        if count.fetch_add(1, Ordering::Relaxed) == 0 { answer.cut_after(100) } else { answer }
    });
    let read = anonymous().manifest(&local(&server, "x"), &manifest).await.unwrap();
    assert_eq!(&read[..], body.as_bytes());
}

#[tokio::test]
async fn pushing_what_must_be_pulled_from_the_same_host() {
    let Some(real) = Real::start("", "") else { return };
    let remote = client(Anonymous, |options| options.concurrency_per_host = 1);
    let (_, manifest) = push(&remote, &real.name("from:1"), 100_000).await;
    let provider = RepositoryProvider::new(Arc::new(remote.clone()), real.name("from"));
    let target = real.name("to");
    let pushes = manifest.layers.iter().chain([&manifest.config]);
    let pushes = pushes.map(|blob| remote.push_blob(&target, blob, &provider, &[]));
    let all = futures_util::future::try_join_all(pushes);
    let done =
        tokio::time::timeout(Duration::from_secs(30), all).await.expect("no waiting for itself");
    assert_eq!(done.unwrap(), [Pushed::Uploaded, Pushed::Uploaded]);
}

#[tokio::test]
async fn broken_uploads_are_resumed_in_parts() {
    let data: Vec<u8> = (0..900_000usize).map(|at| (at % 239) as u8).collect();
    let memory = Memory::new();
    let blob = memory.add_blob(&Reference::parse("m.test/x").unwrap(), "x", &data);
    let received = Arc::new(std::sync::Mutex::new(Vec::<u8>::new()));
    let store = received.clone();
    let log = Arc::new(std::sync::Mutex::new(Vec::<String>::new()));
    let lines = log.clone();
    let server = Server::start(move |request| {
        let mut received = store.lock().unwrap();
        let path = request.path.split('?').next().unwrap().to_owned();
        lines.lock().unwrap().push(format!("{} {path}", request.method));
        let has_digest = request.path.contains("digest=sha256");
        match (request.method.as_str(), path.as_str()) {
            ("GET", "/v2/") => Answer::new(200),
            ("HEAD", _) => Answer::new(404),
            ("POST", _) => Answer::new(202).header("Location", "/v2/x/blobs/uploads/1?state=a"),
            // The first, monolithic attempt stops after a part.
            ("PUT", _) if !request.body.is_empty() => {
                received.extend(&request.body[..250_000]);
                Answer::new(503)
            }
            ("GET", _) => Answer::new(204)
                .header("Location", "/v2/x/blobs/uploads/1?state=b")
                .header("Range", &format!("0-{}", received.len() - 1)),
            ("PATCH", _) => {
                let start = received.len();
                let expected = format!("{start}-{}", start + request.body.len() - 1);
                assert_eq!(request.header("content-range"), Some(expected.as_str()));
                received.extend(&request.body);
                Answer::new(202).header("Location", "/v2/x/blobs/uploads/1?state=c")
            }
            ("PUT", _) if has_digest => Answer::new(201),
            _ => Answer::new(400),
        }
    });
    let remote = client(Anonymous, |options| options.chunk_size = 300_000);
    let target = local(&server, "x");
    let pushed = remote.push_blob(&target, &blob, &memory, &[]).await.unwrap();
    assert_eq!(pushed, Pushed::Uploaded);
    assert_eq!(Digest::of(&*received.lock().unwrap()), blob.digest);
    let log = log.lock().unwrap();
    assert_eq!(log.iter().filter(|line| line.starts_with("PATCH")).count(), 3, "{log:?}");
}

#[tokio::test]
async fn tokens_are_fetched_reused_and_renewed() {
    let fetched = Arc::new(AtomicUsize::new(0));
    let tokens = fetched.clone();
    let realm = Arc::new(std::sync::Mutex::new(String::new()));
    let known_realm = realm.clone();
    // Every token is good for three requests only.
    let uses = Arc::new(AtomicUsize::new(0));
    let server = Server::start(move |request| {
        if request.path.starts_with("/token") {
            assert!(request.path.contains("service=test"), "{}", request.path);
            assert!(
                request.path.contains("scope=repository%3Ateam%2Fapp%3Apull"),
                "{}",
                request.path
            );
            assert_eq!(request.header("authorization"), Some("Basic YWxpY2U6c2VjcmV0"));
            let number = tokens.fetch_add(1, Ordering::Relaxed);
            uses.store(0, Ordering::Relaxed);
            let body = format!("{{\"token\":\"t{number}\",\"expires_in\":300}}");
            return Answer::new(200).body(body.into_bytes());
        }
        let current = format!("Bearer t{}", tokens.load(Ordering::Relaxed).wrapping_sub(1));
        let good = request.header("authorization") == Some(current.as_str());
        if !good || uses.fetch_add(1, Ordering::Relaxed) >= 3 {
            let realm = known_realm.lock().unwrap();
            let challenge = format!(
                "Bearer realm=\"{realm}\",service=\"test\",scope=\"repository:team/app:pull\""
            );
            return Answer::new(401).header("WWW-Authenticate", &challenge);
        }
        Answer::new(200).body(b"{\"tags\":[\"b\",\"a\"]}".to_vec())
    });
    *realm.lock().unwrap() = format!("http://{}/token", server.address);
    let login = StaticLogin {
        host: server.address.clone(),
        login: Login { username: "alice".into(), secret: "secret".into() },
    };
    let hosts = Hosts(
        [(server.address.clone(), HostConfig { http: Some(true), ..Default::default() })].into(),
    );
    let remote = client(login, |options| options.hosts = hosts);
    for _ in 0..7 {
        assert_eq!(remote.tags(&local(&server, "team/app")).await.unwrap(), ["a", "b"]);
    }
    assert_eq!(fetched.load(Ordering::Relaxed), 3);
}

#[tokio::test]
async fn absent_registries_are_reported_soon() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let begun = Instant::now();
    let reference = Reference::parse(&format!("127.0.0.1:{port}/x:1")).unwrap();
    let error = anonymous().resolve(&reference).await.unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }), "{error}");
    assert!(error.to_string().contains("refused"), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(3));
}

#[tokio::test]
async fn mirrors_come_first_and_may_fail() {
    let body = b"{\"schemaVersion\":2,\"manifests\":[]}";
    let mirror = Server::start(move |request| {
        assert!(request.path.ends_with("?ns=hub.test"), "{}", request.path);
        match request.path.starts_with("/v2/cache/a/") {
            true => Answer::new(200).body(body.to_vec()),
            false => Answer::new(404),
        }
    });
    let origin = Server::start(|_| {
        Answer::new(200).body(b"{\"schemaVersion\":2,\"manifests\":null}".to_vec())
    });
    let table =
        HostConfig { mirrors: vec![format!("{}/cache", mirror.address)], ..Default::default() };
    let hosts = Hosts(
        [("hub.test".to_owned(), table), (origin.address.clone(), HostConfig::default())].into(),
    );
    let remote = client(Anonymous, |options| options.hosts = hosts);
    let found = remote.resolve(&Reference::parse("hub.test/a:1").unwrap()).await.unwrap();
    assert_eq!(found.digest, Digest::of(body));
    // The mirror says no; the registry itself cannot be reached: both are told.
    let error = remote.resolve(&Reference::parse("hub.test/b:1").unwrap()).await.unwrap_err();
    assert!(error.is_not_found(), "{error}");
    assert!(error.to_string().contains("registry hub.test did not answer: "), "{error}");
    assert!(error.to_string().ends_with(" says: not found"), "{error}");
}

#[tokio::test]
async fn tls_on_localhost_is_found() {
    let folder = tempfile::tempdir().unwrap();
    if !server::make_certificates(folder.path()) {
        eprintln!("skipped: openssl is not installed");
        return;
    }
    let at = |name: &str| folder.path().join(name);
    let tls = format!(
        "  tls:\n    certificate: {}\n    key: {}\n",
        at("server.crt").display(),
        at("server.key").display()
    );
    let Some(real) = Real::start(&tls, "") else { return };
    let config = HostConfig { ca: vec![at("ca.crt")], ..HostConfig::default() };
    let remote = client(Anonymous, |options| {
        options.hosts = Hosts([(real.address.clone(), config)].into());
    });
    let target = real.name("tls:1");
    push(&remote, &target, 1000).await;
    assert!(remote.resolve(&target).await.is_ok());
}

#[tokio::test]
async fn a_repeated_push_only_looks() {
    let (memory, reference, root, _) = image(50_000);
    let (body, manifest) = parse(&memory, &reference, &root).await;
    let methods = Arc::new(std::sync::Mutex::new(Vec::new()));
    let (seen, digest, size) = (methods.clone(), root.digest, root.size);
    let server =
        Server::start(move |request| {
            // Whether it speaks TLS is found out once for each host.
            if request.path != "/v2/" {
                seen.lock().unwrap().push(request.method.clone());
            }
            let answer = Answer::new(200).header("Docker-Content-Digest", &digest.to_string());
            match request.path.contains("/manifests/") {
                // The body of an answer to HEAD is never sent; its length is.
                true => answer
                    .header("Content-Type", media::OCI_MANIFEST)
                    .body(vec![b' '; usize::try_from(size).unwrap()]),
                false => answer,
            }
        });
    let (remote, target) = (anonymous(), local(&server, "x:1"));
    for blob in manifest.layers.iter().chain([&manifest.config]) {
        assert_eq!(remote.push_blob(&target, blob, &memory, &[]).await.unwrap(), Pushed::Exists);
    }
    remote.push_manifest(&target, &root, body).await.unwrap();
    assert!(remote.has_manifest(&target, &root).await.unwrap());
    let other = Descriptor { digest: Digest::of(b"another"), ..root.clone() };
    assert!(!remote.has_manifest(&target, &other).await.unwrap());
    assert_eq!(*methods.lock().unwrap(), ["HEAD"; 5]);
}

#[tokio::test]
async fn silent_servers_are_given_up() {
    let server = Server::start(|_| {
        std::thread::sleep(Duration::from_secs(30));
        Answer::new(200)
    });
    let remote = client(Anonymous, |options| options.patience = Duration::from_millis(50));
    let begun = Instant::now();
    let error = remote.resolve(&local(&server, "x:1")).await.unwrap_err().to_string();
    assert!(begun.elapsed() < Duration::from_secs(20));
    assert!(error.contains(&format!("registry {} did not answer", server.address)), "{error}");
}

/// A blob that is long in coming.
struct Slow(Vec<u8>);

#[async_trait::async_trait]
impl oci::Provider for Slow {
    async fn open(&self, _: &Descriptor, offset: u64) -> oci::Result<oci::BlobStream> {
        let offset = usize::try_from(offset).unwrap();
        let pieces: Vec<_> = self.0[offset..].iter().map(|byte| vec![*byte].into()).collect();
        let slowly = futures_util::stream::iter(pieces).then(|piece| async {
            tokio::time::sleep(Duration::from_millis(150)).await;
            Ok(piece)
        });
        Ok(slowly.boxed())
    }

    fn describe(&self) -> String {
        "slow".into()
    }
}

/// However long an upload takes, it goes on as long as something moves.
#[tokio::test]
async fn long_uploads_are_not_silence() {
    let server = Server::start(|request| match request.method.as_str() {
        "POST" => Answer::new(202).header("Location", "/v2/x/blobs/uploads/1"),
        "PUT" => Answer::new(201),
        _ => Answer::new(404),
    });
    let remote = client(Anonymous, |options| options.patience = Duration::from_secs(1));
    let bytes = vec![7; 10];
    let blob = Descriptor::of(media::OCI_LAYER_GZIP.to_owned(), &bytes);
    remote.push_blob(&local(&server, "x:1"), &blob, &Slow(bytes), &[]).await.unwrap();
}
