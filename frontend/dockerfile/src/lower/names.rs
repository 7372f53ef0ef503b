//! Names of steps, as progress shows them.
//!
//! Source: Dockerfile notes §11, "Step names".

use base::Platform;

use super::env::Env;
use super::stage::Stage;
use crate::shell::{Lexer, Variables};
use crate::text;

/// What the names of all steps have in common.
#[derive(Debug, Clone, Copy)]
pub struct Naming {
    /// Say the platform.
    pub platforms: bool,
}

impl Naming {
    /// What names say of the platform a step is for, and of what it builds for.
    pub fn platform(self, platform: Option<&Platform>, env: Option<&Env>) -> String {
        let Some(platform) = platform.filter(|_| self.platforms) else { return String::new() };
        let target = env.and_then(target_platform);
        let target = target.map_or(String::new(), |target| cross(platform, target));
        format!("{}{target} ", platform.format_all())
    }

    /// `[platform stage 1/2] text`; counts the step.
    pub fn step(self, stage: &mut Stage, text: &str, platform: &str) -> String {
        if stage.steps_total == 0 {
            return text.to_owned();
        }
        let mut out = String::from("[");
        out.push_str(platform);
        if !stage.name.is_empty() {
            out.push_str(&stage.name);
            out.push(' ');
        }
        stage.step += 1;
        let total = stage.steps_total;
        let width = total.to_string().len();
        out.push_str(&format!("{:>width$}/{total}] ", stage.step));
        if stage.onbuild {
            out.push_str("ONBUILD ");
        }
        out.push_str(text);
        out
    }
}

/// The text of an instruction with its variables replaced and its word in upper case; as written
/// if it cannot be read.
pub fn instruction_text(lexer: Lexer, code: &str, env: &dyn Variables) -> String {
    let text = lexer.expand(code, env).map_or_else(|_| code.to_owned(), |expanded| expanded.text);
    match text.split_once(' ') {
        Some((word, rest)) => format!("{} {rest}", text::upper(word)),
        None => text::upper(&text),
    }
}

/// The platform that variables say is built for.
fn target_platform(env: &Env) -> Option<Platform> {
    let mut platform = Platform::default();
    let mut found = false;
    for (name, value) in env.iter() {
        let part = match name {
            "TARGETPLATFORM" => match Platform::parse(value) {
                Ok(platform) => return Some(platform),
                Err(_) => continue,
            },
            "TARGETOS" => &mut platform.os,
            "TARGETARCH" => &mut platform.architecture,
            "TARGETVARIANT" => &mut platform.variant,
            _ => continue,
        };
        *part = value.to_owned();
        found = true;
    }
    found.then_some(platform)
}

/// `->arch` if something else is built for than it runs on.
fn cross(base: &Platform, mut target: Platform) -> String {
    if target.os.is_empty() {
        target.os = base.os.clone();
    }
    if target.architecture.is_empty() {
        target.architecture = base.architecture.clone();
    }
    let target = target.normalize();
    if target.os != base.os {
        format!("->{}", target.format_all())
    } else if target.architecture == base.architecture {
        String::new()
    } else if target.variant.is_empty() {
        format!("->{}", target.architecture)
    } else {
        format!("->{}/{}", target.architecture, target.variant)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_counted() {
        let mut stage = Stage { name: "app".into(), steps_total: 10, ..Stage::default() };
        let mut env = Env::default();
        env.set("TARGETARCH", "arm");
        let platform = Platform::new("linux", "amd64");
        let naming = Naming { platforms: true };
        let shown = naming.platform(Some(&platform), Some(&env));
        let name = naming.step(&mut stage, "RUN x", &shown);
        assert_eq!(name, "[linux/amd64->arm/v7 app  1/10] RUN x");
        stage.onbuild = true;
        assert_eq!(Naming { platforms: false }.platform(Some(&platform), None), "");
        let name = naming.step(&mut stage, "RUN y", "");
        assert_eq!(name, "[app  2/10] ONBUILD RUN y");
    }

    #[test]
    fn texts_are_expanded() {
        let mut env = Env::default();
        env.set("A", "b");
        assert_eq!(instruction_text(Lexer::new('\\'), "copy \"$A\" ${", &env), "COPY \"$A\" ${");
        assert_eq!(instruction_text(Lexer::new('\\'), "copy \"$A\" $C x", &env), "COPY b  x");
    }
}
