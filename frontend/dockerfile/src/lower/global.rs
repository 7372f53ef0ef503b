//! Global args and the list of stages.
//!
//! Source: Dockerfile notes §8 and §9.1.

use std::collections::{BTreeMap, BTreeSet};

use base::Platform;

use super::env::Env;
use super::outline::ArgInfo;
use super::stage::Stage;
use super::{Lowering, checks};
use crate::error::{Case, Error, Kind, Result};
use crate::instructions::{self, Command, Instruction, Program};
use crate::lint::Scope;
use crate::reference::Reference;
use crate::shell::{Lexer, Variables};
use crate::text;

impl Lowering<'_> {
    /// Sets automatic args, then the file's.
    pub(super) fn read_globals(&mut self, program: &Program) -> Result<()> {
        let last = program.stages.last().map_or("", |stage| &stage.name);
        let target = match self.client.options.target.as_str() {
            "" => last,
            target => target,
        };
        let automatic = self.automatic_args(target);
        let without = BTreeMap::new();
        if let Ok((defaults, _)) = globals(self.lexer, &automatic, &program.globals, &without) {
            self.check_default_bases(&program.stages, &defaults);
        }
        let (env, args) = globals(self.lexer, &automatic, &program.globals, &self.build_args)?;
        self.globals = env;
        self.global_args = args;
        Ok(())
    }

    fn automatic_args(&self, target: &str) -> Env {
        let (build, wanted) = (&self.client.build_platforms[0], &self.target);
        let part = |platform: &Platform| {
            let Platform { os, os_version, architecture, variant, .. } = platform.clone();
            [os, os_version, architecture, variant]
        };
        let [build_os, build_version, build_arch, build_variant] = part(build);
        let [os, version, arch, variant] = part(wanted);
        let mut env = Env::default();
        for (name, value) in [
            ("BUILDPLATFORM", build.format()),
            ("BUILDOS", build_os),
            ("BUILDOSVERSION", build_version),
            ("BUILDARCH", build_arch),
            ("BUILDVARIANT", build_variant),
            ("TARGETPLATFORM", wanted.format_all()),
            ("TARGETOS", os),
            ("TARGETOSVERSION", version),
            ("TARGETARCH", arch),
            ("TARGETVARIANT", variant),
            ("TARGETSTAGE", if target.is_empty() { "default" } else { target }.to_owned()),
        ] {
            env.set(name, self.build_args.get(name).unwrap_or(&value));
        }
        env
    }

    /// Reports base names that make no sense without build args.
    fn check_default_bases(&mut self, stages: &[instructions::Stage], defaults: &Env) {
        for stage in stages {
            let Ok(expanded) = self.lexer.expand(&stage.base, defaults) else { return };
            if Reference::parse(&expanded.text).is_err() {
                checks::invalid_default_base(stage, self.linter);
            }
        }
    }

    /// Fills the table of stages.
    pub(super) fn list_stages(&mut self, stages: Vec<instructions::Stage>) -> Result<()> {
        for (number, mut source) in stages.into_iter().enumerate() {
            let scope = self.linter.scope(&source.comments);
            let lines = source.lines;
            let (base, mut used, unmatched) = self.lexer.expand_all(&source.base, &self.globals);
            self.report_undeclared(&unmatched, &source, &scope);
            let base = base.map_err(|error| error.at(lines))?;
            if base.is_empty() {
                return Err(Error::new(Kind::BaseNameBlank, [&source.base]).at(lines));
            }
            source.base = base;
            let platform = self.stage_platform(&source, &scope, &mut used)?;
            let mut stage = Stage { name: source.name.clone(), platform, ..Stage::default() };
            stage.captured.all = self.global_args.clone();
            if !source.name.is_empty() {
                stage.named = self.named_context(&source.name, stage.platform.as_ref())?;
            }
            if stage.named.is_some() {
                stage.source = source;
                let id = self.stages.add(stage);
                self.stages[id].base = None;
                continue;
            }
            if source.name.is_empty() {
                stage.name = format!("stage-{number}");
            }
            stage.ignore_cache = self.client.options.ignores_cache(&source.name);
            let steps = source.instructions.iter().filter(|step| {
                let command = &step.command;
                matches!(
                    command,
                    Command::Add(_) | Command::Copy(_) | Command::Run(_) | Command::Workdir(_)
                )
            });
            stage.steps_total = steps.count();
            stage.source = source;
            let id = self.stages.add(stage);
            let stage = &mut self.stages[id];
            stage.captured.used.extend(used);
            if stage.base.is_none() && stage.source.base != "scratch" {
                stage.steps_total += 1;
            }
        }
        Ok(())
    }

    fn stage_platform(
        &mut self,
        source: &instructions::Stage,
        scope: &Scope,
        used: &mut BTreeSet<String>,
    ) -> Result<Option<Platform>> {
        let (written, lines) = (&source.platform, source.lines);
        if written.is_empty() {
            return Ok(None);
        }
        let (value, matched, unmatched) = self.lexer.expand_all(written, &self.globals);
        self.report_undeclared(&unmatched, source, scope);
        let value = value.map_err(|error| error.at(lines))?;
        let target = self.globals.get("TARGETPLATFORM");
        checks::platform_flag(source, &value, &matched, &unmatched, target, scope, self.linter);
        let suggest = |mut error: Error| {
            for name in &unmatched {
                error = error.suggest(name, self.globals.names(), Case::Sensitive);
            }
            error
        };
        if value.is_empty() {
            return Err(suggest(Error::new(Kind::PlatformEmpty, [written]).at(lines)));
        }
        let platform = Platform::parse(&value).map_err(|reason| {
            let mut error = Error::new(Kind::PlatformInvalid, [written]);
            error.notes.push(reason.to_string());
            // Two layers know the place, and both say so.
            suggest(error.at(lines)).at(lines)
        })?;
        used.extend(matched);
        Ok(Some(platform))
    }

    fn report_undeclared(
        &mut self,
        unmatched: &BTreeSet<String>,
        source: &instructions::Stage,
        scope: &Scope,
    ) {
        let mut known: BTreeSet<&str> = self.global_args.keys().map(String::as_str).collect();
        known.extend(self.globals.names());
        for name in unmatched.iter().filter(|name| !known.contains(name.as_str())) {
            checks::undeclared(name, &known, source, scope, self.linter);
        }
    }
}

/// Adds the file's global args to `env`.
fn globals(
    lexer: Lexer,
    env: &Env,
    instructions: &[Instruction],
    build_args: &BTreeMap<String, String>,
) -> Result<(Env, BTreeMap<String, ArgInfo>)> {
    let mut env = env.clone();
    let mut all: BTreeMap<String, ArgInfo> = BTreeMap::new();
    for instruction in instructions {
        let Command::Arg(args) = &instruction.command else { continue };
        for arg in args {
            let mut info = ArgInfo {
                description: arg.description.clone(),
                lines: instruction.lines,
                ..ArgInfo::default()
            };
            let value = match (build_args.get(&arg.key), &arg.value) {
                (Some(given), _) => Some(given.clone()),
                (None, None) => None,
                (None, Some(default)) => {
                    let expanded = lexer.expand(default, &env);
                    let expanded = expanded.map_err(|error| error.at(instruction.lines))?;
                    info.deps = expanded.matched;
                    if info.deps.remove(&arg.key)
                        && let Some(before) = all.get(&arg.key)
                    {
                        info.deps.extend(before.deps.iter().cloned());
                    }
                    Some(expanded.text)
                }
            };
            if let Some(value) = value {
                env.set(&arg.key, &value);
                info.value = value;
            }
            all.insert(arg.key.clone(), info);
        }
    }
    Ok((env, all))
}

/// Names that never stand for a context.
pub(super) fn is_reserved(name: &str) -> bool {
    text::equal_fold(name, "scratch") || text::equal_fold(name, "context")
}
