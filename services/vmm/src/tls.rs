//! TLS towards the KMS.

use std::{fs, path::Path};

use rustls_pki_types::{CertificateDer, pem::PemObject as _};

use crate::VmmError;

/// A client that accepts only a KMS certificate under the CA in `ca_file`.
///
/// Errors: no usable certificate in the file.
pub(crate) fn kms_client(ca_file: &Path) -> Result<rustls::ClientConfig, VmmError> {
    let pem = fs::read(ca_file).map_err(VmmError::io("reading", ca_file))?;
    let root = CertificateDer::from_pem_slice(&pem).map_err(|error| VmmError::field("kms_ca_file", error.to_string()))?;
    dstack_ra_tls::tls::pinned_client(&root, dstack_ra_tls::usage::KMS_RPC, None)
        .map_err(|error| VmmError::field("kms_ca_file", error.to_string()))
}
