//! Runs real containers made of a static busybox. Needs root and /bin/busybox; skips without.

use std::{
    fs,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use executor::{
    CancellationToken, ExecError, Executor, Exit, Hooks, Io, Mount, MountSource, Native,
    NativeConfig, Network, Process, Root, Secret, Security, Spec,
};
use tokio::io::AsyncReadExt as _;

executor::launcher_in_tests!();

const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// One executor for all tests.
fn native() -> Option<&'static Native> {
    static NATIVE: OnceLock<Option<Native>> = OnceLock::new();
    NATIVE
        .get_or_init(|| {
            if !rustix::process::geteuid().is_root() || busybox().is_none() {
                eprintln!("skipped: needs root and /bin/busybox");
                return None;
            }
            let launcher = executor::launcher::spawn().unwrap();
            Some(Native::new(launcher, NativeConfig::default()))
        })
        .as_ref()
}

fn busybox() -> Option<&'static Path> {
    ["/bin/busybox", "/usr/bin/busybox"].map(Path::new).into_iter().find(|path| path.exists())
}

/// A root file system.
struct Tree {
    folder: tempfile::TempDir,
}

impl Tree {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let tree = Self { folder };
        for name in ["bin", "etc", "tmp", "home/app"] {
            fs::create_dir_all(tree.at(name)).unwrap();
        }
        let program = busybox().unwrap();
        fs::copy(program, tree.at("bin/busybox")).unwrap();
        for name in
            "sh true false cat echo id env ls mount sleep touch mkdir stat hostname pwd kill \
            wc grep head dd tty stty mknod test seq ifconfig nc httpd chroot unshare ps"
                .split_whitespace()
        {
            std::os::unix::fs::symlink("busybox", tree.at("bin").join(name)).unwrap();
        }
        fs::write(
            tree.at("etc/passwd"),
            "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001::/home/app:/bin/sh\n",
        )
        .unwrap();
        fs::write(tree.at("etc/group"), "root:x:0:\napp:x:1001:\naudio:x:29:app\n").unwrap();
        tree
    }

    fn at(&self, path: &str) -> PathBuf {
        self.folder.path().join(path)
    }

    fn root(&self) -> Root {
        Root { tree: open(self.folder.path()), readonly: false }
    }

    fn spec(&self, args: &[&str]) -> Spec {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let id = format!("test-{}", COUNT.fetch_add(1, Ordering::Relaxed));
        let mut process = Process::new(args.iter().copied());
        process.env = vec![PATH.to_owned()];
        Spec::new(id, self.root(), process)
    }

    fn shell(&self, script: &str) -> Spec {
        self.spec(&["/bin/sh", "-c", script])
    }
}

fn open(path: &Path) -> Arc<OwnedFd> {
    let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC;
    Arc::new(rustix::fs::open(path, flags, rustix::fs::Mode::empty()).unwrap())
}

async fn run_with(spec: Spec, hooks: Hooks) -> (Result<Exit, ExecError>, String) {
    run_on(native().unwrap(), spec, hooks).await
}

async fn run_on(
    executor: &dyn Executor,
    spec: Spec,
    hooks: Hooks,
) -> (Result<Exit, ExecError>, String) {
    let (io, mut stdout, mut stderr) = Io::output().unwrap();
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let (exit, _, _) = tokio::join!(
        executor.run(spec, io, hooks),
        stdout.read_to_end(&mut out),
        stderr.read_to_end(&mut err)
    );
    let mut text = String::from_utf8_lossy(&out).into_owned();
    if !err.is_empty() {
        text += &format!("stderr: {}", String::from_utf8_lossy(&err));
    }
    (exit, text)
}

async fn run(spec: Spec) -> (i32, String) {
    let (exit, text) = run_with(spec, Hooks::default()).await;
    match exit {
        Ok(exit) => (exit.code, text),
        Err(error) => panic!("{error} (output: {text})"),
    }
}

/// Runs a script and compares what it wrote.
async fn check(spec: Spec, expected: &str) {
    let (code, text) = run(spec).await;
    assert_eq!(text, expected, "exit code {code}");
}

macro_rules! container_test {
    ($name:ident, $tree:ident, $body:block) => {
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() {
            if native().is_none() {
                return;
            }
            let $tree = Tree::new();
            $body
        }
    };
}

container_test!(exit_codes_and_output, tree, {
    check(tree.shell("echo out; echo err >&2"), "out\nstderr: err\n").await;
    assert_eq!(run(tree.spec(&["true"])).await.0, 0);
    assert_eq!(run(tree.shell("exit 42")).await.0, 42);
    let (exit, _) = run_with(tree.spec(&["missing"]), Hooks::default()).await;
    assert!(matches!(exit, Err(ExecError::Start { code: 127, .. })), "{exit:?}");
    let (exit, _) = run_with(tree.spec(&["/etc/passwd"]), Hooks::default()).await;
    assert!(matches!(exit, Err(ExecError::Start { code: 126, .. })), "{exit:?}");
});

container_test!(environment, tree, {
    let mut spec = tree.spec(&["env"]);
    spec.process.env =
        executor::env::finalise("linux", &["A=1".into(), "A=2".into()], None, [], &[]);
    check(spec, &format!("A=2\n{PATH}\nHOME=/root\n")).await;
    let mut spec = tree.spec(&["env"]);
    spec.process.env = vec![PATH.into(), "HOME=/x".into()];
    spec.process.user = "app".into();
    check(spec, &format!("{PATH}\nHOME=/x\n")).await;
});

container_test!(users, tree, {
    for (user, expected) in [
        ("", "uid=0(root) gid=0(root) groups=0(root)\n/root\n"),
        ("app", "uid=1000(app) gid=1001(app) groups=29(audio),1001(app)\n/home/app\n"),
        ("1000", "uid=1000(app) gid=1001(app) groups=29(audio),1001(app)\n/home/app\n"),
        ("app:audio", "uid=1000(app) gid=29(audio) groups=29(audio)\n/home/app\n"),
        ("5:6", "uid=5 gid=6 groups=6\n/\n"),
    ] {
        let mut spec = tree.shell("id; echo $HOME");
        spec.process.user = user.into();
        let (_, text) = run(spec).await;
        // busybox lists groups in the order of the kernel.
        let sorted = |text: &str| {
            let mut words: Vec<String> = text.split([' ', ',', '=']).map(str::to_owned).collect();
            words.sort();
            words
        };
        assert_eq!(sorted(&text), sorted(expected), "user {user:?}: {text}");
    }
    let mut spec = tree.spec(&["id"]);
    spec.process.user = "nobody".into();
    let (exit, _) = run_with(spec, Hooks::default()).await;
    assert!(matches!(exit, Err(ExecError::User { .. })), "{exit:?}");
});

container_test!(working_directory, tree, {
    let mut spec = tree.shell("pwd; stat -c '%u:%g %a' /work /work/deep");
    spec.process.cwd = "/work/deep".into();
    spec.process.user = "app".into();
    check(spec, "/work/deep\n1000:1001 755\n1000:1001 755\n").await;
    std::os::unix::fs::symlink("/tmp", tree.at("link")).unwrap();
    let mut spec = tree.spec(&["pwd"]);
    spec.process.cwd = "/link/../link/x".into();
    check(spec, "/tmp/x\n").await;
});

container_test!(every_kind_of_mount, tree, {
    let shared = tempfile::tempdir().unwrap();
    fs::create_dir_all(shared.path().join("sub")).unwrap();
    fs::write(shared.path().join("sub/file"), "inside\n").unwrap();
    std::os::unix::fs::symlink("/sub/file", shared.path().join("link")).unwrap();
    let socket = shared.path().join("agent.sock");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let part = |path: &str| MountSource::Tree { tree: open(shared.path()), path: path.into() };
    let mut spec = tree.shell(
        "cat /whole/sub/file /part/file /one; cat /run/secrets/key; echo
         stat -c '%u:%g %a' /run/secrets/key /mem /dev/shm
         test -S /agent && echo socket
         touch /ro/x; touch /whole/made && echo written
         mount | grep -c ' /mem '; mount | grep ' /run/secrets/key '",
    );
    let secret = MountSource::File { data: Secret("hush".into()), uid: 1000, gid: 29, mode: 0o440 };
    spec.mounts = vec![
        Mount::new("/whole", part("")),
        Mount::new("/part", part("sub")),
        Mount::new("/one", part("link")),
        Mount::new("/ro", part("/")).readonly(),
        Mount::new("/mem", MountSource::Tmpfs { size: Some(1 << 20) }),
        Mount::new("/run/secrets/key", secret),
        Mount::new("/agent", MountSource::HostPath(socket.clone())),
    ];
    let (code, text) = run(spec).await;
    assert_eq!(
        text,
        "inside\ninside\ninside\nhush\n1000:29 440\n0:0 1777\n0:0 1777\nsocket\nwritten\n1\n\
         tmpfs on /run/secrets/key type tmpfs (ro,nosuid,nodev,noexec,relatime,mode=711)\n\
         stderr: touch: /ro/x: Read-only file system\n",
        "exit code {code}"
    );
    assert!(shared.path().join("made").exists());
    // Mount points are gone, but for the folders above one.
    let mut left: Vec<String> = fs::read_dir(tree.folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    left.sort();
    assert_eq!(left.join(" "), "bin dev etc home proc run sys tmp");
    assert_eq!(fs::read_dir(tree.at("run/secrets")).unwrap().count(), 0);
    let etc = fs::read_dir(tree.at("etc")).unwrap().count();
    assert_eq!(etc, 2, "only passwd and group");

    let mut spec = tree.spec(&["true"]);
    spec.mounts = vec![Mount::new("/x", part("absent"))];
    let (exit, _) = run_with(spec, Hooks::default()).await;
    assert!(matches!(&exit, Err(ExecError::Mount { dest, .. }) if dest == "/x"), "{exit:?}");
    // A later mount takes the place of a default one.
    let mut spec = tree.spec(&["cat", "/etc/hosts"]);
    spec.mounts = vec![Mount::new("/etc/hosts", part("sub/file"))];
    check(spec, "inside\n").await;
});

container_test!(stubs_vanish_recursively, tree, {
    let before = fs::metadata(tree.folder.path()).unwrap().modified().unwrap();
    fs::create_dir_all(tree.at("dev")).unwrap();
    for name in ["proc", "sys"] {
        fs::create_dir_all(tree.at(name)).unwrap();
    }
    let old = std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    assert!(old < before);
    fs::File::open(tree.folder.path()).unwrap().set_modified(old).unwrap();
    fs::File::open(tree.at("etc")).unwrap().set_modified(old).unwrap();
    let mut spec = tree.shell("touch /deep/er/still/x");
    spec.remove_mount_stubs_recursive = true;
    spec.mounts = vec![Mount::new("/deep/er/still", MountSource::Tmpfs { size: None })];
    check(spec, "").await;
    assert!(!tree.at("deep").exists());
    assert_eq!(fs::metadata(tree.at("etc")).unwrap().modified().unwrap(), old);
});

container_test!(readonly_root, tree, {
    let mut spec = tree.shell("touch /x; touch /dev/shm/ok && touch /mem/ok && echo ok");
    spec.root.readonly = true;
    spec.mounts = vec![Mount::new("/mem", MountSource::Tmpfs { size: None })];
    check(spec, "ok\nstderr: touch: /x: Read-only file system\n").await;
    assert!(!tree.at("x").exists());
});

container_test!(sandbox, tree, {
    let (_, text) = run(tree.shell(
        "grep -E '^(Cap|NoNewPrivs|Seccomp:)' /proc/self/status
         umask; echo pid $$; hostname
         wc -c < /proc/keys; ls /sys/firmware | wc -l
         echo x > /proc/sys/kernel/hostname
         mount -t tmpfs none /tmp; unshare -m true; chroot / true && echo chroot
         echo hidden > /dev/null; head -c 3 /dev/zero | wc -c
         ls -l /dev | grep -v total | wc -l; ls /proc/self/fd
         mknod /tmp/sda b 8 0 && head -c 1 /tmp/sda
         mknod /tmp/null c 1 3 && echo > /tmp/null && echo usable",
    ))
    .await;
    let expected = "CapInh:\t0000000000000000\nCapPrm:\t00000000a80425fb\nCapEff:\t00000000a80425fb\n\
        CapBnd:\t00000000a80425fb\nCapAmb:\t0000000000000000\nNoNewPrivs:\t0\nSeccomp:\t2\n\
        0022\npid 1\nbuildkitsandbox\n0\n0\nchroot\n3\n";
    assert!(text.starts_with(expected), "{text}");
    for part in [
        "/bin/sh: can't create /proc/sys/kernel/hostname: Read-only file system",
        "mount: permission denied (are you root?)",
        "unshare: unshare(0x20000): Operation not permitted",
        "head: /tmp/sda: Operation not permitted",
        "usable",
    ] {
        assert!(text.contains(part), "`{part}` is not in:\n{text}");
    }
    let mut spec = tree.shell("grep Cap /proc/self/status");
    spec.process.user = "app".into();
    let none = "0000000000000000";
    check(
        spec,
        &format!(
            "CapInh:\t{none}\nCapPrm:\t{none}\nCapEff:\t{none}\nCapBnd:\t00000000a80425fb\n\
             CapAmb:\t{none}\n"
        ),
    )
    .await;
});

container_test!(insecure, tree, {
    let mut spec = tree.shell(
        "mount -t tmpfs none /tmp && echo mounted; grep Seccomp: /proc/self/status
         test -c /dev/kmsg && echo kmsg; head -c 0 /dev/kmsg && echo opened
         test -d /sys/firmware && echo firmware; grep -q CapAmb:.0000000000000000 /proc/self/status || echo ambient",
    );
    spec.security = Security::Insecure;
    check(spec, "mounted\nSeccomp:\t0\nkmsg\nopened\nfirmware\nambient\n").await;
});

container_test!(names_and_networks, tree, {
    let mut spec = tree.shell("hostname; cat /etc/hosts; ls /sys/class/net; cat /etc/resolv.conf");
    spec.hostname = "box".into();
    spec.network = Network::None;
    spec.extra_hosts =
        vec![executor::ExtraHost { host: "db".into(), ip: "10.0.0.2".parse().unwrap() }];
    spec.dns.nameservers = vec!["9.9.9.9".parse().unwrap()];
    let (_, text) = run(spec).await;
    let expected = "box\n127.0.0.1\tlocalhost box\n::1\tlocalhost ip6-localhost ip6-loopback\n\
        10.0.0.2\tdb\nlo\nnameserver 9.9.9.9\n";
    assert!(text.starts_with(expected), "{text}");
    let mut spec = tree.shell("ifconfig lo | grep -c UP; ifconfig -a | grep -c Link");
    spec.network = Network::None;
    check(spec, "1\n1\n").await;
});

container_test!(cancelling_kills_all, tree, {
    let marker = format!("{}", 100_000 + std::process::id());
    let script = format!("sleep {marker} & sleep {marker} & wait");
    let hooks = Hooks::default();
    let cancel = hooks.cancel.clone();
    let (started, is_started) = tokio::sync::oneshot::channel();
    let hooks = Hooks { started: Some(started), ..hooks };
    let running = tokio::spawn(run_with(tree.shell(&script), hooks));
    is_started.await.unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(processes_with(&marker), 3);
    let begin = Instant::now();
    cancel.cancel();
    let (exit, _) = running.await.unwrap();
    assert!(matches!(exit, Err(ExecError::Cancelled)), "{exit:?}");
    assert!(begin.elapsed() < Duration::from_secs(1), "{:?}", begin.elapsed());
    assert_eq!(processes_with(&marker), 0);
    // Dropping the future kills, too.
    let running = tokio::spawn(run_with(tree.shell(&script), Hooks::default()));
    tokio::time::sleep(Duration::from_millis(300)).await;
    running.abort();
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(processes_with(&marker), 0);
});

fn processes_with(marker: &str) -> usize {
    fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| fs::read(entry.ok()?.path().join("cmdline")).ok())
        .filter(|line| String::from_utf8_lossy(line).contains(marker))
        .count()
}

container_test!(ends_with_the_first_process, tree, {
    let marker = format!("{}", 200_000 + std::process::id());
    check(tree.shell(&format!("sleep {marker} & echo done")), "done\n").await;
    assert_eq!(processes_with(&marker), 0);
});

container_test!(signals, tree, {
    let (events, receiver) = tokio::sync::mpsc::channel(4);
    let (started, is_started) = tokio::sync::oneshot::channel();
    let hooks = Hooks { started: Some(started), events: Some(receiver), ..Hooks::default() };
    let spec = tree.shell("trap 'echo caught; exit 3' USR1; while :; do sleep 0.05; done");
    let running = tokio::spawn(run_with(spec, hooks));
    is_started.await.unwrap();
    tokio::time::sleep(Duration::from_millis(150)).await;
    events.send(executor::Event::Signal(10)).await.unwrap();
    let (exit, text) = running.await.unwrap();
    assert_eq!((exit.unwrap().code, text.as_str()), (3, "caught\n"));
    let (exit, _) = run_with(tree.shell("sh -c 'kill -9 $$'; exit $?"), Hooks::default()).await;
    assert_eq!(exit.unwrap().code, 137);
});

container_test!(more_processes_in_a_container, tree, {
    let native = native().unwrap();
    let mut spec = tree.shell("touch /tmp/mark; sleep 100");
    spec.network = Network::Isolated;
    spec.hostname = "joined".into();
    let id = spec.id.clone();
    let hooks = Hooks::default();
    let cancel = hooks.cancel.clone();
    let (started, is_started) = tokio::sync::oneshot::channel();
    let running = tokio::spawn(run_with(spec, Hooks { started: Some(started), ..hooks }));
    is_started.await.unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    let mut process = Process::new([
        "sh",
        "-c",
        "hostname; ls /tmp /sys/class/net; id -u; test $(ls /proc | grep -c '^[0-9]') -lt 9 && echo few; grep Bnd /proc/self/status; exit 9",
    ]);
    process.env = vec![PATH.into()];
    process.user = "app".into();
    let (io, mut stdout, mut stderr) = Io::output().unwrap();
    let (mut out, mut err) = (String::new(), String::new());
    let (exit, _, _) = tokio::join!(
        native.exec(&id, process, io, Hooks::default()),
        stdout.read_to_string(&mut out),
        stderr.read_to_string(&mut err)
    );
    assert_eq!(err, "");
    assert_eq!(
        out,
        "joined\n/sys/class/net:\nlo\n\n/tmp:\nmark\n1000\nfew\nCapBnd:\t00000000a80425fb\n"
    );
    assert_eq!(exit.unwrap().code, 9);
    let (io, ..) = Io::output().unwrap();
    let exit = native.exec("other", Process::new(["true"]), io, Hooks::default()).await;
    assert!(matches!(exit, Err(ExecError::NotRunning(_))));
    // A server inside, reached from outside.
    fs::write(tree.at("tmp/index.html"), "hello from inside").unwrap();
    let mut server = Process::new(["httpd", "-f", "-p", "8080", "-h", "/tmp"]);
    server.env = vec![PATH.into()];
    let serving = tokio::spawn({
        let (native, id) = (native.clone(), id.clone());
        async move { native.exec(&id, server, Io::default(), Hooks::default()).await }
    });
    tokio::time::sleep(Duration::from_millis(200)).await;
    let network = native.network(&id).unwrap();
    let any = "127.0.0.1:0".parse().unwrap();
    let proxy = executor::net::PortProxy::start(any, network.clone(), 8080).await.unwrap();
    let mut client = tokio::net::TcpStream::connect(proxy.address()).await.unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut client, b"GET / HTTP/1.0\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.unwrap();
    assert!(answer.ends_with("hello from inside"), "{answer}");
    let taken = executor::net::PortProxy::start(proxy.address(), network, 8080).await;
    assert_eq!(
        taken.unwrap_err().to_string(),
        format!("address {} is already in use", proxy.address())
    );
    cancel.cancel();
    assert!(matches!(running.await.unwrap().0, Err(ExecError::Cancelled)));
    assert_eq!(serving.await.unwrap().unwrap().code, 137);
    assert!(matches!(native.network(&id), Err(ExecError::NotRunning(_))));
});

container_test!(terminals, tree, {
    let native = native().unwrap();
    let mut spec = tree.shell(
        "tty; test -t 0 && test -t 2 && echo terminal; read line; stty size; echo got $line >&2",
    );
    spec.process.terminal = true;
    let (events, receiver) = tokio::sync::mpsc::channel(4);
    let (started, is_started) = tokio::sync::oneshot::channel();
    let hooks = Hooks { started: Some(started), events: Some(receiver), ..Hooks::default() };
    let (io, mut pipes) = Io::piped().unwrap();
    let running = tokio::spawn(async move { native.run(spec, io, hooks).await });
    is_started.await.unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    events.send(executor::Event::Resize { rows: 33, columns: 99 }).await.unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    tokio::io::AsyncWriteExt::write_all(&mut pipes.stdin, b"typed\n").await.unwrap();
    let mut text = String::new();
    pipes.stdout.read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "/dev/pts/0\r\nterminal\r\ntyped\r\n33 99\r\ngot typed\r\n");
    assert_eq!(running.await.unwrap().unwrap().code, 0);
});

container_test!(input_reaches_the_process, tree, {
    let native = native().unwrap();
    let spec = tree.spec(&["cat"]);
    let (io, mut pipes) = Io::piped().unwrap();
    let running = tokio::spawn(async move { native.run(spec, io, Hooks::default()).await });
    tokio::io::AsyncWriteExt::write_all(&mut pipes.stdin, b"through").await.unwrap();
    drop(pipes.stdin);
    let mut text = String::new();
    pipes.stdout.read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "through");
    assert_eq!(running.await.unwrap().unwrap().code, 0);
    // Another user can open its own output again.
    let mut spec = tree.shell("echo again > /dev/stdout; echo wrong > /dev/stderr");
    spec.process.user = "app".into();
    check(spec, "again\nstderr: wrong\n").await;
});

container_test!(limits, tree, {
    let mut spec = tree.shell(
        "ulimit -n; cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2>/dev/null",
    );
    spec.process.rlimits = vec![executor::Rlimit { name: "nofile".into(), soft: 77, hard: 78 }];
    spec.resources.memory = 64 << 20;
    spec.resources.pids = 50;
    let id = spec.id.clone();
    let (exit, text) = run_with(spec, Hooks::default()).await;
    assert_eq!(text, format!("77\n{}\n", 64 << 20));
    let exit = exit.unwrap();
    assert!(!exit.oom_killed && exit.usage.memory_peak > 0, "{exit:?}");
    let mut spec = tree.shell(
        "dd if=/dev/zero of=/dev/shm/x bs=1M count=60; head -c 60m /dev/zero | tail -c 50m | wc -c",
    );
    spec.resources.memory = 16 << 20;
    let (exit, _) = run_with(spec, Hooks::default()).await;
    assert!(exit.unwrap().oom_killed);
    for folder in ["memory", "cpu", "pids", "devices"] {
        let groups = fs::read_dir(format!("/sys/fs/cgroup/{folder}/rbuild")).into_iter().flatten();
        for group in groups.flatten() {
            assert!(!group.path().join(&id).exists());
        }
    }
    let mut spec = tree.spec(&["true"]);
    spec.process.rlimits = vec![executor::Rlimit { name: "nonsense".into(), soft: 1, hard: 1 }];
    let (exit, _) = run_with(spec, Hooks::default()).await;
    assert!(matches!(exit, Err(ExecError::Invalid(_))));
});

container_test!(shared_process_namespace, tree, {
    let marker = format!("{}", 300_000 + std::process::id());
    let mut spec =
        tree.shell(&format!("sleep {marker} & test $$ -gt 1 && test -d /proc/$$ && echo shared"));
    spec.no_process_sandbox = true;
    check(spec, "shared\n").await;
    assert_eq!(processes_with(&marker), 0);
});

container_test!(hundred_at_once, tree, {
    // They share a root here, so that nobody may remove mount points under the others.
    for name in ["hosts", "resolv.conf"] {
        fs::write(tree.at("etc").join(name), "").unwrap();
    }
    let runs: Vec<_> = (0..100)
        .map(|number| {
            let spec = tree.shell(&format!("echo {number}; exit {number}"));
            tokio::spawn(async move { run(spec).await })
        })
        .collect();
    for (number, run) in runs.into_iter().enumerate() {
        assert_eq!(run.await.unwrap(), (number as i32, format!("{number}\n")));
    }
});

container_test!(bad_names_are_refused, tree, {
    for id in ["", "../x", "a/b", ".hidden"] {
        let mut spec = tree.spec(&["true"]);
        spec.id = id.into();
        let (exit, _) = run_with(spec, Hooks::default()).await;
        assert!(matches!(exit, Err(ExecError::Invalid(_))), "{id}");
    }
    let mut spec = tree.spec(&["true"]);
    spec.mounts = vec![Mount::new("/proc/self", MountSource::Tmpfs { size: None })];
    let (exit, _) = run_with(spec, Hooks::default()).await;
    assert!(matches!(exit, Err(ExecError::Invalid(_))));
    let cancel = CancellationToken::new();
    cancel.cancel();
    let hooks = Hooks { cancel, ..Hooks::default() };
    assert!(matches!(run_with(tree.spec(&["true"]), hooks).await.0, Err(ExecError::Cancelled)));
});

/// Drivers for the OCI runtimes that are installed.
fn runtimes() -> Vec<(&'static str, executor::Runc, tempfile::TempDir)> {
    let mut found = Vec::new();
    for (name, paths) in [
        ("runc", ["/usr/bin/runc", "/usr/sbin/runc"]),
        ("crun", ["/usr/bin/crun", "/usr/sbin/crun"]),
    ] {
        let Some(binary) = paths.into_iter().map(PathBuf::from).find(|path| path.exists()) else {
            eprintln!("skipped: {name} is not installed");
            continue;
        };
        let state = tempfile::tempdir().unwrap();
        let config = executor::RuncConfig {
            binary,
            state: state.path().to_owned(),
            default_cgroup_parent: None,
        };
        let launcher = executor::launcher::spawn().unwrap();
        found.push((name, executor::Runc::new(launcher, config), state));
    }
    found
}

/// What a container shows of itself, for comparison.
const INSPECT: &str = "
    env | sort; id -u; id -g; id -G; pwd; hostname; umask
    grep -E '^(Cap|NoNewPrivs|Seccomp:)' /proc/self/status
    cat /etc/hosts /etc/resolv.conf; ls /sys/class/net
    mount | grep -v -E ' cgroup | /sys/f|/proc/(acpi|asound|k|scsi|timer|latency|sched)' | grep -E ' /(proc|dev|sys|etc|own|mem|key)' |
        sed -e 's/^.* on/on/' -e 's/size=[0-9]*k/size/' -e 's/,inode64//' -e 's/,lowerdir.*//' |
        sed -e '/proc/s/(ro,.*relatime)/(ro)/' | sort
    ls -1 /dev | grep -v core; ls -l /dev/null | cut -c 1-10; ls -1 /; stat -c '%u:%g %a' /own /key
    ulimit -n; wc -c < /proc/keys; ls /sys/firmware; cat /own/file /key
    touch /proc/sys/x; touch /sys/x; touch /key
    mount -t tmpfs none /mem; unshare -m true; mknod /mem/x b 8 0 && head -c 1 /mem/x
    exit 17";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_runtimes_agree() {
    let Some(native) = native() else { return };
    for (name, runc, _state) in runtimes() {
        for user in ["", "app"] {
            let mut texts = Vec::new();
            for executor in [native as &dyn Executor, &runc] {
                let tree = Tree::new();
                let own = tempfile::tempdir().unwrap();
                fs::write(own.path().join("file"), "content\n").unwrap();
                let mut spec = tree.shell(INSPECT);
                spec.process.env.push("A=b".into());
                spec.process.user = user.into();
                spec.process.cwd = "/some/where".into();
                spec.process.rlimits =
                    vec![executor::Rlimit { name: "nofile".into(), soft: 100, hard: 200 }];
                spec.hostname = "same".into();
                spec.network = Network::None;
                spec.mounts = vec![
                    Mount::new(
                        "/own",
                        MountSource::Tree { tree: open(own.path()), path: String::new() },
                    ),
                    Mount::new("/mem", MountSource::Tmpfs { size: Some(1 << 20) }),
                    Mount::new(
                        "/key",
                        MountSource::File {
                            data: Secret("secret\n".into()),
                            uid: 1000,
                            gid: 0,
                            mode: 0o400,
                        },
                    ),
                ];
                let (exit, text) = run_on(executor, spec, Hooks::default()).await;
                let left = fs::read_dir(tree.folder.path()).unwrap().count();
                texts.push(match exit {
                    Ok(exit) => format!("{text}exit {}\n{left} left\n", exit.code),
                    Err(error) => format!("{error}: {text}"),
                });
            }
            assert_eq!(texts[0], texts[1], "{name} differs as user {user:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_runtimes_follow_the_contract() {
    if native().is_none() {
        return;
    }
    for (name, runc, state) in runtimes() {
        let tree = Tree::new();
        let (exit, _) = run_on(&runc, tree.spec(&["missing"]), Hooks::default()).await;
        assert!(matches!(exit, Err(ExecError::Start { code: 127, .. })), "{name}: {exit:?}");
        let (exit, _) =
            run_on(&runc, tree.shell("sh -c 'kill -9 $$'; exit $?"), Hooks::default()).await;
        assert_eq!(exit.unwrap().code, 137, "{name}");
        // A second process, then cancelling.
        let marker = format!("{}", 400_000 + std::process::id());
        let mut spec = tree.shell(&format!("touch /tmp/up; sleep {marker}"));
        spec.network = Network::Isolated;
        let id = spec.id.clone();
        let (started, is_started) = tokio::sync::oneshot::channel();
        let hooks = Hooks { started: Some(started), ..Hooks::default() };
        let cancel = hooks.cancel.clone();
        let running = tokio::spawn({
            let runc = runc.clone();
            async move { run_on(&runc, spec, hooks).await }
        });
        is_started.await.unwrap();
        while !tree.at("tmp/up").exists() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let mut process = Process::new(["sh", "-c", "ls /tmp /sys/class/net; id -u; exit 5"]);
        process.env = vec![PATH.into()];
        process.user = "app".into();
        let (io, mut stdout, mut stderr) = Io::output().unwrap();
        let (mut out, mut err) = (String::new(), String::new());
        let (exit, _, _) = tokio::join!(
            runc.exec(&id, process, io, Hooks::default()),
            stdout.read_to_string(&mut out),
            stderr.read_to_string(&mut err)
        );
        assert_eq!((out.as_str(), err.as_str()), ("/sys/class/net:\nlo\n\n/tmp:\nup\n1000\n", ""));
        assert_eq!(exit.unwrap().code, 5, "{name}");
        assert!(processes_with(&marker) > 0);
        cancel.cancel();
        assert!(matches!(running.await.unwrap().0, Err(ExecError::Cancelled)));
        assert_eq!(processes_with(&marker), 0, "{name}");
        // A terminal. (`crun` can lose what is written just before the end.)
        let mut spec = tree.shell("test -t 0 && test -t 1 && echo terminal; sleep 0.3");
        spec.process.terminal = true;
        let (exit, text) = run_on(&runc, spec, Hooks::default()).await;
        assert_eq!((exit.unwrap().code, text.as_str()), (0, "terminal\r\n"), "{name}");
        let left = fs::read_dir(state.path().join("bundles")).unwrap().count();
        assert_eq!(left, 0, "{name}");
    }
}

container_test!(detached_trees, tree, {
    use rustix::mount::*;
    // As the snapshot drivers make them: a clone of a folder, and an overlay.
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let clone = open_tree(rustix::fs::CWD, tree.folder.path(), flags).unwrap();
    let upper = tempfile::tempdir().unwrap();
    for name in ["upper", "work"] {
        fs::create_dir(upper.path().join(name)).unwrap();
    }
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).unwrap();
    fsconfig_set_string(&context, "lowerdir", tree.folder.path()).unwrap();
    fsconfig_set_string(&context, "upperdir", upper.path().join("upper")).unwrap();
    fsconfig_set_string(&context, "workdir", upper.path().join("work")).unwrap();
    fsconfig_create(&context).unwrap();
    let overlay =
        fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty()).unwrap();
    fs::write(tree.at("tmp/below"), "below\n").unwrap();
    for (number, detached) in [Arc::new(clone), Arc::new(overlay)].into_iter().enumerate() {
        // Twice, as root and as a mount at once.
        for round in 0..2 {
            let mut spec = tree.shell("cat /tmp/below /part/below; echo $0 > /tmp/written");
            spec.root.tree = detached.clone();
            let source = MountSource::Tree { tree: detached.clone(), path: "tmp".into() };
            spec.mounts = vec![Mount::new("/part", source).readonly()];
            let (exit, text) = run_with(spec, Hooks::default()).await;
            assert_eq!(text, "below\nbelow\n", "tree {number} round {round}: {exit:?}");
        }
        let written = rustix::fs::openat(
            &*detached,
            "tmp/written",
            rustix::fs::OFlags::RDONLY,
            rustix::fs::Mode::empty(),
        );
        assert!(written.is_ok(), "tree {number} is usable afterwards");
    }
    assert!(upper.path().join("upper/tmp/written").exists());
    assert!(!upper.path().join("upper/part").exists(), "mount points leave nothing behind");
});

/// Not a test: the daemon that the next one kills.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "run by `nothing_outlives_a_killed_daemon`"]
async fn victim() {
    let Ok(marker) = std::env::var("RBUILD_TEST_MARKER") else { return };
    let tree = Tree::new();
    let mut spec = tree.shell(&format!("sleep {marker} & sleep {marker}"));
    spec.id = marker;
    spec.resources.memory = 64 << 20;
    spec.cgroup_parent = "rbuild-test".into();
    run_with(spec, Hooks::default()).await.0.unwrap();
}

#[test]
fn nothing_outlives_a_killed_daemon() {
    if native().is_none() {
        return;
    }
    let marker = format!("{}", 500_000 + std::process::id());
    let mut daemon = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "victim", "--ignored", "--nocapture"])
        .env("RBUILD_TEST_MARKER", &marker)
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let wait = |what: &str, done: &dyn Fn() -> bool| {
        let begin = Instant::now();
        while !done() {
            assert!(begin.elapsed() < Duration::from_secs(10), "{what}");
            std::thread::sleep(Duration::from_millis(10));
        }
    };
    let groups = || {
        let all = fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten();
        let found = |path: &Path| path.join("rbuild-test/buildkit").join(&marker).exists();
        all.filter(|entry| found(&entry.path())).count()
            + usize::from(found(Path::new("/sys/fs/cgroup")))
    };
    wait("the container starts", &|| processes_with(&marker) >= 2 && groups() > 0);
    daemon.kill().unwrap();
    daemon.wait().unwrap();
    wait("processes are gone", &|| processes_with(&marker) == 0);
    wait("control groups are gone", &|| groups() == 0);
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(&marker));
}

container_test!(a_killed_launcher_is_replaced, tree, {
    let launcher = executor::launcher::spawn().unwrap();
    let native = Native::new(launcher.clone(), NativeConfig::default());
    let (started, is_started) = tokio::sync::oneshot::channel();
    let hooks = Hooks { started: Some(started), ..Hooks::default() };
    let spec = tree.spec(&["sleep", "100"]);
    let (io, _out, _err) = Io::output().unwrap();
    let running = tokio::spawn({
        let native = native.clone();
        async move { native.run(spec, io, hooks).await }
    });
    is_started.await.unwrap();
    let id = rustix::process::Pid::from_raw(launcher.id().unwrap() as i32).unwrap();
    rustix::process::kill_process(id, rustix::process::Signal::KILL).unwrap();
    let exit = running.await.unwrap();
    assert!(matches!(exit, Err(ExecError::LauncherGone)), "{exit:?}");
    let (exit, text) = run_on(&native, tree.spec(&["echo", "again"]), Hooks::default()).await;
    assert_eq!((exit.unwrap().code, text.as_str()), (0, "again\n"));
});

container_test!(an_isolated_network_has_a_way_out, tree, {
    let launcher = executor::launcher::spawn().unwrap();
    // A range for documentation, so that nothing real is in the way.
    let subnet = Some("198.51.100.0/24".parse().unwrap());
    let native = Native::new(launcher, NativeConfig { subnet, ..NativeConfig::default() });
    // Somebody outside: the host, under an address that is not in the range.
    let listener = match tokio::net::TcpListener::bind("0.0.0.0:0").await {
        Ok(listener) => listener,
        Err(error) => panic!("{error}"),
    };
    let port = listener.local_addr().unwrap().port();
    let probe = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
    let outside = match probe.connect("192.0.2.1:9").and_then(|()| probe.local_addr()) {
        Ok(address) => address.ip(),
        Err(_) => {
            eprintln!("skipped: this machine has no address of its own");
            return;
        }
    };
    let mut spec = tree.shell(&format!(
        "ifconfig eth0 | grep -o 'inet addr:[0-9.]*'; echo hello | nc -w 2 {outside} {port}"
    ));
    spec.network = Network::Isolated;
    let accept = async {
        let (mut stream, peer) =
            tokio::time::timeout(Duration::from_secs(5), listener.accept()).await.ok()?.ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await.ok()?;
        Some((text, peer.ip().to_string()))
    };
    let ((exit, text), accepted) = tokio::join!(run_on(&native, spec, Hooks::default()), accept);
    if text.contains("can't open") || text.contains("No such device") {
        eprintln!("skipped: no tools for it here: {text}");
        return;
    }
    // Which address of the range is up to chance.
    let own = text.lines().next().and_then(|line| line.strip_prefix("inet addr:"));
    let own = own.unwrap_or_else(|| panic!("{exit:?} {text}"));
    assert!(own.starts_with("198.51.100."), "{own}");
    let (hello, peer) = accepted.expect("the container connects");
    assert_eq!((hello.as_str(), peer.as_str()), ("hello\n", own));
});
