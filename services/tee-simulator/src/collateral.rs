//! What the vendor publishes about its platform. Signed again each time, so it never expires while the service runs.

use serde_json::{Value, json};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use crate::{
    quote::{MODULE_ISV_SVN, QE_ATTRIBUTES, QE_ISV_PROD_ID, QE_ISV_SVN, QE_MR_SIGNER},
    vendor::{CPU_SVN, FMSPC, PCE_ID, PCE_SVN, Vendor, VendorError},
};

/// Life of a document.
const LIFETIME: i64 = 30 * 86_400;
/// Documents start this long before now, for clocks that are behind.
const BACKDATED: i64 = 3600;
const EVALUATION_DATA_NUMBER: u32 = 1;
const TCB_DATE: &str = "2026-01-01T00:00:00Z";
const PLATFORM_STATUS: &str = "UpToDate";

/// A JSON document with its raw `r || s` signature.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedDocument {
    /// Exactly the signed bytes.
    pub text: String,
    /// 64 bytes.
    pub signature: [u8; 64],
}

/// Everything a verifier asks a collateral service for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CollateralSet {
    /// TDX TCB information of the made-up platform.
    pub tcb_info: SignedDocument,
    /// Identity of the made-up quoting enclave.
    pub qe_identity: SignedDocument,
    /// Revocation list of the root, DER.
    pub root_crl: Vec<u8>,
    /// Revocation list of the PCK CA, DER.
    pub pck_crl: Vec<u8>,
}

impl CollateralSet {
    /// Documents valid around `now` (Unix seconds).
    pub fn sign(vendor: &Vendor, now: i64) -> Result<Self, VendorError> {
        Self::sign_with_status(vendor, now, PLATFORM_STATUS)
    }

    /// The same with another TCB status of the platform, for tests of policies.
    pub fn sign_with_status(vendor: &Vendor, now: i64, status: &str) -> Result<Self, VendorError> {
        Self::sign_revoking(vendor, now, status, &[])
    }

    /// The same with revocation lists that name the serial numbers `revoked` (big-endian), for tests of verifiers.
    pub fn sign_revoking(vendor: &Vendor, now: i64, status: &str, revoked: &[Vec<u8>]) -> Result<Self, VendorError> {
        let (from, until) = (now - BACKDATED, now - BACKDATED + LIFETIME);
        let dates = (rfc3339(from)?, rfc3339(until)?);
        let (root_crl, pck_crl) = vendor.revocation_lists(from, until, revoked)?;
        Ok(Self { tcb_info: sign(vendor, &tcb_info(&dates, status)), qe_identity: sign(vendor, &qe_identity(&dates)), root_crl, pck_crl })
    }
}

fn sign(vendor: &Vendor, document: &Value) -> SignedDocument {
    let text = document.to_string();
    let signature = vendor.sign_with_tcb_key(text.as_bytes());
    SignedDocument { text, signature }
}

fn rfc3339(seconds: i64) -> Result<String, VendorError> {
    let malformed = |reason: String| VendorError::Stored { reason };
    let time = OffsetDateTime::from_unix_timestamp(seconds).map_err(|error| malformed(error.to_string()))?;
    time.format(&Rfc3339).map_err(|error| malformed(error.to_string()))
}

fn tcb_info((issued, next): &(String, String), status: &str) -> Value {
    let sgx: Vec<Value> = CPU_SVN.iter().map(|svn| json!({ "svn": svn })).collect();
    let tdx: Vec<Value> = crate::quote::TEE_TCB_SVN.iter().map(|svn| json!({ "svn": svn })).collect();
    let zeros = "00".repeat(48);
    json!({
        "id": "TDX",
        "version": 3,
        "issueDate": issued,
        "nextUpdate": next,
        "fmspc": hex::encode(FMSPC),
        "pceId": hex::encode(PCE_ID),
        "tcbType": 0,
        "tcbEvaluationDataNumber": EVALUATION_DATA_NUMBER,
        "tdxModule": { "mrsigner": zeros, "attributes": "0000000000000000", "attributesMask": "FFFFFFFFFFFFFFFF" },
        "tdxModuleIdentities": [{
            "id": "TDX_01",
            "mrsigner": zeros,
            "attributes": "0000000000000000",
            "attributesMask": "FFFFFFFFFFFFFFFF",
            "tcbLevels": [{ "tcb": { "isvsvn": MODULE_ISV_SVN }, "tcbDate": TCB_DATE, "tcbStatus": "UpToDate" }],
        }],
        "tcbLevels": [{
            "tcb": { "sgxtcbcomponents": sgx, "pcesvn": PCE_SVN, "tdxtcbcomponents": tdx },
            "tcbDate": TCB_DATE,
            "tcbStatus": status,
        }],
    })
}

fn qe_identity((issued, next): &(String, String)) -> Value {
    json!({
        "id": "TD_QE",
        "version": 2,
        "issueDate": issued,
        "nextUpdate": next,
        "tcbEvaluationDataNumber": EVALUATION_DATA_NUMBER,
        "miscselect": "00000000",
        "miscselectMask": "FFFFFFFF",
        "attributes": hex::encode_upper(QE_ATTRIBUTES),
        "attributesMask": "FBFFFFFFFFFFFFFF0000000000000000",
        "mrsigner": hex::encode_upper(QE_MR_SIGNER),
        "isvprodid": QE_ISV_PROD_ID,
        "tcbLevels": [{ "tcb": { "isvsvn": QE_ISV_SVN }, "tcbDate": TCB_DATE, "tcbStatus": "UpToDate" }],
    })
}
