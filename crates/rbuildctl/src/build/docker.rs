//! Docker's form of `build`: flags become options of the Dockerfile frontend.

use std::process::ExitCode;

use anyhow::{Context as _, bail};
use client::{BuildRequest, Export, Target, auth::DockerConfig};

use super::{
    BuildArgs, call, context,
    execute::{common, execute},
    output::{self, Form},
    parse, reproduce,
};
use crate::{connection::ConnectionArgs, csv, text};

/// Runs the build and writes what was asked for.
pub async fn run(
    args: BuildArgs,
    connection: &ConnectionArgs,
    debug: bool,
) -> anyhow::Result<ExitCode> {
    let call = call::Method::of(args.call.as_deref(), args.check)?;
    let mut request = BuildRequest::new("dockerfile.v0");
    let given = args.context.as_deref().expect("docker's form has a context");
    let prepared = context::prepare(given, args.file.as_deref(), &mut request)?;
    context::named(&args.build_context, &mut request)?;
    options(&args, &mut request)?;
    common(&args, Form::Docker, &mut request)?;
    exports(&args, &mut request)?;
    reproduce::apply(&args, given, &mut request)?;
    if let Some(call) = &call {
        call.apply(&mut request);
    }
    let client = connection.connect().await?;
    add_defaults(&mut request, &client.address().to_string());
    let mode = if args.quiet || call.is_some() && args.progress == "auto" && !debug {
        client::progress::Mode::Quiet
    } else {
        args.progress.parse()?
    };
    if !args.quiet && call.is_none() {
        for warning in misspelt_args(&args, &request) {
            eprintln!("warning: {warning}");
        }
    }
    if args.verify {
        return reproduce::verify(&client, &request, &args, mode, debug).await;
    }
    let outcome = execute(&client, request, &args, mode, debug).await?;
    drop(prepared);
    if let Some(call) = call {
        let file = context::shown_dockerfile(given, args.file.as_deref());
        return call.print(&outcome.metadata, file.as_deref());
    }
    let digest = outcome.response.get("containerimage.digest");
    let config = outcome.response.get("containerimage.config.digest");
    if let Some(id) = config.or(digest) {
        if let Some(path) = &args.iidfile {
            std::fs::write(path, id).with_context(|| format!("writing {}", path.display()))?;
        }
        if args.quiet {
            println!("{id}");
        }
    } else if args.iidfile.is_some() {
        bail!("--iidfile: no image was exported");
    }
    Ok(ExitCode::SUCCESS)
}

/// What to say of build args that the Dockerfile, if it is here, does not take but nearly does.
fn misspelt_args(args: &BuildArgs, request: &BuildRequest) -> Vec<String> {
    let name = request.frontend_attrs.get("filename").map_or("Dockerfile", String::as_str);
    let Some(folder) = request.locals.get("dockerfile") else { return Vec::new() };
    let Ok(file) = std::fs::read(folder.join(name)) else { return Vec::new() };
    let names =
        args.build_arg.iter().map(|arg| arg.split_once('=').map_or(&**arg, |(name, _)| name));
    dockerfile::undeclared::misspelt_args(&file, names)
        .into_iter()
        .map(|(name, meant)| format!("no ARG takes the build arg {name} (did you mean {meant}?)"))
        .collect()
}

/// Flags with an option of their own.
fn options(args: &BuildArgs, request: &mut BuildRequest) -> anyhow::Result<()> {
    let mut set = |key: &str, value: String| {
        request.frontend_attrs.insert(key.to_owned(), value);
    };
    if let Some(target) = &args.target {
        set("target", target.clone());
    }
    for arg in &args.build_arg {
        match (arg.split_once('='), std::env::var(arg)) {
            (Some((name, value)), _) => set(&format!("build-arg:{name}"), value.to_owned()),
            (None, Ok(value)) => set(&format!("build-arg:{arg}"), value),
            // As docker: a variable that is not set leaves the Dockerfile's default.
            (None, Err(_)) => {}
        }
    }
    for label in &args.label {
        let (name, value) = label.split_once('=').unwrap_or((label, ""));
        set(&format!("label:{name}"), value.to_owned());
    }
    match (args.no_cache, args.no_cache_filter.is_empty()) {
        (true, false) => bail!("--no-cache and --no-cache-filter cannot be used together"),
        (true, true) => set("no-cache", String::new()),
        (false, false) => set("no-cache", args.no_cache_filter.join(",")),
        (false, true) => {}
    }
    if args.pull {
        set("image-resolve-mode", "pull".into());
    }
    if !args.platform.is_empty() {
        let mut platforms = Vec::new();
        for platform in &args.platform {
            let parsed = match platform.as_str() {
                "local" => base::Platform::host(),
                text => base::Platform::parse(text)?,
            };
            platforms.push(parsed.normalize().format());
        }
        set("platform", platforms.join(","));
    }
    if !args.add_host.is_empty() {
        let hosts = args.add_host.iter().map(|host| add_host(host));
        set("add-hosts", hosts.collect::<anyhow::Result<Vec<_>>>()?.join(","));
    }
    match args.network.as_deref() {
        None | Some("" | "default") => {}
        Some(mode @ ("none" | "host")) => set("force-network-mode", mode.to_owned()),
        Some(mode) => bail!("--network {mode} is not supported: use default, none or host"),
    }
    let size = |flag: &str, value: &str| {
        let size = text::parse_size(value).filter(|size| *size > 0);
        size.with_context(|| format!("invalid {flag} {value}: expected a size such as 64m"))
    };
    if let Some(value) = &args.shm_size {
        set("shm-size", size("--shm-size", value)?.to_string());
    }
    if let Some(value) = &args.memory {
        set("memory", size("--memory", value)?.to_string());
    }
    match args.memory_swap.as_deref() {
        Some("-1") => set("memswap", "-1".into()),
        Some(value) => set("memswap", size("--memory-swap", value)?.to_string()),
        None => {}
    }
    if !args.ulimit.is_empty() {
        set("ulimit", args.ulimit.join(","));
    }
    let numbers = [
        ("cpushares", args.cpu_shares),
        ("cpuperiod", args.cpu_period),
        ("cpuquota", args.cpu_quota),
    ];
    for (key, value) in numbers {
        if let Some(value) = value {
            set(key, value.to_string());
        }
    }
    let texts = [
        ("cgroup-parent", &args.cgroup_parent),
        ("cpusetcpus", &args.cpuset_cpus),
        ("cpusetmems", &args.cpuset_mems),
    ];
    for (key, value) in texts {
        if let Some(value) = value {
            set(key, value.clone());
        }
    }
    for (kind, options) in attestations(args)? {
        set(&format!("attest:{kind}"), options);
    }
    if args.network.as_deref() == Some("host") {
        request.entitlements.push("network.host".into());
    }
    for cache in &args.cache_from {
        request.cache_imports.push(parse::cache("--cache-from", cache, false)?);
    }
    for cache in &args.cache_to {
        request.cache_exports.push(parse::cache("--cache-to", cache, true)?);
    }
    Ok(())
}

/// `HOST:IP` or `HOST=IP`; IPv6 addresses may stand in brackets.
fn add_host(text: &str) -> anyhow::Result<String> {
    let Some((host, address)) = text.split_once(['=', ':']).filter(|(host, _)| !host.is_empty())
    else {
        bail!("invalid --add-host {text}: expected HOST:IP");
    };
    if address == "host-gateway" {
        bail!("--add-host {host}: host-gateway is not supported, give the address");
    }
    let address = address.trim_start_matches('[').trim_end_matches(']');
    let address: std::net::IpAddr =
        address.parse().map_err(|_| anyhow::anyhow!("invalid --add-host {text}: no IP address"))?;
    Ok(format!("{host}={address}"))
}

/// Kinds of attestations and their options, from the three flags.
fn attestations(args: &BuildArgs) -> anyhow::Result<Vec<(String, String)>> {
    let mut all: Vec<(String, String)> = Vec::new();
    let mut add = |flag: &str, kind: &str, text: &str| -> anyhow::Result<()> {
        let mut options = Vec::new();
        let mut disabled = false;
        for field in csv::fields(text)? {
            match field.split_once('=') {
                Some(("type", _)) => {}
                Some(("disabled", value)) => disabled = csv::parse_bool(value) == Some(true),
                Some(_) => options.push(field),
                None => match csv::parse_bool(&field) {
                    Some(enabled) => disabled = !enabled,
                    None if field.is_empty() => {}
                    None => bail!("invalid {flag} {text}: expected name=value"),
                },
            }
        }
        all.retain(|(old, _)| old != kind);
        if !disabled {
            all.push((kind.to_owned(), options.join(",")));
        }
        Ok(())
    };
    for text in &args.attest {
        let pairs = csv::fields(text)?;
        let kind = pairs.iter().find_map(|field| field.strip_prefix("type="));
        match kind {
            Some(kind @ ("sbom" | "provenance")) => add("--attest", kind, text)?,
            Some(kind) => bail!("unknown attestation type {kind}: use sbom or provenance"),
            None => bail!("--attest needs type=sbom or type=provenance"),
        }
    }
    if let Some(text) = &args.provenance {
        add("--provenance", "provenance", text)?;
    }
    if let Some(text) = &args.sbom {
        add("--sbom", "sbom", text)?;
    }
    Ok(all)
}

/// Names, `--push`, `--load` and annotations on the outputs; an image in the store by default.
fn exports(args: &BuildArgs, request: &mut BuildRequest) -> anyhow::Result<()> {
    let mut names = Vec::new();
    for tag in &args.tags {
        let name = oci::Reference::parse(tag).with_context(|| format!("invalid --tag {tag}"))?;
        names.push(name.with_default_tag().to_string());
    }
    let names = names.join(",");
    let image = || Export { kind: "image".into(), attrs: Default::default(), target: Target::None };
    let cache_only = args.output.iter().any(|output| output == "type=cacheonly");
    let has_image = request.exports.iter().any(|export| export.kind == "image");
    if (request.exports.is_empty() && !cache_only) || ((args.push || args.load) && !has_image) {
        request.exports.push(image());
    }
    for export in &mut request.exports {
        let named = matches!(export.kind.as_str(), "image" | "oci" | "docker");
        if named && !names.is_empty() && !export.attrs.contains_key("name") {
            export.attrs.insert("name".into(), names.clone());
        }
        if export.kind == "image" && args.push {
            if !export.attrs.contains_key("name") {
                bail!("--push needs a name: add --tag REGISTRY/NAME");
            }
            export.attrs.insert("push".into(), "true".into());
        }
    }
    for annotation in &args.annotation {
        for (key, value) in annotation_attrs(annotation)? {
            let mut found = false;
            for export in &mut request.exports {
                if matches!(export.kind.as_str(), "image" | "oci" | "docker") {
                    export.attrs.insert(key.clone(), value.clone());
                    found = true;
                }
            }
            if !found {
                bail!("--annotation needs an output of type image, oci or docker");
            }
        }
    }
    Ok(())
}

/// `[TYPE[PLATFORM],…:]NAME=VALUE` as exporter attributes.
fn annotation_attrs(text: &str) -> anyhow::Result<Vec<(String, String)>> {
    let Some((left, value)) = text.split_once('=') else {
        bail!("invalid --annotation {text}: expected NAME=VALUE");
    };
    const KINDS: [&str; 4] = ["manifest", "index", "manifest-descriptor", "index-descriptor"];
    let kinds_end = left.find(':').filter(|at| {
        let kinds = left[..*at].split(',');
        kinds.map(|kind| kind.split('[').next().unwrap_or(kind)).all(|kind| KINDS.contains(&kind))
    });
    let (kinds, name) = match kinds_end {
        Some(at) => (&left[..at], &left[at + 1..]),
        None => ("manifest", left),
    };
    let value = value.to_owned();
    let attr = |kind: &str| {
        let (kind, platform) = kind.split_at(kind.find('[').unwrap_or(kind.len()));
        let kind = if kind == "manifest" && platform.is_empty() { "" } else { kind };
        let dash = if kind.is_empty() { "" } else { "-" };
        (format!("annotation{dash}{kind}{platform}.{name}"), value.clone())
    };
    Ok(kinds.split(',').map(attr).collect())
}

/// What docker adds from its configuration and the environment unless the person said otherwise.
fn add_defaults(request: &mut BuildRequest, address: &str) {
    let config = DockerConfig::load().unwrap_or_default();
    let epoch =
        std::env::var("SOURCE_DATE_EPOCH").map(|value| ("SOURCE_DATE_EPOCH".to_owned(), value));
    for (name, value) in config.proxy_args(address).into_iter().chain(epoch) {
        request.frontend_attrs.entry(format!("build-arg:{name}")).or_insert(value);
    }
}

/// Parses docker's outputs into `request`.
pub fn parse_outputs(
    texts: &[String],
    form: Form,
    request: &mut BuildRequest,
) -> anyhow::Result<()> {
    for text in texts {
        request.exports.extend(output::parse(text, form)?);
    }
    let stdout = request.exports.iter().filter(|export| export.target == Target::Stdout).count();
    if stdout > 1 {
        bail!("only one output can go to standard output");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(clap::Parser)]
    struct Command {
        #[command(flatten)]
        args: BuildArgs,
    }

    /// Options and exports of a command line, one a line.
    fn show(line: &str) -> String {
        let words = std::iter::once("build").chain(line.split_whitespace());
        let args = Command::parse_from(words).args;
        let mut request = BuildRequest::new("dockerfile.v0");
        let result = options(&args, &mut request)
            .and_then(|()| parse_outputs(&args.output, Form::Docker, &mut request))
            .and_then(|()| exports(&args, &mut request));
        if let Err(error) = result {
            return format!("error: {error:#}");
        }
        let options = request.frontend_attrs.iter().map(|(key, value)| format!("{key}={value}"));
        let exports = request.exports.iter().map(|export| {
            let attrs = export.attrs.iter().map(|(key, value)| format!(" {key}={value}"));
            format!("-> {}{}", export.kind, attrs.collect::<String>())
        });
        options.chain(exports).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn flags_become_options() {
        let text = show(
            "--build-arg A=b=c --build-arg NO_SUCH_VARIABLE_ --label l=v --target t --pull \
             --platform linux/arm64/v8,linux/amd64 --add-host h:::1 --network none --shm-size 1k \
             -t app --no-cache .",
        );
        expect_test::expect![[r#"
            add-hosts=h=::1
            build-arg:A=b=c
            force-network-mode=none
            image-resolve-mode=pull
            label:l=v
            no-cache=
            platform=linux/arm64,linux/amd64
            shm-size=1024
            target=t
            -> image name=docker.io/library/app:latest"#]]
        .assert_eq(&text);
    }

    #[test]
    fn outputs() {
        assert_eq!(show("."), "-> image");
        assert_eq!(show("-o type=cacheonly ."), "");
        assert_eq!(show("-o out -t a:1 ."), "-> local");
        assert_eq!(show("--push -t r.io/a:1 ."), "-> image name=r.io/a:1 push=true");
        assert_eq!(show("--push ."), "error: --push needs a name: add --tag REGISTRY/NAME");
        assert_eq!(
            show("-o type=oci,dest=x --load -t a ."),
            "-> oci name=docker.io/library/a:latest\n-> image name=docker.io/library/a:latest"
        );
        assert_eq!(
            show("--annotation index,manifest[linux/amd64]:k=v ."),
            "-> image annotation-index.k=v annotation-manifest[linux/amd64].k=v"
        );
        assert_eq!(show("--annotation a:b=v ."), "-> image annotation.a:b=v");
        assert_eq!(
            show("--provenance=mode=max --sbom=false --attest type=sbom -o x ."),
            "attest:provenance=mode=max\n-> local"
        );
    }
}
