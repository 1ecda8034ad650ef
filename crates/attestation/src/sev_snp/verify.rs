//! The verification of a report, link by link.

use super::{
    Product, SigningKey, SnpFields, UnverifiedReport,
    chain::{self, VerifiedChain, refuse},
    revocation::{self, Consulted},
    signature,
};
use crate::{Context, Fact, Fault, Link, NotChecked, Passed, Platform, PlatformVerifier, Refusal, Register, TcbStatus, VerifiedPlatform};

/// The verifier of SEV-SNP reports.
///
/// Evidence: one report of 1184 bytes. Endorsements: the VCEK or VLEK (needed); its authority, AMD's root and revocation lists as
/// far as they are at hand. Report data and everything the guest's owner may demand are left to the caller.
#[derive(Debug, Clone, Copy, Default)]
pub struct SevSnp;

/// A report that AMD's chip made. Built only by [`SevSnp::verify_report`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedReport {
    fields: SnpFields,
    product: Product,
    provider: Option<String>,
    platform: VerifiedPlatform,
}

impl VerifiedReport {
    /// What the report says.
    #[must_use]
    pub fn fields(&self) -> &SnpFields {
        &self.fields
    }

    /// Product line, by the key's certificate.
    #[must_use]
    pub fn product(&self) -> Product {
        self.product
    }

    /// Cloud provider that a VLEK was loaded for.
    #[must_use]
    pub fn provider(&self) -> Option<&str> {
        self.provider.as_deref()
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

impl PlatformVerifier for SevSnp {
    type Evidence = [u8];

    fn platform(&self) -> Platform {
        Platform::SevSnp
    }

    fn verify(&self, evidence: &[u8], context: &Context<'_>) -> Result<VerifiedPlatform, Refusal> {
        self.verify_report(evidence, context).map(VerifiedPlatform::from)
    }
}

impl SevSnp {
    /// Verifies a report: structure, chain of its key up to an anchor, dates, revocation if there is a list, that the key is of the CPU,
    /// chip and TCB the report names, and its signature.
    ///
    /// # Errors
    /// The first link that does not hold.
    pub fn verify_report(&self, report: &[u8], context: &Context<'_>) -> Result<VerifiedReport, Refusal> {
        let report = UnverifiedReport::parse(report).map_err(|error| refuse(Link::Format, Fault::Malformed, error))?;
        let fields = report.fields();
        let ders = chain::ders(&context.endorsements.certificates)?;
        let chain = chain::verify(&ders, fields, context)?;
        let consulted = revocation::check(&context.endorsements.revocation_lists, &chain, context.now)?;
        chain.key.vouches_for(fields)?;
        let (r, s) = report.signature();
        signature::verify_ecdsa_p384(chain.key.public_key(), report.signed(), r, s).map_err(|_| {
            refuse(Link::Signature, Fault::Invalid, format_args!("the {} did not sign this report", fields.signing_key.name()))
        })?;
        Ok(VerifiedReport {
            product: chain.key.product,
            provider: chain.key.provider.clone(),
            platform: describe(fields, &chain, consulted.as_ref()),
            fields: fields.clone(),
        })
    }
}

fn describe(fields: &SnpFields, chain: &VerifiedChain<'_>, consulted: Option<&Consulted>) -> VerifiedPlatform {
    let product = chain.key.product;
    let mut verified = VerifiedPlatform::new(Platform::SevSnp, chain.anchor.kind().clone());
    verified.report_data = fields.report_data.to_vec();
    verified.registers = vec![
        Register::new("measurement", &fields.measurement),
        Register::new("host_data", &fields.host_data),
        Register::new("id_key_digest", &fields.id_key_digest),
        Register::new("author_key_digest", &fields.author_key_digest),
    ];
    verified.facts = facts(fields, chain);
    let status = if fields.is_tcb_settled() { TcbStatus::UpToDate } else { TcbStatus::OutOfDate };
    verified.tcb_status = Some(status);
    verified.hardware_id = (!fields.is_chip_masked()).then(|| fields.chip_id.to_vec());
    verified.debug = Some(fields.policy.allows_debug());
    verified.endorsed_at = consulted.map(|list| list.issued_at);
    verified.valid_until = Some(consulted.map_or(chain.valid_until, |list| list.valid_until.min(chain.valid_until)));
    let key = fields.signing_key.name();
    let mut pass = |link, found: String| verified.passed.push(Passed { link, found });
    pass(Link::Format, format!("SEV-SNP report version {}", fields.version));
    pass(Link::CertificateChain, format!("{key} of {product}, {}", chain.anchor.kind()));
    if consulted.is_some() {
        pass(Link::Revocation, format!("the authority of {product} is not revoked"));
    }
    pass(Link::AttestationKey, attestation_key(fields, chain));
    pass(Link::Signature, format!("signed by the {key}"));
    pass(
        Link::Tcb,
        if fields.is_tcb_settled() { "running, committed, launch and reported TCB are one" } else { "the TCB versions differ" }.to_owned(),
    );
    if consulted.is_none() {
        verified.not_checked.push(NotChecked { link: Link::Revocation, why: format!("no revocation list of ARK-{product} was given") });
    }
    verified
}

fn attestation_key(fields: &SnpFields, chain: &VerifiedChain<'_>) -> String {
    let tcb = chain.key.tcb;
    match (fields.signing_key, &chain.key.provider) {
        (SigningKey::Vlek, Some(provider)) => format!("loaded for {provider}; {tcb}"),
        _ => format!("of the chip in the report; {tcb}"),
    }
}

/// Stable names: policies refer to them.
fn facts(fields: &SnpFields, chain: &VerifiedChain<'_>) -> Vec<Fact> {
    let (policy, info, product) = (fields.policy, fields.platform_info, chain.key.product);
    let (abi_major, abi_minor) = policy.abi_version();
    let version = |[major, minor, build]: [u8; 3]| format!("{major}.{minor}.{build}");
    let mut facts = vec![
        Fact::new("product", product),
        Fact::new("report_version", fields.version),
        Fact::new("signing_key", fields.signing_key.name().to_lowercase()),
        Fact::new("vmpl", fields.vmpl),
        Fact::new("guest_svn", fields.guest_svn),
        Fact::new("family_id", hex::encode(fields.family_id)),
        Fact::new("image_id", hex::encode(fields.image_id)),
        Fact::new("author_key_enabled", fields.author_key_enabled),
        Fact::new("policy", format_args!("{:#x}", policy.0)),
        Fact::new("policy_abi", format_args!("{abi_major}.{abi_minor}")),
        Fact::new("policy_smt", policy.allows_smt()),
        Fact::new("policy_migration_agent", policy.allows_migration_agent()),
        Fact::new("policy_debug", policy.allows_debug()),
        Fact::new("policy_single_socket", policy.requires_single_socket()),
        Fact::new("policy_cxl", policy.allows_cxl()),
        Fact::new("policy_aes_256_xts", policy.requires_aes_256_xts()),
        Fact::new("policy_rapl_disabled", policy.requires_rapl_disabled()),
        Fact::new("policy_ciphertext_hiding", policy.requires_ciphertext_hiding()),
        Fact::new("policy_page_swap_disabled", policy.disables_page_swap()),
        Fact::new("policy_unknown_bits", format_args!("{:#x}", policy.unknown_bits())),
        Fact::new("platform_info", format_args!("{:#x}", info.0)),
        Fact::new("platform_smt", info.smt()),
        Fact::new("platform_tsme", info.tsme()),
        Fact::new("platform_ecc", info.ecc()),
        Fact::new("platform_rapl_disabled", info.rapl_disabled()),
        Fact::new("platform_ciphertext_hiding", info.ciphertext_hiding()),
        Fact::new("platform_alias_check_complete", info.alias_check_complete()),
        Fact::new("platform_trusted_io", info.trusted_io()),
        Fact::new("current_tcb", fields.current_tcb),
        Fact::new("reported_tcb", fields.reported_tcb),
        Fact::new("committed_tcb", fields.committed_tcb),
        Fact::new("launch_tcb", fields.launch_tcb),
        Fact::new("reported_tcb_components", fields.reported_tcb.components(product)),
        Fact::new("firmware_version", version(fields.current_version)),
        Fact::new("committed_firmware_version", version(fields.committed_version)),
        Fact::new("report_id", hex::encode(fields.report_id)),
        Fact::new("report_id_ma", hex::encode(fields.report_id_ma)),
    ];
    if let Some([family, model, stepping]) = fields.cpuid {
        facts.push(Fact::new("cpu", format_args!("family {family:#x} model {model:#x} stepping {stepping:#x}")));
    }
    if let Some([launch, current]) = fields.mitigations {
        facts.push(Fact::new("launch_mitigations", format_args!("{launch:#x}")));
        facts.push(Fact::new("current_mitigations", format_args!("{current:#x}")));
    }
    if let Some(provider) = &chain.key.provider {
        facts.push(Fact::new("cloud_provider", provider));
    }
    facts
}
