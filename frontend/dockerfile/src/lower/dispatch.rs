//! Walking through the instructions of a stage.
//!
//! Source: Dockerfile notes §6.5 and §9.5.

use std::collections::BTreeSet;

use super::Lowering;
use super::stage::{StageId, Step};
use crate::error::{Case, Error, Kind, Lines, Result};
use crate::instructions::{Command, Sources};
use crate::lint::{Rule, Scope};
use crate::shell::{Lexer, Variables};
use crate::{image, suggest, text};

/// Args that never become variables.
pub const SCAN_ARGS: [&str; 2] = ["BUILDKIT_SBOM_SCAN_CONTEXT", "BUILDKIT_SBOM_SCAN_STAGE"];

/// Where an instruction stands.
#[derive(Debug, Clone)]
pub struct Place {
    /// The stage.
    pub stage: StageId,
    /// Its lines.
    pub lines: Lines,
    /// What lint reports of it.
    pub scope: Scope,
    /// Its word as written.
    pub word: String,
    /// It as written.
    pub code: String,
}

impl Lowering<'_> {
    /// Turns a stage's instructions into operations.
    pub(super) fn dispatch_stage(&mut self, id: StageId) -> Result<()> {
        self.stages.inherit(id);
        let stage = &self.stages[id];
        // What is inherited is shared, but a long chain of stages still holds many shares.
        self.count(64 * (stage.state.env.len() + stage.image.history.len() + stage.args.len()))?;
        self.start_stage(id)?;
        for step in std::mem::take(&mut self.stages[id].steps) {
            let lines = step.instruction.lines;
            self.dispatch(id, &step).map_err(|error| error.at(lines))?;
            // The base's triggers are read from here when a later stage is resolved.
            self.stages[id].steps.push(step);
        }
        self.set_scans(id);
        Ok(())
    }

    fn start_stage(&mut self, id: StageId) -> Result<()> {
        let target = self.target.clone();
        let options = &self.client.options;
        let stage = &mut self.stages[id];
        stage.dispatched = true;
        let platform = stage.platform.get_or_insert(target);
        if platform.os != "windows" && !stage.image.config.has_env("PATH") {
            stage.image.config.env.push(format!("PATH={}", image::DEFAULT_PATH));
        }
        for entry in &stage.image.config.env {
            let (name, value) = entry.split_once('=').unwrap_or((entry, ""));
            stage.state.env.set(name, value);
        }
        if !options.hostname.is_empty() {
            stage.state.hostname = options.hostname.clone();
        }
        stage.state.network = options.network;
        stage.state.user = match stage.image.config.user.as_str() {
            "" => std::mem::take(&mut stage.state.user),
            user => user.to_owned(),
        };
        let dir = stage.image.config.working_dir.clone();
        if !dir.is_empty() {
            let lines = stage.source.lines;
            self.set_workdir(id, &dir).map_err(|error| error.at(lines))?;
        }
        Ok(())
    }

    fn set_scans(&mut self, id: StageId) {
        for name in SCAN_ARGS {
            let stage = &self.stages[id];
            let mut wanted = self.globals.get(name).is_some_and(|v| is_enabled(&stage.name, v));
            for arg in stage.args.iter().filter(|arg| arg.key == name) {
                if let Some(value) = &arg.value {
                    wanted = is_enabled(&stage.name, value);
                }
            }
            let stage = &mut self.stages[id];
            if wanted && name == SCAN_ARGS[0] {
                stage.scan_context = true;
            } else if wanted {
                stage.scan_stage = true;
            }
        }
    }

    fn dispatch(&mut self, id: StageId, step: &Step) -> Result<()> {
        let instruction = &step.instruction;
        self.stages[id].onbuild = step.onbuild;
        let place = Place {
            stage: id,
            lines: instruction.lines,
            scope: self.linter.scope(&instruction.comments),
            word: instruction.word.clone(),
            code: instruction.code.clone(),
        };
        match &instruction.command {
            Command::Add(add) => self.add(&place, add),
            Command::Arg(args) => self.arg(&place, args),
            Command::Cmd(line) => self.cmd(&place, line),
            Command::Copy(copy) => self.copy(&place, copy, step.sources.first().copied()),
            Command::Entrypoint(line) => self.entrypoint(&place, line),
            Command::Env(pairs) => self.env(&place, pairs),
            Command::Expose(ports) => self.expose(&place, ports),
            Command::Healthcheck(check) => self.healthcheck(&place, check),
            Command::Label(pairs) => self.label(&place, pairs),
            Command::Maintainer(name) => self.maintainer(&place, name),
            Command::Onbuild(trigger) => self.onbuild(&place, trigger),
            Command::Run(run) => self.run(&place, run, &step.sources),
            Command::Shell(shell) => self.shell(&place, shell),
            Command::Stopsignal(signal) => self.stopsignal(&place, signal),
            Command::User(user) => self.user(&place, user),
            Command::Volume(volumes) => self.volume(&place, volumes),
            Command::Workdir(dir) => self.workdir(&place, dir),
        }
    }

    /// Expands a word over the stage's variables.
    pub(super) fn expand(&mut self, place: &Place, word: &str) -> Result<String> {
        self.expand_with(self.lexer, place, word)
    }

    /// Expands inline content: quotes are ordinary and `\` is the escape character.
    pub(super) fn expand_raw(&mut self, place: &Place, content: &str) -> Result<String> {
        self.expand_with(Lexer { skip_quotes: true, ..Lexer::new('\\') }, place, content)
    }

    fn expand_with(&mut self, lexer: Lexer, place: &Place, word: &str) -> Result<String> {
        let special = |char| matches!(char, '$' | '\'' | '"') || char == lexer.escape;
        if word.is_ascii() && !word.contains(special) {
            return Ok(word.to_owned());
        }
        let env = &self.stages[place.stage].state.env;
        let (result, _, unmatched) = lexer.expand_all(word, env);
        self.report_unset(place, unmatched);
        let result = result?;
        self.count(result.len())?;
        Ok(result)
    }

    /// Expands what COPY and ADD have in common.
    pub(super) fn expand_sources(&mut self, place: &Place, sources: &Sources) -> Result<Sources> {
        let mut expanded = sources.clone();
        expanded.chown = self.expand(place, &sources.chown)?;
        expanded.chmod = self.expand(place, &sources.chmod)?;
        Ok(expanded)
    }

    /// Expands the paths and the inline content.
    pub(super) fn expand_paths(&mut self, place: &Place, sources: &mut Sources) -> Result<()> {
        for path in &mut sources.paths {
            *path = self.expand(place, path)?;
        }
        sources.destination = self.expand(place, &sources.destination)?;
        for file in sources.inline.iter_mut().filter(|file| file.expand) {
            file.data = self.expand_raw(place, &file.data)?;
        }
        Ok(())
    }

    /// Reports variables that are neither set nor declared.
    pub(super) fn report_unset(&mut self, place: &Place, unmatched: BTreeSet<String>) {
        if unmatched.is_empty() {
            return;
        }
        let stage = &self.stages[place.stage];
        for name in unmatched {
            let declared = stage.args.iter().any(|arg| arg.key == name);
            if declared || SCAN_ARGS.contains(&name.as_str()) {
                continue;
            }
            let near = suggest::nearest(&name, stage.state.env.names(), Case::Sensitive);
            let near = near.map_or(String::new(), |near| format!(" (did you mean ${near}?)"));
            let message = format!("Usage of undefined variable '${name}'{near}");
            self.linter.report(&place.scope, Rule::UndefinedVar, place.lines, message);
        }
    }

    /// Fails if a stage is used before its instructions are operations.
    pub(super) fn check_defined(&self, id: StageId, kind: Kind, params: [&str; 2]) -> Result<()> {
        if self.stages[id].dispatched {
            return Ok(());
        }
        Err(Error::new(kind, params.map(text::quote)))
    }
}

/// Whether a scan is wanted of this stage: of all, of none, or of those in a list.
fn is_enabled(stage: &str, value: &str) -> bool {
    text::parse_bool(value).unwrap_or_else(|| value.split(',').any(|name| name == stage))
}
