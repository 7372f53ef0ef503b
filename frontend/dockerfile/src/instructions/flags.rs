//! Builder flags: `--name`, `--name=value`.

use crate::error::{Case, Error, Kind, Result};
use crate::{parser::Node, text};

/// What a flag takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Takes {
    /// A value, once.
    Value,
    /// A value, any number of times.
    Values,
    /// Nothing, `true` or `false`.
    Bool,
}

/// The flags of one instruction.
#[derive(Debug, Clone, Default)]
pub struct Flags {
    given: Vec<(String, String)>,
}

impl Flags {
    /// Reads the flags of `node`, which may be those in `known`.
    pub fn parse(node: &Node, known: &[(&str, Takes)]) -> Result<Self> {
        let mut flags = Self::default();
        for flag in &node.flags {
            if flag == "--" {
                break;
            }
            let (word, value) = match flag.split_once('=') {
                Some((word, value)) => (word, Some(value)),
                None => (flag.as_str(), None),
            };
            let name = word.strip_prefix("--").unwrap_or(word);
            let fail = |kind| Error::new(kind, [word]);
            let Some((_, takes)) = known.iter().find(|(known, _)| *known == name) else {
                let names = known.iter().map(|(name, _)| *name);
                return Err(fail(Kind::UnknownFlag).suggest(name, names, Case::Sensitive));
            };
            if *takes != Takes::Values && flags.is_given(name) {
                return Err(fail(Kind::DuplicateFlag));
            }
            let value = match (takes, value) {
                (Takes::Bool, None) => "true".to_owned(),
                (Takes::Bool, Some(value)) => match text::lower(value).as_str() {
                    "" => return Err(fail(Kind::FlagNeedsValue)),
                    value @ ("true" | "false") => value.to_owned(),
                    _ => return Err(Error::new(Kind::FlagNotBool, [word, value])),
                },
                (_, Some(value)) => value.to_owned(),
                (_, None) => return Err(fail(Kind::FlagNeedsValue)),
            };
            flags.given.push((name.to_owned(), value));
        }
        Ok(flags)
    }

    /// Reads the flags of an instruction that has none.
    pub fn none(node: &Node) -> Result<()> {
        Self::parse(node, &[]).map(|_| ())
    }

    /// Whether a flag was given.
    pub fn is_given(&self, name: &str) -> bool {
        self.given.iter().any(|(given, _)| given == name)
    }

    /// The value of a flag, empty if it was not given.
    pub fn value(&self, name: &str) -> String {
        self.values(name).next().unwrap_or_default().to_owned()
    }

    /// All values of a flag.
    pub fn values<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.given.iter().filter(move |(given, _)| given == name).map(|(_, value)| value.as_str())
    }

    /// A switch; nothing if it was not given.
    pub fn switch(&self, name: &str) -> Option<bool> {
        self.values(name).next().map(|value| value == "true")
    }
}
