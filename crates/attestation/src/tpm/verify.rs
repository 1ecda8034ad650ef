//! The verification of a quote, link by link.

use dstack_event_log::{HashAlgorithm, PcrBank};

use super::{
    attest::Quoted,
    quote::{PcrEvent, PcrValue, TpmQuote},
    signature::QuoteSignature,
};
use crate::{
    Context, Fact, Fault, Link, NotChecked, Passed, Platform, PlatformVerifier, Refusal, Register, Vendor, VerifiedPlatform,
    certificate_chain::Path,
};

/// Issuers of attestation keys that senders leave out. They are verified like given ones.
const INTERMEDIATES: [&[u8]; 2] = [
    include_bytes!("../../intermediates/google-ek-ak-ca-intermediate.der"),
    include_bytes!("../../intermediates/azure-global-virtual-tpm-ca-03.der"),
];

/// The verifier of TPM quotes of Google's and Microsoft's clouds.
///
/// Evidence: a quote with its attestation key's certificate. Endorsements: issuers of that certificate, as far as this crate lacks
/// them. [`VerifiedPlatform::report_data`] is the qualifying data.
#[derive(Debug, Clone, Copy, Default)]
pub struct Tpm;

/// A quote that a cloud's TPM made, with the register values it signed. Built only by [`Tpm::verify_quote`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedTpmQuote {
    quoted: Quoted,
    pcrs: Vec<PcrValue>,
    events: Vec<PcrEvent>,
    vendor: Vendor,
    platform: VerifiedPlatform,
}

impl VerifiedTpmQuote {
    /// What was signed.
    #[must_use]
    pub fn quoted(&self) -> &Quoted {
        &self.quoted
    }

    /// Value of a register that was quoted.
    #[must_use]
    pub fn pcr(&self, algorithm: HashAlgorithm, pcr: u32) -> Option<&[u8]> {
        value_of(&self.pcrs, algorithm, pcr)
    }

    /// Digests that were extended into a quoted register, in order; nothing if the log has no entry for it.
    pub fn events(&self, algorithm: HashAlgorithm, pcr: u32) -> impl Iterator<Item = &[u8]> {
        let is_quoted = self.pcr(algorithm, pcr).is_some();
        let is_extended = move |event: &&PcrEvent| is_quoted && event.pcr == pcr && event.digest.len() == algorithm.digest_length();
        self.events.iter().filter(is_extended).map(|event| event.digest.as_slice())
    }

    /// Whose TPM it is.
    #[must_use]
    pub fn vendor(&self) -> Vendor {
        self.vendor
    }

    /// The same in the form that all platforms have.
    #[must_use]
    pub fn platform(&self) -> &VerifiedPlatform {
        &self.platform
    }
}

impl From<VerifiedTpmQuote> for VerifiedPlatform {
    fn from(quote: VerifiedTpmQuote) -> Self {
        quote.platform
    }
}

impl PlatformVerifier for Tpm {
    type Evidence = TpmQuote;

    fn platform(&self) -> Platform {
        Platform::Tpm
    }

    fn verify(&self, evidence: &TpmQuote, context: &Context<'_>) -> Result<VerifiedPlatform, Refusal> {
        self.verify_quote(evidence, context).map(VerifiedPlatform::from)
    }
}

fn refuse(link: Link, fault: Fault, detail: impl std::fmt::Display) -> Refusal {
    Refusal::new(Platform::Tpm, link, fault, detail)
}

impl Tpm {
    /// Verifies a quote: structure, chain of its key up to an anchor with dates, signature, register values, boot log.
    ///
    /// # Errors
    /// The first link that does not hold.
    pub fn verify_quote(&self, quote: &TpmQuote, context: &Context<'_>) -> Result<VerifiedTpmQuote, Refusal> {
        let malformed = |error| refuse(Link::Format, Fault::Malformed, error);
        let quoted = Quoted::parse(&quote.message).map_err(malformed)?;
        let signature = QuoteSignature::parse(&quote.signature).map_err(malformed)?;
        let given: Vec<&[u8]> = context.endorsements.certificates.iter().map(Vec::as_slice).chain(INTERMEDIATES).collect();
        let vendors = [Vendor::Google, Vendor::Microsoft];
        let path = Path { platform: Platform::Tpm, vendors: &vendors, leaf: &quote.certificate, given: &given, context };
        let chain = path.verify()?;
        signature.verify(&chain.key, &quote.message).map_err(|fault| refuse(Link::Signature, Fault::Invalid, fault))?;
        check_values(&quoted, &quote.pcrs, signature.hash())?;
        let replayed = check_events(&quote.pcrs, &quote.events)?;

        let vendor = chain.anchor.vendor();
        let mut verified = VerifiedPlatform::new(Platform::Tpm, chain.anchor.kind().clone());
        verified.report_data.clone_from(&quoted.qualifying_data);
        verified.registers = quote.pcrs.iter().map(|value| Register::new(register_name(value), &value.value)).collect();
        verified.facts = facts(&quoted, vendor, &chain.leaf.subject().to_string());
        verified.valid_until = Some(chain.valid_until);
        let scheme = signature.scheme();
        verified.passed = vec![
            Passed { link: Link::Format, found: format!("quote of {} registers", quote.pcrs.len()) },
            Passed { link: Link::CertificateChain, found: format!("attestation key of {vendor}'s TPM, {}", chain.anchor.kind()) },
            Passed { link: Link::Signature, found: format!("{scheme} with {} by the attestation key", signature.hash()) },
        ];
        let missing: Vec<String> =
            quote.pcrs.iter().filter(|value| !replayed.contains(&value.pcr)).map(|value| value.pcr.to_string()).collect();
        if !replayed.is_empty() {
            verified.passed.push(Passed { link: Link::EventLog, found: format!("the boot log gives PCR {}", list(&replayed)) });
        }
        if !missing.is_empty() {
            let why = format!("the boot log has no entry for PCR {}", missing.join(", "));
            verified.not_checked.push(NotChecked { link: Link::EventLog, why });
        }
        chain.revocation.describe(&mut verified);
        Ok(VerifiedTpmQuote { quoted, pcrs: quote.pcrs.clone(), events: quote.events.clone(), vendor, platform: verified })
    }
}

fn list(pcrs: &[u32]) -> String {
    pcrs.iter().map(u32::to_string).collect::<Vec<_>>().join(", ")
}

fn register_name(value: &PcrValue) -> String {
    match value.algorithm {
        HashAlgorithm::Sha256 => format!("pcr{}", value.pcr),
        other => format!("pcr{}_{}", value.pcr, other.to_string().to_lowercase().replace('-', "")),
    }
}

fn facts(quoted: &Quoted, vendor: Vendor, subject: &str) -> Vec<Fact> {
    vec![
        Fact::new("cloud", vendor),
        Fact::new("attestation_key", subject),
        Fact::new("qualified_signer", hex::encode(&quoted.qualified_signer)),
        Fact::new("clock_ms", quoted.clock_ms),
        Fact::new("reset_count", quoted.reset_count),
        Fact::new("restart_count", quoted.restart_count),
        Fact::new("clock_safe", quoted.is_clock_safe),
        Fact::new("firmware_version", format_args!("{:#x}", quoted.firmware_version)),
    ]
}

fn value_of(values: &[PcrValue], algorithm: HashAlgorithm, pcr: u32) -> Option<&[u8]> {
    values.iter().find(|value| value.algorithm == algorithm && value.pcr == pcr).map(|value| value.value.as_slice())
}

/// The values must be those of the selection, no more and no fewer, and hash to the signed digest.
fn check_values(quoted: &Quoted, values: &[PcrValue], hash: HashAlgorithm) -> Result<(), Refusal> {
    let invalid = |detail: String| refuse(Link::EventLog, Fault::Invalid, detail);
    let mut parts = Vec::new();
    for selection in &quoted.selections {
        for pcr in &selection.pcrs {
            let value = value_of(values, selection.algorithm, *pcr);
            parts.push(value.ok_or_else(|| refuse(Link::EventLog, Fault::Missing, format_args!("no value of quoted PCR {pcr} was sent")))?);
        }
    }
    if parts.len() != values.len() {
        return Err(invalid(format!("{} register values were sent, {} are quoted", values.len(), parts.len())));
    }
    let digest = hash.digest(&parts);
    if digest.as_bytes() != quoted.pcr_digest {
        return Err(invalid(format!("the register values hash to {digest}, {} is signed", hex::encode(&quoted.pcr_digest))));
    }
    Ok(())
}

/// Replays the log bank by bank. Returns the quoted registers that it has entries for; each of them must come out as quoted.
fn check_events(values: &[PcrValue], events: &[PcrEvent]) -> Result<Vec<u32>, Refusal> {
    let invalid = |detail: String| refuse(Link::EventLog, Fault::Invalid, detail);
    let mut replayed = Vec::new();
    let mut banks: Vec<HashAlgorithm> = values.iter().map(|value| value.algorithm).collect();
    banks.sort_unstable();
    banks.dedup();
    let is_of_a_bank = |event: &&PcrEvent| banks.iter().any(|bank| bank.digest_length() == event.digest.len());
    if let Some(event) = events.iter().find(|event| !is_of_a_bank(event)) {
        return Err(invalid(format!("the log has a digest of {} bytes, of no quoted bank", event.digest.len())));
    }
    for algorithm in banks {
        let mut bank = PcrBank::new(algorithm);
        for event in events.iter().filter(|event| event.digest.len() == algorithm.digest_length()) {
            bank.extend(event.pcr, &event.digest)
                .ok_or_else(|| invalid(format!("the log names PCR {}, which does not exist", event.pcr)))?;
        }
        for value in values.iter().filter(|value| value.algorithm == algorithm && bank.is_extended(value.pcr)) {
            let from_log = bank.value(value.pcr).map(AsRef::as_ref).unwrap_or_default();
            if from_log != value.value {
                let (pcr, got) = (value.pcr, hex::encode(&value.value));
                return Err(invalid(format!("the log replays to PCR {pcr} {}, {got} is quoted", hex::encode(from_log))));
            }
            replayed.push(value.pcr);
        }
    }
    Ok(replayed)
}
