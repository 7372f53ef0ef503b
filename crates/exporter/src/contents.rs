//! Lists of contents completed: each file is told the layer that wrote it last.
//!
//! Only the main SPDX document of a scanner is changed, and only files without a comment. What
//! cannot be read as such a document stays as it came.

use std::collections::HashMap;

use base::{Digest, gojson};
use bytes::Bytes;
use oci::compress::{Decoder, Limits};
use serde_json::Value;
use store::{Content, LayerBlob, Ref};

use crate::{Attestation, ExportError};

const SPDX: &str = "https://spdx.dev/Document";
/// Most names kept of an image's files.
const MAX_FILES: usize = 4_000_000;

/// Whether [`complete`] has something to say to it.
pub(crate) fn is_list(attestation: &Attestation) -> bool {
    attestation.predicate_type == SPDX && attestation.is_core()
}

/// The layers that wrote each file last; what was deleted later counts as well.
pub(crate) struct Writers(HashMap<String, Digest>);

impl Writers {
    /// Reads the layers, topmost last in `layers`.
    pub(crate) async fn of(
        content: &Content,
        layers: &[(Digest, Option<(Ref, LayerBlob)>)],
    ) -> Result<Self, ExportError> {
        let mut held = Vec::new();
        for (_, origin) in layers {
            if let Some((tree, blob)) = origin.as_ref().filter(|(_, blob)| !blob.local) {
                let doing = format!("fetch layer {}", blob.descriptor.digest);
                held.push(tree.fetch_blob(blob).await.map_err(ExportError::store(doing))?);
            }
        }
        let digests: Vec<Digest> = layers.iter().map(|(digest, _)| *digest).collect();
        let content = content.clone();
        let read = move || {
            let mut writers = HashMap::new();
            for digest in digests.into_iter().rev() {
                let doing = || format!("list the files of layer {digest}");
                let file = content.open(&digest).map_err(ExportError::store(doing()))?;
                let tar =
                    Decoder::new(file, Limits::default()).map_err(ExportError::io(doing()))?;
                read_names(tar, digest, &mut writers).map_err(ExportError::io(doing()))?;
            }
            Ok(Self(writers))
        };
        let done = crate::files::blocking(read).await;
        drop(held);
        done
    }

    fn find(&self, name: &str) -> Option<&Digest> {
        self.0.get(&base::path::absolute(name))
    }
}

fn read_names(
    files: impl std::io::Read,
    layer: Digest,
    writers: &mut HashMap<String, Digest>,
) -> std::io::Result<()> {
    for entry in tar::Archive::new(files).entries()? {
        let entry = entry?;
        let path = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let path = base::path::absolute(&path);
        if base::path::base(&path).starts_with(".wh.") || writers.len() >= MAX_FILES {
            continue;
        }
        writers.entry(path).or_insert(layer);
    }
    Ok(())
}

/// The document with layers named in the comments of its files.
pub(crate) fn complete(document: &Bytes, writers: &Writers) -> Bytes {
    let Ok(mut value) = serde_json::from_slice::<Value>(document) else { return document.clone() };
    let Some(object) = value.as_object_mut() else { return document.clone() };
    if !object.get("spdxVersion").is_some_and(Value::is_string) {
        return document.clone();
    }
    name_layers(object.get_mut("files"), writers);
    for package in object.get_mut("packages").and_then(Value::as_array_mut).into_iter().flatten() {
        name_layers(package.get_mut("files"), writers);
    }
    // Some tools write null for what they do not say.
    let info = object.entry("creationInfo").or_insert(Value::Null);
    if info.is_null() {
        *info = Value::Object(Default::default());
    }
    if let Some(info) = info.as_object_mut() {
        let creators = info.entry("creators").or_insert(Value::Null);
        if creators.is_null() {
            *creators = Value::Array(Vec::new());
        }
        if let Some(creators) = creators.as_array_mut() {
            creators.push(concat!("Tool: rbuild-", env!("CARGO_PKG_VERSION")).into());
        }
    }
    gojson::to_vec(&value).into()
}

fn name_layers(files: Option<&mut Value>, writers: &Writers) {
    for file in files.and_then(Value::as_array_mut).into_iter().flatten() {
        let Some(file) = file.as_object_mut() else { continue };
        let has = |key: &str| {
            file.get(key).and_then(Value::as_str).filter(|text| !text.is_empty()).map(str::to_owned)
        };
        if has("comment").is_some() {
            continue;
        }
        let Some(layer) = has("fileName").and_then(|name| writers.find(&name).copied()) else {
            continue;
        };
        file.insert("comment".into(), format!("layerID: {layer}").into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_told_their_layers() {
        let layer = Digest::of("layer");
        let writers = Writers([("/a".to_owned(), layer), ("/b".to_owned(), layer)].into());
        let check = |text: &str| {
            let made = complete(&Bytes::copy_from_slice(text.as_bytes()), &writers);
            String::from_utf8(made.to_vec()).unwrap().replace(&layer.to_string(), "L")
        };
        assert_eq!(
            check(
                r#"{"spdxVersion":"SPDX-2.3","files":[{"fileName":"./a"},{"fileName":"/b","comment":"c"},{"fileName":"x"}],"packages":[{"files":[{"fileName":"b"}]}]}"#
            ),
            format!(
                r#"{{"spdxVersion":"SPDX-2.3","files":[{{"fileName":"./a","comment":"layerID: L"}},{{"fileName":"/b","comment":"c"}},{{"fileName":"x"}}],"packages":[{{"files":[{{"fileName":"b","comment":"layerID: L"}}]}}],"creationInfo":{{"creators":["Tool: rbuild-{}"]}}}}"#,
                env!("CARGO_PKG_VERSION")
            )
        );
        let named = concat!("Tool: rbuild-", env!("CARGO_PKG_VERSION"));
        assert_eq!(
            check(r#"{"spdxVersion":"SPDX-2.2","files":null,"creationInfo":null}"#),
            format!(
                r#"{{"spdxVersion":"SPDX-2.2","files":null,"creationInfo":{{"creators":["{named}"]}}}}"#
            )
        );
        for text in ["[]", "{", r#"{"files":[]}"#] {
            assert_eq!(check(text), text);
        }
    }
}
