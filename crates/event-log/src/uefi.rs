//! UEFI structures inside event data: variables, load options, device paths, partition tables.

use std::fmt;

use crate::reader::{EndOfBytes, Reader};

/// Partitions that are named; a table with more is cut there.
const MAX_PARTITIONS: u64 = 128;
/// Nodes of a device path that are named.
const MAX_NODES: usize = 32;

/// A GUID in the byte order of UEFI structures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Guid(pub [u8; 16]);

impl Guid {
    const EFI_GLOBAL: &str = "8be4df61-93ca-11d2-aa0d-00e098032b8c";
    const IMAGE_SECURITY: &str = "d719b2cb-3d3a-4596-a3bc-dad00e67656f";

    /// What the GUID stands for, where it is one of a guest's boot.
    #[must_use]
    pub fn meaning(&self) -> Option<&'static str> {
        Some(match self.to_string().as_str() {
            Self::EFI_GLOBAL => "UEFI global variable",
            Self::IMAGE_SECURITY => "UEFI image security database",
            "605dab50-e046-4300-abb6-3dd810dd8b23" => "shim",
            "1428f772-b64a-441e-b8c3-9ebdd7f893c7" => "files that QEMU passed (-kernel, -initrd)",
            "5568e427-68fc-4f3d-ac74-ca555231cc68" => "Linux initrd",
            "f8d1c555-cd04-46b5-8a20-e56cbb3052d0" => "kernel inside a unified kernel image",
            "f2fd1544-9794-4a2c-992e-e5bbcf20e394" => "SMBIOS 3 table",
            "eb9d2d31-2d88-11d3-9a16-0090273fc14d" => "SMBIOS table",
            _ => return None,
        })
    }
}

impl fmt::Display for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g, h, i, rest @ ..] = self.0;
        let (first, second, third) = (u32::from_le_bytes([a, b, c, d]), u16::from_le_bytes([e, g]), u16::from_le_bytes([h, i]));
        let [j, k, node @ ..] = rest;
        write!(f, "{first:08x}-{second:04x}-{third:04x}-{j:02x}{k:02x}-{}", hex::encode(node))
    }
}

/// `UEFI_VARIABLE_DATA`.
pub(crate) struct Variable<'a> {
    pub(crate) vendor: Guid,
    pub(crate) name: String,
    pub(crate) data: &'a [u8],
}

pub(crate) fn parse_variable(bytes: &[u8]) -> Result<Variable<'_>, EndOfBytes> {
    let mut reader = Reader::new(bytes);
    let vendor = Guid(reader.array("vendor")?);
    let (characters, data_length) = (length(&mut reader)?, length(&mut reader)?);
    let name = reader.bytes(characters.saturating_mul(2), "name")?;
    let data = reader.bytes(data_length, "data")?;
    Ok(Variable { vendor, name: utf16(name), data })
}

/// `EFI_LOAD_OPTION`: its title.
pub(crate) fn parse_load_option_title(bytes: &[u8]) -> Option<String> {
    let mut reader = Reader::new(bytes);
    reader.u32("attributes").ok()?;
    reader.u16("length of the path").ok()?;
    Some(utf16(reader.rest())).filter(|title| !title.is_empty())
}

/// `UEFI_PLATFORM_FIRMWARE_BLOB2` without its name: base and length.
pub(crate) fn parse_blob(reader: &mut Reader<'_>) -> Result<(u64, u64), EndOfBytes> {
    Ok((reader.u64("base")?, reader.u64("length")?))
}

/// A text with its length in one byte before it.
pub(crate) fn parse_short_text(reader: &mut Reader<'_>) -> Result<String, EndOfBytes> {
    let length = reader.u8("length of a text")?;
    reader.bytes(usize::from(length), "a text").map(ascii)
}

/// Configuration tables of `UEFI_HANDOFF_TABLE_POINTERS`.
pub(crate) fn parse_tables(reader: &mut Reader<'_>) -> Result<Vec<Guid>, EndOfBytes> {
    let count = reader.u64("number of tables")?;
    let table = |_| {
        let guid = Guid(reader.array("a table's GUID")?);
        reader.u64("a table's address")?;
        Ok(guid)
    };
    (0..count).map(table).collect()
}

/// `UEFI_IMAGE_LOAD_EVENT`: length and device path.
pub(crate) fn parse_image_load(bytes: &[u8]) -> Result<(u64, String), EndOfBytes> {
    let mut reader = Reader::new(bytes);
    reader.u64("address")?;
    let image_length = reader.u64("length")?;
    reader.u64("link-time address")?;
    let path_length = length(&mut reader)?;
    reader.bytes(path_length, "device path").map(|path| (image_length, device_path(path)))
}

/// `UEFI_GPT_DATA`: the disk and the names of its partitions.
pub(crate) fn parse_gpt(bytes: &[u8]) -> Result<(Guid, Vec<String>), EndOfBytes> {
    let mut reader = Reader::new(bytes);
    reader.bytes(56, "header")?;
    let disk = Guid(reader.array("disk GUID")?);
    reader.bytes(20, "header")?;
    let count = reader.u64("number of partitions")?.min(MAX_PARTITIONS);
    let partition = |_| {
        reader.bytes(56, "a partition")?;
        reader.bytes(72, "a partition's name").map(utf16)
    };
    (0..count).map(partition).collect::<Result<_, _>>().map(|partitions| (disk, partitions))
}

/// An EFI device path in words: the nodes that tell where the image came from.
fn device_path(bytes: &[u8]) -> String {
    let mut reader = Reader::new(bytes);
    let mut nodes = Vec::new();
    while nodes.len() < MAX_NODES {
        let (Ok(kind), Ok(sub), Ok(length)) = (reader.u8("type"), reader.u8("subtype"), reader.u16("length")) else { break };
        let Some(Ok(body)) = usize::from(length).checked_sub(4).map(|length| reader.bytes(length, "node")) else { break };
        match node(kind, sub, body) {
            Some(text) => nodes.push(text),
            None if kind == 0x7f => break,
            None => {}
        }
    }
    nodes.join("/")
}

fn node(kind: u8, sub: u8, body: &[u8]) -> Option<String> {
    let guid = || body.first_chunk::<16>().copied().map(Guid);
    match (kind, sub) {
        (1, 1) => body.first_chunk().map(|[function, device]| format!("Pci({device:x},{function:x})")),
        (4, 1) => body.first_chunk().copied().map(u32::from_le_bytes).map(|partition| format!("partition {partition}")),
        (4, 3) => guid().map(|guid| guid.meaning().map_or_else(|| format!("media {guid}"), str::to_owned)),
        (4, 4) => Some(utf16(body)),
        (4, 6 | 7) => guid().map(|guid| format!("firmware volume file {guid}")),
        _ => None,
    }
}

fn length(reader: &mut Reader<'_>) -> Result<usize, EndOfBytes> {
    let offset = reader.offset();
    let length = reader.u64("a length")?;
    usize::try_from(length).map_err(|_| EndOfBytes { offset, needed: usize::MAX, what: "a length" })
}

/// Text up to the first NUL; what is no UTF-16 becomes the replacement character, what is no printable character a dot.
pub(crate) fn utf16(bytes: &[u8]) -> String {
    let units = bytes.chunks_exact(2).map(|pair| pair.first_chunk().copied().map_or(0, u16::from_le_bytes)).take_while(|unit| *unit != 0);
    char::decode_utf16(units).map(|unit| printable(unit.unwrap_or(char::REPLACEMENT_CHARACTER))).collect()
}

/// Text up to the first NUL; bytes that are not printable ASCII become dots.
pub(crate) fn ascii(bytes: &[u8]) -> String {
    bytes.iter().take_while(|byte| **byte != 0).map(|byte| if byte.is_ascii() { printable(char::from(*byte)) } else { '.' }).collect()
}

/// Terminals get no control characters from a log.
fn printable(character: char) -> char {
    if character.is_control() { '.' } else { character }
}
