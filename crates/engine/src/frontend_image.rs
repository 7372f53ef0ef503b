//! Frontends that are images: pulled, run in a container, asked over its standard streams.
//!
//! The image is a ref like any other, so it is cached and pulled as images are. Its process gets the
//! build's options in the environment, the bridge on stdin and stdout, and a throw-away root; what
//! it returns is the result of the run. Invariant: when [`run`] has returned or was dropped, the
//! process is gone or about to be killed, and no ref it did not return is held.
//! Source: gateway notes §1.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use base::Platform;
use dockerfile::context::{Client, NamedSource};
use executor::{
    ExecError, Exit, Hooks, Io, Mount, MountOptions, MountSource, Network, Root, Secret, Spec,
};
use frontend_api::{
    Bridge as _, Code, FrontendError, FrontendResult, SolveRequest, SourceMetaRequest,
};
use gateway::Run;
use llb::{
    build::{Graph, MarshalOptions, Meta, Output, Source},
    pb,
};
use prost::Message as _;
use serde_json::json;
use store::NewRecord;
use tokio::io::AsyncBufReadExt as _;
use tokio_util::sync::CancellationToken;

use crate::{Containers, bridge, bridge::JobBridge, capabilities, failure};

/// How long a frontend may take to end after it has returned its result.
const GRACE: Duration = Duration::from_secs(10);
/// Last lines of its errors that are told when it fails.
const TOLD_LINES: usize = 8;
/// Labels of frontend images.
const CAPS_LABEL: &str = "moby.buildkit.frontend.caps";
const NO_NETWORK_LABEL: &str = "moby.buildkit.frontend.network.none";
/// Capability of taking inputs.
const INPUTS_CAP: &str = "moby.buildkit.frontend.inputs";
/// Releases of the Dockerfile frontend that take inputs without saying so: 1.1.6 and 1.1.7, each
/// with its experimental form.
const SILENT_WITH_INPUTS: [&str; 4] = [
    "sha256:9ac1c43a60e31dca741a6fe8314130a9cd4c4db0311fbbc636ff992ef60ae76d",
    "sha256:080bd74d8778f83e7b670de193362d8c593c8b14f5c8fb919d28ee8feda0d069",
    "sha256:60543a9d92b92af5088fb2938fb09b2072684af8384399e153e137fe081f8ab4",
    "sha256:de85b2f3a3e8a2f7fe48e8e84a65f6fdd5cd5183afa6412fff9caa6871649c44",
];
/// Where the frontend finds the graph of its own image.
const METADATA: &str = "/run/config/buildkit/metadata/frontend.bin";

/// A frontend image, ready to be run.
struct Image {
    definition: pb::Definition,
    config: oci::config::RunConfig,
    /// Of its manifest or index; empty if it did not come from a registry.
    digest: String,
}

/// Runs the image that the options name.
pub(crate) async fn run(bridge: Arc<JobBridge>) -> Result<FrontendResult, FrontendError> {
    let source = bridge.options.get("source").cloned().unwrap_or_default();
    let outcome = run_image(&bridge, &source).await;
    outcome.map_err(|error| {
        let detail = json!({"name": "gateway.v0", "source": source});
        error
            .detail("github.com/moby/buildkit/errdefs.Frontend+json", base::gojson::to_vec(&detail))
    })
}

async fn run_image(bridge: &Arc<JobBridge>, source: &str) -> Result<FrontendResult, FrontendError> {
    if bridge.options.contains_key("gateway-devel") {
        return Err(FrontendError::with_code(
            Code::Unimplemented,
            "the development gateway (gateway-devel) is no longer supported; \
             name the frontend's image with source",
        ));
    }
    if source.is_empty() {
        return Err(FrontendError::with_code(
            Code::InvalidArgument,
            "no source specified for gateway",
        ));
    }
    bridge.engine.allow_frontend(source)?;
    let image = match named_context(bridge, source).await? {
        Some(image) => image,
        None => image(bridge, source).await?,
    };
    check_caps(bridge, &image)?;
    let request = SolveRequest::definition(image.definition.clone());
    let solved = bridge.solve(request).await?;
    let handle = solved
        .single_ref()
        .ok_or_else(|| FrontendError::new(format!("frontend image {source} is empty")))?;
    let (image_ref, _) = bridge::lazy(handle)?
        .tree()
        .await?
        .ok_or_else(|| FrontendError::new(format!("frontend image {source} is empty")))?;
    let record = NewRecord {
        parent: Some(&image_ref),
        description: format!("root of frontend {source}"),
        ..NewRecord::default()
    };
    let failed = |error| failure::internal("make the root of a frontend", error);
    let written = bridge.engine.store().create(record).map_err(failed)?;
    let tree = written.tree().map_err(failed)?;
    let fd = tree.fd().try_clone_to_owned();
    let fd = fd.map_err(|error| failure::internal("duplicate a descriptor", error))?;
    let mut spec = spec(bridge, &image, Root { tree: Arc::new(fd), readonly: false });
    let proxy = match has_network(&image) {
        true => bridge.engine.behind_proxy(&bridge.job, &mut spec).await?,
        false => None,
    };
    let (io, pipes) =
        Io::piped().map_err(|error| failure::internal("make the streams of a frontend", error))?;

    let containers = Containers::new(bridge.engine.clone(), bridge.job.clone());
    let (run, returned) = Run::new(bridge.clone(), Arc::new(containers));
    let cancel = CancellationToken::new();
    // When the build is cancelled we are dropped; the task then kills the process and cleans up.
    let _killed_with_us = cancel.clone().drop_guard();
    let hooks = Hooks { cancel: cancel.clone(), ..Hooks::default() };
    let executor = bridge.engine.machine.executor.clone();
    let name = source.to_owned();
    let running = tokio::spawn(async move {
        let serving =
            gateway::stdio::serve(run.clone(), capabilities::LLB, pipes.stdout, pipes.stdin);
        let (serving, errors) = (tokio::spawn(serving), tokio::spawn(errors(name, pipes.stderr)));
        let (exit, returned) = attend(executor.run(spec, io, hooks), returned, &cancel).await;
        serving.abort();
        run.close().await;
        if let Some(proxy) = proxy {
            proxy.finish().await;
        }
        drop((tree, written, image_ref));
        (exit, returned, errors.await.unwrap_or_default())
    });
    let (exit, returned, errors) = running
        .await
        .map_err(|error| failure::internal("wait for the process of a frontend", error))?;
    conclude(source, exit, returned, &errors)
}

/// Waits for the process; one that does not end after it has returned something is ended.
async fn attend(
    process: impl Future<Output = Result<Exit, ExecError>>,
    mut returned: tokio::sync::oneshot::Receiver<Result<FrontendResult, FrontendError>>,
    cancel: &CancellationToken,
) -> (Result<Exit, ExecError>, Option<Result<FrontendResult, FrontendError>>) {
    let mut process = std::pin::pin!(process);
    tokio::select! {
        exit = &mut process => (exit, returned.try_recv().ok()),
        outcome = &mut returned => {
            let Ok(exit) = tokio::time::timeout(GRACE, &mut process).await else {
                cancel.cancel();
                _ = process.await;
                return (Ok(Exit::default()), outcome.ok());
            };
            (exit, outcome.ok())
        }
    }
}

/// Which of the things that ended a run counts.
fn conclude(
    source: &str,
    exit: Result<Exit, ExecError>,
    returned: Option<Result<FrontendResult, FrontendError>>,
    errors: &str,
) -> Result<FrontendResult, FrontendError> {
    let failed = match exit {
        Ok(Exit { code: 0, .. }) => None,
        Ok(exit) => Some(format!("exit code: {}", exit.code)),
        Err(ExecError::Cancelled) => {
            return Err(FrontendError::with_code(Code::Canceled, "context canceled"));
        }
        Err(error) => Some(error.to_string()),
    };
    match (returned, failed) {
        (Some(Err(error)), _) => Err(error),
        (Some(Ok(result)), None) => Ok(result),
        (_, Some(reason)) => {
            let mut text = format!("frontend image {source} failed: {reason}");
            if !errors.is_empty() {
                text = format!("{text}: {errors}");
            }
            Err(FrontendError::new(text))
        }
        (None, None) => Err(FrontendError::new(format!(
            "frontend image {source} ended without a result: no result for incomplete build"
        ))),
    }
}

/// Passes what the frontend writes to its errors to the log; gives its last lines.
async fn errors(source: String, pipe: tokio::net::unix::pipe::Receiver) -> String {
    let mut lines = tokio::io::BufReader::new(pipe).split(b'\n');
    let mut last = std::collections::VecDeque::new();
    while let Ok(Some(line)) = lines.next_segment().await {
        let line = String::from_utf8_lossy(&line).into_owned();
        tracing::info!(frontend = source, "{line}");
        if last.len() == TOLD_LINES {
            last.pop_front();
        }
        last.push_back(line);
    }
    Vec::from(last).join("\n")
}

/// The image a build puts in the place of the one named, if it does.
async fn named_context(
    bridge: &Arc<JobBridge>,
    source: &str,
) -> Result<Option<Image>, FrontendError> {
    if !bridge.options.keys().any(|key| key.starts_with("context:")) {
        return Ok(None);
    }
    let said = |error: dockerfile::error::Error| {
        let text = error.to_string();
        let cause = error.cause.map(|cause| *cause).unwrap_or_default();
        FrontendError { message: text, ..cause }
    };
    let client = Client::new(bridge.clone(), false).await.map_err(said)?;
    let Some(context) = client.named_context(source, None).map_err(said)? else {
        return Ok(None);
    };
    let loaded = client.load_context(&context).await.map_err(said)?;
    let mut graph = Graph::new();
    let output = match &loaded.source {
        None => None,
        Some(NamedSource::Fixed(source)) => source.add_to(&mut graph).map_err(said)?,
        Some(NamedSource::Image { source, name }) => {
            Some(graph.source(source.clone(), Meta::named(name.clone())))
        }
        Some(NamedSource::Local(folder)) => {
            Some(graph.source(folder.source(Vec::new()), Meta::named(folder.name.clone())))
        }
    };
    let config = match &loaded.image {
        None => oci::config::RunConfig::default(),
        Some(image) => {
            let json = serde_json::to_vec(image)
                .map_err(|error| failure::internal("write an image config", error))?;
            parse_config(source, &json)?
        }
    };
    Ok(Some(Image { definition: marshal(&graph, output)?, config, digest: String::new() }))
}

fn marshal(graph: &Graph, output: Option<Output>) -> Result<pb::Definition, FrontendError> {
    graph
        .marshal(output, &MarshalOptions::default())
        .map_err(|error| failure::internal("write the graph of a frontend image", error))
}

fn parse_config(source: &str, json: &[u8]) -> Result<oci::config::RunConfig, FrontendError> {
    let config: oci::ImageConfig = serde_json::from_slice(json)
        .map_err(|error| FrontendError::new(format!("config of frontend {source}: {error}")))?;
    Ok(config.config)
}

/// The image from its registry, pinned to what it leads to now.
async fn image(bridge: &Arc<JobBridge>, source: &str) -> Result<Image, FrontendError> {
    let bad = |error: oci::ParseReferenceError| {
        FrontendError::with_code(Code::InvalidArgument, format!("frontend image: {error}"))
    };
    let reference = oci::Reference::parse(source).map_err(bad)?.with_default_tag();
    let op =
        pb::SourceOp { identifier: format!("docker-image://{reference}"), attrs: BTreeMap::new() };
    let request = SourceMetaRequest {
        source: op,
        platform: Some(bridge::default_platform(&bridge.engine)),
        log_name: format!("resolve image config for docker-image://{reference}"),
        ..SourceMetaRequest::default()
    };
    let meta = bridge.resolve_source_meta(request).await?;
    let name = meta.source.identifier.strip_prefix("docker-image://").ok_or_else(|| {
        FrontendError::new(format!(
            "frontend image {source} was replaced by {}, which is no image",
            meta.source.identifier
        ))
    })?;
    let image = meta.image.unwrap_or_default();
    let mut reference = oci::Reference::parse(name).map_err(bad)?;
    if let (None, Ok(digest)) = (reference.digest(), image.digest.parse()) {
        reference = reference.with_digest(digest);
    }
    let config = parse_config(source, &image.config)?;
    let mut wanted = Source::image(&reference.to_string());
    wanted.attr("image.recordtype", "frontend");
    let mut graph = Graph::new();
    let meta = Meta::default().with_platform(bridge::default_platform(&bridge.engine));
    let output = graph.source(wanted, meta);
    Ok(Image { definition: marshal(&graph, Some(output))?, config, digest: image.digest })
}

/// Refuses what the frontend cannot do, before it does something else.
fn check_caps(bridge: &JobBridge, image: &Image) -> Result<(), FrontendError> {
    let offered = image.config.labels.get(CAPS_LABEL).map(String::as_str).unwrap_or_default();
    let mut offered = caps(offered);
    if SILENT_WITH_INPUTS.contains(&image.digest.as_str()) {
        offered.insert(INPUTS_CAP);
    }
    let mut needed = caps(bridge.options.get("frontend.caps").map_or("", String::as_str));
    if !bridge.inputs.is_empty() {
        needed.insert(INPUTS_CAP);
    }
    match needed.difference(&offered).next() {
        None => Ok(()),
        Some(missing) => {
            let text = format!("unsupported frontend capability {missing}");
            Err(FrontendError::with_code(Code::Unimplemented, text).detail(
                "github.com/moby/buildkit/errdefs.FrontendCap+json",
                base::gojson::to_vec(&json!({"name": missing})),
            ))
        }
    }
}

/// A comma separated list; what follows a `+` is a wish and not a need.
fn caps(list: &str) -> BTreeSet<&str> {
    let names = list.split(',').map(|name| name.split('+').next().unwrap_or_default().trim());
    names.filter(|name| !name.is_empty()).collect()
}

fn spec(bridge: &JobBridge, image: &Image, root: Root) -> Spec {
    let config = &image.config;
    let machine = &bridge.engine.machine;
    let mut env = config.env.clone();
    for (number, (key, value)) in bridge.options.iter().enumerate() {
        env.push(format!("BUILDKIT_FRONTEND_OPT_{number}={key}={value}"));
    }
    env.push(format!("BUILDKIT_SESSION_ID={}", bridge.job.session));
    env.push(format!("BUILDKIT_WORKERS={}", workers(bridge)));
    env.push(format!("BUILDKIT_EXPORTEDPRODUCT={}", bridge.exported_product()));
    executor::env::with_default_path("linux", &mut env);
    let args = match config.entrypoint.as_slice() {
        [] => vec!["/run".to_owned()],
        entrypoint => entrypoint.to_vec(),
    };
    let process = executor::Process {
        args,
        env,
        cwd: if config.working_dir.is_empty() { "/".into() } else { config.working_dir.clone() },
        ..executor::Process::default()
    };
    let mut spec = Spec::new(base::id::random_id(), root, process);
    spec.network = if has_network(image) { machine.config.network } else { Network::None };
    let metadata = Mount {
        dest: METADATA.to_owned(),
        source: MountSource::File {
            data: Secret(image.definition.encode_to_vec().into()),
            uid: 0,
            gid: 0,
            mode: 0o400,
        },
        readonly: true,
        options: MountOptions { nosuid: true, nodev: true, noexec: true },
    };
    // A program called `/run` leaves no room for a folder of that name.
    spec.mounts = if config.entrypoint.is_empty() { Vec::new() } else { vec![metadata] };
    spec.dns = machine.config.dns.clone();
    spec.cgroup_parent = machine.config.cgroup_parent.clone();
    spec.no_process_sandbox = machine.config.no_process_sandbox;
    spec.apparmor_profile = machine.config.apparmor_profile.clone();
    spec.remove_mount_stubs_recursive = true;
    spec
}

fn has_network(image: &Image) -> bool {
    !image.config.labels.get(NO_NETWORK_LABEL).is_some_and(|value| is_true(value))
}

fn is_true(value: &str) -> bool {
    matches!(value, "1" | "t" | "T" | "true" | "TRUE" | "True")
}

/// The workers as the official client library reads them.
fn workers(bridge: &JobBridge) -> String {
    let platform = |platform: &Platform| {
        let mut json = json!({"architecture": platform.architecture, "os": platform.os});
        if !platform.variant.is_empty() {
            json["variant"] = platform.variant.clone().into();
        }
        json
    };
    let list: Vec<_> = bridge
        .workers()
        .iter()
        .map(|worker| {
            json!({
                "id": worker.id,
                "labels": worker.labels,
                "platforms": worker.platforms.iter().map(platform).collect::<Vec<_>>(),
                "gcPolicy": null,
                "buildkitVersion": {
                    "package": "rbuild",
                    "version": env!("CARGO_PKG_VERSION"),
                    "revision": "",
                },
                "cdiDevices": null,
            })
        })
        .collect();
    String::from_utf8_lossy(&base::gojson::to_vec(&list)).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(code: i32) -> Result<Exit, ExecError> {
        Ok(Exit { code, ..Exit::default() })
    }

    #[test]
    fn what_ended_first_is_told() {
        let returned_error = || Some(Err(FrontendError::new("said so")));
        let text = |outcome: Result<FrontendResult, FrontendError>| outcome.unwrap_err().message;
        assert!(conclude("x", ended(0), Some(Ok(FrontendResult::default())), "").is_ok());
        assert_eq!(text(conclude("x", ended(1), returned_error(), "noise")), "said so");
        let crashed = conclude("x", ended(2), Some(Ok(FrontendResult::default())), "boom");
        assert_eq!(text(crashed), "frontend image x failed: exit code: 2: boom");
        assert!(text(conclude("x", ended(0), None, "")).contains("no result"));
    }

    #[test]
    fn wishes_are_no_needs() {
        let expected: BTreeSet<&str> = ["a.b", "c"].into();
        assert_eq!(caps("a.b+forward, c,,"), expected);
    }
}
