//! Compiles the graph messages; no `protoc` is needed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../../proto");
    println!("cargo:rerun-if-changed={root}/llb");
    let files = protox::compile(["llb/ops.proto"], [root])?;
    let mut config = prost_build::Config::new();
    config.btree_map(["."]).bytes(["."]);
    config.compile_fds(files)?;
    Ok(())
}
