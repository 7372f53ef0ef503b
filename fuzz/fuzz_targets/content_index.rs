//! Stored content indexes of any bytes are restored or refused.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| snapshot::contenthash::fuzz_index(data));
