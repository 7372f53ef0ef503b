//! Compiles the contract files into messages, clients and servers; no `protoc` is needed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../../proto");
    println!("cargo:rerun-if-changed={root}");
    let files = protox::compile(
        [
            "control/control.proto",
            "control/gateway.proto",
            "session/auth.proto",
            "session/content.proto",
            "session/exporter.proto",
            "session/filesync.proto",
            "session/policysession.proto",
            "session/secrets.proto",
            "session/ssh.proto",
            "session/upload.proto",
            "otel/trace_service.proto",
            "rbuild/rbuild.proto",
            "rbuild/storage.proto",
        ],
        [root],
    )?;
    let out = std::path::PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("descriptors.bin"), prost_build_encode(&files))?;
    let mut config = prost_build::Config::new();
    config.btree_map(["."]).bytes(["."]).include_file("all.rs").extern_path(".pb", "::llb::pb");
    // One by one: the package of the client's verifier, which is ours, lies below that of policies.
    let policies = files.file.iter().filter(|file| file.name() == "control/policy.proto");
    for file in policies {
        let messages = file.message_type.iter().map(|message| message.name());
        for name in messages.chain(file.enum_type.iter().map(|list| list.name())) {
            let path = format!(".{}.{name}", file.package());
            config.extern_path(path, format!("::llb::policy::{name}"));
        }
    }
    tonic_prost_build::configure().compile_fds_with_config(files, config)?;
    Ok(())
}

/// The descriptors as bytes, for server reflection.
fn prost_build_encode(files: &prost_types::FileDescriptorSet) -> Vec<u8> {
    prost::Message::encode_to_vec(files)
}
