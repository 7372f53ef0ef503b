//! Drives the real daemon and command line: each test has its own state folder, socket and daemon.
//!
//! Tests need root and a static busybox; without either they print that they were skipped. The
//! programs must have been built (`cargo xtask test` does). When a [`Daemon`] is dropped, its
//! processes are ended and its state removed.

pub mod net;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

/// How long a daemon may take to answer.
const READY: Duration = Duration::from_secs(20);
/// The program that test images are made of.
pub const BUSYBOX: &str = "/bin/busybox";

/// Whether whole-system tests can run here; says why not.
pub fn can_run() -> bool {
    let root = fs::read_to_string("/proc/self/status")
        .is_ok_and(|status| status.lines().any(|line| line.starts_with("Uid:\t0\t")));
    if !root {
        eprintln!("skipped: needs root");
        return false;
    }
    if !Path::new(BUSYBOX).is_file() {
        eprintln!("skipped: needs {BUSYBOX} (Debian package busybox-static)");
        return false;
    }
    true
}

/// Whether a program is installed; says that the test is skipped if it is not.
pub fn has(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).any(|folder| folder.join(program).is_file());
    if !found {
        eprintln!("skipped: needs {program}");
    }
    found
}

/// A program of ours.
pub fn program(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("a running test has a path");
    let folder = test.ancestors().find(|folder| folder.join(name).is_file());
    folder
        .unwrap_or_else(|| panic!("{name} is not built; run cargo build -p rbuildd -p rbuildctl"))
        .join(name)
}

/// A daemon with a state folder of its own.
pub struct Daemon {
    folder: tempfile::TempDir,
    state: PathBuf,
    process: Option<Child>,
    args: Vec<String>,
    env: Vec<(String, String)>,
    umask: Option<String>,
}

impl Daemon {
    /// Starts one.
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// Starts one with more arguments.
    pub fn start_with(args: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("make a folder");
        let state = folder.path().join("state");
        Self::at(folder, state, args)
    }

    /// Starts one whose state lies elsewhere.
    pub fn with_state(state: &Path) -> Self {
        Self::with_state_and(state, &[])
    }

    /// Starts one whose state lies elsewhere, with more arguments.
    pub fn with_state_and(state: &Path, args: &[&str]) -> Self {
        Self::at(tempfile::tempdir().expect("make a folder"), state.to_owned(), args)
    }

    fn at(folder: tempfile::TempDir, state: PathBuf, args: &[&str]) -> Self {
        let args = args.iter().map(|arg| (*arg).to_owned()).collect();
        let mut daemon = Self { folder, state, process: None, args, env: Vec::new(), umask: None };
        daemon.restart();
        daemon
    }

    /// Starts one with another umask, such as `077`.
    pub fn start_with_umask(umask: &str) -> Self {
        let folder = tempfile::tempdir().expect("make a folder");
        let state = folder.path().join("state");
        let (args, env, umask) = (Vec::new(), Vec::new(), Some(umask.to_owned()));
        let mut daemon = Self { folder, state, process: None, args, env, umask };
        daemon.restart();
        daemon
    }

    /// Starts one with more variables in its environment.
    pub fn start_with_env(env: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().expect("make a folder");
        let state = folder.path().join("state");
        let env = env.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        let mut daemon = Self { folder, state, process: None, args: Vec::new(), env, umask: None };
        daemon.restart();
        daemon
    }

    /// Starts the daemon (again) and waits until it answers.
    pub fn restart(&mut self) {
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(self.log_path())
            .expect("open the log");
        let mut command = Command::new(program("rbuildd"));
        if let Some(umask) = &self.umask {
            command = Command::new("sh");
            command.args(["-c", "umask $0; exec \"$@\"", umask]).arg(program("rbuildd"));
        }
        let child = command
            .arg("--root")
            .arg(&self.state)
            .args(["--addr", &self.address(), "--debug"])
            .args(&self.args)
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("start rbuildd");
        self.process = Some(child);
        let start = Instant::now();
        loop {
            if self.ctl(&["debug", "workers"]).status.success() {
                return;
            }
            assert!(start.elapsed() < READY, "the daemon does not answer:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Where it listens.
    pub fn address(&self) -> String {
        format!("unix://{}", self.folder.path().join("sock").display())
    }

    /// Its state folder.
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.as_ref().expect("the daemon runs").id()
    }

    fn log_path(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    /// What it logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    /// Kills it without warning.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().expect("kill the daemon");
            process.wait().expect("wait for the daemon");
        }
    }

    /// Asks it to end and waits for that.
    pub fn stop(&mut self) {
        if let Some(mut process) = self.process.take() {
            let asked = Command::new("kill").arg(process.id().to_string()).status();
            assert!(asked.is_ok_and(|status| status.success()), "ask the daemon to end");
            let status = process.wait().expect("wait for the daemon");
            assert!(status.success(), "the daemon ended with {status}:\n{}", self.log());
        }
    }

    /// Waits until it has ended by itself, as it should.
    pub fn ended(&mut self) {
        if let Some(mut process) = self.process.take() {
            let status = process.wait().expect("wait for the daemon");
            assert!(status.success(), "the daemon ended with {status}:\n{}", self.log());
        }
    }

    /// The command line for this daemon, not started yet.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(program("rbuildctl"));
        command.args(["--addr", &self.address()]).args(args).stdin(Stdio::null());
        command
    }

    /// Runs the command line.
    pub fn ctl(&self, args: &[&str]) -> Output {
        self.command(args).output().expect("run rbuildctl")
    }

    /// Runs the command line, which must succeed, and gives what it printed.
    pub fn ok(&self, args: &[&str]) -> String {
        let output = self.ctl(args);
        let text = text(&output);
        assert!(output.status.success(), "rbuildctl {args:?} failed:\n{text}\n{}", self.log());
        text
    }

    /// Runs the command line, which must fail, and gives what it printed.
    pub fn fails(&self, args: &[&str]) -> String {
        let output = self.ctl(args);
        let text = text(&output);
        assert!(!output.status.success(), "rbuildctl {args:?} succeeded:\n{text}");
        text
    }

    /// Processes whose command line holds `needle`, but for ourselves.
    pub fn processes(needle: &str) -> Vec<u32> {
        let entries = fs::read_dir("/proc").expect("list processes");
        let ids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
        ids.filter(|id| {
            *id != std::process::id()
                && fs::read(format!("/proc/{id}/cmdline")).is_ok_and(|line| {
                    String::from_utf8_lossy(&line).replace('\0', " ").contains(needle)
                })
        })
        .collect()
    }

    /// Its resident memory in KiB.
    pub fn memory(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0)
    }

    /// How many files it has open.
    pub fn open_files(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.pid())).map_or(0, Iterator::count)
    }

    /// Control groups of ours whose daemon has died.
    pub fn strange_groups(&self) -> Vec<String> {
        let mut found = Vec::new();
        let hierarchies = fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten();
        for hierarchy in
            hierarchies.map(|entry| entry.path()).chain([PathBuf::from("/sys/fs/cgroup")])
        {
            for group in fs::read_dir(hierarchy.join("rbuild")).into_iter().flatten().flatten() {
                let name = group.file_name().to_string_lossy().into_owned();
                let Some((pid, _)) = name.split_once('-') else { continue };
                let alive = Path::new("/proc").join(pid).exists();
                if group.path().is_dir() && pid.parse::<u32>().is_ok() && !alive {
                    found.push(group.path().display().to_string());
                }
            }
        }
        found
    }

    /// Asserts that nothing is left of builds that ended: mounts, sockets, half-made folders and
    /// blobs, journals, records in use.
    pub fn left_clean(&self) {
        assert_eq!(self.mounts(), Vec::<String>::new());
        let count = |folder: &str| fs::read_dir(self.state.join(folder)).map_or(0, Iterator::count);
        eventually(Duration::from_secs(20), "nothing is left of builds that ended", || {
            ["run", "journals", "snapshots/.new", "snapshots/.trash", "content/ingest"]
                .iter()
                .all(|folder| count(folder) == 0)
        });
        let du = self.ok(&["du", "-v"]);
        assert!(!du.contains("Mutable:\ttrue\nReclaimable:\tfalse"), "{du}");
    }

    /// Mounts below the state folder in the daemon's own namespace.
    pub fn mounts(&self) -> Vec<String> {
        let table =
            fs::read_to_string(format!("/proc/{}/mountinfo", self.pid())).unwrap_or_default();
        let state = self.state.display().to_string();
        table
            .lines()
            .filter(|line| line.contains(&format!(" {state}/")))
            .map(str::to_owned)
            .collect()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            _ = process.kill();
            _ = process.wait();
        }
    }
}

/// Whether tests of load run as long as they should before a release.
pub fn long() -> bool {
    std::env::var("RBUILD_STRESS").is_ok_and(|value| value == "long")
}

/// Numbers for moments and sizes; the seed is printed, and can be given as `RBUILD_SEED`.
pub struct Random(u64);

impl Random {
    /// A fresh one.
    pub fn new() -> Self {
        let given = std::env::var("RBUILD_SEED").ok().and_then(|text| text.parse().ok());
        let seed = given.unwrap_or_else(|| {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
            now.map_or(1, |now| now.as_nanos() as u64)
        });
        println!("RBUILD_SEED={seed}");
        Self(seed | 1)
    }

    /// Always the same numbers.
    pub fn seeded(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// A number from 0 to below `limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % limit.max(1)
    }
}

impl Default for Random {
    fn default() -> Self {
        Self::new()
    }
}

/// Kills a process.
pub fn kill(pid: u32) {
    let killed = Command::new("kill").args(["-9", &pid.to_string()]).status();
    assert!(killed.is_ok_and(|status| status.success()), "kill {pid}");
}

/// A small file system that fills up.
pub struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    /// One of `size`, such as `96m`.
    pub fn new(size: &str) -> Self {
        let folder = tempfile::tempdir().expect("make a folder");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"])
            .arg(folder.path())
            .status();
        assert!(mounted.is_ok_and(|status| status.success()), "mount a tmpfs");
        Self(folder)
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Bytes in use on it.
    pub fn used(&self) -> u64 {
        let stat = rustix::fs::statvfs(self.path()).expect("look at the disk");
        (stat.f_blocks - stat.f_bfree) * stat.f_frsize
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

/// Both streams of a program as text.
pub fn text(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// Waits until `holds`, at most so long.
pub fn eventually(limit: Duration, what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < limit, "still not: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A build context: busybox, a Dockerfile that starts from it, and more files.
pub struct Context(tempfile::TempDir);

/// The lines that most test Dockerfiles begin with: a shell and the usual programs.
pub const BASE: &str = "FROM scratch AS base\nCOPY busybox /bin/busybox\nRUN [\"/bin/busybox\", \"--install\", \"-s\", \"/bin\"]\n";

impl Context {
    /// [`BASE`], then `dockerfile`.
    pub fn new(dockerfile: &str) -> Self {
        let context = Self(tempfile::tempdir().expect("make a folder"));
        fs::copy(BUSYBOX, context.path().join("busybox")).expect("copy busybox");
        context.write("Dockerfile", format!("{BASE}{dockerfile}").as_bytes());
        context
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// The folder as an argument.
    pub fn arg(&self) -> String {
        self.path().display().to_string()
    }

    /// Writes a file.
    pub fn write(&self, name: &str, data: &[u8]) {
        let path = self.path().join(name);
        fs::create_dir_all(path.parent().expect("a file has a folder")).expect("make a folder");
        fs::write(path, data).expect("write a file");
    }

    /// Replaces what comes after [`BASE`].
    pub fn dockerfile(&self, text: &str) {
        self.write("Dockerfile", format!("{BASE}{text}").as_bytes());
    }
}
