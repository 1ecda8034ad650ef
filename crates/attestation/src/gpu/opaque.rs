//! NVIDIA's opaque data: versions and identities, each with a type and a length.

use super::report::{GpuReportError, Reader};

/// A field of the opaque data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpaqueField {
    /// Its number.
    pub kind: u16,
    /// Its bytes.
    pub value: Vec<u8>,
}

/// Firmware id: digest of the code that the attestation key was made for.
pub(super) const FIRMWARE_ID: u16 = 20;

/// How a field is shown.
#[derive(Clone, Copy)]
enum Form {
    /// ASCII, zero padded.
    Text,
    /// Eight bytes of version numbers, as they are printed on the card.
    Vbios,
    Hex,
}

/// Fields with a name, for facts.
const NAMED: &[(u16, &str, Form)] = &[
    (3, "driver_version", Form::Text),
    (4, "gpu_info", Form::Hex),
    (5, "sku", Form::Text),
    (6, "vbios_version", Form::Vbios),
    (7, "manufacturer_id", Form::Hex),
    (14, "board_id", Form::Hex),
    (15, "chip_sku", Form::Text),
    (16, "chip_sku_mod", Form::Text),
    (17, "project", Form::Text),
    (18, "project_sku", Form::Text),
    (19, "project_sku_mod", Form::Text),
    (FIRMWARE_ID, "firmware_id", Form::Hex),
    (21, "protected_pcie", Form::Hex),
    (36, "feature_flag", Form::Hex),
];

impl OpaqueField {
    /// Name and text of a field that people look for.
    pub(super) fn as_fact(&self) -> Option<(&'static str, String)> {
        let (_, name, form) = NAMED.iter().find(|(kind, ..)| *kind == self.kind)?;
        Some((name, self.text(*form)))
    }

    fn text(&self, form: Form) -> String {
        let padding = |byte: &u8| *byte == 0;
        match (form, self.value.as_slice()) {
            (Form::Text, bytes) => {
                let text = bytes.split(padding).next().unwrap_or_default();
                text.iter().map(|byte| if byte.is_ascii_graphic() { char::from(*byte) } else { '?' }).collect()
            }
            // Two little-endian words; printed are the bytes of the first, highest first, and the lowest of the second.
            (Form::Vbios, [a, b, c, d, e, _, _, _]) => format!("{d:02X}.{c:02X}.{b:02X}.{a:02X}.{e:02X}"),
            (_, bytes) => hex::encode(bytes),
        }
    }
}

/// `offset`: of `bytes` in the report.
pub(super) fn parse(offset: usize, bytes: &[u8]) -> Result<Vec<OpaqueField>, GpuReportError> {
    let mut reader = Reader::new(bytes, offset);
    let mut fields: Vec<OpaqueField> = Vec::new();
    while !reader.is_empty() {
        let number = reader.number(2, "type of an opaque field")?;
        let length = reader.number(2, "length of an opaque field")?;
        let value = reader.bytes(length, "opaque field")?.to_vec();
        let kind = u16::try_from(number).unwrap_or(u16::MAX);
        if fields.iter().any(|field| field.kind == kind) {
            return Err(GpuReportError::Value { field: "type of an opaque field", got: number, expected: "there once" });
        }
        fields.push(OpaqueField { kind, value });
    }
    Ok(fields)
}
