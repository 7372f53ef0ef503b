//! `images`, `tag`, `rmi`: the daemon's image store, printed as docker prints it.

use std::{collections::BTreeMap, process::ExitCode};

use anyhow::{Context as _, bail};
use clap::Args;
use client::Client;
use proto::rbuild::v1::{Image, ListImagesRequest, RemoveImageRequest, TagImageRequest};
use serde_json::Value;

use super::{
    docker_only::{DockerOnly, Flag, docker_only},
    filters::PruneFilters,
    refused,
};
use crate::{
    connection::ConnectionArgs,
    format::{Format, eval::sorted},
    table::Table,
    text,
};

/// List images
#[derive(Args, Debug)]
pub struct ImagesArgs {
    /// Only images of this repository, or this one
    #[arg(value_name = "REPOSITORY[:TAG]")]
    repository: Option<String>,
    /// Accepted for scripts: there are no hidden images
    #[arg(long, short = 'a')]
    all: bool,
    /// Print ids only
    #[arg(long, short = 'q')]
    quiet: bool,
    /// Print digests too
    #[arg(long)]
    digests: bool,
    /// Do not shorten ids
    #[arg(long)]
    no_trunc: bool,
    /// Only images with: dangling=BOOL, reference=PATTERN, label=KEY[=VALUE], before=IMAGE,
    /// since=IMAGE, until=24h
    #[arg(long, short = 'f', value_name = "FILTER")]
    filter: Vec<String>,
    /// table TEMPLATE, json, or a template such as '{{.Repository}}:{{.Tag}}'
    #[arg(long, value_name = "FORMAT")]
    format: Option<String>,
    /// Show the platforms of each image
    #[arg(long)]
    tree: bool,
}

/// An image's name the way docker's table splits it.
struct Name {
    repository: String,
    tag: String,
}

fn none() -> String {
    "<none>".to_owned()
}

fn name_of(image: &Image) -> Name {
    match oci::Reference::parse(&image.name) {
        Ok(name) => Name {
            repository: name.familiar_repository(),
            tag: name.tag().map_or_else(none, str::to_owned),
        },
        Err(_) => Name { repository: none(), tag: none() },
    }
}

/// Docker's id of an image: the digest of its config.
pub fn id_of(image: &Image) -> &str {
    if image.config_digest.is_empty() { &image.digest } else { &image.config_digest }
}

/// The first twelve hex digits.
pub fn short(digest: &str) -> String {
    digest.strip_prefix("sha256:").unwrap_or(digest).chars().take(12).collect()
}

/// One `--filter`.
enum Filter {
    Dangling(bool),
    Reference(Vec<String>),
    Label(String),
    Before((i64, i32)),
    Since((i64, i32)),
}

fn created(image: &Image) -> (i64, i32) {
    image.created.map_or((0, 0), |at| (at.seconds, at.nanos))
}

fn filters(texts: &[String], images: &[Image]) -> anyhow::Result<Vec<Filter>> {
    let mut filters = Vec::new();
    let mut references = Vec::new();
    for text in texts {
        let (key, value) = text
            .split_once('=')
            .with_context(|| format!("invalid filter '{text}': expected KEY=VALUE"))?;
        let other = || {
            let found = images.iter().find(|image| {
                let Name { repository, tag } = name_of(image);
                let hex = value.strip_prefix("sha256:").unwrap_or(value);
                familiar(&image.name) == value
                    || repository == value && tag == "latest"
                    || hex.len() >= 4 && short_hex(id_of(image)).starts_with(hex)
            });
            found.map(created).with_context(|| format!("No such image: {value}"))
        };
        filters.push(match key {
            "dangling" => Filter::Dangling(
                crate::csv::parse_bool(value)
                    .with_context(|| format!("invalid filter 'dangling={value}'"))?,
            ),
            "reference" => {
                references.push(value.to_owned());
                continue;
            }
            "label" => Filter::Label(value.to_owned()),
            "before" => Filter::Before(other()?),
            "since" => Filter::Since(other()?),
            "until" => {
                let at = super::containers::point(value)?;
                Filter::Before((at.seconds, at.nanos))
            }
            key => bail!(
                "invalid filter '{key}': use dangling, reference, label, before, since or until"
            ),
        });
    }
    // References are alternatives, all else has to hold at once.
    if !references.is_empty() {
        filters.push(Filter::Reference(references));
    }
    Ok(filters)
}

fn short_hex(digest: &str) -> &str {
    digest.strip_prefix("sha256:").unwrap_or(digest)
}

impl Filter {
    fn holds(&self, image: &Image) -> bool {
        match self {
            Self::Dangling(wanted) => image.name.is_empty() == *wanted,
            Self::Reference(patterns) => {
                let Name { repository, tag } = name_of(image);
                let whole = format!("{repository}:{tag}");
                patterns.iter().any(|pattern| {
                    matches(pattern, &repository)
                        || matches(pattern, &whole)
                        || matches(pattern, &image.name)
                })
            }
            Self::Label(text) => has_label(&image.labels, text),
            Self::Before(at) => created(image) < *at,
            Self::Since(at) => created(image) > *at,
        }
    }
}

/// `KEY` or `KEY=VALUE`.
pub fn has_label(labels: &BTreeMap<String, String>, text: &str) -> bool {
    match text.split_once('=') {
        Some((key, value)) => labels.get(key).is_some_and(|found| found == value),
        None => labels.contains_key(text),
    }
}

/// Shell patterns: `*` and `?` stop at slashes, `[…]` is a set.
pub fn matches(pattern: &str, text: &str) -> bool {
    fn inner(pattern: &[char], text: &[char]) -> bool {
        match pattern {
            [] => text.is_empty(),
            ['*', rest @ ..] => {
                let reach = text.iter().take_while(|c| **c != '/').count();
                (0..=reach).any(|skip| inner(rest, &text[skip..]))
            }
            ['?', rest @ ..] => text.first().is_some_and(|c| *c != '/') && inner(rest, &text[1..]),
            ['[', rest @ ..] => {
                let Some(end) = rest.iter().skip(1).position(|c| *c == ']') else { return false };
                let (set, rest) = (&rest[..=end], &rest[end + 2..]);
                let (negated, set) = match set {
                    ['^' | '!', set @ ..] => (true, set),
                    set => (false, set),
                };
                let Some(c) = text.first() else { return false };
                let within = set.contains(c)
                    || set.windows(3).any(|it| it[1] == '-' && (it[0]..=it[2]).contains(c));
                within != negated && inner(rest, &text[1..])
            }
            ['\\', c, rest @ ..] | [c, rest @ ..] => {
                text.first() == Some(c) && inner(rest, &text[1..])
            }
        }
    }
    let chars = |text: &str| text.chars().collect::<Vec<_>>();
    inner(&chars(pattern), &chars(text))
}

const HEADER: [(&str, &str); 12] = [
    ("ID", "IMAGE ID"),
    ("Repository", "REPOSITORY"),
    ("Tag", "TAG"),
    ("Digest", "DIGEST"),
    ("CreatedSince", "CREATED"),
    ("CreatedAt", "CREATED AT"),
    ("Size", "SIZE"),
    ("Containers", "CONTAINERS"),
    ("VirtualSize", "SIZE"),
    ("SharedSize", "SHARED SIZE"),
    ("UniqueSize", "UNIQUE SIZE"),
    ("Labels", "LABELS"),
];

impl ImagesArgs {
    /// Prints the table.
    pub async fn run(&self, connection: &ConnectionArgs) -> anyhow::Result<ExitCode> {
        let format = self.format.as_deref().filter(|format| *format != "table");
        let format = format.map(Format::parse).transpose()?;
        let mut service = connection.connect().await?.images();
        let answer = service.list(ListImagesRequest { all: self.all }).await;
        let mut images = answer.map_err(refused("failed to list images"))?.into_inner().images;
        let mut texts = self.filter.clone();
        if let Some(wanted) = &self.repository {
            // As written, or completed.
            let name = oci::Reference::parse(wanted);
            let shown = name.map_or_else(|_| wanted.clone(), |name| name.familiar());
            texts.push(format!("reference={shown}"));
        }
        let filters = filters(&texts, &images)?;
        images.retain(|image| filters.iter().all(|filter| filter.holds(image)));
        images.sort_by(|a, b| created(b).cmp(&created(a)).then_with(|| a.name.cmp(&b.name)));
        let id = |image: &Image| {
            if self.no_trunc { id_of(image).to_owned() } else { short(id_of(image)) }
        };
        if self.quiet {
            // Docker lists an image once for each of its names, too.
            images.iter().for_each(|image| println!("{}", id(image)));
            return Ok(ExitCode::SUCCESS);
        }
        if let Some(format) = format {
            let rows: Vec<Value> =
                images.iter().map(|image| image_json(image, id(image))).collect();
            print!("{}", format.rows(&HEADER, &rows)?);
            return Ok(ExitCode::SUCCESS);
        }
        print!("{}", if self.tree { tree(&images) } else { self.table(&images, id) });
        Ok(ExitCode::SUCCESS)
    }

    fn table(&self, images: &[Image], id: impl Fn(&Image) -> String) -> String {
        let age = |image: &Image| image.created.as_ref().map_or("N/A".into(), text::ago);
        let size = |image: &Image| text::docker_size(image.size);
        let mut table = if self.digests {
            Table::new(["REPOSITORY", "TAG", "DIGEST", "IMAGE ID", "CREATED", "SIZE"])
        } else {
            Table::new(["REPOSITORY", "TAG", "IMAGE ID", "CREATED", "SIZE"])
        };
        for image in images {
            let Name { repository, tag } = name_of(image);
            if self.digests {
                let digest = image.digest.clone();
                table.row([repository, tag, digest, id(image), age(image), size(image)]);
            } else {
                table.row([repository, tag, id(image), age(image), size(image)]);
            }
        }
        table.text()
    }
}

/// Images with their platforms below them; the names of one image together.
fn tree(images: &[Image]) -> String {
    let mut groups: Vec<(&Image, Vec<String>)> = Vec::new();
    for image in images {
        let name = if image.name.is_empty() { "<untagged>".into() } else { familiar(&image.name) };
        match groups.iter_mut().find(|(known, _)| known.digest == image.digest) {
            Some((_, names)) => names.push(name),
            None => groups.push((image, vec![name])),
        }
    }
    let mut table = Table::new(["IMAGE", "ID", "DISK USAGE", "CONTENT SIZE", "EXTRA"]);
    for (image, names) in groups {
        let members: Vec<_> = image.members.iter().filter(|member| !member.attestation).collect();
        let here = members.iter().filter(|member| member.complete);
        let content: i64 = here.clone().map(|member| member.content_size).sum();
        let used: i64 = here.map(|member| member.size).sum();
        table.row([
            names.join(", "),
            short(&image.digest),
            text::docker_size(used + content),
            text::docker_size(content),
            if image.containers > 0 { "U".into() } else { String::new() },
        ]);
        for (at, member) in members.iter().enumerate() {
            let branch = if at + 1 == members.len() { "└─" } else { "├─" };
            let platform = member.platform.as_ref().map(|platform| {
                base::Platform::new(&platform.os, &platform.architecture).format()
                    + &Some(&platform.variant)
                        .filter(|variant| !variant.is_empty())
                        .map(|variant| format!("/{variant}"))
                        .unwrap_or_default()
            });
            let (used, content) = match member.complete {
                true => (
                    text::docker_size(member.size + member.content_size),
                    text::docker_size(member.content_size),
                ),
                false => ("0B".into(), "0B".into()),
            };
            table.row([
                format!("{branch} {}", platform.unwrap_or_default()),
                short(&member.digest),
                used,
                content,
                String::new(),
            ]);
        }
    }
    table.text()
}

/// `a=b,c=d`, as docker's tables have it.
pub fn labels_text(labels: &BTreeMap<String, String>) -> String {
    labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",")
}

fn image_json(image: &Image, id: String) -> Value {
    let Name { repository, tag } = name_of(image);
    let at = image.created.as_ref();
    sorted([
        ("Repository", repository.into()),
        ("Tag", tag.into()),
        ("Digest", image.digest.clone().into()),
        ("ID", id.into()),
        ("CreatedAt", at.map(text::docker_time).into()),
        ("CreatedSince", at.map(text::ago).into()),
        ("Size", text::docker_size(image.size).into()),
        ("VirtualSize", text::docker_size(image.size).into()),
        ("Containers", image.containers.to_string().into()),
        ("SharedSize", "N/A".into()),
        ("UniqueSize", "N/A".into()),
        ("Labels", labels_text(&image.labels).into()),
    ])
}

/// Give an image another name
#[derive(Args, Debug)]
pub struct TagArgs {
    /// Image to name
    source: String,
    /// Its new name
    target: String,
}

impl TagArgs {
    /// Adds the name.
    pub async fn run(&self, connection: &ConnectionArgs) -> anyhow::Result<ExitCode> {
        let target = oci::Reference::parse(&self.target)
            .with_context(|| {
                format!("Error parsing reference: {:?} is not a valid repository/tag", self.target)
            })?
            .with_default_tag()
            .to_string();
        let mut service = connection.connect().await?.images();
        let request = TagImageRequest { source: self.source.clone(), target };
        service.tag(request).await.map_err(refused("failed to tag the image"))?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Remove images
#[derive(Args, Debug)]
pub struct RmiArgs {
    /// Names or ids
    #[arg(required = true, value_name = "IMAGE")]
    images: Vec<String>,
    /// Remove all names of an id, even if containers that ended use it
    #[arg(long, short = 'f')]
    force: bool,
    /// Accepted for scripts: layers go when nothing needs them
    #[arg(long, hide = true)]
    no_prune: bool,
    #[command(flatten)]
    docker_only: DockerOnly<RmiOnly>,
}

docker_only! { RmiOnly:
    Flag::value("platform", "an image goes with all of its platforms; pull the others again"),
}

impl RmiArgs {
    /// Prints what was untagged and deleted; goes on after a failure.
    pub async fn run(&self, connection: &ConnectionArgs) -> anyhow::Result<ExitCode> {
        self.docker_only.check()?;
        let mut service = connection.connect().await?.images();
        let mut code = ExitCode::SUCCESS;
        for reference in &self.images {
            let request = RemoveImageRequest { reference: reference.clone(), force: self.force };
            match service.remove(request).await {
                Ok(answer) => {
                    let answer = answer.into_inner();
                    answer.untagged.iter().for_each(|name| println!("Untagged: {name}"));
                    answer.deleted.iter().for_each(|digest| println!("Deleted: {digest}"));
                }
                Err(status) if self.force && status.code() == tonic::Code::NotFound => {
                    eprintln!("error: {}", status.message());
                }
                Err(status) => {
                    eprintln!("error: {:#}", refused("failed to remove the image")(status));
                    code = ExitCode::FAILURE;
                }
            }
        }
        Ok(code)
    }
}

/// Remove unused images
#[derive(Args, Debug)]
pub struct ImagePruneArgs {
    /// Remove all images that no container uses, not only those without a name
    #[arg(long, short = 'a')]
    all: bool,
    /// Do not ask
    #[arg(long, short = 'f')]
    force: bool,
    /// Only images with: until=24h, label=KEY[=VALUE], label!=KEY[=VALUE], dangling=BOOL
    #[arg(long, value_name = "FILTER")]
    filter: Vec<String>,
}

impl ImagePruneArgs {
    /// Removes images; their blobs go with the next collection.
    pub async fn run(&self, connection: &ConnectionArgs) -> anyhow::Result<ExitCode> {
        let filters = PruneFilters::of_images(&self.filter)?;
        let all = self.all || filters.dangling == Some(false);
        let what = match all {
            true => "all images without at least one container associated to them",
            false => "all dangling images",
        };
        if !self.force && !super::confirm(&format!("WARNING! This will remove {what}."))? {
            return Ok(ExitCode::SUCCESS);
        }
        let client = connection.connect().await?;
        let (lines, freed) = prune(&client, all, &filters).await?;
        if !lines.is_empty() {
            println!("Deleted Images:\n{}\n", lines.join("\n"));
        }
        println!("Total reclaimed space: {}", text::docker_size(freed));
        Ok(ExitCode::SUCCESS)
    }
}

/// Removes images that no container uses, those with a name only with `all`; what to print of
/// them, and their size.
pub async fn prune(
    client: &Client,
    all: bool,
    filters: &PruneFilters,
) -> anyhow::Result<(Vec<String>, i64)> {
    let mut service = client.images();
    let fail = refused("failed to remove images");
    let answer = service.list(ListImagesRequest { all: true }).await.map_err(&fail)?;
    let (mut lines, mut freed) = (Vec::new(), 0);
    for image in answer.into_inner().images {
        let wanted = all || image.name.is_empty();
        if image.containers > 0 || !wanted || !filters.hold(created(&image), &image.labels) {
            continue;
        }
        let reference = match image.name.as_str() {
            "" => id_of(&image).to_owned(),
            name => name.to_owned(),
        };
        let removed = service.remove(RemoveImageRequest { reference, force: false }).await;
        let Ok(answer) = removed else { continue };
        let answer = answer.into_inner();
        lines.extend(answer.untagged.iter().map(|name| format!("untagged: {name}")));
        lines.extend(answer.deleted.iter().map(|digest| format!("deleted: {digest}")));
        if !answer.deleted.is_empty() {
            freed += image.size;
        }
    }
    Ok((lines, freed))
}

/// A full name the way people write it.
pub fn familiar(name: &str) -> String {
    oci::Reference::parse(name).map_or_else(|_| name.to_owned(), |name| name.familiar())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        for (pattern, text, expected) in [
            ("app", "app", true),
            ("app:*", "app:1.0", true),
            ("*", "team/app", false),
            ("*/app", "team/app", true),
            ("a?p", "app", true),
            ("[a-c]pp", "app", true),
            ("[!a]pp", "app", false),
        ] {
            assert_eq!(matches(pattern, text), expected, "{pattern} {text}");
        }
    }

    #[test]
    fn filters_hold() {
        let image = |name: &str, at: i64| Image {
            name: name.into(),
            created: Some(prost_types::Timestamp { seconds: at, nanos: 0 }),
            labels: [("k".to_owned(), "v".to_owned())].into(),
            ..Image::default()
        };
        let images = [
            image("docker.io/library/a:1", 1),
            image("docker.io/library/b:latest", 2),
            image("", 3),
        ];
        let shown = |texts: &[&str]| {
            let texts: Vec<String> = texts.iter().map(|text| (*text).to_owned()).collect();
            let filters = match filters(&texts, &images) {
                Ok(filters) => filters,
                Err(error) => return error.to_string(),
            };
            let kept = images.iter().filter(|image| filters.iter().all(|it| it.holds(image)));
            kept.map(|image| familiar(&image.name)).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(shown(&["dangling=true"]), "");
        assert_eq!(shown(&["dangling=false"]), "a:1 b:latest");
        assert_eq!(shown(&["reference=a", "reference=b"]), "a:1 b:latest");
        assert_eq!(shown(&["before=b"]), "a:1");
        assert_eq!(shown(&["since=a:1", "label=k=v", "dangling=0"]), "b:latest");
        assert_eq!(shown(&["label=other"]), "");
        assert_eq!(shown(&["until=1970-01-01T00:00:02"]), "a:1");
        assert_eq!(shown(&["before=z"]), "No such image: z");
        assert!(shown(&["colour=red"]).starts_with("invalid filter 'colour'"));
    }
}
