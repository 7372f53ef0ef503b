//! Variables in the order of their latest assignment.

use std::collections::HashMap;
use std::sync::Arc;

use crate::shell::Variables;

/// Variables of a stage, or global args.
#[derive(Debug, Clone, Default)]
pub struct Env {
    /// Shared, since every stage begins with those of its base.
    entries: Vec<Option<(Arc<str>, Arc<str>)>>,
    index: HashMap<Arc<str>, usize>,
}

impl Env {
    /// Sets a variable and moves it to the end.
    pub fn set(&mut self, name: &str, value: &str) {
        self.remove(name);
        let name: Arc<str> = name.into();
        self.index.insert(Arc::clone(&name), self.entries.len());
        self.entries.push(Some((name, value.into())));
        // Holes of variables set again are closed before they outnumber the rest.
        if self.entries.len() > 2 * self.index.len() + 16 {
            self.entries.retain(Option::is_some);
            let names = self.entries.iter().flatten().enumerate();
            self.index = names.map(|(at, (name, _))| (Arc::clone(name), at)).collect();
        }
    }

    /// Removes a variable.
    pub fn remove(&mut self, name: &str) {
        if let Some(at) = self.index.remove(name) {
            self.entries[at] = None;
        }
    }

    /// All variables in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.entries.iter().flatten().map(|(name, value)| (&**name, &**value))
    }

    /// Names in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.iter().map(|(name, _)| name)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.index.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.index.is_empty()
    }

    /// Size of all names and values.
    pub fn size(&self) -> usize {
        self.iter().map(|(name, value)| name.len() + value.len()).sum()
    }
}

impl Variables for Env {
    fn get(&self, name: &str) -> Option<&str> {
        let (_, value) = self.entries[*self.index.get(name)?].as_ref()?;
        Some(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_comes_last() {
        let mut env = Env::default();
        for round in 0..100 {
            for name in ["a", "b", "c"] {
                env.set(name, &round.to_string());
            }
        }
        env.set("a", "x");
        env.remove("b");
        assert_eq!(env.iter().collect::<Vec<_>>(), [("c", "99"), ("a", "x")]);
        assert_eq!((env.get("a"), env.get("b")), (Some("x"), None));
    }
}
