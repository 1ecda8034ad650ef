//! What an app's certificate may say.
//!
//! The app chooses names and times; it never chooses what makes a peer believe in a KMS: usage is always `app:custom`, no authority's
//! name, no name of the KMS, no authority below it, and an end within the operator's limit.

use std::net::IpAddr;

use dstack_api::UserFacing;
use dstack_ra_tls::{CertConfig, LeafProfile, Validity, usage};

use crate::domain::Domain;

const MAX_NAMES: usize = 64;
const MAX_COMMON_NAME_BYTES: usize = 253;
const MAX_ORGANIZATION_BYTES: usize = 128;
/// Names of authorities; a leaf that bears one could pass for it to a careless reader.
const AUTHORITY_NAMES: [&str; 4] = ["Dstack KMS CA", "Dstack App CA", "Dstack Client Temp CA", "App Root Cert"];

/// Why a certificate is not made. The requester is at fault.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum CertificateRefusal {
    #[error("{what} is too long or holds control characters")]
    Text { what: &'static str },
    #[error("subject {name:?} is the name of an authority")]
    AuthorityName { name: String },
    #[error("{got} alternative names, at most {MAX_NAMES} are allowed")]
    TooManyNames { got: usize },
    #[error("alternative name {name:?} is neither a DNS name nor an IP address")]
    Name { name: String },
    #[error("alternative name {name:?} belongs to the KMS")]
    KmsName { name: String },
    #[error("alternative name {name:?} is in none of the domains of apps")]
    ForeignName { name: String },
    #[error("not_before must be earlier than not_after")]
    Order,
    #[error("not_after is in the past")]
    Past,
}

impl UserFacing for CertificateRefusal {
    fn code(&self) -> &'static str {
        match self {
            Self::Text { .. } | Self::AuthorityName { .. } => "kms/certificate-subject",
            Self::TooManyNames { .. } | Self::Name { .. } | Self::KmsName { .. } | Self::ForeignName { .. } => "kms/certificate-name",
            Self::Order | Self::Past => "kms/certificate-validity",
        }
    }

    fn fix(&self) -> String {
        match self {
            Self::Text { .. } | Self::AuthorityName { .. } => "choose a subject of your own, at most 253 bytes of printable text",
            Self::TooManyNames { .. } => "ask for several certificates",
            Self::Name { .. } => "give alternative names as host names (a leading *. is allowed) or IP addresses",
            Self::KmsName { .. } => "use host names of the app",
            Self::ForeignName { .. } => "use host names in the domains that the operator of the KMS gives to apps",
            Self::Order | Self::Past => "give times in Unix seconds, or leave them out",
        }
        .to_owned()
    }
}

/// The rules, with what they depend on.
#[derive(Debug, Clone)]
pub(crate) struct CertificateRules {
    /// Name of this KMS, which no app may bear.
    pub(crate) kms_domain: Domain,
    /// Domains that apps' names must be in; empty for any name.
    pub(crate) app_domains: Vec<Domain>,
    /// Longest validity.
    pub(crate) max_seconds: u64,
}

impl CertificateRules {
    /// The leaf that `config` asks for, within the rules. `issuer_end`: last second of the root certificate.
    ///
    /// A later end than allowed is shortened; it can be read in the certificate.
    pub(crate) fn apply(&self, config: &CertConfig, now: u64, issuer_end: u64) -> Result<(LeafProfile, Validity), CertificateRefusal> {
        check_text("subject", &config.subject, MAX_COMMON_NAME_BYTES)?;
        check_text("organization", config.org_name.as_deref().unwrap_or_default(), MAX_ORGANIZATION_BYTES)?;
        if AUTHORITY_NAMES.iter().any(|name| name.eq_ignore_ascii_case(config.subject.trim())) {
            return Err(CertificateRefusal::AuthorityName { name: config.subject.clone() });
        }
        if config.subject_alt_names.len() > MAX_NAMES {
            return Err(CertificateRefusal::TooManyNames { got: config.subject_alt_names.len() });
        }
        for name in config.subject_alt_names.iter().chain([&config.subject]) {
            if covers(name, &self.kms_domain) {
                return Err(CertificateRefusal::KmsName { name: name.clone() });
            }
        }
        if let Some(name) = config.subject_alt_names.iter().find(|name| !is_name(name)) {
            return Err(CertificateRefusal::Name { name: name.chars().take(300).collect() });
        }
        if let Some(name) = config.subject_alt_names.iter().find(|name| !self.is_app_name(name)) {
            return Err(CertificateRefusal::ForeignName { name: name.clone() });
        }
        let profile = LeafProfile {
            org_name: config.org_name.clone(),
            common_name: config.subject.clone(),
            subject_alt_names: config.subject_alt_names.clone(),
            usage: Some(usage::APP_CUSTOM.to_owned()),
            server_auth: config.usage_server_auth,
            client_auth: config.usage_client_auth,
            ..LeafProfile::default()
        };
        Ok((profile, self.validity(config, now, issuer_end)?))
    }

    /// An address is in no domain.
    fn is_app_name(&self, name: &str) -> bool {
        let host = name.strip_prefix("*.").unwrap_or(name).trim_end_matches('.').to_ascii_lowercase();
        let within = |domain: &Domain| {
            let domain = domain.as_str().to_ascii_lowercase();
            host.strip_suffix(&domain).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
        };
        self.app_domains.is_empty() || self.app_domains.iter().any(within)
    }

    fn validity(&self, config: &CertConfig, now: u64, issuer_end: u64) -> Result<Validity, CertificateRefusal> {
        let limit = Validity::starting(now, self.max_seconds);
        let not_before = config.not_before.unwrap_or(limit.not_before);
        let not_after = config.not_after.unwrap_or(limit.not_after).min(limit.not_after).min(issuer_end);
        if not_before >= not_after {
            return Err(CertificateRefusal::Order);
        }
        if not_after <= now {
            return Err(CertificateRefusal::Past);
        }
        Ok(Validity { not_before, not_after })
    }
}

fn check_text(what: &'static str, text: &str, max_bytes: usize) -> Result<(), CertificateRefusal> {
    if text.len() > max_bytes || text.chars().any(char::is_control) { Err(CertificateRefusal::Text { what }) } else { Ok(()) }
}

fn is_name(name: &str) -> bool {
    name.parse::<IpAddr>().is_ok() || name.strip_prefix("*.").unwrap_or(name).parse::<Domain>().is_ok()
}

/// Whether a certificate for `name` is one for `domain`, as TLS clients match.
fn covers(name: &str, domain: &Domain) -> bool {
    let name = name.trim_end_matches('.');
    let wildcard = name
        .strip_prefix("*.")
        .zip(domain.as_str().split_once('.'))
        .is_some_and(|(suffix, (_, parent))| suffix.eq_ignore_ascii_case(parent));
    wildcard || name.eq_ignore_ascii_case(domain.as_str())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests panic on purpose")]
mod tests {
    use super::*;

    const NOW: u64 = 1_700_000_000;
    const END: u64 = NOW + 1_000_000;

    fn apply(change: impl FnOnce(&mut CertConfig)) -> Result<(LeafProfile, Validity), CertificateRefusal> {
        let mut config = CertConfig { subject: "app".into(), subject_alt_names: vec!["a.example".into()], ..CertConfig::default() };
        change(&mut config);
        let kms_domain = "kms.example.com".parse().unwrap();
        CertificateRules { kms_domain, app_domains: Vec::new(), max_seconds: 86_400 }.apply(&config, NOW, END)
    }

    #[test]
    fn usage_is_always_that_of_an_app() {
        let (profile, _) = apply(|c| c.usage_server_auth = true).unwrap();

        assert_eq!(profile.usage.as_deref(), Some(usage::APP_CUSTOM));
        assert!(profile.server_auth && !profile.client_auth);
    }

    #[test]
    fn names_of_the_kms_and_of_authorities_are_refused() {
        for name in ["kms.example.com", "KMS.example.com", "kms.example.com.", "*.example.com"] {
            assert_eq!(apply(|c| c.subject_alt_names = vec![name.into()]).unwrap_err().code(), "kms/certificate-name", "{name}");
            assert!(apply(|c| c.subject = name.into()).is_err(), "{name}");
        }
        for name in AUTHORITY_NAMES {
            assert_eq!(apply(|c| c.subject = name.to_ascii_uppercase()).unwrap_err().code(), "kms/certificate-subject");
        }
        assert!(apply(|c| c.subject_alt_names = vec!["*.app.example.com".into(), "10.0.0.1".into(), "::1".into()]).is_ok());
    }

    #[test]
    fn names_outside_the_grammar_are_refused() {
        for name in ["", "a b", "*", "*.*.a", "a.*.b", "http://x", "a_b", "ä.example", "x\n"] {
            assert!(apply(|c| c.subject_alt_names = vec![name.into()]).is_err(), "{name:?}");
        }
        assert!(apply(|c| c.subject_alt_names = vec!["a".into(); MAX_NAMES + 1]).is_err());
        assert!(apply(|c| c.subject = "a".repeat(254)).is_err());
        assert!(apply(|c| c.subject = "a\0b".into()).is_err());
        assert!(apply(|c| c.org_name = Some("a".repeat(129))).is_err());
    }

    #[test]
    fn names_outside_the_domains_of_apps_are_refused() {
        let app_domains = vec!["Apps.example".parse().unwrap(), "b.example".parse().unwrap()];
        let rules = CertificateRules { kms_domain: "kms.example.com".parse().unwrap(), app_domains, max_seconds: 86_400 };
        let apply = |name: &str| {
            let config = CertConfig { subject: "app".into(), subject_alt_names: vec![name.into()], ..CertConfig::default() };
            rules.apply(&config, NOW, END)
        };

        for name in ["apps.example", "x.apps.example", "*.apps.EXAMPLE", "a.b.b.example"] {
            assert!(apply(name).is_ok(), "{name}");
        }
        for name in ["xapps.example", "apps.example.org", "example", "*.example", "10.0.0.1", "::1"] {
            assert_eq!(apply(name).unwrap_err(), CertificateRefusal::ForeignName { name: name.into() });
        }
    }

    #[test]
    fn validity_ends_at_the_limit_and_within_the_issuers() {
        let end = |change: fn(&mut CertConfig)| apply(change).unwrap().1.not_after;

        assert_eq!(end(|_| ()), NOW + 86_400);
        assert_eq!(end(|c| c.not_after = Some(NOW + 10)), NOW + 10);
        assert_eq!(end(|c| c.not_after = Some(u64::MAX)), NOW + 86_400);
        let long = CertificateRules { kms_domain: "k".parse().unwrap(), app_domains: Vec::new(), max_seconds: u64::MAX };
        assert_eq!(long.apply(&CertConfig::default(), NOW, END).unwrap().1.not_after, END);
    }

    #[test]
    fn impossible_times_are_refused() {
        let refused = |before, after| apply(|c| (c.not_before, c.not_after) = (before, after)).unwrap_err();

        assert_eq!(refused(Some(NOW + 10), Some(NOW + 10)), CertificateRefusal::Order);
        assert_eq!(refused(Some(u64::MAX), None), CertificateRefusal::Order);
        assert_eq!(refused(Some(0), Some(NOW)), CertificateRefusal::Past);
    }
}
