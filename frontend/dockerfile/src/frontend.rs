//! The frontend itself: one run from options to result.
//!
//! A run reads the Dockerfile, hands over to another frontend if the file or the client asks for
//! that, answers a sub-request, or converts the file for every target platform and has the graphs
//! solved.
//!
//! Source: Dockerfile notes §2; gateway notes §5–7.

use std::collections::BTreeMap;
use std::sync::Arc;

use base::Platform;
use bytes::Bytes;
use frontend_api::{
    Bridge, Code, Frontend, FrontendError, FrontendResult, Refs, SolveRequest, SolveWhat, Warning,
};
use futures_util::future::join_all;
use llb::pb;
use serde::Serialize;

use crate::context::{Client, DockerfileSource};
use crate::error::{Error, Kind, Lines, Result};
use crate::lint::{Finding, Linter};
use crate::lower::{self, Converted, Request};
use crate::{parser, requests, sbom, text};

/// The Dockerfile frontend, `dockerfile.v0`.
#[derive(Debug, Clone, Copy, Default)]
pub struct Dockerfile {
    /// Understand `RUN --device`, as the labs channel of the official frontend does.
    pub devices: bool,
}

/// Capabilities a client can require of this frontend.
const CAPS: &[&str] = &[
    "moby.buildkit.frontend.inputs",
    "moby.buildkit.frontend.subrequests",
    "moby.buildkit.frontend.contexts",
    "moby.buildkit.frontend.gitquerystring",
];

const SYNTAX_ARG: &str = "build-arg:BUILDKIT_SYNTAX";

#[async_trait::async_trait]
impl Frontend for Dockerfile {
    async fn solve(&self, bridge: Arc<dyn Bridge>) -> Result<FrontendResult, FrontendError> {
        let client = Client::new(bridge, self.devices).await.map_err(|e| wire_error(e, None))?;
        let missing = missing_cap(client.options.get("frontend.caps").unwrap_or_default());
        if let Some((error, false)) = &missing {
            return Err(wire_error(error.clone(), None));
        }
        let source = client.read_dockerfile().await.map_err(|e| wire_error(e, None))?;
        if let Some(result) = forward(&client, &source).await {
            return result;
        }
        if let Some((error, _)) = missing {
            return Err(wire_error(error, None));
        }
        let result = match client.options.get("requestid") {
            Some(id) => requests::answer(&client, &source, id).await,
            None => build(&client, &source).await,
        };
        result.map_err(|error| wire_error(error, Some(&source)))
    }
}

/// The first capability this frontend lacks, and whether another one may have it.
fn missing_cap(required: &str) -> Option<(Error, bool)> {
    let mut found: Option<(Error, bool)> = None;
    for cap in required.split(',').filter(|_| !required.is_empty()) {
        let name = cap.split_once('+').map_or(cap, |(name, _)| name);
        if CAPS.contains(&name) {
            continue;
        }
        let error = Error::new(Kind::UnsupportedFrontendCap, [name]);
        if !cap.contains("+forward") {
            return Some((error, false));
        }
        found = Some((error, true));
    }
    found
}

/// Hands over to the frontend that the client or the file names.
async fn forward(
    client: &Client,
    source: &DockerfileSource,
) -> Option<Result<FrontendResult, FrontendError>> {
    let options = &client.options;
    if options.get("cmdline").is_some() {
        return None;
    }
    if let Some(cmdline) = options.get(SYNTAX_ARG) {
        let reference = cmdline.trim().split(' ').next().unwrap_or_default();
        let result = hand_over(client, reference, cmdline).await;
        return Some(result.map_err(|error| match error.sources.as_slice() {
            [] => error.context(format!("failed with {SYNTAX_ARG} = {cmdline}")),
            _ => error,
        }));
    }
    let syntax = parser::detect_syntax(&source.data)?;
    let result = hand_over(client, &syntax.reference, &syntax.cmdline).await;
    Some(result.map_err(|error| match error.sources.as_slice() {
        [] => error.at(source.info.clone(), Lines::one(syntax.line).to_ranges()),
        _ => error,
    }))
}

async fn hand_over(
    client: &Client,
    reference: &str,
    cmdline: &str,
) -> Result<FrontendResult, FrontendError> {
    let mut options = client.options.raw().clone();
    // Build args that stand for options have become those by now.
    for (arg, option) in [
        ("build-arg:BUILDKIT_MULTI_PLATFORM", "multi-platform"),
        ("build-arg:BUILDKIT_SANDBOX_HOSTNAME", "hostname"),
    ] {
        if let Some(value) = client.options.get(arg).filter(|value| !value.is_empty()) {
            options.insert(option.to_owned(), value.to_owned());
        }
    }
    options.insert("cmdline".to_owned(), text::lossy(cmdline));
    options.insert("source".to_owned(), text::lossy(reference));
    let inputs = client.bridge.inputs().await?;
    let what = SolveWhat::Frontend { name: "gateway.v0".to_owned(), options, inputs };
    client.bridge.solve(SolveRequest { what, ..SolveRequest::default() }).await
}

/// Converts and solves the file for every target platform.
async fn build(client: &Client, source: &DockerfileSource) -> Result<FrontendResult> {
    let scanner = match &client.options.sbom {
        Some(wanted) => Some(sbom::Scanner::find(client, wanted).await?),
        None => None,
    };
    let targets: Vec<Option<Platform>> = match client.options.platforms.as_slice() {
        [] => vec![None],
        platforms => platforms.iter().cloned().map(Some).collect(),
    };
    let runs = targets.iter().enumerate().map(|(number, platform)| {
        build_one(client, source, platform.clone(), number == 0, scanner.as_ref())
    });
    let mut result = FrontendResult::default();
    let mut refs = BTreeMap::new();
    let mut platforms = Platforms { platforms: Vec::new() };
    for built in join_all(runs).await {
        let Built { platform, reference, metadata, attestation } = built?;
        let id = platform.id.clone();
        for (key, value) in metadata {
            let key = if client.options.multi_platform { format!("{key}/{id}") } else { key };
            result.metadata.insert(key, value);
        }
        if let Some(attestation) = attestation {
            result.attestations.entry(id.clone()).or_default().push(attestation);
        }
        refs.insert(id, reference);
        platforms.platforms.push(platform);
    }
    let list = base::gojson::to_vec(&platforms);
    result.metadata.insert("refs.platforms".to_owned(), list.into());
    result.refs = if client.options.multi_platform {
        Refs::Map(refs)
    } else {
        Refs::Single(refs.into_values().next().flatten())
    };
    Ok(result)
}

struct Built {
    platform: NamedPlatform,
    reference: Option<frontend_api::RefHandle>,
    metadata: Vec<(String, Bytes)>,
    attestation: Option<frontend_api::Attestation>,
}

#[derive(Serialize)]
struct Platforms {
    #[serde(rename = "Platforms")]
    platforms: Vec<NamedPlatform>,
}

#[derive(Serialize)]
struct NamedPlatform {
    #[serde(rename = "ID")]
    id: String,
    #[serde(rename = "Platform")]
    platform: Platform,
}

async fn build_one(
    client: &Client,
    source: &DockerfileSource,
    target: Option<Platform>,
    first: bool,
    scanner: Option<&sbom::Scanner>,
) -> Result<Built> {
    let wanted = target.clone().unwrap_or_else(Platform::host);
    let request = Request { platform: target, all_stages: false };
    // Remarks are the same for every platform, so those of the first are enough.
    let config = lower::lint_config(client, &source.data)?;
    let mut linter = if first { Linter::new(config) } else { Linter::silent() };
    let converted = lower::convert(client, source, &request, &mut linter).await;
    warn(client, source, &linter).await;
    let converted = converted?;
    let definition = converted.definition()?;
    let what = SolveWhat::Definition(definition);
    let cache_imports = client.options.cache_imports.clone();
    let request = SolveRequest { what, cache_imports, ..SolveRequest::default() };
    let solved = client.bridge.solve(request).await.map_err(Error::bridge)?;
    let platform = named(wanted, &converted.image.platform());
    let metadata = metadata(&converted);
    let attestation = match scanner {
        Some(scanner) => Some(scanner.scan(client, &platform.id, converted).await?),
        None => None,
    };
    Ok(Built { reference: solved.single_ref().cloned(), platform, metadata, attestation })
}

fn metadata(converted: &Converted) -> Vec<(String, Bytes)> {
    let mut list = vec![("containerimage.config".to_owned(), converted.image.to_json().into())];
    if let Some(image) = &converted.base_image {
        list.push(("containerimage.base.config".to_owned(), image.to_json().into()));
    }
    if let Some(epoch) = converted.epoch {
        list.push(("source.date.epoch".to_owned(), epoch.seconds().to_string().into()));
    }
    list
}

/// The platform as results name it; Windows images add their version.
fn named(wanted: Platform, image: &Platform) -> NamedPlatform {
    let mut platform = wanted.normalize();
    let id = platform.format_all();
    if platform.os == "windows" && image.os == "windows" {
        if platform.os_version.is_empty() {
            platform.os_version = image.os_version.clone();
        }
        if platform.os_features.is_empty() {
            platform.os_features = image.os_features.clone();
        }
        platform = platform.normalize();
    }
    NamedPlatform { id, platform }
}

/// Tells the client what lint found.
pub(crate) async fn warn(client: &Client, source: &DockerfileSource, linter: &Linter) {
    for finding in linter.findings() {
        // A client that cannot show remarks is none the worse.
        let _ = client.bridge.warn(warning(finding, source)).await;
    }
}

fn warning(finding: &Finding, source: &DockerfileSource) -> Warning {
    let line = finding.lines.first;
    let place = if line > 0 { format!(" (line {line})") } else { String::new() };
    Warning {
        vertex: source.vertex.clone(),
        level: 1,
        short: format!("{}: {}{place}", finding.rule.name(), finding.message),
        detail: vec![finding.rule.description().to_owned()],
        url: finding.rule.url(),
        source_info: Some(source.info.clone()),
        ranges: finding.lines.to_ranges(),
    }
}

/// An error as clients get it, with the places in the file.
fn wire_error(error: Error, source: Option<&DockerfileSource>) -> FrontendError {
    let detail = |word: &str| {
        let type_url = format!("github.com/moby/buildkit/errdefs.{word}+json");
        let name = error.params.first().cloned().unwrap_or_default();
        (type_url, base::gojson::to_vec(&BTreeMap::from([("name", name)])))
    };
    let mut wire = match &error.cause {
        Some(cause) => FrontendError { message: error.to_string(), ..(**cause).clone() },
        None => FrontendError::new(error.to_string()),
    };
    match error.kind {
        Kind::UnsupportedFrontendCap => {
            let (type_url, value) = detail("FrontendCap");
            wire.code = Code::Unimplemented;
            wire = wire.detail(type_url, value);
        }
        Kind::UnsupportedRequest => {
            let (type_url, value) = detail("Subrequest");
            wire = wire.detail(type_url, value);
        }
        _ => {}
    }
    if let Some(source) = source {
        for lines in &error.locations {
            wire = wire.at(source.info.clone(), lines.to_ranges());
        }
    }
    wire
}

/// Where something is in a file, for documents.
pub(crate) fn location(index: i32, lines: &[Lines]) -> pb::Location {
    let ranges = lines.iter().flat_map(|lines| lines.to_ranges()).collect();
    pb::Location { source_index: index, ranges }
}
