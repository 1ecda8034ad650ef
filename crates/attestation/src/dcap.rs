//! The signature side of Intel's quotes: from the quote over quoting enclave and PCK certificate to Intel's root (`dcap-qvl`).

use dcap_qvl::{QuoteClaims, QuotePolicy, verify::QuoteVerifier};

use crate::{
    AnchorKind, Context, EnclaveFields, Fact, Fault, Link, NotChecked, Passed, PckChain, Platform, QuoteCollateral, QuoteError, Refusal,
    Register, TdFields, UnverifiedQuote, UnverifiedSgxQuote, Vendor, VerifiedPlatform, certificates::certificates_of_pem, crypto::Backend,
    platform::VerifiedTd, tcb_signer, tdx,
};

/// A quote of either kind, parsed.
pub(crate) enum Parsed<'a> {
    /// Version 4 or 5.
    Tdx(&'a UnverifiedQuote),
    /// Version 3.
    Sgx(&'a UnverifiedSgxQuote),
}

impl Parsed<'_> {
    const fn platform(&self) -> Platform {
        match self {
            Self::Tdx(_) => Platform::Tdx,
            Self::Sgx(_) => Platform::Sgx,
        }
    }

    /// Whether the chain inside the quote ends in the certificate `root`, which says nothing about anybody's signature.
    fn claims_root(&self, root: &[u8]) -> bool {
        self.pck_chain().is_ok_and(|chain| chain.last().is_some_and(|last| last == root))
    }

    fn pck_chain(&self) -> Result<PckChain, QuoteError> {
        match self {
            Self::Tdx(quote) => quote.pck_chain(),
            Self::Sgx(quote) => quote.pck_chain(),
        }
    }
}

/// A refusal of bytes that are not a quote.
pub(crate) fn malformed(platform: Platform, error: &QuoteError) -> Refusal {
    Refusal::new(platform, Link::Format, Fault::Malformed, error)
}

/// The collateral and the root to verify against.
pub(crate) fn select<'a>(platform: Platform, context: &Context<'a>) -> Result<(&'a QuoteCollateral, &'a crate::Anchor), Refusal> {
    let missing = |link, what| Refusal::new(platform, link, Fault::Missing, what);
    let collateral = context.endorsements.collateral.as_ref();
    let collateral = collateral.ok_or_else(|| missing(Link::Endorsements, "no collateral was given"))?;
    let issuers: Vec<_> = collateral.issuers().collect();
    let anchor = context.anchors.select(Vendor::Intel, |root| issuers.iter().any(|der| der.as_ref() == root));
    Ok((collateral, anchor.ok_or_else(|| missing(Link::CertificateChain, "no root of Intel is trusted"))?))
}

/// Verifies signatures, chains, revocation, dates and TCB matching of the quote `bytes`, which were parsed into `parsed`.
pub(crate) fn verify(parsed: &Parsed<'_>, bytes: &[u8], context: &Context<'_>) -> Result<VerifiedPlatform, Refusal> {
    let platform = parsed.platform();
    let (collateral, anchor) = select(platform, context)?;
    let verifier = QuoteVerifier::<Backend>::new_with_config(anchor.der().to_vec()).allow_debug(true).allow_service_td(true);
    let policy = QuotePolicy::claims_only(context.now);
    let claims = verifier.verify_with_policy(bytes, collateral.to_dcap(), context.now, &policy).map_err(|error| {
        let (link, fault) = match classify(&format!("{error:#}")) {
            // Nothing in the collateral is under this root: that says more than which structure failed first.
            (Link::CertificateChain | Link::Revocation | Link::Endorsements, Fault::Invalid | Fault::Malformed)
                if !collateral.names(anchor.der()) =>
            {
                (Link::CertificateChain, Fault::OtherRoot)
            }
            (Link::CertificateChain, Fault::Invalid) if !parsed.claims_root(anchor.der()) => (Link::CertificateChain, Fault::OtherRoot),
            known => known,
        };
        Refusal::new(platform, link, fault, format_args!("{error:#}"))
    })?;
    let pck_chain = || match &collateral.pck_certificate_chain {
        Some(pem) => certificates_of_pem(pem.as_bytes()).unwrap_or_default(),
        None => parsed.pck_chain().map(|chain| chain.to_vec()).unwrap_or_default(),
    };
    tcb_signer::check(collateral, pck_chain, anchor)
        .map_err(|(fault, detail)| Refusal::new(platform, Link::Endorsements, fault, detail))?;
    let mut verified = verified(parsed, claims, anchor.kind().clone());
    verified.endorsed_at = collateral.issued_at();
    Ok(verified)
}

fn verified(parsed: &Parsed<'_>, claims: QuoteClaims, anchor: AnchorKind) -> VerifiedPlatform {
    let mut platform = VerifiedPlatform::new(parsed.platform(), anchor);
    match parsed {
        Parsed::Tdx(quote) => {
            describe_td(&mut platform, quote);
            let (fmspc, tcb_status) = (claims.platform.pck.fmspc, claims.tcb.status);
            platform.td = Some(Box::new(VerifiedTd { fields: quote.fields().clone(), fmspc, tcb_status }));
        }
        Parsed::Sgx(quote) => describe_enclave(&mut platform, quote.fields()),
    }
    platform.facts.extend([
        Fact::new("fmspc", hex::encode(claims.platform.pck.fmspc)),
        Fact::new("tcb_date", &claims.platform.tcb_level.tcb_date),
        Fact::new("qe_tcb_status", claims.qe.tcb_level.tcb_status),
        Fact::new("pck_crl_number", claims.platform.pck_crl_num),
        Fact::new("root_crl_number", claims.platform.root_ca_crl_num),
    ]);
    platform.tcb_status = Some(claims.tcb.status);
    platform.advisory_ids = claims.tcb.advisory_ids;
    platform.tcb_evaluation_data_number = Some(claims.tcb.eval_data_number);
    platform.hardware_id = Some(claims.platform.pck.ppid);
    platform.valid_until = Some(claims.earliest_expiration_date);
    let root = platform.anchor.to_string();
    platform.passed.extend(
        [
            (Link::Endorsements, "TCB information and quoting enclave identity are signed and current".to_owned()),
            (Link::CertificateChain, root),
            (Link::Revocation, "neither PCK certificate nor its issuers are revoked".to_owned()),
            (Link::AttestationKey, "the quoting enclave is Intel's and vouches for the key".to_owned()),
            (Link::Signature, "the quote is signed by that key".to_owned()),
            (Link::Tcb, claims.tcb.status.to_string()),
        ]
        .map(|(link, found)| Passed { link, found }),
    );
    platform
}

fn describe_td(platform: &mut VerifiedPlatform, quote: &UnverifiedQuote) {
    let TdFields { mrtd, rtmr, mr_config_id, mr_owner, mr_owner_config, mr_seam, mr_signer_seam, .. } = quote.fields();
    let fields = quote.fields();
    platform.passed.push(Passed { link: Link::Format, found: format!("TDX quote version {}", quote.version()) });
    platform.report_data = fields.report_data.to_vec();
    platform.debug = Some(tdx::is_debug(fields));
    platform.registers.push(Register::new("mrtd", mrtd));
    let names = ["rtmr0", "rtmr1", "rtmr2", "rtmr3"];
    platform.registers.extend(names.into_iter().zip(&rtmr.0).map(|(name, value)| Register::new(name, value)));
    let others = [
        ("mr_config_id", mr_config_id),
        ("mr_owner", mr_owner),
        ("mr_owner_config", mr_owner_config),
        ("mr_seam", mr_seam),
        ("mr_signer_seam", mr_signer_seam),
    ];
    platform.registers.extend(others.into_iter().map(|(name, value)| Register::new(name, value)));
    platform.registers.extend(fields.mr_service_td.iter().map(|value| Register::new("mr_service_td", value)));
    platform.facts.extend([
        Fact::new("quote_version", quote.version()),
        Fact::new("td_attributes", hex::encode(fields.td_attributes)),
        Fact::new("xfam", hex::encode(fields.xfam)),
        Fact::new("seam_attributes", hex::encode(fields.seam_attributes)),
        Fact::new("tee_tcb_svn", hex::encode(fields.tee_tcb_svn)),
    ]);
    platform.facts.extend(fields.tee_tcb_svn2.iter().map(|svn| Fact::new("tee_tcb_svn2", hex::encode(svn))));
    platform.not_checked.push(NotChecked { link: Link::EventLog, why: "a quote alone carries no log".to_owned() });
}

fn describe_enclave(platform: &mut VerifiedPlatform, fields: &EnclaveFields) {
    /// Bit 1 of the attributes' first byte.
    const DEBUG: u8 = 2;
    let [flags, ..] = fields.attributes;
    platform.passed.push(Passed { link: Link::Format, found: "SGX quote version 3".to_owned() });
    platform.report_data = fields.report_data.to_vec();
    platform.debug = Some(flags & DEBUG != 0);
    platform.registers.extend([Register::new("mr_enclave", &fields.mr_enclave), Register::new("mr_signer", &fields.mr_signer)]);
    platform.facts.extend([
        Fact::new("quote_version", 3),
        Fact::new("isv_prod_id", fields.isv_prod_id),
        Fact::new("isv_svn", fields.isv_svn),
        Fact::new("cpu_svn", hex::encode(fields.cpu_svn)),
        Fact::new("attributes", hex::encode(fields.attributes)),
        Fact::new("misc_select", fields.misc_select),
    ]);
}

/// Which link a failure of the library belongs to, by its words. Its version is pinned, and tests hold the lines of this table.
///
/// The first line that fits decides: causes stand before the context they occur in.
const FAILURES: &[(&str, Link, Fault)] = &[
    ("root CA CRL: TrailingData", Link::Revocation, Fault::Malformed),
    ("CrlExpired", Link::Revocation, Fault::Expired),
    ("CertRevoked", Link::Revocation, Fault::Revoked),
    ("UnknownRevocationStatus", Link::Revocation, Fault::Missing),
    ("InvalidCrlSignature", Link::Revocation, Fault::Invalid),
    ("Crl", Link::Revocation, Fault::Malformed),
    ("CRL", Link::Revocation, Fault::Malformed),
    ("issue date is in the future", Link::Endorsements, Fault::NotYetValid),
    ("TCBInfo expired", Link::Endorsements, Fault::Expired),
    ("QE Identity expired", Link::Endorsements, Fault::Expired),
    ("CertExpired", Link::CertificateChain, Fault::Expired),
    ("CertNotValidYet", Link::CertificateChain, Fault::NotYetValid),
    ("UnknownIssuer", Link::CertificateChain, Fault::OtherRoot),
    ("Failed to decode TcbInfo", Link::Endorsements, Fault::Malformed),
    ("Failed to decode QeIdentity", Link::Endorsements, Fault::Malformed),
    ("TCB Info issue date", Link::Endorsements, Fault::Malformed),
    ("TCB Info next update", Link::Endorsements, Fault::Malformed),
    ("QE Identity issue date", Link::Endorsements, Fault::Malformed),
    ("QE Identity next update", Link::Endorsements, Fault::Malformed),
    ("too short for", Link::Endorsements, Fault::Missing),
    ("TCB Info leaf certificate", Link::Endorsements, Fault::Malformed),
    ("QE Identity leaf certificate", Link::Endorsements, Fault::Malformed),
    ("Signature is invalid for tcb_info", Link::Endorsements, Fault::Invalid),
    ("Signature is invalid for qe_identity", Link::Endorsements, Fault::Invalid),
    // Of a signature in the collateral; those of a quote have a fixed length.
    ("Invalid key length", Link::Endorsements, Fault::Malformed),
    ("Unsupported QE Identity id/version", Link::Endorsements, Fault::OtherPlatform),
    ("Fmspc mismatch", Link::Endorsements, Fault::OtherPlatform),
    ("quote with non-", Link::Endorsements, Fault::OtherPlatform),
    ("component count mismatch", Link::Endorsements, Fault::Malformed),
    ("Unrecognized TCB status", Link::Endorsements, Fault::Malformed),
    ("tdxModule", Link::Endorsements, Fault::Malformed),
    ("Unsupported DCAP PCK cert format", Link::CertificateChain, Fault::Missing),
    ("Failed to extract PCK certificates", Link::CertificateChain, Fault::Malformed),
    ("too short in quote", Link::CertificateChain, Fault::Missing),
    ("Failed to parse PCK certificate", Link::CertificateChain, Fault::Malformed),
    ("Failed to verify certificate chain", Link::CertificateChain, Fault::Invalid),
    ("Too many intermediate certificates", Link::CertificateChain, Fault::Malformed),
    ("Failed to load root ca", Link::CertificateChain, Fault::Malformed),
    ("Intel extension", Link::CertificateChain, Fault::Malformed),
    ("Signature is invalid for qe_report", Link::AttestationKey, Fault::Invalid),
    ("QE report hash mismatch", Link::AttestationKey, Fault::Invalid),
    ("QE auth data", Link::AttestationKey, Fault::Malformed),
    ("QE report validation failed", Link::AttestationKey, Fault::Module),
    ("QE MRSIGNER", Link::AttestationKey, Fault::Module),
    ("QE ISVPRODID", Link::AttestationKey, Fault::Module),
    ("QE MISCSELECT", Link::AttestationKey, Fault::Module),
    ("QE ATTRIBUTES", Link::AttestationKey, Fault::Module),
    ("QE ISVSVN", Link::AttestationKey, Fault::UnknownTcb),
    ("No TCB levels found in QE Identity", Link::AttestationKey, Fault::UnknownTcb),
    ("ISV enclave report signature is invalid", Link::Signature, Fault::Invalid),
    ("TCB status is invalid: Revoked", Link::Tcb, Fault::Revoked),
    ("No matching TCB level", Link::Tcb, Fault::UnknownTcb),
    ("below minimum required from TDX module", Link::Tcb, Fault::UnknownTcb),
    ("No TDX module identity", Link::Tcb, Fault::UnknownTcb),
    ("TDX module MRSIGNER mismatch", Link::Tcb, Fault::Module),
    ("SEAMATTRIBUTES", Link::Tcb, Fault::Module),
    ("Debug mode is enabled", Link::Attributes, Fault::Forbidden),
    ("TD profiling is enabled", Link::Attributes, Fault::Forbidden),
    ("Reserved bits in TD attributes", Link::Attributes, Fault::Forbidden),
    ("TD migration is enabled", Link::Attributes, Fault::Forbidden),
    ("SERVTD_EXT is enabled", Link::Attributes, Fault::Forbidden),
    ("SEPT_VE_DISABLE is not enabled", Link::Attributes, Fault::Forbidden),
    ("Invalid MR service TD", Link::Attributes, Fault::Forbidden),
    ("Failed to decode quote", Link::Format, Fault::Malformed),
    ("Unknown QE vendor ID", Link::Format, Fault::Malformed),
    ("Unsupported DCAP", Link::Format, Fault::NotImplemented),
    ("TEE quote must have version", Link::Format, Fault::NotImplemented),
];

/// A failure that no line names is one of the structures in between.
fn classify(text: &str) -> (Link, Fault) {
    let known = FAILURES.iter().find(|(part, ..)| text.contains(part));
    known.map_or((Link::CertificateChain, Fault::Malformed), |(_, link, fault)| (*link, *fault))
}
