//! The vendors' papers.

use std::sync::Arc;

use dstack_attestation::Endorsements;
use dstack_ra_tls::collateral::{ChipKeyClient, CollateralClient, CollateralCounters, FetchError};
use dstack_verdict::Subject;

use crate::verification::Clock;

/// Where they come from.
#[derive(Debug, Clone)]
pub(crate) struct Papers {
    pub(crate) intel: CollateralClient,
    /// Nobody is asked for chip keys without.
    pub(crate) amd: Option<ChipKeyClient>,
}

impl Papers {
    pub(crate) fn with_clock(self, clock: &Clock) -> Self {
        let (of_intel, of_amd) = (Arc::clone(clock), Arc::clone(clock));
        Self { intel: self.intel.with_clock(move || of_intel()), amd: self.amd.map(|client| client.with_clock(move || of_amd())) }
    }

    pub(crate) fn counters(&self) -> CollateralCounters {
        let amd = self.amd.as_ref().map(ChipKeyClient::counters).unwrap_or_default();
        self.intel.counters() + amd
    }

    /// What came with the evidence, else what the vendor publishes about its platform.
    pub(crate) async fn endorsements(&self, subject: &Subject) -> Result<Endorsements, FetchError> {
        let mut endorsements = subject.saved_endorsements();
        if let (Some(quote), None) = (subject.td_quote().or(subject.sgx_quote()), &endorsements.collateral) {
            endorsements.collateral.clone_from(&self.intel.endorsements(quote).await?.collateral);
        }
        if let (Some(report), Some(amd)) = (subject.snp_report_without_key(&endorsements), &self.amd) {
            let fetched = amd.endorsements(report).await?;
            endorsements.certificates.clone_from(&fetched.certificates);
            endorsements.revocation_lists.extend(fetched.revocation_lists.iter().cloned());
        }
        Ok(endorsements)
    }
}
