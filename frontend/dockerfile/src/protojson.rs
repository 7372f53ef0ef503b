//! Graph messages as JSON in protobuf's own mapping: lower-camel names, 64-bit integers as text,
//! enums by name, bytes as base64, zero values left out.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use llb::pb;
use serde_json::{Map, Value};

/// An object that leaves zero values out.
#[derive(Default)]
struct Object(Map<String, Value>);

impl Object {
    fn text(mut self, name: &str, value: &str) -> Self {
        if !value.is_empty() {
            self.0.insert(name.to_owned(), value.into());
        }
        self
    }

    /// A 64-bit integer, written as text.
    fn long(self, name: &str, value: i64) -> Self {
        match value {
            0 => self,
            value => self.text(name, &value.to_string()),
        }
    }

    fn int(mut self, name: &str, value: i64) -> Self {
        if value != 0 {
            self.0.insert(name.to_owned(), value.into());
        }
        self
    }

    fn bool(mut self, name: &str, value: bool) -> Self {
        if value {
            self.0.insert(name.to_owned(), true.into());
        }
        self
    }

    fn bytes(self, name: &str, value: &[u8]) -> Self {
        self.text(name, &STANDARD.encode(value))
    }

    fn texts(self, name: &str, values: &[String]) -> Self {
        self.list(name, values, |value| value.as_str().into())
    }

    fn list<T>(mut self, name: &str, values: &[T], show: impl Fn(&T) -> Value) -> Self {
        if !values.is_empty() {
            self.0.insert(name.to_owned(), values.iter().map(show).collect());
        }
        self
    }

    fn message<T>(mut self, name: &str, value: &Option<T>, show: impl Fn(&T) -> Value) -> Self {
        if let Some(value) = value {
            self.0.insert(name.to_owned(), show(value));
        }
        self
    }

    fn map<'a>(mut self, name: &str, pairs: impl Iterator<Item = (&'a String, Value)>) -> Self {
        let map: Map<String, Value> = pairs.map(|(key, value)| (key.clone(), value)).collect();
        if !map.is_empty() {
            self.0.insert(name.to_owned(), map.into());
        }
        self
    }

    fn done(self) -> Value {
        self.0.into()
    }
}

/// An op.
pub fn op(op: &pb::Op) -> Value {
    use pb::op::Op;
    let input = |input: &pb::Input| {
        Object::default().text("digest", &input.digest).long("index", input.index).done()
    };
    let object = Object::default().list("inputs", &op.inputs, input);
    let object = match &op.op {
        None => object,
        Some(Op::Exec(op)) => object.message("exec", &Some(op), |op| exec(op)),
        Some(Op::Source(op)) => object.message("source", &Some(op), |op| {
            let attrs = op.attrs.iter().map(|(key, value)| (key, value.as_str().into()));
            Object::default().text("identifier", &op.identifier).map("attrs", attrs).done()
        }),
        Some(Op::File(op)) => object.message("file", &Some(op), |op| {
            Object::default().list("actions", &op.actions, file_action).done()
        }),
        Some(Op::Build(op)) => object.message("build", &Some(op), |op| build(op)),
        Some(Op::Merge(op)) => object.message("merge", &Some(op), |op| {
            let input = |side: &pb::MergeInput| Object::default().long("input", side.input).done();
            Object::default().list("inputs", &op.inputs, input).done()
        }),
        Some(Op::Diff(op)) => object.message("diff", &Some(op), |op| {
            let lower =
                |side: &pb::LowerDiffInput| Object::default().long("input", side.input).done();
            let upper =
                |side: &pb::UpperDiffInput| Object::default().long("input", side.input).done();
            Object::default()
                .message("lower", &op.lower, lower)
                .message("upper", &op.upper, upper)
                .done()
        }),
        Some(Op::Passthrough(op)) => object.message("passthrough", &Some(op), |op| {
            let output = |output: &i64| output.to_string().into();
            Object::default().text("id", &op.id).list("outputs", &op.outputs, output).done()
        }),
    };
    let constraints = |constraints: &pb::WorkerConstraints| {
        Object::default().texts("filter", &constraints.filter).done()
    };
    object
        .message("platform", &op.platform, platform)
        .message("constraints", &op.constraints, constraints)
        .done()
}

/// Where ops come from.
pub fn source(source: &pb::Source) -> Value {
    let locations = source.locations.iter().map(|(digest, list)| {
        (digest, Object::default().list("locations", &list.locations, location).done())
    });
    let info = |info: &pb::SourceInfo| {
        Object::default()
            .text("filename", &info.filename)
            .bytes("data", &info.data)
            .message("definition", &info.definition, definition)
            .text("language", &info.language)
            .done()
    };
    Object::default().map("locations", locations).list("infos", &source.infos, info).done()
}

fn location(location: &pb::Location) -> Value {
    let position = |at: &pb::Position| {
        let (line, character) = (i64::from(at.line), i64::from(at.character));
        Object::default().int("line", line).int("character", character).done()
    };
    let range = |range: &pb::Range| {
        Object::default()
            .message("start", &range.start, position)
            .message("end", &range.end, position)
            .done()
    };
    Object::default()
        .int("sourceIndex", i64::from(location.source_index))
        .list("ranges", &location.ranges, range)
        .done()
}

fn definition(definition: &pb::Definition) -> Value {
    let metadata = definition.metadata.iter().map(|(digest, entry)| (digest, metadata(entry)));
    Object::default()
        .list("def", &definition.def, |bytes| STANDARD.encode(bytes).into())
        .map("metadata", metadata)
        .message("Source", &definition.source, source)
        .done()
}

fn metadata(metadata: &pb::OpMetadata) -> Value {
    let description = metadata.description.iter().map(|(key, value)| (key, value.as_str().into()));
    let caps = metadata.caps.iter().map(|(key, value)| (key, (*value).into()));
    let export = |export: &pb::ExportCache| Object::default().bool("Value", export.value).done();
    let group = |group: &pb::ProgressGroup| {
        Object::default()
            .text("id", &group.id)
            .text("name", &group.name)
            .bool("weak", group.weak)
            .done()
    };
    Object::default()
        .bool("ignoreCache", metadata.ignore_cache)
        .map("description", description)
        .message("exportCache", &metadata.export_cache, export)
        .map("caps", caps)
        .message("progressGroup", &metadata.progress_group, group)
        .message("linuxResources", &metadata.linux_resources, resources)
        .done()
}

fn resources(limits: &pb::LinuxResources) -> Value {
    let unsigned = |value: u64| if value == 0 { String::new() } else { value.to_string() };
    Object::default()
        .long("memory", limits.memory)
        .long("memorySwap", limits.memory_swap)
        .text("cpuShares", &unsigned(limits.cpu_shares))
        .text("cpuPeriod", &unsigned(limits.cpu_period))
        .long("cpuQuota", limits.cpu_quota)
        .text("cpusetCpus", &limits.cpuset_cpus)
        .text("cpusetMems", &limits.cpuset_mems)
        .done()
}

fn platform(platform: &pb::Platform) -> Value {
    Object::default()
        .text("Architecture", &platform.architecture)
        .text("OS", &platform.os)
        .text("Variant", &platform.variant)
        .text("OSVersion", &platform.os_version)
        .texts("OSFeatures", &platform.os_features)
        .done()
}

fn build(op: &pb::BuildOp) -> Value {
    let inputs = op
        .inputs
        .iter()
        .map(|(name, input)| (name, Object::default().long("input", input.input).done()));
    let attrs = op.attrs.iter().map(|(key, value)| (key, value.as_str().into()));
    Object::default()
        .long("builder", op.builder)
        .map("inputs", inputs)
        .message("def", &op.def, definition)
        .map("attrs", attrs)
        .done()
}

fn exec(op: &pb::ExecOp) -> Value {
    let name = |name: &'static str, default: &str| if name == default { "" } else { name };
    let secret_env = |env: &pb::SecretEnv| {
        Object::default()
            .text("ID", &env.id)
            .text("name", &env.name)
            .bool("optional", env.optional)
            .done()
    };
    let device = |device: &pb::CdiDevice| {
        Object::default().text("name", &device.name).bool("optional", device.optional).done()
    };
    Object::default()
        .message("meta", &op.meta, meta)
        .list("mounts", &op.mounts, mount)
        .text("network", name(op.network().as_str_name(), "UNSET"))
        .text("security", name(op.security().as_str_name(), "SANDBOX"))
        .list("secretenv", &op.secretenv, secret_env)
        .list("cdiDevices", &op.cdi_devices, device)
        .done()
}

fn meta(meta: &pb::Meta) -> Value {
    let proxy = |proxy: &pb::ProxyEnv| {
        Object::default()
            .text("httpProxy", &proxy.http_proxy)
            .text("httpsProxy", &proxy.https_proxy)
            .text("ftpProxy", &proxy.ftp_proxy)
            .text("noProxy", &proxy.no_proxy)
            .text("allProxy", &proxy.all_proxy)
            .done()
    };
    let host =
        |host: &pb::HostIp| Object::default().text("Host", &host.host).text("IP", &host.ip).done();
    let limit = |limit: &pb::Ulimit| {
        Object::default()
            .text("Name", &limit.name)
            .long("Soft", limit.soft)
            .long("Hard", limit.hard)
            .done()
    };
    Object::default()
        .texts("args", &meta.args)
        .texts("env", &meta.env)
        .text("cwd", &meta.cwd)
        .text("user", &meta.user)
        .message("proxyEnv", &meta.proxy_env, proxy)
        .list("extraHosts", &meta.extra_hosts, host)
        .text("hostname", &meta.hostname)
        .list("ulimit", &meta.ulimit, limit)
        .text("cgroupParent", &meta.cgroup_parent)
        .bool("removeMountStubsRecursive", meta.remove_mount_stubs_recursive)
        .list("validExitCodes", &meta.valid_exit_codes, |code| (*code).into())
        .done()
}

fn mount(mount: &pb::Mount) -> Value {
    let name = |name: &'static str, default: &str| if name == default { "" } else { name };
    let tmpfs = |options: &pb::TmpfsOpt| Object::default().long("size", options.size).done();
    let cache = |options: &pb::CacheOpt| {
        Object::default()
            .text("ID", &options.id)
            .text("sharing", name(options.sharing().as_str_name(), "SHARED"))
            .done()
    };
    let file = |id: &str, uid: u32, gid: u32, mode: u32, optional: bool| {
        Object::default()
            .text("ID", id)
            .int("uid", uid.into())
            .int("gid", gid.into())
            .int("mode", mode.into())
            .bool("optional", optional)
            .done()
    };
    Object::default()
        .long("input", mount.input)
        .text("selector", &mount.selector)
        .text("dest", &mount.dest)
        .long("output", mount.output)
        .bool("readonly", mount.readonly)
        .text("mountType", name(mount.mount_type().as_str_name(), "BIND"))
        .message("TmpfsOpt", &mount.tmpfs_opt, tmpfs)
        .message("cacheOpt", &mount.cache_opt, cache)
        .message("secretOpt", &mount.secret_opt, |o| file(&o.id, o.uid, o.gid, o.mode, o.optional))
        .message("SSHOpt", &mount.ssh_opt, |o| file(&o.id, o.uid, o.gid, o.mode, o.optional))
        .text("resultID", &mount.result_id)
        .text("contentCache", name(mount.content_cache().as_str_name(), "DEFAULT"))
        .done()
}

fn file_action(action: &pb::FileAction) -> Value {
    use pb::file_action::Action;
    let object = Object::default()
        .long("input", action.input)
        .long("secondaryInput", action.secondary_input)
        .long("output", action.output);
    let object = match &action.action {
        None => object,
        Some(Action::Copy(action)) => object.message("copy", &Some(action), |a| copy(a)),
        Some(Action::Mkfile(action)) => object.message("mkfile", &Some(action), |a| {
            Object::default()
                .text("path", &a.path)
                .int("mode", a.mode.into())
                .bytes("data", &a.data)
                .message("owner", &a.owner, owner)
                .long("timestamp", a.timestamp)
                .done()
        }),
        Some(Action::Mkdir(action)) => object.message("mkdir", &Some(action), |a| {
            Object::default()
                .text("path", &a.path)
                .int("mode", a.mode.into())
                .bool("makeParents", a.make_parents)
                .message("owner", &a.owner, owner)
                .long("timestamp", a.timestamp)
                .done()
        }),
        Some(Action::Rm(action)) => object.message("rm", &Some(action), |a| {
            Object::default()
                .text("path", &a.path)
                .bool("allowNotFound", a.allow_not_found)
                .bool("allowWildcard", a.allow_wildcard)
                .done()
        }),
        Some(Action::Symlink(action)) => object.message("symlink", &Some(action), |a| {
            Object::default()
                .text("oldpath", &a.oldpath)
                .text("newpath", &a.newpath)
                .message("owner", &a.owner, owner)
                .long("timestamp", a.timestamp)
                .done()
        }),
    };
    object.done()
}

fn copy(action: &pb::FileActionCopy) -> Value {
    Object::default()
        .text("src", &action.src)
        .text("dest", &action.dest)
        .message("owner", &action.owner, owner)
        .int("mode", action.mode.into())
        .bool("followSymlink", action.follow_symlink)
        .bool("dirCopyContents", action.dir_copy_contents)
        .bool("attemptUnpackDockerCompatibility", action.attempt_unpack_docker_compatibility)
        .bool("createDestPath", action.create_dest_path)
        .bool("allowWildcard", action.allow_wildcard)
        .bool("allowEmptyWildcard", action.allow_empty_wildcard)
        .long("timestamp", action.timestamp)
        .texts("includePatterns", &action.include_patterns)
        .texts("excludePatterns", &action.exclude_patterns)
        .bool("alwaysReplaceExistingDestPaths", action.always_replace_existing_dest_paths)
        .text("modeStr", &action.mode_str)
        .texts("requiredPaths", &action.required_paths)
        .done()
}

fn owner(owner: &pb::ChownOpt) -> Value {
    let user = |user: &pb::UserOpt| match &user.user {
        None => Object::default().done(),
        Some(pb::user_opt::User::ByName(named)) => {
            let named =
                Object::default().text("name", &named.name).long("input", named.input).done();
            Object::default().message("byName", &Some(named), Value::clone).done()
        }
        // A member of a choice is written even if it is zero.
        Some(pb::user_opt::User::ById(id)) => {
            Object::default().message("byID", &Some(*id), |id| (*id).into()).done()
        }
    };
    Object::default().message("user", &owner.user, user).message("group", &owner.group, user).done()
}
