//! Finding the word of a file that a message is about.
//!
//! Frontends tell lines only, but their messages repeat what is wrong there. Invariant: a word is
//! pointed at only if it stands in a marked line as a word of its own.

/// Where to draw carets.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Spot {
    /// Number of the line.
    pub line: usize,
    /// What to write below it.
    pub carets: String,
}

/// The first place in `lines` of the word that `message` is about.
pub(crate) fn find<'a>(
    message: &str,
    lines: impl Iterator<Item = (usize, &'a str)>,
) -> Option<Spot> {
    // Such a message repeats the command, not what is wrong with it.
    if message.contains("did not complete successfully") {
        return None;
    }
    let lines: Vec<(usize, &str)> = lines.collect();
    candidates(message).into_iter().find_map(|word| {
        let (line, text, at) =
            lines.iter().find_map(|(line, text)| Some((*line, *text, place(text, word)?)))?;
        let blank = |char: char| if char == '\t' { '\t' } else { ' ' };
        let mut carets: String = text[..at].chars().map(blank).collect();
        carets.extend(std::iter::repeat_n('^', word.chars().count()));
        Some(Spot { line, carets })
    })
}

/// Words of a message that may stand in the file, the likeliest first.
fn candidates(message: &str) -> Vec<&str> {
    let message = match message.rsplit_once(" on line ") {
        Some((_, rest)) => rest.split_once(": ").map_or(rest, |(_, rest)| rest),
        None => message,
    };
    let (said, meant) = message.split_once(" (did you mean").unwrap_or((message, ""));
    // Every second piece is between quotes.
    let mut words: Vec<&str> = said.split('"').skip(1).step_by(2).collect();
    if !meant.is_empty() {
        words.extend(said.split(' ').next_back());
    }
    let odd = |word: &&str| word.bytes().any(|byte| !byte.is_ascii_lowercase());
    let bare = said.split(' ').map(|word| word.trim_matches(|c| "\"'`,:;()".contains(c)));
    words.extend(bare.filter(odd));
    let mut all = Vec::new();
    for word in words {
        let word = word.trim_matches(['"', '\'']);
        all.push(word);
        // Paths are told from the root.
        all.extend(word.strip_prefix('/'));
    }
    // A single character stands in many places.
    all.retain(|word| word.chars().nth(1).is_some());
    all
}

/// Where `word` stands in `text` with nothing of a word before and after it.
fn place(text: &str, word: &str) -> Option<usize> {
    let part = |char: char| char.is_alphanumeric() || char == '_';
    text.match_indices(word).map(|(at, _)| at).find(|at| {
        let before = text[..*at].chars().next_back().is_some_and(part);
        let after = text[at + word.len()..].chars().next().is_some_and(part);
        let (first, last) = (word.chars().next(), word.chars().next_back());
        !(before && first.is_some_and(part) || after && last.is_some_and(part))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_what_messages_are_about() {
        let check = |message: &str, line: &str, wanted: &str| {
            let carets = find(message, [(7, line)].into_iter()).map(|spot| spot.carets);
            assert_eq!(carets.unwrap_or_default(), wanted, "{message}: {line}");
        };
        let line = "dockerfile parse error on line 2: ";
        let check_line = |message: &str, text: &str, wanted: &str| {
            check(&format!("{line}{message}"), text, wanted);
        };
        check_line("unknown instruction: RUNN (did you mean RUN?)", "RUNN x RUN", "^^^^");
        check_line("unknown flag: --lnk (did you mean link?)", "COPY --lnk a b", "     ^^^^^");
        check(
            "target stage \"b 1\" could not be found",
            "COPY --from=\"b 1\" a b",
            "             ^^^",
        );
        check(
            "unexpected key 'targt' in 'targt=/x'",
            "RUN --mount=targt=/x y",
            "            ^^^^^^^^",
        );
        check("invalid containerPort: 99999: use 1 to 65535", "EXPOSE 1 99999", "         ^^^^^");
        check(
            "failed to compute cache key: \"/nofile\": not found",
            "COPY nofiles nofile /b",
            "             ^^^^^^",
        );
        check("process \"/bin/sh -c x\" did not complete successfully: exit code: 1", "RUN x", "");
        check("the base image is gone", "FROM the", "");
        check("\"é\" is odd", "RUN \té", "");
        check("\"éé\" is odd", "RUN \téé", "    \t^^");
    }
}
