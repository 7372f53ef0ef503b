//! What a user does every day.

use std::{fs, time::Duration};

use it::{Context, Daemon, can_run, eventually};

#[test]
fn a_build_is_cached_and_an_edit_reruns_only_what_it_touches() {
    if !can_run() {
        return;
    }
    let daemon = Daemon::start();
    let context =
        Context::new("WORKDIR /app\nCOPY early /app/\nRUN echo ran > /app/made\nCOPY late /app/\n");
    context.write("early", b"1");
    context.write("late", b"1");
    let build = ["build", "--progress", "plain", "-t", "app:1", &context.arg()];
    let first = daemon.ok(&build);
    assert!(!first.contains("CACHED"), "{first}");
    let second = daemon.ok(&build);
    assert_eq!(second.matches("CACHED").count(), 6, "{second}");
    context.write("late", b"2");
    let third = daemon.ok(&build);
    assert_eq!(third.matches("CACHED").count(), 5, "{third}");
    assert!(daemon.ok(&["images"]).contains("app"));
}

#[test]
fn the_cache_survives_a_restart() {
    if !can_run() {
        return;
    }
    let mut daemon = Daemon::start();
    let context = Context::new("RUN echo one > /one\nRUN echo two > /two\n");
    let build = ["build", "--progress", "plain", "-t", "app:1", &context.arg()];
    daemon.ok(&build);
    // Without warning, as soon as the client has its answer.
    daemon.kill();
    daemon.restart();
    let again = daemon.ok(&build);
    assert_eq!(again.matches("CACHED").count(), 4, "{again}");
    daemon.stop();
    daemon.restart();
    let again = daemon.ok(&build);
    assert_eq!(again.matches("CACHED").count(), 4, "{again}");
    assert_eq!(daemon.ok(&["run", "--rm", "app:1", "cat", "/one", "/two"]), "one\ntwo\n");
}

#[test]
fn mounts_secrets_heredocs_and_build_args() {
    if !can_run() {
        return;
    }
    let daemon = Daemon::start();
    let context = Context::new(
        "ARG WHO=nobody\n\
         RUN --mount=type=secret,id=token,target=/run/token --mount=type=cache,target=/cache <<END\n\
         cat /run/token > /seen\n\
         echo $WHO >> /seen\n\
         echo x >> /cache/count\n\
         wc -l < /cache/count >> /seen\n\
         END\n\
         RUN --mount=type=tmpfs,target=/t --mount=from=base,source=/bin,target=/b,ro test -x /b/busybox && touch /t/x\n\
         COPY <<EOF /etc/motd\nhello $WHO\nEOF\n\
         FROM scratch\n\
         COPY --from=1 /seen /etc/motd /\n",
    );
    // Stage numbers count from the first FROM; give the second stage its own name instead.
    let text = fs::read_to_string(context.path().join("Dockerfile")).unwrap();
    let text =
        text.replace("ARG WHO", "FROM base AS work\nARG WHO").replace("--from=1", "--from=work");
    context.write("Dockerfile", text.as_bytes());
    context.write("token.txt", b"s3cret\n");
    let out = context.path().join("out");
    let secret = format!("id=token,src={}", context.path().join("token.txt").display());
    let output = format!("type=local,dest={}", out.display());
    let args =
        ["build", "--secret", &secret, "--build-arg", "WHO=world", "-o", &output, &context.arg()];
    daemon.ok(&args);
    assert_eq!(fs::read_to_string(out.join("seen")).unwrap(), "s3cret\nworld\n1\n");
    assert_eq!(fs::read_to_string(out.join("motd")).unwrap(), "hello world\n");
}

#[test]
fn containers_run_publish_and_stop() {
    if !can_run() {
        return;
    }
    let daemon = Daemon::start();
    let context = Context::new(
        "RUN mkdir -p /www && echo served > /www/index.html\nEXPOSE 8080\nCMD [\"httpd\", \"-f\", \"-p\", \"8080\", \"-h\", \"/www\"]\n",
    );
    daemon.ok(&["build", "-t", "web:1", &context.arg()]);
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let publish = format!("{free}:8080");
    daemon.ok(&["run", "-d", "--name", "web", "-p", &publish, "web:1"]);
    // Once it is free again the port may be anybody's, so the answer tells, not the connection.
    let served = || {
        use std::io::{Read as _, Write as _};
        let Ok(mut stream) = std::net::TcpStream::connect(("127.0.0.1", free)) else {
            return false;
        };
        _ = stream.set_read_timeout(Some(Duration::from_secs(2)));
        _ = stream.write_all(b"GET / HTTP/1.0\r\n\r\n");
        let mut answer = Vec::new();
        _ = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).contains("served")
    };
    eventually(Duration::from_secs(10), "the page is served", served);
    let taken = daemon.fails(&["run", "-d", "--name", "other", "-p", &publish, "web:1"]);
    assert!(taken.contains("already in use"), "{taken}");
    assert!(daemon.ok(&["ps"]).contains("web"));
    daemon.ok(&["stop", "-t", "1", "web"]);
    assert!(!served());
    assert_eq!(daemon.ctl(&["run", "--rm", "web:1", "sh", "-c", "exit 7"]).status.code(), Some(7));
}
