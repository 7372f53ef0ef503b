//! Slash paths as text, with the rules of Go's `path` package that cache keys depend on.

/// Shortest equal path: `.`, `..` and doubled slashes are resolved lexically; empty gives `.`.
pub fn clean(path: &str) -> String {
    let rooted = path.starts_with('/');
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." if parts.last().is_some_and(|last| *last != "..") => {
                parts.pop();
            }
            ".." if rooted => {}
            other => parts.push(other),
        }
    }
    let joined = parts.join("/");
    match (rooted, joined.is_empty()) {
        (true, _) => format!("/{joined}"),
        (false, true) => ".".to_owned(),
        (false, false) => joined,
    }
}

/// Concatenates the non-empty elements with `/` and cleans; all empty gives an empty path.
pub fn join<'a>(parts: impl IntoIterator<Item = &'a str>) -> String {
    let joined = parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("/");
    if joined.is_empty() { joined } else { clean(&joined) }
}

/// Cleans `path` as an absolute one, so that `..` never leaves the root.
pub fn absolute(path: &str) -> String {
    clean(&format!("/{path}"))
}

/// Last element; trailing slashes are ignored, empty gives `.`, only slashes give `/`.
pub fn base(path: &str) -> &str {
    if path.is_empty() {
        return ".";
    }
    match path.trim_end_matches('/') {
        "" => "/",
        trimmed => trimmed.rsplit('/').next().unwrap_or(trimmed),
    }
}

/// Everything before the last element, cleaned.
pub fn dir(path: &str) -> String {
    match path.rfind('/') {
        Some(at) => clean(&path[..=at]),
        None => ".".to_owned(),
    }
}

/// Whether the path starts at the root.
pub fn is_absolute(path: &str) -> bool {
    path.starts_with('/')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn follows_go() {
        for (input, cleaned) in [
            ("", "."),
            ("a//b", "a/b"),
            ("/../a", "/a"),
            ("../a/..", ".."),
            ("a/../b/", "b"),
            ("/", "/"),
            ("./", "."),
            ("../../x", "../../x"),
        ] {
            assert_eq!(clean(input), cleaned, "{input}");
        }
        assert_eq!(join(["a", "", "../b"]), "b");
        assert_eq!(join(["", ""]), "");
        assert_eq!((base("a/b/"), base(""), base("//"), base("x")), ("b", ".", "/", "x"));
        assert_eq!((dir("/a/b").as_str(), dir("a").as_str(), dir("/a").as_str()), ("/a", ".", "/"));
    }
}
