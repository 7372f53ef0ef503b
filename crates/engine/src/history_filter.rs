//! Filters over history records. Source: control notes §12.

use std::time::{Duration, SystemTime};

use frontend_api::{Code, FrontendError};
use proto::control::BuildHistoryRecord;
use regex::Regex;

/// Terms that must all hold.
pub(crate) struct Filter(Vec<Term>);

enum Term {
    Text { field: Field, is: Compare },
    Time { completed: bool, order: Order, than: SystemTime },
    Duration { order: Order, than: Duration },
}

#[derive(Clone, Copy)]
enum Field {
    Ref,
    Status,
    Repository,
}

enum Compare {
    Equal(String),
    NotEqual(String),
    Like(Regex),
}

#[derive(Clone, Copy)]
enum Order {
    Less,
    AtMost,
    More,
    AtLeast,
}

pub(crate) fn parse(filters: &[String]) -> Result<Vec<Filter>, FrontendError> {
    filters
        .iter()
        .map(|filter| filter.split(',').map(term).collect::<Result<_, _>>().map(Filter))
        .collect()
}

fn term(text: &str) -> Result<Term, FrontendError> {
    let bad = |why: &str| {
        FrontendError::with_code(
            Code::InvalidArgument,
            format!("invalid history filter {text:?}: {why}"),
        )
    };
    let operators = ["==", "!=", "~=", ">=", "<=", ">", "<"];
    let (at, operator) = operators
        .iter()
        .filter_map(|operator| text.find(operator).map(|at| (at, *operator)))
        .min_by_key(|(at, operator)| (*at, std::cmp::Reverse(operator.len())))
        .ok_or_else(|| bad("no operator"))?;
    let (name, value) = (text[..at].trim(), text[at + operator.len()..].trim().trim_matches('"'));
    let order = match operator {
        ">" => Some(Order::More),
        ">=" => Some(Order::AtLeast),
        "<" => Some(Order::Less),
        "<=" => Some(Order::AtMost),
        _ => None,
    };
    match (name, order) {
        ("ref" | "status" | "repository", None) => {
            let field = match name {
                "ref" => Field::Ref,
                "status" => Field::Status,
                _ => Field::Repository,
            };
            let is = match operator {
                "==" => Compare::Equal(value.to_owned()),
                "!=" => Compare::NotEqual(value.to_owned()),
                _ => Compare::Like(Regex::new(value).map_err(|error| bad(&error.to_string()))?),
            };
            Ok(Term::Text { field, is })
        }
        ("startedAt" | "completedAt", Some(order)) => {
            let than = match base::time::parse_rfc3339(value) {
                Some(at) => at,
                None => {
                    let ago = base::time::parse_go_duration(value)
                        .ok_or_else(|| bad("expected an RFC 3339 time or a duration"))?;
                    SystemTime::now() - ago
                }
            };
            Ok(Term::Time { completed: name == "completedAt", order, than })
        }
        ("duration", Some(order)) => {
            let than =
                base::time::parse_go_duration(value).ok_or_else(|| bad("expected a duration"))?;
            Ok(Term::Duration { order, than })
        }
        _ => Err(bad("unknown field or operator")),
    }
}

impl Filter {
    pub(crate) fn matches(&self, record: &BuildHistoryRecord) -> bool {
        self.0.iter().all(|term| term.matches(record))
    }
}

impl Term {
    fn matches(&self, record: &BuildHistoryRecord) -> bool {
        let started = record.created_at.and_then(|at| SystemTime::try_from(at).ok());
        let completed = record.completed_at.and_then(|at| SystemTime::try_from(at).ok());
        match self {
            Self::Text { field, is } => {
                let value = match field {
                    Field::Ref => record.r#ref.clone(),
                    Field::Status => status(record).to_owned(),
                    Field::Repository => repository(record),
                };
                match is {
                    Compare::Equal(wanted) => value == *wanted,
                    Compare::NotEqual(unwanted) => value != *unwanted,
                    Compare::Like(regex) => regex.is_match(&value),
                }
            }
            Self::Time { completed: wants_completed, order, than } => {
                let at = if *wants_completed { completed } else { started };
                at.is_some_and(|at| order.holds(at, *than))
            }
            Self::Duration { order, than } => match (started, completed) {
                (Some(started), Some(completed)) => {
                    order.holds(completed.duration_since(started).unwrap_or_default(), *than)
                }
                _ => false,
            },
        }
    }
}

impl Order {
    fn holds<T: PartialOrd>(self, left: T, right: T) -> bool {
        match self {
            Self::Less => left < right,
            Self::AtMost => left <= right,
            Self::More => left > right,
            Self::AtLeast => left >= right,
        }
    }
}

fn status(record: &BuildHistoryRecord) -> &'static str {
    match (&record.completed_at, &record.error) {
        (None, _) => "running",
        (_, Some(error)) if error.code == Code::Canceled as i32 => "canceled",
        (_, Some(_)) => "error",
        (_, None) => "completed",
    }
}

/// The repository a build's context came from, as the client said.
fn repository(record: &BuildHistoryRecord) -> String {
    let named = record.frontend_attrs.get("vcs:source");
    named.or_else(|| record.frontend_attrs.get("context")).cloned().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_and_orders() {
        let record = BuildHistoryRecord {
            r#ref: "abc".into(),
            created_at: Some(SystemTime::UNIX_EPOCH.into()),
            completed_at: Some((SystemTime::UNIX_EPOCH + Duration::from_secs(5)).into()),
            ..Default::default()
        };
        for (filter, expected) in [
            ("ref==abc", true),
            ("ref!=abc", false),
            ("ref~=^a", true),
            ("status==completed,duration>=5s", true),
            ("duration<5s", false),
            ("startedAt<2000-01-01T00:00:00Z", true),
            ("completedAt>1h", false),
        ] {
            let parsed = parse(&[filter.to_owned()]).unwrap();
            assert_eq!(parsed[0].matches(&record), expected, "{filter}");
        }
        for bad in ["ref", "what==1", "duration>=soon", "ref>1"] {
            assert!(parse(&[bad.to_owned()]).is_err(), "{bad}");
        }
    }
}
