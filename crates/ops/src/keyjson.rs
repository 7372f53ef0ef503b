//! The ops as JSON, exactly as cache-map digests hash them.
//!
//! Names, order and omission follow Go's encoder over the wire structs; see the cache key notes
//! §3.1. Zero values are left out, so input 0 and output 0 vanish and −1 is written.

use std::collections::BTreeMap;

use base::gojson::{base64_bytes, is_zero};
use bytes::Bytes;
use llb::pb;
use serde::Serialize;

macro_rules! go_struct {
    ($(#[$doc:meta])* $name:ident { $($(#[$attr:meta])* $field:ident as $json:literal : $type:ty),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Serialize, Default, PartialEq, Clone)]
        pub(crate) struct $name {
            $(#[serde(rename = $json, skip_serializing_if = "is_zero")] $(#[$attr])* pub(crate) $field: $type,)*
        }
    };
}

go_struct!(Exec {
    meta as "meta": Option<Meta>,
    mounts as "mounts": Vec<Mount>,
    network as "network": i32,
    security as "security": i32,
    secretenv as "secretenv": Vec<SecretEnv>,
    cdi_devices as "cdiDevices": Vec<CdiDevice>,
});
go_struct!(Meta {
    args as "args": Vec<String>,
    env as "env": Vec<String>,
    cwd as "cwd": String,
    user as "user": String,
    extra_hosts as "extraHosts": Vec<HostIp>,
    hostname as "hostname": String,
    ulimit as "ulimit": Vec<Ulimit>,
    cgroup_parent as "cgroupParent": String,
    remove_mount_stubs_recursive as "removeMountStubsRecursive": bool,
    valid_exit_codes as "validExitCodes": Vec<i32>,
});
go_struct!(HostIp { host as "Host": String, ip as "IP": String });
go_struct!(Ulimit { name as "Name": String, soft as "Soft": i64, hard as "Hard": i64 });
go_struct!(Mount {
    input as "input": i64,
    selector as "selector": String,
    dest as "dest": String,
    output as "output": i64,
    readonly as "readonly": bool,
    mount_type as "mountType": i32,
    tmpfs as "TmpfsOpt": Option<Tmpfs>,
    cache as "cacheOpt": Option<Cache>,
    secret as "secretOpt": Option<Secret>,
    ssh as "SSHOpt": Option<Secret>,
    result_id as "resultID": String,
    content_cache as "contentCache": i32,
});
go_struct!(Tmpfs { size as "size": i64 });
go_struct!(Cache { id as "ID": String, sharing as "sharing": i32 });
go_struct!(Secret {
    id as "ID": String,
    uid as "uid": u32,
    gid as "gid": u32,
    mode as "mode": u32,
    optional as "optional": bool,
});
go_struct!(SecretEnv { id as "ID": String, name as "name": String, optional as "optional": bool });
go_struct!(CdiDevice { name as "name": String, optional as "optional": bool });
go_struct!(Copy {
    src as "src": String,
    dest as "dest": String,
    owner as "owner": Option<Chown>,
    mode as "mode": i32,
    follow_symlink as "followSymlink": bool,
    dir_copy_contents as "dirCopyContents": bool,
    unpack as "attemptUnpackDockerCompatibility": bool,
    create_dest_path as "createDestPath": bool,
    allow_wildcard as "allowWildcard": bool,
    allow_empty_wildcard as "allowEmptyWildcard": bool,
    timestamp as "timestamp": i64,
    include_patterns as "include_patterns": Vec<String>,
    exclude_patterns as "exclude_patterns": Vec<String>,
    always_replace as "alwaysReplaceExistingDestPaths": bool,
    mode_str as "modeStr": String,
    required_paths as "required_paths": Vec<String>,
});
go_struct!(MkFile {
    path as "path": String,
    mode as "mode": i32,
    #[serde(serialize_with = "base64_bytes")]
    data as "data": Bytes,
    owner as "owner": Option<Chown>,
    timestamp as "timestamp": i64,
});
go_struct!(MkDir {
    path as "path": String,
    mode as "mode": i32,
    make_parents as "makeParents": bool,
    owner as "owner": Option<Chown>,
    timestamp as "timestamp": i64,
});
go_struct!(Symlink {
    oldpath as "oldpath": String,
    newpath as "newpath": String,
    owner as "owner": Option<Chown>,
    timestamp as "timestamp": i64,
});
go_struct!(Rm {
    path as "path": String,
    allow_not_found as "allowNotFound": bool,
    allow_wildcard as "allowWildcard": bool,
});
go_struct!(Chown { user as "user": Option<UserHolder>, group as "group": Option<UserHolder> });

/// A oneof: Go writes the holder's field even when the member is zero.
#[derive(Serialize, Default, PartialEq, Clone)]
pub(crate) struct UserHolder {
    #[serde(rename = "User")]
    user: Option<User>,
}

#[derive(Serialize, PartialEq, Clone)]
#[serde(untagged)]
pub(crate) enum User {
    ByName {
        #[serde(rename = "byName")]
        name: NamedUser,
    },
    ById {
        #[serde(rename = "byId", skip_serializing_if = "is_zero")]
        id: u32,
    },
}
go_struct!(NamedUser { name as "name": String, input as "input": i64 });
go_struct!(Build {
    builder as "builder": i64,
    inputs as "inputs": BTreeMap<String, Side>,
    #[serde(serialize_with = "definition_json")]
    def as "def": Option<pb::Definition>,
    attrs as "attrs": BTreeMap<String, String>,
});
go_struct!(Side { input as "input": i64 });
go_struct!(Merge { inputs as "inputs": Vec<Side> });
go_struct!(Diff { lower as "lower": Option<Side>, upper as "upper": Option<Side> });
go_struct!(Passthrough { id as "id": String, outputs as "outputs": Vec<i64> });

/// An embedded definition is never read by the engine; its bytes are enough to tell two apart.
fn definition_json<S: serde::Serializer>(
    definition: &Option<pb::Definition>,
    to: S,
) -> Result<S::Ok, S::Error> {
    #[derive(Serialize)]
    struct Json<'a> {
        #[serde(skip_serializing_if = "Vec::is_empty")]
        def: Vec<Base64<'a>>,
    }
    #[derive(Serialize)]
    struct Base64<'a>(#[serde(serialize_with = "base64_bytes")] &'a Bytes);
    let def = definition.iter().flat_map(|definition| definition.def.iter().map(Base64)).collect();
    Json { def }.serialize(to)
}

impl From<&pb::ExecOp> for Exec {
    fn from(op: &pb::ExecOp) -> Self {
        Self {
            meta: op.meta.as_ref().map(Into::into),
            mounts: op.mounts.iter().map(Into::into).collect(),
            network: op.network,
            security: op.security,
            secretenv: op
                .secretenv
                .iter()
                .map(|env| SecretEnv {
                    id: env.id.clone(),
                    name: env.name.clone(),
                    optional: env.optional,
                })
                .collect(),
            cdi_devices: op
                .cdi_devices
                .iter()
                .map(|device| CdiDevice { name: device.name.clone(), optional: device.optional })
                .collect(),
        }
    }
}

impl From<&pb::Meta> for Meta {
    fn from(meta: &pb::Meta) -> Self {
        Self {
            args: meta.args.clone(),
            env: meta.env.clone(),
            cwd: meta.cwd.clone(),
            user: meta.user.clone(),
            extra_hosts: meta
                .extra_hosts
                .iter()
                .map(|host| HostIp { host: host.host.clone(), ip: host.ip.clone() })
                .collect(),
            hostname: meta.hostname.clone(),
            ulimit: meta
                .ulimit
                .iter()
                .map(|limit| Ulimit {
                    name: limit.name.clone(),
                    soft: limit.soft,
                    hard: limit.hard,
                })
                .collect(),
            cgroup_parent: meta.cgroup_parent.clone(),
            remove_mount_stubs_recursive: meta.remove_mount_stubs_recursive,
            valid_exit_codes: meta.valid_exit_codes.clone(),
        }
    }
}

impl From<&pb::Mount> for Mount {
    fn from(mount: &pb::Mount) -> Self {
        Self {
            input: mount.input,
            selector: mount.selector.clone(),
            dest: mount.dest.clone(),
            output: mount.output,
            readonly: mount.readonly,
            mount_type: mount.mount_type,
            tmpfs: mount.tmpfs_opt.as_ref().map(|tmpfs| Tmpfs { size: tmpfs.size }),
            cache: mount
                .cache_opt
                .as_ref()
                .map(|cache| Cache { id: cache.id.clone(), sharing: cache.sharing }),
            secret: mount.secret_opt.as_ref().map(|secret| Secret {
                id: secret.id.clone(),
                uid: secret.uid,
                gid: secret.gid,
                mode: secret.mode,
                optional: secret.optional,
            }),
            ssh: mount.ssh_opt.as_ref().map(|ssh| Secret {
                id: ssh.id.clone(),
                uid: ssh.uid,
                gid: ssh.gid,
                mode: ssh.mode,
                optional: ssh.optional,
            }),
            result_id: mount.result_id.clone(),
            content_cache: mount.content_cache,
        }
    }
}

impl From<&pb::FileActionCopy> for Copy {
    fn from(copy: &pb::FileActionCopy) -> Self {
        Self {
            src: copy.src.clone(),
            dest: copy.dest.clone(),
            owner: copy.owner.as_ref().map(Into::into),
            mode: copy.mode,
            follow_symlink: copy.follow_symlink,
            dir_copy_contents: copy.dir_copy_contents,
            unpack: copy.attempt_unpack_docker_compatibility,
            create_dest_path: copy.create_dest_path,
            allow_wildcard: copy.allow_wildcard,
            allow_empty_wildcard: copy.allow_empty_wildcard,
            timestamp: copy.timestamp,
            include_patterns: copy.include_patterns.clone(),
            exclude_patterns: copy.exclude_patterns.clone(),
            always_replace: copy.always_replace_existing_dest_paths,
            mode_str: copy.mode_str.clone(),
            required_paths: copy.required_paths.clone(),
        }
    }
}

impl From<&pb::FileActionMkFile> for MkFile {
    fn from(file: &pb::FileActionMkFile) -> Self {
        Self {
            path: file.path.clone(),
            mode: file.mode,
            data: file.data.clone(),
            owner: file.owner.as_ref().map(Into::into),
            timestamp: file.timestamp,
        }
    }
}

impl From<&pb::FileActionMkDir> for MkDir {
    fn from(folder: &pb::FileActionMkDir) -> Self {
        Self {
            path: folder.path.clone(),
            mode: folder.mode,
            make_parents: folder.make_parents,
            owner: folder.owner.as_ref().map(Into::into),
            timestamp: folder.timestamp,
        }
    }
}

impl From<&pb::FileActionSymlink> for Symlink {
    fn from(link: &pb::FileActionSymlink) -> Self {
        Self {
            oldpath: link.oldpath.clone(),
            newpath: link.newpath.clone(),
            owner: link.owner.as_ref().map(Into::into),
            timestamp: link.timestamp,
        }
    }
}

impl From<&pb::FileActionRm> for Rm {
    fn from(rm: &pb::FileActionRm) -> Self {
        Self {
            path: rm.path.clone(),
            allow_not_found: rm.allow_not_found,
            allow_wildcard: rm.allow_wildcard,
        }
    }
}

impl From<&pb::ChownOpt> for Chown {
    fn from(chown: &pb::ChownOpt) -> Self {
        let holder = |user: &pb::UserOpt| UserHolder {
            user: user.user.as_ref().map(|user| match user {
                pb::user_opt::User::ByName(named) => User::ByName {
                    name: NamedUser { name: named.name.clone(), input: named.input },
                },
                pb::user_opt::User::ById(id) => User::ById { id: *id },
            }),
        };
        Self { user: chown.user.as_ref().map(holder), group: chown.group.as_ref().map(holder) }
    }
}

impl From<&pb::BuildOp> for Build {
    fn from(op: &pb::BuildOp) -> Self {
        Self {
            builder: op.builder,
            inputs: op
                .inputs
                .iter()
                .map(|(name, side)| (name.clone(), Side { input: side.input }))
                .collect(),
            def: op.def.clone(),
            attrs: op.attrs.clone(),
        }
    }
}

impl From<&pb::MergeOp> for Merge {
    fn from(op: &pb::MergeOp) -> Self {
        Self { inputs: op.inputs.iter().map(|side| Side { input: side.input }).collect() }
    }
}

impl From<&pb::DiffOp> for Diff {
    fn from(op: &pb::DiffOp) -> Self {
        Self {
            lower: op.lower.as_ref().map(|side| Side { input: side.input }),
            upper: op.upper.as_ref().map(|side| Side { input: side.input }),
        }
    }
}

impl From<&pb::PassthroughOp> for Passthrough {
    fn from(op: &pb::PassthroughOp) -> Self {
        Self { id: op.id.clone(), outputs: op.outputs.clone() }
    }
}
