//! From the certificate of an attestation key to a root that is trusted.
//!
//! The certificates in between come with the evidence or from the caller, in any order, and are untrusted. One that is not needed does no
//! harm. Each certificate on the way must be signed by the next, be within its dates, and be allowed to issue; a critical extension
//! that nobody here understands forbids its use. Extended key usages are not looked at: vendors set them in different ways.

use x509_parser::{
    certificate::X509Certificate,
    extensions::ParsedExtension,
    oid_registry::{
        OID_PKCS1_SHA256WITHRSA, OID_PKCS1_SHA384WITHRSA, OID_PKCS1_SHA512WITHRSA, OID_SIG_ECDSA_WITH_SHA256, OID_SIG_ECDSA_WITH_SHA384,
        OID_X509_EXT_BASIC_CONSTRAINTS, OID_X509_EXT_EXTENDED_KEY_USAGE, OID_X509_EXT_KEY_USAGE, OID_X509_EXT_SUBJECT_ALT_NAME,
    },
    prelude::FromDer as _,
    x509::{AlgorithmIdentifier, X509Name},
};

use crate::{
    Anchor, Context, Fault, Link, Platform, Refusal, Vendor,
    public_key::{MessageHash, PublicKey, Signature},
    revocation::Revocation,
};

/// Most certificates that are looked at, and the largest of them.
const MAX_CERTIFICATES: usize = 16;
const MAX_CERTIFICATE_BYTES: usize = 8 << 10;
/// Most certificates between an attestation key and its root.
const MAX_INTERMEDIATES: usize = 6;

/// What is to be verified, and with what.
#[derive(Clone, Copy)]
pub(crate) struct Path<'a> {
    /// For refusals.
    pub(crate) platform: Platform,
    /// Whose roots may end the chain.
    pub(crate) vendors: &'a [Vendor],
    /// Certificate of the attestation key, DER.
    pub(crate) leaf: &'a [u8],
    /// Certificates that may be on the way, DER.
    pub(crate) given: &'a [&'a [u8]],
    /// Roots and clock.
    pub(crate) context: &'a Context<'a>,
}

/// A chain that holds.
pub(crate) struct VerifiedChain<'a> {
    pub(crate) leaf: X509Certificate<'a>,
    pub(crate) key: PublicKey,
    pub(crate) anchor: &'a Anchor,
    /// Unix seconds until which all of its certificates are valid.
    pub(crate) valid_until: u64,
    /// Certificates between leaf and root.
    pub(crate) intermediates: usize,
    pub(crate) revocation: Revocation,
}

impl<'a> Path<'a> {
    fn refuse(&self, fault: Fault, detail: impl std::fmt::Display) -> Refusal {
        Refusal::new(self.platform, Link::CertificateChain, fault, detail)
    }

    /// Follows the issuers from the leaf to a root.
    pub(crate) fn verify(&self) -> Result<VerifiedChain<'a>, Refusal> {
        if self.given.len() > MAX_CERTIFICATES {
            return Err(
                self.refuse(Fault::Malformed, format_args!("{} certificates, at most {MAX_CERTIFICATES} are read", self.given.len()))
            );
        }
        let leaf = self.parse(self.leaf)?;
        self.check_leaf(&leaf)?;
        let mut valid_until = self.check_dates(&leaf)?;
        let mut chain = vec![leaf.clone()];
        for intermediates in 0..=MAX_INTERMEDIATES {
            let below = chain.last().unwrap_or(&leaf);
            if let Some((anchor, root)) = self.find_root(below)? {
                self.check_authority(&root, intermediates)?;
                valid_until = valid_until.min(self.check_dates(&root)?);
                chain.push(root);
                let lists = &self.context.endorsements.revocation_lists;
                let revocation = Revocation::check(self.platform, &chain, lists, self.context.now)?;
                let unusable = || self.refuse(Fault::NotImplemented, "the attestation key is neither ECDSA P-256 or P-384 nor RSA");
                let key = PublicKey::from_spki(leaf.public_key()).ok_or_else(unusable)?;
                return Ok(VerifiedChain { leaf, key, anchor, valid_until, intermediates, revocation });
            }
            let issuer = self.find_issuer(below)?;
            self.check_authority(&issuer, intermediates)?;
            valid_until = valid_until.min(self.check_dates(&issuer)?);
            chain.push(issuer);
        }
        Err(self.refuse(Fault::Malformed, format_args!("more than {MAX_INTERMEDIATES} certificates lead to no root")))
    }

    fn parse(&self, der: &'a [u8]) -> Result<X509Certificate<'a>, Refusal> {
        if der.len() > MAX_CERTIFICATE_BYTES {
            let detail = format_args!("a certificate of {} bytes, at most {MAX_CERTIFICATE_BYTES} are read", der.len());
            return Err(self.refuse(Fault::Malformed, detail));
        }
        match X509Certificate::from_der(der) {
            Ok(([], certificate)) => Ok(certificate),
            Ok((rest, _)) => Err(self.refuse(Fault::Malformed, format_args!("{} bytes follow a certificate", rest.len()))),
            Err(error) => Err(self.refuse(Fault::Malformed, format_args!("a certificate cannot be read: {error}"))),
        }
    }

    /// The root that signed `certificate`, if one of the trusted ones did.
    fn find_root(&self, certificate: &X509Certificate<'_>) -> Result<Option<(&'a Anchor, X509Certificate<'a>)>, Refusal> {
        for anchor in self.vendors.iter().flat_map(|vendor| self.context.anchors.roots(*vendor)) {
            let root = self.parse(anchor.der())?;
            if is_issuer(&root, certificate) && signed(certificate, &root).is_ok() {
                return Ok(Some((anchor, root)));
            }
        }
        Ok(None)
    }

    /// The given certificate that signed `certificate`.
    fn find_issuer(&self, certificate: &X509Certificate<'_>) -> Result<X509Certificate<'a>, Refusal> {
        let (name, issuer) = (certificate.subject(), certificate.issuer());
        if name.as_raw() == issuer.as_raw() {
            return Err(self.refuse(Fault::OtherRoot, format_args!("{name} signed itself and is not trusted")));
        }
        let mut why = None;
        for der in self.given {
            let candidate = self.parse(der)?;
            if is_issuer(&candidate, certificate) {
                match signed(certificate, &candidate) {
                    Ok(()) => return Ok(candidate),
                    Err(reason) => why = Some(reason),
                }
            }
        }
        let roots: Vec<&Anchor> = self.vendors.iter().flat_map(|vendor| self.context.anchors.roots(*vendor)).collect();
        let is_named = |anchor: &&Anchor| X509Certificate::from_der(anchor.der()).is_ok_and(|(_, root)| is_issuer(&root, certificate));
        Err(match why {
            Some(reason) => self.refuse(Fault::Invalid, format_args!("{name} is not signed by {issuer}: {reason}")),
            None if roots.iter().any(is_named) => {
                self.refuse(Fault::Invalid, format_args!("{name} is not signed by the trusted root {issuer}"))
            }
            None if roots.is_empty() => self.refuse(Fault::OtherRoot, "no root of this vendor is trusted"),
            None => self.refuse(Fault::Missing, format_args!("{name} is issued by {issuer}, which was not given and is no trusted root")),
        })
    }

    fn check_leaf(&self, leaf: &X509Certificate<'_>) -> Result<(), Refusal> {
        if leaf.is_ca() {
            return Err(self.refuse(Fault::Invalid, format_args!("{}: the attestation key is an authority", leaf.subject())));
        }
        match leaf.key_usage() {
            Ok(Some(usage)) if !usage.value.digital_signature() => {
                Err(self.refuse(Fault::Invalid, format_args!("{}: the attestation key may not sign", leaf.subject())))
            }
            Err(error) => Err(self.refuse(Fault::Malformed, format_args!("{}: key usage: {error}", leaf.subject()))),
            Ok(_) => self.check_extensions(leaf),
        }
    }

    /// `below`: certificates between this one and the leaf.
    fn check_authority(&self, certificate: &X509Certificate<'_>, below: usize) -> Result<(), Refusal> {
        let name = certificate.subject();
        let constraints = certificate.basic_constraints().ok().flatten().map(|extension| extension.value);
        let may_sign = matches!(certificate.key_usage(), Ok(Some(usage)) if usage.value.key_cert_sign());
        let Some(constraints) = constraints.filter(|constraints| constraints.ca && may_sign) else {
            return Err(self.refuse(Fault::Invalid, format_args!("{name} may not issue certificates")));
        };
        let longest = constraints.path_len_constraint.map(|length| usize::try_from(length).unwrap_or(usize::MAX));
        if longest.is_some_and(|longest| below > longest) {
            return Err(self.refuse(Fault::Invalid, format_args!("{name} may not issue authorities as deep as {below}")));
        }
        self.check_extensions(certificate)
    }

    fn check_extensions(&self, certificate: &X509Certificate<'_>) -> Result<(), Refusal> {
        let known =
            [OID_X509_EXT_BASIC_CONSTRAINTS, OID_X509_EXT_KEY_USAGE, OID_X509_EXT_EXTENDED_KEY_USAGE, OID_X509_EXT_SUBJECT_ALT_NAME];
        match certificate.extensions().iter().find(|extension| extension.critical && !known.contains(&extension.oid)) {
            None => Ok(()),
            Some(extension) => {
                let detail = format_args!("{}: unknown critical extension {}", certificate.subject(), extension.oid);
                Err(self.refuse(Fault::Invalid, detail))
            }
        }
    }

    /// End of the certificate's validity, which includes the clock's time.
    fn check_dates(&self, certificate: &X509Certificate<'_>) -> Result<u64, Refusal> {
        let (name, validity, now) = (certificate.subject(), certificate.validity(), self.context.now);
        let (start, end) = (unix(validity.not_before.timestamp()), unix(validity.not_after.timestamp()));
        if start > now {
            return Err(self.refuse(Fault::NotYetValid, format_args!("{name} is valid from {}", validity.not_before)));
        }
        if end < now {
            return Err(self.refuse(Fault::Expired, format_args!("{name} was valid until {}", validity.not_after)));
        }
        Ok(end)
    }
}

/// By name, and by key identifier where both have one: authorities renew their keys and keep their names.
fn is_issuer(issuer: &X509Certificate<'_>, certificate: &X509Certificate<'_>) -> bool {
    let is_key = match (authority_key(certificate), subject_key(issuer)) {
        (Some(named), Some(own)) => named == own,
        _ => true,
    };
    is_key && issuer.subject().as_raw() == certificate.issuer().as_raw()
}

fn authority_key<'a>(certificate: &'a X509Certificate<'_>) -> Option<&'a [u8]> {
    certificate.extensions().iter().find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::AuthorityKeyIdentifier(identifier) => identifier.key_identifier.as_ref().map(|key| key.0),
        _ => None,
    })
}

fn subject_key<'a>(certificate: &'a X509Certificate<'_>) -> Option<&'a [u8]> {
    certificate.extensions().iter().find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::SubjectKeyIdentifier(identifier) => Some(identifier.0),
        _ => None,
    })
}

fn signed(certificate: &X509Certificate<'_>, issuer: &X509Certificate<'_>) -> Result<(), &'static str> {
    if certificate.signature_algorithm != certificate.tbs_certificate.signature {
        return Err("two signature algorithms are named");
    }
    let hash = hash_of(&certificate.signature_algorithm).ok_or("the signature algorithm is not implemented")?;
    let key = PublicKey::from_spki(issuer.public_key()).ok_or("the issuer's key is of a kind that is not implemented")?;
    let signature = Signature::Der(&certificate.signature_value.data);
    key.verify(hash, certificate.tbs_certificate.as_ref(), signature).map_err(|_| "the signature is invalid")
}

/// The key decides between RSA and ECDSA; a signature of the wrong kind does not verify.
pub(crate) fn hash_of(algorithm: &AlgorithmIdentifier<'_>) -> Option<MessageHash> {
    let known = [
        (OID_SIG_ECDSA_WITH_SHA256, MessageHash::Sha256),
        (OID_SIG_ECDSA_WITH_SHA384, MessageHash::Sha384),
        (OID_PKCS1_SHA256WITHRSA, MessageHash::Sha256),
        (OID_PKCS1_SHA384WITHRSA, MessageHash::Sha384),
        (OID_PKCS1_SHA512WITHRSA, MessageHash::Sha512),
    ];
    known.into_iter().find(|(oid, _)| *oid == algorithm.algorithm).map(|(_, hash)| hash)
}

/// First common name of a subject or issuer.
pub(crate) fn common_name(name: &X509Name<'_>) -> Option<String> {
    name.iter_common_name().next()?.as_str().ok().map(str::to_owned)
}

/// Seconds since 1970; earlier times are its beginning.
pub(crate) fn unix(seconds: i64) -> u64 {
    u64::try_from(seconds).unwrap_or(0)
}
