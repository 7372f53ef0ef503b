//! `--format`: the part of Go's templates that people write.
//!
//! Understood: `json` alone, `{{json .}}`, `{{.Field.Inner}}`, `{{json .Field}}`, and
//! `{{range .Field}}…{{end}}`. Anything else is refused by name rather than printed wrongly.

use anyhow::bail;
use serde_json::Value;

/// A parsed template.
#[derive(Debug)]
pub struct Format(Vec<Piece>);

#[derive(Debug)]
enum Piece {
    Text(String),
    Field(Vec<String>),
    Json(Vec<String>),
    Range(Vec<String>, Vec<Piece>),
}

impl Format {
    /// Parses `text`.
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        let text = if text == "json" { "{{json .}}" } else { text };
        let mut rest = text;
        let pieces = parse(&mut rest, false)?;
        Ok(Self(pieces))
    }

    /// Applies the template to `value`.
    pub fn apply(&self, value: &Value) -> String {
        let mut out = String::new();
        render(&self.0, value, &mut out);
        out
    }
}

fn parse(rest: &mut &str, inside: bool) -> anyhow::Result<Vec<Piece>> {
    let mut pieces = Vec::new();
    loop {
        let Some(at) = rest.find("{{") else {
            if inside {
                bail!("invalid --format: {{{{range}}}} without {{{{end}}}}");
            }
            pieces.push(Piece::Text(unescape(rest)));
            return Ok(pieces);
        };
        pieces.push(Piece::Text(unescape(&rest[..at])));
        let Some(end) = rest[at..].find("}}") else { bail!("invalid --format: unclosed action") };
        let action = rest[at + 2..at + end].trim().to_owned();
        *rest = &rest[at + end + 2..];
        match action.split_once(' ') {
            None if action == "end" && inside => return Ok(pieces),
            None if action.starts_with('.') => pieces.push(Piece::Field(path(&action)?)),
            Some(("json", of)) => pieces.push(Piece::Json(path(of.trim())?)),
            Some(("range", of)) => {
                let of = path(of.trim())?;
                pieces.push(Piece::Range(of, parse(rest, true)?));
            }
            _ => bail!("--format does not know `{action}`: use json, fields and range"),
        }
    }
}

fn path(text: &str) -> anyhow::Result<Vec<String>> {
    match text.strip_prefix('.') {
        Some("") => Ok(Vec::new()),
        Some(fields) if fields.split('.').all(|name| name.chars().all(char::is_alphanumeric)) => {
            Ok(fields.split('.').map(str::to_owned).collect())
        }
        _ => bail!("--format does not know `{text}`: expected a field such as .ID"),
    }
}

fn unescape(text: &str) -> String {
    text.replace("\\t", "\t").replace("\\n", "\n")
}

/// Fields are found whatever their case: Go's names and the JSON names differ only in that.
fn find<'a>(value: &'a Value, path: &[String]) -> &'a Value {
    path.iter().fold(value, |value, name| {
        let fields = value.as_object().into_iter().flatten();
        let mut found = fields.filter(|(key, _)| key.eq_ignore_ascii_case(name));
        found.next().map_or(&Value::Null, |(_, inner)| inner)
    })
}

fn render(pieces: &[Piece], value: &Value, out: &mut String) {
    for piece in pieces {
        match piece {
            Piece::Text(text) => out.push_str(text),
            Piece::Json(path) => out.push_str(&find(value, path).to_string()),
            Piece::Field(path) => match find(value, path) {
                Value::String(text) => out.push_str(text),
                Value::Null => out.push_str("<nil>"),
                other => out.push_str(&other.to_string()),
            },
            Piece::Range(path, body) => {
                for item in find(value, path).as_array().into_iter().flatten() {
                    render(body, item, out);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn fields_ranges_and_json() {
        let value = json!([{"id": "a", "labels": {"x": 1}}, {"id": "b"}]);
        let apply = |text: &str| Format::parse(text).unwrap().apply(&value);
        assert_eq!(apply("{{range .}}{{.ID}} {{.Labels.X}}\\n{{end}}"), "a 1\nb <nil>\n");
        assert_eq!(apply("json"), value.to_string());
        for bad in ["{{", "{{len .}}", "{{range .}}", "{{end}}"] {
            assert!(Format::parse(bad).is_err(), "{bad}");
        }
    }
}
