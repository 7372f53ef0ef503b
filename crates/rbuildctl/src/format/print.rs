//! Values as Go prints them.

use std::cmp::Ordering;

use anyhow::bail;
use serde_json::Value;

/// As `{{.}}` shows it.
pub fn plain(value: &Value) -> String {
    match value {
        Value::Null => "[]".into(),
        Value::Bool(is) => is.to_string(),
        Value::Number(number) => number.to_string(),
        Value::String(text) => text.clone(),
        Value::Array(items) => {
            format!("[{}]", items.iter().map(plain).collect::<Vec<_>>().join(" "))
        }
        Value::Object(fields) => {
            let mut fields: Vec<String> =
                fields.iter().map(|(key, value)| format!("{key}:{}", plain(value))).collect();
            fields.sort();
            format!("map[{}]", fields.join(" "))
        }
    }
}

/// Order of comparable values; `None` for others.
pub fn compare(left: &Value, right: &Value) -> Option<Ordering> {
    match (left, right) {
        (Value::String(left), Value::String(right)) => Some(left.cmp(right)),
        (Value::Bool(left), Value::Bool(right)) => Some(left.cmp(right)),
        (Value::Number(left), Value::Number(right)) => left.as_f64()?.partial_cmp(&right.as_f64()?),
        (Value::Null, Value::Null) => Some(Ordering::Equal),
        _ => None,
    }
}

/// `%s %v %d %q %t %x` and `%%`, with a width.
pub fn printf(format: &str, values: &[Value]) -> anyhow::Result<String> {
    let mut out = String::new();
    let mut values = values.iter();
    let mut rest = format.chars().peekable();
    while let Some(c) = rest.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut width = String::new();
        while let Some(c) = rest.next_if(|c| c.is_ascii_digit() || matches!(c, '-' | '.')) {
            width.push(c);
        }
        let Some(verb) = rest.next() else { bail!("template: printf: a % at the end") };
        if verb == '%' {
            out.push('%');
            continue;
        }
        let Some(value) = values.next() else {
            out.push_str(&format!("%!{verb}(MISSING)"));
            continue;
        };
        let shown = match (verb, value) {
            ('s' | 'v' | 'd' | 't', value) => plain(value),
            ('q', Value::String(text)) => format!("{text:?}"),
            ('x', Value::Number(number)) if number.is_u64() => {
                format!("{:x}", number.as_u64().unwrap_or_default())
            }
            ('f' | '.', Value::Number(number)) => {
                let digits = width.split_once('.').and_then(|(_, digits)| digits.parse().ok());
                format!("{:.*}", digits.unwrap_or(6), number.as_f64().unwrap_or_default())
            }
            (verb, _) => bail!("--format: printf %{verb} is not supported"),
        };
        let wanted: usize =
            width.trim_start_matches('-').split('.').next().unwrap_or("").parse().unwrap_or(0);
        match width.starts_with('-') {
            true => out.push_str(&format!("{shown:<wanted$}")),
            false => out.push_str(&format!("{shown:>wanted$}")),
        }
    }
    Ok(out)
}
