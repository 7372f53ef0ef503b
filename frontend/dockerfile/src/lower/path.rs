//! Paths of Linux and Windows targets.
//!
//! Windows paths may be written with either slash and drive `C:`; operations always use `/`.
//!
//! Source: Dockerfile notes §11.3, §11.4 and §11.6.

use base::path;

use crate::error::{Error, Kind, Result};
use crate::text;

/// Slashes of operations.
pub fn to_slash(path: &str, os: &str) -> String {
    if os == "windows" { path.replace('\\', "/") } else { path.to_owned() }
}

/// Slashes of the operating system.
pub fn from_slash(path: &str, os: &str) -> String {
    if os == "windows" { path.replace('/', "\\") } else { path.to_owned() }
}

/// Whether a path starts at the root, a drive letter aside.
pub fn is_absolute(path: &str, os: &str) -> bool {
    without_drive(path, os, false).is_ok_and(|path| path.starts_with('/'))
}

/// Cleans a Windows path and takes its drive away; other paths stay as they are.
pub fn without_drive(path: &str, os: &str, keep_slash: bool) -> Result<String> {
    if os != "windows" {
        return Ok(path.to_owned());
    }
    let fail = || Err(Error::noted(Kind::DriveLetter, text::quote(path)));
    let slashed = path.replace('\\', "/");
    if (slashed.len() == 2 && slashed.ends_with(':')) || slashed.starts_with("//") {
        return fail();
    }
    match slashed.split_once(':') {
        None => Ok(clean(&slashed, keep_slash)),
        Some((drive, rest)) if drive.eq_ignore_ascii_case("c") => Ok(clean(rest, keep_slash)),
        Some(_) => fail(),
    }
}

fn clean(slashed: &str, keep_slash: bool) -> String {
    let mut clean = path::clean(slashed);
    if keep_slash && clean.len() > 1 && slashed.ends_with('/') {
        clean.push('/');
    }
    clean
}

/// An absolute path with `/`: `new` below `parent` unless it is absolute itself, which is then
/// not cleaned. With `keep_slash` an ending that says "into that folder" stays.
pub fn normalize(parent: &str, new: &str, os: &str, keep_slash: bool) -> Result<String> {
    let written = to_slash(new, os);
    let parent = to_slash(if parent.is_empty() { "/" } else { parent }, os);
    let mut parent = without_drive(&parent, os, keep_slash)?;
    if !is_absolute(&parent, os) {
        parent = path::join(["/", &parent]);
    }
    let new = if written.is_empty() { &parent } else { &written };
    let mut new = without_drive(new, os, keep_slash)?;
    if !is_absolute(&new, os) {
        new = path::join([parent.as_str(), &new]);
    }
    if keep_slash {
        if written.ends_with('/') && !new.ends_with('/') {
            new.push('/');
        } else if written.ends_with("/.") {
            if new != "/" {
                new.push('/');
            }
            new.push('.');
        }
    }
    Ok(to_slash(&new, os))
}

/// Where COPY and ADD put things.
pub fn destination(dir: &str, path: &str, os: &str) -> Result<String> {
    let path = without_drive(path, os, true)?;
    if is_absolute(&path, os) {
        return normalize("/", &path, os, true);
    }
    let path = if matches!(path.as_str(), "." | "") { "./" } else { &path };
    normalize(dir, path, os, true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linux() {
        let dest = |path| destination("/w", path, "linux").unwrap();
        assert_eq!(
            (dest("."), dest("a/"), dest("/x/../y"), dest("../b")),
            ("/w/".into(), "/w/a/".into(), "/x/../y".into(), "/b".into())
        );
        assert_eq!(normalize("rel", "rel", "linux", false).unwrap(), "/rel/rel");
    }

    #[test]
    fn windows() {
        let norm = |path| normalize("C:\\w", path, "windows", false).map_err(|error| error.kind);
        assert_eq!(norm("a\\b"), Ok("/w/a/b".into()));
        assert_eq!(norm("c:/x/./y"), Ok("/x/y".into()));
        assert_eq!(norm("d:\\x"), Err(Kind::DriveLetter));
        assert_eq!(norm("C:"), Err(Kind::DriveLetter));
        assert_eq!(norm("\\\\srv\\x"), Err(Kind::DriveLetter));
    }
}
