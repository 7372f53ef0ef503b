//! `images`, `tag`, `rmi`: the daemon's image store, printed as docker prints it.

use std::process::ExitCode;

use clap::Args;
use proto::rbuild::v1::{Image, ListImagesRequest, RemoveImageRequest, TagImageRequest};
use serde_json::{Value, json};

use super::refused;
use crate::{connection::ConnectionArgs, format::Format, table::Table, text};

/// List images
#[derive(Args, Debug)]
pub struct ImagesArgs {
    /// Only images of this repository, or this one
    #[arg(value_name = "REPOSITORY[:TAG]")]
    repository: Option<String>,
    /// Also images without a name
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
    /// Print each image with a template, e.g. json or '{{.Repository}}:{{.Tag}}'
    #[arg(long, value_name = "TEMPLATE")]
    format: Option<String>,
}

/// An image's name the way docker's table splits it.
struct Name {
    repository: String,
    tag: String,
}

fn name_of(image: &Image) -> Name {
    let none = || "<none>".to_owned();
    match oci::Reference::parse(&image.name) {
        Ok(name) => {
            let tag = name.tag().map_or_else(none, str::to_owned);
            let familiar = name.familiar();
            let tail = name.tag().map(|tag| format!(":{tag}")).unwrap_or_default();
            let without_digest = familiar.split('@').next().unwrap_or(&familiar);
            let repository = without_digest.strip_suffix(&tail).unwrap_or(without_digest);
            Name { repository: repository.to_owned(), tag }
        }
        Err(_) => Name { repository: none(), tag: none() },
    }
}

fn id_of(image: &Image) -> &str {
    if image.config_digest.is_empty() { &image.digest } else { &image.config_digest }
}

/// The first twelve hex digits.
pub fn short(digest: &str) -> String {
    digest.strip_prefix("sha256:").unwrap_or(digest).chars().take(12).collect()
}

impl ImagesArgs {
    /// Prints the table.
    pub async fn run(&self, connection: &ConnectionArgs) -> anyhow::Result<ExitCode> {
        let format = self.format.as_deref().map(Format::parse).transpose()?;
        let mut service = connection.connect().await?.images();
        let answer = service.list(ListImagesRequest { all: self.all }).await;
        let mut images = answer.map_err(refused("failed to list images"))?.into_inner().images;
        if let Some(wanted) = &self.repository {
            images.retain(|image| {
                let Name { repository, tag } = name_of(image);
                *wanted == repository || *wanted == format!("{repository}:{tag}")
            });
        }
        let created = |image: &Image| image.created.map_or(0, |at| at.seconds);
        images.sort_by(|a, b| created(b).cmp(&created(a)).then_with(|| a.name.cmp(&b.name)));
        let id = |image: &Image| {
            if self.no_trunc { id_of(image).to_owned() } else { short(id_of(image)) }
        };
        if let Some(format) = format {
            for image in &images {
                println!("{}", format.apply(&image_json(image, id(image)))?);
            }
            return Ok(ExitCode::SUCCESS);
        }
        if self.quiet {
            images.iter().for_each(|image| println!("{}", id(image)));
            return Ok(ExitCode::SUCCESS);
        }
        let age = |image: &Image| image.created.as_ref().map_or("N/A".into(), text::ago);
        let size = |image: &Image| text::docker_size(image.size);
        let mut table = if self.digests {
            Table::new(["REPOSITORY", "TAG", "DIGEST", "IMAGE ID", "CREATED", "SIZE"])
        } else {
            Table::new(["REPOSITORY", "TAG", "IMAGE ID", "CREATED", "SIZE"])
        };
        for image in &images {
            let Name { repository, tag } = name_of(image);
            if self.digests {
                let digest = image.digest.clone();
                table.row([repository, tag, digest, id(image), age(image), size(image)]);
            } else {
                table.row([repository, tag, id(image), age(image), size(image)]);
            }
        }
        print!("{}", table.text());
        Ok(ExitCode::SUCCESS)
    }
}

fn image_json(image: &Image, id: String) -> Value {
    let Name { repository, tag } = name_of(image);
    json!({
        "Repository": repository,
        "Tag": tag,
        "Digest": image.digest,
        "ID": id,
        "CreatedAt": image.created.as_ref().map(text::rfc3339),
        "CreatedSince": image.created.as_ref().map(text::ago),
        "Size": text::docker_size(image.size),
    })
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
        let target = oci::Reference::parse(&self.target)?.with_default_tag().to_string();
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
    /// Remove all names of an id, even if containers use it
    #[arg(long, short = 'f')]
    force: bool,
}

impl RmiArgs {
    /// Prints what was untagged and deleted; goes on after a failure.
    pub async fn run(&self, connection: &ConnectionArgs) -> anyhow::Result<ExitCode> {
        let mut service = connection.connect().await?.images();
        let mut code = ExitCode::SUCCESS;
        for reference in &self.images {
            let request = RemoveImageRequest { reference: reference.clone(), force: self.force };
            match service.remove(request).await.map_err(refused("failed to remove the image")) {
                Ok(answer) => {
                    let answer = answer.into_inner();
                    answer
                        .untagged
                        .iter()
                        .for_each(|name| println!("Untagged: {}", familiar(name)));
                    answer.deleted.iter().for_each(|digest| println!("Deleted: {digest}"));
                }
                Err(error) => {
                    eprintln!("error: {error:#}");
                    code = ExitCode::FAILURE;
                }
            }
        }
        Ok(code)
    }
}

/// A full name the way people write it.
pub fn familiar(name: &str) -> String {
    oci::Reference::parse(name).map_or_else(|_| name.to_owned(), |name| name.familiar())
}
