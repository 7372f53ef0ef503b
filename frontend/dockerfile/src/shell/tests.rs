//! The word lexer against cases that shells and Go agree or differ on.

use super::*;

struct Pairs(&'static [(&'static str, &'static str)]);

impl Variables for Pairs {
    fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(key, _)| *key == name).map(|(_, value)| *value)
    }
}

const ENV: Pairs = Pairs(&[("A", "alpha"), ("E", ""), ("P", "/usr/local/bin"), ("S", "x y")]);

fn check(input: &str, expected: &str) {
    let got = match Lexer::new('\\').expand(input, &ENV) {
        Ok(expanded) => expanded.text,
        Err(error) => format!("{} {}", error.kind.name(), error.params.join(",")),
    };
    assert_eq!(got.trim_end(), expected, "{input}");
}

#[test]
fn expands() {
    for (input, expected) in [
        ("$A-${A}", "alpha-alpha"),
        ("'$A' \"$A\" \\$A", "$A alpha $A"),
        ("${X:-d} ${E:-d} ${E-d} ${A:-d}", "d d  alpha"),
        ("${X:+d}|${E:+d}|${E+d}|${A:+d}", "||d|d"),
        ("${P#*/} ${P##*/} ${P%/*} ${P%%/*}", "usr/local/bin bin /usr/local"),
        ("${P/\\//-} ${P//\\//-}", "-usr/local/bin -usr-local-bin"),
        ("${P//l/${A}$1}", "/usr/alphaocaalpha/bin"),
        ("${X:-${A:-b}}", "alpha"),
        ("$ $. $1x ${#}", "$ $. x"),
        ("a\\", "a"),
    ] {
        check(input, expected);
    }
}

#[test]
fn refuses() {
    for (input, expected) in [
        ("${A", "unsupported-modifier \u{fffd}"),
        ("${", "missing-brace"),
        ("${}", "bad-substitution"),
        ("${A:x}", "unsupported-modifier :x"),
        ("${A:#x}", "unsupported-modifier :#"),
        ("${A/x}", "missing-slash"),
        ("${A#\\x}", "invalid-pattern \\x"),
        ("'a", "unclosed-quote single-quote"),
        ("${X:?gone}", "unset-required \"${X:?gone}\",X,gone"),
    ] {
        check(input, expected);
    }
}

#[test]
fn splits_words_with_the_known_defect() {
    let words = |input| Lexer::new('\\').words(input, &ENV).unwrap().join("|");
    assert_eq!(words("a $S 'b c' \"$S\""), "a|x|y|b c|x y");
    assert_eq!(words("80${X:-81} 80${A}"), "81|80alpha");
    assert_eq!(words("cat << EOF <<-X"), "cat|<< EOF|<<-X");
}

#[test]
fn depth_and_size_are_bounded() {
    let deep = "${A:-".repeat(5000) + &"}".repeat(5000);
    let error = Lexer::new('\\').expand(&deep, &ENV).unwrap_err();
    assert_eq!(error.kind, Kind::NestingTooDeep);
    let long: &'static str = Box::leak("x".repeat(MAX_EXPANSION / 2).into_boxed_str());
    let pairs: &'static [(&str, &str)] = Box::leak(Box::new([("L", long)]));
    let error = Lexer::new('\\').expand("$L$L$L", &Pairs(pairs)).unwrap_err();
    assert_eq!(error.kind, Kind::ExpansionTooLarge);
}
