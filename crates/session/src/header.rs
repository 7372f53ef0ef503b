//! Metadata values that may hold any text. See the session protocol, "Encoding of non-ASCII values".
//!
//! Per key: as soon as one value has a character beyond ASCII, all values are form-encoded and
//! `<key>-encoded: 1` says so. Otherwise values travel as they are.

use tonic::metadata::{AsciiMetadataKey, AsciiMetadataValue, MetadataMap};

use crate::SessionError;

/// Adds all `values` under `key`; an empty list adds nothing.
pub(crate) fn append(
    map: &mut MetadataMap,
    key: &'static str,
    values: &[String],
) -> Result<(), SessionError> {
    let encode = values.iter().any(|value| !value.is_ascii());
    for value in values {
        let text = if encode { form_encode(value) } else { value.clone() };
        map.append(key, ascii(key, &text)?);
    }
    if encode {
        let flag = AsciiMetadataKey::from_bytes(format!("{key}-encoded").as_bytes())
            .expect("a key with a plain suffix is a key");
        map.insert(flag, AsciiMetadataValue::from_static("1"));
    }
    Ok(())
}

/// All values under `key`, decoded.
pub(crate) fn values(map: &MetadataMap, key: &str) -> Vec<String> {
    let encoded = map.get(format!("{key}-encoded")).is_some_and(|flag| {
        matches!(flag.as_bytes(), b"1" | b"t" | b"T" | b"true" | b"TRUE" | b"True")
    });
    map.get_all(key)
        .iter()
        .map(|value| {
            let text = String::from_utf8_lossy(value.as_bytes());
            if encoded { form_decode(&text) } else { text.into_owned() }
        })
        .collect()
}

/// One metadata value; text with control characters or beyond ASCII is refused.
pub(crate) fn ascii(key: &str, text: &str) -> Result<AsciiMetadataValue, SessionError> {
    let bad = || SessionError::BadRequest {
        what: format!("`{text}` as {key}"),
        why: format!("header key \"{key}\" contains value with non-printable ASCII characters"),
    };
    // Peers refuse what the parser here lets pass.
    if !text.bytes().all(|byte| (0x20..=0x7e).contains(&byte)) {
        return Err(bad());
    }
    text.parse().map_err(|_| bad())
}

/// `application/x-www-form-urlencoded` form of a value.
pub(crate) fn form_encode(value: &str) -> String {
    let mut out = String::with_capacity(value.len());
    for &byte in value.as_bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                out.push(byte as char);
            }
            b' ' => out.push('+'),
            other => out.push_str(&format!("%{other:02X}")),
        }
    }
    out
}

fn form_decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = |index: usize| bytes.get(index).and_then(|byte| (*byte as char).to_digit(16));
        match bytes[at] {
            b'+' => out.push(b' '),
            b'%' => match (hex(at + 1), hex(at + 2)) {
                (Some(high), Some(low)) => {
                    out.push((high * 16 + low) as u8);
                    at += 2;
                }
                _ => out.push(b'%'),
            },
            other => out.push(other),
        }
        at += 1;
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_lists_beyond_ascii_are_encoded() {
        let mut map = MetadataMap::new();
        append(&mut map, "plain", &["a b".into(), "%41".into()]).unwrap();
        append(&mut map, "rich", &["sub/é*".into(), "a b+~".into()]).unwrap();
        assert_eq!(map.get("rich").unwrap(), "sub%2F%C3%A9%2A");
        assert_eq!(map.get("rich-encoded").unwrap(), "1");
        assert!(map.get("plain-encoded").is_none());
        assert_eq!(values(&map, "plain"), ["a b", "%41"]);
        assert_eq!(values(&map, "rich"), ["sub/é*", "a b+~"]);
        assert!(append(&mut map, "bad", &["a\nb".into()]).is_err());
    }
}
