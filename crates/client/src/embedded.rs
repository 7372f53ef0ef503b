//! A daemon of one's own, started when none runs.
//!
//! One daemon per user listens on a socket in a private folder and ends by itself after idling. A
//! file lock is held from the look at the socket until the daemon answers, so that two clients that
//! start at the same time share one daemon.

use std::{
    fs::{self, DirBuilder, File},
    io::{Read as _, Seek as _, SeekFrom},
    os::unix::{
        fs::{DirBuilderExt as _, MetadataExt as _},
        process::CommandExt as _,
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use rustix::{
    fs::{FlockOperation, flock},
    process::geteuid,
};

use crate::{
    address::Address,
    connect::{Client, ConnectOptions},
    error::ClientError,
};

/// The daemon ends after this long without a call.
const IDLE_TIMEOUT: &str = "10m";
/// A daemon that does not answer by then is given up.
const READY_WITHIN: Duration = Duration::from_secs(20);

/// Connects to this user's own daemon, starting it if need be; `announce` gets one line when so.
pub async fn connect(announce: impl FnOnce(&str)) -> Result<Client, ClientError> {
    let folder = private_folder()?;
    let socket = folder.join("rbuildd.sock");
    let options = ConnectOptions::new(Address::Unix(socket.clone()));
    if let Ok(client) = Client::connect(&options).await {
        return Ok(client);
    }
    let lock = lock(&folder).await?;
    // Whoever held the lock before may have started it.
    if let Ok(client) = Client::connect(&options).await {
        return Ok(client);
    }
    let program = find_daemon()?;
    announce(&format!(
        "no daemon is running: starting {} for this user (ends after {IDLE_TIMEOUT} of idling)",
        program.display()
    ));
    let client = start(&program, &folder, &socket, &options).await?;
    drop(lock);
    Ok(client)
}

async fn start(
    program: &Path,
    folder: &Path,
    socket: &Path,
    options: &ConnectOptions,
) -> Result<Client, ClientError> {
    let log_path = folder.join("rbuildd.log");
    let doing = format!("opening {}", log_path.display());
    let log = File::options().create(true).append(true).read(true).open(&log_path);
    let mut log = log.map_err(ClientError::io(doing))?;
    let began_at = log.seek(SeekFrom::End(0)).unwrap_or(0);
    let output = || log.try_clone().map_err(ClientError::io("sharing the daemon's log"));
    let mut child = Command::new(program)
        .arg("--addr")
        .arg(format!("unix://{}", socket.display()))
        .arg("--root")
        .arg(data_folder())
        .arg("--idle-timeout")
        .arg(IDLE_TIMEOUT)
        .stdin(Stdio::null())
        .stdout(output()?)
        .stderr(output()?)
        .current_dir("/")
        // Interrupting this client must not end the daemon.
        .process_group(0)
        .spawn()
        .map_err(|error| ClientError::Embedded(format!("{}: {error}", program.display())))?;
    let began = Instant::now();
    loop {
        if let Ok(client) = Client::connect(options).await {
            return Ok(client);
        }
        let ended = child.try_wait().ok().flatten();
        if ended.is_none() && began.elapsed() < READY_WITHIN {
            tokio::time::sleep(Duration::from_millis(5)).await;
            continue;
        }
        let what = match ended {
            Some(status) => format!("{} ended with {status}", program.display()),
            None => format!("{} did not answer within {READY_WITHIN:?}", program.display()),
        };
        return Err(ClientError::Embedded(what + &last_words(&mut log, began_at)));
    }
}

/// What the daemon wrote before it failed.
fn last_words(log: &mut File, from: u64) -> String {
    let mut text = String::new();
    if log.seek(SeekFrom::Start(from)).is_err() || log.read_to_string(&mut text).is_err() {
        return String::new();
    }
    let lines: Vec<&str> = text.lines().collect();
    let tail = &lines[lines.len().saturating_sub(10)..];
    if tail.is_empty() { String::new() } else { format!("\n{}", tail.join("\n")) }
}

/// The folder for the socket, made for this user alone.
fn private_folder() -> Result<PathBuf, ClientError> {
    let user = geteuid();
    let folder = match std::env::var_os("XDG_RUNTIME_DIR").filter(|path| !path.is_empty()) {
        Some(runtime) => PathBuf::from(runtime).join("rbuild"),
        None if user.is_root() => PathBuf::from(format!("/run/rbuild-{}", user.as_raw())),
        None => std::env::temp_dir().join(format!("rbuild-{}", user.as_raw())),
    };
    let doing = format!("creating {}", folder.display());
    match DirBuilder::new().mode(0o700).create(&folder) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
            return Err(ClientError::io(doing)(error));
        }
        _ => {}
    }
    // Anybody may have made it first below a shared folder.
    let found = fs::symlink_metadata(&folder).map_err(ClientError::io(doing))?;
    if !found.is_dir() || found.uid() != user.as_raw() || found.mode() & 0o077 != 0 {
        let why = format!("{} is not a private folder of this user", folder.display());
        return Err(ClientError::Embedded(why));
    }
    Ok(folder)
}

/// Where the private daemon keeps its state.
fn data_folder() -> PathBuf {
    if geteuid().is_root() {
        return "/var/lib/rbuild".into();
    }
    let data = std::env::var_os("XDG_DATA_HOME").filter(|path| !path.is_empty()).map(PathBuf::from);
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".local/share"));
    data.or_else(home).unwrap_or_else(std::env::temp_dir).join("rbuild")
}

/// Waits for the lock without blocking a runtime thread.
async fn lock(folder: &Path) -> Result<File, ClientError> {
    let path = folder.join("start.lock");
    let open = File::options().create(true).truncate(false).write(true).open(&path);
    let file = open.map_err(ClientError::io(format!("opening {}", path.display())))?;
    tokio::task::spawn_blocking(move || flock(&file, FlockOperation::LockExclusive).map(|()| file))
        .await
        .expect("locking does not panic")
        .map_err(|error| ClientError::io(format!("locking {}", path.display()))(error.into()))
}

/// `rbuildd` beside the running program, else on the search path.
fn find_daemon() -> Result<PathBuf, ClientError> {
    let beside = std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.join("rbuildd")));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path).map(|folder| folder.join("rbuildd"));
    beside.into_iter().chain(on_path).find(|path| path.is_file()).ok_or_else(|| {
        ClientError::Embedded(
            "rbuildd was not found beside rbuildctl or on PATH; name a daemon with --addr".into(),
        )
    })
}
