//! The native driver.
use crate::*;

/// Settings of the native driver.
#[derive(Debug, Clone, Default)]
pub struct NativeConfig {
    /// Parent of control groups of specs that name none.
    pub default_cgroup_parent: Option<String>,
    /// Make a control group for every container, even when it has no limits, for exact accounting.
    pub always_cgroup: bool,
}

/// Runs containers with our own launcher.
#[derive(Debug, Clone)]
pub struct Native {}

impl Native {
    /// A driver that uses this launcher.
    pub fn new(_launcher: launcher::Launcher, _config: NativeConfig) -> Self {
        unreachable!("not built yet")
    }
}

#[async_trait]
impl Executor for Native {
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
