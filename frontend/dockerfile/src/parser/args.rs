//! Splitting the rest of an instruction line: flags first, then arguments.
//!
//! Source: Dockerfile notes §4.

use super::json;
use crate::error::{Error, Kind, Result};
use crate::text;

/// Arguments after splitting.
#[derive(Debug, Default)]
pub struct Split {
    pub args: Vec<String>,
    pub json: bool,
}

impl Split {
    fn list(args: Vec<String>) -> Self {
        Self { args, json: false }
    }
}

/// Splits `rest` the way the instruction `word` (in lower case) does.
pub fn split(word: &str, rest: &str, escape: char) -> Result<Split> {
    Ok(match word {
        "add" | "copy" | "volume" => json_or(rest, list)?,
        "cmd" | "entrypoint" | "run" | "shell" => json_or(rest, string)?,
        "expose" | "from" => Split::list(list(rest)),
        "maintainer" | "stopsignal" | "user" | "workdir" => Split::list(string(rest)),
        "arg" => Split::list(words(rest, escape)),
        "env" | "label" => Split::list(name_values(word, rest, escape)?),
        "healthcheck" => health(rest)?,
        _ => Split::list(vec![String::new()]),
    })
}

fn list(rest: &str) -> Vec<String> {
    if rest.is_empty() {
        return Vec::new();
    }
    text::split_words(rest, 0).into_iter().map(str::to_owned).collect()
}

fn string(rest: &str) -> Vec<String> {
    if rest.is_empty() { Vec::new() } else { vec![rest.to_owned()] }
}

fn json_or(rest: &str, other: fn(&str) -> Vec<String>) -> Result<Split> {
    Ok(match json::array(rest.trim_start()) {
        json::Array::Strings(args) => Split { args, json: true },
        json::Array::Mixed => return Err(Error::plain(Kind::JsonNotStrings)),
        json::Array::None => Split::list(other(rest)),
    })
}

fn health(rest: &str) -> Result<Split> {
    // White space is looked for byte by byte, as Latin-1.
    let bytes = text::to_bytes(rest);
    let space = |byte: &u8| char::from(*byte).is_whitespace();
    let end = bytes.iter().position(space).unwrap_or(bytes.len());
    if end == 0 {
        return Ok(Split::default());
    }
    let next = bytes[end..].iter().position(|byte| !space(byte)).map_or(bytes.len(), |at| end + at);
    let mut split = json_or(&text::from_bytes(&bytes[next..]), string)?;
    split.args.insert(0, text::from_bytes(&bytes[..end]));
    Ok(split)
}

fn name_values(word: &str, rest: &str, escape: char) -> Result<Vec<String>> {
    let words = words(rest, escape);
    let Some(first) = words.first() else { return Ok(Vec::new()) };
    if !first.contains('=') {
        return match text::split_words(rest, 2).as_slice() {
            [key, value] => Ok(vec![(*key).to_owned(), (*value).to_owned(), String::new()]),
            _ => Err(Error::new(Kind::KvNeedsTwoArgs, [text::upper(word)])),
        };
    }
    let mut args = Vec::with_capacity(words.len() * 3);
    for word in &words {
        let Some((key, value)) = word.split_once('=') else {
            return Err(Error::new(Kind::KvMissingEquals, [text::quote(word)]));
        };
        args.extend([key.to_owned(), value.to_owned(), "=".to_owned()]);
    }
    Ok(args)
}

/// Splits at white space outside quotes, keeping quotes and escapes.
fn words(rest: &str, escape: char) -> Vec<String> {
    let rest = text::lossy(rest);
    let mut words = Vec::new();
    let mut word = String::new();
    let mut inside = false;
    let mut quote = None;
    let mut chars = rest.chars().peekable();
    while let Some(char) = chars.next() {
        match quote {
            None if char.is_whitespace() => {
                if inside && !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
                inside = false;
                continue;
            }
            None if matches!(char, '\'' | '"') => quote = Some(char),
            Some(open) if char == open => quote = None,
            _ => {}
        }
        inside = true;
        // Single quotes keep the escape character as an ordinary one.
        if char == escape && quote != Some('\'') {
            let Some(next) = chars.next() else { continue };
            word.push(char);
            word.push(next);
        } else {
            word.push(char);
        }
    }
    if inside && !word.is_empty() {
        words.push(word);
    }
    words
}

/// Reads `--` words and gives them with the rest. Bytes count as Latin-1 characters here.
pub fn flags(rest: &str, escape: char) -> (Vec<String>, String) {
    let bytes = text::to_bytes(rest);
    let char = |at: usize| bytes.get(at).map(|byte| char::from(*byte));
    let tail = |at: usize| text::from_bytes(&bytes[at..]);
    let mut flags = Vec::new();
    let mut at = 0;
    loop {
        while char(at).is_some_and(char::is_whitespace) {
            at += 1;
        }
        if char(at) != Some('-') || char(at + 1) != Some('-') {
            return (flags, tail(at));
        }
        let mut flag = String::new();
        let mut quote = None;
        loop {
            let Some(next) = char(at) else {
                if flag != "--" {
                    flags.push(flag);
                }
                return (flags, String::new());
            };
            if quote.is_none() && next.is_whitespace() {
                break;
            }
            at += 1;
            if quote.is_none() && matches!(next, '\'' | '"') {
                quote = Some(next);
            } else if quote == Some(next) {
                quote = None;
            } else if next == escape {
                if let Some(literal) = char(at) {
                    flag.push(literal);
                    at += 1;
                }
            } else {
                flag.push(next);
            }
        }
        if flag == "--" {
            return (flags, tail(at));
        }
        flags.push(flag);
    }
}
