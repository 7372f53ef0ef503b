//! `attest:<type>` options of a build.

use std::collections::BTreeMap;

use frontend_api::FrontendError;

use super::ProvenanceOptions;

/// The scanner that is used when none is named.
const DEFAULT_SCANNER: &str = "docker/buildkit-syft-scanner:stable-1";

/// The statements a build asks for.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Wanted {
    pub provenance: Option<ProvenanceOptions>,
    pub sbom: Option<Sbom>,
}

/// A scanner to run over results whose frontend ran none.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Sbom {
    /// Image of the scanner.
    pub generator: String,
    pub parameters: BTreeMap<String, String>,
}

impl Wanted {
    /// Reads and checks the options.
    pub(crate) fn parse(attrs: &BTreeMap<String, String>) -> Result<Self, FrontendError> {
        let mut wanted = Self::default();
        for (key, value) in attrs {
            let kind = key
                .strip_prefix("attest:")
                .or_else(|| key.strip_prefix("build-arg:BUILDKIT_ATTEST_"));
            let Some(kind) = kind.map(str::to_ascii_lowercase) else { continue };
            let fields = fields(value).ok_or_else(|| {
                bad(format!("failed to parse {kind}: {value:?} is not a list of options"))
            })?;
            match kind.as_str() {
                "provenance" => wanted.provenance = Some(ProvenanceOptions::parse(&fields)?),
                "sbom" => wanted.sbom = Some(Sbom::parse(fields)?),
                other => return Err(bad(format!("unknown attestation type {other:?}"))),
            }
        }
        Ok(wanted)
    }
}

impl Sbom {
    fn parse(mut fields: BTreeMap<String, String>) -> Result<Self, FrontendError> {
        let generator = fields.remove("generator").unwrap_or_else(|| DEFAULT_SCANNER.to_owned());
        if generator.is_empty() {
            return Err(bad("sbom generator cannot be empty".into()));
        }
        let reference = oci::Reference::parse(&generator)
            .map_err(|error| bad(format!("failed to parse sbom generator {generator}: {error}")))?;
        let generator = match reference.digest() {
            Some(_) => reference.to_string(),
            None => reference.with_default_tag().to_string(),
        };
        Ok(Self { generator, parameters: fields })
    }
}

impl ProvenanceOptions {
    fn parse(fields: &BTreeMap<String, String>) -> Result<Self, FrontendError> {
        let mut options = Self::default();
        let flag = |key: &str, text: &str| match text {
            "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
            "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
            _ => Err(bad(format!("failed to parse {key} flag {text:?}"))),
        };
        for (key, value) in fields {
            match key.as_str() {
                "mode" => {
                    options.max = match value.as_str() {
                        "max" | "full" => true,
                        "min" => false,
                        _ => return Err(bad(format!("invalid mode {value:?}"))),
                    }
                }
                "version" => {
                    options.old = match value.as_str() {
                        "v1" => false,
                        "v0.2" => true,
                        "" => return Err(bad("provenance SLSA version cannot be empty".into())),
                        _ => return Err(bad(format!("invalid provenance SLSA version: {value}"))),
                    }
                }
                "builder-id" => options.builder_id.clone_from(value),
                "filename" => options.file_name.clone_from(value),
                "reproducible" => options.reproducible = flag(key, value)?,
                "complete-materials" => options.complete_materials = flag(key, value)?,
                // What does not say true is no wish for these two.
                "inline-only" => options.inline_only = flag(key, value).unwrap_or(false),
                // Others may mean something to newer daemons; clients send them unasked.
                _ => {}
            }
        }
        Ok(options)
    }
}

/// One line of CSV with `key=value` in its cells.
fn fields(line: &str) -> Option<BTreeMap<String, String>> {
    let mut all = BTreeMap::new();
    let mut rest = line;
    while !rest.is_empty() {
        let cell = match rest.strip_prefix('"') {
            Some(mut quoted) => {
                let mut cell = String::new();
                loop {
                    let end = quoted.find('"')?;
                    cell.push_str(&quoted[..end]);
                    quoted = &quoted[end + 1..];
                    match quoted.strip_prefix('"') {
                        Some(more) => {
                            cell.push('"');
                            quoted = more;
                        }
                        None => break,
                    }
                }
                rest = match quoted.strip_prefix(',') {
                    Some(next) => next,
                    None if quoted.is_empty() => "",
                    None => return None,
                };
                cell
            }
            None => {
                let (cell, next) = rest.split_once(',').unwrap_or((rest, ""));
                if cell.contains('"') {
                    return None;
                }
                rest = next;
                cell.to_owned()
            }
        };
        let (key, value) = cell.split_once('=').unwrap_or((&cell, ""));
        all.insert(key.to_owned(), value.to_owned());
    }
    Some(all)
}

/// Without a code: Go clients would show its name before the message.
fn bad(message: String) -> FrontendError {
    FrontendError::new(message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(key: &str, value: &str) -> Result<Wanted, String> {
        Wanted::parse(&[(key.to_owned(), value.to_owned())].into()).map_err(|error| error.message)
    }

    #[test]
    fn options() {
        let provenance = |text: &str| parse("attest:provenance", text).unwrap().provenance.unwrap();
        assert_eq!(provenance(""), ProvenanceOptions::default());
        let given = provenance("mode=min,inline-only=true,\"builder-id=a,b\",version=v0.2");
        assert!(!given.max && given.inline_only && given.old);
        assert_eq!(given.builder_id, "a,b");
        let sbom = parse("build-arg:BUILDKIT_ATTEST_SBOM", "generator=h.io/s,X=y").unwrap().sbom;
        let sbom = sbom.unwrap();
        assert_eq!(sbom.generator, "h.io/s:latest");
        assert_eq!(sbom.parameters["X"], "y");
        for (key, value, message) in [
            ("attest:other", "", "unknown attestation type \"other\""),
            ("attest:provenance", "mode=x", "invalid mode \"x\""),
            ("attest:provenance", "version=v3", "invalid provenance SLSA version: v3"),
            ("attest:provenance", "reproducible=x", "failed to parse reproducible flag \"x\""),
            ("attest:sbom", "generator=", "sbom generator cannot be empty"),
        ] {
            assert_eq!(parse(key, value).unwrap_err(), message);
        }
    }
}
