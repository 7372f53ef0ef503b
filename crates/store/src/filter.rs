//! Filters of the `du` and `prune` requests: `type==regular,inuse`, `id~="^a"`, `shared`.
//!
//! A filter is a comma-separated list of conditions that must all hold: `field==value`,
//! `field!=value`, `field~=regex`, or `field` alone (present and not empty). Values may be bare
//! words or quoted; a field is a path of names joined by dots.

use regex::Regex;

use crate::StoreError;

/// Gives a field's value to a filter; `None` is absent.
pub trait Fields {
    /// The value of the field at `path`.
    fn field(&self, path: &[&str]) -> Option<String>;
}

/// Conditions that must all hold.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    conditions: Vec<Condition>,
    text: String,
}

impl std::fmt::Display for Filter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

#[derive(Debug, Clone)]
struct Condition {
    path: Vec<String>,
    test: Test,
}

#[derive(Debug, Clone)]
enum Test {
    Present,
    Equal(String),
    NotEqual(String),
    Matches(Regex),
}

impl Filter {
    /// Reads a filter. The empty one matches everything.
    pub fn parse(text: &str) -> Result<Self, StoreError> {
        let parsed = Parser { text, at: 0 }.filter();
        let parsed = parsed.map(|filter| Self { text: text.to_owned(), ..filter });
        parsed.map_err(|reason| StoreError::Filter { filter: text.to_owned(), reason })
    }

    /// Reads several, of which one has to match.
    pub fn parse_all(
        texts: impl IntoIterator<Item = impl AsRef<str>>,
    ) -> Result<Vec<Self>, StoreError> {
        texts.into_iter().map(|text| Self::parse(text.as_ref())).collect()
    }

    /// Whether all conditions hold.
    pub fn matches(&self, fields: &impl Fields) -> bool {
        self.conditions.iter().all(|condition| {
            let path: Vec<&str> = condition.path.iter().map(String::as_str).collect();
            let value = fields.field(&path);
            match &condition.test {
                Test::Present => value.is_some(),
                Test::Equal(wanted) => value.as_deref() == Some(wanted),
                Test::NotEqual(unwanted) => value.as_deref() != Some(unwanted),
                Test::Matches(regex) => value.is_some_and(|value| regex.is_match(&value)),
            }
        })
    }

    /// Whether one of `filters` matches; no filters match everything.
    pub fn any_matches(filters: &[Self], fields: &impl Fields) -> bool {
        filters.is_empty() || filters.iter().any(|filter| filter.matches(fields))
    }
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
}

impl Parser<'_> {
    fn filter(mut self) -> Result<Filter, String> {
        let mut conditions = Vec::new();
        if self.text.is_empty() {
            return Ok(Filter { conditions, text: String::new() });
        }
        loop {
            conditions.push(self.condition()?);
            match self.next() {
                None => return Ok(Filter { conditions, text: String::new() }),
                Some(',') => {}
                Some(other) => return Err(format!("expected `,` or the end, found `{other}`")),
            }
        }
    }

    fn condition(&mut self) -> Result<Condition, String> {
        let mut path = vec![self.name()?];
        while self.take(".") {
            path.push(self.name()?);
        }
        let test = if self.take("==") {
            Test::Equal(self.value()?)
        } else if self.take("!=") {
            Test::NotEqual(self.value()?)
        } else if self.take("~=") {
            let pattern = self.value()?;
            Test::Matches(Regex::new(&pattern).map_err(|error| error.to_string())?)
        } else {
            Test::Present
        };
        Ok(Condition { path, test })
    }

    fn name(&mut self) -> Result<String, String> {
        if self.peek() == Some('"') {
            return self.quoted('"');
        }
        let name = self.while_char(|c| c.is_alphanumeric() || matches!(c, '_' | '-'));
        if name.is_empty() { Err(self.expected("a field name")) } else { Ok(name) }
    }

    fn value(&mut self) -> Result<String, String> {
        match self.peek() {
            Some(quote @ ('"' | '|' | '/')) => self.quoted(quote),
            _ => {
                let value = self.while_char(|c| !matches!(c, ',' | '"' | '=' | '!' | '~'));
                if value.is_empty() { Err(self.expected("a value")) } else { Ok(value) }
            }
        }
    }

    /// `"…"` with Go's simple escapes; `|…|` and `/…/` (for patterns) end at their delimiter.
    fn quoted(&mut self, quote: char) -> Result<String, String> {
        self.next();
        let mut value = String::new();
        loop {
            match self.next() {
                None => return Err(format!("quote {quote} is not closed")),
                Some(c) if c == quote => return Ok(value),
                Some('\\') if quote != '"' => match self.next() {
                    // Only the delimiter is escaped; patterns keep their backslashes.
                    Some(c) if c == quote => value.push(c),
                    Some(c) => value.extend(['\\', c]),
                    None => return Err(format!("quote {quote} is not closed")),
                },
                Some('\\') => match self.next() {
                    Some('n') => value.push('\n'),
                    Some('t') => value.push('\t'),
                    Some('r') => value.push('\r'),
                    Some(c @ ('\\' | '"' | '\'')) => value.push(c),
                    other => {
                        let other = other.map(String::from).unwrap_or_default();
                        return Err(format!("unknown escape `\\{other}`"));
                    }
                },
                Some(c) => value.push(c),
            }
        }
    }

    fn expected(&self, what: &str) -> String {
        match self.peek() {
            Some(found) => format!("expected {what}, found `{found}`"),
            None => format!("expected {what} at the end"),
        }
    }

    fn while_char(&mut self, wanted: impl Fn(char) -> bool) -> String {
        let rest = &self.text[self.at..];
        let end = rest.find(|c| !wanted(c)).unwrap_or(rest.len());
        self.at += end;
        rest[..end].to_owned()
    }

    fn take(&mut self, token: &str) -> bool {
        let found = self.text[self.at..].starts_with(token);
        if found {
            self.at += token.len();
        }
        found
    }

    fn peek(&self) -> Option<char> {
        self.text[self.at..].chars().next()
    }

    fn next(&mut self) -> Option<char> {
        let next = self.peek()?;
        self.at += next.len_utf8();
        Some(next)
    }
}
