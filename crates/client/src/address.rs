//! Where a daemon listens.

use std::{fmt, path::PathBuf, str::FromStr};

use crate::error::ClientError;

/// Environment variables that name a daemon, strongest first.
pub const ADDRESS_VARIABLES: [&str; 2] = ["RBUILD_HOST", "BUILDKIT_HOST"];

/// A daemon's address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// `unix://PATH`.
    Unix(PathBuf),
    /// `tcp://HOST:PORT`.
    Tcp {
        /// Name or address, without brackets.
        host: String,
        /// Port.
        port: u16,
    },
    /// A command whose standard streams are the connection (`ssh://…`, `docker-container://…`).
    Command {
        /// As given.
        text: String,
        /// Program and arguments.
        args: Vec<String>,
    },
}

impl Address {
    /// The daemon named by the environment, if one is.
    pub fn from_env() -> Result<Option<Self>, ClientError> {
        let values = ADDRESS_VARIABLES.iter().filter_map(|name| std::env::var(name).ok());
        values.filter(|value| !value.is_empty()).map(|value| value.parse()).next().transpose()
    }

    /// Sockets where a daemon listens unless told otherwise, in the order they are tried.
    pub fn defaults() -> Vec<Self> {
        let mut all = Vec::new();
        let root = rustix::process::geteuid().is_root();
        if let Some(runtime) = std::env::var_os("XDG_RUNTIME_DIR").filter(|_| !root) {
            all.push(Self::Unix(PathBuf::from(runtime).join("buildkit/buildkitd.sock")));
        }
        all.push(Self::Unix("/run/buildkit/buildkitd.sock".into()));
        all
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::Tcp { host, port } if host.contains(':') => write!(f, "tcp://[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "tcp://{host}:{port}"),
            Self::Command { text, .. } => f.write_str(text),
        }
    }
}

impl FromStr for Address {
    type Err = ClientError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad =
            |why: &str| ClientError::Address { address: text.to_owned(), why: why.to_owned() };
        let (scheme, rest) = match text.split_once("://") {
            Some(parts) => parts,
            None if text.starts_with('/') => ("unix", text),
            None => return Err(bad("expected unix://PATH or tcp://HOST:PORT")),
        };
        match scheme {
            "unix" if rest.is_empty() => Err(bad("the socket's path is missing")),
            "unix" => Ok(Self::Unix(rest.into())),
            "tcp" => {
                let rest = rest.trim_end_matches('/');
                let (host, port) =
                    rest.rsplit_once(':').ok_or_else(|| bad("the port is missing"))?;
                let port = port.parse().map_err(|_| bad("the port is not a number below 65536"))?;
                let host = host.trim_start_matches('[').trim_end_matches(']');
                let host = if host.is_empty() { "localhost" } else { host };
                Ok(Self::Tcp { host: host.to_owned(), port })
            }
            "docker-container" | "podman-container" => {
                let program = scheme.trim_end_matches("-container");
                let name = rest.split(['/', '?']).next().unwrap_or_default();
                if name.is_empty() || name.starts_with('-') {
                    return Err(bad("the container's name is missing"));
                }
                let args = [program, "exec", "-i", name, "buildctl", "dial-stdio"];
                Ok(Self::Command { text: text.to_owned(), args: args.map(str::to_owned).to_vec() })
            }
            "ssh" => {
                let (host, socket) = rest.split_once('/').unwrap_or((rest, ""));
                if host.is_empty() || host.starts_with('-') {
                    return Err(bad("the host is missing"));
                }
                let mut args = vec!["ssh".to_owned()];
                let host = match host.rsplit_once(':') {
                    Some((host, port)) => {
                        let port: u16 = port.parse().map_err(|_| bad("the port is no number"))?;
                        args.extend(["-p".to_owned(), port.to_string()]);
                        host
                    }
                    None => host,
                };
                args.extend([host.to_owned(), "--".to_owned(), "buildctl".to_owned()]);
                if !socket.is_empty() {
                    args.extend(["--addr".to_owned(), format!("unix:///{socket}")]);
                }
                args.push("dial-stdio".to_owned());
                Ok(Self::Command { text: text.to_owned(), args })
            }
            "npipe" => Err(bad("named pipes exist on Windows only")),
            _ => {
                Err(bad("use unix://PATH, tcp://HOST:PORT, ssh://HOST or docker-container://NAME"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_and_prints() {
        for text in ["unix:///run/x.sock", "tcp://127.0.0.1:1234", "tcp://[::1]:8372", "ssh://a@b"]
        {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
        let Address::Command { args, .. } = "ssh://me@host:22/run/b.sock".parse().unwrap() else {
            panic!("ssh is a command");
        };
        assert_eq!(
            args.join(" "),
            "ssh -p 22 me@host -- buildctl --addr unix:///run/b.sock dial-stdio"
        );
        for bad in ["", "foo", "tcp://host", "tcp://h:x", "unix://", "ftp://x", "ssh://-oX"] {
            assert!(bad.parse::<Address>().is_err(), "{bad}");
        }
    }
}
