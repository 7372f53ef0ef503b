//! Changes of the metadata that the database does not have yet, in plain files.
//!
//! A change is appended the moment it is made and not synced: the kernel keeps it when the daemon is
//! killed. What it names may not be on disk yet, so a journal is believed only while the machine that
//! wrote it runs (the boot id stands in its first line); after a loss of power the database alone
//! counts. A journal goes once the database has its changes.

use std::{
    fs::File,
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use bytes::{Buf as _, BufMut as _, Bytes};

use crate::{
    StoreError,
    error::Doing as _,
    meta::{Change, T},
};

const HEADER: &str = "rbuild-journal 1 ";
/// Length and checksum in front of each group of changes.
const FRAME_HEAD: usize = 8;

/// Writes journals, one after the other.
#[derive(Debug)]
pub(crate) struct Journal {
    /// Path of the database; journals are called like it, with a number.
    database: PathBuf,
    first_line: Option<String>,
    next: u64,
    current: Option<Open>,
}

#[derive(Debug)]
struct Open {
    path: PathBuf,
    file: File,
    length: u64,
}

/// What journals of earlier daemons hold.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// Groups of changes, oldest first.
    pub(crate) groups: Vec<Vec<Change>>,
    /// The files; to be removed once the database has the changes.
    pub(crate) files: Vec<PathBuf>,
}

impl Journal {
    /// Reads what earlier daemons left beside the database and starts behind it.
    pub(crate) fn open(database: &Path) -> Result<(Self, Found), StoreError> {
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok();
        let first_line = boot.map(|boot| format!("{HEADER}{}\n", boot.trim()));
        let doing = || format!("list journals of {}", database.display());
        let mut numbers = Vec::new();
        if let (Some(folder), Some(name)) = (database.parent(), database.file_name()) {
            let prefix = format!("{}-journal-", name.to_string_lossy());
            for entry in folder.read_dir().doing(doing)? {
                let name = entry.doing(doing)?.file_name();
                let number = name.to_str().and_then(|name| name.strip_prefix(&prefix));
                numbers.extend(number.and_then(|number| number.parse::<u64>().ok()));
            }
        }
        numbers.sort_unstable();
        let next = numbers.last().map_or(0, |last| last + 1);
        let journal = Self { database: database.to_owned(), first_line, next, current: None };
        let mut found = Found::default();
        for number in numbers {
            let path = journal.path(number);
            let content =
                std::fs::read(&path).doing(|| format!("read journal {}", path.display()))?;
            let known = journal.first_line.as_ref().map(String::as_bytes);
            match known.and_then(|line| content.strip_prefix(line)) {
                Some(frames) => {
                    let start = content.len() - frames.len();
                    found.groups.extend(groups(Bytes::from(content).slice(start..)));
                }
                None => tracing::info!("{}: of before the last boot, ignored", path.display()),
            }
            found.files.push(path);
        }
        Ok((journal, found))
    }

    fn path(&self, number: u64) -> PathBuf {
        let mut path = self.database.clone().into_os_string();
        path.push(format!("-journal-{number}"));
        path.into()
    }

    /// Appends a group of changes: all of them are read back, or none.
    pub(crate) fn append(&mut self, changes: &[Change]) -> io::Result<()> {
        if self.current.is_none() {
            let Some(first_line) = &self.first_line else {
                return Err(io::Error::other("the machine's boot id cannot be read"));
            };
            let path = self.path(self.next);
            let mut file = File::options().write(true).create_new(true).open(&path)?;
            self.next += 1;
            if let Err(error) = file.write_all(first_line.as_bytes()) {
                _ = std::fs::remove_file(&path);
                return Err(error);
            }
            self.current = Some(Open { path, file, length: first_line.len() as u64 });
        }
        let open = self.current.as_mut().expect("it was opened");
        let frame = frame(changes);
        open.file.write_all(&frame)?;
        open.length += frame.len() as u64;
        Ok(())
    }

    /// Bytes of the current journal.
    pub(crate) fn length(&self) -> u64 {
        self.current.as_ref().map_or(0, |open| open.length)
    }

    /// The current journal's file.
    pub(crate) fn current(&self) -> Option<&Path> {
        self.current.as_ref().map(|open| &*open.path)
    }

    /// Ends the current journal; the next change begins another.
    pub(crate) fn seal(&mut self) -> Option<PathBuf> {
        self.current.take().map(|open| open.path)
    }
}

fn frame(changes: &[Change]) -> Vec<u8> {
    let mut frame = vec![0; FRAME_HEAD];
    for (table, key, value) in changes {
        frame.put_u8(*table as u8);
        put(&mut frame, key);
        match value {
            Some(value) => {
                frame.put_u8(1);
                put(&mut frame, value);
            }
            None => frame.put_u8(0),
        }
    }
    let length = u32::try_from(frame.len() - FRAME_HEAD).expect("changes are small");
    let checksum = crc32fast::hash(&frame[FRAME_HEAD..]);
    frame[..4].copy_from_slice(&length.to_be_bytes());
    frame[4..FRAME_HEAD].copy_from_slice(&checksum.to_be_bytes());
    frame
}

fn put(frame: &mut Vec<u8>, bytes: &[u8]) {
    frame.put_u32(u32::try_from(bytes.len()).expect("keys and values are small"));
    frame.put_slice(bytes);
}

/// The groups up to the first that is not whole.
fn groups(mut frames: Bytes) -> impl Iterator<Item = Vec<Change>> {
    std::iter::from_fn(move || {
        let length = frames.try_get_u32().ok()? as usize;
        let checksum = frames.try_get_u32().ok()?;
        if frames.len() < length {
            return None;
        }
        let mut group = frames.split_to(length);
        if crc32fast::hash(&group) != checksum {
            return None;
        }
        let mut changes = Vec::new();
        while !group.is_empty() {
            changes.push(change(&mut group)?);
        }
        Some(changes)
    })
}

fn change(group: &mut Bytes) -> Option<Change> {
    let table = *T::ALL.get(usize::from(group.try_get_u8().ok()?))?;
    let key = take(group)?.to_vec();
    let value = match group.try_get_u8().ok()? {
        0 => None,
        _ => Some(take(group)?),
    };
    Some((table, key, value))
}

fn take(group: &mut Bytes) -> Option<Bytes> {
    let length = group.try_get_u32().ok()? as usize;
    (length <= group.len()).then(|| group.split_to(length))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(found: &Found) -> String {
        let change = |(table, key, value): &Change| {
            let value = value.as_ref().map(|value| String::from_utf8_lossy(value).into_owned());
            format!("{table:?}/{}={}", String::from_utf8_lossy(key), value.unwrap_or_default())
        };
        let group = |group: &Vec<Change>| group.iter().map(change).collect::<Vec<_>>().join(" ");
        found.groups.iter().map(group).collect::<Vec<_>>().join("; ")
    }

    #[test]
    fn whole_groups_of_this_boot_are_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let database = folder.path().join("meta");
        let set = |table, key: &str, value: Option<&'static str>| {
            (table, key.as_bytes().to_vec(), value.map(Bytes::from))
        };
        let (mut journal, found) = Journal::open(&database).unwrap();
        assert_eq!(shown(&found), "");
        journal.append(&[set(T::Values, "a", Some("1")), set(T::Info, "b", Some(""))]).unwrap();
        journal.append(&[set(T::Records, "c", None)]).unwrap();
        let first = journal.seal().unwrap();
        journal.append(&[set(T::Values, "d", Some("2"))]).unwrap();
        let (mut journal, found) = Journal::open(&database).unwrap();
        assert_eq!(shown(&found), "Values/a=1 Info/b=; Records/c=; Values/d=2");
        assert_eq!(found.files.len(), 2);

        // Cut, or garbled, a group counts for nothing, and so does what follows it there.
        let content = std::fs::read(&first).unwrap();
        for length in content.len() - 3..content.len() {
            std::fs::write(&first, &content[..length]).unwrap();
            let (_, found) = Journal::open(&database).unwrap();
            assert_eq!(shown(&found), "Values/a=1 Info/b=; Values/d=2");
        }
        let mut garbled = content.clone();
        garbled[60] ^= 1;
        std::fs::write(&first, garbled).unwrap();
        let (_, found) = Journal::open(&database).unwrap();
        assert_eq!(shown(&found), "Values/d=2");

        // Of another boot.
        let mut other = content;
        other[HEADER.len()] ^= 1;
        std::fs::write(&first, other).unwrap();
        journal.append(&[set(T::Values, "e", Some("3"))]).unwrap();
        let (_, found) = Journal::open(&database).unwrap();
        assert_eq!(shown(&found), "Values/d=2; Values/e=3");
        assert_eq!(found.files.len(), 3);
    }
}
