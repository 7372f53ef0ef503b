//! When and how long to wait before asking again.

use std::time::{Duration, SystemTime};

use rand_jitter::jitter;

/// Attempts of one request when the server is in trouble.
pub(super) const ATTEMPTS: u32 = 5;
/// Attempts when nobody answers at all: an absent registry should be reported soon.
pub(super) const CONNECT_ATTEMPTS: u32 = 2;
const FIRST_WAIT: Duration = Duration::from_millis(250);
const LONGEST_WAIT: Duration = Duration::from_secs(10);
/// A server may ask for more patience than we would have, up to here.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(60);

/// Whether the same request may well succeed later.
pub(super) fn is_temporary(status: u16) -> bool {
    matches!(status, 408 | 429 | 500 | 502 | 503 | 504)
}

/// Wait before attempt `attempt` (the first repetition is 1) of a server that may have said when to
/// come back; `None` if that is too long to wait, and to come earlier would be of no use.
pub(super) fn wait_for(attempt: u32, retry_after: Option<&str>) -> Option<Duration> {
    match retry_after.and_then(parse_retry_after) {
        Some(asked) => (asked <= LONGEST_RETRY_AFTER).then_some(asked),
        None => Some(wait(attempt)),
    }
}

/// Wait before attempt `attempt`.
pub(super) fn wait(attempt: u32) -> Duration {
    let exponential = FIRST_WAIT * 2u32.saturating_pow(attempt.saturating_sub(1).min(16));
    jitter(exponential.min(LONGEST_WAIT))
}

/// Seconds, or a date as HTTP writes it.
fn parse_retry_after(text: &str) -> Option<Duration> {
    if let Ok(seconds) = text.trim().parse() {
        return Some(Duration::from_secs(seconds));
    }
    let at = base::time::parse_http_date(text.trim())?;
    Some(at.duration_since(SystemTime::now()).unwrap_or_default())
}

mod rand_jitter {
    use std::{
        hash::{BuildHasher as _, RandomState},
        time::Duration,
    };

    /// Between 75 and 125 per cent, so that clients turned away together do not return together.
    pub(super) fn jitter(wait: Duration) -> Duration {
        let random = RandomState::new().hash_one(0u8) % 512;
        wait * 3 / 4 + wait / 1024 * u32::try_from(random).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_and_obey() {
        assert_eq!(wait_for(1, Some("7")), Some(Duration::from_secs(7)));
        assert_eq!(wait_for(1, Some("7000")), None);
        assert_eq!(wait_for(1, Some("Wed, 21 Oct 2015 07:28:00 GMT")), Some(Duration::ZERO));
        assert!(wait_for(1, None).is_some_and(|wait| wait < Duration::from_millis(330)));
        assert!(wait(9) > Duration::from_secs(7));
    }
}
