//! The syntax and instruction phases take any bytes.
#![no_main]

use dockerfile::lint::Linter;
use dockerfile::{instructions, parser, report, text};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    assert_eq!(text::to_bytes(&text::from_bytes(data)), data);
    let _ = parser::detect_syntax(data);
    let mut linter = Linter::new(Default::default());
    let program = parser::parse(data).and_then(|file| {
        let mut last = 0;
        for node in &file.nodes {
            assert!(last < node.lines.first && node.lines.first <= node.lines.last);
            last = node.lines.last;
        }
        instructions::parse(&file, &mut linter)
    });
    if let Err(error) = program {
        let _ = report::explain(&error, "Dockerfile", data);
    }
});
