//! The word lexer: quotes, escapes, variables.
//!
//! A [`Lexer`] is a set of modes; [`Lexer::expand`] makes one text of its input and
//! [`Lexer::words`] splits the result at unquoted white space. Both say which variables were
//! found and which were not. Nesting and size of results are bounded, so that no input can
//! exhaust the machine.
//!
//! Source: Dockerfile notes §6, including the defect of word lists described in §6.2, which has to
//! be kept because other builds of the same file show it.

mod pattern;

use std::collections::BTreeSet;

use crate::error::{Error, Kind, Result};
use crate::text;

/// Substitutions inside substitutions; real files have two or three.
const MAX_DEPTH: usize = 100;

/// Longest result of one expansion. The kernel refuses single variables above 128 KiB.
pub const MAX_EXPANSION: usize = 4 << 20;

/// Variables by name.
pub trait Variables {
    /// The value, if set.
    fn get(&self, name: &str) -> Option<&str>;
}

/// No variables at all.
pub struct Empty;

impl Variables for Empty {
    fn get(&self, _: &str) -> Option<&str> {
        None
    }
}

/// How to read words.
#[derive(Debug, Clone, Copy)]
pub struct Lexer {
    /// The escape character.
    pub escape: char,
    /// Keep quotes.
    pub raw_quotes: bool,
    /// Keep escapes.
    pub raw_escapes: bool,
    /// Quotes are ordinary characters.
    pub skip_quotes: bool,
    /// Leave references to unset variables as they are.
    pub skip_unset: bool,
}

/// An expanded text.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Expanded {
    /// The text.
    pub text: String,
    /// Variables that were set.
    pub matched: BTreeSet<String>,
    /// Variables that were not.
    pub unmatched: BTreeSet<String>,
}

impl Lexer {
    /// A lexer without special modes.
    pub fn new(escape: char) -> Self {
        Self {
            escape,
            raw_quotes: false,
            raw_escapes: false,
            skip_quotes: false,
            skip_unset: false,
        }
    }

    /// Expands `input` to one text.
    pub fn expand(&self, input: &str, variables: &dyn Variables) -> Result<Expanded> {
        let (result, matched, unmatched) = self.expand_all(input, variables);
        Ok(Expanded { text: result?, matched, unmatched })
    }

    /// As [`Lexer::expand`]; what was looked up is told even if the text is wrong.
    pub fn expand_all(
        &self,
        input: &str,
        variables: &dyn Variables,
    ) -> (Result<String>, BTreeSet<String>, BTreeSet<String>) {
        let (result, run) = self.run(input, variables);
        (result.map(|(text, _)| text), run.matched, run.unmatched)
    }

    /// Expands `input` and splits it at unquoted white space.
    pub fn words(&self, input: &str, variables: &dyn Variables) -> Result<Vec<String>> {
        Ok(self.run(input, variables).0?.1)
    }

    fn run<'a>(
        &self,
        input: &str,
        variables: &'a dyn Variables,
    ) -> (Result<(String, Vec<String>)>, Run<'a>) {
        let mut run = Run {
            lexer: *self,
            chars: scan(input),
            at: 0,
            variables,
            raw_escapes: self.raw_escapes,
            word: String::new(),
            produced: 0,
            depth: 0,
            matched: BTreeSet::new(),
            unmatched: BTreeSet::new(),
        };
        let result = run.until(None, self.raw_escapes).map_err(|mut error| {
            if error.kind != Kind::UnsetRequired {
                return error.context(format!("failed to process {}", text::quote(input)));
            }
            error.params.insert(0, text::quote(input));
            error
        });
        (result, run)
    }
}

/// Characters as the lexer sees them: invalid bytes replaced, a leading byte order mark dropped.
fn scan(input: &str) -> Vec<char> {
    let input = input.strip_prefix('\u{feff}').unwrap_or(input);
    let replace = |char| if text::escaped(char).is_some() { '\u{fffd}' } else { char };
    input.chars().map(replace).collect()
}

struct Run<'a> {
    lexer: Lexer,
    chars: Vec<char>,
    at: usize,
    variables: &'a dyn Variables,
    raw_escapes: bool,
    /// The word being collected. Nested substitutions share it: that is the defect kept.
    word: String,
    produced: usize,
    depth: usize,
    matched: BTreeSet<String>,
    unmatched: BTreeSet<String>,
}

#[derive(Default)]
struct Words {
    list: Vec<String>,
    inside: bool,
}

impl Words {
    fn add(&mut self, word: &mut String, char: char) {
        if !char.is_whitespace() {
            word.push(char);
            self.inside = true;
        } else if self.inside && !word.is_empty() {
            self.list.push(std::mem::take(word));
            self.inside = false;
        }
    }

    fn add_raw(&mut self, word: &mut String, text: &str) {
        word.push_str(text);
        self.inside = true;
    }

    fn finish(mut self, word: &mut String) -> Vec<String> {
        if !word.is_empty() {
            self.list.push(std::mem::take(word));
        }
        self.list
    }
}

impl Run<'_> {
    fn peek(&self) -> Option<char> {
        self.chars.get(self.at).copied()
    }

    fn next(&mut self) -> Option<char> {
        let char = self.peek();
        self.at += usize::from(char.is_some());
        char
    }

    /// Counts what substitutions produce.
    fn produce(&mut self, text: &str) -> Result<()> {
        self.produced += text.len();
        if self.produced > MAX_EXPANSION {
            return Err(Error::new(Kind::ExpansionTooLarge, [MAX_EXPANSION.to_string()]));
        }
        Ok(())
    }

    /// Reads up to `stop`, or to the end if there is none.
    fn until(&mut self, stop: Option<char>, raw_escapes: bool) -> Result<(String, Vec<String>)> {
        if self.depth == MAX_DEPTH {
            return Err(Error::plain(Kind::NestingTooDeep));
        }
        self.depth += 1;
        let before = std::mem::replace(&mut self.raw_escapes, raw_escapes);
        let result = self.until_inner(stop);
        self.raw_escapes = before;
        self.depth -= 1;
        result
    }

    fn until_inner(&mut self, stop: Option<char>) -> Result<(String, Vec<String>)> {
        let mut result = String::new();
        let mut words = Words::default();
        self.word.clear();
        while let Some(char) = self.peek() {
            if stop == Some(char) {
                self.next();
                return Ok((result, words.finish(&mut self.word)));
            }
            match char {
                '\'' | '"' if !self.lexer.skip_quotes => {
                    let quoted =
                        if char == '"' { self.double_quoted()? } else { self.single_quoted()? };
                    result.push_str(&quoted);
                    words.add_raw(&mut self.word, &quoted);
                }
                '$' => {
                    let value = self.dollar()?;
                    self.produce(&value)?;
                    result.push_str(&value);
                    value.chars().for_each(|char| words.add(&mut self.word, char));
                }
                '<' => {
                    let mark = self.possible_heredoc();
                    result.push_str(&mark);
                    words.add_raw(&mut self.word, &mark);
                }
                _ if char == self.lexer.escape => {
                    self.next();
                    if self.raw_escapes {
                        words.add_raw(&mut self.word, char.encode_utf8(&mut [0; 4]));
                        result.push(char);
                    }
                    let Some(literal) = self.next() else { break };
                    words.add_raw(&mut self.word, literal.encode_utf8(&mut [0; 4]));
                    result.push(literal);
                }
                _ => {
                    self.next();
                    words.add(&mut self.word, char);
                    result.push(char);
                }
            }
        }
        match stop {
            None => Ok((result, words.finish(&mut self.word))),
            Some(_) => Err(Error::plain(Kind::MissingBrace)),
        }
    }

    fn single_quoted(&mut self) -> Result<String> {
        let mut result = String::new();
        let quote = self.next();
        if self.lexer.raw_quotes {
            result.extend(quote);
        }
        loop {
            match self.next() {
                None => return Err(Error::new(Kind::UnclosedQuote, ["single-quote"])),
                Some('\'') => {
                    if self.lexer.raw_quotes {
                        result.push('\'');
                    }
                    return Ok(result);
                }
                Some(char) => result.push(char),
            }
        }
    }

    fn double_quoted(&mut self) -> Result<String> {
        let mut result = String::new();
        let quote = self.next();
        if self.lexer.raw_quotes {
            result.extend(quote);
        }
        loop {
            match self.peek() {
                None => return Err(Error::new(Kind::UnclosedQuote, ["double-quote"])),
                Some('"') => {
                    self.next();
                    if self.lexer.raw_quotes {
                        result.push('"');
                    }
                    return Ok(result);
                }
                Some('$') => {
                    let value = self.dollar()?;
                    self.produce(&value)?;
                    result.push_str(&value);
                }
                Some(mut char) => {
                    self.next();
                    if char == self.lexer.escape {
                        if self.raw_escapes {
                            result.push(char);
                        }
                        match self.peek() {
                            None => continue,
                            Some(next)
                                if next == '"' || next == '$' || next == self.lexer.escape =>
                            {
                                self.next();
                                char = next;
                            }
                            Some(_) => {}
                        }
                    }
                    result.push(char);
                }
            }
        }
    }

    fn dollar(&mut self) -> Result<String> {
        self.next();
        if self.peek() != Some('{') {
            let name = self.name();
            if name.is_empty() {
                return Ok("$".to_owned());
            }
            return Ok(match self.value(&name) {
                None if self.lexer.skip_unset => format!("${name}"),
                value => value.unwrap_or_default(),
            });
        }
        self.next();
        match self.peek() {
            None => return Err(Error::plain(Kind::MissingBrace)),
            Some('{' | '}' | ':') => return Err(Error::plain(Kind::BadSubstitution)),
            Some(_) => {}
        }
        let name = self.name();
        match self.next() {
            Some('}') => Ok(match self.value(&name) {
                None if self.lexer.skip_unset => format!("${{{name}}}"),
                value => value.unwrap_or_default(),
            }),
            Some(':') => {
                let operator = self.next();
                self.modified(&name, operator, true)
            }
            operator @ Some('+' | '-' | '?' | '#' | '%') => self.modified(&name, operator, false),
            Some('/') => self.replaced(&name),
            other => Err(unsupported(false, other)),
        }
    }

    /// `${name-word}` and its like; with `null`, after a colon, an empty value counts as unset.
    fn modified(&mut self, name: &str, operator: Option<char>, null: bool) -> Result<String> {
        let pattern = matches!(operator, Some('#' | '%'));
        if null && pattern {
            return Err(unsupported(null, operator));
        }
        let word = self.nested('}', pattern, Kind::MissingBrace)?;
        let value = self.value(name);
        if value.is_none() && self.lexer.skip_unset {
            let colon = if null { ":" } else { "" };
            let operator = operator.unwrap_or('\u{fffd}');
            return Ok(format!("${{{name}{colon}{operator}{word}}}"));
        }
        let present = value.as_deref().is_some_and(|value| !(null && value.is_empty()));
        match operator {
            Some('-') => Ok(if present { value.unwrap_or_default() } else { word }),
            Some('+') => Ok(if present { word } else { String::new() }),
            Some('?') if present => Ok(value.unwrap_or_default()),
            Some('?') => {
                let message = match (word.is_empty(), value.is_none()) {
                    (false, _) => word,
                    (true, true) => "is not allowed to be unset".to_owned(),
                    (true, false) => "is not allowed to be empty".to_owned(),
                };
                Err(Error::new(Kind::UnsetRequired, [name.to_owned(), message]))
            }
            Some(side @ ('#' | '%')) => {
                let (greedy, pattern) = match word.strip_prefix(side) {
                    Some(pattern) => (true, pattern),
                    None => (false, word.as_str()),
                };
                let value = value.unwrap_or_default();
                if side == '#' {
                    pattern::trim_prefix(pattern, &value, greedy)
                } else {
                    pattern::trim_suffix(pattern, &value, greedy)
                }
            }
            other => Err(unsupported(null, other)),
        }
    }

    /// `${name/pattern/text}` and `${name//pattern/text}`.
    fn replaced(&mut self, name: &str) -> Result<String> {
        let all = self.peek() == Some('/');
        if all {
            self.next();
        }
        let pattern = self.nested('/', true, Kind::MissingSlash)?;
        let replacement = self.nested('}', true, Kind::MissingBrace)?;
        let value = self.value(name);
        if value.is_none() && self.lexer.skip_unset {
            return Ok(format!("${{{name}/{pattern}/{replacement}}}"));
        }
        pattern::replace(&pattern, &value.unwrap_or_default(), &replacement, all)
    }

    /// A nested word; running into the end of text is `missing`, whatever went wrong.
    fn nested(&mut self, stop: char, raw_escapes: bool, missing: Kind) -> Result<String> {
        match self.until(Some(stop), raw_escapes) {
            Ok((word, _)) => Ok(word),
            Err(error) if matches!(error.kind, Kind::NestingTooDeep | Kind::ExpansionTooLarge) => {
                Err(error)
            }
            Err(_) if self.peek().is_none() => Err(Error::plain(missing)),
            Err(error) => Err(error),
        }
    }

    fn name(&mut self) -> String {
        let mut name = String::new();
        while let Some(char) = self.peek() {
            if name.is_empty() {
                if text::is_digit(char) {
                    while let Some(digit) = self.peek().filter(|char| text::is_digit(*char)) {
                        name.push(digit);
                        self.next();
                    }
                    return name;
                }
                if matches!(char, '@' | '*' | '#' | '?' | '-' | '$' | '!') {
                    self.next();
                    return char.to_string();
                }
            }
            if !text::is_letter(char) && !text::is_digit(char) && char != '_' {
                break;
            }
            name.push(char);
            self.next();
        }
        name
    }

    fn value(&mut self, name: &str) -> Option<String> {
        let value = self.variables.get(name).map(str::to_owned);
        let seen = if value.is_some() { &mut self.matched } else { &mut self.unmatched };
        seen.insert(name.to_owned());
        value
    }

    /// `<<` keeps the white space after it, so that `<< EOF` is one word.
    fn possible_heredoc(&mut self) -> String {
        self.next();
        if self.peek() != Some('<') {
            return "<".to_owned();
        }
        self.next();
        let mut mark = "<<".to_owned();
        while let Some(space @ ('\t' | '\r' | ' ')) = self.peek() {
            mark.push(space);
            self.next();
        }
        mark
    }
}

fn unsupported(colon: bool, operator: Option<char>) -> Error {
    let colon = if colon { ":" } else { "" };
    let operator = operator.unwrap_or('\u{fffd}');
    Error::new(Kind::UnsupportedModifier, [format!("{colon}{operator}")])
}

#[cfg(test)]
mod tests;
