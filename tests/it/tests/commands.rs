//! What a docker user types, against a real registry and real containers.

use std::{
    fs,
    io::Write as _,
    os::fd::AsFd as _,
    path::Path,
    process::{Child, Command, Output, Stdio},
    time::Duration,
};

use it::{Context, Daemon, can_run, eventually, has, text};

/// A registry on a free port, with a password if asked for.
struct Registry {
    process: Child,
    port: u16,
}

impl Registry {
    fn start(folder: &Path, password: bool) -> Self {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let auth = match password {
            // `someone` with the password `secret`.
            true => {
                let line = "someone:$2y$05$1cJdNLWXe8OvfpRS4VtQ4uSAJWq6bl8aFsgSBqBLl3cqJZnYSFr4S\n";
                fs::write(folder.join("htpasswd"), htpasswd().unwrap_or_else(|| line.into()))
                    .unwrap();
                let file = folder.join("htpasswd");
                format!("auth:\n  htpasswd:\n    realm: test\n    path: {}\n", file.display())
            }
            false => String::new(),
        };
        let config = format!(
            "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: 127.0.0.1:{port}\n{auth}",
            folder.join("registry").display()
        );
        fs::write(folder.join("registry.yml"), config).unwrap();
        let process = Command::new("docker-registry")
            .arg("serve")
            .arg(folder.join("registry.yml"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        eventually(Duration::from_secs(10), "the registry answers", || {
            std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()
        });
        Self { process, port }
    }

    fn name(&self, rest: &str) -> String {
        format!("127.0.0.1:{}/{rest}", self.port)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        _ = self.process.kill();
        _ = self.process.wait();
    }
}

/// A line for `someone` with the password `secret`, if the program that makes them is here.
fn htpasswd() -> Option<String> {
    let output = Command::new("htpasswd").args(["-nbB", "someone", "secret"]).output().ok()?;
    output
        .status
        .success()
        .then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned() + "\n")
}

fn app() -> Context {
    Context::new(
        "RUN mkdir -p /app && echo content > /app/file\nENV COLOUR=blue\nLABEL kind=test\nCMD [\"cat\", \"/app/file\"]\n",
    )
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn with_stdin(command: &mut Command, input: &[u8]) -> Output {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    _ = child.stdin.take().unwrap().write_all(input);
    child.wait_with_output().unwrap()
}

#[test]
fn images_travel() {
    if !can_run() || !has("docker-registry") {
        return;
    }
    let context = app();
    let registry = Registry::start(context.path(), false);
    let daemon = Daemon::start();
    daemon.ok(&["build", "-t", "app:1", &context.arg()]);
    let (one, two) = (registry.name("team/app:1"), registry.name("team/app:2"));
    daemon.ok(&["tag", "app:1", &one]);
    daemon.ok(&["tag", "app:1", &two]);
    let pushed = daemon.ok(&["push", &one]);
    assert!(pushed.contains("The push refers to repository [127.0.0.1"), "{pushed}");
    assert!(pushed.contains(": Pushed") && pushed.contains("1: digest: sha256:"), "{pushed}");
    let again = daemon.ok(&["push", &one]);
    assert!(again.contains("Layer already exists") && !again.contains(": Pushed"), "{again}");
    let all = daemon.ok(&["push", "-a", &registry.name("team/app")]);
    assert!(all.contains("1: digest:") && all.contains("2: digest:"), "{all}");
    let other = registry.name("other/app:1");
    daemon.ok(&["tag", "app:1", &other]);
    let mounted = daemon.ok(&["push", &other]);
    assert!(mounted.contains("Mounted from team/app"), "{mounted}");
    let missing = daemon.fails(&["push", &registry.name("team/none")]);
    assert!(missing.contains("An image does not exist locally with the tag"), "{missing}");

    let puller = Daemon::start();
    let pulled = puller.ok(&["pull", &one]);
    assert!(pulled.contains("1: Pulling from team/app"), "{pulled}");
    assert!(pulled.contains("Pull complete"), "{pulled}");
    assert!(pulled.contains("Status: Downloaded newer image for"), "{pulled}");
    let again = puller.ok(&["pull", &one]);
    assert!(
        again.contains("Image is up to date for") && again.contains("Already exists"),
        "{again}"
    );
    assert_eq!(puller.ok(&["pull", "-q", &one]).trim(), one);
    let unknown = puller.fails(&["pull", &registry.name("team/app:nope")]);
    assert!(unknown.contains("manifest unknown"), "{unknown}");
    // What is missing is pulled.
    let ran = puller.ctl(&["run", "--rm", &two]);
    assert_eq!(stdout(&ran), "content\n", "{}", text(&ran));
    assert!(text(&ran).contains("Unable to find image"), "{}", text(&ran));
    assert_eq!(puller.ctl(&["run", "--pull", "never", "nothing:1"]).status.code(), Some(125));

    let inspected = puller.ok(&["imagetools", "inspect", &one]);
    assert!(inspected.contains("MediaType:") && inspected.contains("Digest:"), "{inspected}");
    let raw = puller.ok(&["imagetools", "inspect", "--raw", &one]);
    assert!(raw.contains("\"schemaVersion\""), "{raw}");
    let config = "{{json .Image.config.Env}}";
    assert!(
        puller.ok(&["imagetools", "inspect", "--format", config, &one]).contains("COLOUR=blue")
    );
    let index = registry.name("third/index:1");
    let annotation = "index:org.example.note=hello";
    puller.ok(&["imagetools", "create", "-t", &index, "--annotation", annotation, &one]);
    let shown = puller.ok(&["imagetools", "inspect", &index]);
    assert!(shown.contains("org.example.note: hello") && shown.contains("Platform:"), "{shown}");
    assert_eq!(puller.ok(&["run", "--rm", "-q", &index]), "content\n");
}

#[test]
fn logins_are_checked_kept_and_used() {
    if !can_run() || !has("docker-registry") || !has("htpasswd") {
        return;
    }
    let context = app();
    let registry = Registry::start(context.path(), true);
    let daemon = Daemon::start();
    let config = context.path().join("docker");
    let ctl = |args: &[&str], input: &[u8]| {
        with_stdin(daemon.command(args).env("DOCKER_CONFIG", &config), input)
    };
    let host = registry.name("");
    let host = host.trim_end_matches('/');
    let name = registry.name("app:1");
    daemon.ok(&["build", "-t", &name, &context.arg()]);
    let refused = ctl(&["push", &name], b"");
    assert!(text(&refused).contains("push access denied"), "{}", text(&refused));
    let wrong = ctl(&["login", "-u", "someone", "--password-stdin", host], b"wrong\n");
    assert!(!wrong.status.success());
    assert!(
        text(&wrong).contains("unauthorized: incorrect username or password"),
        "{}",
        text(&wrong)
    );
    let login = ctl(&["login", "-u", "someone", "--password-stdin", host], b"secret\n");
    assert!(stdout(&login).contains("Login Succeeded"), "{}", text(&login));
    assert!(fs::read_to_string(config.join("config.json")).unwrap().contains(host));
    let pushed = ctl(&["push", &name], b"");
    assert!(pushed.status.success(), "{}", text(&pushed));
    let out = ctl(&["logout", host], b"");
    assert!(stdout(&out).contains("Removing login credentials"), "{}", text(&out));
    let pulled = ctl(&["pull", &name], b"");
    assert!(text(&pulled).contains("pull access denied"), "{}", text(&pulled));

    // The same through a helper program.
    let bin = context.path().join("bin");
    fs::create_dir_all(&bin).unwrap();
    let helper = bin.join("docker-credential-test");
    let state = context.path().join("kept");
    fs::write(
        &helper,
        format!(
            "#!/bin/sh\ncase $1 in\nstore) cat > {0} ;;\nget) test -s {0} && cat {0} || {{ echo credentials not found in native keychain; exit 1; }} ;;\nerase) rm -f {0} ;;\nesac\n",
            state.display()
        ),
    )
    .unwrap();
    use std::os::unix::fs::PermissionsExt as _;
    fs::set_permissions(&helper, fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(config.join("config.json"), r#"{"credsStore": "test"}"#).unwrap();
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap_or_default());
    let ctl = |args: &[&str], input: &[u8]| {
        let mut command = daemon.command(args);
        with_stdin(command.env("DOCKER_CONFIG", &config).env("PATH", &path), input)
    };
    let login = ctl(&["login", "-u", "someone", "--password-stdin", host], b"secret");
    assert!(stdout(&login).contains("Login Succeeded"), "{}", text(&login));
    assert!(!fs::read_to_string(config.join("config.json")).unwrap().contains("\"auth\":"));
    let pulled = ctl(&["pull", &name], b"");
    assert!(pulled.status.success(), "{}", text(&pulled));
}

#[test]
fn images_are_listed_named_saved_and_removed() {
    if !can_run() {
        return;
    }
    let daemon = Daemon::start();
    let context = app();
    daemon.ok(&["build", "-t", "app:1", &context.arg()]);
    daemon.ok(&[
        "build",
        "-t",
        "other:1",
        "--build-arg",
        "X=1",
        "--label",
        "kind=other",
        &context.arg(),
    ]);
    let names = |args: &[&str]| {
        let mut all = vec!["images", "--format", "{{.Repository}}:{{.Tag}}"];
        all.extend(args);
        let mut lines: Vec<String> = daemon.ok(&all).lines().map(str::to_owned).collect();
        lines.sort();
        lines.join(" ")
    };
    assert_eq!(names(&[]), "app:1 other:1");
    assert_eq!(names(&["-f", "label=kind=other"]), "other:1");
    assert_eq!(names(&["-f", "reference=a*"]), "app:1");
    assert_eq!(names(&["app"]), "app:1");
    let table = daemon.ok(&["images", "--digests"]);
    assert!(table.starts_with("REPOSITORY   TAG   DIGEST"), "{table}");
    assert!(daemon.ok(&["images", "--tree"]).contains("└─ linux/"));
    let headed = daemon.ok(&["images", "--format", "table {{.ID}}\t{{.Size}}"]);
    assert!(headed.starts_with("IMAGE ID"), "{headed}");

    assert_eq!(daemon.ok(&["inspect", "-f", "{{.Config.Cmd}}", "app:1"]), "[cat /app/file]\n");
    assert_eq!(daemon.ok(&["inspect", "-f", "{{json .RepoTags}}", "app:1"]), "[\"app:1\"]\n");
    let unknown = daemon.fails(&["inspect", "nothing"]);
    assert!(unknown.contains("No such object: nothing"), "{unknown}");
    let history = daemon.ok(&["history", "app:1"]);
    assert!(history.starts_with("IMAGE") && history.contains("<missing>"), "{history}");
    assert!(history.contains("CMD [\"cat\""), "{history}");

    // A name that moves leaves its image without one.
    daemon.ok(&["tag", "other:1", "app:1"]);
    assert_eq!(names(&["-f", "dangling=true"]), "<none>:<none>");
    assert_eq!(names(&["-f", "dangling=false"]), "app:1 other:1");
    let id = daemon.ok(&["images", "-q", "--no-trunc", "-f", "dangling=true"]);
    let short = &id.trim()["sha256:".len()..][..10];
    daemon.ok(&["tag", short, "app:1"]);
    assert_eq!(names(&["-f", "dangling=true"]), "");

    let tar = context.path().join("images.tar");
    daemon.ok(&["save", "-o", &tar.display().to_string(), "app:1", "other:1"]);
    let second = Daemon::start();
    let loaded = second.ok(&["load", "-i", &tar.display().to_string()]);
    assert_eq!(loaded, "Loaded image: app:1\nLoaded image: other:1\n");
    assert_eq!(second.ok(&["run", "--rm", "app:1"]), "content\n");
    let same = "{{.Id}}";
    assert_eq!(
        second.ok(&["inspect", "-f", same, "app:1"]),
        daemon.ok(&["inspect", "-f", same, "app:1"])
    );
    if has("skopeo") {
        for kind in ["docker-archive", "oci-archive"] {
            let image = format!("{kind}:{}:app:1", tar.display());
            let image =
                if kind == "oci-archive" { format!("{kind}:{}:1", tar.display()) } else { image };
            let read = Command::new("skopeo").args(["inspect", &image]).output().unwrap();
            // Two images have the tag 1; docker's form names them in full.
            assert!(read.status.success() || kind == "oci-archive", "{}", text(&read));
        }
        let copied = context.path().join("copied.tar");
        let target = format!("docker-archive:{}:copied:1", copied.display());
        let source = format!("docker-archive:{}:app:1", tar.display());
        let copy = Command::new("skopeo")
            .args(["copy", "--insecure-policy", &source, &target])
            .output()
            .unwrap();
        assert!(copy.status.success(), "{}", text(&copy));
        let read = with_stdin(&mut second.command(&["load"]), &fs::read(&copied).unwrap());
        assert!(stdout(&read).contains("Loaded image: copied:1"), "{}", text(&read));
        assert_eq!(second.ok(&["run", "--rm", "copied:1"]), "content\n");
    }
    let bad = with_stdin(&mut second.command(&["load"]), b"rubbish");
    assert!(text(&bad).contains("invalid tar"), "{}", text(&bad));

    // What is used stays.
    daemon.ok(&["run", "-d", "--name", "user", "other:1", "sleep", "1000"]);
    let used = daemon.fails(&["rmi", "other:1"]);
    assert!(used.contains("conflict: unable to remove repository reference \"other:1\""), "{used}");
    daemon.ok(&["rm", "-f", "user"]);
    let removed = daemon.ok(&["rmi", "other:1"]);
    assert!(
        removed.contains("Untagged: other:1") && removed.contains("Deleted: sha256:"),
        "{removed}"
    );
    let gone = daemon.fails(&["rmi", "other:1"]);
    assert!(gone.contains("No such image: other:1"), "{gone}");
    let by_id = daemon.ok(&["rmi", short]);
    assert!(by_id.contains("Untagged: app:1"), "{by_id}");
    assert_eq!(names(&[]), "");
}

#[test]
fn containers_live_as_docker_users_expect() {
    if !can_run() {
        return;
    }
    let daemon = Daemon::start();
    let context = app();
    daemon.ok(&["build", "-t", "app:1", &context.arg()]);
    let code = |args: &[&str]| daemon.ctl(args).status.code();
    assert_eq!(code(&["run", "--rm", "app:1", "sh", "-c", "exit 3"]), Some(3));
    assert_eq!(code(&["run", "--rm", "app:1", "nonsense"]), Some(127));
    assert_eq!(code(&["run", "--rm", "app:1", "/app/file"]), Some(126));
    assert_eq!(code(&["run", "--rm", "--network", "mine", "app:1"]), Some(125));
    let refused = daemon.fails(&["run", "--init", "app:1"]);
    assert!(refused.contains("tini"), "{refused}");
    let file = context.path().join("env");
    fs::write(&file, "# said\nA=1\nB=two words\n").unwrap();
    let shown = daemon.ok(&[
        "run",
        "--rm",
        "--env-file",
        &file.display().to_string(),
        "-e",
        "C=3",
        "-w",
        "/app",
        "-h",
        "box",
        "app:1",
        "sh",
        "-c",
        "echo $A $B $C $COLOUR $(pwd) $(hostname)",
    ]);
    assert_eq!(shown, "1 two words 3 blue /app box\n");
    let piped =
        with_stdin(&mut daemon.command(&["run", "--rm", "-i", "app:1", "wc", "-c"]), b"12345");
    assert_eq!(stdout(&piped).trim(), "5", "{}", text(&piped));
    let fails = daemon.fails(&["run", "--rm", "--read-only", "app:1", "touch", "/x"]);
    assert!(fails.contains("Read-only"), "{fails}");
    daemon.ok(&["run", "--rm", "--read-only", "--tmpfs", "/t", "app:1", "touch", "/t/x"]);
    let fails =
        daemon.fails(&["run", "--rm", "--cap-drop", "CHOWN", "app:1", "chown", "1", "/app/file"]);
    assert!(fails.contains("not permitted"), "{fails}");
    let hosts =
        daemon.ok(&["run", "--rm", "--add-host", "db:10.1.2.3", "app:1", "cat", "/etc/hosts"]);
    assert!(hosts.contains("10.1.2.3") && hosts.contains("db"), "{hosts}");

    // A volume takes what the image has there, and outlives containers.
    daemon.ok(&["run", "--rm", "-v", "data:/app", "app:1", "sh", "-c", "echo more >> /app/file"]);
    let kept = daemon.ok(&["run", "--rm", "-v", "data:/app:ro", "app:1"]);
    assert_eq!(kept, "content\nmore\n");
    assert!(daemon.ok(&["volume", "ls"]).contains("data"));

    daemon.ok(&[
        "run",
        "-d",
        "--name",
        "web",
        "-l",
        "role=web",
        "app:1",
        "sh",
        "-c",
        "echo one; echo two >&2; echo three; exec sleep 1000",
    ]);
    let conflict = daemon.fails(&["run", "-d", "--name", "web", "app:1"]);
    assert!(
        conflict.contains("Conflict. The container name \"/web\" is already in use"),
        "{conflict}"
    );
    assert!(daemon.fails(&["volume", "rm", "none"]).contains("no such volume"));
    eventually(Duration::from_secs(30), "it has written", || {
        daemon.ok(&["logs", "web"]).contains("three")
    });
    // Two streams come in either order.
    let last = daemon.ok(&["logs", "--tail", "1", "web"]);
    assert!(["two\n", "three\n"].contains(&&*last), "{last}");
    assert!(daemon.ok(&["logs", "-t", "web"]).contains("Z one\n"));
    assert_eq!(daemon.ok(&["logs", "--since", "2100-01-01", "web"]), "");
    assert_eq!(
        daemon.ok(&["ps", "-f", "label=role=web", "--format", "{{.Names}} {{.State}}"]),
        "web running\n"
    );
    assert_eq!(
        daemon.ok(&["inspect", "-f", "{{.State.Running}} {{.Config.Labels.role}}", "web"]),
        "true web\n"
    );

    assert_eq!(
        daemon.ok(&["exec", "-e", "X=5", "-w", "/app", "web", "sh", "-c", "echo $X $(pwd)"]),
        "5 /app\n"
    );
    assert_eq!(code(&["exec", "web", "sh", "-c", "exit 9"]), Some(9));
    assert_eq!(code(&["exec", "web", "nonsense"]), Some(127));
    daemon.ok(&["exec", "-d", "web", "sh", "-c", "echo done > /mark"]);
    eventually(Duration::from_secs(30), "the detached process has run", || {
        daemon.ctl(&["exec", "web", "cat", "/mark"]).status.success()
    });

    let here = context.path().join("here");
    daemon.ok(&["cp", "web:/app", &here.display().to_string()]);
    assert_eq!(fs::read_to_string(here.join("file")).unwrap(), "content\n");
    fs::write(here.join("new"), "new\n").unwrap();
    daemon.ok(&["cp", &here.join("new").display().to_string(), "web:/app/renamed"]);
    daemon.ok(&["cp", &format!("{}/.", here.display()), "web:/app"]);
    assert_eq!(daemon.ok(&["exec", "web", "cat", "/app/renamed", "/app/new"]), "new\nnew\n");
    let nowhere = daemon.fails(&["cp", "web:/nothing", "/tmp"]);
    assert!(nowhere.contains("Could not find the file /nothing in container web"), "{nowhere}");

    let running = daemon.fails(&["rm", "web"]);
    assert!(running.contains("container is running"), "{running}");
    daemon.ok(&["kill", "-s", "TERM", "web"]);
    daemon.ok(&["kill", "web"]);
    assert_eq!(daemon.ok(&["wait", "web"]), "137\n");
    assert!(daemon.ok(&["ps", "-a", "--format", "{{.Status}}"]).contains("Exited (137)"));
    let stopped = daemon.fails(&["exec", "web", "true"]);
    assert!(stopped.contains("is not running"), "{stopped}");
    // Its files are still there, and it starts again with them.
    daemon.ok(&["cp", "web:/mark", &here.join("mark").display().to_string()]);
    daemon.ok(&["start", "web"]);
    assert_eq!(daemon.ok(&["exec", "web", "cat", "/mark"]), "done\n");
    daemon.ok(&["restart", "-t", "0", "web"]);
    daemon.ok(&["rename", "web", "site"]);
    daemon.ok(&["rm", "-f", "site"]);
    assert!(daemon.fails(&["logs", "site"]).contains("No such container: site"));
    assert_eq!(daemon.ok(&["ps", "-aq"]), "");
    daemon.ok(&["volume", "rm", "data"]);

    let hint = daemon.fails(&["commit", "x"]);
    assert!(hint.contains("write a Dockerfile"), "{hint}");
}

#[test]
fn signals_reach_the_container() {
    if !can_run() {
        return;
    }
    let daemon = Daemon::start();
    let context = app();
    daemon.ok(&["build", "-t", "app:1", &context.arg()]);
    let script = "trap 'echo caught; exit 5' TERM; echo ready; while :; do sleep 0.1; done";
    let mut child = daemon
        .command(&["run", "--rm", "--name", "trap", "app:1", "sh", "-c", script])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    eventually(Duration::from_secs(30), "it is ready", || {
        daemon.ctl(&["logs", "trap"]).stdout.starts_with(b"ready")
    });
    Command::new("kill").arg(child.id().to_string()).status().unwrap();
    let status = child.wait().unwrap();
    assert_eq!(status.code(), Some(5));
    assert_eq!(daemon.ok(&["ps", "-aq"]), "");
}

#[test]
fn an_images_volumes_ports_and_checks_are_those_of_its_containers() {
    if !can_run() {
        return;
    }
    let daemon = Daemon::start();
    let context = Context::new(
        "RUN mkdir -p /data && echo kept > /data/file && chown 7:8 /data && chmod 750 /data\nVOLUME /data\nEXPOSE 53/udp 80\n\
         HEALTHCHECK --interval=100ms --retries=1 CMD test -e /ok\n\
         CMD [\"sleep\", \"1000\"]\n",
    );
    daemon.ok(&["build", "-t", "dns:1", &context.arg()]);
    daemon.ok(&["run", "-d", "--name", "dns", "-p", "127.0.0.1::53/udp", "dns:1"]);
    let shown = daemon.ok(&["ps", "--format", "{{.Ports}}|{{.Mounts}}|{{.LocalVolumes}}"]);
    assert!(shown.starts_with("127.0.0.1:") && shown.contains("->53/udp, 80/tcp|"), "{shown}");
    let status = || daemon.ok(&["ps", "--format", "{{.Status}}"]);
    let limit = Duration::from_secs(30);
    eventually(limit, "it is unwell", || status().contains("(unhealthy)"));
    daemon.ok(&["exec", "dns", "touch", "/ok"]);
    eventually(limit, "it is well", || status().contains("(healthy)"));
    assert_eq!(daemon.ok(&["ps", "-q", "--filter", "health=unhealthy"]), "");
    let health = daemon.ok(&["inspect", "-f", "{{.State.Health.Status}}", "dns"]);
    assert_eq!(health, "healthy\n");

    let pid = daemon.ok(&["inspect", "-f", "{{.State.Pid}}", "dns"]);
    let network = fs::File::open(format!("/proc/{}/ns/net", pid.trim())).unwrap();
    let echo = std::thread::spawn(move || {
        use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
        let kind = Some(LinkNameSpaceType::Network);
        move_into_link_name_space(network.as_fd(), kind).unwrap();
        let socket = std::net::UdpSocket::bind("0.0.0.0:53").unwrap();
        let mut data = [0; 16];
        let (size, client) = socket.recv_from(&mut data).unwrap();
        socket.send_to(&data[..size], client).unwrap();
    });
    let address = daemon.ok(&["port", "dns", "53/udp"]);
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.connect(address.trim()).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    let mut answer = [0; 16];
    // Datagrams may be lost until somebody listens.
    eventually(limit, "the datagram comes back", || {
        socket.send(b"ping").unwrap();
        socket.recv(&mut answer).is_ok_and(|size| &answer[..size] == b"ping")
    });
    echo.join().unwrap();

    // The volume took what the image has there, and goes when it is told to.
    daemon.ok(&["exec", "dns", "sh", "-c", "cat /data/file && echo more > /data/more"]);
    assert_eq!(daemon.ok(&["exec", "dns", "stat", "-c", "%u %g %a", "/data"]), "7 8 750\n");
    let volume = daemon.ok(&["volume", "ls", "-q"]);
    assert_eq!(volume.lines().count(), 1, "{volume}");
    assert!(daemon.ok(&["du", "-v"]).contains("Volumes:"));
    daemon.ok(&["rm", "-f", "dns"]);
    assert_eq!(daemon.ok(&["volume", "ls", "-q"]), volume);
    daemon.ok(&["run", "--name", "again", "--no-healthcheck", "dns:1", "cat", "/data/file"]);
    daemon.ok(&["rm", "-v", "again"]);
    assert_eq!(daemon.ok(&["run", "--rm", "-v", "own:/data", "dns:1", "ls", "/data"]), "file\n");
    assert_eq!(daemon.ok(&["volume", "ls", "-q"]).lines().count(), 2);
    daemon.ok(&["system", "prune", "-f", "--volumes"]);
    assert_eq!(daemon.ok(&["volume", "ls", "-q"]), "own\n");
}

#[test]
fn what_is_for_another_machine_is_said() {
    if !can_run() || !has("docker-registry") {
        return;
    }
    let other = if cfg!(target_arch = "aarch64") { "linux/amd64" } else { "linux/arm64" };
    let context = app();
    let registry = Registry::start(context.path(), false);
    let daemon = Daemon::start();
    daemon.ok(&["build", "-t", "app:1", &context.arg()]);
    let name = registry.name("team/app:1");
    daemon.ok(&["tag", "app:1", &name]);
    daemon.ok(&["push", &name]);
    let pulled = daemon.ok(&["pull", "--platform", other, &name]);
    assert!(pulled.contains("does not match the specified platform: wanted"), "{pulled}");
    assert_eq!(daemon.ctl(&["run", "--rm", "--platform", other, &name]).status.code(), Some(125));
    let context = Context::new("");
    context.write("Dockerfile", b"FROM scratch\nCOPY busybox /bin/busybox\n");
    daemon.ok(&["build", "--platform", other, "-t", "foreign:1", &context.arg()]);
    let made = daemon.ctl(&["create", "foreign:1", "/bin/busybox", "true"]);
    let said = text(&made);
    assert!(
        said.contains("does not match the detected host platform") || !made.status.success(),
        "{said}"
    );
}

#[test]
fn the_whole_is_looked_at_and_tidied_up() {
    if !can_run() {
        return;
    }
    let daemon = Daemon::start();
    let context = app();
    daemon.ok(&["build", "-t", "app:1", &context.arg()]);
    daemon.ok(&["run", "--name", "gone", "app:1"]);
    let usage = daemon.ok(&["system", "df"]);
    for line in ["Images          1       1", "Containers      1       0", "Local Volumes   0"] {
        assert!(usage.contains(line), "{usage}");
    }
    assert!(daemon.ok(&["version"]).contains("Server:"));
    // What keeps its name stays, and so does what it is made of.
    let pruned = daemon.ok(&["system", "prune", "-f"]);
    assert!(pruned.contains("Deleted Containers:"), "{pruned}");
    assert_eq!(daemon.ok(&["run", "--rm", "app:1"]), "content\n");
    let pruned = daemon.ok(&["system", "prune", "-af"]);
    assert!(pruned.contains("untagged: ") && pruned.contains("Total reclaimed"), "{pruned}");
    assert_eq!(daemon.ok(&["images", "-q"]), "");
    daemon.ok(&["builder", "prune", "-af", "--filter", "until=1ns"]);
    assert_eq!(daemon.ctl(&["ps", "--nonsense"]).status.code(), Some(125));
    assert_eq!(daemon.ctl(&["ps", "--help"]).status.code(), Some(0));
    assert_eq!(daemon.ctl(&["rm", "-f", "none"]).status.code(), Some(0));
}

#[test]
fn tars_may_be_packed_by_anything() {
    if !can_run() {
        return;
    }
    let daemon = Daemon::start();
    let context = app();
    daemon.ok(&["build", "-t", "app:1", &context.arg()]);
    let tar = context.path().join("app.tar");
    daemon.ok(&["save", "-o", &tar.display().to_string(), "app:1"]);
    for packer in ["gzip", "bzip2", "xz", "zstd"] {
        if !has(packer) {
            continue;
        }
        let packed = context.path().join(packer);
        let out = fs::File::create(&packed).unwrap();
        let made = Command::new(packer).args(["-1", "-c"]).arg(&tar).stdout(out).status().unwrap();
        assert!(made.success(), "{packer}");
        daemon.ok(&["rmi", "app:1"]);
        let loaded = daemon.ok(&["load", "-i", &packed.display().to_string()]);
        assert!(loaded.contains("Loaded image: app:1"), "{packer}: {loaded}");
    }
}

#[test]
fn images_go_from_layouts_and_into_them() {
    if !can_run() || !has("docker-registry") {
        return;
    }
    let context = app();
    let registry = Registry::start(context.path(), false);
    let daemon = Daemon::start();
    let layout = |name: &str| format!("oci-layout://{}", context.path().join(name).display());
    let first = context.path().join("first").display().to_string();
    daemon.ok(&[
        "build",
        "--provenance=mode=min",
        "-o",
        &format!("type=oci,tar=false,dest={first},name=app:1"),
        &context.arg(),
    ]);
    let digest = |name: &str| {
        daemon.ok(&["imagetools", "inspect", "--format", "{{.Manifest.Digest}}", name])
    };
    let (from, remote) = (layout("first:1"), registry.name("team/app:1"));
    daemon.ok(&["imagetools", "create", "-t", &remote, &from]);
    let (second, third) = (layout("second:a"), layout("third"));
    daemon.ok(&["imagetools", "create", "-t", &second, "-t", &third, &remote]);
    daemon.ok(&["imagetools", "create", "-t", &layout("third:b"), &from]);
    for name in [&remote, &second, &third, &layout("third:b")] {
        assert_eq!(digest(name), digest(&from), "{name}");
    }
    let made = daemon.ok(&[
        "imagetools",
        "create",
        "-t",
        &second,
        "--append",
        "--annotation",
        "index:colour=blue",
        &from,
    ]);
    assert!(made.contains("@sha256:"), "{made}");
    let shown = daemon.ok(&["imagetools", "inspect", &second]);
    assert!(shown.contains("colour: blue"), "{shown}");
    let stated = "{{json .Provenance.SLSA.buildDefinition.buildType}}";
    let stated = daemon.ok(&["imagetools", "inspect", "--format", stated, &remote]);
    assert!(stated.contains("buildkit"), "{stated}");

    // Statements that refer to the image leave no trace in what is named.
    let clean = registry.name("team/clean:1");
    let output = format!("type=image,name={clean},push=true,attestation-referrers=true");
    daemon.ok(&["build", "--provenance=mode=min", "-o", &output, &context.arg()]);
    let shown = daemon.ok(&["imagetools", "inspect", "--referrers", &clean]);
    let (image, referrers) = shown.split_once("Referrers:").unwrap();
    assert!(image.contains("image.manifest.v1+json") && !image.contains("Manifests:"), "{shown}");
    assert!(referrers.contains("attestation.manifest.v1+json"), "{shown}");
    // They stay with the image: a later push from the store takes them along.
    let later = registry.name("team/later:1");
    let output = format!("type=image,name={later},attestation-referrers=true");
    daemon.ok(&["build", "--provenance=mode=min", "-o", &output, &context.arg()]);
    let moved = registry.name("team/moved:1");
    daemon.ok(&["tag", &later, &moved]);
    daemon.ok(&["push", &moved]);
    let shown = daemon.ok(&["imagetools", "inspect", "--referrers", &moved]);
    let (_, referrers) = shown.split_once("Referrers:").unwrap();
    assert!(referrers.contains("attestation.manifest.v1+json"), "{shown}");
    let nowhere = "type=image,store=false,name=x,attestation-referrers=true";
    let alone = daemon.fails(&["build", "--provenance=mode=min", "-o", nowhere, &context.arg()]);
    assert!(alone.contains("needs \"push=true\" or a name"), "{alone}");
}
