//! A `docker-registry` of our own, on an empty folder.

use std::{
    net::TcpListener,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::Context as _;

/// A running registry; it and all it holds go when this is dropped.
pub struct Registry {
    /// `127.0.0.1:port`, which clients speak to in plain.
    pub address: String,
    process: Child,
    _folder: tempfile::TempDir,
}

impl Registry {
    /// Starts one and waits until it answers.
    pub async fn start() -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let address = format!("127.0.0.1:{port}");
        let config = folder.path().join("config.yml");
        let blobs = folder.path().join("blobs");
        let text = format!(
            "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: {address}\n",
            blobs.display()
        );
        std::fs::write(&config, text)?;
        let process = Command::new("docker-registry")
            .arg("serve")
            .arg(&config)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("starting docker-registry (Debian package docker-registry)")?;
        let registry = Self { address, process, _folder: folder };
        for _ in 0..200 {
            if std::net::TcpStream::connect(&registry.address).is_ok() {
                return Ok(registry);
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        anyhow::bail!("docker-registry does not answer")
    }

    /// Bytes it has read and written so far, files and connections together.
    pub fn moved(&self) -> anyhow::Result<u64> {
        let text = std::fs::read_to_string(format!("/proc/{}/io", self.process.id()))?;
        let number = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|number| number.trim().parse::<u64>().ok())
        };
        let both = number("rchar:").zip(number("wchar:")).map(|(read, written)| read + written);
        both.context("the registry's process has no counts")
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        _ = self.process.kill();
        _ = self.process.wait();
    }
}
