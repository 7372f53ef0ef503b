//! Flags of `build`, and which of them belong together.

use std::path::PathBuf;

use anyhow::bail;
use clap::Args;

/// Build an image or other output from a Dockerfile, another frontend, or a graph
#[derive(Args, Debug, Default)]
pub struct BuildArgs {
    /// Folder, git or http URL, or `-` for a Dockerfile or archive on standard input
    #[arg(value_name = "CONTEXT")]
    pub context: Option<String>,

    // Docker's form.
    /// Name the image, e.g. `app:1.0`
    #[arg(short = 't', long = "tag", value_name = "NAME", help_heading = DOCKER)]
    pub tags: Vec<String>,
    /// Dockerfile [default: CONTEXT/Dockerfile]; `-` reads it from standard input
    #[arg(short = 'f', long, value_name = "FILE", help_heading = DOCKER)]
    pub file: Option<String>,
    /// Stage to build
    #[arg(long, value_name = "STAGE", help_heading = DOCKER)]
    pub target: Option<String>,
    /// Value of a build argument; without a value, the environment's
    #[arg(long, value_name = "NAME[=VALUE]", help_heading = DOCKER)]
    pub build_arg: Vec<String>,
    /// Label of the image
    #[arg(long, value_name = "NAME=VALUE", help_heading = DOCKER)]
    pub label: Vec<String>,
    /// Do not use cached results of these stages
    #[arg(long, value_name = "STAGE", value_delimiter = ',', help_heading = DOCKER)]
    pub no_cache_filter: Vec<String>,
    /// Look for newer base images
    #[arg(long, help_heading = DOCKER)]
    pub pull: bool,
    /// Platforms to build for, e.g. linux/amd64,linux/arm64
    #[arg(long, value_name = "PLATFORM", value_delimiter = ',', help_heading = DOCKER)]
    pub platform: Vec<String>,
    /// Additional context: NAME=PATH, docker-image://REF, oci-layout://DIR@DIGEST or a URL
    #[arg(long, value_name = "NAME=CONTEXT", help_heading = DOCKER)]
    pub build_context: Vec<String>,
    /// Extra line for /etc/hosts
    #[arg(long, value_name = "HOST:IP", help_heading = DOCKER)]
    pub add_host: Vec<String>,
    /// Network of RUN: default, none or host
    #[arg(long, value_name = "MODE", help_heading = DOCKER)]
    pub network: Option<String>,
    /// Size of /dev/shm, e.g. 64m
    #[arg(long, value_name = "SIZE", help_heading = DOCKER)]
    pub shm_size: Option<String>,
    /// Limit of processes, e.g. nofile=1024:2048
    #[arg(long, value_name = "NAME=SOFT[:HARD]", help_heading = DOCKER)]
    pub ulimit: Vec<String>,
    /// Parent control group of RUN
    #[arg(long, value_name = "PATH", help_heading = DOCKER)]
    pub cgroup_parent: Option<String>,
    /// Memory limit of RUN
    #[arg(short = 'm', long, value_name = "SIZE", help_heading = DOCKER)]
    pub memory: Option<String>,
    /// Memory and swap limit of RUN; -1 is no limit
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true, help_heading = DOCKER)]
    pub memory_swap: Option<String>,
    /// Weight of RUN's processor time
    #[arg(short = 'c', long, value_name = "N", help_heading = DOCKER)]
    pub cpu_shares: Option<u64>,
    /// Period of the processor quota, in microseconds
    #[arg(long, value_name = "US", help_heading = DOCKER)]
    pub cpu_period: Option<u64>,
    /// Processor quota a period, in microseconds
    #[arg(long, value_name = "US", help_heading = DOCKER)]
    pub cpu_quota: Option<u64>,
    /// Processors RUN may use, e.g. 0-3
    #[arg(long, value_name = "CPUS", help_heading = DOCKER)]
    pub cpuset_cpus: Option<String>,
    /// Memory nodes RUN may use
    #[arg(long, value_name = "NODES", help_heading = DOCKER)]
    pub cpuset_mems: Option<String>,
    /// Cache to read: a reference or type=…,key=value
    #[arg(long, value_name = "CACHE", help_heading = DOCKER)]
    pub cache_from: Vec<String>,
    /// Cache to write: a reference or type=…,key=value
    #[arg(long, value_name = "CACHE", help_heading = DOCKER)]
    pub cache_to: Vec<String>,
    /// Write the image's id to a file
    #[arg(long, value_name = "FILE", help_heading = DOCKER)]
    pub iidfile: Option<PathBuf>,
    /// Print the image's id only
    #[arg(short = 'q', long, help_heading = DOCKER)]
    pub quiet: bool,
    /// Push the image to its registry
    #[arg(long, help_heading = DOCKER)]
    pub push: bool,
    /// Keep the image in the daemon's store (as when no output is named)
    #[arg(long, help_heading = DOCKER)]
    pub load: bool,
    /// Same input, same image: dates from the commit, times of files cut to it
    #[arg(long, help_heading = DOCKER)]
    pub reproducible: bool,
    /// Build twice without cached results and show which files differ; keeps nothing
    #[arg(
        long,
        help_heading = DOCKER,
        conflicts_with_all = ["output", "push", "load", "iidfile", "call", "check"]
    )]
    pub verify: bool,
    /// Ask the frontend instead of building: build, check, outline or targets
    #[arg(long, value_name = "METHOD[,format=json]", help_heading = DOCKER)]
    pub call: Option<String>,
    /// Short for --call=check
    #[arg(long, help_heading = DOCKER)]
    pub check: bool,
    /// Attestation: type=sbom or type=provenance, with options
    #[arg(long, value_name = "type=…", help_heading = DOCKER)]
    pub attest: Vec<String>,
    /// Short for --attest=type=provenance
    #[arg(long, value_name = "OPTIONS", num_args = 0..=1, require_equals = true,
          default_missing_value = "true", help_heading = DOCKER)]
    pub provenance: Option<String>,
    /// Short for --attest=type=sbom
    #[arg(long, value_name = "OPTIONS", num_args = 0..=1, require_equals = true,
          default_missing_value = "true", help_heading = DOCKER)]
    pub sbom: Option<String>,
    /// Annotation of the image: [TYPE:]NAME=VALUE
    #[arg(long, value_name = "ANNOTATION", help_heading = DOCKER)]
    pub annotation: Vec<String>,

    // Both forms.
    /// Output: type=image|local|tar|oci|docker,dest=…; or a folder; or `-` for a tar on standard output
    #[arg(short = 'o', long, value_name = "OUTPUT")]
    pub output: Vec<String>,
    /// Secret: id=NAME,src=FILE or id=NAME,env=VARIABLE
    #[arg(long, value_name = "SECRET")]
    pub secret: Vec<String>,
    /// SSH agent, keys or socket: default|ID[=SOCKET|KEY[,KEY]][,raw=true]
    #[arg(long, value_name = "SSH")]
    pub ssh: Vec<String>,
    /// Do not use cached results
    #[arg(long)]
    pub no_cache: bool,
    /// Most steps of this build that run at once
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub jobs: Option<u32>,
    /// Privilege the build may use: network.host, security.insecure, device
    #[arg(long, value_name = "ENTITLEMENT")]
    pub allow: Vec<String>,
    /// Progress: auto, plain, tty, rawjson or quiet
    #[arg(long, value_name = "MODE", env = "BUILDKIT_PROGRESS", default_value = "auto")]
    pub progress: String,
    /// Write what was exported to a file, as JSON
    #[arg(long, value_name = "FILE")]
    pub metadata_file: Option<PathBuf>,
    /// Rules for sources, from a JSON file
    #[arg(long, value_name = "FILE", env = "EXPERIMENTAL_BUILDKIT_SOURCE_POLICY")]
    pub source_policy_file: Option<PathBuf>,
    /// Send all network traffic of steps through the daemon's recording proxy
    #[arg(long)]
    pub proxy_network: bool,
    /// Write the build's ref to a file
    #[arg(long, value_name = "FILE")]
    pub ref_file: Option<PathBuf>,
    /// Append status messages to a file, as JSON lines
    #[arg(long, value_name = "FILE")]
    pub trace: Option<PathBuf>,

    // buildctl's form.
    /// Frontend, e.g. dockerfile.v0 or gateway.v0
    #[arg(long, value_name = "NAME", help_heading = BUILDCTL)]
    pub frontend: Option<String>,
    /// Option of the frontend
    #[arg(long, value_name = "NAME=VALUE", help_heading = BUILDCTL)]
    pub opt: Vec<String>,
    /// Folder the build may read, e.g. context=.
    #[arg(long, value_name = "NAME=DIR", help_heading = BUILDCTL)]
    pub local: Vec<String>,
    /// OCI layout folder the build may read
    #[arg(long, value_name = "NAME=DIR", help_heading = BUILDCTL)]
    pub oci_layout: Vec<String>,
    /// Cache to write
    #[arg(long, value_name = "CACHE", help_heading = BUILDCTL)]
    pub export_cache: Vec<String>,
    /// Cache to read
    #[arg(long, value_name = "CACHE", help_heading = BUILDCTL)]
    pub import_cache: Vec<String>,
    /// Not supported
    #[arg(long, hide = true)]
    pub registry_auth_tlscontext: Vec<String>,
    /// Not supported
    #[arg(long, hide = true)]
    pub debug_json_cache_metrics: Option<String>,

    // Accepted or refused for docker's sake.
    /// Without effect: there are no intermediate containers to remove
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub rm: Option<bool>,
    /// Without effect: there are no intermediate containers to remove
    #[arg(long, hide = true)]
    pub force_rm: bool,
    /// Accepted for scripts: nothing is signed here anyway
    #[arg(long, hide = true, value_name = "BOOL", num_args = 0..=1, require_equals = true)]
    pub disable_content_trust: Option<Option<String>>,
    /// Not supported
    #[arg(long, hide = true)]
    pub squash: bool,
    /// Not supported
    #[arg(long, hide = true)]
    pub compress: bool,
    /// Not supported
    #[arg(long, hide = true)]
    pub isolation: Option<String>,
    /// Not supported
    #[arg(long, hide = true)]
    pub security_opt: Vec<String>,
    /// Not supported
    #[arg(long, hide = true)]
    pub builder: Option<String>,
    /// Not supported
    #[arg(long, hide = true)]
    pub policy: Vec<String>,
}

const DOCKER: &str = "Dockerfile builds";
const BUILDCTL: &str = "Other frontends";

impl BuildArgs {
    /// Flags that cannot work, each with what to do instead.
    pub fn refuse_unsupported(&self) -> anyhow::Result<()> {
        let flags = [
            (
                self.squash,
                "--squash",
                "copy the result into one layer with a last stage: `FROM scratch`, `COPY --from=… / /`",
            ),
            (self.compress, "--compress", "files travel uncompressed, and only those that changed"),
            (
                self.isolation.as_deref().is_some_and(|mode| mode != "default"),
                "--isolation",
                "it exists on Windows only",
            ),
            (
                !self.security_opt.is_empty(),
                "--security-opt",
                "allow single steps with --allow security.insecure and `RUN --security=insecure`",
            ),
            (self.builder.is_some(), "--builder", "name the daemon with --addr"),
            (!self.policy.is_empty(), "--policy", "use --source-policy-file"),
            (
                !self.registry_auth_tlscontext.is_empty(),
                "--registry-auth-tlscontext",
                "add the authority to the system's certificates",
            ),
            (
                self.debug_json_cache_metrics.is_some(),
                "--debug-json-cache-metrics",
                "use --trace, which has every step's cache mark",
            ),
        ];
        match flags.into_iter().find(|(given, ..)| *given) {
            Some((_, flag, instead)) => bail!("{flag} is not supported: {instead}"),
            None => Ok(()),
        }
    }

    /// In docker's form, flags of the other one.
    pub fn refuse_buildctl_flags(&self) -> anyhow::Result<()> {
        let flags = [
            (!self.opt.is_empty(), "--opt", "--build-arg, --target and the like"),
            (!self.local.is_empty(), "--local", "the context argument or --build-context"),
            (
                !self.oci_layout.is_empty(),
                "--oci-layout",
                "--build-context NAME=oci-layout://DIR@DIGEST",
            ),
            (!self.export_cache.is_empty(), "--export-cache", "--cache-to"),
            (!self.import_cache.is_empty(), "--import-cache", "--cache-from"),
        ];
        match flags.into_iter().find(|(given, ..)| *given) {
            Some((_, flag, instead)) => {
                bail!("{flag} needs --frontend; for a Dockerfile build use {instead}")
            }
            None => Ok(()),
        }
    }

    /// In buildctl's form, flags of the other one.
    pub fn refuse_docker_flags(&self) -> anyhow::Result<()> {
        let flags = [
            (!self.tags.is_empty(), "--tag", "--output type=image,name=NAME"),
            (self.file.is_some(), "--file", "--local dockerfile=DIR --opt filename=NAME"),
            (self.target.is_some(), "--target", "--opt target=STAGE"),
            (!self.build_arg.is_empty(), "--build-arg", "--opt build-arg:NAME=VALUE"),
            (!self.label.is_empty(), "--label", "--opt label:NAME=VALUE"),
            (!self.no_cache_filter.is_empty(), "--no-cache-filter", "--opt no-cache=STAGE"),
            (self.pull, "--pull", "--opt image-resolve-mode=pull"),
            (self.reproducible, "--reproducible", "--opt build-arg:SOURCE_DATE_EPOCH=SECONDS"),
            (self.verify, "--verify", "docker's form"),
            (!self.platform.is_empty(), "--platform", "--opt platform=PLATFORM"),
            (!self.build_context.is_empty(), "--build-context", "--opt context:NAME=…"),
            (!self.add_host.is_empty(), "--add-host", "--opt add-hosts=HOST=IP"),
            (self.network.is_some(), "--network", "--opt force-network-mode=MODE"),
            (self.shm_size.is_some(), "--shm-size", "--opt shm-size=BYTES"),
            (!self.ulimit.is_empty(), "--ulimit", "--opt ulimit=NAME=SOFT:HARD"),
            (self.cgroup_parent.is_some(), "--cgroup-parent", "--opt cgroup-parent=PATH"),
            (self.memory.is_some(), "--memory", "--opt memory=BYTES"),
            (self.memory_swap.is_some(), "--memory-swap", "--opt memswap=BYTES"),
            (self.cpu_shares.is_some(), "--cpu-shares", "--opt cpushares=N"),
            (self.cpu_period.is_some(), "--cpu-period", "--opt cpuperiod=N"),
            (self.cpu_quota.is_some(), "--cpu-quota", "--opt cpuquota=N"),
            (self.cpuset_cpus.is_some(), "--cpuset-cpus", "--opt cpusetcpus=CPUS"),
            (self.cpuset_mems.is_some(), "--cpuset-mems", "--opt cpusetmems=NODES"),
            (!self.cache_from.is_empty(), "--cache-from", "--import-cache"),
            (!self.cache_to.is_empty(), "--cache-to", "--export-cache"),
            (self.iidfile.is_some(), "--iidfile", "--metadata-file"),
            (self.quiet, "--quiet", "--progress quiet"),
            (self.push, "--push", "--output type=image,name=NAME,push=true"),
            (self.load, "--load", "--output type=image,name=NAME"),
            (self.call.is_some() || self.check, "--call", "--opt requestid=frontend.lint"),
            (!self.attest.is_empty(), "--attest", "--opt attest:TYPE=OPTIONS"),
            (self.provenance.is_some(), "--provenance", "--opt attest:provenance=OPTIONS"),
            (self.sbom.is_some(), "--sbom", "--opt attest:sbom="),
            (
                !self.annotation.is_empty(),
                "--annotation",
                "--output type=image,annotation.NAME=VALUE",
            ),
        ];
        match flags.into_iter().find(|(given, ..)| *given) {
            Some((_, flag, instead)) => bail!(
                "{flag} belongs to Dockerfile builds (`rbuildctl build {flag} … CONTEXT`); \
                 with --frontend use {instead}"
            ),
            None => Ok(()),
        }
    }
}
