//! The canonical encoding of an op, whose digest names the vertex.
//!
//! It is what Go's protobuf library writes in deterministic mode: fields by number with oneof
//! members last, zero scalars left out, map entries sorted and always with key and value, packed
//! integers, unknown fields kept at the end of their message. prost differs in each of these, so
//! the bytes are rewritten by walking field tables made from the contract file.
//! Source: LLB notes §1.2. Invariant: encoding a canonical encoding changes nothing.

use std::collections::BTreeMap;

use prost::Message as _;

use crate::pb;

include!(concat!(env!("OUT_DIR"), "/schema.rs"));

/// How deep messages may nest; the deepest real one is a definition inside a build op.
const MAX_DEPTH: usize = 16;

/// What a field's bytes are.
enum Kind {
    Bool,
    Int32,
    Uint32,
    Int64,
    Bytes,
    /// Row in [`MESSAGES`].
    Message(usize),
    /// String keys to values of this kind.
    Map(&'static Kind),
}

/// One field of a message.
struct Field {
    number: u32,
    kind: Kind,
    repeated: bool,
    oneof: bool,
}

/// The bytes are not a protobuf message of the expected shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EncodingError {
    /// A length or varint runs past the end.
    #[error("message is cut short")]
    Truncated,
    /// Wire types 3, 4, 6, 7, or field number 0.
    #[error("message has an invalid field tag")]
    BadTag,
    /// A known field has the wrong wire type.
    #[error("field {0} has the wrong wire type")]
    WrongType(u32),
    /// Nested more than 16 deep.
    #[error("message is nested too deeply")]
    TooDeep,
}

/// Canonical bytes of `op`.
pub fn encode_op(op: &pb::Op) -> Vec<u8> {
    canonical_op(&op.encode_to_vec()).expect("an op we hold encodes to well-formed bytes")
}

/// Rewrites the received bytes of an op canonically, keeping fields this version does not know.
pub fn canonical_op(bytes: &[u8]) -> Result<Vec<u8>, EncodingError> {
    Ok(Tree::parse(bytes, OP, 0)?.bytes())
}

/// As [`canonical_op`], with the digests of the inputs replaced in order.
pub(crate) fn canonical_op_with_inputs(
    bytes: &[u8],
    inputs: impl IntoIterator<Item = String>,
) -> Result<Vec<u8>, EncodingError> {
    let mut tree = Tree::parse(bytes, OP, 0)?;
    if let Some(Values::Repeated(list)) = tree.fields.get_mut(&1) {
        for (value, digest) in list.iter_mut().zip(inputs) {
            if let Value::Message(input) = value {
                input.fields.insert(1, Values::Single(Value::Bytes(digest.into_bytes())));
            }
        }
    }
    Ok(tree.bytes())
}

/// A message as its fields, last value winning as protobuf merges.
struct Tree {
    schema: &'static [Field],
    fields: BTreeMap<u32, Values>,
    unknown: Vec<u8>,
}

enum Values {
    Single(Value),
    Repeated(Vec<Value>),
    Map(BTreeMap<Vec<u8>, Value>),
}

enum Value {
    Varint(u64),
    Bytes(Vec<u8>),
    Message(Tree),
}

impl Tree {
    fn empty(row: usize) -> Self {
        Self { schema: MESSAGES[row], fields: BTreeMap::new(), unknown: Vec::new() }
    }

    fn parse(bytes: &[u8], row: usize, depth: usize) -> Result<Self, EncodingError> {
        let mut tree = Self::empty(row);
        tree.merge(bytes, depth)?;
        Ok(tree)
    }

    fn merge(&mut self, mut bytes: &[u8], depth: usize) -> Result<(), EncodingError> {
        if depth > MAX_DEPTH {
            return Err(EncodingError::TooDeep);
        }
        while !bytes.is_empty() {
            let start = bytes;
            let tag = varint(&mut bytes)?;
            let number = u32::try_from(tag >> 3).map_err(|_| EncodingError::BadTag)?;
            if number == 0 {
                return Err(EncodingError::BadTag);
            }
            let wire = match tag & 7 {
                0 => Wire::Varint(varint(&mut bytes)?),
                1 => Wire::Fixed(take(&mut bytes, 8)?),
                2 => {
                    let length = usize::try_from(varint(&mut bytes)?)
                        .map_err(|_| EncodingError::Truncated)?;
                    Wire::Length(take(&mut bytes, length)?)
                }
                5 => Wire::Fixed(take(&mut bytes, 4)?),
                _ => return Err(EncodingError::BadTag),
            };
            match self.schema.iter().find(|field| field.number == number) {
                Some(field) => self.set(field, wire, depth)?,
                None => self.unknown.extend_from_slice(&start[..start.len() - bytes.len()]),
            }
        }
        Ok(())
    }

    fn set(
        &mut self,
        field: &'static Field,
        wire: Wire<'_>,
        depth: usize,
    ) -> Result<(), EncodingError> {
        let number = field.number;
        if field.oneof {
            let previous: Vec<u32> = self
                .schema
                .iter()
                .filter(|other| other.oneof && other.number != number)
                .map(|other| other.number)
                .collect();
            for other in previous {
                self.fields.remove(&other);
            }
        }
        if let Kind::Map(kind) = field.kind {
            let Wire::Length(entry) = wire else { return Err(EncodingError::WrongType(number)) };
            let (key, value) = map_entry(entry, kind, depth)?;
            let Values::Map(map) =
                self.fields.entry(number).or_insert_with(|| Values::Map(BTreeMap::new()))
            else {
                unreachable!("a map field only ever holds a map")
            };
            map.insert(key, value);
            return Ok(());
        }
        if field.repeated {
            let mut list = Vec::new();
            match (&field.kind, wire) {
                (Kind::Bytes | Kind::Message(_), wire) => {
                    list.push(value(&field.kind, wire, number, depth)?)
                }
                (kind, Wire::Length(mut packed)) => {
                    while !packed.is_empty() {
                        list.push(Value::Varint(narrow(kind, varint(&mut packed)?)));
                    }
                }
                (kind, wire) => list.push(value(kind, wire, number, depth)?),
            }
            let Values::Repeated(all) =
                self.fields.entry(number).or_insert_with(|| Values::Repeated(Vec::new()))
            else {
                unreachable!("a repeated field only ever holds a list")
            };
            all.extend(list);
            return Ok(());
        }
        // A sub-message that arrives twice is merged, as protobuf demands.
        if let (Some(Values::Single(Value::Message(tree))), Wire::Length(bytes)) =
            (self.fields.get_mut(&number), &wire)
        {
            return tree.merge(bytes, depth + 1);
        }
        let value = value(&field.kind, wire, number, depth)?;
        self.fields.insert(number, Values::Single(value));
        Ok(())
    }

    fn bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let ordered = self.schema.iter().filter(|field| !field.oneof);
        for field in ordered.chain(self.schema.iter().filter(|field| field.oneof)) {
            match self.fields.get(&field.number) {
                None => {}
                Some(Values::Single(value)) if !field.oneof && value.is_zero() => {}
                Some(Values::Single(value)) => value.write(field.number, &mut out),
                Some(Values::Repeated(list)) => match field.kind {
                    Kind::Bytes | Kind::Message(_) => {
                        list.iter().for_each(|value| value.write(field.number, &mut out));
                    }
                    _ => {
                        let mut packed = Vec::new();
                        for value in list {
                            if let Value::Varint(number) = value {
                                put_varint(*number, &mut packed);
                            }
                        }
                        if !packed.is_empty() {
                            put_bytes(field.number, &packed, &mut out);
                        }
                    }
                },
                Some(Values::Map(map)) => {
                    for (key, value) in map {
                        let mut entry = Vec::new();
                        put_bytes(1, key, &mut entry);
                        value.write(2, &mut entry);
                        put_bytes(field.number, &entry, &mut out);
                    }
                }
            }
        }
        out.extend_from_slice(&self.unknown);
        out
    }
}

impl Value {
    fn is_zero(&self) -> bool {
        match self {
            Self::Varint(number) => *number == 0,
            Self::Bytes(bytes) => bytes.is_empty(),
            Self::Message(_) => false,
        }
    }

    fn write(&self, number: u32, out: &mut Vec<u8>) {
        match self {
            Self::Varint(value) => {
                put_varint(u64::from(number) << 3, out);
                put_varint(*value, out);
            }
            Self::Bytes(bytes) => put_bytes(number, bytes, out),
            Self::Message(tree) => put_bytes(number, &tree.bytes(), out),
        }
    }
}

enum Wire<'a> {
    Varint(u64),
    Fixed(
        #[expect(
            dead_code,
            reason = "known fields are never fixed width; unknown ones are copied"
        )]
        &'a [u8],
    ),
    Length(&'a [u8]),
}

fn value(kind: &Kind, wire: Wire<'_>, number: u32, depth: usize) -> Result<Value, EncodingError> {
    match (kind, wire) {
        (Kind::Bytes, Wire::Length(bytes)) => Ok(Value::Bytes(bytes.to_vec())),
        (Kind::Message(row), Wire::Length(bytes)) => {
            Ok(Value::Message(Tree::parse(bytes, *row, depth + 1)?))
        }
        (Kind::Bool | Kind::Int32 | Kind::Uint32 | Kind::Int64, Wire::Varint(value)) => {
            Ok(Value::Varint(narrow(kind, value)))
        }
        _ => Err(EncodingError::WrongType(number)),
    }
}

/// What a reader of this kind keeps of a varint.
fn narrow(kind: &Kind, value: u64) -> u64 {
    match kind {
        Kind::Bool => u64::from(value != 0),
        Kind::Int32 => value as u32 as i32 as i64 as u64,
        Kind::Uint32 => u64::from(value as u32),
        _ => value,
    }
}

fn map_entry(
    mut entry: &[u8],
    kind: &Kind,
    depth: usize,
) -> Result<(Vec<u8>, Value), EncodingError> {
    let mut key = Vec::new();
    let mut found = None;
    while !entry.is_empty() {
        let tag = varint(&mut entry)?;
        let wire = match tag & 7 {
            0 => Wire::Varint(varint(&mut entry)?),
            1 => Wire::Fixed(take(&mut entry, 8)?),
            2 => {
                let length =
                    usize::try_from(varint(&mut entry)?).map_err(|_| EncodingError::Truncated)?;
                Wire::Length(take(&mut entry, length)?)
            }
            5 => Wire::Fixed(take(&mut entry, 4)?),
            _ => return Err(EncodingError::BadTag),
        };
        match (tag >> 3, wire) {
            (1, Wire::Length(bytes)) => key = bytes.to_vec(),
            (2, wire) => found = Some(value(kind, wire, 2, depth + 1)?),
            _ => {}
        }
    }
    let value = found.unwrap_or(match kind {
        Kind::Bytes => Value::Bytes(Vec::new()),
        Kind::Message(row) => Value::Message(Tree::empty(*row)),
        _ => Value::Varint(0),
    });
    Ok((key, value))
}

fn varint(bytes: &mut &[u8]) -> Result<u64, EncodingError> {
    let mut value = 0u64;
    for shift in (0..70).step_by(7) {
        let (first, rest) = bytes.split_first().ok_or(EncodingError::Truncated)?;
        *bytes = rest;
        value |= u64::from(first & 0x7f).checked_shl(shift).unwrap_or(0);
        if first & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(EncodingError::Truncated)
}

fn take<'a>(bytes: &mut &'a [u8], length: usize) -> Result<&'a [u8], EncodingError> {
    let (head, rest) = bytes.split_at_checked(length).ok_or(EncodingError::Truncated)?;
    *bytes = rest;
    Ok(head)
}

fn put_varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn put_bytes(number: u32, bytes: &[u8], out: &mut Vec<u8>) {
    put_varint(u64::from(number) << 3 | 2, out);
    put_varint(bytes.len() as u64, out);
    out.extend_from_slice(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_map_values_are_written() {
        let source = pb::SourceOp {
            identifier: "local://x".into(),
            attrs: [("a".to_owned(), String::new())].into(),
        };
        let op = pb::Op { op: Some(pb::op::Op::Source(source)), ..Default::default() };
        assert_eq!(encode_op(&op), b"\x1a\x12\x0a\x09local://x\x12\x05\x0a\x01a\x12\x00");
    }

    #[test]
    fn oneof_members_come_last_and_unknown_fields_stay() {
        // constraints (11, empty), then source (3, empty), then an unknown field 99.
        let received = [0x1a, 0x00, 0x9a, 0x06, 0x01, 0x78, 0x5a, 0x00];
        let canonical = canonical_op(&received).unwrap();
        assert_eq!(canonical, [0x5a, 0x00, 0x1a, 0x00, 0x9a, 0x06, 0x01, 0x78]);
        assert_eq!(canonical_op(&canonical).unwrap(), canonical);
    }

    #[test]
    fn broken_bytes_are_refused() {
        for bytes in [&[0x0a, 0x05, 0x01][..], &[0x00], &[0x0b], &[0xff; 11], &[0x08, 0x01]] {
            assert!(canonical_op(bytes).is_err(), "{bytes:?}");
        }
    }
}
