//! RUN.
//!
//! Source: Dockerfile notes §5.1 and §11.2.

use std::collections::BTreeSet;

use llb::build::{Exec, FileAction, Meta, Mkfile, Mount, MountKind};
use llb::pb;

use super::Lowering;
use super::config::with_shell;
use super::dispatch::Place;
use super::env::Env;
use super::history::run_text;
use super::names::instruction_text;
use super::stage::StageId;
use crate::error::{Error, Kind, Result};
use crate::instructions::mount::{self, Type};
use crate::instructions::{Network, Run, Security};
use crate::parser;
use crate::shell::{Lexer, Variables};
use crate::text;

/// Folder of scripts given as here-documents.
const PIPES: &str = "/dev/pipes/";

impl Lowering<'_> {
    pub(super) fn run(&mut self, place: &Place, run: &Run, sources: &[StageId]) -> Result<()> {
        let mounts = self.expand_mounts(place, run)?;
        let id = place.stage;
        // A process can look at anything.
        self.stages.use_path(id, "/".to_owned());
        let mut exec = Exec::default();
        let (args, summary) = self.run_args(place, run, &mut exec);
        self.run_mounts(place, &mounts, sources, &mut exec)?;
        exec.security = match run.security {
            Security::Sandbox => pb::SecurityMode::Sandbox,
            Security::Insecure => pb::SecurityMode::Insecure,
        };
        exec.network = match run.network {
            Network::Default => self.stages[id].state.network,
            Network::None => pb::NetMode::None,
            Network::Host => pb::NetMode::Host,
        };
        self.run_options(run, &mut exec)?;
        let lexer = self.lexer;
        let stage = &mut self.stages[id];
        let code = format!("{}{summary}", place.code);
        let masked = Masked { env: &stage.state.env, secrets: secret_names(&mounts) };
        let lexer = Lexer { raw_quotes: true, skip_unset: true, ..lexer };
        let text = instruction_text(lexer, &code, &masked);
        let platform = stage.state.platform.clone();
        let shown = self.naming.platform(platform.as_ref(), Some(&stage.state.env));
        let name = self.naming.step(stage, &text, &shown);
        let (state, env) = (&stage.state, &stage.state.env);
        exec.args = args;
        exec.env = env.iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
        exec.cwd = if state.dir.is_empty() { "/".to_owned() } else { state.dir.clone() };
        exec.user = state.user.clone();
        exec.hostname = state.hostname.clone();
        exec.root = state.output;
        let mut meta = Meta { platform, ignore_cache: stage.ignore_cache, ..Meta::named(name) };
        let command = "com.docker.dockerfile.v1.command".to_owned();
        meta.description.insert(command, place.code.clone());
        if self.client.has_cap("exec.meta.linux.resources") {
            meta.linux_resources = self.client.options.resources.clone();
        }
        let history = format!("RUN {} # buildkit", run_text(&exec.args, &stage.args, env));
        let size = 2 * history.len() + env.size();
        self.count(size)?;
        let meta = self.located(meta, place.lines);
        let root = self.graph.exec(exec, meta).root;
        let epoch = self.epoch;
        let stage = &mut self.stages[id];
        stage.state.output = Some(root);
        stage.commit(history, true, epoch);
        Ok(())
    }

    /// The mounts with their variables replaced.
    fn expand_mounts(&mut self, place: &Place, run: &Run) -> Result<Vec<mount::Mount>> {
        let mut mounts = Vec::with_capacity(run.mounts.len());
        for value in &run.mounts {
            mounts.push(mount::Mount::parse(value, |word| self.expand(place, word))?);
        }
        Ok(mounts)
    }

    /// The arguments, and what the step's name says of a here-document.
    fn run_args(&mut self, place: &Place, run: &Run, exec: &mut Exec) -> (Vec<String>, String) {
        let line = &run.command_line;
        let image = &self.stages[place.stage].image;
        let wrap = |args: Vec<String>| if line.shell { with_shell(image, &args) } else { args };
        let (Some(first), [command]) = (line.heredocs.first(), line.args.as_slice()) else {
            return (wrap(line.args.clone()), String::new());
        };
        if parser::heredoc_word(command).is_none() {
            // The shell reads the documents itself.
            let mut script = command.clone();
            for doc in &line.heredocs {
                script.push('\n');
                script.push_str(&doc.content);
                script.push_str(&doc.name);
            }
            return (wrap(vec![script]), String::new());
        }
        let data = first.data();
        let summary = format!(" ({})", first.summary());
        if image.os == "windows" || !data.starts_with("#!") {
            return (wrap(vec![data]), summary);
        }
        let args = wrap(vec![base::path::join([PIPES, &first.name])]);
        let script = Mkfile {
            path: first.name.clone(),
            mode: 0o755,
            data: text::to_bytes(&data),
            ..Mkfile::default()
        };
        let meta = Meta::named("[internal] preparing inline document");
        let output = self.graph.file(None, vec![FileAction::Mkfile(script)], meta);
        exec.mounts.push(Mount {
            target: PIPES.to_owned(),
            source: Some(output),
            selector: "/".to_owned(),
            readonly: true,
            ..Mount::default()
        });
        (args, summary)
    }

    /// What the client's options add.
    fn run_options(&mut self, run: &Run, exec: &mut Exec) -> Result<()> {
        let client = self.client;
        let options = &client.options;
        exec.proxy = self.proxy.clone();
        exec.extra_hosts = options.extra_hosts.clone();
        if client.has_cap("exec.meta.ulimit") {
            exec.ulimits = options.ulimits.clone();
        }
        if client.has_cap("exec.meta.cdi") {
            if !run.devices.is_empty() && !client.devices {
                return Err(Error::plain(Kind::DeviceUnsupported));
            }
            exec.devices = run
                .devices
                .iter()
                .map(|device| pb::CdiDevice {
                    name: device.name.clone(),
                    optional: !device.required,
                })
                .collect();
        } else if let Some(device) = run.devices.iter().find(|device| device.required) {
            return Err(Error::new(
                Kind::MissingCap,
                [format!("exec.meta.cdi for {}", device.name)],
            ));
        }
        if options.shm_size > 0 && client.has_cap("exec.mount.tmpfs.size") {
            exec.mounts.push(Mount {
                target: "/dev/shm".to_owned(),
                kind: MountKind::Tmpfs { size: options.shm_size },
                ..Mount::default()
            });
        }
        if client.has_cap("exec.meta.cgroup.parent") {
            exec.cgroup_parent = options.cgroup_parent.clone();
        }
        Ok(())
    }
}

/// Variables that a RUN takes from secrets.
fn secret_names(mounts: &[mount::Mount]) -> BTreeSet<&str> {
    let secrets = mounts.iter().filter(|mount| mount.kind == Type::Secret);
    secrets.filter_map(|mount| mount.env.as_deref()).collect()
}

/// Variables, with those from secrets shown as stars: it is clear then that they are not empty.
struct Masked<'a> {
    env: &'a Env,
    secrets: BTreeSet<&'a str>,
}

impl Variables for Masked<'_> {
    fn get(&self, name: &str) -> Option<&str> {
        if self.secrets.contains(name) { Some("****") } else { self.env.get(name) }
    }
}
