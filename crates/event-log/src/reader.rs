//! Little-endian fields of untrusted bytes.

/// Where the bytes ended, and inside what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct EndOfBytes {
    pub(crate) offset: usize,
    pub(crate) needed: usize,
    pub(crate) what: &'static str,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
    offset: usize,
}

impl<'a> Reader<'a> {
    pub(crate) const fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes, offset: 0 }
    }

    /// Bytes read so far.
    pub(crate) const fn offset(&self) -> usize {
        self.offset
    }

    pub(crate) const fn rest(&self) -> &'a [u8] {
        self.rest
    }

    pub(crate) fn bytes(&mut self, length: usize, what: &'static str) -> Result<&'a [u8], EndOfBytes> {
        let (taken, rest) = self.rest.split_at_checked(length).ok_or(EndOfBytes { offset: self.offset, needed: length, what })?;
        self.rest = rest;
        self.offset += length;
        Ok(taken)
    }

    pub(crate) fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], EndOfBytes> {
        let (taken, rest) = self.rest.split_first_chunk::<N>().ok_or(EndOfBytes { offset: self.offset, needed: N, what })?;
        self.rest = rest;
        self.offset += N;
        Ok(*taken)
    }

    pub(crate) fn u8(&mut self, what: &'static str) -> Result<u8, EndOfBytes> {
        self.array(what).map(u8::from_le_bytes)
    }

    pub(crate) fn u16(&mut self, what: &'static str) -> Result<u16, EndOfBytes> {
        self.array(what).map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self, what: &'static str) -> Result<u32, EndOfBytes> {
        self.array(what).map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self, what: &'static str) -> Result<u64, EndOfBytes> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// Bytes after a 32-bit length.
    pub(crate) fn sized(&mut self, what: &'static str) -> Result<&'a [u8], EndOfBytes> {
        let length = self.u32(what)?;
        let length = usize::try_from(length).map_err(|_| EndOfBytes { offset: self.offset, needed: usize::MAX, what })?;
        self.bytes(length, what)
    }
}
