//! Showing people where something is in a file.

use crate::error::{Error, Lines};

/// The lines of a file with marks, between rules.
pub fn excerpt(filename: &str, data: &[u8], lines: Lines) -> String {
    let text = String::from_utf8_lossy(data);
    let all: Vec<&str> = text.split('\n').collect();
    let count = all.len() as u32;
    if lines.first == 0 || lines.first > count {
        return String::new();
    }
    let last = lines.last.clamp(lines.first, count);
    let (mut from, mut to) = (lines.first, last);
    // A single line is shown with more around it.
    let wanted = if from == to { 4 } else { 2 };
    let mut padded = 0;
    while padded < wanted {
        if from > 1 {
            from -= 1;
            padded += 1;
        }
        if to < count {
            to += 1;
            padded += 1;
        }
        padded += 1;
    }
    let rule = "-".repeat(20);
    let mut out = format!("{filename}:{}\n{rule}\n", lines.first);
    for number in from..=to {
        let mark = if (lines.first..=last).contains(&number) { ">>>" } else { "   " };
        let line = all[number as usize - 1].trim_end_matches('\r');
        out.push_str(&format!(" {number:3} | {mark} {line}\n"));
    }
    out + &rule + "\n"
}

/// An error with the places in the file it is about, and a caret under the word it mentions.
pub fn explain(error: &Error, filename: &str, data: &[u8]) -> String {
    let mut out = format!("{error}\n");
    let text = String::from_utf8_lossy(data);
    for lines in error.locations.iter().filter(|lines| **lines != Lines::NOWHERE) {
        let Some(line) = text.split('\n').nth(lines.first.saturating_sub(1) as usize) else {
            continue;
        };
        let shown = excerpt(filename, data, *lines);
        let word = error.params.iter().map(|word| word.trim_matches('"'));
        let at =
            word.filter(|word| !word.is_empty()).find_map(|word| Some((line.find(word)?, word)));
        let Some((at, word)) = at else {
            out.push_str(&shown);
            continue;
        };
        let marked = format!(" {:3} | >>> ", lines.first);
        for shown in shown.lines() {
            out.push_str(shown);
            out.push('\n');
            if shown.starts_with(&marked) {
                let column = line[..at].chars().count();
                let carets = "^".repeat(word.chars().count());
                out.push_str(&format!("     |     {}{carets}\n", " ".repeat(column)));
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    #[test]
    fn errors_show_their_place() {
        let data = b"FROM alpine\nRUN --mont=type=cache ls\n";
        let error = Error::new(Kind::UnknownFlag, ["--mont"]).at(Lines::one(2));
        expect_test::expect![[r#"
            unknown flag: --mont
            Dockerfile:2
            --------------------
               1 |     FROM alpine
               2 | >>> RUN --mont=type=cache ls
                 |         ^^^^^^
               3 |     
            --------------------
        "#]]
        .assert_eq(&explain(&error, "Dockerfile", data));
        assert_eq!(excerpt("f", data, Lines::one(9)), "");
    }
}
