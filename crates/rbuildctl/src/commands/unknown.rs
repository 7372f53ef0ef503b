//! Commands that docker has and this has not: each with what to do instead.

use anyhow::{anyhow, bail};

/// Docker's commands that mean nothing here, and why.
const HINTS: &[(&str, &str)] = &[
    ("bake", "use docker buildx bake with this daemon as a remote builder"),
    ("buildx", "leave the word away: build, du, prune and imagetools are commands of their own"),
    ("checkpoint", "containers are not checkpointed"),
    ("commit", "write a Dockerfile and build it; cp takes files out of a container"),
    ("compose", "docker compose needs docker's daemon; run containers one by one"),
    ("config", "swarm is not supported"),
    ("context", "name the daemon with --addr or RBUILD_HOST"),
    ("diff", "compare with: rbuildctl exec CONTAINER find / -newer /etc/hostname"),
    ("events", "follow a container with logs -f or wait, builds with debug histories"),
    ("export", "use: rbuildctl cp CONTAINER:/ - > files.tar"),
    ("import", "use a Dockerfile: FROM scratch, ADD files.tar /"),
    ("manifest", "use imagetools inspect and imagetools create"),
    ("network", "containers have a network of their own, the host's, or none: run --network"),
    ("node", "swarm is not supported"),
    ("pause", "stop the container, or send it a signal: kill -s STOP"),
    ("plugin", "there are no plug-ins"),
    ("search", "search on the registry's web page"),
    ("secret", "give secrets to builds: build --secret"),
    ("service", "swarm is not supported"),
    ("stack", "swarm is not supported"),
    ("stats", "look at the container's control group, or run top in it with exec"),
    ("swarm", "swarm is not supported"),
    ("top", "use: rbuildctl exec CONTAINER ps"),
    ("trust", "images are not signed here; pin them by digest"),
    ("unpause", "send the container a signal: kill -s CONT"),
    ("update", "run the container again with other limits"),
];

/// The error for a command that does not exist.
pub fn run(words: &[String]) -> anyhow::Result<std::process::ExitCode> {
    let Some(word) = words.first() else {
        return Err(anyhow!("no command given: see rbuildctl --help"));
    };
    if let Some((_, hint)) = HINTS.iter().find(|(known, _)| known == word) {
        bail!("{word} is a command of docker's that rbuildctl does not have: {hint}");
    }
    bail!("unknown command: rbuildctl {word}: see rbuildctl --help")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hints() {
        let shown = |word: &str| run(&[word.to_owned()]).unwrap_err().to_string();
        assert!(shown("commit").contains("write a Dockerfile"));
        assert!(shown("fly").starts_with("unknown command: rbuildctl fly"));
        assert!(HINTS.windows(2).all(|two| two[0].0 < two[1].0));
    }
}
