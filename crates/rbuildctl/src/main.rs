//! `rbuildctl`: builds images and looks after a daemon's images, containers and caches.
//!
//! Every command is one file below `commands`; it gets a connected [`client::Client`] and prints
//! what docker's or buildctl's command of the same name prints. Errors end here, in one place,
//! together with the exit status.

mod build;
mod commands;
mod connection;
mod csv;
mod format;
mod table;
mod text;

use std::process::ExitCode;

use clap::{Parser, Subcommand, error::ErrorKind};
use client::ClientError;

use connection::ConnectionArgs;

/// Exit status for a command that cannot be understood, as docker's.
const WRONG_USAGE: u8 = 125;

/// Builds container images; talks to rbuildd or any daemon with BuildKit's interface.
#[derive(Parser)]
#[command(name = "rbuildctl", version, propagate_version = true, max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    connection: ConnectionArgs,
    /// Print details of errors and warnings
    #[arg(long, short = 'D', global = true)]
    debug: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    #[command(visible_alias = "b")]
    Build(Box<build::BuildArgs>),
    Images(commands::images::ImagesArgs),
    Pull(commands::transfer::PullArgs),
    Push(commands::transfer::PushArgs),
    Tag(commands::images::TagArgs),
    Rmi(commands::images::RmiArgs),
    Inspect(commands::inspect::InspectArgs),
    History(commands::inspect::HistoryArgs),
    Save(commands::archive::SaveArgs),
    Load(commands::archive::LoadArgs),
    Login(commands::login::LoginArgs),
    Logout(commands::login::LogoutArgs),
    #[command(subcommand)]
    Imagetools(commands::imagetools::ImagetoolsCommand),
    Run(Box<commands::run::RunArgs>),
    Create(Box<commands::run::CreateArgs>),
    Start(commands::run::StartArgs),
    Attach(commands::run::AttachArgs),
    Exec(commands::run::ExecArgs),
    Ps(commands::containers::PsArgs),
    Logs(commands::containers::LogsArgs),
    Stop(commands::containers::StopArgs),
    /// Stop containers and start them again
    Restart(commands::containers::StopArgs),
    Kill(commands::containers::KillArgs),
    Rm(commands::containers::RmArgs),
    Wait(commands::containers::WaitArgs),
    Port(commands::containers::PortArgs),
    Rename(commands::containers::RenameArgs),
    Cp(commands::cp::CpArgs),
    #[command(subcommand)]
    Volume(commands::volume::VolumeCommand),
    /// Manage images
    #[command(subcommand)]
    Image(ImageCommand),
    /// Manage containers
    #[command(subcommand)]
    Container(ContainerCommand),
    Du(commands::du::DuArgs),
    Prune(commands::prune::PruneArgs),
    #[command(subcommand)]
    System(commands::system::SystemCommand),
    #[command(subcommand)]
    Builder(commands::system::BuilderCommand),
    Info(commands::debug::InfoArgs),
    Version(commands::system::VersionArgs),
    Verify(commands::verify::VerifyArgs),
    PruneHistories(commands::prune::PruneHistoriesArgs),
    /// Look into the daemon
    #[command(subcommand)]
    Debug(commands::debug::DebugCommand),
    #[command(hide = true)]
    DialStdio(commands::dial_stdio::DialStdioArgs),
    Completion(commands::completion::CompletionArgs),
    #[command(external_subcommand)]
    Unknown(Vec<String>),
}

/// The same commands under docker's longer names.
#[derive(Subcommand)]
enum ImageCommand {
    #[command(visible_alias = "list")]
    Ls(commands::images::ImagesArgs),
    Pull(commands::transfer::PullArgs),
    Push(commands::transfer::PushArgs),
    Tag(commands::images::TagArgs),
    #[command(visible_alias = "remove")]
    Rm(commands::images::RmiArgs),
    Inspect(commands::inspect::InspectArgs),
    History(commands::inspect::HistoryArgs),
    Save(commands::archive::SaveArgs),
    Load(commands::archive::LoadArgs),
    Prune(commands::images::ImagePruneArgs),
}

/// The same commands under docker's longer names.
#[derive(Subcommand)]
enum ContainerCommand {
    #[command(visible_aliases = ["list", "ps"])]
    Ls(commands::containers::PsArgs),
    Run(Box<commands::run::RunArgs>),
    Create(Box<commands::run::CreateArgs>),
    Start(commands::run::StartArgs),
    Attach(commands::run::AttachArgs),
    Exec(commands::run::ExecArgs),
    Logs(commands::containers::LogsArgs),
    Stop(commands::containers::StopArgs),
    /// Stop containers and start them again
    Restart(commands::containers::StopArgs),
    Kill(commands::containers::KillArgs),
    #[command(visible_alias = "remove")]
    Rm(commands::containers::RmArgs),
    Wait(commands::containers::WaitArgs),
    Port(commands::containers::PortArgs),
    Rename(commands::containers::RenameArgs),
    Cp(commands::cp::CpArgs),
    Inspect(commands::inspect::InspectArgs),
    Prune(commands::containers::ContainerPruneArgs),
}

impl ImageCommand {
    async fn run(self, connection: &ConnectionArgs) -> anyhow::Result<ExitCode> {
        match self {
            Self::Ls(args) => args.run(connection).await,
            Self::Pull(args) => args.run(connection).await,
            Self::Push(args) => args.run(connection).await,
            Self::Tag(args) => args.run(connection).await,
            Self::Rm(args) => args.run(connection).await,
            Self::Inspect(args) => args.run_image(connection).await,
            Self::History(args) => args.run(connection).await,
            Self::Save(args) => args.run(connection).await,
            Self::Load(args) => args.run(connection).await,
            Self::Prune(args) => args.run(connection).await,
        }
    }
}

impl ContainerCommand {
    async fn run(self, connection: &ConnectionArgs) -> anyhow::Result<ExitCode> {
        match self {
            Self::Ls(args) => args.run(connection).await,
            Self::Run(args) => args.run(connection).await,
            Self::Create(args) => args.run(connection).await,
            Self::Start(args) => args.run(connection).await,
            Self::Attach(args) => args.run(connection).await,
            Self::Exec(args) => args.run(connection).await,
            Self::Logs(args) => args.run(connection).await,
            Self::Stop(args) => args.run(connection).await,
            Self::Restart(args) => args.restart(connection).await,
            Self::Kill(args) => args.run(connection).await,
            Self::Rm(args) => args.run(connection).await,
            Self::Wait(args) => args.run(connection).await,
            Self::Port(args) => args.run(connection).await,
            Self::Rename(args) => args.run(connection).await,
            Self::Cp(args) => args.run(connection).await,
            Self::Inspect(args) => args.run_container(connection).await,
            Self::Prune(args) => args.run(connection).await,
        }
    }
}

/// Ends quietly when who reads our output has gone, as `rbuildctl images | head -1` does. The
/// signal for that stays ignored: it would also come from a daemon that goes away.
fn end_with_the_reader() {
    let others = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let text = panic.payload().downcast_ref::<String>().map_or("", String::as_str);
        if text.starts_with("failed printing to std") && text.contains("Broken pipe") {
            // What a shell makes of SIGPIPE.
            std::process::exit(128 + 13);
        }
        others(panic);
    }));
}

fn main() -> ExitCode {
    end_with_the_reader();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
                // A group of commands alone tells what is in it, as everywhere.
                print!("{}", error.render());
                return ExitCode::SUCCESS;
            }
            _ = error.print();
            // Help was asked for, or the command was typed wrong: docker's status for that.
            return ExitCode::from(if error.use_stderr() { WRONG_USAGE } else { 0 });
        }
    };
    let debug = cli.debug;
    init_logging(debug);
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return report(&error.into(), debug),
    };
    let result = runtime.block_on(run(cli));
    // Reads of standard input cannot be cancelled; leaving must not wait for them.
    runtime.shutdown_background();
    match result {
        Ok(code) => code,
        Err(error) => report(&error, debug),
    }
}

async fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let connection = cli.connection;
    match cli.command {
        Command::Build(args) => build::run(*args, &connection, cli.debug).await,
        Command::Images(args) => args.run(&connection).await,
        Command::Pull(args) => args.run(&connection).await,
        Command::Push(args) => args.run(&connection).await,
        Command::Tag(args) => args.run(&connection).await,
        Command::Rmi(args) => args.run(&connection).await,
        Command::Inspect(args) => args.run(&connection).await,
        Command::History(args) => args.run(&connection).await,
        Command::Save(args) => args.run(&connection).await,
        Command::Load(args) => args.run(&connection).await,
        Command::Login(args) => args.run(&connection).await,
        Command::Logout(args) => args.run().await,
        Command::Imagetools(command) => command.run(&connection).await,
        Command::Run(args) => args.run(&connection).await,
        Command::Create(args) => args.run(&connection).await,
        Command::Start(args) => args.run(&connection).await,
        Command::Attach(args) => args.run(&connection).await,
        Command::Exec(args) => args.run(&connection).await,
        Command::Ps(args) => args.run(&connection).await,
        Command::Logs(args) => args.run(&connection).await,
        Command::Stop(args) => args.run(&connection).await,
        Command::Restart(args) => args.restart(&connection).await,
        Command::Kill(args) => args.run(&connection).await,
        Command::Rm(args) => args.run(&connection).await,
        Command::Wait(args) => args.run(&connection).await,
        Command::Port(args) => args.run(&connection).await,
        Command::Rename(args) => args.run(&connection).await,
        Command::Cp(args) => args.run(&connection).await,
        Command::Volume(command) => command.run(&connection).await,
        Command::Image(command) => command.run(&connection).await,
        Command::Container(command) => command.run(&connection).await,
        Command::Du(args) => args.run(&connection).await,
        Command::Prune(args) => args.run(&connection).await,
        Command::System(command) => command.run(&connection).await,
        Command::Builder(command) => command.run(&connection, cli.debug).await,
        Command::Info(args) => args.run(&connection).await,
        Command::Version(args) => args.run(&connection).await,
        Command::Verify(args) => args.run(&connection).await,
        Command::PruneHistories(args) => args.run(&connection).await,
        Command::Debug(command) => command.run(&connection).await,
        Command::DialStdio(args) => args.run(&connection).await,
        Command::Completion(args) => args.run::<Cli>(),
        Command::Unknown(words) => commands::unknown::run(&words),
    }
}

fn init_logging(debug: bool) {
    let level = if debug { "debug,h2=info,hyper=info,tower=info" } else { "warn" };
    let filter = tracing_subscriber::EnvFilter::try_from_env("RBUILD_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(level));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
}

/// Prints source excerpts, then the message; the exit status tells scripts the kind of failure.
fn report(error: &anyhow::Error, debug: bool) -> ExitCode {
    let client = error.chain().find_map(|cause| cause.downcast_ref::<ClientError>());
    if let Some(client) = client {
        eprint!("{}", client.source_excerpts());
        for detail in client.as_rpc().into_iter().flat_map(|rpc| &rpc.details) {
            match detail {
                client::Detail::Policy(messages) => {
                    messages.iter().for_each(|message| eprintln!("policy deny: {message}"));
                }
                client::Detail::Other { type_url, value } if debug => {
                    eprintln!("detail {type_url}: {}", String::from_utf8_lossy(value));
                }
                _ => {}
            }
        }
    }
    eprintln!("error: {error:#}");
    ExitCode::from(client.map_or(1, ClientError::exit_code))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    #[test]
    fn flags_do_not_collide() {
        super::Cli::command().debug_assert();
    }
}
