//! dstack on Google's cloud: a TD whose boot is told by the TPM.
//!
//! The TPM quote and the TDX quote are of the same machine, as the TPM signs the TDX quote's hash. Firmware, image and application are read
//! from PCR 0, 2 and 14. What MRTD and RTMR0 to RTMR2 of the TDX quote say is not compared: Google's firmware is not public.

use dstack_event_log::{HashAlgorithm, PcrBank, RuntimeEvent};
use sha2::{Digest as _, Sha256};

use super::VerifiedTpmQuote;
use crate::Vendor;

/// PCR 0 of Google's firmware for TDs.
pub const GCP_FIRMWARE_PCR0: [u8; 32] = [
    0x0c, 0xca, 0x9e, 0xc1, 0x61, 0xb0, 0x92, 0x88, 0x80, 0x2e, 0x5a, 0x11, 0x22, 0x55, 0xd2, 0x13, 0x40, 0xed, 0x5b, 0x79, 0x7f, 0x5f,
    0xe2, 0x9c, 0xec, 0xcc, 0xfd, 0x8f, 0x67, 0xb9, 0xf8, 0x02,
];
const BANK: HashAlgorithm = HashAlgorithm::Sha256;
const FIRMWARE_PCR: u32 = 0;
const IMAGE_PCR: u32 = 2;
const RUNTIME_PCR: u32 = 14;
/// Position of the kernel image among the events of PCR 2.
const IMAGE_EVENT: usize = 2;

/// What a TPM quote must tell.
#[derive(Debug, Clone, Copy)]
pub struct GcpExpectation<'a> {
    /// The TDX quote, every byte as it came, padding included.
    pub tdx_quote: &'a [u8],
    /// Authenticode SHA-256 of the unified kernel image, from the measurement document of an image for Google's cloud.
    pub uki_authenticode: &'a [u8; 32],
    /// Runtime events, untrusted.
    pub runtime_events: &'a [RuntimeEvent],
}

/// Why a genuine quote does not describe the machine that was expected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GcpFault {
    /// The TPM of another cloud.
    #[error("the TPM is {vendor}'s")]
    OtherCloud {
        /// Whose.
        vendor: Vendor,
    },
    /// The TPM vouches for another TDX quote, or for none.
    #[error("the TPM quote is bound to {got}, the TDX quote hashes to {expected}")]
    OtherQuote {
        /// Hash of the TDX quote, hex.
        expected: String,
        /// Qualifying data, hex.
        got: String,
    },
    /// A register that is needed was not quoted.
    #[error("PCR {pcr} of the SHA-256 bank is not quoted")]
    NoRegister {
        /// Its number.
        pcr: u32,
    },
    /// Not Google's firmware for TDs.
    #[error("PCR 0 is {got}, which is not Google's firmware for TDs")]
    OtherFirmware {
        /// The register, hex.
        got: String,
    },
    /// The boot log does not show the image.
    #[error("the boot log has no third event of PCR 2, which measures the image")]
    NoImageEvent,
    /// Another image was booted.
    #[error("the booted image is {got}, the measurement document says {expected}")]
    OtherImage {
        /// By the document, hex.
        expected: String,
        /// By the log, hex.
        got: String,
    },
    /// The events are not those that were measured.
    #[error("the runtime events replay to PCR 14 {replayed}, {got} is quoted")]
    OtherEvents {
        /// By the events, hex.
        replayed: String,
        /// By the quote, hex.
        got: String,
    },
}

/// The registers of a machine on Google's cloud.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GcpBoot {
    firmware: Vec<u8>,
    image: Vec<u8>,
    runtime: Vec<u8>,
}

impl GcpBoot {
    /// `SHA-256(os_image_hash || SHA-256(key provider payload))`; 32 zero bytes for the last where there is none.
    ///
    /// `key_provider`: the measured payload; `None` for the boot-time form.
    #[must_use]
    pub fn mr_system(os_image_hash: &[u8; 32], key_provider: Option<&[u8]>) -> [u8; 32] {
        let provider: [u8; 32] = key_provider.map_or([0; 32], |payload| Sha256::digest(payload).into());
        Sha256::new().chain_update(os_image_hash).chain_update(provider).finalize().into()
    }

    /// `SHA-256(PCR0 || PCR2 || PCR14)`.
    #[must_use]
    pub fn mr_aggregated(&self) -> [u8; 32] {
        Sha256::new().chain_update(&self.firmware).chain_update(&self.image).chain_update(&self.runtime).finalize().into()
    }
}

/// Checks that the TPM vouches for the TDX quote, and that the machine runs Google's firmware, the image and the events expected.
///
/// # Errors
/// [`GcpFault`].
pub fn check_gcp(quote: &VerifiedTpmQuote, expected: &GcpExpectation<'_>) -> Result<GcpBoot, GcpFault> {
    check_quote(quote, expected.tdx_quote)?;
    let boot = registers(quote)?;
    check_firmware(quote)?;
    check_image(quote, expected.uki_authenticode)?;
    check_events(quote, expected.runtime_events)?;
    Ok(boot)
}

/// The registers that tell a dstack machine, whatever they are.
///
/// # Errors
/// [`GcpFault::NoRegister`].
pub fn registers(quote: &VerifiedTpmQuote) -> Result<GcpBoot, GcpFault> {
    let register = |pcr| register(quote, pcr).map(<[u8]>::to_vec);
    Ok(GcpBoot { firmware: register(FIRMWARE_PCR)?, image: register(IMAGE_PCR)?, runtime: register(RUNTIME_PCR)? })
}

/// Checks that Google's TPM vouches for the TDX quote.
///
/// `tdx_quote`: every byte as it came, padding included.
///
/// # Errors
/// [`GcpFault::OtherCloud`], [`GcpFault::OtherQuote`].
pub fn check_quote(quote: &VerifiedTpmQuote, tdx_quote: &[u8]) -> Result<(), GcpFault> {
    if quote.vendor() != Vendor::Google {
        return Err(GcpFault::OtherCloud { vendor: quote.vendor() });
    }
    let bound = Sha256::digest(tdx_quote);
    let got = &quote.quoted().qualifying_data;
    if bound.as_slice() != got.as_slice() {
        return Err(GcpFault::OtherQuote { expected: hex::encode(bound), got: hex::encode(got) });
    }
    Ok(())
}

/// Checks that the machine runs Google's firmware for TDs.
///
/// # Errors
/// [`GcpFault::NoRegister`], [`GcpFault::OtherFirmware`].
pub fn check_firmware(quote: &VerifiedTpmQuote) -> Result<(), GcpFault> {
    let firmware = register(quote, FIRMWARE_PCR)?;
    if firmware == GCP_FIRMWARE_PCR0 { Ok(()) } else { Err(GcpFault::OtherFirmware { got: hex::encode(firmware) }) }
}

/// Checks that the machine booted the unified kernel image with that Authenticode SHA-256.
///
/// # Errors
/// [`GcpFault::NoRegister`], [`GcpFault::NoImageEvent`], [`GcpFault::OtherImage`].
pub fn check_image(quote: &VerifiedTpmQuote, uki_authenticode: &[u8; 32]) -> Result<(), GcpFault> {
    register(quote, IMAGE_PCR)?;
    let image = quote.events(BANK, IMAGE_PCR).nth(IMAGE_EVENT).ok_or(GcpFault::NoImageEvent)?;
    if image == uki_authenticode {
        return Ok(());
    }
    Err(GcpFault::OtherImage { expected: hex::encode(uki_authenticode), got: hex::encode(image) })
}

/// Checks that `events` are the machine's runtime events.
///
/// # Errors
/// [`GcpFault::NoRegister`], [`GcpFault::OtherEvents`].
pub fn check_events(quote: &VerifiedTpmQuote, events: &[RuntimeEvent]) -> Result<(), GcpFault> {
    let runtime = register(quote, RUNTIME_PCR)?;
    let replayed = replay(events);
    if replayed == runtime {
        return Ok(());
    }
    Err(GcpFault::OtherEvents { replayed: hex::encode(replayed), got: hex::encode(runtime) })
}

fn register(quote: &VerifiedTpmQuote, pcr: u32) -> Result<&[u8], GcpFault> {
    quote.pcr(BANK, pcr).ok_or(GcpFault::NoRegister { pcr })
}

fn replay(events: &[RuntimeEvent]) -> Vec<u8> {
    let mut bank = PcrBank::new(BANK);
    for event in events {
        bank.extend(RUNTIME_PCR, event.digest_for(BANK).as_bytes()).unwrap_or_default();
    }
    bank.value(RUNTIME_PCR).map(|value| value.as_bytes().to_vec()).unwrap_or_default()
}
