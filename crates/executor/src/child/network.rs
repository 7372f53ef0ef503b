//! Connects a container's own network to the host's: a pair of virtual interfaces, one on each
//! side, with one address each and routes between them.
//!
//! The container's side is `eth0`. The host's side has the same address in all pairs, the gateway;
//! a host route leads to each container. Both vanish with the container's namespace.

use std::{
    io,
    os::fd::{AsRawFd as _, OwnedFd},
};

use rustix::{
    fs::{Mode, OFlags},
    net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType},
};

use crate::wire::Link;

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const RTM_NEWADDR: u16 = 20;
const RTM_NEWROUTE: u16 = 24;
const REQUEST: u16 = 0x1;
const ACKNOWLEDGE: u16 = 0x4;
const CREATE: u16 = 0x600; // and exclusively
const NESTED: u16 = 0x8000;

const IFLA_IFNAME: u16 = 3;
const IFLA_LINKINFO: u16 = 18;
const IFLA_NET_NS_FD: u16 = 28;
const INFO_KIND: u16 = 1;
const INFO_DATA: u16 = 2;
const VETH_PEER: u16 = 1;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;

const INET: u8 = libc::AF_INET as u8;
const SCOPE_LINK: u8 = 253;
const SCOPE_UNIVERSE: u8 = 0;
const INSIDE: &str = "eth0";

/// A connection to the kernel's network configuration in the namespace where it was opened, for
/// ever.
pub struct Netlink {
    socket: OwnedFd,
}

/// The namespace that this thread is in.
pub fn own_namespace() -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    Ok(rustix::fs::open("/proc/thread-self/ns/net", flags, Mode::empty())?)
}

/// Connects this thread's network, of which `host` is outside.
pub fn connect(host: &Netlink, link: &Link) -> io::Result<()> {
    let own = own_namespace()?;
    let pair = |netlink: &Netlink| {
        let mut peer = interface(0, 0);
        peer.text(IFLA_IFNAME, INSIDE);
        peer.attribute(IFLA_NET_NS_FD, &own.as_raw_fd().to_ne_bytes());
        let mut data = Body::default();
        data.attribute(VETH_PEER | NESTED, &peer.0);
        let mut info = Body::default();
        info.attribute(INFO_KIND, b"veth");
        info.attribute(INFO_DATA | NESTED, &data.0);
        let mut message = interface(0, 0);
        message.text(IFLA_IFNAME, &link.name);
        message.attribute(IFLA_LINKINFO | NESTED, &info.0);
        netlink.ask(RTM_NEWLINK, CREATE, &message)
    };
    match pair(host) {
        // The last container with this address has ended; the kernel takes its time to clean up.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let mut old = interface(0, 0);
            old.text(IFLA_IFNAME, &link.name);
            _ = host.ask(RTM_DELLINK, 0, &old);
            pair(host)?;
        }
        result => result?,
    }
    let inside = Netlink::open()?;
    for (netlink, name, own, other) in [
        (host, link.name.as_str(), link.gateway, link.address),
        (&inside, INSIDE, link.address, link.gateway),
    ] {
        let index = netlink.index(name)?;
        netlink.ask(RTM_NEWLINK, 0, &interface(index, libc::IFF_UP as u32))?;
        let mut address = Body(vec![INET, 32, 0, SCOPE_UNIVERSE]);
        address.0.extend(index.to_ne_bytes());
        address.attribute(IFA_LOCAL, &own);
        address.attribute(IFA_ADDRESS, &own);
        netlink.ask(RTM_NEWADDR, CREATE, &address)?;
        let mut route = route(32, SCOPE_LINK);
        route.attribute(RTA_DST, &other);
        route.attribute(RTA_OIF, &index.to_ne_bytes());
        netlink.ask(RTM_NEWROUTE, CREATE, &route)?;
    }
    let mut default = route(0, SCOPE_UNIVERSE);
    default.attribute(RTA_GATEWAY, &link.gateway);
    inside.ask(RTM_NEWROUTE, CREATE, &default)
}

/// What follows the header of a message: a fixed part, then attributes.
#[derive(Default)]
struct Body(Vec<u8>);

impl Body {
    fn attribute(&mut self, kind: u16, data: &[u8]) {
        self.0.extend((data.len() as u16 + 4).to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(data);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    fn text(&mut self, kind: u16, text: &str) {
        let mut data = text.as_bytes().to_vec();
        data.push(0);
        self.attribute(kind, &data);
    }
}

fn interface(index: u32, up: u32) -> Body {
    let mut body = Body(vec![0; 4]);
    body.0.extend(index.to_ne_bytes());
    body.0.extend(up.to_ne_bytes());
    body.0.extend(up.to_ne_bytes());
    body
}

fn route(prefix: u8, scope: u8) -> Body {
    const MAIN_TABLE: u8 = 254;
    const BY_ADMINISTRATOR: u8 = 4;
    const UNICAST: u8 = 1;
    Body(vec![INET, prefix, 0, 0, MAIN_TABLE, BY_ADMINISTRATOR, scope, UNICAST, 0, 0, 0, 0])
}

impl Netlink {
    /// Opens one in the current namespace.
    pub fn open() -> io::Result<Self> {
        let socket = rustix::net::socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            // Protocol 0: interfaces, addresses and routes.
            None,
        )?;
        Ok(Self { socket })
    }

    fn ask(&self, kind: u16, flags: u16, body: &Body) -> io::Result<()> {
        self.exchange(kind, flags | ACKNOWLEDGE, body).map(drop)
    }

    /// The number of an interface.
    fn index(&self, name: &str) -> io::Result<u32> {
        let mut body = interface(0, 0);
        body.text(IFLA_IFNAME, name);
        let answer = self.exchange(RTM_GETLINK, 0, &body)?;
        let bytes = answer.get(20..24).and_then(|bytes| bytes.try_into().ok());
        bytes.map(u32::from_ne_bytes).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    fn exchange(&self, kind: u16, flags: u16, body: &Body) -> io::Result<Vec<u8>> {
        let mut message = (body.0.len() as u32 + 16).to_ne_bytes().to_vec();
        message.extend(kind.to_ne_bytes());
        message.extend((flags | REQUEST).to_ne_bytes());
        message.extend([0; 8]);
        message.extend(&body.0);
        rustix::net::send(&self.socket, &message, SendFlags::empty())?;
        let mut answer = vec![0; 16 << 10];
        let (length, _) = rustix::net::recv(&self.socket, &mut answer, RecvFlags::empty())?;
        answer.truncate(length);
        let failed = answer.get(4..6) == Some(&2u16.to_ne_bytes());
        if failed {
            let number = answer.get(16..20).and_then(|bytes| bytes.try_into().ok());
            match number.map(i32::from_ne_bytes) {
                Some(0) => {}
                Some(number) => return Err(io::Error::from_raw_os_error(-number)),
                None => return Err(io::ErrorKind::InvalidData.into()),
            }
        }
        Ok(answer)
    }
}
