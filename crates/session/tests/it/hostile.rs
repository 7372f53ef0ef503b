//! A sender and a receiver that break the rules.

use std::{fs, path::Path, sync::Arc};

use base::gomode;
use bytes::Bytes;
use session::fsutil::{MemoryTree, Packet, PacketType, ReceiveOptions, Stat, receive, send};
use tokio::sync::mpsc;
use tonic::Status;

use crate::{show, soon};

/// One packet a line: `dir P`, `file P`, `link P T` (symlink), `hard P T`, `end`, `data ID TEXT`,
/// `eof ID`, `err TEXT`, `fin`, `req ID`, `broken`.
fn script(text: &str) -> Vec<Result<Packet, Status>> {
    let me = |stat: Stat| {
        let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
        Stat { uid: uid.as_raw(), gid: gid.as_raw(), ..stat }
    };
    text.lines()
        .map(|line| {
            let mut words = line.split_whitespace();
            let kind = words.next().unwrap();
            let first = words.next().unwrap_or_default().to_owned();
            let second = words.next().unwrap_or_default().to_owned();
            let stat = |mode: u32, linkname: String| Packet {
                stat: Some(me(Stat { path: first.clone(), mode, linkname, ..Stat::default() })),
                ..Packet::default()
            };
            let typed = |kind: PacketType| Packet { r#type: kind.into(), ..Packet::default() };
            Ok(match kind {
                "dir" => stat(gomode::DIR | 0o755, String::new()),
                "file" => stat(0o644, String::new()),
                "link" => stat(gomode::SYMLINK | 0o777, second),
                "hard" => stat(0o644, second),
                "end" => Packet::default(),
                "data" => Packet {
                    id: first.parse().unwrap(),
                    data: second.into(),
                    ..typed(PacketType::PacketData)
                },
                "eof" => Packet { id: first.parse().unwrap(), ..typed(PacketType::PacketData) },
                "req" => Packet { id: first.parse().unwrap(), ..typed(PacketType::PacketReq) },
                "err" => Packet { data: first.into(), ..typed(PacketType::PacketErr) },
                "fin" => typed(PacketType::PacketFin),
                "broken" => return Err(Status::unavailable("wire cut")),
                other => panic!("unknown packet {other}"),
            })
        })
        .collect()
}

/// Plays `text` to a receiver.
async fn play(folder: &Path, text: &str) -> String {
    let (requests, asked) = mpsc::unbounded_channel::<Packet>();
    let state = (script(text).into_iter(), asked);
    let incoming = futures_util::stream::unfold(state, |(mut packets, mut asked)| async {
        let packet = packets.next()?;
        match packet.as_ref().map(Packet::r#type) {
            // The request is on its way by then.
            Ok(PacketType::PacketData) => {
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
            Ok(PacketType::PacketFin) if packets.len() == 0 && asked.recv().await.is_some() => {
                while let Some(said) = asked.recv().await {
                    if said.r#type() == PacketType::PacketFin {
                        break;
                    }
                }
            }
            _ => {}
        }
        Some((packet, (packets, asked)))
    });
    let root = fs::File::open(folder).unwrap().into();
    let options = ReceiveOptions::default();
    match soon(receive(root, options, Box::pin(incoming), requests)).await {
        Ok(received) => format!("ok {}", received.changed),
        Err(error) => error.to_string(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn senders_are_kept_inside() {
    let outer = tempfile::tempdir().unwrap();
    let folder = outer.path().join("in");
    fs::create_dir(&folder).unwrap();
    fs::write(outer.path().join("precious"), "safe").unwrap();
    for (text, expected) in [
        ("file ../x", r#"escape check "../x": invalid argument"#),
        ("file /etc/x", r#"absolute path "/etc/x": invalid argument"#),
        ("file a/../../x", r#"unclean path "a/../../x": invalid argument"#),
        ("dir b\nfile a", r#"changes out of order: "a" "b""#),
        ("link d ..\nfile d/precious", r#"changes out of order: "d/precious" "d""#),
        ("file a/b", r#"changes out of order: "a/b" """#),
        ("hard a ../precious", r#"invalid link a to unknown path: "../precious""#),
        ("link l ../precious\nhard m l", r#"invalid link m to unknown path: "l""#),
        ("data 0 x", "invalid file request 0"),
        ("dir d\nend\ndata 0 x", "invalid file request 0"),
        ("file f\nend\ndata 0 x\neof 0\ndata 0 y", "invalid file request 0"),
        ("file a\nerr disk", "error from sender: disk"),
        ("file a\nend\nbroken", "wire cut"),
        ("file a", "stream closed during transfer of files"),
        ("fin\nfile a", "stream closed during transfer of files"),
    ] {
        let result = play(&folder, text).await;
        assert_eq!(result, expected, "{text}");
    }
    assert_eq!(fs::read_to_string(outer.path().join("precious")).unwrap(), "safe");

    // What existed and points outside is replaced, not followed.
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir(&folder).unwrap();
    std::os::unix::fs::symlink("..", folder.join("d")).unwrap();
    std::os::unix::fs::symlink("../precious", folder.join("f")).unwrap();
    let text = "dir d\nfile d/precious\nfile f\nend\ndata 1 new\neof 1\neof 2\nfin";
    assert_eq!(play(&folder, text).await, "ok 3");
    assert_eq!(fs::read_to_string(outer.path().join("precious")).unwrap(), "safe");
    assert_eq!(show(&folder), "d 0755 d @0\nf 0644 d/precious \"new\" @0\nf 0644 f \"\" @0\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_transfer_leaves_no_temporary_files() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("f"), "old").unwrap();
    let text = "file f\nend\ndata 0 half\nbroken";
    assert_eq!(play(folder.path(), text).await, "wire cut");
    let names: Vec<_> =
        fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names, ["f"]);
    assert_eq!(fs::read_to_string(folder.path().join("f")).unwrap(), "old");
}

#[tokio::test(flavor = "multi_thread")]
async fn receivers_may_ask_only_once() {
    for (text, expected) in [
        ("req 7", "invalid file id 7"),
        ("req 1", "invalid file id 1"),
        ("req 0\nreq 0", "invalid file id 0"),
        ("err full", "error from receiver: full"),
        ("broken", "wire cut"),
        ("", "stream closed during transfer of files"),
        ("req 0\nfin", "ok"),
    ] {
        let mut tree = MemoryTree::new();
        tree.file("a", 0, Bytes::from_static(b"x"));
        tree.add(Stat { path: "d".into(), mode: gomode::DIR, ..Stat::default() }, Bytes::new());
        let (outgoing, mut sent) = mpsc::channel(100);
        // The listing is out before the receiver says anything.
        let incoming = futures_util::stream::unfold(script(text).into_iter(), |mut rest| async {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            Some((rest.next()?, rest))
        });
        let result = soon(send(Arc::new(tree), Box::pin(incoming), outgoing, None)).await;
        let result = result.map_or_else(|error| error.to_string(), |()| "ok".to_owned());
        assert_eq!(result, expected, "{text}");
        let mut kinds = Vec::new();
        while let Some(packet) = sent.recv().await {
            kinds.push(packet.r#type());
        }
        let last = if expected == "ok" { PacketType::PacketFin } else { *kinds.last().unwrap() };
        assert_eq!(*kinds.last().unwrap(), last);
    }
}
