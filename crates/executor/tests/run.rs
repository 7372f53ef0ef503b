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
    let (io, mut stdout, mut stderr) = Io::output().unwrap();
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let (exit, _, _) = tokio::join!(
        native().unwrap().run(spec, io, hooks),
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
