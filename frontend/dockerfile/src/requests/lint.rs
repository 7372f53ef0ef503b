//! What lint says of a file.

use bytes::Bytes;
use frontend_api::FrontendResult;
use serde::Serialize;

use super::{Location, SourceInfo, documents, json};
use crate::context::{Client, DockerfileSource};
use crate::error::{Error, Lines, Result};
use crate::frontend::location;
use crate::lint::{Finding, Linter};
use crate::lower::{self, Request};
use crate::report;

/// Findings, and why the file cannot be converted if that is so.
#[derive(Debug)]
pub struct LintResult {
    /// In the order they were found.
    pub findings: Vec<Finding>,
    /// Set if the conversion failed.
    pub error: Option<Error>,
}

#[derive(Serialize)]
struct Document {
    warnings: Option<Vec<Warning>>,
    sources: [SourceInfo; 1],
    #[serde(rename = "buildError", skip_serializing_if = "Option::is_none")]
    error: Option<BuildError>,
}

#[derive(Serialize)]
struct Warning {
    #[serde(rename = "ruleName")]
    rule: &'static str,
    description: &'static str,
    #[serde(skip_serializing_if = "String::is_empty")]
    url: String,
    detail: String,
    location: Location,
}

/// Why a file cannot be converted.
#[derive(Debug, Serialize)]
pub struct BuildError {
    message: String,
    location: Location,
}

/// Lints a file for the build platform, over all stages if no target is named.
pub async fn lint(client: &Client, source: &DockerfileSource) -> LintResult {
    let config = match lower::lint_config(client, &source.data) {
        Ok(config) => config,
        Err(error) => return LintResult { findings: Vec::new(), error: Some(error) },
    };
    let mut linter = Linter::new(config);
    let all_stages = client.options.target.is_empty();
    let request = Request { platform: None, all_stages };
    let error = lower::convert(client, source, &request, &mut linter).await.err();
    LintResult { findings: linter.into_findings(), error }
}

pub(super) async fn answer(client: &Client, source: &DockerfileSource) -> Result<FrontendResult> {
    let LintResult { findings, error } = lint(client, source).await;
    let status = if findings.is_empty() && error.is_none() { "0" } else { "1" };
    let text = Bytes::from(show(&findings, source));
    let warnings: Vec<Warning> = findings
        .iter()
        .map(|finding| Warning {
            rule: finding.rule.name(),
            description: finding.rule.description(),
            url: finding.rule.url(),
            detail: finding.message.clone(),
            location: location(0, &[finding.lines]).into(),
        })
        .collect();
    let error = error.map(|error| BuildError {
        message: error.to_string(),
        location: location(0, &merged(&error.locations)).into(),
    });
    let document = Document {
        // An empty list reads `null` in the official document.
        warnings: (!warnings.is_empty()).then_some(warnings),
        sources: [(&source.info).into()],
        error,
    };
    Ok(documents(
        "1.0.0",
        vec![
            ("result.json", json(&document)),
            ("result.txt", text),
            ("result.statuscode", status.into()),
        ],
    ))
}

/// Ranges in order, overlapping ones as one.
pub fn merged(locations: &[Lines]) -> Vec<Lines> {
    let mut sorted: Vec<Lines> = locations
        .iter()
        .filter(|lines| **lines != Lines::NOWHERE)
        .flat_map(|lines| (lines.first..=lines.last.max(lines.first)).map(Lines::one))
        .collect();
    sorted.sort();
    sorted.dedup();
    sorted
}

fn show(findings: &[Finding], source: &DockerfileSource) -> String {
    let mut sorted: Vec<&Finding> = findings.iter().collect();
    sorted.sort_by_key(|finding| finding.lines.first);
    let mut out = String::new();
    for finding in sorted {
        out.push_str(&format!("\nWARNING: {}", finding.rule.name()));
        let url = finding.rule.url();
        if !url.is_empty() {
            out.push_str(&format!(" - {url}"));
        }
        out.push_str(&format!("\n{}\n", finding.message));
        out.push_str(&report::excerpt(&source.info.filename, &source.data, finding.lines));
    }
    out
}
