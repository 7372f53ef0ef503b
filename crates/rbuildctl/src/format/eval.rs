//! Templates applied to values.

use anyhow::{anyhow, bail};
use serde_json::{Map, Value};

use super::{
    parse::{Expr, Node},
    print::{compare, plain, printf},
};

/// What `.Label "key"` is.
pub type Label<'a> = &'a dyn Fn(&str) -> String;

/// Applies `nodes` to `value`; `label` is there for rows that have labels.
pub fn run(nodes: &[Node], value: &Value, label: Option<Label<'_>>) -> anyhow::Result<String> {
    let variables = vec![(String::new(), value.clone())];
    let mut scope = Scope { variables, label, out: String::new() };
    scope.nodes(nodes, value)?;
    Ok(scope.out)
}

struct Scope<'a> {
    /// Innermost last; the empty name is the whole value.
    variables: Vec<(String, Value)>,
    label: Option<Label<'a>>,
    out: String,
}

fn truth(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(is) => *is,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty() && text != NO_VALUE,
        Value::Array(items) => !items.is_empty(),
        Value::Object(fields) => !fields.is_empty(),
    }
}

/// What Go prints for a map's key that is not there.
const NO_VALUE: &str = "<no value>";

/// A field of a value. Fields are found whatever their case: Go's names and the JSON names of
/// buildctl differ only in that. Struct fields begin with a capital, keys of maps mostly do not.
fn field(value: &Value, name: &str) -> anyhow::Result<Value> {
    let fields = match value {
        Value::Object(fields) => fields,
        Value::Null => return Ok(Value::Null),
        Value::String(text) if text == NO_VALUE => return Ok(value.clone()),
        other => bail!("template: can't evaluate field {name} in {other}"),
    };
    if let Some(found) = fields.get(name) {
        return Ok(found.clone());
    }
    if let Some((_, found)) = fields.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)) {
        return Ok(found.clone());
    }
    let is_struct = fields.keys().all(|key| key.starts_with(|c: char| c.is_ascii_uppercase()));
    if name.starts_with(|c: char| c.is_ascii_uppercase()) && is_struct && !fields.is_empty() {
        let known: Vec<&str> = fields.keys().map(String::as_str).collect();
        bail!("template: can't evaluate field {name}: the fields are {}", known.join(", "));
    }
    Ok(NO_VALUE.into())
}

impl Scope<'_> {
    fn nodes(&mut self, nodes: &[Node], dot: &Value) -> anyhow::Result<()> {
        let depth = self.variables.len();
        for node in nodes {
            self.node(node, dot)?;
        }
        self.variables.truncate(depth);
        Ok(())
    }

    fn node(&mut self, node: &Node, dot: &Value) -> anyhow::Result<()> {
        match node {
            Node::Text(text) => self.out.push_str(text),
            Node::Print(expr) => {
                let value = self.value(expr, dot)?;
                self.out.push_str(&plain(&value));
            }
            Node::Declare(name, expr) => {
                let value = self.value(expr, dot)?;
                self.variables.push((name.clone(), value));
            }
            Node::If { condition, body, or } => {
                let chosen = if truth(&self.value(condition, dot)?) { body } else { or };
                self.nodes(chosen, dot)?;
            }
            Node::With { name, of, body, or } => {
                let value = self.value(of, dot)?;
                if !truth(&value) {
                    return self.nodes(or, dot);
                }
                let depth = self.variables.len();
                if let Some(name) = name {
                    self.variables.push((name.clone(), value.clone()));
                }
                self.nodes(body, &value)?;
                self.variables.truncate(depth);
            }
            Node::Range { key, item, of, body, or } => {
                let items = items(self.value(of, dot)?)?;
                if items.is_empty() {
                    return self.nodes(or, dot);
                }
                for (at, value) in items {
                    let depth = self.variables.len();
                    if let Some(key) = key {
                        self.variables.push((key.clone(), at));
                    }
                    if let Some(item) = item {
                        self.variables.push((item.clone(), value.clone()));
                    }
                    self.nodes(body, &value)?;
                    self.variables.truncate(depth);
                }
            }
        }
        Ok(())
    }

    fn value(&mut self, expr: &Expr, dot: &Value) -> anyhow::Result<Value> {
        match expr {
            Expr::Dot => Ok(dot.clone()),
            Expr::Literal(value) => Ok(value.clone()),
            Expr::Variable(name) => {
                let mut known = self.variables.iter().rev();
                let found = known.find(|(known, _)| known == name);
                let (_, value) =
                    found.ok_or_else(|| anyhow!("--format: undefined variable \"${name}\""))?;
                Ok(value.clone())
            }
            Expr::Field(of, names) => {
                let of = self.value(of, dot)?;
                names.iter().try_fold(of, |value, name| field(&value, name))
            }
            Expr::Call(name, arguments) => call(name, &self.values(arguments, dot)?),
            Expr::Method(of, name, arguments) => {
                let arguments = self.values(arguments, dot)?;
                match (name.as_str(), self.label, arguments.as_slice()) {
                    ("Label", Some(label), [key]) => Ok(label(&text(name, key)?).into()),
                    ("Label", Some(_), many) => {
                        bail!("template: wrong number of args for Label: got {}", many.len())
                    }
                    _ => {
                        let of = self.value(of, dot)?;
                        field(&of, name)?;
                        bail!("template: {name} is not a method but has arguments")
                    }
                }
            }
        }
    }

    fn values(&mut self, all: &[Expr], dot: &Value) -> anyhow::Result<Vec<Value>> {
        all.iter().map(|expr| self.value(expr, dot)).collect()
    }
}

/// Keys and values in the order that Go visits them.
fn items(value: Value) -> anyhow::Result<Vec<(Value, Value)>> {
    match value {
        Value::Array(items) => {
            Ok(items.into_iter().enumerate().map(|(at, item)| (at.into(), item)).collect())
        }
        Value::Object(fields) => {
            let mut fields: Vec<(String, Value)> = fields.into_iter().collect();
            fields.sort_by(|left, right| left.0.cmp(&right.0));
            Ok(fields.into_iter().map(|(key, value)| (key.into(), value)).collect())
        }
        Value::Null => Ok(Vec::new()),
        other => bail!("template: range can't iterate over {}", plain(&other)),
    }
}

fn text(name: &str, value: &Value) -> anyhow::Result<String> {
    match value {
        Value::String(text) => Ok(text.clone()),
        other => bail!("template: wrong type for {name}: expected text, got {other}"),
    }
}

fn number(name: &str, value: &Value) -> anyhow::Result<usize> {
    let number = value.as_u64().and_then(|number| usize::try_from(number).ok());
    number.ok_or_else(|| anyhow!("template: wrong type for {name}: expected a number, got {value}"))
}

fn call(name: &str, arguments: &[Value]) -> anyhow::Result<Value> {
    let wrong = || anyhow!("template: wrong number of args for {name}: got {}", arguments.len());
    let first = arguments.first().ok_or_else(wrong);
    Ok(match (name, arguments) {
        ("json", [value]) => base::gojson::to_string(value).into(),
        ("prettyjson", [value]) => {
            String::from_utf8_lossy(&base::gojson::to_vec_indented(value)).into_owned().into()
        }
        ("len", [value]) => match value {
            Value::String(text) => text.len().into(),
            Value::Array(items) => items.len().into(),
            Value::Object(fields) => fields.len().into(),
            Value::Null => 0.into(),
            other => bail!("template: len of {other}"),
        },
        ("index", [value, keys @ ..]) => {
            keys.iter().try_fold(value.clone(), |value, key| index(&value, key))?
        }
        ("join", [Value::Null, _]) => "".into(),
        ("join", [Value::Array(items), separator]) => {
            let items: Vec<String> = items.iter().map(plain).collect();
            items.join(&text(name, separator)?).into()
        }
        ("split", [whole, separator]) => {
            let (whole, separator) = (text(name, whole)?, text(name, separator)?);
            whole.split(&separator).collect::<Vec<_>>().into()
        }
        ("upper", [value]) => text(name, value)?.to_uppercase().into(),
        ("lower", [value]) => text(name, value)?.to_lowercase().into(),
        ("title", [value]) => {
            let mut fresh = true;
            let text = text(name, value)?;
            let letters = text.chars().map(|c| {
                let first = std::mem::replace(&mut fresh, !c.is_alphanumeric());
                if first { c.to_ascii_uppercase() } else { c }
            });
            letters.collect::<String>().into()
        }
        ("html" | "js", [_]) => bail!("--format: {name} is not supported"),
        ("print", values) => values.iter().map(plain).collect::<Vec<_>>().join(" ").into(),
        ("println", values) => {
            let line = values.iter().map(plain).collect::<Vec<_>>().join(" ");
            format!("{line}\n").into()
        }
        ("printf", [format, values @ ..]) => printf(&text(name, format)?, values)?.into(),
        ("not", [value]) => (!truth(value)).into(),
        ("and", values) => {
            let last = values.iter().find(|value| !truth(value)).or(values.last());
            last.ok_or_else(wrong)?.clone()
        }
        ("or", values) => {
            let last = values.iter().find(|value| truth(value)).or(values.last());
            last.ok_or_else(wrong)?.clone()
        }
        ("eq", [left, others @ ..]) if !others.is_empty() => others
            .iter()
            .any(|other| compare(left, other) == Some(std::cmp::Ordering::Equal))
            .into(),
        ("ne", [left, right]) => (compare(left, right) != Some(std::cmp::Ordering::Equal)).into(),
        ("lt" | "le" | "gt" | "ge", [left, right]) => {
            let order = compare(left, right);
            let order =
                order.ok_or_else(|| anyhow!("template: cannot compare {left} and {right}"))?;
            match name {
                "lt" => order.is_lt(),
                "le" => order.is_le(),
                "gt" => order.is_gt(),
                _ => order.is_ge(),
            }
            .into()
        }
        ("slice", [value, bounds @ ..]) => slice(value, bounds)?,
        ("truncate", [value, length]) => {
            let length = number(name, length)?;
            text(name, value)?.chars().take(length).collect::<String>().into()
        }
        ("pad", [value, before, after]) => {
            let blanks = |count: &Value| number(name, count).map(|count| " ".repeat(count));
            format!("{}{}{}", blanks(before)?, text(name, value)?, blanks(after)?).into()
        }
        _ => {
            first?;
            return Err(wrong());
        }
    })
}

fn index(value: &Value, key: &Value) -> anyhow::Result<Value> {
    match (value, key) {
        (Value::Array(items), Value::Number(_)) => {
            let at = number("index", key)?;
            let found = items.get(at);
            Ok(found.ok_or_else(|| anyhow!("template: index out of range: {at}"))?.clone())
        }
        (Value::Object(fields), Value::String(name)) => {
            let none = || Value::String(String::new());
            Ok(fields.get(name).cloned().unwrap_or_else(none))
        }
        (Value::Null, _) => bail!("template: index of untyped nil"),
        (value, key) => bail!("template: can't index {value} with {key}"),
    }
}

fn slice(value: &Value, bounds: &[Value]) -> anyhow::Result<Value> {
    let length = match value {
        Value::String(text) => text.len(),
        Value::Array(items) => items.len(),
        other => bail!("template: can't slice {other}"),
    };
    let from = bounds.first().map_or(Ok(0), |bound| number("slice", bound))?;
    let to = bounds.get(1).map_or(Ok(length), |bound| number("slice", bound))?;
    let out = || anyhow!("template: slice bounds out of range [{from}:{to}]");
    if from > to || to > length {
        return Err(out());
    }
    Ok(match value {
        Value::String(text) => text.get(from..to).ok_or_else(out)?.into(),
        Value::Array(items) => Value::Array(items[from..to].to_vec()),
        other => other.clone(),
    })
}

/// An object from pairs, sorted by key as docker's `json` has it.
pub fn sorted(pairs: impl IntoIterator<Item = (&'static str, Value)>) -> Value {
    let mut pairs: Vec<_> = pairs.into_iter().collect();
    pairs.sort_by_key(|(key, _)| *key);
    let map: Map<String, Value> =
        pairs.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
    Value::Object(map)
}
