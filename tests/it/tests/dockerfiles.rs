//! Dockerfiles built and run for real, one text file each (`cases/dockerfiles`).
//!
//! A case is sections: `Dockerfile`, `file PATH` (in the context), `local NAME PATH` (in a named
//! local context), `image NAME` (a Dockerfile whose image is a named context), `archive NAME PATH`
//! (a file in a tar file of the context), `secret NAME`, `git PATH` (in a repository served over
//! HTTP), `http PATH`, `http-archive NAME`, `context`, `args` and `needs`, one word a line, then
//! `expect`:
//!
//! ```text
//! PATH = TEXT         the file holds the text, newlines as \n, the last one left out
//! PATH mode MODE      as also `PATH owner UID:GID` and `PATH exists`
//! no PATH
//! config POINTER = JSON
//! fails TEXT          the build fails, and says so
//! ```
//!
//! All cases share a daemon; `FROM base` is a busybox image.

use std::{
    collections::HashMap,
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use it::{Context, Daemon, can_run, has};
use serde_json::Value;

/// Builds at a time.
const WORKERS: usize = 3;

#[test]
fn dockerfiles_build_and_run() {
    if !can_run() || !has("git") {
        return;
    }
    let daemon = Daemon::start();
    let base = Image::build(&daemon, &Context::new(""), &[]);
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("cases/dockerfiles");
    let mut files: Vec<PathBuf> =
        fs::read_dir(folder).expect("list the cases").map(|entry| entry.unwrap().path()).collect();
    files.sort();
    if let Ok(only) = std::env::var("RBUILD_CASE") {
        files.retain(|file| file.to_string_lossy().contains(&only));
    }
    let (next, failures) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(|| {
                while let Some(file) = files.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let name = file.file_stem().unwrap().to_string_lossy().into_owned();
                    if let Err(problem) = Case::read(file).run(&daemon, &base) {
                        failures.lock().unwrap().push(format!("== {name}\n{problem}"));
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().unwrap();
    assert!(failures.is_empty(), "{} of {}:\n{}", failures.len(), files.len(), failures.join("\n"));
    daemon.left_clean();
}

#[test]
fn files_are_checked_and_described() {
    if !can_run() {
        return;
    }
    let daemon = Daemon::start();
    let context = Context::new("");
    let place = context.arg();
    let call = |dockerfile: &str, args: &[&str]| {
        write(&context.path().join("Dockerfile"), dockerfile);
        let output = daemon.ctl(&[&["build"], args, &[place.as_str()]].concat());
        (output.status.code(), it::text(&output))
    };
    let clean = "# made is the only stage\nFROM scratch AS made\n# A is a number\nARG A=1\n";
    let (code, text) = call(clean, &["--check"]);
    assert!(code == Some(0) && text.contains("Check complete, no warnings found."), "{text}");
    let (code, text) = call("FROM scratch as made\nENV a b\n", &["--check"]);
    assert!(code == Some(1) && text.contains("2 warnings have been found"), "{text}");
    assert!(text.contains("LegacyKeyValueFormat") && text.contains(">>> ENV a b"), "{text}");
    let ignored = ["--call", "check,format=json,ignorestatus=true"];
    let (code, text) = call("FROM scratch as made\n", &ignored);
    let found: Value = serde_json::from_str(&text).expect("it is JSON");
    assert_eq!((code, &found["warnings"][0]["ruleName"]), (Some(0), &"FromAsCasing".into()));
    let (_, text) = call(clean, &["--call", "outline,format=json"]);
    let outline: Value = serde_json::from_str(&text).expect("it is JSON");
    assert_eq!(outline["args"][0]["description"], "is a number", "{outline}");
    let (_, text) = call(clean, &["--call", "targets"]);
    assert!(text.contains("made (default)") && text.contains("the only stage"), "{text}");
    // A mistake is shown where it is, whoever finds it.
    for args in [&["--check"][..], &[]] {
        let (code, text) = call("FROM scratch\nCOPY --fron=x a b\n", args);
        assert_eq!(code, Some(1), "{text}");
        assert!(text.contains("--fron (did you mean from?)"), "{text}");
        assert!(text.contains("COPY --fron=x a b\n     |          ^^^^^^\n"), "{text}");
    }
    let (code, text) = call(clean, &["--target", "maed"]);
    assert!(code == Some(1) && text.contains("(did you mean made?)"), "{text}");
    let (_, text) = call("FROM scratch\nARG NAME\n", &["--build-arg", "NAEM=1"]);
    assert!(text.contains("build arg NAEM (did you mean NAME?)"), "{text}");
    daemon.left_clean();
}

#[test]
fn files_and_contexts_come_from_the_standard_input() {
    if !can_run() {
        return;
    }
    let daemon = Daemon::start();
    let context = Context::new("");
    context.write("data", b"in the folder");
    let out = tempfile::tempdir().expect("make a folder");
    let dest = format!("type=local,dest={}", out.path().display());
    let build = |args: &[&str], input: &[u8]| {
        let mut command = daemon.command(&[&["build", "-o", &dest], args].concat());
        let mut client =
            command.stdin(Stdio::piped()).stderr(Stdio::null()).spawn().expect("start rbuildctl");
        let mut stdin = client.stdin.take().expect("it was piped");
        stdin.write_all(input).expect("write the input");
        drop(stdin);
        assert!(client.wait().expect("wait for rbuildctl").success());
    };
    let read = |name: &str| fs::read_to_string(out.path().join(name)).expect("read a file");
    let place = context.arg();
    build(&["-f", "-", &place], b"FROM scratch\nCOPY data /one\n");
    assert_eq!(read("one"), "in the folder");
    build(&["-"], b"FROM scratch\nCOPY <<E /two\ninline\nE\n");
    assert_eq!(read("two"), "inline\n");
    // A tar file is the whole context.
    write(&context.path().join("Dockerfile"), "FROM scratch\nCOPY data /three\n");
    let mut tar = Command::new("tar");
    let tar = tar.arg("-czf").arg("-").arg("-C").arg(context.path()).arg(".");
    build(&["-"], &tar.output().expect("start tar").stdout);
    assert_eq!(read("three"), "in the folder");
    daemon.left_clean();
}

/// An image in an OCI layout.
struct Image(tempfile::TempDir);

impl Image {
    fn build(daemon: &Daemon, context: &Context, args: &[String]) -> Self {
        let folder = tempfile::tempdir().expect("make a folder");
        let output = format!("type=oci,tar=false,dest={}", folder.path().display());
        let place = context.arg();
        let mut all = vec!["build", "-o", &output, &place];
        all.extend(args.iter().map(String::as_str));
        daemon.ok(&all);
        Self(folder)
    }

    /// As a named context.
    fn context(&self, name: &str) -> [String; 2] {
        let index = json(&self.0.path().join("index.json"));
        let digest = index["manifests"][0]["digest"].as_str().expect("a manifest has a digest");
        let place = self.0.path().display();
        ["--build-context".to_owned(), format!("{name}=oci-layout://{place}@{digest}")]
    }
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).expect("read JSON")).expect("parse JSON")
}

/// A case as written: sections in order.
struct Case(Vec<(String, String)>);

/// What a case needs while it runs.
struct Scene {
    context: tempfile::TempDir,
    /// Secrets, named contexts, archives in the making, the repository, pages.
    rest: tempfile::TempDir,
    git: Option<String>,
    http: Option<String>,
    ssh: Option<Agent>,
}

impl Case {
    fn read(path: &Path) -> Self {
        let text = fs::read_to_string(path).expect("read a case");
        let mut sections: Vec<(String, String)> = Vec::new();
        for line in text.lines() {
            match line.strip_prefix("-- ").and_then(|line| line.strip_suffix(" --")) {
                Some(title) => sections.push((title.to_owned(), String::new())),
                None => {
                    let (_, body) = sections.last_mut().expect("a case begins with a section");
                    body.push_str(line);
                    body.push('\n');
                }
            }
        }
        Self(sections)
    }

    fn section(&self, title: &str) -> Option<&str> {
        let found = self.0.iter().find(|(name, _)| name == title);
        found.map(|(_, body)| body.as_str())
    }

    /// Sections whose title begins with a word, by the rest of it.
    fn all<'a>(&'a self, word: &'a str) -> impl Iterator<Item = (&'a str, &'a str)> {
        self.0.iter().filter_map(move |(title, body)| {
            let rest = title.strip_prefix(word)?.strip_prefix(' ')?;
            Some((rest, body.as_str()))
        })
    }

    fn run(&self, daemon: &Daemon, base: &Image) -> Result<(), String> {
        if self.section("needs").unwrap_or_default().lines().any(|program| !has(program)) {
            return Ok(());
        }
        let scene = self.scene();
        let fill = |text: &str| self.fill(text, &scene);
        let mut args: Vec<String> = base.context("base").to_vec();
        let mut images = Vec::new();
        for (name, dockerfile) in self.all("image") {
            let context = Context::new("");
            context.write("Dockerfile", dockerfile.as_bytes());
            images.push((name, Image::build(daemon, &context, &base.context("base"))));
        }
        args.extend(images.iter().flat_map(|(name, image)| image.context(name)));
        let rest = scene.rest.path().display();
        let mut locals: Vec<&str> =
            self.all("local").filter_map(|(title, _)| title.split(' ').next()).collect();
        locals.dedup();
        for name in locals {
            args.extend(["--build-context".into(), format!("{name}={rest}/local/{name}")]);
        }
        for (name, _) in self.all("secret") {
            args.extend(["--secret".into(), format!("id={name},src={rest}/secret/{name}")]);
        }
        args.extend(self.section("args").unwrap_or_default().lines().map(fill));
        let tree = scene.rest.path().join("tree");
        // A tar keeps owners.
        let exported = scene.rest.path().join("tree.tar");
        args.extend(["-o".into(), format!("type=tar,dest={}", exported.display())]);
        let expect = self.section("expect").expect("a case expects something");
        let layout = scene.rest.path().join("layout");
        if expect.lines().any(|line| line.starts_with("config ")) {
            args.extend(["-o".into(), format!("type=oci,tar=false,dest={}", layout.display())]);
        }
        let context = self
            .section("context")
            .map_or_else(|| scene.context.path().display().to_string(), |text| fill(text.trim()));
        let mut all = vec!["build", "--progress", "plain"];
        all.extend(args.iter().map(String::as_str));
        all.push(&context);
        let output = daemon.ctl(&all);
        let said = it::text(&output);
        let mut wrong = String::new();
        let fails = expect.lines().any(|line| line.starts_with("fails "));
        if output.status.success() == fails {
            return Err(format!("the build {}\n{said}", if fails { "succeeds" } else { "fails" }));
        }
        if !fails {
            fs::create_dir(&tree).expect("make a folder");
            run(Command::new("tar").arg("-xpf").arg(&exported).arg("-C").arg(&tree));
        }
        for line in expect.lines() {
            if let Err(problem) = check(line, &tree, &layout, &said) {
                wrong += &format!("{line}: {problem}\n");
            }
        }
        if wrong.is_empty() { Ok(()) } else { Err(format!("{wrong}\n{said}")) }
    }

    /// Writes all files and starts what serves them.
    fn scene(&self) -> Scene {
        let mut scene = Scene {
            context: tempfile::tempdir().expect("make a folder"),
            rest: tempfile::tempdir().expect("make a folder"),
            git: None,
            http: None,
            ssh: None,
        };
        let rest = scene.rest.path();
        for (path, text) in self.all("file") {
            write(&scene.context.path().join(path), text);
        }
        for (title, text) in self.all("local") {
            write(&rest.join("local").join(title.replacen(' ', "/", 1)), text);
        }
        for (name, text) in self.all("secret") {
            write(&rest.join("secret").join(name), text);
        }
        for (path, text) in self.all("http") {
            write(&rest.join("http").join(path), text);
        }
        let archived: Vec<(&str, &str)> =
            self.all("archive").filter_map(|(title, _)| title.split_once(' ')).collect();
        for (title, text) in self.all("archive") {
            write(&rest.join("archive").join(title.replacen(' ', "/", 1)), text);
        }
        for (name, _) in archived {
            let served = self.section(&format!("http-archive {name}")).is_some();
            let folder = if served { rest.join("http") } else { scene.context.path().to_owned() };
            fs::create_dir_all(&folder).expect("make a folder");
            let mut tar = Command::new("tar");
            tar.arg("-caf").arg(folder.join(name)).arg("-C").arg(rest.join("archive").join(name));
            run(tar.arg("."));
        }
        if self.all("git").next().is_some() {
            let work = rest.join("work");
            for (path, text) in self.all("git") {
                write(&work.join(path), text);
            }
            scene.git = Some(format!("http://{}/repo.git", serve_git(&work, rest)));
        }
        if self.all("http").chain(self.all("http-archive")).next().is_some() {
            let folder = rest.join("http");
            let pages = fs::read_dir(folder).expect("list the pages").flatten().map(|entry| {
                let name = format!("/{}", entry.file_name().to_string_lossy());
                let body = fs::read(entry.path()).expect("read a page");
                (name, it::net::Page { headers: String::new(), body })
            });
            let server = it::net::Server::start("127.0.0.1:0", pages.collect());
            scene.http = Some(format!("http://{}", server.address));
        }
        if self.section("args").is_some_and(|args| args.contains("{ssh}")) {
            scene.ssh = Some(Agent::start(&rest.join("agent.sock")));
        }
        let dockerfile = self.section("Dockerfile").expect("a case has a Dockerfile");
        write(&scene.context.path().join("Dockerfile"), &self.fill(dockerfile, &scene));
        scene
    }

    /// Replaces `{context}`, `{git}`, `{http}`, `{ssh}` and `{sha256 PAGE}`.
    fn fill(&self, text: &str, scene: &Scene) -> String {
        let mut text = text.replace("{context}", &scene.context.path().display().to_string());
        text = text.replace("{git}", scene.git.as_deref().unwrap_or_default());
        text = text.replace("{http}", scene.http.as_deref().unwrap_or_default());
        if let Some(agent) = &scene.ssh {
            text = text.replace("{ssh}", &agent.socket.display().to_string());
        }
        for (path, body) in self.all("http") {
            let digest = base::Digest::of(body).to_string();
            let hex = digest.trim_start_matches("sha256:");
            text = text.replace(&format!("{{sha256 {path}}}"), hex);
        }
        text
    }
}

fn write(path: &Path, text: &str) {
    fs::create_dir_all(path.parent().expect("a file has a folder")).expect("make a folder");
    fs::write(path, text).expect("write a file");
}

fn run(command: &mut Command) -> String {
    let output = command.output().expect("start a program");
    assert!(output.status.success(), "{command:?}:\n{}", it::text(&output));
    it::text(&output)
}

/// Checks one expectation.
fn check(line: &str, tree: &Path, layout: &Path, said: &str) -> Result<(), String> {
    if let Some(text) = line.strip_prefix("fails ") {
        return if said.contains(text) { Ok(()) } else { Err(format!("not said:\n{said}")) };
    }
    if let Some(path) = line.strip_prefix("no ") {
        let there = fs::symlink_metadata(tree.join(path)).is_ok();
        return if there { Err("it is there".to_owned()) } else { Ok(()) };
    }
    if let Some(rest) = line.strip_prefix("config ") {
        let (pointer, wanted) = rest.split_once(" = ").expect("POINTER = JSON");
        let wanted: Value = serde_json::from_str(wanted).expect("expectations are JSON");
        let config = image_config(layout);
        let found = config.pointer(pointer).unwrap_or(&Value::Null);
        return if *found == wanted { Ok(()) } else { Err(format!("{found} in {config}")) };
    }
    if let Some((path, wanted)) = line.split_once(" = ") {
        let found = fs::read(tree.join(path)).map_err(|error| error.to_string())?;
        let found = String::from_utf8_lossy(&found).into_owned();
        let found = found.strip_suffix('\n').unwrap_or(&found);
        return if found == wanted.replace("\\n", "\n") {
            Ok(())
        } else {
            Err(format!("{found:?}"))
        };
    }
    let words: Vec<&str> = line.split(' ').collect();
    let metadata = fs::symlink_metadata(tree.join(words[0])).map_err(|error| error.to_string())?;
    let found = match words[1] {
        "exists" => return Ok(()),
        "mode" => format!("{:o}", metadata.permissions().mode() & 0o7777),
        "owner" => format!("{}:{}", metadata.uid(), metadata.gid()),
        other => panic!("cases expect no {other}"),
    };
    if found == words[2] { Ok(()) } else { Err(found) }
}

fn image_config(layout: &Path) -> Value {
    let blob = |value: &Value| {
        let digest = value["digest"].as_str().expect("a descriptor has a digest");
        json(&layout.join("blobs").join(digest.replace(':', "/")))
    };
    let mut found = blob(&json(&layout.join("index.json"))["manifests"][0]);
    if found["manifests"].is_array() {
        found = blob(&found["manifests"][0]);
    }
    blob(&found["config"])
}

/// An SSH agent without keys.
struct Agent {
    socket: PathBuf,
    process: std::process::Child,
}

impl Agent {
    fn start(socket: &Path) -> Self {
        let process = Command::new("ssh-agent")
            .args(["-D", "-a"])
            .arg(socket)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("start ssh-agent");
        it::eventually(std::time::Duration::from_secs(10), "the agent listens", || socket.exists());
        Self { socket: socket.to_owned(), process }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        _ = self.process.kill();
        _ = self.process.wait();
    }
}

/// Serves a folder as `repo.git` with branch `main` over HTTP until the process ends.
fn serve_git(work: &Path, rest: &Path) -> String {
    let git = |args: &[&str]| {
        let mut git = Command::new("git");
        git.arg("-C").arg(work).args(["-c", "user.name=a", "-c", "user.email=a@b"]).args(args);
        run(&mut git);
    };
    git(&["init", "-q", "-b", "main"]);
    git(&["add", "."]);
    git(&["commit", "-q", "-m", "all"]);
    let root = rest.join("git");
    fs::create_dir_all(&root).expect("make a folder");
    git(&["clone", "-q", "--bare", ".", &root.join("repo.git").display().to_string()]);
    let listener = TcpListener::bind("127.0.0.1:0").expect("listen");
    let address = listener.local_addr().expect("a listener has an address").to_string();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let root = root.clone();
            std::thread::spawn(move || _ = answer_git(stream, &root));
        }
    });
    address
}

/// Hands one request to git's own program for that.
fn answer_git(mut stream: TcpStream, root: &Path) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let mut words = line.split_whitespace();
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let mut headers = HashMap::new();
    loop {
        let mut header = String::new();
        if reader.read_line(&mut header)? <= 2 {
            break;
        }
        if let Some((name, value)) = header.trim_end().split_once(": ") {
            headers.insert(name.to_ascii_lowercase(), value.to_owned());
        }
    }
    let header = |name: &str| headers.get(name).cloned().unwrap_or_default();
    let mut body = Vec::new();
    if header("transfer-encoding") == "chunked" {
        loop {
            let mut size = String::new();
            reader.read_line(&mut size)?;
            let size = u64::from_str_radix(size.trim(), 16).unwrap_or(0);
            reader.by_ref().take(size).read_to_end(&mut body)?;
            reader.read_line(&mut String::new())?;
            if size == 0 {
                break;
            }
        }
    } else {
        let length = header("content-length").parse().unwrap_or(0);
        reader.by_ref().take(length).read_to_end(&mut body)?;
    }
    let mut backend = Command::new("git")
        .arg("http-backend")
        .env("GIT_PROJECT_ROOT", root)
        .env("GIT_HTTP_EXPORT_ALL", "1")
        .env("REQUEST_METHOD", method)
        .env("PATH_INFO", path)
        .env("QUERY_STRING", query)
        .env("CONTENT_TYPE", header("content-type"))
        .env("CONTENT_LENGTH", body.len().to_string())
        .env("HTTP_CONTENT_ENCODING", header("content-encoding"))
        .env("GIT_PROTOCOL", header("git-protocol"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let mut stdin = backend.stdin.take().expect("it was piped");
    let writer = std::thread::spawn(move || _ = stdin.write_all(&body));
    let output = backend.wait_with_output()?;
    _ = writer.join();
    let text = String::from_utf8_lossy(&output.stdout);
    let status = text.lines().next().and_then(|line| line.strip_prefix("Status: "));
    write!(stream, "HTTP/1.1 {}\r\nConnection: close\r\n", status.unwrap_or("200 OK"))?;
    stream.write_all(&output.stdout)
}
