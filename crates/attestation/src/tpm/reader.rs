//! Big-endian fields with bounds.

/// Why bytes are not what a TPM writes. Their sender is at fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TpmFormatError {
    /// A field goes beyond the end.
    #[error("{structure} ends inside {field}: {needed} bytes expected at byte {offset}")]
    Truncated {
        /// What is read.
        structure: &'static str,
        /// Name of the field.
        field: &'static str,
        /// Where it starts.
        offset: usize,
        /// Bytes it has.
        needed: usize,
    },
    /// Something follows.
    #[error("{length} bytes follow {structure}")]
    Trailing {
        /// What was read.
        structure: &'static str,
        /// How much follows.
        length: usize,
    },
    /// A field with a value that it cannot have here.
    #[error("{field} of {structure} is {got:#x}, expected {expected}")]
    Value {
        /// What is read.
        structure: &'static str,
        /// Name of the field.
        field: &'static str,
        /// Its value.
        got: u64,
        /// What it should be.
        expected: &'static str,
    },
    /// The envelope around the quote is broken.
    #[error("the quote is not of the envelope's form: {reason}")]
    Envelope {
        /// What the parser met.
        reason: String,
    },
}

pub(super) struct Reader<'a> {
    structure: &'static str,
    rest: &'a [u8],
    offset: usize,
}

impl<'a> Reader<'a> {
    pub(super) fn new(structure: &'static str, bytes: &'a [u8]) -> Self {
        Self { structure, rest: bytes, offset: 0 }
    }

    pub(super) fn bytes(&mut self, length: usize, field: &'static str) -> Result<&'a [u8], TpmFormatError> {
        let short = TpmFormatError::Truncated { structure: self.structure, field, offset: self.offset, needed: length };
        let (bytes, rest) = self.rest.split_at_checked(length).ok_or(short)?;
        self.rest = rest;
        self.offset += length;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], TpmFormatError> {
        let bytes = self.bytes(N, field)?;
        Ok(std::array::from_fn(|at| bytes.get(at).copied().unwrap_or_default()))
    }

    pub(super) fn u8(&mut self, field: &'static str) -> Result<u8, TpmFormatError> {
        self.array(field).map(u8::from_be_bytes)
    }

    pub(super) fn u16(&mut self, field: &'static str) -> Result<u16, TpmFormatError> {
        self.array(field).map(u16::from_be_bytes)
    }

    pub(super) fn u32(&mut self, field: &'static str) -> Result<u32, TpmFormatError> {
        self.array(field).map(u32::from_be_bytes)
    }

    pub(super) fn u64(&mut self, field: &'static str) -> Result<u64, TpmFormatError> {
        self.array(field).map(u64::from_be_bytes)
    }

    /// A `TPM2B`: 16 bits of length, then as many bytes.
    pub(super) fn sized(&mut self, field: &'static str) -> Result<&'a [u8], TpmFormatError> {
        let length = self.u16(field)?;
        self.bytes(length.into(), field)
    }

    pub(super) fn refuse(&self, field: &'static str, got: impl Into<u64>, expected: &'static str) -> TpmFormatError {
        TpmFormatError::Value { structure: self.structure, field, got: got.into(), expected }
    }

    pub(super) fn end(self) -> Result<(), TpmFormatError> {
        match self.rest.len() {
            0 => Ok(()),
            length => Err(TpmFormatError::Trailing { structure: self.structure, length }),
        }
    }
}
