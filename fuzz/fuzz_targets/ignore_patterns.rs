//! Ignore patterns take any text, and the plain matcher agrees with the one that knows parents.
#![no_main]

use base::pattern::{Patterns, glob_match};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let text = String::from_utf8_lossy(data);
    let mut lines = text.lines();
    let path = base::path::clean(lines.next().unwrap_or_default());
    let path = path.trim_start_matches('/');
    let list: Vec<&str> = lines.collect();
    for pattern in &list {
        let _ = glob_match(pattern, path);
    }
    let Ok(patterns) = Patterns::new(&list) else { return };
    let _ = patterns.matches(path);
    let mut info = None;
    for (at, _) in path.match_indices('/').chain([(path.len(), "")]) {
        info = Some(patterns.matches_below(&path[..at], info.as_ref()).1);
    }
});
