//! SOURCE_DATE_EPOCH: a number, or the name of something with a time.
//!
//! Source: Dockerfile notes §15.4.

use std::io::Read;
use std::time::UNIX_EPOCH;

use frontend_api::SourceMetaRequest;
use llb::build::{Graph, Meta, Source};
use llb::pb;

use super::Lowering;
use super::env::Env;
use super::history::Epoch;
use crate::context::{NamedSource, marshal, solve};
use crate::error::{Error, Kind, Result};
use crate::git::{self, GitRef};
use crate::instructions::{Command, Stage};
use crate::shell::Variables;
use crate::{reference, text, url};

const NAME: &str = "SOURCE_DATE_EPOCH";

impl Lowering<'_> {
    /// Finds the fixed time of the build, and puts the number where the word was.
    pub(super) async fn resolve_epoch(&mut self, stages: &[Stage]) -> Result<()> {
        let global = self.globals.get(NAME).filter(|value| !value.is_empty());
        let Some(value) = self.build_args.get(NAME).map(String::as_str).or(global) else {
            return Ok(());
        };
        let value = value.to_owned();
        self.epoch = match value.parse::<i64>() {
            _ if value.is_empty() => None,
            Ok(seconds) => Some(Epoch::new(seconds, 0).ok_or_else(|| invalid(&value))?),
            Err(_) => self.epoch_of(&value, stages).await?,
        };
        let number = self.epoch.map(|epoch| epoch.seconds().to_string());
        if self.build_args.contains_key(NAME) {
            self.build_args.remove(NAME);
            self.build_args.extend(number.clone().map(|number| (NAME.to_owned(), number)));
        }
        if self.globals.get(NAME).is_some() {
            match &number {
                Some(number) => self.globals.set(NAME, number),
                None => self.globals.remove(NAME),
            }
        }
        Ok(())
    }

    async fn epoch_of(&self, value: &str, stages: &[Stage]) -> Result<Option<Epoch>> {
        if value == "context" {
            let Some(source) = &self.client.main().source else { return Ok(None) };
            let name = "[internal] resolve main build context metadata";
            return self.epoch_of_source(source.source_op()?, name.to_owned()).await;
        }
        if let Some(context) = self.client.named_context(value, None)? {
            let source = match self.client.load_context(&context).await?.source {
                Some(NamedSource::Fixed(source)) => source.source_op()?,
                _ => None,
            };
            let name = format!("[internal] resolve {NAME} named context {value}");
            return self.epoch_of_source(source, name).await;
        }
        let stage = stages.iter().find(|stage| text::equal_fold(&stage.name, value));
        let stage = stage.ok_or_else(|| invalid(value))?;
        let source = self.stage_source(stage).map_err(|error| error.at(stage.lines))?;
        let source = pb::SourceOp { identifier: source.identifier, attrs: source.attrs };
        let name = format!("[internal] resolve {NAME} source stage {}", stage.name);
        self.epoch_of_source(Some(source), name).await
    }

    /// The one remote file or repository of a stage that holds nothing else.
    fn stage_source(&self, stage: &Stage) -> Result<Source> {
        let fail = |why: &str| Error::noted(Kind::EpochStage, why);
        let one = || fail("must contain exactly one remote ADD");
        let mut env = self.globals.clone();
        env.remove(NAME);
        let expand = |word: &str, env: &Env| Ok::<_, Error>(self.lexer.expand(word, env)?.text);
        if expand(&stage.base, &env)? != "scratch" {
            return Err(fail("must use FROM scratch"));
        }
        let mut found = None;
        for instruction in &stage.instructions {
            match &instruction.command {
                Command::Arg(args) => {
                    for arg in args {
                        let value = match (self.build_args.get(&arg.key), &arg.value) {
                            (Some(given), _) => given.clone(),
                            (None, Some(default)) => expand(default, &env)?,
                            (None, None) => continue,
                        };
                        env.set(&arg.key, &value);
                    }
                }
                Command::Add(add) if found.is_none() => {
                    let ([source], []) =
                        (add.sources.paths.as_slice(), add.sources.inline.as_slice())
                    else {
                        return Err(one());
                    };
                    let checksum = expand(&add.checksum, &env)?;
                    let keep = add.keep_git_dir == Some(true);
                    found = Some(remote(&expand(source, &env)?, checksum, keep)?.ok_or_else(one)?);
                }
                Command::Add(_) => return Err(one()),
                _ => {
                    let word = &instruction.word;
                    return Err(fail(&format!(
                        "does not meet source-only requirements: unsupported {word} instruction"
                    )));
                }
            }
        }
        found.ok_or_else(one)
    }

    async fn epoch_of_source(
        &self,
        source: Option<pb::SourceOp>,
        log_name: String,
    ) -> Result<Option<Epoch>> {
        let Some(source) = source.filter(|source| !source.identifier.starts_with("local://"))
        else {
            return Ok(None);
        };
        let bridge = &self.client.bridge;
        let is_http = source.identifier.starts_with("http");
        let request = SourceMetaRequest {
            git_objects: source.identifier.starts_with("git://"),
            source: source.clone(),
            log_name,
            ..SourceMetaRequest::default()
        };
        let meta = bridge.resolve_source_meta(request).await.map_err(Error::bridge)?;
        if let Some(git) = meta.git.filter(|git| !git.commit_object.is_empty()) {
            let seconds = committer_time(&git.commit_object);
            let seconds = seconds.ok_or_else(|| invalid(&source.identifier))?;
            return Ok(Epoch::new(seconds, 0));
        }
        if let Some(time) = meta.http.and_then(|http| http.last_modified) {
            let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
            return Ok(Epoch::new(since.as_secs() as i64, since.subsec_nanos()));
        }
        let Some(filename) = source.attrs.get("http.filename").filter(|_| is_http) else {
            return Ok(None);
        };
        let mut graph = Graph::new();
        let attrs = source.attrs.clone();
        let output = graph.source(Source::new(source.identifier.clone(), attrs), Meta::default());
        let found = solve(&**bridge, marshal(&graph, Some(output))?, false).await?;
        let data = bridge.read_file(&found, filename, None).await.map_err(Error::bridge)?;
        newest(&data)
    }
}

fn invalid(value: &str) -> Error {
    Error::new(Kind::EpochInvalid, [value])
}

fn remote(source: &str, checksum: String, keep_git_dir: bool) -> Result<Option<Source>> {
    if git::is_http_source(source) {
        if !checksum.is_empty() && !reference::is_digest(&checksum) {
            return Err(Error::plain(Kind::InvalidDigest));
        }
        let name = url::file_name(source).unwrap_or_else(|| "__unnamed__".to_owned());
        return Ok(Some(Source::http(source, &name, &checksum)));
    }
    let Some(git) = GitRef::parse(source)?.filter(|git| !git.looks_local) else { return Ok(None) };
    let mut options = git.options();
    options.keep_git_dir |= keep_git_dir;
    if !checksum.is_empty() {
        options.checksum = checksum;
    }
    options.mtime.clear();
    options.fetch_by_commit = false;
    Ok(Some(Source::git(&options)))
}

/// Seconds in the `committer` line of a commit.
fn committer_time(commit: &[u8]) -> Option<i64> {
    let text = String::from_utf8_lossy(commit);
    let line = text.lines().take_while(|line| !line.is_empty());
    let line = line.filter_map(|line| line.strip_prefix("committer ")).next()?;
    let (_, time) = line.rsplit_once('>')?;
    time.split_whitespace().next()?.parse().ok()
}

/// Time of the newest regular file in an archive; nothing if it is no archive.
fn newest(data: &[u8]) -> Result<Option<Epoch>> {
    let reader: Box<dyn Read + '_> = match data {
        [0x1f, 0x8b, 0x08, ..] => Box::new(flate2::read::MultiGzDecoder::new(data)),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => match zstd::Decoder::new(data) {
            Ok(decoder) => Box::new(decoder),
            Err(_) => return Ok(None),
        },
        [b'B', b'Z', b'h', ..] | [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => {
            return Err(
                invalid("archive compressed with bzip2 or xz").context("reading file times")
            );
        }
        _ => Box::new(data),
    };
    let mut archive = tar::Archive::new(reader);
    let Ok(entries) = archive.entries() else { return Ok(None) };
    let mut newest = None;
    for entry in entries {
        let Ok(entry) = entry else { return Ok(None) };
        if !entry.header().entry_type().is_file() {
            continue;
        }
        let Ok(seconds) = entry.header().mtime() else { return Ok(None) };
        newest = newest.max(i64::try_from(seconds).ok().and_then(|seconds| Epoch::new(seconds, 0)));
    }
    Ok(newest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commits_have_times() {
        let commit = b"tree x\nauthor a <a@b> 1 +0000\ncommitter c <c@d> 1600000001 +0200\n\nmsg";
        assert_eq!(committer_time(commit), Some(1_600_000_001));
        assert_eq!(committer_time(b"tree x\n\ncommitter c <d> 5 +0000"), None);
    }

    #[test]
    fn archives_have_times() {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, time) in [("a", 5), ("b", 9)] {
            let mut header = tar::Header::new_ustar();
            header.set_size(0);
            header.set_mtime(time);
            header.set_entry_type(tar::EntryType::Regular);
            builder.append_data(&mut header, name, &[][..]).unwrap();
        }
        let data = builder.into_inner().unwrap();
        assert_eq!(newest(&data).unwrap().map(Epoch::seconds), Some(9));
        assert_eq!(newest(b"FROM x").unwrap(), None);
        assert!(newest(b"BZh91AY").is_err());
    }
}
