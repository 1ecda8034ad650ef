//! The dstack command for owners, operators and relying parties.
