//! The main context: local, Git, HTTP, or an input.

use frontend_api::{Bridge, FileRange, RefHandle};
use llb::build::{Copy, CopyFrom, FileAction, Graph, Meta, Output, Source};
use llb::pb;

use super::{CONTEXT, marshal, solve};
use crate::error::{Error, Kind, Result};
use crate::git::GitRef;
use crate::options::Options;
use crate::text;

/// File name of a downloaded context.
const DOWNLOAD: &str = "context";

/// Bytes that decide whether a download is an archive.
const HEADER: u64 = 1024;

/// Where the build context and the Dockerfile are.
pub struct MainContext {
    /// Set if the context is not local.
    pub source: Option<MainSource>,
    /// Set if the Dockerfile is in another tree than a local folder.
    dockerfile: Option<MainSource>,
    /// Path of the Dockerfile.
    pub filename: String,
    /// Local folder of the Dockerfile.
    pub dockerfile_local: String,
    /// The download of an HTTP context.
    pub download: Option<RefHandle>,
}

/// A tree that is not a local folder; it can be added to any graph.
#[derive(Debug, Clone)]
pub struct MainSource {
    tree: Tree,
    /// Only this folder of it.
    subdir: Option<String>,
}

#[derive(Debug, Clone)]
enum Tree {
    /// A Git repository or a downloaded file.
    Source { source: Source, name: String },
    /// An unpacked download.
    Archive { source: Source },
    /// Given by the client.
    Input(pb::Definition),
}

const DOWNLOAD_NAME: &str = "[internal] load remote build context";

impl MainContext {
    /// Finds out which kind of context the options name.
    pub async fn find(bridge: &dyn Bridge, options: &Options) -> Result<Self> {
        let key = options.get("contextkey").unwrap_or(CONTEXT);
        let mut context = Self {
            source: None,
            dockerfile: None,
            filename: options.filename.clone().unwrap_or_else(|| "Dockerfile".to_owned()),
            dockerfile_local: options.get("dockerfilekey").unwrap_or("dockerfile").to_owned(),
            download: None,
        };
        let local_dockerfile = options.get("dockerfilekey").is_some();
        let url = options.get(key).unwrap_or_default();
        if let Some(tree) = git_tree(url, options)? {
            context.source = Some(MainSource { tree, subdir: None });
            context.dockerfile = context.source.clone();
        } else if url.starts_with("http://") || url.starts_with("https://") {
            context.download(bridge, url).await?;
        } else {
            let mut inputs = super::inputs(bridge).await?;
            let mut take = |name: &str| {
                let tree = inputs.remove(name).map(Tree::Input)?;
                Some(MainSource { tree, subdir: None })
            };
            if !local_dockerfile {
                context.dockerfile = take("dockerfile");
            }
            context.source = take(CONTEXT);
        }
        if local_dockerfile {
            context.dockerfile = None;
        }
        if let (Some(source), Some(subdir)) = (&mut context.source, options.get("contextsubdir")) {
            source.subdir = Some(subdir.to_owned());
        }
        Ok(context)
    }

    async fn download(&mut self, bridge: &dyn Bridge, url: &str) -> Result<()> {
        let source = Source::http(url, DOWNLOAD, "");
        let mut graph = Graph::new();
        let output = graph.source(source.clone(), Meta::named(DOWNLOAD_NAME));
        let words = || format!("downloading the context {url}");
        let found = solve(bridge, marshal(&graph, Some(output))?, false).await;
        let found = found.map_err(|error| error.context(words()))?;
        let range = Some(FileRange { offset: 0, length: HEADER });
        let header = bridge.read_file(&found, DOWNLOAD, range).await;
        let header = header.map_err(|error| Error::bridge(error).context(words()))?;
        let tree = if is_archive(&header) {
            Tree::Archive { source }
        } else {
            self.filename = DOWNLOAD.to_owned();
            Tree::Source { source, name: DOWNLOAD_NAME.to_owned() }
        };
        self.source = Some(MainSource { tree, subdir: None });
        self.dockerfile = self.source.clone();
        self.download = Some(found);
        Ok(())
    }

    /// Where the Dockerfile is, if not in a local folder.
    pub(super) fn dockerfile_source(&self) -> Option<&MainSource> {
        self.dockerfile.as_ref()
    }
}

fn git_tree(url: &str, options: &Options) -> Result<Option<Tree>> {
    let Some(git) = GitRef::parse(url)? else { return Ok(None) };
    let mut wanted = git.options();
    let keep = options.get("build-arg:BUILDKIT_CONTEXT_KEEP_GIT_DIR").and_then(text::parse_bool);
    wanted.keep_git_dir |= keep == Some(true);
    let epoch = options.get("build-arg:SOURCE_DATE_EPOCH").is_some_and(|value| !value.is_empty());
    if epoch && wanted.mtime.is_empty() {
        wanted.mtime = "commit".to_owned();
    }
    let name = format!("[internal] load git source {url}");
    Ok(Some(Tree::Source { source: Source::git(&wanted), name }))
}

impl MainSource {
    /// A source with a progress name.
    pub fn from_source(source: Source, name: String) -> Self {
        Self { tree: Tree::Source { source, name }, subdir: None }
    }

    /// A graph given by the client.
    pub fn from_input(definition: pb::Definition) -> Self {
        Self { tree: Tree::Input(definition), subdir: None }
    }

    /// Adds the tree to a graph.
    pub fn add_to(&self, graph: &mut Graph) -> Result<Option<Output>> {
        let output = match &self.tree {
            Tree::Source { source, name } => {
                Some(graph.source(source.clone(), Meta::named(name.clone())))
            }
            Tree::Archive { source } => {
                let download = graph.source(source.clone(), Meta::named(DOWNLOAD_NAME));
                let copy = Copy {
                    from: CopyFrom::Output(download),
                    src: format!("/{DOWNLOAD}"),
                    dest: "/".to_owned(),
                    attempt_unpack: true,
                    ..Copy::default()
                };
                Some(graph.file(None, vec![FileAction::Copy(copy)], Meta::default()))
            }
            Tree::Input(definition) => graph
                .import(definition)
                .map_err(|error| Error::new(Kind::ContextInput, [error.to_string()]))?,
        };
        let Some(subdir) = &self.subdir else { return Ok(output) };
        let copy = Copy {
            from: output.into(),
            src: subdir.clone(),
            dest: "/".to_owned(),
            dir_copy_contents: true,
            ..Copy::default()
        };
        Ok(Some(graph.file(None, vec![FileAction::Copy(copy)], Meta::default())))
    }

    /// The one source of the tree, for questions about its time.
    pub fn source_op(&self) -> Result<Option<pb::SourceOp>> {
        use prost::Message as _;
        let mut graph = Graph::new();
        let output = self.add_to(&mut graph)?;
        let definition = marshal(&graph, output)?;
        let ops = definition.def.iter().filter_map(|bytes| pb::Op::decode(bytes.clone()).ok());
        let mut sources = ops.filter_map(|op| match op.op {
            Some(pb::op::Op::Source(source)) => Some(source),
            _ => None,
        });
        let first = sources.next();
        Ok(first.filter(|_| sources.next().is_none()))
    }
}

/// Whether a file begins like a compressed archive or a tar.
fn is_archive(header: &[u8]) -> bool {
    let magics: [&[u8]; 3] = [b"BZh", b"\x1f\x8b\x08", b"\xfd7zXZ\0"];
    if magics.iter().any(|magic| header.starts_with(magic)) {
        return true;
    }
    let Some(block) = header.get(..512) else { return false };
    let header = tar::Header::from_byte_slice(block);
    let sum = block
        .iter()
        .enumerate()
        .map(|(at, byte)| if (148..156).contains(&at) { 32 } else { u32::from(*byte) })
        .sum::<u32>();
    block.iter().any(|byte| *byte != 0) && header.cksum().is_ok_and(|known| known == sum)
}
