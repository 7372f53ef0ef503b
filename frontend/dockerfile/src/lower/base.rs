//! Base images, named contexts and triggers.
//!
//! Source: Dockerfile notes §9.3 and §9.4.

use base::Platform;
use futures_util::future::join_all;
use llb::build::{Meta, Output, Source};

use super::stage::{StageId, State};
use super::{Lowering, checks, global};
use crate::context::{Loaded, NamedContext, NamedSource, Resolve};
use crate::error::{Case, Error, Kind, Lines, Result};
use crate::image::Image;
use crate::instructions::{self, Command};
use crate::parser;
use crate::reference::Reference;
use crate::text;

/// What was found out about the base of a stage.
enum Answer {
    /// Nobody needs it; only the reference was checked.
    Unneeded { reference: String },
    /// The stage is replaced.
    Replaced(Loaded),
    /// The image is replaced.
    Context { reference: String, loaded: Loaded },
    /// An image.
    Image { reference: String, image: Box<Image> },
}

/// Names that misspelled images are compared with.
const COMMON_IMAGES: &[&str] =
    &["alpine", "busybox", "centos", "debian", "golang", "ubuntu", "fedora"];

impl Lowering<'_> {
    /// Resolves the stages `target` needs, until triggers add no more.
    pub(super) async fn resolve_stages(&mut self, target: StageId) -> Result<Vec<bool>> {
        loop {
            let reachable = self.stages.reachable(target);
            self.resolve_bases(&reachable).await?;
            let mut more = false;
            for id in (0..reachable.len()).filter(|id| reachable[*id]) {
                more |= self.add_triggers(id)?;
            }
            if !more {
                return Ok(self.stages.reachable(target));
            }
        }
    }

    async fn resolve_bases(&mut self, reachable: &[bool]) -> Result<()> {
        let mut open = Vec::new();
        for (id, reachable) in reachable.iter().enumerate() {
            let needed = *reachable || self.all_stages;
            let target = self.target.clone();
            let stage = &mut self.stages[id];
            if stage.base.is_some() || stage.dispatched || stage.resolved {
                continue;
            }
            stage.resolved = needed;
            if stage.source.base == "scratch" && stage.named.is_none() {
                stage.state = State::new(None);
                stage.image = Image::empty(&target);
                stage.platform = Some(target);
                stage.dispatched |= stage.unregistered;
            } else {
                open.push((id, needed));
            }
        }
        let answers = join_all(open.iter().map(|(id, needed)| self.ask_base(*id, *needed))).await;
        for ((id, _), answer) in open.into_iter().zip(answers) {
            let lines = self.stages[id].source.lines;
            let set = answer.and_then(|answer| self.set_base(id, answer));
            set.map_err(|error| error.at(lines))?;
            let stage = &mut self.stages[id];
            stage.dispatched |= stage.unregistered;
        }
        Ok(())
    }

    /// Asks what has to be known of a base.
    async fn ask_base(&self, id: StageId, needed: bool) -> Result<Answer> {
        let stage = &self.stages[id];
        let written = &stage.source.base;
        let bad = || {
            let error = Error::new(Kind::BadImageReference, [text::quote(written)]);
            error.context(format!("failed to parse stage name {}", text::quote(written)))
        };
        let reference = Reference::parse(written).map_err(|_| bad())?.tagged();
        if !needed {
            return Ok(Answer::Unneeded { reference: reference.to_string() });
        }
        if let Some(context) = &stage.named {
            return self.client.load_context(context).await.map(Answer::Replaced);
        }
        let platform = stage.platform.as_ref().unwrap_or(&self.target);
        let full = reference.to_string();
        if let Some(context) = self.named_context(&full, Some(platform))? {
            let loaded = self.client.load_context(&context).await?;
            return Ok(Answer::Context { reference: full, loaded });
        }
        let prefix = if self.naming.platforms {
            format!("[{} internal]", platform.format_all())
        } else {
            "[internal]".to_owned()
        };
        let request = Resolve {
            reference: full.clone(),
            platform: Some(platform.clone()),
            log_name: format!("{prefix} load metadata for {full}"),
            mode: self.client.options.resolve_mode.as_str(),
            store: None,
        };
        let found = self.client.resolve(request).await.map_err(|error| {
            let mut names = self.stages.names();
            for name in COMMON_IMAGES {
                names.extend([(*name).to_owned(), format!("{name}:latest")]);
            }
            let error = error.context(written);
            error.suggest(written, names.iter().map(String::as_str), Case::Sensitive)
        })?;
        if let Some(target) = found.redirect {
            return Err(Error::new(Kind::ImageNotFound, [format!("{full} ({target})")]));
        }
        let bad = || Error::new(Kind::BadImageReference, [text::quote(&found.reference)]);
        let mut reference = Reference::parse(&found.reference).map_err(|_| bad())?;
        if !found.digest.is_empty() {
            reference = reference.with_digest(&found.digest);
        }
        let image = Box::new(found.image);
        Ok(Answer::Image { reference: reference.to_string(), image })
    }

    /// The context of a name, if there may be one.
    pub(super) fn named_context(
        &self,
        name: &str,
        platform: Option<&Platform>,
    ) -> Result<Option<NamedContext>> {
        if global::is_reserved(name) {
            return Ok(None);
        }
        // Without a platform of its own a context is looked up for the explicit target.
        let target = (!self.implicit).then_some(&self.target);
        self.client.named_context(name, platform.or(target))
    }

    fn set_base(&mut self, id: StageId, answer: Answer) -> Result<()> {
        let written = self.stages[id].source.base.clone();
        let platform = self.stages[id].platform.clone().unwrap_or_else(|| self.target.clone());
        match answer {
            Answer::Unneeded { reference } => {
                self.set_image_base(id, reference, platform);
            }
            Answer::Replaced(loaded) => {
                let image = loaded.image.clone();
                let state = self.add_loaded(id, loaded)?;
                let stage = &mut self.stages[id];
                stage.dispatched = true;
                stage.state = state;
                if let Some(mut image) = image {
                    image.created.clear();
                    if !image.architecture.is_empty() && !image.os.is_empty() {
                        stage.platform = Some(image.platform());
                    }
                    stage.image = image;
                }
            }
            Answer::Context { reference, loaded } => {
                let mut image = loaded.image.clone().unwrap_or_else(|| Image::empty(&platform));
                let mut state = self.add_loaded(id, loaded)?;
                state.platform = Some(platform.normalize());
                let stage = &mut self.stages[id];
                stage.source.base = reference;
                stage.base_image = Some(image.clone());
                image.created.clear();
                stage.image = image;
                stage.state = state;
                stage.platform = Some(platform);
            }
            Answer::Image { reference, image } => {
                let implicit = self.implicit && self.stages[id].platform.is_none();
                let platform =
                    if implicit { self.detect_platform(&image, &platform) } else { platform };
                let actual = image.platform();
                let scratch = image.is_scratch();
                let stage = &mut self.stages[id];
                stage.base_image = Some((*image).clone());
                stage.image = *image;
                stage.image.created.clear();
                if scratch {
                    stage.source.base = reference;
                    stage.state = State::new(None);
                    stage.platform = Some(platform);
                } else {
                    let lines = stage.source.lines;
                    self.set_image_base(id, reference, platform.clone());
                    checks::base_platform(&written, &platform, &actual, lines, self.linter);
                }
            }
        }
        Ok(())
    }

    fn set_image_base(&mut self, id: StageId, reference: String, platform: Platform) {
        let stage = &mut self.stages[id];
        stage.source.base = reference;
        let (reference, lines) = (stage.source.base.clone(), stage.source.lines);
        let code = stage.source.code.clone();
        let shown = self.naming.platform(Some(&platform), None);
        let name = self.naming.step(stage, &format!("FROM {reference}"), &shown);
        let mut meta = Meta::named(name).with_platform(platform.clone());
        meta.description.insert("com.docker.dockerfile.v1.command".to_owned(), code);
        let meta = self.located(meta, lines);
        let mode = self.client.options.resolve_mode;
        let output = self.graph.source(Source::image_with_mode(&reference, mode), meta);
        let stage = &mut self.stages[id];
        stage.state = State::new(Some(output));
        stage.state.platform = Some(platform.normalize());
        stage.platform = Some(platform);
    }

    /// Without a target, an image for a build platform settles what is built for.
    fn detect_platform(&self, image: &Image, wanted: &Platform) -> Platform {
        let same = |platform: &&Platform| {
            platform.os == image.os && platform.architecture == image.architecture
        };
        if same(&wanted) {
            return wanted.clone();
        }
        self.client.build_platforms.iter().find(same).unwrap_or(wanted).clone()
    }

    /// Adds a named context to the graph.
    fn add_loaded(&mut self, id: StageId, loaded: Loaded) -> Result<State> {
        let Loaded { source, image, platform } = loaded;
        let output: Option<Output> = match source {
            None => None,
            Some(NamedSource::Fixed(source)) => source.add_to(&mut self.graph)?,
            Some(NamedSource::Image { source, name }) => {
                let meta = Meta { platform: platform.clone(), ..Meta::named(name) };
                Some(self.graph.source(source, meta))
            }
            Some(NamedSource::Local(folder)) => {
                let output = self.graph.source(Source::default(), Meta::default());
                self.locals.push((output, folder, id));
                Some(output)
            }
        };
        let mut state = State::new(output);
        state.platform = platform.map(|platform| platform.normalize());
        if let Some(image) = &image {
            state.apply_config(image);
        }
        Ok(state)
    }

    /// Puts triggers before the instructions of a stage; says whether they use further stages.
    fn add_triggers(&mut self, id: StageId) -> Result<bool> {
        let stage = &mut self.stages[id];
        let mut triggers = Vec::new();
        match stage.base {
            None => triggers = std::mem::take(&mut stage.image.config.on_build),
            Some(base) if !std::mem::replace(&mut stage.triggers_added, true) => {
                for step in &self.stages[base].steps {
                    if let Command::Onbuild(trigger) = &step.instruction.command {
                        triggers.push(trigger.clone());
                    }
                }
            }
            Some(_) => {}
        }
        let lines = self.stages[id].source.lines;
        self.insert_triggers(id, &triggers).map_err(|error| error.only_at(lines))
    }

    fn insert_triggers(&mut self, id: StageId, triggers: &[String]) -> Result<bool> {
        let lines = self.stages[id].source.lines;
        let mut steps = Vec::with_capacity(triggers.len());
        let mut more = false;
        for trigger in triggers {
            let mut step = self.step(trigger_instruction(trigger, lines)?)?;
            step.onbuild = true;
            more |= !step.sources.is_empty();
            self.stages.depend(id, &step.sources, lines);
            steps.push(step);
        }
        let stage = &mut self.stages[id];
        stage.steps_total += steps.len();
        stage.steps.splice(0..0, steps);
        Ok(more)
    }
}

/// Reads a trigger as a file of one instruction at the place of FROM.
fn trigger_instruction(trigger: &str, lines: Lines) -> Result<instructions::Instruction> {
    let file = parser::parse(&text::to_bytes(trigger))?;
    let mut nodes = file.nodes;
    if nodes.len() != 1 {
        return Err(Error::plain(Kind::OnbuildNotSingle));
    }
    let mut node = nodes.remove(0);
    node.lines = lines;
    instructions::parse_trigger(&node)
}
