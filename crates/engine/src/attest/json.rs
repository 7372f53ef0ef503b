//! JSON objects as Go writes structs and maps: zero members left out, and order where it matters.

use std::collections::BTreeMap;

use serde_json::{Map, Number, Value};

/// Largest integer that Go's untyped numbers hold exactly.
const EXACT: u64 = 1 << 53;

/// Adding members that are not zero.
pub(crate) trait Object {
    fn text(&mut self, key: &str, value: &str);
    fn number(&mut self, key: &str, value: i64);
    fn flag(&mut self, key: &str, value: bool);
    fn list(&mut self, key: &str, value: Vec<Value>);
    fn strings(&mut self, key: &str, value: &[String]);
    fn texts(&mut self, key: &str, value: &BTreeMap<String, String>);
    fn maybe(&mut self, key: &str, value: Option<Value>);
}

impl Object for Map<String, Value> {
    fn text(&mut self, key: &str, value: &str) {
        if !value.is_empty() {
            self.insert(key.into(), value.into());
        }
    }

    fn number(&mut self, key: &str, value: i64) {
        if value != 0 {
            self.insert(key.into(), value.into());
        }
    }

    fn flag(&mut self, key: &str, value: bool) {
        if value {
            self.insert(key.into(), true.into());
        }
    }

    fn list(&mut self, key: &str, value: Vec<Value>) {
        if !value.is_empty() {
            self.insert(key.into(), value.into());
        }
    }

    fn strings(&mut self, key: &str, value: &[String]) {
        self.list(key, value.iter().map(|text| text.as_str().into()).collect());
    }

    fn texts(&mut self, key: &str, value: &BTreeMap<String, String>) {
        if !value.is_empty() {
            let members = value.iter().map(|(key, value)| (key.clone(), value.as_str().into()));
            self.insert(key.into(), Value::Object(members.collect()));
        }
    }

    fn maybe(&mut self, key: &str, value: Option<Value>) {
        if let Some(value) = value {
            self.insert(key.into(), value);
        }
    }
}

/// The value after a way through Go's untyped maps: keys sorted, numbers as floats keep them.
pub(crate) fn untyped(value: Value) -> Value {
    match value {
        Value::Object(members) => {
            let sorted: BTreeMap<String, Value> =
                members.into_iter().map(|(key, value)| (key, untyped(value))).collect();
            Value::Object(sorted.into_iter().collect())
        }
        Value::Array(items) => items.into_iter().map(untyped).collect(),
        Value::Number(number) => Value::Number(rounded(number)),
        other => other,
    }
}

fn rounded(number: Number) -> Number {
    let Some(whole) = number.as_i64().filter(|whole| whole.unsigned_abs() > EXACT) else {
        return number;
    };
    // The shortest digits that mean the float, then zeros: what Go prints below 1e21.
    let text = format!("{}", whole as f64);
    text.parse::<i64>().map_or(number, Number::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn through_untyped_maps() {
        let value =
            serde_json::json!({"b": [{"z": 1, "a": 1_700_000_000_123_456_789_i64}], "a": -1});
        assert_eq!(untyped(value).to_string(), r#"{"a":-1,"b":[{"a":1700000000123456800,"z":1}]}"#);
    }
}
