//! The copy action: from wildcards to the last attribute of the last file.
//!
//! A source folder is walked with an explicit stack of open folders, in name order. Plain files of
//! one folder are copied in parallel when there are many; everything that others refer to (folders,
//! hard links) happens in order. A folder gets its own metadata after everything in it.

use std::{
    collections::HashMap,
    fs::File,
    io::Read as _,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
};

use base::pattern::{MatchInfo, Patterns};
use rayon::prelude::*;
use rustix::{
    fs::{AtFlags, Mode, OFlags},
    io::Errno,
};

use super::{
    CopyOptions, FileError, ModeChange, Owner,
    places::{self, NewFolder, shown},
    transfer, wildcard,
};
use crate::{
    Limits, Tree,
    layer::{LayerError, compression, tar_read::TarReader, unpack},
    scoped,
    sys::{self, At, Meta, SysResult, Time},
};

/// Mode of folders that are made on the way.
const FOLDER_MODE: u32 = 0o755;

/// From so many plain files in one folder on they are copied in parallel.
const MANY: usize = 8;

/// Copies `src` of `source` (none is an empty tree) to `dest` of `target`.
pub fn copy(
    source: Option<&Tree>,
    src: &str,
    target: &Tree,
    dest: &str,
    options: &CopyOptions,
) -> Result<(), FileError> {
    let (src, dest) = (clean(src), clean(dest));
    let mut job = Job::new(target, options)?;
    if !options.create_dest_path {
        let place = places::resolve(target.fd(), &dest)?;
        let (parent, _) = place.split();
        if let Err(error) = scoped::open(target.fd(), parent, OFlags::PATH) {
            let path = format!("stat {dest}: lstat");
            return Err(FileError::io("failed to", format!("{path} {}", shown(parent)), error));
        }
    }
    let nothing;
    let source = match source {
        Some(source) => source,
        None => {
            nothing = EmptyTree::new()?;
            &nothing.tree
        }
    };
    let root = source.fd();
    let sources = if options.allow_wildcard {
        wildcard::resolve(root, &src, options.follow_symlink)?
    } else {
        vec![src.clone().into_bytes()]
    };
    if sources.is_empty() {
        return if options.allow_empty_wildcard { Ok(()) } else { Err(FileError::NotFound(src)) };
    }
    for found in &sources {
        if options.unpack && job.unpack(root, found, &dest)? {
            continue;
        }
        job.copy_one(root, found, &dest)?;
    }
    Ok(())
}

/// The source that no input stands for.
struct EmptyTree {
    tree: Tree,
    _folder: tempfile::TempDir,
}

impl EmptyTree {
    fn new() -> Result<Self, FileError> {
        let make = || -> std::io::Result<Self> {
            let folder = tempfile::tempdir()?;
            sys::chmod(rustix::fs::CWD, &crate::folders::bytes(folder.path()), FOLDER_MODE)?;
            let tree = Tree::of_folder(folder.path(), false).map_err(std::io::Error::other)?;
            Ok(Self { tree, _folder: folder })
        };
        make().map_err(|error| FileError::io("open", "/", error))
    }
}

/// As the client wrote it, but absolute and without detours; `/` and `/.` at the end say something
/// and are kept.
fn clean(path: &str) -> String {
    let mut clean = base::path::absolute(path);
    if path.ends_with("/.") {
        if clean != "/" {
            clean.push('/');
        }
        clean.push('.');
    } else if path.ends_with('/') && clean != "/" {
        clean.push('/');
    }
    clean
}

/// Last component; `.` counts as one.
fn base(path: &[u8]) -> &[u8] {
    let end = path.iter().rposition(|byte| *byte != b'/').map_or(0, |at| at + 1);
    scoped::split(&path[..end]).1
}

/// One copy action.
struct Job<'a> {
    target: &'a Tree,
    options: &'a CopyOptions,
    attributes: Attributes,
    include: Option<Patterns>,
    exclude: Option<Patterns>,
}

/// What the entries made get instead of the source's attributes.
#[derive(Clone)]
struct Attributes {
    owner: Option<Owner>,
    mode: Option<u32>,
    change: Option<ModeChange>,
    time: Option<Time>,
}

impl Attributes {
    fn mode(&self, meta: &Meta) -> u32 {
        match (&self.change, self.mode) {
            (Some(change), _) => change.apply(meta.mode, meta.is_dir()),
            (None, Some(mode)) => mode & 0o7777,
            (None, None) => meta.permissions(),
        }
    }

    fn owner(&self, meta: &Meta) -> Owner {
        self.owner.unwrap_or(Owner { uid: meta.uid, gid: meta.gid })
    }

    fn times(&self, meta: &Meta) -> (Time, Time) {
        self.time.map_or((meta.atime, meta.mtime), |time| (time, time))
    }

    /// Owner, mode, times and xattrs of a name just made.
    fn apply(&self, source: At, meta: &Meta, at: BorrowedFd<'_>, name: &[u8]) -> SysResult<()> {
        let Owner { uid, gid } = self.owner(meta);
        sys::chown(at, name, uid, gid)?;
        if !meta.is_symlink() {
            sys::chmod(at, name, self.mode(meta))?;
        }
        transfer::xattrs(source, At::Name(at, name));
        let (atime, mtime) = self.times(meta);
        sys::set_times(at, name, atime, mtime)
    }
}

fn patterns(list: &[String], name: &str) -> Result<Option<Patterns>, FileError> {
    if list.is_empty() {
        return Ok(None);
    }
    Patterns::new(list).map(Some).map_err(|error| {
        FileError::Refused(format!("invalid {name}: [{}]: {error}", list.join(" ")))
    })
}

impl<'a> Job<'a> {
    fn new(target: &'a Tree, options: &'a CopyOptions) -> Result<Self, FileError> {
        let change = match &options.mode_text[..] {
            "" => None,
            text => Some(
                ModeChange::parse(text).map_err(|error| FileError::Refused(error.to_string()))?,
            ),
        };
        let attributes = Attributes {
            owner: options.owner,
            mode: options.mode,
            change,
            time: options.timestamp.map(Time::from_nanos),
        };
        let include = patterns(&options.include, "includepatterns")?;
        let exclude = patterns(&options.exclude, "excludepatterns")?;
        Ok(Self { target, options, attributes, include, exclude })
    }

    fn folders_on_the_way(&self) -> NewFolder {
        NewFolder {
            // With a change in chmod syntax there is no mode to start from.
            mode: match self.options.mode_text.is_empty() {
                true => self.options.mode.unwrap_or(FOLDER_MODE),
                false => FOLDER_MODE,
            },
            owner: self.options.owner,
            timestamp: self.options.timestamp,
        }
    }

    fn copy_one(
        &mut self,
        source: BorrowedFd<'_>,
        src: &[u8],
        dest: &str,
    ) -> Result<(), FileError> {
        let root = self.target.fd();
        let new = self.folders_on_the_way();
        let (front, last) = dest.rsplit_once('/').unwrap_or(("", dest));
        let holder = if last.is_empty() || last == "." { dest } else { front };
        let holder = places::resolve(root, holder)?;
        let mut made = places::make_folders(root, &holder.path, new)?;

        let from = find_source(source, src, self.options.follow_symlink)?;
        let place = places::resolve(root, dest)?;
        let existing = match &place.fd {
            Some(fd) => Some(sys::stat_fd(fd).map_err(|error| failed("stat", &place.path)(error))?),
            None => None,
        };
        let contents = self.options.copy_dir_contents && from.meta.is_dir();
        let inside = match &existing {
            Some(_) if from.meta.is_dir() => !contents,
            Some(existing) => existing.is_dir(),
            None => false,
        };
        let mut path = place.path;
        let name = base(src);
        if inside && !matches!(name, b"" | b".") {
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(name);
        }
        let folder = match contents && existing.is_none() {
            true => path.clone(),
            false => scoped::split(&path).0.to_vec(),
        };
        made.extend(places::make_folders(root, &folder, new)?);
        self.copy_tree(&from, &path)?;
        places::restore_times(root, &made, self.options.timestamp)
    }

    /// Copies an entry to the resolved path `path`, whose folder exists.
    fn copy_tree(&mut self, from: &Source, path: &[u8]) -> Result<(), FileError> {
        let (parent, name) = scoped::split(path);
        let holder =
            places::open_folder(self.target.fd(), parent).map_err(failed("open", parent))?;
        // The root has no name of its own.
        let name = if name.is_empty() { &b"."[..] } else { name };
        let mut walk = Walk {
            job: self,
            links: HashMap::new(),
            source_path: from.path.clone(),
            target_path: path.to_vec(),
            relative: Vec::new(),
            stack: Vec::new(),
        };
        if !from.meta.is_dir() {
            return walk.leaf(from.folder.as_fd(), &from.name, &from.meta, holder.as_fd(), name);
        }
        walk.run(from, holder, name)
    }

    /// Unpacks the source if it is a tar; false if it is none.
    fn unpack(
        &mut self,
        source: BorrowedFd<'_>,
        src: &[u8],
        dest: &str,
    ) -> Result<bool, FileError> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK;
        let open = || -> Option<File> {
            let probe = scoped::open(source, src, OFlags::PATH).ok()?;
            // Looked at before it is opened, because opening a device does something.
            sys::stat_fd(&probe).ok()?.is_file().then_some(())?;
            scoped::open(source, src, flags).ok().map(File::from)
        };
        let Some(file) = open() else { return Ok(false) };
        if !is_tar(&file) {
            return Ok(false);
        }
        let root = self.target.fd();
        let place = places::resolve(root, dest)?;
        let new = NewFolder { mode: FOLDER_MODE, ..self.folders_on_the_way() };
        let made = places::make_folders(root, &place.path, new)?;
        let refused = |cause| FileError::Unpack { path: shown(src), cause };
        rustix::fs::seek(&file, rustix::fs::SeekFrom::Start(0)).map_err(failed("read", src))?;
        let mut tar = compression::decompress(file)
            .map_err(|cause| refused(LayerError::Stream { doing: "read", cause }))?;
        let limits = Limits { brake: self.target.brake().clone(), ..Limits::default() };
        unpack(self.target, &place.path, &mut tar, &limits, self.options.owner).map_err(refused)?;
        places::restore_times(root, &made, self.options.timestamp)?;
        Ok(true)
    }
}

/// Whether the file begins like a tar, compressed or not, with at least one entry.
fn is_tar(file: &File) -> bool {
    let Ok(mut stream) = compression::decompress(file.take(u64::MAX)) else { return false };
    let limits = Limits::default();
    matches!(TarReader::new(&mut stream, &limits).next(), Ok(Some(_)))
}

/// A source, found.
struct Source {
    folder: OwnedFd,
    /// Name in that folder; `.` for the root.
    name: Vec<u8>,
    meta: Meta,
    /// For messages.
    path: Vec<u8>,
}

fn find_source(root: BorrowedFd<'_>, src: &[u8], follow: bool) -> Result<Source, FileError> {
    let missing = |error: Errno| FileError::io("lstat", shown(src), error);
    let clean = clean_bytes(src);
    let real = scoped::resolve(root, &clean, follow).map_err(|error| match error {
        Errno::LOOP => FileError::Refused(format!("too many links in {}", shown(src))),
        error => missing(error),
    })?;
    let (parent, name) = real.split();
    let folder = places::open_folder(root.as_fd(), parent).map_err(&missing)?;
    let name = if name.is_empty() { b".".to_vec() } else { name.to_vec() };
    let meta = sys::stat_at(&folder, &name).map_err(missing)?;
    Ok(Source { folder, name, meta, path: real.path })
}

/// A path relative to the root, cleaned as text.
fn clean_bytes(path: &[u8]) -> Vec<u8> {
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in scoped::components(path) {
        if part == b".." {
            parts.pop();
        } else {
            parts.push(part);
        }
    }
    parts.join(&b'/')
}

fn failed<'p>(doing: &'static str, path: &'p [u8]) -> impl Fn(Errno) -> FileError + use<'p> {
    move |error| FileError::io(doing, shown(path), error)
}

/// The recursion below one source.
struct Walk<'j, 'a> {
    job: &'j Job<'a>,
    /// First copies of hard-linked files, by resolved target path.
    links: HashMap<((u32, u32), u64), Vec<u8>>,
    /// The entry being copied: in the source, in the target, and relative to where it began.
    source_path: Vec<u8>,
    target_path: Vec<u8>,
    relative: Vec<u8>,
    stack: Vec<Folder>,
}

/// A source folder being copied.
struct Folder {
    source: OwnedFd,
    meta: Meta,
    names: std::vec::IntoIter<sys::Entry>,
    /// Plain files put off to be copied together.
    files: Vec<(Box<[u8]>, Meta)>,
    /// Where it goes, once it is made.
    target: Option<OwnedFd>,
    /// Its name there.
    name: Vec<u8>,
    /// It was matched itself, rather than only something in it.
    included: bool,
    /// It did not exist before.
    made: bool,
    include: Option<MatchInfo>,
    exclude: Option<MatchInfo>,
    /// Lengths to which the three paths are cut.
    lengths: [usize; 3],
}

/// What the patterns say about an entry.
struct Verdict {
    included: bool,
    /// Nothing below can be included either.
    closed: bool,
    include: Option<MatchInfo>,
    exclude: Option<MatchInfo>,
}

impl Walk<'_, '_> {
    fn run(&mut self, from: &Source, holder: OwnedFd, name: &[u8]) -> Result<(), FileError> {
        let verdict = Verdict { included: true, closed: false, include: None, exclude: None };
        self.enter(from.folder.as_fd(), &from.name, &from.meta, name.to_vec(), verdict, &holder)?;
        while let Some(top) = self.stack.last_mut() {
            let Some(entry) = top.names.next() else {
                self.leave(&holder)?;
                continue;
            };
            let lengths = top.lengths;
            self.cut(lengths);
            push(&mut self.source_path, &entry.name);
            push(&mut self.target_path, &entry.name);
            push(&mut self.relative, &entry.name);
            self.entry(&entry.name, &holder)?;
        }
        Ok(())
    }

    fn cut(&mut self, lengths: [usize; 3]) {
        self.source_path.truncate(lengths[0]);
        self.target_path.truncate(lengths[1]);
        self.relative.truncate(lengths[2]);
    }

    fn entry(&mut self, name: &[u8], holder: &OwnedFd) -> Result<(), FileError> {
        let verdict = self.verdict();
        if !verdict.included && verdict.closed {
            return Ok(());
        }
        let top = self.stack.last().expect("an entry is in a folder");
        let meta = sys::stat_at(&top.source, name).map_err(failed("lstat", &self.source_path))?;
        if meta.is_dir() {
            let source = top
                .source
                .try_clone()
                .map_err(|error| FileError::io("open", shown(&self.source_path), error))?;
            return self.enter(source.as_fd(), name, &meta, name.to_vec(), verdict, holder);
        }
        if !verdict.included {
            return Ok(());
        }
        self.make_pending(holder)?;
        let top = self.stack.last_mut().expect("an entry is in a folder");
        if meta.is_file() && meta.links == 1 {
            top.files.push((name.into(), meta));
            return Ok(());
        }
        let clone = |fd: &OwnedFd| {
            fd.try_clone().map_err(|error| FileError::io("open", shown(&self.target_path), error))
        };
        let source = clone(&top.source)?;
        let target = clone(top.target.as_ref().expect("the folder was made for its members"))?;
        self.leaf(source.as_fd(), name, &meta, target.as_fd(), name)
    }

    fn verdict(&self) -> Verdict {
        let job = self.job;
        let parent = self.stack.last().expect("an entry is in a folder");
        let path = String::from_utf8_lossy(&self.relative);
        let mut verdict = Verdict { included: true, closed: false, include: None, exclude: None };
        if let Some(patterns) = &job.include {
            let (matched, info) = patterns.matches_below(&path, parent.include.as_ref());
            verdict.included = matched;
            verdict.include = Some(info);
        }
        if let Some(patterns) = &job.exclude {
            let (matched, info) = patterns.matches_below(&path, parent.exclude.as_ref());
            verdict.exclude = Some(info);
            if matched {
                verdict.included = false;
                verdict.closed = !patterns.has_exceptions();
            }
        }
        verdict
    }

    /// Begins a folder. It is made at once if it was matched itself, else with its first member.
    fn enter(
        &mut self,
        at: BorrowedFd<'_>,
        source_name: &[u8],
        meta: &Meta,
        name: Vec<u8>,
        verdict: Verdict,
        holder: &OwnedFd,
    ) -> Result<(), FileError> {
        if self.stack.len() >= sys::MAX_DEPTH {
            let path = shown(&self.source_path[..self.source_path.len().min(100)]);
            return Err(FileError::Refused(format!("{path}…: folders are nested too deeply")));
        }
        let source = sys::open_dir(at, source_name).map_err(failed("open", &self.source_path))?;
        let names = sys::read_dir_sorted(&source).map_err(failed("read", &self.source_path))?;
        let lengths = [self.source_path.len(), self.target_path.len(), self.relative.len()];
        let included = verdict.included;
        self.stack.push(Folder {
            source,
            meta: *meta,
            names: names.into_iter(),
            files: Vec::new(),
            target: None,
            name,
            included,
            made: false,
            include: verdict.include,
            exclude: verdict.exclude,
            lengths,
        });
        if included { self.make_pending(holder) } else { Ok(()) }
    }

    /// Makes the folders on the stack that were put off.
    fn make_pending(&mut self, holder: &OwnedFd) -> Result<(), FileError> {
        let first = self.stack.iter().position(|folder| folder.target.is_none());
        for at in first.unwrap_or(self.stack.len())..self.stack.len() {
            let (done, rest) = self.stack.split_at_mut(at);
            let parent = match done.last() {
                Some(parent) => parent.target.as_ref().expect("outer folders are made first"),
                None => holder,
            };
            let folder = &mut rest[0];
            let path = &self.target_path[..folder.lengths[1]];
            folder.made = make_folder(parent.as_fd(), &folder.name, path, self.job.options)?;
            if !folder.made && at > 0 && !folder.included {
                sys::chmod(parent, &folder.name, folder.meta.mode)
                    .map_err(failed("chmod", path))?;
            }
            let target = sys::open_dir(parent, &folder.name).map_err(failed("open", path))?;
            folder.target = Some(target);
        }
        Ok(())
    }

    /// Ends the innermost folder: its plain files, then its own metadata.
    fn leave(&mut self, holder: &OwnedFd) -> Result<(), FileError> {
        let folder = self.stack.pop().expect("a folder is being left");
        self.cut(folder.lengths);
        let Some(target) = &folder.target else { return Ok(()) };
        self.files(&folder, target)?;
        let attributes = &self.job.attributes;
        let parent = match self.stack.last() {
            Some(parent) => parent.target.as_ref().expect("outer folders are made first"),
            None => holder,
        };
        let top = self.stack.is_empty();
        let result = if folder.made || folder.included && !top {
            let source = At::Fd(folder.source.as_fd());
            attributes.apply(source, &folder.meta, parent.as_fd(), &folder.name)
        } else if top {
            let (atime, mtime) = attributes.times(&folder.meta);
            sys::set_times(parent, &folder.name, atime, mtime)
        } else {
            Ok(())
        };
        result.map_err(failed("set the attributes of", &self.target_path))
    }

    fn files(&self, folder: &Folder, target: &OwnedFd) -> Result<(), FileError> {
        let one = |(name, meta): &(Box<[u8]>, Meta)| {
            let mut path = self.target_path.clone();
            push(&mut path, name);
            plain_file(self.job, (folder.source.as_fd(), name, meta), (target.as_fd(), name), &path)
        };
        if folder.files.len() < MANY {
            return folder.files.iter().try_for_each(one);
        }
        folder.files.par_iter().try_for_each(one)
    }

    /// Copies anything but a folder.
    fn leaf(
        &mut self,
        source: BorrowedFd<'_>,
        from: &[u8],
        meta: &Meta,
        target: BorrowedFd<'_>,
        to: &[u8],
    ) -> Result<(), FileError> {
        let path = &self.target_path;
        if meta.is_file() && meta.links > 1 {
            let inode = (meta.dev, meta.ino);
            if let Some(first) = self.links.get(&inode) {
                let (holder, first) = scoped::split(first);
                let holder = places::open_folder(self.job.target.fd(), holder)
                    .map_err(failed("link", path))?;
                let make = || rustix::fs::linkat(&holder, first, target, to, AtFlags::empty());
                return replacing(target, to, path, self.job.options, make)
                    .and_then(|done| done.map_err(failed("link", path)));
            }
            self.links.insert(inode, path.clone());
        }
        if meta.is_file() {
            return plain_file(self.job, (source, from, meta), (target, to), path);
        }
        let text = match meta.is_symlink() {
            true => sys::read_link(source, from).map_err(failed("readlink", &self.source_path))?,
            false => Vec::new(),
        };
        let make = || match meta.kind() {
            sys::SYMLINK => rustix::fs::symlinkat(&text[..], target, to),
            // Sockets cannot be copied and become files; the bits that tell a socket are taken off
            // every kind, which makes character devices of block devices.
            kind => {
                let kind = match kind & !sys::SOCKET {
                    0 => sys::FILE,
                    kind => kind,
                };
                sys::make_node(target, to, kind, 0o600, meta.rdev)
            }
        };
        replacing(target, to, path, self.job.options, make)?.map_err(failed("mknod", path))?;
        self.job
            .attributes
            .apply(At::Name(source, from), meta, target, to)
            .map_err(failed("set the attributes of", path))
    }
}

fn push(path: &mut Vec<u8>, name: &[u8]) {
    if !path.is_empty() {
        path.push(b'/');
    }
    path.extend_from_slice(name);
}

/// Makes a folder unless it exists; true if it was made.
fn make_folder(
    at: BorrowedFd<'_>,
    name: &[u8],
    path: &[u8],
    options: &CopyOptions,
) -> Result<bool, FileError> {
    let make = || rustix::fs::mkdirat(at, name, Mode::from_raw_mode(0o700));
    let failed = || failed("mkdir", path);
    match make() {
        Ok(()) => return Ok(true),
        Err(Errno::EXIST) => {}
        Err(error) => return Err(failed()(error)),
    }
    if name == b"." || sys::stat_at(at, name).map_err(failed())?.is_dir() {
        return Ok(false);
    }
    if !options.always_replace {
        return Err(FileError::Refused(format!("cannot copy to non-directory: {}", shown(path))));
    }
    sys::remove_all(at, name).and_then(|()| make()).map_err(failed())?;
    Ok(true)
}

/// Makes something that is no folder, in place of what is there.
fn replacing<T>(
    at: BorrowedFd<'_>,
    name: &[u8],
    path: &[u8],
    options: &CopyOptions,
    make: impl Fn() -> SysResult<T>,
) -> Result<SysResult<T>, FileError> {
    match make() {
        Err(Errno::EXIST) => {}
        other => return Ok(other),
    }
    let remove = |error| failed("remove", path)(error);
    if name == b"." || sys::stat_at(at, name).map_err(remove)?.is_dir() {
        if !options.always_replace || name == b"." {
            let text = format!("cannot replace to directory {} with file", shown(path));
            return Err(FileError::Refused(text));
        }
        sys::remove_all(at, name).map_err(remove)?;
    } else {
        rustix::fs::unlinkat(at, name, AtFlags::empty()).map_err(remove)?;
    }
    Ok(make())
}

fn plain_file(
    job: &Job,
    (source, from, meta): (BorrowedFd<'_>, &[u8], &Meta),
    (target, to): (BorrowedFd<'_>, &[u8]),
    path: &[u8],
) -> Result<(), FileError> {
    let input = File::from(sys::open_file(source, from).map_err(failed("open", path))?);
    let make = || transfer::create_file(target, to);
    let output = replacing(target, to, path, job.options, make)?.map_err(failed("create", path))?;
    transfer::content(&input, &output, meta, Some(job.target.brake()))
        .map_err(|error| FileError::io("write", shown(path), error))?;
    let attributes = &job.attributes;
    let set = || -> SysResult<()> {
        let Owner { uid, gid } = attributes.owner(meta);
        sys::chown_fd(&output, uid, gid)?;
        sys::chmod_fd(&output, attributes.mode(meta))?;
        transfer::xattrs(At::Fd(input.as_fd()), At::Fd(output.as_fd()));
        let (atime, mtime) = attributes.times(meta);
        sys::set_times_fd(&output, atime, mtime)
    };
    set().map_err(failed("set the attributes of", path))
}
