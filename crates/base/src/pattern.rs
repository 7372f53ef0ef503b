//! Path patterns: Docker's ignore-file patterns and Go's shell globs.
//! Source: cache key notes §5.5 and session notes §4.4.

use regex::Regex;

use crate::path;

/// A pattern that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// Brackets or escapes do not close.
    #[error("syntax error in pattern")]
    Syntax,
    /// A lone `!`.
    #[error("illegal exclusion pattern: \"!\"")]
    LoneExclusion,
}

/// An ordered list of ignore-file patterns; the last one that matches decides.
#[derive(Debug, Clone, Default)]
pub struct Patterns {
    list: Vec<Pattern>,
    exceptions: bool,
}

/// What each pattern said about a path, to be handed to the checks of its children.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MatchInfo(Vec<bool>);

#[derive(Debug, Clone)]
struct Pattern {
    text: String,
    exception: bool,
    rule: Rule,
}

#[derive(Debug, Clone)]
enum Rule {
    Exact,
    Prefix(String),
    Suffix { suffix: String, alone: Option<String> },
    Regex(Regex),
}

impl Patterns {
    /// Prepares `patterns`: white space is trimmed, empty ones dropped, `!` marks an exception.
    pub fn new<S: AsRef<str>>(patterns: impl IntoIterator<Item = S>) -> Result<Self, PatternError> {
        let mut list = Vec::new();
        for pattern in patterns {
            let text = pattern.as_ref().trim();
            if text.is_empty() {
                continue;
            }
            let cleaned = path::clean(text);
            let (exception, text) = match cleaned.strip_prefix('!') {
                Some("") => return Err(PatternError::LoneExclusion),
                Some(rest) => (true, rest.to_owned()),
                None => (false, cleaned),
            };
            // Only as much of it is checked as a match looks at.
            go_match(&text.chars().collect::<Vec<char>>(), &['.'], false)?;
            let rule = compile(&text)?;
            list.push(Pattern { text, exception, rule });
        }
        let exceptions = list.iter().any(|pattern| pattern.exception);
        Ok(Self { list, exceptions })
    }

    /// Whether there is no pattern at all.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Whether some pattern begins with `!`, so that something below an excluded folder may stay.
    pub fn has_exceptions(&self) -> bool {
        self.exceptions
    }

    /// The prepared pattern texts with their exception flag, in order.
    pub fn texts(&self) -> impl Iterator<Item = (&str, bool)> {
        self.list.iter().map(|pattern| (pattern.text.as_str(), pattern.exception))
    }

    /// Whether the clean relative path `file` matches, given what its parent folder's check
    /// returned; also returns this path's info for its own children.
    pub fn matches_below(&self, file: &str, parent: Option<&MatchInfo>) -> (bool, MatchInfo) {
        let mut matched = false;
        let mut info = vec![false; self.list.len()];
        for (index, pattern) in self.list.iter().enumerate() {
            let mut hit =
                parent.is_some_and(|parent| parent.0.get(index).copied().unwrap_or(false));
            if !hit {
                if pattern.exception != matched {
                    continue;
                }
                hit = pattern.matches(file);
                if !hit && parent.is_none() {
                    hit = ancestors(file).any(|folder| pattern.matches(folder));
                }
            }
            info[index] = hit;
            if hit {
                matched = !pattern.exception;
            }
        }
        (matched, MatchInfo(info))
    }

    /// Whether `file` or one of its parent folders matches.
    pub fn matches(&self, file: &str) -> bool {
        self.matches_below(file, None).0
    }
}

fn ancestors(file: &str) -> impl Iterator<Item = &str> {
    file.match_indices('/').map(|(at, _)| &file[..at])
}

impl Pattern {
    fn matches(&self, file: &str) -> bool {
        match &self.rule {
            Rule::Exact => self.text == file,
            Rule::Prefix(prefix) => file.starts_with(prefix.as_str()),
            Rule::Suffix { suffix, alone } => {
                file.ends_with(suffix.as_str()) || alone.as_deref() == Some(file)
            }
            Rule::Regex(regex) => regex.is_match(file),
        }
    }
}

fn compile(text: &str) -> Result<Rule, PatternError> {
    #[derive(PartialEq)]
    enum Kind {
        Exact,
        Prefix,
        Suffix,
        Regex,
    }
    // A mark of byte order at the start counts for exact matches only.
    let chars: Vec<char> = text.strip_prefix('\u{feff}').unwrap_or(text).chars().collect();
    let mut regex = String::from("^");
    let mut kind = Kind::Exact;
    let mut at = 0;
    while at < chars.len() {
        let char = chars[at];
        match char {
            '*' if chars.get(at + 1) == Some(&'*') => {
                let first = at == 0;
                at += 1;
                if chars.get(at + 1) == Some(&'/') {
                    at += 1;
                }
                if at + 1 < chars.len() {
                    regex.push_str("(.*/)?");
                    kind = Kind::Regex;
                } else if kind == Kind::Exact {
                    kind = Kind::Prefix;
                } else {
                    regex.push_str(".*");
                    kind = Kind::Regex;
                }
                if first {
                    kind = Kind::Suffix;
                }
            }
            '*' => {
                regex.push_str("[^/]*");
                kind = Kind::Regex;
            }
            '?' => {
                regex.push_str("[^/]");
                kind = Kind::Regex;
            }
            '.' | '+' | '(' | ')' | '$' => regex.extend(['\\', char]),
            '\\' => match chars.get(at + 1) {
                Some(next) => {
                    regex.extend(['\\', *next]);
                    kind = Kind::Regex;
                    at += 1;
                }
                None => regex.push('\\'),
            },
            '[' | ']' => {
                regex.push(char);
                kind = Kind::Regex;
            }
            // `|`, `^` and `{2}` keep their meaning in regular expressions: the original forgets
            // to escape them, and files that rely on it exist.
            other => regex.push(other),
        }
        at += 1;
    }
    match kind {
        Kind::Exact => Ok(Rule::Exact),
        Kind::Prefix => Ok(Rule::Prefix(text[..text.len() - 2].to_owned())),
        Kind::Suffix => Ok(match text.strip_prefix("**") {
            Some(suffix) => Rule::Suffix {
                alone: suffix.strip_prefix('/').map(str::to_owned),
                suffix: suffix.to_owned(),
            },
            None => Rule::Exact,
        }),
        Kind::Regex => {
            regex.push('$');
            let regex = from_go(&regex).ok_or(PatternError::Syntax)?;
            Ok(Rule::Regex(Regex::new(&regex).map_err(|_| PatternError::Syntax)?))
        }
    }
}

/// A regular expression in Go's syntax, as far as patterns become one, in this library's.
fn from_go(regex: &str) -> Option<String> {
    let chars: Vec<char> = regex.chars().collect();
    let mut out = String::new();
    let mut at = 0;
    let mut class_start = None;
    while let Some(char) = chars.get(at) {
        let first_in_class = class_start.is_some_and(|start| at == start);
        match char {
            '\\' => {
                at += 1;
                out.push_str(&escape(*chars.get(at)?)?);
            }
            '[' if class_start.is_none() => {
                out.push('[');
                if chars.get(at + 1) == Some(&'^') {
                    out.push('^');
                    at += 1;
                }
                class_start = Some(at + 1);
            }
            ']' if class_start.is_some() && !first_in_class => {
                out.push(']');
                class_start = None;
            }
            // These have no meaning in a class there.
            '[' | ']' | '&' | '~' if class_start.is_some() => out.extend(['\\', *char]),
            '-' if class_start.is_some() && (first_in_class || chars.get(at + 1) == Some(&'-')) => {
                out.push_str("\\-");
            }
            ']' => out.push_str("\\]"),
            '{' if class_start.is_none() && !is_repetition(&chars[at..]) => out.push_str("\\{"),
            '}' if class_start.is_none()
                && !out.ends_with(|last: char| last.is_ascii_digit() || last == ',') =>
            {
                out.push_str("\\}");
            }
            other => out.push(*other),
        }
        at += 1;
    }
    Some(out)
}

/// What Go takes an escaped character for.
fn escape(char: char) -> Option<String> {
    Some(match char {
        'd' => "[0-9]".to_owned(),
        'D' => "[^0-9]".to_owned(),
        's' => "[\\t\\n\\f\\r ]".to_owned(),
        'S' => "[^\\t\\n\\f\\r ]".to_owned(),
        'w' => "[0-9A-Za-z_]".to_owned(),
        'W' => "[^0-9A-Za-z_]".to_owned(),
        'b' | 'B' => format!("(?-u:\\{char})"),
        'a' | 'f' | 'n' | 'r' | 't' | 'v' | 'A' | 'z' => format!("\\{char}"),
        other if other.is_ascii_alphanumeric() || !other.is_ascii() => return None,
        other => regex::escape(&other.to_string()),
    })
}

/// Whether `{…` repeats what is before it: `{2}`, `{2,}` or `{2,3}`.
fn is_repetition(chars: &[char]) -> bool {
    let Some(end) = chars.iter().position(|char| *char == '}') else { return false };
    let inside: String = chars[1..end].iter().collect();
    let number = |text: &str| {
        !text.is_empty() && text.len() < 5 && text.bytes().all(|byte| byte.is_ascii_digit())
    };
    match inside.split_once(',') {
        Some((least, most)) => number(least) && (most.is_empty() || number(most)),
        None => number(&inside),
    }
}

/// Go's `path.Match`: `*` and `?` do not cross `/`, `[a-z]` and `[^a]` classes, `\` escapes.
pub fn glob_match(pattern: &str, name: &str) -> Result<bool, PatternError> {
    let pattern: Vec<char> = pattern.chars().collect();
    let name: Vec<char> = name.chars().collect();
    go_match(&pattern, &name, true)
}

fn go_match(
    mut pattern: &[char],
    mut name: &[char],
    check_rest: bool,
) -> Result<bool, PatternError> {
    'pattern: while !pattern.is_empty() {
        let (star, chunk, rest) = scan_chunk(pattern);
        pattern = rest;
        if star && chunk.is_empty() {
            return Ok(!name.contains(&'/'));
        }
        if let Some(after) = match_chunk(chunk, name)?
            && (after.is_empty() || !pattern.is_empty())
        {
            name = after;
            continue;
        }
        if star {
            let mut index = 0;
            while index < name.len() && name[index] != '/' {
                if let Some(after) = match_chunk(chunk, &name[index + 1..])? {
                    if pattern.is_empty() && !after.is_empty() {
                        index += 1;
                        continue;
                    }
                    name = after;
                    continue 'pattern;
                }
                index += 1;
            }
        }
        while check_rest && !pattern.is_empty() {
            let (_, chunk, rest) = scan_chunk(pattern);
            pattern = rest;
            match_chunk(chunk, &[])?;
        }
        return Ok(false);
    }
    Ok(name.is_empty())
}

fn scan_chunk(mut pattern: &[char]) -> (bool, &[char], &[char]) {
    let mut star = false;
    while pattern.first() == Some(&'*') {
        pattern = &pattern[1..];
        star = true;
    }
    let mut in_range = false;
    let mut index = 0;
    while index < pattern.len() {
        match pattern[index] {
            '\\' if index + 1 < pattern.len() => index += 1,
            '[' => in_range = true,
            ']' => in_range = false,
            '*' if !in_range => break,
            _ => {}
        }
        index += 1;
    }
    (star, &pattern[..index], &pattern[index..])
}

fn match_chunk<'a>(
    mut chunk: &[char],
    mut name: &'a [char],
) -> Result<Option<&'a [char]>, PatternError> {
    let mut failed = false;
    while !chunk.is_empty() {
        if !failed && name.is_empty() {
            failed = true;
        }
        match chunk[0] {
            '[' => {
                let mut char = '\0';
                if !failed {
                    char = name[0];
                    name = &name[1..];
                }
                chunk = &chunk[1..];
                let negated = chunk.first() == Some(&'^');
                if negated {
                    chunk = &chunk[1..];
                }
                let mut hit = false;
                let mut ranges = 0;
                loop {
                    if chunk.first() == Some(&']') && ranges > 0 {
                        chunk = &chunk[1..];
                        break;
                    }
                    let low = class_char(&mut chunk)?;
                    let mut high = low;
                    if chunk.first() == Some(&'-') {
                        chunk = &chunk[1..];
                        high = class_char(&mut chunk)?;
                    }
                    hit |= low <= char && char <= high;
                    ranges += 1;
                }
                if hit == negated {
                    failed = true;
                }
            }
            '?' => {
                if !failed {
                    failed = name[0] == '/';
                    name = &name[1..];
                }
                chunk = &chunk[1..];
            }
            other => {
                let mut literal = other;
                if other == '\\' {
                    chunk = &chunk[1..];
                    literal = *chunk.first().ok_or(PatternError::Syntax)?;
                }
                if !failed {
                    failed = literal != name[0];
                    name = &name[1..];
                }
                chunk = &chunk[1..];
            }
        }
    }
    Ok((!failed).then_some(name))
}

fn class_char(chunk: &mut &[char]) -> Result<char, PatternError> {
    match chunk.first() {
        None | Some('-' | ']') => return Err(PatternError::Syntax),
        Some('\\') => *chunk = &chunk[1..],
        Some(_) => {}
    }
    let char = *chunk.first().ok_or(PatternError::Syntax)?;
    *chunk = &chunk[1..];
    if chunk.is_empty() {
        return Err(PatternError::Syntax);
    }
    Ok(char)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shell_globs_follow_go() {
        for (pattern, name, expected) in [
            ("abc", "abc", Ok(true)),
            ("*", "abc", Ok(true)),
            ("*c", "abc", Ok(true)),
            ("a*/b", "abc/b", Ok(true)),
            ("a*/b", "a/c/b", Ok(false)),
            ("a*b*c*d*e*/f", "axbxcxdxexxx/f", Ok(true)),
            ("ab[^e-g]", "abc", Ok(true)),
            ("a\\*b", "a*b", Ok(true)),
            ("a???b", "a☺☺☺b", Ok(true)),
            ("[]a]", "]", Err(PatternError::Syntax)),
            ("[", "a", Err(PatternError::Syntax)),
            ("a[", "ab", Err(PatternError::Syntax)),
            ("*x", "xxx", Ok(true)),
            ("[x-]", "x", Err(PatternError::Syntax)),
        ] {
            assert_eq!(glob_match(pattern, name), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn ignore_patterns_follow_docker() {
        for (patterns, file, expected) in [
            (vec!["**"], "a/b", true),
            (vec!["**/"], "file", true),
            (vec!["dir/**"], "dir/file", true),
            (vec!["dir/**"], "dir", false),
            (vec!["**/file"], "a/file", true),
            (vec!["**/file"], "file", true),
            (vec!["**file"], "a/xfile", true),
            (vec!["**.log"], "a/x.log", true),
            (vec!["a|b*"], "bc", true),
            (vec!["[a&&b]"], "&", true),
            (vec!["x{2}?"], "xxy", true),
            (vec!["*{x}"], "a{x}", true),
            (vec!["x\\d*"], "x1", true),
            (vec!["a**/*.txt"], "abc/d.txt", true),
            (vec!["**/*.go", "!x/y.go"], "x/y.go", false),
            (vec!["node_modules"], "node_modules/a/b", true),
            (vec!["*", "!keep"], "keep", false),
            (vec!["*", "!keep/this"], "keep/that", true),
            (vec![" ./a/ "], "a/b", true),
            (vec!["a.c"], "abc", false),
            (vec!["file(1)"], "file(1)", true),
            (vec!["*(1)"], "file(1)", true),
            (vec!["a?c"], "abc", true),
        ] {
            let patterns_ = Patterns::new(&patterns).unwrap();
            assert_eq!(patterns_.matches(file), expected, "{patterns:?} {file}");
        }
        assert_eq!(Patterns::new(["!"]).unwrap_err(), PatternError::LoneExclusion);
        assert!(Patterns::new(["a["]).is_err());
    }
}
