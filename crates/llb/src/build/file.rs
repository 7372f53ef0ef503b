//! File actions: copy, make, remove.
//!
//! The actions of one op work in order, each on the result of the one before; only the last
//! result is the op's output.

use super::Output;
use crate::pb;

/// One action of a file op.
#[derive(Debug, Clone)]
#[allow(missing_docs)]
pub enum FileAction {
    Copy(Copy),
    Mkfile(Mkfile),
    Mkdir(Mkdir),
    Rm(Rm),
    Symlink(Symlink),
}

/// Copies from a tree.
#[derive(Debug, Clone, Default)]
pub struct Copy {
    /// The tree.
    pub from: CopyFrom,
    /// Path in it; a relative one starts at its root.
    pub src: String,
    /// Path to copy to; a trailing `/` means into that folder.
    pub dest: String,
    /// Owner of what is copied; kept if absent.
    pub owner: Option<Owner>,
    /// Mode of what is copied.
    pub mode: Mode,
    /// Follow a link at `src`.
    pub follow_symlink: bool,
    /// Copy what is in a folder rather than the folder.
    pub dir_copy_contents: bool,
    /// Unpack an archive.
    pub attempt_unpack: bool,
    /// Make missing parents of `dest`.
    pub create_dest_path: bool,
    /// `src` is a pattern.
    pub allow_wildcard: bool,
    /// A pattern may match nothing.
    pub allow_empty_wildcard: bool,
    /// Replace a folder by a file and the like.
    pub always_replace_existing_dest_paths: bool,
    /// Only these.
    pub include_patterns: Vec<String>,
    /// Not these.
    pub exclude_patterns: Vec<String>,
    /// Paths that must exist.
    pub required_paths: Vec<String>,
    /// Unix nanoseconds; kept if absent.
    pub timestamp: Option<i64>,
}

/// Which tree a [`Copy`] reads.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum CopyFrom {
    /// An empty one.
    #[default]
    Nothing,
    /// Another node's.
    Output(Output),
    /// The result of an earlier action of the same op.
    Action(usize),
}

impl From<Option<Output>> for CopyFrom {
    fn from(output: Option<Output>) -> Self {
        output.map_or(Self::Nothing, Self::Output)
    }
}

/// Mode given to copies.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Mode {
    /// As it was.
    #[default]
    Keep,
    /// Permission bits.
    Bits(u32),
    /// `chmod` words such as `u+x`.
    Symbolic(String),
}

/// Makes a file.
#[derive(Debug, Clone, Default)]
pub struct Mkfile {
    /// Where; a relative path starts at the root.
    pub path: String,
    /// Permission bits.
    pub mode: u32,
    /// Content.
    pub data: Vec<u8>,
    /// Root if absent.
    pub owner: Option<Owner>,
    /// Unix nanoseconds; now if absent.
    pub timestamp: Option<i64>,
}

/// Makes a folder.
#[derive(Debug, Clone, Default)]
pub struct Mkdir {
    /// Where; a relative path starts at the root.
    pub path: String,
    /// Permission bits.
    pub mode: u32,
    /// Make missing parents, and be content if it exists.
    pub make_parents: bool,
    /// Root if absent.
    pub owner: Option<Owner>,
    /// Unix nanoseconds; now if absent.
    pub timestamp: Option<i64>,
}

impl Mkdir {
    /// With parents, mode 0755.
    pub fn new(path: impl Into<String>) -> Self {
        Self { path: path.into(), mode: 0o755, make_parents: true, ..Self::default() }
    }
}

/// Removes a path.
#[derive(Debug, Clone, Default)]
pub struct Rm {
    /// Which; a relative path starts at the root.
    pub path: String,
    /// Absence is no error.
    pub allow_not_found: bool,
    /// `path` is a pattern.
    pub allow_wildcard: bool,
}

/// Makes a symbolic link.
#[derive(Debug, Clone, Default)]
pub struct Symlink {
    /// What it says.
    pub old_path: String,
    /// Where it is.
    pub new_path: String,
    /// Root if absent.
    pub owner: Option<Owner>,
    /// Unix nanoseconds; now if absent.
    pub timestamp: Option<i64>,
}

/// Owner and group.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Owner {
    /// Owner.
    pub user: Option<User>,
    /// Group.
    pub group: Option<User>,
}

/// A user or group by number, or by its name in the tree worked on.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum User {
    Id(u32),
    Name(String),
}

impl Owner {
    /// By numbers.
    pub fn ids(uid: u32, gid: u32) -> Self {
        Self { user: Some(User::Id(uid)), group: Some(User::Id(gid)) }
    }

    /// Reads `user[:group]`: `root` and numbers are ids, an empty part is id 0, the rest names.
    pub fn parse(text: &str) -> Self {
        match text.split_once(':') {
            None => Self { user: Some(User::parse(text)), group: None },
            Some((user, group)) => {
                Self { user: Some(User::parse(user)), group: Some(User::parse(group)) }
            }
        }
    }

    fn to_pb(&self, base: i64) -> pb::ChownOpt {
        let user = |user: &Option<User>| user.as_ref().map(|user| user.to_pb(base));
        pb::ChownOpt { user: user(&self.user), group: user(&self.group) }
    }
}

impl User {
    fn parse(text: &str) -> Self {
        match text {
            "root" | "" => Self::Id(0),
            _ => match text.parse::<i32>() {
                // Negative numbers wrap as they do in the official client.
                Ok(id) => Self::Id(id as u32),
                Err(_) => Self::Name(text.to_owned()),
            },
        }
    }

    fn to_pb(&self, base: i64) -> pb::UserOpt {
        let user = match self {
            Self::Id(id) => pb::user_opt::User::ById(*id),
            Self::Name(name) => {
                pb::user_opt::User::ByName(pb::NamedUserOpt { name: name.clone(), input: base })
            }
        };
        pb::UserOpt { user: Some(user) }
    }
}

/// Inputs in the order the definition is written: the root, then sources from the last action.
pub(super) fn inputs(root: Option<Output>, actions: &[FileAction]) -> Vec<Output> {
    let sources = actions.iter().rev().filter_map(|action| match action {
        FileAction::Copy(Copy { from: CopyFrom::Output(output), .. }) => Some(*output),
        _ => None,
    });
    root.into_iter().chain(sources).collect()
}

/// The message; `input` numbers an output among the op's inputs, and is asked in action order.
pub(super) fn to_pb(
    root: Option<Output>,
    actions: &[FileAction],
    mut input: impl FnMut(Output) -> i64,
) -> pb::FileOp {
    let base = root.map_or(-1, &mut input);
    let sources: Vec<Option<i64>> = actions
        .iter()
        .map(|action| match action {
            FileAction::Copy(Copy { from: CopyFrom::Output(output), .. }) => Some(input(*output)),
            _ => None,
        })
        .collect();
    let count =
        std::iter::once(base).chain(sources.iter().flatten().copied()).max().unwrap_or(-1) + 1;
    let actions = actions.iter().zip(sources).enumerate().map(|(number, (action, source))| {
        let secondary = match action {
            FileAction::Copy(Copy { from: CopyFrom::Action(earlier), .. }) => {
                count + *earlier as i64
            }
            _ => source.unwrap_or(-1),
        };
        pb::FileAction {
            input: if number == 0 { base } else { count + number as i64 - 1 },
            secondary_input: secondary,
            output: if number + 1 == actions.len() { 0 } else { -1 },
            action: Some(action.to_pb(base)),
        }
    });
    pb::FileOp { actions: actions.collect() }
}

impl FileAction {
    fn to_pb(&self, base: i64) -> pb::file_action::Action {
        use pb::file_action::Action;
        match self {
            Self::Copy(copy) => Action::Copy(copy.to_pb(base)),
            Self::Mkfile(mkfile) => Action::Mkfile(pb::FileActionMkFile {
                path: base::path::absolute(&mkfile.path),
                mode: (mkfile.mode & 0o777) as i32,
                data: mkfile.data.clone().into(),
                owner: mkfile.owner.as_ref().map(|owner| owner.to_pb(base)),
                timestamp: mkfile.timestamp.unwrap_or(-1),
            }),
            Self::Mkdir(mkdir) => Action::Mkdir(pb::FileActionMkDir {
                path: base::path::absolute(&mkdir.path),
                mode: (mkdir.mode & 0o777) as i32,
                make_parents: mkdir.make_parents,
                owner: mkdir.owner.as_ref().map(|owner| owner.to_pb(base)),
                timestamp: mkdir.timestamp.unwrap_or(-1),
            }),
            Self::Rm(rm) => Action::Rm(pb::FileActionRm {
                path: base::path::absolute(&rm.path),
                allow_not_found: rm.allow_not_found,
                allow_wildcard: rm.allow_wildcard,
            }),
            Self::Symlink(link) => Action::Symlink(pb::FileActionSymlink {
                oldpath: link.old_path.clone(),
                newpath: link.new_path.clone(),
                owner: link.owner.as_ref().map(|owner| owner.to_pb(base)),
                timestamp: link.timestamp.unwrap_or(-1),
            }),
        }
    }
}

impl Copy {
    fn to_pb(&self, base: i64) -> pb::FileActionCopy {
        let (mode, mode_str) = match &self.mode {
            Mode::Keep => (-1, String::new()),
            Mode::Bits(bits) => (*bits as i32, String::new()),
            Mode::Symbolic(words) => (0, words.clone()),
        };
        pb::FileActionCopy {
            src: base::path::absolute(&self.src),
            dest: keep_slash(&self.dest),
            owner: self.owner.as_ref().map(|owner| owner.to_pb(base)),
            mode,
            follow_symlink: self.follow_symlink,
            dir_copy_contents: self.dir_copy_contents,
            attempt_unpack_docker_compatibility: self.attempt_unpack,
            create_dest_path: self.create_dest_path,
            allow_wildcard: self.allow_wildcard,
            allow_empty_wildcard: self.allow_empty_wildcard,
            timestamp: self.timestamp.unwrap_or(-1),
            include_patterns: self.include_patterns.clone(),
            exclude_patterns: self.exclude_patterns.clone(),
            always_replace_existing_dest_paths: self.always_replace_existing_dest_paths,
            mode_str,
            required_paths: self.required_paths.clone(),
        }
    }
}

/// Cleans an absolute path, keeping a trailing `/` or `/.`, which say "into that folder".
fn keep_slash(path: &str) -> String {
    let mut clean = base::path::absolute(path);
    if path.ends_with('/') && !clean.ends_with('/') {
        clean.push('/');
    } else if path.ends_with("/.") {
        if clean != "/" {
            clean.push('/');
        }
        clean.push('.');
    }
    clean
}
