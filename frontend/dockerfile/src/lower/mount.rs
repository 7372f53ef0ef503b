//! RUN --mount.
//!
//! Source: Dockerfile notes §11.2, "Mount lowering".

use base::path;
use llb::build::{Exec, FileAction, Meta, Mkdir, MountKind, Output, Owner, Secret, Ssh};
use llb::pb::CacheSharingOpt;

use super::Lowering;
use super::dispatch::Place;
use super::outline::Required;
use super::stage::StageId;
use crate::error::{Error, Kind, Result};
use crate::instructions::mount::{Mount, Sharing, Type};
use crate::text;

impl Lowering<'_> {
    pub(super) fn run_mounts(
        &mut self,
        place: &Place,
        mounts: &[Mount],
        sources: &[StageId],
        exec: &mut Exec,
    ) -> Result<()> {
        for (mount, source) in mounts.iter().zip(sources) {
            // A cache starts empty unless it says otherwise.
            let from = match mount.kind {
                Type::Cache if mount.from.is_empty() => "scratch",
                _ => &mount.from,
            };
            let source = (!from.is_empty()).then_some(*source);
            if let Some(id) = source {
                self.check_defined(id, Kind::MountFromUndefined, [from, &mount.target])?;
            }
            match mount.kind {
                Type::Secret => exec.secrets.push(self.secret(place, mount)),
                Type::Ssh => exec.ssh.push(self.ssh(place, mount)?),
                _ => {
                    let tree = match source {
                        _ if mount.kind == Type::Tmpfs => None,
                        Some(id) => self.stages[id].state.output,
                        None => self.context,
                    };
                    exec.mounts.push(self.mount(place, mount, tree)?);
                    let used = path::absolute(&mount.source);
                    match source {
                        Some(id) => self.stages.use_path(id, used),
                        None => _ = self.stages[place.stage].context_paths.insert(used),
                    }
                }
            }
        }
        Ok(())
    }

    fn mount(
        &mut self,
        place: &Place,
        mount: &Mount,
        mut tree: Option<Output>,
    ) -> Result<llb::build::Mount> {
        let kind = match mount.kind {
            Type::Cache => {
                let clean = path::clean(&mount.target);
                let id = if mount.id.is_empty() { &clean } else { &mount.id };
                let namespace = &self.client.options.cache_namespace;
                let sharing = match mount.sharing {
                    None | Some(Sharing::Shared) => CacheSharingOpt::Shared,
                    Some(Sharing::Private) => CacheSharingOpt::Private,
                    Some(Sharing::Locked) => CacheSharingOpt::Locked,
                };
                MountKind::Cache { id: format!("{namespace}/{id}"), sharing }
            }
            Type::Tmpfs => MountKind::Tmpfs { size: mount.size },
            _ => MountKind::Bind,
        };
        let target = if mount.target.starts_with('/') {
            mount.target.clone()
        } else {
            path::join(["/", &self.stages[place.stage].state.dir, &mount.target])
        };
        if target == "/" {
            return Err(Error::new(Kind::MountTargetRoot, [text::quote(&target)]));
        }
        let mut selector = path::absolute(&mount.source);
        if selector == "/" {
            selector.clear();
            if mount.has_file_info() {
                tree = Some(self.cache_folder(mount, tree));
                selector = "/cache".to_owned();
            }
        }
        let throw_away = self.client.has_cap("exec.mount.bind.readwrite-nooutput");
        Ok(llb::build::Mount {
            target,
            source: tree,
            selector,
            readonly: mount.readonly,
            no_output: !mount.readonly && kind == MountKind::Bind && throw_away,
            kind,
            ..llb::build::Mount::default()
        })
    }

    /// A folder with owner and mode for a cache to start from.
    fn cache_folder(&mut self, mount: &Mount, tree: Option<Output>) -> Output {
        let mkdir = Mkdir {
            path: "/cache".to_owned(),
            mode: mount.mode.unwrap_or(0o755),
            owner: Some(Owner::ids(mount.uid.unwrap_or(0), mount.gid.unwrap_or(0))),
            ..Mkdir::default()
        };
        let meta = Meta::named("[internal] setting cache mount permissions");
        self.graph.file(tree, vec![FileAction::Mkdir(mkdir)], meta)
    }

    fn secret(&mut self, place: &Place, mount: &Mount) -> Secret {
        let id = [&mount.source, &mount.id].into_iter().find(|id| !id.is_empty());
        let id = id.map_or_else(|| path::base(&mount.target).to_owned(), Clone::clone);
        let target = match (mount.target.as_str(), &mount.env) {
            ("", Some(_)) => None,
            ("", None) => Some(format!("/run/secrets/{}", path::base(&id))),
            (target, _) => Some(target.to_owned()),
        };
        let info = Required { required: mount.required, lines: place.lines };
        self.stages[place.stage].captured.secrets.entry(id.clone()).or_insert(info);
        Secret {
            id,
            target,
            env: mount.env.clone(),
            optional: !mount.required,
            uid: mount.uid.unwrap_or(0),
            gid: mount.gid.unwrap_or(0),
            mode: mount.mode.unwrap_or(0o400),
        }
    }

    fn ssh(&mut self, place: &Place, mount: &Mount) -> Result<Ssh> {
        if !mount.source.is_empty() {
            return Err(Error::plain(Kind::SshSource));
        }
        let id = if mount.id.is_empty() { "default" } else { &mount.id };
        let info = Required { required: mount.required, lines: place.lines };
        self.stages[place.stage].captured.ssh.entry(id.to_owned()).or_insert(info);
        Ok(Ssh {
            id: mount.id.clone(),
            target: mount.target.clone(),
            optional: !mount.required,
            uid: mount.uid.unwrap_or(0),
            gid: mount.gid.unwrap_or(0),
            mode: mount.mode.unwrap_or(0o600),
        })
    }
}
