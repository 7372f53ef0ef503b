//! buildctl's form of `build`: a frontend with its options, or a graph on standard input.

use std::{io::Read as _, process::ExitCode};

use anyhow::{Context as _, bail};
use client::BuildRequest;
use llb::pb::Definition;
use prost::Message as _;

use super::{
    BuildArgs,
    execute::{common, execute},
    output::Form,
    parse,
};
use crate::{connection::ConnectionArgs, csv};

/// A graph on standard input larger than this is something else.
const DEFINITION_LIMIT: u64 = 256 << 20;

/// Runs the build.
pub async fn run(
    args: BuildArgs,
    connection: &ConnectionArgs,
    debug: bool,
) -> anyhow::Result<ExitCode> {
    let mut request = BuildRequest::new(args.frontend.clone().unwrap_or_default());
    request.frontend_attrs = options(&args.opt)?;
    request.locals = parse::folders("--local", &args.local)?;
    request.oci_layouts = parse::folders("--oci-layout", &args.oci_layout)?;
    for cache in &args.export_cache {
        request.cache_exports.push(parse::cache("--export-cache", cache, true)?);
    }
    for cache in &args.import_cache {
        request.cache_imports.push(parse::cache("--import-cache", cache, false)?);
    }
    common(&args, Form::Buildctl, &mut request)?;
    if args.frontend.is_none() {
        let mut definition = read_definition()?;
        if args.no_cache {
            ignore_cache(&mut definition);
        }
        request.definition = Some(definition);
    } else if args.no_cache {
        request.frontend_attrs.insert("no-cache".into(), String::new());
    }
    let asked = request.frontend_attrs.contains_key("requestid");
    if asked {
        let caps = "moby.buildkit.frontend.subrequests".to_owned();
        request.frontend_attrs.entry("frontend.caps".into()).or_insert(caps);
    }
    let client = connection.connect().await?;
    let outcome = execute(&client, request, &args, args.progress.parse()?, debug).await?;
    if asked {
        match outcome.metadata.get("result.txt") {
            Some(text) => print!("{}", String::from_utf8_lossy(text)),
            None => {
                let results = outcome.metadata.iter().filter(|(key, _)| key.starts_with("result."));
                results
                    .for_each(|(key, value)| println!("{key}\n{}", String::from_utf8_lossy(value)));
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// `NAME=VALUE` pairs; `build-arg:NAME` alone takes the environment's value.
fn options(texts: &[String]) -> anyhow::Result<std::collections::BTreeMap<String, String>> {
    let mut options = std::collections::BTreeMap::new();
    if let Ok(epoch) = std::env::var("SOURCE_DATE_EPOCH") {
        options.insert("build-arg:SOURCE_DATE_EPOCH".into(), epoch);
    }
    for text in texts {
        let variable =
            text.strip_prefix("build-arg:").filter(|name| !name.is_empty() && !name.contains('='));
        if let Some(name) = variable {
            if let Ok(value) = std::env::var(name) {
                options.insert(text.clone(), value);
            }
            continue;
        }
        let (key, value) = csv::split_pair(text).context("invalid --opt")?;
        options.insert(key.to_owned(), value.to_owned());
    }
    Ok(options)
}

fn read_definition() -> anyhow::Result<Definition> {
    let mut bytes = Vec::new();
    std::io::stdin()
        .take(DEFINITION_LIMIT)
        .read_to_end(&mut bytes)
        .context("reading the graph from standard input")?;
    let definition =
        Definition::decode(bytes.as_slice()).context("standard input is not a build graph")?;
    if definition.def.is_empty() {
        bail!("empty definition sent to build. Specify --frontend instead?");
    }
    Ok(definition)
}

/// Marks every operation so that cached results are not used.
fn ignore_cache(definition: &mut Definition) {
    for op in &definition.def {
        let digest = base::Digest::of(op).to_string();
        let metadata = definition.metadata.entry(digest).or_default();
        metadata.ignore_cache = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_may_come_from_the_environment() {
        let list = |texts: &[&str]| {
            options(&texts.iter().map(|&text| text.to_owned()).collect::<Vec<_>>())
        };
        let found = list(&["target=a=b", "build-arg:PATH", "build-arg:NO_SUCH_VARIABLE_"]).unwrap();
        assert_eq!(found["target"], "a=b");
        assert!(found.contains_key("build-arg:PATH"));
        assert!(!found.contains_key("build-arg:NO_SUCH_VARIABLE_"));
        assert!(list(&["target"]).is_err() && list(&["build-arg:"]).is_err());
    }
}
