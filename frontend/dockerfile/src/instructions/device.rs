//! Values of `RUN --device`.

use crate::error::{Case, Error, Kind, Result};
use crate::text;

/// A device by its CDI name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Device {
    /// `vendor/class=name` or a class.
    pub name: String,
    /// Absence is an error.
    pub required: bool,
}

pub(super) fn parse(value: &str) -> Result<Device> {
    let fields = text::csv_fields(value).ok_or_else(|| Error::plain(Kind::DeviceCsv))?;
    let mut device = Device::default();
    for field in fields {
        let (key, value) = match field.split_once('=') {
            Some((key, value)) => (text::lower(key), Some(value)),
            None => (text::lower(&field), None),
        };
        match (key.as_str(), value) {
            ("required", None) => device.required = true,
            ("required", Some(value)) => {
                let bad = || Error {
                    notes: vec![format!("for required: {value}")],
                    ..Error::new(Kind::InvalidFieldValue, ["required", value])
                };
                device.required = text::parse_bool(value).ok_or_else(bad)?;
            }
            ("name", Some(value)) => {
                if !device.name.is_empty() {
                    return Err(Error::new(Kind::DeviceNameRepeated, [device.name]));
                }
                device.name = value.to_owned();
            }
            _ if device.name.is_empty() => device.name = field,
            (_, None) => return Err(Error::new(Kind::FieldNeedsValue, [field])),
            (key, Some(_)) => {
                let error = Error::new(Kind::UnexpectedKey, [key, field.as_str()]);
                return Err(error.suggest(key, ["name", "required"], Case::Sensitive));
            }
        }
    }
    Ok(device)
}
