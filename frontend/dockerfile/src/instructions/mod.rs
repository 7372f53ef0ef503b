//! From nodes to typed instructions: the instruction phase.
//!
//! Every instruction's file says which flags and arguments it takes. ARGs before the first FROM
//! are global; each FROM opens a [`Stage`] and takes the instructions up to the next.
//!
//! Source: Dockerfile notes §7. Invariant: an [`Instruction`] is complete; nothing of its syntax
//! is looked at again later, except mount values, which may hold variables.

pub mod copy;
pub mod device;
mod flags;
mod from;
mod healthcheck;
pub mod mount;
mod run;
mod simple;

use crate::error::{Case, Error, Kind, Lines, Result};
use crate::lint::{Linter, Rule, Scope};
use crate::parser::{File, Node};
use crate::text;

pub use copy::{Add, Copy, InlineFile, Sources};
pub use flags::Flags;
pub use healthcheck::Healthcheck;
pub use run::{Network, Run, Security};
pub use simple::{Arg, CommandLine, KeyValue};

/// All instruction words.
pub const WORDS: &[&str] = &[
    "ADD",
    "ARG",
    "CMD",
    "COPY",
    "ENTRYPOINT",
    "ENV",
    "EXPOSE",
    "FROM",
    "HEALTHCHECK",
    "LABEL",
    "MAINTAINER",
    "ONBUILD",
    "RUN",
    "SHELL",
    "STOPSIGNAL",
    "USER",
    "VOLUME",
    "WORKDIR",
];

/// A Dockerfile after the instruction phase.
#[derive(Debug, Clone, Default)]
pub struct Program {
    /// ARG instructions before the first FROM.
    pub globals: Vec<Instruction>,
    /// Stages in order.
    pub stages: Vec<Stage>,
}

/// FROM and what follows up to the next one.
#[derive(Debug, Clone, Default)]
pub struct Stage {
    /// Its name in lower case, or empty.
    pub name: String,
    /// Base stage or image, unexpanded.
    pub base: String,
    /// `--platform`, unexpanded.
    pub platform: String,
    /// The word FROM as written.
    pub word: String,
    /// The FROM instruction as written.
    pub code: String,
    /// Description taken from the comment above.
    pub description: String,
    /// Where FROM stands.
    pub lines: Lines,
    /// The comment block above.
    pub comments: Vec<String>,
    /// What follows.
    pub instructions: Vec<Instruction>,
}

/// An instruction inside a stage, or a global ARG.
#[derive(Debug, Clone)]
pub struct Instruction {
    /// The instruction word as written.
    pub word: String,
    /// The instruction as written, continuations joined.
    pub code: String,
    /// Where it stands.
    pub lines: Lines,
    /// The comment block above.
    pub comments: Vec<String>,
    /// What it says.
    pub command: Command,
}

/// What an instruction says.
#[derive(Debug, Clone)]
#[allow(missing_docs)]
pub enum Command {
    Add(Add),
    Arg(Vec<Arg>),
    Cmd(CommandLine),
    Copy(Copy),
    Entrypoint(CommandLine),
    Env(Vec<KeyValue>),
    Expose(Vec<String>),
    Healthcheck(Healthcheck),
    Label(Vec<KeyValue>),
    Maintainer(String),
    Onbuild(String),
    Run(Run),
    Shell(Vec<String>),
    Stopsignal(String),
    User(String),
    Volume(Vec<String>),
    Workdir(String),
}

enum Parsed {
    Stage(Stage),
    Command(Command),
}

/// Reads all instructions of a file.
pub fn parse(file: &File, linter: &mut Linter) -> Result<Program> {
    let mut program = Program::default();
    for node in &file.nodes {
        let words = || format!("dockerfile parse error on line {}", node.lines.first);
        let add = |error: Error| error.at(node.lines).context(words());
        match parse_node(node, linter).map_err(add)? {
            Parsed::Stage(stage) => program.stages.push(stage),
            Parsed::Command(command) => {
                let instruction = Instruction::new(node, command);
                match program.stages.last_mut() {
                    Some(stage) => stage.instructions.push(instruction),
                    None if matches!(instruction.command, Command::Arg(_)) => {
                        program.globals.push(instruction);
                    }
                    None => return Err(Error::plain(Kind::NoCurrentStage).at(node.lines)),
                }
            }
        }
    }
    Ok(program)
}

/// Reads one instruction that is not FROM, as an ONBUILD trigger is.
pub fn parse_trigger(node: &Node) -> Result<Instruction> {
    match parse_node(node, &mut Linter::silent()).map_err(|error| error.at(node.lines))? {
        Parsed::Command(command) => Ok(Instruction::new(node, command)),
        Parsed::Stage(_) => Err(Error::new(Kind::OnbuildForbidden, ["FROM"]).at(node.lines)),
    }
}

impl Instruction {
    fn new(node: &Node, command: Command) -> Self {
        Self {
            word: node.word.clone(),
            code: node.original.trim().to_owned(),
            lines: node.lines,
            comments: node.comments.clone(),
            command,
        }
    }
}

fn parse_node(node: &Node, linter: &mut Linter) -> Result<Parsed> {
    let scope = linter.scope(&node.comments);
    let command = match text::lower(&node.word).as_str() {
        "from" => return from::parse(node, &scope, linter).map(Parsed::Stage),
        "add" => Command::Add(copy::parse_add(node)?),
        "arg" => Command::Arg(simple::arg(node, &scope, linter)?),
        "cmd" => Command::Cmd(simple::command_line(node)?),
        "copy" => Command::Copy(copy::parse_copy(node)?),
        "entrypoint" => Command::Entrypoint(simple::command_line(node)?),
        "env" => Command::Env(simple::key_values(node, "ENV")?),
        "expose" => Command::Expose(simple::expose(node)?),
        "healthcheck" => Command::Healthcheck(healthcheck::parse(node)?),
        "label" => Command::Label(simple::key_values(node, "LABEL")?),
        "maintainer" => {
            let message = "Maintainer instruction is deprecated in favor of using label".to_owned();
            linter.report(&scope, Rule::MaintainerDeprecated, node.lines, message);
            Command::Maintainer(simple::one(node, "MAINTAINER", true)?)
        }
        "onbuild" => Command::Onbuild(simple::onbuild(node)?),
        "run" => Command::Run(run::parse(node)?),
        "shell" => Command::Shell(simple::shell(node)?),
        "stopsignal" => Command::Stopsignal(simple::one(node, "STOPSIGNAL", false)?),
        "user" => Command::User(simple::one(node, "USER", true)?),
        "volume" => Command::Volume(simple::volume(node)?),
        "workdir" => Command::Workdir(simple::one(node, "WORKDIR", true)?),
        _ => {
            return Err(Error::new(Kind::UnknownInstruction, [&node.word]).suggest(
                &node.word,
                WORDS.iter().copied(),
                Case::Insensitive,
            ));
        }
    };
    Ok(Parsed::Command(command))
}

/// The description of `name` in the comment block above its definition.
fn description(comments: &[String], name: &str) -> String {
    if name.is_empty() {
        return String::new();
    }
    let text = |comment: &String| Some(comment.strip_prefix(name)?.strip_prefix(' ')?.to_owned());
    comments.iter().find_map(text).unwrap_or_default()
}

/// Reports a comment above a definition that does not describe it.
fn check_description(word: &str, names: &[&str], node: &Node, scope: &Scope, linter: &mut Linter) {
    let (Some(last), [first, more @ ..]) = (node.comments.last(), names) else { return };
    let start = last.split(' ').next().unwrap_or_default();
    if names.contains(&start) {
        return;
    }
    let example = if more.is_empty() { first } else { "<arg_key>" };
    let message =
        format!("Comment for {word} should follow the format: `# {example} <description>`");
    linter.report(scope, Rule::InvalidDefinitionDescription, node.lines, message);
}

#[cfg(test)]
mod tests;
