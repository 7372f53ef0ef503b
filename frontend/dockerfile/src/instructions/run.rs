//! RUN: `--mount`, `--network`, `--security`, `--device`.

use super::device::Device;
use super::flags::{Flags, Takes};
use super::simple::{CommandLine, command_line_of};
use super::{device, mount};
use crate::error::{Error, Kind, Result};
use crate::{parser::Node, text};

/// A RUN instruction.
#[derive(Debug, Clone, Default)]
pub struct Run {
    /// What to run.
    pub command_line: CommandLine,
    /// Values of `--mount`, read again once their variables are expanded.
    pub mounts: Vec<String>,
    /// `from` of each mount.
    pub mount_sources: Vec<String>,
    /// Network access.
    pub network: Network,
    /// Privileges.
    pub security: Security,
    /// Devices.
    pub devices: Vec<Device>,
}

/// Values of `--network`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Network {
    #[default]
    Default,
    None,
    Host,
}

/// Values of `--security`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Security {
    #[default]
    Sandbox,
    Insecure,
}

const FLAGS: &[(&str, Takes)] = &[
    ("mount", Takes::Values),
    ("network", Takes::Value),
    ("security", Takes::Value),
    ("device", Takes::Values),
];

pub(super) fn parse(node: &Node) -> Result<Run> {
    let flags = Flags::parse(node, FLAGS)?;
    let command_line = command_line_of(node);
    let devices = flags.values("device").map(device::parse).collect::<Result<_>>()?;
    let mut run = Run { command_line, devices, ..Run::default() };
    for value in flags.values("mount") {
        run.mount_sources.push(mount::source_of(value)?);
        run.mounts.push(value.to_owned());
    }
    run.network = match flags.values("network").next() {
        None | Some("default") => Network::Default,
        Some("none") => Network::None,
        Some("host") => Network::Host,
        Some(other) => return Err(Error::new(Kind::InvalidNetwork, [text::quote(other)])),
    };
    run.security = match flags.values("security").next() {
        None | Some("sandbox") => Security::Sandbox,
        Some("insecure") => Security::Insecure,
        Some(other) => return Err(Error::new(Kind::InvalidSecurity, [text::quote(other)])),
    };
    Ok(run)
}
