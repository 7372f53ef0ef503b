//! A fake executor for tests: answers from a closure, runs nothing.
//!
//! The closure gets every spec and decides exit and output; processes of `exec` see the spec of
//! their container with the process replaced. It keeps the contract of [`Executor`]: `exec` and
//! `network` know only containers that are running, ids are unique, cancelling wins.

use std::{
    collections::HashMap,
    io::Write as _,
    sync::{Arc, Mutex},
};

use async_trait::async_trait;

use crate::{ExecError, Executor, Exit, Hooks, Io, Process, Spec, net::NetNs};

/// What a scripted process does.
#[derive(Debug, Clone, Default)]
pub struct Script {
    /// Written to its output.
    pub stdout: Vec<u8>,
    /// Written to its errors.
    pub stderr: Vec<u8>,
    /// How it ends.
    pub exit: Exit,
    /// Run until cancelled.
    pub forever: bool,
}

type Answer = dyn Fn(&Spec) -> Result<Script, ExecError> + Send + Sync;

/// The fake executor.
#[derive(Clone)]
pub struct Scripted {
    answer: Arc<Answer>,
    running: Arc<Mutex<HashMap<String, Spec>>>,
}

impl Scripted {
    /// An executor whose processes do what `answer` says.
    pub fn new(
        answer: impl Fn(&Spec) -> Result<Script, ExecError> + Send + Sync + 'static,
    ) -> Self {
        Self { answer: Arc::new(answer), running: Arc::default() }
    }

    async fn play(&self, spec: &Spec, io: Io, hooks: Hooks) -> Result<Exit, ExecError> {
        let script = (self.answer)(spec)?;
        if hooks.cancel.is_cancelled() {
            return Err(ExecError::Cancelled);
        }
        if let Some(started) = hooks.started {
            let own = rustix::process::pidfd_open(
                rustix::process::getpid(),
                rustix::process::PidfdFlags::empty(),
            )
            .map_err(|error| ExecError::setup("open the process's own descriptor", error))?;
            _ = started.send(crate::Started { pidfd: Arc::new(own) });
        }
        let Io { stdout, stderr, stdin: _ } = io;
        let write = move || {
            for (fd, data) in [(stdout, script.stdout), (stderr, script.stderr)] {
                if let Some(fd) = fd {
                    // A reader that went away is no failure of the process.
                    _ = std::fs::File::from(fd).write_all(&data);
                }
            }
        };
        let written = tokio::task::spawn_blocking(write);
        if script.forever {
            hooks.cancel.cancelled().await;
        }
        tokio::select! {
            _ = hooks.cancel.cancelled() => Err(ExecError::Cancelled),
            _ = written => Ok(script.exit),
        }
    }
}

#[async_trait]
impl Executor for Scripted {
    async fn run(&self, spec: Spec, io: Io, hooks: Hooks) -> Result<Exit, ExecError> {
        {
            let mut running = self.running.lock().expect("no panic while the lock is held");
            if running.contains_key(&spec.id) {
                return Err(ExecError::AlreadyRunning(spec.id));
            }
            running.insert(spec.id.clone(), spec.clone());
        }
        let result = self.play(&spec, io, hooks).await;
        self.running.lock().expect("no panic while the lock is held").remove(&spec.id);
        result
    }

    async fn exec(
        &self,
        container: &str,
        process: Process,
        io: Io,
        hooks: Hooks,
    ) -> Result<Exit, ExecError> {
        let spec = self
            .running
            .lock()
            .expect("no panic while the lock is held")
            .get(container)
            .cloned()
            .ok_or_else(|| ExecError::NotRunning(container.to_owned()))?;
        self.play(&Spec { process, ..spec }, io, hooks).await
    }

    fn network(&self, container: &str) -> Result<NetNs, ExecError> {
        Err(ExecError::NotRunning(container.to_owned()))
    }
}
