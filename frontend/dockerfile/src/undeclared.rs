//! Build args that no instruction takes: a misspelt one has no effect, and nobody says so.
//!
//! The official frontend is silent, so this is for programs that know both the file and what was
//! given. Only names near a declared one are told: many give more args than a file takes on purpose.

use crate::parser::{self, Node};
use crate::suggest::{Case, nearest};

/// Those of `given` that the file does not declare, each with the declared one that was probably
/// meant. A file that cannot be read has none.
pub fn misspelt_args<'a>(
    source: &[u8],
    given: impl IntoIterator<Item = &'a str>,
) -> Vec<(&'a str, String)> {
    let Ok(file) = parser::parse(source) else { return Vec::new() };
    let declared: Vec<&str> = file.nodes.iter().flat_map(declared).collect();
    let meant = |name: &str| {
        if declared.contains(&name) || has_meaning(name) {
            return None;
        }
        let same = declared.iter().find(|declared| declared.eq_ignore_ascii_case(name));
        same.map(|declared| (*declared).to_owned())
            .or_else(|| nearest(name, declared.iter().copied(), Case::Sensitive))
    };
    given.into_iter().filter_map(|name| Some((name, meant(name)?))).collect()
}

/// Names an instruction declares, or would where it is triggered.
fn declared(node: &Node) -> Vec<&str> {
    match &node.sub {
        Some(sub) => declared(sub),
        None if node.word.eq_ignore_ascii_case("arg") => node
            .args
            .iter()
            .map(|arg| arg.split_once('=').map_or(&**arg, |(name, _)| name))
            .collect(),
        None => Vec::new(),
    }
}

/// Whether an arg works without being declared.
fn has_meaning(name: &str) -> bool {
    let upper = name.to_ascii_uppercase();
    upper.ends_with("_PROXY")
        || ["BUILDKIT_", "BUILD", "TARGET"].iter().any(|start| name.starts_with(start))
        || name == "SOURCE_DATE_EPOCH"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_near_declared_ones_are_told() {
        let check = |file: &str, given: &[&str], wanted: &[(&str, &str)]| {
            let found = misspelt_args(file.as_bytes(), given.iter().copied());
            let found: Vec<(&str, &str)> = found.iter().map(|(a, b)| (*a, b.as_str())).collect();
            assert_eq!(found, wanted, "{file}");
        };
        let file = "ARG VERSION=1\nFROM scratch\narg NAME \\\n  OTHER=x\nONBUILD ARG LATER\n";
        check(file, &["VERSON", "NAME", "other"], &[("VERSON", "VERSION"), ("other", "OTHER")]);
        check(file, &["LATR", "QUITE_DIFFERENT"], &[("LATR", "LATER")]);
        check("FROM scratch\nARG TARGETOS http_prox\n", &["TARGETO", "HTTP_PROXY"], &[]);
        check("FROM scratch\nARG [\nRUN <<E", &["X"], &[]);
    }
}
