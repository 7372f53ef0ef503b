//! `--format`: the part of Go's templates that people write.
//!
//! Fields, `json`, `range`, `if`, `with`, variables, pipes and the usual functions. Anything else
//! is refused by name rather than printed wrongly. A template that begins with `table ` prints
//! aligned columns under a header.

pub mod eval;
mod parse;
mod print;

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::table::Table;

/// A parsed template.
#[derive(Debug)]
pub struct Format {
    nodes: Vec<parse::Node>,
    table: bool,
}

impl Format {
    /// Parses `text`.
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        let (table, text) = match text {
            "json" => (false, "{{json .}}"),
            text => match text.strip_prefix("table ") {
                Some(rest) => (true, rest.trim_start()),
                None => (false, text),
            },
        };
        Ok(Self { nodes: parse::template(text)?, table })
    }

    /// Applies the template to `value`.
    pub fn apply(&self, value: &Value) -> anyhow::Result<String> {
        eval::run(&self.nodes, value, None)
    }

    /// One line a row; with `table`, columns under the names that `header` has for its fields.
    pub fn rows(&self, header: &[(&str, &str)], rows: &[Value]) -> anyhow::Result<String> {
        self.lines(header, rows, &|row| self.apply(row), None)
    }

    /// As [`rows`](Self::rows), with labels to ask for one by one.
    pub fn labelled_rows(
        &self,
        header: &[(&str, &str)],
        rows: &[(Value, &BTreeMap<String, String>)],
    ) -> anyhow::Result<String> {
        let line = |(value, labels): &(Value, &BTreeMap<String, String>)| {
            let label = |key: &str| labels.get(key).cloned().unwrap_or_default();
            eval::run(&self.nodes, value, Some(&label))
        };
        // Over a column of labels stands the last part of their key.
        let title = |key: &str| key.rsplit('.').next().unwrap_or(key).replace(['-', '_'], " ");
        self.lines(header, rows, &line, Some(&title))
    }

    fn lines<T>(
        &self,
        header: &[(&str, &str)],
        rows: &[T],
        line: &dyn Fn(&T) -> anyhow::Result<String>,
        title: Option<eval::Label<'_>>,
    ) -> anyhow::Result<String> {
        let lines: Vec<String> = rows.iter().map(line).collect::<Result<_, _>>()?;
        if !self.table {
            return Ok(lines.iter().map(|line| format!("{line}\n")).collect());
        }
        let names: Map<String, Value> =
            header.iter().map(|(key, name)| ((*key).to_owned(), (*name).into())).collect();
        let head = eval::run(&self.nodes, &Value::Object(names), title)?;
        let mut table = Table::empty();
        for line in std::iter::once(&head).chain(&lines) {
            table.cells(line.split('\t').map(str::to_owned).collect());
        }
        Ok(table.text())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_people_write() {
        let value = json!({
            "Id": "sha256:abc", "RepoTags": ["a:1", "b:2"], "Size": 5, "Big": 2.5,
            "Config": {"Cmd": ["sh", "-c"], "Env": null, "Labels": {"x": "1", "a b": "q<"}, "Tty": false},
            "Ports": {"80/tcp": [{"HostIp": "0.0.0.0", "HostPort": "8080"}]},
        });
        let check = |template: &str, expected: &str| {
            let shown = match Format::parse(template) {
                Ok(format) => format.apply(&value).unwrap_or_else(|error| error.to_string()),
                Err(error) => error.to_string(),
            };
            assert_eq!(shown, expected, "{template}");
        };
        check("{{.Id}} {{.Size}}", "sha256:abc 5");
        check("{{.Config.Cmd}}", "[sh -c]");
        check("{{json .Config.Cmd}}", r#"["sh","-c"]"#);
        check("{{json .Config.Labels}}", r#"{"x":"1","a b":"q\u003c"}"#);
        check("{{.Config.Labels}}", "map[a b:q< x:1]");
        check("{{range .RepoTags}}<{{.}}>{{end}}", "<a:1><b:2>");
        check("{{range $i, $t := .RepoTags}}{{if $i}}, {{end}}{{$t}}{{end}}", "a:1, b:2");
        check("{{range .Config.Env}}x{{else}}none{{end}}", "none");
        check("{{index .RepoTags 1}} {{index .Config.Labels \"a b\"}}", "b:2 q<");
        check("{{(index (index .Ports \"80/tcp\") 0).HostPort}}", "8080");
        check("{{range $p, $c := .Ports}}{{$p}}={{(index $c 0).HostPort}}{{end}}", "80/tcp=8080");
        check("{{with .Config}}{{join .Cmd \" \"}}{{end}}", "sh -c");
        check("{{ .Id | upper }}-{{ len .RepoTags }}", "SHA256:ABC-2");
        check("{{printf \"%s %d %q\" .Id .Size \"x\"}}", "sha256:abc 5 \"x\"");
        check("{{if eq .Size 5}}five{{else if .Config.Tty}}tty{{else}}no{{end}}", "five");
        check("{{if and .Id (not .Config.Tty)}}yes{{end}}", "yes");
        check("a {{- .Size -}} b", "a5b");
        check("{{/* said */}}{{.Config.Labels.nope}}|{{.Config.Env}}", "<no value>|[]");
        check("{{println .Size}}", "5\n");
        check("{{slice .Id 0 3}} {{truncate .Id 5}} {{.Big}}", "sha sha25 2.5");
        check("{{$x := .Size}}{{$x}} {{$.Id}}", "5 sha256:abc");
        check(
            "{{.Nope}}",
            "template: can't evaluate field Nope: the fields are Id, RepoTags, Size, Big, Config, Ports",
        );
        check("{{call .X}}", "--format: function \"call\" is not defined");
        check("{{template \"x\"}}", "--format: {{template}} is not supported");
        check("{{range .X}}", "--format: {{range}} without {{end}}");
        check("{{end}}", "--format: unexpected {{end}}");
        check("{{.A", "--format: unclosed action");
    }

    #[test]
    fn labels_are_asked_for_one_by_one() {
        let labels = BTreeMap::from([("com.example.my-team".to_owned(), "a,b=c".to_owned())]);
        let rows = [(json!({"Names": "web"}), &labels)];
        let check = |template: &str, expected: &str| {
            let format = Format::parse(template).unwrap();
            let shown = format.labelled_rows(&[("Names", "NAMES")], &rows);
            assert_eq!(shown.unwrap_or_else(|error| error.to_string()), expected, "{template}");
        };
        check("{{.Label \"com.example.my-team\"}}|{{.Label \"x\"}}", "a,b=c|\n");
        check("{{\"com.example.my-team\" | .Label}}", "a,b=c\n");
        check(
            "table {{.Names}}\\t{{$.Label `com.example.my-team`}}",
            "NAMES   my team\nweb     a,b=c\n",
        );
        check("{{.Label \"x\" \"y\"}}", "template: wrong number of args for Label: got 2");
        check("{{.Names \"x\"}}", "template: Names is not a method but has arguments");
        assert!(Format::parse("{{\"x\" \"y\"}}").is_err());
    }

    #[test]
    fn tables_and_buildctl_names() {
        let rows = [json!({"id": "a", "labels": {"x": 1}}), json!({"id": "long", "labels": {}})];
        let format = Format::parse("table {{.ID}}\\t{{.Labels.x}}").unwrap();
        let text = format.rows(&[("id", "NAME"), ("labels", "L")], &rows);
        assert!(text.is_err() || text.unwrap().starts_with("NAME"));
        let format = Format::parse("table {{.ID}}\\t{{.ID}}").unwrap();
        let text = format.rows(&[("ID", "NAME")], &rows).unwrap();
        assert_eq!(text, "NAME   NAME\na      a\nlong   long\n");
        let all = json!([{"id": "a"}]);
        let format = Format::parse("{{range .}}{{.ID}}\\n{{end}}").unwrap();
        assert_eq!(format.apply(&all).unwrap(), "a\n");
    }
}
