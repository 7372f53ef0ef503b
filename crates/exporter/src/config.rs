//! The image config of a result: members the frontend set stay as they are, layers and history
//! are made to fit what is exported.

use std::time::SystemTime;

use base::{Digest, Platform, time};
use oci::{
    ImageConfig,
    config::{History, RawConfig, RootFs},
};
use serde::Serialize;
use serde_json::value::RawValue;

use crate::ExportError;

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const COMMENT: &str = "buildkit.exporter.image.v0";
const INLINE_CACHE: &str = "moby.buildkit.cache.v0";

/// What history needs to know of a layer.
#[derive(Debug, Clone)]
pub(crate) struct LayerNote {
    pub diff_id: Digest,
    pub created_at: SystemTime,
    pub description: String,
}

/// The config of a result that came without one.
pub(crate) fn default_config(platform: &Platform) -> Vec<u8> {
    #[derive(Serialize)]
    struct Run {
        #[serde(rename = "Env", skip_serializing_if = "Vec::is_empty")]
        env: Vec<String>,
        #[serde(rename = "WorkingDir")]
        working_dir: &'static str,
    }
    #[derive(Serialize)]
    struct Config<'a> {
        #[serde(flatten)]
        platform: &'a Platform,
        config: Run,
    }
    let windows = platform.os == "windows";
    let env = if windows { Vec::new() } else { vec![format!("PATH={DEFAULT_PATH}")] };
    base::gojson::to_vec(&Config { platform, config: Run { env, working_dir: "/" } })
}

/// Patches `config` for these layers (bottom first) and the epoch.
pub(crate) fn patch(
    config: &[u8],
    base_image: Option<&[u8]>,
    layers: &[LayerNote],
    epoch: Option<i64>,
    inline_cache: Option<&[u8]>,
) -> Result<Vec<u8>, ExportError> {
    const WHAT: &str = "image config for export";
    if config.trim_ascii() == b"null" {
        return Err(ExportError::result(WHAT, "invalid null image config for export"));
    }
    let read = ImageConfig::parse(WHAT, config)?;
    let mut raw = RawConfig::parse(WHAT, config)?;
    for (missing, key) in
        [(read.os.is_empty(), "os"), (read.architecture.is_empty(), "architecture")]
    {
        if missing {
            return Err(ExportError::result(WHAT, format!("missing {key}")));
        }
    }
    let base_image = match base_image.filter(|body| !body.is_empty()) {
        Some(body) => Some(ImageConfig::parse("config of the base image", body)?),
        None => None,
    };
    let mut history = complete(read.history, layers);
    if let Some(epoch) = epoch {
        let base_history = base_image.map(|base| base.history).unwrap_or_default();
        clamp(&mut history, base_history, epoch);
    }
    raw.set(
        "rootfs",
        &RootFs {
            kind: "layers".into(),
            diff_ids: layers.iter().map(|layer| layer.diff_id).collect(),
        },
    );
    match raw.get::<Option<String>>(WHAT, "created")? {
        Some(Some(created)) => {
            if let Some(epoch) = epoch {
                let at = time::parse_rfc3339(&created).ok_or_else(|| {
                    ExportError::result(WHAT, format!("creation time `{created}` is not RFC 3339"))
                })?;
                if at > time::from_unix_seconds(epoch) {
                    raw.set("created", &rfc3339(time::from_unix_seconds(epoch)));
                }
            }
        }
        // `null` counts as given and as the zero time, which nothing is later than.
        Some(None) => {}
        None => {
            let last = history.iter().rev().find_map(|entry| entry.created.clone());
            raw.set("created", &last);
        }
    }
    raw.set("history", &history);
    if let Some(cache) = inline_cache {
        use base64::Engine as _;
        raw.set(INLINE_CACHE, &base64::engine::general_purpose::STANDARD.encode(cache));
    }
    Ok(raw.to_json())
}

fn rfc3339(at: SystemTime) -> String {
    time::rfc3339_nano(at)
}

/// Makes the non-empty entries as many as the layers, and gives each entry a time.
fn complete(mut history: Vec<History>, layers: &[LayerNote]) -> Vec<History> {
    for entry in &mut history {
        entry.created = entry.created.as_deref().map(normal_time);
    }
    let mut counted = 0;
    for entry in history.iter_mut().filter(|entry| !entry.empty_layer) {
        // More entries than layers should not happen; the surplus changed nothing.
        entry.empty_layer = counted >= layers.len();
        counted += usize::from(!entry.empty_layer);
    }
    for layer in &layers[counted..] {
        history.push(History {
            created: Some(rfc3339(layer.created_at)),
            created_by: if layer.description.is_empty() {
                "created by buildkit".into()
            } else {
                layer.description.clone()
            },
            comment: COMMENT.into(),
            ..History::default()
        });
    }
    for (entry, layer) in history.iter_mut().filter(|entry| !entry.empty_layer).zip(layers) {
        entry.created.get_or_insert_with(|| rfc3339(layer.created_at));
    }
    // Before the first known time: the first new layer's, so that metadata commands on top of a
    // base image do not look as old as the base. After it: the entry before.
    let mut current = None;
    let mut gap = false;
    for entry in &history {
        match &entry.created {
            Some(created) => {
                current = Some(created.clone());
                if gap {
                    break;
                }
            }
            None => gap = true,
        }
    }
    let mut gap = false;
    for entry in &mut history {
        match &entry.created {
            Some(created) if gap => current = Some(created.clone()),
            Some(_) => {}
            None => {
                gap = true;
                entry.created.clone_from(&current);
            }
        }
    }
    history
}

/// No time later than the epoch, except in the leading entries that are the base image's own.
fn clamp(history: &mut [History], base: Vec<History>, epoch: i64) {
    let limit = time::from_unix_seconds(epoch);
    let mut base = base.into_iter().map(|mut entry| {
        entry.created = entry.created.as_deref().map(normal_time);
        entry
    });
    let mut in_base = true;
    for entry in history {
        in_base = in_base && base.next().as_ref() == Some(entry);
        if in_base {
            continue;
        }
        let fine =
            entry.created.as_deref().and_then(time::parse_rfc3339).is_some_and(|at| at <= limit);
        if !fine {
            entry.created = Some(rfc3339(limit));
        }
    }
}

/// The time as Go writes it after reading it: no trailing zeros in the fraction, `Z` for UTC.
fn normal_time(text: &str) -> String {
    let zone_at = text
        .char_indices()
        .skip(19)
        .find(|(_, c)| matches!(c, 'Z' | 'z' | '+' | '-'))
        .map_or(text.len(), |(at, _)| at);
    let (stamp, zone) = text.split_at(zone_at);
    let stamp = match stamp.split_once('.') {
        Some((whole, fraction)) => match fraction.trim_end_matches('0') {
            "" => whole.to_owned(),
            fraction => format!("{whole}.{fraction}"),
        },
        None => stamp.to_owned(),
    };
    let zone = if matches!(zone, "z" | "+00:00" | "-00:00") { "Z" } else { zone };
    stamp + zone
}

/// Compact JSON of any valid JSON, as Go embeds it.
pub(crate) fn compact(what: &str, json: &[u8]) -> Result<Box<RawValue>, ExportError> {
    let raw: Box<RawValue> =
        serde_json::from_slice(json).map_err(|error| ExportError::result(what, error))?;
    let mut out = Vec::with_capacity(json.len());
    base::gojson::compact(raw.get(), &mut out);
    let text = String::from_utf8(out).expect("compacting keeps UTF-8");
    RawValue::from_string(text).map_err(|error| ExportError::result(what, error))
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    fn layer(name: &str, second: i64) -> LayerNote {
        LayerNote {
            diff_id: Digest::of(name),
            created_at: time::from_unix_seconds(second),
            description: name.into(),
        }
    }

    fn check(
        config: &str,
        base: Option<&str>,
        layers: &[LayerNote],
        epoch: Option<i64>,
        expected: Expect,
    ) {
        let text = match patch(config.as_bytes(), base.map(str::as_bytes), layers, epoch, None) {
            Ok(bytes) => {
                let mut text = String::from_utf8(bytes).unwrap();
                for layer in layers {
                    text = text.replace(&layer.diff_id.to_string(), &layer.description);
                }
                text
            }
            Err(error) => error.to_string(),
        };
        expected.assert_eq(&text);
    }

    #[test]
    fn default_config_is_completed() {
        let config = String::from_utf8(default_config(&Platform::new("linux", "amd64"))).unwrap();
        check(
            &config,
            None,
            &[layer("one", 100), layer("two", 200)],
            None,
            expect![[
                r#"{"architecture":"amd64","config":{"Env":["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],"WorkingDir":"/"},"created":"1970-01-01T00:03:20Z","history":[{"created":"1970-01-01T00:01:40Z","created_by":"one","comment":"buildkit.exporter.image.v0"},{"created":"1970-01-01T00:03:20Z","created_by":"two","comment":"buildkit.exporter.image.v0"}],"os":"linux","rootfs":{"type":"layers","diff_ids":["one","two"]}}"#
            ]],
        );
    }

    #[test]
    fn frontend_history_gets_times() {
        check(
            r#"{"os":"linux","architecture":"arm64","variant":"v8","x":{"b": 1,"a":"<"},
                "history":[{"created":"2020-01-01T00:00:00.100Z","created_by":"base"},
                {"created_by":"ENV","empty_layer":true},{"created_by":"RUN"},{"created_by":"CMD","empty_layer":true}]}"#,
            None,
            &[layer("l0", 5), layer("l1", 1_700_000_001)],
            None,
            expect![[
                r#"{"architecture":"arm64","created":"2023-11-14T22:13:21Z","history":[{"created":"2020-01-01T00:00:00.1Z","created_by":"base"},{"created":"2023-11-14T22:13:21Z","created_by":"ENV","empty_layer":true},{"created":"2023-11-14T22:13:21Z","created_by":"RUN"},{"created":"2023-11-14T22:13:21Z","created_by":"CMD","empty_layer":true}],"os":"linux","rootfs":{"type":"layers","diff_ids":["l0","l1"]},"variant":"v8","x":{"b":1,"a":"\u003c"}}"#
            ]],
        );
    }

    #[test]
    fn epoch_spares_the_base_image() {
        let base = r#"{"history":[{"created":"2024-05-05T00:00:00Z","created_by":"base"}]}"#;
        check(
            r#"{"os":"linux","architecture":"amd64","created":"2024-05-06T00:00:00Z","history":[{"created":"2024-05-05T00:00:00Z","created_by":"base"},{"created":"2024-05-06T00:00:00Z","created_by":"RUN"}]}"#,
            Some(base),
            &[layer("l0", 5), layer("l1", 6)],
            Some(1_700_000_000),
            expect![[
                r#"{"architecture":"amd64","created":"2023-11-14T22:13:20Z","history":[{"created":"2024-05-05T00:00:00Z","created_by":"base"},{"created":"2023-11-14T22:13:20Z","created_by":"RUN"}],"os":"linux","rootfs":{"type":"layers","diff_ids":["l0","l1"]}}"#
            ]],
        );
    }

    #[test]
    fn surplus_history_and_bad_configs() {
        check(
            r#"{"os":"linux","architecture":"amd64","created":null,"history":[{"created_by":"a"},{"created_by":"b"}]}"#,
            None,
            &[layer("l0", 60)],
            None,
            expect![[
                r#"{"architecture":"amd64","created":null,"history":[{"created":"1970-01-01T00:01:00Z","created_by":"a"},{"created":"1970-01-01T00:01:00Z","created_by":"b","empty_layer":true}],"os":"linux","rootfs":{"type":"layers","diff_ids":["l0"]}}"#
            ]],
        );
        check(
            r#"{"os":"linux"}"#,
            None,
            &[],
            None,
            expect!["image config for export: missing architecture"],
        );
        check(
            "null",
            None,
            &[],
            None,
            expect!["image config for export: invalid null image config for export"],
        );
    }
}
