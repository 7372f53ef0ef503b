//! What a listing must obey before any of it touches the disk.
//!
//! Paths are relative, clean and stay inside; entries come in order, each once, after their folder
//! (which is a real folder, never a link); hard links point back at files already listed.

use std::collections::HashSet;

use base::{gomode, path};

use super::{Stat, TransferError};

/// Checks one listing, entry by entry.
#[derive(Default)]
pub(crate) struct Order {
    /// Open folders: path and the last name seen in it.
    folders: Vec<(String, String)>,
    root_last: String,
    last: String,
    files: HashSet<String>,
}

impl Order {
    pub(crate) fn check(&mut self, stat: &Stat) -> Result<(), TransferError> {
        let path = &stat.path;
        let bad = |why| TransferError::BadPath { why, path: path.clone() };
        if path.is_empty() || path == "." || path.contains('\0') || path != &path::clean(path) {
            return Err(bad("unclean path"));
        }
        if path::is_absolute(path) {
            return Err(bad("absolute path"));
        }
        if path == ".." || path.starts_with("../") {
            return Err(bad("escape check"));
        }

        let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
        while self.folders.last().is_some_and(|(open, _)| open != folder) {
            self.folders.pop();
        }
        let last = match self.folders.last_mut() {
            Some((_, last)) => last,
            None if folder.is_empty() => &mut self.root_last,
            None => return Err(self.disorder(path)),
        };
        if last.as_str() >= name {
            return Err(self.disorder(path));
        }
        name.clone_into(last);
        path.clone_into(&mut self.last);

        if stat.mode & gomode::DIR != 0 {
            self.folders.push((path.clone(), String::new()));
        } else if stat.mode & gomode::SYMLINK == 0 {
            if stat.linkname.is_empty() {
                self.files.insert(path.clone());
            } else if !self.files.contains(&stat.linkname) {
                return Err(TransferError::BadLink {
                    path: path.clone(),
                    target: stat.linkname.clone(),
                });
            }
        }
        Ok(())
    }

    fn disorder(&self, path: &str) -> TransferError {
        TransferError::OutOfOrder { path: path.to_owned(), last: self.last.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Entries are `path`, `path/` (folder), `path@` (symlink), `path=target` (hard link).
    fn check(listing: &str, expected: Result<(), &str>) {
        let mut order = Order::default();
        let result = listing.split_whitespace().try_for_each(|entry| {
            let mut stat = Stat { mode: 0o644, ..Stat::default() };
            let path = if let Some(path) = entry.strip_suffix("//") {
                stat.mode |= gomode::DIR;
                path
            } else if let Some(path) = entry.strip_suffix('@') {
                stat.mode |= gomode::SYMLINK;
                path
            } else if let Some((path, target)) = entry.split_once('=') {
                target.clone_into(&mut stat.linkname);
                path
            } else {
                entry
            };
            path.clone_into(&mut stat.path);
            order.check(&stat)
        });
        assert_eq!(result.map_err(|error| error.to_string()), expected.map_err(str::to_owned));
    }

    #[test]
    fn accepts_what_senders_send() {
        check("a a-b c// c/d c/e// c/e/f c-d d=c/d", Ok(()));
        check("a// a/b a-b", Ok(()));
    }

    #[test]
    fn refuses_hostile_listings() {
        check("b a", Err(r#"changes out of order: "a" "b""#));
        check("a a", Err(r#"changes out of order: "a" "a""#));
        check("a a/b", Err(r#"changes out of order: "a/b" "a""#));
        check("a@ a/b", Err(r#"changes out of order: "a/b" "a""#));
        check("a// b a/c", Err(r#"changes out of order: "a/c" "b""#));
        check("a/b", Err(r#"changes out of order: "a/b" """#));
        check("/a", Err(r#"absolute path "/a": invalid argument"#));
        check("..", Err(r#"escape check "..": invalid argument"#));
        check("../a", Err(r#"escape check "../a": invalid argument"#));
        check("a// a/../../b", Err(r#"unclean path "a/../../b": invalid argument"#));
        check("a/", Err(r#"unclean path "a/": invalid argument"#));
        check("./a", Err(r#"unclean path "./a": invalid argument"#));
        check("a=b", Err(r#"invalid link a to unknown path: "b""#));
        check("a@ b=a", Err(r#"invalid link b to unknown path: "a""#));
        check("a b=a c=b", Err(r#"invalid link c to unknown path: "b""#));
    }
}
