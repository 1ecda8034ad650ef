//! The made-up hardware vendor: keys, certificates, one platform.

use std::{fs, path::Path};

use hkdf::Hkdf;
use p256::{
    SecretKey,
    ecdsa::{Signature, SigningKey, signature::Signer as _},
    pkcs8::{EncodePrivateKey as _, LineEnding},
};
use rand_core::{OsRng, RngCore as _};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CustomExtension, DistinguishedName, DnType, IsCa, Issuer,
    KeyIdMethod, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, RevocationReason, RevokedCertParams, SerialNumber,
};
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use time::OffsetDateTime;
use zeroize::Zeroizing;

use crate::{der, td::Registers};

/// Platform model of the made-up machine.
pub(crate) const FMSPC: [u8; 6] = [0xd5, 0x7a, 0xc0, 0x00, 0x00, 0x00];
pub(crate) const CPU_SVN: [u8; 16] = [4, 4, 2, 2, 4, 1, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0];
pub(crate) const PCE_SVN: u16 = 13;
pub(crate) const PCE_ID: [u8; 2] = [0, 0];
const YEARS: i64 = 20;

/// The vendor's material is unusable.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VendorError {
    /// A certificate or list cannot be made.
    #[error("encoding {what}")]
    Encode {
        /// Which one.
        what: &'static str,
        /// The encoder's reason.
        #[source]
        source: rcgen::Error,
    },
    /// A key.
    #[error("key of {what} is unusable")]
    Key {
        /// Whose.
        what: &'static str,
    },
    /// The stored file is not what this program writes.
    #[error("vendor file is malformed: {reason}")]
    Stored {
        /// What the parser met.
        reason: String,
    },
    /// Its file.
    #[error("vendor file {path}")]
    File {
        /// The file.
        path: String,
        /// The kernel's answer.
        #[source]
        source: std::io::Error,
    },
}

/// A key with its certificate, as stored.
#[derive(Serialize, Deserialize)]
struct Entry {
    key_pem: Zeroizing<String>,
    certificate_pem: String,
}

/// Everything the vendor and its platform keep, in one file so that it is there whole or not at all.
#[derive(Serialize, Deserialize)]
struct Stored {
    root: Entry,
    tcb_signing: Entry,
    pck_ca: Entry,
    pck: Entry,
    attestation_key_pem: Zeroizing<String>,
    #[serde(with = "hex::serde")]
    qe_id: [u8; 16],
}

/// The vendor with its one platform.
pub struct Vendor {
    stored: Stored,
    root_der: Vec<u8>,
    pck_key: SigningKey,
    tcb_key: SigningKey,
    attestation_key: SigningKey,
}

impl std::fmt::Debug for Vendor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Vendor(…)")
    }
}

impl Vendor {
    /// Reads the vendor in `directory`, or makes one. `root.pem` is written beside it at every start.
    ///
    /// `now`: Unix seconds.
    pub fn open(directory: &Path, now: i64) -> Result<Self, VendorError> {
        let path = directory.join("vendor.json");
        let file = |source| VendorError::File { path: path.display().to_string(), source };
        let vendor = match fs::read(&path) {
            Ok(bytes) => {
                let stored = serde_json::from_slice(&bytes).map_err(|error| VendorError::Stored { reason: error.to_string() })?;
                Self::assemble(stored)?
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let vendor = Self::generate(now)?;
                let bytes = serde_json::to_vec_pretty(&vendor.stored).map_err(|error| VendorError::Stored { reason: error.to_string() })?;
                dstack_service::fs::write_atomic(&path, &Zeroizing::new(bytes), 0o600).map_err(file)?;
                tracing::warn!(directory = %directory.display(), "made a new software TEE vendor; its root proves nothing about hardware");
                vendor
            }
            Err(source) => return Err(file(source)),
        };
        dstack_service::fs::write_atomic(directory.join("root.pem"), vendor.root_pem().as_bytes(), 0o644).map_err(file)?;
        Ok(vendor)
    }

    /// A new vendor, in memory.
    pub fn generate(now: i64) -> Result<Self, VendorError> {
        let mut qe_id = [0; 16];
        OsRng.fill_bytes(&mut qe_id);
        let root_key = new_key("root")?;
        let root_params = params("dstack simulated SGX Root CA", now, Role::Ca(1))?;
        let root_certificate = root_params.self_signed(&root_key).map_err(encode("root"))?;
        let issuer = Issuer::from_params(&root_params, &root_key);

        let (pck_ca_key, tcb_key, pck_key) = (new_key("PCK CA")?, new_key("TCB signing")?, new_key("PCK")?);
        let pck_ca_params = params("dstack simulated SGX PCK Platform CA", now, Role::Ca(0))?;
        let pck_ca = pck_ca_params.signed_by(&pck_ca_key, &issuer).map_err(encode("PCK CA"))?;
        let tcb =
            params("dstack simulated SGX TCB Signing", now, Role::Leaf)?.signed_by(&tcb_key, &issuer).map_err(encode("TCB signing"))?;
        let mut pck_params = params("dstack simulated SGX PCK Certificate", now, Role::Leaf)?;
        pck_params.custom_extensions.push(sgx_extension());
        let pck = pck_params.signed_by(&pck_key, &Issuer::from_params(&pck_ca_params, &pck_ca_key)).map_err(encode("PCK"))?;

        let entry = |key: &KeyPair, certificate: &rcgen::Certificate| Entry {
            key_pem: Zeroizing::new(key.serialize_pem()),
            certificate_pem: certificate.pem(),
        };
        Self::assemble(Stored {
            root: entry(&root_key, &root_certificate),
            tcb_signing: entry(&tcb_key, &tcb),
            pck_ca: entry(&pck_ca_key, &pck_ca),
            pck: entry(&pck_key, &pck),
            attestation_key_pem: pkcs8(&SecretKey::random(&mut OsRng))?,
            qe_id,
        })
    }

    fn assemble(stored: Stored) -> Result<Self, VendorError> {
        Ok(Self {
            root_der: der_of(&stored.root.certificate_pem)?,
            pck_key: signing_key(&stored.pck.key_pem, "PCK")?,
            tcb_key: signing_key(&stored.tcb_signing.key_pem, "TCB signing")?,
            attestation_key: signing_key(&stored.attestation_key_pem, "quoting enclave")?,
            stored,
        })
    }

    /// A key for a TD with these launch registers and MRCONFIGID. RTMR3 does not count: it grows while the TD runs.
    #[must_use]
    pub(crate) fn sealing_key(&self, registers: &Registers, mr_config_id: &[u8; 48], label: &str) -> [u8; 32] {
        let [rtmr0, rtmr1, rtmr2, _] = &registers.rtmr;
        let secret = self.stored.pck.key_pem.as_bytes();
        let hkdf = Hkdf::<Sha256>::new(Some(b"dstack software TEE: sealing key v1"), secret);
        let mut key = [0; 32];
        let expanded = hkdf.expand_multi_info(&[&registers.mrtd, rtmr0, rtmr1, rtmr2, mr_config_id, label.as_bytes()], &mut key);
        assert!(expanded.is_ok(), "32 bytes are within HKDF's limit");
        key
    }

    /// The root, PEM: what verifiers put under `[danger]`.
    #[must_use]
    pub fn root_pem(&self) -> &str {
        &self.stored.root.certificate_pem
    }

    /// The root, DER.
    #[must_use]
    pub fn root_der(&self) -> &[u8] {
        &self.root_der
    }

    /// PEM chain of the TCB signer: signer, root.
    #[must_use]
    pub fn tcb_chain_pem(&self) -> String {
        [&self.stored.tcb_signing, &self.stored.root].map(|entry| entry.certificate_pem.as_str()).concat()
    }

    /// PEM chain of the PCK revocation list's issuer: PCK CA, root.
    #[must_use]
    pub fn pck_ca_chain_pem(&self) -> String {
        [&self.stored.pck_ca, &self.stored.root].map(|entry| entry.certificate_pem.as_str()).concat()
    }

    /// PEM chain of the PCK certificate: PCK, PCK CA, root.
    #[must_use]
    pub fn pck_chain_pem(&self) -> String {
        [&self.stored.pck, &self.stored.pck_ca, &self.stored.root].map(|entry| entry.certificate_pem.as_str()).concat()
    }

    pub(crate) fn qe_id(&self) -> &[u8; 16] {
        &self.stored.qe_id
    }

    pub(crate) fn sign_with_pck(&self, message: &[u8]) -> [u8; 64] {
        raw_signature(&self.pck_key, message)
    }

    pub(crate) fn sign_with_tcb_key(&self, message: &[u8]) -> [u8; 64] {
        raw_signature(&self.tcb_key, message)
    }

    pub(crate) fn sign_with_attestation_key(&self, message: &[u8]) -> [u8; 64] {
        raw_signature(&self.attestation_key, message)
    }

    /// `x || y` of the attestation key.
    pub(crate) fn attestation_public_key(&self) -> [u8; 64] {
        let point = self.attestation_key.verifying_key().to_encoded_point(false);
        let mut raw = [0; 64];
        if let Some((_, coordinates)) = point.as_bytes().split_first()
            && coordinates.len() == raw.len()
        {
            raw.copy_from_slice(coordinates);
        }
        raw
    }

    /// Revocation lists of root and PCK CA, DER; each names every serial number of `revoked`.
    pub(crate) fn revocation_lists(&self, from: i64, until: i64, revoked: &[Vec<u8>]) -> Result<(Vec<u8>, Vec<u8>), VendorError> {
        let list = |entry: &Entry, what| {
            let key = KeyPair::from_pem_and_sign_algo(&entry.key_pem, &PKCS_ECDSA_P256_SHA256).map_err(encode(what))?;
            let issuer = Issuer::from_ca_cert_pem(&entry.certificate_pem, key).map_err(encode(what))?;
            let parameters = CertificateRevocationListParams {
                this_update: instant(from)?,
                next_update: instant(until)?,
                crl_number: SerialNumber::from_slice(&1_u32.to_be_bytes()),
                issuing_distribution_point: None,
                revoked_certs: revoked.iter().map(|serial| entry_of(serial, from)).collect::<Result<_, _>>()?,
                key_identifier_method: KeyIdMethod::Sha256,
            };
            parameters.signed_by(&issuer).map(|list| list.der().to_vec()).map_err(encode(what))
        };
        Ok((list(&self.stored.root, "root revocation list")?, list(&self.stored.pck_ca, "PCK revocation list")?))
    }
}

fn entry_of(serial: &[u8], from: i64) -> Result<RevokedCertParams, VendorError> {
    Ok(RevokedCertParams {
        serial_number: SerialNumber::from_slice(serial),
        revocation_time: instant(from)?,
        reason_code: Some(RevocationReason::KeyCompromise),
        invalidity_date: None,
    })
}

enum Role {
    Ca(u8),
    Leaf,
}

fn encode(what: &'static str) -> impl Fn(rcgen::Error) -> VendorError {
    move |source| VendorError::Encode { what, source }
}

fn new_key(what: &'static str) -> Result<KeyPair, VendorError> {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(encode(what))
}

fn pkcs8(key: &SecretKey) -> Result<Zeroizing<String>, VendorError> {
    key.to_pkcs8_pem(LineEnding::LF).map_err(|_| VendorError::Key { what: "quoting enclave" })
}

fn signing_key(pem: &str, what: &'static str) -> Result<SigningKey, VendorError> {
    use p256::pkcs8::DecodePrivateKey as _;
    SigningKey::from_pkcs8_pem(pem).map_err(|_| VendorError::Key { what })
}

fn raw_signature(key: &SigningKey, message: &[u8]) -> [u8; 64] {
    let signature: Signature = key.sign(message);
    signature.to_bytes().into()
}

fn der_of(pem: &str) -> Result<Vec<u8>, VendorError> {
    use p256::pkcs8::der::pem::decode_vec;
    decode_vec(pem.replace("\r\n", "\n").as_bytes()).map(|(_, der)| der).map_err(|error| VendorError::Stored { reason: error.to_string() })
}

fn instant(seconds: i64) -> Result<OffsetDateTime, VendorError> {
    OffsetDateTime::from_unix_timestamp(seconds).map_err(|error| VendorError::Stored { reason: error.to_string() })
}

fn params(name: &str, now: i64, role: Role) -> Result<CertificateParams, VendorError> {
    let mut params = CertificateParams::default();
    params.not_before = instant(now - 86_400)?;
    params.not_after = instant(now + YEARS * 365 * 86_400)?;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.distinguished_name.push(DnType::OrganizationName, "dstack software TEE - no hardware");
    let mut serial = [0; 16];
    OsRng.fill_bytes(&mut serial);
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params.use_authority_key_identifier_extension = true;
    match role {
        Role::Ca(path_length) => {
            params.is_ca = IsCa::Ca(BasicConstraints::Constrained(path_length));
            params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        }
        Role::Leaf => {
            params.is_ca = IsCa::ExplicitNoCa;
            params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::ContentCommitment];
        }
    }
    Ok(params)
}

/// Intel's SGX extension: PPID, TCB, PCE id, FMSPC, type, platform instance, configuration.
fn sgx_extension() -> CustomExtension {
    let (mut ppid, mut instance) = ([0; 16], [0; 16]);
    OsRng.fill_bytes(&mut ppid);
    OsRng.fill_bytes(&mut instance);
    let field = |arcs: &[u8], value: Vec<u8>| der::sequence(&[der::sgx_oid(arcs), value]);
    let components = (1_u8..).zip(CPU_SVN).map(|(index, svn)| field(&[2, index], der::integer(u16::from(svn))));
    let mut tcb: Vec<Vec<u8>> = components.collect();
    tcb.push(field(&[2, 17], der::integer(PCE_SVN)));
    tcb.push(field(&[2, 18], der::octet_string(&CPU_SVN)));
    let configuration = (1_u8..=3).map(|index| field(&[7, index], der::boolean(index != 1))).collect::<Vec<_>>();
    let content = der::sequence(&[
        field(&[1], der::octet_string(&ppid)),
        field(&[2], der::sequence(&tcb)),
        field(&[3], der::octet_string(&PCE_ID)),
        field(&[4], der::octet_string(&FMSPC)),
        field(&[5], der::enumerated(1)),
        field(&[6], der::octet_string(&instance)),
        field(&[7], der::sequence(&configuration)),
    ]);
    CustomExtension::from_oid_content(&[1, 2, 840, 113_741, 1, 13, 1], content)
}
