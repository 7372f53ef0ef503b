//! Lint: remarks that do not stop a build unless it asks for that.
//!
//! A [`Linter`] collects findings while the phases run. What is skipped follows from the build's
//! [`Config`], made narrower above single instructions by `# check=` comments: a [`Scope`].

mod rules;

use std::collections::BTreeSet;

use crate::error::{Error, Kind, Lines, Result};
use crate::{parser, text};

pub use rules::Rule;

/// What is reported, and whether that fails the build.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Config {
    /// Report nothing.
    pub skip_all: bool,
    /// Rules that are off.
    pub skip: BTreeSet<String>,
    /// All experimental rules are on.
    pub experimental_all: bool,
    /// Experimental rules that are on.
    pub experimental: BTreeSet<String>,
    /// A finding fails the build.
    pub error: bool,
}

impl Config {
    /// Reads `skip=…;experimental=…;error=…`.
    pub fn parse(input: &str) -> Result<Self> {
        let mut config = Self::default();
        let input = input.trim();
        if input.is_empty() {
            return Ok(config);
        }
        for part in input.splitn(3, ';') {
            let Some((key, value)) = part.split_once('=') else {
                return Err(Error::noted(Kind::CheckOption, text::quote(part)));
            };
            let value = value.trim();
            let rules = || value.split(',').map(|rule| rule.trim().to_owned()).collect();
            match key.trim() {
                "skip" if value == "all" => config.skip_all = true,
                "skip" => config.skip = rules(),
                "experimental" if value == "all" => config.experimental_all = true,
                "experimental" => config.experimental = rules(),
                "error" => {
                    let bad = || Error::noted(Kind::CheckOption, text::quote(part));
                    config.error = text::parse_bool(value).ok_or_else(bad)?;
                }
                other => return Err(Error::noted(Kind::CheckOption, text::quote(other))),
            }
        }
        Ok(config)
    }

    /// The config of a file's `check` directive.
    pub fn of_file(source: &[u8]) -> Result<Self> {
        let value = parser::directive("check", source).map(|directive| directive.value);
        let value = value.unwrap_or_default();
        Self::parse(value.split_once(' ').map_or(value.as_str(), |(first, _)| first))
    }
}

/// What is reported for one instruction.
#[derive(Debug, Clone)]
pub struct Scope(Option<Config>);

/// A remark about lines of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Which rule.
    pub rule: Rule,
    /// Where.
    pub lines: Lines,
    /// What.
    pub message: String,
}

/// Collects findings.
#[derive(Debug, Default)]
pub struct Linter {
    config: Config,
    active: bool,
    findings: Vec<Finding>,
}

impl Linter {
    /// Reports what `config` lets through.
    pub fn new(config: Config) -> Self {
        Self { config, active: true, findings: Vec::new() }
    }

    /// Reports nothing, for runs whose remarks nobody reads.
    pub fn silent() -> Self {
        Self::default()
    }

    /// The scope of an instruction with these comments above.
    pub fn scope(&self, comments: &[String]) -> Scope {
        let Some(value) = comments.iter().find_map(|comment| parser::check_comment(comment)) else {
            return Scope(None);
        };
        let first = value.split_once(' ').map_or(value, |(first, _)| first);
        let Ok(own) = Config::parse(first) else { return Scope(None) };
        let mut config = self.config.clone();
        config.skip_all |= own.skip_all;
        config.skip.extend(own.skip);
        config.experimental_all |= own.experimental_all;
        config.experimental.extend(own.experimental);
        Scope(Some(config))
    }

    /// The scope of the whole file.
    pub fn file_scope(&self) -> Scope {
        Scope(None)
    }

    /// Notes a finding, unless the scope leaves it out.
    pub fn report(&mut self, scope: &Scope, rule: Rule, lines: Lines, message: String) {
        let config = scope.0.as_ref().unwrap_or(&self.config);
        let name = rule.name();
        let wanted = if rule.is_experimental() {
            config.experimental_all || config.experimental.contains(name)
        } else {
            !config.skip_all && !config.skip.contains(name)
        };
        if self.active && wanted {
            self.findings.push(Finding { rule, lines, message });
        }
    }

    /// Fails if there are findings and the build wants none.
    pub fn check(&self) -> Result<()> {
        if !self.config.error || self.findings.is_empty() {
            return Ok(());
        }
        let names: BTreeSet<&str> =
            self.findings.iter().map(|finding| finding.rule.name()).collect();
        Err(Error::new(Kind::LintFailed, [names.into_iter().collect::<Vec<_>>().join(", ")]))
    }

    /// What was found, in order.
    pub fn findings(&self) -> &[Finding] {
        &self.findings
    }

    /// What was found, in order.
    pub fn into_findings(self) -> Vec<Finding> {
        self.findings
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read() {
        let config = Config::parse("skip=A, B;error=true").unwrap();
        assert_eq!((config.skip.len(), config.error, config.skip_all), (2, true, false));
        assert!(Config::parse("skip=all").unwrap().skip_all);
        for bad in ["skip", "warn=x", "error=maybe"] {
            assert_eq!(Config::parse(bad).unwrap_err().kind, Kind::CheckOption, "{bad}");
        }
    }

    #[test]
    fn scopes_narrow() {
        let mut linter = Linter::new(Config::parse("error=true").unwrap());
        let quiet = linter.scope(&["check=skip=UndefinedVar because".into()]);
        linter.report(&quiet, Rule::UndefinedVar, Lines::one(1), String::new());
        assert!(linter.check().is_ok());
        let all = linter.file_scope();
        linter.report(&all, Rule::InvalidDefinitionDescription, Lines::one(1), String::new());
        assert!(linter.findings().is_empty());
        linter.report(&all, Rule::UndefinedVar, Lines::one(1), String::new());
        assert_eq!(linter.check().unwrap_err().params, ["UndefinedVar"]);
    }
}
