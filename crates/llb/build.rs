//! Compiles the graph messages (no `protoc` is needed) and writes the field tables that the
//! canonical encoder walks, so that both always describe the same contract file.

use std::{collections::HashMap, fmt::Write as _};

use prost_types::{
    DescriptorProto, FileDescriptorSet,
    field_descriptor_proto::{Label, Type},
};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../../proto");
    println!("cargo:rerun-if-changed={root}/llb");
    println!("cargo:rerun-if-changed={root}/control/policy.proto");
    let files = protox::compile(["llb/ops.proto"], [root])?;
    let out = std::path::PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("schema.rs"), schema(&files))?;
    let mut config = prost_build::Config::new();
    config.btree_map(["."]).bytes(["."]);
    config.compile_fds(files)?;
    // Policies speak of sources, so whoever makes graphs can have them without a transport.
    let policies = protox::compile(["control/policy.proto"], [root])?;
    prost_build::Config::new().btree_map(["."]).compile_fds(policies)?;
    Ok(())
}

/// `MESSAGES`: one row a message, its fields by number; and the row of `Op`.
fn schema(files: &FileDescriptorSet) -> String {
    let messages: Vec<&DescriptorProto> =
        files.file.iter().flat_map(|file| &file.message_type).collect();
    let rows: HashMap<String, usize> = messages
        .iter()
        .enumerate()
        .map(|(row, message)| (format!(".pb.{}", message.name()), row))
        .collect();
    let mut text = String::from("static MESSAGES: &[&[Field]] = &[\n");
    for message in &messages {
        let mut fields = message.field.clone();
        fields.sort_by_key(|field| field.number());
        write!(text, "    /* {} */ &[", message.name()).unwrap();
        for field in fields {
            let nested = message.nested_type.iter().find(|nested| {
                field.type_name() == format!(".pb.{}.{}", message.name(), nested.name())
            });
            let kind = match nested {
                Some(entry) => {
                    let value = &entry.field[1];
                    format!("Kind::Map(&{})", kind(value.r#type(), value.type_name(), &rows))
                }
                None => kind(field.r#type(), field.type_name(), &rows),
            };
            write!(
                text,
                "Field {{ number: {}, kind: {kind}, repeated: {}, oneof: {} }}, ",
                field.number(),
                nested.is_none() && field.label() == Label::Repeated,
                field.oneof_index.is_some(),
            )
            .unwrap();
        }
        text.push_str("],\n");
    }
    writeln!(text, "];\nconst OP: usize = {};", rows[".pb.Op"]).unwrap();
    text
}

fn kind(r#type: Type, name: &str, rows: &HashMap<String, usize>) -> String {
    match r#type {
        Type::Bool => "Kind::Bool".into(),
        Type::Int32 | Type::Enum => "Kind::Int32".into(),
        Type::Uint32 => "Kind::Uint32".into(),
        Type::Int64 | Type::Uint64 => "Kind::Int64".into(),
        Type::String | Type::Bytes => "Kind::Bytes".into(),
        Type::Message => format!("Kind::Message({})", rows[name]),
        other => panic!("the graph messages use no {other:?}; teach the canonical encoder first"),
    }
}
