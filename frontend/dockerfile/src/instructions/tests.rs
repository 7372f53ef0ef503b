//! Text in, stages out.

use super::*;
use crate::lint::Config;

/// One line per stage and instruction, then findings; or the error.
fn dump(source: &str) -> String {
    let mut linter = Linter::new(Config::parse("experimental=all").unwrap());
    let file = crate::parser::parse(source.as_bytes()).unwrap();
    let program = match parse(&file, &mut linter) {
        Ok(program) => program,
        Err(error) => return format!("{} | {error}", error.kind.name()),
    };
    let mut out = String::new();
    for global in &program.globals {
        out += &format!("global {:?}\n", global.command);
    }
    for stage in &program.stages {
        out += &format!("stage {:?} from {:?}\n", stage.name, stage.base);
        for instruction in &stage.instructions {
            out += &format!("  {:?}\n", instruction.command);
        }
    }
    for finding in linter.findings() {
        out += &format!("{} {}\n", finding.rule.name(), finding.message);
    }
    out
}

#[track_caller]
fn check(source: &str, expected: &str) {
    let strip = |text: &str| text.trim().lines().map(str::trim).collect::<Vec<_>>().join("\n");
    assert_eq!(strip(&dump(source)), strip(expected));
}

#[test]
fn stages_are_collected() {
    check(
        "ARG V=1\nFROM a AS B\nUSER x\nFROM b\nENV k v",
        r#"
        global Arg([Arg { key: "V", value: Some("1"), description: "" }])
        stage "b" from "a"
          User("x")
        stage "" from "b"
          Env([KeyValue { key: "k", value: "v", legacy: true }])
        StageNameCasing Stage name 'B' should be lowercase
        "#,
    );
}

#[test]
fn mistakes_are_explained() {
    for (source, expected) in [
        (
            "FROM a\nRUM x",
            "unknown-instruction | dockerfile parse error on line 2: unknown instruction: RUM (did you mean RUN?)",
        ),
        (
            "FROM a\nCOPY --form=b c d",
            "unknown-flag | dockerfile parse error on line 2: unknown flag: --form (did you mean from?)",
        ),
        ("USER a", "no-current-stage | no build stage in current context: start with FROM"),
        (
            "FROM a AS 1",
            "invalid-stage-name | dockerfile parse error on line 1: invalid name for build stage: \"1\": it starts with a letter and holds letters, digits, - _ and . only",
        ),
        (
            "FROM a\nCOPY x",
            "needs-destination | dockerfile parse error on line 2: COPY requires at least two arguments, the last being where to copy to",
        ),
        (
            "FROM a\nCOPY --link=maybe x y",
            "flag-not-bool | dockerfile parse error on line 2: expecting boolean value for flag --link, not: maybe",
        ),
        (
            "FROM a\nHEALTHCHECK --interval=1us CMD x",
            "duration-too-short | dockerfile parse error on line 2: Interval \"interval\" cannot be less than 1ms",
        ),
    ] {
        check(source, expected);
    }
}

#[test]
fn healthchecks_are_read() {
    check(
        "FROM a\nHEALTHCHECK --interval=1m30.5s --retries=3 CMD x y",
        r#"
        stage "" from "a"
          Healthcheck(Healthcheck { test: ["CMD-SHELL", "x y"], interval: 90500000000, timeout: 0, start_period: 0, start_interval: 0, retries: 3 })
        "#,
    );
}

#[test]
fn mounts_are_read() {
    let read = |value: &str| match mount::Mount::parse(value, |word| Ok(word.to_owned())) {
        Ok(mount) => format!("{} {} {}", mount.kind, mount.readonly, mount.size),
        Err(error) => error.to_string(),
    };
    assert_eq!(read("type=tmpfs,size=1.5GiB"), "tmpfs false 1610612736");
    assert_eq!(read("target=/a,RW"), "bind false 0");
    assert_eq!(
        read("type=cach"),
        "unsupported mount type \"cach\": use bind, cache, tmpfs, secret or ssh (did you mean cache?)"
    );
    assert_eq!(read("type=secret"), "invalid secret mount: one of source, target required");
}
