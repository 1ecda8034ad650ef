//! The verification of a document, link by link.

use super::document::{DocumentKind, NitroDocument, UnverifiedDocument};
use crate::{
    Context, Fact, Fault, Link, Passed, Platform, PlatformVerifier, Refusal, Register, Vendor, VerifiedPlatform,
    certificate_chain::{Path, VerifiedChain},
};

/// The verifier of documents of Nitro Enclaves.
///
/// Evidence: one document. Endorsements: none are needed, the chain comes inside. [`VerifiedPlatform::report_data`] is the user data
/// where there is any, else the nonce; the facts have both.
#[derive(Debug, Clone, Copy, Default)]
pub struct NitroEnclave;

/// The verifier of documents of instances with a NitroTPM. Evidence and endorsements as for [`NitroEnclave`].
#[derive(Debug, Clone, Copy, Default)]
pub struct NitroTpm;

/// A document that AWS's hypervisor made. Built only by [`NitroEnclave::verify_document`] and [`NitroTpm::verify_document`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedDocument {
    document: NitroDocument,
    platform: VerifiedPlatform,
}

impl VerifiedDocument {
    /// What it says.
    #[must_use]
    pub fn document(&self) -> &NitroDocument {
        &self.document
    }

    /// The same in the form that all platforms have.
    #[must_use]
    pub fn platform(&self) -> &VerifiedPlatform {
        &self.platform
    }
}

impl From<VerifiedDocument> for VerifiedPlatform {
    fn from(document: VerifiedDocument) -> Self {
        document.platform
    }
}

impl PlatformVerifier for NitroEnclave {
    type Evidence = [u8];

    fn platform(&self) -> Platform {
        Platform::NitroEnclave
    }

    fn verify(&self, evidence: &[u8], context: &Context<'_>) -> Result<VerifiedPlatform, Refusal> {
        self.verify_document(evidence, context).map(VerifiedPlatform::from)
    }
}

impl NitroEnclave {
    /// Verifies a document of an enclave: structure, chain of its key up to an anchor with dates, signature.
    ///
    /// # Errors
    /// The first link that does not hold.
    pub fn verify_document(&self, document: &[u8], context: &Context<'_>) -> Result<VerifiedDocument, Refusal> {
        verify(document, DocumentKind::Enclave, context)
    }
}

impl PlatformVerifier for NitroTpm {
    type Evidence = [u8];

    fn platform(&self) -> Platform {
        Platform::NitroTpm
    }

    fn verify(&self, evidence: &[u8], context: &Context<'_>) -> Result<VerifiedPlatform, Refusal> {
        self.verify_document(evidence, context).map(VerifiedPlatform::from)
    }
}

impl NitroTpm {
    /// Verifies a document of an instance: structure, chain of its key up to an anchor with dates, signature.
    ///
    /// # Errors
    /// The first link that does not hold.
    pub fn verify_document(&self, document: &[u8], context: &Context<'_>) -> Result<VerifiedDocument, Refusal> {
        verify(document, DocumentKind::NitroTpm, context)
    }
}

fn verify(bytes: &[u8], expected: DocumentKind, context: &Context<'_>) -> Result<VerifiedDocument, Refusal> {
    let platform = match expected {
        DocumentKind::Enclave => Platform::NitroEnclave,
        DocumentKind::NitroTpm => Platform::NitroTpm,
    };
    let malformed = |detail: &dyn std::fmt::Display| Refusal::new(platform, Link::Format, Fault::Malformed, detail);
    let unverified = UnverifiedDocument::parse(bytes).map_err(|error| malformed(&error))?;
    let document = unverified.document();
    if document.kind != expected {
        let found = if document.kind == DocumentKind::Enclave { "an enclave" } else { "a NitroTPM" };
        return Err(malformed(&format_args!("the document is of {found}")));
    }
    let given: Vec<&[u8]> = document.cabundle.iter().map(Vec::as_slice).collect();
    let path = Path { platform, vendors: &[Vendor::Aws], leaf: &document.certificate, given: &given, context };
    let chain = path.verify()?;
    let invalid = |error| Refusal::new(platform, Link::Signature, Fault::Invalid, error);
    unverified.sign1.verify(&chain.key).map_err(invalid)?;
    let verified = describe(platform, document, &chain, unverified.sign1.algorithm());
    Ok(VerifiedDocument { platform: verified, document: unverified.into_document() })
}

fn describe(platform: Platform, document: &NitroDocument, chain: &VerifiedChain<'_>, algorithm: &str) -> VerifiedPlatform {
    let mut verified = VerifiedPlatform::new(platform, chain.anchor.kind().clone());
    let filled = |field: &Option<Vec<u8>>| field.clone().filter(|bytes| !bytes.is_empty());
    verified.report_data = filled(&document.user_data).or_else(|| filled(&document.nonce)).unwrap_or_default();
    verified.registers = document.pcrs.iter().map(|(index, value)| Register::new(format!("pcr{index}"), value)).collect();
    verified.facts = vec![
        Fact::new("module_id", &document.module_id),
        Fact::new("instance_id", document.instance_id()),
        Fact::new("timestamp_ms", document.timestamp_ms),
    ];
    for (name, value) in [("public_key", &document.public_key), ("user_data", &document.user_data), ("nonce", &document.nonce)] {
        verified.facts.extend(value.as_ref().map(|value| Fact::new(name, hex::encode(value))));
    }
    verified.hardware_id = Some(document.instance_id().as_bytes().to_vec());
    verified.debug = (document.kind == DocumentKind::Enclave).then(|| document.is_debug());
    verified.issued_at = Some(document.timestamp_ms / 1000);
    verified.valid_until = Some(chain.valid_until);
    let kind = if document.kind == DocumentKind::Enclave { "enclave" } else { "NitroTPM" };
    verified.passed = vec![
        Passed { link: Link::Format, found: format!("document of {kind} {}", document.module_id) },
        Passed { link: Link::CertificateChain, found: format!("{} certificates below {}", chain.intermediates + 1, chain.anchor.kind()) },
        Passed { link: Link::Signature, found: format!("{algorithm} by the key of {}", chain.leaf.subject()) },
    ];
    chain.revocation.describe(&mut verified);
    verified
}
