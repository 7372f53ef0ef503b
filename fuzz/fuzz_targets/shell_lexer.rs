//! The word lexer takes any text in every mode, and its results are bounded.
#![no_main]

use dockerfile::shell::{Lexer, MAX_EXPANSION, Variables};
use dockerfile::text;
use libfuzzer_sys::fuzz_target;

/// A few variables, one of them hostile.
struct Few;

impl Variables for Few {
    fn get(&self, name: &str) -> Option<&str> {
        match name {
            "A" => Some("value with $A and 'quotes'"),
            "E" => Some(""),
            "P" => Some("/usr/local/bin:/usr/bin"),
            _ => None,
        }
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((mode, rest)) = data.split_first() else { return };
    let input = text::from_bytes(rest);
    let lexer = Lexer {
        escape: if mode & 1 > 0 { '`' } else { '\\' },
        raw_quotes: mode & 2 > 0,
        raw_escapes: mode & 4 > 0,
        skip_quotes: mode & 8 > 0,
        skip_unset: mode & 16 > 0,
    };
    if let Ok(expanded) = lexer.expand(&input, &Few) {
        assert!(expanded.text.len() <= 3 * input.len() + 2 * MAX_EXPANSION);
    }
    let _ = lexer.words(&input, &Few);
});
