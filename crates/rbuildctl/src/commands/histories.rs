//! Records of builds: `debug histories`, `logs`, `monitor` and `ctl`, and `prune-histories`.
//!
//! Every command asks for the daemon's events about builds: those that ended, those that run and,
//! for who stays, those to come.

use std::process::ExitCode;

use anyhow::{Context as _, bail};
use clap::Args;
use client::{Client, ClientError};
use proto::control::{
    BuildHistoryEvent, BuildHistoryEventType, BuildHistoryRecord, BuildHistoryRequest,
    BuildResultInfo, Descriptor, StatusRequest, UpdateBuildHistoryRequest,
};
use serde_json::{Value, json};
use tonic::Streaming;

use super::debug;
use crate::{
    connection::ConnectionArgs,
    format::Format,
    table::{cells, tabbed},
    text,
};

async fn events(
    client: &Client,
    request: BuildHistoryRequest,
) -> anyhow::Result<Streaming<BuildHistoryEvent>> {
    let events = client.control().listen_build_history(request).await;
    Ok(events.map_err(ClientError::rpc("failed to list build history"))?.into_inner())
}

async fn next(
    events: &mut Streaming<BuildHistoryEvent>,
) -> anyhow::Result<Option<BuildHistoryEvent>> {
    Ok(events.message().await.map_err(ClientError::rpc("failed to list build history"))?)
}

fn kind(event: &BuildHistoryEvent) -> &'static str {
    match event.r#type() {
        BuildHistoryEventType::Started => "STARTED",
        BuildHistoryEventType::Complete => "COMPLETE",
        BuildHistoryEventType::Deleted => "DELETED",
    }
}

fn event_json(event: &BuildHistoryEvent) -> Value {
    let record = event.record.clone().unwrap_or_default();
    let time = |at: &Option<prost_types::Timestamp>| at.as_ref().map(text::rfc3339);
    let error = record.error.as_ref().map(|error| &error.message);
    json!({
        "type": kind(event),
        "record": {
            "ref": record.r#ref,
            "frontend": record.frontend,
            "frontendAttrs": record.frontend_attrs,
            "createdAt": time(&record.created_at),
            "completedAt": time(&record.completed_at),
            "error": error,
            "pinned": record.pinned,
            "numCachedSteps": record.num_cached_steps,
            "numTotalSteps": record.num_total_steps,
            "numCompletedSteps": record.num_completed_steps,
            "numWarnings": record.num_warnings,
            "generation": record.generation,
        },
    })
}

const HEADER: [&str; 6] = ["TYPE", "REF", "CREATED", "COMPLETED", "GENERATION", "PINNED"];

fn row(event: &BuildHistoryEvent) -> [String; 6] {
    let record = event.record.clone().unwrap_or_default();
    let time = |at: &Option<prost_types::Timestamp>| at.as_ref().map(text::rfc3339);
    [
        kind(event).to_owned(),
        record.r#ref.clone(),
        time(&record.created_at).unwrap_or_default(),
        time(&record.completed_at).unwrap_or_default(),
        record.generation.to_string(),
        if record.pinned { "*".into() } else { String::new() },
    ]
}

/// Show past and running builds
#[derive(Args, Debug)]
pub struct HistoriesArgs {
    /// Print each event with a template, e.g. json
    #[arg(long, value_name = "TEMPLATE")]
    format: Option<String>,
}

impl HistoriesArgs {
    /// Prints the table.
    pub async fn run(&self, connection: &ConnectionArgs) -> anyhow::Result<()> {
        let format = self.format.as_deref().map(Format::parse).transpose()?;
        let request = BuildHistoryRequest { early_exit: true, ..BuildHistoryRequest::default() };
        let mut events = events(&connection.connect().await?, request).await?;
        let mut lines = vec![cells(HEADER)];
        while let Some(event) = next(&mut events).await? {
            match &format {
                Some(format) => println!("{}", format.apply(&event_json(&event))?),
                None => lines.push(row(&event).into()),
            }
        }
        if format.is_none() {
            print!("{}", tabbed(&lines));
        }
        Ok(())
    }
}

/// Remove records of past builds
#[derive(Args, Debug)]
pub struct PruneHistoriesArgs {
    /// Print each removed record with a template, e.g. json
    #[arg(long, value_name = "TEMPLATE")]
    format: Option<String>,
}

impl PruneHistoriesArgs {
    /// Deletes every finished build that is not pinned; goes on after a failure.
    pub async fn run(&self, connection: &ConnectionArgs) -> anyhow::Result<ExitCode> {
        let format = self.format.as_deref().map(Format::parse).transpose()?;
        let client = connection.connect().await?;
        let request = BuildHistoryRequest { early_exit: true, ..BuildHistoryRequest::default() };
        let mut events = events(&client, request).await?;
        let mut finished = Vec::new();
        while let Some(event) = next(&mut events).await? {
            let done = event.r#type() == BuildHistoryEventType::Complete;
            if done && event.record.as_ref().is_some_and(|record| !record.pinned) {
                finished.push(event);
            }
        }
        let mut lines = vec![cells(HEADER)];
        let mut code = ExitCode::SUCCESS;
        for event in finished {
            let mut request = UpdateBuildHistoryRequest::default();
            request.r#ref.clone_from(&event.record.clone().unwrap_or_default().r#ref);
            request.delete = true;
            if let Err(status) = client.control().update_build_history(request).await {
                let error: anyhow::Error =
                    ClientError::rpc("failed to delete a build")(status).into();
                eprintln!("error: {error:#}");
                code = ExitCode::FAILURE;
                continue;
            }
            match &format {
                Some(format) => println!("{}", format.apply(&event_json(&event))?),
                None => lines.push(row(&event).into()),
            }
        }
        if format.is_none() {
            print!("{}", tabbed(&lines));
        }
        Ok(code)
    }
}

/// Show the progress of a build again, by its ref
#[derive(Args, Debug)]
pub struct LogsArgs {
    /// The build's ref, as `debug histories` lists it
    reference: String,
    /// Progress: auto, plain, tty, rawjson or quiet
    #[arg(long, value_name = "MODE", default_value = "plain")]
    progress: String,
    /// Print the build's trace instead, as OpenTelemetry's JSON
    #[arg(long)]
    trace: bool,
}

impl LogsArgs {
    /// Prints it to standard error, a trace to standard output.
    pub async fn run(&self, connection: &ConnectionArgs) -> anyhow::Result<()> {
        if self.trace {
            return self.trace(&connection.connect().await?).await;
        }
        let mut display = client::progress::Display::stderr(self.progress.parse()?)?;
        let mut control = connection.connect().await?.control();
        let fail = ClientError::rpc("failed to get status");
        let mut request = StatusRequest::default();
        request.r#ref.clone_from(&self.reference);
        let mut statuses = control.status(request).await.map_err(&fail)?.into_inner();
        while let Some(status) = statuses.message().await.map_err(&fail)? {
            display.update(status);
        }
        display.finish();
        Ok(())
    }

    async fn trace(&self, client: &Client) -> anyhow::Result<()> {
        let reference = &self.reference;
        let mut request =
            BuildHistoryRequest { early_exit: true, ..BuildHistoryRequest::default() };
        request.r#ref.clone_from(reference);
        let event = next(&mut events(client, request).await?).await?;
        let record = event.and_then(|event| event.record);
        let record = record.with_context(|| format!("ref {reference} not found"))?;
        let trace = record.trace.with_context(|| {
            format!("ref {reference} does not have a trace: its client sent none")
        })?;
        debug::print_blob(client, &trace.digest).await
    }
}

/// Follow builds as they begin and end
#[derive(Args, Debug)]
pub struct MonitorArgs {
    /// Begin with builds that have ended
    #[arg(long)]
    completed: bool,
    /// Only this build
    #[arg(long = "ref", value_name = "REF")]
    reference: Option<String>,
}

impl MonitorArgs {
    /// Prints events until it is interrupted or the daemon goes.
    pub async fn run(&self, connection: &ConnectionArgs) -> anyhow::Result<()> {
        let mut request =
            BuildHistoryRequest { active_only: !self.completed, ..BuildHistoryRequest::default() };
        request.r#ref = self.reference.clone().unwrap_or_default();
        let mut events = events(&connection.connect().await?, request).await?;
        while let Some(event) = next(&mut events).await? {
            let record = event.record.clone().unwrap_or_default();
            print!("{}", shown(kind(&event), &record));
        }
        Ok(())
    }
}

/// An event and what is known of its build, as buildctl prints them.
fn shown(kind: &str, record: &BuildHistoryRecord) -> String {
    let mut lines = vec![format!("event: {kind} ref:{}", record.r#ref)];
    let mut put = |key: &str, value: String| lines.push(format!("  {key}: {value}"));
    if record.num_total_steps != 0 {
        put("cache", format!("{}/{}", record.num_cached_steps, record.num_total_steps));
    }
    if record.num_warnings != 0 {
        put("warnings", record.num_warnings.to_string());
    }
    let files = [("logs", &record.logs), ("trace", &record.trace)];
    for (key, file) in files.into_iter().filter_map(|(key, file)| Some((key, file.as_ref()?))) {
        put(key, descriptor(file));
    }
    let mut result = |prefix: &str, result: &BuildResultInfo| {
        let mut all: Vec<_> = result.results.iter().collect();
        all.sort_by_key(|(number, _)| **number);
        let old = result.result_deprecated.as_ref().filter(|_| all.is_empty());
        for found in all.into_iter().map(|(_, found)| found).chain(old) {
            put(&format!("{prefix}descriptor"), descriptor(found));
        }
        for statement in &result.attestations {
            put(&format!("{prefix}attestation"), descriptor(statement));
        }
    };
    if let Some(only) = &record.result {
        result("", only);
    }
    let mut members: Vec<_> = record.results.iter().collect();
    members.sort_by_key(|(name, _)| *name);
    for (name, member) in members {
        result(&format!("[{name}] "), member);
    }
    lines.iter().map(|line| format!("{line}\n")).collect()
}

fn descriptor(it: &Descriptor) -> String {
    format!("media_type:{:?} digest:{:?} size:{}", it.media_type, it.digest, it.size)
}

/// Keep or remove the record of a build
#[derive(Args, Debug)]
pub struct CtlArgs {
    /// The build's ref, as `debug histories` lists it
    reference: String,
    /// Keep it whatever is collected
    #[arg(long)]
    pin: bool,
    /// Let it be collected
    #[arg(long)]
    unpin: bool,
    /// Remove it
    #[arg(long)]
    delete: bool,
}

impl CtlArgs {
    /// Changes it.
    pub async fn run(&self, connection: &ConnectionArgs) -> anyhow::Result<()> {
        match (self.pin, self.unpin, self.delete) {
            (false, false, false) => bail!("must specify one of --pin, --unpin, --delete"),
            (true, true, _) => bail!("cannot specify both --pin and --unpin"),
            (pin, unpin, true) if pin || unpin => {
                bail!("cannot specify --delete with --pin or --unpin")
            }
            _ => {}
        }
        let mut request = UpdateBuildHistoryRequest::default();
        request.r#ref.clone_from(&self.reference);
        request.pinned = self.pin;
        request.delete = self.delete;
        let updated = connection.connect().await?.control().update_build_history(request).await;
        updated.map_err(ClientError::rpc("failed to update the build's record"))?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_printed_as_buildctl_prints_them() {
        let file = |digest: &str| Descriptor {
            media_type: "a/b".into(),
            digest: digest.into(),
            size: 3,
            ..Descriptor::default()
        };
        let mut record = BuildHistoryRecord {
            num_total_steps: 4,
            num_cached_steps: 1,
            logs: Some(file("sha256:1")),
            result: Some(BuildResultInfo {
                results: [(0, file("sha256:2"))].into(),
                ..BuildResultInfo::default()
            }),
            ..BuildHistoryRecord::default()
        };
        record.r#ref = "abc".into();
        assert_eq!(
            shown("COMPLETE", &record),
            "event: COMPLETE ref:abc\n  cache: 1/4\n  \
             logs: media_type:\"a/b\" digest:\"sha256:1\" size:3\n  \
             descriptor: media_type:\"a/b\" digest:\"sha256:2\" size:3\n"
        );
    }
}
