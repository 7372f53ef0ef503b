//! URLs, as far as sources need them.

use std::collections::BTreeMap;

/// A URL with authority.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Url {
    /// In lower case.
    pub scheme: String,
    /// There may be one without a name.
    user: Option<String>,
    /// With port.
    pub host: String,
    /// Percent-decoded.
    pub path: String,
    raw_path: String,
    /// Ends in a bare `?`, which is kept.
    bare_query: bool,
    /// Values by key.
    pub query: BTreeMap<String, Vec<String>>,
    /// Percent-decoded.
    pub fragment: String,
}

impl Url {
    /// Reads `scheme://[user@]host[:port][/path][?query][#fragment]`.
    pub fn parse(input: &str) -> Option<Self> {
        let (rest, fragment) = input.split_once('#').unwrap_or((input, ""));
        if rest.bytes().any(|byte| byte < b' ' || byte == 0x7f) {
            return None;
        }
        let bare_query = rest.ends_with('?') && rest.matches('?').count() == 1;
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (scheme, rest) = rest.split_once("://")?;
        let at = rest.find('/').unwrap_or(rest.len());
        let (authority, raw_path) = rest.split_at(at);
        let (user, host) = match authority.rsplit_once('@') {
            Some((user, host)) => (Some(user), host),
            None => (None, authority),
        };
        let is_user =
            |byte: u8| byte.is_ascii_alphanumeric() || b"-._:~!$&'()*+,;=%@".contains(&byte);
        if !user.unwrap_or_default().bytes().all(is_user) {
            return None;
        }
        let scheme = scheme.to_ascii_lowercase();
        let host = decode_host(&scheme, host)?;
        Some(Self {
            scheme,
            user: user.map(str::to_owned),
            host,
            path: decode(raw_path, false)?,
            raw_path: raw_path.to_owned(),
            bare_query,
            // A broken query is as good as none, as in the official parser.
            query: parse_query(query).unwrap_or_default(),
            fragment: decode(fragment, false)?,
        })
    }

    /// The URL up to the path.
    pub fn without_query_and_fragment(&self) -> String {
        let mut out = format!("{}:", self.scheme);
        if !(self.user.is_none() && self.host.is_empty() && self.path.is_empty()) {
            out.push_str("//");
        }
        if let Some(user) = &self.user {
            let parts: Vec<String> = user.splitn(2, ':').map(escape_user).collect();
            out.push_str(&parts.join(":"));
            out.push('@');
        }
        out.push_str(&escape(&self.host, is_host_byte));
        if self.raw_path.bytes().all(|byte| is_path_byte(byte) || b"!'()*[]%".contains(&byte)) {
            out.push_str(&self.raw_path);
        } else {
            out.push_str(&escape(&self.path, is_path_byte));
        }
        if self.bare_query {
            out.push('?');
        }
        out
    }
}

fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte)
}

fn is_path_byte(byte: u8) -> bool {
    is_unreserved(byte) || b"$&+,/:;=@".contains(&byte)
}

fn is_host_byte(byte: u8) -> bool {
    is_unreserved(byte) || b"!$&'()*+,;=:[]<>\"".contains(&byte)
}

fn escape(text: &str, plain: fn(u8) -> bool) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if plain(byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

fn escape_user(part: &str) -> String {
    let decoded = decode(part, false).unwrap_or_else(|| part.to_owned());
    escape(&decoded, |byte| is_unreserved(byte) || b"$&+,;=".contains(&byte))
}

/// Escapes stand for bytes above ASCII only; a port is digits.
fn decode_host(scheme: &str, host: &str) -> Option<String> {
    let port = match (host.rfind('['), host.rfind(']')) {
        (None, None) => {
            // Lists of hosts with ports are not refused where they were in use.
            let web = matches!(scheme, "http" | "https");
            let colon = if web { host.find(':') } else { host.rfind(':') };
            colon.map_or("", |at| &host[at + 1..])
        }
        (Some(0), Some(end)) => {
            let address =
                host[1..end].split_once('%').map_or(&host[1..end], |(address, _)| address);
            address.parse::<std::net::Ipv6Addr>().ok()?;
            let after = &host[end + 1..];
            if after.is_empty() { "" } else { after.strip_prefix(':')? }
        }
        _ => return None,
    };
    if !port.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let escapes = host.match_indices('%').all(|(at, _)| {
        host.as_bytes()
            .get(at + 1)
            .is_some_and(|digit| matches!(digit, b'8' | b'9' | b'a'..=b'f' | b'A'..=b'F'))
    });
    let valid = |byte: u8| byte == b'%' || byte >= 0x80 || is_host_byte(byte);
    if !escapes || !host.bytes().all(valid) {
        return None;
    }
    decode(host, false)
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
        let bare = Url::parse("git://h/r?").unwrap();
        assert_eq!(bare.without_query_and_fragment(), "git://h/r?");
        let odd = Url::parse("https://u!:p%40@h\u{85}x/é a?q").unwrap();
        assert_eq!(odd.without_query_and_fragment(), "https://u%21:p%40@h%C2%85x/%C3%A9%20a");
        let nameless = Url::parse("https://@h/r.git").unwrap();
        assert_eq!(nameless.without_query_and_fragment(), "https://@h/r.git");
        for bad in ["x", "http://a b/", "http://h:x/", "http://h/%zz"] {
            assert_eq!(Url::parse(bad), None, "{bad}");
        }
    }
}
