//! Reading attribute values as Go's clients write them.

use std::collections::BTreeMap;

use crate::ExportError;

/// Attributes of one exporter, taken out one by one; what is left nobody asked for.
pub(crate) struct Attrs {
    exporter: &'static str,
    left: BTreeMap<String, String>,
}

impl Attrs {
    pub(crate) fn new(exporter: &'static str, attrs: BTreeMap<String, String>) -> Self {
        Self { exporter, left: attrs }
    }

    /// The exporter's type.
    pub(crate) fn exporter(&self) -> &'static str {
        self.exporter
    }

    pub(crate) fn take(&mut self, key: &str) -> Option<String> {
        self.left.remove(key)
    }

    /// A boolean in any of Go's spellings; `empty` is what the empty value means, if anything.
    pub(crate) fn bool(
        &mut self,
        key: &str,
        empty: Option<bool>,
    ) -> Result<Option<bool>, ExportError> {
        let Some(value) = self.take(key) else { return Ok(None) };
        let parsed = match value.as_str() {
            "" => empty,
            "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
            "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
            _ => None,
        };
        match parsed {
            Some(parsed) => Ok(Some(parsed)),
            None => Err(self.bad(key, value, "expected true or false")),
        }
    }

    /// As [`Attrs::bool`], absent is false, empty is true.
    pub(crate) fn flag(&mut self, key: &str) -> Result<bool, ExportError> {
        Ok(self.bool(key, Some(true))?.unwrap_or(false))
    }

    pub(crate) fn integer(&mut self, key: &str) -> Result<Option<i64>, ExportError> {
        let Some(value) = self.take(key) else { return Ok(None) };
        match value.parse() {
            Ok(number) => Ok(Some(number)),
            Err(_) => Err(self.bad(key, value, "expected an integer")),
        }
    }

    /// `source-date-epoch`: absent, explicitly none (empty), or seconds.
    pub(crate) fn epoch(&mut self) -> Result<Option<Option<i64>>, ExportError> {
        const KEY: &str = "source-date-epoch";
        let Some(value) = self.take(KEY) else { return Ok(None) };
        if value.is_empty() {
            return Ok(Some(None));
        }
        match value.parse() {
            Ok(seconds) => Ok(Some(Some(seconds))),
            Err(_) => {
                Err(self.bad(KEY, value, "expected seconds since the Unix epoch, or nothing"))
            }
        }
    }

    pub(crate) fn bad(
        &self,
        key: &str,
        value: impl Into<String>,
        reason: impl Into<String>,
    ) -> ExportError {
        ExportError::Attribute {
            exporter: self.exporter,
            key: key.to_owned(),
            value: value.into(),
            reason: reason.into(),
        }
    }

    /// Everything not taken.
    pub(crate) fn rest(self) -> BTreeMap<String, String> {
        self.left
    }
}
