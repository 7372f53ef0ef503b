//! The file op: copies, makes and removes files without running anything.
//!
//! | field | in the key | why |
//! |---|---|---|
//! | actions with all their fields | yes | they are the work |
//! | folder part of a copy source taken from an input | no | the content found there counts, not where it lay |
//! | how actions are wired | only when unusual | the usual chain needs no telling |
//! | inputs written to | by their own key | their whole tree is carried on |
//! | inputs only read | by selector and content | what is copied counts |
//! | platform | no | files are files |

pub(crate) mod run;

use std::collections::BTreeMap;

use base::{Digest, gojson, path};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use llb::pb::{self, file_action::Action};
use serde::Serialize;

use crate::{
    key::{CacheMap, InputKey, KeyError, Selector, reduce},
    keyjson,
};

#[derive(Serialize)]
struct Key {
    #[serde(rename = "Type")]
    kind: &'static str,
    #[serde(rename = "Actions")]
    actions: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    indexes: Vec<[i64; 3]>,
}

/// Source: cache key notes §4.5.
pub(crate) fn cache_map(op: &pb::FileOp, inputs: usize) -> Result<CacheMap, KeyError> {
    let mut actions = Vec::with_capacity(op.actions.len());
    for action in &op.actions {
        let json = match &action.action {
            Some(Action::Copy(copy)) => {
                let mut copy = keyjson::Copy::from(copy);
                if (0..inputs as i64).contains(&action.secondary_input) {
                    copy.src = path::base(&copy.src).to_owned();
                }
                gojson::to_vec(&copy)
            }
            Some(Action::Mkfile(file)) => gojson::to_vec(&keyjson::MkFile::from(file)),
            Some(Action::Mkdir(folder)) => gojson::to_vec(&keyjson::MkDir::from(folder)),
            Some(Action::Symlink(link)) => gojson::to_vec(&keyjson::Symlink::from(link)),
            Some(Action::Rm(rm)) => gojson::to_vec(&keyjson::Rm::from(rm)),
            None => b"null".to_vec(),
        };
        actions.push(STANDARD.encode(json));
    }
    let indexes = if usual_wiring(&op.actions) {
        Vec::new()
    } else {
        op.actions
            .iter()
            .map(|action| [action.input, action.secondary_input, action.output])
            .collect()
    };
    let key = Key { kind: "buildkit.file.v0", actions, indexes };
    Ok(CacheMap { preimage: gojson::to_vec(&key), inputs: input_keys(op, inputs)? })
}

/// A plain chain on input 0, copying from input 1 at most, whose last action is the output.
fn usual_wiring(actions: &[pb::FileAction]) -> bool {
    let count = actions.len() as i64;
    actions.iter().zip(0..).all(|(action, at)| {
        let input = if at == 0 { 0 } else { count + at - 1 };
        let output = if at == count - 1 { 0 } else { -1 };
        action.input == input && matches!(action.secondary_input, -1 | 1) && action.output == output
    })
}

fn input_keys(op: &pb::FileOp, inputs: usize) -> Result<Vec<InputKey>, KeyError> {
    let mut written = vec![false; inputs];
    let mut read: BTreeMap<usize, Vec<Selector>> = BTreeMap::new();
    for action in &op.actions {
        if let Some(input) = op_input(action.input, inputs) {
            written[input] = true;
        }
    }
    for action in &op.actions {
        let owner = match &action.action {
            Some(Action::Copy(copy)) => {
                if let Some(input) = op_input(action.secondary_input, inputs) {
                    read.entry(input).or_default().push(copy_selector(copy));
                }
                &copy.owner
            }
            Some(Action::Mkfile(file)) => &file.owner,
            Some(Action::Mkdir(folder)) => &folder.owner,
            _ => &None,
        };
        let Some(owner) = owner else { continue };
        for (side, file) in [(&owner.user, "/etc/passwd"), (&owner.group, "/etc/group")] {
            let Some(pb::UserOpt { user: Some(pb::user_opt::User::ByName(named)) }) = side else {
                continue;
            };
            if named.input < 0 {
                continue;
            }
            let input = op_input(named.input, inputs)
                .ok_or(KeyError::OwnerInput { index: named.input, inputs })?;
            let selector = Selector { path: file.to_owned(), follow: true, ..Default::default() };
            read.entry(input).or_default().push(selector);
        }
    }
    let keys = (0..inputs).map(|input| {
        let Some(selectors) = read.remove(&input).filter(|_| !written[input]) else {
            return InputKey { unlazy: true, ..InputKey::default() };
        };
        let mut paths: Vec<&str> =
            selectors.iter().map(|selector| selector.path.as_str()).collect();
        paths.sort_unstable_by(|left, right| right.cmp(left));
        InputKey {
            selector: Some(Digest::of(paths.join("\0"))),
            content: Some(reduce(selectors)),
            unlazy: true,
        }
    });
    Ok(keys.collect())
}

fn op_input(index: i64, inputs: usize) -> Option<usize> {
    usize::try_from(index).ok().filter(|index| *index < inputs)
}

fn copy_selector(copy: &pb::FileActionCopy) -> Selector {
    Selector {
        path: copy.src.clone(),
        follow: copy.follow_symlink,
        wildcard: copy.allow_wildcard && has_wildcard(&copy.src),
        include: copy.include_patterns.clone(),
        exclude: copy.exclude_patterns.clone(),
        required: copy.required_paths.clone(),
    }
}

/// Whether `*`, `?` or `[` stands outside an escape.
fn has_wildcard(path: &str) -> bool {
    let mut chars = path.chars();
    while let Some(char) = chars.next() {
        match char {
            '*' | '?' | '[' => return true,
            '\\' => _ = chars.next(),
            _ => {}
        }
    }
    false
}
