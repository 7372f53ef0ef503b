//! Running a scanner over results whose frontend did not.

use base::Platform;
use bytes::Bytes;
use frontend_api::{
    Attestation, AttestationKind, Bridge, FrontendError, FrontendResult, RefHandle, Refs,
    SolveRequest, SourceMetaRequest,
};
use llb::{
    build::{Exec, Graph, MarshalOptions, Meta, Mount, MountKind, ResolveMode, Source},
    pb,
};
use oci::ImageConfig;

use super::options::Sbom;
use crate::{Engine, bridge::JobBridge, failure};

const CORE: &str = "sbom";
const SOURCES: &str = "/run/src/core/sbom";
const OUT: &str = "/run/out/";
const PREDICATE: &str = "https://spdx.dev/Document";

/// Whether somebody has listed the contents already.
pub(crate) fn has_sbom(result: &FrontendResult) -> bool {
    let mut all = result.attestations.values().flatten();
    all.any(|item| item.predicate_type == PREDICATE)
}

impl Engine {
    /// Scans every tree of a result and adds what the scanner says. `bridge` is none of the
    /// build's: the scanner is no part of what it made.
    pub(crate) async fn scan(
        &self,
        bridge: &JobBridge,
        wanted: &Sbom,
        platforms: &[exporter::PlatformResult],
        result: &mut FrontendResult,
    ) -> Result<(), FrontendError> {
        let platform = self.worker().platforms[0].clone();
        let mode = match bridge.options.get("image-resolve-mode").map(String::as_str) {
            Some("pull") => ResolveMode::ForcePull,
            Some("local") => ResolveMode::PreferLocal,
            _ => ResolveMode::Default,
        };
        let source = pb::SourceOp {
            identifier: format!("docker-image://{}", wanted.generator),
            attrs: Default::default(),
        };
        let request = SourceMetaRequest {
            source,
            platform: Some(platform.clone()),
            resolve_mode: mode.as_str().to_owned(),
            ..SourceMetaRequest::default()
        };
        let found = bridge.resolve_source_meta(request).await?;
        let body = found.image.map(|image| image.config).unwrap_or_default();
        let config = ImageConfig::parse(&wanted.generator, &body)
            .map_err(|error| FrontendError::new(error.to_string()))?
            .config;
        let args: Vec<String> = config.entrypoint.iter().chain(&config.cmd).cloned().collect();
        if args.is_empty() {
            return Err(FrontendError::new(format!(
                "sbom scanner {} has no entrypoint or command",
                wanted.generator
            )));
        }
        let reference = found.source.identifier.trim_start_matches("docker-image://").to_owned();
        // Only an empty value means all stages.
        let ignore_cache = bridge.options.get("no-cache").is_some_and(String::is_empty);
        let scanner = Scanner { wanted, reference, mode, args, config, platform, ignore_cache };
        for entry in platforms {
            let tree = match &result.refs {
                Refs::Single(single) => single.clone(),
                Refs::Map(map) => map.get(&entry.id).cloned().flatten(),
            };
            let Some(tree) = tree else { continue };
            let attestation = scanner.scan(bridge, &entry.id, &tree).await?;
            result.attestations.entry(entry.id.clone()).or_default().push(attestation);
        }
        Ok(())
    }
}

struct Scanner<'a> {
    wanted: &'a Sbom,
    reference: String,
    mode: ResolveMode,
    args: Vec<String>,
    config: oci::config::RunConfig,
    platform: Platform,
    ignore_cache: bool,
}

impl Scanner<'_> {
    async fn scan(
        &self,
        bridge: &JobBridge,
        id: &str,
        tree: &RefHandle,
    ) -> Result<Attestation, FrontendError> {
        let definition = tree
            .definition()
            .ok_or_else(|| failure::internal("scan a result", "its graph is not known"))?;
        let mut graph = Graph::new();
        let target =
            graph.import(definition).map_err(|error| failure::internal("scan a result", error))?;
        let meta = Meta::default().with_platform(self.platform.clone());
        let root = graph.source(Source::image_with_mode(&self.reference, self.mode), meta);
        let scanned = Mount {
            target: SOURCES.to_owned(),
            source: target,
            readonly: true,
            ..Mount::default()
        };
        let mounts = vec![
            Mount { target: OUT.to_owned(), ..Mount::default() },
            Mount {
                target: "/tmp".to_owned(),
                kind: MountKind::Tmpfs { size: 0 },
                ..Mount::default()
            },
            scanned,
        ];
        let exec = Exec {
            args: self.args.clone(),
            env: self.env(),
            cwd: match self.config.working_dir.as_str() {
                "" => "/".to_owned(),
                folder => folder.to_owned(),
            },
            root: Some(root),
            mounts,
            ..Exec::default()
        };
        let name = format!("[{id}] generating sbom using {}", self.wanted.generator);
        let meta = Meta { ignore_cache: self.ignore_cache, ..Meta::named(name) };
        let outputs = graph.exec(exec, meta.with_platform(self.platform.clone()));
        let definition = graph
            .marshal(outputs.mounts[0], &MarshalOptions::default())
            .map_err(|error| failure::internal("scan a result", error))?;
        let solved = bridge
            .solve(SolveRequest { evaluate: true, ..SolveRequest::definition(definition) })
            .await?;
        let text = |value: &'static str| Bytes::from_static(value.as_bytes());
        Ok(Attestation {
            kind: AttestationKind::Bundle,
            metadata: [("reason".to_owned(), text("sbom")), ("sbom-core".to_owned(), text(CORE))]
                .into(),
            reference: solved.single_ref().cloned(),
            path: String::new(),
            predicate_type: PREDICATE.to_owned(),
            subjects: Vec::new(),
        })
    }

    /// The image's environment with the scanner's own words over it.
    fn env(&self) -> Vec<(String, String)> {
        let mut env: Vec<(String, String)> = Vec::new();
        let mut set = |name: &str, value: &str| match env.iter_mut().find(|(own, _)| own == name) {
            Some((_, own)) => *own = value.to_owned(),
            None => env.push((name.to_owned(), value.to_owned())),
        };
        for entry in &self.config.env {
            let (name, value) = entry.split_once('=').unwrap_or((entry, ""));
            set(name, value);
        }
        set("BUILDKIT_SCAN_DESTINATION", OUT);
        set("BUILDKIT_SCAN_SOURCE", SOURCES);
        for (name, value) in &self.wanted.parameters {
            set(&format!("BUILDKIT_SCAN_{name}"), value);
        }
        env
    }
}
