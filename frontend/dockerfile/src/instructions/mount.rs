//! Values of `RUN --mount`.
//!
//! The instruction phase only looks for `from`, since stages have to be known early; the rest may
//! hold variables and is read when the instruction is lowered.
//!
//! Source: Dockerfile notes §7.1.

use std::fmt;

use crate::error::{Case, Error, Kind, Result};
use crate::text;

/// Kinds of mounts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Type {
    #[default]
    Bind,
    Cache,
    Tmpfs,
    Secret,
    Ssh,
}

/// What concurrent users of a cache mount get.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Sharing {
    Shared,
    Private,
    Locked,
}

/// A mount.
#[derive(Debug, Clone, Default)]
pub struct Mount {
    /// Kind.
    pub kind: Type,
    /// Stage or image, empty for the build context.
    pub from: String,
    /// Path in it, or secret id.
    pub source: String,
    /// Where it appears.
    pub target: String,
    /// Cannot be written.
    pub readonly: bool,
    /// Bytes, for tmpfs.
    pub size: i64,
    /// Cache, secret or ssh id.
    pub id: String,
    /// For caches.
    pub sharing: Option<Sharing>,
    /// Absence of a secret or agent is an error.
    pub required: bool,
    /// Variable for a secret.
    pub env: Option<String>,
    /// Permission bits.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
}

const TYPES: &[(&str, Type)] = &[
    ("bind", Type::Bind),
    ("cache", Type::Cache),
    ("tmpfs", Type::Tmpfs),
    ("secret", Type::Secret),
    ("ssh", Type::Ssh),
];

const SHARING: &[(&str, Sharing)] =
    &[("shared", Sharing::Shared), ("private", Sharing::Private), ("locked", Sharing::Locked)];

const KEYS: &[&str] = &[
    "type",
    "from",
    "source",
    "target",
    "readonly",
    "id",
    "sharing",
    "required",
    "size",
    "mode",
    "uid",
    "gid",
    "src",
    "dst",
    "destination",
    "ro",
    "rw",
    "readwrite",
    "env",
];

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, _) = TYPES.iter().find(|(_, kind)| kind == self).expect("every type has a name");
        f.write_str(name)
    }
}

/// The `from` of a mount, unexpanded; empty if there is none.
pub(super) fn source_of(value: &str) -> Result<String> {
    let mut from = String::new();
    for field in fields(value)? {
        let Some((key, value)) = field.split_once('=') else { continue };
        if text::lower(key) != "from" {
            continue;
        }
        if value.find('$').is_some_and(|at| at + 1 != value.len()) {
            return Err(Error::new(Kind::MountFromVariable, ["from"]));
        }
        from = value.to_owned();
    }
    Ok(from)
}

fn fields(value: &str) -> Result<Vec<String>> {
    text::csv_fields(value).ok_or_else(|| Error::plain(Kind::MountCsv))
}

impl Mount {
    /// Reads a value, `expand` replacing variables in each field's value.
    pub fn parse(input: &str, mut expand: impl FnMut(&str) -> Result<String>) -> Result<Self> {
        let mut mount = Self::default();
        let mut readonly = None;
        for field in fields(input)? {
            match field.split_once('=') {
                None => mount.switch(&field, &mut readonly)?,
                Some((key, value)) => {
                    mount.set(&text::lower(key), &expand(value)?, &field, &mut readonly)?;
                }
            }
        }
        mount.readonly = readonly.unwrap_or(!matches!(mount.kind, Type::Cache | Type::Tmpfs));
        mount.check()?;
        Ok(mount)
    }

    fn switch(&mut self, field: &str, readonly: &mut Option<bool>) -> Result<()> {
        match text::lower(field).as_str() {
            "readonly" | "ro" => *readonly = Some(true),
            "readwrite" | "rw" => *readonly = Some(false),
            "required" => self.set_required("required", true)?,
            _ => return Err(Error::new(Kind::FieldNeedsValue, [field])),
        }
        Ok(())
    }

    fn set_required(&mut self, key: &str, value: bool) -> Result<()> {
        if !matches!(self.kind, Type::Secret | Type::Ssh) {
            return Err(self.unexpected(key));
        }
        self.required = value;
        Ok(())
    }

    fn unexpected(&self, key: &str) -> Error {
        Error::new(Kind::MountUnexpectedKeyForType, [key.to_owned(), self.kind.to_string()])
    }

    fn set(
        &mut self,
        key: &str,
        value: &str,
        field: &str,
        readonly: &mut Option<bool>,
    ) -> Result<()> {
        let bad = || Error {
            notes: vec![format!("for {key}: {value}")],
            ..Error::new(Kind::InvalidFieldValue, [key, value])
        };
        // For these three the value comes first, as in the official message.
        let bad_number = || Error {
            notes: vec![format!("{value} for {key}")],
            ..Error::new(Kind::InvalidFieldValue, [value, key])
        };
        let flag = || text::parse_bool(value).ok_or_else(bad);
        match key {
            "type" => self.kind = choose(TYPES, value, Kind::MountBadType)?,
            "from" => self.from = value.to_owned(),
            "source" | "src" => self.source = value.to_owned(),
            "target" | "dst" | "destination" => self.target = value.to_owned(),
            "readonly" | "ro" => *readonly = Some(flag()?),
            "readwrite" | "rw" => *readonly = Some(!flag()?),
            "required" => {
                self.set_required(key, self.required)?;
                self.required = flag()?;
            }
            "size" if self.kind != Type::Tmpfs => return Err(self.unexpected(key)),
            "size" => self.size = size(value).ok_or_else(bad)?,
            "id" => self.id = value.to_owned(),
            "sharing" => self.sharing = Some(choose(SHARING, value, Kind::MountBadSharing)?),
            "mode" => self.mode = Some(digits(value, 8).ok_or_else(bad_number)?),
            "uid" => self.uid = Some(digits(value, 10).ok_or_else(bad_number)?),
            "gid" => self.gid = Some(digits(value, 10).ok_or_else(bad_number)?),
            "env" => self.env = Some(value.to_owned()),
            _ => {
                let error = Error::new(Kind::UnexpectedKey, [key, field]);
                return Err(error.suggest(key, KEYS.iter().copied(), Case::Sensitive));
            }
        }
        Ok(())
    }

    fn check(&self) -> Result<()> {
        if matches!(self.kind, Type::Bind | Type::Tmpfs) {
            let given = [("mode", self.mode), ("uid", self.uid), ("gid", self.gid)];
            if let Some((name, _)) = given.iter().find(|(_, value)| value.is_some()) {
                let kind = text::quote(&self.kind.to_string());
                return Err(Error::new(Kind::MountAttrNotAllowed, [(*name).to_owned(), kind]));
            }
        }
        if self.kind == Type::Secret {
            let fail = |kind| Err(Error::plain(kind));
            if !self.from.is_empty() {
                return fail(Kind::SecretFrom);
            }
            if self.sharing.is_some() {
                return fail(Kind::SecretSharing);
            }
            if self.source.is_empty() && self.target.is_empty() && self.id.is_empty() {
                return fail(Kind::SecretNoTarget);
            }
            if !self.source.is_empty() && !self.id.is_empty() {
                return fail(Kind::SecretSourceAndId);
            }
        }
        if self.sharing.is_some() && self.kind != Type::Cache {
            return Err(Error::new(Kind::SharingNotCache, [self.kind.to_string()]));
        }
        Ok(())
    }

    /// Whether owner or mode were given.
    pub fn has_file_info(&self) -> bool {
        self.mode.is_some() || self.uid.is_some() || self.gid.is_some()
    }
}

fn choose<T: Copy>(list: &[(&str, T)], value: &str, kind: Kind) -> Result<T> {
    let wanted = text::lower(value);
    list.iter().find(|(name, _)| *name == wanted).map(|(_, value)| *value).ok_or_else(|| {
        let names = list.iter().map(|(name, _)| *name);
        Error::new(kind, [text::quote(value)]).suggest(value, names, Case::Sensitive)
    })
}

/// An unsigned 32-bit number without sign.
fn digits(text: &str, radix: u32) -> Option<u32> {
    let valid = !text.is_empty() && text.chars().all(|char| char.is_digit(radix));
    valid.then(|| u32::from_str_radix(text, radix).ok()).flatten()
}

/// A size such as `64m` or `1.5 GiB`, in binary multiples.
fn size(input: &str) -> Option<i64> {
    let at = input.rfind(|char: char| char.is_ascii_digit() || matches!(char, '.' | ' '))?;
    let (number, unit) = match input.as_bytes()[at] {
        b' ' => (&input[..at], &input[at + 1..]),
        _ => input.split_at(at + 1),
    };
    let plain = |char: char| char.is_ascii_digit() || matches!(char, '.' | '+');
    if !number.chars().all(plain) {
        return None;
    }
    let number: f64 = number.parse().ok()?;
    let unit = text::lower(unit);
    let shift = match unit.strip_suffix("ib").or(unit.strip_suffix('b')).unwrap_or(&unit) {
        "" if unit == "ib" => return None,
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        "p" => 50,
        _ => return None,
    };
    Some((number * (1i64 << shift) as f64) as i64)
}
