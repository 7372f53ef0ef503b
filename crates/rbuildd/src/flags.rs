//! The command line: the flags of the daemon whose place this one takes, and a few of its own.
//!
//! Both `--flag value` and `--flag=value` are read, booleans stand alone or with `=true`/`=false`.
//! A flag that has no meaning here is refused with the alternative, never ignored.

use std::path::PathBuf;

use clap::{ArgAction, Parser};

/// Turns build graphs into images, files and caches, on BuildKit's wire.
#[derive(Debug, Parser)]
#[command(name = "rbuildd", disable_version_flag = true)]
pub struct Flags {
    /// Configuration file [default: /etc/buildkit/buildkitd.toml if it exists]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// State folder [default: /var/lib/buildkit]
    #[arg(long, value_name = "DIR")]
    pub root: Option<PathBuf>,
    /// Where to listen: unix://PATH, tcp://HOST:PORT or fd:// (repeatable)
    #[arg(long, value_name = "ADDR", action = ArgAction::Append)]
    pub addr: Vec<String>,
    /// Name or id of the group that owns Unix sockets
    #[arg(long)]
    pub group: Option<String>,
    /// Log more
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    pub debug: Option<bool>,
    /// Log even more (deprecated: use --log-level=trace)
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    pub trace: Option<bool>,
    /// error, warn, info, debug or trace
    #[arg(long, env = "BUILDKITD_LOG_LEVEL", value_name = "LEVEL")]
    pub log_level: Option<String>,
    /// text or json
    #[arg(long, value_name = "FORMAT")]
    pub log_format: Option<String>,
    /// HTTP address for debugging: unix://PATH, tcp://HOST:PORT or HOST:PORT
    #[arg(long, env = "BUILDKITD_DEBUGADDR", value_name = "ADDR")]
    pub debugaddr: Option<String>,
    /// Certificate of TCP listeners
    #[arg(long, value_name = "FILE")]
    pub tlscert: Option<PathBuf>,
    /// Key of the certificate
    #[arg(long, value_name = "FILE")]
    pub tlskey: Option<PathBuf>,
    /// Authority that clients' certificates must come from
    #[arg(long, value_name = "FILE")]
    pub tlscacert: Option<PathBuf>,
    /// Entitlement clients may be granted: network.host, security.insecure or device (repeatable)
    #[arg(long, value_name = "NAME", action = ArgAction::Append)]
    pub allow_insecure_entitlement: Vec<String>,
    /// Let steps of all builds reach the network through a recording proxy only
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    pub proxy_network: Option<bool>,
    /// Socket for traces from build steps (accepted; steps' traces are not collected)
    #[arg(long, value_name = "PATH")]
    pub otel_socket_path: Option<PathBuf>,
    /// Without CDI devices
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    pub cdi_disabled: Option<bool>,
    /// Folder of CDI device specifications (repeatable)
    #[arg(long, value_name = "DIR", action = ArgAction::Append)]
    pub cdi_spec_dir: Vec<PathBuf>,
    /// Not supported: cache debugging data is not kept; use the progress log
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    pub save_cache_debug: Option<bool>,
    /// Run as a mapped root (detected)
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    pub rootless: Option<bool>,
    /// Print program, package, version and revision
    #[arg(long)]
    pub version: bool,
    /// End after this long without clients, builds and containers, e.g. 10m
    #[arg(long, value_name = "DURATION")]
    pub idle_timeout: Option<String>,
    /// How long builds may go on after SIGTERM before they are cancelled [default: 10s]
    #[arg(long, value_name = "DURATION")]
    pub drain_timeout: Option<String>,
    /// Listen on TCP without TLS, on loopback addresses only
    #[arg(long)]
    pub allow_plain_loopback: bool,

    /// The worker: true, false or auto
    #[arg(long, value_name = "BOOL", default_value = "auto", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub oci_worker: String,
    /// Label of the worker: KEY=VALUE (repeatable)
    #[arg(long, value_name = "LABEL", action = ArgAction::Append)]
    pub oci_worker_labels: Vec<String>,
    /// auto, overlayfs or native
    #[arg(long, value_name = "NAME")]
    pub oci_worker_snapshotter: Option<String>,
    /// Not supported: proxy snapshotters
    #[arg(long, value_name = "PATH")]
    pub oci_worker_proxy_snapshotter_path: Option<String>,
    /// Platform to offer (repeatable) [default: detected]
    #[arg(long, value_name = "PLATFORM", action = ArgAction::Append)]
    pub oci_worker_platform: Vec<String>,
    /// Network of steps: auto, host, bridge or none
    #[arg(long, value_name = "MODE")]
    pub oci_worker_net: Option<String>,
    /// CNI configuration (needs a CNI network mode, which is not supported)
    #[arg(long, value_name = "PATH")]
    pub oci_cni_config_path: Option<PathBuf>,
    /// CNI plugins (needs a CNI network mode, which is not supported)
    #[arg(long, value_name = "DIR")]
    pub oci_cni_binary_dir: Option<PathBuf>,
    /// CNI pool (needs a CNI network mode, which is not supported)
    #[arg(long, value_name = "N")]
    pub oci_cni_pool_size: Option<u32>,
    /// Container runtime instead of the built-in one: runc or crun
    #[arg(long, value_name = "PATH")]
    pub oci_worker_binary: Option<String>,
    /// AppArmor profile of steps
    #[arg(long, value_name = "NAME")]
    pub oci_worker_apparmor_profile: Option<String>,
    /// Not supported: SELinux labels
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    pub oci_worker_selinux: Option<bool>,
    /// Steps that run at once; 0 is no limit
    #[arg(long, value_name = "N")]
    pub oci_max_parallelism: Option<u32>,
    /// Run steps as a mapped root
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    pub oci_worker_rootless: Option<bool>,
    /// Steps share the daemon's process namespace
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    pub oci_worker_no_process_sandbox: Option<bool>,
    /// Collect garbage by policy
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    pub oci_worker_gc: Option<bool>,
    /// RESERVED[,FREE[,MAXIMUM]] in MB
    #[arg(long, value_name = "SIZES")]
    pub oci_worker_gc_keepstorage: Option<String>,
    /// The most the state folder may take, work in flight included, e.g. 50GB or 40%
    #[arg(long, value_name = "SIZE")]
    pub oci_worker_ceiling: Option<String>,

    /// There is no containerd worker: false or auto
    #[arg(long, value_name = "BOOL", default_value = "auto", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub containerd_worker: String,
    /// Settings of a containerd worker, which does not exist here
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub containerd_worker_gc: Option<String>,
    /// As above
    #[arg(long, hide = true, action = ArgAction::Append)]
    pub containerd_worker_labels: Vec<String>,
    /// As above
    #[arg(long, hide = true)]
    pub containerd_worker_addr: Option<String>,
    /// As above
    #[arg(long, hide = true)]
    pub containerd_worker_net: Option<String>,
    /// As above
    #[arg(long, hide = true)]
    pub containerd_worker_snapshotter: Option<String>,
}
