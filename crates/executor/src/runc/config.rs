//! The `config.json` of an OCI bundle with the meaning of our own sandbox.

use serde_json::{Value, json};

use crate::{
    ExecError, MountSource, Process, Resources, Security, Spec,
    native::plan::{self, EMULATOR, MASKED, READONLY, SHM_SIZE},
    seccomp,
    spec::CAPABILITIES,
    user::User,
};

/// Where what the configuration mentions lies, once the bundle is mounted.
pub struct Places {
    /// By index into [`Spec::mounts`]: the path to bind.
    pub mounts: Vec<String>,
    pub hosts: String,
    pub resolv_conf: String,
    pub cgroup: String,
    /// Control groups are v2 alone.
    pub unified: bool,
}

/// The whole configuration.
pub fn bundle(spec: &Spec, user: &User, places: &Places) -> Result<Value, ExecError> {
    let sandbox = spec.security == Security::Sandbox;
    let mut namespaces = vec!["ipc", "uts", "mount"];
    if !spec.no_process_sandbox {
        namespaces.push("pid");
    }
    if places.unified {
        namespaces.push("cgroup");
    }
    let namespaces: Vec<Value> = namespaces.iter().map(|kind| json!({ "type": kind })).collect();
    let visible = |path: &&&str| sandbox && !(spec.no_process_sandbox && path.starts_with("/proc"));
    let mut linux = json!({
        "namespaces": namespaces,
        "cgroupsPath": places.cgroup,
        "resources": resources(spec),
        "maskedPaths": MASKED.iter().filter(visible).collect::<Vec<_>>(),
        "readonlyPaths": READONLY.iter().filter(visible).collect::<Vec<_>>(),
        "devices": plan::devices(spec).iter().map(|device| json!({
            "path": device.path,
            "type": if device.block { "b" } else { "c" },
            "major": device.major,
            "minor": device.minor,
            "fileMode": device.mode,
            "uid": device.uid,
            "gid": device.gid,
        })).collect::<Vec<_>>(),
    });
    if sandbox && let Some(profile) = seccomp::oci_profile() {
        linux["seccomp"] = profile;
    }
    Ok(json!({
        "ociVersion": "1.0.2",
        "process": process(spec, &spec.process, user)?,
        "root": { "path": "rootfs", "readonly": spec.root.readonly },
        "hostname": plan::hostname(spec),
        "mounts": mounts(spec, places),
        "linux": linux,
    }))
}

/// A process, the first or a later one.
pub fn process(spec: &Spec, process: &Process, user: &User) -> Result<Value, ExecError> {
    if process.args.is_empty() {
        return Err(ExecError::Invalid("no program is given".to_owned()));
    }
    let mut args = process.args.clone();
    if spec.emulator.is_some() {
        args.insert(0, EMULATOR.to_owned());
    }
    let sandbox = spec.security == Security::Sandbox;
    let allowed = if sandbox {
        spec.capabilities.apply(crate::child::sandbox_capabilities(true))
    } else {
        own_capabilities()
    };
    let names: Vec<String> = (0..)
        .zip(CAPABILITIES)
        .filter(|(number, _)| allowed & (1 << number) != 0)
        .map(|(_, name)| format!("CAP_{name}"))
        .collect();
    let mut capabilities = json!({
        "bounding": names, "permitted": names, "effective": names,
    });
    if !sandbox {
        capabilities["inheritable"] = json!(names);
        capabilities["ambient"] = json!(names);
    }
    let mut rlimits = Vec::new();
    for limit in &process.rlimits {
        // Refuses unknown names.
        plan::rlimit(limit)?;
        let value = |value: i64| u64::try_from(value).unwrap_or(libc::RLIM_INFINITY);
        rlimits.push(json!({
            "type": format!("RLIMIT_{}", limit.name.to_uppercase()),
            "soft": value(limit.soft),
            "hard": value(limit.hard),
        }));
    }
    let mut result = json!({
        "terminal": process.terminal,
        "user": { "uid": user.uid, "gid": user.gid, "additionalGids": user.groups },
        "args": args,
        "env": crate::env::unique(&process.env),
        "cwd": base::path::absolute(&process.cwd),
        "capabilities": capabilities,
        "rlimits": rlimits,
        "noNewPrivileges": false,
    });
    if let Some(profile) = spec.apparmor_profile.as_ref().filter(|_| sandbox) {
        result["apparmorProfile"] = json!(profile);
    }
    if let Some(score) = spec.oom_score_adj {
        result["oomScoreAdj"] = json!(score);
    }
    Ok(result)
}

fn own_capabilities() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    line.and_then(|text| u64::from_str_radix(text.trim(), 16).ok()).unwrap_or(0)
}

fn mounts(spec: &Spec, places: &Places) -> Vec<Value> {
    let mount = |dest: &str, kind: &str, source: &str, options: &[&str]| json!({ "destination": dest, "type": kind, "source": source, "options": options });
    let ro = if spec.security == Security::Insecure { "rw" } else { "ro" };
    let size = format!("size={}", spec.shm_size.unwrap_or(SHM_SIZE));
    let bound_file = ["nosuid", "noexec", "nodev", "rbind", "ro"];
    let proc = if spec.no_process_sandbox {
        mount("/proc", "bind", "/proc", &["rbind", "nosuid", "noexec", "nodev"])
    } else {
        mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"])
    };
    let dev = ["nosuid", "strictatime", "mode=755", "size=65536k"];
    let pts = ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"];
    let shm = ["nosuid", "noexec", "nodev", "mode=1777", size.as_str()];
    let mut result = vec![
        proc,
        mount("/dev", "tmpfs", "tmpfs", &dev),
        mount("/dev/pts", "devpts", "devpts", &pts),
        mount("/dev/shm", "tmpfs", "shm", &shm),
        mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", ro]),
        mount("/etc/resolv.conf", "bind", &places.resolv_conf, &bound_file),
        mount("/etc/hosts", "bind", &places.hosts, &bound_file),
        mount("/sys/fs/cgroup", "cgroup", "cgroup", &[ro, "nosuid", "noexec", "nodev"]),
    ];
    let mut own: Vec<(String, Value)> = Vec::new();
    for (given, path) in spec.mounts.iter().zip(&places.mounts) {
        let dest = base::path::absolute(&given.dest);
        let mut options = vec![if given.readonly { "ro" } else { "rw" }.to_owned()];
        let flags = given.options;
        for (set, name) in
            [(flags.nosuid, "nosuid"), (flags.nodev, "nodev"), (flags.noexec, "noexec")]
        {
            if set {
                options.push(name.to_owned());
            }
        }
        let (kind, source) = match &given.source {
            MountSource::Tmpfs { size } => {
                options.push("nosuid".to_owned());
                options.extend(size.map(|size| format!("size={size}")));
                ("tmpfs", "tmpfs")
            }
            MountSource::File { mode, .. } => {
                options = ["rbind", "ro", "nosuid", "nodev"].map(str::to_owned).to_vec();
                if mode & 0o111 == 0 {
                    options.push("noexec".to_owned());
                }
                ("bind", path.as_str())
            }
            MountSource::Tree { .. } | MountSource::HostPath(_) => {
                options.push("rbind".to_owned());
                ("bind", path.as_str())
            }
        };
        let options: Vec<&str> = options.iter().map(String::as_str).collect();
        own.push((dest.clone(), mount(&dest, kind, source, &options)));
    }
    if let Some(path) = &spec.emulator {
        let value = mount(EMULATOR, "bind", &path.to_string_lossy(), &["rbind", "ro"]);
        own.push((EMULATOR.to_owned(), value));
    }
    own.sort_by(|left, right| left.0.cmp(&right.0));
    for (dest, value) in own {
        match result.iter_mut().find(|known| known["destination"] == dest.as_str()) {
            Some(known) => *known = value,
            None => result.push(value),
        }
    }
    result
}

fn resources(spec: &Spec) -> Value {
    let insecure = spec.security == Security::Insecure;
    let mut devices = vec![json!({ "allow": insecure, "access": "rwm" })];
    devices.extend(spec.devices.iter().map(|device| {
        let kind = if device.kind == crate::DeviceKind::Block { "b" } else { "c" };
        json!({
            "allow": true, "type": kind, "major": device.major, "minor": device.minor,
            "access": "rwm",
        })
    }));
    let Resources {
        memory,
        memory_swap,
        cpu_shares,
        cpu_quota,
        cpu_period,
        cpuset_cpus,
        cpuset_mems,
        pids,
    } = &spec.resources;
    let mut result = json!({ "devices": devices });
    let mut set = |group: &str, key: &str, value: Value| {
        let unset = value == json!(0) || value == json!("");
        if !unset {
            result[group][key] = value;
        }
    };
    set("memory", "limit", json!(memory));
    set("memory", "swap", json!(memory_swap));
    set("cpu", "shares", json!(cpu_shares));
    set("cpu", "quota", json!(cpu_quota));
    set("cpu", "period", json!(cpu_period));
    set("cpu", "cpus", json!(cpuset_cpus));
    set("cpu", "mems", json!(cpuset_mems));
    set("pids", "limit", json!(pids));
    result
}
