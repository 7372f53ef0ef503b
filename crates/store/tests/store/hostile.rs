//! Layers that mean harm: each is refused, or stays inside its tree and within bounds.

use super::*;

/// One entry of a tar, without any check.
fn entry(out: &mut Vec<u8>, name: &str, kind: u8, link: &str, data: &[u8]) {
    let mut header = [0u8; 512];
    header[..name.len()].copy_from_slice(name.as_bytes());
    header[100..107].copy_from_slice(b"0000644");
    header[108..115].copy_from_slice(b"0000000");
    header[116..123].copy_from_slice(b"0000000");
    header[124..135].copy_from_slice(format!("{:011o}", data.len()).as_bytes());
    header[136..147].copy_from_slice(b"00000000000");
    header[156] = kind;
    header[157..157 + link.len()].copy_from_slice(link.as_bytes());
    header[257..265].copy_from_slice(b"ustar\x0000");
    if matches!(kind, b'3' | b'4') {
        header[329..336].copy_from_slice(b"0000001");
        header[337..344].copy_from_slice(b"0000003");
    }
    header[148..156].copy_from_slice(b"        ");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    out.extend_from_slice(&header);
    out.extend_from_slice(data);
    out.resize(out.len().next_multiple_of(512), 0);
}

fn raw(entries: &[(&str, u8, &str, &[u8])]) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, kind, link, data) in entries {
        entry(&mut out, name, *kind, link, data);
    }
    out.resize(out.len() + 1024, 0);
    out
}

/// A provider of one blob in one piece.
struct Whole(Bytes);

#[async_trait::async_trait]
impl Provider for Whole {
    async fn open(&self, _: &Descriptor, offset: u64) -> oci::Result<BlobStream> {
        let rest = self.0.slice(usize::try_from(offset).unwrap()..);
        Ok(futures_util::stream::iter([Ok(rest)]).boxed())
    }

    fn describe(&self) -> String {
        "memory".into()
    }
}

/// An image of layers from below, the last of which is `blob`.
fn over(store: &Arc<Store>, blob: Vec<u8>, media_type: &str, diff_id: Digest) -> Ref {
    let layer = ImageLayer {
        descriptor: Descriptor::of(media_type, &blob),
        diff_id,
        created_at: None,
        description: None,
    };
    let image = ImageLayers {
        layers: vec![layer],
        provider: Some(Arc::new(Whole(blob.into()))),
        description: "pulled from evil".into(),
        kind: RecordKind::Regular,
        image_name: Some("evil".into()),
        keeps: Vec::new(),
    };
    store.image(image).expect("an image").expect("it has a layer")
}

async fn unpack(store: &Arc<Store>, tar: Vec<u8>) -> (Ref, Result<(), store::StoreError>) {
    let diff_id = Digest::of(&tar);
    let tree = over(store, tar, oci::media::OCI_LAYER, diff_id);
    let unpacked = tree.ensure_local(store::no_progress()).await;
    (tree, unpacked)
}

#[tokio::test]
async fn nothing_gets_outside() {
    let (folder, outside) = (folder(), super::folder());
    let store = open(folder.path());
    std::fs::write(outside.path().join("victim"), "whole").unwrap();
    let door = outside.path().display().to_string();
    let victim = format!("{door}/victim");
    let deep = "../".repeat(12) + door.trim_start_matches('/') + "/escaped";
    for evil in [
        raw(&[(&deep, b'0', "", b"x")]),
        raw(&[(&format!("{door}/escaped"), b'0', "", b"x")]),
        raw(&[("door", b'2', &door, b""), ("door/escaped", b'0', "", b"x")]),
        raw(&[("door", b'2', &door, b""), ("door/folder/", b'5', "", b"")]),
        raw(&[("door", b'2', &door, b""), ("door/.wh.victim", b'0', "", b"")]),
        raw(&[("door", b'2', &door, b""), ("door/.wh..wh..opq", b'0', "", b"")]),
        raw(&[("hard", b'1', &victim, b""), ("hard", b'0', "", b"x")]),
        raw(&[("l", b'2', &victim, b""), ("hard", b'1', "l", b""), ("hard", b'0', "", b"x")]),
        raw(&[("a/../../../escaped", b'0', "", b"x")]),
        raw(&[("..", b'5', "", b""), (".", b'2', &door, b"")]),
    ] {
        let (_tree, unpacked) = unpack(&store, evil).await;
        if let Err(error) = unpacked {
            println!("refused: {error}");
        }
        let left: Vec<_> =
            std::fs::read_dir(outside.path()).unwrap().map(|it| it.unwrap().file_name()).collect();
        assert_eq!(left, ["victim"]);
        assert_eq!(std::fs::read_to_string(outside.path().join("victim")).unwrap(), "whole");
    }
}

#[tokio::test]
async fn whiteouts_of_everything_leave_a_tree() {
    let folder = folder();
    let store = open(folder.path());
    for name in [".wh.", ".wh..", ".wh...", ".wh..wh..opq", "/.wh./", "./.wh.."] {
        let tar = raw(&[("kept", b'0', "", b"x"), (name, b'0', "", b"")]);
        let (tree, unpacked) = unpack(&store, tar).await;
        match unpacked {
            Ok(()) => assert!(tree.tree().unwrap().path().join("kept").is_file(), "{name}"),
            Err(error) => println!("{name:?} refused: {error}"),
        }
    }
}

#[tokio::test]
async fn devices_are_devices_or_refused() {
    use std::os::unix::fs::FileTypeExt as _;
    let folder = folder();
    let store = open(folder.path());
    let (tree, unpacked) = unpack(&store, raw(&[("null", b'3', "", b"")])).await;
    match unpacked {
        Ok(()) => {
            let path = tree.tree().unwrap().path().join("null");
            assert!(std::fs::symlink_metadata(path).unwrap().file_type().is_char_device());
        }
        Err(error) => println!("refused: {error}"),
    }
}

#[tokio::test]
async fn very_many_entries_are_only_many() {
    let folder = folder();
    let store = open(folder.path());
    let mut tar = Vec::new();
    for number in 0..100_000 {
        entry(&mut tar, &format!("d{}/f{number}", number % 100), b'0', "", b"");
    }
    tar.resize(tar.len() + 1024, 0);
    let (tree, unpacked) = unpack(&store, tar).await;
    unpacked.unwrap();
    let tree = tree.tree().unwrap();
    assert_eq!(std::fs::read_dir(tree.path().join("d7")).unwrap().count(), 1000);
}

/// 10 GB of zeros in 10 MB: given up long before the disk is full.
#[tokio::test]
async fn bombs_are_given_up() {
    let folder = folder();
    let store = open(folder.path());
    let size = 10_u64 << 30;
    let mut head = Vec::new();
    entry(&mut head, "zeros", b'0', "", b"");
    head[124..136].copy_from_slice(format!("{size:012o}").as_bytes());
    head[148..156].copy_from_slice(b"        ");
    let sum: u32 = head.iter().map(|byte| u32::from(*byte)).sum();
    head[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    // gzip may be put together from members: one piece is compressed, and repeated.
    let mut blob = gzip(&head);
    let mut piece = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    piece.write_all(&vec![0; 64 << 20]).unwrap();
    let piece = piece.finish().unwrap();
    for _ in 0..size >> 26 {
        blob.extend_from_slice(&piece);
    }
    assert!(blob.len() < 12 << 20);
    let tree = over(&store, blob, oci::media::OCI_LAYER_GZIP, Digest::of("unknown"));
    let error = tree.ensure_local(store::no_progress()).await.unwrap_err();
    println!("{error}");
    drop(tree);
    assert!(disk_usage(folder.path()) < 2 << 30);
}

#[tokio::test]
async fn layers_are_what_their_config_says() {
    let folder = folder();
    let store = open(folder.path());
    let tar = raw(&[("f", b'0', "", &[7; 600])]);
    let tree = over(&store, tar.clone(), oci::media::OCI_LAYER, Digest::of("other"));
    assert!(tree.ensure_local(store::no_progress()).await.is_err());
    // No tar at all, and one that is cut.
    for blob in [b"<html>not found</html>".repeat(100), tar[..700].to_vec()] {
        let length = blob.len();
        let (_tree, unpacked) = unpack(&store, blob).await;
        assert!(unpacked.is_err(), "{length} bytes");
    }
}
