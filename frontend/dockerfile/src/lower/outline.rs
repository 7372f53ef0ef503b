//! What a build can be given: args, secrets, agents.
//!
//! Noted while stages are lowered; [`outline`] collects what the target uses.

use std::collections::{BTreeMap, BTreeSet};

use super::stage::{StageId, Stages};
use crate::error::Lines;

/// What one stage uses.
#[derive(Debug, Clone, Default)]
pub struct Captured {
    /// Args known here.
    pub all: BTreeMap<String, ArgInfo>,
    /// Args used here.
    pub used: BTreeSet<String>,
    /// Secrets.
    pub secrets: BTreeMap<String, Required>,
    /// Agents.
    pub ssh: BTreeMap<String, Required>,
}

/// An arg.
#[derive(Debug, Clone, Default)]
pub struct ArgInfo {
    /// Its value.
    pub value: String,
    /// Its description.
    pub description: String,
    /// Args its default refers to.
    pub deps: BTreeSet<String>,
    /// Where it is defined.
    pub lines: Lines,
}

/// Something a client may have to provide.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Required {
    /// The build fails without.
    pub required: bool,
    /// Where it is first used.
    pub lines: Lines,
}

/// What a target can be given.
#[derive(Debug, Clone, Default)]
pub struct Outline {
    /// Target stage.
    pub name: String,
    /// Its description.
    pub description: String,
    /// Args by line.
    pub args: Vec<(String, ArgInfo)>,
    /// Secrets by line.
    pub secrets: Vec<(String, Required)>,
    /// Agents by line.
    pub ssh: Vec<(String, Required)>,
}

/// Collects what `target` and what it needs can be given.
pub fn outline(stages: &Stages, target: StageId) -> Outline {
    let (mut args, mut secrets, mut ssh) = Default::default();
    for id in order(stages, target) {
        let captured = &stages[id].captured;
        for name in captured.all_used() {
            if let Some(info) = captured.all.get(&name) {
                insert(&mut args, &name, info);
            }
        }
        captured.secrets.iter().for_each(|(name, info)| insert(&mut secrets, name, info));
        captured.ssh.iter().for_each(|(name, info)| insert(&mut ssh, name, info));
    }
    Outline {
        name: stages[target].source.name.clone(),
        description: stages[target].source.description.clone(),
        args: sorted(args, |info: &ArgInfo| info.lines),
        secrets: sorted(secrets, |info: &Required| info.lines),
        ssh: sorted(ssh, |info: &Required| info.lines),
    }
}

fn insert<T: Clone>(map: &mut BTreeMap<String, T>, name: &str, info: &T) {
    map.entry(name.to_owned()).or_insert_with(|| info.clone());
}

fn sorted<T>(map: BTreeMap<String, T>, lines: impl Fn(&T) -> Lines) -> Vec<(String, T)> {
    let mut list: Vec<(String, T)> = map.into_iter().collect();
    list.sort_by_key(|(_, info)| lines(info).first);
    list
}

/// The target, its base, then what it takes files from, each once.
fn order(stages: &Stages, target: StageId) -> Vec<StageId> {
    let mut seen = vec![false; stages.len()];
    let mut order = Vec::new();
    let mut open = vec![target];
    while let Some(id) = open.pop() {
        if std::mem::replace(&mut seen[id], true) {
            continue;
        }
        order.push(id);
        open.extend(stages[id].deps.iter().rev().map(|(dep, _)| *dep));
        open.extend(stages[id].base);
    }
    order
}

impl Captured {
    /// Args used, and those their defaults refer to.
    fn all_used(&self) -> BTreeSet<String> {
        let mut all = BTreeSet::new();
        let mut open: Vec<&String> = self.used.iter().collect();
        while let Some(name) = open.pop() {
            if all.insert(name.clone())
                && let Some(info) = self.all.get(name)
            {
                open.extend(&info.deps);
            }
        }
        all
    }
}
