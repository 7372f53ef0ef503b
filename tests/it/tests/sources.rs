//! Sources from servers of our own: git over ssh and over http, and rules for sources.

use std::{
    fs,
    io::Write as _,
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use it::{Context, Daemon, can_run, has};

fn run(program: &str, args: &[&str], folder: &Path) -> String {
    let output = Command::new(program)
        .args(args)
        .current_dir(folder)
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_AUTHOR_NAME", "x")
        .env("GIT_AUTHOR_EMAIL", "x@x")
        .env("GIT_COMMITTER_NAME", "x")
        .env("GIT_COMMITTER_EMAIL", "x@x")
        .output()
        .unwrap_or_else(|error| panic!("run {program}: {error}"));
    assert!(output.status.success(), "{program} {args:?}: {}", it::text(&output));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// A repository `name.git` with a file `f`, a folder `sub`, a tag and a branch.
fn repository(folder: &Path, name: &str) -> PathBuf {
    let work = folder.join(format!("{name}.work"));
    fs::create_dir(&work).expect("make a folder");
    let git = |args: &[&str]| run("git", args, &work);
    git(&["init", "-q", "-b", "main"]);
    fs::create_dir(work.join("sub")).expect("make a folder");
    fs::write(work.join("f"), "one").expect("write a file");
    fs::write(work.join("sub/g"), "below").expect("write a file");
    git(&["add", "-A"]);
    git(&["commit", "-q", "-m", "one"]);
    git(&["tag", "-a", "v1", "-m", "first"]);
    fs::write(work.join("f"), "two").expect("write a file");
    git(&["commit", "-q", "-a", "-m", "two"]);
    let bare = folder.join(format!("{name}.git"));
    run(
        "git",
        &["clone", "-q", "--bare", &work.display().to_string(), &bare.display().to_string()],
        folder,
    );
    bare
}

/// Ends a program when the test does.
struct Ends(Child);

impl Drop for Ends {
    fn drop(&mut self) {
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("find a port");
    listener.local_addr().expect("it has an address").port()
}

fn built(daemon: &Daemon, args: &[&str], dockerfile: &str) -> tempfile::TempDir {
    let out = tempfile::tempdir().expect("make a folder");
    let context = Context::new("");
    context.write("Dockerfile", dockerfile.as_bytes());
    let (dest, folder) = (out.path().display().to_string(), context.arg());
    let mut all = vec!["build", "--progress", "plain", "-o", &dest];
    all.extend(args);
    all.push(&folder);
    daemon.ok(&all);
    out
}

fn file(folder: &tempfile::TempDir, name: &str) -> String {
    fs::read_to_string(folder.path().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// An agent with one key, and a server that accepts it.
struct Ssh {
    port: u16,
    socket: PathBuf,
    _agent: Ends,
    _server: Ends,
}

fn ssh(folder: &Path) -> Ssh {
    let path = |name: &str| folder.join(name).display().to_string();
    for key in ["host", "user"] {
        run("ssh-keygen", &["-q", "-t", "ed25519", "-N", "", "-f", &path(key)], folder);
    }
    let port = free_port();
    let config = format!(
        "Port {port}\nListenAddress 127.0.0.1\nHostKey {}\nAuthorizedKeysFile {}\n\
         PidFile none\nUsePAM no\nStrictModes no\nPasswordAuthentication no\nPermitRootLogin yes\n",
        path("host"),
        path("user.pub"),
    );
    fs::write(path("config"), config).expect("write the server's settings");
    fs::create_dir_all("/run/sshd").expect("make the server's folder");
    let quiet = |program: &str, args: &[&str]| {
        let mut command = Command::new(program);
        let child = command.args(args).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        Ends(child.unwrap_or_else(|error| panic!("start {program}: {error}")))
    };
    let server = quiet("/usr/sbin/sshd", &["-D", "-e", "-f", &path("config")]);
    let agent = quiet("ssh-agent", &["-D", "-a", &path("agent")]);
    let limit = std::time::Duration::from_secs(10);
    it::eventually(limit, "the server and the agent listen", || {
        TcpStream::connect(("127.0.0.1", port)).is_ok() && folder.join("agent").exists()
    });
    let added = Command::new("ssh-add")
        .arg(path("user"))
        .env("SSH_AUTH_SOCK", path("agent"))
        .stderr(Stdio::null())
        .status();
    assert!(added.is_ok_and(|status| status.success()), "give the agent its key");
    Ssh { port, socket: folder.join("agent"), _agent: agent, _server: server }
}

#[test]
fn git_over_ssh_with_the_clients_agent() {
    let tools = || ["git", "ssh-agent", "ssh-add", "ssh-keygen"].iter().all(|name| has(name));
    if !can_run() || !tools() || !Path::new("/usr/sbin/sshd").is_file() {
        eprintln!("skipped: needs an ssh server and client");
        return;
    }
    let folder = tempfile::tempdir().expect("make a folder");
    let bare = repository(folder.path(), "repo");
    let ssh = ssh(folder.path());
    let daemon = Daemon::start();
    let url = format!("ssh://root@127.0.0.1:{}{}", ssh.port, bare.display());
    let agent = format!("default={}", ssh.socket.display());
    let dockerfile = format!("FROM scratch\nADD {url}#main /all\nADD {url}#v1:sub /sub\n");
    let out = built(&daemon, &["--ssh", &agent], &dockerfile);
    assert_eq!((file(&out, "all/f"), file(&out, "sub/g")), ("two".into(), "below".into()));
    assert!(!out.path().join("all/.git").exists());
    // As the context of the whole build.
    let out = tempfile::tempdir().expect("make a folder");
    let dest = out.path().display().to_string();
    let text = daemon.fails(&["build", "--ssh", &agent, "-o", &dest, &format!("{url}#main")]);
    assert!(text.contains("Dockerfile"), "it was fetched, but holds none: {text}");
    // Without an agent the server lets nobody in.
    let context = Context::new("");
    context.write("Dockerfile", dockerfile.replace("main", "refs/heads/main").as_bytes());
    daemon.fails(&["build", "--no-cache", &context.arg()]);
    daemon.left_clean();
}

/// Serves repositories below `root` over smart http, with a password if one is given.
fn git_http(root: PathBuf, token: Option<&'static str>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("find a port");
    let port = listener.local_addr().expect("it has an address").port();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let root = root.clone();
            std::thread::spawn(move || _ = answer(stream, &root, token));
        }
    });
    port
}

/// One request, answered by `git http-backend`.
fn answer(mut stream: TcpStream, root: &Path, token: Option<&str>) -> std::io::Result<()> {
    use std::io::{BufRead as _, BufReader, Read as _};
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let mut words = line.split_whitespace();
    let (method, target) =
        (words.next().unwrap_or_default().to_owned(), words.next().unwrap_or_default().to_owned());
    let mut headers = std::collections::HashMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(": ") else { break };
        headers.insert(name.to_ascii_lowercase(), value.to_owned());
    }
    if let Some(token) = token
        && headers.get("authorization").map(String::as_str) != Some(token)
    {
        return stream.write_all(
            b"HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Basic realm=\"x\"\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
        );
    }
    let mut body = Vec::new();
    if headers.contains_key("expect") {
        stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
    }
    if let Some(length) = headers.get("content-length").and_then(|text| text.parse().ok()) {
        reader.take(length).read_to_end(&mut body)?;
    }
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let text = |name: &str| headers.get(name).cloned().unwrap_or_default();
    let mut backend = Command::new("git")
        .arg("http-backend")
        .env("GIT_PROJECT_ROOT", root)
        .env("GIT_HTTP_EXPORT_ALL", "1")
        .env("GIT_CONFIG_COUNT", "1")
        .env("GIT_CONFIG_KEY_0", "safe.directory")
        .env("GIT_CONFIG_VALUE_0", "*")
        .env("REQUEST_METHOD", method)
        .env("PATH_INFO", path)
        .env("QUERY_STRING", query)
        .env("CONTENT_TYPE", text("content-type"))
        .env("HTTP_CONTENT_ENCODING", text("content-encoding"))
        .env("GIT_PROTOCOL", text("git-protocol"))
        .env("CONTENT_LENGTH", body.len().to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let mut stdin = backend.stdin.take().expect("it was asked for");
    let writing = std::thread::spawn(move || stdin.write_all(&body));
    let output = backend.wait_with_output()?.stdout;
    _ = writing.join();
    let end = output.windows(4).position(|four| four == b"\r\n\r\n").unwrap_or(0);
    let head = String::from_utf8_lossy(&output[..end]).into_owned();
    let status = head.lines().find_map(|line| line.strip_prefix("Status: ")).unwrap_or("200 OK");
    let content = output.get(end + 4..).unwrap_or_default();
    let length = content.len();
    stream.write_all(
        format!(
            "HTTP/1.1 {status}\r\n{head}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
        )
        .as_bytes(),
    )?;
    stream.write_all(content)
}

#[test]
fn git_over_http_with_submodules_and_a_token() {
    if !can_run() || !has("git") {
        return;
    }
    let folder = tempfile::tempdir().expect("make a folder");
    repository(folder.path(), "inner");
    let outer = repository(folder.path(), "outer");
    // x-access-token:sesame
    const TOKEN: &str = "basic eC1hY2Nlc3MtdG9rZW46c2VzYW1l";
    let open = git_http(folder.path().to_owned(), None);
    let closed = git_http(folder.path().to_owned(), Some(TOKEN));
    let work = folder.path().join("outer.work");
    let inner = format!("http://127.0.0.1:{open}/inner.git");
    run("git", &["submodule", "--quiet", "add", &inner, "module"], &work);
    run("git", &["commit", "-q", "-m", "three"], &work);
    run("git", &["push", "-q", &outer.display().to_string(), "main", "v1"], &work);
    let commit = run("git", &["rev-parse", "HEAD"], &work);

    let daemon = Daemon::start();
    let url = format!("http://127.0.0.1:{open}/outer.git");
    let dockerfile = format!(
        "FROM scratch\nADD {url}#main /all\nADD {url}?tag=v1 /tag\nADD --keep-git-dir {url}#{commit} /kept\n"
    );
    let out = built(&daemon, &[], &dockerfile);
    assert_eq!(file(&out, "all/module/f"), "two");
    assert_eq!(file(&out, "tag/f"), "one");
    assert_eq!(file(&out, "kept/.git/HEAD").trim(), commit);

    let url = format!("http://127.0.0.1:{closed}/inner.git");
    let dockerfile = format!("FROM scratch\nADD {url}#main /all\n");
    let context = Context::new("");
    context.write("Dockerfile", dockerfile.as_bytes());
    daemon.fails(&["build", &context.arg()]);
    let secret = folder.path().join("token");
    fs::write(&secret, "sesame").expect("write the token");
    let secret = format!("id=GIT_AUTH_TOKEN,src={}", secret.display());
    let out = built(&daemon, &["--secret", &secret], &dockerfile);
    assert_eq!(file(&out, "all/f"), "two");

    let rules = folder.path().join("rules.json");
    fs::write(
        &rules,
        format!(
            r#"{{"rules": [{{"action": "DENY", "selector": {{"identifier": "git://127.0.0.1:{open}/*"}}}}]}}"#
        ),
    )
    .expect("write the rules");
    let context = Context::new("");
    context.write("Dockerfile", format!("FROM scratch\nADD {inner}#main /\n").as_bytes());
    let rules = rules.display().to_string();
    let text = daemon.fails(&["build", "--source-policy-file", &rules, &context.arg()]);
    assert!(text.contains("denied by policy"), "{text}");
    daemon.left_clean();
}
