//! Messages as JSON, in protobuf's own mapping.
//!
//! Only what graph messages are made of: no groups, no well-known types. The wire form is walked by
//! its description, so that a new field needs no code. Source: the protobuf JSON mapping.

use std::{collections::HashMap, sync::OnceLock};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use prost::{
    Message as _,
    encoding::{WireType, decode_key, decode_varint},
};
use prost_types::{
    DescriptorProto, FileDescriptorSet,
    field_descriptor_proto::{Label, Type},
};
use serde_json::{Map, Value};

/// How deep messages may be nested.
const MAX_DEPTH: usize = 64;

/// Why a message has no JSON.
#[derive(Debug, thiserror::Error)]
pub(crate) enum JsonError {
    #[error("no message is called {0}")]
    Unknown(String),
    #[error("the message {0} is cut off or nested too deeply")]
    Malformed(String),
    #[error("field {field} of {message} has a type without JSON form")]
    Unsupported { message: String, field: String },
}

#[derive(Default)]
struct Descriptions {
    messages: HashMap<String, DescriptorProto>,
    enums: HashMap<String, HashMap<i32, String>>,
}

/// JSON of an encoded message of the type called `name`; unknown fields are left out.
pub(crate) fn of(name: &str, bytes: &[u8]) -> Result<Value, JsonError> {
    descriptions().message(&format!(".{name}"), bytes, MAX_DEPTH)
}

fn descriptions() -> &'static Descriptions {
    static ALL: OnceLock<Descriptions> = OnceLock::new();
    ALL.get_or_init(|| {
        let set = FileDescriptorSet::decode(proto::DESCRIPTORS)
            .expect("the compiler of the descriptors made them valid");
        let mut all = Descriptions::default();
        for file in set.file.into_iter().filter(|file| file.package() == "pb") {
            let scope = format!(".{}", file.package());
            all.add(&scope, file.message_type, file.enum_type);
        }
        all
    })
}

impl Descriptions {
    fn add(
        &mut self,
        scope: &str,
        messages: Vec<DescriptorProto>,
        enums: Vec<prost_types::EnumDescriptorProto>,
    ) {
        for one in enums {
            let names = one.value.iter().map(|value| (value.number(), value.name().to_owned()));
            self.enums.insert(format!("{scope}.{}", one.name()), names.collect());
        }
        for mut one in messages {
            let name = format!("{scope}.{}", one.name());
            let (nested, enums) =
                (std::mem::take(&mut one.nested_type), std::mem::take(&mut one.enum_type));
            self.add(&name, nested, enums);
            self.messages.insert(name, one);
        }
    }

    fn message(&self, name: &str, mut bytes: &[u8], depth: usize) -> Result<Value, JsonError> {
        let description =
            self.messages.get(name).ok_or_else(|| JsonError::Unknown(name.to_owned()))?;
        let malformed = || JsonError::Malformed(name.to_owned());
        let depth = depth.checked_sub(1).ok_or_else(malformed)?;
        let mut json = Map::new();
        while !bytes.is_empty() {
            let (number, wire) = decode_key(&mut bytes).map_err(|_| malformed())?;
            let payload = Payload::take(wire, &mut bytes).ok_or_else(malformed)?;
            let Some(field) =
                description.field.iter().find(|field| field.number() as u32 == number)
            else {
                continue;
            };
            let unsupported = || JsonError::Unsupported {
                message: name.to_owned(),
                field: field.name().to_owned(),
            };
            let key = field.json_name().to_owned();
            let single = |payload: &Payload<'_>| match (field.r#type(), payload) {
                (Type::Message, Payload::Bytes(bytes)) => {
                    self.message(field.type_name(), bytes, depth)
                }
                (Type::Enum, Payload::Number(value)) => {
                    let names = self.enums.get(field.type_name()).ok_or_else(unsupported)?;
                    let value = *value as i32;
                    Ok(names.get(&value).map_or_else(|| value.into(), |name| name.clone().into()))
                }
                (kind, payload) => scalar(kind, payload).ok_or_else(unsupported),
            };
            if field.label() != Label::Repeated {
                json.insert(key, single(&payload)?);
                continue;
            }
            let entry = self.messages.get(field.type_name()).filter(|entry| {
                entry.options.as_ref().is_some_and(prost_types::MessageOptions::map_entry)
            });
            if entry.is_some() {
                let pair = single(&payload)?;
                let name = match &pair["key"] {
                    Value::Null => String::new(),
                    Value::String(name) => name.clone(),
                    other => other.to_string(),
                };
                let value = match &pair["value"] {
                    Value::Null => self.absent(field.type_name()).ok_or_else(unsupported)?,
                    value => value.clone(),
                };
                let map = json.entry(key).or_insert_with(|| Map::new().into());
                map.as_object_mut().expect("made as a map").insert(name, value);
                continue;
            }
            let list = json.entry(key).or_insert_with(|| Value::Array(Vec::new()));
            let list = list.as_array_mut().expect("made as a list");
            let numeric = !matches!(field.r#type(), Type::String | Type::Bytes | Type::Message);
            match payload {
                Payload::Bytes(mut packed) if numeric => {
                    while !packed.is_empty() {
                        let number = decode_varint(&mut packed).map_err(|_| malformed())?;
                        list.push(single(&Payload::Number(number))?);
                    }
                }
                payload => list.push(single(&payload)?),
            }
        }
        Ok(json.into())
    }

    /// The value of a map's entry that does not name it.
    fn absent(&self, entry: &str) -> Option<Value> {
        let value = self.messages.get(entry)?.field.iter().find(|field| field.number() == 2)?;
        match value.r#type() {
            Type::Message => Some(Map::new().into()),
            Type::String | Type::Bytes => Some("".into()),
            kind => scalar(kind, &Payload::Number(0)),
        }
    }
}

enum Payload<'a> {
    Number(u64),
    Bytes(&'a [u8]),
    /// Of a wire type that graph messages do not use.
    Other,
}

impl<'a> Payload<'a> {
    fn take(wire: WireType, bytes: &mut &'a [u8]) -> Option<Self> {
        let mut split = |length: usize| {
            let (taken, rest) = bytes.split_at_checked(length)?;
            *bytes = rest;
            Some(taken)
        };
        match wire {
            WireType::Varint => decode_varint(bytes).ok().map(Self::Number),
            WireType::ThirtyTwoBit => split(4).map(|_| Self::Other),
            WireType::SixtyFourBit => split(8).map(|_| Self::Other),
            WireType::LengthDelimited => {
                let length = usize::try_from(decode_varint(bytes).ok()?).ok()?;
                let (taken, rest) = bytes.split_at_checked(length)?;
                *bytes = rest;
                Some(Self::Bytes(taken))
            }
            WireType::StartGroup | WireType::EndGroup => None,
        }
    }
}

/// 64-bit numbers are texts in this mapping.
fn scalar(kind: Type, payload: &Payload<'_>) -> Option<Value> {
    Some(match (kind, payload) {
        (Type::String, Payload::Bytes(bytes)) => String::from_utf8_lossy(bytes).into(),
        (Type::Bytes, Payload::Bytes(bytes)) => STANDARD.encode(bytes).into(),
        (Type::Bool, Payload::Number(number)) => (*number != 0).into(),
        (Type::Int32, Payload::Number(number)) => (*number as i32).into(),
        (Type::Uint32, Payload::Number(number)) => (*number as u32).into(),
        (Type::Int64, Payload::Number(number)) => (*number as i64).to_string().into(),
        (Type::Uint64, Payload::Number(number)) => number.to_string().into(),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use llb::pb;

    use super::*;

    #[test]
    fn an_operation_as_json() {
        let exec = pb::ExecOp {
            meta: Some(pb::Meta {
                args: vec!["true".into()],
                valid_exit_codes: vec![0, 3],
                ..Default::default()
            }),
            mounts: vec![pb::Mount {
                dest: "/".into(),
                output: -1,
                mount_type: pb::MountType::Tmpfs as i32,
                ..Default::default()
            }],
            ..Default::default()
        };
        let op = pb::Op { op: Some(pb::op::Op::Exec(exec)), ..Default::default() };
        let json = of("pb.Op", &op.encode_to_vec()).unwrap();
        assert_eq!(
            json,
            serde_json::json!({"exec": {
                "meta": {"args": ["true"], "validExitCodes": [0, 3]},
                "mounts": [{"dest": "/", "mountType": "TMPFS", "output": "-1"}],
            }})
        );
        let source = pb::SourceOp {
            identifier: "x".into(),
            attrs: [("empty".to_owned(), String::new())].into(),
        };
        let op = pb::Op { op: Some(pb::op::Op::Source(source)), ..Default::default() };
        let json = of("pb.Op", &op.encode_to_vec()).unwrap();
        assert_eq!(
            json,
            serde_json::json!({"source": {"attrs": {"empty": ""}, "identifier": "x"}})
        );
    }
}
