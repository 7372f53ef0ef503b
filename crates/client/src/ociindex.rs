//! The `index.json` of an OCI layout folder that the daemon pushed blobs into.
//!
//! The daemon writes blobs only; naming the result is the client's work. An entry is replaced by a
//! new one of the same name; the file is changed under a lock and replaced as a whole.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
};

use rustix::fs::{FlockOperation, flock};
use serde_json::{Map, Value, json};

const IMAGE_NAME: &str = "io.containerd.image.name";
const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// How an entry is called.
pub(crate) enum Name<'a> {
    /// A tag alone.
    Tag(&'a str),
    /// A full image name; its tag is noted beside it.
    Image(&'a str),
}

/// Adds `descriptor` under `names`, replacing entries of the same names.
pub(crate) fn put(layout: &Path, descriptor: &Value, names: &[Name]) -> io::Result<()> {
    let index_path = layout.join("index.json");
    let lock_path = layout.join("index.json.lock");
    let lock =
        File::create(&lock_path).map_err(|error| base::fs::context(error, "lock", &lock_path))?;
    flock(&lock, FlockOperation::LockExclusive)?;
    let marker = layout.join("oci-layout");
    base::fs::write_atomic(&marker, br#"{"imageLayoutVersion":"1.0.0"}"#, false)?;
    let mut index = match std::fs::read(&index_path) {
        Ok(text) => serde_json::from_slice(&text)
            .map_err(|error| base::fs::context(io::Error::other(error), "read", &index_path))?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Value::Null,
        Err(error) => return Err(base::fs::context(error, "read", &index_path)),
    };
    if !index.is_object() {
        index = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": [],
        });
    }
    let manifests = index["manifests"].as_array().cloned().unwrap_or_default();
    index["manifests"] = Value::Array(with(manifests, descriptor, names));
    base::fs::write_atomic(&index_path, &base::gojson::to_vec(&index), false)?;
    let _ = std::fs::remove_file(lock_path);
    Ok(())
}

fn with(mut manifests: Vec<Value>, descriptor: &Value, names: &[Name]) -> Vec<Value> {
    for name in names {
        let (image, tag) = match name {
            Name::Tag(tag) => ("", *tag),
            Name::Image(image) => (*image, tag_of(image)),
        };
        let mut entry = descriptor.clone();
        let mut notes: Map<String, Value> =
            entry["annotations"].as_object().cloned().unwrap_or_default();
        if !image.is_empty() {
            notes.insert(IMAGE_NAME.to_owned(), image.into());
        }
        notes.insert(REF_NAME.to_owned(), tag.into());
        entry["annotations"] = Value::Object(notes);
        manifests.retain(|old| {
            let note = |key: &str| old["annotations"][key].as_str().unwrap_or_default().to_owned();
            note(REF_NAME) != tag || note(IMAGE_NAME) != image
        });
        manifests.push(entry);
    }
    manifests
}

/// The digest of the entry called `tag`, if there is one.
pub(crate) fn find(layout: &Path, tag: &str) -> io::Result<Option<String>> {
    let path: PathBuf = layout.join("index.json");
    let text = std::fs::read(&path).map_err(|error| base::fs::context(error, "read", &path))?;
    let index: Value = serde_json::from_slice(&text)
        .map_err(|error| base::fs::context(io::Error::other(error), "read", &path))?;
    let manifests = index["manifests"].as_array().cloned().unwrap_or_default();
    let named = |key: &str| {
        let found = manifests.iter().find(|entry| entry["annotations"][key].as_str() == Some(tag));
        found.and_then(|entry| entry["digest"].as_str()).map(str::to_owned)
    };
    Ok(named(IMAGE_NAME).or_else(|| named(REF_NAME)))
}

/// What follows the name's last path element: its tag, with the digest if it has one.
fn tag_of(image: &str) -> &str {
    let name = image.rfind('/').map_or(0, |at| at + 1);
    match image[name..].find([':', '@']) {
        Some(at) if image.as_bytes()[name + at] == b'@' => &image[name + at..],
        Some(at) => &image[name + at + 1..],
        None => image,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_of_one_name_replace_each_other() {
        let folder = tempfile::tempdir().unwrap();
        let descriptor = |digest: &str| json!({"mediaType": "m", "digest": digest, "size": 1});
        put(folder.path(), &descriptor("sha256:a"), &[Name::Tag("latest")]).unwrap();
        let image = "docker.io/library/x:1";
        put(folder.path(), &descriptor("sha256:b"), &[Name::Image(image)]).unwrap();
        put(folder.path(), &descriptor("sha256:c"), &[Name::Tag("latest")]).unwrap();
        let find = |name| find(folder.path(), name).unwrap();
        assert_eq!(find("latest").as_deref(), Some("sha256:c"));
        assert_eq!(find("1").as_deref(), Some("sha256:b"));
        assert_eq!(find(image).as_deref(), Some("sha256:b"));
        assert_eq!(find("none"), None);
        assert!(folder.path().join("oci-layout").exists());
    }

    #[test]
    fn tags() {
        assert_eq!(tag_of("localhost:5000/a/b:1.2"), "1.2");
        assert_eq!(tag_of("localhost:5000/a/b"), "localhost:5000/a/b");
    }
}
