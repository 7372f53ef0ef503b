//! The daemon's addresses: mutual TLS on TCP, nothing less.

use std::{fs, path::Path, process::Command};

use it::{Daemon, can_run, has, text};

/// A certificate authority with a server and a client certificate, made by openssl.
fn certificates(folder: &Path) {
    let openssl = |args: &[&str]| {
        let output = Command::new("openssl").current_dir(folder).args(args).output().unwrap();
        assert!(output.status.success(), "openssl {args:?}: {}", text(&output));
    };
    let authority = |name: &str| {
        let (key, cert, subject) =
            (format!("{name}.key"), format!("{name}.pem"), format!("/CN={name}"));
        openssl(&[
            "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", &subject,
            "-keyout", &key, "-out", &cert,
        ]);
    };
    authority("ca");
    authority("stranger-ca");
    fs::write(folder.join("server.ext"), "subjectAltName=DNS:localhost,IP:127.0.0.1\n").unwrap();
    fs::write(folder.join("client.ext"), "extendedKeyUsage=clientAuth\n").unwrap();
    for (name, ca, extension) in [
        ("server", "ca", "server.ext"),
        ("client", "ca", "client.ext"),
        ("stranger", "stranger-ca", "client.ext"),
    ] {
        let (key, request, cert) =
            (format!("{name}.key"), format!("{name}.csr"), format!("{name}.pem"));
        let (ca_cert, ca_key) = (format!("{ca}.pem"), format!("{ca}.key"));
        openssl(&[
            "req",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-subj",
            "/CN=localhost",
            "-keyout",
            &key,
            "-out",
            &request,
        ]);
        openssl(&[
            "x509",
            "-req",
            "-in",
            &request,
            "-CA",
            &ca_cert,
            "-CAkey",
            &ca_key,
            "-CAcreateserial",
            "-days",
            "2",
            "-extfile",
            extension,
            "-out",
            &cert,
        ]);
    }
}

#[test]
fn tcp_serves_those_whom_the_authority_knows() {
    if !can_run() || !has("openssl") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    certificates(folder.path());
    let path = |name: &str| folder.path().join(name).display().to_string();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let address = format!("tcp://127.0.0.1:{port}");
    let _daemon = Daemon::start_with(&[
        "--addr",
        &address,
        "--tlscert",
        &path("server.pem"),
        "--tlskey",
        &path("server.key"),
        "--tlscacert",
        &path("ca.pem"),
    ]);
    let ctl = |extra: &[&str]| {
        let mut command = Command::new(it::program("rbuildctl"));
        command.args(["--addr", &address]).args(extra).args(["debug", "workers"]);
        command.output().unwrap()
    };
    let (ca, known, strange) = (path("ca.pem"), path("client.pem"), path("stranger.pem"));
    let (known_key, strange_key) = (path("client.key"), path("stranger.key"));
    let good = ctl(&["--tlscacert", &ca, "--tlscert", &known, "--tlskey", &known_key]);
    assert!(good.status.success(), "{}", text(&good));
    let stranger = ctl(&["--tlscacert", &ca, "--tlscert", &strange, "--tlskey", &strange_key]);
    assert!(!stranger.status.success(), "{}", text(&stranger));
    let nobody = ctl(&["--tlscacert", &ca]);
    assert!(!nobody.status.success(), "{}", text(&nobody));
    assert!(!ctl(&[]).status.success());
}

#[test]
fn tcp_without_tls_is_refused() {
    if !can_run() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let output = Command::new(it::program("rbuildd"))
        .arg("--root")
        .arg(folder.path())
        .args(["--addr", "tcp://127.0.0.1:0"])
        .output()
        .unwrap();
    assert!(!output.status.success() && text(&output).contains("--tlscert"), "{}", text(&output));
}
