//! The frontend from options to result, without a daemon.

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use common::{FolderBridge, Images, block_on};
use dockerfile::Dockerfile;
use expect_test::{Expect, expect};
use frontend_api::{Frontend as _, FrontendError, FrontendResult, Refs};
use llb::pb;
use prost::Message as _;

/// A folder with files, gone when dropped.
struct Folder(PathBuf);

impl Folder {
    fn new(files: &[(&str, &str)]) -> Self {
        let path = std::env::temp_dir().join(format!("dockerfile-{}", base::id::random_id()));
        for (name, text) in files {
            let file = path.join(name);
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(file, text).unwrap();
        }
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn run(
    files: &[(&str, &str)],
    options: &[(&str, &str)],
) -> (Result<FrontendResult, FrontendError>, Arc<FolderBridge>) {
    let folder = Folder::new(files);
    let images = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus/stub-images.json");
    let mut bridge = FolderBridge::new(&folder.0, Arc::new(Images::read(&images)));
    let owned = options.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
    bridge.options = owned.collect();
    let bridge = Arc::new(bridge);
    let result = block_on(Dockerfile::default().solve(Arc::clone(&bridge) as _));
    (result, bridge)
}

/// Names and ops of a graph, a line each.
fn show_graph(definition: &pb::Definition) -> String {
    let mut out = String::new();
    for bytes in &definition.def {
        let op = pb::Op::decode(bytes.clone()).unwrap();
        let digest = base::Digest::of(bytes).to_string();
        let metadata = &definition.metadata[&digest];
        let name = metadata.description.get("llb.customname").map_or("", String::as_str);
        let word = match &op.op {
            Some(pb::op::Op::Source(source)) => source.identifier.clone(),
            Some(pb::op::Op::Exec(exec)) => exec.meta.as_ref().unwrap().args.join(" "),
            Some(pb::op::Op::File(file)) => format!("{} file action(s)", file.actions.len()),
            Some(_) => "other".to_owned(),
            None => continue,
        };
        out += &format!("{word} | {name}\n");
    }
    out
}

fn check(dockerfile: &str, options: &[(&str, &str)], expected: Expect) {
    let (result, bridge) = run(&[("Dockerfile", dockerfile)], options);
    let mut out = String::new();
    match result {
        Ok(result) => {
            for (key, value) in &result.metadata {
                out += &format!("{key}: {}\n", String::from_utf8_lossy(value));
            }
            let refs = match &result.refs {
                Refs::Single(reference) => usize::from(reference.is_some()),
                Refs::Map(map) => map.len(),
            };
            out += &format!("refs: {refs}\n");
            out += &show_graph(bridge.solved.lock().unwrap().last().unwrap());
        }
        Err(error) => {
            out += &format!("{:?}: {error}\n", error.code);
            for source in &error.sources {
                let lines: Vec<i32> = source.ranges.iter().map(|r| r.start.unwrap().line).collect();
                out += &format!("{} {lines:?}\n", source.info.filename);
            }
            for detail in &error.details {
                out += &format!("{} {}\n", detail.type_url, String::from_utf8_lossy(&detail.value));
            }
        }
    }
    for warning in bridge.warnings.lock().unwrap().iter() {
        out += &format!("warning: {} <{}>\n", warning.short, warning.url);
    }
    expected.assert_eq(&out);
}

#[test]
fn a_build_returns_tree_and_config() {
    check(
        "FROM scratch\nCOPY a /\nCMD x\n",
        &[("label:l", "v")],
        expect![[r#"
            containerimage.config: {"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":null},"history":[{"created_by":"COPY a / # buildkit","comment":"buildkit.dockerfile.v0"},{"created_by":"CMD [\"/bin/sh\" \"-c\" \"x\"]","comment":"buildkit.dockerfile.v0","empty_layer":true}],"config":{"Env":["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],"Cmd":["/bin/sh","-c","x"],"WorkingDir":"/","Labels":{"l":"v"},"ArgsEscaped":true}}
            refs.platforms: {"Platforms":[{"ID":"linux/amd64","Platform":{"architecture":"amd64","os":"linux"}}]}
            refs: 1
            local://context | [internal] load build context
            1 file action(s) | [1/1] COPY a /
            warning: JSONArgsRecommended: JSON arguments recommended for CMD to prevent unintended behavior related to OS signals (line 3) <https://docs.docker.com/go/dockerfile/rule/json-args-recommended/>
        "#]],
    );
}

#[test]
fn several_platforms_return_a_map() {
    check(
        "FROM scratch\nARG TARGETARCH\nCOPY $TARGETARCH /\n",
        &[("platform", "linux/amd64,linux/arm/v7"), ("build-arg:SOURCE_DATE_EPOCH", "7")],
        expect![[r#"
            containerimage.config/linux/amd64: {"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":null},"history":[{"created":"1970-01-01T00:00:07Z","created_by":"ARG TARGETARCH=amd64","comment":"buildkit.dockerfile.v0","empty_layer":true},{"created":"1970-01-01T00:00:07Z","created_by":"COPY amd64 / # buildkit","comment":"buildkit.dockerfile.v0"}],"config":{"Env":["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],"WorkingDir":"/"}}
            containerimage.config/linux/arm/v7: {"architecture":"arm","os":"linux","variant":"v7","rootfs":{"type":"layers","diff_ids":null},"history":[{"created":"1970-01-01T00:00:07Z","created_by":"ARG TARGETARCH=arm","comment":"buildkit.dockerfile.v0","empty_layer":true},{"created":"1970-01-01T00:00:07Z","created_by":"COPY arm / # buildkit","comment":"buildkit.dockerfile.v0"}],"config":{"Env":["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],"WorkingDir":"/"}}
            refs.platforms: {"Platforms":[{"ID":"linux/amd64","Platform":{"architecture":"amd64","os":"linux"}},{"ID":"linux/arm/v7","Platform":{"architecture":"arm","os":"linux","variant":"v7"}}]}
            source.date.epoch/linux/amd64: 7
            source.date.epoch/linux/arm/v7: 7
            refs: 2
            local://context | [internal] load build context
            1 file action(s) | [linux/arm/v7 1/1] COPY arm /
        "#]],
    );
}

#[test]
fn mistakes_carry_their_place() {
    check(
        "FROM scratch\nRUN --mont=type=cache x\n",
        &[],
        expect![[r#"
            Unknown: dockerfile parse error on line 2: unknown flag: --mont (did you mean mount?)
            Dockerfile [2]
        "#]],
    );
    check(
        "FROM scratch\n",
        &[("requestid", "frontend.other")],
        expect![[r#"
            Unknown: unsupported request frontend.other
            github.com/moby/buildkit/errdefs.Subrequest+json {"name":"frontend.other"}
        "#]],
    );
    check(
        "FROM scratch\n",
        &[("frontend.caps", "moby.buildkit.frontend.inputs,moby.buildkit.frontend.x")],
        expect![[r#"
            Unimplemented: unsupported frontend capability moby.buildkit.frontend.x
            github.com/moby/buildkit/errdefs.FrontendCap+json {"name":"moby.buildkit.frontend.x"}
        "#]],
    );
    check(
        "FROM stub.example/missing\n",
        &[],
        expect![[r#"
            Unknown: stub.example/missing: stub: image not found
            Dockerfile [1]
        "#]],
    );
}

#[test]
fn syntax_lines_hand_over() {
    let file = "# syntax=example/frontend:1 --x\nFROM scratch\n";
    let (result, bridge) = run(&[("Dockerfile", file)], &[("target", "t")]);
    result.unwrap();
    let forwarded = bridge.forwarded.lock().unwrap();
    let expected = BTreeMap::from(
        [("target", "t"), ("source", "example/frontend:1"), ("cmdline", "example/frontend:1 --x")]
            .map(|(key, value)| (key.to_owned(), value.to_owned())),
    );
    assert_eq!(*forwarded, [expected]);
    let (result, bridge) = run(&[("Dockerfile", file)], &[("cmdline", "x")]);
    result.unwrap();
    assert!(bridge.forwarded.lock().unwrap().is_empty());
    let (result, bridge) =
        run(&[("Dockerfile", "FROM scratch\n")], &[("build-arg:BUILDKIT_SYNTAX", "other")]);
    result.unwrap();
    assert_eq!(bridge.forwarded.lock().unwrap()[0]["source"], "other");
}

#[test]
fn the_file_may_be_elsewhere() {
    let files = [("Dockerfile", "FROM scratch\nCOPY a b /\n"), ("Dockerfile.dockerignore", "a\n")];
    let (result, bridge) = run(&files, &[("filename", "sub/My.file")]);
    result.unwrap();
    let solved = bridge.solved.lock().unwrap();
    let first = pb::Op::decode(solved[0].def[0].clone()).unwrap();
    let Some(pb::op::Op::Source(source)) = first.op else {
        panic!("the file is read from a source")
    };
    assert_eq!(source.attrs["local.followpaths"], r#"["sub/My.file","sub/My.file.dockerignore"]"#);
    assert!(bridge.warnings.lock().unwrap()[0].short.starts_with("CopyIgnoredFile"));
}

#[test]
fn an_sbom_is_made_of_the_result() {
    let file = "ARG BUILDKIT_SBOM_SCAN_CONTEXT=1\nFROM scratch\nCOPY a /\n";
    let (result, bridge) =
        run(&[("Dockerfile", file)], &[("attest:sbom", "generator=stub.example/full,X=y")]);
    let result = result.unwrap();
    let attestation = &result.attestations["linux/amd64"][0];
    assert_eq!(attestation.predicate_type, "https://spdx.dev/Document");
    let solved = bridge.solved.lock().unwrap();
    let scan = solved.last().unwrap();
    expect![[r#"
        docker-image://stub.example/full:latest | 
        local://context | [internal] load build context
        1 file action(s) | [1/1] COPY a /
        /entry.sh serve --all | [linux/amd64] generating sbom using stub.example/full:latest
    "#]]
    .assert_eq(&show_graph(scan));
}

fn document(dockerfile: &str, id: &str, name: &str) -> String {
    let (result, _) = run(&[("Dockerfile", dockerfile)], &[("requestid", id)]);
    String::from_utf8(result.unwrap().metadata[name].to_vec()).unwrap()
}

const FILE: &str = "# V the version\nARG V=1\nFROM scratch AS one\n# two the second\nFROM one AS two\nARG V\nRUN --mount=type=secret,id=s,required=1 --mount=type=ssh x\nCMD y\n";

#[test]
fn requests_are_answered_for_people() {
    expect![[r#"
        TARGET        DESCRIPTION
        one           
        two (default) the second
    "#]]
    .assert_eq(&document(FILE, "frontend.targets", "result.txt"));
    expect![[r#"
        TARGET:      two
        DESCRIPTION: the second

        BUILD ARG   VALUE   DESCRIPTION
        V           1       the version

        SECRET   REQUIRED
        s        true

        SSH       REQUIRED
        default   

    "#]]
    .assert_eq(&document(FILE, "frontend.outline", "result.txt"));
    expect![[r#"

        WARNING: JSONArgsRecommended - https://docs.docker.com/go/dockerfile/rule/json-args-recommended/
        JSON arguments recommended for CMD to prevent unintended behavior related to OS signals
        Dockerfile:8
        --------------------
           6 |     ARG V
           7 |     RUN --mount=type=secret,id=s,required=1 --mount=type=ssh x
           8 | >>> CMD y
           9 |     
        --------------------
    "#]]
    .assert_eq(&document(FILE, "frontend.lint", "result.txt"));
    expect![[r#"
        NAME                 VERSION DESCRIPTION
        outline              1.0.0   List all parameters current build target supports
        targets              1.0.0   List all targets current build supports
        subrequests.describe 1.0.0   List available subrequest types
    "#]]
    .assert_eq(&document(FILE, "frontend.subrequests.describe", "result.txt"));
}

#[test]
fn requests_are_answered_for_programs() {
    expect![[r#"
        {
          "targets": [
            {
              "name": "one",
              "base": "scratch",
              "location": {
                "ranges": [
                  {
                    "start": {
                      "line": 3
                    },
                    "end": {
                      "line": 3
                    }
                  }
                ]
              }
            },
            {
              "name": "two",
              "default": true,
              "description": "the second",
              "base": "one",
              "location": {
                "ranges": [
                  {
                    "start": {
                      "line": 5
                    },
                    "end": {
                      "line": 5
                    }
                  }
                ]
              }
            }
          ],
          "sources": [
            "IyBWIHRoZSB2ZXJzaW9uCkFSRyBWPTEKRlJPTSBzY3JhdGNoIEFTIG9uZQojIHR3byB0aGUgc2Vjb25kCkZST00gb25lIEFTIHR3bwpBUkcgVgpSVU4gLS1tb3VudD10eXBlPXNlY3JldCxpZD1zLHJlcXVpcmVkPTEgLS1tb3VudD10eXBlPXNzaCB4CkNNRCB5Cg=="
          ]
        }"#]]
    .assert_eq(&document(FILE, "frontend.targets", "result.json"));
    let status = document("FROM scratch\n", "frontend.lint", "result.statuscode");
    assert_eq!(status, "0");
    let llb = document("FROM scratch\nCOPY a /\n", "frontend.convertllb", "result.json");
    let llb: serde_json::Value = serde_json::from_str(&llb).unwrap();
    assert_eq!(llb["def"].as_object().unwrap().len(), 3);
    assert_eq!(llb["source"]["infos"][0]["filename"], "Dockerfile");
}
