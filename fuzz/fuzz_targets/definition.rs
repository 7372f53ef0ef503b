//! Definitions of any bytes are refused or parsed, and canonical bytes stay what they are.
#![no_main]

use base::Platform;
use libfuzzer_sys::fuzz_target;
use llb::{Definition, ParseOptions, encode, pb};
use prost::Message as _;

fuzz_target!(|data: &[u8]| {
    if let Ok(canonical) = encode::canonical_op(data) {
        assert_eq!(encode::canonical_op(&canonical).as_deref(), Ok(canonical.as_slice()));
    }
    let Ok(wire) = pb::Definition::decode(data) else { return };
    let platform = Platform::new("linux", "amd64");
    let options = ParseOptions { default_platform: &platform, capabilities: None, proxy_network: false };
    let _ = Definition::parse(&wire, &options);
});
