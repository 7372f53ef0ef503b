//! `completion`: scripts for shells.

use std::process::ExitCode;

use clap::{Args, CommandFactory};
use clap_complete::Shell;

/// Print a completion script, e.g. `source <(rbuildctl completion bash)`
#[derive(Args, Debug)]
pub struct CompletionArgs {
    /// Shell to write for
    shell: Shell,
}

impl CompletionArgs {
    /// Prints the script of the program `C`.
    pub fn run<C: CommandFactory>(&self) -> anyhow::Result<ExitCode> {
        clap_complete::generate(self.shell, &mut C::command(), "rbuildctl", &mut std::io::stdout());
        Ok(ExitCode::SUCCESS)
    }
}
