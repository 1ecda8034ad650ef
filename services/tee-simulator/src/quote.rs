//! The quoting enclave: TDX quotes, version 4.
//!
//! ```text
//! header 48 | TD report 584 | length u32 | signature 64 | attestation key 64 | type 6, length |
//!     ( QE report 384 | its signature 64 | length, QE auth data 32 | type 5, length, PEM chain )
//! ```

use sha2::{Digest as _, Sha256, Sha384};

use crate::vendor::Vendor;

pub(crate) const TEE_TCB_SVN: [u8; 16] = [5, 1, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
pub(crate) const MODULE_ISV_SVN: u8 = 5;
pub(crate) const QE_ISV_SVN: u16 = 4;
pub(crate) const QE_ISV_PROD_ID: u16 = 2;
pub(crate) const QE_ATTRIBUTES: [u8; 16] = [0x11, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
/// A made-up signer of the quoting enclave: text, so that nobody takes it for a hash of Intel.
pub(crate) const QE_MR_SIGNER: [u8; 32] = *b"dstack software TEE: no hardware";
const QE_VENDOR_ID: [u8; 16] = [0x93, 0x9a, 0x72, 0x33, 0xf7, 0x9c, 0x4c, 0xa9, 0x94, 0x0a, 0x0d, 0xb3, 0x95, 0x7f, 0x06, 0x07];
/// `SEPT_VE_DISABLE`, nothing else: no debug, no migration.
const TD_ATTRIBUTES: [u8; 8] = [0, 0, 0, 0x10, 0, 0, 0, 0];
const XFAM: [u8; 8] = [0xe7, 0x02, 0x06, 0, 0, 0, 0, 0];

/// The TD report inside a quote. Tests change single fields; [`QuoteBody::new`] is what a software TD has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QuoteBody {
    /// Version numbers of the TDX module and its environment.
    pub tee_tcb_svn: [u8; 16],
    /// Signer of the TDX module.
    pub mr_signer_seam: [u8; 48],
    /// Attributes of the TD.
    pub td_attributes: [u8; 8],
    /// MRTD.
    pub mrtd: [u8; 48],
    /// MRCONFIGID.
    pub mr_config_id: [u8; 48],
    /// MROWNER.
    pub mr_owner: [u8; 48],
    /// MROWNERCONFIG.
    pub mr_owner_config: [u8; 48],
    /// RTMR0 to RTMR3.
    pub rtmr: [[u8; 48]; 4],
    /// Of the requester.
    pub report_data: [u8; 64],
}

impl QuoteBody {
    /// A TD with these registers.
    #[must_use]
    pub fn new(mrtd: [u8; 48], rtmr: [[u8; 48]; 4], mr_config_id: [u8; 48], report_data: [u8; 64]) -> Self {
        Self {
            tee_tcb_svn: TEE_TCB_SVN,
            mr_signer_seam: [0; 48],
            td_attributes: TD_ATTRIBUTES,
            mrtd,
            mr_config_id,
            mr_owner: [0; 48],
            mr_owner_config: [0; 48],
            rtmr,
            report_data,
        }
    }

    fn encode(&self) -> Vec<u8> {
        let mr_seam: [u8; 48] = Sha384::digest(b"dstack software TEE: TDX module").into();
        let [rtmr0, rtmr1, rtmr2, rtmr3] = &self.rtmr;
        [
            &self.tee_tcb_svn[..],
            &mr_seam,
            &self.mr_signer_seam,
            &[0; 8],
            &self.td_attributes,
            &XFAM,
            &self.mrtd,
            &self.mr_config_id,
            &self.mr_owner,
            &self.mr_owner_config,
            rtmr0,
            rtmr1,
            rtmr2,
            rtmr3,
            &self.report_data,
        ]
        .concat()
    }
}

/// Signs quotes with the vendor's platform.
#[derive(Debug)]
pub struct QuotingEnclave<'a> {
    vendor: &'a Vendor,
}

impl<'a> QuotingEnclave<'a> {
    /// The quoting enclave of `vendor`'s platform.
    #[must_use]
    pub fn new(vendor: &'a Vendor) -> Self {
        Self { vendor }
    }

    /// A quote over `body`.
    #[must_use]
    pub fn quote(&self, body: &QuoteBody) -> Vec<u8> {
        let mut quote = self.header();
        quote.extend(body.encode());
        let signature = self.vendor.sign_with_attestation_key(&quote);
        let certification = self.certification();
        let auth_data =
            [&signature[..], &self.vendor.attestation_public_key(), &6_u16.to_le_bytes(), &length_u32(&certification), &certification]
                .concat();
        quote.extend(length_u32(&auth_data));
        quote.extend(auth_data);
        quote
    }

    fn header(&self) -> Vec<u8> {
        [&4_u16.to_le_bytes()[..], &2_u16.to_le_bytes(), &0x81_u32.to_le_bytes(), &[0; 4], &QE_VENDOR_ID, self.vendor.qe_id(), &[0; 4]]
            .concat()
    }

    fn certification(&self) -> Vec<u8> {
        let auth_data: [u8; 32] = std::array::from_fn(|index| u8::try_from(index).unwrap_or(0));
        let report = self.enclave_report(&auth_data);
        let chain = self.vendor.pck_chain_pem();
        [
            &report[..],
            &self.vendor.sign_with_pck(&report),
            &32_u16.to_le_bytes(),
            &auth_data,
            &5_u16.to_le_bytes(),
            &length_u32(chain.as_bytes()),
            chain.as_bytes(),
        ]
        .concat()
    }

    /// The quoting enclave's own report: it vouches for the attestation key.
    fn enclave_report(&self, auth_data: &[u8; 32]) -> Vec<u8> {
        let bound = Sha256::new().chain_update(self.vendor.attestation_public_key()).chain_update(auth_data).finalize();
        [
            &crate::vendor::CPU_SVN[..],
            &[0; 32],
            &QE_ATTRIBUTES,
            &[0xd5; 32],
            &[0; 32],
            &QE_MR_SIGNER,
            &[0; 96],
            &QE_ISV_PROD_ID.to_le_bytes(),
            &QE_ISV_SVN.to_le_bytes(),
            &[0; 60],
            &bound,
            &[0; 32],
        ]
        .concat()
    }
}

fn length_u32(bytes: &[u8]) -> [u8; 4] {
    u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_le_bytes()
}
