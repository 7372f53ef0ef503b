//! Text in, text out: graphs and what is done with them, written down.
//!
//! A graph is one vertex a line: `name = run INPUT… 'command' FLAG…`. An input is `scratch` or a
//! vertex, then `/1` for another output, `:a` (`b`, `c`) if only that file is read, `~` if it may be
//! matched by content. Other kinds: `image 'manifest' 'layers'` (two cache maps), `local 'name'`
//! (private), `merge INPUT…`. Flags: `ignore`, `fails`, `outputs=2`, `nested=VERTEX`, `weight=1`.
//!
//! A script is one command a line; see `Script::command`.

use base::Digest;
use solver::{
    Change, Edge, JobId, KeyDigest, KeyId, RecordId, VertexEvent,
    graph::{Owner, RequestId},
};

use super::{How, Input, Recipe, World};

pub struct Script {
    pub world: World,
    pub output: String,
    asked: Vec<(String, JobId, RequestId)>,
    jobs: Vec<JobId>,
    shown: usize,
    progress_shown: usize,
    imports: Vec<std::sync::Arc<solver::Import>>,
}

pub fn run(graph: &str, script: &str) -> String {
    run_limited(0, graph, script)
}

pub fn run_limited(max_parallelism: u32, graph: &str, script: &str) -> String {
    let mut world = World::new(max_parallelism);
    for line in lines(graph) {
        let recipe = parse(line);
        world.define(recipe);
    }
    let mut run = Script {
        world,
        output: String::new(),
        asked: Vec::new(),
        jobs: Vec::new(),
        shown: 0,
        progress_shown: 0,
        imports: Vec::new(),
    };
    let commands: Vec<&str> = lines(script).collect();
    for command in &commands {
        if commands.len() > 1 {
            run.output += &format!("> {command}\n");
        }
        run.command(command);
        run.show();
    }
    for job in std::mem::take(&mut run.jobs) {
        run.world.discard(&job);
    }
    run.world.run();
    run.world.assert_empty();
    run.output
}

fn lines(text: &str) -> impl Iterator<Item = &str> {
    text.lines().map(str::trim).filter(|line| !line.is_empty())
}

fn vertex(name: &str) -> Digest {
    Digest::of(format!("vertex {name}"))
}

fn edge(text: &str) -> Edge {
    let (name, output) = text.split_once('/').unwrap_or((text, "0"));
    Edge { vertex: vertex(name), output: output.parse().expect("an output number") }
}

fn parse(line: &str) -> Recipe {
    let (name, rest) = line.split_once('=').expect("name = …");
    let name = name.trim();
    let mut quoted = Vec::new();
    let mut words = Vec::new();
    for (position, part) in rest.split('\'').enumerate() {
        if position % 2 == 1 {
            quoted.push(part.to_owned());
        } else {
            words.extend(part.split_whitespace());
        }
    }
    let mut recipe = Recipe {
        name: name.to_owned(),
        digest: vertex(name),
        command: quoted.first().cloned().unwrap_or_else(|| words[0].to_owned()),
        inputs: Vec::new(),
        ignore: false,
        fails: false,
        maps: Vec::new(),
        outputs: 1,
        nested: None,
        weight: 0,
    };
    match words[0] {
        "image" => recipe.maps = quoted.iter().map(|map| Digest::of(map).into()).collect(),
        "local" => recipe.maps = vec![KeyDigest::Random(Digest::of(&quoted[0]))],
        _ => {}
    }
    for word in &words[1..] {
        match word.split_once('=') {
            Some(("outputs", count)) => recipe.outputs = count.parse().expect("a count"),
            Some(("nested", name)) => recipe.nested = Some(edge(name)),
            Some(("weight", weight)) => recipe.weight = weight.parse().expect("a weight"),
            _ if *word == "ignore" => recipe.ignore = true,
            _ if *word == "fails" => recipe.fails = true,
            _ if *word == "scratch" => {}
            _ => recipe.inputs.push(input(word)),
        }
    }
    recipe
}

fn input(word: &str) -> Input {
    let (word, content) = match word.strip_suffix('~') {
        Some(word) => (word, true),
        None => (word, false),
    };
    let (name, file) = match word.split_once(':') {
        Some((name, file)) => (name, Some((file.as_bytes()[0] - b'a') as usize)),
        None => (word, None),
    };
    Input { edge: edge(name), file, content, preprocess: content }
}

impl Script {
    fn job(&mut self, name: &str) -> JobId {
        let job = JobId::from(name);
        if !self.jobs.contains(&job) {
            self.world.open(name);
            self.jobs.push(job.clone());
        }
        job
    }

    /// * `solve EDGE [as JOB]`: asks, and lets everything end
    /// * `ask EDGE [as JOB]`, `withdraw EDGE [as JOB]`, `discard JOB`
    /// * `run`: lets everything end; `end KIND VERTEX`, `fail KIND VERTEX`: just that task
    /// * `evict RECORD` (the solver is told), `vanish RECORD` (it is not)
    /// * `import [generous]`: later asks may use all that is known now, as if it came from
    ///   elsewhere, after forgetting it here; a generous import brings all with the first load
    /// * `forget`: no more imports
    /// * `keys`: shows links and results of the main store
    /// * `stuck`, `progress JOB`: show
    fn command(&mut self, command: &str) {
        let words: Vec<&str> = command.split_whitespace().collect();
        let job = match words.iter().position(|word| *word == "as") {
            Some(position) => words[position + 1],
            None => "main",
        };
        match words[0] {
            "solve" | "ask" => {
                let job = self.job(job);
                let owner = Owner::Job(job.clone());
                let request = self.world.solve(owner, edge(words[1]), self.imports.clone());
                self.asked.push((words[1].to_owned(), job, request));
                if words[0] == "solve" {
                    self.world.run();
                }
            }
            "withdraw" => {
                let job = JobId::from(job);
                let found = self.asked.iter().find(|(name, other, request)| {
                    name == words[1] && *other == job && !self.world.answers.contains_key(request)
                });
                let request = found.expect("it was asked").2;
                self.world.withdraw(request);
            }
            "discard" => {
                let job = JobId::from(words[1]);
                self.jobs.retain(|other| *other != job);
                self.world.discard(&job);
            }
            "run" => self.world.run(),
            "end" | "fail" => {
                let position = self.world.tasks.iter().position(|pending| {
                    pending.kind.name() == words[1] && pending.vertex == vertex(words[2])
                });
                let position = position.expect("the task is running");
                let how = match words[0] {
                    "fail" => How::Badly,
                    _ if self.world.tasks[position].cancelled => How::Cancelled,
                    _ => How::Well,
                };
                self.world.end(position, how);
            }
            "evict" => self.world.evict(&RecordId::from(words[1]), true),
            "vanish" => self.world.evict(&RecordId::from(words[1]), false),
            "import" => {
                self.world.generous = words.get(1) == Some(&"generous");
                let (import, records) = self.world.as_import("elsewhere");
                self.world.imported = records;
                self.imports = vec![import];
                let mut known: Vec<RecordId> = self.world.records.keys().cloned().collect();
                known.sort();
                for record in known {
                    self.world.evict(&record, true);
                }
            }
            "keys" => self.show_keys(),
            "forget" => self.imports.clear(),
            "stuck" => {
                let report = self.world.graph.stuck();
                self.output += if report.is_empty() { "nothing\n" } else { &report };
            }
            "progress" => {
                let new = self.world.progress[self.progress_shown..].to_vec();
                self.progress_shown = self.world.progress.len();
                for (job, digest, event) in new {
                    if job != JobId::from(words[1]) {
                        continue;
                    }
                    let event = match event {
                        VertexEvent::Loaded { .. } => "loaded".to_owned(),
                        VertexEvent::Started => "started".to_owned(),
                        VertexEvent::Completed { cached, error } => {
                            let how = if cached { " cached" } else { "" };
                            let error = error.map_or(String::new(), |error| format!(" ({error})"));
                            format!("completed{how}{error}")
                        }
                        VertexEvent::Skipped => "skipped".to_owned(),
                        VertexEvent::Decided(_) => continue,
                    };
                    self.output += &format!("{} {event}\n", self.world.name(digest));
                }
            }
            other => panic!("unknown command {other}"),
        }
    }

    fn show_keys(&mut self) {
        let root_of = |recipe: &Recipe| {
            let map = recipe.maps.last().copied().unwrap_or_else(|| recipe.operation());
            KeyId::Root(map.root(0))
        };
        let label = |id: KeyId| match id {
            KeyId::Chain(_) => id.to_string(),
            KeyId::Root(_) => {
                let recipes = self.world.recipes.values();
                let named = recipes
                    .filter(|recipe| recipe.inputs.is_empty() && root_of(recipe) == id)
                    .map(|recipe| recipe.name.clone())
                    .min();
                named.unwrap_or_else(|| "content".to_owned())
            }
        };
        let mut lines: Vec<String> = Vec::new();
        for change in self.world.graph.keys().snapshot() {
            lines.push(match change {
                Change::PutLink { from, link, to } => {
                    let selector = if link.selector.is_some() { ", selected" } else { "" };
                    format!("{} -(input {}{selector})-> {to}\n", label(from), link.input)
                }
                Change::PutResult { key, record, .. } => format!("{} = {record}\n", label(key)),
                _ => continue,
            });
        }
        lines.sort();
        self.output += &lines.concat();
    }

    /// Shows what was done since the last time, then what requests were answered with.
    fn show(&mut self) {
        for line in &self.world.log[self.shown..] {
            self.output += line;
            self.output.push('\n');
        }
        self.shown = self.world.log.len();
        let mut open = Vec::new();
        for (name, job, request) in std::mem::take(&mut self.asked) {
            let whose = if *job.0 == *"main" { String::new() } else { format!(" of {job}") };
            match self.world.answers.get(&request) {
                Some(Ok(_)) => {
                    let mut decision = self.world.decisions[&request].to_string();
                    for other in self.world.all_names() {
                        decision = decision.replace(&vertex(&other).short(), &other);
                    }
                    self.output += &format!("= {name}{whose}: {decision}\n");
                }
                Some(Err(error)) => self.output += &format!("= {name}{whose}: {error}\n"),
                None => open.push((name, job, request)),
            }
        }
        self.asked = open;
    }
}
