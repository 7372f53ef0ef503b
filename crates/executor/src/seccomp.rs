//! The filter of system calls for sandboxed containers, with the meaning of Docker's default
//! profile for the default capabilities.
//!
//! The profile is a list of names; tables (`seccomp/*.txt`) give their numbers. Numbers with equal
//! treatment form ranges, and the program for the kernel is a binary tree over the ranges: a call
//! is decided after about eight comparisons, where a list would take hundreds. It is compiled once,
//! by the launcher. Calls newer than the profile get `ENOSYS`, so that programs fall back; known but
//! unlisted ones get `EPERM`. 32-bit ARM programs on 64-bit ARM machines are not covered by a table
//! and get `EPERM`.

use std::{collections::BTreeMap, io};

mod allocate;
mod profile;

pub use allocate::limit as limit_allocations;

/// What happens to a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    Allow,
    /// Refused with this error.
    Errno(u16),
    /// Allowed unless it makes namespaces.
    Clone,
    /// Allowed for harmless personalities.
    Personality,
    /// Allowed except for families that reach into the kernel or the hypervisor.
    Socket,
}

/// A compiled filter.
#[derive(Debug, Clone)]
pub struct Filter {
    program: Vec<libc::sock_filter>,
}

/// Set in system call numbers of the x32 convention.
const X32: u32 = 0x4000_0000;
const ARCH_X86_64: u32 = 0xc000_003e;
const ARCH_X86: u32 = 0x4000_0003;
const ARCH_AARCH64: u32 = 0xc000_00b7;
const ARCH_RISCV64: u32 = 0xc000_00f3;
/// The highest number when the profile was written; the same on all machines since 403.
const NEWEST: u32 = 466;

/// Flags of clone that make namespaces.
const CLONE_NAMESPACES: u32 = 0x7e02_0000;
const PERSONALITIES: [u32; 5] = [0, 8, 0x2_0000, 0x2_0008, 0xffff_ffff];
/// The kernel's cryptography, and the virtual machine's host.
const REFUSED_FAMILIES: [u32; 2] = [38, 40];

// Offsets in `struct seccomp_data`; arguments are compared by their low half, all that the kernel
// itself looks at in these calls.
const OFFSET_NUMBER: u32 = 0;
const OFFSET_ARCH: u32 = 4;
const OFFSET_FIRST_ARGUMENT: u32 = 16;

const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
const IF_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const IF_GREATER: u16 = (libc::BPF_JMP | libc::BPF_JGT | libc::BPF_K) as u16;
const IF_GREATER_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K) as u16;
const IF_BITS: u16 = (libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K) as u16;
const JUMP: u16 = (libc::BPF_JMP | libc::BPF_JA) as u16;

const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
const fn errno(number: u16) -> u32 {
    libc::SECCOMP_RET_ERRNO | number as u32
}
const EPERM: u16 = libc::EPERM as u16;
const ENOSYS: u16 = libc::ENOSYS as u16;

impl Filter {
    /// The filter for this machine; `None` where the kernel has no filters or we no table.
    pub fn load() -> Option<Self> {
        // SAFETY: asks whether the action exists; the pointer is valid.
        let supported = unsafe {
            let action = libc::SECCOMP_RET_ERRNO;
            libc::syscall(libc::SYS_seccomp, libc::SECCOMP_GET_ACTION_AVAIL, 0, &raw const action)
        };
        if supported != 0 {
            return None;
        }
        Self::compile(std::env::consts::ARCH)
    }

    fn compile(arch: &str) -> Option<Self> {
        let allowed = profile::ALLOWED.split_whitespace().collect();
        let table = |text| table(text, |name| profile::action(&allowed, name));
        let sections = match arch {
            "x86_64" => {
                let mut calls = table(include_str!("seccomp/x86_64.txt"));
                calls.extend(x32(&calls, |name| profile::action(&allowed, name)));
                vec![(ARCH_X86_64, calls), (ARCH_X86, table(include_str!("seccomp/x86.txt")))]
            }
            "aarch64" => vec![(ARCH_AARCH64, table(include_str!("seccomp/generic.txt")))],
            "riscv64" => vec![(ARCH_RISCV64, table(include_str!("seccomp/generic.txt")))],
            _ => return None,
        };
        let mut program = vec![op(LOAD, OFFSET_ARCH)];
        for (arch, calls) in sections {
            let mut body = vec![op(LOAD, OFFSET_NUMBER)];
            body.extend(tree(&ranges(&calls)));
            program.push(branch(IF_EQUAL, arch, 1, 0));
            program.push(op(JUMP, body.len() as u32));
            program.extend(body);
        }
        program.push(op(RETURN, errno(EPERM)));
        Some(Self { program })
    }

    /// Filters the calls of this thread from now on.
    pub fn install(&self) -> io::Result<()> {
        let program = libc::sock_fprog {
            len: self.program.len() as u16,
            filter: self.program.as_ptr().cast_mut(),
        };
        let mut last = Ok(());
        // Older kernels do not know the flag that spares us a slow mitigation.
        for flags in [libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW, 0] {
            // SAFETY: the program lives through the call, which copies it.
            let result = unsafe {
                let mode = libc::SECCOMP_SET_MODE_FILTER;
                libc::syscall(libc::SYS_seccomp, mode, flags, &raw const program)
            };
            if result == 0 {
                return Ok(());
            }
            last = Err(io::Error::last_os_error());
        }
        last
    }
}

/// The profile in the form of OCI runtimes; `None` where [`Filter::load`] has none either.
pub fn oci_profile() -> Option<serde_json::Value> {
    use serde_json::json;
    let architectures = match std::env::consts::ARCH {
        "x86_64" => json!(["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"]),
        "aarch64" => json!(["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"]),
        "riscv64" => json!(["SCMP_ARCH_RISCV64"]),
        _ => return None,
    };
    let allow = |name: &str, value: u32, mask: Option<u32>, op: &str| {
        let mut argument = json!({ "index": 0, "value": value, "op": op });
        if let Some(mask) = mask {
            argument = json!({ "index": 0, "value": mask, "valueTwo": value, "op": op });
        }
        json!({ "names": [name], "action": "SCMP_ACT_ALLOW", "args": [argument] })
    };
    let names: Vec<&str> = profile::ALLOWED.split_whitespace().collect();
    let mut calls = vec![
        json!({ "names": names, "action": "SCMP_ACT_ALLOW" }),
        json!({ "names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": ENOSYS }),
        allow("clone", 0, Some(CLONE_NAMESPACES), "SCMP_CMP_MASKED_EQ"),
        allow("socket", REFUSED_FAMILIES[0], None, "SCMP_CMP_LT"),
        allow("socket", REFUSED_FAMILIES[0] + 1, None, "SCMP_CMP_EQ"),
        allow("socket", REFUSED_FAMILIES[1], None, "SCMP_CMP_GT"),
    ];
    for value in PERSONALITIES {
        calls.push(allow("personality", value, None, "SCMP_CMP_EQ"));
    }
    Some(json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": EPERM,
        "architectures": architectures,
        "syscalls": calls,
    }))
}

fn op(code: u16, k: u32) -> libc::sock_filter {
    branch(code, k, 0, 0)
}

fn branch(code: u16, k: u32, jt: u8, jf: u8) -> libc::sock_filter {
    libc::sock_filter { code, jt, jf, k }
}

/// Numbers of calls with what happens to them.
fn table(text: &str, action: impl Fn(&str) -> Action) -> BTreeMap<u32, Action> {
    let lines = text.lines().filter_map(|line| line.split_once(' '));
    lines.filter_map(|(name, number)| Some((number.parse().ok()?, action(name)))).collect()
}

/// The x32 calls: as the native ones, but some have other numbers.
fn x32(native: &BTreeMap<u32, Action>, action: impl Fn(&str) -> Action) -> Vec<(u32, Action)> {
    let own = profile::X32_NAMES.split_whitespace().zip(512..);
    let own = own.map(|(name, number)| (number | X32, action(name)));
    let same: Vec<_> = native.iter().map(|(number, action)| (number | X32, *action)).collect();
    same.into_iter().chain(own).collect()
}

/// First number and action of each range, in order, covering all numbers.
fn ranges(calls: &BTreeMap<u32, Action>) -> Vec<(u32, Action)> {
    let mut result: Vec<(u32, Action)> = Vec::new();
    let mut add = |start, action| match result.last() {
        Some((_, last)) if *last == action => {}
        _ => result.push((start, action)),
    };
    let mut next = 0;
    for (number, action) in calls {
        if *number > next {
            gap(next, *number, &mut add);
        }
        add(*number, *action);
        next = number + 1;
    }
    gap(next, u32::MAX, &mut add);
    result
}

/// Numbers that no table knows: refused, or unknown when newer than the profile.
fn gap(start: u32, end: u32, add: &mut impl FnMut(u32, Action)) {
    for base in [0, X32] {
        let (old, new) = (base, base + NEWEST + 1);
        if start < new && end > old {
            add(start.max(old), Action::Errno(EPERM));
        }
        let next = if base == 0 { X32 } else { u32::MAX };
        if start < next && end > new {
            add(start.max(new), Action::Errno(ENOSYS));
        }
    }
}

/// Decides between ranges by halving.
fn tree(ranges: &[(u32, Action)]) -> Vec<libc::sock_filter> {
    let [only] = ranges else {
        let middle = ranges.len() / 2;
        let (left, right) = (tree(&ranges[..middle]), tree(&ranges[middle..]));
        let start = ranges[middle].0;
        let mut program = match u8::try_from(left.len()) {
            Ok(skip) => vec![branch(IF_GREATER_EQUAL, start, skip, 0)],
            Err(_) => {
                let far = op(JUMP, left.len() as u32);
                vec![branch(IF_GREATER_EQUAL, start, 0, 1), far]
            }
        };
        program.extend(left);
        program.extend(right);
        return program;
    };
    leaf(only.1)
}

fn leaf(action: Action) -> Vec<libc::sock_filter> {
    let load = op(LOAD, OFFSET_FIRST_ARGUMENT);
    let (allow, refuse) = (op(RETURN, ALLOW), op(RETURN, errno(EPERM)));
    match action {
        Action::Allow => vec![allow],
        Action::Errno(number) => vec![op(RETURN, errno(number))],
        Action::Clone => vec![load, branch(IF_BITS, CLONE_NAMESPACES, 0, 1), refuse, allow],
        Action::Personality => one_of(load, &PERSONALITIES, allow, refuse),
        Action::Socket => one_of(load, &REFUSED_FAMILIES, refuse, allow),
    }
}

fn one_of(
    load: libc::sock_filter,
    values: &[u32],
    hit: libc::sock_filter,
    miss: libc::sock_filter,
) -> Vec<libc::sock_filter> {
    let mut program = vec![load];
    program.extend(skip_one_if_any(values));
    program.extend([miss, hit]);
    program
}

/// Passes over the next instruction if what was loaded is one of these.
fn skip_one_if_any(values: &[u32]) -> impl Iterator<Item = libc::sock_filter> {
    let count = values.len();
    values
        .iter()
        .enumerate()
        .map(move |(at, value)| branch(IF_EQUAL, *value, (count - at) as u8, 0))
}

/// What the kernel would do, with `load` for what it finds at an offset of the call.
#[cfg(test)]
fn evaluate(filter: &Filter, load: impl Fn(u32) -> u32) -> u32 {
    let (mut at, mut value) = (0, 0);
    loop {
        let libc::sock_filter { code, jt, jf, k } = filter.program[at];
        at += 1;
        let mut choose = |condition| at += usize::from(if condition { jt } else { jf });
        match code {
            LOAD => value = load(k),
            RETURN => return k,
            JUMP => at += k as usize,
            IF_EQUAL => choose(value == k),
            IF_GREATER => choose(value > k),
            IF_GREATER_EQUAL => choose(value >= k),
            IF_BITS => choose(value & k != 0),
            _ => panic!("unknown instruction {code:#x}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn evaluate(filter: &Filter, arch: u32, number: u32, argument: u32) -> u32 {
        super::evaluate(filter, |offset| match offset {
            OFFSET_NUMBER => number,
            OFFSET_ARCH => arch,
            _ => argument,
        })
    }

    #[test]
    fn calls_are_decided() {
        let filter = Filter::compile("x86_64").unwrap();
        let check = |arch, number, argument, expected| {
            let found = evaluate(&filter, arch, number, argument);
            assert_eq!(found, expected, "call {number:#x} of {arch:#x} with {argument:#x}");
        };
        let (eperm, enosys) = (errno(EPERM), errno(ENOSYS));
        check(ARCH_X86_64, 0, 0, ALLOW); // read
        check(ARCH_X86_64, 165, 0, eperm); // mount
        check(ARCH_X86_64, 250, 0, eperm); // keyctl
        check(ARCH_X86_64, 56, 17, ALLOW); // clone
        check(ARCH_X86_64, 56, 0x1000_0000, eperm); // with a user namespace
        check(ARCH_X86_64, 435, 0, enosys); // clone3
        check(ARCH_X86_64, 41, 2, ALLOW); // socket
        check(ARCH_X86_64, 41, 38, eperm);
        check(ARCH_X86_64, 41, 39, ALLOW);
        check(ARCH_X86_64, 41, 40, eperm);
        check(ARCH_X86_64, 135, 8, ALLOW); // personality
        check(ARCH_X86_64, 135, 1, eperm);
        check(ARCH_X86_64, 101, 0, ALLOW); // ptrace
        check(ARCH_X86_64, 161, 0, ALLOW); // chroot
        check(ARCH_X86_64, 462, 0, ALLOW); // mseal
        check(ARCH_X86_64, 999, 0, enosys);
        check(ARCH_X86_64, X32, 0, ALLOW); // read
        check(ARCH_X86_64, X32 | 520, 0, ALLOW); // execve
        check(ARCH_X86_64, X32 | 528, 0, eperm); // kexec_load
        check(ARCH_X86_64, X32 | 999, 0, enosys);
        check(ARCH_X86, 3, 0, ALLOW); // read
        check(ARCH_X86, 21, 0, eperm); // mount
        check(ARCH_X86, 102, 0, ALLOW); // socketcall
        check(ARCH_AARCH64, 63, 0, eperm);
        assert!(filter.program.len() < 1200, "{} instructions", filter.program.len());
    }

    #[test]
    fn other_machines_have_filters() {
        for (arch, number) in [("aarch64", ARCH_AARCH64), ("riscv64", ARCH_RISCV64)] {
            let filter = Filter::compile(arch).unwrap();
            assert_eq!(evaluate(&filter, number, 63, 0), ALLOW, "read");
            assert_eq!(evaluate(&filter, number, 79, 0), ALLOW, "newfstatat");
            assert_eq!(evaluate(&filter, number, 40, 0), errno(EPERM), "mount");
        }
    }

    #[test]
    fn every_name_of_the_profile_is_known_somewhere() {
        let tables = [
            include_str!("seccomp/x86_64.txt"),
            include_str!("seccomp/x86.txt"),
            include_str!("seccomp/generic.txt"),
        ];
        let known: std::collections::BTreeSet<&str> = tables
            .iter()
            .flat_map(|text| text.lines().filter_map(|line| line.split(' ').next()))
            .collect();
        let unknown: Vec<&str> =
            profile::ALLOWED.split_whitespace().filter(|name| !known.contains(name)).collect();
        assert_eq!(unknown, profile::ELSEWHERE);
    }
}
