//! Boot files as small as their parsers allow.

/// Length of a [`kernel`]'s headers.
pub const HEADERS_LEN: usize = 0x400;
/// Where its PE header is.
pub const PE_AT: usize = 0x40;
/// Length of its only section.
pub const SECTION_LEN: usize = 0x1000;

/// What a kernel says of itself in its Linux boot header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BootHeader {
    /// Version of the boot protocol.
    pub protocol: u16,
    /// Capabilities.
    pub xload_flags: u16,
    /// Highest address of an initrd.
    pub initrd_max: u32,
}

impl BootHeader {
    /// A kernel of today: may be loaded above 4 GiB, knows five-level paging.
    pub const MODERN: Self = Self { protocol: 0x20f, xload_flags: 0x7f, initrd_max: 0x7fff_ffff };
}

/// A bzImage that is a PE32+ image as well: headers and one section.
///
/// # Panics
/// Never: the places are constants.
#[must_use]
pub fn kernel(header: BootHeader) -> Vec<u8> {
    let mut image = vec![0_u8; HEADERS_LEN + SECTION_LEN];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    let word = |value: usize| u32::try_from(value).unwrap().to_le_bytes();
    put(0, b"MZ");
    put(0x3c, &word(PE_AT));
    put(PE_AT, b"PE\0\0");
    put(PE_AT + 6, &[1, 0]);
    put(PE_AT + 20, &[240, 0]);
    put(PE_AT + 24, &[0x0b, 0x02]);
    put(PE_AT + 24 + 60, &word(HEADERS_LEN));
    put(PE_AT + 24 + 108, &word(16));
    let section = PE_AT + 24 + 240;
    put(section, b".text");
    put(section + 16, &word(SECTION_LEN));
    put(section + 20, &word(HEADERS_LEN));
    put(0x1f1, &[1]);
    put(0x202, b"HdrS");
    put(0x206, &header.protocol.to_le_bytes());
    put(0x211, &[1]);
    put(0x22c, &header.initrd_max.to_le_bytes());
    put(0x236, &header.xload_flags.to_le_bytes());
    put(HEADERS_LEN, &[0x90; 64]);
    image
}
