//! System calls that no library wraps the way we need: clone3, mount attributes, sockets that carry
//! descriptors. Each function is one call (or one message) with its error as `io::Error`.

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

/// Descriptors in one message. The kernel allows 253.
pub const MAX_FDS: usize = 200;
/// Bytes of text in one message; larger things travel in files in memory.
pub const MAX_MESSAGE: usize = 16 << 10;

fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// The library's constant is too narrow for it.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// The two sides of a clone.
pub enum Cloned {
    /// We are the new process.
    Child,
    /// We made process `pid`.
    Parent { pid: i32, pidfd: OwnedFd },
}

/// Clones this process, with `flags` beside `CLONE_PIDFD`, into a v2 control group if given.
///
/// # Safety
/// The process must have a single thread, since the copy has only the calling one.
pub unsafe fn clone3(flags: u64, cgroup: Option<BorrowedFd<'_>>) -> io::Result<Cloned> {
    let mut pidfd: RawFd = -1;
    // SAFETY: an all-zero clone_args is valid.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = flags | libc::CLONE_PIDFD as u64;
    args.pidfd = &raw mut pidfd as u64;
    args.exit_signal = libc::SIGCHLD as u64;
    let mut size = 64; // Up to `tls`: what every kernel with clone3 knows.
    if let Some(cgroup) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = cgroup.as_raw_fd() as u64;
        size = size_of::<libc::clone_args>();
    }
    // SAFETY: the arguments live until the call returns; no memory or stack is shared.
    let pid = check(unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size) })?;
    if pid == 0 {
        return Ok(Cloned::Child);
    }
    // SAFETY: the kernel stored a new descriptor there.
    Ok(Cloned::Parent { pid: pid as i32, pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) } })
}

/// `mount_setattr` on the mount a descriptor refers to. Attributes are `MOUNT_ATTR_*`.
pub fn mount_setattr(
    mount: impl AsFd,
    recursive: bool,
    set: u64,
    clear: u64,
    propagation: u64,
) -> io::Result<()> {
    let attr = libc::mount_attr { attr_set: set, attr_clr: clear, propagation, userns_fd: 0 };
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: pointers are valid for the call and the size is that of the structure.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_fd().as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attr,
            size_of::<libc::mount_attr>(),
        )
    })?;
    Ok(())
}

/// Enters namespaces of a process (a pidfd) or one namespace (its file).
pub fn setns(fd: impl AsFd, kinds: libc::c_int) -> io::Result<()> {
    // SAFETY: plain system call.
    check(unsafe { libc::setns(fd.as_fd().as_raw_fd(), kinds) }.into())?;
    Ok(())
}

/// Leaves the shared namespaces for new ones.
pub fn unshare(kinds: libc::c_int) -> io::Result<()> {
    // SAFETY: plain system call; no thread shares our file table.
    check(unsafe { libc::unshare(kinds) }.into())?;
    Ok(())
}

/// `prctl` with up to two arguments.
pub fn prctl(option: libc::c_int, first: libc::c_ulong, second: libc::c_ulong) -> io::Result<i32> {
    // SAFETY: only used with options whose arguments are numbers.
    let result = unsafe { libc::prctl(option, first, second, 0, 0) };
    Ok(check(result.into())? as i32)
}

/// Sends a signal to the process behind a pidfd. A process that is gone is no error.
pub fn pidfd_signal(pidfd: impl AsFd, signal: i32) -> io::Result<()> {
    // SAFETY: plain system call.
    let sent = check(unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_fd().as_raw_fd(),
            signal,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    });
    match sent {
        Err(error) if error.raw_os_error() != Some(libc::ESRCH) => Err(error),
        _ => Ok(()),
    }
}

/// A pair of connected sockets that keep message boundaries.
pub fn socketpair() -> io::Result<(OwnedFd, OwnedFd)> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType};
    Ok(rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?)
}

/// Sends one message with descriptors.
pub fn send(socket: impl AsFd, data: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    assert!(
        data.len() <= MAX_MESSAGE && fds.len() <= MAX_FDS,
        "messages to the launcher are small"
    );
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        assert!(control.push(SendAncillaryMessage::ScmRights(fds)), "there is space for all");
    }
    loop {
        match sendmsg(&socket, &[IoSlice::new(data)], &mut control, SendFlags::NOSIGNAL) {
            Err(rustix::io::Errno::INTR) => {}
            result => return result.map(drop).map_err(Into::into),
        }
    }
}

/// Receives one message; `None` at the end of the connection. An empty message is never sent.
pub fn receive(
    socket: impl AsFd,
    nonblocking: bool,
) -> io::Result<Option<(Vec<u8>, Vec<OwnedFd>)>> {
    let mut data = vec![0; MAX_MESSAGE];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut flags = RecvFlags::CMSG_CLOEXEC;
    if nonblocking {
        flags |= RecvFlags::DONTWAIT;
    }
    let length = loop {
        match recvmsg(&socket, &mut [IoSliceMut::new(&mut data)], &mut control, flags) {
            Err(rustix::io::Errno::INTR) => {}
            // The peer ended with messages of ours unread.
            Err(rustix::io::Errno::CONNRESET) => return Ok(None),
            result => break result?.bytes,
        }
    };
    if length == 0 {
        return Ok(None);
    }
    data.truncate(length);
    let fds = control
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(fds) => Some(fds),
            _ => None,
        })
        .flatten()
        .collect();
    Ok(Some((data, fds)))
}

/// A file in memory with these contents, read from its start.
pub fn memfd(name: &str, data: &[u8]) -> io::Result<OwnedFd> {
    use std::io::{Seek as _, Write as _};
    let fd = rustix::fs::memfd_create(name, rustix::fs::MemfdFlags::CLOEXEC)?;
    let mut file = std::fs::File::from(fd);
    file.write_all(data)?;
    file.rewind()?;
    Ok(file.into())
}

/// Closes every descriptor above 2 except one.
pub fn close_others(keep: impl AsFd) -> io::Result<()> {
    let keep = keep.as_fd().as_raw_fd() as u32;
    for (first, last) in [(3, keep - 1), (keep + 1, u32::MAX)] {
        if first <= last {
            // SAFETY: callers own all descriptors of their process and use none of these again.
            check(unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) })?;
        }
    }
    Ok(())
}
