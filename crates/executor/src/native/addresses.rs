//! Addresses of containers that have their own network with a way out.

use std::{
    collections::BTreeSet,
    net::Ipv4Addr,
    str::FromStr,
    sync::{Arc, Mutex},
};

use crate::wire::Link;

/// A range of IPv4 addresses, such as `10.10.0.0/16`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subnet {
    first: u32,
    prefix: u8,
}

/// Why a text is no subnet.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is no IPv4 subnet with a prefix between 8 and 29")]
pub struct SubnetError(String);

impl FromStr for Subnet {
    type Err = SubnetError;

    fn from_str(text: &str) -> Result<Self, SubnetError> {
        let parse = || {
            let (address, prefix) = text.split_once('/')?;
            let address: Ipv4Addr = address.parse().ok()?;
            let prefix = prefix.parse().ok().filter(|prefix| (8..=29).contains(prefix))?;
            let mask = u32::MAX << (32 - prefix);
            Some(Self { first: u32::from(address) & mask, prefix })
        };
        parse().ok_or_else(|| SubnetError(text.to_owned()))
    }
}

impl std::fmt::Display for Subnet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", Ipv4Addr::from(self.first), self.prefix)
    }
}

/// The addresses of a subnet that are given out.
#[derive(Debug)]
pub struct Addresses {
    subnet: Subnet,
    taken: Mutex<(BTreeSet<u32>, u32)>,
}

/// An address in use; free again when dropped.
#[derive(Debug)]
pub struct Address {
    pool: Arc<Addresses>,
    number: u32,
}

impl Addresses {
    /// Gives out the addresses from number `first` on. Daemons on one machine share its routes, so
    /// each starts somewhere else.
    pub fn new(subnet: Subnet, first: u32) -> Self {
        Self { subnet, taken: Mutex::new((BTreeSet::new(), first)) }
    }

    pub fn subnet(&self) -> Subnet {
        self.subnet
    }

    /// The next free one; none is used again soon, since the kernel cleans up late.
    pub fn take(self: &Arc<Self>) -> Option<Address> {
        // Not the first and last, which mean the subnet itself, nor the gateway.
        let count = (1 << (32 - self.subnet.prefix)) - 3;
        let mut guard = self.taken.lock().expect("no panic while the lock is held");
        let (taken, next) = &mut *guard;
        for _ in 0..count {
            let number = *next % count;
            *next = number + 1;
            if taken.insert(number) {
                return Some(Address { pool: self.clone(), number });
            }
        }
        None
    }
}

impl Address {
    /// How the container is connected.
    pub fn link(&self) -> Link {
        let gateway = self.pool.subnet.first + 1;
        let address = gateway + 1 + self.number;
        let daemon = std::process::id() & 0xffff;
        Link {
            name: format!("rb{daemon:04x}{:04x}", self.number & 0xffff),
            gateway: gateway.to_be_bytes(),
            address: address.to_be_bytes(),
        }
    }
}

impl Drop for Address {
    fn drop(&mut self) {
        let mut guard = self.pool.taken.lock().expect("no panic while the lock is held");
        guard.0.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subnets_are_read() {
        let subnet: Subnet = "10.10.3.4/16".parse().unwrap();
        assert_eq!(subnet.to_string(), "10.10.0.0/16");
        for bad in ["10.10.0.0", "x/16", "1.2.3.4/33", "1.2.3.4/31", "::/64"] {
            assert!(bad.parse::<Subnet>().is_err(), "{bad}");
        }
    }

    #[test]
    fn addresses_go_round() {
        let pool = Arc::new(Addresses::new("192.168.7.0/29".parse().unwrap(), 0));
        let all: Vec<Address> = std::iter::from_fn(|| pool.take()).collect();
        let last = |address: &Address| address.link().address[3];
        assert_eq!(all.iter().map(last).collect::<Vec<_>>(), [2, 3, 4, 5, 6]);
        assert_eq!(all[0].link().gateway, [192, 168, 7, 1]);
        drop(all);
        let first = pool.take().map(|address| last(&address));
        let second = pool.take().map(|address| last(&address));
        assert_eq!((first, second), (Some(2), Some(3)));
    }
}
