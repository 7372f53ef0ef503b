//! ARG.
//!
//! Source: Dockerfile notes §8.

use super::dispatch::{Place, SCAN_ARGS};
use super::outline::ArgInfo;
use super::{Lowering, checks};
use crate::error::Result;
use crate::instructions::Arg;
use crate::shell::Variables;

impl Lowering<'_> {
    pub(super) fn arg(&mut self, place: &Place, args: &[Arg]) -> Result<()> {
        let mut words = Vec::with_capacity(args.len());
        for arg in args {
            checks::secret_key("ARG", &arg.key, place.lines, &place.scope, self.linter);
            let given = self.build_args.get(&arg.key).cloned();
            let (value, from_global) = match (given, &arg.value) {
                (Some(given), _) => (Some(given), false),
                (None, Some(default)) => (Some(self.expand(place, default)?), false),
                (None, None) => match self.globals.get(&arg.key) {
                    Some(value) => (Some(value.to_owned()), true),
                    None => (None, false),
                },
            };
            let stage = &mut self.stages[place.stage];
            if let Some(value) = &value
                && !SCAN_ARGS.contains(&arg.key.as_str())
            {
                stage.state.env.set(&arg.key, value);
            }
            if !from_global {
                let info = ArgInfo {
                    value: value.clone().unwrap_or_default(),
                    description: arg.description.clone(),
                    lines: place.lines,
                    ..ArgInfo::default()
                };
                stage.captured.all.insert(arg.key.clone(), info);
            }
            stage.captured.used.insert(arg.key.clone());
            words.push(match &value {
                Some(value) => format!("{}={value}", arg.key),
                None => arg.key.clone(),
            });
            stage.args.push(Arg { value, ..arg.clone() });
        }
        let (text, epoch) = (format!("ARG {}", words.join(" ")), self.epoch);
        self.count(text.len())?;
        self.stages[place.stage].commit(text, false, epoch);
        Ok(())
    }
}
