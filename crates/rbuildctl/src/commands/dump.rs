//! `debug dump-llb`: a build graph as JSON lines, or for graphviz.
//!
//! The JSON has the field names and order of the Go client's structures, so that scripts written
//! for buildctl's output read this one; fields that are zero are left away.

use std::{io::Read as _, path::PathBuf};

use anyhow::Context as _;
use base64::{Engine as _, prelude::BASE64_STANDARD as BASE64};
use clap::Args;
use llb::pb::{self, file_action::Action, op::Op};
use serde_json::{Map, Value, json};

/// Print a build graph, one operation a line
#[derive(Args, Debug)]
pub struct DumpLlbArgs {
    /// File with the graph; `-` or nothing is standard input
    file: Option<PathBuf>,
    /// Print for graphviz
    #[arg(long)]
    dot: bool,
}

impl DumpLlbArgs {
    /// Prints the graph.
    pub fn run(&self) -> anyhow::Result<()> {
        let mut bytes = Vec::new();
        match self.file.as_deref().filter(|path| *path != std::path::Path::new("-")) {
            Some(path) => {
                bytes =
                    std::fs::read(path).with_context(|| format!("reading {}", path.display()))?;
            }
            None => {
                std::io::stdin().read_to_end(&mut bytes).context("reading standard input")?;
            }
        }
        let definition: pb::Definition =
            prost::Message::decode(bytes.as_slice()).context("failed to parse the graph")?;
        let mut ops = Vec::new();
        for bytes in &definition.def {
            let op: pb::Op = prost::Message::decode(bytes.clone()).context("failed to parse op")?;
            ops.push((base::Digest::of(bytes).to_string(), op));
        }
        if self.dot {
            print!("{}", dot(&ops));
            return Ok(());
        }
        for (digest, op) in &ops {
            let notes = definition.metadata.get(digest).map_or(json!({}), metadata);
            let line = json!({"Op": body(op), "Digest": digest, "OpMetadata": notes});
            println!("{}", base::gojson::to_string(&line));
        }
        Ok(())
    }
}

/// An object of the fields that are not zero, empty or absent.
fn object<const N: usize>(fields: [(&str, Value); N]) -> Value {
    let set = |value: &Value| match value {
        Value::Null => false,
        Value::Bool(value) => *value,
        Value::Number(value) => value.as_f64() != Some(0.0),
        Value::String(value) => !value.is_empty(),
        Value::Array(values) => !values.is_empty(),
        // A message that is present is written even when all of it is zero.
        Value::Object(_) => true,
    };
    let kept = fields.into_iter().filter(|(_, value)| set(value));
    Value::Object(kept.map(|(key, value)| (key.to_owned(), value)).collect())
}

/// A map, absent when empty.
fn map<V: serde::Serialize>(values: &std::collections::BTreeMap<String, V>) -> Value {
    if values.is_empty() { Value::Null } else { json!(values) }
}

fn body(op: &pb::Op) -> Value {
    let inputs = op.inputs.iter();
    let inputs = inputs
        .map(|input| object([("digest", json!(input.digest)), ("index", json!(input.index))]));
    let mut all = Map::new();
    if !op.inputs.is_empty() {
        all.insert("inputs".into(), inputs.collect());
    }
    all.insert("Op".into(), op.op.as_ref().map_or(json!({}), kind));
    if let Some(wire) = &op.platform {
        let fields = [
            ("Architecture", json!(wire.architecture)),
            ("OS", json!(wire.os)),
            ("Variant", json!(wire.variant)),
            ("OSVersion", json!(wire.os_version)),
            ("OSFeatures", json!(wire.os_features)),
        ];
        all.insert("platform".into(), object(fields));
    }
    if let Some(constraints) = &op.constraints {
        all.insert("constraints".into(), object([("filter", json!(constraints.filter))]));
    }
    Value::Object(all)
}

fn kind(op: &Op) -> Value {
    match op {
        Op::Exec(exec) => json!({"exec": exec_json(exec)}),
        Op::Source(source) => {
            let attrs = map(&source.attrs);
            json!({"source": object([("identifier", json!(source.identifier)), ("attrs", attrs)])})
        }
        Op::File(file) => {
            let actions = file.actions.iter().map(|action| {
                json!({
                    "input": action.input,
                    "secondaryInput": action.secondary_input,
                    "output": action.output,
                    "Action": action.action.as_ref().map_or(json!({}), action_json),
                })
            });
            json!({"file": object([("actions", actions.collect())])})
        }
        Op::Build(build) => {
            let inputs = build.inputs.iter();
            let inputs: Map<String, Value> = inputs
                .map(|(key, input)| (key.clone(), object([("input", json!(input.input))])))
                .collect();
            let inputs = if inputs.is_empty() { Value::Null } else { Value::Object(inputs) };
            json!({"build": object([
                ("builder", json!(build.builder)),
                ("inputs", inputs),
                ("attrs", map(&build.attrs)),
            ])})
        }
        Op::Merge(merge) => {
            let inputs = merge.inputs.iter().map(|input| object([("input", json!(input.input))]));
            json!({"merge": object([("inputs", inputs.collect())])})
        }
        Op::Diff(diff) => {
            let side = |input: Option<i64>| {
                input.map_or(Value::Null, |input| object([("input", json!(input))]))
            };
            let lower = side(diff.lower.as_ref().map(|lower| lower.input));
            let upper = side(diff.upper.as_ref().map(|upper| upper.input));
            json!({"diff": object([("lower", lower), ("upper", upper)])})
        }
        Op::Passthrough(pass) => {
            json!({"passthrough": object([("id", json!(pass.id)), ("outputs", json!(pass.outputs))])})
        }
    }
}

fn exec_json(exec: &pb::ExecOp) -> Value {
    let meta = exec.meta.as_ref().map_or(Value::Null, |meta| {
        let proxy = meta.proxy_env.as_ref().map_or(Value::Null, |proxy| {
            object([
                ("http_proxy", json!(proxy.http_proxy)),
                ("https_proxy", json!(proxy.https_proxy)),
                ("ftp_proxy", json!(proxy.ftp_proxy)),
                ("no_proxy", json!(proxy.no_proxy)),
                ("all_proxy", json!(proxy.all_proxy)),
            ])
        });
        let hosts = meta.extra_hosts.iter();
        let hosts = hosts.map(|host| object([("Host", json!(host.host)), ("IP", json!(host.ip))]));
        let limits = meta.ulimit.iter().map(|limit| {
            object([
                ("Name", json!(limit.name)),
                ("Soft", json!(limit.soft)),
                ("Hard", json!(limit.hard)),
            ])
        });
        object([
            ("args", json!(meta.args)),
            ("env", json!(meta.env)),
            ("cwd", json!(meta.cwd)),
            ("user", json!(meta.user)),
            ("proxy_env", proxy),
            ("extraHosts", hosts.collect()),
            ("hostname", json!(meta.hostname)),
            ("ulimit", limits.collect()),
            ("cgroupParent", json!(meta.cgroup_parent)),
            ("removeMountStubsRecursive", json!(meta.remove_mount_stubs_recursive)),
            ("validExitCodes", json!(meta.valid_exit_codes)),
        ])
    });
    let secrets = exec.secretenv.iter().map(|secret| {
        object([
            ("ID", json!(secret.id)),
            ("name", json!(secret.name)),
            ("optional", json!(secret.optional)),
        ])
    });
    object([
        ("meta", meta),
        ("mounts", exec.mounts.iter().map(mount_json).collect()),
        ("network", json!(exec.network)),
        ("security", json!(exec.security)),
        ("secretenv", secrets.collect()),
    ])
}

fn mount_json(mount: &pb::Mount) -> Value {
    let tmpfs = mount.tmpfs_opt.as_ref();
    let cache = mount.cache_opt.as_ref().map_or(Value::Null, |cache| {
        object([("ID", json!(cache.id)), ("sharing", json!(cache.sharing))])
    });
    let secret = mount.secret_opt.as_ref().map_or(Value::Null, |secret| {
        object([
            ("ID", json!(secret.id)),
            ("uid", json!(secret.uid)),
            ("gid", json!(secret.gid)),
            ("mode", json!(secret.mode)),
            ("optional", json!(secret.optional)),
        ])
    });
    let ssh = mount.ssh_opt.as_ref().map_or(Value::Null, |ssh| {
        object([
            ("ID", json!(ssh.id)),
            ("uid", json!(ssh.uid)),
            ("gid", json!(ssh.gid)),
            ("mode", json!(ssh.mode)),
            ("optional", json!(ssh.optional)),
        ])
    });
    object([
        ("input", json!(mount.input)),
        ("selector", json!(mount.selector)),
        ("dest", json!(mount.dest)),
        ("output", json!(mount.output)),
        ("readonly", json!(mount.readonly)),
        ("mountType", json!(mount.mount_type)),
        ("TmpfsOpt", tmpfs.map_or(Value::Null, |opt| object([("size", json!(opt.size))]))),
        ("cacheOpt", cache),
        ("secretOpt", secret),
        ("SSHOpt", ssh),
        ("resultID", json!(mount.result_id)),
        ("contentCache", json!(mount.content_cache)),
    ])
}

fn owner_json(owner: &Option<pb::ChownOpt>) -> Value {
    let one = |user: &Option<pb::UserOpt>| {
        let Some(user) = user else { return Value::Null };
        match &user.user {
            Some(pb::user_opt::User::ByName(named)) => {
                let named = [("name", json!(named.name)), ("input", json!(named.input))];
                json!({"User": {"byName": object(named)}})
            }
            Some(pb::user_opt::User::ById(id)) => json!({"User": object([("byId", json!(id))])}),
            None => json!({"User": {}}),
        }
    };
    owner.as_ref().map_or(Value::Null, |owner| {
        object([("user", one(&owner.user)), ("group", one(&owner.group))])
    })
}

fn action_json(action: &Action) -> Value {
    match action {
        Action::Copy(copy) => json!({"copy": object([
            ("src", json!(copy.src)),
            ("dest", json!(copy.dest)),
            ("owner", owner_json(&copy.owner)),
            ("mode", json!(copy.mode)),
            ("followSymlink", json!(copy.follow_symlink)),
            ("dirCopyContents", json!(copy.dir_copy_contents)),
            (
                "attemptUnpackDockerCompatibility",
                json!(copy.attempt_unpack_docker_compatibility),
            ),
            ("createDestPath", json!(copy.create_dest_path)),
            ("allowWildcard", json!(copy.allow_wildcard)),
            ("allowEmptyWildcard", json!(copy.allow_empty_wildcard)),
            ("timestamp", json!(copy.timestamp)),
            ("include_patterns", json!(copy.include_patterns)),
            ("exclude_patterns", json!(copy.exclude_patterns)),
            ("alwaysReplaceExistingDestPaths", json!(copy.always_replace_existing_dest_paths)),
            ("modeStr", json!(copy.mode_str)),
            ("required_paths", json!(copy.required_paths)),
        ])}),
        Action::Mkfile(file) => json!({"mkfile": object([
            ("path", json!(file.path)),
            ("mode", json!(file.mode)),
            ("data", json!(BASE64.encode(&file.data))),
            ("owner", owner_json(&file.owner)),
            ("timestamp", json!(file.timestamp)),
        ])}),
        Action::Mkdir(folder) => json!({"mkdir": object([
            ("path", json!(folder.path)),
            ("mode", json!(folder.mode)),
            ("makeParents", json!(folder.make_parents)),
            ("owner", owner_json(&folder.owner)),
            ("timestamp", json!(folder.timestamp)),
        ])}),
        Action::Rm(rm) => json!({"rm": object([
            ("path", json!(rm.path)),
            ("allowNotFound", json!(rm.allow_not_found)),
            ("allowWildcard", json!(rm.allow_wildcard)),
        ])}),
        Action::Symlink(link) => json!({"symlink": object([
            ("oldpath", json!(link.oldpath)),
            ("newpath", json!(link.newpath)),
            ("owner", owner_json(&link.owner)),
            ("timestamp", json!(link.timestamp)),
        ])}),
    }
}

fn metadata(metadata: &pb::OpMetadata) -> Value {
    let export = metadata.export_cache.as_ref();
    let group = metadata.progress_group.as_ref().map_or(Value::Null, |group| {
        object([("id", json!(group.id)), ("name", json!(group.name)), ("weak", json!(group.weak))])
    });
    let resources = metadata.linux_resources.as_ref().map_or(Value::Null, |limits| {
        object([
            ("memory", json!(limits.memory)),
            ("memorySwap", json!(limits.memory_swap)),
            ("cpuShares", json!(limits.cpu_shares)),
            ("cpuPeriod", json!(limits.cpu_period)),
            ("cpuQuota", json!(limits.cpu_quota)),
            ("cpusetCpus", json!(limits.cpuset_cpus)),
            ("cpusetMems", json!(limits.cpuset_mems)),
        ])
    });
    object([
        ("ignore_cache", json!(metadata.ignore_cache)),
        ("description", map(&metadata.description)),
        (
            "export_cache",
            export.map_or(Value::Null, |export| object([("Value", json!(export.value))])),
        ),
        ("caps", map(&metadata.caps)),
        ("progress_group", group),
        ("linux_resources", resources),
    ])
}

fn action_name(action: &pb::FileAction) -> String {
    match &action.action {
        Some(Action::Copy(copy)) => format!("copy{{src={}, dest={}}}", copy.src, copy.dest),
        Some(Action::Mkfile(file)) => format!("mkfile{{path={}}}", file.path),
        Some(Action::Mkdir(folder)) => format!("mkdir{{path={}}}", folder.path),
        Some(Action::Rm(rm)) => format!("rm{{path={}}}", rm.path),
        Some(Action::Symlink(link)) => {
            format!("symlink{{oldpath={}, newpath={}}}", link.oldpath, link.newpath)
        }
        None => "none".into(),
    }
}

fn dot(ops: &[(String, pb::Op)]) -> String {
    use std::fmt::Write as _;
    let mut out = String::from("digraph {\n");
    for (digest, op) in ops {
        let (name, shape) = match &op.op {
            Some(Op::Source(source)) => (source.identifier.clone(), "ellipse"),
            Some(Op::Exec(exec)) => {
                (exec.meta.as_ref().map(|meta| meta.args.join(" ")).unwrap_or_default(), "box")
            }
            Some(Op::Build(_)) => ("build".into(), "box3d"),
            Some(Op::Merge(_)) => ("merge".into(), "invtriangle"),
            Some(Op::Diff(_)) => ("diff".into(), "doublecircle"),
            Some(Op::File(file)) => {
                (file.actions.iter().map(action_name).collect::<Vec<_>>().join(","), "note")
            }
            Some(Op::Passthrough(_)) | None => (digest.clone(), "plaintext"),
        };
        let _ = writeln!(out, "  {digest:?} [label={name:?} shape={shape:?}];");
    }
    for (digest, op) in ops {
        for (index, input) in op.inputs.iter().enumerate() {
            let label = match &op.op {
                Some(Op::Exec(exec)) => {
                    let mut mounts = exec.mounts.iter();
                    let mount =
                        mounts.find(|mount| mount.input == index as i64 && mount.dest != "/");
                    mount.map(|mount| mount.dest.as_str()).unwrap_or_default()
                }
                _ => "",
            };
            let _ = writeln!(out, "  {:?} -> {digest:?} [label={label:?}];", input.digest);
        }
    }
    out.push_str("}\n");
    out
}
