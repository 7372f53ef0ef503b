//! Runs a prepared build: session, progress, interruption, and the files written afterwards.

use std::{fs::File, io::Write as _, path::Path};

use anyhow::Context as _;
use base64::{Engine as _, prelude::BASE64_STANDARD as BASE64};
use client::{
    BuildOutcome, BuildRequest, Cancel, Client, ClientError,
    progress::{Display, Mode, TtyOptions, status_json, warnings_summary},
};
use proto::control::StatusResponse;
use serde_json::{Map, Value};
use tokio::sync::mpsc;

use super::{BuildArgs, docker, output::Form, parse};

/// Status messages that may wait for the display; the build goes on meanwhile.
const WAITING_STATUSES: usize = 1024;

/// Flags that both forms share.
pub fn common(args: &BuildArgs, form: Form, request: &mut BuildRequest) -> anyhow::Result<()> {
    docker::parse_outputs(&args.output, form, request)?;
    for text in &args.secret {
        request.secrets.push(parse::secret(text)?);
    }
    for text in &args.ssh {
        request.ssh.push(parse::ssh(text)?);
    }
    for text in &args.allow {
        request.entitlements.push(parse::entitlement(text)?);
    }
    if let Some(jobs) = args.jobs {
        request.frontend_attrs.insert("rbuild.jobs".into(), jobs.to_string());
    }
    if let Some(path) = &args.source_policy_file {
        request.source_policy = Some(parse::source_policy(path)?);
    }
    request.proxy_network = args.proxy_network;
    Ok(())
}

/// Builds with progress on standard error; interrupting twice leaves at once.
pub async fn execute(
    client: &Client,
    request: BuildRequest,
    args: &BuildArgs,
    mode: Mode,
    debug: bool,
) -> anyhow::Result<BuildOutcome> {
    if let Some(path) = &args.ref_file {
        std::fs::write(path, &request.reference)
            .with_context(|| format!("writing {}", path.display()))?;
    }
    let trace = match &args.trace {
        Some(path) => {
            let open = File::options().create(true).append(true).open(path);
            Some(open.with_context(|| format!("opening {}", path.display()))?)
        }
        None => None,
    };
    let display = Display::stderr(mode)?;
    let (sender, receiver) = mpsc::channel(WAITING_STATUSES);
    let shown = tokio::spawn(display.follow(traced(receiver, trace)));
    let cancel = Cancel::new();
    let watch = tokio::spawn(interrupted(cancel.clone()));
    let result = client.build(request, Some(sender), cancel.clone()).await;
    watch.abort();
    let warnings = shown.await.unwrap_or_default();
    let outcome = match result {
        Err(_) if cancel.is_canceled() => return Err(ClientError::Canceled.into()),
        result => result?,
    };
    if !matches!(mode, Mode::Quiet | Mode::RawJson) {
        let color =
            TtyOptions::default().color && std::io::IsTerminal::is_terminal(&std::io::stderr());
        eprint!("{}", warnings_summary(&warnings, debug, color));
    }
    if let Some(path) = &args.metadata_file {
        write_metadata(path, &outcome)?;
    }
    Ok(outcome)
}

/// First interrupt cancels the build, the second ends the program.
async fn interrupted(cancel: Cancel) {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut interrupt), Ok(mut terminate)) =
        (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        return;
    };
    loop {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        if cancel.is_canceled() {
            std::process::exit(130);
        }
        cancel.cancel();
    }
}

/// Copies every message to the trace file on its way to the display.
fn traced(
    mut statuses: mpsc::Receiver<StatusResponse>,
    trace: Option<File>,
) -> mpsc::Receiver<StatusResponse> {
    let Some(mut trace) = trace else { return statuses };
    let (sender, receiver) = mpsc::channel(WAITING_STATUSES);
    tokio::spawn(async move {
        while let Some(status) = statuses.recv().await {
            if let Err(error) = trace.write_all(&status_json(&status)) {
                tracing::warn!("writing the trace file: {error}");
            }
            if sender.send(status).await.is_err() {
                return;
            }
        }
    });
    receiver
}

/// The exporters' answers as JSON; values that are encoded JSON objects are written as objects.
fn write_metadata(path: &Path, outcome: &BuildOutcome) -> anyhow::Result<()> {
    let mut object = Map::new();
    for (key, value) in &outcome.response {
        let decoded = BASE64.decode(value).ok();
        let inner =
            decoded.and_then(|bytes| serde_json::from_slice::<Map<String, Value>>(&bytes).ok());
        let value = match inner {
            Some(inner) if !inner.is_empty() => Value::Object(inner),
            _ => Value::String(value.clone()),
        };
        object.insert(key.clone(), value);
    }
    base::fs::write_atomic(path, &base::gojson::to_vec_indented(&object), false)?;
    Ok(())
}
