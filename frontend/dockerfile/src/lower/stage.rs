//! The table of stages and what is known of each while it is lowered.
//!
//! A stage is *listed* when its FROM is read, *resolved* when its base is known and *dispatched*
//! when its instructions have become operations. Images used without a stage of their own get an
//! unregistered stage at the end of the table.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use base::Platform;
use llb::build::Output;
use llb::pb;

use super::env::Env;
use super::outline::Captured;
use crate::context::NamedContext;
use crate::error::{Error, Kind, Lines, Result};
use crate::image::Image;
use crate::instructions::{self, Arg, Instruction};
use crate::text;

/// Position in the table.
pub type StageId = usize;

/// A tree with what processes in it start from.
#[derive(Debug, Clone, Default)]
pub struct State {
    /// The tree; nothing is an empty one.
    pub output: Option<Output>,
    /// Variables.
    pub env: Env,
    /// Working folder.
    pub dir: String,
    /// User.
    pub user: String,
    /// Host name.
    pub hostname: String,
    /// Network.
    pub network: pb::NetMode,
    /// Platform, normalised.
    pub platform: Option<Platform>,
}

impl State {
    /// A tree and nothing else.
    pub fn new(output: Option<Output>) -> Self {
        Self { output, dir: "/".to_owned(), ..Self::default() }
    }

    /// Takes variables, folder and platform from an image config.
    pub fn apply_config(&mut self, image: &Image) {
        for entry in &image.config.env {
            let (name, value) = entry.split_once('=').unwrap_or((entry, ""));
            if !name.is_empty() {
                self.env.set(name, value);
            }
        }
        self.set_dir(&image.config.working_dir);
        if !image.architecture.is_empty() && !image.os.is_empty() {
            self.platform = Some(image.platform().normalize());
        }
    }

    /// Changes the folder, relative to the present one.
    pub fn set_dir(&mut self, dir: &str) {
        self.dir = if dir.starts_with('/') {
            dir.to_owned()
        } else {
            base::path::join([if self.dir.is_empty() { "/" } else { &self.dir }, dir])
        };
    }
}

/// An instruction with the stages it takes files from.
#[derive(Debug, Clone)]
pub struct Step {
    /// What to do.
    pub instruction: Instruction,
    /// For COPY the one source, for RUN one a mount.
    pub sources: Vec<StageId>,
    /// Comes from a trigger.
    pub onbuild: bool,
}

/// A stage.
#[derive(Debug, Default)]
pub struct Stage {
    /// As written; `base` is replaced by what it expands to.
    pub source: instructions::Stage,
    /// Displayed name.
    pub name: String,
    /// Base stage.
    pub base: Option<StageId>,
    /// Stages it takes files from, each with the last instruction that does.
    pub deps: Vec<(StageId, Lines)>,
    /// Instructions.
    pub steps: Vec<Step>,
    /// The tree so far.
    pub state: State,
    /// The config so far.
    pub image: Image,
    /// The config of the image below, as it came.
    pub base_image: Option<Image>,
    /// What takes its place.
    pub named: Option<NamedContext>,
    /// What it is for.
    pub platform: Option<Platform>,
    /// ARGs declared so far.
    pub args: Vec<Arg>,
    /// Paths taken from the build context.
    pub context_paths: BTreeSet<String>,
    /// Which set of [`Stages::paths`] notes what others take from it.
    pub paths: usize,
    /// Its steps must run.
    pub ignore_cache: bool,
    /// Has no FROM.
    pub unregistered: bool,
    /// Number of the last named step.
    pub step: usize,
    /// How many there will be.
    pub steps_total: usize,
    /// The step at work comes from a trigger.
    pub onbuild: bool,
    /// Instructions have become operations.
    pub dispatched: bool,
    /// The base is known.
    pub resolved: bool,
    /// Triggers of the base stage have been added.
    pub triggers_added: bool,
    /// WORKDIR was used in this file.
    pub workdir_set: bool,
    /// Wanted by an SBOM scan.
    pub scan_stage: bool,
    /// The build context is wanted by an SBOM scan.
    pub scan_context: bool,
    /// Where CMD, ENTRYPOINT and HEALTHCHECK stood last.
    pub once: BTreeMap<&'static str, Lines>,
    /// For the outline.
    pub captured: Captured,
}

/// The table.
#[derive(Debug, Default)]
pub struct Stages {
    list: Vec<Stage>,
    by_name: HashMap<String, StageId>,
    /// Sets of paths others take from stages.
    pub paths: Vec<BTreeSet<String>>,
}

impl Stages {
    /// Lists a stage; a stage listed before may be its base.
    pub fn add(&mut self, mut stage: Stage) -> StageId {
        let id = self.list.len();
        stage.paths = self.paths.len();
        self.paths.push(BTreeSet::new());
        if let Some(base) = self.by_name.get(&stage.source.base).copied() {
            stage.base = Some(base);
            stage.captured = self.list[base].captured.clone();
        }
        if !stage.source.name.is_empty() {
            self.by_name.insert(text::lower(&stage.source.name), id);
        }
        self.list.push(stage);
        id
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Finds a stage by name, whatever the case.
    pub fn find(&self, name: &str) -> Option<StageId> {
        self.by_name.get(&text::lower(name)).copied()
    }

    /// Finds a stage by number.
    pub fn by_index(&self, index: i64) -> Result<StageId> {
        match usize::try_from(index) {
            Ok(id) if id < self.list.len() => Ok(id),
            _ => Err(Error::new(Kind::StageIndex, [index.to_string()])),
        }
    }

    /// Displayed names.
    pub fn names(&self) -> Vec<String> {
        self.list.iter().map(|stage| stage.name.clone()).filter(|name| !name.is_empty()).collect()
    }

    /// Stages that `target` needs, itself included.
    pub fn reachable(&self, target: StageId) -> Vec<bool> {
        let mut reachable = vec![false; self.list.len()];
        let mut open = vec![target];
        while let Some(id) = open.pop() {
            if std::mem::replace(&mut reachable[id], true) {
                continue;
            }
            open.extend(self.list[id].base);
            open.extend(self.list[id].deps.iter().map(|(dep, _)| *dep));
        }
        reachable
    }

    /// Fails if stages take files from each other in a circle.
    pub fn check_circles(&self) -> Result<()> {
        let mut visited = vec![false; self.list.len()];
        let mut on_path = vec![false; self.list.len()];
        for start in 0..self.list.len() {
            if visited[start] {
                continue;
            }
            visited[start] = true;
            on_path[start] = true;
            // Each entry is a stage and the dependency to look at next.
            let mut path = vec![(start, 0)];
            while let Some((id, next)) = path.last_mut() {
                let id = *id;
                let Some(&(dep, _)) = self.list[id].deps.get(*next) else {
                    on_path[id] = false;
                    path.pop();
                    continue;
                };
                *next += 1;
                if on_path[dep] {
                    let error = Error::new(Kind::Circular, [&self.list[start].name]);
                    let lines = path.iter().map(|(id, next)| self.list[*id].deps[*next - 1].1);
                    return Err(lines.fold(error, Error::at));
                }
                if !visited[dep] {
                    visited[dep] = true;
                    on_path[dep] = true;
                    path.push((dep, 0));
                }
            }
        }
        Ok(())
    }

    /// Lets a stage start from its base stage, if it has one.
    pub fn inherit(&mut self, id: StageId) {
        let Some(base) = self.list[id].base else { return };
        let from = &self.list[base];
        let (state, platform, paths) = (from.state.clone(), from.platform.clone(), from.paths);
        let (mut image, base_image) = (from.image.clone(), from.base_image.clone());
        let (workdir_set, args) = (from.workdir_set, from.args.clone());
        image.config.on_build.clear();
        let stage = &mut self.list[id];
        stage.state = state;
        stage.platform = platform;
        stage.image = image;
        stage.base_image = base_image;
        stage.paths = paths;
        stage.workdir_set = workdir_set;
        stage.args.extend(args);
    }

    /// Notes that a stage takes files from others.
    pub fn depend(&mut self, id: StageId, sources: &[StageId], lines: Lines) {
        for source in sources {
            let deps = &mut self.list[id].deps;
            match deps.iter_mut().find(|(known, _)| known == source) {
                Some(known) => known.1 = lines,
                None => deps.push((*source, lines)),
            }
        }
    }

    /// Notes that files of a stage are used.
    pub fn use_path(&mut self, id: StageId, path: String) {
        let set = self.list[id].paths;
        self.paths[set].insert(path);
    }
}

impl std::ops::Index<StageId> for Stages {
    type Output = Stage;

    fn index(&self, id: StageId) -> &Stage {
        &self.list[id]
    }
}

impl std::ops::IndexMut<StageId> for Stages {
    fn index_mut(&mut self, id: StageId) -> &mut Stage {
        &mut self.list[id]
    }
}

/// The paths a local source has to take: cleaned, sorted; all of them if there is the root.
pub fn follow_paths(paths: &BTreeSet<String>) -> Vec<String> {
    if paths.contains("/") {
        return Vec::new();
    }
    let clean = |path: &String| base::path::join([".", path.as_str()]);
    let mut list: Vec<String> = paths.iter().map(clean).collect();
    list.sort();
    list
}
