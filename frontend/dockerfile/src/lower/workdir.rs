//! WORKDIR.
//!
//! Source: Dockerfile notes §11.4.

use llb::build::{FileAction, Meta, Mkdir, Owner};

use super::Lowering;
use super::dispatch::Place;
use super::names::instruction_text;
use super::path;
use super::stage::StageId;
use crate::error::Result;
use crate::lint::Rule;
use crate::text;

impl Lowering<'_> {
    /// Changes the folder of a stage without a step; gives it with `/` as separator.
    pub(super) fn set_workdir(&mut self, id: StageId, dir: &str) -> Result<String> {
        let stage = &mut self.stages[id];
        let os = stage.platform.as_ref().map_or("linux", |platform| &platform.os);
        let dir = path::normalize(&stage.image.config.working_dir, dir, os, false)?;
        stage.image.config.working_dir = path::from_slash(&dir, os);
        stage.state.set_dir(&dir);
        Ok(dir)
    }

    pub(super) fn workdir(&mut self, place: &Place, dir: &str) -> Result<()> {
        let dir = self.expand(place, dir)?;
        let stage = &mut self.stages[place.stage];
        let platform = stage.platform.clone().unwrap_or_else(|| self.target.clone());
        if !stage.workdir_set && !path::is_absolute(&dir, &platform.os) {
            let message = format!(
                "Relative workdir {} can have unexpected results if the base image changes",
                text::quote(&dir)
            );
            self.linter.report(&place.scope, Rule::WorkdirRelativePath, place.lines, message);
        }
        stage.workdir_set = true;
        let dir = self.set_workdir(place.stage, &dir)?;
        let layer = dir != "/";
        let lexer = self.lexer;
        let stage = &mut self.stages[place.stage];
        if layer {
            let user = &stage.image.config.user;
            let mkdir = Mkdir {
                owner: (!user.is_empty()).then(|| Owner::parse(user)),
                timestamp: self.epoch.map(|epoch| epoch.unix_nanos()),
                ..Mkdir::new(dir.clone())
            };
            let env = &stage.state.env;
            let text = instruction_text(lexer, &place.code, env);
            let shown = self.naming.platform(Some(&platform), Some(env));
            let name = self.naming.step(stage, &text, &shown);
            let root = stage.state.output;
            let meta = self.located(Meta::named(name), place.lines);
            let output = self.graph.file(root, vec![FileAction::Mkdir(mkdir)], meta);
            self.stages[place.stage].state.output = Some(output);
        }
        let epoch = self.epoch;
        self.stages[place.stage].commit(format!("WORKDIR {dir}"), layer, epoch);
        Ok(())
    }
}
