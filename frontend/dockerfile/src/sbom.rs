//! Listing what is in the result: a scanner image runs over it.
//!
//! Source: Dockerfile notes §15.5.

use std::collections::BTreeMap;

use base::Platform;
use frontend_api::{Attestation, AttestationKind, SolveRequest};
use llb::build::{Exec, FileAction, Meta, Mkdir, Mount, MountKind, Source};

use crate::context::{Client, Resolve, head};
use crate::error::{Error, Kind, Result};
use crate::image::Image;
use crate::lower::{Converted, Env, write};
use crate::options::Sbom;
use crate::shell::Variables as _;

const SOURCES: &str = "/run/src";
const OUT: &str = "/run/out/";
const CORE: &str = "sbom";
const PREDICATE: &str = "https://spdx.dev/Document";

/// A scanner whose image is known.
pub struct Scanner {
    reference: String,
    image: Image,
    platform: Platform,
    parameters: BTreeMap<String, String>,
}

impl Scanner {
    /// Looks up the scanner's image for the build platform.
    pub async fn find(client: &Client, wanted: &Sbom) -> Result<Self> {
        let platform = client.build_platforms[0].clone();
        let found = client
            .resolve(Resolve {
                reference: wanted.generator.clone(),
                platform: Some(platform.clone()),
                log_name: String::new(),
                // Nothing rather than the default if no mode was asked for.
                mode: match client.options.get("image-resolve-mode") {
                    None | Some("") => "",
                    Some(_) => client.options.resolve_mode.as_str(),
                },
                store: None,
            })
            .await?;
        let config = &found.image.config;
        if config.entrypoint.is_empty() && config.cmd.is_empty() {
            let params = [found.reference.as_str(), "it has no command"];
            return Err(Error::new(Kind::SbomScanner, params));
        }
        Ok(Self {
            reference: found.reference,
            image: found.image,
            platform,
            parameters: wanted.parameters.clone(),
        })
    }

    /// Scans a converted file and what else it wants scanned.
    pub async fn scan(
        &self,
        client: &Client,
        id: &str,
        converted: Converted,
    ) -> Result<Attestation> {
        let extras = converted.scans.clone();
        let ignore_cache = converted.ignore_cache;
        let (mut graph, target, mut options) = converted.into_graph();
        options.platform = None;
        let meta = Meta::default().with_platform(self.platform.clone());
        let root = graph.source(Source::image(&self.reference), meta);
        let below = |folder: &str, name: &str| format!("{SOURCES}/{folder}/{name}");
        let tree =
            |target: String, source| Mount { target, source, readonly: true, ..Mount::default() };
        let temporary = if self.platform.os == "windows" {
            let folder = Mkdir { mode: 0o777, ..Mkdir::new("/tmp") };
            let made = graph.file(Some(root), vec![FileAction::Mkdir(folder)], Meta::default());
            Mount {
                source: Some(made),
                selector: "/tmp".to_owned(),
                no_output: true,
                ..Mount::default()
            }
        } else {
            Mount { kind: MountKind::Tmpfs { size: 0 }, ..Mount::default() }
        };
        let mut mounts = vec![
            Mount { target: OUT.to_owned(), ..Mount::default() },
            Mount { target: "/tmp".to_owned(), ..temporary },
            tree(below("core", CORE), target),
        ];
        for (name, source) in &extras {
            mounts.push(tree(below("extras", &format!("{CORE}-{name}")), *source));
        }
        let env = self.env(!extras.is_empty());
        let config = &self.image.config;
        let exec = Exec {
            args: config.entrypoint.iter().chain(&config.cmd).cloned().collect(),
            env: env.iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect(),
            cwd: if config.working_dir.is_empty() { "/" } else { &config.working_dir }.to_owned(),
            root: Some(root),
            mounts,
            ..Exec::default()
        };
        let name = format!("[{id}] generating sbom using {}", self.reference);
        let meta = Meta { ignore_cache, ..Meta::named(name).with_platform(self.platform.clone()) };
        let outputs = graph.exec(exec, meta);
        let mut definition = write(&graph, outputs.mounts[0], &options)?;
        // Scanners are written for daemons that do not say what they can do.
        if let Some(metadata) = definition.metadata.get_mut(&head(&definition)) {
            metadata.caps.remove("exec.meta.setsdefaultpath");
        }
        let request = SolveRequest::definition(definition);
        let solved = client.bridge.solve(request).await.map_err(Error::bridge)?;
        Ok(Attestation {
            kind: AttestationKind::Bundle,
            metadata: BTreeMap::from([
                ("reason".to_owned(), "sbom".into()),
                ("sbom-core".to_owned(), CORE.into()),
            ]),
            reference: solved.single_ref().cloned(),
            path: String::new(),
            predicate_type: PREDICATE.to_owned(),
            subjects: Vec::new(),
        })
    }

    fn env(&self, extras: bool) -> Env {
        let mut env = Env::default();
        for entry in &self.image.config.env {
            let (name, value) = entry.split_once('=').unwrap_or((entry, ""));
            env.set(name, value);
        }
        env.set("BUILDKIT_SCAN_DESTINATION", OUT);
        env.set("BUILDKIT_SCAN_SOURCE", &format!("{SOURCES}/core/{CORE}"));
        if extras {
            env.set("BUILDKIT_SCAN_SOURCE_EXTRAS", &format!("{SOURCES}/extras"));
        }
        for (name, value) in &self.parameters {
            env.set(&format!("BUILDKIT_SCAN_{name}"), value);
        }
        debug_assert!(env.get("BUILDKIT_SCAN_SOURCE").is_some());
        env
    }
}
