//! `--filter` of the commands that remove what is not used.

use std::collections::BTreeMap;

use anyhow::{Context as _, bail};

use super::{containers::point, images::has_label};

/// Which of the unused things go.
#[derive(Debug, Default)]
pub struct PruneFilters {
    /// Only what was made before: seconds and nanoseconds.
    until: Option<(i64, i32)>,
    labels: Vec<String>,
    not_labels: Vec<String>,
    /// `dangling=`, of images.
    pub dangling: Option<bool>,
}

impl PruneFilters {
    /// `until=24h`, `label=KEY[=VALUE]`, `label!=KEY[=VALUE]`.
    pub fn parse(texts: &[String]) -> anyhow::Result<Self> {
        let mut filters = Self::of_images(texts)?;
        match filters.dangling.take() {
            None => Ok(filters),
            Some(_) => bail!("invalid filter 'dangling': use until or label"),
        }
    }

    /// `dangling=BOOL` too.
    pub fn of_images(texts: &[String]) -> anyhow::Result<Self> {
        let mut filters = Self::default();
        for text in texts {
            let (key, value) = text
                .split_once('=')
                .with_context(|| format!("invalid filter '{text}': expected KEY=VALUE"))?;
            match key {
                "until" => {
                    let at = point(value).with_context(|| format!("invalid filter '{text}'"))?;
                    filters.until = Some((at.seconds, at.nanos));
                }
                "label" => filters.labels.push(value.to_owned()),
                "label!" => filters.not_labels.push(value.to_owned()),
                "dangling" => {
                    let value = crate::csv::parse_bool(value);
                    filters.dangling =
                        Some(value.with_context(|| format!("invalid filter '{text}'"))?);
                }
                key => bail!("invalid filter '{key}': use until or label"),
            }
        }
        Ok(filters)
    }

    /// Whether a thing made then, with these labels, may go.
    pub fn hold(&self, created: (i64, i32), labels: &BTreeMap<String, String>) -> bool {
        self.until.is_none_or(|until| created < until)
            && self.labels.iter().all(|text| has_label(labels, text))
            && !self.not_labels.iter().any(|text| has_label(labels, text))
    }

    /// How long ago things must have been made to go, if that is asked.
    pub fn age(&self) -> Option<std::time::Duration> {
        let (seconds, nanos) = self.until?;
        let at = crate::text::instant(&prost_types::Timestamp { seconds, nanos });
        Some(std::time::SystemTime::now().duration_since(at).unwrap_or_default())
    }

    /// Whether labels are asked for.
    pub fn has_labels(&self) -> bool {
        !self.labels.is_empty() || !self.not_labels.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_hold() {
        let labels = BTreeMap::from([("a".to_owned(), "1".to_owned())]);
        let check = |texts: &[&str], seconds: i64| {
            let texts: Vec<String> = texts.iter().map(|text| (*text).to_owned()).collect();
            PruneFilters::parse(&texts).map(|it| it.hold((seconds, 0), &labels)).ok()
        };
        assert_eq!(check(&[], 0), Some(true));
        assert_eq!(check(&["until=10"], 9), Some(true));
        assert_eq!(check(&["until=10"], 10), Some(false));
        assert_eq!(check(&["label=a", "label!=b"], 0), Some(true));
        assert_eq!(check(&["label=a=2"], 0), Some(false));
        assert_eq!(check(&["label!=a=1"], 0), Some(false));
        assert_eq!(check(&["colour=red"], 0), None);
        assert_eq!(check(&["dangling=true"], 0), None);
        assert_eq!(check(&["until=yesterday"], 0), None);
    }
}
