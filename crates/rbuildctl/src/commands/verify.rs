//! `verify`: whether the daemon's state is what it says it is.

use std::process::ExitCode;

use clap::Args;
use client::progress::format_bytes;
use proto::rbuild::v1::VerifyRequest;

use super::refused;
use crate::connection::ConnectionArgs;

/// Check the daemon's cache: digests of all blobs, files of all records
#[derive(Args, Debug)]
pub struct VerifyArgs {
    /// Drop what is broken; it is built or fetched again when needed
    #[arg(long)]
    repair: bool,
}

impl VerifyArgs {
    /// Prints what was found; the exit status tells whether it was anything.
    pub async fn run(&self, connection: &ConnectionArgs) -> anyhow::Result<ExitCode> {
        let mut storage = connection.connect().await?.storage();
        let answer = storage.verify(VerifyRequest { repair: self.repair }).await;
        let found = answer.map_err(refused("failed to verify"))?.into_inner();
        let done = if self.repair { "dropped" } else { "found" };
        for digest in &found.damaged {
            println!("damaged blob {done}: {digest}");
        }
        for id in &found.broken {
            println!("broken record {done}: {id}");
        }
        for note in &found.notes {
            println!("{note}");
        }
        let size = format_bytes(found.blob_bytes);
        println!(
            "{} records, {} files, {} blobs ({size}) checked",
            found.records, found.files, found.blobs
        );
        if found.damaged.is_empty() && found.broken.is_empty() && found.notes.is_empty() {
            println!("everything is as it should be");
            return Ok(ExitCode::SUCCESS);
        }
        if !self.repair {
            println!("use --repair to drop what is broken");
        }
        Ok(ExitCode::from(u8::from(!self.repair)))
    }
}
