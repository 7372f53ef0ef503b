//! Any bytes become a graph or an error, with a few options chosen by the first byte.
#![no_main]

use std::collections::BTreeMap;

use dockerfile::offline::{self, Offline};
use libfuzzer_sys::fuzz_target;

const OPTIONS: [&[(&str, &str)]; 4] = [
    &[],
    &[("platform", "linux/arm64"), ("build-arg:A", "$B"), ("no-cache", "")],
    &[("platform", "windows/amd64"), ("build-arg:SOURCE_DATE_EPOCH", "5")],
    &[("context:alpine", "docker-image://busybox"), ("context:build", "local:dir"), ("target", "0")],
];

fuzz_target!(|data: &[u8]| {
    let Some((mode, file)) = data.split_first() else { return };
    let list = OPTIONS[usize::from(*mode) % OPTIONS.len()];
    let options: BTreeMap<String, String> =
        list.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    let found = offline::lower(Offline::new(options).with_file("Dockerfile", file.to_vec()));
    if let Err(error) = found.definition {
        let _ = dockerfile::report::explain(&error, "Dockerfile", file);
    }
});
