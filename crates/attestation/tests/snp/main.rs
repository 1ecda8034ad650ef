//! Genuine SEV-SNP reports with their keys' certificates, and single changes in them. The clock is pinned.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests panic on purpose")]

mod cases;
mod changed;
mod genuine;
mod guest;
mod verified;
