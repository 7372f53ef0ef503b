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

use std::{ffi::OsString, process::ExitCode};

use clap::{
    ArgAction, CommandFactory as _, FromArgMatches as _, Parser, Subcommand, error::ErrorKind,
};
use client::ClientError;

use connection::ConnectionArgs;

/// Exit status for flags that cannot be understood, as docker's.
const WRONG_USAGE: u8 = 125;

/// Builds container images; talks to rbuildd or any daemon with BuildKit's interface.
#[derive(Parser)]
#[command(
    name = "rbuildctl",
    version,
    propagate_version = true,
    max_term_width = 100,
    args_override_self = true
)]
struct Cli {
    #[command(flatten)]
    connection: ConnectionArgs,
    /// Print details of errors and warnings
    #[arg(long, short = 'D', global = true)]
    debug: bool,
    /// How details are printed: text or json
    #[arg(long, global = true, value_name = "FORMAT", default_value = "text", hide = true)]
    log_format: LogFormat,
    #[command(subcommand)]
    command: Command,
}

/// How details of what this program does are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum LogFormat {
    Text,
    Json,
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
    Info(commands::info::InfoArgs),
    Version(commands::info::VersionArgs),
    Verify(commands::verify::VerifyArgs),
    PruneHistories(commands::histories::PruneHistoriesArgs),
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
    Build(Box<build::BuildArgs>),
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
    #[command(external_subcommand)]
    Unknown(Vec<String>),
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
    #[command(external_subcommand)]
    Unknown(Vec<String>),
}

impl ImageCommand {
    async fn run(self, connection: &ConnectionArgs, debug: bool) -> anyhow::Result<ExitCode> {
        match self {
            Self::Build(args) => build::run(*args, connection, debug).await,
            Self::Unknown(words) => commands::unknown::run(&words),
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
            Self::Unknown(words) => commands::unknown::run(&words),
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

/// The command line as docker reads it: switches take a value after `=`, and what follows a flag
/// that takes a value is its value, whatever it looks like. The help is better without.
fn as_docker(command: clap::Command) -> clap::Command {
    let command = command.mut_args(|arg| match arg.get_action() {
        ArgAction::SetTrue => arg
            .action(ArgAction::Set)
            .num_args(0..=1)
            .require_equals(true)
            .default_value("false")
            .default_missing_value("true")
            .value_parser(|text: &str| csv::parse_bool(text).ok_or("expected true or false")),
        ArgAction::Set | ArgAction::Append
            if !arg.is_positional() && !arg.is_require_equals_set() =>
        {
            arg.allow_hyphen_values(true)
        }
        _ => arg,
    });
    command.mut_subcommands(as_docker)
}

fn parse(words: Vec<OsString>) -> Result<Cli, clap::Error> {
    let error = match Cli::try_parse_from(&words) {
        Err(error) if error.use_stderr() => error,
        other => return other,
    };
    // Its own errors speak of a syntax that the help does not.
    let matches = as_docker(Cli::command()).try_get_matches_from(words);
    matches.and_then(|matches| Cli::from_arg_matches(&matches)).map_err(|_| error)
}

/// Docker's status for a line that is not understood, or for help: words that are missing or too
/// many are told apart from flags.
fn usage_code(error: &clap::Error) -> u8 {
    use clap::error::{ContextKind, ContextValue};
    match error.kind() {
        _ if !error.use_stderr() => 0,
        ErrorKind::MissingRequiredArgument
        | ErrorKind::TooFewValues
        | ErrorKind::WrongNumberOfValues
        | ErrorKind::InvalidSubcommand => 1,
        ErrorKind::UnknownArgument => match error.get(ContextKind::InvalidArg) {
            Some(ContextValue::String(word)) if !word.starts_with('-') => 1,
            _ => WRONG_USAGE,
        },
        _ => WRONG_USAGE,
    }
}

fn main() -> ExitCode {
    end_with_the_reader();
    let cli = match parse(std::env::args_os().collect()) {
        Ok(cli) => cli,
        Err(error) => {
            if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
                // A group of commands alone tells what is in it, as everywhere.
                print!("{}", error.render());
                return ExitCode::SUCCESS;
            }
            _ = error.print();
            return ExitCode::from(usage_code(&error));
        }
    };
    let debug = cli.debug;
    init_logging(debug, cli.log_format);
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
        Command::Image(command) => command.run(&connection, cli.debug).await,
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

fn init_logging(debug: bool, format: LogFormat) {
    let level = if debug { "debug,h2=info,hyper=info,tower=info" } else { "warn" };
    let filter = tracing_subscriber::EnvFilter::try_from_env("RBUILD_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(level));
    let logging = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        LogFormat::Text => logging.init(),
        LogFormat::Json => logging.json().init(),
    }
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
    use super::*;

    #[test]
    fn flags_do_not_collide() {
        Cli::command().debug_assert();
        as_docker(Cli::command()).debug_assert();
    }

    #[test]
    fn wrong_lines_have_dockers_status() {
        let code = |line: &str| {
            let words = std::iter::once("rbuildctl").chain(line.split(' '));
            usage_code(&parse(words.map(OsString::from).collect()).err().expect("a wrong line"))
        };
        assert_eq!(["run", "exec c", "tag a", "tag a b c", "volume fly"].map(code), [1; 5]);
        assert_eq!(["run --nope", "run --name", "rm --force=x a"].map(code), [125; 3]);
        assert_eq!(code("run --help"), 0);
    }

    /// What an argument of a command is after parsing `line`.
    fn check(line: &str, shown: impl Fn(&Command) -> Option<String>) -> String {
        let words = std::iter::once("rbuildctl").chain(line.split(' '));
        match parse(words.map(OsString::from).collect()) {
            Ok(cli) => shown(&cli.command).expect("the command that was typed"),
            Err(error) => error.to_string().lines().next().unwrap_or_default().to_owned(),
        }
    }

    #[test]
    fn lines_are_read_as_docker_reads_them() {
        let run = |line: &str| {
            check(line, |command| match command {
                Command::Run(args) => Some(args.gist()),
                _ => None,
            })
        };
        assert_eq!(run("run --rm --rm -i -i a"), "rm -i image=a");
        assert_eq!(run("run --name a --name b x -e y"), "name=b image=x [-e y]");
        assert_eq!(run("run -e A=1 -e B=2 x"), "env=A=1,B=2 image=x");
        assert_eq!(run("run --rm=false -it=false x"), "-i image=x");
        assert_eq!(
            run("run -d=true --rm=1 -e -x y --rm=false"),
            "-d rm env=-x image=y [--rm=false]"
        );
        assert_eq!(
            run("run --rm=maybe x"),
            "error: unexpected value 'maybe' for '--rm' found; no more were expected"
        );
        assert_eq!(run("run x --help -v -- --nope"), "image=x [--help -v -- --nope]");
        assert_eq!(run("run -i=0 x --help"), "image=x [--help]");
        assert_eq!(run("run --nope x"), "error: unexpected argument '--nope' found");
    }
}
