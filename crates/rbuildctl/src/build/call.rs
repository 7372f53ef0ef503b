//! `--call`: asking the frontend about a Dockerfile instead of building it.

use std::{collections::BTreeMap, process::ExitCode};

use anyhow::{Context as _, bail};
use base64::{Engine as _, prelude::BASE64_STANDARD as BASE64};
use bytes::Bytes;
use client::BuildRequest;
use llb::pb::{Position, Range};
use serde::Deserialize;

/// What to ask, and how to print the answer.
pub struct Method {
    request: &'static str,
    json: bool,
    ignore_status: bool,
}

impl Method {
    /// The method of `--call` and `--check`; `None` is an ordinary build.
    pub fn of(call: Option<&str>, check: bool) -> anyhow::Result<Option<Self>> {
        let text = match (call, check) {
            (Some(_), true) => bail!("--check is short for --call=check: use one of them"),
            (None, true) => "check",
            (None, false) => return Ok(None),
            (Some(text), false) => text,
        };
        let mut words = text.split(',');
        let request = match words.next().unwrap_or_default() {
            "" | "build" => return Ok(None),
            "check" | "lint" => "frontend.lint",
            "outline" => "frontend.outline",
            "targets" => "frontend.targets",
            "subrequests.describe" => "frontend.subrequests.describe",
            other => bail!("unknown --call {other}: use build, check, outline or targets"),
        };
        let mut method = Self { request, json: false, ignore_status: false };
        for word in words {
            match word {
                "format=json" => method.json = true,
                "format=text" | "format=" => method.json = false,
                "ignorestatus" | "ignorestatus=true" => method.ignore_status = true,
                other => bail!("unknown option {other} of --call: use format=json"),
            }
        }
        Ok(Some(method))
    }

    /// Turns a build into the question.
    pub fn apply(&self, request: &mut BuildRequest) {
        let attrs = &mut request.frontend_attrs;
        attrs.insert("requestid".into(), self.request.into());
        attrs.insert("frontend.caps".into(), "moby.buildkit.frontend.subrequests+forward".into());
        request.exports.clear();
        request.cache_exports.clear();
    }

    /// Prints the answer as docker does; `file` is how the Dockerfile was named on the command line.
    /// A check that found something fails.
    pub fn print(
        &self,
        answer: &BTreeMap<String, Bytes>,
        file: Option<&str>,
    ) -> anyhow::Result<ExitCode> {
        let text =
            |key: &str| answer.get(key).map(|value| String::from_utf8_lossy(value).into_owned());
        let json = text("result.json").context("the frontend did not answer the request")?;
        if self.json {
            println!("{json}");
        }
        if self.request == "frontend.lint" {
            let found = serde_json::from_str(&json).context("reading the check's answer")?;
            let (shown, error) = show_lint(&found, file);
            if !self.json {
                print!("{shown}");
            }
            if let Some(error) = error {
                bail!("{}", error.trim_end());
            }
        } else if !self.json {
            print!("{}", text("result.txt").unwrap_or(json));
        }
        let status = text("result.statuscode").and_then(|status| status.trim().parse().ok());
        Ok(ExitCode::from(if self.ignore_status { 0 } else { status.unwrap_or(0) }))
    }
}

/// The answer of a check, as far as it is shown.
#[derive(Deserialize)]
struct Lint {
    warnings: Option<Vec<Warning>>,
    #[serde(default)]
    sources: Vec<Source>,
    #[serde(rename = "buildError")]
    error: Option<BuildError>,
}

#[derive(Deserialize)]
struct Warning {
    #[serde(rename = "ruleName")]
    rule: String,
    #[serde(default)]
    url: String,
    #[serde(default)]
    detail: String,
    #[serde(default)]
    location: Location,
}

#[derive(Deserialize)]
struct BuildError {
    message: String,
    #[serde(default)]
    location: Location,
}

#[derive(Deserialize)]
struct Source {
    #[serde(default)]
    filename: String,
    #[serde(default)]
    data: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Location {
    #[serde(rename = "sourceIndex")]
    source: usize,
    ranges: Vec<Lines>,
}

#[derive(Deserialize, Clone, Copy, Default)]
#[serde(default)]
struct Lines {
    start: Place,
    end: Place,
}

#[derive(Deserialize, Clone, Copy, Default)]
#[serde(default)]
struct Place {
    line: i32,
}

impl Lint {
    /// The lines of a file that a location names, and in them what a message is about.
    fn excerpt(&self, location: &Location, file: Option<&str>, message: &str) -> String {
        let Some(source) = self.sources.get(location.source) else { return String::new() };
        let data = BASE64.decode(&source.data).unwrap_or_default();
        let position = |place: Place| Some(Position { line: place.line, character: 0 });
        let range =
            |lines: &Lines| Range { start: position(lines.start), end: position(lines.end) };
        let ranges: Vec<Range> = location.ranges.iter().map(range).collect();
        client::error::pointed(file.unwrap_or(&source.filename), &data, &ranges, message)
    }
}

/// What a check found, by lines, and what stands in the way of a build.
fn show_lint(found: &Lint, file: Option<&str>) -> (String, Option<String>) {
    let mut warnings: Vec<&Warning> = found.warnings.iter().flatten().collect();
    let first = |warning: &Warning| warning.location.ranges.first().map_or(0, |r| r.start.line);
    warnings.sort_by_key(|warning| first(warning));
    let mut out = match warnings.len() {
        0 => String::new(),
        1 => "Check complete, 1 warning has been found!\n".to_owned(),
        count => format!("Check complete, {count} warnings have been found!\n"),
    };
    for warning in &warnings {
        out.push_str(&format!("\nWARNING: {}", warning.rule));
        if !warning.url.is_empty() {
            out.push_str(&format!(" - {}", warning.url));
        }
        out.push_str(&format!("\n{}\n", warning.detail));
        out.push_str(&found.excerpt(&warning.location, file, ""));
    }
    let Some(error) = &found.error else {
        if warnings.is_empty() {
            out.push_str("Check complete, no warnings found.\n");
        }
        return (out, None);
    };
    if !warnings.is_empty() {
        out.push('\n');
    }
    let excerpt = found.excerpt(&error.location, file, &error.message);
    let message = format!("{}\n{excerpt}", error.message);
    (out, Some(message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn findings_are_shown_by_line_with_what_stands_in_the_way() {
        // FROM scratch, CMD a, RUNN x
        let json = r#"{
            "warnings": [
                {"ruleName": "B", "url": "https://b", "detail": "second", "location": {"ranges": [{"start": {"line": 2}, "end": {"line": 2}}]}},
                {"ruleName": "A", "detail": "first", "location": {"ranges": [{"start": {"line": 1}, "end": {"line": 1}}]}}
            ],
            "sources": [{"filename": "Dockerfile", "data": "RlJPTSBzY3JhdGNoCkNNRCBhClJVTk4geAo="}],
            "buildError": {"message": "no such thing", "location": {"ranges": [{"start": {"line": 3}, "end": {"line": 3}}]}}
        }"#;
        let (shown, error) =
            show_lint(&serde_json::from_str(json).unwrap(), Some("dir/Dockerfile"));
        assert!(shown.starts_with(
            "Check complete, 2 warnings have been found!\n\nWARNING: A\nfirst\ndir/Dockerfile:1\n"
        ));
        assert!(shown.contains("\nWARNING: B - https://b\nsecond\ndir/Dockerfile:2\n"));
        let error = error.unwrap();
        assert!(error.starts_with("no such thing\ndir/Dockerfile:3\n"), "{error}");
        assert!(error.contains(">>> RUNN x"), "{error}");
    }

    #[test]
    fn a_clean_file_is_said_to_be_clean() {
        let (shown, error) =
            show_lint(&serde_json::from_str(r#"{"warnings": null}"#).unwrap(), None);
        assert_eq!((shown.as_str(), error), ("Check complete, no warnings found.\n", None));
    }

    #[test]
    fn methods_are_read() {
        let method = |text| Method::of(Some(text), false);
        assert!(method("build").unwrap().is_none());
        assert!(method("outline,format=json").unwrap().unwrap().json);
        assert!(method("check,ignorestatus=true").unwrap().unwrap().ignore_status);
        assert!(method("other").is_err() && method("check,format=x").is_err());
    }
}
