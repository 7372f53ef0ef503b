//! Instructions that only change the config.
//!
//! Source: Dockerfile notes §11.5 and §15.

use super::dispatch::Place;
use super::history::duration;
use super::{Lowering, checks};
use crate::error::{Error, Kind, Result};
use crate::image::{self, Image};
use crate::instructions::{CommandLine, Healthcheck, KeyValue};
use crate::lint::Rule;
use crate::text;

impl Lowering<'_> {
    fn commit(&mut self, place: &Place, created_by: String) -> Result<()> {
        self.count(created_by.len())?;
        let epoch = self.epoch;
        self.stages[place.stage].commit(created_by, false, epoch);
        Ok(())
    }

    /// All pairs see the variables from before.
    fn expand_pairs(&mut self, place: &Place, pairs: &[KeyValue]) -> Result<Vec<KeyValue>> {
        let mut expanded = Vec::with_capacity(pairs.len());
        for pair in pairs {
            let key = self.expand(place, &pair.key)?;
            let value = self.expand(place, &pair.value)?;
            expanded.push(KeyValue { key, value, legacy: pair.legacy });
        }
        Ok(expanded)
    }

    fn report_legacy(&mut self, place: &Place) {
        let word = &place.word;
        let message = format!(
            "\"{word} key=value\" should be used instead of legacy \"{word} key value\" format"
        );
        self.linter.report(&place.scope, Rule::LegacyKeyValueFormat, place.lines, message);
    }

    pub(super) fn env(&mut self, place: &Place, pairs: &[KeyValue]) -> Result<()> {
        let mut text = "ENV".to_owned();
        for KeyValue { key, value, legacy } in self.expand_pairs(place, pairs)? {
            if legacy {
                self.report_legacy(place);
            }
            checks::secret_key("ENV", &key, place.lines, &place.scope, self.linter);
            text.push_str(&format!(" {key}={value}"));
            let stage = &mut self.stages[place.stage];
            stage.state.env.set(&key, &value);
            stage.image.config.set_env(&key, &value);
        }
        self.commit(place, text)
    }

    pub(super) fn label(&mut self, place: &Place, pairs: &[KeyValue]) -> Result<()> {
        let mut text = "LABEL".to_owned();
        for KeyValue { key, value, legacy } in self.expand_pairs(place, pairs)? {
            if legacy {
                self.report_legacy(place);
            }
            text.push_str(&format!(" {key}={value}"));
            self.stages[place.stage].image.config.labels.insert(key, value);
        }
        self.commit(place, text)
    }

    /// Reports an instruction of which only the last counts, at the one before.
    fn report_repeated(&mut self, place: &Place, word: &'static str) {
        let before = self.stages[place.stage].once.insert(word, place.lines);
        if let Some(before) = before {
            let message = format!(
                "Multiple {} instructions should not be used in the same stage because only the last one will be used",
                place.word
            );
            let rule = Rule::MultipleInstructionsDisallowed;
            self.linter.report(&place.scope, rule, before, message);
        }
    }

    /// The arguments of CMD or ENTRYPOINT.
    fn command_args(&mut self, place: &Place, line: &CommandLine) -> Vec<String> {
        let image = &self.stages[place.stage].image;
        if !line.shell {
            return line.args.clone();
        }
        if image.config.shell.is_empty() {
            let message = format!(
                "JSON arguments recommended for {} to prevent unintended behavior related to OS signals",
                place.word
            );
            self.linter.report(&place.scope, Rule::JSONArgsRecommended, place.lines, message);
        }
        with_shell(&self.stages[place.stage].image, &line.args)
    }

    pub(super) fn cmd(&mut self, place: &Place, line: &CommandLine) -> Result<()> {
        self.report_repeated(place, "CMD");
        let args = self.command_args(place, line);
        let text = format!("CMD {}", text::quote_list(&args));
        let config = &mut self.stages[place.stage].image.config;
        config.cmd = args;
        config.args_escaped = true;
        self.commit(place, text)
    }

    pub(super) fn entrypoint(&mut self, place: &Place, line: &CommandLine) -> Result<()> {
        self.report_repeated(place, "ENTRYPOINT");
        let args = self.command_args(place, line);
        let text = format!("ENTRYPOINT {}", text::quote_list(&args));
        let stage = &mut self.stages[place.stage];
        stage.image.config.entrypoint = args;
        if !stage.once.contains_key("CMD") {
            stage.image.config.cmd.clear();
        }
        self.commit(place, text)
    }

    pub(super) fn healthcheck(&mut self, place: &Place, check: &Healthcheck) -> Result<()> {
        self.report_repeated(place, "HEALTHCHECK");
        let text = format!(
            "HEALTHCHECK {{Test:[{}] Interval:{} Timeout:{} StartPeriod:{} StartInterval:{} Retries:{}}}",
            check.test.join(" "),
            duration(check.interval),
            duration(check.timeout),
            duration(check.start_period),
            duration(check.start_interval),
            check.retries
        );
        self.stages[place.stage].image.config.healthcheck = Some(image::Health {
            test: check.test.clone(),
            interval: check.interval,
            timeout: check.timeout,
            start_period: check.start_period,
            start_interval: check.start_interval,
            retries: check.retries,
        });
        self.commit(place, text)
    }

    pub(super) fn maintainer(&mut self, place: &Place, name: &str) -> Result<()> {
        self.stages[place.stage].image.author = name.to_owned();
        self.commit(place, format!("MAINTAINER {name}"))
    }

    pub(super) fn onbuild(&mut self, place: &Place, trigger: &str) -> Result<()> {
        self.stages[place.stage].image.config.on_build.push(trigger.to_owned());
        Ok(())
    }

    pub(super) fn shell(&mut self, place: &Place, shell: &[String]) -> Result<()> {
        self.stages[place.stage].image.config.shell = shell.to_vec();
        self.commit(place, format!("SHELL [{}]", shell.join(" ")))
    }

    pub(super) fn stopsignal(&mut self, place: &Place, signal: &str) -> Result<()> {
        let signal = self.expand(place, signal)?;
        if !is_signal(&signal) {
            return Err(Error::new(Kind::InvalidSignal, [signal]));
        }
        self.stages[place.stage].image.config.stop_signal = signal.clone();
        self.commit(place, format!("STOPSIGNAL {signal}"))
    }

    pub(super) fn user(&mut self, place: &Place, user: &str) -> Result<()> {
        let user = self.expand(place, user)?;
        let stage = &mut self.stages[place.stage];
        stage.state.user = user.clone();
        stage.image.config.user = user.clone();
        self.commit(place, format!("USER {user}"))
    }

    pub(super) fn volume(&mut self, place: &Place, volumes: &[String]) -> Result<()> {
        let mut expanded = Vec::with_capacity(volumes.len());
        for volume in volumes {
            expanded.push(self.expand(place, volume)?);
        }
        if expanded.iter().any(String::is_empty) {
            return Err(Error::plain(Kind::VolumeEmpty));
        }
        let text = format!("VOLUME [{}]", expanded.join(" "));
        let known = &mut self.stages[place.stage].image.config.volumes;
        known.extend(expanded.into_iter().map(|volume| (volume, image::Empty {})));
        self.commit(place, text)
    }
}

/// The arguments given to the image's shell, or its system's.
pub(super) fn with_shell(image: &Image, args: &[String]) -> Vec<String> {
    let mut shell = match (image.config.shell.as_slice(), image.os.as_str()) {
        ([], "windows") => ["cmd", "/S", "/C"].map(str::to_owned).to_vec(),
        ([], _) => ["/bin/sh", "-c"].map(str::to_owned).to_vec(),
        (shell, _) => shell.to_vec(),
    };
    shell.push(args.join(" "));
    shell
}

const SIGNALS: &[&str] = &[
    "ABRT", "ALRM", "BUS", "CHLD", "CLD", "CONT", "FPE", "HUP", "ILL", "INT", "IO", "IOT", "KILL",
    "PIPE", "POLL", "PROF", "PWR", "QUIT", "SEGV", "STKFLT", "STOP", "SYS", "TERM", "TRAP", "TSTP",
    "TTIN", "TTOU", "URG", "USR1", "USR2", "VTALRM", "WINCH", "XCPU", "XFSZ", "RTMIN", "RTMAX",
];

/// A number that is not zero, or a name with or without `SIG`.
fn is_signal(text: &str) -> bool {
    if let Ok(number) = text.parse::<i64>() {
        return number != 0;
    }
    let name = text::upper(text);
    let name = name.strip_prefix("SIG").unwrap_or(&name);
    // Distances are written without sign or leading zeros.
    let distance = |rest: &str, most: u32| {
        !rest.starts_with(['0', '+']) && rest.parse::<u32>().is_ok_and(|n| n <= most)
    };
    SIGNALS.contains(&name)
        || name.strip_prefix("RTMIN+").is_some_and(|rest| distance(rest, 15))
        || name.strip_prefix("RTMAX-").is_some_and(|rest| distance(rest, 14))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals() {
        for good in ["9", "-1", "TERM", "sigkill", "RTMIN+15", "SIGRTMAX-1"] {
            assert!(is_signal(good), "{good}");
        }
        for bad in ["0", "", "SIGNOPE", "RTMIN+16", "RTMAX-0", "RTMIN+05"] {
            assert!(!is_signal(bad), "{bad}");
        }
    }
}
