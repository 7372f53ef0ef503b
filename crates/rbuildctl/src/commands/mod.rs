//! One file a group of commands.

pub mod completion;
pub mod containers;
pub mod debug;
pub mod dial_stdio;
pub mod du;
pub mod dump;
pub mod images;
pub mod prune;
pub mod run;
pub mod verify;

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
