//! Dockerfiles and options made from a grammar: most of them convert, and they reach corners that
//! changed copies of real files do not.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::mutate::Random;

/// A build: options, files by the source they are read from, inputs by name.
#[derive(Debug, Clone, Default)]
pub struct Case {
    pub options: BTreeMap<String, String>,
    pub files: BTreeMap<String, BTreeMap<String, Vec<u8>>>,
    pub inputs: BTreeMap<String, String>,
}

impl Case {
    /// A build of one Dockerfile in local folders.
    pub fn new(dockerfile: impl Into<Vec<u8>>) -> Self {
        let mut case = Self::default();
        case.file("local://dockerfile", "Dockerfile", dockerfile);
        case
    }

    pub fn file(&mut self, source: &str, path: &str, data: impl Into<Vec<u8>>) {
        self.files.entry(source.to_owned()).or_default().insert(path.to_owned(), data.into());
    }

    pub fn option(&mut self, key: impl Into<String>, value: impl Into<String>) {
        self.options.insert(key.into(), value.into());
    }
}

/// Makes cases.
pub struct Maker<'a> {
    random: &'a mut Random,
    /// Whether a case is without mistakes; what breaks it is mostly taken back, so that cases grow.
    accepts: &'a dyn Fn(&Case) -> bool,
}

impl<'r> Maker<'r> {
    pub fn new(random: &'r mut Random, accepts: &'r dyn Fn(&Case) -> bool) -> Self {
        Self { random, accepts }
    }

    fn below(&mut self, limit: usize) -> usize {
        self.random.below(limit)
    }

    fn pick<'a>(&mut self, list: &[&'a str]) -> &'a str {
        list[self.below(list.len())]
    }

    /// Whether a case may stay as it is.
    fn keeps(&mut self, case: &Case) -> bool {
        (self.accepts)(case) || self.chance(4)
    }

    /// Adds a line that may stay.
    fn add(&mut self, out: &mut String, line: &str) -> bool {
        let length = out.len();
        out.push_str(line);
        let whole = if line.to_lowercase().contains("from") {
            out.clone()
        } else {
            format!("{out}FROM scratch\n")
        };
        let kept = self.keeps(&Case::new(whole));
        if !kept {
            out.truncate(length);
        }
        kept
    }

    fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }
}

const NAMES: &[&str] = &[
    "A",
    "B",
    "C_1",
    "BASE",
    "VER",
    "PATH",
    "TARGETARCH",
    "TARGETPLATFORM",
    "BUILDPLATFORM",
    "TARGETSTAGE",
    "HTTP_PROXY",
    "no_proxy",
    "foo",
    "HOME",
    "SOURCE_DATE_EPOCH",
    "TARGETVARIANT",
    "BUILDKIT_SYNTAX",
    "SECRET_TOKEN",
    "LANG",
    "X.Y",
    "BUILDKIT_INLINE_CACHE",
];
const LITERALS: &[&str] = &[
    "a",
    "b c",
    "x=y",
    "1",
    "/usr/bin",
    "\\ ",
    "\\$A",
    "\\\\",
    "'q $A'",
    "\"d $B\"",
    "é",
    "~",
    "*",
    "a\\tb",
    "\"\\\"\"",
    "''",
    "\"\"",
    "0x1",
    "true",
    "linux/amd64",
    "#",
    "a:b",
    "$$",
    "$",
    "{}",
    "[a]",
    "<b>",
    "|",
    "%",
    "-",
    "--",
    ",",
    ";",
    "\"a\\b\"",
    "'a\\b'",
    "\t",
    "a\\",
    "`",
    "\u{a0}",
    "\u{2003}x",
];
const IMAGES: &[&str] = &[
    "alpine",
    "busybox:1",
    "scratch",
    "stub.example/full",
    "stub.example/onbuild",
    "stub.example/onbuild-from",
    "stub.example/nolayers",
    "stub.example/arm",
    "stub.example/bare",
    "stub.example/relwd",
    "stub.example/nolayers-history",
    "$BASE",
    "${BASE:-alpine}",
    "${BASE:+x}busybox",
    "localhost:5000/a/b:c",
    "docker.io/library/alpine:latest",
    "alpine@sha256:9999999999999999999999999999999999999999999999999999999999999999",
    "alpine:3@sha256:9999999999999999999999999999999999999999999999999999999999999999",
    "Ubuntu",
    "stub.example/missing",
    "scratch:latest",
    "debian:$VER",
    "a/b/c",
    "stub.example/onbuild-bad",
    "\"alpine\"",
    "context",
];
const STAGES: &[&str] =
    &["build", "Base", "s1", "final", "test-x", "a.b", "scratch", "context", "0", "alpine", "s_2"];
const PLATFORMS: &[&str] = &[
    "$BUILDPLATFORM",
    "$TARGETPLATFORM",
    "linux/arm64",
    "linux/arm/v7",
    "linux/amd64",
    "${TARGETOS}/${TARGETARCH}",
    "windows/amd64",
    "arm64",
    "linux",
    "$X",
    "linux/amd64/v2",
    "${TARGETPLATFORM:-linux/386}",
];
const PATHS: &[&str] = &[
    ".",
    "/",
    "a",
    "a/",
    "./a/b",
    "/abs/path",
    "../up",
    "*.txt",
    "a b",
    "src/**/x",
    "$A",
    "${A}/x",
    "/a/../b",
    "//x//",
    "a/.",
    "[ab]",
    "\\*",
    "/usr/src/app",
    "dir/",
    ".dockerignore",
    "C:\\x",
    "a?",
    "/./",
    "./x/./y",
    "x/../..",
];
const URLS: &[&str] = &[
    "http://h.example/a.tgz",
    "https://h.example/p/q.zip?x=1#f",
    "https://h.example/",
    "https://github.com/a/b.git",
    "https://github.com/a/b.git#v1:sub",
    "git@github.com:a/b.git",
    "git://h/r#main",
    "https://github.com/a/b.git?ref=x&subdir=y",
    "ssh://git@h/r.git",
    "http://h.example/$A",
    "https://h.example/a%20b",
    "github.com/a/b",
    "https://h/r.git?tag=v1",
    "https://h/r.git?checksum=0123456789012345678901234567890123456789",
    "https://h/r.git?keep-git-dir=true&submodules=0",
    "https://h/r.git?bad=1",
    "http://user:pw@h.example/x",
];
const RUNS: &[&str] = &[
    "true",
    "echo $A",
    "make && make install",
    "apt-get update",
    "[\"a\", \"b c\"]",
    "[\"x\"]",
    "[a]",
    "[\"a\",]",
    "[]",
    "echo 'a b' \"c\"",
    "cd /x; ls",
    "[ -f x ] && y",
    "echo \\\n  b",
    "echo \\\n# c\n  d",
    "echo a \\\n\n b",
    "sudo x",
    "set -e; \\\n a",
    "[\"\\u00e9\\n\"]",
    "echo ${A:-$B}",
    "vim",
    "top",
    "cd /tmp",
    "cat <<X",
];
const SHELLS: &[&str] = &[
    "[\"/bin/bash\", \"-c\"]",
    "[\"powershell\", \"-command\"]",
    "[\"cmd\"]",
    "[]",
    "x",
    "[\"sh\",\"-ec\"]",
];
const USERS: &[&str] = &["root", "app:staff", "1000", "1000:1000", "$A", "a:b:c", "", "0:", ":5"];
const MODES: &[&str] = &[
    "644",
    "0755",
    "u=rwX,go=rX",
    "a+x",
    "$A",
    "9",
    "1777",
    "0o7",
    "u+s",
    "",
    "+x",
    "17777",
    "go-w,u+r",
];

fn expansion(random: &mut Maker) -> String {
    let name = random.pick(NAMES);
    let word = random
        .pick(&["x", "$B", "", "a b", "\"q\"", "*", "?a", "${A:-y}", "/", "'", "\\}", "a*", "."]);
    match random.below(16) {
        0 => format!("${name}"),
        1 => format!("${{{name}}}"),
        2 => format!("${{{name}:-{word}}}"),
        3 => format!("${{{name}-{word}}}"),
        4 => format!("${{{name}:+{word}}}"),
        5 => format!("${{{name}+{word}}}"),
        6 => format!("${{{name}:?{word}}}"),
        7 => format!("${{{name}?{word}}}"),
        8 => format!("${{{name}#{word}}}"),
        9 => format!("${{{name}##{word}}}"),
        10 => format!("${{{name}%{word}}}"),
        11 => format!("${{{name}%%{word}}}"),
        12 => format!("${{{name}/{word}/z}}"),
        13 => format!("${{{name}//{word}/$B}}"),
        14 => format!("\"${name}\""),
        _ => format!("'${{{name}}}'"),
    }
}

/// A word with quotes, escapes and variables.
pub fn word(random: &mut Maker) -> String {
    let mut out = String::new();
    for _ in 0..=random.below(3) {
        match random.below(5) {
            0 | 1 => out += &expansion(random),
            2 => out += random.pick(PATHS),
            _ => out += random.pick(LITERALS),
        }
    }
    out
}

fn plain(random: &mut Maker) -> String {
    match random.below(6) {
        0 => expansion(random),
        1 => format!("\"{} {}\"", random.pick(NAMES), expansion(random)),
        2 => word(random),
        _ => random.pick(&["x", "1.2", "/opt/bin", "hello", "a-b"]).to_owned(),
    }
}

fn path(random: &mut Maker) -> String {
    match random.below(10) {
        0 => word(random).replace([' ', '\t', '\n'], "_"),
        _ => random.pick(PATHS).replace(' ', "_"),
    }
}

fn heredoc(random: &mut Maker, lead: &str, tail: &str) -> String {
    let name = random.pick(&["EOF", "E", "F1", "a.txt"]);
    let (open, dash) = match random.below(5) {
        0 => (format!("<<-{name}"), true),
        1 => (format!("<<\"{name}\""), false),
        2 => (format!("<<'{name}'"), false),
        3 => (format!("3<<{name}"), false),
        _ => (format!("<<{name}"), false),
    };
    let tab = if dash { "\t" } else { "" };
    let mut body = String::new();
    for _ in 0..random.below(4) {
        let line = random.pick(&[
            "#!/bin/sh",
            "echo $A",
            "\\$A",
            "a \\",
            "",
            "${B:-x}",
            "  spaced",
            "FROM x",
            "# no comment",
        ]);
        writeln!(body, "{tab}{line}").unwrap();
    }
    format!("{lead}{open}{tail}\n{body}{tab}{name}")
}

fn mount(random: &mut Maker) -> String {
    let mut fields = vec![match random.below(12) {
        0..4 => "type=cache".to_owned(),
        4..7 => "type=bind".to_owned(),
        7..9 => "type=secret".to_owned(),
        9 => "type=tmpfs".to_owned(),
        10 => "type=ssh".to_owned(),
        _ => random.pick(&["type=x", "", "Type=cache", "type=$A", "\"type=cache\""]).to_owned(),
    }];
    for _ in 0..random.below(4) {
        let target = path(random);
        fields.push(match random.below(20) {
            0..7 => format!("target={target}"),
            7 if random.chance(50) => format!("source={target}"),
            7 => format!("src={target}"),
            8 => format!(
                "from={}",
                random.pick(&[
                    "build",
                    "0",
                    "alpine",
                    "scratch",
                    "s1",
                    "$BASE",
                    "context",
                    "stub.example/full"
                ])
            ),
            9 => random
                .pick(&["ro", "rw", "readonly", "readwrite", "ro=false", "rw=true", "rw=x"])
                .to_owned(),
            10 => format!("id={}", random.pick(&["a", "$A", "a/b", "x-$VER", ""])),
            11 => format!(
                "sharing={}",
                random.pick(&["shared", "private", "locked", "LOCKED", "none"])
            ),
            12 => format!("uid={}", random.pick(&["0", "1000", "-1", "x"])),
            13 => format!("gid={}", random.pick(&["0", "1000", "99999999999"])),
            14 => format!("mode={}", random.pick(&["0755", "600", "8", "1777"])),
            15 => {
                random.pick(&["required", "required=true", "required=false", "optional"]).to_owned()
            }
            16 => format!("env={}", random.pick(&["TOKEN", "A", ""])),
            17 => format!("size={}", random.pick(&["1024", "1m", "2GB", "x", "-1", "1.5k"])),
            18 => format!("\"target={target}\""),
            _ => random
                .pick(&[
                    "bogus",
                    "x=y",
                    "Target=/t",
                    " target=/x",
                    "destination=/d",
                    "target=",
                    "env",
                ])
                .to_owned(),
        });
    }
    format!("--mount={}", fields.join(","))
}

fn copy_flags(random: &mut Maker, add: bool) -> String {
    let mut out = String::new();
    while random.chance(40) {
        let flag = match random.below(14) {
            0 => format!("--chown={}", random.pick(USERS)),
            1 => format!("--chmod={}", random.pick(MODES)),
            2 => random
                .pick(&["--link", "--link=false", "--link=true", "--link=$A", "--link=1"])
                .to_owned(),
            3 => random.pick(&["--parents", "--parents=false"]).to_owned(),
            4 => format!("--exclude={}", path(random)),
            5 if add => format!(
                "--checksum={}",
                random.pick(&[
                    "sha256:9999999999999999999999999999999999999999999999999999999999999999",
                    "sha256:12",
                    "$A",
                    "md5:1",
                    "0123456789012345678901234567890123456789",
                ])
            ),
            6 if add => random
                .pick(&["--keep-git-dir", "--keep-git-dir=true", "--keep-git-dir=false"])
                .to_owned(),
            7 if add => random.pick(&["--unpack", "--unpack=false", "--unpack=true"]).to_owned(),
            5..12 if !add => format!(
                "--from={}",
                random.pick(&[
                    "build",
                    "0",
                    "1",
                    "alpine",
                    "Base",
                    "scratch",
                    "9",
                    "$BASE",
                    "stub.example/full",
                    "s1",
                    "final",
                    "context",
                    "a.b",
                ])
            ),
            12 => random.pick(&["--froom=x", "--chow=1", "--", "--from", "--x=y"]).to_owned(),
            _ => continue,
        };
        out += &flag;
        out.push(' ');
    }
    out
}

fn json(words: &[String]) -> String {
    let quoted: Vec<String> =
        words.iter().map(|word| serde_json::to_string(word).unwrap()).collect();
    format!("[{}]", quoted.join(", "))
}

fn pairs(random: &mut Maker) -> String {
    if random.chance(12) {
        return format!("{} {}", random.pick(NAMES), plain(random));
    }
    let mut list = Vec::new();
    for _ in 0..=random.below(3) {
        list.push(format!("{}={}", random.pick(NAMES), plain(random)));
    }
    list.join(random.pick(&[" ", "  ", " \\\n  "]))
}

fn instruction(random: &mut Maker) -> String {
    match random.below(40) {
        0..8 => {
            let mut out = "RUN ".to_owned();
            while random.chance(35) {
                out += &match random.below(8) {
                    0 => format!(
                        "--network={}",
                        random.pick(&["none", "host", "default", "x", "$A"])
                    ),
                    1 => format!("--security={}", random.pick(&["insecure", "sandbox", "y"])),
                    2 => random
                        .pick(&["--device=vendor.com/class=x", "--mont=type=cache", "--mount"])
                        .to_owned(),
                    _ => mount(random),
                };
                out.push(' ');
            }
            match random.below(6) {
                0 => {
                    let tail = random.pick(&["", " cat", " > /x"]);
                    heredoc(random, &out, tail)
                }
                _ => out + random.pick(RUNS),
            }
        }
        8..14 => {
            let mut out = format!("COPY {}", copy_flags(random, false));
            if random.chance(12) {
                let tail = format!(" {}", path(random));
                return heredoc(random, &out, &tail);
            }
            let words: Vec<String> = (0..2 + random.below(2)).map(|_| path(random)).collect();
            out += &if random.chance(15) { json(&words) } else { words.join(" ") };
            out
        }
        14..18 => {
            let out = format!("ADD {}", copy_flags(random, true));
            let source =
                if random.chance(50) { random.pick(URLS).to_owned() } else { path(random) };
            format!("{out}{source} {}", path(random))
        }
        18..22 => format!("ENV {}", pairs(random)),
        22..26 => {
            let name = random.pick(NAMES);
            let more = if random.chance(20) {
                format!(" {}={}", random.pick(NAMES), plain(random))
            } else {
                String::new()
            };
            match random.below(3) {
                0 => format!("ARG {name}{more}"),
                _ => format!("ARG {name}={}{more}", plain(random)),
            }
        }
        26 => format!("LABEL {}", pairs(random)),
        27 | 28 => format!("WORKDIR {}", path(random)),
        29 => format!("USER {}", random.pick(USERS)),
        30 => {
            let port = random.pick(&[
                "80",
                "80/tcp",
                "8000-8010/udp",
                "$A",
                "53/UDP 80",
                "127.0.0.1:80:80",
                "x",
                "0",
                "70000",
                "80/x",
                "443/Tcp",
                "9-1",
                "80 81 80",
                "1.2",
                "[80]",
            ]);
            format!("EXPOSE {port}")
        }
        31 => format!(
            "VOLUME {}",
            random.pick(&[
                "/data",
                "[\"/a\", \"/b\"]",
                "/a $A",
                "[]",
                "\"/x y\"",
                "[\"\"]",
                "/a/../b"
            ])
        ),
        32 => format!("SHELL {}", random.pick(SHELLS)),
        33 => format!(
            "STOPSIGNAL {}",
            random.pick(&["SIGTERM", "9", "$A", "SIGNOPE", "term", "SIGRTMIN+3", "0", ""])
        ),
        34 => {
            let flags = random.pick(&[
                "",
                "--interval=5s ",
                "--timeout=1m30s --retries=3 ",
                "--start-period=0s ",
                "--start-interval=1ms ",
                "--interval=1us ",
                "--retries=-1 ",
                "--retries=x ",
                "--interval=$A ",
                "--interval=1.5h ",
            ]);
            let what = random.pick(&[
                "NONE",
                "CMD x",
                "CMD [\"a\"]",
                "cmd curl $A",
                "NONE x",
                "CMD",
                "TEST x",
                "",
            ]);
            format!("HEALTHCHECK {flags}{what}")
        }
        35 => {
            let word = random.pick(&["CMD", "ENTRYPOINT"]);
            format!("{word} {}", random.pick(RUNS))
        }
        36 => format!("MAINTAINER {}", plain(random)),
        37 | 38 => format!("ONBUILD {}", instruction(random)),
        _ => random
            .pick(&[
                "FORM alpine",
                "RUNN x",
                "CPY a b",
                "COPY",
                "ENV",
                "ARG",
                "EXPOSE",
                "WORKDIR",
                "LABEL x",
                "ONBUILD FROM a",
                "CROSS x",
                "INCLUDE y",
            ])
            .to_owned(),
    }
}

/// Instructions in every letter case, with comments, blank and continued lines.
fn decorate(random: &mut Maker, line: String) -> String {
    let line = match random.below(14) {
        0 => {
            let (word, rest) = line.split_once(' ').unwrap_or((&line, ""));
            format!("{} {rest}", word.to_lowercase())
        }
        1 => {
            let mut chars = line.chars();
            let first = chars.next().unwrap_or('x');
            format!("{}{}", first.to_lowercase(), chars.as_str())
        }
        2 if !line.contains("<<") => line.replacen(' ', " \\\n", 1),
        3 => format!("  {line}"),
        4 if !line.contains("<<") => format!("{line}  "),
        _ => line,
    };
    let before = match random.below(12) {
        0 => "# a comment\n",
        1 => "\n",
        2 => "# build is a stage\n# of two lines\n",
        3 => "   # indented\n",
        4 => "# A is an arg\n",
        _ => "",
    };
    format!("{before}{line}\n")
}

fn from(random: &mut Maker, made: &[String]) -> String {
    let image = match made {
        [_, ..] if random.chance(35) => made[random.below(made.len())].clone(),
        _ => match random.below(3) {
            0 => random.pick(IMAGES).to_owned(),
            _ => random.pick(&IMAGES[..9]).to_owned(),
        },
    };
    let platform = match random.below(6) {
        0 => format!("--platform={} ", random.pick(PLATFORMS)),
        _ => String::new(),
    };
    let word = random.pick(&["AS", "AS", "AS", "as", "As"]);
    match random.below(3) {
        0 => format!("FROM {platform}{image}"),
        _ => format!("FROM {platform}{image} {word} {}", random.pick(STAGES)),
    }
}

/// A Dockerfile.
pub fn dockerfile(random: &mut Maker) -> Vec<u8> {
    let mut out = String::new();
    if random.chance(8) {
        out += random.pick(&[
            "# escape=`\n",
            "#escape=\\\n",
            "# syntax=docker/dockerfile:1\n# escape=`\n",
            "# escape=x\n",
        ]);
    }
    if random.chance(10) {
        out += random.pick(&[
            "# check=skip=all\n",
            "# check=error=true\n",
            "# check=skip=JSONArgsRecommended,StageNameCasing;error=true\n",
            "# check=experimental=all\n",
            "# check=skip=x;foo=bar\n",
            "# check=error=maybe\n",
            "# CHECK=skip=all\n",
        ]);
    }
    for _ in 0..random.below(4) {
        let line = match random.below(3) {
            0 => format!("ARG {}", random.pick(NAMES)),
            1 => format!("ARG {}={}", random.pick(NAMES), plain(random)),
            _ => format!("ARG BASE={}", random.pick(IMAGES)),
        };
        let line = decorate(random, line);
        random.add(&mut out, &line);
    }
    let mut made = Vec::new();
    if random.chance(8) {
        let source = random.pick(&[
            "http://h.example/a.tgz",
            "https://github.com/a/b.git",
            "--checksum=sha256:9999999999999999999999999999999999999999999999999999999999999999 http://h.example/x",
            "$E",
            "a",
            "https://github.com/a/b.git#v1:d",
        ]);
        let arg = random.pick(&["", "", "ARG E=http://h.example/e\n", "ENV E=git://h/r\n"]);
        let line = format!("FROM scratch AS epoch\n{arg}ADD {source} /\n");
        random.add(&mut out, &line);
    }
    for number in 0..1 + random.below(4) {
        for _ in 0..3 {
            let line = from(random, &made);
            let name = line.split_whitespace().last().unwrap_or_default().to_owned();
            let named = line.to_lowercase().contains(" as ");
            let line = decorate(random, line);
            if random.add(&mut out, &line) {
                made.push(if named { name } else { number.to_string() });
                break;
            }
        }
        for _ in 0..random.below(12) {
            let line = instruction(random);
            let line = decorate(random, line);
            random.add(&mut out, &line);
        }
    }
    match random.below(25) {
        0 => out = out.replace('\n', "\r\n"),
        1 => out.insert(0, '\u{feff}'),
        2 => _ = out.pop(),
        _ => {}
    }
    out.into_bytes()
}

const CONTEXTS: &[&str] = &[
    "docker-image://busybox",
    "docker-image://stub.example/full:1",
    "docker-image://stub.example/onbuild",
    "oci-layout://store:tag",
    "oci-layout://st@sha256:9999999999999999999999999999999999999999999999999999999999999999",
    "local:dir",
    "local:other",
    "input:in",
    "input:none",
    "target:build",
    "https://h/r.git#b",
    "git://h/r.git#b:s",
    "http://h.example/x.tgz",
    "https://h.example/y",
    "git@h:r/s.git",
    "bogus:x",
    "x",
    "docker-image://UP",
    "oci-layout://x",
    "docker-image:busybox",
    "local:",
    "ssh://git@h/r.git?ref=m",
    "docker-image://stub.example/missing",
    "https://h/r.git?x=1",
    "docker-image://alpine@sha256:9999999999999999999999999999999999999999999999999999999999999999",
];
const CONTEXT_NAMES: &[&str] = &[
    "alpine",
    "build",
    "busybox:1",
    "base",
    "a",
    "s1",
    "stub.example/full",
    "alpine::linux/amd64",
    "alpine::linux/arm64",
    "scratch",
    "docker.io/library/alpine",
    "0",
    "context",
    "busybox",
    "final::linux/amd64",
    "localhost:5000/a/b:c",
];

/// Adds options of the build.
pub fn options(random: &mut Maker, case: &mut Case) {
    for _ in 0..random.below(5) {
        let (key, value) = match random.below(34) {
            0..4 => (
                "platform",
                random.pick(&[
                    "linux/amd64",
                    "linux/arm64",
                    "linux/arm/v7",
                    "windows/amd64",
                    "linux/amd64,linux/arm64",
                    "linux/arm,linux/arm64/v8,linux/386",
                    "linux/amd64,linux/amd64",
                    "x/y/z/w",
                    "arm64",
                    "linux/s390x,windows/amd64",
                    "",
                ]),
            ),
            4 | 5 => (
                "target",
                random.pick(&[
                    "build", "base", "0", "1", "final", "nope", "BUILD", "s1", "buld", "-1",
                ]),
            ),
            6 => ("no-cache", random.pick(&["", "build", "0,1", "s1,FINAL", "x"])),
            7 => ("image-resolve-mode", random.pick(&["pull", "local", "default", "never"])),
            8 => (
                "add-hosts",
                random.pick(&[
                    "a=1.2.3.4",
                    "a=::1,b=1.1.1.1",
                    "\"a=1.2.3.4\"",
                    "a",
                    "a=x",
                    "A=1.2.3.4,a=1.2.3.5",
                ]),
            ),
            9 => ("shm-size", random.pick(&["1024", "64m", "0", "-1", "x"])),
            10 => (
                "ulimit",
                random.pick(&[
                    "nofile=1:2",
                    "nofile=1024",
                    "bad=1",
                    "nproc=-1:-1",
                    "core=2:1",
                    "nofile=1:2,nproc=3",
                ]),
            ),
            11 => ("cgroup-parent", random.pick(&["g", "/a/b"])),
            12 => ("hostname", "hst"),
            13 => ("force-network-mode", random.pick(&["host", "none", "sandbox", "default", "x"])),
            14 => ("multi-platform", random.pick(&["true", "false", "1", "x", ""])),
            15 => (
                "filename",
                random.pick(&[
                    "Dockerfile",
                    "sub/Dockerfile",
                    "other",
                    "Dockerfile.x",
                    "dockerfile",
                ]),
            ),
            16 => ("memory", random.pick(&["4096", "0", "-1", "x", "1g"])),
            17 => (
                random.pick(&["cpushares", "cpuperiod", "cpuquota", "memswap"]),
                random.pick(&["100", "-1", "0", "x"]),
            ),
            18 => (
                random.pick(&["cpusetcpus", "cpusetmems"]),
                random.pick(&["0", "0-3,5", "3-1", "x", "0,,1"]),
            ),
            19 => (
                "cache-imports",
                random.pick(&[
                    "[{\"Type\":\"registry\",\"Attrs\":{\"ref\":\"a/b\"}}]",
                    "[]",
                    "x",
                    "[{\"Type\":\"local\"}]",
                ]),
            ),
            20 => ("cache-from", random.pick(&["a/b", "a/b,c:d", ""])),
            21 => (
                "attest:provenance",
                random.pick(&["", "mode=max", "mode=min,inline-only=true", "x"]),
            ),
            22 => (
                "attest:sbom",
                random.pick(&[
                    "",
                    "generator=stub.example/full",
                    "generator=stub.example/bare",
                    "a=b,generator=alpine",
                    "\"x",
                ]),
            ),
            23 => (
                "requestid",
                random.pick(&[
                    "frontend.outline",
                    "frontend.targets",
                    "frontend.lint",
                    "frontend.subrequests.describe",
                    "frontend.convertllb",
                    "frontend.x",
                    "",
                ]),
            ),
            24 => (
                "frontend.caps",
                random.pick(&[
                    "moby.buildkit.frontend.inputs",
                    "moby.buildkit.frontend.subrequests",
                    "x+forward",
                    "x",
                    "moby.buildkit.frontend.contexts+forward,y",
                ]),
            ),
            25 => ("contextsubdir", random.pick(&["sub", "/", "../x", ""])),
            26 => ("contextkey", "other"),
            27 => ("cmdline", "docker/dockerfile:1"),
            28 => (
                "build-arg:SOURCE_DATE_EPOCH",
                random.pick(&[
                    "0",
                    "5",
                    "1700000000",
                    "x",
                    "-1",
                    "context",
                    "latest",
                    "",
                    "epoch",
                    "epoch",
                    "build",
                    "s1",
                    "alpine",
                    "a",
                    "base",
                ]),
            ),
            29 => (
                random.pick(&[
                    "build-arg:BUILDKIT_CACHE_MOUNT_NS",
                    "build-arg:BUILDKIT_SANDBOX_HOSTNAME",
                    "build-arg:BUILDKIT_MULTI_PLATFORM",
                    "build-arg:BUILDKIT_CONTEXT_KEEP_GIT_DIR",
                    "build-arg:BUILDKIT_INLINE_CACHE",
                    "build-arg:BUILDKIT_SYNTAX",
                    "build-arg:BUILDKIT_DISABLE_FILEOP",
                    "build-arg:BUILDKIT_BUILD_NAME",
                ]),
                random.pick(&["1", "true", "0", "x", ""]),
            ),
            30 => (
                "build-arg:BUILDKIT_DOCKERFILE_CHECK",
                random.pick(&[
                    "skip=all",
                    "error=true",
                    "experimental=all",
                    "skip=StageNameCasing",
                    "x",
                    "skip=all;error=true",
                    "",
                ]),
            ),
            31 => ("local-sessionid:context", "other-session"),
            32 => ("override-copy-image", random.pick(&["", "x"])),
            _ => ("dockerfilekey", "df2"),
        };
        let before = case.clone();
        case.option(key, value);
        if !random.keeps(case) {
            *case = before;
        }
    }
    while random.chance(40) {
        let name = random.pick(NAMES);
        let value = random.pick(&["x", "", "alpine", "a b", "$A", "linux/arm64", "é", "1"]);
        case.option(format!("build-arg:{name}"), value);
    }
    while random.chance(15) {
        let name = random.pick(&["a", "b.c", "", "é"]);
        case.option(format!("label:{name}"), random.pick(&["x", "", "$A"]));
    }
    while random.chance(35) {
        let name = random.pick(CONTEXT_NAMES);
        let before = case.clone();
        case.option(format!("context:{name}"), random.pick(CONTEXTS));
        if !random.keeps(case) {
            *case = before;
        }
    }
    if case.options.values().any(|value| value.starts_with("input:")) || random.chance(3) {
        let name = random.pick(&["in", "in::linux/amd64", "context", "dockerfile", "alpine"]);
        case.inputs.insert("in".to_owned(), "stub.example/full".to_owned());
        case.inputs.insert(name.to_owned(), "alpine".to_owned());
        if random.chance(30) {
            let metadata = random.pick(&[
                "{\"containerimage.config\":\"e30=\"}",
                "{\"containerimage.config\":\"eyJvcyI6ImxpbnV4In0=\"}",
                "x",
                "{}",
            ]);
            case.option("input-metadata:in", metadata);
        }
    }
    if random.chance(12) {
        let before = case.clone();
        remote(random, case);
        if !random.keeps(case) {
            *case = before;
        }
    }
    let ignore = random.pick(&[
        "*.txt\n!a.txt\n",
        "/a\n#c\n\n**/b\n",
        "",
        ".\n",
        "!\n",
        "[x\n",
        "*\n!src\n!src/**\n",
        "a/../b\n  c d  \n",
    ]);
    match random.below(8) {
        0 => case.file("local://context", ".dockerignore", ignore),
        1 => case.file("local://dockerfile", "Dockerfile.dockerignore", ignore),
        2 => case.file("local://dir", ".dockerignore", ignore),
        _ => {}
    }
}

/// Makes the context a remote one.
fn remote(random: &mut Maker, case: &mut Case) {
    let data = case.files["local://dockerfile"]["Dockerfile"].clone();
    let url = random.pick(&[
        "https://h/r.git",
        "https://h/r.git#b:sub",
        "git@h:r.git",
        "https://h.example/ctx",
        "http://h.example/ctx.tgz",
        "github.com/a/b",
        "https://h/r.git?subdir=x&ref=y",
        "git://h/r",
        "./local",
        "ssh://h/r.git#:d",
        "https://h.example/Dockerfile",
        "https://h/r.git?z=1",
        "http://h.example/none",
    ]);
    case.option("context", url);
    for source in [
        "git://h/r.git",
        "git://h/r.git#b:sub",
        "git://github.com/a/b",
        "git://h/r",
        "git://github.com/a/b.git",
    ] {
        case.file(source, "Dockerfile", data.clone());
    }
    for source in ["https://h.example/ctx", "https://h.example/Dockerfile"] {
        case.file(source, "context", data.clone());
    }
    case.file("http://h.example/ctx.tgz", "context", *b"\x1f\x8b\x08\0x");
    case.file("http://h.example/ctx.tgz", "Dockerfile", data);
}
