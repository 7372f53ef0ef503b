//! `imagetools`: images where they are, in registries and in OCI layouts.
//!
//! The daemon reaches the registries; layouts are folders of this machine
//! (`oci-layout://FOLDER[:TAG|@DIGEST]`).

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, bail};
use base::{Digest, Platform};
use clap::{Args, Subcommand};
use client::{Client, LayoutFolder, Logins};
use oci::{Descriptor, Index, Manifest, Reference, layout::Layout, media, select};
use proto::rbuild::v1::{CopyRequest, FetchRequest, PutManifestRequest, ReferrersRequest};
use serde_json::{Map, Value, json};

use super::refused;
use crate::{connection::ConnectionArgs, format::Format};

const LAYOUT: &str = "oci-layout://";

/// Look at images in registries and make new ones of them
#[derive(Subcommand, Debug)]
pub enum ImagetoolsCommand {
    Inspect(InspectArgs),
    Create(CreateArgs),
}

/// Show an image of a registry or an OCI layout
#[derive(Args, Debug)]
pub struct InspectArgs {
    /// Name, or oci-layout://FOLDER[:TAG|@DIGEST]
    name: String,
    /// Print the manifest or index as it is
    #[arg(long)]
    raw: bool,
    /// json or a template over .Name, .Manifest, .Image, .Provenance and .SBOM
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
    /// Also list what refers to the image
    #[arg(long)]
    referrers: bool,
}

/// Make an index of images
#[derive(Args, Debug)]
pub struct CreateArgs {
    /// Names, or oci-layout://FOLDER[:TAG|@DIGEST]
    #[arg(value_name = "SOURCE")]
    sources: Vec<String>,
    /// Name of the new image
    #[arg(long, short = 't', value_name = "NAME")]
    tag: Vec<String>,
    /// Descriptors in JSON as further sources
    #[arg(long, short = 'f', value_name = "FILE")]
    file: Vec<PathBuf>,
    /// Add to the image that has the name already
    #[arg(long)]
    append: bool,
    /// [index:|manifest-descriptor[PLATFORM]:]KEY=VALUE
    #[arg(long, value_name = "ANNOTATION")]
    annotation: Vec<String>,
    /// Only these platforms
    #[arg(long, value_name = "PLATFORM", value_delimiter = ',')]
    platform: Vec<String>,
    /// Print what would be pushed
    #[arg(long)]
    dry_run: bool,
    /// Make an index even of one image
    #[arg(long, value_name = "BOOL", default_value_t = true, num_args = 0..=1,
        default_missing_value = "true", require_equals = true, action = clap::ArgAction::Set)]
    prefer_index: bool,
    /// Accepted for scripts
    #[arg(long, hide = true)]
    progress: Option<String>,
}

impl ImagetoolsCommand {
    /// Runs it.
    pub async fn run(&self, connection: &ConnectionArgs) -> anyhow::Result<ExitCode> {
        match self {
            Self::Inspect(args) => args.run(connection).await,
            Self::Create(args) => args.run(connection).await,
        }
    }
}

/// Where an image is.
#[derive(Debug, Clone)]
enum Place {
    Registry(Reference),
    Layout { folder: PathBuf, tag: Option<String>, digest: Option<Digest> },
}

impl Place {
    fn parse(text: &str) -> anyhow::Result<Self> {
        let Some(rest) = text.strip_prefix(LAYOUT) else {
            return Ok(Self::Registry(Reference::parse(text)?.with_default_tag()));
        };
        if let Some((folder, digest)) = rest.split_once('@') {
            let digest = digest.parse().with_context(|| format!("{text}: not a digest"))?;
            return Ok(Self::Layout { folder: folder.into(), tag: None, digest: Some(digest) });
        }
        let (folder, tag) = match rest.rsplit_once(':') {
            Some((folder, tag)) if !tag.contains('/') => (folder, Some(tag.to_owned())),
            _ => (rest, None),
        };
        Ok(Self::Layout { folder: folder.into(), tag, digest: None })
    }

    /// Name without tag, for what is below.
    fn repository(&self) -> String {
        match self {
            Self::Registry(reference) => reference.repository(),
            Self::Layout { folder, .. } => format!("{LAYOUT}{}", folder.display()),
        }
    }
}

/// A manifest or index with its bytes.
struct Fetched {
    descriptor: Descriptor,
    body: Vec<u8>,
}

/// Reads images wherever they are.
struct Reader {
    client: Option<(Client, Logins)>,
}

impl Reader {
    async fn new(
        connection: &ConnectionArgs,
        needs_daemon: bool,
        layouts: BTreeMap<String, LayoutFolder>,
    ) -> anyhow::Result<Self> {
        if !needs_daemon {
            return Ok(Self { client: None });
        }
        let client = connection.connect().await?;
        let logins = client.serve_logins_and(layouts)?;
        Ok(Self { client: Some((client, logins)) })
    }

    fn daemon(&self) -> anyhow::Result<&(Client, Logins)> {
        self.client.as_ref().context("a registry needs a daemon")
    }

    async fn ask(&self, reference: &Reference, blob: bool) -> anyhow::Result<Fetched> {
        let (client, logins) = self.daemon()?;
        let request =
            FetchRequest { reference: reference.to_string(), session: logins.session(), blob };
        let answer = client.registries().fetch(request).await;
        let answer = answer.map_err(refused("failed to read from the registry"))?.into_inner();
        let body = answer.body.to_vec();
        Ok(Fetched { descriptor: Descriptor::of(answer.media_type, &body), body })
    }

    async fn root(&self, place: &Place) -> anyhow::Result<Fetched> {
        match place {
            Place::Registry(reference) => self.ask(reference, false).await,
            Place::Layout { folder, tag, digest } => {
                let layout = Layout::open(folder)?;
                let found = match (digest, tag) {
                    (Some(digest), _) => Some(Descriptor::new(String::new(), *digest, 0)),
                    (None, tag) => {
                        let latest = || layout.find(Some("latest"));
                        let found = layout.find(tag.as_deref());
                        found.or_else(|| tag.is_none().then(latest).flatten()).cloned()
                    }
                };
                let found = found.with_context(|| {
                    let tag = tag.as_deref().unwrap_or("(no tag)");
                    format!("{}: no image is called {tag}", folder.display())
                })?;
                layout_blob(folder, &found.digest).map(|mut fetched| {
                    if fetched.descriptor.media_type.is_empty() {
                        fetched.descriptor.media_type = found.media_type;
                    }
                    fetched
                })
            }
        }
    }

    /// A manifest below what `place` names, or a config.
    async fn below(&self, place: &Place, digest: &Digest, blob: bool) -> anyhow::Result<Fetched> {
        match place {
            Place::Registry(reference) => {
                let pinned = reference.without_tag_and_digest().with_digest(*digest);
                self.ask(&pinned, blob).await
            }
            Place::Layout { folder, .. } => layout_blob(folder, digest),
        }
    }
}

fn layout_blob(folder: &Path, digest: &Digest) -> anyhow::Result<Fetched> {
    let path = folder.join("blobs/sha256").join(digest.hex());
    let size = std::fs::metadata(&path).with_context(|| format!("read {}", path.display()))?.len();
    if size > oci::types::MAX_CONFIG {
        bail!("{} is too large", path.display());
    }
    let body = base::fs::read(&path)?;
    if Digest::of(&body) != *digest {
        bail!("{} is damaged", path.display());
    }
    let kind = media::detect_manifest(&body).unwrap_or_default();
    Ok(Fetched { descriptor: Descriptor::of(kind, &body), body })
}

impl InspectArgs {
    async fn run(&self, connection: &ConnectionArgs) -> anyhow::Result<ExitCode> {
        if self.raw && self.format.is_some() {
            bail!("format and raw cannot be used together");
        }
        let format = self.format.as_deref().map(Format::parse).transpose()?;
        let place = Place::parse(&self.name)?;
        // Looking into a folder needs no daemon.
        let remote = matches!(place, Place::Registry(_));
        let reader = Reader::new(connection, remote, BTreeMap::new()).await?;
        let root = reader.root(&place).await?;
        if self.raw {
            use std::io::Write as _;
            std::io::stdout().write_all(&root.body)?;
            return Ok(ExitCode::SUCCESS);
        }
        let name = match &place {
            Place::Registry(reference) => reference.to_string(),
            Place::Layout { .. } => self.name.clone(),
        };
        if let Some(format) = format {
            let text = self.format.as_deref().unwrap_or_default();
            let whole = matches!(text, "json" | "{{json .}}");
            let wanted = whole || text.contains(".Provenance") || text.contains(".SBOM");
            let statements = match wanted {
                true => Statements::of(&reader, &place, &root).await?,
                false => Statements::default(),
            };
            let value = json!({
                "Name": name,
                "Manifest": manifest_json(&root)?,
                "Image": images_json(&reader, &place, &root).await?,
                "Provenance": only(statements.provenance),
                "SBOM": only(statements.sbom),
            });
            println!("{}", format.apply(&value)?);
            return Ok(ExitCode::SUCCESS);
        }
        println!("Name:      {name}");
        println!("MediaType: {}", root.descriptor.media_type);
        println!("Digest:    {}", root.descriptor.digest);
        if media::is_index(&root.descriptor.media_type) {
            let index = Index::parse(&name, &root.body)?;
            print_annotations(&index.annotations, "");
            println!("           \nManifests: ");
            for (at, member) in index.manifests.iter().enumerate() {
                if at > 0 {
                    println!("             ");
                }
                println!("  Name:        {}@{}", place.repository(), member.digest);
                println!("  MediaType:   {}", member.media_type);
                if let Some(platform) = &member.platform {
                    println!("  Platform:    {}", platform.format());
                }
                print_annotations(&member.annotations, "  ");
            }
        } else {
            let manifest = Manifest::parse(&name, &root.body)?;
            print_annotations(&manifest.annotations, "");
        }
        if self.referrers {
            self.print_referrers(&reader, &place, &root).await?;
        }
        Ok(ExitCode::SUCCESS)
    }

    async fn print_referrers(
        &self,
        reader: &Reader,
        place: &Place,
        root: &Fetched,
    ) -> anyhow::Result<()> {
        let Place::Registry(reference) = place else {
            bail!("--referrers needs a registry");
        };
        let (client, logins) = reader.daemon()?;
        let request = ReferrersRequest {
            repository: reference.without_tag_and_digest().to_string(),
            digest: root.descriptor.digest.to_string(),
            session: logins.session(),
            artifact_type: String::new(),
        };
        let answer = client.registries().referrers(request).await;
        let answer = answer.map_err(refused("failed to list referrers"))?.into_inner();
        println!("\nReferrers: ");
        for body in answer.descriptors {
            let found: Descriptor =
                serde_json::from_slice(&body).context("the daemon's descriptor")?;
            println!("  Name:         {}@{}", place.repository(), found.digest);
            println!("  ArtifactType: {}", found.artifact_type);
            println!("  MediaType:    {}\n", found.media_type);
        }
        Ok(())
    }
}

fn print_annotations(annotations: &BTreeMap<String, String>, indent: &str) {
    if annotations.is_empty() {
        return;
    }
    println!("{indent}Annotations: ");
    for (key, value) in annotations {
        println!("{indent}  {key}: {value}");
    }
}

/// The descriptor with what the document says, as buildx shows it.
fn manifest_json(root: &Fetched) -> anyhow::Result<Value> {
    let mut value: Map<String, Value> =
        serde_json::from_slice(&root.body).context("the manifest is unreadable")?;
    let mut shown = Map::new();
    for (key, known) in [
        ("schemaVersion", Value::from(2)),
        ("mediaType", root.descriptor.media_type.clone().into()),
        ("digest", root.descriptor.digest.to_string().into()),
        ("size", root.descriptor.size.into()),
    ] {
        value.shift_remove(key);
        shown.insert(key.into(), known);
    }
    shown.extend(value);
    Ok(Value::Object(shown))
}

/// Adds a manifest or index, whose members are there, to a layout.
fn put_in_layout(folder: &Path, tag: &str, kind: &str, body: &[u8]) -> anyhow::Result<()> {
    let descriptor = Descriptor::of(kind.to_owned(), body);
    let blobs = folder.join("blobs/sha256");
    base::fs::create_dir_all(&blobs)?;
    base::fs::write_atomic(&blobs.join(descriptor.digest.hex()), body, false)?;
    Ok(client::name_in_layout(folder, &serde_json::to_value(&descriptor)?, tag)?)
}

/// The config, or configs by platform.
async fn images_json(reader: &Reader, place: &Place, root: &Fetched) -> anyhow::Result<Value> {
    let name = place.repository();
    if !media::is_index(&root.descriptor.media_type) {
        return config_of(reader, place, root).await;
    }
    let index = Index::parse(&name, &root.body)?;
    let mut by_platform = Map::new();
    for member in index.manifests {
        let attestation = member.annotations.contains_key(select::ANNOTATION_REFERENCE_TYPE);
        let Some(platform) = member.platform.filter(|_| !attestation) else { continue };
        let manifest = reader.below(place, &member.digest, false).await?;
        by_platform.insert(platform.format(), config_of(reader, place, &manifest).await?);
    }
    Ok(only(by_platform))
}

/// What is there for one platform alone stands for itself, as buildx shows it.
fn only(mut by_platform: Map<String, Value>) -> Value {
    match by_platform.len() {
        0 => json!({}),
        1 => by_platform.values_mut().next().expect("there is one").take(),
        _ => Value::Object(by_platform),
    }
}

/// What an index says of its images, by platform.
#[derive(Default)]
struct Statements {
    provenance: Map<String, Value>,
    sbom: Map<String, Value>,
}

impl Statements {
    async fn of(reader: &Reader, place: &Place, root: &Fetched) -> anyhow::Result<Self> {
        let mut found = Self::default();
        if !media::is_index(&root.descriptor.media_type) {
            return Ok(found);
        }
        let index = Index::parse(&place.repository(), &root.body)?;
        for member in &index.manifests {
            let Some(about) = member.annotations.get(select::ANNOTATION_REFERENCE_DIGEST) else {
                continue;
            };
            let subject = index.manifests.iter().find(|it| it.digest.to_string() == *about);
            let Some(platform) = subject.and_then(|it| it.platform.as_ref()) else { continue };
            let manifest = reader.below(place, &member.digest, false).await?;
            let manifest = Manifest::parse(&place.repository(), &manifest.body)?;
            for layer in manifest.layers {
                let kind = layer.annotations.get("in-toto.io/predicate-type");
                let (list, name) = match kind.map(String::as_str) {
                    Some(kind) if kind.starts_with("https://slsa.dev/provenance/") => {
                        (&mut found.provenance, "SLSA")
                    }
                    Some("https://spdx.dev/Document") => (&mut found.sbom, "SPDX"),
                    _ => continue,
                };
                let body = reader.below(place, &layer.digest, true).await?.body;
                let mut statement: Value =
                    serde_json::from_slice(&body).context("a statement is unreadable")?;
                list.insert(platform.format(), json!({ name: statement["predicate"].take() }));
            }
        }
        Ok(found)
    }
}

async fn config_of(reader: &Reader, place: &Place, manifest: &Fetched) -> anyhow::Result<Value> {
    let parsed = Manifest::parse(&place.repository(), &manifest.body)?;
    if !media::is_config(&parsed.config.media_type) {
        return Ok(Value::Null);
    }
    let config = reader.below(place, &parsed.config.digest, true).await?;
    serde_json::from_slice(&config.body).context("the image config is unreadable")
}

/// An entry of the new index and where its blobs are.
struct Source {
    descriptor: Descriptor,
    place: Place,
}

impl CreateArgs {
    async fn run(&self, connection: &ConnectionArgs) -> anyhow::Result<ExitCode> {
        if self.sources.is_empty() && self.file.is_empty() {
            bail!("no sources specified");
        }
        if self.tag.is_empty() && !self.dry_run {
            bail!("can't push with no tags specified, please set --tag or --dry-run");
        }
        if self.append && self.tag.is_empty() {
            bail!("--append needs --tag");
        }
        let mut targets = Vec::new();
        for tag in &self.tag {
            let place = Place::parse(tag)?;
            if matches!(place, Place::Layout { digest: Some(_), .. }) {
                bail!("{tag}: a new image has a tag, not a digest");
            }
            targets.push(place);
        }
        let mut places = Vec::new();
        for source in &self.sources {
            places.push(Place::parse(source)?);
        }
        let mut layouts = BTreeMap::new();
        // A layout that is written may be read too.
        for (places, writable) in [(&places, false), (&targets, true)] {
            for place in places {
                if let Place::Layout { folder, .. } = place {
                    let folder = folder.clone();
                    let name = folder.display().to_string();
                    layouts.insert(name, LayoutFolder { folder, writable });
                }
            }
        }
        let reader = Reader::new(connection, true, layouts).await?;
        let mut sources = Vec::new();
        let appended: Vec<&Place> =
            if self.append { targets.iter().take(1).collect() } else { Vec::new() };
        let mut roots = Vec::new();
        for place in appended.into_iter().chain(&places) {
            let root = reader.root(place).await?;
            self.add(&reader, place, &root, &mut sources).await?;
            roots.push((root, place));
        }
        for file in &self.file {
            let text = std::fs::read(file).with_context(|| format!("read {}", file.display()))?;
            let descriptor: Descriptor = serde_json::from_slice(&text)
                .with_context(|| format!("{}: not a descriptor", file.display()))?;
            let place = targets.first().cloned();
            let place = place.context("descriptors from files need --tag")?;
            sources.push(Source { descriptor, place });
        }
        if sources.is_empty() {
            bail!("no source has a platform that was asked for");
        }
        let single = roots.len() == 1
            && self.file.is_empty()
            && self.annotation.is_empty()
            && self.platform.is_empty();
        let (kind, body) = match &roots[..] {
            // One image as it is is a copy.
            [(root, _)]
                if single
                    && (media::is_index(&root.descriptor.media_type) || !self.prefer_index) =>
            {
                (root.descriptor.media_type.clone(), root.body.clone())
            }
            _ => self.index(&sources)?,
        };
        if self.dry_run {
            println!("{}", String::from_utf8_lossy(&body));
            return Ok(ExitCode::SUCCESS);
        }
        let (client, logins) = reader.daemon()?;
        for target in &targets {
            for source in &sources {
                let request = CopyRequest {
                    session: logins.session(),
                    source: source.place.repository(),
                    target: target.repository(),
                    descriptor: base::gojson::to_vec(&source.descriptor).into(),
                };
                let fail = refused("failed to copy");
                client.registries().copy(request).await.map_err(fail)?;
            }
            let name = match target {
                Place::Registry(reference) => {
                    let request = PutManifestRequest {
                        session: logins.session(),
                        reference: reference.to_string(),
                        media_type: kind.clone(),
                        body: body.clone().into(),
                    };
                    let answer = client.registries().put_manifest(request).await;
                    answer.map_err(refused("failed to push"))?;
                    reference.to_string()
                }
                Place::Layout { folder, tag, .. } => {
                    put_in_layout(folder, tag.as_deref().unwrap_or("latest"), &kind, &body)?;
                    target.repository()
                }
            };
            println!("{name}@{}", Digest::of(&body));
        }
        Ok(ExitCode::SUCCESS)
    }

    /// Adds what an image stands for: the members of an index, or a manifest with its platform.
    async fn add(
        &self,
        reader: &Reader,
        place: &Place,
        root: &Fetched,
        sources: &mut Vec<Source>,
    ) -> anyhow::Result<()> {
        let wanted: Vec<Platform> =
            self.platform.iter().map(|text| Platform::parse(text)).collect::<Result<_, _>>()?;
        let members = if media::is_index(&root.descriptor.media_type) {
            Index::parse(&place.repository(), &root.body)?.manifests
        } else {
            let mut descriptor = root.descriptor.clone();
            let config = config_of(reader, place, root).await?;
            if let Ok(config) = serde_json::from_value::<oci::ImageConfig>(config)
                && !config.os.is_empty()
            {
                descriptor.platform = Some(config.platform());
            }
            vec![descriptor]
        };
        let suits = |descriptor: &Descriptor| match &descriptor.platform {
            _ if wanted.is_empty() => true,
            Some(platform) => wanted.iter().any(|it| platform.normalize().matches(&it.normalize())),
            None => false,
        };
        let chosen: Vec<Digest> =
            members.iter().filter(|it| suits(it)).map(|it| it.digest).collect();
        for descriptor in members {
            // Statements go with what they are about.
            let about = descriptor.annotations.get(select::ANNOTATION_REFERENCE_DIGEST);
            let about_chosen =
                about.is_some_and(|about| chosen.iter().any(|it| it.to_string() == *about));
            if !chosen.contains(&descriptor.digest) && !about_chosen {
                continue;
            }
            if sources.iter().any(|known| known.descriptor.digest == descriptor.digest) {
                continue;
            }
            sources.push(Source { descriptor, place: place.clone() });
        }
        Ok(())
    }

    fn index(&self, sources: &[Source]) -> anyhow::Result<(String, Vec<u8>)> {
        // Docker's list only if all members are docker's and nothing needs OCI's.
        let docker = sources.iter().all(|it| it.descriptor.media_type == media::DOCKER_MANIFEST)
            && self.annotation.is_empty();
        let members = sources.iter().map(|source| source.descriptor.clone()).collect();
        let mut index = Index::new(!docker, members);
        for text in &self.annotation {
            let (key, value) = text
                .split_once('=')
                .with_context(|| format!("invalid annotation {text:?}: expected KEY=VALUE"))?;
            let (kind, key) = match key.split_once(':') {
                Some((kind, key))
                    if kind == "index"
                        || kind == "manifest"
                        || kind.starts_with("manifest-descriptor") =>
                {
                    (kind, key)
                }
                _ => ("manifest-descriptor", key),
            };
            let platform = kind.strip_prefix("manifest-descriptor[");
            let platform = platform.and_then(|rest| rest.strip_suffix(']'));
            let platform = platform.map(Platform::parse).transpose()?;
            match kind {
                "index" => _ = index.annotations.insert(key.to_owned(), value.to_owned()),
                "manifest" => bail!(
                    "annotation {text:?}: manifests cannot be changed here, use index: or \
                     manifest-descriptor:"
                ),
                _ => {
                    for member in &mut index.manifests {
                        let suits = platform.as_ref().is_none_or(|wanted| {
                            member
                                .platform
                                .as_ref()
                                .is_some_and(|it| it.normalize().matches(&wanted.normalize()))
                        });
                        if suits {
                            member.annotations.insert(key.to_owned(), value.to_owned());
                        }
                    }
                }
            }
        }
        Ok((index.media_type.clone(), index.to_json()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places() {
        let show = |text: &str| match Place::parse(text).unwrap() {
            Place::Registry(reference) => reference.to_string(),
            Place::Layout { folder, tag, digest } => {
                format!("{} {tag:?} {}", folder.display(), digest.is_some())
            }
        };
        assert_eq!(show("app"), "docker.io/library/app:latest");
        assert_eq!(show("oci-layout:///a/b:1.0"), "/a/b Some(\"1.0\") false");
        assert_eq!(show("oci-layout://out"), "out None false");
        let digest = Digest::of("x");
        assert_eq!(show(&format!("oci-layout://out@{digest}")), "out None true");
    }
}
