//! The verification of a report, link by link.

use x509_parser::{certificate::X509Certificate, der_parser::oid};

use super::{evidence::GpuEvidence, opaque::FIRMWARE_ID, report::GpuReport};
use crate::{
    Context, Fact, Fault, Link, NotChecked, Passed, Platform, PlatformVerifier, Refusal, Register, Vendor, VerifiedPlatform,
    certificate_chain::{Path, VerifiedChain, common_name},
    public_key::{MessageHash, Signature},
};

/// The verifier of NVIDIA GPUs.
///
/// Evidence: report and chain of one GPU. Endorsements: certificates of the chain that the evidence lacks.
/// [`VerifiedPlatform::report_data`] is the nonce of the request.
#[derive(Debug, Clone, Copy, Default)]
pub struct NvidiaGpu;

/// A report that a genuine GPU made. Built only by [`NvidiaGpu::verify_report`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedReport {
    report: GpuReport,
    platform: VerifiedPlatform,
}

impl VerifiedReport {
    /// What it says.
    #[must_use]
    pub fn report(&self) -> &GpuReport {
        &self.report
    }

    /// The same in the form that all platforms have.
    #[must_use]
    pub fn platform(&self) -> &VerifiedPlatform {
        &self.platform
    }
}

impl From<VerifiedReport> for VerifiedPlatform {
    fn from(report: VerifiedReport) -> Self {
        report.platform
    }
}

impl PlatformVerifier for NvidiaGpu {
    type Evidence = GpuEvidence;

    fn platform(&self) -> Platform {
        Platform::NvidiaGpu
    }

    fn verify(&self, evidence: &GpuEvidence, context: &Context<'_>) -> Result<VerifiedPlatform, Refusal> {
        self.verify_report(evidence, context).map(VerifiedPlatform::from)
    }
}

fn refuse(link: Link, fault: Fault, detail: impl std::fmt::Display) -> Refusal {
    Refusal::new(Platform::NvidiaGpu, link, fault, detail)
}

impl NvidiaGpu {
    /// Verifies a report: structure, chain of its key up to an anchor with dates, that the key was made for the firmware in the report, and
    /// the signature.
    ///
    /// # Errors
    /// The first link that does not hold.
    pub fn verify_report(&self, evidence: &GpuEvidence, context: &Context<'_>) -> Result<VerifiedReport, Refusal> {
        let parsed = GpuReport::parse(&evidence.report);
        let (report, signed, signature) = parsed.map_err(|error| refuse(Link::Format, Fault::Malformed, error))?;
        let (leaf, chain) = evidence
            .certificates
            .split_first()
            .ok_or_else(|| refuse(Link::CertificateChain, Fault::Missing, "no certificate of the attestation key was given"))?;
        let given: Vec<&[u8]> = chain.iter().chain(&context.endorsements.certificates).map(Vec::as_slice).collect();
        let path = Path { platform: Platform::NvidiaGpu, vendors: &[Vendor::Nvidia], leaf, given: &given, context };
        let chain = path.verify()?;
        let firmware = check_firmware(&report, &chain.leaf)?;
        let verified = chain.key.verify(MessageHash::Sha384, signed, Signature::Fixed(signature));
        verified.map_err(|fault| refuse(Link::Signature, Fault::Invalid, fault))?;
        Ok(VerifiedReport { platform: describe(&report, &chain, firmware), report })
    }
}

/// The certificate of the key names the firmware that holds it; the report names the firmware that runs. `false`: one of them does not.
fn check_firmware(report: &GpuReport, leaf: &X509Certificate<'_>) -> Result<bool, Refusal> {
    let device_id = oid!(2.23.133.5.4.1);
    let running = report.opaque.iter().find(|field| field.kind == FIRMWARE_ID);
    let certified = leaf.extensions().iter().find(|extension| extension.oid == device_id);
    let (Some(running), Some(certified)) = (running, certified) else { return Ok(false) };
    if first_digest(certified.value) != Some(&running.value) {
        let firmware = hex::encode(&running.value);
        return Err(refuse(Link::AttestationKey, Fault::Invalid, format_args!("the key was not made for the running firmware {firmware}")));
    }
    Ok(true)
}

/// The first SHA-384 digest of a device id: the firmware's in the forms of Hopper (composite device id) and of Blackwell (DICE TCB info,
/// where a second digest of zeros follows).
fn first_digest(extension: &[u8]) -> Option<&[u8]> {
    // OBJECT IDENTIFIER sha384, OCTET STRING of 48 bytes.
    const HEAD: [u8; 13] = [0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x02, 0x04, 0x30];
    let at = extension.windows(HEAD.len()).position(|window| window == HEAD)?;
    extension.get(at + HEAD.len()..)?.get(..48)
}

fn describe(report: &GpuReport, chain: &VerifiedChain<'_>, firmware: bool) -> VerifiedPlatform {
    let mut verified = VerifiedPlatform::new(Platform::NvidiaGpu, chain.anchor.kind().clone());
    verified.report_data = report.nonce.to_vec();
    let register = |measurement: &super::Measurement| Register::new(format!("measurement{}", measurement.index), &measurement.value);
    verified.registers = report.measurements.iter().map(register).collect();
    let model = common_name(chain.leaf.issuer()).unwrap_or_default();
    verified.facts = vec![Fact::new("model", &model), Fact::new("ueid", chain.leaf.raw_serial_as_string().replace(':', ""))];
    verified.facts.extend(report.opaque.iter().filter_map(super::OpaqueField::as_fact).map(|(name, value)| Fact::new(name, value)));
    verified.hardware_id = Some(chain.leaf.raw_serial().to_vec());
    verified.valid_until = Some(chain.valid_until);
    let mut pass = |link, found: String| verified.passed.push(Passed { link, found });
    pass(Link::Format, format!("SPDM 1.1 report of {} measurements", report.measurements.len()));
    pass(Link::CertificateChain, format!("key of a {model}, {}", chain.anchor.kind()));
    if firmware {
        pass(Link::AttestationKey, "made for the firmware in the report".to_owned());
    }
    pass(Link::Signature, "ECDSA P-384 with SHA-384 by the GPU's key".to_owned());
    let mut miss = |link, why: &str| verified.not_checked.push(NotChecked { link, why: why.to_owned() });
    miss(Link::Endorsements, "the measurements were not compared with NVIDIA's reference values for driver and VBIOS");
    if !firmware {
        miss(Link::AttestationKey, "certificate or report does not name the GPU's firmware");
    }
    chain.revocation.describe(&mut verified);
    verified
}
