//! Devices of this machine as the Container Device Interface describes them.
//!
//! Vendors leave documents in some folders; each names a kind (`vendor.com/class`), its devices, and
//! what giving one to a container changes. The documents are read when a step asks for devices, so
//! that what was installed since counts. Invariant: an edit that cannot be made fails the step; it is
//! never left out.
//!
//! A request names a device (`vendor.com/class=name`), the first of a kind (`vendor.com/class`), all
//! of a kind (`vendor.com/class=*`), or a class that devices are annotated with.

use std::{
    collections::{BTreeMap, BTreeSet},
    os::unix::fs::{FileTypeExt as _, MetadataExt as _},
    path::{Path, PathBuf},
};

use executor::{Device as Node, DeviceKind, Mount, MountSource, Spec};
use llb::pb;
use serde::Deserialize;

/// Marks devices that a request may call by another name.
const CLASS: &str = "org.mobyproject.buildkit.device.class";
/// Marks devices that builds get without being granted them.
const AUTO_ALLOW: &str = "org.mobyproject.buildkit.device.autoallow";
/// Largest document that is read.
const MAX_DOCUMENT: u64 = 16 << 20;

/// Why a device cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum CdiError {
    /// Nobody describes it.
    #[error("required device {0:?} is not registered")]
    Unknown(String),
    /// The client or the daemon did not grant it.
    #[error("{0} requested by the build but not allowed")]
    Forbidden(String),
    /// A grant that cannot be read.
    #[error("{0}")]
    Grant(String),
    /// What it changes cannot be done.
    #[error("CDI device injection failed: device {device}: {reason}")]
    Edit {
        /// The device.
        device: String,
        /// What is wrong.
        reason: String,
    },
}

/// Where devices are described, and which need no grant.
#[derive(Debug, Clone, Default)]
pub struct Devices {
    /// Folders of documents; a later one wins. None: there are no devices.
    pub folders: Vec<PathBuf>,
    /// Kinds and devices that every build may use.
    pub auto_allowed: BTreeSet<String>,
}

/// A device that is described somewhere.
#[derive(Debug, Clone)]
pub struct Device {
    /// `vendor.com/class=name`.
    pub name: String,
    /// Of its document and its own.
    pub annotations: BTreeMap<String, String>,
    /// Every build may use it.
    pub auto_allow: bool,
    edits: Vec<Edits>,
}

#[derive(Debug, Deserialize)]
struct Document {
    kind: String,
    #[serde(default)]
    annotations: BTreeMap<String, Text>,
    #[serde(default)]
    devices: Vec<DeviceEntry>,
    #[serde(default, rename = "containerEdits")]
    edits: Edits,
}

#[derive(Debug, Deserialize)]
struct DeviceEntry {
    name: String,
    #[serde(default)]
    annotations: BTreeMap<String, Text>,
    #[serde(default, rename = "containerEdits")]
    edits: Edits,
}

/// Annotations are texts, but people write plain `true`.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Text {
    Quoted(String),
    Bool(bool),
    Number(i64),
}

impl Text {
    fn into_string(self) -> String {
        match self {
            Self::Quoted(text) => text,
            Self::Bool(value) => value.to_string(),
            Self::Number(value) => value.to_string(),
        }
    }
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Edits {
    env: Vec<String>,
    device_nodes: Vec<NodeEdit>,
    mounts: Vec<MountEdit>,
    hooks: Vec<serde_json::Value>,
    net_devices: Vec<serde_json::Value>,
    intel_rdt: Option<serde_json::Value>,
    additional_gids: Vec<u32>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct NodeEdit {
    path: String,
    host_path: String,
    r#type: String,
    major: u32,
    minor: u32,
    file_mode: Option<u32>,
    uid: u32,
    gid: u32,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct MountEdit {
    host_path: String,
    container_path: String,
    options: Vec<String>,
    r#type: String,
}

impl Devices {
    /// All devices, by name.
    pub fn list(&self) -> Vec<Device> {
        let mut all = BTreeMap::new();
        for folder in &self.folders {
            for path in documents(folder) {
                match read(&path) {
                    Ok(document) => {
                        for device in self.devices(document) {
                            all.insert(device.name.clone(), device);
                        }
                    }
                    Err(reason) => {
                        tracing::warn!(path = %path.display(), reason, "unusable description of devices");
                    }
                }
            }
        }
        all.into_values().collect()
    }

    fn devices(&self, document: Document) -> Vec<Device> {
        let Document { kind, annotations, devices, edits } = document;
        let shared: BTreeMap<String, String> =
            annotations.into_iter().map(|(key, value)| (key, value.into_string())).collect();
        let made = devices.into_iter().map(|entry| {
            let name = format!("{kind}={}", entry.name);
            let mut annotations = shared.clone();
            let own = entry.annotations.into_iter();
            annotations.extend(own.map(|(key, value)| (key, value.into_string())));
            let said = annotations.get(AUTO_ALLOW).map(String::as_str);
            let said = matches!(said, Some("1" | "t" | "T" | "true" | "TRUE" | "True"));
            let listed = self.auto_allowed.contains(&name) || self.auto_allowed.contains(&kind);
            let edits = vec![edits.clone(), entry.edits];
            Device { name, annotations, auto_allow: said || listed, edits }
        });
        made.collect()
    }

    /// What `wanted` stands for; optional devices that nobody describes are left out.
    fn find<'a>(all: &'a [Device], wanted: &[pb::CdiDevice]) -> Result<Vec<&'a Device>, CdiError> {
        let mut found: Vec<&Device> = Vec::new();
        for request in wanted {
            let (kind, name) = match request.name.split_once('=') {
                Some((kind, name)) => (kind, name),
                None => (request.name.as_str(), ""),
            };
            let mut of_kind = all.iter().filter(|device| {
                kind.contains('/') && device.name.split_once('=').is_some_and(|it| it.0 == kind)
            });
            let mut these: Vec<&Device> = match name {
                "" => of_kind.next().into_iter().collect(),
                "*" => of_kind.collect(),
                _ => of_kind.filter(|device| device.name == request.name).collect(),
            };
            if these.is_empty() {
                let class = |device: &&Device| device.annotations.get(CLASS) == Some(&request.name);
                these = all.iter().filter(class).collect();
            }
            if these.is_empty() && !request.optional {
                return Err(CdiError::Unknown(request.name.clone()));
            }
            for device in these {
                if !found.iter().any(|known| known.name == device.name) {
                    found.push(device);
                }
            }
        }
        Ok(found)
    }

    /// Whether a build with these entitlements may use the devices of a vertex.
    pub fn check(
        &self,
        vertex: &llb::Vertex,
        entitlements: &BTreeSet<String>,
    ) -> Result<(), CdiError> {
        let Some(pb::op::Op::Exec(op)) = &vertex.op.op else { return Ok(()) };
        if op.cdi_devices.is_empty() {
            return Ok(());
        }
        let all = self.list();
        let found = Self::find(&all, &op.cdi_devices)?;
        if entitlements.contains("device") || entitlements.contains("device=") {
            return Ok(());
        }
        let mut granted = BTreeSet::new();
        for grant in entitlements.iter().filter_map(|name| name.strip_prefix("device=")) {
            if grant.contains(',') {
                return Err(CdiError::Grant(format!(
                    "device {grant:?} is granted with options, which this daemon does not know; \
                     name the device alone"
                )));
            }
            let request = pb::CdiDevice { name: grant.to_owned(), optional: true };
            granted.extend(Self::find(&all, &[request])?.iter().map(|it| it.name.clone()));
        }
        let forbidden: Vec<&str> = found
            .iter()
            .filter(|device| !device.auto_allow && !granted.contains(&device.name))
            .map(|device| device.name.as_str())
            .collect();
        match &forbidden[..] {
            [] => Ok(()),
            [one] => Err(CdiError::Forbidden(format!("device {one} is"))),
            many => Err(CdiError::Forbidden(format!("devices {} are", many.join(", ")))),
        }
    }

    /// Gives the devices to a container.
    pub fn inject(&self, wanted: &[pb::CdiDevice], spec: &mut Spec) -> Result<(), CdiError> {
        if wanted.is_empty() {
            return Ok(());
        }
        let all = self.list();
        for device in Self::find(&all, wanted)? {
            for edits in &device.edits {
                edit(edits, spec)
                    .map_err(|reason| CdiError::Edit { device: device.name.clone(), reason })?;
            }
        }
        Ok(())
    }
}

/// The documents of a folder, by name.
fn documents(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut paths: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|it| it == "json" || it == "yaml"))
        .collect();
    paths.sort();
    paths
}

fn read(path: &Path) -> Result<Document, String> {
    use std::io::Read as _;
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(|error| error.to_string())?;
    file.take(MAX_DOCUMENT).read_to_string(&mut text).map_err(|error| error.to_string())?;
    // JSON is YAML too.
    let document: Document = serde_yaml_ng::from_str(&text).map_err(|error| error.to_string())?;
    if !document.kind.contains('/') {
        return Err(format!("{:?} is no kind of device", document.kind));
    }
    Ok(document)
}

fn edit(edits: &Edits, spec: &mut Spec) -> Result<(), String> {
    let unable = [
        ("hooks", !edits.hooks.is_empty()),
        ("netDevices", !edits.net_devices.is_empty()),
        ("intelRdt", edits.intel_rdt.is_some()),
        ("additionalGids", edits.additional_gids.iter().any(|gid| *gid != 0)),
    ];
    if let Some((what, _)) = unable.into_iter().find(|(_, asked)| *asked) {
        return Err(format!("{what} are not supported by this daemon"));
    }
    for variable in &edits.env {
        let name = variable.split_once('=').map(|(name, _)| name).filter(|it| !it.is_empty());
        let name = name.ok_or_else(|| format!("invalid environment variable {variable:?}"))?;
        let env = &mut spec.process.env;
        env.retain(|known| known.split_once('=').is_none_or(|(other, _)| other != name));
        env.push(variable.clone());
    }
    for node in &edits.device_nodes {
        spec.devices.push(self::node(node)?);
    }
    for mount in &edits.mounts {
        spec.mounts.push(self::mount(mount)?);
    }
    Ok(())
}

/// What a document leaves out is read from the host's device.
fn node(edit: &NodeEdit) -> Result<Node, String> {
    let host = if edit.host_path.is_empty() { &edit.path } else { &edit.host_path };
    let complete = !edit.r#type.is_empty() && edit.major != 0;
    let found = std::fs::metadata(host);
    let found = match (found, complete) {
        (Ok(found), _) => Some(found),
        (Err(_), true) => None,
        (Err(error), false) => {
            return Err(format!("failed to stat CDI host device {host:?}: {error}"));
        }
    };
    let kind = match (edit.r#type.as_str(), &found) {
        ("c" | "u", _) => DeviceKind::Char,
        ("b", _) => DeviceKind::Block,
        ("", Some(found)) if found.file_type().is_char_device() => DeviceKind::Char,
        ("", Some(found)) if found.file_type().is_block_device() => DeviceKind::Block,
        ("", _) => return Err(format!("{host:?} is not a device node")),
        (other, _) => return Err(format!("devices of type {other:?} are not supported")),
    };
    let (major, minor) = match (&found, edit.major) {
        (Some(found), 0) => (rustix::fs::major(found.rdev()), rustix::fs::minor(found.rdev())),
        _ => (edit.major, edit.minor),
    };
    let mode = edit.file_mode.or(found.as_ref().map(|it| it.mode())).unwrap_or(0o666) & 0o777;
    let (uid, gid) = (edit.uid, edit.gid);
    Ok(Node { path: edit.path.clone(), kind, major, minor, mode, uid, gid })
}

fn mount(edit: &MountEdit) -> Result<Mount, String> {
    if !matches!(edit.r#type.as_str(), "" | "bind" | "none") {
        return Err(format!("mounts of type {:?} are not supported", edit.r#type));
    }
    if edit.host_path.is_empty() || edit.container_path.is_empty() {
        return Err("a mount has no host path or no container path".to_owned());
    }
    let source = MountSource::HostPath(edit.host_path.clone().into());
    let mut mount = Mount::new(&edit.container_path, source);
    for option in &edit.options {
        match option.as_str() {
            "ro" => mount.readonly = true,
            "nosuid" => mount.options.nosuid = true,
            "nodev" => mount.options.nodev = true,
            "noexec" => mount.options.noexec = true,
            "rw" | "bind" | "rbind" | "private" | "rprivate" | "slave" | "rslave" | "suid"
            | "dev" | "exec" => {}
            other => return Err(format!("mount option {other:?} is not supported")),
        }
    }
    Ok(mount)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOCUMENT: &str = "
cdiVersion: '0.6.0'
kind: vendor.com/thing
annotations:
  org.mobyproject.buildkit.device.autoallow: true
devices:
- name: foo
  containerEdits:
    env: [FOO=1]
- name: bar
  annotations:
    org.mobyproject.buildkit.device.class: fast
    org.mobyproject.buildkit.device.autoallow: no
  containerEdits:
    deviceNodes:
    - path: /dev/bar
      type: c
      major: 10
      minor: 7
";

    fn check(wanted: &[&str], expected: &str) {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("a.yaml"), DOCUMENT).unwrap();
        std::fs::write(folder.path().join("b.yaml"), "nonsense").unwrap();
        let devices = Devices { folders: vec![folder.path().into()], ..Devices::default() };
        let wanted: Vec<pb::CdiDevice> = wanted
            .iter()
            .map(|name| pb::CdiDevice {
                name: name.trim_end_matches('?').to_owned(),
                optional: name.ends_with('?'),
            })
            .collect();
        let all = devices.list();
        let told = match Devices::find(&all, &wanted) {
            Err(error) => error.to_string(),
            Ok(found) => {
                let names = found.iter().map(|device| {
                    format!("{}{}", device.name, if device.auto_allow { " auto" } else { "" })
                });
                names.collect::<Vec<_>>().join(", ")
            }
        };
        assert_eq!(told, expected, "{wanted:?}");
    }

    #[test]
    fn names_kinds_and_classes() {
        check(&["vendor.com/thing"], "vendor.com/thing=bar");
        check(&["vendor.com/thing=foo"], "vendor.com/thing=foo auto");
        check(&["vendor.com/thing=*"], "vendor.com/thing=bar, vendor.com/thing=foo auto");
        check(&["fast", "vendor.com/thing=bar"], "vendor.com/thing=bar");
        check(&["vendor.com/other=x?"], "");
        check(&["vendor.com/other=x"], "required device \"vendor.com/other=x\" is not registered");
    }
}
