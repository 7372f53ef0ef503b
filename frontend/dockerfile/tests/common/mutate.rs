//! Files that nobody would write.

use std::path::Path;

/// The Dockerfiles of a corpus.
pub fn seeds(root: &Path) -> Vec<Vec<u8>> {
    let entries = std::fs::read_dir(root).expect("the corpus is a folder");
    let mut folders: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    folders.sort();
    folders.iter().filter_map(|folder| std::fs::read(folder.join("Dockerfile")).ok()).collect()
}

/// A small generator, so that a seed means the same everywhere.
pub struct Random(pub u64);

impl Random {
    /// A number below `limit`.
    pub fn below(&mut self, limit: usize) -> usize {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) as usize) % limit.max(1)
    }
}

const PIECES: &[&str] = &[
    "FROM ",
    "RUN ",
    "COPY ",
    "ADD ",
    "ENV ",
    "ARG ",
    "ONBUILD ",
    "--from=",
    "--mount=type=",
    "<<EOF\n",
    "EOF\n",
    "\\\n",
    "# check=skip=all\n",
    "${A:-",
    "}",
    "\"",
    "'",
    "$",
    "[\"a\"]",
    "\u{feff}",
    "\0",
    "\u{85}",
    "é",
    "--chmod=",
    "http://h/x",
    "https://h/r.git?ref=a#b:c",
    "/./",
    "${A//x/y}",
    "scratch",
    " AS a\n",
    "\r\n",
    "=",
    ",",
    ":",
    "EXPOSE 1-65535\n",
    "STOPSIGNAL ",
    "--link ",
    "--parents ",
    "--exclude=*.x ",
    "--chown=a:0 ",
    "${A%%x*}",
    "${A#?}",
    "${A:+b}",
    "SHELL [\"x\", \"-c\"]\n",
    "HEALTHCHECK --interval=1m CMD ",
    "USER u\n",
    "WORKDIR C:\\x\n",
    "WORKDIR rel\n",
    "VOLUME [\"/v\"]\n",
    "--mount=type=secret,id=a,env=B ",
    ",target=/t",
    "--mount=type=cache,uid=1,target=c ",
    "--mount=type=bind,from=a,rw,target=/b ",
    ",from=scratch",
    "--network=none ",
    "--security=insecure ",
    "MAINTAINER m\n",
    "# escape=`\n",
    "`",
    "\t",
    "stub.example/onbuild",
    "stub.example/full",
    "--platform=$BUILDPLATFORM ",
    "ARG TARGETARCH\n",
    "RUN <<-'E'\n\t#!x\n\tE\n",
    "COPY <<E <<F /d/\n$A\nE\n\\$A\nF\n",
    "ENTRYPOINT x\n",
    "CMD []\n",
    "ENV A b\n",
    "LABEL \"a b\"='c d' e=f\\ g\n",
    "ADD --unpack=true http://h/x.tgz /\n",
    "ONBUILD COPY --from=a x y\n",
    "ARG A=1 B=$A\n",
    "\u{3000}",
    "#",
];

/// A file made of others with a few changes.
pub fn mutate(random: &mut Random, seeds: &[Vec<u8>]) -> Vec<u8> {
    let mut data = seeds[random.below(seeds.len())].clone();
    let most = 1 + random.below(6);
    for _ in 0..=random.below(most) {
        let at = random.below(data.len() + 1);
        match random.below(7) {
            0 if at < data.len() => data[at] = random.below(256) as u8,
            1 => {
                let end = (at + random.below(20)).min(data.len());
                data.drain(at..end);
            }
            2 => {
                let other = &seeds[random.below(seeds.len())];
                let from = random.below(other.len() + 1);
                let to = (from + random.below(200)).min(other.len());
                data.splice(at..at, other[from..to].iter().copied());
            }
            3 => {
                let end = (at + random.below(60)).min(data.len());
                let piece = data[at..end].repeat(random.below(20));
                data.splice(at..at, piece);
            }
            4 => data.truncate(at),
            _ => {
                let piece = PIECES[random.below(PIECES.len())];
                data.splice(at..at, piece.bytes());
            }
        }
    }
    data
}
