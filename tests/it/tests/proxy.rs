//! Steps that reach the network through the recording proxy.

use std::collections::HashMap;

use it::{
    BUSYBOX, Context, Daemon, can_run,
    net::{Page, Server},
};
use serde_json::Value;

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
    let before = daemon.open_files();
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
    let limit = std::time::Duration::from_secs(20);
    it::eventually(limit, "sockets of proxies are closed", || daemon.open_files() <= before + 8);
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
}
