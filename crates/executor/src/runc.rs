//! The OCI runtime driver.
use crate::*;

/// Settings of the OCI runtime driver.
#[derive(Debug, Clone, Default)]
pub struct RuncConfig {
    /// Path of the runtime, such as `/usr/bin/runc`.
    pub binary: std::path::PathBuf,
    /// Folder for bundles and the runtime's state.
    pub state: std::path::PathBuf,
    /// Parent of control groups of specs that name none.
    pub default_cgroup_parent: Option<String>,
}

/// Runs containers with `runc` or `crun`.
#[derive(Debug, Clone)]
pub struct Runc {}

impl Runc {
    /// A driver that starts the runtime through this launcher.
    pub fn new(_launcher: launcher::Launcher, _config: RuncConfig) -> Self {
        unreachable!("not built yet")
    }
}

#[async_trait]
impl Executor for Runc {
    async fn run(&self, _spec: Spec, _io: Io, _hooks: Hooks) -> Result<Exit, ExecError> {
        unreachable!("not built yet")
    }
    async fn exec(&self, _: &str, _: Process, _: Io, _: Hooks) -> Result<Exit, ExecError> {
        unreachable!("not built yet")
    }
    fn network(&self, _: &str) -> Result<net::NetNs, ExecError> {
        unreachable!("not built yet")
    }
}
