//! COPY and ADD.
//!
//! Source: Dockerfile notes §11.3.

use base::path;
use llb::build::{CopyFrom, FileAction, Meta, Mkfile, Mode, Output, Owner, Source};
use llb::pb;

use super::Lowering;
use super::dispatch::Place;
use super::names::instruction_text;
use super::path as target_path;
use super::stage::StageId;
use crate::error::{Error, Kind, Result};
use crate::git::{self, GitRef};
use crate::instructions::{Add, Copy, Sources};
use crate::lint::Rule;
use crate::{reference, text, url};

/// An instruction being lowered.
struct Job<'a> {
    place: &'a Place,
    sources: Sources,
    /// Where plain paths come from.
    tree: Option<Output>,
    /// Plain paths are checked against the ignore file.
    local: bool,
    add: bool,
    parents: bool,
    checksum: String,
    keep_git_dir: Option<bool>,
    unpack: Option<bool>,
    os: String,
    /// Options of every copy.
    common: llb::build::Copy,
    /// The step's name.
    name: String,
}

impl Lowering<'_> {
    pub(super) fn copy(&mut self, place: &Place, copy: &Copy, from: Option<StageId>) -> Result<()> {
        let mut sources = self.expand_sources(place, &copy.sources)?;
        self.expand_paths(place, &mut sources)?;
        let tree = match from {
            None => self.context,
            Some(id) => {
                let name = self.stages[place.stage].name.clone();
                self.check_defined(id, Kind::CopyFromUndefined, [&copy.from, &name])?;
                self.stages[id].state.output
            }
        };
        let used: Vec<String> = sources.paths.iter().map(|path| path::absolute(path)).collect();
        let job = self.job(place, sources, tree, from.is_none(), false)?;
        self.copy_or_add(Job { parents: copy.parents, ..job })?;
        for path in used {
            match from {
                None => _ = self.stages[place.stage].context_paths.insert(path),
                Some(id) => self.stages.use_path(id, path),
            }
        }
        Ok(())
    }

    pub(super) fn add(&mut self, place: &Place, add: &Add) -> Result<()> {
        let mut sources = self.expand_sources(place, &add.sources)?;
        let checksum = self.expand(place, &add.checksum)?;
        self.expand_paths(place, &mut sources)?;
        let is_url = |path: &&String| path.starts_with("http://") || path.starts_with("https://");
        let used: Vec<String> = sources
            .paths
            .iter()
            .filter(|path| !is_url(path))
            .map(|path| path::absolute(path))
            .collect();
        let job = self.job(place, sources, self.context, true, true)?;
        self.copy_or_add(Job {
            checksum,
            keep_git_dir: add.keep_git_dir,
            unpack: add.unpack,
            ..job
        })?;
        self.stages[place.stage].context_paths.extend(used);
        Ok(())
    }

    fn job<'a>(
        &mut self,
        place: &'a Place,
        sources: Sources,
        tree: Option<Output>,
        local: bool,
        add: bool,
    ) -> Result<Job<'a>> {
        let stage = &self.stages[place.stage];
        let os = stage.platform.as_ref().unwrap_or(&self.target).os.clone();
        let dest = target_path::destination(&stage.state.dir, &sources.destination, &os)?;
        let common = llb::build::Copy {
            dest,
            owner: (!sources.chown.is_empty()).then(|| Owner::parse(&sources.chown)),
            mode: mode(&sources.chmod)?,
            create_dest_path: true,
            exclude_patterns: sources.exclude.clone(),
            ..llb::build::Copy::default()
        };
        Ok(Job {
            place,
            sources,
            tree,
            local,
            add,
            parents: false,
            checksum: String::new(),
            keep_git_dir: None,
            unpack: None,
            os,
            common,
            name: String::new(),
        })
    }

    fn copy_or_add(&mut self, mut job: Job<'_>) -> Result<()> {
        check_checksum(&job)?;
        let id = job.place.stage;
        let lexer = self.lexer;
        let stage = &mut self.stages[id];
        let env = &stage.state.env;
        let platform = stage.platform.as_ref().unwrap_or(&self.target);
        let text = instruction_text(lexer, &job.place.code, env);
        let platform = self.naming.platform(Some(platform), Some(env));
        job.name = self.naming.step(stage, &text, &platform);
        let mut actions = Vec::new();
        for path in job.sources.paths.clone() {
            let copy = self.copy_path(&mut job, &path)?;
            actions.push(FileAction::Copy(copy));
        }
        for file in &job.sources.inline {
            let name = target_path::without_drive(&file.name, &job.os, false)?;
            let data = text::to_bytes(&file.data);
            self.count(data.len())?;
            let mkfile = Mkfile { path: name.clone(), mode: 0o644, data, ..Mkfile::default() };
            let meta = Meta::named("[internal] preparing inline document");
            let output = self.graph.file(None, vec![FileAction::Mkfile(mkfile)], meta);
            actions.push(FileAction::Copy(llb::build::Copy {
                from: CopyFrom::Output(output),
                src: target_path::to_slash(&name, &job.os),
                ..job.common.clone()
            }));
        }
        let history = history(&job);
        self.count(2 * history.len())?;
        let ignore_cache = self.stages[id].ignore_cache;
        let named = |name: &str| Meta { ignore_cache, ..Meta::named(name) };
        let meta = self.located(named(&job.name), job.place.lines);
        let root = self.stages[id].state.output;
        let link =
            job.sources.link && job.sources.chmod.is_empty() && self.client.has_cap("mergeop");
        let output = if link {
            let stage = &mut self.stages[id];
            stage.step = stage.step.saturating_sub(1);
            let link = format!("LINK {text}");
            let link = self.naming.step(stage, &link, &platform);
            let group =
                pb::ProgressGroup { id: base::id::random_id(), name: job.name.clone(), weak: true };
            let copied = Meta { progress_group: Some(group.clone()), ..meta };
            let copied = self.graph.file(None, actions, copied);
            let mut merged = self.located(named(&link), job.place.lines);
            merged.progress_group = Some(pb::ProgressGroup { weak: false, ..group });
            self.graph.merge([root, Some(copied)], merged)
        } else {
            Some(self.graph.file(root, actions, meta))
        };
        let epoch = self.epoch;
        let stage = &mut self.stages[id];
        stage.state.output = output;
        stage.commit(history, true, epoch);
        Ok(())
    }

    fn copy_path(&mut self, job: &mut Job<'_>, source: &str) -> Result<llb::build::Copy> {
        if let Some(git) = GitRef::parse(source)?.filter(|git| !git.looks_local) {
            return self.copy_git(job, git);
        }
        if git::is_http_source(source) {
            return self.copy_http(job, source);
        }
        self.check_ignored(job, source);
        let normal = |path: &str| target_path::normalize("/", path, &job.os, false);
        let mut copy = llb::build::Copy {
            from: job.tree.into(),
            follow_symlink: true,
            dir_copy_contents: true,
            attempt_unpack: job.unpack.unwrap_or(job.add),
            allow_wildcard: true,
            allow_empty_wildcard: true,
            ..job.common.clone()
        };
        if !job.parents {
            copy.src = normal(source)?;
            return Ok(copy);
        }
        // Folders up to the pivot are left out.
        let (root, pattern) = source.split_once("/./").unwrap_or(("/", source));
        let pattern = normal(pattern)?;
        copy.src = normal(root)?;
        if !has_wildcards(root) && !has_wildcards(&pattern) {
            copy.required_paths = vec![normal(&path::join([root, &pattern]))?];
        }
        copy.include_patterns = vec![pattern.strip_prefix('/').unwrap_or(&pattern).to_owned()];
        Ok(copy)
    }

    fn copy_git(&mut self, job: &mut Job<'_>, git: GitRef) -> Result<llb::build::Copy> {
        if !job.add {
            return Err(Error::plain(Kind::CopyGit));
        }
        if let (Some(flag), Some(query)) = (job.keep_git_dir, git.keep_git_dir)
            && flag != query
        {
            return Err(Error::plain(Kind::KeepGitDirConflict));
        }
        // What a reference says holds for the references after it, too.
        job.keep_git_dir = git.keep_git_dir.or(job.keep_git_dir);
        if !git.checksum.is_empty() {
            if !job.checksum.is_empty() && job.checksum != git.checksum {
                let params = [text::quote(&job.checksum), text::quote(&git.checksum)];
                return Err(Error::new(Kind::ChecksumMismatch, params));
            }
            job.checksum = git.checksum.clone();
        }
        let mut options = git.options();
        options.keep_git_dir = job.keep_git_dir == Some(true);
        options.checksum = job.checksum.clone();
        options.mtime.clear();
        let output = self.graph.source(Source::git(&options), Meta::named(job.name.clone()));
        let from = CopyFrom::Output(output);
        Ok(llb::build::Copy { from, src: "/".to_owned(), ..job.common.clone() })
    }

    fn copy_http(&mut self, job: &Job<'_>, source: &str) -> Result<llb::build::Copy> {
        if !job.add {
            return Err(Error::plain(Kind::CopyUrl));
        }
        if !job.checksum.is_empty() && !reference::is_digest(&job.checksum) {
            return Err(Error::plain(Kind::InvalidDigest));
        }
        let name = url::file_name(source).unwrap_or_else(|| "__unnamed__".to_owned());
        let mut meta = Meta::named(job.name.clone());
        meta.description.insert("com.docker.dockerfile.v1.command".to_owned(), String::new());
        let output = self.graph.source(Source::http(source, &name, &job.checksum), meta);
        Ok(llb::build::Copy {
            from: CopyFrom::Output(output),
            src: name,
            attempt_unpack: job.unpack.unwrap_or(false),
            ..job.common.clone()
        })
    }

    /// Reports a path that the ignore file leaves out.
    fn check_ignored(&mut self, job: &Job<'_>, source: &str) {
        let Some(ignore) =
            self.ignore.as_ref().filter(|ignore| job.local && !ignore.has_exceptions())
        else {
            return;
        };
        let source = path::clean(source);
        if matches!(source.as_str(), "." | "/") {
            // The root is no path that could be left out, but all in it can.
            let all = |(pattern, _): (&str, bool)| matches!(pattern, "*" | "**" | "**/*");
            if !ignore.texts().any(all) {
                return;
            }
        }
        if ignore.matches(&source) {
            let word = if job.add { "Add" } else { "Copy" };
            let source = text::quote(&source);
            let message =
                format!("Attempting to {word} file {source} that is excluded by .dockerignore");
            let place = job.place;
            self.linter.report(&place.scope, Rule::CopyIgnoredFile, place.lines, message);
        }
    }
}

fn check_checksum(job: &Job<'_>) -> Result<()> {
    if job.checksum.is_empty() {
        return Ok(());
    }
    match job.sources.paths.as_slice() {
        [only] if git::is_http_source(only) || git::is_git_source(only) => Ok(()),
        [_] => Err(Error::plain(Kind::ChecksumSourceKind)),
        _ => Err(Error::plain(Kind::ChecksumMultiple)),
    }
}

fn history(job: &Job<'_>) -> String {
    let mut text = if job.add { "ADD" } else { "COPY" }.to_owned();
    if job.parents {
        text.push_str(" --parents");
    }
    let sources = &job.sources;
    for (flag, value) in [("chown", &sources.chown), ("chmod", &sources.chmod)] {
        if !value.is_empty() {
            text.push_str(&format!(" --{flag}={value}"));
        }
    }
    sources.paths.iter().for_each(|path| text.push_str(&format!(" {path}")));
    sources.inline.iter().for_each(|file| text.push_str(&format!(" <<{}", file.name)));
    text.push_str(&format!(" {} # buildkit", sources.destination));
    text
}

/// Reads `--chmod`.
fn mode(value: &str) -> Result<Mode> {
    if value.is_empty() {
        return Ok(Mode::Keep);
    }
    if value.bytes().all(|byte| matches!(byte, b'0'..=b'7'))
        && let Ok(bits) = u32::from_str_radix(value, 8)
    {
        return match bits {
            0..=0o7777 => Ok(Mode::Bits(bits)),
            _ => Err(Error::new(Kind::Chmod, [value])),
        };
    }
    if value.starts_with(|char: char| char.is_ascii_digit()) {
        return Err(Error::new(Kind::Chmod, [value]));
    }
    if !value.split(',').all(is_symbolic) {
        return Err(Error::plain(Kind::ChmodSymbolic));
    }
    Ok(Mode::Symbolic(value.to_owned()))
}

/// `[ugoa]*([-+=][rwxXstugo]*)+`
fn is_symbolic(clause: &str) -> bool {
    let rest = clause.trim_start_matches(['u', 'g', 'o', 'a']);
    rest.starts_with(['-', '+', '=']) && rest.chars().all(|char| "-+=rwxXstugo".contains(char))
}

/// Whether a path has `*`, `?` or `[` that is not escaped.
fn has_wildcards(path: &str) -> bool {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes() {
        assert_eq!(mode("0755").unwrap(), Mode::Bits(0o755));
        assert_eq!(mode("u+x,go=u-w").unwrap(), Mode::Symbolic("u+x,go=u-w".into()));
        for (bad, kind) in [
            ("17777", Kind::Chmod),
            ("789", Kind::Chmod),
            ("a", Kind::ChmodSymbolic),
            ("u+z", Kind::ChmodSymbolic),
            ("u+x,", Kind::ChmodSymbolic),
        ] {
            assert_eq!(mode(bad).unwrap_err().kind, kind, "{bad}");
        }
    }

    #[test]
    fn wildcards() {
        assert!(has_wildcards("a/*") && has_wildcards("\\\\[x]") && !has_wildcards("a\\*b"));
    }
}
