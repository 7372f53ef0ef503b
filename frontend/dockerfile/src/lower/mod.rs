//! From stages to a graph and an image config: the conversion.
//!
//! [`convert`] runs the phases on one file for one target platform. What has to be asked (image
//! configs, named contexts, ignore files) is asked first, stage by stage as it turns out to be
//! needed; then [`dispatch`] turns instructions into operations without asking anything.
//!
//! Source: Dockerfile notes §8–11. Invariant: stages are dispatched in table order, so a stage
//! can only use those before it.

mod arg;
mod base;
mod checks;
mod config;
mod copy;
mod dispatch;
mod env;
mod epoch;
mod expose;
mod global;
mod history;
mod mount;
mod names;
pub mod outline;
mod path;
mod run;
mod stage;
mod workdir;

use std::collections::BTreeMap;

use ::base::Platform;
use ::base::pattern::Patterns;
use llb::build::{FileId, Graph, MarshalError, MarshalOptions, Meta, Output, Source};
use llb::pb;

use crate::context::{Client, DockerfileSource};
use crate::error::{Case, Error, Kind, Lines, Result};
use crate::image::Image;
use crate::lint::{self, Linter, Rule};
use crate::shell::Lexer;
use crate::{instructions, parser};

pub use env::Env;
pub use history::Epoch;
use names::Naming;
use outline::{ArgInfo, Outline};
use stage::{Stage, StageId, Stages, Step};

/// Bytes of variables, commands and inline files that one graph may hold.
const MAX_WRITTEN: usize = 256 << 20;

/// What to convert a file for.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// The target platform; the build platform, chosen by the images used, if absent.
    pub platform: Option<Platform>,
    /// Convert all stages, not only those the target needs.
    pub all_stages: bool,
}

/// A converted file.
#[derive(Debug)]
pub struct Converted {
    graph: Graph,
    marshal: MarshalOptions,
    output: Option<Output>,
    /// The resulting image config.
    pub image: Image,
    /// The config of the image below, if there is one.
    pub base_image: Option<Image>,
    /// The fixed time.
    pub epoch: Option<Epoch>,
    /// Something that is scanned must not use caches.
    pub ignore_cache: bool,
    /// Further trees an SBOM scan looks at, by name.
    pub scans: BTreeMap<String, Option<Output>>,
    /// What the build can be given.
    pub outline: Outline,
}

impl Converted {
    /// The result as a definition.
    pub fn definition(&self) -> Result<pb::Definition> {
        write(&self.graph, self.output, &self.marshal)
    }

    /// The graph, the result in it, and how it is written.
    pub fn into_graph(self) -> (Graph, Option<Output>, MarshalOptions) {
        (self.graph, self.output, self.marshal)
    }
}

/// Writes a graph made from a Dockerfile.
pub fn write(
    graph: &Graph,
    output: Option<Output>,
    options: &MarshalOptions,
) -> Result<pb::Definition> {
    let definition = graph.marshal(output, options).map_err(|error| match error {
        MarshalError::NoArguments | MarshalError::NoDirectory => Error::plain(Kind::BadExec),
    })?;
    // Bytes that are not UTF-8 travel as characters of one range until here.
    let escape = |window: &[u8]| window[..2] == *b"\xf4\x8f" && window[2] >= 0xbe;
    if definition.def.iter().any(|op| op.windows(3).any(escape)) {
        return Err(Error::plain(Kind::InvalidUtf8));
    }
    Ok(definition)
}

/// Converts a file, noting what lint finds.
pub async fn convert(
    client: &Client,
    source: &DockerfileSource,
    request: &Request,
    linter: &mut Linter,
) -> Result<Converted> {
    if source.data.is_empty() {
        return Err(Error::plain(Kind::EmptyDockerfile));
    }
    let file = parser::parse(&source.data)?;
    for line in &file.empty_continuations {
        let (scope, message) = (linter.file_scope(), "Empty continuation line".to_owned());
        linter.report(&scope, Rule::NoEmptyContinuation, Lines::one(*line), message);
    }
    let program = instructions::parse(&file, linter)?;
    if program.stages.is_empty() {
        return Err(Error::plain(Kind::NoStages));
    }
    checks::stage_names(&program.stages, linter);
    checks::casing(&program.stages, linter);
    let mut lowering = Lowering::new(client, source, request, linter, Lexer::new(file.escape));
    lowering.read_globals(&program)?;
    lowering.resolve_epoch(&program.stages).await?;
    lowering.list_stages(program.stages)?;
    let target = lowering.target()?;
    lowering.link_stages()?;
    let reachable = lowering.resolve_stages(target).await?;
    let patterns = client.ignore_patterns().await?;
    lowering.dispatch_stages(&reachable, target, &patterns)?;
    lowering.finish(target, patterns)
}

/// The lint settings of a build.
pub fn lint_config(client: &Client, source: &[u8]) -> Result<lint::Config> {
    match &client.options.lint {
        Some(config) => Ok(config.clone()),
        None => lint::Config::of_file(source),
    }
}

/// One conversion under way.
struct Lowering<'a> {
    client: &'a Client,
    linter: &'a mut Linter,
    graph: Graph,
    file: FileId,
    lexer: Lexer,
    target: Platform,
    /// No target was asked for.
    implicit: bool,
    all_stages: bool,
    build_args: BTreeMap<String, String>,
    globals: Env,
    /// Global args, for the outline.
    global_args: BTreeMap<String, ArgInfo>,
    epoch: Option<Epoch>,
    proxy: Option<pb::ProxyEnv>,
    naming: Naming,
    stages: Stages,
    /// The build context; for a local one a placeholder until the paths used are known.
    context: Option<Output>,
    ignore: Option<Patterns>,
    /// Local named contexts whose paths are not known yet, with the stage that uses them.
    locals: Vec<(Output, crate::context::LocalFolder, StageId)>,
    written: usize,
}

impl<'a> Lowering<'a> {
    fn new(
        client: &'a Client,
        source: &DockerfileSource,
        request: &Request,
        linter: &'a mut Linter,
        lexer: Lexer,
    ) -> Self {
        let options = &client.options;
        let mut graph = Graph::new();
        let file = graph.add_source_file(source.info.clone());
        let build = &client.build_platforms[0];
        Self {
            client,
            linter,
            graph,
            file,
            lexer,
            target: request.platform.clone().unwrap_or_else(|| build.clone()),
            implicit: request.platform.is_none(),
            all_stages: request.all_stages,
            build_args: options.build_args.clone(),
            globals: Env::default(),
            global_args: BTreeMap::new(),
            epoch: None,
            proxy: proxy(&options.build_args),
            naming: Naming { platforms: options.multi_platform },
            stages: Stages::default(),
            context: None,
            ignore: None,
            locals: Vec::new(),
            written: 0,
        }
    }

    /// The target stage; the last one if none was asked for.
    fn target(&self) -> Result<StageId> {
        let name = &self.client.options.target;
        if name.is_empty() {
            return Ok(self.stages.len() - 1);
        }
        self.stages.find(name).ok_or_else(|| {
            let names = self.stages.names();
            let error = Error::new(Kind::TargetNotFound, [crate::text::quote(name)]);
            error.suggest(name, names.iter().map(String::as_str), Case::Sensitive)
        })
    }

    /// Finds out which stages take files from which.
    fn link_stages(&mut self) -> Result<()> {
        for id in 0..self.stages.len() {
            let listed = std::mem::take(&mut self.stages[id].source.instructions);
            for instruction in listed {
                let step = self.step(instruction)?;
                self.stages.depend(id, &step.sources, step.instruction.lines);
                self.stages[id].steps.push(step);
            }
        }
        self.stages.check_circles()?;
        if self.stages.len() == 1 {
            self.stages[0].name.clear();
        }
        Ok(())
    }

    /// An instruction with the stages it uses; images get a stage of their own.
    fn step(&mut self, instruction: instructions::Instruction) -> Result<Step> {
        use instructions::Command;
        let sources = match &instruction.command {
            Command::Copy(copy) if !copy.from.is_empty() => {
                vec![self.copy_source(&copy.from, instruction.lines)?]
            }
            Command::Run(run) => {
                let froms = run.mount_sources.iter();
                let froms = froms.map(|from| if from.is_empty() { "scratch" } else { from });
                froms.map(|from| self.stage_or_image(from, Lines::NOWHERE)).collect()
            }
            _ => Vec::new(),
        };
        Ok(Step { instruction, sources, onbuild: false })
    }

    fn copy_source(&mut self, from: &str, lines: Lines) -> Result<StageId> {
        if self.lexer.expand(from, &crate::shell::Empty)?.text != from {
            return Err(Error::plain(Kind::FromFlagVariable));
        }
        match from.parse::<i64>() {
            Ok(index) => self.stages.by_index(index),
            Err(_) => Ok(self.stage_or_image(from, lines)),
        }
    }

    fn stage_or_image(&mut self, from: &str, lines: Lines) -> StageId {
        self.stages.find(from).unwrap_or_else(|| {
            let source = instructions::Stage { base: from.to_owned(), lines, ..Default::default() };
            self.stages.add(Stage { source, unregistered: true, ..Stage::default() })
        })
    }

    fn dispatch_stages(
        &mut self,
        reachable: &[bool],
        target: StageId,
        patterns: &[String],
    ) -> Result<()> {
        if !patterns.is_empty() {
            let fail = |error: ::base::pattern::PatternError| {
                Error::new(Kind::IgnoreFile, [".dockerignore".to_owned(), error.to_string()])
            };
            self.ignore = Some(Patterns::new(patterns).map_err(fail)?);
        }
        self.context = match &self.client.main().source {
            Some(source) => source.add_to(&mut self.graph)?,
            None => Some(self.graph.source(Source::default(), Meta::default())),
        };
        for (id, reachable) in reachable.iter().enumerate() {
            let wanted = *reachable && !self.stages[id].dispatched;
            if wanted || self.all_stages {
                self.dispatch_stage(id)?;
            }
        }
        // All of the target is used.
        self.stages.use_path(target, "/".to_owned());
        Ok(())
    }

    fn finish(mut self, target: StageId, patterns: Vec<String>) -> Result<Converted> {
        let options = &self.client.options;
        for (name, value) in &options.labels {
            self.stages[target].image.config.labels.insert(name.clone(), value.clone());
        }
        self.linter.check()?;
        if let (None, Some(context)) = (&self.client.main().source, self.context) {
            let mut paths = std::collections::BTreeSet::new();
            for id in 0..self.stages.len() {
                paths.append(&mut self.stages[id].context_paths);
            }
            let (source, meta) = self.client.local_context(patterns, stage::follow_paths(&paths));
            self.graph.replace_source(context, source, meta);
        }
        for (output, folder, id) in std::mem::take(&mut self.locals) {
            let paths = stage::follow_paths(&self.stages.paths[self.stages[id].paths]);
            let meta = Meta::named(folder.name.clone());
            self.graph.replace_source(output, folder.source(paths), meta);
        }
        let mut scans = BTreeMap::new();
        let mut ignore_cache = self.stages[target].ignore_cache;
        if self.stages[target].scan_context {
            scans.insert("context".to_owned(), self.context);
        }
        for (id, reachable) in self.stages.reachable(target).into_iter().enumerate() {
            let stage = &self.stages[id];
            if reachable && id != target && stage.scan_stage {
                scans.insert(stage.name.clone(), stage.state.output);
                ignore_cache |= stage.ignore_cache;
            }
        }
        let outline = outline::outline(&self.stages, target);
        let stage = &mut self.stages[target];
        let mut image = std::mem::take(&mut stage.image);
        if !self.implicit {
            set_platform(&mut image, &self.target);
        }
        let platform = image.platform().normalize();
        image.set_platform(&platform);
        Ok(Converted {
            output: stage.state.output,
            base_image: stage.base_image.take(),
            image,
            epoch: self.epoch,
            ignore_cache,
            scans,
            outline,
            marshal: MarshalOptions {
                platform: Some(self.target),
                caps: Some(self.client.bridge.llb_caps().clone()),
                local_unique: None,
            },
            graph: self.graph,
        })
    }

    /// Counts what goes into the graph, so that no file can ask for unbounded memory.
    fn count(&mut self, bytes: usize) -> Result<()> {
        self.written = self.written.saturating_add(bytes);
        if self.written > MAX_WRITTEN {
            return Err(Error::new(Kind::TooLarge, [MAX_WRITTEN.to_string()]));
        }
        Ok(())
    }

    /// Where an operation comes from.
    fn located(&self, mut meta: Meta, lines: Lines) -> Meta {
        meta.locations.push((self.file, lines.to_ranges()));
        meta
    }
}

/// Sets what an explicit target says of the result.
fn set_platform(image: &mut Image, target: &Platform) {
    let same = image.os == target.os && image.architecture == target.architecture;
    image.os = target.os.clone();
    image.architecture = target.architecture.clone();
    if !target.variant.is_empty() || !same {
        image.variant = target.variant.clone();
    }
    if !target.os_version.is_empty() || !same {
        image.os_version = target.os_version.clone();
    }
    if !target.os_features.is_empty() {
        image.os_features = target.os_features.clone();
    }
}

/// Proxy variables among the build args, whatever their case.
fn proxy(args: &BTreeMap<String, String>) -> Option<pb::ProxyEnv> {
    let mut proxy = pb::ProxyEnv::default();
    let mut found = false;
    for (name, value) in args {
        let field = match name.to_ascii_lowercase().as_str() {
            "http_proxy" => &mut proxy.http_proxy,
            "https_proxy" => &mut proxy.https_proxy,
            "ftp_proxy" => &mut proxy.ftp_proxy,
            "no_proxy" => &mut proxy.no_proxy,
            "all_proxy" => &mut proxy.all_proxy,
            _ => continue,
        };
        *field = value.clone();
        found = true;
    }
    found.then_some(proxy)
}
