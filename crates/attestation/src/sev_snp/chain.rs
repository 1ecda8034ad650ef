//! The certificates from a chip's key to AMD's root.
//!
//! Certificates come in any order, from evidence and endorsements, and are untrusted. What is given is used: an intermediate certificate
//! or a root that does not fit is a refusal. What is not given comes from this crate, and is verified like the rest.

use x509_parser::{
    asn1_rs::{Oid, oid},
    certificate::X509Certificate,
    oid_registry::{
        OID_NIST_HASH_SHA384, OID_PKCS1_RSAENCRYPTION, OID_PKCS1_RSASSAPSS, OID_X509_EXT_BASIC_CONSTRAINTS, OID_X509_EXT_KEY_USAGE,
    },
    prelude::FromDer as _,
    signature_algorithm::RsaSsaPssParams,
    x509::{AlgorithmIdentifier, X509Name},
};

use super::{Product, SigningKey, SnpFields, key_certificate::KeyCertificate, signature};
use crate::{Anchor, Context, Fault, Link, Platform, Refusal, Vendor, parse_certificates};

/// 1.2.840.113549.1.1.8.
const MGF1: Oid<'static> = oid!(1.2.840.113549.1.1.8);
/// Most certificates that are looked at, and the largest of them.
const MAX_CERTIFICATES: usize = 32;
const MAX_CERTIFICATE_BYTES: usize = 16 << 10;

pub(super) fn refuse(link: Link, fault: Fault, detail: impl std::fmt::Display) -> Refusal {
    Refusal::new(Platform::SevSnp, link, fault, detail)
}

fn broken(fault: Fault, detail: impl std::fmt::Display) -> Refusal {
    refuse(Link::CertificateChain, fault, detail)
}

/// DER of every certificate given: each entry is one in DER, or any number of them in PEM.
pub(super) fn ders(given: &[Vec<u8>]) -> Result<Vec<Vec<u8>>, Refusal> {
    let mut ders = Vec::new();
    for entry in given {
        ders.extend(parse_certificates(entry).map_err(|error| broken(Fault::Malformed, error))?);
    }
    if ders.len() > MAX_CERTIFICATES || ders.iter().any(|der| der.len() > MAX_CERTIFICATE_BYTES) {
        let limits = format_args!("more than {MAX_CERTIFICATES} certificates, or one of more than {MAX_CERTIFICATE_BYTES} bytes");
        return Err(broken(Fault::Malformed, limits));
    }
    Ok(ders)
}

/// A chain that holds: every certificate signed by the next, the last one an anchor, all within their dates.
pub(super) struct VerifiedChain<'a> {
    pub(super) key: KeyCertificate<'a>,
    pub(super) intermediate: X509Certificate<'a>,
    pub(super) root: X509Certificate<'a>,
    pub(super) anchor: &'a Anchor,
    /// Unix seconds until which all of them are valid.
    pub(super) valid_until: u64,
}

/// Certificates by their place in the chain. Those of other vendors are left out.
#[derive(Default)]
struct Sorted<'a> {
    keys: Vec<X509Certificate<'a>>,
    intermediates: Vec<X509Certificate<'a>>,
    roots: Vec<X509Certificate<'a>>,
}

impl<'a> Sorted<'a> {
    fn new(ders: &'a [Vec<u8>], signing_key: SigningKey) -> Result<Self, Refusal> {
        let mut sorted = Self::default();
        for der in ders {
            let certificate = parse(der)?;
            let subject = common_name(certificate.subject()).unwrap_or_default();
            let issuer = common_name(certificate.issuer()).unwrap_or_default();
            if subject == key_name(signing_key) {
                sorted.keys.push(certificate);
            } else if subject == key_name(SigningKey::Vcek) || subject == key_name(SigningKey::Vlek) {
                // The chip's other key: of no use for this report.
            } else if subject.starts_with("SEV-") {
                sorted.intermediates.push(certificate);
            } else if subject.starts_with("ARK-") || issuer.starts_with("ARK-") {
                sorted.roots.push(certificate);
            }
        }
        Ok(sorted)
    }
}

fn key_name(key: SigningKey) -> &'static str {
    match key {
        SigningKey::Vcek => "SEV-VCEK",
        SigningKey::Vlek => "SEV-VLEK",
    }
}

fn parse(der: &[u8]) -> Result<X509Certificate<'_>, Refusal> {
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Ok(certificate),
        Ok((rest, _)) => Err(broken(Fault::Malformed, format_args!("{} bytes follow a certificate", rest.len()))),
        Err(error) => Err(broken(Fault::Malformed, format_args!("a certificate cannot be read: {error}"))),
    }
}

pub(super) fn common_name<'a>(name: &'a X509Name<'_>) -> Option<&'a str> {
    let mut names = name.iter_common_name();
    let first = names.next()?.as_str().ok()?;
    names.next().is_none().then_some(first)
}

/// Builds and verifies the chain of the key that signed a report with `fields`.
pub(super) fn verify<'a>(ders: &'a [Vec<u8>], fields: &SnpFields, context: &Context<'a>) -> Result<VerifiedChain<'a>, Refusal> {
    let sorted = Sorted::new(ders, fields.signing_key)?;
    let key = select_key(sorted.keys, fields)?;
    let (product, intermediate) = select_intermediate(&key.certificate, fields.signing_key, sorted.intermediates)?;
    let (anchor, root) = select_root(&intermediate, product, &sorted.roots, context)?;
    let ca = common_name(intermediate.subject()).unwrap_or_default().to_owned();
    check_authority(&root)?;
    check_authority(&intermediate)?;
    check_leaf(&key.certificate)?;
    let root_signed = check_signature(&intermediate, &root);
    root_signed.map_err(|refusal| Refusal { fault: Fault::OtherRoot, ..refusal })?;
    check_signature(&key.certificate, &intermediate)?;
    let mut valid_until = u64::MAX;
    for (name, certificate) in [(fields.signing_key.name(), &key.certificate), (&ca, &intermediate), ("AMD's root", &root)] {
        valid_until = valid_until.min(check_dates(name, certificate, context.now)?);
    }
    let key = key.of_product(product)?;
    Ok(VerifiedChain { key, intermediate, root, anchor, valid_until })
}

/// The certificate of the report's key. Of several the one that fits the report, else the first, whose fault is then reported.
fn select_key<'a>(candidates: Vec<X509Certificate<'a>>, fields: &SnpFields) -> Result<KeyCertificate<'a>, Refusal> {
    let mut first = None;
    for certificate in candidates {
        let parsed = KeyCertificate::parse(certificate);
        if parsed.as_ref().is_ok_and(|key| key.vouches_for(fields).is_ok()) {
            return parsed;
        }
        first.get_or_insert(parsed);
    }
    let name = fields.signing_key.name();
    first.unwrap_or_else(|| Err(broken(Fault::Missing, format_args!("no {name} certificate was given"))))
}

/// The issuer of the key: a given one, or without any the one that comes with this crate.
fn select_intermediate<'a>(
    key: &X509Certificate<'a>,
    kind: SigningKey,
    given: Vec<X509Certificate<'a>>,
) -> Result<(Product, X509Certificate<'a>), Refusal> {
    let issuer = common_name(key.issuer()).unwrap_or_default();
    let prefix = match kind {
        SigningKey::Vcek => "SEV-",
        SigningKey::Vlek => "SEV-VLEK-",
    };
    let product = issuer.strip_prefix(prefix).and_then(Product::from_name).filter(|product| issuer.ends_with(product.name()));
    let unknown = || broken(Fault::OtherRoot, format_args!("the {} is issued by {issuer:?}, which is no product's authority", kind.name()));
    let product = product.ok_or_else(unknown)?;
    if given.is_empty() {
        let der = match kind {
            SigningKey::Vcek => product.vcek_issuer(),
            SigningKey::Vlek => product.vlek_issuer(),
        };
        return Ok((product, parse(der)?));
    }
    let found = given.into_iter().find(|certificate| certificate.subject().as_raw() == key.issuer().as_raw());
    let missing =
        || broken(Fault::OtherRoot, format_args!("the {} is issued by {issuer}, which is not among the certificates given", kind.name()));
    Ok((product, found.ok_or_else(missing)?))
}

/// The anchor that issued `intermediate`. Roots that come with the evidence must be anchors, byte for byte, and the issuer among them.
fn select_root<'a>(
    intermediate: &X509Certificate<'a>,
    product: Product,
    given: &[X509Certificate<'a>],
    context: &Context<'a>,
) -> Result<(&'a Anchor, X509Certificate<'a>), Refusal> {
    let issuer = common_name(intermediate.issuer()).unwrap_or_default();
    if issuer.strip_prefix("ARK-") != Some(product.name()) {
        return Err(broken(Fault::OtherRoot, format_args!("the authority of {product} is issued by {issuer:?}")));
    }
    let mut anchors = Vec::new();
    for anchor in context.anchors.roots(Vendor::Amd) {
        anchors.push((anchor, parse(anchor.der())?));
    }
    if anchors.is_empty() {
        return Err(broken(Fault::Missing, "no root of AMD is trusted"));
    }
    let is_anchor = |given: &X509Certificate<'_>| anchors.iter().any(|(anchor, _)| anchor.der() == given.as_raw());
    if let Some(stranger) = given.iter().find(|given| !is_anchor(given)) {
        let name = common_name(stranger.subject()).unwrap_or_default();
        return Err(broken(Fault::OtherRoot, format_args!("{name:?} as given is not a trusted root")));
    }
    let is_issuer = |(anchor, root): &(&Anchor, X509Certificate<'_>)| {
        let is_given = given.is_empty() || given.iter().any(|given| anchor.der() == given.as_raw());
        is_given && root.subject().as_raw() == intermediate.issuer().as_raw()
    };
    let other = || broken(Fault::OtherRoot, format_args!("{issuer} is not a root that is given and trusted"));
    anchors.into_iter().find(is_issuer).ok_or_else(other)
}

fn check_authority(certificate: &X509Certificate<'_>) -> Result<(), Refusal> {
    let name = common_name(certificate.subject()).unwrap_or_default();
    let is_authority = matches!(certificate.basic_constraints(), Ok(Some(constraints)) if constraints.value.ca);
    let may_sign = matches!(certificate.key_usage(), Ok(Some(usage)) if usage.value.key_cert_sign());
    if !is_authority || !may_sign {
        return Err(broken(Fault::Invalid, format_args!("{name} may not issue certificates")));
    }
    if certificate.public_key().algorithm.algorithm != OID_PKCS1_RSAENCRYPTION {
        return Err(broken(Fault::Invalid, format_args!("the key of {name} is not RSA")));
    }
    check_extensions(certificate)
}

fn check_leaf(certificate: &X509Certificate<'_>) -> Result<(), Refusal> {
    if certificate.is_ca() {
        return Err(broken(Fault::Invalid, "the chip's key is an authority"));
    }
    check_extensions(certificate)
}

/// A critical extension that nobody here understands forbids the use of a certificate.
fn check_extensions(certificate: &X509Certificate<'_>) -> Result<(), Refusal> {
    let known = [OID_X509_EXT_BASIC_CONSTRAINTS, OID_X509_EXT_KEY_USAGE];
    match certificate.extensions().iter().find(|extension| extension.critical && !known.contains(&extension.oid)) {
        None => Ok(()),
        Some(extension) => Err(broken(Fault::Invalid, format_args!("unknown critical extension {}", extension.oid))),
    }
}

fn check_signature(certificate: &X509Certificate<'_>, issuer: &X509Certificate<'_>) -> Result<(), Refusal> {
    let name = common_name(certificate.subject()).unwrap_or_default();
    let issuer_name = common_name(issuer.subject()).unwrap_or_default();
    if certificate.signature_algorithm != certificate.tbs_certificate.signature {
        return Err(broken(Fault::Invalid, format_args!("{name} names two signature algorithms")));
    }
    verify_signed(&certificate.signature_algorithm, certificate.tbs_certificate.as_ref(), &certificate.signature_value.data, issuer)
        .map_err(|why| broken(Fault::Invalid, format_args!("{name} is not signed by {issuer_name}: {why}")))
}

/// Verifies `signature` of `issuer` over `message`.
pub(super) fn verify_signed(
    algorithm: &AlgorithmIdentifier<'_>,
    message: &[u8],
    signature: &[u8],
    issuer: &X509Certificate<'_>,
) -> Result<(), &'static str> {
    if !is_pss_sha384(algorithm) {
        return Err("the algorithm is not RSA-PSS with SHA-384 and a salt of 48 bytes");
    }
    let key = &issuer.public_key().subject_public_key.data;
    signature::verify_rsa_pss(key, message, signature).map_err(|_| "the signature is invalid")
}

fn is_pss_sha384(algorithm: &AlgorithmIdentifier<'_>) -> bool {
    let Some(Ok(parameters)) = algorithm.parameters.as_ref().map(RsaSsaPssParams::try_from) else { return false };
    algorithm.algorithm == OID_PKCS1_RSASSAPSS
        && *parameters.hash_algorithm_oid() == OID_NIST_HASH_SHA384
        && parameters.mask_gen_algorithm().is_ok_and(|mask| mask.mgf == MGF1 && mask.hash == OID_NIST_HASH_SHA384)
        && parameters.salt_length() == 48
        && parameters.trailer_field() == 1
}

/// End of the certificate's validity, which includes `now`.
fn check_dates(name: &str, certificate: &X509Certificate<'_>, now: u64) -> Result<u64, Refusal> {
    let validity = certificate.validity();
    let (start, end) = (validity.not_before, validity.not_after);
    if unix(start.timestamp()) > now {
        return Err(broken(Fault::NotYetValid, format_args!("{name} is valid from {start}")));
    }
    if unix(end.timestamp()) < now {
        return Err(broken(Fault::Expired, format_args!("{name} was valid until {end}")));
    }
    Ok(unix(end.timestamp()))
}

/// Seconds since 1970; earlier times are its beginning.
pub(super) fn unix(seconds: i64) -> u64 {
    u64::try_from(seconds).unwrap_or(0)
}
