//! The verification of a token, link by link.

use sha2::{Digest as _, Sha256, Sha384, Sha512};
use x509_parser::{certificate::X509Certificate, prelude::FromDer as _, x509::SubjectPublicKeyInfo};

use super::{
    claims::{PlatformClaims, RealmClaims},
    token::UnverifiedToken,
};
use crate::{
    Anchor, Context, Fact, Fault, Link, NotChecked, Passed, Platform, PlatformVerifier, Refusal, Register, Vendor, VerifiedPlatform,
    cbor::{self, Map, bytes_of, unsigned},
    public_key::PublicKey,
};

/// Key type of COSE for elliptic curves with two coordinates.
const EC2: u64 = 2;

/// The verifier of realms' tokens.
///
/// Evidence: one token. The roots of [`Vendor::Arm`] are the trusted chips' keys (CPAK): each a public key in DER
/// (`SubjectPublicKeyInfo`), or a certificate of it. [`VerifiedPlatform::report_data`] is the realm's challenge.
#[derive(Debug, Clone, Copy, Default)]
pub struct ArmCca;

/// A token that a trusted chip made. Built only by [`ArmCca::verify_token`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedToken {
    platform_claims: PlatformClaims,
    realm_claims: RealmClaims,
    platform: VerifiedPlatform,
}

impl VerifiedToken {
    /// What the chip says about itself.
    #[must_use]
    pub fn platform_claims(&self) -> &PlatformClaims {
        &self.platform_claims
    }

    /// What is said of the realm.
    #[must_use]
    pub fn realm_claims(&self) -> &RealmClaims {
        &self.realm_claims
    }

    /// The same in the form that all platforms have.
    #[must_use]
    pub fn platform(&self) -> &VerifiedPlatform {
        &self.platform
    }
}

impl From<VerifiedToken> for VerifiedPlatform {
    fn from(token: VerifiedToken) -> Self {
        token.platform
    }
}

impl PlatformVerifier for ArmCca {
    type Evidence = [u8];

    fn platform(&self) -> Platform {
        Platform::ArmCca
    }

    fn verify(&self, evidence: &[u8], context: &Context<'_>) -> Result<VerifiedPlatform, Refusal> {
        self.verify_token(evidence, context).map(VerifiedPlatform::from)
    }
}

fn refuse(link: Link, fault: Fault, detail: impl std::fmt::Display) -> Refusal {
    Refusal::new(Platform::ArmCca, link, fault, detail)
}

impl ArmCca {
    /// Verifies a token: structure, the platform's signature by a trusted chip, that the platform vouches for the realm's key, and the
    /// realm's signature.
    ///
    /// # Errors
    /// The first link that does not hold.
    pub fn verify_token(&self, token: &[u8], context: &Context<'_>) -> Result<VerifiedToken, Refusal> {
        let token = UnverifiedToken::parse(token).map_err(|error| refuse(Link::Format, Fault::Malformed, error))?;
        let anchor = find_chip(&token, context)?;
        let realm_key = realm_key(&token.realm_claims.public_key)?;
        check_binding(&token.platform_claims, &token.realm_claims)?;
        let realm = token.realm.verify(&realm_key);
        realm.map_err(|fault| refuse(Link::Signature, Fault::Invalid, format_args!("realm token: {fault}")))?;
        let platform = describe(&token, anchor);
        Ok(VerifiedToken { platform, platform_claims: token.platform_claims, realm_claims: token.realm_claims })
    }
}

/// The trusted chip that signed the platform token.
fn find_chip<'a>(token: &UnverifiedToken, context: &Context<'a>) -> Result<&'a Anchor, Refusal> {
    let mut refusal = refuse(Link::CertificateChain, Fault::OtherRoot, "no chip's key (CPAK) is trusted");
    for anchor in context.anchors.roots(Vendor::Arm) {
        match chip_key(anchor.der(), context.now).map(|key| token.platform.verify(&key)) {
            Ok(Ok(())) => return Ok(anchor),
            Ok(Err(fault)) => {
                refusal = refuse(Link::Signature, Fault::Invalid, format_args!("platform token, by every trusted chip's key: {fault}"));
            }
            Err(unusable) => refusal = unusable,
        }
    }
    Err(refusal)
}

/// `der`: a public key, or a certificate that must be within its dates.
fn chip_key(der: &[u8], now: u64) -> Result<PublicKey, Refusal> {
    let unusable = |fault, detail: &str| refuse(Link::CertificateChain, fault, detail);
    let of = |spki: &SubjectPublicKeyInfo<'_>| {
        PublicKey::from_spki(spki).ok_or_else(|| unusable(Fault::NotImplemented, "the chip's key is of another kind"))
    };
    if let Ok(([], spki)) = SubjectPublicKeyInfo::from_der(der) {
        return of(&spki);
    }
    let Ok(([], certificate)) = X509Certificate::from_der(der) else {
        return Err(unusable(Fault::Malformed, "the chip's key is neither a public key nor a certificate"));
    };
    let validity = certificate.validity();
    let unix = |seconds: i64| u64::try_from(seconds).unwrap_or(0);
    if unix(validity.not_before.timestamp()) > now {
        return Err(unusable(Fault::NotYetValid, "the certificate of the chip's key"));
    }
    if unix(validity.not_after.timestamp()) < now {
        return Err(unusable(Fault::Expired, "the certificate of the chip's key"));
    }
    of(certificate.public_key())
}

/// The realm's key: a point, or a COSE_Key as newer tokens have it.
fn realm_key(claim: &[u8]) -> Result<PublicKey, Refusal> {
    let unusable =
        |detail: &dyn std::fmt::Display| refuse(Link::AttestationKey, Fault::Malformed, format_args!("the realm's key: {detail}"));
    let point = if claim.first() == Some(&4) { claim.to_vec() } else { point_of_cose_key(claim).map_err(|error| unusable(&error))? };
    let key = PublicKey::from_point(&point);
    key.ok_or_else(|| unusable(&"not a point of P-256 or P-384"))
}

fn point_of_cose_key(bytes: &[u8]) -> Result<Vec<u8>, crate::CborError> {
    let mut map = Map::new(cbor::parse(bytes)?)?;
    map.need(1, "kty", "2, an elliptic curve", |value| unsigned(value).filter(|kind| *kind == EC2))?;
    let curve = map.need(-1, "crv", "1 or 2, P-256 or P-384", |value| unsigned(value).filter(|curve| [1, 2].contains(curve)))?;
    let length = if curve == 1 { 32 } else { 48 };
    let x = map.need(-2, "x", "as long as the curve", bytes_of(length..=length))?;
    let y = map.need(-3, "y", "as long as the curve", bytes_of(length..=length))?;
    Ok([vec![4], x, y].concat())
}

/// The platform's challenge must be the hash of the realm's key.
fn check_binding(platform: &PlatformClaims, realm: &RealmClaims) -> Result<(), Refusal> {
    let key = &realm.public_key;
    let expected = match realm.public_key_hash_algorithm.as_str() {
        "sha-256" => Sha256::digest(key).to_vec(),
        "sha-384" => Sha384::digest(key).to_vec(),
        "sha-512" => Sha512::digest(key).to_vec(),
        other => {
            return Err(refuse(Link::AttestationKey, Fault::NotImplemented, format_args!("hash algorithm {other} of the realm's key")));
        }
    };
    if platform.challenge == expected {
        return Ok(());
    }
    let (expected, got) = (hex::encode(expected), hex::encode(&platform.challenge));
    Err(refuse(Link::AttestationKey, Fault::Invalid, format_args!("the platform vouches for realm key {got}, the realm has {expected}")))
}

fn describe(token: &UnverifiedToken, anchor: &Anchor) -> VerifiedPlatform {
    let (platform, realm) = (&token.platform_claims, &token.realm_claims);
    let mut verified = VerifiedPlatform::new(Platform::ArmCca, anchor.kind().clone());
    verified.report_data.clone_from(&realm.challenge);
    verified.registers = vec![Register::new("rim", &realm.initial_measurement)];
    let rems = realm.extensible_measurements.iter().enumerate();
    verified.registers.extend(rems.map(|(index, value)| Register::new(format!("rem{index}"), value)));
    verified.registers.push(Register::new("personalization", &realm.personalization));
    verified.facts = vec![
        Fact::new("platform_profile", &platform.profile),
        Fact::new("implementation_id", hex::encode(&platform.implementation_id)),
        Fact::new("instance_id", hex::encode(&platform.instance_id)),
        Fact::new("configuration", hex::encode(&platform.configuration)),
        Fact::new("lifecycle", platform.lifecycle),
        Fact::new("platform_hash", &platform.hash_algorithm),
        Fact::new("realm_hash", &realm.hash_algorithm),
    ];
    verified.facts.extend(realm.profile.as_ref().map(|profile| Fact::new("realm_profile", profile)));
    for (index, component) in platform.components.iter().enumerate() {
        let name = component.role.as_deref().unwrap_or("unnamed");
        let version = component.version.as_deref().unwrap_or("without version");
        let (measurement, signer) = (hex::encode(&component.measurement), hex::encode(&component.signer_id));
        verified.facts.push(Fact::new(format!("component{index}"), format_args!("{name} {version} {measurement} signed by {signer}")));
    }
    verified.hardware_id = Some(platform.instance_id.clone());
    verified.debug = Some(!platform.lifecycle.is_secured());
    verified.passed = vec![
        Passed { link: Link::Format, found: format!("token of a realm, {} firmware components", platform.components.len()) },
        Passed { link: Link::CertificateChain, found: format!("the chip's key is {}", anchor.kind()) },
        Passed { link: Link::AttestationKey, found: "the platform vouches for the realm's key".to_owned() },
        Passed { link: Link::Signature, found: format!("platform {}, realm {}", token.platform.algorithm(), token.realm.algorithm()) },
    ];
    let why = "the platform's firmware was not compared with reference values of its maker".to_owned();
    verified.not_checked.push(NotChecked { link: Link::Endorsements, why });
    verified
}
