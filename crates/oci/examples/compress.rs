//! Speed of layer compression: `cargo run --release -p oci --example compress -- FILE…`.

use std::{io::Write as _, time::Instant};

use oci::compress::{Compression, Decoder, LayerWriter, Limits};

fn main() {
    for path in std::env::args().skip(1) {
        let data = std::fs::read(&path).expect("the file can be read");
        let mega = data.len() as f64 / 1e6;
        for (kind, level) in [
            (Compression::Uncompressed, None),
            (Compression::Gzip, Some(1)),
            (Compression::Gzip, None),
            (Compression::Gzip, Some(9)),
            (Compression::Zstd, Some(1)),
            (Compression::Zstd, None),
            (Compression::Zstd, Some(6)),
        ] {
            let begun = Instant::now();
            let mut writer = LayerWriter::new(kind, level, Vec::new()).expect("a known level");
            for piece in data.chunks(1 << 20) {
                writer.write_all(piece).expect("memory takes it");
            }
            let written = writer.finish().expect("memory takes it");
            let speed = mega / begun.elapsed().as_secs_f64();
            let begun = Instant::now();
            let mut decoder = Decoder::new(&written.out[..], Limits::NONE).expect("our own format");
            std::io::copy(&mut decoder, &mut std::io::sink()).expect("our own bytes");
            let back = mega / begun.elapsed().as_secs_f64();
            println!(
                "{path}: {} {level:?}: {speed:.0} MB/s, {:.1} % of size, back {back:.0} MB/s",
                kind.name(),
                100.0 * written.size as f64 / data.len() as f64
            );
        }
    }
}
