//! Variables in the order of their latest assignment.

use std::collections::HashMap;

use crate::shell::Variables;

/// Variables of a stage, or global args.
#[derive(Debug, Clone, Default)]
pub struct Env {
    entries: Vec<Option<(String, String)>>,
    index: HashMap<String, usize>,
}

impl Env {
    /// Sets a variable and moves it to the end.
    pub fn set(&mut self, name: &str, value: &str) {
        self.remove(name);
        self.index.insert(name.to_owned(), self.entries.len());
        self.entries.push(Some((name.to_owned(), value.to_owned())));
        // Holes of variables set again are closed before they outnumber the rest.
        if self.entries.len() > 2 * self.index.len() + 16 {
            self.entries.retain(Option::is_some);
            let names = self.entries.iter().flatten().enumerate();
            self.index = names.map(|(at, (name, _))| (name.clone(), at)).collect();
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
        self.entries.iter().flatten().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// Names in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.iter().map(|(name, _)| name)
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
