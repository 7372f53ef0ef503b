//! Source policy files: rules for sources as JSON.

use std::collections::BTreeMap;

use llb::policy::{
    AttrConstraint, AttrMatch, MatchType, Policy, PolicyAction, Rule, Selector, Update,
};
use serde::{Deserialize, Deserializer, de};

#[derive(Deserialize)]
struct JsonPolicy {
    #[serde(default)]
    version: i64,
    #[serde(default)]
    rules: Vec<JsonRule>,
}

#[derive(Deserialize)]
struct JsonRule {
    #[serde(default, deserialize_with = "action")]
    action: i32,
    selector: Option<JsonSelector>,
    updates: Option<JsonUpdate>,
}

#[derive(Deserialize)]
struct JsonSelector {
    #[serde(default)]
    identifier: String,
    #[serde(default, alias = "matchType", deserialize_with = "match_type")]
    match_type: i32,
    #[serde(default)]
    constraints: Vec<JsonConstraint>,
}

#[derive(Deserialize)]
struct JsonConstraint {
    #[serde(default)]
    key: String,
    #[serde(default)]
    value: String,
    #[serde(default, deserialize_with = "condition")]
    condition: i32,
}

#[derive(Deserialize)]
struct JsonUpdate {
    #[serde(default)]
    identifier: String,
    #[serde(default)]
    attrs: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum NameOrNumber {
    Number(i32),
    Name(String),
}

fn enumeration<'de, D: Deserializer<'de>>(
    from: D,
    by_name: fn(&str) -> Option<i32>,
) -> Result<i32, D::Error> {
    match NameOrNumber::deserialize(from)? {
        NameOrNumber::Number(number) => Ok(number),
        NameOrNumber::Name(name) => {
            by_name(&name).ok_or_else(|| de::Error::custom(format!("unknown value {name:?}")))
        }
    }
}

fn action<'de, D: Deserializer<'de>>(from: D) -> Result<i32, D::Error> {
    enumeration(from, |name| PolicyAction::from_str_name(name).map(|value| value as i32))
}

fn match_type<'de, D: Deserializer<'de>>(from: D) -> Result<i32, D::Error> {
    enumeration(from, |name| MatchType::from_str_name(name).map(|value| value as i32))
}

fn condition<'de, D: Deserializer<'de>>(from: D) -> Result<i32, D::Error> {
    enumeration(from, |name| AttrMatch::from_str_name(name).map(|value| value as i32))
}

/// Parses a policy; enumerations may be written by name or number.
pub fn parse_source_policy(json: &[u8]) -> Result<Policy, serde_json::Error> {
    let policy: JsonPolicy = serde_json::from_slice(json)?;
    let constraint = |constraint: JsonConstraint| AttrConstraint {
        key: constraint.key,
        value: constraint.value,
        condition: constraint.condition,
    };
    let rule = |rule: JsonRule| Rule {
        action: rule.action,
        selector: rule.selector.map(|selector| Selector {
            identifier: selector.identifier,
            match_type: selector.match_type,
            constraints: selector.constraints.into_iter().map(constraint).collect(),
        }),
        updates: rule
            .updates
            .map(|update| Update { identifier: update.identifier, attrs: update.attrs }),
    };
    Ok(Policy { version: policy.version, rules: policy.rules.into_iter().map(rule).collect() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers() {
        let text =
            br#"{"rules": [{"action": "DENY", "selector": {"identifier": "*", "match_type": 2,
            "constraints": [{"key": "k", "value": "v", "condition": "NOTEQUAL"}]}}]}"#;
        let rule = parse_source_policy(text).unwrap().rules.remove(0);
        assert_eq!(rule.action(), PolicyAction::Deny);
        let selector = rule.selector.unwrap();
        assert_eq!(selector.match_type(), MatchType::Regex);
        assert_eq!(selector.constraints[0].condition(), AttrMatch::Notequal);
        assert!(parse_source_policy(br#"{"rules": [{"action": "FOO"}]}"#).is_err());
    }
}
