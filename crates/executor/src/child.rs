//! What a clone of the launcher does until it becomes the program of a container.
//!
//! It takes its [`Plan`] from its socket, makes the container around itself or joins one, gives up
//! what the program must not have, and executes it. Each step that fails is told to the daemon by
//! name. Order matters: limits and groups first, mounts while we still may, then identity, and the
//! system call filter only when nothing but harmless calls is left to do.

use std::{
    convert::Infallible,
    ffi::CString,
    io,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd},
};

use rustix::fs::{Access, AtFlags, CWD, Mode, OFlags};

use crate::{
    launcher::serve::Ready,
    native::plan::EMULATOR,
    sys, user,
    wire::{self, Failure, Host, Place, Plan, Program, Progress},
};

mod confine;
mod mounts;
pub mod network;
mod terminal;

pub use confine::sandbox_capabilities;

/// Descriptors of a plan, taken one by one.
pub struct Fds(Vec<Option<OwnedFd>>);

impl Fds {
    /// The descriptor, still in its place.
    fn get(&self, index: wire::Fd) -> io::Result<BorrowedFd<'_>> {
        let fd = self.0.get(index).and_then(Option::as_ref);
        Ok(fd.ok_or_else(|| io::Error::from_raw_os_error(libc::EBADF))?.as_fd())
    }
}

/// Becomes the program, or tells the daemon why not.
pub fn main(socket: OwnedFd, ready: &Ready) -> ! {
    let Err(failure) = run(&socket, ready);
    _ = sys::send(&socket, &wire::encode(&Progress::Failed(shorten(failure))), &[]);
    // Without running destructors of what the launcher had: they are its own business.
    // SAFETY: ends this process.
    unsafe { libc::_exit(1) }
}

/// Makes a failure fit into a message.
fn shorten(mut failure: Failure) -> Failure {
    let (Failure::Start { program: text, .. }
    | Failure::Mount { dest: text, .. }
    | Failure::Setup { doing: text, .. }) = &mut failure;
    while text.len() > 4096 {
        text.pop();
    }
    failure
}

fn run(socket: &OwnedFd, ready: &Ready) -> Result<Infallible, Failure> {
    reset_signals();
    let (plan, fds) = wire::receive_plan(socket).map_err(Failure::setup("read the plan"))?;
    let fds = Fds(fds);
    // Modes of what we make are meant as written.
    rustix::process::umask(Mode::empty());
    for group in &plan.join_cgroups {
        let joined = fds.get(*group).and_then(|fd| Ok(rustix::io::write(fd, b"0")?));
        joined.map_err(Failure::setup("join a control group"))?;
    }
    match &plan.place {
        Place::New(container) => {
            enter_new(container, &fds)?;
            mounts::make_root(container, &fds)?;
        }
        Place::Join { pidfd } => join(&fds, *pidfd)?,
        Place::Host(host) => return on_host(host, &plan, &fds, ready),
    }
    start(socket, &plan, fds, ready)
}

fn enter_new(container: &wire::Container, fds: &Fds) -> Result<(), Failure> {
    let network = if container.own_network { libc::CLONE_NEWNET } else { 0 };
    let connecting = |error| Failure::setup("connect the network")(error);
    let host = match &container.link {
        Some(_) => Some(network::Netlink::open().map_err(connecting)?),
        None => None,
    };
    let kinds = libc::CLONE_NEWNS | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS | network;
    sys::unshare(kinds).map_err(Failure::setup("enter new namespaces"))?;
    join_network(container.network, fds)?;
    // Unknown to old kernels, and only there to look tidy.
    _ = sys::unshare(libc::CLONE_NEWCGROUP);
    if container.own_network {
        loopback_up().map_err(Failure::setup("start the loopback interface"))?;
    }
    if let (Some(link), Some(host)) = (&container.link, &host) {
        network::connect(host, link).map_err(connecting)?;
    }
    rustix::system::sethostname(container.hostname.as_bytes())
        .map_err(|error| Failure::setup("set the host name")(error.into()))
}

/// Enters a network that was made before.
fn join_network(network: Option<wire::Fd>, fds: &Fds) -> Result<(), Failure> {
    let Some(network) = network else { return Ok(()) };
    fds.get(network)
        .and_then(|network| sys::setns(network, libc::CLONE_NEWNET))
        .map_err(Failure::setup("join a network"))
}

/// The process namespace was entered when we were cloned.
fn join(fds: &Fds, pidfd: wire::Fd) -> Result<(), Failure> {
    let kinds = libc::CLONE_NEWNS | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS | libc::CLONE_NEWNET;
    fds.get(pidfd)
        .and_then(|pidfd| sys::setns(pidfd, kinds | libc::CLONE_NEWCGROUP))
        .map_err(Failure::setup("join the container"))
}

/// Runs a program of the host with trees attached for it alone.
fn on_host(host: &Host, plan: &Plan, fds: &Fds, ready: &Ready) -> Result<Infallible, Failure> {
    if let Some(join) = host.join {
        fds.get(join)
            .and_then(|pidfd| sys::setns(pidfd, libc::CLONE_NEWNS | libc::CLONE_NEWNET))
            .map_err(Failure::setup("join the runtime's mounts"))?;
    } else {
        mounts::prepare_host(host, fds, ready)?;
    }
    if host.own_network {
        sys::unshare(libc::CLONE_NEWNET)
            .and_then(|()| loopback_up())
            .map_err(Failure::setup("make a network"))?;
    }
    join_network(host.network, fds)?;
    let program = &plan.program;
    connect_io(program, fds, None)?;
    rustix::process::umask(Mode::from_raw_mode(0o022));
    _ = rustix::process::setsid();
    rustix::process::chdir(program.cwd.as_str())
        .map_err(|error| Failure::setup(format!("enter {}", program.cwd))(error.into()))?;
    execute(program, &program.env)
}

/// From here on we are inside of the container.
fn start(socket: &OwnedFd, plan: &Plan, fds: Fds, ready: &Ready) -> Result<Infallible, Failure> {
    let program = &plan.program;
    let confinement = &plan.confinement;
    let cwd = if program.cwd.is_empty() { "/" } else { &program.cwd };
    if matches!(plan.place, Place::New(_)) {
        make_cwd(cwd)?;
    }
    confine::score(confinement)?;
    _ = rustix::process::setsid();
    if program.terminal {
        let new = matches!(plan.place, Place::New(_));
        let terminal = terminal::open(new).map_err(Failure::setup("open a terminal"))?;
        sys::send(socket, &wire::encode(&Progress::Terminal), &[terminal.master.as_fd()])
            .map_err(Failure::setup("hand over the terminal"))?;
        connect_io(program, &fds, Some(terminal.slave))?;
    } else {
        connect_io(program, &fds, None)?;
    }
    own_io(program.user.uid);
    let mut env = crate::env::unique(&program.env);
    add_home(&mut env, program.user.uid);
    confine::apparmor(confinement)?;
    confine::rlimits(&program.rlimits)?;
    // Nothing of ours may be reachable through the working directory or /proc/self/fd. No
    // destructor runs from here on: we end in execve or _exit.
    std::mem::forget(fds);
    sys::close_others(socket).map_err(Failure::setup("close descriptors"))?;
    let entered = rustix::process::chdir(cwd);
    confine::filter(confinement, ready)?;
    confine::identity(confinement, &program.user)?;
    if !ready.own_pids {
        _ = sys::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as _, 0);
    }
    rustix::process::umask(Mode::from_raw_mode(0o022));
    if entered.is_err() {
        // Perhaps only the user may enter it (a network file system that maps root to nobody).
        rustix::process::chdir(cwd)
            .map_err(|error| Failure::setup(format!("enter {cwd}"))(error.into()))?;
    }
    execute(program, &env)
}

fn make_cwd(cwd: &str) -> Result<(), Failure> {
    if rustix::fs::stat(cwd).is_ok() {
        return Ok(());
    }
    std::fs::create_dir_all(cwd).map_err(Failure::setup(format!("make working directory {cwd}")))
}

fn add_home(env: &mut Vec<String>, uid: u32) {
    if crate::env::get(env, "HOME").is_some_and(|home| !home.is_empty()) {
        return;
    }
    let home = match rustix::fs::open("/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty()) {
        Ok(root) => user::home(root, uid),
        Err(_) => "/".to_owned(),
    };
    env.retain(|line| !line.starts_with("HOME="));
    env.push(format!("HOME={home}"));
}

/// Puts standard input, output and errors in place.
fn connect_io(program: &Program, fds: &Fds, terminal: Option<OwnedFd>) -> Result<(), Failure> {
    for (number, index) in (0..).zip(program.io) {
        let null;
        let source = match (&terminal, index) {
            (Some(slave), _) => slave.as_fd(),
            (None, Some(index)) => fds.get(index).map_err(Failure::setup("find a stream"))?,
            (None, None) => {
                // The container's own: the mode of the host's could be changed through it.
                let flags = OFlags::RDWR | OFlags::CLOEXEC;
                null = rustix::fs::open("/dev/null", flags, Mode::empty())
                    .map_err(|error| Failure::setup("open /dev/null")(error.into()))?;
                null.as_fd()
            }
        };
        // SAFETY: replaces descriptors 0 to 2, which nothing here owns.
        if unsafe { libc::dup2(source.as_raw_fd(), number) } < 0 {
            return Err(Failure::setup("connect a stream")(io::Error::last_os_error()));
        }
    }
    Ok(())
}

/// Lets the user open `/dev/stdout` and the like again.
fn own_io(uid: u32) {
    if uid == 0 {
        return;
    }
    for fd in [rustix::stdio::stdin(), rustix::stdio::stdout(), rustix::stdio::stderr()] {
        let Ok(stat) = rustix::fs::fstat(fd) else { continue };
        let null = rustix::fs::makedev(1, 3);
        if stat.st_uid != uid && stat.st_rdev != null {
            // Some kinds of files have no owner; then there is nothing to gain.
            _ = rustix::fs::fchown(fd, Some(rustix::fs::Uid::from_raw(uid)), None);
        }
    }
}

/// Replaces this process.
fn execute(program: &Program, env: &[String]) -> Result<Infallible, Failure> {
    let args = match &*program.args {
        // Among foreign programs there may be some of this machine.
        [emulator, args @ ..] if emulator == EMULATOR && is_native(args, env) => args,
        args => args,
    };
    let name = args.first().map_or("", String::as_str);
    let fail = |code, reason: String| Failure::Start { program: name.to_owned(), reason, code };
    let strings = |lines: &[String]| -> Result<Vec<CString>, Failure> {
        let text = lines.iter().map(|line| CString::new(line.as_str())).collect::<Result<_, _>>();
        text.map_err(|_| fail(126, "an argument or variable contains a zero byte".to_owned()))
    };
    let (args, env) = (strings(args)?, (strings(env)?, env));
    let path = search(name, env.1).map_err(|(code, reason)| fail(code, reason))?;
    let path = CString::new(path).map_err(|error| fail(126, error.to_string()))?;
    let pointers = |strings: &[CString]| -> Vec<*const libc::c_char> {
        strings.iter().map(|text| text.as_ptr()).chain([std::ptr::null()]).collect()
    };
    let (args, env) = (pointers(&args), pointers(&env.0));
    // SAFETY: both lists end with a null pointer, and their strings are alive.
    unsafe { libc::execve(path.as_ptr(), args.as_ptr(), env.as_ptr()) };
    let error = io::Error::last_os_error();
    let code = if error.kind() == io::ErrorKind::NotFound { 127 } else { 126 };
    Err(fail(code, describe(&error)))
}

fn describe(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::ENOENT) => "no such file or directory".to_owned(),
        Some(libc::EACCES) => "permission denied".to_owned(),
        Some(libc::ENOEXEC) => "exec format error".to_owned(),
        _ => error.to_string(),
    }
}

/// Whether the program that these arguments name holds code of this machine.
fn is_native(args: &[String], env: &[String]) -> bool {
    let machine = match std::env::consts::ARCH {
        "x86_64" => 62,
        "aarch64" => 183,
        "riscv64" => 243,
        _ => return false,
    };
    let Some(Ok(path)) = args.first().map(|name| search(name, env)) else { return false };
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let Ok(file) = rustix::fs::open(path, flags, Mode::empty()) else { return false };
    // Marks, width and order of bytes, then from byte 18 the machine.
    let mut header = [0; 20];
    rustix::io::read(&file, &mut header) == Ok(header.len())
        && header.starts_with(b"\x7fELF\x02\x01")
        && u16::from_le_bytes([header[18], header[19]]) == machine
}

/// Where the program is.
fn search(name: &str, env: &[String]) -> Result<String, (i32, String)> {
    let usable = |path: &str| {
        let found = rustix::fs::stat(path)?;
        if rustix::fs::FileType::from_raw_mode(found.st_mode).is_dir() {
            return Err(rustix::io::Errno::ISDIR);
        }
        rustix::fs::accessat(CWD, path, Access::EXEC_OK, AtFlags::EACCESS)
    };
    if name.is_empty() {
        return Err((127, "no program is given".to_owned()));
    }
    if name.contains('/') {
        return match usable(name) {
            Ok(()) => Ok(name.to_owned()),
            Err(error @ rustix::io::Errno::NOENT) => {
                Err((127, format!("stat {name}: {}", describe(&error.into()))))
            }
            Err(error) => Err((126, describe(&error.into()))),
        };
    }
    let mut denied = None;
    for folder in crate::env::get(env, "PATH").unwrap_or_default().split(':') {
        let folder = if folder.is_empty() { "." } else { folder };
        let path = format!("{folder}/{name}");
        match usable(&path) {
            Ok(()) => return Ok(path),
            Err(rustix::io::Errno::ACCESS) => denied = Some("permission denied".to_owned()),
            Err(_) => {}
        }
    }
    Err(match denied {
        Some(reason) => (126, reason),
        None => (127, "executable file not found in $PATH".to_owned()),
    })
}

/// The launcher blocks and ignores signals that a program expects to find as usual.
fn reset_signals() {
    // SAFETY: plain system calls; no handler of ours needs to survive.
    unsafe {
        for signal in 1..=64 {
            libc::signal(signal, libc::SIG_DFL);
        }
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigprocmask(libc::SIG_SETMASK, &set, std::ptr::null_mut());
    }
}

/// Starts the loopback interface of this thread's network.
pub fn loopback_up() -> io::Result<()> {
    use rustix::net::{AddressFamily, SocketType};
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None)?;
    // SAFETY: an all-zero request is valid; the call reads and writes only within it.
    unsafe {
        let mut request: libc::ifreq = std::mem::zeroed();
        for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
            *to = *from as libc::c_char;
        }
        request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as i16;
        if libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &request) < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}
