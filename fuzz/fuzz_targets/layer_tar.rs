//! Layer tars of any bytes are read to their end or refused.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| snapshot::layer::fuzz_tar(data));
