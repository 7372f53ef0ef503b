//! What this machine serves to one build, and what it keeps of the result.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use base64::{Engine as _, prelude::BASE64_STANDARD as BASE64};
use proto::{control::StatusResponse, moby::filesync::v1::auth_server::AuthServer};
use serde_json::Value;
use session::client::{
    self, Agents, ContentStores, LayoutStore, OutputFile, Outputs, Secrets, SessionServer,
    SyncedDir, SyncedDirs, Uploads,
};
use tokio::{io::AsyncReadExt as _, sync::mpsc};

use crate::{
    auth::AuthProvider,
    error::ClientError,
    ociindex::{self, Name},
    request::{BuildRequest, SecretSource, Target, Upload},
};

/// The session of one build, ready to run.
pub(crate) struct Prepared {
    pub server: SessionServer,
}

/// Sets up the session for `request` and completes its options.
pub(crate) fn prepare(
    request: &mut BuildRequest,
    statuses: Option<&mpsc::Sender<StatusResponse>>,
) -> Result<Prepared, ClientError> {
    let mut server = SessionServer::new(request.shared_key.clone());
    let mut auth =
        AuthProvider::from_user().map_err(ClientError::io("reading docker's configuration"))?;
    if let Some(statuses) = statuses {
        auth = auth.with_progress(statuses.downgrade());
    }
    let methods = ["Credentials", "FetchToken", "GetTokenAuthority", "VerifyTokenAuthority"];
    server.add(AuthServer::new(auth), &methods);
    if !request.locals.is_empty() {
        let mut dirs = SyncedDirs::new();
        for (name, folder) in &request.locals {
            if !folder.is_dir() {
                let text = format!("local {name}: {} is not a folder", folder.display());
                return Err(ClientError::Invalid(text));
            }
            dirs.insert(name.clone(), SyncedDir::new(folder));
        }
        server.add_dirs(dirs);
    }
    if !request.secrets.is_empty() {
        server.add_secrets(secrets(request)?);
    }
    if !request.ssh.is_empty() {
        server.add_agents(agents(request)?);
    }
    if !request.uploads.is_empty() {
        let uploads = Uploads::new();
        for (option, upload) in &request.uploads {
            let address = offer(&uploads, upload)?;
            request.frontend_attrs.insert(option.clone(), address);
        }
        server.add_uploads(uploads);
    }
    let stores = stores(request)?;
    if !stores.is_empty() {
        server.add_content(ContentStores::new(stores));
    }
    let targets = targets(request)?;
    if !targets.is_empty() {
        server.add_outputs(Outputs::new(targets));
    }
    if !request.cache_imports.is_empty() {
        // Frontends hand these to every graph they solve.
        let imports = request.cache_imports.iter();
        let imports =
            imports.map(|import| serde_json::json!({"Type": import.kind, "Attrs": import.attrs}));
        let text = base::gojson::to_string(&imports.collect::<Vec<_>>());
        request.frontend_attrs.insert("cache-imports".into(), text);
    }
    Ok(Prepared { server })
}

fn secrets(request: &BuildRequest) -> Result<Secrets, ClientError> {
    let mut secrets = Secrets::new();
    for secret in &request.secrets {
        match &secret.source {
            SecretSource::File(path) => secrets.file(&secret.id, path),
            SecretSource::Env(name) => {
                let value = std::env::var_os(name).ok_or_else(|| {
                    ClientError::Invalid(format!("secret {}: no variable {name}", secret.id))
                })?;
                secrets.value(&secret.id, std::os::unix::ffi::OsStringExt::into_vec(value));
            }
        }
    }
    Ok(secrets)
}

fn agents(request: &BuildRequest) -> Result<Agents, ClientError> {
    let mut agents = Agents::new();
    for forward in &request.ssh {
        let socket = match forward.paths.as_slice() {
            [] => std::env::var_os("SSH_AUTH_SOCK").map(PathBuf::from).ok_or_else(|| {
                ClientError::Invalid(format!("ssh {}: SSH_AUTH_SOCK is not set", forward.id))
            })?,
            [path] if is_socket(path) => path.clone(),
            paths => {
                // Serving keys would mean being an agent; the person has a better one.
                let names = paths.iter().map(|path| path.display().to_string());
                return Err(ClientError::Invalid(format!(
                    "ssh {}: {} is not one agent socket; add keys to an agent with ssh-add",
                    forward.id,
                    names.collect::<Vec<_>>().join(",")
                )));
            }
        };
        agents.socket(&forward.id, socket);
    }
    Ok(agents)
}

fn is_socket(path: &Path) -> bool {
    use std::os::unix::fs::FileTypeExt as _;
    std::fs::metadata(path).is_ok_and(|found| found.file_type().is_socket())
}

fn offer(uploads: &Uploads, upload: &Upload) -> Result<String, ClientError> {
    Ok(match upload {
        Upload::Stdin { head } => {
            uploads.offer(io::Cursor::new(head.clone()).chain(tokio::io::stdin()))
        }
        Upload::File(path) => {
            let file =
                File::open(path).map_err(ClientError::io(format!("opening {}", path.display())))?;
            uploads.offer(tokio::fs::File::from_std(file))
        }
    })
}

/// Content stores by the name the daemon asks for; imports of local caches that are not there are
/// dropped with a warning, as every first build has none.
fn stores(request: &mut BuildRequest) -> Result<BTreeMap<String, LayoutStore>, ClientError> {
    let mut stores = BTreeMap::new();
    for export in request.cache_exports.iter().filter(|export| export.kind == "local") {
        let Some(folder) = export.attrs.get("dest").filter(|folder| !folder.is_empty()) else {
            return Err(ClientError::Invalid("local cache exporter requires dest".into()));
        };
        if export.attrs.get("reset").is_some_and(|value| value != "false") {
            return Err(ClientError::Invalid(
                "local cache exporter: reset is not supported; export to a new folder".into(),
            ));
        }
        stores.insert(format!("local:{folder}"), LayoutStore::writable(folder));
    }
    let mut failure = None;
    request.cache_imports.retain_mut(|import| {
        if import.kind != "local" {
            return true;
        }
        let Some(folder) = import.attrs.get("src").filter(|folder| !folder.is_empty()).cloned()
        else {
            failure = Some(ClientError::Invalid("local cache importer requires src".into()));
            return true;
        };
        if import.attrs.get("digest").is_none_or(String::is_empty) {
            let tag = import.attrs.get("tag").map_or("latest", String::as_str);
            let why = match ociindex::find(Path::new(&folder), tag) {
                Ok(Some(digest)) => {
                    import.attrs.insert("digest".into(), digest);
                    None
                }
                Ok(None) => Some(format!("nothing is called {tag}")),
                Err(error) => Some(error.to_string()),
            };
            if let Some(why) = why {
                tracing::warn!("local cache {folder} is not used: {why}");
                return false;
            }
        }
        let store = LayoutStore::read_only(&folder);
        stores.entry(format!("local:{folder}")).or_insert(store);
        true
    });
    if let Some(failure) = failure {
        return Err(failure);
    }
    for (name, folder) in &request.oci_layouts {
        stores.insert(format!("oci:{name}"), LayoutStore::read_only(folder));
    }
    for export in &request.exports {
        if let Target::Store(folder) = &export.target {
            let store = LayoutStore::writable(folder);
            if stores.insert("export".into(), store).is_some() {
                let text = "only one output can be an OCI layout folder (tar=false)";
                return Err(ClientError::Invalid(text.into()));
            }
        }
    }
    Ok(stores)
}

fn targets(request: &BuildRequest) -> Result<Vec<(usize, client::Target)>, ClientError> {
    let mut targets = Vec::new();
    for (index, export) in request.exports.iter().enumerate() {
        let target = match &export.target {
            Target::None | Target::Store(_) => continue,
            Target::Folder(path) => {
                let delete = match export.attrs.get("mode").map(String::as_str) {
                    None | Some("" | "copy") => false,
                    Some("delete") => true,
                    Some(mode) => {
                        let text = format!(
                            "unknown mode {mode} of the local exporter: use copy or delete"
                        );
                        return Err(ClientError::Invalid(text));
                    }
                };
                client::Target::Folder { path: path.clone(), delete }
            }
            Target::File(path) => {
                let path = path.clone();
                client::Target::File(Arc::new(move |_| Ok(Some(open_output(&path)?))))
            }
            Target::Stdout => client::Target::File(Arc::new(|_| Ok(Some(Box::new(io::stdout()))))),
        };
        targets.push((index, target));
    }
    Ok(targets)
}

fn open_output(path: &Path) -> io::Result<Box<dyn OutputFile>> {
    let special = std::fs::metadata(path).is_ok_and(|found| !found.is_file());
    if special {
        let file = File::options().write(true).open(path);
        return Ok(Box::new(file.map_err(|error| base::fs::context(error, "open", path))?));
    }
    Ok(Box::new(NewFile::create(path)?))
}

/// A file that appears under its name only when it is whole.
struct NewFile {
    file: File,
    temporary: PathBuf,
    path: PathBuf,
}

impl NewFile {
    fn create(path: &Path) -> io::Result<Self> {
        let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        let folder = folder.unwrap_or(Path::new("."));
        let temporary = folder.join(format!(".tmp-{}", base::id::random_id()));
        let file =
            File::create(&temporary).map_err(|error| base::fs::context(error, "create", path))?;
        Ok(Self { file, temporary, path: path.to_owned() })
    }
}

impl OutputFile for NewFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)
    }

    fn close(self: Box<Self>) -> io::Result<()> {
        std::fs::rename(&self.temporary, &self.path)
            .map_err(|error| base::fs::context(error, "rename to", &self.path))
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        // After a rename there is nothing left under this name.
        let _ = std::fs::remove_file(&self.temporary);
    }
}

/// Names what was pushed into layout folders.
pub(crate) fn finish(
    request: &BuildRequest,
    response: &BTreeMap<String, String>,
) -> Result<(), ClientError> {
    let bad = |what: &str| ClientError::Invalid(format!("daemon sent an unreadable {what}"));
    if let Some(text) = response.get("cache.manifest").filter(|text| !text.is_empty()) {
        let descriptor: Value = serde_json::from_str(text).map_err(|_| bad("cache.manifest"))?;
        for export in request.cache_exports.iter().filter(|export| export.kind == "local") {
            let Some(folder) = export.attrs.get("dest") else { continue };
            let tag = export.attrs.get("tag").map_or("latest", String::as_str);
            ociindex::put(Path::new(folder), &descriptor, &[Name::Tag(tag)])
                .map_err(ClientError::io("writing the cache's index"))?;
        }
    }
    let key = "containerimage.descriptor";
    let folders = request.exports.iter().filter_map(|export| match &export.target {
        Target::Store(folder) => Some(folder),
        _ => None,
    });
    if let Some(text) = response.get(key).filter(|text| !text.is_empty()) {
        for folder in folders {
            let json = BASE64.decode(text).map_err(|_| bad(key))?;
            let descriptor: Value = serde_json::from_slice(&json).map_err(|_| bad(key))?;
            let names: Vec<Name> =
                match response.get("image.name").filter(|names| !names.is_empty()) {
                    Some(names) => names.split(',').map(Name::Image).collect(),
                    None => vec![Name::Tag("latest")],
                };
            ociindex::put(folder, &descriptor, &names)
                .map_err(ClientError::io("writing the layout's index"))?;
        }
    }
    Ok(())
}

/// The digest of the image called `tag` in the OCI layout `folder`.
pub fn layout_digest(folder: &Path, tag: &str) -> Result<Option<String>, ClientError> {
    ociindex::find(folder, tag).map_err(ClientError::io("reading the layout's index"))
}

/// Names a manifest or index of the OCI layout `folder`; whatever had the tag loses it.
pub fn name_in_layout(folder: &Path, descriptor: &Value, tag: &str) -> Result<(), ClientError> {
    ociindex::put(folder, descriptor, &[Name::Tag(tag)])
        .map_err(ClientError::io("writing the layout's index"))
}
