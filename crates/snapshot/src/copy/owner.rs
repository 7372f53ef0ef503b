//! Owners by number or by name, with names looked up in a tree's own files.

use std::io::Read as _;

use rustix::{fs::OFlags, io::Errno};

use super::FileError;
use crate::{Tree, scoped, sys};

/// Larger files of users or groups are refused.
const LARGEST: u64 = 10 << 20;

/// Owner given to what is made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Owner {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// A user or group, by number or by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Account {
    /// By number.
    Id(u32),
    /// By name, looked up in the tree given along.
    Name(String),
}

/// Turns a user and a group into numbers, for an owner that was asked for. Names are looked up in
/// `/etc/passwd` and `/etc/group` of the tree given with each; a missing tree, file or name gives 0
/// (user) or leaves the group as the user made it. Neither given is root.
pub fn resolve_owner(
    user: Option<(&Account, Option<&Tree>)>,
    group: Option<(&Account, Option<&Tree>)>,
) -> Result<Option<Owner>, FileError> {
    let mut owner = Owner::default();
    match user {
        Some((Account::Id(id), _)) => owner = Owner { uid: *id, gid: *id },
        Some((Account::Name(name), Some(tree))) => {
            let file = read(tree, "/etc/passwd")?;
            if let Some([uid, gid]) = find(&file, name, false) {
                owner = Owner { uid, gid };
            }
        }
        Some((Account::Name(_), None)) | None => {}
    }
    match group {
        Some((Account::Id(id), _)) => owner.gid = *id,
        Some((Account::Name(name), Some(tree))) => {
            let file = read(tree, "/etc/group")?;
            if let Some([gid, _]) = find(&file, name, true) {
                owner.gid = gid;
            }
        }
        Some((Account::Name(_), None)) | None => {}
    }
    Ok(Some(owner))
}

/// Content of a file of users or groups; empty if there is none.
fn read(tree: &Tree, path: &'static str) -> Result<Vec<u8>, FileError> {
    let failed = |error: std::io::Error| FileError::io("open", path, error);
    let flags = OFlags::RDONLY | OFlags::NONBLOCK;
    let fd = match scoped::open(tree.fd(), path.as_bytes(), flags) {
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(Vec::new()),
        other => other.map_err(|error| failed(error.into()))?,
    };
    let meta = sys::stat_fd(&fd).map_err(|error| failed(error.into()))?;
    if !meta.is_file() {
        return Err(FileError::Refused(format!("{path} is not a regular file")));
    }
    if meta.size > LARGEST {
        return Err(FileError::Refused(format!("{path} is larger than {LARGEST} bytes")));
    }
    let mut content = Vec::new();
    std::fs::File::from(fd).take(LARGEST).read_to_end(&mut content).map_err(failed)?;
    Ok(content)
}

/// The third and fourth field of the first line that is about `name`; what is no number is 0.
fn find(file: &[u8], name: &str, comments: bool) -> Option<[u32; 2]> {
    file.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii).find_map(|line| {
        if line.is_empty() || comments && line[0] == b'#' {
            return None;
        }
        let mut fields = line.split(|byte| *byte == b':');
        if fields.next() != Some(name.as_bytes()) {
            return None;
        }
        let mut number = || {
            let text = str::from_utf8(fields.next().unwrap_or_default()).unwrap_or_default();
            text.parse::<u32>().unwrap_or(0)
        };
        number();
        Some([number(), number()])
    })
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;

    #[test]
    fn names_are_looked_up_in_the_tree() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("etc/real")).unwrap();
        symlink("/etc/real/passwd", folder.path().join("etc/passwd")).unwrap();
        let passwd = "root:x:0:0::/:\nalice:x:1001:1002::/:\n# a:x:1:1\nodd:x:y\n";
        fs::write(folder.path().join("etc/real/passwd"), passwd).unwrap();
        fs::write(folder.path().join("etc/group"), "staff:x:50:\n#no:x:7:\n").unwrap();
        let tree = Tree::of_folder(folder.path(), false).unwrap();
        let check = |user: Option<Account>, group: Option<Account>, expected: (u32, u32)| {
            let user = user.as_ref().map(|account| (account, Some(&tree)));
            let group = group.as_ref().map(|account| (account, Some(&tree)));
            let found = resolve_owner(user, group).unwrap().unwrap();
            assert_eq!((found.uid, found.gid), expected);
        };
        let name = |name: &str| Some(Account::Name(name.to_owned()));
        check(Some(Account::Id(5)), None, (5, 5));
        check(Some(Account::Id(5)), Some(Account::Id(6)), (5, 6));
        check(name("alice"), None, (1001, 1002));
        check(name("alice"), name("staff"), (1001, 50));
        check(name("alice"), name("nobody"), (1001, 1002));
        check(name("nobody"), name("#no"), (0, 0));
        check(name("odd"), None, (0, 0));
        check(None, name("staff"), (0, 50));
        check(None, None, (0, 0));
    }
}
