//! Running a file op: actions on demand, each once, writing on in one tree where nobody looks at
//! the state between. Source: LLB notes §5.

use std::sync::Arc;

use frontend_api::Subject;
use llb::pb::{self, file_action::Action};
use snapshot::copy::{self, Account, CopyOptions, FileError, Owner};
use store::{MutRef, NewRecord, Ref, Store};

use crate::{OpError, Remains};

/// What an action left behind.
enum Made {
    Nothing,
    /// Still being written to; only its single user may have it.
    Open(MutRef),
    Committed(Option<Ref>),
}

struct Run<'a> {
    store: &'a Arc<Store>,
    op: &'a pb::FileOp,
    inputs: &'a [Option<Ref>],
    description: &'a str,
    made: Vec<Made>,
    uses: Vec<usize>,
}

/// Runs the actions that the outputs need. Blocks; inputs must be local.
pub(crate) fn run(
    store: &Arc<Store>,
    op: &pb::FileOp,
    inputs: &[Option<Ref>],
    description: &str,
) -> Result<Vec<Option<Ref>>, OpError> {
    let outputs = outputs(op, inputs.len())?;
    let mut run = Run {
        store,
        op,
        inputs,
        description,
        made: op.actions.iter().map(|_| Made::Nothing).collect(),
        uses: uses(op, inputs.len()),
    };
    for at in order(op, inputs.len(), &outputs)? {
        run.action(at)?;
    }
    outputs.iter().map(|at| run.committed(*at)).collect()
}

/// Action numbers by output number.
fn outputs(op: &pb::FileOp, inputs: usize) -> Result<Vec<usize>, OpError> {
    let limit = (inputs + op.actions.len()) as i64;
    let mut found: Vec<Option<usize>> = Vec::new();
    for (at, action) in op.actions.iter().enumerate() {
        for index in [action.input, action.secondary_input] {
            if index < -1 || index >= limit {
                return Err(OpError::invalid(format!(
                    "invalid input index {index}, {limit} inputs and actions"
                )));
            }
        }
        let Ok(output) = usize::try_from(action.output) else { continue };
        if output >= op.actions.len() {
            return Err(OpError::invalid(format!("missing output index before {output}")));
        }
        if found.len() <= output {
            found.resize(output + 1, None);
        }
        if found[output].replace(at).is_some() {
            return Err(OpError::invalid(format!("duplicate output {output}")));
        }
    }
    if found.is_empty() {
        return Err(OpError::invalid("no outputs specified"));
    }
    found
        .into_iter()
        .enumerate()
        .map(|(output, at)| {
            at.ok_or_else(|| OpError::invalid(format!("missing output index {output}")))
        })
        .collect()
}

fn references(op: &pb::FileOp, at: usize, inputs: usize) -> impl Iterator<Item = usize> {
    let action = &op.actions[at];
    let owners = owner(action)
        .into_iter()
        .flat_map(|owner| [&owner.user, &owner.group])
        .filter_map(|side| match side.as_ref()?.user.as_ref()? {
            pb::user_opt::User::ByName(named) => Some(named.input),
            pb::user_opt::User::ById(_) => None,
        });
    let all: Vec<usize> = [action.input, action.secondary_input]
        .into_iter()
        .chain(owners)
        .filter_map(|index| usize::try_from(index).ok()?.checked_sub(inputs))
        .collect();
    let count = op.actions.len();
    all.into_iter().filter(move |other| *other < count)
}

fn owner(action: &pb::FileAction) -> Option<&pb::ChownOpt> {
    match action.action.as_ref()? {
        Action::Copy(copy) => copy.owner.as_ref(),
        Action::Mkfile(file) => file.owner.as_ref(),
        Action::Mkdir(folder) => folder.owner.as_ref(),
        Action::Symlink(link) => link.owner.as_ref(),
        Action::Rm(_) => None,
    }
}

fn uses(op: &pb::FileOp, inputs: usize) -> Vec<usize> {
    let mut uses = vec![0; op.actions.len()];
    for at in 0..op.actions.len() {
        references(op, at, inputs).for_each(|other| uses[other] += 1);
    }
    uses
}

/// Actions the outputs need, each after those it builds on.
fn order(op: &pb::FileOp, inputs: usize, outputs: &[usize]) -> Result<Vec<usize>, OpError> {
    #[derive(Clone, Copy, PartialEq)]
    enum Mark {
        New,
        Open,
        Done,
    }
    let mut marks = vec![Mark::New; op.actions.len()];
    let mut order = Vec::new();
    let mut stack: Vec<(usize, bool)> = outputs.iter().rev().map(|at| (*at, false)).collect();
    while let Some((at, entered)) = stack.pop() {
        match (marks[at], entered) {
            (Mark::Done, _) => {}
            (_, true) => {
                marks[at] = Mark::Done;
                order.push(at);
            }
            (Mark::Open, false) => return Err(OpError::invalid(format!("loop from index {at}"))),
            (Mark::New, false) => {
                marks[at] = Mark::Open;
                stack.push((at, true));
                for other in references(op, at, inputs) {
                    match marks[other] {
                        Mark::New => stack.push((other, false)),
                        Mark::Open => {
                            return Err(OpError::invalid(format!("loop from index {other}")));
                        }
                        Mark::Done => {}
                    }
                }
            }
        }
    }
    Ok(order)
}

impl Run<'_> {
    fn action(&mut self, at: usize) -> Result<(), OpError> {
        let action = &self.op.actions[at];
        let source = self.readable(action.secondary_input)?;
        let owner = self.owner(at, action)?;
        let target = self.writable(action.input)?;
        if let Err(error) = act(at, action, source, owner, &target) {
            let all = 0..self.op.actions.len();
            let mut mounts: Vec<_> = all.map(|it| self.committed(it).ok().flatten()).collect();
            mounts[at] = target.commit_blocking().ok();
            mounts.iter().flatten().for_each(Ref::discard_when_released);
            let (inputs, subject) = (self.inputs.to_vec(), Some(Subject::Action(at)));
            return Err(error.leaving(Remains { inputs, mounts, subject }));
        }
        self.made[at] = Made::Open(target);
        Ok(())
    }

    /// The tree an action writes to: the previous action's if nobody else wants that state.
    fn writable(&mut self, index: i64) -> Result<MutRef, OpError> {
        let parent = match self.place(index) {
            Place::Nowhere => None,
            Place::Input(input) => self.inputs[input].clone(),
            Place::Action(other) => {
                let alone = self.uses[other] == 1 && self.op.actions[other].output < 0;
                if alone
                    && let Made::Open(tree) =
                        std::mem::replace(&mut self.made[other], Made::Nothing)
                {
                    return Ok(tree);
                }
                self.committed(other)?
            }
        };
        Ok(self.store.create(NewRecord {
            parent: parent.as_ref(),
            description: self.description.to_owned(),
            ..NewRecord::default()
        })?)
    }

    fn readable(&mut self, index: i64) -> Result<Option<Ref>, OpError> {
        match self.place(index) {
            Place::Nowhere => Ok(None),
            Place::Input(input) => Ok(self.inputs[input].clone()),
            Place::Action(other) => self.committed(other),
        }
    }

    fn committed(&mut self, at: usize) -> Result<Option<Ref>, OpError> {
        let reference = match std::mem::replace(&mut self.made[at], Made::Nothing) {
            Made::Open(tree) => Some(tree.commit_blocking()?),
            Made::Committed(reference) => reference,
            Made::Nothing => None,
        };
        self.made[at] = Made::Committed(reference.clone());
        Ok(reference)
    }

    fn place(&self, index: i64) -> Place {
        match usize::try_from(index) {
            Err(_) => Place::Nowhere,
            Ok(index) if index < self.inputs.len() => Place::Input(index),
            Ok(index) => Place::Action(index - self.inputs.len()),
        }
    }

    fn owner(&mut self, at: usize, action: &pb::FileAction) -> Result<Option<Owner>, OpError> {
        let Some(owner) = owner(action) else { return Ok(None) };
        let mut side = |user: &Option<pb::UserOpt>| -> Result<Option<(Account, Option<snapshot::Tree>)>, OpError> {
            use pb::user_opt::User;
            Ok(match user.as_ref().and_then(|user| user.user.as_ref()) {
                None => None,
                Some(User::ById(id)) => Some((Account::Id(*id), None)),
                Some(User::ByName(named)) if named.input < 0 => {
                    return Err(OpError::invalid(format!("invalid user index: {}", named.input)));
                }
                Some(User::ByName(named)) => {
                    let tree = self.readable(named.input)?.map(|reference| reference.tree()).transpose()?;
                    Some((Account::Name(named.name.clone()), tree))
                }
            })
        };
        let (user, group) = (side(&owner.user)?, side(&owner.group)?);
        let pick = |side: &'_ Option<(Account, Option<snapshot::Tree>)>| {
            side.as_ref().map(|(account, tree)| (account.clone(), tree.clone()))
        };
        let (user, group) = (pick(&user), pick(&group));
        copy::resolve_owner(
            user.as_ref().map(|(account, tree)| (account, tree.as_ref())),
            group.as_ref().map(|(account, tree)| (account, tree.as_ref())),
        )
        .map_err(|cause| OpError::File { action: at, cause: Arc::new(cause) })
    }
}

/// One action on the tree it writes to.
fn act(
    at: usize,
    action: &pb::FileAction,
    source: Option<Ref>,
    owner: Option<Owner>,
    target: &MutRef,
) -> Result<(), OpError> {
    let tree = target.tree()?;
    let failed = |cause: FileError| OpError::File { action: at, cause: Arc::new(cause) };
    match action.action.as_ref() {
        Some(Action::Mkdir(folder)) => {
            let mode = folder.mode as u32 & 0o777;
            copy::mkdir(
                &tree,
                &folder.path,
                mode,
                folder.make_parents,
                owner,
                time(folder.timestamp),
            )
            .map_err(failed)?;
        }
        Some(Action::Mkfile(file)) => {
            let mode = file.mode as u32 & 0o777;
            copy::mkfile(&tree, &file.path, mode, &file.data, owner, time(file.timestamp))
                .map_err(failed)?;
        }
        Some(Action::Symlink(link)) => {
            copy::symlink(&tree, &link.oldpath, &link.newpath, owner, time(link.timestamp))
                .map_err(failed)?;
        }
        Some(Action::Rm(rm)) => {
            copy::rm(&tree, &rm.path, rm.allow_not_found, rm.allow_wildcard).map_err(failed)?;
        }
        Some(Action::Copy(action)) => {
            let source = source.as_ref().map(Ref::tree).transpose()?;
            let options = CopyOptions {
                owner,
                mode: u32::try_from(action.mode).ok().map(|mode| mode & 0o7777),
                mode_text: action.mode_str.clone(),
                follow_symlink: action.follow_symlink,
                copy_dir_contents: action.dir_copy_contents,
                unpack: action.attempt_unpack_docker_compatibility,
                create_dest_path: action.create_dest_path,
                allow_wildcard: action.allow_wildcard,
                allow_empty_wildcard: action.allow_empty_wildcard,
                timestamp: time(action.timestamp),
                include: action.include_patterns.clone(),
                exclude: action.exclude_patterns.clone(),
                always_replace: action.always_replace_existing_dest_paths,
            };
            copy::copy(source.as_ref(), &action.src, &tree, &action.dest, &options)
                .map_err(failed)?;
        }
        None => return Err(OpError::invalid(format!("file action {at} has no kind"))),
    }
    Ok(())
}

enum Place {
    Nowhere,
    Input(usize),
    Action(usize),
}

/// −1 leaves times alone.
fn time(timestamp: i64) -> Option<i64> {
    (timestamp != -1).then_some(timestamp)
}
