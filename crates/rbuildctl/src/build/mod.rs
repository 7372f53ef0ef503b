//! The `build` command: docker's form and buildctl's form in one.
//!
//! `--frontend`, or a graph piped in without a context, selects buildctl's form; a context selects
//! docker's. Both end in one [`client::BuildRequest`]. A flag of one form used with the other is an
//! error that names the flag to use instead: nothing is silently ignored.

mod args;
mod buildctl;
mod call;
mod context;
mod docker;
mod execute;
mod output;
mod parse;
mod reproduce;

use std::{io::IsTerminal as _, process::ExitCode};

use anyhow::bail;

pub use args::BuildArgs;

use crate::connection::ConnectionArgs;

/// Runs the command.
pub async fn run(
    args: BuildArgs,
    connection: &ConnectionArgs,
    debug: bool,
) -> anyhow::Result<ExitCode> {
    args.refuse_unsupported()?;
    if args.frontend.is_none() && args.context.is_some() {
        args.refuse_buildctl_flags()?;
        return docker::run(args, connection, debug).await;
    }
    if let (Some(_), Some(context)) = (&args.frontend, &args.context) {
        bail!("--frontend takes no context argument: use --local context={context}");
    }
    if args.frontend.is_none() && std::io::stdin().is_terminal() {
        bail!(
            "nothing to build: give a context folder (`rbuildctl build .`), a --frontend, \
             or pipe a graph to standard input"
        );
    }
    args.refuse_docker_flags()?;
    buildctl::run(args, connection, debug).await
}
