//! `du`: what the daemon's disk is used for.

use std::process::ExitCode;

use clap::Args;
use client::{ClientError, progress::format_bytes};
use proto::{
    control::{DiskUsageRequest, UsageRecord},
    rbuild::v1::{StorageUsageRequest, StorageUsageResponse},
};
use serde_json::{Value, json};

use crate::{
    connection::ConnectionArgs,
    format::Format,
    table::{cells, tabbed},
    text,
};

/// Show disk usage
#[derive(Args, Debug)]
pub struct DuArgs {
    /// Only records that match, e.g. type==exec.cachemount
    #[arg(long, short = 'f', value_name = "FILTER")]
    filter: Vec<String>,
    /// Everything known about each record
    #[arg(long, short = 'v')]
    verbose: bool,
    /// Print with a template, e.g. json
    #[arg(long, value_name = "TEMPLATE")]
    format: Option<String>,
}

impl DuArgs {
    /// Prints the table and its sums.
    pub async fn run(&self, connection: &ConnectionArgs) -> anyhow::Result<ExitCode> {
        let format = self.format.as_deref().map(Format::parse).transpose()?;
        let client = connection.connect().await?;
        let mut control = client.control();
        let request = DiskUsageRequest { filter: self.filter.clone(), age_limit: 0 };
        let answer = control.disk_usage(request).await;
        let mut records =
            answer.map_err(ClientError::rpc("failed to get disk usage"))?.into_inner().record;
        records.sort_by(|a, b| (a.size, &a.id).cmp(&(b.size, &b.id)));
        if let Some(format) = format {
            println!("{}", format.apply(&records.iter().map(record_json).collect())?);
            return Ok(ExitCode::SUCCESS);
        }
        if self.verbose {
            records.iter().for_each(|record| print!("{}", verbose(record)));
        } else {
            let rows = records.iter().map(row);
            print!("{}", tabbed(&std::iter::once(header()).chain(rows).collect::<Vec<_>>()));
        }
        if self.filter.is_empty() {
            print!("{}", summary(&records));
        }
        // Daemons that are not ours do not tell.
        if self.verbose
            && let Ok(usage) = client.storage().usage(StorageUsageRequest {}).await
        {
            print!("{}", rest(usage.get_ref()));
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Column names of the short table.
pub fn header() -> Vec<String> {
    cells(["ID", "RECLAIMABLE", "SIZE", "LAST ACCESSED"])
}

/// One line of the short table; stars mark mutable and shared records.
pub fn row(record: &UsageRecord) -> Vec<String> {
    let star = |yes| if yes { "*" } else { "" };
    let id = format!("{}{}", record.id, star(record.mutable));
    let size = format!("{}{}", format_bytes(record.size), star(record.shared));
    let used = record.last_used_at.as_ref().map(text::ago).unwrap_or_default();
    vec![format!("{id:<71}"), format!("{:<11}", !record.in_use), size, used]
}

/// All of a record, one line a field, and an empty line.
pub fn verbose(record: &UsageRecord) -> String {
    let mut lines = Vec::new();
    let mut put = |key: &str, value: String| lines.push(vec![format!("{key}:"), value]);
    put("ID", record.id.clone());
    if !record.parents.is_empty() {
        put("Parents", record.parents.join(";"));
    }
    put("Created at", record.created_at.as_ref().map(text::go_time).unwrap_or_default());
    put("Mutable", record.mutable.to_string());
    put("Reclaimable", (!record.in_use).to_string());
    put("Shared", record.shared.to_string());
    put("Size", format_bytes(record.size));
    if !record.description.is_empty() {
        put("Description", record.description.clone());
    }
    put("Usage count", record.usage_count.to_string());
    if let Some(at) = &record.last_used_at {
        put("Last used", text::go_time(at));
    }
    if !record.record_type.is_empty() {
        put("Type", record.record_type.clone());
    }
    tabbed(&lines) + "\n"
}

fn summary(records: &[UsageRecord]) -> String {
    let sum = |pick: fn(&UsageRecord) -> bool| -> i64 {
        records
            .iter()
            .filter(|record| record.size > 0 && pick(record))
            .map(|record| record.size)
            .sum()
    };
    let total = sum(|_| true);
    let shared = sum(|record| record.shared);
    let mut lines = Vec::new();
    let mut put = |key: &str, size: i64| lines.push(vec![key.to_owned(), format_bytes(size)]);
    if shared > 0 {
        put("Shared:", shared);
        put("Private:", total - shared);
    }
    put("Reclaimable:", sum(|record| !record.in_use));
    put("Total:", total);
    tabbed(&lines)
}

/// What belongs to no record, and the limit.
pub fn rest(usage: &StorageUsageResponse) -> String {
    let mut lines = Vec::new();
    let mut put = |key: &str, size: i64| lines.push(vec![key.to_owned(), format_bytes(size)]);
    put("Blobs of images and history:", usage.blobs);
    put("Metadata:", usage.metadata);
    put("Volumes:", usage.volumes);
    put("Work in flight, logs, folders:", usage.other);
    let parts = [usage.records, usage.blobs, usage.metadata, usage.volumes, usage.other];
    put("On disk:", parts.into_iter().sum());
    if usage.ceiling > 0 {
        put("Ceiling:", usage.ceiling);
    }
    tabbed(&lines)
}

/// A record under the field names of the Go client.
pub fn record_json(record: &UsageRecord) -> Value {
    json!({
        "id": record.id,
        "mutable": record.mutable,
        "inUse": record.in_use,
        "size": record.size,
        "createdAt": record.created_at.as_ref().map(|at| base::time::rfc3339_nano(text::instant(at))),
        "lastUsedAt": record.last_used_at.as_ref().map(|at| base::time::rfc3339_nano(text::instant(at))),
        "usageCount": record.usage_count,
        "parents": record.parents,
        "description": record.description,
        "recordType": record.record_type,
        "shared": record.shared,
    })
}
