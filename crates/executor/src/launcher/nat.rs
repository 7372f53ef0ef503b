//! Lets containers with their own network reach the outside: the host forwards their packets under
//! its own address.
//!
//! The rules are made once, by the guard with the tools of the host, and removed when it ends.

use std::{
    fs,
    io::Write as _,
    process::{Command, Stdio},
};

/// Rules in force.
#[derive(Default)]
pub struct Nat {
    subnet: Option<String>,
}

impl Nat {
    /// Makes the rules for a subnet; gives the reason when that fails.
    pub fn start(&mut self, subnet: &str) -> Result<(), String> {
        if self.subnet.is_some() {
            return Ok(());
        }
        fs::write("/proc/sys/net/ipv4/ip_forward", "1")
            .map_err(|error| format!("allow forwarding: {error}"))?;
        let table = table();
        let script = format!(
            "add table ip {table}\n\
             add chain ip {table} post {{ type nat hook postrouting priority 100 ; }}\n\
             add rule ip {table} post ip saddr {subnet} ip daddr != {subnet} masquerade\n"
        );
        nft(&script).or_else(|first| {
            iptables("-A", subnet).map_err(|second| format!("{first}; {second}"))
        })?;
        self.subnet = Some(subnet.to_owned());
        Ok(())
    }
}

impl Drop for Nat {
    fn drop(&mut self) {
        if let Some(subnet) = &self.subnet {
            _ = nft(&format!("delete table ip {}\n", table())).or_else(|_| iptables("-D", subnet));
        }
    }
}

/// A name of our own, so that several daemons do not meet.
fn table() -> String {
    format!("rbuild_{}", std::process::id())
}

fn nft(script: &str) -> Result<(), String> {
    let run = || -> std::io::Result<String> {
        let mut child = Command::new("nft")
            .args(["-f", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(script.as_bytes())?;
        }
        let output = child.wait_with_output()?;
        Ok(if output.status.success() {
            String::new()
        } else {
            String::from_utf8_lossy(&output.stderr).trim().to_owned() + " "
        })
    };
    match run() {
        Ok(message) if message.is_empty() => Ok(()),
        Ok(message) => Err(format!("nft: {message}")),
        Err(error) => Err(format!("nft: {error}")),
    }
}

fn iptables(verb: &str, subnet: &str) -> Result<(), String> {
    let output = Command::new("iptables")
        .args(["-w", "-t", "nat", verb, "POSTROUTING", "-s", subnet, "!", "-d", subnet])
        .args(["-j", "MASQUERADE"])
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("iptables: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("iptables: {}", String::from_utf8_lossy(&output.stderr).trim()))
}
