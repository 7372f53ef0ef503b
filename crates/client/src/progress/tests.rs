//! Scripts of status messages in, the text a person sees out.

use std::{
    io::{self, Write},
    sync::{Arc, Mutex},
};

use expect_test::{Expect, expect};
use prost_types::Timestamp;
use proto::control::{StatusResponse, Vertex, VertexLog, VertexStatus, VertexWarning};

use super::*;

#[derive(Clone, Default)]
struct Shared(Arc<Mutex<Vec<u8>>>);

impl Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn at(millis: i64) -> Option<Timestamp> {
    Some(Timestamp { seconds: 1_000 + millis / 1000, nanos: (millis % 1000 * 1_000_000) as i32 })
}

fn time(word: &str) -> Option<Timestamp> {
    if word == "-" { None } else { at(word.parse().unwrap()) }
}

/// One line a message:
/// `vertex DIGEST START STOP [cached|error=…] NAME`, `part DIGEST START STOP CURRENT TOTAL ID`,
/// `log DIGEST TIME TEXT` (`\n` is a line feed), `warn DIGEST TEXT`.
fn message(line: &str) -> StatusResponse {
    let mut status = StatusResponse::default();
    let (kind, rest) = line.trim().split_once(' ').unwrap();
    let mut words = rest.splitn(6, ' ');
    let mut next = || words.next().unwrap_or_default();
    match kind {
        "vertex" => {
            let mut words = rest.splitn(5, ' ');
            let mut next = || words.next().unwrap_or_default().to_owned();
            let mut vertex = Vertex { digest: next(), ..Vertex::default() };
            vertex.started = time(&next());
            vertex.completed = time(&next());
            let flag = next();
            vertex.cached = flag == "cached";
            vertex.error = flag.strip_prefix("error=").unwrap_or_default().replace('_', " ");
            vertex.name = next();
            status.vertexes.push(vertex);
        }
        "part" => status.statuses.push(VertexStatus {
            vertex: next().to_owned(),
            started: time(next()),
            completed: time(next()),
            current: next().parse().unwrap(),
            total: next().parse().unwrap(),
            id: next().to_owned(),
            timestamp: at(0),
            name: String::new(),
        }),
        "log" => {
            let mut words = rest.splitn(3, ' ');
            let mut next = || words.next().unwrap_or_default();
            status.logs.push(VertexLog {
                vertex: next().to_owned(),
                timestamp: time(next()),
                stream: 1,
                msg: next().replace("\\n", "\n").into_bytes().into(),
            });
        }
        "warn" => {
            let (vertex, short) = rest.split_once(' ').unwrap();
            status.warnings.push(VertexWarning {
                vertex: vertex.to_owned(),
                level: 1,
                short: short.to_owned().into_bytes().into(),
                ..VertexWarning::default()
            });
        }
        other => panic!("unknown kind {other}"),
    }
    status
}

fn show(mode: Mode, script: &str) -> String {
    let out = Shared::default();
    let size = Some((60, 12));
    let tty = TtyOptions { phase: "Building".into(), color: false, size };
    let mut display = Display::new(Box::new(out.clone()), mode, tty);
    for line in script.lines().filter(|line| !line.trim().is_empty()) {
        display.update(message(line));
        if mode == Mode::Plain {
            display.repaint();
        }
    }
    let warnings = display.finish();
    let mut text = String::from_utf8(out.0.lock().unwrap().clone()).unwrap();
    text.push_str(&warnings_summary(&warnings, false, false));
    text
}

fn check(mode: Mode, script: &str, expected: Expect) {
    expected.assert_eq(&show(mode, script));
}

const BUILD: &str = "
    vertex a - - - [internal] load build context
    vertex b - - - [1/2] COPY . .
    vertex c - - - [2/2] RUN make
    vertex a 0 - - [internal] load build context
    part a 0 - 100 0 transferring context:
    part a 0 30 1980000 0 transferring context:
    vertex a 0 40 - [internal] load build context
    vertex b 40 40 cached [1/2] COPY . .
    vertex c 50 - - [2/2] RUN make
    log c 105 one\\ntw
    log c 20000 o\\n
    warn c JSONArgsRecommended: use them (line 3)
    vertex c 50 20100 - [2/2] RUN make
";

#[test]
fn plain_lines() {
    check(
        Mode::Plain,
        BUILD,
        expect![[r#"
            #1 [internal] load build context
            #1 transferring context: 100B
            #1 transferring context: 1.98MB 0.0s done
            #1 DONE 0.0s

            #2 [1/2] COPY . .
            #2 CACHED

            #3 [2/2] RUN make
            #3 0.055 one
            #3 0.055 two
            #3 WARN: JSONArgsRecommended: use them (line 3)
            #3 DONE 20.1s

             1 warning found (use --debug to expand):
             - JSONArgsRecommended: use them (line 3)
        "#]],
    );
}

#[test]
fn plain_failure_repeats_the_last_lines() {
    check(
        Mode::Plain,
        "vertex a 0 - - RUN make
         vertex b 0 - - RUN other
         log a 10 no rule\\n
         vertex a 0 20 error=exit_code:_2 RUN make
         vertex b 0 30 error=context_canceled RUN other",
        expect![[r#"
            #1 RUN make
            #1 0.010 no rule
            #1 ERROR: exit code: 2

            #2 RUN other
            #2 CANCELED
            ------
             > RUN make:
            0.010 no rule
            ------
        "#]],
    );
}

#[test]
fn terminal_final_painting() {
    let text = show(Mode::Tty, BUILD);
    let last = text.rsplit("\x1b[?25l").next().unwrap();
    let last: Vec<&str> = last.lines().map(str::trim_end).collect();
    let (head, body) = (last[0], last[1..].join("\n").replace("\x1b[?25h", "<cursor>"));
    assert!(head.starts_with("[+] Building ") && head.ends_with("(3/3) FINISHED"), "{head}");
    expect![[r#"
         => [internal] load build context                      0.0s
         => => transferring context: 1.98MB                    0.0s
         => CACHED [1/2] COPY . .                              0.0s
         => [2/2] RUN make                                    20.1s
         => WARN: JSONArgsRecommended: use them (line 3)      20.1s
        <cursor>
         1 warning found (use --debug to expand):
         - JSONArgsRecommended: use them (line 3)"#]]
    .assert_eq(&body);
}

#[test]
fn raw_json_has_the_go_field_names() {
    check(
        Mode::RawJson,
        "vertex a 0 1500 - RUN <make>
         part a 0 - 5 0 x
         log a 10 hi\\n",
        expect![[r#"
            {"vertexes":[{"digest":"a","name":"RUN \u003cmake\u003e","started":"1970-01-01T00:16:40Z","completed":"1970-01-01T00:16:41.5Z"}]}
            {"statuses":[{"id":"x","vertex":"a","current":5,"timestamp":"1970-01-01T00:16:40Z","started":"1970-01-01T00:16:40Z"}]}
            {"logs":[{"vertex":"a","stream":1,"data":"aGkK","timestamp":"1970-01-01T00:16:40.01Z"}]}
        "#]],
    );
}

#[test]
fn bytes_are_decimal() {
    let sizes = [0, 999, 1000, 1_234_567, -5, 3_000_000_000];
    let texts = sizes.map(format_bytes);
    assert_eq!(texts, ["0B", "999B", "1.00kB", "1.23MB", "-5B", "3.00GB"]);
}
