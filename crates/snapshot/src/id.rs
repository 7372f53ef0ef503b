//! Names of layers: one path component each, so that a layer id is a folder name as it stands.

use std::{fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::SnapshotError;

/// Longest name we accept; ids we make have 25 characters, chain ids 64.
const MAX_LENGTH: usize = 128;

/// The name of one layer: 1–128 characters of `a-z A-Z 0-9 - _ .`, not beginning with a dot.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LayerId(Arc<str>);

impl LayerId {
    /// A fresh random id.
    pub fn random() -> Self {
        Self(base::id::random_id().into())
    }

    /// Checks `name`.
    pub fn new(name: &str) -> Result<Self, SnapshotError> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        if name.is_empty()
            || name.len() > MAX_LENGTH
            || name.starts_with('.')
            || !name.bytes().all(plain)
        {
            return Err(SnapshotError::BadId(name.to_owned()));
        }
        Ok(Self(name.into()))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for LayerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for LayerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl FromStr for LayerId {
    type Err = SnapshotError;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::new(name)
    }
}

impl Serialize for LayerId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for LayerId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::new(&String::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_single_plain_components() {
        for good in ["a", "0v2", "x-y_z.1", LayerId::random().as_str()] {
            assert_eq!(LayerId::new(good).unwrap().as_str(), good);
        }
        for bad in ["", ".", "..", ".new", "a/b", "a\0", "a:b", &"x".repeat(129)] {
            assert!(LayerId::new(bad).is_err(), "{bad}");
        }
    }
}
