//! One file a group of commands.

pub mod archive;
pub mod attach;
pub mod completion;
pub mod containers;
pub mod cp;
pub mod debug;
pub mod dial_stdio;
pub mod docker_only;
pub mod du;
pub mod dump;
pub mod filters;
pub mod histories;
pub mod images;
pub mod imagetools;
pub mod info;
pub mod inspect;
pub mod login;
pub mod prune;
pub mod run;
pub mod run_parse;
pub mod system;
pub mod transfer;
pub mod unknown;
pub mod verify;
pub mod volume;

use client::ClientError;

/// The error of a call to the daemon's image or container service, said so that it helps.
pub fn refused(what: &'static str) -> impl Fn(tonic::Status) -> anyhow::Error {
    move |status| {
        if status.code() == tonic::Code::Unimplemented {
            anyhow::anyhow!("{what}: this daemon keeps no images or containers; it needs rbuildd")
        } else {
            ClientError::rpc(what)(status).into()
        }
    }
}

/// Asks on the terminal; anything but yes is no.
pub fn confirm(question: &str) -> anyhow::Result<bool> {
    eprint!("{question}\nAre you sure you want to continue? [y/N] ");
    let mut line = String::new();
    std::io::stdin().read_line(&mut line)?;
    Ok(matches!(line.trim().to_lowercase().as_str(), "y" | "yes"))
}
