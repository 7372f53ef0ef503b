//! Whether a result is for the platforms that were asked for.
//!
//! What differs is told as a warning: the result is what the frontend made, and is exported as it is.
//! Malformed metadata is an error before any exporter runs.

use std::collections::{BTreeMap, BTreeSet};

use base::{Platform, goquote::Quoted};
use exporter::{ExportError, ExportResult};

/// Warnings for a result of a build with these frontend attributes.
pub(crate) fn platforms(
    attrs: &BTreeMap<String, String>,
    result: &ExportResult,
    native: &Platform,
) -> Result<Vec<String>, ExportError> {
    let is_map = !result.by_platform.is_empty();
    if !result.metadata.contains_key("refs.platforms") && !is_map && result.single.is_none() {
        return Ok(Vec::new());
    }
    let found = exporter::platforms(result, native)?;
    let asked = match attrs.get("platform") {
        Some(list) => list.split(',').map(str::to_owned).collect(),
        None => vec![native.normalize().format()],
    };
    let mut warnings = Vec::new();
    let (mut wanted, mut list) = (BTreeSet::new(), Vec::new());
    for text in &asked {
        let platform = Platform::parse(text).map(|platform| platform.normalize());
        let platform = platform.unwrap_or_else(|error| {
            let text = Quoted(text);
            warnings.push(format!("Invalid platform result requested {text}: {error}"));
            Platform::default()
        });
        list.push(platform.clone());
        if !wanted.insert(platform.format_all()) {
            warnings.push(format!("Duplicate platform result requested {}", Quoted(text)));
        }
    }
    if !warnings.is_empty() {
        return Ok(warnings);
    }
    let told = |found: &[Platform]| {
        let mut names: Vec<String> = found.iter().map(Platform::format_all).collect();
        names.sort();
        names.join(",")
    };
    let found: Vec<Platform> = found.into_iter().map(|one| one.platform.normalize()).collect();
    if let ([only], [asked_for]) = (&found[..], &list[..]) {
        // Requests seldom name the version of the operating system.
        let mut seen = only.clone();
        if asked_for.os_version.is_empty() {
            seen.os_version.clear();
        }
        if wanted.contains(&only.format_all()) || wanted.contains(&seen.format_all()) {
            return Ok(Vec::new());
        }
        return Ok(vec![format!(
            "Requested platform {} does not match result platform {}",
            Quoted(&asked[0]),
            Quoted(&seen.format_all())
        )]);
    }
    if !is_map && wanted.len() > 1 {
        let text = "Multiple platforms requested but result is not multi-platform";
        return Ok(vec![text.to_owned()]);
    }
    let all = found.iter().all(|platform| wanted.contains(&platform.format_all()));
    if wanted.len() == found.len() && all {
        return Ok(Vec::new());
    }
    Ok(vec![format!(
        "Requested platforms {} do not match result platforms {}",
        told(&list),
        told(&found)
    )])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Platforms asked for, platforms of the result (a map if there are several), warnings.
    fn check(asked: &str, found: &str, expected: &[&str]) {
        let attrs = match asked {
            "" => BTreeMap::new(),
            list => [("platform".to_owned(), list.to_owned())].into(),
        };
        let entries = found.split(',').map(|text| {
            let (os, architecture) = text.split_once('/').unwrap();
            serde_json::json!({"ID": text, "Platform": {"os": os, "architecture": architecture}})
        });
        let list = serde_json::json!({"Platforms": entries.collect::<Vec<_>>()}).to_string();
        let mut result = ExportResult::default();
        result.metadata.insert("refs.platforms".into(), list.into());
        if found.contains(',') {
            result.by_platform.extend(found.split(',').map(|text| (text.to_owned(), None)));
        }
        let native = Platform::new("linux", "amd64");
        let warnings = platforms(&attrs, &result, &native).unwrap();
        assert_eq!(warnings, expected, "{asked} asked, {found} made");
    }

    #[test]
    fn what_was_not_asked_for_is_told() {
        check("", "linux/amd64", &[]);
        check("linux/arm64", "linux/arm64", &[]);
        check("linux/amd64,linux/arm64", "linux/arm64,linux/amd64", &[]);
        check(
            "linux/arm64",
            "linux/amd64",
            &["Requested platform \"linux/arm64\" does not match result platform \"linux/amd64\""],
        );
        check(
            "linux/amd64,linux/arm64",
            "linux/amd64",
            &["Multiple platforms requested but result is not multi-platform"],
        );
        check(
            "linux/amd64,linux/s390x",
            "linux/arm64,linux/amd64",
            &["Requested platforms linux/amd64,linux/s390x do not match result platforms \
               linux/amd64,linux/arm64"],
        );
        check(
            "linux/amd64,linux/amd64",
            "linux/amd64",
            &["Duplicate platform result requested \"linux/amd64\""],
        );
    }
}
