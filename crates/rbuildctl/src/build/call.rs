//! `--call`: asking the frontend about a Dockerfile instead of building it.

use std::{collections::BTreeMap, process::ExitCode};

use anyhow::{Context as _, bail};
use bytes::Bytes;
use client::BuildRequest;

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

    /// Prints the answer; a failed check is a failed command.
    pub fn print(&self, answer: &BTreeMap<String, Bytes>) -> anyhow::Result<ExitCode> {
        let text =
            |key: &str| answer.get(key).map(|value| String::from_utf8_lossy(value).into_owned());
        let json = text("result.json").context("the frontend did not answer the request")?;
        if self.json {
            println!("{}", json.trim_end());
        } else if self.request == "frontend.lint" {
            print_lint(&json, &text("result.txt").unwrap_or_default())?;
        } else {
            print!("{}", text("result.txt").unwrap_or(json));
        }
        let failed = text("result.statuscode").is_some_and(|status| status.trim() != "0");
        Ok(if failed && !self.ignore_status { ExitCode::FAILURE } else { ExitCode::SUCCESS })
    }
}

fn print_lint(json: &str, text: &str) -> anyhow::Result<()> {
    let found: serde_json::Value =
        serde_json::from_str(json).context("reading the check's answer")?;
    let count = found["warnings"].as_array().map_or(0, Vec::len);
    if let Some(error) = found["buildError"]["message"].as_str() {
        print!("{text}");
        bail!("check failed: {error}");
    }
    match count {
        0 => println!("Check complete, no warnings found."),
        1 => println!("Check complete, 1 warning has been found!"),
        count => println!("Check complete, {count} warnings have been found!"),
    }
    print!("{text}");
    Ok(())
}
