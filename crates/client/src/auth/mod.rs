//! Registry credentials from docker's configuration, served to the daemon.
//!
//! The daemon asks per registry host. Passwords leave this process only when a registry wants basic
//! authentication; otherwise the token is fetched here and only the token travels.

mod config;
mod helper;
mod provider;
mod save;
mod token;

pub use config::{AuthEntry, DockerConfig};
pub use provider::AuthProvider;
pub use save::{Saved, erase_login, login_key, save_login};
