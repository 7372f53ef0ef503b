//! Users and groups of a container, from its own `/etc/passwd` and `/etc/group`.

use std::{
    io::Read as _,
    os::fd::{AsFd, OwnedFd},
};

use rustix::fs::{FileType, OFlags};

use crate::{ExecError, rootfs};

/// Larger files of users are refused rather than read.
const MAX_FILE: u64 = 10 << 20;

/// Who a process runs as.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct User {
    pub uid: u32,
    pub gid: u32,
    /// Supplementary groups; begins with `gid` unless that is listed elsewhere.
    pub groups: Vec<u32>,
}

impl User {
    fn new(uid: u32, gid: u32, mut groups: Vec<u32>) -> Self {
        if !groups.contains(&gid) {
            groups.insert(0, gid);
        }
        Self { uid, gid, groups }
    }
}

/// Finds `user[:group]` in the tree.
pub fn find(root: impl AsFd, text: &str) -> Result<User, ExecError> {
    let number = |text: &str| match text {
        "root" => Some(0),
        _ => text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?,
    };
    if let Some((user, group)) = text.split_once(':')
        && let (Some(uid), Some(gid)) = (number(user), number(group))
    {
        return Ok(User::new(uid, gid, Vec::new()));
    }
    let read = |path| read(&root, path);
    let found = read("/etc/passwd").and_then(|passwd| {
        let group = read("/etc/group")?;
        search(if text.is_empty() { "0" } else { text }, &passwd, &group)
    });
    match found {
        Ok(user) => Ok(user),
        Err(_) if text.is_empty() => Ok(User::new(0, 0, Vec::new())),
        Err(reason) => Err(ExecError::User { user: text.to_owned(), reason }),
    }
}

/// Home folder of a user number; `/` when the tree names none.
pub fn home(root: impl AsFd, uid: u32) -> String {
    read(root, "/etc/passwd")
        .ok()
        .and_then(|text| {
            text.lines()
                .filter_map(Passwd::parse)
                .find(|user| user.uid == uid)
                .map(|user| user.home.to_owned())
        })
        .filter(|home| !home.is_empty())
        .unwrap_or_else(|| "/".to_owned())
}

/// A missing file reads as empty.
fn read(root: impl AsFd, path: &str) -> Result<String, String> {
    // Not blocking on a named pipe that an image put there.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
    let Ok(fd): Result<OwnedFd, _> = rootfs::open(root, path, flags) else {
        return Ok(String::new());
    };
    let stat = rustix::fs::fstat(&fd).map_err(|error| format!("{path}: {error}"))?;
    if !FileType::from_raw_mode(stat.st_mode).is_file() {
        return Ok(String::new());
    }
    let mut data = Vec::new();
    std::fs::File::from(fd)
        .take(MAX_FILE + 1)
        .read_to_end(&mut data)
        .map_err(|error| format!("{path}: {error}"))?;
    if data.len() as u64 > MAX_FILE {
        return Err(format!("{path} exceeds {MAX_FILE} bytes"));
    }
    Ok(String::from_utf8_lossy(&data).into_owned())
}

struct Passwd<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

impl<'a> Passwd<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let mut fields = line.trim().split(':');
        let name = fields.next().filter(|name| !name.is_empty() && !name.starts_with('#'))?;
        fields.next();
        let mut number = || fields.next().and_then(|text| text.parse().ok()).unwrap_or(0);
        let (uid, gid) = (number(), number());
        fields.next();
        Some(Self { name, uid, gid, home: fields.next().unwrap_or("") })
    }
}

struct Group<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

impl<'a> Group<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let mut fields = line.trim().split(':');
        let name = fields.next().filter(|name| !name.is_empty() && !name.starts_with('#'))?;
        fields.next();
        let gid = fields.next().and_then(|text| text.parse().ok()).unwrap_or(0);
        Some(Self { name, gid, members: fields.next().unwrap_or("") })
    }
}

fn search(text: &str, passwd: &str, group: &str) -> Result<User, String> {
    let (user, wanted_group) = text.split_once(':').unwrap_or((text, ""));
    let number = |text: &str| text.parse::<u32>().ok().filter(|number| *number <= i32::MAX as u32);
    let entry = passwd
        .lines()
        .filter_map(Passwd::parse)
        // A number is never taken for a name.
        .find(|entry| match (user, number(user)) {
            ("", _) => entry.uid == 0,
            (_, Some(uid)) => entry.uid == uid,
            (name, None) => entry.name == name,
        });
    let (uid, gid) = match (&entry, number(user)) {
        (Some(entry), _) => (entry.uid, entry.gid),
        (None, Some(uid)) => (uid, 0),
        (None, None) if user.is_empty() => (0, 0),
        (None, None) => return Err("no matching entries in passwd file".to_owned()),
    };
    if !wanted_group.is_empty() {
        let gid = group
            .lines()
            .filter_map(Group::parse)
            .find(|entry| entry.name == wanted_group)
            .map(|entry| entry.gid)
            .or_else(|| number(wanted_group))
            .ok_or_else(|| "no matching entries in group file".to_owned())?;
        return Ok(User::new(uid, gid, Vec::new()));
    }
    let groups = match &entry {
        Some(entry) => group
            .lines()
            .filter_map(Group::parse)
            .filter(|group| group.members.split(',').any(|member| member.trim() == entry.name))
            .map(|group| group.gid)
            .collect(),
        None => Vec::new(),
    };
    Ok(User::new(uid, gid, groups))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n# comment\napp:x:1000:1001:App:/home/app:/bin/sh\n7:x:70:71::/:\n";
    const GROUP: &str = "root:x:0:\napp:x:1001:\nwheel:x:10:root,app\naudio:x:29:app\n";

    fn check(user: &str, expected: &str) {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("etc")).unwrap();
        std::fs::write(folder.path().join("etc/passwd"), PASSWD).unwrap();
        // An absolute link that must not leave the tree.
        std::fs::write(folder.path().join("group"), GROUP).unwrap();
        std::os::unix::fs::symlink("/group", folder.path().join("etc/group")).unwrap();
        let root =
            rustix::fs::open(folder.path(), OFlags::PATH, rustix::fs::Mode::empty()).unwrap();
        let found = match find(&root, user) {
            Ok(User { uid, gid, groups }) => format!("{uid}:{gid} {groups:?}"),
            Err(error) => error.to_string(),
        };
        assert_eq!(found, expected, "user {user:?}");
    }

    #[test]
    fn users_are_found() {
        check("", "0:0 [0, 10]");
        check("root", "0:0 [0, 10]");
        check("app", "1000:1001 [1001, 10, 29]");
        check("1000", "1000:1001 [1001, 10, 29]");
        check("app:wheel", "1000:10 [10]");
        check("app:5", "1000:5 [5]");
        check("5:6", "5:6 [6]");
        check("root:root", "0:0 [0]");
        check("4242", "4242:0 [0]");
        check("7", "7:0 [0]");
        check("nobody", "unable to find user nobody: no matching entries in passwd file");
        check("app:nogroup", "unable to find user app:nogroup: no matching entries in group file");
    }

    #[test]
    fn homes_are_found() {
        let folder = tempfile::tempdir().unwrap();
        let root =
            rustix::fs::open(folder.path(), OFlags::PATH, rustix::fs::Mode::empty()).unwrap();
        assert_eq!(home(&root, 0), "/");
        std::fs::create_dir(folder.path().join("etc")).unwrap();
        std::fs::write(folder.path().join("etc/passwd"), PASSWD).unwrap();
        assert_eq!(
            (home(&root, 0), home(&root, 1000), home(&root, 5)),
            ("/root".into(), "/home/app".into(), "/".into())
        );
    }
}
