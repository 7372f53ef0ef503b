//! The proxy's certificate among those that a step trusts.
//!
//! It is appended to the first bundle of the usual ones that exists, since a step may replace that
//! file, which a mount would not allow, and cut off again afterwards, with the file's times as they
//! were. What the step did to the file meanwhile stays.

use std::{
    fs::{File, FileTimes},
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::fs::FileExt as _,
    },
    sync::Arc,
    time::SystemTime,
};

use rustix::{
    fs::{Mode, OFlags, ResolveFlags},
    io::Errno,
};

use crate::ProxyError;

/// Where systems keep the certificates they trust.
const BUNDLES: [&str; 6] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/tls/cacert.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/cert.pem",
];
const BEGIN: &str = "\n# buildkit proxy CA begin\n";
const END: &str = "# buildkit proxy CA end\n";
/// Longest bundle.
const MOST_BYTES: u64 = 10 << 20;

/// A bundle that was completed; as before once dropped.
pub(crate) struct Trust {
    root: Arc<OwnedFd>,
    path: &'static str,
    /// What was appended.
    added: String,
    modified: SystemTime,
    accessed: SystemTime,
}

impl Trust {
    /// Completes the trusted certificates of a tree, if it has any.
    pub(crate) fn add(root: Arc<OwnedFd>, pem: &str) -> Result<Option<Self>, ProxyError> {
        for path in BUNDLES {
            let failed = |source| ProxyError::Trust { path, source };
            let Some(mut file) = open(&root, path).map_err(failed)? else { continue };
            let metadata = file.metadata().map_err(failed)?;
            let modified = metadata.modified().map_err(failed)?;
            let accessed = metadata.accessed().map_err(failed)?;
            let text = read(&mut file).map_err(failed)?;
            if find(&text, pem.as_bytes()).is_some() {
                return Ok(None);
            }
            let newline = if text.is_empty() || text.ends_with(b"\n") { "" } else { "\n" };
            let added = format!("{newline}{BEGIN}{pem}{END}");
            file.seek(SeekFrom::End(0)).map_err(failed)?;
            file.write_all(added.as_bytes()).map_err(failed)?;
            return Ok(Some(Self { root, path, added, modified, accessed }));
        }
        Ok(None)
    }

    fn remove(&self) -> io::Result<()> {
        let Some(mut file) = open(&self.root, self.path)? else { return Ok(()) };
        let text = read(&mut file)?;
        let Some(start) = find(&text, self.added.as_bytes()) else { return Ok(()) };
        let after = &text[start + self.added.len()..];
        file.write_all_at(after, start as u64)?;
        file.set_len((start + after.len()) as u64)?;
        if after.is_empty() {
            let times = FileTimes::new().set_modified(self.modified).set_accessed(self.accessed);
            file.set_times(times)?;
        }
        Ok(())
    }
}

impl Drop for Trust {
    fn drop(&mut self) {
        if let Err(error) = self.remove() {
            tracing::warn!(%error, path = self.path, "take back the proxy's certificate");
        }
    }
}

/// Opens a regular file of a tree for both; none if there is none.
fn open(root: &OwnedFd, path: &str) -> io::Result<Option<File>> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let open = |flags| {
        loop {
            let relative = path.trim_start_matches('/');
            let flags = flags | OFlags::CLOEXEC;
            match rustix::fs::openat2(root.as_fd(), relative, flags, Mode::empty(), resolve) {
                // A rename elsewhere raced with the resolution.
                Err(Errno::AGAIN | Errno::INTR) => {}
                result => return result,
            }
        }
    };
    // A look first: opening a pipe or a device may do something.
    let regular = match open(OFlags::PATH) {
        Ok(found) => File::from(found).metadata()?.is_file(),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => false,
        Err(error) => return Err(error.into()),
    };
    if !regular {
        return Ok(None);
    }
    let file = File::from(open(OFlags::RDWR | OFlags::NONBLOCK)?);
    Ok(file.metadata()?.is_file().then_some(file))
}

fn read(file: &mut File) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    file.take(MOST_BYTES + 1).read_to_end(&mut text)?;
    if text.len() as u64 > MOST_BYTES {
        return Err(io::Error::other(format!("it exceeds {MOST_BYTES} bytes")));
    }
    Ok(text)
}

fn find(text: &[u8], part: &[u8]) -> Option<usize> {
    text.windows(part.len()).position(|window| window == part)
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    const PEM: &str = "-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n";

    fn root(folder: &Path) -> Arc<OwnedFd> {
        Arc::new(File::open(folder).unwrap().into())
    }

    /// What a bundle is while a step runs, and after `step`.
    fn check(before: &str, step: impl FnOnce(&Path), after: &str) {
        let folder = tempfile::tempdir().unwrap();
        let bundle = folder.path().join("etc/ssl/certs/ca-certificates.crt");
        fs::create_dir_all(bundle.parent().unwrap()).unwrap();
        fs::write(&bundle, before).unwrap();
        let times = fs::metadata(&bundle).unwrap().modified().unwrap();
        let trust = Trust::add(root(folder.path()), PEM).unwrap().unwrap();
        let during = fs::read_to_string(&bundle).unwrap();
        assert!(during.starts_with(before), "{during}");
        assert!(during.contains(&format!("{BEGIN}{PEM}{END}")), "{during}");
        step(&bundle);
        drop(trust);
        assert_eq!(fs::read_to_string(&bundle).unwrap(), after);
        if before == after {
            assert_eq!(fs::metadata(&bundle).unwrap().modified().unwrap(), times);
        }
    }

    #[test]
    fn it_leaves_no_trace() {
        check("one\n", |_| {}, "one\n");
        check("no end", |_| {}, "no end");
        check("", |_| {}, "");
    }

    #[test]
    fn what_the_step_writes_stays() {
        check("one\n", |path| fs::write(path, "other").unwrap(), "other");
        let append = |path: &Path| {
            let text = fs::read_to_string(path).unwrap();
            fs::write(path, text + "two\n").unwrap();
        };
        check("one\n", append, "one\ntwo\n");
    }

    #[test]
    fn links_stay_inside() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("etc/ssl")).unwrap();
        fs::write(folder.path().join("bundle"), "one\n").unwrap();
        let link = folder.path().join("etc/ssl/cert.pem");
        std::os::unix::fs::symlink("/bundle", link).unwrap();
        let trust = Trust::add(root(folder.path()), PEM).unwrap().unwrap();
        assert!(fs::read_to_string(folder.path().join("bundle")).unwrap().contains(PEM));
        drop(trust);
        assert_eq!(fs::read_to_string(folder.path().join("bundle")).unwrap(), "one\n");
    }

    #[test]
    fn a_tree_without_certificates_stays_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        assert!(Trust::add(root(folder.path()), PEM).unwrap().is_none());
        assert!(fs::read_dir(folder.path()).unwrap().next().is_none());
    }
}
