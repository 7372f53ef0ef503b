//! Steps that reach the network through the recording proxy.

use std::{collections::HashMap, time::Duration};

use it::{
    BUSYBOX, Context, Daemon, can_run,
    net::{Page, Server},
};
use serde_json::{Value, json};

/// Builds `run` (lines of a Dockerfile) behind a proxy, in stages that end in the output.
fn build(daemon: &Daemon, run: &str, args: &[&str]) -> (bool, String, tempfile::TempDir) {
    let context = Context::new("");
    context.write("busybox", &std::fs::read(BUSYBOX).expect("read busybox"));
    context.write("bundle", b"trusted\n");
    let head = "FROM scratch AS base\nCOPY busybox /bin/busybox\n\
                RUN --network=none [\"/bin/busybox\", \"--install\", \"-s\", \"/bin\"]\n\
                COPY bundle /etc/ssl/certs/ca-certificates.crt\n";
    context.write("Dockerfile", format!("{head}{run}").as_bytes());
    let out = tempfile::tempdir().expect("make a folder");
    let (dest, folder) = (out.path().display().to_string(), context.arg());
    let mut all = vec!["build", "--proxy-network", "--progress", "plain", "-o", &dest];
    all.extend(args);
    all.push(&folder);
    let output = daemon.ctl(&all);
    (output.status.success(), it::text(&output), out)
}

fn server() -> Server {
    let page = |body: &str| Page { headers: String::new(), body: body.into() };
    Server::start("127.0.0.1:0", HashMap::from([("/given".to_owned(), page("given\n"))]))
}

#[test]
fn requests_are_recorded() {
    if !can_run() {
        return;
    }
    let daemon = Daemon::start();
    let server = server();
    let at = &server.address;
    let run = format!(
        "RUN NO_PROXY= no_proxy= wget -q -O /given http://{at}/given\n\
         RUN ! env -u http_proxy -u HTTP_PROXY wget -q -O /direct http://{at}/given\n\
         RUN --network=none ! env | grep -i _proxy=\n\
         RUN grep -q 'BEGIN CERTIFICATE' /etc/ssl/certs/ca-certificates.crt\n\
         RUN --network=none test \"$(cat /etc/ssl/certs/ca-certificates.crt)\" = trusted\n\
         FROM scratch\nCOPY --from=base /given /\n"
    );
    let (success, log, out) = build(&daemon, &run, &["--provenance=mode=max,version=v1"]);
    assert!(success, "{log}\n{}", daemon.log());
    assert!(log.contains(&format!("- GET http://{at}/given -> 200")), "{log}");
    let read = |name: &str| std::fs::read(out.path().join(name)).expect("read a result");
    assert_eq!(read("given"), b"given\n");
    let statement: Value = serde_json::from_slice(&read("provenance.json")).expect("parse it");
    let definition = &statement["predicate"]["buildDefinition"];
    let materials = definition["resolvedDependencies"].as_array().expect("there are materials");
    let url = format!("http://{at}/given");
    let material = materials.iter().find(|material| material["uri"] == url.as_str());
    let digest = &material.expect("the page is a material")["digest"]["sha256"];
    assert_eq!(*digest, base::Digest::of("given\n").hex());
    let metadata = &statement["predicate"]["runDetails"]["metadata"];
    assert_eq!(metadata["buildkit_metadata"]["network"]["mode"], "proxy");
    assert!(metadata["buildkit_metadata"]["network"].get("proxy").is_none(), "{metadata}");
    it::eventually(Duration::from_secs(20), "no network is left of steps", || {
        let files = std::fs::read_dir(format!("/proc/{}/fd", daemon.pid())).expect("list files");
        let targets = files.filter_map(|file| std::fs::read_link(file.ok()?.path()).ok());
        targets.filter(|target| target.to_string_lossy().starts_with("net:")).count() == 0
    });
    daemon.left_clean();
}

#[test]
fn what_is_not_known_is_said() {
    if !can_run() {
        return;
    }
    let daemon = Daemon::start();
    let server = server();
    let at = &server.address;
    let run = format!(
        "RUN NO_PROXY= no_proxy= wget -q -O /missing http://{at}/missing || touch /missing\n\
         FROM scratch\nCOPY --from=base /missing /\n"
    );
    let (success, log, out) = build(&daemon, &run, &["--provenance=mode=max,version=v1"]);
    assert!(success, "{log}\n{}", daemon.log());
    let text = std::fs::read(out.path().join("provenance.json")).expect("read provenance");
    let statement: Value = serde_json::from_slice(&text).expect("parse it");
    let metadata = &statement["predicate"]["runDetails"]["metadata"]["buildkit_metadata"];
    let incomplete = &metadata["network"]["proxy"]["incomplete"];
    assert_eq!(incomplete[0]["uri"], format!("http://{at}/missing"), "{incomplete}");
    assert_eq!(incomplete[0]["reason"], "unsuccessful_response");
    let strict = "--provenance=mode=max,version=v1,complete-materials=true";
    let (success, log, _out) = build(&daemon, &run, &["--no-cache", strict]);
    assert!(!success, "{log}");
    let expected = format!("url: http://{at}/missing\n    reason: unsuccessful_response");
    assert!(log.contains("provenance materials are incomplete"), "{log}");
    assert!(log.contains(&expected), "{log}");
}

#[test]
fn policies_decide_about_requests() {
    if !can_run() {
        return;
    }
    let daemon = Daemon::start();
    let server = server();
    let at = &server.address;
    let rules = tempfile::NamedTempFile::new().expect("make a file");
    let rule = |action: &str, from: &str, to: Option<&str>| {
        let selector = json!({ "identifier": format!("http://{at}/{from}") });
        let update = to.map(|to| json!({ "identifier": format!("http://{at}/{to}") }));
        json!({ "action": action, "selector": selector, "updates": update })
    };
    let all = json!({
        "rules": [rule("DENY", "denied", None), rule("CONVERT", "other", Some("given"))],
    });
    std::fs::write(rules.path(), all.to_string()).expect("write rules");
    let run = format!(
        "RUN NO_PROXY= no_proxy= wget -S -O /denied http://{at}/denied 2>&1 | grep '403 Forbidden'\n\
         RUN NO_PROXY= no_proxy= wget -q -O /given http://{at}/other\n\
         FROM scratch\nCOPY --from=base /given /\n"
    );
    let rules = rules.path().display().to_string();
    let (success, log, out) = build(&daemon, &run, &["--source-policy-file", &rules]);
    assert!(success, "{log}\n{}", daemon.log());
    assert_eq!(std::fs::read(out.path().join("given")).expect("read a result"), b"given\n");
    assert!(log.contains(&format!("- GET http://{at}/given -> 200")), "{log}");
    assert!(!log.contains("/denied ->"), "{log}");
}
