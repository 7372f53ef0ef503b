//! `--output`: which exporter runs, and where this machine puts what it sends.

use std::{collections::BTreeMap, io::IsTerminal as _, path::Path};

use anyhow::{Context as _, bail};
use client::{Export, Target};

use crate::csv;

/// Which command's shorthands are understood.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// `-o DIR`, `-o -`, `type=registry`, `type=cacheonly`.
    Docker,
    /// `type=…` only.
    Buildctl,
}

/// Parses one `--output`; `None` is docker's `cacheonly`.
pub fn parse(text: &str, form: Form) -> anyhow::Result<Option<Export>> {
    if form == Form::Docker && !text.contains('=') && !text.contains(',') {
        let kind = if text == "-" { "tar" } else { "local" };
        return export(kind.into(), BTreeMap::from([("dest".into(), text.into())])).map(Some);
    }
    let mut attrs = csv::pairs(text).context("invalid --output")?;
    let Some(mut kind) = attrs.remove("type").filter(|kind| !kind.is_empty()) else {
        bail!("--output requires type=<type>");
    };
    if let Some(path) = attrs.get("output") {
        bail!("output={path} not supported for --output, you meant dest={path}?");
    }
    if form == Form::Docker {
        match kind.as_str() {
            "cacheonly" if attrs.is_empty() => return Ok(None),
            "cacheonly" => bail!("--output type=cacheonly takes nothing else"),
            "registry" => {
                kind = "image".into();
                attrs.entry("push".into()).or_insert_with(|| "true".into());
            }
            "docker" if !attrs.contains_key("dest") && std::io::stdout().is_terminal() => bail!(
                "--output type=docker writes an archive and needs dest=FILE; \
                 to keep the image in the daemon use --tag, or type=image"
            ),
            _ => {}
        }
    }
    export(kind, attrs).map(Some)
}

fn export(kind: String, mut attrs: BTreeMap<String, String>) -> anyhow::Result<Export> {
    let folder_store = attrs.get("tar").and_then(|value| csv::parse_bool(value)) == Some(false);
    let dest = attrs.get("dest").cloned().unwrap_or_default();
    let target = match kind.as_str() {
        "local" if dest.is_empty() => {
            bail!("output directory is required for local exporter: dest=DIR")
        }
        "local" => Target::Folder(dest.into()),
        "oci" | "docker" if folder_store && dest.is_empty() => {
            bail!("output directory is required for {kind} exporter with tar=false: dest=DIR")
        }
        "oci" | "docker" if folder_store => Target::Store(dest.into()),
        "tar" | "oci" | "docker" if dest.is_empty() || dest == "-" => {
            if std::io::stdout().is_terminal() {
                bail!(
                    "output file is required for {kind} exporter (dest=FILE): \
                     refusing to write to a terminal"
                );
            }
            Target::Stdout
        }
        "tar" | "oci" | "docker" if Path::new(&dest).is_dir() => {
            bail!("destination {dest} of the {kind} exporter is a directory")
        }
        "tar" | "oci" | "docker" => Target::File(dest.into()),
        _ if !dest.is_empty() => bail!("dest={dest} is not supported by the {kind} exporter"),
        _ => Target::None,
    };
    if target != Target::None {
        attrs.remove("dest");
    }
    Ok(Export { kind, attrs, target })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn show(text: &str, form: Form) -> String {
        match parse(text, form) {
            Ok(Some(Export { kind, attrs, target })) => format!("{kind} {attrs:?} {target:?}"),
            Ok(None) => "nothing".into(),
            Err(error) => format!("{error:#}"),
        }
    }

    #[test]
    fn docker_shorthands() {
        use Form::Docker;
        assert_eq!(show("out", Docker), "local {} Folder(\"out\")");
        assert_eq!(show("type=tar,dest=a.tar", Docker), "tar {} File(\"a.tar\")");
        assert_eq!(
            show("type=registry,name=x", Docker),
            r#"image {"name": "x", "push": "true"} None"#
        );
        assert_eq!(show("type=cacheonly", Docker), "nothing");
        assert_eq!(show("type=oci,tar=false,dest=d", Docker), r#"oci {"tar": "false"} Store("d")"#);
    }

    #[test]
    fn refusals() {
        use Form::Buildctl;
        assert_eq!(show("dest=x", Buildctl), "--output requires type=<type>");
        assert!(show("type=local", Buildctl).contains("dest=DIR"));
        assert!(show("type=image,dest=x", Buildctl).contains("not supported"));
        assert!(show("type=local,output=x", Buildctl).contains("dest=x"));
        assert!(show("out", Buildctl).starts_with("invalid --output"));
    }
}
