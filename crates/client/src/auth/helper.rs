//! Calls of the programs that keep logins for docker, `docker-credential-…`.

use std::{io, process::Stdio};

use tokio::{io::AsyncWriteExt as _, process::Command};

/// The program's name.
pub(super) fn program(helper: &str) -> String {
    format!("docker-credential-{helper}")
}

/// What the program answers to `action` with `input`, or what it says when it refuses.
pub(super) async fn call(
    helper: &str,
    action: &str,
    input: &str,
) -> io::Result<Result<Vec<u8>, String>> {
    let program = program(helper);
    let named =
        |error: io::Error| io::Error::new(error.kind(), format!("running {program}: {error}"));
    let mut child = Command::new(&program)
        .arg(action)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(named)?;
    let mut stdin = child.stdin.take().expect("standard input is piped");
    stdin.write_all(input.as_bytes()).await.map_err(named)?;
    drop(stdin);
    let output = child.wait_with_output().await.map_err(named)?;
    match output.status.success() {
        true => Ok(Ok(output.stdout)),
        false => Ok(Err(String::from_utf8_lossy(&output.stdout).trim().to_owned())),
    }
}
