//! Further processes in running containers.

use std::sync::Arc;

use bytes::Bytes;
use executor::{Event, ExecError, Hooks, Io};
use frontend_api::{Code, FrontendError};
use proto::rbuild::v1 as wire;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::{
    Container, Exit, Runner, StartFailure, ended,
    relay::{Sink, relay},
};
use crate::failure;

/// A process that runs in a container.
pub struct Exec {
    /// Its output: stream and bytes. Closed when there will be no more.
    pub output: mpsc::Receiver<(u8, Bytes)>,
    /// Signals and sizes.
    pub events: mpsc::Sender<Event>,
    /// Bytes for its standard input, `None` for the end.
    pub stdin: mpsc::Sender<Option<Bytes>>,
    /// How it ends.
    pub exit: oneshot::Receiver<Exit>,
}

impl Runner {
    /// Starts a process; returns when it runs. It goes on when [`Exec`] is dropped.
    pub async fn exec(
        &self,
        container: &Arc<Container>,
        request: wire::ExecStart,
    ) -> Result<Exec, StartFailure> {
        if !container.is_running() {
            return Err(FrontendError::with_code(
                Code::FailedPrecondition,
                format!("container {} is not running", container.name()),
            )
            .into());
        }
        if request.args.is_empty() {
            return Err(FrontendError::with_code(
                Code::InvalidArgument,
                "no exec command specified",
            )
            .into());
        }
        let first = container.process();
        let pick = |asked: String, own: &str| if asked.is_empty() { own.to_owned() } else { asked };
        let mut env = first.env.clone();
        if request.tty {
            env.push("TERM=xterm".into());
        }
        env.extend(request.env);
        let process = executor::Process {
            args: request.args,
            env: executor::env::unique(&env),
            cwd: pick(request.workdir, &first.cwd),
            user: pick(request.user, &first.user),
            rlimits: first.rlimits.clone(),
            terminal: request.tty,
        };
        let (mut io, pipes) =
            Io::piped().map_err(|error| failure::internal("make pipes for a process", error))?;
        let input = request.stdin;
        if !input && !request.tty {
            io.stdin = None;
        }
        let (started, has_started) = oneshot::channel();
        let (events, events_out) = mpsc::channel(16);
        let (stdin, stdin_out) = mpsc::channel(16);
        let (sink, output) = mpsc::channel::<(u8, Bytes)>(64);
        let (exit_in, mut exit) = oneshot::channel();
        let hooks = Hooks {
            started: Some(started),
            events: Some(events_out),
            cancel: CancellationToken::new(),
        };
        let executor = self.engine.machine().executor.clone();
        let (id, tty) = (container.id.clone(), request.tty);
        tokio::spawn(async move {
            let relayed = relay(pipes, stdin_out, input, tty, Sink::Follower(sink));
            let (outcome, ()) = tokio::join!(executor.exec(&id, process, io, hooks), relayed);
            _ = exit_in.send(ended(outcome.map_err(|error| match error {
                ExecError::NotRunning(_) => ExecError::Cancelled,
                error => error,
            })));
        });
        if has_started.await.is_err() {
            let failed = (&mut exit).await;
            let exit = failed.map_err(|_| failure::internal("start a process", "it vanished"))?;
            return Err(StartFailure::of(&exit, "OCI runtime exec failed"));
        }
        Ok(Exec { output, events, stdin, exit })
    }
}
