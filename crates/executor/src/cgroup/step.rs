//! The control groups of one container: made before it, read and removed after it.

use std::{
    fs, io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    time::Duration,
};

use super::{
    ACCOUNTED, DeviceControl, Layout, Policy, open_folder, read, read_key, read_number,
    remove_tree, write,
};
use crate::{Resources, Usage};

/// Stands for a v2 group without controllers.
const FREEZER: &str = "cgroup.freeze";

/// What a container wants of control groups.
#[derive(Debug)]
pub struct Request<'a> {
    pub id: &'a str,
    /// As in LLB; empty for the launcher's folder.
    pub parent: &'a str,
    pub resources: &'a Resources,
    pub policy: Policy,
    /// Make groups even if nothing asks for them.
    pub always: bool,
    /// A v2 group is wanted, if one can be had, in which everything can be frozen.
    pub freezable: bool,
}

/// Groups of one container. Dropping it removes them; the container must have ended.
#[derive(Debug, Default)]
pub struct StepGroup {
    /// By controller; the empty name is v2.
    folders: Vec<(String, PathBuf)>,
    /// The v2 group to be cloned into.
    pub into: Option<OwnedFd>,
    /// Files of v1 groups to be joined.
    pub join: Vec<OwnedFd>,
}

impl Request<'_> {
    /// The folder of the container in a hierarchy, relative to where that is mounted.
    fn folder(&self, layout: &Layout) -> PathBuf {
        let id = self.id;
        let path = match self.parent {
            "" => format!("{}/{id}", layout.instance),
            slice if slice.contains(".slice") && slice.ends_with(':') => format!("{slice}{id}"),
            parent => format!("{parent}/buildkit/{id}"),
        };
        PathBuf::from(base::path::absolute(&path).trim_start_matches('/'))
    }

    fn limits(&self) -> bool {
        self.always || !self.parent.is_empty() || *self.resources != Resources::default()
    }
}

impl StepGroup {
    /// Makes the groups asked for, possibly none. `announce` learns of each folder before it is
    /// made.
    pub fn create(
        layout: &Layout,
        request: &Request<'_>,
        mut announce: impl FnMut(&Path),
    ) -> io::Result<Self> {
        let mut group = Self::default();
        let folder = request.folder(layout);
        let made = group.fill(layout, request, &folder, &mut announce);
        if let Err(error) = made {
            group.remove();
            return Err(error);
        }
        if let Some(v2) = layout.v2.as_ref().filter(|_| request.freezable && group.into.is_none()) {
            // Where it cannot be had, the container is killed instead of frozen.
            _ = group.make_v2(FREEZER, v2.join(&folder), layout, request, &mut announce);
        }
        Ok(group)
    }

    /// A v2 group, with its devices if they are governed there. It is gone again after an error.
    fn make_v2(
        &mut self,
        name: &str,
        path: PathBuf,
        layout: &Layout,
        request: &Request<'_>,
        announce: &mut impl FnMut(&Path),
    ) -> io::Result<()> {
        announce(&path);
        fs::create_dir_all(&path)?;
        let devices = match layout.devices {
            Some(DeviceControl::V2) => request.policy.apply_v2(&path),
            _ => Ok(()),
        };
        match devices.and_then(|()| open_folder(&path)) {
            Ok(into) => self.into = Some(into),
            Err(error) => {
                remove_tree(&path);
                return Err(error);
            }
        }
        self.folders.push((name.to_owned(), path));
        Ok(())
    }

    /// The group in which everything can be frozen, if there is one.
    pub fn freezer(&self) -> Option<&Path> {
        self.find("").or_else(|| self.find(FREEZER))
    }

    fn fill(
        &mut self,
        layout: &Layout,
        request: &Request<'_>,
        folder: &Path,
        announce: &mut impl FnMut(&Path),
    ) -> io::Result<()> {
        let own_devices = request.policy.all || !request.policy.devices.is_empty();
        if own_devices && layout.devices == Some(DeviceControl::V1) {
            let path = layout.hierarchy("devices").map(|found| found.path.clone());
            let path = path.ok_or(io::ErrorKind::NotFound)?;
            // A group cannot allow more than its parent, so it is not below a foreign one.
            let folder = path.join(&layout.instance).join(request.id);
            self.make_v1("devices", folder, announce)?;
            if let Some((_, folder)) = self.folders.last() {
                request.policy.apply_v1(folder)?;
            }
        }
        let devices_v2 = own_devices && layout.devices == Some(DeviceControl::V2);
        if let Some(v2) = layout
            .unified()
            .filter(|_| request.limits())
            .or_else(|| layout.v2.as_deref().filter(|_| devices_v2))
        {
            let path = v2.join(folder);
            enable_controllers(v2, folder)?;
            self.make_v2("", path.clone(), layout, request, announce)?;
            return apply_v2(&path, request.resources);
        }
        if request.policy.all {
            self.add_all_v1(layout, folder, announce);
        }
        if !request.limits() {
            return Ok(());
        }
        if layout.hierarchy("memory").is_none() {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "limits need control groups, which this machine does not offer",
            ));
        }
        let resources = request.resources;
        let cpuset = !resources.cpuset_cpus.is_empty() || !resources.cpuset_mems.is_empty();
        for name in ACCOUNTED.into_iter().chain(cpuset.then_some("cpuset")) {
            let Some(hierarchy) = layout.hierarchy(name) else { continue };
            let path = hierarchy.path.join(folder);
            if self.folders.iter().any(|(_, known)| *known == path) {
                continue;
            }
            if name == "cpuset" {
                announce(&path);
                fill_cpuset(&hierarchy.path, folder)?;
            }
            self.make_v1(name, path, announce)?;
        }
        for (name, folder) in &self.folders {
            apply_v1(name, folder, layout, resources)?;
        }
        Ok(())
    }

    /// A group in each v1 hierarchy: an insecure container may make groups of its own there. What
    /// cannot be had is not shown to it.
    fn add_all_v1(&mut self, layout: &Layout, folder: &Path, announce: &mut impl FnMut(&Path)) {
        for hierarchy in &layout.v1 {
            let Some(name) = hierarchy.controllers.first() else { continue };
            if self.find(name).is_some() {
                continue;
            }
            let path = hierarchy.path.join(folder);
            if name == "cpuset" {
                announce(&path);
                if fill_cpuset(&hierarchy.path, folder).is_err() {
                    continue;
                }
            }
            if let Err(error) = self.make_v1(name, path, announce) {
                tracing::debug!(controller = name, %error, "no control group to show");
            }
        }
    }

    fn make_v1(
        &mut self,
        name: &str,
        path: PathBuf,
        announce: &mut impl FnMut(&Path),
    ) -> io::Result<()> {
        announce(&path);
        fs::create_dir_all(&path).map_err(|error| base::fs::context(error, "make", &path))?;
        self.folders.push((name.to_owned(), path.clone()));
        let procs = fs::OpenOptions::new().write(true).open(path.join("cgroup.procs"))?;
        self.join.push(procs.into());
        Ok(())
    }

    /// Whether there is a group at all.
    pub fn is_empty(&self) -> bool {
        self.folders.is_empty()
    }

    /// Every folder, by controller (v2: empty name).
    pub fn folders(&self) -> &[(String, PathBuf)] {
        &self.folders
    }

    /// Descriptors for a second process to join.
    pub fn clone_join(&self) -> io::Result<(Option<OwnedFd>, Vec<OwnedFd>)> {
        let into = self.into.as_ref().map(OwnedFd::try_clone).transpose()?;
        let join = self.join.iter().map(OwnedFd::try_clone).collect::<io::Result<_>>()?;
        Ok((into, join))
    }

    /// Kills what is still in the groups.
    pub fn kill(&self) {
        let Some((_, folder)) = self.folders.first() else { return };
        for _ in 0..100 {
            let text = read(folder, "cgroup.procs").unwrap_or_default();
            let mut found = false;
            for pid in text.lines().filter_map(|line| line.parse::<i32>().ok()) {
                found = true;
                // SAFETY: plain system call.
                unsafe { libc::kill(pid, libc::SIGKILL) };
            }
            if !found {
                return;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn find(&self, name: &str) -> Option<&Path> {
        self.folders.iter().find(|(known, _)| known == name).map(|(_, path)| path.as_path())
    }

    /// Whether the kernel killed a process for want of memory; `None` where it was not counted.
    pub fn oom_killed(&self) -> Option<bool> {
        self.find("").or_else(|| self.find("memory")).and_then(super::oom_killed)
    }

    /// Puts what the groups counted in place of what is known of the process alone.
    pub fn account(&self, usage: &mut Usage) {
        let micros = |value: Option<u64>| value.map(Duration::from_micros);
        let nanos = |value: Option<u64>| value.map(Duration::from_nanos);
        let (user, system, memory) = match (self.find(""), self.find("memory")) {
            (Some(v2), _) => (
                micros(read_key(v2, "cpu.stat", "user_usec")),
                micros(read_key(v2, "cpu.stat", "system_usec")),
                read_number(v2, "memory.peak"),
            ),
            (None, memory) => {
                let cpu = self.find("cpuacct");
                (
                    nanos(cpu.and_then(|folder| read_number(folder, "cpuacct.usage_user"))),
                    nanos(cpu.and_then(|folder| read_number(folder, "cpuacct.usage_sys"))),
                    memory.and_then(|folder| read_number(folder, "memory.max_usage_in_bytes")),
                )
            }
        };
        if let (Some(user), Some(system)) = (user, system) {
            // The counter of a short life can lag behind what the process itself was charged.
            usage.cpu_user = usage.cpu_user.max(user);
            usage.cpu_system = usage.cpu_system.max(system);
        }
        usage.memory_peak = memory.unwrap_or(usage.memory_peak);
        if let Some(io) = self.find("").and_then(|v2| read(v2, "io.stat")) {
            let sum = |key: &str| {
                io.split_whitespace()
                    .filter_map(|word| word.strip_prefix(key)?.parse::<u64>().ok())
                    .sum()
            };
            (usage.io_read, usage.io_write) = (sum("rbytes="), sum("wbytes="));
        }
    }

    /// Removes the folders; their processes have ended.
    pub fn remove(&mut self) {
        for (_, folder) in self.folders.drain(..) {
            remove_tree(&folder);
        }
    }
}

impl Drop for StepGroup {
    fn drop(&mut self) {
        self.remove();
    }
}

/// Hands the controllers down to the parent of `folder`.
fn enable_controllers(v2: &Path, folder: &Path) -> io::Result<()> {
    let available = read(v2, "cgroup.controllers").unwrap_or_default();
    let wanted: Vec<String> = ["cpu", "cpuset", "io", "memory", "pids"]
        .into_iter()
        .filter(|name| available.split_whitespace().any(|known| known == *name))
        .map(|name| format!("+{name}"))
        .collect();
    let mut path = v2.to_owned();
    let parents = folder.parent().into_iter().flat_map(Path::components);
    for part in std::iter::once(None).chain(parents.map(Some)) {
        if let Some(part) = part {
            path.push(part);
            fs::create_dir_all(&path)?;
        }
        if !wanted.is_empty() {
            write(&path, "cgroup.subtree_control", &wanted.join(" "))?;
        }
    }
    Ok(())
}

/// A new v1 cpuset has no CPUs until told; copies them from the top down.
fn fill_cpuset(top: &Path, folder: &Path) -> io::Result<()> {
    let mut path = top.to_owned();
    let mut known: Vec<String> = Vec::new();
    for file in ["cpuset.cpus", "cpuset.mems"] {
        known.push(read(top, file).unwrap_or_default().trim().to_owned());
    }
    for part in folder.components() {
        path.push(part);
        fs::create_dir_all(&path)?;
        for (file, known) in ["cpuset.cpus", "cpuset.mems"].into_iter().zip(&mut known) {
            match read(&path, file).map(|text| text.trim().to_owned()) {
                Some(text) if !text.is_empty() => *known = text,
                _ => write(&path, file, known)?,
            }
        }
    }
    Ok(())
}

fn apply_v1(name: &str, folder: &Path, layout: &Layout, limits: &Resources) -> io::Result<()> {
    let has = |controller: &str| {
        let hierarchy = layout.hierarchy(name);
        hierarchy.is_some_and(|found| found.controllers.iter().any(|known| known == controller))
    };
    if has("memory") {
        if limits.memory != 0 {
            write(folder, "memory.limit_in_bytes", &limits.memory.to_string())?;
        }
        if limits.memory_swap != 0 {
            write(folder, "memory.memsw.limit_in_bytes", &limits.memory_swap.to_string())?;
        }
    }
    if has("cpu") {
        for (file, value) in [
            ("cpu.shares", limits.cpu_shares as i64),
            ("cpu.cfs_period_us", limits.cpu_period as i64),
            ("cpu.cfs_quota_us", limits.cpu_quota),
        ] {
            if value != 0 {
                write(folder, file, &value.to_string())?;
            }
        }
    }
    if has("cpuset") {
        for (file, value) in
            [("cpuset.cpus", &limits.cpuset_cpus), ("cpuset.mems", &limits.cpuset_mems)]
        {
            if !value.is_empty() {
                write(folder, file, value)?;
            }
        }
    }
    if has("pids") && limits.pids > 0 {
        write(folder, "pids.max", &limits.pids.to_string())?;
    }
    Ok(())
}

fn apply_v2(folder: &Path, limits: &Resources) -> io::Result<()> {
    let or_max = |value: i64| if value < 0 { "max".to_owned() } else { value.to_string() };
    if limits.memory != 0 {
        write(folder, "memory.max", &or_max(limits.memory))?;
    }
    if limits.memory_swap != 0 {
        // v1 counts memory and swap together, v2 apart.
        let swap = match limits.memory_swap {
            ..0 => -1,
            both => (both - limits.memory.max(0)).max(0),
        };
        write(folder, "memory.swap.max", &or_max(swap))?;
    }
    if limits.cpu_shares != 0 {
        let shares = limits.cpu_shares.clamp(2, 262_144);
        write(folder, "cpu.weight", &(1 + (shares - 2) * 9999 / 262_142).to_string())?;
    }
    if limits.cpu_quota != 0 || limits.cpu_period != 0 {
        let period = if limits.cpu_period == 0 { 100_000 } else { limits.cpu_period };
        let quota = if limits.cpu_quota > 0 { limits.cpu_quota } else { -1 };
        write(folder, "cpu.max", &format!("{} {period}", or_max(quota)))?;
    }
    for (file, value) in
        [("cpuset.cpus", &limits.cpuset_cpus), ("cpuset.mems", &limits.cpuset_mems)]
    {
        if !value.is_empty() {
            write(folder, file, value)?;
        }
    }
    if limits.pids > 0 {
        write(folder, "pids.max", &limits.pids.to_string())?;
    }
    Ok(())
}
