//! The list of checks a verification makes, for people to read.

use std::fmt;

/// A check, in the order in which they are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Check {
    /// The bytes are evidence of the platform.
    QuoteFormat,
    /// Signatures, chains, revocation, collateral dates and TCB matching up to the trust anchor.
    QuoteSignature,
    /// Attributes of the TD: no debug, no migration, no service TD, `SEPT_VE_DISABLE`, Intel's module.
    TdAttributes,
    /// The host cannot look inside.
    Debug,
    /// Platform and machine are among those the policy names.
    Platform,
    /// TCB status and advisories against the policy.
    TcbPolicy,
    /// The vendor's papers and the evidence are as young as the policy demands.
    Freshness,
    /// Report data is the expected one.
    ReportData,
    /// Runtime events hash to their digests, and the log replays to RTMR3.
    RuntimeLog,
    /// The log replays to RTMR0 to RTMR2.
    BootLog,
    /// Identity events have the right form.
    Identity,
    /// MRCONFIGID agrees with the log.
    MrConfigId,
    /// Policy of an SNP guest: no debug, no migration agent, privilege level 0.
    GuestPolicy,
    /// HOST_DATA of an SNP guest stands for the document that names its identity.
    HostData,
    /// The launch measurements (MRTD and RTMR0 to RTMR2, or MEASUREMENT) are those of the OS image named by `os_image_hash`.
    OsImage,
    /// The `os-image-hash` event names that image.
    OsImageEvent,
}

impl Check {
    /// Stable name, for scripts.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::QuoteFormat => "quote-format",
            Self::QuoteSignature => "quote-signature",
            Self::TdAttributes => "td-attributes",
            Self::Debug => "debug",
            Self::Platform => "platform",
            Self::TcbPolicy => "tcb-policy",
            Self::Freshness => "freshness",
            Self::ReportData => "report-data",
            Self::RuntimeLog => "runtime-log",
            Self::BootLog => "boot-log",
            Self::Identity => "identity",
            Self::MrConfigId => "mr-config-id",
            Self::GuestPolicy => "guest-policy",
            Self::HostData => "host-data",
            Self::OsImage => "os-image",
            Self::OsImageEvent => "os-image-event",
        }
    }
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Result of a check that did not fail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CheckOutcome {
    /// It holds; what was found.
    Passed(String),
    /// It could not be made; why. A reader decides what that is worth.
    NotChecked(String),
}

/// The checks made so far, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CheckReport {
    checks: Vec<(Check, CheckOutcome)>,
}

impl CheckReport {
    /// Every check with its outcome.
    #[must_use]
    pub fn checks(&self) -> &[(Check, CheckOutcome)] {
        &self.checks
    }

    /// Outcome of one check.
    #[must_use]
    pub fn outcome(&self, check: Check) -> Option<&CheckOutcome> {
        self.checks.iter().find(|(made, _)| *made == check).map(|(_, outcome)| outcome)
    }

    /// Whether `check` was made and holds.
    #[must_use]
    pub fn passed(&self, check: Check) -> bool {
        matches!(self.outcome(check), Some(CheckOutcome::Passed(_)))
    }

    pub(crate) fn pass(&mut self, check: Check, found: impl Into<String>) {
        self.checks.push((check, CheckOutcome::Passed(found.into())));
    }

    pub(crate) fn skip(&mut self, check: Check, why: impl Into<String>) {
        self.checks.push((check, CheckOutcome::NotChecked(why.into())));
    }
}

#[cfg(test)]
mod tests {
    use super::{Check, CheckReport};

    /// Scripts read these names; a check that is added is added at the place where it is made.
    #[test]
    fn names_of_checks_are_stable() {
        use Check::*;
        let checks = [
            QuoteFormat,
            QuoteSignature,
            TdAttributes,
            Debug,
            Platform,
            TcbPolicy,
            Freshness,
            ReportData,
            RuntimeLog,
            BootLog,
            Identity,
            MrConfigId,
            OsImage,
            OsImageEvent,
        ];

        let names = "quote-format quote-signature td-attributes debug platform tcb-policy freshness report-data runtime-log boot-log identity \
                     mr-config-id os-image os-image-event";

        assert_eq!(checks.map(|check| check.to_string()).join(" "), names);
    }

    #[test]
    fn a_report_lists_what_was_made_in_order() {
        let mut report = CheckReport::default();
        report.pass(Check::QuoteFormat, "fine");
        report.skip(Check::BootLog, "stripped");

        let made: Vec<Check> = report.checks().iter().map(|(check, _)| *check).collect();

        assert_eq!(made, [Check::QuoteFormat, Check::BootLog]);
        assert_eq!([Check::QuoteFormat, Check::BootLog, Check::OsImage].map(|check| report.passed(check)), [true, false, false]);
    }
}
