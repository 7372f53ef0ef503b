//! Flags that docker's commands have and ours have not.
//!
//! A command lists them in a table: each is taken, hidden from the help, and ends in an error that
//! says what to do instead. Values that ask for nothing special are accepted, so that scripts that
//! spell out docker's defaults go on working.

use std::{fmt, marker::PhantomData};

use anyhow::bail;
use clap::{Arg, ArgAction, ArgMatches, Command};

/// A flag that a command does not have.
#[derive(Debug)]
pub struct Flag {
    long: &'static str,
    short: Option<char>,
    /// Values that are accepted; `None` if the flag takes no value.
    accepted: Option<&'static [&'static str]>,
    instead: &'static str,
}

impl Flag {
    /// A flag without a value.
    pub const fn switch(long: &'static str, instead: &'static str) -> Self {
        Self { long, short: None, accepted: None, instead }
    }

    /// A flag with a value.
    pub const fn value(long: &'static str, instead: &'static str) -> Self {
        Self::unless(long, &[], instead)
    }

    /// A flag with a value, of which some are accepted.
    pub const fn unless(
        long: &'static str,
        accepted: &'static [&'static str],
        instead: &'static str,
    ) -> Self {
        Self { long, short: None, accepted: Some(accepted), instead }
    }

    /// The same with a short form.
    pub const fn short(self, short: char) -> Self {
        Self { short: Some(short), ..self }
    }
}

/// The flags of one command.
pub trait Flags {
    /// Each once.
    const FLAGS: &'static [Flag];
}

/// To be flattened into the command's arguments.
pub struct DockerOnly<F> {
    given: Vec<&'static Flag>,
    flags: PhantomData<F>,
}

impl<F> fmt::Debug for DockerOnly<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(&self.given).finish()
    }
}

impl<F> DockerOnly<F> {
    /// The error for the first that was given.
    pub fn check(&self) -> anyhow::Result<()> {
        match self.given.first() {
            None => Ok(()),
            Some(flag) => bail!("--{} is not supported: {}", flag.long, flag.instead),
        }
    }
}

fn is_given(flag: &Flag, matches: &ArgMatches) -> bool {
    match flag.accepted {
        None => matches.get_flag(flag.long),
        Some(accepted) => {
            let values = matches.get_many::<String>(flag.long).into_iter().flatten();
            values.map(String::as_str).any(|value| !accepted.contains(&value))
        }
    }
}

impl<F: Flags> clap::FromArgMatches for DockerOnly<F> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let given = F::FLAGS.iter().filter(|flag| is_given(flag, matches)).collect();
        Ok(Self { given, flags: PhantomData })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl<F: Flags> clap::Args for DockerOnly<F> {
    fn augment_args(command: Command) -> Command {
        command.args(F::FLAGS.iter().map(|flag| {
            let arg = Arg::new(flag.long).long(flag.long).hide(true);
            let arg = match flag.short {
                Some(short) => arg.short(short),
                None => arg,
            };
            match flag.accepted {
                Some(_) => arg.action(ArgAction::Append).allow_hyphen_values(true),
                None => arg.action(ArgAction::SetTrue),
            }
        }))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

/// Declares the flags of a command.
macro_rules! docker_only {
    ($name:ident: $($flag:expr),+ $(,)?) => {
        #[doc = "Flags of docker's that this command does not have."]
        #[derive(Debug)]
        pub struct $name;

        impl $crate::commands::docker_only::Flags for $name {
            const FLAGS: &'static [$crate::commands::docker_only::Flag] = &[$($flag),+];
        }
    };
}
pub(crate) use docker_only;

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    docker_only! { Few:
        Flag::switch("init", "do without"),
        Flag::unless("restart", &["no", ""], "restart it yourself"),
        Flag::value("link", "publish ports").short('l'),
    }

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        only: DockerOnly<Few>,
    }

    #[test]
    fn each_says_what_to_do() {
        let check = |args: &[&str]| {
            let cli = Cli::try_parse_from([&["x"], args].concat()).unwrap();
            cli.only.check().err().map(|error| error.to_string())
        };
        assert_eq!(check(&[]), None);
        assert_eq!(check(&["--restart", "no"]), None);
        let restart = Some("--restart is not supported: restart it yourself".into());
        assert_eq!(check(&["--restart=always"]), restart);
        assert_eq!(check(&["-l", "-a"]), Some("--link is not supported: publish ports".into()));
        assert_eq!(check(&["--init"]), Some("--init is not supported: do without".into()));
    }
}
