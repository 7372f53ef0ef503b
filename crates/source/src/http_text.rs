//! Small texts of HTTP: dates, ETags, file names.

use time::{
    OffsetDateTime, PrimitiveDateTime, format_description::BorrowedFormatItem,
    macros::format_description,
};

const FIXED: &[BorrowedFormatItem<'_>] = format_description!(
    "[weekday repr:short], [day] [month repr:short] [year] [hour]:[minute]:[second] GMT"
);
const C: &[BorrowedFormatItem<'_>] = format_description!(
    "[weekday repr:short] [month repr:short] [day padding:space] [hour]:[minute]:[second] [year]"
);

/// A date in one of the three forms of HTTP; of the old one, the zone may be any without an offset.
pub(crate) fn parse_date(text: &str) -> Option<OffsetDateTime> {
    if let Ok(date) = PrimitiveDateTime::parse(text, FIXED) {
        return Some(date.assume_utc());
    }
    if let Ok(date) = PrimitiveDateTime::parse(text, C) {
        return Some(date.assume_utc());
    }
    // A two-digit year says nothing of its century, which the parser insists on.
    let (head, tail) = text.rsplit_once('-')?;
    let (year, time) = tail.split_at_checked(2)?;
    let century = if year.parse::<u8>().ok()? < 69 { "20" } else { "19" };
    let long =
        format_description!("[weekday], [day]-[month repr:short]-[year] [hour]:[minute]:[second]");
    // The zone is GMT; servers also write UTC, and other abbreviations tell no offset.
    let (time, zone) = time.rsplit_once(' ')?;
    if !(3..=4).contains(&zone.len()) || !zone.bytes().all(|byte| byte.is_ascii_uppercase()) {
        return None;
    }
    PrimitiveDateTime::parse(&format!("{head}-{century}{year}{time}"), long)
        .ok()
        .map(PrimitiveDateTime::assume_utc)
}

/// The usual form of a date.
pub(crate) fn format_date(date: OffsetDateTime) -> String {
    date.to_offset(time::UtcOffset::UTC).format(FIXED).unwrap_or_default()
}

/// An ETag without its mark of weakness.
pub(crate) fn etag(value: &str) -> String {
    value.trim().trim_start_matches("W/").to_owned()
}

/// The `filename` of a `Content-Disposition`.
pub(crate) fn disposition_name(value: &str) -> Option<String> {
    let (_, parameters) = value.split_once(';')?;
    let mut plain = None;
    for parameter in split_quoted(parameters) {
        let Some((key, value)) = parameter.split_once('=') else { continue };
        match key.trim().to_ascii_lowercase().as_str() {
            "filename" => plain = Some(unquote(value.trim())),
            "filename*" => {
                let mut parts = value.trim().splitn(3, '\'');
                let charset = parts.next()?.to_ascii_lowercase();
                let encoded = parts.nth(1)?;
                if matches!(charset.as_str(), "utf-8" | "us-ascii") {
                    return Some(percent_decode(encoded));
                }
            }
            _ => {}
        }
    }
    plain
}

fn split_quoted(text: &str) -> Vec<&str> {
    let (mut parts, mut start, mut quoted, mut escaped) = (Vec::new(), 0, false, false);
    for (at, char) in text.char_indices() {
        match char {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            ';' if !quoted => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

fn unquote(text: &str) -> String {
    let Some(inner) = text.strip_prefix('"').and_then(|text| text.strip_suffix('"')) else {
        return text.to_owned();
    };
    let mut out = String::new();
    let mut chars = inner.chars();
    while let Some(char) = chars.next() {
        match char {
            '\\' => out.extend(chars.next()),
            other => out.push(other),
        }
    }
    out
}

pub(crate) fn percent_decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = |index: usize| bytes.get(index).and_then(|byte| (*byte as char).to_digit(16));
        match (bytes[at], hex(at + 1), hex(at + 2)) {
            (b'%', Some(high), Some(low)) => {
                out.push((high * 16 + low) as u8);
                at += 3;
            }
            (byte, ..) => {
                out.push(byte);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// A single, harmless file name; `download` if nothing of that kind is left.
pub(crate) fn safe_name(name: &str) -> String {
    let base = base::path::base(name);
    let harmless = !matches!(base, "" | "." | ".." | "/")
        && !base.chars().any(char::is_control)
        && base.len() <= 255;
    if harmless { base.to_owned() } else { "download".to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_in_three_forms() {
        for text in [
            "Sun, 06 Nov 1994 08:49:37 GMT",
            "Sunday, 06-Nov-94 08:49:37 GMT",
            "Sunday, 06-Nov-94 08:49:37 UTC",
            "Sun Nov  6 08:49:37 1994",
        ] {
            let date = parse_date(text).expect(text);
            assert_eq!(date.unix_timestamp(), 784_111_777, "{text}");
            assert_eq!(format_date(date), "Sun, 06 Nov 1994 08:49:37 GMT");
        }
        assert!(parse_date("yesterday").is_none());
    }

    #[test]
    fn names_are_single_and_harmless() {
        for (name, expected) in [
            ("a.txt", "a.txt"),
            ("../../etc/passwd", "passwd"),
            ("/", "download"),
            ("..", "download"),
            ("", "download"),
            ("a\nb", "download"),
            ("dir/", "dir"),
        ] {
            assert_eq!(safe_name(name), expected, "{name:?}");
        }
        for (header, expected) in [
            ("attachment", None),
            ("attachment; filename=x.tgz", Some("x.tgz")),
            (r#"attachment; filename="a;\"b.tgz"; size=3"#, Some(r#"a;"b.tgz"#)),
            ("attachment; filename=x; filename*=UTF-8''na%C3%AFve.txt", Some("naïve.txt")),
        ] {
            assert_eq!(disposition_name(header).as_deref(), expected, "{header}");
        }
        assert_eq!(etag(r#" W/"abc""#), r#""abc""#);
    }
}
