//! Random identifiers.

use rand::Rng as _;

/// 25 random characters of base 36, the form of record, session and build ids.
pub fn random_id() -> String {
    const DIGITS: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";
    let mut rng = rand::rng();
    (0..25).map(|_| DIGITS[rng.random_range(0..36)] as char).collect()
}

/// `bytes` random bytes in lower-case hex.
pub fn random_hex(bytes: usize) -> String {
    let mut rng = rand::rng();
    (0..bytes).map(|_| format!("{:02x}", rng.random::<u8>())).collect()
}
