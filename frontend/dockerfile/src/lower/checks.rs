//! Lint rules about stages, names and casing. Rules about single instructions stand beside their
//! lowering.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use base::Platform;
use regex::Regex;

use crate::error::{Case, Lines};
use crate::instructions::Stage;
use crate::lint::{Linter, Rule, Scope};
use crate::{suggest, text};

/// Reserved and repeated stage names.
pub fn stage_names(stages: &[Stage], linter: &mut Linter) {
    let scope = linter.file_scope();
    let mut seen = BTreeSet::new();
    for stage in stages.iter().filter(|stage| !stage.name.is_empty()) {
        let name = text::quote(&stage.name);
        if matches!(stage.name.as_str(), "context" | "scratch") {
            let message =
                format!("Stage name should not use the same name as reserved stage {name}");
            linter.report(&scope, Rule::ReservedStageName, stage.lines, message);
        }
        if !seen.insert(&stage.name) {
            let message = format!("Duplicate stage name {name}, stage names should be unique");
            linter.report(&scope, Rule::DuplicateStageName, stage.lines, message);
        }
    }
}

/// Instruction words in another case than most.
pub fn casing(stages: &[Stage], linter: &mut Linter) {
    let words: Vec<(&str, Lines)> = stages
        .iter()
        .flat_map(|stage| {
            let steps = stage.instructions.iter().map(|step| (step.word.as_str(), step.lines));
            std::iter::once((stage.word.as_str(), stage.lines)).chain(steps)
        })
        .collect();
    let lower = words.iter().filter(|(word, _)| *word == text::lower(word)).count();
    let upper = words
        .iter()
        .filter(|(word, _)| *word == text::upper(word) && *word != text::lower(word))
        .count();
    let scope = linter.file_scope();
    for (word, lines) in words {
        let (wanted, right) = if lower > upper {
            ("lowercase", word == text::lower(word))
        } else {
            ("uppercase", word == text::upper(word))
        };
        if !right {
            let message = format!(
                "Command '{word}' should match the case of the command majority ({wanted})"
            );
            linter.report(&scope, Rule::ConsistentInstructionCasing, lines, message);
        }
    }
}

/// A base that is no image without build args.
pub fn invalid_default_base(stage: &Stage, linter: &mut Linter) {
    let scope = linter.file_scope();
    let message = format!(
        "Default value for ARG {} results in empty or invalid base image name",
        text::lossy(&stage.base)
    );
    linter.report(&scope, Rule::InvalidDefaultArgInFrom, stage.lines, message);
}

/// A name in FROM that is no arg.
pub fn undeclared(
    name: &str,
    known: &BTreeSet<&str>,
    stage: &Stage,
    scope: &Scope,
    linter: &mut Linter,
) {
    let near = suggest::nearest(name, known.iter().copied(), Case::Sensitive);
    let near = near.map_or(String::new(), |near| format!(" (did you mean {near}?)"));
    let message = format!("FROM argument '{name}' is not declared{near}");
    linter.report(scope, Rule::UndefinedArgInFrom, stage.lines, message);
}

/// `--platform` that says nothing, or says it once and for all.
pub fn platform_flag(
    stage: &Stage,
    value: &str,
    matched: &BTreeSet<String>,
    unmatched: &BTreeSet<String>,
    target: Option<&str>,
    scope: &Scope,
    linter: &mut Linter,
) {
    if !unmatched.is_empty() {
        return;
    }
    if matched.len() == 1 && matched.contains("TARGETPLATFORM") && target == Some(value) {
        let message = format!(
            "Setting platform to predefined {} in FROM is redundant as this is the default behavior",
            text::lossy(&stage.platform)
        );
        linter.report(scope, Rule::RedundantTargetPlatform, stage.lines, message);
    }
    let Ok(platform) = Platform::parse(value) else { return };
    let named = stage.name.contains(&platform.os) || stage.name.contains(&platform.architecture);
    if matched.is_empty() && !named {
        let message =
            format!("FROM --platform flag should not use constant value {}", text::quote(value));
        linter.report(scope, Rule::FromPlatformFlagConstDisallowed, stage.lines, message);
    }
}

/// An image for another platform than was wanted.
pub fn base_platform(
    name: &str,
    wanted: &Platform,
    actual: &Platform,
    lines: Lines,
    linter: &mut Linter,
) {
    if wanted.os == actual.os && wanted.architecture == actual.architecture {
        return;
    }
    let show = |platform: &Platform| text::quote(&platform.normalize().format_all());
    let message = format!(
        "Base image {name} was pulled with platform {}, expected {} for current build",
        show(actual),
        show(wanted)
    );
    let scope = linter.file_scope();
    linter.report(&scope, Rule::InvalidBaseImagePlatform, lines, message);
}

/// A name that promises a secret.
pub fn secret_key(word: &str, key: &str, lines: Lines, scope: &Scope, linter: &mut Linter) {
    static SECRET: LazyLock<Regex> = LazyLock::new(|| {
        words("apikey|auth|credential|credentials|key|password|pword|passwd|secret|token")
    });
    static HARMLESS: LazyLock<Regex> = LazyLock::new(|| words("public|file|version"));
    if SECRET.is_match(key) && !HARMLESS.is_match(key) {
        let message = format!(
            "Do not use ARG or ENV instructions for sensitive data ({word} {})",
            text::quote(key)
        );
        linter.report(scope, Rule::SecretsUsedInArgOrEnv, lines, message);
    }
}

fn words(list: &str) -> Regex {
    Regex::new(&format!("(?i)(?:_|^)(?:{list})(?:_|$)")).expect("a fixed pattern is valid")
}
