//! Mounts that show no tree of the graph: kept folders, memory, secrets, agents.
//!
//! The same for build steps and for the containers of frontends. What a [`Ready`] keeps has to live
//! until the process has ended. Source: LLB notes §4.3 and §4.4. Invariant: a secret's bytes are only
//! ever in memory.

use std::{collections::HashMap, path::PathBuf, sync::Arc};

use executor::{Mount, MountOptions, MountSource, Secret};
use llb::pb;
use session::Group;
use snapshot::Tree;
use store::{MutRef, Ref};
use tokio_util::sync::CancellationToken;

use super::run::descriptor;
use crate::{Machine, OpError, cache_mount::Wanted};

/// A mount made ready; none if an optional part of it is not there.
#[derive(Default)]
pub struct Ready {
    /// What the executor is given.
    pub mount: Option<Mount>,
    /// The folder behind it, if it is one that others may look into.
    pub tree: Option<Tree>,
    /// Keeps its data alive.
    pub keep: Vec<Box<dyn Send + Sync>>,
}

/// Prepares the mounts of one container.
pub struct Mounter<'a> {
    machine: &'a Machine,
    sessions: &'a Group,
    cancelled: &'a CancellationToken,
    /// Of this container, by what tells them apart: two mounts of one folder share it.
    caches: HashMap<String, Arc<MutRef>>,
}

impl<'a> Mounter<'a> {
    /// For one container; `cancelled` ends waiting for a locked folder.
    pub fn new(
        machine: &'a Machine,
        sessions: &'a Group,
        cancelled: &'a CancellationToken,
    ) -> Self {
        Self { machine, sessions, cancelled, caches: HashMap::new() }
    }

    /// A folder kept between runs, starting as `input`.
    pub async fn cache(
        &mut self,
        mount: &pb::Mount,
        dest: String,
        input: Option<&Ref>,
        user: &str,
    ) -> Result<Ready, OpError> {
        let options = mount
            .cache_opt
            .as_ref()
            .ok_or_else(|| OpError::invalid("missing cache mount options"))?;
        let sharing = pb::CacheSharingOpt::try_from(options.sharing)
            .map_err(|_| OpError::invalid("invalid cache sharing option"))?;
        let id = if options.id.is_empty() { dest.as_str() } else { options.id.as_str() };
        let label = if options.id.is_empty() {
            String::new()
        } else {
            format!(" with id {:?}", options.id)
        };
        let wanted = Wanted {
            id,
            input,
            sharing,
            description: format!("cached mount {} from {user}{label}", mount.dest),
        };
        let key = format!("{id}\0{:?}", mount.input);
        let folder = match self.caches.get(&key) {
            Some(folder) => folder.clone(),
            None => self.machine.cache_mounts.take(wanted, self.cancelled).await?,
        };
        self.caches.insert(key, folder.clone());
        let tree = folder.tree()?;
        let source = MountSource::Tree { tree: descriptor(&tree)?, path: mount.selector.clone() };
        let (readonly, options) = (mount.readonly, MountOptions::default());
        Ok(Ready {
            mount: Some(Mount { dest, source, readonly, options }),
            tree: Some(tree.clone()),
            keep: vec![Box::new(tree), Box::new(folder)],
        })
    }

    /// A folder in memory.
    pub fn memory(mount: &pb::Mount, dest: String) -> Ready {
        let size = mount.tmpfs_opt.as_ref().and_then(|tmpfs| u64::try_from(tmpfs.size).ok());
        let source = MountSource::Tmpfs { size: size.filter(|size| *size > 0) };
        let options = MountOptions { nosuid: true, ..MountOptions::default() };
        let mount = Mount { dest, source, readonly: mount.readonly, options };
        Ready { mount: Some(mount), ..Ready::default() }
    }

    /// A file with a client's secret.
    pub async fn secret(&self, mount: &pb::Mount, dest: String) -> Result<Ready, OpError> {
        let options = mount
            .secret_opt
            .as_ref()
            .ok_or_else(|| OpError::invalid("invalid secret mount options"))?;
        if options.id.is_empty() {
            return Err(OpError::invalid("secret ID missing from mount options"));
        }
        let Some(data) = secret(self.sessions, &options.id, options.optional).await? else {
            return Ok(Ready::default());
        };
        let mode = options.mode & 0o777;
        let source =
            MountSource::File { data: Secret(data), uid: options.uid, gid: options.gid, mode };
        let options = MountOptions { nosuid: true, nodev: true, noexec: mode & 0o111 == 0 };
        let mount = Mount { dest, source, readonly: true, options };
        Ok(Ready { mount: Some(mount), ..Ready::default() })
    }

    /// A socket that leads to a client's agent.
    pub async fn agent(&self, mount: &pb::Mount, dest: String) -> Result<Ready, OpError> {
        let options =
            mount.ssh_opt.as_ref().ok_or_else(|| OpError::invalid("invalid ssh mount options"))?;
        let id = options.id.clone();
        let found = self
            .sessions
            .any(|session| {
                let id = id.clone();
                async move { session.check_agent(&id).await.map(|()| session) }
            })
            .await;
        let session = match found {
            Ok(session) => session,
            Err(_) if options.optional => return Ok(Ready::default()),
            Err(session::SessionError::Status(status))
                if status.code() == tonic::Code::Unimplemented =>
            {
                return Err(OpError::invalid(format!(
                    "no SSH key {id:?} forwarded from the client"
                )));
            }
            Err(error) => return Err(error.into()),
        };
        let folder = tempfile::Builder::new()
            .prefix("agent-")
            .tempdir_in(&self.machine.config.run_folder)
            .map_err(|error| {
                OpError::invalid(format!("make a folder for the agent's socket: {error}"))
            })?;
        let rights =
            session::AgentSocketOptions { uid: options.uid, gid: options.gid, mode: options.mode };
        let socket = session::AgentSocket::listen(folder.path(), session, &id, rights)?;
        let source = MountSource::HostPath(PathBuf::from(socket.path()));
        let (readonly, options) = (false, MountOptions::default());
        Ok(Ready {
            mount: Some(Mount { dest, source, readonly, options }),
            tree: None,
            keep: vec![Box::new(socket), Box::new(folder)],
        })
    }
}

/// A client's secret; none if it is optional and nobody has it.
pub async fn secret(
    sessions: &Group,
    id: &str,
    optional: bool,
) -> Result<Option<bytes::Bytes>, OpError> {
    match sessions.secret(id).await {
        Ok(Some(data)) => Ok(Some(data)),
        Ok(None) if optional => Ok(None),
        Err(session::SessionError::NoSessions) if optional => Ok(None),
        Ok(None) => Err(OpError::invalid(format!("secret {id}: not found"))),
        Err(error) => Err(error.into()),
    }
}

/// The variables that secrets become.
pub async fn secret_env(
    sessions: &Group,
    wanted: &[pb::SecretEnv],
) -> Result<Vec<(String, String)>, OpError> {
    let mut secrets = Vec::with_capacity(wanted.len());
    for env in wanted {
        if env.id.is_empty() || env.name.is_empty() {
            return Err(OpError::invalid("secret environment variable needs an id and a name"));
        }
        let value = secret(sessions, &env.id, env.optional).await?.unwrap_or_default();
        secrets.push((env.name.clone(), String::from_utf8_lossy(&value).into_owned()));
    }
    Ok(secrets)
}
