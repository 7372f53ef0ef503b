//! A second filter, for containers below a ceiling of disk space.
//!
//! One `fallocate` takes gigabytes at once, and nothing stops it in the middle. Large ones get the
//! error of file systems that do not know the call, and programs write instead, which can be watched.
//! Calls that give space back are let through.

use super::{
    ALLOW, ARCH_AARCH64, ARCH_RISCV64, ARCH_X86, ARCH_X86_64, Filter, IF_BITS, IF_EQUAL,
    IF_GREATER, JUMP, LOAD, OFFSET_ARCH, OFFSET_FIRST_ARGUMENT, OFFSET_NUMBER, RETURN, X32, branch,
    errno, op, skip_one_if_any,
};

/// Modes that take no space: punching, collapsing and inserting ranges.
const HARMLESS: u32 = 0x02 | 0x08 | 0x20;

/// A filter that lets one call set aside at most `most` bytes; `None` on unknown machines.
pub fn limit(most: u64) -> Option<Filter> {
    let first = |index: u32| OFFSET_FIRST_ARGUMENT + 8 * index;
    // The length is the fourth argument; in 32 bits it comes in two halves, as the offset does.
    let whole = (first(3), first(3) + 4);
    let halves = (first(4), first(5));
    let calls: &[(u32, &[u32], (u32, u32))] = match std::env::consts::ARCH {
        "x86_64" => &[(ARCH_X86_64, &[285, 285 | X32], whole), (ARCH_X86, &[324], halves)],
        "aarch64" => &[(ARCH_AARCH64, &[47], whole)],
        "riscv64" => &[(ARCH_RISCV64, &[47], whole)],
        _ => return None,
    };
    let allow = op(RETURN, ALLOW);
    let mut program = vec![op(LOAD, OFFSET_ARCH)];
    for (arch, numbers, (low, high)) in calls {
        let mut body = vec![op(LOAD, OFFSET_NUMBER)];
        body.extend(skip_one_if_any(numbers));
        body.extend([
            allow,
            op(LOAD, first(1)),
            branch(IF_BITS, HARMLESS, 5, 0),
            op(LOAD, *high),
            branch(IF_GREATER, (most >> 32) as u32, 4, 0),
            branch(IF_EQUAL, (most >> 32) as u32, 0, 2),
            op(LOAD, *low),
            branch(IF_GREATER, most as u32, 1, 0),
            allow,
            op(RETURN, errno(libc::EOPNOTSUPP as u16)),
        ]);
        program.push(branch(IF_EQUAL, *arch, 1, 0));
        program.push(op(JUMP, body.len() as u32));
        program.extend(body);
    }
    program.push(allow);
    Some(Filter { program })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel would do with `fallocate(fd, mode, 0, length)`.
    fn evaluate(filter: &Filter, arch: u32, number: u32, mode: u32, length: u64) -> u32 {
        let (low, high) = if arch == ARCH_X86 { (48, 56) } else { (40, 44) };
        crate::seccomp::evaluate(filter, |offset| match offset {
            OFFSET_NUMBER => number,
            OFFSET_ARCH => arch,
            24 => mode,
            _ if offset == low => length as u32,
            _ if offset == high => (length >> 32) as u32,
            _ => panic!("argument at {offset} is nothing we look at"),
        })
    }

    #[test]
    fn large_allocations_are_not_known() {
        if std::env::consts::ARCH != "x86_64" {
            return;
        }
        let refused = errno(libc::EOPNOTSUPP as u16);
        for most in [4 << 20, (5 << 32) + 7] {
            let filter = limit(most).unwrap();
            for (arch, number) in [(ARCH_X86_64, 285), (ARCH_X86_64, 285 | X32), (ARCH_X86, 324)] {
                let call = |mode, length| evaluate(&filter, arch, number, mode, length);
                for (length, expected) in [
                    (1, ALLOW),
                    (most - 1, ALLOW),
                    (most, ALLOW),
                    (most + 1, refused),
                    (most + (1 << 32), refused),
                    (u64::MAX >> 1, refused),
                ] {
                    assert_eq!(call(0, length), expected, "{length} of {most}");
                    assert_eq!(call(1, length), expected, "{length} of {most}");
                    assert_eq!(call(3, length), ALLOW, "punching gives back");
                }
            }
            assert_eq!(evaluate(&filter, ARCH_X86_64, 1, 0, u64::MAX), ALLOW, "another call");
            assert_eq!(evaluate(&filter, ARCH_AARCH64, 47, 0, u64::MAX), ALLOW, "not ours");
        }
    }
}
