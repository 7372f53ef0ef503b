//! Control groups of v1, v2 and both at once.
//!
//! The launcher lives in a group of its own that forbids devices; containers without limits simply
//! inherit it, since joining a v1 group can wait 10 ms for the kernel. Only a container with limits
//! (or a named parent, or extra devices) gets groups of its own, a [`StepGroup`], removed when it
//! ends. Everything of one daemon is below one folder named after the launcher's process, so that
//! leftovers of a dead one can be told and removed.

use std::{
    fs, io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};

mod devices;
mod step;

pub use devices::Policy;
pub use step::{Request, StepGroup};

/// Folder in each hierarchy that holds ours.
const TOP: &str = "rbuild";
/// Hierarchies where a container with limits gets a group.
const ACCOUNTED: [&str; 4] = ["memory", "cpu", "cpuacct", "pids"];

/// The control groups of this machine.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Layout {
    /// v1 hierarchies.
    pub v1: Vec<Hierarchy>,
    /// Where v2 is mounted.
    pub v2: Option<PathBuf>,
    /// Folder of this launcher in each hierarchy, such as `rbuild/12-3456`.
    pub instance: String,
    /// How use of devices is restricted; with `None` trees are mounted `nodev` and `mknod` is lost.
    pub devices: Option<DeviceControl>,
}

/// A v1 hierarchy.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Hierarchy {
    /// Controllers attached to it.
    pub controllers: Vec<String>,
    /// Where it is mounted.
    pub path: PathBuf,
    /// The group of the daemon in it.
    pub own: String,
}

/// Which version restricts devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeviceControl {
    V1,
    V2,
}

impl Layout {
    /// Finds the hierarchies and makes the launcher's group. Whatever cannot be had is left out.
    pub fn prepare() -> Self {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let mut layout = Self::parse(&mounts, &own);
        let pid = std::process::id();
        layout.instance = format!("{TOP}/{pid}-{}", start_time(pid).unwrap_or(0));
        layout.clean_stale();
        layout.devices = if layout.hierarchy("devices").is_some() {
            layout.restrict_v1().map(|()| DeviceControl::V1).ok()
        } else {
            layout.restrict_v2().map(|()| DeviceControl::V2).ok()
        };
        layout
    }

    fn parse(mounts: &str, own: &str) -> Self {
        let mut layout = Self::default();
        for line in mounts.lines() {
            let Some((left, right)) = line.split_once(" - ") else { continue };
            let Some(path) = left.split(' ').nth(4) else { continue };
            let path = PathBuf::from(path.replace("\\040", " "));
            let mut right = right.split(' ');
            match (right.next(), right.nth(1)) {
                (Some("cgroup2"), _) => {
                    layout.v2.get_or_insert(path);
                }
                (Some("cgroup"), Some(options)) => {
                    let found = own.lines().find_map(|line| {
                        let mut parts = line.splitn(3, ':').skip(1);
                        let controllers: Vec<String> =
                            parts.next()?.split(',').map(str::to_owned).collect();
                        let first = controllers.first().filter(|name| !name.is_empty())?;
                        let all = options.split(',').any(|option| option == first);
                        all.then(|| (controllers, parts.next().unwrap_or("/").to_owned()))
                    });
                    if let Some((controllers, own)) = found
                        && !layout.v1.iter().any(|known| known.controllers == controllers)
                    {
                        layout.v1.push(Hierarchy { controllers, path, own });
                    }
                }
                _ => {}
            }
        }
        layout
    }

    /// The v1 hierarchy with a controller.
    pub fn hierarchy(&self, controller: &str) -> Option<&Hierarchy> {
        self.v1.iter().find(|hierarchy| hierarchy.controllers.iter().any(|name| name == controller))
    }

    /// Whether v2 has the controllers.
    fn unified(&self) -> Option<&Path> {
        self.v2.as_deref().filter(|_| self.hierarchy("memory").is_none())
    }

    /// Every folder of the launcher itself.
    pub fn launcher_folders(&self) -> Vec<PathBuf> {
        let paths = self.v1.iter().map(|hierarchy| &hierarchy.path).chain(&self.v2);
        paths.map(|path| path.join(&self.instance)).collect()
    }

    fn restrict_v1(&self) -> io::Result<()> {
        let hierarchy = self.hierarchy("devices").ok_or(io::ErrorKind::NotFound)?;
        let sandbox = hierarchy.path.join(&self.instance).join("sandbox");
        fs::create_dir_all(&sandbox)?;
        Policy::default().apply_v1(&sandbox)
    }

    fn restrict_v2(&self) -> io::Result<()> {
        let v2 = self.v2.as_ref().ok_or(io::ErrorKind::NotFound)?;
        let sandbox = v2.join(&self.instance).join("launcher");
        fs::create_dir_all(&sandbox)?;
        Policy::default().apply_v2(&sandbox)
    }

    /// Moves this process into the launcher's group.
    pub fn join(&mut self) {
        let joined = match self.devices {
            None => return,
            Some(DeviceControl::V1) => {
                self.hierarchy("devices").map(|found| (&found.path, "sandbox"))
            }
            Some(DeviceControl::V2) => self.v2.as_ref().map(|path| (path, "launcher")),
        }
        .map(|(path, name)| write(&path.join(&self.instance).join(name), "cgroup.procs", "0"));
        if !matches!(joined, Some(Ok(()))) {
            self.devices = None;
        }
    }

    /// Removes the groups of launchers that are dead.
    fn clean_stale(&self) {
        let paths = self.v1.iter().map(|hierarchy| &hierarchy.path).chain(&self.v2);
        for folder in paths.filter_map(|path| fs::read_dir(path.join(TOP)).ok()).flatten().flatten()
        {
            let name = folder.file_name();
            let dead = name.to_str().and_then(|name| name.split_once('-')).is_some_and(
                |(pid, started)| {
                    let now = pid.parse().ok().and_then(start_time);
                    now.is_none_or(|now| now.to_string() != started)
                },
            );
            if dead {
                remove_tree(&folder.path());
            }
        }
    }
}

/// When a process started, in clock ticks since boot.
fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

/// Removes a group and those below it, waiting a moment for processes that are just ending.
pub fn remove_tree(folder: &Path) {
    for child in fs::read_dir(folder).into_iter().flatten().flatten() {
        if child.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&child.path());
        }
    }
    for attempt in 0..50 {
        match fs::remove_dir(folder) {
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
                std::thread::sleep(Duration::from_millis(attempt));
            }
            _ => return,
        }
    }
}

/// Whether the kernel killed a process of a group with memory accounting for want of memory.
pub fn oom_killed(folder: &Path) -> Option<bool> {
    let count = read_key(folder, "memory.events", "oom_kill")
        .or_else(|| read_key(folder, "memory.oom_control", "oom_kill"));
    count.map(|count| count > 0)
}

pub(crate) fn write(folder: &Path, file: &str, value: &str) -> io::Result<()> {
    let path = folder.join(file);
    // Without truncation and creation, which these files refuse.
    let written = fs::OpenOptions::new()
        .write(true)
        .open(&path)
        .and_then(|mut file| io::Write::write_all(&mut file, value.as_bytes()));
    written.map_err(|error| base::fs::context(error, &format!("write `{value}` to"), &path))
}

fn read(folder: &Path, file: &str) -> Option<String> {
    fs::read_to_string(folder.join(file)).ok()
}

/// A number from a file of one number.
fn read_number(folder: &Path, file: &str) -> Option<u64> {
    read(folder, file)?.trim().parse().ok()
}

/// A number from a file of `key value` lines.
fn read_key(folder: &Path, file: &str, key: &str) -> Option<u64> {
    read(folder, file)?
        .lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

fn open_folder(path: &Path) -> io::Result<OwnedFd> {
    use rustix::fs::{Mode, OFlags};
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hybrid_machines_are_understood() {
        let mounts = "30 20 0:1 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
            31 30 0:2 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid - cgroup cgroup rw,cpu,cpuacct\n\
            32 30 0:3 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n\
            33 30 0:4 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        let own = "3:cpu,cpuacct:/a/b\n2:name=systemd:/init\n0::/\n";
        let layout = Layout::parse(mounts, own);
        assert_eq!(layout.v2.as_deref(), Some(Path::new("/sys/fs/cgroup/unified")));
        let cpu = layout.hierarchy("cpuacct").unwrap();
        assert_eq!(
            (cpu.path.to_str(), cpu.own.as_str()),
            (Some("/sys/fs/cgroup/cpu,cpuacct"), "/a/b")
        );
        assert!(layout.hierarchy("name=systemd").is_some() && layout.hierarchy("memory").is_none());
    }
}
