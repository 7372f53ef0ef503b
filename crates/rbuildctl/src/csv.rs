//! `type=local,dest=out,"a=b,c"`: the comma-separated pairs many flags take.

use std::collections::BTreeMap;

use anyhow::{Context as _, bail};

/// Splits one line of CSV; a field in double quotes may hold commas, `""` is a quote.
pub fn fields(text: &str) -> anyhow::Result<Vec<String>> {
    let mut fields = Vec::new();
    let mut rest = text;
    loop {
        let Some(quoted) = rest.strip_prefix('"') else {
            let (field, tail) = rest.split_at(rest.find(',').unwrap_or(rest.len()));
            if field.contains('"') {
                bail!("`{text}`: a bare field may not hold a double quote");
            }
            fields.push(field.to_owned());
            match tail.strip_prefix(',') {
                Some(tail) => rest = tail,
                None => return Ok(fields),
            }
            continue;
        };
        let mut field = String::new();
        rest = quoted;
        loop {
            let end = rest.find('"').with_context(|| format!("`{text}`: a quote is not closed"))?;
            field.push_str(&rest[..end]);
            rest = &rest[end + 1..];
            match rest.strip_prefix('"') {
                Some(tail) => {
                    field.push('"');
                    rest = tail;
                }
                None => break,
            }
        }
        fields.push(field);
        match rest.strip_prefix(',') {
            Some(tail) => rest = tail,
            None if rest.is_empty() => return Ok(fields),
            None => bail!("`{text}`: a comma is missing after a quote"),
        }
    }
}

/// Pairs of a CSV line; keys are lower-cased, a later one replaces an earlier one.
pub fn pairs(text: &str) -> anyhow::Result<BTreeMap<String, String>> {
    let mut pairs = BTreeMap::new();
    for field in fields(text)? {
        let (key, value) = split_pair(&field)?;
        pairs.insert(key.to_lowercase(), value.to_owned());
    }
    Ok(pairs)
}

/// `key=value` at the first `=`.
pub fn split_pair(field: &str) -> anyhow::Result<(&str, &str)> {
    field.split_once('=').with_context(|| format!("invalid value {field}: expected key=value"))
}

/// Go's idea of a boolean; empty means true where a bare key is allowed.
pub fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_hold_commas() {
        assert_eq!(fields(r#"a=1,"b=2,3",c"#).unwrap(), ["a=1", "b=2,3", "c"]);
        assert_eq!(fields(r#""a""b",x,"#).unwrap(), [r#"a"b"#, "x", ""]);
        for bad in [r#""a"#, r#""a"b"#, r#"a"b"#] {
            assert!(fields(bad).is_err(), "{bad}");
        }
        assert_eq!(pairs("Type=local,dest=a=b").unwrap()["type"], "local");
        assert!(pairs("novalue").is_err());
    }
}
