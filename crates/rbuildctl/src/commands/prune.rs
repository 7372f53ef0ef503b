//! `prune`: giving disk space back.

use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;
use client::{ClientError, progress::format_bytes};
use proto::control::PruneRequest;

use super::du;
use crate::{connection::ConnectionArgs, format::Format, table::tabbed};

/// Remove cached results that nothing uses
#[derive(Args, Debug)]
pub struct PruneArgs {
    /// Keep what was used within this time, e.g. 48h
    #[arg(long, value_name = "DURATION")]
    keep_duration: Option<String>,
    /// Remove until less than this many MB are used
    #[arg(long, value_name = "MB", default_value_t = 0.0, hide_default_value = true)]
    keep_storage: f64,
    /// Never remove below this many MB
    #[arg(long, value_name = "MB", default_value_t = 0.0, hide_default_value = true)]
    keep_storage_min: f64,
    /// Remove until this many MB of the disk are free
    #[arg(long, value_name = "MB", default_value_t = 0.0, hide_default_value = true)]
    free_storage: f64,
    /// Only records that match, e.g. type==source.local
    #[arg(long, short = 'f', value_name = "FILTER")]
    filter: Vec<String>,
    /// Also frontends' images and what the image store shares
    #[arg(long, short = 'a')]
    all: bool,
    /// Everything known about each record
    #[arg(long, short = 'v')]
    verbose: bool,
    /// Print each record with a template, e.g. json
    #[arg(long, value_name = "TEMPLATE")]
    format: Option<String>,
}

impl PruneArgs {
    /// Prints records as they go, and their sum.
    pub async fn run(&self, connection: &ConnectionArgs) -> anyhow::Result<ExitCode> {
        let format = self.format.as_deref().map(Format::parse).transpose()?;
        let keep = match &self.keep_duration {
            Some(text) => base::time::parse_go_duration(text)
                .with_context(|| format!("invalid --keep-duration {text}: expected e.g. 48h"))?,
            None => Default::default(),
        };
        let bytes = |megabytes: f64| (megabytes * 1e6) as i64;
        let request = PruneRequest {
            filter: self.filter.clone(),
            all: self.all,
            keep_duration: i64::try_from(keep.as_nanos()).unwrap_or(i64::MAX),
            reserved_space: bytes(self.keep_storage_min),
            max_used_space: bytes(self.keep_storage),
            min_free_space: bytes(self.free_storage),
        };
        let show = match &format {
            Some(format) => Show::Format(format),
            None if self.verbose => Show::Verbose,
            None => Show::Table,
        };
        records(connection, request, &show).await
    }
}

/// How records that go are shown.
pub enum Show<'a> {
    /// As rows with a header.
    Table,
    /// With all that is known of them.
    Verbose,
    /// With a template, and without their sum.
    Format(&'a Format),
}

/// Prunes, and prints records as they go.
pub async fn records(
    connection: &ConnectionArgs,
    request: PruneRequest,
    show: &Show<'_>,
) -> anyhow::Result<ExitCode> {
    let mut control = connection.connect().await?.control();
    let fail = ClientError::rpc("failed to prune");
    let mut records = control.prune(request).await.map_err(&fail)?.into_inner();
    let (mut total, mut first) = (0, true);
    while let Some(record) = records.message().await.map_err(&fail)? {
        total += record.size;
        match show {
            Show::Format(format) => println!("{}", format.apply(&du::record_json(&record))?),
            Show::Verbose => print!("{}", du::verbose(&record)),
            Show::Table => {
                let mut lines = vec![du::row(&record)];
                if std::mem::take(&mut first) {
                    lines.insert(0, du::header());
                }
                print!("{}", tabbed(&lines));
            }
        }
    }
    if !matches!(show, Show::Format(_)) {
        println!("Total:\t{}", format_bytes(total));
    }
    Ok(ExitCode::SUCCESS)
}
