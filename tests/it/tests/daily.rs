//! The small print of what docker users type every day: flags, names that are wrong, what
//! `inspect` knows.

use std::{
    io::{BufRead as _, BufReader},
    process::Stdio,
};

use it::{Context, Daemon, can_run, text};

fn app() -> Context {
    Context::new(
        "ENV COLOUR=blue\nLABEL com.example.team=core\nEXPOSE 8080\nCMD [\"sleep\", \"1000\"]\n",
    )
}

#[test]
fn containers_are_made_and_shown_as_they_were_asked_for() {
    if !can_run() {
        return;
    }
    let daemon = Daemon::start();
    let context = app();
    daemon.ok(&["build", "-t", "app:1", &context.arg()]);
    let ran = |args: &[&str]| daemon.ok(&[&["run", "--rm"], args].concat());

    // `-v` makes a folder, `--mount` does not.
    let here = context.path().display();
    let missing = format!("type=bind,src={here}/missing,dst=/x");
    let refused = daemon.fails(&["run", "--rm", "--mount", &missing, "app:1", "true"]);
    assert!(refused.contains("bind source path does not exist: "), "{refused}");
    assert!(!context.path().join("missing").exists());
    std::fs::create_dir(context.path().join("a:b")).unwrap();
    let colon = format!("type=bind,src={here}/a:b,dst=/x");
    ran(&["--mount", &colon, "app:1", "touch", "/x/file"]);
    assert!(context.path().join("a:b/file").exists());
    let twice = daemon.fails(&["run", "-v", "/tmp:/x", "-v", "/tmp:/x/", "app:1", "true"]);
    assert!(twice.contains("Duplicate mount point: /x/"), "{twice}");

    // Flags of the command are the command's.
    assert_eq!(ran(&["app:1", "echo", "--rm", "-v"]), "--rm -v\n");
    assert_eq!(ran(&["--rm=true", "-i=false", "-q", "-q", "app:1", "echo", "x"]), "x\n");
    assert_eq!(ran(&["-a", "stderr", "app:1", "sh", "-c", "echo out; echo err >&2"]), "err\n");
    let score = ["--oom-score-adj", "300", "app:1", "cat", "/proc/self/oom_score_adj"];
    assert_eq!(ran(&score), "300\n");
    for (flag, said) in [
        ("--restart=always", "--restart is not supported: have a service manager"),
        ("--gpus=all", "--gpus is not supported: use --privileged"),
        ("--memory=1m", "Minimum memory limit allowed is 6MB"),
        ("--cpus=100000", "range of CPUs is from 0.01 to"),
    ] {
        let refused = daemon.ctl(&["run", "--rm", flag, "app:1", "true"]);
        assert_eq!(refused.status.code(), Some(125), "{flag}");
        assert!(text(&refused).contains(said), "{}", text(&refused));
    }

    daemon.ok(&["run", "-d", "--name", "web", "--expose", "9000", "-l", "a.b=c,d", "app:1"]);
    let inspect = |template: &str| daemon.ok(&["inspect", "-f", template, "web"]);
    let address = inspect("{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}");
    let inside = daemon.ok(&["exec", "web", "ip", "-o", "-4", "addr"]);
    let address = address.trim();
    assert!(address.is_empty() && !inside.contains("eth0") || inside.contains(address), "{inside}");
    assert_eq!(
        inspect("{{range $p, $_ := .Config.ExposedPorts}}{{$p}} {{end}}"),
        "8080/tcp 9000/tcp \n"
    );
    assert_eq!(inspect("{{.Config.Cmd}} {{.Config.Entrypoint}}"), "[sleep 1000] []\n");
    assert_eq!(inspect("{{.State.OOMKilled}} {{.Config.StopSignal}}"), "false SIGTERM\n");
    assert!(!inspect("{{.Config.Env}}").contains("HOSTNAME"));
    let labels = "{{.Names}} {{.Label \"a.b\"}} {{.Label \"com.example.team\"}}";
    assert_eq!(daemon.ok(&["ps", "--format", labels]), "web c,d core\n");
    assert_eq!(daemon.ok(&["ps", "-q", "-f", "name=^(db|web)$"]).lines().count(), 1);
    daemon.ok(&["stop", "--timeout", "0", "web"]);
    assert_eq!(daemon.ok(&["container", "prune", "-f", "--filter", "label=other"]), "");
    let pruned = daemon.ok(&["container", "prune", "-f", "--filter", "label=a.b"]);
    assert!(pruned.starts_with("Deleted Containers:\n"), "{pruned}");
    assert_eq!(daemon.ok(&["ps", "-aq"]), "");
}

#[test]
fn lines_that_are_wrong_end_as_dockers_do() {
    if !can_run() {
        return;
    }
    let daemon = Daemon::start();
    for (line, code, said) in [
        ("run", 1, "required arguments"),
        ("exec web", 1, "2 values required"),
        ("run --nope x", 125, "--nope"),
        ("images --nope", 125, "--nope"),
        ("nope", 1, "unknown command"),
        ("container top web", 1, "exec CONTAINER ps"),
        ("inspect nope", 1, "No such object: nope"),
        ("image inspect nope", 1, "No such image: nope:latest"),
        ("logs nope", 1, "No such container: nope"),
        ("rm -f nope", 0, "No such container: nope"),
        ("volume rm nope", 1, "no such volume"),
        ("volume create -d nfs x", 1, "--driver is not supported"),
        ("ps -s", 1, "--size is not supported"),
        ("debug get nope", 1, "invalid digest nope"),
        (
            "debug get sha256:0000000000000000000000000000000000000000000000000000000000000000",
            1,
            "",
        ),
        ("debug logs --trace nope", 1, "nope"),
        ("debug ctl nope", 1, "must specify one of --pin, --unpin, --delete"),
    ] {
        let output = daemon.ctl(&line.split(' ').collect::<Vec<_>>());
        assert_eq!(output.status.code(), Some(code), "{line}: {}", text(&output));
        assert!(text(&output).contains(said), "{line}: {}", text(&output));
    }
    assert_eq!(daemon.ok(&["info", "-f", "{{.Containers}} {{.ContainersRunning}}"]), "0 0\n");
    assert_eq!(daemon.ok(&["system", "df", "--format", "{{.Type}}"]).lines().count(), 4);
    assert!(daemon.ok(&["version", "-f", "{{.Server.Version}}"]).starts_with('v'));
}

#[test]
fn records_of_builds_are_kept_shown_and_removed() {
    if !can_run() {
        return;
    }
    let daemon = Daemon::start();
    let context = app();
    daemon.ok(&["build", "-t", "app:1", &context.arg()]);
    daemon.ok(&["build", "-t", "app:2", "--label", "a=b", &context.arg()]);
    let refs = daemon.ok(&["debug", "histories", "--format", "{{.record.ref}}"]);
    let [first, second] = refs.lines().collect::<Vec<_>>()[..] else { panic!("{refs}") };
    let manifest = daemon.ok(&["image", "inspect", "-f", "{{.Descriptor.Digest}}", "app:1"]);
    let blob = daemon.ok(&["debug", "get", manifest.trim()]);
    assert!(blob.contains("\"schemaVersion\""), "{blob}");
    // It goes on until it is stopped.
    let mut monitor = daemon.command(&["debug", "monitor", "--completed", "--ref", first]);
    let mut monitor = monitor.stdout(Stdio::piped()).spawn().unwrap();
    let mut seen = String::new();
    BufReader::new(monitor.stdout.take().unwrap()).read_line(&mut seen).unwrap();
    monitor.kill().unwrap();
    monitor.wait().unwrap();
    assert_eq!(seen, format!("event: COMPLETE ref:{first}\n"));
    daemon.ok(&["debug", "ctl", "--pin", first]);
    let pruned = daemon.ok(&["prune-histories", "--format", "{{.record.ref}}"]);
    assert_eq!(pruned.trim(), second);
    daemon.ok(&["debug", "ctl", "--delete", first]);
    assert_eq!(daemon.ok(&["debug", "histories"]).lines().count(), 1);
}
