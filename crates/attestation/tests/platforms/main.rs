//! Nitro documents, TPM quotes, GPU reports and CCA tokens: genuine ones, and single changes of well signed ones.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::cast_possible_truncation, reason = "tests panic on purpose")]

mod cca;
mod chains;
mod gpu;
mod images;
mod nitro;
mod nitro_fields;
mod nitro_instance;
mod pki;
mod revocation;
mod tpm;
mod tpm_fields;
