//! URLs, as far as sources need them.

use std::collections::BTreeMap;

/// A URL with authority.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Url {
    /// In lower case.
    pub scheme: String,
    user: String,
    /// With port.
    pub host: String,
    /// Percent-decoded.
    pub path: String,
    raw_path: String,
    /// Values by key.
    pub query: BTreeMap<String, Vec<String>>,
    /// Percent-decoded.
    pub fragment: String,
}

impl Url {
    /// Reads `scheme://[user@]host[:port][/path][?query][#fragment]`.
    pub fn parse(input: &str) -> Option<Self> {
        if input.bytes().any(|byte| byte < b' ' || byte == 0x7f) {
            return None;
        }
        let (rest, fragment) = input.split_once('#').unwrap_or((input, ""));
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (scheme, rest) = rest.split_once("://")?;
        let at = rest.find('/').unwrap_or(rest.len());
        let (authority, raw_path) = rest.split_at(at);
        let (user, host) = authority.rsplit_once('@').unwrap_or(("", authority));
        if !is_host(host) {
            return None;
        }
        Some(Self {
            scheme: scheme.to_ascii_lowercase(),
            user: user.to_owned(),
            host: host.to_owned(),
            path: decode(raw_path, false)?,
            raw_path: raw_path.to_owned(),
            // A broken query is as good as none, as in the official parser.
            query: parse_query(query).unwrap_or_default(),
            fragment: decode(fragment, false)?,
        })
    }

    /// The URL up to the path.
    pub fn without_query_and_fragment(&self) -> String {
        let at = if self.user.is_empty() { "" } else { "@" };
        let path: String = self.raw_path.chars().map(escape_space).collect();
        format!("{}://{}{at}{}{path}", self.scheme, self.user, self.host)
    }
}

fn escape_space(char: char) -> String {
    match char {
        ' ' => "%20".to_owned(),
        other => other.to_string(),
    }
}

fn is_host(host: &str) -> bool {
    let (name, port) = match host.rfind(']') {
        Some(end) => host.split_at(end + 1),
        None => host.split_at(host.find(':').unwrap_or(host.len())),
    };
    let valid = |char: char| !char.is_whitespace() && !"\"<>\\^`{|}/@%".contains(char);
    name.chars().all(valid)
        && port.strip_prefix(':').unwrap_or(port).bytes().all(|byte| byte.is_ascii_digit())
        && (port.is_empty() || port.starts_with(':'))
}

/// Reads `key=value&…`.
pub fn parse_query(query: &str) -> Option<BTreeMap<String, Vec<String>>> {
    let mut map = BTreeMap::<String, Vec<String>>::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        if pair.contains(';') {
            return None;
        }
        map.entry(decode(key, true)?).or_default().push(decode(value, true)?);
    }
    Some(map)
}

/// Replaces percent escapes, and pluses if they stand for spaces.
pub fn decode(text: &str, plus: bool) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        out.push(match byte {
            b'%' => {
                let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
                (digit(bytes.next())? * 16 + digit(bytes.next())?) as u8
            }
            b'+' if plus => b' ',
            other => other,
        });
    }
    Some(String::from_utf8_lossy(&out).into_owned())
}

/// The last element of the path of a URL, if it has one.
pub fn file_name(url: &str) -> Option<String> {
    let url = Url::parse(url)?;
    match base::path::base(&url.path) {
        "." | "/" => None,
        name => Some(name.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_urls_apart() {
        let url = Url::parse("HTTPS://u:p@h.x:8/a%20b/c?x=1&x=2+3#f%41").unwrap();
        assert_eq!(
            (url.scheme.as_str(), url.host.as_str(), url.path.as_str()),
            ("https", "h.x:8", "/a b/c")
        );
        assert_eq!((url.query["x"].join("|").as_str(), url.fragment.as_str()), ("1|2 3", "fA"));
        assert_eq!(url.without_query_and_fragment(), "https://u:p@h.x:8/a%20b/c");
        assert_eq!(file_name("http://h/a/b.tgz?x").as_deref(), Some("b.tgz"));
        assert_eq!(file_name("http://h"), None);
        for bad in ["x", "http://a b/", "http://h:x/", "http://h/%zz"] {
            assert_eq!(Url::parse(bad), None, "{bad}");
        }
    }
}
