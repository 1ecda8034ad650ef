//! What an event's payload says, typed and in words.
//!
//! For a few event types the digest covers the payload; for the others the payload is only a remark of the firmware.
//! [`Event::payload_is_measured`] tells which. Nothing here may decide a verdict.

use std::fmt;

use sha2::{Digest as _, Sha384};

use crate::{
    event::Event,
    event_type as ev,
    reader::Reader,
    uefi::{self, Guid},
};

/// Characters of a text that are shown.
const LONGEST_TEXT: usize = 512;
/// Characters that make a text in front of binary data a name.
const SHORTEST_NAME: usize = 4;
/// Prefixes that GRUB writes before what it measured.
const GRUB_PREFIXES: [&[u8]; 3] = [b"grub_cmd: ", b"kernel_cmdline: ", b"module_cmdline: "];

/// What an event's payload says: untrusted.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Content {
    /// End of the firmware's part of a register.
    Separator {
        /// The firmware met an error; the payload is then not zero.
        error: bool,
    },
    /// A step of the boot, in the firmware's words.
    Action(String),
    /// A UEFI variable.
    Variable {
        /// Namespace of the name.
        vendor: Guid,
        /// Name, such as `SecureBoot`.
        name: String,
        /// Bytes of the value.
        length: usize,
        /// The value in words, for boot options and their order.
        meaning: Option<String>,
    },
    /// A part of the firmware.
    Firmware {
        /// Its name, empty in the older form.
        name: String,
        /// Guest physical address.
        base: u64,
        /// Bytes.
        length: u64,
    },
    /// Tables that the VMM or the firmware handed over; in a TD the first are the TD HOB.
    HandoffTables {
        /// Their name, empty in the older form.
        name: String,
        /// GUID of each table.
        tables: Vec<Guid>,
    },
    /// An image that was loaded: boot loader, kernel, driver.
    Image {
        /// Bytes in memory.
        length: u64,
        /// Device path, the nodes that name a file, partition or device.
        path: String,
    },
    /// The partition table of the boot disk.
    PartitionTable {
        /// GUID of the disk.
        disk: Guid,
        /// Names of its partitions.
        partitions: Vec<String>,
    },
    /// A tagged event, such as those of the Linux EFI stub.
    Tagged {
        /// The tag.
        tag: u32,
        /// Its text.
        text: String,
    },
    /// Anything with a text: boot loader commands, command lines, `ACPI DATA`, names of QEMU's files.
    Text(String),
    /// An event that the guest measured itself.
    Runtime {
        /// Name.
        name: String,
        /// Payload: text where it is one, else hex.
        payload: String,
    },
    /// Nothing that can be told.
    Opaque {
        /// Bytes of the payload.
        length: usize,
    },
}

impl Content {
    /// Decodes the payload of an event of `event_type`; what does not parse is a text or opaque.
    #[must_use]
    pub fn parse(event_type: u32, payload: &[u8]) -> Self {
        parse_structure(event_type, payload).or_else(|| text(payload).map(Self::Text)).unwrap_or(Self::Opaque { length: payload.len() })
    }
}

fn parse_structure(event_type: u32, payload: &[u8]) -> Option<Content> {
    let mut reader = Reader::new(payload);
    match event_type {
        ev::EV_SEPARATOR => payload
            .first_chunk()
            .filter(|_| payload.len() == 4)
            .map(|value| Content::Separator { error: !matches!(value, [0, 0, 0, 0] | [0xff, 0xff, 0xff, 0xff]) }),
        ev::EV_ACTION | ev::EV_EFI_ACTION => text(payload).map(Content::Action),
        ev::EV_EFI_VARIABLE_DRIVER_CONFIG | ev::EV_EFI_VARIABLE_BOOT | ev::EV_EFI_VARIABLE_BOOT2 | ev::EV_EFI_VARIABLE_AUTHORITY => {
            variable(payload)
        }
        ev::EV_EFI_BOOT_SERVICES_APPLICATION | ev::EV_EFI_BOOT_SERVICES_DRIVER | ev::EV_EFI_RUNTIME_SERVICES_DRIVER => {
            uefi::parse_image_load(payload).ok().map(|(length, path)| Content::Image { length, path })
        }
        ev::EV_EFI_GPT_EVENT | ev::EV_EFI_GPT_EVENT2 => {
            uefi::parse_gpt(payload).ok().map(|(disk, partitions)| Content::PartitionTable { disk, partitions })
        }
        ev::EV_EFI_PLATFORM_FIRMWARE_BLOB => {
            uefi::parse_blob(&mut reader).ok().map(|(base, length)| Content::Firmware { name: String::new(), base, length })
        }
        ev::EV_EFI_PLATFORM_FIRMWARE_BLOB2 => {
            let name = uefi::parse_short_text(&mut reader).ok()?;
            uefi::parse_blob(&mut reader).ok().map(|(base, length)| Content::Firmware { name, base, length })
        }
        ev::EV_EFI_HANDOFF_TABLES => {
            uefi::parse_tables(&mut reader).ok().map(|tables| Content::HandoffTables { name: String::new(), tables })
        }
        ev::EV_EFI_HANDOFF_TABLES2 => {
            let name = uefi::parse_short_text(&mut reader).ok()?;
            uefi::parse_tables(&mut reader).ok().map(|tables| Content::HandoffTables { name, tables })
        }
        ev::EV_EVENT_TAG => {
            let tag = reader.u32("tag").ok()?;
            let text = reader.sized("text").ok().filter(|_| reader.rest().is_empty()).and_then(text)?;
            Some(Content::Tagged { tag, text })
        }
        _ => None,
    }
}

fn variable(payload: &[u8]) -> Option<Content> {
    let variable = uefi::parse_variable(payload).ok()?;
    let is_option = variable.name.len() == 8
        && variable.name.starts_with("Boot")
        && variable.name.bytes().skip(4).all(|digit| digit.is_ascii_hexdigit());
    let meaning = match variable.name.as_str() {
        "BootOrder" => Some(boot_order(variable.data)),
        "SecureBoot" => Some(if variable.data == [1] { "on" } else { "off" }.to_owned()),
        _ if is_option => uefi::parse_load_option_title(variable.data),
        _ => None,
    };
    Some(Content::Variable { vendor: variable.vendor, name: variable.name, length: variable.data.len(), meaning })
}

fn boot_order(data: &[u8]) -> String {
    let options = data.chunks_exact(2).filter_map(|option| option.first_chunk().copied().map(u16::from_le_bytes));
    let mut text = options.take(LONGEST_TEXT / 6).map(|option| format!("{option:04X}, ")).collect::<String>();
    text.truncate(text.len().saturating_sub(2));
    text
}

/// The text of a payload: ASCII or UTF-16, several strings separated by NULs joined with a blank; `None` if it is no text.
fn text(payload: &[u8]) -> Option<String> {
    let is_wide = matches!(payload, [first, 0, second, ..] if *first != 0 && *second != 0) && payload.len().is_multiple_of(2);
    let text = if is_wide { uefi::utf16(payload) } else { strings(payload)? };
    let text: String = text.chars().take(LONGEST_TEXT).collect();
    (!text.is_empty()).then_some(text)
}

fn strings(payload: &[u8]) -> Option<String> {
    let is_text = |bytes: &[u8]| bytes.iter().all(|byte| matches!(byte, b'\t' | b'\n' | b'\r' | 0x20..=0x7e));
    let mut parts = payload.split(|byte| *byte == 0).filter(|part| !part.is_empty());
    if parts.clone().all(is_text) {
        return Some(parts.take(LONGEST_TEXT).map(uefi::ascii).collect::<Vec<_>>().join(" "));
    }
    // A name in front of binary data.
    parts.next().filter(|name| payload.starts_with(name) && name.len() >= SHORTEST_NAME && is_text(name)).map(uefi::ascii)
}

impl fmt::Display for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Separator { error: false } => f.write_str("separator"),
            Self::Separator { error: true } => f.write_str("separator of a firmware that met an error"),
            Self::Action(text) | Self::Text(text) => write!(f, "\"{text}\""),
            Self::Variable { vendor, name, length, meaning } => {
                write!(f, "UEFI variable {name}")?;
                if vendor.meaning().is_none() {
                    write!(f, " of {vendor}")?;
                }
                match meaning {
                    Some(meaning) => write!(f, ": {meaning}"),
                    None => write!(f, ", {length} bytes"),
                }
            }
            Self::Firmware { name, base, length } => write!(f, "firmware {name} ({length} bytes at {base:#x})"),
            Self::HandoffTables { name, tables } => {
                write!(f, "tables handed over {name}")?;
                tables.iter().filter_map(Guid::meaning).try_for_each(|meaning| write!(f, ", {meaning}"))
            }
            Self::Image { length, path } if path.is_empty() => write!(f, "image of a place unknown ({length} bytes in memory)"),
            Self::Image { length, path } => write!(f, "image {path} ({length} bytes in memory)"),
            Self::PartitionTable { disk, partitions } => {
                write!(f, "partition table of disk {disk}, {} partitions", partitions.len())?;
                let named: Vec<&str> = partitions.iter().map(String::as_str).filter(|name| !name.is_empty()).collect();
                if named.is_empty() { Ok(()) } else { write!(f, ": {}", named.join(", ")) }
            }
            Self::Tagged { text, .. } if text == "LOADED_IMAGE::LoadOptions" => f.write_str("kernel command line"),
            Self::Tagged { text, .. } if text == "Linux initrd" => f.write_str("initrd"),
            Self::Tagged { tag, text } => write!(f, "\"{text}\" (tag {tag:#010x})"),
            Self::Runtime { name, payload } if payload.is_empty() => write!(f, "{name}"),
            Self::Runtime { name, payload } => write!(f, "{name} = {payload}"),
            Self::Opaque { length: 0 } => f.write_str("no payload in the log"),
            Self::Opaque { length } => write!(f, "{length} bytes"),
        }
    }
}

impl Event {
    /// What the payload says, untrusted. An application's text may pose as anything; only its place and type tell who wrote it.
    #[must_use]
    pub fn content(&self) -> Content {
        if self.as_runtime().is_none() {
            return Content::parse(self.event_type, &self.event_payload);
        }
        let is_text = self.event_payload.iter().all(|byte| matches!(byte, 0x20..=0x7e));
        let payload = if is_text { uefi::ascii(&self.event_payload) } else { hex::encode(&self.event_payload) };
        let shown = |text: &str| text.chars().take(LONGEST_TEXT).map(|c| if c.is_control() { '.' } else { c }).collect();
        Content::Runtime { name: shown(&self.event), payload: shown(&payload) }
    }

    /// Whether the digest covers the payload, so that a register that agrees proves it.
    ///
    /// Tried are the forms in use: the payload itself, the value of a UEFI variable, and the text that GRUB measures without its
    /// prefix and end.
    #[must_use]
    pub fn payload_is_measured(&self) -> bool {
        if self.as_runtime().is_some() {
            return self.checked_digest(0).is_ok();
        }
        let payload = self.event_payload.as_slice();
        let is = |bytes: &[u8]| self.digest == Sha384::digest(bytes).as_slice();
        let value = || uefi::parse_variable(payload).is_ok_and(|variable| is(variable.data));
        let line = payload.strip_suffix(&[0]).unwrap_or(payload);
        let measured_line = || GRUB_PREFIXES.iter().filter_map(|prefix| line.strip_prefix(*prefix)).any(is);
        match self.event_type {
            ev::EV_EFI_VARIABLE_BOOT | ev::EV_EFI_VARIABLE_BOOT2 => value() || is(payload),
            ev::EV_IPL => is(payload) || is(line) || measured_line(),
            _ => is(payload),
        }
    }
}
