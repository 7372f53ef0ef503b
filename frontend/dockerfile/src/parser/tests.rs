//! Text in, nodes out.

use super::*;

/// One line per node: `first-last word flags | args` and what else it has.
fn dump(source: &[u8]) -> String {
    let file = match parse(source) {
        Ok(file) => file,
        Err(error) => {
            return format!("{} {:?} {:?}", error.kind.name(), error.params, error.locations);
        }
    };
    let mut out = String::new();
    for node in &file.nodes {
        let Lines { first, last } = node.lines;
        out += &format!("{first}-{last} {} {:?}", node.word, node.all_args());
        if !node.flags.is_empty() {
            out += &format!(" flags {:?}", node.flags);
        }
        if node.json {
            out += " json";
        }
        for doc in &node.heredocs {
            out += &format!(" <<{} {:?}", doc.name, doc.data());
        }
        if !node.comments.is_empty() {
            out += &format!(" # {:?}", node.comments);
        }
        out += "\n";
    }
    if !file.empty_continuations.is_empty() {
        out += &format!("empty continuation {:?}\n", file.empty_continuations);
    }
    out
}

#[track_caller]
fn check(source: &str, expected: &str) {
    let strip = |text: &str| text.trim().lines().map(str::trim).collect::<Vec<_>>().join("\n");
    assert_eq!(strip(&dump(source.as_bytes())), strip(expected));
}

#[test]
fn lines_join() {
    check(
        "RUN a \\\n  b \\  \n# c\n\n d\\\\\nFROM x",
        "1-5 RUN [\"a   b  d\\\\\\\\\"]\n6-6 FROM [\"x\"]\nempty continuation [5]",
    );
}

#[test]
fn directives_end_at_the_first_other_line() {
    check(
        "# escape=`\n# unknown=1\n# check=skip=all\nRUN a `\n b",
        r#"4-5 RUN ["a  b"] # ["unknown=1", "check=skip=all"]"#,
    );
    check(
        "# escape=\\\n# escape=`\nRUN a",
        r#"duplicate-directive ["escape"] [Lines { first: 1, last: 1 }]"#,
    );
}

#[test]
fn comments_attach() {
    check("# gone\n#\n# one\n\n # two\nRUN a", r##"6-6 RUN ["a"] # ["one", "# two"]"##);
}

#[test]
fn wide_white_space_is_cut_by_one_byte() {
    // The rest of the character is no longer text.
    let dumped = dump("\u{85}# c\nRUN a".as_bytes());
    assert_eq!(dumped, "2-2 RUN [\"a\"] # [\"\\u{10ff85}# c\"]\n");
}

#[test]
fn flags_and_forms() {
    check(
        r#"COPY --from=a "--chown=x y" b c"#,
        r#"1-1 COPY ["\"--chown=x", "y\"", "b", "c"] flags ["--from=a"]"#,
    );
    check(r#"RUN --mount="type=cache" -- --x"#, r#"1-1 RUN ["--x"] flags ["--mount=type=cache"]"#);
    check(r#"CMD [ "a", "b" ]"#, r#"1-1 CMD ["a", "b"] json"#);
    check("CMD ['a']", r#"1-1 CMD ["['a']"]"#);
    check(
        "ENV a=1 b='x y' c=\\ d",
        r#"1-1 ENV ["a", "1", "=", "b", "'x y'", "=", "c", "\\ d", "="]"#,
    );
    check("ENV a b = c", r#"1-1 ENV ["a", "b = c", ""]"#);
    check("ENV a=1 b", r#"kv-missing-equals ["\"b\""] [Lines { first: 1, last: 1 }]"#);
    check("ONBUILD RUN --x a", r#"1-1 ONBUILD ["RUN", "a"]"#);
    check(
        "HEALTHCHECK --interval=1s CMD [\"a\"]",
        r#"1-1 HEALTHCHECK ["CMD", "a"] flags ["--interval=1s"] json"#,
    );
}

#[test]
fn heredocs_are_raw() {
    check(
        "RUN <<A cat <<-'B'\n# x \\\nA\n\tb\n\tB\nRUN c",
        "1-5 RUN [\"<<A cat <<-'B'\"] <<A \"# x \\\\\\n\" <<B \"b\\n\"\n6-6 RUN [\"c\"]",
    );
    check("COPY <<A /a\nb", r#"unterminated-heredoc [] [Lines { first: 1, last: 2 }]"#);
}

#[test]
fn odd_bytes_and_sizes() {
    assert_eq!(
        dump(b"\xef\xbb\xbfFROM a\r\nRUN \xff"),
        "1-1 FROM [\"a\"]\n2-2 RUN [\"\\u{10ffff}\"]\n"
    );
    assert_eq!(dump(b""), "no-instructions [] [Lines { first: 0, last: 0 }]");
    let long = format!("FROM a\nRUN {}\nRUN b", "x".repeat(70_000));
    assert!(dump(long.as_bytes()).starts_with("line-too-long"));
    assert!(dump("ONBUILD ".repeat(8000).as_bytes()).starts_with("1-1 ONBUILD"));
}

#[test]
fn syntax_lines_are_found() {
    let find = |source: &str| {
        detect_syntax(source.as_bytes())
            .map(|syntax| format!("{} {:?} {}", syntax.reference, syntax.cmdline, syntax.line))
    };
    assert_eq!(find("#!/x\n# syntax=a/b:1 opt\n").as_deref(), Some("a/b:1 \"a/b:1 opt\" 2"));
    assert_eq!(find("// syntax = a\n").as_deref(), Some("a \"a\" 1"));
    assert_eq!(find("{\"syntax\": \"a\"}").as_deref(), Some("a \"a\" 0"));
    assert_eq!(find("# x\n# syntax=a\n"), None);
}
