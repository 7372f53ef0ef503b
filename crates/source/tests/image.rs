//! Images from a registry in memory, from the image store, and from a client's layout.

use std::{
    path::Path,
    sync::{Arc, Mutex},
};

use base::{Digest, Platform, gotar};
use bytes::Bytes;
use futures_util::StreamExt as _;
use llb::pb;
use oci::{Descriptor, Index, Reference, Registry, media, memory::Memory};
use session::{
    Group, SessionRequest, Sessions,
    client::{ContentStores, LayoutStore, SessionServer},
};
use source::{Images, Layouts, Memo, MetaRequest, Progress, Providers, Source, SourceRequest};
use store::{Config, Store};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

struct World {
    _folder: tempfile::TempDir,
    store: Arc<Store>,
    memory: Arc<Memory>,
    images: Images,
    providers: Arc<Providers>,
    group: Group,
    steps: Arc<Mutex<Vec<String>>>,
}

fn world() -> World {
    let folder = tempfile::Builder::new().prefix("source-").tempdir().unwrap();
    let store = Store::open(Config::new(folder.path())).unwrap();
    let memory = Arc::new(Memory::new());
    let registry = memory.clone();
    let providers: Arc<Providers> = Arc::default();
    let registries = Arc::new(move |_: &Group| registry.clone() as Arc<dyn Registry>);
    let images = Images::with_registries(store.clone(), registries, providers.clone());
    let group = Sessions::new().group(Vec::<String>::new());
    World { _folder: folder, store, memory, images, providers, group, steps: Arc::default() }
}

impl World {
    fn request(&self, identifier: &str, attrs: &[(&str, &str)], memo: &Arc<Memo>) -> SourceRequest {
        let steps = self.steps.clone();
        SourceRequest {
            op: pb::SourceOp {
                identifier: identifier.into(),
                attrs: attrs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
            },
            platform: Platform::new("linux", "amd64"),
            group: self.group.clone(),
            memo: memo.clone(),
            progress: Progress::new(move |status| {
                if status.completed.is_some() {
                    steps.lock().unwrap().push(status.id);
                }
            }),
        }
    }

    /// Keys and the tree's files, or the error.
    async fn pull(
        &self,
        source: &dyn Source,
        identifier: &str,
        attrs: &[(&str, &str)],
    ) -> Result<(Vec<String>, String), String> {
        let work = async {
            let request = self.request(identifier, attrs, &Arc::default());
            let progress = request.progress.clone();
            let mut instance = source.resolve(request).await?;
            let mut keys = Vec::new();
            for step in 0.. {
                let key = instance.cache_key(step, &progress).await?;
                keys.push(key.key);
                if key.last {
                    break;
                }
            }
            let Some(tree) = instance.snapshot(&progress).await? else {
                return Ok((keys, String::new()));
            };
            tree.ensure_local(store::no_progress()).await?;
            Ok((keys, files(&tree.tree().unwrap().path())))
        };
        work.await.map_err(|error: source::SourceError| error.to_string())
    }
}

fn files(at: &Path) -> String {
    let mut names: Vec<_> = std::fs::read_dir(at)
        .unwrap()
        .map(|entry| {
            let path = entry.unwrap().path();
            let text = std::fs::read_to_string(&path).unwrap();
            format!("{}={text}", path.file_name().unwrap().to_string_lossy())
        })
        .collect();
    names.sort();
    names.join(" ")
}

fn layer(name: &str, text: &str) -> Vec<u8> {
    let mut out = Vec::new();
    gotar::Header::file(name, 0o644, text.len() as u64).write(&mut out).unwrap();
    out.extend_from_slice(text.as_bytes());
    gotar::write_padding(&mut out, text.len() as u64).unwrap();
    gotar::write_end(&mut out).unwrap();
    out
}

fn config(layers: &[&[u8]], architecture: &str) -> Vec<u8> {
    let ids: Vec<_> = layers.iter().map(|layer| format!("\"{}\"", Digest::of(layer))).collect();
    format!(
        r#"{{"os":"linux","architecture":"{architecture}","rootfs":{{"type":"layers","diff_ids":[{}]}}}}"#,
        ids.join(",")
    )
    .into_bytes()
}

fn add(memory: &Memory, name: &str, layers: &[&[u8]], architecture: &str) -> Descriptor {
    let blobs: Vec<_> = layers.iter().map(|layer| (media::OCI_LAYER, *layer)).collect();
    memory.add_image(&Reference::parse(name).unwrap(), &config(layers, architecture), &blobs)
}

#[tokio::test]
async fn keys_and_files() {
    let world = world();
    let (one, two) = (layer("one", "1"), layer("two", "2"));
    let root = add(&world.memory, "h.io/app:1", &[&one, &two], "amd64");
    let (keys, files) = world.pull(&world.images, "docker-image://h.io/app:1", &[]).await.unwrap();
    let manifest = format!(r#"{{"Digest":"{}","OS":"linux","Arch":"amd64"}}"#, root.digest);
    let chain = Digest::of(format!("{} {}", Digest::of(&one), Digest::of(&two)));
    assert_eq!(keys, [Digest::of(manifest).to_string(), chain.to_string()]);
    assert_eq!(files, "one=1 two=2");
    assert_eq!(*world.steps.lock().unwrap(), ["resolve h.io/app:1"]);
    // Manifest and config first; layers when somebody wanted the files.
    let log = world.memory.take_log();
    assert_eq!(log.len(), 5, "{log:?}");
    assert!(log[0].starts_with("resolve") && log[1].starts_with("manifest"), "{log:?}");
    let attrs = [("image.layerlimit", "1")];
    let (keys, files) =
        world.pull(&world.images, "docker-image://h.io/app:1", &attrs).await.unwrap();
    let manifest =
        format!(r#"{{"Digest":"{}","OS":"linux","Arch":"amd64","Limit":1}}"#, root.digest);
    assert_eq!(keys, [Digest::of(manifest).to_string(), Digest::of(&one).to_string()]);
    assert_eq!(files, "one=1");
    // A digest that came from this repository needs no network any more.
    world.memory.set_offline(true);
    let pinned = format!("docker-image://h.io/app@{}", root.digest);
    assert_eq!(world.pull(&world.images, &pinned, &[]).await.unwrap().1, "one=1 two=2");
    let elsewhere = format!("docker-image://h.io/other@{}", root.digest);
    assert!(
        world.pull(&world.images, &elsewhere, &[]).await.unwrap_err().contains("did not answer")
    );
}

#[tokio::test]
async fn platform_of_an_index() {
    let world = world();
    let (amd, arm) = (layer("amd", "a"), layer("arm", "b"));
    let of = |name: &str, layer: &[u8], architecture: &str| Descriptor {
        platform: Some(Platform::new("linux", architecture)),
        ..add(&world.memory, name, &[layer], architecture)
    };
    let entries = vec![of("h.io/m:arm", &arm, "arm64"), of("h.io/m:amd", &amd, "amd64")];
    let body = Index::new(true, entries).to_json();
    let root = Descriptor::of(media::OCI_INDEX, &body);
    let name = Reference::parse("h.io/m:1").unwrap();
    world.memory.push_manifest(&name, &root, body.into()).await.unwrap();
    let (keys, files) = world.pull(&world.images, "docker-image://h.io/m:1", &[]).await.unwrap();
    assert_eq!(files, "amd=a");
    // The key is of what the name leads to: the index.
    let key = format!(r#"{{"Digest":"{}","OS":"linux","Arch":"amd64"}}"#, root.digest);
    assert_eq!(keys[0], Digest::of(key).to_string());
    let memo = Arc::default();
    let mut source = world.request("docker-image://h.io/m:1", &[], &memo);
    source.platform = Platform::parse("linux/s390x").unwrap();
    let request = MetaRequest {
        source,
        resolve_mode: String::new(),
        no_config: false,
        attestations: None,
        git_objects: false,
        http_checksum: None,
    };
    let error = world.images.metadata(request.clone()).await.unwrap_err().to_string();
    assert_eq!(
        error,
        "h.io/m:1: no match for platform linux/s390x (there are: linux/arm64, linux/amd64)"
    );
    let found = world.images.metadata(MetaRequest { no_config: true, ..request }).await.unwrap();
    assert_eq!(found.image.unwrap().digest, root.digest.to_string());
}

#[tokio::test]
async fn modes_and_the_image_store() {
    let world = world();
    let (local, remote) = (layer("local", "l"), layer("remote", "r"));
    // An image that exists in the store only, as `build -t myimage` leaves it.
    let source = Memory::new();
    let body = [&local[..]];
    let root = add(&source, "docker.io/library/myimage:latest", &body, "amd64");
    let name = Reference::parse("myimage").unwrap().with_default_tag();
    let content = world.store.content();
    let manifest = source.manifest(&name, &root).await.unwrap();
    let layer_blob = content.put(&local, store::BlobInfo::default()).unwrap();
    let config_blob = content.put(&config(&body, "amd64"), store::BlobInfo::default()).unwrap();
    let info = store::BlobInfo::of_type(media::OCI_MANIFEST)
        .referencing([layer_blob.digest(), config_blob.digest()]);
    let manifest_blob = content.put(&manifest, info).unwrap();
    world.store.images().tag(&name.to_string(), root.clone()).await.unwrap();
    drop((layer_blob, config_blob, manifest_blob));

    let pull = async |mode: &str| {
        let attrs = [("image.resolvemode", mode)];
        let pulled = world
            .pull(&world.images, "docker-image://docker.io/library/myimage:latest", &attrs)
            .await;
        pulled.map(|(_, files)| files)
    };
    // Unknown to the registry, or no network at all: the local one.
    assert_eq!(pull("default").await.unwrap(), "local=l");
    world.memory.set_offline(true);
    assert_eq!(pull("").await.unwrap(), "local=l");
    assert_eq!(pull("local").await.unwrap(), "local=l");
    assert!(pull("pull").await.unwrap_err().contains("did not answer"));
    world.memory.set_offline(false);
    assert!(pull("pull").await.unwrap_err().contains("not found"));
    add(&world.memory, "docker.io/library/myimage:latest", &[&remote], "amd64");
    assert_eq!(pull("default").await.unwrap(), "remote=r");
    assert_eq!(pull("pull").await.unwrap(), "remote=r");
    assert_eq!(pull("local").await.unwrap(), "local=l");
    assert_eq!(pull("never").await.unwrap_err(), "invalid resolvemode: never");
    // The short form leads to the same.
    let attrs = [("image.resolvemode", "local")];
    let short = world.pull(&world.images, "docker-image://myimage", &attrs).await.unwrap();
    assert_eq!(short.1, "local=l");
}

#[tokio::test]
async fn a_name_means_the_same_within_a_build() {
    let world = world();
    let (one, two) = (layer("one", "1"), layer("two", "2"));
    let first = add(&world.memory, "h.io/app:1", &[&one], "amd64");
    let memo: Arc<Memo> = Arc::default();
    let meta = async |memo: &Arc<Memo>| {
        let source = world.request("docker-image://h.io/app:1", &[], memo);
        let request = MetaRequest {
            source,
            resolve_mode: String::new(),
            no_config: false,
            attestations: None,
            git_objects: false,
            http_checksum: None,
        };
        world.images.metadata(request).await.unwrap().image.unwrap().digest
    };
    assert_eq!(meta(&memo).await, first.digest.to_string());
    let second = add(&world.memory, "h.io/app:1", &[&two], "amd64");
    assert_eq!(meta(&memo).await, first.digest.to_string());
    assert_eq!(meta(&Arc::default()).await, second.digest.to_string());
    // Layers of what was resolved can be found later.
    assert!(world.providers.find(&Digest::of(&one)).is_some());
}

#[tokio::test]
async fn errors() {
    let world = world();
    let one = layer("one", "1");
    let root = add(&world.memory, "h.io/app:1", &[&one], "amd64");
    let check = async |identifier: &str, attrs: &[(&str, &str)]| {
        world.pull(&world.images, identifier, attrs).await.unwrap_err()
    };
    let app = "docker-image://h.io/app:1";
    assert_eq!(check("docker-image://h.io/app:2", &[]).await, "h.io/app:2: not found");
    assert!(check("docker-image://BAD", &[]).await.contains("must be lowercase"));
    assert_eq!(check(app, &[("image.layerlimit", "0")]).await, "invalid layer limit 0");
    assert_eq!(
        check(app, &[("image.layerlimit", "2")]).await,
        "layer limit 2 is greater than the number of layers in the image 1"
    );
    let other = Digest::of("x").to_string();
    assert_eq!(
        check(app, &[("image.checksum", &other)]).await,
        format!(
            "image digest {} for h.io/app:1 does not match expected checksum {other}",
            root.digest
        )
    );
    // A manifest and a config that do not fit together.
    let name = Reference::parse("h.io/odd:1").unwrap();
    world.memory.add_image(&name, &config(&[], "amd64"), &[(media::OCI_LAYER, &one)]);
    assert_eq!(
        check("docker-image://h.io/odd:1", &[]).await,
        "h.io/odd:1 is inconsistent: the manifest has 1 layers, the config 0"
    );
    let old = br#"{"schemaVersion":1,"name":"x","fsLayers":[]}"#;
    let descriptor = Descriptor::of(media::DOCKER_MANIFEST_V1, old);
    let server = Arc::new(Old(descriptor, Bytes::from_static(old)));
    let registries = Arc::new(move |_: &Group| server.clone() as Arc<dyn Registry>);
    let images = Images::with_registries(world.store.clone(), registries, Arc::default());
    let error = world.pull(&images, "docker-image://h.io/old:1", &[]).await.unwrap_err();
    assert!(error.contains("schema 1"), "{error}");
    assert!(
        world
            .pull(&world.images, "docker-image://h.io/app:1", &[("image.recordtype", "x")])
            .await
            .is_err()
    );
}

/// Serves one old manifest.
struct Old(Descriptor, Bytes);

#[async_trait::async_trait]
impl Registry for Old {
    async fn resolve(&self, _: &Reference) -> oci::Result<Descriptor> {
        Ok(self.0.clone())
    }
    async fn manifest(&self, _: &Reference, _: &Descriptor) -> oci::Result<Bytes> {
        Ok(self.1.clone())
    }
    async fn blob(&self, _: &Reference, _: &Descriptor, _: u64) -> oci::Result<oci::BlobStream> {
        Err(oci::Error::NotFound { what: "blob".into() })
    }
    async fn push_blob(
        &self,
        _: &Reference,
        _: &Descriptor,
        _: &dyn oci::Provider,
        _: &[Reference],
    ) -> oci::Result<oci::Pushed> {
        Err(oci::Error::NotFound { what: "blob".into() })
    }
    async fn has_manifest(&self, _: &Reference, _: &Descriptor) -> oci::Result<bool> {
        Ok(false)
    }
    async fn push_manifest(&self, _: &Reference, _: &Descriptor, _: Bytes) -> oci::Result<()> {
        Err(oci::Error::NotFound { what: "manifest".into() })
    }
    async fn tags(&self, _: &Reference) -> oci::Result<Vec<String>> {
        Ok(Vec::new())
    }
    async fn referrers(
        &self,
        _: &Reference,
        _: Digest,
        _: Option<&str>,
    ) -> oci::Result<Vec<Descriptor>> {
        Ok(Vec::new())
    }
}

#[tokio::test]
async fn layouts_of_the_client() {
    let mut world = world();
    let folder = tempfile::tempdir().unwrap();
    let one = layer("one", "1");
    let memory = Memory::new();
    let root = add(&memory, "h.io/app:1", &[&one], "amd64");
    let name = Reference::parse("h.io/app:1").unwrap();
    let manifest = memory.manifest(&name, &root).await.unwrap();
    let config = config(&[&one], "amd64");
    std::fs::create_dir_all(folder.path().join("blobs/sha256")).unwrap();
    for body in [&manifest[..], &config, &one] {
        std::fs::write(folder.path().join("blobs/sha256").join(Digest::of(body).hex()), body)
            .unwrap();
    }
    let mut server = SessionServer::new("");
    let layout = LayoutStore::read_only(folder.path());
    server.add_content(ContentStores::new([("oci:mine".to_owned(), layout)]));
    let sessions = Sessions::new();
    let request = SessionRequest::from_metadata(&server.metadata().unwrap()).unwrap();
    let id = request.id.clone();
    let (to_client, from_daemon) = mpsc::channel::<Bytes>(32);
    let (to_daemon, from_client) = mpsc::channel::<Bytes>(32);
    let stop = CancellationToken::new();
    let incoming = ReceiverStream::new(from_client).map(Ok);
    tokio::spawn(sessions.serve(request, incoming, to_client).await);
    tokio::spawn(server.serve(ReceiverStream::new(from_daemon).map(Ok), to_daemon, stop.clone()));
    world.group = sessions.group([id.clone()]);
    let layouts = Layouts::new(world.store.clone(), world.providers.clone());
    let identifier = format!("oci-layout://name@{}", root.digest);
    let (keys, files) = world
        .pull(&layouts, &identifier, &[("oci.store", "mine"), ("oci.session", &id)])
        .await
        .unwrap();
    assert_eq!(files, "one=1");
    // The same image from a registry has the same keys.
    add(&world.memory, "h.io/app:1", &[&one], "amd64");
    let pulled = world.pull(&world.images, "docker-image://h.io/app:1", &[]);
    assert_eq!(pulled.await.unwrap().0, keys);
    assert_eq!(
        world.pull(&layouts, "oci-layout://name:1", &[("oci.store", "mine")]).await.unwrap_err(),
        "reference \"name:1\" must have digest"
    );
    let missing = format!("oci-layout://name@{}", Digest::of("nothing"));
    assert!(world.pull(&layouts, &missing, &[("oci.store", "mine")]).await.is_err());
    stop.cancel();
}

#[tokio::test]
async fn one_blob_as_a_file() {
    let world = world();
    let name = Reference::parse("h.io/files").unwrap();
    let blob = world.memory.add_blob(&name, "x", b"content");
    let identifier = format!("docker-image+blob://h.io/files@{}", blob.digest);
    let attrs = [("http.filename", "dir/na.me"), ("http.perm", "0755"), ("http.uid", "3")];
    let (keys, files) = world.pull(&world.images, &identifier, &attrs).await.unwrap();
    assert_eq!(files, "na.me=content");
    let key =
        format!(r#"{{"Digest":"{}","Filename":"na.me","Perm":493,"UID":3,"GID":0}}"#, blob.digest);
    assert_eq!(keys, [Digest::of(key).to_string()]);
    let (_, files) = world.pull(&world.images, &identifier, &[]).await.unwrap();
    assert_eq!(files, format!("{}=content", blob.digest.hex()));
    let error = world.pull(&world.images, "docker-image+blob://h.io/files:1", &[]).await;
    assert_eq!(error.unwrap_err(), "reference \"h.io/files:1\" must have digest");
    let error = world.pull(&world.images, &identifier, &[("http.perm", "999999")]).await;
    assert_eq!(error.unwrap_err(), "http.perm 999999 is out of range");
    let layouts = Layouts::new(world.store.clone(), world.providers.clone());
    let identifier = format!("oci-layout+blob://x@{}", blob.digest);
    let error = world.pull(&layouts, &identifier, &[]).await.unwrap_err();
    assert_eq!(error, "oci-layout blob source requires store id");
}

#[tokio::test]
async fn indexes_of_indexes_end_somewhere() {
    let world = world();
    let one = layer("one", "1");
    let name = Reference::parse("h.io/deep:1").unwrap();
    let mut root = Descriptor {
        platform: Some(Platform::new("linux", "amd64")),
        ..add(&world.memory, "h.io/deep:1", &[&one], "amd64")
    };
    for depth in 1..6 {
        let body = Index::new(true, vec![root]).to_json();
        root = Descriptor {
            platform: Some(Platform::new("linux", "amd64")),
            ..Descriptor::of(media::OCI_INDEX, &body)
        };
        world.memory.push_manifest(&name, &root, body.into()).await.unwrap();
        let pulled = world.pull(&world.images, "docker-image://h.io/deep:1", &[]).await;
        match depth {
            1..4 => assert_eq!(pulled.unwrap().1, "one=1"),
            _ => assert_eq!(pulled.unwrap_err(), "indexes of h.io/deep:1 are nested too deeply"),
        }
    }
}
