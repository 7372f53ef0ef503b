//! Which devices a container may use: everything may be made (`mknod`), little may be opened.
//!
//! On v1 the rules are lines of text; on v2 they are a small program that the kernel asks.

use std::{
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    path::Path,
};

use super::write;
use crate::wire::PlannedDevice;

/// Character devices that every container may read and write: major and, if not all, minor.
const STANDARD: [(u32, Option<u32>); 8] = [
    (1, Some(3)), // null
    (1, Some(5)), // zero
    (1, Some(7)), // full
    (1, Some(8)), // random
    (1, Some(9)), // urandom
    (5, Some(0)), // tty
    (5, Some(2)), // ptmx
    (136, None),  // terminals
];

/// Rules for one group.
#[derive(Debug, Clone, Default)]
pub struct Policy {
    /// No restriction.
    pub all: bool,
    /// Beside the standard ones.
    pub devices: Vec<PlannedDevice>,
}

impl Policy {
    fn rules(&self) -> impl Iterator<Item = (bool, u32, Option<u32>)> {
        let standard = STANDARD.into_iter().map(|(major, minor)| (false, major, minor));
        standard.chain(
            self.devices.iter().map(|device| (device.block, device.major, Some(device.minor))),
        )
    }

    /// Writes the rules to a v1 group. Its parent must allow what they allow.
    pub fn apply_v1(&self, group: &Path) -> io::Result<()> {
        if self.all {
            return write(group, "devices.allow", "a");
        }
        write(group, "devices.deny", "a")?;
        for rule in ["c *:* m", "b *:* m"] {
            write(group, "devices.allow", rule)?;
        }
        for (block, major, minor) in self.rules() {
            let kind = if block { 'b' } else { 'c' };
            let minor = minor.map_or("*".to_owned(), |minor| minor.to_string());
            write(group, "devices.allow", &format!("{kind} {major}:{minor} rwm"))?;
        }
        Ok(())
    }

    /// Attaches the rules to a v2 group.
    pub fn apply_v2(&self, group: &Path) -> io::Result<()> {
        if self.all {
            return Ok(());
        }
        let program = load(&self.program())?;
        let group = super::open_folder(group)?;
        let attributes = Attach {
            target: group.as_raw_fd() as u32,
            program: program.as_raw_fd() as u32,
            kind: 6,  // BPF_CGROUP_DEVICE
            flags: 2, // BPF_F_ALLOW_MULTI
        };
        bpf(8, &attributes).map(drop)
    }

    /// The program: 1 allows, 0 refuses. Input: kind and access in one word, major, minor.
    fn program(&self) -> Vec<Instruction> {
        const LOAD: u8 = 0x61; // 32 bits from memory
        const MOVE: u8 = 0xbf;
        const AND: u8 = 0x57;
        const SHIFT_RIGHT: u8 = 0x77;
        const SET: u8 = 0xb7;
        const SKIP_UNEQUAL: u8 = 0x55;
        const EXIT: u8 = 0x95;
        let op = |code, to: u8, from: u8, offset, value| Instruction {
            code,
            registers: to | from << 4,
            offset,
            value,
        };
        let mut program = vec![
            op(LOAD, 2, 1, 0, 0),
            op(MOVE, 3, 2, 0, 0),
            op(SHIFT_RIGHT, 3, 0, 0, 16), // r3: access
            op(AND, 2, 0, 0, 0xffff),     // r2: kind
            op(LOAD, 4, 1, 4, 0),         // r4: major
            op(LOAD, 5, 1, 8, 0),         // r5: minor
            op(SKIP_UNEQUAL, 3, 0, 2, 1), // only mknod
            op(SET, 0, 0, 0, 1),
            op(EXIT, 0, 0, 0, 0),
        ];
        for (block, major, minor) in self.rules() {
            let checks = 2 + i16::from(minor.is_some());
            let mut rest = checks + 1;
            let mut check = |register, value: u32| {
                program.push(op(SKIP_UNEQUAL, register, 0, rest, value as i32));
                rest -= 1;
            };
            check(2, if block { 1 } else { 2 });
            check(4, major);
            if let Some(minor) = minor {
                check(5, minor);
            }
            program.extend([op(SET, 0, 0, 0, 1), op(EXIT, 0, 0, 0, 0)]);
        }
        program.extend([op(SET, 0, 0, 0, 0), op(EXIT, 0, 0, 0, 0)]);
        program
    }
}

#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct Instruction {
    code: u8,
    registers: u8,
    offset: i16,
    value: i32,
}

#[repr(C)]
struct Attach {
    target: u32,
    program: u32,
    kind: u32,
    flags: u32,
}

#[repr(C)]
struct Load {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel: u32,
    flags: u32,
}

fn load(program: &[Instruction]) -> io::Result<OwnedFd> {
    let attributes = Load {
        kind: 15, // BPF_PROG_TYPE_CGROUP_DEVICE
        count: program.len() as u32,
        instructions: program.as_ptr() as u64,
        license: c"Apache".as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log: 0,
        kernel: 0,
        flags: 0,
    };
    let fd = bpf(5, &attributes)?;
    // SAFETY: the kernel gave us a new descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

fn bpf<T>(command: i32, attributes: &T) -> io::Result<i64> {
    // SAFETY: `attributes` has the layout of the command and what it points to lives long enough.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, attributes as *const T, size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_accepts_the_program() {
        let device = PlannedDevice {
            path: "/dev/x".into(),
            block: true,
            major: 7,
            minor: 1,
            mode: 0,
            uid: 0,
            gid: 0,
        };
        let policy = Policy { all: false, devices: vec![device] };
        match load(&policy.program()) {
            Ok(_) => {}
            Err(error) if matches!(error.raw_os_error(), Some(libc::EPERM | libc::ENOSYS)) => {
                eprintln!("skipped: loading programs is not permitted here");
            }
            Err(error) => panic!("{error}"),
        }
    }
}
