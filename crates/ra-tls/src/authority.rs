//! Authorities and the certificates they issue.

use dstack_manifest::AppId;
use rand_core::RngCore as _;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SerialNumber, SubjectPublicKeyInfo,
};
use rustls_pki_types::{CertificateDer, pem::PemObject as _};
use time::OffsetDateTime;

use crate::{
    CertKey, RaTlsCertificate,
    extension::{Extension, usage},
};

/// How usages of a KMS start.
const KMS_USAGES: &str = "kms:";

/// A certificate that cannot be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AuthorityError {
    /// A time that no certificate can hold.
    #[error("validity from {not_before} to {not_after} cannot stand in a certificate")]
    Validity {
        /// Unix seconds.
        not_before: u64,
        /// Unix seconds.
        not_after: u64,
    },
    /// The authority's certificate cannot be read, or belongs to another key.
    #[error("certificate of the authority does not belong to its key")]
    KeyMismatch,
    /// An application's authority makes application certificates only.
    #[error("an application's authority cannot issue a certificate with usage {usage:?}")]
    Usage {
        /// The usage asked for.
        usage: String,
    },
    /// A name, key or certificate that the encoder refuses.
    #[error("encoding a certificate for {subject:?}")]
    Encode {
        /// Common name.
        subject: String,
        /// The encoder's reason.
        #[source]
        source: rcgen::Error,
    },
}

/// From when to when a certificate is valid, Unix seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    /// First second.
    pub not_before: u64,
    /// Last second.
    pub not_after: u64,
}

impl Validity {
    /// Ten years, the lifetime other implementations give.
    pub const TEN_YEARS: u64 = 3650 * 24 * 3600;

    /// From `now` for `seconds`, starting five minutes early for clocks that are behind.
    #[must_use]
    pub fn starting(now: u64, seconds: u64) -> Self {
        Self { not_before: now.saturating_sub(300), not_after: now.saturating_add(seconds) }
    }
}

/// Which self-signed authority to make.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CaProfile {
    /// Root of a KMS: `O=Dstack, CN=Dstack KMS CA`, one authority below it.
    KmsRoot,
    /// Issuer of client certificates whose only worth is their evidence: `O=Dstack, CN=Dstack Client Temp CA`.
    ClientTemp,
    /// Application authority of a VM without a KMS: `CN=App Root Cert`.
    AppRoot,
}

/// What goes into a leaf. Trust: whatever the caller put; an authority adds no check.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LeafProfile {
    /// Organization.
    pub org_name: Option<String>,
    /// Common name.
    pub common_name: String,
    /// DNS names and IP addresses.
    pub subject_alt_names: Vec<String>,
    /// See [`usage`].
    pub usage: Option<String>,
    /// Application.
    pub app_id: Option<AppId>,
    /// Stripped attestation envelope.
    pub attestation: Option<Vec<u8>>,
    /// Encoded [`AppInfo`](crate::AppInfo).
    pub app_info: Option<Vec<u8>>,
    /// Nonce that the evidence binds, see [`ra_tls_report_data_with`](crate::ra_tls_report_data_with).
    pub nonce: Option<Vec<u8>>,
    /// Extended key usage for servers.
    pub server_auth: bool,
    /// Extended key usage for clients.
    pub client_auth: bool,
}

impl LeafProfile {
    /// Server certificate of a KMS for `domain`.
    #[must_use]
    pub fn kms_rpc(domain: &str, attestation: Option<Vec<u8>>) -> Self {
        Self {
            common_name: domain.to_owned(),
            subject_alt_names: vec![domain.to_owned()],
            usage: Some(usage::KMS_RPC.to_owned()),
            attestation,
            ..Self::default()
        }
    }

    /// Client certificate under the temporary authority: only its evidence counts.
    #[must_use]
    pub fn guest_client(attestation: Vec<u8>) -> Self {
        Self { common_name: "RA-TLS TEMP Cert".to_owned(), attestation: Some(attestation), ..Self::default() }
    }
}

/// An authority: certificate and key.
pub struct CertificateAuthority {
    certificate: CertificateDer<'static>,
    pem: String,
    spki: Vec<u8>,
    /// Last second, Unix seconds.
    not_after: i64,
    is_application: bool,
    issuer: Issuer<'static, KeyPair>,
}

impl std::fmt::Debug for CertificateAuthority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("CertificateAuthority(…)")
    }
}

impl CertificateAuthority {
    /// A self-signed authority for `key`.
    pub fn self_signed(profile: CaProfile, key: CertKey, validity: Validity) -> Result<Self, AuthorityError> {
        let (organization, name, path_length) = match profile {
            CaProfile::KmsRoot => (Some("Dstack"), "Dstack KMS CA", 1),
            CaProfile::ClientTemp => (Some("Dstack"), "Dstack Client Temp CA", 0),
            CaProfile::AppRoot => (None, "App Root Cert", 1),
        };
        let params = ca_params(organization, name, path_length, validity)?;
        let certificate = params.self_signed(key.pair()).map_err(|source| AuthorityError::Encode { subject: name.to_owned(), source })?;
        Self::assemble(certificate.der().clone(), key)
    }

    /// An authority from its stored certificate (PEM) and key; they must belong together.
    pub fn load(certificate_pem: &str, key: CertKey) -> Result<Self, AuthorityError> {
        let certificate = CertificateDer::from_pem_slice(certificate_pem.as_bytes()).map_err(|_| AuthorityError::KeyMismatch)?;
        Self::assemble(certificate, key)
    }

    fn assemble(certificate: CertificateDer<'static>, key: CertKey) -> Result<Self, AuthorityError> {
        let spki = key.spki_der();
        let parsed = RaTlsCertificate::parse(&certificate).map_err(|_| AuthorityError::KeyMismatch)?;
        if parsed.spki_der() != spki {
            return Err(AuthorityError::KeyMismatch);
        }
        let (not_after, is_application) = (parsed.not_after(), parsed.usage() == Some(usage::APP_CA));
        let issuer = Issuer::from_ca_cert_der(&certificate, key.into_pair())
            .map_err(|source| AuthorityError::Encode { subject: "authority".to_owned(), source })?;
        let pem = to_pem(&certificate);
        Ok(Self { certificate, pem, spki, not_after, is_application, issuer })
    }

    /// Certificate, DER.
    #[must_use]
    pub fn certificate_der(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// Certificate, PEM.
    #[must_use]
    pub fn certificate_pem(&self) -> &str {
        &self.pem
    }

    /// SubjectPublicKeyInfo, DER: what pins this authority.
    #[must_use]
    pub fn spki_der(&self) -> &[u8] {
        &self.spki
    }

    /// PKCS#8 PEM of the key. Secret.
    #[must_use]
    pub fn key_pem(&self) -> zeroize::Zeroizing<String> {
        zeroize::Zeroizing::new(self.issuer.key().serialize_pem())
    }

    /// The authority of one application: `O=Dstack, CN=Dstack App CA`, app id and usage `app:ca`, nothing below it but leaves.
    pub fn issue_app_ca(&self, app_id: &AppId, key: CertKey, validity: Validity) -> Result<Self, AuthorityError> {
        let name = "Dstack App CA";
        let mut params = ca_params(Some("Dstack"), name, 0, validity)?;
        params.custom_extensions =
            vec![Extension::AppId.to_rcgen(app_id.as_bytes()), Extension::CertUsage.to_rcgen(usage::APP_CA.as_bytes())];
        let certificate =
            params.signed_by(key.pair(), &self.issuer).map_err(|source| AuthorityError::Encode { subject: name.to_owned(), source })?;
        Self::assemble(certificate.der().clone(), key)
    }

    /// A leaf for the key `spki_der`, which ends with this authority at the latest.
    ///
    /// Errors: [`AuthorityError::Usage`] where an application's authority is asked for a certificate of the KMS.
    pub fn issue_leaf(
        &self,
        spki_der: &[u8],
        profile: &LeafProfile,
        validity: Validity,
    ) -> Result<CertificateDer<'static>, AuthorityError> {
        let encode = |source| AuthorityError::Encode { subject: profile.common_name.clone(), source };
        if let Some(usage) = profile.usage.as_ref().filter(|usage| self.is_application && usage.starts_with(KMS_USAGES)) {
            return Err(AuthorityError::Usage { usage: usage.clone() });
        }
        let spki = SubjectPublicKeyInfo::from_der(spki_der).map_err(encode)?;
        let last = u64::try_from(self.not_after).unwrap_or(u64::MAX);
        let params = leaf_params(profile, Validity { not_after: validity.not_after.min(last), ..validity })?;
        params.signed_by(&spki, &self.issuer).map(|certificate| certificate.der().clone()).map_err(encode)
    }
}

/// PEM of a certificate.
pub(crate) fn to_pem(certificate: &CertificateDer<'_>) -> String {
    rcgen_pem(certificate)
}

fn rcgen_pem(der: &[u8]) -> String {
    use p256::pkcs8::der::pem::{LineEnding, encode_string};
    encode_string("CERTIFICATE", LineEnding::LF, der).unwrap_or_default()
}

fn ca_params(organization: Option<&str>, name: &str, path_length: u8, validity: Validity) -> Result<CertificateParams, AuthorityError> {
    let mut params = base_params(organization, name, validity)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(path_length));
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

fn leaf_params(profile: &LeafProfile, validity: Validity) -> Result<CertificateParams, AuthorityError> {
    let mut params = base_params(profile.org_name.as_deref(), &profile.common_name, validity)?;
    let names = CertificateParams::new(profile.subject_alt_names.clone())
        .map_err(|source| AuthorityError::Encode { subject: profile.common_name.clone(), source })?;
    params.subject_alt_names = names.subject_alt_names;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    if profile.server_auth {
        params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
    }
    if profile.client_auth {
        params.extended_key_usages.push(ExtendedKeyUsagePurpose::ClientAuth);
    }
    let payloads = [
        (Extension::AppId, profile.app_id.as_ref().map(|app| app.as_bytes().as_slice())),
        (Extension::CertUsage, profile.usage.as_deref().map(str::as_bytes)),
        (Extension::Attestation, profile.attestation.as_deref()),
        (Extension::AppInfo, profile.app_info.as_deref()),
        (Extension::Nonce, profile.nonce.as_deref()),
    ];
    let present = payloads.into_iter().filter_map(|(extension, payload)| payload.map(|payload| extension.to_rcgen(payload)));
    params.custom_extensions = present.collect();
    Ok(params)
}

fn base_params(organization: Option<&str>, name: &str, validity: Validity) -> Result<CertificateParams, AuthorityError> {
    let invalid = || AuthorityError::Validity { not_before: validity.not_before, not_after: validity.not_after };
    let mut params = CertificateParams::default();
    params.not_before = instant(validity.not_before).ok_or_else(invalid)?;
    params.not_after = instant(validity.not_after).filter(|end| *end >= params.not_before).ok_or_else(invalid)?;
    params.distinguished_name = DistinguishedName::new();
    if let Some(organization) = organization {
        params.distinguished_name.push(DnType::OrganizationName, organization);
    }
    params.distinguished_name.push(DnType::CommonName, name);
    let mut serial = [0_u8; 16];
    rand_core::OsRng.fill_bytes(&mut serial);
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    Ok(params)
}

fn instant(seconds: u64) -> Option<OffsetDateTime> {
    // Certificates hold years up to 9999.
    i64::try_from(seconds)
        .ok()
        .filter(|seconds| *seconds < 253_402_300_800)
        .and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok())
}
