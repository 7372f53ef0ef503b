//! Graphs built here have the bytes of the standard client.

use std::collections::BTreeSet;
use std::path::Path;

use base::Platform;
use prost::Message as _;

use super::*;

fn golden(name: &str) -> pb::Definition {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/llb");
    let bytes = std::fs::read(folder.join(name)).expect("the vector is there");
    pb::Definition::decode(bytes.as_slice()).expect("the vector is a definition")
}

fn options() -> MarshalOptions {
    MarshalOptions {
        platform: Some(Platform::new("linux", "amd64")),
        caps: Some(BTreeSet::from(["exec.meta.setsdefaultpath".to_owned()])),
        local_unique: None,
    }
}

#[track_caller]
fn check(name: &str, build: impl FnOnce(&mut Graph, Output) -> Option<Output>) {
    let mut graph = Graph::new();
    let image = Source::image("127.0.0.1:5917/golden/tiny:1");
    let image = graph.source(image, Meta::default());
    let output = build(&mut graph, image);
    let definition = graph.marshal(output, &options()).unwrap();
    let wanted = golden(name);
    let decode = |list: &[bytes::Bytes]| -> Vec<pb::Op> {
        list.iter().map(|bytes| pb::Op::decode(bytes.clone()).unwrap()).collect()
    };
    assert_eq!(decode(&definition.def), decode(&wanted.def));
    assert_eq!(definition.def, wanted.def);
    assert_eq!(definition.metadata, wanted.metadata);
}

fn mkfile(path: &str, data: &str) -> FileAction {
    FileAction::Mkfile(Mkfile {
        path: path.into(),
        mode: 0o644,
        data: data.into(),
        ..Mkfile::default()
    })
}

fn writer(root: Output, file: &str, text: &str) -> Exec {
    Exec {
        args: ["/bin/w", file, text].map(str::to_owned).to_vec(),
        env: vec![("PATH".into(), "/bin".into())],
        cwd: "/".into(),
        root: Some(root),
        ..Exec::default()
    }
}

#[test]
fn copies() {
    check("05-copy-image.pb", |graph, image| {
        let copy = Copy {
            from: CopyFrom::Output(image),
            src: "/etc/passwd".into(),
            dest: "/dst/passwd".into(),
            mode: Mode::Bits(0o640),
            create_dest_path: true,
            ..Copy::default()
        };
        Some(graph.file(None, vec![FileAction::Copy(copy)], Meta::default()))
    });
}

#[test]
fn mounts_are_sorted_and_outputs_numbered() {
    check("11-exec-mounts.pb", |graph, image| {
        let at = |target: &str, kind| Mount { target: target.into(), kind, ..Mount::default() };
        let cache = |id: &str, sharing| MountKind::Cache { id: id.into(), sharing };
        let exec = Exec {
            readonly_root: true,
            mounts: vec![
                at("/t", MountKind::Tmpfs { size: 65536 }),
                at("/m", MountKind::Bind),
                Mount {
                    source: Some(image),
                    selector: "/etc".into(),
                    readonly: true,
                    ..at("/ro", MountKind::Bind)
                },
                at("/c", cache("golden-cache", pb::CacheSharingOpt::Locked)),
                at("/c2", cache("/c2", pb::CacheSharingOpt::Shared)),
            ],
            ..writer(image, "/m/o.txt", "two")
        };
        graph.exec(exec, Meta::default()).mounts[1]
    });
    check("29-multi-output.pb", |graph, image| {
        let at = |target: &str| Mount { target: target.into(), ..Mount::default() };
        let exec = Exec { mounts: vec![at("/o2"), at("/o1")], ..writer(image, "/o2/y", "yy") };
        graph.exec(exec, Meta::default()).mounts[0]
    });
}

#[test]
fn merges_and_diffs() {
    check("15-merge.pb", |graph, image| {
        let a = graph.file(None, vec![mkfile("/a", "a")], Meta::default());
        let b = graph.file(None, vec![mkfile("/b", "b")], Meta::default());
        graph.merge([Some(image), None, Some(a), Some(b)], Meta::default())
    });
    check("16-diff.pb", |graph, image| {
        let new = graph.file(Some(image), vec![mkfile("/new", "n")], Meta::default());
        let rm = FileAction::Rm(Rm { path: "/etc/group".into(), ..Rm::default() });
        let removed = graph.file(Some(new), vec![rm], Meta::default());
        graph.diff(Some(image), Some(removed), Meta::default())
    });
}

#[test]
fn empty_trees_take_part() {
    let mut graph = Graph::new();
    assert_eq!(graph.merge([None, None], Meta::default()), None);
    let file = graph.file(None, vec![mkfile("/a", "a")], Meta::default());
    assert_eq!(graph.merge([None, Some(file)], Meta::default()), Some(file));
    assert_eq!(graph.diff(None, Some(file), Meta::default()), Some(file));
    assert_eq!(graph.marshal(None, &options()).unwrap(), pb::Definition::default());
}

#[test]
fn imported_ops_keep_their_bytes() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/llb");
    let mut count = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if !name.ends_with(".pb") {
            continue;
        }
        let wanted = golden(&name);
        let mut graph = Graph::new();
        let output = graph.import(&wanted).unwrap();
        let got = graph.marshal(output, &options()).unwrap();
        let set = |definition: &pb::Definition| -> BTreeSet<bytes::Bytes> {
            definition.def.iter().cloned().collect()
        };
        assert!(set(&got).is_subset(&set(&wanted)), "{name}");
        assert_eq!(got.def.last(), wanted.def.last(), "{name}");
        count += 1;
    }
    assert!(count > 30);
    let broken = pb::Definition { def: vec!["\u{1}".into(), "".into()], ..Default::default() };
    assert_eq!(Graph::new().import(&broken), Err(ImportError::Undecodable));
}

#[test]
fn long_chains_need_no_stack() {
    let mut graph = Graph::new();
    let mut tree = None;
    for number in 0..50_000 {
        tree = Some(graph.file(tree, vec![mkfile("/a", &number.to_string())], Meta::default()));
    }
    assert_eq!(graph.marshal(tree, &options()).unwrap().def.len(), 50_001);
}
