//! The attestation report: 1184 bytes, of which the first 672 are signed.

#![deny(clippy::indexing_slicing)]

use super::TcbVersion;

/// Length of a report of any version.
pub(super) const REPORT_LEN: usize = 0x4a0;
const SIGNED_LEN: usize = 0x2a0;
/// Versions whose every byte is known. Later ones only add to the reserved bytes.
const NEWEST_KNOWN_VERSION: u32 = 5;
const OLDEST_VERSION: u32 = 2;
const ECDSA_P384_SHA384: u32 = 1;

/// Why bytes are not a report.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReportError {
    /// Too short or too long.
    #[error("a report has {REPORT_LEN} bytes, got {got}")]
    Length {
        /// The length.
        got: usize,
    },
    /// A version that does not exist, or an early one without a public layout.
    #[error("report version {version} is not supported, only {OLDEST_VERSION} and later")]
    Version {
        /// The number.
        version: u32,
    },
    /// Signed with something else than ECDSA P-384 with SHA-384.
    #[error("report names signature algorithm {got}, not {ECDSA_P384_SHA384}")]
    SignatureAlgorithm {
        /// The number.
        got: u32,
    },
    /// Signed with no key, or with one of no known kind.
    #[error("report names signing key {got}, not 0 (VCEK) or 1 (VLEK)")]
    SigningKey {
        /// The number; 7 means that the report is not signed.
        got: u32,
    },
    /// A byte that must be zero is not.
    #[error("reserved bytes of the report at offset {offset:#x} are not zero")]
    Reserved {
        /// Where the reserved bytes start.
        offset: usize,
    },
}

/// Which of the chip's keys signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SigningKey {
    /// Versioned chip endorsement key: one per chip and TCB version.
    Vcek,
    /// Versioned loaded endorsement key: one per cloud provider's region and TCB version.
    Vlek,
}

impl SigningKey {
    /// `VCEK` or `VLEK`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Vcek => "VCEK",
            Self::Vlek => "VLEK",
        }
    }
}

/// What the guest's owner demanded at launch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GuestPolicy(pub u64);

impl GuestPolicy {
    const KNOWN: u64 = 0x03ff_ffff;

    const fn bit(self, bit: u32) -> bool {
        self.0 >> bit & 1 == 1
    }

    /// Oldest firmware ABI it may run on: major, minor.
    #[must_use]
    pub const fn abi_version(self) -> (u8, u8) {
        let [minor, major, ..] = self.0.to_le_bytes();
        (major, minor)
    }

    /// Sibling threads may be enabled.
    #[must_use]
    pub const fn allows_smt(self) -> bool {
        self.bit(16)
    }

    /// A migration agent may be bound: it can move the guest, and so has power over it.
    #[must_use]
    pub const fn allows_migration_agent(self) -> bool {
        self.bit(18)
    }

    /// The host may read and write the guest.
    #[must_use]
    pub const fn allows_debug(self) -> bool {
        self.bit(19)
    }

    /// Only one socket may be used.
    #[must_use]
    pub const fn requires_single_socket(self) -> bool {
        self.bit(20)
    }

    /// CXL devices and memory may be used.
    #[must_use]
    pub const fn allows_cxl(self) -> bool {
        self.bit(21)
    }

    /// Memory must be encrypted with AES-256 in XTS mode.
    #[must_use]
    pub const fn requires_aes_256_xts(self) -> bool {
        self.bit(22)
    }

    /// Power measurement must be off.
    #[must_use]
    pub const fn requires_rapl_disabled(self) -> bool {
        self.bit(23)
    }

    /// The host must not see ciphertext.
    #[must_use]
    pub const fn requires_ciphertext_hiding(self) -> bool {
        self.bit(24)
    }

    /// The host may not move pages.
    #[must_use]
    pub const fn disables_page_swap(self) -> bool {
        self.bit(25)
    }

    /// Bits whose meaning is not known here.
    #[must_use]
    pub const fn unknown_bits(self) -> u64 {
        self.0 & !Self::KNOWN
    }
}

/// State of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlatformInfo(pub u64);

impl PlatformInfo {
    const fn bit(self, bit: u32) -> bool {
        self.0 >> bit & 1 == 1
    }

    /// Sibling threads are enabled.
    #[must_use]
    pub const fn smt(self) -> bool {
        self.bit(0)
    }

    /// All memory is encrypted, guests or not.
    #[must_use]
    pub const fn tsme(self) -> bool {
        self.bit(1)
    }

    /// Memory has error correction.
    #[must_use]
    pub const fn ecc(self) -> bool {
        self.bit(2)
    }

    /// Power measurement is off.
    #[must_use]
    pub const fn rapl_disabled(self) -> bool {
        self.bit(3)
    }

    /// The host does not see ciphertext.
    #[must_use]
    pub const fn ciphertext_hiding(self) -> bool {
        self.bit(4)
    }

    /// Memory was checked for addresses that mean the same cells (CVE-2024-21944).
    #[must_use]
    pub const fn alias_check_complete(self) -> bool {
        self.bit(5)
    }

    /// Trusted I/O is enabled.
    #[must_use]
    pub const fn trusted_io(self) -> bool {
        self.bit(7)
    }
}

/// What a report says. Trust: as much as the report itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnpFields {
    /// Version of the layout.
    pub version: u32,
    /// Security version of the guest, by its owner's ID block.
    pub guest_svn: u32,
    /// Launch policy.
    pub policy: GuestPolicy,
    /// Family of the guest, by its ID block.
    pub family_id: [u8; 16],
    /// Image of the guest, by its ID block.
    pub image_id: [u8; 16],
    /// Privilege level that asked for the report; 0 is the highest.
    pub vmpl: u32,
    /// TCB that runs.
    pub current_tcb: TcbVersion,
    /// State of the machine.
    pub platform_info: PlatformInfo,
    /// The author key's digest is meant.
    pub author_key_enabled: bool,
    /// The chip's key is masked.
    pub chip_key_masked: bool,
    /// Which key signed.
    pub signing_key: SigningKey,
    /// What the requester put in.
    pub report_data: [u8; 64],
    /// Launch digest.
    pub measurement: [u8; 48],
    /// What the host put in at launch.
    pub host_data: [u8; 32],
    /// Digest of the key that signed the ID block; zero without one.
    pub id_key_digest: [u8; 48],
    /// Digest of the key that signed the ID key; zero without one.
    pub author_key_digest: [u8; 48],
    /// Identity of this guest for its lifetime.
    pub report_id: [u8; 32],
    /// Identity of its migration agent; all ones without one.
    pub report_id_ma: [u8; 32],
    /// TCB whose key signed.
    pub reported_tcb: TcbVersion,
    /// Family, model and stepping of the CPU; from version 3 on.
    pub cpuid: Option<[u8; 3]>,
    /// The chip; zero where the host masks it.
    pub chip_id: [u8; 64],
    /// TCB below which the machine cannot go back.
    pub committed_tcb: TcbVersion,
    /// Firmware that runs: major, minor, build.
    pub current_version: [u8; 3],
    /// Firmware below which the machine cannot go back: major, minor, build.
    pub committed_version: [u8; 3],
    /// TCB at launch of the guest.
    pub launch_tcb: TcbVersion,
    /// Mitigations at launch and now; from version 5 on.
    pub mitigations: Option<[u64; 2]>,
}

impl SnpFields {
    /// The layout is of a later version than this code knows: what stands in bytes that were reserved is not looked at.
    #[must_use]
    pub fn is_newer_than_known(&self) -> bool {
        self.version > NEWEST_KNOWN_VERSION
    }

    /// The host masks the chip's identity.
    #[must_use]
    pub fn is_chip_masked(&self) -> bool {
        self.chip_id == [0; 64]
    }

    /// Running, committed, launch and reported TCB are one.
    #[must_use]
    pub fn is_tcb_settled(&self) -> bool {
        [self.committed_tcb, self.launch_tcb, self.reported_tcb] == [self.current_tcb; 3]
    }
}

/// A report whose signature nobody has checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnverifiedReport {
    fields: SnpFields,
    signed: Vec<u8>,
    r: [u8; 48],
    s: [u8; 48],
}

impl UnverifiedReport {
    /// Reads a report of version 2 or later. `bytes`: exactly the report, untrusted.
    ///
    /// # Errors
    /// [`ReportError`]. Up to version 5 every reserved byte must be zero.
    pub fn parse(bytes: &[u8]) -> Result<Self, ReportError> {
        if bytes.len() != REPORT_LEN {
            return Err(ReportError::Length { got: bytes.len() });
        }
        let mut reader = Reader { rest: bytes, offset: 0, strict: true };
        let fields = parse_fields(&mut reader)?;
        reader.reserved(SIGNED_LEN.saturating_sub(reader.offset))?;
        // The signature has its own layout, which does not change with the version.
        reader.strict = true;
        let r = reader.number()?;
        let s = reader.number()?;
        reader.reserved(reader.rest.len())?;
        Ok(Self { fields, signed: bytes.get(..SIGNED_LEN).unwrap_or_default().to_vec(), r, s })
    }

    /// What the report says.
    #[must_use]
    pub fn fields(&self) -> &SnpFields {
        &self.fields
    }

    /// The bytes under the signature.
    pub(super) fn signed(&self) -> &[u8] {
        &self.signed
    }

    /// `r` and `s`, big-endian.
    pub(super) fn signature(&self) -> (&[u8; 48], &[u8; 48]) {
        (&self.r, &self.s)
    }
}

/// Reads from the front. The length was checked before: an end that comes early is an [`ReportError::Length`].
struct Reader<'a> {
    rest: &'a [u8],
    offset: usize,
    /// Reserved bytes must be zero.
    strict: bool,
}

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], ReportError> {
        let (head, rest) = self.rest.split_first_chunk().ok_or(ReportError::Length { got: self.offset + self.rest.len() })?;
        self.rest = rest;
        self.offset += N;
        Ok(*head)
    }

    fn u32(&mut self) -> Result<u32, ReportError> {
        self.take().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, ReportError> {
        self.take().map(u64::from_le_bytes)
    }

    fn tcb(&mut self) -> Result<TcbVersion, ReportError> {
        self.take().map(TcbVersion)
    }

    fn reserved(&mut self, len: usize) -> Result<(), ReportError> {
        let offset = self.offset;
        let (skipped, rest) = self.rest.split_at_checked(len).ok_or(ReportError::Length { got: offset + self.rest.len() })?;
        if self.strict && skipped.iter().any(|byte| *byte != 0) {
            return Err(ReportError::Reserved { offset });
        }
        self.rest = rest;
        self.offset += len;
        Ok(())
    }

    /// Build, minor and major version of the firmware, and a reserved byte.
    fn firmware_version(&mut self) -> Result<[u8; 3], ReportError> {
        let [build, minor, major] = self.take()?;
        self.reserved(1)?;
        Ok([major, minor, build])
    }

    /// 72 little-endian bytes of a number of 48.
    fn number(&mut self) -> Result<[u8; 48], ReportError> {
        let mut number: [u8; 48] = self.take()?;
        self.reserved(24)?;
        number.reverse();
        Ok(number)
    }
}

fn parse_fields(reader: &mut Reader<'_>) -> Result<SnpFields, ReportError> {
    let version = reader.u32()?;
    if version < OLDEST_VERSION {
        return Err(ReportError::Version { version });
    }
    reader.strict = version <= NEWEST_KNOWN_VERSION;
    let guest_svn = reader.u32()?;
    let policy = GuestPolicy(reader.u64()?);
    let family_id = reader.take()?;
    let image_id = reader.take()?;
    let vmpl = reader.u32()?;
    let algorithm = reader.u32()?;
    if algorithm != ECDSA_P384_SHA384 {
        return Err(ReportError::SignatureAlgorithm { got: algorithm });
    }
    let current_tcb = reader.tcb()?;
    let platform_info = PlatformInfo(reader.u64()?);
    let flags_at = reader.offset;
    let flags = reader.u32()?;
    if reader.strict && flags >> 5 != 0 {
        return Err(ReportError::Reserved { offset: flags_at });
    }
    let signing_key = match flags >> 2 & 7 {
        0 => SigningKey::Vcek,
        1 => SigningKey::Vlek,
        got => return Err(ReportError::SigningKey { got }),
    };
    reader.reserved(4)?;
    Ok(SnpFields {
        version,
        guest_svn,
        policy,
        family_id,
        image_id,
        vmpl,
        current_tcb,
        platform_info,
        author_key_enabled: flags & 1 != 0,
        chip_key_masked: flags & 2 != 0,
        signing_key,
        report_data: reader.take()?,
        measurement: reader.take()?,
        host_data: reader.take()?,
        id_key_digest: reader.take()?,
        author_key_digest: reader.take()?,
        report_id: reader.take()?,
        report_id_ma: reader.take()?,
        reported_tcb: reader.tcb()?,
        cpuid: cpuid(reader, version)?,
        chip_id: reader.take()?,
        committed_tcb: reader.tcb()?,
        current_version: reader.firmware_version()?,
        committed_version: reader.firmware_version()?,
        launch_tcb: reader.tcb()?,
        mitigations: if version >= 5 { Some([reader.u64()?, reader.u64()?]) } else { None },
    })
}

fn cpuid(reader: &mut Reader<'_>, version: u32) -> Result<Option<[u8; 3]>, ReportError> {
    if version < 3 {
        return reader.reserved(24).map(|()| None);
    }
    let cpuid = reader.take()?;
    reader.reserved(21)?;
    Ok(Some(cpuid))
}
