//! The word that was probably meant.

use crate::text;

/// Whether case matters when words are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Case {
    /// `a` is not `A`.
    Sensitive,
    /// `a` is `A`, and the suggestion follows the case of what was given.
    Insensitive,
}

/// Distances from here on are too far.
const FAR: usize = 3;

/// The first of the nearest `options`; nothing if none is near, or if one is equal.
pub fn nearest<'a>(
    given: &str,
    options: impl IntoIterator<Item = &'a str>,
    case: Case,
) -> Option<String> {
    let fold = |word: &str| match case {
        Case::Sensitive => word.to_owned(),
        Case::Insensitive => text::lower(word),
    };
    let wanted: Vec<char> = fold(given).chars().collect();
    let mut best = None;
    let mut least = FAR;
    for option in options {
        let option: Vec<char> = fold(option).chars().collect();
        if option == wanted {
            return None;
        }
        if option.len().abs_diff(wanted.len()) >= least {
            continue;
        }
        let distance = distance(&wanted, &option);
        if distance < least {
            least = distance;
            best = Some(option);
        }
    }
    let best: String = best?.into_iter().collect();
    Some(match case {
        Case::Insensitive if given == text::upper(given) && given != text::lower(given) => {
            text::upper(&best)
        }
        _ => best,
    })
}

/// Levenshtein distance.
fn distance(left: &[char], right: &[char]) -> usize {
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (i, a) in left.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b) in right.iter().enumerate() {
            let above = row[j + 1];
            row[j + 1] = (above + 1).min(row[j] + 1).min(diagonal + usize::from(a != b));
            diagonal = above;
        }
    }
    row[right.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_nearest() {
        let find = |word, case| nearest(word, ["copy", "add", "run"], case);
        assert_eq!(find("cpy", Case::Sensitive).as_deref(), Some("copy"));
        assert_eq!(find("COPPY", Case::Insensitive).as_deref(), Some("COPY"));
        assert_eq!(find("run", Case::Sensitive), None);
        assert_eq!(find("quite-else", Case::Sensitive), None);
    }
}
