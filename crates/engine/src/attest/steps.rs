//! A graph as provenance of mode `max` shows it: steps in dependency order, ops as JSON.
//!
//! Member names and order are those of Go's encoder over the wire structs. Everything is written
//! but inputs (given as steps) and what tells sessions apart.

use std::collections::{BTreeMap, HashMap, HashSet};

use base::Digest;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use frontend_api::FrontendError;
use llb::pb;
use prost::Message as _;
use serde_json::{Map, Value, json};

use super::json::Object;

/// Attributes of local sources that differ from run to run.
const SESSION_ATTRS: [&str; 2] = ["local.session", "local.unique"];

/// The steps of a graph.
#[derive(Debug, Default)]
pub(crate) struct Steps {
    /// JSON of each step.
    pub list: Vec<Value>,
    /// Step of each vertex, by the digest of its received bytes.
    pub numbers: BTreeMap<String, usize>,
}

impl Steps {
    /// Reads a definition; one that has been built before has all its inputs.
    pub(crate) fn of(definition: &pb::Definition) -> Result<Self, FrontendError> {
        let mut ops = HashMap::with_capacity(definition.def.len());
        let mut terminal = None;
        for bytes in &definition.def {
            let op = pb::Op::decode(bytes.clone()).map_err(|error| {
                FrontendError::new(format!("failed to parse llb proto op: {error}"))
            })?;
            let digest = Digest::of(bytes).to_string();
            terminal = Some(digest.clone());
            ops.insert(digest, op);
        }
        let Some(terminal) = terminal else { return Ok(Self::default()) };
        let order = order(&ops, &terminal)?;
        let numbers: BTreeMap<String, usize> =
            order.iter().enumerate().map(|(at, digest)| ((*digest).clone(), at)).collect();
        let list = order.iter().enumerate().map(|(at, digest)| step(at, &ops[*digest], &numbers));
        Ok(Self { list: list.collect(), numbers })
    }

    /// `llbDefinition` and `digestMapping`.
    pub(crate) fn add_to(&self, object: &mut Map<String, Value>) {
        object.list("llbDefinition", self.list.clone());
        let names = self.numbers.iter().map(|(digest, at)| (digest.clone(), name(*at)));
        object.texts("digestMapping", &names.collect());
    }
}

fn name(step: usize) -> String {
    format!("step{step}")
}

/// Depth first, inputs before their users, without recursion: graphs may be deep.
fn order<'a>(
    ops: &'a HashMap<String, pb::Op>,
    terminal: &'a String,
) -> Result<Vec<&'a String>, FrontendError> {
    let mut order = Vec::with_capacity(ops.len());
    let mut entered = HashSet::from([terminal]);
    let mut stack = vec![(terminal, 0)];
    while let Some((digest, next)) = stack.pop() {
        let op = ops
            .get(digest)
            .ok_or_else(|| FrontendError::new(format!("failed to find input {digest}")))?;
        match op.inputs.get(next) {
            Some(input) => {
                stack.push((digest, next + 1));
                if entered.insert(&input.digest) {
                    stack.push((&input.digest, 0));
                }
            }
            None => order.push(digest),
        }
    }
    Ok(order)
}

fn step(at: usize, op: &pb::Op, numbers: &BTreeMap<String, usize>) -> Value {
    let inputs = op.inputs.iter().map(|input| {
        let from = numbers.get(&input.digest).copied().unwrap_or_default();
        Value::from(format!("step{from}:{}", input.index))
    });
    let mut object = Map::new();
    object.text("id", &name(at));
    object.insert("op".into(), op_json(op));
    object.list("inputs", inputs.collect());
    Value::Object(object)
}

fn op_json(op: &pb::Op) -> Value {
    use pb::op::Op;
    let mut kind = Map::new();
    match &op.op {
        Some(Op::Exec(exec)) => _ = kind.insert("exec".into(), exec_json(exec)),
        Some(Op::Source(source)) => {
            let mut object = Map::new();
            object.text("identifier", &source.identifier);
            let attrs =
                source.attrs.iter().filter(|(key, _)| !SESSION_ATTRS.contains(&key.as_str()));
            object
                .texts("attrs", &attrs.map(|(key, value)| (key.clone(), value.clone())).collect());
            kind.insert("source".into(), Value::Object(object));
        }
        Some(Op::File(file)) => {
            let mut object = Map::new();
            object.list("actions", file.actions.iter().map(action_json).collect());
            kind.insert("file".into(), Value::Object(object));
        }
        Some(Op::Build(build)) => _ = kind.insert("build".into(), build_json(build)),
        Some(Op::Merge(merge)) => {
            let mut object = Map::new();
            object.list("inputs", merge.inputs.iter().map(|side| side_json(side.input)).collect());
            kind.insert("merge".into(), Value::Object(object));
        }
        Some(Op::Diff(diff)) => {
            let mut object = Map::new();
            object.maybe("lower", diff.lower.as_ref().map(|side| side_json(side.input)));
            object.maybe("upper", diff.upper.as_ref().map(|side| side_json(side.input)));
            kind.insert("diff".into(), Value::Object(object));
        }
        Some(Op::Passthrough(pass)) => {
            let mut object = Map::new();
            object.text("id", &pass.id);
            object.list("outputs", pass.outputs.iter().map(|output| (*output).into()).collect());
            kind.insert("passthrough".into(), Value::Object(object));
        }
        None => {}
    }
    let mut object = Map::from_iter([("Op".to_owned(), Value::Object(kind))]);
    object.maybe("platform", op.platform.as_ref().map(platform_json));
    object.maybe(
        "constraints",
        op.constraints.as_ref().map(|constraints| {
            let mut object = Map::new();
            object.strings("filter", &constraints.filter);
            Value::Object(object)
        }),
    );
    Value::Object(object)
}

fn side_json(input: i64) -> Value {
    let mut object = Map::new();
    object.number("input", input);
    Value::Object(object)
}

fn platform_json(platform: &pb::Platform) -> Value {
    let mut object = Map::new();
    object.text("Architecture", &platform.architecture);
    object.text("OS", &platform.os);
    object.text("Variant", &platform.variant);
    object.text("OSVersion", &platform.os_version);
    object.strings("OSFeatures", &platform.os_features);
    Value::Object(object)
}

fn exec_json(exec: &pb::ExecOp) -> Value {
    let mut object = Map::new();
    object.maybe("meta", exec.meta.as_ref().map(meta_json));
    object.list("mounts", exec.mounts.iter().map(mount_json).collect());
    object.number("network", exec.network.into());
    object.number("security", exec.security.into());
    let secrets = exec.secretenv.iter().map(|secret| {
        let mut object = Map::new();
        object.text("ID", &secret.id);
        object.text("name", &secret.name);
        object.flag("optional", secret.optional);
        Value::Object(object)
    });
    object.list("secretenv", secrets.collect());
    let devices = exec.cdi_devices.iter().map(|device| {
        let mut object = Map::new();
        object.text("name", &device.name);
        object.flag("optional", device.optional);
        Value::Object(object)
    });
    object.list("cdiDevices", devices.collect());
    Value::Object(object)
}

fn meta_json(meta: &pb::Meta) -> Value {
    let mut object = Map::new();
    object.strings("args", &meta.args);
    object.strings("env", &meta.env);
    object.text("cwd", &meta.cwd);
    object.text("user", &meta.user);
    object.maybe(
        "proxy_env",
        meta.proxy_env.as_ref().map(|proxy| {
            let mut object = Map::new();
            object.text("http_proxy", &proxy.http_proxy);
            object.text("https_proxy", &proxy.https_proxy);
            object.text("ftp_proxy", &proxy.ftp_proxy);
            object.text("no_proxy", &proxy.no_proxy);
            object.text("all_proxy", &proxy.all_proxy);
            Value::Object(object)
        }),
    );
    let hosts = meta.extra_hosts.iter().map(|host| {
        let mut object = Map::new();
        object.text("Host", &host.host);
        object.text("IP", &host.ip);
        Value::Object(object)
    });
    object.list("extraHosts", hosts.collect());
    object.text("hostname", &meta.hostname);
    let limits = meta.ulimit.iter().map(|limit| {
        let mut object = Map::new();
        object.text("Name", &limit.name);
        object.number("Soft", limit.soft);
        object.number("Hard", limit.hard);
        Value::Object(object)
    });
    object.list("ulimit", limits.collect());
    object.text("cgroupParent", &meta.cgroup_parent);
    object.flag("removeMountStubsRecursive", meta.remove_mount_stubs_recursive);
    object
        .list("validExitCodes", meta.valid_exit_codes.iter().map(|code| (*code).into()).collect());
    Value::Object(object)
}

fn mount_json(mount: &pb::Mount) -> Value {
    let secret = |id: &str, uid: u32, gid: u32, mode: u32, optional: bool| {
        let mut object = Map::new();
        object.text("ID", id);
        object.number("uid", uid.into());
        object.number("gid", gid.into());
        object.number("mode", mode.into());
        object.flag("optional", optional);
        Value::Object(object)
    };
    let mut object = Map::new();
    object.number("input", mount.input);
    object.text("selector", &mount.selector);
    object.text("dest", &mount.dest);
    object.number("output", mount.output);
    object.flag("readonly", mount.readonly);
    object.number("mountType", mount.mount_type.into());
    let tmpfs = mount.tmpfs_opt.as_ref().map(|tmpfs| {
        let mut object = Map::new();
        object.number("size", tmpfs.size);
        Value::Object(object)
    });
    object.maybe("TmpfsOpt", tmpfs);
    let cache = mount.cache_opt.as_ref().map(|cache| {
        let mut object = Map::new();
        object.text("ID", &cache.id);
        object.number("sharing", cache.sharing.into());
        Value::Object(object)
    });
    object.maybe("cacheOpt", cache);
    let given = mount.secret_opt.as_ref();
    object.maybe("secretOpt", given.map(|it| secret(&it.id, it.uid, it.gid, it.mode, it.optional)));
    let given = mount.ssh_opt.as_ref();
    object.maybe("SSHOpt", given.map(|it| secret(&it.id, it.uid, it.gid, it.mode, it.optional)));
    object.text("resultID", &mount.result_id);
    object.number("contentCache", mount.content_cache.into());
    Value::Object(object)
}

fn action_json(action: &pb::FileAction) -> Value {
    use pb::file_action::Action;
    let mut kind = Map::new();
    match &action.action {
        Some(Action::Copy(copy)) => _ = kind.insert("copy".into(), copy_json(copy)),
        Some(Action::Mkfile(file)) => {
            let mut object = Map::new();
            object.text("path", &file.path);
            object.number("mode", file.mode.into());
            object.text("data", &STANDARD.encode(&file.data));
            object.maybe("owner", file.owner.as_ref().map(owner_json));
            object.number("timestamp", file.timestamp);
            kind.insert("mkfile".into(), Value::Object(object));
        }
        Some(Action::Mkdir(folder)) => {
            let mut object = Map::new();
            object.text("path", &folder.path);
            object.number("mode", folder.mode.into());
            object.flag("makeParents", folder.make_parents);
            object.maybe("owner", folder.owner.as_ref().map(owner_json));
            object.number("timestamp", folder.timestamp);
            kind.insert("mkdir".into(), Value::Object(object));
        }
        Some(Action::Rm(rm)) => {
            let mut object = Map::new();
            object.text("path", &rm.path);
            object.flag("allowNotFound", rm.allow_not_found);
            object.flag("allowWildcard", rm.allow_wildcard);
            kind.insert("rm".into(), Value::Object(object));
        }
        // The original's encoder does not know links and writes an empty action.
        Some(Action::Symlink(_)) | None => {}
    }
    json!({
        "input": action.input,
        "secondaryInput": action.secondary_input,
        "output": action.output,
        "Action": kind,
    })
}

fn copy_json(copy: &pb::FileActionCopy) -> Value {
    let mut object = Map::new();
    object.text("src", &copy.src);
    object.text("dest", &copy.dest);
    object.maybe("owner", copy.owner.as_ref().map(owner_json));
    object.number("mode", copy.mode.into());
    object.flag("followSymlink", copy.follow_symlink);
    object.flag("dirCopyContents", copy.dir_copy_contents);
    object.flag("attemptUnpackDockerCompatibility", copy.attempt_unpack_docker_compatibility);
    object.flag("createDestPath", copy.create_dest_path);
    object.flag("allowWildcard", copy.allow_wildcard);
    object.flag("allowEmptyWildcard", copy.allow_empty_wildcard);
    object.number("timestamp", copy.timestamp);
    object.strings("include_patterns", &copy.include_patterns);
    object.strings("exclude_patterns", &copy.exclude_patterns);
    object.flag("alwaysReplaceExistingDestPaths", copy.always_replace_existing_dest_paths);
    object.text("modeStr", &copy.mode_str);
    object.strings("required_paths", &copy.required_paths);
    Value::Object(object)
}

fn owner_json(owner: &pb::ChownOpt) -> Value {
    let user = |user: &pb::UserOpt| {
        let mut who = Map::new();
        match &user.user {
            Some(pb::user_opt::User::ByName(named)) => {
                let mut object = Map::new();
                object.text("name", &named.name);
                object.number("input", named.input);
                who.insert("byName".into(), Value::Object(object));
            }
            Some(pb::user_opt::User::ById(id)) => who.number("byId", i64::from(*id)),
            None => {}
        }
        json!({ "User": who })
    };
    let mut object = Map::new();
    object.maybe("user", owner.user.as_ref().map(user));
    object.maybe("group", owner.group.as_ref().map(user));
    Value::Object(object)
}

fn build_json(build: &pb::BuildOp) -> Value {
    let mut object = Map::new();
    object.number("builder", build.builder);
    if !build.inputs.is_empty() {
        let inputs = build.inputs.iter().map(|(name, side)| (name.clone(), side_json(side.input)));
        object.insert("inputs".into(), Value::Object(inputs.collect()));
    }
    let def = build.def.as_ref().map(|definition| {
        let mut object = Map::new();
        let ops = definition.def.iter().map(|bytes| STANDARD.encode(bytes).into());
        object.list("def", ops.collect());
        Value::Object(object)
    });
    object.maybe("def", def);
    object.texts("attrs", &build.attrs);
    Value::Object(object)
}

/// `source` of a definition that says where its vertices come from.
pub(crate) fn source_json(
    definition: &pb::Definition,
    steps: &Steps,
) -> Result<Option<Value>, FrontendError> {
    let Some(source) = definition.source.as_ref().filter(|source| !source.infos.is_empty()) else {
        return Ok(None);
    };
    let mut infos = Vec::new();
    for info in &source.infos {
        let mut object = Map::new();
        object.text("filename", &info.filename);
        object.text("language", &info.language);
        object.text("data", &STANDARD.encode(&info.data));
        if let Some(definition) = &info.definition {
            Steps::of(definition)?.add_to(&mut object);
        }
        infos.push(Value::Object(object));
    }
    let locations: BTreeMap<String, Value> = source
        .locations
        .iter()
        .filter_map(|(digest, places)| Some((name(*steps.numbers.get(digest)?), locations(places))))
        .collect();
    let mut object = Map::new();
    if !locations.is_empty() {
        object.insert("locations".into(), Value::Object(locations.into_iter().collect()));
    }
    object.list("infos", infos);
    Ok(Some(Value::Object(object)))
}

fn locations(places: &pb::Locations) -> Value {
    let position = |position: &pb::Position| {
        let mut object = Map::new();
        object.number("line", position.line.into());
        object.number("character", position.character.into());
        Value::Object(object)
    };
    let range = |range: &pb::Range| {
        let mut object = Map::new();
        object.maybe("start", range.start.as_ref().map(position));
        object.maybe("end", range.end.as_ref().map(position));
        Value::Object(object)
    };
    let location = |place: &pb::Location| {
        let mut object = Map::new();
        object.number("sourceIndex", place.source_index.into());
        object.list("ranges", place.ranges.iter().map(range).collect());
        Value::Object(object)
    };
    let mut object = Map::new();
    object.list("locations", places.locations.iter().map(location).collect());
    Value::Object(object)
}
