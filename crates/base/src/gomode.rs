//! Go's `os.FileMode` bits, which the file transfer protocol uses on the wire, and Unix `st_mode`.
//! Source: the session protocol, `Stat.mode`.

/// Folder.
pub const DIR: u32 = 0x8000_0000;
/// Symbolic link.
pub const SYMLINK: u32 = 0x0800_0000;
/// Device; block unless [`CHAR_DEVICE`] is set too.
pub const DEVICE: u32 = 0x0400_0000;
/// Named pipe.
pub const NAMED_PIPE: u32 = 0x0200_0000;
/// Socket.
pub const SOCKET: u32 = 0x0100_0000;
/// Set user id.
pub const SETUID: u32 = 0x0080_0000;
/// Set group id.
pub const SETGID: u32 = 0x0040_0000;
/// Character device; comes with [`DEVICE`].
pub const CHAR_DEVICE: u32 = 0x0020_0000;
/// Sticky.
pub const STICKY: u32 = 0x0010_0000;
/// Neither file, folder, link, pipe, socket nor device.
pub const IRREGULAR: u32 = 0x0008_0000;
/// All bits that say what kind of entry this is; none set means a regular file.
pub const TYPE_MASK: u32 = DIR | SYMLINK | NAMED_PIPE | SOCKET | DEVICE | CHAR_DEVICE | IRREGULAR;

/// From Unix `st_mode`.
pub fn from_unix(mode: u32) -> u32 {
    let kind = match mode & 0o170_000 {
        0o040_000 => DIR,
        0o120_000 => SYMLINK,
        0o060_000 => DEVICE,
        0o020_000 => DEVICE | CHAR_DEVICE,
        0o010_000 => NAMED_PIPE,
        0o140_000 => SOCKET,
        _ => 0,
    };
    let bit = |unix: u32, go: u32| if mode & unix != 0 { go } else { 0 };
    kind | mode & 0o777 | bit(0o4000, SETUID) | bit(0o2000, SETGID) | bit(0o1000, STICKY)
}

/// To Unix `st_mode`; an irregular entry becomes a regular file.
pub fn to_unix(mode: u32) -> u32 {
    let kind = if mode & DIR != 0 {
        0o040_000
    } else if mode & SYMLINK != 0 {
        0o120_000
    } else if mode & CHAR_DEVICE != 0 {
        0o020_000
    } else if mode & DEVICE != 0 {
        0o060_000
    } else if mode & NAMED_PIPE != 0 {
        0o010_000
    } else if mode & SOCKET != 0 {
        0o140_000
    } else {
        0o100_000
    };
    kind | permissions(mode)
}

/// The twelve Unix permission bits of a Go mode.
pub fn permissions(mode: u32) -> u32 {
    let bit = |go: u32, unix: u32| if mode & go != 0 { unix } else { 0 };
    mode & 0o777 | bit(SETUID, 0o4000) | bit(SETGID, 0o2000) | bit(STICKY, 0o1000)
}

/// Whether the entry is a regular file.
pub fn is_regular(mode: u32) -> bool {
    mode & TYPE_MASK == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matches_the_documented_examples() {
        assert_eq!(from_unix(0o040_755), 2_147_484_141);
        assert_eq!(from_unix(0o120_777), 134_218_239);
        assert_eq!(from_unix(0o100_644), 420);
        for unix in [0o104_755, 0o020_600, 0o060_600, 0o010_644, 0o041_777, 0o140_700] {
            assert_eq!(to_unix(from_unix(unix)), unix);
        }
    }
}
