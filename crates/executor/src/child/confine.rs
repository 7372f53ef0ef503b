//! What a process gives up before its program runs.

use std::io;

use crate::{
    launcher::serve::Ready,
    seccomp::limit_allocations,
    sys,
    user::User,
    wire::{Confinement, Failure},
};

/// Capabilities of sandboxed containers, by number: chown, dac_override, fowner, fsetid, kill,
/// setgid, setuid, setpcap, net_bind_service, net_raw, sys_chroot, mknod, audit_write, setfcap.
const SANDBOX: [u32; 14] = [0, 1, 3, 4, 5, 6, 7, 8, 10, 13, 18, 27, 29, 31];
const MKNOD: u32 = 27;
const LAST_POSSIBLE: u32 = 63;

/// The set as bits; without `mknod` where use of devices cannot be restricted otherwise.
pub fn sandbox_capabilities(mknod: bool) -> u64 {
    SANDBOX.iter().filter(|number| mknod || **number != MKNOD).map(|number| 1 << number).sum()
}

/// How readily the kernel kills the process when memory runs out.
pub fn score(confinement: &Confinement) -> Result<(), Failure> {
    let Some(score) = confinement.oom_score_adj else { return Ok(()) };
    std::fs::write("/proc/self/oom_score_adj", score.to_string())
        .map_err(Failure::setup("set the out-of-memory score"))
}

/// The profile takes effect at execve.
pub fn apparmor(confinement: &Confinement) -> Result<(), Failure> {
    let Some(profile) = &confinement.apparmor else { return Ok(()) };
    let line = format!("exec {profile}");
    std::fs::write("/proc/self/attr/apparmor/exec", &line)
        .or_else(|_| std::fs::write("/proc/self/attr/exec", &line))
        .map_err(Failure::setup(format!("use AppArmor profile {profile}")))
}

/// Limits of the process: kind, soft, hard.
pub fn rlimits(limits: &[(u32, u64, u64)]) -> Result<(), Failure> {
    for (kind, soft, hard) in limits {
        let limit = libc::rlimit { rlim_cur: *soft, rlim_max: *hard };
        // SAFETY: the structure lives through the call.
        if unsafe { libc::setrlimit(*kind as _, &limit) } < 0 {
            let error = io::Error::last_os_error();
            return Err(Failure::setup(format!("set limit {kind}"))(error));
        }
    }
    Ok(())
}

/// Installs the filter of system calls; needs a privilege that [`identity`] takes away.
pub fn filter(confinement: &Confinement, ready: &Ready) -> Result<(), Failure> {
    let filtering = Failure::setup("filter system calls");
    if let Some(filter) = confinement.most_allocated.and_then(limit_allocations) {
        // Some machines have no filters; then whoever sets aside too much is killed.
        match filter.install() {
            Err(error) if ready.filter.is_some() => return Err(filtering(error)),
            _ => {}
        }
    }
    match &ready.filter {
        Some(filter) if confinement.seccomp => filter.install().map_err(filtering),
        _ => Ok(()),
    }
}

/// Becomes the user, with no more capabilities than allowed.
pub fn identity(confinement: &Confinement, user: &User) -> Result<(), Failure> {
    change(confinement, user).map_err(Failure::setup("become the user"))
}

fn change(confinement: &Confinement, user: &User) -> io::Result<()> {
    let allowed = confinement.capabilities.unwrap_or(u64::MAX);
    for number in 0..=LAST_POSSIBLE {
        match sys::prctl(libc::PR_CAPBSET_READ, number.into(), 0) {
            Ok(1) if allowed & (1 << number) == 0 => {
                sys::prctl(libc::PR_CAPBSET_DROP, number.into(), 0)?;
            }
            Ok(_) => {}
            // Behind the last one that the kernel knows.
            Err(_) => break,
        }
    }
    let keep = confinement.capabilities.is_none();
    sys::prctl(libc::PR_SET_KEEPCAPS, keep.into(), 0)?;
    let groups: Vec<libc::gid_t> = user.groups.clone();
    // SAFETY: the list lives through the call; plain system calls otherwise.
    unsafe {
        ok(libc::setgroups(groups.len(), groups.as_ptr()))?;
        ok(libc::setresgid(user.gid, user.gid, user.gid))?;
        ok(libc::setresuid(user.uid, user.uid, user.uid))?;
    }
    sys::prctl(libc::PR_SET_KEEPCAPS, 0, 0)?;
    let mut sets = capabilities()?;
    for (half, set) in sets.iter_mut().enumerate() {
        let allowed = (allowed >> (32 * half)) as u32;
        if user.uid == 0 || keep {
            set.effective = set.permitted & allowed;
            set.permitted &= allowed;
        }
        set.inheritable = if keep { set.permitted } else { 0 };
    }
    set_capabilities(&sets)?;
    if keep {
        for number in 0..=LAST_POSSIBLE {
            let half = &sets[number as usize / 32];
            if half.permitted & (1 << (number % 32)) != 0 {
                sys::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE as _, number.into())?;
            }
        }
    }
    Ok(())
}

fn ok(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[repr(C)]
#[derive(Default, Clone, Copy)]
struct CapabilityHalf {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

#[repr(C)]
struct CapabilityHeader {
    version: u32,
    pid: i32,
}

const CAPABILITY_VERSION: u32 = 0x2008_0522;

fn capabilities() -> io::Result<[CapabilityHalf; 2]> {
    let mut header = CapabilityHeader { version: CAPABILITY_VERSION, pid: 0 };
    let mut sets = [CapabilityHalf::default(); 2];
    // SAFETY: this version reads the header and writes two halves.
    let result = unsafe { libc::syscall(libc::SYS_capget, &raw mut header, sets.as_mut_ptr()) };
    ok(result as _).map(|()| sets)
}

fn set_capabilities(sets: &[CapabilityHalf; 2]) -> io::Result<()> {
    let mut header = CapabilityHeader { version: CAPABILITY_VERSION, pid: 0 };
    // SAFETY: this version reads the header and two halves.
    let result = unsafe { libc::syscall(libc::SYS_capset, &raw mut header, sets.as_ptr()) };
    ok(result as _)
}
